//! A Redis-compatible server: RESP2 and RESP3, strings, lists, hashes, sets, sorted sets, expiry,
//! transactions, publish and subscribe, and clients that wait for elements.
//!
//! Try `redis-cli -p 6380`, or `redis-benchmark -p 6380`.
//!
//! ```text
//! main      the service, and the timer by which keys expire
//! client    the handler of a connection
//! command   the table of all commands
//! strings | keys | lists | hashes | sets | sorted | pubsub | transaction | admin    the commands
//! store     the keys and their values
//! request | words | reply | text    what clients send | lines of words | what they get | strings of bytes
//! ```
//!
//! The path of a command: the framing (`request`) finds it in the input and keeps where its
//! arguments are; the handler (`client`) takes them, looks the command up, and runs it on the store,
//! which all connections share; the replies go out together when all commands that have arrived are
//! served.

#[path = "../common/mod.rs"]
mod common;

mod admin;
mod client;
mod command;
mod hashes;
mod keys;
mod lists;
mod pubsub;
mod reply;
mod request;
mod sets;
mod sorted;
mod store;
mod strings;
mod text;
mod transaction;
mod words;

use std::sync::Arc;
use std::time::{Duration, Instant};

use client::Client;
pub(crate) use client::Shared;
use common::{About, Options};
use request::Requests;
use socketserver::{Endpoint, Error, Hooks, Limits, Mode, Server, Service};

/// How often keys are removed in modes in which the loop does not see a new deadline.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// After this time without a byte TCP asks whether the client is still there, as in Redis.
const KEEPALIVE: Duration = Duration::from_secs(300);

/// How many keys are removed before clients are served again.
const EXPIRED_AT_ONCE: usize = 1000;

/// Removes keys that have expired, also those that no client reads.
struct Expiry {
    shared: Arc<Shared>,
    /// Handlers run in threads of their own, and the loop does not wake when one sets a deadline.
    polls: bool,
    /// When the next key expires.
    deadline: Option<Instant>,
}

impl Hooks for Expiry {
    fn wants_service_actions(&self) -> bool {
        self.polls
    }

    fn next_action(&mut self) -> Option<Instant> {
        self.deadline = self.shared.data().store.next_deadline();
        self.deadline
    }

    fn service_actions(&mut self) {
        let store = &mut self.shared.data().store;
        let now = match self.deadline.filter(|_| !self.polls) {
            // It has passed, by the clock of the event loop, which is simulated in tests.
            Some(deadline) => store.now.max(deadline),
            None => Instant::now(),
        };
        store.expire(now, EXPIRED_AT_ONCE);
    }
}

/// The service at this address. All services that have the same keys share them.
pub(crate) fn service(
    endpoint: &Endpoint,
    mode: Mode,
    limits: Limits,
    shared: &Arc<Shared>,
) -> Result<Service, Error> {
    let polls = matches!(mode.name(), "threading" | "pool");
    let expiry = Expiry { shared: shared.clone(), polls, deadline: None };
    let shared = shared.clone();
    let mut server = Server::endpoint(endpoint)?;
    if matches!(endpoint, Endpoint::Tcp { .. }) {
        server = server.keepalive(KEEPALIVE, KEEPALIVE / 3, 3);
    }
    server
        .framing(Requests::default())
        .hooks(expiry)
        .poll_interval(POLL_INTERVAL)
        .sender_limit(admin::SUBSCRIBER_LIMIT)
        .mode(mode)
        .limits(limits.max_buffered_input(request::MAX_COMMAND))
        .service(move |accepted| Client::new(shared.clone(), accepted))
}

fn main() {
    let options = Options::parse(&About {
        // Not `inline`, which serves one client at a time, so that none could publish to another or
        // fill the list that another waits for; not `forking`, where clients share no memory.
        modes: &["reactor", "offload", "threading", "pool"],
        streams_only: true,
        ..About::new("resp", "A Redis-compatible server.", "tcp://127.0.0.1:6380")
    });
    let shared = Arc::new(Shared::new(options.mode.name()));
    options.run(|endpoint| service(endpoint, options.mode, options.limits(), &shared));
}
