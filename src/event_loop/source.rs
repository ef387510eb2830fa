//! The trait for entries of the slab, listeners and connections, and the context that the loop
//! passes to each call.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admission::{Full, Maturity};
use crate::address::{LogPeer, Peer};
use crate::connection_id::ConnectionId;
use crate::conversation::{Driver, Scratch};
use crate::error::{CloseReason, Error, Limit, UnsupportedError};
use crate::guard::log;
use crate::mailbox::{Job, Mailbox};
use crate::memory::MemoryGauge;
use crate::sender::{Recipient, SendQueue, SenderLimit, Waker};
use crate::server_state::{StopOutcome, StopRequester};
use crate::sys::{self, CatchDrop, Reserve};
use crate::token::Token;

/// A connection that reads this much in one call delays the others: it is served from the ready
/// list next time.
const BULK_FROM: usize = 32 * 1024;

/// The known state of a descriptor. The edge-triggered poller reports each flag once; the flag
/// stays until a system call shows that it no longer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Readiness(u8);

impl Readiness {
    pub(crate) const NONE: Readiness = Readiness(0);
    pub(crate) const READABLE: Readiness = Readiness(1);
    pub(crate) const WRITABLE: Readiness = Readiness(2);
    /// The peer has ended or failed: a short read no longer means that the input is drained.
    pub(crate) const READ_CLOSED: Readiness = Readiness(4);
    /// The peer takes no more output either.
    pub(crate) const WRITE_CLOSED: Readiness = Readiness(8);
    /// The last call transferred much: the entry is served after those that transfer little.
    pub(crate) const BULK: Readiness = Readiness(16);
    /// A read may stop at a boundary in the input, an urgent mark or ancillary data: until the next
    /// EAGAIN, a short read does not mean that the input is drained.
    pub(crate) const BOUNDARY: Readiness = Readiness(32);
    /// Ancillary data can come with the input: each read has to report whether there was any.
    pub(crate) const ANCILLARY: Readiness = Readiness(64);

    /// The flags with which a short read does not mean that the input is drained.
    const NOT_DRAINED: Readiness = Readiness(Self::READ_CLOSED.0 | Self::BOUNDARY.0);

