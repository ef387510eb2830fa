//! A simulated connection: what is on its way in both directions, and both of its ends.

use std::collections::VecDeque;

use crate::sys::simulated::bits;

/// How a connection has ended, as its client sees it: see
/// [`Client::closed_by_server`](super::Client::closed_by_server).
///
/// ```
/// use socketserver::testing::{self, StreamEnd};
/// use socketserver::{Server, handler_fn};
///
/// testing::quiet(|world| {
///     let mut server = Server::tcp("127.0.0.1:9999")
///         .and_then(|builder| builder.serve(|_| handler_fn(|_, cx| { cx.abort(); Ok(()) })))
///         .unwrap();
///     let mut sim = world.start(&mut server);
///     let client = sim.connect();
///     client.send(b"hello");
///     sim.settle();
///     assert_eq!(client.closed_by_server(), Some(StreamEnd::Reset));
/// });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamEnd {
    /// The end of the output: the server has sent all of it, and has closed its side.
    Eof,
    /// A reset: output may be missing.
    Reset,
    /// Nobody listens.
    Refused,
}

/// What is on its way to the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet {
    Data(VecDeque<u8>),
    /// The client sends no more.
    Fin,
    /// The client of a Unix socket has closed it: it does not receive either.
    HangUp,
    Reset,
}

/// The end of a connection at the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerEnd {
    /// Not accepted yet.
    Queued,
    /// The number of its socket.
    Open(usize),
    Closed,
}

/// A simulated connection.
#[derive(Debug)]
pub(super) struct FakeStream {
    pub(super) is_unix: bool,
    pub(super) server: ServerEnd,
    pub(super) to_server: VecDeque<Packet>,
    /// The next delivery is in the agenda; one for each direction.
    pub(super) to_server_planned: bool,
    pub(super) to_client_planned: bool,
    /// Input that has arrived at the server and has not been read.
    pub(super) input: VecDeque<u8>,
    pub(super) input_capacity: usize,
    pub(super) input_ended: bool,
    pub(super) hung_up: bool,
    /// A reset has arrived at the server.
    pub(super) failed: bool,
    /// The error that the next call on the socket of the server returns.
    pub(super) error: Option<i32>,
    /// Output that the client has not acknowledged.
    pub(super) output: VecDeque<u8>,
    pub(super) output_capacity: usize,
    /// A send had no room for all of its bytes: an event follows when there is room.
    pub(super) lacks_room: bool,
    /// The server sends no more after its output.
    pub(super) is_shut: bool,
    /// The server has closed a Unix socket with unread input: the client gets an error at the end.
    pub(super) ends_with_reset: bool,
    pub(super) resets_on_close: bool,
    /// Bytes at the client that it has not read.
    pub(super) unread: VecDeque<u8>,
    pub(super) client_capacity: usize,
    pub(super) is_reading: bool,
    pub(super) received: Vec<u8>,
    pub(super) end: Option<StreamEnd>,
    pub(super) client_sends: bool,
    pub(super) client_is_open: bool,
    /// How many bytes the server has read in this turn, and in all.
    pub(super) read_in_turn: usize,
    pub(super) read: u64,
    pub(super) sent: u64,
}

/// Takes the first `count` bytes.
pub(super) fn move_bytes(from: &mut VecDeque<u8>, count: usize, mut to: impl FnMut(&[u8])) {
    let (first, second) = from.as_slices();
    let of_first = count.min(first.len());
    to(&first[..of_first]);
    to(&second[..count - of_first]);
    from.drain(..count);
}

impl FakeStream {
    pub(super) fn new(is_unix: bool, capacities: [usize; 3]) -> Self {
        let [input_capacity, output_capacity, client_capacity] = capacities;
        FakeStream {
            is_unix,
            server: ServerEnd::Queued,
            to_server: VecDeque::new(),
            to_server_planned: false,
            to_client_planned: false,
            input: VecDeque::new(),
            input_capacity,
            input_ended: false,
            hung_up: false,
            failed: false,
            error: None,
            output: VecDeque::new(),
            output_capacity,
            lacks_room: false,
            is_shut: false,
            ends_with_reset: false,
            resets_on_close: false,
            unread: VecDeque::new(),
            client_capacity,
            is_reading: true,
            received: Vec::new(),
            end: None,
            client_sends: true,
            client_is_open: true,
            read_in_turn: 0,
            read: 0,
            sent: 0,
        }
    }

    /// The present state of the socket of the server, in the bits of epoll(7).
    pub(super) fn state(&self) -> u32 {
        let bit = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
        let gone = self.failed || self.hung_up || (self.input_ended && self.is_shut);
        bit(!self.input.is_empty() || self.input_ended || self.failed, bits::IN)
            | bit(self.is_writable(), bits::OUT)
            | bit(self.input_ended || self.failed, bits::RDHUP)
            | bit(gone, bits::HUP)
            | bit(self.error.is_some(), bits::ERR)
    }

