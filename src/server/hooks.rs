//! What Python lets a subclass of a server override, and the guard around it: an error or a panic
//! in a hook never ends the loop.

use std::os::fd::BorrowedFd;

use crate::address::Peer;
use crate::error::CloseReason;
use crate::event_loop::{ListenerHooks, LoopCx};
use crate::guard::log;
use crate::guard::{contain, guard};
use crate::sys::CatchDrop;

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
    /// default it is logged as an error.
    ///
    /// It is told once of each, by the run in which the request ends; under `threading` and `pool`
    /// that may be a later one than it came in, see
    /// [`Server::handle_request`](crate::Server::handle_request). Under `forking` it is called in the
    /// child.
    fn handle_error(&mut self, peer: &Peer, reason: &CloseReason) {
        log::error!("{peer}: {reason}");
    }

    /// [`Server::handle_request`](crate::Server::handle_request) has waited for its timeout in vain.
    fn handle_timeout(&mut self) {}

    /// Called after each turn of the loop, and at least once per
    /// [`poll_interval`](crate::Builder::poll_interval); only if [`wants_service_actions`] says so,
    /// since an idle loop would otherwise not wake at all.
    ///
    /// [`wants_service_actions`]: Hooks::wants_service_actions
    fn service_actions(&mut self) {}

    /// Whether [`service_actions`](Hooks::service_actions) is to be called.
    fn wants_service_actions(&self) -> bool {
        false
    }
}

/// The default hooks: everyone is served, faults are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoHooks;

impl Hooks for NoHooks {}

/// Hooks behind a guard.
pub(crate) struct GuardedHooks<'a> {
    hooks: &'a mut (dyn Hooks + Send),
}

impl<'a> GuardedHooks<'a> {
    pub(crate) fn new(hooks: &'a mut (dyn Hooks + Send)) -> Self {
        GuardedHooks { hooks }
    }
}

/// Asks a hook whether it wants to be called; one that panics does not.
pub(crate) fn wants_service_actions(hooks: &dyn Hooks) -> bool {
    contain("wants_service_actions", || hooks.wants_service_actions()).unwrap_or(false)
}

impl ListenerHooks for GuardedHooks<'_> {
    fn prepare(&mut self, connection: BorrowedFd<'_>, peer: &Peer, cx: &mut LoopCx) -> bool {
        let hook = || self.hooks.on_accept(connection, peer);
        match guard("on_accept", &mut cx.scratch.tally.panics, hook).map(CatchDrop::new).as_deref()
        {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                log::warn!("{peer} is not served: {error}");
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

    fn fault(&mut self, peer: &Peer, reason: &CloseReason, cx: &mut LoopCx) {
        guard("handle_error", &mut cx.scratch.tally.panics, || {
            self.hooks.handle_error(peer, reason)
        });
    }

    fn wants_turn_end(&self) -> bool {
        wants_service_actions(self.hooks)
    }

    fn on_turn_end(&mut self, cx: &mut LoopCx) {
        guard("service_actions", &mut cx.scratch.tally.panics, || self.hooks.service_actions());
    }
}
