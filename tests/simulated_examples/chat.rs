//! The example `chat`: members that send lines, and members with WebSocket.

use std::sync::Arc;
use std::time::Duration;

use socketserver::testing::{Client, Simulation};
use socketserver::{Limits, ListenerId, Mode, Server};

use super::examples::chat::{Room, lines, websockets};
use super::input::Draw;
use super::target::{TCP, Target, settle};

/// Who watches the room as `guest1`, and what it has seen.
#[derive(Default)]
pub(crate) struct Watcher {
    client: Option<Client>,
    seen: Vec<u8>,
}

impl Watcher {
    fn record(&mut self) -> String {
        self.seen.extend(self.client.iter().flat_map(Client::read));
        let text = std::str::from_utf8(&self.seen).expect("members get text");
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?} has controls");
        text.to_owned()
    }
}

pub(crate) fn server(mode: Mode, limits: Limits) -> Server {
    let (mut server, room) = (Server::new().unwrap(), Arc::<Room>::default());
    let builder =
        || Server::endpoint(&TCP.parse().unwrap()).unwrap().mode(mode).limits(limits.clone());
    server.add(lines(builder(), &room).unwrap()).unwrap();
    server.add(websockets(builder(), &room).unwrap()).unwrap();
    server
}

/// The listener of members with WebSocket.
pub(crate) fn websocket_listener(server: &Server) -> ListenerId {
    server.listeners()[1]
}

/// Lines are the input.
pub(crate) struct Chat(Watcher);

impl Target for Chat {
    /// A line must be complete within 30 seconds, and 1 second more for each 500 bytes.
    const SILENCE: Duration = Duration::from_secs(120);

    fn new(mode: Mode) -> (Self, Server) {
        (Chat(Watcher::default()), server(mode, Limits::default()))
    }

    fn begin(&mut self, sim: &mut Simulation<'_>) {
        self.0.client = Some(sim.connect());
    }

    fn message(draw: Draw<'_>) -> Vec<u8> {
        let texts: &[&[u8]] = &[
            b"hello",
            b"",
            b"\xe4\xbd\xa0",
            b"\x1b[2J",
            b"a\0b",
            b"\xf0\x9f",
            b"* guest1: x",
            b"\t",
        ];
        let mut line = draw.pick(texts).repeat([1, 1, 7, 3000][draw.below(4)]);
        line.extend_from_slice(draw.pick(&[&b"\n"[..], b"\r\n", b"\r", b""]));
        line
    }

    fn known(draw: Draw<'_>) -> (Vec<u8>, String) {
        let mut input = Vec::new();
        let mut expected = "* you are guest2, and 1 others are here\n\
                            * you are guest1, and 0 others are here\n* guest2 joins\n"
            .to_owned();
        for _ in 0..draw.below(6) {
            let (line, shown) = draw.pick(&[
                (&b"hello\n"[..], "hello"),
                (b"hello \t\r\n", "hello"),
                (b"\n", ""),
                (b"\xff\n", "\u{fffd}"),
                (b"\x1b[2J\rx\0y\n", "\u{fffd}[2J\u{fffd}x\u{fffd}y"),
            ]);
            input.extend_from_slice(line);
            expected += &format!("guest2: {shown}\n");
        }
        // A line that is too long is dropped; the last one need not end.
        if draw.below(2) == 1 {
            input.extend([&[b'x'; 70_000][..], b"\n"].concat());
        }
        input.extend(b"last");
        expected += "guest2: last\n* guest2 leaves\n";
        (input, expected)
    }

    fn summary(&self, _sent: &[u8], received: &[u8], is_complete: bool) -> String {
        let text = String::from_utf8_lossy(received).into_owned();
        assert!(text.len() < 300, "a member does not get its own lines");
        assert!(!is_complete || text.ends_with('\n'), "{text:?} ends in a line");
        text
    }

    fn record(&mut self) -> String {
        self.0.record()
    }

    fn probe() -> Vec<u8> {
        b"\nprobe\n".to_vec()
    }

