//! The properties of the kernel that the event loop relies on when it reads, tested on the kernel
//! itself; and the loop in the cases where they matter: input that one read does not return
//! completely, and connections that always have more work while others wait.

mod support;

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, MsgHdr, SockAddr, Socket, Type};
use socketserver::{
    Accepted, CloseReason, Context, Decoded, Framing, FramingError, Handler, HandlerResult, Hooks,
    Lines, Mode, Output, Peer, Sender, Server, handler_fn,
};
use support::*;

const LOCAL: &str = "127.0.0.1:0";

// The kernel

/// Both ends of a TCP connection; the first is non-blocking.
fn tcp_pair() -> (Socket, Socket) {
    let listener = TcpListener::bind(LOCAL).unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    theirs.set_nodelay(true).unwrap();
    let (ours, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Socket::from(OwnedFd::from(ours)), Socket::from(OwnedFd::from(theirs)))
}

/// Both ends of a Unix stream; the first is non-blocking.
fn unix_pair() -> (Socket, Socket) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Socket::from(OwnedFd::from(ours)), Socket::from(OwnedFd::from(theirs)))
}

/// Polls one socket as the event loop does. The first event, that it is writable, is consumed.
struct Watch(Poll);

impl Watch {
    fn new(socket: &Socket) -> Self {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        let mut watch = Watch(Poll::new().unwrap());
        let mut source = SourceFd(&socket.as_raw_fd());
        watch.0.registry().register(&mut source, Token(0), interest).unwrap();
        watch.expect("that the socket is writable", Event::is_writable);
        watch
    }

    fn event(&mut self, patience: Duration) -> Option<Event> {
        let mut events = Events::with_capacity(1);
        self.0.poll(&mut events, Some(patience)).unwrap();
        events.iter().next().cloned()
    }

    /// Waits for an event that fulfils `holds`.
    fn expect(&mut self, what: &str, holds: impl Fn(&Event) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !self.event(DEADLINE).is_some_and(|event| holds(&event)) {
            assert!(Instant::now() < deadline, "no event says {what}");
        }
    }

    /// No event is pending.
    fn expect_nothing(&mut self) {
        assert!(self.event(Duration::ZERO).is_none());
    }
}

/// Reads into a buffer that is larger than the available input.
fn read(mut socket: &Socket) -> Result<Vec<u8>, ErrorKind> {
    let mut buffer = [0; 1024];
    let count = socket.read(&mut buffer).map_err(|error| error.kind())?;
    Ok(buffer[..count].to_vec())
}

/// The same by recvmsg(2), without a buffer for ancillary data; also returns whether the kernel
/// reports that it dropped some.
#[allow(unsafe_code)] // socket2 does not expose MSG_CTRUNC
fn receive(socket: &Socket) -> Result<(Vec<u8>, bool), ErrorKind> {
    let mut buffer = [0_u8; 1024];
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: zeros are a valid msghdr; recvmsg writes no more than the buffer's bytes.
    let (count, flags) = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut slice;
        message.msg_iovlen = 1;
        (libc::recvmsg(socket.as_raw_fd(), &mut message, 0), message.msg_flags)
    };
    let count = usize::try_from(count).map_err(|_| std::io::Error::last_os_error().kind())?;
    Ok((buffer[..count].to_vec(), flags & libc::MSG_CTRUNC != 0))
}

/// Sends bytes that carry a descriptor.
fn send_with_descriptor(socket: &Socket, bytes: &[u8], descriptor: &impl AsRawFd) {
    // A cmsghdr, its one descriptor, and padding.
    let mut control = (size_of::<libc::cmsghdr>() + size_of::<i32>()).to_ne_bytes().to_vec();
    for field in [libc::SOL_SOCKET, libc::SCM_RIGHTS, descriptor.as_raw_fd(), 0] {
        control.extend_from_slice(&field.to_ne_bytes());
    }
    let slices = [IoSlice::new(bytes)];
    let message = MsgHdr::new().with_buffers(&slices).with_control(&control);
    assert_eq!(socket.sendmsg(&message, 0).unwrap(), bytes.len());
}

/// Enables credentials: each message carries those of its sender.
#[allow(unsafe_code)] // socket2 has no such option
fn pass_credentials(socket: &Socket) {
    let on: libc::c_int = 1;
    // SAFETY: setsockopt reads one int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PASSCRED,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
}

