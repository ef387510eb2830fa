//! What Python's `socketserver` documents and CPython does not test, and where this crate differs.

#![allow(unsafe_code)] // no dependency of the tests has poll

#[path = "support/forked.rs"]
mod forked;
mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use forked::{print_line, run_role, start, terminate};
use socket2::{SockRef, Type};
use socketserver::{
    Accepted, BlockingMode, CloseReason, Context, Error, Forking, ForkingTcpServer, HandlerResult,
    Hooks, Inline, Limits, Lines, Mode, Peer, Request, RequestHandler, Server, ShutdownHandle,
    TcpServer, Threading, ThreadingTcpServer, UdpServer, WhenFull, handler_fn,
};
use support::*;

const LOCAL: &str = "127.0.0.1:0";

/// The blocking modes that run in this process.
const BLOCKING: [&str; 3] = ["inline", "threading", "pool"];

fn blocking(mode: &str) -> BlockingMode {
    mode.parse().unwrap()
}

/// A request handler that is a function.
struct Do<F>(F);

impl<F: FnMut(&mut Request<'_>) -> HandlerResult> RequestHandler for Do<F> {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        (self.0)(request)
    }
}

/// Makes such handlers.
fn each<F>(handle: F) -> impl FnMut(&Accepted<'_>) -> Do<F> + Send + 'static
where
    F: FnMut(&mut Request<'_>) -> HandlerResult + Clone + Send + 'static,
{
    move |_| Do(handle.clone())
}

/// Sends each line back, until the client sends FIN.
fn echo_lines(request: &mut Request<'_>) -> HandlerResult {
    while let Some(line) = request.read_line()? {
        request.write_all(&[&line, &b"\n"[..]].concat())?;
    }
    Ok(())
}

/// Sends each line back; the line `stop` also stops the server.
fn stop_on_command(request: &mut Request<'_>) -> HandlerResult {
    while let Some(line) = request.read_line()? {
        if line == b"stop" {
            request.stop_server();
        }
        request.write_all(&[&line, &b"\n"[..]].concat())?;
    }
    Ok(())
}

fn inet(server: &Server) -> SocketAddr {
    server.local_addr().inet().unwrap()
}

fn udp_client(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(LOCAL).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.connect(server).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut reply = vec![0; 65536];
    let count = socket.recv(&mut reply).unwrap();
    reply.truncate(count);
    reply
}

/// Hooks that record their calls.
#[derive(Clone)]
struct RecordingHooks(Sender<String>);

impl RecordingHooks {
    fn new() -> (Self, Receiver<String>) {
        let (report, reports) = mpsc::channel();
        (RecordingHooks(report), reports)
    }

    fn record(&self, what: impl Into<String>) {
        // The test may have dropped the receiver.
        let _ = self.0.send(what.into());
    }
}

impl Hooks for RecordingHooks {
    fn handle_error(&mut self, _: &Peer, reason: &CloseReason) {
        self.record(format!("handle_error: {reason}"));
    }

    fn handle_timeout(&mut self) {
        self.record("handle_timeout");
    }
}

// The server's timeout

#[test]
fn handle_request_returns_after_the_request_timeout_and_calls_handle_timeout() {
    for mode in BLOCKING {
        let (hooks, notes) = RecordingHooks::new();
        let builder = Server::tcp(LOCAL).unwrap().mode(blocking(mode)).hooks(hooks);
        let mut server = builder.serve_blocking(each(echo_lines)).unwrap();
        server.request_timeout(Duration::from_millis(40));
        let begun = Instant::now();
        let served = in_time("it returns", move || server.handle_request().unwrap());
        assert!(!served);
        assert!(begun.elapsed() >= Duration::from_millis(40));
        assert_eq!(notes.iter().collect::<Vec<_>>(), ["handle_timeout"]);
    }
}

/// Python's `timeout = 0`.
#[test]
fn with_a_request_timeout_of_zero_handle_request_serves_a_waiting_client_or_returns_at_once() {
    let (hooks, notes) = RecordingHooks::new();
    let builder = TcpServer::builder(LOCAL).unwrap().hooks(hooks);
    let mut server = builder.serve_blocking(each(echo_lines)).unwrap();
    server.request_timeout(Duration::ZERO);
    for _ in 0..2 {
        let mut client = connect(inet(&server));
        client.send("waiting\n").end();
        assert!(server.handle_request().unwrap());
        assert_eq!(client.read_to_end(), b"waiting\n");
        assert!(!server.handle_request().unwrap());
        assert_eq!(expect_next(&notes), "handle_timeout");
    }
}

#[test]
fn the_request_timeout_does_not_end_serve_forever() {
    let (hooks, notes) = RecordingHooks::new();
    let builder = TcpServer::builder(LOCAL).unwrap().hooks(hooks);
    let mut server = builder.serve_blocking(each(echo_lines)).unwrap();
    server.request_timeout(Duration::from_millis(1));
    let server = start_server(server);
    let mut client = server.connect();
    client.expect_silence();
    client.send("there\n").expect_reply("there\n").end().expect_closed();
    drop(server);
    assert_eq!(notes.iter().count(), 0);
}

#[test]
fn a_long_request_is_not_ended_by_the_request_timeout() {
    let mut server = TcpServer::bind(LOCAL, each(echo_lines)).unwrap();
    server.request_timeout(Duration::from_millis(20));
    let mut client = connect(inet(&server));
    let serving = thread::spawn(move || server.handle_request().unwrap());
    client.expect_silence();
    client.send("late\n").expect_reply("late\n").end().expect_closed();
    assert!(in_time("it is served", move || serving.join().unwrap()));
}

// A stream's timeout

#[test]
fn a_read_repeated_after_a_timeout_loses_no_bytes() {
    for mode in BLOCKING {
        let (report, reports) = mpsc::channel();
        let handle = move |request: &mut Request<'_>| -> HandlerResult {
            request.set_timeout(Duration::from_millis(10));
            loop {
                match request.read_line() {
                    Err(error) if error.kind() == ErrorKind::TimedOut => {
                        let _ = report.send(());
                    }
                    line => break Ok(request.write_all(&line?.unwrap_or_default())?),
                }
            }
        };
        let builder = Server::tcp(LOCAL).unwrap().mode(blocking(mode));
        let server = start_server(builder.serve_blocking(each(handle)).unwrap());
        let mut client = server.connect();
        for part in ["in ", "three ", "parts"] {
            client.send(part);
            // At least one of them began after the part was sent.
            expect_next(&reports);
            expect_next(&reports);
        }
        client.send("\n").expect_reply("in three parts").expect_closed();
    }
}

#[test]
fn a_write_to_a_peer_that_does_not_read_times_out_and_is_not_a_fault() {
    let (hooks, notes) = RecordingHooks::new();
    let handle = |request: &mut Request<'_>| -> HandlerResult {
        request.set_timeout(Duration::from_millis(50));
        // More than the socket buffers take if the client does not read.
        Ok(request.write_all(&vec![b'x'; 64 << 20])?)
    };
    let builder = ThreadingTcpServer::builder(LOCAL).unwrap().hooks(hooks);
    let server = start_server(builder.serve_blocking(each(handle)).unwrap());
    let client = server.connect();
    server.wait_for_no_connection();
    drop((server, client));
    assert_eq!(notes.iter().count(), 0, "a slow peer is not reported as a fault");
}

// service_actions

/// Hooks that report the calls of `service_actions`.
struct ReportActions(Sender<Instant>);

