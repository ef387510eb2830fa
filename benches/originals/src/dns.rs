//! The example `dns` against nsd and, for the record, against BIND, with dnsperf as the load.

use std::fmt::Write as _;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::measure::{self, Cell, Figure, Server, Side, Slice};

/// The options of the comparison with name servers.
#[derive(Debug, clap::Args)]
pub struct DnsArgs {
    /// How many slices each server gets in each cell
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// How many queries a slice has
    #[arg(long, default_value_t = 40_000)]
    queries: usize,
    /// Exit with 1 if the example takes more than 1.2 times the processor time of nsd
    #[arg(long)]
    check: bool,
}

/// How many names the zone has.
const NAMES: usize = 10_000;

/// The most processor time per query, as a ratio to nsd.
const BAR: f64 = 1.2;

/// A load of one kind.
struct Load {
    name: &'static str,
    /// The transport, as dnsperf names it.
    transport: &'static str,
    /// What comes before the number in each name that is asked for.
    prefix: &'static str,
}

const LOADS: [Load; 4] = [
    Load { name: "A, UDP", transport: "udp", prefix: "host" },
    Load { name: "CNAME and A, UDP", transport: "udp", prefix: "alias" },
    Load { name: "no such name, UDP", transport: "udp", prefix: "nothing" },
    Load { name: "A, TCP", transport: "tcp", prefix: "host" },
];

/// A directory with the files of the servers. Dropping it removes it.
struct Files(PathBuf);

impl Files {
    fn create(queries: usize) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("originals-dns-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        let files = Files(path);
        let mut zone = "$ORIGIN bench.test.\n$TTL 3600\n\
            @ SOA ns.bench.test. h.bench.test. 1 7200 900 1209600 300\n@ NS ns\nns A 192.0.2.1\n"
            .to_owned();
        for number in 0..NAMES {
            writeln!(zone, "host{number} A 192.0.2.{}", number % 256)?;
            writeln!(zone, "alias{number} CNAME host{number}")?;
        }
        fs::write(files.zone(), zone)?;
        for load in &LOADS {
            // A multiplication by an odd number spreads the names over the zone.
            let names = (0..queries).map(|query| query.wrapping_mul(7919) % NAMES);
            let lines = names.map(|number| format!("{}{number}.bench.test A\n", load.prefix));
            fs::write(files.queries(load), lines.collect::<String>())?;
        }
        Ok(files)
    }

    fn zone(&self) -> PathBuf {
        self.0.join("bench.zone")
    }

    fn queries(&self, load: &Load) -> PathBuf {
        self.0.join(load.prefix)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server and its port.
struct Target {
    server: Server,
    port: u16,
}

impl Target {
    fn start(mut command: Command, port: u16) -> Result<Self> {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Target { server: Server::start(command, || answers(port))?, port })
    }

    fn slice(&self, load: &Load, queries: &Path) -> Result<Slice> {
        let mut command = Command::new("dnsperf");
        command.args(["-s", "127.0.0.1", "-p", &self.port.to_string(), "-m", load.transport]);
        command.args(["-n", "1", "-c", "8", "-T", "1", "-q", "100", "-d"]).arg(queries);
        let before = self.server.cpu_time()?;
        let printed = measure::load(command)?;
        let cpu = self.server.cpu_time()? - before;
        let number = |name| -> Result<f64> {
            let line = printed.lines().find_map(|line| line.trim().strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.with_context(|| format!("no {name} in {printed}"))
        };
        let completed = number("Queries completed:")?;
        Ok(Slice { cpu: cpu.as_secs_f64() * 1e6 / completed, rate: number("Queries per second:")? })
    }
}

/// Whether a server answers a query here.
fn answers(port: u16) -> bool {
    let query = b"\0\x01\0\0\0\x01\0\0\0\0\0\0\x05host1\x05bench\x04test\0\0\x01\0\x01";
    let answer = || -> std::io::Result<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.send_to(query, ("127.0.0.1", port))?;
        let mut answer = vec![0; 1000];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    };
    // The lower four bits of the fourth byte are the code of an error.
    answer().is_ok_and(|answer| answer.len() > query.len() && answer[3] & 15 == 0)
}

fn example(files: &Files, port: u16) -> Result<Command> {
    let mut command = Command::new(measure::example("dns")?);
    for scheme in ["udp", "tcp"] {
        command.args(["--listen", &format!("{scheme}://127.0.0.1:{port}")]);
    }
    command.arg("--zone").arg(files.zone());
    Ok(command)
}

fn nsd(files: &Files, port: u16) -> Result<Command> {
    let directory = files.0.display();
    let configuration = files.0.join("nsd.conf");
    fs::write(
        &configuration,
        format!(
            "server:\n server-count: 1\n ip-address: 127.0.0.1@{port}\n username: \"\"\n \
             zonesdir: \"{directory}\"\n pidfile: \"\"\n database: \"\"\n \
             xfrdfile: \"{directory}/xfrd\"\n zonelistfile: \"{directory}/list\"\n \
             minimal-responses: yes\n rrl-ratelimit: 0\n\
             remote-control:\n control-enable: no\n\
             zone:\n name: bench.test\n zonefile: bench.zone\n"
        ),
    )?;
    let mut command = Command::new("nsd");
    command.args(["-d", "-c"]).arg(configuration);
    Ok(command)
}

fn bind9(files: &Files, port: u16) -> Result<Command> {
    let directory = files.0.display();
    let configuration = files.0.join("named.conf");
    fs::write(
        &configuration,
        format!(
            "options {{ directory \"{directory}\"; listen-on port {port} {{ 127.0.0.1; }}; \
             listen-on-v6 {{ none; }}; pid-file none; session-keyfile none; recursion no; \
             minimal-responses yes; notify no; dnssec-validation no; }};\n\
             controls {{ }};\n\
             zone \"bench.test\" {{ type primary; file \"bench.zone\"; }};\n"
        ),
    )?;
    let mut command = Command::new("named");
    command.args(["-f", "-n", "1", "-c"]).arg(configuration);
    Ok(command)
}

/// Runs the comparison and prints it.
pub fn run(args: &DnsArgs) -> Result<()> {
    let files = Files::create(args.queries)?;
    let port = measure::free_port()?;
    let ours = Target::start(example(&files, port)?, port)?;
    type Original = fn(&Files, u16) -> Result<Command>;
    let originals: [(&str, Original); 2] = [("nsd", nsd), ("bind9", bind9)];
    let mut missed = Vec::new();
    for (name, command) in originals {
        let port = measure::free_port()?;
        let original = Target::start(command(&files, port)?, port)?;
        let cell = |load: &Load| Cell::new(load.name.to_owned(), Vec::new());
        let mut cells: Vec<Cell> = LOADS.iter().map(cell).collect();
        measure::interleave(&mut cells, args.rounds, |index, side| {
            let target = if side == Side::Ours { &ours } else { &original };
            target.slice(&LOADS[index], &files.queries(&LOADS[index]))
        })?;
        measure::print(&cells, &[], name);
        if name == "nsd" {
            for cell in &cells {
                let cpu = measure::ratio(cell, Figure::Cpu).map_or(f64::INFINITY, |cpu| cpu.high);
                if cpu > BAR {
                    missed.push(format!("{}: {cpu:.2} and not {BAR} times nsd", cell.name));
                }
            }
        }
    }
    missed.iter().for_each(|bar| println!("not reached: {bar}"));
    match missed.is_empty() {
        false if args.check => bail!("a bar is not reached"),
        _ => Ok(()),
    }
}
