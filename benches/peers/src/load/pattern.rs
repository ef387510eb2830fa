//! The bytes on the wire: one long pseudo-random sequence, so that lost, duplicated and reordered
//! bytes are detected.
//!
//! A client sends slices of the sequence and compares the replies with slices; neither copies. For
//! servers of lines, each message can be a line: it then contains one `\n`, at its end.

use std::ops::Range;

use anyhow::{Result, bail};

/// The sequence repeats after this many bytes: a prime, so that no message size hides a repetition.
/// Lines do with the next lower multiple of their length.
const PERIOD: usize = 65_521;

/// The longest slice that can be asked for.
pub(super) const LONGEST: usize = 256 << 10;

/// The longest line, so that the sequence has some hundred different lines.
const LONGEST_LINE: usize = 512;

/// The distance between the starts of neighbouring clients in the sequence.
const STRIDE: u64 = 7_919;

/// The sequence, long enough for a slice of [`LONGEST`] bytes from any start in the period.
pub(super) struct Pattern {
    bytes: Vec<u8>,
    period: usize,
    /// Streams start at multiples of this: the length of a line, or 1.
    unit: u64,
}

impl Pattern {
    /// Any bytes.
    pub(super) fn new() -> Self {
        Self::of(random_bytes(PERIOD), 1)
    }

    /// Lines of `length` bytes.
    ///
    /// # Errors
    ///
    /// If only few lines of this length fit into the sequence.
    pub(super) fn lines(length: usize) -> Result<Self> {
        if length > LONGEST_LINE {
            bail!("a line has {LONGEST_LINE} bytes at most");
        }
        let mut bytes = random_bytes(PERIOD - PERIOD % length);
        let is_end = |byte: &&mut u8| matches!(**byte, b'\n' | b'\r');
        bytes.iter_mut().filter(is_end).for_each(|byte| *byte = b' ');
        bytes.iter_mut().skip(length - 1).step_by(length).for_each(|byte| *byte = b'\n');
        Ok(Self::of(bytes, length as u64))
    }

    fn of(mut bytes: Vec<u8>, unit: u64) -> Self {
        let period = bytes.len();
        while bytes.len() < period + LONGEST {
            let more = period.min(period + LONGEST - bytes.len());
            bytes.extend_from_within(..more);
        }
        Self { bytes, period, unit }
    }

    /// The start of the stream of the client with this number. If several clients have the same
    /// number one after another, each passes a larger `later`.
    pub(super) fn start_of(&self, client: usize, later: u64) -> u64 {
        (client as u64 * STRIDE + later) * self.unit
    }

    /// The bytes at these positions of the endless sequence, or the first [`LONGEST`] of them.
    pub(super) fn slice(&self, positions: Range<u64>) -> &[u8] {
        let start = (positions.start % self.period as u64) as usize;
        let length = (positions.end - positions.start).min(LONGEST as u64) as usize;
        &self.bytes[start..start + length]
    }

    /// Whether `bytes` are those at `position`.
    pub(super) fn matches(&self, position: u64, bytes: &[u8]) -> bool {
        self.slice(position..position + bytes.len() as u64) == bytes
    }
}

fn random_bytes(count: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    });
    bytes.take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_slices_join_at_the_end_of_the_period() {
        let pattern = Pattern::new();
        let end = 3 * PERIOD as u64;
        let whole = pattern.slice(end - 10..end + 10);
        assert_eq!(&whole[..10], pattern.slice(end - 10..end));
        assert_eq!(&whole[10..], pattern.slice(end..end + 10));
        assert!(pattern.matches(end - 10, whole));
    }

    #[test]
    fn bytes_at_a_shifted_position_do_not_match() {
        let pattern = Pattern::new();
        let bytes = pattern.slice(100..164).to_vec();
        assert!(pattern.matches(100, &bytes));
        assert!(!pattern.matches(101, &bytes));
    }

    #[test]
    fn each_line_has_its_only_newline_at_the_end_of_its_message() {
        let pattern = Pattern::lines(64).unwrap();
        let start = pattern.start_of(3, 1_000_000_007);
        for message in 0..2000 {
            let line = pattern.slice(start + message * 64..start + (message + 1) * 64);
            assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(63));
        }
    }
}
