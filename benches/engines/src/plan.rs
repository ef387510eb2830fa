//! The cells: which loads are made, in which setting, and which modes cannot take part.

use peers::endpoint::Transport;
use serde::Serialize;

/// The modes, in the order of every table.
pub(crate) const MODES: [&str; 6] =
    ["reactor", "offload", "inline", "threading", "pool", "forking"];

/// Threads of `pool`, in every cell.
pub(crate) const POOL: usize = 64;

/// Workers of `offload` where the handler blocks; elsewhere its default.
pub(crate) const BLOCKING_WORKERS: usize = 64;

/// How many children `forking` has at most by default, as in Python.
const CHILDREN: usize = 40;

/// Descriptors that a process has beside those of its connections.
const OTHER_DESCRIPTORS: usize = 100;

/// The quick clients beside a crowd.
const QUICK: usize = 16;

/// What kind of load a cell is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Clients stay connected and send when they have their answer.
    Closed,
    /// Clients stay connected and send when a message is due.
    Open { rate: u64 },
    /// Clients connect, ask once and go.
    Churn,
    /// Quick clients, measured, beside slow ones.
    Slow { beside: usize },
    /// As `Closed`, and the handler blocks.
    Blocking { microseconds: u64 },
    /// Clients connect, ask once and stay: memory and threads.
    Idle,
    /// System calls, counted.
    Calls,
}

/// One load, made on each mode that can take it.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Cell {
    pub(crate) kind: Kind,
    pub(crate) transport: Transport,
    pub(crate) clients: usize,
    /// Messages under way per client.
    pub(crate) depth: usize,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Setting {
    /// Whether it works at all.
    Smoke,
    /// The default.
    Quick,
    /// Everything.
    Full,
}

impl Setting {
    /// Rounds, and the length of a window in seconds.
    pub(crate) fn effort(self) -> (usize, f64) {
        match self {
            Setting::Smoke => (1, 0.05),
            Setting::Quick => (3, 0.3),
            Setting::Full => (9, 0.5),
        }
    }

    /// What is measured.
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
    /// How often it is measured: memory and counted calls hardly vary.
    pub(crate) fn rounds(&self, rounds: usize) -> usize {
        match self.kind {
            Kind::Idle | Kind::Calls => 1,
            _ => rounds,
        }
    }

    /// What the tables call it.
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

    /// Connections that are there all the time.
    pub(crate) fn connections(&self) -> usize {
        match (self.transport, self.kind) {
            (Transport::Udp, _) | (_, Kind::Churn) => 0,
            (_, Kind::Slow { beside }) => self.clients + beside,
            _ => self.clients,
        }
    }

    /// Why a mode cannot take part, if so.
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
                Some(format!("`forking` has {CHILDREN} children at most, unless told otherwise"))
            }
            "pool" if connections > POOL => {
                Some(format!("`pool` has {POOL} threads here, each taken by a connection"))
            }
            _ => None,
        }
    }
}

/// A whole number, with commas.
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
    fn numbers_are_grouped() {
        assert_eq!(thousands(999.0), "999");
        assert_eq!(thousands(1_234_567.4), "1,234,567");
    }

    #[test]
    fn no_cell_is_measured_twice_and_each_has_a_mode() {
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
