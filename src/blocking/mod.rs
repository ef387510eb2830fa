//! A request and whoever answers it, to its end. Here a session may block; the loop's own way of
//! serving one is the reactor's.

use crate::address::Origin;
use crate::closing::Lingering;
use crate::conversation::Scratch;
use crate::error::{CloseReason, UnsupportedError};
use crate::server_state::StopRequester;
use crate::sys::CatchDrop;

mod active;
mod datagram;
mod patience;
mod request;
mod stream;
mod wait;

pub(crate) use active::{ActiveConnections, Registration};
pub(crate) use datagram::DatagramSession;
pub(crate) use request::{DatagramRequestSession, StreamRequestSession};
pub use request::{Request, RequestHandler};
pub(crate) use stream::{SessionLimits, StreamSession};
pub(crate) use wait::{InterruptibleWait, WaitStrategy};

/// A request with whoever answers it, ready to be served to its end.
pub(crate) trait Session {
    /// Serves it. Never panics.
    fn run(self: Box<Self>, cx: &mut SessionCx<'_>) -> Served;
}

/// How a session went.
pub(crate) struct Served {
    pub(crate) origin: Origin,
    pub(crate) reason: CatchDrop<CloseReason>,
    /// Its output did not all go out.
    pub(crate) cut: bool,
    /// It is over but for this.
    pub(crate) lingering: Option<Lingering>,
}

/// Where a session is served: what its thread lends it.
pub(crate) struct SessionCx<'a> {
    /// What is read into and written from.
    pub(crate) scratch: &'a mut Scratch,
    /// Whether a connection that lingers is left to who asked for it to be served, rather than to
    /// this thread.
    pub(crate) leaves_lingering: bool,
    /// How it waits for its peer.
    pub(crate) wait: WaitStrategy<'a>,
    /// Why nothing can be sent to it from elsewhere, where it is not in a thread of its own.
    pub(crate) no_sender: UnsupportedError,
    /// What its handler requests a stop of the server by.
    pub(crate) stop: &'a StopRequester,
}
