//! A handler that waits for its client cannot run on the loop.

use socketserver::{HandlerResult, Request, RequestHandler, Server};

struct Greet;

impl RequestHandler for Greet {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        request.read_line()?;
        Ok(())
    }
}

fn main() {
    let _ = Server::tcp("127.0.0.1:0").unwrap().serve_blocking(|_peer| Greet);
}
