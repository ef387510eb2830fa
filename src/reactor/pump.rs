//! The non-blocking pump: one connection, its conversation, and what the kernel has not taken yet.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use socket2::Socket;

use super::backlog::{Backlog, SLICES};
use super::live::{Desk, Fate, HEAVY_FROM, Live, Readiness, Turn};
use crate::conversation::{Conversation, Env, Framing, Handler, MESSAGE_BUDGET};
use crate::error::CloseReason;
use crate::mailbox::{Ending, Work};
use crate::session::{FIRST_LOOK, Linger, Lingering, Progress};
use crate::sys;

/// How much a connection may read before others come first, in bytes; what it answers or is sent
/// from elsewhere counts as much.
const READ_BUDGET: usize = 64 * 1024;

/// What a message counts beside its bytes, so that as many as a conversation delivers at once are the
/// whole budget.
const MESSAGE_COST: usize = READ_BUDGET / MESSAGE_BUDGET;

/// How much output may wait for a peer before its own input is no longer read, and how little must
/// be left before it is read again; in bytes, of which four thousand million are as good as no mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks {
    high: u32,
    low: u32,
    room: u32,
}

impl Marks {
    pub(crate) fn new(high: usize, low: usize) -> Self {
        let mark = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Marks { high: mark(high), low: mark(low), room: mark(high.min(READ_BUDGET)) }
    }

    #[inline]
    pub(crate) fn high(self) -> usize {
        self.high as usize
    }

    fn low(self) -> usize {
        self.low as usize
    }

    /// How much output is collected at once while none waits.
    #[inline]
    fn room(self) -> usize {
        self.room as usize
    }
}

impl Default for Marks {
    fn default() -> Self {
        Marks::new(64 * 1024, 16 * 1024)
    }
}

/// A step of a conversation.
pub(crate) enum Step<'a> {
    Open,
    Receive(&'a [u8]),
    Eof,
    TimedOut,
}

/// A conversation whose steps are taken here, or lent to a worker.
pub(crate) trait Talk: 'static {
    type Handler: Handler;
    type Framing: Framing;

    /// Takes a step, for which there is so much room in the output; false when there is nothing to
    /// settle: it has been lent out for the step and comes home later, or it has only kept the input.
    fn take(&mut self, step: Step<'_>, room: usize, desk: &mut Desk) -> bool;

    /// The conversation, if it is at home.
    fn home(&mut self) -> Option<&mut Conversation<Self::Handler, Self::Framing>>;

    /// The conversation, to look at, if it is at home.
    fn peek(&self) -> Option<&Conversation<Self::Handler, Self::Framing>>;

    /// Takes back what was lent, and gives out what was answered meanwhile.
    fn take_back(&mut self, work: Box<dyn Work>, desk: &mut Desk);

    /// Ends it for good: the handler is told, here or on a worker.
    fn close(&mut self, desk: &mut Desk);
}

/// Steps taken here and now.
impl<H: Handler + 'static, F: Framing + 'static> Talk for Conversation<H, F> {
    type Handler = H;
    type Framing = F;

    #[inline(always)]
    fn take(&mut self, step: Step<'_>, room: usize, desk: &mut Desk) -> bool {
        let mut env = Env::new(&mut desk.outgoing, &mut desk.tally, &desk.port, room);
        match step {
            Step::Open => self.open(&mut env),
            Step::Receive(fresh) => self.receive(fresh, &mut env),
            Step::Eof => self.eof(&mut env),
            Step::TimedOut => self.timed_out(&mut env),
        }
        desk.shutdown |= env.shutdown;
        true
    }

    #[inline]
    fn home(&mut self) -> Option<&mut Conversation<H, F>> {
        Some(self)
    }

    #[inline]
    fn peek(&self) -> Option<&Conversation<H, F>> {
        Some(self)
    }

    fn take_back(&mut self, _work: Box<dyn Work>, _desk: &mut Desk) {}

    fn close(&mut self, desk: &mut Desk) {
        let reason = self.closed(&mut desk.tally);
        desk.end(self.peer(), reason);
    }
}

/// What came of a step.
#[derive(Debug, Clone, Copy, Default)]
struct Settled {
    /// Any byte of its output has gone.
    moved: bool,
    /// How many bytes of output it made.
    produced: usize,
}

