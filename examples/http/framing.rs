//! The framing of a connection: the head of a request, then its body in pieces, then the next
//! request, or the frames of a WebSocket. It keeps what it has parsed for the handler.

use socketserver::{Decoded, Framing, FramingError, Output};

use super::request::{self, Body, Head, LONGEST_HEAD, Refused};
use super::websocket::{self, Frames};

/// The longest line with the size of a chunk, and the longest trailer section, in bytes.
const LONGEST_CHUNK_LINE: usize = 1024;
const LONGEST_TRAILER: usize = 8 * 1024;

/// How many bytes of a chunked body may be neither data nor sizes: extensions of chunks.
const MOST_EXTENSIONS: usize = 16 * 1024;

/// What the message that is being delivered is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The head of a request; see [`Protocol::head`].
    Head,
    /// A piece of the body of the request. More follows.
    Piece,
    /// The last piece of the body, which may be empty.
    LastPiece,
    /// A frame of the WebSocket; see [`Protocol::frames`].
    Frame,
}

/// What is expected next.
enum State {
    /// A head, which does not end before this position.
    Head {
        scanned: usize,
    },
    /// This many bytes of a body.
    Body(u64),
    ChunkSize,
    /// This many bytes of a chunk.
    Chunk(u64),
    ChunkEnd,
    Trailer,
    WebSocket(Frames),
}

/// The framing of HTTP/1.1, and of the WebSocket that a connection can become.
pub(crate) struct Protocol {
    state: State,
    part: Part,
    head: Option<Head>,
    extensions: usize,
    decoded: Progress,
}

/// How much of the input has been decoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    pub(crate) requests: u64,
    /// The bytes of heads and bodies.
    pub(crate) bytes: u64,
}

impl Protocol {
    pub(crate) fn new() -> Self {
        let state = State::Head { scanned: 0 };
        let decoded = Progress { requests: 0, bytes: 0 };
        Protocol { state, part: Part::Head, head: None, extensions: 0, decoded }
    }

    pub(crate) fn part(&self) -> Part {
        self.part
    }

    /// The head that was delivered last.
    pub(crate) fn head(&self) -> Option<Head> {
        self.head
    }

    /// The connection is a WebSocket from the next byte on.
    pub(crate) fn upgrade(&mut self) {
        self.state = State::WebSocket(Frames::default());
    }

    /// The frames of the WebSocket, if it is one.
    pub(crate) fn frames(&mut self) -> Option<&mut Frames> {
        match &mut self.state {
            State::WebSocket(frames) => Some(frames),
            _ => None,
        }
    }

    /// What has been decoded, if a request is incomplete: its head, or its body.
    pub(crate) fn progress(&self) -> Option<Progress> {
        match self.state {
            State::Head { scanned: 0 } | State::WebSocket(_) => None,
            _ => Some(self.decoded),
        }
    }

    fn decode_head(&mut self, input: &[u8], scanned: usize) -> Result<Decoded, Refused> {
        // An empty line before a request is ignored (RFC 9112, section 2.2).
        if let [b'\r', b'\n', ..] = input {
            self.state = State::Head { scanned: 0 };
            return Ok(Decoded::Skip(2));
        }
        // A head that comes in many pieces is not parsed with each of them.
        let is_whole = scanned == 0 || request::end_of_head(input, scanned).is_some();
        let parsed = if is_whole { request::parse(input)? } else { None };
        let Some((head, length)) = parsed else {
            if input.len() > LONGEST_HEAD {
                return Err(request::too_long(input));
            }
            self.state = State::Head { scanned: input.len() };
            return Ok(Decoded::Incomplete);
        };
        self.state = match head.body {
            Body::None => State::Head { scanned: 0 },
            Body::Length(length) => State::Body(length),
            Body::Chunked => State::ChunkSize,
        };
        self.extensions = 0;
        self.head = Some(head);
        Ok(self.deliver(Part::Head, length))
    }

