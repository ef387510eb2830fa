//! Many different clients at once, with every byte checked: messages of 0 to 1.5 MB, written and
//! read in pieces of any size, by clients that read slowly, half-close, reset or close in the
//! middle, over TCP and Unix streams with three framings, answered by the handler itself or through
//! a `Sender`. Each mode has a server in a process of its own, which must call `on_close` once for
//! each connection and leak no descriptor, thread or child.
//!
//! `cargo test --test stress` takes a few seconds. A longer run of one mode with another seed:
//! `cargo test --test stress -- --seconds 60 --seed 7 --mode offload`. A seed decides what every
//! client does; their timing differs from run to run.

#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;

use std::fmt::Debug;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::panic::resume_unwind;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use process::{Process, Resources, announce, try_connect};
use socket2::Socket;
use socketserver::{
    Builder, CloseReason, Context, Framing, Handler, HandlerResult, LengthPrefixed, Lines, Mode,
    Raw, SendError, Sender, Server,
};

/// The number of clients of a server at a time.
const CLIENTS: u64 = 8;

/// The longest message.
const LONGEST: u64 = 1_500_000;

/// The most bytes that one client sends.
const MOST: usize = 3_000_000;

const FRAMINGS: [&str; 3] = ["raw", "lines", "prefixed"];

/// A random number generator: xorshift64*.
struct Random(u64);

