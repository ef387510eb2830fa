//! The servers by name, and how each is started.

use std::env;
use std::fmt;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};

use super::scenario::Scenario;
use super::{name_of, progress};
use crate::endpoint::Transport;
use crate::servers::Foundation;

/// A server and its name in the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// The program of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// This program.
    Foundation(Foundation),
    /// `python/echo.py`, with this argument.
    Python(&'static str),
    /// `c/libuv_echo.c`.
    Libuv,
    /// The example `echo` of socketserver, in this mode.
    Ours(&'static str),
    /// The same in mode `reactor`, which polls for events a moment before each sleep.
    OursSpinning,
    /// `src/bin/ours-lines.rs`.
    OursLines,
}

const PYTHON: [&str; 3] = ["threading", "forking", "asyncio"];

/// How long `ours-spin` polls before it sleeps, in microseconds: somewhat longer than a running
/// client takes to answer.
const SPIN: u32 = 50;

const OURS: [&str; 6] = ["reactor", "offload", "threading", "pool", "inline", "forking"];

impl Server {
    /// The default baseline.
    pub(super) fn raw() -> Self {
        Server { name: "raw".into(), kind: Kind::Foundation(Foundation::Raw) }
    }

    /// Whether this is the hand-written epoll loop, whose cost is verified.
    pub(super) fn is_raw(&self) -> bool {
        self.kind == Kind::Foundation(Foundation::Raw)
    }

    /// Whether the server runs on several threads or processes, so that pinning it to one CPU would
    /// be unfair.
    pub(super) fn is_parallel(&self) -> bool {
        match self.kind {
            Kind::Foundation(Foundation::TokioMt | Foundation::StdThreads) => true,
            Kind::Foundation(_) => false,
            Kind::Python(style) => style != "asyncio",
            Kind::Ours(mode) => !matches!(mode, "reactor" | "inline"),
            Kind::Libuv | Kind::OursSpinning | Kind::OursLines => false,
        }
    }

    /// The limit of connections of the server, and its reason.
    pub(super) fn most_connections(&self) -> (usize, &'static str) {
        match self.kind {
            Kind::Ours("inline") => (1, "it serves one at a time"),
            Kind::Ours("forking") => (40, "it has at most 40 children, as in Python"),
            Kind::Python("forking") => (500, "each needs a process"),
            _ => (usize::MAX, ""),
        }
    }

    /// Why counts of the server's calls have no meaning, if so.
    pub(super) fn refuses_counting(&self) -> Option<&'static str> {
        let is_spinning = self.kind == Kind::OursSpinning;
        is_spinning.then_some("the number of its polls depends on time")
    }

    /// Why the server cannot take part in a scenario, if so.
    pub(super) fn refuses(&self, scenario: &Scenario) -> Option<&'static str> {
        match self.kind {
            Kind::Foundation(foundation) if !foundation.supports(scenario.transport) => {
                Some("it does not support this transport")
            }
            // A datagram is a message already.
            Kind::OursLines if scenario.transport == Transport::Udp => {
                Some("it does not support this transport")
            }
            Kind::OursLines if !scenario.sends_lines() => {
                Some("it needs lines, and the messages of this load are not lines")
            }
            Kind::Python("forking") if scenario.transport == Transport::Unix => {
                Some("Python supports it only since 3.12")
            }
            _ => self.refuses_connections(scenario.connections()),
        }
    }

    /// Why the server cannot keep so many connections, if so.
    pub(super) fn refuses_connections(&self, count: usize) -> Option<&'static str> {
        let (most, reason) = self.most_connections();
        (count > most).then_some(reason)
    }
}

impl FromStr for Server {
    type Err = anyhow::Error;

    /// `KIND`, or `NAME=KIND` to enter one kind several times.
    fn from_str(text: &str) -> Result<Self> {
        let (name, kind) = text.split_once('=').unwrap_or((text, text));
        let kind = if let Ok(foundation) = Foundation::from_str(kind, false) {
            Kind::Foundation(foundation)
        } else if let Some(style) = kind.strip_prefix("py-") {
            Kind::Python(known(&PYTHON, style).ok_or_else(|| unknown(kind))?)
        } else if kind == "libuv" {
            Kind::Libuv
        } else if kind == "ours-spin" {
            Kind::OursSpinning
        } else if kind == "ours-lines" {
            Kind::OursLines
        } else if kind == "ours" {
            Kind::Ours(OURS[0])
        } else if let Some(mode) = kind.strip_prefix("ours-") {
            Kind::Ours(known(&OURS, mode).ok_or_else(|| unknown(kind))?)
        } else {
            return Err(unknown(kind));
        };
        Ok(Server { name: name.to_owned(), kind })
    }
}

fn is_ours(kind: &Kind) -> bool {
    matches!(kind, Kind::Ours(_) | Kind::OursSpinning)
}

