//! The blocking modes: what a stop does to the requests that it finds, what happens when no thread
//! can be started, and the options of threads and pools. Most servers here are processes of their
//! own, so that `forking` is tested beside the others.

mod support;

#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use process::{DEADLINE, Gate, Process, Stream, announce, connect, eventually, wait_at_gate};
use socket2::SockRef;
use socketserver::{
    BlockingMode, Context, Framing, FramingError, Handler, HandlerResult, Hooks, Lines, Mode,
    Output, Peer, Request, RequestHandler, Server, Step,
};

const ALL: [&str; 6] = ["reactor", "offload", "inline", "threading", "pool", "forking"];
const BLOCKING: [&str; 4] = ["inline", "threading", "pool", "forking"];

/// The modes that serve several connections at a time.
const CONCURRENT: [&str; 5] = ["reactor", "offload", "threading", "pool", "forking"];

// The servers

/// Lines, of which the last may end with the input.
#[derive(Clone, Default)]
struct LinesToTheEnd(Lines);

impl Framing for LinesToTheEnd {
    fn decode(&mut self, input: &[u8]) -> Result<Step, FramingError> {
        self.0.decode(input)
    }

    fn decode_eof(&mut self, input: &[u8]) -> Result<Step, FramingError> {
        Ok(Step::Frame { body: 0..input.len(), consumed: input.len() })
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        self.0.encode(message, output)
    }
}

/// Lines come back; some are commands.
struct ByLine {
    gate: PathBuf,
    lines: usize,
}

impl Handler for ByLine {
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        self.lines += 1;
        match line {
            b"hold" => {
                wait_at_gate(&self.gate);
                cx.send(b"held")
            }
            b"thread" => cx.send(thread::current().name().unwrap_or("main").as_bytes()),
            b"recurse" => cx.send(format!("{} frames", recurse(FRAMES)).as_bytes()),
            _ => cx.send(line),
        }
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(format!("{} lines", self.lines).as_bytes())?;
        cx.close();
        Ok(())
    }
}

/// A stack frame of some KiB, and how many of them need more than the usual stack.
const FRAMES: usize = 1024;

fn recurse(depth: usize) -> usize {
    let frame = std::hint::black_box([1u8; 8192]);
    if depth == 0 { 0 } else { recurse(depth - 1) + usize::from(frame[depth % frame.len()]) }
}

/// What a request handler does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Reads all there is, then answers.
    ReadToEnd,
    /// Sends lines back, and never says that it is idle.
    Echo,
    /// Sends lines back, and says that it is idle between them.
    EchoIdly,
}

struct ByRequest {
    gate: PathBuf,
    act: Act,
}

impl RequestHandler for ByRequest {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        if self.act == Act::ReadToEnd {
            request.write_all(b"begun\n")?;
            let stored = request.read_to_end(&mut Vec::new())?;
            return Ok(writeln!(request, "{stored} bytes")?);
        }
        loop {
            request.set_idle(self.act == Act::EchoIdly);
            let Some(line) = request.read_line()? else { return Ok(()) };
            request.set_idle(false);
            if line == b"hold" {
                wait_at_gate(&self.gate);
            }
            request.write_all(&[&line, &b"\n"[..]].concat())?;
        }
    }
}

/// Hooks that make each connection non-blocking.
struct NonBlocking;

impl Hooks for NonBlocking {
    fn get_request(&mut self, connection: BorrowedFd<'_>, _: &Peer) -> std::io::Result<()> {
        SockRef::from(&connection).set_nonblocking(true)
    }
}

fn add(server: &mut Server, what: &str, mode: Mode, gate: &Path) {
    let gate = gate.to_owned();
    let builder = Server::tcp("127.0.0.1:0").unwrap();
    let act = match what {
        "lines" | "nonblocking lines" => {
            let builder = builder.framing(LinesToTheEnd::default()).dispatch(mode);
            let make = move |_: &Peer| ByLine { gate: gate.clone(), lines: 0 };
            let service = match what {
                "lines" => builder.service(make),
                _ => builder.hooks(NonBlocking).service(make),
            };
            server.add(service.unwrap()).unwrap();
            return;
        }
        "read to end" => Act::ReadToEnd,
        "echo idly" => Act::EchoIdly,
        _ => Act::Echo,
    };
    let builder = builder.dispatch(BlockingMode::try_from(mode).unwrap());
    let make = move |_: &Peer| ByRequest { gate: gate.clone(), act };
    let service = match what {
        "nonblocking echo" => builder.hooks(NonBlocking).service_blocking(make),
        _ => builder.service_blocking(make),
    };
    server.add(service.unwrap()).unwrap();
}

