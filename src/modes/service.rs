//! The parts that the modes share: how a service is made of a handler and a mode, and what a run
//! gives it.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    BlockingMode, Forking, Inline, Mode, Offload, Pool, Reactor, Threading, forking, inline,
    offload, pool, reactor, threading,
};
use crate::accepted::Accepted;
use crate::address::{Address, Peer};
use crate::blocking::{
    DatagramRequestSession, DatagramSession, RequestHandler, Session, SessionLimits,
    StreamRequestSession, StreamSession,
};
use crate::connection_id::ConnectionId;
use crate::conversation::{Conversation, Framing, Handler};
use crate::datagram::{Datagram, ReplySocket};
use crate::error::CloseReason;
use crate::event_loop::{
    DatagramDispatcher, ListenerHooks, LoopCx, ServiceLimits, StreamDispatcher,
};
use crate::guard;
use crate::limits::Limits;
use crate::server_state::{ServerState, StopRequester};
use crate::sys::{CatchDrop, SignalWatch, Socket};
use crate::token::Token;

/// The user's function that makes the handler of one connection or datagram.
type MakeFn<'a, T> = Box<dyn FnMut(&Accepted<'_>) -> T + 'a>;

/// A factory of the handlers of connections or datagrams: a framing with a handler, or a request
/// handler.
pub(crate) struct HandlerFactory<'a, T>(CatchDrop<MakeFn<'a, T>>);

impl<'a, T> HandlerFactory<'a, T> {
    pub(crate) fn new(make: impl FnMut(&Accepted<'_>) -> T + 'a) -> Self {
        HandlerFactory(CatchDrop::new(Box::new(make)))
    }

    /// Calls the user's function. The caller must catch a panic.
    pub(super) fn make(&mut self, accepted: &Accepted<'_>) -> T {
        (self.0)(accepted)
    }
}

/// The part of a service that is kept between runs and makes the handler factory of each run.
pub(crate) trait MakeFactory<T>: Send {
    /// Begins a run. If it makes hooks too, it stores them in `run_cx`.
    ///
    /// # Errors
    ///
    /// If the user's function panics.
    fn start(&mut self, run_cx: &RunContext<'_>) -> io::Result<HandlerFactory<'_, T>>;
}

/// A function that makes the handlers of all runs, on the thread of each run.
pub(crate) struct SharedFactory<M>(pub(crate) CatchDrop<M>);

impl<T, M: FnMut(&Accepted<'_>) -> T + Send> MakeFactory<T> for SharedFactory<M> {
    fn start(&mut self, _run_cx: &RunContext<'_>) -> io::Result<HandlerFactory<'_, T>> {
        Ok(HandlerFactory::new(&mut *self.0))
    }
}

/// A function that is called when a run begins and returns the handler factory of the run.
pub(crate) struct PerRunFactory<S>(pub(crate) CatchDrop<S>);

impl<T, M: FnMut(&Accepted<'_>) -> T + 'static, S: FnMut() -> M + Send> MakeFactory<T>
    for PerRunFactory<S>
{
    fn start(&mut self, _run_cx: &RunContext<'_>) -> io::Result<HandlerFactory<'_, T>> {
        start_run(&mut *self.0).map(HandlerFactory::new)
    }
}

/// Calls the user's function that begins a run.
pub(crate) fn start_run<R>(start: impl FnOnce() -> R) -> io::Result<R> {
    guard::call(start).map_err(|message| {
        guard::note(1);
        io::Error::other(format!("the handler factory panicked: {message}"))
    })
}

/// Implemented only by this crate's modes, so that other crates cannot add modes.
pub trait Sealed {}

impl Sealed for Reactor {}
impl Sealed for Offload {}
impl Sealed for Inline {}
impl Sealed for Threading {}
impl Sealed for Pool {}
impl Sealed for Forking {}
impl Sealed for Mode {}
impl Sealed for BlockingMode {}

/// The requirements of a mode on its process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Requirements {
    /// It starts threads.
    pub(crate) threads: bool,
    /// It forks, so the process must have only one thread.
    pub(crate) one_thread: bool,
    /// It forks although the process has other threads.
    pub(crate) allows_threads: bool,
}

/// The input from which a mode makes a service: `T` is a framing with a handler, or a request handler.
pub struct ServiceConfig<T> {
    pub(crate) start: Box<dyn MakeFactory<T>>,
    pub(crate) limits: ServiceLimits,
}

impl<T> std::fmt::Debug for ServiceConfig<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServiceConfig")
    }
}

/// The result that a mode makes of a [`ServiceConfig`].
pub struct ServiceRunner(pub(crate) Box<dyn ModeRunner>);

impl std::fmt::Debug for ServiceRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServiceRunner")
    }
}

/// The state of a service's handlers and mode between runs.
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

    /// The server is dropped: asks the remaining requests of earlier runs to end. Dropping this
    /// waits for them.
    fn close(&mut self) {}

    /// Its requirements on the process.
    fn requirements(&self) -> Requirements {
        Requirements::default()
    }
}

