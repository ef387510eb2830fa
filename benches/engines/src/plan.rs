//! The cells: which loads are measured, in which setting, and which modes cannot take part.

use peers::endpoint::Transport;
use serde::Serialize;

/// The modes, in the order of every table.
pub(crate) const MODES: [&str; 6] =
    ["reactor", "offload", "inline", "threading", "pool", "forking"];

/// The number of threads of `pool` in every cell.
pub(crate) const POOL: usize = 64;

/// The number of workers of `offload` if the handler blocks; otherwise it is the default.
pub(crate) const BLOCKING_WORKERS: usize = 64;

/// The default limit of children of `forking`, as in Python.
const CHILDREN: usize = 40;

/// The number of descriptors of a process that do not belong to connections.
const OTHER_DESCRIPTORS: usize = 100;

/// The number of measured clients beside slow ones.
const QUICK: usize = 16;

/// The kind of load of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Clients stay connected and send the next message when an answer arrives.
    Closed,
    /// Clients stay connected and send at a fixed rate.
    Open { rate: u64 },
    /// Clients connect, send one request and close.
    Churn,
    /// Measured clients beside slow ones.
    Slow { beside: usize },
    /// The same as `Closed`, with a handler that blocks.
    Blocking { microseconds: u64 },
    /// Clients connect, send one request and stay connected: memory and threads.
    Idle,
    /// Counted system calls.
    Calls,
}

/// One load, which is measured with each mode that supports it.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Cell {
    pub(crate) kind: Kind,
    pub(crate) transport: Transport,
    pub(crate) clients: usize,
    /// Messages in flight per client.
    pub(crate) depth: usize,
}

/// The extent of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Setting {
    /// A few seconds, to check that it works.
    Smoke,
    /// The default.
    Quick,
    /// Everything.
    Full,
}

impl Setting {
    /// The number of rounds, and the length of a window in seconds.
    pub(crate) fn effort(self) -> (usize, f64) {
        match self {
            Setting::Smoke => (1, 0.05),
            Setting::Quick => (3, 0.3),
            Setting::Full => (9, 0.5),
        }
    }

    /// The measured cells.
    pub(crate) fn cells(self) -> Vec<Cell> {
        use Transport::{Tcp, Udp, Unix};
        let on = |transport| move |kind, clients, depth| Cell { kind, transport, clients, depth };
        let (tcp, unix, udp) = (on(Tcp), on(Unix), on(Udp));
        let crowds: &[usize] = match self {
            Setting::Smoke => &[1, 16],
            Setting::Quick => &[1, 16, 64, 256, 1000],
            Setting::Full => &[1, 16, 64, 256, 1000, 4000],
        };
        let slow = |beside| tcp(Kind::Slow { beside }, QUICK, 1);
        let blocking = |clients| tcp(Kind::Blocking { microseconds: 1000 }, clients, 1);
        let open = |rate| tcp(Kind::Open { rate }, 64, 1);
        let closed = crowds.iter().map(|clients| tcp(Kind::Closed, *clients, 1));
        let idle = crowds.iter().skip(1).map(|clients| tcp(Kind::Idle, *clients, 1));
        let mut cells: Vec<Cell> = closed.collect();
        match self {
            Setting::Smoke => cells.extend([
                unix(Kind::Closed, 16, 1),
                udp(Kind::Closed, 1, 8),
                tcp(Kind::Churn, 8, 1),
                slow(20),
                blocking(16),
            ]),
            Setting::Quick => cells.extend([
                tcp(Kind::Closed, 16, 16),
                tcp(Kind::Closed, 64, 16),
                unix(Kind::Closed, 64, 1),
                udp(Kind::Closed, 8, 16),
                tcp(Kind::Churn, 32, 1),
                open(20_000),
                slow(1000),
                blocking(16),
                blocking(64),
                blocking(1000),
            ]),
            Setting::Full => {
                cells.extend(crowds.iter().map(|clients| tcp(Kind::Closed, *clients, 16)));
                cells.extend(crowds.iter().map(|clients| unix(Kind::Closed, *clients, 1)));
                cells.extend(crowds.iter().map(|clients| unix(Kind::Closed, *clients, 16)));
                cells.extend([
                    udp(Kind::Closed, 1, 1),
                    udp(Kind::Closed, 8, 16),
                    udp(Kind::Closed, 64, 1),
                    tcp(Kind::Churn, 1, 1),
                    tcp(Kind::Churn, 32, 1),
                    unix(Kind::Churn, 32, 1),
                    open(2_000),
                    open(20_000),
                    open(50_000),
                    slow(20),
                    slow(1000),
                    blocking(1),
                    blocking(16),
                    blocking(64),
                    blocking(1000),
                ]);
            }
        }
        cells.extend(idle);
        cells.extend([tcp(Kind::Calls, 1, 1), tcp(Kind::Calls, 16, 1)]);
        cells
    }
}

