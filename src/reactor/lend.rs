//! A conversation that is lent to a worker for each step that runs the handler, and comes home with
//! what was answered. The loop does all the reading and writing, and finds out whether there is a
//! whole message to lend it for.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::live::{Desk, Port, Turn};
use super::pump::{Step, Talk};
use crate::conversation::{Ahead, Conversation, Env, Framing, Handler, Outgoing, serve_datagram};
use crate::counters::Tally;
use crate::error::CloseReason;
use crate::guard;
use crate::mailbox::{Ended, Mail, Work};
use crate::session::{Nowhere, Packet, Workers};
use crate::sys::{CatchDrop, Destination};

/// To whom the connections of one listener are lent.
pub(crate) struct Lender {
    workers: Arc<dyn Workers>,
    /// The service that is told when one fails, by its number in the server.
    service: usize,
    /// How many conversations are out to be told that they are over.
    closing: Arc<AtomicUsize>,
}

impl Lender {
    pub(crate) fn new(workers: Arc<dyn Workers>, service: usize) -> Self {
        Lender { workers, service, closing: Arc::default() }
    }

    /// How many conversations are out to be told that they are over. When it sinks, what they leave
    /// for the loop is in its mailbox, and it is about to be woken.
    pub(crate) fn closing(&self) -> usize {
        self.closing.load(SeqCst)
    }
}

/// A conversation that is either at home or out with a worker.
pub(crate) struct Lending<H, F> {
    lender: Arc<Lender>,
    /// `None` while it is out.
    conversation: Option<Box<Conversation<H, F>>>,
}

/// What goes to the worker: the conversation itself, and what it needs on its way. Who has it may
/// use it, and nobody else can, so order is kept without a lock.
struct Loan<H, F> {
    /// Gone when it has been told that it is over.
    conversation: Option<Box<Conversation<H, F>>>,
    chore: Chore,
    outgoing: Outgoing,
    tally: Tally,
    port: Port,
    room: usize,
    shutdown: bool,
}

/// What a worker is to do with it.
enum Chore {
    Open,
    /// Deliver what is whole among the input kept.
    Receive(Ahead),
    Eof,
    TimedOut,
    /// Tell the handler that it is over; it does not come home.
    Close {
        service: usize,
        closing: Arc<AtomicUsize>,
    },
}

impl<H, F> Lending<H, F> {
    pub(crate) fn new(conversation: Conversation<H, F>, lender: Arc<Lender>) -> Self {
        Lending { lender, conversation: Some(Box::new(conversation)) }
    }
}

impl<H, F> Lending<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    fn lend(&mut self, chore: Chore, room: usize, port: &Port) {
        let Some(conversation) = self.conversation.take() else {
            return;
        };
        let loan = Loan {
            conversation: Some(conversation),
            chore,
            outgoing: Outgoing::default(),
            tally: Tally::default(),
            port: port.clone(),
            room,
            shutdown: false,
        };
        self.lender.workers.submit(&port.mailbox, port.token, Box::new(loan));
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
        let Some(conversation) = &mut self.conversation else {
            return false;
        };
        let chore = match step {
            Step::Open => Chore::Open,
            Step::Eof => Chore::Eof,
            Step::TimedOut => Chore::TimedOut,
            Step::Receive(fresh) => {
                conversation.keep(fresh);
                // Without a whole message nothing has been delivered that would have to be settled.
                let Some(ahead) = conversation.look_ahead() else {
                    return false;
                };
                Chore::Receive(ahead)
            }
        };
        self.lend(chore, room, &desk.port);
        false
    }

    fn home(&mut self) -> Option<&mut Conversation<H, F>> {
        self.conversation.as_deref_mut()
    }

    fn peek(&self) -> Option<&Conversation<H, F>> {
        self.conversation.as_deref()
    }

    fn take_back(&mut self, work: Box<dyn Work>, desk: &mut Desk) {
        let Ok(loan) = work.into_any().downcast::<Loan<H, F>>() else {
            return;
        };
        let Loan { conversation, outgoing, mut tally, shutdown, .. } = *loan;
        desk.outgoing = outgoing;
        desk.tally.take(&mut tally);
        desk.shutdown |= shutdown;
        self.conversation = conversation;
    }

    fn close(&mut self, desk: &mut Desk) {
        if self.conversation.is_none() {
            return;
        }
        let Lender { service, closing, .. } = &*self.lender;
        closing.fetch_add(1, SeqCst);
        let chore = Chore::Close { service: *service, closing: closing.clone() };
        self.lend(chore, 0, &desk.port);
    }
}

impl<H, F> Work for Loan<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    fn run(&mut self) -> bool {
        let Some(conversation) = &mut self.conversation else { return false };
        let mut env = Env::new(&mut self.outgoing, &mut self.tally, &self.port, self.room);
        match &mut self.chore {
            Chore::Open => conversation.open(&mut env),
            Chore::Receive(ahead) => conversation.receive_kept(ahead, &mut env),
            Chore::Eof => conversation.eof(&mut env),
            Chore::TimedOut => conversation.timed_out(&mut env),
            Chore::Close { service, closing } => {
                let reason = conversation.closed(env.tally);
                let peer = conversation.peer().clone();
                self.conversation = None;
                let mut tally = std::mem::take(&mut self.tally);
                tally.panics += guard::take_caught();
                let ended = Ended { service: *service, peer, reason, tally };
                self.port.mailbox.post(Mail::Ended(Box::new(ended)));
                closing.fetch_sub(1, SeqCst);
                return false;
            }
        }
        self.shutdown |= env.shutdown;
        self.tally.panics += guard::take_caught();
        true
    }

    fn abandoned(&mut self) {
        if let Some(conversation) = &mut self.conversation {
            conversation.end(CloseReason::Shutdown);
            conversation.closed(&mut Tally::default());
        }
    }

    fn asks_shutdown(&self) -> bool {
        self.shutdown
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// A datagram that is lent with its handler.
pub(crate) struct LentDatagram<H> {
    /// Gone when it has been served.
    handler: Option<CatchDrop<H>>,
    packet: Packet,
    outgoing: Outgoing,
    tally: Tally,
    reason: Option<CatchDrop<CloseReason>>,
    shutdown: bool,
}

impl<H: Handler + Send + 'static> LentDatagram<H> {
    pub(crate) fn new(handler: CatchDrop<H>, packet: Packet) -> Self {
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
            turn.end(&peer, reason);
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
        self.tally.panics += guard::take_caught();
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
