//! `peers`: echo servers on other foundations, a load generator, and an interleaved comparison of
//! socketserver with them.
//!
//! ```text
//!   main.rs        the command line; every server and load is this program, started again
//!   bench/         compare · deterministic · memory: what is measured, and how
//!   load/          the load generator, a process of its own
//!   servers/       the echo servers, each a process of its own
//!   endpoint.rs    addresses, and sockets bound the same way for all
//!   sys/           the system calls: the only `unsafe`
//! ```
//!
//! Linux only: it measures epoll, reads `/proc` and pins processes to CPUs.

mod bench;
mod endpoint;
mod load;
mod servers;
mod sys;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use bench::compare::CompareArgs;
use bench::deterministic::DeterministicArgs;
use bench::memory::MemoryArgs;
use load::LoadArgs;
use servers::ServeArgs;

/// Echo servers on other foundations, and an interleaved comparison of socketserver with them.
///
/// Without a command: compare servers with a hand-written epoll loop, in requests per second, CPU
/// time and latency.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    compare: CompareArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Count system calls and instructions per request: figures that need no statistics
    Deterministic(DeterministicArgs),
    /// Measure what an idle connection costs in user space
    Memory(MemoryArgs),
    /// Run one of the servers of this package
    Serve(ServeArgs),
    /// Make load on a server
    Load(LoadArgs),
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    sys::raise_descriptor_limit()?;
    match &cli.command {
        None => bench::compare::run(&cli.compare),
        Some(Command::Deterministic(args)) => bench::deterministic::run(args),
        Some(Command::Memory(args)) => bench::memory::run(args),
        Some(Command::Serve(args)) => servers::serve(args),
        Some(Command::Load(args)) => load::run(args),
    }
}
