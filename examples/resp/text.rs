//! A string of bytes that owns its memory: short ones take no allocation, long ones are shared with
//! the replies that send them.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// The longest text that is stored in place.
pub(crate) const SHORT: usize = 22;

/// A string of bytes.
#[derive(Clone)]
pub(crate) enum Text {
    /// The first bytes of the array.
    Short(u8, [u8; SHORT]),
    Long(Arc<[u8]>),
    /// A text that `APPEND` has made, with room for more.
    #[allow(clippy::box_collection)] // so that a text takes 24 bytes
    Grown(Box<Vec<u8>>),
}

impl Text {
    /// Appends bytes; a text that grows byte by byte is not copied each time.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        match self {
            Text::Grown(text) => text.extend_from_slice(bytes),
            text if text.len() + bytes.len() <= SHORT => *text = [text, bytes].concat()[..].into(),
            text => {
                let mut grown = Vec::with_capacity(2 * (text.len() + bytes.len()));
                grown.extend_from_slice(text);
                grown.extend_from_slice(bytes);
                *text = Text::Grown(Box::new(grown));
            }
        }
    }
}

impl From<&[u8]> for Text {
    #[inline]
    fn from(bytes: &[u8]) -> Self {
        match bytes.len() {
            len @ ..=SHORT => {
                let mut short = [0; SHORT];
                short[..len].copy_from_slice(bytes);
                Text::Short(len as u8, short)
            }
            _ => Text::Long(bytes.into()),
        }
    }
}

impl Default for Text {
    fn default() -> Self {
        Text::Short(0, [0; SHORT])
    }
}

impl Deref for Text {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Text::Short(len, bytes) => &bytes[..usize::from(*len)],
            Text::Long(bytes) => bytes,
            Text::Grown(bytes) => bytes,
        }
    }
}

// A map with texts as its keys is asked for slices, so they hash and compare as slices do.
impl Borrow<[u8]> for Text {
    #[inline]
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl Hash for Text {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl PartialEq for Text {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text {}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

/// Whether a text matches a pattern: `*`, `?`, `[a-z]`, `[^a]` and `\` as Redis reads them.
///
/// The time is at most the product of the lengths: after a mismatch only the last `*` is tried again.
pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            star = Some((at, read));
            continue;
        }
        let matched = match text.get(read) {
            None if at == pattern.len() => return true,
            None => return false,
            Some(byte) => one(&pattern[at..], *byte),
        };
        match (matched, &mut star) {
            (Some(taken), _) => {
                at += taken;
                read += 1;
            }
            // The last `*` takes one more byte.
            (None, Some((after, from))) => {
                *from += 1;
                (at, read) = (*after, *from);
            }
            (None, None) => return false,
        }
    }
}

/// How many bytes of the pattern match this one byte, if they do.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', rest @ ..] => set(rest, byte).map(|taken| taken + 1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
    }
}

/// As [`one`], for what follows a `[`. A set without its end is a set.
fn set(pattern: &[u8], byte: u8) -> Option<usize> {
    let is_negated = pattern.first() == Some(&b'^');
    let mut at = usize::from(is_negated);
    let mut found = false;
    loop {
        at += match &pattern[at..] {
            [] | [b']', ..] => break,
            [b'\\', escaped, ..] => {
                found |= *escaped == byte;
                2
            }
            [from, b'-', to, ..] => {
                found |= (*from.min(to)..=*from.max(to)).contains(&byte);
                3
            }
            [literal, ..] => {
                found |= *literal == byte;
                1
            }
        };
    }
    (found != is_negated).then_some((at + 1).min(pattern.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_takes_24_bytes_and_is_what_it_was_made_of() {
        assert_eq!(size_of::<Text>(), 24);
        let mut all = Vec::new();
        let mut text = Text::default();
        for byte in 0..200 {
            all.push(byte);
            text.append(&[byte]);
            assert!(*text == *all && *Text::from(&all[..]) == *all);
        }
    }

    #[test]
    fn patterns_match_as_in_redis() {
        let matching = [
            ("*", ""),
            ("a*", "abc"),
            ("*c", "abc"),
            ("a*b*c", "axxbyyc"),
            ("?", "a"),
            ("h[ae]llo", "hello"),
            ("h[^e]llo", "hallo"),
            ("h[a-c]llo", "hbllo"),
            ("h[c-a]llo", "hbllo"),
            ("a\\*c", "a*c"),
            ("[\\]]", "]"),
            ("a\\", "a\\"),
            ("[a", "a"),
            ("a**", "a"),
        ];
        for (pattern, text) in matching {
            assert!(matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        let others = [
            ("", "a"),
            ("a", ""),
            ("?", ""),
            ("a*", "ba"),
            ("h[^e]llo", "hello"),
            ("h[a-c]llo", "hdllo"),
            ("a\\*c", "abc"),
            ("a", "ab"),
            ("*b", "bc"),
        ];
        for (pattern, text) in others {
            assert!(!matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_exponential_time() {
        let text = vec![b'a'; 10_000];
        assert!(!matches(&[b"*a".repeat(50), b"*b".to_vec()].concat(), &text));
    }
}