    fn serves(&mut self, sim: &mut Simulation<'_>) {
        let client = sim.connect();
        client.send(b"fresh\n");
        settle(self, sim);
        let watches = self.0.client.as_ref().is_some_and(Client::is_open_at_server);
        assert!(!watches || self.record().ends_with(": fresh\n"), "{}", self.record());
        assert!(client.read().starts_with(b"* you are guest"));
        client.close();
    }
}

/// A handshake that is accepted.
pub(crate) const HANDSHAKE: &[u8] = b"GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A frame of a client, with the mask 1 2 3 4. `first` has the final bit and the opcode.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | short as u8),
        length @ 126..65536 => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend([1, 2, 3, 4]);
    frame.extend(payload.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// The frames of the server, each with its opcode in hexadecimal.
pub(crate) fn frames(mut bytes: &[u8], is_complete: bool) -> Vec<String> {
    let mut frames = Vec::new();
    while let [first, second, rest @ ..] = bytes {
        assert_eq!(first & 0x70, 0, "no reserved bit is set");
        assert!(first & 0x80 != 0, "a server sends whole messages");
        assert!(second & 0x80 == 0, "a server does not mask");
        let (length, rest) = match (second, rest) {
            (126, [high, low, rest @ ..]) => (usize::from(*high) << 8 | usize::from(*low), rest),
            (126 | 127, _) => break,
            (short, rest) => (usize::from(*short), rest),
        };
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        let opcode = first & 0x0f;
        assert!(opcode != 1 || std::str::from_utf8(payload).is_ok(), "text is UTF-8");
        frames.push(format!("{opcode:x} {}", payload.escape_ascii()));
        bytes = rest;
    }
    assert!(bytes.is_empty() || !is_complete, "a cut frame: {}", bytes.escape_ascii());
    frames
}

/// Frames after a handshake are the input.
pub(crate) struct WebSocket {
    watcher: Watcher,
    listener: ListenerId,
}

impl WebSocket {
    /// What a frame that is wrong ends with: a close frame with this code, or none.
    const BROKEN: &'static [(&'static [u8], &'static str)] = &[
        (b"\x81\x01x", "\\x03\\xea"),
        (b"\xc1\x80\x01\x02\x03\x04", "\\x03\\xea"),
        (b"\x83\x80\x01\x02\x03\x04", "\\x03\\xea"),
        (b"\x80\x80\x01\x02\x03\x04", "\\x03\\xea"),
        (b"\x09\x80\x01\x02\x03\x04", "\\x03\\xea"),
        (b"\x89\xfe\x00\x7e\x01\x02\x03\x04", "\\x03\\xea"),
        (b"\x81\xfe\x00\x01\x01\x02\x03\x04x", "\\x03\\xea"),
        (b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02\x03\x04", "\\x03\\xea"),
        (b"\x81\xff\x00\x00\x00\x01\x00\x00\x00\x00\x01\x02\x03\x04", "\\x03\\xf1"),
        (b"\x81\x81\x00\x00\x00\x00\xff", "\\x03\\xef"),
        (b"\x88\x81\x00\x00\x00\x00x", "\\x03\\xea"),
        (b"\x88\x82\x00\x00\x00\x00\x03\xed", "\\x03\\xea"),
        (b"\x88\x83\x00\x00\x00\x00\x03\xe8\xff", "\\x03\\xef"),
        (b"\x82\x80\x00\x00\x00\x00", "\\x03\\xeb"),
        (b"\x88\x82\x00\x00\x00\x00\x03\xe8", "\\x03\\xe8"),
        (b"\x88\x80\x00\x00\x00\x00", ""),
    ];
}

impl Target for WebSocket {
    /// A member that does not answer a ping is disconnected after 40 seconds.
    const SILENCE: Duration = Duration::from_secs(90);

    fn new(mode: Mode) -> (Self, Server) {
        let server = server(mode, Limits::default());
        let listener = websocket_listener(&server);
        (WebSocket { watcher: Watcher::default(), listener }, server)
    }

    fn begin(&mut self, sim: &mut Simulation<'_>) {
        self.watcher.client = Some(sim.connect());
    }

    fn connect(&self, sim: &mut Simulation<'_>) -> Client {
        sim.connect_to(self.listener)
    }

    fn greeting(&self) -> &'static [u8] {
        HANDSHAKE
    }

    fn message(draw: Draw<'_>) -> Vec<u8> {
        let first = match draw.below(4) {
            0 => draw.below(256) as u8,
            _ => draw.pick(&[0x81, 0x01, 0x00, 0x80, 0x89, 0x8a, 0x88, 0x82]),
        };
        let payloads: &[&[u8]] =
            &[b"hello", b"", b"\xe4\xbd", b"\xa0", b"\x03\xe8bye", b"\xff", b"\x0f\xa0", b"\r\n"];
        let payload = draw.pick(payloads).repeat([1, 1, 40, 9000][draw.below(4)]);
        match draw.one_in(12) {
            true => HANDSHAKE.to_vec(),
            false => frame(first, &payload),
        }
    }

    fn known(draw: Draw<'_>) -> (Vec<u8>, String) {
        let (mut input, mut said, mut answers) = (Vec::new(), String::new(), Vec::new());
        for _ in 0..draw.below(6) {
            match draw.below(5) {
                0 => {
                    input.extend(frame(0x81, b"hello"));
                    said += "guest2: hello\n";
                }
                1 => {
                    // A character in two fragments, with a ping between them.
                    input.extend(frame(0x01, b"\xe4\xbd"));
                    input.extend(frame(0x89, b"?"));
                    input.extend(frame(0x80, b"\xa0"));
                    said += "guest2: \u{4f60}\n";
                    answers.push("a ?".to_owned());
                }
                2 => input.extend(frame(0x8a, b"unasked")),
                3 => {
                    let long = "x".repeat(draw.pick(&[125, 126, 65_535, 65_536]));
                    input.extend(frame(0x81, long.as_bytes()));
                    said += &format!("guest2: {long}\n");
                }
                _ => {
                    input.extend(frame(0x89, b""));
                    answers.push("a ".to_owned());
                }
            }
        }
        let (broken, code) = draw.pick(Self::BROKEN);
        input.extend_from_slice(broken);
        answers.push(format!("8 {code}"));
        for _ in 0..draw.below(3) {
            input.extend(frame(0x81, b"not said"));
        }
        let greeting = "1 * you are guest2, and 1 others are here";
        let expected = format!(
            "{greeting}\n{}\n* you are guest1, and 0 others are here\n* guest2 joins\n{said}\
             * guest2 leaves\n",
            answers.join("\n"),
        );
        (input, expected)
    }

    fn summary(&self, sent: &[u8], received: &[u8], is_complete: bool) -> String {
        assert!(received.len() <= 500 + sent.len(), "{} bytes", received.len());
        let end = received.windows(4).position(|four| four == b"\r\n\r\n");
        let Some(end) = end.filter(|_| received.starts_with(b"HTTP/1.1 101 ")) else {
            assert!(!is_complete, "no handshake: {}", received.escape_ascii());
            return String::new();
        };
        let frames = frames(&received[end + 4..], is_complete);
        let close = frames.iter().position(|frame| frame.starts_with("8 "));
        assert!(close.is_none_or(|at| at + 1 == frames.len()), "a frame follows the close frame");
        frames.into_iter().map(|frame| frame + "\n").collect()
    }

    fn record(&mut self) -> String {
        self.watcher.record()
    }

    fn probe() -> Vec<u8> {
        frame(0x89, b"probe")
    }

    fn serves(&mut self, sim: &mut Simulation<'_>) {
        let client = self.connect(sim);
        client.send(&[HANDSHAKE, &frame(0x81, b"fresh"), &frame(0x88, b"")].concat());
        settle(self, sim);
        let answers = self.summary(b"", &client.read(), true);
        assert!(
            answers.starts_with("1 * you are guest") && answers.ends_with("\n8 \n"),
            "{answers}"
        );
        client.close();
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::check;
    use super::*;

    #[test]
    fn malformed_lines_reach_other_members_as_text_and_harm_nobody() {
        check::<Chat>();
    }

    #[test]
    fn malformed_frames_end_in_a_close_frame_and_harm_nobody() {
        check::<WebSocket>();
    }
}
