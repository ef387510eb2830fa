//! Servers under mixed load for minutes or hours: `cargo run --release --manifest-path
//! benches/soak/Cargo.toml`.
//!
//! Each mode has a server process with TCP, UDP, Unix stream and Unix datagram listeners. Clients send
//! and receive in pieces of any size, drip, read slowly, half-close, reset, close in the middle, reach the
//! limits of a listener, and go through a relay that delays and cuts. Servers are stopped and started
//! under load. Each client checks every byte that it receives. Every ten seconds the clients pause, and
//! each server must then have no open connection, no child, nothing held and nothing to do. Its memory,
//! descriptors and threads are sampled; they must not grow.

mod client;
mod plot;
mod random;
mod relay;
mod server;
mod site;
mod verdict;

use std::fs;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use client::{Done, Talk};
use random::Random;
use server::{Format, LISTENERS};
use site::{Site, lock};

const HELP: &str = "\
Runs servers of all modes under mixed load, checks every byte, and says whether they grow.

  --minutes N     how long [default: 2]; fractions are allowed
  --seed N        what the clients do [default: 1]; their timing differs from run to run
  --mode MODE     only this mode; may be given several times
  --clients N     clients of streams per server [default: 4]
  --output DIR    where soak.svg and samples.csv go [default: target/soak]
";

const MODES: [&str; 6] = ["reactor", "offload", "inline", "threading", "pool", "forking"];

/// How long the load lasts between two rests.
const CYCLE: Duration = Duration::from_secs(8);

/// After so many faults the soak ends.
const MOST_FAULTS: usize = 20;

struct Options {
    minutes: f64,
    seed: u64,
    modes: Vec<&'static str>,
    clients: u64,
    output: PathBuf,
}

impl Options {
    fn read() -> Result<Option<Self>> {
        use lexopt::prelude::*;
        let mut options = Options {
            minutes: 2.0,
            seed: 1,
            modes: Vec::new(),
            clients: 4,
            output: "target/soak".into(),
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("minutes") => options.minutes = parser.value()?.parse()?,
                Long("seed") => options.seed = parser.value()?.parse()?,
                Long("clients") => options.clients = parser.value()?.parse()?,
                Long("output") => options.output = parser.value()?.into(),
                Long("mode") => {
                    let value = parser.value()?.string()?;
                    let mode = MODES.into_iter().find(|mode| **mode == *value);
                    options.modes.push(mode.with_context(|| format!("no such mode: {value}"))?);
                }
                Long("help") | Short('h') => {
                    print!("{HELP}");
                    return Ok(None);
                }
                other => return Err(other.unexpected().into()),
            }
        }
        if options.modes.is_empty() {
            options.modes = MODES.to_vec();
        }
        Ok(Some(options))
    }
}

/// Lets clients begin, or not.
#[derive(Debug, Default)]
struct Gate {
    /// Whether it is open, and how many clients are active.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn set_open(&self, is_open: bool) {
        lock(&self.state).0 = is_open;
        self.changed.notify_all();
    }

    fn enter(&self) {
        let waited = self.changed.wait_while(lock(&self.state), |(is_open, _)| !*is_open);
        waited.unwrap_or_else(PoisonError::into_inner).1 += 1;
    }

    fn leave(&self) {
        lock(&self.state).1 -= 1;
        self.changed.notify_all();
    }

    fn wait_until_empty(&self, patience: Duration) -> bool {
        let left = |state: &mut (bool, usize)| state.1 > 0;
        let waited = self.changed.wait_timeout_while(lock(&self.state), patience, left);
        waited.unwrap_or_else(PoisonError::into_inner).0.1 == 0
    }
}

/// What all threads of the soak share.
struct Soak {
    options: Options,
    sites: Vec<Site>,
    gate: Gate,
    is_over: AtomicBool,
    done: Mutex<Done>,
    faults: Mutex<Vec<String>>,
    begun: Instant,
}

impl Soak {
    fn fault(&self, fault: String) {
        eprintln!("fault: {fault}");
        lock(&self.faults).push(fault);
    }

