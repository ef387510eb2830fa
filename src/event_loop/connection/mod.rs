//! One connection of the event loop: the non-blocking driver of a conversation.

mod input;
mod source;

use std::io::{self, Read};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Instant;

use socket2::Socket;

use super::lingering::{Rare, linger_on};
use super::slot::{ConversationEvent, ConversationSlot};
use super::source::{LoopCx, PostAction, Readiness};
use super::stream_io::{flush, receive_with_ancillary, transmit};
use super::water_marks::OutputLimits;
use crate::closing::{Linger, Progress, write_failure};
use crate::conversation::{MESSAGE_BUDGET, Work};
use crate::error::CloseReason;
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
    limits: Rc<OutputLimits>,
    /// What the kernel has not taken; absent, most of the time.
    write_buffer: Option<Box<WriteBuffer>>,
    /// When a byte last moved, either way.
    last_moved: Instant,
    /// What the peer has taken of its output.
    progress: Progress,
    /// State that few connections ever have.
    rare: Option<Box<Rare>>,
    /// What it did last: its kinds of work take turns.
    last_work: Work,
    /// The write buffer has reached the high mark and has not fallen to the low mark since.
    output_full: bool,
    /// The conversation has been closed.
    close_notified: bool,
    /// Mail of its outlet came while the conversation was out.
    missed_mail: bool,
    /// Output was lost: its peer is to see a reset.
    cut: bool,
    /// It is over, and the kernel has been asked since how much it still holds.
    looked: bool,
    /// It was idle when the server began to stop.
    idle_at_stop: bool,
}

