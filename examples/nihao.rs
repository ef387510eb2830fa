//! A shorter conversation than that of `welcome`: the server begins with `你好欢迎你`, and sends
//! each message back with `好` behind it, until the client sends `q`.
//!
//! Start it with `--framing lines`, and try `nc 127.0.0.1 9999`.

mod common;

use common::text::{Text, TextFraming};
use common::{About, Options, is_datagram};
use socketserver::{Context, Handler, HandlerResult, Server};

struct Nihao {
    text: Text,
}

impl Handler for Nihao {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.send("你好欢迎你".as_bytes())
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if message == b"q" {
            cx.close();
        } else if let Some(text) = self.text.read(message) {
            cx.send(format!("{text}好").as_bytes())?;
        }
        Ok(())
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if let Some(text) = self.text.rest() {
            cx.send(format!("{text}好").as_bytes())?;
        }
        cx.close();
        Ok(())
    }
}

fn main() {
    let options = Options::parse(&About {
        values: &[TextFraming::OPTION],
        ..About::new(
            "nihao",
            "Answers each message with it and 好; `q` ends the connection.",
            "tcp://127.0.0.1:9999",
        )
    });
    let framing = TextFraming::chosen(&options);
    options.run(|endpoint| {
        let whole = framing == TextFraming::Lines || is_datagram(endpoint);
        Server::endpoint(endpoint)?
            .mode(options.mode)
            .limits(options.limits())
            .service_with(move |_| (framing.framing(), Nihao { text: Text::new(whole) }))
    });
}
