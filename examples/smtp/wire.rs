//! The framing of SMTP: lines with commands, and after `DATA` a mail, which ends in a line with a dot.
//!
//! Only CR LF ends a line, and only CR LF dot CR LF ends a mail. A server that also takes a bare CR or LF
//! for the end of a line can be made to see two mails where the server before it saw one (SMTP
//! smuggling).

use socketserver::{Decoded, Framing, FramingError, Output};

/// The longest line with a command, with its CR LF: 512 bytes (RFC 5321, 4.5.3.1.4), and for `MAIL` 26
/// more for `SIZE=` (RFC 1870) and 17 more for `BODY=` (RFC 6152).
pub(crate) const LONGEST_MAIL_COMMAND: usize = 512 + 26 + 17;

/// The longest line of a mail, with its CR LF and without the dot that is put in front of a dot (RFC
/// 5321, 4.5.3.1.6).
const LONGEST_TEXT_LINE: usize = 1000;

/// The framing of a connection: what the client sends next.
pub(crate) enum Wire {
    Commands(CommandLines),
    Mail(MailData),
}

/// The framing of commands. A message is a line, without its end.
#[derive(Default)]
pub(crate) struct CommandLines {
    /// How many bytes of the input contain no LF.
    scanned: usize,
    /// The line is too long already, and is dropped up to its end.
    discards: bool,
    /// What is wrong with the line that was decoded last.
    pub(crate) fault: Option<LineFault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineFault {
    TooLong,
    BareLf,
}

/// The framing of a mail. The message is the mail as it was sent: [`unstuff`] removes the added dots.
pub(crate) struct MailData {
    max_size: usize,
    /// How many bytes of the input the automaton has seen.
    scanned: usize,
    position: Position,
    /// How many bytes of the mail are in complete lines, without the added dots.
    size: usize,
    /// How many bytes of the current line have come, without an added dot.
    line: usize,
    /// The first thing that is wrong with the mail. The rest is dropped up to its end.
    pub(crate) fault: Option<MailFault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MailFault {
    TooLarge,
    LineTooLong,
    BareCrOrLf,
}

/// The position in a mail: the state of the automaton that looks for its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    LineStart,
    /// After a dot at the start of a line.
    Dot,
    /// After a dot at the start of a line, and a CR.
    DotCr,
    Text,
    Cr,
}

impl Framing for Wire {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        Ok(match self {
            Wire::Commands(lines) => lines.decode(input),
            Wire::Mail(mail) => mail.decode(input),
        })
    }

    fn encode(&mut self, reply: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        output.put(reply);
        output.put(b"\r\n");
        Ok(())
    }
}

impl CommandLines {
    fn decode(&mut self, input: &[u8]) -> Decoded {
        self.fault = None;
        let Some(at) = input[self.scanned..].iter().position(|&byte| byte == b'\n') else {
            self.discards |= input.len() >= LONGEST_MAIL_COMMAND;
            if self.discards {
                self.scanned = 0;
                return Decoded::Skip(input.len());
            }
            self.scanned = input.len();
            return Decoded::Incomplete;
        };
        let consumed = std::mem::take(&mut self.scanned) + at + 1;
        let mut body = 0..consumed - 1;
        if std::mem::take(&mut self.discards) || consumed > LONGEST_MAIL_COMMAND {
            self.fault = Some(LineFault::TooLong);
            body.end = 0;
        } else if input[body.clone()].ends_with(b"\r") {
            body.end -= 1;
        } else {
            self.fault = Some(LineFault::BareLf);
        }
        Decoded::Frame { body, consumed }
    }
}

impl MailData {
    /// A mail of at most `max_size` bytes.
    pub(crate) fn new(max_size: usize) -> Self {
        let position = Position::LineStart;
        MailData { max_size, scanned: 0, position, size: 0, line: 0, fault: None }
    }

    /// Whether a part of a mail that can be accepted has come.
    pub(crate) fn has_begun(&self) -> bool {
        self.scanned > 0
    }

    fn decode(&mut self, input: &[u8]) -> Decoded {
        for (at, &byte) in input.iter().enumerate().skip(self.scanned) {
            if self.position == Position::DotCr && byte == b'\n' {
                let end = if self.fault.is_some() { 0 } else { at - 2 };
                return Decoded::Frame { body: 0..end, consumed: at + 1 };
            }
            self.step(byte);
        }
        if self.fault.is_some() {
            // No byte of it is needed any more.
            self.scanned = 0;
            return Decoded::Skip(input.len());
        }
        self.scanned = input.len();
        Decoded::Incomplete
    }

