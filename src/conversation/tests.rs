//! Tests of the conversation without sockets, threads or a clock: bytes and events go in, bytes and
//! calls of the handler come out.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::encodable::Encodable;
use crate::error::{HandlerResult, SendError, UnsupportedError};
use crate::mailbox::Mailbox;
use crate::sender::{Event, Recipient, Sender, SenderLimit, Waker};
use crate::token::Token;

const PLENTY: usize = 1 << 30;

/// A call of one of a handler's methods.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Open,
    Message(Vec<u8>),
    Writable,
    Timer,
    Event(u32),
    Eof,
    Timeout,
    Reject(String),
    Stop,
    Close(String),
}

type Log = Rc<RefCell<Vec<Call>>>;

/// A handler that runs `act` in each call and then records the call.
struct Actor<A> {
    log: Log,
    act: A,
}

impl<A: FnMut(&Call, &mut Context<'_>) -> HandlerResult> Actor<A> {
    fn note(&mut self, call: Call, cx: &mut Context<'_>) -> HandlerResult {
        let done = (self.act)(&call, cx);
        self.log.borrow_mut().push(call);
        done
    }
}

impl<A: FnMut(&Call, &mut Context<'_>) -> HandlerResult> Handler for Actor<A> {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.note(Call::Open, cx)
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        self.note(Call::Message(message.to_vec()), cx)
    }

    fn on_writable(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.note(Call::Writable, cx)
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.note(Call::Timer, cx)
    }

    fn on_event(&mut self, event: Event, cx: &mut Context<'_>) -> HandlerResult {
        self.note(Call::Event(*event.downcast::<u32>().unwrap()), cx)
    }

    fn on_reject(&mut self, reason: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
        self.note(Call::Reject(reason.to_string()), cx)
    }

    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.note(Call::Stop, cx)
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.note(Call::Eof, cx)
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.note(Call::Timeout, cx)
    }

    fn on_close(&mut self, reason: &CloseReason) {
        self.log.borrow_mut().push(Call::Close(reason.to_string()));
    }
}

/// A handler that sends each message back.
struct Echo(Rc<RefCell<Vec<Vec<u8>>>>);

impl Handler for Echo {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        self.0.borrow_mut().push(message.to_vec());
        cx.send(message)
    }
}

/// A driver without an event loop: notifications stay in its mailbox.
struct NoLoop {
    mailbox: Arc<Mailbox>,
    stop_requested: Cell<bool>,
    now: Instant,
}

impl Driver for NoLoop {
    fn send_queue(&self, recipient: Recipient) -> Result<Arc<SendQueue>, UnsupportedError> {
        let waker = Waker::Loop(self.mailbox.clone(), Token::new(1, 1));
        Ok(Arc::new(SendQueue::new(waker, SenderLimit::new(64 * 1024), recipient)))
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn request_stop(&self) {
        self.stop_requested.set(true);
    }

    fn is_overloaded(&self) -> bool {
        false
    }
}

fn nowhere() -> NoLoop {
    NoLoop {
        mailbox: Arc::new(Mailbox::new().unwrap()),
        stop_requested: Cell::new(false),
        now: Instant::now(),
    }
}

/// Drives one conversation over a network that accepts all output at once.
struct Stage<H, F> {
    conversation: Conversation<H, F>,
    output_buffer: OutputBuffer,
    tally: Tally,
    driver: NoLoop,
    room: usize,
    /// What has gone out.
    sent: Vec<u8>,
    reason: Option<CatchDrop<CloseReason>>,
}

impl<H: Handler, F: Framing> Stage<H, F> {
    fn new(handler: H, framing: F) -> Self {
        Stage {
            conversation: Conversation::new(
                handler.into(),
                framing.into(),
                Peer::Unnamed,
                ConnectionId::next(),
            ),
            output_buffer: OutputBuffer::default(),
            tally: Tally::default(),
            driver: nowhere(),
            room: PLENTY,
            sent: Vec::new(),
            reason: None,
        }
    }

    fn step(&mut self, fresh: &[u8], step: impl FnOnce(&mut Conversation<H, F>, &mut StepCx<'_>)) {
        let mut step_cx =
            StepCx::new(&mut self.output_buffer, &mut self.tally, &self.driver, self.room);
        step(&mut self.conversation, &mut step_cx);
        let input = self.conversation.input(fresh);
        for part in self.output_buffer.parts(input) {
            self.sent.extend_from_slice(part);
        }
        self.output_buffer.clear();
        self.conversation.consume_delivered(fresh);
    }

    fn open(&mut self) -> &mut Self {
        self.step(&[], Conversation::open);
        self
    }

    /// Delivers `fresh` bytes, and resumes until no input waits for room in the output.
    fn feed(&mut self, fresh: &[u8]) -> &mut Self {
        if self.conversation.is_closing() {
            return self;
        }
        self.step(fresh, |conversation, step_cx| conversation.receive(fresh, step_cx));
        while self.conversation.has_blocked_input() && !self.conversation.is_closing() {
            self.resume();
        }
        self
    }

    /// Delivers buffered input as a worker does; false if no whole frame is buffered.
    fn deliver_kept(&mut self) -> bool {
        let Some(mut peeked) = self.conversation.peek_frame() else {
            return false;
        };
        self.step(&[], |conversation, step_cx| conversation.receive_buffered(&mut peeked, step_cx));
        true
    }

    fn resume(&mut self) {
        self.step(&[], |conversation, step_cx| conversation.receive(&[], step_cx));
    }

    fn eof(&mut self) -> &mut Self {
        self.step(&[], Conversation::eof);
        self
    }

    fn time_out(&mut self) -> &mut Self {
        self.step(&[], Conversation::idle_timed_out);
        self
    }

    fn drain_send_queue(&mut self) -> &mut Self {
        self.step(&[], |conversation, step_cx| {
            conversation.drain_send_queue(SendQueue::take, step_cx);
        });
        self
    }

    /// Closes the conversation as its driver does; returns the reason.
    fn close(&mut self) -> &CloseReason {
        let reason = self.conversation.closed(&mut self.tally);
        self.reason.insert(reason)
    }

    fn is_closing(&self) -> bool {
        self.conversation.is_closing()
    }
}

/// An opened conversation with a recording handler, and its calls.
fn start<A, F>(framing: F, act: A) -> (Stage<Actor<A>, F>, Log)
where
    A: FnMut(&Call, &mut Context<'_>) -> HandlerResult,
    F: Framing,
{
    let log = Log::default();
    let mut stage = Stage::new(Actor { log: log.clone(), act }, framing);
    stage.open();
    (stage, log)
}

/// Sends each message back, and closes at the end of input and after an idle timeout.
fn echo(call: &Call, cx: &mut Context<'_>) -> HandlerResult {
    match call {
        Call::Message(message) => cx.send(message),
        Call::Eof | Call::Timeout => {
            cx.close();
            Ok(())
        }
        _ => Ok(()),
    }
}

fn message(bytes: impl AsRef<[u8]>) -> Call {
    Call::Message(bytes.as_ref().to_vec())
}

fn messages(log: &Log) -> Vec<Vec<u8>> {
    let calls = log.borrow();
    calls
        .iter()
        .filter_map(|call| match call {
            Call::Message(message) => Some(message.clone()),
            _ => None,
        })
        .collect()
}

fn closes(log: &Log) -> usize {
    let calls = log.borrow();
    calls.iter().filter(|call| matches!(call, Call::Close(_))).count()
}

/// The messages as this framing encodes them.
fn encode(framing: &mut impl Framing, messages: &[Vec<u8>]) -> Vec<u8> {
    let mut output_buffer = OutputBuffer::default();
    for message in messages {
        framing.encode(message, &mut Output::new(&[], &mut output_buffer)).unwrap();
    }
    output_buffer.parts(&[]).collect::<Vec<_>>().concat()
}

/// `wire` in pieces whose lengths are `cuts`, repeated.
fn pieces<'a>(wire: &'a [u8], cuts: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut left = wire;
    let mut cuts = cuts.iter().cycle();
    std::iter::from_fn(move || {
        let (piece, rest) = left.split_at((*cuts.next()?).min(left.len()));
        left = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Checks that the encoded messages are delivered unchanged, for any split of the input and any
/// room for output, and that their echo has the same bytes.
fn expect_round_trip(
    mut framing: impl Framing + Clone,
    sent: &[Vec<u8>],
    cuts: &[usize],
    room: usize,
) -> Result<(), TestCaseError> {
    let wire = encode(&mut framing, sent);
    let received = Rc::default();
    let mut stage = Stage::new(Echo(Rc::clone(&received)), framing);
    stage.room = room;
    stage.open();
    for piece in pieces(&wire, cuts) {
        stage.feed(piece);
    }
    stage.eof();
    prop_assert!(matches!(stage.close(), CloseReason::Eof));
    prop_assert_eq!(&*received.borrow(), sent);
    prop_assert_eq!(&stage.sent, &wire);
    prop_assert_eq!(stage.tally.messages, sent.len() as u64);
    Ok(())
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1usize..4, 1usize..200, 1usize..5000], 1..20)
}

fn room() -> impl Strategy<Value = usize> {
    prop_oneof![Just(PLENTY), 1usize..20, 1usize..2000]
}

fn any_messages() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(vec(any::<u8>(), 0..300), 0..20)
}

/// Messages of few different bytes, so that delimiters and their prefixes are frequent.
fn messages_of(bytes: &'static [u8]) -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(vec(prop::sample::select(bytes), 0..40), 0..20)
}

/// Bernstein's netstrings: a custom framing.
#[derive(Clone)]
struct Netstring;

impl Framing for Netstring {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        let Some(colon) = input.iter().position(|&byte| byte == b':') else {
            return Ok(Decoded::Incomplete);
        };
        let length: usize = std::str::from_utf8(&input[..colon])
            .ok()
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| FramingError::Other("no length".into()))?;
        let body = colon + 1..colon + 1 + length;
        match input.get(body.end) {
            None => Ok(Decoded::Incomplete),
            Some(b',') => Ok(Decoded::Frame { consumed: body.end + 1, body }),
            Some(_) => Err(FramingError::Other("no comma".into())),
        }
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        output.put(format!("{}:", message.len()).as_bytes());
        output.put(message);
        output.put(b",");
        Ok(())
    }
}

