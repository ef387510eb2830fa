//! A conversation that is lent to a worker for each step that runs the handler, and comes home with
//! what was answered. The loop does all the reading and writing, and finds out whether there is a
//! whole message to lend it for.

use std::any::Any;
use std::sync::Arc;

use super::live::{Desk, Port, Turn};
use super::pump::{Step, Talk};
use crate::conversation::{Conversation, Env, Framing, Handler, Outgoing, serve_datagram};
use crate::counters::Tally;
use crate::error::CloseReason;
use crate::mailbox::{Ended, Mail, Work};
use crate::session::{Nowhere, Packet, Workers};
use crate::sys::Destination;
use crate::token::Token;

/// A conversation that is either at home or out with a worker.
pub(crate) struct Lending<H, F> {
    workers: Arc<dyn Workers>,
    /// `None` while it is out.
    loan: Option<Box<Loan<H, F>>>,
}

/// What goes to the worker: the conversation itself. Who has it may use it, and nobody else can, so
/// order is kept without a lock.
struct Loan<H, F> {
    conversation: Conversation<H, F>,
    /// Who is told when it fails.
    listener: Token,
    /// What it needs on its way; an idle conversation has none.
    kit: Option<Box<Kit>>,
}

struct Kit {
    chore: Chore,
    outgoing: Outgoing,
    tally: Tally,
    port: Port,
    room: usize,
    shutdown: bool,
}

/// What a worker is to do with it.
#[derive(Clone, Copy)]
enum Chore {
    Open,
    /// Deliver what is whole among the input kept.
    Receive,
    Eof,
    TimedOut,
    /// Tell the handler that it is over; it does not come home.
    Close,
}

impl<H, F> Lending<H, F> {
    pub(crate) fn new(
        conversation: Conversation<H, F>,
        workers: Arc<dyn Workers>,
        listener: Token,
    ) -> Self {
        Lending { workers, loan: Some(Box::new(Loan { conversation, listener, kit: None })) }
    }
}

impl<H, F> Lending<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    fn lend(&mut self, chore: Chore, room: usize, port: &Port) {
        let Some(mut loan) = self.loan.take() else {
            return;
        };
        loan.kit = Some(Box::new(Kit {
            chore,
            outgoing: Outgoing::default(),
            tally: Tally::default(),
            port: port.clone(),
            room,
            shutdown: false,
        }));
        self.workers.submit(&port.mailbox, port.token, loan);
    }
}

impl<H, F> Talk for Lending<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    type Handler = H;
    type Framing = F;

    fn take(&mut self, step: Step<'_>, room: usize, desk: &mut Desk) -> bool {
        let Some(loan) = &mut self.loan else {
            return false;
        };
        let chore = match step {
            Step::Open => Chore::Open,
            Step::Eof => Chore::Eof,
            Step::TimedOut => Chore::TimedOut,
            Step::Receive(fresh) => {
                loan.conversation.keep(fresh);
                // Without a whole message nothing has been delivered that would have to be settled.
                if !loan.conversation.has_message() {
                    return false;
                }
                Chore::Receive
            }
        };
        self.lend(chore, room, &desk.port);
        false
    }

    fn home(&mut self) -> Option<&mut Conversation<H, F>> {
        self.loan.as_mut().map(|loan| &mut loan.conversation)
    }

    fn peek(&self) -> Option<&Conversation<H, F>> {
        self.loan.as_ref().map(|loan| &loan.conversation)
    }

    fn take_back(&mut self, work: Box<dyn Work>, desk: &mut Desk) {
        let Ok(mut loan) = work.into_any().downcast::<Loan<H, F>>() else {
            return;
        };
        if let Some(mut kit) = loan.kit.take() {
            std::mem::swap(&mut desk.outgoing, &mut kit.outgoing);
            desk.tally.take(&mut kit.tally);
            desk.shutdown |= kit.shutdown;
        }
        self.loan = Some(loan);
    }

    fn close(&mut self, desk: &mut Desk) {
        self.lend(Chore::Close, 0, &desk.port);
    }
}

impl<H, F> Work for Loan<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    fn run(&mut self) -> bool {
        let Some(kit) = &mut self.kit else { return true };
        let mut env = Env::new(&mut kit.outgoing, &mut kit.tally, &kit.port, kit.room);
        match kit.chore {
            Chore::Open => self.conversation.open(&mut env),
            Chore::Receive => self.conversation.receive(&[], &mut env),
            Chore::Eof => self.conversation.eof(&mut env),
            Chore::TimedOut => self.conversation.timed_out(&mut env),
            Chore::Close => {
                let reason = self.conversation.closed(env.tally);
                let ended = Ended {
                    listener: self.listener,
                    peer: self.conversation.peer().clone(),
                    reason,
                    tally: std::mem::take(env.tally),
                };
                kit.port.mailbox.post(Mail::Ended(Box::new(ended)));
                return false;
            }
        }
        kit.shutdown |= env.shutdown;
        true
    }

    fn abandoned(&mut self) {
        if self.kit.as_ref().is_some_and(|kit| matches!(kit.chore, Chore::Close)) {
            return;
        }
        self.conversation.end(CloseReason::Shutdown);
        self.conversation.closed(&mut Tally::default());
    }

    fn asks_shutdown(&self) -> bool {
        self.kit.as_ref().is_some_and(|kit| kit.shutdown)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// A datagram that is lent with its handler.
pub(crate) struct LentDatagram<H> {
    /// Gone when it has been served.
    handler: Option<H>,
    packet: Packet,
    outgoing: Outgoing,
    tally: Tally,
    reason: Option<CloseReason>,
    shutdown: bool,
}

impl<H: Handler + Send + 'static> LentDatagram<H> {
    pub(crate) fn new(handler: H, packet: Packet) -> Self {
        LentDatagram {
            handler: Some(handler),
            packet,
            outgoing: Outgoing::default(),
            tally: Tally::default(),
            reason: None,
            shutdown: false,
        }
    }

    /// Takes it back: where its replies go, and what the output in `turn` refers to.
    pub(crate) fn take_back(
        work: Box<dyn Work>,
        turn: &mut Turn,
    ) -> Option<(Destination, Vec<u8>)> {
        let mut lent = work.into_any().downcast::<Self>().ok()?;
        std::mem::swap(&mut turn.outgoing, &mut lent.outgoing);
        turn.tally.take(&mut lent.tally);
        turn.shutdown |= lent.shutdown;
        let Packet { bytes, peer, from, .. } = lent.packet;
        if let Some(reason) = lent.reason {
            turn.end(peer, reason);
        }
        Some((from, bytes))
    }
}

impl<H: Handler + Send + 'static> Work for LentDatagram<H> {
    fn run(&mut self) -> bool {
        let Some(handler) = self.handler.take() else { return true };
        let Packet { bytes, peer, truncated, .. } = &self.packet;
        let mut env = Env::new(&mut self.outgoing, &mut self.tally, &Nowhere, usize::MAX);
        self.reason = Some(serve_datagram(handler, peer.clone(), bytes, *truncated, &mut env));
        self.shutdown = env.shutdown;
        true
    }

    fn abandoned(&mut self) {}

    fn asks_shutdown(&self) -> bool {
        self.shutdown
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
