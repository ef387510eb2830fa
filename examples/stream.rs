//! An answer that may be far larger than memory: a line with a number N is answered with the numbers
//! from 1 to N, a line for each.
//!
//! The handler sends while there is room, and goes on in `on_writable` when the client has taken
//! some. However slowly the client reads, no more than 64 KiB wait for it.
//!
//! Try `echo 10000000 | nc -N 127.0.0.1 9990 | tail -n 1`.

mod common;

use std::ops::Range;

use common::{About, Options, number};
use socketserver::{
    Context, Endpoint, Error, Handler, HandlerResult, Limits, Lines, Mode, Server, Service,
};

/// The numbers that are still to be sent.
struct Numbers(Range<u64>);

impl Numbers {
    fn send(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        // When `room` returns 0, `on_writable` is called as soon as there is room again.
        while cx.room() > 0 {
            let Some(number) = self.0.next() else {
                cx.resume_input();
                return Ok(());
            };
            cx.send(number.to_string().as_bytes())?;
        }
        Ok(())
    }
}

impl Handler for Numbers {
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let Some(last) = number(line) else {
            return cx.send(b"a number, please");
        };
        self.0 = 1..last.saturating_add(1);
        cx.pause_input(); // the next line waits until this one is answered
        self.send(cx)
    }

    fn on_writable(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.send(cx)
    }
}

/// The service at this address.
pub(crate) fn service(endpoint: &Endpoint, mode: Mode, limits: Limits) -> Result<Service, Error> {
    let server = Server::endpoint(endpoint)?;
    server.framing(Lines::default()).mode(mode).limits(limits).service(|_| Numbers(0..0))
}

fn main() {
    let about = About::new(
        "stream",
        "Answers a line with a number N with the numbers from 1 to N.",
        "tcp://127.0.0.1:9990",
    );
    let options = Options::parse(&About { streams_only: true, ..about });
    options.run(|endpoint| service(endpoint, options.mode, options.limits()));
}
