//! The connection of a request: its reads and writes, and its limits.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::blocking::limits::{LimitClock, MEMORY_CHECK, SessionMemory, limit_error};
use crate::blocking::wait::{Input, Wait, stop_error};
use crate::blocking::wait_limits::{Stall, WaitLimits};
use crate::counters::Tally;
use crate::error::Limit;
use crate::limits::Limits;
use crate::server_state::StopRequester;
use crate::sys::Socket;

/// How much one read takes in at most: Python's default buffer size.
const READ_STEP: usize = 8 * 1024;

pub(super) struct Stream<'a> {
    pub(super) socket: Arc<Socket>,
    /// How it waits for its peer.
    wait: &'a mut (dyn Wait + 'a),
    stop: &'a StopRequester,
    pub(super) wait_limits: WaitLimits,
    clock: LimitClock<'a>,
    memory: SessionMemory,
    /// The capacity of the buffer of written bytes.
    written: usize,
    /// The limit that is reached: nothing more is read.
    exceeded: Option<Limit>,
    /// The reads of a call that needs a whole message.
    whole: Option<WholeRead>,
    /// How many bytes of a message have arrived in part.
    arrived: usize,
    /// What was read from the socket, of which the handler has taken the first `at` bytes.
    pub(super) input: Vec<u8>,
    pub(super) at: usize,
    pub(super) ended: bool,
    /// Its handler says that nothing is in progress.
    pub(super) idle: bool,
    /// Output was lost.
    pub(super) cut: bool,
    /// How many written bytes are gathered before they go out.
    pub(super) write_buffer: usize,
}

/// A call that reads a whole message.
#[derive(Debug, Clone, Copy)]
struct WholeRead {
    /// It has read once, so that all input that had arrived before is known.
    has_read: bool,
}

