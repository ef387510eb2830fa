//! A hostile client: one process with many connections, each from a source address of its own.
//!
//! A connection that the server closes is replaced: attackers come back. The process exits after
//! `--secs`, and its connections end with it.

mod peers;

use std::fmt;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use peers::Peers;

/// What the connections do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Attack {
    /// request as much as the server takes, and read nothing
    StalledReader,
    /// connect, also beyond the number of descriptors that the server has
    NoDescriptors,
    /// send one byte per second of a message that never ends
    SlowDrip,
    /// send half of a message of 1 MiB, and then nothing
    FrameBomb,
    /// connect and reset, as fast as possible
    ConnectionFlood,
    /// connect, and then nothing
    SilentCrowd,
    /// send one message, and then nothing
    IdleCrowd,
}

/// The messages of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wire {
    /// Lines.
    Lines,
    /// Messages with a length prefix of four bytes, big endian.
    Length,
    /// HTTP/1.1 requests.
    Http,
}

impl Wire {
    /// A whole message.
    pub fn message(self, text: &str) -> Vec<u8> {
        match self {
            Wire::Lines => format!("{text}\n").into_bytes(),
            Wire::Length => {
                let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
                [&length.to_be_bytes()[..], text.as_bytes()].concat()
            }
            Wire::Http => format!("GET /{text} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes(),
        }
    }

    /// The first `length` bytes of a message of [`BOMB`] bytes.
    fn part(self, length: usize) -> Vec<u8> {
        let mut part = match self {
            Wire::Lines => Vec::new(),
            Wire::Length => (BOMB as u32).to_be_bytes().to_vec(),
            Wire::Http => {
                format!("PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {BOMB}\r\n\r\n")
                    .into_bytes()
            }
        };
        part.resize(length, b'x');
        part
    }
}

/// The length of the message of which [`Attack::FrameBomb`] sends half.
const BOMB: usize = 1 << 20;

/// The options of an attack.
#[derive(Debug, Clone, Args)]
pub struct AttackArgs {
    /// What the connections do
    pub attack: Attack,
    /// The server
    pub to: SocketAddr,
    /// Connections at a time
    #[arg(long, default_value_t = 1000)]
    pub conns: usize,
    /// Seconds
    #[arg(long, default_value_t = 5.0)]
    pub secs: f64,
    /// The messages of the server
    #[arg(long, value_enum, default_value = "lines")]
    pub wire: Wire,
}

/// What an attack has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttackReport {
    /// Connections that were established.
    pub connected: u64,
    /// Those that the server has closed.
    pub closed: u64,
    /// The most that were open at a time.
    pub most: u64,
    /// Bytes that the kernel has taken.
    pub sent: u64,
}

impl fmt::Display for AttackReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AttackReport { connected, closed, most, sent } = self;
        write!(f, "connected={connected} closed={closed} most={most} sent={sent}")
    }
}

/// Attacks, and prints one line of JSON, an [`AttackReport`].
pub fn run(args: &AttackArgs) -> Result<()> {
    let until = Instant::now() + Duration::from_secs_f64(args.secs);
    let report = match args.attack {
        Attack::ConnectionFlood => peers::flood(args.to, until)?,
        _ => Peers::new(args)?.attack(until)?,
    };
    println!("{}", serde_json::to_string(&report)?);
    std::io::stdout().flush()?;
    Ok(())
}
