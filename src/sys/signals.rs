//! SIGINT and SIGTERM as a descriptor that a loop can wait for, see
//! [signal-safety(7)](https://man7.org/linux/man-pages/man7/signal-safety.7.html).
//!
//! **Invariant:** a signal handler stores numbers and writes to a descriptor that is never closed;
//! the one of a forked child also sets a socket option of the connection that the child has
//! registered. A signal handler takes no lock and allocates nothing. No thread is needed.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::checked;
use super::wakeup::{Wakeup, wake_raw};

/// The number of stop signals received, and the last one.
static RECEIVED: AtomicUsize = AtomicUsize::new(0);
static LAST: AtomicI32 = AtomicI32::new(0);

/// The value of `RECEIVED` when the last watch began: the second signal after that ends the
/// process.
static BEGUN: AtomicUsize = AtomicUsize::new(0);

/// How many of the received stop signals a watcher has acted on.
static ANSWERED: AtomicUsize = AtomicUsize::new(0);

/// The descriptor that the handler writes to; -1 if there is none.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// The descriptor that every loop waits for. It stays open until the process ends, so the handler
/// never writes to a descriptor number that was closed and reused.
static WAKEUP: OnceLock<Wakeup> = OnceLock::new();

const STOP_SIGNALS: [libc::c_int; 2] = [libc::SIGINT, libc::SIGTERM];

/// The actions that are restored when the last watcher is dropped.
static WATCHED: Mutex<Watched> = Mutex::new(Watched { watchers: 0, before: [None; 2] });

struct Watched {
    watchers: usize,
    /// The action of each stop signal before the watch; `None` for a signal that is not watched.
    before: [Option<libc::sigaction>; STOP_SIGNALS.len()],
}

fn watched() -> MutexGuard<'static, Watched> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A watch for stop signals, which knows how many of them its owner has seen. When the last watch
/// is dropped, the earlier actions of the signals are restored.
#[derive(Debug, Clone)]
pub(crate) struct SignalWatch {
    seen: usize,
    _watcher: Arc<Watcher>,
}

#[derive(Debug)]
struct Watcher;

impl Watcher {
    fn new() -> Self {
        let mut watched = watched();
        let received = RECEIVED.load(SeqCst);
        BEGUN.store(received, SeqCst);
        if watched.watchers == 0 {
            ANSWERED.store(received, SeqCst);
        }
        watched.watchers += 1;
        Watcher
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut watched = watched();
        watched.watchers -= 1;
        if watched.watchers > 0 {
            return;
        }
        for (signal, before) in STOP_SIGNALS.into_iter().zip(&mut watched.before) {
            // Other code may have installed its own handler since.
            if let Some(before) = before.take()
                && action(signal).is_ok_and(|now| now.sa_sigaction == handler())
            {
                // sigaction(2) cannot fail for an action that was in force before.
                let _ = replace_action(signal, &before);
            }
        }
        drop(watched);
        // A signal that no loop has acted on is not lost: it is raised again.
        let received = RECEIVED.load(SeqCst);
        if ANSWERED.swap(received, SeqCst) != received {
            // SAFETY: raise takes a number.
            unsafe { libc::raise(LAST.load(SeqCst)) };
        }
    }
}

impl SignalWatch {
    /// Whether a stop signal has come since the last call that returned true.
    pub(crate) fn take(&mut self) -> bool {
        let received = RECEIVED.load(SeqCst);
        let is_new = std::mem::replace(&mut self.seen, received) != received;
        if is_new {
            ANSWERED.fetch_max(received, SeqCst);
        }
        is_new
    }

    /// Marks all received stop signals as acted on: a loop has stopped, as they ask for.
    pub(crate) fn answer(&self) {
        ANSWERED.fetch_max(RECEIVED.load(SeqCst), SeqCst);
    }

    /// Whether a stop signal has come that [`take`](SignalWatch::take) has not reported.
    pub(crate) fn is_due(&self) -> bool {
        RECEIVED.load(SeqCst) != self.seen
    }

    /// The descriptor that is readable from the first stop signal on, and stays readable.
    pub(crate) fn wakeup(&self) -> &'static Wakeup {
        WAKEUP.get().expect("the descriptor is made before the watch")
    }
}

/// Starts a watch: until it is dropped, SIGINT and SIGTERM are counted and make the descriptor of
/// the watch readable. The second signal takes its default action, which ends the process. A signal
/// that is ignored stays ignored.
pub(crate) fn watch_stop_signals() -> io::Result<SignalWatch> {
    if WAKEUP.get().is_none() {
        // If two threads come here at the same time, one of the two descriptors is dropped unused.
        let _ = WAKEUP.set(Wakeup::new()?);
    }
    let wakeup = WAKEUP.get().expect("just set");
    WAKE.store(wakeup.raw_write_end(), SeqCst);
    let watcher = Arc::new(Watcher::new());
    for (signal, before) in STOP_SIGNALS.into_iter().zip(&mut watched().before) {
        let found = action(signal)?;
        if found.sa_sigaction != libc::SIG_IGN && found.sa_sigaction != handler() {
            set_action(signal, handler())?;
            *before = Some(found);
        }
    }
    Ok(SignalWatch { seen: RECEIVED.load(SeqCst), _watcher: watcher })
}

fn handler() -> libc::sighandler_t {
    on_stop_signal as extern "C" fn(libc::c_int) as libc::sighandler_t
}

