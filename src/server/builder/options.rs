//! The socket options of a service.

use super::Builder;

impl<F, D, K> Builder<F, D, K> {
    /// Asks the system which local address each UDP datagram was sent to, and by which interface it
    /// came: `IP_PKTINFO` and `IPV6_RECVPKTINFO`, see
    /// [ip(7)](https://man7.org/linux/man-pages/man7/ip.7.html) and
    /// [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html). Off by default; only on Linux.
    ///
    /// [`Context::local_addr`](crate::Context::local_addr) then returns this address, and
    /// [`Context::interface`](crate::Context::interface) the interface. A reply is sent from this
    /// address, and not from the one that the route would give it: for hosts with several addresses,
    /// on a socket that is bound to all of them. A multicast or broadcast address cannot be the source
    /// of a reply, so that the reply to such a datagram comes from an address of this host that the
    /// system chooses.
    #[doc(alias = "IP_PKTINFO")]
    pub fn packet_info(mut self, enabled: bool) -> Self {
        self.plan.bind.pktinfo = enabled;
        self
    }
}
