//! The options of a service's socket.

use std::net::IpAddr;
use std::time::Duration;

use super::Builder;
use crate::transport::{Interface, SocketOption};

/// # Options of the socket
///
/// An option that has no meaning for the transport is an [`Error::Option`](crate::Error::Option)
/// when the service is made. So is an option of the binding if the socket is bound already. Only
/// [`nodelay`](Builder::nodelay), [`dual_stack`](Builder::dual_stack),
/// [`reuse_address`](Builder::reuse_address), [`request_queue_size`](Builder::request_queue_size),
/// [`max_packet_size`](Builder::max_packet_size), [`framing`](Builder::framing),
/// [`write_watermarks`](Builder::write_watermarks) and [`sender_limit`](Builder::sender_limit) are
/// ignored for transports where they have no meaning, so that one chain of calls works for any
/// [`Endpoint`](crate::Endpoint) that is chosen at run time.
impl<F, D, K> Builder<F, D, K> {
    fn option(mut self, option: SocketOption) -> Self {
        self.settings.options.push(option);
        self
    }

    /// Python's `allow_reuse_address`: binds although connections of an earlier server are in
    /// TIME_WAIT. On by default for TCP. Off by default for UDP, where it would let two servers
    /// share a port without an error; there it lets several processes receive the datagrams of one
    /// multicast group. `SO_REUSEADDR`, see
    /// [socket(7)](https://man7.org/linux/man-pages/man7/socket.7.html).
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::udp("127.0.0.1:0")?
    ///     .reuse_address(true) // several processes receive the datagrams of a multicast group
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[doc(alias = "allow_reuse_address")]
    pub fn reuse_address(mut self, reuse: bool) -> Self {
        self.settings.bind.reuse_address = Some(reuse);
        self
    }

