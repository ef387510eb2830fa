//! `handle_request`, and what is left between two runs of a server: requests that go on, faults that
//! are told later, a shutdown that comes too late, children of a server that is dropped.

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

use forked::{play, start, tell, terminate};
use socketserver::{
    BlockingMode, CloseReason, Context, Forking, ForkingTcpServer, Handler, HandlerResult, Hooks,
    Lines, Mode, Offload, Peer, Pool, Request, RequestHandler, Server, Threading, handler_fn,
};
use support::{Client, DEADLINE, connect, expect_told, in_time, start_server, wait_until};

const LOCAL: &str = "127.0.0.1:0";

/// The modes under which a request is served when `handle_request` returns.
const SERVED: [&str; 3] = ["reactor", "offload", "inline"];

/// The modes under which it is handed over, to a thread.
const HANDED_OVER: [&str; 2] = ["threading", "pool"];

fn mode(name: &str) -> Mode {
    name.parse().unwrap()
}

fn inet(server: &Server) -> SocketAddr {
    server.local_addr().inet().unwrap()
}

/// Hooks that tell each fault.
struct Telling(Sender<String>);

impl Hooks for Telling {
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

/// A blocking handler that is a function.
struct Do<F>(F);

impl<F: FnMut(&mut Request<'_>) -> HandlerResult> RequestHandler for Do<F> {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        (self.0)(request)
    }
}

/// Where handlers wait until the test lets them go on.
#[derive(Clone)]
struct Gate {
    arrived: Sender<()>,
    open: Arc<Mutex<Receiver<()>>>,
}

/// A gate, who has arrived there, and what opens it once.
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
fn a_fault_is_told_and_counted_before_handle_request_returns() {
    for name in SERVED {
        let (tell, told) = mpsc::channel();
        let closed = Arc::new(AtomicUsize::new(0));
        let of_handlers = closed.clone();
        let builder = Server::tcp(LOCAL).unwrap().mode(mode(name)).hooks(Telling(tell));
        let mut server = builder.serve(move |_| Failing(of_handlers.clone())).unwrap();
        server.request_timeout(DEADLINE);
        for number in 1..=10 {
            let mut client = connect(inet(&server));
            client.send("boom").end();
            assert!(server.handle_request().unwrap(), "{name}");
            assert_eq!(told.try_recv(), Ok("handler failed: a fault".to_owned()), "{name}");
            assert_eq!(closed.load(SeqCst), number, "{name}");
            assert_eq!(server.counters().handler_errors, number as u64, "{name}");
        }
        assert!(told.try_recv().is_err());
    }
}

#[test]
fn a_fault_that_comes_after_handle_request_has_returned_is_told_by_a_later_call() {
    for name in HANDED_OVER {
        let (gate, arrivals, open) = gate();
        let (tell, told) = mpsc::channel();
        let builder = Server::tcp(LOCAL).unwrap().hooks(Telling(tell));
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
            expect_told(&arrivals);
        }
        (0..3).for_each(|_| open.send(()).unwrap());
        clients.iter_mut().for_each(Client::expect_gone);
        server.request_timeout(Duration::from_millis(1));
        let mut faults = Vec::new();
        wait_until("all three are told", || {
            assert!(!server.handle_request().unwrap());
            faults.extend(told.try_iter());
            faults.len() == 3
        });
        assert_eq!(faults, ["handler failed: a late fault"; 3]);
    }
}

/// What has been logged as an error.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Remembering;

impl log::Log for Remembering {
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
fn a_fault_that_no_later_call_can_tell_is_logged() {
    log::set_logger(&Remembering).unwrap();
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
        expect_told(&arrivals);
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
fn a_call_that_waits_for_room_goes_on_when_the_request_of_an_earlier_call_ends() {
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
        expect_told(&arrivals);
        let before = handle.counters().turns;
        let second = thread::spawn(move || (server.handle_request().unwrap(), server));
        wait_until("the second call has found no room", || handle.counters().turns > before);
        open.send(()).unwrap();
        expect_told(&arrivals);
        open.send(()).unwrap();
        let (served, _server) = in_time("it returns", move || second.join().unwrap());
        assert!(served);
    }
}

/// Waits at a gate, asks for a shutdown, and answers; other messages are echoed.
struct Late(Gate);

impl Handler for Late {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if message == b"shutdown" {
            self.0.wait();
            cx.stop_server();
        }
        cx.send(message)
    }
}

impl RequestHandler for Late {
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

/// A server with such handlers, blocking ones or not.
fn late(name: &str, blocking: bool, gate: Gate) -> Server {
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    if blocking {
        let builder = builder.mode(BlockingMode::try_from(mode(name)).unwrap());
        builder.serve_blocking(move |_| Late(gate.clone())).unwrap()
    } else {
        builder.mode(mode(name)).serve(move |_| Late(gate.clone())).unwrap()
    }
}

#[test]
fn a_shutdown_that_is_asked_for_between_two_runs_ends_neither() {
    for (name, blocking) in HANDED_OVER.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        let (gate, arrivals, open) = gate();
        let mut server = late(name, blocking, gate);
        let mut first = connect(inet(&server));
        first.send("shutdown\n");
        assert!(server.handle_request().unwrap());
        expect_told(&arrivals);
        open.send(()).unwrap();
        first.expect_reply("shutdown\n").end().expect_closed();
        let server = start_server(server);
        server.connect().send("hello\n").expect_reply("hello\n");
        assert!(server.handle().is_running());
    }
}

