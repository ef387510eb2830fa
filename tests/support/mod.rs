//! What the tests with real sockets have in common: servers to start, clients that wait no longer
//! than a deadline, and handlers that tell what they are told.

#![allow(dead_code)] // each test file uses a part of it
#![allow(unreachable_pub)] // a module of a test is public to nobody

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use socketserver::{
    CloseReason, Context, Counters, Handler, HandlerResult, Peer, Running, Server, ShutdownHandle,
    StopReport,
};

/// How long anything may take that is bound to happen.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How long one watches for what must not happen.
pub const A_WHILE: Duration = Duration::from_millis(300);

/// A server on a thread of its own. Dropped, it is stopped; by a test that fails, it is left alone,
/// since it may be what hangs.
pub struct TestServer {
    running: Option<Running>,
    handle: ShutdownHandle,
}

/// Starts a server that is ready to serve.
pub fn start_server(server: Server) -> TestServer {
    let handle = server.shutdown_handle();
    TestServer { running: Some(server.spawn().unwrap()), handle }
}

impl TestServer {
    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// Where its listeners listen.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.running().addresses().iter();
        addresses.map(|address| address.inet().unwrap()).collect()
    }

    pub fn address(&self) -> SocketAddr {
        self.running().local_addr().inet().unwrap()
    }

    /// Connects to its first listener.
    pub fn connect(&self) -> Client {
        connect(self.address())
    }

    pub fn handle(&self) -> ShutdownHandle {
        self.handle.clone()
    }

    pub fn counters(&self) -> Counters {
        self.handle.counters()
    }

    /// Waits until `holds` of its counters.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&Counters) -> bool) {
        let handle = self.handle();
        wait_until(what, || holds(&handle.counters()));
    }

    /// Waits until everyone who came has gone.
    pub fn wait_for_no_connection(&self) {
        self.wait_for("every connection is closed", |counters| {
            counters.accepted == counters.closed
        });
    }

    /// Stops it; the server and how its stop went.
    pub fn stop(mut self) -> (Server, StopReport) {
        let running = self.running.take().unwrap();
        in_time("the server stops", move || running.stop().unwrap())
    }

    /// Waits until it has been stopped by other means.
    pub fn join(mut self) -> (Server, StopReport) {
        let running = self.running.take().unwrap();
        in_time("the server ends", move || running.join().unwrap())
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        if thread::panicking() {
            std::mem::forget(running);
        } else {
            in_time("the server stops", move || drop(running.stop().unwrap()));
        }
    }
}

/// Does what must come to an end, and fails where it does not.
pub fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, waiting) = mpsc::channel();
    let thread = thread::spawn(move || {
        let _ = done.send(work());
    });
    match waiting.recv_timeout(DEADLINE) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("in time: {what}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("it has sent its value"),
        },
    }
}

/// Waits for what no event tells of.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "in time: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A client that never waits longer than the deadline.
#[derive(Debug)]
pub struct Client {
    pub stream: TcpStream,
}

/// Connects a client.
pub fn connect(address: SocketAddr) -> Client {
    let stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    Client { stream }
}

