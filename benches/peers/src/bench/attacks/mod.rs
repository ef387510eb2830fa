//! Hello-worlds under attack: who survives, and at which cost.
//!
//! Each server is started anew for each attack, has a normal client before, during and after it, and
//! is stopped. The servers take turns, and each attack begins with another one.

mod nginx;
mod probe;
mod target;

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::process::{Pin, spawn, wait};
use super::table::Table;
use super::{name_of, progress};
use crate::attack::{Attack, AttackReport};
use crate::sys::{self, Resources};

use probe::{Measured, Phase, Probe};
use target::{Attacked, Programs, Target};

/// The options of the attacks.
#[derive(Debug, Clone, Args)]
pub struct AttacksArgs {
    /// Only these attacks; `idle-crowd` is made only if it is named
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "stalled-reader,no-descriptors,slow-drip,frame-bomb,connection-flood,silent-crowd"
    )]
    only: Vec<Attack>,
    /// Servers: ours, ours-threading, ours-pool, ours-length, message-io, tokio, py-threading,
    /// std-threads
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "ours,ours-threading,ours-pool,ours-length,message-io,tokio,py-threading,std-threads"
    )]
    servers: Vec<Target>,
    /// How long an attack lasts
    #[arg(long, default_value_t = 6.0)]
    seconds: f64,
    /// Connections, as a multiple of the default
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Attack a web server and servers of lines, and this one beside them
    #[arg(long, value_name = "SERVER", value_parser = ["nginx"])]
    against: Option<String>,
    /// How often the servers take turns, with --against
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// The example `http` of socketserver, with --against; built from ../.. if not given
    #[arg(long, value_name = "PATH")]
    http: Option<std::path::PathBuf>,
    /// The example `lines` of socketserver, with --against; built from ../.. if not given
    #[arg(long, value_name = "PATH")]
    lines: Option<std::path::PathBuf>,
}

/// How long the normal client is measured before an attack and after it.
const CALM: Duration = Duration::from_millis(1200);

/// How long the server has to recover before the measurement after an attack.
const RECOVERY: Duration = Duration::from_millis(800);

/// An attack is survived if at least so many of 100 new clients are served during it.
const SERVED: usize = 99;

/// The most that an attacking process may take longer than it should.
const PATIENCE: Duration = Duration::from_secs(30);

/// The descriptors of a server under [`Attack::NoDescriptors`].
const FEW_DESCRIPTORS: u64 = 256;

/// How many connections an attack has.
fn connections(attack: Attack) -> usize {
    match attack {
        Attack::StalledReader => 1000,
        Attack::NoDescriptors => 2000,
        Attack::SlowDrip => 4000,
        Attack::FrameBomb => 5000,
        Attack::ConnectionFlood => 1,
        Attack::SilentCrowd | Attack::IdleCrowd => 18_000,
    }
}

/// Prints the table.
pub fn run(args: &AttacksArgs) -> Result<()> {
    if args.against.is_some() {
        return nginx::run(args);
    }
    let programs = Programs::find(&args.servers)?;
    let mut table = Table::new([
        "attack", "server", "survived", "peak MiB", "held MiB", "CPU s", "before", "during",
        "after", "left",
    ]);
    let mut counters = String::new();
    for (number, attack) in args.only.iter().enumerate() {
        let mut servers = args.servers.clone();
        let first = number % servers.len();
        servers.rotate_left(first);
        let mut rows = Vec::new();
        for target in servers {
            let Some(command) = programs.command(target) else {
                progress(format_args!("{} cannot be started here", target.name()));
                continue;
            };
            if target == Target::OursLength && *attack != Attack::FrameBomb {
                continue;
            }
            progress(format_args!("{}: {}", name_of(attack), target.name()));
            let outcome = one(args, &programs, *attack, target, command)
                .with_context(|| format!("{}: {}", name_of(attack), target.name()))?;
            progress(format_args!("{}", outcome.attacker));
            if let Some(line) = outcome.counters() {
                counters += &format!("* {}, {}: {line}\n", name_of(attack), target.name());
            }
            rows.push((target, outcome));
        }
        rows.sort_by_key(|(target, _)| args.servers.iter().position(|other| other == target));
        for (target, outcome) in rows {
            table.row(outcome.cells(&name_of(attack), target));
        }
    }
    println!("{table}");
    println!(
        "before, during, after: p50 / p99 in ms of a client that stays connected. held: the most that \
         the connections held, as socketserver counts it. left: descriptors, threads and MiB after \
         the attack that were not there before it."
    );
    println!("\n{counters}");
    Ok(())
}

/// What an attack did to a server.
struct Outcome {
    attacker: AttackReport,
    is_alive: bool,
    cpu: Duration,
    before: Phase,
    during: Phase,
    after: Phase,
    /// What the server took before the attack, at most, and after it.
    calm: Resources,
    peak: Resources,
    rest: Resources,
    errors: String,
}

fn one(
    args: &AttacksArgs,
    programs: &Programs,
    attack: Attack,
    target: Target,
    command: Command,
) -> Result<Outcome> {
    let descriptors = (attack == Attack::NoDescriptors).then_some(FEW_DESCRIPTORS);
    let mut server = Attacked::start(command, descriptors)?;
    let conns = ((connections(attack) as f64 * args.scale) as usize).max(1);
    let mut attacker = Command::new(programs.itself());
    attacker
        .args(["attack", &name_of(&attack), &server.address().to_string()])
        .args(["--conns", &conns.to_string(), "--secs", &args.seconds.to_string()])
        .args(["--wire", &name_of(&target.wire())]);
    let probe = Probe::start(server.address(), target.wire());
    let mut times = Times::calm(&server);
    let attacker = run_attacker(attacker, args.seconds)?;
    times.attack_ends(&mut server);
    let (measured, times) = times.rest(probe, &mut server);
    let (peak, errors) = server.stop()?;
    Ok(times.outcome(&measured, serde_json::from_str(&attacker)?, peak, errors))
}

