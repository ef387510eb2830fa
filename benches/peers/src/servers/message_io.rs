//! message-io: its own event loop, which owns the sockets and calls back with the received bytes.
//!
//! It binds its own listener, with a backlog of 1,024 and without `TCP_NODELAY`; it does not
//! support Unix sockets.

use ::message_io::network::{NetEvent, Transport};
use ::message_io::node;
use anyhow::Result;

use super::{announce, unsupported};
use crate::endpoint::Endpoint;

pub(super) fn serve(listen: &Endpoint) -> Result<()> {
    let (transport, address) = match listen {
        Endpoint::Tcp(address) => (Transport::Tcp, address),
        Endpoint::Udp(address) => (Transport::Udp, address),
        Endpoint::Unix(_) => return unsupported("message-io", listen),
    };
    let (handler, listener) = node::split::<()>();
    let (_, actual) = handler.network().listen(transport, address)?;
    announce(&match listen {
        Endpoint::Udp(_) => Endpoint::Udp(actual),
        _ => Endpoint::Tcp(actual),
    })?;
    listener.for_each(move |event| {
        if let NetEvent::Message(endpoint, bytes) = event.network() {
            handler.network().send(endpoint, bytes);
        }
    });
    Ok(())
}
