//! A server whose system calls fail: the example `echo`, in each mode, under `strace`, which
//! injects an error into some of its calls or into all calls after a certain one. Every byte that
//! arrives is correct, no client waits without end, a new client is served afterwards, and the
//! server neither exits nor spins.
//!
//! A second server has tiny socket buffers, so that the kernel takes and gives a part of what it is
//! asked for, and sends half of each reply from memory that connections share. Errors are injected into
//! some of its calls too.
//!
//! `cargo test --test faults` injects the first error of each row of the table; `cargo test --test
//! faults -- --full` all of them, `cargo test --release --test faults -- --full` into the release build. If `strace` is missing or may not trace, the tests are skipped
//! with a message; with `SOCKETSERVER_REQUIRE_TOOLS=1` they fail.

#[path = "support/process.rs"]
mod process;
#[path = "support/programs.rs"]
mod programs;
#[path = "support/runner.rs"]
mod runner;
#[path = "support/tools.rs"]
mod tools;

use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use process::{DEADLINE, Datagrams, Directory, Process, announce, try_connect};
use socket2::SockRef;
use socketserver::{Context, Handler, HandlerResult, Hooks, Mode, Peer, Server};

/// A client that receives neither a byte nor an end for so long fails the test.
const PATIENCE: Duration = Duration::from_secs(10);

/// The size of a message, and how many messages a client sends.
const MESSAGE: usize = 30_000;
const MESSAGES: usize = 3;

/// Calls that a run may not make.
const RARE: [&str; 3] = ["ioctl", "recvmsg", "sendmsg"];

/// What clients may observe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Nothing: the server repeats the call.
    Whole,
    /// A lost datagram, or a connection that ends early, without a wrong byte.
    Lost,
    /// The error persists, and no new client is served.
    Stays,
}
use Outcome::{Lost, Stays, Whole};

/// The server of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    /// The example `echo`, with connections or datagrams.
    Example,
    /// This test binary: connections with tiny buffers.
    TinyBuffers,
}

/// A row of the table: the call `call`, starting with the one numbered `first`, fails with each of
/// `errors` in each of `modes`.
struct Fault {
    call: &'static str,
    first: u32,
    errors: &'static [&'static str],
    modes: &'static str,
    outcome: Outcome,
    program: Program,
}

const fn fault(
    call: &'static str,
    first: u32,
    errors: &'static [&'static str],
    modes: &'static str,
    outcome: Outcome,
) -> Fault {
    Fault { call, first, errors, modes, outcome, program: Program::Example }
}

const fn tiny(
    call: &'static str,
    first: u32,
    errors: &'static [&'static str],
    modes: &'static str,
    outcome: Outcome,
) -> Fault {
    Fault { program: Program::TinyBuffers, ..fault(call, first, errors, modes, outcome) }
}

const ALL: &str = "reactor offload inline threading pool forking";
const WAITING: &str = "inline threading pool forking";
/// Each child counts its calls from 1, so a fault would end every connection.
const ONE_PROCESS: &str = "reactor offload inline threading pool";
const BESIDE: &str = "reactor offload threading pool forking";

