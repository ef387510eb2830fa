//! Bad frames and `on_reject`; a framing that keeps what it parsed and that the handler switches; pauses in
//! the last messages of an ended peer.

#![allow(unreachable_pub)] // a module of a test is public to nobody

use std::io::Read as _;
use std::thread;
use std::time::Duration;

use socketserver::{
    Accepted, CloseReason, Context, Decoded, Framing, FramingError, Handler, HandlerResult,
    LengthPrefixed, Lines, Output, Service,
};

use super::server::{Cell, Checker, LONGEST_PATTERN, Setup, pattern, print_line, violation};
use super::{Power, powers};

// Bad frames

/// The longest line.
const MAX_LEN: usize = 16;

/// How long the answer to a bad frame is where it is a long one.
const LONG_ANSWER: u64 = 3 << 20;

/// Answers lines, and those that are too long.
#[derive(Debug, Default)]
struct Rejecting {
    mode: &'static str,
}

impl Handler for Rejecting {
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if self.mode == "rejected" {
            violation("a message after a bad frame");
        }
        self.mode = match line {
            b"long" => "long",
            b"abort" => "abort",
            b"error" => "error",
            _ => self.mode,
        };
        cx.send(line)
    }

    fn on_reject(&mut self, reason: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
        match std::mem::replace(&mut self.mode, "rejected") {
            "long" => {
                for at in (0..LONG_ANSWER).step_by(LONGEST_PATTERN) {
                    cx.output().put(pattern(at, LONGEST_PATTERN));
                }
                Ok(())
            }
            "abort" => {
                cx.send(b"not sent")?;
                cx.abort();
                Ok(())
            }
            "error" => {
                cx.send(b"last words")?;
                Err("the error of on_reject".into())
            }
            _ => cx.send(format!("rejected: {reason}").as_bytes()),
        }
    }

    fn on_close(&mut self, reason: &CloseReason) {
        print_line(reason);
    }
}

pub fn rejecting(setup: Setup) -> Service {
    setup.serve(|_| (Lines::default().max_len(MAX_LEN), Rejecting::default()))
}

/// Much input follows the bad frame, part of it unread when the server closes: no reset cuts the answer.
fn a_bad_frame_is_answered_before_the_end(cell: &Cell) {
    let mut server = cell.start("rejecting");
    for round in 0..10 {
        let mut client = server.connect();
        let mut sent = b"one\ntwo\n".to_vec();
        sent.resize(if round % 2 == 0 { 100 } else { 100_000 }, b'x');
        client.send(&sent);
        client.expect("one\ntwo\nrejected: bad frame: longer than 16 bytes\n").expect_end();
        server.expect_line("bad frame: longer than 16 bytes");
    }
    server.stop_quietly();
}

fn a_long_answer_to_a_bad_frame_arrives_whole(cell: &Cell) {
    let mut server = cell.start("rejecting");
    let mut client = server.connect();
    client.send("long\n").expect("long\n").send([b'x'; 100]);
    thread::sleep(Duration::from_millis(50)); // a slow reader
    let mut checker = Checker::default();
    checker.read_to_end(&mut client);
    assert_eq!(checker.at, LONG_ANSWER);
    server.expect_line("bad frame: longer than 16 bytes");
    server.stop_quietly();
}

fn an_end_inside_a_frame_is_answered(cell: &Cell) {
    let mut server = cell.start("rejecting");
    let mut client = server.connect();
    client.send("one\ntw").end().expect("one\nrejected: ");
    let reason = "bad frame: the input ended inside a frame, after 2 bytes of it";
    client.expect(format!("{reason}\n")).expect_end();
    server.expect_line(reason);
    server.stop_quietly();
}

