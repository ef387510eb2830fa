//! Child processes: started, pinned, observed, and ended in every case.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::endpoint::{Endpoint, Transport};
use crate::load::Report;
use crate::sys;

/// How long a server may take to start and to exit; both are slow under valgrind.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory for sockets and the output of tools. Dropping it removes it.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new directory.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("peers-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The CPU that a process is bound to.
#[derive(Debug, Clone, Copy)]
pub struct Pin(pub Option<usize>);

/// Starts `command` on its CPU; the kernel ends it when this process ends.
pub(super) fn spawn(mut command: Command, pin: Pin) -> Result<Child> {
    let prepare = move || {
        sys::die_with_parent()?;
        pin.0.map_or(Ok(()), sys::pin_to)
    };
    sys::before_exec(&mut command, prepare);
    let program = command.get_program().to_owned();
    command.spawn().with_context(|| format!("cannot start {}", program.display()))
}

/// A running server.
pub struct ServerProcess {
    child: Child,
    /// The pid of the server; under a tracer it is not the child but the child's child.
    pid: u32,
    endpoint: Endpoint,
    /// Kept because it contains the socket of a Unix server.
    _scratch: Scratch,
}

/// How a server is started.
pub struct Start<'a> {
    /// Its name in errors.
    pub name: &'a str,
    /// Program and arguments of a server that listens at the given URL and then prints
    /// `listening on URL`.
    pub words: &'a dyn Fn(&str) -> Result<Vec<String>>,
    /// Its transport.
    pub transport: Transport,
    /// Its CPU.
    pub pin: Pin,
    /// A tool, with its arguments, under which the server runs.
    pub under: Vec<String>,
}

impl ServerProcess {
    /// Starts the server and waits until it has printed its address.
    pub fn start(start: Start<'_>) -> Result<Self> {
        let scratch = Scratch::new()?;
        let url = match start.transport {
            Transport::Tcp => "tcp://127.0.0.1:0".to_owned(),
            Transport::Udp => "udp://127.0.0.1:0".to_owned(),
            Transport::Unix => format!("unix://{}/socket", scratch.path().display()),
        };
        let is_traced = start.under.first().is_some_and(|tool| tool == "strace");
        let mut words = start.under;
        words.extend((start.words)(&url)?);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = spawn(command, start.pin)?;
        let listening = listening_line(&mut child);
        let pid = match sys::children(child.id()).as_slice() {
            [traced] if is_traced => *traced,
            _ => child.id(),
        };
        let mut process = Self { child, pid, endpoint: url.parse()?, _scratch: scratch };
        process.endpoint = listening
            .and_then(|url| url.parse())
            .with_context(|| format!("{} does not listen on {url}", start.name))?;
        Ok(process)
    }

    /// Its address.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Its pid; under a tracer it is not the started process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends the server; a tool has then written its output.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        sys::signal(self.pid, libc::SIGTERM)?;
        if wait(&mut self.child, PATIENCE)?.is_none() {
            sys::signal(self.pid, libc::SIGKILL)?;
            self.child.kill()?;
            self.child.wait()?;
        }
        Ok(())
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// The URL in the line that a server prints when it listens.
pub(super) fn listening_line(child: &mut Child) -> Result<String> {
    let stdout = child.stdout.as_mut().context("no stdout")?;
    if !sys::wait_readable(&*stdout, PATIENCE)? {
        bail!("it printed nothing");
    }
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let url = line.trim_end().strip_prefix("listening on ");
    Ok(url.with_context(|| format!("it printed {line:?}"))?.to_owned())
}

/// Runs the load generator, a program whose command `load` is [`crate::load::run`], until it exits,
/// for at most `limit`.
pub fn load(
    generator: &Path,
    server: &ServerProcess,
    arguments: &[String],
    pin: Pin,
    limit: Duration,
) -> Result<Report> {
    let mut command = load_command(generator, server);
    command
        .args(arguments)
        .args(["--watch", &server.pid().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = spawn(command, pin)?;
    let mut stdout = child.stdout.take().context("no stdout")?;
    // It prints its report at the end. Until then this thread sleeps, so that the measured
    // processes have the CPUs.
    if !sys::wait_readable(&stdout, limit)? {
        child.kill()?;
        child.wait()?;
        bail!("the load generator did not end");
    }
    let mut report = String::new();
    stdout.read_to_string(&mut report)?;
    if !child.wait()?.success() {
        bail!("the load generator failed");
    }
    Ok(serde_json::from_str(&report)?)
}

/// Clients that stay connected and idle. Dropping it disconnects them.
pub struct IdleClients(Child);

impl IdleClients {
    /// Connects `count` clients; when it returns, each has received one answer, a line of 64 bytes.
    pub fn connect(generator: &Path, server: &ServerProcess, count: usize) -> Result<Self> {
        let mut command = load_command(generator, server);
        command
            .args(["--mode", "hold", "--lines", "--conns", &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut clients = Self(spawn(command, Pin(None))?);
        let stdout = clients.0.stdout.as_mut().context("no stdout")?;
        let mut line = String::new();
        if sys::wait_readable(&*stdout, PATIENCE)? {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.trim_end() != format!("holding {count}") {
            bail!("the idle clients were not all answered");
        }
        Ok(clients)
    }
}

impl Drop for IdleClients {
    fn drop(&mut self) {
        drop(self.0.stdin.take()); // ends the process
        if !matches!(wait(&mut self.0, PATIENCE), Ok(Some(_))) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn load_command(generator: &Path, server: &ServerProcess) -> Command {
    let mut command = Command::new(generator);
    command.args(["load", &server.endpoint().to_string()]);
    command
}

/// Waits for the exit of `child`, for at most `limit`.
pub(super) fn wait(child: &mut Child, limit: Duration) -> Result<Option<std::process::ExitStatus>> {
    const STEP: Duration = Duration::from_millis(2);
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(STEP);
    }
}
