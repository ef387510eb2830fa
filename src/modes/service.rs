//! What the modes share: how a service is made of a handler and a mode, and what a run gives it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::Socket;

use super::{
    BlockingMode, Forking, Inline, Mode, Offload, Pool, Reactor, Threading, forking, inline,
    offload, pool, reactor, threading,
};
use crate::address::{Address, Peer};
use crate::blocking::{
    DatagramRequestSession, DatagramSession, RequestHandler, Session, StreamRequestSession,
    StreamSession,
};
use crate::conversation::{Conversation, Framing, Handler};
use crate::datagram::{Datagram, ReplySocket};
use crate::error::CloseReason;
use crate::event_loop::{DatagramDispatcher, LoopCx, StreamDispatcher, WaterMarks};
use crate::guard;
use crate::server_state::ServerState;
use crate::sys::{CatchDrop, SignalWatch};
use crate::token::Token;

/// The user's function that makes one handler for one peer.
type MakeFn<'a, T> = Box<dyn FnMut(&Peer) -> T + 'a>;

/// Makes one handler for one peer.
pub(crate) struct HandlerFactory<'a, T>(CatchDrop<MakeFn<'a, T>>);

impl<'a, T> HandlerFactory<'a, T> {
    fn new(make: impl FnMut(&Peer) -> T + 'a) -> Self {
        HandlerFactory(CatchDrop::new(Box::new(make)))
    }

    /// Calls the user's function: only where a panic is caught.
    pub(super) fn make(&mut self, peer: &Peer) -> CatchDrop<T> {
        (self.0)(peer).into()
    }
}

/// What a service keeps between runs, and makes the handlers of a run from.
pub(crate) trait MakeFactory<T>: Send {
    /// Begins a run.
    ///
    /// # Errors
    ///
    /// Where the user's function panics.
    fn start(&mut self) -> io::Result<HandlerFactory<'_, T>>;
}

/// A function that makes the handlers of all runs, on whatever thread a run is.
pub(crate) struct SharedFactory<M>(pub(crate) CatchDrop<M>);

impl<T, M: FnMut(&Peer) -> T + Send> MakeFactory<T> for SharedFactory<M> {
    fn start(&mut self) -> io::Result<HandlerFactory<'_, T>> {
        Ok(HandlerFactory::new(&mut *self.0))
    }
}

/// A function that is called when a run begins, and returns the one that makes the handlers of the run.
pub(crate) struct PerRunFactory<S>(pub(crate) CatchDrop<S>);

impl<T, M: FnMut(&Peer) -> T + 'static, S: FnMut() -> M + Send> MakeFactory<T>
    for PerRunFactory<S>
{
    fn start(&mut self) -> io::Result<HandlerFactory<'_, T>> {
        match guard::call(|| (self.0)()) {
            Ok(make) => Ok(HandlerFactory::new(make)),
            Err(message) => {
                guard::note(1);
                Err(io::Error::other(format!("what makes the handlers panicked: {message}")))
            }
        }
    }
}

/// Implemented by this crate's modes alone, so that no others can be written.
pub trait Sealed {}

impl Sealed for Reactor {}
impl Sealed for Offload {}
impl Sealed for Inline {}
impl Sealed for Threading {}
impl Sealed for Pool {}
impl Sealed for Forking {}
impl Sealed for Mode {}
impl Sealed for BlockingMode {}

/// What a mode needs of its process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Requirements {
    /// It starts threads.
    pub(crate) threads: bool,
    /// It forks, and so cannot be where threads are.
    pub(crate) one_thread: bool,
}

/// What a mode makes a service of.
pub struct ServiceConfig<H, F> {
    pub(crate) start: Box<dyn MakeFactory<H>>,
    pub(crate) framing: CatchDrop<F>,
    pub(crate) water_marks: WaterMarks,
}

impl<H, F> std::fmt::Debug for ServiceConfig<H, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServiceConfig")
    }
}

/// What a mode has made of a [`ServiceConfig`].
pub struct ServiceRunner(pub(crate) Box<dyn ModeRunner>);

impl std::fmt::Debug for ServiceRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServiceRunner")
    }
}

/// What a service keeps of its handlers and its mode between runs.
pub(crate) trait ModeRunner: Send {
    /// Begins a run of a stream service.
    fn stream_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn StreamDispatcher + 'a>>;

    /// Begins a run of a datagram service.
    fn datagram_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>>;

    /// The server is dropped: asks what is left of earlier runs to end. Dropping this waits for it.
    fn close(&mut self) {}

