//! How connections close and what counts as progress of the output, in every mode.

#[path = "support/forked.rs"]
mod forked;
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use forked::{Process, print_line, run_role, signal, start, terminate};
use socket2::{Domain, SockRef, Socket, Type};
use socketserver::{
    Accepted, BlockingMode, CloseReason, Context, FixedSize, Handler, HandlerResult, Hooks, Inline,
    Mode, Peer, Request, RequestHandler, Server, ShutdownHandle, handler_fn,
};
use support::*;

const MODES: [&str; 6] = ["reactor", "offload", "inline", "threading", "pool", "forking"];
const BLOCKING: [&str; 4] = ["inline", "threading", "pool", "forking"];

/// The idle timeout of the handlers.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The length of an answer that is longer than the socket buffers of both sides.
const LONG: usize = 8 << 20;

/// The length of an answer that a slow peer reads in a multiple of the timeout.
const SLOW: usize = 400 << 10;

/// The length of an answer that fits into the server's send buffer.
const FITTING: usize = 1 << 20;

// Servers, each in a process of its own

/// Not a test: the entry point of the processes that the tests start.
#[test]
fn entry_point_of_child_processes() {
    run_role(|role| {
        let (what, mode) = role.split_once(' ').unwrap();
        let builder = Server::tcp("127.0.0.1:0").unwrap().hooks(SendBuffer(what.ends_with("slow")));
        let what = what.to_owned();
        let drain = if what.ends_with("close") { DEADLINE } else { TIMEOUT };
        let mut server = match what.strip_prefix("request_") {
            None => {
                let mode: Mode = mode.parse().unwrap();
                let make = move |_: &Accepted<'_>| Answer { what: what.clone(), timeouts: 0 };
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
        print_line(server.local_addr().inet().unwrap());
        print_line(std::process::id());
        server.serve_forever().unwrap();
        let counters = server.counters();
        print_line(format_args!(
            "timeouts {} disconnects {}",
            counters.timeouts, counters.disconnects
        ));
    });
}

/// Sets the size of the send buffer: a small one if true.
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
                print_line("answered");
                sent
            }
            what => {
                let sent = cx.send(&pattern(FITTING));
                match what {
                    "quick_close" => cx.close_without_lingering(),
                    _ => cx.close(),
                }
                sent
            }
        }
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        print_line("timeout");
        self.timeouts += 1;
        if self.timeouts == 2 {
            cx.close();
        }
        Ok(())
    }

    fn on_close(&mut self, reason: &CloseReason) {
        print_line(reason);
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
                print_line(written.unwrap_err().kind());
            }
            "stopped" => {
                request.write_all(b"half an answer")?;
                print_line("answered");
                // Until the drain deadline.
                let read = request.read_exact(&mut [0; 100]);
                print_line("aborted");
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

/// Runs `test` with a server of each mode, all at the same time.
fn under_each(modes: &'static [&'static str], what: &'static str, test: fn(&str, Running)) {
    let run = |mode: &'static str| {
        thread::spawn(move || {
            let process = start(&format!("{what} {mode}"));
            let address = process.line().parse().unwrap();
            let pid = process.line();
            test(mode, Running { process, address, pid });
        })
    };
    let tests: Vec<_> = modes.iter().map(|mode| (mode, run(mode))).collect();
    let failed: Vec<_> =
        tests.into_iter().filter_map(|(mode, test)| test.join().is_err().then_some(mode)).collect();
    assert!(failed.is_empty(), "under {failed:?}");
}

impl Running {
    /// Connects a client with a small receive buffer.
    fn connect(&self) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(8 << 10).unwrap();
        socket.connect(&self.address.into()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.into()
    }

    /// Stops it; returns the line with its counters.
    fn stop(&self) -> String {
        terminate(&self.pid);
        self.process.line()
    }
}

/// Reads until the end or an error; returns the number of bytes and the result.
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

/// Reads `total` bytes in small pieces, with pauses shorter than the timeout.
fn read_slowly(client: &mut TcpStream, total: usize) {
    let mut received = Vec::new();
    let mut buffer = [0; 1500];
    let begun = Instant::now();
    while received.len() < total {
        let count = client.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "only {} of {total} bytes of the answer arrive", received.len());
        received.extend_from_slice(&buffer[..count]);
        // A slow peer.
        thread::sleep(Duration::from_millis(20) * count as u32 / 1500);
    }
    assert!(begun.elapsed() > 4 * TIMEOUT, "reading takes a multiple of the timeout");
    assert!(received == pattern(total));
}

