//! A datagram socket in the slab: receives in batches, and sends the replies in batches.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::listener::Trouble;
use super::live::{Backing, Fate, Gate, Live, Readiness, Taker, Turn};
use crate::address::{Address, Peer};
use crate::conversation::Outgoing;
use crate::counters::Tally;
use crate::mailbox::Work;
use crate::sys::{self, Batch, Destination, Received, Send};
use crate::transport::peer_of;

/// How many datagrams are received before others come first.
const RECEIVE_BUDGET: usize = 128;

/// How many bytes of replies may wait; above it nothing is received.
const REPLIES_HIGH: usize = 4 << 20;

/// A Unix peer with a full queue does not show in the poller: it is tried again so often, for so
/// long.
const RETRY: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_millis(500);

/// How much may be put aside for such peers.
const PARKED_HIGH: usize = 1 << 20;

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
            let now = turn.now;
            self.replies.keep(&mut turn.outgoing, bytes, datagram.from, now);
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
            let now = turn.now;
            self.replies.keep(&mut turn.outgoing, &bytes, from, now);
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
        self.answerer.cut();
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
    /// How many bytes wait, those put aside included.
    pending: usize,
    /// Whether the kernel cuts one send into several datagrams.
    joins: bool,
    /// For Unix peers whose queues are full.
    parked: VecDeque<Parked>,
    parked_bytes: usize,
    /// When to try those again; the poller will not say.
    retry_at: Option<Instant>,
}

#[derive(Debug)]
struct Reply {
    to: Destination,
    range: Range<usize>,
}

#[derive(Debug)]
struct Parked {
    to: Destination,
    bytes: Vec<u8>,
    since: Instant,
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
            parked: VecDeque::new(),
            parked_bytes: 0,
            retry_at: None,
        }
    }

    fn keep(&mut self, outgoing: &mut Outgoing, input: &[u8], to: Destination, now: Instant) {
        for part in outgoing.parts(input) {
            self.pending += part.len();
            // A peer's datagrams keep their order.
            if self.parked.iter().any(|parked| parked.to == to) {
                self.parked_bytes += part.len() + 1;
                self.parked.push_back(Parked { to: to.clone(), bytes: part.to_vec(), since: now });
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
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.no_room(turn),
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
            for reply in self.waiting.drain(..run) {
                self.pending -= reply.range.len();
                tally.replies += 1;
                tally.bytes_out += reply.range.len() as u64;
            }
        }
    }

    fn drop_first(&mut self, error: &io::Error, tally: &mut Tally) {
        if let Some(reply) = self.waiting.pop_front() {
            self.pending -= reply.range.len();
            tally.unsent += 1;
            log::debug!("a reply to {} was not sent: {error}", peer_of(&reply.to.address));
        }
    }

    /// The kernel has no room. For a UDP socket that is its own buffer, and the poller will tell; for
    /// a Unix socket it is the peer's queue: this peer waits, and the others go on.
    fn no_room(&mut self, turn: &mut Turn) {
        match self.waiting.front() {
            Some(reply) if reply.to.address.is_unix() => {
                let bytes = self.bytes[reply.range.clone()].to_vec();
                let parked = Parked { to: reply.to.clone(), bytes, since: turn.now };
                self.waiting.pop_front();
                self.park(parked, turn);
            }
            _ => turn.readiness.remove(Readiness::WRITABLE),
        }
    }

    /// Puts a reply aside to be tried again soon; with too much aside it is lost, as datagrams are.
    fn park(&mut self, parked: Parked, turn: &mut Turn) {
        if self.parked_bytes >= PARKED_HIGH {
            self.pending -= parked.bytes.len();
            turn.tally.unsent += 1;
            return;
        }
        self.parked_bytes += parked.bytes.len() + 1;
        self.parked.push_back(parked);
        if self.retry_at.is_none() {
            self.retry_at = Some(turn.now + RETRY);
            turn.rearm();
        }
    }

    /// Tries those again that were put aside. One that has waited too long is lost.
    fn retry(&mut self, socket: &Socket, turn: &mut Turn) {
        self.retry_at = None;
        turn.rearm();
        let mut full: Vec<Destination> = Vec::new();
        for parked in std::mem::take(&mut self.parked) {
            self.parked_bytes -= parked.bytes.len() + 1;
            if full.contains(&parked.to) {
                self.park(parked, turn);
                continue;
            }
            match sys::send_datagram(socket, &parked.to, &parked.bytes) {
                Ok(()) => {
                    self.pending -= parked.bytes.len();
                    turn.tally.replies += 1;
                    turn.tally.bytes_out += parked.bytes.len() as u64;
                }
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && turn.now.duration_since(parked.since) < PATIENCE =>
                {
                    full.push(parked.to.clone());
                    self.park(parked, turn);
                }
                Err(_) => {
                    self.pending -= parked.bytes.len();
                    turn.tally.unsent += 1;
                }
            }
        }
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
