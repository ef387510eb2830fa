//! Sending to a connection from other threads and other handlers: the public [`Sender`], and the send
//! queue of each connection that it feeds.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::address::Peer;
use crate::connection_id::ConnectionId;
use crate::encodable::Encodable;
use crate::error::SendError;
use crate::mailbox::{Mail, Mailbox};
use crate::sync::lock;
use crate::sys::{CatchDrop, Wakeup};
use crate::token::Token;

/// Bytes that several connections send without a copy for each.
pub(crate) type SharedBytes = Arc<[u8]>;

/// A value of the user that is given to a connection's handler: see [`Sender::post`].
pub type Event = Box<dyn Any + Send>;

/// How many events may wait in a send queue.
const EVENTS: u16 = 1024;

/// What each message in a send queue is charged for beside its bytes, so that the number of small
/// messages is bounded too.
const OVERHEAD: usize = 64;

/// How many places for messages and events a send queue keeps when it has been emptied.
const KEPT: usize = 4;

/// How much the senders of one connection may queue together, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SenderLimit(u32);

impl SenderLimit {
    /// More than 4 GiB count as 4 GiB.
    pub(crate) fn new(bytes: usize) -> Self {
        SenderLimit(u32::try_from(bytes).unwrap_or(u32::MAX))
    }
}

impl Default for SenderLimit {
    fn default() -> Self {
        SenderLimit(256 * 1024)
    }
}

/// Who looks after an [`SendQueue`].
#[derive(Debug)]
pub(crate) enum Waker {
    /// A loop, for this connection of its own.
    Loop(Arc<Mailbox>, Token),
    /// A thread that waits for one connection.
    Thread(Arc<Wakeup>),
}

/// One piece of what other threads want of a connection.
#[derive(Debug)]
pub(crate) enum Command {
    Message(SharedBytes),
    Event(CatchDrop<Event>),
    /// It is to be closed; nothing follows.
    Close,
    /// It is to be reset; nothing follows.
    Abort,
}

/// How far a connection's end has come, as far as its senders have to do with it; each of these
/// comes after those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    /// Not begun.
    #[default]
    Open,
    /// Nothing but senders can go on with it: it is told when they are all gone.
    HalfOpen,
    /// A sender has closed it: what was sent before still goes out.
    Closing,
    /// A sender has aborted it: nothing goes out any more.
    Aborted,
    /// It is closed.
    Closed,
}

impl Ending {
    /// Whether nothing is taken from senders any more.
    fn has_begun(self) -> bool {
        self > Ending::HalfOpen
    }
}

/// The way into one connection from other threads; made when first asked for.
#[derive(Debug)]
pub(crate) struct SendQueue {
    state: Mutex<SendQueueState>,
    waker: Waker,
    /// How many senders there are.
    senders: AtomicU32,
    limit: SenderLimit,
    recipient: Recipient,
}

/// The connection at the other end of a send queue.
#[derive(Debug)]
pub(crate) struct Recipient {
    pub(crate) id: ConnectionId,
    pub(crate) peer: Peer,
}

#[derive(Debug, Default)]
struct SendQueueState {
    /// Messages and events, the oldest first.
    commands: VecDeque<Command>,
    /// What the messages are charged for.
    bytes: u32,
    /// How many of the commands are events.
    events: u16,
    ending: Ending,
    /// The keeper has been told of something, or is awake, and has not looked since: it is not told
    /// again.
    notified: bool,
}

/// What a message counts in the queue: more than 4 GiB count as 4 GiB.
fn charge(message: &SharedBytes) -> u32 {
    u32::try_from(message.len() + OVERHEAD).unwrap_or(u32::MAX)
}

impl SendQueueState {
    fn take(&mut self) -> Option<Command> {
        if self.ending == Ending::Aborted {
            return Some(Command::Abort);
        }
        let Some(command) = self.commands.pop_front() else {
            return (self.ending == Ending::Closing).then_some(Command::Close);
        };
        match &command {
            Command::Message(message) => self.bytes -= charge(message),
            Command::Event(_) => self.events -= 1,
            Command::Close | Command::Abort => {}
        }
        if self.commands.is_empty() && self.commands.capacity() > KEPT {
            self.commands = VecDeque::new();
        }
        Some(command)
    }