/// The context that a run gives to a service.
pub(crate) struct RunContext<'a> {
    pub(crate) listener: Token,
    /// Clients can connect to its socket.
    pub(crate) listens: bool,
    /// The service's number in the server.
    pub(crate) service: usize,
    pub(crate) listener_handle: ListenerHandle,
    pub(crate) control: &'a Arc<ServerState>,
    /// The handle by which the handlers of this run request a stop.
    pub(crate) stop: &'a StopRequester,
    pub(crate) signals: Option<SignalWatch>,
    pub(crate) drain: Duration,
    /// The hooks of this run, if they are made together with its handler factory.
    pub(crate) hooks: Cell<Option<Box<dyn ListenerHooks>>>,
}

/// The modes that can run this [`Handler`]: all modes; a mode that moves it to another thread
/// requires `Send`.
///
/// ```
/// use socketserver::{Error, Handler, HandlerMode, Server};
///
/// /// Serves the same handlers in any mode that can run them.
/// fn serve<H: Handler + 'static>(
///     mode: impl HandlerMode<H>,
///     make: impl Fn() -> H + Send + 'static,
/// ) -> Result<Server, Error> {
///     Server::tcp("127.0.0.1:0")?.mode(mode).serve(move |_| make())
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "the mode `{Self}` cannot run the handler `{H}`",
    label = "this mode cannot run the handler",
    note = "a blocking `RequestHandler` is served by `serve_blocking`, under `Inline`, `Threading`, `Pool` or `Forking`"
)]
pub trait HandlerMode<H: Handler>: Sealed {
    #[doc(hidden)]
    fn build<F>(self, config: ServiceConfig<(F, H)>) -> ServiceRunner
    where
        F: Framing + Send + 'static;
}

impl<H: Handler + 'static> HandlerMode<H> for Reactor {
    fn build<F>(self, config: ServiceConfig<(F, H)>) -> ServiceRunner
    where
        F: Framing + Send + 'static,
    {
        reactor::reactor(config)
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for Offload {
    fn build<F>(self, config: ServiceConfig<(F, H)>) -> ServiceRunner
    where
        F: Framing + Send + 'static,
    {
        offload::offload(self, config)
    }
}

impl<H: Handler + 'static> HandlerMode<H> for Inline {
    fn build<F>(self, config: ServiceConfig<(F, H)>) -> ServiceRunner
    where
        F: Framing + Send + 'static,
    {
        inline::inline(config.start, MessageSessions(config.limits))
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for Threading {
    fn build<F>(self, config: ServiceConfig<(F, H)>) -> ServiceRunner
    where
        F: Framing + Send + 'static,
    {
        threading::threading(self, config.start, MessageSessions(config.limits))
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for Pool {
    fn build<F>(self, config: ServiceConfig<(F, H)>) -> ServiceRunner
    where
        F: Framing + Send + 'static,
    {
        pool::pool(self, config.start, MessageSessions(config.limits))
    }
}

impl<H: Handler + 'static> HandlerMode<H> for Forking {
    fn build<F>(self, config: ServiceConfig<(F, H)>) -> ServiceRunner
    where
        F: Framing + Send + 'static,
    {
        forking::forking(self, config.start, MessageSessions(config.limits))
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for Mode {
    fn build<F>(self, config: ServiceConfig<(F, H)>) -> ServiceRunner
    where
        F: Framing + Send + 'static,
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
    fn build<F>(self, config: ServiceConfig<(F, H)>) -> ServiceRunner
    where
        F: Framing + Send + 'static,
    {
        Mode::from(self).build(config)
    }
}

/// The modes that can run this blocking [`RequestHandler`]: those that serve a request in a thread
/// or process of its own, or block the event loop for it.
///
/// ```
/// use socketserver::{Error, RequestHandler, RequestMode, Server};
///
/// /// Serves the same blocking handlers in any mode that can run them.
/// fn serve<R: RequestHandler + 'static>(
///     mode: impl RequestMode<R>,
///     make: impl Fn() -> R + Send + 'static,
/// ) -> Result<Server, Error> {
///     Server::tcp("127.0.0.1:0")?.mode(mode).serve_blocking(move |_| make())
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "the mode `{Self}` cannot run a blocking `RequestHandler`",
    label = "this mode must not block, and a `RequestHandler` does",
    note = "use `.mode(Threading::default())`, or `Inline`, `Pool` or `Forking`; or write a `Handler`, which every mode can run"
)]
pub trait RequestMode<R: RequestHandler>: Sealed {
    #[doc(hidden)]
    fn build_requests(self, config: ServiceConfig<R>) -> ServiceRunner;
}

impl<R: RequestHandler + 'static> RequestMode<R> for Inline {
    fn build_requests(self, config: ServiceConfig<R>) -> ServiceRunner {
        inline::inline(config.start, RequestSessions(config.limits.peer))
    }
}

impl<R: RequestHandler + Send + 'static> RequestMode<R> for Threading {
    fn build_requests(self, config: ServiceConfig<R>) -> ServiceRunner {
        threading::threading(self, config.start, RequestSessions(config.limits.peer))
    }
}

impl<R: RequestHandler + Send + 'static> RequestMode<R> for Pool {
    fn build_requests(self, config: ServiceConfig<R>) -> ServiceRunner {
        pool::pool(self, config.start, RequestSessions(config.limits.peer))
    }
}

