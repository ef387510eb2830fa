//! What becomes of a server whose system calls fail: the example `echo`, in each mode, under `strace`,
//! which injects an error into some of its calls or, from one on, into all. Every byte that arrives is
//! right, nobody waits for ever, afterwards a new client is served, and the server neither ends nor
//! spins.
//!
//! `cargo test --test faults` injects the first error of each row of the table; `cargo test --test
//! faults -- --full` all of them. Where there is no `strace` that may trace, it says that it was
//! skipped; with `SOCKETSERVER_REQUIRE_TOOLS=1` it fails.

#[path = "support/process.rs"]
mod process;
#[path = "support/programs.rs"]
mod programs;
#[path = "support/runner.rs"]
mod runner;

use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use process::{DEADLINE, Datagrams, Directory, Process, try_connect};

/// Without a byte or an end for so long, a client has been forgotten.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much a client sends at a time, and how often.
const MESSAGE: usize = 30_000;
const MESSAGES: usize = 3;

/// Calls that are made at certain times only, and perhaps not here.
const RARE: [&str; 3] = ["ioctl", "recvmsg", "sendmsg"];

/// What clients may find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Nothing: the call is made again.
    Whole,
    /// A connection, or a datagram, that is lost: but with an end, and no wrong byte.
    Lost,
    /// The error stays, and nobody new is served.
    Stays,
}
use Outcome::{Lost, Stays, Whole};

/// A row: this call, from its `first` on, fails with each of these errors, in each of these modes.
struct Fault {
    call: &'static str,
    first: u32,
    errors: &'static [&'static str],
    modes: &'static str,
    outcome: Outcome,
}

const fn fault(
    call: &'static str,
    first: u32,
    errors: &'static [&'static str],
    modes: &'static str,
    outcome: Outcome,
) -> Fault {
    Fault { call, first, errors, modes, outcome }
}

const ALL: &str = "reactor offload inline threading pool forking";
const WAITING: &str = "inline threading pool forking";
const BESIDE: &str = "reactor offload threading pool forking";

// An error that says "not ready" is injected only where the call is made again by whoever waits: the
// loop waits for a change, which an invented error does not bring.
const FAULTS: [Fault; 28] = [
    fault("accept4", 2, &["EINTR", "ECONNABORTED", "EPERM"], ALL, Whole),
    fault("accept4", 2, &["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"], ALL, Lost),
    fault("accept4", 3, &["EPERM", "EMFILE", "ENOMEM", "ENOSYS"], BESIDE, Stays),
    fault("epoll_wait", 2, &["EINTR"], ALL, Whole),
    fault("epoll_ctl", 8, &["ENOMEM", "ENOSPC"], "reactor offload", Lost),
    fault("poll", 2, &["EINTR"], "inline", Whole),
    fault("poll", 2, &["ENOMEM"], "inline", Lost),
    fault("recvfrom", 2, &["EINTR"], ALL, Whole),
    fault("recvfrom", 2, &["EAGAIN"], WAITING, Whole),
    fault("recvfrom", 2, &["ENOMEM", "ENOBUFS"], ALL, Lost),
    fault("sendto", 2, &["EINTR"], ALL, Whole),
    fault("sendto", 2, &["EAGAIN"], WAITING, Whole),
    fault("sendto", 2, &["ENOBUFS", "ENOMEM", "EPERM"], ALL, Lost),
    fault("recvmmsg", 2, &["EINTR"], ALL, Whole),
    fault("recvmmsg", 2, &["ENOMEM", "ENOBUFS"], ALL, Lost),
    fault("recvmmsg", 1, &["ENOMEM"], ALL, Stays),
    fault("recvmsg", 2, &["EINTR"], ALL, Whole),
    fault("sendmmsg", 1, &["EINTR"], ALL, Whole),
    // A child sends one reply: its first call is its last.
    fault(
        "sendmmsg",
        2,
        &["ENOBUFS", "ENOMEM", "EPERM"],
        "reactor offload inline threading pool",
        Lost,
    ),
    fault("sendmsg", 1, &["EINTR"], ALL, Whole),
    fault("ioctl", 1, &["EINTR", "ENOTTY"], ALL, Whole),
    fault("clone3", 2, &["EAGAIN", "ENOMEM"], "threading pool", Lost),
    fault("clone3", 2, &["EAGAIN"], "threading", Stays),
    fault("clone", 2, &["EAGAIN", "ENOMEM"], "forking", Lost),
    fault("clone", 2, &["EAGAIN"], "forking", Stays),
    fault("waitid", 1, &["EINTR"], "forking", Whole),
    fault("pipe2,eventfd2", 5, &["EMFILE", "ENFILE", "ENOMEM"], "forking", Lost),
    fault("pidfd_open", 2, &["EMFILE", "ENOMEM", "ENOSYS"], "forking", Lost),
];

