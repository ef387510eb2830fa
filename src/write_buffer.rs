//! The write buffer of a connection: output that the kernel has not taken yet, as bytes and parts
//! of files. It is created when the kernel has no room, and dropped when all is sent.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use crate::conversation::{OutputBuffer, Unsent};
use crate::sender::SharedBytes;
use crate::sys::{self, Socket};

/// A chunk takes further bytes up to this size. Chunks are not moved when the buffer grows.
const CHUNK: usize = 64 * 1024;

/// How many slices one vectored write gets; the kernel's own limit is 1,024.
const SLICES: usize = 64;

/// How many bytes of waiting output are sent before other connections are served, or before the
/// driver checks whether the connection is to end.
pub(crate) const SEND_STEP: usize = 128 * 1024;

/// Sends the first segments of the output that are in memory. Returns how many bytes the kernel
/// took, and whether it took all that it was offered.
pub(crate) fn send_segments(
    socket: &Socket,
    output_buffer: &mut OutputBuffer,
    input: &[u8],
) -> io::Result<(usize, bool)> {
    let mut slices = [IoSlice::new(&[]); SLICES];
    let (filled, is_joined) = output_buffer.slices(input, &mut slices);
    if filled == 0 {
        return Ok((0, true));
    }
    let offered: usize = slices[..filled].iter().map(|slice| slice.len()).sum();
    let sent = sys::send_vectored(socket, &slices[..filled], is_joined)?;
    Ok((sent, sent == offered))
}

/// The same for a part of a file, which costs less time than so many bytes from memory, because the
/// kernel does not copy it.
pub(crate) const FILE_STEP: usize = 1024 * 1024;

/// The same after the kernel has once taken less than a step: its buffer limits the next steps.
pub(crate) const STALLED_FILE_STEP: usize = 2 * FILE_STEP;

#[derive(Debug)]
enum Chunk {
    Bytes(Vec<u8>, usize),
    Shared(SharedBytes, Range<usize>),
    File(Arc<File>, Range<u64>),
}

impl Chunk {
    /// The bytes in memory: none for a file.
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Bytes(bytes, sent) => &bytes[*sent..],
            Chunk::Shared(payload, range) => &payload[range.clone()],
            Chunk::File(..) => &[],
        }
    }

    fn len(&self) -> u64 {
        match self {
            Chunk::File(_, range) => range.end - range.start,
            in_memory => in_memory.bytes().len() as u64,
        }
    }

    /// How much it counts in the length of the buffer.
    fn charge(&self) -> u64 {
        match self {
            Chunk::File(_, range) => OutputBuffer::file_charge(range),
            in_memory => in_memory.len(),
        }
    }

    /// How much memory it holds.
    fn held(&self) -> usize {
        size_of::<Chunk>()
            + match self {
                Chunk::Bytes(bytes, _) => bytes.capacity(),
                Chunk::Shared(payload, _) => payload.len(),
                Chunk::File(..) => 0,
            }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Chunk::Bytes(_, sent) => *sent += count,
            Chunk::Shared(_, range) => range.start += count,
            Chunk::File(_, range) => range.start += count as u64,
        }
    }
}

/// Whether TCP holds an incomplete packet back between the steps of a file (TCP_CORK), because the
/// next step follows at once. That saves a short packet for each step while the kernel takes whole
/// steps. Once it has taken less, the next step waits until the peer has read, and nothing is held
/// back any more.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Cork {
    /// No step of this file has been sent, or the socket has no such option.
    #[default]
    Unset,
    Set,
    Removed,
}

/// A queue of bytes and parts of files; bytes may be shared with other connections.
#[derive(Debug, Default)]
pub(crate) struct WriteBuffer {
    chunks: VecDeque<Chunk>,
    cork: Cork,
    len: u64,
    /// How much memory the chunks hold.
    held: usize,
}

