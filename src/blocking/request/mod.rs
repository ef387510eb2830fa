//! Blocking request handlers, as in Python: one blocking call per request, which reads and writes
//! as with a file.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::address::{Address, Credentials, Peer};
use crate::counters::Tally;
use crate::datagram::{Datagram, ReplySocket};
use crate::error::{HandlerResult, Limit};
use crate::server_state::StopRequester;
use crate::sys;
use crate::transport::local_address;
pub(crate) use session::{DatagramRequestSession, StreamRequestSession};
use stream::Stream;

mod reading;
mod session;
mod stream;

/// A handler that serves one request from its first byte to its last and may block: Python's
/// `BaseRequestHandler`, `StreamRequestHandler` and `DatagramRequestHandler` in one.
///
/// A new value is made for each request: a connection, or a datagram. It runs under the modes that
/// may block: [`Inline`](crate::Inline), [`Threading`](crate::Threading), [`Pool`](crate::Pool),
/// [`Forking`](crate::Forking).
///
/// A stop of the server waits for a request until its handler returns, or until the
/// [`drain`](crate::Server::drain_timeout) deadline; [`Request::set_idle`] says when it need not.
///
/// The order is Python's: where `setup` fails, neither of the others runs; where `handle` fails,
/// `finish` runs all the same. When all is done, what was written is flushed and the connection is
/// closed. An `Err` or a panic costs this request and no other (with `panic = "abort"` in the profile
/// a panic ends the process); an [`io::Error`] that says that the peer is gone or too slow is not a
/// fault of the handler, and is reported as a disconnect or a timeout.
///
/// In the guide: [`blocking_work`](crate::guide::blocking_work),
/// [`choosing_a_mode`](crate::guide::choosing_a_mode), [`files`](crate::guide::files),
/// [`stopping`](crate::guide::stopping), [`streaming`](crate::guide::streaming),
/// [`timeouts`](crate::guide::timeouts).
///
/// ```
/// use std::io::Write;
/// use socketserver::{HandlerResult, Request, RequestHandler};
///
/// /// Each line back, until a blank one.
/// struct EchoLines;
///
/// impl RequestHandler for EchoLines {
///     fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
///         while let Some(line) = request.read_line()? {
///             if line.is_empty() {
///                 break;
///             }
///             request.write_all(&line)?;
///             request.write_all(b"\n")?;
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait RequestHandler {
    /// Called before [`handle`](RequestHandler::handle).
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{HandlerResult, Request, RequestHandler};
    ///
    /// struct Patient;
    ///
    /// impl RequestHandler for Patient {
    ///     fn setup(&mut self, request: &mut Request<'_>) -> HandlerResult {
    ///         request.set_timeout(Duration::from_secs(10));
    ///         Ok(())
    ///     }
    ///
    ///     fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
    ///         let _line = request.read_line()?;
    ///         Ok(())
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// An error ends the request; neither of the others is called.
    fn setup(&mut self, request: &mut Request<'_>) -> HandlerResult {
        let _ = request;
        Ok(())
    }

    /// Does all that the request asks for; when it returns, the connection is closed.
    ///
    /// # Errors
    ///
    /// An error ends the request, after [`finish`](RequestHandler::finish).
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult;

    /// Called after [`handle`](RequestHandler::handle), whether that succeeded or not.
    ///
    /// ```
    /// use socketserver::{HandlerResult, Request, RequestHandler};
    ///
    /// struct Logged;
    ///
    /// impl RequestHandler for Logged {
    ///     fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
    ///         let _line = request.read_line()?;
    ///         Ok(())
    ///     }
    ///
    ///     fn finish(&mut self, request: &mut Request<'_>) -> HandlerResult {
    ///         log::info!("{} is served", request.client_address()); // also if `handle` has failed
    ///         Ok(())
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// An error is reported, unless `handle` has failed already.
    fn finish(&mut self, request: &mut Request<'_>) -> HandlerResult {
        let _ = request;
        Ok(())
    }
}

