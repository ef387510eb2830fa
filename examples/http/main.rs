//! A web server: HTTP/1.1 with files, ranges, conditions and uploads, and a chat room over
//! WebSocket.
//!
//! ```sh
//! cargo run --release --example http -- --root docs   # then http://127.0.0.1:8080/ in a browser
//! curl -T file http://127.0.0.1:8080/file             # with --upload
//! ```
//!
//! The way of a request: `framing` splits the input into heads, pieces of bodies and WebSocket frames
//! (`request` parses a head). `connection` is the handler: it asks `target` for a path and `files` for
//! the file, and `answers` sends what `conditions` select of it. None of these waits for the network.
//! The files themselves are read and written where the handler runs: on the event loop, or under
//! `offload` in its workers, which is better where the disk is slow. Under `inline` each connection gets
//! one answer, because all others wait for it. Under `inline` and `forking` connections have no senders,
//! so there is no chat.

mod answers;
#[path = "../common/mod.rs"]
mod common;
mod conditions;
mod connection;
mod date;
mod files;
mod framing;
mod request;
mod response;
#[path = "../common/room.rs"]
mod room;
mod target;
mod upload;
#[path = "../common/websocket.rs"]
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use common::{About, Options, fail};
use connection::Connection;
pub(crate) use connection::Site;
pub(crate) use files::Root;
use framing::Protocol;
use socketserver::{Endpoint, Error, Limits, Mode, Server, Service};

/// The service at this address.
pub(crate) fn service(
    endpoint: &Endpoint,
    mode: Mode,
    limits: Limits,
    site: &Arc<Site>,
) -> Result<Service, Error> {
    let site = site.clone();
    let mut builder = Server::endpoint(endpoint)?;
    if cfg!(target_os = "linux") && matches!(endpoint, Endpoint::Tcp { .. }) {
        // A client is accepted together with its first request, or when it is silent for a second.
        builder = builder.defer_accept(Duration::from_secs(1));
    }
    builder
        .mode(mode)
        .limits(limits)
        .service_with(move |_| (Protocol::new(), Connection::new(site.clone())))
}

fn main() {
    let options = Options::parse(&About {
        streams_only: true,
        flags: &[("upload", "clients may store files by PUT")],
        values: &[
            ("root", ".", "the directory with the files"),
            ("max-upload", "1073741824", "the longest upload, in bytes"),
            ("patience", "20", "seconds that a client may be silent, or take for a request"),
        ],
        ..About::new("http", "A web server with a chat room at /chat.", "tcp://127.0.0.1:8080")
    });
    let root = options.value("root").unwrap_or_default();
    let root = Root::new(root).unwrap_or_else(|error| fail(format!("--root {root:?}: {error}"), 2));
    let limit = options.value("max-upload").unwrap_or_default();
    let limit = limit.parse().unwrap_or_else(|_| fail(format!("--max-upload {limit:?}"), 2));
    let site = Arc::new(Site {
        root,
        room: Arc::default(),
        longest_upload: options.has("upload").then_some(limit),
        // `inline` serves one connection at a time: a client must not keep it for later.
        keep_alive: options.mode.name() != "inline",
        patience: options.seconds("patience"),
    });
    options.run(|endpoint| service(endpoint, options.mode, options.limits(), &site));
}
