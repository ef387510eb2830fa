//! Which events of a connection share one job of a worker under `offload`, and what its peer gets.

mod support;

use std::io::{self, ErrorKind, Read};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use socketserver::{
    Accepted, CloseReason, Context, Decoded, Event, Framing, FramingError, Handler, HandlerResult,
    Hooks, Lines, Offload, Output, Peer, SendError, Sender, Server, handler_fn,
};
use support::*;

const LOCAL: &str = "127.0.0.1:0";

/// What a handler does with an event, which has a name: `open`, `eof`, `stop`, `event`, `timer`, or a
/// message as it is.
type Act = fn(&str, &mut Context<'_>) -> HandlerResult;

/// A handler that logs each of its events with the number of its connection.
struct Noting {
    number: usize,
    log: mpsc::Sender<String>,
    act: Act,
}

impl Noting {
    fn note(&mut self, event: &str, cx: &mut Context<'_>) -> HandlerResult {
        let done = (self.act)(event, cx);
        let _ = self.log.send(format!("{} {event}", self.number));
        done
    }
}

impl Handler for Noting {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.note("open", cx)
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        self.note(str::from_utf8(message)?, cx)
    }

    fn on_event(&mut self, _: Event, cx: &mut Context<'_>) -> HandlerResult {
        self.note("event", cx)
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.note("timer", cx)
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.note("eof", cx)
    }

    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.note("stop", cx)
    }

    fn on_close(&mut self, reason: &CloseReason) {
        let _ = self.log.send(format!("{} close: {reason}", self.number));
    }
}

/// Sends each line back, and closes at the end of the input.
fn echo(event: &str, cx: &mut Context<'_>) -> HandlerResult {
    match event {
        "open" | "stop" | "event" | "timer" => Ok(()),
        "eof" => {
            cx.close();
            Ok(())
        }
        line => cx.send(line.as_bytes()),
    }
}

/// Answers a line and closes.
fn answer(event: &str, cx: &mut Context<'_>) -> HandlerResult {
    let done = echo(event, cx);
    if event != "open" {
        cx.close();
    }
    done
}

/// A server of lines with one worker, and beside it a listener whose clients hold up the loop, so that
/// what several clients do in between is all there when the loop goes on.
struct HeldServer {
    server: TestServer,
    log: Receiver<String>,
    gate: Arc<Barrier>,
    holder: Client,
}

impl HeldServer {
    fn start(act: Act) -> Self {
        Self::start_with(Lines::default(), NoHook, act)
    }

    fn start_with<F, K>(framing: F, hooks: K, act: Act) -> Self
    where
        F: Framing + Clone + Send + 'static,
        K: Hooks + Send + 'static,
    {
        let (log, logged) = mpsc::channel();
        let accepted = AtomicUsize::new(0);
        let builder = Server::tcp(LOCAL).unwrap().framing(framing).hooks(hooks);
        let server = builder.mode(Offload::new(1)).serve(move |_: &Accepted<'_>| Noting {
            number: accepted.fetch_add(1, SeqCst),
            log: log.clone(),
            act,
        });
        let mut server = server.unwrap();
        let gate = Arc::new(Barrier::new(2));
        let holding = gate.clone();
        let holder = Server::tcp(LOCAL).unwrap().service(move |_: &Accepted<'_>| {
            let gate = holding.clone();
            handler_fn(move |what: &[u8], cx: &mut Context<'_>| {
                gate.wait();
                gate.wait();
                if what == b"stop" {
                    cx.stop_server();
                }
                Ok(())
            })
        });
        server.add(holder.unwrap()).unwrap();
        let server = start_server(server);
        let holder = connect(server.addresses()[1]);
        HeldServer { server, log: logged, gate, holder }
    }

    /// Holds up the loop while `act` is called.
    fn hold<T>(&mut self, act: impl FnOnce(&TestServer) -> T) -> T {
        self.hold_and("go on", act)
    }

    /// Holds up the loop while `act` is called, and then has it go on or stop.
    fn hold_and<T>(&mut self, what: &str, act: impl FnOnce(&TestServer) -> T) -> T {
        self.holder.send(what);
        self.gate.wait();
        let result = act(&self.server);
        self.gate.wait();
        result
    }

    /// Connects clients of which each has sent `bytes` before the loop accepts the first.
    fn connect_and_send<const N: usize>(&mut self, bytes: &str) -> [Client; N] {
        self.hold(|server| {
            [(); N].map(|()| {
                let mut client = server.connect();
                client.send(bytes);
                client
            })
        })
    }

    /// The next events, in this order and with no other between them.
    fn expect(&self, events: &[&str]) {
        for event in events {
            assert_eq!(expect_next(&self.log), *event);
        }
    }
}