    #[inline]
    pub(crate) fn of(event: sys::Event<'_>) -> Self {
        let gone = event.is_write_closed() || event.is_error();
        let mut readiness = if gone || event.is_read_closed() {
            // Any sign of an end or an error causes a read: the system call returns the real state.
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

    /// Readable, without a sign of an end or a boundary.
    #[inline]
    pub(crate) fn is_only_readable(self) -> bool {
        self.0 & !Self::WRITABLE.0 == Self::READABLE.0
    }

    /// As [`is_only_readable`](Self::is_only_readable), where ancillary data can come with the
    /// input.
    pub(crate) fn is_only_readable_with_ancillary(self) -> bool {
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

/// What the loop does with an entry after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PostAction {
    /// The entry waits for the poller, its deadline or a notification.
    Wait,
    /// The entry has more to do, but others are served first.
    Requeue,
    /// The entry is finished.
    Remove,
}

/// The context that the loop passes to each call of an entry.
pub(crate) struct LoopCx {
    /// The state of this call.
    pub(crate) call: CallState,
    /// The state of this turn.
    pub(crate) turn: TurnState,
    /// The state of this run.
    pub(crate) run: RunState,
    /// The read buffer and the output buffer.
    pub(crate) scratch: Scratch,
}

/// The state of one call of an entry.
pub(crate) struct CallState {
    /// The entry that is being called, as other threads reach it.
    pub(crate) entry: EntryRef,
    /// The readiness of its descriptor; the entry removes flags that no longer hold.
    pub(crate) readiness: Readiness,
    /// The deadline of the entry has changed.
    pub(crate) deadline_changed: bool,
}

/// The state of one turn: what its calls share, and what they leave for the loop to do.
pub(crate) struct TurnState {
    /// When this turn began. The loop reads no other clock.
    pub(crate) now: Instant,
    /// How many bytes connections have used of their budgets in this turn. Reads on the fast path
    /// are not included.
    pub(crate) used: u64,
    /// The entry has left something for the loop to do after the call: its deadline has changed, or
    /// one of the next four fields is set.
    pub(crate) has_follow_up: bool,
    /// Conversations that have ended, with the reason for the hooks of their listener.
    pub(crate) ended: Vec<Closed>,
    /// New connections, to be added to the slab.
    pub(crate) new_connections: Vec<NewConnection>,
    /// The dispatcher wants [`Dispatcher::run_deferred`] to be called after the current call.
    pub(crate) deferred: bool,
    /// A listener waits for a free descriptor: it is called after each close.
    pub(crate) exhausted: bool,
    /// A connection has been closed: descriptors and places are free again.
    pub(crate) capacity_freed: bool,
    /// A listener cannot accept because this is full: a silent connection may be closed.
    pub(crate) full: Option<Full>,
    /// The connections hold as much memory as they may.
    pub(crate) memory_full: bool,
}

/// The state of one run of the loop.
pub(crate) struct RunState {
    /// The server is stopping: nothing is accepted, and a connection that becomes idle is closed.
    pub(crate) stopping: bool,
    /// How many more requests may be accepted.
    pub(crate) accepts_left: usize,
    /// How many connections have ended that were idle when the server began to stop.
    pub(crate) ended_idle: usize,
    /// The error that ends the run.
    pub(crate) failed: Option<Error>,
    /// The time from which [`Ticks`] count.
    pub(crate) epoch: Instant,
    /// The memory that connections hold.
    pub(crate) memory: Arc<MemoryGauge>,
    /// Connections that are not read because memory is tight.
    pub(crate) starved: Vec<Token>,
    /// How many connections may be open.
    pub(crate) max_connections: usize,
    /// Which connections were accepted long enough ago to be closed in favor of others.
    pub(crate) maturity: Maturity,
    /// A reserve descriptor. When no other is left, it is closed, so that one client can be
    /// accepted and closed.
    pub(crate) reserve: Option<Reserve>,
}

impl RunState {
    /// A time as ticks since the run began, rounded up.
    pub(crate) fn ticks(&self, at: Instant) -> Ticks {
        let since = at.saturating_duration_since(self.epoch).as_nanos();
        let ticks = since.div_ceil(TICK.as_nanos());
        Ticks(u32::try_from(ticks).unwrap_or(u32::MAX).max(1))
    }

    /// The time of these ticks, if they are one.
    pub(crate) fn instant(&self, ticks: Ticks) -> Option<Instant> {
        (ticks != Ticks::NONE).then(|| self.epoch + TICK * ticks.0)
    }
}

/// A time of a run in 4 bytes, exact to 1/16 second: up to 8 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticks(u32);

/// The unit of [`Ticks`].
const TICK: Duration = Duration::from_nanos(62_500_000);

impl Ticks {
    /// No time.
    pub(crate) const NONE: Ticks = Ticks(0);
}

/// A reference to one entry, for its conversation: other threads reach the entry by it, and it can
/// request the end of the run.
#[derive(Clone)]
pub(crate) struct EntryRef {
    pub(crate) stop: StopRequester,
    pub(crate) token: Token,
    /// How many bytes its senders may queue.
    pub(crate) limit: SenderLimit,
    /// When the turn began, or later.
    pub(super) now: Instant,
}

impl EntryRef {
    /// The mailbox of the event loop.
    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        self.stop.mailbox()
    }

    /// Sets `now` to the current time, for use outside of a turn.
    pub(crate) fn renew_now(&mut self) {
        self.now = self.stop.clock().now();
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

    fn is_overloaded(&self) -> bool {
        self.stop.is_overloaded()
    }
}

impl LoopCx {
    pub(crate) fn new(stop: StopRequester) -> Self {
        let (now, memory) = (stop.clock().now(), stop.memory().clone());
        let mut cx = LoopCx {
            call: CallState {
                entry: EntryRef { stop, token: Token::WAKE, limit: SenderLimit::default(), now },
                readiness: Readiness::NONE,
                deadline_changed: false,
            },
            turn: TurnState {
                now,
                used: 0,
                has_follow_up: false,
                ended: Vec::new(),
                new_connections: Vec::new(),
                deferred: false,
                exhausted: false,
                full: None,
                memory_full: false,
                capacity_freed: false,
            },
            run: RunState {
                stopping: false,
                accepts_left: usize::MAX,
                ended_idle: 0,
                failed: None,
                epoch: now,
                memory,
                starved: Vec::new(),
                max_connections: usize::MAX,
                maturity: Maturity::new(now),
                reserve: None,
            },
            scratch: Scratch::with_read_buffer(),
        };
        cx.keep_reserve();
        cx
    }

    /// Lends the read buffer to `call` separately from the context, which is used at the same time.
    #[inline(always)]
    pub(super) fn with_buffer<T>(&mut self, call: impl FnOnce(&mut [u8], &mut LoopCx) -> T) -> T {
        let mut buffer = std::mem::take(&mut self.scratch.buffer);
        let result = call(&mut buffer, self);
        self.scratch.buffer = buffer;
        result
    }

    /// How many connections of the server are open.
    pub(crate) fn open_connections(&self) -> u64 {
        let tally = &self.scratch.tally;
        (self.call.entry.stop.open_connections() + tally.accepted).saturating_sub(tally.closed)
    }

    /// Records that `count` bytes have been read into a buffer of `buffer` bytes. After a short
    /// read a stream is drained, see epoll(7). That does not hold when the peer has ended, because
    /// the end causes no edge of its own if it came with this one. It does not hold after a
    /// boundary either.
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

    /// Records that a connection has used so many bytes of its budget.
    pub(crate) fn use_budget(&mut self, bytes: usize) {
        self.turn.used += bytes as u64;
        if bytes >= BULK_FROM {
            self.call.readiness.add(Readiness::BULK);
        }
    }

    /// Begins a turn.
    #[inline]
    pub(super) fn set_now(&mut self, now: Instant) {
        self.turn.now = now;
        self.call.entry.now = now;
    }

    /// Whether a listener may accept.
    pub(crate) fn may_accept(&self) -> bool {
        !self.run.stopping && !self.call.entry.stop.is_requested() && self.run.accepts_left > 0
    }

    /// Opens the reserve descriptor, if there is none.
    pub(crate) fn keep_reserve(&mut self) {
        if self.run.reserve.is_none() {
            let wakeup = self.call.entry.mailbox().wakeup();
            self.run.reserve = Reserve::new(wakeup);
        }
    }

    /// Records that the deadline of the entry has changed.
    pub(crate) fn deadline_changed(&mut self) {
        self.call.deadline_changed = true;
        self.turn.has_follow_up = true;
    }

    /// Records that a conversation has ended. Most end without a fault, and need no report.
    pub(crate) fn end(
        &mut self,
        id: Option<ConnectionId>,
        peer: &Peer,
        reason: impl Into<CatchDrop<CloseReason>>,
    ) {
        let reason = reason.into();
        if reason.is_fault() || log::is_enabled(::log::Level::Debug) {
            self.turn.ended.push(Closed { origin: LogPeer { id, peer: peer.clone() }, reason });
            self.turn.has_follow_up = true;
        }
    }

    /// Adds a connection to the slab after the call.
    pub(crate) fn register(&mut self, new: NewConnection) {
        self.turn.new_connections.push(new);
        self.turn.has_follow_up = true;
    }

    /// Requests a call of [`Dispatcher::run_deferred`] after the current call of its listener.
    pub(crate) fn defer(&mut self) {
        self.turn.deferred = true;
        self.turn.has_follow_up = true;
    }
}

/// A connection that is to be added to the slab.
pub(crate) struct NewConnection {
    pub(crate) source: Box<dyn EventSource>,
    pub(crate) descriptor: RawFd,
    /// Its listener.
    pub(crate) parent: Token,
}

/// A conversation that has ended, with the reason for the hooks of its listener.
pub(crate) struct Closed {
    pub(crate) origin: LogPeer,
    pub(crate) reason: CatchDrop<CloseReason>,
}

/// An entry of the slab: a listener or a connection.
pub(crate) trait EventSource {
    /// The entry has been added to the slab.
    fn opened(&mut self, cx: &mut LoopCx) -> PostAction {
        let _ = cx;
        PostAction::Wait
    }

    /// The poller cannot register the descriptor of the new entry.
    fn not_registered(&mut self, error: io::Error, cx: &mut LoopCx) -> PostAction {
        let _ = (error, cx);
        PostAction::Remove
    }

    /// The descriptor has the readiness `cx.call.readiness`, or the entry had more to do.
    fn ready(&mut self, cx: &mut LoopCx) -> PostAction;

    /// The notification of its send queue has been taken from the mailbox: the next one may be
    /// posted.
    fn notification_taken(&mut self) {}

    /// Something waits in its send queue.
    fn send_queue_ready(&mut self, cx: &mut LoopCx) -> PostAction {
        let _ = cx;
        PostAction::Wait
    }

    /// A job of the entry has finished.
    fn returned(&mut self, work: Box<dyn Job>, cx: &mut LoopCx) -> PostAction {
        let _ = (work, cx);
        PostAction::Wait
    }

    /// When to call the entry again if no event comes before.
    fn deadline(&self, run: &RunState) -> Option<Instant> {
        let _ = run;
        None
    }

    /// The number of the connection, if no whole message has come from its peer.
    fn silent(&self) -> Option<ConnectionId> {
        None
    }

    /// How much memory the connection holds, in bytes.
    fn memory(&self) -> usize {
        0
    }

    /// Whether the connection waits to be read, and when a byte was last received or sent: the least of
    /// these are closed first to make room. `None` if it is not a connection.
    fn usefulness(&self) -> Option<(bool, Instant)> {
        None
    }

    /// The connection is closed because of a limit.
    fn exceed(&mut self, limit: Limit, cx: &mut LoopCx) -> PostAction {
        let _ = (limit, cx);
        PostAction::Wait
    }

    /// There is memory again for a connection that was not read.
    fn memory_freed(&mut self, cx: &mut LoopCx) -> PostAction {
        let _ = cx;
        PostAction::Wait
    }

    /// A listener that is full tries again at this time, if nothing happens before.
    fn retry_at(&mut self, at: Instant, cx: &mut LoopCx) {
        let _ = (at, cx);
    }

    /// For a listener: looks again at this time whether requests wait for threads.
    fn check_threads_at(&mut self, at: Instant, cx: &mut LoopCx) {
        let _ = (at, cx);
    }

    /// The deadline of the entry has expired.
    fn expired(&mut self, cx: &mut LoopCx) -> PostAction {
        let _ = cx;
        PostAction::Wait
    }

    /// The server begins to stop: an idle connection ends, and a busy one may finish.
    fn stop(&mut self, cx: &mut LoopCx) -> PostAction {
        let _ = cx;
        PostAction::Wait
    }

    /// The entry has ended: by [`PostAction::Remove`] or, for a connection, at the drain deadline;
    /// for a listener, with the run.
    fn finish(&mut self, cx: &mut LoopCx) {
        let _ = cx;
    }

    /// A descriptor or a place has become free.
    fn on_capacity_freed(&mut self, cx: &mut LoopCx) -> PostAction {
        let _ = cx;
        PostAction::Wait
    }

    /// The drain deadline has come: ends the requests that are served outside of the slab.
    fn abort_all(&mut self, cx: &mut LoopCx) {
        let _ = cx;
    }

    /// Whether the entry is a request; a lingering connection whose request has been served is not.
    fn is_request(&self) -> bool {
        true
    }

    /// How many datagrams wait for room in the kernel. A run ends only after they are sent or lost;
    /// each is lost after a time limit.
    fn undelivered(&self) -> usize {
        0
    }

    /// The descriptors besides its own that a forked child must not keep.
    fn inherited(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// The dispatcher and the hooks of a listener; `None` for a connection.
    fn parts(&mut self) -> Option<ListenerParts<'_>> {
        None
    }
}

/// The dispatcher and the hooks of a listener.
pub(crate) struct ListenerParts<'s> {
    /// Serves the requests: one mode.
    pub(crate) dispatcher: &'s mut dyn Dispatcher,
    /// The user's hooks.
    pub(crate) hooks: &'s mut dyn ListenerHooks,
}

/// The user's hooks of a listener, guarded against panics.
pub(crate) trait ListenerHooks {
    /// Whether the connection could be prepared for its handler.
    fn prepare(
        &mut self,
        connection: BorrowedFd<'_>,
        id: ConnectionId,
        peer: &Peer,
        cx: &mut LoopCx,
    ) -> bool;

    /// Whether this peer is accepted.
    fn verify(&mut self, peer: &Peer, cx: &mut LoopCx) -> bool;

    /// For how long a datagram socket receives nothing from now on.
    fn pause_receiving(&mut self, cx: &mut LoopCx) -> Option<Duration> {
        let _ = cx;
        None
    }

    /// Reports that a request failed.
    fn fault(&mut self, origin: &LogPeer, reason: &CloseReason, cx: &mut LoopCx);

    /// Whether [`on_turn_end`](ListenerHooks::on_turn_end) is wanted.
    fn wants_turn_end(&self) -> bool;

    /// The turn has ended.
    fn on_turn_end(&mut self, cx: &mut LoopCx);

    /// The latest time at which the next turn begins. Called when a run begins and after each turn.
    fn next_turn(&mut self, cx: &mut LoopCx) -> Option<Instant> {
        let _ = cx;
        None
    }

    /// The run ends because there was no request in time.
    fn no_request(&mut self, cx: &mut LoopCx) {
        let _ = cx;
    }
}

/// The result of looking for a connection from which no whole message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silent {
    /// There is none.
    None,
    /// All of them were accepted only just now.
    Young,
    /// One is closed.
    Closed,
}

/// Access to the event loop for the deferred work of a dispatcher.
pub(crate) trait LoopAccess {
    /// The context that each call of an entry gets.
    fn cx(&mut self) -> &mut LoopCx;

