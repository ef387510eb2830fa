//! Messages about the progress of a run.

use std::fmt::Arguments;
use std::io::{self, IsTerminal};

use clap::ValueEnum;

/// The name of a value on the command line.
pub(super) fn name_of(value: &impl ValueEnum) -> String {
    let name = value.to_possible_value();
    name.map_or_else(String::new, |name| name.get_name().to_owned())
}

/// Prints progress on stderr; stdout is for results.
pub(super) fn progress(line: Arguments<'_>) {
    eprintln!("peers: {line}");
}

/// The same as [`progress`], for a line that the next such line replaces. Only on a terminal.
pub(super) fn progress_in_place(line: Arguments<'_>) {
    const CLEAR: &str = "\x1b[K"; // to the end of the line
    if io::stderr().is_terminal() {
        eprint!("peers: {line}{CLEAR}\r");
    }
}