/// One connection of the loop.
pub(crate) struct Connection<T> {
    socket: Socket,
    talk: T,
    marks: Marks,
    /// What the kernel has not taken; absent, most of the time.
    backlog: Option<Box<Backlog>>,
    /// When a byte last moved, either way.
    last_moved: Instant,
    /// What the peer has taken of its output.
    progress: Progress,
    /// It is over, and only waits for its peer to have read the end.
    linger: Option<Box<Linger>>,
    /// Why the peer takes no more output, where the conversation is out and has yet to be told.
    broken: Option<io::Error>,
    /// Input comes next, and what waits in the outlet after it.
    input_next: bool,
    /// The backlog has reached the high mark and not yet sunk to the low one.
    paused: bool,
    /// The conversation has been closed.
    told: bool,
    /// Mail of its outlet came while the conversation was out.
    missed_mail: bool,
    /// Output was lost: its peer is to see a reset.
    cut: bool,
    /// It is over, and the kernel has been asked since how much it still holds.
    looked: bool,
}

impl<T: Talk> Connection<T> {
    pub(crate) fn new(socket: Socket, talk: T, marks: Marks, now: Instant) -> Self {
        Connection {
            socket,
            talk,
            marks,
            backlog: None,
            last_moved: now,
            progress: Progress::default(),
            linger: None,
            broken: None,
            input_next: false,
            paused: false,
            told: false,
            missed_mail: false,
            cut: false,
            looked: false,
        }
    }

    /// Goes on as far as it can: sends, reads, talks, closes.
    ///
    /// The plain case comes first and is kept short: something to read, nothing to remember, and a
    /// short read that takes all there is.
    #[inline(always)]
    fn run(&mut self, turn: &mut Turn) -> Fate {
        let Turn { buffer, desk } = turn;
        if desk.readiness.is_plainly_readable()
            && self.is_plain()
            && self.run_plainly(buffer, desk, |mut socket, buffer, _| socket.read(buffer))
        {
            return Fate::Wait;
        }
        self.run_on(buffer, desk)
    }

    /// The plain case; false when there is more to do.
    #[inline(always)]
    fn run_plainly(
        &mut self,
        buffer: &mut [u8],
        desk: &mut Desk,
        read: impl FnOnce(&Socket, &mut [u8], &mut Desk) -> io::Result<usize>,
    ) -> bool {
        desk.port.limit = self.marks.high();
        match read(&self.socket, buffer, desk) {
            Ok(count) if count > 0 => {
                desk.read(count, buffer.len());
                self.last_moved = desk.now;
                let fresh = &buffer[..count];
                // Nothing waits, so that all of the room is there.
                let room = self.marks.room();
                let _ = self.step(Step::Receive(fresh), room, fresh, desk);
                let drained = !desk.readiness.has(Readiness::READABLE);
                drained && !desk.stopping && self.is_plain()
            }
            // Whatever it is, reading once more tells it again.
            _ => false,
        }
    }

    /// Whether there is nothing to remember of it but that it waits for its peer.
    #[inline(always)]
    fn is_plain(&mut self) -> bool {
        // One that lingers has an end that is remembered, too.
        self.backlog.is_none()
            && self.talk.home().is_some_and(|conversation| conversation.is_plain())
    }

    #[inline(never)]
    fn run_on(&mut self, buffer: &mut [u8], desk: &mut Desk) -> Fate {
        if desk.readiness.is_plainly_readable_with_ancillary()
            && self.is_plain()
            && self.run_plainly(buffer, desk, receive_with_ancillary)
        {
            return Fate::Wait;
        }
        desk.readiness.remove(Readiness::HEAVY);
        desk.port.limit = self.marks.high();
        if self.linger.is_some() {
            return self.linger(buffer, desk);
        }
        if self.backlog.is_some() && desk.readiness.has(Readiness::WRITABLE) {
            self.flush(desk);
        }
        self.talk_on(buffer, desk)
    }

    /// Goes on until nothing more can be done, or its share of the turn is used up.
    fn talk_on(&mut self, buffer: &mut [u8], desk: &mut Desk) -> Fate {
        let mut budget = READ_BUDGET;
        let fate = self.talk_within(&mut budget, buffer, desk);
        let used = READ_BUDGET - budget;
        desk.used += used as u64;
        if used >= HEAVY_FROM {
            desk.readiness.add(Readiness::HEAVY);
        }
        fate
    }

