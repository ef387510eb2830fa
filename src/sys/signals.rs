//! SIGINT and SIGTERM as something a loop can wait for, see
//! [signal-safety(7)](https://man7.org/linux/man-pages/man7/signal-safety.7.html).
//!
//! **Invariant:** the handler stores a number, writes to a descriptor that is never closed, and in a
//! forked child sets an option of the connection that the child keeps until it has taken it back. It
//! takes no lock and allocates nothing, and no thread exists for its sake.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::checked;
use super::wakeup::{Wakeup, wake_raw};

/// How many stop signals have come while they were watched for, and the last one of them.
static RECEIVED: AtomicUsize = AtomicUsize::new(0);
static LAST: AtomicI32 = AtomicI32::new(0);

/// How many had come when a watch was last begun: the second one after that ends the process.
static BEGUN: AtomicUsize = AtomicUsize::new(0);

/// How many have come that a watcher has acted on.
static ANSWERED: AtomicUsize = AtomicUsize::new(0);

/// What the handler writes to; -1 until there is something.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// What every loop waits for. It lives as long as the process, so the handler can never write to a
/// descriptor that has become someone else's.
static WAKEUP: OnceLock<Wakeup> = OnceLock::new();

const STOP_SIGNALS: [libc::c_int; 2] = [libc::SIGINT, libc::SIGTERM];

/// What is to be put back when nobody watches any more.
static WATCHED: Mutex<Watched> = Mutex::new(Watched { watchers: 0, before: [None; 2] });

struct Watched {
    watchers: usize,
    /// The action of each stop signal before it was watched for; `None` for one that is not.
    before: [Option<libc::sigaction>; STOP_SIGNALS.len()],
}

fn watched() -> MutexGuard<'static, Watched> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One watcher's view: which signals it has not acted on yet. The signals act as before when the
/// last watcher is dropped.
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
            // Someone else may handle it by now.
            if let Some(before) = before.take()
                && action(signal).is_ok_and(|now| now.sa_sigaction == handler())
            {
                // It cannot fail for an action that was in force before.
                let _ = replace_action(signal, &before);
            }
        }
        drop(watched);
        // One that came when no loop ran, and that none has run since to act on, is not lost.
        let received = RECEIVED.load(SeqCst);
        if ANSWERED.swap(received, SeqCst) != received {
            // SAFETY: raise takes a number.
            unsafe { libc::raise(LAST.load(SeqCst)) };
        }
    }
}

impl SignalWatch {
    /// Whether a stop signal has come since the last call that said so.
    pub(crate) fn take(&mut self) -> bool {
        let received = RECEIVED.load(SeqCst);
        let is_new = std::mem::replace(&mut self.seen, received) != received;
        if is_new {
            ANSWERED.fetch_max(received, SeqCst);
        }
        is_new
    }

    /// A loop has stopped: that is what the stop signals that came meanwhile have asked for.
    pub(crate) fn answer(&self) {
        ANSWERED.fetch_max(RECEIVED.load(SeqCst), SeqCst);
    }

    /// Whether a stop signal has come that [`take`](SignalWatch::take) has not told of.
    pub(crate) fn is_due(&self) -> bool {
        RECEIVED.load(SeqCst) != self.seen
    }

    /// Readable from the first stop signal on, for good.
    pub(crate) fn wakeup(&self) -> &'static Wakeup {
        WAKEUP.get().expect("a watch is made after its descriptor")
    }
}

