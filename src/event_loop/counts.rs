//! How many connections and requests an event loop has.

use super::EventLoop;
use super::entry::Entry;
use super::source::{Dispatcher, ListenerParts};
use crate::server_state::StopOutcome;

impl EventLoop<'_> {
    /// How many connections are in the slab.
    pub(crate) fn connections(&self) -> usize {
        self.slab.len() - self.listeners.len() - self.pending_removal.len()
    }

    /// How many connections in the slab are requests: all except those that linger after a blocking
    /// request.
    pub(crate) fn requests(&self) -> usize {
        let is_request = |entry: &Entry<'_>| {
            !entry.removed && entry.parent != entry.token && entry.source.is_request()
        };
        self.slab.iter().filter(|(_, entry)| is_request(entry)).count()
    }

    /// How many requests are served outside of the slab.
    pub(crate) fn in_flight(&mut self) -> usize {
        self.sum_of_dispatchers(|dispatcher| dispatcher.in_flight())
    }

    /// How many requests were idle when the server began to stop, and have ended.
    pub(crate) fn ended_idle(&mut self) -> usize {
        self.cx.run.ended_idle + self.sum_of_dispatchers(|dispatcher| dispatcher.ended_idle())
    }

    /// How many requests were being served on this thread, outside of the slab, when the server
    /// stopped, and have this outcome.
    pub(crate) fn stopped_with(&mut self, outcome: StopOutcome) -> usize {
        self.sum_of_dispatchers(|dispatcher| {
            usize::from(dispatcher.stop_outcome() == Some(outcome))
        })
    }

    fn sum_of_dispatchers(&mut self, number: impl Fn(&dyn Dispatcher) -> usize) -> usize {
        let mut sum = 0;
        for token in &self.listeners {
            if let Some(ListenerParts { dispatcher, .. }) = self.slab[token.slot()].source.parts() {
                sum += number(dispatcher);
            }
        }
        sum
    }

    /// How many datagrams wait to be sent: see [`EventSource::undelivered`](super::EventSource::undelivered).
    pub(crate) fn undelivered(&self) -> usize {
        self.listeners.iter().map(|token| self.slab[token.slot()].source.undelivered()).sum()
    }

    /// How many jobs of this run are with workers, for requests that are not in the slab.
    pub(crate) fn jobs_with_workers(&mut self) -> usize {
        self.sum_of_dispatchers(|dispatcher| dispatcher.jobs_with_workers())
    }
}
