//! Handlers under `reactor` and `offload`: their connections stay with the loop.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use socket2::Socket;

use super::{
    HandlerFactory, ModeRunner, Requirements, RunContext, ServiceConfig, ServiceRunner,
    make_handler,
};
use crate::address::Peer;
use crate::blocking::{Datagram, NoSenders, Workers as _};
use crate::conversation::{Conversation, Framing, Handler, StepCx, serve_datagram};
use crate::event_loop::{
    Connection, ConversationSlot, DatagramDispatcher, DatagramJob, Dispatcher, LoopCx,
    NewConnection, OffloadSlot, OffloadTarget, StreamDispatcher, WaterMarks,
};
use crate::mailbox::Job;
use crate::modes::{Offload, OffloadWorkers};
use crate::sys::{Destination, RecvMeta};
use crate::token::Token;

/// Handlers on the loop.
struct ReactorRunner<H, F>(ServiceConfig<H, F>);

pub(super) fn on_the_loop<H, F>(config: ServiceConfig<H, F>) -> ServiceRunner
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
        _ground: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>> {
        Ok(Box::new(LoopDatagramDispatcher { make: self.0.start.start()? }))
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

/// Leaves a connection to the loop.
fn register<T: ConversationSlot>(
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
}

impl<H> Dispatcher for LoopDatagramDispatcher<'_, H> {}

impl<H: Handler> DatagramDispatcher for LoopDatagramDispatcher<'_, H> {
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        let Some(handler) = make_handler(&peer, cx, || self.make.make(&peer)) else { return };
        let state = &mut cx.state;
        let mut step_cx =
            StepCx::new(&mut state.output_buffer, &mut state.tally, &NoSenders, usize::MAX);
        let reason = serve_datagram(handler, peer.clone(), bytes, received.truncated, &mut step_cx);
        cx.shutdown |= step_cx.shutdown;
        if reason.is_fault() {
            cx.end(&peer, reason);
        }
    }
}

/// Handlers on workers, their connections on the loop.
struct OffloadRunner<H, F> {
    config: ServiceConfig<H, F>,
    workers: Arc<OffloadWorkers>,
}

pub(super) fn on_workers<H, F>(mode: Offload, config: ServiceConfig<H, F>) -> ServiceRunner
where
    H: Handler + Send + 'static,
    F: Framing + Clone + Send + 'static,
{
    ServiceRunner(Box::new(OffloadRunner { config, workers: Arc::new(OffloadWorkers::new(mode)) }))
}

impl<H, F> ModeRunner for OffloadRunner<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Clone + Send + 'static,
{
    fn stream_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn StreamDispatcher + 'a>> {
        let OffloadRunner { config: ServiceConfig { start, framing, water_marks }, workers } = self;
        let framing = &**framing;
        workers.count_into(&run_cx.control.published);
        let (make, water_marks, listener) = (start.start()?, *water_marks, run_cx.listener);
        let target = Arc::new(OffloadTarget::new(workers.clone(), run_cx.service));
        Ok(Box::new(OffloadStreamDispatcher {
            make,
            framing,
            water_marks,
            listener,
            workers,
            target,
        }))
    }

    fn datagram_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>> {
        self.workers.count_into(&run_cx.control.published);
        let make = self.config.start.start()?;
        Ok(Box::new(OffloadDatagramDispatcher { make, workers: &self.workers, lent: 0 }))
    }

    fn requirements(&self) -> Requirements {
        Requirements { threads: true, ..Requirements::default() }
    }
}

struct OffloadStreamDispatcher<'a, H, F> {
    make: HandlerFactory<'a, H>,
    framing: &'a F,
    water_marks: WaterMarks,
    listener: Token,
    workers: &'a OffloadWorkers,
    target: Arc<OffloadTarget>,
}

impl<H, F> Dispatcher for OffloadStreamDispatcher<'_, H, F> {
    fn lent(&self) -> usize {
        self.target.closing()
    }

    fn wants_turn_end(&self) -> bool {
        true
    }

    fn on_turn_end(&mut self) {
        self.workers.call();
    }
}

impl<H, F> StreamDispatcher for OffloadStreamDispatcher<'_, H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Clone + Send + 'static,
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
        let slot = OffloadSlot::new(conversation, self.target.clone());
        register(socket, slot, self.water_marks, self.listener, cx);
    }
}

/// How many datagrams may be out with workers, or wait for one; more wait in the kernel.
const LENT_DATAGRAMS: usize = 1024;

struct OffloadDatagramDispatcher<'a, H> {
    make: HandlerFactory<'a, H>,
    workers: &'a Arc<OffloadWorkers>,
    lent: usize,
}

impl<H> Dispatcher for OffloadDatagramDispatcher<'_, H> {
    fn lent(&self) -> usize {
        self.lent
    }

    fn has_room(&mut self) -> bool {
        self.lent < LENT_DATAGRAMS
    }

    fn burst(&self) -> usize {
        LENT_DATAGRAMS.saturating_sub(self.lent).max(1)
    }

    fn wants_turn_end(&self) -> bool {
        true
    }

    fn on_turn_end(&mut self) {
        self.workers.call();
    }

    fn in_flight(&self) -> usize {
        self.lent
    }
}

impl<H: Handler + Send + 'static> DatagramDispatcher for OffloadDatagramDispatcher<'_, H> {
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        let Some(handler) = make_handler(&peer, cx, || self.make.make(&peer)) else { return };
        self.lent += 1;
        let datagram = Datagram::new(bytes, peer, received);
        let work = Box::new(DatagramJob::new(handler, datagram));
        self.workers.submit(&cx.entry.mailbox, cx.entry.token, work);
    }

    fn returned(&mut self, work: Box<dyn Job>, cx: &mut LoopCx) -> Option<(Destination, Vec<u8>)> {
        self.lent -= 1;
        DatagramJob::<H>::take_back(work, cx)
    }
}
