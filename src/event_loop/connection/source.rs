//! A connection as an entry of the slab.

use std::io;
use std::time::Instant;

use super::super::lingering::Rare;
use super::super::slot::{ConversationEvent, ConversationSlot};
use super::super::source::{EventSource, LoopCx, PostAction, Readiness, RunState};
use super::Connection;
use crate::closing::FIRST_CHECK;
use crate::connection_id::ConnectionId;
use crate::conversation::Work;
use crate::error::{CloseReason, Limit};
use crate::mailbox::Job;
use crate::sys;

impl<T: ConversationSlot> EventSource for Connection<T> {
    fn opened(&mut self, cx: &mut LoopCx) -> PostAction {
        if self
            .conversation
            .local_ref()
            .is_some_and(|conversation| conversation.peer().inet().is_none())
        {
            cx.call.readiness.add(Readiness::ANCILLARY);
        }
        if self.limits_age() {
            cx.deadline_changed();
        }
        self.accounted(cx, |this, cx| {
            this.step_without_input(ConversationEvent::Open, cx);
            cx.with_buffer(|buffer, cx| {
                if T::OFFLOADED {
                    this.read_at_open(buffer, cx);
                }
                this.run_slow(buffer, cx)
            })
        })
    }

    fn not_registered(&mut self, error: io::Error, cx: &mut LoopCx) -> PostAction {
        self.accounted(cx, |this, cx| {
            this.on_write_error(error);
            cx.with_buffer(|buffer, cx| this.run_slow(buffer, cx))
        })
    }

    fn ready(&mut self, cx: &mut LoopCx) -> PostAction {
        self.run(cx)
    }

    fn notification_taken(&mut self) {
        match self.conversation.local() {
            Some(conversation) => conversation.enable_notification(),
            None => self.rare_mut().missed_notification = true,
        }
    }

    fn send_queue_ready(&mut self, cx: &mut LoopCx) -> PostAction {
        self.accounted(cx, |this, cx| cx.with_buffer(|buffer, cx| this.run_slow(buffer, cx)))
    }

    fn returned(&mut self, work: Box<dyn Job>, cx: &mut LoopCx) -> PostAction {
        self.accounted(cx, |this, cx| this.take_back(work, cx))
    }

    fn memory_freed(&mut self, cx: &mut LoopCx) -> PostAction {
        self.rare_mut().starved = false;
        self.accounted(cx, |this, cx| cx.with_buffer(|buffer, cx| this.run_slow(buffer, cx)))
    }

    fn silent(&self) -> Option<ConnectionId> {
        if self.proven || self.close_notified {
            return None;
        }
        self.conversation.local_ref().filter(|conversation| !conversation.is_closing())?.id()
    }

    fn memory(&self) -> usize {
        self.weight()
    }

    fn usefulness(&self) -> Option<(bool, Instant)> {
        let is_starved = self.rare.as_deref().is_some_and(|rare| rare.starved);
        Some((is_starved, self.last_activity))
    }

    fn exceed(&mut self, limit: Limit, cx: &mut LoopCx) -> PostAction {
        self.accounted(cx, |this, cx| this.exceed_limit(limit, cx))
    }

    fn deadline(&self, run: &RunState) -> Option<Instant> {
        if let Some(Rare { linger: Some(linger), .. }) = self.rare.as_deref() {
            return Some(linger.next());
        }
        let timer = self.conversation.local_ref()?.timer();
        [self.limit_deadline(run), self.idle_deadline(), timer].into_iter().flatten().min()
    }

    fn expired(&mut self, cx: &mut LoopCx) -> PostAction {
        self.accounted(cx, Self::expire)
    }

    fn stop(&mut self, cx: &mut LoopCx) -> PostAction {
        // Input that has arrived before the stop is answered: read once more.
        cx.call.readiness.add(Readiness::READABLE);
        let now = cx.turn.now;
        if let Some(Rare { linger: Some(linger), .. }) = self.rare.as_deref_mut() {
            linger.shorten(now);
        }
        let is_idle = self.write_buffer.is_none()
            && self
                .conversation
                .local_ref()
                .is_some_and(|conversation| conversation.is_idle() && !conversation.is_closing());
        if is_idle {
            self.rare_mut().idle_at_stop = true;
        }
        self.accounted(cx, |this, cx| cx.with_buffer(|buffer, cx| this.run_slow(buffer, cx)))
    }

