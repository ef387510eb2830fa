//! The loop: one poller, one slab of listeners and connections, and a turn that serves whoever is
//! ready.
//!
//! **Invariant:** edge-triggering never shows. What is known of a descriptor is kept in its entry
//! until an attempt shows otherwise, and who could go on but has used up its share stands in the
//! ready list; while that is not empty, the poller is not waited for.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest};
use slab::Slab;

use crate::address::Origin;
use crate::error::CloseReason;
use crate::guard;
use crate::guard::log;
use crate::mailbox::{Mail, abandon};
use crate::server_state::StopOutcome;
use crate::sys::{self, SignalWatch};
use crate::token::Token;

mod connection;
mod datagrams;
mod entry;
mod lingering;
mod listener;
mod poll;
mod replies;
mod slot;
mod source;
mod stream_io;
mod timers;
mod turn_end;
mod water_marks;

pub(crate) use connection::Connection;
pub(crate) use datagrams::{DatagramDispatcher, Datagrams};
use entry::{Entry, entry_of, may_run_now, may_take_mail_now};
pub(crate) use lingering::LingeringConnection;
pub(crate) use listener::{Listener, StreamDispatcher};
pub(crate) use poll::{EVENTS, LoopResources};
pub(crate) use slot::{ConversationEvent, ConversationSlot};
pub(crate) use source::{
    Closed, Dispatcher, EntryRef, EventSource, ListenerHooks, LoopAccess, LoopCx, NewConnection,
};
use source::{ListenerParts, PostAction, Readiness};
use timers::Timers;
pub(crate) use water_marks::{OutputLimits, WaterMarks};

/// How many pieces of mail a turn takes.
const MAIL_BUDGET: usize = 1024;

/// How much those who could go on may read and answer together, in bytes, before it is looked who
/// else is ready.
const REQUEUED_BUDGET: u64 = 64 * 1024;

/// How many deadlines a turn looks after.
const EXPIRY_BUDGET: usize = 256;

