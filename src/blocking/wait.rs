//! The wait of a blocking session for its peer, and what can interrupt it.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::active::Registration;
use super::interruptible::{InterruptibleWait, Woken};
use super::wait_limits::Stall;
use crate::error::Limit;
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
    /// The connection is to be closed because of this limit, which another thread has found reached.
    Limit(Limit),
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

    /// Waits without reading, until the timeout or an event that ends the session.
    fn pause(&mut self, timeout: Duration) -> io::Result<Input>;

    /// Records that a whole message has come.
    fn prove(&mut self);

    /// The limit because of which the session must close the connection, as another thread or
    /// another process requests.
    fn limit(&self) -> Option<Limit>;

    /// The registration, if a thread serves the connection that the event loop can close.
    fn registration(&self) -> Option<&Registration>;
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
                read_registered(registration, socket, buffer, timeout, idle, others)
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

    fn pause(&mut self, timeout: Duration) -> io::Result<Input> {
        self.wait_without_read(None, Some(timeout), false)
    }

    fn prove(&mut self) {
        match self {
            WaitStrategy::Thread(registration) => registration.standing().prove(),
            WaitStrategy::Interruptible(wait) => wait.standing.prove(),
            WaitStrategy::Never => {}
        }
    }

    fn limit(&self) -> Option<Limit> {
        match self {
            WaitStrategy::Thread(registration) => registration.limit(),
            WaitStrategy::Interruptible(wait) => wait.standing.limit(),
            WaitStrategy::Never => None,
        }
    }

    fn registration(&self) -> Option<&Registration> {
        match self {
            WaitStrategy::Thread(registration) => Some(registration),
            _ => None,
        }
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
            Ok(0) | Err(_) if self.limit().is_some() => {
                Ok(self.limit().map_or(nothing, Input::Limit))
            }
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
        let Some(wakeup) = registration.wakeup()? else { return Ok(Input::Woken) };
        if let Some(limit) = registration.limit() {
            return Ok(Input::Limit(limit));
        }
        if registration.is_cut() || (registration.is_stopping() && idle) {
            return Ok(Input::Stopping);
        }
        let woken = sys::wait_for(&[Some((wakeup.as_fd(), PollInterest::Read)), watched], timeout)?;
        wakeup.clear();
        if let Some(limit) = registration.limit() {
            return Ok(Input::Limit(limit));
        }
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

    /// Sends as much of `bytes` as the kernel has room for; `bytes` is then what is left.
    pub(crate) fn write_now(&mut self, socket: &Socket, bytes: &mut &[u8]) -> io::Result<()> {
        if let WaitStrategy::Interruptible(wait) = self {
            wait.is_overdue();
        }
        if self.is_cut() {
            return Err(stop_error());
        }
        let sent = sys::send_now(socket, bytes, false)?;
        *bytes = &bytes[sent..];
        Ok(())
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
                Some(0) => self.wait_for_room(socket, stall, send_queue)?,
                Some(_) => {
                    stall.restart();
                    stall.check(socket)?;
                }
            }
        }
    }

    /// Waits until the kernel has room. Meanwhile the event loop can reset the connection because of a
    /// limit.
    fn wait_for_room(
        &mut self,
        socket: &Socket,
        stall: &mut Stall,
        send_queue: Option<&SendQueue>,
    ) -> io::Result<()> {
        if let Some(registration) = self.registration() {
            registration.set_stalled(true);
        }
        let waited = loop {
            if self.limit().is_some() {
                break Err(io::ErrorKind::ConnectionReset.into());
            }
            match self.wait_writable(socket, stall, send_queue) {
                Ok(true) => break Ok(()),
                Ok(false) => {}
                Err(error) => break Err(error),
            }
            if let Err(error) = stall.check(socket) {
                break Err(error);
            }
        };
        if let Some(registration) = self.registration() {
            registration.set_stalled(false);
        }
        waited
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
                let Some(wakeup) = registration.wakeup()? else { return Ok(false) };
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

/// Waits for input in a thread, until a stop or a limit shuts the socket down.
fn read_registered(
    registration: &Registration,
    socket: &Socket,
    buffer: &mut [u8],
    timeout: Option<Duration>,
    idle: bool,
    others: bool,
) -> io::Result<Input> {
    if let Some(limit) = registration.limit() {
        return Ok(Input::Limit(limit));
    }
    let mut wakeup = None;
    if others {
        wakeup = registration.wakeup()?;
        if wakeup.is_none() {
            return Ok(Input::Woken);
        }
    }
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
    let read = read_in_thread(socket, buffer, timeout, wakeup);
    registration.set_idle(false);
    match (read, registration.limit()) {
        (Ok(Input::Bytes(0) | Input::Woken) | Err(_), Some(limit)) => Ok(Input::Limit(limit)),
        // The stop has shut this socket down, and all earlier input has been read.
        // Otherwise this is the peer's end.
        (Ok(Input::Bytes(0)), _) if registration.is_shut() => Ok(Input::Stopping),
        (Err(_), _) if registration.is_cut() => Ok(Input::Stopping),
        (other, _) => other,
    }
}

/// Waits for input. If it waits only for the peer, and the socket is blocking, it waits in the read
/// itself.
fn read_in_thread(
    mut socket: &Socket,
    buffer: &mut [u8],
    timeout: Option<Duration>,
    wakeup: Option<&Wakeup>,
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
pub(super) fn expiry(timeout: Option<Duration>) -> Option<Instant> {
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

pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use super::super::active::ActiveConnections;
    use super::super::standing::Standing;
    use super::super::wait_limits::WaitLimits;
    use super::*;
    use crate::connection_id::ConnectionId;
    use crate::sync::AtomicU8;

    /// A wait that nothing but a stop interrupts. The wakeup was woken for something else.
    fn interruptible<'a>(
        wakeups: &'a [&'a Wakeup],
        is_stopping: &'a mut dyn FnMut() -> bool,
        drain: Duration,
        standing: &'a AtomicU8,
    ) -> InterruptibleWait<'a> {
        wakeups.iter().for_each(|wakeup| wakeup.wake());
        InterruptibleWait {
            wakeups,
            child_stop_request: None,
            is_stopping,
            drain,
            deadline: None,
            stop_outcome: None,
            standing: Standing::new(standing),
            others: None,
        }
    }

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
        let standing = AtomicU8::default();
        let wakeups = [&wakeup];
        let mut wait =
            interruptible(&wakeups, &mut is_stopping, Duration::from_millis(300), &standing);
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
            let limits = WaitLimits { timeout: Some(timeout), deadline, write_timeout: None };
            let mut stall = Stall::from(limits);
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

    /// The stop comes after the thread has last looked for it, and before another thread can wake
    /// it: before its first wait for more than its socket.
    #[test]
    fn the_first_wait_of_a_request_in_progress_ends_if_the_server_is_stopping_already() {
        const NEVER: Option<Duration> = Some(Duration::from_secs(20));
        const SHORT: Option<Duration> = Some(Duration::from_millis(1));
        for reads in [true, false] {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            let socket = Arc::new(Socket::from(OwnedFd::from(ours)));
            let active = Arc::new(ActiveConnections::default());
            active.reopen(&Arc::default());
            let registration = active.register(socket.clone(), ConnectionId::next());
            let mut wait = WaitStrategy::Thread(&registration);
            let mut wait_for = |timeout| match reads {
                true => wait.read(&socket, &mut [0; 1], timeout, false, true),
                false => wait.wait_without_read(None, timeout, false),
            };
            active.stop();
            let first = wait_for(NEVER);
            assert!(matches!(first, Ok(Input::Woken)), "{reads}: {first:?}");
            let next = wait_for(SHORT);
            assert!(matches!(next, Ok(Input::TimedOut)), "{reads}: {next:?}");
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
            let standing = AtomicU8::default();
            let wakeups = [&wakeup];
            let mut wait =
                interruptible(&wakeups, &mut is_stopping, Duration::from_secs(20), &standing);
            let mut buffer = [0; 100];
            let mut read = || wait.read(&socket, &mut buffer, None, true, false).unwrap();
            assert!(
                matches!(read(), Input::Bytes(7)),
                "noticed when asked for the {noticed}. time"
            );
            assert!(matches!(read(), Input::Stopping));
        }
    }

    /// Whenever the stop is noticed: it is reported at once, and only once.
    #[test]
    fn a_stop_ends_the_wait_of_a_request_in_progress() {
        for (noticed, reads) in (1..=4).flat_map(|n| [(n, true), (n, false)]) {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            let socket = Socket::from(OwnedFd::from(ours));
            let mut asked = 0;
            let mut is_stopping = || {
                asked += 1;
                asked >= noticed
            };
            let wakeup = Wakeup::new().unwrap();
            let standing = AtomicU8::default();
            let wakeups = [&wakeup];
            let mut wait =
                interruptible(&wakeups, &mut is_stopping, Duration::from_secs(20), &standing);
            let mut wait_for = |timeout| match reads {
                true => wait.read(&socket, &mut [0; 1], Some(timeout), false, true),
                false => wait.wait_without_read(None, Some(timeout), false),
            };
            let first = wait_for(Duration::from_millis(100));
            assert!(matches!(first, Ok(Input::Woken)), "{noticed}, {reads}: {first:?}");
            let next = wait_for(Duration::from_millis(1));
            assert!(matches!(next, Ok(Input::TimedOut)), "{noticed}, {reads}: {next:?}");
        }
    }
}