// What counts as progress

#[test]
fn a_peer_that_reads_slowly_does_not_time_out() {
    under_each(&MODES, "slow", |_, server| {
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        read_slowly(&mut client, SLOW);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(read_all(&mut client), (0, Ok(())));
        assert_eq!(server.process.line(), CloseReason::Eof.to_string());
    });
}

#[test]
fn a_write_of_a_request_handler_does_not_time_out_while_the_peer_reads_slowly() {
    under_each(&BLOCKING, "request_slow", |_, server| {
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        read_slowly(&mut client, SLOW);
        assert_eq!(read_all(&mut client), (0, Ok(())));
    });
}

#[test]
fn on_idle_timeout_is_called_each_time_the_peer_reads_nothing_for_the_timeout() {
    under_each(&MODES, "stuck", |mode, server| {
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        assert_eq!(server.process.line(), "timeout");
        assert_eq!(server.process.line(), "timeout");
        assert_eq!(server.process.line(), CloseReason::Timeout.to_string());
        // The client can tell that the answer is incomplete.
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
        assert_eq!(server.process.line(), ErrorKind::TimedOut.to_string());
        let (received, end) = read_all(&mut client);
        assert!(received < LONG);
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
    });
}

#[test]
fn a_request_that_ends_by_a_timeout_is_counted_as_a_timeout() {
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

/// A client that sends more input after the server has closed, and then reads the answer.
fn send_after_close(server: &Running) {
    send_after_close_and(server, || {});
}

/// As [`send_after_close`]; calls `act` between the close and the late input.
fn send_after_close_and(server: &Running, act: impl FnOnce()) {
    let mut client = server.connect();
    client.write_all(b"?").unwrap();
    client.read_exact(&mut [0; 10]).unwrap();
    // The server has closed; the rest of the answer is in its send buffer.
    thread::sleep(A_WHILE);
    act();
    thread::sleep(A_WHILE);
    client.write_all(b"and this").unwrap();
    thread::sleep(A_WHILE);
    assert_eq!(read_all(&mut client), (FITTING - 10, Ok(())));
}

#[test]
fn input_that_comes_after_the_close_does_not_cut_the_answer() {
    under_each(&MODES, "close", |_, server| {
        // `on_close` is called when the handler has closed.
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        assert_eq!(server.process.line(), CloseReason::Handler.to_string());
        drop(client);
        send_after_close(&server);
    });
}

#[test]
fn a_peer_that_sends_fin_after_the_close_gets_the_whole_answer() {
    under_each(&MODES, "close", |_, server| {
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        // `on_close` is called when the rest of the answer is in the server's send buffer.
        assert_eq!(server.process.line(), CloseReason::Handler.to_string());
        client.read_exact(&mut [0; 10]).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        // It reads late.
        thread::sleep(A_WHILE);
        assert_eq!(read_all(&mut client), (FITTING - 10, Ok(())));
    });
}

#[test]
fn a_close_without_lingering_delivers_the_whole_answer_to_a_peer_that_reads_late() {
    under_each(&MODES, "quick_close", |_, server| {
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        assert_eq!(server.process.line(), CloseReason::Handler.to_string());
        // Most of the answer is in the server's send buffer, and its process may be gone.
        server.stop();
        assert_eq!(read_all(&mut client), (FITTING, Ok(())));
    });
}

#[test]
fn a_close_without_lingering_resets_a_peer_that_sends_more() {
    under_each(&MODES, "quick_close", |_, server| {
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        // The end comes after bytes that the peer has no room for yet.
        client.read_exact(&mut [0; 10]).unwrap();
        assert_eq!(server.process.line(), CloseReason::Handler.to_string());
        server.stop();
        client.write_all(b"and this").unwrap();
        let (_, end) = read_all(&mut client);
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
    });
}

#[test]
fn a_close_without_lingering_lingers_if_input_has_arrived_by_then() {
    under_each(&MODES, "quick_close", |_, server| {
        signal(&server.pid, libc::SIGSTOP);
        let mut client = server.connect();
        // More than one read takes.
        client.write_all(&[b'?'; 100 << 10]).unwrap();
        signal(&server.pid, libc::SIGCONT);
        assert_eq!(server.process.line(), CloseReason::Handler.to_string());
        assert_eq!(read_all(&mut client), (FITTING, Ok(())));
    });
}

#[test]
fn input_that_comes_after_a_request_handler_is_done_does_not_cut_its_answer() {
    under_each(&BLOCKING, "request_close", |_, server| send_after_close(&server));
}

#[test]
fn input_that_comes_after_a_stop_does_not_cut_an_answer_that_is_on_its_way() {
    let stopped =
        |_: &str, server: Running| send_after_close_and(&server, || terminate(&server.pid));
    under_each(&MODES, "close", stopped);
    under_each(&BLOCKING, "request_close", stopped);
}

#[test]
fn an_answer_that_the_deadline_of_a_stop_cuts_ends_in_a_reset() {
    under_each(&MODES, "stopped", |_, server| {
        let mut client = server.connect();
        client.write_all(b"?").unwrap();
        assert_eq!(server.process.line(), "answered");
        client.read_exact(&mut [0; 10]).unwrap();
        terminate(&server.pid);
        // The peer reads more only after the server has stopped.
        while !server.process.line().starts_with("timeouts") {}
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
        assert_eq!(server.process.line(), "answered");
        terminate(&server.pid);
        assert_eq!(read_all(&mut client), (14, Err(ErrorKind::ConnectionReset)));
    });
}

#[test]
fn under_inline_a_lingering_connection_does_not_delay_the_next() {
    let handle = Arc::new(OnceLock::<ShutdownHandle>::new());
    let (report, closed) = mpsc::channel();
    let own = handle.clone();
    let make = move |_: &Accepted<'_>| {
        let (handle, report) = (own.clone(), report.clone());
        handler_fn(move |message: &[u8], cx: &mut Context<'_>| {
            if message == b"?" {
                cx.close();
                report.send(handle.get().unwrap().counters().closed)?;
            }
            cx.send(message)
        })
    };
    let server = Server::tcp("127.0.0.1:0").unwrap().mode(Inline).framing(FixedSize::new(1));
    let server = start_server(server.serve(make).unwrap());
    assert!(handle.set(server.handle()).is_ok());
    let mut served = server.connect();
    served.send("!").expect_reply("!");
    // More than one read takes, so that some input is unread at the close.
    let mut first = server.connect();
    first.send(vec![b'?'; 100 << 10]);
    let mut second = server.connect();
    second.send("?");
    served.end().expect_closed();
    second.end().expect_closed();
    assert_eq!(expect_next(&closed), 1, "one is closed when the first is served");
    assert_eq!(expect_next(&closed), 1, "the first still lingers when the second is served");
    first.expect_closed();
    drop(first);
    server.wait_for_no_connection();
}