/// One run of the loop.
pub(crate) struct EventLoop<'a> {
    resources: LoopResources<'a>,
    slab: Slab<Entry<'a>>,
    listeners: Vec<Token>,
    /// Some listener wants to know when a turn is over.
    wants_turn_end: bool,
    /// When the next turn is to begin at the latest, because the hooks of a listener want it.
    next_turn: Option<Instant>,
    timers: Timers,
    ready: VecDeque<Token>,
    mail: VecDeque<Mail>,
    /// Slots to be freed when the batch is done.
    pending_removal: Vec<usize>,
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
            mail: VecDeque::new(),
            pending_removal: Vec::new(),
            cx,
        }
    }

    /// Adds a listener whose descriptor the poller knows already. It is looked at at once: its edge
    /// may have come and gone with an earlier run.
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
                // Known to the poller from an earlier run, or new to it.
                registry
                    .reregister(&mut source, token.into(), interest)
                    .or_else(|_| registry.register(&mut source, token.into(), interest))?;
            }
            self.wants_turn_end |= dispatcher.wants_turn_end() || hooks.wants_turn_end();
            self.next_turn = self.next_turn.into_iter().chain(hooks.next_turn(&mut self.cx)).min();
        }
        self.insert(token, token, descriptor, source);
        self.listeners.push(token);
        // Something may wait that brings no edge: a connection handed over.
        if let Some(entry) = entry_of(&mut self.slab, token) {
            entry.line_up(&mut self.ready);
        }
        Ok(())
    }

    /// What every entry is lent.
    pub(crate) fn cx(&mut self) -> &mut LoopCx {
        &mut self.cx
    }

    /// How many connections are in the slab.
    pub(crate) fn connections(&self) -> usize {
        self.slab.len() - self.listeners.len() - self.pending_removal.len()
    }

    /// How many of them are being served: not those that linger after a request that was served by
    /// blocking.
    pub(crate) fn requests(&self) -> usize {
        let is_request = |entry: &Entry<'_>| {
            !entry.removed && entry.parent != entry.token && entry.source.is_request()
        };
        self.slab.iter().filter(|(_, entry)| is_request(entry)).count()
    }

    /// How many requests are served outside the slab.
    pub(crate) fn in_flight(&mut self) -> usize {
        self.sum_of_dispatchers(|dispatcher| dispatcher.in_flight())
    }

    /// How many requests have ended that were idle when the server began to stop.
    pub(crate) fn ended_idle(&mut self) -> usize {
        self.cx.run.ended_idle + self.sum_of_dispatchers(|dispatcher| dispatcher.ended_idle())
    }

    /// How many requests that were served on this thread, outside the slab, have come to this outcome
    /// when the stop overtook them.
    pub(crate) fn overtaken(&mut self, outcome: StopOutcome) -> usize {
        self.sum_of_dispatchers(|dispatcher| {
            usize::from(dispatcher.stop_outcome() == Some(outcome))
        })
    }

    fn sum_of_dispatchers(&mut self, number: impl Fn(&dyn Dispatcher) -> usize) -> usize {
        let mut sum = 0;
        for token in &self.listeners {
            if let Some(ListenerParts { dispatcher, .. }) = self.slab[token.slot()].source.parts() {
                sum += number(dispatcher);
            }
        }
        sum
    }

    /// How many datagrams wait to be sent, see [`EventSource::undelivered`].
    pub(crate) fn undelivered(&self) -> usize {
        self.listeners.iter().map(|token| self.slab[token.slot()].source.undelivered()).sum()
    }

    /// How much of this run is out with workers, of requests that are not in the slab.
    pub(crate) fn lent(&mut self) -> usize {
        self.sum_of_dispatchers(|dispatcher| dispatcher.lent())
    }

    /// Waits, for `patience` at the most, and serves whoever is ready.
    ///
    /// # Errors
    ///
    /// Only where the poller itself fails; nothing that a peer or a handler does is an error here.
    pub(crate) fn run_turn(
        &mut self,
        patience: Option<Duration>,
        signals: Option<&SignalWatch>,
    ) -> io::Result<()> {
        self.wait(patience, signals)?;
        self.cx.scratch.tally.turns += 1;
        self.cx.turn.used = 0;
        // Those that could have gone on after the last turn; who joins now comes in the next.
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
        self.serve_mail();
        self.serve_timers();
        if std::mem::take(&mut self.cx.turn.capacity_freed) {
            // What was closed in this turn has its descriptor until it is dropped.
            self.free_slots();
            self.tell_listeners(|source, cx| source.on_capacity_freed(cx));
        }
        self.end_turn();
        Ok(())
    }

    /// How much has been read in this turn, and how much of their budgets connections have used, in
    /// bytes.
    fn spent(&self) -> (u64, u64) {
        (self.cx.scratch.tally.bytes_in, self.cx.turn.used)
    }

    /// Whether so much has been spent since then that others come first.
    fn is_enough_since(&self, (bytes_in, used): (u64, u64)) -> bool {
        let (bytes_in_now, used_now) = self.spent();
        (bytes_in_now - bytes_in).max(used_now - used) >= REQUEUED_BUDGET
    }

    /// Serves the connections whose deadline has come; those that are left are still due in the next
    /// turn.
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

    /// Begins to stop: nothing is accepted any more, and who is idle ends.
    pub(crate) fn stop(&mut self) {
        self.cx.run.stopping = true;
        self.cx.set_now(Instant::now());
        let tokens: Vec<_> = self.slab.iter().map(|(_, entry)| entry.token).collect();
        for token in tokens {
            self.call(token, |source, cx| source.stop(cx));
        }
        self.end_turn();
    }

    /// Ends whoever is left; returns how many requests that were.
    pub(crate) fn abort_all(&mut self) -> usize {
        let count = self.requests() + self.in_flight();
        self.end_connections();
        if count > 0 {
            self.tell_listeners(|source, cx| {
                source.abort_all(cx);
                PostAction::Wait
            });
        }
        self.end_turn();
        count
    }

    fn serve_events(&mut self) {
        let events = std::mem::replace(self.resources.events, Events::with_capacity(0));
        for event in &events {
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

    fn serve_mail(&mut self) {
        self.resources.mailbox.collect(&mut self.mail, MAIL_BUDGET);
        while let Some(mail) = self.mail.pop_front() {
            match mail {
                Mail::SendQueue(token) => {
                    let note = |entry: &mut Entry<'_>, ready: &mut VecDeque<Token>| {
                        entry.source.mail_taken();
                        // A listener has its replies to try again, which nothing else tells it.
                        entry.parent == entry.token || may_take_mail_now(entry, ready)
                    };
                    self.visit(token, note, |source, cx| source.send_queue_ready(cx));
                }
                Mail::JobDone(token, work) => match entry_of(&mut self.slab, token) {
                    Some(_) => self.call(token, |source, cx| source.returned(work, cx)),
                    None => abandon(work),
                },
                Mail::CapacityFreed => self.cx.turn.capacity_freed = true,
                Mail::Wake => {}
                Mail::Ended(mut ended) => {
                    self.cx.scratch.tally.absorb(&mut ended.tally);
                    let listener = self.listeners[ended.service];
                    self.ended(listener, &ended.origin, &ended.reason);
                }
            }
        }
    }

    /// Calls an entry, if it is still there, and does what follows from it.
    fn call(
        &mut self,
        token: Token,
        call: impl FnOnce(&mut dyn EventSource, &mut LoopCx) -> PostAction,
    ) {
        self.visit(token, |_, _| true, call);
    }

    /// As [`call`](Self::call), if a first look at the entry says so.
    #[inline(always)]
    fn visit(
        &mut self,
        token: Token,
        look: impl FnOnce(&mut Entry<'a>, &mut VecDeque<Token>) -> bool,
        call: impl FnOnce(&mut dyn EventSource, &mut LoopCx) -> PostAction,
    ) {
        let Some(entry) = entry_of(&mut self.slab, token) else {
            return;
        };
        if !look(entry, &mut self.ready) {
            return;
        }
        let cx = &mut self.cx;
        cx.call.entry.token = token;
        cx.call.readiness = entry.readiness;
        let action = call(&mut *entry.source, cx);
        entry.readiness = cx.call.readiness;
        match action {
            PostAction::Wait => {}
            PostAction::Requeue => entry.line_up(&mut self.ready),
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
                // Never due in this turn: an entry could keep the loop from all others.
                let next_turn = cx.turn.now + Duration::from_nanos(1);
                let deadline = entry.source.deadline().map(|deadline| deadline.max(next_turn));
                self.timers.set_lazily(token, &mut entry.armed, deadline);
            }
            let parent = entry.parent;
            self.follow_up(parent);
        }
    }

    /// What an entry left to be done by the loop: a fault to be told, connections to be let in.
    #[cold]
    fn follow_up(&mut self, parent: Token) {
        for Closed { origin, reason } in std::mem::take(&mut self.cx.turn.ended) {
            self.ended(parent, &origin, &reason);
        }
        let mut new_connections = std::mem::take(&mut self.cx.turn.new_connections);
        for new in new_connections.drain(..) {
            self.add_connection(new);
        }
        // Its room is kept, unless someone was let in by someone let in.
        if self.cx.turn.new_connections.is_empty() {
            self.cx.turn.new_connections = new_connections;
        }
        if std::mem::take(&mut self.cx.turn.deferred) {
            self.run_deferred(parent);
        }
        if std::mem::take(&mut self.cx.turn.exhausted) {
            self.tell_listeners(|source, _| {
                if let Some(ListenerParts { dispatcher, .. }) = source.parts() {
                    dispatcher.tell_ends();
                }
                PostAction::Wait
            });
        }
    }

    /// Runs the deferred work of a listener's dispatcher. Its source is taken out of the slab meanwhile,
    /// since the work may walk over the slab.
    fn run_deferred(&mut self, listener: Token) {
        let Some(entry) = entry_of(&mut self.slab, listener) else { return };
        let mut source = std::mem::replace(&mut entry.source, Box::new(Absent));
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
        // Both at once and for good: interest is never changed afterwards.
        let interest = sys::stream_interest();
        let registry = self.resources.poll.registry();
        if let Err(error) = registry.register(&mut SourceFd(&descriptor), token.into(), interest) {
            log::warn!("a connection cannot be watched and is closed: {error}");
            self.cx.scratch.tally.closed += 1;
            return;
        }
        self.insert(token, parent, descriptor, source);
        self.call(token, |source, cx| source.opened(cx));
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
            // A new socket can be written to, and whatever else holds the poller will say.
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
            // Its input may be there, and only has to wait for others: it is served before it is
            // judged.
            self.call(token, |source, cx| source.ready(cx));
        }
        let Some(entry) = entry_of(&mut self.slab, token) else {
            return;
        };
        // It has just been given another deadline.
        if entry.armed.is_some() {
            return;
        }
        let deadline = entry.source.deadline();
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

    fn ended(&mut self, listener: Token, origin: &Origin, reason: &CloseReason) {
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

    /// Ends every connection, whatever it is doing.
    fn end_connections(&mut self) {
        let is_connection = |entry: &&Entry<'_>| entry.parent != entry.token;
        let connections = self.slab.iter().map(|(_, entry)| entry).filter(is_connection);
        let tokens: Vec<_> = connections.map(|entry| entry.token).collect();
        for token in tokens {
            self.call(token, |_, _| PostAction::Remove);
        }
    }

    fn tell_listeners(
        &mut self,
        mut tell: impl FnMut(&mut dyn EventSource, &mut LoopCx) -> PostAction,
    ) {
        for index in 0..self.listeners.len() {
            self.call(self.listeners[index], |source, cx| tell(source, cx));
        }
    }

    /// Frees the slots of the dead: no event of this batch can mean their successors any more.
    #[inline(never)]
    fn free_slots(&mut self) {
        for slot in self.pending_removal.drain(..) {
            drop(self.slab.remove(slot));
        }
    }
}

impl Drop for EventLoop<'_> {
    fn drop(&mut self) {
        // Whoever waits for the poller's descriptor until the next run is to see who waits now.
        for listener in &self.listeners {
            let Some(entry) = self.slab.get(listener.slot()) else { continue };
            let registry = self.resources.poll.registry();
            let (mut source, token) = (SourceFd(&entry.descriptor), Token::WAKE.into());
            let again = registry.reregister(&mut source, token, Interest::READABLE);
            if let Err(error) = again {
                log::warn!("a listener cannot be watched between runs: {error}");
            }
        }
        self.end_connections();
        self.tell_listeners(|source, cx| {
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

/// What stands in the slab for a listener while the deferred work of its dispatcher runs.
struct Absent;

impl EventSource for Absent {
    fn ready(&mut self, _cx: &mut LoopCx) -> PostAction {
        PostAction::Wait
    }
}

/// The loop, for the deferred work of one listener's dispatcher.
struct Access<'s, 'a> {
    event_loop: &'s mut EventLoop<'a>,
    listener: Token,
    /// What the listener has beside its descriptor, see [`EventSource::inherited`].
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
            // The source of this listener is absent.
            if let Some(ListenerParts { dispatcher, .. }) = entry.source.parts() {
                dispatcher.watched().into_iter().for_each(&mut *close);
            }
        }
        self.inherited.drain(..).for_each(close);
    }
}
