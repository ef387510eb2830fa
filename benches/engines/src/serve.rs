//! The measured server: an echo in any mode, whose handler can block before it answers.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use socketserver::{Context, Endpoint, Handler, HandlerResult, Mode, Server};

/// How to run the server.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The address: tcp://HOST:PORT, udp://HOST:PORT or unix://PATH
    #[arg(long, value_name = "URL", default_value = "tcp://127.0.0.1:0")]
    listen: Endpoint,
    /// reactor, offload, inline, threading, pool or forking
    #[arg(long, default_value = "reactor")]
    mode: Mode,
    /// Threads of offload and pool [default: the crate's]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// How long the handler blocks before it answers, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    block: Option<u64>,
}

/// The handler of every mode.
struct Echo {
    block: Option<Duration>,
}

impl Handler for Echo {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if let Some(time) = self.block {
            thread::sleep(time);
        }
        cx.send(message)
    }
}

/// Prints its address, and serves until SIGTERM.
pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let mode = args.workers.map_or(args.mode, |count| args.mode.workers(count));
    let block = args.block.map(Duration::from_micros);
    let mut server =
        Server::endpoint(&args.listen)?.mode(mode).serve(move |_peer| Echo { block })?;
    server.drain_timeout(Duration::from_millis(200));
    server.stop_on_signals()?;
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {}", server.local_addr())?;
    stdout.flush()?;
    server.serve_forever()?;
    Ok(())
}
