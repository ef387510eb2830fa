//! Servers in a simulated world: tests of handlers without sockets, threads or waiting, in which the time
//! passes at once and every run can be repeated. It needs the feature `testing`.
//!
//! ```toml
//! [dev-dependencies]
//! socketserver = { path = "../socketserver", features = ["testing"] } # the source is that of [dependencies]
//! ```
//!
//! The event loop, the framing and the handlers are those of production. Only the kernel below them is
//! simulated, with the network, the clients and the clock. A server that is made in such a world, by any
//! function of the program, belongs to it: it binds no address.
//!
//! # One line in, one line out
//!
//! [`quiet`] runs a test in a world without faults. [`Simulation::settle`] lets the server work until
//! nothing more can happen.
//!
//! ```
//! use socketserver::testing;
//! use socketserver::{Error, Lines, Server, handler_fn};
//!
//! fn upper() -> Result<Server, Error> {
//!     Server::tcp("127.0.0.1:9999")?
//!         .framing(Lines::default())
//!         .serve(|_| handler_fn(|line, cx| cx.send(&line.to_ascii_uppercase())))
//! }
//!
//! // #[test]
//! fn a_line_is_answered_in_upper_case() {
//!     testing::quiet(|world| {
//!         let mut server = upper().unwrap();
//!         let mut sim = world.start(&mut server);
//!         let client = sim.connect();
//!         client.send(b"hello\n");
//!         sim.settle();
//!         assert_eq!(client.read(), b"HELLO\n");
//!     });
//! }
//! # a_line_is_answered_in_upper_case();
//! ```
//!
//! # Whatever the network does
//!
//! [`check`] runs a test in 500 worlds. In each, some [faults](Fault) happen at random: bytes arrive one by
//! one or late, clients read slowly, the kernel takes less output than it is offered, calls are
//! interrupted. By default, they are those that a correct server hides from its clients, so the same
//! assertions hold.
//!
//! If a run fails, its decisions are shrunk to the few that matter, and printed with a trace, as a
//! [`replay`](Check::replay) to paste into a test. A panic of a handler fails the test too, although the
//! server would survive it: see [`World::allow_panics`]. An error that a handler returns only closes its
//! connection.
//!
//! A line of the trace has the time in seconds, what has happened, the number of the connection, in the
//! order of the connects, and how many bytes wait or were moved. After `events` come the number of events
//! and the bits of epoll(7), after `accept` and `close` the connection and its descriptor. Why a
//! connection has ended is in the log: call `env_logger::try_init()` in the test, and replay the script.
//!
//! ```
//! use socketserver::testing::{self, StreamEnd};
//! use socketserver::{Context, Handler, HandlerResult, LengthPrefixed, Server};
//!
//! /// Sends the number of bytes that it has received so far.
//! struct Adds(u64);
//!
//! impl Handler for Adds {
//!     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
//!         self.0 += message.len() as u64;
//!         cx.send(&self.0.to_be_bytes())
//!     }
//! }
//!
//! // #[test]
//! fn every_message_is_counted_once() {
//!     testing::check(|world| {
//!         let mut server = Server::tcp("127.0.0.1:0")
//!             .unwrap()
//!             .framing(LengthPrefixed::default())
//!             .serve(|_| Adds(0))
//!             .unwrap();
//!         let mut sim = world.start(&mut server);
//!         // The test draws its own decisions from the same source, so that they are shrunk too.
//!         let clients: Vec<_> = (0..1 + world.choose(4)).map(|_| sim.connect()).collect();
//!         for client in &clients {
//!             client.send(b"\0\0\0\x05hello\0\0\0\x01!");
//!             client.finish();
//!         }
//!         sim.settle();
//!         for client in &clients {
//!             let answers = client.read();
//!             assert_eq!(answers.len(), 24);
//!             assert_eq!(answers.last(), Some(&6));
//!             assert_eq!(client.closed_by_server(), Some(StreamEnd::Eof));
//!         }
//!     });
//! }
//! # every_message_is_counted_once();
//! ```
//!
//! # Deadlines, resets and stops
//!
//! [`Simulation::pass`] lets time pass, which takes none. [`Check::with`] adds faults that clients notice;
//! a test then states what holds all the same.
//!
//! ```
//! use std::time::Duration;
//! use socketserver::testing::{Check, Fault};
//! use socketserver::{Context, Handler, HandlerResult, Lines, Server};
//!
//! /// Closes connections that are silent for a minute.
//! struct Echo;
//!
//! impl Handler for Echo {
//!     fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
//!         Ok(cx.set_idle_timeout(Duration::from_secs(60))?)
//!     }
//!
//!     fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
//!         cx.send(line)
//!     }
//! }
//!
//! // #[test]
//! fn a_silent_client_is_timed_out_and_a_stop_is_quick() {
//!     Check::new().with(Fault::Reset).run(|world| {
//!         let mut server = Server::tcp("127.0.0.1:0")
//!             .unwrap()
//!             .framing(Lines::default())
//!             .serve(|_| Echo)
//!             .unwrap();
//!         let mut sim = world.start(&mut server);
//!         let silent = sim.connect();
//!         silent.send(b"not a line");
//!         sim.pass(Duration::from_secs(55));
//!         let lively = sim.connect();
//!         lively.send(b"a line\n");
//!         sim.pass(Duration::from_secs(10));
//!         assert!(silent.closed_by_server().is_some());
//!         assert!(lively.read() == b"a line\n" || world.has(Fault::Reset));
//!
//!         let before = world.now();
//!         let report = sim.stop();
//!         assert_eq!((report.finished, report.aborted), (0, 0));
//!         assert!(world.now() - before < Duration::from_secs(1));
//!     });
//! }
//! # a_silent_client_is_timed_out_and_a_stop_is_quick();
//! ```
//!
//! Actions at a later time, also while the server stops, are for [`World::after`]. A fuzz target passes
//! its bytes to [`Check::replay`]; [`Check::exhaustive`] tries all short scripts of decisions.
//!
//! # Limits
//!
//! Stream services under [`Reactor`](crate::Reactor) and [`Offload`](crate::Offload) are simulated; the
//! jobs of `Offload` run one after the other, at random times. The blocking modes and datagram sockets
//! are not. Connections of different worlds have the same numbers. A hook has the time of the world only
//! from what it has returned to the event loop, see [`Hooks::next_action`](crate::Hooks::next_action).
//! Everything runs on the thread of the test, so races between threads are not found here.
//! [`Accepted::local_addr`](crate::Accepted::local_addr) and the descriptor of a connection are those of
//! a socket that is not connected.

