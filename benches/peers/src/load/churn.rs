//! Clients that connect, send one message, receive it back and close: the cost of a connection.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;

use super::LoadArgs;
use super::pattern::Pattern;
use super::recorder::{Recorder, Report};
use crate::endpoint::Endpoint;
use crate::sys::{Epoll, Events, Socket, bind_without_port};

/// A client without an answer for this long fails: a lost segment would otherwise block its slot
/// for seconds.
const TIMEOUT: u64 = 3_000_000_000;

const EVENTS: usize = 256;

/// Keeps `--conns` connections open at a time.
pub(super) fn run(args: &LoadArgs) -> Result<Report> {
    let mut churn = Churn {
        args,
        epoll: Epoll::new()?,
        clients: Vec::new(),
        sources: Sources::new(&args.to),
        pattern: args.pattern()?,
        buffer: vec![0; args.size + 1],
        recorder: Recorder::new(args)?,
        answered: 0,
    };
    churn.run()?;
    Ok(churn.recorder.report())
}

struct Churn<'a> {
    args: &'a LoadArgs,
    epoll: Epoll,
    /// The slots of the clients. When a client is done, the next one takes its slot; `None` when no
    /// more may start.
    clients: Vec<Option<Client>>,
    sources: Sources,
    pattern: Pattern,
    buffer: Vec<u8>,
    recorder: Recorder,
    answered: usize,
}

/// One connection. Positions are those of `streams.rs`.
struct Client {
    socket: Socket,
    started: u64,
    sent: u64,
    received: u64,
    end: u64,
}

/// The result of one turn of a client.
enum Outcome {
    Waiting,
    Answered,
    Failed,
}

impl Churn<'_> {
    fn run(&mut self) -> Result<()> {
        for place in 0..self.args.conns {
            self.clients.push(None);
            self.start(place)?;
        }
        let mut events = Events::with_capacity(EVENTS);
        let mut last_check = 0;
        loop {
            let now = self.recorder.now();
            let answered = self.answered.min(self.args.conns);
            if !self.recorder.proceed(now, answered, self.args.conns)? {
                return Ok(());
            }
            if now - last_check > TIMEOUT / 4 {
                last_check = now;
                self.give_up_on_the_silent(now)?;
            }
            self.epoll.wait_for(&mut events, self.args.longest_sleep())?;
            for event in events.iter() {
                self.turn(event.token as usize)?;
            }
        }
    }

    /// Connects the next client of this slot. On loopback the connection is established when
    /// `connect` returns, although it returns `EINPROGRESS`: the message is sent at once, and only
    /// a full backlog makes it wait for an event.
    fn start(&mut self, place: usize) -> Result<()> {
        if !self.recorder.may_send() {
            self.clients[place] = None;
            return Ok(());
        }
        let endpoint = &self.args.to;
        let socket = endpoint.socket()?;
        socket.set_nonblocking(true)?;
        if let Some(source) = self.sources.next() {
            bind_without_port(&socket)?;
            socket.bind(&source.into())?;
        }
        let started = self.recorder.now();
        match socket.connect(&endpoint.socket_address()?) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            other => other?,
        }
        let socket = Socket::from_nonblocking(socket);
        self.epoll.add(&socket, place as u64)?;
        let start = self.pattern.start_of(place, started);
        let client = self.clients[place].insert(Client {
            socket,
            started,
            sent: start,
            received: start,
            end: start + self.args.size as u64,
        });
        // The client's event reports the error again.
        let _ = client.send(&self.pattern);
        Ok(())
    }

    fn turn(&mut self, place: usize) -> Result<()> {
        let Some(client) = &mut self.clients[place] else {
            return Ok(());
        };
        match client.turn(&mut self.buffer, &self.pattern) {
            Outcome::Waiting => return Ok(()),
            Outcome::Answered => {
                let latency = self.recorder.now() - client.started;
                self.recorder.answered(latency)?;
                self.answered += 1;
            }
            Outcome::Failed => self.recorder.error(),
        }
        self.start(place)
    }

    fn give_up_on_the_silent(&mut self, now: u64) -> Result<()> {
        for place in 0..self.clients.len() {
            let silent = |client: &Client| now - client.started > TIMEOUT;
            if self.clients[place].as_ref().is_some_and(silent) {
                self.recorder.error();
                self.start(place)?;
            }
        }
        Ok(())
    }
}

impl Client {
    fn turn(&mut self, buffer: &mut [u8], pattern: &Pattern) -> Outcome {
        if self.send(pattern).is_err() {
            return Outcome::Failed;
        }
        while self.received < self.end {
            let length = match self.socket.read(buffer) {
                Ok(0) => return Outcome::Failed,
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Outcome::Waiting,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Outcome::Failed,
            };
            let end = self.received + length as u64;
            if end > self.end || !pattern.matches(self.received, &buffer[..length]) {
                return Outcome::Failed;
            }
            self.received = end;
        }
        Outcome::Answered
    }

    fn send(&mut self, pattern: &Pattern) -> io::Result<()> {
        while self.sent < self.end {
            match self.socket.write(pattern.slice(self.sent..self.end)) {
                Ok(written) => self.sent += written as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Changing source addresses, so that the ports in TIME_WAIT are spread over many addresses: the
/// 28,000 ports of one address are used up within a second.
struct Sources {
    /// Whether the server is on the IPv4 loopback network, the only one with so many addresses.
    is_usable: bool,
    next: u32,
}

impl Sources {
    /// 127.1.0.0 to 127.1.15.255, repeated.
    const FIRST: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 0);
    const COUNT: u32 = 4096;

    fn new(endpoint: &Endpoint) -> Self {
        let is_usable = match endpoint {
            Endpoint::Tcp(address) => matches!(address.ip(), IpAddr::V4(ip) if ip.is_loopback()),
            _ => false,
        };
        Self {
            is_usable,
            next: std::process::id() % Self::COUNT, // consecutive runs start at different addresses
        }
    }

    fn next(&mut self) -> Option<SocketAddr> {
        self.next = (self.next + 1) % Self::COUNT;
        let ip = Ipv4Addr::from_bits(Self::FIRST.to_bits() + self.next);
        self.is_usable.then(|| SocketAddr::new(ip.into(), 0))
    }
}
