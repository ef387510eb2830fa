//! The limits of a connection on the event loop: how it is known that one is reached.

use std::time::{Duration, Instant};

use super::super::lingering::{Rare, WriteStall};
use super::super::slot::{ConversationEvent, ConversationSlot};
use super::super::source::{LoopCx, PostAction, Readiness, RunState, Ticks};
use super::{Connection, READ_BUDGET};
use crate::closing::Progress;
use crate::conversation::ConversationCore;
use crate::error::{CloseReason, Limit};
use crate::permits::ConnectionPermit;

/// The shortest time between two checks whether the peer takes output.
const SHORTEST_CHECK: Duration = Duration::from_millis(10);

impl<T: ConversationSlot> Connection<T> {
    /// Sets what a connection keeps that has a permit, or limits on its age or its messages.
    pub(crate) fn limited(mut self, permit: Option<ConnectionPermit>, now: Instant) -> Self {
        let limits = &self.limits.peer;
        let limits_age = limits.first_message_deadline.is_some() || limits.max_lifetime.is_some();
        let counts = limits.max_messages.is_some();
        if permit.is_some() || limits_age || counts {
            let rare = self.rare_mut();
            rare.permit = permit;
            rare.accepted = limits_age.then_some(now);
        }
        if counts && let Some(conversation) = self.conversation.local() {
            conversation.keep_slow();
        }
        self
    }

    /// Whether its age or the time of its first message is limited.
    pub(super) fn limits_age(&self) -> bool {
        self.rare.as_deref().is_some_and(|rare| rare.accepted.is_some())
    }

    /// The first step that has left the fast path, with `read` new bytes: before it, the connection held
    /// nothing. If it holds fewer bytes now, a message was whole.
    pub(super) fn left_fast_path(&mut self, read: usize, cx: &mut LoopCx) {
        let conversation = self.conversation.local_ref();
        let has_delivered = conversation.is_some_and(|local| local.buffered() < read);
        self.after_step(u64::from(has_delivered), cx);
    }

    /// Notes what a step has left: a message in part, output that waits, memory.
    pub(super) fn after_step(&mut self, messages: u64, cx: &mut LoopCx) {
        if messages > 0 {
            self.proven = true;
            if let Some(rare) = self.rare.as_deref_mut() {
                rare.retirement.messages_came(messages, &self.limits.peer);
            }
        }
        self.note_stall(cx);
        let max_buffered = self.limits.peer.max_buffered_input;
        let Some(conversation) = self.conversation.local_ref() else { return };
        if !conversation.waits_for_rest() {
            self.message_began = Ticks::NONE;
            return;
        }
        let is_too_long = conversation.buffered() > max_buffered;
        if self.message_began == Ticks::NONE || messages > 0 {
            self.message_began = cx.run.ticks(cx.turn.now);
            cx.deadline_changed();
        }
        if is_too_long {
            self.rare_mut().limit = Some(Limit::BufferedInput);
        }
    }

    /// Begins or ends the time in which the peer takes no output.
    fn note_stall(&mut self, cx: &mut LoopCx) {
        let Some(timeout) = self.limits.peer.write_timeout else { return };
        if self.write_buffer.is_none() {
            if let Some(rare) = self.rare.as_deref_mut() {
                rare.stall = None;
            }
            return;
        }
        let rare = self.rare.get_or_insert_default();
        if rare.stall.is_none() {
            rare.stall = Some(WriteStall {
                since: None,
                progress: Progress::default(),
                next_check: cx.turn.now + check_interval(timeout),
            });
            cx.deadline_changed();
        }
    }

    /// Output has been sent from the write buffer: the time begins again, or ends if nothing is left.
    pub(super) fn note_progress(&mut self, cx: &LoopCx) {
        let Some(rare) = self.rare.as_deref_mut() else { return };
        if self.write_buffer.is_none() {
            rare.stall = None;
        } else if let Some(stall) = &mut rare.stall {
            stall.since = Some(cx.turn.now);
            stall.progress.forget();
        }
    }

    /// Whether the write buffer has reached the high mark and has not fallen to the low mark since.
    pub(super) fn is_output_full(&self) -> bool {
        self.rare.as_deref().is_some_and(|rare| rare.full_since.is_some())
    }

    /// Records whether the write buffer is at its mark, so that the connection is not read.
    pub(super) fn set_output_full(&mut self, full: bool, cx: &mut LoopCx) -> bool {
        if self.is_output_full() != full {
            let now = cx.turn.now;
            if full {
                cx.scratch.tally.output_pauses += 1;
                self.rare_mut().full_since = Some(now);
            } else if let Some(since) =
                self.rare.as_deref_mut().and_then(|rare| rare.full_since.take())
            {
                let paused = now.saturating_duration_since(since).as_millis();
                cx.scratch.tally.output_paused_ms += u64::try_from(paused).unwrap_or(u64::MAX);
                // The peer could not complete its message meanwhile.
                if self.message_began != Ticks::NONE {
                    self.message_began = cx.run.ticks(now);
                    cx.deadline_changed();
                }
            }
        }
        full
    }

    /// The limit because of which it reads nothing more: it is too old or has sent too many messages.
    pub(super) fn retiring(&self, conversation: &ConversationCore) -> Option<Limit> {
        self.rare.as_deref()?.retirement.due(conversation.waits_for_rest())
    }

    /// The limit for which an idle connection closes now.
    pub(super) fn retirement(&mut self) -> Option<Limit> {
        let conversation = self.conversation.local_ref()?;
        let may_end = self.write_buffer.is_none()
            && !conversation.wants_writable()
            && !conversation.is_paused();
        self.retiring(conversation).filter(|_| may_end)
    }

