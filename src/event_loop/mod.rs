//! The event loop: one poller, one slab of listeners and connections.
//!
//! A *turn* is one iteration of the event loop: it waits for events, then serves the entries that
//! are ready, the notifications of the mailbox and the deadlines that have expired.
//!
//! **Invariant:** edge-triggered events are not visible outside this module. The readiness of a
//! descriptor stays in its entry until a system call returns `EAGAIN` or the like. An entry that
//! has more to do but has used up its budget is in the ready list. While the ready list is not
//! empty, the loop does not sleep in the poller.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use mio::Interest;
use mio::unix::SourceFd;
use slab::Slab;

use crate::address::LogPeer;
use crate::error::CloseReason;
use crate::guard;
use crate::guard::log;
use crate::log_limiter::LogLimiter;
use crate::mailbox::{Notification, abandon};
use crate::sys::{self, Events, SignalWatch};
use crate::token::Token;

mod admission;
mod connection;
mod counts;
mod datagrams;
mod entry;
mod lingering;
mod listener;
mod overload;
mod poll;
mod pressure;
mod replies;
mod slot;
mod source;
#[cfg(feature = "testing")]
mod state;
mod stream_io;
mod timers;
mod turn_end;
mod water_marks;

pub(crate) use admission::Admission;
pub(crate) use connection::Connection;
pub(crate) use datagrams::{DatagramDispatcher, Datagrams};
use entry::{Entry, entry_of, may_notify_now, may_run_now};
pub(crate) use lingering::LingeringConnection;
pub(crate) use listener::{Listener, StreamDispatcher};
use overload::TurnTimes;
pub(crate) use poll::{EVENTS, LoopResources};
pub(crate) use slot::{ConversationEvent, ConversationSlot};
pub(crate) use source::{
    Closed, Dispatcher, EntryRef, EventSource, ListenerHooks, LoopAccess, LoopCx, NewConnection,
    Silent,
};
use source::{ListenerParts, PostAction, Readiness};
#[cfg(feature = "testing")]
pub(crate) use state::LoopState;
use timers::Timers;
pub(crate) use water_marks::{ServiceLimits, WaterMarks};

/// How many notifications a turn takes from the mailbox.
const NOTIFICATION_BUDGET: usize = 1024;

/// How many bytes the entries of the ready list may read and use of their budgets together, before
/// the loop polls for new events.
const REQUEUED_BUDGET: u64 = 64 * 1024;

/// How many expired deadlines a turn serves.
const EXPIRY_BUDGET: usize = 256;

/// An event loop, for one run of the server.
pub(crate) struct EventLoop<'a> {
    resources: LoopResources<'a>,
    slab: Slab<Entry<'a>>,
    listeners: Vec<Token>,
    /// A listener wants a call at the end of each turn.
    wants_turn_end: bool,
    /// The latest time at which the next turn begins, as the hooks of a listener request.
    next_turn: Option<Instant>,
    timers: Timers,
    ready: VecDeque<Token>,
    notifications: VecDeque<Notification>,
    /// Slots that are freed at the end of the turn.
    pending_removal: Vec<usize>,
    turn_times: TurnTimes,
    /// When connections are closed for those that wait to be read because memory is tight.
    relief_at: Option<Instant>,
    /// Limits the warnings about memory.
    memory_log: LogLimiter,
    cx: LoopCx,
}

impl<'a> EventLoop<'a> {
    pub(crate) fn new(resources: LoopResources<'a>) -> Self {
        let cx = LoopCx::new(resources.stop.clone());
        resources.mailbox.begin_run(resources.stop.run());
        EventLoop {
            resources,
            slab: Slab::new(),
            listeners: Vec::new(),
            wants_turn_end: false,
            next_turn: None,
            timers: Timers::default(),
            ready: VecDeque::new(),
            notifications: VecDeque::new(),
            pending_removal: Vec::new(),
            turn_times: TurnTimes::new(cx.turn.now),
            relief_at: None,
            memory_log: LogLimiter::default(),
            cx,
        }
    }

