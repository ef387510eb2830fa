//! What an event loop holds between two turns, for a simulation to check.

use super::EventLoop;

/// How much an event loop holds between two turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoopState {
    pub(crate) connections: usize,
    /// Entries that have more to do, and notifications that wait.
    pub(crate) ready: usize,
    pub(crate) timers: usize,
    /// Slots that are not freed, although the turn is over.
    pub(crate) unfreed: usize,
}

impl EventLoop<'_> {
    pub(crate) fn state(&self) -> LoopState {
        LoopState {
            connections: self.connections(),
            ready: self.ready.len() + usize::from(self.resources.mailbox.has_notifications()),
            timers: self.timers.len(),
            unfreed: self.pending_removal.len(),
        }
    }
}
