//! Datagrams from other threads.

use std::fmt;
use std::sync::Arc;

use super::outlet::Outlet;
use crate::address::Peer;
use crate::error::SendError;
use crate::sys::Destination;
use crate::transport::sock_addr_of;

/// A handle to a datagram socket of a server, for other threads: from
/// [`Context::datagram_sender`](crate::Context::datagram_sender) or
/// [`Server::datagram_sender`](crate::Server::datagram_sender).
///
/// It sends from the socket that the server receives on, so that a peer sees the address which it
/// knows. It does not keep the socket open, nor the server alive.
///
/// ```
/// use std::net::UdpSocket;
/// use std::thread;
/// use socketserver::{Peer, Server, handler_fn};
///
/// let client = UdpSocket::bind("127.0.0.1:0")?;
/// let server = Server::udp("127.0.0.1:0")?.serve(|_peer| handler_fn(|_message, _cx| Ok(())))?;
/// let [listener] = server.listeners()[..] else { unreachable!() };
/// let sender = server.datagram_sender(listener)?;
/// let peer = Peer::from(client.local_addr()?);
/// thread::spawn(move || sender.send_to(&peer, b"news")).join().unwrap()?;
///
/// let mut message = [0; 100];
/// let (count, from) = client.recv_from(&mut message)?;
/// assert_eq!(&message[..count], b"news");
/// assert_eq!(Some(from), server.local_addr().inet());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct DatagramSender {
    outlet: Arc<Outlet>,
}

impl fmt::Debug for DatagramSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramSender").field("address", &self.outlet.address).finish()
    }
}

impl DatagramSender {
    pub(super) fn new(outlet: Arc<Outlet>) -> Self {
        DatagramSender { outlet }
    }

    /// Sends one datagram from this thread, at once, whether the server's loop runs, sleeps or has not
    /// begun. It does not wait.
    ///
    /// Where the queue of a Unix peer is full, the datagram is left to the loop, which tries it again
    /// for half a second as it does with a reply; it is refused where no loop runs, where 512 KiB of
    /// datagrams wait already (each counts as its bytes and 64 more), where the peer has let others
    /// wait in vain within the last five seconds, and when the server has begun to stop. Where a UDP
    /// socket's own send buffer is full, the datagram is refused.
    ///
    /// What one thread sends to one peer is sent in that order. A handler's own replies go out when it
    /// has returned, and so come after what it sends by a handle.
    ///
    /// What is sent is counted in [`Counters::replies`](crate::Counters::replies); a datagram that the
    /// system does not send, or that waits in vain, in [`Counters::unsent`](crate::Counters::unsent).
    ///
    /// In a child process under [`Forking`](crate::Forking) the handle to the socket of the child's own
    /// request works as well, without a loop and without counting; that of another service is closed.
    ///
    /// # Errors
    ///
    /// The datagram is not sent:
    ///
    /// * [`SendError::Closed`] when the server is dropped,
    /// * [`SendError::Full`] when there is no room for it,
    /// * [`SendError::Unaddressable`] when the peer has no address that the socket can send to, see
    ///   [`Context::send_to`](crate::Context::send_to),
    /// * [`SendError::Os`] with what the system says: the peer has gone, cannot be reached, the message
    ///   is too long.
    pub fn send_to(&self, peer: &Peer, message: &[u8]) -> Result<(), SendError> {
        let to = sock_addr_of(peer, &self.outlet.address).map_err(|_| SendError::Unaddressable)?;
        self.outlet.send(&Destination::new(to), message)
    }
}
