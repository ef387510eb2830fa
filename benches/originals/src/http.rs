//! The example `http` against nginx, with wrk as the load.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use peers::bench::stats;

use crate::measure::{self, Cell, Figure, Server, Side, Slice};

/// The options of the comparison with nginx.
#[derive(Debug, clap::Args)]
pub struct HttpArgs {
    /// How many slices each server gets in each cell
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// How long a slice lasts, in seconds
    #[arg(long, default_value_t = 1)]
    seconds: u32,
    /// Only cells whose names contain one of these words, such as `1KiB` or `1000`
    #[arg(long, value_delimiter = ',')]
    cells: Vec<String>,
    /// Exit with 1 if a bar is not reached
    #[arg(long)]
    check: bool,
}

/// Names of groups: the sizes of the files.
const SIZES: [(&str, usize); 3] = [("1KiB", 1 << 10), ("100KiB", 100 << 10), ("10MiB", 10 << 20)];

/// How many slices of each setting of nginx decide which is the better one.
const TRIALS: usize = 3;

/// A load of one kind.
#[derive(Debug, Clone, Copy)]
struct Load {
    size: &'static str,
    connections: usize,
    /// Each request has a connection of its own.
    closes: bool,
}

impl Load {
    fn name(&self) -> String {
        match self.closes {
            true => format!("{}, a connection each", self.size),
            false => format!("{}, {} connections", self.size, self.connections),
        }
    }

    /// Whether the processor time is divided by the bytes, and not by the requests: of long files, some
    /// are on their way when the time is over.
    fn counts_bytes(&self) -> bool {
        self.size != SIZES[0].0
    }
}

fn loads(args: &HttpArgs) -> Vec<Load> {
    let mut loads = Vec::new();
    for (size, _) in SIZES {
        loads.push(Load { size, connections: 64, closes: false });
        loads.push(Load { size, connections: 1000, closes: false });
        loads.push(Load { size, connections: 64, closes: true });
    }
    let chosen = |load: &Load| args.cells.iter().any(|word| load.name().contains(word));
    loads.retain(|load| args.cells.is_empty() || chosen(load));
    loads
}

/// A server, and the ports at which it serves the same files.
struct Target {
    server: Server,
    ports: Vec<u16>,
}

impl Target {
    fn start(mut command: Command, ports: Vec<u16>) -> Result<Self> {
        command.stdout(Stdio::null());
        let is_ready = || ports.iter().all(|port| request(*port).is_ok());
        let server = Server::start(command, is_ready)?;
        Ok(Target { server, ports })
    }

    /// How many bytes of files it has sent. sendfile(2) counts as a write here, and send(2) does not.
    fn sent(&self) -> Result<u64> {
        let io = fs::read_to_string(format!("/proc/{}/io", self.server.id()))?;
        let written = io.lines().find_map(|line| line.strip_prefix("wchar: "));
        Ok(written.context("no wchar in /proc/PID/io")?.parse()?)
    }

    fn slice(&self, port: u16, load: Load, seconds: u32) -> Result<Slice> {
        let mut command = Command::new("wrk");
        command.args(["-t1", &format!("-c{}", load.connections), &format!("-d{seconds}s")]);
        if load.closes {
            command.args(["-H", "Connection: close"]);
        }
        command.arg(format!("http://127.0.0.1:{port}/{}", load.size));
        let (cpu, sent) = (self.server.cpu_time()?, self.sent()?);
        let printed = measure::load(command)?;
        let (cpu, sent) = (self.server.cpu_time()? - cpu, self.sent()? - sent);
        ensure!(!printed.contains("Non-2xx"), "{printed}");
        let number = |name: &str| {
            let number = printed.lines().find_map(|line| line.trim().strip_prefix(name));
            number.and_then(|number| number.trim().parse::<f64>().ok())
        };
        let rate = number("Requests/sec:").with_context(|| printed.clone())?;
        let requests = printed.lines().find_map(|line| line.split_once(" requests in "));
        let requests = requests.with_context(|| printed.clone())?.0.trim().parse::<f64>()?;
        let count = if load.counts_bytes() { sent as f64 / f64::from(1 << 20) } else { requests };
        ensure!(count > 0.0, "nothing was sent: {printed}");
        Ok(Slice { cpu: cpu.as_secs_f64() * 1e6 / count, rate })
    }
}