#[test]
fn a_shutdown_that_is_asked_for_in_a_later_run_than_its_requests_does_not_end_that_run() {
    for (name, blocking) in HANDED_OVER.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        let (gate, arrivals, open) = gate();
        let mut server = late(name, blocking, gate);
        let mut first = connect(inet(&server));
        first.send("shutdown\n");
        assert!(server.handle_request().unwrap());
        expect_told(&arrivals);
        let server = start_server(server);
        let mut second = server.connect();
        second.send("hello\n").expect_reply("hello\n");
        open.send(()).unwrap();
        first.expect_reply("shutdown\n");
        server.connect().send("hello\n").expect_reply("hello\n");
        assert!(server.handle().is_running());
        // A blocking handler that reads would be waited for.
        drop((first, second));
    }
}

#[test]
fn a_worker_that_finishes_in_a_later_run_does_not_end_it() {
    let (gate, arrivals, open) = gate();
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    let builder = builder.mode(Offload::new(2));
    let mut server = builder.serve(move |_| Late(gate.clone())).unwrap();
    server.drain_timeout(Duration::from_millis(10));
    let server = start_server(server);
    let mut first = server.connect();
    first.send("shutdown\n");
    expect_told(&arrivals);
    let (mut server, report) = server.stop();
    assert_eq!(report.aborted, 1);
    server.drain_timeout(2 * DEADLINE);
    let server = start_server(server);
    server.connect().send("hello\n").expect_reply("hello\n");
    // Its stop waits for workers of its own alone.
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
        let server = start_server(late(name, false, gate));
        let mut client = server.connect();
        client.send("shutdown\n");
        expect_told(&arrivals);
        open.send(()).unwrap();
        client.expect_reply("shutdown\n");
        server.join();
    }
}

// Forking: each server is a process of its own.

/// Two lines, and both of them back when the second has come.
fn two_lines(request: &mut Request<'_>) -> HandlerResult {
    let first = request.read_line()?.unwrap_or_default();
    let second = request.read_line()?.unwrap_or_default();
    Ok(request.write_all(&[&first, &b" "[..], &second, b"\n"].concat())?)
}

fn announce(server: &Server) {
    tell(format_args!("pid {}", std::process::id()));
    tell(format_args!("address {}", inet(server)));
}

fn one_request_and_then_dropped(drain: Duration) {
    let mut server = ForkingTcpServer::bind(LOCAL, |_| Do(two_lines)).unwrap();
    server.drain_timeout(drain);
    announce(&server);
    tell(server.handle_request().unwrap());
    server.server_close();
    tell(format_args!("children {}", forked::children().len()));
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
    tell(server.handle_request().unwrap());
    tell(format_args!("cut {}", server.serve_forever().unwrap().aborted));
}

/// Serves three connections that are handed over, two at a time.
fn handed_over(test: &str) {
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
    tell(format_args!("pid {}", std::process::id()));
    tell(format_args!("cut {}", server.serve_forever().unwrap().aborted));
}

fn roles(role: &str) {
    match role.split_once(' ') {
        Some(("handed_over", test)) => handed_over(test),
        _ => match role {
            "dropped" => one_request_and_then_dropped(2 * DEADLINE),
            "dropped soon" => one_request_and_then_dropped(Duration::from_millis(100)),
            "two_runs" => two_runs(),
            other => unreachable!("{other}"),
        },
    }
}

#[test]
fn be_a_process() {
    play(roles);
}

#[test]
fn a_forked_request_is_answered_although_its_server_is_dropped() {
    let process = start("dropped");
    process.told_of("pid");
    let mut client = connect(process.told_of("address").parse().unwrap());
    client.send("one\n");
    assert_eq!(process.told(), "true");
    // It is being dropped, and waits for its child.
    client.send("two\n");
    client.expect_reply("one two\n").expect_closed();
    assert_eq!(process.told(), "children 0");
    process.expect_end();
}

#[test]
fn a_forked_request_that_does_not_end_is_killed_when_the_time_of_its_dropped_server_is_up() {
    let process = start("dropped soon");
    process.told_of("pid");
    let mut client = connect(process.told_of("address").parse().unwrap());
    client.send("one\n");
    assert_eq!(process.told(), "true");
    assert_eq!(process.told(), "children 0");
    client.expect_gone();
    process.expect_end();
}

#[test]
fn a_child_of_an_earlier_run_that_asks_for_a_shutdown_does_not_end_a_later_run() {
    let process = start("two_runs");
    process.told_of("pid");
    let address = process.told_of("address").parse().unwrap();
    let mut first = connect(address);
    first.send("hello\n").expect_reply("hello\n");
    assert_eq!(process.told(), "true");
    let mut second = connect(address);
    second.send("hello\n").expect_reply("hello\n");
    first.send("shutdown\n").expect_reply("shutdown\n");
    let mut third = connect(address);
    third.send("hello\n").expect_reply("hello\n");
    // A child of this run does end it.
    third.send("shutdown\n").expect_reply("shutdown\n");
    assert_eq!(process.told(), "cut 0");
    process.expect_end();
}

#[test]
fn a_child_keeps_no_connection_that_waits_to_be_handed_to_another() {
    let listener = TcpListener::bind(LOCAL).unwrap();
    let process = start(&format!("handed_over {}", listener.local_addr().unwrap()));
    let pid = process.told_of("pid");
    let mut peers: Vec<_> = (0..3)
        .map(|_| {
            let stream = listener.accept().unwrap().0;
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream
        })
        .collect();
    // The first stays, the second makes room for the third.
    for peer in &mut peers[1..] {
        peer.write_all(b"hello\n").unwrap();
        let mut reply = String::new();
        peer.read_to_string(&mut reply).unwrap();
        assert_eq!(reply, "hello\n");
    }
    terminate(&pid);
    assert_eq!(process.told(), "cut 0");
    process.expect_end();
}