    fn talk_within(&mut self, budget: &mut usize, buffer: &mut [u8], desk: &mut Desk) -> Fate {
        loop {
            let backlog = self.backlog.as_ref().map_or(0, |backlog| backlog.len());
            let Some(conversation) = self.talk.home() else {
                return Fate::Wait;
            };
            // Whatever waits for the peer, and even if it is being closed.
            let ending = conversation.ending();
            if ending == Ending::Aborted {
                conversation.abort();
            }
            if conversation.is_over() {
                return self.close(buffer, desk);
            }
            if ending == Ending::Closing {
                // What was sent before goes behind what waits, whatever the mark: no more can come.
                // From then on the peer has so long to take some of it.
                self.last_moved = desk.now;
                *budget = budget.saturating_sub(self.push_parcels(READ_BUDGET, desk));
                match self.talk.home() {
                    Some(conversation) if !conversation.is_over() => return Fate::Again,
                    _ => continue,
                }
            }
            // One that only listens is read no more: what else tells that it is gone must end it.
            if conversation.input_ended() && desk.readiness.has(Readiness::GONE) && !self.cut {
                let error = self.socket.take_error().ok().flatten();
                self.broken = Some(error.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()));
            }
            // Who takes no answer is not asked what else it has to say.
            if let Some(error) = self.broken.take() {
                self.broken(error);
                continue;
            }
            if backlog >= if self.paused { self.marks.low() + 1 } else { self.marks.high() } {
                self.paused = true;
                return Fate::Wait;
            }
            self.paused = false;
            let has_parcels = conversation.outlet().is_some_and(|outlet| !outlet.is_empty());
            let is_stuffed = conversation.is_stuffed();
            let may_read = !conversation.input_ended() && desk.readiness.has(Readiness::READABLE);
            let has_input = is_stuffed || may_read;
            if !has_parcels && !has_input {
                return self.rest(buffer, desk);
            }
            if *budget == 0 {
                return Fate::Again;
            }
            // In turns: neither keeps the other from being served.
            if has_parcels && !(has_input && self.input_next) {
                *budget = budget.saturating_sub(self.push_parcels(self.room(), desk));
                self.input_next = true;
                continue;
            }
            self.input_next = false;
            if is_stuffed {
                *budget = budget.saturating_sub(self.step_alone(Step::Receive(&[]), desk));
                continue;
            }
            match read(&self.socket, buffer, desk) {
                Ok(0) => {
                    desk.readiness.remove(Readiness::READABLE);
                    *budget = budget.saturating_sub(self.step_alone(Step::Eof, desk));
                }
                Ok(count) => {
                    self.last_moved = desk.now;
                    desk.read(count, buffer.len());
                    let fresh = &buffer[..count];
                    let cost = count.max(self.received(fresh, desk));
                    *budget = budget.saturating_sub(cost);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    desk.readiness.remove(Readiness::READABLE);
                    desk.readiness.remove(Readiness::BOUNDARY);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    conversation.end(CloseReason::Disconnected(error));
                    // Nobody will take it any more.
                    self.backlog = None;
                }
            }
        }
    }

    /// Nothing more can be done now, or ever; a server that stops does not wait for who is idle.
    fn rest(&mut self, buffer: &mut [u8], desk: &mut Desk) -> Fate {
        if let Some(conversation) = self.talk.home() {
            conversation.end_if_nothing_follows();
            if conversation.is_over() {
                return self.close(buffer, desk);
            }
        }
        if desk.stopping
            && self.backlog.is_none()
            && let Some(conversation) = self.talk.home()
            && conversation.is_idle()
        {
            conversation.end(CloseReason::Shutdown);
            return self.close(buffer, desk);
        }
        Fate::Wait
    }

    /// Takes a step of the conversation, and sends what it answers.
    #[inline(always)]
    fn step(&mut self, step: Step<'_>, room: usize, fresh: &[u8], desk: &mut Desk) -> Settled {
        if !self.talk.take(step, room, desk) {
            return Settled::default();
        }
        self.settle(fresh, desk)
    }

    /// As [`step`](Self::step), where nothing has been read; how much of the budget it takes.
    #[inline(never)]
    fn step_alone(&mut self, step: Step<'_>, desk: &mut Desk) -> usize {
        let before = desk.tally.messages;
        let settled = self.step(step, self.room(), &[], desk);
        if settled.moved {
            self.last_moved = desk.now;
        }
        self.cost(settled, before, desk)
    }

    /// Delivers what has been read; how much of the budget the answers take.
    #[inline(never)]
    fn received(&mut self, fresh: &[u8], desk: &mut Desk) -> usize {
        let before = desk.tally.messages;
        let settled = self.step(Step::Receive(fresh), self.room(), fresh, desk);
        self.cost(settled, before, desk)
    }

    /// How much of the budget a step takes: what it answers, or the messages it delivers; all of it
    /// where it leaves messages, since it does so at the limit of either.
    fn cost(&mut self, settled: Settled, messages_before: u64, desk: &Desk) -> usize {
        if self.talk.home().is_some_and(|conversation| conversation.is_stuffed()) {
            return READ_BUDGET;
        }
        let messages = usize::try_from(desk.tally.messages - messages_before).unwrap_or(usize::MAX);
        settled.produced.max(messages.saturating_mul(MESSAGE_COST))
    }

    /// Sends what waits in the outlet, as far as there is `room`; how much of the budget it takes.
    fn push_parcels(&mut self, room: usize, desk: &mut Desk) -> usize {
        let Some(conversation) = self.talk.home() else {
            return 0;
        };
        let mut env = Env::new(&mut desk.outgoing, &mut desk.tally, &desk.port, room);
        let parcels = conversation.push_parcels(&mut env);
        let settled = self.settle(&[], desk);
        if settled.moved {
            self.last_moved = desk.now;
        }
        settled.produced.max(parcels * MESSAGE_COST)
    }

    /// How much output may be collected at once.
    fn room(&self) -> usize {
        let waiting = self.backlog.as_ref().map_or(0, |backlog| backlog.len());
        self.marks.high().saturating_sub(waiting).min(self.marks.room())
    }

    /// Sends the output of a step, and lets the conversation keep what is left of its input.
    #[inline(always)]
    fn settle(&mut self, fresh: &[u8], desk: &mut Desk) -> Settled {
        let mut settled = Settled::default();
        let Some(conversation) = self.talk.home() else {
            return settled;
        };
        if !conversation.is_plain() {
            if conversation.take_timeout_changed() {
                desk.rearm();
            }
            if conversation.is_aborted() {
                desk.outgoing.clear();
            }
        }
        if !desk.outgoing.is_empty() {
            settled.produced = desk.outgoing.len();
            if !self.cut {
                let input = conversation.input(fresh);
                match transmit(&self.socket, &mut self.backlog, input, desk) {
                    Ok(sent) => settled.moved = sent,
                    Err(error) => self.broken(error),
                }
            }
            desk.outgoing.clear();
        }
        if let Some(conversation) = self.talk.home() {
            conversation.settle(fresh);
        }
        settled
    }

    /// Sends what waits, as far as the kernel takes it.
    fn flush(&mut self, desk: &mut Desk) {
        let Some(backlog) = &mut self.backlog else {
            return;
        };
        let before = backlog.len();
        let flushed = flush(&self.socket, backlog, desk);
        if backlog.len() < before {
            self.last_moved = desk.now;
            self.progress.forget();
        }
        if backlog.is_empty() {
            self.backlog = None;
        }
        if let Err(error) = flushed {
            self.broken(error);
        }
    }

    /// The peer takes no more output, which is its end: nothing that it still has to say can be
    /// answered.
    #[cold]
    fn broken(&mut self, error: io::Error) {
        self.cut = true;
        self.backlog = None;
        match self.talk.home() {
            Some(conversation) => conversation.end(CloseReason::Disconnected(error)),
            None => self.broken = Some(error),
        }
    }

    /// The conversation is over: closes when its output has gone, and so that it arrives.
    fn close(&mut self, buffer: &mut [u8], desk: &mut Desk) -> Fate {
        let Some(conversation) = self.talk.home() else {
            return Fate::Wait;
        };
        if conversation.is_aborted() {
            self.cut = true;
            return Fate::Done;
        }
        if self.backlog.is_some() {
            self.progress.begin(&self.socket);
            desk.rearm();
            return Fate::Wait;
        }
        if conversation.input_ended() || self.cut {
            return Fate::Done;
        }
        let Some(linger) = Linger::begin(&self.socket, conversation.peer(), buffer, desk.now)
        else {
            return Fate::Done;
        };
        self.tell(desk);
        self.linger = Some(Box::new(linger));
        self.linger(buffer, desk)
    }

    /// Throws input away until the peer has ended, but not for ever.
    fn linger(&mut self, buffer: &mut [u8], desk: &mut Desk) -> Fate {
        let Some(linger) = &mut self.linger else { return Fate::Wait };
        linger_on(&self.socket, linger, buffer, desk)
    }

    fn tell(&mut self, desk: &mut Desk) {
        if !std::mem::replace(&mut self.told, true) {
            self.talk.close(desk);
        }
    }
}

