//! The measurements: what is started, how often, and how the figures are made of it.
//!
//! ```text
//!   compare.rs        ratios to the baseline: short windows, interleaved        (needs statistics)
//!   outcome.rs        what came of it, as a table
//!   deterministic.rs  system calls and instructions per request                 (needs none)
//!   memory.rs         what an idle connection costs
//!   bounds.rs         what the figures of the last two may be at most
//!   ───────────────
//!   counts.rs         what strace and callgrind have counted
//!   catalog.rs        the servers by name, and how each is started
//!   scenario.rs       the loads by name
//!   process.rs        children: started, pinned, watched, always ended
//!   stats.rs          median and bootstrap interval
//!   table.rs          Markdown
//!   telling.rs        what is said on the way
//! ```

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
mod telling;
#[cfg(feature = "foundations")]
use telling::{name_of, progress, progress_in_place};
