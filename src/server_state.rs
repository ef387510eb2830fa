//! The state that the event loop, the modes and the handles of a server share: whether the loop is
//! running, and whether it must stop.

use std::io;
use std::sync::atomic::{
    AtomicBool, AtomicU32,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use crate::counters::{Counters, Published};
use crate::guard::log;
use crate::mailbox::{Mailbox, Notification};
use crate::memory::MemoryGauge;
use crate::sync::lock;
use crate::sys::{Clock, Wakeup};

/// The state that a server shares with its handles, its modes and their threads.
#[derive(Debug)]
pub(crate) struct ServerState {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) published: Arc<Published>,
    overload: Arc<Overload>,
    /// The clock of the event loop and of its workers.
    pub(crate) clock: Clock,
    stop: AtomicBool,
    /// A child process wakes this when its handler asks the server to stop. Only a server that
    /// forks has it.
    child_stop_request: OnceLock<Arc<Wakeup>>,
    /// The id of the process whose loop is running; 0 while no loop runs. A forked child has a copy
    /// of this state that no loop reads; the child detects this because its own id differs.
    process: AtomicU32,
    run: Mutex<Run>,
    ended: Condvar,
}

/// Whether handlers are so slow that requests wait long for them.
#[derive(Debug, Default)]
struct Overload {
    /// On the event loop.
    event_loop: AtomicBool,
    /// In how many thread pools.
    pools: AtomicU32,
}

/// Shows whether one thread pool is overloaded. When it is dropped, the pool is not.
#[derive(Debug)]
pub(crate) struct OverloadFlag {
    overload: Arc<Overload>,
    is_set: bool,
}

impl OverloadFlag {
    pub(crate) fn set(&mut self, is_overloaded: bool) {
        if std::mem::replace(&mut self.is_set, is_overloaded) != is_overloaded {
            match is_overloaded {
                true => self.overload.pools.fetch_add(1, Relaxed),
                false => self.overload.pools.fetch_sub(1, Relaxed),
            };
        }
    }
}

impl Drop for OverloadFlag {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[derive(Debug, Default)]
struct Run {
    /// The number of the current run, or of the last one; 0 before the first.
    number: usize,
    running: bool,
}

impl ServerState {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(ServerState {
            mailbox: Arc::new(Mailbox::new()?),
            published: Arc::default(),
            overload: Arc::default(),
            clock: Clock::new(),
            stop: AtomicBool::new(false),
            child_stop_request: OnceLock::new(),
            process: AtomicU32::new(0),
            run: Mutex::default(),
            ended: Condvar::new(),
        })
    }

    /// What has been counted, and what is held now.
    pub(crate) fn counters(&self) -> Counters {
        let counters = self.published.snapshot();
        Counters { memory_held: self.mailbox.memory().held() as u64, ..counters }
    }

    /// Requests a stop of the current run, or of the first one if no run has begun. Between two
    /// runs it has no effect.
    pub(crate) fn request_stop(&self) {
        self.request_stop_of(|run| run.running || run.number == 0);
    }

    /// Requests a stop of the run if `applies` returns true for it, and wakes the loop, which sees
    /// the request in its next turn. In a forked child, this stops the loop of the parent process.
    fn request_stop_of(&self, applies: impl FnOnce(&Run) -> bool) {
        let process = self.process.load(SeqCst);
        if process != 0 && process != std::process::id() {
            match self.child_stop_request() {
                Some(stop_request) => stop_request.wake(),
                None => log::warn!(
                    "a forked process cannot stop a server of another process that does not fork"
                ),
            }
            return;
        }
        let run = lock(&self.run);
        if applies(&run) {
            self.stop.store(true, SeqCst);
            drop(run);
            self.mailbox.post(Notification::Wake);
        }
    }

    /// Whether a stop is requested, by this process or by a child process.
    pub(crate) fn stop_requested(&self) -> bool {
        if self.child_stop_request().is_some_and(|stop_request| stop_request.take()) {
            self.request_stop();
        }
        self.stop.load(SeqCst)
    }

    /// The descriptor that a child process wakes to request a stop; `None` if the server does not fork.
    pub(crate) fn child_stop_request(&self) -> Option<&Arc<Wakeup>> {
        self.child_stop_request.get()
    }

    /// Sets the descriptor that a child process wakes to request a stop: the server forks.
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

    /// Begins a run of the loop. Dropping the guard ends the run and clears a stop request for it.
    pub(crate) fn begin(self: &Arc<Self>) -> RunGuard {
        let mut run = lock(&self.run);
        run.number += 1;
        run.running = true;
        self.process.store(std::process::id(), SeqCst);
        RunGuard { stop: StopRequester { state: self.clone(), run: run.number } }
    }
}

