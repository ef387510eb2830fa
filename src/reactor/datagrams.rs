//! A datagram socket in the slab: receives in batches, and sends the replies in batches.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use socket2::{SockAddr, Socket};

use super::listener::Trouble;
use super::live::{Backing, Desk, Fate, Gate, Live, Readiness, Taker, Turn};
use crate::address::{Address, Peer};
use crate::conversation::Outgoing;
use crate::counters::Tally;
use crate::mailbox::Work;
use crate::session::{Deaf, PATIENCE};
use crate::sys::{self, Batch, Destination, Received, Send};
use crate::transport::peer_of;

/// How many datagrams are received before others come first.
const RECEIVE_BUDGET: usize = 128;

/// How much of replies may wait, in bytes; above it nothing is received.
const REPLIES_HIGH: usize = 4 << 20;

/// What a reply that waits is charged for beside its bytes, so that empty ones are bounded too.
const OVERHEAD: usize = 64;

/// A Unix peer with a full queue does not show in the poller: it is tried again so often.
const RETRY: Duration = Duration::from_millis(2);

/// How much may be put aside for such peers, in bytes; what is over it is lost.
const ASIDE_HIGH: usize = 1 << 20;

/// Who answers datagrams.
pub(crate) trait Answerer: Taker {
    /// Takes a datagram: answers it into `turn.outgoing`, or has it answered elsewhere.
    fn answer(&mut self, bytes: &[u8], peer: Peer, received: &Received, turn: &mut Turn);

    /// What was lent comes home: where its replies go, and what they refer to.
    fn returned(&mut self, work: Box<dyn Work>, turn: &mut Turn) -> Option<(Destination, Vec<u8>)> {
        let _ = (work, turn);
        None
    }
}

/// A datagram socket in the slab.
pub(crate) struct Datagrams<'a> {
    socket: &'a Socket,
    address: &'a Address,
    batch: &'a mut Batch,
    answerer: Box<dyn Answerer + 'a>,
    gate: Box<dyn Gate + 'a>,
    received: Vec<Received>,
    replies: Replies,
    trouble: Trouble,
}

impl<'a> Datagrams<'a> {
    pub(crate) fn new(
        socket: &'a Socket,
        address: &'a Address,
        batch: &'a mut Batch,
        answerer: Box<dyn Answerer + 'a>,
        gate: Box<dyn Gate + 'a>,
    ) -> Self {
        Datagrams {
            socket,
            address,
            batch,
            answerer,
            gate,
            received: Vec::new(),
            replies: Replies::new(matches!(address, Address::Udp(_)) && sys::joins_replies(socket)),
            trouble: Trouble::default(),
        }
    }

    fn run(&mut self, turn: &mut Turn) -> Fate {
        self.replies.send(self.socket, turn);
        let mut budget = RECEIVE_BUDGET;
        while turn.readiness.has(Readiness::READABLE) {
            if !turn.may_accept()
                || self.replies.pending >= REPLIES_HIGH
                || !self.answerer.has_room()
            {
                return Fate::Wait;
            }
            if budget == 0 {
                return Fate::Again;
            }
            let most = budget.min(turn.allowance).min(self.answerer.burst());
            match self.batch.receive(self.socket, most, &mut self.received) {
                // Unlike a stream, a datagram socket has been drained only when it says so itself;
                // but a batch that was not filled is as good: the next edge is for the next one.
                Ok(true) => turn.readiness.remove(Readiness::READABLE),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    turn.readiness.remove(Readiness::READABLE);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What the network says of an earlier reply; the next call goes on.
                Err(error) => {
                    turn.tally.unsent += 1;
                    budget = budget.saturating_sub(1);
                    if let Some(times) = self.trouble.again(turn.now) {
                        log::debug!("{} ({times} times by now): {error}", self.address);
                    }
                }
            }
            budget = budget.saturating_sub(self.received.len());
            self.answer_all(turn);
            self.replies.send(self.socket, turn);
            if self.answerer.burst() == 1 && turn.readiness.has(Readiness::READABLE) {
                return Fate::Again;
            }
        }
        Fate::Wait
    }

    fn answer_all(&mut self, turn: &mut Turn) {
        let mut received = std::mem::take(&mut self.received);
        for (number, datagram) in received.drain(..).enumerate() {
            turn.tally.datagrams += 1;
            turn.tally.bytes_in += datagram.len as u64;
            turn.tally.truncated += u64::from(datagram.truncated);
            turn.allowance = turn.allowance.saturating_sub(1);
            let peer = peer_of(&datagram.from.address);
            if !self.gate.verify(&peer, turn) {
                turn.tally.refused += 1;
                continue;
            }
            let bytes = self.batch.bytes(number, datagram.len);
            self.answerer.answer(bytes, peer, &datagram, turn);
            let Desk { outgoing, tally, now, .. } = &mut turn.desk;
            self.replies.keep(outgoing, bytes, datagram.from, *now, tally);
        }
        self.received = received;
    }
}

