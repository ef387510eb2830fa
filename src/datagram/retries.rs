//! The retry queues: replies that wait because the queue of a Unix peer is full.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use socket2::{SockAddr, Socket};

use super::unresponsive::{SEND_TIMEOUT, UnresponsivePeers};
use crate::counters::Tally;
use crate::sys::{self, Destination};

/// The retry interval. The poller does not report room in the queue of a Unix peer. The interval is
/// longer if more than [`PEERS_PER_RETRY`] peers wait.
pub(crate) const RETRY: Duration = Duration::from_millis(2);

/// How many peers are retried per [`RETRY`]: if more wait, all are retried less often.
const PEERS_PER_RETRY: usize = 128;

/// The limit of queued replies, in bytes; further replies are dropped.
pub(crate) const RETRY_HIGH: usize = 1 << 20;

/// How many bytes a queued reply counts in addition to its own, so that empty replies are bounded too.
pub(crate) const OVERHEAD: usize = 64;

/// How many bytes a queued reply counts.
pub(crate) fn charge(bytes: usize) -> usize {
    bytes + OVERHEAD
}

/// The queued replies of one socket.
#[derive(Debug, Default)]
pub(crate) struct RetryQueues {
    peers: HashMap<SockAddr, PeerQueue>,
    charge: usize,
    count: usize,
    /// Peers that were found unresponsive.
    pub(crate) unresponsive: UnresponsivePeers,
}

/// The queued replies to one peer, in order, with the time when each was queued.
#[derive(Debug)]
struct PeerQueue {
    to: Destination,
    replies: VecDeque<(Instant, Box<[u8]>)>,
}

impl RetryQueues {
    pub(crate) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// How many replies are queued.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The size of all queued replies, in bytes.
    pub(crate) fn charge(&self) -> usize {
        self.charge
    }

    /// The time until the next retry, if any reply is queued.
    pub(crate) fn interval(&self) -> Option<Duration> {
        let steps = 1 + self.peers.len() / PEERS_PER_RETRY;
        (!self.is_empty()).then(|| RETRY * steps as u32)
    }

    /// Whether replies to this peer are queued: a later reply must not overtake them.
    pub(crate) fn has(&self, peer: &SockAddr) -> bool {
        !self.peers.is_empty() && self.peers.contains_key(peer)
    }

    /// Queues a reply; if the queue is full, the reply is dropped.
    pub(crate) fn put(
        &mut self,
        to: Destination,
        bytes: Box<[u8]>,
        now: Instant,
        tally: &mut Tally,
    ) {
        if self.charge >= RETRY_HIGH {
            tally.unsent += 1;
            return;
        }
        self.charge += charge(bytes.len());
        self.count += 1;
        let queue = self.peers.entry(to.address.clone());
        let queue = queue.or_insert_with(|| PeerQueue { to, replies: VecDeque::new() });
        queue.replies.push_back((now, bytes));
    }

    /// Retries the queued replies. A reply that has waited too long is dropped.
    pub(crate) fn retry(&mut self, socket: &Socket, now: Instant, tally: &mut Tally) {
        let RetryQueues { peers, charge: charged, count, unresponsive } = self;
        let mut send_buffer_full = false;
        peers.retain(|peer, PeerQueue { to, replies }| {
            let mut full = send_buffer_full;
            while let Some((since, bytes)) = replies.front() {
                let sent = if full {
                    Err(io::ErrorKind::WouldBlock.into())
                } else {
                    sys::send_datagram(socket, to, bytes)
                };
                match sent {
                    Ok(()) => {
                        unresponsive.record_sent(peer);
                        tally.replies += 1;
                        tally.bytes_out += bytes.len() as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        full = true;
                        send_buffer_full = send_buffer_full || sys::is_send_buffer_full(socket);
                        if now.duration_since(*since) < SEND_TIMEOUT {
                            return true;
                        }
                        unresponsive.record_timeout(peer, now, send_buffer_full);
                        tally.unsent += 1;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => tally.unsent += 1,
                }
                *charged -= charge(bytes.len());
                *count -= 1;
                replies.pop_front();
            }
            false
        });
        if peers.is_empty() {
            peers.shrink_to(KEPT_PEERS);
        }
    }

    /// Drops the queued replies.
    pub(crate) fn give_up(&mut self, tally: &mut Tally) {
        tally.unsent += self.count as u64;
        self.peers.clear();
        (self.charge, self.count) = (0, 0);
    }
}

/// The capacity, in peers, that is kept when the queue is empty.
const KEPT_PEERS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_peers_wait_the_longer_is_the_retry_interval() {
        let (mut retries, mut tally) = (RetryQueues::default(), Tally::default());
        let mut intervals = vec![retries.interval()];
        for number in 0..4 * PEERS_PER_RETRY {
            let to = Destination::new(SockAddr::unix(format!("peer-{number}")).unwrap());
            retries.put(to, [].into(), Instant::now(), &mut tally);
            if number % PEERS_PER_RETRY == 0 {
                intervals.push(retries.interval());
            }
        }
        assert_eq!(intervals[0], None);
        assert_eq!(intervals[1..], [1, 2, 3, 4].map(|steps| Some(RETRY * steps)));
        retries.give_up(&mut tally);
        assert_eq!(retries.interval(), None);
        assert_eq!(tally.unsent as usize, 4 * PEERS_PER_RETRY);
    }
}
