//! Conditional requests and ranges (RFC 9110, sections 13 and 14), without input and output: whether
//! a file is sent, and which part of it.

use std::ops::Range;

use super::date;
use super::request::{Fields, Method, digits};

/// What a client compares its copy of a file with: the time of its last change, and its length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Version {
    /// In seconds since 1970, and the nanoseconds of the last.
    pub(crate) modified: (u64, u32),
    pub(crate) length: u64,
}

/// An entity tag in its quotes.
pub(crate) struct Tag {
    text: [u8; 64],
    length: usize,
}

impl Tag {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }
}

impl Version {
    pub(crate) fn tag(&self) -> Tag {
        let mut tag = Tag { text: [b'"'; 64], length: 1 };
        let (seconds, nanoseconds) = self.modified;
        for number in [seconds, u64::from(nanoseconds), self.length] {
            let digits = (u64::BITS - (number | 1).leading_zeros()).div_ceil(4);
            for digit in (0..digits).rev() {
                tag.text[tag.length] = b"0123456789abcdef"[(number >> (4 * digit) & 15) as usize];
                tag.length += 1;
            }
            tag.text[tag.length] = b'-';
            tag.length += 1;
        }
        tag.text[tag.length - 1] = b'"'; // in place of the last hyphen
        tag
    }
}

/// What a request gets of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Selected {
    Whole,
    Part(Range<u64>),
    /// 304: the client has this version.
    NotModified,
    /// 412: the client expects another version, or none.
    PreconditionFailed,
    /// 416: the file does not have this range.
    NoSuchRange,
}

/// Applies the conditions of a request in the order of RFC 9110, section 13.2.2. `version` is `None`
/// if there is no file, which may be so for a PUT.
pub(crate) fn select(
    method: Method,
    fields: &Fields,
    head: &[u8],
    version: Option<&Version>,
) -> Selected {
    let reads = matches!(method, Method::Get | Method::Head);
    let is_older_than = |date: &[u8]| {
        date::parse(date).map(|date| version.is_some_and(|version| version.modified.0 <= date))
    };
    if let Some(tags) = fields.if_match.of_head(head) {
        if !matches(tags, version, false) {
            return Selected::PreconditionFailed;
        }
    } else if let Some(date) = fields.if_unmodified_since.of_head(head)
        && is_older_than(date) == Some(false)
    {
        return Selected::PreconditionFailed;
    }
    if let Some(tags) = fields.if_none_match.of_head(head) {
        if matches(tags, version, true) {
            return if reads { Selected::NotModified } else { Selected::PreconditionFailed };
        }
    } else if let Some(date) = fields.if_modified_since.of_head(head)
        && reads
        && is_older_than(date) == Some(true)
    {
        return Selected::NotModified;
    }
    match (fields.range.of_head(head), version) {
        (Some(range), Some(version)) if method == Method::Get => {
            match fields.if_range.of_head(head) {
                Some(condition) if !is_current(condition, version) => Selected::Whole,
                _ => part(range, version.length),
            }
        }
        _ => Selected::Whole,
    }
}

/// Whether a list of tags has that of this version, or is `*` and there is one. Tags are compared
/// weakly where `weak` is set: as if none had `W/` before it.
fn matches(tags: &[u8], version: Option<&Version>, weak: bool) -> bool {
    let Some(version) = version else { return false };
    let own = version.tag();
    tags == b"*"
        || tags.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).any(|tag| {
            let tag = if weak { tag.strip_prefix(b"W/").unwrap_or(tag) } else { tag };
            tag == own.as_bytes()
        })
}

/// The condition of `If-Range`: the tag of this version, or the exact date of its last change.
fn is_current(condition: &[u8], version: &Version) -> bool {
    condition == version.tag().as_bytes() || date::parse(condition) == Some(version.modified.0)
}

/// The part that a `Range` field wants. Anything but a single range of bytes is ignored.
fn part(range: &[u8], length: u64) -> Selected {
    let bounds = || {
        let (unit, bounds) = range.split_at_checked(6)?;
        let dash = bounds.iter().position(|byte| *byte == b'-')?;
        let (first, last) = (bounds[..dash].trim_ascii(), bounds[dash + 1..].trim_ascii());
        unit.eq_ignore_ascii_case(b"bytes=").then_some((first, last))
    };
    let number = |text: &[u8]| match text.iter().all(u8::is_ascii_digit) {
        // More digits than a number has are as good as the largest number.
        true => Some(digits(text).unwrap_or(u64::MAX)),
        false => None,
    };
    let (from, to) = match bounds() {
        None | Some((b"", b"")) => return Selected::Whole,
        Some((b"", count)) => match number(count) {
            None => return Selected::Whole,
            Some(0) => return Selected::NoSuchRange,
            Some(count) => (length.saturating_sub(count), length),
        },
        Some((first, b"")) => match number(first) {
            None => return Selected::Whole,
            Some(first) => (first, length),
        },
        Some((first, last)) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => {
                (first, last.saturating_add(1).min(length))
            }
            _ => return Selected::Whole,
        },
    };
    if from < length { Selected::Part(from..to) } else { Selected::NoSuchRange }
}

