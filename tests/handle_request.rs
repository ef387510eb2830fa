//! `handle_request`, and the state between two runs of a server: requests that continue, faults
//! that are reported later, a late shutdown, children of a dropped server.

#[path = "support/forked.rs"]
mod forked;
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use forked::{print_line, run_role, start, terminate};
use socketserver::{
    BlockingMode, CloseReason, Context, Forking, ForkingTcpServer, Handler, HandlerResult, Hooks,
    Lines, Mode, Offload, Peer, Pool, Request, RequestHandler, Server, Threading, handler_fn,
};
use support::{Client, DEADLINE, connect, expect_next, in_time, start_server, wait_until};

const LOCAL: &str = "127.0.0.1:0";

/// The modes in which `handle_request` returns when the request is served.
const SERVED: [&str; 3] = ["reactor", "offload", "inline"];

/// The modes in which it returns when the request is handed to a thread.
const HANDED_OVER: [&str; 2] = ["threading", "pool"];

fn mode(name: &str) -> Mode {
    name.parse().unwrap()
}

fn inet(server: &Server) -> SocketAddr {
    server.local_addr().inet().unwrap()
}

/// Hooks that report each fault.
struct ReportFaults(Sender<String>);

impl Hooks for ReportFaults {
    fn handle_error(&mut self, _: &Peer, reason: &CloseReason) {
        let _ = self.0.send(reason.to_string());
    }
}

/// Fails at each message, and counts the calls of `on_close`.
struct Failing(Arc<AtomicUsize>);

impl Handler for Failing {
    fn on_message(&mut self, _: &[u8], _: &mut Context<'_>) -> HandlerResult {
        Err("a fault".into())
    }

    fn on_close(&mut self, _: &CloseReason) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A request handler that calls a function.
struct Do<F>(F);

impl<F: FnMut(&mut Request<'_>) -> HandlerResult> RequestHandler for Do<F> {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        (self.0)(request)
    }
}

/// A gate at which handlers wait until the test releases them.
#[derive(Clone)]
struct Gate {
    arrived: Sender<()>,
    open: Arc<Mutex<Receiver<()>>>,
}

/// A gate, the channel of arrivals, and the channel that releases one handler.
fn gate() -> (Gate, Receiver<()>, Sender<()>) {
    let (arrived, arrivals) = mpsc::channel();
    let (opener, open) = mpsc::channel();
    (Gate { arrived, open: Arc::new(Mutex::new(open)) }, arrivals, opener)
}

impl Gate {
    fn wait(&self) {
        self.arrived.send(()).unwrap();
        self.open.lock().unwrap().recv_timeout(DEADLINE).unwrap();
    }
}

#[test]
fn a_datagram_is_answered_before_handle_request_returns() {
    for name in SERVED {
        let builder = Server::udp(LOCAL).unwrap().mode(mode(name));
        let mut server = builder.serve(|_| handler_fn(|bytes, cx| cx.send(bytes))).unwrap();
        server.request_timeout(DEADLINE);
        let client = UdpSocket::bind(LOCAL).unwrap();
        client.connect(inet(&server)).unwrap();
        client.set_nonblocking(true).unwrap();
        for _ in 0..5 {
            client.send(b"hello").unwrap();
            assert!(server.handle_request().unwrap());
            let mut reply = [0; 10];
            let count = client.recv(&mut reply).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(&reply[..count], b"hello");
        }
    }
}

