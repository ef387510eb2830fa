//! Permits: the open connections of one listener, counted in all and by address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::address::Peer;
use crate::limits::Limits;
use crate::sync::lock;

/// Counts the open connections of a listener that limits their number.
#[derive(Debug)]
pub(crate) struct ConnectionLimiter {
    max_connections: usize,
    max_per_address: usize,
    open: Mutex<OpenConnections>,
}

#[derive(Debug, Default)]
struct OpenConnections {
    all: usize,
    /// By address, with a hash that a peer cannot predict; only where that is limited.
    by_address: HashMap<AddressPrefix, usize>,
}

/// The part of an address that one host commonly has for itself: an IPv4 address, or the first 64
/// bits of an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum AddressPrefix {
    V4(u32),
    V6(u64),
}

impl AddressPrefix {
    fn of(peer: &Peer) -> Option<Self> {
        Some(match peer.inet()?.ip().to_canonical() {
            IpAddr::V4(address) => AddressPrefix::V4(address.to_bits()),
            // The shift leaves 64 bits.
            IpAddr::V6(address) => AddressPrefix::V6((address.to_bits() >> 64) as u64),
        })
    }
}

impl ConnectionLimiter {
    /// `None` if the limits say nothing about the number of connections.
    pub(crate) fn new(limits: &Limits) -> Option<Arc<Self>> {
        let Limits { max_connections, max_per_address, .. } = limits;
        (max_connections.is_some() || max_per_address.is_some()).then(|| {
            Arc::new(ConnectionLimiter {
                max_connections: max_connections.unwrap_or(usize::MAX),
                max_per_address: max_per_address.unwrap_or(usize::MAX),
                open: Mutex::default(),
            })
        })
    }

    /// Whether the listener has as many connections as it may have.
    pub(crate) fn is_full(&self) -> bool {
        self.max_connections != usize::MAX && lock(&self.open).all >= self.max_connections
    }

    /// A permit for a connection of this peer. `None` if too many of its address are open.
    pub(crate) fn acquire(self: &Arc<Self>, peer: &Peer) -> Option<ConnectionPermit> {
        let limits_addresses = self.max_per_address != usize::MAX;
        let prefix = if limits_addresses { AddressPrefix::of(peer) } else { None };
        let mut open = lock(&self.open);
        if let Some(prefix) = prefix {
            let of_address = open.by_address.entry(prefix).or_default();
            if *of_address >= self.max_per_address {
                return None;
            }
            *of_address += 1;
        }
        open.all += 1;
        Some(ConnectionPermit { limiter: self.clone(), prefix })
    }
}

/// The place of one connection; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    prefix: Option<AddressPrefix>,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = lock(&self.limiter.open);
        open.all -= 1;
        if let Some(prefix) = self.prefix
            && let Some(of_address) = open.by_address.get_mut(&prefix)
        {
            *of_address -= 1;
            if *of_address == 0 {
                open.by_address.remove(&prefix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn peer(address: &str) -> Peer {
        address.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn an_address_has_so_many_permits_and_gets_them_back() {
        let limiter = ConnectionLimiter::new(&Limits::default().max_per_address(2)).unwrap();
        let first = limiter.acquire(&peer("127.0.0.1:1")).unwrap();
        let second = limiter.acquire(&peer("127.0.0.1:2")).unwrap();
        assert!(limiter.acquire(&peer("127.0.0.1:3")).is_none());
        let other = limiter.acquire(&peer("127.0.0.2:1")).unwrap();
        drop(first);
        let third = limiter.acquire(&peer("127.0.0.1:3")).unwrap();
        drop((second, third, other));
        assert!(lock(&limiter.open).by_address.is_empty(), "no entry is left");
    }

    #[test]
    fn an_ipv6_network_of_64_bits_counts_as_one_address() {
        let limiter = ConnectionLimiter::new(&Limits::default().max_per_address(1)).unwrap();
        let _permit = limiter.acquire(&peer("[2001:db8::1]:1")).unwrap();
        assert!(limiter.acquire(&peer("[2001:db8::ffff:2]:1")).is_none());
        assert!(limiter.acquire(&peer("[2001:db8:0:1::1]:1")).is_some());
    }

    #[test]
    fn a_listener_is_full_with_so_many_connections_of_any_peer() {
        let limiter = ConnectionLimiter::new(&Limits::default().max_connections(2)).unwrap();
        let first = limiter.acquire(&Peer::Unnamed).unwrap();
        assert!(!limiter.is_full());
        let second = limiter.acquire(&peer("127.0.0.1:1")).unwrap();
        assert!(limiter.is_full());
        drop(first);
        assert!(!limiter.is_full());
        drop(second);
        assert!(ConnectionLimiter::new(&Limits::default()).is_none());
    }
}
