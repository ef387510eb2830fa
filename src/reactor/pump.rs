//! The non-blocking pump: one connection, its conversation, and what the kernel has not taken yet.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use socket2::Socket;

use super::backlog::{Backlog, SLICES};
use super::live::{Desk, Fate, Live, Readiness, Turn};
use crate::conversation::{Conversation, Env, Framing, Handler};
use crate::error::CloseReason;
use crate::mailbox::{Ending, Work};
use crate::session::{Linger, Lingering, Progress};
use crate::sys;

/// How much a connection may read, or frame of what it is sent before a close, before others come
/// first.
const READ_BUDGET: usize = 64 * 1024;

/// How much output may wait for a peer before its own input is no longer read, and how little must
/// be left before it is read again; in bytes, of which four thousand million are as good as no mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks {
    high: u32,
    low: u32,
}

impl Marks {
    pub(crate) fn new(high: usize, low: usize) -> Self {
        let mark = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Marks { high: mark(high), low: mark(low) }
    }

    #[inline]
    pub(crate) fn high(self) -> usize {
        self.high as usize
    }

    fn low(self) -> usize {
        self.low as usize
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
    /// The peer takes no more output; what it has sent is still read.
    broken: Option<io::Error>,
    /// The backlog has reached the high mark and not yet sunk to the low one.
    paused: bool,
    /// The conversation has been closed.
    told: bool,
    /// Mail of its outlet came while the conversation was out.
    missed_mail: bool,
    /// Output was lost: its peer is to see a reset.
    cut: bool,
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
            paused: false,
            told: false,
            missed_mail: false,
            cut: false,
        }
    }

    /// Goes on as far as it can: sends, reads, talks, closes.
    ///
    /// The plain case comes first and is kept short: something to read, nothing to remember, and a
    /// short read that takes all there is.
    #[inline(always)]
    fn run(&mut self, turn: &mut Turn) -> Fate {
        let Turn { buffer, desk } = turn;
        if desk.readiness.is_plainly_readable() && self.is_plain() {
            desk.port.limit = self.marks.high();
            match (&self.socket).read(buffer) {
                Ok(count) if count > 0 => {
                    desk.read(count, buffer.len());
                    self.last_moved = desk.now;
                    let fresh = &buffer[..count];
                    // Nothing waits, so that all of the room is there.
                    let room = self.marks.high();
                    let _ = self.step(Step::Receive(fresh), room, fresh, desk);
                    let drained = !desk.readiness.has(Readiness::READABLE);
                    if drained && !desk.stopping && self.is_plain() {
                        return Fate::Wait;
                    }
                }
                // Whatever it is, reading once more tells it again.
                _ => {}
            }
        }
        self.run_on(buffer, desk)
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

    fn talk_on(&mut self, buffer: &mut [u8], desk: &mut Desk) -> Fate {
        let mut budget = READ_BUDGET;
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
                self.push_parcels(READ_BUDGET, desk);
                match self.talk.home() {
                    Some(conversation) if !conversation.is_over() => return Fate::Again,
                    _ => continue,
                }
            }
            // One that only listens is read no more: what else tells that it is gone must end it.
            if conversation.input_ended() {
                if desk.readiness.has(Readiness::GONE) && self.broken.is_none() {
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
            if backlog >= if self.paused { self.marks.low() + 1 } else { self.marks.high() } {
                self.paused = true;
                return Fate::Wait;
            }
            self.paused = false;
            if conversation.outlet().is_some_and(|outlet| !outlet.is_empty()) {
                self.push_parcels(self.room(), desk);
                continue;
            }
            if conversation.is_stuffed() {
                self.step_alone(Step::Receive(&[]), desk);
                continue;
            }
            if conversation.input_ended() || !desk.readiness.has(Readiness::READABLE) {
                return self.rest(buffer, desk);
            }
            if budget == 0 {
                return Fate::Again;
            }
            match (&self.socket).read(buffer) {
                Ok(0) => self.ended(desk),
                Ok(count) => {
                    self.last_moved = desk.now;
                    desk.read(count, buffer.len());
                    budget = budget.saturating_sub(count);
                    let fresh = &buffer[..count];
                    self.received(fresh, desk);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    desk.readiness.remove(Readiness::READABLE);
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
    fn ended(&mut self, desk: &mut Desk) {
        desk.readiness.remove(Readiness::READABLE);
        match (self.broken.take(), self.talk.home()) {
            (Some(error), Some(conversation)) => {
                conversation.end(CloseReason::Disconnected(error));
            }
            _ => self.step_alone(Step::Eof, desk),
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

    /// Takes a step of the conversation, and sends what it answers; true when any byte has gone.
    #[inline(always)]
    fn step(&mut self, step: Step<'_>, room: usize, fresh: &[u8], desk: &mut Desk) -> bool {
        self.talk.take(step, room, desk) && self.settle(fresh, desk)
    }

    /// As [`step`](Self::step), where nothing has been read.
    #[inline(never)]
    fn step_alone(&mut self, step: Step<'_>, desk: &mut Desk) {
        if self.step(step, self.room(), &[], desk) {
            self.last_moved = desk.now;
        }
    }

    /// Delivers what has been read.
    #[inline(never)]
    fn received(&mut self, fresh: &[u8], desk: &mut Desk) {
        self.step(Step::Receive(fresh), self.room(), fresh, desk);
    }

    fn push_parcels(&mut self, room: usize, desk: &mut Desk) {
        let Some(conversation) = self.talk.home() else {
            return;
        };
        let mut env = Env::new(&mut desk.outgoing, &mut desk.tally, &desk.port, room);
        conversation.push_parcels(&mut env);
        if self.settle(&[], desk) {
            self.last_moved = desk.now;
        }
    }

    fn room(&self) -> usize {
        let waiting = self.backlog.as_ref().map_or(0, |backlog| backlog.len());
        self.marks.high().saturating_sub(waiting)
    }

    /// Sends the output of a step, and lets the conversation keep what is left of its input.
    #[inline(always)]
    fn settle(&mut self, fresh: &[u8], desk: &mut Desk) -> bool {
        let mut moved = false;
        let Some(conversation) = self.talk.home() else {
            return moved;
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
            if self.broken.is_none() {
                let input = conversation.input(fresh);
                match transmit(&self.socket, &mut self.backlog, input, desk) {
                    Ok(sent) => moved = sent,
                    Err(error) => self.broken(error),
                }
            }
            desk.outgoing.clear();
        }
        if let Some(conversation) = self.talk.home() {
            conversation.settle(fresh);
        }
        moved
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

    #[cold]
    fn broken(&mut self, error: io::Error) {
        self.backlog = None;
        self.cut = true;
        if is_peers_end(&error) {
            self.broken = Some(error);
        } else if let Some(conversation) = self.talk.home() {
            // The peer is there, and would wait for what is lost.
            conversation.end(CloseReason::Disconnected(error));
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
            desk.rearm();
            return Fate::Wait;
        }
        if conversation.input_ended() || self.broken.is_some() || self.cut {
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
        self.step_alone(Step::Open, &mut turn.desk);
        self.run_on(&mut turn.buffer, &mut turn.desk)
    }

    fn ready(&mut self, turn: &mut Turn) -> Fate {
        self.run(turn)
    }

    fn parcels(&mut self, turn: &mut Turn) -> Fate {
        match self.talk.home() {
            Some(conversation) => conversation.listen(),
            None => self.missed_mail = true,
        }
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
        if self.settle(&[], &mut turn.desk) {
            self.last_moved = turn.now;
        }
        self.run_on(&mut turn.buffer, &mut turn.desk)
    }

    fn deadline(&self) -> Option<Instant> {
        if let Some(linger) = &self.linger {
            return Some(linger.next());
        }
        self.last_moved.checked_add(self.talk.peek()?.patience()?)
    }

    fn expired(&mut self, turn: &mut Turn) -> Fate {
        if self.linger.is_some() {
            return self.linger(&mut turn.buffer, &mut turn.desk);
        }
        let Some(conversation) = self.talk.home() else {
            return Fate::Wait;
        };
        // Whether the peer takes what it is sent, the kernel knows; it is asked only here.
        if self.progress.is_made(&self.socket) {
            self.last_moved = turn.now;
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

/// Whether the peer takes no more output, by what an attempt to send to it has told.
fn is_peers_end(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(
        error.kind(),
        BrokenPipe
            | ConnectionReset
            | ConnectionAborted
            | NotConnected
            | TimedOut
            | HostUnreachable
            | NetworkUnreachable
            | NetworkDown
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_this_system_is_not_the_end_of_the_peer() {
        for errno in [libc::EPIPE, libc::ECONNRESET, libc::ETIMEDOUT, libc::EHOSTUNREACH] {
            assert!(is_peers_end(&io::Error::from_raw_os_error(errno)), "{errno}");
        }
        for errno in [libc::ENOBUFS, libc::ENOMEM, libc::EPERM] {
            assert!(!is_peers_end(&io::Error::from_raw_os_error(errno)), "{errno}");
        }
    }
}
