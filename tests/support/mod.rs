//! Helpers of the tests with real sockets: servers on a thread of their own, clients with a
//! deadline, and handlers that record their calls.

#![allow(dead_code)] // each test file uses a part of it
#![allow(unreachable_pub)] // nothing outside the test file can use a module of it

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use socketserver::{
    Accepted, CloseReason, Context, Counters, Handler, HandlerResult, Running, Server,
    ShutdownHandle, StopReport,
};

/// The longest that a test waits for something that must happen.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How long a test watches for something that must not happen.
pub const A_WHILE: Duration = Duration::from_millis(300);

/// A server on a thread of its own. Dropping it stops the server, except in a test that panics:
/// there the server may be what hangs.
pub struct TestServer {
    running: Option<Running>,
    handle: ShutdownHandle,
}

/// Starts a server on a thread of its own.
pub fn start_server(server: Server) -> TestServer {
    let handle = server.shutdown_handle();
    TestServer { running: Some(server.spawn().unwrap()), handle }
}

impl TestServer {
    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// The addresses of its listeners.
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

    /// Waits until its counters fulfil `holds`.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&Counters) -> bool) {
        let handle = self.handle();
        wait_until(what, || holds(&handle.counters()));
    }

    /// Waits until every accepted connection is closed.
    pub fn wait_for_no_connection(&self) {
        self.wait_for("every connection is closed", |counters| {
            counters.accepted == counters.closed
        });
    }

    /// Stops it; returns the server and the report of the stop.
    pub fn stop(mut self) -> (Server, StopReport) {
        let running = self.running.take().unwrap();
        in_time("the server stops", move || running.stop().unwrap())
    }

    /// Waits until something else has stopped it.
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

/// Runs `work` on a thread, and panics if it has not returned after the deadline.
pub fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, waiting) = mpsc::channel();
    let thread = thread::spawn(move || {
        let _ = done.send(work());
    });
    match waiting.recv_timeout(DEADLINE) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("not within the deadline: {what}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("it has sent its value"),
        },
    }
}

/// Polls a condition for which there is no event to wait for.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within the deadline: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A client whose reads and writes fail after the deadline.
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

    /// Receives a line; returns it without its end.
    pub fn read_line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            self.stream.read_exact(&mut byte).unwrap();
            match byte {
                [b'\n'] => return String::from_utf8(line).unwrap(),
                [other] => line.push(other),
            }
        }
    }

    /// Sends until the kernel has taken no byte for [`A_WHILE`]; returns the number of bytes sent.
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

    /// Shuts down its sending direction.
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

    /// Reads until the server has closed the connection without a reset.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut reply = Vec::new();
        self.stream.read_to_end(&mut reply).unwrap();
        reply
    }

    /// The server has closed the connection without a reset, and has sent nothing more.
    pub fn expect_closed(&mut self) {
        assert_eq!(self.read_to_end().escape_ascii().to_string(), "");
    }

    /// The server has closed the connection, with a reset or without.
    pub fn expect_gone(&mut self) {
        let mut rest = [0; 1024];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    panic!("the connection is still open")
                }
                Err(_) => return,
            }
        }
    }

    pub fn expect_reset(&mut self) {
        let error = self.stream.read(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }

    /// Nothing arrives for [`A_WHILE`].
    pub fn expect_silence(&mut self) {
        self.stream.set_read_timeout(Some(A_WHILE)).unwrap();
        loop {
            let read: io::Result<usize> = self.stream.read(&mut [0; 16]);
            match read.unwrap_err().kind() {
                // SIGSTOP and SIGCONT interrupt a read.
                ErrorKind::Interrupted => {}
                kind => break assert_eq!(kind, ErrorKind::WouldBlock),
            }
        }
        self.stream.set_read_timeout(Some(DEADLINE)).unwrap();
    }

    /// Closes the connection with a reset.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// A call of one of a handler's methods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Open,
    Message(Vec<u8>),
    Eof,
    Timeout,
    Close(String),
}

/// A handler that runs `act` in each call and then sends the call to the test.
pub struct Recorder<A> {
    calls: mpsc::Sender<Call>,
    act: A,
}

/// A factory of [`Recorder`]s, and the channel that receives their calls.
pub fn recorders<A>(
    act: A,
) -> (impl FnMut(&Accepted<'_>) -> Recorder<A> + Send + 'static, Receiver<Call>)
where
    A: FnMut(&Call, &mut Context<'_>) -> HandlerResult + Clone + Send + 'static,
{
    let (sender, calls) = mpsc::channel();
    let make = move |_: &Accepted<'_>| Recorder { calls: sender.clone(), act: act.clone() };
    (make, calls)
}

impl<A: FnMut(&Call, &mut Context<'_>) -> HandlerResult> Recorder<A> {
    fn record(&mut self, call: Call, cx: &mut Context<'_>) -> HandlerResult {
        let result = (self.act)(&call, cx);
        // The test may have dropped the receiver.
        let _ = self.calls.send(call);
        result
    }
}

impl<A: FnMut(&Call, &mut Context<'_>) -> HandlerResult> Handler for Recorder<A> {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.record(Call::Open, cx)
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        self.record(Call::Message(message.to_vec()), cx)
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.record(Call::Eof, cx)
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.record(Call::Timeout, cx)
    }

    fn on_close(&mut self, reason: &CloseReason) {
        let _ = self.calls.send(Call::Close(reason.to_string()));
    }
}

/// Sends each message back, and closes at the end of input and after an idle timeout.
pub fn echo(call: &Call, cx: &mut Context<'_>) -> HandlerResult {
    match call {
        Call::Message(message) => cx.send(message),
        Call::Eof | Call::Timeout => {
            cx.close();
            Ok(())
        }
        Call::Open | Call::Close(_) => Ok(()),
    }
}

pub fn message(bytes: impl AsRef<[u8]>) -> Call {
    Call::Message(bytes.as_ref().to_vec())
}

/// Waits for the next value of a channel.
pub fn expect_next<T>(values: &Receiver<T>) -> T {
    values.recv_timeout(DEADLINE).expect("a value within the deadline")
}

/// Waits until `on_close` of some handler is called; returns the reason.
pub fn expect_close(calls: &Receiver<Call>) -> String {
    loop {
        if let Call::Close(reason) = expect_next(calls) {
            return reason;
        }
    }
}

/// Bytes each of which differs from its neighbours.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// Raises this process's soft limit of descriptors to its hard limit.
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
