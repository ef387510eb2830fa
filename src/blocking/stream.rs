//! The blocking driver of a conversation: one connection, served to its end on this thread.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use socket2::Socket;

use super::active::Registration;
use super::wait::{Input, Patience, Wait as _, WaitStrategy};
use super::{Served, Session, SessionCx};
use crate::address::Peer;
use crate::closing::{Linger, Lingering, Progress, write_failure};
use crate::conversation::{Conversation, Framing, Handler, SenderSource, StepCx};
use crate::encodable::Encodable;
use crate::error::{CloseReason, UnsupportedError};
use crate::sender::{Ending, SendQueue, Waker};
use crate::sys;
use crate::write_buffer::{WriteBuffer, send_segments};

/// A connection with its conversation, on its way to where it is served.
pub(crate) struct StreamSession<H, F> {
    pub(crate) socket: Arc<Socket>,
    pub(crate) conversation: Conversation<H, F>,
    /// How much output is collected before it is written.
    pub(crate) room: usize,
}

/// How a conversation that is served by blocking is reached from elsewhere.
struct ThreadSenders<'a> {
    registration: Option<&'a Registration>,
    unsupported: UnsupportedError,
    limit: usize,
}

impl SenderSource for ThreadSenders<'_> {
    fn send_queue(&self, encodable: Encodable) -> Result<Arc<SendQueue>, UnsupportedError> {
        let Some(registration) = self.registration else { return Err(self.unsupported) };
        let wakeup = registration.wakeup().map_err(|_| UnsupportedError::NoDescriptor)?;
        Ok(Arc::new(SendQueue::new(Waker::Thread(wakeup.clone()), self.limit, encodable)))
    }
}

impl<H: Handler, F: Framing> Session for StreamSession<H, F> {
    fn run(self: Box<Self>, cx: &mut SessionCx<'_>) -> Served {
        let StreamSession { socket, mut conversation, room } = *self;
        let mut buffer = std::mem::take(cx.buffer);
        let cut = talk(&socket, &mut conversation, room, &mut buffer, cx);
        let peer = conversation.peer().clone();
        cx.wait.over();
        let cut = cut || conversation.is_aborted() || cx.wait.is_cut();
        // The conversation is over, whatever its connection still waits for.
        let reason = conversation.closed(cx.tally);
        let ended = conversation.input_ended();
        let lingering = close(&socket, &peer, cut, ended, &mut buffer, cx);
        *cx.buffer = buffer;
        Served { peer, reason, cut, lingering }
    }
}

/// Serves the conversation until it is closing; returns whether output was lost.
fn talk<H: Handler, F: Framing>(
    socket: &Socket,
    conversation: &mut Conversation<H, F>,
    room: usize,
    buffer: &mut [u8],
    cx: &mut SessionCx<'_>,
) -> bool {
    let mut driver = Driver { socket, conversation, room, cut: false };
    let mut progress = Progress::default();
    driver.step(&[], cx, &|conversation, step_cx| conversation.open(step_cx));
    let mut input_next = false;
    while !driver.conversation.is_closing() {
        let queue = driver.conversation.send_queue();
        let has_messages = queue.is_some_and(|queue| !queue.is_empty());
        // The send queue and the input take turns, so that neither starves the other.
        if has_messages && !input_next {
            driver.step(&[], cx, &|conversation, step_cx| {
                conversation.drain_send_queue(step_cx);
            });
            input_next = true;
            continue;
        }
        input_next = false;
        if driver.conversation.is_blocked_on_output() {
            // The drain deadline ends the connection, however much input is left.
            if cx.wait.is_overdue() {
                driver.conversation.end(CloseReason::Shutdown);
                break;
            }
            driver.step(&[], cx, &|conversation, step_cx| conversation.receive(&[], step_cx));
            continue;
        }
        // Before the thread waits: something may have come since the queue was last looked at.
        let queue = driver.conversation.send_queue();
        if !has_messages && queue.is_some_and(|queue| queue.listen()) {
            continue;
        }
        driver.conversation.end_if_nothing_follows();
        if driver.conversation.is_closing() {
            break;
        }
        if has_messages && driver.conversation.input_ended() {
            continue;
        }
        match driver.wait_for_input(has_messages, buffer, cx) {
            // Only the kernel knows whether the peer takes its output; it is asked only here.
            Ok(Input::TimedOut) if progress.is_made(socket) => {}
            Ok(input) => driver.take_input(input, buffer, cx),
            Err(error) => driver.conversation.end(CloseReason::Disconnected(error)),
        }
    }
    driver.cut
}