impl Hooks for ReportActions {
    fn service_actions(&mut self) {
        let _ = self.0.send(Instant::now());
    }

    fn wants_service_actions(&self) -> bool {
        true
    }
}

#[test]
fn service_actions_is_called_at_least_once_per_poll_interval() {
    let (report, reports) = mpsc::channel();
    let interval = Duration::from_millis(20);
    let builder =
        TcpServer::builder(LOCAL).unwrap().hooks(ReportActions(report)).poll_interval(interval);
    let server = start_server(builder.serve_blocking(each(echo_lines)).unwrap());
    let first = expect_next(&reports);
    for _ in 0..5 {
        expect_next(&reports);
    }
    // On a busy machine it takes longer; without a request never less.
    assert!(first.elapsed() >= interval * 4);
    drop(server);
}

#[test]
fn service_actions_is_called_after_each_request() {
    let (report, reports) = mpsc::channel();
    let interval = DEADLINE * 10;
    let builder =
        TcpServer::builder(LOCAL).unwrap().hooks(ReportActions(report)).poll_interval(interval);
    let server = start_server(builder.serve_blocking(each(echo_lines)).unwrap());
    for _ in 0..3 {
        server.connect().send("x\n").expect_reply("x\n").end().expect_closed();
        expect_next(&reports);
    }
    drop(server);
}

/// Python's loop wakes up every half second.
#[test]
fn an_idle_server_does_not_wake() {
    let modes = Mode::all().filter(|mode| mode.name() != "forking");
    let servers: Vec<_> = modes
        .map(|mode| {
            let builder = Server::tcp(LOCAL).unwrap().mode(mode);
            let make =
                |_: &Accepted<'_>| handler_fn(|bytes: &[u8], cx: &mut Context<'_>| cx.send(bytes));
            let server = start_server(builder.serve(make).unwrap());
            server.connect().send("x").expect_reply("x").end().expect_closed();
            server.wait_for_no_connection();
            (mode, server)
        })
        .collect();
    // Their last turns may not be over.
    thread::sleep(A_WHILE);
    let before: Vec<_> = servers.iter().map(|(_, server)| server.counters().turns).collect();
    thread::sleep(Duration::from_millis(800));
    for ((mode, server), before) in servers.iter().zip(before) {
        assert_eq!(server.counters().turns, before, "{mode}");
    }
}

/// Python's `shutdown` takes up to half a second.
#[test]
fn shutdown_takes_effect_at_once() {
    for mode in BLOCKING {
        let mut quickest = DEADLINE;
        for _ in 0..20 {
            let builder = Server::tcp(LOCAL).unwrap().mode(blocking(mode));
            let server = start_server(builder.serve_blocking(each(echo_lines)).unwrap());
            let handle = server.handle();
            wait_until("it runs", || handle.is_running());
            let begun = Instant::now();
            handle.shutdown();
            assert!(handle.wait_timeout(DEADLINE));
            quickest = quickest.min(begun.elapsed());
        }
        // The machine may be busy, but not in all 20 runs.
        assert!(quickest < Duration::from_millis(5), "{mode}: {quickest:?}");
    }
}

// Writing

#[test]
fn a_write_buffer_is_sent_at_a_flush_when_it_is_full_and_at_the_end() {
    let handle = |request: &mut Request<'_>| -> HandlerResult {
        request.set_write_buffer(10);
        request.write_all(b"kept")?;
        request.read_line()?;
        request.flush()?;
        request.read_line()?;
        request.write_all(b"12345")?;
        request.write_all(b"67890")?;
        request.read_line()?;
        Ok(request.write_all(b"rest")?)
    };
    let server = start_server(ThreadingTcpServer::bind(LOCAL, each(handle)).unwrap());
    let mut client = server.connect();
    client.expect_silence();
    client.send("flush\n").expect_reply("kept");
    client.send("fill\n").expect_reply("1234567890").expect_silence();
    client.send("end\n").expect_reply("rest").expect_closed();
}

#[test]
fn the_write_buffer_is_sent_even_if_the_handler_fails() {
    let handle = |request: &mut Request<'_>| -> HandlerResult {
        request.set_write_buffer(100);
        request.write_all(b"last words")?;
        Err("and no more")?
    };
    let server = start_server(ThreadingTcpServer::bind(LOCAL, each(handle)).unwrap());
    server.connect().expect_reply("last words").expect_closed();
}

#[test]
fn nagle_is_off_and_can_be_turned_on() {
    let (report, reports) = mpsc::channel();
    let handle = move |request: &mut Request<'_>| -> HandlerResult {
        let before = SockRef::from(&*request).tcp_nodelay()?;
        request.set_nodelay(!before)?;
        Ok(report.send((before, SockRef::from(&*request).tcp_nodelay()?))?)
    };
    for nodelay in [true, false] {
        let builder = TcpServer::builder(LOCAL).unwrap();
        let builder = if nodelay { builder } else { builder.nodelay(false) };
        let server = start_server(builder.serve_blocking(each(handle.clone())).unwrap());
        server.connect().expect_closed();
        assert_eq!(expect_next(&reports), (nodelay, !nodelay));
    }
}

// Binding

/// In Python it takes a subclass with another `address_family`.
#[test]
fn an_ipv6_address_works_with_the_same_server_type() {
    let (report, reports) = mpsc::channel();
    let handle = move |request: &mut Request<'_>| -> HandlerResult {
        report.send(request.client_address().inet())?;
        echo_lines(request)
    };
    let server = start_server(TcpServer::bind("[::1]:0", each(handle)).unwrap());
    assert!(server.address().is_ipv6());
    let mut client = server.connect();
    client.send("six\n").expect_reply("six\n");
    assert_eq!(expect_next(&reports), Some(client.stream.local_addr().unwrap()));
    client.end().expect_closed();
}

/// Python binds only IPv4 addresses unless `address_family` says otherwise.
#[test]
fn localhost_is_bound_with_its_ipv4_address() {
    let resolved: Vec<_> = "localhost:0".to_socket_addrs().unwrap().collect();
    if !resolved.iter().any(SocketAddr::is_ipv4) {
        eprintln!("skipped: localhost has no IPv4 address: {resolved:?}");
        return;
    }
    let server = TcpServer::bind("localhost:0", each(echo_lines)).unwrap();
    assert!(inet(&server).is_ipv4(), "{}", server.local_addr());
}

/// The address of an IPv4 peer has the form `127.0.0.1` and not `::ffff:127.0.0.1`.
#[test]
fn a_dual_stack_server_accepts_both_families_and_other_servers_do_not() {
    let handle = |request: &mut Request<'_>| {
        let peer = request.client_address().to_string();
        Ok(request.write_all(peer.as_bytes())?)
    };
    let builder = TcpServer::builder("[::]:0").unwrap().dual_stack(true);
    let server = start_server(builder.serve_blocking(each(handle)).unwrap());
    let port = server.address().port();
    let mut client = connect(SocketAddr::from(([127, 0, 0, 1], port)));
    let own = client.stream.local_addr().unwrap().to_string();
    client.expect_reply(own).expect_closed();
    // Without the option, IPv4 connections are refused.
    let alone = start_server(TcpServer::bind("[::]:0", each(handle)).unwrap());
    let port = alone.address().port();
    let refused = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn allow_reuse_address_is_on_for_tcp_and_off_for_udp() {
    let reuses = |server: Server| {
        let id = server.listeners()[0];
        SockRef::from(&server.listener_fd(id).unwrap()).reuse_address().unwrap()
    };
    assert!(reuses(TcpServer::bind(LOCAL, each(echo_lines)).unwrap()));
    assert!(!reuses(UdpServer::bind(LOCAL, each(echo_lines)).unwrap()));
    let off = TcpServer::builder(LOCAL).unwrap().reuse_address(false);
    assert!(!reuses(off.serve_blocking(each(echo_lines)).unwrap()));
    let on = UdpServer::builder(LOCAL).unwrap().reuse_address(true);
    assert!(reuses(on.serve_blocking(each(echo_lines)).unwrap()));
}