/// Serves at two addresses: in the mode that is to be tested, and on the loop.
fn serve(arguments: &[String]) {
    let [what, mode, drain, gate] = arguments else { panic!("{arguments:?}") };
    let mut server = Server::new().unwrap();
    server.stop_on_signals().unwrap();
    server.drain(Duration::from_millis(drain.parse().unwrap()));
    add(&mut server, what, mode.parse().unwrap(), Path::new(gate));
    add(&mut server, "lines", Mode::default(), Path::new(gate));
    announce(&server.addresses());
    let report = server.serve_forever().unwrap();
    println!("idle {} finished {} cut {}", report.idle, report.finished, report.cut);
}

// The tests

const LONG: Duration = DEADLINE;
const SHORT: Duration = Duration::from_millis(300);

fn start(what: &str, mode: &str, drain: Duration) -> Process {
    Process::start(2, &[what, mode, &drain.as_millis().to_string(), "{dir}/gate"])
}

/// Asks a server to stop, and waits until it has begun to, where its loop is free to show it.
fn begin_to_stop(server: &Process, mode: &str) {
    if mode == "inline" {
        return server.terminate();
    }
    let mut idle = connect(&server.urls[1]);
    idle.send("hello\n").expect("hello\n");
    server.terminate();
    idle.expect_end();
}

fn a_client_that_ends_while_the_server_drains_is_answered_by_a_handler() {
    for mode in ALL {
        let server = start("lines", mode, LONG);
        let mut client = server.connect();
        client.send("one\ntw").expect("one\n");
        begin_to_stop(&server, mode);
        // Half a line is what keeps it from being idle.
        client.end();
        let reply = client.read_to_end();
        assert_eq!(reply.escape_ascii().to_string(), "tw\\n2 lines\\n", "{mode}");
    }
}

fn a_client_that_ends_while_the_server_drains_is_answered_by_a_request_handler() {
    for mode in BLOCKING {
        let server = start("read to end", mode, LONG);
        let mut client = server.connect();
        client.send("ten bytes\n").expect("begun\n");
        begin_to_stop(&server, mode);
        client.send("ten bytes\n").end();
        let reply = client.read_to_end();
        assert_eq!(reply.escape_ascii().to_string(), "20 bytes\\n", "{mode}");
    }
}

/// Waits until all threads of a server and of its children sleep: who has been answered is idle a
/// moment later.
fn wait_until_asleep(server: &Process) {
    let sleeps = |pid: i32| {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
        tasks.flatten().all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, fields)| fields.starts_with(" S"))
        })
    };
    eventually("everything sleeps", || {
        server.children().into_iter().chain([server.pid()]).all(sleeps)
    });
}

/// A report of a stop. Whoever [`begin_to_stop`] has connected to the loop is one of the idle.
fn count(idle: usize, finished: usize, cut: usize) -> String {
    format!("idle {idle} finished {finished} cut {cut}")
}

/// What serves lines under a mode, and can be found idle.
fn servers_of_lines() -> impl Iterator<Item = (&'static str, &'static str)> {
    let by_message = ALL.into_iter().map(|mode| ("lines", mode));
    by_message.chain(BLOCKING.into_iter().map(|mode| ("echo idly", mode)))
}

fn a_stop_ends_who_is_idle_at_once_and_counts_it_so() {
    for (what, mode) in servers_of_lines() {
        let mut server = start(what, mode, LONG);
        let mut clients: Vec<_> =
            (0..if mode == "inline" { 1 } else { 3 }).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send("hello\n").expect("hello\n");
        }
        wait_until_asleep(&server);
        server.terminate();
        clients.iter_mut().for_each(Stream::expect_end);
        server.expect_success();
        assert_eq!(server.rest(), [count(clients.len(), 0, 0)], "{what} {mode}");
    }
}

fn a_stop_waits_for_who_has_begun_and_counts_it_as_finished() {
    for (what, mode) in servers_of_lines() {
        let mut server = start(what, mode, LONG);
        let mut busy = server.connect();
        // What has come in part is begun.
        busy.send("hello\nhal").expect("hello\n");
        begin_to_stop(&server, mode);
        busy.send("f\n").expect("half\n").expect_end();
        server.expect_success();
        let idle = usize::from(mode != "inline");
        assert_eq!(server.rest(), [count(idle, 1, 0)], "{what} {mode}");
    }
}

fn a_stop_cuts_who_does_not_finish_and_counts_it_so() {
    let by_request = BLOCKING.into_iter().map(|mode| ("echo", mode));
    for (what, mode) in servers_of_lines().chain(by_request) {
        let mut server = start(what, mode, SHORT);
        let mut busy = server.connect();
        busy.send("hello\nhal").expect("hello\n");
        server.terminate();
        busy.expect_gone();
        server.expect_success();
        assert_eq!(server.rest(), [count(0, 0, 1)], "{what} {mode}");
    }
}

