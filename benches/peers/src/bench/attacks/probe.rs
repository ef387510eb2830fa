//! The normal clients: one stays connected and asks at a fixed rate, others come and go.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::attack::Wire;

/// How long a client waits for its answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// How often the client that stays asks, and how often another client comes.
const ASK: Duration = Duration::from_millis(4);
const COME: Duration = Duration::from_millis(40);

/// One request.
struct Sample {
    at: Instant,
    /// `None` if there was no answer within [`PATIENCE`].
    took: Option<Duration>,
}

/// The running clients.
pub(super) struct Probe {
    stop: Arc<AtomicBool>,
    stays: JoinHandle<Vec<Sample>>,
    comes: JoinHandle<Vec<Sample>>,
}

/// What the clients have measured.
pub(super) struct Measured {
    stays: Vec<Sample>,
    comes: Vec<Sample>,
}

/// The figures of one phase.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phase {
    /// The quantiles of the client that stays; a request without an answer counts as [`PATIENCE`].
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    /// How many new clients came, and how many were served within [`PATIENCE`].
    pub(super) came: usize,
    pub(super) served: usize,
}

impl Probe {
    pub(super) fn start(to: SocketAddr, wire: Wire) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stays = {
            let stop = stop.clone();
            thread::spawn(move || {
                let mut client = None;
                every(ASK, &stop, || {
                    let answer = match client.take() {
                        Some(client) => ask(client, wire),
                        None => come(to, wire),
                    };
                    client = answer.ok();
                    client.is_some()
                })
            })
        };
        let comes = {
            let stop = stop.clone();
            thread::spawn(move || every(COME, &stop, || come(to, wire).is_ok()))
        };
        Probe { stop, stays, comes }
    }

    pub(super) fn stop(self) -> Measured {
        self.stop.store(true, Relaxed);
        let samples = |thread: JoinHandle<Vec<Sample>>| thread.join().unwrap_or_default();
        Measured { stays: samples(self.stays), comes: samples(self.comes) }
    }
}

impl Measured {
    /// The figures of the requests that began in this time.
    pub(super) fn phase(&self, from: Instant, to: Instant) -> Phase {
        let within = |sample: &&Sample| (from..to).contains(&sample.at);
        let stays = self.stays.iter().filter(within);
        let mut took: Vec<_> = stays.map(|sample| sample.took.unwrap_or(PATIENCE)).collect();
        took.sort_unstable();
        let quantile = |part: f64| -> Duration {
            let rank = (took.len() as f64 * part) as usize;
            took.get(rank.min(took.len().saturating_sub(1))).copied().unwrap_or(PATIENCE)
        };
        let comes: Vec<_> = self.comes.iter().filter(within).collect();
        Phase {
            p50: quantile(0.5),
            p99: quantile(0.99),
            came: comes.len(),
            served: comes.iter().filter(|sample| sample.took.is_some()).count(),
        }
    }
}

/// Asks at fixed times; a time that has passed meanwhile is skipped.
fn every(period: Duration, stop: &AtomicBool, mut ask: impl FnMut() -> bool) -> Vec<Sample> {
    let (mut samples, mut next) = (Vec::new(), Instant::now());
    while !stop.load(Relaxed) {
        let at = Instant::now();
        let is_answered = ask();
        let took = at.elapsed();
        samples.push(Sample { at, took: (is_answered && took <= PATIENCE).then_some(took) });
        next = (next + period).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    samples
}

/// A new client: connects and asks once.
fn come(to: SocketAddr, wire: Wire) -> io::Result<TcpStream> {
    let client = TcpStream::connect_timeout(&to, PATIENCE)?;
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    ask(client, wire)
}

/// Asks once; returns the client if it has got the answer.
fn ask(mut client: TcpStream, wire: Wire) -> io::Result<TcpStream> {
    let request = wire.message("hello");
    client.write_all(&request)?;
    match wire {
        Wire::Lines | Wire::Length => {
            let mut answer = vec![0; request.len()];
            client.read_exact(&mut answer)?;
            if answer != request {
                return Err(io::Error::other("another answer"));
            }
        }
        Wire::Http => read_response(&mut client)?,
    }
    Ok(client)
}

/// Reads a head and a body whose length it tells.
fn read_response(client: &mut TcpStream) -> io::Result<()> {
    let (mut response, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = client.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        response.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&response);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        if !head.starts_with("HTTP/1.1 200") {
            return Err(io::Error::other("another status"));
        }
        if length.is_some_and(|length: usize| body.len() >= length) {
            return Ok(());
        }
    }
}
