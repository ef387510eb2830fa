//! `engines`: the same handler under all six modes, measured.
//!
//! ```text
//!   main.rs         the command line; server and load are this program, started again
//!   run.rs          the rounds, the progress bar, and the result files
//!   plan.rs         the cells: which loads, in which setting, and which modes cannot take part
//!   measure.rs      one measurement of one mode in one cell
//!   outcome.rs      figures of all rounds
//!   report.rs       tables, Markdown and HTML
//!   plots.rs        SVG
//!   serve.rs        the measured server
//!   bin/allocations.rs  a separate program, whose allocator counts
//!   bin/shutdown.rs     a separate program, which stops servers
//! ```
//!
//! The load generator, the statistics and the handling of child processes are those of
//! `benches/peers`. Linux only.

mod measure;
mod outcome;
mod plan;
mod plots;
mod report;
mod run;
mod serve;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use peers::load::LoadArgs;
use run::RunArgs;
use serve::ServeArgs;

/// Measures the same echo handler under all six modes of socketserver.
///
/// Without a command: measures, prints tables, and writes JSON, plots and one HTML page.
#[derive(Debug, Parser)]
#[command(name = "engines", args_conflicts_with_subcommands = true, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the measured server
    Serve(ServeArgs),
    /// Make load on a server
    Load(LoadArgs),
}

fn main() -> ExitCode {
    peers::ended("engines", run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    let descriptors = socketserver::raise_descriptor_limit()?;
    match &cli.command {
        None => run::run(&cli.run, descriptors),
        Some(Command::Serve(args)) => serve::run(args),
        Some(Command::Load(args)) => peers::load::run(args),
    }
}
