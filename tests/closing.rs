//! How connections close, and what counts as progress of output: the same under every mode.

#[path = "support/forked.rs"]
mod forked;
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use forked::{Process, play, start, tell, terminate};
use socket2::{Domain, SockRef, Socket, Type};
use socketserver::{
    BlockingMode, CloseReason, Context, FixedSize, Handler, HandlerResult, Hooks, Inline, Mode,
    Peer, Request, RequestHandler, Server, ShutdownHandle, handler_fn,
};
use support::*;

const MODES: [&str; 6] = ["reactor", "offload", "inline", "threading", "pool", "forking"];
const BLOCKING: [&str; 4] = ["inline", "threading", "pool", "forking"];

/// How long nothing may move.
const TIMEOUT: Duration = Duration::from_millis(500);

/// A long answer, which the buffers of both kernels do not take in whole.
const LONG: usize = 8 << 20;

/// A shorter one, which takes a slow peer a multiple of the timeout.
const SLOW: usize = 400 << 10;

/// An answer that the server's kernel takes in whole.
const FITTING: usize = 1 << 20;

// Servers, each in a process of its own

/// Not a test: the processes that others start.
#[test]
fn be_a_process() {
    play(|role| {
        let (what, mode) = role.split_once(' ').unwrap();
        let builder = Server::tcp("127.0.0.1:0").unwrap().hooks(SendBuffer(what.ends_with("slow")));
        let what = what.to_owned();
        let drain = if what.ends_with("close") { DEADLINE } else { TIMEOUT };
        let mut server = match what.strip_prefix("request_") {
            None => {
                let mode: Mode = mode.parse().unwrap();
                let make = move |_: &Peer| Answer { what: what.clone(), timeouts: 0 };
                builder.mode(mode).serve(make)
            }
            Some(what) => {
                let mode: BlockingMode = mode.parse().unwrap();
                let what = what.to_owned();
                builder.mode(mode).serve_blocking(move |_| AnswerRequest(what.clone()))
            }
        }
        .unwrap();
        server.drain_timeout(drain);
        server.stop_on_signals().unwrap();
        tell(server.local_addr().inet().unwrap());
        tell(std::process::id());
        server.serve_forever().unwrap();
        let counters = server.counters();
        tell(format_args!("timeouts {} disconnects {}", counters.timeouts, counters.disconnects));
    });
}

/// Sets the size of the server's send buffer, if it is to be known.
struct SendBuffer(bool);

impl Hooks for SendBuffer {
    fn on_accept(&mut self, connection: BorrowedFd<'_>, _: &Peer) -> std::io::Result<()> {
        match self.0 {
            true => SockRef::from(&connection).set_send_buffer_size(128 << 10),
            false => SockRef::from(&connection).set_send_buffer_size(2 << 20),
        }
    }
}

struct Answer {
    what: String,
    timeouts: usize,
}

impl Handler for Answer {
    fn on_message(&mut self, _: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        match self.what.as_str() {
            "slow" => {
                cx.set_idle_timeout(TIMEOUT)?;
                cx.send(&pattern(SLOW))
            }
            "stuck" => {
                cx.set_idle_timeout(TIMEOUT)?;
                cx.send(&pattern(LONG))
            }
            "stopped" => {
                let sent = cx.send(&pattern(LONG));
                tell("answered");
                sent
            }
            _ => {
                let sent = cx.send(&pattern(FITTING));
                cx.close();
                sent
            }
        }
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        tell("timeout");
        self.timeouts += 1;
        if self.timeouts == 2 {
            cx.close();
        }
        Ok(())
    }

    fn on_close(&mut self, reason: &CloseReason) {
        tell(reason);
    }
}

struct AnswerRequest(String);

impl RequestHandler for AnswerRequest {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        request.read_exact(&mut [0])?;
        match self.0.as_str() {
            "slow" => {
                request.set_timeout(TIMEOUT);
                request.write_all(&pattern(SLOW))?;
            }
            "stuck" => {
                request.set_timeout(TIMEOUT);
                let written = request.write_all(&pattern(LONG));
                tell(written.unwrap_err().kind());
            }
            "stopped" => {
                request.write_all(b"half an answer")?;
                tell("answered");
                // Until the time for stopping is up.
                let read = request.read_exact(&mut [0; 100]);
                tell("cut");
                read?;
            }
            _ => request.write_all(&pattern(FITTING))?,
        }
        Ok(())
    }
}

struct Running {
    process: Process,
    address: SocketAddr,
    pid: String,
}

