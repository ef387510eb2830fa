//! The smallest server: it reads one message, tells who sent it and what it says, and is done with
//! that client. Nothing is answered.
//!
//! Try `echo client1 | nc 127.0.0.1 8888`, and look at the server's own terminal.

mod common;

use common::{About, Options, shown, tell};
use socketserver::{Context, Handler, HandlerResult, Server};

struct Receive;

impl Handler for Receive {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        tell(format_args!("{} {}", cx.peer(), shown(message)));
        cx.close();
        Ok(())
    }
}

fn main() {
    let about =
        About::new("receive", "Tells what each client sends first.", "tcp://127.0.0.1:8888");
    let options = Options::parse(&about);
    options.run(|endpoint| Server::endpoint(endpoint)?.mode(options.mode).service(|_peer| Receive));
}