// EAGAIN is injected only in modes that wait with poll(2) and repeat the call. The event loop would
// wait for an edge, which an injected error does not cause.
const FAULTS: [Fault; 34] = [
    fault("accept4", 2, &["EINTR", "ECONNABORTED", "EPERM", "EPROTO"], ALL, Whole),
    fault("accept4", 2, &["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"], ALL, Lost),
    fault("accept4", 3, &["EPERM", "EMFILE", "ENOMEM", "ENOSYS"], BESIDE, Stays),
    fault("epoll_wait", 2, &["EINTR"], ALL, Whole),
    fault("epoll_ctl", 8, &["ENOMEM", "ENOSPC"], "reactor offload", Lost),
    fault("poll", 2, &["EINTR"], "inline", Whole),
    fault("poll", 2, &["ENOMEM"], "inline", Lost),
    fault("recvfrom", 2, &["EINTR"], ALL, Whole),
    fault("recvfrom", 2, &["EAGAIN"], WAITING, Whole),
    fault("recvfrom", 2, &["ENOMEM", "ENOBUFS", "ECONNRESET", "ETIMEDOUT"], ALL, Lost),
    fault("sendto", 2, &["EINTR"], ALL, Whole),
    fault("sendto", 2, &["EAGAIN"], WAITING, Whole),
    fault("sendto", 2, &["ENOBUFS", "ENOMEM", "EPERM", "EPIPE", "ECONNRESET"], ALL, Lost),
    fault("recvmmsg", 2, &["EINTR"], ALL, Whole),
    fault("recvmmsg", 2, &["ENOMEM", "ENOBUFS"], ALL, Lost),
    fault("recvmmsg", 1, &["ENOMEM"], ALL, Stays),
    fault("recvmsg", 2, &["EINTR"], ALL, Whole),
    fault("sendmmsg", 1, &["EINTR"], ALL, Whole),
    // A child makes this call once: it sends one reply.
    fault("sendmmsg", 2, &["ENOBUFS", "ENOMEM", "EPERM"], ONE_PROCESS, Lost),
    fault("sendmsg", 1, &["EINTR"], ALL, Whole),
    fault("ioctl", 1, &["EINTR", "ENOTTY"], ALL, Whole),
    fault("clone3", 2, &["EAGAIN", "ENOMEM"], "threading pool", Lost),
    fault("clone3", 2, &["EAGAIN"], "threading", Stays),
    fault("clone", 2, &["EAGAIN", "ENOMEM"], "forking", Lost),
    fault("clone", 2, &["EAGAIN"], "forking", Stays),
    fault("waitid", 1, &["EINTR"], "forking", Whole),
    fault("pipe2,eventfd2", 5, &["EMFILE", "ENFILE", "ENOMEM"], "forking", Lost),
    fault("pidfd_open", 2, &["EMFILE", "ENOMEM", "ENOSYS"], "forking", Lost),
    // No error, but a part of what was asked for.
    tiny("recvfrom", 1, &[NONE], ALL, Whole),
    tiny("recvfrom", 2, &["EINTR"], ALL, Whole),
    tiny("recvfrom", 4, &["ECONNRESET", "ENOMEM"], ONE_PROCESS, Lost),
    tiny("sendmsg", 1, &[NONE], ALL, Whole),
    tiny("sendmsg", 1, &["EINTR"], ALL, Whole),
    tiny("sendmsg", 2, &["ENOBUFS", "EPIPE", "ECONNRESET"], ONE_PROCESS, Lost),
];

/// In place of an error: the calls are only traced.
const NONE: &str = "no_error";

/// One error of a row, in one mode.
#[derive(Debug, Clone, Copy)]
struct Case {
    call: &'static str,
    first: u32,
    error: &'static str,
    mode: &'static str,
    outcome: Outcome,
    program: Program,
}

impl Case {
    fn all(is_full: bool) -> Vec<Case> {
        let mut cases = Vec::new();
        for &Fault { call, first, errors, modes, outcome, program } in &FAULTS {
            let errors = if is_full { errors } else { &errors[..1] };
            for (error, mode) in
                errors.iter().flat_map(|error| modes.split(' ').map(move |mode| (error, mode)))
            {
                cases.push(Case { call, first, error, mode, outcome, program });
            }
        }
        cases
    }

    fn name(&self) -> String {
        let outcome = match self.outcome {
            Whole => "loses_nothing",
            Lost => "loses_at_most_a_connection",
            Stays => "that_persists_does_not_end_the_server",
        };
        let program = match self.program {
            Program::Example => "",
            Program::TinyBuffers => "_with_tiny_buffers",
        };
        let call = self.call.replace(',', "_or_");
        format!("{}_of_{call}{program}_in_{}_{outcome}", self.error, self.mode)
    }

    fn is_of_datagrams(&self) -> bool {
        self.call.contains("msg") && self.program == Program::Example
    }

