//! The servers that are attacked, and their processes.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::super::catalog::{PACKAGE, build, find_python};
use super::super::process::{Pin, Scratch, listening_line, spawn, wait};
use crate::attack::Wire;
use crate::sys::{self, Resources};

/// How often the resources of a server are looked at.
const SAMPLE: Duration = Duration::from_millis(50);

/// How long a server may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// A server that is attacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The hello-world of this crate, in this mode.
    Ours(&'static str),
    /// The same for messages with a length prefix.
    OursLength,
    /// A server of this package: `serve NAME --lines`.
    Foundation(&'static str),
    Python,
}

const NAMES: [(&str, Target); 8] = [
    ("ours", Target::Ours("reactor")),
    ("ours-threading", Target::Ours("threading")),
    ("ours-pool", Target::Ours("pool")),
    ("ours-length", Target::OursLength),
    ("message-io", Target::Foundation("message-io")),
    ("tokio", Target::Foundation("tokio-mt")),
    ("py-threading", Target::Python),
    ("std-threads", Target::Foundation("std-threads")),
];

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = NAMES.iter().find(|(name, _)| *name == text);
        let names = NAMES.map(|(name, _)| name).join(", ");
        known.map(|(_, target)| *target).ok_or_else(|| anyhow!("{text:?}: there are {names}"))
    }
}

impl Target {
    pub(super) fn name(self) -> &'static str {
        NAMES.iter().find(|(_, target)| *target == self).map_or("", |(name, _)| name)
    }

    pub(super) fn wire(self) -> Wire {
        if self == Target::OursLength { Wire::Length } else { Wire::Lines }
    }

    pub(super) fn is_ours(self) -> bool {
        matches!(self, Target::Ours(_) | Target::OursLength)
    }
}

/// The programs of the servers.
pub(super) struct Programs {
    itself: PathBuf,
    hello: Option<PathBuf>,
    python: Option<PathBuf>,
}

impl Programs {
    pub(super) fn find(targets: &[Target]) -> Result<Self> {
        let itself = std::env::current_exe()?;
        let hello = targets.iter().any(|target| target.is_ours());
        let python = targets.contains(&Target::Python);
        Ok(Programs {
            hello: hello.then(|| build(PACKAGE, &["--bin", "hello"])).flatten(),
            python: python.then(find_python).flatten(),
            itself,
        })
    }

    pub(super) fn itself(&self) -> &PathBuf {
        &self.itself
    }

    /// The command of a server on a free port; `None` if it cannot be started here.
    pub(super) fn command(&self, target: Target) -> Option<Command> {
        const URL: &str = "tcp://127.0.0.1:0";
        let (program, arguments) = match target {
            Target::Ours(mode) => (&self.hello.as_ref()?, vec![URL, mode, "lines"]),
            Target::OursLength => (&self.hello.as_ref()?, vec![URL, "reactor", "length"]),
            Target::Foundation(name) => {
                (&&self.itself, vec!["serve", name, "--listen", URL, "--lines"])
            }
            Target::Python => {
                const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/lines.py");
                (&self.python.as_ref()?, vec![SCRIPT, URL])
            }
        };
        let mut command = Command::new(program);
        command.args(arguments);
        Some(command)
    }
}

/// A server process, and what it takes from the system.
pub(super) struct Attacked {
    child: Child,
    address: SocketAddr,
    scratch: Scratch,
    watch: Option<Watch>,
}

struct Watch {
    stop: Arc<AtomicBool>,
    peak: Arc<Mutex<Resources>>,
    thread: JoinHandle<()>,
}

impl Attacked {
    /// Starts a server that prints `listening on URL`, with so many descriptors.
    pub(super) fn start(mut command: Command, descriptors: Option<u64>) -> Result<Self> {
        let scratch = Scratch::new()?;
        let errors = File::create(scratch.path().join("stderr"))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        if let Some(count) = descriptors {
            sys::before_exec(&mut command, move || sys::limit_descriptors(count));
        }
        let mut child = spawn(command, Pin(None))?;
        let url = listening_line(&mut child)?;
        let address = url.strip_prefix("tcp://").context("it does not listen on TCP")?.parse()?;
        Ok(Attacked::watched(child, address, scratch))
    }

    /// A started server at this address.
    pub(super) fn watched(child: Child, address: SocketAddr, scratch: Scratch) -> Self {
        let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
        let (pid, stopped, seen) = (child.id(), stop.clone(), peak.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Relaxed)
                && let Ok(now) = sys::resources(pid)
            {
                let mut most: std::sync::MutexGuard<'_, Resources> =
                    seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                most.peak = most.peak.max(now.peak);
                most.descriptors = most.descriptors.max(now.descriptors);
                most.threads = most.threads.max(now.threads);
                drop(most);
                thread::sleep(SAMPLE);
            }
        });
        Attacked { child, address, scratch, watch: Some(Watch { stop, peak, thread }) }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended by itself.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it takes from the system now.
    pub(super) fn resources(&self) -> Resources {
        sys::resources(self.pid()).unwrap_or_default()
    }

    /// Stops it; returns the most that it has taken from the system, and what it has printed on
    /// stderr.
    pub(super) fn stop(mut self) -> Result<(Resources, String)> {
        let peak = self.watch.take().map(|watch| {
            watch.stop.store(true, Relaxed);
            let _ = watch.thread.join();
            *watch.peak.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        });
        self.end();
        let errors = fs::read(self.scratch.path().join("stderr")).unwrap_or_default();
        let Some(peak) = peak else { bail!("it is not watched") };
        Ok((peak, String::from_utf8_lossy(&errors).into_owned()))
    }

    fn end(&mut self) {
        if self.is_alive() && sys::signal(self.pid(), libc::SIGTERM).is_ok() {
            let _ = wait(&mut self.child, PATIENCE);
        }
        if self.is_alive() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Drop for Attacked {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.stop.store(true, Relaxed);
        }
        self.end();
    }
}
