//! The load generator: one process with one thread and non-blocking sockets, which verifies every
//! received byte.
//!
//! ```text
//!   streams.rs     clients that stay connected: closed loops and fixed rates
//!   beside.rs      streams beside the measured clients, in a separate process
//!   gate.rs        stops the server while messages are sent
//!   churn.rs       clients that connect, send one request and close
//!   datagrams.rs   closed loops over UDP
//!   hold.rs        clients that connect, send one request and stay idle
//!   recorder.rs    what is counted, and when: first answers, warm-up, the measured window
//!   pattern.rs     the bytes on the wire
//! ```
//!
//! It prints one line of JSON, a [`Report`], and exits.

mod beside;
mod churn;
mod datagrams;
mod gate;
mod hold;
mod pattern;
mod recorder;
mod streams;

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::endpoint::{Endpoint, Transport};
use crate::sys;

use pattern::{LONGEST, Pattern};

pub use recorder::Report;

/// The kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// every client has `--depth` messages in flight, and sends the next when an answer arrives
    Echo,
    /// every client sends one message when all have had their last answer: slower, but every run is
    /// the same
    Lockstep,
    /// messages are sent at `--rate` per second, whether the server keeps up or not; latency counts
    /// from the time when a message was due
    Open,
    /// connect, send, receive, close, with `--conns` connections at a time
    Churn,
    /// `--conns` clients are measured beside `--beside` clients that send one byte now and then
    Slow,
    /// as `open`, beside `--beside` clients that stream messages of 1 MiB
    StreamsBeside,
    /// connect, send, receive, then stay idle until stdin ends
    Hold,
}

/// The options of a load.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// The server
    pub to: Endpoint,
    /// The kind of load
    #[arg(long, value_enum, default_value = "echo")]
    pub mode: Mode,
    /// Measured clients
    #[arg(long, default_value_t = 64)]
    pub conns: usize,
    /// Clients beside them, for `slow` and `streams-beside`
    #[arg(long, default_value_t = 0)]
    pub beside: usize,
    /// Bytes of one message
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// Each message is a line, for servers of lines
    #[arg(long)]
    pub lines: bool,
    /// Messages in flight per client
    #[arg(long, default_value_t = 1)]
    pub depth: usize,
    /// Messages per second over all clients, for `open` and `streams-beside`
    #[arg(long, default_value_t = 20_000)]
    pub rate: u64,
    /// Bytes that one system call sends or receives at most
    #[arg(long, value_name = "BYTES", default_value_t = LONGEST)]
    pub chunk: usize,
    /// Poll for answers instead of sleeping until they arrive: uses a whole CPU, and takes the time
    /// of waking up out of the latency
    #[arg(long)]
    pub spin: bool,
    /// Length of the measured window in seconds
    #[arg(long, default_value_t = 1.0)]
    pub secs: f64,
    /// Seconds before the window, after every client has had its first answer
    #[arg(long, default_value_t = 0.05)]
    pub warmup: f64,
    /// Instead of a window: exactly this many requests, in at most `--secs`
    #[arg(long)]
    pub requests: Option<u64>,
    /// Instead of a window: count from the first answer of every client, which a line on stdout
    /// reports, until stdin, a pipe, ends; for streams
    #[arg(long, conflicts_with_all = ["requests", "secs", "warmup"])]
    pub until_eof: bool,
    /// Report the CPU time of this process, the server, in the window
    #[arg(long, value_name = "PID")]
    pub watch: Option<u32>,
    /// For `lockstep`: stop the watched process whenever all clients send, so that it finds all
    /// their messages at once
    #[arg(long, requires = "watch")]
    pub gate: bool,
    /// First stop it this often without sending, so that the cost of the stops can be subtracted
    #[arg(long, value_name = "TIMES", default_value_t = 0, requires = "gate")]
    pub idle_stops: u64,
    /// Also report its context switches, which takes long with many threads
    #[arg(long, requires = "watch")]
    pub switches: bool,
    /// Report the growth of its memory at the end of the window, with all clients connected
    #[arg(long, requires = "watch")]
    pub memory: bool,
}

impl LoadArgs {
    /// The bytes to send.
    fn pattern(&self) -> Result<Pattern> {
        if self.lines { Pattern::lines(self.size) } else { Ok(Pattern::new()) }
    }

    /// How long the load generator may sleep. It is short, because the phases of the run change
    /// between waits.
    fn longest_sleep(&self) -> Duration {
        if self.spin { Duration::ZERO } else { Duration::from_millis(5) }
    }
}

/// A server that does not answer every client within this time fails the run.
const PATIENCE: Duration = Duration::from_secs(30);

/// The interval at which a slow client sends its byte.
const TRICKLE: Duration = Duration::from_millis(100);

/// Generates the load and prints the report.
pub fn run(args: &LoadArgs) -> Result<()> {
    if args.conns == 0 || args.size == 0 || args.depth == 0 || args.rate == 0 {
        bail!("--conns, --size, --depth and --rate must not be 0");
    }
    if !(1..=LONGEST).contains(&args.chunk) {
        bail!("--chunk must be within 1 and {LONGEST}"); // each read is compared with one slice
    }
    sys::precise_timers();
    if args.mode == Mode::Hold {
        return hold::run(args);
    }
    let report = match args.mode {
        Mode::StreamsBeside => measure_beside_streams(args)?,
        _ => measure(args)?,
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&report)?)?;
    Ok(())
}

/// The measured clients, while a separate process generates the streams.
fn measure_beside_streams(args: &LoadArgs) -> Result<Report> {
    if args.beside == 0 {
        return measure(args);
    }
    let streams = beside::Streams::start(args)?;
    let quick = measure(args)?;
    let streams = streams.end()?;
    Ok(Report {
        beside: (streams.rate * quick.seconds) as u64,
        errors: quick.errors + streams.errors,
        ..quick
    })
}

fn measure(args: &LoadArgs) -> Result<Report> {
    use streams::{Group, Pace};

    let quick =
        Group { clients: args.conns, size: args.size, pace: Pace::Closed { depth: args.depth } };
    let open =
        Group { pace: Pace::Every(Duration::from_secs(1).div_f64(args.rate as f64)), ..quick };
    let groups = match (args.to.transport(), args.mode) {
        (Transport::Udp, Mode::Echo) => return datagrams::run(args),
        (Transport::Udp, mode) => bail!("{mode:?} is for streams"),
        (_, Mode::Hold) => unreachable!("a hold reports nothing"),
        (_, Mode::Churn) => return churn::run(args),
        (_, Mode::Echo) => vec![quick],
        (_, Mode::Lockstep) => vec![Group { pace: Pace::Together, ..quick }],
        (_, Mode::Open | Mode::StreamsBeside) => vec![open],
        (_, Mode::Slow) => vec![
            quick,
            Group {
                clients: args.beside,
                size: 1,
                pace: Pace::Every(TRICKLE / args.beside.max(1) as u32),
            },
        ],
    };
    streams::run(args, &groups)
}
