//! Starts the test program again as a process with one thread, as a forking server needs it.
//!
//! The test harness of Rust runs each test on a thread of its own, so the started process forks
//! before it runs its role: the child has one thread, and no other thread holds a lock.

#![allow(dead_code)] // each test file uses a part of it
#![allow(unreachable_pub)] // nothing outside the test file can use a module of it
#![allow(unsafe_code)] // no crate of the tests can fork or send signals

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::panic::catch_unwind;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

/// The environment variable that holds the role that this program shall run.
const ROLE: &str = "SOCKETSERVER_TEST_ROLE";

/// The longest that a test waits for something that must happen.
const DEADLINE: Duration = Duration::from_secs(20);

/// The prefix of the lines that a role prints, which distinguishes them from the harness's lines.
const MARK: &str = "role: ";

/// A process that runs a role. Dropping it kills the process and all its children.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
}

/// Starts this program in a role.
pub fn start(role: &str) -> Process {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "entry_point_of_child_processes", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let printed = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in printed {
            if let Some((_, text)) = line.split_once(MARK) {
                // The test may have dropped the receiver.
                let _ = sender.send(text.to_owned());
            }
        }
    });
    Process { child, lines }
}

impl Process {
    /// The next line that the role prints.
    pub fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("a line within the deadline")
    }

    /// The next line that the role prints, without the `name` that it begins with.
    pub fn line_after(&self, name: &str) -> String {
        let line = self.line();
        let rest = line.strip_prefix(name).unwrap_or_else(|| panic!("expected {name}, got {line}"));
        rest.trim_start().to_owned()
    }

    /// The role prints nothing more, and its process exits with success.
    pub fn expect_end(mut self) {
        assert_eq!(self.lines.recv_timeout(DEADLINE), Err(mpsc::RecvTimeoutError::Disconnected));
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: kill takes two numbers; the group is that of our child, which is either not yet
        // reaped or was its last member.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// Sends SIGTERM to a process.
pub fn terminate(pid: &str) {
    signal(pid, libc::SIGTERM);
}

/// Sends a signal to a process.
pub fn signal(pid: &str, signal: libc::c_int) {
    // SAFETY: kill takes two numbers.
    unsafe { libc::kill(pid.parse().unwrap(), signal) };
}

/// Prints a line for the test; called by a role.
pub fn print_line(text: impl std::fmt::Display) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{MARK}{text}").unwrap();
    stdout.flush().unwrap();
}

/// If this program was started with a role, runs it and exits; otherwise does nothing.
pub fn run_role(roles: fn(&str)) {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    // SAFETY: fork takes no arguments. The other thread, that of the harness, waits for this one
    // and holds no lock.
    match unsafe { libc::fork() } {
        0 => {
            let result = catch_unwind(|| roles(&role));
            // SAFETY: _exit does not return and touches no memory.
            unsafe { libc::_exit(if result.is_ok() { 0 } else { 101 }) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: waitpid writes one number.
            assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
            std::process::exit(libc::WEXITSTATUS(status) + libc::WTERMSIG(status));
        }
    }
}

/// The number of descriptors that this process has open.
pub fn descriptors() -> usize {
    // One of them belongs to the open directory.
    std::fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// The children of this process, zombies included.
pub fn children() -> Vec<String> {
    let list = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    list.split_whitespace().map(str::to_owned).collect()
}