impl<T: ConversationSlot> Connection<T> {
    pub(crate) fn new(
        socket: Socket,
        conversation: T,
        limits: Rc<OutputLimits>,
        now: Instant,
    ) -> Self {
        Connection {
            socket,
            conversation,
            limits,
            write_buffer: None,
            last_moved: now,
            progress: Progress::default(),
            rare: None,
            last_work: Work::Input,
            output_full: false,
            close_notified: false,
            missed_mail: false,
            cut: false,
            looked: false,
            idle_at_stop: false,
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
        cx.with_buffer(|buffer, cx| {
            if cx.call.readiness.is_only_readable() && self.is_fast() {
                if self.run_plainly(buffer, cx, |mut socket, buffer, _| socket.read(buffer)) {
                    return PostAction::Wait;
                }
                return self.read_loop(buffer, cx);
            }
            self.run_with_ancillary(buffer, cx)
        })
    }

    /// The plain case of a socket that can receive ancillary data.
    #[inline(never)]
    fn run_with_ancillary(&mut self, buffer: &mut [u8], cx: &mut LoopCx) -> PostAction {
        if cx.call.readiness.is_plainly_readable_with_ancillary() && self.is_fast() {
            if self.run_plainly(buffer, cx, receive_with_ancillary) {
                return PostAction::Wait;
            }
            return self.read_loop(buffer, cx);
        }
        self.run_slow(buffer, cx)
    }

    /// The plain case; false when there is more to do.
    #[inline(always)]
    fn run_plainly(
        &mut self,
        buffer: &mut [u8],
        cx: &mut LoopCx,
        read: impl FnOnce(&Socket, &mut [u8], &mut LoopCx) -> io::Result<usize>,
    ) -> bool {
        cx.call.entry.limit = self.limits.sender;
        match read(&self.socket, buffer, cx) {
            Ok(count) if count > 0 => {
                cx.read(count, buffer.len());
                self.last_moved = cx.turn.now;
                let fresh = &buffer[..count];
                // Nothing waits, so that all of the room is there.
                let room = self.limits.marks.room();
                let _ = self.step(ConversationEvent::Receive(fresh), room, fresh, cx);
                let drained = !cx.call.readiness.has(Readiness::READABLE);
                drained && !cx.run.stopping && self.is_fast()
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

    /// Goes on with whatever there is, the send queue too, which the plain cases do not look at: its mail
    /// says that there is something.
    #[inline(never)]
    fn run_slow(&mut self, buffer: &mut [u8], cx: &mut LoopCx) -> PostAction {
        cx.call.readiness.remove(Readiness::BULK);
        cx.call.entry.limit = self.limits.sender;
        if self.is_lingering() {
            return self.linger(buffer, cx);
        }
        if self.can_flush(cx) {
            self.flush(cx);
        }
        self.read_loop(buffer, cx)
    }

    /// Whether output waits and the kernel may have room for it.
    fn can_flush(&self, cx: &LoopCx) -> bool {
        self.write_buffer.is_some() && cx.call.readiness.has(Readiness::WRITABLE)
    }

    /// Goes on until nothing more can be done, or its share of the turn is used up. What of its output
    /// could still be sent comes in another turn.
    #[inline(never)]
    fn read_loop(&mut self, buffer: &mut [u8], cx: &mut LoopCx) -> PostAction {
        let mut budget = READ_BUDGET;
        let action = self.read_within(&mut budget, buffer, cx);
        cx.use_budget(READ_BUDGET - budget);
        match action {
            PostAction::Wait if self.can_flush(cx) => PostAction::Requeue,
            PostAction::Requeue => {
                // It may have left something in its send queue: not the plain case.
                cx.call.readiness.add(Readiness::BULK);
                PostAction::Requeue
            }
            action => action,
        }
    }

    fn read_within(
        &mut self,
        budget: &mut usize,
        buffer: &mut [u8],
        cx: &mut LoopCx,
    ) -> PostAction {
        loop {
            match self.check_state(budget, buffer, cx) {
                ControlFlow::Break(action) => return action,
                ControlFlow::Continue(Recheck) => continue,
                ControlFlow::Continue(GoOn) => {}
            }
            let waiting = self.waiting();
            let Some(conversation) = self.conversation.local() else {
                return PostAction::Wait;
            };
            let has_blocked_input = conversation.has_blocked_input();
            // The timers of the loop come for one that is always here, and for a timer that is due again.
            let timer_missed = T::OFFLOADED
                && self.last_work != Work::Timer
                && conversation.is_timer_due(cx.turn.now);
            let may_read = !conversation.input_ended()
                && !conversation.is_paused()
                && cx.call.readiness.has(Readiness::READABLE);
            let work = Work::next(self.last_work, |work| match work {
                Work::SendQueue => conversation.send_queue().is_some_and(|queue| !queue.is_empty()),
                Work::Timer => timer_missed,
                Work::Writable => {
                    conversation.wants_writable() && waiting <= self.limits.marks.low()
                }
                Work::Input => has_blocked_input || may_read,
            });
            let Some(work) = work else {
                return self.finish_turn(buffer, cx);
            };
            if *budget == 0 {
                return PostAction::Requeue;
            }
            self.last_work = work;
            let cost = match work {
                Work::SendQueue => self.step_alone(ConversationEvent::SendQueue, cx),
                Work::Timer => self.step_alone(ConversationEvent::Timer, cx),
                Work::Writable => self.step_alone(ConversationEvent::Writable, cx),
                Work::Input if has_blocked_input => {
                    self.step_alone(ConversationEvent::Receive(&[]), cx)
                }
                Work::Input => self.read_once(buffer, cx),
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
        cx: &mut LoopCx,
    ) -> ControlFlow<PostAction, Next> {
        let waiting = self.waiting();
        let Some(conversation) = self.conversation.local() else {
            return ControlFlow::Break(PostAction::Wait);
        };
        let ending = conversation.ending();
        if ending == Ending::Aborted {
            conversation.abort();
        }
        if conversation.is_closing() {
            return ControlFlow::Break(self.close(buffer, cx));
        }
        if ending == Ending::Closing {
            // What was sent before the close is appended to the write buffer whatever its mark: no
            // more can come. The patience for the peer begins now.
            self.last_moved = cx.turn.now;
            let cost = self.step_with_room(ConversationEvent::SendQueue, READ_BUDGET, cx);
            *budget = budget.saturating_sub(cost);
            return match self.conversation.local() {
                Some(conversation) if !conversation.is_closing() => {
                    ControlFlow::Break(PostAction::Requeue)
                }
                _ => ControlFlow::Continue(Recheck),
            };
        }
        // A connection that is not read: only the poller reports that its peer is gone.
        if (conversation.input_ended() || conversation.is_paused())
            && !conversation.is_output_ended()
            && cx.call.readiness.has(Readiness::WRITE_CLOSED)
            && !self.cut
        {
            let error = self.socket.take_error().ok().flatten();
            let error = error.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
            self.rare = Some(Box::new(Rare::SocketError(error)));
        }
        // A peer that takes no answers is not served any further.
        if let Some(Rare::SocketError(error)) = self.rare.take().map(|rare| *rare) {
            self.on_write_error(error);
            return ControlFlow::Continue(Recheck);
        }
        let low = self.limits.marks.low();
        let mark = if self.output_full { low + 1 } else { self.limits.marks.high() };
        self.output_full = waiting >= mark;
        if self.output_full {
            return ControlFlow::Break(PostAction::Wait);
        }
        if cx.run.stopping
            && let Some(conversation) = self.conversation.local()
            && !conversation.is_stop_notified()
        {
            let event = self.stop_event();
            let cost = self.step_alone(event, cx);
            *budget = budget.saturating_sub(cost);
            return ControlFlow::Continue(Recheck);
        }
        ControlFlow::Continue(GoOn)
    }

    /// The event that tells the conversation of the stop of the server.
    fn stop_event(&mut self) -> ConversationEvent<'static> {
        let is_idle = self.write_buffer.is_none()
            && self.conversation.local_ref().is_some_and(|conversation| conversation.is_idle());
        if T::OFFLOADED && is_idle {
            match sys::peek(&self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return ConversationEvent::StopIfIdle;
                }
                // It is gone, and is told nothing but that.
                Err(error) => self.on_read_error(error),
            }
        }
        ConversationEvent::Stop
    }

    /// Nothing more can be done now, or ever; a server that stops does not wait for who is idle.
    fn finish_turn(&mut self, buffer: &mut [u8], cx: &mut LoopCx) -> PostAction {
        if let Some(conversation) = self.conversation.local() {
            if self.write_buffer.is_none() && conversation.take_output_end() {
                // It fails where the peer is gone, which a read or the poller reports.
                let _ = self.socket.shutdown(Shutdown::Write);
            }
            if conversation.is_paused()
                && !conversation.input_ended()
                && !conversation.has_undelivered_input()
                && cx.call.readiness.has(Readiness::READ_CLOSED)
                && sys::is_at_end(&self.socket).unwrap_or(false)
            {
                self.step_alone(ConversationEvent::Eof, cx);
                return PostAction::Requeue;
            }
            conversation.end_if_nothing_follows();
            if conversation.is_closing() {
                return self.close(buffer, cx);
            }
        }
        if cx.run.stopping
            && self.write_buffer.is_none()
            && let Some(conversation) = self.conversation.local()
            && conversation.is_idle()
        {
            conversation.end(CloseReason::Shutdown);
            return self.close(buffer, cx);
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
        cx: &mut LoopCx,
    ) -> Settled {
        if !self.conversation.run(step, room, self.write_buffer.is_some(), cx) {
            return Settled::default();
        }
        self.send_output(fresh, cx)
    }

    /// As [`step`](Self::step), where nothing has been read; how much of the budget it takes.
    fn step_alone(&mut self, step: ConversationEvent<'_>, cx: &mut LoopCx) -> usize {
        self.step_with_room(step, self.room(), cx)
    }

    #[inline(never)]
    fn step_with_room(
        &mut self,
        step: ConversationEvent<'_>,
        room: usize,
        cx: &mut LoopCx,
    ) -> usize {
        let before = delivered(cx);
        let settled = self.step(step, room, &[], cx);
        if settled.moved {
            self.last_moved = cx.turn.now;
        }
        self.cost(settled, before, cx)
    }

    /// How much of the budget a step takes: what it answers, or the messages it delivers; all of it
    /// where it leaves messages, since it does so at the limit of either.
    fn cost(&mut self, settled: Settled, delivered_before: u64, cx: &LoopCx) -> usize {
        if self.conversation.local().is_some_and(|conversation| conversation.is_at_limit()) {
            return READ_BUDGET;
        }
        let delivered = usize::try_from(delivered(cx) - delivered_before).unwrap_or(usize::MAX);
        settled.produced.max(delivered.saturating_mul(MESSAGE_COST))
    }

    /// How many bytes the write buffer holds.
    fn waiting(&self) -> usize {
        self.write_buffer.as_ref().map_or(0, |write_buffer| write_buffer.len())
    }

    /// How much output may be collected at once.
    fn room(&self) -> usize {
        self.limits.marks.high().saturating_sub(self.waiting()).min(self.limits.marks.room())
    }

    /// Sends the output of a step, and lets the conversation keep what is left of its input.
    #[inline(always)]
    fn send_output(&mut self, fresh: &[u8], cx: &mut LoopCx) -> Settled {
        let mut settled = Settled::default();
        let Some(conversation) = self.conversation.local() else {
            return settled;
        };
        if !conversation.is_fast() {
            if conversation.take_deadline_changed() {
                cx.deadline_changed();
            }
            if conversation.is_aborted() {
                cx.scratch.output_buffer.clear();
            }
        }
        if !cx.scratch.output_buffer.is_empty() {
            settled.produced = cx.scratch.output_buffer.len();
            if !self.cut {
                let input = conversation.input(fresh);
                match transmit(&self.socket, &mut self.write_buffer, input, cx) {
                    Ok(sent) => settled.moved = sent,
                    Err(error) => self.on_write_error(error),
                }
            }
            cx.scratch.output_buffer.clear();
        }
        if let Some(conversation) = self.conversation.local() {
            conversation.consume_delivered(fresh);
        }
        settled
    }

    /// Sends what waits, as far as the kernel takes it and others let it.
    fn flush(&mut self, cx: &mut LoopCx) {
        match flush(&self.socket, &mut self.write_buffer, cx) {
            Ok(0) => {}
            Ok(sent) => {
                self.last_moved = cx.turn.now;
                self.progress.forget();
                cx.use_budget(sent);
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
            None => self.rare = Some(Box::new(Rare::SocketError(error))),
        }
    }

    /// The conversation is over: closes when its output has gone, and so that it arrives.
    fn close(&mut self, buffer: &mut [u8], cx: &mut LoopCx) -> PostAction {
        let Some(conversation) = self.conversation.local() else {
            return PostAction::Wait;
        };
        if conversation.is_aborted() {
            self.cut = true;
            return PostAction::Remove;
        }
        if self.write_buffer.is_some() {
            self.progress.begin(&self.socket);
            cx.deadline_changed();
            return PostAction::Wait;
        }
        if conversation.input_ended() || self.cut {
            return PostAction::Remove;
        }
        let Some(linger) = Linger::begin(&self.socket, conversation.peer(), buffer, cx.turn.now)
        else {
            return PostAction::Remove;
        };
        self.notify_close(cx);
        self.rare = Some(Box::new(Rare::Lingering(linger)));
        self.linger(buffer, cx)
    }

    /// Throws input away until the peer has ended, but not for ever.
    fn linger(&mut self, buffer: &mut [u8], cx: &mut LoopCx) -> PostAction {
        match self.rare.as_deref_mut() {
            Some(Rare::Lingering(linger)) => linger_on(&self.socket, linger, buffer, cx),
            _ => PostAction::Wait,
        }
    }

    fn notify_close(&mut self, cx: &mut LoopCx) {
        if !std::mem::replace(&mut self.close_notified, true) {
            self.conversation.close(cx);
        }
    }
}

/// How many messages have been delivered, and how many messages and events have been taken from senders:
/// for a difference.
fn delivered(cx: &LoopCx) -> u64 {
    cx.scratch.tally.messages + cx.scratch.tally.from_senders
}
