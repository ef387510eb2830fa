//! Compares the event loop with threads: `cargo bench --bench engines`.
//!
//! This program only starts the package in `benches/engines`, so that the dependencies of that
//! package are compiled for this command only. Arguments after `--` are passed on:
//! `cargo bench --bench engines -- --full`.
//!
//! ```text
//!   (nothing)     the same handler under all six modes, about two minutes
//!   --full        everything, --smoke  a few seconds, --help  all options
//!   allocations   allocations per message, counted
//!   shutdown      how long shutdown() takes, in every mode
//!   fairness      how long a client waits beside others whose short requests have long answers
//!   micro         framings, timers, one connection among many, hand-over and broadcast
//! ```

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let mut arguments: Vec<_> = env::args_os().skip(1).collect();
    let is_bench = arguments.iter().any(|argument| argument == "--bench");
    if !is_bench {
        println!("nothing to test here; `cargo bench --bench engines` measures");
        return ExitCode::SUCCESS;
    }
    arguments.retain(|argument| argument != "--bench");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/engines/Cargo.toml");
    if !manifest.exists() {
        eprintln!("error: {} is only in the repository", manifest.display());
        return ExitCode::FAILURE;
    }
    let first = arguments.first().and_then(|argument| argument.to_str());
    let (words, passed): (&[&str], _) = match first {
        Some("micro") => (&["bench", "--bench", "micro"], &arguments[1..]),
        Some("allocations") => (&["run", "--release", "--bin", "allocations"], &arguments[1..]),
        Some("shutdown") => (&["run", "--release", "--bin", "shutdown"], &arguments[1..]),
        Some("fairness") => (&["run", "--release", "--bin", "fairness"], &arguments[1..]),
        _ => (&["run", "--release", "--bin", "engines"], &arguments[..]),
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(words)
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--")
        .args(passed)
        .status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE, // it has printed the reason
        Err(error) => {
            eprintln!("error: cargo cannot be started: {error}");
            ExitCode::FAILURE
        }
    }
}
