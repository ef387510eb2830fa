//! The contract of the kernel, as the event loop relies on it: each rule is a test on TCP and Unix sockets
//! of the system, and on the simulated ones.

use std::io::{ErrorKind, IoSlice, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use mio::Interest;
use mio::unix::SourceFd;

use super::choices::Choices;
use super::client::Client;
use super::kernel::{FakeKernel, Pace};
use super::stream::StreamEnd;
use super::trace::Trace;
use super::world::World;
use crate::sys::simulated::{Kernel, enter};
use crate::sys::{self, Events, Poll, Socket, Wakeup};

/// How long the system may take, and how long nothing must happen.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(30);

const LISTENER: mio::Token = mio::Token(1);
const CONNECTION: mio::Token = mio::Token(2);
const WAKEUP: mio::Token = mio::Token(3);

/// A kernel: of the system, or simulated.
struct Rig {
    kernel: Option<Arc<FakeKernel>>,
    is_unix: bool,
    poll: Poll,
    events: Events,
    listener: Socket,
    address: String,
}

/// The other end of a connection.
enum Other {
    Tcp(TcpStream),
    Unix(UnixStream),
    Simulated(Client),
}

/// What one event has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shown {
    token: mio::Token,
    readable: bool,
    writable: bool,
    read_closed: bool,
    write_closed: bool,
}

impl Rig {
    fn system(is_unix: bool) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let (listener, address) = if is_unix {
            let number = NUMBER.fetch_add(1, SeqCst);
            let name = format!("socketserver-contract-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path).unwrap();
            (OwnedFd::from(listener), path.to_str().unwrap().to_owned())
        } else {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            (OwnedFd::from(listener), address)
        };
        let listener = Socket::from(listener);
        listener.set_nonblocking(true).unwrap();
        Self::of(None, is_unix, listener, address)
    }

    fn simulated(is_unix: bool) -> Self {
        let kernel = FakeKernel::new(Choices::script(&[]), &[], Trace::default());
        kernel.lock().pace = Pace::Settle;
        let dynamic: Arc<dyn Kernel> = kernel.clone();
        enter(dynamic, || {
            let listener = kernel.bind(is_unix).unwrap();
            listener.listen(100).unwrap();
            Self::of(Some(kernel.clone()), is_unix, listener, String::new())
        })
    }

    fn of(
        kernel: Option<Arc<FakeKernel>>,
        is_unix: bool,
        listener: Socket,
        address: String,
    ) -> Self {
        let (poll, events) = (Poll::new().unwrap(), Events::with_capacity(16));
        let rig = Rig { kernel, is_unix, poll, events, listener, address };
        rig.register(&rig.listener, LISTENER);
        rig
    }

    fn register(&self, descriptor: &impl AsRawFd, token: mio::Token) {
        let interest = Interest::READABLE | Interest::WRITABLE;
        let descriptor = descriptor.as_raw_fd();
        self.poll.register(&mut SourceFd(&descriptor), token, interest).unwrap();
    }

    fn connect(&mut self) -> Other {
        match &self.kernel {
            Some(kernel) => {
                let world = World { kernel: kernel.clone() };
                let number = kernel.lock().descriptor(self.listener.as_raw_fd()).unwrap().0;
                Other::Simulated(world.connect(number))
            }
            None if self.is_unix => Other::Unix(UnixStream::connect(&self.address).unwrap()),
            None => Other::Tcp(TcpStream::connect(&self.address).unwrap()),
        }
    }

    /// Connects and accepts; the connection is registered.
    fn pair(&mut self) -> (Socket, Other) {
        let other = self.connect();
        assert!(self.wait(LISTENER).readable);
        let (ours, _) = sys::accept(&self.listener, true).unwrap();
        self.register(&ours, CONNECTION);
        self.settle();
        (ours, other)
    }

