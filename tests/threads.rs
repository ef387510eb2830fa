//! The modes that block: what a stop does to open requests, what happens when no thread can be
//! started, and the options of threads and pools. Most servers here run in processes of their own,
//! so that `forking` is tested together with the other modes.

mod support;

#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use process::{DEADLINE, Gate, Process, Stream, announce, connect, eventually, wait_at_gate};
use socket2::SockRef;
use socketserver::{
    Accepted, BlockingMode, Context, Decoded, Framing, FramingError, Handler, HandlerResult, Hooks,
    Lines, Mode, Output, Peer, Pool, Request, RequestHandler, Sender, Server, Threading,
};

const ALL: [&str; 6] = ["reactor", "offload", "inline", "threading", "pool", "forking"];
const BLOCKING: [&str; 4] = ["inline", "threading", "pool", "forking"];

/// The modes that serve several connections at a time.
const CONCURRENT: [&str; 5] = ["reactor", "offload", "threading", "pool", "forking"];

// The servers

/// A framing of lines whose last line may be unterminated.
#[derive(Clone, Default)]
struct UnterminatedLines(Lines);

impl Framing for UnterminatedLines {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        self.0.decode(input)
    }

    fn decode_eof(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        Ok(Decoded::Frame { body: 0..input.len(), consumed: input.len() })
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        self.0.encode(message, output)
    }
}

/// An echo of lines; some lines are commands.
struct EchoLines {
    gate: PathBuf,
    lines: usize,
    /// Kept, so that the connection stays open after the client's FIN.
    sender: Option<Sender>,
}

impl Handler for EchoLines {
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        self.lines += 1;
        match line {
            b"hold" => {
                wait_at_gate(&self.gate);
                cx.send(b"held")
            }
            b"stay" => {
                self.sender = Some(cx.sender()?);
                cx.send(line)
            }
            b"thread" => cx.send(thread::current().name().unwrap_or("main").as_bytes()),
            b"recurse" => cx.send(format!("{} frames", recurse(FRAMES)).as_bytes()),
            _ => cx.send(line),
        }
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(format!("{} lines", self.lines).as_bytes())?;
        if self.sender.is_none() {
            cx.close();
        }
        Ok(())
    }
}

/// How many stack frames of 8 KiB exceed the default stack.
const FRAMES: usize = 1024;

fn recurse(depth: usize) -> usize {
    let frame = std::hint::black_box([1u8; 8192]);
    if depth == 0 { 0 } else { recurse(depth - 1) + usize::from(frame[depth % frame.len()]) }
}

/// What the request handler does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Reads all input, then answers.
    ReadToEnd,
    /// Sends lines back and never calls `set_idle(true)`.
    Echo,
    /// Sends lines back and is idle between them.
    EchoIdle,
}

struct LineRequests {
    gate: PathBuf,
    act: Act,
}

