//! How long a send of a blocking session waits for a peer that takes no output.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crate::closing::{CLOSING_TIMEOUT, FIRST_CHECK, Progress};
use crate::sys::{self, PollInterest, Socket};

/// The limits of a wait for the peer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WaitLimits {
    /// How long there may be no progress.
    pub(crate) timeout: Option<Duration>,
    /// When the wait ends in any case.
    pub(crate) deadline: Option<Instant>,
}

impl WaitLimits {
    /// Whether the deadline has passed.
    pub(crate) fn has_expired(self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// The maximum time until the next check of the progress.
    pub(crate) fn next_wait(self) -> Option<Duration> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.timeout.into_iter().chain(left).min()
    }
}

/// The state of a send to a peer that takes no output.
#[derive(Debug)]
pub(crate) struct Stall {
    wait_limits: WaitLimits,
    /// When the stall began, and how much the kernel held then; `None` while the peer takes output.
    begun: Option<(Instant, Progress)>,
    /// The stall has lasted for the timeout.
    is_over: bool,
    /// A `Sender` has closed the connection.
    pub(super) is_closing: bool,
}

impl From<WaitLimits> for Stall {
    fn from(wait_limits: WaitLimits) -> Self {
        Stall { wait_limits, begun: None, is_over: false, is_closing: false }
    }
}

impl Stall {
    /// Sets how long a send waits. The timeout that a sender has set by closing the connection stays.
    pub(crate) fn set_wait_limits(&mut self, wait_limits: WaitLimits) {
        let timeout = if self.is_closing { self.wait_limits.timeout } else { wait_limits.timeout };
        self.wait_limits = WaitLimits { timeout, ..wait_limits };
    }

    /// Gives the peer the whole timeout again.
    pub(crate) fn restart(&mut self) {
        self.begun = None;
    }

    /// Whether the stall has lasted for the timeout, which begins again after that. True once.
    pub(crate) fn take_timed_out(&mut self) -> bool {
        std::mem::take(&mut self.is_over)
    }

    /// When a limit of the wait is reached, unless the peer takes something. The stall begins now if it has
    /// not begun before.
    pub(super) fn until(&mut self, socket: &Socket) -> Option<Instant> {
        let WaitLimits { timeout, deadline } = self.wait_limits;
        let over = timeout.and_then(|timeout| {
            let now = || (Instant::now(), Progress::of(socket));
            self.begun.get_or_insert_with(now).0.checked_add(timeout)
        });
        over.into_iter().chain(deadline).min()
    }

    /// Returns an error if a limit of the wait is reached.
    pub(super) fn check(&mut self, socket: &Socket) -> io::Result<()> {
        if let (Some(timeout), Some((since, progress))) =
            (self.wait_limits.timeout, &mut self.begun)
        {
            let now = Instant::now();
            if now.saturating_duration_since(*since) >= timeout {
                // Only the kernel knows whether the peer takes its output; it is asked only here.
                self.is_over = !progress.is_made(socket);
                *since = now;
            }
        }
        if self.is_over || self.wait_limits.has_expired() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// A sender closes the connection: from now on the timeout is that of a connection that closes.
    /// Returns whether the kernel has room.
    pub(super) fn begin_closing(&mut self, socket: &Socket) -> io::Result<bool> {
        self.is_closing = true;
        self.wait_limits.timeout = Some(CLOSING_TIMEOUT);
        // Bytes in flight arrive soon, and do not show that the peer reads.
        let peer = (socket.as_fd(), PollInterest::Write);
        let has_room = sys::wait_for(&[peer], Some(FIRST_CHECK))? != 0;
        self.restart();
        Ok(has_room)
    }
}
