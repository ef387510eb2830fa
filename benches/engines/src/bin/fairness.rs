//! `fairness`: the latency of a client beside clients whose short requests have long answers.
//!
//! Server and clients are in one process. Eight clients keep the server busy, and the latency of
//! one more, which sends at a fixed rate, is measured. The eight either send lines of one byte,
//! each of which is answered with 64 KiB, or send 64 KiB and get them back; both have the same
//! number of answers in flight. Rounds of the two are interleaved, each with a new server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use peers::bench::stats::median;
use peers::bench::table::Table;
use peers::sys::run_when_idle;
use socketserver::{Lines, Running, Server, handler_fn};

/// Measures the p99 latency of one client beside eight whose requests are much shorter than their
/// answers.
#[derive(Debug, Parser)]
#[command(name = "fairness", args_override_self = true)]
struct Cli {
    /// Rounds, each of which measures both
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Length of a window in seconds
    #[arg(long, default_value_t = 3.0)]
    secs: f64,
    /// Clients that keep the server busy
    #[arg(long, default_value_t = 8)]
    busy: usize,
    /// Answers in flight for each of them
    #[arg(long, default_value_t = 64)]
    depth: usize,
}

/// The length of an answer to a busy client.
const LONG: usize = 64 * 1024;

/// The length of a request of the measured client, with its line feed, and its rate.
const SHORT: usize = 64;
const PERIOD: Duration = Duration::from_millis(1);

/// A run fails if an answer takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The warm-up before the window.
const WARM_UP: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy)]
enum Crowd {
    Echo,
    Lines,
}

/// The result of one window.
struct Window {
    p99: Duration,
    longest: Duration,
    /// The answers to the busy clients, in MiB per second.
    volume: f64,
}

fn main() -> ExitCode {
    peers::ended("fairness", run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    let mut windows = [Vec::new(), Vec::new()];
    for _ in 0..cli.rounds {
        for (crowd, windows) in [Crowd::Echo, Crowd::Lines].into_iter().zip(&mut windows) {
            windows.push(measure(cli, crowd)?);
        }
    }
    let mut table = Table::new(["beside", "p99 ms", "longest ms", "MiB/s to the busy clients"]);
    let names = ["64 KiB, echoed", "1 B, answered by 64 KiB"];
    for (name, windows) in names.into_iter().zip(&windows) {
        let of = |value: fn(&Window) -> f64| median(windows.iter().map(value)).unwrap_or(f64::NAN);
        let cells = [
            format!("{:.3}", of(|window| window.p99.as_secs_f64() * 1000.0)),
            format!("{:.3}", of(|window| window.longest.as_secs_f64() * 1000.0)),
            format!("{:.0}", of(|window| window.volume)),
        ];
        table.row(std::iter::once(name.to_owned()).chain(cells).collect::<Vec<_>>());
    }
    let [echoed, lines] = &windows;
    let ratios = echoed.iter().zip(lines).map(|(echo, line)| line.p99.div_duration_f64(echo.p99));
    let ratio = median(ratios).unwrap_or(f64::NAN);
    println!("{table}");
    println!(
        "Medians of {} rounds. The p99 beside long answers to short requests is {ratio:.2} times that \
         beside the same bytes echoed.",
        cli.rounds
    );
    Ok(())
}

/// Starts a server, keeps it busy, and measures one client.
fn measure(cli: &Cli, crowd: Crowd) -> Result<Window> {
    let running = start(crowd)?;
    let address = running.local_addr().inet().context("no address")?;
    let (is_over, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let measured = thread::scope(|scope| {
        let busy: Vec<_> = (0..cli.busy)
            .map(|_| {
                scope.spawn(|| {
                    let done = keep_busy(address, crowd, cli.depth, &is_over, &answered);
                    is_over.store(true, Relaxed);
                    done
                })
            })
            .collect();
        thread::sleep(WARM_UP);
        let (began, before) = (Instant::now(), answered.load(Relaxed));
        let latencies = ask(address, Duration::from_secs_f64(cli.secs));
        let volume = (answered.load(Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
        if is_over.swap(true, Relaxed) {
            bail!("the busy clients have disconnected");
        }
        for client in busy {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok((latencies?, volume / f64::from(1 << 20)))
    });
    running.stop()?;
    let (mut latencies, volume) = measured?;
    latencies.sort_unstable();
    let last = latencies.len().checked_sub(1).context("no request was sent")?;
    Ok(Window { p99: latencies[last * 99 / 100], longest: latencies[last], volume })
}

fn start(crowd: Crowd) -> Result<Running> {
    let builder = Server::tcp("127.0.0.1:0")?;
    let server = match crowd {
        Crowd::Echo => builder.serve(|_: &socketserver::Accepted<'_>| {
            handler_fn(|message: &[u8], cx: &mut socketserver::Context<'_>| cx.send(message))
        }),
        Crowd::Lines => {
            builder.framing(Lines::default()).serve(|_: &socketserver::Accepted<'_>| {
                handler_fn(|line: &[u8], cx: &mut socketserver::Context<'_>| match line {
                    b"l" => cx.send(&[b'x'; LONG - 1]),
                    line => cx.send(line),
                })
            })
        }
    };
    Ok(server?.spawn()?)
}

/// A busy client: keeps `depth` answers in flight until the end.
fn keep_busy(
    address: SocketAddr,
    crowd: Crowd,
    depth: usize,
    is_over: &AtomicBool,
    answered: &AtomicU64,
) -> Result<()> {
    // The measured client must wait only for the server, and not for the clients that read
    // megabytes.
    run_when_idle()?;
    let request = match crowd {
        Crowd::Echo => vec![b'x'; LONG],
        Crowd::Lines => b"l\n".to_vec(),
    };
    let mut stream = connect(address)?;
    let mut writer = stream.try_clone()?;
    let (give, given) = std::sync::mpsc::channel();
    for _ in 0..depth {
        give.send(())?;
    }
    thread::scope(|scope| {
        scope.spawn(move || -> Result<()> {
            run_when_idle()?;
            // All requests that may be in flight are sent in one write.
            while given.recv().is_ok() {
                let count = 1 + given.try_iter().count();
                writer.write_all(&request.repeat(count))?;
            }
            Ok(())
        });
        let mut answer = vec![0; LONG];
        while !is_over.load(Relaxed) {
            stream.read_exact(&mut answer)?;
            answered.fetch_add(LONG as u64, Relaxed);
            let _ = give.send(());
        }
        drop(give);
        stream.shutdown(std::net::Shutdown::Both)?;
        Ok(())
    })
}

/// The measured client: sends at a fixed rate; returns the time of each answer since its request
/// was due.
fn ask(address: SocketAddr, time: Duration) -> Result<Vec<Duration>> {
    let mut stream = connect(address)?;
    let (mut message, mut answer) = ([b'q'; SHORT], [0; SHORT]);
    message[SHORT - 1] = b'\n';
    let mut latencies = Vec::new();
    let began = Instant::now();
    let mut due = began;
    while due < began + time {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(&message)?;
        stream.read_exact(&mut answer)?;
        if answer != message {
            bail!("a wrong answer");
        }
        latencies.push(due.elapsed());
        due += PERIOD;
    }
    Ok(latencies)
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
