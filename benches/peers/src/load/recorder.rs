//! What is counted, and when: first answers, warm-up, the measured window.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{LoadArgs, PATIENCE};
use crate::sys;

/// The result of one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Requests of the measured clients that were answered in the window.
    pub requests: u64,
    /// Messages of all other clients that were answered in the window; of streams, which have a
    /// process of their own, as many as at their usual rate.
    pub beside: u64,
    /// Length of the window.
    pub seconds: f64,
    /// `requests` per second.
    pub rate: f64,
    /// Median latency of the measured clients, in microseconds.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// Share of the window in which the load generator, that of the measured clients, was on the
    /// CPU. Near 1, the generator limits
    /// the result.
    pub busy: f64,
    /// CPU time of the load generator in the window, in nanoseconds.
    pub load_cpu_ns: u64,
    /// CPU time of the watched process in the window, in nanoseconds.
    pub server_cpu_ns: u64,
    /// Context switches of the watched process in the window, if asked for.
    pub server_switches: Option<u64>,
    /// Growth of the anonymous memory of the watched process from before the first connection to
    /// the end of the window, in KiB, if asked for.
    pub server_grown_kib: Option<u64>,
    /// How long one of the two was ready to run in the window while its CPU ran something else.
    pub waited_ns: u64,
    /// CPU time that everything else on this machine used in the window, in nanoseconds; exact to
    /// some ticks of 10 ms.
    pub others_ns: u64,
    /// Wrong bytes, failed system calls, connections that ended.
    pub errors: u64,
    /// Datagrams that were never answered.
    pub lost: u64,
}

/// The line that is printed with `--until-eof` when every client has had an answer.
pub(super) const UNDER_WAY: &str = "under way";

/// The phase of a run.
enum Phase {
    /// Some clients have not had their first answer.
    Priming,
    /// All have; warm-up of the server's caches and buffers until this time.
    Warming(u64),
    /// Counting until this time.
    Measuring(u64),
    Over,
}

/// The clock and the counters of a run. Times are nanoseconds since its start.
pub(super) struct Recorder {
    began: Instant,
    phase: Phase,
    window: u64,
    warmup: u64,
    /// With `--requests`: how many may still be sent, and how many may still be answered.
    quota: Option<Quota>,
    /// With `--until-eof`: the starting process is notified when the window opens, and closes it.
    is_held: bool,
    watched: Option<u32>,
    counts_switches: bool,
    /// The memory before the first connection, if its growth is requested.
    memory_before: Option<u64>,
    memory_grown: Option<u64>,
    opened: Snapshot,
    closed: Snapshot,
    latencies: Histogram<u64>,
    beside: u64,
    errors: u64,
    lost: u64,
}

struct Quota {
    unsent: u64,
    unanswered: u64,
}

/// The clocks at one end of the window.
#[derive(Default)]
struct Snapshot {
    at: u64,
    load_cpu: Duration,
    /// Of the other processes that generate load.
    beside_cpu: Duration,
    server_cpu: Duration,
    switches: Option<u64>,
    load_waited: Duration,
    server_waited: Duration,
    machine: Duration,
}

impl Recorder {
    pub(super) fn new(args: &LoadArgs) -> Result<Self> {
        let window = Duration::try_from_secs_f64(args.secs)?;
        let warmup = Duration::try_from_secs_f64(args.warmup)?;
        let mut recorder = Self {
            began: Instant::now(),
            phase: Phase::Priming,
            window: if args.until_eof { u64::MAX } else { window.as_nanos() as u64 },
            warmup: warmup.as_nanos() as u64,
            is_held: args.until_eof,
            quota: args.requests.map(|requests| Quota { unsent: requests, unanswered: requests }),
            watched: args.watch,
            counts_switches: args.switches,
            memory_before: match args.watch.filter(|_| args.memory) {
                Some(pid) => Some(sys::anonymous_kib(pid)?),
                None => None,
            },
            memory_grown: None,
            opened: Snapshot::default(),
            closed: Snapshot::default(),
            latencies: Histogram::new_with_max(60_000_000_000, 3)?,
            beside: 0,
            errors: 0,
            lost: 0,
        };
        if recorder.quota.is_some() {
            recorder.open()?; // a run with a number of requests is counted from its start
        }
        Ok(recorder)
    }

    /// Nanoseconds since the run began.
    #[inline]
    pub(super) fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Enters the next phase if it is time; false when the run is over. `primed` of `clients`
    /// clients have had an answer.
    pub(super) fn proceed(&mut self, now: u64, primed: usize, clients: usize) -> Result<bool> {
        match self.phase {
            Phase::Priming if primed >= clients => self.phase = Phase::Warming(now + self.warmup),
            Phase::Priming if now > PATIENCE.as_nanos() as u64 => {
                bail!("only {primed} of {clients} clients were answered within {PATIENCE:?}")
            }
            Phase::Warming(until) if now >= until => self.open()?,
            Phase::Measuring(until) if now >= until => self.close()?,
            _ => {}
        }
        Ok(!matches!(self.phase, Phase::Over))
    }

