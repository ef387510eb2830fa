//! Received datagrams, the socket that replies are sent on, and the senders of other threads.

use crate::address::Peer;
use crate::connection_id::ConnectionId;
use crate::sys::{Destination, PacketInfo, RecvMeta};

mod reply_meter;
mod reply_socket;
mod retries;
mod sender;
mod shared_socket;
mod unresponsive;

pub(crate) use reply_meter::ReplyMeter;
pub(crate) use reply_socket::ReplySocket;
#[cfg(test)]
pub(crate) use retries::{OVERHEAD, RETRY_HIGH};
pub(crate) use retries::{RETRY, RetryQueues, charge};
pub use sender::DatagramSender;
#[cfg(test)]
pub(crate) use unresponsive::SEND_TIMEOUT;
pub(crate) use unresponsive::warn_of_full_send_buffer;

/// A received datagram.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) bytes: Vec<u8>,
    pub(crate) peer: Peer,
    /// Its number, if one was requested.
    pub(crate) id: Option<ConnectionId>,
    /// Where a reply goes.
    pub(crate) from: Destination,
    pub(crate) truncated: bool,
    /// The address that it was sent to, if `IP_PKTINFO` is enabled.
    pub(crate) info: Option<PacketInfo>,
}

impl Datagram {
    pub(crate) fn new(
        bytes: &[u8],
        peer: Peer,
        id: Option<ConnectionId>,
        received: &RecvMeta,
    ) -> Self {
        let from = received.from.clone();
        let RecvMeta { truncated, info, .. } = *received;
        Datagram { bytes: bytes.to_vec(), peer, id, from, truncated, info }
    }
}