impl RequestHandler for LineRequests {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        if self.act == Act::ReadToEnd {
            request.write_all(b"started\n")?;
            let stored = request.read_to_end(&mut Vec::new())?;
            return Ok(writeln!(request, "{stored} bytes")?);
        }
        loop {
            request.set_idle(self.act == Act::EchoIdle);
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
    fn on_accept(&mut self, connection: BorrowedFd<'_>, _: &Peer) -> std::io::Result<()> {
        SockRef::from(&connection).set_nonblocking(true)
    }
}

fn add(server: &mut Server, what: &str, mode: Mode, gate: &Path) {
    let gate = gate.to_owned();
    let builder = Server::tcp("127.0.0.1:0").unwrap();
    let act = match what {
        "lines" | "nonblocking lines" => {
            let builder = builder.framing(UnterminatedLines::default()).mode(mode);
            let make =
                move |_: &Accepted<'_>| EchoLines { gate: gate.clone(), lines: 0, sender: None };
            let service = match what {
                "lines" => builder.service(make),
                _ => builder.hooks(NonBlocking).service(make),
            };
            server.add(service.unwrap()).unwrap();
            return;
        }
        "read to end" => Act::ReadToEnd,
        "echo idle" => Act::EchoIdle,
        _ => Act::Echo,
    };
    let builder = builder.mode(BlockingMode::try_from(mode).unwrap());
    let make = move |_: &Accepted<'_>| LineRequests { gate: gate.clone(), act };
    let service = match what {
        "nonblocking echo" => builder.hooks(NonBlocking).service_blocking(make),
        _ => builder.service_blocking(make),
    };
    server.add(service.unwrap()).unwrap();
}

/// Serves at two addresses: in the tested mode, and under `reactor`.
fn serve(arguments: &[String]) {
    let [what, mode, drain, gate] = arguments else { panic!("{arguments:?}") };
    let mut server = Server::new().unwrap();
    server.stop_on_signals().unwrap();
    server.drain_timeout(Duration::from_millis(drain.parse().unwrap()));
    add(&mut server, what, mode.parse().unwrap(), Path::new(gate));
    add(&mut server, "lines", Mode::default(), Path::new(gate));
    announce(&server.addresses());
    let may_have_two_threads = std::env::var_os(STACK_VARIABLE).is_some();
    if may_have_two_threads {
        env_logger::Builder::new().filter_level(log::LevelFilter::Warn).init();
        leave_room_for_two_stacks();
    }
    let report = server.serve_forever().unwrap();
    if may_have_two_threads {
        let counters = server.counters();
        let open = counters.accepted - counters.closed;
        println!("rejected {} open {open}", counters.rejected_full);
        return;
    }
    println!("idle {} finished {} aborted {}", report.idle, report.finished, report.aborted);
}

/// The size of a thread's stack in servers that may start only two threads.
const STACK: u64 = 256 << 20;
const STACK_VARIABLE: &str = "RUST_MIN_STACK";

/// Limits the memory of this process, so that it can allocate two more stacks and not three.
#[allow(unsafe_code)] // no crate of the tests can do it
fn leave_room_for_two_stacks() {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split_whitespace().next().unwrap().parse().unwrap();
    // SAFETY: sysconf takes a number; setrlimit reads one rlimit.
    unsafe {
        let size = pages * libc::sysconf(libc::_SC_PAGESIZE) as u64;
        let most = size + 2 * STACK + STACK / 2;
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &limit), 0);
    }
}

// The tests

const LONG: Duration = DEADLINE;
const SHORT: Duration = Duration::from_millis(300);

fn start(what: &str, mode: &str, drain: Duration) -> Process {
    Process::start(2, &[what, mode, &drain.as_millis().to_string(), "{dir}/gate"])
}

/// Sends SIGTERM, and waits until the server has begun to stop, unless its loop is blocked.
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
        // Half a line keeps the connection from being idle.
        client.end();
        let reply = client.read_to_end();
        assert_eq!(reply.escape_ascii().to_string(), "tw\\n2 lines\\n", "{mode}");
    }
}

fn a_client_that_ends_while_the_server_drains_is_answered_by_a_request_handler() {
    for mode in BLOCKING {
        let server = start("read to end", mode, LONG);
        let mut client = server.connect();
        client.send("ten bytes\n").expect("started\n");
        begin_to_stop(&server, mode);
        client.send("ten bytes\n").end();
        let reply = client.read_to_end();
        assert_eq!(reply.escape_ascii().to_string(), "20 bytes\\n", "{mode}");
    }
}

/// Waits until all threads of a server and of its children sleep: a connection becomes idle only
/// after its reply.
fn wait_until_asleep(server: &Process) {
    let sleeps = |pid: i32| {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
        tasks.flatten().all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, fields)| fields.starts_with(" S"))
        })
    };
    eventually("all threads sleep", || {
        server.children().into_iter().chain([server.pid()]).all(sleeps)
    });
}

