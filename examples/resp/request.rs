//! Requests of a client: a framing that finds each command and keeps where its arguments are, so
//! that the handler need not parse it again.
//!
//! A command is an array of bulk strings (`*2\r\n$3\r\nGET\r\n$1\r\na\r\n`) or a line of words
//! (`GET a`). See <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use std::fmt;
use std::ops::Index;

use socketserver::{Decoded, Framing, FramingError, Output};

use super::words::split;

/// The most arguments of a command.
const MAX_ARGUMENTS: i64 = 1 << 20;
/// The longest argument, in bytes: Redis' `proto-max-bulk-len`.
pub(crate) const MAX_ARGUMENT: i64 = 512 << 20;
/// The longest command, in bytes: Redis' `client-query-buffer-limit`.
pub(crate) const MAX_COMMAND: usize = 1 << 30;
/// The longest line, in bytes: a command of words, or a length.
const MAX_LINE: usize = 64 << 10;
/// How many arguments are kept without an allocation.
const FEW: usize = 4;
/// The most arguments for which a connection keeps its memory.
const KEPT: usize = 64;

/// Why bytes are not a command, in the words of Redis.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    Count,
    CountTooLong,
    Length,
    LengthTooLong,
    NoLength(u8),
    LineTooLong,
    Quotes,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Count => f.write_str("invalid multibulk length"),
            Malformed::CountTooLong => f.write_str("too big mbulk count string"),
            Malformed::Length => f.write_str("invalid bulk length"),
            Malformed::LengthTooLong => f.write_str("too big bulk count string"),
            Malformed::NoLength(found) => {
                write!(f, "expected '$', got '{}'", char::from(*found).escape_default())
            }
            Malformed::LineTooLong => f.write_str("too big inline request"),
            Malformed::Quotes => f.write_str("unbalanced quotes in request"),
        }
    }
}

impl std::error::Error for Malformed {}

/// Where an argument is: its first byte and its length.
type Place = (u32, u32);

/// The framing of a client's requests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Requests {
    /// How far the command at the start of the input has been parsed.
    parsed: usize,
    /// How many arguments of it are missing; 0 between two commands.
    missing: u32,
    found: Found,
}

/// The arguments of a command.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    few: [Place; FEW],
    /// All of them, if they are more than a few.
    many: Vec<Place>,
    len: usize,
    /// The bytes of the arguments of a line; those of an array are in the message.
    words: Vec<u8>,
}

impl Found {
    #[inline]
    fn push(&mut self, place: Place) {
        match self.few.get_mut(self.len) {
            Some(free) => *free = place,
            None => self.push_more(place),
        }
        self.len += 1;
    }

    #[inline(never)]
    fn push_more(&mut self, place: Place) {
        if self.len == FEW {
            self.many.clear();
            self.many.extend(self.few);
        }
        self.many.push(place);
    }

    /// Whether [`Requests::reuse`] has something to use.
    #[inline]
    pub(crate) fn has_memory(&self) -> bool {
        self.len > FEW && self.many.capacity() <= KEPT
    }

    /// The arguments, in the message in which they were found.
    #[inline]
    pub(crate) fn arguments<'a>(&'a self, message: &'a [u8]) -> Arguments<'a> {
        let bytes = if self.words.is_empty() { message } else { &self.words };
        let places = if self.len <= FEW { &self.few[..self.len] } else { &self.many };
        Arguments { bytes, places }
    }
}

/// What a line with a length says.
enum Line {
    /// The number, and where the line ends.
    Number(i64, usize),
    /// The line is not complete.
    Incomplete,
}

impl Requests {
    /// Takes the arguments of the command that was decoded last.
    #[inline]
    pub(crate) fn take(&mut self) -> Found {
        let Found { few, len, .. } = self.found;
        if len <= FEW && self.found.words.is_empty() {
            return Found { few, len, many: Vec::new(), words: Vec::new() };
        }
        std::mem::take(&mut self.found)
    }

    /// Returns the memory of many arguments for the next command.
    #[inline]
    pub(crate) fn reuse(&mut self, found: Found) {
        if found.has_memory() {
            self.found.many = found.many;
        }
    }

    /// A command of words.
    #[inline(never)]
    fn line(&mut self, input: &[u8]) -> Result<Decoded, Malformed> {
        let Some(end) = input[self.parsed..].iter().position(|byte| *byte == b'\n') else {
            if input.len() > MAX_LINE {
                return Err(Malformed::LineTooLong);
            }
            self.parsed = input.len();
            return Ok(Decoded::Incomplete);
        };
        let end = self.parsed + end;
        if end > MAX_LINE {
            return Err(Malformed::LineTooLong);
        }
        self.parsed = 0;
        let words = split(&input[..end]).ok_or(Malformed::Quotes)?;
        for word in &words {
            self.found.push((self.found.words.len() as u32, word.len() as u32));
            self.found.words.extend_from_slice(word);
        }
        match words.is_empty() {
            true => Ok(Decoded::Skip(end + 1)),
            // A word may be empty, but then the bytes of the arguments must not be.
            false => {
                self.found.words.push(b'\n');
                Ok(Decoded::Frame { body: 0..end, consumed: end + 1 })
            }
        }
    }

