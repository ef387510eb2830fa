//! The event loop with real sockets: slow peers, lost peers, failing handlers, stops, and the
//! cases in which an edge-triggered event comes only once.

mod support;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socketserver::{
    Accepted, CloseReason, Context, Error, FixedSize, Handler, HandlerResult, Hooks,
    LengthPrefixed, Lines, Offload, Overlong, Peer, SendError, Sender, Server, StopReport,
    broadcast, handler_fn,
};
use support::*;

const LOCAL: &str = "127.0.0.1:0";

/// A server that sends every byte back.
fn start_echo() -> TestServer {
    let server = Server::tcp(LOCAL).unwrap();
    let server = server.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
    start_server(server.unwrap())
}

/// A server of lines whose handlers run `act` in each call.
fn start_lines<A>(act: A) -> (TestServer, Receiver<Call>)
where
    A: FnMut(&Call, &mut Context<'_>) -> HandlerResult + Clone + Send + 'static,
{
    let (make, calls) = recorders(act);
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    (start_server(builder.serve(make).unwrap()), calls)
}

/// The same under `offload`.
fn start_lines_on_workers<A>(workers: usize, act: A) -> (TestServer, Receiver<Call>)
where
    A: FnMut(&Call, &mut Context<'_>) -> HandlerResult + Clone + Send + 'static,
{
    let (make, calls) = recorders(act);
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    let builder = builder.mode(Offload::new(workers));
    (start_server(builder.serve(make).unwrap()), calls)
}

/// What a handler does that echoes and passes its sender to the test when it opens.
fn give_sender(
    out: mpsc::Sender<Sender>,
) -> impl FnMut(&Call, &mut Context<'_>) -> HandlerResult + Clone + Send {
    move |call, cx| {
        if *call == Call::Open {
            out.send(cx.sender()?)?;
        }
        echo(call, cx)
    }
}

// Bytes

#[test]
fn bytes_come_back_as_they_were_sent() {
    let server = start_echo();
    let mut client = server.connect();
    for text in ["hello", "亲,学会了吗", "\0\n\r"] {
        client.send(text).expect_reply(text);
    }
    client.end().expect_closed();
}

#[test]
fn bytes_come_back_over_a_unix_socket_too() {
    let directory = std::env::temp_dir().join(format!("socketserver-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("echo.sock");
    let server = Server::unix_stream(&path).unwrap();
    let server = server.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
    let server = start_server(server.unwrap());
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    let sent = pattern(1 << 20);
    let mut writer = client.try_clone().unwrap();
    let writing = {
        let sent = sent.clone();
        thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        })
    };
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == sent);
    drop(server.stop());
    assert!(!path.exists(), "the socket file is removed");
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn three_mebibytes_come_back_whole_after_a_half_close() {
    let server = start_echo();
    let mut client = server.connect();
    let sent = pattern(3 << 20);
    let mut writer = client.stream.try_clone().unwrap();
    let written = sent.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&written).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    assert!(client.read_to_end() == sent);
    writing.join().unwrap();
    server.wait_for_no_connection();
    let counters = server.counters();
    assert_eq!((counters.bytes_in, counters.bytes_out), (3 << 20, 3 << 20));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (server, _calls) = start_lines(echo);
    let mut client = server.connect();
    let requests: String = (0..10_000).map(|number| format!("{number}\n")).collect();
    client.send(&requests).expect_reply(&requests);
}

#[test]
fn a_last_message_and_fin_in_one_segment_are_both_delivered() {
    let (server, calls) = start_lines(echo);
    for _ in 0..50 {
        let mut client = server.connect();
        client.stream.set_nodelay(false).unwrap();
        client.send("a request\n").end();
        assert_eq!(client.read_to_end(), b"a request\n");
        let calls: Vec<_> = (0..4).map(|_| expect_next(&calls)).collect();
        let close = Call::Close("end of input".into());
        assert_eq!(calls, [Call::Open, message("a request"), Call::Eof, close]);
    }
}

/// Its bytes and its FIN are there when the server accepts it.
#[test]
fn a_client_that_sent_fin_before_it_was_accepted_is_answered() {
    let server = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    let server = server.serve(recorders(echo).0).unwrap();
    let mut client = connect(server.local_addr().inet().unwrap());
    client.send("early\n").end();
    let _server = start_server(server);
    assert_eq!(client.read_to_end(), b"early\n");
}

/// After a read that fills the buffer, more input may be available without another event.
#[test]
fn messages_as_long_as_the_read_buffer_do_not_stall() {
    for length in [64 << 10, 128 << 10, (64 << 10) - 1, (64 << 10) + 1] {
        let (make, _calls) = recorders(echo);
        let builder = Server::tcp(LOCAL).unwrap().framing(FixedSize::new(length));
        let server = start_server(builder.serve(make).unwrap());
        let mut client = server.connect();
        for _ in 0..3 {
            let sent = pattern(length);
            client.send(&sent).expect_reply(&sent);
        }
        client.end().expect_closed();
    }
}

#[test]
fn a_burst_of_connections_larger_than_the_accept_budget_is_accepted_completely() {
    let server = Server::tcp(LOCAL).unwrap();
    let server = server.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
    let server = server.unwrap();
    let address = server.local_addr().inet().unwrap();
    // They wait in the kernel's queue: one event for all of them.
    let mut clients: Vec<_> = (0..200).map(|_| connect(address)).collect();
    let _server = start_server(server);
    for client in &mut clients {
        client.send("here").expect_reply("here");
    }
}

// Slow peers and much output

#[test]
fn a_reply_is_whole_although_the_server_closes_with_input_unread() {
    for unread in [1, 100 << 10, 400 << 10] {
        let reply = pattern(16 << 20);
        let expected = reply.clone();
        let (server, _calls) = start_lines(move |call: &Call, cx: &mut Context<'_>| {
            if matches!(call, Call::Message(_)) {
                cx.send(&reply)?;
                cx.close();
            }
            Ok(())
        });
        let mut client = server.connect();
        client.send("a request\n").send(vec![b'x'; unread]);
        let back = client.read_to_end();
        assert_eq!(back.len(), expected.len() + 1);
        assert!(back[..expected.len()] == expected);
    }
}

