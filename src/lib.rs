//! Python's `socketserver` for Rust.
#![doc(test(attr(deny(warnings))))]
// A library tells its user through `log` and its return values.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[cfg(not(unix))]
compile_error!("socketserver runs on Unix systems; a port to others is welcome");

mod address;
mod conversation;
mod counters;
mod dispatch;
mod error;
mod mailbox;
mod reactor;
mod server;
mod session;
mod sys;
mod token;
mod transport;

pub use address::{Address, Endpoint, MAX_UNIX_PATH, Peer};
pub use conversation::{
    Context, Delimited, Endian, FixedSize, Framing, Handler, HandlerFn, LengthPrefixed, Lines,
    Output, Overlong, Raw, Step, Width, handler_fn,
};
pub use counters::Counters;
pub use dispatch::{BlockingMode, Forking, Inline, Mode, Offload, Pool, Reactor, Threading};
pub use error::{
    CloseReason, Error, FramingError, HandlerError, HandlerResult, SendError, Unsupported,
};
pub use mailbox::{Sender, broadcast};
pub use server::{
    Builder, HandlerMode, Hooks, ListenerId, NoHooks, RequestMode, Running, Server, Service,
    ShutdownHandle, StopReport,
};
pub use session::{Request, RequestHandler};
pub use sys::raise_descriptor_limit;