/// This is what the flag is for.
#[test]
fn a_server_binds_its_address_again_while_old_connections_are_in_time_wait() {
    let handle = |_: &mut Request<'_>| Ok(());
    let server = start_server(TcpServer::bind(LOCAL, each(handle)).unwrap());
    let address = server.address();
    // The side that closes first is in TIME_WAIT.
    server.connect().expect_closed();
    drop(server);
    let again = TcpServer::bind(address, each(handle)).unwrap();
    assert_eq!(inet(&again), address);
}

#[test]
fn two_servers_share_a_port_only_with_allow_reuse_port() {
    let bind = |address: SocketAddr, reuse: bool| {
        let builder = TcpServer::builder(address).unwrap().reuse_port(reuse);
        builder.serve_blocking(each(echo_lines))
    };
    let first = bind(LOCAL.parse().unwrap(), true).unwrap();
    let second = bind(inet(&first), true).unwrap();
    assert_eq!(inet(&first), inet(&second));
    let refused = bind(inet(&first), false).unwrap_err();
    assert_eq!(refused.io_kind(), Some(ErrorKind::AddrInUse));
}

/// The kernel keeps one more connection than requested.
#[test]
#[cfg(target_os = "linux")]
fn request_queue_size_limits_the_connections_that_wait_in_the_kernel() {
    let waiting = |server: Server, most: usize| {
        let limit = Duration::from_millis(200);
        let connected: Vec<_> = (0..most)
            .map_while(|_| TcpStream::connect_timeout(&inet(&server), limit).ok())
            .collect();
        connected.len()
    };
    let short = TcpServer::builder(LOCAL).unwrap().request_queue_size(2);
    assert_eq!(waiting(short.serve_blocking(each(echo_lines)).unwrap(), 10), 3);
    let usual = TcpServer::bind(LOCAL, each(echo_lines)).unwrap();
    assert_eq!(waiting(usual, 100), 100, "the default is larger than Python's five");
}

/// Python's `bind_and_activate=False`.
#[test]
fn a_builder_can_bind_first_and_listen_later() {
    let builder = TcpServer::builder(LOCAL).unwrap();
    assert_eq!((builder.address(), builder.socket().is_none()), (None, true));
    let bound = builder.bind().unwrap();
    let address = bound.address().unwrap().inet().unwrap();
    assert_ne!(address.port(), 0);
    SockRef::from(&bound.socket().unwrap()).set_keepalive(true).unwrap();
    let refused = TcpStream::connect_timeout(&address, DEADLINE).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let server = start_server(bound.serve_blocking(each(echo_lines)).unwrap());
    assert_eq!(server.address(), address);
    server.connect().send("now\n").expect_reply("now\n").end().expect_closed();
}

/// Python wants the pair of a host and a port, where the empty host is every IPv4 address.
#[test]
fn an_address_is_a_pair_or_a_text_and_0_0_0_0_is_every_ipv4_address() {
    for server in [
        TcpServer::bind(("127.0.0.1", 0), each(echo_lines)),
        TcpServer::bind(LOCAL, each(echo_lines)),
        TcpServer::bind(SocketAddr::from(([127, 0, 0, 1], 0)), each(echo_lines)),
    ] {
        assert_eq!(inet(&server.unwrap()).ip().to_string(), "127.0.0.1");
    }
    let server = start_server(TcpServer::bind("0.0.0.0:0", each(echo_lines)).unwrap());
    assert!(server.address().ip().is_unspecified());
    // All of 127.0.0.0/8 are addresses of this host, on Linux.
    let hosts = if cfg!(target_os = "linux") {
        [[127, 0, 0, 1], [127, 1, 2, 3]]
    } else {
        [[127, 0, 0, 1]; 2]
    };
    for host in hosts {
        let mut client = connect(SocketAddr::from((host, server.address().port())));
        client.send("here\n").expect_reply("here\n").end().expect_closed();
    }
    assert!(TcpServer::bind(":0", each(echo_lines)).is_err(), "a text needs its host");
}

// Datagrams

#[test]
fn a_datagram_longer_than_max_packet_size_is_truncated_and_reported() {
    let handle = |request: &mut Request<'_>| -> HandlerResult {
        let (length, cut) = (request.packet().unwrap().len(), request.is_truncated());
        Ok(write!(request, "{length} {cut}")?)
    };
    let builder = UdpServer::builder(LOCAL).unwrap().max_packet_size(8192);
    let cutting = start_server(builder.serve_blocking(each(handle)).unwrap());
    let client = udp_client(cutting.address());
    for (length, reply) in [(9000, "8192 true"), (8192, "8192 false"), (0, "0 false")] {
        client.send(&pattern(length)).unwrap();
        assert_eq!(String::from_utf8(receive(&client)).unwrap(), reply);
    }
    // By default, unlike in Python, datagrams of any length are received whole.
    let whole = start_server(UdpServer::bind(LOCAL, each(handle)).unwrap());
    let client = udp_client(whole.address());
    client.send(&pattern(65_507)).unwrap();
    assert_eq!(receive(&client), b"65507 false");
}

/// Python sends an empty datagram if nothing was written, and what was written if `handle` failed.
#[test]
fn a_datagram_reply_is_sent_only_if_the_handler_wrote_and_succeeded() {
    let (hooks, notes) = RecordingHooks::new();
    let handle = |request: &mut Request<'_>| -> HandlerResult {
        let packet = request.packet().unwrap().to_vec();
        match &packet[..] {
            b"nothing" => {}
            b"empty" => request.write_all(b"")?,
            b"fail" => {
                request.write_all(b"half of an")?;
                Err("answer")?;
            }
            _ => {
                request.write_all(b"in ")?;
                request.write_all(b"one")?;
            }
        }
        Ok(())
    };
    let builder = UdpServer::builder(LOCAL).unwrap().hooks(hooks);
    let server = start_server(builder.serve_blocking(each(handle)).unwrap());
    let client = udp_client(server.address());
    for request in ["nothing", "fail", "other", "nothing", "empty", "other"] {
        client.send(request.as_bytes()).unwrap();
    }
    // An unexpected reply would arrive in between.
    assert_eq!(receive(&client), b"in one");
    assert_eq!(expect_next(&notes), "handle_error: handler failed: answer");
    assert_eq!(receive(&client), b"");
    assert_eq!(receive(&client), b"in one");
}

#[test]
fn reading_a_datagram_by_lines_ends_at_its_end_without_waiting() {
    let handle = |request: &mut Request<'_>| -> HandlerResult {
        let mut lines = Vec::new();
        while let Some(line) = request.rfile().read_line()? {
            lines.push(line);
        }
        Ok(request.wfile().write_all(&lines.join(&b'|'))?)
    };
    let server = start_server(UdpServer::bind(LOCAL, each(handle)).unwrap());
    let client = udp_client(server.address());
    client.send(b"one\ntwo\r\nthree").unwrap();
    assert_eq!(receive(&client), b"one|two|three");
}

