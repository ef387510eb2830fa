//! CPython's tests of its `socketserver` (`Lib/test/test_socketserver.py`), under the same names.
//! In place of Python's exceptions that are not subclasses of `Exception` (`*_not_handled`), the
//! handlers here panic.

#![allow(non_snake_case)] // the names are CPython's
#![allow(unsafe_code)] // no crate of the tests sends signals

#[path = "support/forked.rs"]
mod forked;
mod support;

use std::any::type_name;
use std::collections::HashSet;
use std::io::{BufRead, Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use forked::{print_line, run_role, start, terminate};
use socket2::SockRef;
use socketserver::*;
use support::*;

const LOCAL: &str = "127.0.0.1:0";

const TEST_STR: &[u8] = b"hello world\n";

/// CPython's `MyStreamHandler` and `MyDatagramHandler`: sends one line back. To the line [`WHERE`]
/// it answers with its process and thread.
struct MyHandler;

const WHERE: &[u8] = b"where?\n";

impl RequestHandler for MyHandler {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        let mut line = Vec::new();
        request.rfile().read_until(b'\n', &mut line)?;
        if line == WHERE {
            let thread = thread::current();
            line = format!("{} {}", std::process::id(), thread.name().unwrap_or("-")).into();
        }
        Ok(request.wfile().write_all(&line)?)
    }
}

/// A new path for a Unix socket.
fn pick_path() -> PathBuf {
    static PICKED: AtomicUsize = AtomicUsize::new(0);
    let number = PICKED.fetch_add(1, SeqCst);
    std::env::temp_dir().join(format!("cpython-{}-{number}.sock", std::process::id()))
}

/// Sends a request and reads all of the reply.
fn ask(address: &Address, request: &[u8]) -> Vec<u8> {
    let mut reply = Vec::new();
    match address {
        Address::Tcp(address) => {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream.write_all(request).unwrap();
            stream.read_to_end(&mut reply).unwrap();
        }
        Address::Udp(address) => {
            let socket = UdpSocket::bind(LOCAL).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket.send_to(request, address).unwrap();
            reply.resize(1024, 0);
            let (count, from) = socket.recv_from(&mut reply).unwrap();
            reply.truncate(count);
            assert_eq!(from, *address);
        }
        Address::Unix(Some(path)) => {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream.write_all(request).unwrap();
            stream.read_to_end(&mut reply).unwrap();
        }
        Address::UnixDatagram(Some(path)) => {
            let own = pick_path();
            let socket = UnixDatagram::bind(&own).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket.send_to(request, path).unwrap();
            reply.resize(1024, 0);
            let count = socket.recv(&mut reply).unwrap();
            reply.truncate(count);
            std::fs::remove_file(own).unwrap();
        }
        other => unreachable!("{other}"),
    }
    reply
}

/// Whether a server listens at this address.
fn answers(address: &Address) -> bool {
    match address {
        Address::Tcp(address) => TcpStream::connect_timeout(address, DEADLINE).is_ok(),
        Address::Udp(address) => UdpSocket::bind(address).is_err(),
        other => other.path().unwrap().exists(),
    }
}

/// The process and the thread in which a server's handlers run.
fn place_of(address: &Address) -> (String, String) {
    let reply = String::from_utf8(ask(address, WHERE)).unwrap();
    let (process, thread) = reply.split_once(' ').unwrap();
    (process.to_owned(), thread.to_owned())
}

/// CPython's `run_server`, for servers without a mix-in: requests are served in the loop's thread.
fn run_server(server: Server) {
    run(server, "socketserver");
}

/// The same for servers with threads.
fn run_threading_server(server: Server) {
    run(server, "thread-");
}

/// Three clients, one after another, are served in a thread of this name, and the closed server no
/// longer listens.
fn run(server: Server, thread: &str) {
    let address = server.local_addr().clone();
    let name =
        SockRef::from(&server.listener_fd(server.listeners()[0]).unwrap()).local_addr().unwrap();
    assert_eq!(name.as_socket(), address.inet(), "server_address is getsockname()");
    assert_eq!(name.as_pathname(), address.path());
    let running = server.spawn().unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&address, TEST_STR), TEST_STR);
        let (process, served_by) = place_of(&address);
        assert_eq!(process, std::process::id().to_string());
        assert!(served_by.starts_with(thread), "{served_by}");
    }
    let (server, report) = in_time("it stops", move || running.stop().unwrap());
    assert_eq!(report.aborted, 0);
    assert!(answers(&address), "shutdown alone closes no listener");
    server.server_close();
    assert!(!answers(&address));
}

