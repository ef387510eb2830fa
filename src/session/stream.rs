//! The blocking pump: one connection and its conversation, served to its end on this thread.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::seats::Taken;
use super::waiting::{Input, Waiting};
use super::{Place, Served, Session};
use crate::conversation::{Conversation, Encodable, Env, Framing, Handler, Home};
use crate::error::{CloseReason, Unsupported};
use crate::mailbox::{Ending, Keeper, Outlet};
use crate::sys;

/// How long, and how much of, a closed peer's input is thrown away so that no reset cuts its reply.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;

/// A connection with its conversation, on its way to where it is served.
pub(crate) struct StreamSession<H, F> {
    pub(crate) socket: Arc<Socket>,
    pub(crate) conversation: Conversation<H, F>,
    /// How much output is collected before it is written.
    pub(crate) room: usize,
}

/// How a conversation that is served by blocking is reached from elsewhere.
struct ThreadHome<'a> {
    taken: Option<&'a Taken>,
    unsupported: Unsupported,
    limit: usize,
}

impl Home for ThreadHome<'_> {
    fn outlet(&self, encodable: Encodable) -> Result<Arc<Outlet>, Unsupported> {
        let Some(taken) = self.taken else { return Err(self.unsupported) };
        let wakeup = taken.wakeup().map_err(|_| Unsupported::NoDescriptor)?;
        Ok(Arc::new(Outlet::new(Keeper::Thread(wakeup.clone()), self.limit, encodable)))
    }
}

impl<H: Handler, F: Framing> Session for StreamSession<H, F> {
    fn run(self: Box<Self>, place: &mut Place<'_>) -> Served {
        let StreamSession { socket, mut conversation, room } = *self;
        let mut buffer = std::mem::take(place.buffer);
        talk(&socket, &mut conversation, room, &mut buffer, place);
        let peer = conversation.peer().clone();
        if conversation.is_aborted() {
            let _ = socket.set_linger(Some(Duration::ZERO));
        } else if !conversation.input_ended() {
            close_politely(&socket, &mut buffer, place);
        }
        *place.buffer = buffer;
        let reason = conversation.closed(place.tally);
        place.tally.closed += 1;
        Served { peer, reason }
    }
}

/// Talks until the conversation is over.
fn talk<H: Handler, F: Framing>(
    socket: &Socket,
    conversation: &mut Conversation<H, F>,
    room: usize,
    buffer: &mut [u8],
    place: &mut Place<'_>,
) {
    let step = |conversation: &mut Conversation<H, F>,
                fresh: &[u8],
                place: &mut Place<'_>,
                take: &dyn Fn(&mut Conversation<H, F>, &mut Env<'_>)| {
        let unsupported = place.no_sender;
        let taken = match place.waiting {
            Waiting::InThread(taken) => Some(taken),
            _ => None,
        };
        let home = ThreadHome { taken, unsupported, limit: room };
        let mut env = Env::new(place.outgoing, place.tally, &home, room);
        take(conversation, &mut env);
        if env.shutdown {
            (place.on_shutdown)();
        }
        if !conversation.is_aborted() {
            let (input, outlet) = (conversation.input(fresh), conversation.outlet());
            let sent =
                send(socket, input, conversation.timeout(), outlet.map(|outlet| &**outlet), place);
            if let Err(error) = sent {
                match (conversation.ending(), error.kind()) {
                    (Ending::Aborted, _) | (Ending::Closing, io::ErrorKind::TimedOut) => {
                        conversation.abort();
                    }
                    (_, io::ErrorKind::TimedOut) => conversation.end(CloseReason::Timeout),
                    _ => conversation.end(CloseReason::Disconnected(error)),
                }
            }
        }
        place.outgoing.clear();
        conversation.settle(fresh);
    };
    step(conversation, &[], place, &|conversation, env| conversation.open(env));
    while !conversation.is_over() {
        if conversation.outlet().is_some_and(|outlet| !outlet.is_empty()) {
            step(conversation, &[], place, &|conversation, env| conversation.push_parcels(env));
            continue;
        }
        if conversation.is_stuffed() {
            step(conversation, &[], place, &|conversation, env| conversation.receive(&[], env));
            continue;
        }
        // Something may have come since it was last looked.
        if conversation.outlet().is_some_and(|outlet| outlet.listen()) {
            continue;
        }
        conversation.end_if_nothing_follows();
        if conversation.is_over() {
            break;
        }
        let timeout = conversation.timeout();
        let idle = conversation.is_idle();
        let parcels = conversation.outlet().is_some();
        let input = if conversation.input_ended() {
            place.waiting.rest(timeout)
        } else {
            place.waiting.read(socket, buffer, timeout, idle, parcels)
        };
        match input {
            Ok(Input::Bytes(0)) => {
                step(conversation, &[], place, &|conversation, env| conversation.eof(env));
            }
            Ok(Input::Bytes(count)) => {
                place.tally.bytes_in += count as u64;
                let fresh = &buffer[..count];
                step(conversation, fresh, place, &|conversation, env| {
                    conversation.receive(fresh, env);
                });
            }
            Ok(Input::Parcels) => {}
            Ok(Input::TimedOut) => {
                step(conversation, &[], place, &|conversation, env| conversation.timed_out(env));
            }
            Ok(Input::Stopping) => conversation.end(CloseReason::Shutdown),
            Err(error) => conversation.end(CloseReason::Disconnected(error)),
        }
    }
}

fn send(
    socket: &Socket,
    input: &[u8],
    timeout: Option<Duration>,
    outlet: Option<&Outlet>,
    place: &mut Place<'_>,
) -> io::Result<()> {
    if place.outgoing.is_empty() {
        return Ok(());
    }
    place.tally.bytes_out += place.outgoing.len() as u64;
    if let Some(bytes) = place.outgoing.contiguous(input) {
        return place.waiting.write_all(socket, bytes, timeout, outlet);
    }
    let mut parts = place.outgoing.parts(input);
    parts.try_for_each(|part| place.waiting.write_all(socket, part, timeout, outlet))
}

/// Sees to it that a reply already sent is not cut by the reset that unread input would cause.
pub(super) fn close_politely(socket: &Socket, buffer: &mut [u8], place: &mut Place<'_>) {
    place.waiting.over();
    let unread = sys::receive_now(socket, buffer).is_ok_and(|count| count > 0);
    if !unread || socket.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let (until, mut left) = (Instant::now() + LINGER, LINGER_BYTES);
    while left > 0 {
        let patience = until.saturating_duration_since(Instant::now());
        if patience.is_zero() {
            return;
        }
        match place.waiting.read(socket, buffer, Some(patience), true, false) {
            Ok(Input::Bytes(count)) if count > 0 => left = left.saturating_sub(count),
            _ => return,
        }
    }
}
