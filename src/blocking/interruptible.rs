//! The wait of a session on the event loop's thread, or in a child process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::standing::Standing;
use super::wait::{Input, expiry, is_transient};
use crate::error::Limit;
use crate::server_state::StopOutcome;
use crate::sys::{self, PollInterest, Socket, Wakeup};

/// A wait that a stop request interrupts, for a session without another thread that could end it.
pub(crate) struct InterruptibleWait<'a> {
    /// They become readable when there may be a stop request.
    pub(crate) wakeups: &'a [&'a Wakeup],
    /// A stop request of a child process: it stays readable until `is_stopping` takes it.
    pub(crate) child_stop_request: Option<&'a Wakeup>,
    /// Whether to stop. It is called before each wait.
    pub(crate) is_stopping: &'a mut dyn FnMut() -> bool,
    /// The drain timeout: how long a busy session may continue after a stop request.
    pub(crate) drain: Duration,
    /// The drain deadline, if the server is stopping.
    pub(crate) deadline: Option<Instant>,
    /// How the session ended, as soon as this is known.
    pub(crate) stop_outcome: Option<StopOutcome>,
    /// Whether a message has come, and whether another process has the connection closed.
    pub(crate) standing: Standing<'a>,
    /// Other clients that wait for this session to end, if it is to be closed for them.
    pub(crate) others: Option<OtherClients<'a>>,
}

/// The clients that wait while a session is served on the event loop's thread.
pub(crate) struct OtherClients<'a> {
    /// It is readable while a client waits.
    pub(crate) listener: &'a Socket,
    /// The session is left alone until this time.
    pub(crate) from: Instant,
}

pub(super) enum Woken {
    Peer,
    /// The connection is to be closed because of this limit.
    Limit(Limit),
    TimedOut,
    /// A stop was requested just now.
    Stop,
    /// The drain deadline has passed.
    Deadline,
}

impl<'a> InterruptibleWait<'a> {
    /// Whether the server is stopping; the drain timeout begins when this is first detected.
    pub(super) fn is_stopping(&mut self) -> bool {
        if self.deadline.is_none() && (self.is_stopping)() {
            self.deadline = Some(Instant::now() + self.drain);
        }
        self.deadline.is_some()
    }

    /// Whether the drain deadline has passed. It is also checked for a peer that never makes the
    /// session wait.
    pub(super) fn is_overdue(&mut self) -> bool {
        let overdue =
            self.is_stopping() && self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        if overdue {
            self.stop_outcome.get_or_insert(StopOutcome::Cut);
        }
        overdue
    }

    /// How the session ended, if a stop began during it. Called after its end.
    pub(crate) fn stop_outcome(&mut self) -> Option<StopOutcome> {
        self.stop_outcome.or_else(|| self.is_stopping().then_some(StopOutcome::Finished))
    }

    /// When the listener is watched for other clients; `None` if the connection is not closed for
    /// them.
    fn others_from(&self) -> Option<Instant> {
        self.others.as_ref().filter(|_| self.standing.is_silent()).map(|others| others.from)
    }

