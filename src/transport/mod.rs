//! Transports: makes, binds, names and closes sockets, independent of the data on them.

use std::ffi::OsStr;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::ffi::OsStrExt;

use socket2::SockAddr;

use crate::address::{Address, Peer, checked_path};
use crate::error::UnsupportedError;
use crate::sys::{PacketInfo, Socket};

mod bind;
mod options;
mod unix_file;

pub(crate) use bind::{BindOptions, Bound, Family, Kind, Target, bind, max_backlog};
pub use options::Interface;
pub(crate) use options::{SocketOption, check_options, set_options};

/// The peer that the kernel reports for a connection or a datagram.
pub(crate) fn peer_of(address: &SockAddr) -> Peer {
    if let Some(inet) = address.as_socket() {
        return Peer::from(inet);
    }
    if let Some(path) = address.as_pathname() {
        return Peer::Path(path.into());
    }
    match address.as_abstract_namespace() {
        Some(name) => Peer::Abstract(name.into()),
        None => Peer::Unnamed,
    }
}

/// The local address of a connection: the one that the client has connected to, also if the
/// listener is bound to all addresses of the host. An IPv4 connection of a dual-stack listener is
/// shown as IPv4, as its peer is.
pub(crate) fn local_address(connection: &Socket) -> io::Result<Address> {
    Ok(match peer_of(&connection.local_addr()?) {
        Peer::Inet(address) => Address::Tcp(address),
        Peer::Path(path) => Address::Unix(Some(path.into())),
        Peer::Abstract(_) | Peer::Unnamed => Address::Unix(None),
    })
}

/// The address by which a datagram socket that is bound to `own` sends to a peer: the reverse of
/// [`peer_of`]. On an IPv6 socket an IPv4 address is mapped, see ipv6(7).
pub(crate) fn sock_addr_of(peer: &Peer, own: &Address) -> Result<SockAddr, UnsupportedError> {
    let unix = |path: &OsStr| SockAddr::unix(path).ok();
    let address = match (own, peer) {
        (Address::Udp(own), Peer::Inet(to)) => match (own, to.ip().to_canonical(), to) {
            (SocketAddr::V4(_), ip @ IpAddr::V4(_), _) => Some(SocketAddr::new(ip, to.port())),
            (SocketAddr::V4(_), IpAddr::V6(_), _) => None,
            (SocketAddr::V6(_), IpAddr::V4(ip), _) => {
                Some(SocketAddrV6::new(ip.to_ipv6_mapped(), to.port(), 0, 0).into())
            }
            (SocketAddr::V6(_), IpAddr::V6(_), to) => Some(*to),
        }
        .map(SockAddr::from),
        (Address::UnixDatagram(_), Peer::Path(path)) => {
            checked_path(path).ok().and_then(|()| unix(path.as_os_str()))
        }
        // A name in the abstract namespace begins with a NUL, see unix(7).
        (Address::UnixDatagram(_), Peer::Abstract(name)) => {
            unix(OsStr::from_bytes(&[&[0], &**name].concat()))
        }
        _ => None,
    };
    address.ok_or(UnsupportedError::UnaddressablePeer)
}

/// The local address of a datagram that a socket bound to `own` has received: the address that the
/// datagram was sent to, if that is known. A link-local address, also of a group, includes the
/// interface.
pub(crate) fn local_addr(own: &Address, info: Option<PacketInfo>) -> Address {
    let (Address::Udp(bound), Some(PacketInfo { to, interface })) = (own, info) else {
        return own.clone();
    };
    Address::Udp(match to {
        IpAddr::V6(ip) if is_of_one_link(ip) => {
            SocketAddrV6::new(ip, bound.port(), 0, interface).into()
        }
        ip => SocketAddr::new(ip, bound.port()),
    })
}

