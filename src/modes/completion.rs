//! Notifies the event loop that a thread has served a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::blocking::Served;
use crate::counters::{Published, Tally};
use crate::guard::log;
use crate::mailbox::{Ended, Mailbox, Notification};

/// The handle by which the threads of one service notify the event loop, also that of a later run,
/// that a request has ended.
#[derive(Debug)]
pub(crate) struct CompletionNotifier {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) published: Arc<Published>,
    /// The service, by its number in the server.
    service: usize,
    /// Whether the loop wants a notification when a request ends: it waits for free capacity or for
    /// the last request.
    wanted: AtomicBool,
}

impl CompletionNotifier {
    pub(crate) fn new(mailbox: Arc<Mailbox>, published: Arc<Published>, service: usize) -> Self {
        CompletionNotifier { mailbox, published, service, wanted: AtomicBool::new(false) }
    }

    /// From now on the loop is notified when a request has ended.
    pub(crate) fn notify_on_completion(&self) {
        self.wanted.store(true, SeqCst);
    }

    /// Handles the end of a request: publishes its counts, and posts its fault, if any, for the hooks.
    pub(crate) fn served(&self, served: Served, tally: &mut Tally) {
        self.published.add(tally);
        if served.reason.is_fault() {
            let Served { origin, reason, .. } = served;
            let ended = Ended { service: self.service, origin, reason, tally: Tally::default() };
            self.mailbox.post(Notification::Ended(Box::new(ended)));
        } else {
            log::debug!("{}: {}", served.origin, *served.reason);
        }
    }

    /// Notifies the loop, if it waits, that another request can be taken.
    pub(crate) fn freed(&self) {
        if self.wanted.load(SeqCst) {
            self.mailbox.post(Notification::CapacityFreed);
        }
    }
}