    /// The listener, if the connection is to be closed in favor of a client that waits there.
    fn others_now(&self, from: Option<Instant>) -> Option<&'a Socket> {
        let others = self.others.as_ref()?;
        from.filter(|from| *from <= Instant::now()).map(|_| others.listener)
    }

    /// Waits for the peer, if given, and for a stop request if there is none yet.
    pub(super) fn wait(
        &mut self,
        peer: Option<(BorrowedFd<'_>, PollInterest)>,
        expiry: Option<Instant>,
    ) -> io::Result<Woken> {
        loop {
            let was_stopping = self.deadline.is_some();
            if self.is_stopping() && !was_stopping {
                return Ok(Woken::Stop);
            }
            if let Some(limit) = self.standing.limit() {
                return Ok(Woken::Limit(limit));
            }
            let others_from = self.others_from();
            let listener = self.others_now(others_from);
            let until = self.deadline.into_iter().chain(expiry).min();
            let grace = others_from.filter(|_| listener.is_none());
            let earliest = until.into_iter().chain(grace).min();
            let left = earliest.map(|until| until.saturating_duration_since(Instant::now()));
            let listener = listener.map(|listener| (listener.as_fd(), PollInterest::Read));
            let ready = sys::wait_for(&self.wanted(peer, listener, was_stopping), left)?;
            if ready & 1 != 0 {
                return Ok(Woken::Peer);
            }
            if ready & 0b10 != 0 && self.standing.reject() {
                return Ok(Woken::Limit(Limit::Connections));
            }
            if ready == 0 {
                let now = Instant::now();
                // The earlier of the two counts, even if both have passed by now.
                if expiry.is_some_and(|expiry| until == Some(expiry) && expiry <= now) {
                    return Ok(Woken::TimedOut);
                }
                if self.is_overdue() {
                    return Ok(Woken::Deadline);
                }
                continue;
            }
            if !(self.is_stopping)() {
                self.wakeups.iter().for_each(|wakeup| wakeup.clear());
            }
        }
    }

    /// What a wait waits for: the peer, the listener, and at most three wakeups.
    fn wanted<'w>(
        &'w self,
        peer: Option<(BorrowedFd<'w>, PollInterest)>,
        listener: Option<(BorrowedFd<'w>, PollInterest)>,
        is_stopping: bool,
    ) -> [Option<(BorrowedFd<'w>, PollInterest)>; 5] {
        let mut wanted = [peer, listener, None, None, None];
        if !is_stopping {
            let wakeups = self.wakeups.iter().copied().chain(self.child_stop_request);
            for (slot, wakeup) in wanted[2..].iter_mut().zip(wakeups) {
                *slot = Some((wakeup.as_fd(), PollInterest::Read));
            }
        }
        wanted
    }

    /// Ends an idle session because the server is stopping. With `knew`, it was busy when the stop
    /// was detected and has finished its request since.
    fn end_idle(&mut self, knew: bool) -> Input {
        let how = if knew { StopOutcome::Finished } else { StopOutcome::Idle };
        self.stop_outcome.get_or_insert(how);
        Input::Stopping
    }

    /// As [`WaitStrategy::wait_without_read`](super::WaitStrategy::wait_without_read).
    pub(super) fn wait_without_read(
        &mut self,
        watched: Option<(BorrowedFd<'_>, PollInterest)>,
        timeout: Option<Duration>,
        idle: bool,
    ) -> io::Result<Input> {
        let knew = self.deadline.is_some();
        let expiry = expiry(timeout);
        loop {
            match (self.is_stopping(), idle) {
                (true, true) => return Ok(self.end_idle(knew)),
                (true, false) if !knew => return Ok(Input::Woken),
                _ => {}
            }
            match self.wait(watched, expiry)? {
                Woken::Peer => return Ok(Input::Bytes(0)),
                Woken::TimedOut => return Ok(Input::TimedOut),
                Woken::Deadline => return Ok(Input::Stopping),
                Woken::Limit(limit) => return Ok(Input::Limit(limit)),
                Woken::Stop => {}
            }
        }
    }

    pub(super) fn read(
        &mut self,
        socket: &Socket,
        buffer: &mut [u8],
        timeout: Option<Duration>,
        idle: bool,
        others: bool,
    ) -> io::Result<Input> {
        let knew = self.deadline.is_some();
        // The timeout is for this read as a whole: it does not restart when the stop wakes it.
        let expiry = expiry(timeout);
        loop {
            if self.is_overdue() {
                return Ok(Input::Stopping);
            }
            // Checked before the read: input that arrived before the stop is still read.
            let is_stopping = self.is_stopping();
            match sys::receive_now(socket, buffer) {
                Ok(count) => return Ok(Input::Bytes(count)),
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
            if is_stopping && idle {
                return Ok(self.end_idle(knew));
            }
            if is_stopping && !knew && others {
                return Ok(Input::Woken);
            }
            match self.wait(Some((socket.as_fd(), PollInterest::Read)), expiry)? {
                Woken::Peer | Woken::Stop => {}
                Woken::TimedOut => return Ok(Input::TimedOut),
                Woken::Deadline => return Ok(Input::Stopping),
                Woken::Limit(limit) => return Ok(Input::Limit(limit)),
            }
        }
    }
}
