//! Socket options that differ between systems.

use std::ffi::CString;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use socket2::{InterfaceIndexOrAddress, Socket, TcpKeepalive};

pub(crate) use imp::{
    join_multicast_v4, receive_only_joined_groups, set_defer_accept, set_keepalive,
    set_multicast_interface_v4, set_user_timeout,
};
#[cfg(any(target_os = "linux", target_os = "android"))]
use linux as imp;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
use portable as imp;

/// The index of a network interface (if_nametoindex(3)).
pub(crate) fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: the name ends with a NUL and outlives the call, which only reads it.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sys::checked;

    /// Sets when TCP probes an idle connection: after `idle`, then each `interval`, and after how many
    /// probes without an answer the connection is reset. See tcp(7).
    pub(crate) fn set_keepalive(
        socket: &Socket,
        idle: Duration,
        interval: Duration,
        retries: u32,
    ) -> io::Result<()> {
        let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval);
        socket.set_tcp_keepalive(&keepalive.with_retries(retries))
    }

    /// Sets how long sent data may stay unacknowledged (`TCP_USER_TIMEOUT` in tcp(7)), rounded up to
    /// milliseconds. 0 is the system's value.
    pub(crate) fn set_user_timeout(socket: &Socket, timeout: Duration) -> io::Result<()> {
        let millis = timeout.as_nanos().div_ceil(1_000_000);
        set_tcp_option(socket, libc::TCP_USER_TIMEOUT, millis)
    }

    /// Sets how long a client is held back that has sent nothing (`TCP_DEFER_ACCEPT` in tcp(7)), in
    /// whole seconds.
    pub(crate) fn set_defer_accept(socket: &Socket, time: Duration) -> io::Result<()> {
        set_tcp_option(socket, libc::TCP_DEFER_ACCEPT, time.as_secs().into())
    }

    fn set_tcp_option(socket: &Socket, name: libc::c_int, value: u128) -> io::Result<()> {
        let value = libc::c_int::try_from(value).map_err(|_| io::ErrorKind::InvalidInput)?;
        let size = size_of_val(&value) as libc::socklen_t;
        // SAFETY: setsockopt reads one integer.
        checked(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                name,
                (&raw const value).cast(),
                size,
            )
        })
        .map(drop)
    }

    /// Joins an IPv4 group on an interface (`IP_ADD_MEMBERSHIP` in ip(7)).
    pub(crate) fn join_multicast_v4(
        socket: &Socket,
        group: &Ipv4Addr,
        interface: &InterfaceIndexOrAddress,
    ) -> io::Result<()> {
        socket.join_multicast_v4_n(group, interface)
    }

    /// Sets the interface that IPv4 multicast datagrams are sent by (`IP_MULTICAST_IF` in ip(7)).
    pub(crate) fn set_multicast_interface_v4(
        socket: &Socket,
        interface: &InterfaceIndexOrAddress,
    ) -> io::Result<()> {
        let index = match interface {
            InterfaceIndexOrAddress::Address(address) => {
                return socket.set_multicast_if_v4(address);
            }
            InterfaceIndexOrAddress::Index(index) => *index,
        };
        let request = libc::ip_mreqn {
            imr_multiaddr: libc::in_addr { s_addr: 0 },
            imr_address: libc::in_addr { s_addr: 0 },
            imr_ifindex: index as libc::c_int,
        };
        // SAFETY: setsockopt reads one structure of the stated size.
        checked(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_MULTICAST_IF,
                (&raw const request).cast(),
                size_of_val(&request) as libc::socklen_t,
            )
        })
        .map(drop)
    }

    /// Keeps out the datagrams of groups that only other sockets of the host have joined
    /// (`IP_MULTICAST_ALL` in ip(7)). By default a socket that is bound to all addresses receives them.
    pub(crate) fn receive_only_joined_groups(socket: &Socket, ipv6: bool) -> io::Result<()> {
        let (level, name) = match ipv6 {
            false => (libc::IPPROTO_IP, libc::IP_MULTICAST_ALL),
            true => (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL),
        };
        let off: libc::c_int = 0;
        let size = size_of_val(&off) as libc::socklen_t;
        // SAFETY: setsockopt reads one integer.
        let set = checked(unsafe {
            libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const off).cast(), size)
        });
        match set {
            // Linux before 4.20 does not have the option for IPv6.
            Err(error) if error.raw_os_error() != Some(libc::ENOPROTOOPT) => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod portable {
    use super::*;

    /// Not every system has all three settings.
    pub(crate) fn set_keepalive(
        socket: &Socket,
        idle: Duration,
        interval: Duration,
        retries: u32,
    ) -> io::Result<()> {
        #[cfg(any(
            target_os = "dragonfly",
            target_os = "freebsd",
            target_os = "ios",
            target_os = "macos",
            target_os = "netbsd"
        ))]
        {
            let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval);
            socket.set_tcp_keepalive(&keepalive.with_retries(retries))
        }
        #[cfg(not(any(
            target_os = "dragonfly",
            target_os = "freebsd",
            target_os = "ios",
            target_os = "macos",
            target_os = "netbsd"
        )))]
        {
            let _ = (socket, idle, interval, retries);
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// Only Linux has this option.
    pub(crate) fn set_user_timeout(_socket: &Socket, _timeout: Duration) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Only Linux has this option.
    pub(crate) fn set_defer_accept(_socket: &Socket, _time: Duration) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The address of an interface; an IPv4 interface is not named by its index here.
    fn address_of(interface: &InterfaceIndexOrAddress) -> io::Result<Ipv4Addr> {
        match interface {
            InterfaceIndexOrAddress::Address(address) => Ok(*address),
            InterfaceIndexOrAddress::Index(0) => Ok(Ipv4Addr::UNSPECIFIED),
            InterfaceIndexOrAddress::Index(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(crate) fn join_multicast_v4(
        socket: &Socket,
        group: &Ipv4Addr,
        interface: &InterfaceIndexOrAddress,
    ) -> io::Result<()> {
        socket.join_multicast_v4(group, &address_of(interface)?)
    }

    pub(crate) fn set_multicast_interface_v4(
        socket: &Socket,
        interface: &InterfaceIndexOrAddress,
    ) -> io::Result<()> {
        socket.set_multicast_if_v4(&address_of(interface)?)
    }

    /// Here a socket receives only the groups that it has joined.
    pub(crate) fn receive_only_joined_groups(_socket: &Socket, _ipv6: bool) -> io::Result<()> {
        Ok(())
    }
}