/// In Python, `self.socket` of a datagram handler is the server's socket.
#[test]
fn a_datagram_handler_can_use_the_socket_of_its_server() {
    let (report, reports) = mpsc::channel();
    let handle = move |request: &mut Request<'_>| -> HandlerResult {
        let socket = SockRef::from(&*request);
        Ok(report.send((socket.local_addr()?.as_socket(), socket.r#type()?))?)
    };
    let server = start_server(UdpServer::bind(LOCAL, each(handle)).unwrap());
    udp_client(server.address()).send(b"x").unwrap();
    assert_eq!(expect_next(&reports), (Some(server.address()), Type::DGRAM));
}

// The order of a handler's methods

/// A request handler that records its calls, and fails in one of them.
struct RecordingHandler {
    fail_in: &'static str,
    hooks: RecordingHooks,
}

impl RecordingHandler {
    fn call(&self, method: &str) -> HandlerResult {
        self.hooks.record(method);
        if self.fail_in == method { Err(method)? } else { Ok(()) }
    }
}

impl RequestHandler for RecordingHandler {
    fn setup(&mut self, _: &mut Request<'_>) -> HandlerResult {
        self.call("setup")
    }

    fn handle(&mut self, _: &mut Request<'_>) -> HandlerResult {
        self.call("handle")
    }

    fn finish(&mut self, _: &mut Request<'_>) -> HandlerResult {
        self.call("finish")
    }
}

/// The recorded calls, in order, if the method `fail_in` fails.
fn calls_if_failing_in(fail_in: &'static str) -> Vec<String> {
    let (hooks, notes) = RecordingHooks::new();
    let handlers = hooks.clone();
    let builder = TcpServer::builder(LOCAL).unwrap().hooks(hooks);
    let make = move |_: &Accepted<'_>| RecordingHandler { fail_in, hooks: handlers.clone() };
    let server = start_server(builder.serve_blocking(make).unwrap());
    server.connect().expect_closed();
    drop(server);
    notes.iter().collect()
}

#[test]
fn setup_handle_and_finish_are_called_in_this_order() {
    assert_eq!(calls_if_failing_in("nothing"), ["setup", "handle", "finish"]);
}

#[test]
fn after_setup_fails_handle_and_finish_are_not_called() {
    assert_eq!(calls_if_failing_in("setup"), ["setup", "handle_error: handler failed: setup"]);
}

#[test]
fn after_handle_fails_finish_is_called() {
    let error = "handle_error: handler failed: handle";
    assert_eq!(calls_if_failing_in("handle"), ["setup", "handle", "finish", error]);
}

#[test]
fn a_failure_of_finish_is_reported() {
    let error = "handle_error: handler failed: finish";
    assert_eq!(calls_if_failing_in("finish"), ["setup", "handle", "finish", error]);
}

#[test]
fn each_request_has_a_handler_of_its_own() {
    let mut made = 0;
    let make = move |_: &Accepted<'_>| {
        made += 1;
        let number = made;
        Do(move |request: &mut Request<'_>| Ok(write!(request, "{number}")?))
    };
    let server = start_server(TcpServer::bind(LOCAL, make).unwrap());
    for number in 1..=3 {
        server.connect().expect_reply(number.to_string()).expect_closed();
    }
}

/// Python's handlers have a reference to the server.
#[test]
fn a_request_has_the_server_address_and_the_state_that_its_factory_shares() {
    for mode in BLOCKING {
        let count = Arc::new(Mutex::new(0));
        let handle = move |request: &mut Request<'_>| -> HandlerResult {
            *count.lock().unwrap() += 1;
            let number = *count.lock().unwrap();
            let address = request.server_address().clone();
            Ok(write!(request, "{number} {address}")?)
        };
        let builder = Server::tcp(LOCAL).unwrap().mode(blocking(mode));
        let server = start_server(builder.serve_blocking(each(handle)).unwrap());
        for number in 1..=3 {
            let expected = format!("{number} tcp://{}", server.address());
            server.connect().expect_reply(expected).expect_closed();
        }
    }
}

/// As `recv` in Python, which returns `b''` at the end.
#[test]
fn read_returns_what_has_arrived_and_0_at_the_end() {
    let (report, reports) = mpsc::channel();
    let handle = move |request: &mut Request<'_>| -> HandlerResult {
        let mut buffer = [0; 1024];
        loop {
            let count = request.read(&mut buffer)?;
            report.send(buffer[..count].to_vec())?;
            if count == 0 {
                return Ok(());
            }
        }
    };
    let server = start_server(TcpServer::bind(LOCAL, each(handle)).unwrap());
    let mut client = server.connect();
    for part in ["hello", "学会", "x"] {
        client.send(part);
        assert_eq!(expect_next(&reports), part.as_bytes());
    }
    client.send("y".repeat(1025));
    assert_eq!(expect_next(&reports).len() + expect_next(&reports).len(), 1025);
    client.end();
    assert_eq!(expect_next(&reports), b"");
    client.expect_closed();
}

/// `decode` of a chunk fails where a character is cut; a line holds whole characters.
#[test]
fn a_line_whose_characters_arrive_in_parts_can_be_decoded() {
    let handle = |request: &mut Request<'_>| -> HandlerResult {
        while let Some(line) = request.read_line()? {
            writeln!(request, "<{}>", String::from_utf8(line)?)?;
        }
        Ok(())
    };
    let server = start_server(TcpServer::bind(LOCAL, each(handle)).unwrap());
    let mut client = server.connect();
    let text = "学会了吗\n".as_bytes();
    for byte in text {
        client.send([*byte]);
    }
    client.expect_reply("<学会了吗>\n").end().expect_closed();
    // What is not UTF-8 is an error of the handler, which ends this connection, as in Python.
    server.connect().send(b"\xff\n").expect_closed();
    server.connect().send("x\n").expect_reply("<x>\n");
}

#[test]
fn close_in_a_handler_waits_until_its_answer_has_gone_out() {
    let answer = Arc::new(pattern(8 << 20)); // more than socket buffers hold
    let shared = answer.clone();
    let make = move |_: &Accepted<'_>| {
        let answer = shared.clone();
        handler_fn(move |_: &[u8], cx: &mut Context<'_>| {
            cx.send(&answer)?;
            cx.close();
            Ok(())
        })
    };
    for mode in ["reactor", "offload", "inline", "threading", "pool"] {
        let builder = Server::tcp(LOCAL).unwrap().mode(mode.parse::<Mode>().unwrap());
        let server = start_server(builder.serve(make.clone()).unwrap());
        let mut client = server.connect();
        client.send("please").expect_reply(&*answer).expect_closed();
    }
}

/// What Python shares with `self.server` or a global: an `Arc` in the closure. Without a lock, two
/// of these additions would at times be one.
#[test]
fn state_that_the_closure_shares_is_one_for_all_threads() {
    const CLIENTS: usize = 8;
    let count = Arc::new(Mutex::new(0));
    let shared = count.clone();
    let handle = move |request: &mut Request<'_>| -> HandlerResult {
        while request.read_line()?.is_some() {
            *shared.lock().unwrap() += 1;
        }
        Ok(())
    };
    let server = start_server(ThreadingTcpServer::bind(LOCAL, each(handle)).unwrap());
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("one\n".repeat(100)).end();
    }
    clients.iter_mut().for_each(|client| client.expect_closed());
    server.stop();
    assert_eq!(*count.lock().unwrap(), CLIENTS * 100);
}

