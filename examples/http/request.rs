//! The head of a request (RFC 9112, sections 2 to 6), without input and output: found, checked and
//! parsed once, into ranges of its bytes. What two servers could understand differently is refused.

use std::fmt;
use std::mem::MaybeUninit;

use super::websocket::lists;

/// The longest head, in bytes, and the most fields in it.
pub(crate) const LONGEST_HEAD: usize = 16 * 1024;
const MOST_FIELDS: usize = 64;

/// The longest target of a request, in bytes.
const LONGEST_TARGET: usize = 8000;

/// A status that is the answer to bytes that are not a request, or not one that is served here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) u16);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the request is answered with {}", self.0)
    }
}

impl std::error::Error for Refused {}

const BAD: Refused = Refused(400);

/// The methods that mean something here. All others of RFC 9110 are `Other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Put,
    Options,
    Other,
}

/// What follows the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    None,
    Length(u64),
    Chunked,
}

/// A range of the bytes of a head; empty if the field is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span {
    start: u16,
    end: u16,
}

impl Span {
    /// The range of `part` in `head`, which contains it.
    fn of(part: &[u8], head: &[u8]) -> Self {
        let start = part.as_ptr() as usize - head.as_ptr() as usize;
        Span { start: start as u16, end: (start + part.len()) as u16 }
    }

    /// The bytes, or `None` if the field is missing or empty.
    pub(crate) fn of_head(self, head: &[u8]) -> Option<&[u8]> {
        head.get(usize::from(self.start)..usize::from(self.end)).filter(|bytes| !bytes.is_empty())
    }
}

/// The parsed head of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) method: Method,
    pub(crate) target: Span,
    pub(crate) body: Body,
    /// The client speaks HTTP/1.0, and not HTTP/1.1.
    pub(crate) is_old: bool,
    pub(crate) keep_alive: bool,
    pub(crate) expects_continue: bool,
    pub(crate) fields: Fields,
}

/// The fields that are looked at when the request is answered.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fields {
    pub(crate) range: Span,
    pub(crate) if_range: Span,
    pub(crate) if_match: Span,
    pub(crate) if_none_match: Span,
    pub(crate) if_modified_since: Span,
    pub(crate) if_unmodified_since: Span,
    pub(crate) content_range: Span,
    /// `Connection: upgrade` and `Upgrade: websocket`.
    pub(crate) wants_websocket: bool,
    pub(crate) websocket_key: Span,
    pub(crate) websocket_version: Span,
}

/// What is known of the fields while they are read.
#[derive(Default)]
struct Reader {
    fields: Fields,
    has_host: bool,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    connection_upgrade: bool,
    upgrade_websocket: bool,
    expects_continue: bool,
}

