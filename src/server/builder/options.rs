//! The options of a service's socket.

use std::net::IpAddr;
use std::time::Duration;

use super::Builder;
use crate::transport::{Interface, SocketOption};

/// # Options of the socket
///
/// An option that has no meaning for the transport is an [`Error::Option`](crate::Error::Option) when
/// the service is made, and so is one that concerns the binding of a socket that is bound already.
/// Only [`nodelay`](Builder::nodelay), [`dual_stack`](Builder::dual_stack),
/// [`reuse_address`](Builder::reuse_address),
/// [`request_queue_size`](Builder::request_queue_size), [`max_packet_size`](Builder::max_packet_size),
/// [`framing`](Builder::framing) and [`write_watermarks`](Builder::write_watermarks) are ignored where
/// they are not needed, so that one chain makes a service of any
/// [`Endpoint`](crate::Endpoint) that is chosen at run time.
impl<F, D, K> Builder<F, D, K> {
    fn option(mut self, option: SocketOption) -> Self {
        self.plan.options.push(option);
        self
    }

    /// Python's `allow_reuse_address`: binds although connections of an earlier run linger. On by
    /// default for TCP, off for UDP, where it would let two servers share a port in silence; there it
    /// lets several processes receive the datagrams of one multicast group. `SO_REUSEADDR`, see
    /// [socket(7)](https://man7.org/linux/man-pages/man7/socket.7.html).
    #[doc(alias = "allow_reuse_address")]
    pub fn reuse_address(mut self, reuse: bool) -> Self {
        self.plan.bind.reuse_address = Some(reuse);
        self
    }

    /// Python's `allow_reuse_port`: lets several sockets that all ask for it share the port, and the
    /// kernel spread requests over them. Off by default. For TCP and UDP.
    #[doc(alias = "allow_reuse_port")]
    pub fn reuse_port(mut self, reuse: bool) -> Self {
        self.plan.bind.reuse_port = reuse;
        self
    }

    /// Lets an IPv6 listener take IPv4 clients too; they are shown as IPv4. Off by default.
    pub fn dual_stack(mut self, dual: bool) -> Self {
        self.plan.bind.dual_stack = dual;
        self
    }

    /// Sends small messages at once (`TCP_NODELAY`), and not when a full segment has gathered. On by
    /// default; Python's `disable_nagle_algorithm` is off. Other transports than TCP always send at
    /// once, and ignore it.
    pub fn nodelay(self, nodelay: bool) -> Self {
        self.option(SocketOption::Nodelay(nodelay))
    }

    /// Has TCP probe a connection on which nothing moves: first after `idle`, then after each
    /// `interval`, and after `retries` probes without an answer it resets the connection, of which
    /// the handler is told as of a peer that is [gone](crate::CloseReason::Disconnected). So a peer
    /// that has vanished without a word is noticed, also while nothing is sent to it. Off by default.
    /// For TCP.
    ///
    /// Times are rounded up to whole seconds; Linux takes up to 32,767 seconds and 127 probes. The
    /// option is set once, on the listening socket, and accepted connections inherit it.
    /// `SO_KEEPALIVE`, `TCP_KEEPIDLE`, `TCP_KEEPINTVL` and `TCP_KEEPCNT`, see
    /// [tcp(7)](https://man7.org/linux/man-pages/man7/tcp.7.html).
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?
    ///     .keepalive(Duration::from_secs(60), Duration::from_secs(10), 6) // noticed after two minutes
    ///     .serve(|_peer| handler_fn(|message, cx| cx.send(message)))?;
    /// # drop(server);
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[doc(alias = "SO_KEEPALIVE")]
    pub fn keepalive(self, idle: Duration, interval: Duration, retries: u32) -> Self {
        self.option(SocketOption::Keepalive { idle, interval, retries })
    }

    /// Sets the permissions of a Unix socket's file, as `0o660`, before anyone can connect.
    pub fn unix_mode(mut self, mode: u32) -> Self {
        self.plan.bind.unix_mode = Some(mode);
        self
    }

    /// Asks the system which local address each UDP datagram was sent to, and by which interface it
    /// came: `IP_PKTINFO` and `IPV6_RECVPKTINFO`, see
    /// [ip(7)](https://man7.org/linux/man-pages/man7/ip.7.html) and
    /// [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html). Off by default; only on Linux.
    ///
    /// [`Context::local_addr`](crate::Context::local_addr) then returns this address, and
    /// [`Context::interface`](crate::Context::interface) the interface. A reply is sent from this
    /// address, and not from the one that the route would give it: for hosts with several addresses,
    /// on a socket that is bound to all of them. A multicast or broadcast address cannot be the source
    /// of a reply, so that the reply to such a datagram comes from an address of this host that the
    /// system chooses.
    #[doc(alias = "IP_PKTINFO")]
    pub fn packet_info(self, enabled: bool) -> Self {
        self.option(SocketOption::PacketInfo(enabled))
    }

