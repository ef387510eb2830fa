//! The child processes of a service.

use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Forking, Incoming};
use crate::blocking::{InterruptibleWait, Served, Session, SessionCx, Standing, WaitStrategy};
use crate::connection_id::ConnectionId;
use crate::conversation::Scratch;
use crate::counters::{Published, Tally};
use crate::error::{CloseReason, Error, Limit, UnsupportedError};
use crate::event_loop::Silent;
use crate::permits::ConnectionPermit;
use crate::server_state::{StopOutcome, StopRequester};
use crate::sync::AtomicU8;
use crate::sys::{self, Child, InChild, PollInterest, SharedByte, Socket, Wakeup};

/// The exit code of a child that a stop has ended while it was idle. A child whose request has
/// failed exits with 1, all others with 0.
const EXIT_IDLE: i32 = 90;

/// The exit codes of children whose connections have reached a limit: this one for the first of
/// [`LIMITS`], and so on.
const EXIT_LIMIT: i32 = 100;

/// The limits, in the order of the exit codes.
const LIMITS: [Limit; 8] = [
    Limit::Connections,
    Limit::MessageDeadline,
    Limit::FirstMessageDeadline,
    Limit::WriteTimeout,
    Limit::BufferedInput,
    Limit::Memory,
    Limit::Lifetime,
    Limit::Messages,
];

fn exit_code_of(limit: Limit) -> i32 {
    let number = LIMITS.iter().position(|each| *each == limit);
    // There are few limits.
    EXIT_LIMIT + number.unwrap_or(LIMITS.len()) as i32
}

/// The limit of a child that has exited with this code.
fn limit_of(exit_code: i32) -> Option<Limit> {
    let number = usize::try_from(exit_code.checked_sub(EXIT_LIMIT)?).ok()?;
    LIMITS.get(number).copied()
}

/// What a parent and its child share of a connection; nothing of a datagram.
#[derive(Debug)]
pub(super) struct ServedBy(Option<SharedByte>);

impl ServedBy {
    pub(super) fn new(is_connection: bool) -> Result<Self, Error> {
        Ok(ServedBy(is_connection.then(SharedByte::new).transpose().map_err(Error::Loop)?))
    }

    /// What the child sees.
    pub(super) fn standing(&self) -> Option<Standing<'_>> {
        self.0.as_deref().map(Standing::new)
    }

    /// The child of a request, as its parent sees it. The parent keeps the permit of the request.
    pub(super) fn child(self, child: Child, request: &mut Incoming) -> ServingChild {
        let connection = match (request, self.0) {
            (Incoming::Stream(stream), Some(standing)) => {
                let (id, permit) = (stream.id, stream.permit.take());
                Some(ChildConnection { id, standing, _permit: permit })
            }
            _ => None,
        };
        ServingChild { child, connection }
    }
}

/// A child and the connection that it serves; `None` for a datagram.
#[derive(Debug)]
pub(super) struct ServingChild {
    child: Child,
    connection: Option<ChildConnection>,
}

#[derive(Debug)]
struct ChildConnection {
    id: ConnectionId,
    standing: SharedByte,
    _permit: Option<ConnectionPermit>,
}

impl ServingChild {
    /// The number of its connection, if that is silent.
    fn silent(&self) -> Option<ConnectionId> {
        let connection = self.connection.as_ref()?;
        Standing::new(&connection.standing).is_silent().then_some(connection.id)
    }

    /// Has the child close its silent connection.
    fn reject(&self) {
        if let Some(connection) = &self.connection
            && Standing::new(&connection.standing).reject()
        {
            // The signal only wakes the child, which then sees its standing.
            self.child.terminate();
        }
    }

    /// The child is gone: counts its connection.
    fn count(&self, tally: &mut Tally) {
        tally.closed += u64::from(self.connection.is_some());
        if let Some(limit) = self.child.exit_code().and_then(limit_of) {
            tally.limit(limit);
        }
    }
}

/// What a child needs to serve its request.
pub(super) struct ChildCx<'a> {
    pub(super) process: &'a InChild,
    pub(super) stop: &'a StopRequester,
    pub(super) standing: Option<Standing<'a>>,
}

/// The child processes of one service.
#[derive(Debug)]
pub(super) struct Children {
    mode: Forking,
    children: Vec<ServingChild>,
    /// Whether they have been asked to finish.
    stopping: bool,
    /// How many have ended since then and were idle when they were asked.
    ended_idle: usize,
    /// How long a drop waits for the remaining children.
    drain: Duration,
    /// Counts the children that end after the last run; set when a server first runs.
    published: Option<Arc<Published>>,
}

impl Children {
    pub(super) fn new(mode: Forking) -> Self {
        Children {
            mode,
            children: Vec::new(),
            stopping: false,
            ended_idle: 0,
            drain: Duration::ZERO,
            published: None,
        }
    }

    /// A run begins.
    pub(super) fn begin(&mut self, drain: Duration, published: &Arc<Published>) {
        (self.stopping, self.ended_idle) = (false, 0);
        self.drain = drain;
        self.published.get_or_insert_with(|| published.clone());
    }

