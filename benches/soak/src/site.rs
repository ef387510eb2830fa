//! A server process as the soak sees it: it starts and stops it, and reads its counters and resources.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::relay::Relay;
use crate::server::{DRAIN, LISTENERS};

/// How long a server may take for what it must do, beyond the drain timeout: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a server has printed.
#[derive(Debug, Default)]
struct Printed {
    urls: Vec<String>,
    counters: BTreeMap<String, u64>,
    /// How many reports of the counters there were.
    reports: u64,
    ready: u64,
    stopped: u64,
    has_ended: bool,
}

/// The resources of a server process at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    /// Seconds since the soak has begun.
    pub(crate) at: f64,
    /// The resident memory, in MiB.
    pub(crate) memory: f64,
    /// What is in use of the heap, in KiB; a process per connection has its own.
    pub(crate) heap: f64,
    pub(crate) descriptors: f64,
    pub(crate) threads: f64,
    /// The connections that are open.
    pub(crate) open: f64,
}

/// A server process, the relays before it, and what is known of both.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) mode: &'static str,
    pub(crate) urls: Vec<String>,
    pub(crate) relays: Vec<Relay>,
    pub(crate) directory: PathBuf,
    child: Mutex<Child>,
    pid: u32,
    printed: Arc<(Mutex<Printed>, Condvar)>,
    /// Odd while the server stops and starts.
    epoch: AtomicU64,
    pub(crate) longest_stop: Mutex<Duration>,
    /// Samples under load, and samples at rest.
    pub(crate) loaded: Mutex<Vec<Sample>>,
    pub(crate) rested: Mutex<Vec<Sample>>,
}

impl Site {
    pub(crate) fn start(mode: &'static str, directory: PathBuf, seed: u64) -> Result<Self> {
        fs::create_dir_all(&directory)?;
        let shown = directory.to_str().context("the path of the directory is not UTF-8")?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", mode, shown])
            // With one arena per thread, what the allocator keeps grows for hours.
            .env("MALLOC_ARENA_MAX", "2")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let printed: Arc<(Mutex<Printed>, Condvar)> = Arc::default();
        let stdout = child.stdout.take().context("its output")?;
        let reading = printed.clone();
        thread::spawn(move || read_lines(stdout, &reading));
        let mut site = Site {
            mode,
            urls: Vec::new(),
            relays: Vec::new(),
            directory,
            pid: child.id(),
            child: Mutex::new(child),
            printed,
            epoch: AtomicU64::new(0),
            longest_stop: Mutex::default(),
            loaded: Mutex::default(),
            rested: Mutex::default(),
        };
        drop(site.wait("it does not start", PATIENCE, |printed| printed.ready == 1)?);
        site.urls = lock(&site.printed.0).urls.clone();
        for url in &site.urls[..4] {
            for cuts in [false, true] {
                site.relays.push(Relay::start(url.clone(), cuts, seed)?);
            }
        }
        Ok(site)
    }