/// Runs an attacker until it ends; returns what it has printed.
fn run_attacker(mut command: Command, seconds: f64) -> Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    sys::before_exec(&mut command, sys::lower_priority);
    let cpu = sys::cpus()?.last().copied();
    let mut child = spawn(command, Pin(cpu))?;
    let limit = Duration::from_secs_f64(seconds) + PATIENCE;
    if wait(&mut child, limit)?.is_none() {
        child.kill()?;
        child.wait()?;
        bail!("the attacker did not end");
    }
    let mut printed = String::new();
    let stdout = child.stdout.as_mut().context("no stdout")?;
    std::io::Read::read_to_string(stdout, &mut printed)?;
    Ok(printed)
}

/// The times of the phases, and what the server took in them.
struct Times {
    began: Instant,
    attacked: Instant,
    ended: Instant,
    rested: Instant,
    done: Instant,
    calm: Resources,
    rest: Resources,
    cpu_before: Duration,
    cpu: Duration,
    is_alive: bool,
}

impl Times {
    /// Waits for the phase before the attack.
    fn calm(server: &Attacked) -> Self {
        thread::sleep(CALM / 4);
        let began = Instant::now();
        thread::sleep(CALM);
        let now = Instant::now();
        Times {
            began,
            attacked: now,
            ended: now,
            rested: now,
            done: now,
            calm: server.resources(),
            rest: Resources::default(),
            cpu_before: sys::cpu_time(server.pid()).unwrap_or_default(),
            cpu: Duration::ZERO,
            is_alive: true,
        }
    }

    fn attack_ends(&mut self, server: &mut Attacked) {
        self.ended = Instant::now();
        let cpu = sys::cpu_time(server.pid()).unwrap_or(self.cpu_before);
        self.cpu = cpu.saturating_sub(self.cpu_before);
    }

    /// Waits for the phase after the attack.
    fn rest(mut self, probe: Probe, server: &mut Attacked) -> (Measured, Self) {
        thread::sleep(RECOVERY);
        self.rested = Instant::now();
        thread::sleep(CALM);
        self.done = Instant::now();
        self.rest = server.resources();
        self.is_alive = server.is_alive();
        (probe.stop(), self)
    }

    fn outcome(
        self,
        measured: &Measured,
        attacker: AttackReport,
        peak: Resources,
        errors: String,
    ) -> Outcome {
        Outcome {
            attacker,
            is_alive: self.is_alive,
            cpu: self.cpu,
            before: measured.phase(self.began, self.attacked),
            during: measured.phase(self.attacked, self.ended),
            after: measured.phase(self.rested, self.done),
            calm: self.calm,
            peak,
            rest: self.rest,
            errors,
        }
    }
}

impl Outcome {
    fn survived(&self) -> String {
        let Phase { came, served, .. } = self.during;
        if !self.is_alive {
            return "no, it ended".into();
        }
        if served * 100 >= came * SERVED && self.after.served == self.after.came {
            return "yes".into();
        }
        let percent = |phase: Phase| phase.served * 100 / phase.came.max(1);
        format!("no, {} %, {} %", percent(self.during), percent(self.after))
    }

    fn left(&self) -> String {
        let difference = |after: u64, before: u64| after as i64 - before as i64;
        let Outcome { calm, rest, .. } = self;
        format!(
            "{:+} {:+} {:+}",
            difference(rest.descriptors as u64, calm.descriptors as u64),
            difference(rest.threads, calm.threads),
            difference(rest.resident / 1024, calm.resident / 1024)
        )
    }

    /// The most memory that the connections held, in bytes, if the server reports that.
    fn held(&self) -> Option<u64> {
        let held = self.errors.lines().filter_map(|line| line.strip_prefix("memory_held "));
        held.filter_map(|bytes| bytes.parse().ok()).max()
    }

    fn counters(&self) -> Option<&str> {
        self.errors.lines().find_map(|line| line.strip_prefix("counters "))
    }

    fn cells(&self, attack: &str, target: Target) -> [String; 10] {
        let held = match (target.is_ours(), self.held()) {
            (true, held) => format!("{:.1}", held.unwrap_or(0) as f64 / f64::from(1 << 20)),
            (false, _) => String::new(),
        };
        [
            attack.to_owned(),
            target.name().to_owned(),
            self.survived(),
            (self.peak.peak / 1024).to_string(),
            held,
            format!("{:.2}", self.cpu.as_secs_f64()),
            latencies(self.before),
            latencies(self.during),
            latencies(self.after),
            if self.is_alive { self.left() } else { String::new() },
        ]
    }
}

/// The quantiles of a phase, in milliseconds.
fn latencies(Phase { p50, p99, .. }: Phase) -> String {
    let millis = |time: Duration| match time.as_secs_f64() * 1e3 {
        long if long >= 100.0 => format!("{long:.0}"),
        long if long >= 10.0 => format!("{long:.1}"),
        short => format!("{short:.2}"),
    };
    format!("{} / {}", millis(p50), millis(p99))
}
