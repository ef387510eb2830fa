//! The wait of a blocking session for its peer, and what can interrupt it.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::active::Registration;
use super::wait_limits::Stall;
use crate::sender::{Ending, SendQueue};
use crate::server_state::StopOutcome;
use crate::sys::{self, PollInterest, Socket, Wakeup};
use crate::write_buffer::{SEND_STEP, WriteBuffer};

/// The result of waiting for input.
#[derive(Debug)]
pub(crate) enum Input {
    /// This many bytes were read; 0 is the end of input.
    Bytes(usize),
    /// The send queue or the stop needs attention.
    Woken,
    TimedOut,
    /// The server is stopping, and the connection was idle.
    Stopping,
}

/// How a session waits, which depends on where it is served.
pub(crate) enum WaitStrategy<'a> {
    /// In its own thread: it waits in the system call, and a stop shuts its socket down.
    Thread(&'a Registration),
    /// It never waits: the session of a datagram.
    Never,
    /// On the event loop's thread, or in a child process: it waits for a stop request, too.
    Interruptible(InterruptibleWait<'a>),
}

/// A wait that a stop request interrupts, for a session without another thread that could end it.
pub(crate) struct InterruptibleWait<'a> {
    /// They become readable when there may be a stop request.
    pub(crate) wakeups: &'a [&'a Wakeup],
    /// A stop request of a child process: it stays readable until `is_stopping` takes it.
    pub(crate) child_stop_request: Option<&'a Wakeup>,
    /// Whether to stop. It is called before each wait.
    pub(crate) is_stopping: &'a mut dyn FnMut() -> bool,
    /// The drain timeout: how long a busy session may continue after a stop request.
    pub(crate) drain: Duration,
    /// The drain deadline, if the server is stopping.
    pub(crate) deadline: Option<Instant>,
    /// How the session ended, as soon as this is known.
    pub(crate) stop_outcome: Option<StopOutcome>,
}

/// Blocking reads and writes. It is a trait so that a borrower of a [`WaitStrategy`] need not name
/// its lifetime.
pub(crate) trait Wait {
    /// Waits for input. With `idle`, no request is in progress, and a stop of the server ends the
    /// wait with [`Input::Stopping`]. With `others`, messages of senders and the stop end it with
    /// [`Input::Woken`].
    fn read(
        &mut self,
        socket: &Socket,
        buffer: &mut [u8],
        timeout: Option<Duration>,
        idle: bool,
        others: bool,
    ) -> io::Result<Input>;

    /// Sends all of `bytes`. Fails with the kind `TimedOut` if the peer takes nothing for the timeout, or
    /// when the deadline has passed; `bytes` is then what the kernel has not taken. `more` says that more
    /// output follows at once. While it waits, it also reacts to a close or an abort through
    /// `send_queue`.
    fn write_all(
        &mut self,
        socket: &Socket,
        bytes: &mut &[u8],
        more: bool,
        stall: &mut Stall,
        send_queue: Option<&SendQueue>,
    ) -> io::Result<()>;

    /// As [`write_all`](Self::write_all), for a part of a file: `range` is then what has not been sent.
    fn send_file_all(
        &mut self,
        socket: &Socket,
        file: &File,
        range: &mut Range<u64>,
        stall: &mut Stall,
    ) -> io::Result<()>;
}