    /// Joins a multicast group on an interface; to be called once for each group and interface. For UDP.
    ///
    /// The service then receives what is sent to the group and to the port that it is bound to, and of
    /// other groups nothing, whatever other sockets of the host have joined. It is to be bound to all
    /// addresses (`0.0.0.0` or `[::]`), or to the group itself. A [dual-stack](Builder::dual_stack)
    /// service can join groups of both families. The system leaves the groups when the server is
    /// dropped.
    ///
    /// `IP_ADD_MEMBERSHIP` and `IP_MULTICAST_ALL`, see
    /// [ip(7)](https://man7.org/linux/man-pages/man7/ip.7.html); `IPV6_ADD_MEMBERSHIP`, see
    /// [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html).
    ///
    /// ```
    /// use std::net::Ipv4Addr;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let service = Server::udp("0.0.0.0:0")?
    ///     .join_multicast(Ipv4Addr::new(239, 255, 0, 1), Ipv4Addr::LOCALHOST)
    ///     .service(|_peer| handler_fn(|message, cx| cx.send(message)));
    /// # drop(service); // a host may have no multicast
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the service is made, [`Error::Option`](crate::Error::Option) where the address is not one
    /// of a group, its family is not the socket's, or the interface does not exist.
    #[doc(alias = "IP_ADD_MEMBERSHIP")]
    pub fn join_multicast(self, group: impl Into<IpAddr>, interface: impl Into<Interface>) -> Self {
        self.option(SocketOption::JoinMulticast(group.into(), interface.into()))
    }

    /// Sets the interface by which multicast datagrams are sent; by default the system chooses, for
    /// IPv4 by its routes. For UDP. `IP_MULTICAST_IF` and `IPV6_MULTICAST_IF`, see
    /// [ip(7)](https://man7.org/linux/man-pages/man7/ip.7.html) and
    /// [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html).
    #[doc(alias = "IP_MULTICAST_IF")]
    pub fn multicast_interface(self, interface: impl Into<Interface>) -> Self {
        self.option(SocketOption::MulticastInterface(interface.into()))
    }

    /// Whether sockets of this host receive the multicast datagrams that the service sends, its own
    /// socket among them, as far as they have joined the group. On by default; what is sent by the
    /// loopback interface is received in any case. For UDP.
    /// `IP_MULTICAST_LOOP` and `IPV6_MULTICAST_LOOP`, see
    /// [ip(7)](https://man7.org/linux/man-pages/man7/ip.7.html) and
    /// [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html).
    #[doc(alias = "IP_MULTICAST_LOOP")]
    pub fn multicast_loop(self, enabled: bool) -> Self {
        self.option(SocketOption::MulticastLoop(enabled))
    }

    /// Sets how many routers a multicast datagram passes at most: 0 keeps it on this host; 1, the
    /// default, on its link; at most 255. For UDP. `IP_MULTICAST_TTL` and `IPV6_MULTICAST_HOPS`, see
    /// [ip(7)](https://man7.org/linux/man-pages/man7/ip.7.html) and
    /// [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html).
    #[doc(alias = "IP_MULTICAST_TTL")]
    pub fn multicast_ttl(self, hops: u32) -> Self {
        self.option(SocketOption::MulticastTtl(hops))
    }

    /// Allows datagrams to broadcast addresses; off by default, and then the system refuses them. For
    /// UDP; IPv6 has no broadcast. `SO_BROADCAST`, see
    /// [socket(7)](https://man7.org/linux/man-pages/man7/socket.7.html).
    #[doc(alias = "SO_BROADCAST")]
    pub fn broadcast(self, enabled: bool) -> Self {
        self.option(SocketOption::Broadcast(enabled))
    }

    /// Sets how many routers a datagram passes at most, from 1 to 255; by default as the system does,
    /// mostly 64. For UDP. `IP_TTL` and `IPV6_UNICAST_HOPS`, see
    /// [ip(7)](https://man7.org/linux/man-pages/man7/ip.7.html) and
    /// [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html).
    #[doc(alias = "IP_TTL")]
    pub fn ttl(self, hops: u32) -> Self {
        self.option(SocketOption::Ttl(hops))
    }
}