    fn step(&mut self, byte: u8) {
        use Position::{Cr, Dot, DotCr, LineStart, Text};
        let before = self.position;
        let ends_line = before == Cr && byte == b'\n';
        if (matches!(before, Cr | DotCr) || byte == b'\n') && !ends_line {
            self.set_fault(MailFault::BareCrOrLf);
        }
        self.position = match (before, byte) {
            _ if ends_line => LineStart,
            (LineStart, b'.') => Dot,
            (Dot, b'\r') => DotCr,
            (_, b'\r') => Cr,
            _ => Text,
        };
        self.line += usize::from(self.position != Dot);
        if self.line > LONGEST_TEXT_LINE {
            self.set_fault(MailFault::LineTooLong);
        }
        if ends_line {
            self.size += std::mem::take(&mut self.line);
        }
        // The CR after a dot may be that of the last line, which does not count.
        if self.size + self.line > self.max_size && self.position != DotCr {
            self.set_fault(MailFault::TooLarge);
        }
    }

    fn set_fault(&mut self, fault: MailFault) {
        self.fault.get_or_insert(fault);
    }
}

/// The mail without the dots that the client has put in front of each line that begins with one.
pub(crate) fn unstuff(mail: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(mail.len());
    for line in mail.split_inclusive(|&byte| byte == b'\n') {
        text.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is decoded from `input` when it arrives in pieces of `piece` bytes: each message with
    /// its fault, and the rest.
    fn decoded(mut wire: Wire, input: &[u8], piece: usize) -> (Vec<(String, String)>, Vec<u8>) {
        let (mut messages, mut buffer) = (Vec::new(), Vec::new());
        for piece in input.chunks(piece) {
            buffer.extend_from_slice(piece);
            while !buffer.is_empty() {
                match wire.decode(&buffer).unwrap() {
                    Decoded::Frame { body, consumed } => {
                        let message = buffer[body].to_vec();
                        buffer.drain(..consumed);
                        let fault = match &wire {
                            Wire::Commands(lines) => format!("{:?}", lines.fault),
                            Wire::Mail(mail) => format!("{:?}", mail.fault),
                        };
                        if let Wire::Mail(_) = wire {
                            wire = Wire::Commands(CommandLines::default());
                        }
                        messages.push((String::from_utf8(message).unwrap(), fault));
                    }
                    Decoded::Skip(count) => drop(buffer.drain(..count)),
                    _ => break,
                }
            }
        }
        (messages, buffer)
    }

    fn commands(input: &[u8]) -> Vec<(String, String)> {
        let wire = || Wire::Commands(CommandLines::default());
        let whole = decoded(wire(), input, usize::MAX);
        assert_eq!(decoded(wire(), input, 1), whole, "byte by byte");
        whole.0
    }

    /// The first message of a mail, which is the same however it arrives.
    fn mail(input: &[u8], max_size: usize) -> Option<(String, String)> {
        let wire = || Wire::Mail(MailData::new(max_size));
        let whole = decoded(wire(), input, usize::MAX).0;
        for piece in 1..7 {
            assert_eq!(decoded(wire(), input, piece).0, whole, "in pieces of {piece}");
        }
        whole.into_iter().next()
    }

    fn is(text: &str, fault: &str) -> (String, String) {
        (text.to_owned(), fault.to_owned())
    }

    #[test]
    fn a_line_ends_in_cr_lf_and_any_other_end_is_a_fault() {
        let expected = [is("NOOP", "None"), is("a\rb", "None"), is("RSET", "Some(BareLf)")];
        assert_eq!(commands(b"NOOP\r\na\rb\r\nRSET\nQUI"), expected);
    }

    #[test]
    fn a_line_that_is_too_long_is_dropped_and_the_next_is_decoded() {
        let longest = "x".repeat(LONGEST_MAIL_COMMAND - 2);
        for excess in [1, 2, 3, 100_000] {
            let input = format!("{longest}\r\n{}{longest}\r\nNOOP\r\n", "y".repeat(excess));
            let expected = [is(&longest, "None"), is("", "Some(TooLong)"), is("NOOP", "None")];
            assert_eq!(commands(input.as_bytes()), expected);
        }
    }

    #[test]
    fn a_mail_ends_in_a_line_with_a_dot() {
        assert_eq!(mail(b".\r\n", 0), Some(is("", "None")));
        assert_eq!(mail(b"a\r\n.\r\nQUIT\r\n", 100), Some(is("a\r\n", "None")));
        assert_eq!(mail(b"..\r\n...\r\n.a\r\n.\r\n", 100), Some(is("..\r\n...\r\n.a\r\n", "None")));
        assert_eq!(mail(b"a\r\n.\r", 100), None);
        assert_eq!(unstuff(b"..\r\n...\r\n.a\r\na.b\r\n"), b".\r\n..\r\na\r\na.b\r\n");
    }

    #[test]
    fn an_end_with_a_bare_cr_or_lf_is_not_an_end_and_spoils_the_mail() {
        for end in [
            "\n.\n",
            "\n.\r\n",
            "\r\n.\n",
            "\r.\r",
            "\r.\r\n",
            "\r\n.\r",
            "\r\n\0.\r\n",
            "\r\r\n.\n",
            "\r\n.\r\r\n",
            "\r\n.\n\r\n",
        ] {
            let input = format!("one{end}MAIL FROM:<a@b>\r\nDATA\r\n.\r\nNOOP\r\n");
            let (text, fault) = mail(input.as_bytes(), 1000).unwrap();
            match end {
                "\r\n\0.\r\n" => assert!(text.contains("MAIL"), "{end:?}: {text}"),
                _ => assert_eq!(is(&text, &fault), is("", "Some(BareCrOrLf)"), "{end:?}"),
            }
        }
    }

    #[test]
    fn the_limits_of_a_mail_count_neither_the_added_dots_nor_the_last_line() {
        assert_eq!(mail(b"..\r\n..\r\n.\r\n", 6), Some(is("..\r\n..\r\n", "None")));
        assert_eq!(mail(b"..\r\n..a\r\n.\r\n", 6), Some(is("", "Some(TooLarge)")));
        let line = format!("..{}\r\n.\r\n", "x".repeat(997));
        assert_eq!(mail(line.as_bytes(), 1000).unwrap().1, "None");
        let line = format!("..{}\r\n.\r\n", "x".repeat(998));
        assert_eq!(mail(line.as_bytes(), 2000), Some(is("", "Some(LineTooLong)")));
    }

    #[test]
    fn a_mail_with_a_fault_is_not_kept() {
        let mut mail = MailData::new(10);
        assert_eq!(mail.decode(b"0123456789"), Decoded::Incomplete);
        assert!(mail.has_begun());
        assert_eq!(mail.decode(b"0123456789x"), Decoded::Skip(11));
        assert!(!mail.has_begun());
        assert_eq!(mail.decode(b"\r\n."), Decoded::Skip(3));
        assert_eq!(mail.decode(b"\r\n"), Decoded::Frame { body: 0..0, consumed: 2 });
    }

    #[test]
    fn a_mail_of_random_pieces_ends_at_the_first_cr_lf_dot_cr_lf() {
        let mut state = 5u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        for _ in 0..20_000 {
            let pieces: [&[u8]; 7] = [b"\r\n", b"\r\n", b"\r", b"\n", b".", b".\r\n", b"a"];
            // Half of the mails have no bare CR or LF, unless pieces make one.
            let common = [pieces[0], pieces[5], pieces[4], pieces[6]];
            let correct = random(2) == 0;
            let input: Vec<u8> = (0..random(20))
                .flat_map(|_| if correct { common[random(4)] } else { pieces[random(7)] })
                .copied()
                .collect();
            let padded = [b"\r\n", &input[..]].concat();
            let end = padded.windows(5).position(|bytes| bytes == b"\r\n.\r\n");
            let expected = end.map(|end| {
                let text = String::from_utf8(input[..end].to_vec()).unwrap();
                match text.replace("\r\n", "").contains(['\r', '\n']) {
                    true => is("", "Some(BareCrOrLf)"),
                    false => is(&text, "None"),
                }
            });
            assert_eq!(mail(&input, 1000), expected, "{:?}", String::from_utf8_lossy(&input));
        }
    }
}