    /// A client of a site, until the soak is over.
    fn run_client(&self, site: &Site, number: u64, is_of_datagrams: bool) {
        for talk in 0.. {
            self.gate.enter();
            if self.is_over.load(SeqCst) {
                return self.gate.leave();
            }
            let mode = MODES.iter().position(|mode| *mode == site.mode).unwrap_or(0) as u64;
            let mut random = Random::of(&[self.options.seed, mode, number, talk]);
            let result = match is_of_datagrams {
                true => exchange(site, number, &mut random),
                false => one_talk(site, &mut random),
            };
            self.gate.leave();
            match result {
                Ok(done) => lock(&self.done).add(done),
                Err(error) => {
                    self.fault(format!("{}, client {number}.{talk}: {error:#}", site.mode))
                }
            }
            thread::sleep(Duration::from_micros(random.below(20_000)));
        }
    }

    /// Load, restarts and rests until the time is over.
    fn direct(&self, bar: &ProgressBar) {
        let end = self.begun + Duration::from_secs_f64(self.options.minutes * 60.0);
        for cycle in 0.. {
            let now = Instant::now();
            if now >= end || lock(&self.faults).len() >= MOST_FAULTS {
                break;
            }
            self.gate.set_open(true);
            self.load_until(end.min(now + CYCLE), cycle, bar);
            self.gate.set_open(false);
            if !self.gate.wait_until_empty(Duration::from_secs(90)) {
                self.fault("a client does not end".to_owned());
                break;
            }
            self.rest();
            self.show(bar, cycle);
        }
        self.is_over.store(true, SeqCst);
        self.gate.set_open(true);
    }

    /// Samples each second; restarts every third server in the middle.
    fn load_until(&self, end: Instant, cycle: usize, bar: &ProgressBar) {
        let middle = Instant::now() + end.saturating_duration_since(Instant::now()) / 2;
        let mut has_restarted = false;
        while Instant::now() < end {
            thread::sleep(
                Duration::from_secs(1).min(end.saturating_duration_since(Instant::now())),
            );
            bar.set_position(self.begun.elapsed().as_secs());
            for site in &self.sites {
                match site.sample(self.begun) {
                    Ok(sample) => lock(&site.loaded).push(sample),
                    Err(error) => self.fault(format!("{}: {error:#}", site.mode)),
                }
            }
            if !has_restarted && Instant::now() >= middle {
                has_restarted = true;
                thread::scope(|scope| {
                    for (number, site) in self.sites.iter().enumerate() {
                        if (number + cycle).is_multiple_of(3) {
                            scope.spawn(|| {
                                site.restart()
                                    .unwrap_or_else(|error| self.fault(format!("{error:#}")));
                            });
                        }
                    }
                });
            }
        }
    }

    /// The clients have paused: each server must be at rest, and serve a client on each listener.
    fn rest(&self) {
        thread::scope(|scope| {
            for site in &self.sites {
                scope.spawn(|| {
                    if let Err(error) = site.expect_rest(self.begun).and_then(|()| probe(site)) {
                        self.fault(format!("at rest: {error:#}"));
                    }
                });
            }
        });
    }

    fn show(&self, bar: &ProgressBar, cycle: usize) {
        let Done { connections, bytes, datagrams, .. } = *lock(&self.done);
        let faults = lock(&self.faults).len();
        let message = format!(
            "{connections} connections, {datagrams} datagrams, {} MB checked, {faults} faults",
            bytes / 1_000_000
        );
        if io::stderr().is_terminal() {
            bar.set_message(message);
        } else if cycle % 6 == 5 {
            eprintln!("after {:.0} s: {message}", self.begun.elapsed().as_secs_f64());
        }
    }
}

/// A connection to a listener, directly or through a relay.
fn one_talk(site: &Site, random: &mut Random) -> Result<Done> {
    let number = random.below(5) as usize;
    let epoch = site.epoch();
    let has_stopped = || site.has_stopped_since(epoch);
    if LISTENERS[number].is_limited {
        return client::reach_limit(&site.urls[number], random, has_stopped);
    }
    let talk = Talk::draw(random, LISTENERS[number].format);
    match random.below(4) {
        0 => {
            let relay = &site.relays[2 * number + random.below(2) as usize];
            talk.carry_out(&relay.url, random, || relay.cuts || has_stopped())
        }
        _ => talk.carry_out(&site.urls[number], random, has_stopped),
    }
}

