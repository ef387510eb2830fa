//! The non-blocking pump: one connection, its conversation, and what the kernel has not taken yet.

use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::backlog::{Backlog, SLICES};
use super::live::{End, Fate, Live, Readiness, Turn};
use crate::conversation::{Conversation, Env, Framing, Handler, Home};
use crate::error::{CloseReason, Unsupported};
use crate::mailbox::{Keeper, Mailbox, Outlet, Work};
use crate::sys;
use crate::token::Token;

/// How much a connection may read before others come first.
const READ_BUDGET: usize = 128 * 1024;

/// How long a peer that is being closed may take nothing of its last output.
const CLOSING_PATIENCE: Duration = Duration::from_secs(30);

/// How long, and how much of, a closed peer's input is thrown away so that no reset cuts its reply.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;

/// How much output may wait for a peer before its own input is no longer read, and how little must
/// be left before it is read again; in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) high: usize,
    pub(crate) low: usize,
}

impl Default for Marks {
    fn default() -> Self {
        Marks { high: 64 * 1024, low: 16 * 1024 }
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

    /// Takes a step; false when there is nothing to settle: it has been lent out for the step and
    /// comes home later, or it has only kept the input.
    fn take(&mut self, step: Step<'_>, env: &mut Env<'_>, turn: Errand<'_>) -> bool;

    /// The conversation, if it is at home.
    fn home(&mut self) -> Option<&mut Conversation<Self::Handler, Self::Framing>>;

    /// The conversation, to look at, if it is at home.
    fn peek(&self) -> Option<&Conversation<Self::Handler, Self::Framing>>;

    /// Takes back what was lent, and gives out what was answered meanwhile.
    fn take_back(&mut self, work: Box<dyn Work>, turn: &mut Turn);

    /// Ends it for good: the handler is told, here or on a worker.
    fn close(&mut self, turn: &mut Turn);
}

/// Whose step it is, for one that is lent out.
#[derive(Clone, Copy)]
pub(crate) struct Errand<'a> {
    pub(crate) mailbox: &'a Arc<Mailbox>,
    pub(crate) token: Token,
    pub(crate) marks: Marks,
}

/// Steps taken here and now.
impl<H: Handler + 'static, F: Framing + 'static> Talk for Conversation<H, F> {
    type Handler = H;
    type Framing = F;

    #[inline(always)]
    fn take(&mut self, step: Step<'_>, env: &mut Env<'_>, _errand: Errand<'_>) -> bool {
        match step {
            Step::Open => self.open(env),
            Step::Receive(fresh) => self.receive(fresh, env),
            Step::Eof => self.eof(env),
            Step::TimedOut => self.timed_out(env),
        }
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

    fn take_back(&mut self, _work: Box<dyn Work>, _turn: &mut Turn) {}

    fn close(&mut self, turn: &mut Turn) {
        let reason = self.closed(&mut turn.tally);
        turn.ended.push(End { peer: self.peer().clone(), reason });
    }
}

/// How a conversation on this loop is reached from elsewhere.
impl Home for Errand<'_> {
    fn outlet(&self) -> Result<Arc<Outlet>, Unsupported> {
        let keeper = Keeper::Loop(self.mailbox.clone(), self.token);
        Ok(Arc::new(Outlet::new(keeper, self.marks.high)))
    }
}

/// Whether a connection talks, or only waits for its peer to have read the end.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Talking,
    /// The handler has been told; input is thrown away until then, up to so many bytes.
    Lingering(Instant, usize),
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
    phase: Phase,
    /// The peer takes no more output; what it has sent is still read.
    broken: Option<io::Error>,
    /// The backlog has reached the high mark and not yet sunk to the low one.
    paused: bool,
    /// The conversation has been closed.
    told: bool,
}

impl<T: Talk> Connection<T> {
    pub(crate) fn new(socket: Socket, talk: T, marks: Marks, now: Instant) -> Self {
        Connection {
            socket,
            talk,
            marks,
            backlog: None,
            last_moved: now,
            phase: Phase::Talking,
            broken: None,
            paused: false,
            told: false,
        }
    }

    /// Goes on as far as it can: sends, reads, talks, closes.
    fn run(&mut self, turn: &mut Turn) -> Fate {
        let mut buffer = std::mem::take(&mut turn.buffer);
        let fate = self.run_with(&mut buffer, turn);
        turn.buffer = buffer;
        fate
    }

