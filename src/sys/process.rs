//! One process per request: [fork(2)](https://man7.org/linux/man-pages/man2/fork.2.html) and
//! the signals and the exit of the child.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use super::checked;
use super::signals::{set_action, watch_termination_in_child};
use super::socket::{PollInterest, wait_for};
use super::wakeup::Wakeup;
use crate::guard;
use crate::guard::log;

/// The result of [`fork`]: which of the two processes this is.
pub(crate) enum Forked {
    Parent(Child),
    Child(InChild),
}

/// Whether this process is a child of [`fork`].
static IS_CHILD: AtomicBool = AtomicBool::new(false);

/// Whether this process is a child that [`fork`] has made.
pub(crate) fn is_forked_child() -> bool {
    IS_CHILD.load(Relaxed)
}

/// Proof that this process is a forked child. It [runs](InChild::run) one function and then exits;
/// it never returns into code of the parent.
#[derive(Debug)]
pub(crate) struct InChild {
    /// Readable after SIGTERM; `None` if no descriptor was left for it.
    terminated: Option<&'static Wakeup>,
}

/// A child process of this process.
#[derive(Debug)]
pub(crate) struct Child {
    pid: libc::pid_t,
    exit: ExitFd,
    /// Set when the child is reaped and was not ended by a signal.
    exit_code: Option<i32>,
}

/// A descriptor that becomes readable when a child ends.
#[derive(Debug)]
enum ExitFd {
    /// A pidfd. When it is readable, the child can be reaped.
    Pidfd(OwnedFd),
    /// The read end of a pipe, where the system has no pidfd. The child holds the write end, which
    /// closes a moment before the child can be reaped.
    Pipe(OwnedFd),
}

/// Forks this process. The child has one thread.
///
/// Sound if this is the only thread. With other threads, a lock that one of them holds stays locked
/// in the child without limit. This is a hang and not undefined behaviour, since the C library
/// keeps its own locks consistent over a fork. The caller makes sure that it does not happen.
pub(crate) fn fork() -> io::Result<Forked> {
    let (exit, held) = pipe()?;
    // A parent that stops sends SIGTERM to its children at once. The signal is blocked until the
    // child has installed its handler, so the child does not lose it.
    let mask = block_termination()?;
    // SAFETY: getpid takes nothing and always succeeds.
    let parent = unsafe { libc::getpid() };
    // SAFETY: fork takes nothing. The child continues on a copy of the stack of this thread, with a
    // copy of the memory, and uses nothing of other threads; `InChild` ensures that it exits.
    let forked = checked(unsafe { libc::fork() });
    if let Ok(0) = forked {
        IS_CHILD.store(true, Relaxed);
        drop(exit);
        // Only this process holds it, and keeps it open until it ends.
        std::mem::forget(held);
        settle_signals();
        let terminated = watch_termination_in_child(parent);
        restore_mask(&mask);
        return Ok(Forked::Child(InChild { terminated }));
    }
    restore_mask(&mask);
    let pid = forked?;
    let exit = pidfd(pid).map_or(ExitFd::Pipe(exit), ExitFd::Pidfd);
    Ok(Forked::Parent(Child { pid, exit, exit_code: None }))
}

/// A descriptor of a child, see
/// [pidfd_open(2)](https://man7.org/linux/man-pages/man2/pidfd_open.2.html).
fn pidfd(pid: libc::pid_t) -> Option<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: pidfd_open takes two numbers; it sets close-on-exec by itself.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        // SAFETY: the descriptor is new and has no other owner.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = pid;
        None
    }
}

