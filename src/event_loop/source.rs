//! What a loop keeps in its slab, listeners and connections alike, and what it lends them for the
//! length of a call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use crate::address::{Origin, Peer};
use crate::connection_id::ConnectionId;
use crate::conversation::{Driver, Scratch};
use crate::error::{CloseReason, Error, UnsupportedError};
use crate::guard::log;
use crate::mailbox::{Job, Mailbox};
use crate::sender::{Recipient, SendQueue, SenderLimit, Waker};
use crate::server_state::{StopOutcome, StopRequester};
use crate::sys::{self, CatchDrop};
use crate::token::Token;

/// Who reads so much at once holds up those who wait beside it.
const BULK_FROM: usize = 32 * 1024;

/// What is known of a descriptor. Edge-triggered, the poller tells each of these once; it is kept
/// until an attempt shows that it no longer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Readiness(u8);

impl Readiness {
    pub(crate) const NONE: Readiness = Readiness(0);
    pub(crate) const READABLE: Readiness = Readiness(1);
    pub(crate) const WRITABLE: Readiness = Readiness(2);
    /// The peer has ended or failed: a short read no longer means that all is read.
    pub(crate) const READ_CLOSED: Readiness = Readiness(4);
    /// The peer takes no more output either.
    pub(crate) const WRITE_CLOSED: Readiness = Readiness(8);
    /// It moved much when it was last called: who moves little comes before it.
    pub(crate) const BULK: Readiness = Readiness(16);
    /// A read may stop at a boundary in the input, an urgent mark or ancillary data: until the next
    /// EAGAIN, a short read does not mean that all is read.
    pub(crate) const BOUNDARY: Readiness = Readiness(32);
    /// Ancillary data can come with its input: each read has to tell whether there was any.
    pub(crate) const ANCILLARY: Readiness = Readiness(64);

    /// What keeps a short read from meaning that all is read.
    const NOT_DRAINED: Readiness = Readiness(Self::READ_CLOSED.0 | Self::BOUNDARY.0);

    #[inline]
    pub(crate) fn of(event: &mio::event::Event) -> Self {
        let gone = event.is_write_closed() || event.is_error();
        let mut readiness = if gone || event.is_read_closed() {
            // Any sign of an end or an error is a reason to read: the system call tells the truth.
            Readiness(
                Self::READABLE.0
                    | Self::READ_CLOSED.0
                    | if gone { Self::WRITE_CLOSED.0 } else { 0 },
            )
        } else {
            Readiness(if event.is_readable() { Self::READABLE.0 } else { 0 })
        };
        if sys::may_be_urgent(event) {
            readiness.add(Self::BOUNDARY);
        }
        if event.is_writable() {
            readiness.add(Self::WRITABLE);
        }
        readiness
    }

    /// Readable, and no sign of an end or a boundary.
    #[inline]
    pub(crate) fn is_only_readable(self) -> bool {
        self.0 & !Self::WRITABLE.0 == Self::READABLE.0
    }

    /// The same where ancillary data can come with the input.
    pub(crate) fn is_plainly_readable_with_ancillary(self) -> bool {
        self.0 & !Self::WRITABLE.0 == Self::READABLE.0 | Self::ANCILLARY.0
    }

    #[inline]
    pub(crate) fn add(&mut self, other: Readiness) {
        self.0 |= other.0;
    }

    #[inline]
    pub(crate) fn remove(&mut self, other: Readiness) {
        self.0 &= !other.0;
    }

    #[inline]
    pub(crate) fn has(self, other: Readiness) -> bool {
        self.0 & other.0 != 0
    }
}

/// What becomes of an entry after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PostAction {
    /// It waits for the poller, its deadline or mail.
    Wait,
    /// It could go on at once, but others come first.
    Requeue,
    /// It is over.
    Remove,
}

/// What a loop lends to an entry for the length of a call.
pub(crate) struct LoopCx {
    /// What belongs to this call.
    pub(crate) call: CallState,
    /// What belongs to this turn of the loop.
    pub(crate) turn: TurnState,
    /// What belongs to this run of the loop.
    pub(crate) run: RunState,
    /// What is read into and written from.
    pub(crate) scratch: Scratch,
}

/// The state of one call of an entry.
pub(crate) struct CallState {
    /// The entry that is being called, and how it is reached from elsewhere.
    pub(crate) entry: EntryRef,
    /// What is known of its descriptor; it removes what turns out not to hold.
    pub(crate) readiness: Readiness,
    /// It has another deadline than before.
    pub(crate) deadline_changed: bool,
}

