//! The context of a handler: what it can do to its conversation. The context records the effects,
//! and the driver of the conversation applies them after the handler has returned.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::datagram::DatagramDriver;
use super::framing::Framing;
use super::output::Output;
use super::state::{OutputEnd, State};
use crate::address::Peer;
use crate::connection_id::ConnectionId;
use crate::datagram::DatagramSender;
use crate::error::{CloseReason, FramingError, HandlerError, HandlerResult, UnsupportedError};
use crate::sender::{Recipient, SendQueue, Sender, SharedBytes};

/// A driver of conversations: an event loop, or a thread that serves one connection.
pub(crate) trait Driver {
    /// Creates the queue for messages and events from other threads.
    fn send_queue(&self, recipient: Recipient) -> Result<Arc<SendQueue>, UnsupportedError>;

    /// The context of the datagram, if the handler serves one.
    fn datagram(&self) -> Option<&DatagramDriver<'_>> {
        None
    }

    /// The current time: on an event loop, when the current turn began.
    fn now(&self) -> Instant;

    /// Requests a stop of the run to which the conversation belongs.
    fn request_stop(&self);

    /// Whether requests wait long for their handlers.
    fn is_overloaded(&self) -> bool;
}

/// The connection or the datagram of a [`Handler`](crate::Handler), through which it answers.
///
/// Every call records its effect and returns at once. The effect happens when the handler has
/// returned; only the framing encodes what is sent during the call.
///
/// | to | call |
/// |---|---|
/// | answer | [`send`](Context::send), [`send_shared`](Context::send_shared) |
/// | send unframed bytes, or a file | [`output`](Context::output) |
/// | make a long answer in parts | [`room`](Context::room), then [`on_writable`](crate::Handler::on_writable) |
/// | wait for a time | [`set_timer`](Context::set_timer) and [`now`](Context::now), [`set_idle_timeout`](Context::set_idle_timeout) |
/// | wait for another thread | [`sender`](Context::sender) and [`Sender::post`], [`pause_input`](Context::pause_input), [`resume_input`](Context::resume_input) |
/// | finish a request that takes several messages before a stop | [`set_busy`](Context::set_busy) |
/// | change the framing | [`framing`](Context::framing) |
/// | know whether others wait | [`is_overloaded`](Context::is_overloaded) |
/// | end | [`close`](Context::close), [`abort`](Context::abort), [`finish_output`](Context::finish_output), [`stop_server`](Context::stop_server) |
/// | know with whom it speaks | [`peer`](Context::peer), [`id`](Context::id); addresses and credentials are in [`Accepted`](crate::Accepted) |
/// | send other datagrams | [`send_to`](Context::send_to), [`datagram_sender`](Context::datagram_sender) |
///
/// In the guide: [`behind_a_proxy`](crate::guide::behind_a_proxy),
/// [`blocking_work`](crate::guide::blocking_work), [`files`](crate::guide::files),
/// [`framing`](crate::guide::framing), [`limits`](crate::guide::limits),
/// [`logging_and_counters`](crate::guide::logging_and_counters),
/// [`parsing_once`](crate::guide::parsing_once),
/// [`reaching_others`](crate::guide::reaching_others), [`stopping`](crate::guide::stopping),
/// [`streaming`](crate::guide::streaming), [`timeouts`](crate::guide::timeouts).
///
/// ```
/// use socketserver::{Context, Handler, HandlerResult};
///
/// /// Answers with the number of the connection and the peer's address.
/// struct Who;
///
/// impl Handler for Who {
///     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
///         if message == b"quit" {
///             cx.close();
///             return Ok(());
///         }
///         let answer = format!("{} {}", cx.id(), cx.peer());
///         cx.send(answer.as_bytes())
///     }
/// }
/// ```
pub struct Context<'a> {
    pub(super) state: &'a mut State,
    pub(super) framing: &'a mut dyn Framing,
    pub(super) output: Output<'a>,
    pub(super) driver: &'a dyn Driver,
    /// How many bytes of output one step may collect.
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
    /// Bytes of the message just received are sent without a copy. The call never waits. Output
    /// that the kernel does not take is kept. Above the high mark (see
    /// [`Builder::write_watermarks`](crate::Builder::write_watermarks)) the connection is not read
    /// until the peer has taken enough of its output. Messages sent after [`close`](Context::close)
    /// are dropped.
    ///
    /// ```
    /// use socketserver::handler_fn;
    ///
    /// let twice = handler_fn(|message, cx| {
    ///     cx.send(message)?;
    ///     cx.send(message)
    /// });
    /// # let _ = twice;
    /// ```
    ///
    /// # Errors
    ///
    /// [`FramingError`] where the framing cannot encode the message.
    #[inline]
    pub fn send(&mut self, message: &[u8]) -> HandlerResult {
        // An open stream without rare state: the usual case.
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

    /// Sends a message that many connections share, without a copy for each of them.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let page: Arc<[u8]> = vec![b'x'; 100_000].into(); // in memory once, for all clients
    /// let server = Server::tcp("127.0.0.1:0")?.serve(move |_| {
    ///     let page = page.clone();
    ///     handler_fn(move |_, cx| cx.send_shared(&page))
    /// })?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
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

    /// Closes the connection when all that was sent has gone out; further input of the peer is
    /// dropped. A reset does not cut a reply that was already sent. Where the peer may still send,
    /// the connection lingers until the peer has acknowledged all output, has ended, or has sent 1
    /// MiB more (nginx's `lingering_close`). [`on_close`](crate::Handler::on_close) is called
    /// before that.
    ///
    /// A peer that takes none of the waiting output is reset after 30 seconds, or after its idle
    /// timeout if that is longer. After [`on_idle_timeout`](crate::Handler::on_idle_timeout) the
    /// limit is the idle timeout.
    ///
    /// ```
    /// use socketserver::handler_fn;
    ///
    /// let once = handler_fn(|message, cx| {
    ///     cx.send(message)?;
    ///     cx.close(); // when the answer has gone out
    ///     Ok(())
    /// });
    /// # let _ = once;
    /// ```
    pub fn close(&mut self) {
        self.state.end(CloseReason::Handler);
    }

    /// As [`close`](Context::close), for a peer that sends nothing more: the connection does not linger. It
    /// is gone as soon as the kernel has taken all output, which it goes on to send. That saves a wait for
    /// the peer, and keeps the place of the connection for a shorter time. `QUIT` of a line protocol and an
    /// HTTP request with `Connection: close` are such ends.
    ///
    /// If the peer sends all the same, the kernel resets the connection, and the peer may lose output that
    /// it has not read ([RFC 9112, section 9.6](https://www.rfc-editor.org/rfc/rfc9112#section-9.6)). Where
    /// input has arrived by then that is not read, the connection lingers after all.
    ///
    /// ```
    /// use socketserver::{Lines, Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.framing(Lines::default()).serve(|_peer| {
    ///     handler_fn(|line, cx| match line {
    ///         b"QUIT" => {
    ///             cx.send(b"BYE")?;
    ///             cx.close_without_lingering();
    ///             Ok(())
    ///         }
    ///         line => cx.send(line),
    ///     })
    /// })?;
    /// # drop(server);
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn close_without_lingering(&mut self) {
        self.state.end_without_lingering();
    }

    /// Closes the connection as soon as no answer is being made.
    pub(super) fn close_when_answered(&mut self) {
        match self.state.is_answering() {
            true => self.state.rare_mut().closes_when_answered = true,
            false => self.close(),
        }
    }

    /// Closes the connection at once with a reset; output that has not gone out is dropped.
    ///
    /// ```
    /// use socketserver::handler_fn;
    ///
    /// let strict = handler_fn(|message, cx| {
    ///     if message.starts_with(b"GET ") {
    ///         cx.abort(); // a web browser: the wrong port
    ///         return Ok(());
    ///     }
    ///     cx.send(message)
    /// });
    /// # let _ = strict;
    /// ```
    pub fn abort(&mut self) {
        self.state.abort();
    }

    /// Requests [`on_idle_timeout`](crate::Handler::on_idle_timeout) when no byte has been received
    /// or sent for this time. `None`, the default, switches it off.
    ///
    /// Output counts as sent when the peer has taken it: over TCP by acknowledging it, over a Unix
    /// socket by reading it, in steps of about 32 KiB. When the time has expired, the kernel is
    /// asked how much output it holds (`SIOCOUTQ`, see tcp(7); on Linux only). So a peer that stops
    /// taking output is detected after at most twice the time. On other systems output counts as
    /// sent when the kernel has taken it. Every mode does the same.
    ///
    /// With [`Duration::ZERO`] it is called whenever there is nothing to read, again and again
    /// while the connection is open, which keeps a processor busy.
    ///
    /// This is Python's `timeout` of a stream request handler, but it costs nothing per message.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{Context, Handler, HandlerResult};
    ///
    /// /// Who has logged in may be silent for longer.
    /// struct Session;
    ///
    /// impl Handler for Session {
    ///     fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
    ///         Ok(cx.set_idle_timeout(Duration::from_secs(10))?)
    ///     }
    ///
    ///     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         if message == b"secret" {
    ///             cx.set_idle_timeout(Duration::from_secs(600))?;
    ///         }
    ///         cx.send(b"ok")
    ///     }
    /// }
    /// ```
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

    /// The peer: Python's `client_address`.
    ///
    /// ```
    /// use socketserver::handler_fn;
    ///
    /// let who = handler_fn(|_, cx| {
    ///     let answer = cx.peer().to_string();
    ///     cx.send(answer.as_bytes())
    /// });
    /// # let _ = who;
    /// ```
    pub fn peer(&self) -> &Peer {
        &self.state.peer
    }

    /// Whether the datagram was longer than the receive size, and the kernel has truncated it.
    ///
    /// ```
    /// use socketserver::handler_fn;
    ///
    /// let careful = handler_fn(|message, cx| {
    ///     if cx.is_truncated() {
    ///         return cx.send(b"too long");
    ///     }
    ///     cx.send(message)
    /// });
    /// # let _ = careful;
    /// ```
    pub fn is_truncated(&self) -> bool {
        self.state.is_truncated()
    }

    /// Whether the server is overloaded: requests wait long for their handlers. A handler can then
    /// give a cheap answer that says so.
    ///
    /// The event loop is overloaded if each of its turns within the last 200 ms took more than
    /// 20 ms, and it never waited for events. `offload`, `threading` and `pool` are overloaded if
    /// each request within the last 200 ms waited more than 20 ms for a thread. In a child process
    /// under `forking`, this is what was true when the process was started.
    ///
    /// ```
    /// use socketserver::handler_fn;
    ///
    /// let server = handler_fn(|message, cx| {
    ///     if cx.is_overloaded() {
    ///         return cx.send(b"503 try again later");
    ///     }
    ///     cx.send(message) // the expensive answer
    /// });
    /// # let _ = server;
    /// ```
    pub fn is_overloaded(&self) -> bool {
        self.driver.is_overloaded()
    }

    /// Asks the server to stop, as [`ShutdownHandle::shutdown`](crate::ShutdownHandle::shutdown)
    /// does: it returns at once, and the stop begins when the handler has returned.
    ///
    /// ```
    /// use socketserver::handler_fn;
    ///
    /// let admin = handler_fn(|message, cx| {
    ///     if message == b"shutdown" {
    ///         cx.stop_server();
    ///     }
    ///     cx.send(b"ok")
    /// });
    /// # let _ = admin;
    /// ```
    #[doc(alias = "shutdown")]
    pub fn stop_server(&mut self) {
        self.driver.request_stop();
    }

    /// A handle to this connection for other threads and other handlers.
    ///
    /// The first call creates the send queue of the connection. That takes about 140 bytes, and
    /// about 100 more when something has been sent (on 64-bit Linux); further handles share it. It
    /// costs nothing per message of the handler.
    ///
    /// ```
    /// use std::thread;
    /// use socketserver::handler_fn;
    ///
    /// let later = handler_fn(|message, cx| {
    ///     let (sender, question) = (cx.sender()?, message.to_vec());
    ///     thread::spawn(move || sender.send(&question)); // an error: the connection has ended
    ///     Ok(())
    /// });
    /// # let _ = later;
    /// ```
    ///
    /// # Errors
    ///
    /// * [`UnsupportedError::DatagramSender`] for a datagram, see
    ///   [`datagram_sender`](Context::datagram_sender),
    /// * [`UnsupportedError::InlineSender`] and [`UnsupportedError::ForkingSender`] under `inline` and
    ///   `forking`, where no other code in this process could use the sender,
    /// * [`UnsupportedError::NoDescriptor`] under `threading` and `pool`, when no descriptor is left.
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

    /// The output itself, without framing: what is written is sent unchanged, after what was sent
    /// before. It implements [`io::Write`](std::io::Write) and takes [shared
    /// bytes](Output::put_shared) and [files](Output::put_file). It never waits: back-pressure
    /// applies as for [`send`](Context::send). What is written after [`close`](Context::close) is
    /// dropped.
    ///
    /// For a datagram, all that is written to one such output is one datagram, which begins with
    /// the first write. Each call returns the output of another datagram.
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

    /// How many more bytes of output the connection takes now before it reaches its high mark (see
    /// [`Builder::write_watermarks`](crate::Builder::write_watermarks)); at most 64 KiB at a time.
    ///
    /// When this returns 0, [`on_writable`](crate::Handler::on_writable) is called once, as soon as
    /// the output has fallen to the low mark. A handler that has not seen 0 is not called. So a
    /// handler with much to send keeps no more in memory than the high mark: it sends while there
    /// is room, and continues in `on_writable`. Messages sent without room are kept too. Messages
    /// of the peer are delivered meanwhile, unless the input is [paused](Context::pause_input).
    ///
    /// A datagram always has room.
    ///
    /// ```
    /// use socketserver::{Context, Handler, HandlerResult};
    ///
    /// /// Sends zeros for as long as the client takes them.
    /// struct Zeros;
    ///
    /// impl Handler for Zeros {
    ///     fn on_message(&mut self, _: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         self.on_writable(cx)
    ///     }
    ///
    ///     fn on_writable(&mut self, cx: &mut Context<'_>) -> HandlerResult {
    ///         loop {
    ///             let room = cx.room();
    ///             if room == 0 {
    ///                 return Ok(()); // on_writable is called again
    ///             }
    ///             cx.output().put(&[0; 1024][..room.min(1024)]);
    ///         }
    ///     }
    /// }
    /// ```
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

    /// Sets the deadline for [`on_timer`](crate::Handler::on_timer); `None`, the default, means no
    /// deadline. There is one timer: a second call replaces the deadline of the first, and a
    /// handler with several deadlines sets the earliest. Traffic does not move the deadline. A
    /// timer that is set costs nothing per message, but setting it does. So a handler that measures
    /// the time without messages stores the time of the last message, and sets the timer again in
    /// `on_timer`.
    ///
    /// A deadline in the past expires at once, when the handler has returned and others have been
    /// served. Messages are delivered between two such calls.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{Context, Handler, HandlerResult};
    ///
    /// /// Gives a client ten seconds in all.
    /// struct Brief;
    ///
    /// impl Handler for Brief {
    ///     fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
    ///         Ok(cx.set_timer(cx.now() + Duration::from_secs(10))?)
    ///     }
    ///
    ///     fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.send(b"time is over")?;
    ///         cx.close();
    ///         Ok(())
    ///     }
    ///
    ///     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.send(message)
    ///     }
    /// }
    /// ```
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

    /// The current time, for [`set_timer`](Context::set_timer). On the event loop it is the time at
    /// which the current turn began, and reading it costs no system call.
    ///
    /// ```
    /// use std::time::Instant;
    /// use socketserver::{Context, Handler, HandlerResult};
    ///
    /// /// Answers with the milliseconds since the last message.
    /// #[derive(Default)]
    /// struct Pauses(Option<Instant>);
    ///
    /// impl Handler for Pauses {
    ///     fn on_message(&mut self, _: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         let now = cx.now();
    ///         let last = self.0.replace(now).unwrap_or(now);
    ///         cx.send((now - last).as_millis().to_string().as_bytes())
    ///     }
    /// }
    /// ```
    pub fn now(&self) -> Instant {
        self.driver.now()
    }

    /// Pauses the delivery of messages until [`resume_input`](Context::resume_input). Input that
    /// has been read is kept, and no more is read, so the peer gets back-pressure through its own
    /// send buffer. All other events continue; `on_eof` is called where no undelivered input
    /// precedes the end.
    ///
    /// A protocol pauses its input while a reply comes from another thread, for example by
    /// [`Sender::post`](crate::Sender::post), so that replies keep their order. A paused connection
    /// that nothing can resume is closed when its output has been sent. It can be resumed by a
    /// [`Sender`] (also one that the handler itself holds), a timer, an idle timeout or a pending
    /// `on_writable`. A paused connection is not idle: when the server stops, it has until the
    /// [drain deadline](crate::Server::drain_timeout).
    ///
    /// While undelivered input is left, the end of the peer is not detected, because more input may
    /// precede it; a reset is detected. A handler that may wait long sets a timer or an idle
    /// timeout.
    ///
    /// No effect for a datagram.
    ///
    /// ```
    /// use std::thread;
    /// use socketserver::{Context, Event, Handler, HandlerResult};
    ///
    /// /// Answers each message from another thread, and keeps the order.
    /// struct Slow;
    ///
    /// impl Handler for Slow {
    ///     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         let (sender, question) = (cx.sender()?, message.to_vec());
    ///         cx.pause_input();
    ///         thread::spawn(move || sender.post(Box::new(question)));
    ///         Ok(())
    ///     }
    ///
    ///     fn on_event(&mut self, event: Event, cx: &mut Context<'_>) -> HandlerResult {
    ///         if let Ok(answer) = event.downcast::<Vec<u8>>() {
    ///             cx.send(&answer)?;
    ///         }
    ///         cx.resume_input();
    ///         Ok(())
    ///     }
    /// }
    /// ```
    pub fn pause_input(&mut self) {
        self.state.pause();
    }

    /// Resumes the delivery of messages after [`pause_input`](Context::pause_input), first those
    /// that were kept.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{Context, Handler, HandlerResult};
    ///
    /// /// Takes one message per second from a client.
    /// struct Calm;
    ///
    /// impl Handler for Calm {
    ///     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.pause_input();
    ///         cx.set_timer(cx.now() + Duration::from_secs(1))?;
    ///         cx.send(message)
    ///     }
    ///
    ///     fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.resume_input();
    ///         Ok(())
    ///     }
    /// }
    /// ```
    pub fn resume_input(&mut self) {
        self.state.resume();
    }

    /// Says whether the handler is in the middle of a request, for example one whose body arrives as
    /// several messages. Such a connection is not idle: when the server stops, it is not closed but
    /// has until the [drain deadline](crate::Server::drain_timeout), or until this is called with
    /// `false`. By default a connection is idle between two messages; see
    /// [`on_stop`](crate::Handler::on_stop) for what else keeps it from that.
    ///
    /// No effect for a datagram.
    ///
    /// ```
    /// use socketserver::handler_fn;
    ///
    /// // A transaction may finish although the server stops.
    /// let database = handler_fn(|message, cx| {
    ///     match message {
    ///         b"BEGIN" => cx.set_busy(true),
    ///         b"COMMIT" => cx.set_busy(false),
    ///         _ => {}
    ///     }
    ///     cx.send(b"ok")
    /// });
    /// # let _ = database;
    /// ```
    pub fn set_busy(&mut self, busy: bool) {
        if !self.state.datagram {
            self.state.set_busy(busy);
        }
    }

    /// Ends the output: when all that was sent has gone out, the peer sees the end of the stream
    /// (shutdown(2) with `SHUT_WR`). Input continues, and what is sent after this call is dropped.
    ///
    /// No effect for a datagram.
    ///
    /// ```
    /// use socketserver::handler_fn;
    ///
    /// let last_word = handler_fn(|_, cx| {
    ///     cx.send(b"that is all")?;
    ///     cx.finish_output(); // the client sees the end, and may still send
    ///     Ok(())
    /// });
    /// # let _ = last_word;
    /// ```
    pub fn finish_output(&mut self) {
        if self.state.output_end == OutputEnd::Open && !self.state.datagram {
            self.state.output_end = OutputEnd::Requested;
            self.state.needs_slow_path = true;
        }
    }

    /// The framing of this connection, if it is an `F`. So a framing can store what it has parsed
    /// for the handler, and the handler can change what the framing expects next. The next message
    /// is decoded with the changed framing, also if its bytes have already arrived.
    ///
    /// A framing in a `Box<dyn Framing + Send>` is found by its own type. The box itself is
    /// found by `framing::<Box<dyn Framing + Send>>()`, so that the handler can replace it. A
    /// [`Sender`] checks messages by the framing at the time when [`sender`](Context::sender) was
    /// called. Returns `None` for a datagram.
    ///
    /// ```
    /// use socketserver::{Lines, Server, handler_fn};
    ///
    /// // After a login, lines may be longer.
    /// let server = Server::tcp("127.0.0.1:0")?.framing(Lines::default().max_len(80)).serve(|_| {
    ///     handler_fn(|line, cx| {
    ///         if line == b"secret" && let Some(lines) = cx.framing::<Lines>() {
    ///             *lines = Lines::default().max_len(1 << 20);
    ///         }
    ///         cx.send(b"ok")
    ///     })
    /// })?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
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

    /// The number of this connection, as in the log. A datagram gets its own number at the first
    /// call.
    ///
    /// ```
    /// use socketserver::handler_fn;
    ///
    /// let who = handler_fn(|_, cx| {
    ///     let answer = format!("you are connection {}", cx.id());
    ///     cx.send(answer.as_bytes())
    /// });
    /// # let _ = who;
    /// ```
    pub fn id(&mut self) -> ConnectionId {
        *self.state.id.get_or_insert_with(ConnectionId::next)
    }

    /// Sends one datagram to another peer of the same socket, in order with the replies, under
    /// every mode. As with a reply, the sender does not know whether it arrives. A datagram that
    /// cannot be sent is counted in [`Counters::unsent`](crate::Counters::unsent): the peer is
    /// gone, its queue stays full, or the message is longer than the transport takes. What is sent
    /// after [`close`](Context::close) is dropped.
    ///
    /// On an IPv6 socket, an IPv4 peer gets its mapped address (`::ffff:a.b.c.d`). The kernel takes
    /// that on a [dual-stack](crate::Builder::dual_stack) socket, see
    /// [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html). A multicast group is a peer
    /// like any other.
    ///
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use socketserver::{Context, Handler, HandlerResult, Peer, Server};
    ///
    /// /// Forwards each datagram to all other peers that have sent one.
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
    /// * [`UnsupportedError::UnaddressablePeer`] where the peer has no address to which the socket
    ///   can send: it is [unnamed](Peer::Unnamed), or of another family.
    pub fn send_to(&mut self, peer: &Peer, message: &[u8]) -> Result<(), UnsupportedError> {
        let datagram = self.driver.datagram().ok_or(UnsupportedError::StreamSendTo)?;
        let to = datagram.destination(peer)?;
        if !self.state.drops_output() {
            self.output.put_datagram_to(to, message);
        }
        Ok(())
    }

    /// A handle to the socket of this datagram, with which other threads send datagrams to any
    /// peer: see [`DatagramSender`].
    ///
    /// ```
    /// use std::thread;
    /// use socketserver::handler_fn;
    ///
    /// let later = handler_fn(|message, cx| {
    ///     let (sender, peer, answer) = (cx.datagram_sender()?, cx.peer().clone(), message.to_vec());
    ///     thread::spawn(move || sender.send_to(&peer, &answer));
    ///     Ok(())
    /// });
    /// # let _ = later;
    /// ```
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
