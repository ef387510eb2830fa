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
    /// How long the peer may take no output until the connection is reset.
    pub(crate) write_timeout: Option<Duration>,
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

/// The time in which the peer takes no output, measured by what the kernel holds.
#[derive(Debug)]
struct NoProgress {
    since: Instant,
    progress: Progress,
    /// When the kernel is asked again.
    next_check: Instant,
}

/// How often the kernel is asked during a write timeout.
const CHECKS: u32 = 4;

/// The shortest time between two checks.
const SHORTEST_CHECK: Duration = Duration::from_millis(10);

/// The state of a send to a peer that takes no output.
#[derive(Debug)]
pub(crate) struct Stall {
    wait_limits: WaitLimits,
    /// When the stall began, and how much the kernel held then; `None` while the peer takes output.
    begun: Option<(Instant, Progress)>,
    /// The stall has lasted for the timeout.
    is_over: bool,
    /// The same for the write timeout.
    no_progress: Option<NoProgress>,
    /// The send has had to wait for the peer.
    has_waited: bool,
    /// The peer has taken no output for the write timeout.
    write_timed_out: bool,
    /// A `Sender` has closed the connection.
    pub(super) is_closing: bool,
}

impl From<WaitLimits> for Stall {
    fn from(wait_limits: WaitLimits) -> Self {
        Stall {
            wait_limits,
            begun: None,
            is_over: false,
            no_progress: None,
            has_waited: false,
            write_timed_out: false,
            is_closing: false,
        }
    }
}

impl Stall {
    /// Sets how long a send waits. The timeout that a sender has set by closing the connection stays.
    pub(crate) fn set_wait_limits(&mut self, wait_limits: WaitLimits) {
        self.wait_limits = match self.is_closing {
            true => WaitLimits { deadline: wait_limits.deadline, ..self.wait_limits },
            false => wait_limits,
        };
    }

    /// Gives the peer the whole timeout again.
    pub(crate) fn restart(&mut self) {
        self.begun = None;
        self.no_progress = None;
    }

    /// Whether the send has had to wait for the peer.
    pub(crate) fn has_waited(&self) -> bool {
        self.has_waited
    }

    /// Whether the peer has taken no output for the write timeout.
    pub(crate) fn write_timed_out(&self) -> bool {
        self.write_timed_out
    }

    /// Whether the stall has lasted for the timeout, which begins again after that. True once.
    pub(crate) fn take_timed_out(&mut self) -> bool {
        std::mem::take(&mut self.is_over)
    }

    /// When a limit of the wait is to be checked. The stall begins now if it has not begun before.
    pub(super) fn until(&mut self, socket: &Socket) -> Option<Instant> {
        self.has_waited = true;
        let WaitLimits { timeout, deadline, write_timeout } = self.wait_limits;
        if timeout.is_none() && write_timeout.is_none() {
            return deadline;
        }
        let now = Instant::now();
        let over = timeout.and_then(|timeout| {
            let begin = || (now, Progress::of(socket));
            self.begun.get_or_insert_with(begin).0.checked_add(timeout)
        });
        let check = write_timeout.and_then(|timeout| {
            let next_check = now.checked_add(check_interval(timeout))?;
            let begin = || NoProgress { since: now, progress: Progress::of(socket), next_check };
            Some(self.no_progress.get_or_insert_with(begin).next_check)
        });
        over.into_iter().chain(check).chain(deadline).min()
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
        self.check_progress(socket);
        if self.is_over || self.write_timed_out || self.wait_limits.has_expired() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// Asks the kernel whether the peer has taken output, if it is time.
    fn check_progress(&mut self, socket: &Socket) {
        let (Some(timeout), Some(state)) = (self.wait_limits.write_timeout, &mut self.no_progress)
        else {
            return;
        };
        let now = Instant::now();
        if now < state.next_check {
            return;
        }
        if state.progress.is_made(socket) {
            state.since = now;
        }
        state.next_check = now.checked_add(check_interval(timeout)).unwrap_or(state.next_check);
        self.write_timed_out = now.saturating_duration_since(state.since) >= timeout;
    }

    /// A sender closes the connection: from now on the timeout is that of a connection that closes.
    /// Returns whether the kernel has room.
    pub(super) fn begin_closing(&mut self, socket: &Socket) -> io::Result<bool> {
        self.is_closing = true;
        self.wait_limits.timeout = Some(CLOSING_TIMEOUT);
        self.wait_limits.write_timeout = None;
        // Bytes in flight arrive soon, and do not show that the peer reads.
        let peer = (socket.as_fd(), PollInterest::Write);
        let has_room = sys::wait_for(&[peer], Some(FIRST_CHECK))? != 0;
        self.restart();
        Ok(has_room)
    }
}

/// The time between two checks whether the peer takes output.
fn check_interval(write_timeout: Duration) -> Duration {
    (write_timeout / CHECKS).max(SHORTEST_CHECK)
}
