//! The mailbox of an event loop: what other threads post to it.
//!
//! **Invariant:** a loop that is awake is not woken, and a loop that sleeps is woken by what is
//! posted. Each side does two things, in this order:
//!
//! * A producer adds its mail to `waiting`. Then it swaps `asleep` to false, and where it was true, it
//!   wakes the loop.
//! * The loop swaps `asleep` to true. Then it reads `waiting`, and where that is not 0, it does not
//!   sleep.
//!
//! `asleep` is only ever changed by a swap. So one of the two swaps comes second and sees the first,
//! with all that was done before it: where the producer's comes second, it finds true and wakes the
//! loop; where the loop's comes second, the loop then finds the mail in `waiting`. Swaps that
//! acquire and release are enough for that.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard};

use crate::address::Origin;
use crate::counters::Tally;
use crate::error::CloseReason;
use crate::guard::log;
use crate::sync::lock;
use crate::sys::{CatchDrop, Wakeup};
use crate::token::Token;

/// A job that a loop lends to a worker, and that comes home when it is done.
pub(crate) trait Job: Send {
    /// Does the job; the handler in it may block. Whether it comes home afterwards. Never panics.
    fn run(&mut self) -> bool;
    /// Its connection is gone: the handler is told, and nothing comes home. Never panics.
    fn abandoned(&mut self);
    /// For the loop to have its own again.
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

/// Lets go of what comes home to nobody.
pub(crate) fn abandon(mut work: Box<dyn Job>) {
    work.abandoned();
}

/// What is left to be done with mail that no loop will take: a fault is logged.
fn log_undelivered(mail: Mail) {
    if let Mail::Ended(ended) = mail
        && ended.reason.is_fault()
    {
        log::error!("{}: {}", ended.origin, *ended.reason);
    }
}

/// What a loop can find in its mailbox.
pub(crate) enum Mail {
    /// Something waits in this connection's outlet. Each has one such piece at the most.
    SendQueue(Token),
    /// What this connection had lent comes home.
    JobDone(Token, Box<dyn Job>),
    /// A thread or a worker that a listener waited for is free.
    CapacityFreed,
    /// There is something to look at outside the mailbox.
    Wake,
    /// A request has ended elsewhere, in this run or an earlier one.
    Ended(Box<Ended>),
}

/// How a request that was served elsewhere has ended.
pub(crate) struct Ended {
    /// The service that it came by: by its number in the server, since it may be told in a later run.
    pub(crate) service: usize,
    pub(crate) origin: Origin,
    pub(crate) reason: CatchDrop<CloseReason>,
    pub(crate) tally: Tally,
}

/// A loop's mailbox, and what wakes the loop to look into it.
#[derive(Debug)]
pub(crate) struct Mailbox {
    mail: Mutex<MailQueue>,
    /// How much mail there is.
    waiting: AtomicUsize,
    asleep: AtomicBool,
    /// No loop runs, and what comes home finds nobody. Changed only while `mail` is locked.
    run_ended: AtomicBool,
    /// No loop will run any more. Changed only while `mail` is locked.
    closed: AtomicBool,
    /// The number of the run that is on, or was last. Changed only while `mail` is locked.
    run: AtomicUsize,
    wakeup: Wakeup,
}

/// The mail itself.
#[derive(Debug, Default)]
struct MailQueue {
    mail: VecDeque<Mail>,
    /// Which notices are in it, each a bit: a second one would say nothing new.
    notices: u8,
}

impl Mail {
    /// The bit of what says the same however often it is said; 0 for all else.
    fn notice(&self) -> u8 {
        match self {
            Mail::CapacityFreed => 1,
            Mail::Wake => 2,
            Mail::SendQueue(_) | Mail::JobDone(..) | Mail::Ended(_) => 0,
        }
    }
}

impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mail::SendQueue(_) => "SendQueue",
            Mail::JobDone(..) => "JobDone",
            Mail::CapacityFreed => "CapacityFreed",
            Mail::Wake => "Wake",
            Mail::Ended(_) => "Ended",
        })
    }
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Mailbox {
            mail: Mutex::default(),
            waiting: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            run_ended: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            run: AtomicUsize::new(0),
            wakeup: Wakeup::new()?,
        })
    }

    /// Puts mail down, and wakes the loop if it sleeps.
    pub(crate) fn post(&self, mail: Mail) {
        let queue = lock(&self.mail);
        if self.closed.load(SeqCst) {
            drop(queue);
            return log_undelivered(mail);
        }
        self.put(queue, mail);
    }

    fn put(&self, mut queue: MutexGuard<'_, MailQueue>, mail: Mail) {
        let notice = mail.notice();
        let is_new = queue.notices & notice == 0;
        if is_new {
            queue.notices |= notice;
            queue.mail.push_back(mail);
        }
        drop(queue);
        if is_new {
            self.waiting.fetch_add(1, SeqCst);
        }
        // Also for one that is not new: a loop that dozes has not taken the other.
        self.wake();
    }

    /// Brings home what was lent out in this run; it is abandoned, if that run is over.
    pub(crate) fn return_job(&self, run: usize, token: Token, work: Box<dyn Job>) {
        let waiting = lock(&self.mail);
        if self.run_ended.load(SeqCst) || self.run() != run {
            drop(waiting);
            return abandon(work);
        }
        self.put(waiting, Mail::JobDone(token, work));
    }

    /// The server is gone: what nobody will be told any more is logged.
    pub(crate) fn close(&self) {
        let mut mail = lock(&self.mail);
        self.closed.store(true, SeqCst);
        let all = std::mem::take(&mut *mail).mail;
        self.waiting.fetch_sub(all.len(), SeqCst);
        drop(mail);
        all.into_iter().for_each(log_undelivered);
    }

    /// A loop has ended: whatever comes home from now on, or has not been taken in, is abandoned.
    pub(crate) fn end_run(&self) {
        let mut queue = lock(&self.mail);
        self.run_ended.store(true, SeqCst);
        let all = std::mem::take(&mut queue.mail);
        let (returned, rest): (VecDeque<_>, _) =
            all.into_iter().partition(|mail| matches!(mail, Mail::JobDone(..)));
        queue.mail = rest;
        self.waiting.fetch_sub(returned.len(), SeqCst);
        drop(queue);
        for mail in returned {
            if let Mail::JobDone(_, work) = mail {
                abandon(work);
            }
        }
    }

    /// A loop begins, with the run of this number.
    pub(crate) fn begin_run(&self, run: usize) {
        let _queue = lock(&self.mail);
        self.run_ended.store(false, SeqCst);
        self.run.store(run, SeqCst);
    }

    /// The number of the run that is on, or was last.
    pub(crate) fn run(&self) -> usize {
        self.run.load(SeqCst)
    }

    /// Wakes the loop if it sleeps, once.
    pub(crate) fn wake(&self) {
        if self.asleep.swap(false, SeqCst) {
            self.wakeup.wake();
        }
    }

    /// Says that the loop is about to sleep; false when there is mail and it must not.
    #[inline]
    pub(crate) fn prepare_park(&self) -> bool {
        self.asleep.swap(true, SeqCst);
        self.waiting.load(SeqCst) == 0
    }

    /// Says that the loop's thread is about to wait elsewhere, mail or no mail.
    pub(crate) fn prepare_park_elsewhere(&self) {
        self.asleep.swap(true, SeqCst);
    }

    /// Says that the loop is awake; true when another thread woke it.
    #[inline]
    pub(crate) fn wake_up(&self) -> bool {
        !self.asleep.swap(false, SeqCst)
    }

    /// Moves at most `budget` pieces of mail into `into`, oldest first.
    pub(crate) fn collect(&self, into: &mut VecDeque<Mail>, budget: usize) {
        if self.waiting.load(SeqCst) == 0 {
            return;
        }
        let mut queue = lock(&self.mail);
        let MailQueue { mail, notices } = &mut *queue;
        let count = mail.len().min(budget);
        into.extend(mail.drain(..count).inspect(|mail| *notices &= !mail.notice()));
        self.waiting.fetch_sub(count, SeqCst);
    }

    /// Whether mail waits.
    pub(crate) fn has_mail(&self) -> bool {
        self.waiting.load(SeqCst) != 0
    }

    /// What wakes the loop, to be waited for.
    pub(crate) fn wakeup(&self) -> &Wakeup {
        &self.wakeup
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_that_arrives_before_parking_prevents_it() {
        let mailbox = Mailbox::new().unwrap();
        mailbox.post(Mail::CapacityFreed);
        assert!(!mailbox.prepare_park());
        mailbox.wake_up();
        let mut mail = VecDeque::new();
        mailbox.collect(&mut mail, 8);
        assert_eq!(mail.len(), 1);
        assert!(mailbox.prepare_park());
    }

    #[test]
    fn a_running_loop_is_not_woken() {
        let mailbox = Mailbox::new().unwrap();
        mailbox.post(Mail::CapacityFreed);
        assert!(!mailbox.wakeup().is_set().unwrap());
        mailbox.prepare_park();
        mailbox.post(Mail::CapacityFreed);
        mailbox.post(Mail::CapacityFreed);
        assert!(mailbox.wake_up(), "it was woken");
        assert!(mailbox.wakeup().is_set().unwrap());
    }

    #[test]
    fn repeated_mail_of_one_kind_is_queued_once() {
        let mailbox = Mailbox::new().unwrap();
        let mut mail = VecDeque::new();
        for _ in 0..3 {
            for _ in 0..1000 {
                mailbox.post(Mail::Wake);
                mailbox.post(Mail::CapacityFreed);
            }
            mailbox.collect(&mut mail, 8);
            assert_eq!(mail.drain(..).count(), 2);
            assert!(mailbox.prepare_park(), "nothing is left");
        }
    }
}
