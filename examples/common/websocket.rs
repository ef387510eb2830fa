//! WebSocket (RFC 6455), the server's side, without input and output: the key that accepts a
//! handshake, and a framing that reads the frames of a client and writes text frames.

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use sha1::{Digest as _, Sha1};
use socketserver::{Decoded, Framing, FramingError, Output};

/// The longest message of a client, in bytes, all fragments together.
pub(crate) const LONGEST_MESSAGE: usize = 64 * 1024;

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The value of `Sec-WebSocket-Accept` for the key of a client: `None` unless the key is 16 bytes in
/// base 64.
pub(crate) fn accept_key(key: &[u8]) -> Option<String> {
    if BASE64_STANDARD.decode(key).ok()?.len() != 16 {
        return None;
    }
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    Some(BASE64_STANDARD.encode(hash.finalize()))
}

/// The answer to a handshake with this key.
pub(crate) fn switching_protocols(accept_key: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept_key}\r\n\r\n"
    )
}

/// Whether a field that is a list of names, such as `Connection`, contains this name.
pub(crate) fn lists(field: &[u8], name: &str) -> bool {
    let mut items = field.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    items.any(|item| item.eq_ignore_ascii_case(name.as_bytes()))
}

/// What a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Text(String),
    Binary,
    Ping(Vec<u8>),
    Pong,
    /// The client closes, with this code if it gives one.
    Close(Option<u16>),
}

/// Why the connection must be closed, with the code for the close frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) u16, pub(crate) &'static str);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.1, self.0)
    }
}

impl std::error::Error for Violation {}

/// Puts one frame of a server, which is whole and not masked.
fn put_frame(opcode: u8, payload: &[u8], output: &mut Output<'_>) {
    const FINAL: u8 = 0x80;
    match payload.len() {
        short @ 0..=125 => output.put(&[FINAL | opcode, short as u8]),
        length @ 126..=0xFFFF => {
            output.put(&[FINAL | opcode, 126]);
            output.put(&(length as u16).to_be_bytes());
        }
        length => {
            output.put(&[FINAL | opcode, 127]);
            output.put(&(length as u64).to_be_bytes());
        }
    }
    output.put(payload);
}

/// Puts a message of text.
pub(crate) fn put_text(message: &[u8], output: &mut Output<'_>) {
    put_frame(TEXT, message, output);
}

/// Asks the client for a sign of life.
pub(crate) fn put_ping(output: &mut Output<'_>) {
    put_frame(PING, b"", output);
}

/// Answers a ping.
pub(crate) fn put_pong(payload: &[u8], output: &mut Output<'_>) {
    put_frame(PONG, payload, output);
}

/// Says that this side closes; without a code, if the client gave none.
pub(crate) fn put_close(code: Option<u16>, output: &mut Output<'_>) {
    match code {
        Some(code) => put_frame(CLOSE, &code.to_be_bytes(), output),
        None => put_frame(CLOSE, b"", output),
    }
}

/// The framing of a connection after the handshake. A message that is sent becomes a text frame; one
/// that is received is in [`take`](Frames::take).
#[derive(Default)]
pub(crate) struct Frames {
    /// The message of which not all fragments have arrived, with the opcode of its first.
    fragments: Option<(u8, Vec<u8>)>,
    frame: Option<Frame>,
}

/// The first bytes of a frame.
struct Header {
    is_final: bool,
    opcode: u8,
    mask: [u8; 4],
    /// Where the payload begins, and its length.
    start: usize,
    length: usize,
}

impl Frames {
    /// The message that the framing has decoded last, or `None` for a fragment in the middle of one.
    pub(crate) fn take(&mut self) -> Option<Frame> {
        self.frame.take()
    }

