//! The limits of a service under every mode, for handlers and for request handlers: each is reached, the
//! peer sees the verdict, the counter moves, the server goes on serving, and one below does not trip.
//!
//! `cargo test --test limits -- pool` runs a part of the tests.

#[path = "limits/connections.rs"]
mod connections;
#[path = "limits/datagrams.rs"]
mod datagrams;
#[path = "limits/messages.rs"]
mod messages;
#[path = "limits/output.rs"]
mod output;
#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;
#[path = "limits/server.rs"]
mod server;

use std::process::ExitCode;

use runner::test;
use server::Cell;

/// A property of a limit, and the cells in which it holds.
pub(crate) struct Property {
    name: &'static str,
    applies: fn(&Cell) -> bool,
    check: fn(&Cell),
}

/// Makes properties of functions, which give them their names.
macro_rules! properties {
    ($($name:ident: $applies:expr),+ $(,)?) => {
        vec![$($crate::Property { name: stringify!($name), applies: $applies, check: $name }),+]
    };
}
pub(crate) use properties;

fn main() -> ExitCode {
    let Some(arguments) = runner::arguments_unless_serving(server::serve) else {
        return ExitCode::SUCCESS;
    };
    let mut properties = messages::properties();
    properties.extend(output::properties());
    properties.extend(connections::properties());
    properties.extend(datagrams::properties());
    let mut tests = Vec::new();
    for cell in Cell::all() {
        for Property { name, applies, check } in &properties {
            if applies(&cell) {
                let check = *check;
                tests.push(test(format!("{}::{name}", cell.name()), move || check(&cell)));
            }
        }
    }
    runner::run(tests, arguments.into_iter()).0
}
