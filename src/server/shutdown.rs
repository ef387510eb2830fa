//! Stopping a server from anywhere: posted here, done by the loop.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::counters::{Counters, Published};
use crate::log;
use crate::mailbox::{Mail, Mailbox};
use crate::sync::lock;
use crate::sys::Wakeup;

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

/// What the server, its handles and its threads share.
#[derive(Debug)]
pub(crate) struct ServerState {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) published: Arc<Published>,
    stop: AtomicBool,
    /// Set by a child process whose handler asks the server to stop; made for a server that forks.
    child_stop_request: OnceLock<Arc<Wakeup>>,
    /// The process whose loop is running; 0 while none is. A forked child has a copy of all this that
    /// no loop looks at, and knows itself by another id.
    process: AtomicU32,
    run: Mutex<Run>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Run {
    running: bool,
    /// A loop has run before: a stop asked for between two runs is a stop of nothing.
    has_run: bool,
}

impl ServerState {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(ServerState {
            mailbox: Arc::new(Mailbox::new()?),
            published: Arc::default(),
            stop: AtomicBool::new(false),
            child_stop_request: OnceLock::new(),
            process: AtomicU32::new(0),
            run: Mutex::default(),
            ended: Condvar::new(),
        })
    }

    pub(crate) fn request_stop(&self) {
        let process = self.process.load(SeqCst);
        if process != 0 && process != std::process::id() {
            match self.child_stop_request() {
                Some(asked) => asked.wake(),
                None => log::warn!(
                    "a forked process cannot stop a server of another process that does not fork"
                ),
            }
            return;
        }
        let run = lock(&self.run);
        if run.running || !run.has_run {
            self.stop.store(true, SeqCst);
            drop(run);
            self.mailbox.post(Mail::Wake);
        }
    }

    /// Whether a stop is asked for, be it by a child process.
    pub(crate) fn stop_requested(&self) -> bool {
        if self.child_stop_request().is_some_and(|asked| asked.take()) {
            self.request_stop();
        }
        self.stop.load(SeqCst)
    }

    /// What a child process says by that the server is to stop, if this one forks.
    pub(crate) fn child_stop_request(&self) -> Option<&Arc<Wakeup>> {
        self.child_stop_request.get()
    }

    /// The server is one that forks.
    pub(crate) fn set_child_stop_request(&self, wakeup: Wakeup) {
        // The first one is everyone's.
        let _ = self.child_stop_request.set(Arc::new(wakeup));
    }

    /// A loop begins; when the guard is dropped it has ended, and its stop with it.
    pub(crate) fn begin(self: &Arc<Self>) -> RunGuard {
        lock(&self.run).running = true;
        self.process.store(std::process::id(), SeqCst);
        RunGuard(self.clone())
    }
}

/// A loop is running.
pub(crate) struct RunGuard(Arc<ServerState>);

impl Drop for RunGuard {
    fn drop(&mut self) {
        let mut run = lock(&self.0.run);
        *run = Run { running: false, has_run: true };
        self.0.stop.store(false, SeqCst);
        self.0.process.store(0, SeqCst);
        self.0.ended.notify_all();
    }
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
        lock(&self.control.run).running
    }

    /// Waits until no loop is running; at once if none is. Python's `shutdown` is
    /// [`shutdown`](ShutdownHandle::shutdown) and then this.
    ///
    /// Not from a handler or a hook of the same server: the loop cannot end while it waits for
    /// itself, and in a forked child nobody tells that it has ended. There, [`wait_timeout`](ShutdownHandle::wait_timeout) at least comes back.
    pub fn wait(&self) {
        let mut run = lock(&self.control.run);
        while run.running {
            run = self.control.ended.wait(run).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`wait`](ShutdownHandle::wait), but no longer than `timeout`; whether no loop is running.
    #[must_use = "the server may still be running"]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let Some(deadline) = Instant::now().checked_add(timeout) else {
            self.wait();
            return true;
        };
        let mut run = lock(&self.control.run);
        while run.running {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.control.ended.wait_timeout(run, left);
            run = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// What the server has counted so far.
    pub fn counters(&self) -> Counters {
        self.control.published.snapshot()
    }
}
