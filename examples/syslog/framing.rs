//! Where a message ends on a stream: RFC 6587, which describes what senders do.

use socketserver::{Decoded, Framing, FramingError, Output};

/// The longest message, in bytes. Of a longer one the beginning is delivered and the rest dropped,
/// as section 6.1 of RFC 5424 allows.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;

/// The most digits of a count: a longer number is no count.
const MAX_DIGITS: usize = 9;

/// Both framings of RFC 6587, told apart at the beginning of each message.
///
/// A message begins with `<`. So `123 <` is the count of an octet-counted message, and everything
/// else is a line: also one that begins with a number, as the second line of a text may. A line
/// ends with LF, or with NUL, as those of Python's `SysLogHandler` do.
#[derive(Clone, Debug, Default)]
pub(crate) struct SyslogFraming {
    /// How many bytes at the start of the input are known to have no end of a line.
    scanned: usize,
    dropping: Dropping,
}

/// What is left of a message that was too long.
#[derive(Clone, Debug, Default, PartialEq)]
enum Dropping {
    #[default]
    Nothing,
    /// This many bytes.
    Counted(usize),
    /// All to the end of the line.
    Line,
}

/// What a message begins with.
enum Start {
    /// A count: its length with the space, and its value.
    Count(usize, usize),
    Line,
    /// The bytes so far may become either.
    Unknown,
}

fn start(input: &[u8]) -> Start {
    let digits = input.iter().take(MAX_DIGITS + 1).take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 || digits > MAX_DIGITS || input[0] == b'0' {
        return Start::Line;
    }
    match &input[digits..] {
        [b' ', b'<', ..] => {
            let digits = &input[..digits];
            let count = digits.iter().fold(0, |sum, digit| 10 * sum + usize::from(digit - b'0'));
            Start::Count(digits.len() + 1, count)
        }
        [] | [b' '] => Start::Unknown,
        _ => Start::Line,
    }
}

fn is_end_of_line(byte: &u8) -> bool {
    matches!(byte, b'\n' | 0)
}

impl SyslogFraming {
    fn line(&mut self, input: &[u8]) -> Decoded {
        let end = input[self.scanned..].iter().position(is_end_of_line);
        let end = end.map(|at| self.scanned + at);
        self.scanned = 0;
        match end {
            Some(end) if matches!(&input[..end], b"" | b"\r") => Decoded::Skip(end + 1),
            Some(end) => Decoded::Frame { body: 0..end.min(MAX_MESSAGE), consumed: end + 1 },
            None if input.len() >= MAX_MESSAGE => {
                self.dropping = Dropping::Line;
                Decoded::Frame { body: 0..MAX_MESSAGE, consumed: input.len() }
            }
            None => {
                self.scanned = input.len();
                Decoded::Incomplete
            }
        }
    }

    fn counted(&mut self, input: &[u8], start: usize, count: usize) -> Decoded {
        let end = start + count.min(MAX_MESSAGE);
        if input.len() < end {
            return Decoded::Need(end);
        }
        if count > MAX_MESSAGE {
            self.dropping = Dropping::Counted(count - MAX_MESSAGE);
        }
        Decoded::Frame { body: start..end, consumed: end }
    }
}

impl Framing for SyslogFraming {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        match self.dropping {
            Dropping::Nothing => {}
            Dropping::Counted(left) => {
                let count = left.min(input.len());
                self.dropping = match left - count {
                    0 => Dropping::Nothing,
                    left => Dropping::Counted(left),
                };
                return Ok(Decoded::Skip(count));
            }
            Dropping::Line => {
                let end = input.iter().position(is_end_of_line);
                if end.is_some() {
                    self.dropping = Dropping::Nothing;
                }
                return Ok(Decoded::Skip(end.map_or(input.len(), |end| end + 1)));
            }
        }
        Ok(match start(input) {
            Start::Count(start, count) => self.counted(input, start, count),
            Start::Line => self.line(input),
            Start::Unknown => Decoded::Incomplete,
        })
    }

    /// The last line may lack its end; a counted message may not.
    fn decode_eof(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        match start(input) {
            Start::Count(..) => Err(FramingError::UnexpectedEof { buffered: input.len() }),
            Start::Line | Start::Unknown => {
                Ok(Decoded::Frame { body: 0..input.len(), consumed: input.len() })
            }
        }
    }

    /// Nothing is sent to the peers; this is the framing without a count.
    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        output.put(message);
        output.put(b"\n");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The messages in these bytes, which arrive in pieces of this size.
    fn messages(bytes: &[u8], piece: usize) -> Vec<Vec<u8>> {
        let (mut framing, mut found) = (SyslogFraming::default(), Vec::new());
        let (mut input, mut rest) = (Vec::new(), bytes);
        loop {
            let decoded = match input.is_empty() {
                true => Decoded::Incomplete,
                false => framing.decode(&input).unwrap(),
            };
            match decoded {
                Decoded::Frame { body, consumed } => {
                    found.push(input[body].to_vec());
                    input.drain(..consumed);
                }
                Decoded::Skip(count) => drop(input.drain(..count)),
                Decoded::Incomplete | Decoded::Need(_) if rest.is_empty() => break,
                Decoded::Incomplete | Decoded::Need(_) => {
                    let (next, after) = rest.split_at(piece.min(rest.len()));
                    input.extend(next);
                    rest = after;
                }
            }
        }
        if !input.is_empty()
            && let Ok(Decoded::Frame { body, .. }) = framing.decode_eof(&input)
        {
            found.push(input[body].to_vec());
        }
        found
    }

    #[test]
    fn counts_and_lines_are_told_apart_however_the_bytes_arrive() {
        let bytes =
            b"7 <1>a\nb\n<2>line\n\n\r\x00<3>nul\x0012 <4>0 <5>fake12 is no count\n5 <6>xy<7>last";
        let expected: &[&[u8]] = &[
            b"<1>a\nb\n",
            b"<2>line",
            b"<3>nul",
            b"<4>0 <5>fake",
            b"12 is no count",
            b"<6>xy",
            b"<7>last",
        ];
        for piece in [1, 2, 3, 7, bytes.len()] {
            assert_eq!(messages(bytes, piece), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_message_that_is_too_long_loses_its_end_and_the_next_is_whole() {
        let long = vec![b'x'; 3 * MAX_MESSAGE];
        let counted = [format!("{} <", long.len() + 1).as_bytes(), &long, b"6 <1>end"].concat();
        let line = [b"<", &long[..], b"\n<1>end\n"].concat();
        for bytes in [counted, line] {
            for piece in [1000, 1 << 20] {
                let found = messages(&bytes, piece);
                let lengths: Vec<_> = found.iter().map(Vec::len).collect();
                assert_eq!((lengths, &found[1][..]), (vec![MAX_MESSAGE, 6], &b"<1>end"[..]));
            }
        }
    }

    #[test]
    fn a_counted_message_that_is_cut_is_no_message_and_a_line_without_its_end_is() {
        assert_eq!(messages(b"10 <1>cut", 100), [b""; 0]);
        assert_eq!(messages(b"<1>line", 100), [b"<1>line"]);
        assert_eq!(messages(b"10 ", 100), [b"10 "]);
    }

    proptest! {
        #[test]
        fn the_messages_in_random_bytes_do_not_depend_on_how_they_arrive(
            bytes in "([0-9]{1,3} <|[<>a\n\0]){0,40}", piece in 1..50_usize
        ) {
            let bytes = bytes.as_bytes();
            prop_assert_eq!(messages(bytes, piece), messages(bytes, bytes.len().max(1)));
        }
    }
}
