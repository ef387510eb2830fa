//! The blocking pump: one connection and its conversation, served to its end on this thread.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::closing::{Linger, Progress};
use super::seats::Taken;
use super::waiting::{Input, Waiting};
use super::{Lingering, Place, Served, Session};
use crate::address::Peer;
use crate::conversation::{Conversation, Encodable, Env, Framing, Handler, Home, Outgoing, Rest};
use crate::error::{CloseReason, UnsupportedError};
use crate::mailbox::{Ending, Keeper, Outlet};
use crate::sys;

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
    unsupported: UnsupportedError,
    limit: usize,
}

impl Home for ThreadHome<'_> {
    fn outlet(&self, encodable: Encodable) -> Result<Arc<Outlet>, UnsupportedError> {
        let Some(taken) = self.taken else { return Err(self.unsupported) };
        let wakeup = taken.wakeup().map_err(|_| UnsupportedError::NoDescriptor)?;
        Ok(Arc::new(Outlet::new(Keeper::Thread(wakeup.clone()), self.limit, encodable)))
    }
}

impl<H: Handler, F: Framing> Session for StreamSession<H, F> {
    fn run(self: Box<Self>, place: &mut Place<'_>) -> Served {
        let StreamSession { socket, mut conversation, room } = *self;
        let mut buffer = std::mem::take(place.buffer);
        let cut = talk(&socket, &mut conversation, room, &mut buffer, place);
        let peer = conversation.peer().clone();
        place.waiting.over();
        let cut = cut || conversation.is_aborted() || place.waiting.is_cut();
        // The conversation is over, whatever its connection still waits for.
        let reason = conversation.closed(place.tally);
        let ended = conversation.input_ended();
        let lingering = close(&socket, &peer, cut, ended, &mut buffer, place);
        *place.buffer = buffer;
        Served { peer, reason, cut, lingering }
    }
}

/// Talks until the conversation is over; whether output was lost.
fn talk<H: Handler, F: Framing>(
    socket: &Socket,
    conversation: &mut Conversation<H, F>,
    room: usize,
    buffer: &mut [u8],
    place: &mut Place<'_>,
) -> bool {
    let mut cut = false;
    let mut progress = Progress::default();
    let mut step = |conversation: &mut Conversation<H, F>,
                    fresh: &[u8],
                    place: &mut Place<'_>,
                    take: &dyn Fn(&mut Conversation<H, F>, &mut Env<'_>)| {
        call(conversation, room, place, take);
        let mut sent = Ok(());
        if !conversation.is_aborted() {
            let (input, outlet) = (conversation.input(fresh), conversation.outlet());
            let outlet = outlet.map(|outlet| &**outlet);
            sent = send(socket, input, conversation.patience(), outlet, place);
        }
        place.outgoing.clear();
        conversation.settle(fresh);
        if let Err(unsent) = sent {
            cut |= !insist(socket, conversation, room, unsent, place);
        }
    };
    step(conversation, &[], place, &|conversation, env| conversation.open(env));
    let mut input_next = false;
    while !conversation.is_over() {
        let has_parcels = conversation.outlet().is_some_and(|outlet| !outlet.is_empty());
        // In turns: neither keeps the other from being served.
        if has_parcels && !input_next {
            step(conversation, &[], place, &|conversation, env| {
                conversation.push_parcels(env);
            });
            input_next = true;
            continue;
        }
        input_next = false;
        if conversation.is_stuffed() {
            // However much is left, the end of the time for stopping is an end.
            if place.waiting.is_overdue() {
                conversation.end(CloseReason::Shutdown);
                break;
            }
            step(conversation, &[], place, &|conversation, env| conversation.receive(&[], env));
            continue;
        }
        // Before it waits: something may have come since it was last looked.
        if !has_parcels && conversation.outlet().is_some_and(|outlet| outlet.listen()) {
            continue;
        }
        conversation.end_if_nothing_follows();
        if conversation.is_over() {
            break;
        }
        let timeout = conversation.timeout();
        let idle = conversation.is_idle();
        let parcels = conversation.outlet().is_some();
        let input = if has_parcels && conversation.input_ended() {
            continue;
        } else if has_parcels {
            place.waiting.look(socket, buffer)
        } else if conversation.input_ended() {
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
            // Whether the peer takes what it is sent, the kernel knows; it is asked only here.
            Ok(Input::TimedOut) if progress.is_made(socket) => {}
            Ok(Input::TimedOut) => {
                step(conversation, &[], place, &|conversation, env| conversation.timed_out(env));
            }
            Ok(Input::Stopping) => conversation.end(CloseReason::Shutdown),
            Err(error) => conversation.end(CloseReason::Disconnected(error)),
        }
    }
    cut
}

