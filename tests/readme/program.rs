use std::time::Duration;

use socketserver::{Context, Handler, HandlerResult, Limits, Lines, Server};

/// One value for each client.
struct Upper;

impl Handler for Upper {
    /// Called with each line, without its end.
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        cx.send(&line.to_ascii_uppercase()) // `Lines` adds the newline
    }
}

fn main() -> Result<(), socketserver::Error> {
    env_logger::init(); // without a logger, errors are silent; RUST_LOG=debug shows each connection
    let mut server = Server::tcp("127.0.0.1:9999")?
        .framing(Lines::default())
        .limits(Limits::default().idle_timeout(Duration::from_secs(60)))
        .serve(|_client| Upper)?;
    server.stop_on_signals()?; // Ctrl-C and SIGTERM stop it gracefully; a second one ends it at once
    server.serve_forever()?;
    Ok(())
}
