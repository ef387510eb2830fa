//! Sends to a connection from other threads and other handlers: the public [`Sender`], and the send
//! queue of each connection to which it adds.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::address::Peer;
use crate::connection_id::ConnectionId;
use crate::encodable::Encodable;
use crate::error::SendError;
use crate::mailbox::{Mailbox, Notification};
use crate::memory::MemoryGauge;
use crate::sync::atomic::{AtomicU32, Ordering::SeqCst};
use crate::sync::{Mutex, MutexGuard, lock};
use crate::sys::{CatchDrop, Wakeup};
use crate::token::Token;

/// A payload that several connections send without a copy for each.
pub(crate) type SharedBytes = Arc<[u8]>;

/// A value of the user for a connection's handler: see [`Sender::post`].
///
/// ```
/// use socketserver::{Event, Sender};
///
/// /// A result of another thread, for `Handler::on_event`.
/// struct Finished(u64);
///
/// fn tell(sender: &Sender) {
///     let event: Event = Box::new(Finished(42));
///     let _ = sender.post(event); // an error: the connection has ended
/// }
/// ```
pub type Event = Box<dyn Any + Send>;

/// How many events a send queue holds at most.
const EVENTS: u16 = 1024;

/// What a message counts in a send queue besides its bytes, so that the number of small messages is
/// limited too.
const OVERHEAD: usize = 64;

/// The capacity that an empty send queue keeps, in messages and events.
const KEPT: usize = 4;

/// How many bytes all senders of one connection may queue together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SenderLimit(u32);

impl SenderLimit {
    /// A limit above 4 GiB counts as 4 GiB.
    pub(crate) fn new(bytes: usize) -> Self {
        SenderLimit(u32::try_from(bytes).unwrap_or(u32::MAX))
    }
}

impl Default for SenderLimit {
    fn default() -> Self {
        SenderLimit(256 * 1024)
    }
}

/// How the driver of a connection is notified that its send queue has entries.
#[derive(Debug)]
pub(crate) enum Waker {
    /// By the mailbox of an event loop, with the token of the connection.
    Loop(Arc<Mailbox>, Token),
    /// By the wakeup of a thread that serves one connection.
    Thread(Arc<ThreadWaker>),
}

/// The wakeup of a thread that serves connections of one server, one after the other.
#[derive(Debug)]
pub(crate) struct ThreadWaker {
    pub(crate) wakeup: Wakeup,
    /// Counts the memory that the connections of the server hold.
    pub(crate) memory: Arc<MemoryGauge>,
}

impl Waker {
    /// Counts the memory that the connections of the server hold.
    fn memory(&self) -> &MemoryGauge {
        match self {
            Waker::Loop(mailbox, _) => mailbox.memory(),
            Waker::Thread(waker) => &waker.memory,
        }
    }
}

/// An entry of a send queue.
#[derive(Debug)]
pub(crate) enum Command {
    Message(SharedBytes),
    Event(CatchDrop<Event>),
    /// Close the connection; nothing follows.
    Close,
    /// Reset the connection; nothing follows.
    Abort,
}

/// The stage of a connection's close, as its senders see it. The stages are ordered: the stage only
/// moves forward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    /// The connection is open.
    #[default]
    Open,
    /// Only senders can continue the connection: its driver is notified when the last one is
    /// dropped.
    HalfOpen,
    /// A sender has closed the connection: what was sent before still goes out.
    Closing,
    /// A sender has aborted the connection: nothing more goes out.
    Aborted,
    /// The connection is closed.
    Closed,
}

impl Ending {
    /// Whether senders are refused.
    fn has_begun(self) -> bool {
        self > Ending::HalfOpen
    }
}

/// The send queue of a connection: messages and events from other threads. It is created with the
/// first sender.
#[derive(Debug)]
pub(crate) struct SendQueue {
    state: Mutex<SendQueueState>,
    waker: Waker,
    /// How many senders there are.
    senders: AtomicU32,
    limit: SenderLimit,
    recipient: Recipient,
}

