//! The load generator: one thread, one process, non-blocking, with verification of every byte that
//! comes back.
//!
//! ```text
//!   streams.rs     clients that stay connected: closed loops and fixed rates, side by side
//!   beside.rs      streams beside the measured clients, in a process of their own
//!   gate.rs        keeps the server from looking while messages are sent
//!   churn.rs       clients that connect, ask once and go
//!   datagrams.rs   closed loops over UDP
//!   hold.rs        clients that connect, ask once and stay idle
//!   recorder.rs    what is counted, and when: priming, warm-up, the measured window
//!   pattern.rs     the bytes on the wire
//! ```
//!
//! It prints one line of JSON, a [`Report`], and ends.

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

/// What kind of load to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// every client has `--depth` messages under way, and sends the next when an answer arrives
    Echo,
    /// every client sends one message when all have the answers to their last: less speed, but the
    /// same course every time
    Lockstep,
    /// messages are due at `--rate` per second, whether the server keeps up or not; latency counts
    /// from when each was due
    Open,
    /// connect, send, receive, close, with `--conns` connections under way
    Churn,
    /// `--conns` quick clients are measured beside `--beside` that send one byte now and then
    Slow,
    /// as `open`, beside `--beside` clients that stream messages of 1 MiB
    StreamsBeside,
    /// connect, send, receive, then stay idle until stdin ends
    Hold,
}

/// What to send, where, and how long.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// The server
    pub to: Endpoint,
    /// What kind of load
    #[arg(long, value_enum, default_value = "echo")]
    pub mode: Mode,
    /// Clients that are measured
    #[arg(long, default_value_t = 64)]
    pub conns: usize,
    /// Clients beside them, for `slow` and `streams-beside`
    #[arg(long, default_value_t = 0)]
    pub beside: usize,
    /// Bytes of one message
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// Each message is a line, for servers that want lines
    #[arg(long)]
    pub lines: bool,
    /// Messages under way per client
    #[arg(long, default_value_t = 1)]
    pub depth: usize,
    /// Messages per second over all clients, for `open` and `streams-beside`
    #[arg(long, default_value_t = 20_000)]
    pub rate: u64,
    /// Bytes that one system call sends or receives at most
    #[arg(long, value_name = "BYTES", default_value_t = LONGEST)]
    pub chunk: usize,
    /// Look for answers again and again instead of sleeping until they come: takes a whole CPU, and
    /// the price of waking up out of the latency
    #[arg(long)]
    pub spin: bool,
    /// Length of the measured window in seconds
    #[arg(long, default_value_t = 1.0)]
    pub secs: f64,
    /// Seconds before the window, after every client has had its first answer
    #[arg(long, default_value_t = 0.05)]
    pub warmup: f64,
    /// Instead of a window: exactly this many requests from start to end, in `--secs` at most
    #[arg(long)]
    pub requests: Option<u64>,
    /// Instead of a window: from when every client has had its first answer, which a line on stdout
    /// tells, until stdin, a pipe, ends; for streams
    #[arg(long, conflicts_with_all = ["requests", "secs", "warmup"])]
    pub until_eof: bool,
    /// Report the CPU time that this process uses in the window: the server
    #[arg(long, value_name = "PID")]
    pub watch: Option<u32>,
    /// For `lockstep`: stop the watched process whenever all clients send, so that it finds all their
    /// messages at once
    #[arg(long, requires = "watch")]
    pub gate: bool,
    /// Before that, stop it so often with nothing sent: what that costs can then be subtracted
    #[arg(long, value_name = "TIMES", default_value_t = 0, requires = "gate")]
    pub idle_stops: u64,
    /// Report its context switches, too, which takes a while where it has many threads
    #[arg(long, requires = "watch")]
    pub switches: bool,
    /// Report how much memory it has gained by the end of the window, all clients being connected
    #[arg(long, requires = "watch")]
    pub memory: bool,
}

impl LoadArgs {
    /// What to send.
    fn pattern(&self) -> Result<Pattern> {
        if self.lines { Pattern::lines(self.size) } else { Ok(Pattern::new()) }
    }

    /// How long the load generator may sleep. Never long: the phases of the run are looked at
    /// between waits.
    fn longest_sleep(&self) -> Duration {
        if self.spin { Duration::ZERO } else { Duration::from_millis(5) }
    }
}

/// A server that does not answer every client within this time fails the run.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a trickling client sends its byte.
const TRICKLE: Duration = Duration::from_millis(100);

/// Makes the load and prints what came of it.
pub fn run(args: &LoadArgs) -> Result<()> {
    if args.conns == 0 || args.size == 0 || args.depth == 0 || args.rate == 0 {
        bail!("--conns, --size, --depth and --rate must not be 0");
    }
    if !(1..=LONGEST).contains(&args.chunk) {
        bail!("--chunk must be within 1 and {LONGEST}"); // a read is compared with one slice
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

/// The quick clients, while a process of its own makes the streams.
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
