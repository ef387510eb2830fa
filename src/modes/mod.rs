//! Where requests are served: Python's mix-ins as plain values, one word each.
//!
//! [`Reactor`] and [`Offload`] leave a connection to the loop; the others take each request away
//! from it and serve it by blocking.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::blocking::Served;
use crate::counters::{Published, Tally};
use crate::log;
use crate::mailbox::{Ended, Mail, Mailbox};

mod forking;
mod inline;
mod mode;
mod offload;
mod pool;
mod thread_pool;
mod threading;

pub(crate) use forking::Children;
pub use forking::Forking;
pub use inline::Inline;
pub(crate) use inline::InlineRunner;
pub use mode::{BlockingMode, Mode, Reactor};
pub use offload::Offload;
pub(crate) use offload::OffloadWorkers;
pub use pool::Pool;
pub use threading::Threading;
pub(crate) use threading::{SessionJob, Threads, When};

/// Only this crate's modes are modes.
pub trait Sealed {}

impl Sealed for Reactor {}
impl Sealed for Offload {}
impl Sealed for Inline {}
impl Sealed for Threading {}
impl Sealed for Pool {}
impl Sealed for Forking {}
impl Sealed for Mode {}
impl Sealed for BlockingMode {}

/// How the requests of one service that are served elsewhere reach its loop again, or the next one.
#[derive(Debug)]
pub(crate) struct CompletionNotifier {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) published: Arc<Published>,
    /// The service, by its number in the server.
    service: usize,
    /// The loop wants to know when a request has ended: it waits for room, or for the last one.
    wanted: AtomicBool,
}

impl CompletionNotifier {
    pub(crate) fn new(mailbox: Arc<Mailbox>, published: Arc<Published>, service: usize) -> Self {
        CompletionNotifier { mailbox, published, service, wanted: AtomicBool::new(false) }
    }

    /// From now on the end of each request is told.
    pub(crate) fn notify_on_completion(&self) {
        self.wanted.store(true, SeqCst);
    }

    /// A request has ended: what it counted, and what the hooks must hear of.
    pub(crate) fn served(&self, served: Served, tally: &mut Tally) {
        self.published.add(tally);
        if served.reason.is_fault() {
            let Served { peer, reason, .. } = served;
            let ended = Ended { service: self.service, peer, reason, tally: Tally::default() };
            self.mailbox.post(Mail::Ended(Box::new(ended)));
        } else {
            log::debug!("{}: {}", served.peer, *served.reason);
        }
    }

    /// The place of a request that has ended is free.
    pub(crate) fn freed(&self) {
        if self.wanted.load(SeqCst) {
            self.mailbox.post(Mail::CapacityFreed);
        }
    }

    /// A handler of a request that came in this run asks the server to stop.
    pub(crate) fn shutdown(&self, run: usize) {
        self.mailbox.post(Mail::Shutdown(run));
    }
}
