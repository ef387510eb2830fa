//! The command line of `peers`. Every server and every load is this program, started again.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use peers::attack::AttackArgs;
use peers::bench::attacks::AttacksArgs;
use peers::bench::compare::CompareArgs;
use peers::bench::deterministic::DeterministicArgs;
use peers::bench::memory::MemoryArgs;
use peers::load::LoadArgs;
use peers::servers::ServeArgs;
use peers::{attack, bench, load, servers, sys};

/// Echo servers on other foundations, and an interleaved comparison of socketserver with them.
///
/// Without a command: compare servers with a hand-written epoll loop, in requests per second, CPU
/// time and latency.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true, args_override_self = true)]
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
    /// Measure the user-space memory of an idle connection
    Memory(MemoryArgs),
    /// Attack hello-world servers, and tell which survive
    Attacks(AttacksArgs),
    /// Run one of the servers of this package
    Serve(ServeArgs),
    /// Make load on a server
    Load(LoadArgs),
    /// Attack a server
    Attack(AttackArgs),
}

fn main() -> ExitCode {
    peers::ended("peers", run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    sys::raise_descriptor_limit()?;
    match &cli.command {
        None => bench::compare::run(&cli.compare),
        Some(Command::Deterministic(args)) => bench::deterministic::run(args),
        Some(Command::Memory(args)) => bench::memory::run(args),
        Some(Command::Attacks(args)) => bench::attacks::run(args),
        Some(Command::Serve(args)) => servers::serve(args),
        Some(Command::Load(args)) => load::run(args),
        Some(Command::Attack(args)) => attack::run(args),
    }
}