impl Random {
    /// A sequence that is determined by these numbers.
    fn of(numbers: &[u64]) -> Self {
        let mix = |state: u64, number: &u64| (state ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut random = Random(numbers.iter().fold(0x5DEE_CE66, mix) | 1);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A size up to `most`; each order of magnitude is equally likely.
    fn size(&mut self, most: u64) -> usize {
        let bits = self.below(22);
        (self.next() % (1 << bits)).min(most) as usize
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

// The server, in a process of its own

static OPENED: AtomicU64 = AtomicU64::new(0);
static CLOSED: AtomicU64 = AtomicU64::new(0);

/// An echo: in `on_message`, or through a thread that has a [`Sender`].
struct Echo {
    through_sender: bool,
    thread: Option<mpsc::Sender<Vec<u8>>>,
}

impl Handler for Echo {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        OPENED.fetch_add(1, SeqCst);
        if self.through_sender {
            let (give, given) = mpsc::channel();
            self.thread = Some(give);
            let sender = cx.sender()?;
            thread::spawn(move || given.iter().all(|message| is_sent(&sender, &message)));
        }
        Ok(())
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let Some(thread) = &self.thread else { return cx.send(message) };
        let _ = thread.send(message.to_vec()); // it has ended where the connection is closed
        Ok(())
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if self.thread.take().is_none() {
            cx.close();
        }
        Ok(()) // otherwise the connection is closed when the thread has sent everything
    }

    fn on_close(&mut self, _: &CloseReason) {
        CLOSED.fetch_add(1, SeqCst);
    }
}

/// Sends as soon as the queue has room; false if the connection is closed.
fn is_sent(sender: &Sender, message: &[u8]) -> bool {
    loop {
        match sender.send(message) {
            Ok(()) => return true,
            Err(SendError::Full) => thread::sleep(Duration::from_micros(200)),
            Err(_) => return false,
        }
    }
}

/// Whether a handler can be given a `Sender`.
fn has_senders(mode: Mode) -> bool {
    !matches!(mode.name(), "inline" | "forking")
}

fn serve(arguments: &[String]) {
    let [mode, directory] = arguments else { panic!("wrong arguments: {arguments:?}") };
    let mode: Mode = mode.parse().unwrap();
    // The descriptors of the signal handler are kept until the process exits.
    drop(Server::new().unwrap().stop_on_signals());
    if mode.name() != "forking" {
        // So is the thread that a sanitizer starts together with the program's first thread.
        thread::spawn(|| ()).join().unwrap();
    }
    let resources = Resources::of_this_process();
    let mut server = Server::new().unwrap();
    for number in 0..if has_senders(mode) { 4 } else { 2 } {
        let through_sender = number >= 2;
        let unix = |framing| format!("unix://{directory}/{number}-{framing}");
        let listen = |framing| match number % 2 {
            0 => Server::tcp("127.0.0.1:0").unwrap().mode(mode),
            _ => Server::endpoint(&unix(framing).parse().unwrap()).unwrap().mode(mode),
        };
        let lines = Lines::default().max_len(LONGEST as usize);
        // In the order of `FRAMINGS`.
        add(&mut server, listen("raw").framing(Raw), through_sender);
        add(&mut server, listen("lines").framing(lines), through_sender);
        add(&mut server, listen("prefixed").framing(LengthPrefixed::default()), through_sender);
    }
    server.drain_timeout(process::DEADLINE).stop_on_signals().unwrap();
    announce(&server.addresses());
    let report = server.serve_forever().unwrap();
    let counters = server.counters();
    drop(server);
    assert_eq!(report.aborted, 0, "connections were aborted");
    assert_eq!(counters.accepted, counters.closed, "each connection is closed once");
    // The counts of a child are not added to the parent's.
    let opened = if mode.name() == "forking" { 0 } else { counters.accepted };
    assert_eq!(
        (OPENED.load(SeqCst), CLOSED.load(SeqCst)),
        (opened, opened),
        "on_open and on_close are called once for each connection"
    );
    assert_eq!((counters.panics, counters.handler_errors), (0, 0));
    resources.wait_until_restored();
}

fn add<F: Framing + Clone + Send + 'static>(
    server: &mut Server,
    builder: Builder<F, Mode>,
    through_sender: bool,
) {
    let service = builder.service(move |_| Echo { through_sender, thread: None });
    server.add(service.unwrap()).unwrap();
}

// The clients

/// How a client ends its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It shuts down its sending direction, and reads until the server closes.
    HalfClose,
    /// It reads its last reply, and closes.
    Close,
    /// It closes in the middle.
    Drop,
    /// It resets in the middle.
    Reset,
}

/// What one client does.
struct Plan {
    end: End,
    /// Whether it sends and receives everything.
    is_whole: bool,
    /// What it sends and receives: the frames of all messages. Each byte depends on the seed and
    /// its position.
    stream: Vec<u8>,
    /// How many bytes of it are sent, and how many are received at most.
    sent: usize,
    received: usize,
    is_slow: bool,
    /// The sizes of the send and receive buffer, unless they are the system's defaults.
    buffers: Option<(usize, usize)>,
}

impl Plan {
    fn draw(random: &mut Random, framing: &str) -> Self {
        let mut stream = Vec::new();
        for _ in 0..1 + random.below(8) {
            let size = random.size(LONGEST).min(MOST.saturating_sub(stream.len()));
            if framing == "prefixed" {
                stream.extend((size as u32).to_be_bytes());
            }
            let is_line = framing == "lines";
            let lowest = if is_line { b'\r' + 1 } else { 0 };
            stream.extend((0..size).map(|_| (random.next() as u8).max(lowest)));
            stream.extend(is_line.then_some(b'\n'));
        }
        let ends = [End::HalfClose, End::HalfClose, End::Close, End::Drop, End::Reset];
        let end = ends[random.below(5) as usize];
        let is_whole = matches!(end, End::HalfClose | End::Close);
        let all = stream.len();
        let mut part = || if is_whole { all } else { random.below(all as u64 + 1) as usize };
        let (sent, received) = (part(), part());
        let is_slow = random.one_in(4);
        // Not smaller: below the largest segment, 64 KiB on loopback, progress comes only from
        // probes every 200 ms.
        let mut bytes = || (128 << 10) << random.below(5);
        let buffers = is_slow.then(|| (bytes(), bytes()));
        Plan { end, is_whole, stream, sent, received, is_slow, buffers }
    }

    /// Runs the client; an error describes what is wrong.
    fn carry_out(&self, url: &str, random: &mut Random) -> io::Result<()> {
        let socket = try_connect(url)?.socket;
        if let Some((send, receive)) = self.buffers {
            socket.set_send_buffer_size(send)?;
            socket.set_recv_buffer_size(receive)?;
        }
        if !self.is_whole {
            // Half a frame gets no reply.
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        }
        let mut writing = Random::of(&[random.next()]);
        let (read, written) = thread::scope(|scope| {
            let writer = scope.spawn(|| self.write(&socket, &mut writing));
            let read = self.read(&socket, random);
            if read.is_err() || !self.is_whole {
                let _ = socket.shutdown(Shutdown::Both); // ends the writer
            }
            (read, writer.join().unwrap())
        });
        if self.end == End::Reset {
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
        read.and(if self.is_whole { written } else { Ok(()) })
    }

    fn write(&self, mut socket: &Socket, random: &mut Random) -> io::Result<()> {
        let mut rest = &self.stream[..self.sent];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(1 + random.size(1 << 20)));
            socket.write_all(now)?;
            rest = later;
            if random.one_in(16) {
                thread::sleep(Duration::from_micros(random.below(500)));
            }
        }
        if self.end == End::HalfClose { socket.shutdown(Shutdown::Write) } else { Ok(()) }
    }

