//! What Python lets a subclass of a server override, and the guard around it: an error or a panic
//! in a hook never ends the loop.

use std::any::TypeId;
use std::cell::Cell;
use std::ops::DerefMut;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::address::{Origin, Peer};
use crate::connection_id::ConnectionId;
use crate::error::CloseReason;
use crate::event_loop::{ListenerHooks, LoopCx};
use crate::guard::log;
use crate::guard::{contain, guard};
use crate::sys::CatchDrop;

thread_local! {
    /// The connection whose fault [`Hooks::handle_error`] is told on this thread: by default it is
    /// logged.
    static FAULTY: Cell<Option<ConnectionId>> = const { Cell::new(None) };
}

/// Hooks of one listener: each method is Python's of the same name.
///
/// They run on the loop's thread, whatever the mode; a panic in one is caught, counted and logged.
/// A hook that refuses or panics costs its own request and nothing else.
pub trait Hooks {
    /// Whether this peer's request is served; called before anything is read. A peer that is refused
    /// is closed. By default all are served.
    fn verify_request(&mut self, peer: &Peer) -> bool {
        let _ = peer;
        true
    }

    /// A connection has been accepted, and is about to be served: a place to set its options. Python's
    /// `get_request` is overridden for that; for other things, see
    /// [`Server::add_connection`](crate::Server::add_connection). By default it does nothing.
    ///
    /// # Errors
    ///
    /// An error closes this connection.
    #[doc(alias = "get_request")]
    fn on_accept(&mut self, connection: BorrowedFd<'_>, peer: &Peer) -> std::io::Result<()> {
        let _ = (connection, peer);
        Ok(())
    }

    /// A handler failed or panicked (see [`CloseReason::is_fault`]); its connection is closed. By
    /// default it is logged as an error, with the peer and the number of the connection.
    ///
    /// It is told once of each, by the run in which the request ends; under `threading` and `pool`
    /// that may be a later one than it came in, see
    /// [`Server::handle_request`](crate::Server::handle_request). Under `forking` it is called in the
    /// child.
    fn handle_error(&mut self, peer: &Peer, reason: &CloseReason) {
        let origin = Origin { id: FAULTY.get(), peer: peer.clone() };
        log::error!("{origin}: {reason}");
    }

    /// [`Server::handle_request`](crate::Server::handle_request) has waited for its timeout in vain.
    fn handle_timeout(&mut self) {}

    /// Does what the service has to do beside its requests: lets keys expire, writes statistics. It is
    /// called when the deadline has come that [`next_action`](Hooks::next_action) has told. Where
    /// [`wants_service_actions`](Hooks::wants_service_actions) says so it is called after each turn of
    /// the loop too, and at least once per [`poll_interval`](crate::Builder::poll_interval).
    ///
    /// No request is served meanwhile by the loop, so much work is done in parts, a part in each call.
    fn service_actions(&mut self) {}

    /// When [`service_actions`](Hooks::service_actions) is to be called; `None`, the default, is not
    /// at all.
    ///
    /// It is asked when the server begins to serve and after each turn of the loop, so it should be
    /// quick, and what a handler has changed in the turn counts. The loop sleeps until the earliest
    /// of its deadlines at the most, and an idle server does not wake before. A deadline that has
    /// passed is due in the next turn, in which all who are ready are served too: one that always
    /// has passed is due in each turn, which keeps a processor busy.
    ///
    /// Under `inline` an action waits for the request that is being served. Under `threading` and
    /// `pool` the loop has no turn for what a handler does in its thread, so an earlier deadline that
    /// a handler sets there is heard of in the next turn; where that is too late, use
    /// [`wants_service_actions`](Hooks::wants_service_actions).
    ///
    /// Python has no such deadline, only the way of
    /// [`wants_service_actions`](Hooks::wants_service_actions).
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use std::sync::{Arc, Mutex};
    /// use std::time::Instant;
    /// use socketserver::Hooks;
    ///
    /// /// Lets keys expire; handlers have the other handle to the map.
    /// struct Expiry(Arc<Mutex<BTreeMap<(Instant, u64), String>>>);
    ///
    /// impl Hooks for Expiry {
    ///     fn next_action(&mut self) -> Option<Instant> {
    ///         self.0.lock().unwrap().first_key_value().map(|((deadline, _), _)| *deadline)
    ///     }
    ///
    ///     fn service_actions(&mut self) {
    ///         let mut keys = self.0.lock().unwrap();
    ///         let now = Instant::now();
    ///         // At most a hundred at once; the others are due in the next turn.
    ///         for _ in 0..100 {
    ///             match keys.first_entry() {
    ///                 Some(entry) if entry.key().0 <= now => entry.remove(),
    ///                 _ => break,
    ///             };
    ///         }
    ///     }
    /// }
    /// ```
    fn next_action(&mut self) -> Option<Instant> {
        None
    }

