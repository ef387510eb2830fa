//! One listener or connection in the slab of the event loop.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::time::Instant;

use slab::Slab;

use super::EventLoop;
use super::source::{EventSource, Readiness};
use crate::token::{MAX_SLOTS, Token};

/// One listener or connection: small and of one type, so that to iterate over many is cheap.
pub(super) struct Entry<'a> {
    pub(super) token: Token,
    /// The listener that accepted it; for a listener, its own token.
    pub(super) parent: Token,
    pub(super) readiness: Readiness,
    pub(super) descriptor: RawFd,
    /// The entry is in the ready list.
    pub(super) listed: bool,
    /// The entry is removed; its slot is freed at the end of the turn.
    pub(super) removed: bool,
    /// The deadline of the entry in the timers.
    pub(super) armed: Option<Instant>,
    pub(super) source: Box<dyn EventSource + 'a>,
}

impl Entry<'_> {
    /// Adds the entry to the ready list, once.
    #[inline]
    pub(super) fn add_to_ready_list(&mut self, ready: &mut VecDeque<Token>) {
        if !std::mem::replace(&mut self.listed, true) {
            ready.push_back(self.token);
        }
    }
}

/// Whether the entry is called at once. An entry that transferred much in its last call, or that is
/// in the ready list already, is called from the ready list.
#[inline]
pub(super) fn may_run_now(entry: &mut Entry<'_>, ready: &mut VecDeque<Token>) -> bool {
    if entry.listed {
        return false;
    }
    let is_heavy = entry.readiness.has(Readiness::BULK);
    if is_heavy {
        entry.add_to_ready_list(ready);
    }
    !is_heavy
}

/// As [`may_run_now`], for a connection with a notification. If the connection is called later, it
/// also has to serve its send queue. So it is marked to skip the fast path, which does not check
/// the send queue.
pub(super) fn may_notify_now(entry: &mut Entry<'_>, ready: &mut VecDeque<Token>) -> bool {
    let now = may_run_now(entry, ready);
    if !now {
        entry.readiness.add(Readiness::BULK);
    }
    now
}

/// The entry of a token, if it is still in the slab.
#[inline]
pub(super) fn entry_of<'s, 'a>(
    slab: &'s mut Slab<Entry<'a>>,
    token: Token,
) -> Option<&'s mut Entry<'a>> {
    slab.get_mut(token.slot()).filter(|entry| entry.token == token && !entry.removed)
}

impl EventLoop<'_> {
    /// Returns a token for the next entry. No token is ever used twice.
    pub(super) fn next_token(&mut self) -> Token {
        *self.resources.generation = self.resources.generation.wrapping_add(1);
        Token::new(self.slab.vacant_key().min(MAX_SLOTS - 1), *self.resources.generation)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::rc::Rc;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use super::*;
    use crate::address::Peer;
    use crate::connection_id::ConnectionId;
    use crate::conversation::{Context, Conversation, Handler, Raw};
    use crate::counters::Published;
    use crate::error::HandlerResult;
    use crate::event_loop::{Connection, LoopResources, NewConnection};
    use crate::sender::Sender;
    use crate::server_state::ServerState;
    use crate::sys::{Events, Poll, Socket};

    /// A handler that passes its sender to the test, and echoes.
    struct SharesSender(mpsc::Sender<Sender>);

    impl Handler for SharesSender {
        fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
            Ok(self.0.send(cx.sender()?)?)
        }

        fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
            cx.send(message)
        }
    }

    #[test]
    fn a_connection_in_the_ready_list_serves_its_send_queue_when_it_is_notified() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = Socket::from(listener.accept().unwrap().0);
        ours.set_nonblocking(true).unwrap();
        let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(8));
        let (published, mut generation) = (Published::default(), 0);
        let state = Arc::new(ServerState::new().unwrap());
        let run = state.begin();
        let mut event_loop = EventLoop::new(LoopResources {
            stop: run.stop_requester().clone(),
            poll: &mut poll,
            events: &mut events,
            mailbox: run.stop_requester().mailbox().clone(),
            published: &published,
            spin: Duration::ZERO,
            generation: &mut generation,
        });
        let (give, given) = mpsc::channel();
        let (handler, peer) = (SharesSender(give).into(), Peer::from(theirs.local_addr().unwrap()));
        let conversation = Conversation::new(handler, Raw.into(), peer, ConnectionId::next());
        let descriptor = ours.as_raw_fd();
        let source = Box::new(Connection::new(ours, conversation, Rc::default(), Instant::now()));
        event_loop.add_connection(NewConnection { source, descriptor, parent: Token::WAKE });
        let sender = given.try_recv().expect("the connection is open");
        // The state after its deadline has expired while it was in the ready list.
        let entry = &mut event_loop.slab[0];
        entry.add_to_ready_list(&mut event_loop.ready);
        assert!(!entry.readiness.has(Readiness::BULK));
        sender.send(b"from a sender").unwrap();
        event_loop.serve_notifications();
        theirs.write_all(b"input").unwrap();
        event_loop.run_turn(Some(Duration::ZERO), None).unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut received = vec![0; "from a sender".len() + "input".len()];
        theirs.read_exact(&mut received).expect("the message and the echo");
    }
}