/// A connection that was served by blocking and now lingers on the loop, where nobody waits for it.
pub(crate) struct Lingers(Lingering);

impl Lingers {
    /// # Errors
    ///
    /// Where it cannot be made non-blocking.
    pub(crate) fn new(lingering: Lingering) -> io::Result<Self> {
        lingering.socket.set_nonblocking(true)?;
        Ok(Lingers(lingering))
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.0.socket.as_raw_fd()
    }

    fn look(&mut self, turn: &mut Turn) -> Fate {
        let Lingering { socket, linger } = &mut self.0;
        linger_on(socket, linger, &mut turn.buffer, &mut turn.desk)
    }
}

impl Live for Lingers {
    fn is_request(&self) -> bool {
        false
    }

    fn opened(&mut self, turn: &mut Turn) -> Fate {
        self.look(turn)
    }

    fn ready(&mut self, turn: &mut Turn) -> Fate {
        self.look(turn)
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.0.linger.next())
    }

    fn expired(&mut self, turn: &mut Turn) -> Fate {
        self.look(turn)
    }

    fn stop(&mut self, turn: &mut Turn) -> Fate {
        self.0.linger.hurry(turn.now);
        self.look(turn)
    }

    fn finish(&mut self, turn: &mut Turn) {
        turn.tally.closed += 1;
        turn.freed = true;
    }
}

