//! Which clients a listener accepts: the limits on the number of connections and on their rate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::source::LoopCx;
use crate::address::Peer;
use crate::connection_id::ConnectionId;
use crate::limits::{GRACE, Limits, WhenFull};
use crate::permits::{ConnectionLimiter, ConnectionPermit};

/// How long a listener waits before it looks again whether the server is still overloaded.
const OVERLOAD_PAUSE: Duration = Duration::from_millis(50);

/// What has as many connections as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// The mode of the listener: its threads or child processes.
    Dispatcher,
    /// The threads of the listener: accepted requests wait for them.
    Threads,
    /// The listener.
    Listener,
    /// The server.
    Server,
}

/// What a listener does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    /// The client waits until a connection has ended.
    Wait(Full),
    /// The client waits until this time.
    WaitUntil(Instant),
    /// The client is accepted, gets these bytes, and is closed.
    TurnAway(Arc<[u8]>),
}

/// The limits of a listener, and the rate at which it may accept.
pub(crate) struct Admission {
    limits: Arc<Limits>,
    limiter: Option<Arc<ConnectionLimiter>>,
    /// How many connections may be accepted at once, if the rate is limited.
    tokens: f64,
    refilled: Option<Instant>,
}

impl Admission {
    pub(crate) fn new(limits: Arc<Limits>, limiter: Option<Arc<ConnectionLimiter>>) -> Self {
        Admission { limits, limiter, tokens: 0.0, refilled: None }
    }

    /// What happens to the next client. The cheapest checks come first.
    #[inline]
    pub(super) fn judge(&mut self, dispatcher_has_room: bool, cx: &mut LoopCx) -> Verdict {
        if let Some(wait) = self.wait_for_rate(cx) {
            return wait;
        }
        if self.limits.when_overloaded.is_some() && cx.call.entry.stop.is_overloaded() {
            cx.scratch.tally.over_load += 1;
            return match &self.limits.when_overloaded {
                Some(WhenFull::TurnAway(bytes)) => Verdict::TurnAway(bytes.clone()),
                _ => Verdict::WaitUntil(cx.turn.now + OVERLOAD_PAUSE),
            };
        }
        cx.run.maturity.below(cx.turn.now);
        let full = if !dispatcher_has_room {
            Full::Dispatcher
        } else if cx.open_connections() >= cx.run.max_connections as u64 {
            Full::Server
        } else if self.limiter.as_ref().is_some_and(|limiter| limiter.is_full()) {
            Full::Listener
        } else {
            return Verdict::Accept;
        };
        match &self.limits.when_full {
            WhenFull::TurnAway(bytes) => Verdict::TurnAway(bytes.clone()),
            _ => Verdict::Wait(full),
        }
    }

    /// Whether a silent connection is closed in favor of a client that waits.
    pub(super) fn closes_silent(&self) -> bool {
        self.limits.when_full == WhenFull::CloseSilent
    }

    /// The place of an accepted connection.
    ///
    /// # Errors
    ///
    /// Too many connections of its address are open: what it is told before it is closed, if
    /// anything.
    pub(super) fn admit(
        &mut self,
        peer: &Peer,
    ) -> Result<Option<ConnectionPermit>, Option<Arc<[u8]>>> {
        if self.limits.accept_rate.is_some() {
            self.tokens -= 1.0;
        }
        let Some(limiter) = &self.limiter else { return Ok(None) };
        limiter.acquire(peer).map(Some).ok_or_else(|| match &self.limits.when_full {
            WhenFull::TurnAway(bytes) => Some(bytes.clone()),
            _ => None,
        })
    }

    /// Refills the tokens; returns how long to wait if there is none.
    fn wait_for_rate(&mut self, cx: &mut LoopCx) -> Option<Verdict> {
        let rate = f64::from(self.limits.accept_rate?);
        let now = cx.turn.now;
        self.tokens = match self.refilled.replace(now) {
            None => rate,
            Some(before) => {
                let passed = now.saturating_duration_since(before).as_secs_f64();
                (self.tokens + passed * rate).min(rate)
            }
        };
        if self.tokens >= 1.0 {
            return None;
        }
        cx.scratch.tally.over_rate += 1;
        let missing = Duration::from_secs_f64((1.0 - self.tokens) / rate);
        Some(Verdict::WaitUntil(now + missing.max(Duration::from_millis(1))))
    }
}

/// Which connections have been open for at least [`GRACE`]: those with a number below
/// [`below`](Maturity::below). It needs no time per connection, because later connections have
/// greater numbers.
#[derive(Debug)]
pub(crate) struct Maturity {
    mature: u64,
    /// The first number that had not been assigned at this time.
    next: u64,
    at: Instant,
}

impl Maturity {
    pub(super) fn new(now: Instant) -> Self {
        Maturity { mature: 0, next: 0, at: now }
    }

    /// Called before connections are accepted, and whenever the number is wanted: all connections
    /// with a smaller number have been open for long enough.
    #[inline]
    pub(super) fn below(&mut self, now: Instant) -> u64 {
        if now.saturating_duration_since(self.at) >= GRACE {
            *self = Maturity { mature: self.next, next: ConnectionId::upcoming(), at: now };
        }
        self.mature
    }

    /// When the next connections have been open for long enough.
    pub(super) fn next(&self) -> Instant {
        self.at + GRACE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_mature_after_the_grace_and_not_before() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut maturity = Maturity::new(start);
        maturity.below(at(500));
        let id = u64::from(ConnectionId::next()); // accepted at 700 ms
        assert!(maturity.below(at(1_000)) <= id, "it was accepted 300 ms ago");
        assert!(maturity.below(at(1_199)) <= id, "it was accepted 499 ms ago");
        assert!(maturity.below(at(1_500)) > id);
    }
}
