//! Where handlers meet modes: which pairs there are, and what each is made of.

use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use socket2::Socket;

use super::shutdown::Control;
use crate::address::Peer;
use crate::conversation::{Conversation, Framing, Handler, panic_message};
use crate::dispatch::{Offload, Reactor, Sealed, WorkerPool};
use crate::error::{CloseReason, Error};
use crate::reactor::{Acceptor, Connection, End, Lending, Marks, Newcomer, Turn};
use crate::session::Workers as _;
use crate::token::Token;

/// Makes one handler for one peer.
pub(crate) type Make<'a, H> = Box<dyn FnMut(&Peer) -> H + 'a>;

/// What a service keeps between runs, and makes the handlers of a run from.
pub(crate) trait Start<H>: Send {
    /// Begins a run.
    fn start(&mut self) -> Make<'_, H>;
}

/// A maker that can go from thread to thread, and serves every run.
pub(crate) struct Shared<M>(pub(crate) M);

impl<H, M: FnMut(&Peer) -> H + Send> Start<H> for Shared<M> {
    fn start(&mut self) -> Make<'_, H> {
        Box::new(&mut self.0)
    }
}

/// A maker of makers, each for one run and its thread.
pub(crate) struct Local<S>(pub(crate) S);

impl<H, M: FnMut(&Peer) -> H + 'static, S: FnMut() -> M + Send> Start<H> for Local<S> {
    fn start(&mut self) -> Make<'_, H> {
        Box::new((self.0)())
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
    pub(super) framing: F,
    pub(super) marks: Marks,
}

/// What comes of it.
pub struct Driven(pub(super) Box<dyn Driver>);

/// What a service keeps of its handlers and its mode between runs.
pub(crate) trait Driver: Send {
    /// Begins a run.
    fn begin<'a>(&'a mut self, listener: Token, control: &Arc<Control>) -> Box<dyn Acceptor + 'a>;

    /// What it needs of its process.
    fn needs(&self) -> Needs {
        Needs::default()
    }
}

/// The modes that can run this [`Handler`]: all of them, as far as it is `Send` where the mode
/// takes it to another thread.
#[diagnostic::on_unimplemented(
    message = "the mode `{Self}` cannot run the handler `{H}`",
    label = "this mode takes handlers to other threads, so they must be `Send`, or is no mode at all",
    note = "a blocking `RequestHandler` is served by `serve_blocking`; a handler that is not `Send` runs under `Reactor`, `Inline` and `Forking`"
)]
pub trait HandlerMode<H: Handler>: Sealed {
    #[doc(hidden)]
    fn driver<F>(self, recipe: Recipe<H, F>) -> Driven
    where
        F: Framing + Clone + Send + 'static;
}

impl<H: Handler + 'static> HandlerMode<H> for Reactor {
    fn driver<F>(self, recipe: Recipe<H, F>) -> Driven
    where
        F: Framing + Clone + Send + 'static,
    {
        Driven(Box::new(OnLoop(recipe)))
    }
}

/// Handlers on the loop.
struct OnLoop<H, F>(Recipe<H, F>);

impl<H: Handler + 'static, F: Framing + Clone + Send + 'static> Driver for OnLoop<H, F> {
    fn begin<'a>(&'a mut self, listener: Token, _control: &Arc<Control>) -> Box<dyn Acceptor + 'a> {
        let Recipe {
            start,
            framing,
            marks,
        } = &mut self.0;
        Box::new(LoopAcceptor {
            make: start.start(),
            framing,
            marks: *marks,
            listener,
        })
    }
}

struct LoopAcceptor<'a, H, F> {
    make: Make<'a, H>,
    framing: &'a F,
    marks: Marks,
    listener: Token,
}

impl<H: Handler + 'static, F: Framing + Clone + 'static> Acceptor for LoopAcceptor<'_, H, F> {
    fn nonblocking(&self) -> bool {
        true
    }

    fn accept(&mut self, socket: Socket, peer: Peer, turn: &mut Turn) {
        let Some(handler) = made(&mut self.make, &peer, turn) else {
            return;
        };
        let conversation = Conversation::new(handler, self.framing.clone(), peer);
        let descriptor = socket.as_raw_fd();
        let live = Box::new(Connection::new(socket, conversation, self.marks, turn.now));
        turn.newcomers.push(Newcomer {
            live,
            descriptor,
            parent: self.listener,
        });
    }
}

impl<H: Handler + Send + 'static> HandlerMode<H> for Offload {
    fn driver<F>(self, recipe: Recipe<H, F>) -> Driven
    where
        F: Framing + Clone + Send + 'static,
    {
        let workers = Arc::new(WorkerPool::new(self.workers.get()));
        Driven(Box::new(OnWorkers { recipe, workers }))
    }
}

/// Handlers on workers, their connections on the loop.
struct OnWorkers<H, F> {
    recipe: Recipe<H, F>,
    workers: Arc<WorkerPool>,
}

impl<H, F> Driver for OnWorkers<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Clone + Send + 'static,
{
    fn begin<'a>(&'a mut self, listener: Token, _control: &Arc<Control>) -> Box<dyn Acceptor + 'a> {
        let OnWorkers {
            recipe:
                Recipe {
                    start,
                    framing,
                    marks,
                },
            workers,
        } = self;
        let make = start.start();
        Box::new(LendingAcceptor {
            make,
            framing,
            marks: *marks,
            listener,
            workers,
        })
    }

    fn needs(&self) -> Needs {
        Needs {
            threads: true,
            ..Needs::default()
        }
    }
}

struct LendingAcceptor<'a, H, F> {
    make: Make<'a, H>,
    framing: &'a F,
    marks: Marks,
    listener: Token,
    workers: &'a Arc<WorkerPool>,
}

impl<H, F> Acceptor for LendingAcceptor<'_, H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Clone + Send + 'static,
{
    fn nonblocking(&self) -> bool {
        true
    }

    fn accept(&mut self, socket: Socket, peer: Peer, turn: &mut Turn) {
        let Some(handler) = made(&mut self.make, &peer, turn) else {
            return;
        };
        let conversation = Conversation::new(handler, self.framing.clone(), peer);
        let talk = Lending::new(conversation, self.workers.clone(), self.listener);
        let descriptor = socket.as_raw_fd();
        let live = Box::new(Connection::new(socket, talk, self.marks, turn.now));
        turn.newcomers.push(Newcomer {
            live,
            descriptor,
            parent: self.listener,
        });
    }

    fn is_attentive(&self) -> bool {
        true
    }

    fn turned(&mut self) {
        self.workers.call();
    }
}

/// Makes a handler; one that cannot be made costs its own connection.
fn made<H>(make: &mut Make<'_, H>, peer: &Peer, turn: &mut Turn) -> Option<H> {
    match catch_unwind(AssertUnwindSafe(|| make(peer))) {
        Ok(handler) => Some(handler),
        Err(panic) => {
            turn.tally.panics += 1;
            turn.tally.closed += 1;
            let reason = CloseReason::Panic(panic_message(panic));
            turn.ended = Some(End {
                peer: peer.clone(),
                reason,
            });
            None
        }
    }
}