impl<R: RequestHandler + ?Sized> RequestHandler for Box<R> {
    fn setup(&mut self, request: &mut Request<'_>) -> HandlerResult {
        (**self).setup(request)
    }

    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        (**self).handle(request)
    }

    fn finish(&mut self, request: &mut Request<'_>) -> HandlerResult {
        (**self).finish(request)
    }
}

/// A request as a [`RequestHandler`] sees it: a connection, or a datagram.
///
/// It reads ([`Read`](std::io::Read), [`BufRead`]: Python's `rfile`) and writes ([`Write`]: Python's `wfile`).
///
/// * On a stream a read waits for the peer, and a write goes out at once, whole, unless
///   [`set_write_buffer`](Request::set_write_buffer) says otherwise.
/// * Of a datagram, reading gives its bytes; what is written becomes one datagram in reply, sent
///   when the handler is done, and none if nothing was written.
///
/// In the guide: [`files`](crate::guide::files), [`stopping`](crate::guide::stopping),
/// [`timeouts`](crate::guide::timeouts).
///
/// ```
/// use std::io::{Read, Write};
/// use std::time::Duration;
/// use socketserver::{HandlerResult, Request, RequestHandler};
///
/// /// Python's `self.request.recv(1024)` and `self.request.sendall(...)`.
/// struct Once;
///
/// impl RequestHandler for Once {
///     fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
///         request.set_timeout(Duration::from_secs(10));
///         let mut buffer = [0; 1024];
///         let count = request.read(&mut buffer)?; // 0 at the end of input
///         Ok(request.write_all(&buffer[..count])?)
///     }
/// }
/// ```
pub struct Request<'a> {
    channel: Channel<'a>,
    peer: Peer,
    server_address: &'a Address,
    stop: &'a StopRequester,
    tally: &'a mut Tally,
    /// What was written and has not gone out.
    written: Vec<u8>,
}

#[allow(clippy::large_enum_variant)] // there is one for each request, on the stack
enum Channel<'a> {
    Stream(Stream<'a>),
    Datagram {
        reply_socket: Arc<ReplySocket>,
        datagram: Datagram,
        /// How much of the packet has been read.
        at: usize,
        /// Something was written, be it nothing.
        answered: bool,
    },
}

/// The most bytes that a UDP datagram holds over IPv4, see udp(7).
const LONGEST_UDP: usize = 65_507;

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("client_address", &self.peer).finish_non_exhaustive()
    }
}

impl<'a> Request<'a> {
    fn new(
        channel: Channel<'a>,
        peer: Peer,
        server_address: &'a Address,
        stop: &'a StopRequester,
        tally: &'a mut Tally,
    ) -> Self {
        Request { channel, peer, server_address, stop, tally, written: Vec::new() }
    }
}

