//! The mode `reactor`: connections and handlers run on the event loop.

use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;

use super::service::{
    HandlerFactory, ModeRunner, RunContext, ServiceConfig, ServiceRunner, make_handler,
};
use crate::accepted::{Accepted, AcceptedStream};
use crate::address::Peer;
use crate::conversation::{Conversation, DatagramDriver, Framing, Handler, serve_datagram};
use crate::datagram::ReplySocket;
use crate::event_loop::{
    Connection, ConversationSlot, DatagramDispatcher, Dispatcher, LoopCx, NewConnection,
    ServiceLimits, StreamDispatcher,
};
use crate::sys::{CatchDrop, RecvMeta};
use crate::token::Token;

/// The default mode: the event loop runs all connections and handlers on one thread. A handler must
/// not block.
///
/// In the guide: [`blocking_work`](crate::guide::blocking_work),
/// [`choosing_a_mode`](crate::guide::choosing_a_mode), [`embedding`](crate::guide::embedding),
/// [`reaching_others`](crate::guide::reaching_others),
/// [`several_cpus`](crate::guide::several_cpus), [`shared_state`](crate::guide::shared_state).
///
/// ```
/// use socketserver::{Reactor, Server, handler_fn};
///
/// let server = Server::tcp("127.0.0.1:0")?
///     .mode(Reactor) // as without this line
///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
/// # drop(server);
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Reactor;

/// The state of a service between runs: its handlers run on the loop.
struct ReactorRunner<H, F>(ServiceConfig<(F, H)>);

pub(super) fn reactor<H, F>(config: ServiceConfig<(F, H)>) -> ServiceRunner
where
    H: Handler + 'static,
    F: Framing + Send + 'static,
{
    ServiceRunner(Box::new(ReactorRunner(config)))
}

impl<H: Handler + 'static, F: Framing + Send + 'static> ModeRunner for ReactorRunner<H, F> {
    fn stream_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn StreamDispatcher + 'a>> {
        let connections = LoopConnections::new(&mut self.0, run_cx)?;
        Ok(Box::new(LoopStreamDispatcher { connections }))
    }

    fn datagram_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>> {
        let reply_socket = run_cx.listener_handle.reply_socket.clone();
        Ok(Box::new(LoopDatagramDispatcher { make: self.0.start.start(run_cx)?, reply_socket }))
    }
}

struct LoopStreamDispatcher<'a, H, F> {
    connections: LoopConnections<'a, H, F>,
}

impl<H, F> Dispatcher for LoopStreamDispatcher<'_, H, F> {}

impl<H: Handler + 'static, F: Framing + 'static> StreamDispatcher
    for LoopStreamDispatcher<'_, H, F>
{
    fn nonblocking(&self) -> bool {
        true
    }

    fn dispatch(&mut self, stream: AcceptedStream, cx: &mut LoopCx) {
        self.connections.open(stream, cx, |conversation| conversation);
    }
}

/// Makes the connections of one listener, under a mode that keeps them on the loop.
pub(super) struct LoopConnections<'a, H, F> {
    make: HandlerFactory<'a, (F, H)>,
    limits: Rc<ServiceLimits>,
    listener: Token,
}

impl<'a, H: Handler, F: Framing> LoopConnections<'a, H, F> {
    /// Begins a run.
    ///
    /// # Errors
    ///
    /// If the user's function that makes the handlers panics.
    pub(super) fn new(
        config: &'a mut ServiceConfig<(F, H)>,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Self> {
        let ServiceConfig { start, limits } = config;
        let (make, listener) = (start.start(run_cx)?, run_cx.listener);
        Ok(LoopConnections { make, limits: Rc::new(limits.clone()), listener })
    }

    /// Makes a conversation and registers its connection with the loop; `slot` wraps the
    /// conversation for the mode.
    pub(super) fn open<T: ConversationSlot>(
        &mut self,
        stream: AcceptedStream,
        cx: &mut LoopCx,
        slot: impl FnOnce(Conversation<H, F>) -> T,
    ) {
        let Some((framing, handler)) = make_handler(&mut self.make, &stream.accepted(), cx) else {
            cx.scratch.tally.closed += 1;
            return;
        };
        let AcceptedStream { socket, peer, id, permit } = stream;
        let mut conversation = Conversation::new(handler.into(), framing.into(), peer, id);
        conversation.set_idle_timeout(self.limits.peer.idle_timeout);
        let descriptor = socket.as_raw_fd();
        let connection =
            Connection::new(socket, slot(conversation), self.limits.clone(), cx.turn.now)
                .limited(permit, cx.turn.now);
        cx.register(NewConnection {
            source: Box::new(connection),
            descriptor,
            parent: self.listener,
        });
    }
}

struct LoopDatagramDispatcher<'a, H, F> {
    make: HandlerFactory<'a, (F, H)>,
    reply_socket: Arc<ReplySocket>,
}

impl<H, F> Dispatcher for LoopDatagramDispatcher<'_, H, F> {}

impl<H: Handler, F> DatagramDispatcher for LoopDatagramDispatcher<'_, H, F> {
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        let accepted = Accepted::datagram(&peer, &self.reply_socket, received.info);
        let Some((framing, handler)) = make_handler(&mut self.make, &accepted, cx) else { return };
        drop(CatchDrop::new(framing));
        let (handler, id) = (handler.into(), accepted.known_id());
        let driver = DatagramDriver {
            reply_socket: &self.reply_socket,
            from: &received.from,
            stop: &cx.call.entry.stop,
        };
        let mut step_cx = cx.scratch.step_cx(&driver, usize::MAX);
        let reason =
            serve_datagram(handler, peer.clone(), id, bytes, received.truncated, &mut step_cx);
        if reason.is_fault() {
            cx.end(None, &peer, reason);
        }
    }
}