/// The line that a server prints after a stop. The client of [`begin_to_stop`] counts as idle.
fn report(idle: usize, finished: usize, aborted: usize) -> String {
    format!("idle {idle} finished {finished} aborted {aborted}")
}

/// The servers of lines whose connections can be idle, and their modes.
fn servers_of_lines() -> impl Iterator<Item = (&'static str, &'static str)> {
    let by_message = ALL.into_iter().map(|mode| ("lines", mode));
    by_message.chain(BLOCKING.into_iter().map(|mode| ("echo idle", mode)))
}

fn a_stop_closes_idle_connections_at_once_and_counts_them_as_idle() {
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
        assert_eq!(server.rest(), [report(clients.len(), 0, 0)], "{what} {mode}");
    }
}

fn a_connection_that_waits_only_for_its_senders_is_idle() {
    for mode in ["reactor", "offload", "threading", "pool"] {
        let mut server = start("lines", mode, LONG);
        let mut client = server.connect();
        client.send("stay\n").expect("stay\n").end().expect("1 lines\n");
        wait_until_asleep(&server);
        server.terminate();
        client.expect_end();
        server.expect_success();
        assert_eq!(server.rest(), [report(1, 0, 0)], "{mode}");
    }
}

/// Otherwise the loss of the buffered output would not be counted.
fn a_request_whose_last_flush_fails_is_counted_as_a_disconnect() {
    struct BufferAndWait(mpsc::Receiver<()>);

    impl RequestHandler for BufferAndWait {
        fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
            request.set_write_buffer(usize::MAX);
            request.write_all(b"last words")?;
            Ok(self.0.recv()?)
        }
    }

    let (release, released) = mpsc::channel();
    let mut released = Some(released);
    let builder = Server::tcp("127.0.0.1:0").unwrap().mode(Threading::default());
    let server = builder
        .serve_blocking(move |_: &Accepted<'_>| BufferAndWait(released.take().unwrap()))
        .unwrap();
    let server = support::start_server(server);
    let client = server.connect();
    server.wait_for("it is accepted", |counters| counters.accepted == 1);
    client.reset();
    release.send(()).unwrap();
    server.wait_for("it is closed", |counters| counters.closed == 1);
    let counters = server.counters();
    assert_eq!((counters.disconnects, counters.handler_errors), (1, 0));
}

fn a_stop_waits_for_a_request_in_progress_and_counts_it_as_finished() {
    for (what, mode) in servers_of_lines() {
        let mut server = start(what, mode, LONG);
        let mut busy = server.connect();
        // Half a line is a request in progress.
        busy.send("hello\nhal").expect("hello\n");
        begin_to_stop(&server, mode);
        busy.send("f\n").expect("half\n").expect_end();
        server.expect_success();
        let idle = usize::from(mode != "inline");
        assert_eq!(server.rest(), [report(idle, 1, 0)], "{what} {mode}");
    }
}

fn a_stop_aborts_an_unfinished_request_at_the_deadline_and_counts_it_as_aborted() {
    let by_request = BLOCKING.into_iter().map(|mode| ("echo", mode));
    for (what, mode) in servers_of_lines().chain(by_request) {
        let mut server = start(what, mode, SHORT);
        let mut busy = server.connect();
        busy.send("hello\nhal").expect("hello\n");
        server.terminate();
        busy.expect_gone();
        server.expect_success();
        assert_eq!(server.rest(), [report(0, 0, 1)], "{what} {mode}");
    }
}

