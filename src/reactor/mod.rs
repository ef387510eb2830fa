//! The loop: one poller, one slab of listeners and connections, and a turn that serves whoever is
//! ready.
//!
//! **Invariant:** edge-triggering never shows. What is known of a descriptor is kept in its entry
//! until an attempt shows otherwise, and who could go on but has used up its share stands in the
//! ready list; while that is not empty, the poller is not waited for.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use slab::Slab;

use crate::address::Peer;
use crate::counters::Published;
use crate::error::{CloseReason, Error};
use crate::guard;
use crate::log;
use crate::mailbox::{Mail, Mailbox, abandon};
use crate::sys::{self, ChildProcess, Forked, SignalWatch};
use crate::token::{MAX_SLOTS, Token};

mod backlog;
mod datagrams;
mod lend;
mod listener;
mod live;
mod pump;
mod timers;

pub(crate) use datagrams::{Answerer, Datagrams};
pub(crate) use lend::{Lender, Lending, LentDatagram};
pub(crate) use listener::{Acceptor, Listener};
use live::{Backing, Fate, Readiness};
pub(crate) use live::{End, Fork, Gate, Live, Newcomer, Request, Taker, Turn};
pub(crate) use pump::{Connection, Lingers, Marks, Talk};
use timers::Timers;

/// How many pieces of mail a turn takes.
const MAIL_BUDGET: usize = 1024;

/// How much those who could go on may read and answer together, in bytes, before it is looked who
/// else is ready.
const LEFTOVER_BUDGET: u64 = 64 * 1024;

/// How many deadlines a turn looks after.
const EXPIRY_BUDGET: usize = 256;

/// How many events a turn takes from the poller.
pub(crate) const EVENTS: usize = 1024;

/// One listener or connection: small and uniform, so that a walk over many is cheap.
struct Entry<'a> {
    token: Token,
    /// The listener it came from; a listener's own token.
    parent: Token,
    readiness: Readiness,
    descriptor: RawFd,
    /// It stands in the ready list.
    listed: bool,
    /// It is over; its slot is free after this batch of events.
    dead: bool,
    /// Its deadline in the timers.
    armed: Option<Instant>,
    live: Box<dyn Live + 'a>,
}

impl Entry<'_> {
    /// Puts it into the ready list, once.
    #[inline]
    fn line_up(&mut self, ready: &mut VecDeque<Token>) {
        if !std::mem::replace(&mut self.listed, true) {
            ready.push_back(self.token);
        }
    }
}

/// What a loop needs that outlives it.
pub(crate) struct Ground<'a> {
    pub(crate) poll: &'a mut Poll,
    pub(crate) events: &'a mut Events,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) published: &'a Published,
    /// How long to look again and again before each sleep.
    pub(crate) spin: Duration,
    /// The last generation given out; no token is ever given out twice.
    pub(crate) generation: &'a mut usize,
}

/// One run of the loop.
pub(crate) struct Reactor<'a> {
    ground: Ground<'a>,
    /// The number of this run.
    run: usize,
    slab: Slab<Entry<'a>>,
    listeners: Vec<Token>,
    /// Some listener wants to know when a turn is over.
    attentive: bool,
    timers: Timers,
    ready: VecDeque<Token>,
    mail: VecDeque<Mail>,
    /// Slots to be freed when the batch is done.
    graveyard: Vec<usize>,
    turn: Turn,
}

impl<'a> Reactor<'a> {
    pub(crate) fn new(ground: Ground<'a>) -> Self {
        let turn = Turn::new(ground.mailbox.clone());
        let run = ground.mailbox.settle_in();
        Reactor {
            ground,
            run,
            slab: Slab::new(),
            listeners: Vec::new(),
            attentive: false,
            timers: Timers::default(),
            ready: VecDeque::new(),
            mail: VecDeque::new(),
            graveyard: Vec::new(),
            turn,
        }
    }