proptest! {
    #[test]
    fn raw_bytes_are_received_and_echoed_unchanged(bytes in vec(any::<u8>(), 0..5000), cuts in cuts()) {
        let received = Rc::default();
        let mut stage = Stage::new(Echo(Rc::clone(&received)), Raw);
        stage.open();
        for piece in pieces(&bytes, &cuts) {
            stage.feed(piece);
        }
        stage.eof();
        prop_assert_eq!(received.borrow().concat(), bytes.clone());
        prop_assert!(received.borrow().iter().all(|message| !message.is_empty()));
        prop_assert_eq!(&stage.sent, &bytes);
    }

    #[test]
    fn lines_split_at_any_point_are_received_whole(lines in messages_of(b"ab\0\xff "), cuts in cuts(), room in room()) {
        expect_round_trip(Lines::default(), &lines, &cuts, room)?;
    }

    #[test]
    fn lines_may_end_in_crlf(lines in messages_of(b"ab\r"), cuts in cuts()) {
        let lines: Vec<_> = lines.into_iter().filter(|line| !line.ends_with(b"\r")).collect();
        let wire = lines.iter().flat_map(|line| [&line[..], b"\r\n"].concat()).collect::<Vec<_>>();
        let (mut stage, log) = start(Lines::default(), echo);
        for piece in pieces(&wire, &cuts) {
            stage.feed(piece);
        }
        prop_assert_eq!(messages(&log), lines);
    }

    #[test]
    fn messages_with_a_one_byte_delimiter_split_at_any_point_are_received_whole(
        sent in messages_of(b"ab\n\r"), cuts in cuts(), room in room(),
    ) {
        expect_round_trip(Delimited::new(b"\0"), &sent, &cuts, room)?;
    }

    /// A message that contains the delimiter is refused by `encode`; all others arrive.
    #[test]
    fn messages_with_a_long_delimiter_split_at_any_point_are_received_whole(
        sent in messages_of(b"ab"), cuts in cuts(), room in room(),
        delimiter in prop::sample::select(vec![&b"aa"[..], b"ab", b"aba", b"abab", b"bbb", b"aab"]),
    ) {
        let mut framing = Delimited::new(delimiter);
        let (mut sendable, mut output_buffer) = (Vec::new(), OutputBuffer::default());
        for message in sent {
            match framing.encode(&message, &mut Output::new(&[], &mut output_buffer)) {
                Ok(()) => sendable.push(message),
                Err(FramingError::Unencodable(_)) => {}
                Err(other) => return Err(TestCaseError::fail(other.to_string())),
            }
        }
        expect_round_trip(framing, &sendable, &cuts, room)?;
    }

    #[test]
    fn length_prefixed_messages_split_at_any_point_are_received_whole(
        sent in vec(vec(any::<u8>(), 0..255), 0..12), cuts in cuts(), room in room(),
        width in prop::sample::select(&[Width::One, Width::Two, Width::Four, Width::Eight][..]),
        endian in prop::sample::select(&[Endian::Big, Endian::Little][..]),
    ) {
        expect_round_trip(LengthPrefixed::new(width, endian), &sent, &cuts, room)?;
    }

    #[test]
    fn fixed_size_messages_split_at_any_point_are_received_whole(
        size in 1usize..300, count in 0usize..12, cuts in cuts(), room in room(),
    ) {
        let sent: Vec<_> = (0..count).map(|number| vec![number as u8; size]).collect();
        expect_round_trip(FixedSize::new(size), &sent, &cuts, room)?;
    }

    #[test]
    fn messages_of_a_custom_framing_split_at_any_point_are_received_whole(
        sent in any_messages(), cuts in cuts(), room in room(),
    ) {
        expect_round_trip(Netstring, &sent, &cuts, room)?;
    }

    /// No message is longer than the maximum, and the message after a delimiter is correct.
    #[test]
    fn after_discarded_input_the_next_message_is_received(
        before in vec(prop::sample::select(&b"ab#"[..]), 0..200), cuts in cuts(),
        delimiter in prop::sample::select(vec![&b"#"[..], b"#-", b"#--#"]),
    ) {
        let framing = Delimited::new(delimiter).max_len(10).overlong(Overlong::Discard);
        let wire = [&before[..], delimiter, b"after", delimiter].concat();
        let (mut stage, log) = start(framing, echo);
        for piece in pieces(&wire, &cuts) {
            stage.feed(piece);
        }
        prop_assert!(!stage.is_closing());
        let messages = messages(&log);
        prop_assert_eq!(messages.last().map(Vec::as_slice), Some(&b"after"[..]));
        prop_assert!(messages.iter().all(|message| message.len() <= 10));
    }
}

#[test]
fn big_endian_is_the_default_and_little_endian_is_an_option() {
    let frame = |mut framing: LengthPrefixed| encode(&mut framing, &[b"hi".to_vec()]);
    assert_eq!(frame(LengthPrefixed::default()), b"\0\0\0\x02hi");
    assert_eq!(frame(LengthPrefixed::new(Width::Two, Endian::Little)), b"\x02\0hi");
    assert_eq!(frame(LengthPrefixed::new(Width::Eight, Endian::Big)), b"\0\0\0\0\0\0\0\x02hi");
}

/// Feeds one frame in one piece and then byte by byte; returns the close reasons, if any.
fn verdicts(framing: impl Framing + Clone, wire: &[u8]) -> [Option<String>; 2] {
    [wire.len(), 1].map(|piece| {
        let (mut stage, _) = start(framing.clone(), echo);
        for piece in wire.chunks(piece) {
            stage.feed(piece);
        }
        stage.is_closing().then(|| stage.close().to_string())
    })
}

fn expect_limit(framing: impl Framing + Clone, at_limit: &[u8], over: &[u8]) {
    assert_eq!(verdicts(framing.clone(), at_limit), [None, None]);
    let too_long = Some("bad frame: longer than 10 bytes".to_owned());
    assert_eq!(verdicts(framing, over), [too_long.clone(), too_long]);
}

#[test]
fn a_frame_may_be_as_long_as_the_maximum_and_no_longer() {
    let (ten, eleven) = ([b'x'; 10], [b'x'; 11]);
    for end in [&b"\n"[..], b"\r\n"] {
        let lines = Lines::default().max_len(10);
        expect_limit(lines, &[&ten, end].concat(), &[&eleven, end].concat());
    }
    for end in [&b"#"[..], b"#--#"] {
        let delimited = Delimited::new(end).max_len(10);
        expect_limit(delimited, &[&ten, end].concat(), &[&eleven, end].concat());
    }
    for endian in [Endian::Big, Endian::Little] {
        let prefixed = LengthPrefixed::new(Width::One, endian).max_len(10);
        expect_limit(prefixed, &[&[10], &ten[..]].concat(), &[&[11], &eleven[..]].concat());
    }
}

#[test]
fn a_frame_without_an_end_is_too_long_before_it_ends() {
    for framing in [
        Box::new(Lines::default().max_len(10)) as Box<dyn Framing>,
        Box::new(Delimited::new(b"#--#").max_len(10)),
    ] {
        let (mut stage, _) = start(framing, echo);
        stage.feed(&[b'x'; 10]);
        assert!(!stage.is_closing(), "ten bytes may still become a frame");
        stage.feed(&[b'x'; 5]);
        assert!(matches!(stage.close(), CloseReason::Framing(FramingError::TooLong { limit: 10 })));
    }
}

#[test]
fn a_length_above_the_maximum_is_refused_before_the_message_arrives() {
    for width in [Width::Two, Width::Four, Width::Eight] {
        let framing = LengthPrefixed::new(width, Endian::Big).max_len(10);
        let (mut stage, log) = start(framing, echo);
        stage.feed(&vec![0xff; width as usize]);
        assert!(matches!(stage.close(), CloseReason::Framing(FramingError::TooLong { limit: 10 })));
        assert_eq!(messages(&log), Vec::<Vec<u8>>::new());
        assert_eq!(stage.tally.framing_errors, 1);
    }
}

#[test]
fn messages_before_a_bad_frame_are_delivered_and_answered() {
    let (mut stage, log) = start(Lines::default().max_len(4), echo);
    stage.feed(b"one\ntwo\nthree\nfour\n");
    assert_eq!(messages(&log), [b"one", b"two"]);
    assert_eq!(stage.sent, b"one\ntwo\n");
    assert!(stage.is_closing());
}

#[test]
fn an_overlong_line_can_be_discarded_and_the_next_one_is_delivered() {
    let lines = Lines::default().max_len(4).overlong(Overlong::Discard);
    for piece in [100, 1, 3, 7] {
        let (mut stage, log) = start(lines.clone(), echo);
        for piece in b"one\nmuch too long\r\ntwo\nfive5\n\nend\n".chunks(piece) {
            stage.feed(piece);
        }
        assert_eq!(messages(&log), [&b"one"[..], b"two", b"", b"end"]);
        assert!(!stage.is_closing());
    }
}

#[test]
fn a_line_that_is_being_discarded_is_not_buffered() {
    let framing = Delimited::new(b"#--#").max_len(10).overlong(Overlong::Discard);
    let (mut stage, _) = start(framing, echo);
    for _ in 0..if cfg!(miri) { 10 } else { 1000 } {
        stage.feed(&[b'x'; 100]);
        assert!(stage.conversation.read_buffer.len() < 20);
    }
}

#[test]
fn an_end_inside_a_frame_is_unexpected() {
    let frames: [(Box<dyn Framing>, &[u8]); 5] = [
        (Box::new(Lines::default()), b"whole\nhal"),
        (Box::new(Delimited::new(b"--")), b"whole--ha-"),
        (Box::new(LengthPrefixed::default()), b"\0\0\0\x01x\0\0\0"),
        (Box::new(FixedSize::new(4)), b"fourthr"),
        (Box::new(Netstring), b"1:x,3:"),
    ];
    for (framing, wire) in frames {
        let (mut stage, log) = start(framing, echo);
        stage.feed(wire).eof();
        let reason = stage.close();
        let CloseReason::Framing(FramingError::UnexpectedEof { buffered }) = reason else {
            panic!("{reason}");
        };
        assert!((2..=3).contains(buffered));
        assert_eq!(messages(&log).len(), 1);
        assert!(!log.borrow().contains(&Call::Eof), "no peer ended between two frames");
    }
}

