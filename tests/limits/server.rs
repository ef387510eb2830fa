//! The servers of this suite, each in a process of its own.

#![allow(unreachable_pub)] // a module of a test is public to nobody

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use socketserver::{
    Accepted, BlockingMode, Builder, CloseReason, Context, Forking, Handler, HandlerResult, Limits,
    Lines, Mode, Offload, Pool, Reactor, Request, RequestHandler, Server, ShutdownHandle,
    Threading, handler_fn,
};

use super::process::{self, Process, Stream, announce};

/// A kind of handler, and a mode.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    pub mode: &'static str,
    /// Whether it is a `RequestHandler`.
    pub blocking: bool,
}

const MODES: [&str; 6] = ["reactor", "offload", "inline", "threading", "pool", "forking"];

impl Cell {
    pub fn all() -> Vec<Cell> {
        let handlers = MODES.into_iter().map(|mode| Cell { mode, blocking: false });
        let requests = MODES.into_iter().skip(2).map(|mode| Cell { mode, blocking: true });
        handlers.chain(requests).collect()
    }

    pub fn name(&self) -> String {
        let kind = if self.blocking { "request" } else { "handler" };
        format!("{kind}::{}", self.mode)
    }

    pub fn everywhere(&self) -> bool {
        true
    }

    pub fn has_handlers(&self) -> bool {
        !self.blocking
    }

    /// Whether several connections are served at a time.
    pub fn serves_beside(&self) -> bool {
        self.mode != "inline"
    }

    pub fn forks(&self) -> bool {
        self.mode == "forking"
    }

    /// Starts a server over TCP with this setup.
    pub fn start(&self, setup: &str) -> TestServer {
        self.start_at("tcp://127.0.0.1:0", setup)
    }

    pub fn start_at(&self, url: &str, setup: &str) -> TestServer {
        let kind = if self.blocking { "request" } else { "handler" };
        let process = Process::start(2, &[kind, self.mode, url, setup]);
        let counters = RefCell::new(process::connect(&process.urls[1]));
        TestServer { process, counters }
    }

    /// What a handler says to a peer that reaches a limit.
    pub fn words(&self, limit: &str) -> String {
        if self.blocking {
            format!("ERR {limit}\n")
        } else {
            format!("ERR limit reached: {limit}\n")
        }
    }
}

/// A server in a process of its own. Its second listener tells the counters.
#[derive(Debug)]
pub struct TestServer {
    pub process: Process,
    counters: RefCell<Stream>,
}

impl TestServer {
    pub fn connect(&self) -> Stream {
        process::connect(&self.process.urls[0])
    }

    /// A client that has sent a message.
    pub fn connect_proven(&self) -> Stream {
        let mut client = self.connect();
        client.send("hello\n").expect("hello\n");
        client
    }

    /// The counters that are not 0.
    pub fn counters(&self) -> String {
        let mut client = self.counters.borrow_mut();
        client.send("counters\n");
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            client.socket.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.counters();
        let value = counters.split_whitespace().find_map(|counter| {
            let (of, value) = counter.split_once('=')?;
            (of == name).then(|| value.parse().unwrap())
        });
        value.unwrap_or(0)
    }

    /// Waits until so many clients have been accepted.
    #[track_caller]
    pub fn expect_accepted(&self, clients: u64) {
        self.expect_counter("accepted", clients + 1);
    }

