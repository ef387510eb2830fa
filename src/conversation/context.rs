//! What a handler can do to its conversation. Effects are recorded here, and the driver of the conversation
//! carries them out after the handler has returned.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::datagram::DatagramCx;
use super::framing::Framing;
use super::output::Output;
use super::state::{OutputEnd, State};
use crate::address::Peer;
use crate::connection_id::ConnectionId;
use crate::datagram::DatagramSender;
use crate::error::{CloseReason, FramingError, HandlerError, HandlerResult, UnsupportedError};
use crate::sender::{Recipient, SendQueue, Sender, SharedBytes};

/// What drives a conversation: an event loop, or a thread that serves one connection.
pub(crate) trait Driver {
    /// Makes the queue for messages and events from other threads.
    fn send_queue(&self, recipient: Recipient) -> Result<Arc<SendQueue>, UnsupportedError>;

    /// The datagram that is answered, if it is one.
    fn datagram(&self) -> Option<&DatagramCx<'_>> {
        None
    }

    /// The current time: on an event loop, when the current turn began.
    fn now(&self) -> Instant;

    /// Requests a stop of the server, of the run that the conversation belongs to.
    fn request_stop(&self);
}

/// What a [`Handler`](crate::Handler) answers with.
///
/// Every effect is recorded and the call returns at once; the effect happens when the handler has
/// returned.
pub struct Context<'a> {
    pub(super) state: &'a mut State,
    pub(super) framing: &'a mut dyn Framing,
    pub(super) output: Output<'a>,
    pub(super) driver: &'a dyn Driver,
    /// How much output one step may collect, in bytes.
    pub(super) room: usize,
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
        if self.state.drops_output() {
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
        if self.state.drops_output() {
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

    /// Closes the connection when [`on_writable`](crate::Handler::on_writable) is not pending.
    pub(super) fn close_after_writable(&mut self) {
        match self.state.wants_writable {
            true => self.state.rare_mut().closes_after_writable = true,
            false => self.close(),
        }
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
        self.state.set_idle_timeout(timeout.into());
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
        self.driver.request_stop();
    }

    /// A handle to this connection for other threads and other handlers.
    ///
    /// The first one makes the connection's queue, which takes about 140 bytes, and some 100 more when
    /// something has been sent (on 64-bit Linux); further handles share it. It costs nothing per
    /// message that the handler is given or sends.
    ///
    /// # Errors
    ///
    /// [`UnsupportedError`] for a datagram, and under `inline` and `forking`, where nothing in this
    /// process could use it.
    pub fn sender(&mut self) -> Result<Sender, UnsupportedError> {
        if self.state.datagram {
            return Err(UnsupportedError::DatagramSender);
        }
        let send_queue = match self.state.send_queue() {
            Some(send_queue) => send_queue.clone(),
            None => {
                let recipient = Recipient { id: self.id(), peer: self.state.peer.clone() };
                let send_queue = self.driver.send_queue(recipient)?;
                self.state.rare_mut().send_queue.insert(send_queue).clone()
            }
        };
        Ok(Sender::new(send_queue, self.framing.encodable()))
    }

    /// The output itself, past the framing: what is written to it goes out as it is, after what was sent
    /// before. It implements [`io::Write`](std::io::Write), takes [shared
    /// bytes](Output::put_shared) and [files](Output::put_file), and never waits: back-pressure applies
    /// as for [`send`](Context::send). After [`close`](Context::close) what is written is dropped.
    ///
    /// Of a datagram, everything that is written to one such output is one datagram, which begins with the
    /// first write; each call returns the output of another datagram.
    ///
    /// ```
    /// use std::io::Write;
    /// use socketserver::{Context, HandlerResult};
    ///
    /// fn reply(number: i64, cx: &mut Context<'_>) -> HandlerResult {
    ///     write!(cx.output(), ":{number}\r\n")?;
    ///     Ok(())
    /// }
    /// ```
    #[inline]
    pub fn output(&mut self) -> Output<'_> {
        if self.state.needs_slow_path || self.state.datagram {
            return self.output_slow();
        }
        self.output.reborrow()
    }

    #[inline(never)]
    fn output_slow(&mut self) -> Output<'_> {
        if self.state.drops_output() {
            return Output::new(&[], self.state.discarded());
        }
        if self.state.datagram {
            return self.output.datagram();
        }
        self.output.reborrow()
    }

    /// How much more output the connection takes now, in bytes, before it is at its high mark (see
    /// [`Builder::write_watermarks`](crate::Builder::write_watermarks)); at most 64 KiB at a time.
    ///
    /// When this returns 0, [`on_writable`](crate::Handler::on_writable) is called once, as soon as the
    /// output has fallen to the low mark; a handler that stops before that is not called. A handler with
    /// much to send so keeps no more of it in memory than the high mark: it sends while there is room,
    /// and goes on in `on_writable`. What is sent without room is kept all the same. Messages of the peer
    /// are delivered meanwhile, unless the input is [paused](Context::pause_input).
    ///
    /// A datagram always has room.
    pub fn room(&mut self) -> usize {
        if self.state.datagram {
            return usize::MAX;
        }
        let room = self.room.saturating_sub(self.output.len());
        if room == 0 {
            self.state.wants_writable = true;
            self.state.needs_slow_path = true;
        }
        room
    }

    /// Sets the deadline for [`on_timer`](crate::Handler::on_timer); `None`, the default, is none. There is
    /// one timer: a second call replaces the deadline of the first, and a handler with several deadlines
    /// sets the earliest. Traffic does not move it. A timer that is set costs nothing per message; setting it does, so that a
    /// handler that measures silence keeps the time of the last message, and sets the timer anew in
    /// `on_timer`.
    ///
    /// A deadline in the past is due at once, when the handler has returned and others have been served.
    /// Messages go on being delivered between two such calls.
    ///
    /// # Errors
    ///
    /// [`UnsupportedError::DatagramTimeout`] for a datagram.
    pub fn set_timer(&mut self, at: impl Into<Option<Instant>>) -> Result<(), UnsupportedError> {
        if self.state.datagram {
            return Err(UnsupportedError::DatagramTimeout);
        }
        self.state.set_timer(at.into());
        Ok(())
    }

    /// The current time. On the event loop it is the time at which the current turn began, and reading it
    /// costs no system call.
    pub fn now(&self) -> Instant {
        self.driver.now()
    }

    /// Delivers no further message until [`resume_input`](Context::resume_input): input that has been read
    /// is kept, and no more is read, so that the peer's own send buffer is the back-pressure. All other
    /// events go on; `on_eof` comes where no undelivered input precedes the end.
    ///
    /// A protocol pauses its input while a reply comes from elsewhere, by
    /// [`Sender::post`](crate::Sender::post) for example, so that replies keep their order. A paused
    /// connection that nothing can resume is closed when its output has been sent: one without a
    /// [`Sender`] (the handler's own counts too), a timer, an idle timeout and a pending `on_writable`. It is
    /// not idle: when the server stops, it has until the [drain deadline](crate::Server::drain_timeout).
    ///
    /// While undelivered input is left, the end of the peer is not noticed, because it may have more to
    /// say; a reset is. A handler whose wait may be long sets a timer or an idle timeout.
    ///
    /// No effect for a datagram.
    pub fn pause_input(&mut self) {
        self.state.pause();
    }

    /// Delivers messages again after [`pause_input`](Context::pause_input), those first that were kept.
    pub fn resume_input(&mut self) {
        self.state.resume();
    }

    /// Ends the output: when all that was sent has gone out, the peer sees the end of the stream
    /// (shutdown(2) with `SHUT_WR`). Input goes on, and what is sent after this call is dropped.
    ///
    /// No effect for a datagram.
    pub fn finish_output(&mut self) {
        if self.state.output_end == OutputEnd::Open {
            self.state.output_end = OutputEnd::Requested;
            self.state.needs_slow_path = true;
        }
    }

    /// The framing of this connection, if it is an `F`. A framing can so keep what it parsed for the
    /// handler, and the handler can change what the framing expects next: the next message is decoded
    /// with the changed framing, also where its bytes have already arrived.
    ///
    /// A framing in a `Box<dyn Framing + Send>` is found by its own type, and the box itself by
    /// `framing::<Box<dyn Framing + Send>>()`, so that another framing can take its place. A
    /// [`Sender`] checks what the framing could send when [`sender`](Context::sender) was called.
    /// `None` for a datagram.
    pub fn framing<F: Framing>(&mut self) -> Option<&mut F> {
        if self.state.datagram {
            return None;
        }
        self.state.framing_used = true;
        let framing: &mut dyn Any = self.framing;
        if framing.is::<F>() {
            return framing.downcast_mut();
        }
        let framing: &mut dyn Any = &mut **framing.downcast_mut::<Box<dyn Framing + Send>>()?;
        framing.downcast_mut()
    }

    /// The number of this connection, as in the log. A datagram gets a number of its own when it is asked
    /// for.
    pub fn id(&mut self) -> ConnectionId {
        *self.state.id.get_or_insert_with(ConnectionId::next)
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
    /// let server = Server::udp("127.0.0.1:0")?.serve(move |_| Relay(Arc::clone(&peers)))?;
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
        let datagram = self.driver.datagram().ok_or(UnsupportedError::StreamSendTo)?;
        let to = datagram.destination(peer)?;
        if !self.state.drops_output() {
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
        let datagram = self.driver.datagram().ok_or(UnsupportedError::StreamSendTo)?;
        Ok(datagram.reply_socket.sender())
    }
}

#[cold]
fn unencodable(error: FramingError) -> HandlerError {
    error.into()
}