    /// Adds a listener. The loop calls it at once, because its edge may have been consumed in an
    /// earlier run.
    pub(crate) fn add_listener(
        &mut self,
        descriptor: RawFd,
        make: impl FnOnce(Token) -> io::Result<Box<dyn EventSource + 'a>>,
    ) -> io::Result<()> {
        let token = self.next_token();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.resources.poll.registry();
        registry.reregister(&mut SourceFd(&descriptor), token.into(), interest)?;
        let mut source = make(token)?;
        if let Some(ListenerParts { dispatcher, hooks }) = source.parts() {
            for watched in dispatcher.watched() {
                let mut source = SourceFd(&watched);
                let interest = Interest::READABLE;
                // The poller knows the descriptor from an earlier run, or it is new.
                registry
                    .reregister(&mut source, token.into(), interest)
                    .or_else(|_| registry.register(&mut source, token.into(), interest))?;
            }
            self.wants_turn_end |= dispatcher.wants_turn_end() || hooks.wants_turn_end();
            self.next_turn = self.next_turn.into_iter().chain(hooks.next_turn(&mut self.cx)).min();
        }
        self.insert(token, token, descriptor, source);
        self.listeners.push(token);
        // A connection that was handed over may wait; it causes no edge.
        if let Some(entry) = entry_of(&mut self.slab, token) {
            entry.add_to_ready_list(&mut self.ready);
        }
        Ok(())
    }

    /// The context that each call of an entry gets.
    pub(crate) fn cx(&mut self) -> &mut LoopCx {
        &mut self.cx
    }

    /// Runs one turn: waits for events, for at most `max_wait`, and serves the entries that are
    /// ready.
    ///
    /// # Errors
    ///
    /// An error of the poller. Errors of peers and handlers are handled inside.
    pub(crate) fn run_turn(
        &mut self,
        max_wait: Option<Duration>,
        signals: Option<&SignalWatch>,
    ) -> io::Result<()> {
        self.wait(max_wait, signals)?;
        self.cx.scratch.tally.turns += 1;
        self.cx.turn.used = 0;
        // The entries that wait in the ready list now. An entry that is added in this turn is
        // served in the next one.
        let requeued = self.ready.len();
        self.serve_events();
        let begun = self.spent();
        for _ in 0..requeued {
            let Some(token) = self.ready.pop_front() else {
                break;
            };
            if let Some(entry) = entry_of(&mut self.slab, token) {
                entry.listed = false;
                self.call(token, |source, cx| source.ready(cx));
            }
            if self.is_enough_since(begun) {
                break;
            }
        }
        self.serve_notifications();
        self.serve_timers();
        if std::mem::take(&mut self.cx.turn.capacity_freed) {
            // A socket that was closed in this turn keeps its descriptor until it is dropped.
            self.free_slots();
            self.for_each_listener(|source, cx| source.on_capacity_freed(cx));
        }
        self.end_turn();
        Ok(())
    }

    /// How many bytes have been read in this turn, and how many bytes connections have used of
    /// their budgets.
    fn spent(&self) -> (u64, u64) {
        (self.cx.scratch.tally.bytes_in, self.cx.turn.used)
    }

    /// Whether so much has been used since `spent` was called that other entries are served first.
    fn is_enough_since(&self, (bytes_in, used): (u64, u64)) -> bool {
        let (bytes_in_now, used_now) = self.spent();
        (bytes_in_now - bytes_in).max(used_now - used) >= REQUEUED_BUDGET
    }

    /// Serves the entries whose deadline has expired, up to [`EXPIRY_BUDGET`]. The others stay due
    /// for the next turn.
    fn serve_timers(&mut self) {
        let begun = self.spent();
        for _ in 0..EXPIRY_BUDGET {
            let Some(token) = self.timers.due(self.cx.turn.now) else {
                break;
            };
            self.expire(token);
            if self.is_enough_since(begun) {
                break;
            }
        }
    }

    /// Begins to stop: the loop accepts nothing more, and idle connections end.
    pub(crate) fn stop(&mut self) {
        // A job that a worker has posted back by now does not keep its connection from being idle.
        self.serve_notifications();
        self.cx.run.stopping = true;
        self.cx.set_now(self.resources.stop.clock().now());
        let tokens: Vec<_> = self.slab.iter().map(|(_, entry)| entry.token).collect();
        for token in tokens {
            self.call(token, |source, cx| source.stop(cx));
        }
        self.end_turn();
    }

