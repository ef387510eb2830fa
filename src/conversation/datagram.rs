//! The context of a datagram's handler: the socket that received the datagram.

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

/// The socket on which a handler answers a datagram, and the destination of the reply.
pub(crate) struct DatagramDriver<'a> {
    pub(crate) reply_socket: &'a ReplySocket,
    pub(crate) from: &'a Destination,
    pub(crate) stop: &'a StopRequester,
}

impl DatagramDriver<'_> {
    /// The destination of a datagram to this peer. The peer of the current datagram has the
    /// destination of the reply.
    pub(super) fn destination(&self, peer: &Peer) -> Result<Destination, UnsupportedError> {
        let address = sock_addr_of(peer, self.reply_socket.address())?;
        if address == self.from.address {
            return Ok(self.from.clone());
        }
        Ok(Destination::new(address))
    }
}

/// The handler of a datagram has no sender.
impl Driver for DatagramDriver<'_> {
    fn send_queue(&self, _recipient: Recipient) -> Result<Arc<SendQueue>, UnsupportedError> {
        Err(UnsupportedError::DatagramSender)
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn request_stop(&self) {
        self.stop.request();
    }

    fn is_overloaded(&self) -> bool {
        self.stop.is_overloaded()
    }

    fn datagram(&self) -> Option<&DatagramDriver<'_>> {
        Some(self)
    }
}
