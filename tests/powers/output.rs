//! `finish_output`, and the output past the framing.

#![allow(unreachable_pub)] // a module of a test is public to nobody

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use socketserver::{CloseReason, Context, Event, Handler, HandlerResult, Lines, Raw, Service};

use super::server::{Cell, Checker, LONGEST_PATTERN, Setup, pattern, print_line};
use super::{Power, powers};

/// How much is sent before the output ends: more than the kernel takes at once.
const LENGTH: u64 = 12 << 20;

/// Ends its output when its client asks for it, and goes on listening.
#[derive(Debug, Default)]
struct Finishing {
    finished: bool,
}

impl Handler for Finishing {
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let line = std::str::from_utf8(line)?;
        if self.finished {
            print_line(line);
            cx.send(b"dropped")?;
            cx.output().put(b"dropped");
            cx.send_shared(&vec![b'x'; 1000].into())?;
            cx.finish_output();
        } else if line == "finish" {
            for at in (0..LENGTH).step_by(LONGEST_PATTERN) {
                cx.output().put(pattern(at, LONGEST_PATTERN));
            }
            cx.finish_output();
            cx.send(b"dropped")?;
            self.finished = true;
        } else {
            cx.send(line.as_bytes())?;
        }
        if line == "post" {
            // What comes from another thread is dropped, too, and its events still come.
            let sender = cx.sender()?;
            thread::spawn(move || {
                sender.send(b"dropped").unwrap();
                sender.post(Box::new(())).unwrap();
            });
        }
        Ok(())
    }

    fn on_event(&mut self, _: Event, cx: &mut Context<'_>) -> HandlerResult {
        print_line("posted");
        cx.send(b"dropped")
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        print_line("end");
        cx.send(b"last words")?;
        cx.close();
        Ok(())
    }

    fn on_close(&mut self, reason: &CloseReason) {
        match reason {
            CloseReason::Disconnected(_) => print_line("disconnected"),
            reason => print_line(reason),
        }
    }
}

pub fn finishing(setup: Setup) -> Service {
    setup.serve(|_| (Lines::default(), Finishing::default()))
}

fn the_peer_sees_the_end_after_all_output_and_is_still_heard(cell: &Cell) {
    let mut server = cell.start("finishing");
    for is_slow in [false, true] {
        let mut client = server.connect();
        client.send("before\nfinish\n").expect("before\n");
        if is_slow {
            thread::sleep(Duration::from_millis(50));
        }
        let mut checker = Checker::default();
        checker.read_to_end(&mut client);
        assert_eq!(checker.at, LENGTH);
        for line in ["one", "two", "three"] {
            client.send(format!("{line}\n"));
            server.expect_line(line);
        }
        if cell.has_senders() {
            client.send("post\n");
            server.expect_line("post").expect_line("posted");
        }
        client.end();
        server.expect_line("end").expect_line("end of input");
        client.expect_end();
    }
    server.stop_quietly();
}

/// Both ends of the connection come at the same time.
fn an_output_that_ends_with_the_input_ends_in_order(cell: &Cell) {
    let mut server = cell.start("finishing");
    let mut client = server.connect();
    client.send("finish\nlast\n").end();
    let mut checker = Checker::default();
    checker.read_to_end(&mut client);
    assert_eq!(checker.at, LENGTH);
    server.expect_line("last").expect_line("end").expect_line("end of input");
    server.stop_quietly();
}

// The output past the framing

/// What several connections may share.
const SHARED: usize = 700;

/// Mixes messages with bytes that are not framed.
#[derive(Debug)]
struct Mixing;

impl Handler for Mixing {
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if line == b"close" {
            cx.send(b"last")?;
            write!(cx.output(), "words")?;
            cx.close();
            cx.output().put(b"dropped");
            write!(cx.output(), "dropped")?;
            return cx.send(b"dropped");
        }
        let shared: Arc<[u8]> = vec![b's'; SHARED].into();
        cx.send(line)?;
        write!(cx.output(), "{}:", line.len())?;
        cx.output().put(line);
        cx.output().put_shared(&shared);
        cx.send(line)?;
        cx.output().put(b"|");
        cx.send_shared(&shared)?;
        cx.output().put(b"");
        cx.output().flush()?;
        cx.send(line)
    }
}

pub fn mixing(setup: Setup) -> Service {
    setup.serve(|_| (Lines::default(), Mixing))
}

fn output_past_the_framing_keeps_its_place(cell: &Cell) {
    let server = cell.start("mixing");
    let shared = "s".repeat(SHARED);
    let (mut requests, mut replies) = (String::new(), String::new());
    for number in 0..300 {
        let line = format!("line {number}");
        requests += &format!("{line}\n");
        let framed = format!("{line}\n{}:{line}{shared}{line}\n", line.len());
        replies += &format!("{framed}|{shared}\n{line}\n");
    }
    let mut client = server.connect();
    client.send(&requests).expect(&replies);
    client.end().expect_end();
    server.stop_quietly();
}

fn output_after_a_close_is_dropped(cell: &Cell) {
    let server = cell.start("mixing");
    let mut client = server.connect();
    client.send("close\nnot read\n").expect("last\nwords").expect_end();
    server.stop_quietly();
}

// Events that send

/// Sends from each event that is there, past the framing.
#[derive(Debug, Default)]
struct Everywhere {
    calls: u32,
}

impl Everywhere {
    fn send(&mut self, name: &str, cx: &mut Context<'_>) -> HandlerResult {
        self.calls += 1;
        Ok(write!(cx.output(), "{name};")?)
    }
}

impl Handler for Everywhere {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.set_timer(cx.now())?;
        self.send("open", cx)
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if message.starts_with(b"idle") {
            cx.set_idle_timeout(Duration::from_millis(10))?;
        }
        self.send("message", cx)
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.send("timer", cx)
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.set_idle_timeout(None)?;
        // No room: `on_writable` follows.
        while cx.room() > 0 {
            cx.output().put(b".");
        }
        self.send("idle", cx)
    }

    fn on_writable(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.send("writable", cx)
    }

    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.send("stop", cx)
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.send("eof", cx)?;
        cx.close();
        Ok(())
    }
}

pub fn everywhere(setup: Setup) -> Service {
    setup.serve(|_| (Raw, Everywhere::default()))
}

fn every_event_can_send(cell: &Cell) {
    let server = cell.start("everywhere");
    let mut client = server.connect();
    client.expect("open;timer;").send("x").expect("message;").send("idle").expect("message;");
    let mut byte = [b'.'];
    while byte == *b"." {
        client.socket.read_exact(&mut byte).unwrap();
    }
    client.expect("dle;writable;").end().expect("eof;").expect_end();
    let mut client = server.connect();
    client.expect("open;timer;");
    server.process.terminate();
    client.expect("stop;").expect_end();
    assert_eq!(server.wait().aborted, 0);
}

pub fn powers() -> Vec<Power> {
    powers![
        the_peer_sees_the_end_after_all_output_and_is_still_heard,
        an_output_that_ends_with_the_input_ends_in_order,
        output_past_the_framing_keeps_its_place,
        output_after_a_close_is_dropped,
        every_event_can_send,
    ]
}
