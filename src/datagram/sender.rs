//! Datagrams from other threads.

use std::fmt;
use std::sync::Arc;

use super::shared_socket::SharedSocket;
use crate::address::Peer;
use crate::error::SendError;
use crate::sys::Destination;
use crate::transport::sock_addr_of;

/// A handle to a datagram socket of a server, for other threads: from
/// [`Context::datagram_sender`](crate::Context::datagram_sender) or
/// [`Server::datagram_sender`](crate::Server::datagram_sender).
///
/// It sends on the socket that the server receives on, so a peer sees the address that it knows. It
/// keeps neither the socket open nor the server alive.
///
/// In the guide: [`embedding`](crate::guide::embedding),
/// [`reaching_others`](crate::guide::reaching_others).
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
    shared: Arc<SharedSocket>,
}

impl fmt::Debug for DatagramSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramSender").field("address", &self.shared.address).finish()
    }
}

impl DatagramSender {
    pub(super) fn new(shared: Arc<SharedSocket>) -> Self {
        DatagramSender { shared }
    }

    /// Sends one datagram from this thread, at once, even if the server's event loop sleeps or has
    /// not begun. It does not wait.
    ///
    /// If the queue of a Unix peer is full, the datagram is queued, and the event loop retries it
    /// for half a second, as it does with a reply. The datagram is refused if no loop runs, if 512
    /// KiB of datagrams are queued already (each counts as its bytes and 64 more), if another
    /// datagram to this peer timed out within the last five seconds, or if the server has begun to
    /// stop. If the send buffer of a UDP socket is full, the datagram is refused.
    ///
    /// The datagrams of one thread to one peer are sent in order. A handler's own replies are sent
    /// after it has returned, so they follow the datagrams that it sends by a `DatagramSender`.
    ///
    /// A sent datagram is counted in [`Counters::replies`](crate::Counters::replies); a datagram
    /// that the system does not send, or that times out in the queue, in
    /// [`Counters::unsent`](crate::Counters::unsent).
    ///
    /// In a child process under [`Forking`](crate::Forking) the `DatagramSender` of the child's own
    /// request works too, without retries and without counting; that of another service is closed.
    ///
    /// # Errors
    ///
    /// The datagram is not sent:
    ///
    /// * [`SendError::Closed`] when the server is dropped,
    /// * [`SendError::Full`] when there is no room for it, as described above,
    /// * [`SendError::Unaddressable`] when the peer has no address that the socket can send to, see
    ///   [`Context::send_to`](crate::Context::send_to),
    /// * [`SendError::Os`] with the error of the system: the peer has gone or cannot be reached, or the
    ///   message is too long.
    pub fn send_to(&self, peer: &Peer, message: &[u8]) -> Result<(), SendError> {
        let to = sock_addr_of(peer, &self.shared.address).map_err(|_| SendError::Unaddressable)?;
        self.shared.send(&Destination::new(to), message)
    }
}
