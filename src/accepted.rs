//! An accepted connection or a received datagram, before its handler is created.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::address::{Address, Credentials, Peer};
use crate::connection_id::ConnectionId;
use crate::datagram::ReplySocket;
use crate::permits::ConnectionPermit;
use crate::sys::{self, PacketInfo, Socket};
use crate::transport::local_address;

/// An accepted connection, on its way to the mode that serves it.
#[derive(Debug)]
pub(crate) struct AcceptedStream {
    pub(crate) socket: Socket,
    pub(crate) peer: Peer,
    pub(crate) id: ConnectionId,
    /// Its place among the connections of its listener, if their number is limited.
    pub(crate) permit: Option<ConnectionPermit>,
}

impl AcceptedStream {
    /// The argument of the function that creates the handler.
    pub(crate) fn accepted(&self) -> Accepted<'_> {
        let source = AcceptedSocket::Stream(&self.socket);
        Accepted { peer: &self.peer, source, id: Cell::new(Some(self.id)) }
    }
}

/// An accepted connection, or a received datagram: the argument of the function that creates its
/// handler (see [`Builder::serve`](crate::Builder::serve)).
///
/// It borrows the socket, so that options can be set through its descriptor. A method makes a
/// system call only when it is called.
///
/// In the guide: [`behind_a_proxy`](crate::guide::behind_a_proxy),
/// [`logging_and_counters`](crate::guide::logging_and_counters).
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
    /// A datagram gets its number at the first call of `id`.
    id: Cell<Option<ConnectionId>>,
}

/// The socket of the connection, or the one that received the datagram.
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

    /// The peer's address: Python's `client_address`.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// // Clients of this machine get another answer.
    /// let server = Server::tcp("127.0.0.1:0")?.serve(|accepted| {
    ///     let is_local = accepted.peer().inet().is_some_and(|peer| peer.ip().is_loopback());
    ///     handler_fn(move |message, cx| cx.send(if is_local { message } else { b"forbidden" }))
    /// })?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn peer(&self) -> &'a Peer {
        self.peer
    }

    /// The number of the connection, as in the log and from [`Context::id`](crate::Context::id). A
    /// datagram gets its own number at the first call.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve(|accepted| {
    ///     let id = accepted.id();
    ///     handler_fn(move |_, cx| cx.send(format!("you are connection {id}").as_bytes()))
    /// })?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn id(&self) -> ConnectionId {
        let id = self.id.get().unwrap_or_else(ConnectionId::next);
        self.id.set(Some(id));
        id
    }

    /// The number, if it has one already.
    pub(crate) fn known_id(&self) -> Option<ConnectionId> {
        self.id.get()
    }

    /// The address of this end: the one to which the client has connected, also where the server is
    /// bound to all addresses of the host. See
    /// [getsockname(2)](https://man7.org/linux/man-pages/man2/getsockname.2.html).
    ///
    /// For a datagram it is the address to which the datagram was sent, if
    /// [`Builder::packet_info`](crate::Builder::packet_info) is set; that is a group address if it
    /// came by multicast. Otherwise, and for a Unix datagram, it is the address to which the socket
    /// is bound, which may be `0.0.0.0` or `[::]`.
    ///
    /// # Errors
    ///
    /// Errors of getsockname(2); none for a datagram.
    pub fn local_addr(&self) -> io::Result<Address> {
        match &self.source {
            AcceptedSocket::Stream(socket) => local_address(socket),
            AcceptedSocket::Datagram(socket, info) => Ok(socket.local_addr(*info)),
        }
    }

    /// The index of the network interface on which the datagram arrived (see
    /// [netdevice(7)](https://man7.org/linux/man-pages/man7/netdevice.7.html)), if
    /// [`Builder::packet_info`](crate::Builder::packet_info) is set. Otherwise, and for a
    /// connection, `None`.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let builder = Server::udp("0.0.0.0:0")?;
    /// # #[cfg(target_os = "linux")]
    /// let builder = builder.packet_info(true);
    /// let server = builder.serve(|accepted| {
    ///     let interface = accepted.interface();
    ///     handler_fn(move |_, cx| cx.send(format!("by interface {interface:?}").as_bytes()))
    /// })?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
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
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// # let directory = std::env::temp_dir().join(format!("credentials-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory).unwrap();
    /// # let path = directory.join("socket");
    /// let server = Server::unix_stream(&path)?.serve(|accepted| {
    ///     let user = accepted.credentials().map(|credentials| credentials.uid);
    ///     handler_fn(move |_, cx| cx.send(format!("{user:?}").as_bytes()))
    /// })?;
    /// # drop(server);
    /// # std::fs::remove_dir(directory).unwrap();
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] where the socket has no credentials: TCP sockets and
    /// datagrams. Otherwise errors of getsockopt(2).
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
