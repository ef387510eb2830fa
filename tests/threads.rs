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
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use process::{DEADLINE, Gate, Process, Stream, announce, connect, eventually, wait_at_gate};
use socket2::SockRef;
use socketserver::{
    BlockingMode, Context, Decoded, Framing, FramingError, Handler, HandlerResult, Hooks, Lines,
    Mode, Output, Peer, Pool, Request, RequestHandler, Sender, Server, Threading,
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

/// Lines come back; some are commands.
struct ByLine {
    gate: PathBuf,
    lines: usize,
    /// Held, so that the connection stays when its client has ended.
    sender: Option<Sender>,
}

impl Handler for ByLine {
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
    fn on_accept(&mut self, connection: BorrowedFd<'_>, _: &Peer) -> std::io::Result<()> {
        SockRef::from(&connection).set_nonblocking(true)
    }
}

fn add(server: &mut Server, what: &str, mode: Mode, gate: &Path) {
    let gate = gate.to_owned();
    let builder = Server::tcp("127.0.0.1:0").unwrap();
    let act = match what {
        "lines" | "nonblocking lines" => {
            let builder = builder.framing(LinesToTheEnd::default()).mode(mode);
            let make = move |_: &Peer| ByLine { gate: gate.clone(), lines: 0, sender: None };
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
    let builder = builder.mode(BlockingMode::try_from(mode).unwrap());
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
    println!("idle {} finished {} cut {}", report.idle, report.finished, report.aborted);
}

/// The size of a thread's stack, where a server may have two threads beside its own.
const STACK: u64 = 256 << 20;
const STACK_VARIABLE: &str = "RUST_MIN_STACK";

/// Lets this process have no more memory than two more stacks take.
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
fn count(idle: usize, finished: usize, aborted: usize) -> String {
    format!("idle {idle} finished {finished} cut {aborted}")
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

fn a_connection_that_waits_for_its_senders_alone_is_idle_too() {
    for mode in ["reactor", "offload", "threading", "pool"] {
        let mut server = start("lines", mode, LONG);
        let mut client = server.connect();
        client.send("stay\n").expect("stay\n").end().expect("1 lines\n");
        wait_until_asleep(&server);
        server.terminate();
        client.expect_end();
        server.expect_success();
        assert_eq!(server.rest(), [count(1, 0, 0)], "{mode}");
    }
}

/// Else its last words would be lost without a trace.
fn a_request_whose_last_flush_fails_is_counted_as_a_disconnect() {
    struct Verbose(mpsc::Receiver<()>);

    impl RequestHandler for Verbose {
        fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
            request.set_write_buffer(usize::MAX);
            request.write_all(b"last words")?;
            Ok(self.0.recv()?)
        }
    }

    let (go, gone) = mpsc::channel();
    let mut gone = Some(gone);
    let builder = Server::tcp("127.0.0.1:0").unwrap().mode(Threading::default());
    let server = builder.serve_blocking(move |_: &Peer| Verbose(gone.take().unwrap())).unwrap();
    let server = support::start_server(server);
    let client = server.connect();
    server.wait_for("it is accepted", |counters| counters.accepted == 1);
    client.reset();
    go.send(()).unwrap();
    server.wait_for("it is over", |counters| counters.closed == 1);
    let counters = server.counters();
    assert_eq!((counters.disconnects, counters.handler_errors), (1, 0));
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

/// Starts a server of lines that may have two threads beside its own.
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
    assert_eq!(errors.matches("can be started").count(), 1, "told once per period: {errors}");
}

fn where_no_more_threads_can_be_started_threading_turns_requests_away() {
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
    // Its thread serves the next one.
    server.connect().send("hello\n").expect("hello\n");
    second.send("still here\n").expect("still here\n");
    stop_and_expect(server, "rejected 5 open 0");
}

fn where_no_more_threads_can_be_started_a_pool_lets_requests_wait() {
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

fn where_no_more_workers_can_be_started_messages_wait() {
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
    // The loop goes on.
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

// Options; these servers are threads of this process

/// Starts a server of lines in this process; what waits at the gate waits for the directory's.
fn start_here(mode: impl Into<Mode>, directory: &process::Directory) -> support::TestServer {
    let mut server = Server::new().unwrap();
    add(&mut server, "lines", mode.into(), &directory.join("gate"));
    support::start_server(server)
}

/// Connects somebody who holds a thread.
fn hold(server: &support::TestServer, gate: &Gate) -> (support::Client, process::Arrival) {
    let mut client = server.connect();
    client.send("hold\n");
    (client, gate.expect_arrival())
}

/// As many requests as may be are accepted, and no more for a while.
fn expect_accepted(server: &support::TestServer, count: u64) {
    server.wait_for("they are accepted", |counters| counters.accepted == count);
    thread::sleep(support::A_WHILE);
    assert_eq!(server.counters().accepted, count);
}

fn above_the_limit_of_threading_clients_wait_in_the_kernel() {
    let directory = process::Directory::new();
    let gate = Gate::at(&directory.join("gate"));
    let server = start_here(Mode::Threading(Threading::default().limit(2)), &directory);
    let (mut first, arrival) = hold(&server, &gate);
    let (_second, _arrival) = hold(&server, &gate);
    let mut third = server.connect();
    third.send("hello\n");
    expect_accepted(&server, 2);
    arrival.let_go();
    first.expect_reply("held\n").end().read_to_end();
    third.expect_reply("hello\n");
    server.wait_for("all are accepted", |counters| counters.accepted == 3);
    assert_eq!(server.counters().rejected_full, 0);
}

fn above_its_queue_a_pools_clients_wait_in_the_kernel() {
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
        arrival.let_go();
        first.expect_reply("held\n").end().read_to_end();
        for client in &mut others {
            client.expect_reply("hello\n1 lines\n").expect_closed();
        }
        assert_eq!(server.counters().rejected_full, 0);
    }
}

fn above_its_queue_a_pool_that_rejects_turns_clients_away() {
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
        arrival.let_go();
        first.expect_reply("held\n").end().read_to_end();
        for client in &mut queued {
            client.send("hello\n").expect_reply("hello\n").end().read_to_end();
        }
        server.wait_for_no_connection();
    }
}

fn a_thread_has_a_stack_of_the_size_that_was_asked_for() {
    let size = 64 << 20;
    for mode in [
        Mode::Threading(Threading::default().stack_size(size)),
        Mode::Pool(Pool::new(1).stack_size(size)),
    ] {
        let server = start_here(mode, &process::Directory::new());
        server.connect().send("recurse\n").expect_reply("1024 frames\n");
    }
}

fn a_stack_larger_than_there_is_memory_for_turns_requests_away() {
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
        let told = String::from_utf8(client.read_to_end()).unwrap();
        let number = told.lines().next().and_then(|told| told.strip_prefix(name));
        assert!(number.is_some_and(|number| number.parse::<u32>().is_ok()), "{mode}: {told}");
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
        a_connection_that_waits_for_its_senders_alone_is_idle_too,
        a_request_whose_last_flush_fails_is_counted_as_a_disconnect,
        a_stop_waits_for_who_has_begun_and_counts_it_as_finished,
        a_stop_cuts_who_does_not_finish_and_counts_it_so,
        one_stop_counts_idle_finished_and_cut_requests_apart,
        a_request_handler_that_never_says_that_it_is_idle_may_use_the_whole_drain,
        what_has_come_before_the_stop_is_read_by_an_idle_request_handler,
        a_connection_that_someone_made_non_blocking_is_waited_for_without_a_spin,
        where_no_more_threads_can_be_started_threading_turns_requests_away,
        where_no_more_threads_can_be_started_a_pool_lets_requests_wait,
        where_no_more_workers_can_be_started_messages_wait,
        above_the_limit_of_threading_clients_wait_in_the_kernel,
        above_its_queue_a_pools_clients_wait_in_the_kernel,
        above_its_queue_a_pool_that_rejects_turns_clients_away,
        a_thread_has_a_stack_of_the_size_that_was_asked_for,
        a_stack_larger_than_there_is_memory_for_turns_requests_away,
        threads_are_named_after_their_mode_and_numbered,
    ];
    runner::run(tests, arguments.into_iter()).0
}
