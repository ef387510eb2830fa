//! One echo connection with edge-triggered readiness, shared by `raw` and `mio`, without a poller.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

/// How often one connection may fill the read buffer before others are served.
const READS_PER_TURN: usize = 4;

/// A non-blocking stream and its unsent output.
pub(super) struct Connection<S> {
    stream: S,
    /// Output that the kernel did not accept. While there is any, the peer is not read, so it never
    /// exceeds one read buffer; when it is drained, its memory is freed.
    unsent: Vec<u8>,
    /// How many bytes of `unsent` have been written.
    sent: usize,
}

/// The readiness of a connection at the moment of the wait; later changes cause a new event.
#[derive(Clone, Copy)]
pub(super) struct Readiness {
    /// There is input. Otherwise the event reports only room for output.
    pub(super) is_readable: bool,
    /// The peer has shut down its sending direction.
    pub(super) is_read_closed: bool,
}

/// What the caller does after a turn.
pub(super) enum Turn {
    /// Nothing: the next event will come.
    Wait,
    /// Call again without a new event: more input may be available.
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

    /// Reads the available input and writes it back.
    ///
    /// A short read means that the socket is drained: later input causes a new event. The end of
    /// the stream does not, if its event has been seen already: it is then read at once.
    ///
    /// # Errors
    ///
    /// Those of the socket; the connection must be dropped.
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

    /// Writes `bytes` and keeps the rest that does not fit; false if there is a rest.
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

    /// Writes the unsent output; true when none is left.
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

    /// One write; with a full socket, it writes 0 bytes.
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

/// All connections, indexed by their descriptor: the kernel assigns the smallest free number, so
/// the table is as small as a slab, without a free list.
///
/// **Invariant:** a token is never stale. A wait reports each descriptor once, and a turn closes
/// only its own connection.
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

    /// Removes the connection, which closes it.
    pub(super) fn remove(&mut self, fd: RawFd) {
        self.0[fd as usize] = None;
    }
}
