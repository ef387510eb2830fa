//! What has been accepted: a connection or a datagram for which a handler is about to be made.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::Socket;

use crate::address::{Address, Credentials, Peer};
use crate::connection_id::ConnectionId;
use crate::datagram::ReplySocket;
use crate::sys::{self, PacketInfo};
use crate::transport::local_address;

/// A connection that was accepted, on its way to the mode that serves it.
#[derive(Debug)]
pub(crate) struct AcceptedStream {
    pub(crate) socket: Socket,
    pub(crate) peer: Peer,
    pub(crate) id: ConnectionId,
}

impl AcceptedStream {
    /// What the function that makes its handler is given.
    pub(crate) fn accepted(&self) -> Accepted<'_> {
        let source = AcceptedSocket::Stream(&self.socket);
        Accepted { peer: &self.peer, source, id: Cell::new(Some(self.id)) }
    }
}

/// An accepted connection, or a received datagram: what the function that makes its handler is given, by
/// [`Builder::serve`](crate::Builder::serve) and its like.
///
/// It borrows the socket, so options can be set through its descriptor, and what it tells costs a system
/// call only where it is asked.
///
/// ```
/// use socketserver::{Context, Handler, HandlerResult, Lines, Server};
///
/// /// Tells a client where it has connected to.
/// struct Where(String);
///
/// impl Handler for Where {
///     fn on_message(&mut self, _: &[u8], cx: &mut Context<'_>) -> HandlerResult {
///         cx.send(self.0.as_bytes())
///     }
/// }
///
/// let server = Server::tcp("127.0.0.1:0")?.framing(Lines::default()).serve(|accepted| {
///     Where(accepted.local_addr().map_or_else(|error| error.to_string(), |here| here.to_string()))
/// })?;
/// # drop(server);
/// # Ok::<(), socketserver::Error>(())
/// ```
pub struct Accepted<'a> {
    peer: &'a Peer,
    source: AcceptedSocket<'a>,
    /// A datagram gets its number when it is first asked for.
    id: Cell<Option<ConnectionId>>,
}

/// The socket that it came by.
enum AcceptedSocket<'a> {
    Stream(&'a Socket),
    Datagram(&'a ReplySocket, Option<PacketInfo>),
}

impl fmt::Debug for Accepted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl<'a> Accepted<'a> {
    /// A datagram of this peer, received on this socket.
    pub(crate) fn datagram(
        peer: &'a Peer,
        socket: &'a ReplySocket,
        info: Option<PacketInfo>,
    ) -> Self {
        Accepted { peer, source: AcceptedSocket::Datagram(socket, info), id: Cell::new(None) }
    }

    fn socket(&self) -> &Socket {
        match &self.source {
            AcceptedSocket::Stream(socket) => socket,
            AcceptedSocket::Datagram(socket, _) => &socket.socket,
        }
    }

    /// The other end: Python's `client_address`.
    pub fn peer(&self) -> &'a Peer {
        self.peer
    }

    /// The number of the connection, as in the log and from [`Context::id`](crate::Context::id). A
    /// datagram gets a number of its own when it is asked for.
    pub fn id(&self) -> ConnectionId {
        let id = self.id.get().unwrap_or_else(ConnectionId::next);
        self.id.set(Some(id));
        id
    }

    /// The number, if it has one.
    pub(crate) fn known_id(&self) -> Option<ConnectionId> {
        self.id.get()
    }

    /// The address of this end: the one that the client has connected to, also where the server is bound
    /// to all addresses of the host. See
    /// [getsockname(2)](https://man7.org/linux/man-pages/man2/getsockname.2.html).
    ///
    /// Of a datagram, the address that it was sent to, which is a group's if it came by multicast, where
    /// [`Builder::packet_info`](crate::Builder::packet_info) asks for it. Otherwise, and for a Unix
    /// datagram, the address that the socket is bound to, which may be `0.0.0.0` or `[::]`.
    ///
    /// # Errors
    ///
    /// Those of getsockname(2); none for a datagram.
    pub fn local_addr(&self) -> io::Result<Address> {
        match &self.source {
            AcceptedSocket::Stream(socket) => local_address(socket),
            AcceptedSocket::Datagram(socket, info) => Ok(socket.local_addr(*info)),
        }
    }

    /// The index of the network interface that the datagram came by (see
    /// [netdevice(7)](https://man7.org/linux/man-pages/man7/netdevice.7.html)), where
    /// [`Builder::packet_info`](crate::Builder::packet_info) asks for it; `None` otherwise, and for a
    /// connection.
    pub fn interface(&self) -> Option<u32> {
        match &self.source {
            AcceptedSocket::Stream(_) => None,
            AcceptedSocket::Datagram(_, info) => {
                info.map(|info| info.interface).filter(|index| *index != 0)
            }
        }
    }

    /// The process at the other end of a Unix stream socket.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] where the socket has none, as TCP and datagrams; otherwise those of
    /// getsockopt(2).
    pub fn credentials(&self) -> io::Result<Credentials> {
        sys::peer_credentials(self.socket())
    }
}

/// The descriptor of the connection, or of the socket that the datagram was received on.
impl AsFd for Accepted<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}
