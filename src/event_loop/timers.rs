//! Ordered deadlines. The caller passes the current time. Nothing here runs per message: a deadline
//! that has moved to a later time is detected, and set again, only when the old one expires.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::token::Token;

/// The deadlines of the entries. Each entry has at most one.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    deadlines: BTreeSet<(Instant, Token)>,
}

impl Timers {
    /// Replaces the deadline `armed` of `token` by another one, or by none.
    pub(crate) fn set(
        &mut self,
        token: Token,
        armed: &mut Option<Instant>,
        deadline: Option<Instant>,
    ) {
        if *armed == deadline {
            return;
        }
        if let Some(old) = armed.take() {
            self.deadlines.remove(&(old, token));
        }
        if let Some(new) = deadline {
            self.deadlines.insert((new, token));
        }
        *armed = deadline;
    }

    /// As [`set`](Timers::set), but an earlier deadline stays armed: the entry is then called too
    /// early, and sets its deadline again. So a deadline that moves with each message costs nothing
    /// per message.
    pub(crate) fn set_lazily(
        &mut self,
        token: Token,
        armed: &mut Option<Instant>,
        deadline: Option<Instant>,
    ) {
        if armed.is_none_or(|armed| deadline.is_some_and(|deadline| deadline < armed)) {
            self.set(token, armed, deadline);
        }
    }

    /// The earliest deadline.
    #[inline]
    pub(crate) fn next(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// How many deadlines are set.
    #[cfg(feature = "testing")]
    pub(crate) fn len(&self) -> usize {
        self.deadlines.len()
    }

    /// Removes one deadline that has expired and returns its entry.
    #[inline]
    pub(crate) fn due(&mut self, now: Instant) -> Option<Token> {
        if self.next()? > now {
            return None;
        }
        self.deadlines.pop_first().map(|(_, token)| token)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timers_expire_in_order_and_not_early() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (mut late, mut soon) = (None, None);
        timers.set(Token::new(1, 0), &mut late, Some(at(9)));
        timers.set(Token::new(2, 0), &mut soon, Some(at(3)));
        assert_eq!(timers.next(), Some(at(3)));
        assert_eq!(timers.due(at(2)), None);
        assert_eq!(timers.due(at(3)), Some(Token::new(2, 0)));
        assert_eq!(timers.due(at(3)), None);
    }

    #[test]
    fn a_later_deadline_leaves_the_armed_one_and_an_earlier_one_replaces_it() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (token, mut armed) = (Token::new(1, 0), None);
        timers.set_lazily(token, &mut armed, Some(at(5)));
        for later in [Some(at(9)), None] {
            timers.set_lazily(token, &mut armed, later);
            assert_eq!((timers.next(), armed), (Some(at(5)), Some(at(5))));
        }
        timers.set_lazily(token, &mut armed, Some(at(2)));
        assert_eq!((timers.next(), armed), (Some(at(2)), Some(at(2))));
        assert_eq!(timers.deadlines.len(), 1);
    }

    #[test]
    fn a_cancelled_timer_is_removed() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        let mut armed = None;
        timers.set(Token::new(1, 0), &mut armed, Some(start));
        timers.set(Token::new(1, 0), &mut armed, Some(start + Duration::from_secs(1)));
        timers.set(Token::new(1, 0), &mut armed, None);
        assert_eq!(timers.next(), None);
        assert!(timers.deadlines.is_empty());
    }
}