fn block_termination() -> io::Result<libc::sigset_t> {
    // SAFETY: zeros are a valid signal set; sigemptyset and sigaddset write it, and
    // pthread_sigmask reads one and writes the other.
    unsafe {
        let (mut set, mut before): (libc::sigset_t, libc::sigset_t) =
            (std::mem::zeroed(), std::mem::zeroed());
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        match libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before) {
            0 => Ok(before),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn restore_mask(mask: &libc::sigset_t) {
    // SAFETY: pthread_sigmask reads one set, and writes none because the last pointer is null.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

impl InChild {
    /// Closes a descriptor that was inherited from the parent and that this child must not keep.
    /// Its owner belongs to the state of the parent, which the child never uses or drops.
    pub(crate) fn close(&self, fd: RawFd) {
        // SAFETY: close takes a number; as said above, this process does not use the descriptor
        // again.
        unsafe { libc::close(fd) };
    }

    /// The descriptor that is readable after SIGTERM.
    pub(crate) fn terminated(&self) -> Option<&'static Wakeup> {
        self.terminated
    }

    /// Runs `life` and exits with the code that it returns, or with 1 after a panic. Nothing
    /// unwinds into code of the parent.
    pub(crate) fn run(self, life: impl FnOnce(&InChild) -> i32) -> ! {
        let code = guard::call(|| life(&self)).unwrap_or_else(|message| {
            log::error!("a child process panicked: {message}");
            1
        });
        self.exit(code)
    }

    /// Ends this process at once, without destructors and `atexit` functions.
    fn exit(self, code: i32) -> ! {
        // SAFETY: _exit does not return and touches no memory.
        unsafe { libc::_exit(code) }
    }
}

/// Makes a pipe: its read end and its write end, both close-on-exec.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    // SAFETY: pipe2 writes two descriptors into an array of two.
    checked(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    // SAFETY: as above.
    checked(unsafe { libc::pipe(fds.as_mut_ptr()) })?;
    // SAFETY: both descriptors are new and have no other owner.
    let [read, write] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    for fd in [&read, &write] {
        // SAFETY: fcntl sets a flag of a descriptor that this function owns.
        checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    Ok((read, write))
}

impl Child {
    /// Reaps the child if it has ended; returns whether it is gone. Never reaps another child.
    pub(crate) fn reap(&mut self) -> bool {
        let mut checks_left = match &self.exit {
            ExitFd::Pidfd(_) => 0,
            // The pipe is closed, so the child can be reaped soon. The loop gets no event for that,
            // so this waits for it, at most 100 ms.
            ExitFd::Pipe(pipe) => {
                let closed = wait_for(&[(pipe.as_fd(), PollInterest::Read)], Some(Duration::ZERO));
                if closed.is_ok_and(|closed| closed != 0) { 100 } else { 0 }
            }
        };
        loop {
            // An error means that other code has reaped it, or that SIGCHLD is ignored: it is gone
            // too.
            let gone = self.wait(libc::WNOHANG).unwrap_or(true);
            if gone || checks_left == 0 {
                return gone;
            }
            checks_left -= 1;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The exit code; `None` if the child is not reaped, was ended by a signal, or was reaped by
    /// other code.
    pub(crate) fn exit_code(&self) -> Option<i32> {
        self.exit_code
    }

    /// Sends SIGTERM: the child finishes its request.
    pub(crate) fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Sends SIGKILL and reaps the child.
    pub(crate) fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        // SIGKILL cannot be caught, so this waits only for the exit.
        while self.wait(0).is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {}
    }

    /// Waits for the end of the child; returns whether it was reaped. Uses the pidfd if there is
    /// one: the pid may belong to another process after other code has reaped the child.
    fn wait(&mut self, options: libc::c_int) -> io::Result<bool> {
        #[cfg(target_os = "linux")]
        if let ExitFd::Pidfd(fd) = &self.exit {
            // SAFETY: zeros are a valid siginfo.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            let (id, options) = (fd.as_raw_fd() as libc::id_t, options | libc::WEXITED);
            // SAFETY: waitid writes one siginfo.
            match checked(unsafe { libc::waitid(libc::P_PIDFD, id, &mut info, options) }) {
                Ok(_) => {
                    // SAFETY: waitid has written a pid and a status, or has left both at zero.
                    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
                    if pid != 0 && info.si_code == libc::CLD_EXITED {
                        self.exit_code = Some(status);
                    }
                    return Ok(pid != 0);
                }
                // Linux 5.3 has pidfd_open but not P_PIDFD.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
        let mut status = 0;
        // SAFETY: waitpid writes one number.
        let reaped = checked(unsafe { libc::waitpid(self.pid, &mut status, options) })? != 0;
        if reaped && libc::WIFEXITED(status) {
            self.exit_code = Some(libc::WEXITSTATUS(status));
        }
        Ok(reaped)
    }

    /// Sends a signal to the child, by its pidfd if there is one, see
    /// [pidfd_send_signal(2)](https://man7.org/linux/man-pages/man2/pidfd_send_signal.2.html).
    fn signal(&self, signal: libc::c_int) {
        #[cfg(target_os = "linux")]
        if let ExitFd::Pidfd(fd) = &self.exit {
            let no_info = std::ptr::null::<libc::siginfo_t>();
            // SAFETY: pidfd_send_signal takes numbers, and reads nothing from a null pointer.
            let sent = checked(unsafe {
                libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, no_info, 0)
            } as libc::c_int);
            // Every kernel with pidfd_open has this call too, but a sandbox may forbid it.
            let refused = [libc::ENOSYS, libc::EPERM];
            if !sent.is_err_and(|error| error.raw_os_error().is_some_and(|e| refused.contains(&e)))
            {
                return;
            }
        }
        // SAFETY: kill takes two numbers. The pid is that of a child that is not reaped here, so it
        // names no other process unless other code reaps the child.
        unsafe { libc::kill(self.pid, signal) };
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.exit {
            ExitFd::Pidfd(fd) | ExitFd::Pipe(fd) => fd.as_fd(),
        }
    }
}

/// How often, and at which interval, [`is_only_thread`] checks whether other threads have ended.
const CHECKS: u32 = 100;
const CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// Whether this is the only thread of its process. If there are others, it checks again for up to
/// 0.1 seconds: after [pthread_join(3)](https://man7.org/linux/man-pages/man3/pthread_join.3.html) the
/// kernel still counts the thread for a moment.
///
/// Systems other than Linux are not asked; there the result is `true`.
///
/// # Errors
///
/// If Linux does not report the number of threads.
pub(crate) fn is_only_thread() -> io::Result<bool> {
    check_repeatedly(|| {
        #[cfg(target_os = "linux")]
        return match std::fs::read_dir("/proc/self/task") {
            Ok(tasks) => Ok(tasks.count() == 1),
            Err(_) => can_unshare_threads(),
        };
        #[cfg(not(target_os = "linux"))]
        return Ok(true);
    })
}

/// Calls `check` until it returns true, at most [`CHECKS`] times; returns its last result.
fn check_repeatedly(mut check: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    for _ in 1..CHECKS {
        if check()? {
            return Ok(true);
        }
        std::thread::sleep(CHECK_INTERVAL);
    }
    check()
}

/// Whether this is the only thread, without `/proc`: unshare(2) with CLONE_THREAD does nothing in a
/// process with one thread, and fails with EINVAL in a process with several, see
/// [unshare(2)](https://man7.org/linux/man-pages/man2/unshare.2.html). A sandbox may forbid the call.
#[cfg(target_os = "linux")]
fn can_unshare_threads() -> io::Result<bool> {
    // SAFETY: unshare takes a number, and changes nothing with this flag.
    match checked(unsafe { libc::unshare(libc::CLONE_THREAD) }) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sets the signals of a child. SIGINT does nothing: a terminal sends it to the whole process
/// group, and the parent acts on it. SIGPIPE is ignored, so that a broken pipe is an error. On
/// Linux, the child gets SIGTERM when its parent ends.
///
/// SIGINT gets an empty handler and is not ignored, since an ignored signal stays ignored over
/// execve(2), also in a program that the child starts. If SIGINT was ignored before, it stays
/// ignored.
fn settle_signals() {
    if !is_ignored(libc::SIGINT) {
        let handler = do_nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // sigaction(2) cannot fail for this signal.
        let _ = set_action(libc::SIGINT, handler);
    }
    // SAFETY: signal takes a number and a constant, prctl numbers; they access no memory of this
    // process.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        #[cfg(target_os = "linux")]
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
    }
}

extern "C" fn do_nothing(_signal: libc::c_int) {}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: zeros are a valid sigaction; with a null pointer sigaction sets no action, and writes
    // the current one.
    let action = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action);
        action
    };
    action.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_for_other_threads_repeats_until_they_have_ended_or_its_limit_is_reached() {
        let mut checks = 0;
        let mut gone_after = |count| {
            checks = 0;
            let gone = check_repeatedly(|| {
                checks += 1;
                Ok(checks > count)
            });
            (gone.unwrap(), checks)
        };
        assert_eq!(gone_after(0), (true, 1));
        assert_eq!(gone_after(7), (true, 8));
        assert_eq!(gone_after(u32::MAX), (false, CHECKS));
        assert!(check_repeatedly(|| Err(io::ErrorKind::PermissionDenied.into())).is_err());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn in_a_process_with_several_threads_unshare_reports_them() {
        // There are this thread and at least the one of the test runner.
        if let Ok(only) = can_unshare_threads() {
            assert!(!only);
        }
        assert!(!is_only_thread().unwrap());
    }
}
