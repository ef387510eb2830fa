//! Handlers under `reactor` and `offload`: their connections stay with the loop.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use socket2::Socket;

use super::{Driven, Driver, Ground, Make, Needs, Recipe, made};
use crate::address::Peer;
use crate::conversation::{Conversation, Env, Framing, Handler, serve_datagram};
use crate::dispatch::{Offload, OffloadWorkers};
use crate::mailbox::Work;
use crate::reactor::{
    Acceptor, Answerer, Connection, Lender, Lending, LentDatagram, Marks, Newcomer, Taker, Talk,
    Turn,
};
use crate::session::{Nowhere, Packet, Workers as _};
use crate::sys::{Destination, Received};
use crate::token::Token;

/// Handlers on the loop.
struct OnLoop<H, F>(Recipe<H, F>);

pub(super) fn on_the_loop<H, F>(recipe: Recipe<H, F>) -> Driven
where
    H: Handler + 'static,
    F: Framing + Clone + Send + 'static,
{
    Driven(Box::new(OnLoop(recipe)))
}

impl<H: Handler + 'static, F: Framing + Clone + Send + 'static> Driver for OnLoop<H, F> {
    fn accept<'a>(&'a mut self, ground: &Ground<'_>) -> io::Result<Box<dyn Acceptor + 'a>> {
        let Recipe { start, framing, marks } = &mut self.0;
        let framing = &**framing;
        let make = start.start()?;
        Ok(Box::new(LoopAcceptor { make, framing, marks: *marks, listener: ground.listener }))
    }

    fn answer<'a>(&'a mut self, _ground: &Ground<'_>) -> io::Result<Box<dyn Answerer + 'a>> {
        Ok(Box::new(LoopAnswerer { make: self.0.start.start()? }))
    }
}

struct LoopAcceptor<'a, H, F> {
    make: Make<'a, H>,
    framing: &'a F,
    marks: Marks,
    listener: Token,
}

impl<H, F> Taker for LoopAcceptor<'_, H, F> {}

impl<H: Handler + 'static, F: Framing + Clone + 'static> Acceptor for LoopAcceptor<'_, H, F> {
    fn nonblocking(&self) -> bool {
        true
    }

    fn accept(&mut self, socket: Socket, peer: Peer, turn: &mut Turn) {
        let Some(conversation) = made(&peer, turn, || {
            let handler = self.make.make(&peer);
            Conversation::new(handler, self.framing.clone().into(), peer.clone())
        }) else {
            turn.tally.closed += 1;
            return;
        };
        let_in(socket, conversation, self.marks, self.listener, turn);
    }
}

/// Leaves a connection to the loop.
fn let_in<T: Talk>(socket: Socket, talk: T, marks: Marks, listener: Token, turn: &mut Turn) {
    let descriptor = socket.as_raw_fd();
    let live = Box::new(Connection::new(socket, talk, marks, turn.now));
    turn.let_in(Newcomer { live, descriptor, parent: listener });
}

struct LoopAnswerer<'a, H> {
    make: Make<'a, H>,
}

impl<H> Taker for LoopAnswerer<'_, H> {}

impl<H: Handler> Answerer for LoopAnswerer<'_, H> {
    fn answer(&mut self, bytes: &[u8], peer: Peer, received: &Received, turn: &mut Turn) {
        let Some(handler) = made(&peer, turn, || self.make.make(&peer)) else { return };
        let desk = &mut turn.desk;
        let mut env = Env::new(&mut desk.outgoing, &mut desk.tally, &Nowhere, usize::MAX);
        let reason = serve_datagram(handler, peer.clone(), bytes, received.truncated, &mut env);
        turn.shutdown |= env.shutdown;
        if reason.is_fault() {
            turn.end(&peer, reason);
        }
    }
}

/// Handlers on workers, their connections on the loop.
struct OnWorkers<H, F> {
    recipe: Recipe<H, F>,
    workers: Arc<OffloadWorkers>,
}