    /// Adds a listener whose descriptor the poller knows already. It is looked at at once: its edge
    /// may have come and gone with an earlier run.
    pub(crate) fn add_listener(
        &mut self,
        descriptor: RawFd,
        make: impl FnOnce(Token) -> io::Result<Box<dyn Live + 'a>>,
    ) -> io::Result<()> {
        let token = self.next_token();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.ground.poll.registry();
        registry.reregister(&mut SourceFd(&descriptor), token.into(), interest)?;
        let mut live = make(token)?;
        if let Some(Backing { taker, gate }) = live.backing() {
            for watched in taker.watched() {
                let mut source = SourceFd(&watched);
                let interest = Interest::READABLE;
                // Known to the poller from an earlier run, or new to it.
                registry
                    .reregister(&mut source, token.into(), interest)
                    .or_else(|_| registry.register(&mut source, token.into(), interest))?;
            }
            self.attentive |= taker.is_attentive() || gate.is_attentive();
        }
        self.insert(token, token, descriptor, live);
        self.listeners.push(token);
        // Something may wait that brings no edge: a connection handed over.
        if let Some(entry) = entry_of(&mut self.slab, token) {
            entry.line_up(&mut self.ready);
        }
        Ok(())
    }

    /// What every entry is lent.
    pub(crate) fn turn(&mut self) -> &mut Turn {
        &mut self.turn
    }

    /// How many connections are in the slab.
    pub(crate) fn connections(&self) -> usize {
        self.slab.len() - self.listeners.len() - self.graveyard.len()
    }

