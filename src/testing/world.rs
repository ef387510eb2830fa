//! A simulated world, and a server that runs in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::Client;
use super::fault::{Fault, Swarm};
use super::kernel::{FakeKernel, Happening, Pace};
use super::stream::FakeStream;
use crate::counters::Counters;
use crate::error::Error;
use crate::server::{ListenerId, Server, ShutdownHandle, SteppedRun, StopReport};

/// The sizes that [`Fault::BufferSizes`] chooses from, in bytes; the first one is the usual size.
const BUFFER_SIZES: [usize; 8] = [64 * 1024, 8192, 2304, 600, 130, 200 * 1024, 400 * 1024, 1 << 20];

/// A simulated world: its time, its network, its kernel. [`check`](super::check) and
/// [`quiet`](super::quiet) make one. A clone is the same world, and a handler can have one.
///
/// ```
/// use std::time::Duration;
/// use socketserver::testing::{self, Fault};
/// use socketserver::{Server, handler_fn};
///
/// testing::quiet(|world| {
///     let mut server = Server::tcp("127.0.0.1:9999")
///         .and_then(|builder| builder.serve(|_| handler_fn(|message, cx| cx.send(message))))
///         .unwrap();
///     world.limit_descriptors(100);
///     let begin = world.now();
///     let handle = server.shutdown_handle();
///     world.after(Duration::from_secs(60), move || handle.shutdown());
///     let mut sim = world.start(&mut server);
///     sim.connect().send(b"hello");
///     sim.pass(Duration::from_secs(61)); // takes no time
///     assert!(sim.is_stopped() && world.now() - begin >= Duration::from_secs(61));
///     assert!(!world.has(Fault::Cut) && world.choose(6) == 0); // the world is quiet
///     world.note("the server has stopped", 1); // in the trace of a failure
///     world.mark("stopped");
/// });
/// ```
#[derive(Debug, Clone)]
pub struct World {
    pub(super) kernel: Arc<FakeKernel>,
}

