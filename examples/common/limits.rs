//! The limits that the command line sets. Without its flag, a limit stays as the crate has it.

use std::time::Duration;

use lexopt::{Error, Parser, ValueExt as _};
use socketserver::{Limits, Server};

use super::seconds;

/// The lines of `--help`.
pub(crate) const HELP: &str = "
Limits, of which 0 turns one off:
  --max-connections N         connections open at a time, on all listeners together
                              [default: as many as the limit on open files allows]
  --max-per-address N         connections of one address on one listener [default: 0]
  --accept-rate N             connections that a listener accepts per second [default: 0]
  --idle SECONDS              how long a connection may move no byte [default: IDLE]
  --message-deadline SECONDS  how long a message may take from its first byte on, and
                              1 s more for each 500 bytes [default: 30]
  --max-memory BYTES          what the buffers of all connections hold together
                              [default: 268435456]

";

/// The flags of the limits.
const FLAGS: [&str; 6] =
    ["max-connections", "max-per-address", "accept-rate", "idle", "message-deadline", "max-memory"];

/// The limits of each listener, and those of the server if they are given: `None` turns one off.
#[derive(Default)]
pub(crate) struct LimitOptions {
    pub(crate) limits: Limits,
    max_connections: Option<Option<usize>>,
    max_memory: Option<Option<usize>>,
}

impl LimitOptions {
    /// The limits of an example whose connections may be idle for so many seconds; 0 is no limit.
    pub(crate) fn new(idle: u64) -> Self {
        let idle = unless_zero(Duration::from_secs(idle));
        LimitOptions { limits: Limits::default().idle_timeout(idle), ..LimitOptions::default() }
    }

    /// Whether this is the flag of a limit.
    pub(crate) fn has(flag: &str) -> bool {
        FLAGS.contains(&flag)
    }

    /// Reads the value of a flag.
    pub(crate) fn read(&mut self, flag: &str, parser: &mut Parser) -> Result<(), Error> {
        let value = parser.value()?;
        let limits = self.limits.clone();
        match flag {
            "max-connections" => self.max_connections = Some(unless_zero(value.parse()?)),
            "max-memory" => self.max_memory = Some(unless_zero(value.parse()?)),
            "max-per-address" => {
                self.limits = limits.max_per_address(unless_zero(value.parse()?));
            }
            "accept-rate" => self.limits = limits.accept_rate(unless_zero(value.parse()?)),
            "idle" => self.limits = limits.idle_timeout(unless_zero(value.parse_with(seconds)?)),
            _ => {
                self.limits = limits.message_deadline(unless_zero(value.parse_with(seconds)?));
            }
        }
        Ok(())
    }

    /// Sets the limits of the whole server.
    pub(crate) fn apply(&self, server: &mut Server) {
        if let Some(connections) = self.max_connections {
            server.max_connections(connections);
        }
        if let Some(bytes) = self.max_memory {
            server.max_memory(bytes);
        }
    }
}

/// A limit of 0 is off.
fn unless_zero<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}