#[test]
fn a_short_last_reply_arrives_although_the_server_closes_with_input_unread() {
    let (sent, all_sent) = mpsc::channel();
    let all_sent = Arc::new(Mutex::new(all_sent));
    let (server, _calls) = start_lines(move |call: &Call, cx: &mut Context<'_>| {
        match call {
            // More than one read takes, and all of it is there before the server reads.
            Call::Open => all_sent.lock().unwrap().recv_timeout(DEADLINE)?,
            Call::Message(_) => {
                cx.send(b"goodbye")?;
                cx.close();
            }
            _ => {}
        }
        Ok(())
    });
    let mut client = server.connect();
    client.send("quit\n").send(vec![b'x'; 500 << 10]);
    sent.send(()).unwrap();
    assert_eq!(client.read_to_end(), b"goodbye\n");
}

#[test]
fn a_client_that_never_reads_is_no_longer_read_and_others_are_served() {
    let server = start_echo();
    let mut stalled = server.connect();
    let sent = stalled.send_until_stalled(&pattern(251 * 4096), 1 << 30);
    assert!(sent < 1 << 28, "back-pressure reaches the client");
    let mut other = server.connect();
    other.send("first").expect_reply("first").expect_silence();
    let before = server.counters();
    let kept = before.bytes_in - before.bytes_out;
    assert!(kept < 256 << 10, "{kept} bytes wait, with a high watermark of 64 KiB");
    for _ in 0..100 {
        other.send("more").expect_reply("more");
    }
    other.expect_silence();
    let after = server.counters();
    assert_eq!(after.bytes_in - before.bytes_in, 400, "only the other client is read");
    assert!(after.turns - before.turns <= 250, "the stalled client causes no turns");
}

#[test]
fn a_slow_reader_gets_everything_in_the_end() {
    let server = start_echo();
    let mut slow = server.connect();
    let chunk = pattern(251 * 4096);
    let sent = slow.send_until_stalled(&chunk, 1 << 30);
    slow.end();
    let back = slow.read_to_end();
    assert_eq!(back.len(), sent);
    let right = back.chunks(chunk.len()).all(|part| part == &chunk[..part.len()]);
    assert!(right, "the bytes are in order");
    server.wait_for_no_connection();
}

#[test]
fn a_client_that_disconnects_without_reading_leaves_no_connection_behind() {
    let server = start_echo();
    for reset in [true, false] {
        let mut stalled = server.connect();
        stalled.send_until_stalled(&pattern(1 << 20), 1 << 30);
        if reset {
            stalled.reset();
        } else {
            drop(stalled);
        }
        server.wait_for_no_connection();
    }
}

#[test]
fn one_busy_client_does_not_keep_others_from_being_served() {
    let server = start_echo();
    let mut busy = server.connect();
    let mut writer = busy.stream.try_clone().unwrap();
    let stop = Arc::new(AtomicUsize::new(0));
    let stopped = stop.clone();
    let writing = thread::spawn(move || {
        let chunk = pattern(256 << 10);
        while stopped.load(SeqCst) == 0 {
            writer.write_all(&chunk).unwrap();
        }
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let reading = thread::spawn(move || busy.read_to_end().len());
    server.wait_for("the busy client is read", |counters| counters.bytes_in > 1 << 20);
    let mut other = server.connect();
    for _ in 0..50 {
        other.send("me too").expect_reply("me too");
    }
    stop.store(1, SeqCst);
    writing.join().unwrap();
    assert!(reading.join().unwrap() > 0);
}

#[test]
fn a_client_that_sends_little_is_served_before_one_that_sends_much() {
    let gate = Arc::new(Barrier::new(2));
    let waiting = gate.clone();
    let (make, calls) = recorders(move |call: &Call, _: &mut Context<'_>| {
        if *call == Call::Message(b"hold".to_vec()) {
            waiting.wait();
            waiting.wait();
        }
        Ok(())
    });
    let server = start_server(Server::tcp(LOCAL).unwrap().serve(make).unwrap());
    let mut holder = server.connect();
    let mut transfers = [server.connect(), server.connect()];
    let mut dialogue = server.connect();
    for _ in 0..4 {
        assert_eq!(expect_next(&calls), Call::Open);
    }
    // Runs `send` while the loop is blocked, so that the input of all clients arrives together.
    let mut gather = |send: &mut dyn FnMut()| {
        holder.send("hold");
        gate.wait();
        send();
        gate.wait();
        assert_eq!(expect_next(&calls), Call::Message(b"hold".to_vec()));
    };
    gather(&mut || transfers.iter_mut().for_each(|each| _ = each.send([0; 40 << 10])));
    for _ in 0..2 {
        assert!(expect_next(&calls) == Call::Message(vec![0; 40 << 10]), "in one read");
    }
    gather(&mut || {
        transfers.iter_mut().for_each(|each| _ = each.send("much more"));
        dialogue.send("little");
    });
    for expected in ["little", "much more", "much more"] {
        assert_eq!(expect_next(&calls), Call::Message(expected.into()));
    }
}

#[test]
fn a_connection_that_waits_for_its_turn_does_not_time_out() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let gate = Arc::new(Barrier::new(2));
    let waiting = gate.clone();
    let (make, calls) = recorders(move |call: &Call, cx: &mut Context<'_>| {
        match call {
            Call::Open => cx.set_idle_timeout(TIMEOUT)?,
            Call::Message(message) if message == b"hold" => {
                cx.set_idle_timeout(None)?;
                waiting.wait();
                waiting.wait();
            }
            Call::Message(_) => cx.send(b"heard")?,
            Call::Timeout => cx.close(),
            _ => {}
        }
        Ok(())
    });
    let server = start_server(Server::tcp(LOCAL).unwrap().serve(make).unwrap());
    let (mut holder, mut transfer) = (server.connect(), server.connect());
    holder.send("hold");
    gate.wait();
    transfer.send([0; 40 << 10]);
    gate.wait();
    transfer.expect_reply("heard");
    holder.send("hold");
    gate.wait();
    transfer.send("in time");
    // The timeout passes while the loop is blocked.
    thread::sleep(TIMEOUT * 3 / 2);
    gate.wait();
    transfer.expect_reply("heard");
    assert!(calls.try_iter().all(|call| call != Call::Timeout));
}

