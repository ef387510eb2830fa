//! Clients of a server. Each knows what it must receive.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use socket2::{Domain, SockAddr, Socket, Type};
use socketserver::Endpoint;

use crate::random::Random;
use crate::server::{BUSY, Format, LONGEST, LONGEST_LINE, MOST_CONNECTIONS};

/// A client that receives neither a byte nor an end for so long reports a fault.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a client has done.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Done {
    pub(crate) connections: u64,
    /// The bytes that were received and checked.
    pub(crate) bytes: u64,
    pub(crate) datagrams: u64,
    pub(crate) lost_datagrams: u64,
    pub(crate) turned_away: u64,
    pub(crate) cut_by_limit: u64,
    /// Connections that ended early, where that is allowed.
    pub(crate) early: u64,
}

impl Done {
    pub(crate) fn add(&mut self, more: Done) {
        self.connections += more.connections;
        self.bytes += more.bytes;
        self.datagrams += more.datagrams;
        self.lost_datagrams += more.lost_datagrams;
        self.turned_away += more.turned_away;
        self.cut_by_limit += more.cut_by_limit;
        self.early += more.early;
    }
}

pub(crate) fn address_of(url: &str) -> Result<(Domain, SockAddr)> {
    Ok(match url.parse()? {
        Endpoint::Tcp { host, port } | Endpoint::Udp { host, port } => {
            let address = SocketAddr::new(host.parse()?, port);
            (Domain::for_address(address), address.into())
        }
        Endpoint::Unix(path) | Endpoint::UnixDatagram(path) => {
            (Domain::UNIX, SockAddr::unix(path)?)
        }
        other => bail!("{other}"),
    })
}

pub(crate) fn connect(url: &str) -> Result<Socket> {
    let (domain, address) = address_of(url)?;
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    if domain != Domain::UNIX {
        socket.set_tcp_nodelay(true)?;
    }
    socket.connect(&address)?;
    Ok(socket)
}

/// How a client ends its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It shuts down its sending direction, and reads until the server closes.
    HalfClose,
    /// It reads its last reply, and closes.
    Close,
    /// It closes in the middle.
    Drop,
    /// It resets in the middle.
    Reset,
}

/// How fast a client sends and receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Fast,
    /// It sends a byte or a few at a time.
    Drips,
    /// Its buffers are small, and it pauses between reads.
    ReadsSlowly,
}

/// What one client of a stream does.
#[derive(Debug)]
pub(crate) struct Talk {
    end: End,
    pace: Pace,
    /// What it sends and receives: the frames of all messages.
    stream: Vec<u8>,
    sent: usize,
    received: usize,
}

impl Talk {
    pub(crate) fn draw(random: &mut Random, format: Format) -> Self {
        const ENDS: [End; 5] = [End::HalfClose, End::HalfClose, End::Close, End::Drop, End::Reset];
        const PACES: [Pace; 5] =
            [Pace::Fast, Pace::Fast, Pace::Fast, Pace::Drips, Pace::ReadsSlowly];
        let end = ENDS[random.below(5) as usize];
        let pace = PACES[random.below(5) as usize];
        let longest = if pace == Pace::Drips { 100 } else { LONGEST };
        let mut stream = Vec::new();
        for _ in 0..1 + random.below(8) {
            put_message(&mut stream, random, format, longest);
        }
        let all = stream.len();
        let is_whole = matches!(end, End::HalfClose | End::Close);
        let mut part = || if is_whole { all } else { random.below(all as u64 + 1) as usize };
        Talk { end, pace, sent: part(), received: part(), stream }
    }

    /// A short one that must succeed.
    pub(crate) fn probe(format: Format) -> Self {
        let mut stream = Vec::new();
        put_message(&mut stream, &mut Random::of(&[1]), format, 100);
        let all = stream.len();
        Talk { end: End::HalfClose, pace: Pace::Fast, sent: all, received: all, stream }
    }

    fn is_whole(&self) -> bool {
        matches!(self.end, End::HalfClose | End::Close)
    }

