//! A web server and servers of lines beside nginx, under the same slow clients.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::super::catalog::{SOCKETSERVER, build};
use super::super::process::{Pin, Scratch, spawn};
use super::super::progress;
use super::super::stats::median;
use super::super::table::Table;
use super::target::Attacked;
use super::{AttacksArgs, Outcome, Phase, Times, latencies, run_attacker};
use crate::attack::{AttackReport, Wire};
use crate::bench::attacks::probe::Probe;

/// Slow clients.
const CONNECTIONS: usize = 4000;

/// How many of them connect per second.
const RATE: usize = 2000;

/// The length of the file that slow readers ask for.
const LONG: usize = 1 << 20;

/// A server under an attack, which is beside nginx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Nginx,
    Http,
    Lines(&'static str),
}

impl Server {
    fn name(self) -> String {
        match self {
            Server::Nginx => "nginx".into(),
            Server::Http => "example http".into(),
            Server::Lines(mode) => format!("example lines, {mode}"),
        }
    }

    fn wire(self) -> Wire {
        if let Server::Lines(_) = self { Wire::Lines } else { Wire::Http }
    }
}

/// The attacks of slowhttptest, and the other servers that are beside nginx under each.
const ATTACKS: [(&str, &str, &str, &[Server]); 3] = [
    (
        "slow header",
        "-H -x 24 -i 1",
        "hello",
        &[Server::Nginx, Server::Http, Server::Lines("threading"), Server::Lines("pool")],
    ),
    ("slow body", "-B -s 8192 -x 24 -i 1", "hello", &[Server::Nginx, Server::Http]),
    ("slow read", "-X -w 512 -y 1024 -n 1 -z 32 -k 3", "long", &[Server::Nginx, Server::Http]),
];