fn exchange(site: &Site, number: u64, random: &mut Random) -> Result<Done> {
    let listener = 5 + random.below(2) as usize;
    let epoch = site.epoch();
    let own = site.directory.join(format!("client-{number}"));
    client::exchange_datagrams(&site.urls[listener], own, random, || site.has_stopped_since(epoch))
}

/// Every listener serves a client.
fn probe(site: &Site) -> Result<()> {
    let mut random = Random::of(&[1]);
    for (listener, url) in LISTENERS.iter().zip(&site.urls) {
        let result = match listener.format {
            Format::Datagrams => {
                client::exchange_datagrams(url, site.directory.join("probe"), &mut random, || false)
            }
            format => Talk::probe(format).carry_out(url, &mut random, || false),
        };
        let done = result.with_context(|| format!("{}, {}", site.mode, listener.name))?;
        if done.lost_datagrams > 0 {
            bail!("{}, {}: a datagram is lost at rest", site.mode, listener.name);
        }
    }
    Ok(())
}

fn run(options: Options) -> Result<bool> {
    let begun = Instant::now();
    let directory = std::env::temp_dir().join(format!("soak-{}", std::process::id()));
    let start = |mode: &&'static str| Site::start(mode, directory.join(mode), options.seed);
    let sites = options.modes.iter().map(start).collect::<Result<Vec<_>>>()?;
    let soak = Soak {
        options,
        sites,
        gate: Gate::default(),
        is_over: AtomicBool::new(false),
        done: Mutex::default(),
        faults: Mutex::default(),
        begun,
    };
    let bar = ProgressBar::new((soak.options.minutes * 60.0) as u64);
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {elapsed_precise} of {len} s, {eta} left\n{msg}",
    )?);
    thread::scope(|scope| {
        for site in &soak.sites {
            for number in 0..=soak.options.clients {
                let soak = &soak;
                scope.spawn(move || soak.run_client(site, number, number == 0));
            }
        }
        soak.direct(&bar);
    });
    bar.finish_and_clear();
    report(&soak)?;
    let _ = fs::remove_dir_all(&directory);
    Ok(lock(&soak.faults).is_empty())
}

/// Ends the servers, writes the files and prints the verdict.
fn report(soak: &Soak) -> Result<()> {
    verdict::print_header();
    for site in &soak.sites {
        for fault in verdict::judge(site) {
            soak.fault(fault);
        }
        if let Err(error) = site.end() {
            soak.fault(format!("{error:#}"));
        }
    }
    let done = *lock(&soak.done);
    println!("\n{done:?}");
    let output = &soak.options.output;
    fs::create_dir_all(output)?;
    fs::write(output.join("soak.svg"), plot::draw(&soak.sites)?)?;
    fs::write(output.join("samples.csv"), samples(&soak.sites))?;
    println!("written: {0}/soak.svg, {0}/samples.csv", output.display());
    let faults = lock(&soak.faults);
    match faults.len() {
        0 => println!(
            "verdict: flat, and every byte was right ({:.1} minutes, seed {})",
            soak.options.minutes, soak.options.seed
        ),
        count => println!("verdict: {count} faults, the first: {}", faults[0]),
    }
    Ok(())
}

fn samples(sites: &[Site]) -> String {
    let mut csv = "mode,rest,seconds,memory_mib,heap_kib,descriptors,threads,open\n".to_owned();
    for site in sites {
        for (is_rest, samples) in [(0, &site.loaded), (1, &site.rested)] {
            for sample in &*lock(samples) {
                let site::Sample { at, memory, heap, descriptors, threads, open } = sample;
                csv += &format!(
                    "{},{is_rest},{at:.1},{memory:.2},{heap:.1},{descriptors},{threads},{open}\n",
                    site.mode
                );
            }
        }
    }
    csv
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let result = match &arguments[..] {
        [serve, mode, directory] if serve == "serve" => {
            server::serve(mode, directory).map(|()| true)
        }
        _ => match Options::read() {
            Ok(Some(options)) => run(options),
            Ok(None) => Ok(true),
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
