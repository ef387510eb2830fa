//! Closed loops over UDP: each client is a connected socket with `--depth` datagrams in flight.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};

use anyhow::{Result, bail};
use socket2::Socket;

use super::LoadArgs;
use super::pattern::Pattern;
use super::recorder::{Recorder, Report};
use crate::sys::{Batch, Epoll, Events};

/// A datagram that is not answered for this long counts as lost, and another one is sent.
const TIMEOUT: u64 = 200_000_000;

/// The number of datagrams per system call.
const AT_ONCE: usize = 32;

/// A datagram begins with its number.
const NUMBER: usize = size_of::<u64>();

const EVENTS: usize = 256;

/// Runs all clients until the window is over.
pub(super) fn run(args: &LoadArgs) -> Result<Report> {
    if args.size < NUMBER {
        bail!("a datagram carries its number: --size must be at least {NUMBER}");
    }
    let mut engine = Engine::connect(args)?;
    engine.run()?;
    Ok(engine.recorder.report())
}

struct Engine<'a> {
    args: &'a LoadArgs,
    epoll: Epoll,
    clients: Vec<Client>,
    outgoing: Batch,
    incoming: Batch,
    pattern: Pattern,
    recorder: Recorder,
    primed: usize,
}

struct Client {
    socket: Socket,
    /// The number of the next datagram to send.
    next: u64,
    /// The number and the time of each datagram in flight, oldest first.
    under_way: VecDeque<(u64, u64)>,
    is_primed: bool,
}

impl<'a> Engine<'a> {
    fn connect(args: &'a LoadArgs) -> Result<Self> {
        let epoll = Epoll::new()?;
        let mut clients = Vec::new();
        for index in 0..args.conns {
            let socket = args.to.socket()?;
            socket.connect(&args.to.socket_address()?)?;
            socket.set_nonblocking(true)?;
            epoll.add(&socket, index as u64)?;
            clients.push(Client { socket, next: 0, under_way: VecDeque::new(), is_primed: false });
        }
        Ok(Self {
            args,
            epoll,
            clients,
            outgoing: Batch::connected(AT_ONCE, args.size),
            incoming: Batch::connected(AT_ONCE, args.size + 1),
            pattern: Pattern::new(),
            recorder: Recorder::new(args)?,
            primed: 0,
        })
    }

    fn run(&mut self) -> Result<()> {
        for index in 0..self.clients.len() {
            self.fill_up(index, self.recorder.now());
        }
        let mut events = Events::with_capacity(EVENTS);
        let mut last_check = 0;
        loop {
            let now = self.recorder.now();
            if !self.recorder.proceed(now, self.primed, self.clients.len())? {
                return Ok(());
            }
            if now - last_check > TIMEOUT / 4 {
                last_check = now;
                self.give_up_on_the_lost(now);
            }
            self.epoll.wait_for(&mut events, self.args.longest_sleep())?;
            for event in events.iter() {
                self.turn(event.token as usize)?;
            }
        }
    }

    /// Receives until the socket is drained, and sends as many new datagrams.
    fn turn(&mut self, index: usize) -> Result<()> {
        loop {
            let received = match self.incoming.receive(&self.clients[index].socket) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => {
                    self.recorder.error();
                    0
                }
            };
            let now = self.recorder.now();
            if received > 0 {
                self.take_answers(index, now)?;
            }
            self.fill_up(index, now);
            if received < self.incoming.capacity() {
                return Ok(());
            }
        }
    }

    fn take_answers(&mut self, index: usize, now: u64) -> Result<()> {
        let client = &mut self.clients[index];
        if !client.is_primed {
            client.is_primed = true;
            self.primed += 1;
        }
        for datagram in self.incoming.datagrams() {
            let Some(number) = verify(datagram, self.args.size, index, &self.pattern) else {
                self.recorder.error();
                continue;
            };
            // A server with several threads may answer the second before the first. A datagram that
            // is no longer in flight has been counted as lost.
            let place = client.under_way.iter().position(|(asked, _)| *asked == number);
            if let Some((_, sent)) = place.and_then(|place| client.under_way.remove(place)) {
                self.recorder.answered(now - sent)?;
            }
        }
        Ok(())
    }

    /// Sends until `--depth` datagrams are in flight.
    fn fill_up(&mut self, index: usize, now: u64) {
        let client = &mut self.clients[index];
        loop {
            while client.under_way.len() < self.args.depth
                && self.outgoing.len() < self.outgoing.capacity()
                && self.recorder.may_send()
            {
                let datagram = self.outgoing.push(self.args.size);
                compose(datagram, client.next, index, &self.pattern);
                client.under_way.push_back((client.next, now));
                client.next += 1;
            }
            if !self.outgoing.is_pending() {
                return;
            }
            match self.outgoing.send(&client.socket) {
                Ok(()) => {}
                // A datagram that the socket refuses counts as sent, and later as lost.
                Err(error) => {
                    if !is_full(&error) {
                        self.recorder.error();
                    }
                    self.outgoing.clear();
                    return;
                }
            }
        }
    }

    fn give_up_on_the_lost(&mut self, now: u64) {
        for index in 0..self.clients.len() {
            let under_way = &mut self.clients[index].under_way;
            let is_late = |(_, sent): &(u64, u64)| now.saturating_sub(*sent) > TIMEOUT;
            let late = under_way.iter().take_while(|asked| is_late(asked)).count();
            if late > 0 {
                under_way.drain(..late); // oldest first
                self.recorder.lost(late as u64);
                self.fill_up(index, now);
            }
        }
    }
}

/// Writes datagram `number` of a client: the number, and its part of the pattern.
fn compose(datagram: &mut [u8], number: u64, client: usize, pattern: &Pattern) {
    let (head, body) = datagram.split_at_mut(NUMBER);
    head.copy_from_slice(&number.to_le_bytes());
    let position = position(number, client, pattern);
    body.copy_from_slice(pattern.slice(position..position + body.len() as u64));
}

/// The number of a datagram, if its content is that of [`compose`].
fn verify(datagram: &[u8], size: usize, client: usize, pattern: &Pattern) -> Option<u64> {
    let (head, body) = datagram.split_first_chunk::<NUMBER>()?;
    let number = u64::from_le_bytes(*head);
    let is_right =
        datagram.len() == size && pattern.matches(position(number, client, pattern), body);
    is_right.then_some(number)
}

fn position(number: u64, client: usize, pattern: &Pattern) -> u64 {
    pattern.start_of(client, number % (1 << 32))
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}
