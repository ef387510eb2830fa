//! Where handlers meet modes: which pairs there are, and what each is made of.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::Socket;

use super::shutdown::Control;
use crate::address::{Address, Peer};
use crate::conversation::{Conversation, Framing, Handler};
use crate::dispatch::{
    BlockingMode, Forking, Inline, Mode, Offload, Pool, Reactor, Sealed, Threading,
};
use crate::error::CloseReason;
use crate::event_loop::{DatagramDispatcher, LoopCx, StreamDispatcher, WaterMarks};
use crate::guard;
use crate::session::{
    Answering, DatagramRequestSession, DatagramSession, Packet, RequestHandler, Session,
    StreamRequestSession, StreamSession,
};
use crate::sys::{CatchDrop, SignalWatch};
use crate::token::Token;

mod blocking;
mod looped;

/// The user's function that makes one handler for one peer.
type MakeFn<'a, T> = Box<dyn FnMut(&Peer) -> T + 'a>;

/// Makes one handler for one peer.
pub(crate) struct Make<'a, T>(CatchDrop<MakeFn<'a, T>>);

impl<'a, T> Make<'a, T> {
    fn new(make: impl FnMut(&Peer) -> T + 'a) -> Self {
        Make(CatchDrop::new(Box::new(make)))
    }

    /// Calls the user's function: only where a panic is caught.
    fn make(&mut self, peer: &Peer) -> CatchDrop<T> {
        (self.0)(peer).into()
    }
}

/// What a service keeps between runs, and makes the handlers of a run from.
pub(crate) trait Start<T>: Send {
    /// Begins a run.
    ///
    /// # Errors
    ///
    /// Where the user's function panics.
    fn start(&mut self) -> io::Result<Make<'_, T>>;
}

/// A maker that can go from thread to thread, and serves every run.
pub(crate) struct Shared<M>(pub(crate) CatchDrop<M>);

impl<T, M: FnMut(&Peer) -> T + Send> Start<T> for Shared<M> {
    fn start(&mut self) -> io::Result<Make<'_, T>> {
        Ok(Make::new(&mut *self.0))
    }
}

/// A maker of makers, each for one run and its thread.
pub(crate) struct Local<S>(pub(crate) CatchDrop<S>);

impl<T, M: FnMut(&Peer) -> T + 'static, S: FnMut() -> M + Send> Start<T> for Local<S> {
    fn start(&mut self) -> io::Result<Make<'_, T>> {
        match guard::call(|| (self.0)()) {
            Ok(make) => Ok(Make::new(make)),
            Err(message) => {
                guard::note(1);
                Err(io::Error::other(format!("what makes the handlers panicked: {message}")))
            }
        }
    }
}

/// What a mode needs of its process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Needs {
    /// It starts threads.
    pub(crate) threads: bool,
    /// It forks, and so cannot be where threads are.
    pub(crate) one_thread: bool,
}

/// What a mode makes a service of.
pub struct Recipe<H, F> {
    pub(super) start: Box<dyn Start<H>>,
    pub(super) framing: CatchDrop<F>,
    pub(super) water_marks: WaterMarks,
}

impl<H, F> std::fmt::Debug for Recipe<H, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recipe")
    }
}

/// What comes of it.
pub struct Driven(pub(super) Box<dyn Driver>);

impl std::fmt::Debug for Driven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Driven")
    }
}

/// What a service keeps of its handlers and its mode between runs.
pub(crate) trait Driver: Send {
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

    /// The server goes: asks what is left of earlier runs to end. Dropping waits for it.
    fn close(&mut self) {}

    /// What it needs of its process.
    fn needs(&self) -> Needs {
        Needs::default()
    }
}

/// What a run gives a service to stand on.
pub(crate) struct RunContext<'a> {
    pub(crate) listener: Token,
    /// The service's number in the server.
    pub(crate) service: usize,
    pub(crate) door: Door,
    pub(crate) control: &'a Arc<Control>,
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
    fn drive<F>(self, recipe: Recipe<H, F>) -> Driven
    where
        F: Framing + Clone + Send + 'static;
}