    /// Waits until a counter has this value.
    #[track_caller]
    pub fn expect_counter(&self, name: &str, value: u64) {
        let deadline = Instant::now() + process::DEADLINE;
        while self.counter(name) != value {
            assert!(Instant::now() < deadline, "{name} is not {value}: {}", self.counters());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The server goes on serving: a new client is answered. When it has gone, every connection that
    /// was accepted is closed, except the one that asks for the counters, and no memory is held.
    #[track_caller]
    pub fn expect_to_serve(&self) {
        let mut client = self.connect_proven();
        client.end().expect_end();
        drop(client);
        self.expect_counter("open", 1);
        self.expect_counter("memory_held", 0);
    }
}

/// Runs the server that a test has started.
pub fn serve(arguments: &[String]) {
    let [kind, mode, url, setup] = arguments else { panic!("what to serve") };
    // The watch for signals lives as long as the process.
    let mut server = Server::new().unwrap();
    let handle = server.shutdown_handle();
    let mode = mode_of(mode, setup);
    let limits = limits_of(setup, &mut server);
    let greeting = words(setup).find(|(word, _)| *word == "greet").map_or(0, |(_, bytes)| bytes);
    let builder = Server::endpoint(&url.parse().unwrap()).unwrap().limits(limits);
    let service = match &**kind {
        "request" => builder
            .mode(BlockingMode::try_from(mode).unwrap())
            .service_blocking(move |_: &Accepted<'_>| Answers { greeting })
            .unwrap(),
        _ => builder
            .framing(Lines::default().max_len(4 << 20))
            .mode(mode)
            .service(move |_: &Accepted<'_>| Answers { greeting })
            .unwrap(),
    };
    server.add(service).unwrap();
    server.add(counters(handle)).unwrap();
    server.drain_timeout(Duration::from_secs(5));
    announce(&server.addresses());
    server.serve_forever().unwrap();
}

fn counters(handle: ShutdownHandle) -> socketserver::Service {
    let builder: Builder = Server::tcp("127.0.0.1:0").unwrap();
    builder
        .framing(Lines::default())
        .limits(Limits::off())
        .service(move |_: &Accepted<'_>| {
            let handle = handle.clone();
            handler_fn(move |_, cx| cx.send(handle.counters().to_string().as_bytes()))
        })
        .unwrap()
}

/// The words of a setup: `name=number` or `name`.
fn words(setup: &str) -> impl Iterator<Item = (&str, usize)> {
    setup.split(' ').filter(|word| !word.is_empty()).map(|word| match word.split_once('=') {
        Some((name, value)) => (name, value.parse().unwrap()),
        None => (word, 0),
    })
}

fn mode_of(mode: &str, setup: &str) -> Mode {
    let value = |name| words(setup).find(|(word, _)| *word == name).map(|(_, value)| value);
    let places = value("places");
    match (mode, places) {
        ("reactor", _) => Mode::Reactor(Reactor),
        ("offload", _) => Mode::Offload(Offload::new(value("workers").unwrap_or(4))),
        ("threading", Some(places)) => Mode::Threading(Threading::default().limit(places)),
        ("forking", Some(places)) => Mode::Forking(Forking::default().max_children(places)),
        ("pool", Some(places)) => Mode::Pool(Pool::new(places).queue(0)),
        ("pool", None) => {
            let pool = Pool::new(value("workers").unwrap_or(16));
            Mode::Pool(pool.queue(value("queue").unwrap_or(128)))
        }
        (name, _) => name.parse().unwrap(),
    }
}

fn limits_of(setup: &str, server: &mut Server) -> Limits {
    let mut limits = Limits::default();
    for (name, value) in words(setup) {
        let time = Duration::from_millis(value as u64);
        let number = u32::try_from(value).unwrap();
        limits = match name {
            "message" => limits.message_deadline(time).message_rate(0),
            "rate" => limits.message_rate(number),
            "first" => limits.first_message_deadline(time),
            "idle" => limits.idle_timeout(time),
            "write" => limits.write_timeout(time),
            "input" => limits.max_buffered_input(value),
            "lifetime" => limits.max_lifetime(time),
            "messages" => limits.max_messages(number),
            "connections" => limits.max_connections(value),
            "address" => limits.max_per_address(value),
            "ratio" => limits.reply_ratio(number),
            "wait" => limits.when_full(socketserver::WhenFull::Wait),
            "turn_away" => limits.when_full(socketserver::WhenFull::turn_away(*b"full\n")),
            "memory" => {
                server.max_memory(value);
                limits
            }
            "places" | "workers" | "queue" | "greet" => limits,
            other => panic!("{other}"),
        };
    }
    limits
}

/// Answers each line: with so many bytes, after so many milliseconds, or with the line.
struct Answers {
    /// How many bytes it sends first.
    greeting: usize,
}

fn parameter(line: &[u8], name: &str) -> Option<usize> {
    let line = std::str::from_utf8(line).ok()?;
    line.strip_prefix(name)?.trim().parse().ok()
}

/// The answer to a line, with its end.
fn answer(line: &[u8]) -> Vec<u8> {
    if let Some(millis) = parameter(line, "sleep") {
        std::thread::sleep(Duration::from_millis(millis as u64));
    }
    match parameter(line, "big").or_else(|| parameter(line, "gathered")) {
        Some(bytes) => vec![b'b'; bytes],
        None => [line, b"\n"].concat(),
    }
}

impl Handler for Answers {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if self.greeting == 0 {
            return Ok(());
        }
        cx.send(&vec![b'g'; self.greeting - 1])
    }

    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if line == b"overloaded?" {
            return cx.send(cx.is_overloaded().to_string().as_bytes());
        }
        if line == b"twice" {
            cx.send(&[b'1'; 20])?;
            return cx.send(&[b'2'; 20]);
        }
        let mut answer = answer(line);
        answer.pop();
        cx.send(&answer)
    }

    fn on_reject(&mut self, reason: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(format!("ERR {reason}").as_bytes())
    }
}

impl RequestHandler for Answers {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        if request.packet().is_some() {
            let mut packet = Vec::new();
            request.read_to_end(&mut packet)?;
            return Ok(request.write_all(&answer(&packet))?);
        }
        request.write_all(&vec![b'g'; self.greeting])?;
        loop {
            match request.read_line() {
                Ok(Some(line)) => {
                    if line.starts_with(b"gathered") {
                        request.set_write_buffer(usize::MAX);
                    }
                    let answer = answer(&line);
                    for part in answer.chunks(1 << 20) {
                        request.write_all(part)?;
                    }
                    request.flush()?;
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::ConnectionAborted) {
                        request.write_all(format!("ERR {error}\n").as_bytes())?;
                    }
                    return Err(error.into());
                }
            }
        }
    }
}
