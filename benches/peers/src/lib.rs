//! Echo servers on other foundations, a load generator, and an interleaved comparison of
//! socketserver with them.
//!
//! ```text
//!   main.rs        the command line; every server and load is this program, started again
//!   bench/         compare · deterministic · memory · attacks: what is measured, and how
//!   load/          the load generator, a process of its own
//!   attack/        hostile clients, processes of their own
//!   servers/       the echo servers, each a process of its own
//!   endpoint.rs    addresses, and sockets bound the same way for all
//!   sys/           the system calls: the only `unsafe`
//! ```
//!
//! Without the feature `foundations`, the servers, the comparison and their dependencies are left
//! out; `benches/engines` uses the rest.
//!
//! Linux only: it uses epoll, reads `/proc` and pins processes to CPUs.

use std::process::ExitCode;

pub mod attack;
pub mod bench;
pub mod endpoint;
pub mod load;
#[cfg(feature = "foundations")]
pub mod servers;
pub mod sys;

/// The exit code of a program; an error is printed on stderr.
pub fn ended(program: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
