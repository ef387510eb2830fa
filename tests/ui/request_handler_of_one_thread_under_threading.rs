//! A request handler that holds an `Rc` cannot be served in another thread.

use std::rc::Rc;

use socketserver::{HandlerResult, Request, RequestHandler, Server, Threading};

struct Counting(Rc<()>);

impl RequestHandler for Counting {
    fn handle(&mut self, _request: &mut Request<'_>) -> HandlerResult {
        let _shared = &self.0;
        Ok(())
    }
}

fn main() {
    let builder = Server::tcp("127.0.0.1:0").unwrap().mode(Threading::default());
    let _ = builder.serve_blocking(|_peer| Counting(Rc::new(())));
}
