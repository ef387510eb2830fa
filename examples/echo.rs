//! Sends every byte back unchanged, and every datagram back whole: over any transport, in any mode.
//!
//! Try `nc 127.0.0.1 9999` against it.

mod common;

use common::{About, Options};
use socketserver::{Context, Handler, HandlerResult, Server};

struct Echo;

impl Handler for Echo {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        cx.send(message)
    }
}

fn main() {
    let options = Options::parse(&About {
        values: &[("spin", "0", "microseconds to poll for events before each sleep")],
        ..About::new("echo", "Sends every byte back unchanged.", "tcp://127.0.0.1:9999")
    });
    options.run(|endpoint| {
        Server::endpoint(endpoint)?.mode(options.mode).limits(options.limits()).service(|_| Echo)
    });
}