#[test]
fn the_kernel_returns_all_available_bytes_of_a_stream_in_one_read() {
    for (ours, theirs) in [tcp_pair(), unix_pair()] {
        let mut watch = Watch::new(&ours);
        for piece in ["abc", "def", "ghi"] {
            theirs.send(piece.as_bytes()).unwrap();
            watch.expect("that more input is available", Event::is_readable);
        }
        assert_eq!(read(&ours).unwrap(), b"abcdefghi");
        assert_eq!(read(&ours).unwrap_err(), ErrorKind::WouldBlock);
        watch.expect_nothing();
    }
}

#[test]
fn the_kernel_reports_new_input_while_older_input_is_unread() {
    for (ours, theirs) in [tcp_pair(), unix_pair()] {
        let mut watch = Watch::new(&ours);
        for _ in 0..3 {
            theirs.send(b"x").unwrap();
            watch.expect("that input is available", Event::is_readable);
            watch.expect_nothing();
        }
    }
}

/// After such an event, a short read must be followed by another read.
#[test]
fn the_kernel_reports_the_end_once_together_with_the_bytes_before_it() {
    for (ours, theirs) in [tcp_pair(), unix_pair()] {
        let mut watch = Watch::new(&ours);
        theirs.send(b"last").unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        watch.expect("that the input has ended", |event| {
            event.is_readable() && event.is_read_closed()
        });
        assert_eq!(read(&ours).unwrap(), b"last");
        watch.expect_nothing();
        assert_eq!(read(&ours).unwrap(), b"");
    }
}

#[test]
fn the_kernel_stops_a_read_at_urgent_data_and_reports_it_before() {
    for (ours, theirs) in [tcp_pair(), unix_pair()] {
        let mut watch = Watch::new(&ours);
        theirs.send(b"abc").unwrap();
        theirs.send_out_of_band(b"!").unwrap();
        watch.expect("that there is urgent data", Event::is_priority);
        theirs.send(b"def").unwrap();
        watch.expect("that there is still urgent data", |event| {
            event.is_priority() && event.is_readable()
        });
        assert_eq!(read(&ours).unwrap(), b"abc", "the read stops at the urgent byte");
        watch.expect_nothing();
        assert_eq!(read(&ours).unwrap(), b"def");
        assert_eq!(read(&ours).unwrap_err(), ErrorKind::WouldBlock);
    }
}

#[test]
fn the_kernel_reports_urgent_data_that_comes_after_an_event() {
    for (ours, theirs) in [tcp_pair(), unix_pair()] {
        let mut watch = Watch::new(&ours);
        theirs.send(b"abc").unwrap();
        watch.expect("that input is available", |event| !event.is_priority());
        theirs.send_out_of_band(b"!").unwrap();
        theirs.send(b"def").unwrap();
        assert_eq!(read(&ours).unwrap(), b"abc", "the read stops at the urgent byte");
        watch.expect("that there is urgent data", Event::is_priority);
        assert_eq!(read(&ours).unwrap(), b"def");
    }
}

#[test]
fn the_kernel_stops_a_unix_read_after_a_descriptor_and_reports_that_it_dropped_it() {
    let (ours, theirs) = unix_pair();
    let mut watch = Watch::new(&ours);
    send_with_descriptor(&theirs, b"abc", &theirs);
    theirs.send(b"def").unwrap();
    watch.expect("that input is available", |event| !event.is_priority());
    watch.expect_nothing();
    assert_eq!(receive(&ours), Ok((b"abc".to_vec(), true)));
    watch.expect_nothing();
    assert_eq!(receive(&ours), Ok((b"def".to_vec(), false)));
    assert_eq!(receive(&ours).unwrap_err(), ErrorKind::WouldBlock);
}

#[test]
fn the_kernel_reports_dropped_credentials_with_each_read() {
    let (ours, theirs) = unix_pair();
    pass_credentials(&ours);
    for piece in [b"abc", b"def"] {
        theirs.send(piece).unwrap();
        assert_eq!(receive(&ours), Ok((piece.to_vec(), true)));
    }
}

// Servers