    /// A piece of the body, or of a chunk, of which `left` bytes are still to come.
    fn decode_data(&mut self, input: &[u8], left: u64) -> Decoded {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let left = left - count as u64;
        let is_chunk = matches!(self.state, State::Chunk(_));
        let (state, part) = match (is_chunk, left) {
            (false, 0) => (State::Head { scanned: 0 }, Part::LastPiece),
            (false, left) => (State::Body(left), Part::Piece),
            (true, 0) => (State::ChunkEnd, Part::Piece),
            (true, left) => (State::Chunk(left), Part::Piece),
        };
        self.state = state;
        self.deliver(part, count)
    }

    fn deliver(&mut self, part: Part, count: usize) -> Decoded {
        self.part = part;
        self.decoded.requests += u64::from(part == Part::Head);
        self.decoded.bytes += count as u64;
        Decoded::Frame { body: 0..count, consumed: count }
    }

    fn decode_chunk_size(&mut self, input: &[u8]) -> Result<Decoded, Refused> {
        let line = &input[..input.len().min(LONGEST_CHUNK_LINE)];
        let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
            return if line.len() < LONGEST_CHUNK_LINE {
                Ok(Decoded::Incomplete)
            } else {
                Err(BAD)
            };
        };
        let (size, extensions) = chunk_size(&line[..end]).ok_or(BAD)?;
        self.extensions += extensions;
        if self.extensions > MOST_EXTENSIONS {
            return Err(Refused(413));
        }
        self.state = if size == 0 { State::Trailer } else { State::Chunk(size) };
        Ok(Decoded::Skip(end + 1))
    }

    /// The fields after the last chunk are checked, and dropped.
    fn decode_trailer(&mut self, input: &[u8]) -> Result<Decoded, Refused> {
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let length = match httparse::parse_headers(input, &mut fields) {
            Ok(httparse::Status::Complete((length, _))) if length <= LONGEST_TRAILER => length,
            Ok(httparse::Status::Partial) if input.len() < LONGEST_TRAILER => {
                return Ok(Decoded::Incomplete);
            }
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Refused(431)),
            Err(_) => return Err(BAD),
        };
        if !input[..length].ends_with(b"\r\n") {
            return Err(BAD);
        }
        self.state = State::Head { scanned: 0 };
        let mut last = self.deliver(Part::LastPiece, length);
        if let Decoded::Frame { body, .. } = &mut last {
            *body = 0..0;
        }
        Ok(last)
    }
}

const BAD: Refused = Refused(400);

/// The size in a line such as `1F;name=value\r`, and how many bytes its extensions have.
fn chunk_size(line: &[u8]) -> Option<(u64, usize)> {
    let line = line.strip_suffix(b"\r")?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, extensions) = line.split_at(digits);
    // Space may only precede an extension; a bare CR is refused wherever it is.
    let is_extension = matches!(extensions.trim_ascii_start(), [b';', ..]);
    let has_controls = extensions.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t');
    if digits.len() > 16 || has_controls || !(extensions.is_empty() || is_extension) {
        return None;
    }
    let size = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    Some((size, extensions.len()))
}