#[test]
fn an_unterminated_last_line_is_accepted_if_the_option_is_set() {
    for wire in [&b"one\ntwo"[..], b"one\r\ntwo\r"] {
        let (mut stage, log) = start(Lines::default().unterminated(true), echo);
        stage.feed(wire).eof();
        assert!(matches!(stage.close(), CloseReason::Eof));
        assert_eq!(
            log.borrow()[1..],
            [message("one"), message("two"), Call::Eof, Call::Close("end of input".into())]
        );
        assert_eq!(stage.sent, b"one\ntwo\n");
    }
}

#[test]
fn an_unterminated_last_line_has_the_same_maximum() {
    let lines = Lines::default().max_len(3).unterminated(true);
    let (mut stage, _) = start(lines.clone(), echo);
    stage.feed(b"four").eof();
    assert!(matches!(stage.close(), CloseReason::Framing(FramingError::TooLong { limit: 3 })));
    let (mut stage, log) = start(lines.overlong(Overlong::Discard), echo);
    stage.feed(b"four").eof();
    assert!(matches!(stage.close(), CloseReason::Eof));
    assert_eq!(messages(&log), Vec::<Vec<u8>>::new());
}

/// The second call passes other bytes in the range that was scanned before.
#[test]
fn a_scanner_reads_no_byte_twice() {
    let mut lines = Lines::default();
    assert_eq!(lines.decode(b"aaaa").unwrap(), Decoded::Incomplete);
    assert_eq!(lines.decode(b"\n\n\n\na").unwrap(), Decoded::Incomplete);
    let frame = |body, consumed| Decoded::Frame { body, consumed };
    assert_eq!(lines.decode(b"\n\n\n\na\n").unwrap(), frame(0..5, 6));
    // The end of the scanned range may be the start of a delimiter, and is scanned again.
    let mut delimited = Delimited::new(b"###");
    assert_eq!(delimited.decode(b"aaaaa#").unwrap(), Decoded::Incomplete);
    assert_eq!(delimited.decode(b"###aa##").unwrap(), Decoded::Incomplete);
    assert_eq!(delimited.decode(b"###aa###").unwrap(), frame(0..5, 8));
}

/// A framing of lines that counts the calls of `decode` and the new bytes in them.
#[derive(Default)]
struct Asked {
    calls: Rc<RefCell<usize>>,
    seen: usize,
    looked_at: Rc<RefCell<usize>>,
}

impl Framing for Asked {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        *self.calls.borrow_mut() += 1;
        *self.looked_at.borrow_mut() += input.len() - self.seen;
        let end = input[self.seen..].iter().position(|&byte| byte == b'\n');
        let Some(end) = end.map(|end| self.seen + end) else {
            self.seen = input.len();
            return Ok(Decoded::Incomplete);
        };
        self.seen = 0;
        Ok(Decoded::Frame { body: 0..end, consumed: end + 1 })
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        output.put(message);
        Ok(())
    }
}

#[test]
fn a_mebibyte_that_arrives_byte_by_byte_is_scanned_once() {
    let framing = Asked::default();
    let (calls, looked_at) = (framing.calls.clone(), framing.looked_at.clone());
    let (mut stage, log) = start(framing, |_: &Call, _: &mut Context<'_>| Ok(()));
    for _ in 0..1 << 20 {
        stage.feed(b"x");
    }
    stage.feed(b"\n");
    assert_eq!(messages(&log)[0].len(), 1 << 20);
    assert_eq!(*calls.borrow(), (1 << 20) + 1);
    assert_eq!(*looked_at.borrow(), (1 << 20) + 1);
}

#[test]
fn long_frames_that_arrive_byte_by_byte_are_found_by_every_scanner() {
    let length = 1 << 20;
    for framing in [
        Box::new(Lines::default().max_len(length)) as Box<dyn Framing>,
        Box::new(Delimited::new(b"\r\n").max_len(length)),
    ] {
        let (mut stage, log) = start(framing, |_: &Call, _: &mut Context<'_>| Ok(()));
        for _ in 0..length {
            stage.feed(b"x");
        }
        stage.feed(b"\r").feed(b"\n");
        assert_eq!(messages(&log)[0].len(), length);
    }
}

/// A framing whose `decode` returns a fixed value.
struct Says(Decoded);

impl Framing for Says {
    fn decode(&mut self, _: &[u8]) -> Result<Decoded, FramingError> {
        Ok(self.0.clone())
    }

    fn decode_eof(&mut self, _: &[u8]) -> Result<Decoded, FramingError> {
        Ok(self.0.clone())
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        output.put(message);
        Ok(())
    }
}

fn impossible_steps() -> Vec<Decoded> {
    let frame = |body, consumed| Decoded::Frame { body, consumed };
    vec![
        Decoded::Skip(0),
        Decoded::Skip(5),
        frame(0..0, 0),
        frame(0..4, 0),
        frame(0..5, 4),
        frame(0..4, 5),
        frame(5..5, 4),
        frame(std::ops::Range { start: 3, end: 1 }, 4),
        frame(0..usize::MAX, usize::MAX),
        frame(usize::MAX..usize::MAX, 1),
    ]
}

#[test]
fn a_framing_that_names_bytes_out_of_range_ends_the_conversation() {
    for step in impossible_steps() {
        let (mut stage, log) = start(Says(step.clone()), echo);
        stage.feed(b"four");
        assert!(stage.is_closing(), "{step:?}");
        assert!(matches!(stage.close(), CloseReason::Framing(FramingError::Other(_))));
        assert_eq!(messages(&log), Vec::<Vec<u8>>::new());
    }
}

#[test]
fn a_framing_that_names_bytes_out_of_range_at_eof_ends_the_conversation() {
    for step in impossible_steps().into_iter().chain([Decoded::Incomplete]) {
        let (mut stage, _) = start(Says(Decoded::Incomplete), echo);
        stage.feed(b"four");
        stage.conversation.framing.0 = step.clone();
        stage.eof();
        assert!(
            matches!(stage.close(), CloseReason::Framing(_)),
            "{step:?}: {}",
            **stage.reason.as_ref().unwrap()
        );
    }
}

#[test]
fn a_framing_that_names_buffered_bytes_out_of_range_does_not_spin() {
    for step in impossible_steps() {
        let (mut stage, _) = start(Says(step.clone()), echo);
        stage.conversation.buffer(b"four");
        assert!(stage.deliver_kept(), "{step:?}");
        assert!(matches!(stage.close(), CloseReason::Framing(_)), "{step:?}");
    }
}

#[test]
fn a_message_that_cannot_be_framed_is_refused_and_no_part_of_it_is_sent() {
    let unsendable: [(Box<dyn Framing>, &[u8]); 5] = [
        (Box::new(Delimited::new(b"--")), b"a--b"),
        (Box::new(Delimited::new(b"--")), b"a-"),
        (Box::new(FixedSize::new(4)), b"three"),
        (Box::new(LengthPrefixed::new(Width::One, Endian::Big)), &[0; 256]),
        (Box::new(LengthPrefixed::default().max_len(3)), b"four"),
    ];
    for (framing, unsendable) in unsendable {
        let (mut stage, _) = start(framing, |call: &Call, cx: &mut Context<'_>| match call {
            Call::Open => cx.send(unsendable),
            _ => Ok(()),
        });
        assert!(matches!(stage.close(), CloseReason::Error(_)));
        assert_eq!(stage.sent, b"");
    }
}

#[test]
fn the_end_of_input_is_a_separate_event_and_not_an_empty_message() {
    for framing in [
        Box::new(Raw) as Box<dyn Framing>,
        Box::new(Lines::default().unterminated(true)),
        Box::new(FixedSize::new(1)),
    ] {
        let (mut stage, log) = start(framing, echo);
        stage.eof();
        assert!(matches!(stage.close(), CloseReason::Eof));
        let calls = [Call::Open, Call::Eof, Call::Close("end of input".into())];
        assert_eq!(*log.borrow(), calls);
        assert_eq!(stage.tally.messages, 0);
    }
}

#[test]
fn an_empty_line_is_a_message() {
    let (mut stage, log) = start(Lines::default(), echo);
    stage.feed(b"\n\r\n");
    assert_eq!(messages(&log), [b"", b""]);
    assert_eq!(stage.sent, b"\n\n");
}

#[test]
fn a_handler_is_called_in_order() {
    let (mut stage, log) = start(Lines::default(), echo);
    stage.feed(b"one\ntw").feed(b"o\n").eof();
    stage.close();
    let calls =
        [Call::Open, message("one"), message("two"), Call::Eof, Call::Close("end of input".into())];
    assert_eq!(*log.borrow(), calls);
}

#[test]
fn output_of_on_open_is_sent_first() {
    let (mut stage, _) = start(Lines::default(), |call: &Call, cx: &mut Context<'_>| match call {
        Call::Open => cx.send(b"welcome"),
        other => echo(other, cx),
    });
    stage.feed(b"hello\n");
    assert_eq!(stage.sent, b"welcome\nhello\n");
}

#[test]
fn after_a_close_no_message_is_delivered_and_no_output_is_sent() {
    let (mut stage, log) = start(Lines::default(), |call: &Call, cx: &mut Context<'_>| {
        if *call == message("bye") {
            cx.send(b"farewell")?;
            cx.close();
        }
        cx.send(b"too late")
    });
    stage.sent.clear();
    stage.feed(b"bye\nmore\n");
    assert!(stage.is_closing());
    assert!(!stage.conversation.is_aborted());
    assert_eq!(messages(&log), [b"bye"]);
    assert_eq!(stage.sent, b"farewell\n");
    assert!(stage.conversation.read_buffer.is_empty(), "the rest is dropped");
    assert!(matches!(stage.close(), CloseReason::Handler));
}

