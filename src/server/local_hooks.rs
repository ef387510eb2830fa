//! Hooks that are made when a run begins and stay on its thread.

use std::io;

use super::Server;
use super::builder::{Builder, Service, alone, finish};
use super::hooks::{ActionPlan, GuardedHooks, Hooks, NoHooks};
use crate::accepted::Accepted;
use crate::conversation::{Framing, Handler};
use crate::error::Error;
use crate::modes::{HandlerFactory, HandlerMode, MakeFactory, RunContext, start_run};
use crate::sys::CatchDrop;

impl<F, D> Builder<F, D> {
    /// As [`service_local`](Builder::service_local), for handlers and hooks that share state of one
    /// thread. `start` returns the handler factory and the hooks of a run. Neither need be `Send`,
    /// and both are dropped when the run ends.
    ///
    /// ```
    /// use std::{cell::RefCell, collections::BTreeSet, rc::Rc, time::{Duration, Instant}};
    /// use socketserver::{Accepted, Hooks, Server, handler_fn};
    ///
    /// /// The deadline of each message.
    /// type Deadlines = Rc<RefCell<BTreeSet<Instant>>>;
    ///
    /// struct Forgets(Deadlines);
    ///
    /// impl Hooks for Forgets {
    ///     fn next_action(&mut self) -> Option<Instant> {
    ///         self.0.borrow().first().copied()
    ///     }
    ///
    ///     fn service_actions(&mut self) {
    ///         let now = Instant::now();
    ///         self.0.borrow_mut().retain(|deadline| *deadline > now);
    ///     }
    /// }
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve_local_with_hooks(|| {
    ///     let deadlines = Deadlines::default();
    ///     let hooks = Forgets(deadlines.clone());
    ///     let make = move |_: &Accepted<'_>| {
    ///         let deadlines = deadlines.clone();
    ///         handler_fn(move |_message, cx| {
    ///             deadlines.borrow_mut().insert(Instant::now() + Duration::from_secs(60));
    ///             cx.send(deadlines.borrow().len().to_string().as_bytes())
    ///         })
    ///     };
    ///     (make, hooks)
    /// })?;
    /// assert!(server.local_addr().port().is_some());
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`service`](Builder::service).
    pub fn service_local_with_hooks<H, M, K>(
        self,
        start: impl FnMut() -> (M, K) + Send + 'static,
    ) -> Result<Service, Error>
    where
        M: FnMut(&Accepted<'_>) -> H + 'static,
        K: Hooks + 'static,
        H: Handler + 'static,
        F: Framing + Clone + Send + 'static,
        D: HandlerMode<H>,
    {
        let action_plan = self.action_plan::<K>();
        let (settings, framing, mode) = self.without_hooks();
        let (framing, mut start) = (CatchDrop::new(framing), start);
        let start = move || {
            let (framing, (mut make, hooks)) = (CatchDrop::new(F::clone(&framing)), start());
            let make = move |accepted: &Accepted<'_>| (F::clone(&framing), make(accepted));
            (make, hooks)
        };
        let start = PerRunHooksFactory { start: CatchDrop::new(start), action_plan };
        finish(settings, mode, NoHooks, start)
    }

    /// A server of this one service: [`service_local_with_hooks`](Builder::service_local_with_hooks)
    /// and [`Server::add`] in one.
    ///
    /// ```
    /// use std::{cell::Cell, rc::Rc};
    /// use socketserver::{Accepted, Hooks, Peer, Server, handler_fn};
    ///
    /// /// Refuses clients when the handlers say so.
    /// struct Gate(Rc<Cell<bool>>);
    ///
    /// impl Hooks for Gate {
    ///     fn verify_request(&mut self, _: &Peer) -> bool {
    ///         self.0.get()
    ///     }
    /// }
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve_local_with_hooks(|| {
    ///     let is_open = Rc::new(Cell::new(true));
    ///     let gate = Gate(is_open.clone());
    ///     let make = move |_: &Accepted<'_>| {
    ///         let is_open = is_open.clone();
    ///         handler_fn(move |message, cx| {
    ///             is_open.set(message != b"close");
    ///             cx.send(b"ok")
    ///         })
    ///     };
    ///     (make, gate)
    /// })?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for both.
    pub fn serve_local_with_hooks<H, M, K>(
        self,
        start: impl FnMut() -> (M, K) + Send + 'static,
    ) -> Result<Server, Error>
    where
        M: FnMut(&Accepted<'_>) -> H + 'static,
        K: Hooks + 'static,
        H: Handler + 'static,
        F: Framing + Clone + Send + 'static,
        D: HandlerMode<H>,
    {
        alone(self.service_local_with_hooks(start)?)
    }
}

/// A function that is called when a run begins and returns the handler factory and the hooks of the
/// run.
struct PerRunHooksFactory<S> {
    start: CatchDrop<S>,
    action_plan: ActionPlan,
}

impl<T, M, K, S> MakeFactory<T> for PerRunHooksFactory<S>
where
    M: FnMut(&Accepted<'_>) -> T + 'static,
    K: Hooks + 'static,
    S: FnMut() -> (M, K) + Send,
{
    fn start(&mut self, run_cx: &RunContext<'_>) -> io::Result<HandlerFactory<'_, T>> {
        let (make, hooks) = start_run(&mut *self.start)?;
        let (factory, hooks) = (HandlerFactory::new(make), CatchDrop::new(hooks));
        run_cx.hooks.set(Some(Box::new(GuardedHooks::new(hooks, self.action_plan))));
        Ok(factory)
    }
}
