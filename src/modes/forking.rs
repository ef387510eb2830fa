//! A process per request.

use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::blocking::{
    InterruptibleWait, READ_SIZE, Served, Session, SessionCx, StopOutcome, WaitStrategy,
};
use crate::conversation::OutputBuffer;
use crate::counters::Tally;
use crate::error::UnsupportedError;
use crate::sys::{self, Child, InChild, PollInterest, Wakeup};

/// A process for each request: Python's `ForkingMixIn`. Nothing a handler does can touch another
/// one's memory, at the price of a fork per request.
///
/// A fork is sound only in a process of one thread, so a server with this mode refuses one that
/// starts threads beside it, and a fork where other threads run fails with
/// [`Error::Mode`](crate::Error::Mode); bind and serve on the main thread. A thread that has ended and
/// been joined is none. On Linux the threads are counted in `/proc/self/task`, or, where there is no
/// `/proc`, by [unshare(2)](https://man7.org/linux/man-pages/man2/unshare.2.html); where neither tells,
/// a fork fails as well. Other systems do not tell, and there it is left to the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forking {
    max_children: usize,
    allow_threads: bool,
}

impl Forking {
    pub(super) const DEFAULT: Forking = Forking { max_children: 40, allow_threads: false };

    /// Sets Python's `max_children`, 40 by default: with as many the listener pauses, and clients
    /// wait in the kernel's queue. The loop goes on.
    #[must_use]
    pub fn max_children(mut self, children: usize) -> Self {
        self.max_children = children.max(1);
        self
    }

    /// Forks although the process has other threads.
    ///
    /// Only for those who know that no other thread holds a lock which the handler could want in
    /// the child, where it would stay locked for ever: that of the allocator, of standard output,
    /// of a logger, of the user's own.
    #[must_use]
    pub fn allow_threads(mut self, allowed: bool) -> Self {
        self.allow_threads = allowed;
        self
    }
}

impl Default for Forking {
    fn default() -> Self {
        Forking::DEFAULT
    }
}

/// The exit code of a child that a stop has ended while it was idle. One whose request has failed
/// exits with 1, all others with 0.
const EXIT_IDLE: i32 = 90;

/// The children of one service.
#[derive(Debug)]
pub(crate) struct Children {
    mode: Forking,
    children: Vec<Child>,
    /// Requests that are about to be forked for.
    expected: usize,
    /// They have been asked to finish.
    stopping: bool,
    /// How many of them have ended since, and were idle when they were asked.
    ended_idle: usize,
    /// Set by a child whose handler asks the server to stop; of the run that is on.
    shutdown: Option<Arc<Wakeup>>,
    /// How long it waits for those that are left when it is dropped.
    drain: Duration,
}

impl Children {
    pub(crate) fn new(mode: Forking) -> Self {
        Children {
            mode,
            children: Vec::new(),
            expected: 0,
            stopping: false,
            ended_idle: 0,
            shutdown: None,
            drain: Duration::ZERO,
        }
    }

    /// A run begins.
    pub(crate) fn begin(&mut self, shutdown: Arc<Wakeup>, drain: Duration) {
        self.expected = 0;
        (self.stopping, self.ended_idle) = (false, 0);
        self.shutdown = Some(shutdown);
        self.drain = drain;
    }

    /// Asks all to finish what they are doing, and ends those that have not by the deadline.
    fn finish(&mut self) {
        self.terminate();
        let deadline = Instant::now() + self.drain;
        loop {
            self.reap();
            let Some(child) = self.children.first() else { return };
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = sys::wait_for(&[(child.as_fd(), PollInterest::Read)], Some(left));
            if left.is_zero() || ended.is_err() {
                break;
            }
        }
        self.kill();
    }

    pub(crate) fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// How many more children there may be.
    pub(crate) fn room(&self) -> usize {
        self.mode.max_children.saturating_sub(self.children.len() + self.expected)
    }

