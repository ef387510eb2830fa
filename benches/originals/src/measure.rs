//! Servers, short slices of load on each in turn, and the ratios between them.
//!
//! The speed of a machine drifts, so a figure of one server is compared only with the figure of the
//! other one from the same round, a moment before or after. The ratios of all rounds give a median
//! and its bootstrap interval.

use std::env;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use peers::bench::stats::{self, Estimate};
use peers::bench::table::Table;
use peers::sys;

/// How long a server may take to start and to exit.
const PATIENCE: Duration = Duration::from_secs(20);

/// The CPU of the servers, and that of the load.
const CPUS: [usize; 2] = [0, 1];

/// The two servers of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The example.
    Ours,
    /// The server whose protocol it speaks.
    Original,
}

impl Side {
    /// Both, in the order of this round: none is always the first.
    fn in_order(round: usize) -> [Side; 2] {
        match round % 2 {
            0 => [Side::Ours, Side::Original],
            _ => [Side::Original, Side::Ours],
        }
    }
}

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts a server on the CPU of the servers, and waits until `is_ready`.
    pub fn start(command: Command, is_ready: impl Fn() -> bool) -> Result<Self> {
        let mut server = Server { child: pinned(command, CPUS[0])? };
        let deadline = Instant::now() + PATIENCE;
        while !is_ready() {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server exited: {status}");
            }
            ensure!(Instant::now() < deadline, "the server does not answer");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The processor time that the server and its children have used.
    pub fn cpu_time(&self) -> Result<Duration> {
        Ok(sys::cpu_time(self.child.id())?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = sys::signal(self.child.id(), libc::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(5)),
                _ => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a command on one CPU; it ends when this process ends.
fn pinned(mut command: Command, cpu: usize) -> Result<Child> {
    // On a machine with one CPU, everything runs there.
    let cpu = if sys::cpus()?.contains(&cpu) { cpu } else { sys::cpus()?[0] };
    sys::before_exec(&mut command, move || {
        sys::die_with_parent()?;
        sys::pin_to(cpu)
    });
    command.stdin(Stdio::null());
    let program = command.get_program().to_owned();
    command.spawn().with_context(|| format!("cannot start {}", program.display()))
}

/// Runs a load on the CPU of the loads, and returns what it has printed.
pub fn load(mut command: Command) -> Result<String> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = command.get_program().display().to_string();
    let output = pinned(command, CPUS[1])?.wait_with_output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {} {errors} {printed}", output.status);
    Ok(printed)
}

/// The path of an example, built for release.
pub fn example(name: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = root.join("target");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--example", name, "--target-dir"])
        .arg(&target)
        .current_dir(&root)
        .status()
        .context("cannot start cargo")?;
    ensure!(built.success(), "the example {name} does not build");
    Ok(target.join("release/examples").join(name))
}

/// A port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What one slice of load has shown.
#[derive(Debug, Clone, Copy)]
pub struct Slice {
    /// The processor time of the server per request, in microseconds.
    pub cpu: f64,
    /// Requests per second.
    pub rate: f64,
}

/// One kind of load, and what it has shown.
#[derive(Debug)]
pub struct Cell {
    /// Its name in the table.
    pub name: String,
    /// The groups that it belongs to: each has a geometric mean of its own.
    pub groups: Vec<&'static str>,
    ours: Vec<Slice>,
    original: Vec<Slice>,
}

impl Cell {
    /// A cell without slices.
    pub fn new(name: String, groups: Vec<&'static str>) -> Self {
        Cell { name, groups, ours: Vec::new(), original: Vec::new() }
    }

    /// The ratio of ours to the original, round by round.
    fn ratios(&self, figure: fn(&Slice) -> f64) -> Vec<f64> {
        let pairs = self.ours.iter().zip(&self.original);
        pairs.map(|(ours, original)| figure(ours) / figure(original)).collect()
    }
}

/// Runs `slice` on both servers for each cell in each round.
pub fn interleave(
    cells: &mut [Cell],
    rounds: usize,
    mut slice: impl FnMut(usize, Side) -> Result<Slice>,
) -> Result<()> {
    for round in 0..rounds {
        for (index, cell) in cells.iter_mut().enumerate() {
            for side in Side::in_order(round + index) {
                let found = slice(index, side).with_context(|| cell.name.clone())?;
                match side {
                    Side::Ours => cell.ours.push(found),
                    Side::Original => cell.original.push(found),
                }
            }
        }
        eprintln!("round {} of {rounds}", round + 1);
    }
    Ok(())
}

fn cpu(slice: &Slice) -> f64 {
    slice.cpu
}

fn rate(slice: &Slice) -> f64 {
    slice.rate
}

fn shown(estimate: Option<Estimate>) -> String {
    match estimate {
        Some(Estimate { median, low, high }) => format!("{median:.2} [{low:.2}..{high:.2}]"),
        None => "–".to_owned(),
    }
}

/// The geometric mean over these cells, of which each round gives one.
pub fn geometric_mean(cells: &[&Cell], figure: Figure) -> Option<Estimate> {
    let ratios: Vec<Vec<f64>> = cells.iter().map(|cell| cell.ratios(figure.of())).collect();
    let rounds = ratios.iter().map(Vec::len).min()?;
    let mean = |round: usize| {
        let sum: f64 = ratios.iter().map(|ratios| ratios[round].ln()).sum();
        (sum / ratios.len() as f64).exp()
    };
    stats::estimate(&(0..rounds).map(mean).collect::<Vec<_>>())
}

/// The ratio of one cell.
pub fn ratio(cell: &Cell, figure: Figure) -> Option<Estimate> {
    stats::estimate(&cell.ratios(figure.of()))
}

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub enum Figure {
    /// Processor time per request: less is better.
    Cpu,
    /// Requests per second: more is better.
    Rate,
}

impl Figure {
    fn of(self) -> fn(&Slice) -> f64 {
        match self {
            Figure::Cpu => cpu,
            Figure::Rate => rate,
        }
    }
}

/// Prints the ratios of all cells, and the geometric mean of each of these groups and of all.
pub fn print(cells: &[Cell], groups: &[&'static str], original: &str) {
    let median = |slices: &[Slice], figure: fn(&Slice) -> f64| {
        stats::median(slices.iter().map(figure)).unwrap_or(f64::NAN)
    };
    let (ours_cpu, original_cpu) = ("CPU µs, ours", format!("CPU µs, {original}"));
    let mut table = Table::new(["load", ours_cpu, &original_cpu, "CPU ratio", "requests/s ratio"]);
    for cell in cells {
        table.row([
            cell.name.clone(),
            format!("{:.2}", median(&cell.ours, cpu)),
            format!("{:.2}", median(&cell.original, cpu)),
            shown(ratio(cell, Figure::Cpu)),
            shown(ratio(cell, Figure::Rate)),
        ]);
    }
    let mut mean = |name: &str, cells: &[&Cell]| {
        table.row([
            format!("geometric mean, {name}"),
            String::new(),
            String::new(),
            shown(geometric_mean(cells, Figure::Cpu)),
            shown(geometric_mean(cells, Figure::Rate)),
        ]);
    };
    for group in groups {
        let of_group: Vec<&Cell> =
            cells.iter().filter(|cell| cell.groups.contains(group)).collect();
        if !of_group.is_empty() {
            mean(group, &of_group);
        }
    }
    mean("all", &cells.iter().collect::<Vec<_>>());
    println!("{table}");
}
