//! The socket that replies are sent on, by whichever thread.

use std::io;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::outlet::{Outlet, Queued, Queues};
use super::sender::DatagramSender;
use crate::address::Address;
use crate::counters::{Published, Tally};
use crate::guard::log;
use crate::mailbox::Mailbox;
use crate::sys::{self, Destination, PacketInfo};
use crate::token::Token;
use crate::transport::local_addr;

/// A socket on which datagrams are answered, by whichever thread.
///
/// Where a loop runs beside, nobody waits for a Unix peer with a full queue: its replies are put
/// aside, and the loop tries them again.
#[derive(Debug)]
pub(crate) struct ReplySocket {
    pub(crate) socket: Arc<Socket>,
    outlet: Arc<Outlet>,
}

impl ReplySocket {
    pub(crate) fn new(socket: Arc<Socket>, address: Arc<Address>) -> Self {
        let outlet = Arc::new(Outlet::new(socket.clone(), address));
        ReplySocket { socket, outlet }
    }

    /// Where it is bound.
    pub(crate) fn address(&self) -> &Address {
        &self.outlet.address
    }

    /// The local address of a datagram: where it was sent to, if that is known, or else where the
    /// socket is bound.
    pub(crate) fn local_addr(&self, info: Option<PacketInfo>) -> Address {
        local_addr(self.address(), info)
    }

    /// A handle to send by from other threads.
    pub(crate) fn sender(&self) -> DatagramSender {
        DatagramSender::new(self.outlet.clone())
    }

    /// What senders send is counted there from now on.
    pub(crate) fn count_into(&self, published: &Arc<Published>) {
        self.outlet.count_into(published);
    }

    /// The server closes the socket: no sender can use it any more.
    pub(crate) fn close(&self) {
        self.outlet.close();
    }

    /// A run begins: from now on what finds no room is tried again by this loop, as this entry's.
    pub(crate) fn begin_run(&self, mailbox: &Arc<Mailbox>, token: Token) {
        self.outlet.begin_run(mailbox, token);
    }

    /// The loop ends: what is put aside is lost, and nothing is put aside any more.
    pub(crate) fn end_run(&self, tally: &mut Tally) {
        self.outlet.end_run(tally);
    }

    /// Holds what is put aside while a child process is forked, so that no other thread is changing it.
    pub(crate) fn hold(&self) -> impl Sized {
        let held: MutexGuard<'_, Queues> = self.outlet.queues();
        held
    }

    /// This process is a forked child: no loop of its own tries anything again.
    pub(crate) fn enter_child(&self) {
        self.outlet.enter_child();
    }

    /// Tries those again that were put aside; after how long to try again, if some are left.
    pub(crate) fn retry(&self, now: Instant, tally: &mut Tally) -> Option<Duration> {
        self.outlet.retry(&self.socket, now, tally)
    }

    /// The run is about to end; how many datagrams are put aside. From now on senders add none.
    pub(crate) fn drain(&self) -> usize {
        self.outlet.drain()
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

    /// Leaves a reply to the loop, if there is one: whether it did.
    fn queue_retry(
        &self,
        to: &Destination,
        bytes: &[u8],
        only_behind_others: bool,
        tally: &mut Tally,
    ) -> bool {
        let queued = self.outlet.queue_retry(to, bytes, only_behind_others, false, tally);
        tally.unsent += u64::from(queued == Queued::Refused);
        queued != Queued::No
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
                    self.outlet.record_sent(&to.address);
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
                    let unresponsive = &self.outlet.queues().retries.unresponsive;
                    let patience = unresponsive.blocking_wait_budget(&to.address, now);
                    if patience.is_zero() {
                        return Err(error);
                    }
                    *deadline.insert(now + patience)
                }
            };
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                let for_all = sys::is_send_buffer_full(&self.socket);
                self.outlet.record_timeout(&to.address, now, for_all);
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
        let remembered = format!("{:?}", reply_socket.outlet.queues().retries.unresponsive);
        reply_socket.reply(&to, b"lost at once", &mut tally);
        assert_eq!(tally.unsent, 2);
        assert_eq!(format!("{:?}", reply_socket.outlet.queues().retries.unresponsive), remembered);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