    /// Takes all events of a call of the poller.
    fn poll(&mut self, timeout: Duration) -> Vec<Shown> {
        let (timeout, is_simulated) = (Some(timeout), self.kernel.is_some());
        let timeout = if is_simulated { None } else { timeout };
        self.poll.poll(&mut self.events, timeout).unwrap();
        self.events
            .iter()
            .map(|event| Shown {
                token: event.token(),
                readable: event.is_readable(),
                writable: event.is_writable(),
                read_closed: event.is_read_closed(),
                write_closed: event.is_write_closed(),
            })
            .collect()
    }

    /// The next event of this token.
    fn wait(&mut self, token: mio::Token) -> Shown {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(shown) = self.poll(PATIENCE).into_iter().find(|shown| shown.token == token)
            {
                return shown;
            }
        }
        panic!("an event of {token:?} comes");
    }

    /// Waits until an event of the connection fulfils a condition.
    fn wait_until(&mut self, condition: impl Fn(Shown) -> bool) {
        while !condition(self.wait(CONNECTION)) {}
    }

    /// Takes events until none comes.
    fn settle(&mut self) {
        while !self.poll(SILENCE).is_empty() {}
    }

    fn nothing_comes(&mut self) {
        assert_eq!(self.poll(SILENCE), []);
    }
}

impl Other {
    fn send(&mut self, bytes: &[u8]) {
        match self {
            Other::Tcp(stream) => stream.write_all(bytes).unwrap(),
            Other::Unix(stream) => stream.write_all(bytes).unwrap(),
            Other::Simulated(client) => client.send(bytes),
        }
    }

    fn finish(&mut self) {
        match self {
            Other::Tcp(stream) => stream.shutdown(Shutdown::Write).unwrap(),
            Other::Unix(stream) => stream.shutdown(Shutdown::Write).unwrap(),
            Other::Simulated(client) => client.finish(),
        }
    }

    fn reset(self) {
        match self {
            Other::Tcp(stream) => sys::reset_on_close(&Socket::from(stream)),
            Other::Unix(_) => unreachable!("a Unix socket has no reset"),
            Other::Simulated(client) => client.reset(),
        }
    }

    fn close(self) {
        if let Other::Simulated(client) = self {
            client.close();
        }
    }

    fn stop_reading(&self) {
        if let Other::Simulated(client) = self {
            client.stop_reading();
        }
    }