impl Live for Datagrams<'_> {
    fn ready(&mut self, turn: &mut Turn) -> Fate {
        self.answerer.look(turn);
        self.run(turn)
    }

    fn returned(&mut self, work: Box<dyn Work>, turn: &mut Turn) -> Fate {
        if let Some((from, bytes)) = self.answerer.returned(work, turn) {
            let Desk { outgoing, tally, now, .. } = &mut turn.desk;
            self.replies.keep(outgoing, &bytes, from, *now, tally);
        }
        self.run(turn)
    }

    fn deadline(&self) -> Option<Instant> {
        self.replies.retry_at
    }

    fn expired(&mut self, turn: &mut Turn) -> Fate {
        self.replies.retry(self.socket, turn);
        self.run(turn)
    }

    fn freed(&mut self, turn: &mut Turn) -> Fate {
        self.run(turn)
    }

    fn stop(&mut self, turn: &mut Turn) -> Fate {
        self.replies.send(self.socket, turn);
        self.answerer.stop();
        Fate::Wait
    }

    fn cut(&mut self, turn: &mut Turn) {
        self.replies.send(self.socket, turn);
        self.answerer.cut(turn);
    }

    fn backing(&mut self) -> Option<Backing<'_>> {
        Some(Backing { taker: &mut *self.answerer, gate: &mut *self.gate })
    }
}

/// Replies on their way out, in order.
#[derive(Debug)]
struct Replies {
    /// Their bytes, one after the other; emptied when all have gone, and kept for the next.
    bytes: Vec<u8>,
    waiting: VecDeque<Reply>,
    /// How much waits, what is put aside included.
    pending: usize,
    /// Whether the kernel cuts one send into several datagrams.
    joins: bool,
    /// For Unix peers whose queues are full.
    aside: HashMap<SockAddr, Aside>,
    /// How much that is.
    aside_charge: usize,
    /// When to try those again; the poller will not say.
    retry_at: Option<Instant>,
    /// Peers for which nothing is put aside.
    deaf: Deaf,
}

#[derive(Debug)]
struct Reply {
    to: Destination,
    range: Range<usize>,
}

/// What is put aside for one peer, in order, and since when.
#[derive(Debug)]
struct Aside {
    to: Destination,
    replies: VecDeque<(Instant, Box<[u8]>)>,
}

fn charge(bytes: usize) -> usize {
    bytes + OVERHEAD
}

/// How many datagrams may be joined, and how large each may be: what passes any IPv6 path.
const JOINED: usize = 64;
const JOINED_SIZE: usize = 1232;
const JOINED_TOTAL: usize = 65_000;

impl Replies {
    fn new(joins: bool) -> Self {
        Replies {
            bytes: Vec::new(),
            waiting: VecDeque::new(),
            pending: 0,
            joins,
            aside: HashMap::new(),
            aside_charge: 0,
            retry_at: None,
            deaf: Deaf::default(),
        }
    }

    fn keep(
        &mut self,
        outgoing: &mut Outgoing,
        input: &[u8],
        to: Destination,
        now: Instant,
        tally: &mut Tally,
    ) {
        // A peer's datagrams keep their order.
        let aside = !self.aside.is_empty() && self.aside.contains_key(&to.address);
        for part in outgoing.parts(input) {
            self.pending += charge(part.len());
            if aside {
                self.put_aside(to.clone(), part.into(), now, tally);
            } else {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(part);
                let range = start..self.bytes.len();
                self.waiting.push_back(Reply { to: to.clone(), range });
            }
        }
        outgoing.clear();
    }

