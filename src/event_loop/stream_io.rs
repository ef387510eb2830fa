//! Non-blocking reads and writes on the socket of a connection.

use std::io::{self, Read as _};

use super::source::{LoopCx, Readiness};
use crate::sys::{self, Socket};
use crate::write_buffer::{WriteBuffer, send_segments};

/// Reads from a stream, and records where a short read does not mean that the input is drained.
pub(super) fn read(mut socket: &Socket, buffer: &mut [u8], cx: &mut LoopCx) -> io::Result<usize> {
    if cx.call.readiness.has(Readiness::ANCILLARY) {
        return receive_with_ancillary(socket, buffer, cx);
    }
    socket.read(buffer)
}

/// Reads from a Unix stream. There, a read ends after bytes that came with ancillary data.
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

/// What follows the output of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follows {
    /// Perhaps nothing for a long time.
    Unknown,
    /// The end of the output, in the same call of the connection. TCP holds the last packet back, so that
    /// the end is in it.
    End,
}

/// Sends the output of a step; the rest goes to the write buffer. Returns whether any byte was
/// sent.
#[inline(always)]
pub(super) fn transmit(
    socket: &Socket,
    write_buffer: &mut Option<Box<WriteBuffer>>,
    input: &[u8],
    follows: Follows,
    cx: &mut LoopCx,
) -> io::Result<bool> {
    if write_buffer.is_none()
        && let Some(bytes) = cx.scratch.output_buffer.contiguous(input)
    {
        let sent = match follows {
            Follows::Unknown => sys::send(socket, bytes)?,
            Follows::End => sys::send_now(socket, bytes, true)?,
        };
        cx.scratch.tally.bytes_out += sent as u64;
        if sent < bytes.len() {
            refused(write_buffer, input, sent, cx);
        }
        return Ok(sent > 0);
    }
    transmit_many(socket, write_buffer, input, follows, cx)
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

/// Sends several segments, or appends to a write buffer that is not empty. Returns whether any byte
/// was sent.
#[inline(never)]
fn transmit_many(
    socket: &Socket,
    write_buffer: &mut Option<Box<WriteBuffer>>,
    input: &[u8],
    follows: Follows,
    cx: &mut LoopCx,
) -> io::Result<bool> {
    if let Some(waiting) = write_buffer {
        // The write buffer is sent when the kernel has room, or in another turn.
        waiting.keep(&mut cx.scratch.output_buffer, input, 0);
        return Ok(false);
    }
    if follows == Follows::End {
        // A Unix socket has no such option. Until the end, the rest of the output follows.
        sys::set_cork(socket, true);
    }
    let (sent, all) = send_segments(socket, &mut cx.scratch.output_buffer, input)?;
    cx.scratch.tally.bytes_out += sent as u64;
    if !all {
        refused(write_buffer, input, sent, cx);
        return Ok(sent > 0);
    }
    // One call did not take all slices. That does not show that the socket buffer is full: try
    // again.
    write_buffer.get_or_insert_default().keep(&mut cx.scratch.output_buffer, input, sent);
    Ok(sent + flush(socket, write_buffer, cx)? > 0)
}

/// Sends from the write buffer until it is empty, the kernel has no room, or a
/// [step](WriteBuffer::step_after) is sent. Returns how many bytes were sent. If output is left and the readiness still has
/// [`WRITABLE`](Readiness::WRITABLE), the caller has to requeue the connection: the poller reports
/// no event.
pub(super) fn flush(
    socket: &Socket,
    write_buffer: &mut Option<Box<WriteBuffer>>,
    cx: &mut LoopCx,
) -> io::Result<usize> {
    let Some(waiting) = write_buffer else {
        return Ok(0);
    };
    let mut flushed = 0;
    while let most @ 1.. = waiting.step_after(flushed)
        && !waiting.is_empty()
    {
        let sent = waiting.send(socket, most)?;
        if sent == 0 {
            cx.call.readiness.remove(Readiness::WRITABLE);
            break;
        }
        cx.scratch.tally.bytes_out += sent as u64;
        flushed += sent;
    }
    if waiting.is_empty() {
        *write_buffer = None;
    }
    Ok(flushed)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    use super::super::source::LoopCx;
    use super::*;
    use crate::conversation::Output;
    use crate::server_state::ServerState;
    use crate::write_buffer::{FILE_STEP, SEND_STEP, STALLED_FILE_STEP};

    /// A non-blocking socket and its peer.
    fn tcp() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours: Socket = listener.accept().unwrap().0.into();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    fn cx() -> LoopCx {
        let state = Arc::new(ServerState::new().unwrap());
        let mut cx = LoopCx::new(state.begin().stop_requester().clone());
        cx.call.readiness.add(Readiness::WRITABLE);
        cx
    }

    #[test]
    fn a_flush_sends_no_more_than_its_budget_and_leaves_the_socket_writable() {
        let (ours, _theirs) = tcp();
        let (mut cx, mut write_buffer) = (cx(), Some(Box::<WriteBuffer>::default()));
        let payload: Arc<[u8]> = vec![7; 16 << 20].into();
        Output::sharing(&payload, &mut cx.scratch.output_buffer).put(&payload);
        write_buffer.as_mut().unwrap().keep(&mut cx.scratch.output_buffer, &[], 0);
        assert_eq!(flush(&ours, &mut write_buffer, &mut cx).unwrap(), SEND_STEP);
        assert!(cx.call.readiness.has(Readiness::WRITABLE));
        while cx.call.readiness.has(Readiness::WRITABLE) {
            assert!(flush(&ours, &mut write_buffer, &mut cx).unwrap() <= SEND_STEP);
        }
        let left = write_buffer.unwrap().len();
        assert_eq!(payload.len() - left, cx.scratch.tally.bytes_out as usize);
    }

    #[test]
    fn a_long_file_is_sent_in_steps_of_its_own_and_tcp_holds_nothing_back_at_its_end() {
        let (ours, mut theirs) = tcp();
        let (mut cx, mut write_buffer) = (cx(), Some(Box::<WriteBuffer>::default()));
        let file = sys::unnamed_file(&vec![7; 4 * FILE_STEP + 1]);
        let length = file.metadata().unwrap().len();
        Output::new(&[], &mut cx.scratch.output_buffer)
            .put_file(Arc::new(file), 0..length)
            .unwrap();
        write_buffer.as_mut().unwrap().keep(&mut cx.scratch.output_buffer, &[], 0);
        let reader = std::thread::spawn(move || {
            let mut received = vec![0; 4 * FILE_STEP + 1];
            theirs.read_exact(&mut received).unwrap();
            received.iter().all(|byte| *byte == 7)
        });
        let first = flush(&ours, &mut write_buffer, &mut cx).unwrap();
        assert!(first <= STALLED_FILE_STEP);
        // While the kernel takes whole steps.
        #[cfg(target_os = "linux")]
        assert_eq!(ours.tcp_cork().unwrap(), first == FILE_STEP);
        while write_buffer.is_some() {
            assert!(flush(&ours, &mut write_buffer, &mut cx).unwrap() <= STALLED_FILE_STEP);
        }
        #[cfg(target_os = "linux")]
        assert!(!ours.tcp_cork().unwrap());
        assert!(reader.join().unwrap());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn tcp_holds_nothing_of_a_file_back_once_the_kernel_has_no_room_for_a_whole_step() {
        let (ours, mut theirs) = tcp();
        let (mut cx, mut write_buffer) = (cx(), Some(Box::<WriteBuffer>::default()));
        let length = 64 << 20;
        let file = sys::unnamed_file(&[]);
        file.set_len(length).unwrap();
        Output::new(&[], &mut cx.scratch.output_buffer)
            .put_file(Arc::new(file), 0..length)
            .unwrap();
        write_buffer.as_mut().unwrap().keep(&mut cx.scratch.output_buffer, &[], 0);
        // The peer does not read.
        while cx.call.readiness.has(Readiness::WRITABLE) {
            flush(&ours, &mut write_buffer, &mut cx).unwrap();
        }
        assert!(!ours.tcp_cork().unwrap());
        // Nor when the kernel has room again.
        let sent = cx.scratch.tally.bytes_out;
        theirs.read_exact(&mut vec![0; sent as usize]).unwrap();
        flush(&ours, &mut write_buffer, &mut cx).unwrap();
        assert!(cx.scratch.tally.bytes_out > sent);
        assert!(!ours.tcp_cork().unwrap());
    }

    #[test]
    fn a_flush_that_sends_all_within_its_budget_removes_the_write_buffer() {
        let (ours, _theirs) = tcp();
        let (mut cx, mut write_buffer) = (cx(), Some(Box::<WriteBuffer>::default()));
        Output::new(&[], &mut cx.scratch.output_buffer).put(&vec![7; SEND_STEP]);
        write_buffer.as_mut().unwrap().keep(&mut cx.scratch.output_buffer, &[], 0);
        assert_eq!(flush(&ours, &mut write_buffer, &mut cx).unwrap(), SEND_STEP);
        assert!(write_buffer.is_none());
    }

    #[test]
    fn output_is_appended_and_not_sent_while_other_output_waits() {
        let (ours, _theirs) = tcp();
        let mut cx = cx();
        let mut write_buffer = Some(Box::<WriteBuffer>::default());
        Output::new(&[], &mut cx.scratch.output_buffer).put(b"answer");
        assert!(!transmit(&ours, &mut write_buffer, &[], Follows::Unknown, &mut cx).unwrap());
        assert_eq!(write_buffer.unwrap().len(), 6);
        assert_eq!(cx.scratch.tally.bytes_out, 0);
    }
    #[test]
    fn a_header_and_a_short_file_are_sent_at_once_and_leave_no_write_buffer() {
        let (ours, mut theirs) = tcp();
        let mut cx = cx();
        let mut write_buffer = None;
        let file = sys::unnamed_file(b"a file");
        let mut output = Output::new(&[], &mut cx.scratch.output_buffer);
        output.put(b"header ");
        output.put_file(Arc::new(file), 2..6).unwrap();
        output.put(b" trailer");
        assert!(transmit(&ours, &mut write_buffer, &[], Follows::Unknown, &mut cx).unwrap());
        assert!(write_buffer.is_none());
        let mut received = [0; 19];
        theirs.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"header file trailer");
        assert_eq!(cx.scratch.tally.bytes_out, 19);
    }
}