/// Calls the conversation; its output is collected.
fn call<H: Handler, F: Framing>(
    conversation: &mut Conversation<H, F>,
    room: usize,
    place: &mut Place<'_>,
    take: &dyn Fn(&mut Conversation<H, F>, &mut Env<'_>),
) {
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
}

/// What the kernel did not take, and why.
struct Unsent {
    bytes: Vec<u8>,
    error: io::Error,
}

/// Sends what is collected.
fn send(
    socket: &Socket,
    input: &[u8],
    timeout: Option<Duration>,
    outlet: Option<&Outlet>,
    place: &mut Place<'_>,
) -> Result<(), Unsent> {
    let total = place.outgoing.len();
    if total == 0 {
        return Ok(());
    }
    let mut left = total;
    let mut write = |mut part: &[u8]| {
        left -= part.len();
        let written = place.waiting.write_all(socket, &mut part, timeout, outlet);
        left += part.len();
        written
    };
    let written = match place.outgoing.contiguous(input) {
        Some(bytes) => write(bytes),
        None => place.outgoing.parts(input).try_for_each(write),
    };
    place.tally.bytes_out += (total - left) as u64;
    written.map_err(|error| {
        let mut bytes = Vec::new();
        if error.kind() == io::ErrorKind::TimedOut {
            keep(place.outgoing, input, total - left, &mut bytes);
        }
        Unsent { bytes, error }
    })
}

/// Appends what `outgoing` holds after its first `sent` bytes.
fn keep(outgoing: &mut Outgoing, input: &[u8], sent: usize, bytes: &mut Vec<u8>) {
    outgoing.rest(input, sent, |rest| match rest {
        Rest::Bytes(part) => bytes.extend_from_slice(part),
        Rest::Shared(payload, range) => bytes.extend_from_slice(&payload[range]),
    });
}

/// Asks the handler about a peer that takes no output, each time that its timeout has passed, until
/// all is sent; whether it was.
#[cold]
fn insist<H: Handler, F: Framing>(
    socket: &Socket,
    conversation: &mut Conversation<H, F>,
    room: usize,
    unsent: Unsent,
    place: &mut Place<'_>,
) -> bool {
    let Unsent { mut bytes, mut error } = unsent;
    loop {
        let late = error.kind() == io::ErrorKind::TimedOut;
        match conversation.ending() {
            // As a sender has asked for.
            Ending::Aborted => {
                conversation.abort();
                return false;
            }
            Ending::Closing if late => {
                conversation.abort();
                return false;
            }
            _ => {}
        }
        if !late || bytes.is_empty() {
            conversation.end(match place.waiting.is_cut() {
                true => CloseReason::Shutdown,
                false => CloseReason::Disconnected(error),
            });
            return false;
        }
        if conversation.is_over() {
            return false;
        }
        call(conversation, room, place, &|conversation, env| conversation.timed_out(env));
        if conversation.is_aborted() {
            place.outgoing.clear();
            return false;
        }
        keep(place.outgoing, &[], 0, &mut bytes);
        place.outgoing.clear();
        let mut left = &bytes[..];
        let outlet = conversation.outlet().map(|outlet| &**outlet);
        let patience = conversation.patience();
        let written = place.waiting.write_all(socket, &mut left, patience, outlet);
        let sent = bytes.len() - left.len();
        place.tally.bytes_out += sent as u64;
        match written {
            Ok(()) => return true,
            Err(next) => error = next,
        }
        bytes.drain(..sent);
    }
}

/// Closes a connection, so that its output arrives, or, where it is cut, so that it does not look
/// whole. What lingers is left to who asked for it, where it takes it.
pub(super) fn close(
    socket: &Arc<Socket>,
    peer: &Peer,
    cut: bool,
    ended: bool,
    buffer: &mut [u8],
    place: &mut Place<'_>,
) -> Option<Lingering> {
    if cut {
        sys::reset_on_close(socket);
    } else if !ended && let Some(mut linger) = Linger::begin(socket, peer, buffer, Instant::now()) {
        if place.leaves_lingering {
            return Some(Lingering { socket: socket.clone(), linger });
        }
        linger_here(socket, &mut linger, buffer, place);
    }
    place.tally.closed += 1;
    None
}

/// Throws input away until the peer has ended, or has all of its output, but not for ever.
fn linger_here(socket: &Socket, linger: &mut Linger, buffer: &mut [u8], place: &mut Place<'_>) {
    loop {
        let now = Instant::now();
        if linger.is_done(socket, now) {
            return;
        }
        let pause = Some(linger.next().saturating_duration_since(now));
        match place.waiting.read(socket, buffer, pause, true, false) {
            Ok(Input::TimedOut) => {}
            Ok(Input::Bytes(count @ 1..)) if !linger.discard(count) => {}
            _ => return,
        }
    }
}