    /// Adds a descriptor that is [`watched`](Dispatcher::watched) for this listener.
    ///
    /// # Errors
    ///
    /// The poller cannot register the descriptor.
    fn watch(&mut self, descriptor: RawFd) -> io::Result<()>;

    /// Closes the descriptors of the loop one after the other by `close`: those of its poller, its
    /// listeners and its connections. `keep_listener` leaves the descriptor of this listener open.
    /// Those that are watched for this listener always stay open. For a forked child, which does
    /// not return to the loop.
    fn close_all_but(&mut self, keep_listener: bool, close: &mut dyn FnMut(RawFd));
}

/// A dispatcher: one mode of serving the requests of a listener.
pub(crate) trait Dispatcher {
    /// Whether the dispatcher can take another request. When this becomes true again, a
    /// [`Notification::CapacityFreed`] or a [`watched`](Dispatcher::watched) descriptor reports it.
    ///
    /// [`Notification::CapacityFreed`]: crate::mailbox::Notification::CapacityFreed
    fn has_room(&mut self) -> bool {
        true
    }

    /// Whether accepted requests wait for threads that serve others.
    fn has_waiting(&self) -> bool {
        false
    }

    /// How many requests the dispatcher takes before other entries are served: at least one, and no
    /// more than it has room for.
    fn burst(&self) -> usize {
        usize::MAX
    }