/// One error of a row, in one mode.
#[derive(Debug, Clone, Copy)]
struct Case {
    call: &'static str,
    first: u32,
    error: &'static str,
    mode: &'static str,
    outcome: Outcome,
}

impl Case {
    fn all(is_full: bool) -> Vec<Case> {
        let mut cases = Vec::new();
        for &Fault { call, first, errors, modes, outcome } in &FAULTS {
            let errors = if is_full { errors } else { &errors[..1] };
            for (error, mode) in
                errors.iter().flat_map(|error| modes.split(' ').map(move |mode| (error, mode)))
            {
                cases.push(Case { call, first, error, mode, outcome });
            }
        }
        cases
    }

    fn name(&self) -> String {
        let outcome = match self.outcome {
            Whole => "costs_nobody_anything",
            Lost => "costs_no_more_than_a_connection",
            Stays => "from_one_call_on_ends_nothing",
        };
        format!("{}_{}_in_{}_{outcome}", self.error, self.call.replace(',', "_or_"), self.mode)
    }

    fn is_of_datagrams(&self) -> bool {
        self.call.contains("msg")
    }

    /// How long a datagram is waited for: no end tells that it is lost.
    fn patience(&self) -> Duration {
        if self.outcome == Lost { PATIENCE / 50 } else { PATIENCE }
    }

    fn run(&self) {
        let directory = Directory::new();
        let log = directory.join("strace");
        let when = match self.outcome {
            Stays => format!("{}+", self.first),
            _ => format!("{}..{}+2", self.first, self.first + 8), // five times
        };
        let mut command = Command::new("strace");
        // As a grandchild of its own: the server is the process that is started.
        command.args(["-D", "-f", "-qq", "--signal=none", "-o"]).arg(&log);
        command.arg(format!("--trace={}", self.call));
        command.arg(format!("--inject={}:error={}:when={when}", self.call, self.error));
        command.arg("--").arg(programs::example("echo"));
        let urls: &[&str] = match self.is_of_datagrams() {
            true => &["udp://127.0.0.1:0", "unixgram://{dir}/datagrams"],
            false => &["tcp://127.0.0.1:0", "unix://{dir}/stream"],
        };
        let listen: Vec<_> = urls.iter().flat_map(|url| ["--listen", url]).collect();
        let mut server = Process::start_command(
            command,
            urls.len(),
            &[&["--mode", self.mode], &listen[..]].concat(),
        );
        match self.outcome {
            Stays => self.expect_the_rest_to_live(&server, &log),
            _ => self.expect_service(&server, &log),
        }
        let told = fs::read_to_string(&log).unwrap();
        assert!(
            told.contains("(INJECTED)") || RARE.contains(&self.call),
            "the call is made:\n{told}"
        );
        assert!(!server.has_ended(), "it lives");
        server.terminate();
        server.expect_success();
    }

