//! Replies, in RESP2 or RESP3: they are collected here and go to the client together.

use std::sync::Arc;

use socketserver::Output;

use super::text::{SHORT, Text};

/// From this length on a text is sent by reference and not copied.
const SHARED_FROM: usize = 16 << 10;
/// Beyond this capacity, in bytes, the memory of a reply is freed when it has been sent.
const KEPT: usize = 256 << 10;

/// The most bytes of the replies of one command or transaction, beside texts that are sent by
/// reference. A short request could ask for the same value again and again.
const LONGEST: usize = 256 << 20;
/// The error in place of such a reply.
pub(crate) const TOO_LONG: &str = "ERR the reply is too long";

/// The replies to one command, or to all commands of a transaction.
#[derive(Default)]
pub(crate) struct Reply {
    bytes: Vec<u8>,
    /// Texts that are sent by reference, each with the number of bytes before it.
    shared: Vec<(usize, Arc<[u8]>)>,
    /// Whether the client has asked for RESP3.
    pub(crate) resp3: bool,
}

impl Reply {
    /// An empty reply in the protocol of a client.
    pub(crate) fn new(resp3: bool) -> Self {
        Reply { resp3, ..Reply::default() }
    }

    /// Puts all replies on the output.
    #[inline]
    pub(crate) fn send(&mut self, mut output: Output<'_>) {
        if self.shared.is_empty() {
            output.put(&self.bytes);
        } else {
            let mut sent = 0;
            for (before, text) in self.shared.drain(..) {
                output.put(&self.bytes[sent..before]);
                output.put_shared(&text);
                sent = before;
            }
            output.put(&self.bytes[sent..]);
        }
        match self.bytes.capacity() {
            ..=KEPT => self.bytes.clear(),
            _ => self.bytes = Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_too_long(&self) -> bool {
        self.bytes.len() > LONGEST
    }

    /// Forgets all replies after the first `len` bytes.
    pub(crate) fn cut_back(&mut self, len: usize) {
        self.bytes.truncate(len);
        self.shared.retain(|(before, _)| *before <= len);
    }

    /// All replies as one message.
    pub(crate) fn into_message(self) -> Arc<[u8]> {
        debug_assert!(self.shared.is_empty(), "a message is made of short texts and slices");
        self.bytes.into()
    }

    /// The kind of a reply and a number, as in `:42\r\n`.
    #[inline]
    fn head(&mut self, kind: u8, number: i64) {
        match number {
            0..=9 => self.bytes.extend_from_slice(&[kind, b'0' + number as u8, b'\r', b'\n']),
            _ => self.long_head(kind, number),
        }
    }

    #[inline(never)]
    fn long_head(&mut self, kind: u8, number: i64) {
        self.bytes.push(kind);
        let (digits, start) = decimal(number);
        self.bytes.extend_from_slice(&digits[start..]);
        self.end();
    }

    #[inline]
    fn end(&mut self) {
        self.bytes.extend_from_slice(b"\r\n");
    }

    #[inline]
    pub(crate) fn ok(&mut self) {
        self.bytes.extend_from_slice(b"+OK\r\n");
    }

    pub(crate) fn simple(&mut self, text: &str) {
        self.bytes.push(b'+');
        self.bytes.extend_from_slice(text.as_bytes());
        self.end();
    }

    /// An error: its first word is its kind.
    #[cold]
    pub(crate) fn error(&mut self, text: &str) {
        self.bytes.push(b'-');
        // An error is one line.
        self.bytes
            .extend(text.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }));
        self.end();
    }

    #[inline]
    pub(crate) fn integer(&mut self, number: i64) {
        self.head(b':', number);
    }

    /// A number of elements or of changes.
    #[inline]
    pub(crate) fn count(&mut self, count: usize) {
        self.head(b':', count as i64);
    }

    #[inline]
    pub(crate) fn bulk(&mut self, bytes: &[u8]) {
        self.bytes.reserve(bytes.len() + 32);
        self.head(b'$', bytes.len() as i64);
        self.bytes.extend_from_slice(bytes);
        self.end();
    }

    /// A short bulk string: all bytes of its array are copied, which takes fewer instructions than
    /// as many as it has, and those after its end are cut off.
    #[inline]
    fn short(&mut self, len: usize, bytes: &[u8; SHORT]) {
        let mut bulk = [0; SHORT + 7];
        let start = match len {
            0..=9 => {
                bulk[..4].copy_from_slice(&[b'$', b'0' + len as u8, b'\r', b'\n']);
                4
            }
            _ => {
                let digits = [b'0' + (len / 10) as u8, b'0' + (len % 10) as u8];
                bulk[..5].copy_from_slice(&[b'$', digits[0], digits[1], b'\r', b'\n']);
                5
            }
        };
        bulk[start..start + SHORT].copy_from_slice(bytes);
        bulk[start + len..start + len + 2].copy_from_slice(b"\r\n");
        let before = self.bytes.len();
        self.bytes.extend_from_slice(&bulk);
        self.bytes.truncate(before + start + len + 2);
    }