impl World {
    /// Starts a server that was made in this world. Nothing happens until the [`Simulation`] lets
    /// the time pass.
    ///
    /// # Panics
    ///
    /// If the server cannot be started, has a datagram service, or was made in no simulated world. Under a
    /// blocking mode, the first client causes a panic.
    pub fn start<'a>(&self, server: &'a mut Server) -> Simulation<'a> {
        let has_datagrams = server.addresses().iter().any(|address| address.is_datagram());
        assert!(!has_datagrams, "datagram services are not simulated");
        let listeners =
            server.listeners().into_iter().filter_map(|id| Some((id, server.descriptor(id)?)));
        let mut numbers = Vec::new();
        for (id, descriptor) in listeners {
            let number = self.kernel.lock().descriptor(descriptor).map(|(number, _)| number);
            numbers.push((id, number.expect("the server was made in this world")));
        }
        let run = server.begin_stepped().expect("the server starts");
        let mut state = self.kernel.lock();
        if !state.servers.iter().any(|server| server.is_same(run.handle())) {
            state.servers.push(run.handle().clone());
        }
        drop(state);
        let (world, handle) = (self.clone(), run.handle().clone());
        Simulation { world, listeners: numbers, run: Some(run), handle, stopped: None }
    }

    /// The time in this world, which [`Context::now`](crate::Context::now) returns too.
    pub fn now(&self) -> Instant {
        self.kernel.origin + self.kernel.lock().now
    }

    /// A choice of this run, below `bound`: a test and its handlers draw their own decisions from the
    /// same script as the faults, so that they are repeated and shrunk with it. In a
    /// [`quiet`](super::quiet) world it is 0.
    pub fn choose(&self, bound: usize) -> usize {
        self.kernel.lock().choices.below(bound)
    }

    /// Lets time pass in a call of a handler, as if it blocked.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::testing;
    /// use socketserver::{Server, handler_fn};
    ///
    /// testing::quiet(|world| {
    ///     let inside = world.clone();
    ///     let mut server = Server::tcp("127.0.0.1:9999")
    ///         .and_then(|builder| {
    ///             builder.serve(move |_| {
    ///                 let world = inside.clone();
    ///                 handler_fn(move |message, cx| {
    ///                     world.block(Duration::from_millis(200)); // a slow database
    ///                     cx.send(message)
    ///                 })
    ///             })
    ///         })
    ///         .unwrap();
    ///     let mut sim = world.start(&mut server);
    ///     sim.connect().send(b"hello");
    ///     sim.settle();
    ///     assert!(sim.counters().longest_turn_us >= 200_000);
    /// });
    /// ```
    pub fn block(&self, time: Duration) {
        let mut state = self.kernel.lock();
        let until = state.now + time;
        state.pass_until(until);
    }

    /// Calls `action` at a later time, also while a server stops.
    pub fn after(&self, delay: Duration, action: impl FnOnce() + Send + 'static) {
        self.kernel.lock().plan(delay, Happening::Job(Box::new(action)));
    }

    /// Limits the number of descriptors that can be open, as `RLIMIT_NOFILE` does; a server has
    /// three, one for each listener, and one for each connection.
    pub fn limit_descriptors(&self, limit: usize) {
        self.kernel.lock().descriptor_limit = limit;
    }

    /// Adds a line to the trace, which is printed when a check fails, and is the same when the same
    /// script runs again.
    pub fn note(&self, what: &'static str, value: usize) {
        self.kernel.lock().note(what, 0, value);
    }

    /// Records that a state worth reaching was reached: see [`Checked::marks`](super::Checked::marks).
    pub fn mark(&self, name: &'static str) {
        self.kernel.lock().mark(name);
    }

    /// A panic of a handler does not fail this test, although the server survives it anyway.
    ///
    /// ```
    /// use socketserver::testing;
    /// use socketserver::{Server, handler_fn};
    ///
    /// testing::quiet(|world| {
    ///     world.allow_panics();
    ///     let mut server = Server::tcp("127.0.0.1:9999")
    ///         .and_then(|builder| builder.serve(|_| handler_fn(|_, _| panic!("a fault"))))
    ///         .unwrap();
    ///     let mut sim = world.start(&mut server);
    ///     sim.connect().send(b"hello");
    ///     sim.settle();
    ///     assert_eq!(sim.counters().panics, 1);
    /// });
    /// ```
    pub fn allow_panics(&self) {
        self.kernel.lock().allows_panics = true;
    }

    /// Ends all faults: from now on the world is quiet, apart from the sizes of buffers. What the server
    /// has to reach in the end can be demanded after it.
    ///
    /// ```
    /// use socketserver::testing::Check;
    ///
    /// Check::new().runs(10).with_all().run(|world| {
    ///     // Here faults happen.
    ///     world.calm();
    ///     // From here on, the server reaches what it has to reach.
    /// });
    /// ```
    pub fn calm(&self) {
        let mut state = self.kernel.lock();
        state.swarm = Swarm::default();
        state.descriptor_limit = usize::MAX;
    }

    /// Whether this run has this fault.
    pub fn has(&self, fault: Fault) -> bool {
        self.kernel.lock().swarm.has(fault)
    }

    /// Makes a client, which connects to a listener.
    pub(super) fn connect(&self, listener: usize) -> Client {
        let kernel = self.kernel.clone();
        let mut state = kernel.lock();
        let is_unix = state.is_unix(listener);
        let capacities = [(); 3].map(|()| match state.swarm.has(Fault::BufferSizes) {
            true => BUFFER_SIZES[state.choices.below(BUFFER_SIZES.len())],
            false => BUFFER_SIZES[0],
        });
        let stream = state.streams.len();
        state.streams.push(FakeStream::new(is_unix, capacities));
        let delay = state.delay();
        state.plan(delay, Happening::Connect { stream, listener });
        drop(state);
        Client { kernel, stream }
    }

    fn fail_if_violated(&self) {
        let violation = self.kernel.lock().violation.take();
        if let Some(violation) = violation {
            panic!("{violation}");
        }
    }
}

/// A server that runs in a simulated world: from [`World::start`]. Its event loop takes its turns
/// while [`settle`](Simulation::settle) and [`pass`](Simulation::pass) run. After each turn it is
/// checked that the loop did not read or accept too much in it, that it lost no connection, and that
/// it sleeps if there is nothing to do.
///
/// ```
/// use std::time::Duration;
/// use socketserver::testing;
/// use socketserver::{Limits, Server, handler_fn};
///
/// testing::quiet(|world| {
///     let mut server = Server::tcp("127.0.0.1:9999")
///         .map(|builder| builder.limits(Limits::default().idle_timeout(Duration::from_secs(3600))))
///         .and_then(|builder| builder.serve(|_| handler_fn(|message, cx| cx.send(message))))
///         .unwrap();
///     let listener = server.listeners()[0];
///     let mut sim = world.start(&mut server);
///     let client = sim.connect_to(listener); // `connect` takes the first listener
///     client.send(b"hello");
///     sim.settle();
///     assert_eq!((sim.connections(), sim.timers()), (1, 1));
///     sim.pass(Duration::from_secs(3601)); // takes no time
///     assert_eq!(sim.counters().timeouts, 1);
///     let _ = sim.connect();
///     sim.settle();
///     assert!(!sim.is_stopped());
///     assert_eq!(sim.stop().idle, 1);
/// });
/// ```
#[derive(Debug)]
pub struct Simulation<'a> {
    world: World,
    listeners: Vec<(ListenerId, usize)>,
    run: Option<SteppedRun<'a>>,
    handle: ShutdownHandle,
    stopped: Option<StopReport>,
}

