//! A stream listener: accepts in batches, and handles every error of accept(2).

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::admission::{Admission, Full, Verdict};
use super::source::{
    Dispatcher, EventSource, ListenerHooks, ListenerParts, LoopCx, PostAction, Readiness, RunState,
};
use crate::accepted::AcceptedStream;
use crate::address::{Address, Peer};
use crate::connection_id::ConnectionId;
use crate::guard::log;
use crate::log_limiter::LogLimiter;
use crate::sys::{self, Socket};
use crate::transport::peer_of;

/// How many connections a listener accepts in one turn, over all calls of that turn.
const ACCEPT_BUDGET: usize = 64;

/// How many clients are accepted and closed at once each time that descriptors have run out.
const SHED_BUDGET: usize = 16;

/// How many accepts may fail in a row, for temporary reasons, before the listener pauses.
const FAILURE_BUDGET: usize = 64;

/// How long a listener pauses when descriptors or memory have run out: at first, and at most.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(10);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A dispatcher that serves accepted connections.
pub(crate) trait StreamDispatcher: Dispatcher {
    /// Whether accepted sockets are set to non-blocking.
    fn nonblocking(&self) -> bool;

    /// Serves an accepted connection.
    fn dispatch(&mut self, stream: AcceptedStream, cx: &mut LoopCx);
}

/// A stream listener in the slab.
pub(crate) struct Listener<'a> {
    socket: &'a Socket,
    address: &'a Address,
    dispatcher: Box<dyn StreamDispatcher + 'a>,
    hooks: Box<dyn ListenerHooks + 'a>,
    /// The listener accepts nothing until this time. Each further failure doubles the pause.
    paused_until: Option<Instant>,
    pause: Duration,
    /// How many accepts are left in the turn that began at this time.
    budget: usize,
    turn_began: Option<Instant>,
    /// How many accepts have failed in a row.
    failures: usize,
    log_limiter: LogLimiter,
    /// Limits the warnings about clients that wait or are turned away.
    full_log: LogLimiter,
    admission: Admission,
    /// When it looks again whether requests wait for threads.
    check_threads_at: Option<Instant>,
    /// Since when it has been paused because descriptors or memory have run out.
    exhausted_since: Option<Instant>,
    /// The listener no longer accepts, or its socket never listened.
    closed: bool,
    /// Connections that were handed over by the user; they are served first.
    handed: &'a mut VecDeque<Socket>,
}

/// The classes of errors of accept(2).
enum AcceptError {
    /// No client waits.
    Drained,
    /// This connection is gone, or the call was interrupted: accept the next one.
    Next,
    /// Descriptors or memory have run out.
    Exhausted,
    /// The socket does not listen.
    Fatal,
}

fn classify(error: &io::Error) -> AcceptError {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => AcceptError::Drained,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => AcceptError::Exhausted,
        Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP | libc::EFAULT) => {
            AcceptError::Fatal
        }
        // ECONNABORTED, EINTR, EPROTO, EPERM, and the network errors that accept(2) passes on.
        _ => AcceptError::Next,
    }
}

impl<'a> Listener<'a> {
    pub(crate) fn new(
        socket: &'a Socket,
        address: &'a Address,
        dispatcher: Box<dyn StreamDispatcher + 'a>,
        hooks: Box<dyn ListenerHooks + 'a>,
        handed: &'a mut VecDeque<Socket>,
        admission: Admission,
        closed: bool,
    ) -> Self {
        Listener {
            socket,
            address,
            dispatcher,
            hooks,
            paused_until: None,
            pause: FIRST_PAUSE,
            budget: 0,
            turn_began: None,
            failures: 0,
            log_limiter: LogLimiter::default(),
            full_log: LogLimiter::default(),
            admission,
            check_threads_at: None,
            exhausted_since: None,
            closed,
            handed,
        }
    }

    /// Accepts waiting clients. If the listener pauses until `pause`, it retries because a
    /// descriptor or memory has been freed. If descriptors run out again, the pause continues.
    fn accept(&mut self, pause: Option<Instant>, cx: &mut LoopCx) -> PostAction {
        if self.closed && self.handed.is_empty() {
            return PostAction::Wait;
        }
        if self.turn_began.replace(cx.turn.now) != Some(cx.turn.now) {
            self.budget = ACCEPT_BUDGET.min(self.dispatcher.burst());
        }
        while self.budget > 0 {
            self.budget -= 1;
            // Checked before the call, so that a client that cannot be served stays in the kernel's
            // queue.
            if !cx.may_accept() {
                return PostAction::Wait;
            }
            let Some(verdict) = self.admitted(cx) else { return PostAction::Wait };
            let serves = verdict == Verdict::Accept;
            if serves && let Some(socket) = self.handed.pop_front() {
                self.take(socket, cx);
                continue;
            }
            if self.closed {
                return PostAction::Wait;
            }
            match (self.accept_client(pause, cx), verdict) {
                (ControlFlow::Break(()), _) => return PostAction::Wait,
                (ControlFlow::Continue(None), _) => {}
                (ControlFlow::Continue(Some((socket, _))), Verdict::TurnAway(bytes)) => {
                    self.turn_away(socket, &bytes, cx);
                }
                (ControlFlow::Continue(Some((socket, peer))), _) => self.accepted(socket, peer, cx),
            }
        }
        PostAction::Requeue
    }