impl<H: Handler + 'static> HandlerMode<H> for Reactor {
    fn drive<F>(self, recipe: Recipe<H, F>) -> Driven
    where
        F: Framing + Clone + Send + 'static,
    {
        looped::on_the_loop(recipe)
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for Offload {
    fn drive<F>(self, recipe: Recipe<H, F>) -> Driven
    where
        F: Framing + Clone + Send + 'static,
    {
        looped::on_workers(self, recipe)
    }
}

impl<H: Handler + 'static> HandlerMode<H> for Inline {
    fn drive<F>(self, recipe: Recipe<H, F>) -> Driven
    where
        F: Framing + Clone + Send + 'static,
    {
        let (start, serve) = by_message(recipe);
        blocking::inline(start, serve)
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for Threading {
    fn drive<F>(self, recipe: Recipe<H, F>) -> Driven
    where
        F: Framing + Clone + Send + 'static,
    {
        let (start, serve) = by_message(recipe);
        blocking::threading(self, start, serve)
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for Pool {
    fn drive<F>(self, recipe: Recipe<H, F>) -> Driven
    where
        F: Framing + Clone + Send + 'static,
    {
        let (start, serve) = by_message(recipe);
        blocking::pool(self, start, serve)
    }
}

impl<H: Handler + 'static> HandlerMode<H> for Forking {
    fn drive<F>(self, recipe: Recipe<H, F>) -> Driven
    where
        F: Framing + Clone + Send + 'static,
    {
        let (start, serve) = by_message(recipe);
        blocking::forking(self, start, serve)
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for Mode {
    fn drive<F>(self, recipe: Recipe<H, F>) -> Driven
    where
        F: Framing + Clone + Send + 'static,
    {
        match self {
            Mode::Reactor(mode) => mode.drive(recipe),
            Mode::Offload(mode) => mode.drive(recipe),
            Mode::Inline(mode) => mode.drive(recipe),
            Mode::Threading(mode) => mode.drive(recipe),
            Mode::Pool(mode) => mode.drive(recipe),
            Mode::Forking(mode) => mode.drive(recipe),
        }
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for BlockingMode {
    fn drive<F>(self, recipe: Recipe<H, F>) -> Driven
    where
        F: Framing + Clone + Send + 'static,
    {
        Mode::from(self).drive(recipe)
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
    fn drive_requests(self, recipe: Recipe<R, ()>) -> Driven;
}

impl<R: RequestHandler + 'static> RequestMode<R> for Inline {
    fn drive_requests(self, recipe: Recipe<R, ()>) -> Driven {
        blocking::inline(recipe.start, ByRequest)
    }
}

impl<R: RequestHandler + Send + 'static> RequestMode<R> for Threading {
    fn drive_requests(self, recipe: Recipe<R, ()>) -> Driven {
        blocking::threading(self, recipe.start, ByRequest)
    }
}

impl<R: RequestHandler + Send + 'static> RequestMode<R> for Pool {
    fn drive_requests(self, recipe: Recipe<R, ()>) -> Driven {
        blocking::pool(self, recipe.start, ByRequest)
    }
}

impl<R: RequestHandler + 'static> RequestMode<R> for Forking {
    fn drive_requests(self, recipe: Recipe<R, ()>) -> Driven {
        blocking::forking(self, recipe.start, ByRequest)
    }
}

impl<R: RequestHandler + Send + 'static> RequestMode<R> for BlockingMode {
    fn drive_requests(self, recipe: Recipe<R, ()>) -> Driven {
        match self {
            BlockingMode::Inline(mode) => mode.drive_requests(recipe),
            BlockingMode::Threading(mode) => mode.drive_requests(recipe),
            BlockingMode::Pool(mode) => mode.drive_requests(recipe),
            BlockingMode::Forking(mode) => mode.drive_requests(recipe),
        }
    }
}

/// How whoever answers is put together with a request, to be served by blocking.
pub(crate) trait Serve<T>: Send + 'static {
    type Stream: Session + 'static;
    type Datagram: Session + 'static;

    /// Puts it together with a connection: only where a panic is caught, since it may run the user's
    /// code.
    fn stream(
        &self,
        handler: CatchDrop<T>,
        door: &Door,
        socket: Arc<Socket>,
        peer: Peer,
    ) -> Self::Stream;
    fn datagram(&self, handler: CatchDrop<T>, door: &Door, packet: Packet) -> Self::Datagram;
}

/// By what a request has come in.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) answering: Arc<Answering>,
    pub(crate) address: Arc<Address>,
}

impl Door {
    pub(crate) fn new(socket: Arc<Socket>, address: Arc<Address>) -> Self {
        Door { answering: Arc::new(Answering::new(socket)), address }
    }
}

/// A [`Handler`] is served message by message.
pub(crate) struct ByMessage<F> {
    framing: CatchDrop<F>,
    water_marks: WaterMarks,
}

fn by_message<H, F>(recipe: Recipe<H, F>) -> (Box<dyn Start<H>>, ByMessage<F>) {
    let Recipe { start, framing, water_marks } = recipe;
    (start, ByMessage { framing, water_marks })
}

impl<H: Handler + 'static, F: Framing + Clone + Send + 'static> Serve<H> for ByMessage<F> {
    type Stream = StreamSession<H, F>;
    type Datagram = DatagramSession<H>;

    fn stream(
        &self,
        handler: CatchDrop<H>,
        _door: &Door,
        socket: Arc<Socket>,
        peer: Peer,
    ) -> StreamSession<H, F> {
        let conversation = Conversation::new(handler, F::clone(&self.framing).into(), peer);
        StreamSession { socket, conversation, room: self.water_marks.high() }
    }

    fn datagram(&self, handler: CatchDrop<H>, door: &Door, packet: Packet) -> DatagramSession<H> {
        DatagramSession { answering: door.answering.clone(), packet, handler }
    }
}

/// A [`RequestHandler`] is served by its one call.
pub(crate) struct ByRequest;

impl<R: RequestHandler + 'static> Serve<R> for ByRequest {
    type Stream = StreamRequestSession<R>;
    type Datagram = DatagramRequestSession<R>;

    fn stream(
        &self,
        handler: CatchDrop<R>,
        door: &Door,
        socket: Arc<Socket>,
        peer: Peer,
    ) -> Self::Stream {
        let server_address = door.address.clone();
        StreamRequestSession { socket, peer, handler, server_address }
    }

    fn datagram(&self, handler: CatchDrop<R>, door: &Door, packet: Packet) -> Self::Datagram {
        let Door { answering, address: server_address } = door.clone();
        DatagramRequestSession { answering, packet, handler, server_address }
    }
}

/// Makes whoever answers by the user's code; one that cannot be made costs its own request.
fn made<T>(peer: &Peer, cx: &mut LoopCx, make: impl FnOnce() -> T) -> Option<T> {
    match guard::call(make) {
        Ok(made) => Some(made),
        Err(message) => {
            cx.tally.panics += 1;
            cx.end(peer, CloseReason::Panic(message));
            None
        }
    }
}
