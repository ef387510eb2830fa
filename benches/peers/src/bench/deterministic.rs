//! Figures that need no statistics: system calls per request and per connection, user instructions
//! per request.
//!
//! Each is the difference of two runs that differ only in their number of requests, so that the
//! cost of start and end cancels out. While the clients send, the server is stopped, equally often
//! in both runs: it always finds all their messages at once, even on a busy machine.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::bounds::{Check, Figure, bounded};
use super::catalog::{Launcher, Server, ServerArgs};
use super::counts::{is_installed, sum_of_calls, total_of_profile};
use super::process::{Pin, Scratch, ServerProcess, Start, load};
use super::table::Table;
use super::{name_of, progress};
use crate::endpoint::Transport;
use crate::load::Mode;

/// The options of the counts.
#[derive(Debug, Clone, Args)]
pub struct DeterministicArgs {
    #[command(flatten)]
    servers: ServerArgs,
    /// The transport of the clients
    #[arg(long, value_enum, default_value = "tcp")]
    transport: Transport,
    /// Leave out the instructions, which take the longest
    #[arg(long)]
    no_instructions: bool,
    /// Count the figures with a bound, and fail if one exceeds it
    #[arg(long, conflicts_with_all = ["servers", "transport", "no_instructions"])]
    check: bool,
}

/// The upper bounds of the baseline's cost per request.
const MOST_SYSTEM_CALLS: f64 = 2.05;
const MOST_INSTRUCTIONS: f64 = 110.0;

/// A count in two runs.
#[derive(Clone, Copy)]
struct Count {
    transport: Transport,
    mode: Mode,
    clients: usize,
    /// The requests of the shorter and the longer run: whole rounds of all clients.
    requests: [u64; 2],
    /// Whether the server is stopped while the clients send.
    is_gated: bool,
}

const PER_REQUEST: Count = Count {
    transport: Transport::Tcp,
    mode: Mode::Lockstep,
    clients: 64,
    requests: [32 * 64, 256 * 64],
    is_gated: true,
};

const PER_CONNECTION: Count = Count {
    transport: Transport::Tcp,
    mode: Mode::Churn,
    clients: 32,
    requests: [500, 4_000],
    is_gated: false,
};

const INSTRUCTIONS: Count = Count {
    transport: Transport::Tcp,
    mode: Mode::Lockstep,
    clients: 16,
    requests: [250 * 16, 1_500 * 16],
    is_gated: true,
};

/// The time limit of a run. Under the tools, a server is 20 to 50 times slower.
const LIMIT: Duration = Duration::from_secs(120);

/// Prints the table.
pub fn run(args: &DeterministicArgs) -> Result<()> {
    if args.check {
        return check(args);
    }
    let (launcher, servers) = Launcher::new(&args.servers)?;
    let over = |count: Count| Count {
        transport: args.transport,
        mode: match args.transport {
            Transport::Udp => Mode::Echo, // there is no lockstep for datagrams
            _ => count.mode,
        },
        is_gated: count.is_gated && args.transport != Transport::Udp,
        ..count
    };
    let mut table = Table::new([
        "server",
        "system calls / request",
        "system calls / connection",
        "user instructions / request",
    ]);
    for server in &servers {
        if let Some(reason) = server.refuses_counting() {
            progress(format_args!("without {server}: {reason}"));
            continue;
        }
        progress(format_args!("counting {server}"));
        let per_connection = match args.transport {
            Transport::Udp => Ok(None), // has no connections
            _ => system_calls(&launcher, server, &over(PER_CONNECTION)),
        };
        let instructions = match args.no_instructions {
            true => Ok(None),
            false => instructions(&launcher, server, &over(INSTRUCTIONS)),
        };
        table.row([
            server.to_string(),
            figure(system_calls(&launcher, server, &over(PER_REQUEST)), 2),
            figure(per_connection, 1),
            figure(instructions, 0),
        ]);
    }
    println!("{table}");
    println!(
        "64 B. System calls: strace, {} clients; per connection, {} clients. \
         Instructions: callgrind, {} clients, whose messages the server finds all at once.",
        PER_REQUEST.clients, PER_CONNECTION.clients, INSTRUCTIONS.clients
    );
    Ok(())
}

/// Counts the figures with a bound, and fails if one exceeds it.
fn check(args: &DeterministicArgs) -> Result<()> {
    let figures =
        [Figure::CallsPerRequest, Figure::CallsPerConnection, Figure::InstructionsPerRequest];
    let (launcher, servers) = Launcher::for_names(&args.servers, &bounded(&figures))?;
    let mut check = Check::new();
    for server in &servers {
        progress(format_args!("counting {server}"));
        for figure in figures {
            let counted = match figure {
                Figure::CallsPerConnection => system_calls(&launcher, server, &PER_CONNECTION),
                Figure::InstructionsPerRequest => instructions(&launcher, server, &INSTRUCTIONS),
                _ => system_calls(&launcher, server, &PER_REQUEST),
            };
            check.add(&server.name, figure, counted?);
        }
    }
    check.end()
}