impl Framing for Protocol {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        let decoded = match &mut self.state {
            State::Head { scanned } => {
                let scanned = *scanned;
                self.decode_head(input, scanned)
            }
            State::Body(left) | State::Chunk(left) => {
                let left = *left;
                return Ok(self.decode_data(input, left));
            }
            State::ChunkSize => self.decode_chunk_size(input),
            State::ChunkEnd => match input {
                [b'\r', b'\n', ..] => {
                    self.state = State::ChunkSize;
                    Ok(Decoded::Skip(2))
                }
                [b'\r'] => Ok(Decoded::Incomplete),
                _ => Err(BAD),
            },
            State::Trailer => self.decode_trailer(input),
            State::WebSocket(frames) => {
                self.part = Part::Frame;
                return frames.decode(input);
            }
        };
        decoded.map_err(|refused| FramingError::Other(refused.into()))
    }

    /// A message that is sent is one of the chat room: answers to requests are put on the output.
    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        websocket::put_text(message, output);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes input that arrives in pieces of this size: the parts, with the bytes of each.
    fn decode(input: &[u8], piece: usize) -> Result<Vec<(Part, Vec<u8>)>, u16> {
        let mut protocol = Protocol::new();
        let (mut parts, mut begin, mut end) = (Vec::<(Part, Vec<u8>)>::new(), 0, 0);
        while end < input.len() {
            end = (end + piece).min(input.len());
            while begin < end {
                match protocol.decode(&input[begin..end]) {
                    Ok(Decoded::Frame { body, consumed }) => {
                        let bytes = &input[begin..][body];
                        begin += consumed;
                        match (protocol.part(), parts.last_mut()) {
                            // The pieces of a body are joined, so that the result depends on no size.
                            (part, Some((last @ Part::Piece, joined))) => {
                                *last = part;
                                joined.extend_from_slice(bytes);
                            }
                            (part, _) => parts.push((part, bytes.to_vec())),
                        }
                    }
                    Ok(Decoded::Skip(count)) => begin += count,
                    Ok(_) => break,
                    Err(FramingError::Other(error)) => {
                        return Err(error.downcast_ref::<Refused>().unwrap().0);
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
        Ok(parts)
    }

    const CHUNKED: &str = "PUT /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";

    #[test]
    fn requests_in_a_row_are_decoded_however_they_arrive() {
        let first = "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n";
        let third = "GET /c HTTP/1.1\r\nHost: x\r\n\r\n";
        let chunks = "3\r\nabc\r\n0A ; name=\"value\"\r\n0123456789\r\n000\r\nA: b\r\n\r\n";
        let input = ["\r\n", first, "12345", CHUNKED, chunks, third].concat();
        let expected = [
            (Part::Head, first),
            (Part::LastPiece, "12345"),
            (Part::Head, CHUNKED),
            (Part::LastPiece, "abc0123456789"),
            (Part::Head, third),
        ];
        let expected = expected.map(|(part, bytes)| (part, bytes.as_bytes().to_vec()));
        for piece in 1..input.len() {
            assert_eq!(decode(input.as_bytes(), piece).unwrap(), expected, "{piece}");
        }
    }

    #[test]
    fn a_chunk_that_another_server_could_read_differently_is_refused() {
        let bad = [
            "5\nabcde\r\n0\r\n\r\n",
            "5\r\nabcde\n0\r\n\r\n",
            "5\r\nabcdefg\r\n0\r\n\r\n",
            "5 \r\nabcde\r\n0\r\n\r\n",
            "5\rx\r\nabcde\r\n0\r\n\r\n",
            "5;a\rb\r\nabcde\r\n0\r\n\r\n",
            "0x5\r\nabcde\r\n0\r\n\r\n",
            "-5\r\nabcde\r\n0\r\n\r\n",
            "+5\r\nabcde\r\n0\r\n\r\n",
            "\r\nabcde\r\n0\r\n\r\n",
            "00000000000000005\r\nabcde\r\n0\r\n\r\n",
            "0\r\nA : b\r\n\r\n",
            "0\r\nGET / HTTP/1.1\r\n\r\n",
        ];
        for body in bad {
            let input = [CHUNKED, body].concat();
            for piece in [1, input.len()] {
                assert_eq!(decode(input.as_bytes(), piece), Err(400), "{body:?}");
            }
        }
    }

    #[test]
    fn what_a_client_can_make_longer_without_end_is_refused() {
        let line = "x".repeat(20_000);
        let extensions = format!("1;{}\r\nx\r\n", "y".repeat(900)).repeat(20);
        let cases = [
            (format!("GET /{line}"), 414),
            (format!("GET /{} HTTP/1.1\r\n\r\n", &line[..8000]), 414),
            (format!("GET / HTTP/1.1\r\nHost: x\r\nA: {line}"), 431),
            (format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100)), 431),
            (format!("{CHUNKED}1;{line}"), 400),
            (format!("{CHUNKED}0\r\nA: {line}"), 431),
            (format!("{CHUNKED}0\r\nA: {}\r\n\r\n", &line[..9000]), 431),
            (format!("{CHUNKED}{extensions}"), 413),
        ];
        for (input, status) in cases {
            for piece in [100, input.len()] {
                let shown = &input[..30];
                assert_eq!(decode(input.as_bytes(), piece), Err(status), "{shown:?} {piece}");
            }
        }
    }
}