#[cfg(test)]
mod tests {
    use super::super::request;
    use super::*;

    const FILE: Version = Version { modified: (784_111_777, 5), length: 1000 };
    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const EARLIER: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const TAG: &str = "\"2ebc98a1-5-3e8\"";

    fn selected(method: &str, lines: &[(&str, &str)], version: Option<&Version>) -> Selected {
        let lines: String =
            lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{lines}\r\n");
        let (parsed, _) = request::parse(head.as_bytes()).unwrap().unwrap();
        select(parsed.method, &parsed.fields, head.as_bytes(), version)
    }

    #[test]
    fn the_tag_of_a_file_names_its_time_and_its_length() {
        assert_eq!(FILE.tag().as_bytes(), TAG.as_bytes());
        let long = Version { modified: (u64::MAX, u32::MAX), length: u64::MAX };
        assert_eq!(long.tag().as_bytes().len(), 44);
    }

    #[test]
    fn a_range_selects_a_part_of_the_file() {
        use Selected::{NoSuchRange, Part, Whole};
        let cases = [
            ("bytes=0-0", Part(0..1)),
            ("bytes=0-999", Part(0..1000)),
            ("Bytes= 10 - 19 ", Part(10..20)),
            ("bytes=990-2000", Part(990..1000)),
            ("bytes=5-", Part(5..1000)),
            ("bytes=-5", Part(995..1000)),
            ("bytes=-5000", Part(0..1000)),
            ("bytes=0-99999999999999999999999", Part(0..1000)),
            ("bytes=1000-", NoSuchRange),
            ("bytes=1000-2000", NoSuchRange),
            ("bytes=-0", NoSuchRange),
            ("bytes=2-1", Whole),
            ("bytes=-", Whole),
            ("bytes=a-b", Whole),
            ("bytes=0-1,5-6", Whole),
            ("lines=0-1", Whole),
            ("byte", Whole),
        ];
        for (range, expected) in cases {
            assert_eq!(selected("GET", &[("Range", range)], Some(&FILE)), expected, "{range}");
        }
        assert_eq!(selected("HEAD", &[("Range", "bytes=0-0")], Some(&FILE)), Whole);
        let twice = [("Range", "bytes=0-0"), ("Range", "bytes=1-1")];
        assert_eq!(selected("GET", &twice, Some(&FILE)), Whole);
        let empty = Version { length: 0, ..FILE };
        assert_eq!(selected("GET", &[("Range", "bytes=0-")], Some(&empty)), NoSuchRange);
        assert_eq!(selected("GET", &[("Range", "bytes=-5")], Some(&empty)), NoSuchRange);
    }

    #[test]
    fn conditions_are_applied_in_the_order_of_the_rfc() {
        use Selected::{NotModified, Part, PreconditionFailed, Whole};
        let weak = format!("W/{TAG}");
        let several = format!("\"x\", {weak}");
        let range = ("Range", "bytes=0-0");
        let cases: [(&[(&str, &str)], Selected); 18] = [
            (&[("If-None-Match", TAG)], NotModified),
            (&[("If-None-Match", &several)], NotModified),
            (&[("If-None-Match", "*")], NotModified),
            (&[("If-None-Match", "\"x\"")], Whole),
            (&[("If-None-Match", "\"x\""), ("If-Modified-Since", DATE)], Whole),
            (&[("If-Modified-Since", DATE)], NotModified),
            (&[("If-Modified-Since", EARLIER)], Whole),
            (&[("If-Modified-Since", "yesterday")], Whole),
            (&[("If-Match", TAG)], Whole),
            (&[("If-Match", &weak)], PreconditionFailed),
            (&[("If-Match", "\"x\"")], PreconditionFailed),
            (&[("If-Match", TAG), ("If-Unmodified-Since", EARLIER)], Whole),
            (&[("If-Unmodified-Since", EARLIER)], PreconditionFailed),
            (&[("If-Unmodified-Since", DATE)], Whole),
            (&[range, ("If-Range", TAG)], Part(0..1)),
            (&[range, ("If-Range", DATE)], Part(0..1)),
            (&[range, ("If-Range", EARLIER)], Whole),
            (&[range, ("If-Range", &weak)], Whole),
        ];
        for (lines, expected) in cases {
            assert_eq!(selected("GET", lines, Some(&FILE)), expected, "{lines:?}");
        }
    }

    #[test]
    fn an_upload_can_be_limited_to_a_new_or_to_a_known_file() {
        let put = |line, version| selected("PUT", &[line], version);
        let if_new = ("If-None-Match", "*");
        assert_eq!(put(if_new, None), Selected::Whole);
        assert_eq!(put(if_new, Some(&FILE)), Selected::PreconditionFailed);
        assert_eq!(put(("If-Match", TAG), Some(&FILE)), Selected::Whole);
        assert_eq!(put(("If-Match", "*"), None), Selected::PreconditionFailed);
        assert_eq!(put(("If-Modified-Since", DATE), Some(&FILE)), Selected::Whole);
    }
}
