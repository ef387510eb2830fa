//! What the fuzz targets check: the functions of `tests/fuzz/checks.rs`, which `cargo test --test fuzz`
//! calls too.

#[path = "../../tests/fuzz/checks.rs"]
mod checks;

pub use checks::*;
