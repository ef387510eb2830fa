//! Sockets: made, bound, named and closed, without any idea of what is said over them.

use std::io;

use socket2::{SockAddr, Socket};

use crate::address::{Address, Peer};

mod bind;
mod unix_file;

pub(crate) use bind::{BindOptions, Bound, Family, Kind, Target, bind};

/// Who the kernel says has connected or sent.
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

/// The address of this end of a connection: that which its client has connected to, also where the
/// listener is bound to all addresses of the host. One of a dual-stack listener that was reached by
/// IPv4 is shown as IPv4, as its peer is.
pub(crate) fn local_address(connection: &Socket) -> io::Result<Address> {
    Ok(match peer_of(&connection.local_addr()?) {
        Peer::Inet(address) => Address::Tcp(address),
        Peer::Path(path) => Address::Unix(Some(path.into())),
        Peer::Abstract(_) | Peer::Unnamed => Address::Unix(None),
    })
}
