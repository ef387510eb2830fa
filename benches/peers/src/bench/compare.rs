//! Ratios to the baseline: many short, interleaved windows, each next to a window of the baseline.
//!
//! The speed of a machine changes by tens of per cent within minutes, but hardly within half a
//! second. So each ratio is computed from two neighbouring windows, and the result is the median of
//! many ratios, with its interval.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::catalog::{Launcher, Server, ServerArgs};
use super::outcome::{Outcome, Side, Window, format_outcomes};
use super::process::{Pin, ServerProcess, Start, load};
use super::scenario::{SCENARIOS, Scenario};
use super::{deterministic, progress, progress_in_place};
use crate::load::Report;
use crate::sys;

/// The options of a comparison.
#[derive(Debug, Clone, Args)]
pub struct CompareArgs {
    #[command(flatten)]
    servers: ServerArgs,
    /// The baseline: any server, by its kind or by the name that it has in --servers
    #[arg(long, value_name = "NAME", default_value = "raw")]
    against: String,
    /// Scenarios, or `all`: tcp1, spin1, tcp16, tcp64, tcp1000, pipe16, 16k, bulk, churn, slow,
    /// streams, open20k, unix1, unix64, unixpipe16, unixbulk, udp1, udp16
    #[arg(long, value_delimiter = ',', default_value = "tcp64,pipe16,churn,slow")]
    scenarios: Vec<String>,
    /// Windows per server and scenario
    #[arg(long, default_value_t = 26)]
    rounds: usize,
    /// Length of a window in seconds
    #[arg(long, default_value_t = 0.3)]
    secs: f64,
    /// Which servers get CPU 0 for themselves, the load generator being on CPU 1
    #[arg(long, value_enum, default_value = "auto")]
    pin: PinChoice,
    /// Print ratios to raw without verifying that it is fit to be a baseline
    #[arg(long)]
    no_baseline_check: bool,
    /// Write every window to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Which servers are pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PinChoice {
    /// those that run on one thread
    Auto,
    /// every one
    All,
    /// none
    None,
}

/// The number of repetitions of windows that other processes disturbed.
const TRIES: usize = 3;

/// Measures all scenarios and prints a table for each.
pub fn run(args: &CompareArgs) -> Result<()> {
    let scenarios = scenarios(&args.scenarios)?;
    let (launcher, baseline, servers) = Launcher::against(&args.servers, &args.against)?;
    if !baseline.is_raw() {
        println!(
            "Baseline: {baseline}, which is not a practical limit: these ratios compare the two."
        );
    } else if args.no_baseline_check {
        println!("Baseline: NOT checked (--no-baseline-check).");
    } else {
        deterministic::check_baseline()?;
    }
    println!(
        "{} rounds of {} s; ratios to {baseline} in the same round, median [95 % interval].\n",
        args.rounds, args.secs,
    );
    let cpus = sys::cpus()?;
    let mut outcomes = Vec::new();
    for scenario in &scenarios {
        if let Some(reason) = baseline.refuses(scenario) {
            progress(format_args!("without {}: {baseline}: {reason}", scenario.name));
            continue;
        }
        let comparison =
            Comparison { args, launcher: &launcher, baseline: &baseline, scenario, cpus: &cpus };
        let found = comparison.run(&servers);
        println!("{}", format_outcomes(scenario, &baseline, &found));
        outcomes.extend(found);
    }
    if let Some(path) = &args.json {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        serde_json::to_writer(file, &outcomes)?;
    }
    Ok(())
}

fn scenarios(names: &[String]) -> Result<Vec<Scenario>> {
    match names {
        [all] if all == "all" => Ok(SCENARIOS.to_vec()),
        names => names.iter().map(|name| name.parse()).collect(),
    }
}

/// A scenario in progress.
struct Comparison<'a> {
    args: &'a CompareArgs,
    launcher: &'a Launcher,
    baseline: &'a Server,
    scenario: &'a Scenario,
    cpus: &'a [usize],
}

/// A server that takes part, and its windows so far.
struct Entrant<'a> {
    server: &'a Server,
    windows: Vec<Window>,
    /// Whether it did not start or did not answer: it is not measured again.
    has_failed: bool,
}