    fn is_empty(&self) -> bool {
        self.commands.is_empty() && !matches!(self.ending, Ending::Closing | Ending::Aborted)
    }
}

impl SendQueue {
    pub(crate) fn new(waker: Waker, limit: SenderLimit, recipient: Recipient) -> Self {
        let (state, senders) = (Mutex::default(), AtomicU32::new(0));
        SendQueue { state, senders, waker, limit, recipient }
    }

    /// From now on the keeper is told, once, of what comes; whether there is something to
    /// [`take`](SendQueue::take) already. A thread calls it before it waits, a loop when it has taken the
    /// mail that told it.
    pub(crate) fn listen(&self) -> bool {
        let mut state = lock(&self.state);
        state.notified = false;
        !state.is_empty()
    }

    /// Takes what comes first: the oldest message or event, or what is to be done when there is none.
    pub(crate) fn take(&self) -> Option<Command> {
        lock(&self.state).take()
    }

    /// As [`take`](SendQueue::take), where no handler can be called: nothing when an event comes first.
    pub(crate) fn take_message(&self) -> Option<Command> {
        let mut state = lock(&self.state);
        match state.commands.front() {
            Some(Command::Event(_)) if state.ending != Ending::Aborted => None,
            _ => state.take(),
        }
    }

    /// Whether an event waits, so that the handler has to be called.
    pub(crate) fn has_event(&self) -> bool {
        lock(&self.state).events > 0
    }

    /// Whether there is nothing to [`take`](SendQueue::take).
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.state).is_empty()
    }

    /// How far the connection's end has come.
    pub(crate) fn ending(&self) -> Ending {
        lock(&self.state).ending
    }

    /// From now on every send is told that the connection is closed, and what waits is dropped; but it
    /// can still be aborted.
    pub(crate) fn refuse(&self) {
        let mut state = lock(&self.state);
        let ending = state.ending.max(Ending::Closing);
        let notified = state.notified;
        let refusing = SendQueueState { ending, notified, ..SendQueueState::default() };
        let before = std::mem::replace(&mut *state, refusing);
        drop(state);
        // Not while it is locked: the destructor of an event is code of the user.
        drop(before);
    }

    /// From now on every send is told that the connection is closed.
    pub(crate) fn close(&self) {
        let closed = SendQueueState { ending: Ending::Closed, ..SendQueueState::default() };
        let before = std::mem::replace(&mut *lock(&self.state), closed);
        // Not while it is locked: the destructor of an event is code of the user.
        drop(before);
    }

    fn push(&self, message: SharedBytes) -> Result<(), SendError> {
        let mut state = lock(&self.state);
        if state.ending.has_begun() {
            return Err(SendError::Closed);
        }
        let SenderLimit(limit) = self.limit;
        state.bytes = match state.bytes.checked_add(charge(&message)) {
            Some(bytes) if bytes <= limit || state.bytes == 0 => bytes,
            _ => return Err(SendError::Full),
        };
        self.enqueue(state, Command::Message(message));
        Ok(())
    }

    fn post(&self, event: Event) -> Result<(), SendError> {
        // Where it is not taken it is dropped after the lock.
        let event = CatchDrop::new(event);
        let mut state = lock(&self.state);
        if state.ending.has_begun() {
            return Err(SendError::Closed);
        }
        if state.events == EVENTS {
            return Err(SendError::Full);
        }
        state.events += 1;
        self.enqueue(state, Command::Event(event));
        Ok(())
    }

    fn enqueue(&self, mut state: MutexGuard<'_, SendQueueState>, command: Command) {
        state.commands.push_back(command);
        if state.commands.len() == 1 {
            self.tell(state);
        }
    }

    /// Brings the connection's end as far as that, if it is not there yet.
    fn end(&self, ending: Ending) {
        let mut state = lock(&self.state);
        if state.ending >= ending {
            return;
        }
        state.ending = ending;
        let mut dropped = VecDeque::new();
        if ending == Ending::Aborted {
            (state.bytes, state.events) = (0, 0);
            dropped = std::mem::take(&mut state.commands);
        }
        self.tell(state);
        drop(dropped);
    }

    /// Tells the keeper that there is something to look at, unless it will look in any case.
    fn tell(&self, mut state: MutexGuard<'_, SendQueueState>) {
        if std::mem::replace(&mut state.notified, true) {
            return;
        }
        drop(state);
        match &self.waker {
            Waker::Loop(mailbox, token) => mailbox.post(Mail::SendQueue(*token)),
            Waker::Thread(wakeup) => wakeup.wake(),
        }
    }

    /// Whether nothing waits here and nobody is left who could send; if somebody is, the connection
    /// is told when they are gone. Asked where the connection itself hands out no more senders.
    ///
    /// Who goes counts itself off first and looks second whether that matters; here it is said first
    /// that it does.
    pub(crate) fn is_abandoned(&self) -> bool {
        let mut state = lock(&self.state);
        state.ending = state.ending.max(Ending::HalfOpen);
        state.is_empty() && self.senders.load(SeqCst) == 0
    }

    fn sender_gone(&self) {
        if self.senders.fetch_sub(1, SeqCst) == 1 {
            let state = lock(&self.state);
            if state.ending == Ending::HalfOpen {
                self.tell(state);
            }
        }
    }
}

