//! A datagram socket in the slab: receives in batches, and sends the replies in batches.

use std::io;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::listener::{FIRST_PAUSE, LONGEST_PAUSE};
use super::replies::{REPLIES_HIGH, Replies};
use super::source::{
    Dispatcher, EventSource, ListenerHooks, ListenerParts, LoopCx, PostAction, Readiness,
};
use crate::address::{Address, Peer};
use crate::datagram::{RETRY, ReplySocket};
use crate::guard::log;
use crate::log_limiter::LogLimiter;
use crate::mailbox::Job;
use crate::sys::{self, Batch, Destination, RecvMeta};
use crate::transport::peer_of;

/// How many datagrams are received before others come first.
const RECEIVE_BUDGET: usize = 128;

/// How many receives may fail one after the other before receiving pauses.
const FAILURES: u32 = 16;

/// Who answers datagrams.
pub(crate) trait DatagramDispatcher: Dispatcher {
    /// Takes a datagram: answers it into the output buffer of `cx`, or has it answered elsewhere.
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx);

    /// What was lent comes home: where its replies go, and what they refer to.
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
    /// What is sent beside the loop; the loop retries what it has put aside.
    reply_socket: &'a ReplySocket,
    log_limiter: LogLimiter,
    /// How many receives have failed one after the other.
    failures: u32,
    /// Nothing is received until then, and then for twice as long if it fails again.
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
            let most = budget.min(cx.run.accepts_left).min(self.dispatcher.burst());
            match self.batch.receive(self.socket, most, &mut self.received) {
                // Unlike a stream, a datagram socket has been drained only when it says so itself;
                // but a batch that was not filled is as good: the next edge is for the next one.
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
                    self.not_received(&error, cx);
                }
            }
            budget = budget.saturating_sub(self.received.len());
            self.answer_all(cx);
            self.replies.send(self.socket, cx);
            if self.dispatcher.burst() == 1 && cx.call.readiness.has(Readiness::READABLE) {
                return PostAction::Requeue;
            }
        }
        PostAction::Wait
    }

    /// A receive has failed. What the network says of an earlier reply is said once, and the next
    /// call goes on; for what may stay, such as a want of memory, receiving pauses.
    fn not_received(&mut self, error: &io::Error, cx: &mut LoopCx) {
        cx.scratch.tally.unsent += u64::from(is_of_a_reply(error));
        self.failures += 1;
        if !is_exhaustion(error) && self.failures < FAILURES {
            return log::debug!("{}: {error}", self.address);
        }
        cx.scratch.tally.accept_pauses += 1;
        if let Some(times) = self.log_limiter.record(cx.turn.now) {
            log::warn!("{} pauses ({times} times by now): {error}", self.address);
        }
        self.paused_until = Some(cx.turn.now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        cx.deadline_changed();
    }

    /// Receives again after a pause.
    fn resume(&mut self, cx: &mut LoopCx) {
        if self.paused_until.take().is_some() {
            cx.deadline_changed();
        }
    }

    fn answer_all(&mut self, cx: &mut LoopCx) {
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
            self.replies.keep(&mut cx.scratch, bytes, datagram.from, cx.turn.now);
        }
        self.received = received;
    }
}

impl EventSource for Datagrams<'_> {
    fn ready(&mut self, cx: &mut LoopCx) -> PostAction {
        self.dispatcher.look(cx);
        self.run(cx)
    }

    fn returned(&mut self, work: Box<dyn Job>, cx: &mut LoopCx) -> PostAction {
        if let Some((from, bytes)) = self.dispatcher.returned(work, cx) {
            self.replies.keep(&mut cx.scratch, &bytes, from, cx.turn.now);
        }
        self.run(cx)
    }

    /// Something has been put aside by whoever sends beside the loop.
    fn send_queue_ready(&mut self, cx: &mut LoopCx) -> PostAction {
        if self.replies.retry_at.is_none() {
            self.replies.retry_at = Some(cx.turn.now + RETRY);
            cx.deadline_changed();
        }
        PostAction::Wait
    }

    fn deadline(&self) -> Option<Instant> {
        let Replies { retry_at, stalled_until, .. } = self.replies;
        retry_at.into_iter().chain(stalled_until).chain(self.paused_until).min()
    }

    fn expired(&mut self, cx: &mut LoopCx) -> PostAction {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= cx.turn.now);
        let (retry, resume) = (is_due(self.replies.retry_at), is_due(self.paused_until));
        let stalled = is_due(self.replies.stalled_until);
        if retry {
            let beside = self.reply_socket.retry(cx.turn.now, &mut cx.scratch.tally);
            self.replies.retry(self.socket, beside, cx);
        }
        if stalled {
            self.replies.try_once_more(self.socket, cx);
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

    /// What could not be delivered by the end of a run is lost.
    fn finish(&mut self, cx: &mut LoopCx) {
        self.replies.give_up(&mut cx.scratch.tally);
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

/// Whether the network says that an earlier reply has not come to its peer, see icmp(7).
fn is_of_a_reply(error: &io::Error) -> bool {
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
    use crate::address::Origin;
    use crate::connection_id::ConnectionId;
    use crate::error::CloseReason;
    use crate::server_state::ServerState;

    /// A dispatcher and hooks that do nothing.
    struct Nobody;

    impl Dispatcher for Nobody {}

    impl DatagramDispatcher for Nobody {
        fn dispatch(&mut self, _: &[u8], _: Peer, _: &RecvMeta, _: &mut LoopCx) {}
    }

    impl ListenerHooks for Nobody {
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

        fn fault(&mut self, _: &Origin, _: &CloseReason, _: &mut LoopCx) {}

        fn wants_turn_end(&self) -> bool {
            false
        }

        fn on_turn_end(&mut self, _: &mut LoopCx) {}
    }

    #[test]
    fn a_socket_that_keeps_failing_is_paused_longer_each_time_and_counts_no_unsent_reply() {
        // The socket is not connected, so that each receive fails.
        let broken = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let address = Address::Udp(SocketAddr::from(([127, 0, 0, 1], 1)));
        let mut batch = Batch::new(100);
        let (dispatcher, hooks) = (Box::new(Nobody), Box::new(Nobody));
        let reply_socket = ReplySocket::new(Arc::new(broken), Arc::new(address));
        let mut datagrams = Datagrams::new(&reply_socket, &mut batch, dispatcher, hooks);
        let run = Arc::new(ServerState::new().unwrap()).begin();
        let mut cx = LoopCx::new(run.stop_requester().clone());
        cx.call.readiness.add(Readiness::READABLE);
        let mut pause = FIRST_PAUSE;
        for times in 1..=10 {
            assert_eq!(datagrams.ready(&mut cx), PostAction::Wait);
            assert_eq!(datagrams.deadline(), Some(cx.turn.now + pause));
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
            assert!(is_of_a_reply(&error) && !is_exhaustion(&error));
        }
    }
}