    #[inline]
    fn parse(&mut self, input: &[u8]) -> Result<Decoded, Malformed> {
        if self.missing == 0 {
            self.found.len = 0;
            if input[0] != b'*' {
                self.found.words.clear();
                return self.line(input);
            }
            match number(input, 1, Malformed::Count, Malformed::CountTooLong)? {
                Line::Incomplete => return Ok(Decoded::Incomplete),
                Line::Number(count, _) if count > MAX_ARGUMENTS => return Err(Malformed::Count),
                Line::Number(..1, end) => return Ok(Decoded::Skip(end)),
                Line::Number(count, end) => {
                    self.missing = count as u32;
                    self.parsed = end;
                }
            }
        }
        while self.missing > 0 {
            match input.get(self.parsed) {
                None => return Ok(Decoded::Incomplete),
                Some(b'$') => {}
                Some(other) => return Err(Malformed::NoLength(*other)),
            }
            let at = self.parsed + 1;
            let length = number(input, at, Malformed::Length, Malformed::LengthTooLong)?;
            let Line::Number(length, start) = length else { return Ok(Decoded::Incomplete) };
            if !(0..=MAX_ARGUMENT).contains(&length) {
                return Err(Malformed::Length);
            }
            let end = start + length as usize + 2; // the argument ends in \r\n
            if end > input.len() {
                return if end > MAX_COMMAND {
                    Err(Malformed::Length)
                } else {
                    Ok(Decoded::Need(end))
                };
            }
            self.found.push((start as u32, length as u32));
            self.parsed = end;
            self.missing -= 1;
        }
        let end = std::mem::take(&mut self.parsed);
        Ok(Decoded::Frame { body: 0..end, consumed: end })
    }
}

impl Framing for Requests {
    #[inline]
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        self.parse(input).map_err(|malformed| FramingError::Other(malformed.into()))
    }

    /// Messages of a `Sender` are replies already.
    #[inline]
    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        output.put(message);
        Ok(())
    }
}

/// The number in the line at `at`, which ends in `\r\n`.
#[inline(always)]
fn number(input: &[u8], at: usize, wrong: Malformed, long: Malformed) -> Result<Line, Malformed> {
    // Most numbers have one digit or two.
    match input.get(at..) {
        Some([digit @ b'0'..=b'9', b'\r', _, ..]) => {
            Ok(Line::Number(i64::from(digit - b'0'), at + 3))
        }
        Some([tens @ b'1'..=b'9', units @ b'0'..=b'9', b'\r', _, ..]) => {
            Ok(Line::Number(i64::from(tens - b'0') * 10 + i64::from(units - b'0'), at + 4))
        }
        _ => long_number(input, at, wrong, long),
    }
}

#[inline(never)]
fn long_number(
    input: &[u8],
    at: usize,
    wrong: Malformed,
    long: Malformed,
) -> Result<Line, Malformed> {
    let Some(len) = input[at..].iter().position(|byte| *byte == b'\r') else {
        return if input.len() - at > MAX_LINE { Err(long) } else { Ok(Line::Incomplete) };
    };
    if len > MAX_LINE {
        return Err(long);
    }
    if input.len() < at + len + 2 {
        return Ok(Line::Incomplete);
    }
    let value = integer(&input[at..at + len]).ok_or(wrong)?;
    Ok(Line::Number(value, at + len + 2))
}

/// The number that `text` is, as Redis reads one: without spaces, a plus sign or leading zeros.
#[inline]
pub(crate) fn integer(text: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !is_negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() < 20 => {}
        _ => return None,
    }
    let mut value = 0i64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        let digit = i64::from(digit - b'0');
        value = value.checked_mul(10)?;
        value = if is_negative { value.checked_sub(digit)? } else { value.checked_add(digit)? };
    }
    Some(value)
}

/// The arguments of a command; the first is its name.
#[derive(Clone, Copy)]
pub(crate) struct Arguments<'a> {
    bytes: &'a [u8],
    places: &'a [Place],
}

impl<'a> Arguments<'a> {
    #[inline]
    pub(crate) fn len(self) -> usize {
        self.places.len()
    }

    #[inline]
    pub(crate) fn get(self, index: usize) -> Option<&'a [u8]> {
        let (start, len) = self.places.get(index)?;
        Some(&self.bytes[*start as usize..][..*len as usize])
    }

    /// The arguments from one on.
    pub(crate) fn from(self, index: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone {
        let bytes = self.bytes;
        let places = self.places.get(index..).unwrap_or_default();
        places.iter().map(move |(start, len)| &bytes[*start as usize..][..*len as usize])
    }

    /// The arguments from one on, in pairs.
    pub(crate) fn pairs(self, index: usize) -> impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> {
        let names = self.from(index).step_by(2);
        names.zip(self.from(index + 1).step_by(2))
    }

    /// Whether an argument is this word, in letters of either case.
    pub(crate) fn is(self, index: usize, word: &str) -> bool {
        self.get(index).is_some_and(|argument| argument.eq_ignore_ascii_case(word.as_bytes()))
    }

    /// A copy that owns its bytes.
    pub(crate) fn to_owned(self) -> (Vec<u8>, Found) {
        let mut found = Found::default();
        let mut bytes = Vec::with_capacity(self.places.iter().map(|(_, len)| *len as usize).sum());
        for argument in self.from(0) {
            found.push((bytes.len() as u32, argument.len() as u32));
            bytes.extend_from_slice(argument);
        }
        (bytes, found)
    }
}

impl Index<usize> for Arguments<'_> {
    type Output = [u8];

    /// The command has been checked to have so many arguments.
    #[inline]
    fn index(&self, index: usize) -> &[u8] {
        let (start, len) = self.places[index];
        &self.bytes[start as usize..][..len as usize]
    }
}

#[cfg(test)]
mod tests;
