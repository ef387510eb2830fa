//! Deadlines: a client gets a line every second beside the answers to its own lines. It is closed when
//! its first line, a name, does not come within five seconds.
//!
//! A connection has one timer. A handler with several deadlines sets it to the earliest of them.
//!
//! Try `nc 127.0.0.1 9991`, and type a name, or nothing.

mod common;

use std::time::{Duration, Instant};

use common::{About, Options};
use socketserver::{
    Context, Endpoint, Error, Handler, HandlerResult, Limits, Lines, Mode, Server, Service,
};

struct Heartbeat {
    every: Duration,
    next_beat: Option<Instant>,
    patience: Duration,
    /// `None` when the name has come.
    name_due: Option<Instant>,
}

impl Heartbeat {
    fn set_timer(&self, cx: &mut Context<'_>) -> HandlerResult {
        Ok(cx.set_timer([self.next_beat, self.name_due].into_iter().flatten().min())?)
    }
}

impl Handler for Heartbeat {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.next_beat = cx.now().checked_add(self.every);
        self.name_due = cx.now().checked_add(self.patience);
        self.set_timer(cx)?;
        cx.send(b"your name?")
    }

    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if self.name_due.take().is_none() {
            return cx.send(line);
        }
        self.set_timer(cx)?;
        cx.send(&[b"hello ", line].concat())
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let now = cx.now();
        if self.name_due.is_some_and(|due| due <= now) {
            cx.send(b"too late")?;
            cx.close();
        } else if self.next_beat.is_some_and(|due| due <= now) {
            self.next_beat = now.checked_add(self.every);
            // A client that does not read misses beats, or they would fill the memory.
            if cx.room() > 0 {
                cx.send(b"beat")?;
            }
        }
        self.set_timer(cx)
    }
}

/// The service at this address.
pub(crate) fn service(
    endpoint: &Endpoint,
    mode: Mode,
    limits: Limits,
    (every, patience): (Duration, Duration),
) -> Result<Service, Error> {
    let server = Server::endpoint(endpoint)?;
    let server = server.framing(Lines::default()).mode(mode).limits(limits);
    server.service(move |_| Heartbeat { every, next_beat: None, patience, name_due: None })
}

fn main() {
    let about = About::new("heartbeat", "Sends a line every second.", "tcp://127.0.0.1:9991");
    let options = Options::parse(&About {
        streams_only: true,
        values: &[
            ("every", "1", "seconds between two beats"),
            ("patience", "5", "seconds until the first line must have come"),
        ],
        ..about
    });
    let times = (options.seconds("every"), options.seconds("patience"));
    options.run(|endpoint| service(endpoint, options.mode, options.limits(), times));
}
