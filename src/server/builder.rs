//! The builder of a service, and the service.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::ToSocketAddrs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Server;
use super::hooks::{ActionPlan, Hooks, NoHooks};
use crate::accepted::Accepted;
use crate::address::{Address, Endpoint};
use crate::blocking::RequestHandler;
use crate::conversation::{Framing, Handler, Raw};
use crate::datagram::ReplySocket;
use crate::error::Error;
use crate::event_loop::{ServiceLimits, WaterMarks};
use crate::limits::Limits;
use crate::modes::{
    HandlerMode, MakeFactory, ModeRunner, PerRunFactory, Reactor, RequestMode, ServiceConfig,
    ServiceRunner, SharedFactory,
};
use crate::permits::ConnectionLimiter;
use crate::sender::SenderLimit;
use crate::sys::{Batch, CatchDrop, Socket};
use crate::transport::{self, BindOptions, Bound, Family, Kind, SocketOption, Target};

mod options;

/// The default of [`Builder::poll_interval`], as in Python.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The default receive sizes of datagrams, in bytes: any UDP datagram fits, and any datagram that a
/// Unix socket can send with Linux's default buffers.
const UDP_PACKET_SIZE: usize = 64 * 1024;
const UNIX_PACKET_SIZE: usize = 256 * 1024;

/// One listener with its handler factory, framing, mode and hooks: from [`Builder::service`], for
/// [`Server::add`].
///
/// ```
/// use socketserver::{Server, handler_fn};
///
/// let service = Server::tcp("127.0.0.1:0")?.service(|_| handler_fn(|message, cx| cx.send(message)))?;
/// println!("listens on {}", service.address());
/// let mut server = Server::new()?;
/// server.add(service)?;
/// # Ok::<(), socketserver::Error>(())
/// ```
#[must_use = "a service is served by the server that it is added to"]
pub struct Service {
    /// Sends replies to datagrams on the socket.
    pub(super) reply_socket: Arc<ReplySocket>,
    // Dropped before `runner`: no client can connect while the runner waits for its last requests.
    pub(super) bound: Bound,
    pub(super) runner: Box<dyn ModeRunner>,
    pub(super) hooks: CatchDrop<Box<dyn Hooks + Send>>,
    pub(super) action_plan: ActionPlan,
    /// The buffers that datagrams are received into.
    pub(super) batch: Option<Batch>,
    /// Connections that were handed over and that no run has taken yet.
    pub(super) handed: VecDeque<Socket>,
    pub(super) limits: Arc<Limits>,
    /// Counts its open connections, if their number is limited.
    pub(super) limiter: Option<Arc<ConnectionLimiter>>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("address", &self.bound.address).finish_non_exhaustive()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.reply_socket.close();
    }
}

impl Service {
    /// The address that it listens on, with the port that the kernel chose.
    pub fn address(&self) -> &Address {
        &self.bound.address
    }

    pub(super) fn socket(&self) -> &Arc<Socket> {
        &self.bound.socket
    }

    /// Checks that it can be in one server with `other`.
    pub(super) fn check_beside(&self, other: &Service) -> Result<(), Error> {
        let (ours, theirs) = (self.runner.requirements(), other.runner.requirements());
        let conflict = (ours.one_thread && theirs.threads) || (ours.threads && theirs.one_thread);
        if !conflict {
            return Ok(());
        }
        Err(Error::Mode(format!(
            "{} forks and {} starts threads: a fork in a process with threads is unsound, so they \
             cannot be in one server; run them as two processes",
            if ours.one_thread { self.address() } else { other.address() },
            if ours.one_thread { other.address() } else { self.address() },
        )))
    }
}

