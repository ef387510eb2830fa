//! Python's way of answering: a handler that waits for its client, line by line. Each comes back
//! without the white space around it; a blank one ends the connection.
//!
//! Try `nc 127.0.0.1 9998`.

mod common;

use std::io::Write as _;

use common::{About, Options};
use socketserver::{BlockingMode, HandlerResult, Request, RequestHandler, Server};

struct StrippedLines;

impl RequestHandler for StrippedLines {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        while let Some(line) = request.read_line()? {
            let stripped = strip(&line);
            if stripped.is_empty() {
                break;
            }
            // One write is one packet; two would be two.
            request.write_all(&[stripped, b"\n"].concat())?;
        }
        Ok(())
    }
}

/// Python's `bytes.strip`, to which a vertical tab is white space too.
fn strip(line: &[u8]) -> &[u8] {
    let is_word = |byte: &u8| !byte.is_ascii_whitespace() && *byte != 0x0B;
    let start = line.iter().position(is_word).unwrap_or(line.len());
    let end = line.iter().rposition(is_word).map_or(start, |last| last + 1);
    &line[start..end]
}

fn main() {
    let options = Options::parse(&About {
        mode: "threading",
        modes: &["inline", "threading", "pool", "forking"], // the loop itself must not wait
        ..About::new("lines", "Sends each line back, stripped.", "tcp://127.0.0.1:9998")
    });
    options.run(|endpoint| {
        let mode = BlockingMode::try_from(options.mode)?;
        Server::endpoint(endpoint)?.mode(mode).service_blocking(|_peer| StrippedLines)
    });
}
