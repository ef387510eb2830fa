//! What a loop keeps in its slab, listeners and connections alike, and what it lends them for the
//! length of a call.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use crate::address::Peer;
use crate::conversation::READ_SIZE;
use crate::conversation::{OutputBuffer, SenderSource};
use crate::counters::Tally;
use crate::encodable::Encodable;
use crate::error::{CloseReason, Error, UnsupportedError};
use crate::guard::log;
use crate::mailbox::{Job, Mailbox};
use crate::sender::{SendQueue, Waker};
use crate::server_state::StopOutcome;
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
    /// What is read into, by whoever reads; apart from the rest, which is needed while it is full.
    pub(crate) buffer: Box<[u8]>,
    pub(crate) state: LoopState,
}

/// What a loop lends beside the buffer.
pub(crate) struct LoopState {
    /// When this turn began: the only clock there is.
    pub(crate) now: Instant,
    /// Where output is collected, by whoever answers.
    pub(crate) output_buffer: OutputBuffer,
    pub(crate) tally: Tally,
    /// The entry that is being called, and how it is reached from elsewhere.
    pub(crate) entry: EntryRef,
    /// What is known of its descriptor; it removes what turns out not to hold.
    pub(crate) readiness: Readiness,
    /// How much of their budgets connections have used in this turn, in bytes; what is read in the
    /// plain case counts nowhere.
    pub(crate) used: u64,
    /// It has another deadline than before.
    pub(crate) deadline_changed: bool,
    /// Someone has asked the server to stop.
    pub(crate) shutdown: bool,
    /// The server is stopping: nothing is accepted, and who becomes idle is closed.
    pub(crate) stopping: bool,
    /// The entry leaves something for the loop to do: a deadline, or one of the three below.
    pub(crate) has_follow_up: bool,
    /// Conversations that have ended: how, for the hooks of their listener.
    pub(crate) ended: Vec<Closed>,
    /// Connections just accepted, to be put into the slab.
    pub(crate) new_connections: Vec<NewConnection>,
    /// The dispatcher wants [`Dispatcher::run_deferred`] to be called after the current call.
    pub(crate) deferred: bool,
    /// A connection has been closed: descriptors and room are free again.
    pub(crate) capacity_freed: bool,
    /// How many more requests may be accepted.
    pub(crate) accepts_left: usize,
    /// What became of a request that was served here, by blocking, when the stop began.
    pub(crate) inline_outcome: Option<StopOutcome>,
    /// Why the loop cannot go on.
    pub(crate) failed: Option<Error>,
    /// A listener has no descriptor left for who waits: it is to be told of each that becomes free.
    pub(crate) exhausted: bool,
    /// A descriptor kept to be given up when there is no other, so that a client can be turned away.
    pub(crate) reserve: Option<OwnedFd>,
}

/// How an entry is reached from elsewhere.
#[derive(Clone)]
pub(crate) struct EntryRef {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) token: Token,
    /// How many bytes may wait on their way to it.
    pub(crate) limit: usize,
}

impl SenderSource for EntryRef {
    fn send_queue(&self, encodable: Encodable) -> Result<Arc<SendQueue>, UnsupportedError> {
        let waker = Waker::Loop(self.mailbox.clone(), self.token);
        Ok(Arc::new(SendQueue::new(waker, self.limit, encodable)))
    }
}

impl LoopCx {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        let mut state = LoopState {
            now: Instant::now(),
            output_buffer: OutputBuffer::default(),
            tally: Tally::default(),
            entry: EntryRef { mailbox, token: Token::WAKE, limit: 0 },
            readiness: Readiness::NONE,
            used: 0,
            deadline_changed: false,
            shutdown: false,
            stopping: false,
            has_follow_up: false,
            ended: Vec::new(),
            new_connections: Vec::new(),
            deferred: false,
            capacity_freed: false,
            accepts_left: usize::MAX,
            inline_outcome: None,
            failed: None,
            exhausted: false,
            reserve: None,
        };
        state.keep_reserve();
        LoopCx { buffer: vec![0; READ_SIZE].into_boxed_slice(), state }
    }
}

