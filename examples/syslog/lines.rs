//! The lines for stdout, which a thread writes: stdout may be a pipe whose reader is slow, and the
//! event loop must not wait for it.
//!
//! What waits is bounded. While there is no room, the server receives no more: a connection pauses
//! its input, and a hook pauses the datagram services. So a slow reader slows the senders down, or
//! makes the kernel drop UDP datagrams, which it counts; no line is lost here.

use std::io::{self, Write as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Serialize;

/// How many bytes may wait before there is no room. A message that has been received is added all
/// the same: at most one of each connection, and one batch of datagrams.
const LIMIT: usize = 1 << 20;

/// The lines that wait for stdout, shared with the thread that writes them.
#[derive(Clone)]
pub(crate) struct LineQueue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Something has changed that the writer, or `finish`, waits for.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<u8>,
    /// How many lines have been added.
    lines: u64,
    /// How many of them are written.
    written: u64,
    /// Whether the writer waits for lines.
    is_idle: bool,
    failed: Option<io::Error>,
}

impl LineQueue {
    /// A queue without a thread: [`take`](LineQueue::take) has its lines.
    pub(crate) fn new() -> Self {
        LineQueue(Arc::default())
    }

    /// Starts the thread.
    pub(crate) fn start() -> io::Result<Self> {
        let lines = LineQueue::new();
        let writer = lines.clone();
        thread::Builder::new().name("stdout".to_owned()).spawn(move || writer.write_all())?;
        Ok(lines)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line of JSON. Returns whether lines can still be written.
    pub(crate) fn add(&self, value: &impl Serialize) -> serde_json::Result<bool> {
        let mut queue = self.queue();
        if queue.failed.is_some() {
            return Ok(false);
        }
        serde_json::to_writer(&mut queue.waiting, value)?;
        queue.waiting.push(b'\n');
        queue.lines += 1;
        if std::mem::take(&mut queue.is_idle) {
            self.0.changed.notify_all();
        }
        Ok(true)
    }

    pub(crate) fn has_room(&self) -> bool {
        let queue = self.queue();
        queue.waiting.len() < LIMIT || queue.failed.is_some()
    }

    /// Moves all lines that wait into `batch`, and returns how many lines there have been in all.
    pub(crate) fn take(&self, batch: &mut Vec<u8>) -> u64 {
        let mut queue = self.queue();
        batch.clear();
        std::mem::swap(batch, &mut queue.waiting);
        queue.lines
    }

    /// Writes lines until that fails.
    fn write_all(&self) {
        let mut stdout = io::stdout();
        let mut batch = Vec::new();
        loop {
            let mut queue = self.queue();
            while queue.waiting.is_empty() {
                queue.is_idle = true;
                queue = self.0.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            drop(queue);
            let lines = self.take(&mut batch);
            let result = stdout.write_all(&batch).and_then(|()| stdout.flush());
            let mut queue = self.queue();
            match result {
                Ok(()) => queue.written = lines,
                Err(error) => queue.failed = Some(error),
            }
            self.0.changed.notify_all();
            if queue.failed.is_some() {
                return queue.waiting = Vec::new();
            }
        }
    }

    /// Waits until all lines are written, but no longer than this. Returns how many are written.
    ///
    /// # Errors
    ///
    /// The error of the write that failed, or `TimedOut`.
    pub(crate) fn finish(&self, longest: Duration) -> io::Result<u64> {
        let is_unfinished =
            |queue: &mut Queue| queue.failed.is_none() && queue.written < queue.lines;
        let waited = self.0.changed.wait_timeout_while(self.queue(), longest, is_unfinished);
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        match queue.failed.take() {
            Some(error) => Err(error),
            None if queue.written < queue.lines => {
                let left = queue.lines - queue.written;
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("{left} lines are not taken")))
            }
            None => Ok(queue.written),
        }
    }
}