impl Comparison<'_> {
    fn run(&self, servers: &[Server]) -> Vec<Outcome> {
        progress(format_args!("{}", self.scenario.name));
        let mut entrants = self.entrants(servers);
        for round in 0..self.args.rounds {
            progress_in_place(format_args!(
                "{}: round {} of {}",
                self.scenario.name,
                round + 1,
                self.args.rounds
            ));
            for neighbours in neighbours(entrants.len(), round) {
                self.measure_beside_baseline(&mut entrants, neighbours);
            }
        }
        let outcomes = entrants.into_iter();
        outcomes
            .map(|entrant| Outcome::new(self.scenario, entrant.server, entrant.windows))
            .collect()
    }

    fn entrants<'s>(&self, servers: &'s [Server]) -> Vec<Entrant<'s>> {
        let mut entrants = Vec::new();
        for server in servers {
            match server.refuses(self.scenario) {
                None => entrants.push(Entrant { server, windows: Vec::new(), has_failed: false }),
                Some(reason) => {
                    progress(format_args!("{}: without {server}: {reason}", self.scenario.name))
                }
            }
        }
        entrants
    }

    /// Measures one server, the baseline and another server, so that both are next to the baseline.
    fn measure_beside_baseline(
        &self,
        entrants: &mut [Entrant<'_>],
        [before, after]: [Option<usize>; 2],
    ) {
        for attempt in 1..=TRIES {
            let before = before.and_then(|index| self.measure_entrant(entrants, index));
            let Some(baseline) = self.measure(self.baseline) else {
                return;
            };
            let after = after.and_then(|index| self.measure_entrant(entrants, index));
            let pairs = [before, after].into_iter().flatten();
            let pairs: Vec<(usize, Window)> = pairs
                .map(|(index, report)| {
                    let server = Side::new(report, self.is_pinned(entrants[index].server));
                    let baseline = Side::new(baseline.clone(), self.is_pinned(self.baseline));
                    (index, Window::new(server, baseline))
                })
                .collect();
            if attempt == TRIES || !pairs.iter().any(|(_, window)| window.is_disturbed) {
                for (index, window) in pairs {
                    entrants[index].windows.push(window);
                }
                return;
            }
        }
    }

    fn measure_entrant(
        &self,
        entrants: &mut [Entrant<'_>],
        index: usize,
    ) -> Option<(usize, Report)> {
        let entrant = &mut entrants[index];
        if entrant.has_failed {
            return None;
        }
        let report = self.measure(entrant.server);
        entrant.has_failed = report.is_none();
        Some((index, report?))
    }

    /// One window of a new process of this server; prints a failure.
    fn measure(&self, server: &Server) -> Option<Report> {
        let name = self.scenario.name;
        self.try_measure(server)
            .inspect_err(|error| progress(format_args!("{name}: {server}: {error:#}")))
            .ok()
    }

    fn try_measure(&self, server: &Server) -> Result<Report> {
        let (server_pin, load_pin) = self.pins(server);
        let process = ServerProcess::start(Start {
            name: &server.name,
            words: &|url| self.launcher.arguments(server, url, self.scenario.connections()),
            transport: self.scenario.transport,
            pin: server_pin,
            under: Vec::new(),
        })?;
        let mut options = self.scenario.arguments();
        options.extend(["--secs".into(), self.args.secs.to_string()]);
        let limit = Duration::from_secs_f64(self.args.secs) + Duration::from_secs(60);
        let report = load(self.launcher.load_generator(), &process, &options, load_pin, limit)?;
        process.stop()?;
        Ok(report)
    }

    fn is_pinned(&self, server: &Server) -> bool {
        match self.args.pin {
            PinChoice::Auto => !server.is_parallel(),
            PinChoice::All => true,
            PinChoice::None => false,
        }
    }

    /// The CPUs of the server and of the load generator.
    fn pins(&self, server: &Server) -> (Pin, Pin) {
        match self.cpus[..] {
            [first, second, ..] if self.is_pinned(server) => (Pin(Some(first)), Pin(Some(second))),
            _ => (Pin(None), Pin(None)),
        }
    }
}

/// The servers before and after each window of the baseline. Every second round runs in reverse
/// order, so that each server is measured before the baseline as often as after it.
fn neighbours(servers: usize, round: usize) -> Vec<[Option<usize>; 2]> {
    let mut order: Vec<[Option<usize>; 2]> = (0..servers)
        .step_by(2)
        .map(|first| [Some(first), Some(first + 1).filter(|next| *next < servers)])
        .collect();
    if round % 2 == 1 {
        order.reverse();
        order.iter_mut().for_each(|pair| pair.reverse());
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_two_rounds_every_server_is_measured_before_and_after_the_baseline() {
        assert_eq!(neighbours(3, 0), [[Some(0), Some(1)], [Some(2), None]]);
        assert_eq!(neighbours(3, 1), [[None, Some(2)], [Some(1), Some(0)]]);
    }

    #[test]
    fn the_name_all_selects_every_scenario() {
        assert_eq!(scenarios(&["all".into()]).unwrap().len(), SCENARIOS.len());
        assert!(scenarios(&["nonsense".into()]).is_err());
    }
}