#[test]
fn a_unix_datagram_is_answered_before_handle_request_returns() {
    for name in SERVED {
        let directory = std::env::temp_dir().join(format!("hr-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let builder = Server::unix_datagram(directory.join("server")).unwrap().mode(mode(name));
        let mut server = builder.serve(|_| handler_fn(|bytes, cx| cx.send(bytes))).unwrap();
        server.request_timeout(DEADLINE);
        let client = UnixDatagram::bind(directory.join("client")).unwrap();
        client.connect(directory.join("server")).unwrap();
        client.set_nonblocking(true).unwrap();
        for _ in 0..5 {
            client.send(b"hello").unwrap();
            assert!(server.handle_request().unwrap());
            let mut reply = [0; 10];
            let count = client.recv(&mut reply).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(&reply[..count], b"hello");
        }
        drop(server);
        std::fs::remove_dir_all(directory).unwrap();
    }
}

#[test]
fn a_fault_is_reported_and_counted_before_handle_request_returns() {
    for name in SERVED {
        let (report, reports) = mpsc::channel();
        let closed = Arc::new(AtomicUsize::new(0));
        let of_handlers = closed.clone();
        let builder = Server::tcp(LOCAL).unwrap().mode(mode(name)).hooks(ReportFaults(report));
        let mut server = builder.serve(move |_| Failing(of_handlers.clone())).unwrap();
        server.request_timeout(DEADLINE);
        for number in 1..=10 {
            let mut client = connect(inet(&server));
            client.send("boom").end();
            assert!(server.handle_request().unwrap(), "{name}");
            assert_eq!(reports.try_recv(), Ok("handler failed: a fault".to_owned()), "{name}");
            assert_eq!(closed.load(SeqCst), number, "{name}");
            assert_eq!(server.counters().handler_errors, number as u64, "{name}");
        }
        assert!(reports.try_recv().is_err());
    }
}

#[test]
fn a_fault_after_handle_request_has_returned_is_reported_by_a_later_call() {
    for name in HANDED_OVER {
        let (gate, arrivals, open) = gate();
        let (report, reports) = mpsc::channel();
        let builder = Server::tcp(LOCAL).unwrap().hooks(ReportFaults(report));
        let builder = builder.mode(BlockingMode::try_from(mode(name)).unwrap());
        let fail = move |_: &mut Request<'_>| -> HandlerResult {
            gate.wait();
            Err("a late fault".into())
        };
        let mut server = builder.serve_blocking(move |_| Do(fail.clone())).unwrap();
        server.request_timeout(DEADLINE);
        let mut clients: Vec<_> = (0..3).map(|_| connect(inet(&server))).collect();
        for _ in 0..3 {
            assert!(server.handle_request().unwrap());
            expect_next(&arrivals);
        }
        (0..3).for_each(|_| open.send(()).unwrap());
        clients.iter_mut().for_each(Client::expect_gone);
        server.request_timeout(Duration::from_millis(1));
        let mut faults = Vec::new();
        wait_until("all three are reported", || {
            assert!(!server.handle_request().unwrap());
            faults.extend(reports.try_iter());
            faults.len() == 3
        });
        assert_eq!(faults, ["handler failed: a late fault"; 3]);
    }
}

/// The records that were logged at level error.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct RecordingLogger;

impl log::Log for RecordingLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.level() == log::Level::Error {
            LOGGED.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

fn is_logged(text: &str) -> bool {
    LOGGED.lock().unwrap().iter().any(|logged| logged.contains(text))
}

#[test]
fn a_fault_that_no_later_call_can_report_is_logged() {
    log::set_logger(&RecordingLogger).unwrap();
    log::set_max_level(log::LevelFilter::Error);
    for when in ["before the server is dropped", "after the server was dropped"] {
        let (gate, arrivals, open) = gate();
        let threading = Threading::default().daemon_threads(true);
        let builder = Server::tcp(LOCAL).unwrap().mode(threading);
        let fail = move |_: &mut Request<'_>| -> HandlerResult {
            gate.wait();
            Err(format!("a fault {when}").into())
        };
        let mut server = builder.serve_blocking(move |_| Do(fail.clone())).unwrap();
        let mut client = connect(inet(&server));
        assert!(server.handle_request().unwrap());
        expect_next(&arrivals);
        if when.starts_with("before") {
            open.send(()).unwrap();
            client.expect_gone();
            drop(server);
        } else {
            drop(server);
            open.send(()).unwrap();
        }
        wait_until("it is logged", || is_logged(when));
    }
}

#[test]
fn handle_request_at_the_limit_continues_when_an_earlier_request_ends() {
    let limited =
        [Mode::Threading(Threading::default().limit(1)), Mode::Pool(Pool::new(1).queue(0))];
    for mode in limited {
        let (gate, arrivals, open) = gate();
        let builder = Server::tcp(LOCAL).unwrap().mode(BlockingMode::try_from(mode).unwrap());
        let wait = move |_: &mut Request<'_>| -> HandlerResult {
            gate.wait();
            Ok(())
        };
        let mut server = builder.serve_blocking(move |_| Do(wait.clone())).unwrap();
        let handle = server.shutdown_handle();
        let _clients = [connect(inet(&server)), connect(inet(&server))];
        assert!(server.handle_request().unwrap());
        expect_next(&arrivals);
        let before = handle.counters().turns;
        let second = thread::spawn(move || (server.handle_request().unwrap(), server));
        wait_until("the second call is at the limit", || handle.counters().turns > before);
        open.send(()).unwrap();
        expect_next(&arrivals);
        open.send(()).unwrap();
        let (served, _server) = in_time("it returns", move || second.join().unwrap());
        assert!(served);
    }
}