impl<R: RequestHandler + 'static> RequestMode<R> for Forking {
    fn build_requests(self, config: ServiceConfig<R>) -> ServiceRunner {
        forking::forking(self, config.start, RequestSessions(config.limits.peer))
    }
}

impl<R: RequestHandler + Send + 'static> RequestMode<R> for BlockingMode {
    fn build_requests(self, config: ServiceConfig<R>) -> ServiceRunner {
        match self {
            BlockingMode::Inline(mode) => mode.build_requests(config),
            BlockingMode::Threading(mode) => mode.build_requests(config),
            BlockingMode::Pool(mode) => mode.build_requests(config),
            BlockingMode::Forking(mode) => mode.build_requests(config),
        }
    }
}

/// Makes a session of a handler and a request; the session blocks.
pub(crate) trait SessionFactory<T>: Send + 'static {
    type Stream: Session + 'static;
    type Datagram: Session + 'static;

    /// The limits of its connections.
    fn limits(&self) -> &Limits;

    fn stream(
        &self,
        made: T,
        listener_handle: &ListenerHandle,
        socket: Arc<Socket>,
        peer: Peer,
        id: ConnectionId,
        accepted: Instant,
    ) -> Self::Stream;

    fn datagram(
        &self,
        made: T,
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
pub(crate) struct MessageSessions(ServiceLimits);

impl<H: Handler + 'static, F: Framing + Send + 'static> SessionFactory<(F, H)> for MessageSessions {
    type Stream = StreamSession<H, F>;
    type Datagram = DatagramSession<H>;

    fn limits(&self) -> &Limits {
        &self.0.peer
    }

    fn stream(
        &self,
        (framing, handler): (F, H),
        _listener_handle: &ListenerHandle,
        socket: Arc<Socket>,
        peer: Peer,
        id: ConnectionId,
        accepted: Instant,
    ) -> StreamSession<H, F> {
        let mut conversation = Conversation::new(handler.into(), framing.into(), peer, id);
        let ServiceLimits { marks, sender, peer } = &self.0;
        conversation.set_idle_timeout(peer.idle_timeout);
        let limits = SessionLimits { room: marks.room(), sender: *sender, peer: peer.clone() };
        StreamSession { socket, conversation, limits, accepted }
    }

    fn datagram(
        &self,
        (framing, handler): (F, H),
        listener_handle: &ListenerHandle,
        datagram: Datagram,
    ) -> DatagramSession<H> {
        drop(CatchDrop::new(framing));
        let reply_socket = listener_handle.reply_socket.clone();
        DatagramSession { reply_socket, datagram, handler: handler.into() }
    }
}

/// A [`RequestHandler`] is served by one call.
pub(crate) struct RequestSessions(Arc<Limits>);

impl<R: RequestHandler + 'static> SessionFactory<R> for RequestSessions {
    type Stream = StreamRequestSession<R>;
    type Datagram = DatagramRequestSession<R>;

    fn limits(&self) -> &Limits {
        &self.0
    }

    fn stream(
        &self,
        handler: R,
        listener_handle: &ListenerHandle,
        socket: Arc<Socket>,
        peer: Peer,
        id: ConnectionId,
        accepted: Instant,
    ) -> Self::Stream {
        let (handler, server_address) = (handler.into(), listener_handle.address.clone());
        let limits = self.0.clone();
        StreamRequestSession { socket, peer, id, handler, server_address, limits, accepted }
    }

    fn datagram(
        &self,
        handler: R,
        listener_handle: &ListenerHandle,
        datagram: Datagram,
    ) -> Self::Datagram {
        let handler = handler.into();
        let ListenerHandle { reply_socket, address: server_address } = listener_handle.clone();
        DatagramRequestSession { reply_socket, datagram, handler, server_address }
    }
}

/// Makes the handler of a connection or a datagram by the user's function; a panic there ends its
/// own request and nothing else.
pub(super) fn make_handler<T>(
    make: &mut HandlerFactory<'_, T>,
    accepted: &Accepted<'_>,
    cx: &mut LoopCx,
) -> Option<T> {
    match guard::call(|| make.make(accepted)) {
        Ok(made) => Some(made),
        Err(message) => {
            cx.scratch.tally.panics += 1;
            cx.end(accepted.known_id(), accepted.peer(), CloseReason::Panic(message));
            None
        }
    }
}