#[test]
fn a_handler_can_close_in_on_open() {
    let (mut stage, log) = start(Raw, |_: &Call, cx: &mut Context<'_>| {
        cx.close();
        Ok(())
    });
    assert!(stage.is_closing());
    stage.close();
    let calls = [Call::Open, Call::Close("closed by the handler".into())];
    assert_eq!(*log.borrow(), calls);
}

#[test]
fn an_abort_has_the_reason_of_a_close_and_does_not_wait_for_output() {
    let (mut stage, _) = start(Raw, |call: &Call, cx: &mut Context<'_>| {
        if matches!(call, Call::Message(_)) {
            cx.abort();
        }
        Ok(())
    });
    stage.feed(b"x");
    assert!(stage.conversation.is_aborted());
    assert!(matches!(stage.close(), CloseReason::Handler));
}

#[test]
fn an_error_of_any_method_of_the_handler_ends_the_conversation() {
    for fatal in [Call::Open, message("x\n"), Call::Eof, Call::Timeout] {
        let culprit = fatal.clone();
        let (mut stage, log) = start(Raw, move |call: &Call, cx: &mut Context<'_>| {
            cx.send(b"last words")?;
            if *call == culprit {
                Err("no luck")?;
            }
            Ok(())
        });
        stage.sent.clear();
        match fatal {
            Call::Message(_) => stage.feed(b"x\n"),
            Call::Eof => stage.eof(),
            Call::Timeout => stage.time_out(),
            _ => &mut stage,
        };
        let reason = stage.close();
        assert!(reason.is_fault());
        assert_eq!(reason.to_string(), "handler failed: no luck");
        assert_eq!(stage.tally.handler_errors, 1);
        assert_eq!(closes(&log), 1);
        if fatal != Call::Open {
            assert_eq!(stage.sent, b"last words", "what was sent still goes out");
        }
    }
}

#[test]
fn a_panic_of_any_method_of_the_handler_ends_the_conversation() {
    for fatal in [Call::Open, message("x"), Call::Eof, Call::Timeout] {
        let culprit = fatal.clone();
        let (mut stage, log) = start(Raw, move |call: &Call, _: &mut Context<'_>| {
            assert_ne!(*call, culprit, "oh dear");
            Ok(())
        });
        match fatal {
            Call::Message(_) => stage.feed(b"x"),
            Call::Eof => stage.eof(),
            Call::Timeout => stage.time_out(),
            _ => &mut stage,
        };
        assert!(stage.is_closing());
        let CloseReason::Panic(text) = stage.close() else { panic!("a panic") };
        assert!(text.contains("oh dear"));
        assert_eq!(stage.tally.panics, 1);
        assert_eq!(closes(&log), 1);
    }
}

#[test]
fn a_panic_after_a_close_is_the_reported_reason() {
    let (mut stage, _) = start(Raw, |call: &Call, cx: &mut Context<'_>| {
        if matches!(call, Call::Message(_)) {
            cx.close();
            panic!("after all");
        }
        Ok(())
    });
    stage.feed(b"x");
    assert!(stage.close().is_fault());
}

#[test]
fn a_panic_whose_payload_is_not_text_is_reported() {
    let (mut stage, _) = start(Raw, |call: &Call, _: &mut Context<'_>| {
        if matches!(call, Call::Message(_)) {
            std::panic::panic_any(7);
        }
        Ok(())
    });
    stage.feed(b"x");
    assert!(matches!(stage.close(), CloseReason::Panic(text) if text.contains("not text")));
}

#[test]
fn a_panic_in_a_framing_ends_only_the_conversation() {
    struct Panics;
    impl Framing for Panics {
        fn decode(&mut self, _: &[u8]) -> Result<Decoded, FramingError> {
            panic!("cannot read");
        }
        fn encode(&mut self, _: &[u8], _: &mut Output<'_>) -> Result<(), FramingError> {
            panic!("cannot write");
        }
    }
    let (mut stage, _) = start(Panics, echo);
    stage.feed(b"x");
    assert!(matches!(stage.close(), CloseReason::Panic(text) if text == "cannot read"));
    let (mut stage, _) = start(Panics, |_: &Call, cx: &mut Context<'_>| cx.send(b"x"));
    assert!(matches!(stage.close(), CloseReason::Panic(text) if text == "cannot write"));
}

#[test]
fn a_panic_in_on_close_is_caught_and_counted() {
    struct PanicsInOnClose;
    impl Handler for PanicsInOnClose {
        fn on_message(&mut self, _: &[u8], _: &mut Context<'_>) -> HandlerResult {
            Ok(())
        }
        fn on_close(&mut self, _: &CloseReason) {
            panic!("in on_close, on purpose");
        }
    }
    let mut stage = Stage::new(PanicsInOnClose, Raw);
    stage.open().eof();
    assert!(matches!(stage.close(), CloseReason::Panic(_)));
    assert_eq!(stage.tally.panics, 1);
}

#[test]
fn on_close_is_called_once() {
    let (mut stage, log) = start(Raw, echo);
    stage.eof();
    stage.close();
    stage.close();
    assert_eq!(closes(&log), 1);
}

#[test]
fn a_conversation_that_is_told_of_its_close_early_keeps_its_reason_and_its_output() {
    let (mut stage, log) = start(Lines::default(), |call, cx| {
        if matches!(call, Call::Message(_)) {
            cx.set_idle_timeout(Duration::from_secs(60))?;
            cx.send(b"last words")?;
            return Err("on purpose".into());
        }
        Ok(())
    });
    let mut tally = Tally::default();
    stage.step(b"x\n", |conversation, step_cx| {
        conversation.receive(b"x\n", step_cx);
        conversation.notify_close(&mut tally);
    });
    assert_eq!(stage.sent, b"last words\n");
    assert!(stage.is_closing() && !stage.conversation.is_open());
    assert_eq!(stage.conversation.output_timeout(), Some(Duration::from_secs(60)));
    assert_eq!(log.borrow()[2..], [Call::Close("handler failed: on purpose".into())]);
    let mut core = stage.conversation.into_core();
    assert!(matches!(*core.take_close_reason(), CloseReason::Error(_)));
    assert_eq!((closes(&log), tally.handler_errors), (1, 1));
}

#[test]
fn senders_of_a_conversation_that_is_told_of_its_close_early_can_only_abort_it() {
    let (mut stage, sender) = with_sender(Lines::default(), echo);
    sender.send(b"too late").unwrap();
    stage.conversation.end(CloseReason::Handler);
    stage.conversation.notify_close(&mut Tally::default());
    assert_eq!(sender.send(b"later still"), Err(SendError::Closed));
    assert_eq!(stage.conversation.ending(), Ending::Closing);
    sender.abort();
    assert_eq!(stage.conversation.ending(), Ending::Aborted);
    let mut core = stage.conversation.into_core();
    core.take_close_reason();
    assert_eq!(core.ending(), Ending::Open, "it has no queue any more");
    assert!(sender.is_closed());
}

#[test]
fn on_close_is_not_called_if_on_open_was_not() {
    let log = Log::default();
    let handler = Actor { log: log.clone(), act: echo };
    let mut stage = Stage::new(handler, Raw);
    stage.close();
    assert_eq!(*log.borrow(), []);
}

#[test]
fn the_first_reason_to_end_a_conversation_is_kept() {
    let (mut stage, log) = start(Raw, echo);
    let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    stage.conversation.end(CloseReason::Disconnected(reset));
    stage.conversation.end(CloseReason::Shutdown);
    assert!(matches!(stage.close(), CloseReason::Disconnected(_)));
    assert_eq!(stage.tally.disconnects, 1);
    assert_eq!(closes(&log), 1);
}

#[test]
fn a_conversation_closed_without_a_reason_reports_a_shutdown() {
    let (mut stage, _) = start(Raw, echo);
    assert!(matches!(stage.close(), CloseReason::Shutdown));
}

#[test]
fn an_idle_timeout_that_closes_is_the_reported_reason() {
    let (mut stage, log) = start(Raw, echo);
    stage.time_out();
    assert!(stage.is_closing());
    assert!(matches!(stage.close(), CloseReason::Timeout));
    assert_eq!(stage.tally.timeouts, 1);
    assert!(log.borrow().contains(&Call::Timeout));
}

#[test]
fn a_handler_may_send_at_an_idle_timeout_and_stay_open() {
    let (mut stage, _) = start(Lines::default(), |call: &Call, cx: &mut Context<'_>| match call {
        Call::Timeout => cx.send(b"still there?"),
        other => echo(other, cx),
    });
    stage.time_out().time_out();
    assert!(!stage.is_closing());
    assert_eq!(stage.sent, b"still there?\nstill there?\n");
}

#[test]
fn a_change_of_the_idle_timeout_is_reported_to_the_driver_once() {
    let (mut stage, _) = start(Raw, |call: &Call, cx: &mut Context<'_>| {
        match call {
            Call::Open => cx.set_idle_timeout(Duration::from_secs(5))?,
            Call::Message(_) => cx.set_idle_timeout(None)?,
            _ => {}
        }
        Ok(())
    });
    assert_eq!(stage.conversation.idle_timeout(), Some(Duration::from_secs(5)));
    assert!(stage.conversation.take_deadline_changed());
    assert!(!stage.conversation.take_deadline_changed());
    stage.feed(b"x");
    assert_eq!(stage.conversation.idle_timeout(), None);
    assert!(stage.conversation.take_deadline_changed());
}