/// The buffer of `rfile`.
#[test]
fn a_read_takes_at_most_8_kib_from_the_socket() {
    const SENT: usize = 20_000;
    let handle = |request: &mut Request<'_>| -> HandlerResult {
        let mut all = vec![MaybeUninit::uninit(); SENT];
        let flags = libc::MSG_PEEK | libc::MSG_WAITALL;
        SockRef::from(&*request).recv_with_flags(&mut all, flags)?;
        request.read_line()?;
        let left = SockRef::from(&*request).peek(&mut all)?;
        Ok(write!(request, "{}", SENT - left)?)
    };
    let server = start_server(TcpServer::bind(LOCAL, each(handle)).unwrap());
    let mut client = server.connect();
    client.send("line\n").send("x".repeat(SENT - 5));
    client.expect_reply("8192");
}

/// Python's `readline` has no limit.
#[test]
fn lines_that_arrive_together_are_read_one_by_one_and_an_overlong_line_is_an_error() {
    let (hooks, notes) = RecordingHooks::new();
    let builder = ThreadingTcpServer::builder(LOCAL).unwrap().hooks(hooks);
    let server = start_server(builder.serve_blocking(each(echo_lines)).unwrap());
    let mut client = server.connect();
    let longest = "x".repeat(Request::MAX_LINE);
    client.send("one\ntwo\r\n\n").send(&longest).send("\nlast").end();
    client.expect_reply("one\ntwo\n\n").expect_reply(&longest).expect_reply("\nlast\n");
    client.expect_closed();
    let mut endless = server.connect();
    endless.send(&longest).send("xx").expect_closed();
    assert!(expect_next(&notes).contains("longer than 65536 bytes"));
}

// Hooks

#[test]
fn verify_request_decides_which_connections_are_served_and_which_are_closed() {
    struct Every2nd(usize);

    impl Hooks for Every2nd {
        fn verify_request(&mut self, _: &Peer) -> bool {
            self.0 += 1;
            self.0.is_multiple_of(2)
        }
    }

    for mode in BLOCKING {
        let builder = Server::tcp(LOCAL).unwrap().mode(blocking(mode)).hooks(Every2nd(0));
        let server = start_server(builder.serve_blocking(each(echo_lines)).unwrap());
        for _ in 0..3 {
            server.connect().expect_closed();
            server.connect().send("yes\n").expect_reply("yes\n").end().expect_closed();
        }
    }
}

#[test]
fn verify_request_is_called_for_datagrams_too() {
    struct AllowOne(Arc<Mutex<Option<Peer>>>);

    impl Hooks for AllowOne {
        fn verify_request(&mut self, peer: &Peer) -> bool {
            self.0.lock().unwrap().as_ref() == Some(peer)
        }
    }

    let known = Arc::new(Mutex::new(None));
    let handle = |request: &mut Request<'_>| Ok(request.write_all(b"welcome")?);
    let builder = UdpServer::builder(LOCAL).unwrap().hooks(AllowOne(known.clone()));
    let server = start_server(builder.serve_blocking(each(handle)).unwrap());
    let (stranger, friend) = (udp_client(server.address()), udp_client(server.address()));
    *known.lock().unwrap() = Some(friend.local_addr().unwrap().into());
    stranger.send(b"hello").unwrap();
    friend.send(b"hello").unwrap();
    assert_eq!(receive(&friend), b"welcome");
    stranger.set_nonblocking(true).unwrap();
    assert_eq!(stranger.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
    let (server, _) = server.stop();
    assert_eq!(server.counters().refused_by_hook, 1);
}

/// In Python, `get_request` is overridden to set a connection's options, and raises an exception to
/// refuse it.
#[test]
fn on_accept_sets_the_options_of_a_connection_or_refuses_it() {
    struct Preparing(usize);

    impl Hooks for Preparing {
        fn on_accept(&mut self, connection: BorrowedFd<'_>, peer: &Peer) -> io::Result<()> {
            self.0 += 1;
            assert!(peer.inet().is_some());
            if self.0 == 1 {
                return Err(io::Error::other("refused"));
            }
            SockRef::from(&connection).set_keepalive(true)
        }
    }

    for mode in BLOCKING {
        let handle = |request: &mut Request<'_>| -> HandlerResult {
            let keepalive = SockRef::from(&*request).keepalive()?;
            Ok(write!(request, "{keepalive}")?)
        };
        let builder = Server::tcp(LOCAL).unwrap().mode(blocking(mode)).hooks(Preparing(0));
        let server = start_server(builder.serve_blocking(each(handle)).unwrap());
        server.connect().expect_closed();
        server.connect().expect_reply("true").expect_closed();
    }
}

/// Hooks that record the calls made before a request is served.
struct RecordAccept(RecordingHooks);

impl Hooks for RecordAccept {
    fn on_accept(&mut self, _: BorrowedFd<'_>, _: &Peer) -> io::Result<()> {
        self.0.record("get_request");
        Ok(())
    }

    fn verify_request(&mut self, _: &Peer) -> bool {
        self.0.record("verify_request");
        true
    }
}

#[test]
fn on_accept_verify_request_and_the_factory_are_called_in_this_order() {
    for mode in BLOCKING {
        let (hooks, notes) = RecordingHooks::new();
        let handlers = hooks.clone();
        let make = move |_: &Accepted<'_>| {
            handlers.record("made");
            RecordingHandler { fail_in: "nothing", hooks: handlers.clone() }
        };
        let builder = Server::tcp(LOCAL).unwrap().mode(blocking(mode)).hooks(RecordAccept(hooks));
        let server = start_server(builder.serve_blocking(make).unwrap());
        server.connect().expect_closed();
        drop(server);
        let order = ["get_request", "verify_request", "made", "setup", "handle", "finish"];
        assert_eq!(notes.iter().collect::<Vec<_>>(), order, "{mode}");
    }
}

/// In Python, `finish_request` creates the handler, and an exception there ends only the request.
#[test]
fn a_factory_that_panics_ends_only_its_own_request() {
    for mode in BLOCKING {
        let (hooks, notes) = RecordingHooks::new();
        let mut made = 0;
        let make = move |_: &Accepted<'_>| {
            made += 1;
            assert_ne!(made, 1, "not the first");
            Do(echo_lines)
        };
        let builder = Server::tcp(LOCAL).unwrap().mode(blocking(mode)).hooks(hooks);
        let server = start_server(builder.serve_blocking(make).unwrap());
        server.connect().expect_closed();
        assert!(expect_next(&notes).contains("not the first"), "{mode}");
        server.connect().send("x\n").expect_reply("x\n").end().expect_closed();
    }
}

// Stopping, and what a stop waits for

#[test]
fn a_handler_can_stop_its_server_in_every_mode() {
    for mode in Mode::all() {
        if mode.name() == "forking" {
            continue; // has its own test, below
        }
        let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
        let make = |_: &Accepted<'_>| {
            handler_fn(|line: &[u8], cx: &mut Context<'_>| {
                cx.stop_server();
                cx.send(line)
            })
        };
        let server = start_server(builder.serve(make).unwrap());
        let mut client = server.connect();
        client.send("stop\n").expect_reply("stop\n").expect_closed();
        let (_server, report) = server.join();
        assert_eq!(report.aborted, 0, "{mode}");
    }
}

