//! The baseline: a hand-written, single-threaded, edge-triggered epoll loop with only what an echo
//! needs.
//!
//! A request costs one `recv` and one `send`, plus its share of an `epoll_wait`; a connection costs
//! one `accept4`, one `epoll_ctl` and one `close` in addition. `peers deterministic` verifies this,
//! and the comparison prints no ratios to a baseline that needs more.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use anyhow::Result;

use super::connection::{Connection, Readiness, Table, Turn};
use super::{DATAGRAM, DATAGRAMS_AT_ONCE, announce, echo_datagrams};
use crate::endpoint::{Endpoint, Transport};
use crate::sys::{Batch, Epoll, Events, Socket, accept};

/// Enough events for one turn of a busy loop; the next wait reports the others.
const EVENTS: usize = 1024;

pub(super) fn serve(listen: &Endpoint, buffer: usize) -> Result<()> {
    let (socket, actual) = listen.bind()?;
    socket.set_nonblocking(true)?;
    announce(&actual)?;
    match listen.transport() {
        Transport::Udp => serve_datagrams(socket.as_fd())?,
        Transport::Tcp | Transport::Unix => StreamServer::new(socket.as_fd(), buffer)?.run()?,
    }
    Ok(())
}

struct StreamServer<'a> {
    listener: BorrowedFd<'a>,
    epoll: Epoll,
    connections: Table<Socket>,
    /// Shared by all connections: an idle connection has no buffer.
    buffer: Vec<u8>,
}

impl<'a> StreamServer<'a> {
    fn new(listener: BorrowedFd<'a>, buffer: usize) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(listener, token(listener.as_raw_fd()))?;
        Ok(Self { listener, epoll, connections: Table::new(), buffer: vec![0; buffer] })
    }

    fn run(&mut self) -> io::Result<()> {
        let listener = token(self.listener.as_raw_fd());
        let mut events = Events::with_capacity(EVENTS);
        loop {
            self.epoll.wait(&mut events)?;
            for event in events.iter() {
                if event.token == listener {
                    self.accept_all()?;
                } else {
                    let ready = Readiness {
                        is_readable: event.is_readable,
                        is_read_closed: event.is_read_closed,
                    };
                    self.turn(event.token as RawFd, ready);
                }
            }
        }
    }

    fn accept_all(&mut self) -> io::Result<()> {
        loop {
            match accept(self.listener) {
                Ok(socket) => {
                    self.epoll.add(&socket, token(socket.as_raw_fd()))?;
                    self.connections.insert(Connection::new(socket));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }

    #[inline]
    fn turn(&mut self, fd: RawFd, ready: Readiness) {
        let Some(connection) = self.connections.get_mut(fd) else {
            return;
        };
        let is_kept = match connection.turn(&mut self.buffer, ready) {
            Ok(Turn::Wait) => true,
            Ok(Turn::Again) => self.epoll.rearm(connection.stream(), token(fd)).is_ok(),
            Ok(Turn::Close) | Err(_) => false,
        };
        if !is_kept {
            self.connections.remove(fd);
        }
    }
}

fn serve_datagrams(socket: BorrowedFd<'_>) -> io::Result<()> {
    let epoll = Epoll::new()?;
    epoll.add(socket, token(socket.as_raw_fd()))?;
    let mut events = Events::with_capacity(1);
    let mut batch = Batch::unconnected(DATAGRAMS_AT_ONCE, DATAGRAM);
    loop {
        epoll.wait(&mut events)?;
        echo_datagrams(&socket, &mut batch)?;
    }
}

/// The token of a descriptor is its number.
fn token(fd: RawFd) -> u64 {
    fd as u64
}
