//! A session of one datagram: the handler is called and the replies are sent, on this thread.

use std::sync::Arc;

use super::{Served, Session, SessionCx};
use crate::conversation::{DatagramCx, Handler, StepCx, serve_datagram};
use crate::datagram::{Datagram, ReplySocket};
use crate::sys::CatchDrop;

/// A datagram with whoever answers it.
pub(crate) struct DatagramSession<H> {
    pub(crate) reply_socket: Arc<ReplySocket>,
    pub(crate) datagram: Datagram,
    pub(crate) handler: CatchDrop<H>,
}

impl<H: Handler> Session for DatagramSession<H> {
    fn run(self: Box<Self>, cx: &mut SessionCx<'_>) -> Served {
        let DatagramSession { reply_socket, datagram, handler } = *self;
        let datagram_cx =
            DatagramCx { reply_socket: &reply_socket, from: &datagram.from, info: datagram.info };
        let mut step_cx = StepCx::new(cx.output_buffer, cx.tally, &datagram_cx, usize::MAX);
        let peer = datagram.peer.clone();
        let reason = serve_datagram(
            handler,
            peer.clone(),
            &datagram.bytes,
            datagram.truncated,
            &mut step_cx,
        );
        if step_cx.shutdown {
            (cx.on_shutdown)();
        }
        for (reply, to) in cx.output_buffer.datagrams(&datagram.bytes, &datagram.from) {
            reply_socket.reply(to, reply, cx.tally);
        }
        cx.output_buffer.clear();
        Served { peer, reason, cut: false, lingering: None }
    }
}
