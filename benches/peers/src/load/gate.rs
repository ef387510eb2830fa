//! Stops the server while messages are sent, so that it finds all of them at once: the number of
//! events per wait then does not depend on timing.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::PATIENCE;
use crate::sys;

/// A process that is stopped and continued. It runs again after a drop of this value.
///
/// A stop interrupts the server's wait for events, which costs a turn without events. A measurement
/// that counts what a server does stops it equally often in the run that is subtracted.
pub(super) struct Gate {
    pid: u32,
}

impl Gate {
    pub(super) fn new(pid: u32) -> Self {
        Self { pid }
    }

    /// Stops the server when it is idle.
    pub(super) fn close(&self) -> Result<()> {
        self.await_state(&['S'])?;
        sys::signal(self.pid, libc::SIGSTOP)?;
        self.await_state(&['T', 't'])
    }

    /// Continues the server.
    pub(super) fn open(&self) -> Result<()> {
        Ok(sys::signal(self.pid, libc::SIGCONT)?)
    }

    /// Waits until every thread of the server is in one of these states: `S` sleeps, `T` is
    /// stopped, and `t` is stopped by a tracer that has received the signal.
    fn await_state(&self, states: &[char]) -> Result<()> {
        const STEP: Duration = Duration::from_micros(20);
        let deadline = Instant::now() + PATIENCE;
        while sys::thread_states(self.pid)?.iter().any(|found| !states.contains(found)) {
            if Instant::now() > deadline {
                bail!("the server never comes to rest");
            }
            thread::sleep(STEP);
        }
        Ok(())
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.open(); // it may have exited
    }
}
