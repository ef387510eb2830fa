//! The same echo server on every foundation: it sends bytes and whole datagrams back.
//!
//! ```text
//!   raw          hand-written on epoll(7): the baseline, and the practical limit of one thread
//!   mio          hand-written on mio; shares `connection.rs` with raw
//!   tokio-ct     tokio, current-thread runtime
//!   tokio-mt     tokio, two worker threads
//!   message-io   its own event loop on mio
//!   may          stackful coroutines, one worker
//!   std-threads  a thread per connection
//! ```
//!
//! Every server is written in the usual style of its foundation, on the sockets of
//! [`Endpoint::bind`].

mod connection;
mod lines;
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

/// A server of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Foundation {
    /// hand-written on epoll, the baseline
    Raw,
    /// hand-written on mio
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

/// The options of a server.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The foundation of the server
    foundation: Foundation,
    /// The address: tcp://IP:PORT (port 0 picks one), udp://IP:PORT or unix://PATH
    #[arg(long, value_name = "URL", default_value = "tcp://127.0.0.1:0")]
    listen: Endpoint,
    /// Bytes of read buffer, per server or, if the foundation needs it, per connection
    #[arg(long, value_name = "BYTES", default_value_t = READ_BUFFER)]
    buffer: usize,
    /// The hello-world of the foundation: sends each line back (tokio-mt, message-io, std-threads)
    #[arg(long)]
    lines: bool,
}

/// The default size of the read buffer.
pub const READ_BUFFER: usize = 64 << 10;

/// A little more than the largest UDP datagram.
const DATAGRAM: usize = 64 << 10;

/// The number of datagrams per system call of the batching servers.
const DATAGRAMS_AT_ONCE: usize = 32;

/// Runs a server until the process is killed.
pub fn serve(args: &ServeArgs) -> Result<()> {
    let ServeArgs { listen, buffer, .. } = args;
    if args.lines {
        return lines::serve(args.foundation, listen);
    }
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
    /// Whether the foundation supports `transport`.
    pub fn supports(self, transport: Transport) -> bool {
        match self {
            Foundation::MessageIo => transport != Transport::Unix,
            _ => true,
        }
    }
}

/// Prints the address of the server, the only line on stdout.
fn announce(endpoint: &Endpoint) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "listening on {endpoint}")?;
    out.flush()
}

/// Sends back all waiting datagrams in batches. For edge-triggered polling: returns when the socket
/// is drained or full; in the latter case, the next call sends the rest first.
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

/// The error of a server that does not support a transport.
fn unsupported(foundation: &str, endpoint: &Endpoint) -> Result<()> {
    bail!("{foundation} cannot listen on {endpoint}")
}
