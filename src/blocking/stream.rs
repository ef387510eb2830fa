//! The blocking driver of a conversation: one connection, served to its end on this thread.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::active::Registration;
use super::wait::{Input, Wait as _, WaitStrategy};
use super::wait_limits::{Stall, WaitLimits};
use super::{Served, Session, SessionCx};
use crate::address::{LogPeer, Peer};
use crate::closing::{Linger, Lingering, Progress, failure, write_failure};
use crate::conversation::{Conversation, Driver, Framing, Handler, StepCx, Work};
use crate::error::{CloseReason, UnsupportedError};
use crate::sender::{Ending, Recipient, SendQueue, SenderLimit, Waker};
use crate::server_state::StopRequester;
use crate::sys::{self, PollInterest, Socket};
use crate::write_buffer::{WriteBuffer, send_segments};

/// A connection with its conversation, ready to be served.
pub(crate) struct StreamSession<H, F> {
    pub(crate) socket: Arc<Socket>,
    pub(crate) conversation: Conversation<H, F>,
    pub(crate) limits: SessionLimits,
}

/// The output limits of a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionLimits {
    /// How much output is collected before it is written, in bytes.
    pub(crate) room: usize,
    pub(crate) sender: SenderLimit,
}

/// The driver of a conversation that a thread serves with blocking calls.
struct ThreadDriver<'a> {
    registration: Option<&'a Registration>,
    unsupported: UnsupportedError,
    limit: SenderLimit,
    stop: &'a StopRequester,
}

impl Driver for ThreadDriver<'_> {
    fn send_queue(&self, recipient: Recipient) -> Result<Arc<SendQueue>, UnsupportedError> {
        let Some(registration) = self.registration else { return Err(self.unsupported) };
        let wakeup = registration.wakeup().map_err(|_| UnsupportedError::NoDescriptor)?;
        Ok(Arc::new(SendQueue::new(Waker::Thread(wakeup.clone()), self.limit, recipient)))
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
        let StreamSession { socket, mut conversation, limits } = *self;
        let mut buffer = std::mem::take(&mut cx.scratch.buffer);
        let cut = serve(&socket, &mut conversation, limits, &mut buffer, cx);
        let peer = conversation.peer().clone();
        cx.wait.set_ended();
        let cut = cut || conversation.is_aborted() || cx.wait.is_cut();
        // The conversation ends here, before its connection lingers.
        let reason = conversation.closed(&mut cx.scratch.tally);
        let ended = conversation.input_ended();
        let lingering = close(&socket, &peer, cut, ended, &mut buffer, cx);
        cx.scratch.buffer = buffer;
        let origin = LogPeer { id: conversation.id(), peer };
        Served { origin, reason, cut, lingering }
    }
}

/// Serves the conversation until it is closing; returns whether output was lost.
fn serve<H: Handler, F: Framing>(
    socket: &Socket,
    conversation: &mut Conversation<H, F>,
    limits: SessionLimits,
    buffer: &mut [u8],
    cx: &mut SessionCx<'_>,
) -> bool {
    let mut pump = StreamPump::new(socket, conversation, limits);
    pump.step(&[], cx, &|conversation, step_cx| conversation.open(step_cx));
    let mut last_work = Work::Input;
    while !pump.conversation.is_closing() {
        if pump.notify_stop(cx) {
            continue;
        }
        let conversation = &*pump.conversation;
        let has_messages = conversation.send_queue().is_some_and(|queue| !queue.is_empty());
        let wants_writable = conversation.wants_writable();
        let has_expired = is_timer_due(conversation);
        let work = Work::next(last_work, |work| match work {
            Work::SendQueue => has_messages,
            Work::Writable => wants_writable,
            Work::Timer => has_expired,
            Work::Input => true,
        });
        last_work = work.unwrap_or(Work::Input);
        match last_work {
            Work::Input => pump.input(has_messages || wants_writable || has_expired, buffer, cx),
            _ if pump.is_overdue(cx) => {}
            Work::SendQueue => pump.step(&[], cx, &|conversation, step_cx| {
                conversation.drain_send_queue(SendQueue::take, step_cx);
            }),
            Work::Timer => {
                pump.step(&[], cx, &|conversation, step_cx| conversation.timer_expired(step_cx));
            }
            Work::Writable => {
                pump.step(&[], cx, &|conversation, step_cx| conversation.writable(step_cx));
            }
        }
    }
    pump.cut
}

/// A conversation with the socket that it is served on.
struct StreamPump<'a, H, F> {
    socket: &'a Socket,
    conversation: &'a mut Conversation<H, F>,
    limits: SessionLimits,
    /// Whether output was lost.
    cut: bool,
    /// How much output the peer has taken.
    progress: Progress,
    /// Since when no byte has been sent or received; set when a wait begins.
    idle_since: Option<Instant>,
    /// The end of the peer, as far as the kernel has reported it while the input was paused.
    peer_end: PeerEnd,
}

/// The end of a peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PeerEnd {
    Unseen,
    /// The peer has ended its output.
    Seen,
    /// The peer has closed the connection, and input from before that is still to be delivered.
    Closed,
}

