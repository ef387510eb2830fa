//! The same echo server on every foundation: bytes go back as they came, a datagram goes back
//! whole.
//!
//! ```text
//!   raw          epoll(7) by hand: the baseline, and the practical limit of one thread
//!   mio          the same by hand on mio            } these two share `connection.rs`,
//!   tokio-ct     tokio, current-thread runtime        so that they differ in nothing else
//!   tokio-mt     tokio, two worker threads
//!   message-io   its own event loop on mio
//!   may          stackful coroutines, one worker
//!   std-threads  a thread per connection
//! ```
//!
//! Every server is written as its foundation's users would write it, on the sockets that
//! [`Endpoint::bind`] makes.

mod connection;
mod may;
mod message_io;
mod mio;
mod raw;
mod threads;
mod tokio;

use std::io::{self, Write};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::endpoint::{Endpoint, Transport};
use crate::sys::Batch;

/// A server that this program contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Foundation {
    /// epoll by hand, the baseline
    Raw,
    /// mio by hand
    Mio,
    /// tokio, current-thread runtime
    TokioCt,
    /// tokio, two worker threads
    TokioMt,
    /// message-io (TCP and UDP)
    MessageIo,
    /// may, one worker
    May,
    /// a thread per connection
    StdThreads,
}

/// How to run one server.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// What the server is built on
    foundation: Foundation,
    /// Where it listens: tcp://IP:PORT (port 0 picks one), udp://IP:PORT or unix://PATH
    #[arg(long, value_name = "URL", default_value = "tcp://127.0.0.1:0")]
    listen: Endpoint,
    /// Bytes of read buffer, once per server or, where the foundation needs it, per connection
    #[arg(long, value_name = "BYTES", default_value_t = READ_BUFFER)]
    buffer: usize,
}

/// What every server reads at most at once, unless told otherwise.
pub const READ_BUFFER: usize = 64 << 10;

/// The largest datagram that UDP can carry, and a little more.
const DATAGRAM: usize = 64 << 10;

/// How many datagrams the batching servers take in one system call.
const DATAGRAMS_AT_ONCE: usize = 32;

/// Runs a server until the process is killed.
pub fn serve(args: &ServeArgs) -> Result<()> {
    let ServeArgs { listen, buffer, .. } = args;
    match args.foundation {
        Foundation::Raw => raw::serve(listen, *buffer),
        Foundation::Mio => mio::serve(listen, *buffer),
        Foundation::TokioCt => tokio::serve(listen, *buffer, tokio::Flavor::CurrentThread),
        Foundation::TokioMt => tokio::serve(listen, *buffer, tokio::Flavor::TwoWorkers),
        Foundation::MessageIo => message_io::serve(listen),
        Foundation::May => may::serve(listen, *buffer),
        Foundation::StdThreads => threads::serve(listen, *buffer),
    }
}

impl Foundation {
    /// Whether the foundation offers `transport` at all.
    pub fn supports(self, transport: Transport) -> bool {
        match self {
            Foundation::MessageIo => transport != Transport::Unix,
            _ => true,
        }
    }
}

/// The one line on stdout that tells whoever started the server where to connect.
fn announce(endpoint: &Endpoint) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "listening on {endpoint}")?;
    out.flush()
}

/// Sends back every datagram that waits, as many at once as fit. For edge-triggered polling:
/// returns when the socket has no more to read, or no room to send; the rest is then sent first the
/// next time.
fn echo_datagrams(socket: &impl std::os::fd::AsFd, batch: &mut Batch) -> io::Result<()> {
    let echo = |batch: &mut Batch| -> io::Result<()> {
        batch.send(socket)?;
        while batch.receive(socket)? == batch.capacity() {
            batch.send(socket)?;
        }
        batch.send(socket)
    };
    match echo(batch) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

/// Why a server cannot serve what it was asked to.
fn unsupported(foundation: &str, endpoint: &Endpoint) -> Result<()> {
    bail!("{foundation} cannot listen on {endpoint}")
}
