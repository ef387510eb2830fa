//! One process per request: [fork(2)](https://man7.org/linux/man-pages/man2/fork.2.html) and what a
//! parent and its child owe each other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::checked;
use super::signals::watch_termination_in_child;
use super::wakeup::Wakeup;

/// Who one is after a fork.
pub(crate) enum Forked {
    Parent(Child),
    Child(ChildProcess),
}

/// Proof that this is a forked child, which ends by [`exit`](ChildProcess::exit) and runs nothing
/// more of its parent.
#[derive(Debug)]
pub(crate) struct ChildProcess(());

/// A child process of ours, not yet reaped.
#[derive(Debug)]
pub(crate) struct Child {
    pid: libc::pid_t,
    /// Readable when the child has ended.
    exit: OwnedFd,
}

/// Makes a copy of this process that has one thread.
///
/// Sound where this is the only thread. Where it is not, the child may find a lock held for ever:
/// that is a hang and no undefined behaviour, since the C library keeps its own locks whole over a
/// fork; the caller has decided that it does not happen.
pub(crate) fn fork() -> io::Result<Forked> {
    let (exit, held) = pipe()?;
    // SAFETY: fork takes nothing. The child goes on in a copy of this thread's stack, with a copy of
    // its memory, and touches nothing of other threads'; `ChildProcess` sees to the rest.
    match checked(unsafe { libc::fork() })? {
        0 => {
            drop(exit);
            // Held open, and by nobody else, until this process ends in whatever way.
            std::mem::forget(held);
            settle_signals();
            Ok(Forked::Child(ChildProcess(())))
        }
        pid => Ok(Forked::Parent(Child { pid, exit })),
    }
}

impl ChildProcess {
    /// Closes a descriptor that was the parent's and that this child must not keep. What owns it is
    /// in the parent's state, none of which is used or dropped here any more.
    pub(crate) fn close(&self, fd: RawFd) {
        // SAFETY: close takes a number; by the above nobody here uses the descriptor again.
        unsafe { libc::close(fd) };
    }

    /// From now on SIGTERM is noted, and wakes who waits for what is returned.
    pub(crate) fn watch_termination(&self) -> io::Result<&'static Wakeup> {
        watch_termination_in_child()
    }

    /// Ends this process without running anything more of it, destructors and `atexit` included.
    pub(crate) fn exit(self, code: i32) -> ! {
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
    Ok((read, write))
}

impl Child {
    /// Reaps it if it has ended; true when it is gone. It alone is waited for, never another child.
    pub(crate) fn reap(&mut self) -> bool {
        // SAFETY: waitpid may write no status to a null pointer.
        let reaped = unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), libc::WNOHANG) };
        // Negative where someone else has reaped it, or SIGCHLD is ignored: it is gone all the same.
        reaped != 0
    }

    /// Asks it to finish what it is doing.
    pub(crate) fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Ends it at once and reaps it.
    pub(crate) fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        // SAFETY: waitpid may write no status to a null pointer. The child is as good as dead, so
        // this takes no longer than its exit.
        while unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) } == -1
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill takes two numbers. The pid is a child of ours that is not reaped, so it
        // names no other process.
        unsafe { libc::kill(self.pid, signal) };
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.exit.as_fd()
    }
}

/// How many threads this process has, where the system tells.
pub(crate) fn thread_count() -> Option<usize> {
    if cfg!(target_os = "linux") {
        std::fs::read_dir("/proc/self/task").ok().map(Iterator::count)
    } else {
        None
    }
}

/// In a child: a terminal sends SIGINT to the whole group, so that is for the parent to act on; a
/// broken pipe is an error and no end; and it does not outlive its parent.
fn settle_signals() {
    // SAFETY: signal takes a number and a constant, prctl numbers; they touch no memory of ours.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        #[cfg(target_os = "linux")]
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
    }
}
