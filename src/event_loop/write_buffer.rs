//! Output that the kernel did not take yet. Made when it first refuses, gone when it has taken all.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use crate::conversation::{OutputBuffer, Unsent};
use crate::sender::SharedBytes;

/// Bytes are appended to a chunk until it has this size, so that a long backlog is not moved about.
const CHUNK: usize = 64 * 1024;

/// How many slices one vectored write is given; the kernel's own limit is 1,024.
pub(crate) const SLICES: usize = 64;

/// The most output that one step of a conversation collects before it is sent, in bytes.
const MOST_AT_ONCE: usize = 64 * 1024;

/// The water marks of the write buffer, in bytes. At `high` the peer is no longer read; at `low` reading
/// resumes. They are stored as `u32`: a limit above 4 GiB counts as 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WaterMarks {
    high: u32,
    low: u32,
}

impl WaterMarks {
    pub(crate) fn new(high: usize, low: usize) -> Self {
        let mark = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        WaterMarks { high: mark(high), low: mark(low) }
    }

    #[inline]
    pub(crate) fn high(self) -> usize {
        self.high as usize
    }

    #[inline]
    pub(super) fn low(self) -> usize {
        self.low as usize
    }

    /// How much output is collected at once while none waits.
    #[inline]
    pub(super) fn room(self) -> usize {
        self.high().min(MOST_AT_ONCE)
    }
}

impl Default for WaterMarks {
    fn default() -> Self {
        WaterMarks::new(64 * 1024, 16 * 1024)
    }
}

#[derive(Debug)]
enum Chunk {
    Bytes(Vec<u8>, usize),
    Shared(SharedBytes, Range<usize>),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Bytes(bytes, sent) => &bytes[*sent..],
            Chunk::Shared(payload, range) => &payload[range.clone()],
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Chunk::Bytes(_, sent) => *sent += count,
            Chunk::Shared(_, range) => range.start += count,
        }
    }
}

/// A queue of bytes, some of them shared with other connections.
#[derive(Debug, Default)]
pub(crate) struct WriteBuffer {
    chunks: VecDeque<Chunk>,
    len: usize,
}

impl WriteBuffer {
    /// How many bytes wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends what `outgoing` holds after its first `sent` bytes.
    pub(crate) fn keep(&mut self, output_buffer: &mut OutputBuffer, input: &[u8], sent: usize) {
        output_buffer.unsent(input, sent, |rest| match rest {
            Unsent::Bytes(bytes) => self.append(bytes),
            Unsent::Shared(payload, range) => {
                self.len += range.len();
                self.chunks.push_back(Chunk::Shared(payload, range));
            }
        });
    }

    fn append(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        match self.chunks.back_mut() {
            Some(Chunk::Bytes(chunk, _)) if chunk.len() + bytes.len() <= CHUNK => {
                chunk.extend_from_slice(bytes);
            }
            _ => self.chunks.push_back(Chunk::Bytes(bytes.to_vec(), 0)),
        }
    }

    /// The first bytes, `most` of them at most, as slices for one vectored write; how many slices were
    /// filled in.
    pub(crate) fn slices<'a>(&'a self, most: usize, into: &mut [IoSlice<'a>; SLICES]) -> usize {
        let (mut left, mut filled) = (most, 0);
        for (slot, chunk) in into.iter_mut().zip(&self.chunks) {
            if left == 0 {
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
    pub(crate) fn advance(&mut self, mut count: usize) {
        self.len -= count;
        while let Some(chunk) = self.chunks.front_mut() {
            let left = chunk.bytes().len();
            if count < left {
                chunk.advance(count);
                return;
            }
            count -= left;
            self.chunks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conversation::Output;

    proptest! {
        /// Whatever is appended and however little is sent each time, the bytes come out as they
        /// went in.
        #[test]
        fn bytes_come_out_as_they_went_in(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..20),
            steps in prop::collection::vec(1usize..3000, 1..50),
        ) {
            let (mut write_buffer, mut expected, mut sent) = (WriteBuffer::default(), Vec::new(), Vec::new());
            let mut output_buffer = OutputBuffer::default();
            let mut steps = steps.into_iter().cycle();
            for (number, part) in parts.iter().enumerate() {
                let payload: SharedBytes = part.as_slice().into();
                if number % 2 == 0 {
                    Output::sharing(&payload, &mut output_buffer).put(&payload);
                } else {
                    Output::new(&[], &mut output_buffer).put(part);
                }
                let skipped = part.len().min(number);
                write_buffer.keep(&mut output_buffer, &[], skipped);
                output_buffer.clear();
                expected.extend_from_slice(&part[skipped..]);
                take(&mut write_buffer, steps.next().unwrap(), &mut sent);
            }
            while !write_buffer.is_empty() {
                take(&mut write_buffer, steps.next().unwrap(), &mut sent);
            }
            prop_assert_eq!(sent, expected);
            prop_assert!(write_buffer.chunks.is_empty());
        }
    }

    /// Plays a kernel that is offered at most `most` bytes, and takes two thirds of them.
    fn take(write_buffer: &mut WriteBuffer, most: usize, sent: &mut Vec<u8>) {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = write_buffer.slices(most, &mut slices);
        let offered: Vec<u8> =
            slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect();
        assert_eq!(offered.len(), most.min(write_buffer.len()));
        let count = (offered.len() * 2).div_ceil(3);
        sent.extend_from_slice(&offered[..count]);
        write_buffer.advance(count);
    }
}
