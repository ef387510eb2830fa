//! The reads of a connection, and how much input one step delivers.

use std::io;

use super::super::slot::{ConversationEvent, ConversationSlot};
use super::super::source::{LoopCx, Readiness};
use super::super::stream_io::read;
use super::{Connection, delivered};
use crate::error::CloseReason;

impl<T: ConversationSlot> Connection<T> {
    /// Reads once and delivers the input; returns how much of the budget that uses.
    pub(super) fn read_once(&mut self, buffer: &mut [u8], cx: &mut LoopCx) -> usize {
        match read(&self.socket, buffer, cx) {
            Ok(0) => {
                cx.call.readiness.remove(Readiness::READABLE);
                return self.step_without_input(ConversationEvent::Eof, cx);
            }
            Ok(count) => {
                self.last_activity = cx.turn.now;
                cx.read(count, buffer.len());
                if T::OFFLOADED && cx.call.readiness.has(Readiness::READ_CLOSED) {
                    return self.read_to_end(count, buffer, cx);
                }
                let fresh = &buffer[..count];
                return count.max(self.received(ConversationEvent::Receive(fresh), fresh, cx));
            }
            Err(error) => {
                if let Some(error) = connection_error(error, cx) {
                    self.on_read_error(error);
                }
            }
        }
        0
    }

    /// Reads until the end, so that one job delivers the last messages and the end. It reads at most the
    /// size of the buffer, which is the whole budget; `filled` bytes are in the buffer already.
    fn read_to_end(&mut self, mut filled: usize, buffer: &mut [u8], cx: &mut LoopCx) -> usize {
        let mut ended = false;
        while !ended && filled < buffer.len() && cx.call.readiness.has(Readiness::READABLE) {
            let rest = &mut buffer[filled..];
            match read(&self.socket, rest, cx) {
                Ok(count) => {
                    cx.read(count, rest.len());
                    filled += count;
                    ended = count == 0;
                }
                Err(error) => {
                    if let Some(error) = connection_error(error, cx) {
                        self.rare_mut().socket_error = Some(error);
                        break;
                    }
                }
            }
        }
        let fresh = &buffer[..filled];
        let event = match ended {
            true => ConversationEvent::ReceiveLast(fresh),
            false => ConversationEvent::Receive(fresh),
        };
        filled.max(self.received(event, fresh, cx))
    }

    /// Reads once, so that input that has already arrived shares the job of `on_open`.
    pub(super) fn read_at_open(&mut self, buffer: &mut [u8], cx: &mut LoopCx) {
        let event = match read(&self.socket, buffer, cx) {
            Ok(0) => ConversationEvent::ReceiveLast(&[]),
            Ok(count) => {
                cx.read(count, buffer.len());
                ConversationEvent::Receive(&buffer[..count])
            }
            Err(error) => {
                if let Some(error) = connection_error(error, cx) {
                    self.on_read_error(error);
                }
                ConversationEvent::Receive(&[])
            }
        };
        self.step_without_input(event, cx);
    }

    /// The connection is gone, and all input has been delivered.
    #[cold]
    pub(super) fn on_read_error(&mut self, error: io::Error) {
        if let Some(conversation) = self.conversation.local() {
            conversation.end(CloseReason::Disconnected(error));
        }
        self.write_buffer = None;
    }

    /// Delivers input; returns how much of the budget the answers use.
    #[inline(never)]
    fn received(&mut self, event: ConversationEvent<'_>, fresh: &[u8], cx: &mut LoopCx) -> usize {
        let (before, messages) = (delivered(cx), cx.scratch.tally.messages);
        let settled = self.step(event, self.room(), fresh, cx);
        self.after_step(cx.scratch.tally.messages - messages, cx);
        self.cost(settled, before, cx)
    }
}

/// The error of a failed connection. `None` if the read was interrupted, or if there is no input now.
fn connection_error(error: io::Error, cx: &mut LoopCx) -> Option<io::Error> {
    match error.kind() {
        io::ErrorKind::Interrupted => None,
        io::ErrorKind::WouldBlock => {
            cx.scratch.tally.wasted_reads += 1;
            cx.call.readiness.remove(Readiness::READABLE);
            cx.call.readiness.remove(Readiness::BOUNDARY);
            None
        }
        _ => Some(error),
    }
}
