//! The active connections: the sockets that threads serve. A stop, or a limit, shuts such a socket
//! down to end a read in which its thread waits.

use std::cell::OnceCell;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use super::standing::Standing;
use crate::connection_id::ConnectionId;
use crate::error::Limit;
use crate::limits::GRACE;
use crate::memory::MemoryGauge;
use crate::sender::{SendQueue, ThreadWaker};
use crate::sync::{AtomicBool, AtomicU8, AtomicUsize, Mutex, OnceLock, lock};
use crate::sys::{self, Socket, Wakeup};
use slab::Slab;

#[cfg(not(all(test, socketserver_loom)))]
thread_local! {
    /// Wakes this thread when there is something for the connection that it serves. It is made when
    /// first needed and reused for later connections.
    static WAKEUP: OnceCell<Arc<ThreadWaker>> = const { OnceCell::new() };
}

#[cfg(all(test, socketserver_loom))]
loom::thread_local! {
    static WAKEUP: OnceCell<Arc<ThreadWaker>> = OnceCell::new();
}

/// How many silent connections are checked for input that has arrived and no thread has read.
const MOST_CHECKED: usize = 64;

/// The connections of a listener that threads serve.
#[derive(Debug, Default)]
pub(crate) struct ActiveConnections {
    connections: Mutex<Slab<Arc<ActiveConnection>>>,
    stopping: AtomicBool,
    /// How many requests have ended that the stop found idle.
    ended_idle: AtomicUsize,
    /// Counts the memory that the connections of the server hold; set when a server first runs.
    memory: OnceLock<Arc<MemoryGauge>>,
}

#[derive(Debug)]
struct ActiveConnection {
    socket: Arc<Socket>,
    id: ConnectionId,
    /// Since when a thread serves it.
    served: OnceLock<Instant>,
    /// The byte of its [`Standing`].
    standing: AtomicU8,
    /// Its thread waits for the peer to take output.
    stalled: AtomicBool,
    /// How much memory it holds, without its send queue. Locked while the memory of all connections
    /// is changed by it.
    held: Mutex<usize>,
    send_queue: OnceLock<Arc<SendQueue>>,
    /// Its thread waits for the peer, and no request is in progress.
    idle: AtomicBool,
    /// A stop has found it idle.
    found_idle: AtomicBool,
    /// A stop has shut its socket down, or is about to: the stop causes the end of its input.
    shut: AtomicBool,
    /// The drain deadline has passed, and it has been aborted.
    cut: AtomicBool,
    /// Wakes its thread, if the thread waits for more than its socket.
    wakeup: OnceLock<Arc<ThreadWaker>>,
}

impl ActiveConnection {
    /// Shuts its socket down. An error is ignored: the peer has closed the connection already.
    fn shut_down(&self, how: Shutdown) {
        // Set first: its thread checks this when it sees the end of input.
        self.shut.store(true, SeqCst);
        let _ = self.socket.shutdown(how);
    }

    fn wake(&self) {
        if let Some(wakeup) = self.wakeup.get() {
            wakeup.wakeup.wake();
        }
    }

    fn standing(&self) -> Standing<'_> {
        Standing::new(&self.standing)
    }

    /// How much memory it holds; 0 if it is being closed.
    fn weight(&self) -> usize {
        if self.standing().limit().is_some() {
            return 0;
        }
        *lock(&self.held) + self.send_queue.get().map_or(0, |queue| queue.held())
    }

    /// Whether no input has arrived that its thread has not read.
    fn is_quiet(&self) -> bool {
        !sys::has_input(&self.socket)
    }

    /// Has it closed by its thread if it is silent; returns whether it is.
    fn reject(&self) -> bool {
        if !self.standing().reject() {
            return false;
        }
        // With a thread that begins to wait at the same time, one of the two sees the other: the
        // thread sets `stalled` and then checks the standing.
        if self.stalled.load(SeqCst) {
            // What its handler says could not reach the peer.
            sys::disconnect(&self.socket);
        } else {
            let _ = self.socket.shutdown(Shutdown::Read);
        }
        self.wake();
        true
    }
}

impl ActiveConnections {
    /// Registers a connection until the guard is dropped.
    pub(crate) fn register(
        self: &Arc<Self>,
        socket: Arc<Socket>,
        id: ConnectionId,
    ) -> Registration {
        let connection = Arc::new(ActiveConnection {
            socket,
            id,
            served: OnceLock::new(),
            standing: AtomicU8::default(),
            stalled: AtomicBool::new(false),
            held: Mutex::default(),
            send_queue: OnceLock::new(),
            idle: AtomicBool::new(false),
            found_idle: AtomicBool::new(false),
            shut: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            wakeup: OnceLock::new(),
        });
        let number = lock(&self.connections).insert(connection.clone());
        Registration { active: self.clone(), connection, number }
    }