    /// Whether the connection is not read because memory is tight and it holds more than its share.
    /// It is read again when the loop calls it. A peer that has ended is read to its end, because the
    /// end frees the memory.
    pub(super) fn is_starved(&mut self, cx: &mut LoopCx) -> bool {
        if !cx.run.memory.is_tight() || cx.call.readiness.has(Readiness::READ_CLOSED) {
            return false;
        }
        let connections = usize::try_from(cx.open_connections()).unwrap_or(usize::MAX);
        if self.weight() <= cx.run.memory.share(connections) {
            return false;
        }
        if !std::mem::replace(&mut self.rare_mut().starved, true) {
            cx.run.starved.push(cx.call.entry.token);
            cx.scratch.tally.memory_pauses += 1;
        }
        true
    }

    /// How much memory the connection holds and counts itself, in bytes.
    pub(super) fn own_memory(&self) -> usize {
        let input = self.conversation.local_ref().map_or(0, ConversationCore::held);
        input + self.write_buffer.as_ref().map_or(0, |write_buffer| write_buffer.held())
    }

    /// How much memory the connection holds, with its send queue.
    pub(super) fn weight(&self) -> usize {
        let conversation = self.conversation.local_ref();
        let queue = conversation.and_then(ConversationCore::send_queue);
        self.own_memory() + queue.map_or(0, |queue| queue.held())
    }

    /// Counts the memory that `call` takes or frees.
    #[inline]
    pub(super) fn accounted(
        &mut self,
        cx: &mut LoopCx,
        call: impl FnOnce(&mut Self, &mut LoopCx) -> PostAction,
    ) -> PostAction {
        let before = self.own_memory();
        let action = call(self, cx);
        self.account(before, cx);
        action
    }

    /// Counts the memory of the connection, which held `before` bytes. If the limit is reached, memory
    /// is freed after this call, because a turn can read from many connections.
    pub(super) fn account(&self, before: usize, cx: &mut LoopCx) {
        let held = self.own_memory();
        cx.run.memory.replace(before, held);
        if held > before && cx.run.memory.is_full() {
            cx.turn.memory_full = true;
            cx.turn.has_follow_up = true;
        }
    }

    /// When the first of its limits may be reached.
    pub(super) fn limit_deadline(&self, run: &RunState) -> Option<Instant> {
        let limits = &self.limits.peer;
        let conversation = self.conversation.local_ref()?;
        if conversation.is_closing() {
            return None;
        }
        let message = self
            .message_deadline(conversation, run)
            .filter(|_| !self.is_output_full() && !conversation.is_paused());
        let rare = self.rare.as_deref();
        let stall = rare.and_then(|rare| rare.stall.as_ref()).map(|stall| stall.next_check);
        let age = rare
            .and_then(|rare| limits.age_deadline(rare.accepted?, self.proven, &rare.retirement));
        [message, stall, age].into_iter().flatten().min()
    }

    fn message_deadline(&self, conversation: &ConversationCore, run: &RunState) -> Option<Instant> {
        let began = run.instant(self.message_began)?;
        began.checked_add(self.limits.peer.time_for_message(conversation.buffered())?)
    }

    /// Checks the limits whose time may be over; returns the one that is reached.
    pub(super) fn expired_limit(&mut self, cx: &mut LoopCx) -> Option<Limit> {
        let now = cx.turn.now;
        let conversation = self.conversation.local_ref()?;
        if conversation.is_closing() {
            return None;
        }
        let waits = !self.is_output_full() && !conversation.is_paused();
        if waits && self.message_deadline(conversation, &cx.run).is_some_and(|at| at <= now) {
            return Some(Limit::MessageDeadline);
        }
        if self.has_stalled(now) {
            return Some(Limit::WriteTimeout);
        }
        let rare = self.rare.as_deref_mut()?;
        let age = now.saturating_duration_since(rare.accepted?);
        self.limits.peer.expired_age(age, self.proven, &mut rare.retirement)
    }

    /// Asks the kernel whether the peer has taken output, if it is time; returns whether it has taken
    /// none for the write timeout.
    fn has_stalled(&mut self, now: Instant) -> bool {
        let Some(timeout) = self.limits.peer.write_timeout else { return false };
        let Some(Rare { stall: Some(stall), .. }) = self.rare.as_deref_mut() else { return false };
        if now < stall.next_check {
            return false;
        }
        stall.next_check = now + check_interval(timeout);
        if stall.progress.is_made(&self.socket) {
            stall.since = Some(now);
        }
        now.saturating_duration_since(*stall.since.get_or_insert(now)) >= timeout
    }

    /// The peer has reached a limit: the handler is told, and the connection ends.
    pub(super) fn exceed_limit(&mut self, limit: Limit, cx: &mut LoopCx) -> PostAction {
        match self.conversation.local() {
            Some(conversation) if conversation.is_closing() => {
                self.needs_reset = true;
                return PostAction::Remove;
            }
            // Nothing that the handler says could reach the peer.
            Some(conversation) if limit.resets() => {
                conversation.end(CloseReason::Limit(limit));
                self.needs_reset = true;
                return PostAction::Remove;
            }
            Some(_) => {}
            None => {
                self.rare_mut().limit = Some(limit);
                return PostAction::Wait;
            }
        }
        self.step_with_room(ConversationEvent::Limit(limit), READ_BUDGET, cx);
        cx.with_buffer(|buffer, cx| self.run_slow(buffer, cx))
    }
}

/// Whether a connection that closes for this reason makes room at once, and does not linger.
pub(super) fn frees_at_once(conversation: &ConversationCore) -> bool {
    conversation.close_reason().is_some_and(CloseReason::frees_at_once)
}

fn check_interval(timeout: Duration) -> Duration {
    (timeout / 4).max(SHORTEST_CHECK)
}
