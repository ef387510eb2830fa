//! Many datagrams in one system call: `recvmmsg` and `sendmmsg`.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::check;

/// A fixed number of datagram slots, filled by [`receive`](Batch::receive) or by hand, emptied by
/// [`send`](Batch::send).
///
/// A received datagram is sent back to its source address, unless the batch is for a connected
/// socket.
pub struct Batch {
    /// The bytes of all slots, one after another.
    bytes: Box<[u8]>,
    /// The size of one slot, and so the longest datagram.
    slot: usize,
    /// One header per slot, each pointing into `vectors` and, if unconnected, into `addresses`.
    headers: Box<[libc::mmsghdr]>,
    /// Kept for `headers`, which point into it: never moved or resized.
    vectors: Box<[libc::iovec]>,
    /// Kept for `headers`, like `vectors`. Empty for a connected socket.
    addresses: Box<[libc::sockaddr_storage]>,
    /// How many slots hold a datagram.
    filled: usize,
    /// How many of these have been sent.
    sent: usize,
}

impl Batch {
    /// `count` slots of `slot` bytes that store the source address of each datagram.
    pub fn unconnected(count: usize, slot: usize) -> Self {
        Self::new(count, slot, count)
    }

    /// `count` slots of `slot` bytes for a connected socket.
    pub fn connected(count: usize, slot: usize) -> Self {
        Self::new(count, slot, 0)
    }

    fn new(count: usize, slot: usize, addresses: usize) -> Self {
        // SAFETY: zero is a valid value of these plain C structures.
        let (header, address): (libc::mmsghdr, libc::sockaddr_storage) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let mut bytes = vec![0; count * slot].into_boxed_slice();
        let mut addresses = vec![address; addresses].into_boxed_slice();
        let mut vectors: Box<[_]> = bytes
            .chunks_exact_mut(slot)
            .map(|slot| libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() })
            .collect();
        let mut headers = vec![header; count].into_boxed_slice();
        for (header, vector) in headers.iter_mut().zip(&mut vectors) {
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
        }
        for (header, address) in headers.iter_mut().zip(&mut addresses) {
            header.msg_hdr.msg_name = (&raw mut *address).cast();
        }
        Self { bytes, slot, headers, vectors, addresses, filled: 0, sent: 0 }
    }

    /// The number of slots.
    pub fn capacity(&self) -> usize {
        self.headers.len()
    }

    /// How many slots hold a datagram.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether no slot holds a datagram.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Whether a datagram waits to be sent.
    pub fn is_pending(&self) -> bool {
        self.sent < self.filled
    }

    /// Adds a datagram of `length` bytes to be sent; the caller writes the bytes.
    pub fn push(&mut self, length: usize) -> &mut [u8] {
        let index = self.filled;
        self.filled += 1;
        self.vectors[index].iov_len = length;
        &mut self.bytes[index * self.slot..][..length]
    }

    /// The datagrams of the last [`receive`](Batch::receive).
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let slots = self.bytes.chunks_exact(self.slot).zip(&self.vectors);
        slots.take(self.filled).map(|(slot, vector)| &slot[..vector.iov_len])
    }

    /// Removes all datagrams.
    pub fn clear(&mut self) {
        self.filled = 0;
        self.sent = 0;
    }

    /// Replaces the content of the batch by received datagrams. If they are fewer than the slots,
    /// the socket is drained.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when the socket has none; the batch is then empty.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        self.clear();
        for vector in &mut self.vectors {
            vector.iov_len = self.slot;
        }
        let name_length = match self.addresses.len() {
            0 => 0,
            _ => size_of::<libc::sockaddr_storage>() as libc::socklen_t,
        };
        for header in &mut self.headers {
            header.msg_hdr.msg_namelen = name_length;
        }
        // SAFETY: the headers point to slots, vectors and addresses that live as long as `self`,
        // with their true lengths.
        let received = check(unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        })?;
        self.filled = received as usize;
        for (header, vector) in self.headers.iter().zip(&mut self.vectors).take(self.filled) {
            vector.iov_len = header.msg_len as usize;
        }
        Ok(self.filled)
    }

    /// Sends what is pending. On an error the rest stays pending.
    pub fn send(&mut self, socket: impl AsFd) -> io::Result<()> {
        while self.is_pending() {
            let rest = &mut self.headers[self.sent..self.filled];
            // SAFETY: as in `receive`; the kernel writes only each header's `msg_len`.
            let sent = check(unsafe {
                libc::sendmmsg(
                    socket.as_fd().as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as libc::c_uint,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            })?;
            self.sent += sent as usize;
        }
        self.clear();
        Ok(())
    }
}
