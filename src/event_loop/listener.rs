//! A stream listener: accepts in batches, and handles every error of accept(2).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::source::{
    Dispatcher, EventSource, ListenerHooks, ListenerParts, LoopCx, PostAction, Readiness,
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
            if !cx.may_accept() || !self.dispatcher.has_room() {
                return PostAction::Wait;
            }
            if let Some(socket) = self.handed.pop_front() {
                self.take(socket, cx);
                continue;
            }
            if self.closed {
                return PostAction::Wait;
            }
            match sys::accept(self.socket, self.dispatcher.nonblocking()) {
                Ok((socket, address)) => self.accepted(socket, peer_of(&address), cx),
                Err(error) => match classify(&error) {
                    AcceptError::Next if self.failures < FAILURE_BUDGET => self.failures += 1,
                    AcceptError::Drained => {
                        self.drained(cx);
                        return PostAction::Wait;
                    }
                    AcceptError::Next | AcceptError::Exhausted => {
                        match pause {
                            Some(_) => self.paused_until = pause,
                            None => self.exhausted(&error, cx),
                        }
                        return PostAction::Wait;
                    }
                    AcceptError::Fatal => {
                        log::error!("{} stops accepting: {error}", self.address);
                        self.closed = true;
                        return PostAction::Wait;
                    }
                },
            }
        }
        PostAction::Requeue
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
        self.pause = FIRST_PAUSE;
        self.failures = 0;
        cx.scratch.tally.accepted += 1;
        cx.run.accepts_left = cx.run.accepts_left.saturating_sub(1);
        let id = ConnectionId::next();
        if self.hooks.prepare(socket.as_fd(), id, &peer, cx) && self.hooks.verify(&peer, cx) {
            self.dispatcher.dispatch(AcceptedStream { socket, peer, id }, cx);
        } else {
            cx.scratch.tally.refused_by_hook += 1;
            cx.scratch.tally.closed += 1;
        }
    }

    /// No client waits: the poller reports the next one.
    fn drained(&mut self, cx: &mut LoopCx) {
        self.failures = 0;
        cx.call.readiness.remove(Readiness::READABLE);
        cx.keep_reserve();
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

    fn deadline(&self) -> Option<Instant> {
        self.paused_until
    }

    fn expired(&mut self, cx: &mut LoopCx) -> PostAction {
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
