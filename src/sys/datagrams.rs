//! Datagrams in batches: [recvmmsg(2)](https://man7.org/linux/man-pages/man2/recvmmsg.2.html) and
//! [sendmmsg(2)](https://man7.org/linux/man-pages/man2/sendmmsg.2.html) where the system has them,
//! one call each elsewhere, with the same results.

use std::io;
use std::mem;
use std::os::fd::AsRawFd;

use socket2::{SockAddr, SockAddrStorage, Socket};

/// The most datagrams that one call takes or brings.
const MOST: usize = 32;

/// What the kernel says of one datagram received.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) len: usize,
    /// It was longer than the buffer, and was cut.
    pub(crate) truncated: bool,
    pub(crate) address: SockAddr,
}

/// Buffers for a batch of datagrams.
#[derive(Debug)]
pub(crate) struct Batch {
    /// One buffer after the other, of `size` bytes each. Untouched pages cost nothing.
    buffers: Box<[u8]>,
    size: usize,
}

impl Batch {
    /// Buffers for datagrams of up to `size` bytes, as many as fit into about a megabyte.
    pub(crate) fn new(size: usize) -> Self {
        let count = ((1 << 20) / size.max(1)).clamp(1, MOST);
        Batch { buffers: vec![0; count * size].into_boxed_slice(), size }
    }

    /// The bytes of the `number`-th datagram of the batch.
    pub(crate) fn bytes(&self, number: usize, len: usize) -> &[u8] {
        &self.buffers[number * self.size..][..len]
    }

    /// Receives what is there, without waiting, at most a batch or `most`; false when there may be
    /// more.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(crate) fn receive(
        &mut self,
        socket: &Socket,
        most: usize,
        into: &mut Vec<Received>,
    ) -> io::Result<bool> {
        let mut names: [SockAddrStorage; MOST] = std::array::from_fn(|_| SockAddrStorage::zeroed());
        // SAFETY: iovec and mmsghdr are plain numbers and pointers, of which zero is a valid value.
        let (mut slices, mut headers) = unsafe {
            (mem::zeroed::<[libc::iovec; MOST]>(), mem::zeroed::<[libc::mmsghdr; MOST]>())
        };
        let count = (self.buffers.len() / self.size.max(1)).min(most).min(MOST);
        for (number, chunk) in self.buffers.chunks_mut(self.size).take(count).enumerate() {
            slices[number].iov_base = chunk.as_mut_ptr().cast();
            slices[number].iov_len = chunk.len();
            let header = &mut headers[number].msg_hdr;
            header.msg_name = (&raw mut names[number]).cast();
            header.msg_namelen = names[number].size_of();
            header.msg_iov = &raw mut slices[number];
            header.msg_iovlen = 1;
        }
        // SAFETY: each header points to a buffer and an address storage of its own, of the sizes
        // that it states, all of which outlive the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (header, name) in headers.iter().zip(names).take(received) {
            into.push(Received {
                len: header.msg_len as usize,
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
                // SAFETY: the kernel has written an address of that length.
                address: unsafe { SockAddr::new(name, header.msg_hdr.msg_namelen) },
            });
        }
        Ok(received < count)
    }

    /// As above, one at a time.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(crate) fn receive(
        &mut self,
        socket: &Socket,
        most: usize,
        into: &mut Vec<Received>,
    ) -> io::Result<bool> {
        for (number, chunk) in self.buffers.chunks_mut(self.size).take(most).enumerate() {
            // SAFETY: bytes that are initialised may be seen as ones that need not be; the callee
            // writes only initialised ones.
            let uninit = unsafe { &mut *(chunk as *mut [u8] as *mut [mem::MaybeUninit<u8>]) };
            let mut slices = [socket2::MaybeUninitSlice::new(uninit)];
            match socket.recv_from_vectored_with_flags(&mut slices, libc::MSG_DONTWAIT) {
                Ok((len, flags, address)) => {
                    into.push(Received { len, truncated: flags.is_truncated(), address });
                }
                Err(error) if number == 0 => return Err(error),
                Err(_) => return Ok(true),
            }
        }
        Ok(false)
    }
}

/// Sends datagrams in order until the kernel refuses one; how many it took. An error is the first
/// one's.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn send_batch<'a>(
    socket: &Socket,
    datagrams: impl Iterator<Item = (&'a SockAddr, &'a [u8])>,
) -> io::Result<usize> {
    // SAFETY: iovec and mmsghdr are plain numbers and pointers, of which zero is a valid value.
    let (mut slices, mut headers) =
        unsafe { (mem::zeroed::<[libc::iovec; MOST]>(), mem::zeroed::<[libc::mmsghdr; MOST]>()) };
    let mut count = 0;
    for (number, (address, bytes)) in datagrams.take(MOST).enumerate() {
        slices[number].iov_base = bytes.as_ptr().cast_mut().cast();
        slices[number].iov_len = bytes.len();
        let header = &mut headers[number].msg_hdr;
        header.msg_name = address.as_ptr().cast_mut().cast();
        header.msg_namelen = address.len();
        header.msg_iov = &raw mut slices[number];
        header.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: each header points to bytes and an address that outlive the call, which only reads
    // them.
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

/// As above, one at a time.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn send_batch<'a>(
    socket: &Socket,
    datagrams: impl Iterator<Item = (&'a SockAddr, &'a [u8])>,
) -> io::Result<usize> {
    let mut sent = 0;
    for (address, bytes) in datagrams.take(MOST) {
        match socket.send_to_with_flags(bytes, address, libc::MSG_DONTWAIT) {
            Ok(_) => sent += 1,
            Err(error) if sent == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(sent)
}