/// Plays `test` with a server of each mode, all at the same time.
fn under_each(modes: &'static [&'static str], what: &'static str, test: fn(&str, Running)) {
    let play = |mode: &'static str| {
        thread::spawn(move || {
            let process = start(&format!("{what} {mode}"));
            let address = process.told().parse().unwrap();
            let pid = process.told();
            test(mode, Running { process, address, pid });
        })
    };
    let tests: Vec<_> = modes.iter().map(|mode| (mode, play(mode))).collect();
    let failed: Vec<_> =
        tests.into_iter().filter_map(|(mode, test)| test.join().is_err().then_some(mode)).collect();
    assert!(failed.is_empty(), "under {failed:?}");
}

impl Running {
    /// Connects a client whose kernel takes little before the client does.
    fn connect(&self) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(8 << 10).unwrap();
        socket.connect(&self.address.into()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.into()
    }

    /// Stops it; what it has counted.
    fn stop(&self) -> String {
        terminate(&self.pid);
        self.process.told()
    }
}

/// Reads all that comes; how much that was, and how it ended.
fn read_all(client: &mut TcpStream) -> (usize, Result<(), ErrorKind>) {
    let (mut total, mut buffer) = (0, [0; 64 << 10]);
    loop {
        match client.read(&mut buffer) {
            Ok(0) => return (total, Ok(())),
            Ok(count) => total += count,
            Err(error) => return (total, Err(error.kind())),
        }
    }
}

/// Takes a little at a time, always within the timeout, until it has `total` bytes.
fn read_slowly(client: &mut TcpStream, total: usize) {
    let mut received = Vec::new();
    let mut buffer = [0; 1500];
    let begun = Instant::now();
    while received.len() < total {
        let count = client.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "the whole answer comes: {} of {total}", received.len());
        received.extend_from_slice(&buffer[..count]);
        // What is slow is the peer itself.
        thread::sleep(Duration::from_millis(20) * count as u32 / 1500);
    }
    assert!(begun.elapsed() > 4 * TIMEOUT, "it has taken a multiple of the timeout");
    assert!(received == pattern(total));
}

// What counts as progress

#[test]
fn a_peer_that_takes_its_output_slowly_is_not_timed_out() {
    under_each(&MODES, "slow", |_, server| {
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        read_slowly(&mut client, SLOW);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(read_all(&mut client), (0, Ok(())));
        assert_eq!(server.process.told(), CloseReason::Eof.to_string());
    });
}

#[test]
fn a_write_of_a_request_handler_does_not_time_out_while_the_peer_takes_it_slowly() {
    under_each(&BLOCKING, "request_slow", |_, server| {
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        read_slowly(&mut client, SLOW);
        assert_eq!(read_all(&mut client), (0, Ok(())));
    });
}

#[test]
fn a_handler_is_told_each_time_that_its_peer_takes_nothing_for_the_timeout() {
    under_each(&MODES, "stuck", |mode, server| {
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        assert_eq!(server.process.told(), "timeout");
        assert_eq!(server.process.told(), "timeout");
        assert_eq!(server.process.told(), CloseReason::Timeout.to_string());
        // Cut, the answer does not look whole.
        let (received, end) = read_all(&mut client);
        assert!(received < LONG);
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
        if mode != "forking" {
            assert_eq!(server.stop(), "timeouts 2 disconnects 0");
        }
    });
}

#[test]
fn a_write_of_a_request_handler_times_out_and_its_answer_ends_in_a_reset() {
    under_each(&BLOCKING, "request_stuck", |_, server| {
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        assert_eq!(server.process.told(), ErrorKind::TimedOut.to_string());
        let (received, end) = read_all(&mut client);
        assert!(received < LONG);
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
    });
}

#[test]
fn a_request_that_ends_by_a_timeout_is_counted_as_one() {
    struct Late;
    impl RequestHandler for Late {
        fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
            request.set_timeout(Duration::from_millis(10));
            Ok(request.read_exact(&mut [0])?)
        }
    }
    for mode in [BlockingMode::Inline(Inline), BlockingMode::Threading(Default::default())] {
        let server = Server::tcp("127.0.0.1:0").unwrap().mode(mode);
        let server = start_server(server.serve_blocking(|_| Late).unwrap());
        server.connect().expect_closed();
        server.wait_for("the timeout is counted", |counters| counters.timeouts == 1);
        assert_eq!(server.counters().disconnects, 0, "{mode:?}");
    }
}

// How a connection closes

/// Says something more when its answer is on the way, and takes the answer only then.
fn speak_late(server: &Running) {
    speak_late_after(server, || {});
}