    fn finish(&mut self, cx: &mut LoopCx) {
        match self.conversation.local() {
            // A conversation in progress is cut.
            Some(conversation) if !self.close_notified && !conversation.is_closing() => {
                conversation.end(CloseReason::Shutdown);
                self.needs_reset = true;
            }
            None if !self.close_notified => self.needs_reset = true,
            // All output has been sent, and a worker that has the conversation only calls
            // `on_close`.
            _ => {}
        }
        if self.needs_reset || self.write_buffer.is_some() {
            sys::reset_on_close(&self.socket);
        }
        cx.run.memory.subtract(self.own_memory());
        self.notify_close(cx);
        cx.run.ended_idle += usize::from(self.has(|rare| rare.idle_at_stop) && !self.needs_reset);
        cx.scratch.tally.closed += 1;
        cx.turn.capacity_freed = true;
    }
}

impl<T: ConversationSlot> Connection<T> {
    /// Takes the conversation back from a worker, with its output.
    fn take_back(&mut self, work: Box<dyn Job>, cx: &mut LoopCx) -> PostAction {
        let messages = cx.scratch.tally.messages;
        self.conversation.put_back(work, cx);
        cx.deadline_changed();
        let missed = self.rare.as_deref_mut().map(|rare| &mut rare.missed_notification);
        if missed.is_some_and(std::mem::take)
            && let Some(conversation) = self.conversation.local()
        {
            conversation.enable_notification();
        }
        if self.send_output(&[], cx).sent_any {
            self.last_activity = cx.turn.now;
        }
        self.after_step(cx.scratch.tally.messages - messages, cx);
        cx.with_buffer(|buffer, cx| self.run_slow(buffer, cx))
    }

    /// One of its deadlines has passed.
    fn expire(&mut self, cx: &mut LoopCx) -> PostAction {
        if self.is_lingering() {
            return cx.with_buffer(|buffer, cx| self.linger(buffer, cx));
        }
        if let Some(limit) = self.expired_limit(cx) {
            return self.exceed_limit(limit, cx);
        }
        let Some(conversation) = self.conversation.local() else {
            return PostAction::Wait;
        };
        if conversation.is_timer_due(cx.turn.now) {
            self.last_work = Work::Timer;
            self.step_without_input(ConversationEvent::Timer, cx);
            return cx.with_buffer(|buffer, cx| self.run_slow(buffer, cx));
        }
        let is_closing = conversation.is_closing();
        if self.idle_deadline().is_none_or(|idle| idle > cx.turn.now) {
            // Only a limit had to be checked; the connection may be too old and idle.
            return cx.with_buffer(|buffer, cx| self.run_slow(buffer, cx));
        }
        let is_first = is_closing && !std::mem::replace(&mut self.rare_mut().kernel_asked, true);
        // Only the kernel knows whether the peer takes its output; it is asked only here.
        if self.progress.is_made(&self.socket) {
            self.last_activity = cx.turn.now;
            return PostAction::Wait;
        }
        if is_first {
            return PostAction::Wait;
        }
        if is_closing {
            return PostAction::Remove;
        }
        self.last_activity = cx.turn.now;
        self.step_without_input(ConversationEvent::IdleTimeout, cx);
        cx.with_buffer(|buffer, cx| self.run_slow(buffer, cx))
    }

    /// When no byte has moved for the idle timeout, or for the time limit of a close.
    fn idle_deadline(&self) -> Option<Instant> {
        let conversation = self.conversation.local_ref()?;
        let limit = conversation.output_timeout()?;
        // Bytes that were in flight at the close arrive soon, and do not show that the peer reads.
        let is_first = conversation.is_closing() && !self.has(|rare| rare.kernel_asked);
        self.last_activity.checked_add(if is_first { limit.min(FIRST_CHECK) } else { limit })
    }
}