#[test]
fn a_request_handler_can_stop_its_server_in_every_mode() {
    for mode in BLOCKING {
        let builder = Server::tcp(LOCAL).unwrap().mode(blocking(mode));
        let server = start_server(builder.serve_blocking(each(stop_on_command)).unwrap());
        let mut client = server.connect();
        // `stop_server` returns at once, and the handler continues.
        client.send("stop\nmore\n").expect_reply("stop\nmore\n").end().expect_closed();
        let (_server, report) = server.join();
        assert_eq!(report.aborted, 0, "{mode}");
    }
}

#[test]
fn a_forked_handler_can_stop_its_server() {
    let process = start("stop_on_command");
    let mut client = connect(process.line().parse().unwrap());
    client.send("stop\nmore\n").expect_reply("stop\nmore\n").end().expect_closed();
    assert_eq!(process.line_after("cut"), "0");
    process.expect_end();
}

#[test]
fn a_stopped_server_serves_again_and_repeated_stop_requests_count_once() {
    for mode in BLOCKING {
        let builder = Server::tcp(LOCAL).unwrap().mode(blocking(mode));
        let mut server = builder.serve_blocking(each(echo_lines)).unwrap();
        for _ in 0..3 {
            let running = start_server(server);
            running.connect().send("x\n").expect_reply("x\n").end().expect_closed();
            let handle = running.handle();
            handle.shutdown();
            handle.shutdown();
            (server, _) = running.join();
            // In Python this call would end the next run.
            handle.shutdown();
        }
    }
}

/// In Python it would never return.
#[test]
fn waiting_for_a_server_that_does_not_serve_returns_at_once() {
    let server = TcpServer::bind(LOCAL, each(echo_lines)).unwrap();
    let handle = server.shutdown_handle();
    in_time("it returns", move || handle.wait());
}

/// A handler that reports when it has begun, and runs until the test releases it.
fn held_handler()
-> (impl FnMut(&Accepted<'_>) -> Do<Held> + Send + 'static, Receiver<()>, Sender<()>) {
    let (begun, beginnings) = mpsc::channel();
    let (go, gate) = mpsc::channel();
    let gate = Arc::new(Mutex::new(gate));
    let make = move |_: &Accepted<'_>| {
        let (begun, gate) = (begun.clone(), gate.clone());
        let handle: Held = Box::new(move |request| {
            begun.send(())?;
            gate.lock().unwrap().recv_timeout(DEADLINE)?;
            Ok(request.write_all(b"done")?)
        });
        Do(handle)
    };
    (make, beginnings, go)
}

type Held = Box<dyn FnMut(&mut Request<'_>) -> HandlerResult + Send>;

#[test]
fn a_stop_waits_for_threads_unless_daemon_threads_is_set_or_block_on_close_is_not() {
    let usual = Threading::default();
    for (mode, waits) in
        [(usual, true), (usual.daemon_threads(true), false), (usual.block_on_close(false), false)]
    {
        let (make, begun, go) = held_handler();
        let builder = Server::tcp(LOCAL).unwrap().mode(mode);
        let mut server = builder.serve_blocking(make).unwrap();
        server.drain_timeout(DEADLINE * 2);
        let server = start_server(server);
        let mut client = server.connect();
        expect_next(&begun);
        let handle = server.handle();
        handle.shutdown();
        assert_eq!(handle.wait_timeout(if waits { A_WHILE } else { DEADLINE }), !waits);
        // In both cases the request is completed.
        go.send(()).unwrap();
        client.expect_reply("done").expect_closed();
        let (server, report) = server.join();
        assert_eq!((report.finished, report.aborted), (usize::from(waits), 0));
        server.server_close();
    }
}

/// Python's `server_close` has no time limit.
#[test]
fn a_stop_waits_for_threads_no_longer_than_the_drain_deadline() {
    let builder = ThreadingTcpServer::builder(LOCAL).unwrap();
    let mut server = builder.serve_blocking(each(echo_lines)).unwrap();
    server.drain_timeout(Duration::from_millis(50));
    let server = start_server(server);
    let mut client = server.connect();
    client.send("hello\n").expect_reply("hello\n");
    let (_server, report) = server.stop();
    assert_eq!(report.aborted, 1);
    client.expect_gone();
}

/// Here the loop's own thread serves the request.
#[test]
fn an_inline_server_can_be_stopped_although_its_client_stays() {
    let mut server = TcpServer::bind(LOCAL, each(echo_lines)).unwrap();
    server.drain_timeout(Duration::from_millis(50));
    let server = start_server(server);
    let mut client = server.connect();
    client.send("hello\n").expect_reply("hello\n");
    let (_server, report) = server.stop();
    assert_eq!((report.idle, report.finished, report.aborted), (0, 0, 1));
    client.expect_gone();
}

#[test]
fn the_stop_report_counts_a_request_served_inline() {
    let by_message = || {
        let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(Inline);
        let make = |_: &Accepted<'_>| handler_fn(|line: &[u8], cx: &mut Context<'_>| cx.send(line));
        start_server(builder.serve(make).unwrap())
    };
    // An idle connection.
    let server = by_message();
    let mut idle = server.connect();
    idle.send("hello\n").expect_reply("hello\n");
    let (_server, report) = server.stop();
    assert_eq!((report.idle, report.finished, report.aborted), (1, 0, 0));
    idle.expect_closed();
    // Half a line is buffered.
    let server = by_message();
    let mut busy = server.connect();
    busy.send("hello\nhal").expect_reply("hello\n");
    let stopping = thread::spawn(move || server.stop().1);
    busy.expect_silence();
    busy.send("f\n").expect_reply("half\n").expect_closed();
    let report = in_time("it stops", move || stopping.join().unwrap());
    assert_eq!((report.idle, report.finished, report.aborted), (0, 1, 0));
    // A handler returns before the deadline.
    let (make, begun, go) = held_handler();
    let server = start_server(TcpServer::bind(LOCAL, make).unwrap());
    let mut client = server.connect();
    expect_next(&begun);
    server.handle().shutdown();
    go.send(()).unwrap();
    client.expect_reply("done").expect_closed();
    let (_server, report) = server.join();
    assert_eq!((report.idle, report.finished, report.aborted), (0, 1, 0));
    // No connection.
    let (_server, report) = by_message().stop();
    assert_eq!((report.idle, report.finished, report.aborted), (0, 0, 0));
}

/// With a request handler, with a message handler, and with a handler that only writes.
#[test]
fn an_inline_server_can_be_stopped_although_its_client_never_stops_sending() {
    let by_request = TcpServer::bind(LOCAL, each(echo_lines)).unwrap();
    let by_message = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(Inline);
    let make = |_: &Accepted<'_>| handler_fn(|line: &[u8], cx: &mut Context<'_>| cx.send(line));
    // Never reads.
    let write_only = |request: &mut Request<'_>| loop {
        request.write_all(b"hello\n")?;
    };
    let by_writing = TcpServer::bind(LOCAL, each(write_only)).unwrap();
    for mut server in [by_request, by_message.serve(make).unwrap(), by_writing] {
        server.drain_timeout(Duration::from_millis(50));
        let server = start_server(server);
        let mut client = server.connect();
        client.send("hello\n").expect_reply("hello\n");
        let mut writer = client.stream.try_clone().unwrap();
        let writing =
            thread::spawn(move || while writer.write_all(&b"more\n".repeat(10_000)).is_ok() {});
        let mut reader = client.stream.try_clone().unwrap();
        let reading = thread::spawn(move || io::copy(&mut reader, &mut io::sink()));
        let (_server, _report) = server.stop();
        writing.join().unwrap();
        let _ = reading.join().unwrap();
    }
}

