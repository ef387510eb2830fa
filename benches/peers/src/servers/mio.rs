//! An echo on mio with the same structure as [`raw`](super::raw): the difference is the cost of
//! mio.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use ::mio::event::Source;
use ::mio::net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream};
use ::mio::{Events, Interest, Poll, Token};
use anyhow::Result;

use super::connection::{Connection, Readiness, Table, Turn};
use super::{DATAGRAM, DATAGRAMS_AT_ONCE, announce, echo_datagrams};
use crate::endpoint::{Endpoint, Transport};
use crate::sys::Batch;

const EVENTS: usize = 1024;

/// All interests at once: registrations never change.
const INTERESTS: Interest = Interest::READABLE.add(Interest::WRITABLE);

pub(super) fn serve(listen: &Endpoint, buffer: usize) -> Result<()> {
    let (socket, actual) = listen.bind()?;
    socket.set_nonblocking(true)?;
    announce(&actual)?;
    match listen.transport() {
        Transport::Tcp => serve_streams(TcpListener::from_std(socket.into()), buffer)?,
        Transport::Unix => serve_streams(UnixListener::from_std(socket.into()), buffer)?,
        Transport::Udp => serve_datagrams(UdpSocket::from_std(socket.into()))?,
    }
    Ok(())
}

/// The common interface of TCP and Unix listeners.
trait Listener: Source + AsRawFd {
    type Stream: Source + Read + Write + AsRawFd;

    fn accept(&self) -> io::Result<Self::Stream>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    fn accept(&self) -> io::Result<TcpStream> {
        TcpListener::accept(self).map(|(stream, _)| stream)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    fn accept(&self) -> io::Result<UnixStream> {
        UnixListener::accept(self).map(|(stream, _)| stream)
    }
}

fn serve_streams<L: Listener>(mut listener: L, buffer: usize) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let listener_token = token(listener.as_raw_fd());
    poll.registry().register(&mut listener, listener_token, Interest::READABLE)?;
    let mut events = Events::with_capacity(EVENTS);
    let mut connections = Table::new();
    let mut buffer = vec![0; buffer];
    loop {
        wait(&mut poll, &mut events)?;
        for event in &events {
            if event.token() == listener_token {
                accept_all(&poll, &listener, &mut connections)?;
                continue;
            }
            let fd = event.token().0 as RawFd;
            let Some(connection) = connections.get_mut(fd) else {
                continue;
            };
            let ready = Readiness {
                is_readable: event.is_readable() || event.is_read_closed(),
                is_read_closed: event.is_read_closed(),
            };
            let is_kept = match connection.turn(&mut buffer, ready) {
                Ok(Turn::Wait) => true,
                Ok(Turn::Again) => {
                    poll.registry().reregister(connection.stream(), token(fd), INTERESTS).is_ok()
                }
                Ok(Turn::Close) | Err(_) => false,
            };
            if !is_kept {
                connections.remove(fd);
            }
        }
    }
}

fn accept_all<L: Listener>(
    poll: &Poll,
    listener: &L,
    connections: &mut Table<L::Stream>,
) -> io::Result<()> {
    loop {
        match listener.accept() {
            Ok(mut stream) => {
                let token = token(stream.as_raw_fd());
                poll.registry().register(&mut stream, token, INTERESTS)?;
                connections.insert(Connection::new(stream));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

fn serve_datagrams(mut socket: UdpSocket) -> io::Result<()> {
    let mut poll = Poll::new()?;
    poll.registry().register(&mut socket, Token(0), INTERESTS)?;
    let mut events = Events::with_capacity(1);
    let mut batch = Batch::unconnected(DATAGRAMS_AT_ONCE, DATAGRAM);
    loop {
        wait(&mut poll, &mut events)?;
        echo_datagrams(&socket.as_fd(), &mut batch)?;
    }
}

fn wait(poll: &mut Poll, events: &mut Events) -> io::Result<()> {
    match poll.poll(events, None) {
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
        other => other,
    }
}

/// The token of a descriptor is its number.
fn token(fd: RawFd) -> Token {
    Token(fd as usize)
}
