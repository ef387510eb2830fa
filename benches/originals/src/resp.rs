//! The example `resp` against redis-server, with redis-benchmark as the load.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::measure::{self, Cell, Figure, Server, Side, Slice};

/// The options of the comparison with redis-server.
#[derive(Debug, clap::Args)]
pub struct RespArgs {
    /// How many slices each server gets in each cell
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// How long a slice lasts, in seconds
    #[arg(long, default_value_t = 0.4)]
    seconds: f64,
    /// Only cells whose names contain one of these words, such as `get` or `P16`
    #[arg(long, value_delimiter = ',')]
    cells: Vec<String>,
    /// Exit with 1 if a bar is not reached
    #[arg(long)]
    check: bool,
}

/// The commands, as redis-benchmark is told them; `None` as its own test of that name.
const TESTS: [(&str, Option<&[&str]>); 7] = [
    ("set", None),
    ("get", None),
    ("incr", None),
    ("lpush", None),
    ("ping_mbulk", None),
    ("mset", None),
    // Its own test fills the list in each run.
    ("lrange_100", Some(&["LRANGE", "filled", "0", "99"])),
];

/// Names of groups.
const DEPTH_1: &str = "-P 1";
const DEPTH_16: &str = "-P 16";
const CLIENTS_50: &str = "50 clients";
const CLIENTS_1000: &str = "1000 clients";

/// How many elements the list of `LRANGE` has.
const ELEMENTS: usize = 450;

/// A load of one kind.
struct Load {
    test: &'static str,
    command: Option<&'static [&'static str]>,
    clients: usize,
    depth: usize,
}

impl Load {
    fn cell(&self) -> Cell {
        let depth = if self.depth == 1 { DEPTH_1 } else { DEPTH_16 };
        let clients = if self.clients == 50 { CLIENTS_50 } else { CLIENTS_1000 };
        let name = format!("{}, P{}, {}", self.test, self.depth, self.clients);
        Cell::new(name, vec![depth, clients])
    }

    /// Runs it, and returns how many requests per second were served.
    fn run(&self, port: u16, requests: usize) -> Result<f64> {
        let mut command = Command::new("redis-benchmark");
        command.args(["-p", &port.to_string(), "--csv", "-n", &requests.to_string()]);
        command.args(["-c", &self.clients.to_string(), "-P", &self.depth.to_string()]);
        match self.command {
            None => command.args(["-t", self.test]),
            Some(words) => command.args(words),
        };
        let printed = measure::load(command)?;
        // "GET","123456.78","0.2",...
        let rate = printed.lines().last().and_then(|line| line.split("\",\"").nth(1));
        rate.and_then(|rate| rate.trim_matches('"').parse().ok()).with_context(|| printed.clone())
    }
}

fn loads(args: &RespArgs) -> Vec<Load> {
    let mut loads = Vec::new();
    for clients in [50, 1000] {
        for depth in [1, 16] {
            loads.extend(TESTS.map(|(test, command)| Load { test, command, clients, depth }));
        }
    }
    let chosen = |load: &Load| args.cells.iter().any(|word| load.cell().name.contains(word));
    loads.retain(|load| args.cells.is_empty() || chosen(load));
    loads
}

/// A server and its port.
struct Target {
    server: Server,
    port: u16,
}

impl Target {
    fn start(mut command: Command, port: u16) -> Result<Self> {
        command.stdout(Stdio::null());
        let is_ready = || request(port, b"PING\r\n", b"+PONG\r\n").is_ok();
        Ok(Target { server: Server::start(command, is_ready)?, port })
    }

    /// Forgets all keys, and fills the list of `LRANGE`.
    fn prepare(&self) -> Result<()> {
        request(self.port, b"FLUSHALL\r\n", b"+OK\r\n")?;
        let push = format!("RPUSH filled{}\r\n", " xxx".repeat(ELEMENTS));
        request(self.port, push.as_bytes(), format!(":{ELEMENTS}\r\n").as_bytes())
    }

