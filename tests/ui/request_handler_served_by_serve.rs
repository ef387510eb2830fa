//! `serve` takes a `Handler`, and `serve_blocking` a `RequestHandler`.

use socketserver::{HandlerResult, Request, RequestHandler, Server, Threading};

struct Greet;

impl RequestHandler for Greet {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        request.read_line()?;
        Ok(())
    }
}

fn main() {
    let builder = Server::tcp("127.0.0.1:0").unwrap().mode(Threading::default());
    let _ = builder.serve(|_peer| Greet);
}
