//! What a handler can do to its conversation. Effects are noted here and carried out by whoever
//! drives the conversation, after the handler has returned.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::State;
use super::datagram::DatagramCx;
use super::framing::Framing;
use super::output::Output;
use crate::address::{Address, Peer};
use crate::datagram::DatagramSender;
use crate::encodable::Encodable;
use crate::error::{CloseReason, FramingError, HandlerError, HandlerResult, UnsupportedError};
use crate::sender::{SendQueue, Sender, SharedBytes};

/// Where a conversation lives, as far as it must know: how it is reached from elsewhere.
pub(crate) trait SenderSource {
    /// A way in for messages from other threads.
    fn send_queue(&self, encodable: Encodable) -> Result<Arc<SendQueue>, UnsupportedError>;

    /// The datagram that is answered, if it is one.
    fn datagram(&self) -> Option<&DatagramCx<'_>> {
        None
    }
}

/// What a [`Handler`](crate::Handler) is given to answer with.
///
/// Everything here is noted and returns at once; it happens when the handler has returned.
pub struct Context<'a> {
    pub(super) state: &'a mut State,
    pub(super) framing: &'a mut dyn Framing,
    pub(super) output: Output<'a>,
    pub(super) senders: &'a dyn SenderSource,
    pub(super) shutdown: &'a mut bool,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("peer", &self.state.peer).finish_non_exhaustive()
    }
}

