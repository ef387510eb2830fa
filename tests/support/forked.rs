//! A test's own program, started again as a process of one thread: what a forking server asks for.
//!
//! The runner of Rust's tests has a thread of its own, so the process that is started forks before it
//! plays its role: the copy has one thread, and nobody else's locks.

#![allow(dead_code)] // each test file uses a part of it
#![allow(unreachable_pub)] // a module of a test is public to nobody
#![allow(unsafe_code)] // no crate of the tests can fork or send signals

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::panic::catch_unwind;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

/// Set where this program is to play a role.
const ROLE: &str = "SOCKETSERVER_TEST_ROLE";

/// How long anything may take that is bound to happen.
const DEADLINE: Duration = Duration::from_secs(20);

/// What each line begins with that a role tells, so that it is told from the runner's.
const MARK: &str = "told: ";

/// A process that plays a role. Dropped, it is killed with all its children.
pub struct Process {
    child: Child,
    told: Receiver<String>,
}

/// Starts this program in a role.
pub fn start(role: &str) -> Process {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "be_a_process", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines {
            if let Some((_, told)) = line.split_once(MARK) {
                // A test that has heard enough no longer listens.
                let _ = tell.send(told.to_owned());
            }
        }
    });
    Process { child, told }
}

impl Process {
    /// The next thing that it tells.
    pub fn told(&self) -> String {
        self.told.recv_timeout(DEADLINE).expect("told in time")
    }

    /// The next thing that it tells, which begins with `name`: what follows that.
    pub fn told_of(&self, name: &str) -> String {
        let told = self.told();
        let rest = told.strip_prefix(name).unwrap_or_else(|| panic!("{name}, and not {told}"));
        rest.trim_start().to_owned()
    }

    /// It tells nothing more, and has ended well.
    pub fn expect_end(mut self) {
        assert_eq!(self.told.recv_timeout(DEADLINE), Err(mpsc::RecvTimeoutError::Disconnected));
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: kill takes two numbers; the group is that of our child, which is not reaped or was
        // the last of it.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// Asks a process to stop.
pub fn terminate(pid: &str) {
    // SAFETY: kill takes two numbers.
    unsafe { libc::kill(pid.parse().unwrap(), libc::SIGTERM) };
}

/// Tells the test something.
pub fn tell(text: impl std::fmt::Display) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{MARK}{text}").unwrap();
    stdout.flush().unwrap();
}

/// Where this program was started to play a role, plays it, and goes no further.
pub fn play(roles: fn(&str)) {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    // SAFETY: fork takes nothing. The other thread, the runner's, waits for this one and holds no
    // lock.
    match unsafe { libc::fork() } {
        0 => {
            let played = catch_unwind(|| roles(&role));
            // SAFETY: _exit does not return and touches no memory.
            unsafe { libc::_exit(if played.is_ok() { 0 } else { 101 }) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: waitpid writes one number.
            assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
            std::process::exit(libc::WEXITSTATUS(status) + libc::WTERMSIG(status));
        }
    }
}

/// How many descriptors this process has.
pub fn descriptors() -> usize {
    // One of them is the directory's.
    std::fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// The children of this process, zombies included.
pub fn children() -> Vec<String> {
    let list = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    list.split_whitespace().map(str::to_owned).collect()
}