    /// How many of them are being served: not those that linger after a request that was served by
    /// blocking.
    pub(crate) fn requests(&self) -> usize {
        let is_request = |entry: &Entry<'_>| {
            !entry.dead && entry.parent != entry.token && entry.live.is_request()
        };
        self.slab.iter().filter(|(_, entry)| is_request(entry)).count()
    }

    /// How many requests are served outside the slab.
    pub(crate) fn elsewhere(&mut self) -> usize {
        self.sum_of_takers(|taker| taker.elsewhere())
    }

    /// How many requests have ended outside the slab that the stop found idle.
    pub(crate) fn ended_idle(&mut self) -> usize {
        self.sum_of_takers(|taker| taker.ended_idle())
    }

    fn sum_of_takers(&mut self, number: impl Fn(&dyn Taker) -> usize) -> usize {
        let mut sum = 0;
        for token in &self.listeners {
            if let Some(Backing { taker, .. }) = self.slab[token.slot()].live.backing() {
                sum += number(taker);
            }
        }
        sum
    }

    /// How many datagrams wait to be sent, see [`Live::undelivered`].
    pub(crate) fn undelivered(&self) -> usize {
        self.listeners.iter().map(|token| self.slab[token.slot()].live.undelivered()).sum()
    }

    /// How much of this run is out with workers, of requests that are not in the slab.
    pub(crate) fn lent(&mut self) -> usize {
        let mut lent = 0;
        for token in &self.listeners {
            if let Some(Backing { taker, .. }) = self.slab[token.slot()].live.backing() {
                lent += taker.lent();
            }
        }
        lent
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
        self.turn.tally.turns += 1;
        self.turn.used = 0;
        // Those that could have gone on after the last turn; who joins now comes in the next.
        let leftover = self.ready.len();
        self.serve_events();
        let begun = self.spent();
        for _ in 0..leftover {
            let Some(token) = self.ready.pop_front() else {
                break;
            };
            if let Some(entry) = entry_of(&mut self.slab, token) {
                entry.listed = false;
                self.call(token, |live, turn| live.ready(turn));
            }
            if self.is_enough_since(begun) {
                break;
            }
        }
        self.serve_mail();
        self.serve_timers();
        if std::mem::take(&mut self.turn.freed) {
            // What was closed in this turn has its descriptor until it is dropped.
            self.bury();
            self.tell_listeners(|live, turn| live.freed(turn));
        }
        self.end_turn();
        Ok(())
    }

    /// How much has been read in this turn, and how much of their budgets connections have used, in
    /// bytes.
    fn spent(&self) -> (u64, u64) {
        (self.turn.tally.bytes_in, self.turn.used)
    }

    /// Whether so much has been spent since then that others come first.
    fn is_enough_since(&self, (bytes_in, used): (u64, u64)) -> bool {
        let (bytes_in_now, used_now) = self.spent();
        (bytes_in_now - bytes_in).max(used_now - used) >= LEFTOVER_BUDGET
    }

    /// Serves the connections whose deadline has come; those that are left are still due in the next
    /// turn.
    fn serve_timers(&mut self) {
        let begun = self.spent();
        for _ in 0..EXPIRY_BUDGET {
            let Some(token) = self.timers.due(self.turn.now) else {
                break;
            };
            self.expire(token);
            if self.is_enough_since(begun) {
                break;
            }
        }
    }

    /// What was put off to the end of a turn: workers are called for what was lent in it.
    #[inline]
    fn end_turn(&mut self) {
        if self.attentive {
            self.tell_listeners(|live, turn| {
                if let Some(Backing { taker, gate }) = live.backing() {
                    taker.turned();
                    gate.turned(turn);
                }
                Fate::Wait
            });
        }
        if !self.graveyard.is_empty() {
            self.bury();
        }
        self.ground.published.add(&mut self.turn.tally);
    }

    /// Begins to stop: nothing is accepted any more, and who is idle ends.
    pub(crate) fn stop(&mut self) {
        self.turn.stopping = true;
        self.turn.now = Instant::now();
        let tokens: Vec<_> = self.slab.iter().map(|(_, entry)| entry.token).collect();
        for token in tokens {
            self.call(token, |live, turn| live.stop(turn));
        }
        self.end_turn();
    }

    /// Ends whoever is left; returns how many requests that were.
    pub(crate) fn cut(&mut self) -> usize {
        let count = self.requests() + self.elsewhere();
        self.end_connections();
        if count > 0 {
            self.tell_listeners(|live, turn| {
                live.cut(turn);
                Fate::Wait
            });
        }
        self.end_turn();
        count
    }

    fn wait(
        &mut self,
        patience: Option<Duration>,
        signals: Option<&SignalWatch>,
    ) -> io::Result<()> {
        let mut timeout = patience;
        if let Some(deadline) = self.timers.next() {
            let left = deadline.saturating_duration_since(Instant::now());
            timeout = Some(timeout.map_or(left, |timeout| timeout.min(left)));
        }
        let busy = !self.ready.is_empty()
            || self.turn.shutdown
            || self.turn.freed
            || signals.is_some_and(SignalWatch::is_due)
            || timeout == Some(Duration::ZERO);
        if !busy && self.spin(&mut timeout, signals)? {
            return Ok(());
        }
        if busy || !self.ground.mailbox.fall_asleep() {
            timeout = Some(Duration::ZERO);
        }
        let polled = self.ground.poll.poll(self.ground.events, timeout);
        if !busy && self.ground.mailbox.wake_up() {
            self.turn.tally.wakes += 1;
        }
        self.turn.now = Instant::now();
        match polled {
            // The next turn waits for what is left of the time.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.ground.events.clear();
                Ok(())
            }
            other => other,
        }
    }

    /// Looks again and again for a moment, if that is wanted: waking a thread that sleeps may take
    /// longer than the next request takes to come. True when there is something to do; otherwise
    /// `timeout` is less by the time that has passed.
    fn spin(
        &mut self,
        timeout: &mut Option<Duration>,
        signals: Option<&SignalWatch>,
    ) -> io::Result<bool> {
        if self.ground.spin.is_zero() {
            return Ok(false);
        }
        let spin = timeout.map_or(self.ground.spin, |timeout| timeout.min(self.ground.spin));
        let began = Instant::now();
        let until = began + spin;
        loop {
            match self.ground.poll.poll(self.ground.events, Some(Duration::ZERO)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    self.ground.events.clear();
                }
                other => other?,
            }
            self.turn.now = Instant::now();
            if !self.ground.events.is_empty()
                || self.ground.mailbox.has_mail()
                || signals.is_some_and(SignalWatch::is_due)
            {
                return Ok(true);
            }
            if self.turn.now >= until {
                let passed = self.turn.now.saturating_duration_since(began);
                *timeout = timeout.map(|timeout| timeout.saturating_sub(passed));
                return Ok(false);
            }
        }
    }

    fn serve_events(&mut self) {
        let events = std::mem::replace(self.ground.events, Events::with_capacity(0));
        for event in &events {
            let token = Token::from(event.token());
            let readiness = Readiness::of(event);
            let note = |entry: &mut Entry<'_>, ready: &mut VecDeque<Token>| {
                entry.readiness.add(readiness);
                may_go_first(entry, ready)
            };
            self.visit(token, note, |live, turn| live.ready(turn));
        }
        *self.ground.events = events;
    }

    fn serve_mail(&mut self) {
        self.ground.mailbox.collect(&mut self.mail, MAIL_BUDGET);
        while let Some(mail) = self.mail.pop_front() {
            match mail {
                Mail::Outlet(token) => {
                    let note = |entry: &mut Entry<'_>, ready: &mut VecDeque<Token>| {
                        entry.live.mail_taken();
                        // A listener has its replies to try again, which nothing else tells it.
                        entry.parent == entry.token || may_go_first(entry, ready)
                    };
                    self.visit(token, note, |live, turn| live.parcels(turn));
                }
                Mail::Returned(token, work) => match entry_of(&mut self.slab, token) {
                    Some(_) => self.call(token, |live, turn| live.returned(work, turn)),
                    None => abandon(work),
                },
                Mail::Freed => self.turn.freed = true,
                Mail::Shutdown(run) => self.turn.shutdown |= run == self.run,
                Mail::Nudge => {}
                Mail::Ended(mut ended) => {
                    self.turn.tally.take(&mut ended.tally);
                    let listener = self.listeners[ended.service];
                    self.ended(listener, &ended.peer, &ended.reason);
                }
            }
        }
    }

    /// Calls an entry, if it is still there, and does what follows from it.
    fn call(&mut self, token: Token, call: impl FnOnce(&mut dyn Live, &mut Turn) -> Fate) {
        self.visit(token, |_, _| true, call);
    }

    /// As [`call`](Self::call), if a first look at the entry says so.
    #[inline(always)]
    fn visit(
        &mut self,
        token: Token,
        look: impl FnOnce(&mut Entry<'a>, &mut VecDeque<Token>) -> bool,
        call: impl FnOnce(&mut dyn Live, &mut Turn) -> Fate,
    ) {
        let Some(entry) = entry_of(&mut self.slab, token) else {
            return;
        };
        if !look(entry, &mut self.ready) {
            return;
        }
        let turn = &mut self.turn;
        turn.port.token = token;
        turn.readiness = entry.readiness;
        let fate = call(&mut *entry.live, turn);
        entry.readiness = turn.readiness;
        match fate {
            Fate::Wait => {}
            Fate::Again => entry.line_up(&mut self.ready),
            Fate::Done => {
                entry.live.finish(turn);
                entry.dead = true;
                self.timers.set(token, &mut entry.armed, None);
                self.graveyard.push(token.slot());
                turn.rearm = false;
            }
        }
        if std::mem::take(&mut turn.left) {
            if std::mem::take(&mut turn.rearm) {
                // Never due in this turn: an entry could keep the loop from all others.
                let next_turn = turn.now + Duration::from_nanos(1);
                let deadline = entry.live.deadline().map(|deadline| deadline.max(next_turn));
                self.timers.set(token, &mut entry.armed, deadline);
            }
            let parent = entry.parent;
            self.follow_up(parent);
        }
    }

    /// What an entry left to be done by the loop: a fault to be told, connections to be let in.
    #[cold]
    fn follow_up(&mut self, parent: Token) {
        for End { peer, reason } in std::mem::take(&mut self.turn.ended) {
            self.ended(parent, &peer, &reason);
        }
        let mut newcomers = std::mem::take(&mut self.turn.newcomers);
        for newcomer in newcomers.drain(..) {
            self.admit(newcomer);
        }
        // Its room is kept, unless someone was let in by someone let in.
        if self.turn.newcomers.is_empty() {
            self.turn.newcomers = newcomers;
        }
        while let Some(fork) = self.turn.forks.pop_front() {
            self.fork(fork);
        }
        if std::mem::take(&mut self.turn.exhausted) {
            self.tell_listeners(|live, _| {
                if let Some(Backing { taker, .. }) = live.backing() {
                    taker.tell_ends();
                }
                Fate::Wait
            });
        }
    }

    /// Forks for a request. The child closes all that is the loop's and serves; it does not return.
    fn fork(&mut self, fork: Fork) {
        let Fork { request, parent, allow_threads } = fork;
        let child = match forked(allow_threads) {
            Ok(Forked::Child(process)) => {
                process.run(|process| self.serve_in_child(request, parent, process))
            }
            Ok(Forked::Parent(child)) => {
                let descriptor = child.as_fd().as_raw_fd();
                let registry = self.ground.poll.registry();
                let interest = Interest::READABLE;
                let watched =
                    registry.register(&mut SourceFd(&descriptor), parent.into(), interest);
                if let Err(error) = watched {
                    log::warn!("a child's end cannot be watched for: {error}");
                }
                Some(child)
            }
            Err(error) => {
                self.turn.tally.rejected_full += 1;
                let is_connection = matches!(request, Request::Stream(..));
                self.turn.tally.closed += u64::from(is_connection);
                // Nobody will end to say that there is room.
                self.turn.freed = true;
                match error {
                    Error::Mode(_) => self.turn.failed = Some(error),
                    error => log::error!("a request is turned away: {error:#}"),
                }
                None
            }
        };
        drop(request);
        self.call(parent, |live, _| {
            if let Some(Backing { taker, .. }) = live.backing() {
                taker.forked(child);
            }
            Fate::Wait
        });
    }

    /// In a child: serves the request that it was forked for; the code to end with.
    fn serve_in_child(&mut self, request: Request, parent: Token, process: &ChildProcess) -> i32 {
        self.close_inherited(&request, parent, process);
        let turn = &mut self.turn;
        let listener = entry_of(&mut self.slab, parent);
        let Some(Backing { taker, gate }) = listener.and_then(|entry| entry.live.backing()) else {
            return 1;
        };
        let mut fault = |peer: &Peer, reason: &CloseReason| gate.fault(peer, reason, turn);
        taker.serve_in_child(request, process, &mut fault)
    }

    /// In a child: closes the loop's own descriptors one by one, and no one else's.
    fn close_inherited(&mut self, request: &Request, parent: Token, process: &ChildProcess) {
        process.close(self.ground.poll.as_raw_fd());
        process.close(self.ground.mailbox.wakeup().as_raw_fd());
        self.turn.reserve.take();
        self.turn.forks.clear();
        // A datagram is answered on the socket that it came by.
        let kept = matches!(request, Request::Datagram(_)).then_some(parent);
        for (_, entry) in &mut self.slab {
            if kept != Some(entry.token) {
                process.close(entry.descriptor);
            }
            entry.live.inherited().into_iter().for_each(|fd| process.close(fd));
            // Its own listener sees to the rest itself.
            if entry.token != parent
                && let Some(Backing { taker, .. }) = entry.live.backing()
            {
                taker.watched().into_iter().for_each(|watched| process.close(watched));
            }
        }
    }

    fn admit(&mut self, newcomer: Newcomer) {
        let Newcomer { live, descriptor, parent } = newcomer;
        let token = self.next_token();
        // Both at once and for good: interest is never changed afterwards.
        let interest = sys::stream_interest();
        let registry = self.ground.poll.registry();
        if let Err(error) = registry.register(&mut SourceFd(&descriptor), token.into(), interest) {
            log::warn!("a connection cannot be watched and is closed: {error}");
            self.turn.tally.closed += 1;
            return;
        }
        self.insert(token, parent, descriptor, live);
        self.call(token, |live, turn| live.opened(turn));
    }

    fn next_token(&mut self) -> Token {
        *self.ground.generation = self.ground.generation.wrapping_add(1);
        Token::new(self.slab.vacant_key().min(MAX_SLOTS - 1), *self.ground.generation)
    }

    fn insert(&mut self, token: Token, parent: Token, descriptor: RawFd, live: Box<dyn Live + 'a>) {
        let slot = self.slab.insert(Entry {
            token,
            parent,
            descriptor,
            // A new socket can be written to, and whatever else holds the poller will say.
            readiness: Readiness::WRITABLE,
            listed: false,
            dead: false,
            armed: None,
            live,
        });
        debug_assert_eq!(slot, token.slot());
    }

    fn expire(&mut self, token: Token) {
        let now = self.turn.now;
        let Some(entry) = entry_of(&mut self.slab, token) else {
            return;
        };
        entry.armed = None;
        if entry.listed {
            // Its input may be there, and only has to wait for others: it is served before it is
            // judged.
            self.call(token, |live, turn| live.ready(turn));
        }
        let Some(entry) = entry_of(&mut self.slab, token) else {
            return;
        };
        // It has just been given another deadline.
        if entry.armed.is_some() {
            return;
        }
        let deadline = entry.live.deadline();
        if deadline.is_some_and(|deadline| deadline > now) {
            return self.timers.set(token, &mut entry.armed, deadline);
        }
        if deadline.is_some() {
            self.call(token, |live, turn| {
                turn.rearm();
                live.expired(turn)
            });
        }
    }

    fn ended(&mut self, listener: Token, peer: &Peer, reason: &CloseReason) {
        log::debug!("{peer}: {reason}");
        if reason.is_fault() {
            self.call(listener, |live, turn| {
                if let Some(Backing { gate, .. }) = live.backing() {
                    gate.fault(peer, reason, turn);
                }
                Fate::Wait
            });
        }
    }

    /// Ends every connection, whatever it is doing.
    fn end_connections(&mut self) {
        let is_connection = |entry: &&Entry<'_>| entry.parent != entry.token;
        let connections = self.slab.iter().map(|(_, entry)| entry).filter(is_connection);
        let tokens: Vec<_> = connections.map(|entry| entry.token).collect();
        for token in tokens {
            self.call(token, |_, _| Fate::Done);
        }
    }

    fn tell_listeners(&mut self, tell: impl Fn(&mut dyn Live, &mut Turn) -> Fate) {
        for index in 0..self.listeners.len() {
            self.call(self.listeners[index], |live, turn| tell(live, turn));
        }
    }

    /// Frees the slots of the dead: no event of this batch can mean their successors any more.
    #[inline(never)]
    fn bury(&mut self) {
        for slot in self.graveyard.drain(..) {
            drop(self.slab.remove(slot));
        }
    }
}