impl Request<'_> {
    /// The longest line that [`read_line`](Request::read_line) takes, in bytes.
    ///
    /// ```
    /// use socketserver::Request;
    ///
    /// assert_eq!(Request::MAX_LINE, 65_536);
    /// ```
    pub const MAX_LINE: usize = 64 * 1024;

    /// The address of the client: Python's `client_address`.
    ///
    /// ```
    /// use socketserver::{HandlerResult, Request, RequestHandler};
    ///
    /// struct Logged;
    ///
    /// impl RequestHandler for Logged {
    ///     fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
    ///         log::info!("{} has come to {}", request.client_address(), request.server_address());
    ///         Ok(())
    ///     }
    /// }
    /// ```
    pub fn client_address(&self) -> &Peer {
        &self.peer
    }

    /// Where the server was asked.
    ///
    /// ```
    /// use socketserver::{HandlerResult, Request};
    ///
    /// fn handle(request: &mut Request<'_>) -> HandlerResult {
    ///     log::info!("a request at {}", request.server_address());
    ///     Ok(())
    /// }
    /// ```
    pub fn server_address(&self) -> &Address {
        self.server_address
    }

    /// The address of this end of the connection, see
    /// [getsockname(2)](https://man7.org/linux/man-pages/man2/getsockname.2.html): the one that the
    /// client has connected to, also where the server is bound to all addresses of the host. An IPv4
    /// client of a dual-stack server has connected to an IPv4 address.
    ///
    /// Of a datagram, it is the address that its socket is bound to.
    ///
    /// ```
    /// use std::io::Write;
    /// use socketserver::{HandlerResult, Request};
    ///
    /// fn handle(request: &mut Request<'_>) -> HandlerResult {
    ///     let here = request.local_addr()?; // 192.0.2.1, say, where the server listens on 0.0.0.0
    ///     Ok(writeln!(request, "you have reached {here}")?)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// That of getsockname(2).
    pub fn local_addr(&self) -> io::Result<Address> {
        match &self.channel {
            Channel::Stream(stream) => local_address(&stream.socket),
            Channel::Datagram { .. } => Ok(self.server_address.clone()),
        }
    }

    /// The process at the other end of a Unix stream socket.
    ///
    /// ```
    /// use std::io::Write;
    /// use socketserver::{HandlerResult, Request, RequestHandler};
    ///
    /// /// Serves root alone.
    /// struct Control;
    ///
    /// impl RequestHandler for Control {
    ///     fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
    ///         if request.credentials()?.uid != 0 {
    ///             return Ok(request.write_all(b"permission denied\n")?);
    ///         }
    ///         Ok(request.write_all(b"at your service\n")?)
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] where the socket has none, as TCP and datagrams; otherwise that of
    /// getsockopt(2).
    pub fn credentials(&self) -> io::Result<Credentials> {
        match &self.channel {
            Channel::Stream(stream) => sys::peer_credentials(&stream.socket),
            Channel::Datagram { reply_socket, .. } => sys::peer_credentials(&reply_socket.socket),
        }
    }

    /// Asks the server to stop, and returns at once; the stop waits for this request, unless it is
    /// [idle](Request::set_idle).
    ///
    /// ```
    /// use std::io::Write;
    /// use socketserver::{HandlerResult, Request};
    ///
    /// fn handle(request: &mut Request<'_>) -> HandlerResult {
    ///     while let Some(line) = request.read_line()? {
    ///         if line == b"shutdown" {
    ///             request.stop_server(); // returns at once
    ///             break;
    ///         }
    ///         request.write_all(b"ok\n")?;
    ///     }
    ///     Ok(())
    /// }
    /// ```
    #[doc(alias = "shutdown")]
    pub fn stop_server(&self) {
        self.stop.request();
    }

    /// Python's `rfile`: the request itself, which reads.
    ///
    /// ```
    /// use std::io::BufRead;
    /// use socketserver::{HandlerResult, Request};
    ///
    /// fn handle(request: &mut Request<'_>) -> HandlerResult {
    ///     let mut line = Vec::new();
    ///     request.rfile().read_until(b'\n', &mut line)?; // Python: self.rfile.readline()
    ///     Ok(())
    /// }
    /// ```
    pub fn rfile(&mut self) -> &mut Self {
        self
    }

    /// Python's `wfile`: the request itself, which writes.
    ///
    /// ```
    /// use std::io::Write;
    /// use socketserver::{HandlerResult, Request};
    ///
    /// fn handle(request: &mut Request<'_>) -> HandlerResult {
    ///     Ok(request.wfile().write_all(b"hello\n")?) // Python: self.wfile.write(b"hello\n")
    /// }
    /// ```
    pub fn wfile(&mut self) -> &mut Self {
        self
    }

    /// The datagram's bytes: Python's `packet`; `None` on a stream.
    ///
    /// ```
    /// use std::io::Write;
    /// use socketserver::{HandlerResult, Request};
    ///
    /// fn handle(request: &mut Request<'_>) -> HandlerResult {
    ///     let data = request.packet().unwrap_or_default().to_ascii_uppercase();
    ///     Ok(request.write_all(&data)?) // one datagram back
    /// }
    /// ```
    pub fn packet(&self) -> Option<&[u8]> {
        match &self.channel {
            Channel::Datagram { datagram, .. } => Some(&datagram.bytes),
            Channel::Stream(_) => None,
        }
    }

    /// Whether the datagram was longer than the receive size, and was cut to it by the kernel.
    ///
    /// ```
    /// use socketserver::{HandlerResult, Request};
    ///
    /// fn handle(request: &mut Request<'_>) -> HandlerResult {
    ///     if request.is_truncated() {
    ///         log::warn!("{} has sent too long a datagram", request.client_address());
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn is_truncated(&self) -> bool {
        matches!(&self.channel, Channel::Datagram { datagram, .. } if datagram.truncated)
    }

    /// Reads up to and with the next `\n`; the line comes without its `\n` or `\r\n`. `None` when
    /// the peer has ended; a last line without an end is a line.
    ///
    /// ```
    /// use std::io::Write;
    /// use socketserver::{HandlerResult, Request};
    ///
    /// fn handle(request: &mut Request<'_>) -> HandlerResult {
    ///     while let Some(line) = request.read_line()? {
    ///         request.write_all(&line)?; // without its end
    ///         request.write_all(b"\n")?;
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] for a line over [`MAX_LINE`](Request::MAX_LINE), and what
    /// reading gives; after [`io::ErrorKind::TimedOut`] the call may be repeated, and nothing is
    /// lost.
    pub fn read_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.whole(Self::next_line)
    }

    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut scanned = 0;
        loop {
            let unread = self.unread();
            let newline = unread[scanned..].iter().position(|&byte| byte == b'\n');
            let (length, taken) = match newline {
                Some(at) => (scanned + at, scanned + at + 1),
                None => (unread.len(), unread.len()),
            };
            if length > Self::MAX_LINE {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a line is longer than {} bytes", Self::MAX_LINE),
                ));
            }
            scanned = length;
            // At the end, what is there is the line.
            if newline.is_some() || !self.read_more()? {
                let line = &self.unread()[..length];
                let line =
                    if newline.is_some() { line.strip_suffix(b"\r").unwrap_or(line) } else { line };
                let line = (taken > 0).then(|| line.to_vec());
                self.consume(taken);
                return Ok(line);
            }
        }
    }

    /// Sets how long a read or a write may wait for the peer, each time; `None`, the default, is for
    /// ever. Python's `timeout` of a `StreamRequestHandler`. A datagram never waits.
    ///
    /// A write does not time out while the peer takes some of the output within each such time, as
    /// [`Context::set_idle_timeout`](crate::Context::set_idle_timeout) says; after one that has failed, the
    /// connection ends in a reset, so that its answer does not look whole.
    #[doc(alias = "timeout")]
    pub fn set_timeout(&mut self, timeout: impl Into<Option<Duration>>) {
        if let Channel::Stream(stream) = &mut self.channel {
            stream.set_timeout(timeout.into());
        }
    }

    /// Sets when reads and writes end, however much the peer sends or takes meanwhile; `None`, the
    /// default, is never. From then on each of them fails with [`io::ErrorKind::TimedOut`], beside what
    /// [`set_timeout`](Request::set_timeout) says. So a peer that sends one byte a minute keeps no thread
    /// for long. A datagram never waits.
    ///
    /// What has been received already is read all the same, and what is only gathered, see
    /// [`set_write_buffer`](Request::set_write_buffer), is written. After a write that has failed the
    /// connection ends in a reset, also where that is the write of the rest when the handler is done; a
    /// handler that has a last word to say after its deadline sets another one for that.
    ///
    /// ```
    /// use std::io::Write;
    /// use std::time::{Duration, Instant};
    /// use socketserver::{HandlerResult, Request, RequestHandler};
    ///
    /// /// Answers a line that comes whole within ten seconds.
    /// struct Prompt;
    ///
    /// impl RequestHandler for Prompt {
    ///     fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
    ///         request.set_deadline(Instant::now() + Duration::from_secs(10));
    ///         match request.read_line() {
    ///             Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
    ///                 request.set_deadline(Instant::now() + Duration::from_secs(1));
    ///                 Ok(request.write_all(b"too late\n")?)
    ///             }
    ///             Err(error) => Err(error.into()),
    ///             Ok(line) => Ok(request.write_all(&line.unwrap_or_default())?),
    ///         }
    ///     }
    /// }
    /// ```
    pub fn set_deadline(&mut self, deadline: impl Into<Option<Instant>>) {
        if let Channel::Stream(stream) = &mut self.channel {
            stream.wait_limits.deadline = deadline.into();
        }
    }

    /// Sends a part of a file, `range` in bytes from its start: Python's `socket.sendfile`. What was
    /// written before goes out first. The file's own position is neither used nor moved.
    ///
    /// On a stream it returns when the kernel has taken all of it, and waits for the peer as a write
    /// does, with the same [timeout](Request::set_timeout) and [deadline](Request::set_deadline). On
    /// Linux the kernel sends the file without a copy, by
    /// [sendfile(2)](https://man7.org/linux/man-pages/man2/sendfile.2.html); elsewhere, or where a file
    /// system cannot do that, up to 64 KiB at a time are read and sent.
    ///
    /// Of a datagram, the bytes are read and become a part of the reply.
    ///
    /// ```
    /// use std::fs::File;
    /// use std::io::Write;
    /// use socketserver::{HandlerResult, Request, RequestHandler};
    ///
    /// /// Sends the length of a file in a line, and the file.
    /// struct Download;
    ///
    /// impl RequestHandler for Download {
    ///     fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
    ///         let file = File::open("/etc/services")?;
    ///         let length = file.metadata()?.len();
    ///         request.set_write_buffer(1024); // the line goes out with the file
    ///         writeln!(request, "{length}")?;
    ///         Ok(request.send_file(&file, 0..length)?)
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::UnexpectedEof`] where the file is shorter than the range, and what reading the
    /// file and writing to the peer give; on a stream the connection ends in a reset then, so that its
    /// answer does not look whole. [`io::ErrorKind::InvalidInput`] where the reply would be longer than a
    /// datagram can be: 65,507 bytes over UDP, and over a Unix socket the size of its send buffer.
    #[doc(alias = "sendfile")]
    pub fn send_file(&mut self, file: &File, range: Range<u64>) -> io::Result<()> {
        match &mut self.channel {
            Channel::Stream(stream) => {
                let written = std::mem::take(&mut self.written);
                stream.write_all(&written, !range.is_empty(), self.tally)?;
                stream.send_file(file, range, self.tally)
            }
            Channel::Datagram { reply_socket, answered, .. } => {
                let most = match self.peer {
                    Peer::Inet(_) => LONGEST_UDP,
                    _ => reply_socket.socket.send_buffer_size()?,
                };
                append_file(&mut self.written, file, range, most)?;
                *answered = true;
                Ok(())
            }
        }
    }

    /// Says whether the request is idle: whether its handler, when it next reads, waits for something
    /// new, as a server of HTTP does between two requests of a connection. False by default, so that a
    /// stop of the server takes the request to be in progress until the handler returns.
    ///
    /// While it is idle, a stop ends a read that waits and has nothing buffered: the read returns
    /// [`io::ErrorKind::ConnectionAborted`] at once, and the request is counted in
    /// [`StopReport::idle`](crate::StopReport::idle). Input that came before the stop is read all the
    /// same. The setting stays until it is changed: say false when a request has begun, so that the
    /// reads of its rest are not ended. A datagram never waits, and is never idle.
    ///
    /// ```
    /// use std::io::Write;
    /// use socketserver::{HandlerResult, Request, RequestHandler};
    ///
    /// /// Answers commands of two lines each.
    /// struct Commands;
    ///
    /// impl RequestHandler for Commands {
    ///     fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
    ///         loop {
    ///             request.set_idle(true); // a stop need not wait for a command that has not begun
    ///             let Some(name) = request.read_line()? else { return Ok(()) };
    ///             request.set_idle(false);
    ///             let Some(argument) = request.read_line()? else { return Ok(()) };
    ///             request.write_all(&[&name, &b" "[..], &argument, b"\n"].concat())?;
    ///         }
    ///     }
    /// }
    /// ```
    pub fn set_idle(&mut self, idle: bool) {
        if let Channel::Stream(stream) = &mut self.channel {
            stream.idle = idle;
        }
    }

    /// Sends small writes at once (true: Python's `disable_nagle_algorithm`, and here the default),
    /// or gathers them into full segments. Nothing on a Unix socket or a datagram.
    ///
    /// ```
    /// use socketserver::{HandlerResult, Request};
    ///
    /// fn handle(request: &mut Request<'_>) -> HandlerResult {
    ///     Ok(request.set_nodelay(false)?) // many small writes are joined
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// What setsockopt(2) says.
    #[doc(alias = "disable_nagle_algorithm")]
    pub fn set_nodelay(&mut self, nodelay: bool) -> io::Result<()> {
        match (&self.channel, &self.peer) {
            (Channel::Stream(stream), Peer::Inet(_)) => stream.socket.set_tcp_nodelay(nodelay),
            _ => Ok(()),
        }
    }

    /// Sets how many written bytes are gathered before they go out: Python's `wbufsize`. 0, the
    /// default, sends each write by itself. What is left goes out by [`flush`](Write::flush), or
    /// when the handler is done.
    ///
    /// ```
    /// use std::io::Write;
    /// use socketserver::{HandlerResult, Request};
    ///
    /// fn handle(request: &mut Request<'_>) -> HandlerResult {
    ///     request.set_write_buffer(16 * 1024);
    ///     for number in 0..1000 {
    ///         writeln!(request, "{number}")?; // no system call for each line
    ///     }
    ///     Ok(request.flush()?)
    /// }
    /// ```
    #[doc(alias = "wbufsize")]
    pub fn set_write_buffer(&mut self, bytes: usize) {
        if let Channel::Stream(stream) = &mut self.channel {
            stream.write_buffer = bytes;
        }
    }

    /// What can be read without waiting.
    fn unread(&self) -> &[u8] {
        match &self.channel {
            Channel::Stream(stream) => stream.unread(),
            Channel::Datagram { datagram, at, .. } => &datagram.bytes[*at..],
        }
    }

    /// Runs a call that may need several reads: together they have the time of one message.
    fn whole<T>(&mut self, call: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        if matches!(&self.channel, Channel::Stream(stream) if stream.is_in_whole()) {
            return call(self);
        }
        if let Channel::Stream(stream) = &mut self.channel {
            stream.begin_whole();
        }
        let result = call(self);
        if let Channel::Stream(stream) = &mut self.channel {
            stream.end_whole(result.is_ok());
        }
        result
    }

    /// The limit that the connection has reached.
    fn exceeded(&self) -> Option<Limit> {
        match &self.channel {
            Channel::Stream(stream) => stream.exceeded(),
            Channel::Datagram { .. } => None,
        }
    }

    fn read_more(&mut self) -> io::Result<bool> {
        match &mut self.channel {
            Channel::Stream(stream) => stream.read_more(self.tally),
            Channel::Datagram { .. } => Ok(false),
        }
    }

    /// Sends what is due: the rest of a stream's output, a datagram's reply.
    fn close(&mut self) -> io::Result<()> {
        match &mut self.channel {
            Channel::Stream(_) => self.flush(),
            Channel::Datagram { reply_socket, datagram, answered, .. } => {
                if *answered {
                    let Datagram { bytes, from, .. } = &*datagram;
                    let reply = std::iter::once((&self.written[..], from));
                    reply_socket.reply_all(bytes, from, reply, self.tally);
                }
                Ok(())
            }
        }
    }
}

/// The descriptor of the connection, or of the socket that the datagram came by: Python's `request`
/// and `socket`.
impl AsFd for Request<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.channel {
            Channel::Stream(stream) => stream.socket.as_fd(),
            Channel::Datagram { reply_socket, .. } => reply_socket.socket.as_fd(),
        }
    }
}

/// Reads a part of a file to the end of `bytes`, which then are `most` at most; they stay as they were
/// where that fails.
fn append_file(bytes: &mut Vec<u8>, file: &File, range: Range<u64>, most: usize) -> io::Result<()> {
    let start = bytes.len();
    let count = range.end.saturating_sub(range.start);
    if count > most.saturating_sub(start) as u64 {
        let reason = format!("a datagram holds no more than {most} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    bytes.resize(start + count as usize, 0);
    let read = file.read_exact_at(&mut bytes[start..], range.start);
    if read.is_err() {
        bytes.truncate(start);
    }
    read
}