    /// Ends all that is left; returns how many requests that were.
    pub(crate) fn abort_all(&mut self) -> usize {
        let count = self.requests() + self.in_flight();
        self.end_connections();
        if count > 0 {
            self.for_each_listener(|source, cx| {
                source.abort_all(cx);
                PostAction::Wait
            });
        }
        self.end_turn();
        count
    }

    fn serve_events(&mut self) {
        let events = std::mem::replace(self.resources.events, Events::with_capacity(0));
        for event in events.iter() {
            let token = Token::from(event.token());
            let readiness = Readiness::of(event);
            let note = |entry: &mut Entry<'_>, ready: &mut VecDeque<Token>| {
                entry.readiness.add(readiness);
                may_run_now(entry, ready)
            };
            self.visit(token, note, |source, cx| source.ready(cx));
        }
        *self.resources.events = events;
    }

    fn serve_notifications(&mut self) {
        self.resources.mailbox.collect(&mut self.notifications, NOTIFICATION_BUDGET);
        while let Some(notification) = self.notifications.pop_front() {
            match notification {
                Notification::SendQueue(token) => {
                    let note = |entry: &mut Entry<'_>, ready: &mut VecDeque<Token>| {
                        entry.source.notification_taken();
                        // A listener has to retry its queued replies, and no event of the poller
                        // reports that.
                        entry.parent == entry.token || may_notify_now(entry, ready)
                    };
                    self.visit(token, note, |source, cx| source.send_queue_ready(cx));
                }
                Notification::JobDone(token, work) => match entry_of(&mut self.slab, token) {
                    Some(_) => self.call(token, |source, cx| source.returned(work, cx)),
                    None => abandon(work),
                },
                Notification::CapacityFreed => self.cx.turn.capacity_freed = true,
                Notification::Wake => {}
                Notification::Ended(mut ended) => {
                    self.cx.scratch.tally.absorb(&mut ended.tally);
                    let listener = self.listeners[ended.service];
                    self.ended(listener, &ended.origin, &ended.reason);
                }
            }
        }
    }

    /// Calls an entry, if it is still in the slab, and applies the result.
    fn call(
        &mut self,
        token: Token,
        call: impl FnOnce(&mut dyn EventSource, &mut LoopCx) -> PostAction,
    ) {
        self.visit(token, |_, _| true, call);
    }

    /// As [`call`](Self::call), if `may_run` accepts the entry.
    #[inline(always)]
    fn visit(
        &mut self,
        token: Token,
        may_run: impl FnOnce(&mut Entry<'a>, &mut VecDeque<Token>) -> bool,
        call: impl FnOnce(&mut dyn EventSource, &mut LoopCx) -> PostAction,
    ) {
        let Some(entry) = entry_of(&mut self.slab, token) else {
            return;
        };
        if !may_run(entry, &mut self.ready) {
            return;
        }
        let cx = &mut self.cx;
        cx.call.entry.token = token;
        cx.call.readiness = entry.readiness;
        let action = call(&mut *entry.source, cx);
        entry.readiness = cx.call.readiness;
        match action {
            PostAction::Wait => {}
            PostAction::Requeue => {
                cx.scratch.tally.exhausted_budgets += 1;
                entry.add_to_ready_list(&mut self.ready);
            }
            PostAction::Remove => {
                entry.source.finish(cx);
                entry.removed = true;
                self.timers.set(token, &mut entry.armed, None);
                self.pending_removal.push(token.slot());
                cx.call.deadline_changed = false;
            }
        }
        if std::mem::take(&mut cx.turn.has_follow_up) {
            if std::mem::take(&mut cx.call.deadline_changed) {
                // Not due in this turn: otherwise one entry could occupy the loop for ever.
                let next_turn = cx.turn.now + Duration::from_nanos(1);
                let deadline =
                    entry.source.deadline(&cx.run).map(|deadline| deadline.max(next_turn));
                self.timers.set_lazily(token, &mut entry.armed, deadline);
            }
            let parent = entry.parent;
            self.follow_up(parent);
        }
    }

    /// Does what an entry has left for the loop: reports ended conversations and adds new
    /// connections.
    #[cold]
    fn follow_up(&mut self, parent: Token) {
        for Closed { origin, reason } in std::mem::take(&mut self.cx.turn.ended) {
            self.ended(parent, &origin, &reason);
        }
        let mut new_connections = std::mem::take(&mut self.cx.turn.new_connections);
        for new in new_connections.drain(..) {
            self.add_connection(new);
        }
        // Keeps the capacity of the list, unless an added connection has added another.
        if self.cx.turn.new_connections.is_empty() {
            self.cx.turn.new_connections = new_connections;
        }
        if std::mem::take(&mut self.cx.turn.deferred) {
            self.run_deferred(parent);
        }
        if let Some(full) = self.cx.turn.full.take() {
            self.close_silent(full, parent);
        }
        if std::mem::take(&mut self.cx.turn.memory_full) {
            self.free_memory();
        }
        if std::mem::take(&mut self.cx.turn.exhausted) {
            self.for_each_listener(|source, _| {
                if let Some(ListenerParts { dispatcher, .. }) = source.parts() {
                    dispatcher.notify_ends();
                }
                PostAction::Wait
            });
        }
    }

    /// Runs the deferred work of a listener's dispatcher. The source of the listener is outside of
    /// the slab meanwhile, because the work may iterate over the slab.
    fn run_deferred(&mut self, listener: Token) {
        let Some(entry) = entry_of(&mut self.slab, listener) else { return };
        let mut source = std::mem::replace(&mut entry.source, Box::new(Placeholder));
        let inherited = source.inherited();
        if let Some(ListenerParts { dispatcher, hooks }) = source.parts() {
            dispatcher.run_deferred(hooks, &mut Access { event_loop: self, listener, inherited });
        }
        if let Some(entry) = entry_of(&mut self.slab, listener) {
            entry.source = source;
        }
        if std::mem::take(&mut self.cx.turn.has_follow_up) {
            self.follow_up(listener);
        }
    }

    fn add_connection(&mut self, new: NewConnection) {
        let NewConnection { source, descriptor, parent } = new;
        let token = self.next_token();
        self.insert(token, parent, descriptor, source);
        // The first message has mostly arrived with the connection. A connection that ends with it is
        // never registered. Many of them do not keep the loop from others.
        if self.cx.turn.used < REQUEUED_BUDGET
            && let Some(entry) = entry_of(&mut self.slab, token)
        {
            entry.readiness.add(Readiness::READABLE);
        }
        self.call(token, |source, cx| source.opened(cx));
        if entry_of(&mut self.slab, token).is_none() {
            return;
        }
        // Both interests at once; they never change afterwards. The poller reports what is ready now.
        let interest = sys::stream_interest();
        let registry = self.resources.poll.registry();
        if let Err(error) = registry.register(&mut SourceFd(&descriptor), token.into(), interest) {
            log::warn!("a connection is closed because the poller cannot register it: {error}");
            self.call(token, |source, cx| source.not_registered(error, cx));
        }
    }

    fn insert(
        &mut self,
        token: Token,
        parent: Token,
        descriptor: RawFd,
        source: Box<dyn EventSource + 'a>,
    ) {
        let slot = self.slab.insert(Entry {
            token,
            parent,
            descriptor,
            // A new socket is writable. The poller reports all other readiness.
            readiness: Readiness::WRITABLE,
            listed: false,
            removed: false,
            armed: None,
            source,
        });
        debug_assert_eq!(slot, token.slot());
    }

    fn expire(&mut self, token: Token) {
        let now = self.cx.turn.now;
        let Some(entry) = entry_of(&mut self.slab, token) else {
            return;
        };
        entry.armed = None;
        if entry.listed {
            // Its input may have arrived, but it waited behind other entries. It is served before
            // its deadline expires.
            self.call(token, |source, cx| source.ready(cx));
        }
        let Some(entry) = entry_of(&mut self.slab, token) else {
            return;
        };
        // The call has set another deadline.
        if entry.armed.is_some() {
            return;
        }
        let deadline = entry.source.deadline(&self.cx.run);
        if deadline.is_some_and(|deadline| deadline > now) {
            return self.timers.set(token, &mut entry.armed, deadline);
        }
        if deadline.is_some() {
            self.call(token, |source, cx| {
                cx.deadline_changed();
                source.expired(cx)
            });
        }
    }

    fn ended(&mut self, listener: Token, origin: &LogPeer, reason: &CloseReason) {
        log::debug!("{origin}: {reason}");
        if reason.is_fault() {
            self.call(listener, |source, cx| {
                if let Some(ListenerParts { hooks, .. }) = source.parts() {
                    hooks.fault(origin, reason, cx);
                }
                PostAction::Wait
            });
        }
    }

    /// Closes every connection, in any state.
    fn end_connections(&mut self) {
        let is_connection = |entry: &&Entry<'_>| entry.parent != entry.token;
        let connections = self.slab.iter().map(|(_, entry)| entry).filter(is_connection);
        let tokens: Vec<_> = connections.map(|entry| entry.token).collect();
        for token in tokens {
            self.call(token, |_, _| PostAction::Remove);
        }
    }

    fn for_each_listener(
        &mut self,
        mut tell: impl FnMut(&mut dyn EventSource, &mut LoopCx) -> PostAction,
    ) {
        for index in 0..self.listeners.len() {
            self.call(self.listeners[index], |source, cx| tell(source, cx));
        }
    }

    /// Frees the slots of removed entries. No event of this batch can refer to an entry that reuses
    /// a slot.
    #[inline(never)]
    fn free_slots(&mut self) {
        for slot in self.pending_removal.drain(..) {
            drop(self.slab.remove(slot));
        }
    }
}