/// An echo. At the message `shutdown`, it waits at a gate and stops the server first.
struct StopBehindGate(Gate);

impl Handler for StopBehindGate {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if message == b"shutdown" {
            self.0.wait();
            cx.stop_server();
        }
        cx.send(message)
    }
}

impl RequestHandler for StopBehindGate {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        while let Some(line) = request.read_line()? {
            if line == b"shutdown" {
                self.0.wait();
                request.stop_server();
            }
            request.write_all(&[&line, &b"\n"[..]].concat())?;
        }
        Ok(())
    }
}

/// A server with such handlers: request handlers if `blocking`.
fn stop_behind_gate(name: &str, blocking: bool, gate: Gate) -> Server {
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    if blocking {
        let builder = builder.mode(BlockingMode::try_from(mode(name)).unwrap());
        builder.serve_blocking(move |_| StopBehindGate(gate.clone())).unwrap()
    } else {
        builder.mode(mode(name)).serve(move |_| StopBehindGate(gate.clone())).unwrap()
    }
}

#[test]
fn a_shutdown_requested_between_two_runs_ends_neither() {
    for (name, blocking) in HANDED_OVER.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        let (gate, arrivals, open) = gate();
        let mut server = stop_behind_gate(name, blocking, gate);
        let mut first = connect(inet(&server));
        first.send("shutdown\n");
        assert!(server.handle_request().unwrap());
        expect_next(&arrivals);
        open.send(()).unwrap();
        first.expect_reply("shutdown\n").end().expect_closed();
        let server = start_server(server);
        server.connect().send("hello\n").expect_reply("hello\n");
        assert!(server.handle().is_running());
    }
}

#[test]
fn a_shutdown_requested_by_a_request_of_an_earlier_run_does_not_end_the_current_run() {
    for (name, blocking) in HANDED_OVER.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        let (gate, arrivals, open) = gate();
        let mut server = stop_behind_gate(name, blocking, gate);
        let mut first = connect(inet(&server));
        first.send("shutdown\n");
        assert!(server.handle_request().unwrap());
        expect_next(&arrivals);
        let server = start_server(server);
        let mut second = server.connect();
        second.send("hello\n").expect_reply("hello\n");
        open.send(()).unwrap();
        first.expect_reply("shutdown\n");
        server.connect().send("hello\n").expect_reply("hello\n");
        assert!(server.handle().is_running());
        // Otherwise the stop would wait for a handler that reads.
        drop((first, second));
    }
}

#[test]
fn a_worker_that_finishes_in_a_later_run_does_not_end_it() {
    let (gate, arrivals, open) = gate();
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    let builder = builder.mode(Offload::new(2));
    let mut server = builder.serve(move |_| StopBehindGate(gate.clone())).unwrap();
    server.drain_timeout(Duration::from_millis(10));
    let server = start_server(server);
    let mut first = server.connect();
    first.send("shutdown\n");
    expect_next(&arrivals);
    let (mut server, report) = server.stop();
    assert_eq!(report.aborted, 1);
    server.drain_timeout(2 * DEADLINE);
    let server = start_server(server);
    server.connect().send("hello\n").expect_reply("hello\n");
    // A stop waits only for the workers of its own run.
    let (mut server, report) = server.stop();
    assert_eq!(report.aborted, 0);
    server.drain_timeout(Duration::from_millis(10));
    let server = start_server(server);
    open.send(()).unwrap();
    first.expect_gone();
    for _ in 0..3 {
        server.connect().send("hello\n").expect_reply("hello\n");
    }
    assert!(server.handle().is_running());
}

#[test]
fn a_request_that_asks_for_a_shutdown_in_its_own_run_ends_that_run() {
    for name in ["reactor", "offload", "inline", "threading", "pool"] {
        let (gate, arrivals, open) = gate();
        let server = start_server(stop_behind_gate(name, false, gate));
        let mut client = server.connect();
        client.send("shutdown\n");
        expect_next(&arrivals);
        open.send(()).unwrap();
        client.expect_reply("shutdown\n");
        server.join();
    }
}

// Forking: each server runs in a process of its own.

/// Reads two lines and sends both back.
fn two_lines(request: &mut Request<'_>) -> HandlerResult {
    let first = request.read_line()?.unwrap_or_default();
    let second = request.read_line()?.unwrap_or_default();
    Ok(request.write_all(&[&first, &b" "[..], &second, b"\n"].concat())?)
}

fn announce(server: &Server) {
    print_line(format_args!("pid {}", std::process::id()));
    print_line(format_args!("address {}", inet(server)));
}

