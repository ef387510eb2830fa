//! Lingering connections: the handler has closed them, and their input is discarded until the peer
//! has its output.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use super::source::{EventSource, LoopCx, PostAction};
use crate::closing::{Linger, Lingering};
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

    fn deadline(&self) -> Option<Instant> {
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

/// Rare state of a connection; boxed, so that an idle connection stays small.
pub(super) enum Rare {
    /// The conversation is closed; input is discarded until the peer has its output.
    Lingering(Linger),
    /// The socket failed while a worker had the conversation or was to get it first; the conversation has
    /// yet to be closed for that.
    SocketError(io::Error),
}
