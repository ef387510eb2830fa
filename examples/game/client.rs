//! A client of the game: it finds the server, joins, walks and sees. It waits for answers, so it runs in a
//! thread of its own.

use std::fmt::Display;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::protocol::{Notice, Place, Request, Seen, Token};

/// How long it waits for an answer before it asks again, and how often it asks.
const PATIENCE: Duration = Duration::from_millis(300);
const ATTEMPTS: u32 = 10;

/// A server that is silent for this time has gone.
const SILENCE: Duration = Duration::from_secs(3);

/// The sizes of a board that it takes from a server.
const BOARD: RangeInclusive<u16> = 1..=200;

/// No datagram of the server is longer.
const LONGEST: usize = 1500;

pub(crate) struct Client {
    socket: UdpSocket,
    token: Token,
    /// Its number among the players.
    pub(crate) number: u32,
    pub(crate) width: u16,
    pub(crate) height: u16,
    /// Where it was when it joined.
    pub(crate) start: Place,
    /// The count of its last `GO`.
    count: u64,
    /// The last tick that it has seen. Datagrams can overtake each other.
    tick: u64,
    last_heard: Instant,
}

impl Client {
    /// Joins the game of this server. The address may be that of a multicast group, which is asked on
    /// the loopback interface: the first server that answers is taken.
    pub(crate) fn join(server: SocketAddr, name: &str) -> io::Result<Self> {
        let any = match server {
            _ if server.ip().is_multicast() => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any)?;
        if server.ip().is_multicast() {
            SockRef::from(&socket).set_multicast_if_v4(&Ipv4Addr::LOCALHOST)?;
        }
        let (token, from) = ask(&socket, server, Request::Hello, |notice| match notice {
            Notice::Token(token) => Some(Ok(token)),
            _ => None,
        })?;
        socket.connect(from)?; // from now on it receives nothing of others
        let join = Request::Join { token, name };
        let ((number, width, height, start), _) =
            ask(&socket, from, join, |notice| match notice {
                Notice::Joined { number, width, height, at }
                    if BOARD.contains(&width) && BOARD.contains(&height) =>
                {
                    Some(Ok((number, width, height, at)))
                }
                Notice::Full => Some(Err(io::Error::other("the game is full"))),
                _ => None,
            })?;
        let last_heard = Instant::now();
        Ok(Client { socket, token, number, width, height, start, count: 0, tick: 0, last_heard })
    }

    /// Says where it wants to go. To be repeated: the datagram may be lost, and a player that says
    /// nothing is taken for one that has left.
    pub(crate) fn go(&mut self, to: Place) -> io::Result<()> {
        self.count += 1;
        self.say(Request::Go { token: self.token, count: self.count, to })
    }

    /// Waits for at most this time, more than 0, to see where everyone is.
    pub(crate) fn see(&mut self, wait: Duration) -> io::Result<Option<Vec<Seen>>> {
        match receive(&self.socket, wait)? {
            Some((Notice::See { tick, players }, _)) if tick > self.tick => {
                self.tick = tick;
                self.last_heard = Instant::now();
                Ok(Some(players))
            }
            _ if self.last_heard.elapsed() > SILENCE => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the server has gone"))
            }
            _ => Ok(None),
        }
    }

    fn say(&self, request: Request<'_>) -> io::Result<()> {
        self.socket.send(request.to_string().as_bytes())?;
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // If it is lost, the server sees the silence.
        let _ = self.say(Request::Leave { token: self.token });
    }
}

/// Sends a request until there is an answer to it. Returns the answer and where it came from.
fn ask<A>(
    socket: &UdpSocket,
    server: SocketAddr,
    request: impl Display,
    answer: impl Fn(Notice) -> Option<io::Result<A>>,
) -> io::Result<(A, SocketAddr)> {
    let request = request.to_string();
    for _ in 0..ATTEMPTS {
        match socket.peer_addr() {
            Ok(_) => socket.send(request.as_bytes())?,
            Err(_) => socket.send_to(request.as_bytes(), server)?,
        };
        let asked = Instant::now();
        while let Some(wait) = PATIENCE.checked_sub(asked.elapsed()).filter(|wait| !wait.is_zero())
        {
            if let Some((notice, from)) = receive(socket, wait)?
                && let Some(answer) = answer(notice)
            {
                return answer.map(|answer| (answer, from));
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer from udp://{server}")))
}

/// Waits for a datagram of the game for at most this time.
fn receive(socket: &UdpSocket, wait: Duration) -> io::Result<Option<(Notice, SocketAddr)>> {
    socket.set_read_timeout(Some(wait))?;
    let mut buffer = [0; LONGEST];
    match socket.recv_from(&mut buffer) {
        Ok((count, from)) => Ok(Notice::parse(&buffer[..count]).map(|notice| (notice, from))),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {
                Ok(None)
            }
            _ => Err(error),
        },
    }
}
