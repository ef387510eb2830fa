//! What all who send on one datagram socket share: the datagrams that wait for room, and the loop that
//! tries them again.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use socket2::{SockAddr, Socket};

use super::retries::{RETRY_HIGH, RetryQueues};
use super::unresponsive::warn_of_full_send_buffer;
use crate::address::Address;
use crate::counters::{Published, Tally};
use crate::error::SendError;
use crate::mailbox::{Mail, Mailbox};
use crate::sync::lock;
use crate::sys::{self, Destination};
use crate::token::Token;

/// How much may wait before a [`DatagramSender`](super::DatagramSender) is refused, in bytes: the other
/// half is for replies.
const SENDER_HIGH: usize = RETRY_HIGH / 2;

/// The state of a datagram socket that its users share. It does not keep the socket open.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) address: Arc<Address>,
    /// The socket, for senders; `None` when the server has closed it.
    open: RwLock<Option<Arc<Socket>>>,
    /// This process is a forked child that answers a datagram of this socket.
    kept_in_child: AtomicBool,
    queues: Mutex<Queues>,
    /// Where senders count, once the socket belongs to a server.
    published: OnceLock<Arc<Published>>,
}

/// The datagrams that wait for room in the queues of Unix peers.
#[derive(Debug, Default)]
pub(super) struct Queues {
    pub(super) retries: RetryQueues,
    /// The loop that tries them again, while one runs. It is told when there is something.
    event_loop: Option<(Arc<Mailbox>, Token)>,
    /// The run is about to end: no sender's datagram is queued any more.
    draining: bool,
}

/// What has become of a datagram that the loop may try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queued {
    Yes,
    /// No loop tries it again, or it need not wait.
    No,
    /// Too much waits, or the peer has been waited for in vain.
    Refused,
}

impl Outlet {
    pub(super) fn new(socket: Arc<Socket>, address: Arc<Address>) -> Self {
        Outlet {
            address,
            open: RwLock::new(Some(socket)),
            kept_in_child: AtomicBool::new(false),
            queues: Mutex::default(),
            published: OnceLock::new(),
        }
    }

    /// What its senders send is counted there.
    pub(super) fn count_into(&self, published: &Arc<Published>) {
        let _ = self.published.set(published.clone());
    }

    /// The server closes the socket: waits for senders that are using it, and refuses all later ones.
    pub(super) fn close(&self) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub(super) fn queues(&self) -> MutexGuard<'_, Queues> {
        lock(&self.queues)
    }

    /// A run begins: from now on what finds no room is tried again by this loop, as this entry's.
    pub(super) fn begin_run(&self, mailbox: &Arc<Mailbox>, token: Token) {
        self.queues().event_loop = Some((mailbox.clone(), token));
    }

    /// The run has ended: what waits is lost.
    pub(super) fn end_run(&self, tally: &mut Tally) {
        let mut queues = self.queues();
        queues.retries.give_up(tally);
        (queues.event_loop, queues.draining) = (None, false);
    }

    /// This process is a forked child, which has a copy of all this. What waits is the parent's.
    pub(super) fn enter_child(&self) {
        self.kept_in_child.store(true, SeqCst);
        *self.queues() = Queues::default();
    }

    /// The run is about to end; how many datagrams wait. No sender can prolong that.
    pub(super) fn drain(&self) -> usize {
        let mut queues = self.queues();
        queues.draining = true;
        queues.retries.len()
    }

    /// Tries those again that wait; after how long to try again, if some are left.
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

    /// A datagram has waited in vain; `for_all` says that one to anybody would have.
    pub(super) fn record_timeout(&self, peer: &SockAddr, now: Instant, for_all: bool) {
        let mut queues = self.queues();
        queues.retries.unresponsive.record_timeout(peer, now, for_all);
        self.warn(queues);
    }

    /// Warns if that is due, when the queues are unlocked.
    fn warn(&self, mut queues: MutexGuard<'_, Queues>) {
        let warns = queues.retries.unresponsive.take_warning();
        drop(queues);
        if warns {
            warn_of_full_send_buffer();
        }
    }

    /// Leaves a datagram to the loop, if there is one. A peer's datagrams keep their order, so where
    /// `only_behind_others` says so it is left only if others for the same peer are.
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
            mailbox.post(Mail::SendQueue(token));
        }
        Queued::Yes
    }

    /// A datagram to this peer has gone.
    pub(super) fn record_sent(&self, peer: &SockAddr) {
        if peer.is_unix() {
            self.queues().retries.unresponsive.record_sent(peer);
        }
    }

    /// Sends a datagram for a sender, or leaves it to the loop, or refuses it; never waits.
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
