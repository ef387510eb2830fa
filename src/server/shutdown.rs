//! How a server is stopped from anywhere, and the report of a stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::counters::Counters;
use crate::server_state::ServerState;

/// How a stop went: what became of those who were connected when it began, under every mode. Idle is a
/// connection of which no message has come in part and no answer is under way; one that a
/// [`RequestHandler`](crate::RequestHandler) serves is idle where that
/// [says so](crate::Request::set_idle).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StopReport {
    /// Idle when the stop began, and closed at once.
    pub idle: usize,
    /// Busy when the stop began, and finished before the deadline.
    pub finished: usize,
    /// Cut off by the deadline.
    pub aborted: usize,
}

/// Stops a server from another thread, a handler, a hook: from
/// [`Server::shutdown_handle`](crate::Server::shutdown_handle).
#[derive(Debug, Clone)]
pub struct ShutdownHandle {
    control: Arc<ServerState>,
}

impl ShutdownHandle {
    pub(crate) fn new(control: Arc<ServerState>) -> Self {
        ShutdownHandle { control }
    }

    /// Asks the server to stop and returns at once; safe from anywhere, any number of times.
    ///
    /// A handler in a [forked](crate::Forking) child stops the server that forked it. What the child has
    /// of another server, one that does not fork, reaches nobody: that is logged as a warning.
    ///
    /// A server that has not begun to serve stops as soon as it does. Between two runs there is
    /// nothing to stop, and the call does nothing: a second call for one run never ends the next.
    pub fn shutdown(&self) {
        self.control.request_stop();
    }

    /// Whether the server's loop is running.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.control.is_running()
    }

    /// Waits until no loop is running; at once if none is. Python's `shutdown` is
    /// [`shutdown`](ShutdownHandle::shutdown) and then this.
    ///
    /// Not from a handler or a hook of the same server: the loop cannot end while it waits for
    /// itself, and in a forked child nobody tells that it has ended. There, [`wait_timeout`](ShutdownHandle::wait_timeout) at least comes back.
    pub fn wait(&self) {
        self.control.wait();
    }

    /// As [`wait`](ShutdownHandle::wait), but no longer than `timeout`; whether no loop is running.
    #[must_use = "the server may still be running"]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let Some(deadline) = Instant::now().checked_add(timeout) else {
            self.wait();
            return true;
        };
        self.control.wait_until(deadline)
    }

    /// What the server has counted so far.
    pub fn counters(&self) -> Counters {
        self.control.published.snapshot()
    }
}