fn one_stop_counts_idle_finished_and_cut_requests_apart() {
    let by_message = CONCURRENT.into_iter().map(|mode| ("lines", mode));
    let by_request = ["threading", "forking"].into_iter().map(|mode| ("echo idly", mode));
    for (what, mode) in by_message.chain(by_request) {
        let mut server = start(what, mode, Duration::from_secs(1));
        let mut clients = [(); 6].map(|()| server.connect());
        // In this order they are told of the stop.
        let [finishes, finishes_too, stays, idle, idle_too, idle_three] = &mut clients;
        for client in [&mut *idle, idle_too, idle_three] {
            client.send("hello\n").expect("hello\n");
        }
        for client in [&mut *finishes, finishes_too, stays] {
            client.send("hello\nhal").expect("hello\n");
        }
        wait_until_asleep(&server);
        server.terminate();
        [idle, idle_too, idle_three].into_iter().for_each(Stream::expect_end);
        for client in [finishes, finishes_too] {
            client.send("f\n").expect("half\n").expect_end();
        }
        stays.expect_gone();
        server.expect_success();
        assert_eq!(server.rest(), [count(3, 2, 1)], "{what} {mode}");
    }
}

/// A request handler that does not say that it is idle is in progress.
fn a_request_handler_that_never_says_that_it_is_idle_may_use_the_whole_drain() {
    for mode in BLOCKING {
        let mut server = start("echo", mode, LONG);
        let mut client = server.connect();
        client.send("hello\n").expect("hello\n");
        begin_to_stop(&server, mode);
        client.send("still here\n").expect("still here\n").end().expect_end();
        server.expect_success();
        let idle = usize::from(mode != "inline");
        assert_eq!(server.rest(), [count(idle, 1, 0)], "{mode}");
    }
}

/// It must have come before the stop, so the handler is kept from reading it until then.
fn what_has_come_before_the_stop_is_read_by_an_idle_request_handler() {
    for mode in BLOCKING {
        let mut server = start("echo idly", mode, LONG);
        let gate = Gate::at(&server.directory.join("gate"));
        let mut client = server.connect();
        client.send("hold\n");
        let arrival = gate.expect_arrival();
        client.send("in time\n");
        begin_to_stop(&server, mode);
        arrival.let_go();
        client.expect("hold\nin time\n").expect_end();
        server.expect_success();
        let idle = usize::from(mode != "inline");
        assert_eq!(server.rest(), [count(idle, 1, 0)], "{mode}");
    }
}

/// How many clock ticks of processor time a process has used.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in brackets, may hold anything.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<_> = fields.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn a_connection_that_someone_made_non_blocking_is_waited_for_without_a_spin() {
    for (what, mode) in [
        ("nonblocking lines", "inline"),
        ("nonblocking lines", "threading"),
        ("nonblocking echo", "pool"),
        ("nonblocking echo", "forking"),
    ] {
        let mut server = start(what, mode, LONG);
        let mut client = server.connect();
        client.send("hello\n").expect("hello\n");
        let serving = *server.children().first().unwrap_or(&server.pid());
        let before = ticks(serving);
        thread::sleep(Duration::from_secs(1));
        let used = ticks(serving) - before;
        assert!(used <= 10, "{what} {mode}: {used} ticks of 100 in a second, for an idle client");
        client.send("and on\n").expect("and on\n").end();
        client.read_to_end();
        server.terminate();
        server.expect_success();
    }
}

fn main() -> ExitCode {
    let Some(arguments) = runner::arguments_unless_serving(serve) else {
        return ExitCode::SUCCESS;
    };
    let tests = tests![
        a_client_that_ends_while_the_server_drains_is_answered_by_a_handler,
        a_client_that_ends_while_the_server_drains_is_answered_by_a_request_handler,
        a_stop_ends_who_is_idle_at_once_and_counts_it_so,
        a_stop_waits_for_who_has_begun_and_counts_it_as_finished,
        a_stop_cuts_who_does_not_finish_and_counts_it_so,
        one_stop_counts_idle_finished_and_cut_requests_apart,
        a_request_handler_that_never_says_that_it_is_idle_may_use_the_whole_drain,
        what_has_come_before_the_stop_is_read_by_an_idle_request_handler,
        a_connection_that_someone_made_non_blocking_is_waited_for_without_a_spin,
    ];
    runner::run(tests, arguments.into_iter()).0
}
