//! One datagram, served to its end on this thread, and its replies sent.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::Socket;

use super::{Place, Served, Session};
use crate::address::Peer;
use crate::conversation::{Env, Handler, Home, serve_datagram};
use crate::counters::Tally;
use crate::error::Unsupported;
use crate::mailbox::Outlet;
use crate::sys::{self, Destination, Received, Want};

/// How long a datagram waits for room in the kernel before it counts as lost.
const PATIENCE: Duration = Duration::from_millis(500);

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
    pub(crate) socket: Arc<Socket>,
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
        let DatagramSession { socket, packet, handler } = *self;
        let mut env = Env::new(place.outgoing, place.tally, &Nowhere, usize::MAX);
        let peer = packet.peer.clone();
        let reason =
            serve_datagram(handler, peer.clone(), &packet.bytes, packet.truncated, &mut env);
        if env.shutdown {
            (place.on_shutdown)();
        }
        for reply in place.outgoing.parts(&packet.bytes) {
            reply_to(&socket, &packet.from, reply, place.tally);
        }
        place.outgoing.clear();
        Served { peer, reason }
    }
}

/// Sends one datagram; a peer that has gone, or has no address, is counted and no error.
pub(crate) fn reply_to(socket: &Socket, to: &Destination, bytes: &[u8], tally: &mut Tally) {
    match send_to(socket, to, bytes) {
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

fn send_to(socket: &Socket, to: &Destination, bytes: &[u8]) -> io::Result<()> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        match sys::send_datagram(socket, to, bytes) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if std::time::Instant::now() >= deadline {
                    return Err(error);
                }
                // A Unix peer with a full queue does not show in poll(2): look again soon.
                let soon = Some(Duration::from_millis(1));
                if sys::wait_for(&[(socket.as_fd(), Want::Write)], soon)? != 0 {
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
            Err(error) => return Err(error),
        }
    }
}