/// CPython's `run_server` for servers that fork: in a process with a child that is not the
/// server's.
fn run_forking_server(name: &str) {
    let process = start(name);
    let pid = process.line_after("pid");
    let address = match process.line_after("listening on").parse().unwrap() {
        Endpoint::Tcp { host, port } => {
            Address::Tcp((host.parse::<IpAddr>().unwrap(), port).into())
        }
        Endpoint::Udp { host, port } => {
            Address::Udp((host.parse::<IpAddr>().unwrap(), port).into())
        }
        Endpoint::Unix(path) => Address::Unix(Some(path)),
        Endpoint::UnixDatagram(path) => Address::UnixDatagram(Some(path)),
        other => unreachable!("{other}"),
    };
    for _ in 0..3 {
        assert_eq!(ask(&address, TEST_STR), TEST_STR);
        assert_ne!(place_of(&address).0, pid, "the request runs in the parent");
    }
    terminate(&pid);
    assert_eq!(process.line_after("children after the stop"), "only the foreign one");
    assert_eq!(process.line_after("the foreign child"), "exit status: 72");
    process.expect_end();
    assert!(!answers(&address));
}

/// Not a test: the entry point of the processes that the tests start.
#[test]
fn entry_point_of_child_processes() {
    run_role(|role| match role {
        "bind_leak" => bind_leak(),
        "forking_faults" => forking_faults(),
        name => be_a_forking_server(name),
    });
}

fn be_a_forking_server(name: &str) {
    let mut foreign = Command::new("sh").args(["-c", "exit 72"]).spawn().unwrap();
    let mut server = match name {
        "ForkingTCPServer" => ForkingTcpServer::bind(LOCAL, |_| MyHandler),
        "ForkingUDPServer" => ForkingUdpServer::bind(LOCAL, |_| MyHandler),
        "ForkingUnixStreamServer" => ForkingUnixStreamServer::bind(pick_path(), |_| MyHandler),
        "ForkingUnixDatagramServer" => ForkingUnixDatagramServer::bind(pick_path(), |_| MyHandler),
        _ => unreachable!("{name}"),
    }
    .unwrap();
    server.stop_on_signals().unwrap();
    print_line(format_args!("pid {}", std::process::id()));
    print_line(format_args!("listening on {}", server.local_addr()));
    server.serve_forever().unwrap();
    server.server_close();
    let only = forked::children() == [foreign.id().to_string()];
    print_line(format_args!(
        "children after the stop {}",
        if only { "only the foreign one" } else { "" }
    ));
    print_line(format_args!("the foreign child {}", foreign.wait().unwrap()));
}

#[test]
fn test_TCPServer() {
    run_server(TcpServer::bind(LOCAL, |_| MyHandler).unwrap());
}

#[test]
fn test_ThreadingTCPServer() {
    run_threading_server(ThreadingTcpServer::bind(LOCAL, |_| MyHandler).unwrap());
}

#[test]
fn test_ForkingTCPServer() {
    run_forking_server("ForkingTCPServer");
}

#[test]
fn test_UnixStreamServer() {
    run_server(UnixStreamServer::bind(pick_path(), |_| MyHandler).unwrap());
}

#[test]
fn test_ThreadingUnixStreamServer() {
    run_threading_server(ThreadingUnixStreamServer::bind(pick_path(), |_| MyHandler).unwrap());
}

#[test]
fn test_ForkingUnixStreamServer() {
    run_forking_server("ForkingUnixStreamServer");
}

#[test]
fn test_UDPServer() {
    run_server(UdpServer::bind(LOCAL, |_| MyHandler).unwrap());
}

#[test]
fn test_ThreadingUDPServer() {
    run_threading_server(ThreadingUdpServer::bind(LOCAL, |_| MyHandler).unwrap());
}

#[test]
fn test_ForkingUDPServer() {
    run_forking_server("ForkingUDPServer");
}

