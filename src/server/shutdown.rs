//! The handle that stops a server, and the report of a stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::counters::Counters;
use crate::server_state::ServerState;

/// The report of a stop: how the connections that were active when it began have ended, under every
/// mode. A connection is idle if it has no part of a message in its read buffer and no reply in
/// progress. A connection of a [`RequestHandler`](crate::RequestHandler) is idle if the handler has
/// called [`set_idle`](crate::Request::set_idle).
///
/// In the guide: [`stopping`](crate::guide::stopping).
///
/// ```
/// use socketserver::{Server, handler_fn};
///
/// let running = Server::tcp("127.0.0.1:0")?
///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?
///     .spawn()?;
/// let (_, report) = running.stop()?;
/// println!("{} idle, {} finished, {} cut", report.idle, report.finished, report.aborted);
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StopReport {
    /// Idle when the stop began, and closed at once.
    pub idle: usize,
    /// Busy when the stop began, and finished before the deadline.
    pub finished: usize,
    /// Aborted at the drain deadline.
    pub aborted: usize,
}

/// A handle that stops a server from another thread, a handler or a hook: from
/// [`Server::shutdown_handle`](crate::Server::shutdown_handle).
///
/// In the guide: [`embedding`](crate::guide::embedding),
/// [`logging_and_counters`](crate::guide::logging_and_counters),
/// [`stopping`](crate::guide::stopping).
///
/// ```
/// use std::thread;
/// use socketserver::{Server, handler_fn};
///
/// let mut server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
/// let handle = server.shutdown_handle();
/// let other = thread::spawn(move || handle.shutdown());
/// let report = server.serve_forever()?; // returns after the call
/// assert_eq!(report.aborted, 0);
/// # other.join().unwrap();
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ShutdownHandle {
    control: Arc<ServerState>,
}

impl ShutdownHandle {
    pub(crate) fn new(control: Arc<ServerState>) -> Self {
        ShutdownHandle { control }
    }

    /// Asks the server to stop, and returns at once. It can be called anywhere and any number of times.
    ///
    /// A handler in a [forked](crate::Forking) child stops the server that forked it. A handle of
    /// another server, which does not fork, has no effect in the child; the call is logged as a
    /// warning.
    ///
    /// A server that has not begun to serve stops as soon as it begins. Between two runs the call
    /// has no effect, so a second call for one run never ends the next run.
    pub fn shutdown(&self) {
        self.control.request_stop();
    }

    /// Whether the server's event loop is running.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// assert!(!server.shutdown_handle().is_running()); // it listens, and does not serve yet
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.control.is_running()
    }

    /// Waits until the event loop is not running; returns at once if it is not. Python's `shutdown`
    /// is [`shutdown`](ShutdownHandle::shutdown) and then this.
    ///
    /// Do not call it from a handler or a hook of the same server: the loop cannot end while it
    /// waits for itself, and a forked child is not notified of the end. There, use
    /// [`wait_timeout`](ShutdownHandle::wait_timeout).
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// let handle = server.shutdown_handle();
    /// let running = server.spawn()?;
    /// handle.shutdown();
    /// handle.wait(); // both together are Python's `shutdown`
    /// # let _ = running;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn wait(&self) {
        self.control.wait();
    }

    /// As [`wait`](ShutdownHandle::wait), but for at most `timeout`. Returns whether the event loop
    /// is not running.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// let handle = server.shutdown_handle();
    /// let running = server.spawn()?;
    /// handle.shutdown();
    /// if !handle.wait_timeout(Duration::from_secs(10)) {
    ///     log::warn!("the server is still busy");
    /// }
    /// # let _ = running;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[must_use = "the server may still be running"]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let Some(deadline) = Instant::now().checked_add(timeout) else {
            self.wait();
            return true;
        };
        self.control.wait_until(deadline)
    }

    /// Whether both are handles of the same server.
    #[cfg(feature = "testing")]
    pub(crate) fn is_same(&self, other: &ShutdownHandle) -> bool {
        Arc::ptr_eq(&self.control, &other.control)
    }

    /// Whether a notification waits for the event loop.
    #[cfg(feature = "testing")]
    pub(crate) fn has_notifications(&self) -> bool {
        self.control.mailbox.has_notifications()
    }

    /// What the server has counted so far.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let running = Server::tcp("127.0.0.1:0")?
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?
    ///     .spawn()?;
    /// let handle = running.shutdown_handle(); // for a thread that shows them
    /// println!("{} connections are open", handle.counters().open);
    /// # running.stop()?;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn counters(&self) -> Counters {
        self.control.counters()
    }
}
