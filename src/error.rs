//! Errors as plain data: of a server ([`Error`]), of a handler ([`HandlerError`],
//! [`UnsupportedError`], [`SendError`]), and the reasons why a connection was closed
//! ([`CloseReason`], [`Limit`]).

use std::fmt;
use std::io;

/// The error of a handler: any error type, converted by `?`.
///
/// ```
/// use socketserver::{CloseReason, HandlerError};
///
/// let error: HandlerError = "no such account".into(); // or any error type, by `?`
/// assert_eq!(CloseReason::Error(error).to_string(), "handler failed: no such account");
/// ```
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

/// The result of every method of a handler.
///
/// ```
/// use socketserver::{Context, HandlerResult};
///
/// /// Answers a number by its double. Any error closes the connection.
/// fn double(message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
///     let number: i64 = std::str::from_utf8(message)?.trim().parse()?;
///     cx.send((2 * number).to_string().as_bytes())
/// }
/// ```
pub type HandlerResult = Result<(), HandlerError>;

/// An error of building a server or of running its event loop.
///
/// `{error}` prints the error without the system's message, which is its
/// [`source`](std::error::Error::source); `{error:#}` prints both in one line.
///
/// ```
/// use socketserver::Server;
///
/// let error = Server::tcp("127.0.0.1:99999").unwrap_err();
/// assert!(error.is_usage()); // what the user gave is wrong
/// println!("{error:#}"); // with its source, in one line
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The text or path is not a valid address to listen on; no socket was made.
    UnusableAddress {
        /// The address as it was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The host name could not be resolved.
    Resolve {
        /// The address as it was given.
        address: String,
        /// The error of the resolver.
        source: io::Error,
    },
    /// The address could not be bound or listened on: it is in use, does not belong to this
    /// machine, or is not permitted.
    Bind {
        /// The address, as a URL.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// An option of the builder has no meaning for this transport, or the system did not set it.
    Option {
        /// The name of the builder's method.
        option: &'static str,
        /// The address, as a URL.
        address: String,
        /// The error; its kind is [`io::ErrorKind::InvalidInput`] if the option has no meaning here
        /// or its value is invalid.
        source: io::Error,
    },
    /// The mode cannot be used in this way; the text says why and what to do instead.
    Mode(String),
    /// The event loop itself failed: the poller, the wake-up descriptor or the signal handlers.
    Loop(io::Error),
}

impl Error {
    pub(crate) fn unusable_address(address: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Error::UnusableAddress { address: address.to_string(), reason: reason.to_string() }
    }

    /// Whether the caller's arguments caused the error, and not the state of the system. A program
    /// usually exits with 2 if they did, and with 1 otherwise.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::UnusableAddress { .. } | Error::Mode(_) => true,
            Error::Option { source, .. } => source.kind() == io::ErrorKind::InvalidInput,
            Error::Resolve { .. } | Error::Bind { .. } | Error::Loop(_) => false,
        }
    }

    /// The kind of the system's error that caused this one, if there is one.
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use std::net::TcpListener;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let other = TcpListener::bind("127.0.0.1:0")?;
    /// let error = Server::tcp(other.local_addr()?)?
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))
    ///     .unwrap_err();
    /// assert_eq!(error.io_kind(), Some(ErrorKind::AddrInUse));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Error::Resolve { source, .. }
            | Error::Bind { source, .. }
            | Error::Option { source, .. }
            | Error::Loop(source) => Some(source.kind()),
            Error::UnusableAddress { .. } | Error::Mode(_) => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::UnusableAddress { address, reason } => {
                write!(f, "cannot listen on {address}: {reason}")
            }
            Error::Resolve { address, .. } => write!(f, "cannot resolve {address}"),
            Error::Bind { address, .. } => write!(f, "cannot listen on {address}"),
            Error::Option { option, address, .. } => write!(f, "cannot set {option} on {address}"),
            Error::Mode(reason) => f.write_str(reason),
            Error::Loop(_) => f.write_str("the loop failed"),
        }?;
        match std::error::Error::source(self) {
            Some(source) if f.alternate() => write!(f, ": {source}"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Resolve { source, .. }
            | Error::Bind { source, .. }
            | Error::Option { source, .. }
            | Error::Loop(source) => Some(source),
            Error::UnusableAddress { .. } | Error::Mode(_) => None,
        }
    }
}

