//! A blocking handler, as in Python: a loop that waits for each line of its client. It sends each
//! line back without the white space around it. A blank line ends the connection.
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
            // One write, so that the line and its end go out in one packet.
            request.write_all(&[stripped, b"\n"].concat())?;
        }
        Ok(())
    }
}

/// Python's `bytes.strip`; it counts a vertical tab as white space, which `trim_ascii` does not.
fn strip(line: &[u8]) -> &[u8] {
    let is_word = |byte: &u8| !byte.is_ascii_whitespace() && *byte != 0x0B;
    let start = line.iter().position(is_word).unwrap_or(line.len());
    let end = line.iter().rposition(is_word).map_or(start, |last| last + 1);
    &line[start..end]
}

fn main() {
    let options = Options::parse(&About {
        mode: "threading",
        modes: &["inline", "threading", "pool", "forking"], // those that may block
        ..About::new(
            "lines",
            "Sends each line back without the white space around it.",
            "tcp://127.0.0.1:9998",
        )
    });
    options.run(|endpoint| {
        let mode = BlockingMode::try_from(options.mode)?;
        Server::endpoint(endpoint)?
            .mode(mode)
            .limits(options.limits())
            .service_blocking(|_| StrippedLines)
    });
}