#[test]
fn test_UnixDatagramServer() {
    run_server(UnixDatagramServer::bind(pick_path(), |_| MyHandler).unwrap());
}

#[test]
fn test_ThreadingUnixDatagramServer() {
    run_threading_server(ThreadingUnixDatagramServer::bind(pick_path(), |_| MyHandler).unwrap());
}

#[test]
fn test_ForkingUnixDatagramServer() {
    run_forking_server("ForkingUnixDatagramServer");
}

/// A shutdown that races with the start of the loop always ends it (#2302).
#[test]
fn test_shutdown() {
    let servers: Vec<_> = (0..20)
        .map(|_| {
            let mut server = TcpServer::bind(LOCAL, |_| MyHandler).unwrap();
            let handle = server.shutdown_handle();
            (thread::spawn(move || server.serve_forever().map(drop)), handle)
        })
        .collect();
    for (_, handle) in &servers {
        handle.shutdown();
    }
    for (serving, _) in servers {
        in_time("it ends", || serving.join().unwrap().unwrap());
    }
}

#[test]
fn test_close_immediately() {
    let server = ThreadingTcpServer::bind(LOCAL, |_| MyHandler).unwrap();
    let address = server.local_addr().clone();
    server.server_close();
    assert!(!answers(&address));
}

/// A failed bind leaks nothing (#22435).
#[test]
fn test_tcpserver_bind_leak() {
    let process = start("bind_leak");
    assert_eq!(process.line_after("leaked"), "0");
    process.expect_end();
}

fn bind_leak() {
    let taken = TcpServer::bind(LOCAL, |_| MyHandler).unwrap();
    let address = taken.local_addr().inet().unwrap();
    let path = pick_path();
    let taken_path = UnixStreamServer::bind(&path, |_| MyHandler).unwrap();
    let before = forked::descriptors();
    for _ in 0..1024 {
        assert!(TcpServer::bind(address, |_| MyHandler).is_err());
        assert!(UnixStreamServer::bind(&path, |_| MyHandler).is_err());
    }
    print_line(format_args!("leaked {}", forked::descriptors() - before));
    drop((taken, taken_path));
}

/// The end of the scope corresponds to the end of Python's `with`.
#[test]
fn test_context_manager() {
    let address = {
        let server = TcpServer::bind(LOCAL, |_| MyHandler).unwrap();
        server.local_addr().clone()
    };
    assert!(!answers(&address));
}

/// CPython's `BadHandler`: fails or panics on command.
struct BadHandler;

impl RequestHandler for BadHandler {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        match request.rfile().read_line()?.as_deref() {
            Some(b"error") => Err("a handler that fails")?,
            Some(b"panic") => panic!("a handler that panics"),
            other => request.wfile().write_all(other.unwrap_or_default())?,
        }
        Ok(())
    }
}

/// CPython's `BaseErrorTestServer`: reports the calls of `handle_error`.
struct ReportErrors(mpsc::Sender<String>);

impl Hooks for ReportErrors {
    fn handle_error(&mut self, _: &Peer, reason: &CloseReason) {
        self.0.send(reason.to_string()).unwrap();
    }
}

/// The connection of a failing handler is closed, `handle_error` is called once, and the loop
/// continues.
fn expect_handled<D>(mode: D, word: &str, expected: &str)
where
    D: RequestMode<BadHandler>,
{
    let (faults, reported): (_, Receiver<String>) = mpsc::channel();
    let builder = Server::tcp(LOCAL).unwrap().mode(mode).hooks(ReportErrors(faults));
    let server = start_server(builder.serve_blocking(|_| BadHandler).unwrap());
    for _ in 0..2 {
        server.connect().send(word).send("\n").expect_closed();
        assert_eq!(expect_next(&reported), expected);
    }
    let mut client = server.connect();
    client.send("alive\n").expect_reply("alive").expect_closed();
    let (server, _) = server.stop();
    assert_eq!(server.counters().closed, 3);
    drop(server);
    assert_eq!(reported.iter().count(), 0, "handle_error is called once for each");
}

#[test]
fn test_sync_handled() {
    expect_handled(Inline, "error", "handler failed: a handler that fails");
}

#[test]
fn test_sync_not_handled() {
    expect_handled(Inline, "panic", "handler panicked: a handler that panics");
}