#[test]
fn a_thousand_idle_clients_cost_no_turn_of_the_loop() {
    raise_descriptor_limit();
    let server = start_echo();
    let mut clients: Vec<_> = (0..1000).map(|_| server.connect()).collect();
    for client in clients.iter_mut().step_by(100) {
        client.send("awake").expect_reply("awake");
    }
    server.wait_for("all are accepted and answered", |counters| {
        (counters.accepted, counters.bytes_out) == (1000, 50)
    });
    // The last turn may have found nothing to do.
    clients[0].expect_silence();
    let before = server.counters();
    clients[0].expect_silence();
    assert_eq!(server.counters(), before, "no counter has changed");
    clients[999].send("still here").expect_reply("still here");
    drop(clients);
    server.wait_for_no_connection();
}

// Handlers, factories and hooks that fail

#[test]
fn a_failing_handler_costs_only_its_own_connection() {
    for workers in [0, 2] {
        let act = |call: &Call, cx: &mut Context<'_>| {
            if *call == message("error") {
                cx.send(b"last words")?;
                Err("broken")?;
            }
            assert_ne!(*call, message("panic"), "oh dear");
            echo(call, cx)
        };
        let (server, calls) = match workers {
            0 => start_lines(act),
            workers => start_lines_on_workers(workers, act),
        };
        let mut bystander = server.connect();
        bystander.send("hello\n").expect_reply("hello\n");
        let mut failing = server.connect();
        failing.send("error\n").expect_reply("last words\n").expect_closed();
        assert_eq!(expect_close(&calls), "handler failed: broken");
        let mut panicking = server.connect();
        panicking.send("panic\n").expect_closed();
        assert!(expect_close(&calls).contains("oh dear"));
        bystander.send("still here\n").expect_reply("still here\n");
        server.wait_for("faults are counted", |counters| {
            (counters.handler_errors, counters.panics, counters.closed) == (1, 1, 2)
        });
    }
}

#[test]
fn an_invalid_frame_closes_the_connection_and_reports_the_reason() {
    let (make, calls) = recorders(echo);
    let framing = LengthPrefixed::default().max_len(100);
    let server = Server::tcp(LOCAL).unwrap().framing(framing);
    let server = start_server(server.serve(make).unwrap());
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\n\r\n").expect_closed();
    assert_eq!(expect_close(&calls), "bad frame: longer than 100 bytes");
    server.wait_for("it is counted", |counters| counters.framing_errors == 1);
}

/// Hooks that report faults, and panic or refuse as configured.
#[derive(Default)]
struct TestHooks {
    faults: Option<mpsc::Sender<String>>,
    refuse_every_second: bool,
    panic_in: &'static str,
    asked: usize,
}

impl Hooks for TestHooks {
    fn verify_request(&mut self, _: &Peer) -> bool {
        self.asked += 1;
        assert_ne!(self.panic_in, "verify_request");
        !(self.refuse_every_second && self.asked.is_multiple_of(2))
    }

    fn handle_error(&mut self, _: &Peer, reason: &CloseReason) {
        if let Some(faults) = &self.faults {
            faults.send(reason.to_string()).unwrap();
        }
        assert_ne!(self.panic_in, "handle_error");
    }

    fn handle_timeout(&mut self) {
        assert_ne!(self.panic_in, "handle_timeout");
    }

    fn service_actions(&mut self) {
        assert_ne!(self.panic_in, "service_actions");
    }

    fn wants_service_actions(&self) -> bool {
        assert_ne!(self.panic_in, "wants_service_actions");
        self.panic_in == "service_actions"
    }
}

#[test]
fn every_fault_is_reported_to_the_hook() {
    let (faults, calls) = mpsc::channel();
    let hooks = TestHooks { faults: Some(faults), ..TestHooks::default() };
    let server = Server::tcp(LOCAL).unwrap().hooks(hooks);
    let server =
        server.serve(|_: &Accepted<'_>| -> Box<dyn Handler> { panic!("no handler today") });
    let server = server.unwrap();
    let address = server.local_addr().inet().unwrap();
    // They are accepted in one turn.
    let mut clients: Vec<_> = (0..10).map(|_| connect(address)).collect();
    let server = start_server(server);
    for client in &mut clients {
        client.expect_gone();
        assert_eq!(expect_next(&calls), "handler panicked: no handler today");
    }
    server.wait_for("all are counted", |counters| {
        (counters.panics, counters.accepted, counters.closed) == (10, 10, 10)
    });
}

#[test]
fn a_factory_that_panics_costs_only_that_connection() {
    let mut made = 0;
    let server = Server::tcp(LOCAL).unwrap();
    let server = server.serve(move |_: &Accepted<'_>| {
        made += 1;
        assert_ne!(made, 2, "a panic for the second connection");
        handler_fn(|message, cx| cx.send(message))
    });
    let server = start_server(server.unwrap());
    let mut first = server.connect();
    first.send("one").expect_reply("one");
    server.connect().expect_gone();
    let mut third = server.connect();
    third.send("three").expect_reply("three");
    first.send("again").expect_reply("again");
}