fn known(names: &[&'static str], name: &str) -> Option<&'static str> {
    names.iter().copied().find(|known| *known == name)
}

fn unknown(kind: &str) -> anyhow::Error {
    let foundations = Foundation::value_variants().iter();
    let names: Vec<String> = foundations
        .map(name_of)
        .chain(PYTHON.iter().map(|style| format!("py-{style}")))
        .chain(["libuv", "ours", "ours-spin", "ours-lines"].map(str::to_owned))
        .chain(OURS.iter().map(|mode| format!("ours-{mode}")))
        .collect();
    anyhow!("no server {kind:?}; there are {}", names.join(", "))
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The servers to run, and their options.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Servers, each KIND or NAME=KIND: raw, mio, tokio-ct, tokio-mt, message-io, may, std-threads,
    /// libuv, py-threading, py-forking, py-asyncio, ours, ours-MODE, ours-spin, ours-lines
    #[arg(long, value_delimiter = ',', default_value = "mio,tokio-ct,message-io,ours")]
    servers: Vec<Server>,
    /// The `echo` example of socketserver; built from ../.. if not given
    #[arg(long, value_name = "PATH")]
    ours: Option<PathBuf>,
    /// Workers for `ours-offload` and `ours-pool`; by default the crate's, but enough for every
    /// connection
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Bytes of read buffer for the servers of this package
    #[arg(long, value_name = "BYTES", default_value_t = crate::servers::READ_BUFFER)]
    buffer: usize,
}

/// Starts the servers.
pub(super) struct Launcher {
    itself: PathBuf,
    python: Option<PathBuf>,
    libuv: Option<PathBuf>,
    ours: Option<PathBuf>,
    ours_lines: Option<PathBuf>,
    workers: Option<usize>,
    buffer: usize,
}

impl Launcher {
    /// Finds the programs of the servers; prints and leaves out those that cannot be started.
    pub(super) fn new(args: &ServerArgs) -> Result<(Self, Vec<Server>)> {
        Self::for_servers(args, args.servers.clone())
    }

    /// The same as [`Launcher::new`], for servers given by name; each of them must start.
    pub(super) fn for_names(args: &ServerArgs, names: &[&str]) -> Result<(Self, Vec<Server>)> {
        let wanted = names.iter().map(|name| name.parse()).collect::<Result<Vec<Server>>>()?;
        let (launcher, servers) = Self::for_servers(args, wanted)?;
        if servers.len() < names.len() {
            bail!("not all of {} can be started here", names.join(", "));
        }
        Ok((launcher, servers))
    }

    /// The same as [`Launcher::new`], with a baseline: one of the servers by its name, which is
    /// then removed from them, or another one.
    pub(super) fn against(args: &ServerArgs, name: &str) -> Result<(Self, Server, Vec<Server>)> {
        let named = args.servers.iter().find(|server| server.name == name);
        let baseline = named.map_or_else(|| name.parse(), |server| Ok(server.clone()))?;
        let others = args.servers.iter().filter(|server| **server != baseline);
        let all = std::iter::once(&baseline).chain(others).cloned().collect();
        let (launcher, mut servers) = Self::for_servers(args, all)?;
        if servers[0] != baseline {
            bail!("{baseline} cannot be started here, and all others are compared with it");
        }
        servers.remove(0);
        if servers.is_empty() {
            bail!("no server is left to compare with {baseline}");
        }
        Ok((launcher, baseline, servers))
    }

    fn for_servers(args: &ServerArgs, mut servers: Vec<Server>) -> Result<(Self, Vec<Server>)> {
        let is_asked_for = |wanted: fn(&Kind) -> bool| servers.iter().any(|s| wanted(&s.kind));
        let ours = match &args.ours {
            Some(path) => Some(path.clone()),
            None if is_asked_for(is_ours) => build(PACKAGE, &["--bin", "ours-echo"]),
            None => None,
        };
        let is_wanted = is_asked_for(|kind| *kind == Kind::OursLines);
        let ours_lines = is_wanted.then(|| build(PACKAGE, &["--bin", "ours-lines"])).flatten();
        let python = match is_asked_for(|kind| matches!(kind, Kind::Python(_))) {
            true => find_python(),
            false => None,
        };
        let is_wanted = is_asked_for(|kind| *kind == Kind::Libuv);
        let libuv = is_wanted.then(build_libuv).flatten();
        let launcher = Self {
            itself: env::current_exe()?,
            python,
            libuv,
            ours,
            ours_lines,
            workers: args.workers,
            buffer: args.buffer,
        };
        servers.retain(|server| {
            let missing = match server.kind {
                Kind::Python(_) if launcher.python.is_none() => "python3 is not installed",
                Kind::Libuv if launcher.libuv.is_none() => {
                    "it does not build: cc or libuv with its headers is missing"
                }
                kind if is_ours(&kind) && launcher.ours.is_none() => {
                    "the example `echo` of socketserver does not build"
                }
                Kind::OursLines if launcher.ours_lines.is_none() => "it does not build",
                _ => return true,
            };
            progress(format_args!("{server} is left out: {missing}"));
            false
        });
        if servers.is_empty() {
            bail!("no server is left to run");
        }
        Ok((launcher, servers))
    }

    /// A launcher for the baseline only.
    pub(super) fn for_baseline() -> Result<Self> {
        Ok(Self {
            itself: env::current_exe()?,
            python: None,
            libuv: None,
            ours: None,
            ours_lines: None,
            workers: None,
            buffer: crate::servers::READ_BUFFER,
        })
    }

    /// The program that generates the load.
    pub(super) fn load_generator(&self) -> &Path {
        &self.itself
    }

    /// Program and arguments of a server at `url` for so many `connections`.
    pub(super) fn arguments(
        &self,
        server: &Server,
        url: &str,
        connections: usize,
    ) -> Result<Vec<String>> {
        let mut arguments = Vec::new();
        let mut program = |path: &Option<PathBuf>| -> Result<()> {
            let path = path.as_ref().context("the server cannot be started here")?;
            arguments.push(path.display().to_string());
            Ok(())
        };
        match server.kind {
            Kind::Foundation(foundation) => {
                program(&Some(self.itself.clone()))?;
                let name = name_of(&foundation);
                let buffer = self.buffer.to_string();
                arguments
                    .extend(["serve", &name, "--listen", url, "--buffer", &buffer].map(Into::into));
            }
            Kind::Python(style) => {
                program(&self.python)?;
                let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/echo.py");
                arguments.extend([script, style, url].map(Into::into));
            }
            Kind::Libuv => {
                program(&self.libuv)?;
                arguments.extend([url.to_owned(), self.buffer.to_string()]);
            }
            Kind::OursSpinning => {
                program(&self.ours)?;
                arguments.extend(["--listen", url, "--spin", &SPIN.to_string()].map(Into::into));
            }
            Kind::OursLines => {
                program(&self.ours_lines)?;
                arguments.push(url.to_owned());
            }
            Kind::Ours(mode) => {
                program(&self.ours)?;
                arguments.extend(["--listen", url, "--mode", mode].map(Into::into));
                let workers = match mode {
                    "offload" => self.workers,
                    "pool" => Some(self.workers.unwrap_or(connections.max(16))),
                    _ => None,
                };
                if let Some(workers) = workers {
                    arguments.extend(["--workers".into(), workers.to_string()]);
                }
            }
        }
        Ok(arguments)
    }
}

/// The directory of `socketserver`, whose example `echo` runs all its modes.
pub(super) const SOCKETSERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// The directory of this package.
pub(super) const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");

/// Builds a program of the package in `directory`; returns its path.
pub(super) fn build(directory: &str, target: &[&str]) -> Option<PathBuf> {
    progress(format_args!("building {}", target.join(" ").trim_start_matches('-')));
    let mut child = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--message-format", "json-render-diagnostics"])
        .args(target)
        .current_dir(directory)
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let messages = BufReader::new(child.stdout.take()?);
    let messages = serde_json::Deserializer::from_reader(messages).into_iter::<serde_json::Value>();
    let executable = messages
        .filter_map(|message| message.ok()?.get("executable")?.as_str().map(PathBuf::from))
        .last();
    child.wait().ok()?.success().then_some(executable)?
}

/// Compiles the libuv server into the directory of this program.
fn build_libuv() -> Option<PathBuf> {
    const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/c/libuv_echo.c");
    let program = env::current_exe().ok()?.with_file_name("libuv_echo");
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-o"]).arg(&program).args([SOURCE, "-luv"]);
    let output = compiler.output().ok()?;
    output.status.success().then_some(program)
}

/// The interpreter itself, and not a wrapper that selects one.
pub(super) fn find_python() -> Option<PathBuf> {
    let output =
        Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| path.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_kind_can_have_another_name() {
        let server: Server = "again=tokio-ct".parse().unwrap();
        assert_eq!(server.name, "again");
        assert_eq!(server.kind, Kind::Foundation(Foundation::TokioCt));
    }

    #[test]
    fn every_mode_of_ours_has_a_name() {
        for mode in OURS {
            let server: Server = format!("ours-{mode}").parse().unwrap();
            assert_eq!(server.kind, Kind::Ours(mode));
        }
        let server: Server = "ours-spin".parse().unwrap();
        assert_eq!(server.kind, Kind::OursSpinning);
        let server: Server = "ours-lines".parse().unwrap();
        assert_eq!(server.kind, Kind::OursLines);
        assert!("ours-nonsense".parse::<Server>().is_err());
    }
}
