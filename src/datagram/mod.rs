//! Received datagrams, and the socket that replies are sent on.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::address::{Address, Peer};
use crate::counters::Tally;
use crate::guard::log;
use crate::mailbox::{Mail, Mailbox};
use crate::sync::lock;
use crate::sys::{self, Destination, RecvMeta};
use crate::token::Token;

mod retries;
mod unresponsive;

#[cfg(test)]
pub(crate) use retries::{OVERHEAD, RETRY_HIGH};
pub(crate) use retries::{RETRY, RetryQueues, charge};
#[cfg(test)]
pub(crate) use unresponsive::PATIENCE;

/// A received datagram.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) bytes: Vec<u8>,
    pub(crate) peer: Peer,
    /// Where a reply goes.
    pub(crate) from: Destination,
    pub(crate) truncated: bool,
}

impl Datagram {
    pub(crate) fn new(bytes: &[u8], peer: Peer, received: &RecvMeta) -> Self {
        let from = received.from.clone();
        Datagram { bytes: bytes.to_vec(), peer, from, truncated: received.truncated }
    }
}

/// A socket on which datagrams are answered, by whichever thread.
///
/// Where a loop runs beside, nobody waits for a Unix peer with a full queue: its replies are put
/// aside, and the loop tries them again.
#[derive(Debug)]
pub(crate) struct ReplySocket {
    pub(crate) socket: Arc<Socket>,
    /// Where it is bound.
    pub(crate) address: Arc<Address>,
    retries: Mutex<RetryQueues>,
    /// The loop that tries again what is put aside. It is told when there is something.
    retried_by: OnceLock<(Arc<Mailbox>, Token)>,
    /// That loop has ended. Changed only while `aside` is locked.
    run_ended: AtomicBool,
}

impl ReplySocket {
    pub(crate) fn new(socket: Arc<Socket>, address: Arc<Address>) -> Self {
        ReplySocket {
            socket,
            address,
            retries: Mutex::default(),
            retried_by: OnceLock::new(),
            run_ended: AtomicBool::new(false),
        }
    }

    /// From now on what finds no room is tried again by this loop, as this entry's.
    pub(crate) fn retried_by(&self, mailbox: &Arc<Mailbox>, token: Token) {
        let _ = self.retried_by.set((mailbox.clone(), token));
    }

    /// Tries those again that were put aside; after how long to try again, if some are left.
    pub(crate) fn retry(&self, now: Instant, tally: &mut Tally) -> Option<Duration> {
        let mut retries = lock(&self.retries);
        retries.retry(&self.socket, now, tally);
        retries.interval()
    }

    /// How many replies are put aside.
    pub(crate) fn undelivered(&self) -> usize {
        lock(&self.retries).len()
    }

    /// The loop ends: what is put aside is lost, and nothing is any more.
    pub(crate) fn end_run(&self, tally: &mut Tally) {
        let mut retries = lock(&self.retries);
        self.run_ended.store(true, SeqCst);
        retries.give_up(tally);
    }

    /// Sends one datagram; a peer that has gone, or has no address, is counted and no error.
    pub(crate) fn reply(&self, to: &Destination, bytes: &[u8], tally: &mut Tally) {
        match self.send(to, bytes, tally) {
            Ok(true) => {
                tally.replies += 1;
                tally.bytes_out += bytes.len() as u64;
            }
            Ok(false) => {}
            Err(error) => {
                tally.unsent += 1;
                log::debug!("a datagram could not be sent: {error}");
            }
        }
    }

    /// Leaves a reply to the loop, if there is one: whether it did. A peer's replies keep their order,
    /// so where `only_behind_others` says so it is left only if others for the same peer are.
    fn queue_retry(
        &self,
        to: &Destination,
        bytes: &[u8],
        only_behind_others: bool,
        tally: &mut Tally,
    ) -> bool {
        let Some((mailbox, token)) = self.retried_by.get().filter(|_| to.address.is_unix()) else {
            return false;
        };
        let mut retries = lock(&self.retries);
        let first = retries.is_empty();
        if self.run_ended.load(SeqCst) || only_behind_others && !retries.has(&to.address) {
            return false;
        }
        let now = Instant::now();
        if retries.unresponsive.wait_budget(&to.address, now).is_zero() {
            tally.unsent += 1;
            return true;
        }
        retries.put(to.clone(), bytes.into(), now, tally);
        drop(retries);
        if first {
            mailbox.post(Mail::SendQueue(*token));
        }
        true
    }

    /// Sends one datagram (true), or leaves it to the loop.
    fn send(&self, to: &Destination, bytes: &[u8], tally: &mut Tally) -> io::Result<bool> {
        if self.queue_retry(to, bytes, true, tally) {
            return Ok(false);
        }
        let mut deadline = None;
        loop {
            let error = match sys::send_datagram(&self.socket, to, bytes) {
                Ok(()) => {
                    lock(&self.retries).unresponsive.record_sent(&to.address);
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => error,
                Err(error) => return Err(error),
            };
            if self.queue_retry(to, bytes, false, tally) {
                return Ok(false);
            }
            let now = Instant::now();
            let deadline = match deadline {
                Some(deadline) => deadline,
                None => {
                    let retries = lock(&self.retries);
                    let patience = retries.unresponsive.blocking_wait_budget(&to.address, now);
                    drop(retries);
                    if patience.is_zero() {
                        return Err(error);
                    }
                    *deadline.insert(now + patience)
                }
            };
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                let for_all = sys::is_send_buffer_full(&self.socket);
                lock(&self.retries).unresponsive.record_timeout(&to.address, now, for_all);
                return Err(error);
            }
            sys::wait_for_room(&self.socket, to, left)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::sys::Batch;

    #[test]
    fn only_a_wait_in_vain_is_remembered_and_not_each_reply_after_it() {
        let directory = std::env::temp_dir().join(format!("deaf-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let server = UnixDatagram::bind(directory.join("server")).unwrap();
        server.set_nonblocking(true).unwrap();
        let client = UnixDatagram::bind(directory.join("client")).unwrap();
        client.send_to(b"hello", directory.join("server")).unwrap();
        let socket = Arc::new(Socket::from(OwnedFd::from(server)));
        let (mut batch, mut received) = (Batch::new(100), Vec::new());
        batch.receive(&socket, 1, &mut received).unwrap();
        let to = received.remove(0).from;
        let address = Arc::new(Address::UnixDatagram(Some(directory.join("server"))));
        let (reply_socket, mut tally) = (ReplySocket::new(socket, address), Tally::default());
        while tally.unsent == 0 {
            reply_socket.reply(&to, b"unread", &mut tally);
        }
        let remembered = format!("{:?}", lock(&reply_socket.retries).unresponsive);
        reply_socket.reply(&to, b"lost at once", &mut tally);
        assert_eq!(tally.unsent, 2);
        assert_eq!(format!("{:?}", lock(&reply_socket.retries).unresponsive), remembered);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