/// The connection of a send queue.
#[derive(Debug)]
pub(crate) struct Recipient {
    pub(crate) id: ConnectionId,
    pub(crate) peer: Peer,
}

#[derive(Debug, Default)]
struct SendQueueState {
    /// Messages and events, the oldest first.
    commands: VecDeque<Command>,
    /// How many bytes the messages count.
    bytes: u32,
    /// How many of the commands are events.
    events: u16,
    ending: Ending,
    /// The driver has been notified, or is awake, and has not called `enable_notification` since.
    /// So it is not notified again.
    notified: bool,
}

/// What a message counts in the queue. More than 4 GiB count as 4 GiB.
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

    /// How many bytes the queued messages count.
    pub(crate) fn held(&self) -> usize {
        lock(&self.state).bytes as usize
    }

    /// Notifies the driver, once, of the next entry from now on. Returns whether there is something
    /// to [`take`](SendQueue::take) already. A thread calls this before it waits, an event loop
    /// when it has taken the notification.
    pub(crate) fn enable_notification(&self) -> bool {
        let mut state = lock(&self.state);
        state.notified = false;
        !state.is_empty()
    }

    /// Takes the oldest message or event. If there is none, returns the close that a sender has
    /// requested.
    pub(crate) fn take(&self) -> Option<Command> {
        self.take_from(&mut lock(&self.state))
    }

    fn take_from(&self, state: &mut SendQueueState) -> Option<Command> {
        let before = state.bytes;
        let command = state.take();
        self.waker.memory().subtract((before - state.bytes) as usize);
        command
    }

    /// As [`take`](SendQueue::take), where no handler can be called: returns `None` if an event is
    /// first.
    pub(crate) fn take_message(&self) -> Option<Command> {
        let mut state = lock(&self.state);
        match state.commands.front() {
            Some(Command::Event(_)) if state.ending != Ending::Aborted => None,
            _ => self.take_from(&mut state),
        }
    }

    /// Whether an event is queued, so that the handler has to be called.
    pub(crate) fn has_event(&self) -> bool {
        lock(&self.state).events > 0
    }

    /// Whether there is nothing to [`take`](SendQueue::take).
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.state).is_empty()
    }

    /// The stage of the connection's close.
    pub(crate) fn ending(&self) -> Ending {
        lock(&self.state).ending
    }

    /// From now on every send returns `Closed`, and queued messages and events are dropped. The
    /// connection can still be aborted.
    pub(crate) fn refuse(&self) {
        let mut state = lock(&self.state);
        let ending = state.ending.max(Ending::Closing);
        let notified = state.notified;
        let refusing = SendQueueState { ending, notified, ..SendQueueState::default() };
        let before = std::mem::replace(&mut *state, refusing);
        drop(state);
        self.waker.memory().subtract(before.bytes as usize);
        // Not while it is locked: the destructor of an event is code of the user.
        drop(before);
    }

    /// Refuses all sends from now on, because the connection is closed.
    pub(crate) fn close(&self) {
        let closed = SendQueueState { ending: Ending::Closed, ..SendQueueState::default() };
        let before = std::mem::replace(&mut *lock(&self.state), closed);
        self.waker.memory().subtract(before.bytes as usize);
        // Dropped outside of the lock, because the destructor of an event is code of the user.
        drop(before);
    }

    fn push(&self, message: SharedBytes) -> Result<(), SendError> {
        let mut state = lock(&self.state);
        if state.ending.has_begun() {
            return Err(SendError::Closed);
        }
        let SenderLimit(limit) = self.limit;
        let charge = charge(&message);
        state.bytes = match state.bytes.checked_add(charge) {
            Some(bytes) if bytes <= limit || state.bytes == 0 => bytes,
            _ => return Err(SendError::Full),
        };
        self.waker.memory().add(charge as usize);
        self.enqueue(state, Command::Message(message));
        Ok(())
    }

    fn post(&self, event: Event) -> Result<(), SendError> {
        // An event that is refused is dropped after the lock is released.
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
            self.notify(state);
        }
    }

    /// Moves the close forward to this stage, unless a later one is reached.
    fn end(&self, ending: Ending) {
        let mut state = lock(&self.state);
        if state.ending >= ending {
            return;
        }
        state.ending = ending;
        let mut dropped = VecDeque::new();
        if ending == Ending::Aborted {
            self.waker.memory().subtract(state.bytes as usize);
            (state.bytes, state.events) = (0, 0);
            dropped = std::mem::take(&mut state.commands);
        }
        self.notify(state);
        drop(dropped);
    }

    /// Notifies the driver, unless it will look at the queue in any case.
    fn notify(&self, mut state: MutexGuard<'_, SendQueueState>) {
        if std::mem::replace(&mut state.notified, true) {
            return;
        }
        drop(state);
        match &self.waker {
            Waker::Loop(mailbox, token) => mailbox.post(Notification::SendQueue(*token)),
            Waker::Thread(waker) => waker.wakeup.wake(),
        }
    }

    /// Whether the queue is empty and no sender is left. If a sender is left, the driver is
    /// notified when the last one is dropped. Called where the connection itself creates no more
    /// senders.
    ///
    /// A sender that is dropped first reduces the count and then reads the stage. This method first
    /// sets the stage and then reads the count. So one of the two sees the other.
    pub(crate) fn is_abandoned(&self) -> bool {
        let mut state = lock(&self.state);
        state.ending = state.ending.max(Ending::HalfOpen);
        state.is_empty() && self.senders.load(SeqCst) == 0
    }

    fn sender_gone(&self) {
        if self.senders.fetch_sub(1, SeqCst) == 1 {
            let state = lock(&self.state);
            if state.ending == Ending::HalfOpen {
                self.notify(state);
            }
        }
    }
}

