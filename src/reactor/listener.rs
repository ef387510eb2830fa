//! The listener of a stream: accepts in bursts, and survives whatever accept(2) says.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::live::{Backing, Fate, Gate, Live, Readiness, Taker, Turn};
use crate::address::{Address, Peer};
use crate::log;
use crate::sys;
use crate::transport::peer_of;

/// How many connections are accepted in one turn, however often the listener is called in it.
const ACCEPT_BUDGET: usize = 64;

/// How many clients are turned away each time that descriptors have run out.
const SHED_BUDGET: usize = 16;

/// How many accepts fail in a row, for reasons that should pass, before the listener pauses.
const FAILURE_BUDGET: usize = 64;

/// How long a listener waits when descriptors or memory have run out: first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How often a fault that goes on is logged.
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// Who takes accepted connections.
pub(crate) trait Acceptor: Taker {
    /// Whether the connections it takes are to be non-blocking.
    fn nonblocking(&self) -> bool;

    /// Takes a connection: into `turn.newcomers`, or elsewhere.
    fn accept(&mut self, socket: Socket, peer: Peer, turn: &mut Turn);
}

/// A listener in the slab.
pub(crate) struct Listener<'a> {
    socket: &'a Socket,
    address: &'a Address,
    acceptor: Box<dyn Acceptor + 'a>,
    gate: Box<dyn Gate + 'a>,
    /// Nothing is accepted until then, and then for twice as long if it fails again.
    paused_until: Option<Instant>,
    pause: Duration,
    /// How many accepts are left of this turn, which is the one that began then.
    budget: usize,
    turn_began: Option<Instant>,
    /// How many accepts have failed in a row.
    failures: usize,
    trouble: Trouble,
    /// It can accept no more, or never could.
    closed: bool,
    /// Connections that were made elsewhere, and come first.
    handed: &'a mut VecDeque<Socket>,
}

/// What accept(2) has said, as far as it matters.
enum Verdict {
    /// Nobody is waiting.
    Drained,
    /// This one is gone, or the call was interrupted: on to the next.
    Next,
    /// Descriptors or memory have run out.
    Exhausted,
    /// This listener is no listener.
    Fatal,
}

fn classify(error: &io::Error) -> Verdict {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Verdict::Drained,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Verdict::Exhausted,
        Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP | libc::EFAULT) => {
            Verdict::Fatal
        }
        // ECONNABORTED, EINTR, EPROTO, EPERM, and the network errors that accept(2) passes on.
        _ => Verdict::Next,
    }
}

impl<'a> Listener<'a> {
    pub(crate) fn new(
        socket: &'a Socket,
        address: &'a Address,
        acceptor: Box<dyn Acceptor + 'a>,
        gate: Box<dyn Gate + 'a>,
        handed: &'a mut VecDeque<Socket>,
        closed: bool,
    ) -> Self {
        Listener {
            socket,
            address,
            acceptor,
            gate,
            paused_until: None,
            pause: FIRST_PAUSE,
            budget: 0,
            turn_began: None,
            failures: 0,
            trouble: Trouble::default(),
            closed,
            handed,
        }
    }

    /// Accepts those who wait. A listener that pauses until `pause` tries because something has
    /// become free; where that is not enough for all, the others wait on and the pause with them.
    fn accept(&mut self, pause: Option<Instant>, turn: &mut Turn) -> Fate {
        if self.closed && self.handed.is_empty() {
            return Fate::Wait;
        }
        if self.turn_began.replace(turn.now) != Some(turn.now) {
            self.budget = ACCEPT_BUDGET.min(self.acceptor.burst());
        }
        while self.budget > 0 {
            self.budget -= 1;
            // Asked before the call: who is not accepted waits in the kernel's queue.
            if !turn.may_accept() || !self.acceptor.has_room() {
                return Fate::Wait;
            }
            if let Some(socket) = self.handed.pop_front() {
                self.take(socket, turn);
                continue;
            }
            if self.closed {
                return Fate::Wait;
            }
            match sys::accept(self.socket, self.acceptor.nonblocking()) {
                Ok((socket, address)) => self.accepted(socket, peer_of(&address), turn),
                Err(error) => match classify(&error) {
                    Verdict::Next if self.failures < FAILURE_BUDGET => self.failures += 1,
                    Verdict::Drained => {
                        self.drained(turn);
                        return Fate::Wait;
                    }
                    Verdict::Next | Verdict::Exhausted => {
                        match pause {
                            Some(_) => self.paused_until = pause,
                            None => self.exhausted(&error, turn),
                        }
                        return Fate::Wait;
                    }
                    Verdict::Fatal => {
                        log::error!("{} accepts no more: {error}", self.address);
                        self.closed = true;
                        return Fate::Wait;
                    }
                },
            }
        }
        Fate::Again
    }

    /// Takes a connection that was made elsewhere.
    fn take(&mut self, socket: Socket, turn: &mut Turn) {
        let peer = socket.peer_addr().and_then(|address| {
            socket.set_nonblocking(self.acceptor.nonblocking())?;
            Ok(peer_of(&address))
        });
        match peer {
            Ok(peer) => self.accepted(socket, peer, turn),
            Err(error) => log::warn!("a connection handed over is no connection: {error}"),
        }
    }

