//! A handler that stops its own server: an echo, until a client closes its sending side.
//!
//! In Python this is a deadlock, since `shutdown` waits for the loop, which waits for the handler.
//! Here `stop_server` sets a flag, which the event loop reads when the handler has returned. Try
//! `nc localhost 10888`, some lines, and then Ctrl-D.

mod common;

use common::{About, Options, print_line, shown};
use socketserver::{Context, Handler, HandlerResult, Server};

struct StopOnEof;

impl Handler for StopOnEof {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        print_line(format_args!("received: {}", shown(message)));
        cx.send(message)
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.stop_server();
        cx.close();
        Ok(())
    }
}

fn main() {
    let options = Options::parse(&About {
        streams_only: true, // datagrams have no end of input
        ..About::new(
            "stop_on_eof",
            "Sends every byte back, and stops when a client closes its sending side.",
            "tcp://localhost:10888",
        )
    });
    options.run(|endpoint| {
        Server::endpoint(endpoint)?
            .mode(options.mode)
            .limits(options.limits())
            .service(|_| StopOnEof)
    });
}