    /// From now on idle connections end: their threads see the end of input.
    ///
    /// If input or the peer's end is waiting, the thread sees that first, and then the stop.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, SeqCst);
        for (_, connection) in lock(&self.connections).iter() {
            if connection.idle.load(SeqCst) && !sys::has_input(&connection.socket) {
                connection.found_idle.store(true, SeqCst);
                connection.shut_down(Shutdown::Read);
            }
            connection.wake();
        }
    }

    /// Aborts all connections with a reset; reads and writes that wait return.
    pub(crate) fn abort_all(&self) {
        self.stopping.store(true, SeqCst);
        for (_, connection) in lock(&self.connections).iter() {
            connection.cut.store(true, SeqCst);
            connection.shut.store(true, SeqCst);
            sys::disconnect(&connection.socket);
            connection.wake();
        }
    }

    /// Has silent connections closed by their threads, if their numbers are below `mature`: the `most`
    /// oldest. Returns how many, and `None` if there is no silent connection at all.
    ///
    /// A connection is not silent if input has arrived that its thread has not read, because the
    /// thread is busy.
    pub(crate) fn reject_served(&self, mature: u64, most: usize) -> Option<usize> {
        let now = Instant::now();
        let mut silent = self.silent(|connection| connection.served.get().is_some());
        let is_any = !silent.is_empty();
        silent.retain(|connection| {
            let served = connection.served.get().map(|since| now.saturating_duration_since(*since));
            u64::from(connection.id) < mature && served.is_some_and(|time| time >= GRACE)
        });
        let quiet = silent.iter().take(most.max(MOST_CHECKED)).filter(|each| each.is_quiet());
        let closed = quiet.take(most).filter(|each| each.reject()).count();
        is_any.then_some(closed)
    }

    /// Has the oldest silent connection closed that waits for a thread, if its number is below
    /// `mature`. Returns the number, and otherwise whether there are silent connections.
    pub(crate) fn reject_waiting(&self, mature: u64) -> Result<ConnectionId, bool> {
        let silent = self.silent(|connection| connection.served.get().is_none());
        let mature = silent.iter().filter(|connection| u64::from(connection.id) < mature);
        let rejected = mature.take(MOST_CHECKED).find(|each| each.is_quiet() && each.reject());
        rejected.map(|connection| connection.id).ok_or(!silent.is_empty())
    }

    /// The silent connections that `matches` accepts, the oldest first.
    fn silent(&self, matches: impl Fn(&ActiveConnection) -> bool) -> Vec<Arc<ActiveConnection>> {
        let mut silent: Vec<_> = lock(&self.connections)
            .iter()
            .filter(|(_, connection)| connection.standing().is_silent() && matches(connection))
            .map(|(_, connection)| connection.clone())
            .collect();
        silent.sort_unstable_by_key(|connection| connection.id);
        silent
    }

    /// How much memory the connection holds that holds most, in bytes.
    pub(crate) fn heaviest(&self) -> usize {
        let connections = lock(&self.connections);
        connections.iter().map(|(_, connection)| connection.weight()).max().unwrap_or(0)
    }

    /// Resets the connection that holds most memory. Its memory counts as freed at once.
    pub(crate) fn close_heaviest(&self) {
        let connections = lock(&self.connections);
        let weights = connections.iter().map(|(_, connection)| (connection.weight(), connection));
        let heaviest = weights.filter(|(weight, _)| *weight > 0).max_by_key(|(weight, _)| *weight);
        let heaviest = heaviest.map(|(_, connection)| connection.clone());
        drop(connections);
        if let Some(connection) = heaviest.filter(|connection| connection.standing().condemn()) {
            sys::disconnect(&connection.socket);
            self.hold(&connection, 0);
            if let Some(send_queue) = connection.send_queue.get() {
                send_queue.refuse();
            }
            connection.wake();
        }
    }

    /// Sets how much memory a connection holds; returns whether that is more than before.
    fn hold(&self, connection: &ActiveConnection, bytes: usize) -> bool {
        let Some(memory) = self.memory.get() else { return false };
        let mut held = lock(&connection.held);
        // What it takes until its thread sees that it is to be closed does not count.
        let is_condemned = connection.standing().limit() == Some(Limit::Memory);
        let bytes = if is_condemned { 0 } else { bytes };
        let before = std::mem::replace(&mut *held, bytes);
        memory.replace(before, bytes);
        bytes > before
    }

    /// Resets the stop, for another run. The memory of the connections counts in `memory`.
    pub(crate) fn reopen(&self, memory: &Arc<MemoryGauge>) {
        self.memory.get_or_init(|| memory.clone());
        self.stopping.store(false, SeqCst);
        self.ended_idle.store(0, SeqCst);
    }

    /// How many requests have ended that the stop found idle.
    pub(crate) fn ended_idle(&self) -> usize {
        self.ended_idle.load(SeqCst)
    }
}