    /// What happens to the next client, if it is accepted. `None` if it waits.
    fn admitted(&mut self, cx: &mut LoopCx) -> Option<Verdict> {
        match self.admission.judge(self.dispatcher.has_room(), cx) {
            Verdict::Wait(full) => {
                // Otherwise the next client causes an edge.
                if !self.handed.is_empty() || (!self.closed && sys::has_client(self.socket)) {
                    self.full(full, cx);
                }
                None
            }
            Verdict::WaitUntil(at) => {
                self.retry_at(at, cx);
                None
            }
            verdict => Some(verdict),
        }
    }

    /// Accepts the next client; `None` if this one is gone. Breaks if there is no other now, or if the
    /// listener pauses or is broken.
    fn accept_client(
        &mut self,
        pause: Option<Instant>,
        cx: &mut LoopCx,
    ) -> ControlFlow<(), Option<(Socket, Peer)>> {
        let error = match sys::accept(self.socket, self.dispatcher.nonblocking()) {
            Ok((socket, address)) => {
                self.end_pause(cx);
                return ControlFlow::Continue(Some((socket, peer_of(&address))));
            }
            Err(error) => error,
        };
        match classify(&error) {
            AcceptError::Next if self.failures < FAILURE_BUDGET => {
                self.failures += 1;
                return ControlFlow::Continue(None);
            }
            AcceptError::Drained => self.drained(cx),
            AcceptError::Next | AcceptError::Exhausted => match pause {
                Some(_) => self.paused_until = pause,
                None => self.exhausted(&error, cx),
            },
            AcceptError::Fatal => {
                log::error!("{} stops accepting: {error}", self.address);
                self.closed = true;
            }
        }
        ControlFlow::Break(())
    }

    /// A client has been accepted: descriptors and memory have not run out any more.
    fn end_pause(&mut self, cx: &mut LoopCx) {
        if let Some(since) = self.exhausted_since.take() {
            let paused = cx.turn.now.saturating_duration_since(since).as_millis();
            cx.scratch.tally.accept_paused_ms += u64::try_from(paused).unwrap_or(u64::MAX);
        }
        self.pause = FIRST_PAUSE;
        self.failures = 0;
    }

    /// Serves a connection that was handed over.
    fn take(&mut self, socket: Socket, cx: &mut LoopCx) {
        let peer = socket.peer_addr().and_then(|address| {
            socket.set_nonblocking(self.dispatcher.nonblocking())?;
            Ok(peer_of(&address))
        });
        match peer {
            Ok(peer) => self.accepted(socket, peer, cx),
            Err(error) => {
                log::warn!("a socket that was handed over is not a connected socket: {error}")
            }
        }
    }

    fn accepted(&mut self, socket: Socket, peer: Peer, cx: &mut LoopCx) {
        cx.scratch.tally.accepted += 1;
        cx.run.accepts_left = cx.run.accepts_left.saturating_sub(1);
        let permit = match self.admission.admit(&peer) {
            Ok(permit) => permit,
            Err(last_words) => {
                cx.scratch.tally.over_address += 1;
                cx.scratch.tally.closed += 1;
                match last_words {
                    Some(bytes) => sys::send_and_close(socket, &bytes),
                    None => sys::reset_on_close(&socket),
                }
                return;
            }
        };
        let id = ConnectionId::next();
        if self.hooks.prepare(socket.as_fd(), id, &peer, cx) && self.hooks.verify(&peer, cx) {
            self.dispatcher.dispatch(AcceptedStream { socket, peer, id, permit }, cx);
        } else {
            cx.scratch.tally.refused_by_hook += 1;
            cx.scratch.tally.closed += 1;
        }
    }

    /// A client waits because so many connections are open: a silent one may be closed for it.
    fn full(&mut self, full: Full, cx: &mut LoopCx) {
        cx.scratch.tally.full += 1;
        if let Some(times) = self.full_log.record(cx.turn.now) {
            let open = cx.open_connections();
            log::warn!(
                "{} is full ({times} times so far): {open} connections are open",
                self.address
            );
        }
        // The modes report the ends of their connections only if they are asked to.
        cx.turn.exhausted = true;
        cx.turn.full = self.admission.closes_silent().then_some(full);
        cx.turn.has_follow_up = true;
    }

    /// Closes an accepted client after telling it these bytes.
    fn turn_away(&mut self, socket: Socket, bytes: &[u8], cx: &mut LoopCx) {
        sys::send_and_close(socket, bytes);
        let tally = &mut cx.scratch.tally;
        (tally.accepted, tally.closed) = (tally.accepted + 1, tally.closed + 1);
        tally.turned_away += 1;
        if let Some(times) = self.full_log.record(cx.turn.now) {
            log::warn!("{} turns clients away ({times} so far)", self.address);
        }
    }

