//! Members with WebSocket: the handshake, which is one HTTP request, and then the messages.

use std::sync::Arc;
use std::time::Duration;

use socketserver::{
    CloseReason, Context, Decoded, Framing, FramingError, Handler, HandlerResult, Output,
};

use super::room::{self, Room, WebMember};
use super::websocket::{self, Frames};

/// The longest head of a handshake, in bytes.
const LONGEST_HEAD: usize = 8 * 1024;

/// How long a client may take for the handshake, and how long a member may be silent until it is
/// asked for a sign of life.
const PATIENCE: Duration = Duration::from_secs(20);

/// The framing of a WebSocket connection: the head of the handshake, then frames.
pub(crate) enum Opening {
    /// No head has been decoded. Its end is not before the position.
    Waiting {
        scanned: usize,
    },
    /// The value of `Sec-WebSocket-Accept`; `None` if the head is no handshake.
    Decoded(Option<String>),
    Open(Frames),
}

impl Opening {
    pub(crate) fn new() -> Self {
        Opening::Waiting { scanned: 0 }
    }
}

impl Framing for Opening {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        let scanned = match self {
            Opening::Waiting { scanned } => scanned,
            Opening::Decoded(_) => return Ok(Decoded::Skip(input.len())),
            Opening::Open(frames) => return frames.decode(input),
        };
        let from = scanned.saturating_sub(3);
        let Some(end) = input[from..].windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            *scanned = input.len();
            return match input.len() > LONGEST_HEAD {
                true => Err(FramingError::TooLong { limit: LONGEST_HEAD }),
                false => Ok(Decoded::Incomplete),
            };
        };
        let consumed = from + end + 4;
        if consumed > LONGEST_HEAD {
            return Err(FramingError::TooLong { limit: LONGEST_HEAD });
        }
        *self = Opening::Decoded(accept_key(&input[..consumed]));
        Ok(Decoded::Frame { body: 0..consumed, consumed })
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        websocket::put_text(message, output);
        Ok(())
    }
}

/// Checks a handshake (RFC 6455, section 4.2.1).
fn accept_key(head: &[u8]) -> Option<String> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    request.parse(head).ok()?;
    let field = |name: &str| {
        let field = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        field.map_or(&b""[..], |field| field.value)
    };
    let is_handshake = request.method == Some("GET")
        && request.version == Some(1)
        && websocket::lists(field("connection"), "upgrade")
        && websocket::lists(field("upgrade"), "websocket")
        && field("sec-websocket-version") == b"13";
    is_handshake.then(|| websocket::accept_key(field("sec-websocket-key")))?
}

/// The handler of a WebSocket connection.
pub(crate) struct WebClient {
    room: Arc<Room>,
    /// `None` until the handshake is complete.
    member: Option<WebMember>,
}

impl WebClient {
    pub(crate) fn new(room: Arc<Room>) -> Self {
        WebClient { room, member: None }
    }
}

impl Handler for WebClient {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.set_timer(cx.now() + PATIENCE)?;
        Ok(cx.set_idle_timeout(PATIENCE)?)
    }

    fn on_message(&mut self, _head: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let Some(framing) = cx.framing::<Opening>() else { return Ok(()) };
        match framing {
            Opening::Waiting { .. } => {}
            Opening::Open(frames) => {
                let frame = frames.take();
                if let Some(member) = &mut self.member {
                    member.on_frame(frame, cx);
                }
            }
            Opening::Decoded(Some(key)) => {
                let answer = websocket::switching_protocols(key);
                *framing = Opening::Open(Frames::default());
                cx.output().put(answer.as_bytes());
                cx.set_timer(None)?;
                self.member = Some(WebMember::new(self.room.join(cx)?));
            }
            Opening::Decoded(None) => {
                cx.output().put(
                    b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Version: 13\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                );
                cx.close();
            }
        }
        Ok(())
    }

    /// The time for the handshake is over.
    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.close();
        Ok(())
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        match &mut self.member {
            Some(member) => member.on_idle_timeout(cx),
            None => cx.close(),
        }
        Ok(())
    }

    fn on_reject(&mut self, reason: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
        room::reject(reason, cx)
    }

    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if self.member.is_some() {
            room::end(Some(1001), cx); // the server goes away
        }
        Ok(())
    }

    fn on_close(&mut self, _reason: &CloseReason) {
        self.member = None;
    }
}