#[test]
fn an_inline_server_can_stop_with_the_longest_drain_timeout() {
    let mut server = TcpServer::bind(LOCAL, each(echo_lines)).unwrap();
    server.drain_timeout(Duration::MAX);
    let server = start_server(server);
    let mut client = server.connect();
    client.send("hello\n").expect_reply("hello\n");
    server.handle().shutdown();
    client.expect_silence();
    client.send("bye\n").end().expect_reply("bye\n").expect_closed();
    server.join();
}

#[test]
fn server_close_closes_waiting_clients_without_a_reset() {
    for unread in [0, 5, 200_000] {
        let server = TcpServer::bind(LOCAL, each(echo_lines)).unwrap();
        let mut clients: Vec<_> = (0..5).map(|_| connect(inet(&server))).collect();
        for client in &mut clients {
            client.send(pattern(unread));
        }
        server.server_close();
        for client in &mut clients {
            client.expect_closed();
        }
    }
}

#[test]
fn a_running_server_that_is_dropped_stops_and_closes() {
    let server = ThreadingTcpServer::bind(LOCAL, each(echo_lines)).unwrap();
    let address = inet(&server);
    let running = server.spawn().unwrap();
    assert_eq!(running.local_addr().inet(), Some(address));
    let handle: ShutdownHandle = running.shutdown_handle();
    connect(address).send("x\n").expect_reply("x\n").end().expect_closed();
    in_time("it stops", move || drop(running));
    assert!(!handle.is_running());
    let refused = TcpStream::connect_timeout(&address, DEADLINE).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

// Slow clients

#[test]
fn a_slow_client_delays_the_others_only_under_inline() {
    for mode in Mode::all() {
        if mode.name() == "forking" {
            continue; // a process of its own, below
        }
        let limits = Limits::default().when_full(WhenFull::Wait);
        let builder =
            Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode).limits(limits);
        let make = |_: &Accepted<'_>| handler_fn(|line: &[u8], cx: &mut Context<'_>| cx.send(line));
        let server = start_server(builder.serve(make).unwrap());
        let (mut slow, mut quick) = (server.connect(), server.connect());
        slow.send("slow").expect_silence();
        quick.send("quick\n");
        if mode.name() == "inline" {
            quick.expect_silence();
        } else {
            quick.expect_reply("quick\n");
        }
        slow.send("ly\n").expect_reply("slowly\n").end().expect_closed();
        if mode.name() == "inline" {
            quick.expect_reply("quick\n");
        }
        quick.end().expect_closed();
    }
}

// Forking

#[test]
fn max_children_limits_the_requests_served_at_a_time() {
    let process = start("max_children");
    let pid = process.line_after("pid");
    let address = process.line().parse().unwrap();
    let (mut one, mut two) = (connect(address), connect(address));
    one.expect_reply("here\n");
    two.expect_reply("here\n");
    let mut three = connect(address);
    three.expect_silence();
    one.send("x\n").expect_reply("x\n").end().expect_closed();
    three.expect_reply("here\n").end().expect_closed();
    two.end().expect_closed();
    terminate(&pid);
    process.expect_end();
}

/// Not a test: the entry point of the processes that the tests start.
#[test]
fn entry_point_of_child_processes() {
    run_role(|role| match role {
        "stop_on_command" => {
            let mut server = ForkingTcpServer::bind(LOCAL, each(stop_on_command)).unwrap();
            print_line(inet(&server));
            print_line(format_args!("cut {}", server.serve_forever().unwrap().aborted));
        }
        "max_children" => {
            let builder = Server::tcp(LOCAL).unwrap().mode(Forking::default().max_children(2));
            let handle = |request: &mut Request<'_>| {
                request.write_all(b"here\n")?;
                echo_lines(request)
            };
            let mut server = builder.serve_blocking(each(handle)).unwrap();
            server.stop_on_signals().unwrap();
            print_line(format_args!("pid {}", std::process::id()));
            print_line(inet(&server));
            server.serve_forever().unwrap();
        }
        "forked_requests" => {
            let mut server = ForkingTcpServer::bind(LOCAL, each(echo_lines)).unwrap();
            print_line(inet(&server));
            for _ in 0..3 {
                print_line(format_args!("served {}", server.handle_request().unwrap()));
            }
        }
        "counter" => {
            let count = Arc::new(Mutex::new(0));
            let handle = move |request: &mut Request<'_>| -> HandlerResult {
                *count.lock().unwrap() += 1;
                let number = *count.lock().unwrap();
                Ok(write!(request, "{number}")?)
            };
            let mut server = ForkingTcpServer::bind(LOCAL, each(handle)).unwrap();
            print_line(inet(&server));
            server.serve_forever().unwrap();
        }
        _ => unreachable!("{role}"),
    });
}

#[test]
fn under_forking_no_request_sees_what_another_has_changed() {
    let process = start("counter");
    let address = process.line().parse().unwrap();
    for _request in 0..3 {
        let mut client = connect(address);
        client.expect_reply("1").expect_closed();
    }
}

// Sockets made by other code

#[test]
fn from_socket_serves_a_socket_that_was_bound_elsewhere() {
    let listener = TcpListener::bind(LOCAL).unwrap();
    let address = listener.local_addr().unwrap();
    let builder = Server::from_socket(listener).unwrap().mode(Inline);
    assert_eq!(builder.address().unwrap().inet(), Some(address));
    let server = start_server(builder.serve_blocking(each(echo_lines)).unwrap());
    connect(address).send("x\n").expect_reply("x\n").end().expect_closed();

    let socket = UdpSocket::bind(LOCAL).unwrap();
    let address = socket.local_addr().unwrap();
    let builder = Server::from_socket(socket).unwrap().mode(Inline);
    let handle = |request: &mut Request<'_>| {
        let packet = request.packet().unwrap().to_vec();
        Ok(request.write_all(&packet)?)
    };
    let _datagrams = start_server(builder.serve_blocking(each(handle)).unwrap());
    let client = udp_client(address);
    client.send(b"packet").unwrap();
    assert_eq!(receive(&client), b"packet");
    drop(server);
}

#[test]
fn the_file_of_a_unix_socket_bound_elsewhere_is_not_removed() {
    let path = std::env::temp_dir().join(format!("adopted-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let builder = Server::from_socket(listener).unwrap().mode(Inline);
    let server = builder.serve_blocking(each(echo_lines)).unwrap();
    assert_eq!(server.local_addr().path(), Some(&*path));
    let running = server.spawn().unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"x\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut reply = String::new();
    client.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, "x\n");
    in_time("it stops", move || drop(running));
    assert!(path.exists(), "only its creator removes it");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn from_socket_refuses_a_descriptor_that_is_not_a_socket() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(Server::from_socket(file).unwrap_err(), Error::Bind { .. }));
}

#[test]
fn add_connection_does_not_serve_a_descriptor_that_is_not_a_connection() {
    let mut server = TcpServer::bind(LOCAL, each(echo_lines)).unwrap();
    let id = server.listeners()[0];
    server.add_connection(id, std::fs::File::open("/dev/null").unwrap()).unwrap();
    server.add_connection(id, UdpSocket::bind(LOCAL).unwrap()).unwrap();
    let server = start_server(server);
    server.connect().send("x\n").expect_reply("x\n").end().expect_closed();
    server.wait_for_no_connection();
}