    /// What it needs of its process.
    fn requirements(&self) -> Requirements {
        Requirements::default()
    }
}

/// What a run gives to a service.
pub(crate) struct RunContext<'a> {
    pub(crate) listener: Token,
    /// The service's number in the server.
    pub(crate) service: usize,
    pub(crate) listener_handle: ListenerHandle,
    pub(crate) control: &'a Arc<ServerState>,
    pub(crate) signals: Option<SignalWatch>,
    pub(crate) drain: Duration,
}

/// The modes that can run this [`Handler`]: all of them, as far as it is `Send` where the mode
/// takes it to another thread.
#[diagnostic::on_unimplemented(
    message = "the mode `{Self}` cannot run the handler `{H}`",
    label = "this is no mode for it",
    note = "a blocking `RequestHandler` is served by `serve_blocking`, under `Inline`, `Threading`, `Pool` or `Forking`"
)]
pub trait HandlerMode<H: Handler>: Sealed {
    #[doc(hidden)]
    fn build<F>(self, config: ServiceConfig<H, F>) -> ServiceRunner
    where
        F: Framing + Clone + Send + 'static;
}

impl<H: Handler + 'static> HandlerMode<H> for Reactor {
    fn build<F>(self, config: ServiceConfig<H, F>) -> ServiceRunner
    where
        F: Framing + Clone + Send + 'static,
    {
        reactor::reactor(config)
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for Offload {
    fn build<F>(self, config: ServiceConfig<H, F>) -> ServiceRunner
    where
        F: Framing + Clone + Send + 'static,
    {
        offload::offload(self, config)
    }
}

impl<H: Handler + 'static> HandlerMode<H> for Inline {
    fn build<F>(self, config: ServiceConfig<H, F>) -> ServiceRunner
    where
        F: Framing + Clone + Send + 'static,
    {
        let (start, serve) = message_sessions(config);
        inline::inline(start, serve)
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for Threading {
    fn build<F>(self, config: ServiceConfig<H, F>) -> ServiceRunner
    where
        F: Framing + Clone + Send + 'static,
    {
        let (start, serve) = message_sessions(config);
        threading::threading(self, start, serve)
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for Pool {
    fn build<F>(self, config: ServiceConfig<H, F>) -> ServiceRunner
    where
        F: Framing + Clone + Send + 'static,
    {
        let (start, serve) = message_sessions(config);
        pool::pool(self, start, serve)
    }
}

impl<H: Handler + 'static> HandlerMode<H> for Forking {
    fn build<F>(self, config: ServiceConfig<H, F>) -> ServiceRunner
    where
        F: Framing + Clone + Send + 'static,
    {
        let (start, serve) = message_sessions(config);
        forking::forking(self, start, serve)
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for Mode {
    fn build<F>(self, config: ServiceConfig<H, F>) -> ServiceRunner
    where
        F: Framing + Clone + Send + 'static,
    {
        match self {
            Mode::Reactor(mode) => mode.build(config),
            Mode::Offload(mode) => mode.build(config),
            Mode::Inline(mode) => mode.build(config),
            Mode::Threading(mode) => mode.build(config),
            Mode::Pool(mode) => mode.build(config),
            Mode::Forking(mode) => mode.build(config),
        }
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for BlockingMode {
    fn build<F>(self, config: ServiceConfig<H, F>) -> ServiceRunner
    where
        F: Framing + Clone + Send + 'static,
    {
        Mode::from(self).build(config)
    }
}

/// The modes that can run this blocking [`RequestHandler`]: those that serve a request away from
/// the loop, or instead of it.
#[diagnostic::on_unimplemented(
    message = "the mode `{Self}` cannot run a blocking `RequestHandler`",
    label = "this mode never waits for one peer, and a `RequestHandler` does",
    note = "say `.mode(Threading::default())`, or `Inline`, `Pool` or `Forking`; or write a `Handler`, which every mode can run"
)]
pub trait RequestMode<R: RequestHandler>: Sealed {
    #[doc(hidden)]
    fn build_requests(self, config: ServiceConfig<R, ()>) -> ServiceRunner;
}

impl<R: RequestHandler + 'static> RequestMode<R> for Inline {
    fn build_requests(self, config: ServiceConfig<R, ()>) -> ServiceRunner {
        inline::inline(config.start, RequestSessions)
    }
}

impl<R: RequestHandler + Send + 'static> RequestMode<R> for Threading {
    fn build_requests(self, config: ServiceConfig<R, ()>) -> ServiceRunner {
        threading::threading(self, config.start, RequestSessions)
    }
}

impl<R: RequestHandler + Send + 'static> RequestMode<R> for Pool {
    fn build_requests(self, config: ServiceConfig<R, ()>) -> ServiceRunner {
        pool::pool(self, config.start, RequestSessions)
    }
}

impl<R: RequestHandler + 'static> RequestMode<R> for Forking {
    fn build_requests(self, config: ServiceConfig<R, ()>) -> ServiceRunner {
        forking::forking(self, config.start, RequestSessions)
    }
}

impl<R: RequestHandler + Send + 'static> RequestMode<R> for BlockingMode {
    fn build_requests(self, config: ServiceConfig<R, ()>) -> ServiceRunner {
        match self {
            BlockingMode::Inline(mode) => mode.build_requests(config),
            BlockingMode::Threading(mode) => mode.build_requests(config),
            BlockingMode::Pool(mode) => mode.build_requests(config),
            BlockingMode::Forking(mode) => mode.build_requests(config),
        }
    }
}