/// The state of one turn: what its calls use together, and what they leave for the loop to do.
pub(crate) struct TurnState {
    /// When this turn began: the only clock there is.
    pub(crate) now: Instant,
    /// How much of their budgets connections have used in this turn, in bytes; what is read in the
    /// plain case counts nowhere.
    pub(crate) used: u64,
    /// An entry leaves something for the loop to do after its call: a deadline, or one of the next
    /// four.
    pub(crate) has_follow_up: bool,
    /// Conversations that have ended: how, for the hooks of their listener.
    pub(crate) ended: Vec<Closed>,
    /// Connections just accepted, to be put into the slab.
    pub(crate) new_connections: Vec<NewConnection>,
    /// The dispatcher wants [`Dispatcher::run_deferred`] to be called after the current call.
    pub(crate) deferred: bool,
    /// A listener has no descriptor left for who waits: it is to be told of each that becomes free.
    pub(crate) exhausted: bool,
    /// A connection has been closed: descriptors and room are free again.
    pub(crate) capacity_freed: bool,
}

/// The state of one run of the loop.
pub(crate) struct RunState {
    /// The server is stopping: nothing is accepted, and who becomes idle is closed.
    pub(crate) stopping: bool,
    /// How many more requests may be accepted.
    pub(crate) accepts_left: usize,
    /// How many connections have ended that were idle when the server began to stop.
    pub(crate) ended_idle: usize,
    /// Why the loop cannot go on.
    pub(crate) failed: Option<Error>,
    /// A descriptor kept to be given up when there is no other, so that a client can be turned away.
    pub(crate) reserve: Option<OwnedFd>,
}

/// An entry of one run's loop, as its conversation knows it: how it is reached from elsewhere, and how
/// it asks for the end of the run.
#[derive(Clone)]
pub(crate) struct EntryRef {
    pub(crate) stop: StopRequester,
    pub(crate) token: Token,
    /// How much its senders may queue.
    pub(crate) limit: SenderLimit,
    /// When the turn began, or later.
    pub(super) now: Instant,
}

impl EntryRef {
    /// The mailbox of its loop.
    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        self.stop.mailbox()
    }

    /// Sets the time to the current one, where it is used outside of the turn.
    pub(crate) fn renew_now(&mut self) {
        self.now = Instant::now();
    }
}

impl Driver for EntryRef {
    fn send_queue(&self, recipient: Recipient) -> Result<Arc<SendQueue>, UnsupportedError> {
        let waker = Waker::Loop(self.mailbox().clone(), self.token);
        Ok(Arc::new(SendQueue::new(waker, self.limit, recipient)))
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn request_stop(&self) {
        self.stop.request();
    }
}

impl LoopCx {
    pub(crate) fn new(stop: StopRequester) -> Self {
        let mut cx = LoopCx {
            call: CallState {
                entry: EntryRef {
                    stop,
                    token: Token::WAKE,
                    limit: SenderLimit::default(),
                    now: Instant::now(),
                },
                readiness: Readiness::NONE,
                deadline_changed: false,
            },
            turn: TurnState {
                now: Instant::now(),
                used: 0,
                has_follow_up: false,
                ended: Vec::new(),
                new_connections: Vec::new(),
                deferred: false,
                exhausted: false,
                capacity_freed: false,
            },
            run: RunState {
                stopping: false,
                accepts_left: usize::MAX,
                ended_idle: 0,
                failed: None,
                reserve: None,
            },
            scratch: Scratch::with_read_buffer(),
        };
        cx.keep_reserve();
        cx
    }

    /// Lends the read buffer apart from the rest, which is needed while the buffer is full.
    #[inline(always)]
    pub(super) fn with_buffer<T>(&mut self, call: impl FnOnce(&mut [u8], &mut LoopCx) -> T) -> T {
        let mut buffer = std::mem::take(&mut self.scratch.buffer);
        let result = call(&mut buffer, self);
        self.scratch.buffer = buffer;
        result
    }

    /// So many bytes have been read into a buffer of that size. A short read has drained a stream,
    /// see epoll(7), unless its end is there to be read too: the end brings no edge of its own if it
    /// was part of this one. Nor does what lies behind a boundary.
    #[inline(always)]
    pub(crate) fn read(&mut self, count: usize, buffer: usize) {
        let readiness = &mut self.call.readiness;
        self.scratch.tally.bytes_in += count as u64;
        if count < buffer && !readiness.has(Readiness::NOT_DRAINED) {
            readiness.remove(Readiness::READABLE);
        }
        if count >= BULK_FROM {
            readiness.add(Readiness::BULK);
        }
    }

    /// A connection has used so much of its budget for one call, in bytes.
    pub(crate) fn use_budget(&mut self, bytes: usize) {
        self.turn.used += bytes as u64;
        if bytes >= BULK_FROM {
            self.call.readiness.add(Readiness::BULK);
        }
    }

