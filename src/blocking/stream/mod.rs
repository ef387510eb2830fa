//! The blocking driver of a conversation: one connection, served to its end on this thread.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::active::Registration;
use super::limits::{LimitClock, MEMORY_CHECK, SessionMemory};
use super::wait::{Input, Wait as _, WaitStrategy};
use super::{Served, Session, SessionCx};
use crate::address::{LogPeer, Peer};
use crate::closing::{Linger, Lingering, Progress, failure};
use crate::conversation::{Conversation, Driver, Framing, Handler, StepCx, Work};
use crate::error::{CloseReason, Limit, UnsupportedError};
use crate::limits::Limits;
use crate::sender::{Recipient, SendQueue, SenderLimit, Waker};
use crate::server_state::StopRequester;
use crate::sys::{self, PollInterest, Socket};
use output::{retry_write, send};

mod output;

/// A connection with its conversation, ready to be served.
pub(crate) struct StreamSession<H, F> {
    pub(crate) socket: Arc<Socket>,
    pub(crate) conversation: Conversation<H, F>,
    pub(crate) limits: SessionLimits,
    pub(crate) accepted: Instant,
}

/// The limits of a session.
#[derive(Debug, Clone)]
pub(crate) struct SessionLimits {
    /// How much output is collected before it is written, in bytes.
    pub(crate) room: usize,
    pub(crate) sender: SenderLimit,
    pub(crate) peer: Arc<Limits>,
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
        let waker = registration.waker().map_err(|_| UnsupportedError::NoDescriptor)?;
        let waker = Waker::Thread(waker.clone());
        let send_queue = Arc::new(SendQueue::new(waker, self.limit, recipient));
        registration.set_send_queue(&send_queue);
        Ok(send_queue)
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn request_stop(&self) {
        self.stop.request();
    }

    fn is_overloaded(&self) -> bool {
        self.stop.is_overloaded()
    }
}

impl<H: Handler, F: Framing> Session for StreamSession<H, F> {
    fn run(self: Box<Self>, cx: &mut SessionCx<'_>) -> Served {
        let StreamSession { socket, mut conversation, limits, accepted } = *self;
        let mut buffer = std::mem::take(&mut cx.scratch.buffer);
        let clock = LimitClock::new(&limits.peer, accepted);
        let cut = serve(&socket, &mut conversation, &limits, clock, &mut buffer, cx);
        let peer = conversation.peer().clone();
        cx.wait.set_ended();
        let cut = cut || conversation.is_aborted() || cx.wait.is_cut();
        let lingers = conversation.lingers();
        // The conversation ends here, before its connection lingers.
        let reason = conversation.closed(&mut cx.scratch.tally);
        let ended = conversation.input_ended() || reason.frees_at_once();
        let end = SocketEnd::new(cut, ended, lingers);
        let lingering = close(&socket, &peer, end, &mut buffer, cx);
        cx.scratch.buffer = buffer;
        let origin = LogPeer { id: conversation.id(), peer };
        Served { origin, reason, cut, lingering }
    }
}

