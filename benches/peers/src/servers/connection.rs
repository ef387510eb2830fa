//! One echoing connection under edge-triggered readiness, as `raw` and `mio` share it. No poller,
//! no registration.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

/// How often one connection may fill the read buffer before others get their turn.
const READS_PER_TURN: usize = 4;

/// A non-blocking stream and what could not be written to it yet.
pub(super) struct Connection<S> {
    stream: S,
    /// What the kernel refused to take. While it holds anything the peer's input is left unread, so
    /// it never exceeds one read buffer; when it is drained its memory is given back.
    unsent: Vec<u8>,
    /// How much of `unsent` has been written since.
    sent: usize,
}

/// What the poller tells of a connection, at the moment of the wait: what comes later makes a new
/// edge.
#[derive(Clone, Copy)]
pub(super) struct Readiness {
    /// There is something to read. If not, this is about room to write, and a read would be in
    /// vain.
    pub(super) is_readable: bool,
    /// The peer will send no more.
    pub(super) is_read_closed: bool,
}

/// What the caller has to do after a turn.
pub(super) enum Turn {
    /// Nothing: the next edge will come.
    Wait,
    /// Come back although no new edge may come: there may be more to read.
    Again,
    /// Drop the connection.
    Close,
}

impl<S: Read + Write> Connection<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, unsent: Vec::new(), sent: 0 }
    }

    pub(super) fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Reads what there is and writes it back at once.
    ///
    /// A short read means that the socket is drained: whatever comes later makes a new edge. Only
    /// the end of the stream does not, if its edge has been seen already: it is then read at once.
    ///
    /// # Errors
    ///
    /// Those of the socket; the connection is of no use any more.
    #[inline]
    pub(super) fn turn(&mut self, buffer: &mut [u8], ready: Readiness) -> io::Result<Turn> {
        let is_blocked = !self.unsent.is_empty() && !self.flush()?;
        if is_blocked || !ready.is_readable {
            return Ok(Turn::Wait);
        }
        for _ in 0..READS_PER_TURN {
            let length = match self.stream.read(buffer) {
                Ok(0) => return Ok(Turn::Close),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Wait),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let is_drained = length < buffer.len() && !ready.is_read_closed;
            if !self.send(&buffer[..length])? || is_drained {
                return Ok(Turn::Wait);
            }
        }
        Ok(Turn::Again)
    }

    /// Writes `bytes`, or keeps what does not fit; false if there is such a rest.
    #[inline]
    fn send(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let written = self.write(bytes)?;
        if written == bytes.len() {
            return Ok(true);
        }
        self.unsent = bytes[written..].to_vec();
        self.sent = 0;
        self.flush()
    }

    /// Writes what is left; true when nothing is.
    #[cold]
    fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.unsent.len() {
            match self.stream.write(&self.unsent[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.unsent = Vec::new();
        Ok(true)
    }

    /// One write, where a full socket is a write of nothing.
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.stream.write(bytes) {
            Ok(written) => Ok(written),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(0),
                _ => Err(error),
            },
        }
    }
}

/// All connections, found by their descriptor: the kernel hands out the smallest free number, so
/// the table is as small as any slab, and needs no free list.
///
/// **Invariant:** a token is never stale. A wait reports each descriptor once, and a turn closes
/// none but its own.
pub(super) struct Table<S>(Vec<Option<Connection<S>>>);

impl<S: AsRawFd> Table<S> {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn insert(&mut self, connection: Connection<S>) {
        let index = connection.stream.as_raw_fd() as usize;
        if index >= self.0.len() {
            self.0.resize_with(index + 1, || None);
        }
        self.0[index] = Some(connection);
    }

    #[inline]
    pub(super) fn get_mut(&mut self, fd: RawFd) -> Option<&mut Connection<S>> {
        self.0.get_mut(fd as usize)?.as_mut()
    }

    /// Forgets the connection, which closes it.
    pub(super) fn remove(&mut self, fd: RawFd) {
        self.0[fd as usize] = None;
    }
}