/// A run of the loop; it ends when this is dropped.
pub(crate) struct RunGuard {
    stop: StopRequester,
}

impl RunGuard {
    /// The handle that requests a stop of this run.
    pub(crate) fn stop_requester(&self) -> &StopRequester {
        &self.stop
    }
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        let state = &self.stop.state;
        let mut run = lock(&state.run);
        run.running = false;
        state.stop.store(false, SeqCst);
        state.process.store(0, SeqCst);
        state.ended.notify_all();
    }
}

/// A handle by which a handler requests a stop of its own run. When that run is over, a request has
/// no effect.
#[derive(Debug, Clone)]
pub(crate) struct StopRequester {
    state: Arc<ServerState>,
    run: usize,
}

impl StopRequester {
    /// Requests a stop, from any thread; in a forked child, a stop of the parent's run. Returns at
    /// once.
    pub(crate) fn request(&self) {
        self.state.request_stop_of(|run| run.running && run.number == self.run);
    }

    /// Whether a stop is requested. Requests of child processes count only when
    /// [`ServerState::stop_requested`] has seen them.
    pub(crate) fn is_requested(&self) -> bool {
        self.state.stop.load(SeqCst)
    }

    /// The number of the run.
    pub(crate) fn run(&self) -> usize {
        self.run
    }

    /// The clock of the loop.
    #[inline]
    pub(crate) fn clock(&self) -> &Clock {
        &self.state.clock
    }

    /// The mailbox of the loop.
    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.state.mailbox
    }

    /// The memory that connections hold.
    pub(crate) fn memory(&self) -> &Arc<MemoryGauge> {
        self.state.mailbox.memory()
    }

    /// How many connections are open, without those that a thread has yet to publish.
    pub(crate) fn open_connections(&self) -> u64 {
        self.state.published.open()
    }

    /// Whether handlers are so slow that requests wait long for them.
    pub(crate) fn is_overloaded(&self) -> bool {
        let overload = &self.state.overload;
        overload.event_loop.load(Relaxed) || overload.pools.load(Relaxed) > 0
    }

    /// Sets whether the event loop is overloaded.
    pub(crate) fn set_overloaded(&self, overloaded: bool) {
        self.state.overload.event_loop.store(overloaded, Relaxed);
    }

    /// A flag that shows whether a thread pool is overloaded.
    pub(crate) fn pool_flag(&self) -> OverloadFlag {
        OverloadFlag { overload: self.state.overload.clone(), is_set: false }
    }
}

/// How a session ended that was running when a stop began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopOutcome {
    /// It was idle and was closed.
    Idle,
    /// It was busy and finished in time.
    Finished,
    /// The drain deadline cut it off.
    Cut,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_state() -> Arc<ServerState> {
        Arc::new(ServerState::new().unwrap())
    }

    #[test]
    fn a_stop_requested_before_the_first_run_ends_only_that_run() {
        let state = server_state();
        state.request_stop();
        let first = state.begin();
        assert!(state.stop_requested() && first.stop_requester().is_requested());
        drop(first);
        assert!(!state.stop_requested());
        let _second = state.begin();
        assert!(!state.stop_requested());
    }

    #[test]
    fn a_stop_requested_between_two_runs_or_for_a_run_that_is_over_has_no_effect() {
        let state = server_state();
        let first = state.begin();
        let of_first = first.stop_requester().clone();
        drop(first);
        state.request_stop();
        of_first.request();
        assert!(!state.stop_requested());
        let second = state.begin();
        of_first.request();
        assert!(!state.stop_requested());
        second.stop_requester().request();
        assert!(state.stop_requested());
        drop(second);
        assert!(!state.stop_requested());
    }

    #[test]
    fn a_server_is_overloaded_while_its_event_loop_or_one_of_its_pools_is() {
        let run = server_state().begin();
        let stop = run.stop_requester();
        let (mut one, mut other) = (stop.pool_flag(), stop.pool_flag());
        assert!(!stop.is_overloaded());
        one.set(true);
        one.set(true);
        other.set(true);
        stop.set_overloaded(false);
        one.set(false);
        assert!(stop.is_overloaded(), "the other pool is");
        drop(other);
        assert!(!stop.is_overloaded());
        stop.set_overloaded(true);
        one.set(false);
        assert!(stop.is_overloaded(), "the event loop is");
    }

    #[test]
    fn a_stop_requested_by_a_handler_wakes_a_loop_that_sleeps() {
        let state = server_state();
        let run = state.begin();
        assert!(state.mailbox.prepare_park());
        run.stop_requester().request();
        assert!(state.mailbox.wakeup().take() && state.mailbox.has_notifications());
    }
}