    /// A bulk string that may be long.
    #[inline]
    pub(crate) fn text(&mut self, text: &Text) {
        match text {
            Text::Short(len, bytes) => self.short(usize::from(*len).min(SHORT), bytes),
            Text::Long(bytes) if bytes.len() >= SHARED_FROM => {
                self.head(b'$', bytes.len() as i64);
                self.shared.push((self.bytes.len(), bytes.clone()));
                self.end();
            }
            text => self.bulk(text),
        }
    }

    /// No value.
    #[inline]
    pub(crate) fn nil(&mut self) {
        self.bytes.extend_from_slice(if self.resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// No array.
    pub(crate) fn nil_array(&mut self) {
        self.bytes.extend_from_slice(if self.resp3 { b"_\r\n" } else { b"*-1\r\n" });
    }

    pub(crate) fn array(&mut self, len: usize) {
        self.head(b'*', len as i64);
    }

    /// The head of so many pairs of a name and a value.
    pub(crate) fn map(&mut self, len: usize) {
        match self.resp3 {
            true => self.head(b'%', len as i64),
            false => self.head(b'*', 2 * len as i64),
        }
    }

    pub(crate) fn set(&mut self, len: usize) {
        self.head(if self.resp3 { b'~' } else { b'*' }, len as i64);
    }

    /// The head of something that the client has not asked for.
    pub(crate) fn push(&mut self, len: usize) {
        self.head(if self.resp3 { b'>' } else { b'*' }, len as i64);
    }

    pub(crate) fn double(&mut self, number: f64) {
        let text = shortest(number);
        match self.resp3 {
            true => {
                self.bytes.push(b',');
                self.bytes.extend_from_slice(text.as_bytes());
                self.end();
            }
            false => self.bulk(text.as_bytes()),
        }
    }

    /// A text for people, such as that of `INFO`.
    pub(crate) fn verbatim(&mut self, text: &str) {
        match self.resp3 {
            true => {
                self.head(b'=', text.len() as i64 + 4);
                self.bytes.extend_from_slice(b"txt:");
                self.bytes.extend_from_slice(text.as_bytes());
                self.end();
            }
            false => self.bulk(text.as_bytes()),
        }
    }
}

/// A number in decimal: the bytes from the index on.
#[inline]
pub(crate) fn decimal(number: i64) -> ([u8; 20], usize) {
    let (mut digits, mut start) = ([b'-'; 20], 20);
    let mut rest = number.unsigned_abs();
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    // All digits before the first are minus signs.
    (digits, start - usize::from(number < 0))
}

/// The shortest text that reads as this number, as Redis writes it since version 7.2.
pub(crate) fn shortest(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let precision = digits.bytes().filter(u8::is_ascii_digit).count() as i32;
    let is_integer = exponent + 1 >= precision;
    match (is_integer, exponent) {
        (true, ..=16) => format!("{number}"),
        (true, _) if exponent < precision + 7 => format!("{number}"),
        (false, -6..) => format!("{number}"),
        (_, 0..) => format!("{digits}e+{exponent}"),
        _ => format!("{digits}e{exponent}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(resp3: bool, make: impl FnOnce(&mut Reply)) -> String {
        let mut reply = Reply::new(resp3);
        make(&mut reply);
        String::from_utf8(reply.into_message().to_vec()).unwrap()
    }

    #[test]
    fn resp3_has_types_of_its_own() {
        let all = |reply: &mut Reply| {
            reply.nil();
            reply.nil_array();
            reply.map(1);
            reply.set(12);
            reply.push(3);
            reply.double(1.5);
            reply.verbatim("a");
        };
        assert_eq!(text(false, all), "$-1\r\n*-1\r\n*2\r\n*12\r\n*3\r\n$3\r\n1.5\r\n$1\r\na\r\n");
        assert_eq!(text(true, all), "_\r\n_\r\n%1\r\n~12\r\n>3\r\n,1.5\r\n=5\r\ntxt:a\r\n");
    }

    #[test]
    fn numbers_are_written_whole() {
        for number in [0, 7, 10, -1, 123_456_789, i64::MAX, i64::MIN] {
            assert_eq!(text(false, |reply| reply.integer(number)), format!(":{number}\r\n"));
        }
        let doubles = [
            (0.0, "0"),
            (3.0, "3"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (1e20, "1e+20"),
            (1e-9, "1e-9"),
            (f64::INFINITY, "inf"),
            (1234567.25, "1234567.25"),
            (9007199254740992.0, "9007199254740992"),
        ];
        for (number, expected) in doubles {
            assert_eq!(shortest(number), expected);
        }
    }

    #[test]
    fn a_text_of_any_length_is_a_bulk_string() {
        for len in (0..50).chain([99, 100, 20_000]) {
            let bytes = vec![b'x'; len];
            let mut reply = Reply::default();
            reply.text(&Text::from(&bytes[..]));
            reply.ok();
            let shared: usize = reply.shared.iter().map(|(_, bytes)| bytes.len()).sum();
            assert_eq!(shared, if len < SHARED_FROM { 0 } else { len });
            let expected = format!("${len}\r\n{}\r\n+OK\r\n", "x".repeat(len - shared));
            assert_eq!(reply.bytes, expected.as_bytes());
        }
    }

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(text(false, |reply| reply.error("ERR a\r\nb")), "-ERR a  b\r\n");
    }
}
