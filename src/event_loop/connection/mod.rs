//! One connection of the event loop: the non-blocking driver of a conversation.

mod input;
mod limits;
mod source;

use std::io::{self, Read};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Instant;

use super::lingering::{Rare, linger_on};
use super::slot::{ConversationEvent, ConversationSlot};
use super::source::{LoopCx, PostAction, Readiness, Ticks};
use super::stream_io::{Follows, flush, receive_with_ancillary, transmit};
use super::water_marks::ServiceLimits;
use crate::closing::{Linger, Progress, failure, write_failure};
use crate::conversation::{MESSAGE_BUDGET, Work};
use crate::error::CloseReason;
use crate::sender::Ending;
use crate::sys::{self, Socket};
use crate::write_buffer::WriteBuffer;
use limits::frees_at_once;

/// The budget of a connection for one call, in bytes: how much it reads before others are served.
/// Its answers and the messages of its senders count too.
const READ_BUDGET: usize = 64 * 1024;

/// What a message counts in the budget besides its bytes. [`MESSAGE_BUDGET`] messages use the whole
/// budget.
const MESSAGE_COST: usize = READ_BUDGET / MESSAGE_BUDGET;

/// The next action after the state of a connection has been checked.
enum Next {
    /// Serve the send queue and the input.
    Serve,
    /// The state has changed: check it again.
    Recheck,
}

use Next::{Recheck, Serve};

/// The result of a step.
#[derive(Debug, Clone, Copy, Default)]
struct Settled {
    /// At least one byte of output was sent.
    sent_any: bool,
    /// How many bytes of output the step produced.
    produced: usize,
}

/// One connection of the event loop.
pub(crate) struct Connection<T> {
    socket: Socket,
    conversation: T,
    limits: Rc<ServiceLimits>,
    /// Output that the kernel has not taken; mostly `None`.
    write_buffer: Option<Box<WriteBuffer>>,
    /// When a byte was last received or sent.
    last_activity: Instant,
    /// How much of the output the peer has taken.
    progress: Progress,
    /// Rare state, boxed.
    rare: Option<Box<Rare>>,
    /// When the message began that has arrived in part.
    message_began: Ticks,
    /// The kind of work that was done last: the kinds alternate.
    last_work: Work,
    /// The conversation has been closed.
    close_notified: bool,
    /// Output was lost: the peer gets a reset.
    needs_reset: bool,
    /// A whole message has come from the peer.
    proven: bool,
}

impl<T: ConversationSlot> Connection<T> {
    pub(crate) fn new(
        socket: Socket,
        conversation: T,
        limits: Rc<ServiceLimits>,
        now: Instant,
    ) -> Self {
        Connection {
            socket,
            conversation,
            limits,
            write_buffer: None,
            last_activity: now,
            progress: Progress::default(),
            rare: None,
            message_began: Ticks::NONE,
            last_work: Work::Input,
            close_notified: false,
            needs_reset: false,
            proven: false,
        }
    }

    fn is_lingering(&self) -> bool {
        self.has(|rare| rare.linger.is_some())
    }

    /// Whether this holds of the rare state, if there is any.
    fn has(&self, flag: impl FnOnce(&Rare) -> bool) -> bool {
        self.rare.as_deref().is_some_and(flag)
    }

    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Serves the connection: sends, reads, delivers messages, closes.
    ///
    /// The fast path comes first and is short: there is input, no other state, and a short read
    /// takes all of it.
    #[inline(always)]
    fn run(&mut self, cx: &mut LoopCx) -> PostAction {
        cx.with_buffer(|buffer, cx| {
            if cx.call.readiness.is_only_readable() && self.is_fast() {
                let read =
                    |mut socket: &Socket, buffer: &mut [u8], _: &mut LoopCx| socket.read(buffer);
                return match self.run_fast_path(buffer, cx, read) {
                    None => PostAction::Wait,
                    Some(count) => self.after_fast_path(count, buffer, cx),
                };
            }
            self.run_with_ancillary(buffer, cx)
        })
    }

    /// The fast path of a socket that can receive ancillary data.
    #[inline(never)]
    fn run_with_ancillary(&mut self, buffer: &mut [u8], cx: &mut LoopCx) -> PostAction {
        if cx.call.readiness.is_only_readable_with_ancillary() && self.is_fast() {
            return match self.run_fast_path(buffer, cx, receive_with_ancillary) {
                None => PostAction::Wait,
                Some(count) => self.after_fast_path(count, buffer, cx),
            };
        }
        self.accounted(cx, |this, cx| this.run_slow(buffer, cx))
    }