    fn run_with(&mut self, buffer: &mut [u8], turn: &mut Turn) -> Fate {
        if let Phase::Lingering(until, left) = self.phase {
            return self.linger(until, left, buffer, turn);
        }
        if self.backlog.is_some() && turn.readiness.has(Readiness::WRITABLE) {
            self.flush(turn);
        }
        self.talk_on(buffer, turn)
    }

    #[inline(always)]
    fn talk_on(&mut self, buffer: &mut [u8], turn: &mut Turn) -> Fate {
        let mut budget = READ_BUDGET;
        loop {
            let backlog = self.backlog.as_ref().map_or(0, |backlog| backlog.len());
            let Some(conversation) = self.talk.home() else {
                return Fate::Wait;
            };
            if conversation.is_over() {
                return self.close(buffer, turn);
            }
            // One that only listens is read no more: what else tells that it is gone must end it.
            if conversation.input_ended() {
                if turn.readiness.has(Readiness::GONE) && self.broken.is_none() {
                    let error = self.socket.take_error().ok().flatten();
                    let error = error.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
                    self.broken = Some(error);
                }
                if let Some(error) = self.broken.take() {
                    conversation.end(CloseReason::Disconnected(error));
                    self.backlog = None;
                    continue;
                }
            }
            if backlog >= if self.paused { self.marks.low + 1 } else { self.marks.high } {
                self.paused = true;
                return Fate::Wait;
            }
            self.paused = false;
            if conversation.outlet().is_some_and(|outlet| !outlet.is_empty()) {
                self.push_parcels(turn);
                continue;
            }
            if conversation.is_stuffed() {
                self.go_on(turn);
                continue;
            }
            if conversation.input_ended() || !turn.readiness.has(Readiness::READABLE) {
                return self.rest(buffer, turn);
            }
            if budget == 0 {
                return Fate::Again;
            }
            match (&self.socket).read(buffer) {
                Ok(0) => self.ended(turn),
                Ok(count) => {
                    self.last_moved = turn.now;
                    turn.tally.bytes_in += count as u64;
                    // A short read has drained a stream, see epoll(7), unless its end is there to
                    // be read too: the end brings no edge of its own if it was part of this one.
                    if count < buffer.len() && !turn.readiness.has(Readiness::ENDED) {
                        turn.readiness.remove(Readiness::READABLE);
                    }
                    budget = budget.saturating_sub(count);
                    let fresh = &buffer[..count];
                    self.step(Step::Receive(fresh), fresh, turn);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    turn.readiness.remove(Readiness::READABLE);
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

    /// The peer has said all; one that takes no output either is gone.
    fn ended(&mut self, turn: &mut Turn) {
        turn.readiness.remove(Readiness::READABLE);
        match (self.broken.take(), self.talk.home()) {
            (Some(error), Some(conversation)) => {
                conversation.end(CloseReason::Disconnected(error));
            }
            _ => self.step(Step::Eof, &[], turn),
        }
    }

    /// Nothing more can be done now; a server that stops does not wait for who is idle.
    fn rest(&mut self, buffer: &mut [u8], turn: &mut Turn) -> Fate {
        if turn.stopping
            && self.backlog.is_none()
            && let Some(conversation) = self.talk.home()
            && conversation.is_idle()
        {
            conversation.end(CloseReason::Shutdown);
            return self.close(buffer, turn);
        }
        Fate::Wait
    }

    /// Takes a step of the conversation, and sends what it answers.
    #[inline(always)]
    fn step(&mut self, step: Step<'_>, fresh: &[u8], turn: &mut Turn) {
        let room = self.room();
        let errand = Errand { mailbox: &turn.mailbox, token: turn.token, marks: self.marks };
        let mut env = Env::new(&mut turn.outgoing, &mut turn.tally, &errand, room);
        let at_home = self.talk.take(step, &mut env, errand);
        turn.shutdown |= env.shutdown;
        if at_home {
            self.settle(fresh, turn);
        }
    }

    /// Delivers what was left for want of room.
    #[inline(never)]
    fn go_on(&mut self, turn: &mut Turn) {
        self.step(Step::Receive(&[]), &[], turn);
    }

    fn push_parcels(&mut self, turn: &mut Turn) {
        let room = self.room();
        let Some(conversation) = self.talk.home() else {
            return;
        };
        let errand = Errand { mailbox: &turn.mailbox, token: turn.token, marks: self.marks };
        conversation.push_parcels(&mut Env::new(
            &mut turn.outgoing,
            &mut turn.tally,
            &errand,
            room,
        ));
        self.settle(&[], turn);
    }

    fn room(&self) -> usize {
        let waiting = self.backlog.as_ref().map_or(0, |backlog| backlog.len());
        self.marks.high.saturating_sub(waiting)
    }

    /// Sends the output of a step, and lets the conversation keep what is left of its input.
    #[inline(always)]
    fn settle(&mut self, fresh: &[u8], turn: &mut Turn) {
        let Some(conversation) = self.talk.home() else {
            return;
        };
        turn.rearm |= conversation.take_timeout_changed();
        if !turn.outgoing.is_empty() {
            if !conversation.is_aborted() && self.broken.is_none() {
                let sent =
                    transmit(&self.socket, &mut self.backlog, conversation.input(fresh), turn);
                match sent {
                    Ok(true) => self.last_moved = turn.now,
                    Ok(false) => {}
                    Err(error) => self.broken(error),
                }
            }
            turn.outgoing.clear();
        }
        if let Some(conversation) = self.talk.home() {
            conversation.settle(fresh);
        }
    }

    /// Sends what waits, as far as the kernel takes it.
    fn flush(&mut self, turn: &mut Turn) {
        let Some(backlog) = &mut self.backlog else {
            return;
        };
        let before = backlog.len();
        let flushed = flush(&self.socket, backlog, turn);
        if backlog.len() < before {
            self.last_moved = turn.now;
        }
        if backlog.is_empty() {
            self.backlog = None;
        }
        if let Err(error) = flushed {
            self.broken(error);
        }
    }

    #[cold]
    fn broken(&mut self, error: io::Error) {
        self.broken = Some(error);
        self.backlog = None;
    }

    /// The conversation is over: closes when its output has gone, and so that it arrives.
    fn close(&mut self, buffer: &mut [u8], turn: &mut Turn) -> Fate {
        let Some(conversation) = self.talk.home() else {
            return Fate::Wait;
        };
        if conversation.is_aborted() {
            // A reset: the kernel drops what it has not sent.
            let _ = self.socket.set_linger(Some(Duration::ZERO));
            return Fate::Done;
        }
        if self.backlog.is_some() {
            turn.rearm = true;
            return Fate::Wait;
        }
        if conversation.input_ended() || self.broken.is_some() {
            return Fate::Done;
        }
        // Input left unread would make the kernel send a reset, which can overtake the reply. One
        // last read tells.
        match (&self.socket).read(buffer) {
            Ok(count) if count > 0 && self.socket.shutdown(Shutdown::Write).is_ok() => {}
            _ => return Fate::Done,
        }
        self.tell(turn);
        let until = turn.now + LINGER;
        turn.rearm = true;
        self.phase = Phase::Lingering(until, LINGER_BYTES);
        self.linger(until, LINGER_BYTES, buffer, turn)
    }

    /// Throws input away until the peer has ended, but not for ever.
    fn linger(
        &mut self,
        until: Instant,
        mut left: usize,
        buffer: &mut [u8],
        turn: &mut Turn,
    ) -> Fate {
        while turn.now < until && left > 0 {
            match (&self.socket).read(buffer) {
                Ok(0) => return Fate::Done,
                Ok(count) => left = left.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.phase = Phase::Lingering(until, left);
                    return Fate::Wait;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Fate::Done,
            }
        }
        Fate::Done
    }

    fn tell(&mut self, turn: &mut Turn) {
        if !std::mem::replace(&mut self.told, true) {
            self.talk.close(turn);
        }
    }
}

impl<T: Talk> Live for Connection<T> {
    fn opened(&mut self, turn: &mut Turn) -> Fate {
        self.step(Step::Open, &[], turn);
        self.run(turn)
    }

    fn ready(&mut self, turn: &mut Turn) -> Fate {
        self.run(turn)
    }

    fn is_connection(&self) -> bool {
        true
    }

    fn parcels(&mut self, turn: &mut Turn) -> Fate {
        self.run(turn)
    }

    fn returned(&mut self, work: Box<dyn Work>, turn: &mut Turn) -> Fate {
        self.talk.take_back(work, turn);
        turn.rearm = true;
        self.settle(&[], turn);
        self.run(turn)
    }

    fn deadline(&self) -> Option<Instant> {
        if let Phase::Lingering(until, _) = self.phase {
            return Some(until);
        }
        let conversation = self.talk.peek()?;
        let patience =
            if conversation.is_over() { Some(CLOSING_PATIENCE) } else { conversation.timeout() };
        self.last_moved.checked_add(patience?)
    }

    fn expired(&mut self, turn: &mut Turn) -> Fate {
        if matches!(self.phase, Phase::Lingering(..)) {
            return Fate::Done;
        }
        let Some(conversation) = self.talk.home() else {
            return Fate::Wait;
        };
        if conversation.is_over() {
            return Fate::Done;
        }
        self.last_moved = turn.now;
        self.step(Step::TimedOut, &[], turn);
        self.run(turn)
    }

    fn stop(&mut self, turn: &mut Turn) -> Fate {
        // What has arrived before the stop is answered: look once more.
        turn.readiness.add(Readiness::READABLE);
        self.run(turn)
    }

    fn finish(&mut self, turn: &mut Turn) {
        if let Some(conversation) = self.talk.home() {
            conversation.end(CloseReason::Shutdown);
        }
        self.tell(turn);
        turn.tally.closed += 1;
        turn.freed = true;
    }
}

/// Writes the output of a turn; what the kernel does not take goes to the backlog. True when any
/// byte moved.
#[inline(always)]
fn transmit(
    socket: &Socket,
    backlog: &mut Option<Box<Backlog>>,
    input: &[u8],
    turn: &mut Turn,
) -> io::Result<bool> {
    if backlog.is_none()
        && let Some(bytes) = turn.outgoing.contiguous(input)
    {
        let sent = sys::send(socket, bytes)?;
        turn.tally.bytes_out += sent as u64;
        if sent < bytes.len() {
            refused(backlog, input, sent, turn);
        }
        return Ok(sent > 0);
    }
    transmit_many(socket, backlog, input, turn)
}

/// The kernel has taken `sent` bytes and has no room for more.
#[cold]
fn refused(backlog: &mut Option<Box<Backlog>>, input: &[u8], sent: usize, turn: &mut Turn) {
    turn.readiness.remove(Readiness::WRITABLE);
    backlog.get_or_insert_default().keep(&mut turn.outgoing, input, sent);
}

/// Several segments, or behind others that wait.
#[inline(never)]
fn transmit_many(
    socket: &Socket,
    backlog: &mut Option<Box<Backlog>>,
    input: &[u8],
    turn: &mut Turn,
) -> io::Result<bool> {
    let mut sent = 0;
    if backlog.is_none() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = turn.outgoing.slices(input, &mut slices);
        let offered = slices[..filled].iter().map(|slice| slice.len()).sum();
        sent = sys::send_vectored(socket, &slices[..filled])?;
        turn.tally.bytes_out += sent as u64;
        if sent < offered {
            refused(backlog, input, sent, turn);
            return Ok(sent > 0);
        }
    }
    // More slices than one call takes say nothing of the kernel's buffer: it is tried on.
    let waiting = backlog.get_or_insert_default();
    waiting.keep(&mut turn.outgoing, input, sent);
    let before = waiting.len();
    if turn.readiness.has(Readiness::WRITABLE) {
        flush(socket, waiting, turn)?;
    }
    let moved = sent > 0 || waiting.len() < before;
    if waiting.is_empty() {
        *backlog = None;
    }
    Ok(moved)
}

/// Sends what waits until the kernel refuses.
fn flush(socket: &Socket, backlog: &mut Backlog, turn: &mut Turn) -> io::Result<()> {
    while !backlog.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = backlog.slices(&mut slices);
        let sent = sys::send_vectored(socket, &slices[..filled])?;
        if sent == 0 {
            turn.readiness.remove(Readiness::WRITABLE);
            return Ok(());
        }
        turn.tally.bytes_out += sent as u64;
        backlog.advance(sent);
    }
    Ok(())
}