impl Drop for SendQueue {
    fn drop(&mut self) {
        self.waker.memory().subtract(self.held());
    }
}

/// A handle to one connection, for other threads and other handlers: see
/// [`Context::sender`](crate::Context::sender).
///
/// It refers to this connection only. When the connection is closed, every send returns
/// [`SendError::Closed`]. A handle does not keep the connection open, with one exception: the peer
/// has ended, and the handler has left the connection open for its senders (see
/// [`Handler::on_eof`](crate::Handler::on_eof)). Then the connection is closed when the last sender
/// is dropped.
///
/// In the guide: [`blocking_work`](crate::guide::blocking_work),
/// [`embedding`](crate::guide::embedding),
/// [`logging_and_counters`](crate::guide::logging_and_counters),
/// [`reaching_others`](crate::guide::reaching_others),
/// [`several_cpus`](crate::guide::several_cpus), [`streaming`](crate::guide::streaming).
///
/// ```
/// use std::time::Duration;
/// use std::thread;
/// use socketserver::{Context, Handler, HandlerResult};
///
/// /// Sends a second answer later, from another thread.
/// struct Later;
///
/// impl Handler for Later {
///     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
///         let sender = cx.sender()?;
///         thread::spawn(move || {
///             thread::sleep(Duration::from_secs(1));
///             if let Err(error) = sender.send(b"later") {
///                 log::debug!("{} of {}: {error}", sender.id(), sender.peer());
///             }
///         });
///         cx.send(message)
///     }
/// }
/// ```
pub struct Sender {
    send_queue: Arc<SendQueue>,
    /// The messages that the framing could send when this handle was created.
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