impl<'a, H: Handler, F: Framing> StreamPump<'a, H, F> {
    fn new(
        socket: &'a Socket,
        conversation: &'a mut Conversation<H, F>,
        limits: SessionLimits,
    ) -> Self {
        StreamPump {
            socket,
            conversation,
            limits,
            cut: false,
            progress: Progress::default(),
            idle_since: None,
            peer_end: PeerEnd::Unseen,
        }
    }

    /// Runs a step of the conversation and writes its output.
    fn step(
        &mut self,
        fresh: &[u8],
        cx: &mut SessionCx<'_>,
        take: &dyn Fn(&mut Conversation<H, F>, &mut StepCx<'_>),
    ) {
        let StreamPump { socket, conversation, limits, cut, idle_since, .. } = self;
        call(conversation, *limits, cx, take);
        let mut sent = Ok(());
        if !conversation.is_aborted() && !cx.scratch.output_buffer.is_empty() {
            *idle_since = None;
            sent = send(socket, conversation, conversation.input(fresh), cx);
        }
        cx.scratch.output_buffer.clear();
        conversation.consume_delivered(fresh);
        if let Err(failed) = sent {
            *cut |= !retry_write(socket, conversation, *limits, failed, cx);
        }
        if !conversation.is_fast() && !conversation.is_closing() && conversation.take_output_end() {
            // It fails if the peer is gone, which the next read reports.
            let _ = socket.shutdown(Shutdown::Write);
        }
    }

    /// Calls the handler's `on_stop` once, if the server is stopping.
    fn notify_stop(&mut self, cx: &mut SessionCx<'_>) -> bool {
        let is_due = !self.conversation.is_stop_notified() && cx.wait.is_stopping();
        if is_due {
            self.step(&[], cx, &|conversation, step_cx| conversation.stop(step_cx));
        }
        is_due
    }

    /// Aborts the connection if the drain deadline has passed.
    fn is_overdue(&mut self, cx: &mut SessionCx<'_>) -> bool {
        let is_overdue = cx.wait.is_overdue();
        if is_overdue {
            self.conversation.end(CloseReason::Shutdown);
        }
        is_overdue
    }

    /// Delivers buffered input, or waits for input; with other work to do it does not wait.
    fn input(&mut self, has_other_work: bool, buffer: &mut [u8], cx: &mut SessionCx<'_>) {
        if self.conversation.has_blocked_input() {
            if !self.is_overdue(cx) {
                self.step(&[], cx, &|conversation, step_cx| conversation.receive(&[], step_cx));
            }
            return;
        }
        // Before the thread waits: a message may have come since the queue was last checked.
        let queue = self.conversation.send_queue();
        if !has_other_work && queue.is_some_and(|queue| queue.enable_notification()) {
            return;
        }
        self.conversation.end_if_nothing_follows();
        if self.conversation.is_closing() {
            return;
        }
        match self.wait_for_input(has_other_work, buffer, cx) {
            Ok(Input::TimedOut) if is_timer_due(self.conversation) => {}
            // Only the kernel knows whether the peer takes the output, and only this place asks it.
            Ok(Input::TimedOut) if self.progress.is_made(self.socket) => self.idle_since = None,
            Ok(input) => self.take_input(input, buffer, cx),
            Err(error) => self.conversation.end(CloseReason::Disconnected(error)),
        }
    }

    /// Waits for input, messages, the stop or a deadline; with other work it reads without waiting.
    fn wait_for_input(
        &mut self,
        has_other_work: bool,
        buffer: &mut [u8],
        cx: &mut SessionCx<'_>,
    ) -> io::Result<Input> {
        let timeout = if has_other_work { None } else { self.wait_timeout() };
        let conversation = &*self.conversation;
        let is_read = !conversation.input_ended() && !conversation.is_paused();
        let idle = conversation.is_idle();
        if has_other_work {
            let has_messages = conversation.send_queue().is_some_and(|queue| !queue.is_empty());
            return cx.wait.read_now(is_read.then_some(self.socket), buffer, idle && !has_messages);
        }
        if is_read {
            // Without a partial message it waits only for the peer, unless there is a `Sender`.
            let others = conversation.send_queue().is_some() || !idle;
            return cx.wait.read(self.socket, buffer, timeout, idle, others);
        }
        if conversation.input_ended() || cx.wait.is_shut() {
            return cx.wait.wait_without_read(None, timeout, idle);
        }
        let watched = match self.peer_end {
            PeerEnd::Unseen => Some((self.socket, PollInterest::End)),
            PeerEnd::Seen => Some((self.socket, PollInterest::Failure)),
            PeerEnd::Closed => None,
        };
        match cx.wait.wait_without_read(watched, timeout, idle)? {
            Input::Bytes(_) if self.peer_end == PeerEnd::Seen => {
                let is_left = self.conversation.has_undelivered_input();
                if let Some(error) = failure(self.socket, is_left) {
                    return Err(error);
                }
                self.peer_end = PeerEnd::Closed;
                Ok(Input::Woken)
            }
            Input::Bytes(_) => {
                self.peer_end = PeerEnd::Seen;
                let at_end = sys::is_at_end(self.socket)?;
                let nothing_precedes = !self.conversation.has_undelivered_input();
                Ok(if at_end && nothing_precedes { Input::Bytes(0) } else { Input::Woken })
            }
            other => Ok(other),
        }
    }

    /// The maximum time of a wait: until the idle timeout or the timer.
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
                (self.idle_since, self.peer_end) = (None, PeerEnd::Unseen);
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
    conversation.timer().is_some() && conversation.is_timer_due(Instant::now())
}

/// How a send waits for its peer.
fn wait_limits<H: Handler, F: Framing>(conversation: &Conversation<H, F>) -> WaitLimits {
    WaitLimits { timeout: conversation.output_timeout(), deadline: conversation.timer() }
}

/// Calls the conversation; its output is collected.
fn call<H: Handler, F: Framing>(
    conversation: &mut Conversation<H, F>,
    limits: SessionLimits,
    cx: &mut SessionCx<'_>,
    take: &dyn Fn(&mut Conversation<H, F>, &mut StepCx<'_>),
) {
    let unsupported = cx.no_sender;
    let registration = match cx.wait {
        WaitStrategy::Thread(registration) => Some(registration),
        _ => None,
    };
    let driver = ThreadDriver { registration, unsupported, limit: limits.sender, stop: cx.stop };
    let mut step_cx = cx.scratch.step_cx(&driver, limits.room);
    take(conversation, &mut step_cx);
}

/// The output that the kernel did not take, and the error.
struct FailedWrite {
    unsent: WriteBuffer,
    error: io::Error,
    stall: Stall,
}

/// Sends the collected output.
fn send<H: Handler, F: Framing>(
    socket: &Socket,
    conversation: &Conversation<H, F>,
    input: &[u8],
    cx: &mut SessionCx<'_>,
) -> Result<(), FailedWrite> {
    let SessionCx { scratch, wait, .. } = cx;
    let (output_buffer, tally) = (&mut scratch.output_buffer, &mut scratch.tally);
    if output_buffer.is_empty() {
        return Ok(());
    }
    let send_queue = conversation.send_queue().map(|send_queue| &**send_queue);
    let mut stall = Stall::from(wait_limits(conversation));
    let mut unsent = WriteBuffer::default();
    let written = match output_buffer.contiguous(input) {
        Some(bytes) => {
            let mut left = bytes;
            let written = wait.write_all(socket, &mut left, false, &mut stall, send_queue);
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
            wait.flush(socket, &mut unsent, &mut stall, send_queue, &mut tally.bytes_out)
        }),
    };
    written.map_err(|error| FailedWrite { unsent, error, stall })
}

/// Retries a write to a peer that takes no output; returns whether all output was sent. Meanwhile it
/// calls the handler when its timer has expired, and each time that its idle timeout has passed.
#[cold]
fn retry_write<H: Handler, F: Framing>(
    socket: &Socket,
    conversation: &mut Conversation<H, F>,
    limits: SessionLimits,
    failed: FailedWrite,
    cx: &mut SessionCx<'_>,
) -> bool {
    let FailedWrite { mut unsent, mut error, mut stall } = failed;
    loop {
        let has_stalled = stall.take_timed_out();
        match conversation.ending() {
            // A `Sender` has aborted the connection.
            Ending::Aborted => {
                conversation.abort();
                return false;
            }
            Ending::Closing if has_stalled => {
                conversation.abort();
                return false;
            }
            _ => {}
        }
        if error.kind() != io::ErrorKind::TimedOut {
            conversation.end(match cx.wait.is_cut() {
                true => CloseReason::Shutdown,
                false => write_failure(error),
            });
            return false;
        }
        if conversation.is_closing() {
            return false;
        }
        // What waits takes up room.
        let room = limits.room.saturating_sub(unsent.len());
        call(conversation, SessionLimits { room, ..limits }, cx, &|conversation, step_cx| {
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
        stall.set_wait_limits(wait_limits(conversation));
        unsent.keep(&mut cx.scratch.output_buffer, &[], 0);
        cx.scratch.output_buffer.clear();
        let send_queue = conversation.send_queue().map(|send_queue| &**send_queue);
        let bytes_out = &mut cx.scratch.tally.bytes_out;
        match cx.wait.flush(socket, &mut unsent, &mut stall, send_queue, bytes_out) {
            Ok(()) => return true,
            Err(next) => error = next,
        }
    }
}

/// Closes a connection so that its output arrives, or with a reset if output was lost, so that the
/// output does not look complete. If the caller can finish a lingering connection, returns it.
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

/// Discards input until the peer has ended or has received all output, within the limits of
/// [`Linger`]. The connection is not idle during this time: a stop waits for it, because after an
/// immediate close, late input would reset the connection and cut the output.
fn linger_here(socket: &Socket, linger: &mut Linger, buffer: &mut [u8], cx: &mut SessionCx<'_>) {
    let was_stopping = cx.wait.is_stopping();
    loop {
        let now = Instant::now();
        if !was_stopping && cx.wait.is_stopping() {
            linger.shorten(now);
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
