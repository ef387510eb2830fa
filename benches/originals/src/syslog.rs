//! The example `syslog` under all that its senders can send: every message is received, or counted
//! as dropped by the kernel, and what is received is written. Over TCP and Unix sockets none is
//! dropped.

use std::fs;
use std::io::{self, BufWriter, PipeReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use peers::bench::table::Table;
use peers::sys::Batch;

use crate::measure::{self, Server};

/// The options of the run.
#[derive(Debug, clap::Args)]
pub struct SyslogArgs {
    /// How many UDP datagrams are sent
    #[arg(long, default_value_t = 10_000_000)]
    datagrams: u64,
    /// How many messages are sent over each of the other transports
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
}

/// How long the server may take to receive what the kernel holds.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many datagrams a call of sendmmsg(2) sends.
const BATCH: usize = 32;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    TcpLines,
    TcpCounts,
    UnixStream,
    UnixDatagrams,
}

use Transport::{TcpCounts, TcpLines, Udp, UnixDatagrams};

/// What was counted: by the sender, by the server, and by the reader of its lines.
#[derive(Debug)]
struct Counts {
    sent: u64,
    received: u64,
    dropped: u64,
    written: u64,
    lines: u64,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Udp => "UDP",
            TcpLines => "TCP, lines",
            TcpCounts => "TCP, octet counting",
            Transport::UnixStream => "Unix stream",
            UnixDatagrams => "Unix datagrams",
        }
    }

    fn url(self, place: &Place) -> String {
        match self {
            Udp => format!("udp://127.0.0.1:{}", place.port),
            TcpLines | TcpCounts => format!("tcp://127.0.0.1:{}", place.port),
            Transport::UnixStream => format!("unix://{}", place.socket().display()),
            UnixDatagrams => format!("unixgram://{}", place.socket().display()),
        }
    }

    /// Sends this many messages as fast as the system takes them.
    fn send(self, place: &Place, count: u64) -> Result<()> {
        match self {
            Udp => {
                let socket = UdpSocket::bind("127.0.0.1:0")?;
                socket.connect(("127.0.0.1", place.port))?;
                send_datagrams(count, |batch| batch.send(&socket))
            }
            UnixDatagrams => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(place.socket())?;
                send_datagrams(count, |batch| {
                    loop {
                        match batch.send(&socket) {
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                                thread::sleep(Duration::from_micros(50));
                            }
                            result => return result,
                        }
                    }
                })
            }
            TcpLines | TcpCounts => {
                let mut stream = TcpStream::connect(("127.0.0.1", place.port))?;
                send_stream(&stream, count, self == TcpCounts)?;
                stream.shutdown(std::net::Shutdown::Write)?;
                until_end(&mut stream)
            }
            Transport::UnixStream => {
                let mut stream = UnixStream::connect(place.socket())?;
                send_stream(&stream, count, false)?;
                stream.shutdown(std::net::Shutdown::Write)?;
                until_end(&mut stream)
            }
        }
    }
}

/// The message with this number: 100 bytes or a few more.
fn message(number: u64) -> String {
    format!(
        "<134>1 2026-11-30T10:21:32.000123+00:00 host.example.com app 4711 ID47 - message {number} \
         of a flood"
    )
}

fn send_datagrams(count: u64, mut send: impl FnMut(&mut Batch) -> io::Result<()>) -> Result<()> {
    let mut batch = Batch::connected(BATCH, 256);
    for number in 0..count {
        let message = message(number);
        batch.push(message.len()).copy_from_slice(message.as_bytes());
        if batch.len() == batch.capacity() || number + 1 == count {
            send(&mut batch)?;
        }
    }
    Ok(())
}

fn send_stream(stream: impl Write, count: u64, counts: bool) -> Result<()> {
    let mut stream = BufWriter::with_capacity(64 << 10, stream);
    for number in 0..count {
        let message = message(number);
        match counts {
            true => write!(stream, "{} {message}", message.len())?,
            false => writeln!(stream, "{message}")?,
        }
    }
    Ok(stream.flush()?)
}

/// The server closes the connection when it has received everything.
fn until_end(stream: &mut impl Read) -> Result<()> {
    ensure!(stream.read(&mut [0])? == 0, "the server has answered");
    Ok(())
}

/// Where the server listens.
struct Place {
    port: u16,
    directory: PathBuf,
}