/// As [`speak_late`], when something has happened since.
fn speak_late_after(server: &Running, happen: impl FnOnce()) {
    let mut client = server.connect();
    client.write_all(b"?").unwrap();
    client.read_exact(&mut [0; 10]).unwrap();
    // The server has closed: the rest of the answer is with its kernel.
    thread::sleep(A_WHILE);
    happen();
    thread::sleep(A_WHILE);
    client.write_all(b"and this").unwrap();
    thread::sleep(A_WHILE);
    assert_eq!(read_all(&mut client), (FITTING - 10, Ok(())));
}

#[test]
fn input_that_comes_after_the_close_does_not_cut_the_answer() {
    under_each(&MODES, "close", |_, server| {
        // What the handler is told comes first: the conversation is over.
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        assert_eq!(server.process.told(), CloseReason::Handler.to_string());
        drop(client);
        speak_late(&server);
    });
}

#[test]
fn a_peer_that_ends_its_own_side_after_the_close_gets_all_of_the_answer() {
    under_each(&MODES, "close", |_, server| {
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        // The handler is told when the rest of the answer is with the server's kernel.
        assert_eq!(server.process.told(), CloseReason::Handler.to_string());
        client.read_exact(&mut [0; 10]).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        // What it takes, it takes late.
        thread::sleep(A_WHILE);
        assert_eq!(read_all(&mut client), (FITTING - 10, Ok(())));
    });
}

#[test]
fn input_that_comes_after_a_request_handler_is_done_does_not_cut_its_answer() {
    under_each(&BLOCKING, "request_close", |_, server| speak_late(&server));
}

#[test]
fn input_that_comes_after_a_stop_does_not_cut_an_answer_that_is_on_its_way() {
    let stopped = |_: &str, server: Running| speak_late_after(&server, || terminate(&server.pid));
    under_each(&MODES, "close", stopped);
    under_each(&BLOCKING, "request_close", stopped);
}

#[test]
fn an_answer_that_the_deadline_of_a_stop_cuts_ends_in_a_reset() {
    under_each(&MODES, "stopped", |_, server| {
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        assert_eq!(server.process.told(), "answered");
        client.read_exact(&mut [0; 10]).unwrap();
        terminate(&server.pid);
        // It has stopped, and only then does the peer take more.
        while !server.process.told().starts_with("timeouts") {}
        let (received, end) = read_all(&mut client);
        assert!(received < LONG - 10);
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
    });
}

#[test]
fn a_request_handler_that_the_deadline_of_a_stop_cuts_ends_in_a_reset() {
    under_each(&BLOCKING, "request_stopped", |_, server| {
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        assert_eq!(server.process.told(), "answered");
        terminate(&server.pid);
        assert_eq!(read_all(&mut client), (14, Err(ErrorKind::ConnectionReset)));
    });
}

#[test]
fn under_inline_a_connection_that_lingers_does_not_hold_up_the_next() {
    let handle = Arc::new(OnceLock::<ShutdownHandle>::new());
    let (tell, closed) = mpsc::channel();
    let own = handle.clone();
    let make = move |_: &Peer| {
        let (handle, tell) = (own.clone(), tell.clone());
        handler_fn(move |message: &[u8], cx: &mut Context<'_>| {
            if message == b"?" {
                cx.close();
                tell.send(handle.get().unwrap().counters().closed)?;
            }
            cx.send(message)
        })
    };
    let server = Server::tcp("127.0.0.1:0").unwrap().mode(Inline).framing(FixedSize::new(1));
    let server = start_server(server.serve(make).unwrap());
    assert!(handle.set(server.handle()).is_ok());
    let mut served = server.connect();
    served.send("!").expect_reply("!");
    // More than one read takes, so that some of it is unread at the close.
    let mut first = server.connect();
    first.send(vec![b'?'; 100 << 10]);
    let mut second = server.connect();
    second.send("?");
    served.end().expect_closed();
    second.end().expect_closed();
    assert_eq!(expect_told(&closed), 1, "when the first is served");
    assert_eq!(expect_told(&closed), 1, "when the second is: the first still lingers");
    first.expect_closed();
    drop(first);
    server.wait_for_no_connection();
}

#[test]
fn a_connection_whose_peer_has_all_of_its_answer_is_closed_without_its_doing() {
    for mode in MODES.iter().filter(|mode| **mode != "forking") {
        let mode: Mode = mode.parse().unwrap();
        let (make, told) = tellers(|told: &Told, cx: &mut Context<'_>| {
            if let Told::Message(message) = told {
                cx.send(message)?;
                cx.close();
            }
            Ok(())
        });
        let server = Server::tcp("127.0.0.1:0").unwrap().mode(mode).serve(make).unwrap();
        let server = start_server(server);
        let mut client = server.connect();
        client.send("hello").expect_reply("hello");
        assert_eq!(expect_close(&told), CloseReason::Handler.to_string());
        server.wait_for_no_connection();
        client.expect_closed();
    }
}
