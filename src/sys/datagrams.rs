//! Datagrams in batches: [recvmmsg(2)](https://man7.org/linux/man-pages/man2/recvmmsg.2.html) and
//! [sendmmsg(2)](https://man7.org/linux/man-pages/man2/sendmmsg.2.html) on Linux and
//! Android; elsewhere one system call for each datagram, with the same results.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use socket2::{SockAddr, Socket};

use super::kernel_drops::KernelDrops;

#[cfg(any(target_os = "linux", target_os = "android"))]
use linux as imp;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
use portable as imp;

pub(crate) use imp::{is_send_buffer_full, send_batch, set_pktinfo, supports_gso, wait_for_room};

/// The maximum number of datagrams that one call sends or receives.
const MOST: usize = 32;

/// How long to wait before a condition is checked again for which the system reports no event.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The kernel's metadata of one received datagram.
#[derive(Debug)]
pub(crate) struct RecvMeta {
    pub(crate) len: usize,
    /// The datagram was longer than the buffer and was truncated.
    pub(crate) truncated: bool,
    pub(crate) from: Destination,
    /// Where the datagram was sent to, if `IP_PKTINFO` is enabled.
    pub(crate) info: Option<PacketInfo>,
}

/// The local address that a datagram was sent to, which may be one of a group, and the interface
/// that it came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PacketInfo {
    pub(crate) to: IpAddr,
    /// The index of the interface; 0 if the system does not tell.
    pub(crate) interface: u32,
}

/// Where a reply goes, and, if `IP_PKTINFO` is enabled, the local address that it is sent from: the
/// one that the request was sent to.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    pub(crate) address: SockAddr,
    local: Option<imp::SourceAddress>,
}

impl Destination {
    /// Sends to this address, from the local address that the route gives.
    pub(crate) fn new(address: SockAddr) -> Self {
        Destination { address, local: None }
    }
}

impl PartialEq for Destination {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address && self.local == other.local
    }
}

/// One send: a datagram, or several datagrams of one size joined (`UDP_SEGMENT`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transmit<'a> {
    pub(crate) to: &'a Destination,
    pub(crate) bytes: &'a [u8],
    /// The size of each joined datagram, in bytes; the last one may be smaller. `None` for one
    /// datagram.
    pub(crate) segment: Option<u16>,
}

/// Buffers for a batch of datagrams.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Consecutive buffers of `size` bytes each. Pages that are never touched take no memory.
    buffers: Box<[u8]>,
    size: usize,
    drops: KernelDrops,
}

impl Batch {
    /// Makes buffers for datagrams of up to `size` bytes of this socket: as many as fit into 2 MiB,
    /// from 1 to [`MOST`].
    pub(crate) fn new(socket: &Socket, size: usize) -> Self {
        let count = ((2 << 20) / size.max(1)).clamp(1, MOST);
        let buffers = vec![0; count * size].into_boxed_slice();
        Batch { buffers, size, drops: KernelDrops::of(socket) }
    }

    /// The bytes of the `number`-th datagram of the batch.
    pub(crate) fn bytes(&self, number: usize, len: usize) -> &[u8] {
        &self.buffers[number * self.size..][..len]
    }

    /// Receives datagrams without waiting, at most one batch and at most `most`. Returns whether
    /// the socket has no more datagrams now.
    pub(crate) fn receive(
        &mut self,
        socket: &Socket,
        most: usize,
        into: &mut Vec<RecvMeta>,
    ) -> io::Result<bool> {
        let buffers = self.buffers.chunks_mut(self.size).take(most.min(MOST));
        imp::receive(socket, buffers, into, &mut self.drops)
    }

    /// How many datagrams the kernel has dropped since the last call, as far as a received datagram
    /// has told it.
    pub(crate) fn take_drops(&mut self) -> u64 {
        self.drops.take()
    }

    /// As [`take_drops`](Batch::take_drops), with those that no datagram has followed.
    pub(crate) fn take_all_drops(&mut self, socket: &Socket) -> u64 {
        self.drops.refresh(socket);
        self.drops.take()
    }
}

