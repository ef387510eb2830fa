//! Compares examples of `socketserver` with the servers whose protocols they speak.
//!
//! ```text
//!   main.rs       the command line
//!   measure.rs    servers, short slices in turn, ratios with intervals, tables
//!   resp.rs       the example `resp` against redis-server
//!   dns.rs        the example `dns` against nsd and BIND
//!   codecs.rs     the codec of the example `dns` against another
//!   syslog.rs     the example `syslog`, of which no message may be lost without being counted
//!   http.rs       the example `http` against nginx
//! ```
//!
//! Linux only, as the package `peers`, from which processes, statistics and tables come.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod codecs;
mod dns;
mod http;
mod measure;
mod resp;
mod syslog;

/// Compares examples of socketserver with the servers whose protocols they speak.
#[derive(Debug, Parser)]
#[command(args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The example `resp` against redis-server, with redis-benchmark as the load
    Resp(resp::RespArgs),
    /// The example `dns` against nsd and BIND, with dnsperf as the load
    Dns(dns::DnsArgs),
    /// The codec of the example `dns` against the other one that it could have
    Codecs(codecs::CodecsArgs),
    /// The example `syslog`: what is sent is received or dropped by the kernel, and written
    Syslog(syslog::SyslogArgs),
    /// The example `http` against nginx, with wrk as the load
    Http(http::HttpArgs),
}

fn main() -> ExitCode {
    peers::ended("originals", run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    peers::sys::raise_descriptor_limit()?;
    match &cli.command {
        Command::Resp(args) => resp::run(args),
        Command::Dns(args) => dns::run(args),
        Command::Codecs(args) => codecs::run(args),
        Command::Syslog(args) => syslog::run(args),
        Command::Http(args) => http::run(args),
    }
}