    fn expect_service(&self, server: &Process, log: &Path) {
        let (urls, directory) = (&server.urls, &server.directory);
        let talks: Vec<_> = thread::scope(|scope| {
            let client = |number: usize| {
                let url = &urls[number % urls.len()];
                scope.spawn(move || match self.is_of_datagrams() {
                    true => exchange(url, directory, self.patience(), self.outcome == Lost),
                    false => talk(url, MESSAGES, self.outcome == Lost, self.call == "sendto"),
                })
            };
            let clients: Vec<_> = (0..6).map(client).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        for done in talks {
            done.unwrap_or_else(|wrong| panic!("{wrong}\n{}", server.errors()));
        }
        expect_rest(server, log);
        // Each thread and each child has its own count of calls: some may still fail.
        let deadline = Instant::now() + DEADLINE;
        for url in urls {
            while let Err(wrong) = match self.is_of_datagrams() {
                true => exchange(url, directory, self.patience(), false),
                false => talk(url, 1, false, false),
            } {
                let may_fail = self.outcome == Lost && Instant::now() < deadline;
                assert!(may_fail, "afterwards: {wrong}\n{}", server.errors());
            }
        }
    }

    /// Clients come that nobody serves; one that was served before is served on. Where there is
    /// nobody to serve them, they are told so by an end.
    fn expect_the_rest_to_live(&self, server: &Process, log: &Path) {
        if self.is_of_datagrams() {
            (0..5).for_each(|_| _ = server.datagrams().send("unheard"));
            return expect_rest(server, log);
        }
        let mut first = server.connect();
        first.send("hello").expect("hello");
        let mut others: Vec<_> = (0..5).map(|_| server.connect()).collect();
        expect_rest(server, log);
        if self.call.starts_with("clone") {
            others.iter_mut().for_each(|other| other.expect_gone());
        }
        first.send("still").expect("still");
    }
}

/// While nobody wants anything, it takes no processor time to speak of, and does not try again and
/// again what fails.
fn expect_rest(server: &Process, log: &Path) {
    let failed = || fs::read_to_string(log).unwrap().matches("(INJECTED)").count();
    let before = (ticks(server.pid()), failed());
    thread::sleep(Duration::from_millis(400));
    let used = (ticks(server.pid()) - before.0, failed() - before.1);
    assert!(
        used.0 <= 6 && used.1 <= 100,
        "{} of 40 ticks and {} calls that fail while nobody wants anything\n{}",
        used.0,
        used.1,
        server.errors()
    );
}

/// How many ticks of 10 ms of processor time a process has used.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2);
    fields.map(|field| field.parse::<u64>().unwrap()).sum()
}

/// A client of a stream, which may lose its connection. Where a reply is `cut`, a TCP client is told so
/// by a reset; a Unix stream has none.
fn talk(url: &str, messages: usize, may_lose: bool, cut: bool) -> Result<(), String> {
    let mut socket = try_connect(url).map_err(|error| format!("connect: {error}"))?.socket;
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    for message in 0..messages {
        let bytes: Vec<_> = (0..MESSAGE).map(|at| ((at * 7 + message * 13) % 251) as u8).collect();
        let mut reply = vec![0; MESSAGE];
        let (count, end) = match socket.write_all(&bytes) {
            Ok(()) => read(&mut socket, &mut reply),
            Err(error) => (0, Err(error)),
        };
        if reply[..count] != bytes[..count] {
            return Err(format!("{url}: wrong bytes in the reply to message {message}"));
        }
        match end {
            Ok(()) if count == MESSAGE => {}
            Ok(()) if may_lose && !(cut && url.starts_with("tcp")) => return Ok(()),
            Err(error) if may_lose && error.kind() != ErrorKind::WouldBlock => return Ok(()),
            _ => return Err(format!("{url}: {end:?} after {count} bytes of reply {message}")),
        }
    }
    Ok(())
}

/// Reads until the buffer is full; how much was read when it was, or the stream had ended.
fn read(mut socket: impl io::Read, buffer: &mut [u8]) -> (usize, io::Result<()>) {
    let mut count = 0;
    while count < buffer.len() {
        match socket.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) => return (count, Err(error)),
        }
    }
    (count, Ok(()))
}

/// A client of a datagram socket, which may lose datagrams.
fn exchange(
    url: &str,
    directory: &Directory,
    patience: Duration,
    may_lose: bool,
) -> Result<(), String> {
    let client = Datagrams::new(url, directory);
    client.socket.set_read_timeout(Some(patience)).unwrap();
    for number in 0..4 {
        let sent = format!("datagram {number}");
        client.send(&sent);
        let mut reply = [0; 100];
        match (&client.socket).read(&mut reply) {
            // One that was late is the reply to an earlier one.
            Ok(count)
                if (0..=number).any(|n| reply[..count] == *format!("datagram {n}").as_bytes()) => {}
            Err(error) if may_lose && error.kind() == ErrorKind::WouldBlock => {}
            other => return Err(format!("{url}: {other:?} to {sent}")),
        }
    }
    Ok(())
}

/// A server that cannot be made says why, in a line.
fn calls_that_fail_at_the_start_are_an_error_in_one_line() {
    for call in ["epoll_create1", "eventfd2", "socket", "bind", "listen"] {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", &format!("--trace={call}")]);
        command.arg(format!("--inject={call}:error=ENOMEM:when=1+"));
        command.arg("--").arg(programs::example("echo")).args(["--listen", "tcp://127.0.0.1:0"]);
        let line = programs::spawn(&mut command).end().refuses(1).to_owned();
        assert!(line.starts_with("error: "), "{call}: {line}");
    }
}

/// Whether there is a `strace` that may trace here.
fn can_trace() -> bool {
    let mut command = Command::new("strace");
    command.args(["-D", "-o", "/dev/null", "--inject=chdir:error=EINTR:when=1..3+2", "true"]);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success()) && Path::new("/proc/self/stat").exists()
}

fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args().skip(1).collect();
    let is_full = arguments.iter().any(|argument| argument == "--full");
    arguments.retain(|argument| argument != "--full");
    let mut tests: Vec<_> = Case::all(is_full)
        .into_iter()
        .map(|case| runner::test(case.name(), move || case.run()))
        .collect();
    tests.push(runner::test(
        "calls_that_fail_at_the_start_are_an_error_in_one_line",
        calls_that_fail_at_the_start_are_an_error_in_one_line,
    ));
    if !arguments.iter().any(|argument| argument == "--list") && !can_trace() {
        let required =
            std::env::var_os("SOCKETSERVER_REQUIRE_TOOLS").is_some_and(|value| value == "1");
        eprintln!("skipped: all tests of faults: strace is not here or may not trace");
        return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    // They wait most of the time.
    let threads = ["--test-threads".to_owned(), "8".to_owned()];
    runner::run(tests, threads.into_iter().chain(arguments)).0
}