/// Where the head ends: after the first empty line, from the position `from` on. `None` if it has
/// not arrived.
pub(crate) fn end_of_head(input: &[u8], from: usize) -> Option<usize> {
    let mut at = from.saturating_sub(3);
    while let Some(newline) = input[at..].iter().position(|byte| *byte == b'\n') {
        at += newline + 1;
        match input[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

/// Parses a head that is at the start of `input`; `None` if it has not arrived completely.
///
/// # Errors
///
/// The status for a head that is malformed, ambiguous, too long, or not served.
pub(crate) fn parse(input: &[u8]) -> Result<Option<(Head, usize)>, Refused> {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(input, &mut fields) {
        Ok(httparse::Status::Complete(length)) if length <= LONGEST_HEAD => length,
        Ok(httparse::Status::Partial) if input.len() <= LONGEST_HEAD => return Ok(None),
        Ok(_) => return Err(too_long(input)),
        // The rest of the line tells whether it is another version.
        Err(httparse::Error::Version) if !input.contains(&b'\n') => return Ok(None),
        Err(error) => return Err(refusal(error, input)),
    };
    let head = &input[..length];
    let (Some(method), Some(target)) = (request.method, request.path) else { return Err(BAD) };
    if has_bare_newline(head) {
        return Err(BAD);
    }
    if target.len() > LONGEST_TARGET {
        return Err(Refused(414));
    }
    let is_old = request.version == Some(0);
    let method = method_of(method)?;
    let mut reader = Reader::default();
    for field in request.headers.iter() {
        reader.field(field.name, field.value, head)?;
    }
    let target = Span::of(target.as_bytes(), head);
    Ok(Some((reader.finish(method, target, is_old)?, length)))
}

/// The status for a head that has not ended within its limit.
pub(crate) fn too_long(input: &[u8]) -> Refused {
    let first_line = input.iter().take(LONGEST_TARGET).position(|byte| *byte == b'\n');
    Refused(if first_line.is_none() { 414 } else { 431 })
}

fn refusal(error: httparse::Error, input: &[u8]) -> Refused {
    match error {
        httparse::Error::TooManyHeaders => Refused(431),
        httparse::Error::Version if is_other_version(input) => Refused(505),
        _ => BAD,
    }
}

/// Whether the request line is well formed, but for a version of HTTP other than 1.0 and 1.1.
fn is_other_version(input: &[u8]) -> bool {
    let line = input.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line.strip_suffix(b"\r").unwrap_or(line).split(|byte| *byte == b' ').skip(2);
    let (version, rest) = (words.next().unwrap_or_default(), words.next());
    matches!(version, [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'])
        && !matches!(version, b"HTTP/1.0" | b"HTTP/1.1")
        && rest.is_none()
}

/// A line that ends in `\n` alone is a line for some servers only.
fn has_bare_newline(head: &[u8]) -> bool {
    let mut before = 0;
    head.iter().any(|byte| std::mem::replace(&mut before, *byte) != b'\r' && *byte == b'\n')
}

fn method_of(name: &str) -> Result<Method, Refused> {
    Ok(match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "PUT" => Method::Put,
        "OPTIONS" => Method::Options,
        "POST" | "DELETE" | "PATCH" | "TRACE" | "CONNECT" => Method::Other,
        _ => return Err(Refused(501)),
    })
}

impl Reader {
    /// Reads one field. The comparison begins with the length of the name, which tells most apart.
    fn field(&mut self, name: &str, value: &[u8], head: &[u8]) -> Result<(), Refused> {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        match name.len() {
            4 if is("host") => {
                if self.has_host || !is_host(value) {
                    return Err(BAD);
                }
                self.has_host = true;
            }
            5 if is("range") => once(&mut self.fields.range, value, head),
            6 if is("expect") => match value.eq_ignore_ascii_case(b"100-continue") {
                true => self.expects_continue = true,
                false => return Err(Refused(417)),
            },
            7 if is("upgrade") => self.upgrade_websocket |= lists(value, "websocket"),
            8 if is("if-match") => once(&mut self.fields.if_match, value, head),
            8 if is("if-range") => once(&mut self.fields.if_range, value, head),
            10 if is("connection") => {
                self.close |= lists(value, "close");
                self.keep_alive |= lists(value, "keep-alive");
                self.connection_upgrade |= lists(value, "upgrade");
            }
            13 if is("if-none-match") => once(&mut self.fields.if_none_match, value, head),
            13 if is("content-range") => once(&mut self.fields.content_range, value, head),
            14 if is("content-length") => {
                if self.length.is_some() {
                    return Err(BAD);
                }
                self.length = Some(digits(value).ok_or(BAD)?);
            }
            17 if is("transfer-encoding") => self.transfer_encoding(value)?,
            17 if is("if-modified-since") => once(&mut self.fields.if_modified_since, value, head),
            17 if is("sec-websocket-key") => once(&mut self.fields.websocket_key, value, head),
            19 if is("if-unmodified-since") => {
                once(&mut self.fields.if_unmodified_since, value, head)
            }
            21 if is("sec-websocket-version") => {
                once(&mut self.fields.websocket_version, value, head)
            }
            _ => {}
        }
        Ok(())
    }

    /// `chunked`, once and last, is the only coding that is understood here.
    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refused> {
        if self.chunked {
            return Err(BAD);
        }
        let last = value.rsplit(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
        if value.eq_ignore_ascii_case(b"chunked") {
            self.chunked = true;
            return Ok(());
        }
        let codings = value.split(|byte| *byte == b',');
        let chunked = codings.filter(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked"));
        match (chunked.count(), last.eq_ignore_ascii_case(b"chunked")) {
            (0, _) | (1, true) => Err(Refused(501)),
            _ => Err(BAD),
        }
    }

    fn finish(self, method: Method, target: Span, is_old: bool) -> Result<Head, Refused> {
        if !self.has_host && !is_old {
            return Err(BAD);
        }
        let body = match (self.length, self.chunked) {
            // A server before this one could take the other of the two, or not know the coding.
            (Some(_), true) => return Err(BAD),
            (None, true) if is_old => return Err(BAD),
            (None, true) => Body::Chunked,
            (Some(0) | None, false) => Body::None,
            (Some(length), false) => Body::Length(length),
        };
        if method == Method::Put && self.length.is_none() && !self.chunked {
            return Err(Refused(411));
        }
        let mut fields = self.fields;
        fields.wants_websocket = self.connection_upgrade && self.upgrade_websocket && !is_old;
        Ok(Head {
            method,
            target,
            body,
            is_old,
            keep_alive: !self.close && (!is_old || self.keep_alive),
            expects_continue: self.expects_continue && !is_old && body != Body::None,
            fields,
        })
    }
}

/// Keeps the first value of a field; a second one makes it as good as missing.
fn once(span: &mut Span, value: &[u8], head: &[u8]) {
    *span = match *span == Span::default() {
        true => Span::of(value, head),
        false => Span { start: 1, end: 1 },
    };
}

/// A host and a port, if anything.
fn is_host(value: &[u8]) -> bool {
    value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=:[]%".contains(byte))
}

/// A number in decimal digits and nothing else.
pub(crate) fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: &str) -> Result<Head, u16> {
        match parse(head.as_bytes()) {
            Ok(Some((parsed, length))) if length == head.len() => Ok(parsed),
            Ok(_) => panic!("{head:?} is not one whole head"),
            Err(Refused(status)) => Err(status),
        }
    }

    /// A head with these lines after the request line and the host.
    fn with(lines: &str) -> Result<Head, u16> {
        status(&format!("PUT /a HTTP/1.1\r\nHost: x\r\n{lines}\r\n"))
    }

    #[test]
    fn a_head_is_parsed_into_ranges_of_its_bytes() {
        let head = b"GET /a%20b HTTP/1.1\r\nhOST: x:80\r\nRange:\t bytes=0-1 \r\n\r\nrest";
        let (parsed, length) = parse(head).unwrap().unwrap();
        assert_eq!(&head[length..], b"rest");
        assert_eq!(parsed.target.of_head(head), Some(&b"/a%20b"[..]));
        assert_eq!(parsed.fields.range.of_head(head), Some(&b"bytes=0-1"[..]));
        assert_eq!(parsed.fields.if_match.of_head(head), None);
        assert_eq!((parsed.method, parsed.body), (Method::Get, Body::None));
        assert!(parsed.keep_alive && !parsed.is_old);
    }

    #[test]
    fn a_head_that_has_not_arrived_completely_is_none() {
        let head = b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n";
        for end in 0..head.len() {
            assert!(parse(&head[..end]).unwrap().is_none(), "{end}");
            assert_eq!(end_of_head(&head[..end], 0), None);
        }
        assert!((0..16).all(|end| matches!(parse(&b"GET / HTTP/2.0\r"[..end]), Ok(None))));
        for from in 0..=head.len() {
            assert_eq!(end_of_head(head, from), Some(head.len()));
        }
        assert_eq!(end_of_head(b"GET / HTTP/1.1\n\nrest", 0), Some(16));
    }

    #[test]
    fn whether_the_connection_persists_is_read_from_version_and_field() {
        let cases = [
            ("1.1", "", true),
            ("1.1", "Connection: foo, Close\r\n", false),
            ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
        ];
        for (version, line, keeps) in cases {
            let head = status(&format!("GET / HTTP/{version}\r\nHost: x\r\n{line}\r\n")).unwrap();
            assert_eq!(head.keep_alive, keeps, "{version} {line}");
        }
    }

    #[test]
    fn the_length_of_the_body_is_clear_or_the_head_is_refused() {
        assert_eq!(with("Content-Length: 5\r\n").unwrap().body, Body::Length(5));
        assert_eq!(with("Content-Length: 0\r\n").unwrap().body, Body::None);
        assert_eq!(with("Transfer-Encoding: Chunked\r\n").unwrap().body, Body::Chunked);
        let refused = [
            ("", 411),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
            ("Content-Length: 5, 5\r\n", 400),
            ("Content-Length: +5\r\n", 400),
            ("Content-Length: 0x5\r\n", 400),
            ("Content-Length: \r\n", 400),
            ("Content-Length: 99999999999999999999\r\n", 400),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: chunked, chunked\r\n", 400),
            ("Transfer-Encoding: chunked, gzip\r\n", 400),
            ("Transfer-Encoding: gzip, chunked\r\n", 501),
            ("Transfer-Encoding: xchunked\r\n", 501),
            ("Transfer-Encoding: \x0bchunked\r\n", 400),
        ];
        for (lines, refusal) in refused {
            assert_eq!(with(lines).err(), Some(refusal), "{lines:?}");
        }
        let old = "PUT /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(status(old).err(), Some(400));
    }
}
