//! The server: any number of listeners, each with its own handler, framing and mode, in one event
//! loop. Only this module knows all four.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mio::Interest;
use mio::unix::SourceFd;

use crate::address::{Address, Endpoint};
use crate::counters::Counters;
use crate::datagram::DatagramSender;
use crate::error::Error;
use crate::event_loop::{
    Admission, Datagrams, EVENTS, EventLoop, EventSource, Listener, ListenerHooks, LoopResources,
};
use crate::guard::log;
use crate::guard::panic_message;
use crate::modes::{ListenerHandle, RunContext};
use crate::server_state::{RunGuard, ServerState, StopOutcome, StopRequester};
use crate::sys::{self, CatchDrop, Events, Poll, SignalWatch, Wakeup};
use crate::token::Token;
use crate::transport::Kind;

mod builder;
mod hooks;
mod local_hooks;
mod python;
mod shutdown;
#[cfg(feature = "testing")]
mod stepped;

pub use builder::{Builder, Service};
pub use hooks::{Hooks, NoHooks};
pub use python::*;
pub use shutdown::{ShutdownHandle, StopReport};
#[cfg(feature = "testing")]
pub(crate) use stepped::SteppedRun;

use hooks::{ActionPlan, GuardedHooks};

/// The default of [`Server::drain_timeout`].
const DRAIN: Duration = Duration::from_secs(5);

/// The longest time that is accepted: it can be added to an `Instant` without an overflow.
const MAX_TIME: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The identifier of one listener of a server: from [`Server::add`] or [`Server::listeners`].
///
/// ```
/// use socketserver::{Server, handler_fn};
///
/// let mut server = Server::new()?;
/// let echo = Server::udp("127.0.0.1:0")?.service(|_| handler_fn(|message, cx| cx.send(message)))?;
/// let id = server.add(echo)?;
/// println!("it listens on {:?}", server.address(id));
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(usize);

/// A server: it accepts requests on any number of listeners and runs one event loop on one thread.
/// It stands for all of Python's server classes.
///
/// It is `Send`: it can be bound on one thread and serve on another. The connections and handlers
/// of one run of the event loop never leave the thread of that run, so under
/// [`Reactor`](crate::Reactor) a handler need not be `Send`.
///
/// Dropping it closes its listeners and removes the Unix socket files that it has made: Python's
/// `server_close`, and the end of its `with`. Under [`Forking`](crate::Forking) it then asks the
/// child processes that [`handle_request`](Server::handle_request) has left to finish, waits for
/// them until the [drain deadline](Server::drain_timeout), and kills the rest.
///
/// In the guide: [`choosing_a_mode`](crate::guide::choosing_a_mode),
/// [`embedding`](crate::guide::embedding), [`limits`](crate::guide::limits),
/// [`logging_and_counters`](crate::guide::logging_and_counters),
/// [`reaching_others`](crate::guide::reaching_others),
/// [`several_cpus`](crate::guide::several_cpus), [`stopping`](crate::guide::stopping),
/// [`testing`](crate::guide::testing).
///
/// ```
/// use socketserver::{Server, handler_fn};
///
/// let running = Server::tcp("127.0.0.1:0")?
///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?
///     .spawn()?; // or `serve_forever` on this thread
/// println!("listening on {}", running.local_addr());
/// running.stop()?;
/// # Ok::<(), socketserver::Error>(())
/// ```
pub struct Server {
    // Fields are dropped in this order: the listeners before the poller that they are registered with.
    services: Vec<Service>,
    poll: Poll,
    events: Events,
    control: Arc<ServerState>,
    signals: Option<SignalWatch>,
    generation: usize,
    drain: Duration,
    spin: Duration,
    timeout: Option<Duration>,
    /// How many connections may be open; `None` takes it from the limit on descriptors.
    max_connections: Option<usize>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

impl Server {
    /// A server without listeners.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let mut server = Server::new()?;
    /// for address in ["127.0.0.1:0", "127.0.0.2:0"] {
    ///     # if cfg!(not(target_os = "linux")) && address.starts_with("127.0.0.2") { continue; }
    ///     let echo = Server::tcp(address)?.service(|_| handler_fn(|message, cx| cx.send(message)))?;
    ///     server.add(echo)?;
    /// }
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Loop`] when the system has no descriptor left for the poller or the wake-up.
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
            max_connections: None,
        })
    }

    /// Begins a service over TCP. If a name has several addresses, the first one that can be bound
    /// is used; for `localhost` IPv4 is tried first, as Python's servers use only IPv4. Port 0
    /// picks a free port. `[::]` accepts only IPv6 unless [`Builder::dual_stack`] is set.
    ///
    /// # Errors
    ///
    /// [`Error::UnusableAddress`] or [`Error::Resolve`] when the text names no address.
    pub fn tcp(address: impl std::net::ToSocketAddrs + fmt::Debug) -> Result<Builder, Error> {
        Builder::tcp(address)
    }

    /// Begins a service over UDP; as [`tcp`](Server::tcp).
    ///
    /// Replies wait if the socket's send buffer is full. Under `reactor` and `offload` up to 4 MiB
    /// of replies wait; above that, nothing is received (back-pressure). If no reply can be sent
    /// for five seconds (half a second for one reply under the other modes), the waiting replies
    /// are dropped and counted in [`Counters::unsent`].
    ///
    /// ```
    /// use std::net::UdpSocket;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let running = Server::udp("127.0.0.1:0")?
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?
    ///     .spawn()?;
    /// let client = UdpSocket::bind("127.0.0.1:0")?;
    /// client.send_to(b"hello", running.local_addr().inet().unwrap())?;
    /// let mut answer = [0; 100];
    /// let count = client.recv(&mut answer)?;
    /// assert_eq!(&answer[..count], b"hello");
    /// # running.stop()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnusableAddress`] or [`Error::Resolve`] when the text names no address.
    pub fn udp(address: impl std::net::ToSocketAddrs + fmt::Debug) -> Result<Builder, Error> {
        Builder::udp(address)
    }

