//! The powers of a handler under every mode, over TCP and Unix streams: it makes streams, sets timers,
//! answers bad frames, switches its framing, pauses its input, says goodbye, ends its output and is given
//! events. Each test has a server of its own, in a process of its own. The events of every handler are
//! checked: none comes after `on_close`, or between a frame and its `on_message`.
//!
//! `cargo test --test powers -- tcp::reactor` runs a part of the tests; with `--full` the long streams have
//! 1 GiB. The table in docs/events.md names the test that holds each row.

#[path = "powers/faults.rs"]
mod faults;
#[path = "powers/framings.rs"]
mod framings;
#[path = "powers/heap.rs"]
mod heap;
#[path = "powers/output.rs"]
mod output;
#[path = "powers/pausing.rs"]
mod pausing;
#[path = "powers/posting.rs"]
mod posting;
#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;
#[path = "powers/server.rs"]
mod server;
#[path = "powers/stopping.rs"]
mod stopping;
#[path = "powers/streams.rs"]
mod streams;
#[path = "powers/timers.rs"]
mod timers;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::atomic::Ordering::SeqCst;

use runner::test;
use server::{Cell, MakeService};

/// A property that holds under every mode.
pub(crate) struct Power {
    name: &'static str,
    check: fn(&Cell),
}

/// Makes properties of functions, which give them their names.
macro_rules! powers {
    ($($name:ident),+ $(,)?) => {
        vec![$($crate::Power { name: stringify!($name), check: $name }),+]
    };
}
pub(crate) use powers;

/// The services that a test can start.
const SERVICES: &[(&str, MakeService)] = &[
    ("streams", streams::service),
    ("timers", timers::service),
    ("stalled", timers::stalled),
    ("rejecting", framings::rejecting),
    ("switching", framings::switching),
    ("switching_boxed", framings::switching_boxed),
    ("replacing", framings::replacing),
    ("at_the_end", framings::at_the_end),
    ("pausing", pausing::service),
    ("goodbye", stopping::service),
    ("finishing", output::finishing),
    ("mixing", output::mixing),
    ("everywhere", output::everywhere),
    ("posting", posting::service),
    ("faults", faults::service),
    ("paused_at_open", pausing::paused_at_open),
    ("default_end", pausing::default_end),
];

fn all_powers() -> Vec<Power> {
    let mut powers = streams::powers();
    powers.extend(timers::powers());
    powers.extend(framings::powers());
    powers.extend(pausing::powers());
    powers.extend(stopping::powers());
    powers.extend(output::powers());
    powers.extend(posting::powers());
    powers.extend(faults::powers());
    powers
}

fn main() -> ExitCode {
    let serve = |arguments: &[String]| server::serve(arguments, SERVICES);
    let Some(mut arguments) = runner::arguments_unless_serving(serve) else {
        return ExitCode::SUCCESS;
    };
    if arguments.iter().any(|argument| argument == "--full") {
        arguments.retain(|argument| argument != "--full");
        streams::LENGTH.store(1 << 30, SeqCst);
    }
    let mut tests = Vec::new();
    for cell in Cell::all() {
        for Power { name, check } in all_powers() {
            tests.push(test(format!("{}::{name}", cell.name()), move || check(&cell)));
        }
    }
    let names: BTreeSet<_> = tests.iter().map(|test| test.name.as_str()).collect();
    assert_eq!(names.len(), tests.len(), "every test has a name of its own");
    drop(names);
    runner::run(tests, arguments.into_iter()).0
}