impl Wait for WaitStrategy<'_> {
    fn read(
        &mut self,
        socket: &Socket,
        buffer: &mut [u8],
        timeout: Option<Duration>,
        idle: bool,
        others: bool,
    ) -> io::Result<Input> {
        match self {
            WaitStrategy::Thread(registration) => {
                registration.set_idle(idle);
                if idle && registration.is_stopping() {
                    // Input that has arrived is still read, even if the server stops.
                    return match sys::receive_now(socket, buffer) {
                        Ok(0) if registration.is_shut() => Ok(Input::Stopping),
                        Ok(count) => Ok(Input::Bytes(count)),
                        Err(error) if is_transient(&error) => Ok(Input::Stopping),
                        Err(error) => Err(error),
                    };
                }
                let wakeup = if others { Some(registration.wakeup()?) } else { None };
                let read = read_in_thread(socket, buffer, timeout, wakeup);
                registration.set_idle(false);
                match read {
                    // The stop has shut this socket down, and all earlier input has been read.
                    // Otherwise this is the peer's end.
                    Ok(Input::Bytes(0)) if registration.is_shut() => Ok(Input::Stopping),
                    Err(_) if registration.is_cut() => Ok(Input::Stopping),
                    other => other,
                }
            }
            WaitStrategy::Never => Ok(Input::Stopping),
            WaitStrategy::Interruptible(wait) => wait.read(socket, buffer, timeout, idle, others),
        }
    }

    fn write_all(
        &mut self,
        socket: &Socket,
        bytes: &mut &[u8],
        more: bool,
        stall: &mut Stall,
        send_queue: Option<&SendQueue>,
    ) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.send_all(socket, stall, send_queue, &mut || {
            let sent = sys::send_now(socket, bytes, more)?;
            *bytes = &bytes[sent..];
            Ok((!bytes.is_empty()).then_some(sent))
        })
    }

    fn send_file_all(
        &mut self,
        socket: &Socket,
        file: &File,
        range: &mut Range<u64>,
        stall: &mut Stall,
    ) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let _short_timeout = ShortSendTimeout::begin(socket)?;
        self.send_all(socket, stall, None, &mut || {
            let count = usize::try_from(range.end - range.start).unwrap_or(SEND_STEP);
            let sent = sys::send_file(socket, file, range.start, count.min(SEND_STEP))?;
            range.start += sent as u64;
            Ok((!range.is_empty()).then_some(sent))
        })
    }
}

