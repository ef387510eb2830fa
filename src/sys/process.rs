//! One process per request: [fork(2)](https://man7.org/linux/man-pages/man2/fork.2.html) and what a
//! parent and its child owe each other.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::checked;
use super::signals::{set_action, watch_termination_in_child};
use super::socket::{PollInterest, wait_for};
use super::wakeup::Wakeup;
use crate::guard;
use crate::guard::log;

/// Who one is after a fork.
pub(crate) enum Forked {
    Parent(Child),
    Child(InChild),
}

/// Proof that this is a forked child, which [runs](InChild::run) its own life to the end and
/// nothing more of its parent.
#[derive(Debug)]
pub(crate) struct InChild {
    /// Readable when it has been told to end; absent where it had no descriptor for it.
    terminated: Option<&'static Wakeup>,
}

/// A child process of ours, not yet reaped.
#[derive(Debug)]
pub(crate) struct Child {
    pid: libc::pid_t,
    exit: ExitFd,
    /// Once it is reaped, and has exited by itself.
    exit_code: Option<i32>,
}

/// What becomes readable when a child ends.
#[derive(Debug)]
enum ExitFd {
    /// A descriptor of the process itself: when it is readable, the child can be reaped.
    Pidfd(OwnedFd),
    /// Where the system has none: a pipe whose other end the child holds. It closes a moment before
    /// the child can be reaped.
    Pipe(OwnedFd),
}

/// Makes a copy of this process that has one thread.
///
/// Sound where this is the only thread. Where it is not, the child may find a lock held for ever:
/// that is a hang and no undefined behaviour, since the C library keeps its own locks whole over a
/// fork; the caller has decided that it does not happen.
pub(crate) fn fork() -> io::Result<Forked> {
    let (exit, held) = pipe()?;
    // A parent that is told to stop tells its children at once: a child must not miss it because it
    // has not yet learnt to listen.
    let mask = block_termination()?;
    // SAFETY: getpid takes nothing and always succeeds.
    let parent = unsafe { libc::getpid() };
    // SAFETY: fork takes nothing. The child goes on in a copy of this thread's stack, with a copy of
    // its memory, and touches nothing of other threads'; `InChild` sees to the rest.
    let forked = checked(unsafe { libc::fork() });
    if let Ok(0) = forked {
        drop(exit);
        // Held open, and by nobody else, until this process ends in whatever way.
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
        // SAFETY: the descriptor is new and nobody else's.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = pid;
        None
    }
}

fn block_termination() -> io::Result<libc::sigset_t> {
    // SAFETY: a signal set of zeros is a valid one; sigemptyset and sigaddset write it, and
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
    // SAFETY: pthread_sigmask reads one set and may write no other to a null pointer.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

impl InChild {
    /// Closes a descriptor that was the parent's and that this child must not keep. What owns it is
    /// in the parent's state, none of which is used or dropped here any more.
    pub(crate) fn close(&self, fd: RawFd) {
        // SAFETY: close takes a number; by the above nobody here uses the descriptor again.
        unsafe { libc::close(fd) };
    }

    /// What becomes readable when it is told to end.
    pub(crate) fn terminated(&self) -> Option<&'static Wakeup> {
        self.terminated
    }

    /// Lives this process's whole life, and ends it with the code of that, or 1 after a panic:
    /// nothing unwinds into what is the parent's.
    pub(crate) fn run(self, life: impl FnOnce(&InChild) -> i32) -> ! {
        let code = guard::call(|| life(&self)).unwrap_or_else(|message| {
            log::error!("a child process panicked: {message}");
            1
        });
        self.exit(code)
    }

    /// Ends this process without running anything more of it, destructors and `atexit` included.
    fn exit(self, code: i32) -> ! {
        // SAFETY: _exit does not return and touches no memory.
        unsafe { libc::_exit(code) }
    }
}