#[test]
fn a_handler_whose_destructor_panics_costs_only_its_own_connection() {
    struct PanicsWhenDropped;
    impl Handler for PanicsWhenDropped {
        fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
            cx.send(message)
        }
    }
    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("in the destructor");
        }
    }
    for workers in [0, 1] {
        let builder = Server::tcp(LOCAL).unwrap();
        let server = match workers {
            0 => builder.serve(|_: &Accepted<'_>| PanicsWhenDropped),
            workers => {
                builder.mode(Offload::new(workers)).serve(|_: &Accepted<'_>| PanicsWhenDropped)
            }
        };
        let server = start_server(server.unwrap());
        let mut bystander = server.connect();
        bystander.send("hello").expect_reply("hello");
        server.connect().end().expect_closed();
        server.wait_for("it is closed", |counters| counters.closed == 1);
        bystander.send("still here").expect_reply("still here");
    }
}

#[test]
fn a_peer_that_is_refused_is_closed_and_the_next_is_served() {
    let hooks = TestHooks { refuse_every_second: true, ..TestHooks::default() };
    let (make, calls) = recorders(echo);
    let server = Server::tcp(LOCAL).unwrap().hooks(hooks).serve(make);
    let server = start_server(server.unwrap());
    for _ in 0..3 {
        let mut welcome = server.connect();
        welcome.send("hello").expect_reply("hello");
        server.connect().expect_closed();
    }
    drop(server.stop());
    let opened = calls.iter().filter(|call| *call == Call::Open).count();
    assert_eq!(opened, 3, "a refused connection has no handler");
}

#[test]
fn a_hook_that_panics_never_ends_the_loop() {
    for hook in ["handle_error", "service_actions", "wants_service_actions"] {
        let hooks = TestHooks { panic_in: hook, ..TestHooks::default() };
        let server = Server::tcp(LOCAL).unwrap().hooks(hooks);
        let server = server.serve(|_: &Accepted<'_>| {
            handler_fn(|message, cx| {
                assert_ne!(message, b"panic");
                cx.send(message)
            })
        });
        let server = start_server(server.unwrap());
        let mut client = server.connect();
        client.send("hello").expect_reply("hello");
        server.connect().send("panic").expect_closed();
        client.send("still here").expect_reply("still here");
    }
    let hooks = TestHooks { panic_in: "verify_request", ..TestHooks::default() };
    let server = Server::tcp(LOCAL).unwrap().hooks(hooks);
    let server = server.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
    let server = start_server(server.unwrap());
    server.connect().expect_closed();
    server.wait_for("the refusal is counted", |counters| counters.refused_by_hook == 1);
    assert_eq!(server.counters().panics, 1);
}

#[test]
fn a_panic_in_handle_timeout_never_ends_the_server() {
    let hooks = TestHooks { panic_in: "handle_timeout", ..TestHooks::default() };
    let server = Server::tcp(LOCAL).unwrap().hooks(hooks);
    let server = server.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
    let mut server = server.unwrap();
    server.request_timeout(Duration::from_millis(10));
    assert!(!server.handle_request().unwrap());
    let mut client = connect(server.local_addr().inet().unwrap());
    client.send("hello").end();
    server.request_timeout(DEADLINE);
    assert!(server.handle_request().unwrap());
    assert_eq!(client.read_to_end(), b"hello");
}

#[test]
fn service_actions_is_called_while_the_server_is_idle_if_the_hooks_want_it() {
    struct Counting(mpsc::Sender<()>);
    impl Hooks for Counting {
        fn service_actions(&mut self) {
            let _ = self.0.send(());
        }
        fn wants_service_actions(&self) -> bool {
            true
        }
    }
    let (called, calls) = mpsc::channel();
    let server = Server::tcp(LOCAL).unwrap().hooks(Counting(called));
    let server = server.poll_interval(Duration::from_millis(5));
    let server = server.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
    let _server = start_server(server.unwrap());
    for _ in 0..5 {
        expect_next(&calls);
    }
}

// Closing and timeouts

#[test]
fn a_peer_that_is_aborted_sees_a_reset() {
    let (server, calls) = start_lines(|call: &Call, cx: &mut Context<'_>| {
        if matches!(call, Call::Message(_)) {
            cx.send(b"never seen")?;
            cx.abort();
        }
        Ok(())
    });
    let mut client = server.connect();
    client.send("go away\n").expect_reset();
    assert_eq!(expect_close(&calls), "closed by the handler");
}

#[test]
fn a_reset_by_the_peer_is_reported_as_disconnected() {
    let (server, calls) = start_lines(echo);
    let mut client = server.connect();
    client.send("hello\n").expect_reply("hello\n").send("unread\n");
    client.reset();
    let reason = expect_close(&calls);
    assert!(reason.starts_with("disconnected"), "{reason}");
    server.wait_for("it is counted", |counters| counters.disconnects == 1);
}

#[test]
fn a_silent_peer_times_out() {
    for workers in [0, 1] {
        let act = |call: &Call, cx: &mut Context<'_>| {
            if *call == Call::Open {
                cx.set_idle_timeout(Duration::from_millis(50))?;
            }
            echo(call, cx)
        };
        let (server, calls) = match workers {
            0 => start_lines(act),
            workers => start_lines_on_workers(workers, act),
        };
        let mut client = server.connect();
        client.expect_closed();
        assert_eq!(expect_next(&calls), Call::Open);
        assert_eq!(expect_next(&calls), Call::Timeout);
        assert_eq!(expect_next(&calls), Call::Close("timed out".into()));
        server.wait_for("it is counted", |counters| counters.timeouts == 1);
    }
}

#[test]
fn an_idle_timeout_that_does_not_close_fires_again() {
    let (server, calls) = start_lines(|call: &Call, cx: &mut Context<'_>| {
        match call {
            Call::Open => cx.set_idle_timeout(Duration::from_millis(20))?,
            Call::Timeout => cx.send(b"well?")?,
            Call::Message(_) => cx.set_idle_timeout(None)?,
            _ => {}
        }
        Ok(())
    });
    let mut client = server.connect();
    client.expect_reply("well?\nwell?\nwell?\n");
    client.send("enough\n");
    while expect_next(&calls) != message("enough") {}
    let timeouts = server.counters().timeouts;
    client.stream.set_nonblocking(true).unwrap();
    while client.stream.read(&mut [0; 100]).is_ok() {}
    client.stream.set_nonblocking(false).unwrap();
    client.expect_silence();
    assert_eq!(server.counters().timeouts, timeouts);
}

