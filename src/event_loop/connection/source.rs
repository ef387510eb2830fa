//! A connection as an entry of the slab.

use std::time::Instant;

use super::super::lingering::Rare;
use super::super::slot::{ConversationEvent, ConversationSlot};
use super::super::source::{EventSource, LoopCx, PostAction, Readiness};
use super::Connection;
use crate::closing::FIRST_CHECK;
use crate::conversation::Work;
use crate::error::CloseReason;
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
        self.step_without_input(ConversationEvent::Open, cx);
        cx.with_buffer(|buffer, cx| {
            if T::OFFLOADED {
                self.read_at_open(buffer, cx);
            }
            self.run_slow(buffer, cx)
        })
    }

    fn ready(&mut self, cx: &mut LoopCx) -> PostAction {
        self.run(cx)
    }

    fn notification_taken(&mut self) {
        match self.conversation.local() {
            Some(conversation) => conversation.enable_notification(),
            None => self.missed_notification = true,
        }
    }

    fn send_queue_ready(&mut self, cx: &mut LoopCx) -> PostAction {
        cx.with_buffer(|buffer, cx| self.run_slow(buffer, cx))
    }

    fn returned(&mut self, work: Box<dyn Job>, cx: &mut LoopCx) -> PostAction {
        self.conversation.put_back(work, cx);
        cx.deadline_changed();
        if std::mem::take(&mut self.missed_notification)
            && let Some(conversation) = self.conversation.local()
        {
            conversation.enable_notification();
        }
        if self.send_output(&[], cx).sent_any {
            self.last_activity = cx.turn.now;
        }
        cx.with_buffer(|buffer, cx| self.run_slow(buffer, cx))
    }

    fn deadline(&self) -> Option<Instant> {
        if let Some(Rare::Lingering(linger)) = self.rare.as_deref() {
            return Some(linger.next());
        }
        let conversation = self.conversation.local_ref()?;
        let idle = conversation.output_timeout().and_then(|limit| {
            // Bytes that were in flight at the close arrive soon, and do not show that the peer
            // reads.
            let is_first = conversation.is_closing() && !self.kernel_asked;
            self.last_activity.checked_add(if is_first { limit.min(FIRST_CHECK) } else { limit })
        });
        idle.into_iter().chain(conversation.timer()).min()
    }

    fn expired(&mut self, cx: &mut LoopCx) -> PostAction {
        if self.is_lingering() {
            return cx.with_buffer(|buffer, cx| self.linger(buffer, cx));
        }
        let Some(conversation) = self.conversation.local() else {
            return PostAction::Wait;
        };
        if conversation.is_timer_due(cx.turn.now) {
            self.last_work = Work::Timer;
            self.step_without_input(ConversationEvent::Timer, cx);
            return cx.with_buffer(|buffer, cx| self.run_slow(buffer, cx));
        }
        let is_first =
            conversation.is_closing() && !std::mem::replace(&mut self.kernel_asked, true);
        // Only the kernel knows whether the peer takes its output; it is asked only here.
        if self.progress.is_made(&self.socket) {
            self.last_activity = cx.turn.now;
            return PostAction::Wait;
        }
        if is_first {
            return PostAction::Wait;
        }
        if conversation.is_closing() {
            return PostAction::Remove;
        }
        self.last_activity = cx.turn.now;
        self.step_without_input(ConversationEvent::IdleTimeout, cx);
        cx.with_buffer(|buffer, cx| self.run_slow(buffer, cx))
    }

    fn stop(&mut self, cx: &mut LoopCx) -> PostAction {
        // Input that has arrived before the stop is answered: read once more.
        cx.call.readiness.add(Readiness::READABLE);
        let now = cx.turn.now;
        if let Some(Rare::Lingering(linger)) = self.rare.as_deref_mut() {
            linger.shorten(now);
        }
        self.idle_at_stop = self.write_buffer.is_none()
            && self
                .conversation
                .local_ref()
                .is_some_and(|conversation| conversation.is_idle() && !conversation.is_closing());
        cx.with_buffer(|buffer, cx| self.run_slow(buffer, cx))
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
        self.notify_close(cx);
        cx.run.ended_idle += usize::from(self.idle_at_stop && !self.needs_reset);
        cx.scratch.tally.closed += 1;
        cx.turn.capacity_freed = true;
    }
}