/// Blocks the loop's thread in a hook, so that the loop then finds several events at once.
#[derive(Clone)]
struct Hold {
    wanted: Arc<AtomicBool>,
    gate: Arc<Barrier>,
}

impl Hold {
    fn new() -> Self {
        Hold { wanted: Arc::default(), gate: Arc::new(Barrier::new(2)) }
    }

    /// Runs `act` while the loop is blocked in the accept of the client that `connect` connects.
    fn during<T>(&self, connect: impl FnOnce() -> T, act: impl FnOnce()) -> T {
        self.wanted.store(true, SeqCst);
        let connected = connect();
        self.gate.wait();
        act();
        self.gate.wait();
        connected
    }
}

impl Hooks for Hold {
    fn verify_request(&mut self, _: &Peer) -> bool {
        if self.wanted.swap(false, SeqCst) {
            self.gate.wait();
            self.gate.wait();
        }
        true
    }
}

/// A server of lines over TCP or a Unix socket, and its address.
struct LineServer {
    _server: TestServer,
    domain: Domain,
    address: SockAddr,
    hold: Hold,
}

impl LineServer {
    fn start_all(mode: Mode) -> [LineServer; 2] {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, SeqCst);
        let name = format!("socketserver-readiness-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let start = |builder: socketserver::Builder| {
            let hold = Hold::new();
            let builder = builder.framing(Lines::default()).mode(mode).hooks(hold.clone());
            let (make, _) = recorders(echo);
            (start_server(builder.serve(make).unwrap()), hold)
        };
        let (server, hold) = start(Server::tcp(LOCAL).unwrap());
        let address = server.address().into();
        let tcp = LineServer { _server: server, domain: Domain::IPV4, address, hold };
        let (server, hold) = start(Server::unix_stream(&path).unwrap());
        let address = SockAddr::unix(&path).unwrap();
        [tcp, LineServer { _server: server, domain: Domain::UNIX, address, hold }]
    }

    fn connect(&self) -> Socket {
        let socket = Socket::new(self.domain, Type::STREAM, None).unwrap();
        socket.connect(&self.address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    }
}

fn expect_reply(mut socket: &Socket, expected: &str) {
    let mut reply = vec![0; expected.len()];
    socket.read_exact(&mut reply).unwrap();
    assert_eq!(String::from_utf8(reply).unwrap(), expected);
}

/// The modes that serve several connections at a time in one process.
fn modes() -> impl Iterator<Item = Mode> {
    Mode::all().filter(|mode| !matches!(mode.name(), "inline" | "forking"))
}

#[test]
fn a_line_after_urgent_data_is_answered() {
    for server in modes().flat_map(LineServer::start_all) {
        let client = server.connect();
        client.send(b"first\n").unwrap();
        expect_reply(&client, "first\n");
        let send = || {
            client.send(b"abc").unwrap();
            client.send_out_of_band(b"!").unwrap();
            client.send(b"def\n").unwrap();
        };
        server.hold.during(|| server.connect(), send);
        expect_reply(&client, "abcdef\n");
        for _ in 0..20 {
            send();
            expect_reply(&client, "abcdef\n");
        }
    }
}

#[test]
fn a_line_after_a_passed_descriptor_is_answered() {
    for [_, server] in modes().map(LineServer::start_all) {
        let client = server.connect();
        client.send(b"first\n").unwrap();
        expect_reply(&client, "first\n");
        server.hold.during(
            || server.connect(),
            || {
                send_with_descriptor(&client, b"abc", &client);
                client.send(b"def\n").unwrap();
            },
        );
        expect_reply(&client, "abcdef\n");
        client.send(b"last\n").unwrap();
        expect_reply(&client, "last\n");
    }
}

#[test]
fn a_line_is_answered_when_a_hook_enables_credentials() {
    struct EnableCredentials;
    impl Hooks for EnableCredentials {
        fn on_accept(
            &mut self,
            connection: std::os::fd::BorrowedFd<'_>,
            _: &Peer,
        ) -> std::io::Result<()> {
            let socket = Socket::from(connection.try_clone_to_owned()?);
            pass_credentials(&socket);
            Ok(())
        }
    }
    for mode in modes() {
        let name = format!("socketserver-credentials-{}-{}", mode.name(), std::process::id());
        let path = std::env::temp_dir().join(name);
        let builder = Server::unix_stream(&path).unwrap().framing(Lines::default());
        let (make, _) = recorders(echo);
        let _server =
            start_server(builder.mode(mode).hooks(EnableCredentials).serve(make).unwrap());
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        for line in ["one\n", "two\n"] {
            client.write_all(line.as_bytes()).unwrap();
            let mut reply = vec![0; line.len()];
            client.read_exact(&mut reply).unwrap();
            assert_eq!(reply, line.as_bytes());
        }
    }
}

