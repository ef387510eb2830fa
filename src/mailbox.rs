//! The mailbox of an event loop: the queue of notifications that other threads post to the loop.
//!
//! **Invariant:** a loop that is awake is not woken, and a loop that sleeps is woken by a new
//! notification. Each side does two things, in this order:
//!
//! * A producer adds 1 to `waiting`. Then it swaps `asleep` to false; if `asleep` was true, the
//!   producer wakes the loop.
//! * The loop swaps `asleep` to true. Then it reads `waiting`; if that is not 0, the loop does not
//!   sleep.
//!
//! `asleep` is changed only by swaps. So one of the two swaps comes second and sees the first, with
//! all writes before it. If the producer's swap comes second, it reads true and wakes the loop. If
//! the loop's swap comes second, the loop reads the producer's `waiting`. Swaps that acquire and
//! release are enough for that.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::address::LogPeer;
use crate::counters::Tally;
use crate::error::CloseReason;
use crate::guard::log;
use crate::memory::MemoryGauge;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use crate::sync::{Mutex, MutexGuard, lock};
use crate::sys::{CatchDrop, Wakeup};
use crate::token::Token;

/// A job that a loop passes to a worker, and that returns to the loop when it is done.
pub(crate) trait Job: Send {
    /// A worker has taken the job, and runs it now; returns when it was queued and when it was taken.
    /// Never panics.
    fn taken(&mut self) -> (Instant, Instant);
    /// Runs the job; the handler in it may block. Returns whether the job is posted back to the
    /// loop. Never panics.
    fn run(&mut self) -> bool;
    /// What the worker is to do after it has posted the job back, if anything.
    fn take_follow_up(&mut self) -> Option<Box<dyn FnOnce()>> {
        None
    }
    /// The connection is gone: calls the handler's `on_close`, and the job is not posted back.
    /// Never panics.
    fn abandoned(&mut self);
    /// For the loop to get the concrete type back.
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

/// Ends a finished job whose event loop no longer exists.
pub(crate) fn abandon(mut work: Box<dyn Job>) {
    work.abandoned();
}

/// Handles a notification that no loop will take: a fault is logged.
fn log_undelivered(notification: Notification) {
    if let Notification::Ended(ended) = notification
        && ended.reason.is_fault()
    {
        log::error!("{}: {}", ended.origin, *ended.reason);
    }
}

/// A notification to an event loop from another thread.
pub(crate) enum Notification {
    /// The send queue of this connection has entries. At most one per connection is in the mailbox.
    SendQueue(Token),
    /// A job of this connection has finished.
    JobDone(Token, Box<dyn Job>),
    /// A thread or a worker for which a listener waited is free.
    CapacityFreed,
    /// Something outside of the mailbox has to be checked.
    Wake,
    /// A request that was served outside of the loop has ended, in this run or an earlier one.
    Ended(Box<Ended>),
}

/// How a request that was served outside of the loop has ended.
pub(crate) struct Ended {
    /// The index of the service in the server; a reference could not outlive the run.
    pub(crate) service: usize,
    pub(crate) origin: LogPeer,
    pub(crate) reason: CatchDrop<CloseReason>,
    pub(crate) tally: Tally,
}

/// The mailbox of an event loop, and the wakeup of the loop.
#[derive(Debug)]
pub(crate) struct Mailbox {
    notifications: Mutex<NotificationQueue>,
    /// How many notifications are queued.
    waiting: AtomicUsize,
    asleep: AtomicBool,
    /// No run is in progress, and finished jobs are abandoned. Changed only while `notifications`
    /// is locked.
    run_ended: AtomicBool,
    /// No further run will begin. Changed only while `notifications` is locked.
    closed: AtomicBool,
    /// The number of the current or the last run. Changed only while `notifications` is locked.
    run: AtomicUsize,
    wakeup: Wakeup,
    /// Counts the memory that the connections of the server hold.
    memory: Arc<MemoryGauge>,
}

/// The queued notifications.
#[derive(Debug, Default)]
struct NotificationQueue {
    notifications: VecDeque<Notification>,
    /// One bit for each queued notification of a kind that is coalesced: a second one would tell
    /// nothing new.
    coalesced: u8,
}

impl Notification {
    /// The bit of a notification that is coalesced with others of its kind; 0 for all others.
    fn coalescing_bit(&self) -> u8 {
        match self {
            Notification::CapacityFreed => 1,
            Notification::Wake => 2,
            Notification::SendQueue(_) | Notification::JobDone(..) | Notification::Ended(_) => 0,
        }
    }
}

impl fmt::Debug for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Notification::SendQueue(_) => "SendQueue",
            Notification::JobDone(..) => "JobDone",
            Notification::CapacityFreed => "CapacityFreed",
            Notification::Wake => "Wake",
            Notification::Ended(_) => "Ended",
        })
    }
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Mailbox {
            notifications: Mutex::default(),
            waiting: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            run_ended: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            run: AtomicUsize::new(0),
            wakeup: Wakeup::new()?,
            memory: Arc::default(),
        })
    }

    /// Adds a notification, and wakes the loop if it sleeps.
    pub(crate) fn post(&self, notification: Notification) {
        let queue = lock(&self.notifications);
        if self.closed.load(SeqCst) {
            drop(queue);
            return log_undelivered(notification);
        }
        self.put(queue, notification);
    }

    fn put(&self, mut queue: MutexGuard<'_, NotificationQueue>, notification: Notification) {
        let bit = notification.coalescing_bit();
        let is_new = queue.coalesced & bit == 0;
        if is_new {
            queue.coalesced |= bit;
            queue.notifications.push_back(notification);
        }
        drop(queue);
        if is_new {
            self.waiting.fetch_add(1, SeqCst);
        }
        // Also if it is not new: the loop may be asleep and not have taken the earlier one.
        self.wake();
    }

    /// Posts a finished job of this run to the loop; abandons it if the run is over.
    pub(crate) fn return_job(&self, run: usize, token: Token, work: Box<dyn Job>) {
        let queue = lock(&self.notifications);
        if self.run_ended.load(SeqCst) || self.run() != run {
            drop(queue);
            return abandon(work);
        }
        self.put(queue, Notification::JobDone(token, work));
    }

    /// The server is dropped: logs the faults of notifications that no loop will take.
    pub(crate) fn close(&self) {
        let mut queue = lock(&self.notifications);
        self.closed.store(true, SeqCst);
        let all = std::mem::take(&mut *queue).notifications;
        self.waiting.fetch_sub(all.len(), SeqCst);
        drop(queue);
        all.into_iter().for_each(log_undelivered);
    }

    /// A run has ended: abandons the jobs that are queued or that finish from now on.
    pub(crate) fn end_run(&self) {
        let mut queue = lock(&self.notifications);
        self.run_ended.store(true, SeqCst);
        let all = std::mem::take(&mut queue.notifications);
        let (returned, rest): (VecDeque<_>, _) =
            all.into_iter().partition(|queued| matches!(queued, Notification::JobDone(..)));
        queue.notifications = rest;
        self.waiting.fetch_sub(returned.len(), SeqCst);
        drop(queue);
        for notification in returned {
            if let Notification::JobDone(_, work) = notification {
                abandon(work);
            }
        }
    }

    /// The run of this number begins.
    pub(crate) fn begin_run(&self, run: usize) {
        let _queue = lock(&self.notifications);
        self.run_ended.store(false, SeqCst);
        self.run.store(run, SeqCst);
    }

    /// The number of the current or the last run.
    pub(crate) fn run(&self) -> usize {
        self.run.load(SeqCst)
    }

    /// Wakes the loop if it sleeps, once.
    pub(crate) fn wake(&self) {
        if self.asleep.swap(false, SeqCst) {
            self.wakeup.wake();
        }
    }

    /// Marks the loop as asleep; returns false if a notification is queued, so that the loop must
    /// not sleep.
    #[inline]
    pub(crate) fn prepare_park(&self) -> bool {
        self.asleep.swap(true, SeqCst);
        self.waiting.load(SeqCst) == 0
    }

    /// Marks the loop as asleep: its thread is about to wait elsewhere, also if notifications are
    /// queued.
    pub(crate) fn prepare_park_elsewhere(&self) {
        self.asleep.swap(true, SeqCst);
    }

    /// Marks the loop as awake; returns true if another thread woke it.
    #[inline]
    pub(crate) fn wake_up(&self) -> bool {
        !self.asleep.swap(false, SeqCst)
    }

    /// Moves at most `budget` notifications into `into`, oldest first.
    pub(crate) fn collect(&self, into: &mut VecDeque<Notification>, budget: usize) {
        if self.waiting.load(SeqCst) == 0 {
            return;
        }
        let mut queue = lock(&self.notifications);
        let NotificationQueue { notifications, coalesced } = &mut *queue;
        let count = notifications.len().min(budget);
        into.extend(
            notifications.drain(..count).inspect(|taken| *coalesced &= !taken.coalescing_bit()),
        );
        self.waiting.fetch_sub(count, SeqCst);
    }

    /// Whether a notification is queued.
    pub(crate) fn has_notifications(&self) -> bool {
        self.waiting.load(SeqCst) != 0
    }

    /// Counts the memory that the connections of the server hold.
    pub(crate) fn memory(&self) -> &Arc<MemoryGauge> {
        &self.memory
    }

    /// The wakeup of the loop, for the loop to wait on.
    pub(crate) fn wakeup(&self) -> &Wakeup {
        &self.wakeup
    }
}