    /// Continues where the fast path has ended, which has read so many bytes. Before it, the connection
    /// held no memory.
    #[inline(never)]
    fn after_fast_path(&mut self, read: usize, buffer: &mut [u8], cx: &mut LoopCx) -> PostAction {
        self.left_fast_path(read, cx);
        let action = self.read_loop(buffer, cx);
        self.account(0, cx);
        action
    }

    /// The fast path; returns how many bytes it has read if there is more to do.
    #[inline(always)]
    fn run_fast_path(
        &mut self,
        buffer: &mut [u8],
        cx: &mut LoopCx,
        read: impl FnOnce(&Socket, &mut [u8], &mut LoopCx) -> io::Result<usize>,
    ) -> Option<usize> {
        match read(&self.socket, buffer, cx) {
            Ok(count) if count > 0 => {
                cx.read(count, buffer.len());
                self.last_activity = cx.turn.now;
                let fresh = &buffer[..count];
                // No output waits, so all of the room is free.
                let room = self.limits.marks.room();
                let _ = self.step(ConversationEvent::Receive(fresh), room, fresh, cx);
                let drained = !cx.call.readiness.has(Readiness::READABLE);
                if drained && !cx.run.stopping && self.is_fast() {
                    self.proven = true;
                    return None;
                }
                Some(count)
            }
            // The error, if it persists, is returned by the next read again.
            _ => Some(0),
        }
    }

    /// Whether the connection only waits for its peer, without any other state.
    #[inline(always)]
    fn is_fast(&mut self) -> bool {
        // A lingering connection has a close reason, and so is not fast.
        self.write_buffer.is_none()
            && self.conversation.local().is_some_and(|conversation| conversation.is_fast())
    }

    /// Serves everything, also the send queue, which the fast path does not check: a notification
    /// reports that it has entries.
    #[inline(never)]
    fn run_slow(&mut self, buffer: &mut [u8], cx: &mut LoopCx) -> PostAction {
        cx.call.readiness.remove(Readiness::BULK);
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

    /// Works until nothing more can be done or the budget is used up. The rest of the output is
    /// sent in another turn.
    #[inline(never)]
    fn read_loop(&mut self, buffer: &mut [u8], cx: &mut LoopCx) -> PostAction {
        let mut budget = READ_BUDGET;
        let action = self.read_within(&mut budget, buffer, cx);
        cx.use_budget(READ_BUDGET - budget);
        match action {
            PostAction::Wait if self.can_flush(cx) => PostAction::Requeue,
            PostAction::Requeue => {
                // The send queue may still have entries, so the next call must not take the fast path.
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
                ControlFlow::Continue(Serve) => {}
            }
            let waiting = self.waiting();
            let is_starved = self.is_starved(cx);
            let is_retiring = self
                .conversation
                .local_ref()
                .is_some_and(|conversation| self.retiring(conversation).is_some());
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
                && cx.call.readiness.has(Readiness::READABLE)
                && !is_starved
                && !is_retiring;
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
                Work::SendQueue => self.step_without_input(ConversationEvent::SendQueue, cx),
                Work::Timer => self.step_without_input(ConversationEvent::Timer, cx),
                Work::Writable => self.step_without_input(ConversationEvent::Writable, cx),
                Work::Input if has_blocked_input => {
                    self.step_without_input(ConversationEvent::Receive(&[]), cx)
                }
                Work::Input => self.read_once(buffer, cx),
            };
            *budget = budget.saturating_sub(cost);
        }
    }

