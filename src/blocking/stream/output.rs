//! The output of a blocking session: it is sent before the session continues.

use std::io;

use super::{SessionLimits, call, is_timer_due};
use crate::blocking::SessionCx;
use crate::blocking::limits::SessionMemory;
use crate::blocking::wait::{Wait as _, WaitStrategy};
use crate::blocking::wait_limits::{Stall, WaitLimits};
use crate::closing::write_failure;
use crate::conversation::{Conversation, Framing, Handler};
use crate::error::{CloseReason, Limit};
use crate::sender::Ending;
use crate::server_state::StopRequester;
use crate::sys::Socket;
use crate::write_buffer::{WriteBuffer, send_segments};

/// How a send waits for its peer.
fn wait_limits<H: Handler, F: Framing>(
    conversation: &Conversation<H, F>,
    limits: &SessionLimits,
) -> WaitLimits {
    WaitLimits {
        timeout: conversation.output_timeout(),
        deadline: conversation.timer(),
        // A connection that closes has a timeout of its own.
        write_timeout: limits.peer.write_timeout.filter(|_| !conversation.is_closing()),
    }
}

/// The output that the kernel did not take, and the error.
pub(super) struct FailedWrite {
    unsent: WriteBuffer,
    error: io::Error,
    stall: Stall,
}

/// Sends the collected output; returns whether it had to wait for the peer.
pub(super) fn send<H: Handler, F: Framing>(
    socket: &Socket,
    conversation: &Conversation<H, F>,
    limits: &SessionLimits,
    input: &[u8],
    memory: &mut SessionMemory,
    cx: &mut SessionCx<'_>,
) -> Result<bool, Box<FailedWrite>> {
    let SessionCx { scratch, wait, stop, .. } = cx;
    let (output_buffer, tally) = (&mut scratch.output_buffer, &mut scratch.tally);
    let send_queue = conversation.send_queue().map(|send_queue| &**send_queue);
    let mut stall = Stall::from(wait_limits(conversation, limits));
    let mut unsent = WriteBuffer::default();
    let written = match output_buffer.contiguous(input) {
        Some(bytes) => {
            let mut left = bytes;
            let mut written = wait.write_now(socket, &mut left);
            if !left.is_empty() && written.is_ok() {
                written = hold(memory, conversation.held() + bytes.len(), stop, wait);
                if written.is_ok() {
                    written = wait.write_all(socket, &mut left, false, &mut stall, send_queue);
                }
            }
            let sent = bytes.len() - left.len();
            tally.bytes_out += sent as u64;
            if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
                unsent.keep(output_buffer, input, sent);
            }
            written
        }
        None => send_segments(socket, output_buffer, input).and_then(|(sent, _)| {
            tally.bytes_out += sent as u64;
            unsent.keep(output_buffer, input, sent);
            if !unsent.is_empty() {
                hold(memory, conversation.held() + unsent.held(), stop, wait)?;
            }
            wait.flush(socket, &mut unsent, &mut stall, send_queue, &mut tally.bytes_out)
        }),
    };
    match written {
        Ok(()) => Ok(stall.has_waited()),
        Err(error) => Err(Box::new(FailedWrite { unsent, error, stall })),
    }
}

/// Counts the memory that waiting output takes.
///
/// # Errors
///
/// It is too much, and nobody but the session itself can end it.
fn hold(
    memory: &mut SessionMemory,
    bytes: usize,
    stop: &StopRequester,
    wait: &WaitStrategy<'_>,
) -> io::Result<()> {
    memory.hold(bytes, stop, wait);
    match memory.limit() {
        Some(_) => Err(io::ErrorKind::ConnectionReset.into()),
        None => Ok(()),
    }
}

/// Retries a write to a peer that takes no output; returns whether all output was sent. Meanwhile it
/// calls the handler when its timer has expired, and each time that its idle timeout has passed.
#[cold]
pub(super) fn retry_write<H: Handler, F: Framing>(
    socket: &Socket,
    conversation: &mut Conversation<H, F>,
    limits: &SessionLimits,
    failed: FailedWrite,
    memory: &mut SessionMemory,
    cx: &mut SessionCx<'_>,
) -> bool {
    let FailedWrite { mut unsent, mut error, mut stall } = failed;
    loop {
        let has_stalled = stall.take_timed_out();
        if !may_retry(conversation, limits, has_stalled, error, &stall, memory, cx) {
            return false;
        }
        // What waits takes up room.
        let room = limits.room.saturating_sub(unsent.len());
        call(conversation, limits.sender, room, cx, &|conversation, step_cx| {
            if is_timer_due(conversation) {
                conversation.timer_expired(step_cx);
            }
            if has_stalled && !conversation.is_closing() {
                conversation.idle_timed_out(step_cx);
            }
        });
        if conversation.is_aborted() {
            cx.scratch.output_buffer.clear();
            return false;
        }
        if conversation.is_closing() {
            stall.restart();
        }
        stall.set_wait_limits(wait_limits(conversation, limits));
        unsent.keep(&mut cx.scratch.output_buffer, &[], 0);
        cx.scratch.output_buffer.clear();
        let held = hold(memory, conversation.held() + unsent.held(), cx.stop, &cx.wait);
        let send_queue = conversation.send_queue().map(|send_queue| &**send_queue);
        let bytes_out = &mut cx.scratch.tally.bytes_out;
        let flushed = held
            .and_then(|()| cx.wait.flush(socket, &mut unsent, &mut stall, send_queue, bytes_out));
        match flushed {
            Ok(()) => return true,
            Err(next) => error = next,
        }
    }
}

/// Whether a write that has failed with this error is continued. If not, the conversation has ended.
fn may_retry<H: Handler, F: Framing>(
    conversation: &mut Conversation<H, F>,
    limits: &SessionLimits,
    has_stalled: bool,
    error: io::Error,
    stall: &Stall,
    memory: &SessionMemory,
    cx: &mut SessionCx<'_>,
) -> bool {
    let ending = conversation.ending();
    // A `Sender` has aborted the connection.
    if ending == Ending::Aborted || (ending == Ending::Closing && has_stalled) {
        conversation.abort();
        return false;
    }
    let write_timeout = stall.write_timed_out().then_some(Limit::WriteTimeout);
    if let Some(limit) = cx.wait.limit().or(memory.limit()).or(write_timeout) {
        if !limit.resets() {
            // What it says is dropped: the peer takes no output.
            call(conversation, limits.sender, 0, cx, &|conversation, step_cx| {
                conversation.exceed(limit, step_cx);
            });
            cx.scratch.output_buffer.clear();
        }
        conversation.end(CloseReason::Limit(limit));
        return false;
    }
    if error.kind() != io::ErrorKind::TimedOut {
        conversation.end(match cx.wait.is_cut() {
            true => CloseReason::Shutdown,
            false => write_failure(error),
        });
        return false;
    }
    !conversation.is_closing()
}
