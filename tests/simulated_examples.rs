//! The servers of the examples in a simulated world.

#[path = "simulated_examples/mod.rs"]
mod simulated;