    /// Whether [`on_turn_end`](Dispatcher::on_turn_end) is wanted.
    fn wants_turn_end(&self) -> bool {
        false
    }

    /// The turn has ended.
    fn on_turn_end(&mut self) {}

    /// The listener's descriptor is ready, or one that is watched for it.
    fn on_ready(&mut self, cx: &mut LoopCx) {
        let _ = cx;
    }

    /// Further descriptors for the poller to watch.
    fn watched(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Does the work that was deferred by [`LoopCx::defer`]: it needs the loop besides its context.
    fn run_deferred(&mut self, hooks: &mut dyn ListenerHooks, access: &mut dyn LoopAccess) {
        let _ = (hooks, access);
    }

    /// Descriptors have run out: from now on the dispatcher notifies the loop when a request that
    /// is served outside of the slab has ended.
    fn notify_ends(&mut self) {}

    /// The server begins to stop: idle requests outside of the slab end.
    fn stop(&mut self) {}

    /// The drain deadline has come: ends the requests outside of the slab.
    fn abort_all(&mut self, cx: &mut LoopCx) {
        let _ = cx;
    }

    /// Closes the oldest connection outside of the slab from which no whole message has come, if its
    /// number is below `mature`. With `for_waiting`, closes one that occupies a thread for each
    /// request that [waits](Dispatcher::has_waiting) for one. Returns what it found.
    fn close_silent(&mut self, mature: u64, for_waiting: bool) -> Silent {
        let _ = (mature, for_waiting);
        Silent::None
    }

    /// How much memory the connection outside of the slab holds that holds most, in bytes.
    fn heaviest(&self) -> usize {
        0
    }

    /// Closes that connection.
    fn close_heaviest(&mut self) {}

    /// How many requests the dispatcher serves outside of the slab.
    fn in_flight(&self) -> usize {
        0
    }

    /// How many requests outside of the slab were idle at the stop and have ended.
    fn ended_idle(&self) -> usize {
        0
    }

    /// The outcome of the request that was being served on the loop's own thread when the server
    /// stopped.
    fn stop_outcome(&self) -> Option<StopOutcome> {
        None
    }

    /// How many jobs of this run are with workers, for requests that are no longer in the slab.
    fn jobs_with_workers(&self) -> usize {
        0
    }
}