#[test]
fn a_peer_that_keeps_sending_does_not_time_out() {
    let (server, calls) = start_lines(|call: &Call, cx: &mut Context<'_>| {
        if *call == Call::Open {
            cx.set_idle_timeout(Duration::from_secs(1))?;
        }
        echo(call, cx)
    });
    let mut client = server.connect();
    // Longer than the timeout in total, shorter for each message.
    for _ in 0..6 {
        client.send("hello\n").expect_reply("hello\n");
        client.expect_silence();
    }
    assert_eq!(server.counters().timeouts, 0);
    assert!(calls.try_iter().all(|call| call != Call::Timeout));
}

#[test]
fn a_peer_that_never_reads_times_out_although_more_is_sent_to_it() {
    let (out, senders) = mpsc::channel();
    let (make, calls) = recorders(move |call: &Call, cx: &mut Context<'_>| {
        if *call == Call::Open {
            cx.set_idle_timeout(A_WHILE)?;
            cx.send(&pattern(16 << 20))?;
            out.send(cx.sender()?)?;
        }
        Ok(())
    });
    let server = Server::tcp(LOCAL).unwrap().write_watermarks(1 << 30, 1);
    let server = start_server(server.serve(make).unwrap());
    let _stalled = server.connect();
    let sender = expect_next(&senders);
    wait_until("it times out", || {
        let _ = sender.send(b"more");
        calls.try_iter().any(|call| call == Call::Timeout)
    });
}

// Senders