/// Sends one datagram without waiting.
pub(crate) fn send_datagram(socket: &Socket, to: &Destination, bytes: &[u8]) -> io::Result<()> {
    send_batch(socket, [Transmit { to, bytes, segment: None }].into_iter()).map(drop)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux {
    use std::io;
    use std::mem::{self, MaybeUninit};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::os::fd::{AsFd, AsRawFd};
    use std::slice::ChunksMut;
    use std::time::Duration;

    use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

    use super::super::checked;
    use super::super::kernel_drops::SO_RXQ_OVFL;
    use super::super::socket::{PollInterest, wait_for};
    use super::{Destination, KernelDrops, LOOK_AGAIN, MOST, PacketInfo, RecvMeta, Transmit};

    /// A local address, as in the control messages of ip(7) and ipv6(7).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum SourceAddress {
        V4([u8; 4]),
        V6([u8; 16], libc::c_uint),
    }

    /// A buffer for the two control messages that a send can have, aligned as `cmsghdr` requires.
    #[derive(Clone, Copy)]
    #[repr(C, align(8))]
    struct ControlBuffer([u8; 64]);

    // SAFETY: the macro only computes a size.
    const _: () = unsafe {
        let segment = libc::CMSG_SPACE(size_of::<u16>() as libc::c_uint);
        let local = libc::CMSG_SPACE(size_of::<libc::in6_pktinfo>() as libc::c_uint);
        assert!((segment + local) as usize <= size_of::<ControlBuffer>());
    };

    /// A buffer for received control messages: those that this module enables, and those that the
    /// creator of a socket has enabled, such as timestamps. The kernel truncates what does not fit.
    #[derive(Clone, Copy)]
    #[repr(C, align(8))]
    struct ReceivedControl(MaybeUninit<[u8; 256]>);

    /// Enables or disables the control message with the local address that a datagram was sent to
    /// (`IP_PKTINFO`).
    pub(crate) fn set_pktinfo(socket: &Socket, ipv6: bool, enabled: bool) -> io::Result<()> {
        set(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, enabled).or_else(|error| {
            // A socket that is only IPv6 may not have the options of IPv4.
            if ipv6 { Ok(()) } else { Err(error) }
        })?;
        if !ipv6 {
            return Ok(());
        }
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, enabled)
    }

    fn set(
        socket: &Socket,
        level: libc::c_int,
        name: libc::c_int,
        enabled: bool,
    ) -> io::Result<()> {
        let value = libc::c_int::from(enabled);
        let size = size_of_val(&value) as libc::socklen_t;
        // SAFETY: setsockopt reads one integer.
        checked(unsafe {
            libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size)
        })
        .map(drop)
    }

    /// Whether the kernel can split one send into several datagrams (`UDP_SEGMENT`, see udp(7)).
    pub(crate) fn supports_gso(socket: &Socket) -> bool {
        let (mut size, mut len) = (0 as libc::c_int, size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: getsockopt writes one integer of the stated size.
        let known = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                (&raw mut size).cast(),
                &mut len,
            )
        };
        known == 0
    }

    /// Whether the send buffer of this Unix socket is full of datagrams that their receivers have
    /// not read, so that no datagram can be sent to any peer: see unix(7), and `SIOCOUTQ` in
    /// ioctl_sockets(2).
    pub(crate) fn is_send_buffer_full(socket: &Socket) -> bool {
        let mut unread: libc::c_int = 0;
        // SAFETY: the request writes one integer.
        let known = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
        known == 0 && socket.send_buffer_size().is_ok_and(|size| unread as usize >= size)
    }

    /// Waits until there may be room for a datagram to this peer.
    ///
    /// poll(2) reports that the queue of a Unix peer is full only on a socket that is connected to
    /// this peer. So a second socket is connected to it and waits.
    pub(crate) fn wait_for_room(
        socket: &Socket,
        to: &Destination,
        timeout: Duration,
    ) -> io::Result<()> {
        if to.address.is_unix() && !is_send_buffer_full(socket) {
            let probe = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
            // connect(2) fails for a peer whose own socket is connected to another address. The
            // queue of such a peer has no limit, so it was not full.
            if probe.connect(&to.address).is_ok() {
                return wait_for(&[(probe.as_fd(), PollInterest::Write)], Some(timeout)).map(drop);
            }
        }
        // A Unix socket is reported as writable only when most of its send buffer is free, so it is
        // checked again after `LOOK_AGAIN`.
        let timeout = if to.address.is_unix() { timeout.min(LOOK_AGAIN) } else { timeout };
        wait_for(&[(socket.as_fd(), PollInterest::Write)], Some(timeout)).map(drop)
    }

    pub(super) fn receive(
        socket: &Socket,
        buffers: std::iter::Take<ChunksMut<'_, u8>>,
        into: &mut Vec<RecvMeta>,
        drops: &mut KernelDrops,
    ) -> io::Result<bool> {
        let mut names: [SockAddrStorage; MOST] = std::array::from_fn(|_| SockAddrStorage::zeroed());
        let mut controls = [ReceivedControl(MaybeUninit::uninit()); MOST];
        // SAFETY: iovec and mmsghdr hold only numbers and pointers, for which zero is a valid
        // value.
        let (mut slices, mut headers) = unsafe {
            (mem::zeroed::<[libc::iovec; MOST]>(), mem::zeroed::<[libc::mmsghdr; MOST]>())
        };
        let mut count = 0;
        for (number, buffer) in buffers.enumerate() {
            slices[number].iov_base = buffer.as_mut_ptr().cast();
            slices[number].iov_len = buffer.len();
            let header = &mut headers[number].msg_hdr;
            header.msg_name = (&raw mut names[number]).cast();
            header.msg_namelen = names[number].size_of();
            header.msg_iov = &raw mut slices[number];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut controls[number]).cast();
            header.msg_controllen = size_of::<ReceivedControl>() as _;
            count += 1;
        }
        // SAFETY: each header points to its own buffer, address storage and control buffer, of the
        // sizes that it states; all of them outlive the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (header, name) in headers.iter().zip(names).take(received) {
            // SAFETY: the kernel has written an address of `len` bytes, which is at most the size
            // of the storage, and control messages of the stated length into an aligned buffer.
            let (address, pktinfo) = unsafe {
                let len = header.msg_hdr.msg_namelen.min(name.size_of());
                (SockAddr::new(name, len), read_control(&header.msg_hdr, drops))
            };
            let (local, info) = pktinfo.unzip();
            into.push(RecvMeta {
                len: header.msg_len as usize,
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
                from: Destination { address, local: local.flatten() },
                info,
            });
        }
        Ok(received < count as usize)
    }

    /// Finds among the control messages the local address that a reply is sent from, and what the
    /// datagram was sent to. `IP_PKTINFO` is preferred: a dual-stack socket reports an IPv4 datagram
    /// also as `IPV6_PKTINFO`. Records the number of dropped datagrams, if the kernel tells it.
    ///
    /// # Safety
    ///
    /// The control messages of the header are as the kernel has written them; the last one may be
    /// truncated.
    unsafe fn read_control(
        header: &libc::msghdr,
        drops: &mut KernelDrops,
    ) -> Option<(Option<SourceAddress>, PacketInfo)> {
        let (mut found, mut of_ipv4) = (None, false);
        // SAFETY: the caller guarantees that the messages are valid; the macros stay within them.
        let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
        while !message.is_null() {
            // SAFETY: the macros return only messages with a complete and aligned header.
            match unsafe { ((*message).cmsg_level, (*message).cmsg_type) } {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    // SAFETY: as above; the structure holds only numbers.
                    if let Some(info) = unsafe { content::<libc::in_pktinfo>(message) } {
                        // For a broadcast or multicast datagram, the kernel puts a local address
                        // into the second field, and the address of the group into the third.
                        let source = SourceAddress::V4(info.ipi_spec_dst.s_addr.to_ne_bytes());
                        let to = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into();
                        let info = PacketInfo { to, interface: info.ipi_ifindex as u32 };
                        (found, of_ipv4) = (Some((Some(source), info)), true);
                    }
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if !of_ipv4 => {
                    // SAFETY: as above.
                    if let Some(info) = unsafe { content::<libc::in6_pktinfo>(message) } {
                        let (to, interface) =
                            (Ipv6Addr::from(info.ipi6_addr.s6_addr), info.ipi6_ifindex);
                        let info = PacketInfo { to: IpAddr::V6(to).to_canonical(), interface };
                        found = Some((source(to, interface), info));
                    }
                }
                (libc::SOL_SOCKET, SO_RXQ_OVFL) => {
                    // SAFETY: as above.
                    if let Some(number) = unsafe { content::<u32>(message) } {
                        drops.record(number);
                    }
                }
                _ => {}
            }
            // SAFETY: the message belongs to the header, and the macro reads only within the length
            // of the control messages.
            message = unsafe { libc::CMSG_NXTHDR(header, message) };
        }
        found
    }

    /// The source address of a reply to a datagram that was sent to `asked`. A multicast address
    /// cannot be a source: there the kernel chooses one, for IPv6 on the interface that the
    /// datagram came by.
    fn source(asked: Ipv6Addr, interface: libc::c_uint) -> Option<SourceAddress> {
        match asked.to_ipv4_mapped() {
            Some(mapped) if mapped.is_multicast() || mapped.is_broadcast() => None,
            Some(_) => Some(SourceAddress::V6(asked.octets(), interface)),
            None if asked.is_multicast() => {
                Some(SourceAddress::V6(Ipv6Addr::UNSPECIFIED.octets(), interface))
            }
            None => Some(SourceAddress::V6(asked.octets(), interface)),
        }
    }

    /// The content of a control message, or `None` if the message is shorter than a `T`: the kernel
    /// truncates a message that does not fit and shortens its length.
    ///
    /// # Safety
    ///
    /// The message is as the kernel has written it, and any bytes are a valid `T`.
    unsafe fn content<T: Copy>(message: *const libc::cmsghdr) -> Option<T> {
        #[allow(clippy::unnecessary_cast)] // the length is narrower in some C libraries
        // SAFETY: the caller guarantees that the header is complete; the macro computes a size.
        let is_whole = unsafe {
            (*message).cmsg_len as usize >= libc::CMSG_LEN(size_of::<T>() as libc::c_uint) as usize
        };
        // SAFETY: the message is long enough for a `T`; the read needs no alignment.
        is_whole.then(|| unsafe { libc::CMSG_DATA(message).cast::<T>().read_unaligned() })
    }

    /// Sends in order until a send fails. Returns how many were sent; an error only if the first
    /// failed.
    pub(crate) fn send_batch<'a>(
        socket: &Socket,
        sends: impl Iterator<Item = Transmit<'a>>,
    ) -> io::Result<usize> {
        let mut controls = [ControlBuffer([0; 64]); MOST];
        // SAFETY: iovec and mmsghdr hold only numbers and pointers, for which zero is a valid
        // value.
        let (mut slices, mut headers) = unsafe {
            (mem::zeroed::<[libc::iovec; MOST]>(), mem::zeroed::<[libc::mmsghdr; MOST]>())
        };
        let mut count = 0;
        for (number, Transmit { to, bytes, segment }) in sends.take(MOST).enumerate() {
            slices[number].iov_base = bytes.as_ptr().cast_mut().cast();
            slices[number].iov_len = bytes.len();
            let header = &mut headers[number].msg_hdr;
            header.msg_name = to.address.as_ptr().cast_mut().cast();
            header.msg_namelen = to.address.len();
            header.msg_iov = &raw mut slices[number];
            header.msg_iovlen = 1;
            if segment.is_some() || to.local.is_some() {
                header.msg_control = (&raw mut controls[number]).cast();
                // SAFETY: the control buffer belongs to this header alone, is zeroed and aligned,
                // and is large enough for two messages.
                unsafe { write_control(header, segment, to.local) };
            }
            count += 1;
        }
        // SAFETY: each header points to bytes, an address and control messages that outlive the
        // call, which only reads them.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count,
                (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Writes control messages, and their length into the header.
    ///
    /// # Safety
    ///
    /// The header's control buffer is a [`ControlBuffer`] of zeros.
    unsafe fn write_control(
        header: &mut libc::msghdr,
        segment: Option<u16>,
        local: Option<SourceAddress>,
    ) {
        let mut length = 0;
        let mut write = |level, kind, data: &[u8]| {
            header.msg_controllen = size_of::<ControlBuffer>() as _;
            // SAFETY: the buffer has room for a header and data of the largest size, twice; the
            // message written is within it, at an offset that CMSG_SPACE keeps aligned.
            unsafe {
                let message = header.msg_control.cast::<u8>().add(length).cast::<libc::cmsghdr>();
                (*message).cmsg_level = level;
                (*message).cmsg_type = kind;
                (*message).cmsg_len = libc::CMSG_LEN(data.len() as libc::c_uint) as _;
                libc::CMSG_DATA(message).copy_from_nonoverlapping(data.as_ptr(), data.len());
                length += libc::CMSG_SPACE(data.len() as libc::c_uint) as usize;
            }
        };
        if let Some(segment) = segment {
            write(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        match local {
            // With interface 0 the kernel chooses the route; only the source address is set.
            Some(SourceAddress::V4(address)) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&address);
                write(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(SourceAddress::V6(address, interface)) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&address);
                info[16..].copy_from_slice(&interface.to_ne_bytes());
                write(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        header.msg_controllen = length as _;
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod portable {
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::AsFd;
    use std::slice::ChunksMut;
    use std::time::Duration;

    use socket2::{MaybeUninitSlice, Socket};

    use super::super::socket::{PollInterest, wait_for};
    use super::{Destination, KernelDrops, LOOK_AGAIN, RecvMeta, Transmit};

    /// Not supported here: this system is not asked which local address a datagram was sent to.
    pub(crate) type SourceAddress = std::convert::Infallible;

    pub(crate) fn set_pktinfo(_socket: &Socket, _ipv6: bool, enabled: bool) -> io::Result<()> {
        if enabled { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
    }

    pub(crate) fn supports_gso(_socket: &Socket) -> bool {
        false
    }

    /// Here only the receiver holds a datagram that is not read yet, so the send buffer is not
    /// full.
    pub(crate) fn is_send_buffer_full(_socket: &Socket) -> bool {
        false
    }

    /// Waits until there may be room for a datagram to this peer. poll(2) does not report that the
    /// queue of a Unix peer is full, so the caller tries again after at most `LOOK_AGAIN`.
    pub(crate) fn wait_for_room(
        socket: &Socket,
        to: &Destination,
        timeout: Duration,
    ) -> io::Result<()> {
        if to.address.is_unix() {
            std::thread::sleep(timeout.min(LOOK_AGAIN));
            return Ok(());
        }
        wait_for(&[(socket.as_fd(), PollInterest::Write)], Some(timeout)).map(drop)
    }

    pub(super) fn receive(
        socket: &Socket,
        buffers: std::iter::Take<ChunksMut<'_, u8>>,
        into: &mut Vec<RecvMeta>,
        _drops: &mut KernelDrops,
    ) -> io::Result<bool> {
        for (number, buffer) in buffers.enumerate() {
            // SAFETY: initialised bytes may be viewed as `MaybeUninit`; the callee writes only
            // initialised bytes.
            let uninit = unsafe { &mut *(buffer as *mut [u8] as *mut [MaybeUninit<u8>]) };
            let mut slices = [MaybeUninitSlice::new(uninit)];
            match socket.recv_from_vectored_with_flags(&mut slices, libc::MSG_DONTWAIT) {
                Ok((len, flags, address)) => into.push(RecvMeta {
                    len,
                    truncated: flags.is_truncated(),
                    from: Destination { address, local: None },
                    info: None,
                }),
                Err(error) if number == 0 => return Err(error),
                // The next call returns this error.
                Err(error) => return Ok(error.kind() == io::ErrorKind::WouldBlock),
            }
        }
        Ok(false)
    }

    pub(crate) fn send_batch<'a>(
        socket: &Socket,
        sends: impl Iterator<Item = Transmit<'a>>,
    ) -> io::Result<usize> {
        let mut sent = 0;
        for Transmit { to, bytes, .. } in sends {
            match socket.send_to_with_flags(bytes, &to.address, libc::MSG_DONTWAIT) {
                Ok(_) => sent += 1,
                Err(error) if sent == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(sent)
    }
}