    fn slice(&self, load: &Load, requests: usize) -> Result<Slice> {
        self.prepare()?;
        let before = self.server.cpu_time()?;
        let rate = load.run(self.port, requests)?;
        let cpu = self.server.cpu_time()? - before;
        Ok(Slice { cpu: cpu.as_secs_f64() * 1e6 / requests as f64, rate })
    }
}

/// Sends a request, and checks the reply.
fn request(port: u16, request: &[u8], expected: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(request)?;
    let mut reply = vec![0; expected.len()];
    stream.read_exact(&mut reply)?;
    ensure!(reply == expected, "unexpected reply: {:?}", String::from_utf8_lossy(&reply));
    Ok(())
}

/// A directory for redis-server. Dropping it removes it.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs the comparison and prints it.
pub fn run(args: &RespArgs) -> Result<()> {
    let loads = loads(args);
    ensure!(!loads.is_empty(), "no cell has such a name");
    let example = measure::example("resp")?;
    let directory =
        Directory(std::env::temp_dir().join(format!("originals-{}", std::process::id())));
    fs::create_dir_all(&directory.0)?;
    let (our_port, port) = (measure::free_port()?, measure::free_port()?);
    let mut ours = Command::new(example);
    ours.args(["--listen", &format!("tcp://127.0.0.1:{our_port}")]);
    let ours = Target::start(ours, our_port)?;
    let mut original = Command::new("redis-server");
    original.args(["--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
    original.args(["--daemonize", "no"]).current_dir(&directory.0);
    let original = Target::start(original, port)?;
    let mut cells: Vec<Cell> = loads.iter().map(Load::cell).collect();
    // Both get the same number of requests: what the original serves in the time of a slice.
    let mut requests = Vec::new();
    for load in &loads {
        original.prepare()?;
        let rate = load.run(original.port, 200 * load.depth * load.clients.min(100))?;
        requests.push(((rate * args.seconds) as usize).max(4 * load.clients * load.depth));
    }
    measure::interleave(&mut cells, args.rounds, |index, side| {
        let target = if side == Side::Ours { &ours } else { &original };
        target.slice(&loads[index], requests[index])
    })?;
    measure::print(&cells, &[DEPTH_1, DEPTH_16, CLIENTS_50, CLIENTS_1000], "redis-server");
    let missed = missed(&cells);
    missed.iter().for_each(|bar| println!("not reached: {bar}"));
    match missed.is_empty() {
        false if args.check => bail!("a bar is not reached"),
        _ => Ok(()),
    }
}

/// The bars that are not reached.
fn missed(cells: &[Cell]) -> Vec<String> {
    let mut missed = Vec::new();
    let mut expect = |holds: bool, bar: String| {
        if !holds {
            missed.push(bar);
        }
    };
    for cell in cells {
        let high = measure::ratio(cell, Figure::Cpu).map_or(f64::NAN, |ratio| ratio.high);
        expect(high <= 1.0, format!("{}: the CPU ratio is at most 1.0, not {high:.2}", cell.name));
    }
    let mean = |group: Option<&str>, figure| {
        let of_group = |cell: &&Cell| group.is_none_or(|group| cell.groups.contains(&group));
        let cells: Vec<&Cell> = cells.iter().filter(of_group).collect();
        measure::geometric_mean(&cells, figure).map(|mean| mean.median)
    };
    let all = mean(None, Figure::Cpu).unwrap_or(f64::NAN);
    expect(
        all <= 0.8,
        format!("the geometric mean of the CPU ratios is at most 0.8, not {all:.3}"),
    );
    for group in [DEPTH_16, CLIENTS_1000] {
        if let Some(rate) = mean(Some(group), Figure::Rate) {
            expect(rate >= 1.0, format!("{group}: requests/s are at least 1.0, not {rate:.3}"));
        }
    }
    missed
}
