//! The mode `reactor`: connections and handlers are on the loop.

use std::io;
use std::os::fd::AsRawFd;

use socket2::Socket;

use super::service::{
    HandlerFactory, ModeRunner, RunContext, ServiceConfig, ServiceRunner, make_handler,
};
use crate::address::Peer;
use crate::conversation::{Conversation, DatagramDriver, Framing, Handler, serve_datagram};
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
        let connections = LoopConnections::new(&mut self.0, run_cx.listener)?;
        Ok(Box::new(LoopStreamDispatcher { connections }))
    }

    fn datagram_dispatcher<'a>(
        &'a mut self,
        _run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>> {
        Ok(Box::new(LoopDatagramDispatcher { make: self.0.start.start()? }))
    }
}

struct LoopStreamDispatcher<'a, H, F> {
    connections: LoopConnections<'a, H, F>,
}

impl<H, F> Dispatcher for LoopStreamDispatcher<'_, H, F> {}

impl<H: Handler + 'static, F: Framing + Clone + 'static> StreamDispatcher
    for LoopStreamDispatcher<'_, H, F>
{
    fn nonblocking(&self) -> bool {
        true
    }

    fn dispatch(&mut self, socket: Socket, peer: Peer, cx: &mut LoopCx) {
        self.connections.open(socket, peer, cx, |conversation| conversation);
    }
}

/// What the connections of one listener are made of, under a mode that leaves them on the loop.
pub(super) struct LoopConnections<'a, H, F> {
    make: HandlerFactory<'a, H>,
    framing: &'a F,
    water_marks: WaterMarks,
    listener: Token,
}

impl<'a, H: Handler, F: Framing + Clone> LoopConnections<'a, H, F> {
    /// Begins a run.
    ///
    /// # Errors
    ///
    /// Where the user's function that makes the handlers panics.
    pub(super) fn new(config: &'a mut ServiceConfig<H, F>, listener: Token) -> io::Result<Self> {
        let ServiceConfig { start, framing, water_marks } = config;
        let make = start.start()?;
        Ok(LoopConnections { make, framing, water_marks: *water_marks, listener })
    }

    /// Makes a conversation, and registers its connection with the loop; `slot` says where the
    /// conversation runs.
    pub(super) fn open<T: ConversationSlot>(
        &mut self,
        socket: Socket,
        peer: Peer,
        cx: &mut LoopCx,
        slot: impl FnOnce(Conversation<H, F>) -> T,
    ) {
        let Some(conversation) = make_handler(&peer, cx, || {
            let handler = self.make.make(&peer);
            Conversation::new(handler, self.framing.clone().into(), peer.clone(), crate::connection_id::ConnectionId::next())
        }) else {
            cx.scratch.tally.closed += 1;
            return;
        };
        let descriptor = socket.as_raw_fd();
        let connection = Connection::new(socket, slot(conversation), self.water_marks, cx.turn.now);
        cx.register(NewConnection {
            source: Box::new(connection),
            descriptor,
            parent: self.listener,
        });
    }
}

struct LoopDatagramDispatcher<'a, H> {
    make: HandlerFactory<'a, H>,
}

impl<H> Dispatcher for LoopDatagramDispatcher<'_, H> {}

impl<H: Handler> DatagramDispatcher for LoopDatagramDispatcher<'_, H> {
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        let Some(handler) = make_handler(&peer, cx, || self.make.make(&peer)) else { return };
        let driver = DatagramDriver(&cx.call.entry.stop);
        let mut step_cx = cx.scratch.step_cx(&driver, usize::MAX);
        let reason = serve_datagram(handler, peer.clone(), bytes, received.truncated, &mut step_cx);
        if reason.is_fault() {
            cx.end(&peer, reason);
        }
    }
}
