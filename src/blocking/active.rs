//! The active connections: the sockets that threads serve. A stop shuts such a socket down to end a
//! read in which its thread waits.

use std::cell::OnceCell;
use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

use crate::sync::lock;
use crate::sys::{self, Socket, Wakeup};
use slab::Slab;

thread_local! {
    /// Wakes this thread when there is something for the connection that it serves. It is made when
    /// first needed and reused for later connections.
    static WAKEUP: OnceCell<Arc<Wakeup>> = const { OnceCell::new() };
}

/// The connections of a listener that threads serve.
#[derive(Debug, Default)]
pub(crate) struct ActiveConnections {
    connections: Mutex<Slab<Arc<ActiveConnection>>>,
    stopping: AtomicBool,
    /// How many requests have ended that the stop found idle.
    ended_idle: AtomicUsize,
}

#[derive(Debug)]
struct ActiveConnection {
    socket: Arc<Socket>,
    /// Its thread waits for the peer, and no request is in progress.
    idle: AtomicBool,
    /// A stop has found it idle.
    found_idle: AtomicBool,
    /// A stop has shut its socket down, or is about to: the stop causes the end of its input.
    shut: AtomicBool,
    /// The drain deadline has passed, and it has been aborted.
    cut: AtomicBool,
    /// Wakes its thread, if the thread waits for more than its socket.
    wakeup: OnceLock<Arc<Wakeup>>,
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
            wakeup.wake();
        }
    }
}

impl ActiveConnections {
    /// Registers a connection until the guard is dropped.
    pub(crate) fn register(self: &Arc<Self>, socket: Arc<Socket>) -> Registration {
        let connection = Arc::new(ActiveConnection {
            socket,
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

    /// Resets the stop, for another run.
    pub(crate) fn reopen(&self) {
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

    /// The descriptor that wakes this thread; from now on a stop wakes it too.
    pub(crate) fn wakeup(&self) -> io::Result<&Arc<Wakeup>> {
        if self.connection.wakeup.get().is_none() {
            let wakeup = WAKEUP.with(|own| match own.get() {
                Some(wakeup) => Ok(wakeup.clone()),
                None => Wakeup::new()
                    .map(|make_handler| own.get_or_init(|| Arc::new(make_handler)).clone()),
            })?;
            // Only this thread sets it.
            let _ = self.connection.wakeup.set(wakeup);
        }
        self.connection.wakeup.get().ok_or_else(|| io::ErrorKind::NotFound.into())
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
        if self.connection.found_idle.load(SeqCst) {
            self.active.ended_idle.fetch_add(1, SeqCst);
        }
    }
}