    /// Begins a service on a Unix stream socket at `path`.
    ///
    /// A stale socket file, which no process listens on, is replaced. Dropping the server removes
    /// the file that it has made. While the server binds, an empty file `.NAME.lock` exists beside
    /// the file NAME: if several servers start at the same time, one gets the path and the others
    /// get an "address in use" error.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// # let directory = std::env::temp_dir().join(format!("unix-stream-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory).unwrap();
    /// # let path = directory.join("socket");
    /// let server = Server::unix_stream(&path)?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// assert_eq!(server.local_addr().path(), Some(&*path));
    /// drop(server); // removes the file
    /// assert!(!path.exists());
    /// # std::fs::remove_dir(directory).unwrap();
    /// # Ok::<(), socketserver::Error>(())
    /// ```
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
    /// ```
    /// use std::os::unix::net::UnixDatagram;
    /// use socketserver::{Server, handler_fn};
    ///
    /// # let directory = std::env::temp_dir().join(format!("unix-datagram-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory)?;
    /// # let path = directory.join("socket");
    /// let running = Server::unix_datagram(&path)?
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?
    ///     .spawn()?;
    /// let client = UnixDatagram::bind(directory.join("client"))?; // a path, so that it gets answers
    /// client.send_to(b"hello", &path)?;
    /// let mut answer = [0; 100];
    /// let count = client.recv(&mut answer)?;
    /// assert_eq!(&answer[..count], b"hello");
    /// # running.stop()?;
    /// # std::fs::remove_dir_all(directory)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Clients that do not read
    ///
    /// The kernel queues the unread replies of each client, about ten of them
    /// (`net.unix.max_dgram_qlen`). If this queue is full, a reply waits for half a second and is
    /// then dropped. Further replies to the same client are dropped at once, until it reads, or for
    /// five seconds. Up to 1 MiB of replies to all clients together wait on a socket; further ones
    /// are dropped at once. Under every mode but `forking` the handler does not wait: the event
    /// loop retries the replies, and other clients are not delayed. Under `forking` the child
    /// process waits, and counts as one of [`max_children`](crate::Forking::max_children) during
    /// that time; if it sends to several clients that do not read, it waits less for each further
    /// one.
    ///
    /// A stop, and [`handle_request`](Server::handle_request), end only when these replies are sent
    /// or dropped; a stop ends at the [drain deadline](Server::drain_timeout) at the latest.
    ///
    /// There is one exception, which cannot be avoided on Linux. If a client has connected its
    /// socket to the server's, its queue has no limit: unread replies are charged to the server's
    /// send buffer, which all clients share (`net.core.wmem_default`, usually 208 KiB: some 280
    /// short replies). A client that connects, continues to send requests and never reads can fill
    /// this buffer. So can several other clients together; the larger the replies, the fewer
    /// clients are needed. Then the server still receives and handles datagrams, but it cannot send
    /// any reply. Each dropped reply is counted in [`Counters::unsent`], and a warning is logged.
    /// The server can send again as soon as such a client reads or closes its socket. So a service
    /// with untrusted clients should listen on a [stream](Server::unix_stream), where each
    /// connection has its own send buffer, or should not send replies that were not asked for.
    ///
    /// # Errors
    ///
    /// As for [`unix_stream`](Server::unix_stream).
    pub fn unix_datagram(path: impl AsRef<Path>) -> Result<Builder, Error> {
        Builder::unix_datagram(path)
    }