/// The reason why a connection was closed, or a datagram's request ended: an argument of
/// [`Handler::on_close`](crate::Handler::on_close), [`Handler::on_reject`](crate::Handler::on_reject)
/// and [`Hooks::handle_error`](crate::Hooks::handle_error).
///
/// In the guide: [`limits`](crate::guide::limits),
/// [`logging_and_counters`](crate::guide::logging_and_counters).
///
/// ```
/// use socketserver::{CloseReason, Limit};
///
/// fn is_clients_fault(reason: &CloseReason) -> bool {
///     matches!(reason, CloseReason::Framing(_) | CloseReason::Limit(Limit::MessageDeadline))
/// }
///
/// assert!(!is_clients_fault(&CloseReason::Eof));
/// assert_eq!(CloseReason::Eof.to_string(), "end of input");
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum CloseReason {
    /// The handler or a [`Sender`](crate::Sender) closed the connection. It is also the reason when
    /// the request of a datagram ends without a fault.
    Handler,
    /// The peer ended its output, and the handler did not keep the connection open.
    Eof,
    /// The peer has disconnected: a reset, a broken pipe, or a network that no longer reaches it.
    Disconnected(io::Error),
    /// [`Handler::on_idle_timeout`](crate::Handler::on_idle_timeout) closed the connection.
    Timeout,
    /// The peer sent bytes that are not a valid frame, or ended inside of one.
    Framing(FramingError),
    /// The handler returned an error, or a file in its output could not be read
    /// ([`io::ErrorKind::UnexpectedEof`] if the file is shorter than its range).
    Error(HandlerError),
    /// The handler or a framing of the user panicked; the text is the panic's message.
    Panic(String),
    /// The server is stopping.
    Shutdown,
    /// The connection has reached one of its [`Limits`](crate::Limits), or one of the server's.
    Limit(Limit),
}

/// The limit that a connection has reached: see [`CloseReason::Limit`].
///
/// ```
/// use socketserver::{CloseReason, Limit};
///
/// let reason = CloseReason::Limit(Limit::MessageDeadline);
/// println!("{reason}");
/// assert!(!reason.is_fault()); // the client's doing, and not the handler's
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// The number of connections: another client wants to connect, and no whole message has come
    /// from this one ([`WhenFull::CloseSilent`](crate::WhenFull::CloseSilent)).
    Connections,
    /// The time for one message: [`Limits::message_deadline`](crate::Limits::message_deadline).
    MessageDeadline,
    /// The time for the first message:
    /// [`Limits::first_message_deadline`](crate::Limits::first_message_deadline).
    FirstMessageDeadline,
    /// The time in which the peer takes no output:
    /// [`Limits::write_timeout`](crate::Limits::write_timeout).
    WriteTimeout,
    /// The size of undecoded input:
    /// [`Limits::max_buffered_input`](crate::Limits::max_buffered_input).
    BufferedInput,
    /// The memory of all connections: [`Server::max_memory`](crate::Server::max_memory).
    Memory,
    /// The age of the connection: [`Limits::max_lifetime`](crate::Limits::max_lifetime).
    Lifetime,
    /// The number of messages: [`Limits::max_messages`](crate::Limits::max_messages).
    Messages,
}

impl Limit {
    /// Whether the connection is reset, and its handler is not asked for last words: they could not
    /// reach the peer.
    pub(crate) fn resets(self) -> bool {
        matches!(self, Limit::WriteTimeout | Limit::Memory)
    }

    /// Whether the connection makes room at once, and does not linger.
    pub(crate) fn frees_at_once(self) -> bool {
        self == Limit::Connections
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::Connections => "too many connections, and this one sent no whole message",
            Limit::MessageDeadline => "a message took too long",
            Limit::FirstMessageDeadline => "the first message took too long",
            Limit::WriteTimeout => "the peer takes no output",
            Limit::BufferedInput => "too much undecoded input",
            Limit::Memory => "the connections hold too much memory",
            Limit::Lifetime => "the connection is too old",
            Limit::Messages => "too many messages",
        })
    }
}