impl Place {
    fn create() -> Result<Self> {
        let name = format!("originals-syslog-{}", std::process::id());
        let place =
            Place { port: measure::free_port()?, directory: std::env::temp_dir().join(name) };
        fs::create_dir_all(&place.directory)?;
        Ok(place)
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    fn errors(&self) -> PathBuf {
        self.directory.join("stderr")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Counts the lines that come out of a pipe; returns their number at its end.
fn count_lines(mut pipe: PipeReader, so_far: Arc<AtomicU64>) -> JoinHandle<io::Result<u64>> {
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        loop {
            match pipe.read(&mut buffer)? {
                0 => return Ok(so_far.load(Relaxed)),
                length => {
                    let lines = buffer[..length].iter().filter(|byte| **byte == b'\n').count();
                    so_far.fetch_add(lines as u64, Relaxed);
                }
            }
        }
    })
}

/// What is left of the server's messages in the kernel, as far as it tells.
fn has_unread_datagrams(port: u16) -> Result<bool> {
    let table = fs::read_to_string("/proc/net/udp")?;
    let ours = format!(":{port:04X} 00000000:0000");
    let line = table.lines().find(|line| line.contains(&ours)).context("no such socket")?;
    let queues = line.split_whitespace().nth(4).context("no queues")?;
    Ok(!queues.ends_with(":00000000"))
}

fn run_one(transport: Transport, count: u64, program: &PathBuf) -> Result<(Counts, [f64; 2])> {
    let place = Place::create()?;
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(["--listen", &transport.url(&place)]);
    command.stdout(writer).stderr(fs::File::create(place.errors())?);
    let so_far = Arc::new(AtomicU64::new(0));
    let lines = count_lines(reader, so_far.clone());
    // It has printed its address.
    let server = Server::start(command, || so_far.load(Relaxed) == 1)?;
    let begun = Instant::now();
    transport.send(&place, count)?;
    let deadline = Instant::now() + PATIENCE;
    let is_busy = || -> Result<bool> {
        Ok(match transport {
            Udp => has_unread_datagrams(place.port)?,
            _ => so_far.load(Relaxed) < count + 1,
        })
    };
    while is_busy()? {
        ensure!(Instant::now() < deadline, "{}: messages are missing", transport.name());
        thread::sleep(Duration::from_millis(1));
    }
    let elapsed = begun.elapsed().as_secs_f64();
    let cpu = server.cpu_time()?.as_secs_f64();
    drop(server); // SIGTERM, and waits for its end
    let lines = lines.join().expect("the counting thread does not panic")? - 1;
    let said = fs::read_to_string(place.errors())?;
    let numbers = said.trim_end().split(", ").map(|part| part.rsplit(' ').next()?.parse().ok());
    let [received, dropped, written] = numbers
        .collect::<Option<Vec<u64>>>()
        .and_then(|numbers| numbers.try_into().ok())
        .with_context(|| format!("the server says {said:?}"))?;
    let counts = Counts { sent: count, received, dropped, written, lines };
    Ok((counts, [received as f64 / elapsed, cpu * 1e6 / received as f64]))
}

/// Runs all transports, prints what was counted, and checks that it adds up.
pub fn run(args: &SyslogArgs) -> Result<()> {
    let program = measure::example("syslog")?;
    let columns =
        ["", "sent", "received", "dropped", "written", "lines", "received/s", "CPU µs each"];
    let mut table = Table::new(columns);
    let mut all = Vec::new();
    for transport in [Udp, TcpLines, TcpCounts, Transport::UnixStream, UnixDatagrams] {
        let count = if transport == Udp { args.datagrams } else { args.messages };
        let (counts, [rate, cpu]) = run_one(transport, count, &program)?;
        let Counts { sent, received, dropped, written, lines } = counts;
        let numbers = [sent, received, dropped, written, lines].map(|number| number.to_string());
        let [sent, received, dropped, written, lines] = numbers;
        let name = transport.name().to_owned();
        let (rate, cpu) = (format!("{rate:.0}"), format!("{cpu:.2}"));
        table.row([name, sent, received, dropped, written, lines, rate, cpu]);
        all.push((transport, counts));
    }
    println!("{table}");
    for (transport, counts) in all {
        let name = transport.name();
        let Counts { sent, received, dropped, written, lines } = counts;
        ensure!(received + dropped == sent, "{name}: {sent} sent, {received} + {dropped} known");
        ensure!(written == received && lines == received, "{name}: not every message is written");
        ensure!(transport == Udp || dropped == 0, "{name}: {dropped} are dropped");
    }
    Ok(())
}
