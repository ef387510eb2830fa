//! System calls, without policy. The only `unsafe` code of the crate is here.
//!
//! What exists only on Linux is behind an interface that the BSDs and macOS can provide too. So no
//! other module of the crate needs a `cfg` for an operating system.

#![allow(unsafe_code)]

mod bytes;
mod catch_drop;
mod datagrams;
mod edge;
mod kernel_drops;
mod limits;
mod options;
mod process;
mod send_file;
mod shared_byte;
mod signals;
#[cfg(feature = "testing")]
pub(crate) mod simulated;
mod socket;
mod wakeup;

pub(crate) use bytes::find_byte;
pub(crate) use catch_drop::CatchDrop;
pub(crate) use datagrams::{
    Batch, Destination, PacketInfo, RecvMeta, Transmit, is_send_buffer_full, send_batch,
    send_datagram, set_pktinfo, supports_gso, wait_for_room,
};
pub(crate) use edge::{Clock, Event, Events, Poll, Reserve, Socket};
pub use limits::raise_descriptor_limit;
pub(crate) use limits::{connections_of_descriptor_limit, threads_of_map_limit};
pub(crate) use options::{
    interface_index, join_multicast_v4, receive_only_joined_groups, set_defer_accept,
    set_keepalive, set_multicast_interface_v4, set_user_timeout,
};
pub(crate) use process::{Child, Forked, InChild, fork, is_forked_child, is_only_thread};
#[cfg(test)]
pub(crate) use send_file::unnamed_file;
pub(crate) use send_file::{is_file_error, send_file};
pub(crate) use shared_byte::SharedByte;
pub(crate) use signals::{
    SignalWatch, child_is_terminated, reset_on_termination, watch_stop_signals,
};
pub(crate) use socket::{
    PollInterest, accept, disconnect, has_client, has_input, is_at_end, may_be_urgent, peek,
    peer_credentials, receive, receive_now, reset_on_close, restrict_socket_file, send,
    send_and_close, send_now, send_vectored, set_cork, stream_interest, unsent, wait_for,
    waiting_connections,
};
pub(crate) use wakeup::Wakeup;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Turns the result -1 of a system call into the error of its errno.
fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Borrows the descriptor of an owner that implements only `AsRawFd`.
pub(crate) fn borrow(owner: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the owner keeps the descriptor open, and the result borrows the owner.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}
