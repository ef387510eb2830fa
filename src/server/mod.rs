//! The server: any number of listeners, each with its own handler, framing and mode, in one loop.
//! The only place that knows all axes.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};

use crate::address::{Address, Endpoint};
use crate::counters::Counters;
use crate::datagram::DatagramSender;
use crate::error::Error;
use crate::event_loop::{
    Datagrams, EVENTS, EventLoop, EventSource, Listener, ListenerHooks, LoopResources,
};
use crate::guard::log;
use crate::guard::panic_message;
use crate::modes::{ListenerHandle, RunContext};
use crate::server_state::{ServerState, StopOutcome, StopRequester};
use crate::sys::{self, CatchDrop, SignalWatch, Wakeup};
use crate::token::Token;
use crate::transport::Kind;

mod builder;
mod hooks;
mod local_hooks;
mod python;
mod shutdown;

pub use builder::{Builder, Service};
pub use hooks::{Hooks, NoHooks};
pub use python::*;
pub use shutdown::{ShutdownHandle, StopReport};

use hooks::{ActionPlan, GuardedHooks};

/// How long a stop waits for who is busy, unless [`Server::drain_timeout`] says otherwise.
const DRAIN: Duration = Duration::from_secs(5);

/// What is for ever, and can still be added to a point in time.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Names one listener of a server: from [`Server::add`] or [`Server::listeners`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(usize);

