//! The smallest server: it reads one message, prints the client's address and the text to standard
//! error, and closes the connection. It does not answer.
//!
//! Try `echo client1 | nc 127.0.0.1 8888`, and look at the server's terminal.

mod common;

use common::{About, Options, print_line, shown};
use socketserver::{Context, Handler, HandlerResult, Server};

struct Receive;

impl Handler for Receive {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        print_line(format_args!("{} {}", cx.peer(), shown(message)));
        cx.close();
        Ok(())
    }
}

fn main() {
    let about =
        About::new("receive", "Prints the first message of each client.", "tcp://127.0.0.1:8888");
    let options = Options::parse(&about);
    options.run(|endpoint| {
        Server::endpoint(endpoint)?.mode(options.mode).limits(options.limits()).service(|_| Receive)
    });
}