impl CloseReason {
    /// Whether the program caused the close by an error or a panic, and not the peer or the
    /// network. Such a reason is given to [`Hooks::handle_error`](crate::Hooks::handle_error).
    ///
    /// ```
    /// use socketserver::CloseReason;
    ///
    /// assert!(CloseReason::Panic("index out of bounds".into()).is_fault());
    /// assert!(!CloseReason::Timeout.is_fault());
    /// ```
    pub fn is_fault(&self) -> bool {
        matches!(self, CloseReason::Error(_) | CloseReason::Panic(_))
    }

    /// Whether the connection makes room at once, and does not linger.
    pub(crate) fn frees_at_once(&self) -> bool {
        matches!(self, CloseReason::Limit(limit) if limit.frees_at_once())
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Handler => f.write_str("closed by the handler"),
            CloseReason::Eof => f.write_str("end of input"),
            CloseReason::Disconnected(error) => write!(f, "disconnected: {error}"),
            CloseReason::Timeout => f.write_str("timed out"),
            CloseReason::Framing(error) => write!(f, "bad frame: {error}"),
            CloseReason::Error(error) => write!(f, "handler failed: {error}"),
            CloseReason::Panic(message) => write!(f, "handler panicked: {message}"),
            CloseReason::Shutdown => f.write_str("the server is stopping"),
            CloseReason::Limit(limit) => write!(f, "limit reached: {limit}"),
        }
    }
}

/// The reason why bytes are not a valid frame, or why a message cannot be encoded as one.
///
/// ```
/// use socketserver::{Framing, FramingError, Lines};
///
/// let error = Lines::default().max_len(3).decode(b"too long\n").unwrap_err();
/// assert!(matches!(error, FramingError::TooLong { limit: 3 }));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum FramingError {
    /// A frame is longer than the framing's maximum, in bytes.
    TooLong {
        /// The framing's maximum.
        limit: usize,
    },
    /// The peer ended inside a frame.
    UnexpectedEof {
        /// How many bytes of the frame had been received.
        buffered: usize,
    },
    /// The framing cannot encode this message, for example because it contains the delimiter.
    Unencodable(&'static str),
    /// The error of a framing that the user has written.
    Other(HandlerError),
}

impl fmt::Display for FramingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FramingError::TooLong { limit } => write!(f, "longer than {limit} bytes"),
            FramingError::UnexpectedEof { buffered } => {
                write!(f, "the input ended inside a frame, after {buffered} bytes of it")
            }
            FramingError::Unencodable(reason) => f.write_str(reason),
            FramingError::Other(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for FramingError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // `Display` prints the inner error itself, so the source is the inner error's source.
            FramingError::Other(error) => error.source(),
            _ => None,
        }
    }
}

/// The error of a call that this kind of request or this mode does not support, on a
/// [`Context`](crate::Context) or an [`Output`](crate::Output).
///
/// In the guide: [`files`](crate::guide::files),
/// [`reaching_others`](crate::guide::reaching_others), [`timeouts`](crate::guide::timeouts).
///
/// ```
/// use socketserver::{Context, HandlerResult, UnsupportedError};
///
/// /// Sets a timer where there is one: a datagram has none.
/// fn remind(cx: &mut Context<'_>) -> HandlerResult {
///     match cx.set_timer(cx.now() + std::time::Duration::from_secs(1)) {
///         Err(UnsupportedError::DatagramTimeout) => Ok(()),
///         result => Ok(result?),
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnsupportedError {
    /// The request of a datagram ends when the handler returns, so it has neither an idle timeout nor
    /// a timer.
    DatagramTimeout,
    /// The request of a datagram ends when the handler returns, so it has no `Sender`. A
    /// [`DatagramSender`](crate::DatagramSender) sends to its peer.
    DatagramSender,
    /// Under `inline` no other code runs during a request, so there is no `Sender`.
    InlineSender,
    /// Under `forking` threads of the parent process cannot send to the child, so there is no
    /// `Sender`.
    ForkingSender,
    /// A datagram is sent from memory, so it cannot contain a file.
    DatagramFile,
    /// The process has no descriptor left by which a `Sender` could wake the connection's thread.
    NoDescriptor,
    /// A connection can send only to its own peer; a datagram socket can send to other peers.
    StreamSendTo,
    /// The socket cannot send to this peer: the peer has no name, its address is of another family,
    /// or its path is not one that a socket can have.
    UnaddressablePeer,
}

