//! Figures of all rounds: of each cell, of each mode.

use std::collections::BTreeMap;

use peers::bench::stats::{Estimate, estimate};
use peers::load::Report;
use serde::Serialize;

use crate::measure::Sample;
use crate::plan::{Cell, Kind};

/// What is told of a mode in a cell.
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

/// Over this share of its CPU, the load generator is what was measured.
const MOST_BUSY: f64 = 0.95;

/// One mode in one cell.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) mode: &'static str,
    /// Why there is nothing.
    pub(crate) absent: Option<String>,
    pub(crate) figures: BTreeMap<Figure, Estimate>,
    /// Wrong bytes, failed connections, lost datagrams.
    pub(crate) errors: u64,
    pub(crate) samples: Vec<Sample>,
}

/// One cell, all modes.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) cell: Cell,
    pub(crate) outcomes: Vec<Outcome>,
}

impl Outcome {
    /// One that may yet be measured.
    pub(crate) fn new(mode: &'static str, absent: Option<String>) -> Self {
        Self { mode, absent, figures: BTreeMap::new(), errors: 0, samples: Vec::new() }
    }

    /// Makes the figures of the samples.
    pub(crate) fn conclude(&mut self, kind: Kind) {
        let reports = |value: fn(&Report) -> f64| -> Vec<f64> {
            let reports = self.samples.iter().filter_map(|sample| match sample {
                Sample::Load(report) => Some(value(report)),
                _ => None,
            });
            reports.collect()
        };
        let others = |value: fn(&Sample) -> Option<f64>| -> Vec<f64> {
            self.samples.iter().filter_map(value).collect()
        };
        let found = [
            (Figure::RequestsPerSecond, reports(|report| report.rate)),
            (Figure::P50Us, reports(|report| report.p50_us)),
            (Figure::P99Us, reports(|report| report.p99_us)),
            (Figure::P999Us, reports(|report| report.p999_us)),
            (Figure::LoadBusy, reports(|report| report.busy)),
            (
                Figure::ServerCpuUsPerRequest,
                reports(|report| per_request(report, Some(report.server_cpu_ns)) / 1000.0),
            ),
            (
                Figure::SwitchesPerRequest,
                reports(|report| per_request(report, report.server_switches)),
            ),
            (
                Figure::SystemCallsPerRequest,
                others(|sample| match sample {
                    Sample::Calls(calls) => Some(*calls),
                    _ => None,
                }),
            ),
            (
                Figure::KibPerConnection,
                others(|sample| match sample {
                    Sample::Idle { kib, .. } => Some(*kib),
                    _ => None,
                }),
            ),
            (
                Figure::Threads,
                others(|sample| match sample {
                    Sample::Idle { threads, .. } => Some(*threads as f64),
                    _ => None,
                }),
            ),
        ];
        self.figures = found
            .into_iter()
            .filter_map(|(figure, values)| Some((figure, estimate(&values)?)))
            .collect();
        if let Kind::Slow { .. } = kind {
            // The crowd's bytes are no requests, and cost as much.
            self.figures.remove(&Figure::SwitchesPerRequest);
        }
        let reports = self.samples.iter().filter_map(|sample| match sample {
            Sample::Load(report) => Some(report.errors + report.lost),
            _ => None,
        });
        self.errors = reports.sum();
    }

    pub(crate) fn median(&self, figure: Figure) -> Option<f64> {
        self.figures.get(&figure).map(|estimate| estimate.median)
    }

    /// Whether it was the load generator that could do no more.
    pub(crate) fn is_load_limited(&self) -> bool {
        self.median(Figure::LoadBusy).is_some_and(|busy| busy > MOST_BUSY)
    }
}

/// Over all messages that were answered in the window.
fn per_request(report: &Report, count: Option<u64>) -> f64 {
    let requests = (report.requests + report.beside).max(1) as f64;
    count.map_or(f64::NAN, |count| count as f64 / requests)
}
