//! A datagram socket in the slab: receives in batches, and sends the replies in batches.

use std::io;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::listener::{FIRST_PAUSE, LONGEST_PAUSE};
use super::replies::{REPLIES_HIGH, Replies};
use super::source::{
    Dispatcher, EventSource, ListenerHooks, ListenerParts, LoopCx, PostAction, Readiness, RunState,
};
use crate::address::{Address, Peer};
use crate::datagram::{RETRY, ReplySocket};
use crate::guard::log;
use crate::log_limiter::LogLimiter;
use crate::mailbox::Job;
use crate::sys::{self, Batch, Destination, RecvMeta};
use crate::transport::peer_of;

/// How many datagrams a call receives before other entries are served.
const RECEIVE_BUDGET: usize = 128;

/// How many receives may fail in a row before receiving pauses.
const FAILURES: u32 = 16;

/// A dispatcher that serves datagrams.
pub(crate) trait DatagramDispatcher: Dispatcher {
    /// Serves a datagram: puts the replies into the output buffer of `cx`, or passes the datagram
    /// on.
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx);

    /// Takes back a finished job; returns the destination and the bytes to which its replies refer.
    fn returned(&mut self, work: Box<dyn Job>, cx: &mut LoopCx) -> Option<(Destination, Vec<u8>)> {
        let _ = (work, cx);
        None
    }
}

/// A datagram socket in the slab.
pub(crate) struct Datagrams<'a> {
    socket: &'a Socket,
    address: &'a Address,
    batch: &'a mut Batch,
    dispatcher: Box<dyn DatagramDispatcher + 'a>,
    hooks: Box<dyn ListenerHooks + 'a>,
    received: Vec<RecvMeta>,
    replies: Replies,
    /// The socket as senders outside of the loop use it; the loop retries what they have queued.
    reply_socket: &'a ReplySocket,
    log_limiter: LogLimiter,
    /// How many receives have failed in a row.
    failures: u32,
    /// Nothing is received until this time. Each further failure doubles the pause.
    paused_until: Option<Instant>,
    pause: Duration,
}

impl<'a> Datagrams<'a> {
    pub(crate) fn new(
        reply_socket: &'a ReplySocket,
        batch: &'a mut Batch,
        dispatcher: Box<dyn DatagramDispatcher + 'a>,
        hooks: Box<dyn ListenerHooks + 'a>,
    ) -> Self {
        let (socket, address) = (&*reply_socket.socket, reply_socket.address());
        Datagrams {
            socket,
            address,
            batch,
            dispatcher,
            hooks,
            received: Vec::new(),
            replies: Replies::new(matches!(address, Address::Udp(_)) && sys::supports_gso(socket)),
            reply_socket,
            log_limiter: LogLimiter::default(),
            failures: 0,
            paused_until: None,
            pause: FIRST_PAUSE,
        }
    }

    fn run(&mut self, cx: &mut LoopCx) -> PostAction {
        self.replies.send(self.socket, cx);
        let mut budget = RECEIVE_BUDGET;
        while cx.call.readiness.has(Readiness::READABLE) {
            if !cx.may_accept()
                || self.paused_until.is_some()
                || self.replies.charge() >= REPLIES_HIGH
                || !self.dispatcher.has_room()
            {
                return PostAction::Wait;
            }
            if budget == 0 {
                return PostAction::Requeue;
            }
            if let Some(pause) = self.hooks.pause_receiving(cx) {
                self.paused_until = Some(cx.turn.now + pause);
                cx.deadline_changed();
                return PostAction::Wait;
            }
            let most = budget.min(cx.run.accepts_left).min(self.dispatcher.burst());
            match self.batch.receive(self.socket, most, &mut self.received) {
                // A datagram socket is drained when the kernel says so, unlike a stream. A batch
                // that was not filled says the same: the next datagram causes a new edge.
                Ok(drained) => {
                    if drained {
                        cx.call.readiness.remove(Readiness::READABLE);
                    }
                    self.failures = 0;
                    self.pause = FIRST_PAUSE;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    cx.call.readiness.remove(Readiness::READABLE);
                    self.failures = 0;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    budget = budget.saturating_sub(1);
                    self.on_receive_error(&error, cx);
                }
            }
            budget = budget.saturating_sub(self.received.len());
            cx.scratch.tally.dropped_by_kernel += self.batch.take_drops();
            self.dispatch_all(cx);
            self.replies.send(self.socket, cx);
            if self.dispatcher.burst() == 1 && cx.call.readiness.has(Readiness::READABLE) {
                return PostAction::Requeue;
            }
        }
        PostAction::Wait
    }