    /// No client waits: the poller reports the next one.
    fn drained(&mut self, cx: &mut LoopCx) {
        self.failures = 0;
        cx.call.readiness.remove(Readiness::READABLE);
        cx.keep_reserve();
        self.check_threads(cx);
    }

    /// If accepted requests wait for threads, silent connections may be closed for them.
    fn check_threads(&mut self, cx: &mut LoopCx) {
        if self.admission.closes_silent() && self.dispatcher.has_waiting() {
            cx.turn.full = Some(Full::Threads);
            cx.turn.has_follow_up = true;
        }
    }

    /// Accepts and closes some clients with the reserve descriptor, and pauses.
    fn exhausted(&mut self, error: &io::Error, cx: &mut LoopCx) {
        // When descriptors have run out, accept(2) fails before it checks whether a client waits.
        let mut is_empty = false;
        let mut shed = 0;
        if cx.run.reserve.take().is_some() {
            while shed < SHED_BUDGET && !is_empty {
                match sys::accept(self.socket, true) {
                    Ok(_) => shed += 1,
                    Err(error) if matches!(classify(&error), AcceptError::Drained) => {
                        is_empty = true;
                    }
                    Err(_) => break,
                }
            }
        }
        cx.keep_reserve();
        cx.scratch.tally.shed_no_fd += shed as u64;
        if is_empty && shed == 0 {
            return self.drained(cx);
        }
        cx.scratch.tally.accept_pauses += 1;
        if let Some(times) = self.log_limiter.record(cx.turn.now) {
            log::warn!("{} pauses accepting ({times} times so far): {error}", self.address);
        }
        self.exhausted_since.get_or_insert(cx.turn.now);
        self.paused_until = Some(cx.turn.now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        cx.turn.exhausted = true;
        cx.deadline_changed();
    }
}

impl EventSource for Listener<'_> {
    fn ready(&mut self, cx: &mut LoopCx) -> PostAction {
        self.dispatcher.on_ready(cx);
        if !self.handed.is_empty() {
            cx.call.readiness.add(Readiness::READABLE);
        }
        if self.paused_until.is_some() || !cx.call.readiness.has(Readiness::READABLE) {
            return PostAction::Wait;
        }
        self.accept(None, cx)
    }

    fn deadline(&self, _run: &RunState) -> Option<Instant> {
        self.paused_until.into_iter().chain(self.check_threads_at).min()
    }

    fn expired(&mut self, cx: &mut LoopCx) -> PostAction {
        let now = cx.turn.now;
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.check_threads_at) {
            self.check_threads_at = None;
            self.check_threads(cx);
        }
        if !is_due(self.paused_until) {
            return PostAction::Wait;
        }
        self.paused_until = None;
        cx.deadline_changed();
        cx.call.readiness.add(Readiness::READABLE);
        self.accept(None, cx)
    }

    fn on_capacity_freed(&mut self, cx: &mut LoopCx) -> PostAction {
        let pause = self.paused_until.take();
        if pause.is_some() {
            cx.deadline_changed();
            cx.call.readiness.add(Readiness::READABLE);
        }
        if cx.call.readiness.has(Readiness::READABLE) {
            self.accept(pause, cx)
        } else {
            PostAction::Wait
        }
    }

    fn retry_at(&mut self, at: Instant, cx: &mut LoopCx) {
        self.paused_until = Some(self.paused_until.map_or(at, |until| until.min(at)));
        cx.deadline_changed();
    }

    fn check_threads_at(&mut self, at: Instant, cx: &mut LoopCx) {
        self.check_threads_at = Some(at);
        cx.deadline_changed();
    }

    fn stop(&mut self, cx: &mut LoopCx) -> PostAction {
        let _ = cx;
        self.dispatcher.stop();
        PostAction::Wait
    }

    fn abort_all(&mut self, cx: &mut LoopCx) {
        self.dispatcher.abort_all(cx);
    }

    fn inherited(&self) -> Vec<RawFd> {
        self.handed.iter().map(AsRawFd::as_raw_fd).collect()
    }

    fn parts(&mut self) -> Option<ListenerParts<'_>> {
        Some(ListenerParts { dispatcher: &mut *self.dispatcher, hooks: &mut *self.hooks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_broken_listener_is_fatal() {
        let verdict = |errno| classify(&io::Error::from_raw_os_error(errno));
        assert!(matches!(verdict(libc::EAGAIN), AcceptError::Drained));
        for errno in [libc::ECONNABORTED, libc::EINTR, libc::EPROTO, libc::ENETDOWN, libc::EPERM] {
            assert!(matches!(verdict(errno), AcceptError::Next));
        }
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
            assert!(matches!(verdict(errno), AcceptError::Exhausted));
        }
        for errno in [libc::EBADF, libc::EINVAL, libc::ENOTSOCK] {
            assert!(matches!(verdict(errno), AcceptError::Fatal));
        }
    }
}
