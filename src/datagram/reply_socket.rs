//! The socket that replies are sent on, by any thread.

use std::io;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use super::reply_meter::ReplyMeter;
use super::sender::DatagramSender;
use super::shared_socket::{Queued, Queues, SharedSocket};
use crate::address::Address;
use crate::counters::{Published, Tally};
use crate::guard::log;
use crate::mailbox::Mailbox;
use crate::sys::{self, Destination, PacketInfo, Socket};
use crate::token::Token;
use crate::transport::local_addr;

/// A datagram socket on which any thread sends replies.
///
/// While an event loop runs, no thread waits for a Unix peer with a full queue: the replies to this
/// peer are queued, and the loop retries them.
#[derive(Debug)]
pub(crate) struct ReplySocket {
    pub(crate) socket: Arc<Socket>,
    shared: Arc<SharedSocket>,
    /// How much larger than a datagram its replies may be.
    reply_ratio: Option<u32>,
}

impl ReplySocket {
    pub(crate) fn new(socket: Arc<Socket>, address: Arc<Address>) -> Self {
        let shared = Arc::new(SharedSocket::new(socket.clone(), address));
        ReplySocket { socket, shared, reply_ratio: None }
    }

    /// Sets how much larger than a datagram its replies may be.
    pub(crate) fn with_reply_ratio(self, reply_ratio: Option<u32>) -> Self {
        ReplySocket { reply_ratio, ..self }
    }

    /// Measures the replies to a datagram of `bytes` bytes.
    pub(crate) fn meter(&self, bytes: usize) -> ReplyMeter {
        ReplyMeter::new(bytes, self.reply_ratio)
    }

    /// Sends the replies of a handler, as far as their number of bytes is not limited, and its
    /// datagrams to other peers.
    pub(crate) fn reply_all<'a>(
        &self,
        datagram: &[u8],
        from: &Destination,
        replies: impl Iterator<Item = (&'a [u8], &'a Destination)>,
        tally: &mut Tally,
    ) {
        let mut meter = self.meter(datagram.len());
        for (reply, to) in replies {
            if to.address != from.address || meter.admits(reply.len(), tally) {
                self.reply(to, reply, tally);
            }
        }
    }

    /// The address that it is bound to.
    pub(crate) fn address(&self) -> &Address {
        &self.shared.address
    }

    /// The local address of a datagram: the address that it was sent to, if that is known, or else
    /// the address that the socket is bound to.
    pub(crate) fn local_addr(&self, info: Option<PacketInfo>) -> Address {
        local_addr(self.address(), info)
    }

    /// A handle by which other threads send.
    pub(crate) fn sender(&self) -> DatagramSender {
        DatagramSender::new(self.shared.clone())
    }

    /// Counts what senders send in `published` from now on.
    pub(crate) fn count_into(&self, published: &Arc<Published>) {
        self.shared.count_into(published);
    }

    /// Closes the socket for senders.
    pub(crate) fn close(&self) {
        self.shared.close();
    }

    /// Begins a run: from now on this loop retries datagrams that find no room, for the entry `token`.
    pub(crate) fn begin_run(&self, mailbox: &Arc<Mailbox>, token: Token) {
        self.shared.begin_run(mailbox, token);
    }

    /// Ends the run: queued datagrams are dropped, and no more are queued.
    pub(crate) fn end_run(&self, tally: &mut Tally) {
        self.shared.end_run(tally);
    }

    /// Locks the queue during a fork, so that no other thread is changing it.
    pub(crate) fn hold(&self) -> impl Sized {
        let held: MutexGuard<'_, Queues> = self.shared.queues();
        held
    }

    /// Adapts this copy in a forked child, which has no event loop for retries.
    pub(crate) fn enter_child(&self) {
        self.shared.enter_child();
    }

    /// Retries the queued datagrams. Returns the time until the next retry, if some are left.
    pub(crate) fn retry(&self, now: Instant, tally: &mut Tally) -> Option<Duration> {
        self.shared.retry(&self.socket, now, tally)
    }

    /// Prepares the end of the run: senders can add no more datagrams. Returns how many are queued.
    pub(crate) fn drain(&self) -> usize {
        self.shared.drain()
    }

    /// Sends one datagram. If the peer has gone or has no address, this is only counted.
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

    /// Queues a reply for a retry by the loop, if one runs. Returns whether it was queued.
    fn queue_retry(
        &self,
        to: &Destination,
        bytes: &[u8],
        only_behind_others: bool,
        tally: &mut Tally,
    ) -> bool {
        let queued = self.shared.queue_retry(to, bytes, only_behind_others, false, tally);
        tally.unsent += u64::from(queued == Queued::Refused);
        queued != Queued::No
    }

    /// Sends one datagram (true), or queues it for the loop.
    fn send(&self, to: &Destination, bytes: &[u8], tally: &mut Tally) -> io::Result<bool> {
        if self.queue_retry(to, bytes, true, tally) {
            return Ok(false);
        }
        let mut deadline = None;
        loop {
            let error = match sys::send_datagram(&self.socket, to, bytes) {
                Ok(()) => {
                    self.shared.record_sent(&to.address);
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
                    let unresponsive = &self.shared.queues().retries.unresponsive;
                    let budget = unresponsive.blocking_wait_budget(&to.address, now);
                    if budget.is_zero() {
                        return Err(error);
                    }
                    *deadline.insert(now + budget)
                }
            };
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                let for_all = sys::is_send_buffer_full(&self.socket);
                self.shared.record_timeout(&to.address, now, for_all);
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
    fn a_reply_lost_without_a_wait_does_not_change_the_record_of_unresponsive_peers() {
        let directory = std::env::temp_dir().join(format!("unresponsive-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let server = UnixDatagram::bind(directory.join("server")).unwrap();
        server.set_nonblocking(true).unwrap();
        let client = UnixDatagram::bind(directory.join("client")).unwrap();
        client.send_to(b"hello", directory.join("server")).unwrap();
        let socket = Arc::new(Socket::from(OwnedFd::from(server)));
        let (mut batch, mut received) = (Batch::new(&socket, 100), Vec::new());
        batch.receive(&socket, 1, &mut received).unwrap();
        let to = received.remove(0).from;
        let address = Arc::new(Address::UnixDatagram(Some(directory.join("server"))));
        let (reply_socket, mut tally) = (ReplySocket::new(socket, address), Tally::default());
        while tally.unsent == 0 {
            reply_socket.reply(&to, b"unread", &mut tally);
        }
        let recorded = format!("{:?}", reply_socket.shared.queues().retries.unresponsive);
        reply_socket.reply(&to, b"lost at once", &mut tally);
        assert_eq!(tally.unsent, 2);
        assert_eq!(format!("{:?}", reply_socket.shared.queues().retries.unresponsive), recorded);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