/// A handle to one connection, for other threads and other handlers: from
/// [`Context::sender`](crate::Context::sender).
///
/// It names this connection and no later one: when the connection is closed, every send says so.
/// A handle does not keep the connection open; but where the peer has ended and the handler has
/// left the connection open for its senders (see [`Handler::on_eof`](crate::Handler::on_eof)), it is
/// closed when the last of them is dropped.
pub struct Sender {
    send_queue: Arc<SendQueue>,
    /// What the framing could send when this handle was made.
    encodable: Encodable,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, peer) = (self.id(), self.peer());
        f.debug_struct("Sender").field("id", &id).field("peer", peer).finish_non_exhaustive()
    }
}

impl Clone for Sender {
    fn clone(&self) -> Self {
        Sender::new(self.send_queue.clone(), self.encodable.clone())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.send_queue.sender_gone();
    }
}

impl Sender {
    pub(crate) fn new(send_queue: Arc<SendQueue>, encodable: Encodable) -> Self {
        send_queue.senders.fetch_add(1, SeqCst);
        Sender { send_queue, encodable }
    }

    /// Sends a message, framed as the handler's own are. It does not wait.
    ///
    /// The message is queued until the connection's loop, or its thread under `threading` and
    /// `pool`, comes for it. That takes all that waits at once, and takes no more while as much as the
    /// high mark of [`Builder::write_watermarks`](crate::Builder::write_watermarks) waits for the peer. How
    /// much may be in the queue says [`Builder::sender_limit`](crate::Builder::sender_limit): each message
    /// counts as its bytes and 64 more, and one message always fits. With the default of 256 KiB these
    /// are 246 messages of 1,000 bytes. So a sender that is faster than the loop or the thread is
    /// refused also where the peer reads well; many threads on few processors come late more often
    /// than one loop does. Where bursts are to be taken whole, raise the limit.
    ///
    /// # Errors
    ///
    /// The message is not sent, and the connection stays as it is:
    ///
    /// * [`SendError::Closed`] when the connection is closed, or was asked to by a handle to it,
    /// * [`SendError::Full`] when the queue is full,
    /// * [`SendError::TooLong`] and [`SendError::Unencodable`] when the framing says beforehand that
    ///   it cannot send such a message (see [`Framing::encodable`](crate::Framing::encodable)): the framing
    ///   as it was when [`Context::sender`](crate::Context::sender) returned this handle.
    pub fn send(&self, message: &[u8]) -> Result<(), SendError> {
        self.encodable.check(message)?;
        self.send_queue.push(message.into())
    }

