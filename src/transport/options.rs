//! The socket options that a builder sets, and the transports that each of them is for.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use socket2::InterfaceIndexOrAddress;

use super::bind::{BindOptions, Family};
use crate::error::Error;
use crate::sys::{self, Socket};

/// A network interface, as the multicast options of a [`Builder`](crate::Builder) name it.
///
/// ```
/// use std::net::Ipv4Addr;
/// use socketserver::Interface;
///
/// assert_eq!(Interface::from(2), Interface::Index(2));
/// assert_eq!(Interface::from(Ipv4Addr::LOCALHOST), Interface::Address(Ipv4Addr::LOCALHOST));
/// assert_eq!(Interface::default(), Interface::Default);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Interface {
    /// The one that the system chooses, for IPv4 by its routes.
    #[default]
    Default,
    /// The one with this index, see
    /// [netdevice(7)](https://man7.org/linux/man-pages/man7/netdevice.7.html); 0 is the default. For
    /// IPv4 only on Linux.
    Index(u32),
    /// The one with this IPv4 address; `0.0.0.0` is the default. Not for IPv6.
    Address(Ipv4Addr),
}

impl Interface {
    /// The interface of this name, as `eth0`, by its index.
    ///
    /// ```
    /// use socketserver::Interface;
    ///
    /// assert!(Interface::named("no such interface").is_err());
    /// # #[cfg(target_os = "linux")]
    /// assert!(matches!(Interface::named("lo")?, Interface::Index(_)));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The error of
    /// [if_nametoindex(3)](https://man7.org/linux/man-pages/man3/if_nametoindex.3.html) if no
    /// interface has this name.
    pub fn named(name: &str) -> io::Result<Self> {
        sys::interface_index(name).map(Interface::Index)
    }

    fn for_ipv4(self) -> InterfaceIndexOrAddress {
        match self {
            Interface::Default => InterfaceIndexOrAddress::Index(0),
            Interface::Index(index) => InterfaceIndexOrAddress::Index(index),
            Interface::Address(address) => InterfaceIndexOrAddress::Address(address),
        }
    }

    fn index(self) -> io::Result<u32> {
        match self {
            Interface::Default => Ok(0),
            Interface::Index(index) => Ok(index),
            Interface::Address(address) if address.is_unspecified() => Ok(0),
            Interface::Address(_) => Err(unusable("an IPv6 interface must be given by its index")),
        }
    }
}

impl From<u32> for Interface {
    fn from(index: u32) -> Self {
        Interface::Index(index)
    }
}

impl From<Ipv4Addr> for Interface {
    fn from(address: Ipv4Addr) -> Self {
        Interface::Address(address)
    }
}

/// An option of a socket, as the method of the builder has set it.
#[derive(Debug, Clone)]
pub(crate) enum SocketOption {
    Nodelay(bool),
    Keepalive { idle: Duration, interval: Duration, retries: u32 },
    UserTimeout(Duration),
    DeferAccept(Duration),
    PacketInfo(bool),
    JoinMulticast(IpAddr, Interface),
    MulticastInterface(Interface),
    MulticastLoop(bool),
    MulticastTtl(u32),
    Broadcast(bool),
    Ttl(u32),
}

