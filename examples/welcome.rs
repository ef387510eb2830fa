//! A conversation in text: the server welcomes the client and confirms each message; `exit` ends
//! the connection.
//!
//! TCP may split text anywhere, also in the middle of a character; this program puts characters
//! together again. TCP may also join messages, so that with `--framing raw` an `exit` that arrives
//! together with other text is not recognized. `--framing lines` separates messages. Start it with
//! that, and try `nc 127.0.0.1 9999`.

mod common;

use common::text::{Text, TextFraming};
use common::{About, Options, is_datagram, print_line, shown};
use socketserver::{CloseReason, Context, Handler, HandlerResult, Peer, Server};

/// "Welcome to the socketserver server!"
const WELCOME: &str = "欢迎访问socketserver服务器！";

struct Welcome {
    peer: Peer,
    text: Text,
}

impl Welcome {
    /// "I have received your message <...>".
    fn confirm(&self, text: &str, cx: &mut Context<'_>) -> HandlerResult {
        print_line(format_args!("{} says: {}", self.peer, shown(text.as_bytes())));
        cx.send(format!("已收到你的消息<{text}>").as_bytes())
    }
}

impl Handler for Welcome {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(WELCOME.as_bytes())
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if message == b"exit" {
            cx.close();
            return Ok(());
        }
        match self.text.read(message) {
            Some(text) => self.confirm(&text, cx),
            None => Ok(()),
        }
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if let Some(text) = self.text.rest() {
            self.confirm(&text, cx)?;
        }
        cx.close();
        Ok(())
    }

    fn on_close(&mut self, reason: &CloseReason) {
        print_line(format_args!("{} has disconnected: {reason}", self.peer));
    }
}

fn main() {
    let options = Options::parse(&About {
        values: &[TextFraming::OPTION],
        ..About::new(
            "welcome",
            "Welcomes a client and confirms each message; `exit` ends the connection.",
            "tcp://127.0.0.1:9999",
        )
    });
    let framing = TextFraming::chosen(&options);
    options.run(|endpoint| {
        let whole = framing == TextFraming::Lines || is_datagram(endpoint);
        let server = Server::endpoint(endpoint)?.mode(options.mode).limits(options.limits());
        server.service_with(move |accepted| {
            let peer = accepted.peer().clone();
            (framing.framing(), Welcome { peer, text: Text::new(whole) })
        })
    });
}
