//! Results from other threads: a line with a number is answered with its smallest factor, which another
//! thread looks for. The event loop serves other clients meanwhile.
//!
//! The result comes back to the handler by `Sender::post` and `on_event`. Until then the input is
//! paused, so that the answers come in the order of the lines.
//!
//! Try `printf '1000000000000037\n35\n' | nc -N 127.0.0.1 9992`.

mod common;

use std::thread;

use common::{About, Options, number};
use socketserver::{Context, Event, Handler, HandlerResult, Lines, Server, UnsupportedError};

struct Factors;

/// The result that is posted.
struct Factor(u64);

fn smallest_factor(number: u64) -> u64 {
    (2..=number.isqrt()).find(|factor| number.is_multiple_of(*factor)).unwrap_or(number)
}

impl Handler for Factors {
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let Some(number) = number(line) else {
            return cx.send(b"a number, please");
        };
        match cx.sender() {
            Ok(sender) => {
                cx.pause_input(); // so that no connection has two threads
                thread::Builder::new().spawn(move || {
                    let _ = sender.post(Box::new(Factor(smallest_factor(number))));
                })?;
                Ok(())
            }
            // No other thread reaches the connection in these modes, but the handler may take its time.
            Err(UnsupportedError::InlineSender | UnsupportedError::ForkingSender) => {
                cx.send(smallest_factor(number).to_string().as_bytes())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn on_event(&mut self, event: Event, cx: &mut Context<'_>) -> HandlerResult {
        if let Ok(factor) = event.downcast::<Factor>() {
            cx.send(factor.0.to_string().as_bytes())?;
            cx.resume_input();
        }
        Ok(())
    }
}

fn main() {
    let about =
        About::new("results", "Finds the smallest factor of a number.", "tcp://127.0.0.1:9992");
    let options = Options::parse(&About { streams_only: true, ..about });
    options.run(|endpoint| {
        let server = Server::endpoint(endpoint)?
            .framing(Lines::default())
            .mode(options.mode)
            .limits(options.limits());
        server.service(|_| Factors)
    });
}