#[test]
fn from_socket_refuses_a_connected_socket() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert!(matches!(Server::from_socket(ours).unwrap_err(), Error::UnusableAddress { .. }));
}

/// Python's IDLE overrides three methods for this: it connects, and then serves that connection.
#[test]
fn connections_made_elsewhere_are_served() {
    for mode in BLOCKING {
        let builder = Server::without_listener().unwrap().mode(blocking(mode));
        let mut server = builder.serve_blocking(each(echo_lines)).unwrap();
        let id = server.listeners()[0];
        let mut clients = Vec::new();
        for _ in 0..3 {
            let (ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_read_timeout(Some(DEADLINE)).unwrap();
            server.add_connection(id, ours).unwrap();
            clients.push(theirs);
        }
        let server = server.spawn().unwrap();
        for client in &mut clients {
            client.write_all(b"over\n").unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
        }
        for client in &mut clients {
            let mut reply = String::new();
            client.read_to_string(&mut reply).unwrap();
            assert_eq!(reply, "over\n");
        }
        in_time("it stops", move || drop(server));
    }
}

#[test]
fn connections_added_by_add_connection_are_served_in_order() {
    let mut made = 0;
    let make = move |_: &Accepted<'_>| {
        made += 1;
        let number = made;
        Do(move |request: &mut Request<'_>| Ok(write!(request, "{number}")?))
    };
    let builder = Server::without_listener().unwrap().mode(Inline);
    let mut server = builder.serve_blocking(make).unwrap();
    let id = server.listeners()[0];
    for round in ["12", "34"] {
        let mut replies = String::new();
        let clients: Vec<_> = [(); 2]
            .map(|()| {
                let (ours, theirs) = UnixStream::pair().unwrap();
                server.add_connection(id, ours).unwrap();
                theirs
            })
            .into();
        for mut client in clients {
            assert!(server.handle_request().unwrap());
            client.set_read_timeout(Some(DEADLINE)).unwrap();
            client.read_to_string(&mut replies).unwrap();
        }
        assert_eq!(replies, round);
    }
}

#[test]
fn a_connection_cannot_be_added_to_a_datagram_service() {
    let mut server = UdpServer::bind(LOCAL, each(echo_lines)).unwrap();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let id = server.listeners()[0];
    assert!(matches!(server.add_connection(id, ours).unwrap_err(), Error::Mode(_)));
}

// One request at a time

/// Whether a descriptor is readable within `limit`.
fn is_readable(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: poll reads and writes one pollfd.
    match unsafe { libc::poll(&mut poll, 1, limit.as_millis() as i32) } {
        0 => false,
        1 => true,
        _ => panic!("{}", io::Error::last_os_error()),
    }
}

/// A server can so be part of another event loop.
#[test]
fn the_servers_descriptor_is_readable_when_a_client_waits() {
    for mode in BLOCKING {
        let builder = Server::tcp(LOCAL).unwrap().mode(blocking(mode));
        let mut server = builder.serve_blocking(each(echo_lines)).unwrap();
        let address = inet(&server);
        for _ in 0..2 {
            assert!(!is_readable(server.as_fd(), A_WHILE), "{mode}: no client waits");
            // Several clients wait before the first call.
            let mut clients: Vec<_> = (0..3).map(|_| connect(address)).collect();
            for client in &mut clients {
                client.send("x\n").end();
            }
            for client in &mut clients {
                assert!(is_readable(server.as_fd(), DEADLINE), "{mode}");
                assert!(server.handle_request().unwrap());
                assert_eq!(client.read_to_end(), b"x\n");
            }
            let mut client = connect(address);
            client.send("and one\n").end();
            assert!(is_readable(server.as_fd(), DEADLINE), "{mode}");
            assert!(server.handle_request().unwrap());
            assert_eq!(client.read_to_end(), b"and one\n");
        }
    }
}

#[test]
fn a_datagram_servers_descriptor_is_readable_when_a_datagram_waits() {
    let handle = |request: &mut Request<'_>| {
        let packet = request.packet().unwrap().to_vec();
        Ok(request.write_all(&packet)?)
    };
    let mut server = UdpServer::bind(LOCAL, each(handle)).unwrap();
    let client = udp_client(inet(&server));
    for _ in 0..2 {
        assert!(!is_readable(server.as_fd(), A_WHILE), "no datagram waits");
        for text in ["one", "two", "three"] {
            client.send(text.as_bytes()).unwrap();
        }
        for text in ["one", "two", "three"] {
            assert!(is_readable(server.as_fd(), DEADLINE));
            assert!(server.handle_request().unwrap());
            assert_eq!(receive(&client), text.as_bytes());
        }
    }
}

#[test]
fn handle_request_returns_when_the_request_is_served() {
    for mode in ["reactor", "offload", "inline"] {
        let (make, calls) = recorders(echo);
        let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default());
        let builder = builder.mode(mode.parse::<Mode>().unwrap());
        let mut server = builder.serve(make).unwrap();
        let mut client = connect(inet(&server));
        let serving = thread::spawn(move || (server.handle_request().unwrap(), server));
        client.send("served\n").expect_reply("served\n");
        assert!(!serving.is_finished());
        client.end().expect_closed();
        let (served, _server) = in_time("it is served", move || serving.join().unwrap());
        assert!(served);
        expect_close(&calls);
    }
}

#[test]
fn handle_request_returns_when_the_request_is_handed_to_a_thread() {
    for mode in ["threading", "pool"] {
        let builder = Server::tcp(LOCAL).unwrap().mode(blocking(mode));
        let server = builder.serve_blocking(each(echo_lines)).unwrap();
        let mut client = connect(inet(&server));
        let mut server = server;
        let (served, _server) =
            in_time("it returns", move || (server.handle_request().unwrap(), server));
        assert!(served, "it returns before the client sends anything");
        client.send("still served\n").expect_reply("still served\n").end().expect_closed();
    }
}

#[test]
fn handle_request_returns_when_the_child_is_forked() {
    let process = start("forked_requests");
    let address = process.line().parse().unwrap();
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(connect(address));
        assert_eq!(process.line_after("served"), "true");
    }
    for client in &mut clients {
        client.send("still served\n").expect_reply("still served\n").end().expect_closed();
    }
    let _last = connect(address);
    assert_eq!(process.line_after("served"), "true");
    process.expect_end();
}

#[test]
fn handle_request_serves_one_and_leaves_the_next_waiting() {
    let mut server = TcpServer::bind(LOCAL, each(echo_lines)).unwrap();
    let mut clients: Vec<_> = (0..3).map(|_| connect(inet(&server))).collect();
    for client in &mut clients {
        client.send("mine\n").end();
        assert!(server.handle_request().unwrap());
        assert_eq!(client.read_to_end(), b"mine\n");
    }
    assert_eq!(server.counters().accepted, 3);
}

#[test]
fn handle_request_is_stopped_by_shutdown() {
    let mut server = TcpServer::bind(LOCAL, each(echo_lines)).unwrap();
    let handle = server.shutdown_handle();
    let serving = thread::spawn(move || server.handle_request().unwrap());
    wait_until("it runs", || handle.is_running());
    handle.shutdown();
    assert!(!in_time("it returns", move || serving.join().unwrap()));
}