/// Throws input away until its peer has ended, or has all of its output, but not for ever.
fn linger_on(socket: &Socket, linger: &mut Linger, buffer: &mut [u8], desk: &mut Desk) -> Fate {
    if linger.drain(socket, buffer) || linger.is_done(socket, desk.now) {
        return Fate::Done;
    }
    desk.rearm();
    Fate::Wait
}

impl<T: Talk> Live for Connection<T> {
    fn opened(&mut self, turn: &mut Turn) -> Fate {
        turn.port.limit = self.marks.high();
        if self.talk.peek().is_some_and(|conversation| conversation.peer().inet().is_none()) {
            turn.readiness.add(Readiness::ANCILLARY);
        }
        self.step_alone(Step::Open, &mut turn.desk);
        self.run_on(&mut turn.buffer, &mut turn.desk)
    }

    fn ready(&mut self, turn: &mut Turn) -> Fate {
        self.run(turn)
    }

    fn mail_taken(&mut self) {
        match self.talk.home() {
            Some(conversation) => conversation.listen(),
            None => self.missed_mail = true,
        }
    }

    fn parcels(&mut self, turn: &mut Turn) -> Fate {
        self.run_on(&mut turn.buffer, &mut turn.desk)
    }

    fn returned(&mut self, work: Box<dyn Work>, turn: &mut Turn) -> Fate {
        self.talk.take_back(work, &mut turn.desk);
        turn.rearm();
        if std::mem::take(&mut self.missed_mail)
            && let Some(conversation) = self.talk.home()
        {
            conversation.listen();
        }
        if self.settle(&[], &mut turn.desk).moved {
            self.last_moved = turn.now;
        }
        self.run_on(&mut turn.buffer, &mut turn.desk)
    }

    fn deadline(&self) -> Option<Instant> {
        if let Some(linger) = &self.linger {
            return Some(linger.next());
        }
        let conversation = self.talk.peek()?;
        let patience = conversation.patience()?;
        // What was on its way when it was closed is the peer's soon, and is then no sign of progress.
        let is_first = conversation.is_over() && !self.looked;
        self.last_moved.checked_add(if is_first { patience.min(FIRST_LOOK) } else { patience })
    }

    fn expired(&mut self, turn: &mut Turn) -> Fate {
        if self.linger.is_some() {
            return self.linger(&mut turn.buffer, &mut turn.desk);
        }
        let Some(conversation) = self.talk.home() else {
            return Fate::Wait;
        };
        let is_first = conversation.is_over() && !std::mem::replace(&mut self.looked, true);
        // Whether the peer takes what it is sent, the kernel knows; it is asked only here.
        if self.progress.is_made(&self.socket) {
            self.last_moved = turn.now;
            return Fate::Wait;
        }
        if is_first {
            return Fate::Wait;
        }
        if conversation.is_over() {
            return Fate::Done;
        }
        self.last_moved = turn.now;
        turn.port.limit = self.marks.high();
        self.step_alone(Step::TimedOut, &mut turn.desk);
        self.run_on(&mut turn.buffer, &mut turn.desk)
    }