impl Cell {
    /// The number of rounds: memory and counted calls hardly vary.
    pub(crate) fn rounds(&self, rounds: usize) -> usize {
        match self.kind {
            Kind::Idle | Kind::Calls => 1,
            _ => rounds,
        }
    }

    /// Its name in the tables.
    pub(crate) fn name(&self) -> String {
        let clients = thousands(self.clients as f64);
        let transport = match self.transport {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
            Transport::Unix => "Unix",
        };
        let connections = match (self.transport, self.clients) {
            (Transport::Udp, 1) => format!("{transport}, 1 client"),
            (Transport::Udp, _) => format!("{transport}, {clients} clients"),
            (_, 1) => format!("{transport}, 1 connection"),
            _ => format!("{transport}, {clients} connections"),
        };
        match self.kind {
            Kind::Closed if self.depth == 1 => connections,
            Kind::Closed => format!("{connections}, {} deep", self.depth),
            Kind::Open { rate } => {
                format!("{connections}, {} requests/s offered", thousands(rate as f64))
            }
            Kind::Churn => format!("{transport}, short-lived, {clients} at a time"),
            Kind::Slow { beside } => {
                format!("{transport}, {clients} quick beside {} slow", thousands(beside as f64))
            }
            Kind::Blocking { microseconds } => {
                format!("{connections}, handler blocks {} ms", microseconds as f64 / 1000.0)
            }
            Kind::Idle => format!("{clients} idle connections"),
            Kind::Calls => connections,
        }
    }

    /// The number of connections that are open all the time.
    pub(crate) fn connections(&self) -> usize {
        match (self.transport, self.kind) {
            (Transport::Udp, _) | (_, Kind::Churn) => 0,
            (_, Kind::Slow { beside }) => self.clients + beside,
            _ => self.clients,
        }
    }

    /// The reason why a mode cannot take part, if there is one.
    pub(crate) fn refuses(&self, mode: &str, descriptors: u64) -> Option<String> {
        let connections = self.connections();
        if connections + OTHER_DESCRIPTORS > descriptors as usize {
            return Some(format!("a process may have {descriptors} descriptors here"));
        }
        match mode {
            "inline" if connections > 1 => {
                Some("`inline` serves one connection to its end before the next".into())
            }
            "forking" if connections > CHILDREN => {
                Some(format!("`forking` has at most {CHILDREN} children by default"))
            }
            "pool" if connections > POOL => {
                Some(format!("`pool` has {POOL} threads here, each taken by a connection"))
            }
            _ => None,
        }
    }
}

/// A whole number with commas between groups of three digits.
pub(crate) fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated_by_commas() {
        assert_eq!(thousands(999.0), "999");
        assert_eq!(thousands(1_234_567.4), "1,234,567");
    }

    #[test]
    fn every_cell_is_unique_and_has_a_mode_that_supports_it() {
        for setting in [Setting::Smoke, Setting::Quick, Setting::Full] {
            let cells = setting.cells();
            let names: std::collections::BTreeSet<_> =
                cells.iter().map(|cell| (cell.name(), format!("{:?}", cell.kind))).collect();
            assert_eq!(names.len(), cells.len());
            for cell in cells {
                assert!(MODES.iter().any(|mode| cell.refuses(mode, 20_000).is_none()));
            }
        }
    }
}
