//! Sending from elsewhere, under every mode that has it; and workers that block side by side.

mod support;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use socketserver::{
    Context, Decoded, FixedSize, Forking, Framing, FramingError, Handler, HandlerResult, Inline,
    Lines, Mode, Offload, Output, Peer, Raw, SendError, Sender, Server, broadcast, handler_fn,
};
use support::{
    A_WHILE, Client, DEADLINE, TestServer, Told, connect, echo, expect_close, start_server, tellers,
};

const LOCAL: &str = "127.0.0.1:0";

/// The modes in which something can be sent from elsewhere.
fn modes_with_senders() -> impl Iterator<Item = Mode> {
    Mode::all().filter(|mode| !matches!(mode.name(), "inline" | "forking"))
}

/// Gives its sender away when it opens, and echoes.
struct Giving(mpsc::Sender<Sender>);

impl Handler for Giving {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        Ok(self.0.send(cx.sender()?)?)
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        cx.send(message)
    }
}

fn start_giving(mode: Mode) -> (TestServer, Receiver<Sender>) {
    let (give, given) = mpsc::channel();
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
    let server = builder.serve(move |_: &Peer| Giving(give.clone())).unwrap();
    (start_server(server), given)
}

/// A client, and the way to send to it.
fn arrival(server: &TestServer, given: &Receiver<Sender>) -> (Client, Sender) {
    let client = server.connect();
    (client, given.recv_timeout(DEADLINE).expect("a sender in time"))
}