/// No hook does anything.
struct NoHook;

impl Hooks for NoHook {}

// How many jobs

/// With one worker, jobs run in the order in which they were queued: where each client is accepted with
/// its message there, all events of one job come before those of the next client.
#[test]
fn a_first_message_that_is_there_shares_the_job_of_on_open() {
    let mut server = HeldServer::start(echo);
    let mut clients: [Client; 3] = server.connect_and_send("hello\n");
    server.expect(&["0 open", "0 hello", "1 open", "1 hello", "2 open", "2 hello"]);
    for client in &mut clients {
        client.expect_reply("hello\n");
    }
}

#[test]
fn last_messages_and_the_end_that_follows_share_one_job_with_on_close() {
    let mut server = HeldServer::start(echo);
    let mut clients = [(); 2].map(|()| server.server.connect());
    server.expect(&["0 open", "1 open"]);
    server.hold(|_| {
        for client in &mut clients {
            client.send("one\ntwo\n").end();
        }
    });
    for number in [0, 1] {
        let events = ["one", "two", "eof", "close: end of input"];
        let events = events.map(|event| format!("{number} {event}"));
        server.expect(&events.each_ref().map(String::as_str));
    }
    for client in &mut clients {
        assert_eq!(client.read_to_end(), b"one\ntwo\n");
    }
    server.server.wait_for("they are closed", |counters| counters.closed == 2);
}

#[test]
fn a_client_that_says_nothing_and_ends_costs_one_job() {
    let mut server = HeldServer::start(echo);
    let mut clients = server.hold(|server| {
        [(); 2].map(|()| {
            let mut client = server.connect();
            client.end();
            client
        })
    });
    server.expect(&["0 open", "0 eof", "0 close: end of input"]);
    server.expect(&["1 open", "1 eof", "1 close: end of input"]);
    for client in &mut clients {
        client.expect_closed();
    }
}

#[test]
fn a_handler_that_closes_is_told_so_in_the_same_job() {
    let mut server = HeldServer::start(answer);
    let mut clients: [Client; 2] = server.connect_and_send("hello\n");
    server.expect(&["0 open", "0 hello", "0 close: closed by the handler"]);
    server.expect(&["1 open", "1 hello", "1 close: closed by the handler"]);
    for client in &mut clients {
        assert_eq!(client.read_to_end(), b"hello\n");
    }
}

#[test]
fn an_idle_connection_is_told_of_the_stop_and_closed_in_one_job() {
    fn say_goodbye(event: &str, cx: &mut Context<'_>) -> HandlerResult {
        if event == "stop" {
            return cx.send(b"goodbye");
        }
        echo(event, cx)
    }
    let server = HeldServer::start(say_goodbye);
    let mut clients = [(); 3].map(|()| server.server.connect());
    server.expect(&["0 open", "1 open", "2 open"]);
    for (number, client) in clients.iter_mut().enumerate() {
        // No worker has it any more when its reply comes.
        client.send("hello\n").expect_reply("hello\n");
        server.expect(&[&format!("{number} hello")]);
    }
    let (stopped, report) = server.server.stop();
    assert_eq!((report.idle, report.finished, report.aborted), (4, 0, 0));
    let mut told: Vec<String> = (0..6).map(|_| expect_next(&server.log)).collect();
    for pair in told.chunks_exact(2) {
        let number = &pair[0][..1];
        assert_eq!(
            pair,
            [format!("{number} stop"), format!("{number} close: the server is stopping")]
        );
    }
    told.sort();
    told.dedup();
    assert_eq!(told.len(), 6, "each is told once");
    for client in &mut clients {
        assert_eq!(client.read_to_end(), b"goodbye\n");
    }
    drop(stopped);
    assert_eq!(server.log.iter().count(), 0);
}

