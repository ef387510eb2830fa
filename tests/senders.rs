//! Senders, in every mode that has them, and workers that block at the same time.

mod support;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use socketserver::{
    Accepted, Context, Decoded, FixedSize, Forking, Framing, FramingError, Handler, HandlerResult,
    Inline, Lines, Mode, Offload, Output, Raw, SendError, Sender, Server, broadcast, handler_fn,
};
use support::{
    A_WHILE, Call, Client, DEADLINE, TestServer, connect, echo, expect_close, expect_next,
    recorders, start_server,
};

const LOCAL: &str = "127.0.0.1:0";

/// The modes in which a handler can ask for a sender.
fn modes_with_senders() -> impl Iterator<Item = Mode> {
    Mode::all().filter(|mode| !matches!(mode.name(), "inline" | "forking"))
}

/// An echo that passes its sender to the test when it opens.
struct EchoWithSender(mpsc::Sender<Sender>);

impl Handler for EchoWithSender {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        Ok(self.0.send(cx.sender()?)?)
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        cx.send(message)
    }
}

fn start_with_senders(mode: Mode) -> (TestServer, Receiver<Sender>) {
    let (give, given) = mpsc::channel();
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
    let server = builder.serve(move |_: &Accepted<'_>| EchoWithSender(give.clone())).unwrap();
    (start_server(server), given)
}

/// Connects a client; returns it and the sender of its connection.
fn connect_with_sender(server: &TestServer, given: &Receiver<Sender>) -> (Client, Sender) {
    let client = server.connect();
    (client, given.recv_timeout(DEADLINE).expect("a sender within the deadline"))
}

#[test]
fn messages_of_another_thread_arrive_framed_and_in_order() {
    for mode in modes_with_senders() {
        let (server, given) = start_with_senders(mode);
        let (mut client, sender) = connect_with_sender(&server, &given);
        client.send("hello\n").expect_reply("hello\n");
        let mut expected = String::new();
        for number in 0..200 {
            sender.send(format!("{number}").as_bytes()).unwrap();
            expected.push_str(&format!("{number}\n"));
        }
        client.expect_reply(expected);
        client.send("still\n").expect_reply("still\n");
    }
}

#[test]
fn messages_of_several_threads_keep_the_order_of_each_thread() {
    const THREADS: usize = 4;
    const EACH: usize = 500;
    for mode in modes_with_senders() {
        let (server, given) = start_with_senders(mode);
        let (client, sender) = connect_with_sender(&server, &given);
        let sending: Vec<_> = (0..THREADS)
            .map(|thread| {
                let sender = sender.clone();
                thread::spawn(move || {
                    for number in 0..EACH {
                        while sender.send(format!("{thread} {number}").as_bytes()).is_err() {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut next = [0; THREADS];
        let lines = std::io::BufRead::lines(std::io::BufReader::new(&client.stream));
        for line in lines.take(THREADS * EACH) {
            let line = line.unwrap();
            let (thread, number) = line.split_once(' ').unwrap();
            let thread: usize = thread.parse().unwrap();
            assert_eq!(number.parse(), Ok(next[thread]), "{mode}");
            next[thread] += 1;
        }
        assert_eq!(next, [EACH; THREADS]);
        sending.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

/// Another connection may reuse its slot, its thread and its descriptor.
#[test]
fn a_sender_of_a_closed_connection_never_reaches_another_connection() {
    for mode in modes_with_senders() {
        let (server, given) = start_with_senders(mode);
        let (mut client, old) = connect_with_sender(&server, &given);
        client.end().expect_closed();
        server.wait_for_no_connection();
        for _ in 0..20 {
            let (mut other, sender) = connect_with_sender(&server, &given);
            assert_eq!(old.send(b"for another"), Err(SendError::Closed), "{mode}");
            assert!(old.is_closed() && !sender.is_closed() && !old.is_same(&sender));
            old.close();
            sender.send(b"mine").unwrap();
            other.expect_reply("mine\n").end().expect_closed();
        }
    }
}

#[test]
fn a_broadcast_reaches_every_open_connection_in_every_mode_with_senders() {
    for mode in modes_with_senders() {
        let (server, given) = start_with_senders(mode);
        let mut clients: Vec<_> = (0..8).map(|_| connect_with_sender(&server, &given)).collect();
        let (mut gone, _) = clients.pop().unwrap();
        let senders: Vec<_> = clients.iter().map(|(_, sender)| sender.clone()).collect();
        gone.end().expect_closed();
        assert_eq!(broadcast(&senders, b"to all"), 7);
        for (client, _) in &mut clients {
            client.expect_reply("to all\n");
        }
        let payload: Arc<[u8]> = b"one payload".as_slice().into();
        senders.iter().for_each(|sender| sender.send_shared(&payload).unwrap());
        for (client, _) in &mut clients {
            client.expect_reply("one payload\n");
        }
        drop(server.stop());
        // The server has kept no reference to it.
        assert_eq!(Arc::strong_count(&payload), 1, "{mode}");
    }
}

#[test]
fn the_send_queue_of_a_peer_that_does_not_read_fills_and_others_do_not() {
    for mode in modes_with_senders() {
        let (server, given) = start_with_senders(mode);
        let (mut slow, to_slow) = connect_with_sender(&server, &given);
        let (mut quick, to_quick) = connect_with_sender(&server, &given);
        let chunk = [b'x'; 8000];
        let mut taken = 0;
        let mut refused = 0;
        // A queue that is full once may only wait for the loop to take its messages.
        while refused < 1000 {
            match to_slow.send(&chunk) {
                Ok(()) => (taken, refused) = (taken + 1, 0),
                Err(error) => {
                    assert_eq!(error, SendError::Full);
                    refused += 1;
                    to_quick.send(b"not full").unwrap();
                    quick.expect_reply("not full\n");
                }
            }
        }
        let line = [&chunk[..], b"\n"].concat();
        for _ in 0..taken {
            slow.expect_reply(&line);
        }
        to_slow.send(b"room again").unwrap();
        slow.expect_reply("room again\n");
    }
}

/// While a handler is at work nothing is taken from the queue.
#[test]
fn a_sender_queues_as_much_as_its_limit_says_whatever_the_water_marks_are() {
    const MESSAGE: [u8; 936] = [b'x'; 936];
    for mode in modes_with_senders() {
        for (limit, marks, queued) in [
            (None, None, 262),
            (None, Some((1000, 10)), 262),
            (Some(10_000), Some((1 << 20, 10)), 10),
            (Some(0), None, 1),
        ] {
            let mut builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
            if let Some(limit) = limit {
                builder = builder.sender_limit(limit);
            }
            if let Some((high, low)) = marks {
                builder = builder.write_watermarks(high, low);
            }
            let server = builder.serve(|_: &Accepted<'_>| {
                handler_fn(|_: &[u8], cx: &mut Context<'_>| {
                    let sender = cx.sender()?;
                    let taken = (0..).take_while(|_| sender.send(&MESSAGE).is_ok()).count();
                    cx.send(taken.to_string().as_bytes())
                })
            });
            let server = start_server(server.unwrap());
            let mut client = server.connect();
            client.send("how many?\n").expect_reply(format!("{queued}\n"));
            for _ in 0..queued {
                client.expect_reply([&MESSAGE[..], b"\n"].concat());
            }
        }
    }
}

#[test]
fn a_close_by_a_sender_comes_after_the_messages_sent_before() {
    for mode in modes_with_senders() {
        let (server, given) = start_with_senders(mode);
        let (mut client, sender) = connect_with_sender(&server, &given);
        sender.send(b"last words").unwrap();
        sender.close();
        client.expect_reply("last words\n").expect_closed();
    }
}

/// Sends to a peer that does not read until the queue stays full; returns the bytes that were
/// accepted.
fn send_until_stalled(sender: &Sender) -> Vec<u8> {
    let mut sent = Vec::new();
    let mut refused_since = None;
    loop {
        let line = format!("{:0>999}", sent.len());
        match sender.send(line.as_bytes()) {
            Ok(()) => {
                sent.extend_from_slice(line.as_bytes());
                sent.push(b'\n');
                refused_since = None;
            }
            Err(error) => {
                assert_eq!(error, SendError::Full);
                if refused_since.get_or_insert_with(Instant::now).elapsed() > A_WHILE {
                    return sent;
                }
                thread::yield_now();
            }
        }
    }
}

/// A server whose handlers record their calls and pass their senders to the test when they open.
fn start_recording(mode: Mode) -> (TestServer, Receiver<Call>, Receiver<Sender>) {
    let (give, given) = mpsc::channel();
    let (make, calls) = recorders(move |call: &Call, cx: &mut Context<'_>| {
        if *call == Call::Open {
            give.send(cx.sender()?)?;
        }
        echo(call, cx)
    });
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
    (start_server(builder.serve(make).unwrap()), calls, given)
}

/// The connection ends with a reset.
fn expect_end_by_reset(client: &mut Client) {
    let error = std::io::copy(&mut client.stream, &mut std::io::sink()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_close_behind_a_full_send_queue_takes_effect_after_the_queued_messages() {
    for mode in modes_with_senders() {
        let (server, calls, given) = start_recording(mode);
        let (mut client, sender) = connect_with_sender(&server, &given);
        let sent = send_until_stalled(&sender);
        assert!(!sender.is_closed());
        for _ in 0..3 {
            sender.close();
            assert_eq!(sender.send(b"late"), Err(SendError::Closed), "{mode}");
            assert!(sender.is_closed());
        }
        assert!(client.expect_reply(&sent).read_to_end().is_empty(), "{mode}");
        assert_eq!(expect_close(&calls), "closed by the handler", "{mode}");
    }
}

/// They are more than one turn of the loop takes from the queue.
#[test]
fn all_messages_sent_before_a_close_arrive() {
    for mode in modes_with_senders() {
        let (give, given) = mpsc::channel();
        let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
        let builder = builder.write_watermarks(4 << 20, 1 << 20).sender_limit(4 << 20);
        let server = builder.serve(move |_: &Accepted<'_>| EchoWithSender(give.clone())).unwrap();
        let server = start_server(server);
        let (mut client, sender) = connect_with_sender(&server, &given);
        let sent = send_until_stalled(&sender);
        sender.close();
        client.expect_reply(&sent).expect_closed();
    }
}

/// This test takes as long as the time limit that it checks.
#[test]
fn a_connection_that_a_sender_closed_is_reset_when_its_peer_reads_nothing_for_30_seconds() {
    let limit = Duration::from_secs(30);
    thread::scope(|scope| {
        for mode in modes_with_senders() {
            scope.spawn(move || {
                let (server, calls, given) = start_recording(mode);
                let (mut client, sender) = connect_with_sender(&server, &given);
                let sent = send_until_stalled(&sender);
                sender.close();
                assert_eq!(calls.recv_timeout(DEADLINE), Ok(Call::Open));
                let reason = calls.recv_timeout(limit + DEADLINE);
                assert_eq!(reason, Ok(Call::Close("closed by the handler".into())), "{mode}");
                let mut received = Vec::new();
                let error = client.stream.read_to_end(&mut received).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{mode}");
                assert!(sent.starts_with(&received) && sent != received);
                server.wait_for_no_connection();
            });
        }
    });
}

#[test]
fn an_abort_resets_a_connection_whose_peer_does_not_read() {
    for mode in modes_with_senders() {
        for closed_before in [false, true] {
            let (server, calls, given) = start_recording(mode);
            let (mut client, sender) = connect_with_sender(&server, &given);
            send_until_stalled(&sender);
            if closed_before {
                sender.close();
            }
            for _ in 0..3 {
                sender.abort();
                assert_eq!(sender.send(b"late"), Err(SendError::Closed), "{mode}");
            }
            assert_eq!(expect_close(&calls), "closed by the handler", "{mode}");
            expect_end_by_reset(&mut client);
            server.wait_for_no_connection();
        }
    }
}

#[test]
fn an_abort_resets_a_connection_that_waits_for_input() {
    for mode in modes_with_senders() {
        let (server, calls, given) = start_recording(mode);
        let (mut client, sender) = connect_with_sender(&server, &given);
        client.send("hello\n").expect_reply("hello\n");
        sender.abort();
        client.expect_reset();
        assert_eq!(expect_close(&calls), "closed by the handler", "{mode}");
    }
}

/// The waiting output is that of the handler and not of a sender.
#[test]
fn an_abort_resets_a_connection_whose_peer_does_not_read_its_reply() {
    for mode in modes_with_senders() {
        let (give, given) = mpsc::channel();
        let (make, calls) = recorders(move |call: &Call, cx: &mut Context<'_>| match call {
            Call::Open => Ok(give.send(cx.sender()?)?),
            Call::Message(_) => cx.send(&[b'x'; 32 << 20]),
            _ => Ok(()),
        });
        let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
        let server = start_server(builder.serve(make).unwrap());
        let (mut client, sender) = connect_with_sender(&server, &given);
        // Part of the reply has arrived, and the kernel does not take all of it.
        client.send("much\n").expect_reply("xxxx");
        sender.abort();
        assert_eq!(expect_close(&calls), "closed by the handler", "{mode}");
        expect_end_by_reset(&mut client);
    }
}

/// Both those in the queue and the one that is being framed.
#[test]
fn an_abort_frees_the_queued_messages() {
    for mode in modes_with_senders() {
        let (server, calls, given) = start_recording(mode);
        let (mut client, sender) = connect_with_sender(&server, &given);
        send_until_stalled(&sender);
        let payload: Arc<[u8]> = vec![b'x'; 10].into();
        while sender.send_shared(&payload).is_ok() {}
        sender.abort();
        expect_close(&calls);
        server.wait_for_no_connection();
        assert_eq!(Arc::strong_count(&payload), 1, "{mode}");
        expect_end_by_reset(&mut client);
    }
}

#[test]
fn an_abort_resets_a_connection_whose_peer_has_sent_fin() {
    for mode in modes_with_senders() {
        let (give, given) = mpsc::channel();
        let (make, calls) = recorders(move |call: &Call, cx: &mut Context<'_>| {
            if *call == Call::Eof {
                give.send(cx.sender()?)?;
            }
            Ok(())
        });
        let server = start_server(Server::tcp(LOCAL).unwrap().mode(mode).serve(make).unwrap());
        let mut client = server.connect();
        client.end();
        given.recv_timeout(DEADLINE).unwrap().abort();
        client.expect_reset();
        assert_eq!(expect_close(&calls), "closed by the handler", "{mode}");
    }
}

#[test]
fn a_stop_waits_no_longer_than_its_drain_deadline_for_a_closed_connection_that_is_not_read() {
    for mode in modes_with_senders() {
        let (give, given) = mpsc::channel();
        let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
        let mut server =
            builder.serve(move |_: &Accepted<'_>| EchoWithSender(give.clone())).unwrap();
        server.drain_timeout(A_WHILE);
        let server = start_server(server);
        let (mut client, sender) = connect_with_sender(&server, &given);
        send_until_stalled(&sender);
        sender.close();
        let (_server, report) = server.stop();
        assert_eq!(report.aborted, 1, "{mode}");
        client.expect_gone();
        // Does nothing: the connection is closed.
        sender.abort();
    }
}

#[test]
fn a_message_that_cannot_be_framed_is_refused_and_the_connection_stays_open() {
    for mode in modes_with_senders() {
        let (give, given) = mpsc::channel();
        let builder = Server::tcp(LOCAL).unwrap().framing(FixedSize::new(4)).mode(mode);
        let server = builder.serve(move |_: &Accepted<'_>| EchoWithSender(give.clone())).unwrap();
        let server = start_server(server);
        let (mut client, sender) = connect_with_sender(&server, &given);
        let error = sender.send(b"three").unwrap_err();
        assert_eq!(error.to_string(), "the message is not of the fixed size", "{mode}");
        assert_eq!(broadcast([&sender], b"three"), 0);
        sender.send(b"four").unwrap();
        client.expect_reply("four").send("echo").expect_reply("echo");
    }
}

/// A framing that refuses a message in `encode`, and does not announce it by `encodable`.
#[derive(Clone)]
struct RefusesBad;

impl Framing for RefusesBad {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        Raw.decode(input)
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        if message == b"bad" {
            return Err(FramingError::Unencodable("it is bad"));
        }
        Raw.encode(message, output)
    }
}

#[test]
fn a_message_that_only_the_framing_refuses_is_dropped_and_the_connection_stays_open() {
    for mode in modes_with_senders() {
        let (give, given) = mpsc::channel();
        let builder = Server::tcp(LOCAL).unwrap().framing(RefusesBad).mode(mode);
        let server = builder.serve(move |_: &Accepted<'_>| EchoWithSender(give.clone())).unwrap();
        let server = start_server(server);
        let (mut client, sender) = connect_with_sender(&server, &given);
        for message in ["good", "bad", "good"] {
            sender.send(message.as_bytes()).unwrap();
        }
        client.expect_reply("goodgood").send("echo").expect_reply("echo");
        client.end().expect_closed();
        server.wait_for("the dropped message is counted", |counters| counters.unsent == 1);
    }
}

#[test]
#[allow(clippy::mutable_key_type)] // only the connection, which never changes, is compared
fn senders_are_equal_by_their_connection_and_are_keys_of_a_map() {
    let (server, given) = start_with_senders(Mode::default());
    let (_one, first) = connect_with_sender(&server, &given);
    let (_two, second) = connect_with_sender(&server, &given);
    assert_eq!(first, first.clone());
    assert_ne!(first, second);
    let mut names = HashMap::from([(first.clone(), "first"), (second.clone(), "second")]);
    assert_eq!(names.insert(first.clone(), "again"), Some("first"));
    assert_eq!(names[&second], "second");
    assert_eq!(names.len(), 2);
}

#[test]
fn a_sender_tells_the_peer_and_an_id_that_no_connection_of_any_server_has_again() {
    let mut ids = Vec::new();
    for mode in modes_with_senders() {
        let (server, given) = start_with_senders(mode);
        for _ in 0..3 {
            let (mut client, sender) = connect_with_sender(&server, &given);
            let address = client.stream.local_addr().unwrap();
            assert_eq!(sender.peer().inet(), Some(address), "{mode}");
            assert_eq!(sender.id(), sender.clone().id());
            client.end().expect_closed();
            server.wait_for_no_connection();
            let id = sender.id();
            assert_eq!(
                format!("{sender:?}"),
                format!("Sender {{ id: ConnectionId({id}), peer: Inet({address}), .. }}")
            );
            ids.push(id);
        }
    }
    assert!(ids.is_sorted_by(|earlier, later| earlier < later), "{ids:?}");
}

/// A value that tells where it is dropped.
struct Tells(usize, mpsc::Sender<(usize, ThreadId)>);

impl Drop for Tells {
    fn drop(&mut self) {
        // The test may be over.
        let _ = self.1.send((self.0, thread::current().id()));
    }
}

/// Gives away its sender and the thread that runs it with each message.
struct GivingThread(mpsc::Sender<(Sender, ThreadId)>);

impl Handler for GivingThread {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        self.0.send((cx.sender()?, thread::current().id()))?;
        cx.send(message)
    }
}

#[test]
fn events_are_taken_in_order_and_by_the_thread_that_runs_the_handler() {
    for mode in modes_with_senders() {
        let mode = match mode {
            Mode::Offload(_) => Mode::Offload(Offload::new(1)),
            other => other,
        };
        let (give, given) = mpsc::channel();
        let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
        let server = builder.serve(move |_: &Accepted<'_>| GivingThread(give.clone())).unwrap();
        let server = start_server(server);
        let mut client = server.connect();
        client.send("hello\n").expect_reply("hello\n");
        let (sender, runs) = given.recv_timeout(DEADLINE).unwrap();
        let (tell, told) = mpsc::channel();
        let mut expected = String::new();
        for number in 0..500 {
            if number % 3 == 0 {
                sender.send(format!("{number}").as_bytes()).unwrap();
                expected.push_str(&format!("{number}\n"));
            } else {
                sender.post(Box::new(Tells(number, tell.clone()))).unwrap();
            }
        }
        for number in (0..500).filter(|number| number % 3 != 0) {
            assert_eq!(told.recv_timeout(DEADLINE), Ok((number, runs)), "{mode}");
        }
        client.expect_reply(expected).send("still\n").expect_reply("still\n");
    }
}

#[test]
fn events_that_were_posted_before_a_close_are_taken_and_later_ones_are_refused() {
    for mode in modes_with_senders() {
        let (server, given) = start_with_senders(mode);
        let (mut client, sender) = connect_with_sender(&server, &given);
        let (tell, told) = mpsc::channel();
        for number in 0..100 {
            sender.post(Box::new(Tells(number, tell.clone()))).unwrap();
        }
        sender.send(b"last words").unwrap();
        sender.close();
        let late = sender.post(Box::new(Tells(100, tell.clone())));
        assert_eq!(late, Err(SendError::Closed), "{mode}");
        client.expect_reply("last words\n").expect_closed();
        let mut numbers: Vec<usize> = told.try_iter().map(|(number, _)| number).collect();
        numbers.sort();
        assert!(numbers.into_iter().eq(0..=100), "{mode}");
    }
}

#[test]
fn events_that_wait_when_the_connection_ends_are_dropped() {
    for mode in modes_with_senders() {
        let (server, told, given) = start_recording(mode);
        let (mut client, sender) = connect_with_sender(&server, &given);
        send_until_stalled(&sender);
        // No event is taken while so much output waits.
        let (tell, dropped) = mpsc::channel();
        let mut posted = 0;
        while sender.post(Box::new(Tells(posted, tell.clone()))).is_ok() {
            posted += 1;
        }
        assert_eq!(posted, 1024, "{mode}");
        sender.abort();
        expect_close(&told);
        for _ in 0..=posted {
            dropped.recv_timeout(DEADLINE).expect("all are dropped, and the one too many");
        }
        expect_end_by_reset(&mut client);
    }
}

/// The peer has said all it will say, and is still sent to.
/// The peer has shut down its sending direction, and still receives.
#[test]
fn a_peer_that_has_sent_fin_can_be_sent_to() {
    struct StaysOpen(mpsc::Sender<Sender>);
    impl Handler for StaysOpen {
        fn on_message(&mut self, _: &[u8], _: &mut Context<'_>) -> HandlerResult {
            Ok(())
        }
        fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
            Ok(self.0.send(cx.sender()?)?)
        }
    }
    for mode in modes_with_senders() {
        let (give, given) = mpsc::channel();
        let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
        let server = builder.serve(move |_: &Accepted<'_>| StaysOpen(give.clone())).unwrap();
        let server = start_server(server);
        let mut client = server.connect();
        client.end();
        let sender = given.recv_timeout(DEADLINE).unwrap();
        sender.send(b"news").unwrap();
        client.expect_reply("news\n");
        sender.close();
        client.expect_closed();
        // A connection without a sender is closed.
        let mut client = server.connect();
        client.end();
        let sender = given.recv_timeout(DEADLINE).unwrap();
        let other = sender.clone();
        drop(sender);
        other.send(b"news").unwrap();
        client.expect_reply("news\n");
        other.send(b"last").unwrap();
        drop(other);
        client.expect_reply("last\n").expect_closed();
        server.wait_for_no_connection();
    }
}

/// A connection with an idle timeout stays open after FIN, even without a sender.
#[test]
fn a_peer_that_has_sent_fin_can_still_time_out_in_every_mode() {
    struct ClosesOnTimeout(Duration);
    impl Handler for ClosesOnTimeout {
        fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
            Ok(cx.set_idle_timeout(self.0)?)
        }
        fn on_message(&mut self, _: &[u8], _: &mut Context<'_>) -> HandlerResult {
            Ok(())
        }
        fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
            cx.send(b"ended")
        }
        fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
            cx.send(b"timed out")?;
            cx.close();
            Ok(())
        }
    }
    for mode in Mode::all() {
        // This process has other threads, which the child does not need.
        let mode = match mode {
            Mode::Forking(forking) => Mode::Forking(forking.allow_threads(true)),
            other => other,
        };
        let serve = |timeout| {
            let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
            start_server(builder.serve(move |_: &Accepted<'_>| ClosesOnTimeout(timeout)).unwrap())
        };
        let server = serve(Duration::from_millis(50));
        let mut client = server.connect();
        client.end().expect_reply("ended\ntimed out\n").expect_closed();
        drop(server);
        // At a stop it counts as idle.
        let server = serve(2 * DEADLINE);
        let mut client = server.connect();
        client.end().expect_reply("ended\n");
        let (_server, report) = server.stop();
        assert_eq!(report.aborted, 0, "{mode}");
        client.expect_closed();
    }
}

#[test]
fn a_stop_closes_a_connection_that_has_a_sender() {
    for mode in modes_with_senders() {
        let (server, given) = start_with_senders(mode);
        let (mut client, sender) = connect_with_sender(&server, &given);
        client.send("hello\n").expect_reply("hello\n");
        let (_server, report) = server.stop();
        assert_eq!(report.aborted, 0, "{mode}");
        client.expect_closed();
        assert_eq!(sender.send(b"late"), Err(SendError::Closed), "{mode}");
    }
}

#[test]
fn in_a_mode_without_senders_asking_for_a_sender_is_a_typed_error() {
    let answer = |cx: &mut Context<'_>| format!("{:?}", cx.sender().map(drop));
    let server = Server::tcp(LOCAL).unwrap().mode(Inline);
    let server = server.serve(move |_: &Accepted<'_>| {
        handler_fn(move |_, cx| {
            let answer = answer(cx);
            cx.send(answer.as_bytes())
        })
    });
    let server = start_server(server.unwrap());
    server.connect().send("?").expect_reply("Err(InlineSender)");
    // This process has other threads, which the child does not need.
    let server = Server::tcp(LOCAL).unwrap().mode(Forking::default().allow_threads(true));
    let server = server.serve(move |_: &Accepted<'_>| {
        handler_fn(move |_, cx| {
            let answer = answer(cx);
            cx.send(answer.as_bytes())
        })
    });
    let server = start_server(server.unwrap());
    server.connect().send("?").expect_reply("Err(ForkingSender)");
}

/// Each of eight handlers waits for the seven others, while the loop answers on another listener.
#[test]
fn eight_workers_block_at_the_same_time_and_the_loop_serves_others() {
    const WORKERS: usize = 8;
    let barrier = Arc::new(Barrier::new(WORKERS + 1));
    let (arrive, arrived) = mpsc::channel();
    let mut server = Server::new().unwrap();
    let meeting = barrier.clone();
    let blocking = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    let blocking = blocking.mode(Offload::new(WORKERS)).service(move |_: &Accepted<'_>| {
        let (barrier, arrive) = (meeting.clone(), arrive.clone());
        handler_fn(move |message: &[u8], cx: &mut Context<'_>| {
            arrive.send(())?;
            barrier.wait();
            cx.send(message)
        })
    });
    let echo = Server::tcp(LOCAL).unwrap();
    let echo = echo.service(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
    server.add(blocking.unwrap()).unwrap();
    server.add(echo.unwrap()).unwrap();
    let server = start_server(server);
    let [blocking, echo] = server.addresses()[..] else { panic!("two addresses") };
    let mut waiting: Vec<_> = (0..WORKERS).map(|_| connect(blocking)).collect();
    for client in &mut waiting {
        client.send("wait\n");
    }
    for _ in 0..WORKERS {
        arrived.recv_timeout(DEADLINE).expect("eight handlers run at a time");
    }
    for _ in 0..100 {
        connect(echo).send("hello").expect_reply("hello");
    }
    barrier.wait();
    for client in &mut waiting {
        client.expect_reply("wait\n");
    }
}

/// However many messages and results arrive between two turns.
#[test]
fn the_loop_is_woken_at_most_once_per_turn() {
    for mode in modes_with_senders() {
        let (server, given) = start_with_senders(mode);
        let mut clients: Vec<_> = (0..16).map(|_| connect_with_sender(&server, &given)).collect();
        thread::scope(|scope| {
            for (client, sender) in &mut clients {
                scope.spawn(move || {
                    for _ in 0..100 {
                        sender.send(b"from elsewhere").unwrap();
                        client.expect_reply("from elsewhere\n");
                        client.send("hello\n").expect_reply("hello\n");
                    }
                });
            }
        });
        let counters = server.counters();
        assert!(counters.wakes <= counters.turns, "{mode}: {counters:?}");
    }
}

/// However many jobs a turn queues, and however many turns they take.
#[test]
fn only_sleeping_workers_are_woken() {
    const WORKERS: usize = 4;
    let (arrive, arrived) = mpsc::channel();
    let (go, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    let builder = builder.mode(Offload::new(WORKERS));
    let server = builder.serve(move |_: &Accepted<'_>| {
        let (arrive, gate) = (arrive.clone(), gate.clone());
        handler_fn(move |message: &[u8], cx: &mut Context<'_>| {
            arrive.send(())?;
            gate.lock().unwrap().recv_timeout(DEADLINE)?;
            cx.send(message)
        })
    });
    let server = start_server(server.unwrap());
    let mut clients: Vec<_> = (0..3 * WORKERS).map(|_| server.connect()).collect();
    // Once each has had an answer, all `on_open` jobs are done.
    for client in &mut clients {
        go.send(()).unwrap();
        client.send("open\n").expect_reply("open\n");
        arrived.recv_timeout(DEADLINE).unwrap();
    }
    for round in 1..=20 {
        let before = server.counters();
        for client in &mut clients {
            client.send("wait\n");
        }
        for _ in 0..WORKERS {
            arrived.recv_timeout(DEADLINE).expect("all workers run a job");
        }
        // The other jobs are queued, and no worker sleeps.
        server.wait_for("all is read", |now| now.bytes_in == (1 + round) * 15 * WORKERS as u64);
        let woken = server.counters().worker_wakes - before.worker_wakes;
        assert!(woken <= WORKERS as u64, "{woken} wakes for {WORKERS} workers");
        for _ in &clients {
            go.send(()).unwrap();
        }
        for _ in WORKERS..clients.len() {
            arrived.recv_timeout(DEADLINE).expect("the other jobs begin");
        }
        // A worker that finishes a job takes the next one.
        let woken = server.counters().worker_wakes - before.worker_wakes;
        assert!(woken <= WORKERS as u64, "{woken} wakes for {WORKERS} workers");
        for client in &mut clients {
            client.expect_reply("wait\n");
        }
    }
    assert!(server.counters().worker_wakes > 0, "the workers sleep in between");
}

/// Over TCP and over a Unix socket, which are read in different ways.
#[test]
fn a_message_sent_while_a_worker_has_the_connection_goes_out_although_only_half_a_line_follows() {
    let (arrive, arrived) = mpsc::channel();
    let (go, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let make = move |_: &Accepted<'_>| {
        let (arrive, gate) = (arrive.clone(), gate.clone());
        handler_fn(move |message: &[u8], cx: &mut Context<'_>| {
            if message == b"wait" {
                arrive.send(cx.sender()?)?;
                // No answer: that the peer reads it would be an event of its own.
                return Ok(gate.lock().unwrap().recv_timeout(DEADLINE)?);
            }
            cx.send(message)
        })
    };
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    let mut server = builder.mode(Offload::new(2)).serve(make.clone()).unwrap();
    let builder = Server::without_listener().unwrap().framing(Lines::default());
    let service = builder.mode(Offload::new(2)).service(make).unwrap();
    let unix = server.add(service).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(DEADLINE)).unwrap();
    server.add_connection(unix, ours).unwrap();
    let server = start_server(server);
    let mut tcp = server.connect();
    exchange(&mut tcp.stream, &server, &arrived, &go);
    exchange(&theirs, &server, &arrived, &go);
}

fn exchange(
    mut stream: impl Read + Write,
    server: &TestServer,
    arrived: &Receiver<Sender>,
    go: &mpsc::Sender<()>,
) {
    stream.write_all(b"wait\n").unwrap();
    let sender = arrived.recv_timeout(DEADLINE).unwrap();
    sender.send(b"news").unwrap();
    stream.write_all(b"half").unwrap();
    // When this one is served, the loop has been told of both.
    server.connect().send("hello\n").expect_reply("hello\n");
    go.send(()).unwrap();
    let mut received = [0; b"news\n".len()];
    stream.read_exact(&mut received).expect("what was sent");
    assert_eq!(received, *b"news\n");
    stream.write_all(b" a line\n").unwrap();
    let mut received = [0; b"half a line\n".len()];
    stream.read_exact(&mut received).expect("the echo");
}

/// The messages of one read are one job, and its results wake the loop once.
#[test]
fn many_small_messages_in_one_write_cause_few_wakes() {
    let (server, given) = start_with_senders(Mode::Offload(Offload::new(2)));
    let (mut client, _sender) = connect_with_sender(&server, &given);
    client.send("hello\n").expect_reply("hello\n");
    let before = server.counters();
    let requests = "a small message\n".repeat(1000);
    client.send(&requests).expect_reply(&requests);
    server.wait_for("all are counted", |now| now.messages >= before.messages + 1000);
    let wakes = server.counters().wakes - before.wakes;
    assert!(wakes <= 50, "{wakes} wakes for 1,000 messages in one write");
}

/// While the loop serves a peer inline, it waits for that peer, and must notice the request.
#[test]
fn a_shutdown_requested_on_another_thread_stops_a_loop_that_serves_inline() {
    // Under reactor the handler would block the loop.
    for mode in modes_with_senders().filter(|mode| mode.name() != "reactor") {
        let mut server = Server::new().unwrap();
        let inline = Server::tcp(LOCAL).unwrap().mode(Inline);
        let inline =
            inline.service(|_: &Accepted<'_>| handler_fn(|message: &[u8], cx| cx.send(message)));
        let (arrive, arrived) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        let gone = Arc::new(Mutex::new(gone));
        let beside = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
        let beside = beside.service(move |_: &Accepted<'_>| {
            let (arrive, gone) = (arrive.clone(), gone.clone());
            handler_fn(move |_: &[u8], cx: &mut Context<'_>| {
                arrive.send(())?;
                gone.lock().unwrap().recv_timeout(DEADLINE)?;
                cx.stop_server();
                Ok(())
            })
        });
        server.add(inline.unwrap()).unwrap();
        server.add(beside.unwrap()).unwrap();
        let server = start_server(server);
        let [inline, beside] = server.addresses()[..] else { panic!("two addresses") };
        let mut requesting = connect(beside);
        requesting.send("stop\n");
        arrived.recv_timeout(DEADLINE).unwrap();
        let mut idle = connect(inline);
        idle.send("hello").expect_reply("hello");
        go.send(()).unwrap();
        idle.expect_closed();
        server.join();
    }
}

/// Its first sender is made when its timer expires, and is given two messages.
struct SendsAtTimer(mpsc::Sender<[Result<(), SendError>; 2]>);

impl Handler for SendsAtTimer {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        Ok(cx.set_timer(cx.now() + Duration::from_millis(100))?)
    }

    fn on_message(&mut self, _: &[u8], _: &mut Context<'_>) -> HandlerResult {
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let sender = cx.sender()?;
        self.0.send([sender.send(b"one"), sender.send(b"two")])?;
        Ok(())
    }
}

#[test]
fn a_sender_that_is_made_when_a_timer_expires_has_the_limit_of_its_own_service() {
    let (give, results) = mpsc::channel();
    let mut server = Server::new().unwrap();
    let limited = Server::tcp(LOCAL).unwrap().sender_limit(1);
    let limited = limited.service(move |_: &Accepted<'_>| SendsAtTimer(give.clone())).unwrap();
    let echo = Server::tcp(LOCAL).unwrap().sender_limit(1 << 20);
    let echo = echo.service(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message))).unwrap();
    server.add(limited).unwrap();
    server.add(echo).unwrap();
    let server = start_server(server);
    let [limited, echo] = server.addresses()[..] else { panic!("two addresses") };
    let _limited = connect(limited);
    // The loop calls a connection with the larger limit last.
    connect(echo).send("hello").expect_reply("hello");
    assert_eq!(expect_next(&results), [Ok(()), Err(SendError::Full)]);
}
