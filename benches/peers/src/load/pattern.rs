//! The bytes on the wire: one long pseudo-random sequence, so that whatever is lost, doubled or
//! exchanged is noticed.
//!
//! Sending is a slice of the sequence, verifying a comparison with one; neither copies.

use std::ops::Range;

/// The sequence repeats after this many bytes: a prime, so that no message size hides a repetition.
const PERIOD: usize = 65_521;

/// The longest slice that can be asked for.
pub(super) const LONGEST: usize = 256 << 10;

/// Neighbouring clients start this far from each other in the sequence.
const STRIDE: u64 = 7_919;

/// The sequence, long enough that a slice of [`LONGEST`] bytes may start anywhere in the period.
pub(super) struct Pattern(Vec<u8>);

impl Pattern {
    pub(super) fn new() -> Self {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .take(PERIOD)
        .collect();
        while bytes.len() < PERIOD + LONGEST {
            let more = PERIOD.min(PERIOD + LONGEST - bytes.len());
            bytes.extend_from_within(..more);
        }
        Self(bytes)
    }

    /// Where the stream of the client with this number starts.
    pub(super) fn start_of(client: usize) -> u64 {
        client as u64 * STRIDE
    }

    /// The bytes at these positions of the endless sequence, or the first [`LONGEST`] of them.
    pub(super) fn slice(&self, positions: Range<u64>) -> &[u8] {
        let start = (positions.start % PERIOD as u64) as usize;
        let length = (positions.end - positions.start).min(LONGEST as u64) as usize;
        &self.0[start..start + length]
    }

    /// Whether `bytes` are what stands at `position`.
    pub(super) fn matches(&self, position: u64, bytes: &[u8]) -> bool {
        self.slice(position..position + bytes.len() as u64) == bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_continue_each_other_across_the_period() {
        let pattern = Pattern::new();
        let end = 3 * PERIOD as u64;
        let whole = pattern.slice(end - 10..end + 10);
        assert_eq!(&whole[..10], pattern.slice(end - 10..end));
        assert_eq!(&whole[10..], pattern.slice(end..end + 10));
        assert!(pattern.matches(end - 10, whole));
    }

    #[test]
    fn a_shifted_byte_is_noticed() {
        let pattern = Pattern::new();
        let bytes = pattern.slice(100..164).to_vec();
        assert!(pattern.matches(100, &bytes));
        assert!(!pattern.matches(101, &bytes));
    }
}