/// No job wakes more than one worker, and with one worker a job that finds it asleep wakes it.
#[test]
fn a_connection_of_one_message_costs_at_most_two_jobs() {
    const ROUNDS: u64 = 50;
    fn send(client: &mut Client) {
        client.send("hello\n");
    }
    fn read(client: &mut Client) {
        client.expect_reply("hello\n");
    }
    fn send_and_end(client: &mut Client) {
        client.send("hello\n").end();
    }
    fn read_all(client: &mut Client) {
        assert_eq!(client.read_to_end(), b"hello\n");
    }
    type Act = fn(&mut Client);
    let ways: [(&str, Act, Act); 3] = [
        ("sends and half-closes", send_and_end, read_all),
        ("sends and closes", send, |_| {}),
        ("sends, reads the reply and closes", send, read),
    ];
    for (way, before_accept, afterwards) in ways {
        let mut server = HeldServer::start(echo);
        let [mut first] = server.connect_and_send("hello\n");
        first.expect_reply("hello\n").end().expect_closed();
        let before = server.server.counters().worker_wakes;
        for round in 1..=ROUNDS {
            let mut client = server.hold(|server| {
                let mut client = server.connect();
                before_accept(&mut client);
                client
            });
            afterwards(&mut client);
            drop(client);
            server.server.wait_for("it is closed", |counters| counters.closed == 1 + round);
        }
        let wakes = server.server.counters().worker_wakes - before;
        assert!(wakes <= 2 * ROUNDS, "a client {way}: {wakes} wakes for {ROUNDS} connections");
    }
}

// What does not change

#[test]
fn a_server_that_speaks_first_does_not_wait_for_its_client() {
    fn greet(event: &str, cx: &mut Context<'_>) -> HandlerResult {
        if event == "open" {
            return cx.send(b"welcome");
        }
        echo(event, cx)
    }
    let mut server = HeldServer::start(greet);
    server.server.connect().expect_reply("welcome\n");
    // Half a message is none to wait for either.
    let [mut client] = server.connect_and_send("hel");
    client.expect_reply("welcome\n").send("lo\n").expect_reply("hello\n");
}

#[test]
fn a_client_that_ends_at_once_gets_a_long_greeting_before_its_end_is_told() {
    fn greet(event: &str, cx: &mut Context<'_>) -> HandlerResult {
        if event == "open" {
            cx.output().put(&pattern(LONG));
            return Ok(());
        }
        echo(event, cx)
    }
    let mut server = HeldServer::start(greet);
    let mut client = server.hold(|server| {
        let mut client = server.connect();
        client.end();
        client
    });
    server.expect(&["0 open"]);
    assert!(server.log.recv_timeout(A_WHILE).is_err(), "its output waits");
    assert!(client.read_to_end() == pattern(LONG));
    server.expect(&["0 eof", "0 close: end of input"]);
}

#[test]
fn a_handler_that_closes_on_opening_hears_no_message_that_is_there() {
    fn refuse(event: &str, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(b"not you")?;
        cx.close();
        if event == "open" { Ok(()) } else { Err("it is closed".into()) }
    }
    let mut server = HeldServer::start(refuse);
    let [mut client] = server.connect_and_send("hello\n");
    assert_eq!(client.read_to_end(), b"not you\n");
    server.expect(&["0 open", "0 close: closed by the handler"]);
    drop(server.server.stop());
    assert_eq!(server.log.iter().count(), 0);
}

#[test]
fn messages_that_are_there_wait_for_a_handler_that_pauses_on_opening() {
    fn wait(event: &str, cx: &mut Context<'_>) -> HandlerResult {
        match event {
            "open" => {
                cx.pause_input();
                Ok(cx.set_timer(cx.now() + Duration::from_millis(50))?)
            }
            "timer" => {
                cx.resume_input();
                Ok(())
            }
            other => echo(other, cx),
        }
    }
    let mut server = HeldServer::start(wait);
    let mut client = server.hold(|server| {
        let mut client = server.connect();
        client.send("one\ntwo\n").end();
        client
    });
    assert_eq!(client.read_to_end(), b"one\ntwo\n");
    server.expect(&["0 open", "0 timer", "0 one", "0 two", "0 eof", "0 close: end of input"]);
}

