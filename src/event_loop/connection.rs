//! One connection of the event loop: the non-blocking driver of a conversation.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::time::Instant;

use socket2::Socket;

use super::lingering::{Rare, linger_on};
use super::slot::{ConversationEvent, ConversationSlot};
use super::source::{EventSource, LoopCx, LoopState, PostAction, Readiness};
use super::stream_io::{flush, read, receive_with_ancillary, transmit};
use super::water_marks::WaterMarks;
use crate::closing::{FIRST_LOOK, Linger, Progress, write_failure};
use crate::conversation::{MESSAGE_BUDGET, StepCx};
use crate::error::CloseReason;
use crate::mailbox::Job;
use crate::sender::Ending;
use crate::sys;
use crate::write_buffer::WriteBuffer;

/// How much a connection may read before others come first, in bytes; what it answers or is sent
/// from elsewhere counts as much.
const READ_BUDGET: usize = 64 * 1024;

/// What a message counts beside its bytes, so that as many as a conversation delivers at once are the
/// whole budget.
const MESSAGE_COST: usize = READ_BUDGET / MESSAGE_BUDGET;

/// What to do after a look at the state of a connection.
enum Next {
    /// Serve its send queue and its input.
    GoOn,
    /// The state has changed: look again.
    Recheck,
}

use Next::{GoOn, Recheck};