mod calls;
mod check;
mod choices;
mod client;
mod fault;
mod kernel;
mod stream;
#[cfg(test)]
mod tests;
mod trace;
mod world;

pub use check::{Check, Checked};
pub use client::Client;
pub use fault::Fault;
pub use stream::StreamEnd;
pub use world::{Simulation, World};

/// Runs a test in a world without faults. It takes about as long as the handlers in it.
///
/// ```
/// use socketserver::testing;
/// use socketserver::{Server, handler_fn};
///
/// testing::quiet(|world| {
///     let mut server = Server::tcp("127.0.0.1:9999")
///         .and_then(|builder| builder.serve(|_| handler_fn(|message, cx| cx.send(message))))
///         .unwrap();
///     let mut sim = world.start(&mut server);
///     let client = sim.connect();
///     client.send(b"hello");
///     sim.settle();
///     assert_eq!(client.read(), b"hello");
/// });
/// ```
///
/// # Panics
///
/// If the test panics, a handler panics, or an invariant of the event loop is violated. The message has a
/// trace of what has happened.
pub fn quiet(test: impl Fn(&World)) {
    Check::new().without_faults().replay(&[], test);
}

/// Runs a test in 500 worlds with faults that a correct server hides from its clients: [`Check`] has the
/// settings.
///
/// ```
/// use socketserver::testing;
/// use socketserver::{Lines, Server, handler_fn};
///
/// testing::check(|world| {
///     let mut server = Server::tcp("127.0.0.1:9999")
///         .map(|builder| builder.framing(Lines::default()))
///         .and_then(|builder| builder.serve(|_| handler_fn(|line, cx| cx.send(line))))
///         .unwrap();
///     let mut sim = world.start(&mut server);
///     let client = sim.connect();
///     client.send(b"one\ntwo\n");
///     sim.settle();
///     assert_eq!(client.read(), b"one\ntwo\n"); // however the bytes were cut
/// });
/// ```
///
/// # Panics
///
/// If a run fails. The message has the shrunk script of the run, and its trace.
pub fn check(test: impl Fn(&World)) {
    Check::new().run(test);
}