#[test]
fn a_half_open_conversation_without_timeout_or_sender_is_closed() {
    let (mut stage, _) = start(Raw, |_: &Call, _: &mut Context<'_>| Ok(()));
    stage.eof();
    assert!(stage.is_closing());
    assert!(matches!(stage.close(), CloseReason::Eof));
}

/// Messages of senders are reported by a notification, so the conversation stays on the fast path.
#[test]
fn a_conversation_with_a_sender_stays_on_the_fast_path() {
    let (mut stage, sender) = with_sender(Raw, echo);
    assert!(stage.conversation.is_fast());
    sender.send(b"from a sender").unwrap();
    stage.feed(b"hello");
    assert!(stage.conversation.is_fast());
    stage.drain_send_queue();
    assert!(stage.conversation.is_fast());
    assert_eq!(stage.sent, b"hellofrom a sender");
}

#[test]
fn a_half_open_conversation_with_a_timeout_or_a_sender_stays_open() {
    let (mut stage, _) = start(Raw, |call: &Call, cx: &mut Context<'_>| {
        if *call == Call::Open {
            cx.set_idle_timeout(Duration::from_secs(1))?;
        }
        Ok(())
    });
    stage.eof();
    assert!(!stage.is_closing());
    let (mut stage, sender) = with_sender(Raw, |_: &Call, _: &mut Context<'_>| Ok(()));
    stage.eof();
    assert!(!stage.is_closing());
    sender.send(b"afterwards").unwrap();
    stage.drain_send_queue();
    assert_eq!(stage.sent, b"afterwards");
}

#[test]
fn a_half_open_conversation_ends_when_its_last_sender_is_dropped_and_all_is_sent() {
    let (mut stage, sender) = with_sender(Raw, |_: &Call, _: &mut Context<'_>| Ok(()));
    let other = sender.clone();
    stage.eof();
    drop(sender);
    stage.conversation.end_if_nothing_follows();
    assert!(!stage.is_closing());
    other.send(b"afterwards").unwrap();
    drop(other);
    stage.conversation.end_if_nothing_follows();
    assert!(!stage.is_closing());
    stage.drain_send_queue();
    assert_eq!(stage.sent, b"afterwards");
    stage.conversation.end_if_nothing_follows();
    assert!(stage.is_closing());
    assert!(matches!(stage.close(), CloseReason::Eof));
}

#[test]
fn a_sender_dropped_before_the_end_of_input_does_not_keep_the_conversation_open() {
    let (mut stage, sender) = with_sender(Raw, |_: &Call, _: &mut Context<'_>| Ok(()));
    drop(sender);
    stage.conversation.end_if_nothing_follows();
    assert!(!stage.is_closing(), "the peer may still send");
    stage.eof();
    assert!(stage.is_closing());
}

#[test]
fn a_handler_can_stop_the_server() {
    let (mut stage, _) = start(Raw, |call: &Call, cx: &mut Context<'_>| {
        if matches!(call, Call::Message(_)) {
            cx.stop_server();
        }
        Ok(())
    });
    assert!(!stage.driver.stop_requested.get());
    stage.feed(b"stop");
    assert!(stage.driver.stop_requested.get());
    assert!(!stage.is_closing(), "the server stops, not this conversation");
}

#[test]
fn messages_beyond_the_budget_are_left_for_later() {
    let (mut stage, log) = start(Lines::default(), echo);
    let wire = vec![b'\n'; 3 * MESSAGE_BUDGET - 1];
    stage.step(&wire, |conversation, step_cx| conversation.receive(&wire, step_cx));
    assert_eq!(messages(&log).len(), MESSAGE_BUDGET);
    assert!(stage.conversation.has_blocked_input());
    stage.resume();
    assert_eq!(messages(&log).len(), 2 * MESSAGE_BUDGET);
    assert!(stage.deliver_kept(), "a worker delivers the rest");
    assert_eq!(messages(&log).len(), wire.len());
    assert!(!stage.conversation.has_blocked_input());
    assert_eq!(stage.sent, wire);
}

#[test]
fn after_a_long_message_its_memory_is_released() {
    for kept in [false, true] {
        let (mut stage, log) = start(LengthPrefixed::default(), |_, _| Ok(()));
        let message = vec![7; 8 << 20];
        let wire = encode(&mut LengthPrefixed::default(), &[message]);
        for piece in wire.chunks(64 << 10) {
            stage.step(&[], |conversation, _| conversation.buffer(piece));
        }
        stage.conversation.buffer(b"\0");
        if kept {
            assert!(stage.deliver_kept());
        } else {
            stage.resume();
        }
        assert_eq!(messages(&log).len(), 1);
        assert_eq!(stage.conversation.read_buffer, [0]);
        assert!(stage.conversation.read_buffer.capacity() <= 64 << 10);
    }
}

#[test]
fn output_beyond_the_room_leaves_input_for_later() {
    let (mut stage, log) = start(Lines::default(), echo);
    stage.room = 8;
    let wire = b"one\ntwo\nthree\nfour\nfi";
    stage.step(wire, |conversation, step_cx| conversation.receive(wire, step_cx));
    assert_eq!(messages(&log), [b"one", b"two"], "eight bytes are enough");
    assert!(stage.conversation.has_blocked_input());
    assert!(!stage.conversation.is_idle());
    stage.resume();
    assert_eq!(messages(&log).len(), 4);
    assert!(stage.conversation.has_blocked_input(), "half a line is left");
    stage.resume();
    assert!(!stage.conversation.has_blocked_input());
    stage.feed(b"ve\n");
    assert_eq!(stage.sent, b"one\ntwo\nthree\nfour\nfive\n");
    assert!(stage.conversation.is_idle());
}

#[test]
fn one_answer_may_be_larger_than_the_room() {
    let (mut stage, log) = start(Lines::default(), |call: &Call, cx: &mut Context<'_>| {
        if matches!(call, Call::Message(_)) {
            cx.send(&[b'x'; 1000])?;
        }
        Ok(())
    });
    stage.room = 10;
    stage.feed(b"a\nb\nc\n");
    assert_eq!(messages(&log), [b"a", b"b", b"c"]);
    assert_eq!(stage.sent.len(), 3003);
}

#[test]
fn half_a_line_buffered_for_a_worker_does_not_start_a_job() {
    let (mut stage, _) = start(Lines::default(), echo);
    stage.room = 1;
    stage.conversation.buffer(b"one\ntw");
    assert!(stage.deliver_kept());
    assert!(stage.conversation.has_blocked_input());
    assert!(!stage.deliver_kept(), "half a line is left");
    assert!(!stage.conversation.has_blocked_input(), "no message is complete");
}

/// A framing may have state: here, the first frame is one byte and all others are two.
#[test]
fn peeking_decodes_no_frame_twice() {
    struct Growing(usize);
    impl Framing for Growing {
        fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
            if input.len() < self.0 {
                return Ok(Decoded::Incomplete);
            }
            let consumed = std::mem::replace(&mut self.0, 2);
            Ok(Decoded::Frame { body: 0..consumed, consumed })
        }
        fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
            output.put(message);
            Ok(())
        }
    }
    let (mut stage, log) = start(Growing(1), echo);
    for piece in [&b"abb"[..], b"c", b"c"] {
        stage.conversation.buffer(piece);
        stage.deliver_kept();
    }
    assert_eq!(messages(&log), [&b"a"[..], b"bb", b"cc"]);
}

#[test]
fn an_idle_conversation_owns_no_buffer() {
    let (mut stage, _) = start(Lines::default(), echo);
    stage.feed(b"half a li").feed(b"ne\n");
    assert_eq!(stage.conversation.read_buffer.capacity(), 0);
    assert!(stage.conversation.is_idle());
    // The same after the frame was peeked for a worker.
    let lines = Lines::default().max_len(2).overlong(Overlong::Discard);
    let (mut stage, _) = start(lines, echo);
    stage.conversation.buffer(b"much too long\n");
    assert!(!stage.deliver_kept());
    assert_eq!(stage.conversation.read_buffer.capacity(), 0);
}