fn an_abort_or_an_error_in_on_reject_ends_the_connection(cell: &Cell) {
    let mut server = cell.start("rejecting");
    let mut client = server.connect();
    client.send("abort\n").expect("abort\n").send([b'x'; 100]);
    let mut rest = Vec::new();
    let end = client.socket.read_to_end(&mut rest);
    assert!(rest.is_empty(), "what an aborted handler sends is dropped");
    if cell.name().starts_with("tcp") {
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
    server.expect_line("bad frame: longer than 16 bytes");

    let mut client = server.connect();
    client.send("error\n").expect("error\n").send([b'x'; 100]);
    client.expect("last words\n").expect_end();
    server.expect_line("handler failed: the error of on_reject");
    server.stop_quietly();
}

// A framing that parses, and is switched

/// A protocol of numbered lines which is switched to messages with their length. It keeps what it parsed
/// of the last line, so that the handler need not parse it again.
#[derive(Debug, Default)]
struct Switching {
    /// The number and the text of the last line.
    parsed: Option<(u32, String)>,
    /// How many frames it has decoded.
    decoded: u32,
    /// The framing after the switch.
    after: Option<LengthPrefixed>,
}

impl Framing for Switching {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        let step = match &mut self.after {
            Some(after) => after.decode(input)?,
            None => {
                let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
                    return Ok(Decoded::Incomplete);
                };
                let line = std::str::from_utf8(&input[..end]);
                let line = line.map_err(|error| FramingError::Other(error.into()))?;
                let (number, text) = line.split_once(' ').unwrap_or((line, ""));
                let number = number.parse();
                let number = number.map_err(|_| FramingError::Other("no number".into()))?;
                self.parsed = Some((number, text.to_owned()));
                Decoded::Frame { body: 0..end, consumed: end + 1 }
            }
        };
        self.decoded += u32::from(matches!(step, Decoded::Frame { .. }));
        Ok(step)
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        match &mut self.after {
            Some(after) => after.encode(message, output),
            None => {
                output.put(message);
                output.put(b"\n");
                Ok(())
            }
        }
    }
}

/// Answers with what the framing has parsed, and switches it.
#[derive(Debug, Default)]
struct Parsed {
    messages: u32,
    switched: bool,
}

impl Handler for Parsed {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        self.messages += 1;
        if cx.framing::<Lines>().is_some() {
            violation("a framing is found by another type");
        }
        let framing = cx.framing::<Switching>().ok_or("no framing")?;
        if framing.decoded != self.messages {
            violation(format_args!("{} frames, {} messages", framing.decoded, self.messages));
        }
        if self.switched {
            return cx.send(&message.to_ascii_uppercase());
        }
        let (number, text) = framing.parsed.take().ok_or("nothing parsed")?;
        if text == "switch" {
            // The answer still goes out as a line.
            cx.send(b"switched")?;
            cx.framing::<Switching>().ok_or("no framing")?.after = Some(LengthPrefixed::default());
            self.switched = true;
            return Ok(());
        }
        cx.send(format!("{text} is {number}").as_bytes())
    }
}

/// Framings of their own type.
pub fn switching(setup: Setup) -> Service {
    let make = |_: &Accepted<'_>| (Switching::default(), Parsed::default());
    setup.builder.service_with(make).unwrap()
}

/// Framings chosen at run time.
pub fn switching_boxed(setup: Setup) -> Service {
    let make = |_: &Accepted<'_>| {
        let framing: Box<dyn Framing + Send> = Box::new(Switching::default());
        (framing, Parsed::default())
    };
    setup.builder.service_with(make).unwrap()
}

/// Replaces its framing as a whole by another one.
#[derive(Debug)]
struct Replacing;

impl Handler for Replacing {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        cx.send(message)?;
        if message == b"switch" {
            let framing = cx.framing::<Box<dyn Framing + Send>>().ok_or("no framing")?;
            *framing = Box::new(LengthPrefixed::default());
        }
        Ok(())
    }
}

pub fn replacing(setup: Setup) -> Service {
    let make = |_: &Accepted<'_>| {
        let framing: Box<dyn Framing + Send> = Box::new(Lines::default());
        (framing, Replacing)
    };
    setup.builder.service_with(make).unwrap()
}

fn prefixed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u32).to_be_bytes(), message].concat()
}