/// Whether an IPv6 address identifies a host or a group only together with an interface: RFC 4007.
fn is_of_one_link(ip: Ipv6Addr) -> bool {
    ip.is_unicast_link_local() || ip.is_multicast() && (1..=2).contains(&(ip.octets()[1] & 0xf))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(own: &str) -> Address {
        Address::Udp(own.parse().unwrap())
    }

    fn unix_datagram() -> Address {
        Address::UnixDatagram(Some("/run/own".into()))
    }

    #[test]
    fn the_address_of_a_peer_converts_back_to_the_address_that_the_kernel_reported() {
        let path = SockAddr::unix("/run/peer").unwrap();
        let inet = |text: &str| SockAddr::from(text.parse::<SocketAddr>().unwrap());
        for (own, address) in [
            (udp("0.0.0.0:1"), inet("192.0.2.1:80")),
            (udp("[::]:1"), inet("[2001:db8::1]:80")),
            (udp("[::]:1"), inet("[fe80::1%2]:80")),
            (udp("[::]:1"), inet("[::ffff:192.0.2.1]:80")),
            (unix_datagram(), path),
        ] {
            let peer = peer_of(&address);
            assert_eq!(sock_addr_of(&peer, &own).unwrap(), address, "{peer}");
        }
        if cfg!(target_os = "linux") {
            let address = SockAddr::unix("\0peer").unwrap();
            let peer = peer_of(&address);
            assert_eq!(peer, Peer::Abstract((*b"peer").into()));
            assert_eq!(sock_addr_of(&peer, &unix_datagram()).unwrap(), address);
        }
    }

    #[test]
    fn an_ipv4_socket_sends_to_a_mapped_address_as_to_the_ipv4_address_in_it() {
        let peer = Peer::Inet("[::ffff:192.0.2.1]:80".parse().unwrap());
        let address = sock_addr_of(&peer, &udp("0.0.0.0:1")).unwrap();
        assert_eq!(address.as_socket(), Some("192.0.2.1:80".parse().unwrap()));
    }

    #[test]
    fn a_peer_without_an_address_or_of_another_family_cannot_be_sent_to() {
        let inet = |text: &str| Peer::Inet(text.parse().unwrap());
        let path = |path: &str| Peer::Path(std::path::Path::new(path).into());
        for (own, peer) in [
            (udp("[::]:1"), Peer::Unnamed),
            (unix_datagram(), Peer::Unnamed),
            (udp("0.0.0.0:1"), inet("[2001:db8::1]:80")),
            (udp("0.0.0.0:1"), path("/run/peer")),
            (udp("0.0.0.0:1"), Peer::Abstract((*b"peer").into())),
            (unix_datagram(), inet("192.0.2.1:80")),
            (unix_datagram(), path("")),
            (unix_datagram(), path("/run/\0peer")),
            (unix_datagram(), path(&"x".repeat(108))),
            (unix_datagram(), Peer::Abstract(vec![b'x'; 108].into())),
        ] {
            let refused = sock_addr_of(&peer, &own);
            assert_eq!(refused.err(), Some(UnsupportedError::UnaddressablePeer), "{peer}");
        }
    }

    #[test]
    fn the_local_address_of_a_datagram_is_where_it_was_sent_to() {
        let info = |to: &str| Some(PacketInfo { to: to.parse().unwrap(), interface: 3 });
        let own = udp("[::]:5353");
        for (info, local) in [
            (None, "[::]:5353"),
            (info("192.0.2.1"), "192.0.2.1:5353"),
            (info("224.0.0.251"), "224.0.0.251:5353"),
            (info("2001:db8::1"), "[2001:db8::1]:5353"),
            (info("fe80::1"), "[fe80::1%3]:5353"),
            (info("ff02::fb"), "[ff02::fb%3]:5353"),
            (info("ff05::fb"), "[ff05::fb]:5353"),
        ] {
            assert_eq!(local_addr(&own, info), udp(local));
        }
        assert_eq!(local_addr(&unix_datagram(), None), unix_datagram());
    }
}