/// Accepts requests on any number of listeners and serves them in one loop, one thread: Python's
/// server classes, all in one.
///
/// It is `Send`: bind here and serve there. What belongs to one run of the loop (live connections,
/// their handlers) never leaves that run's thread, so under [`Reactor`](crate::Reactor) a handler
/// need not be `Send`.
///
/// Dropping it closes its listeners and removes its own Unix socket files: Python's `server_close`,
/// and the end of its `with`. Under [`Forking`](crate::Forking) it then asks the children that
/// [`handle_request`](Server::handle_request) has left to finish, waits for them until the
/// [`drain`](Server::drain_timeout) deadline, and kills those that are left.
pub struct Server {
    // Dropped in this order: what listens goes before what it was registered with.
    services: Vec<Service>,
    poll: Poll,
    events: Events,
    control: Arc<ServerState>,
    signals: Option<SignalWatch>,
    generation: usize,
    drain: Duration,
    spin: Duration,
    timeout: Option<Duration>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

impl Server {
    /// A server without listeners.
    ///
    /// # Errors
    ///
    /// [`Error::Loop`] when the system has no poller or descriptor left for it.
    pub fn new() -> Result<Self, Error> {
        let poll = Poll::new().map_err(Error::Loop)?;
        let control = ServerState::new().map_err(Error::Loop)?;
        let wakeup = control.mailbox.wakeup().as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&wakeup), Token::WAKE.into(), Interest::READABLE)
            .map_err(Error::Loop)?;
        Ok(Server {
            services: Vec::new(),
            poll,
            events: Events::with_capacity(EVENTS),
            control: Arc::new(control),
            signals: None,
            generation: 0,
            drain: DRAIN,
            spin: Duration::ZERO,
            timeout: None,
        })
    }

    /// Begins a service over TCP. The first of the addresses that binds is used, and of those of
    /// `localhost` IPv4 comes first, the only one that Python's servers use; port 0 picks a free one.
    /// `[::]` takes IPv6 alone unless [`Builder::dual_stack`] says otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::UnusableAddress`] or [`Error::Resolve`] when the text names no address.
    pub fn tcp(address: impl std::net::ToSocketAddrs + fmt::Debug) -> Result<Builder, Error> {
        Builder::tcp(address)
    }

    /// Begins a service over UDP; as [`tcp`](Server::tcp).
    ///
    /// Replies for which the socket's send buffer has no room wait, up to 4 MiB of them under `reactor`
    /// and `offload`; with more, nothing is received. When not one of them can be sent for five seconds
    /// (a reply for half a second under the other modes) they are lost, and counted in
    /// [`Counters::unsent`].
    ///
    /// # Errors
    ///
    /// [`Error::UnusableAddress`] or [`Error::Resolve`] when the text names no address.
    pub fn udp(address: impl std::net::ToSocketAddrs + fmt::Debug) -> Result<Builder, Error> {
        Builder::udp(address)
    }

    /// Begins a service on a Unix stream socket at `path`.
    ///
    /// A socket file that nobody answers at is replaced, and its own file goes with the server. While
    /// it binds, an empty file `.NAME.lock` stands beside the file NAME, so that of several servers
    /// that start at the same moment one has the path and the others are told that it is in use.
    ///
    /// # Errors
    ///
    /// [`Error::UnusableAddress`] when the path is longer than
    /// [`MAX_UNIX_PATH`](crate::MAX_UNIX_PATH), empty, or holds a NUL.
    pub fn unix_stream(path: impl AsRef<Path>) -> Result<Builder, Error> {
        Builder::unix_stream(path)
    }

    /// Begins a service on a Unix datagram socket at `path`.
    ///
    /// # Clients that do not read
    ///
    /// A client's unread replies wait in its own queue, of about ten (`net.unix.max_dgram_qlen`).
    /// When that is full a reply waits for half a second and is then lost; the client's next ones are
    /// lost at once, until it reads, or for five seconds. Up to 1 MiB of replies wait on a socket, those
    /// of all clients together, and what is over that is lost at once. Whoever has answered does not
    /// wait: the loop tries the replies again, under every mode but `forking`, so other clients notice
    /// nothing. Under `forking` the child that has answered waits, and is one of
    /// [`max_children`](crate::Forking::max_children) meanwhile; where it sends to several clients that
    /// do not read, it waits less for each further one.
    ///
    /// A stop, and [`handle_request`](Server::handle_request), end only when such replies are sent or
    /// lost; a stop no later than [`drain`](Server::drain_timeout) allows.
    ///
    /// There is one exception, and Linux leaves no cure for it. The queue of a client that has
    /// connected its socket to the server's has no limit of its own: what it does not read is charged
    /// to the server's send buffer, of which there is one for all clients (`net.core.wmem_default`,
    /// 208 KiB mostly: some 280 short replies). A client that connects, goes on asking and never reads
    /// can fill that, and so can some others together, the fewer the larger the replies. From then on the server receives
    /// and handles what comes, and can answer nobody; each reply that is lost is counted in
    /// [`Counters::unsent`], and a warning is logged. It answers again as soon as such a client reads
    /// or goes. So a service with clients that it does not trust better listens on a
    /// [stream](Server::unix_stream), where each has a buffer of its own, or sends no replies to who
    /// asks for none.
    ///
    /// # Errors
    ///
    /// As for [`unix_stream`](Server::unix_stream).
    pub fn unix_datagram(path: impl AsRef<Path>) -> Result<Builder, Error> {
        Builder::unix_datagram(path)
    }

    /// Begins a service on whatever an [`Endpoint`] names.
    ///
    /// # Errors
    ///
    /// [`Error::UnusableAddress`] or [`Error::Resolve`] when it cannot be an address.
    pub fn endpoint(endpoint: &Endpoint) -> Result<Builder, Error> {
        Builder::endpoint(endpoint)
    }

    /// Begins a service on a socket that was bound elsewhere: handed down by a supervisor, or made
    /// with options of its own. A stream socket is made to listen if it does not yet; a Unix socket's
    /// file stays when the server goes.
    ///
    /// # Errors
    ///
    /// [`Error::Bind`] when it is no socket, [`Error::UnusableAddress`] when it is a connection: see
    /// [`add_connection`](Server::add_connection).
    pub fn from_socket(socket: impl Into<OwnedFd>) -> Result<Builder, Error> {
        Builder::from_socket(socket.into())
    }

    /// Begins a stream service without a listener, for connections that are
    /// [handed over](Server::add_connection).
    ///
    /// # Errors
    ///
    /// [`Error::Loop`] when the system has no descriptor left.
    pub fn without_listener() -> Result<Builder, Error> {
        Builder::without_listener()
    }

    /// Hands a connected stream socket over to a service, to be served as if it had been accepted:
    /// one that was connected from here, or came by other means. It is served from the next run on.
    ///
    /// # Errors
    ///
    /// [`Error::Mode`] when there is no such stream service.
    pub fn add_connection(
        &mut self,
        id: ListenerId,
        stream: impl Into<OwnedFd>,
    ) -> Result<(), Error> {
        match self.services.get_mut(id.0).filter(|service| service.batch.is_none()) {
            Some(service) => {
                service.handed.push_back(OwnedFd::into(stream.into()));
                Ok(())
            }
            None => Err(Error::Mode("a connection is handed over to a stream service".to_owned())),
        }
    }

    /// Adds a service: one more listener in the same loop.
    ///
    /// # Errors
    ///
    /// [`Error::Mode`] where its mode cannot live beside another listener's, [`Error::Loop`] when it
    /// cannot be watched.
    pub fn add(&mut self, service: Service) -> Result<ListenerId, Error> {
        for other in &self.services {
            service.check_beside(other)?;
        }
        let descriptor = service.socket().as_raw_fd();
        // A token of its own comes with each run; until then nobody asks for this one. A datagram
        // socket can always be written to, of which nobody waits to hear.
        self.poll
            .registry()
            .register(&mut SourceFd(&descriptor), Token::WAKE.into(), Interest::READABLE)
            .map_err(Error::Loop)?;
        if service.runner.requirements().one_thread && self.control.child_stop_request().is_none() {
            let asked = Wakeup::new().map_err(Error::Loop)?;
            self.poll
                .registry()
                .register(&mut SourceFd(&asked.as_raw_fd()), Token::WAKE.into(), Interest::READABLE)
                .map_err(Error::Loop)?;
            self.control.set_child_stop_request(asked);
        }
        service.reply_socket.count_into(&self.control.published);
        self.services.push(service);
        Ok(ListenerId(self.services.len() - 1))
    }

    /// Serves until it is asked to stop, then lets who is busy finish until the
    /// [`drain`](Server::drain_timeout) deadline, and cuts off the rest. It may serve again afterwards.
    ///
    /// While nothing happens the loop does not wake.
    ///
    /// # Errors
    ///
    /// [`Error::Loop`] when the poller fails; nothing that a peer or a handler does is an error
    /// here.
    pub fn serve_forever(&mut self) -> Result<StopReport, Error> {
        self.run(usize::MAX, None).map(|(report, _)| report)
    }

    /// Serves one request: returns when it is served (under `reactor`, `offload` and `inline`) or
    /// handed over (under the other modes). `Ok(false)` after [`timeout`](Server::request_timeout) has
    /// passed without one, and [`Hooks::handle_timeout`] has been called.
    ///
    /// A request that was handed over goes on after the return. Under `threading` and `pool` its
    /// fault, if it has one, is told to [`Hooks::handle_error`] by this call or by the next call that
    /// serves, whichever is on when it is known; if there is none any more, it is logged as an error
    /// when the server is dropped. A handler that asks for a shutdown ends the call that its request
    /// came in, and no later one.
    ///
    /// # Errors
    ///
    /// As for [`serve_forever`](Server::serve_forever).
    pub fn handle_request(&mut self) -> Result<bool, Error> {
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.run(1, deadline).map(|(_, served)| served)
    }

    fn run(
        &mut self,
        requests: usize,
        deadline: Option<Instant>,
    ) -> Result<(StopReport, bool), Error> {
        let running = self.control.begin();
        let stop_requester = running.stop_requester();
        let drain = self.drain;
        let control = self.control.clone();
        let signals = &mut self.signals;
        if let Some(asked) = control.child_stop_request() {
            renew(asked, &self.poll).map_err(Error::Loop)?;
        }
        let mut event_loop = EventLoop::new(LoopResources {
            poll: &mut self.poll,
            events: &mut self.events,
            mailbox: control.mailbox.clone(),
            stop: stop_requester.clone(),
            published: &control.published,
            spin: self.spin,
            generation: &mut self.generation,
        });
        event_loop.cx().run.accepts_left = requests;
        let run_cx =
            RunOptions { control: &control, stop: stop_requester, signals: signals.clone(), drain };
        for (number, service) in self.services.iter_mut().enumerate() {
            let descriptor = service.socket().as_raw_fd();
            event_loop
                .add_listener(descriptor, |token| service.begin(&run_cx, number, token))
                .map_err(Error::Loop)?;
        }
        let mut run = ServerRun { event_loop, control: &control, requests, deadline, drain };
        let served = match run.until_stop(signals.as_mut())? {
            RunEnd::Served => return Ok((StopReport::default(), true)),
            RunEnd::TimedOut => {
                run.event_loop.no_request();
                return Ok((StopReport::default(), false));
            }
            RunEnd::Stopped { served } => served,
        };
        let report = stop(&mut run.event_loop, drain)?;
        if let Some(signals) = signals {
            signals.answer();
        }
        Ok((report, served))
    }

    /// Sets how long a stop waits for who is busy; 5 seconds by default.
    pub fn drain_timeout(&mut self, deadline: Duration) -> &mut Self {
        self.drain = deadline.min(FOR_EVER);
        self
    }

    /// Makes the loop look for events again and again for so long, each time before it goes to sleep;
    /// not at all by default.
    ///
    /// Waking a thread that sleeps on another processor can cost several times what a request does,
    /// so with few connections that ask one thing after the other a spin of some tens of microseconds
    /// buys latency, at the price of a processor while there is traffic. An idle server spins once and
    /// sleeps. On a machine whose processors are all busy it only makes things worse.
    pub fn spin(&mut self, time: Duration) -> &mut Self {
        self.spin = time.min(FOR_EVER);
        self
    }

    /// Sets how long [`handle_request`](Server::handle_request) waits for a request; for ever by
    /// default. Python's `timeout` of a server.
    #[doc(alias = "timeout")]
    pub fn request_timeout(&mut self, timeout: impl Into<Option<Duration>>) -> &mut Self {
        self.timeout = timeout.into();
        self
    }

    /// A handle that stops this server from anywhere, and reads its counters.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        ShutdownHandle::new(self.control.clone())
    }

    /// Makes SIGINT and SIGTERM stop this server, gracefully; a second one ends the process at once.
    /// Every server of the process that asked for it stops.
    ///
    /// A signal that the process was started to ignore stays ignored, as SIGINT is by Python's
    /// `signal` module: a shell has its background jobs ignore SIGINT where they are not to be
    /// stopped by Ctrl-C. When the last server that asked for it is dropped, the signals do what they
    /// did before; one that came while none of them was serving is raised again then.
    ///
    /// # Errors
    ///
    /// [`Error::Loop`] when the handlers cannot be installed.
    pub fn stop_on_signals(&mut self) -> Result<(), Error> {
        let watch = sys::watch_stop_signals().map_err(Error::Loop)?;
        if self.signals.is_none() {
            let descriptor = watch.as_raw_fd();
            self.poll
                .registry()
                .register(&mut SourceFd(&descriptor), Token::SIGNAL.into(), Interest::READABLE)
                .map_err(Error::Loop)?;
        }
        self.signals = Some(watch);
        Ok(())
    }

    /// Where it listens, in the order the services were added: Python's `server_address`, with the
    /// ports that the kernel chose.
    #[doc(alias = "server_address")]
    pub fn addresses(&self) -> Vec<Address> {
        self.services.iter().map(|service| service.address().clone()).collect()
    }

    /// The listeners, in the order the services were added: for a server that was made in one line,
    /// and so without [`add`](Server::add), which returns each one's name.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|bytes, cx| cx.send(bytes)))?;
    /// let [only] = server.listeners()[..] else { unreachable!() };
    /// assert_eq!(server.address(only), Some(server.local_addr()));
    /// assert!(server.listener_fd(only).is_some());
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn listeners(&self) -> Vec<ListenerId> {
        (0..self.services.len()).map(ListenerId).collect()
    }

    /// Where this listener listens.
    pub fn address(&self, id: ListenerId) -> Option<&Address> {
        self.services.get(id.0).map(Service::address)
    }

    /// The descriptor of one listener.
    pub fn listener_fd(&self, id: ListenerId) -> Option<BorrowedFd<'_>> {
        self.services.get(id.0).map(|service| service.socket().as_fd())
    }

    /// Where the only listener of a server listens; the first one's, if there are several.
    ///
    /// # Panics
    ///
    /// If the server has no listener.
    pub fn local_addr(&self) -> &Address {
        self.services.first().map(Service::address).expect("a server with a listener")
    }

    /// A handle to the socket of a datagram service, with which other threads send datagrams to any
    /// peer: see [`DatagramSender`]. It works from now on until the server is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Mode`] when there is no such datagram service.
    pub fn datagram_sender(&self, id: ListenerId) -> Result<DatagramSender, Error> {
        match self.services.get(id.0).filter(|service| service.batch.is_some()) {
            Some(service) => Ok(service.reply_socket.sender()),
            None => Err(Error::Mode("datagrams are sent by a datagram service".to_owned())),
        }
    }

    /// Closes the listeners, as dropping does: clients that were never accepted see the end, and no
    /// reset. Python's `server_close`.
    pub fn server_close(self) {}

    /// What it has counted since it was made.
    pub fn counters(&self) -> Counters {
        self.control.published.snapshot()
    }

    /// Serves on a thread of its own until it is stopped.
    ///
    /// # Errors
    ///
    /// [`Error::Loop`] when the system has no thread left for it.
    pub fn spawn(self) -> Result<Running, Error> {
        let (addresses, handle) = (self.addresses(), self.shutdown_handle());
        let mut server = self;
        let thread = thread::Builder::new()
            .name("socketserver".to_owned())
            .spawn(move || {
                let report = server.serve_forever();
                (server, report)
            })
            .map_err(Error::Loop)?;
        Ok(Running { addresses, handle, thread: Some(thread) })
    }
}

