//! One datagram, served to its end on this thread, and its replies sent.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use socket2::Socket;

use super::deaf::Deaf;
use super::{Place, Served, Session};
use crate::address::Peer;
use crate::conversation::{Env, Handler, Home, serve_datagram};
use crate::counters::Tally;
use crate::error::Unsupported;
use crate::mailbox::{Outlet, lock};
use crate::sys::{self, Destination, Received};

/// A datagram that has come, and where it came from.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) bytes: Vec<u8>,
    pub(crate) peer: Peer,
    /// Where a reply goes.
    pub(crate) from: Destination,
    pub(crate) truncated: bool,
}

impl Packet {
    pub(crate) fn new(bytes: &[u8], peer: Peer, received: &Received) -> Self {
        let from = received.from.clone();
        Packet { bytes: bytes.to_vec(), peer, from, truncated: received.truncated }
    }
}

/// A datagram with whoever answers it.
pub(crate) struct DatagramSession<H> {
    pub(crate) answering: Arc<Answering>,
    pub(crate) packet: Packet,
    pub(crate) handler: H,
}

/// A datagram is answered and over: nothing reaches it.
pub(crate) struct Nowhere;

impl Home for Nowhere {
    fn outlet(&self) -> Result<Arc<Outlet>, Unsupported> {
        Err(Unsupported::DatagramSender)
    }
}

impl<H: Handler> Session for DatagramSession<H> {
    fn run(self: Box<Self>, place: &mut Place<'_>) -> Served {
        let DatagramSession { answering, packet, handler } = *self;
        let mut env = Env::new(place.outgoing, place.tally, &Nowhere, usize::MAX);
        let peer = packet.peer.clone();
        let reason =
            serve_datagram(handler, peer.clone(), &packet.bytes, packet.truncated, &mut env);
        if env.shutdown {
            (place.on_shutdown)();
        }
        for reply in place.outgoing.parts(&packet.bytes) {
            answering.reply(&packet.from, reply, place.tally);
        }
        place.outgoing.clear();
        Served { peer, reason }
    }
}

/// A socket on which datagrams are answered, by whichever thread.
#[derive(Debug)]
pub(crate) struct Answering {
    pub(crate) socket: Arc<Socket>,
    deaf: Mutex<Deaf>,
}

impl Answering {
    pub(crate) fn new(socket: Arc<Socket>) -> Self {
        Answering { socket, deaf: Mutex::default() }
    }

    /// Sends one datagram; a peer that has gone, or has no address, is counted and no error.
    pub(super) fn reply(&self, to: &Destination, bytes: &[u8], tally: &mut Tally) {
        match self.send(to, bytes) {
            Ok(()) => {
                tally.replies += 1;
                tally.bytes_out += bytes.len() as u64;
            }
            Err(error) => {
                tally.unsent += 1;
                log::debug!("a datagram could not be sent: {error}");
            }
        }
    }

    fn send(&self, to: &Destination, bytes: &[u8]) -> io::Result<()> {
        let mut deadline = None;
        loop {
            let error = match sys::send_datagram(&self.socket, to, bytes) {
                Ok(()) => {
                    lock(&self.deaf).went(&to.address);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => error,
                Err(error) => return Err(error),
            };
            let now = Instant::now();
            let deadline = match deadline {
                Some(deadline) => deadline,
                None => {
                    let patience = lock(&self.deaf).patience(&to.address, now);
                    if patience.is_zero() {
                        return Err(error);
                    }
                    *deadline.insert(now + patience)
                }
            };
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                let for_all = sys::is_send_buffer_full(&self.socket);
                lock(&self.deaf).in_vain(&to.address, now, for_all);
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
        let (answering, mut tally) = (Answering::new(socket), Tally::default());
        while tally.unsent == 0 {
            answering.reply(&to, b"unread", &mut tally);
        }
        let remembered = format!("{:?}", answering.deaf);
        answering.reply(&to, b"lost at once", &mut tally);
        assert_eq!(tally.unsent, 2);
        assert_eq!(format!("{:?}", answering.deaf), remembered);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