/// A builder of a [`Service`] or a [`Server`]: from [`Server::tcp`], [`Server::udp`] and so on.
///
/// In the guide: [`choosing_a_mode`](crate::guide::choosing_a_mode),
/// [`framing`](crate::guide::framing), [`reaching_others`](crate::guide::reaching_others),
/// [`several_cpus`](crate::guide::several_cpus), [`shared_state`](crate::guide::shared_state),
/// [`streaming`](crate::guide::streaming), [`timeouts`](crate::guide::timeouts).
///
/// ```
/// use std::time::Duration;
/// use socketserver::{Lines, Limits, Server, Threading, handler_fn};
///
/// let server = Server::tcp("127.0.0.1:0")?
///     .mode(Threading::default())
///     .framing(Lines::default())
///     .limits(Limits::default().idle_timeout(Duration::from_secs(60)))
///     .request_queue_size(128)
///     .nodelay(true)
///     .serve(|_client| handler_fn(|line, cx| cx.send(line)))?;
/// # let _ = server;
/// # Ok::<(), socketserver::Error>(())
/// ```
#[must_use = "it listens when a service or a server is made of it"]
#[derive(Debug)]
pub struct Builder<F = Raw, D = Reactor, K = NoHooks> {
    settings: BuilderSettings,
    framing: F,
    mode: D,
    hooks: K,
}

/// The settings that do not depend on the type of the handler.
#[derive(Debug)]
pub(super) struct BuilderSettings {
    socket: Source,
    bind: BindOptions,
    /// Options of the socket that are not set yet.
    options: Vec<SocketOption>,
    backlog: i32,
    water_marks: Option<WaterMarks>,
    sender_limit: SenderLimit,
    limits: Arc<Limits>,
    poll_interval: Duration,
    max_packet_size: Option<usize>,
}

impl BuilderSettings {
    /// The limits of the service's connections.
    fn limits(&self) -> ServiceLimits {
        let (marks, sender) = (self.water_marks.unwrap_or_default(), self.sender_limit);
        ServiceLimits { marks, sender, peer: self.limits.clone() }
    }
}

/// Where the socket comes from.
#[derive(Debug)]
enum Source {
    Planned(Family, Target),
    Bound(Bound),
}

impl Source {
    /// Binds the socket, if it is not bound yet, and sets the options.
    fn bind(self, bind: &BindOptions, options: &[SocketOption]) -> Result<Bound, Error> {
        let url = self.url();
        match self {
            Source::Planned(family, target) => {
                transport::check_options(bind, options, family, false, &url)?;
                transport::bind(family, &target, bind, options)
            }
            Source::Bound(bound) => {
                let family = Family::from(&*bound.address);
                transport::check_options(bind, options, family, true, &url)?;
                transport::set_options(options, &bound.socket, family, &url)?;
                Ok(bound)
            }
        }
    }

    /// Where it is or will be bound.
    fn url(&self) -> String {
        match self {
            Source::Planned(family, target) => target.url(*family),
            Source::Bound(bound) => bound.address.to_string(),
        }
    }
}

impl Builder {
    pub(super) fn tcp(address: impl ToSocketAddrs + fmt::Debug) -> Result<Self, Error> {
        let shown = format!("{address:?}");
        let target = Target::resolve(Family::Tcp, address, shown.trim_matches('"'))?;
        Ok(Self::new(Family::Tcp, target))
    }

    pub(super) fn udp(address: impl ToSocketAddrs + fmt::Debug) -> Result<Self, Error> {
        let shown = format!("{address:?}");
        let target = Target::resolve(Family::Udp, address, shown.trim_matches('"'))?;
        Ok(Self::new(Family::Udp, target))
    }

    pub(super) fn unix_stream(path: impl AsRef<Path>) -> Result<Self, Error> {
        let target = Target::path(Family::Unix, path.as_ref().to_owned())?;
        Ok(Self::new(Family::Unix, target))
    }

    pub(super) fn unix_datagram(path: impl AsRef<Path>) -> Result<Self, Error> {
        let target = Target::path(Family::UnixDatagram, path.as_ref().to_owned())?;
        Ok(Self::new(Family::UnixDatagram, target))
    }

    pub(super) fn endpoint(endpoint: &Endpoint) -> Result<Self, Error> {
        let (family, target) = Target::endpoint(endpoint)?;
        Ok(Self::new(family, target))
    }

    pub(super) fn from_socket(socket: OwnedFd) -> Result<Self, Error> {
        Ok(Self::of(Source::Bound(Bound::from_socket(socket.into())?)))
    }

    pub(super) fn without_listener() -> Result<Self, Error> {
        Ok(Self::of(Source::Bound(Bound::without_listener()?)))
    }