    /// Begins a service on the address of an [`Endpoint`].
    ///
    /// ```
    /// use socketserver::{Endpoint, Server, handler_fn};
    ///
    /// let endpoint: Endpoint = "tcp://127.0.0.1:0".parse()?; // from a command line
    /// let server = Server::endpoint(&endpoint)?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnusableAddress`] or [`Error::Resolve`] when it is not a valid address.
    pub fn endpoint(endpoint: &Endpoint) -> Result<Builder, Error> {
        Builder::endpoint(endpoint)
    }

    /// Begins a service on a socket that is bound already: inherited from a supervisor, or made
    /// with special options. A stream socket is made to listen if it does not listen yet. The file
    /// of a Unix socket is not removed when the server is dropped.
    ///
    /// ```
    /// use std::net::TcpListener;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let server = Server::from_socket(listener)?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # drop(server);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Bind`] when the descriptor is not a socket, [`Error::UnusableAddress`] when it is a
    /// connection: see [`add_connection`](Server::add_connection).
    pub fn from_socket(socket: impl Into<OwnedFd>) -> Result<Builder, Error> {
        Builder::from_socket(socket.into())
    }

    /// Begins a stream service without a listener, for connections that are
    /// [handed over](Server::add_connection).
    ///
    /// ```
    /// use std::os::unix::net::UnixStream;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let (ours, theirs) = UnixStream::pair()?;
    /// let mut server = Server::without_listener()?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// server.add_connection(server.listeners()[0], ours)?;
    /// # let _ = (server, theirs);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Loop`] when the system has no descriptor left.
    pub fn without_listener() -> Result<Builder, Error> {
        Builder::without_listener()
    }