/// A conversation with the socket that it is served on.
struct Driver<'a, H, F> {
    socket: &'a Socket,
    conversation: &'a mut Conversation<H, F>,
    /// How much output is collected before it is written, in bytes.
    room: usize,
    /// Output was lost.
    cut: bool,
}

impl<H: Handler, F: Framing> Driver<'_, H, F> {
    /// Takes a step of the conversation and writes its output.
    fn step(
        &mut self,
        fresh: &[u8],
        cx: &mut SessionCx<'_>,
        take: &dyn Fn(&mut Conversation<H, F>, &mut StepCx<'_>),
    ) {
        let Driver { socket, conversation, room, cut } = self;
        call(conversation, *room, cx, take);
        let mut sent = Ok(());
        if !conversation.is_aborted() {
            let (input, queue) = (conversation.input(fresh), conversation.send_queue());
            let queue = queue.map(|queue| &**queue);
            sent = send(socket, input, conversation.patience().into(), queue, cx);
        }
        cx.output_buffer.clear();
        conversation.consume_delivered(fresh);
        if let Err(failed) = sent {
            *cut |= !insist(socket, conversation, *room, failed, cx);
        }
    }

    /// Waits for input or messages; with messages that wait already it only looks for input.
    fn wait_for_input(
        &mut self,
        has_messages: bool,
        buffer: &mut [u8],
        cx: &mut SessionCx<'_>,
    ) -> io::Result<Input> {
        let conversation = &*self.conversation;
        if has_messages {
            return cx.wait.look(self.socket, buffer);
        }
        let timeout = conversation.timeout();
        if conversation.input_ended() {
            return cx.wait.rest(timeout);
        }
        let (idle, queue) = (conversation.is_idle(), conversation.send_queue().is_some());
        cx.wait.read(self.socket, buffer, timeout, idle, queue)
    }

    fn take_input(&mut self, input: Input, buffer: &[u8], cx: &mut SessionCx<'_>) {
        match input {
            Input::Bytes(0) => {
                self.step(&[], cx, &|conversation, step_cx| conversation.eof(step_cx));
            }
            Input::Bytes(count) => {
                cx.tally.bytes_in += count as u64;
                let fresh = &buffer[..count];
                self.step(fresh, cx, &|conversation, step_cx| conversation.receive(fresh, step_cx));
            }
            Input::SendQueue => {}
            Input::TimedOut => {
                self.step(&[], cx, &|conversation, step_cx| conversation.timed_out(step_cx));
            }
            Input::Stopping => self.conversation.end(CloseReason::Shutdown),
        }
    }
}

/// Calls the conversation; its output is collected.
fn call<H: Handler, F: Framing>(
    conversation: &mut Conversation<H, F>,
    room: usize,
    cx: &mut SessionCx<'_>,
    take: &dyn Fn(&mut Conversation<H, F>, &mut StepCx<'_>),
) {
    let unsupported = cx.no_sender;
    let registration = match cx.wait {
        WaitStrategy::Thread(registration) => Some(registration),
        _ => None,
    };
    let senders = ThreadSenders { registration, unsupported, limit: room };
    let mut step_cx = StepCx::new(cx.output_buffer, cx.tally, &senders, room);
    take(conversation, &mut step_cx);
    if step_cx.shutdown {
        (cx.on_shutdown)();
    }
}

/// What the kernel did not take, and why.
struct FailedWrite {
    unsent: WriteBuffer,
    error: io::Error,
}

/// Sends what is collected.
fn send(
    socket: &Socket,
    input: &[u8],
    patience: Patience,
    send_queue: Option<&SendQueue>,
    cx: &mut SessionCx<'_>,
) -> Result<(), FailedWrite> {
    let SessionCx { output_buffer, tally, wait, .. } = cx;
    if output_buffer.is_empty() {
        return Ok(());
    }
    let mut unsent = WriteBuffer::default();
    let written = match output_buffer.contiguous(input) {
        Some(bytes) => {
            let mut left = bytes;
            let written = wait.write_all(socket, &mut left, false, patience, send_queue);
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
            wait.flush(socket, &mut unsent, patience, send_queue, &mut tally.bytes_out)
        }),
    };
    written.map_err(|error| FailedWrite { unsent, error })
}

