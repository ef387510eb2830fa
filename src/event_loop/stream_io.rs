//! Reading from and writing to the socket of a connection, without waiting.

use std::io::{self, IoSlice, Read as _};

use socket2::Socket;

use super::source::{LoopCx, Readiness};
use super::write_buffer::{SLICES, WriteBuffer};
use crate::sys;

/// Reads from a stream, and records where a short read does not mean that the queue is empty.
pub(super) fn read(mut socket: &Socket, buffer: &mut [u8], cx: &mut LoopCx) -> io::Result<usize> {
    if cx.call.readiness.has(Readiness::ANCILLARY) {
        return receive_with_ancillary(socket, buffer, cx);
    }
    socket.read(buffer)
}

/// Reads from a Unix stream, where a read ends behind bytes that came with ancillary data.
pub(super) fn receive_with_ancillary(
    socket: &Socket,
    buffer: &mut [u8],
    cx: &mut LoopCx,
) -> io::Result<usize> {
    let (count, had_ancillary) = sys::receive(socket, buffer)?;
    if had_ancillary {
        cx.call.readiness.add(Readiness::BOUNDARY);
    }
    Ok(count)
}

/// Sends the output of a step; what the kernel does not take goes to the write buffer. Returns whether
/// any byte was sent.
#[inline(always)]
pub(super) fn transmit(
    socket: &Socket,
    write_buffer: &mut Option<Box<WriteBuffer>>,
    input: &[u8],
    cx: &mut LoopCx,
) -> io::Result<bool> {
    if write_buffer.is_none()
        && let Some(bytes) = cx.scratch.output_buffer.contiguous(input)
    {
        let sent = sys::send(socket, bytes)?;
        cx.scratch.tally.bytes_out += sent as u64;
        if sent < bytes.len() {
            refused(write_buffer, input, sent, cx);
        }
        return Ok(sent > 0);
    }
    transmit_many(socket, write_buffer, input, cx)
}

/// The kernel has taken `sent` bytes and has no room for more.
#[cold]
fn refused(
    write_buffer: &mut Option<Box<WriteBuffer>>,
    input: &[u8],
    sent: usize,
    cx: &mut LoopCx,
) {
    cx.call.readiness.remove(Readiness::WRITABLE);
    write_buffer.get_or_insert_default().keep(&mut cx.scratch.output_buffer, input, sent);
}

/// Sends several segments, or appends to output that waits already.
#[inline(never)]
fn transmit_many(
    socket: &Socket,
    write_buffer: &mut Option<Box<WriteBuffer>>,
    input: &[u8],
    cx: &mut LoopCx,
) -> io::Result<bool> {
    let mut sent = 0;
    if write_buffer.is_none() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = cx.scratch.output_buffer.slices(input, &mut slices);
        let offered = slices[..filled].iter().map(|slice| slice.len()).sum();
        sent = sys::send_vectored(socket, &slices[..filled])?;
        cx.scratch.tally.bytes_out += sent as u64;
        if sent < offered {
            refused(write_buffer, input, sent, cx);
            return Ok(sent > 0);
        }
    }
    // That one call did not take all slices says nothing about the kernel's buffer: go on trying.
    let waiting = write_buffer.get_or_insert_default();
    waiting.keep(&mut cx.scratch.output_buffer, input, sent);
    let before = waiting.len();
    if cx.call.readiness.has(Readiness::WRITABLE) {
        flush(socket, waiting, cx)?;
    }
    let moved = sent > 0 || waiting.len() < before;
    if waiting.is_empty() {
        *write_buffer = None;
    }
    Ok(moved)
}

/// Sends from the write buffer until it is empty or the kernel has no room.
pub(super) fn flush(
    socket: &Socket,
    write_buffer: &mut WriteBuffer,
    cx: &mut LoopCx,
) -> io::Result<()> {
    while !write_buffer.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = write_buffer.slices(&mut slices);
        let sent = sys::send_vectored(socket, &slices[..filled])?;
        if sent == 0 {
            cx.call.readiness.remove(Readiness::WRITABLE);
            return Ok(());
        }
        cx.scratch.tally.bytes_out += sent as u64;
        write_buffer.advance(sent);
    }
    Ok(())
}
