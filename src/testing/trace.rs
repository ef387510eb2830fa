//! The trace of a simulated run: a hash of all that happens, and its text on request.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

/// How many lines of text are kept.
const LINES: usize = 400;

/// A trace.
#[derive(Debug, Default)]
pub(super) struct Trace {
    hash: u64,
    lines: Option<VecDeque<String>>,
}

impl Trace {
    /// A trace that keeps its last lines.
    pub(super) fn with_text() -> Self {
        Trace { hash: 0, lines: Some(VecDeque::new()) }
    }

    pub(super) fn add(&mut self, now: Duration, what: &str, which: usize, value: usize) {
        let mut hash = self.hash;
        let nanos = now.as_nanos() as u64;
        for part in [nanos, what.len() as u64, which as u64, value as u64] {
            hash = (hash ^ part).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        }
        self.hash = hash;
        if let Some(lines) = &mut self.lines {
            if lines.len() == LINES {
                lines.pop_front();
            }
            let micros = now.as_micros();
            lines.push_back(format!(
                "{:6}.{:06}  {what} {which}: {value}",
                micros / 1_000_000,
                micros % 1_000_000
            ));
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for line in self.lines.iter().flatten() {
            let _ = writeln!(text, "{line}");
        }
        text
    }
}
