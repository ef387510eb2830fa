//! The hooks of a listener: the methods that a subclass of a Python server can override. An error
//! or a panic in a hook never ends the event loop.

use std::any::TypeId;
use std::cell::Cell;
use std::ops::DerefMut;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::MAX_TIME;
use crate::address::{LogPeer, Peer};
use crate::connection_id::ConnectionId;
use crate::error::CloseReason;
use crate::event_loop::{ListenerHooks, LoopCx};
use crate::guard::log;
use crate::guard::{contain, guard};
use crate::sys::CatchDrop;

thread_local! {
    /// The connection that [`Hooks::handle_error`] is being called for on this thread; the default
    /// method logs its number.
    static FAULTY: Cell<Option<ConnectionId>> = const { Cell::new(None) };
}

/// The hooks of one listener: each method is Python's method of the same name.
///
/// Hooks run on the event loop's thread under every mode, except
/// [`handle_error`](Hooks::handle_error) under `forking`. A panic in a hook is caught, counted and
/// logged. A hook that refuses or panics ends its own request and nothing else.
///
/// In the guide: [`behind_a_proxy`](crate::guide::behind_a_proxy),
/// [`logging_and_counters`](crate::guide::logging_and_counters),
/// [`shared_state`](crate::guide::shared_state), [`testing`](crate::guide::testing),
/// [`timeouts`](crate::guide::timeouts).
///
/// ```
/// use socketserver::{CloseReason, Hooks, Peer};
///
/// /// Refuses one address, and counts faults.
/// #[derive(Default)]
/// struct Watch {
///     faults: u64,
/// }
///
/// impl Hooks for Watch {
///     fn verify_request(&mut self, peer: &Peer) -> bool {
///         peer.inet().is_none_or(|peer| peer.ip().to_string() != "192.0.2.7")
///     }
///
///     fn handle_error(&mut self, peer: &Peer, reason: &CloseReason) {
///         self.faults += 1;
///         log::error!("{peer}: {reason}");
///     }
/// }
/// ```
pub trait Hooks {
    /// Returns whether this peer's request is served; called before anything is read. If not, its
    /// connection is closed. By default all requests are served.
    fn verify_request(&mut self, peer: &Peer) -> bool {
        let _ = peer;
        true
    }

    /// Called when a connection has been accepted and before it is served, to set socket options.
    /// Python programs override `get_request` for this; for its other uses, see
    /// [`Server::add_connection`](crate::Server::add_connection). By default it does nothing.
    ///
    /// ```
    /// use std::os::fd::{AsRawFd, BorrowedFd};
    /// use socketserver::{Hooks, Peer};
    ///
    /// struct Options;
    ///
    /// impl Hooks for Options {
    ///     fn on_accept(&mut self, connection: BorrowedFd<'_>, peer: &Peer) -> std::io::Result<()> {
    ///         log::debug!("descriptor {} for {peer}", connection.as_raw_fd()); // or setsockopt(2)
    ///         Ok(())
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// An error closes this connection.
    #[doc(alias = "get_request")]
    fn on_accept(&mut self, connection: BorrowedFd<'_>, peer: &Peer) -> std::io::Result<()> {
        let _ = (connection, peer);
        Ok(())
    }

    /// Called when a handler has failed or panicked (see [`CloseReason::is_fault`]); its connection
    /// is closed. By default it logs an error with the peer and the number of the connection.
    ///
    /// It is called once for each fault, by the run in which the request ends. Under `threading`
    /// and `pool` this may be a later run than the one that accepted the request, see
    /// [`Server::handle_request`](crate::Server::handle_request). Under `forking` it is called in
    /// the child.
    fn handle_error(&mut self, peer: &Peer, reason: &CloseReason) {
        let origin = LogPeer { id: FAULTY.get(), peer: peer.clone() };
        log::error!("{origin}: {reason}");
    }

    /// Called when [`Server::handle_request`](crate::Server::handle_request) got no request before
    /// its timeout.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{Hooks, Server, handler_fn};
    ///
    /// struct Waiting;
    ///
    /// impl Hooks for Waiting {
    ///     fn handle_timeout(&mut self) {
    ///         log::info!("nobody has called");
    ///     }
    /// }
    ///
    /// let mut server = Server::tcp("127.0.0.1:0")?
    ///     .hooks(Waiting)
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// server.request_timeout(Duration::from_millis(1));
    /// assert!(!server.handle_request()?); // after the call of `handle_timeout`
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    fn handle_timeout(&mut self) {}

    /// Returns for how long a datagram service receives nothing, if it is to pause; `None`, the
    /// default, if it is to receive. It is called before each receive of up to 32 datagrams, and
    /// again when the time is over, under every mode. For a service of connections it is not called.
    ///
    /// So a service whose work cannot keep up does not drop what it cannot store: datagrams wait in
    /// the receive buffer of the socket. When this is full, a sender on a Unix socket waits, and the
    /// kernel drops UDP datagrams, which
    /// [`Counters::dropped_by_kernel`](crate::Counters::dropped_by_kernel) counts. A connection has
    /// [`Context::pause_input`](crate::Context::pause_input) for this.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicUsize, Ordering};
    /// use std::time::Duration;
    /// use socketserver::Hooks;
    ///
    /// /// Receives while few lines wait to be written.
    /// struct WhileFew(Arc<AtomicUsize>);
    ///
    /// impl Hooks for WhileFew {
    ///     fn pause_receiving(&mut self) -> Option<Duration> {
    ///         (self.0.load(Ordering::Relaxed) > 1000).then_some(Duration::from_millis(5))
    ///     }
    /// }
    /// ```
    fn pause_receiving(&mut self) -> Option<Duration> {
        None
    }