    /// As Linux defines it: at least a third of the buffer is free.
    pub(super) fn is_writable(&self) -> bool {
        self.failed || self.output.len() * 3 <= self.output_capacity * 2
    }

    /// Whether the next packet can arrive at the server.
    pub(super) fn can_deliver_to_server(&self) -> bool {
        match self.to_server.front() {
            None => false,
            Some(Packet::Data(_)) => {
                self.server == ServerEnd::Closed || self.input.len() < self.input_capacity
            }
            Some(Packet::Fin | Packet::HangUp | Packet::Reset) => true,
        }
    }

    /// Whether output, or its end, can arrive at the client.
    pub(super) fn can_deliver_to_client(&self) -> bool {
        if self.output.is_empty() {
            return self.is_shut && self.end.is_none();
        }
        !self.client_is_open || self.client_room() > 0
    }

    pub(super) fn client_room(&self) -> usize {
        match self.is_reading {
            true => usize::MAX,
            false => self.client_capacity - self.unread.len().min(self.client_capacity),
        }
    }

    /// The next packet arrives at the server. Returns the bits that change.
    pub(super) fn deliver_to_server(&mut self) -> u32 {
        match self.to_server.pop_front() {
            None => 0,
            Some(Packet::Data(_)) if self.server == ServerEnd::Closed => {
                self.reset_client(false);
                0
            }
            Some(Packet::Data(mut data)) => {
                let room = self.input_capacity - self.input.len();
                let count = data.len().min(room);
                move_bytes(&mut data, count, |bytes| self.input.extend(bytes));
                if !data.is_empty() {
                    self.to_server.push_front(Packet::Data(data));
                }
                bits::IN
            }
            Some(Packet::Fin) => {
                self.input_ended = true;
                bits::IN
            }
            Some(Packet::HangUp) => {
                self.input_ended = true;
                self.hung_up = true;
                bits::IN | bits::OUT
            }
            Some(Packet::Reset) => {
                self.failed = true;
                self.error = Some(libc::ECONNRESET);
                self.to_server.clear();
                self.output.clear();
                bits::IN | bits::OUT
            }
        }
    }

    /// At most `most` bytes of the output, or its end, arrive at the client. Returns the bits that
    /// change.
    pub(super) fn deliver_to_client(&mut self, most: usize) -> u32 {
        if !self.client_is_open {
            // The client has closed its socket: it answers by a reset.
            if !self.output.is_empty() && !self.is_unix {
                self.to_server = VecDeque::from([Packet::Reset]);
            }
            self.output.clear();
        }
        let count = self.output.len().min(most).min(self.client_room());
        move_bytes(&mut self.output, count, |bytes| self.unread.extend(bytes));
        self.take_unread();
        if self.output.is_empty() && self.is_shut {
            let end = if self.ends_with_reset { StreamEnd::Reset } else { StreamEnd::Eof };
            self.end.get_or_insert(end);
        }
        if self.lacks_room && self.is_writable() {
            self.lacks_room = false;
            return bits::OUT;
        }
        0
    }

    /// The client reads what has arrived, if it is reading.
    pub(super) fn take_unread(&mut self) {
        if self.is_reading {
            let count = self.unread.len();
            move_bytes(&mut self.unread, count, |bytes| self.received.extend_from_slice(bytes));
        }
    }

    /// A reset arrives at the client. What is on its way to it is lost, or arrives before it.
    pub(super) fn reset_client(&mut self, after_output: bool) {
        if after_output && self.client_is_open {
            let count = self.output.len().min(self.client_room());
            move_bytes(&mut self.output, count, |bytes| self.unread.extend(bytes));
            self.take_unread();
        }
        self.end.get_or_insert(StreamEnd::Reset);
        self.output.clear();
        self.to_server.clear();
        self.client_sends = false;
    }

    /// The server closes its socket.
    pub(super) fn close_server(&mut self, after_output: bool) {
        self.server = ServerEnd::Closed;
        if self.failed {
            return self.end = self.end.or(Some(StreamEnd::Reset));
        }
        if self.is_unix {
            self.ends_with_reset = !self.input.is_empty();
            self.client_sends = false;
            self.to_server.clear();
        } else if self.resets_on_close || !self.input.is_empty() {
            return self.reset_client(after_output);
        }
        self.is_shut = true;
    }

    /// The bytes that the kernel of the server holds, as `SIOCOUTQ` reports them.
    pub(super) fn unsent(&self) -> usize {
        if self.is_unix {
            return self.output.len() + self.unread.len();
        }
        let has_fin = self.is_shut && self.end.is_none() && !self.failed;
        self.output.len() + usize::from(has_fin)
    }
}
