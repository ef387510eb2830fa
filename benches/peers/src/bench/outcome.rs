//! The result of a comparison: ratios per window, and their table.

use serde::Serialize;

use super::catalog::Server;
use super::scenario::{Cost, Scenario};
use super::stats::{Estimate, estimate, median};
use super::table::Table;
use crate::load::{Mode, Report};

/// Above this share of its CPU, the load generator limits the result.
const MOST_BUSY: f64 = 0.95;

/// Above this share of waiting for a CPU that runs something else, other processes have influenced
/// the measurement.
const MOST_WAITING: f64 = 0.05;

/// The result of a server in one scenario.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    scenario: &'static str,
    server: String,
    windows: Vec<Window>,
    /// Requests per second divided by the baseline's.
    rate: Option<Estimate>,
    /// The baseline's CPU time per request divided by the server's.
    efficiency: Option<Estimate>,
    /// 99th percentile of the latency divided by the baseline's.
    p99: Option<Estimate>,
}

/// The window of a server in one round, and the neighbouring window of the baseline.
#[derive(Debug, Serialize)]
pub(super) struct Window {
    server: Report,
    baseline: Report,
    /// Whether something else ran on the CPU of one of the processes.
    pub(super) is_disturbed: bool,
}

/// One server in one window.
pub(super) struct Side {
    report: Report,
    is_pinned: bool,
}

impl Side {
    /// A server that is not pinned competes with its own load for the CPUs: its waiting for one
    /// does not count as a disturbance.
    pub(super) fn new(report: Report, is_pinned: bool) -> Self {
        Self { report, is_pinned }
    }

    fn is_disturbed(&self) -> bool {
        let waited = self.report.waited_ns as f64 / 1e9 / self.report.seconds;
        self.is_pinned && waited > MOST_WAITING
    }
}

impl Window {
    /// A pair of neighbouring windows.
    pub(super) fn new(server: Side, baseline: Side) -> Self {
        Self {
            is_disturbed: server.is_disturbed() || baseline.is_disturbed(),
            server: server.report,
            baseline: baseline.report,
        }
    }
}

impl Outcome {
    /// Computes the ratios.
    pub(super) fn new(scenario: &Scenario, server: &Server, windows: Vec<Window>) -> Self {
        let ratios = |ratio: fn(&Window, Cost) -> f64| -> Option<Estimate> {
            let ratios = windows.iter().map(|window| ratio(window, scenario.cost));
            estimate(&ratios.collect::<Vec<_>>())
        };
        Self {
            scenario: scenario.name,
            server: server.name.clone(),
            rate: ratios(|window, _| window.server.rate / window.baseline.rate),
            efficiency: ratios(|window, cost| {
                price(&window.baseline, cost) / price(&window.server, cost)
            }),
            p99: ratios(|window, _| window.server.p99_us / window.baseline.p99_us),
            windows,
        }
    }
}

/// CPU time per message, in nanoseconds; NaN where it has no meaning.
fn price(report: &Report, cost: Cost) -> f64 {
    let cpu = match cost {
        Cost::Server => report.server_cpu_ns,
        Cost::BothSides => report.server_cpu_ns + report.load_cpu_ns,
        Cost::None => return f64::NAN,
    };
    cpu as f64 / (report.requests + report.beside) as f64
}

