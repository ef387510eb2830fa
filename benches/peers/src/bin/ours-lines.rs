//! An echo of lines under `socketserver`'s mode `reactor`; its example `echo` has no framing of
//! lines.
//!
//! A separate program, as the example is: the optimizer treats a program as a whole, so the counted
//! instructions do not depend on the rest of this package.

use std::process::ExitCode;

use socketserver::{Context, Endpoint, Error, Lines, Server, handler_fn};

fn main() -> ExitCode {
    let Some(url) = std::env::args().nth(1) else {
        eprintln!("usage: ours-lines URL");
        return ExitCode::from(2);
    };
    match serve(&url) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(url: &str) -> Result<(), Error> {
    let echo = |_: &socketserver::Accepted<'_>| {
        handler_fn(|line: &[u8], cx: &mut Context<'_>| cx.send(line))
    };
    let listen: Endpoint = url.parse()?;
    let mut server = Server::endpoint(&listen)?.framing(Lines::default()).serve(echo)?;
    server.stop_on_signals()?;
    println!("listening on {}", server.local_addr());
    server.serve_forever()?;
    Ok(())
}
