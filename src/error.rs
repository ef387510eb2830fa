//! What can go wrong, as plain data: for the one who builds a server ([`Error`]), for the one who
//! writes a handler ([`HandlerError`], [`UnsupportedError`], [`SendError`]) and for the one who is told
//! why a conversation ended ([`CloseReason`]).

use std::fmt;
use std::io;

/// What a handler may return as an error: anything, by `?`.
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

/// What every method of a handler returns.
pub type HandlerResult = Result<(), HandlerError>;

/// Why a server could not be built, or its loop not run on.
///
/// It prints without what the system said, which is its [`source`](std::error::Error::source);
/// `{error:#}` prints both in one line.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The text or path can never be an address to listen on; nothing was tried.
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
        /// What the resolver said.
        source: io::Error,
    },
    /// The address could not be bound or listened on: in use, not of this machine, not permitted.
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
        /// What is wrong with it: of kind [`io::ErrorKind::InvalidInput`] where the option has no
        /// meaning here, or its value none at all.
        source: io::Error,
    },
    /// A mode cannot be used as asked; the text says why and what to do instead.
    Mode(String),
    /// The loop itself failed: the poller, the wake-up descriptor or the signal handlers.
    Loop(io::Error),
}

impl Error {
    pub(crate) fn unusable_address(address: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Error::UnusableAddress { address: address.to_string(), reason: reason.to_string() }
    }

    /// Whether the caller's arguments are at fault, rather than the state of the system: a program
    /// usually exits with 2 for the one and 1 for the other.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::UnusableAddress { .. } | Error::Mode(_) => true,
            Error::Option { source, .. } => source.kind() == io::ErrorKind::InvalidInput,
            Error::Resolve { .. } | Error::Bind { .. } | Error::Loop(_) => false,
        }
    }

    /// The kind of the system's error under it, if there is one.
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

/// Why a conversation ended, told to [`Handler::on_close`](crate::Handler::on_close).
#[derive(Debug)]
#[non_exhaustive]
pub enum CloseReason {
    /// The handler closed it, or a [`Sender`](crate::Sender) of the connection; a datagram's always
    /// ends so.
    Handler,
    /// The peer had said all it will say, and the handler left it at that.
    Eof,
    /// The peer is gone: a reset, a broken pipe, a network that no longer reaches it.
    Disconnected(io::Error),
    /// [`Handler::on_idle_timeout`](crate::Handler::on_idle_timeout) closed it.
    Timeout,
    /// What the peer sent is no frame.
    Framing(FramingError),
    /// The handler returned an error, or a file of its output could not be read as far as it was to be
    /// sent ([`io::ErrorKind::UnexpectedEof`] where it is too short).
    Error(HandlerError),
    /// The handler (or a framing of the user's) panicked; the text is the panic's message.
    Panic(String),
    /// The server is stopping.
    Shutdown,
}

impl CloseReason {
    /// Whether the program is at fault, rather than the peer or the network: these reach
    /// [`Hooks::handle_error`](crate::Hooks::handle_error).
    pub fn is_fault(&self) -> bool {
        matches!(self, CloseReason::Error(_) | CloseReason::Panic(_))
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
        }
    }
}

/// What makes bytes no frame, or a message unfit to be sent as one.
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
        /// How many bytes of it had come.
        buffered: usize,
    },
    /// A message cannot be told apart on the wire, as one that holds its own delimiter.
    Unencodable(&'static str),
    /// A framing of the user's own says so.
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
            // It prints as that one, and so stands for it.
            FramingError::Other(error) => error.source(),
            _ => None,
        }
    }
}

/// A [`Context`](crate::Context) or an [`Output`](crate::Output) was asked for what this request or this
/// mode does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnsupportedError {
    /// A datagram is answered and over: it has no timeout.
    DatagramTimeout,
    /// A datagram is answered and over: nothing can be sent to it from elsewhere. A
    /// [`DatagramSender`](crate::DatagramSender) sends to its peer.
    DatagramSender,
    /// Under `inline` nothing else runs that could send.
    InlineSender,
    /// A forked child cannot be reached from the parent's threads.
    ForkingSender,
    /// A datagram is one piece of memory: no file is sent in it.
    DatagramFile,
    /// The process has no descriptor left to wake the connection's thread by.
    NoDescriptor,
    /// A connection sends to its own peer; only a datagram socket sends to others.
    StreamSendTo,
    /// The socket cannot send to this peer: the peer has no name, its address is of another family,
    /// or its path is not one that a socket can have.
    UnaddressablePeer,
}

impl fmt::Display for UnsupportedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UnsupportedError::DatagramTimeout => {
                "a datagram has no timeout: it is answered at once"
            }
            UnsupportedError::DatagramSender => "a datagram has no sender: it is answered at once",
            UnsupportedError::DatagramFile => "a datagram holds no file: it is one piece of memory",
            UnsupportedError::InlineSender => "no sender under inline: nothing else runs meanwhile",
            UnsupportedError::NoDescriptor => {
                "no sender: the process has no descriptor left for it"
            }
            UnsupportedError::StreamSendTo => {
                "a connection sends to its own peer: only a datagram socket sends to others"
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

/// Why a [`Sender`](crate::Sender) or a [`DatagramSender`](crate::DatagramSender) did not take a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// The connection is closed, or is being closed; what is sent to it goes nowhere. Of a datagram:
    /// the server is dropped, and its socket closed.
    Closed,
    /// As much waits as the limit allows, [`Builder::sender_limit`](crate::Builder::sender_limit) for
    /// messages and 1,024 for events: the peer reads too slowly, or the connection's loop or thread
    /// has not come for it yet. Of a datagram: the system has no room for it, and no more may wait.
    Full,
    /// The message is longer than the framing can send.
    TooLong {
        /// The longest message that it can, in bytes.
        limit: usize,
    },
    /// The framing cannot send such a message, as one that holds its own delimiter.
    Unencodable(&'static str),
    /// The datagram's peer has no address that the socket can send to.
    Unaddressable,
    /// The system did not send the datagram; the number is its errno(3), of which
    /// [`io::Error::from_raw_os_error`] makes an error.
    Os(i32),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::Closed => f.write_str("the connection or socket is closed"),
            SendError::Full => f.write_str("there is no room: as much waits as may"),
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
