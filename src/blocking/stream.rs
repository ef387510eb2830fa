//! The blocking driver of a conversation: one connection, served to its end on this thread.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::active::Registration;
use super::wait::{Input, WaitStrategy};
use super::{Served, Session, SessionCx};
use crate::address::Peer;
use crate::closing::{Linger, Lingering, Progress};
use crate::connection_id::ConnectionId;
use crate::conversation::{
    Conversation, Driver, Framing, Handler, OutputBuffer, StepCx, Unsent, Work,
};
use crate::encodable::Encodable;
use crate::error::{CloseReason, UnsupportedError};
use crate::sender::{Ending, SendQueue, Waker};
use crate::server_state::StopRequester;
use crate::sys::{self, PollInterest};

/// A connection with its conversation, on its way to where it is served.
pub(crate) struct StreamSession<H, F> {
    pub(crate) socket: Arc<Socket>,
    pub(crate) conversation: Conversation<H, F>,
    /// How much output is collected before it is written.
    pub(crate) room: usize,
}

/// The thread that serves a conversation by blocking.
struct ThreadDriver<'a> {
    registration: Option<&'a Registration>,
    unsupported: UnsupportedError,
    limit: usize,
    stop: &'a StopRequester,
}

impl Driver for ThreadDriver<'_> {
    fn send_queue(
        &self,
        _id: ConnectionId,
        _peer: &Peer,
        encodable: Encodable,
    ) -> Result<Arc<SendQueue>, UnsupportedError> {
        let Some(registration) = self.registration else { return Err(self.unsupported) };
        let wakeup = registration.wakeup().map_err(|_| UnsupportedError::NoDescriptor)?;
        Ok(Arc::new(SendQueue::new(Waker::Thread(wakeup.clone()), self.limit, encodable)))
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn request_stop(&self) {
        self.stop.request();
    }
}

impl<H: Handler, F: Framing> Session for StreamSession<H, F> {
    fn run(self: Box<Self>, cx: &mut SessionCx<'_>) -> Served {
        let StreamSession { socket, mut conversation, room } = *self;
        let mut buffer = std::mem::take(&mut cx.scratch.buffer);
        let cut = talk(&socket, &mut conversation, room, &mut buffer, cx);
        let peer = conversation.peer().clone();
        cx.wait.over();
        let cut = cut || conversation.is_aborted() || cx.wait.is_cut();
        // The conversation is over, whatever its connection still waits for.
        let reason = conversation.closed(&mut cx.scratch.tally);
        let ended = conversation.input_ended();
        let lingering = close(&socket, &peer, cut, ended, &mut buffer, cx);
        cx.scratch.buffer = buffer;
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
    let mut pump = StreamPump::new(socket, conversation, room);
    pump.step(&[], cx, &|conversation, step_cx| conversation.open(step_cx));
    let mut last_work = Work::Input;
    while !pump.conversation.is_closing() {
        if pump.take_due(cx) {
            continue;
        }
        let conversation = &*pump.conversation;
        let has_messages = conversation.send_queue().is_some_and(|queue| !queue.is_empty());
        let wants_writable = conversation.wants_writable();
        let work = Work::next(last_work, |work| match work {
            Work::SendQueue => has_messages,
            Work::Writable => wants_writable,
            Work::Input => true,
        });
        last_work = work.unwrap_or(Work::Input);
        match last_work {
            Work::SendQueue => pump.step(&[], cx, &|conversation, step_cx| {
                conversation.drain_send_queue(step_cx);
            }),
            Work::Writable if pump.is_overdue(cx) => {}
            Work::Writable => {
                pump.step(&[], cx, &|conversation, step_cx| conversation.writable(step_cx));
            }
            Work::Input => pump.input(has_messages || wants_writable, buffer, cx),
        }
    }
    pump.cut
}

/// A conversation with the socket that it is served on.
struct StreamPump<'a, H, F> {
    socket: &'a Socket,
    conversation: &'a mut Conversation<H, F>,
    /// How much output is collected before it is written, in bytes.
    room: usize,
    /// Output was lost.
    cut: bool,
    /// What the peer has taken of its output.
    progress: Progress,
    /// Since when no byte has moved, as far as a wait has begun since.
    idle_since: Option<Instant>,
    /// The end of a peer has been seen whose input is paused.
    end_seen: bool,
}

impl<'a, H: Handler, F: Framing> StreamPump<'a, H, F> {
    fn new(socket: &'a Socket, conversation: &'a mut Conversation<H, F>, room: usize) -> Self {
        StreamPump {
            socket,
            conversation,
            room,
            cut: false,
            progress: Progress::default(),
            idle_since: None,
            end_seen: false,
        }
    }

