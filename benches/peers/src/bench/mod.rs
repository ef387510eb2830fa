//! The measurements: what is started, how often, and how the figures are made of it.
//!
//! ```text
//!   compare.rs        ratios to the baseline: short windows, interleaved        (needs statistics)
//!   outcome.rs        what came of it, as a table
//!   deterministic.rs  system calls and instructions per request                 (needs none)
//!   memory.rs         what an idle connection costs
//!   ───────────────
//!   catalog.rs        the servers by name, and how each is started
//!   scenario.rs       the loads by name
//!   process.rs        children: started, pinned, watched, always ended
//!   stats.rs          median and bootstrap interval
//!   table.rs          Markdown
//! ```

mod catalog;
pub mod compare;
pub mod deterministic;
pub mod memory;
mod outcome;
mod process;
mod scenario;
mod stats;
mod table;

use std::fmt::Arguments;
use std::io::{self, IsTerminal};

use clap::ValueEnum;

/// What the command line calls a value.
fn name_of(value: &impl ValueEnum) -> String {
    let name = value.to_possible_value();
    name.map_or_else(String::new, |name| name.get_name().to_owned())
}

/// Tells on stderr what is going on; stdout is for results.
fn progress(line: Arguments<'_>) {
    eprintln!("peers: {line}");
}

/// As [`progress`], for what is soon replaced by the next such line. Only for whoever watches.
fn progress_in_place(line: Arguments<'_>) {
    const CLEAR: &str = "\x1b[K"; // to the end of the line
    if io::stderr().is_terminal() {
        eprint!("peers: {line}{CLEAR}\r");
    }
}