#[test]
fn test_threading_handled() {
    expect_handled(Threading::default(), "error", "handler failed: a handler that fails");
}

#[test]
fn test_threading_not_handled() {
    expect_handled(Threading::default(), "panic", "handler panicked: a handler that panics");
}

/// `handle_error` is called in the child, as in Python, so it reports through the child's stdout.
struct PrintErrors;

impl Hooks for PrintErrors {
    fn handle_error(&mut self, _: &Peer, reason: &CloseReason) {
        print_line(format_args!("in a child {}: {reason}", std::process::id()));
    }
}

fn forking_faults() {
    let builder = ForkingTcpServer::builder(LOCAL).unwrap().hooks(PrintErrors);
    let mut server = builder.serve_blocking(|_| BadHandler).unwrap();
    server.stop_on_signals().unwrap();
    print_line(format_args!("pid {}", std::process::id()));
    print_line(server.local_addr().inet().unwrap());
    server.serve_forever().unwrap();
}

fn expect_handled_in_child(word: &str, expected: &str) {
    let process = start("forking_faults");
    let pid = process.line_after("pid");
    let address = process.line().parse().unwrap();
    for _ in 0..2 {
        connect(address).send(word).send("\n").expect_closed();
        let line = process.line_after("in a child");
        let (child, reason) = line.split_once(": ").unwrap();
        assert_ne!(child, pid);
        assert_eq!(reason, expected);
    }
    connect(address).send("alive\n").expect_reply("alive").expect_closed();
    terminate(&pid);
    process.expect_end();
}

#[test]
fn test_forking_handled() {
    expect_handled_in_child("error", "handler failed: a handler that fails");
}

#[test]
fn test_forking_not_handled() {
    expect_handled_in_child("panic", "handler panicked: a handler that panics");
}

/// `SocketWriterTest.test_basics`: `wfile` writes to the connection itself.
#[test]
fn test_basics() {
    struct Basics(mpsc::Sender<bool>);

    impl RequestHandler for Basics {
        fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
            let fileno = request.as_fd().as_raw_fd();
            let wfile: &mut dyn Write = request.wfile();
            wfile.write_all(b"a writer")?;
            let same = request.wfile().as_fd().as_raw_fd() == fileno;
            let peer = SockRef::from(&*request).peer_addr()?.as_socket();
            Ok(self.0.send(same && peer == request.client_address().inet())?)
        }
    }

    for mode in ["inline", "threading"] {
        let (report, reports) = mpsc::channel();
        let builder = Server::tcp(LOCAL).unwrap().mode(mode.parse::<BlockingMode>().unwrap());
        let make = move |_: &Accepted<'_>| Basics(report.clone());
        let server = start_server(builder.serve_blocking(make).unwrap());
        server.connect().expect_reply("a writer").expect_closed();
        assert!(expect_next(&reports));
    }
}

/// `SocketWriterTest.test_write`: a write is sent at once, without a flush, and a write that
/// signals interrupt is complete.
#[test]
fn test_write() {
    /// More than the socket buffers take.
    const HUGE: usize = 16 << 20;
    static WRITER: Mutex<Option<libc::pthread_t>> = Mutex::new(None);

    struct Writing;

    impl RequestHandler for Writing {
        fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
            request.wfile().write_all(b"write test")?;
            // The client reads it before it sends this byte.
            request.rfile().read_exact(&mut [0])?;
            // SAFETY: pthread_self takes nothing.
            *WRITER.lock().unwrap() = Some(unsafe { libc::pthread_self() });
            let written = request.wfile().write(&b"0123456789abcdef".repeat(HUGE / 16));
            *WRITER.lock().unwrap() = None;
            assert_eq!(written?, HUGE);
            Ok(())
        }
    }

    extern "C" fn do_nothing(_: libc::c_int) {}
    // SAFETY: a zeroed sigaction with a handler is valid. It has no SA_RESTART, so that a signal
    // interrupts system calls that wait.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = do_nothing as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
    }
    let server = start_server(ThreadingTcpServer::bind(LOCAL, |_| Writing).unwrap());
    let mut client = server.connect();
    client.expect_reply("write test").send("!");
    let over = Arc::new(AtomicBool::new(false));
    let ended = over.clone();
    let interrupting = thread::spawn(move || {
        let mut signals = 0;
        while !ended.load(SeqCst) {
            if let Some(writer) = *WRITER.lock().unwrap() {
                // SAFETY: the thread still exists: it takes the lock after the write, before it
                // ends.
                unsafe { libc::pthread_kill(writer, libc::SIGUSR1) };
                signals += 1;
            }
            thread::yield_now();
        }
        signals
    });
    let mut received = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    while received.len() < HUGE {
        let count = client.stream.read(&mut chunk).unwrap();
        received.extend_from_slice(&chunk[..count]);
        thread::yield_now();
    }
    over.store(true, SeqCst);
    assert!(interrupting.join().unwrap() > 0);
    client.expect_closed();
    assert!(received == b"0123456789abcdef".repeat(HUGE / 16));
}