/// Verifies the cost of the baseline, as far as the tools are installed, and prints the result.
pub(super) fn check_baseline() -> Result<()> {
    let launcher = Launcher::for_baseline()?;
    let baseline = Server::raw();
    progress(format_args!("checking the baseline"));
    let checks = [
        (
            "system calls",
            "strace",
            system_calls(&launcher, &baseline, &PER_REQUEST)?,
            MOST_SYSTEM_CALLS,
        ),
        (
            "user instructions",
            "valgrind",
            instructions(&launcher, &baseline, &INSTRUCTIONS)?,
            MOST_INSTRUCTIONS,
        ),
    ];
    for (what, tool, found, bar) in checks {
        match found {
            None => println!("Baseline: {what} per request not checked, there is no {tool}."),
            Some(found) if found <= bar => {
                println!("Baseline: {found:.2} {what} per request (at most {bar}).");
            }
            Some(found) => {
                bail!(
                    "the baseline makes {found:.2} {what} per request, not {bar} at most: \
                     no ratio to it means anything"
                )
            }
        }
    }
    Ok(())
}

/// A cell of the table. The failure of a server is printed, and does not end the run.
fn figure(value: Result<Option<f64>>, digits: usize) -> String {
    match value {
        Ok(Some(value)) => format!("{value:.digits$}"),
        Ok(None) => "–".into(),
        Err(error) => {
            progress(format_args!("{error:#}"));
            "failed".into()
        }
    }
}

/// System calls per request, if strace is installed and the server supports so many clients.
fn system_calls(launcher: &Launcher, server: &Server, count: &Count) -> Result<Option<f64>> {
    if !is_installed("strace") || count.is_too_much_for(server) {
        return Ok(None);
    }
    let per_request = count.difference(|requests| {
        let scratch = Scratch::new()?;
        let output = scratch.path().join("strace");
        let tool = format!("strace -f -c --summary-columns=calls,name -o {}", output.display());
        count.run(launcher, server, &tool, requests)?;
        let summary = fs::read_to_string(&output).context("strace has written no summary")?;
        Ok(sum_of_calls(&summary))
    })?;
    Ok(Some(per_request))
}

/// User-space instructions per request, if valgrind is installed and the server supports so many
/// clients.
fn instructions(launcher: &Launcher, server: &Server, count: &Count) -> Result<Option<f64>> {
    if !is_installed("valgrind") || count.is_too_much_for(server) {
        return Ok(None);
    }
    let per_request = count.difference(|requests| {
        let scratch = Scratch::new()?;
        let output = scratch.path().join("callgrind.%p");
        let tool =
            format!("valgrind -q --tool=callgrind --callgrind-out-file={}", output.display());
        count.run(launcher, server, &tool, requests)?;
        let mut total = 0;
        for entry in fs::read_dir(scratch.path())? {
            total += total_of_profile(&fs::read_to_string(entry?.path())?);
        }
        Ok(total)
    })?;
    Ok(Some(per_request))
}

impl Count {
    fn is_too_much_for(&self, server: &Server) -> bool {
        let kept = match self.mode {
            Mode::Churn => 0,
            _ => self.clients,
        };
        self.transport != Transport::Udp && server.refuses_connections(kept).is_some()
    }

    /// The cost of one more request.
    fn difference(&self, measure: impl Fn(u64) -> Result<u64>) -> Result<f64> {
        let [fewer, more] = self.requests;
        let difference = measure(more)? as f64 - measure(fewer)? as f64;
        Ok(difference / (more - fewer) as f64)
    }

    /// Runs the server under `tool` for exactly `requests` requests.
    fn run(&self, launcher: &Launcher, server: &Server, tool: &str, requests: u64) -> Result<()> {
        let process = ServerProcess::start(Start {
            name: &server.name,
            words: &|url| launcher.arguments(server, url, self.clients),
            transport: self.transport,
            pin: Pin(None),
            under: tool.split(' ').map(str::to_owned).collect(),
        })?;
        let mut options = format!(
            "--mode {} --conns {} --requests {requests} --secs {}",
            name_of(&self.mode),
            self.clients,
            LIMIT.as_secs()
        );
        if self.transport != Transport::Udp {
            options += " --lines"; // the same messages for all servers
        }
        if self.is_gated {
            let [_, most] = self.requests;
            let idle = (most - requests) / self.clients as u64;
            options += &format!(" --gate --idle-stops {idle}");
        }
        let options: Vec<String> = options.split(' ').map(str::to_owned).collect();
        let report = load(launcher.load_generator(), &process, &options, Pin(None), 2 * LIMIT)?;
        if report.requests != requests || report.errors > 0 {
            bail!(
                "{server} answered {} of {requests} requests, with {} errors",
                report.requests,
                report.errors
            );
        }
        process.stop()
    }
}