#[test]
fn messages_of_other_threads_keep_their_order() {
    let (out, senders) = mpsc::channel();
    let (server, _calls) = start_lines(give_sender(out));
    let mut client = server.connect();
    let sender = expect_next(&senders);
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let sender = sender.clone();
            thread::spawn(move || {
                for number in 0..500 {
                    let line = format!("{thread} {number:03}");
                    while sender.send(line.as_bytes()) == Err(SendError::Full) {
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let mut next = [0; 4];
    for _ in 0..2000 {
        let mut line = [0; 6];
        client.stream.read_exact(&mut line).unwrap();
        let line = std::str::from_utf8(&line).unwrap();
        let (thread, number) = line.trim_end().split_once(' ').unwrap();
        let next = &mut next[thread.parse::<usize>().unwrap()];
        assert_eq!(number.parse(), Ok(*next));
        *next += 1;
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn sending_to_a_closed_connection_is_an_error() {
    let (out, senders) = mpsc::channel();
    let (server, calls) = start_lines(give_sender(out));
    let mut client = server.connect();
    let sender = expect_next(&senders);
    client.end().expect_closed();
    expect_close(&calls);
    wait_until("the sender is closed", || sender.is_closed());
    assert_eq!(sender.send(b"anyone?"), Err(SendError::Closed));
    // The next connection, which may reuse the slot, does not receive it.
    let mut next = server.connect();
    next.send("hello\n").expect_reply("hello\n");
}

#[test]
fn a_sender_can_close_the_connection() {
    for workers in [0, 1] {
        let (out, senders) = mpsc::channel();
        let (server, calls) = match workers {
            0 => start_lines(give_sender(out)),
            workers => start_lines_on_workers(workers, give_sender(out)),
        };
        let mut client = server.connect();
        let sender = expect_next(&senders);
        sender.send(b"last").unwrap();
        sender.close();
        client.expect_reply("last\n").expect_closed();
        assert_eq!(expect_close(&calls), "closed by the handler");
        server.wait_for_no_connection();
    }
}

#[test]
fn sending_to_a_peer_that_never_reads_finally_returns_full() {
    let (out, senders) = mpsc::channel();
    let (server, _calls) = start_lines(give_sender(out));
    let mut client = server.connect();
    let sender = expect_next(&senders);
    let payload = vec![b'x'; 32 << 10];
    let mut taken = 0;
    // The queue stays full, and not only until the loop takes the next messages.
    let mut last_taken = Instant::now();
    wait_until("the queue stays full", || {
        if sender.send(&payload).is_ok() {
            taken += 1;
            last_taken = Instant::now();
        }
        last_taken.elapsed() > A_WHILE
    });
    assert_eq!(sender.send(&payload), Err(SendError::Full));
    let mut back = vec![0; taken * (payload.len() + 1)];
    client.stream.read_exact(&mut back).unwrap();
    wait_until("there is room again", || sender.send(b"more").is_ok());
    client.expect_reply("more\n");
}

#[test]
fn a_broadcast_reaches_all_connections_that_are_still_open() {
    let (out, senders) = mpsc::channel();
    let (server, calls) = start_lines(give_sender(out));
    let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    let senders: Vec<_> = clients.iter().map(|_| expect_next(&senders)).collect();
    let news = "x".repeat(10_000);
    assert_eq!(broadcast(&senders, news.as_bytes()), 20);
    for client in &mut clients {
        client.expect_reply(&news).expect_reply("\n");
    }
    clients.pop().unwrap().end().expect_closed();
    expect_close(&calls);
    wait_until("it is closed", || senders.iter().any(Sender::is_closed));
    assert_eq!(broadcast(&senders, b"bye"), 19);
    for client in &mut clients {
        client.expect_reply("bye\n");
    }
}

/// What a handler does that keeps the connection open at the end of input.
fn stay_half_open(
    out: mpsc::Sender<Sender>,
) -> impl FnMut(&Call, &mut Context<'_>) -> HandlerResult + Clone + Send {
    move |call, cx| match call {
        Call::Eof => Ok(out.send(cx.sender()?)?),
        other => echo(other, cx),
    }
}

#[test]
fn a_peer_that_has_sent_fin_still_receives_messages() {
    for workers in [0, 1] {
        let (out, senders) = mpsc::channel();
        let (server, calls) = match workers {
            0 => start_lines(stay_half_open(out)),
            workers => start_lines_on_workers(workers, stay_half_open(out)),
        };
        let mut client = server.connect();
        client.send("question\n").end().expect_reply("question\n");
        let sender = expect_next(&senders);
        client.expect_silence();
        sender.send(b"answer").unwrap();
        sender.close();
        client.expect_reply("answer\n").expect_closed();
        assert_eq!(expect_close(&calls), "closed by the handler");
    }
}

#[test]
fn a_half_open_peer_that_goes_away_is_noticed_by_the_next_send() {
    let (out, senders) = mpsc::channel();
    let (server, calls) = start_lines(stay_half_open(out));
    let mut client = server.connect();
    client.end();
    let sender = expect_next(&senders);
    drop(client);
    wait_until("the reset is noticed", || sender.send(b"still there?") == Err(SendError::Closed));
    assert!(expect_close(&calls).starts_with("disconnected"));
    server.wait_for_no_connection();
}

#[test]
fn a_half_open_peer_that_resets_is_noticed_at_once() {
    let (out, senders) = mpsc::channel();
    let (server, calls) = start_lines(stay_half_open(out));
    let mut client = server.connect();
    client.end();
    let sender = expect_next(&senders);
    client.reset();
    assert!(expect_close(&calls).starts_with("disconnected"));
    server.wait_for_no_connection();
    assert!(sender.is_closed());
}

// Stopping

#[test]
fn a_handler_can_stop_the_server() {
    for workers in [0, 1] {
        let act = |call: &Call, cx: &mut Context<'_>| {
            if *call == message("stop") {
                cx.send(b"stopping")?;
                cx.stop_server();
            }
            Ok(())
        };
        let (server, _calls) = match workers {
            0 => start_lines(act),
            workers => start_lines_on_workers(workers, act),
        };
        let mut client = server.connect();
        client.send("stop\n").expect_reply("stopping\n");
        let (server, report) = server.join();
        assert_eq!((report.idle, report.aborted), (1, 0));
        client.expect_closed();
        drop(server);
    }
}

#[test]
fn another_thread_can_stop_the_server_and_wait_for_it() {
    let (server, calls) = start_lines(echo);
    let mut client = server.connect();
    client.send("hello\n").expect_reply("hello\n");
    let handle = server.handle();
    assert!(handle.is_running());
    thread::spawn(move || {
        handle.shutdown();
        assert!(handle.wait_timeout(DEADLINE));
        assert!(!handle.is_running());
    })
    .join()
    .unwrap();
    client.expect_closed();
    assert_eq!(expect_close(&calls), "the server is stopping");
}

#[test]
fn a_stop_before_serving_stops_at_once() {
    let server = Server::tcp(LOCAL).unwrap().serve(recorders(echo).0);
    let mut server = server.unwrap();
    server.shutdown_handle().shutdown();
    let report = in_time("it stops", move || server.serve_forever().unwrap());
    assert_eq!(report, StopReport::default());
}

#[test]
fn a_server_that_was_stopped_twice_can_serve_again() {
    let server = Server::tcp(LOCAL).unwrap().serve(recorders(echo).0).unwrap();
    let address = server.local_addr().clone();
    let mut server = server;
    for _ in 0..3 {
        let running = start_server(server);
        let mut client = running.connect();
        client.send("hello").expect_reply("hello");
        let handle = running.handle();
        handle.shutdown();
        handle.shutdown();
        (server, _) = running.join();
        handle.shutdown();
        client.expect_closed();
        assert_eq!(*server.local_addr(), address);
    }
    assert_eq!(server.counters().accepted, 3);
}

#[test]
fn a_connection_made_between_two_runs_is_served_by_the_second() {
    let server = Server::tcp(LOCAL).unwrap().serve(recorders(echo).0).unwrap();
    let running = start_server(server);
    running.connect().send("hello").expect_reply("hello");
    let (server, _) = running.stop();
    let mut client = connect(server.local_addr().inet().unwrap());
    client.send("anyone?");
    let _running = start_server(server);
    client.expect_reply("anyone?");
}

#[test]
fn a_stop_reports_idle_finished_and_aborted_connections() {
    let (make, calls) = recorders(echo);
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    let mut server = builder.serve(make).unwrap();
    server.drain_timeout(Duration::from_secs(2));
    let server = start_server(server);
    let mut idle: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for client in &mut idle {
        client.send("hello\n").expect_reply("hello\n");
    }
    let (mut finishing, mut unfinished) = (server.connect(), server.connect());
    finishing.send("hello\nunfin");
    unfinished.send("hello\nnever");
    for client in [&mut finishing, &mut unfinished] {
        client.expect_reply("hello\n");
    }
    let handle = server.handle();
    handle.shutdown();
    // Idle connections are closed at once; busy ones may finish until the deadline.
    for client in &mut idle {
        client.expect_closed();
    }
    assert!(handle.is_running());
    finishing.send("ished\n").expect_reply("unfinished\n").expect_closed();
    let (_server, report) = server.join();
    assert_eq!((report.idle, report.finished, report.aborted), (3, 1, 1));
    unfinished.expect_gone();
    for _ in 0..5 {
        assert_eq!(expect_close(&calls), "the server is stopping");
    }
}

#[test]
fn a_stop_with_only_idle_clients_does_not_wait() {
    let (make, _calls) = recorders(echo);
    let mut server = Server::tcp(LOCAL).unwrap().serve(make).unwrap();
    // The deadline of the test is much shorter than this one.
    server.drain_timeout(DEADLINE * 100);
    let server = start_server(server);
    let mut clients: Vec<_> = (0..50).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("hello").expect_reply("hello");
    }
    let (_server, report) = server.stop();
    assert_eq!((report.idle, report.finished, report.aborted), (50, 0, 0));
    for client in &mut clients {
        client.expect_closed();
    }
}

#[test]
fn a_stop_lets_a_long_reply_finish() {
    // More than the kernel takes for a client that does not read.
    let reply = pattern(16 << 20);
    let expected = reply.clone();
    let (make, calls) = recorders(move |call: &Call, cx: &mut Context<'_>| match call {
        Call::Message(_) => cx.send(&reply),
        _ => Ok(()),
    });
    let mut server = Server::tcp(LOCAL).unwrap().serve(make).unwrap();
    server.drain_timeout(DEADLINE);
    let server = start_server(server);
    let mut client = server.connect();
    client.send("all of it");
    while expect_next(&calls) == Call::Open {}
    server.handle().shutdown();
    assert!(client.read_to_end() == expected);
    let (_server, report) = server.join();
    assert_eq!((report.idle, report.finished, report.aborted), (0, 1, 0));
}

#[test]
fn a_dropped_server_no_longer_listens() {
    let server = start_echo();
    let address = server.address();
    let (server, _) = server.stop();
    drop(server);
    let refused = TcpStream::connect_timeout(&address, DEADLINE).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    // The address can be bound again.
    let again = Server::tcp(address).unwrap().serve(recorders(echo).0);
    assert_eq!(again.unwrap().local_addr().inet(), Some(address));
}

#[test]
fn an_address_in_use_is_an_error_that_names_it() {
    let server = start_echo();
    let second = Server::tcp(server.address()).unwrap();
    let error = second.serve(recorders(echo).0).unwrap_err();
    let Error::Bind { address, source } = &error else {
        panic!("{error}");
    };
    assert_eq!(*address, format!("tcp://{}", server.address()));
    assert_eq!(source.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&server.address().to_string()));
    assert!(!error.is_usage());
}

// The type `Server`

struct Program {
    server: Server,
}

#[test]
fn a_server_can_be_kept_in_a_struct_and_sent_to_a_thread() {
    fn assert_send<T: Send>(_: &T) {}
    let server = Server::tcp(LOCAL).unwrap().serve(recorders(echo).0).unwrap();
    let program = Program { server };
    assert_send(&program);
    let server = start_server(program.server);
    server.connect().send("hello").expect_reply("hello");
}

#[test]
fn handlers_of_one_run_can_share_values_that_are_not_send() {
    let server = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    let server = server.serve_local(|| {
        let count = Rc::new(std::cell::Cell::new(0));
        move |_: &Accepted<'_>| {
            let count = count.clone();
            handler_fn(move |_, cx| {
                count.set(count.get() + 1);
                cx.send(count.get().to_string().as_bytes())
            })
        }
    });
    let server = start_server(server.unwrap());
    let (mut one, mut two) = (server.connect(), server.connect());
    one.send("x\n").expect_reply("1\n");
    two.send("x\n").expect_reply("2\n");
    one.send("x\n").expect_reply("3\n");
    let (server, _) = server.stop();
    let server = start_server(server);
    // The next run starts with new shared values.
    server.connect().send("x\n").expect_reply("1\n");
}

#[test]
fn one_loop_serves_several_listeners_with_different_framings_and_modes() {
    let mut server = Server::new().unwrap();
    let bytes = Server::tcp(LOCAL).unwrap();
    let lines = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    let prefixed = Server::tcp(LOCAL).unwrap();
    let prefixed = prefixed.framing(LengthPrefixed::default()).mode(Offload::new(2));
    let ids = [
        server.add(
            bytes.service(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message))).unwrap(),
        ),
        server.add(
            lines
                .service(|_: &Accepted<'_>| {
                    handler_fn(|line, cx| cx.send(&line.to_ascii_uppercase()))
                })
                .unwrap(),
        ),
        server.add(
            prefixed
                .service(|_: &Accepted<'_>| {
                    handler_fn(|message, cx| cx.send(message.len().to_string().as_bytes()))
                })
                .unwrap(),
        ),
    ];
    let addresses: BTreeSet<_> =
        ids.into_iter().map(|id| server.address(id.unwrap()).unwrap().port()).collect();
    assert_eq!(addresses.len(), 3);
    let server = start_server(server);
    let [mut bytes, mut lines, mut prefixed] =
        server.addresses().into_iter().map(connect).collect::<Vec<_>>().try_into().unwrap();
    bytes.send("half a li").expect_reply("half a li");
    lines.send("half a li");
    prefixed.send("\0\0\0\x05hel");
    lines.send("ne\n").expect_reply("HALF A LINE\n");
    prefixed.send("lo").expect_reply("\0\0\0\x015");
}