impl Client {
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self
    }

    /// Sends until nobody has taken anything for a while; how much was taken.
    pub fn send_until_stalled(&mut self, chunk: &[u8], most: usize) -> usize {
        self.stream.set_write_timeout(Some(A_WHILE)).unwrap();
        let mut sent = 0;
        while sent < most {
            match self.stream.write(&chunk[sent % chunk.len()..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.stream.set_write_timeout(Some(DEADLINE)).unwrap();
        sent
    }

    /// Says that it will send no more.
    pub fn end(&mut self) -> &mut Self {
        self.stream.shutdown(Shutdown::Write).unwrap();
        self
    }

    pub fn expect_reply(&mut self, expected: impl AsRef<[u8]>) -> &mut Self {
        let expected = expected.as_ref();
        let mut reply = vec![0; expected.len()];
        self.stream.read_exact(&mut reply).unwrap();
        assert!(
            reply == expected,
            "{} is not {}",
            reply[..reply.len().min(100)].escape_ascii(),
            expected[..expected.len().min(100)].escape_ascii()
        );
        self
    }

    /// Reads until the server has closed in order.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut reply = Vec::new();
        self.stream.read_to_end(&mut reply).unwrap();
        reply
    }

    /// The server has closed in order, and sent nothing more.
    pub fn expect_closed(&mut self) {
        assert_eq!(self.read_to_end().escape_ascii().to_string(), "");
    }

    /// The server has let go, in order or not.
    pub fn expect_gone(&mut self) {
        let mut rest = [0; 1024];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("it is still there"),
                Err(_) => return,
            }
        }
    }

    pub fn expect_reset(&mut self) {
        let error = self.stream.read(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }

    /// Nothing comes for a while.
    pub fn expect_silence(&mut self) {
        self.stream.set_read_timeout(Some(A_WHILE)).unwrap();
        loop {
            let read: io::Result<usize> = self.stream.read(&mut [0; 16]);
            match read.unwrap_err().kind() {
                // A process that was stopped and goes on has been interrupted.
                ErrorKind::Interrupted => {}
                kind => break assert_eq!(kind, ErrorKind::WouldBlock),
            }
        }
        self.stream.set_read_timeout(Some(DEADLINE)).unwrap();
    }

    /// Goes away by a reset.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// What a handler was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Open,
    Message(Vec<u8>),
    Eof,
    Timeout,
    Close(String),
}

/// A handler that does what `act` says and then tells the test what it was told.
pub struct Teller<A> {
    tell: mpsc::Sender<Told>,
    act: A,
}

/// What makes such handlers, and what they tell.
pub fn tellers<A>(act: A) -> (impl FnMut(&Peer) -> Teller<A> + Send + 'static, Receiver<Told>)
where
    A: FnMut(&Told, &mut Context<'_>) -> HandlerResult + Clone + Send + 'static,
{
    let (tell, told) = mpsc::channel();
    let make = move |_: &Peer| Teller { tell: tell.clone(), act: act.clone() };
    (make, told)
}

impl<A: FnMut(&Told, &mut Context<'_>) -> HandlerResult> Teller<A> {
    fn tell(&mut self, told: Told, cx: &mut Context<'_>) -> HandlerResult {
        let done = (self.act)(&told, cx);
        // A test that has heard enough no longer listens.
        let _ = self.tell.send(told);
        done
    }
}

impl<A: FnMut(&Told, &mut Context<'_>) -> HandlerResult> Handler for Teller<A> {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.tell(Told::Open, cx)
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        self.tell(Told::Message(message.to_vec()), cx)
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.tell(Told::Eof, cx)
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.tell(Told::Timeout, cx)
    }

    fn on_close(&mut self, reason: &CloseReason) {
        let _ = self.tell.send(Told::Close(reason.to_string()));
    }
}

/// Sends each message back, and closes when the peer has ended or is late.
pub fn echo(told: &Told, cx: &mut Context<'_>) -> HandlerResult {
    match told {
        Told::Message(message) => cx.send(message),
        Told::Eof | Told::Timeout => {
            cx.close();
            Ok(())
        }
        Told::Open | Told::Close(_) => Ok(()),
    }
}

pub fn message(bytes: impl AsRef<[u8]>) -> Told {
    Told::Message(bytes.as_ref().to_vec())
}

/// Waits for the next thing that any handler tells.
pub fn expect_told<T>(told: &Receiver<T>) -> T {
    told.recv_timeout(DEADLINE).expect("told in time")
}

/// Waits until some handler tells that it is closed, and why.
pub fn expect_close(told: &Receiver<Told>) -> String {
    loop {
        if let Told::Close(reason) = expect_told(told) {
            return reason;
        }
    }
}

/// Bytes in which each is told from its neighbours.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// Lets this process have as many descriptors as it may.
#[allow(unsafe_code)] // no crate of the tests can do it
pub fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes one rlimit, setrlimit reads one.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}