pub(super) fn on_workers<H, F>(mode: Offload, recipe: Recipe<H, F>) -> Driven
where
    H: Handler + Send + 'static,
    F: Framing + Clone + Send + 'static,
{
    Driven(Box::new(OnWorkers { recipe, workers: Arc::new(OffloadWorkers::new(mode)) }))
}

impl<H, F> Driver for OnWorkers<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Clone + Send + 'static,
{
    fn accept<'a>(&'a mut self, ground: &Ground<'_>) -> io::Result<Box<dyn Acceptor + 'a>> {
        let OnWorkers { recipe: Recipe { start, framing, marks }, workers } = self;
        let framing = &**framing;
        workers.count_into(&ground.control.published);
        let (make, marks, listener) = (start.start()?, *marks, ground.listener);
        let lender = Arc::new(Lender::new(workers.clone(), ground.service));
        Ok(Box::new(LendingAcceptor { make, framing, marks, listener, workers, lender }))
    }

    fn answer<'a>(&'a mut self, ground: &Ground<'_>) -> io::Result<Box<dyn Answerer + 'a>> {
        self.workers.count_into(&ground.control.published);
        let make = self.recipe.start.start()?;
        Ok(Box::new(LendingAnswerer { make, workers: &self.workers, lent: 0 }))
    }

    fn needs(&self) -> Needs {
        Needs { threads: true, ..Needs::default() }
    }
}

struct LendingAcceptor<'a, H, F> {
    make: Make<'a, H>,
    framing: &'a F,
    marks: Marks,
    listener: Token,
    workers: &'a OffloadWorkers,
    lender: Arc<Lender>,
}

impl<H, F> Taker for LendingAcceptor<'_, H, F> {
    fn lent(&self) -> usize {
        self.lender.closing()
    }

    fn is_attentive(&self) -> bool {
        true
    }

    fn turned(&mut self) {
        self.workers.call();
    }
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
        let Some(conversation) = made(&peer, turn, || {
            let handler = self.make.make(&peer);
            Conversation::new(handler, self.framing.clone().into(), peer.clone())
        }) else {
            turn.tally.closed += 1;
            return;
        };
        let talk = Lending::new(conversation, self.lender.clone());
        let_in(socket, talk, self.marks, self.listener, turn);
    }
}

/// How many datagrams may be out with workers, or wait for one; more wait in the kernel.
const LENT_DATAGRAMS: usize = 1024;

struct LendingAnswerer<'a, H> {
    make: Make<'a, H>,
    workers: &'a Arc<OffloadWorkers>,
    lent: usize,
}

impl<H> Taker for LendingAnswerer<'_, H> {
    fn lent(&self) -> usize {
        self.lent
    }

    fn has_room(&mut self) -> bool {
        self.lent < LENT_DATAGRAMS
    }

    fn burst(&self) -> usize {
        LENT_DATAGRAMS.saturating_sub(self.lent).max(1)
    }

    fn is_attentive(&self) -> bool {
        true
    }

    fn turned(&mut self) {
        self.workers.call();
    }

    fn elsewhere(&self) -> usize {
        self.lent
    }
}

impl<H: Handler + Send + 'static> Answerer for LendingAnswerer<'_, H> {
    fn answer(&mut self, bytes: &[u8], peer: Peer, received: &Received, turn: &mut Turn) {
        let Some(handler) = made(&peer, turn, || self.make.make(&peer)) else { return };
        self.lent += 1;
        let packet = Packet::new(bytes, peer, received);
        let work = Box::new(LentDatagram::new(handler, packet));
        self.workers.submit(&turn.port.mailbox, turn.port.token, work);
    }

    fn returned(&mut self, work: Box<dyn Work>, turn: &mut Turn) -> Option<(Destination, Vec<u8>)> {
        self.lent -= 1;
        LentDatagram::<H>::take_back(work, turn)
    }
}
