//! The state that all senders on one datagram socket share: the datagrams that wait for room, and
//! the event loop that retries them.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use socket2::SockAddr;

use super::retries::{RETRY_HIGH, RetryQueues};
use super::unresponsive::warn_of_full_send_buffer;
use crate::address::Address;
use crate::counters::{Published, Tally};
use crate::error::SendError;
use crate::mailbox::{Mailbox, Notification};
use crate::sync::lock;
use crate::sys::{self, Destination, Socket};
use crate::token::Token;

/// The limit of waiting datagrams for a [`DatagramSender`](super::DatagramSender), in bytes: the
/// other half is for replies.
const SENDER_HIGH: usize = RETRY_HIGH / 2;

/// The shared state of a datagram socket. It does not keep the socket open.
#[derive(Debug)]
pub(super) struct SharedSocket {
    pub(super) address: Arc<Address>,
    /// The socket, for senders; `None` when the server has closed it.
    open: RwLock<Option<Arc<Socket>>>,
    /// Whether this process is a forked child that serves a datagram of this socket.
    kept_in_child: AtomicBool,
    queues: Mutex<Queues>,
    /// The counters of senders; set when the socket belongs to a server.
    published: OnceLock<Arc<Published>>,
}

/// The datagrams that wait for room in the queues of Unix peers.
#[derive(Debug, Default)]
pub(super) struct Queues {
    pub(super) retries: RetryQueues,
    /// The event loop that retries them, while one runs. It is notified when the first datagram is
    /// queued.
    event_loop: Option<(Arc<Mailbox>, Token)>,
    /// Whether the run is about to end: then datagrams of senders are no longer queued.
    draining: bool,
}

/// The result of queueing a datagram for a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queued {
    Yes,
    /// There is no loop to retry it, or it need not wait.
    No,
    /// The queue is full, or the peer is unresponsive.
    Refused,
}

impl SharedSocket {
    pub(super) fn new(socket: Arc<Socket>, address: Arc<Address>) -> Self {
        SharedSocket {
            address,
            open: RwLock::new(Some(socket)),
            kept_in_child: AtomicBool::new(false),
            queues: Mutex::default(),
            published: OnceLock::new(),
        }
    }

    /// Counts what its senders send in `published`.
    pub(super) fn count_into(&self, published: &Arc<Published>) {
        let _ = self.published.set(published.clone());
    }