impl Context<'_> {
    /// Sends a message to the peer: framed, on a stream; as one datagram, on a datagram socket.
    ///
    /// The bytes of the message just received are not copied on their way out, in whole or in part.
    /// The call never waits; what the kernel does not take is kept, and above the high mark (see
    /// [`Builder::write_watermarks`](crate::Builder::write_watermarks)) the peer's own input is not read
    /// until it has read enough of its output. What is sent after [`close`](Context::close) is
    /// dropped.
    ///
    /// # Errors
    ///
    /// [`FramingError`] where the framing cannot express the message.
    #[inline]
    pub fn send(&mut self, message: &[u8]) -> HandlerResult {
        // A stream that is not ending, or has other things to be remembered of it: nearly always.
        if self.state.needs_slow_path || self.state.datagram {
            return self.send_slow(message);
        }
        match self.framing.encode(message, &mut self.output) {
            Ok(()) => Ok(()),
            Err(error) => Err(unencodable(error)),
        }
    }

    #[inline(never)]
    fn send_slow(&mut self, message: &[u8]) -> HandlerResult {
        if self.state.is_closing() {
            return Ok(());
        }
        if self.state.datagram {
            self.output.put_datagram(message);
            return Ok(());
        }
        Ok(self.framing.encode(message, &mut self.output)?)
    }

    /// Sends a message that many connections share, without a copy of its own for each.
    ///
    /// # Errors
    ///
    /// As for [`send`](Context::send).
    pub fn send_shared(&mut self, message: &SharedBytes) -> HandlerResult {
        if self.state.is_closing() {
            return Ok(());
        }
        self.output.share(message, |output| {
            if self.state.datagram {
                output.put_datagram(message);
                return Ok(());
            }
            Ok(self.framing.encode(message, output)?)
        })
    }

    /// Closes the connection when all that was sent has gone out; the peer's further input is
    /// dropped. A reply already sent is not cut by a reset: where the peer may still send, the
    /// connection is kept until the peer has acknowledged all, has ended, or has sent 1 MiB more
    /// (nginx's `lingering_close`). [`on_close`](crate::Handler::on_close) comes before that.
    ///
    /// A peer that takes none of the output that waits for 30 seconds, or for its timeout if that is
    /// longer, is cut by a reset; after [`on_idle_timeout`](crate::Handler::on_idle_timeout), for its timeout.
    pub fn close(&mut self) {
        self.state.end(CloseReason::Handler);
    }

    /// Closes the connection at once with a reset; what has not gone out is dropped.
    pub fn abort(&mut self) {
        self.state.abort();
    }

    /// Asks for [`on_idle_timeout`](crate::Handler::on_idle_timeout) when no byte has moved either way for
    /// so long; `None`, the default, waits for ever.
    ///
    /// Output has moved when the peer has taken some: over TCP by acknowledging it, over a Unix
    /// socket by reading it, which shows when a whole piece of some 32 KiB has been read. The kernel
    /// is asked how much it holds (`SIOCOUTQ`, see tcp(7); on Linux alone) when the time is up, so
    /// that a peer which stops taking output is found out after no more than twice the time. On other
    /// systems output has moved when the kernel has taken some. It is the same under every mode.
    ///
    /// [`Duration::ZERO`] asks for it whenever there is nothing to read, again and again for as long as
    /// the connection stays open, which keeps a processor busy.
    ///
    /// As Python's `timeout` of a stream request handler, but it costs nothing per message.
    ///
    /// # Errors
    ///
    /// [`UnsupportedError::DatagramTimeout`] for a datagram.
    #[doc(alias = "timeout")]
    pub fn set_idle_timeout(
        &mut self,
        timeout: impl Into<Option<Duration>>,
    ) -> Result<(), UnsupportedError> {
        if self.state.datagram {
            return Err(UnsupportedError::DatagramTimeout);
        }
        self.state.timeout = timeout.into();
        self.state.timeout_changed = true;
        self.state.needs_slow_path = true;
        Ok(())
    }

    /// Who talks: Python's `client_address`.
    pub fn peer(&self) -> &Peer {
        &self.state.peer
    }

    /// Whether the datagram was longer than the receive size, and was cut to it by the kernel.
    pub fn is_truncated(&self) -> bool {
        self.state.truncated
    }

    /// Asks the server to stop, as [`ShutdownHandle::shutdown`](crate::ShutdownHandle::shutdown)
    /// does: it returns at once, and the stop begins when the handler has returned.
    #[doc(alias = "shutdown")]
    pub fn stop_server(&mut self) {
        *self.shutdown = true;
    }

    /// A handle to this connection for other threads and other handlers.
    ///
    /// # Errors
    ///
    /// [`UnsupportedError`] for a datagram, and under `inline` and `forking`, where nothing in this
    /// process could use it.
    pub fn sender(&mut self) -> Result<Sender, UnsupportedError> {
        if self.state.datagram {
            return Err(UnsupportedError::DatagramSender);
        }
        let send_queue = match &self.state.send_queue {
            Some(send_queue) => send_queue.clone(),
            None => {
                let send_queue = self.senders.send_queue(self.framing.encodable())?;
                self.state.needs_slow_path = true;
                self.state.send_queue.insert(send_queue).clone()
            }
        };
        Ok(Sender::new(send_queue))
    }

    /// Sends one datagram to another peer of the same socket, in order with the replies, under every
    /// mode. Whether it arrives is not known, as of a reply: one that cannot be sent (the peer has
    /// gone, its queue stays full, the message is longer than the transport takes) is counted in
    /// [`Counters::unsent`](crate::Counters::unsent). What is sent after [`close`](Context::close) is
    /// dropped.
    ///
    /// On an IPv6 socket an IPv4 peer is sent to by its mapped address (`::ffff:a.b.c.d`), which the
    /// kernel takes on a [dual-stack](crate::Builder::dual_stack) socket, see
    /// [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html). A multicast group is a peer as any
    /// other.
    ///
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use socketserver::{Context, Handler, HandlerResult, Peer, Server};
    ///
    /// /// Passes each datagram on to all others that have sent one.
    /// struct Relay(Arc<Mutex<Vec<Peer>>>);
    ///
    /// impl Handler for Relay {
    ///     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         let mut peers = self.0.lock().unwrap();
    ///         if !peers.contains(cx.peer()) && peers.len() < 100 {
    ///             peers.push(cx.peer().clone());
    ///         }
    ///         for peer in peers.iter() {
    ///             if peer != cx.peer() {
    ///                 cx.send_to(peer, message)?;
    ///             }
    ///         }
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let peers = Arc::default();
    /// let server = Server::udp("127.0.0.1:0")?.serve(move |_peer| Relay(Arc::clone(&peers)))?;
    /// # drop(server);
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// * [`UnsupportedError::StreamSendTo`] on a connection,
    /// * [`UnsupportedError::UnaddressablePeer`] where the peer has no address that the socket can send
    ///   to: it is [unnamed](Peer::Unnamed), or of another family.
    pub fn send_to(&mut self, peer: &Peer, message: &[u8]) -> Result<(), UnsupportedError> {
        let datagram = self.senders.datagram().ok_or(UnsupportedError::StreamSendTo)?;
        let to = datagram.destination(peer)?;
        if !self.state.is_closing() {
            self.output.put_datagram_to(to, message);
        }
        Ok(())
    }

    /// A handle to the socket that this datagram came by, with which other threads send datagrams to
    /// any peer: see [`DatagramSender`].
    ///
    /// # Errors
    ///
    /// [`UnsupportedError::StreamSendTo`] on a connection: see [`sender`](Context::sender).
    pub fn datagram_sender(&self) -> Result<DatagramSender, UnsupportedError> {
        let datagram = self.senders.datagram().ok_or(UnsupportedError::StreamSendTo)?;
        Ok(datagram.reply_socket.sender())
    }

    /// The local address that this datagram was sent to, which is a group's if it came by multicast,
    /// where [`Builder::packet_info`](crate::Builder::packet_info) asks for it. Otherwise, and for a
    /// Unix datagram, the address that the socket is bound to, which may be `0.0.0.0` or `[::]`.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] on a connection.
    pub fn local_addr(&self) -> io::Result<Address> {
        let datagram = self.senders.datagram().ok_or(io::ErrorKind::Unsupported)?;
        Ok(datagram.local_addr())
    }

    /// The index of the network interface that this datagram came by (see
    /// [netdevice(7)](https://man7.org/linux/man-pages/man7/netdevice.7.html)), where
    /// [`Builder::packet_info`](crate::Builder::packet_info) asks for it; `None` otherwise, and on a
    /// connection.
    pub fn interface(&self) -> Option<u32> {
        self.senders.datagram().and_then(DatagramCx::interface)
    }
}

#[cold]
fn unencodable(error: FramingError) -> HandlerError {
    error.into()
}
