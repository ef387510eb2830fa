//! Replies that are put aside because a Unix peer's queue is full, to be tried again soon.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use socket2::{SockAddr, Socket};

use super::unresponsive::{PATIENCE, UnresponsivePeers};
use crate::counters::Tally;
use crate::sys::{self, Destination};

/// A Unix peer with a full queue does not show in the poller: it is tried again so often, while no
/// more than [`PEERS_PER_RETRY`] are.
pub(crate) const RETRY: Duration = Duration::from_millis(2);

/// How many peers are tried again in one [`RETRY`]: where more wait, all are tried less often.
const PEERS_PER_RETRY: usize = 128;

/// How much may be put aside for such peers, in bytes; what is over it is lost.
pub(crate) const RETRY_HIGH: usize = 1 << 20;

/// What a reply that waits is charged for beside its bytes, so that empty ones are bounded too.
pub(crate) const OVERHEAD: usize = 64;

/// What a reply that waits is charged for.
pub(crate) fn charge(bytes: usize) -> usize {
    bytes + OVERHEAD
}

/// The replies that are put aside on one socket.
#[derive(Debug, Default)]
pub(crate) struct RetryQueues {
    peers: HashMap<SockAddr, PeerQueue>,
    charge: usize,
    count: usize,
    /// Peers for which nothing is put aside.
    pub(crate) unresponsive: UnresponsivePeers,
}

/// What is put aside for one peer, in order, and since when.
#[derive(Debug)]
struct PeerQueue {
    to: Destination,
    replies: VecDeque<(Instant, Box<[u8]>)>,
}

impl RetryQueues {
    pub(crate) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// How many replies are put aside.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// How much that is, in bytes.
    pub(crate) fn charge(&self) -> usize {
        self.charge
    }

    /// After how long to try again, if anything is put aside.
    pub(crate) fn interval(&self) -> Option<Duration> {
        let steps = 1 + self.peers.len() / PEERS_PER_RETRY;
        (!self.is_empty()).then(|| RETRY * steps as u32)
    }

    /// Whether something is put aside for this peer: a later reply is not to overtake it.
    pub(crate) fn has(&self, peer: &SockAddr) -> bool {
        !self.peers.is_empty() && self.peers.contains_key(peer)
    }

    /// Puts a reply aside; with too much aside it is lost, as datagrams are.
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

    /// Tries those again that were put aside. One that has waited too long is lost.
    pub(crate) fn retry(&mut self, socket: &Socket, now: Instant, tally: &mut Tally) {
        let RetryQueues { peers, charge: charged, count, unresponsive } = self;
        let mut nobody = false;
        peers.retain(|peer, PeerQueue { to, replies }| {
            let mut full = nobody;
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
                        nobody = nobody || sys::is_send_buffer_full(socket);
                        if now.duration_since(*since) < PATIENCE {
                            return true;
                        }
                        unresponsive.record_timeout(peer, now, nobody);
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

    /// Gives up what is put aside.
    pub(crate) fn give_up(&mut self, tally: &mut Tally) {
        tally.unsent += self.count as u64;
        self.peers.clear();
        (self.charge, self.count) = (0, 0);
    }
}

/// For how many peers there stays room when nothing is put aside any more.
const KEPT_PEERS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_peers_wait_the_less_often_they_are_tried_again() {
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