    /// How long a client waits for a datagram. A lost one is noticed only by the time.
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
        // With -D the started process is the server, and strace is its grandchild.
        command.args(["-D", "-f", "-qq", "--signal=none", "-o"]).arg(&log);
        command.arg(format!("--trace={}", self.call));
        if self.error != NONE {
            command.arg(format!("--inject={}:error={}:when={when}", self.call, self.error));
        }
        let mut server = self.start(command);
        match self.outcome {
            Stays => self.expect_old_clients_are_served(&server, &log),
            _ => self.expect_service(&server, &log),
        }
        let trace = fs::read_to_string(&log).unwrap();
        let is_rare = self.program == Program::Example && RARE.contains(&self.call);
        let is_made = match self.error {
            NONE => trace.contains(self.call),
            _ => trace.contains("(INJECTED)"),
        };
        assert!(is_made || is_rare, "the call was not made:\n{trace}");
        assert!(!server.has_exited(), "the server has exited");
        server.terminate();
        server.expect_success();
    }

    /// Starts the server by a command that traces it.
    fn start(&self, mut command: Command) -> Process {
        command.arg("--");
        if self.program == Program::TinyBuffers {
            command.arg(std::env::current_exe().unwrap()).arg("--serve");
            return Process::start_command(command, 2, &[self.mode, "{dir}/stream"]);
        }
        command.arg(programs::example("echo"));
        let urls: &[&str] = match self.is_of_datagrams() {
            true => &["udp://127.0.0.1:0", "unixgram://{dir}/datagrams"],
            false => &["tcp://127.0.0.1:0", "unix://{dir}/stream"],
        };
        let listen: Vec<_> = urls.iter().flat_map(|url| ["--listen", url]).collect();
        let arguments = [&["--mode", self.mode], &listen[..]].concat();
        Process::start_command(command, urls.len(), &arguments)
    }

    fn expect_service(&self, server: &Process, log: &Path) {
        let (urls, directory) = (&server.urls, &server.directory);
        let talks: Vec<_> = thread::scope(|scope| {
            let client = |number: usize| {
                let url = &urls[number % urls.len()];
                scope.spawn(move || match self.is_of_datagrams() {
                    true => {
                        exchange_datagrams(url, directory, self.patience(), self.outcome == Lost)
                    }
                    false => exchange_messages(
                        url,
                        MESSAGES,
                        self.outcome == Lost,
                        self.call.starts_with("send"),
                    ),
                })
            };
            let clients: Vec<_> = (0..6).map(client).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        for done in talks {
            done.unwrap_or_else(|wrong| panic!("{wrong}\n{}", server.errors()));
        }
        expect_idle(server, log);
        // Each thread and each child counts its calls separately: some may still fail.
        let deadline = Instant::now() + DEADLINE;
        for url in urls {
            while let Err(wrong) = match self.is_of_datagrams() {
                true => exchange_datagrams(url, directory, self.patience(), false),
                false => exchange_messages(url, 1, false, false),
            } {
                let may_fail = self.outcome == Lost && Instant::now() < deadline;
                assert!(may_fail, "afterwards: {wrong}\n{}", server.errors());
            }
        }
    }

    /// New clients are not served, and an earlier client is still served. If no thread or child can
    /// be started for the new ones, their connections are closed.
    fn expect_old_clients_are_served(&self, server: &Process, log: &Path) {
        if self.is_of_datagrams() {
            (0..5).for_each(|_| _ = server.datagrams().send("unanswered"));
            return expect_idle(server, log);
        }
        let mut first = server.connect();
        first.send("hello").expect("hello");
        let mut others: Vec<_> = (0..5).map(|_| server.connect()).collect();
        expect_idle(server, log);
        if self.call.starts_with("clone") {
            others.iter_mut().for_each(|other| other.expect_gone());
        }
        first.send("still").expect("still");
    }
}

/// While no client sends anything, the server uses almost no processor time and does not repeat a
/// failing call without pause.
fn expect_idle(server: &Process, log: &Path) {
    let failed = || fs::read_to_string(log).unwrap().matches("(INJECTED)").count();
    let before = (ticks(server.pid()), failed());
    thread::sleep(Duration::from_millis(400));
    let used = (ticks(server.pid()) - before.0, failed() - before.1);
    assert!(
        used.0 <= 6 && used.1 <= 100,
        "{} of 40 ticks and {} failing calls while the server is idle\n{}",
        used.0,
        used.1,
        server.errors()
    );
}

/// The processor time that a process has used, in ticks of 10 ms.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2);
    fields.map(|field| field.parse::<u64>().unwrap()).sum()
}