/// How many bytes of the answer to `wire` are copied; the rest refers to `wire`.
fn copied(framing: impl Framing + Clone, wire: &[u8], split: usize) -> usize {
    let (mut stage, _) = start(framing, |_: &Call, _: &mut Context<'_>| Ok(()));
    stage.feed(&wire[..split]);
    let received = Rc::default();
    let mut echoing = Stage::new(Echo(received), stage.conversation.framing.clone());
    echoing.conversation.read_buffer = stage.conversation.core.read_buffer;
    let fresh = &wire[split..];
    let mut step_cx =
        StepCx::new(&mut echoing.output_buffer, &mut echoing.tally, &echoing.driver, PLENTY);
    echoing.conversation.receive(fresh, &mut step_cx);
    let input = echoing.conversation.input(fresh);
    let range = input.as_ptr_range();
    let parts: Vec<_> = echoing.output_buffer.parts(input).collect();
    assert_eq!(parts.concat(), wire);
    parts.iter().filter(|part| !range.contains(&part.as_ptr())).map(|part| part.len()).sum()
}

#[test]
fn an_answer_that_repeats_its_input_is_not_copied() {
    assert_eq!(copied(Raw, &[7; 5000], 0), 0);
    assert_eq!(copied(Lines::default(), b"one\ntwo\nthree\n", 0), 0);
    assert_eq!(copied(Delimited::new(b"#-#"), b"one#-#two#-#", 0), 0);
    assert_eq!(copied(FixedSize::new(3), b"onetwo", 0), 0);
    // The first length is encoded anew; the second is the same memory as in the input.
    let framed = b"\0\0\0\x03one\0\0\0\x03two";
    assert_eq!(copied(LengthPrefixed::default(), framed, 0), 4);
}

#[test]
fn an_answer_that_repeats_input_received_in_pieces_is_not_copied() {
    assert_eq!(copied(Lines::default(), b"one\ntwo\nthree\n", 2), 0);
    assert_eq!(copied(FixedSize::new(3), b"onetwo", 1), 0);
}

#[test]
fn a_shared_message_is_framed_and_not_copied() {
    let payload: Arc<[u8]> = vec![b'x'; 100_000].into();
    let shared = payload.clone();
    let (mut stage, _) = start(Lines::default(), |_: &Call, _: &mut Context<'_>| Ok(()));
    let mut step_cx =
        StepCx::new(&mut stage.output_buffer, &mut stage.tally, &stage.driver, PLENTY);
    let (_, mut cx) = stage.conversation.parts(&[], &mut step_cx);
    cx.send_shared(&shared).unwrap();
    let parts: Vec<_> = stage.output_buffer.parts(&[]).collect();
    assert_eq!(parts.concat(), [&payload[..], b"\n"].concat());
    assert_eq!(parts[0].as_ptr(), payload.as_ptr());
}

/// A conversation whose handler has asked for a sender, and the sender.
fn with_sender<A, F>(framing: F, mut act: A) -> (Stage<impl Handler, F>, Sender)
where
    A: FnMut(&Call, &mut Context<'_>) -> HandlerResult,
    F: Framing,
{
    let handed = Rc::new(RefCell::new(None));
    let out = handed.clone();
    let (stage, _) = start(framing, move |call: &Call, cx: &mut Context<'_>| {
        if *call == Call::Open {
            *out.borrow_mut() = Some(cx.sender()?);
        }
        act(call, cx)
    });
    let sender = handed.borrow_mut().take().expect("a sender");
    (stage, sender)
}

#[test]
fn messages_of_senders_are_framed_and_keep_their_order() {
    let (mut stage, sender) = with_sender(Lines::default(), echo);
    stage.feed(b"hal");
    sender.send(b"one").unwrap();
    sender.clone().send(b"two").unwrap();
    stage.drain_send_queue();
    assert_eq!(stage.sent, b"one\ntwo\n");
    stage.feed(b"f\n");
    assert_eq!(stage.sent, b"one\ntwo\nhalf\n", "the undelivered input is unchanged");
}

#[test]
fn senders_of_one_conversation_are_equal() {
    let senders = Rc::new(RefCell::new(Vec::new()));
    let out = senders.clone();
    let (_stage, _) = start(Raw, move |_: &Call, cx: &mut Context<'_>| {
        out.borrow_mut().extend([cx.sender()?, cx.sender()?]);
        Ok(())
    });
    let (_other, stranger) = with_sender(Raw, echo);
    let senders = senders.borrow();
    assert!(senders[0].is_same(&senders[1]));
    assert!(!senders[0].is_same(&stranger));
}

#[test]
fn messages_of_senders_are_taken_up_to_the_room() {
    let (mut stage, sender) = with_sender(Raw, echo);
    stage.room = 3;
    for _ in 0..3 {
        sender.send(b"xx").unwrap();
    }
    stage.drain_send_queue();
    assert_eq!(stage.sent, b"xxxx");
    assert!(!stage.conversation.send_queue().unwrap().is_empty());
    stage.drain_send_queue();
    assert_eq!(stage.sent, b"xxxxxx");
}

#[test]
fn a_close_of_a_sender_takes_effect_after_its_messages() {
    let (mut stage, sender) = with_sender(Raw, echo);
    sender.send(b"last").unwrap();
    sender.close();
    let _ = sender.send(b"too late");
    stage.drain_send_queue();
    assert!(stage.is_closing());
    assert_eq!(stage.sent, b"last");
    assert!(matches!(stage.close(), CloseReason::Handler));
    assert_eq!(sender.send(b"x"), Err(SendError::Closed));
    assert!(sender.is_closed());
}

#[test]
fn a_message_that_cannot_be_framed_is_refused_by_its_sender() {
    let refused_by = |framing: LengthPrefixed, message: &[u8]| {
        let (_stage, sender) = with_sender(framing, echo);
        sender.send(message).unwrap_err()
    };
    let short = LengthPrefixed::default().max_len(4);
    assert_eq!(refused_by(short, b"three"), SendError::TooLong { limit: 4 });
    let narrow = LengthPrefixed::new(Width::One, Endian::Big);
    assert_eq!(refused_by(narrow, &[0; 256]), SendError::TooLong { limit: 255 });
    let (_stage, sender) = with_sender(FixedSize::new(4), echo);
    assert!(matches!(sender.send(b"three"), Err(SendError::Unencodable(_))));
    let (_stage, sender) = with_sender(Delimited::new(b"#-#"), echo);
    for message in ["a#-#b", "a#-"] {
        assert!(matches!(sender.send(message.as_bytes()), Err(SendError::Unencodable(_))));
    }
    assert_eq!(sender.send(b"a-#-b"), Ok(()));
}

/// A framing that writes a message and then refuses it.
#[derive(Clone)]
struct RefusesBad;

impl Framing for RefusesBad {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        Raw.decode(input)
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        output.put(message);
        if message == b"bad" { Err(FramingError::Unencodable("bad")) } else { Ok(()) }
    }
}

#[test]
fn a_message_of_a_sender_that_only_the_framing_refuses_is_dropped_and_counted() {
    let (mut stage, sender) = with_sender(RefusesBad, echo);
    for message in ["one", "bad", "two", "bad"] {
        sender.send(message.as_bytes()).unwrap();
    }
    stage.drain_send_queue();
    assert!(!stage.is_closing());
    assert_eq!(stage.sent, b"onetwo");
    assert_eq!(stage.tally.unsent, 2);
}

#[test]
fn a_boxed_framing_forwards_encodable() {
    let boxed: Box<dyn Framing> = Box::new(FixedSize::new(4));
    assert_eq!(boxed.encodable(), Encodable::Exactly(4));
}

#[test]
fn an_abort_of_a_sender_drops_its_messages() {
    let (mut stage, sender) = with_sender(Raw, echo);
    sender.send(b"last").unwrap();
    sender.close();
    sender.abort();
    assert_eq!(stage.conversation.ending(), Ending::Aborted);
    stage.drain_send_queue();
    assert!(stage.conversation.is_aborted());
    assert_eq!(stage.sent, b"");
    assert!(matches!(stage.close(), CloseReason::Handler));
}

/// Serves a datagram; returns the replies, the close reason and the handler's calls.
fn datagram<A>(
    packet: &[u8],
    truncated: bool,
    act: A,
) -> (Vec<Vec<u8>>, CatchDrop<CloseReason>, Vec<Call>)
where
    A: FnMut(&Call, &mut Context<'_>) -> HandlerResult,
{
    let (mut output_buffer, mut tally) = (OutputBuffer::default(), Tally::default());
    let senders = nowhere();
    let mut step_cx = StepCx::new(&mut output_buffer, &mut tally, &senders, PLENTY);
    let log = Log::default();
    let handler = Actor { log: log.clone(), act };
    let reason =
        serve_datagram(handler.into(), Peer::Unnamed, None, packet, truncated, &mut step_cx);
    let sent = output_buffer.parts(packet).map(<[u8]>::to_vec).collect();
    let calls = log.borrow().clone();
    (sent, reason, calls)
}

#[test]
fn a_datagram_is_a_conversation_of_one_message() {
    let (sent, reason, calls) = datagram(b"one\ntwo", false, echo);
    assert_eq!(sent, [b"one\ntwo"]);
    assert!(matches!(*reason, CloseReason::Handler));
    let close = Call::Close("closed by the handler".into());
    assert_eq!(calls, [Call::Open, message("one\ntwo"), close]);
}

#[test]
fn an_empty_datagram_is_an_empty_message_and_can_be_answered_by_one() {
    let (sent, _, calls) = datagram(b"", false, echo);
    assert_eq!(sent, [b""]);
    assert_eq!(calls[1], message(""));
}

#[test]
fn each_send_to_a_datagrams_peer_is_a_datagram() {
    let (sent, ..) = datagram(b"twice", false, |call: &Call, cx: &mut Context<'_>| {
        if let Call::Message(message) = call {
            cx.send(message)?;
            cx.send(&message[..2])?;
        }
        Ok(())
    });
    assert_eq!(sent, [&b"twice"[..], b"tw"]);
}

#[test]
fn asking_for_a_sender_or_a_timeout_of_a_datagram_is_a_typed_error() {
    let (.., call) = datagram(b"x", true, |call: &Call, cx: &mut Context<'_>| {
        assert_eq!(cx.sender().unwrap_err(), UnsupportedError::DatagramSender);
        let timeout = cx.set_idle_timeout(Duration::from_secs(1));
        assert_eq!(timeout, Err(UnsupportedError::DatagramTimeout));
        assert!(cx.is_truncated());
        echo(call, cx)
    });
    assert_eq!(call.len(), 3, "no assertion failed");
}

#[test]
fn the_effects_of_a_stream_change_nothing_for_a_datagram() {
    let (sent, reason, calls) = datagram(b"x", false, |call: &Call, cx: &mut Context<'_>| {
        if matches!(call, Call::Close(_)) {
            return Ok(());
        }
        assert_eq!(cx.room(), usize::MAX);
        assert_eq!(cx.set_timer(cx.now()), Err(UnsupportedError::DatagramTimeout));
        assert!(cx.framing::<Raw>().is_none());
        cx.pause_input();
        cx.set_busy(true);
        cx.finish_output();
        cx.send(b"reply")?;
        if matches!(call, Call::Message(_)) {
            cx.close();
            cx.send(b"dropped")?;
        }
        Ok(())
    });
    assert_eq!(sent, [b"reply", b"reply"]);
    assert!(matches!(*reason, CloseReason::Handler), "{reason:?}");
    assert_eq!(calls.len(), 3);
}

#[test]
fn a_fault_in_the_handler_of_a_datagram_is_reported_and_earlier_replies_are_sent() {
    let (sent, reason, calls) = datagram(b"x", false, |call: &Call, cx: &mut Context<'_>| {
        if matches!(call, Call::Message(_)) {
            cx.send(b"sorry")?;
            Err("broken")?;
        }
        Ok(())
    });
    assert_eq!(sent, [b"sorry"]);
    assert!(matches!(*reason, CloseReason::Error(_)));
    assert_eq!(calls.len(), 3);
    let (_, reason, _) = datagram(b"x", false, |_: &Call, _: &mut Context<'_>| panic!("no"));
    assert!(matches!(*reason, CloseReason::Panic(_)));
}

#[test]
fn a_closure_is_a_handler_that_closes_at_the_end() {
    let handler = handler_fn(|message, cx| cx.send(message));
    let mut stage = Stage::new(handler, Lines::default());
    stage.open().feed(b"hello\n").eof();
    assert_eq!(stage.sent, b"hello\n");
    assert!(matches!(stage.close(), CloseReason::Eof));
}