    fn new(family: Family, target: Target) -> Self {
        Self::of(Source::Planned(family, target))
    }

    fn of(socket: Source) -> Self {
        let settings = BuilderSettings {
            socket,
            bind: BindOptions::default(),
            options: Vec::new(),
            backlog: transport::max_backlog(),
            water_marks: None,
            sender_limit: SenderLimit::default(),
            limits: Arc::default(),
            poll_interval: POLL_INTERVAL,
            max_packet_size: None,
        };
        Builder { settings, framing: Raw, mode: Reactor, hooks: NoHooks }
    }
}

impl<F, D, K> Builder<F, D, K> {
    /// Sets the framing, which separates the messages on a stream; [`Raw`] by default. A datagram
    /// is one message, so a datagram service does not use the framing.
    ///
    /// ```
    /// use socketserver::{Lines, Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?
    ///     .framing(Lines::default())
    ///     .serve(|_| handler_fn(|line, cx| cx.send(line)))?; // a message is a line
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn framing<G: Framing>(self, framing: G) -> Builder<G, D, K> {
        Builder { settings: self.settings, framing, mode: self.mode, hooks: self.hooks }
    }

    /// Sets the mode, which says where requests are served; [`Reactor`] by default.
    ///
    /// ```
    /// use socketserver::{Mode, Server, handler_fn};
    ///
    /// let mode: Mode = "pool".parse()?; // or a type: `Pool::new(8)`
    /// let server = Server::tcp("127.0.0.1:0")?
    ///     .mode(mode)
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn mode<E>(self, mode: E) -> Builder<F, E, K> {
        Builder { settings: self.settings, framing: self.framing, mode, hooks: self.hooks }
    }

    /// Sets the hooks; [`NoHooks`] by default.
    ///
    /// ```
    /// use socketserver::{Hooks, Peer, Server, handler_fn};
    ///
    /// struct OnlyLocal;
    ///
    /// impl Hooks for OnlyLocal {
    ///     fn verify_request(&mut self, peer: &Peer) -> bool {
    ///         peer.inet().is_none_or(|peer| peer.ip().is_loopback())
    ///     }
    /// }
    ///
    /// let server = Server::tcp("127.0.0.1:0")?
    ///     .hooks(OnlyLocal)
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn hooks<L: Hooks>(self, hooks: L) -> Builder<F, D, L> {
        Builder { settings: self.settings, framing: self.framing, mode: self.mode, hooks }
    }

    /// Binds the socket now; the socket listens when the service is made. Python's `server_bind` by
    /// itself, as after `bind_and_activate=False`. In between, options can be set through the
    /// descriptor, and [`address`](Builder::address) returns the port.
    ///
    /// The options of the binding (the reuse flags, [`dual_stack`](Builder::dual_stack),
    /// [`nodelay`](Builder::nodelay), [`unix_mode`](Builder::unix_mode)) must be set before.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let builder = Server::tcp("127.0.0.1:0")?.bind()?;
    /// println!("port {:?}", builder.address().and_then(|address| address.port()));
    /// assert!(builder.socket().is_some()); // for options that the builder does not have
    /// let server = builder.serve(|_| handler_fn(|message, cx| cx.send(message)))?; // now it listens
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Bind`] when the address cannot be bound, [`Error::Option`] for an option that cannot
    /// be set.
    #[doc(alias = "server_bind")]
    pub fn bind(mut self) -> Result<Self, Error> {
        let BuilderSettings { socket, bind, options, .. } = self.settings;
        let socket = Source::Bound(socket.bind(&bind, &options)?);
        let (bind, options) = (BindOptions::default(), Vec::new());
        self.settings = BuilderSettings { socket, bind, options, ..self.settings };
        Ok(self)
    }

    /// The address, if the socket is bound.
    ///
    /// ```
    /// use socketserver::Server;
    ///
    /// let builder = Server::tcp("127.0.0.1:0")?;
    /// assert_eq!(builder.address(), None);
    /// assert!(builder.bind()?.address().is_some());
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn address(&self) -> Option<&Address> {
        self.bound().map(|bound| &*bound.address)
    }

