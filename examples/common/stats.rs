//! The counters of a server on stderr: one line of JSON per period, with those that have moved.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use socketserver::{Counters, Error, Hooks, Server, ShutdownHandle, handler_fn};

use super::print_line;

/// Prints the counters of its server when they are due.
///
/// These are the hooks of a service without a listener: the event loop calls them under every mode.
/// A thread of its own would not do, because a process with threads cannot fork.
#[derive(Clone)]
pub(crate) struct Statistics {
    every: Duration,
    due: Option<Instant>,
    server: ShutdownHandle,
    printed: Arc<Mutex<Counters>>,
}

impl Statistics {
    /// Adds the service to a server.
    pub(crate) fn add(server: &mut Server, every: Duration) -> Result<Self, Error> {
        let statistics = Statistics {
            every,
            due: Instant::now().checked_add(every),
            server: server.shutdown_handle(),
            printed: Arc::default(),
        };
        let service = Server::without_listener()?.hooks(statistics.clone());
        server.add(service.service(|_| handler_fn(|_message, _cx| Ok(())))?)?;
        Ok(statistics)
    }

    /// Prints the counters that have moved since the last line.
    pub(crate) fn print(&self) {
        let counters = self.server.counters();
        let mut printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = String::new();
        for (counter, before) in counters.iter().zip(printed.iter()) {
            if counter.value != before.value {
                let comma = if line.is_empty() { "" } else { "," };
                let _ = write!(line, "{comma}\"{}\":{}", counter.name, counter.value);
            }
        }
        *printed = counters;
        print_line(format_args!("{{{line}}}"));
    }
}

impl Hooks for Statistics {
    fn next_action(&mut self) -> Option<Instant> {
        self.due
    }

    fn service_actions(&mut self) {
        self.print();
        self.due = Instant::now().checked_add(self.every);
    }
}