#[test]
fn a_boxed_framing_frames_as_the_one_in_it() {
    let discarding = Lines::default().max_len(3).overlong(Overlong::Discard);
    let mut boxed: Box<dyn Framing + Send> = Box::new(discarding);
    assert_eq!(boxed.decode(b"too long").unwrap(), Decoded::Skip(8));
    assert_eq!(boxed.decode(b"x\n").unwrap(), Decoded::Skip(2));
    assert_eq!(boxed.decode(b"abc\n").unwrap(), Decoded::Frame { body: 0..3, consumed: 4 });
    assert!(boxed.decode_eof(b"abc").is_err());
    boxed = Box::new(Lines::default().unterminated(true));
    assert_eq!(boxed.decode_eof(b"abc").unwrap(), Decoded::Frame { body: 0..3, consumed: 3 });
    boxed = Box::new(FixedSize::new(4));
    assert_eq!(boxed.encodable(), FixedSize::new(4).encodable());
}

/// A handler that answers nothing.
fn quiet(_: &Call, _: &mut Context<'_>) -> HandlerResult {
    Ok(())
}

#[test]
fn on_writable_is_called_when_there_is_room_again_after_room_returned_0() {
    let (mut stage, log) = start(Lines::default(), |call, cx| {
        if matches!(call, Call::Message(_) | Call::Writable) {
            while cx.room() > 0 {
                cx.send(b"12345")?;
            }
        }
        Ok(())
    });
    stage.room = 10;
    assert!(!stage.conversation.wants_writable());
    stage.feed(b"go\n");
    assert_eq!(stage.sent, b"12345\n12345\n");
    assert!(stage.conversation.wants_writable());
    assert!(!stage.conversation.is_fast() && !stage.conversation.is_idle());
    stage.step(&[], Conversation::writable);
    assert_eq!(stage.sent.len(), 24);
    assert_eq!(*log.borrow(), [Call::Open, message("go"), Call::Writable]);
}

#[test]
fn a_handler_that_does_not_ask_for_room_is_not_called_when_there_is_room() {
    let (mut stage, _) = start(Lines::default(), echo);
    stage.room = 1;
    stage.feed(b"one\ntwo\n");
    assert_eq!(stage.sent, b"one\ntwo\n");
    assert!(!stage.conversation.wants_writable());
}

#[test]
fn a_timer_is_set_for_one_call_and_its_handler_can_set_it_again() {
    let start_time = Instant::now();
    let at = |seconds| start_time + Duration::from_secs(seconds);
    let (mut stage, log) = start(Raw, move |call, cx| {
        match call {
            Call::Open => cx.set_timer(at(5))?,
            Call::Message(_) => cx.set_timer(at(7))?,
            _ => {}
        }
        Ok(())
    });
    assert_eq!(stage.conversation.timer(), Some(at(5)));
    assert!(stage.conversation.take_deadline_changed());
    stage.feed(b"x");
    assert_eq!(stage.conversation.timer(), Some(at(7)));
    stage.step(&[], Conversation::timer_expired);
    assert_eq!(stage.conversation.timer(), None);
    assert_eq!(*log.borrow(), [Call::Open, message("x"), Call::Timer]);
}

#[test]
fn a_closing_conversation_has_no_timer() {
    let (mut stage, _) = start(Raw, |call, cx| {
        cx.set_timer(Instant::now())?;
        if matches!(call, Call::Message(_)) {
            cx.close();
        }
        Ok(())
    });
    stage.feed(b"x");
    assert_eq!(stage.conversation.timer(), None);
}

#[test]
fn events_and_messages_of_a_sender_keep_their_order() {
    let sender = Rc::new(RefCell::new(None));
    let own = sender.clone();
    let (mut stage, log) = start(Lines::default(), move |call, cx| {
        match call {
            Call::Open => *own.borrow_mut() = Some(cx.sender()?),
            Call::Event(number) => cx.send(number.to_string().as_bytes())?,
            _ => {}
        }
        Ok(())
    });
    let sender = sender.borrow_mut().take().unwrap();
    sender.post(Box::new(1u32)).unwrap();
    sender.send(b"two").unwrap();
    sender.post(Box::new(3u32)).unwrap();
    stage.drain_send_queue();
    assert_eq!(stage.sent, b"1\ntwo\n3\n");
    assert_eq!(*log.borrow(), [Call::Open, Call::Event(1), Call::Event(3)]);
    stage.conversation.end(CloseReason::Shutdown);
    stage.close();
    assert_eq!(sender.post(Box::new(4u32)), Err(SendError::Closed));
}

#[test]
fn a_bad_frame_is_answered_before_the_close_and_the_reason_stays_the_frame() {
    let (mut stage, log) = start(LengthPrefixed::default().max_len(3), |call, cx| {
        if matches!(call, Call::Reject(_)) {
            cx.send(b"bad")?;
            cx.close();
        }
        Ok(())
    });
    stage.feed(&[0, 0, 0, 9]);
    assert_eq!(stage.sent, [0, 0, 0, 3, b'b', b'a', b'd']);
    assert!(matches!(stage.close(), CloseReason::Framing(FramingError::TooLong { limit: 3 })));
    assert!(matches!(&log.borrow()[..], [Call::Open, Call::Reject(_), Call::Close(_)]));
    assert_eq!(stage.tally.framing_errors, 1);
}

#[test]
fn an_error_of_on_reject_is_the_reason() {
    let (mut stage, _) = start(FixedSize::new(2), |call, _| match call {
        Call::Reject(_) => Err("on purpose".into()),
        _ => Ok(()),
    });
    stage.feed(b"x").eof();
    assert!(matches!(stage.close(), CloseReason::Error(_)));
}

#[test]
fn no_message_is_delivered_while_the_input_is_paused_and_none_is_lost() {
    let (mut stage, log) = start(Lines::default(), |call, cx| {
        match call {
            Call::Message(line) if line == b"wait" => cx.pause_input(),
            Call::Timer => cx.resume_input(),
            _ => {}
        }
        Ok(())
    });
    stage.feed(b"one\nwait\ntwo\nthr");
    assert!(stage.conversation.is_paused() && stage.conversation.has_undelivered_input());
    assert!(!stage.conversation.has_blocked_input(), "the paused input is not delivered");
    assert_eq!(messages(&log), [b"one".to_vec(), b"wait".to_vec()]);
    stage.step(&[], Conversation::timer_expired);
    assert!(stage.conversation.has_blocked_input());
    stage.resume();
    stage.feed(b"ee\n");
    assert_eq!(messages(&log)[2..], [b"two".to_vec(), b"three".to_vec()]);
}

#[test]
fn a_paused_conversation_that_nothing_can_resume_ends() {
    for rescue in 0..3 {
        let (mut stage, _) = start(Raw, move |call, cx| {
            match (call, rescue) {
                (Call::Open, 1) => cx.set_timer(cx.now() + Duration::from_secs(1))?,
                (Call::Open, 2) => cx.set_idle_timeout(Duration::from_secs(1))?,
                (Call::Message(_), _) => cx.pause_input(),
                _ => {}
            }
            Ok(())
        });
        stage.conversation.end_if_nothing_follows();
        assert!(!stage.is_closing());
        stage.feed(b"x");
        stage.conversation.end_if_nothing_follows();
        assert_eq!(stage.is_closing(), rescue == 0);
    }
}

#[test]
fn on_eof_is_called_while_paused_if_no_undelivered_input_precedes_the_end() {
    let pause = |call: &Call, cx: &mut Context<'_>| {
        match call {
            Call::Open => cx.set_timer(cx.now())?,
            Call::Message(_) => cx.pause_input(),
            Call::Timer => cx.resume_input(),
            _ => {}
        }
        Ok(())
    };
    let (mut stage, log) = start(Lines::default(), pause);
    stage.feed(b"one\n").eof();
    assert_eq!(log.borrow()[1..], [message("one"), Call::Eof]);

    for by_eof in [false, true] {
        let (mut stage, log) = start(Lines::default().unterminated(true), pause);
        stage.feed(b"one\ntwo").eof();
        assert_eq!(log.borrow()[1..], [message("one")]);
        stage.step(&[], Conversation::timer_expired);
        assert!(stage.conversation.has_blocked_input());
        match by_eof {
            true => _ = stage.eof(),
            false => stage.resume(),
        }
        assert_eq!(log.borrow()[2..], [Call::Timer, message("two"), Call::Eof]);
        assert!(!stage.conversation.has_blocked_input());
    }
}

/// Delivers what was kept and then the end, if it is next; whether the end was call.
fn deliver_kept_and_end<H: Handler, F: Framing>(stage: &mut Stage<H, F>) -> bool {
    let mut peeked = stage.conversation.peek_frame().expect("a whole message");
    stage.step(&[], |conversation, step_cx| {
        conversation.receive_buffered(&mut peeked, step_cx);
        conversation.eof_if_next(step_cx);
    });
    stage.conversation.input_ended()
}

#[test]
fn the_end_is_told_with_the_last_messages_where_nothing_is_left_before_it() {
    let (mut stage, log) = start(Lines::default().unterminated(true), echo);
    stage.conversation.buffer(b"one\ntwo");
    assert!(deliver_kept_and_end(&mut stage));
    assert_eq!(log.borrow()[1..], [message("one"), message("two"), Call::Eof]);
    assert_eq!(stage.sent, b"one\ntwo\n");
}

#[test]
fn the_end_is_left_to_be_read_again_where_messages_or_output_come_before_it() {
    let lines = "x\n".repeat(MESSAGE_BUDGET + 2);
    let (mut stage, log) = start(Lines::default(), echo);
    stage.conversation.buffer(lines.as_bytes());
    assert!(!deliver_kept_and_end(&mut stage), "the budget is used up");
    assert!(deliver_kept_and_end(&mut stage));
    assert_eq!(messages(&log).len(), MESSAGE_BUDGET + 2);

    let (mut stage, _) = start(Lines::default(), echo);
    stage.room = 2;
    stage.conversation.buffer(b"x\n");
    assert!(!deliver_kept_and_end(&mut stage), "the output has no room left");
    stage.step(&[], Conversation::eof_if_next);
    assert!(stage.conversation.input_ended());

    let (mut stage, log) = start(Lines::default(), |call, cx| {
        if *call == message("pause") {
            cx.pause_input();
        }
        echo(call, cx)
    });
    stage.conversation.buffer(b"pause\none\n");
    assert!(!deliver_kept_and_end(&mut stage), "the input is paused");
    assert_eq!(messages(&log), [b"pause"]);
}