/// The server's own descriptor: the poller's. It is readable when
/// [`handle_request`](Server::handle_request) would find something to do.
impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        sys::borrow(&self.poll)
    }
}

impl AsRawFd for Server {
    fn as_raw_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }
}

/// Gives a run something of its own for child processes to say by that the server is to stop: a
/// child of an earlier run ends no later one.
fn renew(asked: &Wakeup, poll: &Poll) -> io::Result<()> {
    let (descriptor, registry) = (asked.as_raw_fd(), poll.registry());
    let Ok(fresh) = Wakeup::new() else {
        // Without a descriptor for it, what has been said so far is forgotten at least.
        asked.clear();
        return Ok(());
    };
    registry.deregister(&mut SourceFd(&descriptor))?;
    asked.replace(&fresh)?;
    registry.register(&mut SourceFd(&descriptor), Token::WAKE.into(), Interest::READABLE)
}

impl Drop for Server {
    fn drop(&mut self) {
        self.control.mailbox.close();
        self.services.iter_mut().for_each(|service| service.runner.close());
    }
}

/// One run of the event loop, until it has served what was asked for or is to stop.
struct ServerRun<'a> {
    event_loop: EventLoop<'a>,
    control: &'a Arc<ServerState>,
    /// How many requests it accepts; `usize::MAX` is no limit.
    requests: usize,
    /// Until when it waits for a request.
    deadline: Option<Instant>,
    drain: Duration,
}

