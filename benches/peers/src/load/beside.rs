//! The streams beside the measured clients, in a separate process: otherwise the measured clients
//! would wait for a generator that reads megabytes, and not only for the server.
//!
//! If both share a CPU, the streams run with the lowest priority, so that the kernel runs the
//! measured clients as soon as an answer arrives. The streams still get nearly all of the CPU,
//! because the measured clients send at a fixed rate; closed loops would leave nothing.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

use super::recorder::{Report, UNDER_WAY};
use super::{LoadArgs, PATIENCE};
use crate::sys;

/// The message size and the number of bytes in flight of a streaming client.
const SIZE: usize = 1 << 20;
const DEPTH: usize = 2;

/// The bytes per system call. A kernel without preemption runs no other process during a system
/// call, so these are short; with shorter ones, the streams would be slower than the server.
const CHUNK: usize = 128 << 10;

/// Streaming clients in a process that exits with this one. Dropping it kills the process.
pub(super) struct Streams {
    process: Child,
    stdout: BufReader<ChildStdout>,
}

impl Streams {
    /// Starts `args.beside` of them, and waits until each has had an answer.
    pub(super) fn start(args: &LoadArgs) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command
            .args(["load", &args.to.to_string(), "--until-eof"])
            .args(["--conns", &args.beside.to_string()])
            .args(["--size", &SIZE.to_string(), "--depth", &DEPTH.to_string()])
            .args(["--chunk", &CHUNK.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        sys::before_exec(&mut command, || {
            sys::die_with_parent()?;
            sys::run_when_idle()
        });
        let mut process = command.spawn().context("cannot start the streams")?;
        let stdout = process.stdout.take().map(BufReader::new).context("no stdout")?;
        let mut streams = Self { process, stdout };
        let mut line = String::new();
        if sys::wait_readable(streams.stdout.get_ref(), PATIENCE)? {
            streams.stdout.read_line(&mut line)?;
        }
        if line.trim_end() != UNDER_WAY {
            bail!("the streams were not all answered");
        }
        Ok(streams)
    }

    /// Ends the process; returns its report from the first answer of every client on.
    pub(super) fn end(mut self) -> Result<Report> {
        drop(self.process.stdin.take());
        let mut report = String::new();
        if sys::wait_readable(self.stdout.get_ref(), PATIENCE)? {
            self.stdout.read_to_string(&mut report)?;
        }
        serde_json::from_str(&report).context("the streams printed no report")
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        let _ = self.process.kill(); // it may have exited
        let _ = self.process.wait();
    }
}
