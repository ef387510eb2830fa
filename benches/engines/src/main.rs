//! `engines`: the same handler under all six modes, measured.
//!
//! ```text
//!   main.rs         the command line; server and load are this program, started again
//!   run.rs          the rounds, the progress bar, and what is left behind
//!   plan.rs         the cells: which loads, in which setting, and who cannot take part
//!   measure.rs      one cell, one mode, once
//!   outcome.rs      figures of all rounds
//!   report.rs       tables, Markdown and HTML
//!   plots.rs        SVG
//!   serve.rs        the server that is measured
//!   bin/allocations.rs  a program of its own, whose allocator counts
//!   bin/shutdown.rs     another one, which stops servers
//! ```
//!
//! The load generator, the statistics and the keeping of child processes are those of
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

/// The same echo handler under all six modes of socketserver: which is best for what?
///
/// Without a command: measure, print tables, and leave JSON, plots and one HTML page behind.
#[derive(Debug, Parser)]
#[command(name = "engines", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server that is measured
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
