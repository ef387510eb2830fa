//! A handler that stops its own server: an echo, until one client has said all it had to say.
//!
//! In Python this is a deadlock, since its `shutdown` waits for the loop that is waiting for the
//! handler. Here it is a note that the loop reads when the handler has returned. Try
//! `nc localhost 10888`, some lines, and then Ctrl-D.

mod common;

use common::{About, Options, shown, tell};
use socketserver::{Context, Handler, HandlerResult, Server};

struct StopOnEof;

impl Handler for StopOnEof {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        tell(format_args!("received: {}", shown(message)));
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
        streams_only: true, // a datagram has no end to wait for
        ..About::new(
            "stop_on_eof",
            "Echoes, and stops when a client has ended.",
            "tcp://localhost:10888",
        )
    });
    options
        .run(|endpoint| Server::endpoint(endpoint)?.mode(options.mode).service(|_peer| StopOnEof));
}