    /// The socket, if it is bound.
    ///
    /// ```
    /// use std::os::fd::AsRawFd;
    /// use socketserver::Server;
    ///
    /// let builder = Server::tcp("127.0.0.1:0")?.bind()?;
    /// let socket = builder.socket().expect("it is bound");
    /// assert!(socket.as_raw_fd() >= 0); // for setsockopt(2)
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.bound().map(|bound| bound.socket.as_fd())
    }

    fn bound(&self) -> Option<&Bound> {
        match &self.settings.socket {
            Source::Bound(bound) => Some(bound),
            Source::Planned(..) => None,
        }
    }

    /// Sets the backlog: how many connections may wait to be accepted. Python's
    /// `request_queue_size`. By default as many as the system allows (`net.core.somaxconn`).
    #[doc(alias = "backlog")]
    pub fn request_queue_size(mut self, connections: u16) -> Self {
        self.settings.backlog = connections.into();
        self
    }

    /// What a run of the server does at which time for hooks of type `L`.
    pub(super) fn action_plan<L: Hooks + 'static>(&self) -> ActionPlan {
        ActionPlan::of::<L>(self.settings.poll_interval)
    }

    /// The settings without the hooks.
    pub(super) fn without_hooks(self) -> (BuilderSettings, F, D) {
        (self.settings, self.framing, self.mode)
    }

    /// Sets the water marks of a connection's write buffer, in bytes. At `high` bytes or more the
    /// connection's input is no longer read (back-pressure); at `low` bytes or fewer it is read
    /// again. By default 64 KiB and 16 KiB.
    ///
    /// The write buffer holds at most `high` bytes and what the handler sends for one message; a
    /// handler that asks for [`Context::room`](crate::Context::room) sends no more than `high`. The
    /// send queue of its [`Sender`](crate::Sender)s is separate, see
    /// [`sender_limit`](Builder::sender_limit). Values above 4 GiB count as 4 GiB.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?
    ///     .write_watermarks(16 * 1024, 4 * 1024) // less memory for each slow client
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If `high` is 0 or `low` is not below `high`.
    pub fn write_watermarks(mut self, high: usize, low: usize) -> Self {
        assert!(low < high, "the low mark is below the high one");
        self.settings.water_marks = Some(WaterMarks::new(high, low));
        self
    }

    /// Sets the limit of the send queue, in bytes: how much all [`Sender`](crate::Sender)s of one
    /// connection together may queue before they get [`SendError::Full`](crate::SendError::Full).
    /// 256 KiB by default. Values above 4 GiB count as 4 GiB.
    ///
    /// Each message counts as its bytes and 64 more, and one message always fits. The send queue is
    /// separate from the write buffer: its messages move into the write buffer as far as the high
    /// mark of [`write_watermarks`](Builder::write_watermarks) allows. So messages stay in the
    /// queue if they come faster than the connection's loop or thread takes them, or if the peer
    /// reads slowly. [`Sender::send`](crate::Sender::send) says when to raise the limit. Events are
    /// bounded by their number, see [`Sender::post`](crate::Sender::post).
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?
    ///     .sender_limit(4 << 20) // bursts of up to 4 MiB from other threads
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn sender_limit(mut self, bytes: usize) -> Self {
        self.settings.sender_limit = SenderLimit::new(bytes);
        self
    }

    /// Sets the limits of the listener and of its peers; [`Limits::default`] by default.
    ///
    /// ```
    /// use socketserver::{Limits, Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?
    ///     .limits(Limits::default().max_per_address(20))
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn limits(mut self, limits: Limits) -> Self {
        self.settings.limits = Arc::new(limits);
        self
    }

    /// Sets the maximum time between two calls of [`Hooks::service_actions`], if
    /// [`Hooks::wants_service_actions`] returns true; 0.5 s by default. Without such a hook the
    /// event loop does not poll.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{Hooks, Server, handler_fn};
    ///
    /// /// Called twice a second by default, here once a second.
    /// struct Statistics;
    ///
    /// impl Hooks for Statistics {
    ///     fn wants_service_actions(&self) -> bool {
    ///         true
    ///     }
    ///
    ///     fn service_actions(&mut self) {
    ///         log::info!("still here");
    ///     }
    /// }
    ///
    /// let server = Server::tcp("127.0.0.1:0")?
    ///     .hooks(Statistics)
    ///     .poll_interval(Duration::from_secs(1))
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.settings.poll_interval = interval;
        self
    }

    /// Sets Python's `max_packet_size`: how many bytes of a datagram are received. A longer
    /// datagram is truncated, see [`Context::is_truncated`](crate::Context::is_truncated). By
    /// default 64 KiB for UDP, in which any UDP datagram fits, and 256 KiB for a Unix socket.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::udp("127.0.0.1:0")?.max_packet_size(512).serve(|_| {
    ///     handler_fn(|message, cx| if cx.is_truncated() { Ok(()) } else { cx.send(message) })
    /// })?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn max_packet_size(mut self, bytes: usize) -> Self {
        self.settings.max_packet_size = Some(bytes.max(1));
        self
    }

    /// Makes the service and binds its socket. `make` makes a new handler for each request, on the
    /// event loop's thread; under `forking`, in the child.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let echo = Server::udp("127.0.0.1:0")?.service(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// let mut server = Server::new()?;
    /// server.add(echo)?; // beside any number of others
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Bind`] when the address cannot be bound, [`Error::Option`] when an option has no
    /// meaning for the transport or the system does not set it.
    pub fn service<H>(
        self,
        make: impl FnMut(&Accepted<'_>) -> H + Send + 'static,
    ) -> Result<Service, Error>
    where
        H: Handler + 'static,
        F: Framing + Clone + Send + 'static,
        D: HandlerMode<H>,
        K: Hooks + Send + 'static,
    {
        let Builder { settings, framing, mode, hooks } = self;
        let (framing, mut make) = (CatchDrop::new(framing), make);
        let make = move |accepted: &Accepted<'_>| (F::clone(&framing), make(accepted));
        finish(settings, mode, hooks, SharedFactory(make.into()))
    }

    /// As [`service`](Builder::service), for handlers that share state of one thread: `start` runs
    /// on the loop's thread when a run begins, and what it returns makes the handlers of that run. For
    /// hooks that share it too, see [`service_local_with_hooks`](Builder::service_local_with_hooks).
    ///
    /// ```
    /// use std::{cell::Cell, rc::Rc};
    /// use socketserver::{Accepted, Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve_local(|| {
    ///     let count = Rc::new(Cell::new(0));
    ///     move |_: &Accepted<'_>| {
    ///         let count = count.clone();
    ///         handler_fn(move |_message, cx| {
    ///             count.set(count.get() + 1);
    ///             cx.send(count.get().to_string().as_bytes())
    ///         })
    ///     }
    /// })?;
    /// assert!(server.local_addr().port().is_some());
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`service`](Builder::service).
    pub fn service_local<H, M>(
        self,
        start: impl FnMut() -> M + Send + 'static,
    ) -> Result<Service, Error>
    where
        M: FnMut(&Accepted<'_>) -> H + 'static,
        H: Handler + 'static,
        F: Framing + Clone + Send + 'static,
        D: HandlerMode<H>,
        K: Hooks + Send + 'static,
    {
        let Builder { settings, framing, mode, hooks } = self;
        let (framing, mut start) = (CatchDrop::new(framing), start);
        let start = move || {
            let (framing, mut make) = (CatchDrop::new(F::clone(&framing)), start());
            move |accepted: &Accepted<'_>| (F::clone(&framing), make(accepted))
        };
        finish(settings, mode, hooks, PerRunFactory(start.into()))
    }

    /// A server of this one service: [`service`](Builder::service) and [`Server::add`] in one.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let mut server = Server::tcp("127.0.0.1:0")?.serve(|accepted| {
    ///     let greeting = format!("hello, {}", accepted.peer()); // a value for each connection
    ///     handler_fn(move |_, cx| cx.send(greeting.as_bytes()))
    /// })?;
    /// # server.shutdown_handle().shutdown();
    /// server.serve_forever()?;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for both.
    pub fn serve<H>(
        self,
        make: impl FnMut(&Accepted<'_>) -> H + Send + 'static,
    ) -> Result<Server, Error>
    where
        H: Handler + 'static,
        F: Framing + Clone + Send + 'static,
        D: HandlerMode<H>,
        K: Hooks + Send + 'static,
    {
        alone(self.service(make)?)
    }

    /// A server of this one service: [`service_local`](Builder::service_local) and [`Server::add`]
    /// in one.
    ///
    /// ```
    /// use std::{cell::Cell, rc::Rc};
    /// use socketserver::{Accepted, Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve_local(|| {
    ///     let clients = Rc::new(Cell::new(0)); // no lock: one thread
    ///     move |_: &Accepted<'_>| {
    ///         clients.set(clients.get() + 1);
    ///         let number = clients.get();
    ///         handler_fn(move |_, cx| cx.send(format!("client {number}").as_bytes()))
    ///     }
    /// })?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for both.
    pub fn serve_local<H, M>(
        self,
        start: impl FnMut() -> M + Send + 'static,
    ) -> Result<Server, Error>
    where
        M: FnMut(&Accepted<'_>) -> H + 'static,
        H: Handler + 'static,
        F: Framing + Clone + Send + 'static,
        D: HandlerMode<H>,
        K: Hooks + Send + 'static,
    {
        alone(self.service_local(start)?)
    }

    /// As [`service`](Builder::service), for a blocking [`RequestHandler`]. The framing is not
    /// used, since such a handler reads the socket itself.
    ///
    /// ```
    /// use std::io::Write;
    /// use socketserver::{HandlerResult, Pool, Request, RequestHandler, Server};
    ///
    /// struct Hello;
    ///
    /// impl RequestHandler for Hello {
    ///     fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
    ///         Ok(request.write_all(b"hello\n")?)
    ///     }
    /// }
    ///
    /// let mut server = Server::new()?;
    /// server.add(Server::tcp("127.0.0.1:0")?.mode(Pool::new(4)).service_blocking(|_| Hello)?)?;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`service`](Builder::service), and [`Error::Option`] for
    /// [`write_watermarks`](Builder::write_watermarks), since such a handler has no write buffer.
    pub fn service_blocking<R>(
        self,
        make: impl FnMut(&Accepted<'_>) -> R + Send + 'static,
    ) -> Result<Service, Error>
    where
        R: RequestHandler + 'static,
        D: RequestMode<R>,
        K: Hooks + Send + 'static,
    {
        let Builder { settings, mode, hooks, .. } = self;
        if settings.water_marks.is_some() {
            return Err(Error::Option {
                option: "write_watermarks",
                address: settings.socket.url(),
                source: io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "a RequestHandler has no write buffer: it waits until its output is sent",
                ),
            });
        }
        let limits = settings.limits();
        let config = ServiceConfig { start: Box::new(SharedFactory(make.into())), limits };
        bound(settings, hooks, || mode.build_requests(config))
    }

    /// A server of this one service: [`service_blocking`](Builder::service_blocking) and
    /// [`Server::add`] in one.
    ///
    /// ```
    /// use std::io::Write;
    /// use socketserver::{HandlerResult, Request, RequestHandler, Server, Threading};
    ///
    /// struct Hello;
    ///
    /// impl RequestHandler for Hello {
    ///     fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
    ///         Ok(request.write_all(b"hello\n")?)
    ///     }
    /// }
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.mode(Threading::default()).serve_blocking(|_| Hello)?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for both.
    pub fn serve_blocking<R>(
        self,
        make: impl FnMut(&Accepted<'_>) -> R + Send + 'static,
    ) -> Result<Server, Error>
    where
        R: RequestHandler + 'static,
        D: RequestMode<R>,
        K: Hooks + Send + 'static,
    {
        alone(self.service_blocking(make)?)
    }
}

impl<D, K> Builder<Raw, D, K> {
    /// As [`service`](Builder::service), but `make` returns both a framing and a handler for each
    /// connection. So the two can share data, and a framing that is chosen at run time, a `Box<dyn
    /// Framing + Send>`, need not be `Clone`. A datagram is one message, so its framing is not
    /// used.
    ///
    /// ```
    /// use socketserver::{Framing, LengthPrefixed, Lines, Server, handler_fn};
    ///
    /// // Local clients send lines, all others messages with their length.
    /// let server = Server::tcp("127.0.0.1:0")?.serve_with(|accepted| {
    ///     let is_local = accepted.peer().inet().is_some_and(|peer| peer.ip().is_loopback());
    ///     let framing: Box<dyn Framing + Send> = if is_local {
    ///         Box::new(Lines::default())
    ///     } else {
    ///         Box::new(LengthPrefixed::default())
    ///     };
    ///     (framing, handler_fn(|message, cx| cx.send(message)))
    /// })?;
    /// # drop(server);
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`service`](Builder::service).
    pub fn service_with<F, H>(
        self,
        make: impl FnMut(&Accepted<'_>) -> (F, H) + Send + 'static,
    ) -> Result<Service, Error>
    where
        H: Handler + 'static,
        F: Framing + Send + 'static,
        D: HandlerMode<H>,
        K: Hooks + Send + 'static,
    {
        let Builder { settings, mode, hooks, .. } = self;
        finish(settings, mode, hooks, SharedFactory(make.into()))
    }

    /// A server of this one service: [`service_with`](Builder::service_with) and [`Server::add`] in one.
    ///
    /// ```
    /// use socketserver::{Lines, Server, handler_fn};
    ///
    /// // Clients of this machine may send longer lines.
    /// let server = Server::tcp("127.0.0.1:0")?.serve_with(|accepted| {
    ///     let is_local = accepted.peer().inet().is_some_and(|peer| peer.ip().is_loopback());
    ///     let longest = if is_local { 1 << 20 } else { 512 };
    ///     (Lines::default().max_len(longest), handler_fn(|line, cx| cx.send(line)))
    /// })?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for both.
    pub fn serve_with<F, H>(
        self,
        make: impl FnMut(&Accepted<'_>) -> (F, H) + Send + 'static,
    ) -> Result<Server, Error>
    where
        H: Handler + 'static,
        F: Framing + Send + 'static,
        D: HandlerMode<H>,
        K: Hooks + Send + 'static,
    {
        alone(self.service_with(make)?)
    }
}

pub(super) fn finish<F, H, D, K>(
    settings: BuilderSettings,
    mode: D,
    hooks: K,
    start: impl MakeFactory<(F, H)> + 'static,
) -> Result<Service, Error>
where
    H: Handler + 'static,
    F: Framing + Send + 'static,
    D: HandlerMode<H>,
    K: Hooks + Send + 'static,
{
    let config = ServiceConfig { start: Box::new(start), limits: settings.limits() };
    bound(settings, hooks, || mode.build(config))
}

/// Binds the socket, then makes the rest of the service.
fn bound<K>(
    settings: BuilderSettings,
    hooks: K,
    build: impl FnOnce() -> ServiceRunner,
) -> Result<Service, Error>
where
    K: Hooks + Send + 'static,
{
    let mut bound = settings.socket.bind(&settings.bind, &settings.options)?;
    bound.activate(settings.backlog)?;
    // With keepalive, the timeout would also decide when a peer that answers no probe is gone.
    let is_set = |option: &SocketOption| {
        matches!(option, SocketOption::UserTimeout(_) | SocketOption::Keepalive { .. })
    };
    if let Some(timeout) = settings.limits.write_timeout
        && !settings.options.iter().any(is_set)
    {
        bound.limit_unacknowledged(timeout);
    }
    let ServiceRunner(runner) = build();
    let most = settings.max_packet_size.unwrap_or(match *bound.address {
        Address::UnixDatagram(_) => UNIX_PACKET_SIZE,
        _ => UDP_PACKET_SIZE,
    });
    let (socket, address) = (bound.socket.clone(), bound.address.clone());
    Ok(Service {
        reply_socket: Arc::new(
            ReplySocket::new(socket, address).with_reply_ratio(settings.limits.reply_ratio),
        ),
        runner,
        hooks: CatchDrop::new(Box::new(hooks)),
        action_plan: ActionPlan::of::<K>(settings.poll_interval),
        batch: (bound.kind == Kind::Datagram).then(|| Batch::new(&bound.socket, most)),
        bound,
        handed: VecDeque::new(),
        limiter: ConnectionLimiter::new(&settings.limits),
        limits: settings.limits,
    })
}

pub(super) fn alone(service: Service) -> Result<Server, Error> {
    let mut server = Server::new()?;
    server.add(service)?;
    Ok(server)
}
