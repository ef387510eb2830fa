//! What the handler of a datagram can ask of the socket that received it.

use std::sync::Arc;
use std::time::Instant;

use super::Driver;
use crate::address::Peer;
use crate::datagram::ReplySocket;
use crate::error::UnsupportedError;
use crate::sender::{Recipient, SendQueue};
use crate::server_state::StopRequester;
use crate::sys::Destination;
use crate::transport::sock_addr_of;

/// The socket that a handler answers a datagram on, and where the reply goes.
pub(crate) struct DatagramCx<'a> {
    pub(crate) reply_socket: &'a ReplySocket,
    pub(crate) from: &'a Destination,
    pub(crate) stop: &'a StopRequester,
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
}

/// A datagram's handler has no sender.
impl Driver for DatagramCx<'_> {
    fn send_queue(&self, _recipient: Recipient) -> Result<Arc<SendQueue>, UnsupportedError> {
        Err(UnsupportedError::DatagramSender)
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn request_stop(&self) {
        self.stop.request();
    }

    fn datagram(&self) -> Option<&DatagramCx<'_>> {
        Some(self)
    }
}