/// Why a run has ended.
enum RunEnd {
    /// All requests were served.
    Served,
    /// There was no request until the deadline.
    TimedOut,
    /// A stop was asked for; whether all requests had been accepted by then.
    Stopped { served: bool },
}

impl ServerRun<'_> {
    fn until_stop(&mut self, mut signals: Option<&mut SignalWatch>) -> Result<RunEnd, Error> {
        let (mut looked, mut served) = (false, false);
        loop {
            let signalled = signals.as_mut().is_some_and(|signals| signals.take());
            if signalled || self.control.stop_requested() {
                return Ok(RunEnd::Stopped { served });
            }
            served = self.requests != usize::MAX && self.event_loop.cx().run.accepts_left == 0;
            if served && self.is_quiet() {
                // Takes the mail that workers have left.
                self.event_loop.run_turn(Some(Duration::ZERO), None).map_err(Error::Loop)?;
                return Ok(RunEnd::Served);
            }
            let left = self
                .deadline
                .filter(|_| !served)
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // A client that waits already is served, however little time there is.
            if looked && left == Some(Duration::ZERO) {
                return Ok(RunEnd::TimedOut);
            }
            self.event_loop.run_turn(left, signals.as_deref()).map_err(Error::Loop)?;
            looked = true;
            if let Some(error) = self.event_loop.cx().run.failed.take() {
                stop(&mut self.event_loop, self.drain)?;
                return Err(error);
            }
        }
    }

    /// Whether nothing of what was accepted is left to be done by the loop or its workers.
    fn is_quiet(&mut self) -> bool {
        let event_loop = &mut self.event_loop;
        event_loop.connections() + event_loop.undelivered() + event_loop.lent() == 0
    }
}