    /// Joins the fragments of a message; control frames may come between them.
    fn accept(&mut self, header: &Header, payload: Vec<u8>) -> Result<Option<Frame>, Violation> {
        if header.opcode >= CLOSE {
            return control(header.opcode, payload).map(Some);
        }
        let (opcode, message) = match (self.fragments.take(), header.opcode) {
            (None, 0) => return Err(Violation(1002, "a continuation of nothing")),
            (None, opcode) => (opcode, payload),
            (Some((opcode, mut begun)), 0) => {
                begun.extend_from_slice(&payload);
                (opcode, begun)
            }
            (Some(_), _) => return Err(Violation(1002, "a message within a message")),
        };
        if message.len() > LONGEST_MESSAGE {
            return Err(TOO_LONG);
        }
        if !header.is_final {
            self.fragments = Some((opcode, message));
            return Ok(None);
        }
        if opcode != TEXT {
            return Ok(Some(Frame::Binary));
        }
        let text = String::from_utf8(message).map_err(|_| NOT_UTF8)?;
        Ok(Some(Frame::Text(text)))
    }
}

const TOO_LONG: Violation = Violation(1009, "the message is too long");
const NOT_UTF8: Violation = Violation(1007, "the text is not UTF-8");

impl Header {
    /// Reads the first bytes of a frame; `None` if not all of them are there.
    fn read(input: &[u8]) -> Result<Option<Self>, Violation> {
        let [first, second, ..] = *input else { return Ok(None) };
        let (is_final, opcode, length) = (first & 0x80 != 0, first & 0x0F, second & 0x7F);
        if first & 0x70 != 0 {
            return Err(Violation(1002, "a reserved bit is set"));
        }
        if !matches!(opcode, 0..=2 | CLOSE..=PONG) {
            return Err(Violation(1002, "an unknown opcode"));
        }
        if second & 0x80 == 0 {
            return Err(Violation(1002, "a client masks its frames"));
        }
        if opcode >= CLOSE && (!is_final || length > 125) {
            return Err(Violation(1002, "a control frame is whole and short"));
        }
        let wide = match length {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some(rest) = input.get(2..2 + wide + 4) else { return Ok(None) };
        let (number, mask) = rest.split_at(wide);
        let length = match wide {
            0 => u64::from(length),
            _ => number.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        if (wide == 2 && length < 126) || (wide == 8 && length <= 0xFFFF) || length >> 63 == 1 {
            return Err(Violation(1002, "the length is not in its shortest form"));
        }
        if length > LONGEST_MESSAGE as u64 {
            return Err(TOO_LONG);
        }
        let mask = [mask[0], mask[1], mask[2], mask[3]];
        Ok(Some(Header { is_final, opcode, mask, start: 2 + wide + 4, length: length as usize }))
    }
}

fn control(opcode: u8, payload: Vec<u8>) -> Result<Frame, Violation> {
    match (opcode, payload.as_slice()) {
        (PING, _) => Ok(Frame::Ping(payload)),
        (PONG, _) => Ok(Frame::Pong),
        (_, []) => Ok(Frame::Close(None)),
        (_, [_]) => Err(Violation(1002, "half a close code")),
        (_, [high, low, reason @ ..]) => {
            let code = u16::from_be_bytes([*high, *low]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(Violation(1002, "not a close code"));
            }
            std::str::from_utf8(reason).map_err(|_| NOT_UTF8)?;
            Ok(Frame::Close(Some(code)))
        }
    }
}

impl Framing for Frames {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        let header = match Header::read(input) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(Decoded::Incomplete),
            Err(violation) => return Err(FramingError::Other(violation.into())),
        };
        let end = header.start + header.length;
        let Some(masked) = input.get(header.start..end) else { return Ok(Decoded::Need(end)) };
        let unmasked = masked.iter().zip(header.mask.iter().cycle()).map(|(byte, key)| byte ^ key);
        let frame = self.accept(&header, unmasked.collect());
        self.frame = frame.map_err(|violation| FramingError::Other(violation.into()))?;
        Ok(Decoded::Frame { body: 0..0, consumed: end })
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        put_text(message, output);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of a client, masked.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = match payload.len() {
            short @ 0..=125 => vec![first, 0x80 | short as u8],
            length @ 126..=0xFFFF => [&[first, 0xFE][..], &(length as u16).to_be_bytes()].concat(),
            length => [&[first, 0xFF][..], &(length as u64).to_be_bytes()].concat(),
        };
        let mask = [0x37, 0xFA, 0x21, 0x3D];
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }

    /// Decodes all frames, from input that arrives in pieces of this size.
    fn decode(input: &[u8], piece: usize) -> Result<Vec<Frame>, u16> {
        let (mut frames, mut decoded, mut begin, mut end) = (Frames::default(), Vec::new(), 0, 0);
        while begin < input.len() {
            end = (end + piece).min(input.len());
            while begin < end {
                match frames.decode(&input[begin..end]) {
                    Ok(Decoded::Frame { consumed, .. }) => {
                        begin += consumed;
                        decoded.extend(frames.take());
                    }
                    Ok(_) if end == input.len() => return Ok(decoded),
                    Ok(_) => break,
                    Err(FramingError::Other(error)) => {
                        return Err(error.downcast_ref::<Violation>().unwrap().0);
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
        Ok(decoded)
    }

    #[test]
    fn the_key_of_the_rfc_is_accepted_as_in_the_rfc() {
        let accepted = accept_key(b"dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accepted.as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(accept_key(b"dGhl"), None);
        assert_eq!(accept_key(b"not base 64"), None);
    }

    #[test]
    fn the_masked_hello_of_the_rfc_is_read() {
        let hello = [0x81, 0x85, 0x37, 0xFA, 0x21, 0x3D, 0x7F, 0x9F, 0x4D, 0x51, 0x58];
        assert_eq!(decode(&hello, 11), Ok(vec![Frame::Text("Hello".into())]));
    }

    #[test]
    fn fragments_are_joined_and_control_frames_come_between_them() {
        let input = [
            masked(0x01, "大".as_bytes()),
            masked(0x89, b"sign of life"),
            masked(0x00, &"家".as_bytes()[..1]),
            masked(0x80, &"家".as_bytes()[1..]),
            masked(0x82, &[0xFF; 300]),
            masked(0x81, &[b'x'; LONGEST_MESSAGE]),
            masked(0x8A, b""),
            masked(0x88, &[&1000_u16.to_be_bytes()[..], b"bye"].concat()),
        ];
        let expected = [
            Frame::Ping(b"sign of life".to_vec()),
            Frame::Text("大家".into()),
            Frame::Binary,
            Frame::Text("x".repeat(LONGEST_MESSAGE)),
            Frame::Pong,
            Frame::Close(Some(1000)),
        ];
        for piece in [1, 2, 7, 100_000] {
            assert_eq!(decode(&input.concat(), piece).unwrap(), expected, "{piece}");
        }
    }

    #[test]
    fn a_violation_has_the_close_code_of_the_rfc() {
        let long = masked(0x01, &[b'x'; LONGEST_MESSAGE]);
        let cases: [(Vec<u8>, u16); 15] = [
            (vec![0x81, 0x05], 1002),   // not masked
            (masked(0xC1, b"x"), 1002), // a reserved bit
            (masked(0x83, b"x"), 1002), // an unknown opcode
            (masked(0x8B, b""), 1002),  // the same, of a control frame
            (masked(0x80, b"x"), 1002), // a continuation of nothing
            ([masked(0x01, b"x"), masked(0x81, b"y")].concat(), 1002),
            (masked(0x09, b""), 1002),       // a ping in fragments
            (masked(0x89, &[0; 126]), 1002), // a long ping
            (masked(0x88, &[3]), 1002),      // half a code
            (masked(0x88, &1005_u16.to_be_bytes()), 1002), // a code that is never sent
            (masked(0x88, &[0x03, 0xE8, 0xFF]), 1007), // a reason that is not UTF-8
            (masked(0x81, &[0xC3]), 1007),   // text that is not UTF-8
            (vec![0x81, 0xFE, 0, 5, 0, 0, 0, 0], 1002), // a length that is too wide
            (vec![0x81, 0xFF, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0], 1009),
            ([long, masked(0x80, b"x")].concat(), 1009), // too long with all fragments
        ];
        for (input, code) in cases {
            let shown = &input[..input.len().min(16)];
            assert_eq!(decode(&input, input.len()), Err(code), "{shown:?}");
        }
    }
}