    /// Runs the client. `may_end`: the connection may end early. An error describes what is wrong.
    pub(crate) fn carry_out(
        &self,
        url: &str,
        random: &mut Random,
        may_end: impl Fn() -> bool,
    ) -> Result<Done> {
        let socket = match connect(url) {
            Ok(socket) => socket,
            Err(_) if may_end() => return Ok(Done { early: 1, ..Done::default() }),
            Err(error) => bail!("{url}: cannot connect: {error}"),
        };
        if self.pace == Pace::ReadsSlowly {
            socket.set_recv_buffer_size(64 << 10)?;
            socket.set_send_buffer_size(64 << 10)?;
        }
        if !self.is_whole() {
            // Half a frame gets no reply.
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        }
        let mut writing = Random::of(&[random.next()]);
        let ((received, read), written) = thread::scope(|scope| {
            let writer = scope.spawn(|| self.write(&socket, &mut writing));
            let read = self.read(&socket, random);
            if !matches!(read.1, Reading::Complete) || !self.is_whole() {
                let _ = socket.shutdown(Shutdown::Both); // ends the writer
            }
            (read, writer.join().unwrap_or_else(|_| Err(io::Error::other("a panic"))))
        });
        if self.end == End::Reset {
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
        let mut done = Done { connections: 1, bytes: received as u64, ..Done::default() };
        match (read, written) {
            (Reading::Wrong(what), _) => bail!("{url}: {what} ({})", self.what()),
            (Reading::Complete, Ok(())) => {}
            _ if !self.is_whole() => {}
            _ if may_end() => done.early = 1,
            (Reading::Ended(what), _) => {
                bail!("{url}: {what} at {received} of {} ({})", self.received, self.what())
            }
            (_, Err(error)) => bail!("{url}: cannot send: {error} ({})", self.what()),
        }
        Ok(done)
    }

    fn what(&self) -> String {
        format!("{:?}, {:?}, sends {} of {}", self.end, self.pace, self.sent, self.stream.len())
    }

    fn write(&self, mut socket: &Socket, random: &mut Random) -> io::Result<()> {
        let mut rest = &self.stream[..self.sent];
        let piece = if self.pace == Pace::Drips { 4 } else { LONGEST };
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(1 + random.size(piece)));
            socket.write_all(now)?;
            rest = later;
            if self.pace == Pace::Drips {
                thread::sleep(Duration::from_micros(random.below(4000)));
            }
        }
        if self.end == End::HalfClose { socket.shutdown(Shutdown::Write) } else { Ok(()) }
    }

    fn read(&self, mut socket: &Socket, random: &mut Random) -> (usize, Reading) {
        let mut buffer = vec![0; 64 << 10];
        let mut at = 0;
        while at < self.received {
            let most = (1 + random.size(buffer.len() - 1)).min(self.received - at);
            let count = match socket.read(&mut buffer[..most]) {
                Ok(count) if count > 0 => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock && self.is_whole() => {
                    return (at, Reading::Wrong(format!("no byte after {at} for {PATIENCE:?}")));
                }
                ended => return (at, Reading::Ended(format!("{ended:?}"))),
            };
            let mut pairs = buffer[..count].iter().zip(&self.stream[at..]);
            if let Some(first) = pairs.position(|(is, expected)| is != expected) {
                let what = format!("byte {} is wrong: {}", at + first, buffer[first]);
                return (at, Reading::Wrong(what));
            }
            at += count;
            if self.pace == Pace::ReadsSlowly {
                thread::sleep(Duration::from_micros(random.below(3000)));
            }
        }
        if self.end != End::HalfClose {
            return (at, Reading::Complete);
        }
        let reading = match socket.read(&mut buffer) {
            Ok(0) => Reading::Complete,
            Ok(more) => Reading::Wrong(format!("{more} bytes more than were sent")),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Reading::Wrong(format!("no end for {PATIENCE:?}"))
            }
            Err(error) => Reading::Ended(error.to_string()),
        };
        (at, reading)
    }
}

enum Reading {
    Complete,
    /// The connection has ended early.
    Ended(String),
    Wrong(String),
}

fn put_message(stream: &mut Vec<u8>, random: &mut Random, format: Format, longest: usize) {
    let size = random.size(longest);
    if format == Format::Prefixed {
        stream.extend((size as u32).to_be_bytes());
    }
    let lowest = if format == Format::Lines { b'\r' + 1 } else { 0 };
    stream.extend((0..size).map(|_| (random.next() as u8).max(lowest)));
    if format == Format::Lines {
        stream.push(b'\n');
    }
}