impl Drop for Reactor<'_> {
    fn drop(&mut self) {
        // Whoever waits for the poller's descriptor until the next run is to see who waits now.
        for listener in &self.listeners {
            let Some(entry) = self.slab.get(listener.slot()) else { continue };
            let registry = self.ground.poll.registry();
            let (mut source, token) = (SourceFd(&entry.descriptor), Token::WAKE.into());
            let again = registry.reregister(&mut source, token, Interest::READABLE);
            if let Err(error) = again {
                log::warn!("a listener cannot be watched between runs: {error}");
            }
        }
        self.end_connections();
        self.tell_listeners(|live, turn| {
            live.finish(turn);
            Fate::Wait
        });
        self.bury();
        self.slab.clear();
        self.turn.tally.panics += guard::take_caught();
        self.ground.published.add(&mut self.turn.tally);
        self.ground.mailbox.desert();
    }
}

/// Forks, where that is sound.
fn forked(allow_threads: bool) -> Result<Forked, Error> {
    match if allow_threads { Ok(true) } else { sys::is_only_thread() } {
        Ok(true) => {}
        Ok(false) => {
            return Err(Error::Mode(
                "this process has other threads, so a fork is unsound: serve on the only thread, \
                 before others are started, or say Forking::allow_threads(true)"
                    .to_owned(),
            ));
        }
        Err(error) => {
            return Err(Error::Mode(format!(
                "it cannot be told whether this process has other threads, beside which a fork is \
                 unsound: there is no /proc, and unshare(2) says {error}; see to one of the two, or \
                 say Forking::allow_threads(true)"
            )));
        }
    }
    // What is printed and not yet written would be written twice.
    let _ = io::stdout().flush();
    sys::fork().map_err(Error::Loop)
}