/// Lets who is busy finish, until the deadline.
fn stop(event_loop: &mut EventLoop<'_>, drain: Duration) -> Result<StopReport, Error> {
    let deadline = Instant::now() + drain;
    let (requests, in_flight) = (event_loop.requests(), event_loop.in_flight());
    event_loop.stop();
    while event_loop.connections() + event_loop.in_flight() + event_loop.undelivered() > 0 {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        event_loop.run_turn(Some(left), None).map_err(Error::Loop)?;
    }
    let ended_idle = event_loop.ended_idle();
    let cut = event_loop.abort_all();
    // Those who have ended and are still being told so, by workers.
    while event_loop.lent() > 0 {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        event_loop.run_turn(Some(left), None).map_err(Error::Loop)?;
    }
    // What they have left in the mailbox.
    event_loop.run_turn(Some(Duration::ZERO), None).map_err(Error::Loop)?;
    let ended = (requests + in_flight).saturating_sub(cut);
    let ended_idle = ended_idle.min(ended);
    Ok(StopReport {
        idle: ended_idle + event_loop.overtaken(StopOutcome::Idle),
        finished: ended - ended_idle + event_loop.overtaken(StopOutcome::Finished),
        aborted: cut + event_loop.overtaken(StopOutcome::Cut),
    })
}

