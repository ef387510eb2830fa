//! One message, one answer: the first message of a client is answered with a greeting, and the
//! connection is closed.
//!
//! Try `echo hello | nc 127.0.0.1 8090`.

mod common;

use common::{About, Options};
use socketserver::{Context, Handler, HandlerResult, Server};

/// "Dear, have you learned it?"
const GREETING: &str = "亲,学会了吗";

struct Greet;

impl Handler for Greet {
    fn on_message(&mut self, _message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        cx.send(GREETING.as_bytes())?;
        cx.close(); // after the greeting has gone out
        Ok(())
    }
}

fn main() {
    let about = About::new(
        "greet",
        "Answers the first message with a greeting, and closes.",
        "tcp://127.0.0.1:8090",
    );
    let options = Options::parse(&about);
    options.run(|endpoint| {
        Server::endpoint(endpoint)?.mode(options.mode).limits(options.limits()).service(|_| Greet)
    });
}