    /// Closes the socket for senders: waits for those that are using it, and refuses all later sends.
    pub(super) fn close(&self) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub(super) fn queues(&self) -> MutexGuard<'_, Queues> {
        lock(&self.queues)
    }

    /// Begins a run: from now on this loop retries datagrams that find no room, for the entry `token`.
    pub(super) fn begin_run(&self, mailbox: &Arc<Mailbox>, token: Token) {
        self.queues().event_loop = Some((mailbox.clone(), token));
    }

    /// Ends the run: waiting datagrams are dropped.
    pub(super) fn end_run(&self, tally: &mut Tally) {
        let mut queues = self.queues();
        queues.retries.give_up(tally);
        (queues.event_loop, queues.draining) = (None, false);
    }

    /// Adapts the copy of this state in a forked child: the waiting datagrams belong to the parent.
    pub(super) fn enter_child(&self) {
        self.kept_in_child.store(true, SeqCst);
        *self.queues() = Queues::default();
    }

    /// Prepares the end of the run: senders can add no more datagrams. Returns how many wait.
    pub(super) fn drain(&self) -> usize {
        let mut queues = self.queues();
        queues.draining = true;
        queues.retries.len()
    }

    /// Retries the waiting datagrams. Returns the time until the next retry, if some are left.
    pub(super) fn retry(
        &self,
        socket: &Socket,
        now: Instant,
        tally: &mut Tally,
    ) -> Option<Duration> {
        let mut queues = self.queues();
        queues.retries.retry(socket, now, tally);
        let interval = queues.retries.interval();
        self.warn(queues);
        interval
    }

    /// Records that a datagram found no room in time; `for_all` says that the socket's own send
    /// buffer was full, so that no datagram could be sent.
    pub(super) fn record_timeout(&self, peer: &SockAddr, now: Instant, for_all: bool) {
        let mut queues = self.queues();
        queues.retries.unresponsive.record_timeout(peer, now, for_all);
        self.warn(queues);
    }

    /// Unlocks the queues, and then warns if a warning is due.
    fn warn(&self, mut queues: MutexGuard<'_, Queues>) {
        let warns = queues.retries.unresponsive.take_warning();
        drop(queues);
        if warns {
            warn_of_full_send_buffer();
        }
    }

    /// Queues a datagram for a retry by the loop, if one runs. With `only_behind_others` it is
    /// queued only if others for the same peer wait, so that a peer's datagrams keep their order.
    pub(super) fn queue_retry(
        &self,
        to: &Destination,
        bytes: &[u8],
        only_behind_others: bool,
        of_sender: bool,
        tally: &mut Tally,
    ) -> Queued {
        if !to.address.is_unix() {
            return Queued::No;
        }
        let mut queues = self.queues();
        let Queues { retries, event_loop, draining } = &mut *queues;
        let Some((mailbox, token)) = event_loop else { return Queued::No };
        if only_behind_others && !retries.has(&to.address) {
            return Queued::No;
        }
        let now = Instant::now();
        let high = match (of_sender, *draining) {
            (true, true) => 0,
            (true, false) => SENDER_HIGH,
            (false, _) => RETRY_HIGH,
        };
        if retries.charge() >= high || retries.unresponsive.wait_budget(&to.address, now).is_zero()
        {
            return Queued::Refused;
        }
        let wake = retries.is_empty().then(|| (mailbox.clone(), *token));
        retries.put(to.clone(), bytes.into(), now, tally);
        drop(queues);
        if let Some((mailbox, token)) = wake {
            mailbox.post(Notification::SendQueue(token));
        }
        Queued::Yes
    }

    /// Records that a datagram to this peer was sent.
    pub(super) fn record_sent(&self, peer: &SockAddr) {
        if peer.is_unix() {
            self.queues().retries.unresponsive.record_sent(peer);
        }
    }

    /// Sends a datagram for a sender, or queues it for the loop, or refuses it; never waits.
    pub(super) fn send(&self, to: &Destination, bytes: &[u8]) -> Result<(), SendError> {
        if sys::is_forked_child() && !self.kept_in_child.load(SeqCst) {
            return Err(SendError::Closed);
        }
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(socket) = &*open else { return Err(SendError::Closed) };
        let mut tally = Tally::default();
        let sent = self.send_now(socket, to, bytes, &mut tally);
        drop(open);
        if let Some(published) = self.published.get() {
            published.add(&mut tally);
        }
        sent
    }

    fn send_now(
        &self,
        socket: &Socket,
        to: &Destination,
        bytes: &[u8],
        tally: &mut Tally,
    ) -> Result<(), SendError> {
        match self.queue_retry(to, bytes, true, true, tally) {
            Queued::Yes => return Ok(()),
            Queued::Refused => return Err(SendError::Full),
            Queued::No => {}
        }
        loop {
            match sys::send_datagram(socket, to, bytes) {
                Ok(()) => {
                    self.record_sent(&to.address);
                    tally.replies += 1;
                    tally.bytes_out += bytes.len() as u64;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return match self.queue_retry(to, bytes, false, true, tally) {
                        Queued::Yes => Ok(()),
                        Queued::No | Queued::Refused => Err(SendError::Full),
                    };
                }
                Err(error) => {
                    tally.unsent += 1;
                    return Err(SendError::Os(error.raw_os_error().unwrap_or_default()));
                }
            }
        }
    }
}