    /// Sends a message, framed like the messages of the handler. It does not wait.
    ///
    /// The message is queued until the driver of the connection takes it: its event loop, or its
    /// thread under `threading` and `pool`. The driver takes all queued messages at once. It takes
    /// no more while the waiting output is at the high mark (see
    /// [`Builder::write_watermarks`](crate::Builder::write_watermarks)).
    ///
    /// [`Builder::sender_limit`](crate::Builder::sender_limit) limits the queue: each message
    /// counts as its bytes and 64 more, and one message always fits. With the default of 256 KiB
    /// these are 246 messages of 1,000 bytes. So a sender that is faster than the driver is refused
    /// also when the peer reads fast. This is more frequent with many threads on few processors
    /// than with one event loop. To accept whole bursts, raise the limit.
    ///
    /// # Errors
    ///
    /// The message is not sent, and the connection stays as it is:
    ///
    /// * [`SendError::Closed`] when the connection is closed, or a handle to it has closed or
    ///   aborted it,
    /// * [`SendError::Full`] when the queue is full,
    /// * [`SendError::TooLong`] and [`SendError::Unencodable`] when the framing cannot send such a
    ///   message (see [`Framing::encodable`](crate::Framing::encodable)): the framing as it was
    ///   when [`Context::sender`](crate::Context::sender) returned this handle.
    pub fn send(&self, message: &[u8]) -> Result<(), SendError> {
        self.encodable.check(message)?;
        self.send_queue.push(message.into())
    }

    /// Sends a message that several connections share: see [`broadcast`].
    ///
    /// ```
    /// use std::sync::Arc;
    /// use socketserver::Sender;
    ///
    /// /// One text, in memory once, to all members that can take it.
    /// fn tell(members: &[Sender], text: Arc<[u8]>) -> usize {
    ///     members.iter().filter(|member| member.send_shared(&text).is_ok()).count()
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`send`](Sender::send).
    pub fn send_shared(&self, message: &Arc<[u8]>) -> Result<(), SendError> {
        self.encodable.check(message)?;
        self.send_queue.push(message.clone())
    }

    /// Posts `event` to the connection's handler, which gets it in
    /// [`Handler::on_event`](crate::Handler::on_event). It does not wait.
    ///
    /// So a thread can pass a result to the handler of a connection, and not only bytes to its
    /// peer. The handler is called where its other methods are called: on the event loop, by a
    /// worker under `offload`, in the connection's thread under `threading` and `pool`. Messages
    /// and events of one connection keep their order, also those of several handles. Like input,
    /// events wait while the waiting output is at the high mark (see
    /// [`Builder::write_watermarks`](crate::Builder::write_watermarks)).
    ///
    /// The queue holds at most 1,024 events of any size; they do not count in
    /// [`Builder::sender_limit`](crate::Builder::sender_limit). Events that are queued when the
    /// connection ends are dropped without a call of the handler. An event that must not be lost
    /// returns its content in its own `Drop`.
    ///
    /// ```
    /// use socketserver::{SendError, Sender};
    ///
    /// /// The balance of an account, as an event.
    /// struct Balance(u64);
    ///
    /// fn notify(sender: &Sender, balance: u64) -> Result<(), SendError> {
    ///     sender.post(Box::new(Balance(balance)))
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// The event is dropped before this returns, and the connection stays as it is:
    ///
    /// * [`SendError::Closed`] when the connection is closed, or a handle to it has closed or
    ///   aborted it,
    /// * [`SendError::Full`] when 1,024 events are queued.
    pub fn post(&self, event: Event) -> Result<(), SendError> {
        self.send_queue.post(event)
    }

    /// Closes the connection when all that was sent before has gone out, like
    /// [`Context::close`](crate::Context::close). It does not wait.
    ///
    /// The handler still gets the events that were posted before. From this call on every send
    /// returns [`SendError::Closed`], and a second call does nothing. The close takes effect also
    /// when output waits for the peer; a handler that is running finishes first. A peer that then
    /// takes nothing for 30 seconds is reset, and its remaining output is dropped. `on_close` gets
    /// [`CloseReason::Handler`](crate::CloseReason::Handler).
    ///
    /// ```
    /// use socketserver::Sender;
    ///
    /// fn say_goodbye(member: &Sender) {
    ///     let _ = member.send(b"goodbye"); // an error: it has gone already
    ///     member.close();
    /// }
    /// ```
    pub fn close(&self) {
        self.send_queue.end(Ending::Closing);
    }

    /// Closes the connection at once with a reset, like [`Context::abort`](crate::Context::abort).
    /// Output that has not gone out is dropped, including the messages in the send queue. It does
    /// not wait.
    ///
    /// The abort takes effect whatever the connection waits for, also after
    /// [`close`](Sender::close); a handler that is running finishes first. `on_close` gets
    /// [`CloseReason::Handler`](crate::CloseReason::Handler). On a Unix socket, which has no reset,
    /// the peer sees the end of the stream.
    ///
    /// ```
    /// use socketserver::{SendError, Sender};
    ///
    /// /// A member that does not keep up is cut.
    /// fn news(member: &Sender, text: &[u8]) {
    ///     if member.send(text) == Err(SendError::Full) {
    ///         member.abort();
    ///     }
    /// }
    /// ```
    pub fn abort(&self) {
        self.send_queue.end(Ending::Aborted);
    }

    /// Whether the connection is closed, or a handle to it has closed or aborted it: a send then
    /// returns [`SendError::Closed`].
    ///
    /// ```
    /// use socketserver::Sender;
    ///
    /// fn tidy(members: &mut Vec<Sender>) {
    ///     members.retain(|member| !member.is_closed());
    /// }
    /// ```
    pub fn is_closed(&self) -> bool {
        self.send_queue.ending().has_begun()
    }

    /// The number of the connection, which no other connection of this process ever has.
    pub fn id(&self) -> ConnectionId {
        self.send_queue.recipient.id
    }

    /// The peer of the connection, like [`Context::peer`](crate::Context::peer).
    pub fn peer(&self) -> &Peer {
        &self.send_queue.recipient.peer
    }

    /// Whether both are handles to the same connection.
    ///
    /// ```
    /// use socketserver::Sender;
    ///
    /// /// All members but the one that has spoken.
    /// fn others<'a>(members: &'a [Sender], speaker: &Sender) -> Vec<&'a Sender> {
    ///     members.iter().filter(|member| !member.is_same(speaker)).collect()
    /// }
    /// ```
    pub fn is_same(&self, other: &Sender) -> bool {
        self.id() == other.id()
    }
}

