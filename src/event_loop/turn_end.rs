//! The end of a turn and of a run: wakes workers and calls hooks.

use std::time::Instant;

use super::EventLoop;
use super::source::{ListenerParts, PostAction};

impl EventLoop<'_> {
    /// Ends a turn: wakes workers for the jobs of this turn, and calls the hooks.
    #[inline]
    pub(super) fn end_turn(&mut self) {
        // This may queue jobs, for which workers are woken below.
        if self.cx.run.memory.is_full() {
            self.free_memory();
        }
        if !self.cx.run.starved.is_empty() {
            self.relieve_starved();
        }
        if self.wants_turn_end {
            let mut next_turn: Option<Instant> = None;
            self.for_each_listener(|source, cx| {
                if let Some(ListenerParts { dispatcher, hooks }) = source.parts() {
                    dispatcher.on_turn_end();
                    hooks.on_turn_end(cx);
                    next_turn = next_turn.into_iter().chain(hooks.next_turn(cx)).min();
                }
                PostAction::Wait
            });
            self.next_turn = next_turn;
        }
        if !self.pending_removal.is_empty() {
            self.free_slots();
        }
        self.resources.published.add(&mut self.cx.scratch.tally);
    }

    /// Calls the hooks because the run ends without a request within its time limit.
    pub(crate) fn no_request(&mut self) {
        self.for_each_listener(|source, cx| {
            if let Some(ListenerParts { hooks, .. }) = source.parts() {
                hooks.no_request(cx);
            }
            PostAction::Wait
        });
    }
}