// Fairness

/// The length of an answer that is longer than its request.
const LONG: usize = 64 * 1024;

/// A handler that echoes lines; commands make it block, send a long answer or pass its sender.
struct LongAnswers {
    served: Served,
    gate: Arc<Barrier>,
    senders: mpsc::Sender<Sender>,
    closed: mpsc::Sender<String>,
}

impl Handler for LongAnswers {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        self.served.lock().unwrap().push(message.to_vec());
        match message {
            b"hold" => {
                self.gate.wait();
                self.gate.wait();
                Ok(())
            }
            b"sender" => Ok(self.senders.send(cx.sender()?)?),
            b"l" => cx.send(&[b'x'; LONG - 1]),
            b"" => Ok(()),
            other => cx.send(other),
        }
    }

    fn on_close(&mut self, reason: &CloseReason) {
        let _ = self.closed.send(reason.to_string());
    }
}

/// The messages that were served, of all clients, in order.
type Served = Arc<Mutex<Vec<Vec<u8>>>>;

struct LongAnswerServer {
    server: TestServer,
    served: Served,
    gate: Arc<Barrier>,
    senders: mpsc::Receiver<Sender>,
    closed: mpsc::Receiver<String>,
}

impl LongAnswerServer {
    fn start<F: Framing + Clone + Send + 'static>(mode: Mode, framing: F, served: Served) -> Self {
        let gate = Arc::new(Barrier::new(2));
        let ((senders, given), (closed, reasons)) = (mpsc::channel(), mpsc::channel());
        let builder = Server::tcp(LOCAL).unwrap().framing(framing).mode(mode);
        let server = {
            let (served, gate) = (served.clone(), gate.clone());
            builder.serve(move |_: &Accepted<'_>| LongAnswers {
                served: served.clone(),
                gate: gate.clone(),
                senders: senders.clone(),
                closed: closed.clone(),
            })
        };
        let server = start_server(server.unwrap());
        LongAnswerServer { server, served, gate, senders: given, closed: reasons }
    }

    /// How many messages of `busy` are served before a message of another client, if the messages
    /// of both arrive while the loop is blocked.
    fn served_before_another(&self, busy: &mut Client, act: impl FnOnce(&mut Client)) -> usize {
        let mut other = self.server.connect();
        other.send("hello\n").expect_reply("hello\n");
        busy.send("hold\n");
        self.gate.wait();
        act(busy);
        other.send("hello\n");
        self.served.lock().unwrap().clear();
        self.gate.wait();
        other.expect_reply("hello\n");
        let served = self.served.lock().unwrap();
        served.iter().position(|message| message == b"hello").unwrap()
    }
}

/// Reads all input on a thread.
fn read_on_a_thread(client: &Client) {
    let mut stream = client.stream.try_clone().unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
    });
}

#[test]
fn another_client_is_served_between_many_messages_of_one_client() {
    let setup = LongAnswerServer::start(Mode::default(), Lines::default(), Served::default());
    let mut busy = setup.server.connect();
    let before = setup.served_before_another(&mut busy, |busy| {
        busy.send([b'\n'; 60_000]);
    });
    assert!(before <= 1024, "{before} messages of 60,000 were served before");
    setup.server.wait_for("all are served", |counters| counters.messages == 60_003);
}

#[test]
fn another_client_is_served_between_long_answers_to_one_client() {
    let setup = LongAnswerServer::start(Mode::default(), Lines::default(), Served::default());
    let mut busy = setup.server.connect();
    read_on_a_thread(&busy);
    let before = setup.served_before_another(&mut busy, |busy| {
        busy.send(b"l\n".repeat(500));
    });
    assert!(before <= 8, "{before} answers of 500 were sent before");
    setup.server.wait_for("all are served", |counters| counters.messages == 503);
}