/// A client of a stream. `may_lose`: its connection may end early. `cut`: if a reply is incomplete,
/// a TCP connection must end with a reset; a Unix stream has none.
fn exchange_messages(url: &str, messages: usize, may_lose: bool, cut: bool) -> Result<(), String> {
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
            return Err(format!("{url}: wrong bytes in reply {message}"));
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

/// Reads until the buffer is full or the stream ends; returns the number of bytes and the result.
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

/// A client of a datagram socket; `may_lose`: datagrams may be lost.
fn exchange_datagrams(
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
            // A late reply to an earlier datagram.
            Ok(count)
                if (0..=number).any(|n| reply[..count] == *format!("datagram {n}").as_bytes()) => {}
            Err(error) if may_lose && error.kind() == ErrorKind::WouldBlock => {}
            other => return Err(format!("{url}: {other:?} to {sent}")),
        }
    }
    Ok(())
}

/// Returns half of each message from its own memory, and half from memory that connections share: more
/// than one slice for the kernel.
struct Halves;

impl Handler for Halves {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let (first, second) = message.split_at(message.len() / 2);
        cx.send(first)?;
        cx.send_shared(&second.into())
    }
}

/// Makes the buffers of each connection as small as the kernel allows.
struct TinyBuffers;

impl Hooks for TinyBuffers {
    fn on_accept(&mut self, connection: BorrowedFd<'_>, _: &Peer) -> io::Result<()> {
        SockRef::from(&connection).set_send_buffer_size(1)?;
        SockRef::from(&connection).set_recv_buffer_size(1)
    }
}

fn serve(arguments: &[String]) {
    let [mode, path] = arguments else { panic!("wrong arguments: {arguments:?}") };
    let mode: Mode = mode.parse().unwrap();
    let mut server = Server::new().unwrap();
    for builder in [Server::tcp("127.0.0.1:0"), Server::unix_stream(path)] {
        let builder = builder.unwrap().mode(mode).hooks(TinyBuffers);
        server.add(builder.service(|_| Halves).unwrap()).unwrap();
    }
    server.stop_on_signals().unwrap();
    announce(&server.addresses());
    server.serve_forever().unwrap();
}

/// The example prints why it cannot start, and exits with code 1.
fn calls_that_fail_at_the_start_are_an_error_in_one_line() {
    for call in ["epoll_create1", "eventfd2", "socket", "bind", "listen"] {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", &format!("--trace={call}")]);
        command.arg(format!("--inject={call}:error=ENOMEM:when=1+"));
        command.arg("--").arg(programs::example("echo")).args(["--listen", "tcp://127.0.0.1:0"]);
        let line = programs::spawn(&mut command).end().expect_failure(1).to_owned();
        assert!(line.starts_with("error: "), "{call}: {line}");
    }
}

/// Whether `strace` exists and may trace.
fn can_trace() -> bool {
    let mut command = Command::new("strace");
    command.args(["-D", "-o", "/dev/null", "--inject=chdir:error=EINTR:when=1..3+2", "true"]);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success()) && Path::new("/proc/self/stat").exists()
}

fn main() -> ExitCode {
    let Some(mut arguments) = runner::arguments_unless_serving(serve) else {
        return ExitCode::SUCCESS;
    };
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
        tools::have(false, "strace, or the right to trace,");
        return ExitCode::SUCCESS;
    }
    // The tests wait most of the time.
    let threads = ["--test-threads".to_owned(), "8".to_owned()];
    runner::run(tests, threads.into_iter().chain(arguments)).0
}
