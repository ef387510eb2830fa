//! Sockets: made, bound, named and closed, without any idea of what is said over them.

use socket2::SockAddr;

use crate::address::Peer;

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