impl WaitStrategy<'_> {
    /// Reads available input, if the socket is to be read, without waiting, because there is other work
    /// too. With `idle`, a stop of the server does not wait for that work.
    pub(crate) fn read_now(
        &mut self,
        socket: Option<&Socket>,
        buffer: &mut [u8],
        idle: bool,
    ) -> io::Result<Input> {
        // This comes before the read: what has arrived before the stop is answered.
        let ends = idle && self.is_stopping();
        let nothing = if ends { Input::Stopping } else { Input::Woken };
        let Some(socket) = socket else { return Ok(nothing) };
        match sys::receive_now(socket, buffer) {
            Ok(0) | Err(_) if self.is_cut() => Ok(Input::Stopping),
            Ok(0) if self.is_shut() => Ok(nothing),
            Ok(count) => Ok(Input::Bytes(count)),
            Err(error) if is_transient(&error) => Ok(nothing),
            Err(error) => Err(error),
        }
    }

    /// Whether a stop has shut the socket down, so that an end of its input is not the end of the peer.
    pub(crate) fn is_shut(&self) -> bool {
        matches!(self, WaitStrategy::Thread(registration) if registration.is_shut())
    }

    /// Whether the server is stopping.
    pub(crate) fn is_stopping(&mut self) -> bool {
        match self {
            WaitStrategy::Thread(registration) => registration.is_stopping(),
            WaitStrategy::Never => false,
            WaitStrategy::Interruptible(wait) => wait.is_stopping(),
        }
    }

    /// Whether the drain deadline has passed; false for a session that another thread aborts.
    pub(crate) fn is_overdue(&mut self) -> bool {
        match self {
            WaitStrategy::Interruptible(wait) => wait.is_overdue(),
            WaitStrategy::Thread(registration) => registration.is_cut(),
            WaitStrategy::Never => false,
        }
    }

    /// Marks that the session has ended, except for closing the connection.
    pub(crate) fn set_ended(&mut self) {
        if let WaitStrategy::Interruptible(wait) = self {
            wait.stop_outcome = wait.stop_outcome();
        }
    }

    /// Whether the drain deadline passed before the session ended.
    pub(crate) fn is_cut(&self) -> bool {
        match self {
            WaitStrategy::Thread(registration) => registration.is_cut(),
            WaitStrategy::Never => false,
            WaitStrategy::Interruptible(wait) => wait.stop_outcome == Some(StopOutcome::Cut),
        }
    }

    /// Waits without reading: for messages of senders, the stop or the timeout, and for the
    /// readiness in `watched`, which gives [`Input::Bytes`].
    pub(crate) fn wait_without_read(
        &mut self,
        watched: Option<(&Socket, PollInterest)>,
        timeout: Option<Duration>,
        idle: bool,
    ) -> io::Result<Input> {
        let watched = watched.map(|(socket, interest)| (socket.as_fd(), interest));
        let registration = match self {
            WaitStrategy::Thread(registration) => registration,
            WaitStrategy::Interruptible(wait) => {
                return wait.wait_without_read(watched, timeout, idle);
            }
            WaitStrategy::Never => return Ok(Input::Stopping),
        };
        let wakeup = registration.wakeup()?;
        if registration.is_cut() || (registration.is_stopping() && idle) {
            return Ok(Input::Stopping);
        }
        let woken = sys::wait_for(&[Some((wakeup.as_fd(), PollInterest::Read)), watched], timeout)?;
        wakeup.clear();
        Ok(match woken {
            _ if registration.is_cut() => Input::Stopping,
            0 => Input::TimedOut,
            0b10 => Input::Bytes(0),
            _ if registration.is_stopping() && idle => {
                registration.set_found_idle();
                Input::Stopping
            }
            _ => Input::Woken,
        })
    }

    /// As [`write_all`](Wait::write_all), for bytes and files; what has been sent is added to `bytes_out`.
    pub(crate) fn flush(
        &mut self,
        socket: &Socket,
        write_buffer: &mut WriteBuffer,
        stall: &mut Stall,
        send_queue: Option<&SendQueue>,
        bytes_out: &mut u64,
    ) -> io::Result<()> {
        if write_buffer.is_empty() {
            return Ok(());
        }
        let _short_timeout =
            write_buffer.has_file().then(|| ShortSendTimeout::begin(socket)).transpose()?;
        self.send_all(socket, stall, send_queue, &mut || {
            let sent = write_buffer.send(socket, SEND_STEP)?;
            *bytes_out += sent as u64;
            Ok((!write_buffer.is_empty()).then_some(sent))
        })
    }

    /// Calls `send` until it returns `None`: nothing is left. Otherwise `send` returns how much it
    /// has sent; 0 means that the kernel has no room.
    fn send_all(
        &mut self,
        socket: &Socket,
        stall: &mut Stall,
        send_queue: Option<&SendQueue>,
        send: &mut dyn FnMut() -> io::Result<Option<usize>>,
    ) -> io::Result<()> {
        loop {
            if let WaitStrategy::Interruptible(wait) = self {
                wait.is_overdue();
            }
            if self.is_cut() {
                return Err(stop_error());
            }
            match send()? {
                None => return Ok(()),
                Some(0) => {
                    while !self.wait_writable(socket, stall, send_queue)? {
                        stall.check(socket)?;
                    }
                }
                Some(_) => {
                    stall.restart();
                    stall.check(socket)?;
                }
            }
        }
    }

    /// Waits until the kernel has room or the time for stopping is up; returns false if something else has
    /// woken it, or the limits of the wait may be reached.
    fn wait_writable(
        &mut self,
        socket: &Socket,
        stall: &mut Stall,
        send_queue: Option<&SendQueue>,
    ) -> io::Result<bool> {
        let until = stall.until(socket);
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let peer = (socket.as_fd(), PollInterest::Write);
        match (self, send_queue) {
            (WaitStrategy::Thread(registration), Some(send_queue)) => {
                let wakeup = registration.wakeup()?;
                send_queue.enable_notification();
                match send_queue.ending() {
                    Ending::Closing if !stall.is_closing => return stall.begin_closing(socket),
                    Ending::Open | Ending::HalfOpen | Ending::Closing => {}
                    Ending::Aborted | Ending::Closed => {
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                }
                let ready = sys::wait_for(&[peer, (wakeup.as_fd(), PollInterest::Read)], left)?;
                // What else it is woken for is looked at when the output has gone.
                if ready == 0b10 {
                    wakeup.clear();
                }
                Ok(ready & 1 != 0)
            }
            (WaitStrategy::Thread(_) | WaitStrategy::Never, _) => {
                Ok(sys::wait_for(&[peer], left)? != 0)
            }
            (WaitStrategy::Interruptible(wait), _) => {
                Ok(matches!(wait.wait(Some(peer), until)?, Woken::Peer | Woken::Deadline))
            }
        }
    }
}