    /// Python's `allow_reuse_port`: lets several sockets that all set it share the port; the kernel
    /// distributes requests among them. Off by default. For TCP and UDP.
    ///
    /// See [`guide::several_cpus`](crate::guide::several_cpus).
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let serve = |address: &str| {
    ///     let builder = Server::tcp(address)?.reuse_port(true);
    ///     builder.serve(|_| handler_fn(|message, cx| cx.send(message)))
    /// };
    /// let first = serve("127.0.0.1:0")?;
    /// let port = first.local_addr().port().unwrap();
    /// let second = serve(&format!("127.0.0.1:{port}"))?; // the same port
    /// # let _ = (first, second);
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[doc(alias = "allow_reuse_port")]
    pub fn reuse_port(mut self, reuse: bool) -> Self {
        self.settings.bind.reuse_port = reuse;
        self
    }

    /// Lets an IPv6 listener accept IPv4 clients too; their addresses are shown as IPv4. Off by
    /// default.
    ///
    /// ```no_run
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("[::]:9999")?
    ///     .dual_stack(true) // clients with IPv6 and with IPv4
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn dual_stack(mut self, dual: bool) -> Self {
        self.settings.bind.dual_stack = dual;
        self
    }

    /// Sends small messages at once (`TCP_NODELAY`) and does not wait for a full segment. On by
    /// default; Python's `disable_nagle_algorithm` is off by default. Transports other than TCP
    /// always send at once and ignore it.
    pub fn nodelay(self, nodelay: bool) -> Self {
        self.option(SocketOption::Nodelay(nodelay))
    }

    /// Lets TCP probe an idle connection: first after `idle`, then after each `interval`. After
    /// `retries` probes without an answer TCP resets the connection, and the handler gets
    /// [`CloseReason::Disconnected`](crate::CloseReason::Disconnected). So the server detects a
    /// peer that has disappeared, also while it sends nothing to this peer. Off by default. For
    /// TCP.
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

    /// Sets how long data that was sent may stay unacknowledged, or wait because the peer's window is
    /// 0, until TCP resets the connection; the handler then gets
    /// [`CloseReason::Disconnected`](crate::CloseReason::Disconnected). So the kernel itself ends a
    /// peer that has disappeared or reads nothing. By default, on Linux, one and a half times
    /// [`Limits::write_timeout`](crate::Limits::write_timeout): it ends a peer that never takes output which
    /// the kernel has taken whole. If that limit is off, or with [`keepalive`](Self::keepalive), the
    /// system's value: usually about 15 minutes for a peer that has disappeared, and no limit for a
    /// window of 0. For TCP, on Linux; elsewhere it is an error.
    ///
    /// It is rounded up to milliseconds. The option is set once, on the listening socket, and
    /// accepted connections inherit it. `TCP_USER_TIMEOUT`, see
    /// [tcp(7)](https://man7.org/linux/man-pages/man7/tcp.7.html).
    /// [`Limits::write_timeout`](crate::Limits::write_timeout) has a similar effect, for all
    /// transports and without the kernel; with keepalive, this option also decides when a peer that
    /// answers no probe is gone.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let builder = Server::tcp("127.0.0.1:0")?;
    /// # #[cfg(target_os = "linux")]
    /// let builder = builder.user_timeout(Duration::from_secs(30));
    /// let server = builder.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[doc(alias = "TCP_USER_TIMEOUT")]
    pub fn user_timeout(self, timeout: Duration) -> Self {
        self.option(SocketOption::UserTimeout(timeout))
    }

    /// Lets the kernel hold back a client that has connected until its first data arrives, or until
    /// this time has passed: a silent client costs neither a descriptor nor a thread. Off by default.
    /// Not for a protocol in which the server speaks first: there the client would wait for all of
    /// the time. For TCP, on Linux; elsewhere it is an error.
    ///
    /// It is rounded up to whole seconds, and the kernel rounds up to one of its retransmissions of
    /// the handshake: 1, 3, 7, 15 seconds and so on. `TCP_DEFER_ACCEPT`, see
    /// [tcp(7)](https://man7.org/linux/man-pages/man7/tcp.7.html).
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{Lines, Server, handler_fn};
    ///
    /// let builder = Server::tcp("127.0.0.1:0")?.framing(Lines::default());
    /// # #[cfg(target_os = "linux")]
    /// let builder = builder
    ///     .user_timeout(Duration::from_secs(30))
    ///     .defer_accept(Duration::from_secs(7)); // the client speaks first
    /// let server = builder.serve(|_peer| handler_fn(|line, cx| cx.send(line)))?;
    /// # drop(server);
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[doc(alias = "TCP_DEFER_ACCEPT")]
    pub fn defer_accept(self, time: Duration) -> Self {
        self.option(SocketOption::DeferAccept(time))
    }

    /// Sets the permissions of a Unix socket's file, for example `0o660`, before any client can
    /// connect.
    ///
    /// ```no_run
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::unix_stream("/run/echo/echo.socket")?
    ///     .unix_mode(0o660) // its user and its group
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn unix_mode(mut self, mode: u32) -> Self {
        self.settings.bind.unix_mode = Some(mode);
        self
    }

    /// Asks the system for the local address that each UDP datagram was sent to, and for the
    /// interface that received it: `IP_PKTINFO` and `IPV6_RECVPKTINFO`, see
    /// [ip(7)](https://man7.org/linux/man-pages/man7/ip.7.html) and
    /// [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html). Off by default; only on Linux.
    ///
    /// [`Accepted::local_addr`](crate::Accepted::local_addr) then returns this address, and
    /// [`Accepted::interface`](crate::Accepted::interface) the interface. A reply is sent from this
    /// address, and not from the address that the route gives. This is for hosts with several
    /// addresses, on a socket that is bound to all of them. A multicast or broadcast address cannot
    /// be the source of a reply, so the system chooses an address of this host for the reply to
    /// such a datagram.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let builder = Server::udp("0.0.0.0:0")?;
    /// # #[cfg(target_os = "linux")]
    /// let builder = builder.packet_info(true);
    /// let server = builder.serve(|accepted| {
    ///     let here = accepted.local_addr().map(|here| here.to_string()).unwrap_or_default();
    ///     handler_fn(move |_, cx| cx.send(here.as_bytes()))
    /// })?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[doc(alias = "IP_PKTINFO")]
    pub fn packet_info(self, enabled: bool) -> Self {
        self.option(SocketOption::PacketInfo(enabled))
    }

    /// Joins a multicast group on an interface; call it once for each group and interface. For UDP.
    ///
    /// The service then receives what is sent to the group and to the port that it is bound to. It
    /// receives nothing of groups that only other sockets of the host have joined. The service must
    /// be bound to all addresses (`0.0.0.0` or `[::]`), or to the group itself. A
    /// [dual-stack](Builder::dual_stack) service can join groups of both families. The system
    /// leaves the groups when the server is dropped.
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
    /// When the service is made, [`Error::Option`](crate::Error::Option) if the address is not a
    /// multicast group, its family is not the socket's, or the interface does not exist.
    #[doc(alias = "IP_ADD_MEMBERSHIP")]
    pub fn join_multicast(self, group: impl Into<IpAddr>, interface: impl Into<Interface>) -> Self {
        self.option(SocketOption::JoinMulticast(group.into(), interface.into()))
    }

    /// Sets the interface that multicast datagrams are sent by; by default the system chooses it,
    /// for IPv4 by its routes. For UDP. `IP_MULTICAST_IF` and `IPV6_MULTICAST_IF`, see
    /// [ip(7)](https://man7.org/linux/man-pages/man7/ip.7.html) and
    /// [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html).
    ///
    /// ```
    /// use std::net::Ipv4Addr;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let service = Server::udp("0.0.0.0:0")?
    ///     .multicast_interface(Ipv4Addr::LOCALHOST)
    ///     .multicast_loop(true)
    ///     .multicast_ttl(1)
    ///     .service(|_| handler_fn(|message, cx| cx.send(message)));
    /// # let _ = service;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[doc(alias = "IP_MULTICAST_IF")]
    pub fn multicast_interface(self, interface: impl Into<Interface>) -> Self {
        self.option(SocketOption::MulticastInterface(interface.into()))
    }

    /// Sets whether sockets of this host that have joined the group, also the service's own socket,
    /// receive the multicast datagrams that the service sends. On by default; datagrams sent by the
    /// loopback interface are always received. For UDP. `IP_MULTICAST_LOOP` and
    /// `IPV6_MULTICAST_LOOP`, see [ip(7)](https://man7.org/linux/man-pages/man7/ip.7.html) and
    /// [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html).
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::udp("0.0.0.0:0")?
    ///     .multicast_loop(false) // programs of this host do not get what it sends to a group
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[doc(alias = "IP_MULTICAST_LOOP")]
    pub fn multicast_loop(self, enabled: bool) -> Self {
        self.option(SocketOption::MulticastLoop(enabled))
    }

    /// Sets how many hops a multicast datagram can make: 0 keeps it on this host; 1, the default,
    /// on the local link; at most 255. For UDP. `IP_MULTICAST_TTL` and `IPV6_MULTICAST_HOPS`, see
    /// [ip(7)](https://man7.org/linux/man-pages/man7/ip.7.html) and
    /// [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html).
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::udp("0.0.0.0:0")?
    ///     .multicast_ttl(0) // what it sends to a group stays on this host
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[doc(alias = "IP_MULTICAST_TTL")]
    pub fn multicast_ttl(self, hops: u32) -> Self {
        self.option(SocketOption::MulticastTtl(hops))
    }

    /// Allows datagrams to broadcast addresses. Off by default; the system then refuses them. For
    /// UDP; IPv6 has no broadcast. `SO_BROADCAST`, see
    /// [socket(7)](https://man7.org/linux/man-pages/man7/socket.7.html).
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::udp("0.0.0.0:0")?
    ///     .broadcast(true) // replies and datagrams to 255.255.255.255
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[doc(alias = "SO_BROADCAST")]
    pub fn broadcast(self, enabled: bool) -> Self {
        self.option(SocketOption::Broadcast(enabled))
    }

    /// Sets how many hops a datagram can make, from 1 to 255; by default the system's value,
    /// usually 64. For UDP. `IP_TTL` and `IPV6_UNICAST_HOPS`, see
    /// [ip(7)](https://man7.org/linux/man-pages/man7/ip.7.html) and
    /// [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html).
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::udp("127.0.0.1:0")?
    ///     .ttl(1) // no router passes its datagrams on
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[doc(alias = "IP_TTL")]
    pub fn ttl(self, hops: u32) -> Self {
        self.option(SocketOption::Ttl(hops))
    }
}
