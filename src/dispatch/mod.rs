//! Where requests are served: Python's mix-ins as plain values, one word each.
//!
//! [`Reactor`] and [`Offload`] leave a connection to the loop; the others take each request away
//! from it and serve it by blocking.

mod offload;
mod workers;

pub use offload::Offload;
pub(crate) use workers::WorkerPool;

/// Only this crate's modes are modes.
pub trait Sealed {}

/// On the loop: the default. One thread serves everyone; a handler must not block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reactor;

impl Sealed for Reactor {}
impl Sealed for Offload {}
