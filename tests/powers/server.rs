//! The servers of this suite, one for each test, in a process of its own; and the checks that every one of
//! their handlers is subject to.

#![allow(unreachable_pub)] // a module of a test is public to nobody

use std::fmt::Display;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use socketserver::{
    Accepted, Builder, CloseReason, Context, Decoded, Encodable, Event, Framing, FramingError,
    Handler, HandlerResult, Hooks, Mode, NoHooks, Output, Peer, Raw, Server, Service,
};

use super::process::{self, Process, Resources, Stream, announce};

// The axes

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Unix,
}

/// A transport and a mode.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    pub transport: Transport,
    pub mode: Mode,
}

impl Cell {
    pub fn all() -> Vec<Cell> {
        let of = |transport| Mode::all().map(move |mode| Cell { transport, mode });
        of(Transport::Tcp).chain(of(Transport::Unix)).collect()
    }

    pub fn name(&self) -> String {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Unix => "unix",
        };
        format!("{transport}::{}", self.mode.name())
    }

    /// Whether several connections are served at a time.
    pub fn serves_beside(&self) -> bool {
        !matches!(self.mode, Mode::Inline(_))
    }

    /// Whether each connection has a process of its own.
    pub fn forks(&self) -> bool {
        matches!(self.mode, Mode::Forking(_))
    }

    /// Whether a connection has senders.
    pub fn has_senders(&self) -> bool {
        !matches!(self.mode, Mode::Inline(_) | Mode::Forking(_))
    }

    /// The error of `Context::sender` where a connection has none.
    pub fn no_sender(&self) -> &'static str {
        match self.mode {
            Mode::Inline(_) => "InlineSender",
            Mode::Forking(_) => "ForkingSender",
            _ => unreachable!("{self:?} has senders"),
        }
    }

    /// Starts a server of this service.
    pub fn start(&self, service: &str) -> TestServer {
        self.start_draining(service, process::DEADLINE)
    }

    /// Starts a server of this service with a drain timeout.
    pub fn start_draining(&self, service: &str, drain: Duration) -> TestServer {
        let url = match self.transport {
            Transport::Tcp => "tcp://127.0.0.1:0",
            Transport::Unix => "unix://{dir}/socket",
        };
        let drain = drain.as_millis().to_string();
        let process = Process::start(1, &[service, url, self.mode.name(), "{dir}", &drain]);
        TestServer { process }
    }
}

// The side of the test

/// A server in a process of its own.
#[derive(Debug)]
pub struct TestServer {
    pub process: Process,
}

/// What a server has printed before it ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AtExit {
    pub idle: usize,
    pub finished: usize,
    pub aborted: usize,
    pub panics: u64,
    pub errors: u64,
    /// The lines of handlers that the test has not read before.
    pub lines: Vec<String>,
}

impl TestServer {
    pub fn connect(&self) -> Stream {
        self.process.connect()
    }

    /// A file in the directory of the server: its handlers look whether it is there.
    pub fn file(&self, name: &str) -> PathBuf {
        self.process.directory.join(name)
    }

    pub fn create_file(&self, name: &str) {
        std::fs::write(self.file(name), "").unwrap();
    }

    /// The next line that a handler prints.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let line = self.process.line();
        assert!(!line.starts_with(VIOLATION), "{line}");
        line
    }

    #[track_caller]
    pub fn expect_line(&mut self, expected: impl AsRef<str>) -> &mut Self {
        assert_eq!(self.line(), expected.as_ref());
        self
    }

    /// The number in the next line, behind `name`.
    #[track_caller]
    pub fn number(&mut self, name: &str) -> u64 {
        let line = self.line();
        let number = line.strip_prefix(name).and_then(|rest| rest.trim().parse().ok());
        number.unwrap_or_else(|| panic!("a number behind {name:?}, and not {line:?}"))
    }

    /// Waits until all threads of the server, and of its children, sleep: each has gone back to where it waits.
    pub fn wait_until_asleep(&self) {
        let sleeps = |pid: i32| {
            let mut threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            threads.all(|thread| {
                let stat = std::fs::read_to_string(thread.unwrap().path().join("stat"));
                // The state is behind the name, which is in parentheses.
                stat.is_ok_and(|stat| stat.rsplit(") ").next().unwrap().starts_with('S'))
            })
        };
        process::eventually("all threads sleep", || {
            let all_sleep = || {
                let children = self.process.children();
                children.into_iter().chain([self.process.pid()]).all(sleeps)
            };
            // Twice, since one may have been about to wake another one.
            all_sleep() && all_sleep()
        });
    }

    /// Waits until the server has ended without a failure.
    #[track_caller]
    pub fn wait(mut self) -> AtExit {
        let mut at_exit = AtExit::default();
        for line in self.process.rest() {
            assert!(!line.starts_with(VIOLATION), "{line}");
            let Some(numbers) = line.strip_prefix(AT_EXIT) else {
                at_exit.lines.push(line);
                continue;
            };
            let mut numbers = numbers.split(' ').map(|number| number.parse::<u64>().unwrap());
            let mut next = || numbers.next().unwrap();
            (at_exit.idle, at_exit.finished) = (next() as usize, next() as usize);
            (at_exit.aborted, at_exit.panics, at_exit.errors) = (next() as usize, next(), next());
        }
        self.process.expect_success();
        at_exit
    }

    /// Stops the server and waits for its end.
    #[track_caller]
    pub fn stop(self) -> AtExit {
        self.process.terminate();
        self.wait()
    }

    /// Stops a server whose handlers have printed nothing more.
    #[track_caller]
    pub fn stop_quietly(self) {
        let at_exit = self.stop();
        assert_eq!((at_exit.aborted, &at_exit.lines[..]), (0, &[][..]), "{at_exit:?}");
    }
}