/// Requests the shortest file, and checks its length.
fn request(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (name, size) = SIZES[0];
    write!(stream, "GET /{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("no head")?;
    ensure!(answer.starts_with(b"HTTP/1.1 200 ") && answer.len() == head + 4 + size, "no file");
    Ok(())
}

/// A directory with the files. Dropping it removes it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("originals-http-{}", std::process::id()));
        fs::create_dir_all(path.join("files"))?;
        let directory = Directory(path);
        for (name, size) in SIZES {
            let mut bytes = vec![0; size];
            File::open("/dev/urandom")?.read_exact(&mut bytes)?;
            fs::write(directory.0.join("files").join(name), bytes)?;
        }
        Ok(directory)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One nginx that serves the same files at two ports, with `tcp_nopush` off at the first and on at the
/// second. Its only process is what a worker is otherwise.
fn nginx(directory: &Path, ports: &[u16]) -> Result<Command> {
    let root = directory.join("files");
    let mut servers = String::new();
    for (port, nopush) in ports.iter().zip(["off", "on"]) {
        servers += &format!(
            "server {{ listen 127.0.0.1:{port} backlog=4096; root {}; tcp_nopush {nopush}; }}\n",
            root.display()
        );
    }
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path temporary;\n"))
        .concat();
    let config = format!(
        "daemon off; master_process off; pid nginx.pid; error_log error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; sendfile on; keepalive_requests 1000000000;\n\
         {temporary}{servers}}}\n"
    );
    fs::write(directory.join("nginx.conf"), config)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(directory).args(["-e", "error.log", "-c", "nginx.conf"]);
    Ok(command)
}

/// Runs the comparison and prints it.
pub fn run(args: &HttpArgs) -> Result<()> {
    let loads = loads(args);
    ensure!(!loads.is_empty(), "no cell has such a name");
    let example = measure::example("http")?;
    let directory = Directory::new()?;
    let our_port = measure::free_port()?;
    let mut command = Command::new(example);
    command.args(["--listen", &format!("tcp://127.0.0.1:{our_port}"), "--root"]);
    command.arg(directory.0.join("files"));
    let ours = Target::start(command, vec![our_port])?;
    let ports = vec![measure::free_port()?, measure::free_port()?];
    let original = Target::start(nginx(&directory.0, &ports)?, ports)?;
    let mut cells = Vec::new();
    let mut better = Vec::new();
    for load in &loads {
        let (port, nopush) = better_nopush(&original, *load, args.seconds)?;
        better.push(port);
        let unit = if load.counts_bytes() { "MiB" } else { "request" };
        let name = format!("{} (tcp_nopush {nopush}; per {unit})", load.name());
        cells.push(Cell::new(name, vec![load.size]));
    }
    measure::interleave(&mut cells, args.rounds, |index, side| match side {
        Side::Ours => ours.slice(our_port, loads[index], args.seconds),
        Side::Original => original.slice(better[index], loads[index], args.seconds),
    })?;
    measure::print(&cells, &SIZES.map(|(size, _)| size), "nginx");
    let missed = missed(&loads, &cells);
    missed.iter().for_each(|bar| println!("not reached: {bar}"));
    match missed.is_empty() {
        false if args.check => bail!("a bar is not reached"),
        _ => Ok(()),
    }
}

/// The port of nginx with the setting that needs less processor time for this load.
fn better_nopush(original: &Target, load: Load, seconds: u32) -> Result<(u16, &'static str)> {
    let mut found = [Vec::new(), Vec::new()];
    for _ in 0..TRIALS {
        for (port, found) in original.ports.iter().zip(&mut found) {
            found.push(original.slice(*port, load, seconds)?.cpu);
        }
    }
    let [off, on] = found.map(|slices| stats::median(slices).unwrap_or(f64::NAN));
    eprintln!("{}: nginx {off:.2} µs with tcp_nopush off, {on:.2} µs with on", load.name());
    Ok(if on < off { (original.ports[1], "on") } else { (original.ports[0], "off") })
}

/// The bars that are not reached.
fn missed(loads: &[Load], cells: &[Cell]) -> Vec<String> {
    let mut missed = Vec::new();
    for (load, cell) in loads.iter().zip(cells) {
        let bar = if load.counts_bytes() { 1.1 } else { 0.8 };
        let high = measure::ratio(cell, Figure::Cpu).map_or(f64::NAN, |ratio| ratio.high);
        if high.is_nan() || high > bar {
            missed.push(format!("{}: the CPU ratio is at most {bar}, not {high:.2}", load.name()));
        }
    }
    missed
}
