//! What the fuzz targets check: the functions of `tests/fuzz/checks.rs`, which `cargo test --test fuzz`
//! calls too, and the runs of `tests/simulation` and `tests/simulated_examples`, whose decisions are the
//! bytes of the fuzzer.

#[path = "../../tests/fuzz/checks.rs"]
mod checks;
#[allow(dead_code, unused_imports)] // its tests use the rest
#[path = "../../tests/simulation/handler.rs"]
mod handler;
#[allow(dead_code, unused_imports)] // its tests use the rest
#[path = "../../tests/simulation/random.rs"]
mod random;
#[path = "../../tests/simulated_examples/mod.rs"]
mod simulated;

pub use checks::*;

/// Random handlers and clients under all faults.
pub fn world(decisions: &[u8]) {
    socketserver::testing::Check::new().with_all().replay(decisions, random::run);
}

/// The server of an example, and malformed input.
pub fn example(server: &str, decisions: &[u8]) {
    simulated::replay(server, decisions);
}