/// From now on SIGINT and SIGTERM are counted and wake whoever waits, until the watch is dropped; the
/// second one ends the process, as if it had never been watched for. One that the process was started
/// to ignore stays ignored.
pub(crate) fn watch_stop_signals() -> io::Result<SignalWatch> {
    if WAKEUP.get().is_none() {
        // Two threads here at once make two, of which one is dropped unused.
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

/// The process that a forked child was forked by.
static PARENT: AtomicI32 = AtomicI32::new(0);

/// In a forked child: what its parent has set up is not its own. It watches SIGTERM alone, with a
/// descriptor of its own, and may be told to end any number of times. Without a descriptor left it is
/// told all the same, and finds out when it next looks. When its parent is no more, nobody is left to
/// see to its deadline, and it ends at once.
pub(super) fn watch_termination_in_child(parent: libc::pid_t) -> Option<&'static Wakeup> {
    let own = Wakeup::new().ok();
    let wakeup = match (WAKEUP.get(), own) {
        // The parent's, which would wake the parent, gives way to the child's.
        (Some(wakeup), Some(own)) => wakeup.replace(&own).ok().map(|()| wakeup),
        // Lives as long as the child, which is as long as its one request.
        (None, Some(own)) => Some(&*Box::leak(Box::new(own))),
        (_, None) => None,
    };
    RECEIVED.store(0, SeqCst);
    PARENT.store(parent, SeqCst);
    WAKE.store(wakeup.map_or(-1, Wakeup::raw_write_end), SeqCst);
    let handler = on_termination as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // It cannot fail for this signal.
    let _ = set_action(libc::SIGTERM, handler);
    // The parent may have ended before there was anyone to tell.
    end_if_orphaned();
    wakeup
}

/// In a forked child: whether it has been told to end.
pub(crate) fn child_is_terminated() -> bool {
    RECEIVED.load(SeqCst) > 0
}

/// The connection that a forked child serves.
static CONNECTION: AtomicI32 = AtomicI32::new(-1);

/// In a forked child: once it is told to end, its connection is closed by a reset, however it is
/// closed, until it is [`None`] here: a child that is killed in the middle of an answer does not
/// leave one that looks whole.
pub(crate) fn reset_on_termination(connection: Option<BorrowedFd<'_>>) {
    CONNECTION.store(connection.map_or(-1, |connection| connection.as_raw_fd()), SeqCst);
    if child_is_terminated() {
        // It has been told just before.
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
    // SAFETY: errno is this thread's own; the interrupted code may be about to read it.
    let errno = unsafe { *errno_location() };
    set_reset(CONNECTION.load(SeqCst));
    wake_raw(WAKE.load(SeqCst));
    // SAFETY: as above.
    unsafe { *errno_location() = errno };
}

extern "C" fn on_stop_signal(signal: libc::c_int) {
    LAST.store(signal, SeqCst);
    if RECEIVED.fetch_add(1, SeqCst) > BEGUN.load(SeqCst) {
        // The default action, which ends the process, is taken when this handler returns: until
        // then the signal is blocked. Failure is impossible for a signal that was handled.
        let _ = set_action(signal, libc::SIG_DFL);
        // SAFETY: raise takes a number; it is async-signal-safe.
        unsafe { libc::raise(signal) };
    }
    let fd: RawFd = WAKE.load(SeqCst);
    // SAFETY: errno is this thread's own; the interrupted code may be about to read it.
    let errno = unsafe { *errno_location() };
    wake_raw(fd);
    // SAFETY: as above.
    unsafe { *errno_location() = errno };
}

pub(super) fn set_action(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: a sigaction of zeros is a valid one; all its fields are integers or pointers that
    // may be null.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: sigemptyset writes the set that it is given, and is async-signal-safe.
    unsafe { libc::sigemptyset(&mut action.sa_mask) };
    replace_action(signal, &action)
}

fn replace_action(signal: libc::c_int, action: &libc::sigaction) -> io::Result<()> {
    // SAFETY: sigaction reads the action, and is async-signal-safe. What it installs is a handler of
    // this file, the default action, or what was installed before.
    checked(unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) })?;
    Ok(())
}

/// What a signal does now.
fn action(signal: libc::c_int) -> io::Result<libc::sigaction> {
    // SAFETY: a sigaction of zeros is a valid one, see above; sigaction writes it.
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