    /// Asks all to finish their requests, and kills those that have not finished by the drain deadline.
    fn finish(&mut self, tally: &mut Tally) {
        self.terminate();
        let deadline = Instant::now() + self.drain;
        loop {
            self.reap(tally);
            let Some(ServingChild { child, .. }) = self.children.first() else { return };
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = sys::wait_for(&[(child.as_fd(), PollInterest::Read)], Some(left));
            if left.is_zero() || ended.is_err() {
                break;
            }
        }
        self.kill(tally);
    }

    /// How many more children are allowed.
    pub(super) fn room(&self) -> usize {
        self.mode.max_children.saturating_sub(self.children.len())
    }

    pub(super) fn threads_allowed(&self) -> bool {
        self.mode.allow_threads
    }

    pub(super) fn add(&mut self, child: ServingChild) {
        self.children.push(child);
    }

    pub(super) fn len(&self) -> usize {
        self.children.len()
    }

    /// Has the oldest child with a silent connection close that, if its number is below `mature`.
    pub(super) fn close_silent(&self, mature: u64) -> Silent {
        let silent = self.children.iter().filter_map(|child| Some((child.silent()?, child)));
        match silent.min_by_key(|(id, _)| *id) {
            None => Silent::None,
            Some((id, _)) if u64::from(id) >= mature => Silent::Young,
            Some((_, child)) => {
                child.reject();
                Silent::Closed
            }
        }
    }

    /// Reaps and counts the children that have ended; returns how many.
    pub(super) fn reap(&mut self, tally: &mut Tally) -> usize {
        let before = self.children.len();
        let mut idle = 0;
        self.children.retain_mut(|serving| {
            let gone = serving.child.reap();
            if gone {
                serving.count(tally);
                idle += usize::from(serving.child.exit_code() == Some(EXIT_IDLE));
            }
            !gone
        });
        if self.stopping {
            self.ended_idle += idle;
        }
        before - self.children.len()
    }

    /// How many have ended since they were asked to finish and were idle then.
    pub(super) fn ended_idle(&self) -> usize {
        self.ended_idle
    }

    /// Asks all to finish their requests.
    pub(super) fn terminate(&mut self) {
        self.stopping = true;
        self.children.iter().for_each(|serving| serving.child.terminate());
    }

    /// Kills and counts the remaining children.
    pub(super) fn kill(&mut self, tally: &mut Tally) {
        for mut serving in self.children.drain(..) {
            serving.child.kill();
            serving.count(tally);
        }
    }

    /// The descriptors that the event loop registers: they report the ends of children.
    pub(super) fn watched(&self) -> Vec<RawFd> {
        self.children.iter().map(|serving| serving.child.as_fd().as_raw_fd()).collect()
    }

    /// In the child: serves its request. Returns the exit code.
    pub(super) fn serve_in_child(
        &mut self,
        session: Box<dyn Session + '_>,
        connection: Option<&Socket>,
        child: &ChildCx<'_>,
        fault: impl FnOnce(&Served),
    ) -> i32 {
        let ChildCx { process, stop, standing } = *child;
        for serving in self.children.drain(..) {
            process.close(serving.child.as_fd().as_raw_fd());
            std::mem::forget(serving);
        }
        let of_datagram = AtomicU8::default();
        let standing = standing.unwrap_or(Standing::new(&of_datagram));
        let wakeups: Vec<&Wakeup> = process.terminated().into_iter().collect();
        // A child that is to close its silent connection gets the same signal.
        let mut is_stopping = || sys::child_is_terminated() && standing.limit().is_none();
        let mut cx = SessionCx {
            scratch: &mut Scratch::with_read_buffer(),
            leaves_lingering: false,
            wait: WaitStrategy::Interruptible(InterruptibleWait {
                wakeups: &wakeups,
                child_stop_request: None,
                is_stopping: &mut is_stopping,
                // The parent enforces the drain deadline.
                drain: Duration::from_secs(365 * 24 * 3600),
                deadline: None,
                stop_outcome: None,
                standing,
                others: None,
            }),
            no_sender: UnsupportedError::ForkingSender,
            stop,
        };
        let linger = connection.and_then(|connection| connection.linger().ok());
        sys::reset_on_termination(connection.map(AsFd::as_fd));
        let served = session.run(&mut cx);
        sys::reset_on_termination(None);
        if let (Some(connection), Some(linger), false) = (connection, linger, served.cut) {
            // The reply is complete, so the connection is closed without a reset.
            let _ = connection.set_linger(linger);
        }
        let idle = match &mut cx.wait {
            WaitStrategy::Interruptible(wait) => wait.stop_outcome() == Some(StopOutcome::Idle),
            _ => false,
        };
        let code = match &*served.reason {
            reason if reason.is_fault() => 1,
            CloseReason::Limit(limit) => exit_code_of(*limit),
            _ if idle => EXIT_IDLE,
            _ => 0,
        };
        if served.reason.is_fault() {
            fault(&served);
        }
        // Flushes what the handler has printed; no other code of the parent runs.
        let _ = std::io::stdout().flush();
        code
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        let mut tally = Tally::default();
        self.finish(&mut tally);
        if let Some(published) = &self.published {
            published.add(&mut tally);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_has_an_exit_code_of_its_own() {
        for limit in LIMITS {
            assert_eq!(limit_of(exit_code_of(limit)), Some(limit));
        }
        for code in [0, 1, EXIT_IDLE, EXIT_LIMIT - 1, i32::MIN, i32::MAX] {
            assert_eq!(limit_of(code), None);
        }
    }
}
