//! Which thread serves which client? Each line comes back with the name of the thread that answered
//! it. Under `forking`, where each client has its own process, the name ends with the process ID.
//!
//! Try several `nc 127.0.0.1 9998` at the same time, under `--mode threading`, `--mode forking` and
//! others.

mod common;

use common::{About, Options, is_datagram};
use socketserver::{Context, Handler, HandlerResult, Lines, Mode, Server};

struct WhoAmI {
    forked: bool,
    /// Added to each answer: `\n` for datagrams, for which there is no framing that adds it.
    end: &'static [u8],
}

impl Handler for WhoAmI {
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        cx.send(&[line, b" ", name(self.forked).as_bytes(), self.end].concat())
    }
}

/// The name of this thread, with the process ID under `forking`.
fn name(forked: bool) -> String {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    if forked { format!("{thread}-{}", std::process::id()) } else { thread.to_owned() }
}

fn main() {
    let options = Options::parse(&About::new(
        "whoami",
        "Sends each line back with the name of the thread that serves it.",
        "tcp://127.0.0.1:9998",
    ));
    let forked = matches!(options.mode, Mode::Forking(_));
    options.run(|endpoint| {
        let end: &[u8] = if is_datagram(endpoint) { b"\n" } else { b"" };
        Server::endpoint(endpoint)?
            .framing(Lines::default().unterminated(true))
            .mode(options.mode)
            .limits(options.limits())
            .service(move |_| WhoAmI { forked, end })
    });
}
