//! The description of the messages that a framing can encode: plain data that other threads can
//! check.

use std::sync::Arc;

use crate::error::SendError;
use crate::sys;

/// Which messages a [`Framing`](crate::Framing) can encode.
///
/// ```
/// use socketserver::{Encodable, FixedSize, Framing, Raw};
///
/// assert_eq!(Raw.encodable(), Encodable::Any);
/// assert_eq!(FixedSize::new(16).encodable(), Encodable::Exactly(16));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encodable {
    /// All messages, as far as the framing can tell.
    #[default]
    Any,
    /// Messages of at most this many bytes.
    AtMost(usize),
    /// Messages of exactly this many bytes.
    Exactly(usize),
    /// Messages that do not contain this delimiter, and do not end in its beginning.
    Without(Arc<[u8]>),
}

impl Encodable {
    /// Checks whether a message can be encoded.
    pub(crate) fn check(&self, message: &[u8]) -> Result<(), SendError> {
        match self {
            Encodable::AtMost(limit) if message.len() > *limit => {
                Err(SendError::TooLong { limit: *limit })
            }
            Encodable::Exactly(size) if message.len() != *size => {
                Err(SendError::Unencodable(OTHER_SIZE))
            }
            Encodable::Without(delimiter) if contains_delimiter(message, delimiter) => {
                Err(SendError::Unencodable(CONTAINS_DELIMITER))
            }
            _ => Ok(()),
        }
    }
}

pub(crate) const OTHER_SIZE: &str = "the message is not of the fixed size";
pub(crate) const CONTAINS_DELIMITER: &str =
    "the message contains the delimiter, or ends in its beginning";

/// Whether the delimiter begins in the message; it may end in the delimiter that follows the
/// message.
pub(crate) fn contains_delimiter(message: &[u8], delimiter: &[u8]) -> bool {
    if message.is_empty() {
        return false; // its address may be one at which there is no memory
    }
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