    /// Handles a failed receive. An error that reports a failed reply is logged, and receiving
    /// continues. An error that may persist, such as a lack of memory, pauses receiving.
    fn on_receive_error(&mut self, error: &io::Error, cx: &mut LoopCx) {
        cx.scratch.tally.unsent += u64::from(is_reply_error(error));
        self.failures += 1;
        if !is_exhaustion(error) && self.failures < FAILURES {
            return log::debug!("{}: {error}", self.address);
        }
        cx.scratch.tally.accept_pauses += 1;
        if let Some(times) = self.log_limiter.record(cx.turn.now) {
            log::warn!("{} pauses receiving ({times} times so far): {error}", self.address);
        }
        self.paused_until = Some(cx.turn.now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        cx.deadline_changed();
    }

    /// Resumes receiving after a pause.
    fn resume(&mut self, cx: &mut LoopCx) {
        if self.paused_until.take().is_some() {
            cx.deadline_changed();
        }
    }

    fn dispatch_all(&mut self, cx: &mut LoopCx) {
        let mut received = std::mem::take(&mut self.received);
        for (number, datagram) in received.drain(..).enumerate() {
            cx.scratch.tally.datagrams += 1;
            cx.scratch.tally.bytes_in += datagram.len as u64;
            cx.scratch.tally.truncated += u64::from(datagram.truncated);
            cx.run.accepts_left = cx.run.accepts_left.saturating_sub(1);
            let peer = peer_of(&datagram.from.address);
            if !self.hooks.verify(&peer, cx) {
                cx.scratch.tally.refused_by_hook += 1;
                continue;
            }
            let bytes = self.batch.bytes(number, datagram.len);
            self.dispatcher.dispatch(bytes, peer, &datagram, cx);
            let meter = self.reply_socket.meter(bytes.len());
            self.replies.keep(&mut cx.scratch, bytes, datagram.from, meter, cx.turn.now);
        }
        self.received = received;
    }
}

impl EventSource for Datagrams<'_> {
    fn ready(&mut self, cx: &mut LoopCx) -> PostAction {
        self.dispatcher.on_ready(cx);
        self.run(cx)
    }

    fn returned(&mut self, work: Box<dyn Job>, cx: &mut LoopCx) -> PostAction {
        if let Some((from, bytes)) = self.dispatcher.returned(work, cx) {
            let meter = self.reply_socket.meter(bytes.len());
            self.replies.keep(&mut cx.scratch, &bytes, from, meter, cx.turn.now);
        }
        self.run(cx)
    }

    /// A sender outside of the loop has queued a datagram.
    fn send_queue_ready(&mut self, cx: &mut LoopCx) -> PostAction {
        if self.replies.retry_at.is_none() {
            self.replies.retry_at = Some(cx.turn.now + RETRY);
            cx.deadline_changed();
        }
        PostAction::Wait
    }

    fn deadline(&self, _run: &RunState) -> Option<Instant> {
        let Replies { retry_at, stalled_until, .. } = self.replies;
        retry_at.into_iter().chain(stalled_until).chain(self.paused_until).min()
    }

    fn expired(&mut self, cx: &mut LoopCx) -> PostAction {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= cx.turn.now);
        let (retry, resume) = (is_due(self.replies.retry_at), is_due(self.paused_until));
        let stalled = is_due(self.replies.stalled_until);
        if retry {
            let sender_retry = self.reply_socket.retry(cx.turn.now, &mut cx.scratch.tally);
            self.replies.retry(self.socket, sender_retry, cx);
        }
        if stalled {
            self.replies.retry_or_drop(self.socket, cx);
        }
        if resume {
            self.resume(cx);
        }
        self.run(cx)
    }

    fn on_capacity_freed(&mut self, cx: &mut LoopCx) -> PostAction {
        self.resume(cx);
        self.run(cx)
    }

    fn undelivered(&self) -> usize {
        self.replies.len() + self.reply_socket.drain()
    }

    /// What is still queued at the end of a run is lost.
    fn finish(&mut self, cx: &mut LoopCx) {
        cx.scratch.tally.dropped_by_kernel += self.batch.take_all_drops(self.socket);
        self.replies.drop_all(&mut cx.scratch.tally);
        self.reply_socket.end_run(&mut cx.scratch.tally);
    }

    fn stop(&mut self, cx: &mut LoopCx) -> PostAction {
        self.replies.send(self.socket, cx);
        self.dispatcher.stop();
        PostAction::Wait
    }

    fn abort_all(&mut self, cx: &mut LoopCx) {
        self.replies.send(self.socket, cx);
        self.dispatcher.abort_all(cx);
    }

    fn parts(&mut self) -> Option<ListenerParts<'_>> {
        Some(ListenerParts { dispatcher: &mut *self.dispatcher, hooks: &mut *self.hooks })
    }
}