/// Asks the handler about a peer that takes no output, each time that its timeout has passed, until
/// all is sent; whether it was.
#[cold]
fn insist<H: Handler, F: Framing>(
    socket: &Socket,
    conversation: &mut Conversation<H, F>,
    room: usize,
    failed: FailedWrite,
    cx: &mut SessionCx<'_>,
) -> bool {
    let FailedWrite { mut unsent, mut error } = failed;
    loop {
        let late = error.kind() == io::ErrorKind::TimedOut;
        match conversation.ending() {
            // As a sender has asked for.
            Ending::Aborted => {
                conversation.abort();
                return false;
            }
            Ending::Closing if late => {
                conversation.abort();
                return false;
            }
            _ => {}
        }
        if !late {
            conversation.end(match cx.wait.is_cut() {
                true => CloseReason::Shutdown,
                false => write_failure(error),
            });
            return false;
        }
        if conversation.is_closing() {
            return false;
        }
        call(conversation, room, cx, &|conversation, step_cx| conversation.timed_out(step_cx));
        if conversation.is_aborted() {
            cx.output_buffer.clear();
            return false;
        }
        unsent.keep(cx.output_buffer, &[], 0);
        cx.output_buffer.clear();
        let send_queue = conversation.send_queue().map(|send_queue| &**send_queue);
        let patience = conversation.patience().into();
        let bytes_out = &mut cx.tally.bytes_out;
        match cx.wait.flush(socket, &mut unsent, patience, send_queue, bytes_out) {
            Ok(()) => return true,
            Err(next) => error = next,
        }
    }
}

/// Closes a connection, so that its output arrives, or, where it is cut, so that it does not look
/// whole. What lingers is left to who asked for it, where it takes it.
pub(super) fn close(
    socket: &Arc<Socket>,
    peer: &Peer,
    cut: bool,
    ended: bool,
    buffer: &mut [u8],
    cx: &mut SessionCx<'_>,
) -> Option<Lingering> {
    if cut {
        sys::reset_on_close(socket);
    } else if !ended && let Some(mut linger) = Linger::begin(socket, peer, buffer, Instant::now()) {
        if cx.leaves_lingering {
            return Some(Lingering { socket: socket.clone(), linger });
        }
        linger_here(socket, &mut linger, buffer, cx);
    }
    cx.tally.closed += 1;
    None
}

/// Discards input until the peer has ended or has all of its output; [`Linger`] bounds it. The
/// connection is not idle meanwhile: a stop leaves it some time, because a close at once would let late
/// input reset the connection and cut the output.
fn linger_here(socket: &Socket, linger: &mut Linger, buffer: &mut [u8], cx: &mut SessionCx<'_>) {
    let was_stopping = cx.wait.is_stopping();
    loop {
        let now = Instant::now();
        if !was_stopping && cx.wait.is_stopping() {
            linger.hurry(now);
        }
        if linger.is_done(socket, now) {
            return;
        }
        let pause = Some(linger.next().saturating_duration_since(now));
        match cx.wait.read(socket, buffer, pause, false, false) {
            Ok(Input::TimedOut) => {}
            Ok(Input::Bytes(count @ 1..)) if !linger.discard(count) => {}
            _ => return,
        }
    }
}
