//! The event loop in a simulated world: random handlers, random clients and all faults, with a model of
//! what each client must see.

#[path = "simulation/handler.rs"]
mod handler;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/records.rs"]
mod records;
#[path = "simulation/regressions.rs"]
mod regressions;
#[path = "simulation/scenarios.rs"]
mod scenarios;
#[path = "simulation/service.rs"]
mod service;
#[path = "simulation/users.rs"]
mod users;