// Offload

#[test]
fn workers_keep_the_order_of_each_connection() {
    let (server, _calls) = start_lines_on_workers(4, echo);
    let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for round in 0..20 {
        let lines: String = (0..100).map(|number| format!("{round} {number}\n")).collect();
        for client in &mut clients {
            client.send(&lines);
        }
        for client in &mut clients {
            client.expect_reply(&lines);
        }
    }
}

#[test]
fn eight_handlers_block_on_eight_workers_at_the_same_time() {
    let all_at_once = Arc::new(Barrier::new(8));
    let (server, _calls) = start_lines_on_workers(8, move |call: &Call, cx: &mut Context<'_>| {
        if matches!(call, Call::Message(_)) {
            // Returns only when all eight handlers are here.
            all_at_once.wait();
        }
        echo(call, cx)
    });
    let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("go\n");
    }
    for client in &mut clients {
        client.expect_reply("go\n");
    }
}

/// An echo that waits at the barrier in each message.
fn echo_behind(
    gate: &Arc<Barrier>,
) -> impl FnMut(&Call, &mut Context<'_>) -> HandlerResult + Clone + Send + 'static {
    let gate = gate.clone();
    move |call, cx| {
        if matches!(call, Call::Message(_)) {
            gate.wait();
        }
        echo(call, cx)
    }
}

#[test]
fn while_all_workers_block_the_loop_serves_other_listeners() {
    let gate = Arc::new(Barrier::new(2));
    let (make, calls) = recorders(echo_behind(&gate));
    let blocking = Server::tcp(LOCAL).unwrap().mode(Offload::new(1));
    let mut server = blocking.serve(make).unwrap();
    let quick = Server::tcp(LOCAL).unwrap();
    let quick = quick.service(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
    server.add(quick.unwrap()).unwrap();
    let server = start_server(server);
    let mut stuck = connect(server.addresses()[0]);
    stuck.send("wait");
    assert_eq!(expect_next(&calls), Call::Open);
    connect(server.addresses()[1]).send("quick").expect_reply("quick");
    gate.wait();
    stuck.expect_reply("wait");
}

#[test]
fn three_mebibytes_come_back_whole_from_workers_too() {
    let server = Server::tcp(LOCAL).unwrap().mode(Offload::new(2));
    let server = server.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
    let server = start_server(server.unwrap());
    let mut client = server.connect();
    let sent = pattern(3 << 20);
    let (mut writer, written) = (client.stream.try_clone().unwrap(), sent.clone());
    let writing = thread::spawn(move || {
        writer.write_all(&written).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    assert!(client.read_to_end() == sent);
    writing.join().unwrap();
    server.wait_for_no_connection();
}

#[test]
fn an_overlong_line_stays_dropped_on_workers() {
    let (make, calls) = recorders(echo);
    let lines = Lines::default().max_len(8).overlong(Overlong::Discard);
    let server = Server::tcp(LOCAL).unwrap().framing(lines);
    let server = start_server(server.mode(Offload::new(1)).serve(make).unwrap());
    let mut client = server.connect();
    client.send("x".repeat(20));
    server.wait_for("it is read", |counters| counters.bytes_in == 20);
    client.send("end\n");
    server.wait_for("it is read", |counters| counters.bytes_in == 24);
    client.send("short\n").expect_reply("short\n");
    assert_eq!(expect_next(&calls), Call::Open);
    assert_eq!(expect_next(&calls), message("short"));
}

#[test]
fn half_a_line_behind_a_long_reply_does_not_stop_the_loop() {
    let reply = pattern(200 << 10);
    let expected = reply.clone();
    let (server, _calls) =
        start_lines_on_workers(1, move |call: &Call, cx: &mut Context<'_>| match call {
            Call::Message(line) if line == b"long" => cx.send(&reply),
            other => echo(other, cx),
        });
    let mut client = server.connect();
    client.send("long\nhal").expect_reply(&expected).expect_reply("\n");
    client.send("f\n").expect_reply("half\n");
    server.connect().send("others\n").expect_reply("others\n");
}

#[test]
fn on_close_is_called_once_for_each_idle_connection_when_workers_stop() {
    let (server, calls) = start_lines_on_workers(2, echo);
    let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("hello\n").expect_reply("hello\n");
    }
    let (server, report) = server.stop();
    assert_eq!(report.idle, 10);
    for _ in 0..10 {
        assert_eq!(expect_close(&calls), "the server is stopping");
    }
    drop(server);
    assert_eq!(calls.iter().count(), 0, "each is closed once");
}

#[test]
fn a_connection_that_is_aborted_while_a_worker_has_it_is_closed_once() {
    let gate = Arc::new(Barrier::new(2));
    let (make, calls) = recorders(echo_behind(&gate));
    let server = Server::tcp(LOCAL).unwrap().mode(Offload::new(1));
    let mut server = server.serve(make).unwrap();
    server.drain_timeout(Duration::from_millis(50));
    let server = start_server(server);
    let mut client = server.connect();
    client.send("never mind");
    assert_eq!(expect_next(&calls), Call::Open);
    server.wait_for("a worker has it", |counters| counters.bytes_in > 0);
    let (server, report) = server.stop();
    assert_eq!(report.aborted, 1);
    client.expect_gone();
    assert_eq!(server.counters().closed, 1);
    gate.wait();
    assert_eq!(expect_next(&calls), message("never mind"));
    assert_eq!(expect_next(&calls), Call::Close("the server is stopping".into()));
    drop(server);
    assert_eq!(calls.iter().count(), 0, "it is closed once");
}

#[test]
fn a_connection_that_is_reset_while_a_worker_has_it_is_closed_once() {
    let gate = Arc::new(Barrier::new(2));
    let (server, calls) = start_lines_on_workers(1, echo_behind(&gate));
    let mut client = server.connect();
    client.send("wait\n");
    assert_eq!(expect_next(&calls), Call::Open);
    server.wait_for("a worker has it", |counters| counters.bytes_in > 0);
    client.reset();
    gate.wait();
    assert_eq!(expect_next(&calls), message("wait"));
    assert!(matches!(expect_next(&calls), Call::Close(_)));
    server.wait_for_no_connection();
    let (server, _) = server.stop();
    drop(server);
    assert_eq!(calls.iter().count(), 0);
}

#[test]
fn a_sender_works_while_a_worker_has_its_connection() {
    let gate = Arc::new(Barrier::new(2));
    let waiting = gate.clone();
    let kept = Arc::new(Mutex::new(None));
    let out = kept.clone();
    let (server, calls) = start_lines_on_workers(1, move |call: &Call, cx: &mut Context<'_>| {
        match call {
            Call::Open => *out.lock().unwrap() = Some(cx.sender()?),
            Call::Message(_) => _ = waiting.wait(),
            _ => {}
        }
        echo(call, cx)
    });
    let mut client = server.connect();
    assert_eq!(expect_next(&calls), Call::Open);
    let sender = kept.lock().unwrap().take().unwrap();
    sender.send(b"before").unwrap();
    client.expect_reply("before\n").send("wait\n");
    server.wait_for("a worker has it", |counters| counters.bytes_in > 0);
    sender.send(b"meanwhile").unwrap();
    gate.wait();
    client.expect_reply("wait\nmeanwhile\n");
}

#[test]
fn a_loop_that_spins_before_it_sleeps_serves_and_sleeps() {
    let handler = |_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message));
    let mut server = Server::tcp(LOCAL).unwrap().serve(handler).unwrap();
    server.spin(Duration::from_micros(50));
    let server = start_server(server);
    let mut client = server.connect();
    for message in ["one", "two", "three"] {
        client.send(message).expect_reply(message);
    }
    let before = server.counters().turns;
    client.expect_silence();
    assert!(server.counters().turns <= before + 1, "an idle loop sleeps");
    drop(server.stop());
}
