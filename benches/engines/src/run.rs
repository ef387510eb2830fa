//! The rounds, the progress bar, and the result files.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use peers::endpoint::Transport;

use crate::measure::{Bench, Sample};
use crate::outcome::{Outcome, Row};
use crate::plan::{Cell, Kind, MODES, Setting};
use crate::{plots, report};

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Everything, with more rounds: about 25 minutes
    #[arg(long, conflicts_with = "smoke")]
    full: bool,
    /// A few seconds, to check that it works
    #[arg(long)]
    smoke: bool,
    /// Only these modes
    #[arg(long, value_delimiter = ',', value_name = "MODES", value_parser = MODES)]
    modes: Vec<String>,
    /// Only the loads whose names contain this text, such as "handler blocks"; may be given several
    /// times
    #[arg(long, value_name = "TEXT")]
    load: Vec<String>,
    /// Threads of `offload`, instead of 16, and 64 if the handler blocks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    workers: Option<u16>,
    /// Rounds, instead of the setting's
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..1000))]
    rounds: Option<u32>,
    /// Seconds of a window, instead of the setting's
    #[arg(long, value_name = "SECONDS")]
    secs: Option<f64>,
    /// Let server and load generator share all CPUs
    #[arg(long)]
    share: bool,
    /// Where results are written
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
}

impl RunArgs {
    fn setting(&self) -> Setting {
        match (self.full, self.smoke) {
            (true, _) => Setting::Full,
            (_, true) => Setting::Smoke,
            _ => Setting::Quick,
        }
    }

    fn modes(&self) -> Vec<&'static str> {
        let is_wanted = |mode: &&str| self.modes.is_empty() || self.modes.iter().any(|m| m == mode);
        MODES.into_iter().filter(is_wanted).collect()
    }

    fn cells(&self) -> Result<Vec<Cell>> {
        let mut cells = self.setting().cells();
        let name = |cell: &Cell| cell.name().to_lowercase();
        let is_wanted = |cell: &Cell| {
            let mut texts = self.load.iter().map(|text| text.to_lowercase());
            self.load.is_empty() || texts.any(|text| name(cell).contains(&text))
        };
        cells.retain(is_wanted);
        if cells.is_empty() {
            let all = self.setting().cells();
            let names: Vec<String> = all.iter().map(Cell::name).collect();
            bail!("no load has such a name; the loads are\n  {}", names.join("\n  "));
        }
        Ok(cells)
    }

    /// `target/engines` of the measured crate.
    fn out(&self) -> PathBuf {
        let target = || {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
            root.canonicalize().unwrap_or(root).join("target/engines")
        };
        self.out.clone().unwrap_or_else(target)
    }
}

/// The parameters of the run, for the head of the report.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Conditions {
    pub(crate) setting: Setting,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    /// The number of workers of `offload`, if given.
    pub(crate) workers: Option<u16>,
    pub(crate) placement: String,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
}

/// Measures everything, prints the tables, and writes JSON, plots and the page.
pub(crate) fn run(args: &RunArgs, descriptors: u64) -> Result<()> {
    let setting = args.setting();
    let modes = args.modes();
    let (rounds, seconds) = setting.effort();
    let rounds = args.rounds.map_or(rounds, |rounds| rounds as usize);
    let seconds = args.secs.unwrap_or(seconds).clamp(0.01, 60.0);
    let out = args.out();
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;

    let bench = Bench::new(!args.share, args.workers.map(usize::from))?;
    let conditions = Conditions {
        setting,
        rounds,
        seconds,
        workers: args.workers,
        placement: bench.placement.clone(),
        kernel: first_line("/proc/sys/kernel/osrelease"),
        cpu: cpu_model(),
    };
    let mut rows: Vec<Row> = args
        .cells()?
        .into_iter()
        .map(|cell| Row {
            name: cell.name(),
            cell,
            outcomes: modes
                .iter()
                .map(|mode| Outcome::new(mode, cell.refuses(mode, descriptors)))
                .collect(),
        })
        .collect();
    measure(&bench, &mut rows, rounds, seconds);

    let markdown = report::markdown(&conditions, &rows, !args.load.is_empty());
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{markdown}"); // the reader of a pipe may have closed it
    let write = |name: &str, text: &str| {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let json = serde_json::to_string(&serde_json::json!({
        "conditions": &conditions, "rows": &rows,
    }))?;
    let plots = plots::draw(&rows)?;
    for plot in &plots {
        write(plot.file, &plot.svg)?;
    }
    write("report.md", &markdown)?;
    write("results.json", &json)?;
    write("report.html", &report::html(&conditions, &rows, &plots, &json))?;
    let _ = writeln!(stdout, "Plots and all figures: {}", out.join("report.html").display());
    Ok(())
}

/// Measures cell by cell and round by round, so that the modes of a round follow each other
/// closely; every second round runs in reverse order.
fn measure(bench: &Bench, rows: &mut [Row], rounds: usize, seconds: f64) {
    let price = |cell: &Cell| price(cell, seconds);
    let all = rows.iter().map(|row| {
        let modes = row.outcomes.iter().filter(|outcome| outcome.absent.is_none()).count();
        price(&row.cell) * (modes * row.cell.rounds(rounds)) as u64
    });
    let bar = ProgressBar::new(all.sum());
    let style = ProgressStyle::with_template("{bar:30} {percent:>3} %, {eta} left  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut spare = rows.len(); // limits how much a busy machine prolongs the run
    bar.enable_steady_tick(Duration::from_secs(1));
    for Row { name, cell, outcomes } in rows {
        if bar.is_hidden() {
            eprintln!("engines: {name}");
        }
        for round in 0..cell.rounds(rounds) {
            let count = outcomes.len();
            for place in 0..count {
                let index = if round % 2 == 0 { place } else { count - 1 - place };
                let outcome = &mut outcomes[index];
                if outcome.absent.is_some() {
                    continue;
                }
                bar.set_message(format!("{name}: {}", outcome.mode));
                match quiet(|| bench.measure(cell, outcome.mode, seconds), &mut spare) {
                    Ok(sample) => outcome.samples.push(sample),
                    Err(error) => {
                        let mode = outcome.mode;
                        bar.suspend(|| eprintln!("engines: {name}: {mode}: {error:#}"));
                        outcome.absent = Some(format!("`{mode}`: {error:#}"));
                        outcome.samples.clear();
                    }
                }
                bar.inc(price(cell));
            }
        }
        outcomes.iter_mut().for_each(|outcome| outcome.conclude(cell));
    }
    bar.finish_and_clear();
}

/// Measures, and repeats a disturbed measurement while `spare` measurements are left.
fn quiet(measure: impl Fn() -> Result<Sample>, spare: &mut usize) -> Result<Sample> {
    let first = measure()?;
    if !first.is_disturbed() || *spare == 0 {
        return Ok(first);
    }
    *spare -= 1;
    Ok(first.quieter(measure()?))
}

/// The approximate duration of a measurement, in milliseconds.
fn price(cell: &Cell, seconds: f64) -> u64 {
    let connect = cell.connections() as f64 * 0.1;
    let run = match cell.kind {
        Kind::Idle => 60.0,
        Kind::Calls => 400.0,
        Kind::Blocking { microseconds } => {
            seconds * 1000.0 + (cell.clients as u64 * microseconds / 1000) as f64 / 3.0
        }
        _ => seconds * 1000.0,
    };
    let start = if cell.transport == Transport::Udp { 60.0 } else { 80.0 };
    (start + connect + run) as u64
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name"));
    model.map_or("unknown", |model| model.trim_start_matches([' ', '\t', ':'])).to_owned()
}