/// A pipe: what to read from, what to write to; both are closed on exec.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    // SAFETY: pipe2 writes two descriptors into an array of two.
    checked(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    // SAFETY: as above.
    checked(unsafe { libc::pipe(fds.as_mut_ptr()) })?;
    // SAFETY: both descriptors are new and nobody else's.
    let [read, write] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    for fd in [&read, &write] {
        // SAFETY: fcntl sets a flag on a descriptor that we own.
        checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    Ok((read, write))
}

impl Child {
    /// Reaps it if it has ended; true when it is gone. It alone is waited for, never another child.
    pub(crate) fn reap(&mut self) -> bool {
        let mut patience = match &self.exit {
            ExitFd::Pidfd(_) => 0,
            // Closed, and about to be reaped: worth a moment, of which the loop cannot be told.
            ExitFd::Pipe(pipe) => {
                let closed = wait_for(&[(pipe.as_fd(), PollInterest::Read)], Some(Duration::ZERO));
                if closed.is_ok_and(|closed| closed != 0) { 100 } else { 0 }
            }
        };
        loop {
            // An error where someone else has reaped it, or SIGCHLD is ignored: gone all the same.
            let gone = self.wait(libc::WNOHANG).unwrap_or(true);
            if gone || patience == 0 {
                return gone;
            }
            patience -= 1;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What it has exited with; `None` while it is not reaped, and where it did not exit by itself or
    /// someone else has reaped it.
    pub(crate) fn exit_code(&self) -> Option<i32> {
        self.exit_code
    }

    /// Asks it to finish what it is doing.
    pub(crate) fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Ends it at once and reaps it.
    pub(crate) fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        // It is as good as dead, so this takes no longer than its exit.
        while self.wait(0).is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {}
    }

    /// Waits for its end; whether it has been reaped. It is named by its descriptor where there is
    /// one: its number may be another process's, once someone else has reaped it.
    fn wait(&mut self, options: libc::c_int) -> io::Result<bool> {
        #[cfg(target_os = "linux")]
        if let ExitFd::Pidfd(fd) = &self.exit {
            // SAFETY: a siginfo of zeros is a valid one.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            let (id, options) = (fd.as_raw_fd() as libc::id_t, options | libc::WEXITED);
            // SAFETY: waitid writes one siginfo.
            match checked(unsafe { libc::waitid(libc::P_PIDFD, id, &mut info, options) }) {
                Ok(_) => {
                    // SAFETY: what waitid has filled in, or left at zero, is a pid and a status.
                    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
                    if pid != 0 && info.si_code == libc::CLD_EXITED {
                        self.exit_code = Some(status);
                    }
                    return Ok(pid != 0);
                }
                // A kernel that knows such descriptors, but not here: Linux 5.3.
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

    /// Signals it, by its descriptor where there is one, see
    /// [pidfd_send_signal(2)](https://man7.org/linux/man-pages/man2/pidfd_send_signal.2.html).
    fn signal(&self, signal: libc::c_int) {
        #[cfg(target_os = "linux")]
        if let ExitFd::Pidfd(fd) = &self.exit {
            let no_info = std::ptr::null::<libc::siginfo_t>();
            // SAFETY: pidfd_send_signal takes numbers, and reads nothing from a null pointer.
            let sent = checked(unsafe {
                libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, no_info, 0)
            } as libc::c_int);
            // Known wherever pidfd_open is; a sandbox may forbid it all the same.
            let refused = [libc::ENOSYS, libc::EPERM];
            if !sent.is_err_and(|error| error.raw_os_error().is_some_and(|e| refused.contains(&e)))
            {
                return;
            }
        }
        // SAFETY: kill takes two numbers. The pid is a child of ours that is not reaped here, so as
        // long as nobody else reaps it, it names no other process.
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

/// How often, and how long after each other, it is looked whether other threads are gone.
const LOOKS: u32 = 100;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// Whether this is the only thread of its process. Where it is not, it is looked again for a tenth of
/// a second: a thread that has been joined, see
/// [pthread_join(3)](https://man7.org/linux/man-pages/man3/pthread_join.3.html), is the kernel's for a
/// moment longer.
///
/// # Errors
///
/// Where Linux does not tell. Other systems never do, and there the answer is yes.
pub(crate) fn is_only_thread() -> io::Result<bool> {
    becomes_so(|| {
        #[cfg(target_os = "linux")]
        return match std::fs::read_dir("/proc/self/task") {
            Ok(tasks) => Ok(tasks.count() == 1),
            Err(_) => can_unshare_threads(),
        };
        #[cfg(not(target_os = "linux"))]
        return Ok(true);
    })
}

/// Looks until it is so, or for a while.
fn becomes_so(mut look: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    for _ in 1..LOOKS {
        if look()? {
            return Ok(true);
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    look()
}

/// Whether this is the only thread, without `/proc`: unshare(2) takes CLONE_THREAD, and does nothing,
/// in a process of one thread, and answers EINVAL in one of several, see
/// [unshare(2)](https://man7.org/linux/man-pages/man2/unshare.2.html). A sandbox may forbid the call.
#[cfg(target_os = "linux")]
fn can_unshare_threads() -> io::Result<bool> {
    // SAFETY: unshare takes a number, and with this one it changes nothing.
    match checked(unsafe { libc::unshare(libc::CLONE_THREAD) }) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// In a child: a terminal sends SIGINT to the whole group, so that is for the parent to act on; a
/// broken pipe is an error and no end; and it does not outlive its parent.
///
/// SIGINT is handled by doing nothing and not ignored, since execve(2) keeps what is ignored: a program
/// that the child starts would ignore it, too. Where it was ignored already, it stays so.
fn settle_signals() {
    if !is_ignored(libc::SIGINT) {
        let handler = do_nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // It cannot fail for this signal.
        let _ = set_action(libc::SIGINT, handler);
    }
    // SAFETY: signal takes a number and a constant, prctl numbers; they touch no memory of ours.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        #[cfg(target_os = "linux")]
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
    }
}

extern "C" fn do_nothing(_signal: libc::c_int) {}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: a sigaction of zeros is a valid one; sigaction sets none where it is given a null
    // pointer, and writes the one that there is.
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
    fn a_thread_that_is_about_to_be_gone_is_waited_for_and_one_that_stays_is_not() {
        let mut looks = 0;
        let mut gone_after = |count| {
            looks = 0;
            let gone = becomes_so(|| {
                looks += 1;
                Ok(looks > count)
            });
            (gone.unwrap(), looks)
        };
        assert_eq!(gone_after(0), (true, 1));
        assert_eq!(gone_after(7), (true, 8));
        assert_eq!(gone_after(u32::MAX), (false, LOOKS));
        assert!(becomes_so(|| Err(io::ErrorKind::PermissionDenied.into())).is_err());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn unshare_tells_that_there_are_other_threads() {
        // This one, and at least the runner's.
        if let Ok(only) = can_unshare_threads() {
            assert!(!only);
        }
        assert!(!is_only_thread().unwrap());
    }
}