    /// A turn begins.
    #[inline]
    pub(super) fn set_now(&mut self, now: Instant) {
        self.turn.now = now;
        self.call.entry.now = now;
    }

    /// Whether a listener may accept.
    pub(crate) fn may_accept(&self) -> bool {
        !self.run.stopping && !self.call.entry.stop.is_requested() && self.run.accepts_left > 0
    }

    /// Sees to it that there is a descriptor to be given up in need: another number for one that is
    /// open anyway, for which no file has to be found.
    pub(crate) fn keep_reserve(&mut self) {
        if self.run.reserve.is_none() {
            let wakeup = self.call.entry.mailbox().wakeup();
            self.run.reserve = wakeup.as_fd().try_clone_to_owned().ok();
        }
    }

    /// The entry has another deadline than before.
    pub(crate) fn deadline_changed(&mut self) {
        self.call.deadline_changed = true;
        self.turn.has_follow_up = true;
    }

    /// A conversation has ended. Nearly all end in peace, and of those there is nothing to tell.
    pub(crate) fn end(
        &mut self,
        id: Option<ConnectionId>,
        peer: &Peer,
        reason: impl Into<CatchDrop<CloseReason>>,
    ) {
        let reason = reason.into();
        if reason.is_fault() || log::is_enabled(::log::Level::Debug) {
            self.turn.ended.push(Closed { origin: Origin { id, peer: peer.clone() }, reason });
            self.turn.has_follow_up = true;
        }
    }

    /// A connection is to be put into the slab.
    pub(crate) fn register(&mut self, new: NewConnection) {
        self.turn.new_connections.push(new);
        self.turn.has_follow_up = true;
    }

    /// Has [`Dispatcher::run_deferred`] called after the current call of its listener.
    pub(crate) fn defer(&mut self) {
        self.turn.deferred = true;
        self.turn.has_follow_up = true;
    }
}

/// A connection on its way into the slab.
pub(crate) struct NewConnection {
    pub(crate) source: Box<dyn EventSource>,
    pub(crate) descriptor: RawFd,
    /// Its listener.
    pub(crate) parent: Token,
}

/// How an entry has ended, for the hooks of its listener.
pub(crate) struct Closed {
    pub(crate) origin: Origin,
    pub(crate) reason: CatchDrop<CloseReason>,
}

/// An entry of the slab.
pub(crate) trait EventSource {
    /// It is in the slab now.
    fn opened(&mut self, cx: &mut LoopCx) -> PostAction {
        let _ = cx;
        PostAction::Wait
    }

    /// `cx.call.readiness` holds of its descriptor, or it asked to go on.
    fn ready(&mut self, cx: &mut LoopCx) -> PostAction;

    /// The mail that told of its outlet has been taken: more mail may come from now on.
    fn mail_taken(&mut self) {}

    /// Something waits in its outlet.
    fn send_queue_ready(&mut self, cx: &mut LoopCx) -> PostAction {
        let _ = cx;
        PostAction::Wait
    }

    /// What it had lent comes home.
    fn returned(&mut self, work: Box<dyn Job>, cx: &mut LoopCx) -> PostAction {
        let _ = (work, cx);
        PostAction::Wait
    }

    /// When to look at it again if nothing happens before.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Its deadline has come.
    fn expired(&mut self, cx: &mut LoopCx) -> PostAction {
        let _ = cx;
        PostAction::Wait
    }

    /// The server begins to stop: what is idle ends, what is busy may finish.
    fn stop(&mut self, cx: &mut LoopCx) -> PostAction {
        let _ = cx;
        PostAction::Wait
    }

    /// It is over, by its own [`PostAction::Remove`] or because the time for stopping is up; a listener, with
    /// its run.
    fn finish(&mut self, cx: &mut LoopCx) {
        let _ = cx;
    }

    /// A descriptor or room has become free.
    fn on_capacity_freed(&mut self, cx: &mut LoopCx) -> PostAction {
        let _ = cx;
        PostAction::Wait
    }

    /// The time for stopping is up: ends what it serves elsewhere.
    fn abort_all(&mut self, cx: &mut LoopCx) {
        let _ = cx;
    }

    /// Whether it is a request, and not what is left of one that has been served.
    fn is_request(&self) -> bool {
        true
    }

    /// How many replies wait for room in the kernel, of those that no connection holds: datagrams. A
    /// run does not end before they are sent or lost, which each is after a while.
    fn undelivered(&self) -> usize {
        0
    }

