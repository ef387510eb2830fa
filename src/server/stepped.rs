//! A run of a server that a simulation takes turn by turn.

use std::fmt;
use std::os::fd::{AsRawFd, RawFd};

use super::{ListenerId, Server, ServerRun, Service, ShutdownHandle, StopReport, stop};
use crate::error::Error;
use crate::event_loop::LoopState;
use crate::server_state::RunGuard;

/// A run of the event loop, between two turns.
pub(crate) struct SteppedRun<'a> {
    // Dropped first: a run ends after its event loop.
    run: ServerRun<'a>,
    _running: RunGuard,
    handle: ShutdownHandle,
}

impl fmt::Debug for SteppedRun<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SteppedRun").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Server {
    /// Begins a run.
    pub(crate) fn begin_stepped(&mut self) -> Result<SteppedRun<'_>, Error> {
        let (handle, running) = (self.shutdown_handle(), self.control.begin());
        let run = self.begin(&running, usize::MAX, None)?;
        Ok(SteppedRun { run, _running: running, handle })
    }

    /// The descriptor of a listener, by its number.
    pub(crate) fn descriptor(&self, listener: ListenerId) -> Option<RawFd> {
        self.services.get(listener.0).map(Service::socket).map(|socket| socket.as_raw_fd())
    }
}

impl SteppedRun<'_> {
    /// Takes one turn; returns false, and takes none, if a stop is requested.
    pub(crate) fn turn(&mut self) -> Result<bool, Error> {
        if self.run.control.stop_requested() {
            return Ok(false);
        }
        let event_loop = &mut self.run.event_loop;
        event_loop.run_turn(None, None).map_err(Error::Loop)?;
        match event_loop.cx().run.failed.take() {
            Some(error) => Err(error),
            None => Ok(true),
        }
    }

    /// Stops the run, as [`Server::serve_forever`] does.
    pub(crate) fn stop(&mut self) -> Result<StopReport, Error> {
        stop(&mut self.run.event_loop, self.run.drain)
    }

    pub(crate) fn state(&self) -> LoopState {
        self.run.event_loop.state()
    }

    pub(crate) fn handle(&self) -> &ShutdownHandle {
        &self.handle
    }
}
