//! The mode `reactor`: connections and handlers are on the loop.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use socket2::Socket;

use super::service::{
    HandlerFactory, ModeRunner, RunContext, ServiceConfig, ServiceRunner, make_handler,
};
use crate::address::Peer;
use crate::conversation::{Conversation, DatagramCx, Framing, Handler, StepCx, serve_datagram};
use crate::datagram::ReplySocket;
use crate::event_loop::{
    Connection, ConversationSlot, DatagramDispatcher, Dispatcher, LoopCx, NewConnection,
    StreamDispatcher, WaterMarks,
};
use crate::sys::RecvMeta;
use crate::token::Token;

/// On the loop: the default. One thread serves everyone; a handler must not block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Reactor;

/// What a service keeps between runs: its handlers run on the loop.
struct ReactorRunner<H, F>(ServiceConfig<H, F>);

pub(super) fn reactor<H, F>(config: ServiceConfig<H, F>) -> ServiceRunner
where
    H: Handler + 'static,
    F: Framing + Clone + Send + 'static,
{
    ServiceRunner(Box::new(ReactorRunner(config)))
}

impl<H: Handler + 'static, F: Framing + Clone + Send + 'static> ModeRunner for ReactorRunner<H, F> {
    fn stream_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn StreamDispatcher + 'a>> {
        let ServiceConfig { start, framing, water_marks } = &mut self.0;
        let framing = &**framing;
        let make = start.start()?;
        Ok(Box::new(LoopStreamDispatcher {
            make,
            framing,
            water_marks: *water_marks,
            listener: run_cx.listener,
        }))
    }

    fn datagram_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>> {
        let reply_socket = run_cx.listener_handle.reply_socket.clone();
        Ok(Box::new(LoopDatagramDispatcher { make: self.0.start.start()?, reply_socket }))
    }
}

struct LoopStreamDispatcher<'a, H, F> {
    make: HandlerFactory<'a, H>,
    framing: &'a F,
    water_marks: WaterMarks,
    listener: Token,
}

impl<H, F> Dispatcher for LoopStreamDispatcher<'_, H, F> {}

impl<H: Handler + 'static, F: Framing + Clone + 'static> StreamDispatcher
    for LoopStreamDispatcher<'_, H, F>
{
    fn nonblocking(&self) -> bool {
        true
    }

    fn dispatch(&mut self, socket: Socket, peer: Peer, cx: &mut LoopCx) {
        let Some(conversation) = make_handler(&peer, cx, || {
            let handler = self.make.make(&peer);
            Conversation::new(handler, self.framing.clone().into(), peer.clone())
        }) else {
            cx.tally.closed += 1;
            return;
        };
        register(socket, conversation, self.water_marks, self.listener, cx);
    }
}

/// Registers a connection with the loop.
pub(super) fn register<T: ConversationSlot>(
    socket: Socket,
    slot: T,
    water_marks: WaterMarks,
    listener: Token,
    cx: &mut LoopCx,
) {
    let descriptor = socket.as_raw_fd();
    let source = Box::new(Connection::new(socket, slot, water_marks, cx.now));
    cx.register(NewConnection { source, descriptor, parent: listener });
}

struct LoopDatagramDispatcher<'a, H> {
    make: HandlerFactory<'a, H>,
    reply_socket: Arc<ReplySocket>,
}

impl<H> Dispatcher for LoopDatagramDispatcher<'_, H> {}

impl<H: Handler> DatagramDispatcher for LoopDatagramDispatcher<'_, H> {
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        let Some(handler) = make_handler(&peer, cx, || self.make.make(&peer)) else { return };
        let state = &mut cx.state;
        let datagram_cx = DatagramCx {
            reply_socket: &self.reply_socket,
            from: &received.from,
            info: received.info,
        };
        let mut step_cx =
            StepCx::new(&mut state.output_buffer, &mut state.tally, &datagram_cx, usize::MAX);
        let reason = serve_datagram(handler, peer.clone(), bytes, received.truncated, &mut step_cx);
        cx.shutdown |= step_cx.shutdown;
        if reason.is_fault() {
            cx.end(&peer, reason);
        }
    }
}