    /// What it has beside its descriptor that a forked child must not keep.
    fn inherited(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Who stands behind it, if it is a listener; a connection has nobody.
    fn parts(&mut self) -> Option<ListenerParts<'_>> {
        None
    }
}

/// Who stands behind a listener.
pub(crate) struct ListenerParts<'s> {
    /// The mode that takes its requests.
    pub(crate) dispatcher: &'s mut dyn Dispatcher,
    /// The user's hooks.
    pub(crate) hooks: &'s mut dyn ListenerHooks,
}

/// What stands between the world and a mode: the user's hooks, guarded.
pub(crate) trait ListenerHooks {
    /// Whether the connection could be made ready to be served.
    fn prepare(
        &mut self,
        connection: BorrowedFd<'_>,
        id: ConnectionId,
        peer: &Peer,
        cx: &mut LoopCx,
    ) -> bool;

    /// Whether this peer may come in.
    fn verify(&mut self, peer: &Peer, cx: &mut LoopCx) -> bool;

    /// A request failed.
    fn fault(&mut self, origin: &Origin, reason: &CloseReason, cx: &mut LoopCx);

    /// Whether [`on_turn_end`](ListenerHooks::on_turn_end) is wanted.
    fn wants_turn_end(&self) -> bool;

    /// A turn of the loop is over.
    fn on_turn_end(&mut self, cx: &mut LoopCx);

    /// When the next turn of the loop is to begin at the latest. It is asked when a run begins and after
    /// each turn.
    fn next_turn(&mut self, cx: &mut LoopCx) -> Option<Instant> {
        let _ = cx;
        None
    }

    /// The run ends because there was no request in time.
    fn no_request(&mut self, cx: &mut LoopCx) {
        let _ = cx;
    }
}

/// The loop, for the deferred work of a dispatcher.
pub(crate) trait LoopAccess {
    /// What each call is given.
    fn cx(&mut self) -> &mut LoopCx;

    /// Adds a descriptor that is [`watched`](Dispatcher::watched) for this listener.
    ///
    /// # Errors
    ///
    /// Where the poller does not take it.
    fn watch(&mut self, descriptor: RawFd) -> io::Result<()>;

    /// Closes the descriptors of the loop by `close`, one after the other: those of its poller, its
    /// listeners and its connections. `keep_listener` leaves that of this listener open; those that are
    /// watched for this listener stay open in any case. For a forked child, which does not return to the
    /// loop.
    fn close_all_but(&mut self, keep_listener: bool, close: &mut dyn FnMut(RawFd));
}

/// Who takes the requests that a listener lets in: one mode of serving them.
pub(crate) trait Dispatcher {
    /// Whether another request can be taken; when room is made, a [`Mail::CapacityFreed`] says so, or a
    /// descriptor that is [`watched`](Dispatcher::watched).
    ///
    /// [`Mail::CapacityFreed`]: crate::mailbox::Mail::CapacityFreed
    fn has_room(&mut self) -> bool {
        true
    }

    /// How many requests it takes before others come first, at most and at least one: no more than
    /// there is room for.
    fn burst(&self) -> usize {
        usize::MAX
    }

    /// Whether [`on_turn_end`](Dispatcher::on_turn_end) is wanted.
    fn wants_turn_end(&self) -> bool {
        false
    }

    /// A turn of the loop is over.
    fn on_turn_end(&mut self) {}

    /// The listener's descriptor is ready, or one that is watched for it.
    fn look(&mut self, cx: &mut LoopCx) {
        let _ = cx;
    }

    /// What else is to be watched.
    fn watched(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Does what was put off by [`LoopCx::defer`]: work that needs the loop beside its context.
    fn run_deferred(&mut self, hooks: &mut dyn ListenerHooks, access: &mut dyn LoopAccess) {
        let _ = (hooks, access);
    }

    /// Descriptors have run out: from now on the loop is told when a request that is served elsewhere
    /// has ended.
    fn tell_ends(&mut self) {}

    /// The server begins to stop: what is idle elsewhere ends.
    fn stop(&mut self) {}

    /// The time for stopping is up: ends what it serves elsewhere.
    fn abort_all(&mut self, cx: &mut LoopCx) {
        let _ = cx;
    }

    /// How many requests it serves elsewhere.
    fn in_flight(&self) -> usize {
        0
    }

    /// How many requests have ended elsewhere that the stop found idle.
    fn ended_idle(&self) -> usize {
        0
    }

    /// What became of the request that it served on the loop's own thread when a stop overtook it.
    fn stop_outcome(&self) -> Option<StopOutcome> {
        None
    }

    /// How much of this run is out with workers, of requests that the slab no longer holds.
    fn lent(&self) -> usize {
        0
    }
}