#[test]
fn output_that_waits_is_sent_in_many_turns_however_fast_its_client_takes_it() {
    const PARTS: usize = 64;
    let part: Arc<[u8]> = pattern(1 << 20).into();
    let server = Server::tcp(LOCAL).unwrap().framing(Lines::default());
    let server = server.write_watermarks(PARTS << 21, 0).serve(move |_: &Accepted<'_>| {
        let part = part.clone();
        handler_fn(move |_, cx| (0..PARTS).try_for_each(|_| cx.send_shared(&part)))
    });
    let server = start_server(server.unwrap());
    let mut client = server.connect();
    client.send("?\n").end();
    let before = server.counters().turns;
    let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
    while let Ok(count @ 1..) = client.stream.read(&mut buffer) {
        total += count;
    }
    assert_eq!(total, PARTS * ((1 << 20) + 1));
    // A turn sends 128 KiB; the first, what the kernel has room for.
    let turns = server.counters().turns - before;
    assert!(turns as usize >= PARTS * 8 / 2, "{turns} turns");
}

/// Lines; while one that begins with `r` is encoded, the next one is sent from within.
/// A framing of lines that, while it encodes a message that begins with `r`, sends the same message
/// again through a sender of the connection.
#[derive(Clone)]
struct Refilling {
    lines: Lines,
    sender: Arc<Mutex<Option<Sender>>>,
    left: Arc<AtomicUsize>,
    served: Served,
}

impl Framing for Refilling {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        self.lines.decode(input)
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        if message.first() == Some(&b'r') {
            self.served.lock().unwrap().push(b"refilled".to_vec());
            let left = self.left.load(SeqCst);
            if left > 0 {
                self.left.store(left - 1, SeqCst);
                let sender = self.sender.lock().unwrap();
                let _ = sender.as_ref().unwrap().send(message);
            }
        }
        self.lines.encode(message, output)
    }
}

/// A server with a connection whose send queue refills itself `times` times after the first
/// message, and the client of that connection.
fn start_refilling(mode: Mode, times: usize) -> (LongAnswerServer, Client, Refilling) {
    let refilling = Refilling {
        lines: Lines::default(),
        sender: Arc::default(),
        left: Arc::new(AtomicUsize::new(times)),
        served: Served::default(),
    };
    let setup = LongAnswerServer::start(mode, refilling.clone(), refilling.served.clone());
    let mut client = setup.server.connect();
    client.send("sender\n");
    *refilling.sender.lock().unwrap() = Some(expect_next(&setup.senders));
    (setup, client, refilling)
}

impl Refilling {
    fn begin(&self, length: usize) {
        let sender = self.sender.lock().unwrap().clone().unwrap();
        sender.send(&vec![b'r'; length]).unwrap();
    }
}

#[test]
fn another_client_is_served_while_a_send_queue_refills_itself() {
    for (length, most) in [(1, 1024), (40 * 1024, 8)] {
        let times = 5000;
        let (setup, mut busy, refilling) = start_refilling(Mode::default(), times);
        read_on_a_thread(&busy);
        let before = setup.served_before_another(&mut busy, |_| refilling.begin(length));
        assert!(before <= most, "{before} messages of {times} were sent before");
        wait_until("all are sent", || refilling.left.load(SeqCst) == 0);
    }
}

#[test]
fn a_connection_is_read_while_its_own_send_queue_refills_itself() {
    for mode in modes() {
        let (setup, mut client, refilling) = start_refilling(mode, usize::MAX);
        read_on_a_thread(&client);
        refilling.begin(1000);
        wait_until("the queue refills itself", || setup.served.lock().unwrap().len() > 10);
        client.send("a request\n");
        wait_until("the request is served", || {
            setup.served.lock().unwrap().contains(&b"a request".to_vec())
        });
        refilling.left.store(0, SeqCst);
    }
}

#[test]
fn the_buffered_input_of_a_disconnected_client_is_dropped() {
    for mode in Mode::all() {
        let mode = match mode {
            // The messages are counted in this process.
            Mode::Forking(_) => continue,
            mode => mode,
        };
        let setup = LongAnswerServer::start(mode, Lines::default(), Served::default());
        let mut client = setup.server.connect();
        client.send("hold\n");
        setup.gate.wait();
        client.send(b"l\n".repeat(30_000));
        client.reset();
        setup.gate.wait();
        let reason = expect_next(&setup.closed);
        assert!(reason.starts_with("disconnected"), "{mode}: {reason}");
        let served = setup.served.lock().unwrap().len();
        assert!(served <= 300, "{mode}: {served} lines of 30,000 were served after the reset");
    }
}

