//! How long the turns of the event loop take, and whether it is overloaded.

use std::time::{Duration, Instant};

use crate::counters::LONG;

/// For how long all turns are long before the loop is overloaded.
const WINDOW: Duration = Duration::from_millis(200);

/// A turn that takes longer counts as long here.
const LONG_TURN: Duration = Duration::from_millis(20);

/// A wait for events that takes at least so long shows that the loop had nothing to do.
const SLEEP: Duration = Duration::from_millis(1);

/// The times of the last turns.
#[derive(Debug)]
pub(super) struct TurnTimes {
    /// When the turn has taken [`LONG`]: to compare is cheaper than to subtract.
    long_at: Instant,
    /// Since when all turns have been long, without a wait between them.
    busy_since: Option<Instant>,
    is_overloaded: bool,
}

impl TurnTimes {
    pub(super) fn new(now: Instant) -> Self {
        TurnTimes { long_at: now + LONG, busy_since: None, is_overloaded: false }
    }

    /// A turn begins.
    #[inline(always)]
    pub(super) fn turn_began(&mut self, now: Instant) {
        self.long_at = now + LONG;
    }

    /// The turn that began at this time has ended. Returns how long it took, if that was [`LONG`] or longer.
    #[inline(always)]
    pub(super) fn turn_ended(&mut self, began: Instant, now: Instant) -> Option<Duration> {
        if now < self.long_at {
            self.busy_since = None;
            return None;
        }
        Some(self.long_turn_ended(began, now))
    }

    #[cold]
    fn long_turn_ended(&mut self, began: Instant, now: Instant) -> Duration {
        let time = now.saturating_duration_since(began);
        if time > LONG_TURN {
            self.busy_since.get_or_insert(began);
        } else {
            self.busy_since = None;
        }
        time
    }

    /// The loop has waited for events between these times.
    #[inline(always)]
    pub(super) fn waited(&mut self, from: Instant, until: Instant) {
        if self.busy_since.is_some() && until.saturating_duration_since(from) >= SLEEP {
            self.busy_since = None;
        }
    }

    /// Whether the loop is overloaded, if that has changed since the last call. Called when a turn has
    /// ended.
    #[inline(always)]
    pub(super) fn change(&mut self, now: Instant) -> Option<bool> {
        if self.busy_since.is_none() && !self.is_overloaded {
            return None;
        }
        let is_overloaded =
            self.busy_since.is_some_and(|since| now.saturating_duration_since(since) >= WINDOW);
        let changed = std::mem::replace(&mut self.is_overloaded, is_overloaded) != is_overloaded;
        changed.then_some(is_overloaded)
    }

    pub(super) fn is_overloaded(&self) -> bool {
        self.is_overloaded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs turns of these lengths, with a wait of this length after each; returns whether the loop is
    /// overloaded after each turn.
    fn turns(millis: &[u64], wait_micros: u64) -> Vec<bool> {
        let mut now = Instant::now();
        let mut times = TurnTimes::new(now);
        let mut overloaded = Vec::new();
        for millis in millis {
            times.turn_began(now);
            let began = now;
            now += Duration::from_millis(*millis);
            let long = times.turn_ended(began, now);
            assert_eq!(long.is_some(), *millis > 0);
            times.change(now);
            overloaded.push(times.is_overloaded());
            let began = now;
            now += Duration::from_micros(wait_micros);
            times.waited(began, now);
        }
        overloaded
    }

    #[test]
    fn a_loop_whose_turns_are_all_long_and_that_never_waits_is_overloaded() {
        assert_eq!(turns(&[50, 50, 50, 50, 50], 0), [false, false, false, true, true]);
    }

    #[test]
    fn one_short_turn_or_one_wait_shows_that_it_is_not() {
        assert_eq!(turns(&[50, 50, 50, 5, 50, 50], 0), [false; 6]);
        assert_eq!(turns(&[50, 50, 50, 0, 50, 50], 0), [false; 6]);
        assert_eq!(turns(&[50, 50, 50, 50, 50], 1_000), [false; 5]);
    }

    #[test]
    fn it_is_not_overloaded_any_more_after_a_short_turn() {
        assert_eq!(turns(&[300, 300, 1, 1], 0), [true, true, false, false]);
    }
}
