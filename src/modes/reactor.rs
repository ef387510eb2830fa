//! The mode `reactor`: connections and handlers are on the loop.

use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use socket2::Socket;

use super::service::{
    HandlerFactory, ModeRunner, RunContext, ServiceConfig, ServiceRunner, make_handler,
};
use crate::address::Peer;
use crate::connection_id::ConnectionId;
use crate::conversation::NoSenders;
use crate::conversation::{Conversation, Framing, Handler, StepCx, serve_datagram};
use crate::event_loop::{
    Connection, ConversationSlot, DatagramDispatcher, Dispatcher, LoopCx, NewConnection,
    OutputLimits, StreamDispatcher,
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
        let ServiceConfig { start, framing, limits } = &mut self.0;
        let framing = &**framing;
        let make = start.start(run_cx)?;
        Ok(Box::new(LoopStreamDispatcher {
            make,
            framing,
            limits: Rc::new(*limits),
            listener: run_cx.listener,
        }))
    }

    fn datagram_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>> {
        Ok(Box::new(LoopDatagramDispatcher { make: self.0.start.start(run_cx)? }))
    }
}

struct LoopStreamDispatcher<'a, H, F> {
    make: HandlerFactory<'a, H>,
    framing: &'a F,
    limits: Rc<OutputLimits>,
    listener: Token,
}

impl<H, F> Dispatcher for LoopStreamDispatcher<'_, H, F> {}

impl<H: Handler + 'static, F: Framing + Clone + 'static> StreamDispatcher
    for LoopStreamDispatcher<'_, H, F>
{
    fn nonblocking(&self) -> bool {
        true
    }

    fn dispatch(&mut self, socket: Socket, peer: Peer, id: ConnectionId, cx: &mut LoopCx) {
        let Some(conversation) = make_handler(Some(id), &peer, cx, || {
            let handler = self.make.make(&peer);
            Conversation::new(handler, self.framing.clone().into(), peer.clone(), id)
        }) else {
            cx.tally.closed += 1;
            return;
        };
        register(socket, conversation, self.limits.clone(), self.listener, cx);
    }
}

/// Registers a connection with the loop.
pub(super) fn register<T: ConversationSlot>(
    socket: Socket,
    slot: T,
    limits: Rc<OutputLimits>,
    listener: Token,
    cx: &mut LoopCx,
) {
    let descriptor = socket.as_raw_fd();
    let source = Box::new(Connection::new(socket, slot, limits, cx.now));
    cx.register(NewConnection { source, descriptor, parent: listener });
}

struct LoopDatagramDispatcher<'a, H> {
    make: HandlerFactory<'a, H>,
}

impl<H> Dispatcher for LoopDatagramDispatcher<'_, H> {}

impl<H: Handler> DatagramDispatcher for LoopDatagramDispatcher<'_, H> {
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        let Some(handler) = make_handler(None, &peer, cx, || self.make.make(&peer)) else { return };
        let state = &mut cx.state;
        let mut step_cx =
            StepCx::new(&mut state.output_buffer, &mut state.tally, &NoSenders, usize::MAX);
        let reason = serve_datagram(handler, peer.clone(), bytes, received.truncated, &mut step_cx);
        cx.shutdown |= step_cx.shutdown;
        if reason.is_fault() {
            cx.end(None, &peer, reason);
        }
    }
}