/// The registration of an active connection; dropping it removes the entry.
#[derive(Debug)]
pub(crate) struct Registration {
    active: Arc<ActiveConnections>,
    connection: Arc<ActiveConnection>,
    number: usize,
}

impl Registration {
    pub(crate) fn is_stopping(&self) -> bool {
        self.active.stopping.load(SeqCst)
    }

    /// Whether a stop has shut this socket down.
    pub(crate) fn is_shut(&self) -> bool {
        self.connection.shut.load(SeqCst)
    }

    /// Whether the drain deadline has passed and it has been aborted.
    pub(crate) fn is_cut(&self) -> bool {
        self.connection.cut.load(SeqCst)
    }

    /// Marks that a stop has woken its thread, which was idle and waited for something other than
    /// its peer.
    pub(crate) fn set_found_idle(&self) {
        self.connection.found_idle.store(true, SeqCst);
    }

    /// The descriptor that wakes this thread; from now on a stop wakes it too. `None` if it is new and
    /// the server is stopping already: the stop could not wake this thread.
    pub(crate) fn wakeup(&self) -> io::Result<Option<&Wakeup>> {
        let is_new = self.connection.wakeup.get().is_none();
        let waker = self.waker()?;
        Ok((!(is_new && self.is_stopping())).then_some(&waker.wakeup))
    }

    /// As [`wakeup`](Self::wakeup), for senders.
    pub(crate) fn waker(&self) -> io::Result<&Arc<ThreadWaker>> {
        if self.connection.wakeup.get().is_none() {
            let wakeup = WAKEUP.with(|own| match own.get() {
                Some(wakeup) => Ok(wakeup.clone()),
                None => Wakeup::new().map(|wakeup| {
                    let memory = self.active.memory.get().cloned().unwrap_or_default();
                    own.get_or_init(|| Arc::new(ThreadWaker { wakeup, memory })).clone()
                }),
            })?;
            // Only this thread sets it.
            let _ = self.connection.wakeup.set(wakeup);
            // A stop that has gone through the connections without it has set its flag before that,
            // and this thread sees the flag from now on.
            drop(lock(&self.active.connections));
        }
        self.connection.wakeup.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The send queue of the connection, which another thread empties if memory runs out.
    pub(crate) fn set_send_queue(&self, send_queue: &Arc<SendQueue>) {
        // A connection has one send queue.
        let _ = self.connection.send_queue.set(send_queue.clone());
    }

    /// A thread begins to serve the connection.
    pub(crate) fn set_served(&self, since: Instant) {
        // Only one thread serves it.
        let _ = self.connection.served.set(since);
    }

    /// The number of the connection.
    pub(crate) fn id(&self) -> ConnectionId {
        self.connection.id
    }

    pub(crate) fn standing(&self) -> Standing<'_> {
        self.connection.standing()
    }

    /// The limit because of which the thread must close the connection.
    pub(crate) fn limit(&self) -> Option<Limit> {
        self.standing().limit()
    }

    /// Sets whether its thread waits for the peer to take output.
    pub(crate) fn set_stalled(&self, stalled: bool) {
        self.connection.stalled.store(stalled, SeqCst);
    }

    /// Sets how much memory the connection holds; returns whether that is more than before.
    pub(crate) fn hold(&self, bytes: usize) -> bool {
        self.active.hold(&self.connection, bytes)
    }

    /// Sets whether its thread is idle. With a stop at the same time, one of the two sees the
    /// other: the thread sets this and then checks for the stop; the stop sets its flag and then
    /// checks this.
    pub(crate) fn set_idle(&self, idle: bool) {
        self.connection.idle.store(idle, SeqCst);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.active.connections).remove(self.number);
        self.active.hold(&self.connection, 0);
        if self.connection.found_idle.load(SeqCst) {
            self.active.ended_idle.fetch_add(1, SeqCst);
        }
    }
}

#[cfg(all(test, socketserver_loom))]
mod models;