impl Drop for EventLoop<'_> {
    fn drop(&mut self) {
        // A thread that waits for the poller's descriptor before the next run gets the current
        // readiness.
        for listener in &self.listeners {
            let Some(entry) = self.slab.get(listener.slot()) else { continue };
            let registry = self.resources.poll.registry();
            let (mut source, token) = (SourceFd(&entry.descriptor), Token::WAKE.into());
            let again = registry.reregister(&mut source, token, Interest::READABLE);
            if let Err(error) = again {
                log::warn!("the poller cannot register a listener between two runs: {error}");
            }
        }
        self.end_connections();
        self.for_each_listener(|source, cx| {
            source.finish(cx);
            PostAction::Wait
        });
        self.free_slots();
        self.slab.clear();
        self.cx.scratch.tally.panics += guard::take_caught();
        self.resources.published.add(&mut self.cx.scratch.tally);
        self.resources.mailbox.end_run();
    }
}

/// The source of a listener in the slab while the deferred work of its dispatcher runs.
struct Placeholder;

impl EventSource for Placeholder {
    fn ready(&mut self, _cx: &mut LoopCx) -> PostAction {
        PostAction::Wait
    }
}

/// Access to the event loop for the deferred work of one listener's dispatcher.
struct Access<'s, 'a> {
    event_loop: &'s mut EventLoop<'a>,
    listener: Token,
    /// The descriptors of the listener besides its own: see [`EventSource::inherited`].
    inherited: Vec<RawFd>,
}

impl LoopAccess for Access<'_, '_> {
    fn cx(&mut self) -> &mut LoopCx {
        &mut self.event_loop.cx
    }

    fn watch(&mut self, descriptor: RawFd) -> io::Result<()> {
        let registry = self.event_loop.resources.poll.registry();
        registry.register(&mut SourceFd(&descriptor), self.listener.into(), Interest::READABLE)
    }

    fn close_all_but(&mut self, keep_listener: bool, close: &mut dyn FnMut(RawFd)) {
        let EventLoop { resources, slab, cx, .. } = &mut *self.event_loop;
        close(resources.poll.as_raw_fd());
        close(resources.mailbox.wakeup().as_raw_fd());
        cx.run.reserve.take();
        for (_, entry) in slab {
            if !keep_listener || entry.token != self.listener {
                close(entry.descriptor);
            }
            entry.source.inherited().into_iter().for_each(&mut *close);
            // The source of this listener is a [`Placeholder`], without parts.
            if let Some(ListenerParts { dispatcher, .. }) = entry.source.parts() {
                dispatcher.watched().into_iter().for_each(&mut *close);
            }
        }
        self.inherited.drain(..).for_each(close);
    }
}
