//! Workers receive messages, and do not wait for connections.

use socketserver::{HandlerResult, Offload, Request, RequestHandler, Server};

struct Greet;

impl RequestHandler for Greet {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        request.read_line()?;
        Ok(())
    }
}

fn main() {
    let builder = Server::tcp("127.0.0.1:0").unwrap().mode(Offload::new(4));
    let _ = builder.serve_blocking(|_peer| Greet);
}
