//! The verdict: whether what a server holds at rest has grown.

use crate::site::{Sample, Site, lock};

/// How much a figure may grow over the time that is judged.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    /// A part of its mean.
    part: f64,
    /// Or so much, if that is more.
    least: f64,
}

/// A figure of the samples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) of: fn(&Sample) -> f64,
    allowance: Allowance,
}

pub(crate) const FIGURES: [Figure; 5] = [
    Figure {
        name: "memory, MiB",
        of: |sample| sample.memory,
        // Once, the buffers for datagrams become resident, 4 MiB: malloc(3) maps them at first, and takes
        // them from its own memory when a new server allocates them again.
        allowance: Allowance { part: 0.02, least: 6.0 },
    },
    Figure {
        name: "heap in use, KiB",
        of: |sample| sample.heap,
        allowance: Allowance { part: 0.02, least: 300.0 }, // a thread that is kept has a buffer
    },
    Figure {
        name: "descriptors",
        of: |sample| sample.descriptors,
        allowance: Allowance { part: 0.0, least: 4.0 }, // a thread that is kept has one
    },
    Figure {
        name: "threads",
        of: |sample| sample.threads,
        allowance: Allowance { part: 0.0, least: 4.0 }, // some are kept for a while
    },
    // Not judged here: at rest it must be 0.
    Figure {
        name: "open connections",
        of: |sample| sample.open,
        allowance: Allowance { part: 0.0, least: 0.0 },
    },
];

/// The growth of a figure over the second half of the samples, by the line of least squares.
fn growth(samples: &[Sample], of: fn(&Sample) -> f64) -> (f64, f64) {
    let half = &samples[samples.len() / 2..];
    let count = half.len() as f64;
    let mean = |value: &dyn Fn(&Sample) -> f64| half.iter().map(value).sum::<f64>() / count;
    let (at, value) = (mean(&|sample| sample.at), mean(&of));
    let together = mean(&|sample| (sample.at - at) * (of(sample) - value));
    let spread = mean(&|sample| (sample.at - at).powi(2));
    let time = half.last().map_or(0.0, |last| last.at) - half.first().map_or(0.0, |first| first.at);
    (if spread > 0.0 { together / spread * time } else { 0.0 }, value)
}

/// Prints a row for a server; returns what is wrong with it.
pub(crate) fn judge(site: &Site) -> Vec<String> {
    let rested = lock(&site.rested);
    let mut faults = Vec::new();
    let mut row = format!("{:<10}", site.mode);
    for figure in &FIGURES[..4] {
        let (growth, mean) = growth(&rested, figure.of);
        let allowed = figure.allowance.least.max(figure.allowance.part * mean);
        let first = rested.first().map_or(0.0, figure.of);
        let last = rested.last().map_or(0.0, figure.of);
        row += &format!("  {first:>6.1} -> {last:>6.1} ({growth:>+7.2})");
        if growth > allowed {
            faults.push(format!(
                "{}: {} at rest grows by {growth:.2} in the second half, {allowed:.2} is allowed",
                site.mode, figure.name
            ));
        }
    }
    println!("{row}  {:>5.1} s", lock(&site.longest_stop).as_secs_f64());
    if rested.len() < 4 {
        faults.push(format!("{}: only {} samples at rest", site.mode, rested.len()));
    }
    faults
}

pub(crate) fn print_header() {
    println!(
        "{:<10}  {:<27}  {:<27}  {:<27}  {:<27}  longest",
        "at rest", FIGURES[0].name, FIGURES[1].name, FIGURES[2].name, FIGURES[3].name
    );
    println!("{:<10}  {:<114}  stop", "", "first -> last (growth)");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(memory: impl Fn(f64) -> f64) -> Vec<Sample> {
        let sample = |at| Sample { at, memory: memory(at), ..Sample::default() };
        (0..20).map(f64::from).map(sample).collect()
    }

    #[test]
    fn a_figure_that_rises_first_and_then_stays_does_not_grow() {
        let (growth, mean) = growth(&samples(|at| at.min(8.0)), |sample| sample.memory);
        assert!(growth.abs() < 1e-9 && (mean - 8.0).abs() < 1e-9);
    }

    #[test]
    fn a_figure_that_rises_to_the_end_grows() {
        let (growth, _) = growth(&samples(|at| 5.0 + 2.0 * at), |sample| sample.memory);
        assert!((growth - 18.0).abs() < 1e-9);
    }
}
