//! The events of a conversation besides its messages: each calls one method of the handler.

use super::{Conversation, ConversationCore, Framing, Handler, MESSAGE_BUDGET, Output, StepCx};
use crate::address::LogPeer;
use crate::counters::Tally;
use crate::error::{CloseReason, HandlerResult, Limit};
use crate::guard::{self, log};
use crate::sender::{Command, SendQueue};
use crate::sys::CatchDrop;

impl<H: Handler, F: Framing> Conversation<H, F> {
    /// The connection is open: calls `on_open`.
    pub(crate) fn open(&mut self, step_cx: &mut StepCx<'_>) {
        self.guarded(step_cx, |this, step_cx| {
            this.state.open = true;
            let (handler, mut cx) = this.parts(&[], step_cx);
            let result = handler.on_open(&mut cx);
            this.end_on_error(result);
        });
    }

    /// As [`eof`](Self::eof), if nothing that precedes the end is left: no message, at a limit or because
    /// the input is paused, and no output without room. Otherwise the driver is to read the end again.
    pub(crate) fn eof_if_next(&mut self, step_cx: &mut StepCx<'_>) {
        let is_left = self.consumed < self.read_buffer.len() && self.state.is_halted();
        let has_room = step_cx.output_buffer.len() < step_cx.room;
        if has_room && !is_left && !self.is_at_limit() && !self.is_closing() {
            self.eof(step_cx);
        }
    }

    /// The peer has ended: delivers its last bytes and calls `on_eof`.
    pub(crate) fn eof(&mut self, step_cx: &mut StepCx<'_>) {
        self.state.input_ended = true;
        self.state.clear_blocked();
        if self.state.eof_notified {
            return;
        }
        self.with_read_buffer(step_cx, |this, input, step_cx| {
            if !this.deliver_last(input, step_cx) || this.state.is_closing() {
                return;
            }
            this.state.eof_notified = true;
            let (handler, mut cx) = this.parts(input, step_cx);
            let result = handler.on_eof(&mut cx);
            this.end_as(CloseReason::Eof, result);
        });
        self.end_if_nothing_follows();
    }

    /// No byte has been received or sent for the idle timeout: calls `on_idle_timeout`.
    pub(crate) fn idle_timed_out(&mut self, step_cx: &mut StepCx<'_>) {
        self.guarded(step_cx, |this, step_cx| {
            step_cx.tally.timeouts += 1;
            let (handler, mut cx) = this.parts(&[], step_cx);
            let result = handler.on_idle_timeout(&mut cx);
            this.end_as(CloseReason::Timeout, result);
        });
    }

    /// The deadline of the timer has expired: calls `on_timer`, which may set the next one.
    pub(crate) fn timer_expired(&mut self, step_cx: &mut StepCx<'_>) {
        self.guarded(step_cx, |this, step_cx| {
            this.state.set_timer(None);
            let (handler, mut cx) = this.parts(&[], step_cx);
            let result = handler.on_timer(&mut cx);
            this.end_on_error(result);
        });
    }

    /// The output has fallen to the low mark after `room` returned 0: calls `on_writable`.
    pub(crate) fn writable(&mut self, step_cx: &mut StepCx<'_>) {
        self.guarded(step_cx, |this, step_cx| {
            this.state.wants_writable = false;
            let (handler, mut cx) = this.parts(&[], step_cx);
            let result = handler.on_writable(&mut cx);
            this.end_on_error(result);
        });
    }

    /// As [`stop`](Self::stop), where the driver has nothing to read or to send: the conversation ends if
    /// it is idle after that.
    pub(crate) fn stop_if_idle(&mut self, step_cx: &mut StepCx<'_>) {
        self.stop(step_cx);
        self.end_if_nothing_follows();
        let nothing_queued = self.send_queue().is_none_or(|send_queue| send_queue.is_empty());
        if self.is_idle() && nothing_queued {
            self.end(CloseReason::Shutdown);
        }
    }

    /// The server begins to stop: calls `on_stop`. Called once.
    pub(crate) fn stop(&mut self, step_cx: &mut StepCx<'_>) {
        if std::mem::replace(&mut self.state.stop_notified, true) || self.is_closing() {
            return;
        }
        self.guarded(step_cx, |this, step_cx| {
            let (handler, mut cx) = this.parts(&[], step_cx);
            let result = handler.on_stop(&mut cx);
            this.end_on_error(result);
        });
    }

