//! A handler makes a long stream while there is room, and goes on in `on_writable`: the stream arrives whole,
//! and the server keeps no more of it in memory than a few times the water marks.

#![allow(unreachable_pub)] // a module of a test is public to nobody

use std::io::Read as _;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use socketserver::{CloseReason, Context, Handler, HandlerResult, Raw, Service};

use super::heap::Heap;
use super::process::Stream;
use super::server::{Cell, Checker, Setup, pattern, print_line, violation};
use super::{Power, powers};

/// How long a stream is, in bytes; set by `--full`.
pub static LENGTH: AtomicU64 = AtomicU64::new(64 << 20);

const HIGH: usize = 256 * 1024;
const LOW: usize = 64 * 1024;

/// What `room` returns while no output waits.
const ROOM: usize = 64 * 1024;

/// How much memory a stream may take: the write buffer up to the high mark, the output of one call of the
/// handler, and as much again while a buffer grows.
const MEMORY: usize = 2 * HIGH;

/// How much is sent at a time: no divisor of any mark.
const CHUNK: usize = 10_007;

#[derive(Debug, Default)]
struct Streaming {
    heap: Heap,
    made: u64,
    length: u64,
    calls: usize,
}

impl Streaming {
    fn go_on(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        while self.made < self.length {
            if cx.room() == 0 {
                return Ok(());
            }
            let left = usize::try_from(self.length - self.made).unwrap_or(usize::MAX);
            let chunk = pattern(self.made, left.min(CHUNK));
            cx.send(chunk)?;
            self.made += chunk.len() as u64;
        }
        cx.close();
        Ok(())
    }
}

impl Handler for Streaming {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if self.length > 0 {
            print_line(format_args!("{} after {}", message.escape_ascii(), self.made));
            return Ok(());
        }
        let text = std::str::from_utf8(message)?;
        let Some((name, length)) = text.split_once(' ') else { return cx.send(message) };
        pattern(0, 0); // its table does not count
        self.length = length.parse()?;
        self.heap = Heap::measure();
        if name == "stream" {
            cx.pause_input(); // `on_writable` is enough to keep the connection
        }
        self.go_on(cx)
    }

    fn on_writable(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.calls += 1;
        // The output is at the low mark at most, so the whole room of one call is there.
        if cx.room() != ROOM {
            violation(format_args!("on_writable with {} bytes of room", cx.room()));
        }
        self.go_on(cx)
    }

    fn on_close(&mut self, _: &CloseReason) {
        if self.length > 0 {
            print_line(format_args!("made {}", self.made));
            print_line(format_args!("calls {}", self.calls));
            print_line(format_args!("memory {}", self.heap.grown_by()));
        }
    }
}

pub fn service(mut setup: Setup) -> Service {
    setup.builder = setup.builder.write_watermarks(HIGH, LOW);
    setup.serve(|_| (Raw, Streaming::default()))
}

/// Reads a stream to its end; `pause` is called after each read, with how much has been read.
fn read_stream(cell: &Cell, mut pause: impl FnMut(u64, &dyn Fn() -> Stream)) {
    let length = LENGTH.load(SeqCst);
    let mut server = cell.start("streams");
    let mut client = server.connect();
    client.send(format!("stream {length}"));
    let (mut buffer, mut checker) = (vec![0; 64 * 1024], Checker::default());
    loop {
        let count = client.socket.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        checker.check(&buffer[..count]);
        pause(checker.at, &|| server.connect());
    }
    assert_eq!(checker.at, length);
    assert_eq!(server.number("made"), length);
    let calls = server.number("calls");
    assert!(calls >= length / HIGH as u64, "{calls} calls of on_writable");
    let memory = server.number("memory");
    assert!(memory <= MEMORY as u64, "{memory} bytes of memory");
    server.stop_quietly();
}

fn a_long_stream_to_a_fast_reader_is_whole_and_bounded_in_memory(cell: &Cell) {
    read_stream(cell, |_, _| {});
}

fn a_long_stream_to_a_slow_reader_is_whole_and_bounded_in_memory(cell: &Cell) {
    read_stream(cell, |_, _| thread::sleep(Duration::from_millis(1)));
}

/// The reader stops several times, until others have been answered.
fn a_long_stream_to_a_stalling_reader_is_whole_and_bounded_in_memory(cell: &Cell) {
    let length = LENGTH.load(SeqCst);
    let mut stalls = 0;
    read_stream(cell, |at, connect| {
        if at > stalls * length / 4 {
            stalls += 1;
            thread::sleep(Duration::from_millis(100));
            for _ in 0..3 {
                if cell.serves_beside() {
                    connect().send("hello").expect("hello").end().expect_end();
                }
            }
        }
    });
    assert!(stalls >= 4);
}

/// The peer sends again when it has read half of what it gets.
fn a_message_is_delivered_while_a_long_stream_is_made(cell: &Cell) {
    let mut server = cell.start("streams");
    let length: u64 = 32 << 20;
    let mut client = server.connect();
    client.send(format!("open-stream {length}"));
    let (mut checker, mut buffer) = (Checker::default(), vec![0; 64 * 1024]);
    while checker.at < length / 2 {
        let count = client.socket.read(&mut buffer).unwrap();
        checker.check(&buffer[..count]);
    }
    client.send("message");
    checker.read_to_end(&mut client);
    assert_eq!(checker.at, length);
    assert!(server.number("message after") < length);
    assert_eq!(server.number("made"), length);
    server.stop();
}

/// Its end comes while its input is paused, and the handler does not override `on_eof`.
fn a_long_stream_to_a_peer_that_has_ended_is_whole(cell: &Cell) {
    let mut server = cell.start("streams");
    let length = 16 << 20;
    let mut client = server.connect();
    client.send(format!("stream {length}")).end();
    thread::sleep(Duration::from_millis(100)); // a slow reader
    let mut checker = Checker::default();
    checker.read_to_end(&mut client);
    assert_eq!(checker.at, length);
    assert_eq!(server.number("made"), length);
    server.stop();
}

pub fn powers() -> Vec<Power> {
    powers![
        a_long_stream_to_a_fast_reader_is_whole_and_bounded_in_memory,
        a_long_stream_to_a_slow_reader_is_whole_and_bounded_in_memory,
        a_long_stream_to_a_stalling_reader_is_whole_and_bounded_in_memory,
        a_long_stream_to_a_peer_that_has_ended_is_whole,
        a_message_is_delivered_while_a_long_stream_is_made,
    ]
}
