//! Which messages a framing can encode, as plain data that other threads can check.

use std::sync::Arc;

use crate::error::SendError;
use crate::sys;

/// Which messages a [`Framing`](crate::Framing) can encode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encodable {
    /// All of them, as far as can be told.
    #[default]
    Any,
    /// Those of at most this many bytes.
    AtMost(usize),
    /// Those of exactly this many bytes.
    Exactly(usize),
    /// Those that do not hold this delimiter, nor end in the beginning of one.
    Without(Arc<[u8]>),
}

impl Encodable {
    /// Checks a message.
    pub(crate) fn check(&self, message: &[u8]) -> Result<(), SendError> {
        match self {
            Encodable::AtMost(limit) if message.len() > *limit => {
                Err(SendError::TooLong { limit: *limit })
            }
            Encodable::Exactly(size) if message.len() != *size => {
                Err(SendError::Unencodable(OTHER_SIZE))
            }
            Encodable::Without(delimiter) if holds_delimiter(message, delimiter) => {
                Err(SendError::Unencodable(HOLDS_DELIMITER))
            }
            _ => Ok(()),
        }
    }
}

pub(crate) const OTHER_SIZE: &str = "the message is not of the fixed size";
pub(crate) const HOLDS_DELIMITER: &str =
    "the message holds its own delimiter, or ends in the beginning of one";

/// Whether the delimiter begins in the message, also where it ends in the delimiter that follows.
pub(crate) fn holds_delimiter(message: &[u8], delimiter: &[u8]) -> bool {
    let overlap = delimiter.len().saturating_sub(1);
    let tail = &message[message.len().saturating_sub(overlap)..];
    let straddles = overlap > 0 && find(&[tail, delimiter].concat(), delimiter) != Some(tail.len());
    straddles || find(message, delimiter).is_some()
}

/// The position of the first `needle` in `haystack`.
#[inline]
pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (&first, rest) = needle.split_first()?;
    let mut from = 0;
    loop {
        let at = from + sys::find_byte(&haystack[from..], first)?;
        if haystack[at + 1..].starts_with(rest) {
            return Some(at);
        }
        from = at + 1;
    }
}