#[test]
fn the_sender_of_a_disconnected_client_is_closed_although_messages_wait() {
    for mode in modes() {
        let (setup, mut client, refilling) = start_refilling(mode, usize::MAX);
        client.send("hold\n");
        setup.gate.wait();
        refilling.begin(40 * 1024);
        client.send(b"l\n".repeat(30_000));
        client.reset();
        setup.gate.wait();
        let reason = expect_next(&setup.closed);
        assert!(reason.starts_with("disconnected"), "{mode}: {reason}");
        let sender = refilling.sender.lock().unwrap().clone().unwrap();
        assert!(sender.is_closed());
        let served = setup.served.lock().unwrap().len();
        assert!(served <= 300, "{mode}: {served} messages were served after the reset");
    }
}

// Deadlines

/// An echo with an idle timeout of zero, which stays open whenever it expires.
fn stay_open(call: &Call, cx: &mut Context<'_>) -> HandlerResult {
    match call {
        Call::Open => Ok(cx.set_idle_timeout(Duration::ZERO)?),
        Call::Message(message) => cx.send(message),
        _ => Ok(()),
    }
}

#[test]
fn an_idle_timeout_of_zero_that_does_not_close_delays_no_other_client() {
    for mode in Mode::all() {
        let mode = match mode {
            Mode::Forking(forking) => Mode::Forking(forking.allow_threads(true)),
            mode => mode,
        };
        let (make, calls) = recorders(stay_open);
        let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
        let server = start_server(builder.serve(make).unwrap());
        let mut client = server.connect();
        client.send("one\n").expect_reply("one\n");
        if mode.name() != "forking" {
            while expect_next(&calls) != Call::Timeout {}
            while expect_next(&calls) != Call::Timeout {}
        }
        if mode.name() != "inline" {
            server.connect().send("other\n").expect_reply("other\n");
        }
        client.send("two\n").expect_reply("two\n");
        let (_, report) = server.stop();
        assert_eq!(report.aborted, 0, "{mode}");
    }
}

#[test]
fn one_turn_serves_a_bounded_number_of_expired_deadlines() {
    const CLIENTS: usize = 600;
    struct Turns {
        hold: Hold,
        timeouts: Arc<AtomicUsize>,
        seen: usize,
        most: Arc<AtomicUsize>,
    }
    impl Hooks for Turns {
        fn verify_request(&mut self, peer: &Peer) -> bool {
            self.hold.verify_request(peer)
        }
        fn service_actions(&mut self) {
            let timeouts = self.timeouts.load(SeqCst);
            self.most.fetch_max(timeouts - self.seen, SeqCst);
            self.seen = timeouts;
        }
        fn wants_service_actions(&self) -> bool {
            true
        }
    }
    raise_descriptor_limit();
    let (timeouts, most, hold) = (Arc::default(), Arc::default(), Hold::new());
    let hooks = Turns {
        hold: hold.clone(),
        timeouts: Arc::clone(&timeouts),
        seen: 0,
        most: Arc::clone(&most),
    };
    let (make, _) = recorders(move |call: &Call, cx: &mut Context<'_>| {
        match call {
            Call::Message(_) => cx.set_idle_timeout(Duration::from_millis(50))?,
            Call::Timeout => {
                timeouts.fetch_add(1, SeqCst);
                cx.close();
            }
            _ => {}
        }
        Ok(())
    });
    let server = start_server(Server::tcp(LOCAL).unwrap().hooks(hooks).serve(make).unwrap());
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    server.wait_for("all are accepted", |counters| counters.accepted == CLIENTS as u64);
    let _last = hold.during(
        || server.connect(),
        || clients.iter_mut().for_each(|client| _ = client.send("at one moment")),
    );
    // The deadlines are all set in one turn, and all expire before the next.
    server.wait_for("all are closed", |counters| counters.closed == CLIENTS as u64);
    let most = most.load(SeqCst);
    assert!((1..=256).contains(&most), "{most} deadlines in one turn");
}