pub(super) fn run(args: &AttacksArgs) -> Result<()> {
    let programs = Programs::find(args)?;
    let mut table = Table::new([
        "attack",
        "server",
        "survived",
        "peak MiB",
        "before",
        "during",
        "after",
        "p99 to nginx's",
        "left",
    ]);
    for (attack, options, path, servers) in ATTACKS {
        let mut outcomes: Vec<Vec<Outcome>> = servers.iter().map(|_| Vec::new()).collect();
        for round in 0..args.rounds.max(1) {
            let mut order: Vec<usize> = (0..servers.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for place in order {
                let server = servers[place];
                progress(format_args!("{attack}: {}", server.name()));
                let outcome = programs
                    .attack(server, options, path, args.seconds)
                    .with_context(|| format!("{attack}: {}", server.name()))?;
                outcomes[place].push(outcome);
            }
        }
        let p99 = |outcomes: &[Outcome]| {
            median(outcomes.iter().map(|outcome| outcome.during.p99.as_secs_f64()))
                .unwrap_or(f64::NAN)
        };
        let baseline = p99(&outcomes[0]);
        for (server, outcomes) in servers.iter().zip(&outcomes) {
            let Some(last) = outcomes.last() else { continue };
            let ratio = format!("{:.2}", p99(outcomes) / baseline);
            let peak = outcomes.iter().map(|outcome| outcome.peak.peak / 1024).max();
            table.row([
                attack.to_owned(),
                server.name(),
                last.survived(),
                peak.unwrap_or(0).to_string(),
                latencies(middle(outcomes, |outcome| outcome.before)),
                latencies(middle(outcomes, |outcome| outcome.during)),
                latencies(middle(outcomes, |outcome| outcome.after)),
                ratio,
                last.left(),
            ]);
        }
    }
    println!("{table}");
    println!(
        "before, during, after: p50 / p99 in ms of a client that stays connected, medians of {} \
         rounds. left: descriptors, threads and MiB after the attack that were not there before it.",
        args.rounds
    );
    Ok(())
}

/// The phase with the medians of the quantiles.
fn middle(outcomes: &[Outcome], phase: impl Fn(&Outcome) -> Phase) -> Phase {
    let of = |quantile: fn(&Phase) -> Duration| {
        let all = outcomes.iter().map(|outcome| quantile(&phase(outcome)).as_secs_f64());
        median(all).map_or(Duration::ZERO, Duration::from_secs_f64)
    };
    Phase { p50: of(|phase| phase.p50), p99: of(|phase| phase.p99), came: 0, served: 0 }
}

struct Programs {
    itself: PathBuf,
    http: PathBuf,
    lines: PathBuf,
    site: Scratch,
}

impl Programs {
    fn find(args: &AttacksArgs) -> Result<Self> {
        for tool in ["nginx", "slowhttptest"] {
            let found = Command::new(tool).arg("-h").output();
            found.with_context(|| format!("{tool} is not installed"))?;
        }
        let example = |given: &Option<PathBuf>, name: &str| {
            let built = || build(SOCKETSERVER, &["--example", name]);
            given
                .clone()
                .or_else(built)
                .with_context(|| format!("the example {name} does not build"))
        };
        let site = Scratch::new()?;
        fs::write(site.path().join("hello"), "hello\n")?;
        fs::write(site.path().join("long"), vec![b'x'; LONG])?;
        Ok(Programs {
            itself: std::env::current_exe()?,
            http: example(&args.http, "http")?,
            lines: example(&args.lines, "lines")?,
            site,
        })
    }

    fn start(&self, server: Server) -> Result<Attacked> {
        let url = "tcp://127.0.0.1:0";
        match server {
            Server::Nginx => start_nginx(self.site.path()),
            Server::Http => {
                let mut command = Command::new(&self.http);
                command.args(["--listen", url, "--root"]).arg(self.site.path());
                Attacked::start(command, None)
            }
            Server::Lines(mode) => {
                let mut command = Command::new(&self.lines);
                command.args(["--listen", url, "--mode", mode]);
                Attacked::start(command, None)
            }
        }
    }

    fn attack(&self, server: Server, options: &str, path: &str, seconds: f64) -> Result<Outcome> {
        let mut process = self.start(server)?;
        let address = process.address();
        let probe = Probe::start(address, server.wire());
        let mut times = Times::calm(&process);
        let attacker = self.attacker(server, address, options, path, seconds);
        let printed = run_attacker(attacker, seconds)?;
        times.attack_ends(&mut process);
        let (measured, times) = times.rest(probe, &mut process);
        let (peak, errors) = process.stop()?;
        let report: AttackReport = serde_json::from_str(&printed).unwrap_or_default();
        Ok(times.outcome(&measured, report, peak, errors))
    }

    /// slowhttptest, or for a server of lines a drip of bytes.
    fn attacker(
        &self,
        server: Server,
        address: SocketAddr,
        options: &str,
        path: &str,
        seconds: f64,
    ) -> Command {
        if let Server::Lines(_) = server {
            let mut command = Command::new(&self.itself);
            command.args(["attack", "slow-drip", &address.to_string()]).args([
                "--conns",
                &CONNECTIONS.to_string(),
                "--secs",
                &seconds.to_string(),
            ]);
            return command;
        }
        let mut command = Command::new("slowhttptest");
        command
            .args(options.split(' '))
            .args(["-c", &CONNECTIONS.to_string(), "-r", &RATE.to_string()])
            .args(["-l", &seconds.ceil().to_string()])
            .args(["-u", &format!("http://{address}/{path}")]);
        command
    }
}

/// Starts nginx with one worker, which serves the directory `site`, and which is the process that is
/// watched.
fn start_nginx(site: &Path) -> Result<Attacked> {
    let scratch = Scratch::new()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let directory = scratch.path().display().to_string();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {directory}/{name};"))
        .concat();
    let configuration = format!(
        "master_process off; daemon off; pid {directory}/pid; error_log {directory}/log;\n\
         events {{ worker_connections 18000; }}\n\
         http {{ access_log off; {temporary}\n\
         server {{ listen {address} backlog=4096; root {}; }} }}\n",
        site.display()
    );
    let file = scratch.path().join("nginx.conf");
    fs::write(&file, configuration)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&file).args(["-p", &directory]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = spawn(command, Pin(None))?;
    let server = Attacked::watched(child, address, scratch);
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).is_err() {
        if Instant::now() > deadline {
            bail!("nginx does not listen");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(server)
}