fn one_stop_counts_idle_finished_and_aborted_requests_separately() {
    let by_message = CONCURRENT.into_iter().map(|mode| ("lines", mode));
    let by_request = ["threading", "forking"].into_iter().map(|mode| ("echo idle", mode));
    for (what, mode) in by_message.chain(by_request) {
        let mut server = start(what, mode, Duration::from_secs(1));
        let mut clients = [(); 6].map(|()| server.connect());
        // The stop visits them in this order.
        let [finishing, finishing_too, unfinished, idle, idle_too, idle_three] = &mut clients;
        for client in [&mut *idle, idle_too, idle_three] {
            client.send("hello\n").expect("hello\n");
        }
        for client in [&mut *finishing, finishing_too, unfinished] {
            client.send("hello\nhal").expect("hello\n");
        }
        wait_until_asleep(&server);
        server.terminate();
        [idle, idle_too, idle_three].into_iter().for_each(Stream::expect_end);
        for client in [finishing, finishing_too] {
            client.send("f\n").expect("half\n").expect_end();
        }
        unfinished.expect_gone();
        server.expect_success();
        assert_eq!(server.rest(), [report(3, 2, 1)], "{what} {mode}");
    }
}

/// It counts as in progress all the time.
fn a_request_handler_that_never_calls_set_idle_may_use_the_whole_drain_time() {
    for mode in BLOCKING {
        let mut server = start("echo", mode, LONG);
        let mut client = server.connect();
        client.send("hello\n").expect("hello\n");
        begin_to_stop(&server, mode);
        client.send("still here\n").expect("still here\n").end().expect_end();
        server.expect_success();
        let idle = usize::from(mode != "inline");
        assert_eq!(server.rest(), [report(idle, 1, 0)], "{mode}");
    }
}

/// The handler is held until the stop, so that the input arrives before it.
fn input_that_arrived_before_the_stop_is_read_by_an_idle_request_handler() {
    for mode in BLOCKING {
        let mut server = start("echo idle", mode, LONG);
        let gate = Gate::at(&server.directory.join("gate"));
        let mut client = server.connect();
        client.send("hold\n");
        let arrival = gate.expect_arrival();
        client.send("in time\n");
        begin_to_stop(&server, mode);
        arrival.release();
        client.expect("hold\nin time\n").expect_end();
        server.expect_success();
        let idle = usize::from(mode != "inline");
        assert_eq!(server.rest(), [report(idle, 1, 0)], "{mode}");
    }
}

/// How many clock ticks of processor time a process has used.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in brackets, may contain spaces.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<_> = fields.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn a_connection_that_a_hook_made_non_blocking_does_not_make_its_thread_spin() {
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
        assert!(used <= 10, "{what} {mode}: an idle client costs {used} of 100 ticks in a second");
        client.send("and on\n").expect("and on\n").end();
        client.read_to_end();
        server.terminate();
        server.expect_success();
    }
}

/// Starts a server of lines that can start two threads and not a third.
fn start_with_two_threads(mode: &str) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--serve").env(STACK_VARIABLE, STACK.to_string()).env("MALLOC_ARENA_MAX", "1");
    Process::start_command(command, 2, &["lines", mode, "30000", "{dir}/gate"])
}

fn stop_and_expect(mut server: Process, counted: &str) {
    server.terminate();
    server.expect_success();
    assert_eq!(server.rest(), [counted]);
    let errors = server.errors();
    assert_eq!(
        errors.matches("cannot start another").count(),
        1,
        "logged once per period: {errors}"
    );
}

fn threading_rejects_requests_when_no_thread_can_be_started() {
    let server = start_with_two_threads("threading");
    let mut served = [server.connect(), server.connect()];
    for client in &mut served {
        client.send("hello\n").expect("hello\n");
    }
    for _ in 0..5 {
        server.connect().expect_gone();
    }
    let [first, second] = &mut served;
    first.send("still here\n").expect("still here\n").end().read_to_end();
    wait_until_asleep(&server);
    // The freed thread serves the next client.
    server.connect().send("hello\n").expect("hello\n");
    second.send("still here\n").expect("still here\n");
    stop_and_expect(server, "rejected 5 open 0");
}