/// Waits for input. If it waits only for the peer, and the socket is blocking, it waits in the read
/// itself.
fn read_in_thread(
    mut socket: &Socket,
    buffer: &mut [u8],
    timeout: Option<Duration>,
    wakeup: Option<&Arc<Wakeup>>,
) -> io::Result<Input> {
    let expiry = expiry(timeout);
    let mut polls = timeout.is_some() || wakeup.is_some();
    loop {
        if polls {
            let peer = (socket.as_fd(), PollInterest::Read);
            let left = expiry.map(|expiry| expiry.saturating_duration_since(Instant::now()));
            let ready = match wakeup {
                None => sys::wait_for(&[peer], left)?,
                Some(wakeup) => sys::wait_for(&[peer, (wakeup.as_fd(), PollInterest::Read)], left)?,
            };
            match ready {
                0 => return Ok(Input::TimedOut),
                0b10 => {
                    wakeup.inspect(|wakeup| wakeup.clear());
                    return Ok(Input::Woken);
                }
                _ => {}
            }
        }
        // The input that poll(2) has reported may be gone: another process may share the socket.
        let read = if polls { sys::receive_now(socket, buffer) } else { socket.read(buffer) };
        match read {
            Ok(count) => return Ok(Input::Bytes(count)),
            // Other code may have made the socket non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => polls = true,
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A guard: until it is dropped, a send on a blocking socket waits for room for at most one tick of
/// the kernel's clock, since sendfile(2) has no flag to not wait.
struct ShortSendTimeout<'a> {
    socket: &'a Socket,
    before: Option<Duration>,
}

impl<'a> ShortSendTimeout<'a> {
    fn begin(socket: &'a Socket) -> io::Result<Self> {
        let before = socket.write_timeout()?;
        socket.set_write_timeout(Some(Duration::from_millis(1)))?;
        Ok(ShortSendTimeout { socket, before })
    }
}

impl Drop for ShortSendTimeout<'_> {
    fn drop(&mut self) {
        // It fails only if the connection is gone.
        let _ = self.socket.set_write_timeout(self.before);
    }
}

/// The end of a wait that begins now; `None` for no end, or if it cannot be represented.
fn expiry(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// The error of a wait that a stop has ended.
pub(super) fn stop_error() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the server is stopping")
}

/// Whether a stop has ended the wait: unlike this error, errors of the system have an errno.
pub(super) fn is_stop_error(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionAborted && error.raw_os_error().is_none()
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

enum Woken {
    Peer,
    TimedOut,
    /// A stop was requested just now.
    Stop,
    /// The drain deadline has passed.
    Deadline,
}

impl InterruptibleWait<'_> {
    /// Whether the server is stopping; the drain timeout begins when this is first detected.
    fn is_stopping(&mut self) -> bool {
        if self.deadline.is_none() && (self.is_stopping)() {
            self.deadline = Some(Instant::now() + self.drain);
        }
        self.deadline.is_some()
    }

    /// Whether the drain deadline has passed. It is also checked for a peer that never makes the
    /// session wait.
    fn is_overdue(&mut self) -> bool {
        let overdue =
            self.is_stopping() && self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        if overdue {
            self.stop_outcome.get_or_insert(StopOutcome::Cut);
        }
        overdue
    }

    /// How the session ended, if a stop began during it. Called after its end.
    pub(crate) fn stop_outcome(&mut self) -> Option<StopOutcome> {
        self.stop_outcome.or_else(|| self.is_stopping().then_some(StopOutcome::Finished))
    }

    /// Waits for the peer, if given, and for a stop request if there is none yet.
    fn wait(
        &mut self,
        peer: Option<(BorrowedFd<'_>, PollInterest)>,
        expiry: Option<Instant>,
    ) -> io::Result<Woken> {
        loop {
            let was_stopping = self.deadline.is_some();
            if self.is_stopping() && !was_stopping {
                return Ok(Woken::Stop);
            }
            let now = Instant::now();
            let until = self.deadline.into_iter().chain(expiry).min();
            let left = until.map(|until| until.saturating_duration_since(now));
            // The peer, and at most three wakeups.
            let mut wanted = [peer, None, None, None];
            if !was_stopping {
                let wakeups = self.wakeups.iter().copied().chain(self.child_stop_request);
                for (slot, wakeup) in wanted[1..].iter_mut().zip(wakeups) {
                    *slot = Some((wakeup.as_fd(), PollInterest::Read));
                }
            }
            let ready = sys::wait_for(&wanted, left)?;
            if ready & 1 != 0 {
                return Ok(Woken::Peer);
            }
            if ready == 0 {
                let now = Instant::now();
                // The earlier of the two counts, even if both have passed by now.
                if expiry.is_some_and(|expiry| until == Some(expiry) && expiry <= now) {
                    return Ok(Woken::TimedOut);
                }
                if self.is_overdue() {
                    return Ok(Woken::Deadline);
                }
                continue;
            }
            if !(self.is_stopping)() {
                self.wakeups.iter().for_each(|wakeup| wakeup.clear());
            }
        }
    }

    /// Ends an idle session because the server is stopping. With `knew`, it was busy when the stop
    /// was detected and has finished its request since.
    fn end_idle(&mut self, knew: bool) -> Input {
        let how = if knew { StopOutcome::Finished } else { StopOutcome::Idle };
        self.stop_outcome.get_or_insert(how);
        Input::Stopping
    }

    /// As [`WaitStrategy::wait_without_read`].
    fn wait_without_read(
        &mut self,
        watched: Option<(BorrowedFd<'_>, PollInterest)>,
        timeout: Option<Duration>,
        idle: bool,
    ) -> io::Result<Input> {
        let knew = self.deadline.is_some();
        let expiry = expiry(timeout);
        loop {
            if self.is_stopping() && idle {
                return Ok(self.end_idle(knew));
            }
            match self.wait(watched, expiry)? {
                Woken::Peer => return Ok(Input::Bytes(0)),
                Woken::TimedOut => return Ok(Input::TimedOut),
                Woken::Deadline => return Ok(Input::Stopping),
                Woken::Stop if !idle => return Ok(Input::Woken),
                Woken::Stop => {}
            }
        }
    }

    fn read(
        &mut self,
        socket: &Socket,
        buffer: &mut [u8],
        timeout: Option<Duration>,
        idle: bool,
        others: bool,
    ) -> io::Result<Input> {
        let knew = self.deadline.is_some();
        // The timeout is for this read as a whole: it does not restart when the stop wakes it.
        let expiry = expiry(timeout);
        loop {
            if self.is_overdue() {
                return Ok(Input::Stopping);
            }
            // Checked before the read: input that arrived before the stop is still read.
            let is_stopping = self.is_stopping();
            match sys::receive_now(socket, buffer) {
                Ok(count) => return Ok(Input::Bytes(count)),
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
            if is_stopping && idle {
                return Ok(self.end_idle(knew));
            }
            match self.wait(Some((socket.as_fd(), PollInterest::Read)), expiry)? {
                Woken::Stop if others && !idle => return Ok(Input::Woken),
                Woken::Peer | Woken::Stop => {}
                Woken::TimedOut => return Ok(Input::TimedOut),
                Woken::Deadline => return Ok(Input::Stopping),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use super::super::wait_limits::WaitLimits;
    use super::*;

    /// If the timeout restarted at the stop, the read would end after the drain deadline.
    #[test]
    fn a_read_that_is_interrupted_by_a_stop_keeps_its_timeout() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let socket = Socket::from(OwnedFd::from(ours));
        let timeout = Duration::from_millis(500);
        let expiry = Instant::now() + timeout;
        let mut asked = 0;
        let mut is_stopping = || {
            asked += 1;
            if asked == 3 {
                let early = expiry - Duration::from_millis(50);
                std::thread::sleep(early.saturating_duration_since(Instant::now()));
            }
            asked >= 3
        };
        let wakeup = Wakeup::new().unwrap();
        wakeup.wake();
        let mut wait = InterruptibleWait {
            wakeups: &[&wakeup],
            child_stop_request: None,
            is_stopping: &mut is_stopping,
            drain: Duration::from_millis(300),
            deadline: None,
            stop_outcome: None,
        };
        let read = wait.read(&socket, &mut [0; 100], Some(timeout), false, false).unwrap();
        assert!(matches!(read, Input::TimedOut), "{read:?}");
    }

    /// Writes to a peer that reads as `read` says, until a limit of the wait is reached. Returns whether the
    /// peer has stalled, and how long it took.
    fn write_until_late(
        timeout: Duration,
        deadline: Option<Duration>,
        read: impl Fn(&mut UnixStream) + Sync,
    ) -> (bool, Duration) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let socket = Socket::from(OwnedFd::from(ours));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    read(&mut theirs);
                }
            });
            let begun = Instant::now();
            let deadline = deadline.map(|deadline| begun + deadline);
            let mut stall = Stall::from(WaitLimits { timeout: Some(timeout), deadline });
            let bytes = vec![0; 64 << 20];
            let mut wait = WaitStrategy::Never;
            let written = wait.write_all(&socket, &mut &bytes[..], false, &mut stall, None);
            let took = begun.elapsed();
            over.store(true, SeqCst);
            assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
            (stall.take_timed_out(), took)
        })
    }

    /// Takes a little output each few milliseconds, far less than makes a socket writable.
    fn read_little(theirs: &mut UnixStream) {
        std::thread::sleep(Duration::from_millis(5));
        theirs.read_exact(&mut [0; 1024]).unwrap();
    }

    /// Each piece of 32 KiB that is read restarts the timeout, but does not move the deadline.
    #[test]
    fn a_write_to_a_peer_that_takes_little_ends_at_the_deadline() {
        let (timeout, deadline) = (Duration::from_secs(2), Duration::from_millis(400));
        let (has_stalled, took) = write_until_late(timeout, Some(deadline), read_little);
        assert!(!has_stalled && took >= deadline, "{took:?}");
        assert!(took < timeout, "{took:?}");
    }

    #[test]
    fn a_write_to_a_peer_that_takes_nothing_ends_at_the_timeout() {
        let timeout = Duration::from_millis(100);
        let read_nothing = |_: &mut UnixStream| std::thread::sleep(Duration::from_millis(1));
        for deadline in [None, Some(Duration::from_secs(20))] {
            let (has_stalled, took) = write_until_late(timeout, deadline, read_nothing);
            assert!(has_stalled && took >= timeout, "{took:?}");
        }
    }

    /// The stop is noticed at each of several points of the wait.
    #[test]
    fn input_that_arrived_before_the_stop_is_read() {
        for noticed in 1..6 {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let socket = Socket::from(OwnedFd::from(ours));
            let mut asked = 0;
            let mut is_stopping = || {
                asked += 1;
                if asked == noticed {
                    theirs.write_all(b"in time").unwrap();
                }
                asked >= noticed
            };
            let wakeup = Wakeup::new().unwrap();
            wakeup.wake();
            let mut wait = InterruptibleWait {
                wakeups: &[&wakeup],
                child_stop_request: None,
                is_stopping: &mut is_stopping,
                drain: Duration::from_secs(20),
                deadline: None,
                stop_outcome: None,
            };
            let mut buffer = [0; 100];
            let mut read = || wait.read(&socket, &mut buffer, None, true, false).unwrap();
            assert!(
                matches!(read(), Input::Bytes(7)),
                "noticed when asked for the {noticed}. time"
            );
            assert!(matches!(read(), Input::Stopping));
        }
    }
}
