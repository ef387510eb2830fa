//! How long a send of a blocking session waits for a peer that takes no output.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::closing::{CLOSING_PATIENCE, FIRST_LOOK, Progress};
use crate::sys::{self, PollInterest};

/// How a send waits for its peer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Patience {
    /// How long the peer may take nothing.
    pub(crate) timeout: Option<Duration>,
    /// When it ends, whatever the peer takes.
    pub(crate) deadline: Option<Instant>,
}

impl Patience {
    /// Whether the deadline has come.
    pub(crate) fn is_over(self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// How long to wait at most before it is looked what has become of it.
    pub(crate) fn next_wait(self) -> Option<Duration> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.timeout.into_iter().chain(left).min()
    }
}

/// Since when a peer has taken no output, and how long a send waits for it.
#[derive(Debug)]
pub(crate) struct Stall {
    patience: Patience,
    /// Since when, and what the kernel held then; absent while the peer takes output.
    begun: Option<(Instant, Progress)>,
    /// It has lasted as long as the timeout.
    is_over: bool,
    /// A sender has closed the connection.
    pub(super) is_closing: bool,
}

impl From<Patience> for Stall {
    fn from(patience: Patience) -> Self {
        Stall { patience, begun: None, is_over: false, is_closing: false }
    }
}

impl Stall {
    /// Sets how long a send waits. The timeout that a sender has set by closing the connection stays.
    pub(crate) fn set_patience(&mut self, patience: Patience) {
        let timeout = if self.is_closing { self.patience.timeout } else { patience.timeout };
        self.patience = Patience { timeout, ..patience };
    }

    /// Gives the peer the whole timeout again.
    pub(crate) fn restart(&mut self) {
        self.begun = None;
    }

    /// Whether it has lasted as long as the timeout, which has begun again since. True once.
    pub(crate) fn take_over(&mut self) -> bool {
        std::mem::take(&mut self.is_over)
    }

    /// When the patience is at its end, unless the peer takes something. The stall begins now if it has
    /// not begun before.
    pub(super) fn until(&mut self, socket: &Socket) -> Option<Instant> {
        let Patience { timeout, deadline } = self.patience;
        let over = timeout.and_then(|timeout| {
            let now = || (Instant::now(), Progress::of(socket));
            self.begun.get_or_insert_with(now).0.checked_add(timeout)
        });
        over.into_iter().chain(deadline).min()
    }

    /// Returns an error if the patience is at its end.
    pub(super) fn check(&mut self, socket: &Socket) -> io::Result<()> {
        if let (Some(timeout), Some((since, progress))) = (self.patience.timeout, &mut self.begun) {
            let now = Instant::now();
            if now.saturating_duration_since(*since) >= timeout {
                // Only the kernel knows whether the peer takes its output; it is asked only here.
                self.is_over = !progress.is_made(socket);
                *since = now;
            }
        }
        if self.is_over || self.patience.is_over() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// A sender closes the connection: from now on the timeout is that of a connection that closes.
    /// Returns whether the kernel has room.
    pub(super) fn begin_closing(&mut self, socket: &Socket) -> io::Result<bool> {
        self.is_closing = true;
        self.patience.timeout = Some(CLOSING_PATIENCE);
        // What is on its way now is the peer's soon, and is then no sign of progress.
        let peer = (socket.as_fd(), PollInterest::Write);
        let has_room = sys::wait_for(&[peer], Some(FIRST_LOOK))? != 0;
        self.restart();
        Ok(has_room)
    }
}