    fn stop(&mut self, turn: &mut Turn) -> Fate {
        // What has arrived before the stop is answered: look once more.
        turn.readiness.add(Readiness::READABLE);
        let now = turn.now;
        if let Some(linger) = &mut self.linger {
            linger.hurry(now);
        }
        self.run_on(&mut turn.buffer, &mut turn.desk)
    }

    fn finish(&mut self, turn: &mut Turn) {
        match self.talk.home() {
            // What is under way is cut.
            Some(conversation) if !self.told && !conversation.is_over() => {
                conversation.end(CloseReason::Shutdown);
                self.cut = true;
            }
            Some(_) => {}
            None => self.cut = true,
        }
        if self.cut || self.backlog.is_some() {
            sys::reset_on_close(&self.socket);
        }
        self.tell(&mut turn.desk);
        turn.tally.closed += 1;
        turn.freed = true;
    }
}

/// Reads, and notes where the read may have stopped although more is there.
fn read(mut socket: &Socket, buffer: &mut [u8], desk: &mut Desk) -> io::Result<usize> {
    if desk.readiness.has(Readiness::ANCILLARY) {
        return receive_with_ancillary(socket, buffer, desk);
    }
    socket.read(buffer)
}

/// Reads from a Unix stream, where a read stops behind bytes that came with ancillary data.
fn receive_with_ancillary(
    socket: &Socket,
    buffer: &mut [u8],
    desk: &mut Desk,
) -> io::Result<usize> {
    let (count, had_ancillary) = sys::receive(socket, buffer)?;
    if had_ancillary {
        desk.readiness.add(Readiness::BOUNDARY);
    }
    Ok(count)
}

/// Writes the output of a turn; what the kernel does not take goes to the backlog. True when any
/// byte moved.
#[inline(always)]
fn transmit(
    socket: &Socket,
    backlog: &mut Option<Box<Backlog>>,
    input: &[u8],
    desk: &mut Desk,
) -> io::Result<bool> {
    if backlog.is_none()
        && let Some(bytes) = desk.outgoing.contiguous(input)
    {
        let sent = sys::send(socket, bytes)?;
        desk.tally.bytes_out += sent as u64;
        if sent < bytes.len() {
            refused(backlog, input, sent, desk);
        }
        return Ok(sent > 0);
    }
    transmit_many(socket, backlog, input, desk)
}

/// The kernel has taken `sent` bytes and has no room for more.
#[cold]
fn refused(backlog: &mut Option<Box<Backlog>>, input: &[u8], sent: usize, desk: &mut Desk) {
    desk.readiness.remove(Readiness::WRITABLE);
    backlog.get_or_insert_default().keep(&mut desk.outgoing, input, sent);
}

/// Several segments, or behind others that wait.
#[inline(never)]
fn transmit_many(
    socket: &Socket,
    backlog: &mut Option<Box<Backlog>>,
    input: &[u8],
    desk: &mut Desk,
) -> io::Result<bool> {
    let mut sent = 0;
    if backlog.is_none() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = desk.outgoing.slices(input, &mut slices);
        let offered = slices[..filled].iter().map(|slice| slice.len()).sum();
        sent = sys::send_vectored(socket, &slices[..filled])?;
        desk.tally.bytes_out += sent as u64;
        if sent < offered {
            refused(backlog, input, sent, desk);
            return Ok(sent > 0);
        }
    }
    // More slices than one call takes say nothing of the kernel's buffer: it is tried on.
    let waiting = backlog.get_or_insert_default();
    waiting.keep(&mut desk.outgoing, input, sent);
    let before = waiting.len();
    if desk.readiness.has(Readiness::WRITABLE) {
        flush(socket, waiting, desk)?;
    }
    let moved = sent > 0 || waiting.len() < before;
    if waiting.is_empty() {
        *backlog = None;
    }
    Ok(moved)
}

/// Sends what waits until the kernel refuses.
fn flush(socket: &Socket, backlog: &mut Backlog, desk: &mut Desk) -> io::Result<()> {
    while !backlog.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = backlog.slices(&mut slices);
        let sent = sys::send_vectored(socket, &slices[..filled])?;
        if sent == 0 {
            desk.readiness.remove(Readiness::WRITABLE);
            return Ok(());
        }
        desk.tally.bytes_out += sent as u64;
        backlog.advance(sent);
    }
    Ok(())
}
