//! A handler that holds an `Rc` cannot be sent to a worker.

use std::rc::Rc;

use socketserver::{Context, Handler, HandlerResult, Offload, Server};

struct Counting(Rc<()>);

impl Handler for Counting {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let _shared = &self.0;
        cx.send(message)
    }
}

fn main() {
    let builder = Server::tcp("127.0.0.1:0").unwrap();
    let _ = builder.mode(Offload::new(4)).serve(|_peer| Counting(Rc::new(())));
}
