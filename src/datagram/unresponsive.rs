//! Unresponsive peers: peers that did not read while a datagram waited for room.

use crate::guard::log;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use socket2::SockAddr;

/// How long a datagram waits for room in the kernel before it counts as lost.
pub(crate) const SEND_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a peer is treated as unresponsive.
const TTL: Duration = Duration::from_secs(5);

/// The maximum number of recorded peers.
const MAX_PEERS: usize = 1024;

/// The peers to which a datagram found no room in time. Until such a peer reads, or for [`TTL`],
/// datagrams to it that find no room are dropped at once. So a peer causes one wait, and not one
/// per reply.
#[derive(Debug, Default)]
pub(crate) struct UnresponsivePeers {
    until: HashMap<SockAddr, Instant>,
    /// Until when all peers count as unresponsive, because the socket's own send buffer was full.
    all_until: Option<Instant>,
    /// Whether a warning about the full send buffer is due.
    warns: bool,
}

/// Warns that a socket cannot send. Do not call it while a lock is held: the logger may send on the
/// same socket.
pub(crate) fn warn_of_full_send_buffer() {
    log::warn!(
        "a Unix datagram socket cannot send: its send buffer is full of datagrams that its clients have \
         not read; replies are lost until they read"
    );
}

impl UnresponsivePeers {
    /// How long a datagram to this peer may wait.
    pub(crate) fn wait_budget(&self, peer: &SockAddr, now: Instant) -> Duration {
        let until = self.all_until.into_iter().chain(self.until.get(peer).copied()).max();
        if until.is_some_and(|until| now < until) { Duration::ZERO } else { SEND_TIMEOUT }
    }

    /// How long a thread blocks for this peer: the more peers are unresponsive, the shorter, so
    /// that a thousand such peers cost the time of about seven waits and not of a thousand.
    pub(crate) fn blocking_wait_budget(&self, peer: &SockAddr, now: Instant) -> Duration {
        let unresponsive = self.until.values().filter(|until| now < **until).count();
        self.wait_budget(peer, now) / (1 + unresponsive as u32)
    }

    /// Records that a datagram found no room in time; `for_all` says that the socket's own send
    /// buffer was full, so that no datagram could be sent.
    pub(crate) fn record_timeout(&mut self, peer: &SockAddr, now: Instant, for_all: bool) {
        if for_all {
            self.warns |= self.all_until.replace(now + TTL).is_none();
            return;
        }
        if self.until.len() >= MAX_PEERS {
            self.until.retain(|_, until| now < *until);
        }
        if self.until.len() >= MAX_PEERS {
            self.until.clear();
        }
        self.until.insert(peer.clone(), now + TTL);
    }

    /// Whether to [warn](warn_of_full_send_buffer), once each time that the buffer has become full.
    pub(crate) fn take_warning(&mut self) -> bool {
        std::mem::take(&mut self.warns)
    }

    /// Records that a datagram to this peer was sent.
    pub(crate) fn record_sent(&mut self, peer: &SockAddr) {
        self.all_until = None;
        if !self.until.is_empty() {
            self.until.remove(peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: usize) -> SockAddr {
        SockAddr::unix(format!("peer-{number}")).unwrap()
    }

    #[test]
    fn no_thread_waits_for_an_unresponsive_peer_until_it_reads_or_its_record_expires() {
        let (mut unresponsive, now) = (UnresponsivePeers::default(), Instant::now());
        assert_eq!(unresponsive.wait_budget(&peer(1), now), SEND_TIMEOUT);
        unresponsive.record_timeout(&peer(1), now, false);
        assert_eq!(unresponsive.wait_budget(&peer(1), now), Duration::ZERO);
        assert_eq!(unresponsive.wait_budget(&peer(2), now), SEND_TIMEOUT);
        assert_eq!(unresponsive.wait_budget(&peer(1), now + TTL), SEND_TIMEOUT);
        unresponsive.record_sent(&peer(2));
        assert_eq!(unresponsive.wait_budget(&peer(1), now), Duration::ZERO);
        unresponsive.record_sent(&peer(1));
        assert_eq!(unresponsive.wait_budget(&peer(1), now), SEND_TIMEOUT);
    }

    #[test]
    fn no_thread_waits_for_any_peer_while_the_send_buffer_is_full() {
        let (mut unresponsive, now) = (UnresponsivePeers::default(), Instant::now());
        unresponsive.record_timeout(&peer(1), now, true);
        assert_eq!(unresponsive.wait_budget(&peer(3), now), Duration::ZERO);
        unresponsive.record_sent(&peer(2));
        assert_eq!(unresponsive.wait_budget(&peer(3), now), SEND_TIMEOUT);
    }

    #[test]
    fn the_number_of_recorded_unresponsive_peers_is_bounded() {
        let (mut unresponsive, now) = (UnresponsivePeers::default(), Instant::now());
        for number in 0..3 * MAX_PEERS {
            unresponsive.record_timeout(&peer(number), now, false);
            assert!(unresponsive.until.len() <= MAX_PEERS);
        }
        assert_eq!(unresponsive.wait_budget(&peer(3 * MAX_PEERS - 1), now), Duration::ZERO);
    }

    #[test]
    fn a_thousand_unresponsive_peers_block_for_at_most_eight_send_timeouts() {
        let (mut unresponsive, now) = (UnresponsivePeers::default(), Instant::now());
        let mut blocked = Duration::ZERO;
        for number in 0..1000 {
            blocked += unresponsive.blocking_wait_budget(&peer(number), now);
            unresponsive.record_timeout(&peer(number), now, false);
        }
        assert!((SEND_TIMEOUT..8 * SEND_TIMEOUT).contains(&blocked), "{blocked:?}");
        let later = now + TTL;
        assert_eq!(unresponsive.blocking_wait_budget(&peer(1000), later), SEND_TIMEOUT);
    }
}