    /// Whether [`service_actions`](Hooks::service_actions) is to be called after each turn of the loop,
    /// and at least once per [`poll_interval`](crate::Builder::poll_interval), which wakes an idle
    /// server too: Python's way. It is asked when the server begins to serve.
    fn wants_service_actions(&self) -> bool {
        false
    }
}

/// The default hooks: everyone is served, faults are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoHooks;

impl Hooks for NoHooks {}

/// What is known of the service's actions before a run begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct ActionPlan {
    poll_interval: Duration,
    /// [`Hooks::next_action`] is asked: they are not [`NoHooks`].
    asks: bool,
}

impl ActionPlan {
    pub(super) fn of<K: Hooks + 'static>(poll_interval: Duration) -> Self {
        ActionPlan { poll_interval, asks: TypeId::of::<K>() != TypeId::of::<NoHooks>() }
    }
}

/// Hooks behind a guard, for one run.
pub(super) struct GuardedHooks<P> {
    hooks: P,
    /// The loop asks when the next action is due.
    asks: bool,
    /// How often there is an action at least, if they want one after each turn.
    poll_interval: Option<Duration>,
    /// What they have said last of their next action.
    next_action: Option<Instant>,
}

impl<P: DerefMut<Target: Hooks>> GuardedHooks<P> {
    pub(super) fn new(hooks: P, plan: ActionPlan) -> Self {
        let ActionPlan { poll_interval, asks } = plan;
        // Hooks that panic do not want it.
        let wants = contain("wants_service_actions", || hooks.wants_service_actions());
        let poll_interval = (wants == Some(true)).then_some(poll_interval);
        GuardedHooks { hooks, asks, poll_interval, next_action: None }
    }
}

impl<P: DerefMut<Target: Hooks>> ListenerHooks for GuardedHooks<P> {
    fn prepare(
        &mut self,
        connection: BorrowedFd<'_>,
        id: ConnectionId,
        peer: &Peer,
        cx: &mut LoopCx,
    ) -> bool {
        let hook = || self.hooks.on_accept(connection, peer);
        match guard("on_accept", &mut cx.scratch.tally.panics, hook).map(CatchDrop::new).as_deref()
        {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                let origin = Origin { id: Some(id), peer: peer.clone() };
                log::warn!("{origin} is not served: {error}");
                false
            }
            None => false,
        }
    }

    fn verify(&mut self, peer: &Peer, cx: &mut LoopCx) -> bool {
        // One that panics has not said yes.
        guard("verify_request", &mut cx.scratch.tally.panics, || self.hooks.verify_request(peer))
            .unwrap_or(false)
    }

    fn fault(&mut self, origin: &Origin, reason: &CloseReason, cx: &mut LoopCx) {
        FAULTY.set(origin.id);
        let hook = || self.hooks.handle_error(&origin.peer, reason);
        guard("handle_error", &mut cx.scratch.tally.panics, hook);
        FAULTY.set(None);
    }

    fn wants_turn_end(&self) -> bool {
        self.asks || self.poll_interval.is_some()
    }

    fn on_turn_end(&mut self, cx: &mut LoopCx) {
        let is_due = self.next_action.is_some_and(|next_action| next_action <= cx.turn.now);
        if is_due || self.poll_interval.is_some() {
            guard("service_actions", &mut cx.scratch.tally.panics, || self.hooks.service_actions());
        }
    }

    fn next_turn(&mut self, cx: &mut LoopCx) -> Option<Instant> {
        let panics = &mut cx.scratch.tally.panics;
        self.next_action = match self.asks {
            // Hooks that panic have no action.
            true => guard("next_action", panics, || self.hooks.next_action()).flatten(),
            false => None,
        };
        let next_poll = self.poll_interval.and_then(|interval| cx.turn.now.checked_add(interval));
        self.next_action.into_iter().chain(next_poll).min()
    }

    fn no_request(&mut self, cx: &mut LoopCx) {
        guard("handle_timeout", &mut cx.scratch.tally.panics, || self.hooks.handle_timeout());
    }
}
