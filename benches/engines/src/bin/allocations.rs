//! `allocations`: the number of allocations per message, counted and not timed.
//!
//! A separate program, because its allocator counts. Server and client are in one process; the
//! client allocates nothing, so that all counted allocations are the server's.

use std::alloc::System;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use peers::bench::table::Table;
use socketserver::{Endian, Framing, LengthPrefixed, Lines, Mode, Raw, Server, Width, handler_fn};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Counts the allocations per message on an established connection, by mode and framing.
#[derive(Debug, Parser)]
struct Cli {
    /// Counted messages
    #[arg(long, default_value_t = 10_000)]
    messages: u32,
}

/// Messages before the counting, so that all buffers have their size.
const WARM_UP: u32 = 1_000;

/// The run fails if an answer takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    peers::ended("allocations", run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    let mut table = Table::new(["mode", "Raw", "Lines", "LengthPrefixed"]);
    // Forking is left out: a process with threads cannot fork, and a child counts its own
    // allocations.
    let modes = Mode::all().filter(|mode| !matches!(mode, Mode::Forking(_)));
    for mode in modes {
        let mut prefixed = vec![0, 63];
        prefixed.extend([b'x'; 63]);
        let cells = [
            count(mode, Raw, &[b'x'; 64], cli.messages)?,
            count(mode, Lines::default(), &line(), cli.messages)?,
            count(mode, LengthPrefixed::new(Width::Two, Endian::Big), &prefixed, cli.messages)?,
        ];
        let cells = cells.map(|count| format!("{count:.4}"));
        table.row(std::iter::once(mode.to_string()).chain(cells).collect::<Vec<_>>());
    }
    println!("{table}");
    println!(
        "Allocations per message of 64 B, over {} messages on one warm TCP connection.",
        cli.messages
    );
    Ok(())
}

fn line() -> [u8; 64] {
    let mut line = [b'x'; 64];
    line[63] = b'\n';
    line
}

fn count<F>(mode: Mode, framing: F, message: &[u8], messages: u32) -> Result<f64>
where
    F: Framing + Clone + Send + 'static,
{
    let echo = |_: &socketserver::Accepted<'_>| {
        handler_fn(|message: &[u8], cx: &mut socketserver::Context<'_>| cx.send(message))
    };
    let running = Server::tcp("127.0.0.1:0")?.framing(framing).mode(mode).serve(echo)?.spawn()?;
    let address = running.local_addr().inet().context("no address")?;
    let mut client = TcpStream::connect(address)?;
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(PATIENCE))?;
    let mut answer = vec![0; message.len()];
    let mut exchange = |times: u32| -> std::io::Result<()> {
        for _ in 0..times {
            client.write_all(message)?;
            client.read_exact(&mut answer)?;
        }
        Ok(())
    };
    exchange(WARM_UP)?;
    let region = Region::new(COUNTING);
    exchange(messages)?;
    let counted = region.change();
    drop(client);
    running.stop()?;
    Ok((counted.allocations + counted.reallocations) as f64 / f64::from(messages))
}