#[cfg(all(test, socketserver_loom))]
mod models;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_that_arrives_before_parking_prevents_it() {
        let mailbox = Mailbox::new().unwrap();
        mailbox.post(Notification::CapacityFreed);
        assert!(!mailbox.prepare_park());
        mailbox.wake_up();
        let mut notifications = VecDeque::new();
        mailbox.collect(&mut notifications, 8);
        assert_eq!(notifications.len(), 1);
        assert!(mailbox.prepare_park());
    }

    #[test]
    fn a_running_loop_is_not_woken() {
        let mailbox = Mailbox::new().unwrap();
        mailbox.post(Notification::CapacityFreed);
        assert!(!mailbox.wakeup().take());
        mailbox.prepare_park();
        mailbox.post(Notification::CapacityFreed);
        mailbox.post(Notification::CapacityFreed);
        assert!(mailbox.wake_up(), "it was woken");
        assert!(mailbox.wakeup().take());
    }

    #[test]
    fn repeated_notifications_of_one_kind_are_queued_once() {
        let mailbox = Mailbox::new().unwrap();
        let mut notifications = VecDeque::new();
        for _ in 0..3 {
            for _ in 0..1000 {
                mailbox.post(Notification::Wake);
                mailbox.post(Notification::CapacityFreed);
            }
            mailbox.collect(&mut notifications, 8);
            assert_eq!(notifications.drain(..).count(), 2);
            assert!(mailbox.prepare_park(), "nothing is left");
        }
    }
}
