//! Blocking sessions: a session serves one request to its end and may block. Requests on the event
//! loop are in `event_loop`.

use crate::address::LogPeer;
use crate::closing::Lingering;
use crate::conversation::Scratch;
use crate::error::{CloseReason, UnsupportedError};
use crate::server_state::StopRequester;
use crate::sys::CatchDrop;

mod active;
mod datagram;
mod interruptible;
mod limits;
mod request;
mod standing;
mod stream;
mod wait;
mod wait_limits;

pub(crate) use active::{ActiveConnections, Registration};
pub(crate) use datagram::DatagramSession;
pub(crate) use interruptible::{InterruptibleWait, OtherClients};
pub(crate) use request::{DatagramRequestSession, StreamRequestSession};
pub use request::{Request, RequestHandler};
pub(crate) use standing::Standing;
pub(crate) use stream::{SessionLimits, StreamSession};
pub(crate) use wait::WaitStrategy;

/// A request with its handler, ready to be served to its end.
pub(crate) trait Session {
    /// Serves the request. Never panics.
    fn run(self: Box<Self>, cx: &mut SessionCx<'_>) -> Served;
}

/// The result of a session.
pub(crate) struct Served {
    pub(crate) origin: LogPeer,
    pub(crate) reason: CatchDrop<CloseReason>,
    /// Whether output was lost.
    pub(crate) cut: bool,
    /// A connection that still lingers, if the event loop must finish it.
    pub(crate) lingering: Option<Lingering>,
}

/// The context of a session: what its thread provides.
pub(crate) struct SessionCx<'a> {
    /// The buffers of the thread.
    pub(crate) scratch: &'a mut Scratch,
    /// Whether the event loop, and not this thread, finishes a connection that lingers.
    pub(crate) leaves_lingering: bool,
    /// How the session waits for its peer.
    pub(crate) wait: WaitStrategy<'a>,
    /// Why the session has no `Sender`, if it does not run in its own thread.
    pub(crate) no_sender: UnsupportedError,
    /// The handle by which its handler requests a stop of the server.
    pub(crate) stop: &'a StopRequester,
}
