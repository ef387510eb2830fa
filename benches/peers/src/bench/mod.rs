//! The measurements: what is started, how often, and how the figures are computed.
//!
//! ```text
//!   compare.rs        ratios to the baseline: short windows, interleaved        (needs statistics)
//!   outcome.rs        the result of a comparison, as a table
//!   deterministic.rs  system calls and instructions per request                 (needs none)
//!   memory.rs         the memory of an idle connection
//!   attacks/          hello-worlds under attack: who survives, at which cost
//!   bounds.rs         the bounds of the figures of the last two
//!   ───────────────
//!   counts.rs         parsers of the output of strace and callgrind
//!   catalog.rs        the servers by name, and how each is started
//!   scenario.rs       the loads by name
//!   process.rs        child processes: started, pinned, observed, always ended
//!   stats.rs          median and bootstrap interval
//!   table.rs          Markdown
//!   progress.rs       messages about the progress of a run
//! ```

#[cfg(feature = "foundations")]
pub mod attacks;
#[cfg(feature = "foundations")]
mod bounds;
#[cfg(feature = "foundations")]
mod catalog;
#[cfg(feature = "foundations")]
pub mod compare;
pub mod counts;
#[cfg(feature = "foundations")]
pub mod deterministic;
#[cfg(feature = "foundations")]
pub mod memory;
#[cfg(feature = "foundations")]
mod outcome;
pub mod process;
#[cfg(feature = "foundations")]
mod scenario;
pub mod stats;
pub mod table;

#[cfg(feature = "foundations")]
mod progress;
#[cfg(feature = "foundations")]
use progress::{name_of, progress, progress_in_place};
