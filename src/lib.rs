//! A small library for TCP, UDP and Unix-socket servers, without async: one handler, which runs on an
//! event loop, on worker threads, in a thread or a process per client. It does what
//! Python's [`socketserver`](https://docs.python.org/3/library/socketserver.html) does, and adds the event
//! loop that its documentation only describes.
//!
//! The [`guide`] has a recipe for each task: [time-outs](guide::timeouts), [shared
//! state](guide::shared_state), [other clients](guide::reaching_others), [framing](guide::framing),
//! [stopping](guide::stopping), [limits](guide::limits), [tests](guide::testing) and more.
//!
//! The package has pages that are not in here: `docs/events.md` (each event and effect in each mode),
//! `docs/limits.md` (each limit and counter), `docs/from-python.md` (also in Chinese),
//! `docs/deploying.md`, `docs/troubleshooting.md`, `docs/platforms.md`, `docs/design.md`, and the
//! programs in `examples/README.md`.
//!
//! ```no_run
//! use socketserver::{Context, Handler, HandlerResult, Lines, Server};
//!
//! struct Upper;
//!
//! impl Handler for Upper {
//!     fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
//!         cx.send(&line.to_ascii_uppercase())
//!     }
//! }
//!
//! Server::tcp("127.0.0.1:9999")?
//!     .framing(Lines::default())
//!     .serve(|_| Upper)?
//!     .serve_forever()?;
//! # Ok::<(), socketserver::Error>(())
//! ```
//!
//! One more call, `.mode(Threading::default())`, runs the same handler in another mode:
//!
//! | mode | Python | a request is served | [`Handler`] | [`RequestHandler`] |
//! |---|---|---|---|---|
//! | [`Reactor`], the default | – | on the event loop, all connections at once | yes | no: it blocks |
//! | [`Offload`] | – | by the event loop, its messages by a bounded pool of worker threads | yes, and it may block | no |
//! | [`Inline`] | `TCPServer` | on the event loop's thread, one at a time | yes | yes |
//! | [`Threading`] | `ThreadingMixIn` | in a thread of its own | yes | yes |
//! | [`Pool`] | – | in one of a bounded number of threads | yes | yes |
//! | [`Forking`] | `ForkingMixIn` | in a process of its own | yes | yes |
//!
//! One server can have any number of TCP, UDP, Unix stream and Unix datagram sockets
//! ([`Server::tcp`], [`Server::udp`], [`Server::unix_stream`], [`Server::unix_datagram`]):
//!
//! ```
//! use socketserver::{Server, Threading, handler_fn};
//!
//! let mut server = Server::new()?;
//! server.add(Server::tcp("127.0.0.1:0")?.service(|_| handler_fn(|message, cx| cx.send(message)))?)?;
//! server.add(
//!     Server::udp("127.0.0.1:0")?
//!         .mode(Threading::default())
//!         .service(|_| handler_fn(|_message, cx| cx.send(b"pong")))?,
//! )?;
//! let running = server.spawn()?;
//! println!("listening on {:?}", running.addresses());
//! running.stop()?;
//! # Ok::<(), socketserver::Error>(())
//! ```
//!
//! # Events and effects
//!
//! A [`Handler`] gets events: [`on_open`](Handler::on_open), [`on_message`](Handler::on_message),
//! [`on_writable`](Handler::on_writable) when there is room for output again,
//! [`on_timer`](Handler::on_timer), [`on_event`](Handler::on_event) from other threads,
//! [`on_eof`](Handler::on_eof), [`on_idle_timeout`](Handler::on_idle_timeout),
//! [`on_reject`](Handler::on_reject) of what is not a message, [`on_stop`](Handler::on_stop) and
//! [`on_close`](Handler::on_close). All but `on_message` have a default. It acts through its
//! [`Context`], which lists the effects. An event and an effect mean the same under every mode; what a
//! mode or a datagram cannot give is an [`UnsupportedError`]. What concerns the whole service is in
//! [`Hooks`].
//!
//! # Panics
//!
//! The crate catches a panic in a handler, a framing, a hook, the logger, a handler factory, or a
//! destructor of any of these or of a handler's error, and counts it in [`Counters::panics`]. Under
//! every mode, the panic ends its own request and nothing else. This needs `panic = "unwind"`,
//! Cargo's default; with `panic = "abort"` any panic ends the process. So does a destructor that
//! panics while another panic unwinds through the user's own code: Rust aborts there.
//!
//! # What is logged
//!
//! The crate logs through [`log`](https://docs.rs/log) and never prints: errors and panics of
//! handlers as errors, a listener that cannot accept as a warning (once per period), the end of
//! each connection at debug. A line about a connection begins with its number, see
//! [`ConnectionId`], and its peer: `connection 17 of 127.0.0.1:4711: end of input`; a datagram has
//! no number.

#![doc(test(attr(deny(warnings), allow(dead_code))))]
// A library reports through `log` and its return values, and does not print.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[cfg(not(unix))]
compile_error!("socketserver runs on Unix systems; a port to others is welcome");

mod accepted;
mod address;
mod blocking;
mod closing;
mod connection_id;
mod conversation;
mod counters;
mod datagram;
mod encodable;
mod error;
mod event_loop;
mod guard;
pub mod guide;
mod limits;
mod log_limiter;
mod mailbox;
mod memory;
mod modes;
mod permits;
mod sender;
mod server;
mod server_state;
mod sync;
mod sys;
#[cfg(feature = "testing")]
pub mod testing;
mod token;
mod transport;
mod write_buffer;

pub use accepted::Accepted;
pub use address::{Address, Credentials, Endpoint, MAX_UNIX_PATH, Peer};
pub use blocking::{Request, RequestHandler};
pub use connection_id::ConnectionId;
pub use conversation::{
    Context, Decoded, Delimited, Endian, FixedSize, Framing, Handler, HandlerFn, LengthPrefixed,
    Lines, Output, Overlong, Raw, Width, handler_fn,
};
pub use counters::{Counter, CounterKind, Counters};
pub use datagram::DatagramSender;
pub use encodable::Encodable;
pub use error::{
    CloseReason, Error, FramingError, HandlerError, HandlerResult, Limit, SendError,
    UnsupportedError,
};
pub use limits::{Limits, WhenFull};
pub use modes::{
    BlockingMode, Forking, HandlerMode, Inline, Mode, Offload, Pool, Reactor, RequestMode,
    Threading,
};
pub use sender::{Event, Sender, broadcast};
pub use server::{
    Builder, ForkingTcpServer, ForkingUdpServer, ForkingUnixDatagramServer,
    ForkingUnixStreamServer, Hooks, ListenerId, NoHooks, Running, Server, Service, ShutdownHandle,
    StopReport, TcpServer, ThreadingTcpServer, ThreadingUdpServer, ThreadingUnixDatagramServer,
    ThreadingUnixStreamServer, UdpServer, UnixDatagramServer, UnixStreamServer,
};
pub use sys::raise_descriptor_limit;
pub use transport::Interface;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../README.zh-CN.md")]
struct ReadmeInChinese;

#[cfg(doctest)]
#[doc = include_str!("../docs/deploying.md")]
struct Deploying;

#[cfg(doctest)]
#[doc = include_str!("../docs/from-python.md")]
struct FromPython;

#[cfg(doctest)]
#[doc = include_str!("../docs/from-python.zh-CN.md")]
struct FromPythonInChinese;
