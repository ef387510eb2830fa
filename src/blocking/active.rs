//! The sockets that threads of their own are serving, so that a stop can reach a thread that waits
//! in a read: by shutting its socket down.

use std::cell::OnceCell;
use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

use slab::Slab;
use socket2::Socket;

use crate::sync::lock;
use crate::sys::{self, Wakeup};

thread_local! {
    /// What wakes this thread when something comes for the connection it serves; made when first
    /// needed, and kept for the connections after it.
    static WAKEUP: OnceCell<Arc<Wakeup>> = const { OnceCell::new() };
}

/// All of a listener's requests that are served elsewhere.
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
    /// Its thread waits for the peer, with nothing begun.
    idle: AtomicBool,
    /// A stop has found it idle.
    found_idle: AtomicBool,
    /// A stop has shut its socket down, or is about to: an end of its input is the stop's doing.
    shut: AtomicBool,
    /// The time for stopping is up, and it has been ended.
    cut: AtomicBool,
    /// What wakes its thread, if it waits for more than its socket.
    wakeup: OnceLock<Arc<Wakeup>>,
}

impl ActiveConnection {
    /// Shuts its socket down. One that is closed by its peer already has what it needs, so an error
    /// says nothing.
    fn shut_down(&self, how: Shutdown) {
        // Said first: its thread asks when it sees the end.
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
    /// Takes a seat, until the guard is dropped.
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

    /// From now on who is idle ends; its thread sees the end of its input.
    ///
    /// Where input waits, or the peer's end, the thread is about to see that, and the stop after it.
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

    /// Ends everyone, by a reset; reads and writes that wait come back.
    pub(crate) fn abort_all(&self) {
        self.stopping.store(true, SeqCst);
        for (_, connection) in lock(&self.connections).iter() {
            connection.cut.store(true, SeqCst);
            connection.shut.store(true, SeqCst);
            sys::disconnect(&connection.socket);
            connection.wake();
        }
    }

    /// Opens again, for another run.
    pub(crate) fn reopen(&self) {
        self.stopping.store(false, SeqCst);
        self.ended_idle.store(0, SeqCst);
    }

    /// How many requests have ended that the stop found idle.
    pub(crate) fn ended_idle(&self) -> usize {
        self.ended_idle.load(SeqCst)
    }
}

/// A seat taken.
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

    /// Whether the time for stopping is up, and it has been ended.
    pub(crate) fn is_cut(&self) -> bool {
        self.connection.cut.load(SeqCst)
    }

    /// Its thread, which waited with nothing begun and not for its peer, has been woken by a stop.
    pub(crate) fn set_found_idle(&self) {
        self.connection.found_idle.store(true, SeqCst);
    }

    /// What wakes this thread; from now on a stop does, too.
    pub(crate) fn wakeup(&self) -> io::Result<&Arc<Wakeup>> {
        if self.connection.wakeup.get().is_none() {
            let wakeup = WAKEUP.with(|own| match own.get() {
                Some(wakeup) => Ok(wakeup.clone()),
                None => Wakeup::new()
                    .map(|make_handler| own.get_or_init(|| Arc::new(make_handler)).clone()),
            })?;
            // It is this thread alone that sets it.
            let _ = self.connection.wakeup.set(wakeup);
        }
        self.connection.wakeup.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Says whether its thread waits with nothing begun. A stop that comes at the same moment is
    /// seen by one of the two: the thread looks for it after it has said so, the stop before.
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
