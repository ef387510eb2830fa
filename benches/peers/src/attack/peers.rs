//! The connections of an attack.

use std::io::{self, ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use socket2::{Domain, Protocol, SockRef, Type};

use super::{Attack, AttackArgs, AttackReport, BOMB};
use crate::sys::{Epoll, Events, Socket, bind_without_port};

/// How often the connections act.
const TICK: Duration = Duration::from_millis(10);

/// How many connections are begun per tick.
const CONNECTS: usize = 200;

/// How many blocks a connection sends per tick.
const SENDS: usize = 4;

/// The size of a block of requests.
const BLOCK: usize = 64 << 10;

/// The pause between two bytes of [`Attack::SlowDrip`].
const DRIP: Duration = Duration::from_secs(1);

/// The receive buffer of a peer that reads nothing: so the output stays with the server.
const SMALL: usize = 4096;

/// The send buffer of a peer: so few bytes wait in the kernel of the machine that runs the attack.
const SEND_BUFFER: usize = 16 << 10;

const EVENTS: usize = 1024;

/// The first source address; a process uses the 65,536 from a number of its own.
const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 2, 0, 0);

/// One connection.
struct Peer {
    socket: Socket,
    is_connected: bool,
    /// How many bytes of its message it has sent.
    sent: usize,
    next: Instant,
}

/// The connections; `None` is to be connected.
pub(super) struct Peers<'a> {
    args: &'a AttackArgs,
    epoll: Epoll,
    peers: Vec<Option<Peer>>,
    vacant: Vec<usize>,
    /// What a connection sends, from the beginning.
    message: Vec<u8>,
    sources: Sources,
    open: u64,
    report: AttackReport,
}

impl<'a> Peers<'a> {
    pub(super) fn new(args: &'a AttackArgs) -> Result<Self> {
        let message = match args.attack {
            Attack::StalledReader => {
                let request = args.wire.message(&"x".repeat(1000));
                request.repeat(BLOCK / request.len())
            }
            Attack::FrameBomb => args.wire.part(BOMB / 2),
            Attack::SlowDrip => args.wire.part(4096),
            Attack::IdleCrowd => args.wire.message("hello"),
            _ => Vec::new(),
        };
        Ok(Peers {
            args,
            epoll: Epoll::new()?,
            peers: (0..args.conns).map(|_| None).collect(),
            vacant: (0..args.conns).rev().collect(),
            message,
            sources: Sources::new(),
            open: 0,
            report: AttackReport::default(),
        })
    }

    pub(super) fn attack(mut self, until: Instant) -> Result<AttackReport> {
        let mut events = Events::with_capacity(EVENTS);
        let mut next_tick = Instant::now();
        while Instant::now() < until {
            let left = next_tick.saturating_duration_since(Instant::now());
            self.epoll.wait_for(&mut events, left)?;
            for event in events.iter() {
                self.noted(event.token as usize, event.is_read_closed);
            }
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + TICK;
            }
        }
        Ok(self.report)
    }

    fn noted(&mut self, place: usize, is_closed: bool) {
        let Some(peer) = &mut self.peers[place] else { return };
        if !is_closed && !std::mem::replace(&mut peer.is_connected, true) {
            self.open += 1;
            self.report.connected += 1;
            self.report.most = self.report.most.max(self.open);
        }
        if is_closed {
            self.close(place);
        }
    }

    fn close(&mut self, place: usize) {
        if let Some(peer) = self.peers[place].take() {
            self.vacant.push(place);
            if peer.is_connected {
                self.open -= 1;
                self.report.closed += 1;
            }
        }
    }

    fn tick(&mut self) {
        for _ in 0..CONNECTS {
            let Some(place) = self.vacant.pop() else { break };
            // The system has no more descriptors or ports: it is tried again in the next tick.
            if self.connect(place).is_err() {
                self.vacant.push(place);
                break;
            }
        }
        if self.message.is_empty() {
            return;
        }
        let now = Instant::now();
        for place in 0..self.peers.len() {
            if self.peers[place].as_ref().is_some_and(|peer| peer.is_connected && peer.next <= now)
                && self.act(place, now).is_err()
            {
                self.close(place);
            }
        }
    }

    fn connect(&mut self, place: usize) -> io::Result<()> {
        let small = (self.args.attack == Attack::StalledReader).then_some(SMALL);
        let socket = connect(self.args.to, self.sources.next(), small)?;
        self.epoll.add(&socket, place as u64)?;
        let next = Instant::now();
        self.peers[place] = Some(Peer { socket, is_connected: false, sent: 0, next });
        Ok(())
    }

    fn act(&mut self, place: usize, now: Instant) -> io::Result<()> {
        let Some(peer) = &mut self.peers[place] else { return Ok(()) };
        let (length, sends, repeats) = match self.args.attack {
            Attack::SlowDrip => (1, 1, false),
            Attack::StalledReader => (usize::MAX, SENDS, true),
            _ => (usize::MAX, SENDS, false),
        };
        for _ in 0..sends {
            let rest = &self.message[peer.sent..];
            let sent = match peer.socket.write(&rest[..rest.len().min(length)]) {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            self.report.sent += sent as u64;
            peer.sent += sent;
            if repeats {
                peer.sent %= self.message.len();
            }
        }
        peer.next = match self.args.attack {
            Attack::SlowDrip => now + DRIP,
            _ if peer.sent == self.message.len() => now + Duration::from_secs(3600),
            _ => now,
        };
        Ok(())
    }
}

/// Connects and resets as fast as possible.
pub(super) fn flood(to: SocketAddr, until: Instant) -> Result<AttackReport> {
    let (mut report, mut sources) =
        (AttackReport { most: 1, ..Default::default() }, Sources::new());
    while Instant::now() < until {
        match connect(to, sources.next(), None) {
            Ok(socket) => {
                SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
                report.connected += 1;
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    Ok(report)
}

/// Begins a connection from this source address.
fn connect(to: SocketAddr, source: SocketAddr, buffer: Option<usize>) -> io::Result<Socket> {
    let socket = socket2::Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    if let Some(bytes) = buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    bind_without_port(&socket)?;
    socket.bind(&source.into())?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        other => other?,
    }
    Ok(Socket::from_nonblocking(socket))
}

/// Changing source addresses of the loopback network.
struct Sources(u32);

impl Sources {
    fn new() -> Self {
        Sources(std::process::id() << 8)
    }

    fn next(&mut self) -> SocketAddr {
        self.0 = self.0.wrapping_add(1);
        let number = self.0 & 0xFFFF;
        SocketAddr::new(Ipv4Addr::from_bits(FIRST_SOURCE.to_bits() + number).into(), 0)
    }
}
