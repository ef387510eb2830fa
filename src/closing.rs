//! Progress of a connection's output, and the lingering close, which lets the output arrive. Both
//! drivers of a conversation use this module: the event loop and the blocking one.

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::address::Peer;
use crate::error::CloseReason;
use crate::sys::{self, Socket};

/// How long the peer of a closing connection may take none of its output.
pub(crate) const CLOSING_TIMEOUT: Duration = Duration::from_secs(30);

/// How long input is discarded after the peer has acknowledged all output, and how many bytes at
/// most. During that time the peer can read its reply without a reset.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;

/// How long after the close the kernel is first asked again whether the peer has acknowledged all.
/// A delayed acknowledgement comes before that, after 40 ms on Linux. The interval doubles each
/// time, up to [`MAX_CHECK_INTERVAL`].
pub(crate) const FIRST_CHECK: Duration = Duration::from_millis(50);
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Why a connection ends whose peer takes no more output. `None` if the peer has closed in order and
/// input from before that is left, here (`is_left`) or in the kernel: it is delivered first.
#[cold]
pub(crate) fn failure(socket: &Socket, is_left: bool) -> Option<io::Error> {
    match socket.take_error() {
        Ok(Some(error)) | Err(error) => Some(error),
        Ok(None) if is_left || matches!(sys::peek(socket), Ok(1..)) => None,
        Ok(None) => Some(io::ErrorKind::BrokenPipe.into()),
    }
}

/// The close reason after output could not be sent: the peer is gone, or a file of the output
/// cannot be read to the end of its range.
pub(crate) fn write_failure(error: io::Error) -> CloseReason {
    if sys::is_file_error(&error) {
        return CloseReason::Error(Box::new(error));
    }
    CloseReason::Disconnected(error)
}

/// The progress of a peer in taking its output. It counts what the peer takes, and not what the
/// kernel takes. The kernel's buffer holds megabytes, and becomes writable only when a large part
/// has been sent.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// How many bytes the kernel held when it was last asked.
    held: u32,
}

impl Progress {
    /// The current state of the kernel's buffer.
    pub(crate) fn of(socket: &Socket) -> Self {
        Progress { held: held(socket) }
    }

    /// Asks the kernel whether the peer has taken any output since the last time. Called when the
    /// time limit has expired. The first call cannot know that: it returns true if the kernel holds
    /// output, and the time limit begins again.
    pub(crate) fn is_made(&mut self, socket: &Socket) -> bool {
        let held = held(socket);
        std::mem::replace(&mut self.held, held) != held
    }

    /// Asks the kernel how much it holds, unless it has been asked since output was last sent: the
    /// wait for the peer begins now.
    pub(crate) fn begin(&mut self, socket: &Socket) {
        if self.held == 0 {
            *self = Progress::of(socket);
        }
    }

    /// Records that more output has been sent since the kernel was asked.
    pub(crate) fn forget(&mut self) {
        self.held = 0;
    }
}

fn held(socket: &Socket) -> u32 {
    u32::try_from(sys::unsent(socket)).unwrap_or(u32::MAX)
}

/// How many bytes the peer has not acknowledged, after the sending side has been shut down: TCP counts
/// the end as one more byte.
fn before_end(socket: &Socket) -> usize {
    sys::unsent(socket).saturating_sub(1)
}

/// A connection that has been served and lingers.
pub(crate) struct Lingering {
    pub(crate) socket: Arc<Socket>,
    pub(crate) linger: Linger,
}