    pub(crate) fn expect_one(&mut self) {
        self.expected += 1;
    }

    pub(crate) fn threads_allowed(&self) -> bool {
        self.mode.allow_threads
    }

    /// The fork has been tried.
    pub(crate) fn forked(&mut self, child: Option<Child>) {
        self.expected -= 1;
        self.children.extend(child);
    }

    pub(crate) fn len(&self) -> usize {
        self.children.len()
    }

    /// Reaps those that have ended; how many that were.
    pub(crate) fn reap(&mut self) -> usize {
        let before = self.children.len();
        let mut idle = 0;
        self.children.retain_mut(|child| {
            let gone = child.reap();
            idle += usize::from(gone && child.exit_code() == Some(EXIT_IDLE));
            !gone
        });
        if self.stopping {
            self.ended_idle += idle;
        }
        before - self.children.len()
    }

    /// How many have ended since they were asked to, and were idle then.
    pub(crate) fn ended_idle(&self) -> usize {
        self.ended_idle
    }

    /// Asks all to finish what they are doing.
    pub(crate) fn terminate(&mut self) {
        self.stopping = true;
        self.children.iter().for_each(Child::terminate);
    }

    /// Ends all that are left; how many that were.
    pub(crate) fn kill(&mut self) -> usize {
        self.children.drain(..).map(|mut child| child.kill()).count()
    }

    /// What the loop is to watch: the ends of children.
    pub(crate) fn watched(&self) -> Vec<RawFd> {
        self.children.iter().map(|child| child.as_fd().as_raw_fd()).collect()
    }

    /// In the child: serves its request; the code to end with.
    pub(crate) fn serve_in_child(
        &mut self,
        session: Box<dyn Session + '_>,
        connection: Option<&Socket>,
        process: &InChild,
        fault: impl FnOnce(&Served),
    ) -> i32 {
        for child in self.children.drain(..) {
            process.close(child.as_fd().as_raw_fd());
            std::mem::forget(child);
        }
        let wakeups: Vec<&Wakeup> = process.terminated().into_iter().collect();
        let mut is_stopping = || sys::child_is_terminated();
        let (mut tally, mut output_buffer) = (Tally::default(), OutputBuffer::default());
        let mut buffer = vec![0; READ_SIZE].into_boxed_slice();
        let mut cx = SessionCx {
            buffer: &mut buffer,
            output_buffer: &mut output_buffer,
            tally: &mut tally,
            leaves_lingering: false,
            wait: WaitStrategy::Interruptible(InterruptibleWait {
                wakeups: &wakeups,
                asked: None,
                is_stopping: &mut is_stopping,
                // The parent sees to it that it does not take for ever.
                drain: Duration::from_secs(365 * 24 * 3600),
                deadline: None,
                stop_outcome: None,
            }),
            no_sender: UnsupportedError::ForkingSender,
            on_shutdown: &|| self.shutdown.iter().for_each(|shutdown| shutdown.wake()),
        };
        let linger = connection.and_then(|connection| connection.linger().ok());
        sys::reset_on_termination(connection.map(AsFd::as_fd));
        let served = session.run(&mut cx);
        sys::reset_on_termination(None);
        if let (Some(connection), Some(linger), false) = (connection, linger, served.cut) {
            // Whole, it is closed as any other.
            let _ = connection.set_linger(linger);
        }
        let idle = match &mut cx.wait {
            WaitStrategy::Interruptible(wait) => wait.stop_outcome() == Some(StopOutcome::Idle),
            _ => false,
        };
        let fault_or_not = i32::from(served.reason.is_fault());
        let code = if idle && fault_or_not == 0 { EXIT_IDLE } else { fault_or_not };
        if served.reason.is_fault() {
            fault(&served);
        }
        // What the handler has printed is not lost; nothing else of the parent's is run.
        let _ = std::io::stdout().flush();
        code
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.finish();
    }
}