fn serve_one_request_and_drop(drain: Duration) {
    let mut server = ForkingTcpServer::bind(LOCAL, |_| Do(two_lines)).unwrap();
    server.drain_timeout(drain);
    announce(&server);
    print_line(server.handle_request().unwrap());
    server.server_close();
    print_line(format_args!("children {}", forked::children().len()));
}

fn two_runs() {
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    let server = builder.mode(Forking::default()).serve(|_| {
        handler_fn(|line, cx| {
            if line == b"shutdown" {
                cx.stop_server();
            }
            cx.send(line)
        })
    });
    let mut server = server.unwrap();
    announce(&server);
    print_line(server.handle_request().unwrap());
    print_line(format_args!("aborted {}", server.serve_forever().unwrap().aborted));
}

/// Serves three connections added by `add_connection`, two at a time.
fn serve_added_connections(test: &str) {
    let builder = Server::without_listener().unwrap().framing(Lines::default());
    let service = builder.mode(Forking::default().max_children(2)).service(|_| {
        handler_fn(|line, cx| {
            cx.send(line)?;
            cx.close();
            Ok(())
        })
    });
    let mut server = Server::new().unwrap();
    let id = server.add(service.unwrap()).unwrap();
    for _ in 0..3 {
        server.add_connection(id, TcpStream::connect(test).unwrap()).unwrap();
    }
    server.stop_on_signals().unwrap();
    print_line(format_args!("pid {}", std::process::id()));
    print_line(format_args!("aborted {}", server.serve_forever().unwrap().aborted));
}

fn roles(role: &str) {
    match role.split_once(' ') {
        Some(("added_connections", test)) => serve_added_connections(test),
        _ => match role {
            "dropped" => serve_one_request_and_drop(2 * DEADLINE),
            "dropped soon" => serve_one_request_and_drop(Duration::from_millis(100)),
            "two_runs" => two_runs(),
            other => unreachable!("{other}"),
        },
    }
}

/// Not a test: the entry point of the processes that the tests start.
#[test]
fn entry_point_of_child_processes() {
    run_role(roles);
}

#[test]
fn a_forked_request_is_answered_although_its_server_is_dropped() {
    let process = start("dropped");
    process.line_after("pid");
    let mut client = connect(process.line_after("address").parse().unwrap());
    client.send("one\n");
    assert_eq!(process.line(), "true");
    // The drop of the server waits for its child.
    client.send("two\n");
    client.expect_reply("one two\n").expect_closed();
    assert_eq!(process.line(), "children 0");
    process.expect_end();
}

#[test]
fn a_forked_request_is_killed_at_the_drain_deadline_of_its_dropped_server() {
    let process = start("dropped soon");
    process.line_after("pid");
    let mut client = connect(process.line_after("address").parse().unwrap());
    client.send("one\n");
    assert_eq!(process.line(), "true");
    assert_eq!(process.line(), "children 0");
    client.expect_gone();
    process.expect_end();
}

#[test]
fn a_child_of_an_earlier_run_that_asks_for_a_shutdown_does_not_end_a_later_run() {
    let process = start("two_runs");
    process.line_after("pid");
    let address = process.line_after("address").parse().unwrap();
    let mut first = connect(address);
    first.send("hello\n").expect_reply("hello\n");
    assert_eq!(process.line(), "true");
    let mut second = connect(address);
    second.send("hello\n").expect_reply("hello\n");
    first.send("shutdown\n").expect_reply("shutdown\n");
    let mut third = connect(address);
    third.send("hello\n").expect_reply("hello\n");
    // A child of the current run ends it.
    third.send("shutdown\n").expect_reply("shutdown\n");
    assert_eq!(process.line(), "aborted 0");
    process.expect_end();
}

#[test]
fn a_child_keeps_no_connection_that_waits_for_another_child() {
    let listener = TcpListener::bind(LOCAL).unwrap();
    let process = start(&format!("added_connections {}", listener.local_addr().unwrap()));
    let pid = process.line_after("pid");
    let mut peers: Vec<_> = (0..3)
        .map(|_| {
            let stream = listener.accept().unwrap().0;
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream
        })
        .collect();
    // The first stays open; after the end of the second, the third is served.
    for peer in &mut peers[1..] {
        peer.write_all(b"hello\n").unwrap();
        let mut reply = String::new();
        peer.read_to_string(&mut reply).unwrap();
        assert_eq!(reply, "hello\n");
    }
    terminate(&pid);
    assert_eq!(process.line(), "aborted 0");
    process.expect_end();
}