/// The state of a lingering close (nginx calls it lingering_close). The sending side has been shut
/// down, and input is discarded. Without it, input that arrives after close(2) would make the
/// kernel send a reset and drop the output that the peer has not taken.
///
/// It ends in each of these cases:
/// * The peer ends.
/// * The peer has acknowledged all output, and either no input was discarded or the peer has had
///   [`LINGER`] to read its reply.
/// * The peer takes nothing for [`CLOSING_TIMEOUT`].
/// * [`LINGER_BYTES`] have been discarded.
#[derive(Debug)]
pub(crate) struct Linger {
    /// How much more input may be discarded.
    left: usize,
    /// Whether the kernel is asked for unacknowledged output. Not on a Unix socket, where the peer
    /// has the output already and no reset can drop it.
    asks_kernel: bool,
    /// How many bytes the kernel held when it was last asked, and when the peer last took some.
    held: usize,
    last_progress: Instant,
    /// Since when the peer has acknowledged all.
    settled: Option<Instant>,
    /// When it ends in any case, if the server stops.
    ends: Option<Instant>,
    /// When to check again, and the interval after that.
    next: Instant,
    pause: Duration,
}

impl Linger {
    /// Begins the lingering close: shuts the sending side down, which sends the output that was held
    /// back for it. Returns `None` if no input is unread, and either the peer has acknowledged all
    /// output or the close does not wait for that. One system call checks each.
    pub(crate) fn begin(
        socket: &Socket,
        peer: &Peer,
        waits: bool,
        buffer: &mut [u8],
        now: Instant,
    ) -> Option<Self> {
        let asks_kernel = matches!(peer, Peer::Inet(_));
        if socket.shutdown(Shutdown::Write).is_err() {
            return None;
        }
        let unread = match sys::receive_now(socket, buffer) {
            Ok(0) => return None,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return None,
        };
        let held = if asks_kernel && (waits || unread > 0) { before_end(socket) } else { 0 };
        if unread == 0 && held == 0 {
            return None;
        }
        Some(Linger {
            left: LINGER_BYTES.saturating_sub(unread),
            asks_kernel,
            held,
            last_progress: now,
            settled: (held == 0).then_some(now),
            ends: None,
            next: now + if held == 0 { LINGER } else { FIRST_CHECK },
            pause: FIRST_CHECK,
        })
    }

    /// Whether no input has been discarded.
    pub(crate) fn is_drained(&self) -> bool {
        self.left == LINGER_BYTES
    }

    /// When to check again.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Limits the rest of the time to [`LINGER`], and checks soon whether the peer has acknowledged all.
    pub(crate) fn shorten(&mut self, now: Instant) {
        self.ends.get_or_insert(now + LINGER);
        self.next = self.next.min(now + FIRST_CHECK);
        self.pause = FIRST_CHECK;
    }

    fn settle(&mut self, now: Instant) {
        let settled = *self.settled.get_or_insert(now);
        self.next = settled + LINGER;
    }

    /// Counts discarded input; returns whether the limit is reached.
    pub(crate) fn discard(&mut self, count: usize) -> bool {
        self.left = self.left.saturating_sub(count);
        self.left == 0
    }

    /// Discards the input that has arrived; returns whether the close is complete.
    pub(crate) fn drain(&mut self, mut socket: &Socket, buffer: &mut [u8]) -> bool {
        loop {
            match socket.read(buffer) {
                Ok(0) => return true,
                Ok(count) if self.discard(count) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }

    /// Checks the kernel again, if it is time; returns whether the close is complete.
    pub(crate) fn is_done(&mut self, socket: &Socket, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        if self.ends.is_some_and(|ends| now >= ends) {
            return true;
        }
        let held = if self.asks_kernel { before_end(socket) } else { 0 };
        if held == 0 || self.settled.is_some() {
            if self.is_drained() {
                return true;
            }
            self.settle(now);
            return now >= self.next;
        }
        if held != self.held {
            self.held = held;
            self.last_progress = now;
        }
        self.next = self.ends.map_or(now + self.pause, |ends| ends.min(now + self.pause));
        self.pause = (self.pause * 2).min(MAX_CHECK_INTERVAL);
        now >= self.last_progress + CLOSING_TIMEOUT
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")] // only Linux reports the bytes in a send buffer
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn tcp() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0.into(), theirs)
    }

    /// Writes until the kernel takes no more.
    fn fill(socket: &Socket) {
        socket.set_nonblocking(true).unwrap();
        while (&**socket).write(&[0; 64 << 10]).is_ok() {}
    }

    /// Runs the checks of a close until it is complete; returns how long that takes.
    fn checked(linger: &mut Linger, socket: &Socket, from: Instant) -> Duration {
        let mut at = from;
        while !linger.is_done(socket, at) {
            assert!(linger.next() > at, "the next check is later");
            at = linger.next();
        }
        at - from
    }

    #[test]
    fn progress_is_made_only_if_the_peer_reads() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = &Socket::from(OwnedFd::from(ours));
        fill(ours);
        let mut progress = Progress::default();
        assert!(progress.is_made(ours), "the kernel is asked for the first time");
        assert!(!progress.is_made(ours), "the peer has read nothing");
        theirs.read_exact(&mut [0; 128 << 10]).unwrap();
        assert!(progress.is_made(ours), "the peer has read some");
        assert!(!progress.is_made(ours));
    }