/// Every public name of Python's module has a counterpart.
#[test]
fn test_all() {
    let names = [
        ("BaseServer", type_name::<Server>()),
        ("TCPServer", type_name::<TcpServer>()),
        ("UDPServer", type_name::<UdpServer>()),
        ("UnixStreamServer", type_name::<UnixStreamServer>()),
        ("UnixDatagramServer", type_name::<UnixDatagramServer>()),
        ("ThreadingMixIn", type_name::<Threading>()),
        ("ThreadingTCPServer", type_name::<ThreadingTcpServer>()),
        ("ThreadingUDPServer", type_name::<ThreadingUdpServer>()),
        ("ThreadingUnixStreamServer", type_name::<ThreadingUnixStreamServer>()),
        ("ThreadingUnixDatagramServer", type_name::<ThreadingUnixDatagramServer>()),
        ("ForkingMixIn", type_name::<Forking>()),
        ("ForkingTCPServer", type_name::<ForkingTcpServer>()),
        ("ForkingUDPServer", type_name::<ForkingUdpServer>()),
        ("ForkingUnixStreamServer", type_name::<ForkingUnixStreamServer>()),
        ("ForkingUnixDatagramServer", type_name::<ForkingUnixDatagramServer>()),
        ("BaseRequestHandler", type_name::<dyn RequestHandler>()),
        ("StreamRequestHandler", type_name::<dyn RequestHandler>()),
        ("DatagramRequestHandler", type_name::<dyn RequestHandler>()),
    ];
    for (python, rust) in names {
        let name = rust.rsplit("::").next().unwrap();
        let (python, name) = (python.to_lowercase(), name.to_lowercase());
        // "Base…", "…MixIn", "Stream…" and "Datagram…" have shorter names here.
        assert!(python == name || python.contains(&name), "{python} is {rust}");
    }
}

/// A refused request is closed exactly once (#26309).
#[test]
fn test_shutdown_request_called_if_verify_request_false() {
    struct RefuseAll;

    impl Hooks for RefuseAll {
        fn verify_request(&mut self, _: &Peer) -> bool {
            false
        }
    }

    for mode in ["inline", "threading", "pool"] {
        let builder = Server::tcp(LOCAL).unwrap().mode(mode.parse::<BlockingMode>().unwrap());
        let server = builder.hooks(RefuseAll).serve_blocking(|_| MyHandler).unwrap();
        let server = start_server(server);
        server.connect().expect_closed();
        let (server, _) = server.stop();
        let counters = server.counters();
        assert_eq!((counters.accepted, counters.refused_by_hook, counters.closed), (1, 1, 1));
        assert_eq!(counters.messages, 0);
    }
}

/// The server does not keep a thread for each request served (#37193).
#[test]
fn test_threads_reaped() {
    struct RecordThread(Arc<Mutex<HashSet<ThreadId>>>);

    impl RequestHandler for RecordThread {
        fn handle(&mut self, _: &mut Request<'_>) -> HandlerResult {
            self.0.lock().unwrap().insert(thread::current().id());
            Ok(())
        }
    }

    let threads = Arc::new(Mutex::new(HashSet::new()));
    let seen = threads.clone();
    let server = ThreadingTcpServer::bind(LOCAL, move |_| RecordThread(seen.clone())).unwrap();
    let server = start_server(server);
    for _ in 0..10 {
        server.connect().expect_closed();
        server.wait_for_no_connection();
    }
    let threads = threads.lock().unwrap().len();
    assert!(threads < 10, "{threads} threads for 10 requests, one after another");
}
