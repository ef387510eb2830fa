//! What tells the loop that a thread has served a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::blocking::Served;
use crate::counters::{Published, Tally};
use crate::guard::log;
use crate::mailbox::{Ended, Mail, Mailbox};

/// How the threads of one service tell the loop, or that of a later run, that a request has ended.
#[derive(Debug)]
pub(crate) struct CompletionNotifier {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) published: Arc<Published>,
    /// The service, by its number in the server.
    service: usize,
    /// The loop waits for room or for the last request, and so wants to know when a request has ended.
    wanted: AtomicBool,
}

impl CompletionNotifier {
    pub(crate) fn new(mailbox: Arc<Mailbox>, published: Arc<Published>, service: usize) -> Self {
        CompletionNotifier { mailbox, published, service, wanted: AtomicBool::new(false) }
    }

    /// From now on the loop is told when a request has ended.
    pub(crate) fn notify_on_completion(&self) {
        self.wanted.store(true, SeqCst);
    }

    /// A request has ended: publishes what it counted, and posts a fault to the hooks.
    pub(crate) fn served(&self, served: Served, tally: &mut Tally) {
        self.published.add(tally);
        if served.reason.is_fault() {
            let Served { origin, reason, .. } = served;
            let ended = Ended { service: self.service, origin, reason, tally: Tally::default() };
            self.mailbox.post(Mail::Ended(Box::new(ended)));
        } else {
            log::debug!("{}: {}", served.origin, *served.reason);
        }
    }

    /// A request that has ended has left room for another one.
    pub(crate) fn freed(&self) {
        if self.wanted.load(SeqCst) {
            self.mailbox.post(Mail::CapacityFreed);
        }
    }
}