/// The result of a step.
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
    /// State that few connections ever have.
    rare: Option<Box<Rare>>,
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
            rare: None,
            input_next: false,
            paused: false,
            close_notified: false,
            missed_mail: false,
            cut: false,
            looked: false,
        }
    }

    fn is_lingering(&self) -> bool {
        matches!(self.rare.as_deref(), Some(Rare::Lingering(_)))
    }

    /// Goes on as far as it can: sends, reads, talks, closes.
    ///
    /// The plain case comes first and is kept short: something to read, nothing to remember, and a
    /// short read that takes all there is.
    #[inline(always)]
    fn run(&mut self, cx: &mut LoopCx) -> PostAction {
        let LoopCx { buffer, state } = cx;
        if state.readiness.is_only_readable() && self.is_fast() {
            if self.run_plainly(buffer, state, |mut socket, buffer, _| socket.read(buffer)) {
                return PostAction::Wait;
            }
            return self.read_loop(buffer, state);
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
        if state.readiness.is_plainly_readable_with_ancillary() && self.is_fast() {
            if self.run_plainly(buffer, state, receive_with_ancillary) {
                return PostAction::Wait;
            }
            return self.read_loop(buffer, state);
        }
        state.readiness.remove(Readiness::BULK);
        state.entry.limit = self.water_marks.high();
        if self.is_lingering() {
            return self.linger(buffer, state);
        }
        if self.can_flush(state) {
            self.flush(state);
        }
        self.read_loop(buffer, state)
    }

    /// Whether output waits and the kernel may have room for it.
    fn can_flush(&self, state: &LoopState) -> bool {
        self.write_buffer.is_some() && state.readiness.has(Readiness::WRITABLE)
    }

    /// Goes on until nothing more can be done, or its share of the turn is used up. What of its output
    /// could still be sent comes in another turn.
    #[inline(never)]
    fn read_loop(&mut self, buffer: &mut [u8], state: &mut LoopState) -> PostAction {
        let mut budget = READ_BUDGET;
        let action = self.read_within(&mut budget, buffer, state);
        state.use_budget(READ_BUDGET - budget);
        match action {
            PostAction::Wait if self.can_flush(state) => PostAction::Requeue,
            action => action,
        }
    }

    fn read_within(
        &mut self,
        budget: &mut usize,
        buffer: &mut [u8],
        state: &mut LoopState,
    ) -> PostAction {
        loop {
            match self.check_state(budget, buffer, state) {
                ControlFlow::Break(action) => return action,
                ControlFlow::Continue(Recheck) => continue,
                ControlFlow::Continue(GoOn) => {}
            }
            let Some(conversation) = self.conversation.local() else {
                return PostAction::Wait;
            };
            let has_messages = conversation.send_queue().is_some_and(|queue| !queue.is_empty());
            let is_blocked_on_output = conversation.is_blocked_on_output();
            let may_read = !conversation.input_ended() && state.readiness.has(Readiness::READABLE);
            let has_input = is_blocked_on_output || may_read;
            if !has_messages && !has_input {
                return self.finish_turn(buffer, state);
            }
            if *budget == 0 {
                return PostAction::Requeue;
            }
            // The send queue and the input take turns, so that neither starves the other.
            let cost = if has_messages && !(has_input && self.input_next) {
                self.input_next = true;
                self.drain_send_queue(self.room(), state)
            } else {
                self.input_next = false;
                if is_blocked_on_output {
                    self.step_alone(ConversationEvent::Receive(&[]), state)
                } else {
                    self.read_once(buffer, state)
                }
            };
            *budget = budget.saturating_sub(cost);
        }
    }

    /// Looks at what comes before input: a close that a sender asked for, an error, a full write
    /// buffer.
    fn check_state(
        &mut self,
        budget: &mut usize,
        buffer: &mut [u8],
        state: &mut LoopState,
    ) -> ControlFlow<PostAction, Next> {
        let waiting = self.write_buffer.as_ref().map_or(0, |write_buffer| write_buffer.len());
        let Some(conversation) = self.conversation.local() else {
            return ControlFlow::Break(PostAction::Wait);
        };
        let ending = conversation.ending();
        if ending == Ending::Aborted {
            conversation.abort();
        }
        if conversation.is_closing() {
            return ControlFlow::Break(self.close(buffer, state));
        }
        if ending == Ending::Closing {
            // What was sent before the close is appended to the write buffer whatever its mark: no
            // more can come. The patience for the peer begins now.
            self.last_moved = state.now;
            *budget = budget.saturating_sub(self.drain_send_queue(READ_BUDGET, state));
            return match self.conversation.local() {
                Some(conversation) if !conversation.is_closing() => {
                    ControlFlow::Break(PostAction::Requeue)
                }
                _ => ControlFlow::Continue(Recheck),
            };
        }
        // A connection whose input has ended is not read: only the poller tells that its peer is gone.
        if conversation.input_ended() && state.readiness.has(Readiness::WRITE_CLOSED) && !self.cut {
            let error = self.socket.take_error().ok().flatten();
            let error = error.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
            self.rare = Some(Box::new(Rare::WriteError(error)));
        }
        // A peer that takes no answers is not served any further.
        if let Some(Rare::WriteError(error)) = self.rare.take().map(|rare| *rare) {
            self.on_write_error(error);
            return ControlFlow::Continue(Recheck);
        }
        let mark = if self.paused { self.water_marks.low() + 1 } else { self.water_marks.high() };
        self.paused = waiting >= mark;
        if self.paused {
            return ControlFlow::Break(PostAction::Wait);
        }
        ControlFlow::Continue(GoOn)
    }

    /// Reads once and delivers what was read; how much of the budget that takes.
    fn read_once(&mut self, buffer: &mut [u8], state: &mut LoopState) -> usize {
        match read(&self.socket, buffer, state) {
            Ok(0) => {
                state.readiness.remove(Readiness::READABLE);
                return self.step_alone(ConversationEvent::Eof, state);
            }
            Ok(count) => {
                self.last_moved = state.now;
                state.read(count, buffer.len());
                return count.max(self.received(&buffer[..count], state));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                state.readiness.remove(Readiness::READABLE);
                state.readiness.remove(Readiness::BOUNDARY);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                if let Some(conversation) = self.conversation.local() {
                    conversation.end(CloseReason::Disconnected(error));
                }
                self.write_buffer = None;
            }
        }
        0
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

    /// Sends what waits, as far as the kernel takes it and the budget allows.
    fn flush(&mut self, state: &mut LoopState) {
        match flush(&self.socket, &mut self.write_buffer, state) {
            Ok(0) => {}
            Ok(sent) => {
                self.last_moved = state.now;
                self.progress.forget();
                state.use_budget(sent);
            }
            Err(error) => self.on_write_error(error),
        }
    }

    /// The peer takes no more output, or a file of it cannot be sent. That is the end: nothing that the
    /// peer still has to say can be answered.
    #[cold]
    fn on_write_error(&mut self, error: io::Error) {
        self.cut = true;
        self.write_buffer = None;
        match self.conversation.local() {
            Some(conversation) => conversation.end(write_failure(error)),
            None => self.rare = Some(Box::new(Rare::WriteError(error))),
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
        self.rare = Some(Box::new(Rare::Lingering(linger)));
        self.linger(buffer, state)
    }

    /// Throws input away until the peer has ended, but not for ever.
    fn linger(&mut self, buffer: &mut [u8], state: &mut LoopState) -> PostAction {
        match self.rare.as_deref_mut() {
            Some(Rare::Lingering(linger)) => linger_on(&self.socket, linger, buffer, state),
            _ => PostAction::Wait,
        }
    }

    fn notify_close(&mut self, state: &mut LoopState) {
        if !std::mem::replace(&mut self.close_notified, true) {
            self.conversation.close(state);
        }
    }
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
        if let Some(Rare::Lingering(linger)) = self.rare.as_deref() {
            return Some(linger.next());
        }
        let conversation = self.conversation.local_ref()?;
        let patience = conversation.patience()?;
        // What was on its way when it was closed is the peer's soon, and is then no sign of progress.
        let is_first = conversation.is_closing() && !self.looked;
        self.last_moved.checked_add(if is_first { patience.min(FIRST_LOOK) } else { patience })
    }

    fn expired(&mut self, cx: &mut LoopCx) -> PostAction {
        if self.is_lingering() {
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
        if let Some(Rare::Lingering(linger)) = self.rare.as_deref_mut() {
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
            None if !self.close_notified => self.cut = true,
            // Its output has been sent, and a worker that has it now only calls `on_close`.
            _ => {}
        }
        if self.cut || self.write_buffer.is_some() {
            sys::reset_on_close(&self.socket);
        }
        self.notify_close(&mut cx.state);
        cx.tally.closed += 1;
        cx.capacity_freed = true;
    }
}
