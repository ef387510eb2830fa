//! What the handler of a datagram can ask of the socket that received it.

use std::sync::Arc;

use super::SenderSource;
use crate::address::{Address, Peer};
use crate::datagram::ReplySocket;
use crate::encodable::Encodable;
use crate::error::UnsupportedError;
use crate::sender::SendQueue;
use crate::sys::{Destination, PacketInfo};
use crate::transport::sock_addr_of;

/// The socket that a handler answers a datagram on, and where the reply goes.
pub(crate) struct DatagramCx<'a> {
    pub(crate) reply_socket: &'a ReplySocket,
    pub(crate) from: &'a Destination,
    pub(crate) info: Option<PacketInfo>,
}

impl DatagramCx<'_> {
    /// Where a datagram to this peer goes. One to the peer that is answered goes as the reply does.
    pub(super) fn destination(&self, peer: &Peer) -> Result<Destination, UnsupportedError> {
        let address = sock_addr_of(peer, self.reply_socket.address())?;
        if address == self.from.address {
            return Ok(self.from.clone());
        }
        Ok(Destination::new(address))
    }

    /// Where the datagram was sent to, if that is known, or else where the socket is bound.
    pub(super) fn local_addr(&self) -> Address {
        self.reply_socket.local_addr(self.info)
    }

    /// The index of the interface that the datagram came by, if that is known.
    pub(super) fn interface(&self) -> Option<u32> {
        self.info.map(|info| info.interface).filter(|index| *index != 0)
    }
}

/// A datagram's handler has no sender.
impl SenderSource for DatagramCx<'_> {
    fn send_queue(&self, _encodable: Encodable) -> Result<Arc<SendQueue>, UnsupportedError> {
        Err(UnsupportedError::DatagramSender)
    }

    fn datagram(&self) -> Option<&DatagramCx<'_>> {
        Some(self)
    }
}