fn a_pool_queues_requests_when_no_thread_can_be_started() {
    let server = start_with_two_threads("pool");
    let mut served = [server.connect(), server.connect()];
    for client in &mut served {
        client.send("hello\n").expect("hello\n");
    }
    let mut waiting: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut waiting {
        client.send("hello\n").end();
    }
    let [first, _second] = &mut served;
    first.end().read_to_end();
    for client in &mut waiting {
        client.expect("hello\n1 lines\n").expect_end();
    }
    stop_and_expect(server, "rejected 0 open 0");
}

fn offload_queues_messages_when_no_worker_can_be_started() {
    let server = start_with_two_threads("offload");
    let gate = Gate::at(&server.directory.join("gate"));
    let mut held = [server.connect(), server.connect()];
    let arrivals = held.each_mut().map(|client| {
        client.send("hold\n");
        gate.expect_arrival()
    });
    let mut waiting: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut waiting {
        client.send("hello\n");
    }
    // The loop is not blocked.
    connect(&server.urls[1]).send("hello\n").expect("hello\n");
    drop(arrivals);
    for client in held.iter_mut() {
        client.expect("held\n");
    }
    for client in &mut waiting {
        client.expect("hello\n");
    }
    stop_and_expect(server, "rejected 0 open 0");
}

// Options; these servers run in this process

/// Starts a server of lines in this process, with its gate in `directory`.
fn start_here(mode: impl Into<Mode>, directory: &process::Directory) -> support::TestServer {
    let mut server = Server::new().unwrap();
    add(&mut server, "lines", mode.into(), &directory.join("gate"));
    support::start_server(server)
}

/// Connects a client whose handler holds a thread at the gate.
fn hold(server: &support::TestServer, gate: &Gate) -> (support::Client, process::Arrival) {
    let mut client = server.connect();
    client.send("hold\n");
    (client, gate.expect_arrival())
}

/// Exactly `count` connections are accepted.
fn expect_accepted(server: &support::TestServer, count: u64) {
    server.wait_for("they are accepted", |counters| counters.accepted == count);
    thread::sleep(support::A_WHILE);
    assert_eq!(server.counters().accepted, count);
}

fn connections_above_the_limit_of_threading_wait_in_the_kernel() {
    let directory = process::Directory::new();
    let gate = Gate::at(&directory.join("gate"));
    let server = start_here(Mode::Threading(Threading::default().limit(2)), &directory);
    let (mut first, arrival) = hold(&server, &gate);
    let (_second, _arrival) = hold(&server, &gate);
    let mut third = server.connect();
    third.send("hello\n");
    expect_accepted(&server, 2);
    arrival.release();
    first.expect_reply("held\n").end().read_to_end();
    third.expect_reply("hello\n");
    server.wait_for("all are accepted", |counters| counters.accepted == 3);
    assert_eq!(server.counters().rejected_full, 0);
}

fn connections_above_the_queue_of_a_pool_wait_in_the_kernel() {
    for queue in [0, 1, 3] {
        let directory = process::Directory::new();
        let gate = Gate::at(&directory.join("gate"));
        let server = start_here(Mode::Pool(Pool::new(1).queue(queue)), &directory);
        let (mut first, arrival) = hold(&server, &gate);
        let mut others: Vec<_> = (0..queue + 2).map(|_| server.connect()).collect();
        for client in &mut others {
            client.send("hello\n").end();
        }
        expect_accepted(&server, 1 + queue as u64);
        arrival.release();
        first.expect_reply("held\n").end().read_to_end();
        for client in &mut others {
            client.expect_reply("hello\n1 lines\n").expect_closed();
        }
        assert_eq!(server.counters().rejected_full, 0);
    }
}

