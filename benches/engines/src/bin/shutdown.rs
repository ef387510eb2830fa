//! `shutdown`: the time from the call of `shutdown()` until the serving call has returned.
//!
//! Server and clients are in one process, so that both moments are read from one clock, by the
//! threads on which they happen.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use peers::bench::table::Table;
use socketserver::{Mode, Server, handler_fn};

/// Measures the time from the call of shutdown() until the serving call has returned.
#[derive(Debug, Parser)]
#[command(name = "shutdown", args_override_self = true)]
struct Cli {
    /// How often each server is shut down
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Idle connections, if the mode can keep so many
    #[arg(long, default_value_t = 1000)]
    conns: usize,
    /// Without Python's ThreadingTCPServer
    #[arg(long)]
    no_python: bool,
}

/// The number of threads of `pool`; each connection takes one.
const POOL: usize = 64;

/// The default limit of children of `forking`, as in Python.
const CHILDREN: usize = 40;

/// A run fails if an answer takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a server is idle before the shutdown, so that it sleeps.
const REST: Duration = Duration::from_millis(5);

/// A kind of server, and the durations of its shutdowns.
struct Subject {
    name: String,
    connections: usize,
    kind: Kind,
    latencies: Vec<Duration>,
}

enum Kind {
    Ours(Mode),
    Python(Box<Python>),
}

fn main() -> ExitCode {
    peers::ended("shutdown", run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    socketserver::raise_descriptor_limit()?;
    let mut subjects = subjects(cli);
    for _ in 0..cli.rounds {
        for subject in &mut subjects {
            let latency = match &mut subject.kind {
                Kind::Ours(mode) => shut_down(*mode, subject.connections)
                    .with_context(|| format!("{}, {}", subject.name, subject.connections)),
                Kind::Python(python) => python.shut_down(),
            };
            subject.latencies.push(latency?);
        }
    }
    let mut table =
        Table::new(["", "idle connections", "median ms", "9 of 10 within ms", "longest ms"]);
    for subject in &mut subjects {
        subject.latencies.sort_unstable();
        let last = subject.latencies.len() - 1;
        let at = |tenths: usize| {
            let latency = subject.latencies[last * tenths / 10];
            format!("{:.3}", latency.as_secs_f64() * 1000.0)
        };
        table.row([subject.name.clone(), subject.connections.to_string(), at(5), at(9), at(10)]);
    }
    println!("{table}");
    println!(
        "From the call of shutdown() until the serving call has returned, {} times each, in turns. \
         Idle connections have echoed 64 B over TCP, and are closed by the stop; `inline`, `pool` \
         and `forking` keep as many as they can.",
        cli.rounds
    );
    Ok(())
}

fn subjects(cli: &Cli) -> Vec<Subject> {
    let ours = Mode::all().flat_map(|mode| {
        let (mode, most) = match mode {
            Mode::Inline(_) => (mode, 1),
            Mode::Pool(_) => (mode.workers(POOL), POOL),
            // No other thread holds a lock that the echo needs.
            Mode::Forking(forking) => (Mode::Forking(forking.allow_threads(true)), CHILDREN),
            _ => (mode, usize::MAX),
        };
        let counts = [0, cli.conns.min(most)];
        counts.map(|connections| Subject {
            name: mode.to_string(),
            connections,
            kind: Kind::Ours(mode),
            latencies: Vec::new(),
        })
    });
    let mut subjects: Vec<Subject> = ours.collect();
    let python = if cli.no_python { None } else { Python::start() };
    match python {
        Some(python) => subjects.push(Subject {
            name: "Python's ThreadingTCPServer".into(),
            connections: 0,
            kind: Kind::Python(Box::new(python)),
            latencies: Vec::new(),
        }),
        None => eprintln!("shutdown: without Python's ThreadingTCPServer"),
    }
    subjects
}

/// Starts a server, connects clients that send one request and stay connected, and shuts it down.
fn shut_down(mode: Mode, connections: usize) -> Result<Duration> {
    let echo = |_: &socketserver::Accepted<'_>| {
        handler_fn(|message: &[u8], cx: &mut socketserver::Context<'_>| cx.send(message))
    };
    let mut server = Server::tcp("127.0.0.1:0")?.mode(mode).serve(echo)?;
    let address = server.local_addr().inet().context("no address")?;
    let handle = server.shutdown_handle();
    let serving = thread::spawn(move || {
        let report = server.serve_forever();
        (Instant::now(), report)
    });
    let began = Instant::now();
    while !handle.is_running() {
        if began.elapsed() > PATIENCE {
            bail!("the server does not begin to serve");
        }
        thread::yield_now();
    }
    let mut clients = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut client = TcpStream::connect(address)?;
        client.set_read_timeout(Some(PATIENCE))?;
        let (message, mut answer) = ([b'x'; 64], [0; 64]);
        client.write_all(&message)?;
        client.read_exact(&mut answer)?;
        clients.push(client);
    }
    thread::sleep(REST);
    let called = Instant::now();
    handle.shutdown();
    let Ok((returned, report)) = serving.join() else {
        bail!("the server panicked");
    };
    let report = report?;
    if report.aborted > 0 {
        bail!("{} idle connections were treated as busy", report.aborted);
    }
    Ok(returned - called)
}

/// A Python interpreter that starts and shuts down a server on request.
struct Python {
    process: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Python {
    /// Python's `shutdown` waits until the loop has ended, which checks twice per second; it is
    /// called at a random moment in between.
    const PROGRAM: &str = "
import random, socketserver, sys, threading, time
for line in sys.stdin:
    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), socketserver.BaseRequestHandler) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.5})
        serving.start()
        time.sleep(0.01 + random.random() / 2)
        called = time.perf_counter()
        server.shutdown()
        print(time.perf_counter() - called, flush=True)
        serving.join()
";

    /// The interpreter, if Python is installed.
    fn start() -> Option<Self> {
        let mut process = Command::new("python3")
            .args(["-c", Self::PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let to = process.stdin.take();
        let from = BufReader::new(process.stdout.take()?);
        Some(Self { process, to, from })
    }

    fn shut_down(&mut self) -> Result<Duration> {
        let to = self.to.as_mut().context("no stdin")?;
        writeln!(to, "again")?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        let seconds = line.trim().parse().context("Python printed no time")?;
        Ok(Duration::try_from_secs_f64(seconds)?)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        drop(self.to.take()); // ends the process
        let _ = self.process.wait();
    }
}
