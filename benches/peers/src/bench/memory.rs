//! The user-space memory of an idle connection in the server.
//!
//! Only anonymous memory is counted: the pages of a program file are shared by all processes that
//! run it, so each one's share depends on their number.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::bounds::{Check, Figure, bounded};
use super::catalog::{Launcher, Server, ServerArgs};
use super::process::{IdleClients, Pin, ServerProcess, Start, load};
use super::progress;
use super::table::Table;
use crate::endpoint::Transport;
use crate::sys::anonymous_kib;

/// The options of the measurement.
#[derive(Debug, Clone, Args)]
pub struct MemoryArgs {
    #[command(flatten)]
    servers: ServerArgs,
    /// Idle connections
    #[arg(long, default_value_t = 5000)]
    conns: usize,
    /// Measure the figures with a bound, and fail if one exceeds it
    #[arg(long, conflicts_with_all = ["servers", "conns"])]
    check: bool,
}

/// Prints the table.
pub fn run(args: &MemoryArgs) -> Result<()> {
    if args.check {
        return check(args);
    }
    let (launcher, servers) = Launcher::new(&args.servers)?;
    let mut table = Table::new(["server", "connections", "KiB / connection"]);
    for server in &servers {
        let (most, _) = server.most_connections();
        let connections = args.conns.min(most);
        progress(format_args!("{server}: {connections} idle connections"));
        let cell = match measure(&launcher, server, connections) {
            Ok(kib) => format!("{kib:.2}"),
            Err(error) => {
                progress(format_args!("{server}: {error:#}"));
                "failed".into()
            }
        };
        table.row([server.to_string(), connections.to_string(), cell]);
    }
    println!("{table}");
    println!(
        "Growth of the server's anonymous memory (PSS, children included) over TCP; each \
         connection has echoed 64 B. \
         The kernel's share is not in it."
    );
    Ok(())
}

/// Fails if an idle connection costs more than its bound.
fn check(args: &MemoryArgs) -> Result<()> {
    let figure = Figure::BytesPerConnection;
    let (launcher, servers) = Launcher::for_names(&args.servers, &bounded(&[figure]))?;
    let mut check = Check::new();
    for server in &servers {
        progress(format_args!("{server}: {} idle connections", args.conns));
        let kib = measure(&launcher, server, args.conns)?;
        check.add(&server.name, figure, Some(kib * 1024.0));
    }
    check.end()
}

fn measure(launcher: &Launcher, server: &Server, connections: usize) -> Result<f64> {
    let process = ServerProcess::start(Start {
        name: &server.name,
        words: &|url| launcher.arguments(server, url, connections),
        transport: Transport::Tcp,
        pin: Pin(None),
        under: Vec::new(),
    })?;
    // The memory that a server allocates for its first requests does not count.
    let first: Vec<String> =
        ["--lines", "--conns", "8", "--requests", "800", "--secs", "10"].map(Into::into).to_vec();
    load(launcher.load_generator(), &process, &first, Pin(None), Duration::from_secs(30))?;
    let before = anonymous_kib(process.pid())?;
    let clients = IdleClients::connect(launcher.load_generator(), &process, connections)?;
    let after = anonymous_kib(process.pid())?;
    drop(clients);
    process.stop()?;
    Ok((after as f64 - before as f64) / connections as f64)
}