    /// Whether one more request may be sent; if so, counts it.
    #[inline]
    pub(super) fn may_send(&mut self) -> bool {
        match &mut self.quota {
            None => true,
            Some(Quota { unsent: 0, .. }) => false,
            Some(quota) => {
                quota.unsent -= 1;
                true
            }
        }
    }

    /// A request of a measured client was answered.
    #[inline]
    pub(super) fn answered(&mut self, latency: u64) -> io::Result<()> {
        if matches!(self.phase, Phase::Measuring(_)) {
            self.latencies.saturating_record(latency);
        }
        if let Some(quota) = &mut self.quota {
            quota.unanswered -= 1;
            if quota.unanswered == 0 {
                self.close()?;
            }
        }
        Ok(())
    }

    /// A message of another client was answered.
    pub(super) fn answered_beside(&mut self) {
        if matches!(self.phase, Phase::Measuring(_)) {
            self.beside += 1;
        }
    }

    /// Counts an error and prints it.
    pub(super) fn error(&mut self) {
        self.errors += 1;
        if self.quota.is_some() {
            self.end(); // the number of requests can never be reached
        }
    }

    /// Ends the run early.
    pub(super) fn end(&mut self) {
        self.phase = Phase::Measuring(0);
    }

    /// Counts datagrams that will not be answered any more.
    pub(super) fn lost(&mut self, datagrams: u64) {
        self.lost += datagrams;
    }

    /// The report of the run.
    pub(super) fn report(self) -> Report {
        let nanoseconds = (self.closed.at - self.opened.at).max(1);
        let seconds = nanoseconds as f64 / 1e9;
        let quantile = |quantile| self.latencies.value_at_quantile(quantile) as f64 / 1e3;
        let grown = |clock: fn(&Snapshot) -> Duration| {
            let grown = clock(&self.closed).saturating_sub(clock(&self.opened));
            grown.as_nanos() as u64
        };
        let load_cpu_ns = grown(|at| at.load_cpu);
        let server_cpu_ns = grown(|at| at.server_cpu);
        Report {
            requests: self.latencies.len(),
            beside: self.beside,
            seconds,
            rate: self.latencies.len() as f64 / seconds,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            busy: load_cpu_ns as f64 / nanoseconds as f64,
            load_cpu_ns,
            server_cpu_ns,
            server_switches: self
                .closed
                .switches
                .zip(self.opened.switches)
                .map(|(closed, opened)| closed.saturating_sub(opened)),
            server_grown_kib: self.memory_grown,
            waited_ns: grown(|at| at.load_waited).max(grown(|at| at.server_waited)),
            others_ns: grown(|at| at.machine)
                .saturating_sub(load_cpu_ns + server_cpu_ns + grown(|at| at.beside_cpu)),
            errors: self.errors,
            lost: self.lost,
        }
    }

    fn open(&mut self) -> io::Result<()> {
        let switches = self.switches()?; // first, as it takes longest
        self.opened = Snapshot { switches, ..self.snapshot()? };
        self.phase = Phase::Measuring(self.opened.at.saturating_add(self.window));
        if self.is_held {
            let mut out = io::stdout().lock();
            writeln!(out, "{UNDER_WAY}")?;
            out.flush()?;
        }
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        self.closed = self.snapshot()?;
        self.closed.switches = self.switches()?; // late, as it takes long
        if let Some((before, pid)) = self.memory_before.zip(self.watched) {
            self.memory_grown = Some(sys::anonymous_kib(pid)?.saturating_sub(before));
        }
        self.phase = Phase::Over;
        Ok(())
    }

    fn switches(&self) -> io::Result<Option<u64>> {
        match self.watched {
            Some(pid) if self.counts_switches => sys::context_switches(pid).map(Some),
            _ => Ok(None),
        }
    }

    fn snapshot(&self) -> io::Result<Snapshot> {
        let of_server = |clock: fn(u32) -> io::Result<Duration>| match self.watched {
            Some(pid) => clock(pid),
            None => Ok(Duration::ZERO),
        };
        let beside = sys::children(std::process::id()).into_iter();
        Ok(Snapshot {
            server_cpu: of_server(sys::cpu_time)?,
            server_waited: of_server(sys::waiting_time)?,
            load_cpu: sys::own_cpu_time()?,
            beside_cpu: beside.filter_map(|pid| sys::cpu_time(pid).ok()).sum(),
            load_waited: sys::waiting_time(std::process::id())?,
            machine: sys::busy_time()?,
            switches: None,
            at: self.now(),
        })
    }
}
