//! The loads by name.

use std::str::FromStr;

use anyhow::{Result, anyhow};

use super::name_of;
use crate::endpoint::Transport;
use crate::load::Mode;

/// A load and the meaning of its figures.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// The heading of its table.
    pub(super) about: &'static str,
    pub(super) transport: Transport,
    pub(super) mode: Mode,
    pub(super) clients: usize,
    /// The number of clients that are not measured.
    pub(super) beside: usize,
    pub(super) size: usize,
    pub(super) depth: usize,
    /// Messages per second, in an open loop.
    pub(super) rate: u64,
    /// Whether the clients poll instead of sleeping.
    pub(super) spins: bool,
    pub(super) cost: Cost,
}

/// The CPU time that counts as the cost of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cost {
    /// The server's, per message that it answered.
    Server,
    /// That of both sides: with large messages on loopback, either side may do the copying.
    BothSides,
    /// None: messages of such different sizes have no common cost.
    None,
}

/// The default values of a scenario.
const TCP: Scenario = Scenario {
    name: "",
    about: "",
    transport: Transport::Tcp,
    mode: Mode::Echo,
    clients: 64,
    beside: 0,
    size: 64,
    depth: 1,
    rate: 1,
    spins: false,
    cost: Cost::Server,
};

/// All scenarios.
pub(super) const SCENARIOS: [Scenario; 18] = [
    Scenario {
        name: "tcp1",
        about: "1 TCP connection, 64 B, one request at a time",
        clients: 1,
        ..TCP
    },
    Scenario {
        name: "spin1",
        about: "1 TCP connection, 64 B, one request at a time, from a client that looks again and \
                again instead of sleeping: \"load busy\" is 1 here, and no limit",
        clients: 1,
        spins: true,
        ..TCP
    },
    Scenario {
        name: "tcp16",
        about: "16 TCP connections, 64 B, one request at a time each: `slow` without its crowd",
        clients: 16,
        ..TCP
    },
    Scenario {
        name: "tcp64",
        about: "64 TCP connections, 64 B, one request at a time each",
        ..TCP
    },
    Scenario {
        name: "tcp1000",
        about: "1,000 TCP connections, 64 B, one request at a time each",
        clients: 1000,
        ..TCP
    },
    Scenario {
        name: "pipe16",
        about: "64 TCP connections, 64 B, 16 requests under way each",
        depth: 16,
        ..TCP
    },
    Scenario {
        name: "16k",
        about: "64 TCP connections, 16 KiB, one request at a time each",
        size: 16 << 10,
        ..TCP
    },
    Scenario {
        name: "bulk",
        about: "8 TCP connections, 1 MiB, 4 requests under way each",
        clients: 8,
        size: 1 << 20,
        depth: 4,
        cost: Cost::BothSides,
        ..TCP
    },
    Scenario {
        name: "churn",
        about: "32 TCP clients that connect, send 64 B, receive, close; a request is a connection",
        mode: Mode::Churn,
        clients: 32,
        ..TCP
    },
    Scenario {
        name: "slow",
        about: "16 quick TCP connections, 64 B, beside 1,000 that send one byte every 100 ms",
        mode: Mode::Slow,
        clients: 16,
        beside: 1000,
        ..TCP
    },
    Scenario {
        name: "streams",
        about: "8,000 requests/s over 16 TCP connections, 64 B, latency from when each was due, beside \
                3 connections that stream 1 MiB messages from a process of their own",
        mode: Mode::StreamsBeside,
        rate: 8_000,
        clients: 16,
        beside: 3,
        cost: Cost::None,
        ..TCP
    },
    Scenario {
        name: "open20k",
        about: "20,000 requests/s over 64 TCP connections, 64 B; latency from when each was due",
        mode: Mode::Open,
        rate: 20_000,
        ..TCP
    },
    Scenario {
        name: "unix1",
        about: "1 Unix connection, 64 B, one request at a time",
        transport: Transport::Unix,
        clients: 1,
        ..TCP
    },
    Scenario {
        name: "unix64",
        about: "64 Unix connections, 64 B, one request at a time each",
        transport: Transport::Unix,
        ..TCP
    },
    Scenario {
        name: "unixpipe16",
        about: "64 Unix connections, 64 B, 16 requests under way each",
        transport: Transport::Unix,
        depth: 16,
        ..TCP
    },
    Scenario {
        name: "unixbulk",
        about: "8 Unix connections, 1 MiB, 4 requests under way each",
        transport: Transport::Unix,
        clients: 8,
        size: 1 << 20,
        depth: 4,
        cost: Cost::BothSides,
        ..TCP
    },
    Scenario {
        name: "udp1",
        about: "1 UDP client, 64 B, one datagram at a time",
        transport: Transport::Udp,
        clients: 1,
        ..TCP
    },
    Scenario {
        name: "udp16",
        about: "8 UDP clients, 64 B, 16 datagrams under way each",
        transport: Transport::Udp,
        clients: 8,
        depth: 16,
        ..TCP
    },
];

impl Scenario {
    /// Whether the rate is given, and not a result.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.mode, Mode::Open | Mode::StreamsBeside)
    }

    /// The number of connections that stay open, each with its thread or process.
    pub(super) fn connections(&self) -> usize {
        match (self.transport, self.mode) {
            (Transport::Udp, _) | (_, Mode::Churn) => 0,
            _ => self.clients + self.beside,
        }
    }

    /// Whether all messages are lines, for servers of lines.
    pub(super) fn sends_lines(&self) -> bool {
        self.transport != Transport::Udp
            && self.size <= TCP.size
            && !matches!(self.mode, Mode::Slow | Mode::StreamsBeside)
    }

    /// The arguments of the load generator.
    pub(super) fn arguments(&self) -> Vec<String> {
        let options = [
            ("--mode", name_of(&self.mode)),
            ("--conns", self.clients.to_string()),
            ("--beside", self.beside.to_string()),
            ("--size", self.size.to_string()),
            ("--depth", self.depth.to_string()),
            ("--rate", self.rate.to_string()),
        ];
        let options = options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        let flags = [(self.spins, "--spin"), (self.sends_lines(), "--lines")];
        let flags = flags.into_iter().filter(|(is_set, _)| *is_set);
        options.chain(flags.map(|(_, flag)| flag.to_owned())).collect()
    }
}

impl FromStr for Scenario {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
        found.copied().ok_or_else(|| {
            let names = SCENARIOS.map(|scenario| scenario.name).join(", ");
            anyhow!("no scenario {name:?}; there are {names}")
        })
    }
}