// The side of the server

const VIOLATION: &str = "violation: ";
const AT_EXIT: &str = "at exit: ";

/// Prints a line for the test.
pub fn print_line(text: impl Display) {
    // In one write, because a child process may print at the same time.
    let line = format!("{text}\n");
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(line.as_bytes()).unwrap();
    stdout.flush().unwrap();
}

/// Prints that something has happened that must not happen, which fails the test.
pub fn violation(text: impl Display) {
    print_line(format_args!("{VIOLATION}{text}"));
}

/// What a service is made of.
#[derive(Debug)]
pub struct Setup<K = NoHooks> {
    pub builder: Builder<Raw, Mode, K>,
    /// The directory of the test.
    pub directory: Arc<Path>,
}

impl<K: Hooks + Send + 'static> Setup<K> {
    /// A service of these handlers, all of which are checked.
    pub fn serve<F, H>(self, mut make: impl FnMut(&Path) -> (F, H) + Send + 'static) -> Service
    where
        F: Framing + Send + 'static,
        H: Handler + Send + 'static,
    {
        let directory = self.directory;
        let make = move |_: &Accepted<'_>| {
            let (framing, handler) = make(&directory);
            checked(framing, handler)
        };
        self.builder.service_with(make).unwrap()
    }
}

/// Makes a service.
pub type MakeService = fn(Setup) -> Service;

/// Runs the server that a test has started.
pub fn serve(arguments: &[String], services: &[(&str, MakeService)]) {
    let [service, url, mode, directory, drain] = arguments else { panic!("what to serve") };
    let (_, make) = services.iter().find(|(name, _)| name == service).expect("a service");
    // The watch for signals lives as long as the process.
    drop(Server::new().unwrap().stop_on_signals());
    let resources = Resources::of_this_process();
    let builder = Server::endpoint(&url.parse().unwrap()).unwrap();
    let builder = builder.mode(mode.parse::<Mode>().unwrap());
    let mut server = Server::new().unwrap();
    server.add(make(Setup { builder, directory: Path::new(directory).into() })).unwrap();
    server.drain_timeout(Duration::from_millis(drain.parse().unwrap()));
    server.stop_on_signals().unwrap();
    announce(&server.addresses());
    let report = server.serve_forever().unwrap();
    let handle = server.shutdown_handle();
    drop(server);
    let counters = handle.counters();
    drop(handle);
    resources.wait_until_restored();
    print_line(format_args!(
        "{AT_EXIT}{} {} {} {} {}",
        report.idle, report.finished, report.aborted, counters.panics, counters.handler_errors
    ));
}

/// Prints each fault that the server reports.
#[derive(Debug)]
pub struct PrintFaults;

impl Hooks for PrintFaults {
    fn handle_error(&mut self, _: &Peer, reason: &CloseReason) {
        print_line(format_args!("fault: {reason}"));
    }
}

// The checks of every handler

/// A framing that records that it has decoded a frame.
pub struct Recording<F> {
    inner: F,
    decoded: Arc<AtomicBool>,
}

impl<F> Recording<F> {
    fn record(&self, step: Result<Decoded, FramingError>) -> Result<Decoded, FramingError> {
        if matches!(step, Ok(Decoded::Frame { .. })) && self.decoded.swap(true, SeqCst) {
            violation("a frame is decoded before on_message was called with the one before");
        }
        step
    }
}