/// Serves the conversation until it is closing; returns whether output was lost.
fn serve<H: Handler, F: Framing>(
    socket: &Socket,
    conversation: &mut Conversation<H, F>,
    limits: &SessionLimits,
    clock: LimitClock<'_>,
    buffer: &mut [u8],
    cx: &mut SessionCx<'_>,
) -> bool {
    let mut pump = StreamPump::new(socket, conversation, limits, clock);
    pump.step(&[], cx, &|conversation, step_cx| conversation.open(step_cx));
    let mut last_work = Work::Input;
    while !pump.conversation.is_closing() {
        if let Some(limit) = cx.wait.limit() {
            pump.exceed(limit, cx);
            continue;
        }
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
    limits: &'a SessionLimits,
    clock: LimitClock<'a>,
    memory: SessionMemory,
    /// It does not read because memory is tight.
    is_starved: bool,
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
        limits: &'a SessionLimits,
        clock: LimitClock<'a>,
    ) -> Self {
        StreamPump {
            socket,
            conversation,
            limits,
            clock,
            memory: SessionMemory::default(),
            is_starved: false,
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
        let StreamPump { socket, conversation, limits, memory, cut, idle_since, .. } = self;
        let messages = cx.scratch.tally.messages;
        call(conversation, limits.sender, limits.room, cx, take);
        let mut sent = Ok(false);
        if !conversation.is_aborted() && !cx.scratch.output_buffer.is_empty() {
            *idle_since = None;
            sent = send(socket, conversation, limits, conversation.input(fresh), memory, cx);
        }
        cx.scratch.output_buffer.clear();
        conversation.consume_delivered(fresh);
        let has_waited = sent.unwrap_or_else(|failed| {
            *cut |= !retry_write(socket, conversation, limits, *failed, memory, cx);
            true
        });
        if !conversation.is_fast() && !conversation.is_closing() && conversation.take_output_end() {
            // It fails if the peer is gone, which the next read reports.
            let _ = socket.shutdown(Shutdown::Write);
        }
        let messages = cx.scratch.tally.messages - messages;
        self.after_step(messages, has_waited, !fresh.is_empty(), cx);
    }

    /// Notes what a step has left: a message in part, memory. While the session waited for the peer to
    /// take output, no time of a message passes.
    fn after_step(
        &mut self,
        messages: u64,
        has_waited: bool,
        has_input: bool,
        cx: &mut SessionCx<'_>,
    ) {
        if messages > 0 && self.clock.messages_came(messages) {
            cx.wait.prove();
        }
        self.memory.hold(self.conversation.held(), cx.stop, &cx.wait);
        if self.conversation.is_closing() {
            return;
        }
        let mut exceeded = self.memory.limit();
        if self.conversation.waits_for_rest() {
            self.clock.message_in_part(messages > 0 || has_waited);
            let buffered = self.conversation.buffered();
            if self.clock.is_too_much(buffered) {
                exceeded = exceeded.or(Some(Limit::BufferedInput));
            } else if has_input && messages == 0 {
                exceeded = exceeded.or_else(|| self.clock.expired(Instant::now(), buffered));
            }
        } else {
            self.clock.no_message_in_part();
        }
        if let Some(limit) = exceeded {
            self.exceed(limit, cx);
        }
    }

    /// The peer has reached a limit: the conversation ends.
    #[cold]
    fn exceed(&mut self, limit: Limit, cx: &mut SessionCx<'_>) {
        if limit.resets() {
            self.conversation.end(CloseReason::Limit(limit));
            self.cut = true;
        } else {
            self.step(&[], cx, &|conversation, step_cx| conversation.exceed(limit, step_cx));
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
        let retirement = self.clock.retirement(self.conversation.waits_for_rest());
        let waits = has_other_work || self.conversation.is_paused();
        if let Some(limit) = retirement.filter(|_| !waits) {
            return self.exceed(limit, cx);
        }
        let was_starved = self.is_starved;
        self.is_starved = self.memory.is_starved(cx.stop);
        cx.scratch.tally.memory_pauses += u64::from(self.is_starved && !was_starved);
        let may_read = retirement.is_none() && !self.is_starved;
        match self.wait_for_input(has_other_work, may_read, buffer, cx) {
            Ok(Input::TimedOut) => self.timed_out(cx),
            Ok(input) => self.take_input(input, buffer, cx),
            Err(error) => self.conversation.end(CloseReason::Disconnected(error)),
        }
    }

    /// A wait has timed out: a limit or the idle timeout may be reached. A timer is served next.
    fn timed_out(&mut self, cx: &mut SessionCx<'_>) {
        let now = Instant::now();
        if self.conversation.is_timer_due(now) {
            return;
        }
        if let Some(limit) = self.clock.expired(now, self.conversation.buffered()) {
            return self.exceed(limit, cx);
        }
        let idle = self.idle_since.map(|since| now.saturating_duration_since(since));
        if self
            .conversation
            .idle_timeout()
            .is_none_or(|timeout| idle.is_none_or(|idle| idle < timeout))
        {
            return;
        }
        self.idle_since = None;
        // Only the kernel knows whether the peer takes the output, and only this place asks it.
        if !self.progress.is_made(self.socket) {
            self.step(&[], cx, &|conversation, step_cx| conversation.idle_timed_out(step_cx));
        }
    }

    /// Waits for input, messages, the stop or a deadline; with other work it reads without waiting.
    fn wait_for_input(
        &mut self,
        has_other_work: bool,
        may_read: bool,
        buffer: &mut [u8],
        cx: &mut SessionCx<'_>,
    ) -> io::Result<Input> {
        let timeout = if has_other_work { None } else { self.wait_timeout() };
        let conversation = &*self.conversation;
        let is_read = may_read && !conversation.input_ended() && !conversation.is_paused();
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

    /// The maximum time of a wait: until the idle timeout, the timer or a limit.
    fn wait_timeout(&mut self) -> Option<Duration> {
        let (idle_timeout, timer) = (self.conversation.idle_timeout(), self.conversation.timer());
        let limit = self.clock.deadline(self.conversation.buffered());
        if idle_timeout.is_none() && timer.is_none() && limit.is_none() {
            return self.is_starved.then_some(MEMORY_CHECK);
        }
        let now = Instant::now();
        let idle = idle_timeout
            .and_then(|timeout| self.idle_since.get_or_insert(now).checked_add(timeout));
        let until = idle.into_iter().chain(timer).chain(limit).min()?;
        let left = until.saturating_duration_since(now);
        Some(if self.is_starved { left.min(MEMORY_CHECK) } else { left })
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
            Input::Woken | Input::TimedOut => {}
            Input::Limit(limit) => self.exceed(limit, cx),
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

/// Calls the conversation; its output is collected.
fn call<H: Handler, F: Framing>(
    conversation: &mut Conversation<H, F>,
    sender_limit: SenderLimit,
    room: usize,
    cx: &mut SessionCx<'_>,
    take: &dyn Fn(&mut Conversation<H, F>, &mut StepCx<'_>),
) {
    let unsupported = cx.no_sender;
    let registration = match cx.wait {
        WaitStrategy::Thread(registration) => Some(registration),
        _ => None,
    };
    let driver = ThreadDriver { registration, unsupported, limit: sender_limit, stop: cx.stop };
    let mut step_cx = cx.scratch.step_cx(&driver, room);
    take(conversation, &mut step_cx);
}

/// The state of a socket that is to be closed.
pub(super) enum SocketEnd {
    /// Output was lost.
    Cut,
    /// The peer has ended, or the connection makes room at once.
    Ended,
    /// The peer may still send; whether the close waits until it has acknowledged all output.
    Open { lingers: bool },
}

impl SocketEnd {
    pub(super) fn new(cut: bool, ended: bool, lingers: bool) -> Self {
        match (cut, ended) {
            (true, _) => SocketEnd::Cut,
            (false, true) => SocketEnd::Ended,
            (false, false) => SocketEnd::Open { lingers },
        }
    }
}

/// Closes a connection so that its output arrives, or with a reset if output was lost, so that the
/// output does not look complete. If the caller can finish a lingering connection, returns it.
pub(super) fn close(
    socket: &Arc<Socket>,
    peer: &Peer,
    end: SocketEnd,
    buffer: &mut [u8],
    cx: &mut SessionCx<'_>,
) -> Option<Lingering> {
    let linger = match end {
        SocketEnd::Cut => {
            sys::reset_on_close(socket);
            None
        }
        SocketEnd::Ended => None,
        SocketEnd::Open { lingers } => Linger::begin(socket, peer, lingers, buffer, Instant::now()),
    };
    if let Some(mut linger) = linger {
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