impl WriteBuffer {
    /// How many bytes wait. A part of a file counts as
    /// [`file_charge`](OutputBuffer::file_charge) says, although it takes no memory.
    pub(crate) fn len(&self) -> usize {
        usize::try_from(self.len).unwrap_or(usize::MAX)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// How many bytes one step may still send that has sent `sent`.
    pub(crate) fn step_after(&self, sent: usize) -> usize {
        let step = match self.chunks.front() {
            Some(Chunk::File(..)) if self.cork == Cork::Removed => STALLED_FILE_STEP,
            Some(Chunk::File(..)) => FILE_STEP,
            _ => SEND_STEP,
        };
        step.saturating_sub(sent)
    }

    /// How much memory it holds, in bytes. Shared bytes count in each buffer that has them.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Whether a part of a file waits.
    pub(crate) fn has_file(&self) -> bool {
        self.chunks.iter().any(|chunk| matches!(chunk, Chunk::File(..)))
    }

    /// Appends the output in `output_buffer` after its first `sent` bytes.
    pub(crate) fn keep(&mut self, output_buffer: &mut OutputBuffer, input: &[u8], sent: usize) {
        output_buffer.unsent(input, sent, |rest| match rest {
            Unsent::Bytes(bytes) => self.append(bytes),
            Unsent::Shared(payload, range) => self.push(Chunk::Shared(payload, range)),
            Unsent::File(file, range) => self.push(Chunk::File(file, range)),
        });
    }

    fn push(&mut self, chunk: Chunk) {
        self.len = self.len.saturating_add(chunk.charge());
        self.held += chunk.held();
        self.chunks.push_back(chunk);
    }

    fn append(&mut self, bytes: &[u8]) {
        match self.chunks.back_mut() {
            Some(Chunk::Bytes(chunk, _)) if chunk.len() + bytes.len() <= CHUNK => {
                let before = chunk.capacity();
                chunk.extend_from_slice(bytes);
                self.held += chunk.capacity() - before;
                self.len = self.len.saturating_add(bytes.len() as u64);
            }
            _ => self.push(Chunk::Bytes(bytes.to_vec(), 0)),
        }
    }

    /// Sends the first chunks, at least one byte and at most `most`, and drops the bytes that were
    /// sent. Returns their number, or 0 if the kernel has no room. On a blocking socket this waits
    /// if a part of a file comes first: see [`sys::send_file`].
    pub(crate) fn send(&mut self, socket: &Socket, most: usize) -> io::Result<usize> {
        let sent = match self.chunks.front() {
            None => 0,
            Some(Chunk::File(file, range)) => {
                let left = range.end - range.start;
                let count = usize::try_from(left).unwrap_or(most).min(most);
                // A Unix socket has no such option.
                if left > most as u64 && self.cork == Cork::Unset && sys::set_cork(socket, true) {
                    self.cork = Cork::Set;
                }
                let sent = sys::send_file(socket, file, range.start, count)?;
                if self.cork == Cork::Set && (sent < count || sent as u64 == left) {
                    sys::set_cork(socket, false);
                    self.cork = Cork::Removed;
                }
                if sent as u64 == left {
                    self.cork = Cork::Unset;
                }
                sent
            }
            Some(_) => {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let filled = self.slices(most, &mut slices);
                let is_joined = match self.chunks.get(filled) {
                    Some(Chunk::File(_, range)) => OutputBuffer::is_joined(range),
                    _ => false,
                };
                sys::send_vectored(socket, &slices[..filled], is_joined)?
            }
        };
        self.advance(sent);
        Ok(sent)
    }

    /// Fills in slices for one vectored write: the first bytes in memory, `most` at most. Returns
    /// the number of slices.
    fn slices<'a>(&'a self, most: usize, into: &mut [IoSlice<'a>; SLICES]) -> usize {
        let (mut left, mut filled) = (most, 0);
        for (slot, chunk) in into.iter_mut().zip(&self.chunks) {
            if left == 0 || matches!(chunk, Chunk::File(..)) {
                break;
            }
            let bytes = chunk.bytes();
            let bytes = &bytes[..bytes.len().min(left)];
            *slot = IoSlice::new(bytes);
            left -= bytes.len();
            filled += 1;
        }
        filled
    }

    /// Drops the first `count` bytes, which have been sent.
    fn advance(&mut self, count: usize) {
        let mut count = count as u64;
        while let Some(chunk) = self.chunks.front_mut() {
            let (length, charge) = (chunk.len(), chunk.charge());
            if count < length {
                // No more than was sent at once.
                chunk.advance(count as usize);
                self.len = self.len.saturating_sub(charge - chunk.charge());
                return;
            }
            count -= length;
            self.len = self.len.saturating_sub(charge);
            self.held -= chunk.held();
            self.chunks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;
    use crate::conversation::Output;

    fn file(bytes: &[u8]) -> Arc<File> {
        Arc::new(sys::unnamed_file(bytes))
    }

    /// A non-blocking socket with a small buffer, and its peer.
    fn pair() -> (Socket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = Socket::from(OwnedFd::from(ours));
        ours.set_nonblocking(true).unwrap();
        ours.set_send_buffer_size(4 << 10).unwrap();
        (ours, theirs)
    }

    /// Sends once, and appends what the peer has received.
    fn send(
        write_buffer: &mut WriteBuffer,
        most: usize,
        (ours, theirs): &mut (Socket, UnixStream),
        arrived: &mut Vec<u8>,
    ) {
        let before = write_buffer.len();
        let sent = write_buffer.send(ours, most).unwrap();
        assert!((1..=most).contains(&sent), "{sent} of {most}");
        assert!(write_buffer.len() <= before);
        assert_eq!(
            write_buffer.len() as u64,
            write_buffer.chunks.iter().map(Chunk::charge).sum::<u64>()
        );
        let start = arrived.len();
        arrived.resize(start + sent, 0);
        theirs.read_exact(&mut arrived[start..]).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is appended from memory and files, and however little each send takes, the
        /// bytes arrive unchanged.
        #[test]
        fn the_bytes_come_out_in_order_however_little_is_sent_at_a_time(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..20),
            steps in prop::collection::vec(1usize..3000, 1..50),
        ) {
            let (mut write_buffer, mut expected, mut arrived) = (WriteBuffer::default(), Vec::new(), Vec::new());
            let (mut output_buffer, mut pair) = (OutputBuffer::default(), pair());
            let mut steps = steps.into_iter().cycle();
            for (number, part) in parts.iter().enumerate() {
                let mut skipped = part.len().min(number);
                let mut output = Output::new(&[], &mut output_buffer);
                match number % 3 {
                    0 => output.put_shared(&part.as_slice().into()),
                    1 => output.put(part),
                    _ => {
                        let start = std::mem::take(&mut skipped) as u64;
                        output.put_file(file(part), start..part.len() as u64).unwrap();
                        expected.extend_from_slice(&part[start as usize..]);
                    }
                }
                if number % 3 < 2 {
                    expected.extend_from_slice(&part[skipped..]);
                }
                write_buffer.keep(&mut output_buffer, &[], skipped);
                output_buffer.clear();
                if !write_buffer.is_empty() {
                    send(&mut write_buffer, steps.next().unwrap(), &mut pair, &mut arrived);
                }
            }
            while !write_buffer.is_empty() {
                send(&mut write_buffer, steps.next().unwrap(), &mut pair, &mut arrived);
            }
            prop_assert_eq!(arrived, expected);
            prop_assert_eq!(write_buffer.len(), 0);
        }
    }

    #[test]
    fn a_file_that_is_shorter_than_its_range_is_sent_and_then_is_an_error() {
        let mut pair = pair();
        let (mut write_buffer, mut output_buffer) = (WriteBuffer::default(), Default::default());
        Output::new(&[], &mut output_buffer).put_file(file(b"short"), 2..1 << 40).unwrap();
        write_buffer.keep(&mut output_buffer, &[], 0);
        let mut arrived = Vec::new();
        send(&mut write_buffer, 100, &mut pair, &mut arrived);
        assert_eq!(arrived, b"ort");
        let error = write_buffer.send(&pair.0, 100).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_part_of_a_file_counts_as_4_kib_until_all_of_it_is_sent() {
        let mut pair = pair();
        let (mut write_buffer, mut output_buffer) =
            (WriteBuffer::default(), OutputBuffer::default());
        Output::new(&[], &mut output_buffer).put_file(file(&[7; 5000]), 0..5000).unwrap();
        write_buffer.keep(&mut output_buffer, &[], 0);
        let mut arrived = Vec::new();
        for left in [5000 - 500, 4096, 4096] {
            send(&mut write_buffer, 500, &mut pair, &mut arrived);
            assert_eq!(write_buffer.len(), left);
        }
        while !write_buffer.is_empty() {
            send(&mut write_buffer, 500, &mut pair, &mut arrived);
        }
        assert_eq!((write_buffer.len(), arrived.len()), (0, 5000));
    }

    #[test]
    fn files_of_absurd_length_do_not_overflow_the_length_of_the_buffer() {
        let (mut write_buffer, mut output_buffer) =
            (WriteBuffer::default(), OutputBuffer::default());
        let file = file(b"");
        for _ in 0..4 {
            let mut output = Output::new(&[], &mut output_buffer);
            output.put_file(file.clone(), 1..u64::MAX).unwrap();
            output.put(b"more");
        }
        assert!(output_buffer.len() >= usize::MAX / 2);
        write_buffer.keep(&mut output_buffer, &[], 0);
        assert_eq!(write_buffer.len(), usize::MAX);
    }
}
