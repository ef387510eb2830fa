//! A panic or an error in any of the ten events ends its own connection, after what was sent before; all
//! other connections go on.

#![allow(unreachable_pub)] // a module of a test is public to nobody

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use socketserver::{CloseReason, Context, Event, Handler, HandlerResult, Lines, Service};

use super::process::Stream;
use super::server::{Cell, PrintFaults, Setup, TestServer, print_line};
use super::{Power, powers};

/// The events in which a test fails, the stop of the server at last.
const EVENTS: [&str; 10] = [
    "on_open",
    "on_message",
    "on_writable",
    "on_timer",
    "on_event",
    "on_eof",
    "on_idle_timeout",
    "on_reject",
    "on_close",
    "on_stop",
];

/// Fails in one event, which its client or a file names.
#[derive(Debug, Default)]
struct Faulty {
    /// In which event, and whether it panics or returns an error.
    fault: Option<(String, String)>,
    /// Names the fault of `on_open`.
    file: PathBuf,
}

impl Faulty {
    /// Whether this names a fault.
    fn arm(&mut self, fault: &str) -> bool {
        let Some((kind, event)) = fault.split_once(" in ") else { return false };
        self.fault = Some((event.into(), kind.into()));
        true
    }

    fn is_in(&self, event: &str) -> bool {
        self.fault.as_ref().is_some_and(|(at, _)| at == event)
    }

    /// Fails, if it is this event.
    fn fail(&self, event: &str, cx: &mut Context<'_>) -> HandlerResult {
        if self.is_in(event) {
            cx.send(b"last words")?;
            return self.fail_silently(event);
        }
        Ok(())
    }

    fn fail_silently(&self, event: &str) -> HandlerResult {
        match &self.fault {
            Some((at, kind)) if at == event => match &kind[..] {
                "panic" => panic!("panic in {event}, on purpose"),
                _ => Err(format!("error in {event}").into()),
            },
            _ => Ok(()),
        }
    }
}

impl Handler for Faulty {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if let Ok(fault) = std::fs::read_to_string(&self.file) {
            self.arm(&fault);
        }
        self.fail("on_open", cx)
    }

    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        self.fail("on_message", cx)?;
        cx.send(line)?;
        let line = std::str::from_utf8(line)?;
        if line == "close" {
            cx.close();
        }
        if !self.arm(line) {
            return Ok(());
        }
        if self.is_in("on_writable") {
            while cx.room() > 0 {
                cx.output().put(b".");
            }
        }
        if self.is_in("on_timer") {
            cx.set_timer(cx.now())?;
        }
        if self.is_in("on_event") {
            let sender = cx.sender()?;
            thread::spawn(move || sender.post(Box::new(())));
        }
        if self.is_in("on_idle_timeout") {
            cx.set_idle_timeout(Duration::from_millis(10))?;
        }
        Ok(())
    }

    fn on_writable(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.fail("on_writable", cx)
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.fail("on_timer", cx)
    }

    fn on_event(&mut self, _: Event, cx: &mut Context<'_>) -> HandlerResult {
        self.fail("on_event", cx)
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.fail("on_eof", cx)?;
        cx.close();
        Ok(())
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.fail("on_idle_timeout", cx)
    }

    fn on_reject(&mut self, _: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
        self.fail("on_reject", cx)
    }

    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.fail("on_stop", cx)
    }

    fn on_close(&mut self, reason: &CloseReason) {
        if self.fault.is_some() {
            if self.is_in("on_close") {
                let _ = self.fail_silently("on_close");
            }
            print_line(format_args!("closed: {reason}"));
        }
    }
}

pub fn service(setup: Setup) -> Service {
    let Setup { builder, directory } = setup;
    let setup = Setup { builder: builder.hooks(PrintFaults), directory };
    setup.serve(|directory| {
        let handler = Faulty { fault: None, file: directory.join("on_open") };
        (Lines::default().max_len(64), handler)
    })
}

/// Brings a connection to the event in which it fails, and reads what it is sent until its end.
fn bring_to_fail(server: &TestServer, kind: &str, event: &str) -> Vec<u8> {
    let fault = format!("{kind} in {event}");
    let file = server.file("on_open");
    if event == "on_open" {
        std::fs::write(&file, &fault).unwrap();
    }
    let mut client = server.connect();
    if event != "on_open" {
        client.send(format!("{fault}\n")).expect(format!("{fault}\n"));
    }
    match event {
        "on_message" => _ = client.send("fail\n"),
        "on_eof" => _ = client.end(),
        "on_reject" => _ = client.send([b'x'; 100]),
        "on_close" => _ = client.send("close\n"),
        "on_stop" => server.process.terminate(),
        _ => {}
    }
    let read = client.read_to_end();
    let _ = std::fs::remove_file(file);
    read
}

fn expect_echo(client: &mut Stream) {
    client.send("hello\n").expect("hello\n");
}

fn fail_in_every_event(cell: &Cell, kind: &str) {
    let mut server = cell.start("faults");
    let mut other = cell.serves_beside().then(|| server.connect());
    other.iter_mut().for_each(expect_echo);
    let (mut panics, mut errors) = (0, 0);
    for event in EVENTS {
        if event == "on_event" && !cell.has_senders() || event == "on_close" && kind == "error" {
            continue;
        }
        let read = bring_to_fail(&server, kind, event);
        let last_words = if event == "on_close" { &b"close\n"[..] } else { b"last words\n" };
        assert!(read.ends_with(last_words), "{event}: {:?}", read.escape_ascii().to_string());
        let reason = match kind {
            "panic" => format!("handler panicked: panic in {event}, on purpose"),
            _ => format!("handler failed: error in {event}"),
        };
        if event != "on_close" {
            server.expect_line(format!("closed: {reason}"));
        }
        server.expect_line(format!("fault: {reason}"));
        if kind == "panic" {
            panics += 1
        } else {
            errors += 1
        }
        if event == "on_stop" {
            break;
        }
        other.iter_mut().for_each(expect_echo);
        let mut next = server.connect();
        expect_echo(&mut next);
        next.end().expect_end();
    }
    other.iter_mut().for_each(Stream::expect_end);
    let at_exit = server.wait();
    assert_eq!((at_exit.aborted, &at_exit.lines[..]), (0, &[][..]), "{at_exit:?}");
    if !cell.forks() {
        assert_eq!((at_exit.panics, at_exit.errors), (panics, errors));
    }
}

fn a_panic_in_any_event_costs_its_own_connection(cell: &Cell) {
    fail_in_every_event(cell, "panic");
}

fn an_error_in_any_event_costs_its_own_connection(cell: &Cell) {
    fail_in_every_event(cell, "error");
}

pub fn powers() -> Vec<Power> {
    powers![
        a_panic_in_any_event_costs_its_own_connection,
        an_error_in_any_event_costs_its_own_connection,
    ]
}