/// The table of a scenario, with its notes.
pub(super) fn format_outcomes(
    scenario: &Scenario,
    baseline: &Server,
    outcomes: &[Outcome],
) -> String {
    let mut table = Table::new([
        scenario.name,
        "req/s ratio",
        "CPU efficiency",
        "p99 ratio",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "req/s",
        "CPU µs/req",
        "load busy",
        "errors",
    ]);
    let all_baselines: Vec<&Report> = outcomes
        .iter()
        .flat_map(|outcome| outcome.windows.iter().map(|window| &window.baseline))
        .collect();
    table.row(cells(
        scenario,
        &format!("{baseline} (baseline)"),
        ["1".into(), "1".into(), "1".into()],
        &all_baselines,
    ));
    let mut notes = Vec::new();
    for outcome in outcomes {
        let reports: Vec<&Report> = outcome.windows.iter().map(|w| &w.server).collect();
        let baselines: Vec<&Report> = outcome.windows.iter().map(|w| &w.baseline).collect();
        let is_limited = !scenario.spins && busy(&reports).max(busy(&baselines)) > MOST_BUSY;
        let rate = match outcome.rate {
            Some(rate) if !is_limited && !scenario.is_open() => interval(rate),
            _ => "–".into(),
        };
        if is_limited && !scenario.is_open() {
            notes.push(outcome.server.as_str());
        }
        let shown = |ratio: Option<Estimate>| ratio.map_or_else(|| "–".into(), interval);
        table.row(cells(
            scenario,
            &outcome.server,
            [rate, shown(outcome.efficiency), shown(outcome.p99)],
            &reports,
        ));
    }
    let mut text = format!("**{}**: {}\n\n{table}", scenario.name, scenario.about);
    if !notes.is_empty() {
        text += &format!(
            "\nNo ratio of requests per second for {}: the load generator was over {:.0} % busy, \
             and is what it would measure.\n",
            notes.join(", "),
            MOST_BUSY * 100.0
        );
    }
    if scenario.mode == Mode::StreamsBeside {
        text += &format!("\nStreamed: {}.\n", streamed(baseline, &all_baselines, outcomes));
    }
    let windows = outcomes.iter().flat_map(|outcome| &outcome.windows);
    let disturbed = windows.clone().filter(|window| window.is_disturbed).count();
    if disturbed > 0 {
        text += &format!(
            "\n{disturbed} of {} pairs of windows were disturbed: for over {:.0} % of the time \
             something else ran on the CPU of a server or of its load generator.\n",
            windows.count(),
            MOST_WAITING * 100.0
        );
    }
    text
}

/// The throughput of each server's other clients: a server that streams less can serve the measured
/// clients faster.
fn streamed(baseline: &Server, baselines: &[&Report], outcomes: &[Outcome]) -> String {
    let rate = |reports: &[&Report]| {
        let rates = reports.iter().map(|report| report.beside as f64 / report.seconds);
        median(rates).unwrap_or(0.0)
    };
    let of_outcome = |outcome: &Outcome| {
        let reports: Vec<&Report> = outcome.windows.iter().map(|w| &w.server).collect();
        format!("{} {:.0} MiB/s", outcome.server, rate(&reports))
    };
    let first = format!("{baseline} {:.0} MiB/s", rate(baselines));
    let all: Vec<String> = std::iter::once(first).chain(outcomes.iter().map(of_outcome)).collect();
    all.join(", ")
}

fn cells(
    scenario: &Scenario,
    name: &str,
    ratios: [String; 3],
    reports: &[&Report],
) -> [String; 11] {
    let figure = |digits: usize, value: fn(&Report, Cost) -> f64| {
        let values = reports.iter().map(|report| value(report, scenario.cost));
        median(values).map_or_else(|| "–".into(), |value| format!("{value:.digits$}"))
    };
    let [rate, efficiency, p99] = ratios;
    [
        name.to_owned(),
        rate,
        efficiency,
        p99,
        figure(0, |report, _| report.p50_us),
        figure(0, |report, _| report.p99_us),
        figure(0, |report, _| report.p999_us),
        figure(0, |report, _| report.rate),
        figure(2, |report, cost| price(report, cost) / 1000.0),
        figure(2, |report, _| report.busy),
        reports.iter().map(|report| report.errors + report.lost).sum::<u64>().to_string(),
    ]
}

fn busy(reports: &[&Report]) -> f64 {
    median(reports.iter().map(|report| report.busy)).unwrap_or(0.0)
}

fn interval(estimate: Estimate) -> String {
    let Estimate { median, low, high } = estimate;
    format!("{median:.2} [{low:.2}..{high:.2}]")
}
