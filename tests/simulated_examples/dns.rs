//! The example `dns`, over TCP.

use std::sync::Arc;
use std::time::Duration;

use socketserver::testing::Simulation;
use socketserver::{Endpoint, Limits, Mode, Server};

use super::examples::dns::{EXAMPLE_ZONE, Zone, service};
use super::input::Draw;
use super::target::{TCP, Target, settle};

pub(crate) fn server(url: &str, mode: Mode, limits: Limits) -> Server {
    let (mut server, endpoint) = (Server::new().unwrap(), url.parse::<Endpoint>().unwrap());
    let zone = Arc::new(Zone::parse(EXAMPLE_ZONE, ".").unwrap());
    server.add(service(&endpoint, mode, limits, &zone).unwrap()).unwrap();
    server
}

/// A message with its length before it.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

/// The name on the wire.
fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').filter(|label| !label.is_empty());
    let mut name: Vec<u8> =
        labels.flat_map(|label| [&[label.len() as u8][..], label.as_bytes()].concat()).collect();
    name.push(0);
    name
}

/// A query with this number.
pub(crate) fn query(id: u16, asked: &str, rtype: u16) -> Vec<u8> {
    let header = [id, 0x0100, 1, 0, 0, 0].map(u16::to_be_bytes).concat();
    [header, name(asked), [rtype, 1].map(u16::to_be_bytes).concat()].concat()
}

/// The numbers, codes and numbers of answers of the answers in a stream; what is left is cut.
fn answers(mut bytes: &[u8]) -> (Vec<(u16, u8, u16)>, &[u8]) {
    let mut answers = Vec::new();
    while let [high, low, rest @ ..] = bytes {
        let length = usize::from(*high) << 8 | usize::from(*low);
        let Some((message, rest)) = rest.split_at_checked(length) else { break };
        answers.push(answer(message));
        bytes = rest;
    }
    (answers, bytes)
}

/// The number, the code and the number of answers of an answer.
pub(crate) fn answer(message: &[u8]) -> (u16, u8, u16) {
    assert!(message.len() >= 12, "an answer has a header");
    assert!(message[2] & 0x80 != 0, "an answer says that it is one");
    let number = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    (number(0), message[3] & 0x0f, number(6))
}

const NAMES: &[&str] = &[
    "example.com",
    "www.example.com",
    "mail.example.com",
    "x.wild.example.com",
    "a.b.c.example.com",
    "c.example.com",
    "sub.example.com",
    "x.sub.example.com",
    "none.example.com",
    "example.org",
    "",
    "_sip._tcp.example.com",
];

const TYPES: &[u16] = &[1, 2, 5, 6, 15, 16, 28, 33, 41, 249, 251, 252, 255, 0, 65535];

/// A message of DNS, valid or nearly so.
pub(crate) fn message(draw: Draw<'_>) -> Vec<u8> {
    let mut message = query(draw.below(3) as u16, draw.pick(NAMES), draw.pick(TYPES));
    match draw.below(8) {
        0 => message[2] = draw.below(256) as u8,
        1 => message[3] = draw.below(256) as u8,
        2 => {
            let at = 4 + 2 * draw.below(4);
            message[at] = draw.pick(&[0, 1, 255]);
            message[at + 1] = draw.pick(&[0, 1, 2, 255]);
        }
        // A pointer: to itself, to the header, behind the end.
        3 => drop(message.splice(12..13, [0xc0, draw.pick(&[12, 0, 4, 200])])),
        // Labels that are too long, of an unknown kind, or too many.
        4 => message[12] = draw.pick(&[63, 64, 128, 255]),
        5 => drop(message.splice(12..12, [1, b'x'].repeat(draw.pick(&[2, 100, 127, 200])))),
        _ => {
            // Records behind the question, of which OPT has a meaning.
            for _ in 0..draw.below(3) {
                message[11] += 1;
                let version = draw.pick(&[0, 1]);
                let options = draw.pick(&[
                    &b"\0\0"[..],
                    b"\0\x04\0\x0a\0\0",
                    b"\0\x05\0\x0a\0\x04",
                    b"\xff\xff",
                ]);
                message.extend([0, 0, 41, 16, 0, 0, version, 0, 0]);
                message.extend_from_slice(options);
            }
        }
    }
    message
}

/// Questions with the code and the number of records of their answers.
pub(crate) const KNOWN: &[(&str, u16, u8, u16)] = &[
    ("example.com", 1, 0, 1),
    ("www.example.com", 1, 0, 2),
    ("EXAMPLE.com", 15, 0, 1),
    ("any.wild.example.com", 1, 0, 1),
    ("c.example.com", 1, 0, 0),
    ("none.example.com", 1, 3, 0),
    ("x.sub.example.com", 1, 0, 0),
    ("example.org", 1, 5, 0),
    ("example.com", 255, 0, 1),
    ("example.com", 2, 0, 2),
];

pub(crate) struct Dns;

impl Target for Dns {
    /// After 10 seconds of silence it closes.
    const SILENCE: Duration = Duration::from_secs(60);

    fn new(mode: Mode) -> (Self, Server) {
        (Dns, server(TCP, mode, Limits::default()))
    }

    fn message(draw: Draw<'_>) -> Vec<u8> {
        let mut message = framed(&message(draw));
        if draw.one_in(8) {
            message[0] = draw.pick(&[0, 1, 255]);
        }
        message
    }

    fn known(draw: Draw<'_>) -> (Vec<u8>, String) {
        let (mut input, mut expected) = (Vec::new(), String::new());
        for id in 0..draw.below(6) as u16 {
            let (name, rtype, code, records) = draw.pick(KNOWN);
            input.extend(framed(&query(id, name, rtype)));
            expected += &format!("{id}: {code}, {records} records\n");
        }
        // The header of an answer, too little for a header, nothing.
        let broken: &[&[u8]] =
            &[b"\0\0\x80\0\0\x01\0\0\0\0\0\0", b"\0\0\x01\0\0\x01\0\0\0\0\0", b""];
        input.extend(framed(draw.pick(broken)));
        for _ in 0..draw.below(3) {
            input.extend(framed(&query(99, "example.com", 1)));
        }
        (input, expected)
    }

    fn summary(&self, sent: &[u8], received: &[u8], is_complete: bool) -> String {
        let (answers, rest) = answers(received);
        assert!(rest.is_empty() || !is_complete, "a cut answer: {}", rest.escape_ascii());
        assert!(answers.len() <= sent.len() / 14 + 2, "{} answers", answers.len());
        let line = |(id, code, records)| format!("{id}: {code}, {records} records\n");
        answers.into_iter().map(line).collect()
    }

    fn probe() -> Vec<u8> {
        framed(&query(7, "example.com", 1))
    }

    fn serves(&mut self, sim: &mut Simulation<'_>) {
        let client = sim.connect();
        client.send(&Self::probe());
        settle(self, sim);
        assert_eq!(self.summary(&[0; 14], &client.read(), true), "7: 0, 1 records\n");
        client.close();
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::check;
    use super::*;

    #[test]
    fn malformed_queries_are_answered_by_an_error_or_a_close() {
        check::<Dns>();
    }
}