    /// Reads until nothing more comes; returns the bytes, and how the connection has ended.
    fn read(&mut self, rig: &mut Rig) -> (Vec<u8>, Option<StreamEnd>) {
        let stream: &mut dyn std::io::Read = match self {
            Other::Simulated(client) => {
                client.resume_reading();
                rig.keep_events();
                return (client.read(), client.closed_by_server());
            }
            Other::Tcp(stream) => {
                stream.set_read_timeout(Some(10 * SILENCE)).unwrap();
                stream
            }
            Other::Unix(stream) => {
                stream.set_read_timeout(Some(10 * SILENCE)).unwrap();
                stream
            }
        };
        let (mut all, mut part) = (Vec::new(), [0; 4096]);
        loop {
            match stream.read(&mut part) {
                Ok(0) => return (all, Some(StreamEnd::Eof)),
                Ok(count) => all.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return (all, None),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return (all, Some(StreamEnd::Reset));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Rig {
    /// Lets the simulated world go on without taking an event from the poller.
    fn keep_events(&mut self) {
        if let Some(kernel) = &self.kernel {
            loop {
                kernel.idle(Pace::Settle);
                if kernel.lock().agenda.is_empty() {
                    return;
                }
            }
        }
    }
}

fn read(mut socket: &Socket) -> std::io::Result<Vec<u8>> {
    let mut buffer = [0; 1000];
    let count = socket.read(&mut buffer)?;
    Ok(buffer[..count].to_vec())
}

fn would_block(result: std::io::Result<Vec<u8>>) -> bool {
    matches!(result, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// Writes until neither kernel takes more; returns how much they took.
fn fill(rig: &mut Rig, socket: &Socket) -> usize {
    let mut filled = 0;
    loop {
        let before = filled;
        loop {
            match sys::send(socket, &[7; 50_000]).unwrap() {
                0 => break,
                count => filled += count,
            }
        }
        if filled == before {
            return filled;
        }
        rig.settle();
    }
}

fn a_registration_reports_the_present_state_once(rig: &mut Rig) {
    let mut other = rig.connect();
    other.send(b"early");
    assert!(rig.wait(LISTENER).readable);
    let (ours, _) = sys::accept(&rig.listener, true).unwrap();
    rig.settle();
    rig.register(&ours, CONNECTION);
    let shown = rig.wait(CONNECTION);
    assert!(shown.readable && shown.writable, "{shown:?}");
    rig.nothing_comes();
}

fn new_input_is_an_edge_although_there_is_some_already(rig: &mut Rig) {
    let (ours, mut other) = rig.pair();
    for _ in 0..3 {
        other.send(b"more");
        rig.wait_until(|shown| shown.readable);
    }
    rig.nothing_comes();
    assert_eq!(read(&ours).unwrap(), b"moremoremore");
}

fn after_a_short_read_nothing_is_left_until_new_input_comes(rig: &mut Rig) {
    let (ours, mut other) = rig.pair();
    other.send(b"first");
    rig.wait_until(|shown| shown.readable);
    assert_eq!(read(&ours).unwrap(), b"first");
    assert!(would_block(read(&ours)));
    rig.nothing_comes();
    other.send(b"second");
    rig.wait_until(|shown| shown.readable);
    assert_eq!(read(&ours).unwrap(), b"second");
}

fn room_is_an_edge_only_after_a_send_without_room(rig: &mut Rig) {
    let (ours, mut other) = rig.pair();
    other.stop_reading();
    assert_eq!(sys::send(&ours, b"a few bytes").unwrap(), 11);
    rig.nothing_comes();
    let filled = fill(rig, &ours);
    assert!(sys::unsent(&ours) > 0);
    let (received, end) = other.read(rig);
    assert_eq!((received.len(), end), (11 + filled, None));
    rig.wait_until(|shown| shown.writable);
    assert!(sys::send(&ours, b"more").unwrap() > 0);
}

fn the_end_of_the_input_is_an_edge_and_follows_all_input(rig: &mut Rig) {
    let (ours, mut other) = rig.pair();
    other.send(b"last");
    other.finish();
    rig.wait_until(|shown| shown.readable && shown.read_closed);
    assert_eq!(sys::peek(&ours).unwrap(), 1);
    assert_eq!(read(&ours).unwrap(), b"last");
    assert_eq!(sys::peek(&ours).unwrap(), 0);
    for _ in 0..2 {
        assert_eq!(read(&ours).unwrap(), b"");
    }
    // The other direction is open.
    assert_eq!(sys::send(&ours, b"answer").unwrap(), 6);
    assert_eq!(other.read(rig), (b"answer".to_vec(), None));
}

fn a_reset_follows_the_input_and_is_returned_once(rig: &mut Rig) {
    let (ours, mut other) = rig.pair();
    other.send(b"last");
    rig.wait_until(|shown| shown.readable);
    other.reset();
    rig.wait_until(|shown| shown.readable && shown.read_closed && shown.write_closed);
    assert_eq!(read(&ours).unwrap(), b"last");
    assert_eq!(read(&ours).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(read(&ours).unwrap(), b"");
    assert_eq!(sys::send(&ours, b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert!(ours.shutdown(Shutdown::Write).is_err());
}

fn the_error_of_a_reset_is_taken_once(rig: &mut Rig) {
    let (ours, other) = rig.pair();
    other.reset();
    rig.wait_until(|shown| shown.write_closed);
    let error = ours.take_error().unwrap().map(|error| error.kind());
    assert_eq!(error, Some(ErrorKind::ConnectionReset));
    assert!(ours.take_error().unwrap().is_none());
    assert_eq!(read(&ours).unwrap(), b"");
}

fn several_clients_are_one_edge_of_the_listener(rig: &mut Rig) {
    let _others = [rig.connect(), rig.connect()];
    rig.keep_events();
    assert!(rig.wait(LISTENER).readable);
    rig.settle();
    let first = sys::accept(&rig.listener, true).unwrap();
    let second = sys::accept(&rig.listener, true).unwrap();
    assert_ne!(first.0.as_raw_fd(), second.0.as_raw_fd());
    let third = sys::accept(&rig.listener, true).map(|_| ());
    assert_eq!(third.unwrap_err().kind(), ErrorKind::WouldBlock);
    rig.nothing_comes();
    let _third = rig.connect();
    assert!(rig.wait(LISTENER).readable);
}

fn each_wake_is_an_edge_and_several_are_one_event(rig: &mut Rig) {
    let wakeup = match &rig.kernel {
        Some(kernel) => {
            let kernel: Arc<dyn Kernel> = kernel.clone();
            enter(kernel, || Wakeup::new().unwrap())
        }
        None => Wakeup::new().unwrap(),
    };
    rig.register(&wakeup, WAKEUP);
    rig.settle();
    for _ in 0..2 {
        wakeup.wake();
        wakeup.wake();
        assert!(rig.wait(WAKEUP).readable);
        rig.nothing_comes();
    }
}

fn a_closed_socket_has_no_events(rig: &mut Rig) {
    let (ours, mut other) = rig.pair();
    other.send(b"input");
    rig.keep_events();
    drop(ours);
    rig.nothing_comes();
}

fn a_close_with_unread_input_ends_in_a_reset(rig: &mut Rig) {
    let (ours, mut other) = rig.pair();
    other.send(b"unread");
    rig.wait_until(|shown| shown.readable);
    drop(ours);
    rig.keep_events();
    assert_eq!(other.read(rig), (Vec::new(), Some(StreamEnd::Reset)));
}

fn a_close_without_unread_input_delivers_all_output_and_the_end(rig: &mut Rig) {
    let (ours, mut other) = rig.pair();
    let slices = [IoSlice::new(b"out"), IoSlice::new(b"put")];
    assert_eq!(sys::send_vectored(&ours, &slices, false).unwrap(), 6);
    drop(ours);
    rig.keep_events();
    assert_eq!(other.read(rig), (b"output".to_vec(), Some(StreamEnd::Eof)));
}

fn a_shutdown_ends_the_output_only(rig: &mut Rig) {
    let (ours, mut other) = rig.pair();
    sys::send(&ours, b"output").unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    rig.keep_events();
    assert_eq!(other.read(rig), (b"output".to_vec(), Some(StreamEnd::Eof)));
    assert_eq!(sys::send(&ours, b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    other.send(b"input");
    rig.wait_until(|shown| shown.readable);
    assert_eq!(read(&ours).unwrap(), b"input");
    other.finish();
    rig.wait_until(|shown| shown.read_closed && shown.write_closed);
}

fn a_reset_on_close_drops_the_output(rig: &mut Rig) {
    let (ours, mut other) = rig.pair();
    other.stop_reading();
    fill(rig, &ours);
    sys::reset_on_close(&ours);
    drop(ours);
    rig.keep_events();
    // A Unix socket has no reset.
    let end = if rig.is_unix { StreamEnd::Eof } else { StreamEnd::Reset };
    assert_eq!(other.read(rig).1, Some(end));
}

fn output_for_a_peer_that_has_closed_fails(rig: &mut Rig) {
    let (ours, other) = rig.pair();
    other.close();
    rig.wait_until(|shown| shown.read_closed);
    // The first send over TCP causes the reset.
    let deadline = Instant::now() + PATIENCE;
    while sys::send(&ours, b"x").is_ok() {
        assert!(Instant::now() < deadline);
        rig.keep_events();
    }
    assert_eq!(sys::send(&ours, b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

fn the_close_of_a_peer_is_reported_on_a_unix_socket_and_as_an_end_over_tcp(rig: &mut Rig) {
    let (ours, other) = rig.pair();
    other.close();
    let shown = rig.wait(CONNECTION);
    assert!(shown.readable && shown.read_closed, "{shown:?}");
    assert_eq!(shown.write_closed, rig.is_unix);
    assert_eq!(read(&ours).unwrap(), b"");
}

fn the_kernel_holds_output_until_the_peer_has_it(rig: &mut Rig) {
    let (ours, mut other) = rig.pair();
    other.stop_reading();
    fill(rig, &ours);
    let before = sys::unsent(&ours);
    assert!(before > 0);
    other.read(rig);
    let deadline = Instant::now() + PATIENCE;
    while sys::unsent(&ours) > 0 {
        assert!(Instant::now() < deadline);
    }
}

/// A listener refills what it may accept in a turn when the time is another than in the last turn.
fn time_passes_between_two_polls_that_do_not_sleep(rig: &mut Rig) {
    let kernel = rig.kernel.clone();
    let now = || kernel.as_ref().map_or_else(Instant::now, |kernel| kernel.now());
    let mut before = now();
    for _ in 0..10 {
        rig.poll.poll(&mut rig.events, Some(Duration::ZERO)).unwrap();
        assert!(now() > before);
        before = now();
    }
}

macro_rules! contract {
    ($($rule:ident,)+; tcp: $($tcp:ident,)+) => {
        mod system_tcp {
            $(#[test] fn $rule() { super::$rule(&mut super::Rig::system(false)); })+
            $(#[test] fn $tcp() { super::$tcp(&mut super::Rig::system(false)); })+
        }
        mod system_unix {
            $(#[test] fn $rule() { super::$rule(&mut super::Rig::system(true)); })+
        }
        mod simulated_tcp {
            $(#[test] fn $rule() { super::$rule(&mut super::Rig::simulated(false)); })+
            $(#[test] fn $tcp() { super::$tcp(&mut super::Rig::simulated(false)); })+
        }
        mod simulated_unix {
            $(#[test] fn $rule() { super::$rule(&mut super::Rig::simulated(true)); })+
        }
    };
}

contract! {
    a_registration_reports_the_present_state_once,
    new_input_is_an_edge_although_there_is_some_already,
    after_a_short_read_nothing_is_left_until_new_input_comes,
    room_is_an_edge_only_after_a_send_without_room,
    the_end_of_the_input_is_an_edge_and_follows_all_input,
    several_clients_are_one_edge_of_the_listener,
    each_wake_is_an_edge_and_several_are_one_event,
    a_closed_socket_has_no_events,
    a_close_with_unread_input_ends_in_a_reset,
    a_close_without_unread_input_delivers_all_output_and_the_end,
    a_shutdown_ends_the_output_only,
    a_reset_on_close_drops_the_output,
    output_for_a_peer_that_has_closed_fails,
    the_close_of_a_peer_is_reported_on_a_unix_socket_and_as_an_end_over_tcp,
    the_kernel_holds_output_until_the_peer_has_it,
    time_passes_between_two_polls_that_do_not_sleep,
    ;
    tcp:
    a_reset_follows_the_input_and_is_returned_once,
    the_error_of_a_reset_is_taken_once,
}

#[test]
fn connections_have_the_same_numbers_in_each_run() {
    let numbers = |seed| {
        let numbers = std::sync::Mutex::new(Vec::new());
        super::Check::new().runs(1).seed(seed).run(|world| {
            let mut server = crate::Server::tcp("127.0.0.1:0")
                .unwrap()
                .serve(|_| {
                    crate::handler_fn(|_, cx| {
                        let number = u64::from(cx.id()) as usize;
                        cx.send(&vec![b'x'; number])
                    })
                })
                .unwrap();
            let mut sim = world.start(&mut server);
            for _ in 0..3 {
                let client = sim.connect();
                client.send(b"?");
                sim.settle();
                numbers.lock().unwrap().push(client.read().len());
            }
        });
        numbers.into_inner().unwrap()
    };
    // The run is repeated once, with the same trace.
    assert_eq!(numbers(0), [1, 2, 3, 1, 2, 3]);
    assert_eq!(numbers(0), numbers(1));
}