    /// Takes a step of the conversation and writes its output.
    fn step(
        &mut self,
        fresh: &[u8],
        cx: &mut SessionCx<'_>,
        take: &dyn Fn(&mut Conversation<H, F>, &mut StepCx<'_>),
    ) {
        let StreamPump { socket, conversation, room, cut, idle_since, .. } = self;
        call(conversation, *room, cx, take);
        let mut sent = Ok(());
        if !conversation.is_aborted() && !cx.scratch.output_buffer.is_empty() {
            *idle_since = None;
            let (input, queue) = (conversation.input(fresh), conversation.send_queue());
            let queue = queue.map(|queue| &**queue);
            sent = send(socket, input, write_timeout(conversation), queue, cx);
        }
        cx.scratch.output_buffer.clear();
        conversation.consume_delivered(fresh);
        if let Err(failed) = sent {
            *cut |= !insist(socket, conversation, *room, failed, cx);
        }
        if !conversation.is_fast() && !conversation.is_closing() && conversation.take_output_end() {
            // It fails where the peer is gone, which the next read reports.
            let _ = socket.shutdown(Shutdown::Write);
        }
    }

    /// Tells the handler that the server stops or that its timer has expired, if that is due.
    fn take_due(&mut self, cx: &mut SessionCx<'_>) -> bool {
        if !self.conversation.is_stop_notified() && cx.wait.is_stopping() {
            self.step(&[], cx, &|conversation, step_cx| conversation.stop(step_cx));
            return true;
        }
        let is_due = is_timer_due(self.conversation);
        if is_due {
            self.step(&[], cx, &|conversation, step_cx| conversation.timer_expired(step_cx));
        }
        is_due
    }

    /// Ends the connection if the drain deadline has passed, however much is left to do.
    fn is_overdue(&mut self, cx: &mut SessionCx<'_>) -> bool {
        let is_overdue = cx.wait.is_overdue();
        if is_overdue {
            self.conversation.end(CloseReason::Shutdown);
        }
        is_overdue
    }

    /// Delivers input that was left, or waits for input; with other work to do it does not wait.
    fn input(&mut self, has_other_work: bool, buffer: &mut [u8], cx: &mut SessionCx<'_>) {
        if self.conversation.has_blocked_input() {
            if !self.is_overdue(cx) {
                self.step(&[], cx, &|conversation, step_cx| conversation.receive(&[], step_cx));
            }
            return;
        }
        // Before the thread waits: something may have come since the queue was last looked at.
        let queue = self.conversation.send_queue();
        if !has_other_work && queue.is_some_and(|queue| queue.listen()) {
            return;
        }
        self.conversation.end_if_nothing_follows();
        let is_read = !self.conversation.input_ended() && !self.conversation.is_paused();
        if self.conversation.is_closing() || (has_other_work && !is_read) {
            return;
        }
        match self.wait_for_input(has_other_work, is_read, buffer, cx) {
            Ok(Input::TimedOut) if is_timer_due(self.conversation) => {}
            // Only the kernel knows whether the peer takes its output; it is asked only here.
            Ok(Input::TimedOut) if self.progress.is_made(self.socket) => self.idle_since = None,
            Ok(input) => self.take_input(input, buffer, cx),
            Err(error) => self.conversation.end(CloseReason::Disconnected(error)),
        }
    }

    /// Waits for input, messages, the stop or a deadline; with other work it only looks for input.
    fn wait_for_input(
        &mut self,
        has_other_work: bool,
        is_read: bool,
        buffer: &mut [u8],
        cx: &mut SessionCx<'_>,
    ) -> io::Result<Input> {
        if has_other_work {
            return cx.wait.look(self.socket, buffer);
        }
        let timeout = self.wait_timeout();
        let conversation = &*self.conversation;
        let idle = conversation.is_idle();
        if is_read {
            // Without a message in part only the peer matters, unless others may send.
            let others = conversation.send_queue().is_some() || !idle;
            return cx.wait.read(self.socket, buffer, timeout, idle, others);
        }
        if conversation.input_ended() {
            return cx.wait.rest(None, timeout, idle);
        }
        let interest = if self.end_seen { PollInterest::Failure } else { PollInterest::End };
        match cx.wait.rest(Some((self.socket, interest)), timeout, idle)? {
            Input::Bytes(_) if self.end_seen => Err(failure(self.socket)),
            Input::Bytes(_) => {
                self.end_seen = true;
                let at_end = sys::is_at_end(self.socket)?;
                let nothing_precedes = !self.conversation.has_undelivered_input();
                Ok(if at_end && nothing_precedes { Input::Bytes(0) } else { Input::Woken })
            }
            other => Ok(other),
        }
    }

    /// How long a wait may take: until the idle timeout or the timer.
    fn wait_timeout(&mut self) -> Option<Duration> {
        let (idle_timeout, timer) = (self.conversation.idle_timeout(), self.conversation.timer());
        if idle_timeout.is_none() && timer.is_none() {
            return None;
        }
        let now = Instant::now();
        let since = *self.idle_since.get_or_insert(now);
        let idle = idle_timeout.and_then(|timeout| since.checked_add(timeout));
        let until = idle.into_iter().chain(timer).min()?;
        Some(until.saturating_duration_since(now))
    }

    fn take_input(&mut self, input: Input, buffer: &[u8], cx: &mut SessionCx<'_>) {
        match input {
            Input::Bytes(0) => {
                self.step(&[], cx, &|conversation, step_cx| conversation.eof(step_cx));
            }
            Input::Bytes(count) => {
                (self.idle_since, self.end_seen) = (None, false);
                cx.scratch.tally.bytes_in += count as u64;
                let fresh = &buffer[..count];
                self.step(fresh, cx, &|conversation, step_cx| conversation.receive(fresh, step_cx));
            }
            Input::Woken => {}
            Input::TimedOut => {
                self.idle_since = None;
                self.step(&[], cx, &|conversation, step_cx| conversation.idle_timed_out(step_cx));
            }
            Input::Stopping if !self.conversation.is_stop_notified() => {
                self.step(&[], cx, &|conversation, step_cx| conversation.stop(step_cx));
            }
            Input::Stopping => self.conversation.end(CloseReason::Shutdown),
        }
    }
}

/// Whether the timer of the handler has expired.
fn is_timer_due<H: Handler, F: Framing>(conversation: &Conversation<H, F>) -> bool {
    conversation.timer().is_some_and(|timer| timer <= Instant::now())
}

/// How long a write may wait for a peer that takes nothing: its patience, or until the timer.
fn write_timeout<H: Handler, F: Framing>(conversation: &Conversation<H, F>) -> Option<Duration> {
    let timer = conversation.timer();
    let timer = timer.map(|timer| timer.saturating_duration_since(Instant::now()));
    conversation.patience().into_iter().chain(timer).min()
}

/// Why a connection has failed that is not read.
fn failure(socket: &Socket) -> io::Error {
    socket.take_error().ok().flatten().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
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
    let driver = ThreadDriver { registration, unsupported, limit: room, stop: cx.stop };
    let mut step_cx = cx.scratch.step_cx(&driver, room);
    take(conversation, &mut step_cx);
}

/// What the kernel did not take, and why.
struct FailedWrite {
    bytes: Vec<u8>,
    error: io::Error,
}

/// Sends what is collected.
fn send(
    socket: &Socket,
    input: &[u8],
    timeout: Option<Duration>,
    send_queue: Option<&SendQueue>,
    cx: &mut SessionCx<'_>,
) -> Result<(), FailedWrite> {
    let total = cx.scratch.output_buffer.len();
    if total == 0 {
        return Ok(());
    }
    let mut left = total;
    let mut write = |mut part: &[u8]| {
        left -= part.len();
        let written = cx.wait.write_all(socket, &mut part, timeout, send_queue);
        left += part.len();
        written
    };
    let written = match cx.scratch.output_buffer.contiguous(input) {
        Some(bytes) => write(bytes),
        None => cx.scratch.output_buffer.parts(input).try_for_each(write),
    };
    cx.scratch.tally.bytes_out += (total - left) as u64;
    written.map_err(|error| {
        let mut bytes = Vec::new();
        if error.kind() == io::ErrorKind::TimedOut {
            keep(&mut cx.scratch.output_buffer, input, total - left, &mut bytes);
        }
        FailedWrite { bytes, error }
    })
}

/// Appends what `outgoing` holds after its first `sent` bytes.
fn keep(output_buffer: &mut OutputBuffer, input: &[u8], sent: usize, bytes: &mut Vec<u8>) {
    output_buffer.unsent(input, sent, |rest| match rest {
        Unsent::Bytes(part) => bytes.extend_from_slice(part),
        Unsent::Shared(payload, range) => bytes.extend_from_slice(&payload[range]),
    });
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
    let FailedWrite { mut bytes, mut error } = failed;
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
        if !late || bytes.is_empty() {
            conversation.end(match cx.wait.is_cut() {
                true => CloseReason::Shutdown,
                false => CloseReason::Disconnected(error),
            });
            return false;
        }
        if conversation.is_closing() {
            return false;
        }
        if is_timer_due(conversation) {
            call(conversation, room, cx, &|conversation, step_cx| {
                conversation.timer_expired(step_cx);
            });
        } else {
            call(conversation, room, cx, &|conversation, step_cx| {
                conversation.idle_timed_out(step_cx);
            });
        }
        if conversation.is_aborted() {
            cx.scratch.output_buffer.clear();
            return false;
        }
        keep(&mut cx.scratch.output_buffer, &[], 0, &mut bytes);
        cx.scratch.output_buffer.clear();
        let mut left = &bytes[..];
        let send_queue = conversation.send_queue().map(|send_queue| &**send_queue);
        let timeout = write_timeout(conversation);
        let written = cx.wait.write_all(socket, &mut left, timeout, send_queue);
        let sent = bytes.len() - left.len();
        cx.scratch.tally.bytes_out += sent as u64;
        match written {
            Ok(()) => return true,
            Err(next) => error = next,
        }
        bytes.drain(..sent);
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
    cx.scratch.tally.closed += 1;
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