/// A server on a thread of its own: from [`Server::spawn`]. Dropping it stops the server and waits
/// for it.
#[must_use = "dropping it stops the server at once"]
#[derive(Debug)]
pub struct Running {
    addresses: Vec<Address>,
    handle: ShutdownHandle,
    thread: Option<thread::JoinHandle<(Server, Result<StopReport, Error>)>>,
}

impl Running {
    /// Where it listens, in the order the services were added.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Where the only listener listens; the first one's, if there are several.
    ///
    /// # Panics
    ///
    /// If the server has no listener.
    pub fn local_addr(&self) -> &Address {
        self.addresses.first().expect("a server with a listener")
    }

    /// A handle to stop it by, and to read its counters.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.handle.clone()
    }

    /// Stops it, waits for it, and gives it back with the report of its stop.
    ///
    /// # Errors
    ///
    /// What [`Server::serve_forever`] returned.
    pub fn stop(mut self) -> Result<(Server, StopReport), Error> {
        self.handle.shutdown();
        self.join_thread()
    }

    /// Waits until it has been stopped by other means.
    ///
    /// # Errors
    ///
    /// What [`Server::serve_forever`] returned.
    pub fn join(mut self) -> Result<(Server, StopReport), Error> {
        self.join_thread()
    }

    fn join_thread(&mut self) -> Result<(Server, StopReport), Error> {
        let thread = self.thread.take().expect("joined once");
        let (server, report) = thread
            .join()
            .map_err(|panic| format!("the server's thread panicked: {}", panic_message(panic)))
            .map_err(|message| Error::Loop(io::Error::other(message)))?;
        Ok((server, report?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.handle.shutdown();
            if let Err(error) = self.join_thread() {
                log::error!("{error:#}");
            }
        }
    }
}

/// A service in the slab of one run.
impl Service {
    fn begin<'a>(
        &'a mut self,
        run_cx: &RunOptions<'_>,
        number: usize,
        token: Token,
    ) -> io::Result<Box<dyn EventSource + 'a>> {
        let Service { runner, hooks, action_plan, bound, batch, handed, reply_socket } = self;
        let closed = bound.kind == Kind::WithoutListener;
        let run_cx = RunContext {
            listener: token,
            service: number,
            listener_handle: ListenerHandle {
                reply_socket: reply_socket.clone(),
                address: bound.address.clone(),
            },
            control: run_cx.control,
            stop: run_cx.stop,
            signals: run_cx.signals.clone(),
            drain: run_cx.drain,
            hooks: Cell::new(None),
        };
        Ok(match batch {
            None => {
                let dispatcher = runner.stream_dispatcher(&run_cx)?;
                let hooks = hooks_of_run(&run_cx, hooks, *action_plan);
                let (socket, address) = (&bound.socket, &bound.address);
                Box::new(Listener::new(socket, address, dispatcher, hooks, handed, closed))
            }
            Some(batch) => {
                let dispatcher = runner.datagram_dispatcher(&run_cx)?;
                reply_socket.begin_run(&run_cx.control.mailbox, token);
                let hooks = hooks_of_run(&run_cx, hooks, *action_plan);
                Box::new(Datagrams::new(reply_socket, batch, dispatcher, hooks))
            }
        })
    }
}

/// The hooks of a run: its own, where some were made when it began, or those of the service.
fn hooks_of_run<'a>(
    run_cx: &RunContext<'_>,
    hooks: &'a mut CatchDrop<Box<dyn Hooks + Send>>,
    action_plan: ActionPlan,
) -> Box<dyn ListenerHooks + 'a> {
    match run_cx.hooks.take() {
        Some(own) => own,
        None => Box::new(GuardedHooks::new(&mut ***hooks, action_plan)),
    }
}

/// What one run gives its services.
struct RunOptions<'a> {
    control: &'a Arc<ServerState>,
    stop: &'a StopRequester,
    signals: Option<SignalWatch>,
    drain: Duration,
}
