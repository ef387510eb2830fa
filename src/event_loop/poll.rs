//! Waits for events: of the poller, of the next deadline or of the hooks. Spins before it sleeps,
//! if that is configured.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::EventLoop;
use crate::counters::Published;
use crate::mailbox::Mailbox;
use crate::server_state::StopRequester;
use crate::sys::{Events, Poll, SignalWatch};

/// How many events a turn takes from the poller at most.
pub(crate) const EVENTS: usize = 1024;

/// The resources of an event loop that outlive one run.
pub(crate) struct LoopResources<'a> {
    pub(crate) poll: &'a mut Poll,
    pub(crate) events: &'a mut Events,
    pub(crate) mailbox: Arc<Mailbox>,
    /// Requests the end of the run, for handlers.
    pub(crate) stop: StopRequester,
    pub(crate) published: &'a Published,
    /// How long the loop polls without sleeping before each sleep.
    pub(crate) spin: Duration,
    /// The last generation of a token. No token is ever used twice.
    pub(crate) generation: &'a mut usize,
}

impl EventLoop<'_> {
    /// Waits for events, notifications or a deadline, for at most `max_wait`.
    pub(super) fn wait(
        &mut self,
        max_wait: Option<Duration>,
        signals: Option<&SignalWatch>,
    ) -> io::Result<()> {
        let mut timeout = max_wait;
        let began = self.note_turn();
        if let Some(deadline) = self.timers.next().into_iter().chain(self.next_turn).min() {
            let left = deadline.saturating_duration_since(began);
            timeout = Some(timeout.map_or(left, |timeout| timeout.min(left)));
        }
        if let Some(wait) = self.starved_wait() {
            timeout = Some(timeout.map_or(wait, |timeout| timeout.min(wait)));
        }
        let busy = !self.ready.is_empty()
            || self.cx.turn.capacity_freed
            || signals.is_some_and(SignalWatch::is_due)
            || timeout == Some(Duration::ZERO);
        if !busy && self.spin(&mut timeout, signals)? {
            self.turn_times.turn_began(self.cx.turn.now);
            return Ok(());
        }
        if busy || !self.resources.mailbox.prepare_park() {
            timeout = Some(Duration::ZERO);
        }
        let polled = self.resources.poll.poll(self.resources.events, timeout);
        if !busy && self.resources.mailbox.wake_up() {
            self.cx.scratch.tally.wakes += 1;
        }
        self.cx.set_now(self.resources.stop.clock().now());
        self.turn_times.waited(began, self.cx.turn.now);
        self.turn_times.turn_began(self.cx.turn.now);
        match polled {
            // The next turn waits for the rest of the time.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.resources.events.clear();
                Ok(())
            }
            other => other,
        }
    }

    /// Counts the time that the last turn took; returns the time of its end.
    #[inline]
    fn note_turn(&mut self) -> Instant {
        let now = self.resources.stop.clock().now();
        if let Some(time) = self.turn_times.turn_ended(self.cx.turn.now, now) {
            self.resources.published.long_turn(time, self.turn_times.is_overloaded());
        }
        if let Some(is_overloaded) = self.turn_times.change(now) {
            self.resources.stop.set_overloaded(is_overloaded);
        }
        now
    }

    /// Polls without sleeping for [`spin`](LoopResources::spin), if that is set: to wake a sleeping
    /// thread may take longer than until the next request arrives. Returns true if there is
    /// something to do. Otherwise the elapsed time is subtracted from `timeout`.
    pub(super) fn spin(
        &mut self,
        timeout: &mut Option<Duration>,
        signals: Option<&SignalWatch>,
    ) -> io::Result<bool> {
        if self.resources.spin.is_zero() {
            return Ok(false);
        }
        let spin = timeout.map_or(self.resources.spin, |timeout| timeout.min(self.resources.spin));
        let began = self.resources.stop.clock().now();
        let until = began + spin;
        loop {
            match self.resources.poll.poll(self.resources.events, Some(Duration::ZERO)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    self.resources.events.clear();
                }
                other => other?,
            }
            self.cx.set_now(self.resources.stop.clock().now());
            if !self.resources.events.is_empty()
                || self.resources.mailbox.has_notifications()
                || signals.is_some_and(SignalWatch::is_due)
            {
                return Ok(true);
            }
            if self.cx.turn.now >= until {
                let passed = self.cx.turn.now.saturating_duration_since(began);
                *timeout = timeout.map(|timeout| timeout.saturating_sub(passed));
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server_state::ServerState;

    #[test]
    fn the_time_of_a_spin_is_subtracted_from_the_timeout() {
        let run = Arc::new(ServerState::new().unwrap()).begin();
        let stop = run.stop_requester().clone();
        let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(1));
        let (published, mut generation) = (Published::default(), 0);
        let mut reactor = EventLoop::new(LoopResources {
            poll: &mut poll,
            events: &mut events,
            mailbox: stop.mailbox().clone(),
            stop,
            published: &published,
            spin: Duration::from_millis(20),
            generation: &mut generation,
        });
        for (before, spun) in [(1000, 20), (10, 10)] {
            let mut timeout = Some(Duration::from_millis(before));
            assert!(!reactor.spin(&mut timeout, None).unwrap(), "nothing happens");
            assert!(timeout.unwrap() <= Duration::from_millis(before - spun));
        }
        let mut timeout = None;
        assert!(!reactor.spin(&mut timeout, None).unwrap());
        assert_eq!(timeout, None);
    }
}
