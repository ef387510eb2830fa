//! What comes after the calls of a turn or of a run: workers are woken, hooks are called.

use std::time::Instant;

use super::EventLoop;
use super::source::{ListenerParts, PostAction};

impl EventLoop<'_> {
    /// What was put off to the end of a turn: workers are called for what was lent in it.
    #[inline]
    pub(super) fn end_turn(&mut self) {
        if self.wants_turn_end {
            let mut next_turn: Option<Instant> = None;
            self.tell_listeners(|source, cx| {
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

    /// The run ends because there was no request in time: tells the hooks.
    pub(crate) fn no_request(&mut self) {
        self.tell_listeners(|source, cx| {
            if let Some(ListenerParts { hooks, .. }) = source.parts() {
                hooks.no_request(cx);
            }
            PostAction::Wait
        });
    }
}
