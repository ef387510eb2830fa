//! Sends each message back with its ASCII letters in upper case, and strips nothing. With `--once`
//! it closes the connection after the first answer.

mod common;

use common::{About, Options};
use socketserver::{Context, Handler, HandlerResult, Server};

struct Upper {
    once: bool,
}

impl Handler for Upper {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        cx.send(&message.to_ascii_uppercase())?;
        if self.once {
            cx.close();
        }
        Ok(())
    }
}

fn main() {
    let once = std::env::args().any(|argument| argument == "--once");
    let options = Options::parse(&About {
        flags: &[("once", "answer the first message, then close; port 9999 by default")],
        ..About::new(
            "upper",
            "Sends each message back in upper case.",
            if once { "tcp://127.0.0.1:9999" } else { "tcp://127.0.0.1:8888" },
        )
    });
    let once = options.has("once");
    options.run(|endpoint| {
        Server::endpoint(endpoint)?
            .mode(options.mode)
            .limits(options.limits())
            .service(move |_| Upper { once })
    });
}