    /// Does periodic work of the service, for example expires keys or writes statistics. It is
    /// called when the deadline of [`next_action`](Hooks::next_action) has passed. If
    /// [`wants_service_actions`](Hooks::wants_service_actions) returns true, it is also called
    /// after each turn of the event loop, and at least once per
    /// [`poll_interval`](crate::Builder::poll_interval).
    ///
    /// The event loop serves no request during the call, so do long work in parts, one part in each
    /// call.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use socketserver::Hooks;
    ///
    /// /// Writes a line every minute.
    /// struct Minutes {
    ///     next: Instant,
    /// }
    ///
    /// impl Hooks for Minutes {
    ///     fn next_action(&mut self) -> Option<Instant> {
    ///         Some(self.next)
    ///     }
    ///
    ///     fn service_actions(&mut self) {
    ///         log::info!("still here");
    ///         self.next += Duration::from_secs(60);
    ///     }
    /// }
    /// ```
    fn service_actions(&mut self) {}

    /// Returns when [`service_actions`](Hooks::service_actions) is to be called next; `None`, the
    /// default, means never.
    ///
    /// It is called when the server begins to serve and after each turn of the event loop, so it
    /// should be fast, and it can use what a handler has changed in the turn. The loop sleeps no
    /// longer than until the earliest of its deadlines, and an idle server does not wake before. A
    /// deadline that has passed is due in the next turn, which also serves all ready connections. A
    /// deadline that is always in the past is due in every turn, which keeps one processor busy.
    ///
    /// Under `inline` an action waits for the request that is being served. Under `threading` and
    /// `pool` a handler runs in its own thread and does not cause a turn of the event loop. So an
    /// earlier deadline that a handler sets is seen only in the next turn; if that is too late, use
    /// [`wants_service_actions`](Hooks::wants_service_actions).
    ///
    /// Python has no such deadline; it works as with
    /// [`wants_service_actions`](Hooks::wants_service_actions).
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use std::sync::{Arc, Mutex};
    /// use std::time::Instant;
    /// use socketserver::Hooks;
    ///
    /// /// Expires keys; handlers share the map.
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

    /// Returns whether [`service_actions`](Hooks::service_actions) is called after each turn of the
    /// event loop, and at least once per [`poll_interval`](crate::Builder::poll_interval), which
    /// wakes an idle server too. Python's servers do this. It is called when the server begins to
    /// serve.
    ///
    /// ```
    /// use socketserver::Hooks;
    ///
    /// /// As Python's servers: `service_actions` at least twice a second.
    /// struct LikePython;
    ///
    /// impl Hooks for LikePython {
    ///     fn wants_service_actions(&self) -> bool {
    ///         true
    ///     }
    ///
    ///     fn service_actions(&mut self) {}
    /// }
    /// ```
    fn wants_service_actions(&self) -> bool {
        false
    }
}

/// The default hooks: all requests are served, faults are logged.
///
/// ```
/// use socketserver::{NoHooks, Server, handler_fn};
///
/// let server = Server::tcp("127.0.0.1:0")?
///     .hooks(NoHooks) // the default
///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
/// # let _ = server;
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoHooks;

impl Hooks for NoHooks {}

/// The settings of a service's actions that are known before a run begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct ActionPlan {
    poll_interval: Duration,
    /// Whether [`Hooks::next_action`] and [`Hooks::pause_receiving`] are called: the hooks are not
    /// [`NoHooks`].
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
    /// Whether [`Hooks::next_action`] is called after each turn, and [`Hooks::pause_receiving`]
    /// before each receive.
    asks: bool,
    /// The maximum time between two actions, if the hooks want one after each turn.
    poll_interval: Option<Duration>,
    /// The last result of [`Hooks::next_action`].
    next_action: Option<Instant>,
}

impl<P: DerefMut<Target: Hooks>> GuardedHooks<P> {
    pub(super) fn new(hooks: P, plan: ActionPlan) -> Self {
        let ActionPlan { poll_interval, asks } = plan;
        // After a panic, it is not called.
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
                let origin = LogPeer { id: Some(id), peer: peer.clone() };
                log::warn!("{origin} is not served: {error}");
                false
            }
            None => false,
        }
    }

    fn verify(&mut self, peer: &Peer, cx: &mut LoopCx) -> bool {
        // After a panic, the request is refused.
        guard("verify_request", &mut cx.scratch.tally.panics, || self.hooks.verify_request(peer))
            .unwrap_or(false)
    }

    fn pause_receiving(&mut self, cx: &mut LoopCx) -> Option<Duration> {
        if !self.asks {
            return None;
        }
        let panics = &mut cx.scratch.tally.panics;
        // After a panic, it receives.
        let pause = guard("pause_receiving", panics, || self.hooks.pause_receiving()).flatten();
        pause.map(|pause| pause.min(MAX_TIME))
    }

    fn fault(&mut self, origin: &LogPeer, reason: &CloseReason, cx: &mut LoopCx) {
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
            // After a panic, there is no action.
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