/// Handles to the same connection are equal: see [`is_same`](Sender::is_same).
impl PartialEq for Sender {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other)
    }
}

impl Eq for Sender {}

/// Hashes the connection, as [`Eq`] compares it. The hash never changes, so a sender can be a key
/// of a map. Clippy's `mutable_key_type` cannot know that and has to be allowed there.
impl Hash for Sender {
    fn hash<S: Hasher>(&self, state: &mut S) {
        self.id().hash(state);
    }
}

/// Sends one message to many connections, which share its bytes. Returns how many took it.
///
/// Connections that are closed or whose queue is full are skipped. To know which ones, send to each
/// separately.
///
/// ```
/// use socketserver::{Sender, broadcast};
///
/// fn announce(members: &[Sender]) {
///     let took = broadcast(members, b"the server restarts in a minute");
///     log::info!("{took} of {} members know it", members.len());
/// }
/// ```
#[must_use = "it may be fewer than there are senders"]
pub fn broadcast<'a>(senders: impl IntoIterator<Item = &'a Sender>, message: &[u8]) -> usize {
    let message: Arc<[u8]> = message.into();
    senders.into_iter().filter(|sender| sender.send_shared(&message).is_ok()).count()
}

#[cfg(all(test, socketserver_loom))]
mod models;

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
    fn many_sends_post_one_notification() {
        let (mailbox, sender) = send_queue(1000);
        sender.send(b"one").unwrap();
        sender.send(b"two").unwrap();
        let mut notifications = VecDeque::new();
        mailbox.collect(&mut notifications, 8);
        assert_eq!(notifications.len(), 1);
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
        let mut notifications = VecDeque::new();
        mailbox.collect(&mut notifications, 8);
        sender.send_queue.enable_notification();
        notifications.clear();
        sender.close();
        sender.abort();
        mailbox.collect(&mut notifications, 8);
        assert_eq!(notifications.len(), 1);
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
    fn repeated_closes_and_aborts_post_one_notification() {
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
        let mut notifications = VecDeque::new();
        mailbox.collect(&mut notifications, 8);
        assert_eq!(notifications.len(), 1);
    }

    /// The loop also drains a send queue when another event of the connection comes first.
    #[test]
    fn a_send_queue_emptied_before_its_notification_is_taken_posts_no_second_one() {
        let (mailbox, sender) = send_queue(1000);
        let mut notifications = VecDeque::new();
        for _ in 0..3 {
            for _ in 0..1000 {
                sender.send(b"one").unwrap();
                assert!(sender.send_queue.take().is_some());
            }
            mailbox.collect(&mut notifications, 8);
            assert_eq!(notifications.drain(..).count(), 1);
            assert!(!sender.send_queue.enable_notification());
        }
    }

    #[test]
    fn a_thread_is_woken_once_for_all_messages_before_it_waits_again() {
        let (wakeup, memory) = (Wakeup::new().unwrap(), Arc::default());
        let thread = Arc::new(ThreadWaker { wakeup, memory });
        let waker = Waker::Thread(thread.clone());
        let send_queue = SendQueue::new(waker, SenderLimit::new(1 << 20), recipient());
        let sender = Sender::new(Arc::new(send_queue), Encodable::Any);
        for _ in 0..3 {
            assert!(!sender.send_queue.enable_notification());
            for number in 0..1000 {
                sender.send(b"one").unwrap();
                assert!(sender.send_queue.take().is_some());
                assert_eq!(thread.wakeup.take(), number == 0);
            }
        }
        sender.send(b"one").unwrap();
        assert!(
            sender.send_queue.enable_notification(),
            "a message is queued, so the thread must not wait"
        );
        sender.close();
        assert!(thread.wakeup.take());
        assert!(sender.send_queue.enable_notification());
        sender.abort();
        assert!(thread.wakeup.take());
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

    /// The sizes that [`Context::sender`](crate::Context::sender) documents.
    #[test]
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    fn an_empty_send_queue_takes_128_bytes_and_a_used_one_96_more() {
        let counts_of_the_arc = 2 * size_of::<usize>();
        assert_eq!(counts_of_the_arc + size_of::<SendQueue>(), 128);
        let (_mailbox, sender) = send_queue(1000);
        assert_eq!(lock(&sender.send_queue.state).commands.capacity(), 0);
        assert_eq!(size_of::<Command>() * KEPT, 96);
    }

    #[test]
    fn the_drop_of_the_last_sender_is_posted_if_the_connection_waits_for_it() {
        let (mailbox, sender) = send_queue(1000);
        let send_queue = sender.send_queue.clone();
        let notified = || {
            let mut notifications = VecDeque::new();
            mailbox.collect(&mut notifications, 8);
            send_queue.enable_notification();
            notifications.len()
        };
        drop(sender);
        assert_eq!(notified(), 0, "the connection does not wait for senders");
        let sender = Sender::new(send_queue.clone(), Encodable::Any);
        let other = sender.clone();
        assert!(!send_queue.is_abandoned());
        drop(sender);
        assert_eq!(notified(), 0, "one sender is left");
        other.send(b"last words").unwrap();
        assert_eq!(notified(), 1);
        drop(other);
        assert_eq!(notified(), 1);
        assert!(!send_queue.is_abandoned(), "a message is queued");
        assert!(send_queue.take().is_some());
        assert!(send_queue.is_abandoned());
    }

    #[test]
    fn messages_and_events_keep_their_order() {
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
        let mut notifications = VecDeque::new();
        mailbox.collect(&mut notifications, 8);
        assert_eq!(notifications.len(), 1);
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
    fn where_no_handler_can_be_called_an_event_and_later_messages_stay_queued() {
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

    /// An event whose destructor locks the send queue of its sender and panics.
    struct PanicsOnDrop(Sender);

    impl Drop for PanicsOnDrop {
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
            let post = || sender.post(Box::new(PanicsOnDrop(sender.clone())));
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
