//! `fairness`: how long others wait beside clients whose short requests have long answers.
//!
//! A program of its own: server, clients and the clock are in this process. Eight clients keep the
//! server busy, and one more asks at a fixed rate and is measured. The eight either send lines of one
//! byte, each of which is answered by 64 KiB, or have as many bytes echoed; both keep as many answers
//! under way. Rounds of the two are interleaved, each with a server of its own.

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

/// The p99 latency of one client beside eight whose requests are much shorter than their answers.
#[derive(Debug, Parser)]
#[command(name = "fairness")]
struct Cli {
    /// Rounds, of which each measures both
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds that each window takes
    #[arg(long, default_value_t = 3.0)]
    secs: f64,
    /// Clients that keep the server busy
    #[arg(long, default_value_t = 8)]
    busy: usize,
    /// Answers that each of them has under way
    #[arg(long, default_value_t = 64)]
    depth: usize,
}

/// How long an answer is to those who keep the server busy.
const LONG: usize = 64 * 1024;

/// How long a request of the client that is measured is, with its line feed, and how often it asks.
const SHORT: usize = 64;
const PERIOD: Duration = Duration::from_millis(1);

/// Without an answer for this long, something is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// Before it is measured.
const WARM_UP: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy)]
enum Crowd {
    Echo,
    Lines,
}

/// What came of one window.
struct Window {
    p99: Duration,
    longest: Duration,
    /// MiB per second that the crowd was answered.
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
    let mut table = Table::new(["beside", "p99 ms", "longest ms", "MiB/s to the crowd"]);
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

/// Starts a server, keeps it busy, and measures one client beside that.
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
            bail!("the crowd has gone");
        }
        for client in busy {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok((latencies?, volume / f64::from(1 << 20)))
    });
    running.stop()?;
    let (mut latencies, volume) = measured?;
    latencies.sort_unstable();
    let last = latencies.len().checked_sub(1).context("nothing was asked")?;
    Ok(Window { p99: latencies[last * 99 / 100], longest: latencies[last], volume })
}

fn start(crowd: Crowd) -> Result<Running> {
    let builder = Server::tcp("127.0.0.1:0")?;
    let server = match crowd {
        Crowd::Echo => builder.serve(|_: &_| {
            handler_fn(|message: &[u8], cx: &mut socketserver::Context<'_>| cx.send(message))
        }),
        Crowd::Lines => builder.framing(Lines::default()).serve(|_: &_| {
            handler_fn(|line: &[u8], cx: &mut socketserver::Context<'_>| match line {
                b"l" => cx.send(&[b'x'; LONG - 1]),
                line => cx.send(line),
            })
        }),
    };
    Ok(server?.spawn()?)
}

/// Keeps so many answers under way until it is over.
fn keep_busy(
    address: SocketAddr,
    crowd: Crowd,
    depth: usize,
    is_over: &AtomicBool,
    answered: &AtomicU64,
) -> Result<()> {
    // The one that is measured waits for the server, and not for those who read megabytes.
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
            // What may be sent at once is sent at once.
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

/// Asks at a fixed rate, and tells how long each answer took from when its request was due.
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