/// Whether an entry is called at once; who moves much, or could have gone on already, is called from
/// the ready list.
#[inline]
fn may_go_first(entry: &mut Entry<'_>, ready: &mut VecDeque<Token>) -> bool {
    if entry.listed {
        return false;
    }
    let is_heavy = entry.readiness.has(Readiness::HEAVY);
    if is_heavy {
        entry.line_up(ready);
    }
    !is_heavy
}

/// The entry a token names, if it is still that one and alive.
#[inline]
fn entry_of<'s, 'a>(slab: &'s mut Slab<Entry<'a>>, token: Token) -> Option<&'s mut Entry<'a>> {
    slab.get_mut(token.slot()).filter(|entry| entry.token == token && !entry.dead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_spin_counts_as_waited() {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(1));
        let (published, mut generation) = (Published::default(), 0);
        let mut reactor = Reactor::new(Ground {
            poll: &mut poll,
            events: &mut events,
            mailbox,
            published: &published,
            spin: Duration::from_millis(20),
            generation: &mut generation,
        });
        for (before, spun) in [(1000, 20), (10, 10)] {
            let mut timeout = Some(Duration::from_millis(before));
            assert!(!reactor.spin(&mut timeout, None).unwrap(), "nothing happens");
            assert!(timeout.unwrap() <= Duration::from_millis(before - spun));
        }
        let mut timeout = None;
        assert!(!reactor.spin(&mut timeout, None).unwrap());
        assert_eq!(timeout, None);
    }
}