#[test]
fn a_message_that_is_there_is_decoded_as_on_open_has_set_the_framing() {
    /// Messages of a number of bytes.
    #[derive(Clone)]
    struct Blocks(usize);
    impl Framing for Blocks {
        fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
            if input.len() < self.0 {
                return Ok(Decoded::Incomplete);
            }
            Ok(Decoded::Frame { body: 0..self.0, consumed: self.0 })
        }

        fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
            output.put(message);
            Ok(())
        }
    }
    fn widen(event: &str, cx: &mut Context<'_>) -> HandlerResult {
        if event == "open" {
            cx.framing::<Blocks>().ok_or("another framing")?.0 = 3;
        }
        echo(event, cx)
    }
    let mut server = HeldServer::start_with(Blocks(1), NoHook, widen);
    let [mut client] = server.connect_and_send("abcdef");
    client.expect_reply("abcdef");
    server.expect(&["0 open", "0 abc", "0 def"]);
}

#[test]
fn an_end_behind_more_messages_than_one_job_delivers_comes_after_them() {
    let mut server = HeldServer::start(echo);
    let lines: String = (0..1000).map(|number| format!("{number}\n")).collect();
    let mut client = server.server.connect();
    server.expect(&["0 open"]);
    server.hold(|_| {
        client.send(&lines).end();
    });
    assert!(client.read_to_end() == lines.as_bytes());
    for number in 0..1000 {
        server.expect(&[&format!("0 {number}")]);
    }
    server.expect(&["0 eof", "0 close: end of input"]);
}

#[test]
fn an_end_behind_messages_that_wait_for_a_paused_handler_comes_after_them() {
    fn wait(event: &str, cx: &mut Context<'_>) -> HandlerResult {
        match event {
            "pause" => {
                cx.pause_input();
                Ok(cx.set_timer(cx.now() + Duration::from_millis(50))?)
            }
            "timer" => {
                cx.resume_input();
                Ok(())
            }
            other => echo(other, cx),
        }
    }
    let mut server = HeldServer::start(wait);
    let mut client = server.server.connect();
    server.expect(&["0 open"]);
    server.hold(|_| {
        client.send("pause\none\ntwo\n").end();
    });
    assert_eq!(client.read_to_end(), b"one\ntwo\n");
    server.expect(&["0 pause", "0 timer", "0 one", "0 two", "0 eof", "0 close: end of input"]);
}

/// What is left at the end of the input is decoded piece by piece, and the first piece pauses.
#[test]
fn messages_behind_one_that_pauses_at_the_end_come_when_the_input_is_resumed() {
    /// At the end of the input, messages of one byte.
    #[derive(Clone)]
    struct AtEnd;
    impl Framing for AtEnd {
        fn decode(&mut self, _: &[u8]) -> Result<Decoded, FramingError> {
            Ok(Decoded::Incomplete)
        }

        fn decode_eof(&mut self, _: &[u8]) -> Result<Decoded, FramingError> {
            Ok(Decoded::Frame { body: 0..1, consumed: 1 })
        }

        fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
            output.put(message);
            Ok(())
        }
    }
    fn wait(event: &str, cx: &mut Context<'_>) -> HandlerResult {
        match event {
            "p" => {
                cx.pause_input();
                Ok(cx.set_timer(cx.now() + Duration::from_millis(50))?)
            }
            "timer" => {
                cx.resume_input();
                Ok(())
            }
            other => echo(other, cx),
        }
    }
    let server = HeldServer::start_with(AtEnd, NoHook, wait);
    let mut client = server.server.connect();
    client.send("pab").end();
    assert_eq!(client.read_to_end(), b"ab");
    server.expect(&["0 open", "0 p", "0 timer", "0 a", "0 b", "0 eof", "0 close: end of input"]);
}

