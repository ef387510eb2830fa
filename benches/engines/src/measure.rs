//! One measurement of one mode in one cell: a new server and a load generator.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use peers::bench::counts::{is_installed, sum_of_calls};
use peers::bench::process::{IdleClients, Pin, Scratch, ServerProcess, Start, load};
use peers::endpoint::Transport;
use peers::load::Report;
use peers::sys::{self, anonymous_kib};
use serde::Serialize;

use crate::plan::{BLOCKING_WORKERS, Cell, Kind, POOL};

/// The result of one measurement.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sample {
    /// A window of load.
    Load(Report),
    /// Idle connections.
    Idle {
        /// The growth of the server's anonymous memory per connection.
        kib: f64,
        /// The number of threads of all its processes.
        threads: usize,
    },
    /// System calls per request.
    Calls(f64),
}

/// Above this share of one CPU, other processes have influenced the measurement.
const MOST_OTHERS: f64 = 0.1;

impl Sample {
    /// The share of one CPU that all other processes have used.
    fn others(&self) -> f64 {
        match self {
            Sample::Load(report) => report.others_ns as f64 / 1e9 / report.seconds,
            _ => 0.0,
        }
    }

    /// Whether other processes have influenced the measurement.
    pub(crate) fn is_disturbed(&self) -> bool {
        self.others() > MOST_OTHERS
    }

    /// The one of two measurements with less influence from other processes.
    pub(crate) fn quieter(self, other: Sample) -> Sample {
        if other.others() < self.others() { other } else { self }
    }
}

/// With more connections than this, a server may have too many threads to read the context switches
/// of each at both ends of a window.
const MOST_ASKED: usize = 256;

/// The time that a load may take in addition to its window.
const PATIENCE: Duration = Duration::from_secs(40);

/// Starts servers and loads.
pub(crate) struct Bench {
    itself: PathBuf,
    load_pin: Pin,
    /// The number of workers of `offload`, in place of the default and of that for blocking
    /// handlers.
    workers: Option<usize>,
    /// A description of the CPUs of both sides.
    pub(crate) placement: String,
}

impl Bench {
    /// With `pinned`, the load generator has the last CPU for itself, and the servers of all modes
    /// share the other CPUs.
    pub(crate) fn new(pinned: bool, workers: Option<usize>) -> Result<Self> {
        let cpus = sys::cpus()?;
        let (load_pin, placement) = match cpus.split_last() {
            Some((last, others)) if pinned && !others.is_empty() => {
                sys::pin_to_any(others)?; // the servers inherit it
                let count = match others.len() {
                    1 => "one CPU".to_owned(),
                    more => format!("{more} CPUs"),
                };
                (Pin(Some(*last)), format!("the server has {count}, the load generator another"))
            }
            _ => (Pin(None), format!("server and load generator share {} CPUs", cpus.len())),
        };
        Ok(Self { itself: env::current_exe()?, load_pin, workers, placement })
    }

    /// Measures.
    pub(crate) fn measure(&self, cell: &Cell, mode: &str, seconds: f64) -> Result<Sample> {
        match cell.kind {
            Kind::Idle => self.idle(cell, mode),
            Kind::Calls => self.calls(cell, mode),
            _ => self.window(cell, mode, seconds).map(Sample::Load),
        }
    }

    fn start(&self, cell: &Cell, mode: &str, under: Vec<String>) -> Result<ServerProcess> {
        let words = |url: &str| -> Result<Vec<String>> {
            let mut words = vec![self.itself.display().to_string()];
            words.extend(["serve", "--listen", url, "--mode", mode].map(Into::into));
            let workers = match (mode, cell.kind) {
                ("pool", _) => Some(POOL),
                ("offload", Kind::Blocking { .. }) => {
                    Some(self.workers.unwrap_or(BLOCKING_WORKERS))
                }
                ("offload", _) => self.workers,
                _ => None,
            };
            words.extend(workers.map(|workers| format!("--workers={workers}")));
            if let Kind::Blocking { microseconds } = cell.kind {
                words.push(format!("--block={microseconds}"));
            }
            Ok(words)
        };
        ServerProcess::start(Start {
            name: mode,
            words: &words,
            transport: cell.transport,
            pin: Pin(None),
            under,
        })
    }

    fn load(&self, server: &ServerProcess, options: &str, limit: Duration) -> Result<Report> {
        let options: Vec<String> = options.split_whitespace().map(str::to_owned).collect();
        load(&self.itself, server, &options, self.load_pin, limit)
    }

    /// The memory that a server allocates for its first requests does not count as that of a
    /// connection.
    fn touch(&self, server: &ServerProcess) -> Result<()> {
        self.load(server, "--conns 1 --requests 100 --secs 10", PATIENCE)?;
        Ok(())
    }

    fn window(&self, cell: &Cell, mode: &str, seconds: f64) -> Result<Report> {
        let server = self.start(cell, mode, Vec::new())?;
        let how = match cell.kind {
            Kind::Churn => "--mode churn".to_owned(),
            Kind::Open { rate } => format!("--mode open --rate {rate}"),
            Kind::Slow { beside } => format!("--mode slow --beside {beside}"),
            _ => "--mode echo".to_owned(),
        };
        // The context switches of a process that has exited are not available.
        let is_asked = cell.connections() <= MOST_ASKED
            && !(mode == "forking"
                && (cell.kind == Kind::Churn || cell.transport == Transport::Udp));
        let is_blocking = matches!(cell.kind, Kind::Blocking { .. });
        if is_blocking {
            self.touch(&server)?;
        }
        let options = format!(
            "{how} --conns {} --depth {} --secs {seconds} {} {}",
            cell.clients,
            cell.depth,
            if is_asked { "--switches" } else { "" },
            if is_blocking { "--memory" } else { "" }
        );
        let report = self.load(&server, &options, PATIENCE + Duration::from_secs_f64(seconds))?;
        server.stop()?;
        Ok(report)
    }

    fn idle(&self, cell: &Cell, mode: &str) -> Result<Sample> {
        let server = self.start(cell, mode, Vec::new())?;
        self.touch(&server)?;
        let before = anonymous_kib(server.pid())?;
        let clients = IdleClients::connect(&self.itself, &server, cell.clients)?;
        let after = anonymous_kib(server.pid())?;
        let threads = sys::threads(server.pid())?;
        drop(clients);
        server.stop()?;
        Ok(Sample::Idle { kib: (after as f64 - before as f64) / cell.clients as f64, threads })
    }

    /// The difference of two runs that differ only in their number of requests.
    fn calls(&self, cell: &Cell, mode: &str) -> Result<Sample> {
        const FEWER: u64 = 50;
        const MORE: u64 = 150;
        if !is_installed("strace") {
            bail!("strace is not installed");
        }
        let count = |each: u64| -> Result<f64> {
            let scratch = Scratch::new()?;
            let output = scratch.path().join("strace");
            let tool = format!("strace -f -c --summary-columns=calls,name -o {}", output.display());
            let server = self.start(cell, mode, tool.split(' ').map(str::to_owned).collect())?;
            let requests = each * cell.clients as u64;
            let options =
                format!("--mode lockstep --conns {} --requests {requests} --secs 20", cell.clients);
            let report = self.load(&server, &options, PATIENCE)?;
            server.stop()?;
            if report.requests != requests || report.errors > 0 {
                bail!("not all requests were answered under strace");
            }
            Ok(sum_of_calls(&fs::read_to_string(&output)?) as f64)
        };
        let difference = count(MORE)? - count(FEWER)?;
        Ok(Sample::Calls(difference / ((MORE - FEWER) * cell.clients as u64) as f64))
    }
}