#[test]
fn what_is_sent_from_elsewhere_arrives_in_order_and_framed() {
    for mode in modes_with_senders() {
        let (server, given) = start_giving(mode);
        let (mut client, sender) = arrival(&server, &given);
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
fn several_threads_send_each_in_its_own_order() {
    const THREADS: usize = 4;
    const EACH: usize = 500;
    for mode in modes_with_senders() {
        let (server, given) = start_giving(mode);
        let (client, sender) = arrival(&server, &given);
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

/// A slot, a thread or a descriptor that is used again is another connection's.
#[test]
fn a_sender_outlives_its_connection_only_to_say_so() {
    for mode in modes_with_senders() {
        let (server, given) = start_giving(mode);
        let (mut client, old) = arrival(&server, &given);
        client.end().expect_closed();
        server.wait_for_no_connection();
        for _ in 0..20 {
            let (mut other, sender) = arrival(&server, &given);
            assert_eq!(old.send(b"for another"), Err(SendError::Closed), "{mode}");
            assert!(old.is_closed() && !sender.is_closed() && !old.is_same(&sender));
            old.close();
            sender.send(b"mine").unwrap();
            other.expect_reply("mine\n").end().expect_closed();
        }
    }
}

#[test]
fn a_broadcast_reaches_everyone_under_every_mode_with_senders() {
    for mode in modes_with_senders() {
        let (server, given) = start_giving(mode);
        let mut clients: Vec<_> = (0..8).map(|_| arrival(&server, &given)).collect();
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
        // Nobody has kept a copy, nor a share, of it.
        assert_eq!(Arc::strong_count(&payload), 1, "{mode}");
    }
}

#[test]
fn a_sender_to_a_peer_that_does_not_read_is_full_and_others_are_not() {
    for mode in modes_with_senders() {
        let (server, given) = start_giving(mode);
        let (mut slow, to_slow) = arrival(&server, &given);
        let (mut quick, to_quick) = arrival(&server, &given);
        let chunk = [b'x'; 8000];
        let mut taken = 0;
        let mut refused = 0;
        // Full at one moment may be that the loop has not come to it yet.
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
            let server = builder.serve(|_: &Peer| {
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
fn a_sender_closes_after_what_was_sent_before() {
    for mode in modes_with_senders() {
        let (server, given) = start_giving(mode);
        let (mut client, sender) = arrival(&server, &given);
        sender.send(b"last words").unwrap();
        sender.close();
        client.expect_reply("last words\n").expect_closed();
    }
}

/// Sends until nothing more is taken for a while, as by a peer that does not read; what was taken.
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

/// A server whose handlers give their senders away when they open, and what they are told.
fn start_telling(mode: Mode) -> (TestServer, Receiver<Told>, Receiver<Sender>) {
    let (give, given) = mpsc::channel();
    let (make, told) = tellers(move |told: &Told, cx: &mut Context<'_>| {
        if *told == Told::Open {
            give.send(cx.sender()?)?;
        }
        echo(told, cx)
    });
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
    (start_server(builder.serve(make).unwrap()), told, given)
}

/// The peer is cut off by a reset, after what had reached it.
fn expect_cut(client: &mut Client) {
    let error = std::io::copy(&mut client.stream, &mut std::io::sink()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_close_is_seen_behind_a_full_queue_and_what_was_sent_before_it_arrives() {
    for mode in modes_with_senders() {
        let (server, told, given) = start_telling(mode);
        let (mut client, sender) = arrival(&server, &given);
        let sent = send_until_stalled(&sender);
        assert!(!sender.is_closed());
        for _ in 0..3 {
            sender.close();
            assert_eq!(sender.send(b"late"), Err(SendError::Closed), "{mode}");
            assert!(sender.is_closed());
        }
        assert!(client.expect_reply(&sent).read_to_end().is_empty(), "{mode}");
        assert_eq!(expect_close(&told), "closed by the handler", "{mode}");
    }
}

/// More than one turn of the loop takes.
#[test]
fn what_was_sent_before_a_close_arrives_however_much_it_is() {
    for mode in modes_with_senders() {
        let (give, given) = mpsc::channel();
        let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
        let builder = builder.write_watermarks(4 << 20, 1 << 20).sender_limit(4 << 20);
        let server = builder.serve(move |_: &Peer| Giving(give.clone())).unwrap();
        let server = start_server(server);
        let (mut client, sender) = arrival(&server, &given);
        let sent = send_until_stalled(&sender);
        sender.close();
        client.expect_reply(&sent).expect_closed();
    }
}

/// The one test that takes as long as the patience it is about.
#[test]
fn a_connection_that_a_sender_closed_is_reset_when_its_peer_takes_nothing_for_30_seconds() {
    let patience = Duration::from_secs(30);
    thread::scope(|scope| {
        for mode in modes_with_senders() {
            scope.spawn(move || {
                let (server, told, given) = start_telling(mode);
                let (mut client, sender) = arrival(&server, &given);
                let sent = send_until_stalled(&sender);
                sender.close();
                assert_eq!(told.recv_timeout(DEADLINE), Ok(Told::Open));
                let reason = told.recv_timeout(patience + DEADLINE);
                assert_eq!(reason, Ok(Told::Close("closed by the handler".into())), "{mode}");
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
            let (server, told, given) = start_telling(mode);
            let (mut client, sender) = arrival(&server, &given);
            send_until_stalled(&sender);
            if closed_before {
                sender.close();
            }
            for _ in 0..3 {
                sender.abort();
                assert_eq!(sender.send(b"late"), Err(SendError::Closed), "{mode}");
            }
            assert_eq!(expect_close(&told), "closed by the handler", "{mode}");
            expect_cut(&mut client);
            server.wait_for_no_connection();
        }
    }
}

#[test]
fn an_abort_resets_a_connection_that_waits_for_input() {
    for mode in modes_with_senders() {
        let (server, told, given) = start_telling(mode);
        let (mut client, sender) = arrival(&server, &given);
        client.send("hello\n").expect_reply("hello\n");
        sender.abort();
        client.expect_reset();
        assert_eq!(expect_close(&told), "closed by the handler", "{mode}");
    }
}

/// What it waits to send is the handler's own, and not a sender's.
#[test]
fn an_abort_resets_a_connection_whose_peer_does_not_read_its_reply() {
    for mode in modes_with_senders() {
        let (give, given) = mpsc::channel();
        let (make, told) = tellers(move |told: &Told, cx: &mut Context<'_>| match told {
            Told::Open => Ok(give.send(cx.sender()?)?),
            Told::Message(_) => cx.send(&[b'x'; 32 << 20]),
            _ => Ok(()),
        });
        let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
        let server = start_server(builder.serve(make).unwrap());
        let (mut client, sender) = arrival(&server, &given);
        // The reply has begun, and is more than the kernel takes.
        client.send("much\n").expect_reply("xxxx");
        sender.abort();
        assert_eq!(expect_close(&told), "closed by the handler", "{mode}");
        expect_cut(&mut client);
    }
}

/// It is dropped in the same moment, be it in the queue or in the hands of whoever frames it.
#[test]
fn an_abort_drops_what_waits() {
    for mode in modes_with_senders() {
        let (server, told, given) = start_telling(mode);
        let (mut client, sender) = arrival(&server, &given);
        send_until_stalled(&sender);
        let payload: Arc<[u8]> = vec![b'x'; 10].into();
        while sender.send_shared(&payload).is_ok() {}
        sender.abort();
        expect_close(&told);
        server.wait_for_no_connection();
        assert_eq!(Arc::strong_count(&payload), 1, "{mode}");
        expect_cut(&mut client);
    }
}

#[test]
fn an_abort_resets_a_connection_whose_peer_has_ended() {
    for mode in modes_with_senders() {
        let (give, given) = mpsc::channel();
        let (make, told) = tellers(move |told: &Told, cx: &mut Context<'_>| {
            if *told == Told::Eof {
                give.send(cx.sender()?)?;
            }
            Ok(())
        });
        let server = start_server(Server::tcp(LOCAL).unwrap().mode(mode).serve(make).unwrap());
        let mut client = server.connect();
        client.end();
        given.recv_timeout(DEADLINE).unwrap().abort();
        client.expect_reset();
        assert_eq!(expect_close(&told), "closed by the handler", "{mode}");
    }
}

#[test]
fn a_stop_waits_no_longer_than_its_drain_deadline_for_a_closed_connection_that_is_not_read() {
    for mode in modes_with_senders() {
        let (give, given) = mpsc::channel();
        let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
        let mut server = builder.serve(move |_: &Peer| Giving(give.clone())).unwrap();
        server.drain_timeout(A_WHILE);
        let server = start_server(server);
        let (mut client, sender) = arrival(&server, &given);
        send_until_stalled(&sender);
        sender.close();
        let (_server, report) = server.stop();
        assert_eq!(report.aborted, 1, "{mode}");
        client.expect_gone();
        // There is nothing left to abort.
        sender.abort();
    }
}

#[test]
fn a_message_that_cannot_be_framed_is_refused_and_the_connection_stays_open() {
    for mode in modes_with_senders() {
        let (give, given) = mpsc::channel();
        let builder = Server::tcp(LOCAL).unwrap().framing(FixedSize::new(4)).mode(mode);
        let server = builder.serve(move |_: &Peer| Giving(give.clone())).unwrap();
        let server = start_server(server);
        let (mut client, sender) = arrival(&server, &given);
        let error = sender.send(b"three").unwrap_err();
        assert_eq!(error.to_string(), "the message is not of the fixed size", "{mode}");
        assert_eq!(broadcast([&sender], b"three"), 0);
        sender.send(b"four").unwrap();
        client.expect_reply("four").send("echo").expect_reply("echo");
    }
}

/// Nothing tells beforehand what it refuses.
#[derive(Clone)]
struct Picky;

impl Framing for Picky {
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
        let builder = Server::tcp(LOCAL).unwrap().framing(Picky).mode(mode);
        let server = builder.serve(move |_: &Peer| Giving(give.clone())).unwrap();
        let server = start_server(server);
        let (mut client, sender) = arrival(&server, &given);
        for message in ["good", "bad", "good"] {
            sender.send(message.as_bytes()).unwrap();
        }
        client.expect_reply("goodgood").send("echo").expect_reply("echo");
        client.end().expect_closed();
        server.wait_for("the dropped one is counted", |counters| counters.unsent == 1);
    }
}

#[test]
#[allow(clippy::mutable_key_type)] // what changes in it is neither compared nor hashed
fn senders_are_equal_by_their_connection_and_are_keys_of_a_map() {
    let (server, given) = start_giving(Mode::default());
    let (_one, first) = arrival(&server, &given);
    let (_two, second) = arrival(&server, &given);
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
        let (server, given) = start_giving(mode);
        for _ in 0..3 {
            let (mut client, sender) = arrival(&server, &given);
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
        let server = builder.serve(move |_: &Peer| GivingThread(give.clone())).unwrap();
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
        let (server, given) = start_giving(mode);
        let (mut client, sender) = arrival(&server, &given);
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
        let (server, told, given) = start_telling(mode);
        let (mut client, sender) = arrival(&server, &given);
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
        expect_cut(&mut client);
    }
}

/// The peer has said all it will say, and is still sent to.
#[test]
fn a_peer_that_has_sent_fin_can_be_sent_to() {
    struct Lasting(mpsc::Sender<Sender>);
    impl Handler for Lasting {
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
        let server = builder.serve(move |_: &Peer| Lasting(give.clone())).unwrap();
        let server = start_server(server);
        let mut client = server.connect();
        client.end();
        let sender = given.recv_timeout(DEADLINE).unwrap();
        sender.send(b"news").unwrap();
        client.expect_reply("news\n");
        sender.close();
        client.expect_closed();
        // Who can be sent to by nobody any more is not waited for.
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

/// With a timeout something can still follow, be it with nobody who sends.
#[test]
fn a_peer_that_has_sent_fin_can_still_time_out_in_every_mode() {
    struct Patient(Duration);
    impl Handler for Patient {
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
        // The server of this test has threads beside it, none of which the child needs.
        let mode = match mode {
            Mode::Forking(forking) => Mode::Forking(forking.allow_threads(true)),
            other => other,
        };
        let serve = |timeout| {
            let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
            start_server(builder.serve(move |_: &Peer| Patient(timeout)).unwrap())
        };
        let server = serve(Duration::from_millis(50));
        let mut client = server.connect();
        client.end().expect_reply("ended\ntimed out\n").expect_closed();
        drop(server);
        // A stop waits for it no longer than for anybody idle.
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
        let (server, given) = start_giving(mode);
        let (mut client, sender) = arrival(&server, &given);
        client.send("hello\n").expect_reply("hello\n");
        let (_server, report) = server.stop();
        assert_eq!(report.aborted, 0, "{mode}");
        client.expect_closed();
        assert_eq!(sender.send(b"late"), Err(SendError::Closed), "{mode}");
    }
}

#[test]
fn where_nothing_could_send_a_sender_is_a_typed_error() {
    let answer = |cx: &mut Context<'_>| format!("{:?}", cx.sender().map(drop));
    let server = Server::tcp(LOCAL).unwrap().mode(Inline);
    let server = server.serve(move |_: &Peer| {
        handler_fn(move |_, cx| {
            let answer = answer(cx);
            cx.send(answer.as_bytes())
        })
    });
    let server = start_server(server.unwrap());
    server.connect().send("?").expect_reply("Err(InlineSender)");
    // The server of this test has threads beside it, none of which the child needs.
    let server = Server::tcp(LOCAL).unwrap().mode(Forking::default().allow_threads(true));
    let server = server.serve(move |_: &Peer| {
        handler_fn(move |_, cx| {
            let answer = answer(cx);
            cx.send(answer.as_bytes())
        })
    });
    let server = start_server(server.unwrap());
    server.connect().send("?").expect_reply("Err(ForkingSender)");
}

/// Each of eight handlers waits for the seven others; the loop meanwhile answers on another
/// listener.
#[test]
fn eight_workers_block_side_by_side_and_the_loop_goes_on() {
    const WORKERS: usize = 8;
    let barrier = Arc::new(Barrier::new(WORKERS + 1));
    let (arrive, arrived) = mpsc::channel();
    let mut server = Server::new().unwrap();
    let meeting = barrier.clone();
    let blocking = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    let blocking = blocking.mode(Offload::new(WORKERS)).service(move |_: &Peer| {
        let (barrier, arrive) = (meeting.clone(), arrive.clone());
        handler_fn(move |message: &[u8], cx: &mut Context<'_>| {
            arrive.send(())?;
            barrier.wait();
            cx.send(message)
        })
    });
    let echo = Server::tcp(LOCAL).unwrap();
    let echo = echo.service(|_: &Peer| handler_fn(|message, cx| cx.send(message)));
    server.add(blocking.unwrap()).unwrap();
    server.add(echo.unwrap()).unwrap();
    let server = start_server(server);
    let [blocking, echo] = server.addresses()[..] else { panic!("two addresses") };
    let mut waiting: Vec<_> = (0..WORKERS).map(|_| connect(blocking)).collect();
    for client in &mut waiting {
        client.send("wait\n");
    }
    for _ in 0..WORKERS {
        arrived.recv_timeout(DEADLINE).expect("eight at a time");
    }
    for _ in 0..100 {
        connect(echo).send("hello").expect_reply("hello");
    }
    barrier.wait();
    for client in &mut waiting {
        client.expect_reply("wait\n");
    }
}

/// However much comes home at once, the loop is woken no more than once before each turn.
#[test]
fn the_loop_is_woken_at_most_once_per_turn() {
    for mode in modes_with_senders() {
        let (server, given) = start_giving(mode);
        let mut clients: Vec<_> = (0..16).map(|_| arrival(&server, &given)).collect();
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

/// However many jobs a turn brings, and however many turns they take.
#[test]
fn no_more_workers_are_woken_than_sleep_and_none_that_is_awake() {
    const WORKERS: usize = 4;
    let (arrive, arrived) = mpsc::channel();
    let (go, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    let builder = builder.mode(Offload::new(WORKERS));
    let server = builder.serve(move |_: &Peer| {
        let (arrive, gate) = (arrive.clone(), gate.clone());
        handler_fn(move |message: &[u8], cx: &mut Context<'_>| {
            arrive.send(())?;
            gate.lock().unwrap().recv_timeout(DEADLINE)?;
            cx.send(message)
        })
    });
    let server = start_server(server.unwrap());
    let mut clients: Vec<_> = (0..3 * WORKERS).map(|_| server.connect()).collect();
    // Their handlers have been opened when each has had an answer.
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
            arrived.recv_timeout(DEADLINE).expect("all workers are at work");
        }
        // The other jobs are there, and nobody who could be woken for them.
        server.wait_for("all is read", |now| now.bytes_in == (1 + round) * 15 * WORKERS as u64);
        let woken = server.counters().worker_wakes - before.worker_wakes;
        assert!(woken <= WORKERS as u64, "{woken} wakes for {WORKERS} workers");
        for _ in &clients {
            go.send(()).unwrap();
        }
        for _ in WORKERS..clients.len() {
            arrived.recv_timeout(DEADLINE).expect("the other jobs are begun");
        }
        // Who finishes a job takes the next.
        let woken = server.counters().worker_wakes - before.worker_wakes;
        assert!(woken <= WORKERS as u64, "{woken} wakes for {WORKERS} workers");
        for client in &mut clients {
            client.expect_reply("wait\n");
        }
    }
    assert!(server.counters().worker_wakes > 0, "they sleep in between");
}

/// Over TCP and over a Unix socket, which are read in different ways.
#[test]
fn what_is_sent_while_a_worker_has_the_connection_goes_out_although_half_a_line_is_all_that_follows()
 {
    let (arrive, arrived) = mpsc::channel();
    let (go, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let make = move |_: &Peer| {
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

/// The messages that one read brought are one job, and come home by one wake.
#[test]
fn many_small_messages_in_one_write_cause_few_wakes() {
    let (server, given) = start_giving(Mode::Offload(Offload::new(2)));
    let (mut client, _sender) = arrival(&server, &given);
    client.send("hello\n").expect_reply("hello\n");
    let before = server.counters();
    let requests = "a small message\n".repeat(1000);
    client.send(&requests).expect_reply(&requests);
    server.wait_for("all are counted", |now| now.messages >= before.messages + 1000);
    let wakes = server.counters().wakes - before.wakes;
    assert!(wakes <= 50, "{wakes} wakes for 1,000 messages in one write");
}

/// Whoever asks, and whatever the loop is doing: while it serves inline it waits for that peer, and
/// must hear it all the same.
#[test]
fn a_shutdown_asked_for_on_a_thread_reaches_a_loop_that_serves_inline() {
    // Under reactor the loop itself would be waiting here.
    for mode in modes_with_senders().filter(|mode| mode.name() != "reactor") {
        let mut server = Server::new().unwrap();
        let inline = Server::tcp(LOCAL).unwrap().mode(Inline);
        let inline = inline.service(|_: &Peer| handler_fn(|message: &[u8], cx| cx.send(message)));
        let (arrive, arrived) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        let gone = Arc::new(Mutex::new(gone));
        let beside = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
        let beside = beside.service(move |_: &Peer| {
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
        let mut asking = connect(beside);
        asking.send("stop\n");
        arrived.recv_timeout(DEADLINE).unwrap();
        let mut idle = connect(inline);
        idle.send("hello").expect_reply("hello");
        go.send(()).unwrap();
        idle.expect_closed();
        server.join();
    }
}
