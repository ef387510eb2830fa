//! The modes: where requests are served. Each mode has one file with its options, its dispatchers
//! and its threads or processes.
//!
//! Under [`Reactor`] and [`Offload`] a connection stays on the event loop. Under the other modes a
//! session serves each request with blocking calls.

mod completion;
mod forking;
mod inline;
mod mode;
mod offload;
mod pool;
mod queue_waits;
mod reactor;
mod service;
mod thread_pool;
mod threading;

pub use forking::Forking;
pub use inline::Inline;
pub use mode::{BlockingMode, Mode};
pub use offload::Offload;
pub use pool::Pool;
pub use reactor::Reactor;
pub(crate) use service::{
    HandlerFactory, ListenerHandle, MakeFactory, ModeRunner, PerRunFactory, RunContext,
    ServiceConfig, ServiceRunner, SharedFactory, start_run,
};
pub use service::{HandlerMode, RequestMode};
pub use threading::Threading;
