//! One listener or connection in the slab of the event loop.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::time::Instant;

use slab::Slab;

use super::EventLoop;
use super::source::{EventSource, Readiness};
use crate::token::{MAX_SLOTS, Token};

/// One listener or connection: small and uniform, so that a walk over many is cheap.
pub(super) struct Entry<'a> {
    pub(super) token: Token,
    /// The listener it came from; a listener's own token.
    pub(super) parent: Token,
    pub(super) readiness: Readiness,
    pub(super) descriptor: RawFd,
    /// It stands in the ready list.
    pub(super) listed: bool,
    /// It is over; its slot is free after this batch of events.
    pub(super) removed: bool,
    /// Its deadline in the timers.
    pub(super) armed: Option<Instant>,
    pub(super) source: Box<dyn EventSource + 'a>,
}

impl Entry<'_> {
    /// Puts it into the ready list, once.
    #[inline]
    pub(super) fn line_up(&mut self, ready: &mut VecDeque<Token>) {
        if !std::mem::replace(&mut self.listed, true) {
            ready.push_back(self.token);
        }
    }
}

/// Whether an entry is called at once; who moves much, or could have gone on already, is called from
/// the ready list.
#[inline]
pub(super) fn may_run_now(entry: &mut Entry<'_>, ready: &mut VecDeque<Token>) -> bool {
    if entry.listed {
        return false;
    }
    let is_heavy = entry.readiness.has(Readiness::BULK);
    if is_heavy {
        entry.line_up(ready);
    }
    !is_heavy
}

/// The entry a token names, if it is still that one and alive.
#[inline]
pub(super) fn entry_of<'s, 'a>(
    slab: &'s mut Slab<Entry<'a>>,
    token: Token,
) -> Option<&'s mut Entry<'a>> {
    slab.get_mut(token.slot()).filter(|entry| entry.token == token && !entry.removed)
}

impl EventLoop<'_> {
    /// A token for the next entry; no token is ever used twice.
    pub(super) fn next_token(&mut self) -> Token {
        *self.resources.generation = self.resources.generation.wrapping_add(1);
        Token::new(self.slab.vacant_key().min(MAX_SLOTS - 1), *self.resources.generation)
    }
}
