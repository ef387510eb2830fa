//! The figures of all rounds, per cell and mode.

use std::collections::BTreeMap;

use peers::bench::stats::{Estimate, estimate};
use peers::load::Report;
use serde::Serialize;

use crate::measure::Sample;
use crate::plan::{Cell, Kind};

/// A figure of a mode in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    RequestsPerSecond,
    P50Us,
    P99Us,
    P999Us,
    ServerCpuUsPerRequest,
    SwitchesPerRequest,
    SystemCallsPerRequest,
    KibPerConnection,
    Threads,
    LoadBusy,
}

impl Figure {
    const ALL: [Figure; 10] = [
        Figure::RequestsPerSecond,
        Figure::P50Us,
        Figure::P99Us,
        Figure::P999Us,
        Figure::ServerCpuUsPerRequest,
        Figure::SwitchesPerRequest,
        Figure::SystemCallsPerRequest,
        Figure::KibPerConnection,
        Figure::Threads,
        Figure::LoadBusy,
    ];

    /// The value of this figure in one measurement.
    fn of(self, sample: &Sample, cell: &Cell) -> Option<f64> {
        match (self, sample) {
            (Figure::SystemCallsPerRequest, Sample::Calls(calls)) => Some(*calls),
            (Figure::KibPerConnection, Sample::Idle { kib, .. }) => Some(*kib),
            (Figure::Threads, Sample::Idle { threads, .. }) => Some(*threads as f64),
            (_, Sample::Load(report)) => self.of_load(report, cell),
            _ => None,
        }
    }

    fn of_load(self, report: &Report, cell: &Cell) -> Option<f64> {
        match self {
            Figure::RequestsPerSecond => Some(report.rate),
            Figure::P50Us => Some(report.p50_us),
            Figure::P99Us => Some(report.p99_us),
            Figure::P999Us => Some(report.p999_us),
            Figure::ServerCpuUsPerRequest => {
                Some(per_request(report, report.server_cpu_ns) / 1000.0)
            }
            // The bytes of the slow clients do not count as requests, but cost as much.
            Figure::SwitchesPerRequest if matches!(cell.kind, Kind::Slow { .. }) => None,
            Figure::SwitchesPerRequest => {
                report.server_switches.map(|switches| per_request(report, switches))
            }
            Figure::KibPerConnection => {
                report.server_grown_kib.map(|kib| kib as f64 / cell.clients as f64)
            }
            Figure::LoadBusy => Some(report.busy),
            Figure::SystemCallsPerRequest | Figure::Threads => None,
        }
    }
}

/// Above this share of its CPU, the load generator limits the result.
const MOST_BUSY: f64 = 0.95;

/// One mode in one cell.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) mode: &'static str,
    /// Why there is no result.
    pub(crate) absent: Option<String>,
    pub(crate) figures: BTreeMap<Figure, Estimate>,
    /// The number of wrong bytes, failed connections and lost datagrams.
    pub(crate) errors: u64,
    pub(crate) samples: Vec<Sample>,
}

/// The results of all modes in one cell.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) cell: Cell,
    pub(crate) outcomes: Vec<Outcome>,
}

impl Outcome {
    /// A mode that takes part, without results so far.
    pub(crate) fn new(mode: &'static str, absent: Option<String>) -> Self {
        Self { mode, absent, figures: BTreeMap::new(), errors: 0, samples: Vec::new() }
    }

    /// Computes the figures from the samples.
    pub(crate) fn conclude(&mut self, cell: &Cell) {
        self.figures = Figure::ALL
            .into_iter()
            .filter_map(|figure| {
                let values = self.samples.iter().filter_map(|sample| figure.of(sample, cell));
                Some((figure, estimate(&values.collect::<Vec<_>>())?))
            })
            .collect();
        let reports = self.samples.iter().filter_map(|sample| match sample {
            Sample::Load(report) => Some(report.errors + report.lost),
            _ => None,
        });
        self.errors = reports.sum();
    }

    /// This mode's figure divided by the other's, for each round.
    pub(crate) fn ratio_to(
        &self,
        other: &Outcome,
        figure: Figure,
        cell: &Cell,
    ) -> Option<Estimate> {
        let rounds = self.samples.iter().zip(&other.samples);
        let ratios = rounds
            .filter_map(|(own, others)| Some(figure.of(own, cell)? / figure.of(others, cell)?));
        estimate(&ratios.collect::<Vec<_>>())
    }

    pub(crate) fn median(&self, figure: Figure) -> Option<f64> {
        self.figures.get(&figure).map(|estimate| estimate.median)
    }

    /// Whether the load generator limited the result.
    pub(crate) fn is_load_limited(&self) -> bool {
        self.median(Figure::LoadBusy).is_some_and(|busy| busy > MOST_BUSY)
    }
}

/// Per message answered in the window.
fn per_request(report: &Report, count: u64) -> f64 {
    count as f64 / (report.requests + report.beside).max(1) as f64
}
