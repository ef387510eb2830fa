//! Peers that do not read what they are sent, as far as that shows: by waiting for them in vain.

use crate::guard::log;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use socket2::SockAddr;

/// How long a datagram waits for room in the kernel before it counts as lost.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// How long nobody waits for a peer that was waited for in vain.
const TTL: Duration = Duration::from_secs(5);

/// How many peers are remembered.
const MAX_PEERS: usize = 1024;

/// Peers that were waited for in vain: until one of them reads, or for a while, what there is no
/// room for is lost at once, so that a peer costs whoever answers one wait and not one per reply.
#[derive(Debug, Default)]
pub(crate) struct UnresponsivePeers {
    until: HashMap<SockAddr, Instant>,
    /// The socket's own buffer was full: nobody is worth waiting for.
    all_until: Option<Instant>,
    /// This has just begun, and is to be warned of.
    warns: bool,
}

/// Warns that a socket can send nothing. Not to be called while a lock is held: the logger may send
/// by the same socket.
pub(crate) fn warn_of_full_send_buffer() {
    log::warn!(
        "a Unix datagram socket can send nothing: its send buffer is full of what its clients have \
         not read, and until they do replies are lost"
    );
}

impl UnresponsivePeers {
    /// How long a datagram to this peer may wait.
    pub(crate) fn wait_budget(&self, peer: &SockAddr, now: Instant) -> Duration {
        let until = self.all_until.into_iter().chain(self.until.get(peer).copied()).max();
        if until.is_some_and(|until| now < until) { Duration::ZERO } else { PATIENCE }
    }

    /// How long a thread that can do nothing else meanwhile waits for this peer: the more peers do
    /// not read, the shorter, so that a thousand of them cost seven waits and not a thousand.
    pub(crate) fn blocking_wait_budget(&self, peer: &SockAddr, now: Instant) -> Duration {
        let unresponsive = self.until.values().filter(|until| now < **until).count();
        self.wait_budget(peer, now) / (1 + unresponsive as u32)
    }

    /// A datagram has waited in vain; `for_all` says that one to anybody would have.
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

    /// A datagram to this peer has gone.
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
    fn an_unresponsive_peer_is_not_waited_for_until_it_reads_or_the_ttl_expires() {
        let (mut unresponsive, now) = (UnresponsivePeers::default(), Instant::now());
        assert_eq!(unresponsive.wait_budget(&peer(1), now), PATIENCE);
        unresponsive.record_timeout(&peer(1), now, false);
        assert_eq!(unresponsive.wait_budget(&peer(1), now), Duration::ZERO);
        assert_eq!(unresponsive.wait_budget(&peer(2), now), PATIENCE);
        assert_eq!(unresponsive.wait_budget(&peer(1), now + TTL), PATIENCE);
        unresponsive.record_sent(&peer(2));
        assert_eq!(unresponsive.wait_budget(&peer(1), now), Duration::ZERO);
        unresponsive.record_sent(&peer(1));
        assert_eq!(unresponsive.wait_budget(&peer(1), now), PATIENCE);
    }

    #[test]
    fn when_the_send_buffer_is_full_no_peer_is_waited_for() {
        let (mut unresponsive, now) = (UnresponsivePeers::default(), Instant::now());
        unresponsive.record_timeout(&peer(1), now, true);
        assert_eq!(unresponsive.wait_budget(&peer(3), now), Duration::ZERO);
        unresponsive.record_sent(&peer(2));
        assert_eq!(unresponsive.wait_budget(&peer(3), now), PATIENCE);
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
    fn a_thousand_peers_that_do_not_read_block_for_eight_times_the_patience_at_most() {
        let (mut unresponsive, now) = (UnresponsivePeers::default(), Instant::now());
        let mut blocked = Duration::ZERO;
        for number in 0..1000 {
            blocked += unresponsive.blocking_wait_budget(&peer(number), now);
            unresponsive.record_timeout(&peer(number), now, false);
        }
        assert!((PATIENCE..8 * PATIENCE).contains(&blocked), "{blocked:?}");
        let later = now + TTL;
        assert_eq!(unresponsive.blocking_wait_budget(&peer(1000), later), PATIENCE);
    }
}