    /// Checks what comes before input: a close by a sender, an error, a full write buffer.
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
            // The messages before the close are appended to the write buffer above its mark too: no
            // more can come. The time limit for the peer begins now.
            self.last_activity = cx.turn.now;
            let cost = self.step_with_room(ConversationEvent::SendQueue, READ_BUDGET, cx);
            *budget = budget.saturating_sub(cost);
            return match self.conversation.local() {
                Some(conversation) if !conversation.is_closing() => {
                    ControlFlow::Break(PostAction::Requeue)
                }
                _ => ControlFlow::Continue(Recheck),
            };
        }
        if self.has_failed(cx) {
            return ControlFlow::Continue(Recheck);
        }
        let low = self.limits.marks.low();
        let mark = if self.is_output_full() { low + 1 } else { self.limits.marks.high() };
        if self.set_output_full(waiting >= mark, cx) {
            return ControlFlow::Break(PostAction::Wait);
        }
        if cx.run.stopping
            && let Some(conversation) = self.conversation.local()
            && !conversation.is_stop_notified()
        {
            let event = self.stop_event();
            let cost = self.step_without_input(event, cx);
            *budget = budget.saturating_sub(cost);
            return ControlFlow::Continue(Recheck);
        }
        ControlFlow::Continue(Serve)
    }

    /// Whether the connection ends because the peer is gone, or because of a limit that was reached
    /// while the conversation was with a worker.
    fn has_failed(&mut self, cx: &mut LoopCx) -> bool {
        // A connection that is not read: only the poller reports that its peer is gone.
        if let Some(conversation) = self.conversation.local()
            && (conversation.input_ended() || conversation.is_paused())
            && !conversation.is_output_ended()
            && cx.call.readiness.has(Readiness::WRITE_CLOSED)
            && !self.needs_reset
            && let Some(error) = failure(&self.socket, conversation.has_undelivered_input())
        {
            self.rare_mut().socket_error = Some(error);
        }
        let Some(rare) = self.rare.as_deref_mut() else { return false };
        // A peer that takes no answers is not served any further.
        if let Some(error) = rare.socket_error.take() {
            self.on_write_error(error);
            return true;
        }
        let limit = rare.limit.take();
        if let Some(limit) = limit {
            self.step_without_input(ConversationEvent::Limit(limit), cx);
        }
        limit.is_some()
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
                // The connection has failed: only `on_close` is called.
                Err(error) => self.on_read_error(error),
            }
        }
        ConversationEvent::Stop
    }

    /// Ends a call in which nothing more can be done. A server that is stopping closes an idle
    /// connection here.
    fn finish_turn(&mut self, buffer: &mut [u8], cx: &mut LoopCx) -> PostAction {
        if let Some(conversation) = self.conversation.local() {
            if self.write_buffer.is_none() && conversation.take_output_end() {
                // This fails where the peer is gone, which a read or the poller reports.
                let _ = self.socket.shutdown(Shutdown::Write);
            }
            if conversation.is_paused()
                && !conversation.input_ended()
                && !conversation.has_undelivered_input()
                && cx.call.readiness.has(Readiness::READ_CLOSED)
            {
                match sys::is_at_end(&self.socket) {
                    Ok(true) => {
                        self.step_without_input(ConversationEvent::Eof, cx);
                        return PostAction::Requeue;
                    }
                    Ok(false) => {}
                    Err(error) => conversation.end(CloseReason::Disconnected(error)),
                }
            }
            conversation.end_if_nothing_follows();
            if conversation.is_closing() {
                return self.close(buffer, cx);
            }
        }
        if let Some(limit) = self.retirement() {
            self.step_without_input(ConversationEvent::Limit(limit), cx);
            return PostAction::Requeue;
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

    /// Runs a step of the conversation and sends its output.
    #[inline(always)]
    fn step(
        &mut self,
        step: ConversationEvent<'_>,
        room: usize,
        fresh: &[u8],
        cx: &mut LoopCx,
    ) -> Settled {
        // The entry of the call serves all connections: a sender that is made now has this limit.
        cx.call.entry.limit = self.limits.sender;
        if !self.conversation.run(step, room, self.write_buffer.is_some(), cx) {
            return Settled::default();
        }
        self.send_output(fresh, cx)
    }

    /// As [`step`](Self::step), without new input; returns how much of the budget it uses.
    fn step_without_input(&mut self, step: ConversationEvent<'_>, cx: &mut LoopCx) -> usize {
        self.step_with_room(step, self.room(), cx)
    }

    #[inline(never)]
    fn step_with_room(
        &mut self,
        step: ConversationEvent<'_>,
        room: usize,
        cx: &mut LoopCx,
    ) -> usize {
        let (before, messages) = (delivered(cx), cx.scratch.tally.messages);
        let settled = self.step(step, room, &[], cx);
        if settled.sent_any {
            self.last_activity = cx.turn.now;
        }
        self.after_step(cx.scratch.tally.messages - messages, cx);
        self.cost(settled, before, cx)
    }

    /// How much of the budget a step uses: its output or its messages, whichever is more. A step
    /// that leaves messages has reached a limit, and uses the whole budget.
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

    /// How many bytes of output one step may collect.
    fn room(&self) -> usize {
        self.limits.marks.high().saturating_sub(self.waiting()).min(self.limits.marks.room())
    }

    /// Sends the output of a step, and lets the conversation keep the rest of its input.
    #[inline(always)]
    fn send_output(&mut self, fresh: &[u8], cx: &mut LoopCx) -> Settled {
        match self.conversation.local() {
            None => Settled::default(),
            Some(conversation) if conversation.is_fast() => {
                self.send_collected(fresh, Follows::Unknown, cx)
            }
            Some(_) => self.send_output_slowly(fresh, cx),
        }
    }

    #[inline(never)]
    fn send_output_slowly(&mut self, fresh: &[u8], cx: &mut LoopCx) -> Settled {
        let Some(conversation) = self.conversation.local() else { return Settled::default() };
        if conversation.take_deadline_changed() {
            cx.deadline_changed();
        }
        if conversation.is_aborted() {
            cx.scratch.output_buffer.clear();
        }
        let ends = conversation.is_closing()
            && !conversation.input_ended()
            && !frees_at_once(conversation);
        self.send_collected(fresh, if ends { Follows::End } else { Follows::Unknown }, cx)
    }

    #[inline(always)]
    fn send_collected(&mut self, fresh: &[u8], follows: Follows, cx: &mut LoopCx) -> Settled {
        let mut settled = Settled::default();
        if !cx.scratch.output_buffer.is_empty() {
            settled.produced = cx.scratch.output_buffer.len();
            if !self.needs_reset
                && let Some(conversation) = self.conversation.local()
            {
                let input = conversation.input(fresh);
                match transmit(&self.socket, &mut self.write_buffer, input, follows, cx) {
                    Ok(sent) => settled.sent_any = sent,
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

    /// Sends from the write buffer, within its budget.
    fn flush(&mut self, cx: &mut LoopCx) {
        match flush(&self.socket, &mut self.write_buffer, cx) {
            Ok(0) => {}
            Ok(sent) => {
                self.last_activity = cx.turn.now;
                self.progress.forget();
                self.note_progress(cx);
                cx.use_budget(sent);
            }
            Err(error) => self.on_write_error(error),
        }
    }

    /// The peer takes no more output, or a file of the output cannot be sent. The connection ends,
    /// because nothing more can be answered.
    #[cold]
    fn on_write_error(&mut self, error: io::Error) {
        self.needs_reset = true;
        self.write_buffer = None;
        match self.conversation.local() {
            Some(conversation) => conversation.end(write_failure(error)),
            None => self.rare_mut().socket_error = Some(error),
        }
    }

    /// Closes a finished conversation when all output is sent, in a way that the output arrives.
    fn close(&mut self, buffer: &mut [u8], cx: &mut LoopCx) -> PostAction {
        let Some(conversation) = self.conversation.local() else {
            return PostAction::Wait;
        };
        // It makes room at once, also if its peer does not take the output before.
        let gives_way = self.write_buffer.is_some() && frees_at_once(conversation);
        if conversation.is_aborted() || gives_way {
            self.needs_reset = true;
            return PostAction::Remove;
        }
        if self.write_buffer.is_some() {
            self.progress.begin(&self.socket);
            cx.deadline_changed();
            return PostAction::Wait;
        }
        if conversation.input_ended() || self.needs_reset || frees_at_once(conversation) {
            return PostAction::Remove;
        }
        let (peer, lingers) = (conversation.peer(), conversation.lingers());
        let Some(linger) = Linger::begin(&self.socket, peer, lingers, buffer, cx.turn.now) else {
            return PostAction::Remove;
        };
        self.notify_close(cx);
        let is_drained = linger.is_drained();
        self.rare_mut().linger = Some(linger);
        if is_drained {
            cx.deadline_changed();
            return PostAction::Wait;
        }
        self.linger(buffer, cx)
    }

    /// Discards input until the peer has ended or a limit is reached.
    fn linger(&mut self, buffer: &mut [u8], cx: &mut LoopCx) -> PostAction {
        match self.rare.as_deref_mut().and_then(|rare| rare.linger.as_mut()) {
            Some(linger) => linger_on(&self.socket, linger, buffer, cx),
            None => PostAction::Wait,
        }
    }

    fn notify_close(&mut self, cx: &mut LoopCx) {
        if !std::mem::replace(&mut self.close_notified, true) {
            self.conversation.close(cx);
        }
    }
}

/// The number of messages delivered, plus the messages and events taken from senders; for a
/// difference.
fn delivered(cx: &LoopCx) -> u64 {
    cx.scratch.tally.messages + cx.scratch.tally.from_senders
}
