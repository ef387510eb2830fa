//! How a connection's output is watched, and how it is closed so that its output arrives. Both
//! drivers of a conversation use this, the loop's and the blocking one.

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::address::Peer;
use crate::error::CloseReason;
use crate::sys;

/// How long the peer of a connection that is over may take none of its last output.
pub(crate) const CLOSING_PATIENCE: Duration = Duration::from_secs(30);

/// How long, and how much of, the input of a peer that has acknowledged all is thrown away, so that
/// no reset cuts what it has not read.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;

/// How long after the close the kernel is asked again whether the peer has acknowledged all: later
/// than a delayed acknowledgement comes, which is after 40 ms on Linux. Then twice as long each time,
/// up to a second.
pub(crate) const FIRST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Why a connection ends whose output could not be sent: its peer is gone, or a file of its output
/// cannot be read as far as it is to be sent.
pub(crate) fn write_failure(error: io::Error) -> CloseReason {
    if sys::is_file_error(&error) {
        return CloseReason::Error(Box::new(error));
    }
    CloseReason::Disconnected(error)
}

/// Whether a peer takes its output. What counts is what the peer takes, and not what the kernel
/// takes: its buffer holds megabytes, and it makes room only when much of that has gone.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// What the kernel held when it was last asked.
    held: u32,
}

impl Progress {
    /// As the kernel says now.
    pub(crate) fn of(socket: &Socket) -> Self {
        Progress { held: held(socket) }
    }

    /// Asks the kernel, when the time is up, whether the peer has taken any output since it was last
    /// asked. Where it is asked for the first time and holds some, that is not known; the time then
    /// begins again.
    pub(crate) fn is_made(&mut self, socket: &Socket) -> bool {
        let held = held(socket);
        std::mem::replace(&mut self.held, held) != held
    }

    /// Asks the kernel now, where it has not been asked since output was last sent: from now on the
    /// peer is waited for.
    pub(crate) fn begin(&mut self, socket: &Socket) {
        if self.held == 0 {
            *self = Progress::of(socket);
        }
    }

    /// Other output has been sent since the kernel was asked.
    pub(crate) fn forget(&mut self) {
        self.held = 0;
    }
}

fn held(socket: &Socket) -> u32 {
    u32::try_from(sys::unsent(socket)).unwrap_or(u32::MAX)
}

/// A connection that is over, and lingers.
pub(crate) struct Lingering {
    pub(crate) socket: Arc<Socket>,
    pub(crate) linger: Linger,
}

/// A connection that is over, whose sending side has been shut down, and whose input is thrown away:
/// after close(2) input that arrives would make the kernel send a reset and drop the output that the
/// peer has not taken. nginx calls it lingering_close.
///
/// It ends when the peer ends; when the peer has acknowledged all, and has not sent what was thrown
/// away, or has had the time to read its reply; when the peer takes nothing for
/// [`CLOSING_PATIENCE`]; and when too much has been thrown away.
#[derive(Debug)]
pub(crate) struct Linger {
    /// How much input may still be thrown away.
    left: usize,
    /// Output is asked for: on a Unix socket it is with the peer already, and no reset can cut it.
    asks: bool,
    /// What the kernel held when it was last asked, and when the peer last took some.
    held: usize,
    moved: Instant,
    /// Since when the peer has acknowledged all.
    settled: Option<Instant>,
    /// When to look again, and how long after that.
    next: Instant,
    pause: Duration,
}

impl Linger {
    /// Begins to close. The sending side is shut down, where that is not all that is to be done:
    /// there is input unread, or the kernel holds output. One system call tells of each; a peer that
    /// has ended costs one.
    pub(crate) fn begin(
        socket: &Socket,
        peer: &Peer,
        buffer: &mut [u8],
        now: Instant,
    ) -> Option<Self> {
        let asks = matches!(peer, Peer::Inet(_));
        let unread = match sys::receive_now(socket, buffer) {
            Ok(0) => return None,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return None,
        };
        let held = if asks { sys::unsent(socket) } else { 0 };
        if (unread == 0 && held == 0) || socket.shutdown(Shutdown::Write).is_err() {
            return None;
        }
        Some(Linger {
            left: LINGER_BYTES.saturating_sub(unread),
            asks,
            held,
            moved: now,
            settled: (held == 0).then_some(now),
            next: now + if held == 0 { LINGER } else { FIRST_LOOK },
            pause: FIRST_LOOK,
        })
    }

    /// When to look again.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// No more than the time of one whose peer has acknowledged all, from now on.
    pub(crate) fn hurry(&mut self, now: Instant) {
        self.asks = false;
        self.settle(now);
    }

    fn settle(&mut self, now: Instant) {
        let settled = *self.settled.get_or_insert(now);
        self.next = settled + LINGER;
    }

    /// So much input has been thrown away; whether that is enough.
    pub(crate) fn discard(&mut self, count: usize) -> bool {
        self.left = self.left.saturating_sub(count);
        self.left == 0
    }

    /// Throws away what has arrived; whether the end has come.
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

    /// Looks again, if it is time; whether that is the end.
    pub(crate) fn is_done(&mut self, socket: &Socket, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        let held = if self.asks { sys::unsent(socket) } else { 0 };
        if held == 0 || self.settled.is_some() {
            if self.left == LINGER_BYTES {
                return true;
            }
            self.settle(now);
            return now >= self.next;
        }
        if held != self.held {
            self.held = held;
            self.moved = now;
        }
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(LAST_LOOK);
        now >= self.moved + CLOSING_PATIENCE
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
    fn fill(mut socket: &Socket) {
        socket.set_nonblocking(true).unwrap();
        while socket.write(&[0; 64 << 10]).is_ok() {}
    }

    #[test]
    fn progress_is_made_only_if_the_peer_reads() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = &Socket::from(OwnedFd::from(ours));
        fill(ours);
        let mut progress = Progress::default();
        assert!(progress.is_made(ours), "it is asked for the first time");
        assert!(!progress.is_made(ours), "nothing is read");
        theirs.read_exact(&mut [0; 128 << 10]).unwrap();
        assert!(progress.is_made(ours), "some is read");
        assert!(!progress.is_made(ours));
    }

    #[test]
    fn a_close_lingers_while_the_kernel_holds_output_and_ends_when_the_peer_reads_nothing() {
        let (ours, theirs) = tcp();
        let peer = Peer::Inet(theirs.local_addr().unwrap());
        fill(&ours);
        let (mut buffer, now) = ([0; 100], Instant::now());
        let mut linger = Linger::begin(&ours, &peer, &mut buffer, now).expect("output is held");
        assert!(!linger.drain(&ours, &mut buffer));
        let mut at = now;
        while !linger.is_done(&ours, at) {
            assert!(linger.next() > at, "it is looked at later");
            at = linger.next();
        }
        assert!((CLOSING_PATIENCE..2 * CLOSING_PATIENCE).contains(&(at - now)));
    }

    #[test]
    fn a_close_with_nothing_unread_and_nothing_held_does_not_linger() {
        let (ours, theirs) = tcp();
        let peer = Peer::Inet(theirs.local_addr().unwrap());
        assert!(Linger::begin(&ours, &peer, &mut [0; 100], Instant::now()).is_none());
    }
}