impl LoopState {
    /// So many bytes have been read into a buffer of that size. A short read has drained a stream,
    /// see epoll(7), unless its end is there to be read too: the end brings no edge of its own if it
    /// was part of this one. Nor does what lies behind a boundary.
    #[inline(always)]
    pub(crate) fn read(&mut self, count: usize, buffer: usize) {
        self.tally.bytes_in += count as u64;
        if count < buffer && !self.readiness.has(Readiness::NOT_DRAINED) {
            self.readiness.remove(Readiness::READABLE);
        }
        if count >= BULK_FROM {
            self.readiness.add(Readiness::BULK);
        }
    }

    /// A connection has used so much of its budget for one call, in bytes.
    pub(crate) fn use_budget(&mut self, bytes: usize) {
        self.used += bytes as u64;
        if bytes >= BULK_FROM {
            self.readiness.add(Readiness::BULK);
        }
    }

    /// Whether a listener may accept.
    pub(crate) fn may_accept(&self) -> bool {
        !self.stopping && !self.shutdown && self.accepts_left > 0
    }

    /// Sees to it that there is a descriptor to be given up in need: another number for one that is
    /// open anyway, for which no file has to be found.
    pub(crate) fn keep_reserve(&mut self) {
        if self.reserve.is_none() {
            self.reserve = self.entry.mailbox.wakeup().as_fd().try_clone_to_owned().ok();
        }
    }

    /// The entry has another deadline than before.
    pub(crate) fn deadline_changed(&mut self) {
        self.deadline_changed = true;
        self.has_follow_up = true;
    }

    /// A conversation has ended. Nearly all end in peace, and of those there is nothing to tell.
    pub(crate) fn end(&mut self, peer: &Peer, reason: impl Into<CatchDrop<CloseReason>>) {
        let reason = reason.into();
        if reason.is_fault() || log::is_enabled(::log::Level::Debug) {
            self.ended.push(Closed { peer: peer.clone(), reason });
            self.has_follow_up = true;
        }
    }

    /// A connection is to be put into the slab.
    pub(crate) fn register(&mut self, new: NewConnection) {
        self.new_connections.push(new);
        self.has_follow_up = true;
    }

    /// Has [`Dispatcher::run_deferred`] called after the current call of its listener.
    pub(crate) fn defer(&mut self) {
        self.deferred = true;
        self.has_follow_up = true;
    }
}

impl Deref for LoopCx {
    type Target = LoopState;

    fn deref(&self) -> &LoopState {
        &self.state
    }
}

impl DerefMut for LoopCx {
    fn deref_mut(&mut self) -> &mut LoopState {
        &mut self.state
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
    pub(crate) peer: Peer,
    pub(crate) reason: CatchDrop<CloseReason>,
}

/// An entry of the slab.
pub(crate) trait EventSource {
    /// It is in the slab now.
    fn opened(&mut self, cx: &mut LoopCx) -> PostAction {
        let _ = cx;
        PostAction::Wait
    }

    /// `turn.readiness` holds of its descriptor, or it asked to go on.
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
    fn prepare(&mut self, connection: BorrowedFd<'_>, peer: &Peer, cx: &mut LoopCx) -> bool;

    /// Whether this peer may come in.
    fn verify(&mut self, peer: &Peer, cx: &mut LoopCx) -> bool;

    /// A request of this peer's failed.
    fn fault(&mut self, peer: &Peer, reason: &CloseReason, cx: &mut LoopCx);

    /// Whether [`on_turn_end`](ListenerHooks::on_turn_end) is wanted.
    fn wants_turn_end(&self) -> bool;

    /// A turn of the loop is over.
    fn on_turn_end(&mut self, cx: &mut LoopCx);
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

    /// Does what was put off by [`LoopState::defer`]: work that needs the loop beside its context.
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

    /// How much of this run is out with workers, of requests that the slab no longer holds.
    fn lent(&self) -> usize {
        0
    }
}