/// The pid of the parent of a forked child.
static PARENT: AtomicI32 = AtomicI32::new(0);

/// In a forked child: replaces the watch of the parent. The child watches only SIGTERM, with its
/// own descriptor, and may receive it any number of times. If no descriptor is left, the result is
/// `None`; the signal is still counted, see [`child_is_terminated`]. If the parent has ended, no
/// process enforces the deadline of the child, so the child exits at once.
pub(super) fn watch_termination_in_child(parent: libc::pid_t) -> Option<&'static Wakeup> {
    let own = Wakeup::new().ok();
    let wakeup = match (WAKEUP.get(), own) {
        // A write to the inherited descriptor would wake the parent, so it is replaced.
        (Some(wakeup), Some(own)) => wakeup.replace(&own).ok().map(|()| wakeup),
        // Leaked: the child exits after its one request.
        (None, Some(own)) => Some(&*Box::leak(Box::new(own))),
        (_, None) => None,
    };
    RECEIVED.store(0, SeqCst);
    PARENT.store(parent, SeqCst);
    WAKE.store(wakeup.map_or(-1, Wakeup::raw_write_end), SeqCst);
    let handler = on_termination as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // It cannot fail for this signal.
    let _ = set_action(libc::SIGTERM, handler);
    // The parent may have ended before the handler was installed.
    end_if_orphaned();
    wakeup
}

/// In a forked child: whether it has received SIGTERM.
pub(crate) fn child_is_terminated() -> bool {
    RECEIVED.load(SeqCst) > 0
}

/// The connection that a forked child serves.
static CONNECTION: AtomicI32 = AtomicI32::new(-1);

/// In a forked child: registers the connection that SIGTERM sets to close with a reset (SO_LINGER
/// of 0), or none. If the child is killed in the middle of a reply, the peer sees a reset, so that
/// the cut reply does not look complete.
pub(crate) fn reset_on_termination(connection: Option<BorrowedFd<'_>>) {
    CONNECTION.store(connection.map_or(-1, |connection| connection.as_raw_fd()), SeqCst);
    if child_is_terminated() {
        // SIGTERM came before the store above.
        set_reset(CONNECTION.load(SeqCst));
    }
}

fn set_reset(fd: RawFd) {
    if fd < 0 {
        return;
    }
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: setsockopt reads one linger; it is async-signal-safe, see signal-safety(7).
    unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        );
    }
}

fn end_if_orphaned() {
    // SAFETY: getppid takes nothing, _exit does not return; both are async-signal-safe.
    unsafe {
        if libc::getppid() != PARENT.load(SeqCst) {
            libc::_exit(1);
        }
    }
}

extern "C" fn on_termination(_signal: libc::c_int) {
    end_if_orphaned();
    RECEIVED.fetch_add(1, SeqCst);
    // SAFETY: errno is thread-local; the interrupted code may be about to read it.
    let errno = unsafe { *errno_location() };
    set_reset(CONNECTION.load(SeqCst));
    wake_raw(WAKE.load(SeqCst));
    // SAFETY: as above.
    unsafe { *errno_location() = errno };
}

extern "C" fn on_stop_signal(signal: libc::c_int) {
    LAST.store(signal, SeqCst);
    if RECEIVED.fetch_add(1, SeqCst) > BEGUN.load(SeqCst) {
        // The signal is blocked until this handler returns. Then the default action ends the
        // process. sigaction(2) cannot fail for a signal that has a handler.
        let _ = set_action(signal, libc::SIG_DFL);
        // SAFETY: raise takes a number; it is async-signal-safe.
        unsafe { libc::raise(signal) };
    }
    let fd: RawFd = WAKE.load(SeqCst);
    // SAFETY: errno is thread-local; the interrupted code may be about to read it.
    let errno = unsafe { *errno_location() };
    wake_raw(fd);
    // SAFETY: as above.
    unsafe { *errno_location() = errno };
}

pub(super) fn set_action(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: zeros are a valid sigaction: its fields are integers and nullable pointers.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: sigemptyset writes one set, and is async-signal-safe.
    unsafe { libc::sigemptyset(&mut action.sa_mask) };
    replace_action(signal, &action)
}

fn replace_action(signal: libc::c_int, action: &libc::sigaction) -> io::Result<()> {
    // SAFETY: sigaction reads the action, and is async-signal-safe. It installs a handler of this
    // file, the default action, or an action that was installed before.
    checked(unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) })?;
    Ok(())
}

/// The current action of a signal.
fn action(signal: libc::c_int) -> io::Result<libc::sigaction> {
    // SAFETY: zeros are a valid sigaction, see above; sigaction writes it.
    unsafe {
        let mut found: libc::sigaction = std::mem::zeroed();
        checked(libc::sigaction(signal, std::ptr::null(), &mut found))?;
        Ok(found)
    }
}

#[cfg(any(target_os = "android", target_os = "netbsd", target_os = "openbsd"))]
use libc::__errno as errno_location;
#[cfg(any(target_os = "linux", target_os = "dragonfly"))]
use libc::__errno_location as errno_location;
#[cfg(any(target_os = "macos", target_os = "ios", target_os = "freebsd"))]
use libc::__error as errno_location;

impl AsRawFd for SignalWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.wakeup().as_raw_fd()
    }
}