/// Makes a session of a handler and a request, to be served by blocking.
pub(crate) trait SessionFactory<T>: Send + 'static {
    type Stream: Session + 'static;
    type Datagram: Session + 'static;

    /// Makes the session of a connection. It may run the user's code, so it is called only where a panic
    /// is caught.
    fn stream(
        &self,
        handler: CatchDrop<T>,
        listener_handle: &ListenerHandle,
        socket: Arc<Socket>,
        peer: Peer,
    ) -> Self::Stream;
    fn datagram(
        &self,
        handler: CatchDrop<T>,
        listener_handle: &ListenerHandle,
        datagram: Datagram,
    ) -> Self::Datagram;
}

/// The socket and the address that a request was received on.
#[derive(Clone)]
pub(crate) struct ListenerHandle {
    pub(crate) reply_socket: Arc<ReplySocket>,
    pub(crate) address: Arc<Address>,
}

/// A [`Handler`] is served message by message.
pub(crate) struct MessageSessions<F> {
    framing: CatchDrop<F>,
    water_marks: WaterMarks,
}

fn message_sessions<H, F>(
    config: ServiceConfig<H, F>,
) -> (Box<dyn MakeFactory<H>>, MessageSessions<F>) {
    let ServiceConfig { start, framing, water_marks } = config;
    (start, MessageSessions { framing, water_marks })
}

impl<H: Handler + 'static, F: Framing + Clone + Send + 'static> SessionFactory<H>
    for MessageSessions<F>
{
    type Stream = StreamSession<H, F>;
    type Datagram = DatagramSession<H>;

    fn stream(
        &self,
        handler: CatchDrop<H>,
        _listener_handle: &ListenerHandle,
        socket: Arc<Socket>,
        peer: Peer,
    ) -> StreamSession<H, F> {
        let conversation = Conversation::new(handler, F::clone(&self.framing).into(), peer);
        StreamSession { socket, conversation, room: self.water_marks.high() }
    }

    fn datagram(
        &self,
        handler: CatchDrop<H>,
        listener_handle: &ListenerHandle,
        datagram: Datagram,
    ) -> DatagramSession<H> {
        DatagramSession { reply_socket: listener_handle.reply_socket.clone(), datagram, handler }
    }
}

/// A [`RequestHandler`] is served by its one call.
pub(crate) struct RequestSessions;

impl<R: RequestHandler + 'static> SessionFactory<R> for RequestSessions {
    type Stream = StreamRequestSession<R>;
    type Datagram = DatagramRequestSession<R>;

    fn stream(
        &self,
        handler: CatchDrop<R>,
        listener_handle: &ListenerHandle,
        socket: Arc<Socket>,
        peer: Peer,
    ) -> Self::Stream {
        let server_address = listener_handle.address.clone();
        StreamRequestSession { socket, peer, handler, server_address }
    }

    fn datagram(
        &self,
        handler: CatchDrop<R>,
        listener_handle: &ListenerHandle,
        datagram: Datagram,
    ) -> Self::Datagram {
        let ListenerHandle { reply_socket, address: server_address } = listener_handle.clone();
        DatagramRequestSession { reply_socket, datagram, handler, server_address }
    }
}

/// Makes a handler by the user's code; a panic there ends its own request and nothing else.
pub(super) fn make_handler<T>(peer: &Peer, cx: &mut LoopCx, make: impl FnOnce() -> T) -> Option<T> {
    match guard::call(make) {
        Ok(handler) => Some(handler),
        Err(message) => {
            cx.tally.panics += 1;
            cx.end(peer, CloseReason::Panic(message));
            None
        }
    }
}