    fn read(&self, mut socket: &Socket, random: &mut Random) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < self.received {
            let most = (1 + random.size(buffer.len() as u64 - 1)).min(self.received - at);
            let count = match socket.read(&mut buffer[..most]) {
                Ok(count) if count > 0 => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                _ if !self.is_whole => return Ok(()),
                ended => return wrong(format!("{ended:?} at {at} of {}", self.received)),
            };
            let mut pairs = buffer[..count].iter().zip(&self.stream[at..]);
            if let Some(first) = pairs.position(|(is, expected)| is != expected) {
                return wrong(format!("byte {} is wrong: {}", at + first, buffer[first]));
            }
            at += count;
            if self.is_slow && random.one_in(4) {
                thread::sleep(Duration::from_micros(random.below(5000)));
            }
        }
        match self.end {
            End::HalfClose if socket.read(&mut buffer)? > 0 => wrong("more than was sent".into()),
            _ => Ok(()),
        }
    }
}

fn wrong(what: String) -> io::Result<()> {
    Err(io::Error::other(what))
}

// The run

fn run(mode: Mode, seed: u64, seconds: f64) {
    // Both transports, each with all framings, and the same again with senders.
    let listeners = FRAMINGS.len() * if has_senders(mode) { 4 } else { 2 };
    let mut server = Process::start(listeners, &[mode.name(), "{dir}"]);
    let deadline = Instant::now() + Duration::from_secs_f64(seconds);
    let client = &|client| {
        let mut number = 0;
        while Instant::now() < deadline {
            let mut random = Random::of(&[seed, client, number]);
            let listener = random.below(listeners as u64) as usize;
            let (url, framing) = (&server.urls[listener], FRAMINGS[listener % FRAMINGS.len()]);
            let plan = Plan::draw(&mut random, framing);
            if let Err(error) = plan.carry_out(url, &mut random) {
                let Plan { end, sent, is_slow, buffers, .. } = plan;
                let what = format!("{end:?}, sends {sent}, slow {is_slow}, buffers {buffers:?}");
                panic!(
                    "client {client}, connection {number} to {url}, {framing}: {error} ({what})\n\
                     again: cargo test --test stress -- --mode {mode} --seed {seed} --seconds \
                     {seconds}"
                );
            }
            number += 1;
        }
        number
    };
    let connections: u64 = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|number| scope.spawn(move || client(number))).collect();
        let ended = clients.into_iter().map(ScopedJoinHandle::join);
        ended.map(|ended| ended.unwrap_or_else(|panic| resume_unwind(panic))).sum()
    });
    println!("{mode}: {connections} connections, seed {seed}");
    server.terminate();
    server.expect_success();
}

fn main() -> ExitCode {
    let Some(mut arguments) = runner::arguments_unless_serving(serve) else {
        return ExitCode::SUCCESS;
    };
    let seed = option(&mut arguments, "--seed").unwrap_or(1);
    let seconds = option(&mut arguments, "--seconds").unwrap_or(1.0);
    let mode: Option<Mode> = option(&mut arguments, "--mode");
    let modes = mode.map_or_else(|| Mode::all().collect(), |mode| vec![mode]);
    let test = |mode| {
        let name = format!("every_byte_comes_back_unchanged_in_mode_{mode}");
        runner::test(name, move || run(mode, seed, seconds))
    };
    runner::run(modes.into_iter().map(test).collect(), arguments.into_iter()).0
}

/// Removes an option and its value from the command line.
fn option<T: FromStr<Err: Debug>>(arguments: &mut Vec<String>, name: &str) -> Option<T> {
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments.remove(at);
    let value = if at < arguments.len() { arguments.remove(at) } else { String::new() };
    Some(value.parse().unwrap_or_else(|error| panic!("{name} {value:?}: {error:?}")))
}