    /// Hands a connected stream socket over to a service, which serves it as if it had been
    /// accepted: for example a socket that this program has connected. It is served from the next
    /// run on.
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use std::net::{Shutdown, TcpListener, TcpStream};
    /// use socketserver::{Server, handler_fn};
    ///
    /// # let other = TcpListener::bind("127.0.0.1:0")?;
    /// # let address = other.local_addr()?;
    /// let mut server = Server::without_listener()?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// let connection = TcpStream::connect(address)?; // this program connects, and then serves
    /// server.add_connection(server.listeners()[0], connection)?;
    /// let running = server.spawn()?;
    ///
    /// let (mut peer, _) = other.accept()?;
    /// peer.write_all(b"hello")?;
    /// peer.shutdown(Shutdown::Write)?;
    /// let mut answer = String::new();
    /// peer.read_to_string(&mut answer)?;
    /// assert_eq!(answer, "hello");
    /// # running.stop()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
            None => Err(Error::Mode(
                "a connection can be handed over only to a stream service".to_owned(),
            )),
        }
    }

    /// Adds a service: one more listener in the same event loop.
    ///
    /// ```
    /// use socketserver::{Server, Threading, handler_fn};
    ///
    /// let mut server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// let other = Server::udp("127.0.0.1:0")?
    ///     .mode(Threading::default())
    ///     .service(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// server.add(other)?;
    /// assert_eq!(server.addresses().len(), 2);
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Mode`] if its mode cannot be combined with another listener's, [`Error::Loop`] if
    /// it cannot be registered with the poller.
    pub fn add(&mut self, service: Service) -> Result<ListenerId, Error> {
        for other in &self.services {
            service.check_beside(other)?;
        }
        let descriptor = service.socket().as_raw_fd();
        // Each run sets its own token; until then this one is not used. Write readiness is not
        // registered: a datagram socket is nearly always writable.
        self.poll
            .registry()
            .register(&mut SourceFd(&descriptor), Token::WAKE.into(), Interest::READABLE)
            .map_err(Error::Loop)?;
        if service.runner.requirements().one_thread && self.control.child_stop_request().is_none() {
            let stop_request = Wakeup::new().map_err(Error::Loop)?;
            self.poll
                .registry()
                .register(
                    &mut SourceFd(&stop_request.as_raw_fd()),
                    Token::WAKE.into(),
                    Interest::READABLE,
                )
                .map_err(Error::Loop)?;
            self.control.set_child_stop_request(stop_request);
        }
        service.reply_socket.count_into(&self.control.published);
        self.services.push(service);
        Ok(ListenerId(self.services.len() - 1))
    }

    /// Serves until a stop is requested. Then busy connections may finish until the [drain
    /// deadline](Server::drain_timeout), and the rest are aborted. The server can serve again
    /// afterwards.
    ///
    /// Without events the event loop does not wake.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let mut server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # server.shutdown_handle().shutdown();
    /// let report = server.serve_forever()?; // until something stops it
    /// println!("{} connections were cut", report.aborted);
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Loop`] when the poller fails. Peers and handlers never cause an error here.
    pub fn serve_forever(&mut self) -> Result<StopReport, Error> {
        self.run(usize::MAX, None).map(|(report, _)| report)
    }

    /// Serves one request. Returns when it is served (under `reactor`, `offload` and `inline`) or
    /// handed over to a thread or process (under the other modes). Returns `Ok(false)` if there was
    /// no request within the [timeout](Server::request_timeout), after calling
    /// [`Hooks::handle_timeout`].
    ///
    /// A request that was handed over continues after the return. Under `threading` and `pool` its
    /// fault, if it has one, is given to [`Hooks::handle_error`] by the call that serves at that
    /// time, this one or a later one. If no later call serves, the fault is logged as an error when
    /// the server is dropped. A handler that requests a shutdown ends only the call that accepted
    /// its request.
    ///
    /// See [`guide::embedding`](crate::guide::embedding) for a program with an event loop of its own.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let mut server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// server.request_timeout(Duration::ZERO);
    /// assert!(!server.handle_request()?); // no client is there
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`serve_forever`](Server::serve_forever).
    pub fn handle_request(&mut self) -> Result<bool, Error> {
        let now = self.control.clock.now();
        let deadline = self.timeout.and_then(|timeout| now.checked_add(timeout));
        self.run(1, deadline).map(|(_, served)| served)
    }

    fn run(
        &mut self,
        requests: usize,
        deadline: Option<Instant>,
    ) -> Result<(StopReport, bool), Error> {
        let running = self.control.begin();
        let mut run = self.begin(&running, requests, deadline)?;
        let served = match run.until_stop()? {
            RunEnd::Served => return Ok((StopReport::default(), true)),
            RunEnd::TimedOut => {
                run.event_loop.no_request();
                return Ok((StopReport::default(), false));
            }
            RunEnd::Stopped { served } => served,
        };
        let report = stop(&mut run.event_loop, run.drain)?;
        if let Some(signals) = run.signals {
            signals.answer();
        }
        Ok((report, served))
    }

    /// Begins a run of the event loop.
    fn begin(
        &mut self,
        running: &RunGuard,
        requests: usize,
        deadline: Option<Instant>,
    ) -> Result<ServerRun<'_>, Error> {
        let stop_requester = running.stop_requester();
        let drain = self.drain;
        let control = self.control.clone();
        let signals = &mut self.signals;
        if let Some(stop_request) = control.child_stop_request() {
            renew_stop_request(stop_request, &self.poll).map_err(Error::Loop)?;
        }
        let mut event_loop = EventLoop::new(LoopResources {
            poll: &mut self.poll,
            events: &mut self.events,
            mailbox: control.mailbox.clone(),
            stop: stop_requester.clone(),
            published: &self.control.published,
            spin: self.spin,
            generation: &mut self.generation,
        });
        event_loop.cx().run.accepts_left = requests;
        event_loop.cx().run.max_connections =
            self.max_connections.unwrap_or_else(sys::connections_of_descriptor_limit);
        let run_cx =
            RunOptions { control: &control, stop: stop_requester, signals: signals.clone(), drain };
        for (number, service) in self.services.iter_mut().enumerate() {
            let descriptor = service.socket().as_raw_fd();
            event_loop
                .add_listener(descriptor, |token| service.begin(&run_cx, number, token))
                .map_err(Error::Loop)?;
        }
        let (control, signals) = (&self.control, signals.as_mut());
        Ok(ServerRun { event_loop, control, signals, requests, deadline, drain })
    }

    /// Sets the drain timeout: how long a stop waits for busy connections; 5 seconds by default.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let mut server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// server.drain_timeout(Duration::from_secs(8)); // less than the supervisor waits
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn drain_timeout(&mut self, deadline: Duration) -> &mut Self {
        self.drain = deadline.min(MAX_TIME);
        self
    }

    /// Sets how many connections may be open at a time, on all listeners together. By default as many
    /// as the soft limit on open descriptors allows (see
    /// [`raise_descriptor_limit`](crate::raise_descriptor_limit)), less one in sixteen, and at least
    /// 32, for the program's own files. [`Limits::when_full`](crate::Limits::when_full) says what
    /// happens to further clients. `None` sets no limit; the system then refuses descriptors, and the
    /// listener pauses.
    ///
    /// Only connections that the server has accepted count, under every mode; datagrams do not.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let mut server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// server.max_connections(10_000);
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn max_connections(&mut self, connections: impl Into<Option<usize>>) -> &mut Self {
        self.max_connections = Some(connections.into().map_or(usize::MAX, |number| number.max(1)));
        self
    }

    /// Sets how many bytes all connections together may hold: undecoded input, output that waits, and
    /// send queues, by the capacity of their buffers. 256 MiB by default; `None` sets no limit. What
    /// the kernel buffers, and what handlers hold, is not included.
    ///
    /// At three quarters, a connection that holds more than its share (the limit divided by the
    /// number of open connections) is not read any more. At the limit, the connections that hold most
    /// are reset, with [`Limit::Memory`](crate::Limit::Memory), until nine tenths are held. Bytes
    /// that several connections share ([`broadcast`](crate::broadcast)) count for each of them.
    ///
    /// A child process under [`Forking`](crate::Forking) serves one connection and counts by itself.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let mut server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// server.max_memory(16 << 20); // on a small machine
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn max_memory(&mut self, bytes: impl Into<Option<usize>>) -> &mut Self {
        self.control.mailbox.memory().set_limit(bytes.into().unwrap_or(usize::MAX));
        self
    }

    /// Sets how long the event loop polls for events without sleeping (busy polling), each time
    /// before it sleeps; 0 by default.
    ///
    /// Waking a sleeping thread on another processor can cost several times as much as a request.
    /// With few connections that send one request after the other, a spin of some tens of
    /// microseconds reduces latency, but it uses a whole processor while there is traffic. An idle
    /// server spins once and sleeps. On a machine whose processors are all busy, a spin makes the
    /// server slower.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let mut server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// server.spin(Duration::from_micros(50)); // lower latency for a whole processor
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn spin(&mut self, time: Duration) -> &mut Self {
        self.spin = time.min(MAX_TIME);
        self
    }

    /// Sets how long [`handle_request`](Server::handle_request) waits for a request; without limit
    /// by default. Python's `timeout` of a server.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let mut server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// server.request_timeout(Duration::from_millis(1));
    /// assert!(!server.handle_request()?); // no request has come within that time
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[doc(alias = "timeout")]
    pub fn request_timeout(&mut self, timeout: impl Into<Option<Duration>>) -> &mut Self {
        self.timeout = timeout.into();
        self
    }

    /// A handle that stops this server from any thread, and reads its counters.
    ///
    /// ```
    /// use std::thread;
    /// use socketserver::{Server, handler_fn};
    ///
    /// let mut server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// let handle = server.shutdown_handle();
    /// let other = thread::spawn(move || handle.shutdown());
    /// server.serve_forever()?; // until that call
    /// # other.join().unwrap();
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        ShutdownHandle::new(self.control.clone())
    }

    /// Makes SIGINT and SIGTERM stop this server gracefully; a second signal ends the process at
    /// once. A signal stops every server of the process that has called this method.
    ///
    /// A signal that was ignored when the process started stays ignored, as in Python's `signal`
    /// module: a shell can start background jobs with SIGINT ignored, so that Ctrl-C does not stop
    /// them. When the last of these servers is dropped, the earlier signal actions are restored; a
    /// signal that came while none of them was serving is then raised again.
    ///
    /// ```no_run
    /// use socketserver::{Server, handler_fn};
    ///
    /// let mut server = Server::tcp("127.0.0.1:9999")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// server.stop_on_signals()?;
    /// server.serve_forever()?; // returns after Ctrl-C
    /// # Ok::<(), socketserver::Error>(())
    /// ```
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

    /// The addresses of the listeners, in the order in which the services were added: Python's
    /// `server_address`, with the ports that the kernel chose.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// for address in server.addresses() {
    ///     println!("listening on {address}");
    /// }
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[doc(alias = "server_address")]
    pub fn addresses(&self) -> Vec<Address> {
        self.services.iter().map(|service| service.address().clone()).collect()
    }

    /// The listeners, in the order in which the services were added: for a server that was made
    /// without [`add`](Server::add), which returns each listener's identifier.
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

    /// The address of this listener.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// let id = server.listeners()[0];
    /// assert_eq!(server.address(id), Some(server.local_addr()));
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn address(&self, id: ListenerId) -> Option<&Address> {
        self.services.get(id.0).map(Service::address)
    }

    /// The descriptor of one listener.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// let socket = server.listener_fd(server.listeners()[0]);
    /// assert!(socket.is_some());
    /// # Ok::<(), socketserver::Error>(())
    /// ```
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

    /// A handle by which other threads send datagrams to any peer on the socket of a datagram
    /// service: see [`DatagramSender`]. It can be used from now on until the server is dropped.
    ///
    /// ```
    /// use std::net::SocketAddr;
    /// use socketserver::{Peer, Server, handler_fn};
    ///
    /// let server = Server::udp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// let sender = server.datagram_sender(server.listeners()[0])?;
    /// let peer = Peer::from(SocketAddr::from(([127, 0, 0, 1], 9)));
    /// let _ = sender.send_to(&peer, b"news"); // from any thread, until the server is dropped
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Mode`] when there is no such datagram service.
    pub fn datagram_sender(&self, id: ListenerId) -> Result<DatagramSender, Error> {
        match self.services.get(id.0).filter(|service| service.batch.is_some()) {
            Some(service) => Ok(service.reply_socket.sender()),
            None => Err(Error::Mode("only a datagram service can send datagrams".to_owned())),
        }
    }

    /// Closes the listeners, as dropping does: clients that were never accepted see the end of
    /// input, not a reset. Python's `server_close`.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let mut server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # server.shutdown_handle().shutdown();
    /// server.serve_forever()?;
    /// server.server_close(); // as `drop(server)`
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn server_close(self) {}

    /// The counters of this server since it was made.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// let (server, _) = server.spawn()?.stop()?;
    /// assert_eq!(server.counters().accepted, 0);
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn counters(&self) -> Counters {
        self.control.counters()
    }

    /// Serves on a new thread until the server is stopped.
    ///
    /// # Errors
    ///
    /// [`Error::Loop`] when the system cannot start a thread. [`Error::Mode`] for the mode
    /// [`Forking`](crate::Forking), which forks only in a process with one thread, unless its
    /// [`allow_threads`](crate::Forking::allow_threads) is set.
    pub fn spawn(self) -> Result<Running, Error> {
        let forks_alone = |service: &Service| {
            let needs = service.runner.requirements();
            needs.one_thread && !needs.allows_threads
        };
        if let Some(service) = self.services.iter().find(|service| forks_alone(service)) {
            return Err(Error::Mode(format!(
                "{} forks, which is unsound in a process with a thread beside the server: call \
                 serve_forever on the only thread, or use Forking::allow_threads(true)",
                service.address()
            )));
        }
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

/// The descriptor of the server's poller. It is readable when
/// [`handle_request`](Server::handle_request) would have work to do.
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

/// Gives a run a new descriptor by which child processes request a stop, so that a child of an
/// earlier run cannot stop a later run.
fn renew_stop_request(stop_request: &Wakeup, poll: &Poll) -> io::Result<()> {
    let (descriptor, registry) = (stop_request.as_raw_fd(), poll.registry());
    let Ok(fresh) = Wakeup::new() else {
        // No descriptor is left: only clear the earlier requests.
        stop_request.clear();
        return Ok(());
    };
    registry.deregister(&mut SourceFd(&descriptor))?;
    stop_request.replace(&fresh)?;
    registry.register(&mut SourceFd(&descriptor), Token::WAKE.into(), Interest::READABLE)
}

impl Drop for Server {
    fn drop(&mut self) {
        self.control.mailbox.close();
        self.services.iter_mut().for_each(|service| service.runner.close());
    }
}

/// One run of the event loop, until it has served the given number of requests or must stop.
struct ServerRun<'a> {
    event_loop: EventLoop<'a>,
    control: &'a Arc<ServerState>,
    signals: Option<&'a mut SignalWatch>,
    /// How many requests it accepts; `usize::MAX` means no limit.
    requests: usize,
    /// The deadline of waiting for a request.
    deadline: Option<Instant>,
    drain: Duration,
}

/// The reason why a run has ended.
enum RunEnd {
    /// All requests were served.
    Served,
    /// There was no request before the deadline.
    TimedOut,
    /// A stop was requested; `served` says whether all requests had been accepted before.
    Stopped { served: bool },
}

impl ServerRun<'_> {
    fn until_stop(&mut self) -> Result<RunEnd, Error> {
        let (mut looked, mut served) = (false, false);
        loop {
            let signalled = self.signals.as_mut().is_some_and(|signals| signals.take());
            if signalled || self.control.stop_requested() {
                return Ok(RunEnd::Stopped { served });
            }
            served = self.requests != usize::MAX && self.event_loop.cx().run.accepts_left == 0;
            if served && self.is_quiet() {
                // Takes the notifications that workers have posted.
                self.event_loop.run_turn(Some(Duration::ZERO), None).map_err(Error::Loop)?;
                return Ok(RunEnd::Served);
            }
            let left = self
                .deadline
                .filter(|_| !served)
                .map(|deadline| deadline.saturating_duration_since(self.control.clock.now()));
            // At least one turn runs: a client that is already waiting is served, even if the
            // deadline has passed.
            if looked && left == Some(Duration::ZERO) {
                return Ok(RunEnd::TimedOut);
            }
            self.event_loop.run_turn(left, self.signals.as_deref()).map_err(Error::Loop)?;
            looked = true;
            if let Some(error) = self.event_loop.cx().run.failed.take() {
                stop(&mut self.event_loop, self.drain)?;
                return Err(error);
            }
        }
    }

    /// Whether the event loop and its workers have finished everything that was accepted.
    fn is_quiet(&mut self) -> bool {
        let event_loop = &mut self.event_loop;
        event_loop.connections() + event_loop.undelivered() + event_loop.jobs_with_workers() == 0
    }
}

/// Stops the event loop: busy connections may finish until the drain deadline, then the rest are
/// aborted.
fn stop(event_loop: &mut EventLoop<'_>, drain: Duration) -> Result<StopReport, Error> {
    let clock = event_loop.cx().call.entry.stop.clock().clone();
    let deadline = clock.now() + drain;
    let (requests, in_flight) = (event_loop.requests(), event_loop.in_flight());
    event_loop.stop();
    while event_loop.connections() + event_loop.in_flight() + event_loop.undelivered() > 0 {
        let left = deadline.saturating_duration_since(clock.now());
        if left.is_zero() {
            break;
        }
        event_loop.run_turn(Some(left), None).map_err(Error::Loop)?;
    }
    let ended_idle = event_loop.ended_idle();
    let cut = event_loop.abort_all();
    // Workers are still closing some conversations.
    while event_loop.jobs_with_workers() > 0 {
        let left = deadline.saturating_duration_since(clock.now());
        if left.is_zero() {
            break;
        }
        event_loop.run_turn(Some(left), None).map_err(Error::Loop)?;
    }
    // Takes the messages that workers have left in the mailbox.
    event_loop.run_turn(Some(Duration::ZERO), None).map_err(Error::Loop)?;
    let ended = (requests + in_flight).saturating_sub(cut);
    let ended_idle = ended_idle.min(ended);
    Ok(StopReport {
        idle: ended_idle + event_loop.stopped_with(StopOutcome::Idle),
        finished: ended - ended_idle + event_loop.stopped_with(StopOutcome::Finished),
        aborted: cut + event_loop.stopped_with(StopOutcome::Cut),
    })
}

/// A server that runs on its own thread: from [`Server::spawn`]. Dropping it stops the server and
/// waits for its end.
///
/// In the guide: [`testing`](crate::guide::testing).
///
/// ```
/// use socketserver::{Server, handler_fn};
///
/// let server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
/// let running = server.spawn()?;
/// println!("listening on {}", running.local_addr());
/// assert_eq!(running.addresses().len(), 1);
/// let (server, report) = running.stop()?; // the server can serve again
/// assert_eq!(report.aborted, 0);
/// # let _ = server;
/// # Ok::<(), socketserver::Error>(())
/// ```
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

    /// A handle that stops the server and reads its counters.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// let running = server.spawn()?;
    /// let handle = running.shutdown_handle(); // for other threads
    /// handle.shutdown();
    /// running.join()?;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.handle.clone()
    }

    /// Stops the server, waits for its end, and returns the server with the report of the stop.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let running = Server::tcp("127.0.0.1:0")?
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?
    ///     .spawn()?;
    /// let (server, report) = running.stop()?;
    /// assert_eq!(report.idle, 0); // nobody was there
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What [`Server::serve_forever`] returned.
    pub fn stop(mut self) -> Result<(Server, StopReport), Error> {
        self.handle.shutdown();
        self.join_thread()
    }

    /// Waits until the server has been stopped by other means.
    ///
    /// ```
    /// use socketserver::{Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// let running = server.spawn()?;
    /// # running.shutdown_handle().shutdown();
    /// let (_server, report) = running.join()?; // waits until something stops the server
    /// println!("{} connections were cut", report.aborted);
    /// # Ok::<(), socketserver::Error>(())
    /// ```
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
        let Service { runner, hooks, action_plan, bound, batch, handed, reply_socket, .. } = self;
        let admission = Admission::new(self.limits.clone(), self.limiter.clone());
        let closed = bound.kind == Kind::WithoutListener;
        let run_cx = RunContext {
            listener: token,
            listens: !closed,
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
                Box::new(Listener::new(
                    socket, address, dispatcher, hooks, handed, admission, closed,
                ))
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

/// The hooks of a run: those that were made when the run began, or else those of the service.
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

/// The settings that one run gives to its services.
struct RunOptions<'a> {
    control: &'a Arc<ServerState>,
    stop: &'a StopRequester,
    signals: Option<SignalWatch>,
    drain: Duration,
}
