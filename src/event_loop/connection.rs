//! The non-blocking pump: one connection, its conversation, and what the kernel has not taken yet.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use socket2::Socket;

use super::source::{BULK_FROM, EventSource, LoopCx, LoopState, PostAction, Readiness};
use super::write_buffer::{SLICES, WriteBuffer};
use crate::blocking::{FIRST_LOOK, Linger, Lingering, Progress};
use crate::conversation::{Conversation, Framing, Handler, MESSAGE_BUDGET, StepCx};
use crate::error::CloseReason;
use crate::mailbox::Job;
use crate::sender::Ending;
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
pub(crate) struct WaterMarks {
    high: u32,
    low: u32,
    room: u32,
}

impl WaterMarks {
    pub(crate) fn new(high: usize, low: usize) -> Self {
        let mark = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        WaterMarks { high: mark(high), low: mark(low), room: mark(high.min(READ_BUDGET)) }
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

impl Default for WaterMarks {
    fn default() -> Self {
        WaterMarks::new(64 * 1024, 16 * 1024)
    }
}

/// A step of a conversation.
pub(crate) enum ConversationEvent<'a> {
    Open,
    Receive(&'a [u8]),
    Eof,
    TimedOut,
}

/// A conversation whose steps are taken here, or lent to a worker.
pub(crate) trait ConversationSlot: 'static {
    type Handler: Handler;
    type Framing: Framing;

    /// Takes a step, for which there is so much room in the output; false when there is nothing to
    /// settle: it has been lent out for the step and comes home later, or it has only kept the input.
    fn run(&mut self, step: ConversationEvent<'_>, room: usize, state: &mut LoopState) -> bool;

    /// The conversation, if it is at home.
    fn local(&mut self) -> Option<&mut Conversation<Self::Handler, Self::Framing>>;

    /// The conversation, to look at, if it is at home.
    fn local_ref(&self) -> Option<&Conversation<Self::Handler, Self::Framing>>;

    /// Takes back what was lent, and gives out what was answered meanwhile.
    fn put_back(&mut self, work: Box<dyn Job>, state: &mut LoopState);

    /// Ends it for good: the handler is told, here or on a worker.
    fn close(&mut self, state: &mut LoopState);
}

/// Steps taken here and now.
impl<H: Handler + 'static, F: Framing + 'static> ConversationSlot for Conversation<H, F> {
    type Handler = H;
    type Framing = F;

    #[inline(always)]
    fn run(&mut self, step: ConversationEvent<'_>, room: usize, state: &mut LoopState) -> bool {
        let mut step_cx =
            StepCx::new(&mut state.output_buffer, &mut state.tally, &state.entry, room);
        match step {
            ConversationEvent::Open => self.open(&mut step_cx),
            ConversationEvent::Receive(fresh) => self.receive(fresh, &mut step_cx),
            ConversationEvent::Eof => self.eof(&mut step_cx),
            ConversationEvent::TimedOut => self.timed_out(&mut step_cx),
        }
        state.shutdown |= step_cx.shutdown;
        true
    }

    #[inline]
    fn local(&mut self) -> Option<&mut Conversation<H, F>> {
        Some(self)
    }

    #[inline]
    fn local_ref(&self) -> Option<&Conversation<H, F>> {
        Some(self)
    }

    fn put_back(&mut self, _work: Box<dyn Job>, _desk: &mut LoopState) {}

    fn close(&mut self, state: &mut LoopState) {
        let reason = self.closed(&mut state.tally);
        state.end(self.peer(), reason);
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
    conversation: T,
    water_marks: WaterMarks,
    /// What the kernel has not taken; absent, most of the time.
    write_buffer: Option<Box<WriteBuffer>>,
    /// When a byte last moved, either way.
    last_moved: Instant,
    /// What the peer has taken of its output.
    progress: Progress,
    /// It is over, and only waits for its peer to have read the end.
    linger: Option<Box<Linger>>,
    /// Why the peer takes no more output, where the conversation is out and has yet to be told.
    write_error: Option<io::Error>,
    /// Input comes next, and what waits in the outlet after it.
    input_next: bool,
    /// The backlog has reached the high mark and not yet sunk to the low one.
    paused: bool,
    /// The conversation has been closed.
    close_notified: bool,
    /// Mail of its outlet came while the conversation was out.
    missed_mail: bool,
    /// Output was lost: its peer is to see a reset.
    cut: bool,
    /// It is over, and the kernel has been asked since how much it still holds.
    looked: bool,
}

impl<T: ConversationSlot> Connection<T> {
    pub(crate) fn new(
        socket: Socket,
        conversation: T,
        water_marks: WaterMarks,
        now: Instant,
    ) -> Self {
        Connection {
            socket,
            conversation,
            water_marks,
            write_buffer: None,
            last_moved: now,
            progress: Progress::default(),
            linger: None,
            write_error: None,
            input_next: false,
            paused: false,
            close_notified: false,
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
    fn run(&mut self, cx: &mut LoopCx) -> PostAction {
        let LoopCx { buffer, state } = cx;
        if state.readiness.is_only_readable()
            && self.is_fast()
            && self.run_plainly(buffer, state, |mut socket, buffer, _| socket.read(buffer))
        {
            return PostAction::Wait;
        }
        self.run_slow(buffer, state)
    }

    /// The plain case; false when there is more to do.
    #[inline(always)]
    fn run_plainly(
        &mut self,
        buffer: &mut [u8],
        state: &mut LoopState,
        read: impl FnOnce(&Socket, &mut [u8], &mut LoopState) -> io::Result<usize>,
    ) -> bool {
        state.entry.limit = self.water_marks.high();
        match read(&self.socket, buffer, state) {
            Ok(count) if count > 0 => {
                state.read(count, buffer.len());
                self.last_moved = state.now;
                let fresh = &buffer[..count];
                // Nothing waits, so that all of the room is there.
                let room = self.water_marks.room();
                let _ = self.step(ConversationEvent::Receive(fresh), room, fresh, state);
                let drained = !state.readiness.has(Readiness::READABLE);
                drained && !state.stopping && self.is_fast()
            }
            // Whatever it is, reading once more tells it again.
            _ => false,
        }
    }

    /// Whether there is nothing to remember of it but that it waits for its peer.
    #[inline(always)]
    fn is_fast(&mut self) -> bool {
        // One that lingers has an end that is remembered, too.
        self.write_buffer.is_none()
            && self.conversation.local().is_some_and(|conversation| conversation.is_fast())
    }

    #[inline(never)]
    fn run_slow(&mut self, buffer: &mut [u8], state: &mut LoopState) -> PostAction {
        if state.readiness.is_plainly_readable_with_ancillary()
            && self.is_fast()
            && self.run_plainly(buffer, state, receive_with_ancillary)
        {
            return PostAction::Wait;
        }
        state.readiness.remove(Readiness::BULK);
        state.entry.limit = self.water_marks.high();
        if self.linger.is_some() {
            return self.linger(buffer, state);
        }
        if self.write_buffer.is_some() && state.readiness.has(Readiness::WRITABLE) {
            self.flush(state);
        }
        self.read_loop(buffer, state)
    }

    /// Goes on until nothing more can be done, or its share of the turn is used up.
    fn read_loop(&mut self, buffer: &mut [u8], state: &mut LoopState) -> PostAction {
        let mut budget = READ_BUDGET;
        let action = self.talk_within(&mut budget, buffer, state);
        let used = READ_BUDGET - budget;
        state.used += used as u64;
        if used >= BULK_FROM {
            state.readiness.add(Readiness::BULK);
        }
        action
    }

    fn talk_within(
        &mut self,
        budget: &mut usize,
        buffer: &mut [u8],
        state: &mut LoopState,
    ) -> PostAction {
        loop {
            let write_buffer =
                self.write_buffer.as_ref().map_or(0, |write_buffer| write_buffer.len());
            let Some(conversation) = self.conversation.local() else {
                return PostAction::Wait;
            };
            // Whatever waits for the peer, and even if it is being closed.
            let ending = conversation.ending();
            if ending == Ending::Aborted {
                conversation.abort();
            }
            if conversation.is_closing() {
                return self.close(buffer, state);
            }
            if ending == Ending::Closing {
                // What was sent before goes behind what waits, whatever the mark: no more can come.
                // From then on the peer has so long to take some of it.
                self.last_moved = state.now;
                *budget = budget.saturating_sub(self.drain_send_queue(READ_BUDGET, state));
                match self.conversation.local() {
                    Some(conversation) if !conversation.is_closing() => return PostAction::Requeue,
                    _ => continue,
                }
            }
            // One that only listens is read no more: what else tells that it is gone must end it.
            if conversation.input_ended()
                && state.readiness.has(Readiness::WRITE_CLOSED)
                && !self.cut
            {
                let error = self.socket.take_error().ok().flatten();
                self.write_error = Some(error.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()));
            }
            // Who takes no answer is not asked what else it has to say.
            if let Some(error) = self.write_error.take() {
                self.on_write_error(error);
                continue;
            }
            if write_buffer
                >= if self.paused { self.water_marks.low() + 1 } else { self.water_marks.high() }
            {
                self.paused = true;
                return PostAction::Wait;
            }
            self.paused = false;
            let has_parcels =
                conversation.send_queue().is_some_and(|send_queue| !send_queue.is_empty());
            let is_blocked_on_output = conversation.is_blocked_on_output();
            let may_read = !conversation.input_ended() && state.readiness.has(Readiness::READABLE);
            let has_input = is_blocked_on_output || may_read;
            if !has_parcels && !has_input {
                return self.finish_turn(buffer, state);
            }
            if *budget == 0 {
                return PostAction::Requeue;
            }
            // In turns: neither keeps the other from being served.
            if has_parcels && !(has_input && self.input_next) {
                *budget = budget.saturating_sub(self.drain_send_queue(self.room(), state));
                self.input_next = true;
                continue;
            }
            self.input_next = false;
            if is_blocked_on_output {
                *budget =
                    budget.saturating_sub(self.step_alone(ConversationEvent::Receive(&[]), state));
                continue;
            }
            match read(&self.socket, buffer, state) {
                Ok(0) => {
                    state.readiness.remove(Readiness::READABLE);
                    *budget = budget.saturating_sub(self.step_alone(ConversationEvent::Eof, state));
                }
                Ok(count) => {
                    self.last_moved = state.now;
                    state.read(count, buffer.len());
                    let fresh = &buffer[..count];
                    let cost = count.max(self.received(fresh, state));
                    *budget = budget.saturating_sub(cost);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    state.readiness.remove(Readiness::READABLE);
                    state.readiness.remove(Readiness::BOUNDARY);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    conversation.end(CloseReason::Disconnected(error));
                    // Nobody will take it any more.
                    self.write_buffer = None;
                }
            }
        }
    }

    /// Nothing more can be done now, or ever; a server that stops does not wait for who is idle.
    fn finish_turn(&mut self, buffer: &mut [u8], state: &mut LoopState) -> PostAction {
        if let Some(conversation) = self.conversation.local() {
            conversation.end_if_nothing_follows();
            if conversation.is_closing() {
                return self.close(buffer, state);
            }
        }
        if state.stopping
            && self.write_buffer.is_none()
            && let Some(conversation) = self.conversation.local()
            && conversation.is_idle()
        {
            conversation.end(CloseReason::Shutdown);
            return self.close(buffer, state);
        }
        PostAction::Wait
    }

    /// Takes a step of the conversation, and sends what it answers.
    #[inline(always)]
    fn step(
        &mut self,
        step: ConversationEvent<'_>,
        room: usize,
        fresh: &[u8],
        state: &mut LoopState,
    ) -> Settled {
        if !self.conversation.run(step, room, state) {
            return Settled::default();
        }
        self.send_output(fresh, state)
    }

    /// As [`step`](Self::step), where nothing has been read; how much of the budget it takes.
    #[inline(never)]
    fn step_alone(&mut self, step: ConversationEvent<'_>, state: &mut LoopState) -> usize {
        let before = state.tally.messages;
        let settled = self.step(step, self.room(), &[], state);
        if settled.moved {
            self.last_moved = state.now;
        }
        self.cost(settled, before, state)
    }

    /// Delivers what has been read; how much of the budget the answers take.
    #[inline(never)]
    fn received(&mut self, fresh: &[u8], state: &mut LoopState) -> usize {
        let before = state.tally.messages;
        let settled = self.step(ConversationEvent::Receive(fresh), self.room(), fresh, state);
        self.cost(settled, before, state)
    }

    /// How much of the budget a step takes: what it answers, or the messages it delivers; all of it
    /// where it leaves messages, since it does so at the limit of either.
    fn cost(&mut self, settled: Settled, messages_before: u64, state: &LoopState) -> usize {
        if self.conversation.local().is_some_and(|conversation| conversation.is_blocked_on_output())
        {
            return READ_BUDGET;
        }
        let messages =
            usize::try_from(state.tally.messages - messages_before).unwrap_or(usize::MAX);
        settled.produced.max(messages.saturating_mul(MESSAGE_COST))
    }

    /// Sends what waits in the outlet, as far as there is `room`; how much of the budget it takes.
    fn drain_send_queue(&mut self, room: usize, state: &mut LoopState) -> usize {
        let Some(conversation) = self.conversation.local() else {
            return 0;
        };
        let mut step_cx =
            StepCx::new(&mut state.output_buffer, &mut state.tally, &state.entry, room);
        let commands = conversation.drain_send_queue(&mut step_cx);
        let settled = self.send_output(&[], state);
        if settled.moved {
            self.last_moved = state.now;
        }
        settled.produced.max(commands * MESSAGE_COST)
    }

    /// How much output may be collected at once.
    fn room(&self) -> usize {
        let waiting = self.write_buffer.as_ref().map_or(0, |write_buffer| write_buffer.len());
        self.water_marks.high().saturating_sub(waiting).min(self.water_marks.room())
    }

    /// Sends the output of a step, and lets the conversation keep what is left of its input.
    #[inline(always)]
    fn send_output(&mut self, fresh: &[u8], state: &mut LoopState) -> Settled {
        let mut settled = Settled::default();
        let Some(conversation) = self.conversation.local() else {
            return settled;
        };
        if !conversation.is_fast() {
            if conversation.take_timeout_changed() {
                state.deadline_changed();
            }
            if conversation.is_aborted() {
                state.output_buffer.clear();
            }
        }
        if !state.output_buffer.is_empty() {
            settled.produced = state.output_buffer.len();
            if !self.cut {
                let input = conversation.input(fresh);
                match transmit(&self.socket, &mut self.write_buffer, input, state) {
                    Ok(sent) => settled.moved = sent,
                    Err(error) => self.on_write_error(error),
                }
            }
            state.output_buffer.clear();
        }
        if let Some(conversation) = self.conversation.local() {
            conversation.consume_delivered(fresh);
        }
        settled
    }

    /// Sends what waits, as far as the kernel takes it.
    fn flush(&mut self, state: &mut LoopState) {
        let Some(write_buffer) = &mut self.write_buffer else {
            return;
        };
        let before = write_buffer.len();
        let flushed = flush(&self.socket, write_buffer, state);
        if write_buffer.len() < before {
            self.last_moved = state.now;
            self.progress.forget();
        }
        if write_buffer.is_empty() {
            self.write_buffer = None;
        }
        if let Err(error) = flushed {
            self.on_write_error(error);
        }
    }

    /// The peer takes no more output, which is its end: nothing that it still has to say can be
    /// answered.
    #[cold]
    fn on_write_error(&mut self, error: io::Error) {
        self.cut = true;
        self.write_buffer = None;
        match self.conversation.local() {
            Some(conversation) => conversation.end(CloseReason::Disconnected(error)),
            None => self.write_error = Some(error),
        }
    }

    /// The conversation is over: closes when its output has gone, and so that it arrives.
    fn close(&mut self, buffer: &mut [u8], state: &mut LoopState) -> PostAction {
        let Some(conversation) = self.conversation.local() else {
            return PostAction::Wait;
        };
        if conversation.is_aborted() {
            self.cut = true;
            return PostAction::Remove;
        }
        if self.write_buffer.is_some() {
            self.progress.begin(&self.socket);
            state.deadline_changed();
            return PostAction::Wait;
        }
        if conversation.input_ended() || self.cut {
            return PostAction::Remove;
        }
        let Some(linger) = Linger::begin(&self.socket, conversation.peer(), buffer, state.now)
        else {
            return PostAction::Remove;
        };
        self.notify_close(state);
        self.linger = Some(Box::new(linger));
        self.linger(buffer, state)
    }

    /// Throws input away until the peer has ended, but not for ever.
    fn linger(&mut self, buffer: &mut [u8], state: &mut LoopState) -> PostAction {
        let Some(linger) = &mut self.linger else { return PostAction::Wait };
        linger_on(&self.socket, linger, buffer, state)
    }

    fn notify_close(&mut self, state: &mut LoopState) {
        if !std::mem::replace(&mut self.close_notified, true) {
            self.conversation.close(state);
        }
    }
}

/// A connection that was served by blocking and now lingers on the loop, where nobody waits for it.
pub(crate) struct LingeringConnection(Lingering);

impl LingeringConnection {
    /// # Errors
    ///
    /// Where it cannot be made non-blocking.
    pub(crate) fn new(lingering: Lingering) -> io::Result<Self> {
        lingering.socket.set_nonblocking(true)?;
        Ok(LingeringConnection(lingering))
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.0.socket.as_raw_fd()
    }

    fn look(&mut self, cx: &mut LoopCx) -> PostAction {
        let Lingering { socket, linger } = &mut self.0;
        linger_on(socket, linger, &mut cx.buffer, &mut cx.state)
    }
}

impl EventSource for LingeringConnection {
    fn is_request(&self) -> bool {
        false
    }

    fn opened(&mut self, cx: &mut LoopCx) -> PostAction {
        self.look(cx)
    }

    fn ready(&mut self, cx: &mut LoopCx) -> PostAction {
        self.look(cx)
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.0.linger.next())
    }

    fn expired(&mut self, cx: &mut LoopCx) -> PostAction {
        self.look(cx)
    }

    fn stop(&mut self, cx: &mut LoopCx) -> PostAction {
        self.0.linger.hurry(cx.now);
        self.look(cx)
    }

    fn finish(&mut self, cx: &mut LoopCx) {
        cx.tally.closed += 1;
        cx.capacity_freed = true;
    }
}

/// Throws input away until its peer has ended, or has all of its output, but not for ever.
fn linger_on(
    socket: &Socket,
    linger: &mut Linger,
    buffer: &mut [u8],
    state: &mut LoopState,
) -> PostAction {
    if linger.drain(socket, buffer) || linger.is_done(socket, state.now) {
        return PostAction::Remove;
    }
    state.deadline_changed();
    PostAction::Wait
}

impl<T: ConversationSlot> EventSource for Connection<T> {
    fn opened(&mut self, cx: &mut LoopCx) -> PostAction {
        cx.entry.limit = self.water_marks.high();
        if self
            .conversation
            .local_ref()
            .is_some_and(|conversation| conversation.peer().inet().is_none())
        {
            cx.readiness.add(Readiness::ANCILLARY);
        }
        self.step_alone(ConversationEvent::Open, &mut cx.state);
        self.run_slow(&mut cx.buffer, &mut cx.state)
    }

    fn ready(&mut self, cx: &mut LoopCx) -> PostAction {
        self.run(cx)
    }

    fn mail_taken(&mut self) {
        match self.conversation.local() {
            Some(conversation) => conversation.listen(),
            None => self.missed_mail = true,
        }
    }

    fn send_queue_ready(&mut self, cx: &mut LoopCx) -> PostAction {
        self.run_slow(&mut cx.buffer, &mut cx.state)
    }

    fn returned(&mut self, work: Box<dyn Job>, cx: &mut LoopCx) -> PostAction {
        self.conversation.put_back(work, &mut cx.state);
        cx.deadline_changed();
        if std::mem::take(&mut self.missed_mail)
            && let Some(conversation) = self.conversation.local()
        {
            conversation.listen();
        }
        if self.send_output(&[], &mut cx.state).moved {
            self.last_moved = cx.now;
        }
        self.run_slow(&mut cx.buffer, &mut cx.state)
    }

    fn deadline(&self) -> Option<Instant> {
        if let Some(linger) = &self.linger {
            return Some(linger.next());
        }
        let conversation = self.conversation.local_ref()?;
        let patience = conversation.patience()?;
        // What was on its way when it was closed is the peer's soon, and is then no sign of progress.
        let is_first = conversation.is_closing() && !self.looked;
        self.last_moved.checked_add(if is_first { patience.min(FIRST_LOOK) } else { patience })
    }

    fn expired(&mut self, cx: &mut LoopCx) -> PostAction {
        if self.linger.is_some() {
            return self.linger(&mut cx.buffer, &mut cx.state);
        }
        let Some(conversation) = self.conversation.local() else {
            return PostAction::Wait;
        };
        let is_first = conversation.is_closing() && !std::mem::replace(&mut self.looked, true);
        // Whether the peer takes what it is sent, the kernel knows; it is asked only here.
        if self.progress.is_made(&self.socket) {
            self.last_moved = cx.now;
            return PostAction::Wait;
        }
        if is_first {
            return PostAction::Wait;
        }
        if conversation.is_closing() {
            return PostAction::Remove;
        }
        self.last_moved = cx.now;
        cx.entry.limit = self.water_marks.high();
        self.step_alone(ConversationEvent::TimedOut, &mut cx.state);
        self.run_slow(&mut cx.buffer, &mut cx.state)
    }

    fn stop(&mut self, cx: &mut LoopCx) -> PostAction {
        // What has arrived before the stop is answered: look once more.
        cx.readiness.add(Readiness::READABLE);
        let now = cx.now;
        if let Some(linger) = &mut self.linger {
            linger.hurry(now);
        }
        self.run_slow(&mut cx.buffer, &mut cx.state)
    }

    fn finish(&mut self, cx: &mut LoopCx) {
        match self.conversation.local() {
            // What is under way is cut.
            Some(conversation) if !self.close_notified && !conversation.is_closing() => {
                conversation.end(CloseReason::Shutdown);
                self.cut = true;
            }
            Some(_) => {}
            None => self.cut = true,
        }
        if self.cut || self.write_buffer.is_some() {
            sys::reset_on_close(&self.socket);
        }
        self.notify_close(&mut cx.state);
        cx.tally.closed += 1;
        cx.capacity_freed = true;
    }
}

/// Reads, and notes where the read may have stopped although more is there.
fn read(mut socket: &Socket, buffer: &mut [u8], state: &mut LoopState) -> io::Result<usize> {
    if state.readiness.has(Readiness::ANCILLARY) {
        return receive_with_ancillary(socket, buffer, state);
    }
    socket.read(buffer)
}

/// Reads from a Unix stream, where a read stops behind bytes that came with ancillary data.
fn receive_with_ancillary(
    socket: &Socket,
    buffer: &mut [u8],
    state: &mut LoopState,
) -> io::Result<usize> {
    let (count, had_ancillary) = sys::receive(socket, buffer)?;
    if had_ancillary {
        state.readiness.add(Readiness::BOUNDARY);
    }
    Ok(count)
}

/// Writes the output of a turn; what the kernel does not take goes to the backlog. True when any
/// byte moved.
#[inline(always)]
fn transmit(
    socket: &Socket,
    write_buffer: &mut Option<Box<WriteBuffer>>,
    input: &[u8],
    state: &mut LoopState,
) -> io::Result<bool> {
    if write_buffer.is_none()
        && let Some(bytes) = state.output_buffer.contiguous(input)
    {
        let sent = sys::send(socket, bytes)?;
        state.tally.bytes_out += sent as u64;
        if sent < bytes.len() {
            refused(write_buffer, input, sent, state);
        }
        return Ok(sent > 0);
    }
    transmit_many(socket, write_buffer, input, state)
}

/// The kernel has taken `sent` bytes and has no room for more.
#[cold]
fn refused(
    write_buffer: &mut Option<Box<WriteBuffer>>,
    input: &[u8],
    sent: usize,
    state: &mut LoopState,
) {
    state.readiness.remove(Readiness::WRITABLE);
    write_buffer.get_or_insert_default().keep(&mut state.output_buffer, input, sent);
}

/// Several segments, or behind others that wait.
#[inline(never)]
fn transmit_many(
    socket: &Socket,
    write_buffer: &mut Option<Box<WriteBuffer>>,
    input: &[u8],
    state: &mut LoopState,
) -> io::Result<bool> {
    let mut sent = 0;
    if write_buffer.is_none() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = state.output_buffer.slices(input, &mut slices);
        let offered = slices[..filled].iter().map(|slice| slice.len()).sum();
        sent = sys::send_vectored(socket, &slices[..filled])?;
        state.tally.bytes_out += sent as u64;
        if sent < offered {
            refused(write_buffer, input, sent, state);
            return Ok(sent > 0);
        }
    }
    // More slices than one call takes say nothing of the kernel's buffer: it is tried on.
    let waiting = write_buffer.get_or_insert_default();
    waiting.keep(&mut state.output_buffer, input, sent);
    let before = waiting.len();
    if state.readiness.has(Readiness::WRITABLE) {
        flush(socket, waiting, state)?;
    }
    let moved = sent > 0 || waiting.len() < before;
    if waiting.is_empty() {
        *write_buffer = None;
    }
    Ok(moved)
}

/// Sends what waits until the kernel refuses.
fn flush(socket: &Socket, write_buffer: &mut WriteBuffer, state: &mut LoopState) -> io::Result<()> {
    while !write_buffer.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = write_buffer.slices(&mut slices);
        let sent = sys::send_vectored(socket, &slices[..filled])?;
        if sent == 0 {
            state.readiness.remove(Readiness::WRITABLE);
            return Ok(());
        }
        state.tally.bytes_out += sent as u64;
        write_buffer.advance(sent);
    }
    Ok(())
}
