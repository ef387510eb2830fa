//! An echo of lines on `socketserver`'s reactor, which its example `echo` does not have.
//!
//! A program of its own, as the example is: what is counted of it then depends on nothing else that
//! this package contains, since the optimizer treats a program as a whole.

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
    let echo = |_: &_| handler_fn(|line: &[u8], cx: &mut Context<'_>| cx.send(line));
    let listen: Endpoint = url.parse()?;
    let mut server = Server::endpoint(&listen)?.framing(Lines::default()).serve(echo)?;
    server.stop_on_signals()?;
    println!("listening on {}", server.local_addr());
    server.serve_forever()?;
    Ok(())
}
