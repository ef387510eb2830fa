//! The server of one mode, in a process of its own: it runs until SIGTERM, again and again, every second
//! time as a new server at the same addresses, until the file `end` exists.

use std::alloc::System;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use socketserver::{
    Accepted, Context, Handler, HandlerResult, Hooks, LengthPrefixed, Limits, Lines, Mode, Raw,
    SendError, Sender, Server, ShutdownHandle, WhenFull,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

/// It counts what the server has allocated: the resident memory also has what malloc(3) keeps.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// How a listener splits its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Raw,
    Lines,
    Prefixed,
    Datagrams,
}

/// A listener of each server.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) name: &'static str,
    pub(crate) format: Format,
    /// It has tight limits.
    pub(crate) is_limited: bool,
    url: &'static str,
}

const fn listener(name: &'static str, format: Format, url: &'static str) -> Listener {
    Listener { name, format, is_limited: false, url }
}

pub(crate) const LISTENERS: [Listener; 7] = [
    listener("lines over TCP", Format::Lines, "tcp://127.0.0.1:0"),
    listener("prefixed over TCP", Format::Prefixed, "tcp://127.0.0.1:0"),
    listener("lines over a Unix stream", Format::Lines, "unix://{dir}/lines"),
    listener("raw over a Unix stream", Format::Raw, "unix://{dir}/raw"),
    Listener {
        name: "lines over TCP with limits",
        format: Format::Lines,
        is_limited: true,
        url: "tcp://127.0.0.1:0",
    },
    listener("UDP", Format::Datagrams, "udp://127.0.0.1:0"),
    listener("Unix datagrams", Format::Datagrams, "unixgram://{dir}/datagrams"),
];

/// The longest message on a stream.
pub(crate) const LONGEST: usize = 200_000;

/// The longest line of the listener that has limits.
pub(crate) const LONGEST_LINE: usize = 8192;

/// How many connections the listener with limits has at most, and what further clients get.
pub(crate) const MOST_CONNECTIONS: usize = 4;
pub(crate) const BUSY: &[u8] = b"busy\n";

/// How long a stop waits for busy connections.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);

/// How often the counters are printed.
const REPORTED: Duration = Duration::from_millis(250);

/// An echo, in `on_message` or through a thread that has a [`Sender`].
struct Echo {
    through_sender: bool,
    thread: Option<mpsc::Sender<Vec<u8>>>,
}

impl Handler for Echo {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if self.through_sender {
            let (give, given) = mpsc::channel();
            self.thread = Some(give);
            let sender = cx.sender()?;
            thread::spawn(move || given.iter().all(|message: Vec<u8>| is_sent(&sender, &message)));
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
}

/// Sends as soon as the queue has room; false if the connection is closed.
fn is_sent(sender: &Sender, message: &[u8]) -> bool {
    loop {
        match sender.send(message) {
            Ok(()) => return true,
            Err(SendError::Full) => thread::sleep(Duration::from_millis(1)),
            Err(_) => return false,
        }
    }
}

/// Prints the counters.
struct Report {
    server: ShutdownHandle,
    next: Instant,
}

impl Hooks for Report {
    fn next_action(&mut self) -> Option<Instant> {
        Some(self.next)
    }

    fn service_actions(&mut self) {
        self.next = Instant::now() + REPORTED;
        say(&format!("counters {} heap={}", self.server.counters(), heap()));
    }
}

/// The factory of the handlers.
fn echo(through_sender: bool) -> impl FnMut(&Accepted<'_>) -> Echo + Send {
    move |_| Echo { through_sender, thread: None }
}

/// How many bytes of the heap are in use.
fn heap() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated.saturating_sub(stats.bytes_deallocated)
}

fn say(line: &str) {
    // The process that reads this has ended if it fails.
    let _ = writeln!(io::stdout().lock(), "{line}");
}

fn build(mode: Mode, urls: &mut [String]) -> Result<Server> {
    let mut server = Server::new()?;
    for (listener, url) in LISTENERS.iter().zip(urls) {
        let limits = match listener.is_limited {
            false => Limits::default(),
            true => Limits::default()
                .max_connections(MOST_CONNECTIONS)
                .when_full(WhenFull::turn_away(BUSY))
                .message_deadline(Duration::from_secs(1))
                .message_rate(0)
                .idle_timeout(Duration::from_millis(1500)),
        };
        let builder = Server::endpoint(&url.parse()?)?.mode(mode).limits(limits);
        let has_senders = !matches!(mode.name(), "inline" | "forking");
        let through_sender = has_senders && listener.format == Format::Prefixed;
        let echo = echo(through_sender);
        let longest = if listener.is_limited { LONGEST_LINE } else { LONGEST };
        let service = match listener.format {
            Format::Lines => builder.framing(Lines::default().max_len(longest)).service(echo)?,
            Format::Prefixed => builder.framing(LengthPrefixed::default()).service(echo)?,
            Format::Datagrams => builder.max_packet_size(65_536).service(echo)?,
            Format::Raw => {
                let report = Report { server: server.shutdown_handle(), next: Instant::now() };
                builder.framing(Raw).hooks(report).service(echo)?
            }
        };
        *url = service.address().to_string();
        server.add(service)?;
    }
    server.drain_timeout(DRAIN);
    Ok(server)
}

/// Serves until the file `end` is in `directory` at the end of a run.
pub(crate) fn serve(mode: &str, directory: &str) -> Result<()> {
    let mode: Mode = mode.parse().map_err(anyhow::Error::msg)?;
    let mut urls = LISTENERS.map(|listener| listener.url.replace("{dir}", directory));
    let end = Path::new(directory).join("end");
    loop {
        let mut server = build(mode, &mut urls)?;
        for _ in 0..2 {
            // Before each run: the second signal after this call ends the process.
            server.stop_on_signals()?;
            say(&format!("ready {}", urls.join(" ")));
            let report = server.serve_forever()?;
            say(&format!("counters {}", server.counters()));
            say(&format!("stopped {} {} {}", report.idle, report.finished, report.aborted));
            if end.exists() {
                return Ok(());
            }
        }
    }
}
