//! A session of one datagram: the handler is called and the replies are sent, on this thread.

use std::sync::Arc;

use super::{Served, Session, SessionCx};
use crate::address::LogPeer;
use crate::conversation::{DatagramDriver, Handler, serve_datagram};
use crate::datagram::{Datagram, ReplySocket};
use crate::sys::CatchDrop;

/// A datagram with its handler.
pub(crate) struct DatagramSession<H> {
    pub(crate) reply_socket: Arc<ReplySocket>,
    pub(crate) datagram: Datagram,
    pub(crate) handler: CatchDrop<H>,
}

impl<H: Handler> Session for DatagramSession<H> {
    fn run(self: Box<Self>, cx: &mut SessionCx<'_>) -> Served {
        let DatagramSession { reply_socket, datagram, handler } = *self;
        let driver =
            DatagramDriver { reply_socket: &reply_socket, from: &datagram.from, stop: cx.stop };
        let mut step_cx = cx.scratch.step_cx(&driver, usize::MAX);
        let peer = datagram.peer.clone();
        let reason = serve_datagram(
            handler,
            peer.clone(),
            datagram.id,
            &datagram.bytes,
            datagram.truncated,
            &mut step_cx,
        );
        let Datagram { bytes, from, .. } = &datagram;
        let replies = cx.scratch.output_buffer.datagrams(bytes, from);
        reply_socket.reply_all(bytes, from, replies, &mut cx.scratch.tally);
        cx.scratch.output_buffer.clear();
        let origin = LogPeer { id: datagram.id, peer };
        Served { origin, reason, cut: false, lingering: None }
    }
}