impl Simulation<'_> {
    /// Connects a client to the first listener.
    ///
    /// # Panics
    ///
    /// If the server has no stream listener.
    pub fn connect(&mut self) -> Client {
        let (first, _) = *self.listeners.first().expect("a server with a listener");
        self.connect_to(first)
    }

    /// Connects a client to one listener.
    ///
    /// # Panics
    ///
    /// If it is not a stream listener of this server.
    pub fn connect_to(&mut self, listener: ListenerId) -> Client {
        let found = self.listeners.iter().find(|(id, _)| *id == listener);
        let (_, number) = *found.expect("a stream listener of this server");
        self.world.connect(number)
    }

    /// Lets the server work until nothing more can happen before one of its timers expires: all
    /// packets have arrived, all jobs are done, and the event loop sleeps.
    ///
    /// # Panics
    ///
    /// If an invariant is violated.
    pub fn settle(&mut self) {
        loop {
            self.turn(Pace::Settle);
            let ready = self.run.as_ref().map_or(0, |run| run.state().ready);
            if self.world.kernel.lock().is_settled && ready == 0 {
                return;
            }
        }
    }

    /// Lets time pass, with all that happens in it.
    ///
    /// # Panics
    ///
    /// If an invariant is violated.
    pub fn pass(&mut self, time: Duration) {
        let until = self.world.kernel.lock().now + time;
        loop {
            self.turn(Pace::Until(until));
            if self.world.kernel.lock().now >= until {
                return;
            }
        }
    }

    /// Stops the server, and returns how its connections have ended. Time passes meanwhile. If a
    /// handler has stopped it before, the report of that stop is returned.
    ///
    /// # Panics
    ///
    /// If the server fails, or an invariant is violated.
    pub fn stop(&mut self) -> StopReport {
        if let Some(report) = self.stopped {
            return report;
        }
        let mut run = self.run.take().expect("a run that has not ended");
        let mut state = self.world.kernel.lock();
        state.pace = Pace::Free;
        // The stop itself serves each connection once more, without a call of the poller before it.
        state.begin_turn(true);
        drop(state);
        let report = run.stop().expect("the server stops");
        let left = run.state();
        drop(run);
        self.world.kernel.finish_jobs();
        self.stopped = Some(report);
        self.world.fail_if_violated();
        assert_eq!((left.connections, left.unfreed), (0, 0), "connections are left after a stop");
        report
    }

    /// Whether a handler, or a shutdown handle, has stopped the server.
    pub fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// How many connections the event loop has, those that linger included.
    pub fn connections(&self) -> usize {
        self.run.as_ref().map_or(0, |run| run.state().connections)
    }

    /// How many deadlines are set in the event loop.
    pub fn timers(&self) -> usize {
        self.run.as_ref().map_or(0, |run| run.state().timers)
    }

    /// What the server has counted.
    pub fn counters(&self) -> Counters {
        self.handle.counters()
    }

    /// The server takes one turn; without a server, the world goes on.
    fn turn(&mut self, pace: Pace) {
        self.world.kernel.lock().pace = pace;
        let result = match &mut self.run {
            Some(run) => run.turn(),
            None => {
                self.world.kernel.idle(pace);
                Ok(true)
            }
        };
        self.world.fail_if_violated();
        match result {
            Ok(true) => self.check_turn(),
            Ok(false) => {
                self.stop();
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &Error) {
        panic!("the event loop has failed: {error}");
    }

    fn check_turn(&self) {
        let Some(run) = &self.run else { return };
        let (state, counters) = (run.state(), run.handle().counters());
        let open = counters.accepted - counters.closed;
        assert_eq!(open, state.connections as u64, "accepted and not closed, and in the loop");
        assert_eq!(state.unfreed, 0, "slots that are not freed at the end of a turn");
    }
}

impl Drop for Simulation<'_> {
    fn drop(&mut self) {
        self.run = None;
        self.world.kernel.finish_jobs();
    }
}