#[test]
fn a_close_without_lingering_frees_the_connection_while_its_answer_is_on_its_way() {
    for (lingers, mode) in [true, false].into_iter().flat_map(|lingers| {
        MODES.into_iter().filter(|mode| *mode != "forking").map(move |mode| (lingers, mode))
    }) {
        let mode: Mode = mode.parse().unwrap();
        let (make, calls) = recorders(move |call: &Call, cx: &mut Context<'_>| {
            if let Call::Message(_) = call {
                cx.send(&pattern(FITTING))?;
                match lingers {
                    true => cx.close(),
                    false => cx.close_without_lingering(),
                }
            }
            Ok(())
        });
        let builder = Server::tcp("127.0.0.1:0").unwrap().hooks(SendBuffer(false));
        let server = start_server(builder.mode(mode).serve(make).unwrap());
        let mut client = server.connect();
        client.send("hello");
        assert_eq!(expect_close(&calls), CloseReason::Handler.to_string());
        if lingers {
            server.wait_for("it lingers", |counters| counters.open == 1);
        } else {
            server.wait_for_no_connection();
        }
        assert_eq!(read_all(&mut client.stream), (FITTING, Ok(())), "{mode:?}");
        server.wait_for_no_connection();
    }
}

#[test]
fn a_connection_is_closed_once_its_peer_has_received_the_whole_answer() {
    for mode in MODES.iter().filter(|mode| **mode != "forking") {
        let mode: Mode = mode.parse().unwrap();
        let (make, calls) = recorders(|call: &Call, cx: &mut Context<'_>| {
            if let Call::Message(message) = call {
                cx.send(message)?;
                cx.close();
            }
            Ok(())
        });
        let server = Server::tcp("127.0.0.1:0").unwrap().mode(mode).serve(make).unwrap();
        let server = start_server(server);
        let mut client = server.connect();
        client.send("hello").expect_reply("hello");
        assert_eq!(expect_close(&calls), CloseReason::Handler.to_string());
        server.wait_for_no_connection();
        client.expect_closed();
    }
}