/// Reaches a limit of the listener that has some: the server closes the connection, or turns it away.
pub(crate) fn reach_limit(
    url: &str,
    random: &mut Random,
    may_end: impl Fn() -> bool,
) -> Result<Done> {
    match random.below(4) {
        0 => flood(url, may_end),
        1 => expect_cut(url, &[b'x'; LONGEST_LINE + 2], may_end),
        2 => expect_cut(url, b"the beginning of a line", may_end),
        _ => expect_cut(url, b"", may_end),
    }
}

/// Sends what is no line; the server ends the connection.
fn expect_cut(url: &str, bytes: &[u8], may_end: impl Fn() -> bool) -> Result<Done> {
    let mut done = Done { connections: 1, ..Done::default() };
    let Ok(mut socket) = connect(url) else {
        return if may_end() { Ok(done) } else { bail!("{url}: cannot connect") };
    };
    let _ = socket.write_all(bytes); // the server may have turned it away already
    let mut reply = Vec::new();
    match socket.read_to_end(&mut reply) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            bail!("{url}: a limit does not end it")
        }
        _ if reply == BUSY => done.turned_away = 1,
        _ if reply.is_empty() => done.cut_by_limit = 1,
        _ => bail!("{url}: wrong bytes at a limit: {}", reply.escape_ascii()),
    }
    Ok(done)
}

/// Opens twice as many connections as the listener may have; each is served, or told that the server
/// is full.
fn flood(url: &str, may_end: impl Fn() -> bool) -> Result<Done> {
    let mut done = Done::default();
    let mut sockets = Vec::new();
    for _ in 0..2 * MOST_CONNECTIONS {
        match connect(url) {
            Ok(socket) => sockets.push(socket),
            Err(_) if may_end() => {}
            Err(error) => bail!("{url}: cannot connect: {error}"),
        }
    }
    for (number, mut socket) in sockets.into_iter().enumerate() {
        done.connections += 1;
        let line = format!("line {number}\n");
        let _ = socket.write_all(line.as_bytes());
        let _ = socket.shutdown(Shutdown::Write);
        let mut reply = Vec::new();
        let end = socket.read_to_end(&mut reply);
        done.bytes += reply.len() as u64;
        match end {
            Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("{url}: no reply"),
            Ok(_) if reply == line.as_bytes() => {}
            _ if reply == BUSY => done.turned_away += 1,
            // The idle timeout has passed while it waited for its turn, or the reset of a connection
            // that was turned away has come before its bytes were read.
            _ if reply.is_empty() => done.cut_by_limit += 1,
            _ => bail!("{url}: wrong bytes: {}", reply.escape_ascii()),
        }
    }
    Ok(done)
}

/// Sends some datagrams, one after the other, and expects each back. None is lost, unless `may_lose`.
pub(crate) fn exchange_datagrams(
    url: &str,
    own: PathBuf,
    random: &mut Random,
    may_lose: impl Fn() -> bool,
) -> Result<Done> {
    let (domain, server) = address_of(url)?;
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let is_unix = domain == Domain::UNIX;
    if is_unix {
        let _ = std::fs::remove_file(&own);
        socket.bind(&SockAddr::unix(&own)?)?;
    }
    let mut done = Done::default();
    let mut buffer = vec![0; 65_536];
    for number in 0..8u64 {
        let mut datagram = number.to_be_bytes().to_vec();
        let size = random.size(if is_unix { 60_000 } else { 8_000 });
        datagram.extend((0..size).map(|_| random.next() as u8));
        if let Err(error) = socket.send_to(&datagram, &server) {
            if may_lose() {
                break;
            }
            bail!("{url}: cannot send a datagram: {error}");
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match (&socket).read(&mut buffer) {
                Ok(count) if buffer[..count] == datagram => done.datagrams += 1,
                // The late reply to an earlier one.
                Ok(8..) if buffer[..8] < number.to_be_bytes()[..] => continue,
                Ok(count) => bail!("{url}: a wrong datagram of {count} bytes"),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) if may_lose() => done.lost_datagrams += 1,
                // A server that serves one request at a time may be busy.
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    continue;
                }
                Err(error) => {
                    bail!("{url}: datagram {number} of {} bytes: {error}", datagram.len())
                }
            }
            break;
        }
        done.bytes += datagram.len() as u64;
    }
    if is_unix {
        let _ = std::fs::remove_file(&own);
    }
    Ok(done)
}