    fn accepted(&mut self, socket: Socket, peer: Peer, turn: &mut Turn) {
        self.pause = FIRST_PAUSE;
        self.failures = 0;
        turn.tally.accepted += 1;
        turn.allowance = turn.allowance.saturating_sub(1);
        if self.gate.prepare(socket.as_fd(), &peer, turn) && self.gate.verify(&peer, turn) {
            self.acceptor.accept(socket, peer, turn);
        } else {
            turn.tally.refused_by_hook += 1;
            turn.tally.closed += 1;
        }
    }

    /// Nobody waits: the next who comes is told of by the poller.
    fn drained(&mut self, turn: &mut Turn) {
        self.failures = 0;
        turn.readiness.remove(Readiness::READABLE);
        turn.keep_reserve();
    }

    /// Turns some clients away with the descriptor kept for it, and waits a while.
    fn exhausted(&mut self, error: &io::Error, turn: &mut Turn) {
        // Where descriptors have run out, accept(2) says so before it looks whether anyone waits.
        let mut nobody_waits = false;
        let mut shed = 0;
        if turn.reserve.take().is_some() {
            while shed < SHED_BUDGET && !nobody_waits {
                match sys::accept(self.socket, true) {
                    Ok(_) => shed += 1,
                    Err(error) if matches!(classify(&error), Verdict::Drained) => {
                        nobody_waits = true;
                    }
                    Err(_) => break,
                }
            }
        }
        turn.keep_reserve();
        turn.tally.shed_no_fd += shed as u64;
        if nobody_waits && shed == 0 {
            return self.drained(turn);
        }
        turn.tally.accept_pauses += 1;
        if let Some(times) = self.trouble.again(turn.now) {
            log::warn!("{} pauses ({times} times by now): {error}", self.address);
        }
        self.paused_until = Some(turn.now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        turn.exhausted = true;
        turn.rearm();
    }
}

impl Live for Listener<'_> {
    fn ready(&mut self, turn: &mut Turn) -> Fate {
        self.acceptor.look(turn);
        if !self.handed.is_empty() {
            turn.readiness.add(Readiness::READABLE);
        }
        if self.paused_until.is_some() || !turn.readiness.has(Readiness::READABLE) {
            return Fate::Wait;
        }
        self.accept(None, turn)
    }

    fn deadline(&self) -> Option<Instant> {
        self.paused_until
    }

    fn expired(&mut self, turn: &mut Turn) -> Fate {
        self.paused_until = None;
        turn.rearm();
        turn.readiness.add(Readiness::READABLE);
        self.accept(None, turn)
    }

    fn freed(&mut self, turn: &mut Turn) -> Fate {
        let pause = self.paused_until.take();
        if pause.is_some() {
            turn.rearm();
            turn.readiness.add(Readiness::READABLE);
        }
        if turn.readiness.has(Readiness::READABLE) { self.accept(pause, turn) } else { Fate::Wait }
    }

    fn stop(&mut self, turn: &mut Turn) -> Fate {
        let _ = turn;
        self.acceptor.stop();
        Fate::Wait
    }

    fn cut(&mut self, turn: &mut Turn) {
        self.acceptor.cut(turn);
    }

    fn inherited(&self) -> Vec<RawFd> {
        self.handed.iter().map(AsRawFd::as_raw_fd).collect()
    }

    fn backing(&mut self) -> Option<Backing<'_>> {
        Some(Backing { taker: &mut *self.acceptor, gate: &mut *self.gate })
    }
}

/// A fault that goes on: it is counted each time, and told once per period.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    times: u64,
    told: Option<Instant>,
}

impl Trouble {
    /// It happened again; how often by now, if it is time to say so.
    pub(super) fn again(&mut self, now: Instant) -> Option<u64> {
        self.times += 1;
        let due = self.told.is_none_or(|told| now.duration_since(told) >= LOG_PERIOD);
        due.then(|| {
            self.told = Some(now);
            self.times
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_goes_on_is_told_once_per_period() {
        let (mut trouble, start) = (Trouble::default(), Instant::now());
        assert_eq!(trouble.again(start), Some(1));
        assert_eq!(trouble.again(start + LOG_PERIOD / 2), None);
        assert_eq!(trouble.again(start + LOG_PERIOD), Some(3));
    }

    #[test]
    fn only_a_broken_listener_is_fatal() {
        let verdict = |errno| classify(&io::Error::from_raw_os_error(errno));
        assert!(matches!(verdict(libc::EAGAIN), Verdict::Drained));
        for errno in [libc::ECONNABORTED, libc::EINTR, libc::EPROTO, libc::ENETDOWN, libc::EPERM] {
            assert!(matches!(verdict(errno), Verdict::Next));
        }
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
            assert!(matches!(verdict(errno), Verdict::Exhausted));
        }
        for errno in [libc::EBADF, libc::EINVAL, libc::ENOTSOCK] {
            assert!(matches!(verdict(errno), Verdict::Fatal));
        }
    }
}