    fn wait(
        &self,
        what: &str,
        patience: Duration,
        is_met: impl Fn(&Printed) -> bool,
    ) -> Result<MutexGuard<'_, Printed>> {
        let (printed, changed) = &*self.printed;
        let waits = |printed: &mut Printed| !is_met(printed) && !printed.has_ended;
        let waited = changed.wait_timeout_while(lock(printed), patience, waits);
        let (printed, _) = waited.unwrap_or_else(PoisonError::into_inner);
        ensure!(!printed.has_ended || is_met(&printed), "{}: the server has ended", self.mode);
        ensure!(is_met(&printed), "{}: {what}: {:?}", self.mode, printed.counters);
        Ok(printed)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(SeqCst)
    }

    /// Whether the server has stopped since `epoch`, or was stopping then.
    pub(crate) fn has_stopped_since(&self, epoch: u64) -> bool {
        epoch % 2 == 1 || self.epoch() != epoch
    }

    /// Stops the server under load, and waits until it serves again.
    pub(crate) fn restart(&self) -> Result<()> {
        let (stopped, ready) = {
            let printed = lock(&self.printed.0);
            (printed.stopped, printed.ready)
        };
        self.epoch.fetch_add(1, SeqCst);
        let begun = Instant::now();
        kill(Pid::from_raw(self.pid as i32), Signal::SIGTERM)?;
        let patience = DRAIN + PATIENCE;
        drop(self.wait("it does not stop", patience, |printed| printed.stopped > stopped)?);
        let mut longest = lock(&self.longest_stop);
        *longest = longest.max(begun.elapsed());
        drop(longest);
        drop(self.wait("it does not start again", PATIENCE, |printed| printed.ready > ready)?);
        self.epoch.fetch_add(1, SeqCst);
        Ok(())
    }

    /// Waits until no connection is open and nothing is held, and checks that the server does nothing.
    pub(crate) fn expect_rest(&self, begun: Instant) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.relays.iter().all(Relay::is_idle) {
            ensure!(Instant::now() < deadline, "{}: a relayed connection stays open", self.mode);
            thread::sleep(Duration::from_millis(10));
        }
        let reports = lock(&self.printed.0).reports + 1; // one may be on its way
        drop(self.wait("connections or memory are left", PATIENCE, |printed| {
            let is_zero = |name| printed.counters.get(name).is_none_or(|value| *value == 0);
            printed.reports > reports && is_zero("open") && is_zero("memory_held")
        })?);
        while !children_of(self.pid)?.is_empty() {
            ensure!(Instant::now() < deadline, "{}: a child process is left", self.mode);
            thread::sleep(Duration::from_millis(10));
        }
        let before = ticks(self.pid)?;
        thread::sleep(Duration::from_millis(300));
        let used = ticks(self.pid)? - before;
        ensure!(used <= 5, "{}: {used} of 30 ticks of processor time at rest", self.mode);
        let faults = ["panics", "handler_errors"].map(|name| (name, self.counter(name)));
        ensure!(faults.iter().all(|(_, count)| *count == 0), "{}: {faults:?}", self.mode);
        lock(&self.rested).push(self.sample(begun)?);
        Ok(())
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        lock(&self.printed.0).counters.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn sample(&self, begun: Instant) -> Result<Sample> {
        let process = Path::new("/proc").join(self.pid.to_string());
        let statm = fs::read_to_string(process.join("statm"))?;
        let pages: f64 = statm.split(' ').nth(1).context("statm")?.parse()?;
        let count = |name: &str| fs::read_dir(process.join(name)).map(|all| all.count() as f64);
        Ok(Sample {
            at: begun.elapsed().as_secs_f64(),
            memory: pages * 4096.0 / f64::from(1 << 20),
            heap: self.counter("heap") as f64 / 1024.0,
            descriptors: count("fd")?,
            threads: count("task")?,
            open: self.counter("open") as f64,
        })
    }

    /// Ends the server, which must exit with success.
    pub(crate) fn end(&self) -> Result<()> {
        fs::write(self.directory.join("end"), "")?;
        kill(Pid::from_raw(self.pid as i32), Signal::SIGTERM)?;
        let deadline = Instant::now() + DRAIN + PATIENCE;
        let mut child = lock(&self.child);
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() >= deadline => bail!("{}: it does not end", self.mode),
                None => thread::sleep(Duration::from_millis(10)),
            }
        };
        ensure!(status.success(), "{}: {status}", self.mode);
        for (listener, url) in LISTENERS.iter().zip(&self.urls) {
            if let Some((_, path)) = url.split_once(":///") {
                let is_left = Path::new("/").join(path).exists();
                ensure!(!is_left, "{}: the socket file of {} is left", self.mode, listener.name);
            }
        }
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn read_lines(stdout: ChildStdout, (printed, changed): &(Mutex<Printed>, Condvar)) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { break };
        let mut printed = lock(printed);
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "ready" => {
                printed.ready += 1;
                printed.urls = rest.split(' ').map(str::to_owned).collect();
            }
            "counters" => {
                let pairs = rest.split(' ').filter_map(|pair| pair.split_once('='));
                let pairs =
                    pairs.filter_map(|(name, value)| Some((name.into(), value.parse().ok()?)));
                printed.counters = pairs.collect();
                printed.reports += 1;
            }
            "stopped" => printed.stopped += 1,
            _ => eprintln!("{line}"),
        }
        changed.notify_all();
    }
    lock(printed).has_ended = true;
    changed.notify_all();
}

fn children_of(pid: u32) -> Result<Vec<String>> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(children.split_whitespace().map(str::to_owned).collect())
}

/// The processor time that a process has used, in ticks of 10 ms.
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("stat")?;
    let used = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    used.sum::<Result<u64, _>>().context("stat")
}