impl<F: Framing> Framing for Recording<F> {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        let step = self.inner.decode(input);
        self.record(step)
    }

    fn decode_eof(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        let step = self.inner.decode_eof(input);
        self.record(step)
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        self.inner.encode(message, output)
    }

    fn encodable(&self) -> Encodable {
        self.inner.encodable()
    }
}

/// A handler whose events are checked: `on_open` comes first and `on_close` last, none comes between a
/// frame and its `on_message`, and those that come once come once.
pub struct Checked<H> {
    inner: H,
    decoded: Arc<AtomicBool>,
    open: bool,
    closed: bool,
    ended: bool,
    stopped: bool,
}

/// A framing and a handler whose events are checked.
pub fn checked<F, H>(framing: F, handler: H) -> (Recording<F>, Checked<H>) {
    let decoded = Arc::<AtomicBool>::default();
    let handler = Checked {
        inner: handler,
        decoded: decoded.clone(),
        open: false,
        closed: false,
        ended: false,
        stopped: false,
    };
    (Recording { inner: framing, decoded }, handler)
}

impl<H> Checked<H> {
    fn check(&self, event: &str) {
        if !self.open {
            violation(format_args!("{event} before on_open"));
        }
        if self.closed {
            violation(format_args!("{event} after on_close"));
        }
        if self.decoded.load(SeqCst) {
            violation(format_args!("{event} between a frame and its on_message"));
        }
    }
}

impl<H: Handler> Handler for Checked<H> {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if std::mem::replace(&mut self.open, true) {
            violation("on_open twice");
        }
        self.check("on_open");
        self.inner.on_open(cx)
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if !self.decoded.swap(false, SeqCst) {
            violation("on_message without a frame");
        }
        self.check("on_message");
        self.inner.on_message(message, cx)
    }

    fn on_writable(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.check("on_writable");
        self.inner.on_writable(cx)
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.check("on_timer");
        self.inner.on_timer(cx)
    }

    fn on_event(&mut self, event: Event, cx: &mut Context<'_>) -> HandlerResult {
        self.check("on_event");
        self.inner.on_event(event, cx)
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.check("on_eof");
        if std::mem::replace(&mut self.ended, true) {
            violation("on_eof twice");
        }
        self.inner.on_eof(cx)
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.check("on_idle_timeout");
        self.inner.on_idle_timeout(cx)
    }

    fn on_reject(&mut self, reason: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
        self.check("on_reject");
        self.inner.on_reject(reason, cx)
    }

    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.check("on_stop");
        if std::mem::replace(&mut self.stopped, true) {
            violation("on_stop twice");
        }
        self.inner.on_stop(cx)
    }

    fn on_close(&mut self, reason: &CloseReason) {
        if !self.open {
            violation("on_close before on_open");
        }
        if std::mem::replace(&mut self.closed, true) {
            violation("on_close twice");
        }
        self.inner.on_close(reason);
    }
}

impl<H> Drop for Checked<H> {
    fn drop(&mut self) {
        if self.open && !self.closed {
            violation("a handler is dropped without on_close");
        }
    }
}

// Bytes that show their place in a stream

/// A prime number, so that no buffer size is a multiple of it.
const PERIOD: usize = 65_521;

/// The most bytes that [`pattern`] returns at once.
pub const LONGEST_PATTERN: usize = 64 * 1024;

/// The bytes of an endless stream from this position on.
pub fn pattern(at: u64, len: usize) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        let byte = |at: usize| (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[0];
        (0..PERIOD + LONGEST_PATTERN).map(|at| byte(at % PERIOD)).collect()
    });
    let begin = (at % PERIOD as u64) as usize;
    &bytes[begin..][..len]
}

/// Compares what is read with the stream.
#[derive(Debug, Default)]
pub struct Checker {
    pub at: u64,
}

impl Checker {
    #[track_caller]
    pub fn check(&mut self, read: &[u8]) {
        for part in read.chunks(LONGEST_PATTERN) {
            assert!(part == pattern(self.at, part.len()), "other bytes after {}", self.at);
            self.at += part.len() as u64;
        }
    }

    /// Reads the stream to its end, which is in order.
    #[track_caller]
    pub fn read_to_end(&mut self, client: &mut Stream) {
        let mut buffer = vec![0; LONGEST_PATTERN];
        loop {
            match std::io::Read::read(&mut client.socket, &mut buffer).unwrap() {
                0 => return,
                count => self.check(&buffer[..count]),
            }
        }
    }
}
