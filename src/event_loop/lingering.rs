//! Lingering connections: the handler has closed them, and their input is discarded until the peer
//! has its output.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use super::source::{EventSource, LoopCx, PostAction, RunState};
use crate::closing::{Linger, Lingering, Progress};
use crate::error::Limit;
use crate::limits::Retirement;
use crate::permits::ConnectionPermit;
use crate::sys::Socket;

/// A connection that was served by blocking on the loop's thread and now lingers on the loop, so
/// that the thread can serve the next one.
pub(crate) struct LingeringConnection(Lingering);

impl LingeringConnection {
    /// # Errors
    ///
    /// The socket cannot be set to non-blocking.
    pub(crate) fn new(lingering: Lingering) -> io::Result<Self> {
        lingering.socket.set_nonblocking(true)?;
        Ok(LingeringConnection(lingering))
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.0.socket.as_raw_fd()
    }

    fn check(&mut self, cx: &mut LoopCx) -> PostAction {
        let Lingering { socket, linger } = &mut self.0;
        cx.with_buffer(|buffer, cx| linger_on(socket, linger, buffer, cx))
    }
}

impl EventSource for LingeringConnection {
    fn is_request(&self) -> bool {
        false
    }

    fn opened(&mut self, cx: &mut LoopCx) -> PostAction {
        self.check(cx)
    }

    fn ready(&mut self, cx: &mut LoopCx) -> PostAction {
        self.check(cx)
    }

    fn deadline(&self, _run: &RunState) -> Option<Instant> {
        Some(self.0.linger.next())
    }

    fn expired(&mut self, cx: &mut LoopCx) -> PostAction {
        self.check(cx)
    }

    fn stop(&mut self, cx: &mut LoopCx) -> PostAction {
        self.0.linger.shorten(cx.turn.now);
        self.check(cx)
    }

    fn finish(&mut self, cx: &mut LoopCx) {
        cx.scratch.tally.closed += 1;
        cx.turn.capacity_freed = true;
    }
}

/// Discards input until the peer has ended or has all of its output; [`Linger`] limits it.
pub(super) fn linger_on(
    socket: &Socket,
    linger: &mut Linger,
    buffer: &mut [u8],
    cx: &mut LoopCx,
) -> PostAction {
    if linger.drain(socket, buffer) || linger.is_done(socket, cx.turn.now) {
        return PostAction::Remove;
    }
    cx.deadline_changed();
    PostAction::Wait
}

/// State that few connections have; boxed, so that an idle connection stays small.
#[derive(Default)]
pub(super) struct Rare {
    /// The conversation is closed; input is discarded until the peer has its output.
    pub(super) linger: Option<Linger>,
    /// The socket failed while a worker had the conversation or was to get it first; the conversation has
    /// yet to be closed for that.
    pub(super) socket_error: Option<io::Error>,
    /// A limit was reached while a worker had the conversation.
    pub(super) limit: Option<Limit>,
    /// Its place among the connections of its listener.
    pub(super) permit: Option<ConnectionPermit>,
    /// When the connection was accepted, if its age or its first message is limited.
    pub(super) accepted: Option<Instant>,
    /// Whether it closes when all is answered, if its age or the number of its messages is limited.
    pub(super) retirement: Retirement,
    /// The time in which the peer takes no output, while output waits.
    pub(super) stall: Option<WriteStall>,
    /// Since when the write buffer has been at the high mark, without falling to the low mark.
    pub(super) full_since: Option<Instant>,
    /// It waits in the list of connections that are read when there is memory again.
    pub(super) starved: bool,
    /// A notification came while a worker had the conversation.
    pub(super) missed_notification: bool,
    /// The conversation is closing, and the kernel has been asked since how much output it holds.
    pub(super) kernel_asked: bool,
    /// The connection was idle when the server began to stop.
    pub(super) idle_at_stop: bool,
}

/// The progress of a peer while output waits for it.
pub(super) struct WriteStall {
    /// When the peer last took output, as far as that is known; `None` before the first check.
    pub(super) since: Option<Instant>,
    pub(super) progress: Progress,
    /// When the kernel is asked again.
    pub(super) next_check: Instant,
}