    #[test]
    fn a_close_lingers_while_the_kernel_holds_output_and_ends_when_the_peer_reads_nothing() {
        let (ours, theirs) = tcp();
        let peer = Peer::Inet(theirs.local_addr().unwrap());
        fill(&ours);
        let (mut buffer, now) = ([0; 100], Instant::now());
        let mut linger =
            Linger::begin(&ours, &peer, true, &mut buffer, now).expect("the kernel holds output");
        assert!(!linger.drain(&ours, &mut buffer));
        let taken = checked(&mut linger, &ours, now);
        assert!((CLOSING_TIMEOUT..2 * CLOSING_TIMEOUT).contains(&taken));
    }

    #[test]
    fn a_stop_limits_the_time_of_a_close_whose_peer_reads_nothing() {
        let (ours, theirs) = tcp();
        let peer = Peer::Inet(theirs.local_addr().unwrap());
        fill(&ours);
        let now = Instant::now();
        let mut linger = Linger::begin(&ours, &peer, true, &mut [0; 100], now).unwrap();
        linger.shorten(now);
        assert_eq!(checked(&mut linger, &ours, now), LINGER);
    }

    #[test]
    fn a_close_whose_peer_reads_everything_after_the_stop_is_complete_at_the_next_check() {
        let (ours, mut theirs) = tcp();
        let peer = Peer::Inet(theirs.local_addr().unwrap());
        fill(&ours);
        let now = Instant::now();
        let mut linger = Linger::begin(&ours, &peer, true, &mut [0; 100], now).unwrap();
        linger.shorten(now);
        theirs.read_to_end(&mut Vec::new()).unwrap();
        while sys::unsent(&ours) > 0 {
            assert!(now.elapsed() < CLOSING_TIMEOUT, "the kernel has the acknowledgement soon");
            std::thread::yield_now();
        }
        assert_eq!(checked(&mut linger, &ours, now), FIRST_CHECK);
    }

    #[test]
    fn a_close_that_does_not_wait_lingers_only_if_input_is_unread() {
        for has_input in [false, true] {
            let (ours, mut theirs) = tcp();
            let peer = Peer::Inet(theirs.local_addr().unwrap());
            if has_input {
                theirs.write_all(b"input").unwrap();
                ours.peek(&mut [std::mem::MaybeUninit::uninit()]).unwrap();
            }
            fill(&ours);
            let linger = Linger::begin(&ours, &peer, false, &mut [0; 100], Instant::now());
            assert_eq!(linger.is_some(), has_input);
        }
    }

    #[test]
    fn a_close_with_nothing_unread_and_nothing_held_does_not_linger() {
        let (ours, theirs) = tcp();
        let peer = Peer::Inet(theirs.local_addr().unwrap());
        assert!(Linger::begin(&ours, &peer, true, &mut [0; 100], Instant::now()).is_none());
    }
}
