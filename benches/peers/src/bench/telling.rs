//! What is said on the way.

use std::fmt::Arguments;
use std::io::{self, IsTerminal};

use clap::ValueEnum;

/// What the command line calls a value.
pub(super) fn name_of(value: &impl ValueEnum) -> String {
    let name = value.to_possible_value();
    name.map_or_else(String::new, |name| name.get_name().to_owned())
}

/// Tells on stderr what is going on; stdout is for results.
pub(super) fn progress(line: Arguments<'_>) {
    eprintln!("peers: {line}");
}

/// As [`progress`], for what is soon replaced by the next such line. Only for whoever watches.
pub(super) fn progress_in_place(line: Arguments<'_>) {
    const CLEAR: &str = "\x1b[K"; // to the end of the line
    if io::stderr().is_terminal() {
        eprint!("peers: {line}{CLEAR}\r");
    }
}