    /// Sends what the kernel takes. What it refuses for the peer's sake is counted and dropped; what
    /// it has no room for waits.
    fn send(&mut self, socket: &Socket, turn: &mut Turn) {
        while !self.waiting.is_empty() && turn.readiness.has(Readiness::WRITABLE) {
            match sys::send_batch(socket, Runs { replies: self, next: 0 }) {
                Ok(sent) => self.forget(sent, &mut turn.tally),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.no_room(&error, turn)
                }
                // The device may not be able to, whatever the kernel said: from now on, one by one.
                Err(_) if self.run_at(0) > 1 => self.joins = false,
                Err(error) => self.drop_first(&error, &mut turn.tally),
            }
        }
        if self.waiting.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT);
        }
    }

    /// How many of the replies from the `first` on can be one send: to one peer, of one size, but for
    /// the last one, which may be smaller.
    fn run_at(&self, first: usize) -> usize {
        let reply = &self.waiting[first];
        let size = reply.range.len();
        if !self.joins || size == 0 || size > JOINED_SIZE {
            return 1;
        }
        let most = JOINED.min(JOINED_TOTAL / size);
        let mut count = 1;
        while count < most
            && let Some(next) = self.waiting.get(first + count)
            && (1..=size).contains(&next.range.len())
            && next.range.start == self.waiting[first + count - 1].range.end
            && next.to == reply.to
        {
            count += 1;
            if next.range.len() < size {
                break;
            }
        }
        count
    }

    /// The first so many sends have gone.
    fn forget(&mut self, sends: usize, tally: &mut Tally) {
        for _ in 0..sends {
            let run = self.run_at(0);
            self.deaf.went(&self.waiting[0].to.address);
            for reply in self.waiting.drain(..run) {
                self.pending -= charge(reply.range.len());
                tally.replies += 1;
                tally.bytes_out += reply.range.len() as u64;
            }
        }
    }

    fn drop_first(&mut self, error: &io::Error, tally: &mut Tally) {
        if let Some(reply) = self.waiting.pop_front() {
            self.pending -= charge(reply.range.len());
            tally.unsent += 1;
            log::debug!("a reply to {} was not sent: {error}", peer_of(&reply.to.address));
        }
    }

    /// The kernel has no room. For a UDP socket that is its own buffer, and the poller will tell; for
    /// a Unix socket it is mostly the peer's queue: this peer waits, and the others go on.
    fn no_room(&mut self, error: &io::Error, turn: &mut Turn) {
        let Some(reply) = self.waiting.front().filter(|reply| reply.to.address.is_unix()) else {
            return turn.readiness.remove(Readiness::WRITABLE);
        };
        if self.deaf.patience(&reply.to.address, turn.now).is_zero() {
            return self.drop_first(error, &mut turn.tally);
        }
        let (to, now) = (reply.to.clone(), turn.now);
        // Those behind it are not to overtake it.
        for reply in std::mem::take(&mut self.waiting) {
            if reply.to == to {
                let bytes = self.bytes[reply.range].into();
                self.put_aside(reply.to, bytes, now, &mut turn.tally);
            } else {
                self.waiting.push_back(reply);
            }
        }
        if self.retry_at.is_none() {
            self.retry_at = Some(now + RETRY);
            turn.rearm();
        }
    }

    /// Puts a reply aside to be tried again soon; with too much aside it is lost, as datagrams are.
    fn put_aside(&mut self, to: Destination, bytes: Box<[u8]>, now: Instant, tally: &mut Tally) {
        let charge = charge(bytes.len());
        if self.aside_charge >= ASIDE_HIGH {
            self.pending -= charge;
            tally.unsent += 1;
            return;
        }
        self.aside_charge += charge;
        let aside = self.aside.entry(to.address.clone());
        let aside = aside.or_insert_with(|| Aside { to, replies: VecDeque::new() });
        aside.replies.push_back((now, bytes));
    }

    /// Tries those again that were put aside. One that has waited too long is lost.
    fn retry(&mut self, socket: &Socket, turn: &mut Turn) {
        let now = turn.now;
        let mut nobody = false;
        let mut aside = std::mem::take(&mut self.aside);
        aside.retain(|peer, Aside { to, replies }| {
            let mut full = nobody;
            while let Some((since, bytes)) = replies.front() {
                let sent = if full {
                    Err(io::ErrorKind::WouldBlock.into())
                } else {
                    sys::send_datagram(socket, to, bytes)
                };
                match sent {
                    Ok(()) => {
                        self.deaf.went(peer);
                        turn.tally.replies += 1;
                        turn.tally.bytes_out += bytes.len() as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        full = true;
                        nobody = nobody || sys::is_send_buffer_full(socket);
                        if now.duration_since(*since) < PATIENCE {
                            return true;
                        }
                        self.deaf.in_vain(peer, now, nobody);
                        turn.tally.unsent += 1;
                    }
                    Err(_) => turn.tally.unsent += 1,
                }
                let charge = charge(bytes.len());
                self.pending -= charge;
                self.aside_charge -= charge;
                replies.pop_front();
            }
            false
        });
        self.aside = aside;
        self.retry_at = (!self.aside.is_empty()).then(|| now + RETRY);
        turn.rearm();
    }
}

/// What is kept of a large batch's buffer, in bytes.
const KEPT: usize = 1 << 20;

/// The replies that wait, as sends.
struct Runs<'a> {
    replies: &'a Replies,
    next: usize,
}

impl<'a> Iterator for Runs<'a> {
    type Item = Send<'a>;