#[test]
fn what_arrives_before_a_stop_is_answered_after_on_stop() {
    let mut server = HeldServer::start(echo);
    let mut client = server.server.connect();
    server.expect(&["0 open"]);
    server.hold_and("stop", |_| {
        client.send("hello\n");
    });
    assert_eq!(client.read_to_end(), b"hello\n");
    server.expect(&["0 stop", "0 hello", "0 close: the server is stopping"]);
}

// What happens after on_close

/// An answer of which the kernels take a part: one job may make as much and call `on_close`.
const SHORT: usize = 60 << 10;

/// An answer that is sent before `on_close`.
const LONG: usize = 8 << 20;

/// Hooks that make the send buffer small, and tell each fault.
struct Small(mpsc::Sender<String>);

impl Hooks for Small {
    fn on_accept(&mut self, connection: BorrowedFd<'_>, _: &Peer) -> io::Result<()> {
        SockRef::from(&connection).set_send_buffer_size(4 << 10)
    }

    fn handle_error(&mut self, _: &Peer, reason: &CloseReason) {
        let _ = self.0.send(reason.to_string());
    }
}

/// The senders that handlers give away.
static GIVEN: Mutex<Vec<Sender>> = Mutex::new(Vec::new());

/// Gives its sender away, and ends with an answer.
fn end(event: &str, cx: &mut Context<'_>) -> HandlerResult {
    match event {
        "open" => {
            let sender = cx.sender()?;
            GIVEN.lock().unwrap().push(sender);
            Ok(())
        }
        "short" | "long" => {
            cx.output().put(&pattern(if event == "short" { SHORT } else { LONG }));
            cx.close();
            Ok(())
        }
        "more" => {
            cx.output().put(&pattern(SHORT));
            Ok(())
        }
        "fail" => {
            cx.output().put(&pattern(SHORT));
            Err("on purpose".into())
        }
        other => echo(other, cx),
    }
}

/// A server with small buffers, whose handlers end with an answer; the faults that are told, and a
/// client that has sent `line` before it is accepted.
fn start_ending(line: &str) -> (HeldServer, Receiver<String>, Client) {
    let (tell, faults) = mpsc::channel();
    let mut server = HeldServer::start_with(Lines::default(), Small(tell), end);
    let client = server.hold(|server| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4 << 10).unwrap();
        socket.connect(&server.address().into()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut client = Client { stream: socket.into() };
        client.send(format!("{line}\n"));
        client
    });
    server.expect(&["0 open", &format!("0 {line}")]);
    (server, faults, client)
}

/// The sender of the connection of this client.
fn given_sender(client: &Client) -> Sender {
    let own = client.stream.local_addr().unwrap();
    let given = GIVEN.lock().unwrap();
    given.iter().find(|sender| sender.peer().inet() == Some(own)).cloned().unwrap()
}

/// Stops the server; nothing more is told.
fn stop_and_expect_nothing(server: HeldServer) {
    drop(server.server.stop());
    assert_eq!(server.log.iter().count(), 0, "on_close is called once");
}

#[test]
fn output_that_waits_is_sent_after_on_close() {
    let (server, _, mut client) = start_ending("short");
    server.expect(&["0 close: closed by the handler"]);
    assert_eq!(given_sender(&client).send(b"more"), Err(SendError::Closed));
    assert_eq!(server.server.counters().closed, 0, "its output waits");
    assert!(client.read_to_end() == pattern(SHORT));
    server.server.wait_for("it is closed", |counters| counters.closed == 1);
    stop_and_expect_nothing(server);
}

#[test]
fn a_peer_that_goes_before_it_has_the_last_output_brings_no_second_on_close() {
    let (server, _, mut client) = start_ending("short");
    server.expect(&["0 close: closed by the handler"]);
    client.expect_reply(&pattern(SHORT)[..100]);
    client.reset();
    server.server.wait_for("it is closed", |counters| counters.closed == 1);
    assert_eq!(server.server.counters().disconnects, 0);
    stop_and_expect_nothing(server);
}