impl SocketOption {
    /// The name of the builder's method.
    fn name(&self) -> &'static str {
        match self {
            SocketOption::Nodelay(_) => "nodelay",
            SocketOption::Keepalive { .. } => "keepalive",
            SocketOption::UserTimeout(_) => "user_timeout",
            SocketOption::DeferAccept(_) => "defer_accept",
            SocketOption::PacketInfo(_) => "packet_info",
            SocketOption::JoinMulticast(..) => "join_multicast",
            SocketOption::MulticastInterface(_) => "multicast_interface",
            SocketOption::MulticastLoop(_) => "multicast_loop",
            SocketOption::MulticastTtl(_) => "multicast_ttl",
            SocketOption::Broadcast(_) => "broadcast",
            SocketOption::Ttl(_) => "ttl",
        }
    }

    /// The reason why the option is not for this transport, if it is not.
    fn refused_for(&self, family: Family) -> Option<&'static str> {
        match (self, family) {
            // Other transports always send at once, so the option is ignored there.
            (SocketOption::Nodelay(_), _) => None,
            (
                SocketOption::Keepalive { .. }
                | SocketOption::UserTimeout(_)
                | SocketOption::DeferAccept(_),
                _,
            ) => (family != Family::Tcp).then_some("the option is only for TCP"),
            (_, Family::Udp) => None,
            _ => Some("the option is only for UDP"),
        }
    }

    /// Sets the option.
    fn set(&self, socket: &Socket, family: Family, ipv6: bool) -> io::Result<()> {
        // A dual-stack socket has the options of both.
        let ipv4 = !ipv6 || !socket.only_v6()?;
        let set_both = |v4: &dyn Fn() -> io::Result<()>, v6: &dyn Fn() -> io::Result<()>| {
            if ipv6 {
                v6()?;
            }
            if ipv4 { v4() } else { Ok(()) }
        };
        match *self {
            SocketOption::Nodelay(nodelay) if family == Family::Tcp => {
                socket.set_tcp_nodelay(nodelay)
            }
            SocketOption::Nodelay(_) => Ok(()),
            SocketOption::Keepalive { idle, interval, retries } => {
                sys::set_keepalive(socket, whole_seconds(idle), whole_seconds(interval), retries)
            }
            SocketOption::UserTimeout(timeout) => sys::set_user_timeout(socket, timeout),
            SocketOption::DeferAccept(time) => sys::set_defer_accept(socket, whole_seconds(time)),
            SocketOption::PacketInfo(enabled) => sys::set_pktinfo(socket, ipv6, enabled),
            SocketOption::JoinMulticast(group, interface) => {
                join_multicast(socket, group, interface, (ipv4, ipv6))
            }
            SocketOption::MulticastInterface(interface @ Interface::Address(_)) if ipv4 => {
                sys::set_multicast_interface_v4(socket, &interface.for_ipv4())
            }
            SocketOption::MulticastInterface(interface) => set_both(
                &|| sys::set_multicast_interface_v4(socket, &interface.for_ipv4()),
                &|| socket.set_multicast_if_v6(interface.index()?),
            ),
            SocketOption::MulticastLoop(enabled) => {
                set_both(&|| socket.set_multicast_loop_v4(enabled), &|| {
                    socket.set_multicast_loop_v6(enabled)
                })
            }
            SocketOption::MulticastTtl(hops) => {
                set_both(&|| socket.set_multicast_ttl_v4(hops), &|| {
                    socket.set_multicast_hops_v6(hops)
                })
            }
            SocketOption::Broadcast(enabled) => socket.set_broadcast(enabled),
            SocketOption::Ttl(hops) => {
                set_both(&|| socket.set_ttl_v4(hops), &|| socket.set_unicast_hops_v6(hops))
            }
        }
    }
}

/// Rounds up to whole seconds, which the system takes.
fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)))
}

fn join_multicast(
    socket: &Socket,
    group: IpAddr,
    interface: Interface,
    (ipv4, ipv6): (bool, bool),
) -> io::Result<()> {
    if !group.is_multicast() {
        return Err(unusable("the address is not a multicast group"));
    }
    match group {
        IpAddr::V4(group) if ipv4 => {
            sys::join_multicast_v4(socket, &group, &interface.for_ipv4())?;
            sys::receive_only_joined_groups(socket, false)
        }
        IpAddr::V6(group) if ipv6 => {
            socket.join_multicast_v6(&group, interface.index()?)?;
            sys::receive_only_joined_groups(socket, true)
        }
        IpAddr::V4(_) => Err(unusable("an IPv6-only socket cannot join an IPv4 group")),
        IpAddr::V6(_) => Err(unusable("an IPv4 socket cannot join an IPv6 group")),
    }
}

fn unusable(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

/// Sets the options, in the order in which they were given.
pub(crate) fn set_options(
    options: &[SocketOption],
    socket: &Socket,
    family: Family,
    address: &str,
) -> Result<(), Error> {
    let ipv6 = || Ok(socket.local_addr()?.is_ipv6());
    for option in options {
        ipv6().and_then(|ipv6| option.set(socket, family, ipv6)).map_err(|source| {
            Error::Option { option: option.name(), address: address.to_owned(), source }
        })?;
    }
    Ok(())
}

/// Checks that the options have a meaning for a socket, before the socket is bound. `bound` says
/// that it is bound already.
pub(crate) fn check_options(
    bind: &BindOptions,
    options: &[SocketOption],
    family: Family,
    bound: bool,
    address: &str,
) -> Result<(), Error> {
    let unix = matches!(family, Family::Unix | Family::UnixDatagram);
    let refuse = |option, reason| {
        let address = address.to_owned();
        Err(Error::Option { option, address, source: unusable(reason) })
    };
    if bind.unix_mode.is_some() && !unix {
        return refuse("unix_mode", "only a Unix socket has a file");
    }
    if bind.reuse_port && unix {
        return refuse("reuse_port", "a Unix socket has no port");
    }
    if bound && let Some(option) = bind.first_set() {
        return refuse(option, "the socket is bound already");
    }
    let refused = options.iter().find_map(|option| {
        let reason = option.refused_for(family)?;
        Some((option.name(), reason))
    });
    refused.map_or(Ok(()), |(option, reason)| refuse(option, reason))
}