#[test]
fn a_conversation_that_is_idle_after_the_stop_is_told_of_ends_with_it_and_any_other_goes_on() {
    for (kept, unsent, ends) in
        [(&b""[..], false, true), (b"half", false, false), (b"", true, false)]
    {
        let (mut stage, log) = start(Lines::default(), move |call, cx| {
            if unsent && *call == Call::Stop {
                cx.room();
            }
            Ok(())
        });
        stage.room = if unsent { 0 } else { PLENTY };
        stage.conversation.buffer(kept);
        stage.step(&[], Conversation::stop_if_idle);
        assert_eq!(stage.is_closing(), ends);
        assert_eq!(*log.borrow(), [Call::Open, Call::Stop]);
    }
    let (mut stage, sender) = with_sender(Lines::default(), echo);
    sender.send(b"not yet").unwrap();
    stage.step(&[], Conversation::stop_if_idle);
    assert!(!stage.is_closing(), "a message of a sender waits");
    stage.drain_send_queue();
    stage.step(&[], Conversation::stop_if_idle);
    assert!(matches!(stage.close(), CloseReason::Shutdown));
}

#[test]
fn on_stop_is_called_once_and_what_it_sends_goes_out() {
    let (mut stage, log) = start(Lines::default(), |call, cx| match call {
        Call::Stop => cx.send(b"goodbye"),
        _ => Ok(()),
    });
    stage.step(&[], Conversation::stop);
    stage.step(&[], Conversation::stop);
    assert_eq!(stage.sent, b"goodbye\n");
    assert!(!stage.is_closing() && stage.conversation.is_idle());
    assert_eq!(*log.borrow(), [Call::Open, Call::Stop]);
}

#[test]
fn a_conversation_whose_input_is_paused_is_not_idle() {
    let (mut stage, _) = start(Lines::default(), |call, cx| {
        match call {
            Call::Message(_) => cx.pause_input(),
            Call::Timer => cx.resume_input(),
            _ => {}
        }
        Ok(())
    });
    stage.feed(b"one\n");
    assert!(!stage.conversation.has_undelivered_input() && !stage.conversation.is_idle());
    stage.step(&[], Conversation::timer_expired);
    stage.resume();
    assert!(stage.conversation.is_idle());
}

#[test]
fn a_finished_output_is_reported_once_and_later_output_is_dropped() {
    let (mut stage, log) = start(Lines::default(), |call, cx| match call {
        Call::Message(_) => {
            cx.send(b"last")?;
            cx.finish_output();
            std::io::Write::write_all(&mut cx.output(), b"dropped")?;
            cx.send(b"dropped")
        }
        _ => Ok(()),
    });
    stage.feed(b"one\n");
    assert!(stage.conversation.take_output_end() && !stage.conversation.take_output_end());
    stage.feed(b"two\n");
    assert_eq!(stage.sent, b"last\n");
    assert_eq!(messages(&log).len(), 2);
    assert!(!stage.conversation.take_output_end());
}

#[test]
fn unframed_output_keeps_its_order_among_messages() {
    let (mut stage, _) = start(Lines::default(), |call, cx| {
        if let Call::Message(line) = call {
            cx.send(line)?;
            std::io::Write::write_all(&mut cx.output(), b"raw ")?;
            cx.output().put(line);
            cx.send(b"!")?;
        }
        Ok(())
    });
    stage.feed(b"one\n");
    assert_eq!(stage.sent, b"one\nraw one!\n");
}

/// Lines until the handler asks for blocks of four bytes; it keeps the length of the last message.
#[derive(Debug, Default)]
struct Switching {
    blocks: bool,
    last: usize,
}

impl Framing for Switching {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        let step = if self.blocks {
            FixedSize::new(4).decode(input)
        } else {
            Lines::default().decode(input)
        };
        if let Ok(Decoded::Frame { body, .. }) = &step {
            self.last = body.len();
        }
        step
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        output.put(message);
        Ok(())
    }
}

#[test]
fn after_a_handler_changes_its_framing_the_next_bytes_are_decoded_with_it() {
    let act = |call: &Call, cx: &mut Context<'_>| {
        assert!(cx.framing::<Lines>().is_none());
        if let Call::Message(text) = call {
            let framing = cx.framing::<Switching>().unwrap();
            assert_eq!(framing.last, text.len());
            framing.blocks ^= text == b"blocks" || text == b"line";
        }
        Ok(())
    };
    let expected = ["a", "blocks", "1234", "line", "b"].map(|text| text.as_bytes().to_vec());
    let (mut stage, log) = start(Switching::default(), act);
    stage.feed(b"a\nblocks\n1234lineb\n");
    assert_eq!(messages(&log), expected);
    let boxed: Box<dyn Framing + Send> = Box::new(Switching::default());
    let (mut stage, log) = start(boxed, act);
    stage.feed(b"a\nblocks\n1234lineb\n");
    assert_eq!(messages(&log), expected);
}

#[test]
fn memory_for_a_long_frame_is_reserved_at_most_twice_what_has_arrived() {
    let (mut stage, log) = start(LengthPrefixed::default().max_len(1 << 30), quiet);
    let length: usize = 1 << 20;
    stage.feed(&u32::try_from(1 << 30).unwrap().to_be_bytes());
    assert!(stage.conversation.read_buffer.capacity() <= 64 * 1024);
    let (mut stage, log) = (start(LengthPrefixed::default().max_len(1 << 30), quiet).0, log);
    stage.feed(&u32::try_from(length).unwrap().to_be_bytes());
    for arrived in 1..length / 4096 {
        stage.feed(&[7; 4096]);
        let capacity = stage.conversation.read_buffer.capacity();
        assert!(capacity <= (2 * 4096 * arrived + 8).max(64 * 1024), "{capacity} of {arrived}");
    }
    stage.feed(&[7; 4096]);
    assert_eq!(stage.tally.messages, 1);
    drop(log);
}

/// Sends a part and asks for room, until three parts are sent.
fn three_parts() -> impl FnMut(&Call, &mut Context<'_>) -> HandlerResult {
    let mut parts = 0;
    move |call, cx| {
        if matches!(call, Call::Message(_) | Call::Writable) && parts < 3 {
            parts += 1;
            cx.send(b"12345")?;
            cx.room();
        }
        Ok(())
    }
}

/// A handler whose end of the input is handled by default.
struct DefaultEof<A>(A);

impl<A: FnMut(&Call, &mut Context<'_>) -> HandlerResult> Handler for DefaultEof<A> {
    fn on_message(&mut self, text: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        (self.0)(&Call::Message(text.to_vec()), cx)
    }

    fn on_writable(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        (self.0)(&Call::Writable, cx)
    }
}

#[test]
fn by_default_the_end_of_input_does_not_cut_an_answer_in_parts() {
    let mut stage = Stage::new(DefaultEof(three_parts()), Lines::default());
    stage.room = 1;
    stage.open().feed(b"go\n").eof();
    assert!(!stage.conversation.is_closing());
    stage.step(&[], Conversation::writable);
    assert!(!stage.conversation.is_closing());
    stage.step(&[], Conversation::writable);
    stage.step(&[], Conversation::writable);
    assert_eq!(stage.sent, b"12345\n12345\n12345\n");
    assert!(matches!(stage.close(), CloseReason::Eof));
}

#[test]
fn a_framing_that_on_timer_changes_is_applied_to_buffered_bytes() {
    let framing: Box<dyn Framing + Send> = Box::new(Lines::default());
    let (mut stage, log) = start(framing, |call, cx| {
        if matches!(call, Call::Timer) {
            let framing = cx.framing::<Box<dyn Framing + Send>>().unwrap();
            *framing = Box::new(FixedSize::new(3));
        }
        Ok(())
    });
    stage.feed(b"abcde");
    assert!(!stage.conversation.has_blocked_input());
    stage.step(&[], Conversation::timer_expired);
    assert!(stage.conversation.has_blocked_input());
    stage.feed(b"");
    assert_eq!(*log.borrow(), [Call::Open, Call::Timer, message("abc")]);
    assert!(!stage.conversation.has_blocked_input());
}

#[test]
fn a_new_sender_checks_what_the_current_framing_can_send() {
    let framing: Box<dyn Framing + Send> = Box::new(Delimited::new(b"||"));
    let senders = Rc::new(RefCell::new(Vec::new()));
    let handed = senders.clone();
    let (mut stage, _) = start(framing, move |call, cx| {
        if matches!(call, Call::Message(_)) {
            *cx.framing::<Box<dyn Framing + Send>>().unwrap() = Box::new(FixedSize::new(4));
        }
        handed.borrow_mut().push(cx.sender()?);
        Ok(())
    });
    stage.feed(b"switch||");
    let senders = senders.borrow();
    assert!(matches!(senders[0].send(b"a||b"), Err(SendError::Unencodable(_))));
    assert_eq!(senders[1].send(b"a||b"), Ok(()));
    assert!(matches!(senders[1].send(b"five5"), Err(SendError::Unencodable(_))));
}

#[test]
fn the_output_of_a_datagram_to_which_nothing_is_written_sends_nothing() {
    let replies = |act: fn(&mut Context<'_>)| {
        datagram(b"ask", false, move |call: &Call, cx: &mut Context<'_>| {
            if matches!(call, Call::Message(_)) {
                act(cx);
            }
            Ok(())
        })
        .0
    };
    assert_eq!(replies(|cx| _ = cx.output()), Vec::<Vec<u8>>::new());
    assert_eq!(replies(|cx| cx.output().put(b"")), [b""]);
    let two = replies(|cx| {
        let mut output = cx.output();
        output.put(b"one ");
        output.put(b"datagram");
        cx.output().put(b"another");
    });
    assert_eq!(two, [&b"one datagram"[..], b"another"]);
    let sent_after = replies(|cx| {
        cx.output();
        cx.send(b"sent").unwrap();
    });
    assert_eq!(sent_after, [b"sent"]);
}