/// Many lines, the switch, and many messages of the second protocol, in one write.
fn both_protocols() -> (Vec<u8>, Vec<u8>) {
    let (mut sent, mut answers) = (Vec::new(), Vec::new());
    for number in 0..400 {
        sent.extend(format!("{number} line{number}\n").bytes());
        answers.extend(format!("line{number} is {number}\n").bytes());
    }
    sent.extend(b"400 switch\n");
    answers.extend(b"switched\n");
    for number in 0..400 {
        // The second protocol takes bytes that would be lines.
        sent.extend(prefixed(format!("m\n{number}").as_bytes()));
        answers.extend(prefixed(format!("M\n{number}").as_bytes()));
    }
    (sent, answers)
}

fn check_switch(cell: &Cell, service: &str) {
    let server = cell.start(service);
    let (sent, answers) = both_protocols();
    let mut client = server.connect();
    client.send(&sent).expect(&answers).end().expect_end();
    // Byte by byte around the switch.
    let mut client = server.connect();
    let sent = [b"7 seven\n8 switch\n".to_vec(), prefixed(b"hello"), prefixed(b"")].concat();
    for byte in sent {
        client.send([byte]);
    }
    let answers = [b"seven is 7\nswitched\n".to_vec(), prefixed(b"HELLO"), prefixed(b"")].concat();
    client.expect(&answers).end().expect_end();
    server.stop_quietly();
}

fn a_framing_parses_once_and_is_switched_before_bytes_that_have_arrived(cell: &Cell) {
    check_switch(cell, "switching");
}

fn a_framing_in_a_box_is_found_by_its_own_type_and_switched(cell: &Cell) {
    check_switch(cell, "switching_boxed");
}

fn a_framing_in_a_box_is_replaced_before_bytes_that_have_arrived(cell: &Cell) {
    let server = cell.start("replacing");
    let mut client = server.connect();
    let sent = [b"one\nswitch\n".to_vec(), prefixed(b"two\n"), prefixed(b"three")].concat();
    client.send(&sent).expect(&sent).end().expect_end();
    server.stop_quietly();
}

// The last messages of an ended peer

/// Each byte is a message, but only when the peer has ended.
#[derive(Debug)]
struct AtTheEnd;

impl Framing for AtTheEnd {
    fn decode(&mut self, _: &[u8]) -> Result<Decoded, FramingError> {
        Ok(Decoded::Incomplete)
    }

    fn decode_eof(&mut self, _: &[u8]) -> Result<Decoded, FramingError> {
        Ok(Decoded::Frame { body: 0..1, consumed: 1 })
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        output.put(message);
        Ok(())
    }
}

/// Pauses its input after each message until a timer comes.
#[derive(Debug, Default)]
struct PausesAtTheEnd {
    message: Vec<u8>,
    ended: bool,
}

impl Handler for PausesAtTheEnd {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if !self.message.is_empty() {
            violation("a message while the input is paused");
        }
        self.message = message.to_vec();
        cx.pause_input();
        Ok(cx.set_timer(cx.now() + Duration::from_millis(1))?)
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(&std::mem::take(&mut self.message))?;
        cx.resume_input();
        if self.ended {
            cx.close();
        }
        Ok(())
    }

    /// It comes while the input is still paused by the last message.
    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.ended = true;
        cx.send(b"end ")
    }
}

pub fn at_the_end(setup: Setup) -> Service {
    setup.serve(|_| (AtTheEnd, PausesAtTheEnd::default()))
}

fn the_last_messages_of_an_ended_peer_wait_while_the_input_is_paused(cell: &Cell) {
    let server = cell.start("at_the_end");
    let mut client = server.connect();
    client.send("abcdef").end().expect("abcdeend f").expect_end();
    server.stop_quietly();
}

pub fn powers() -> Vec<Power> {
    powers![
        a_bad_frame_is_answered_before_the_end,
        a_long_answer_to_a_bad_frame_arrives_whole,
        an_end_inside_a_frame_is_answered,
        an_abort_or_an_error_in_on_reject_ends_the_connection,
        a_framing_parses_once_and_is_switched_before_bytes_that_have_arrived,
        a_framing_in_a_box_is_found_by_its_own_type_and_switched,
        a_framing_in_a_box_is_replaced_before_bytes_that_have_arrived,
        the_last_messages_of_an_ended_peer_wait_while_the_input_is_paused,
    ]
}