impl<'a> Stream<'a> {
    pub(super) fn new(
        socket: Arc<Socket>,
        wait: &'a mut (dyn Wait + 'a),
        stop: &'a StopRequester,
        limits: &'a Limits,
        accepted: Instant,
    ) -> Self {
        Stream {
            socket,
            wait,
            stop,
            wait_limits: WaitLimits {
                timeout: limits.idle_timeout,
                deadline: None,
                write_timeout: limits.write_timeout,
            },
            clock: LimitClock::new(limits, accepted),
            memory: SessionMemory::default(),
            written: 0,
            exceeded: None,
            whole: None,
            arrived: 0,
            input: Vec::new(),
            at: 0,
            ended: false,
            idle: false,
            cut: false,
            write_buffer: 0,
        }
    }

    pub(super) fn unread(&self) -> &[u8] {
        &self.input[self.at..]
    }

    /// The limit that is reached.
    pub(super) fn exceeded(&self) -> Option<Limit> {
        self.exceeded
    }

    /// Begins a call that reads a whole message.
    pub(super) fn begin_whole(&mut self) {
        self.whole = Some(WholeRead { has_read: false });
        if self.at < self.input.len() {
            self.arrived = self.arrived.max(self.input.len() - self.at);
            self.clock.message_in_part(false);
        }
    }

    /// Ends such a call. If it has failed, the time of the message goes on in the next one.
    pub(super) fn end_whole(&mut self, is_complete: bool) {
        self.whole = None;
        if is_complete {
            self.clock.no_message_in_part();
            // At the end of the input there is none.
            if std::mem::take(&mut self.arrived) > 0 {
                self.message_came();
            }
        }
    }

    pub(super) fn is_in_whole(&self) -> bool {
        self.whole.is_some()
    }

    /// The handler has got a message: a whole one, or what one read returns.
    pub(super) fn message_came(&mut self) {
        self.clock.messages_came(1);
        self.wait.prove();
    }

    /// The handler has got input.
    pub(super) fn input_taken(&mut self) {
        self.clock.messages_came(0);
        self.wait.prove();
    }

    /// Sets how much memory the buffer of written bytes takes.
    pub(super) fn hold_written(&mut self, capacity: usize) {
        self.written = capacity;
        self.hold();
    }

    /// Returns an error if the connection is to be reset because of its memory.
    pub(super) fn check_memory(&mut self, tally: &mut Tally) -> io::Result<()> {
        match self.memory.limit().or(self.wait.limit()) {
            Some(limit) if limit.resets() => self.exceed(limit, tally),
            _ => Ok(()),
        }
    }

    fn hold(&mut self) {
        self.memory.hold(self.input.capacity() + self.written, self.stop, &*self.wait);
    }

    /// Reads once more, behind what is there; false at the peer's end.
    pub(super) fn read_more(&mut self, tally: &mut Tally) -> io::Result<bool> {
        if let Some(limit) = self.exceeded.filter(|_| !self.ended) {
            return Err(limit_error(limit));
        }
        if self.ended {
            return Ok(false);
        }
        if self.wait_limits.has_expired() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if self.at == self.input.len() {
            self.input.clear();
        } else {
            self.input.drain(..self.at);
        }
        self.at = 0;
        let start = self.input.len();
        self.input.resize(start + READ_STEP, 0);
        self.hold();
        // A request is in progress until its handler returns, unless that says otherwise; what has
        // come in part is in progress all the same.
        let idle = self.idle && start == 0;
        let read = self.read_within_limits(start, idle, tally);
        self.input.truncate(start + if let Ok(Input::Bytes(count)) = read { count } else { 0 });
        match read? {
            Input::Bytes(0) => {
                self.ended = true;
                Ok(false)
            }
            Input::Bytes(count) => {
                tally.bytes_in += count as u64;
                self.bytes_came(count, tally)
            }
            Input::TimedOut | Input::Woken => Err(io::ErrorKind::TimedOut.into()),
            Input::Limit(limit) => self.exceed(limit, tally),
            Input::Stopping if idle => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the server is stopping and the request is idle",
            )),
            Input::Stopping => Err(stop_error()),
        }
    }

    /// Waits for input, within the time of the handler and the limits.
    fn read_within_limits(
        &mut self,
        start: usize,
        idle: bool,
        tally: &mut Tally,
    ) -> io::Result<Input> {
        let begun = Instant::now();
        let own = self.wait_limits.next_wait().and_then(|time| begun.checked_add(time));
        let mut was_starved = false;
        loop {
            let limit = match self.whole {
                // All that had arrived in time has been read.
                Some(WholeRead { has_read: true }) => {
                    self.clock.expired(Instant::now(), self.arrived)
                }
                _ => None,
            };
            let in_part = self.arrived > 0;
            let retirement = self.clock.retirement(in_part);
            if let Some(limit) = self.memory.limit().or(limit).or(retirement) {
                return Ok(Input::Limit(limit));
            }
            let until = own.into_iter().chain(self.clock.deadline(self.arrived)).min();
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let is_starved = self.memory.is_starved(self.stop);
            let input = if is_starved {
                tally.memory_pauses += u64::from(!std::mem::replace(&mut was_starved, true));
                self.wait.pause(left.map_or(MEMORY_CHECK, |left| left.min(MEMORY_CHECK)))?
            } else {
                self.wait.read(&self.socket, &mut self.input[start..], left, idle, false)?
            };
            if !matches!(input, Input::TimedOut) {
                // A pause that another thread has ended reads nothing.
                if is_starved && matches!(input, Input::Woken) {
                    continue;
                }
                return Ok(input);
            }
            let now = Instant::now();
            if let Some(limit) = self.clock.expired(now, self.arrived) {
                return Ok(Input::Limit(limit));
            }
            if own.is_some_and(|own| own <= now) {
                return Ok(Input::TimedOut);
            }
        }
    }

    /// Input has arrived.
    fn bytes_came(&mut self, count: usize, tally: &mut Tally) -> io::Result<bool> {
        if let Some(whole) = &mut self.whole {
            whole.has_read = true;
            self.arrived += count;
            self.clock.message_in_part(false);
        }
        if self.clock.is_too_much(self.input.len() - self.at) {
            return self.exceed(Limit::BufferedInput, tally);
        }
        Ok(true)
    }

    /// The peer has reached a limit.
    fn exceed<T>(&mut self, limit: Limit, tally: &mut Tally) -> io::Result<T> {
        if self.exceeded.is_none_or(|exceeded| !exceeded.resets() && limit.resets()) {
            // What counts is the first one.
            if self.exceeded.is_none() {
                tally.limit(limit);
                self.exceeded = Some(limit);
            }
            self.cut |= limit.resets();
        }
        Err(limit_error(limit))
    }

    /// Sends all of it; `more` says that more output follows at once.
    pub(super) fn write_all(
        &mut self,
        mut bytes: &[u8],
        more: bool,
        tally: &mut Tally,
    ) -> io::Result<()> {
        self.check_memory(tally)?;
        let total = bytes.len();
        let mut stall = self.wait_limits.into();
        let written = match self.wait_limits.has_expired() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => self.wait.write_all(&self.socket, &mut bytes, more, &mut stall, None),
        };
        tally.bytes_out += (total - bytes.len()) as u64;
        self.written_with(written, &stall, tally)
    }

    /// Sends all of a part of a file.
    pub(super) fn send_file(
        &mut self,
        file: &File,
        mut range: Range<u64>,
        tally: &mut Tally,
    ) -> io::Result<()> {
        self.check_memory(tally)?;
        let start = range.start;
        let mut stall = self.wait_limits.into();
        let sent = match self.wait_limits.has_expired() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => self.wait.send_file_all(&self.socket, file, &mut range, &mut stall),
        };
        tally.bytes_out += range.start - start;
        self.written_with(sent, &stall, tally)
    }

    /// Notes the result of a write.
    fn written_with(
        &mut self,
        written: io::Result<()>,
        stall: &Stall,
        tally: &mut Tally,
    ) -> io::Result<()> {
        let Err(error) = written else { return Ok(()) };
        self.cut = true;
        let write_timeout = stall.write_timed_out().then_some(Limit::WriteTimeout);
        match self.wait.limit().or(write_timeout) {
            Some(limit) => self.exceed(limit, tally),
            None => Err(error),
        }
    }

    /// Sets how long a read or a write waits for the peer.
    pub(super) fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.wait_limits.timeout = timeout;
    }
}
