//! The state of a server that its loop, its modes and its handles share: whether a loop is running, and
//! whether it is to stop.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use crate::counters::Published;
use crate::guard::log;
use crate::mailbox::{Mail, Mailbox};
use crate::sync::lock;
use crate::sys::Wakeup;

/// The state that a server shares with its handles, its modes and their threads.
#[derive(Debug)]
pub(crate) struct ServerState {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) published: Arc<Published>,
    stop: AtomicBool,
    /// A child process whose handler asks the server to stop wakes this; only a server that forks has
    /// it.
    child_stop_request: OnceLock<Arc<Wakeup>>,
    /// The id of the process whose loop is running; 0 while no loop runs. A forked child has a copy of
    /// this state that no loop reads; it notices that because its own id is another one.
    process: AtomicU32,
    run: Mutex<Run>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Run {
    running: bool,
    /// A loop has run before. A stop that is requested between two runs has no effect.
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

    /// Requests a stop of the loop: it sees the request in its next turn, and is woken for it. In a forked
    /// child, the loop of the parent process is stopped.
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

    /// Whether a stop is requested, by this process or by a child process.
    pub(crate) fn stop_requested(&self) -> bool {
        if self.child_stop_request().is_some_and(|asked| asked.take()) {
            self.request_stop();
        }
        self.stop.load(SeqCst)
    }

    /// What a child process wakes to request a stop; absent where the server does not fork.
    pub(crate) fn child_stop_request(&self) -> Option<&Arc<Wakeup>> {
        self.child_stop_request.get()
    }

    /// Sets what a child process wakes to request a stop: the server forks.
    pub(crate) fn set_child_stop_request(&self, wakeup: Wakeup) {
        // All services that fork share the first one.
        let _ = self.child_stop_request.set(Arc::new(wakeup));
    }

    /// Whether a loop is running.
    pub(crate) fn is_running(&self) -> bool {
        lock(&self.run).running
    }

    /// Waits until no loop is running.
    pub(crate) fn wait(&self) {
        let mut run = lock(&self.run);
        while run.running {
            run = self.ended.wait(run).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`wait`](ServerState::wait), but no longer than until the deadline. Returns whether no loop
    /// is running.
    pub(crate) fn wait_until(&self, deadline: Instant) -> bool {
        let mut run = lock(&self.run);
        while run.running {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.ended.wait_timeout(run, left);
            run = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Begins a run of the loop. Dropping the guard ends the run, and the stop that was requested for
    /// it.
    pub(crate) fn begin(self: &Arc<Self>) -> RunGuard {
        lock(&self.run).running = true;
        self.process.store(std::process::id(), SeqCst);
        RunGuard(self.clone())
    }
}

/// A run of the loop; it ends when this is dropped.
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

/// What became of a session that a stop overtook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopOutcome {
    /// Nothing was begun, and it was ended.
    Idle,
    /// It came to its own end.
    Finished,
    /// Its time was up.
    Cut,
}