    /// Sends a message that several connections share: see [`broadcast`].
    ///
    /// # Errors
    ///
    /// As for [`send`](Sender::send).
    pub fn send_shared(&self, message: &Arc<[u8]>) -> Result<(), SendError> {
        self.encodable.check(message)?;
        self.send_queue.push(message.clone())
    }

    /// Gives `event` to the connection's handler, as the argument of
    /// [`Handler::on_event`](crate::Handler::on_event). It does not wait.
    ///
    /// What a thread has found out for a connection reaches its handler so, and not only its peer: a
    /// result, a time, a reason to close it. The handler is called where its other methods are: on
    /// the loop, by a worker under `offload`, in the connection's thread under `threading` and
    /// `pool`. Messages and events of one connection come out in the order in which they went in,
    /// also those of several handles. As input does, events wait while as much output waits for the
    /// peer as the high mark of [`Builder::write_watermarks`](crate::Builder::write_watermarks) says.
    ///
    /// 1,024 events may wait, of whatever size; they do not count as the bytes of messages do. Those
    /// that wait when the connection ends are dropped without a call of the handler; an event that must
    /// not be lost gives its content back in its own `Drop`.
    ///
    /// ```
    /// use socketserver::{SendError, Sender};
    ///
    /// /// What a handler is told of an account.
    /// struct Balance(u64);
    ///
    /// fn tell(sender: &Sender, balance: u64) -> Result<(), SendError> {
    ///     sender.post(Box::new(Balance(balance)))
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// The event is dropped before this returns, and the connection stays as it is:
    ///
    /// * [`SendError::Closed`] when the connection is closed, or was asked to by a handle to it,
    /// * [`SendError::Full`] when 1,024 events wait.
    pub fn post(&self, event: Event) -> Result<(), SendError> {
        self.send_queue.post(event)
    }

    /// Closes the connection when all that was sent before has gone out, as
    /// [`Context::close`](crate::Context::close) does. It does not wait.
    ///
    /// The handler is given what was posted before. From this call on every send returns
    /// [`SendError::Closed`], and a second call does nothing. The connection is told of it whatever
    /// waits for its peer; a handler that is at work finishes first. A peer that then takes nothing for
    /// 30 seconds is reset, and what was left for it is dropped. The handler is told
    /// [`CloseReason::Handler`](crate::CloseReason::Handler).
    pub fn close(&self) {
        self.send_queue.end(Ending::Closing);
    }

    /// Closes the connection at once with a reset, as [`Context::abort`](crate::Context::abort) does;
    /// what has not gone out is dropped, what waits in this handle's queue included. It does not
    /// wait.
    ///
    /// The connection sees it whatever it waits for, and also after [`close`](Sender::close); a
    /// handler that is at work finishes first. The handler is told [`CloseReason::Handler`](crate::CloseReason::Handler). On a
    /// Unix socket, which has no reset, the peer sees the end of the stream.
    pub fn abort(&self) {
        self.send_queue.end(Ending::Aborted);
    }

    /// Whether the connection is closed, or a handle to it has been asked to close or to abort it:
    /// whether a send is answered with [`SendError::Closed`].
    pub fn is_closed(&self) -> bool {
        self.send_queue.ending().has_begun()
    }

    /// The number of the connection, which no other connection of this process ever has.
    pub fn id(&self) -> ConnectionId {
        self.send_queue.recipient.id
    }

    /// The other end of the connection, as [`Context::peer`](crate::Context::peer) tells it.
    pub fn peer(&self) -> &Peer {
        &self.send_queue.recipient.peer
    }

    /// Whether both are handles to the same connection.
    pub fn is_same(&self, other: &Sender) -> bool {
        self.id() == other.id()
    }
}

/// Handles to the same connection are equal, as [`is_same`](Sender::is_same) says.
impl PartialEq for Sender {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other)
    }
}

impl Eq for Sender {}

