//! The limits of one session: when they are reached, and the memory that the session holds.

use std::io;
use std::time::{Duration, Instant};

use super::wait::Wait;
use crate::error::Limit;
use crate::limits::{Limits, Retirement};
use crate::mailbox::Notification;
use crate::memory::MemoryCharge;
use crate::server_state::StopRequester;
use crate::sys;

/// A session that is not read because memory is tight looks this often whether there is memory again.
pub(super) const MEMORY_CHECK: Duration = Duration::from_millis(20);

/// When the limits of a session on its messages and its age are reached. It reads no clock while no
/// message has arrived in part.
#[derive(Debug)]
pub(super) struct LimitClock<'a> {
    limits: &'a Limits,
    accepted: Instant,
    /// A whole message has come.
    is_proven: bool,
    /// When the message began that has arrived in part.
    message_began: Option<Instant>,
    retirement: Retirement,
}

impl<'a> LimitClock<'a> {
    pub(super) fn new(limits: &'a Limits, accepted: Instant) -> Self {
        LimitClock {
            limits,
            accepted,
            is_proven: false,
            message_began: None,
            retirement: Retirement::default(),
        }
    }

    /// Whole messages have come; returns whether they are the first.
    pub(super) fn messages_came(&mut self, messages: u64) -> bool {
        self.retirement.messages_came(messages, self.limits);
        !std::mem::replace(&mut self.is_proven, true)
    }

    /// A message has arrived in part; with `anew`, its time begins now.
    pub(super) fn message_in_part(&mut self, anew: bool) {
        if anew || self.message_began.is_none() {
            self.message_began = Some(Instant::now());
        }
    }

    /// No message has arrived in part.
    pub(super) fn no_message_in_part(&mut self) {
        self.message_began = None;
    }

    /// Whether so much undecoded input is too much.
    pub(super) fn is_too_much(&self, buffered: usize) -> bool {
        buffered > self.limits.max_buffered_input
    }

    /// When the first of the limits may be reached, if `buffered` bytes of a message have arrived.
    pub(super) fn deadline(&self, buffered: usize) -> Option<Instant> {
        let age = self.limits.age_deadline(self.accepted, self.is_proven, &self.retirement);
        [self.message_deadline(buffered), age].into_iter().flatten().min()
    }

    fn message_deadline(&self, buffered: usize) -> Option<Instant> {
        self.message_began?.checked_add(self.limits.time_for_message(buffered)?)
    }

    /// The limit that is reached at this time, if `buffered` bytes of a message have arrived. A
    /// connection that is too old closes when all is answered: see [`retirement`](Self::retirement).
    pub(super) fn expired(&mut self, now: Instant, buffered: usize) -> Option<Limit> {
        if self.message_deadline(buffered).is_some_and(|at| at <= now) {
            return Some(Limit::MessageDeadline);
        }
        let age = now.saturating_duration_since(self.accepted);
        self.limits.expired_age(age, self.is_proven, &mut self.retirement)
    }

    /// The limit because of which nothing more is read; `in_part` says that a message has arrived in
    /// part.
    pub(super) fn retirement(&self, in_part: bool) -> Option<Limit> {
        self.retirement.due(in_part)
    }
}

/// The memory that a session holds, as it counts in the memory of the server.
#[derive(Debug, Default)]
pub(super) struct SessionMemory {
    held: usize,
    /// Counts it where no registration does.
    charge: Option<MemoryCharge>,
    /// The limit of the server is reached, and only the session itself can act.
    is_exceeded: bool,
}

impl SessionMemory {
    /// Sets how much memory the session holds.
    #[inline]
    pub(super) fn hold(&mut self, bytes: usize, stop: &StopRequester, wait: &dyn Wait) {
        if bytes != self.held {
            self.change(bytes, stop, wait);
        }
    }