    /// Takes entries of the send queue, as long as there is room, the budget allows it and `take`
    /// returns one. Messages are framed; events go to the handler.
    pub(crate) fn drain_send_queue(
        &mut self,
        take: impl Fn(&SendQueue) -> Option<Command>,
        step_cx: &mut StepCx<'_>,
    ) {
        let mut taken = 0;
        self.guarded(step_cx, |this, step_cx| {
            while taken < MESSAGE_BUDGET
                && !this.state.is_closing()
                && step_cx.output_buffer.len() < step_cx.room
            {
                let Some(command) = this.state.send_queue().and_then(|queue| take(queue)) else {
                    break;
                };
                taken += 1;
                step_cx.tally.from_senders += 1;
                match command {
                    Command::Close => this.state.end(CloseReason::Handler),
                    Command::Abort => this.state.abort(),
                    Command::Event(event) => {
                        let (handler, mut cx) = this.parts(&[], step_cx);
                        let result = handler.on_event(CatchDrop::into_inner(event), &mut cx);
                        this.end_on_error(result);
                    }
                    Command::Message(message) => {
                        if this.state.drops_output() {
                            step_cx.tally.unsent += 1;
                            continue;
                        }
                        let before = step_cx.output_buffer.position();
                        let mut output = Output::sharing(&message, step_cx.output_buffer);
                        if let Err(error) = this.framing.encode(&message, &mut output) {
                            // The call of the sender has returned by now, and the peer did nothing
                            // wrong.
                            step_cx.output_buffer.cut_back(before);
                            step_cx.tally.unsent += 1;
                            let (id, peer) = (this.state.id, this.state.peer.clone());
                            let origin = LogPeer { id, peer };
                            log::debug!("{origin}: a message of a sender is dropped: {error}");
                        }
                    }
                }
            }
        });
    }

    /// The input is not acceptable: calls `on_reject`, then ends the conversation for this reason.
    #[cold]
    pub(super) fn reject(&mut self, reason: CloseReason, step_cx: &mut StepCx<'_>) {
        let reason = CatchDrop::new(reason);
        let (handler, mut cx) = self.parts(&[], step_cx);
        let result = handler.on_reject(&reason, &mut cx);
        self.state.end_for(CatchDrop::into_inner(reason));
        self.end_on_error(result);
    }

    /// The peer has reached a limit: calls `on_reject`, then ends the conversation.
    #[cold]
    pub(crate) fn exceed(&mut self, limit: Limit, step_cx: &mut StepCx<'_>) {
        if !self.is_closing() {
            self.guarded(step_cx, |this, step_cx| {
                this.reject(CloseReason::Limit(limit), step_cx);
            });
        }
    }

    /// Calls `on_close` and returns the reason. No other call follows.
    pub(crate) fn closed(&mut self, tally: &mut Tally) -> CatchDrop<CloseReason> {
        self.notify_close(tally);
        self.take_close_reason()
    }

    /// Tells the handler that the conversation is over, and why, while output may still wait to be sent:
    /// all that senders can do from now on is to abort it.
    pub(crate) fn notify_close(&mut self, tally: &mut Tally) {
        self.state.end(CloseReason::Shutdown);
        if let Some(send_queue) = self.state.send_queue() {
            send_queue.refuse();
        }
        if std::mem::take(&mut self.state.open)
            && let Some(reason) = self.core.state.close_reason()
            && let Err(message) = guard::call(|| self.handler.on_close(reason))
        {
            tally.panics += 1;
            self.state.end_for(CloseReason::Panic(message));
        }
        match self.state.close_reason() {
            Some(CloseReason::Error(_)) => tally.handler_errors += 1,
            Some(CloseReason::Framing(_)) => tally.framing_errors += 1,
            Some(CloseReason::Disconnected(_)) => tally.disconnects += 1,
            Some(CloseReason::Limit(limit)) => tally.limit(*limit),
            _ => {}
        }
    }

    /// Ends the conversation if the handler has returned an error. If the handler may have changed
    /// the framing, the input that is left is decoded again. If the peer has ended, the conversation
    /// may end now.
    fn end_on_error(&mut self, result: HandlerResult) {
        if std::mem::take(&mut self.state.framing_used) && !self.read_buffer.is_empty() {
            self.state.redeliver();
        }
        if let Err(error) = result {
            self.state.end(CloseReason::Error(error));
        }
        if self.state.closes_when_answered() && !self.state.is_answering() {
            self.state.end(CloseReason::Eof);
        }
    }

    /// As [`end_on_error`](Self::end_on_error). A close that the handler has just requested gets
    /// the reason `reason`.
    fn end_as(&mut self, reason: CloseReason, result: HandlerResult) {
        self.end_on_error(result);
        self.state.relabel(reason);
    }
}

impl ConversationCore {
    /// Why it has ended. Nothing follows: senders cannot even abort it.
    pub(crate) fn take_close_reason(&mut self) -> CatchDrop<CloseReason> {
        let rare = self.state.take_rare().map(|rare| *rare).unwrap_or_default();
        if let Some(send_queue) = rare.send_queue {
            send_queue.close();
        }
        rare.close_reason.unwrap_or_else(|| CloseReason::Shutdown.into())
    }
}
