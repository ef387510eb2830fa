//! What the event loop does when connections or memory run out.

use std::time::Duration;

use super::EventLoop;
use super::admission::Full;
use super::source::{ListenerParts, PostAction, Silent};
use crate::error::Limit;
use crate::guard::log;
use crate::token::Token;

/// How many silent connections are closed at once, at most, so that a flood of clients does not
/// cause a search for each.
const MOST_CLOSED: usize = 32;

/// While connections are not read because memory is tight, the loop looks this often whether there is
/// memory again: other threads free some of it, too.
const MEMORY_CHECK: Duration = Duration::from_millis(20);

/// How long memory may be tight while connections wait to be read. Then others are closed for them.
const LONGEST_TIGHT: Duration = Duration::from_secs(5);

/// How long they wait after that until more are closed.
const NEXT_RELIEF: Duration = Duration::from_millis(500);

impl EventLoop<'_> {
    /// Closes connections from which no whole message has come, the oldest first, because a client
    /// waits for a place: one in eight of them, at least one and at most [`MOST_CLOSED`].
    #[cold]
    pub(super) fn close_silent(&mut self, full: Full, listener: Token) {
        let now = self.cx.turn.now;
        let mature = self.cx.run.maturity.below(now);
        let mut silent = Vec::new();
        if matches!(full, Full::Server | Full::Listener) {
            for (_, entry) in &self.slab {
                let counts = full == Full::Server || entry.parent == listener;
                if counts
                    && !entry.removed
                    && let Some(id) = entry.source.silent()
                {
                    silent.push((id, entry.token));
                }
            }
        }
        let found_any = !silent.is_empty();
        silent.retain(|(id, _)| u64::from(*id) < mature);
        let most = (silent.len() / 8).clamp(1, MOST_CLOSED).min(silent.len());
        if most > 0 {
            silent.select_nth_unstable(most - 1);
        }
        for (_, token) in &silent[..most] {
            self.call(*token, |source, cx| source.exceed(Limit::Connections, cx));
        }
        if most > 0 {
            return;
        }
        let mut found = if found_any { Silent::Young } else { Silent::None };
        for index in 0..self.listeners.len() {
            let token = self.listeners[index];
            if found == Silent::Closed || (full != Full::Server && token != listener) {
                continue;
            }
            if let Some(ListenerParts { dispatcher, .. }) = self.slab[token.slot()].source.parts() {
                match dispatcher.close_silent(mature, full == Full::Threads) {
                    Silent::None => {}
                    other => found = other,
                }
            }
        }
        let at = self.cx.run.maturity.next();
        // What waits for threads is not reported by the poller, and which connections the threads serve
        // may change at any time: the listener looks again as long as requests wait.
        let checks_threads = full == Full::Threads;
        // A connection may become silent that is with a worker or a busy thread now.
        if checks_threads || found != Silent::Closed {
            self.call(listener, |source, cx| {
                match checks_threads {
                    true => source.check_threads_at(at, cx),
                    false => source.retry_at(at, cx),
                }
                PostAction::Wait
            });
        }
    }

    /// Closes the connections that hold most memory, until nine tenths of the limit are held. Those that
    /// hold little stay: the rest of the memory is then with workers or threads.
    #[cold]
    pub(super) fn free_memory(&mut self) {
        let least = self.half_share();
        let mut holders: Vec<_> = self
            .slab
            .iter()
            .filter(|(_, entry)| !entry.removed)
            .map(|(_, entry)| (entry.source.memory(), entry.token))
            .filter(|(held, _)| *held >= least)
            .collect();
        holders.sort_unstable_by(|a, b| b.cmp(a));
        let mut holders = holders.into_iter().peekable();
        let mut closed = 0;
        while self.cx.run.memory.excess() > 0 {
            let on_loop = holders.peek().map_or(0, |(held, _)| *held);
            let elsewhere = self.heaviest_elsewhere();
            if on_loop == 0 && elsewhere.is_none() {
                break;
            }
            match elsewhere {
                Some((held, listener)) if held > on_loop => {
                    if let Some(ListenerParts { dispatcher, .. }) =
                        self.slab[listener.slot()].source.parts()
                    {
                        let before = self.cx.run.memory.held();
                        dispatcher.close_heaviest();
                        // It is with a thread that still takes memory: the next turn tries again.
                        if self.cx.run.memory.held() >= before {
                            break;
                        }
                    }
                }
                _ => {
                    if let Some((_, token)) = holders.next() {
                        self.call(token, |source, cx| source.exceed(Limit::Memory, cx));
                    }
                }
            }
            closed += 1;
        }
        self.warn_of_memory(closed);
    }

    /// The listener whose mode has the connection outside of the slab that holds most, and how much.
    fn heaviest_elsewhere(&mut self) -> Option<(usize, Token)> {
        let mut heaviest = None;
        for token in &self.listeners {
            if let Some(ListenerParts { dispatcher, .. }) = self.slab[token.slot()].source.parts() {
                heaviest = heaviest.max(Some((dispatcher.heaviest(), *token)));
            }
        }
        heaviest.filter(|(held, _)| *held > 0)
    }

    /// Serves the connections that are not read because memory is tight, as soon as it is not. If they
    /// have waited for [`LONGEST_TIGHT`], those that hold the memory will not free it soon.
    #[cold]
    pub(super) fn relieve_starved(&mut self) {
        if !self.cx.run.memory.is_tight() {
            self.feed_starved();
            if self.cx.run.starved.is_empty() {
                self.relief_at = None;
            }
            return;
        }
        let now = self.cx.turn.now;
        if now >= *self.relief_at.get_or_insert(now + LONGEST_TIGHT) {
            self.relief_at = Some(now + NEXT_RELIEF);
            self.close_inactive();
        }
    }

    /// Closes connections that hold at least half of their share, until memory is no longer tight: first
    /// those that do not wait to be read, and of these those that have been inactive for longest.
    fn close_inactive(&mut self) {
        let least = self.half_share();
        let entries = self.slab.iter().map(|(_, entry)| entry);
        let holders = entries.filter(|entry| !entry.removed && entry.source.memory() >= least);
        let mut holders: Vec<_> =
            holders.filter_map(|entry| Some((entry.source.usefulness()?, entry.token))).collect();
        holders.sort_unstable();
        let mut closed = 0;
        for (_, token) in holders {
            if self.cx.run.memory.surplus() == 0 {
                break;
            }
            self.call(token, |source, cx| source.exceed(Limit::Memory, cx));
            closed += 1;
        }
        self.warn_of_memory(closed);
    }

    /// Half of the memory that one connection may hold. All that hold less hold less than half of the
    /// limit together.
    fn half_share(&self) -> usize {
        let connections = usize::try_from(self.cx.open_connections()).unwrap_or(usize::MAX);
        (self.cx.run.memory.share(connections) / 2).max(1)
    }

    fn warn_of_memory(&mut self, closed: usize) {
        if let Some(times) = self.memory_log.record(self.cx.turn.now) {
            let held = self.cx.run.memory.held();
            log::warn!(
                "the connections hold too much memory ({times} times so far): {closed} are closed, the \
                 others hold {held} bytes"
            );
        }
    }

    /// Reads again from connections that were not read while memory was tight, within the budget of a
    /// turn. The others are read in the next turns.
    fn feed_starved(&mut self) {
        let begun = self.spent();
        let mut tokens = std::mem::take(&mut self.cx.run.starved).into_iter();
        for token in tokens.by_ref() {
            self.call(token, |source, cx| source.memory_freed(cx));
            if self.is_enough_since(begun) {
                break;
            }
        }
        // Those that were not read again come after those that have waited longer.
        let again = std::mem::replace(&mut self.cx.run.starved, tokens.collect());
        self.cx.run.starved.extend(again);
    }

    /// The longest wait for events while connections are not read because memory was tight.
    pub(super) fn starved_wait(&self) -> Option<Duration> {
        if self.cx.run.starved.is_empty() {
            return None;
        }
        Some(if self.cx.run.memory.is_tight() { MEMORY_CHECK } else { Duration::ZERO })
    }
}