    #[cold]
    fn change(&mut self, bytes: usize, stop: &StopRequester, wait: &dyn Wait) {
        let before = std::mem::replace(&mut self.held, bytes);
        let memory = stop.memory();
        if let Some(registration) = wait.registration() {
            if registration.hold(bytes) && memory.is_full() {
                // The event loop closes the connections that hold most.
                stop.mailbox().post(Notification::Wake);
            }
            return;
        }
        self.charge.get_or_insert_with(|| MemoryCharge::new(memory.clone(), 0)).set(bytes);
        if bytes > before && memory.is_full() && bytes >= share(stop) {
            self.is_exceeded = true;
        }
    }

    /// The limit, if the session must close its connection because of its memory.
    pub(super) fn limit(&self) -> Option<Limit> {
        self.is_exceeded.then_some(Limit::Memory)
    }

    /// Whether the session does not read, because memory is tight and it holds more than its share.
    pub(super) fn is_starved(&self, stop: &StopRequester) -> bool {
        self.held > 0 && stop.memory().is_tight() && self.held > share(stop)
    }
}

/// The share of one connection. A child process serves only one.
fn share(stop: &StopRequester) -> usize {
    let connections = if sys::is_forked_child() { 1 } else { stop.open_connections() };
    stop.memory().share(usize::try_from(connections).unwrap_or(usize::MAX))
}

/// The error of a read or a write of a request that has reached a limit.
pub(super) fn limit_error(limit: Limit) -> io::Error {
    let kind = match limit {
        Limit::MessageDeadline | Limit::FirstMessageDeadline | Limit::WriteTimeout => {
            io::ErrorKind::TimedOut
        }
        _ => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, limit.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_time_of_a_message_begins_with_its_first_byte_and_ends_with_its_last() {
        let limits = Limits::default().message_deadline(SECOND).message_rate(10);
        let accepted = Instant::now();
        let mut clock = LimitClock::new(&limits, accepted);
        assert_eq!(clock.deadline(0), None);
        clock.message_in_part(false);
        let deadline = clock.deadline(5).unwrap();
        assert!(deadline >= accepted + SECOND);
        clock.message_in_part(false);
        assert_eq!(clock.deadline(20), Some(deadline + 2 * SECOND), "20 bytes at 10 per second");
        assert_eq!(clock.expired(deadline, 20), None);
        assert_eq!(clock.expired(deadline + 2 * SECOND, 20), Some(Limit::MessageDeadline));
        clock.no_message_in_part();
        assert_eq!(clock.expired(deadline + 9 * SECOND, 0), None);
    }

    #[test]
    fn the_deadline_of_the_first_message_does_not_apply_to_later_ones() {
        let limits = Limits::default().first_message_deadline(SECOND);
        let accepted = Instant::now();
        let mut clock = LimitClock::new(&limits, accepted);
        assert_eq!(clock.deadline(0), Some(accepted + SECOND));
        assert_eq!(clock.expired(accepted + SECOND, 0), Some(Limit::FirstMessageDeadline));
        assert!(clock.messages_came(1), "it is the first");
        assert_eq!(clock.deadline(0), None);
        assert_eq!(clock.expired(accepted + SECOND, 0), None);
        assert!(!clock.messages_came(1));
    }

    #[test]
    fn an_old_connection_closes_between_two_messages() {
        let limits = Limits::default().max_lifetime(SECOND);
        let accepted = Instant::now();
        let mut clock = LimitClock::new(&limits, accepted);
        assert_eq!((clock.retirement(false), clock.deadline(0)), (None, Some(accepted + SECOND)));
        assert_eq!(clock.expired(accepted + SECOND, 0), None);
        assert_eq!(
            (clock.retirement(true), clock.retirement(false)),
            (None, Some(Limit::Lifetime))
        );
        assert_eq!(clock.deadline(0), None);
        clock.messages_came(1);
        assert_eq!(clock.retirement(true), Some(Limit::Lifetime), "the next message has begun");
    }

    #[test]
    fn a_connection_closes_after_its_last_message() {
        let limits = Limits::default().max_messages(3);
        let mut clock = LimitClock::new(&limits, Instant::now());
        clock.messages_came(2);
        assert_eq!(clock.retirement(false), None);
        clock.messages_came(1);
        assert_eq!(clock.retirement(true), Some(Limit::Messages));
    }
}