#[test]
fn a_sender_that_aborts_after_on_close_cuts_the_output_that_waits() {
    let (server, _, mut client) = start_ending("short");
    server.expect(&["0 close: closed by the handler"]);
    given_sender(&client).abort();
    server.server.wait_for("it is closed", |counters| counters.closed == 1);
    let error = client.stream.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    stop_and_expect_nothing(server);
}

#[test]
fn a_fault_is_told_and_counted_once_whatever_becomes_of_the_output() {
    let (server, faults, client) = start_ending("fail");
    server.expect(&["0 close: handler failed: on purpose"]);
    client.reset();
    assert_eq!(expect_next(&faults), "handler failed: on purpose");
    server.server.wait_for("it is closed", |counters| counters.closed == 1);
    let counters = server.server.counters();
    assert_eq!((counters.handler_errors, counters.disconnects, counters.panics), (1, 0, 0));
    stop_and_expect_nothing(server);
    assert_eq!(faults.iter().count(), 0);
}

#[test]
fn after_a_long_answer_on_close_comes_when_it_has_been_sent() {
    let (server, _, mut client) = start_ending("long");
    client.expect_reply(&pattern(LONG)[..100]);
    assert!(server.log.recv_timeout(A_WHILE).is_err(), "its output waits");
    assert!(client.read_to_end() == pattern(LONG)[100..]);
    server.expect(&["0 close: closed by the handler"]);
    stop_and_expect_nothing(server);
}

#[test]
fn where_output_waits_already_on_close_comes_when_it_has_been_sent() {
    let (server, _, mut client) = start_ending("more");
    client.send("short\n");
    server.expect(&["0 short"]);
    assert!(server.log.recv_timeout(A_WHILE).is_err(), "its output waits");
    client.expect_reply(pattern(SHORT)).expect_reply(pattern(SHORT)).expect_closed();
    server.expect(&["0 close: closed by the handler"]);
    stop_and_expect_nothing(server);
}

/// The loop has cut the connection by then.
#[test]
fn a_fault_of_a_job_that_outlives_its_run_is_told_in_the_next() {
    struct Failing(mpsc::Sender<()>, Arc<Barrier>);
    impl Handler for Failing {
        fn on_message(&mut self, _: &[u8], _: &mut Context<'_>) -> HandlerResult {
            Err("on purpose".into())
        }

        fn on_close(&mut self, _: &CloseReason) {
            self.0.send(()).unwrap();
            self.1.wait();
        }
    }
    let (tell, faults) = mpsc::channel();
    let (close, closing) = mpsc::channel();
    let gate = Arc::new(Barrier::new(2));
    let waiting = gate.clone();
    let builder = Server::tcp(LOCAL).unwrap().hooks(Small(tell)).mode(Offload::new(1));
    let mut server = builder.serve(move |_| Failing(close.clone(), waiting.clone())).unwrap();
    server.drain_timeout(Duration::from_millis(50));
    let server = start_server(server);
    let mut client = server.connect();
    client.send("hello");
    expect_next(&closing);
    let (server, _) = server.stop();
    client.expect_gone();
    gate.wait();
    let server = start_server(server);
    assert_eq!(expect_next(&faults), "handler failed: on purpose");
    server.wait_for("it is counted", |counters| counters.handler_errors == 1);
    drop(server.stop());
    assert_eq!(closing.iter().count(), 0, "on_close is called once");
}

#[test]
fn a_worker_drops_the_handler_of_a_connection_that_it_closes() {
    struct Dropping(mpsc::Sender<Option<String>>);
    impl Handler for Dropping {
        fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
            cx.send(message)?;
            cx.close();
            Ok(())
        }
    }
    impl Drop for Dropping {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().name().map(str::to_owned));
        }
    }
    let (tell, told) = mpsc::channel();
    let server = Server::tcp(LOCAL).unwrap().mode(Offload::new(1));
    let server = start_server(server.serve(move |_| Dropping(tell.clone())).unwrap());
    server.connect().send("hello").expect_reply("hello").expect_closed();
    assert!(expect_next(&told).is_some_and(|name| name.starts_with("worker-")));
}