/// Whether the error reports that an earlier reply did not reach its peer: see icmp(7).
fn is_reply_error(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::ECONNRESET
                | libc::EHOSTUNREACH
                | libc::EHOSTDOWN
                | libc::ENETUNREACH
                | libc::ENETDOWN
                | libc::EMSGSIZE
                | libc::EPROTO
                | libc::ENOPROTOOPT
        )
    )
}

/// Whether memory or descriptors have run out.
fn is_exhaustion(error: &io::Error) -> bool {
    let exhausted = [libc::ENOMEM, libc::ENOBUFS, libc::EMFILE, libc::ENFILE];
    error.raw_os_error().is_some_and(|errno| exhausted.contains(&errno))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::fd::BorrowedFd;
    use std::sync::Arc;

    use socket2::{Domain, Type};

    use super::*;
    use crate::address::LogPeer;
    use crate::connection_id::ConnectionId;
    use crate::error::CloseReason;
    use crate::server_state::ServerState;

    /// A dispatcher and hooks that do nothing.
    struct DoesNothing;

    impl Dispatcher for DoesNothing {}

    impl DatagramDispatcher for DoesNothing {
        fn dispatch(&mut self, _: &[u8], _: Peer, _: &RecvMeta, _: &mut LoopCx) {}
    }

    impl ListenerHooks for DoesNothing {
        fn prepare(
            &mut self,
            _: BorrowedFd<'_>,
            _: ConnectionId,
            _: &Peer,
            _: &mut LoopCx,
        ) -> bool {
            true
        }

        fn verify(&mut self, _: &Peer, _: &mut LoopCx) -> bool {
            true
        }

        fn fault(&mut self, _: &LogPeer, _: &CloseReason, _: &mut LoopCx) {}

        fn wants_turn_end(&self) -> bool {
            false
        }

        fn on_turn_end(&mut self, _: &mut LoopCx) {}
    }

    #[test]
    fn a_socket_that_keeps_failing_is_paused_longer_each_time_and_counts_no_unsent_reply() {
        // Each receive fails, because the socket is not connected.
        let broken = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let address = Address::Udp(SocketAddr::from(([127, 0, 0, 1], 1)));
        let mut batch = Batch::new(&broken, 100);
        let (dispatcher, hooks) = (Box::new(DoesNothing), Box::new(DoesNothing));
        let reply_socket = ReplySocket::new(Arc::new(broken.into()), Arc::new(address));
        let mut datagrams = Datagrams::new(&reply_socket, &mut batch, dispatcher, hooks);
        let run = Arc::new(ServerState::new().unwrap()).begin();
        let mut cx = LoopCx::new(run.stop_requester().clone());
        cx.call.readiness.add(Readiness::READABLE);
        let mut pause = FIRST_PAUSE;
        for times in 1..=10 {
            assert_eq!(datagrams.ready(&mut cx), PostAction::Wait);
            assert_eq!(datagrams.deadline(&cx.run), Some(cx.turn.now + pause));
            assert_eq!((cx.scratch.tally.accept_pauses, cx.scratch.tally.unsent), (times, 0));
            // Nothing is received during the pause.
            assert_eq!(datagrams.ready(&mut cx), PostAction::Wait);
            assert_eq!(cx.scratch.tally.accept_pauses, times);
            cx.turn.now += pause;
            datagrams.resume(&mut cx);
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    #[test]
    fn exhausted_memory_pauses_the_socket_and_an_error_of_a_reply_does_not() {
        for errno in [libc::ENOMEM, libc::ENOBUFS] {
            assert!(is_exhaustion(&io::Error::from_raw_os_error(errno)));
        }
        for errno in [libc::ECONNREFUSED, libc::EHOSTUNREACH] {
            let error = io::Error::from_raw_os_error(errno);
            assert!(is_reply_error(&error) && !is_exhaustion(&error));
        }
    }
}
