//! A client of a simulated server.

use std::path::Path;
use std::sync::Arc;

use super::calls::{inet_address, unix_path};
use super::fault::Fault;
use super::kernel::FakeKernel;
use super::stream::{Packet, ServerEnd, StreamEnd};
use crate::address::Peer;

/// The most pieces that [`Fault::Cut`] makes of what one call sends.
const MOST_PIECES: usize = 64;

/// A client in a simulated world: from [`Simulation::connect`](super::Simulation::connect). Its calls
/// return at once; what they do reaches the server when the time passes. A clone is the same client.
///
/// ```
/// use std::time::Duration;
/// use socketserver::testing::{self, StreamEnd};
/// use socketserver::{Server, handler_fn};
///
/// testing::quiet(|world| {
///     let mut server = Server::tcp("127.0.0.1:9999")
///         .and_then(|builder| builder.serve(|_| handler_fn(|message, cx| cx.send(message))))
///         .unwrap();
///     let mut sim = world.start(&mut server);
///     let client = sim.connect();
///     client.stop_reading();
///     client.send(b"hello");
///     sim.settle();
///     assert!(client.is_open_at_server() && client.peer().inet().is_some());
///     assert_eq!((client.bytes_read_by_server(), client.bytes_sent_by_server()), (5, 5));
///     client.resume_reading();
///     client.finish();
///     sim.settle();
///     assert_eq!(client.read(), b"hello");
///     assert_eq!(client.closed_by_server(), Some(StreamEnd::Eof));
///
///     sim.connect().close(); // other ends of a client
///     sim.connect().reset();
///     sim.pass(Duration::from_secs(1));
///     assert_eq!(sim.connections(), 0);
/// });
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    pub(super) kernel: Arc<FakeKernel>,
    pub(super) stream: usize,
}

impl Client {
    /// Sends bytes. They are dropped if the connection has ended, or after
    /// [`finish`](Client::finish). Its own buffer has no limit.
    pub fn send(&self, bytes: &[u8]) {
        let mut state = self.kernel.lock();
        if !state.streams[self.stream].client_sends || bytes.is_empty() {
            return;
        }
        state.note("client sends", self.stream, bytes.len());
        let mut rest = bytes;
        for _ in 1..MOST_PIECES {
            if rest.len() < 2 || !state.strikes(Fault::Cut) {
                break;
            }
            let most = [1, 16, rest.len() - 1][state.choices.below(3)].min(rest.len() - 1);
            let (piece, left) = rest.split_at(1 + state.choices.below(most));
            state.send_to_server(self.stream, Packet::Data(piece.to_vec().into()));
            rest = left;
        }
        state.send_to_server(self.stream, Packet::Data(rest.to_vec().into()));
        if state.strikes(Fault::Reset) {
            state.mark("a connection is reset on its way");
            self.end(&mut state, Packet::Reset);
        }
    }

    /// Sends no more, but still receives: a half-close.
    pub fn finish(&self) {
        let mut state = self.kernel.lock();
        if std::mem::replace(&mut state.streams[self.stream].client_sends, false) {
            state.note("client finishes", self.stream, 0);
            state.send_to_server(self.stream, Packet::Fin);
        }
    }

    /// Closes the connection. It becomes a reset if bytes have arrived that the client has not read.
    pub fn close(&self) {
        let mut state = self.kernel.lock();
        let stream = &state.streams[self.stream];
        let packet = match (stream.unread.is_empty(), stream.is_unix) {
            (false, _) => Packet::Reset,
            (true, true) => Packet::HangUp,
            (true, false) => Packet::Fin,
        };
        if !stream.client_is_open {
            return;
        }
        if packet != Packet::Fin || state.streams[self.stream].client_sends {
            return self.end(&mut state, packet);
        }
        state.streams[self.stream].client_is_open = false;
        state.plan_deliveries(self.stream);
    }

    /// Resets the connection.
    pub fn reset(&self) {
        let mut state = self.kernel.lock();
        if state.streams[self.stream].client_is_open {
            self.end(&mut state, Packet::Reset);
        }
    }

    fn end(&self, state: &mut super::kernel::KernelState, packet: Packet) {
        let stream = &mut state.streams[self.stream];
        stream.client_is_open = false;
        stream.client_sends = false;
        if stream.end.is_some() && stream.server == ServerEnd::Closed {
            return;
        }
        if packet == Packet::Reset {
            stream.end.get_or_insert(StreamEnd::Reset);
        }
        state.note("client ends", self.stream, usize::from(packet == Packet::Reset));
        state.send_to_server(self.stream, packet);
    }

    /// Stops reading: the kernel of the client takes 64 KiB more (another number
    /// with [`Fault::BufferSizes`]), and then the server can send no more.
    pub fn stop_reading(&self) {
        self.kernel.lock().streams[self.stream].is_reading = false;
    }

    /// Reads again after [`stop_reading`](Client::stop_reading).
    pub fn resume_reading(&self) {
        let mut state = self.kernel.lock();
        state.streams[self.stream].is_reading = true;
        state.streams[self.stream].take_unread();
        state.note("client reads", self.stream, 0);
        state.plan_deliveries(self.stream);
    }

    /// How the server sees it: a port of 127.0.0.1, or a path; each client has its own.
    pub fn peer(&self) -> Peer {
        match self.kernel.lock().streams[self.stream].is_unix {
            true => Peer::Path(Path::new(&unix_path(self.stream)).into()),
            false => Peer::Inet(inet_address(self.stream)),
        }
    }

    /// Returns the bytes that it has received since the last call.
    pub fn read(&self) -> Vec<u8> {
        std::mem::take(&mut self.kernel.lock().streams[self.stream].received)
    }

    /// How the connection has ended for the client; `None` while it can still receive. An end comes
    /// after all bytes that precede it, so a client that has stopped reading does not see it yet.
    pub fn closed_by_server(&self) -> Option<StreamEnd> {
        let state = self.kernel.lock();
        let stream = &state.streams[self.stream];
        stream.end.filter(|_| stream.unread.is_empty())
    }

    /// Whether the server has accepted the connection, and has it open.
    pub fn is_open_at_server(&self) -> bool {
        matches!(self.kernel.lock().streams[self.stream].server, ServerEnd::Open(_))
    }

    /// How many bytes the server has read from the connection.
    pub fn bytes_read_by_server(&self) -> u64 {
        self.kernel.lock().streams[self.stream].read
    }

    /// How many bytes the server has written to the connection; the kernel may still hold some.
    pub fn bytes_sent_by_server(&self) -> u64 {
        self.kernel.lock().streams[self.stream].sent
    }
}