    fn next(&mut self) -> Option<Send<'a>> {
        let first = self.replies.waiting.get(self.next)?;
        let run = self.replies.run_at(self.next);
        let last = &self.replies.waiting[self.next + run - 1];
        self.next += run;
        Some(Send {
            to: &first.to,
            bytes: &self.replies.bytes[first.range.start..last.range.end],
            segment: (run > 1).then_some(first.range.len() as u16),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::conversation::Output;
    use crate::mailbox::Mailbox;

    /// A socket with two clients, and where their replies go.
    struct Stand {
        socket: Socket,
        clients: [UnixDatagram; 2],
        to: [Destination; 2],
        turn: Turn,
        replies: Replies,
        directory: PathBuf,
    }

    impl Drop for Stand {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.directory).unwrap();
        }
    }

    fn stand(name: &str) -> Stand {
        let directory = std::env::temp_dir().join(format!("stand-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let server = UnixDatagram::bind(directory.join("server")).unwrap();
        server.set_nonblocking(true).unwrap();
        let clients = ["one", "two"].map(|name| {
            let client = UnixDatagram::bind(directory.join(name)).unwrap();
            client.set_nonblocking(true).unwrap();
            client.send_to(b"hello", directory.join("server")).unwrap();
            client
        });
        let socket = Socket::from(std::os::fd::OwnedFd::from(server));
        let (mut batch, mut received) = (Batch::new(100), Vec::new());
        batch.receive(&socket, 2, &mut received).unwrap();
        let to = [received.remove(0).from, received.remove(0).from];
        let mut turn = Turn::new(Arc::new(Mailbox::new().unwrap()));
        turn.readiness.add(Readiness::WRITABLE);
        Stand { socket, clients, to, turn, replies: Replies::new(false), directory }
    }

    impl Stand {
        fn keep(&mut self, client: usize, bytes: &[u8]) {
            let Desk { outgoing, tally, now, .. } = &mut self.turn.desk;
            Output::new(&[], outgoing).put_datagram(bytes);
            self.replies.keep(outgoing, &[], self.to[client].clone(), *now, tally);
        }

        fn send(&mut self) {
            self.replies.send(&self.socket, &mut self.turn);
        }

        fn retry(&mut self) {
            self.replies.retry(&self.socket, &mut self.turn);
        }

        /// Makes the first client's queue full, and one more reply wait.
        fn fill(&mut self) {
            while self.replies.aside.is_empty() {
                self.keep(0, b"unread");
                self.send();
            }
        }

        fn received(&self, client: usize) -> Vec<Vec<u8>> {
            let mut buffer = [0; 100];
            let mut received = Vec::new();
            while let Ok(count) = self.clients[client].recv(&mut buffer) {
                received.push(buffer[..count].to_vec());
            }
            received
        }
    }

    #[test]
    fn what_is_put_aside_is_bounded_though_it_be_empty() {
        let mut stand = stand("bounded");
        stand.fill();
        for _ in 0..3 * ASIDE_HIGH / OVERHEAD {
            stand.keep(0, b"");
        }
        let aside: usize = stand.replies.aside.values().map(|aside| aside.replies.len()).sum();
        assert!(aside <= ASIDE_HIGH / OVERHEAD, "{aside} replies");
        assert_eq!(stand.turn.tally.unsent as usize, 3 * ASIDE_HIGH / OVERHEAD + 1 - aside);
        assert!(stand.replies.pending <= ASIDE_HIGH + OVERHEAD);
        stand.turn.now += PATIENCE;
        stand.retry();
        assert_eq!((stand.replies.pending, stand.replies.aside_charge), (0, 0));
    }

    #[test]
    fn a_peers_replies_keep_their_order_and_hold_up_nobody_elses() {
        let mut stand = stand("order");
        stand.fill();
        // As if the room had just gone: several for one, and one for another between them.
        stand.replies.aside.clear();
        (stand.replies.aside_charge, stand.replies.pending) = (0, 0);
        stand.keep(0, b"first");
        stand.keep(1, b"for another");
        stand.keep(0, b"second");
        stand.send();
        assert_eq!(stand.received(1), [b"for another"]);
        stand.keep(0, b"third");
        stand.send();
        assert!(stand.received(0).iter().all(|each| each == b"unread"));
        stand.retry();
        assert_eq!(stand.received(0), [&b"first"[..], b"second", b"third"]);
        assert_eq!(stand.replies.pending, 0);
    }

    #[test]
    fn who_was_waited_for_in_vain_is_heard_to_read_again() {
        let mut stand = stand("again");
        stand.fill();
        stand.turn.now += PATIENCE;
        stand.retry();
        assert_eq!(stand.turn.tally.unsent, 1);
        stand.keep(0, b"lost at once");
        stand.send();
        assert_eq!((stand.turn.tally.unsent, stand.replies.pending), (2, 0));
        stand.received(0);
        stand.keep(0, b"heard");
        stand.send();
        assert_eq!(stand.received(0), [b"heard"]);
        stand.fill();
        assert_eq!(stand.turn.tally.unsent, 2, "there is patience again");
    }
}