fn a_pool_with_reject_when_full_rejects_connections_above_its_queue() {
    for queue in [0, 2] {
        let directory = process::Directory::new();
        let gate = Gate::at(&directory.join("gate"));
        let pool = Pool::new(1).queue(queue).reject_when_full(true);
        let server = start_here(Mode::Pool(pool), &directory);
        let (mut first, arrival) = hold(&server, &gate);
        let mut queued: Vec<_> = (0..queue).map(|_| server.connect()).collect();
        server.wait_for("they are queued", |counters| counters.accepted == 1 + queue as u64);
        for _ in 0..3 {
            server.connect().expect_gone();
        }
        server.wait_for("they are counted", |counters| counters.rejected_full == 3);
        arrival.release();
        first.expect_reply("held\n").end().read_to_end();
        for client in &mut queued {
            client.send("hello\n").expect_reply("hello\n").end().read_to_end();
        }
        server.wait_for_no_connection();
    }
}

fn a_thread_has_a_stack_of_the_requested_size() {
    let size = 64 << 20;
    for mode in [
        Mode::Threading(Threading::default().stack_size(size)),
        Mode::Pool(Pool::new(1).stack_size(size)),
    ] {
        let server = start_here(mode, &process::Directory::new());
        server.connect().send("recurse\n").expect_reply("1024 frames\n");
    }
}

fn with_a_stack_size_larger_than_memory_requests_are_rejected() {
    for size in [usize::MAX, usize::MAX / 8] {
        for mode in [
            Mode::Threading(Threading::default().stack_size(size)),
            Mode::Pool(Pool::new(1).stack_size(size)),
        ] {
            let server = start_here(mode, &process::Directory::new());
            server.connect().expect_gone();
            server.connect().expect_gone();
            server.wait_for("both are counted", |counters| counters.rejected_full == 2);
            server.wait_for_no_connection();
        }
    }
}

fn threads_are_named_after_their_mode_and_numbered() {
    for (mode, name) in [("threading", "thread-"), ("pool", "pool-"), ("offload", "worker-")] {
        let server = start_here(mode.parse::<Mode>().unwrap(), &process::Directory::new());
        let mut client = server.connect();
        client.send("thread\n").end();
        let reply = String::from_utf8(client.read_to_end()).unwrap();
        let number = reply.lines().next().and_then(|thread| thread.strip_prefix(name));
        assert!(number.is_some_and(|number| number.parse::<u32>().is_ok()), "{mode}: {reply}");
    }
}

fn main() -> ExitCode {
    let Some(arguments) = runner::arguments_unless_serving(serve) else {
        return ExitCode::SUCCESS;
    };
    let tests = tests![
        a_client_that_ends_while_the_server_drains_is_answered_by_a_handler,
        a_client_that_ends_while_the_server_drains_is_answered_by_a_request_handler,
        a_stop_closes_idle_connections_at_once_and_counts_them_as_idle,
        a_connection_that_waits_only_for_its_senders_is_idle,
        a_request_whose_last_flush_fails_is_counted_as_a_disconnect,
        a_stop_waits_for_a_request_in_progress_and_counts_it_as_finished,
        a_stop_aborts_an_unfinished_request_at_the_deadline_and_counts_it_as_aborted,
        one_stop_counts_idle_finished_and_aborted_requests_separately,
        a_request_handler_that_never_calls_set_idle_may_use_the_whole_drain_time,
        input_that_arrived_before_the_stop_is_read_by_an_idle_request_handler,
        a_connection_that_a_hook_made_non_blocking_does_not_make_its_thread_spin,
        threading_rejects_requests_when_no_thread_can_be_started,
        a_pool_queues_requests_when_no_thread_can_be_started,
        offload_queues_messages_when_no_worker_can_be_started,
        connections_above_the_limit_of_threading_wait_in_the_kernel,
        connections_above_the_queue_of_a_pool_wait_in_the_kernel,
        a_pool_with_reject_when_full_rejects_connections_above_its_queue,
        a_thread_has_a_stack_of_the_requested_size,
        with_a_stack_size_larger_than_memory_requests_are_rejected,
        threads_are_named_after_their_mode_and_numbered,
    ];
    runner::run(tests, arguments.into_iter()).0
}