/// By the connection, as [`Eq`] compares. Nothing that changes is hashed, so that it can be a key of a
/// map; Clippy's `mutable_key_type` cannot know that, and wants to be allowed.
impl Hash for Sender {
    fn hash<S: Hasher>(&self, state: &mut S) {
        self.id().hash(state);
    }
}

/// Sends one message to many connections, which share its bytes; returns how many took it.
///
/// Those that are closed or full are passed over: who must know sends to each by itself.
#[must_use = "it may be fewer than there are senders"]
pub fn broadcast<'a>(senders: impl IntoIterator<Item = &'a Sender>, message: &[u8]) -> usize {
    let message: Arc<[u8]> = message.into();
    senders.into_iter().filter(|sender| sender.send_shared(&message).is_ok()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard;

    fn recipient() -> Recipient {
        Recipient { id: ConnectionId::next(), peer: Peer::Unnamed }
    }

    fn send_queue(limit: usize) -> (Arc<Mailbox>, Sender) {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let waker = Waker::Loop(mailbox.clone(), Token::new(3, 1));
        (
            mailbox,
            Sender::new(
                Arc::new(SendQueue::new(waker, SenderLimit::new(limit), recipient())),
                Encodable::Any,
            ),
        )
    }

    #[test]
    fn many_sends_post_one_piece_of_mail() {
        let (mailbox, sender) = send_queue(1000);
        sender.send(b"one").unwrap();
        sender.send(b"two").unwrap();
        let mut mail = VecDeque::new();
        mailbox.collect(&mut mail, 8);
        assert_eq!(mail.len(), 1);
    }

    #[test]
    fn a_full_send_queue_and_a_closed_one_refuse_a_message() {
        let (_mailbox, sender) = send_queue(10);
        assert_eq!(sender.send(&[0; 50]), Ok(()), "one message always fits");
        assert_eq!(sender.send(b"x"), Err(SendError::Full));
        sender.send_queue.close();
        assert_eq!(sender.send(b"x"), Err(SendError::Closed));
        assert!(sender.is_closed());
    }

    #[test]
    fn a_queue_that_refuses_drops_what_waits_and_can_only_be_aborted() {
        let (mailbox, sender) = send_queue(1000);
        sender.send(b"one").unwrap();
        sender.post(Box::new(2)).unwrap();
        sender.send_queue.refuse();
        assert_eq!(sender.send(b"three"), Err(SendError::Closed));
        assert_eq!(sender.post(Box::new(4)), Err(SendError::Closed));
        assert!(matches!(sender.send_queue.take(), Some(Command::Close)), "nothing is left");
        let mut mail = VecDeque::new();
        mailbox.collect(&mut mail, 8);
        sender.send_queue.listen();
        mail.clear();
        sender.close();
        sender.abort();
        mailbox.collect(&mut mail, 8);
        assert_eq!(mail.len(), 1);
        sender.send_queue.refuse();
        assert_eq!(sender.send_queue.ending(), Ending::Aborted);
        sender.send_queue.close();
        sender.send_queue.refuse();
        assert_eq!(sender.send_queue.ending(), Ending::Closed);
    }

    #[test]
    fn a_limit_of_more_than_4_gib_is_4_gib_and_a_queue_of_that_size_is_counted_right() {
        assert_eq!(SenderLimit::new(usize::MAX).0, u32::MAX);
        let (_mailbox, sender) = send_queue(usize::MAX);
        lock(&sender.send_queue.state).bytes = u32::MAX - 100;
        assert_eq!(sender.send(&[0; 36]), Ok(()));
        assert_eq!(lock(&sender.send_queue.state).bytes, u32::MAX);
        assert_eq!(sender.send(b""), Err(SendError::Full));
    }

    #[test]
    fn repeated_closes_and_aborts_post_one_piece_of_mail() {
        let (mailbox, sender) = send_queue(1000);
        sender.send(b"one").unwrap();
        for _ in 0..1000 {
            sender.close();
        }
        let take = || sender.send_queue.take();
        assert!(matches!(take(), Some(Command::Message(_))));
        assert!(matches!(take(), Some(Command::Close)));
        for _ in 0..1000 {
            sender.abort();
            sender.close();
        }
        assert!(matches!(take(), Some(Command::Abort)));
        assert_eq!(sender.send(b"x"), Err(SendError::Closed));
        let mut mail = VecDeque::new();
        mailbox.collect(&mut mail, 8);
        assert_eq!(mail.len(), 1);
    }

    /// The loop also drains a send queue when another event brings it to the connection.
    #[test]
    fn a_send_queue_emptied_before_its_mail_is_taken_posts_no_second_piece() {
        let (mailbox, sender) = send_queue(1000);
        let mut mail = VecDeque::new();
        for _ in 0..3 {
            for _ in 0..1000 {
                sender.send(b"one").unwrap();
                assert!(sender.send_queue.take().is_some());
            }
            mailbox.collect(&mut mail, 8);
            assert_eq!(mail.drain(..).count(), 1);
            assert!(!sender.send_queue.listen());
        }
    }

    #[test]
    fn a_thread_is_woken_once_for_all_messages_before_it_waits_again() {
        let wakeup = Arc::new(Wakeup::new().unwrap());
        let waker = Waker::Thread(wakeup.clone());
        let send_queue = SendQueue::new(waker, SenderLimit::new(1 << 20), recipient());
        let sender = Sender::new(Arc::new(send_queue), Encodable::Any);
        for _ in 0..3 {
            assert!(!sender.send_queue.listen());
            for number in 0..1000 {
                sender.send(b"one").unwrap();
                assert!(sender.send_queue.take().is_some());
                assert_eq!(wakeup.take(), number == 0);
            }
        }
        sender.send(b"one").unwrap();
        assert!(sender.send_queue.listen(), "it must not wait");
        sender.close();
        assert!(wakeup.take());
        assert!(sender.send_queue.listen());
        sender.abort();
        assert!(wakeup.take());
    }

    #[test]
    fn a_send_queue_releases_the_memory_of_a_burst() {
        let (_mailbox, sender) = send_queue(1 << 20);
        for _ in 0..10_000 {
            sender.send(b"").unwrap();
        }
        while sender.send_queue.take().is_some() {}
        assert!(lock(&sender.send_queue.state).commands.capacity() <= KEPT);
        assert_eq!(lock(&sender.send_queue.state).bytes, 0);
    }

    /// What [`Context::sender`](crate::Context::sender) says.
    #[test]
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    fn a_send_queue_that_is_empty_costs_128_bytes_and_one_that_is_used_96_more() {
        let counts_of_the_arc = 2 * size_of::<usize>();
        assert_eq!(counts_of_the_arc + size_of::<SendQueue>(), 128);
        let (_mailbox, sender) = send_queue(1000);
        assert_eq!(lock(&sender.send_queue.state).commands.capacity(), 0);
        assert_eq!(size_of::<Command>() * KEPT, 96);
    }

    #[test]
    fn the_drop_of_the_last_sender_is_posted_if_the_loop_listens() {
        let (mailbox, sender) = send_queue(1000);
        let send_queue = sender.send_queue.clone();
        let notified = || {
            let mut mail = VecDeque::new();
            mailbox.collect(&mut mail, 8);
            send_queue.listen();
            mail.len()
        };
        drop(sender);
        assert_eq!(notified(), 0, "nobody waits for it");
        let sender = Sender::new(send_queue.clone(), Encodable::Any);
        let other = sender.clone();
        assert!(!send_queue.is_abandoned());
        drop(sender);
        assert_eq!(notified(), 0, "one is left");
        other.send(b"last words").unwrap();
        assert_eq!(notified(), 1);
        drop(other);
        assert_eq!(notified(), 1);
        assert!(!send_queue.is_abandoned(), "something waits");
        assert!(send_queue.take().is_some());
        assert!(send_queue.is_abandoned());
    }

    #[test]
    fn messages_and_events_come_out_in_the_order_in_which_they_went_in() {
        let (mailbox, sender) = send_queue(1000);
        for number in 0..6u8 {
            if number % 2 == 0 {
                sender.send(&[number]).unwrap();
            } else {
                sender.post(Box::new(number)).unwrap();
            }
        }
        sender.close();
        for number in 0..6u8 {
            match sender.send_queue.take() {
                Some(Command::Message(message)) => assert_eq!(*message, [number]),
                Some(Command::Event(event)) => assert_eq!(event.downcast_ref(), Some(&number)),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(sender.send_queue.take(), Some(Command::Close)));
        let mut mail = VecDeque::new();
        mailbox.collect(&mut mail, 8);
        assert_eq!(mail.len(), 1);
    }

    #[test]
    fn events_are_bounded_by_their_number_and_messages_by_their_bytes() {
        let (_mailbox, sender) = send_queue(10);
        for _ in 0..EVENTS {
            sender.post(Box::new([0u8; 100])).unwrap();
        }
        assert_eq!(sender.post(Box::new(())), Err(SendError::Full));
        assert_eq!(sender.send(b"a message"), Ok(()));
        assert_eq!(sender.send(b"x"), Err(SendError::Full));
        assert!(matches!(sender.send_queue.take(), Some(Command::Event(_))));
        assert_eq!(sender.post(Box::new(())), Ok(()));
        assert_eq!(sender.post(Box::new(())), Err(SendError::Full));
        while sender.send_queue.take().is_some() {}
        assert_eq!(sender.post(Box::new(())), Ok(()));
    }

    #[test]
    fn where_no_handler_can_be_called_an_event_and_what_is_behind_it_are_left() {
        let (_mailbox, sender) = send_queue(1000);
        let queue = &sender.send_queue;
        sender.send(b"first").unwrap();
        assert!(!queue.has_event());
        sender.post(Box::new("event")).unwrap();
        sender.send(b"second").unwrap();
        sender.close();
        assert!(queue.has_event());
        assert!(matches!(queue.take_message(), Some(Command::Message(_))));
        assert!(queue.take_message().is_none());
        assert!(matches!(queue.take(), Some(Command::Event(_))));
        assert!(!queue.has_event());
        assert!(matches!(queue.take_message(), Some(Command::Message(_))));
        assert!(matches!(queue.take_message(), Some(Command::Close)));
    }

    /// An event whose destructor asks its sender something, which locks the queue, and panics.
    struct Rude(Sender);

    impl Drop for Rude {
        fn drop(&mut self) {
            self.0.is_closed();
            panic!("in the destructor of an event, on purpose");
        }
    }

    #[test]
    fn an_event_whose_destructor_panics_is_dropped_outside_of_the_lock_and_the_panic_is_caught() {
        let caught = || {
            let caught = guard::take_caught();
            assert_eq!(guard::take_caught(), 0);
            caught
        };
        for abort in [false, true] {
            let (_mailbox, sender) = send_queue(1000);
            let post = || sender.post(Box::new(Rude(sender.clone())));
            while post().is_ok() {}
            assert_eq!(caught(), 1, "one too many");
            assert!(sender.send_queue.take().is_some());
            assert_eq!(caught(), 1, "one that is taken");
            if abort {
                sender.abort();
            } else {
                sender.send_queue.close();
            }
            assert_eq!(caught(), u64::from(EVENTS) - 1, "those that wait at the end");
            assert_eq!(post(), Err(SendError::Closed));
            assert_eq!(caught(), 1, "one after the end");
            assert!(!sender.send_queue.has_event());
        }
    }

    #[test]
    fn a_broadcast_shares_its_bytes() {
        let (_one, first) = send_queue(100);
        let (_two, second) = send_queue(100);
        assert_eq!(broadcast([&first, &second], b"hello"), 2);
        let Some(Command::Message(message)) = first.send_queue.take() else { panic!("a message") };
        assert_eq!(Arc::strong_count(&message), 2);
    }
}
