//! One listener or connection in the slab of the event loop.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::time::Instant;

use slab::Slab;

use super::EventLoop;
use super::source::{EventSource, Readiness};
use crate::token::{MAX_SLOTS, Token};

/// One listener or connection: small and uniform, so that a walk over many is cheap.
pub(super) struct Entry<'a> {
    pub(super) token: Token,
    /// The listener it came from; a listener's own token.
    pub(super) parent: Token,
    pub(super) readiness: Readiness,
    pub(super) descriptor: RawFd,
    /// It stands in the ready list.
    pub(super) listed: bool,
    /// It is over; its slot is free after this batch of events.
    pub(super) removed: bool,
    /// Its deadline in the timers.
    pub(super) armed: Option<Instant>,
    pub(super) source: Box<dyn EventSource + 'a>,
}

impl Entry<'_> {
    /// Puts it into the ready list, once.
    #[inline]
    pub(super) fn line_up(&mut self, ready: &mut VecDeque<Token>) {
        if !std::mem::replace(&mut self.listed, true) {
            ready.push_back(self.token);
        }
    }
}

/// Whether an entry is called at once; who moves much, or could have gone on already, is called from
/// the ready list.
#[inline]
pub(super) fn may_run_now(entry: &mut Entry<'_>, ready: &mut VecDeque<Token>) -> bool {
    if entry.listed {
        return false;
    }
    let is_heavy = entry.readiness.has(Readiness::BULK);
    if is_heavy {
        entry.line_up(ready);
    }
    !is_heavy
}

/// As [`may_run_now`], of a connection with mail. One that is called later has not only input then: it
/// is not served by the plain case, which does not look at the send queue.
pub(super) fn may_take_mail_now(entry: &mut Entry<'_>, ready: &mut VecDeque<Token>) -> bool {
    let now = may_run_now(entry, ready);
    if !now {
        entry.readiness.add(Readiness::BULK);
    }
    now
}

/// The entry a token names, if it is still that one and alive.
#[inline]
pub(super) fn entry_of<'s, 'a>(
    slab: &'s mut Slab<Entry<'a>>,
    token: Token,
) -> Option<&'s mut Entry<'a>> {
    slab.get_mut(token.slot()).filter(|entry| entry.token == token && !entry.removed)
}

impl EventLoop<'_> {
    /// A token for the next entry; no token is ever used twice.
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

    use mio::{Events, Poll};
    use socket2::Socket;

    use super::*;
    use crate::address::Peer;
    use crate::connection_id::ConnectionId;
    use crate::conversation::{Context, Conversation, Handler, Raw};
    use crate::counters::Published;
    use crate::error::HandlerResult;
    use crate::event_loop::{Connection, LoopResources, NewConnection};
    use crate::sender::Sender;
    use crate::server_state::ServerState;

    /// Gives its sender away, and echoes.
    struct Giving(mpsc::Sender<Sender>);

    impl Handler for Giving {
        fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
            Ok(self.0.send(cx.sender()?)?)
        }

        fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
            cx.send(message)
        }
    }

    #[test]
    fn a_connection_that_stands_in_the_ready_list_when_its_mail_comes_looks_at_its_send_queue() {
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
        let (handler, peer) = (Giving(give).into(), Peer::from(theirs.local_addr().unwrap()));
        let conversation = Conversation::new(handler, Raw.into(), peer, ConnectionId::next());
        let descriptor = ours.as_raw_fd();
        let source = Box::new(Connection::new(ours, conversation, Rc::default(), Instant::now()));
        event_loop.add_connection(NewConnection { source, descriptor, parent: Token::WAKE });
        let sender = given.try_recv().expect("it is open");
        // As after its deadline has come while it waited for its turn.
        let entry = &mut event_loop.slab[0];
        entry.line_up(&mut event_loop.ready);
        assert!(!entry.readiness.has(Readiness::BULK));
        sender.send(b"from elsewhere").unwrap();
        event_loop.serve_mail();
        theirs.write_all(b"input").unwrap();
        event_loop.run_turn(Some(Duration::ZERO), None).unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut received = vec![0; "from elsewhere".len() + "input".len()];
        theirs.read_exact(&mut received).expect("the message and the echo");
    }
}