impl fmt::Display for UnsupportedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UnsupportedError::DatagramTimeout => {
                "a datagram has no timeouts or timers: its request ends when the handler returns"
            }
            UnsupportedError::DatagramSender => {
                "a datagram has no sender: its request ends when the handler returns"
            }
            UnsupportedError::DatagramFile => "a datagram cannot contain a file",
            UnsupportedError::InlineSender => {
                "no sender under inline: no other code runs during a request"
            }
            UnsupportedError::NoDescriptor => {
                "no sender: the process has no descriptor left for it"
            }
            UnsupportedError::StreamSendTo => {
                "a connection sends only to its own peer; a datagram socket sends to others"
            }
            UnsupportedError::UnaddressablePeer => {
                "the peer has no address that this socket can send to"
            }
            UnsupportedError::ForkingSender => {
                "no sender under forking: the peer is in another process"
            }
        })
    }
}

impl std::error::Error for UnsupportedError {}

/// The error of a [`Sender`](crate::Sender) or a [`DatagramSender`](crate::DatagramSender) that did
/// not take a message or an event.
///
/// In the guide: [`streaming`](crate::guide::streaming).
///
/// ```
/// use socketserver::{SendError, Sender};
///
/// /// Sends news to those who can take them; keeps the others.
/// fn news(members: &mut Vec<Sender>, text: &[u8]) {
///     members.retain(|member| match member.send(text) {
///         Err(SendError::Closed) => false, // the connection has ended
///         Err(SendError::Full) => true,    // a slow reader misses this one
///         _ => true,
///     });
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// The connection is closed, or is being closed. For a datagram: the server is dropped and its
    /// socket closed.
    Closed,
    /// The send queue is full: its limit is [`Builder::sender_limit`](crate::Builder::sender_limit)
    /// for messages and 1,024 for events. Either the peer reads too slowly, or the connection's
    /// loop or thread has not emptied the queue yet. For a datagram: the system has no room for it,
    /// and the retry queue is full.
    Full,
    /// The message is longer than the framing can send.
    TooLong {
        /// The length of the longest message that the framing can send, in bytes.
        limit: usize,
    },
    /// The framing cannot encode this message, for example because it contains the delimiter.
    Unencodable(&'static str),
    /// The datagram's peer has no address that the socket can send to.
    Unaddressable,
    /// The system did not send the datagram. The number is the errno(3), which
    /// [`io::Error::from_raw_os_error`] converts into an error.
    Os(i32),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::Closed => f.write_str("the connection or socket is closed"),
            SendError::Full => f.write_str("the send queue is full"),
            SendError::Unaddressable => UnsupportedError::UnaddressablePeer.fmt(f),
            SendError::Os(errno) => io::Error::from_raw_os_error(*errno).fmt(f),
            SendError::TooLong { limit } => write!(f, "longer than {limit} bytes"),
            SendError::Unencodable(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for SendError {}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn an_error_does_not_repeat_the_text_of_its_source() {
        let source = || io::Error::other("the system says no");
        let address = || "tcp://127.0.0.1:1".to_owned();
        for error in [
            Error::Resolve { address: address(), source: source() },
            Error::Bind { address: address(), source: source() },
            Error::Option { option: "ttl", address: address(), source: source() },
            Error::Loop(source()),
        ] {
            assert_eq!(error.source().unwrap().to_string(), "the system says no");
            assert!(!error.to_string().contains("the system"), "{error}");
            assert_eq!(format!("{error:#}"), format!("{error}: the system says no"));
        }
        for error in [Error::unusable_address(address(), "no port"), Error::Mode("none".into())] {
            assert!(error.source().is_none());
            assert_eq!(format!("{error:#}"), error.to_string());
        }
        let other = FramingError::Other(Box::new(Error::Loop(source())));
        assert_eq!(other.to_string(), "the loop failed");
        assert_eq!(other.source().unwrap().to_string(), "the system says no");
    }
}
