//! The mails on stdout, one JSON object on a line each.
//!
//! Whoever reads stdout may be slow, and a write would then block the event loop. So a thread writes, and
//! posts an event to the connection when the line is out; only then is the mail accepted.

use std::borrow::Cow;
use std::io::{self, BufWriter, PipeReader, PipeWriter, Read as _, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Serialize;
use socketserver::{Context, HandlerError, Sender};

use super::session::Envelope;

/// How many bytes of mails may wait for the thread. A client that sends a mail and then disappears would
/// otherwise fill the memory while nothing reads stdout.
const MOST_WAITING: usize = 64 << 20;

/// How long the program waits at its end for a line that is being written.
const LAST_LINE: Duration = Duration::from_secs(1);

/// A mail that was received.
pub(crate) struct Mail {
    pub(crate) peer: String,
    pub(crate) envelope: Envelope,
    pub(crate) text: Vec<u8>,
}

/// Posted to the handler: its mail is on stdout, or could not be written.
pub(crate) struct Written(pub(crate) bool);

/// What has become of a mail.
pub(crate) enum Outcome {
    Written,
    Failed,
    /// Too much waits for stdout already.
    NoRoom,
    /// A [`Written`] follows.
    Later,
}

/// Writes mails to stdout.
#[derive(Clone)]
pub(crate) enum Output {
    /// The handler itself writes, and waits: its mode lets no other thread reach a connection.
    InHandler(Arc<Turn>),
    InThread {
        queue: mpsc::Sender<Job>,
        waiting: Arc<AtomicUsize>,
    },
}

/// A mail for the thread, and the connection that it came from.
pub(crate) struct Job {
    pub(crate) mail: Mail,
    connection: Sender,
    waiting: Arc<AtomicUsize>,
}

impl Job {
    /// Tells the handler whether the mail has been written.
    pub(crate) fn finish(self, written: bool) {
        self.waiting.fetch_sub(self.mail.memory(), Relaxed);
        // An error: the client has disappeared. It will send the mail again.
        let _ = self.connection.post(Box::new(Written(written)));
    }
}

impl Output {
    /// Handlers that write themselves. Under `forking` each is in a process of its own, and all of them
    /// share one stdout.
    pub(crate) fn in_handler() -> io::Result<Self> {
        Ok(Output::InHandler(Arc::new(Turn::new()?)))
    }

    /// A queue of mails, and its other end, which ends when no `Output` is left.
    pub(crate) fn to_queue() -> (Self, mpsc::Receiver<Job>) {
        let (queue, jobs) = mpsc::channel();
        (Output::InThread { queue, waiting: Arc::default() }, jobs)
    }

    /// A thread that writes, and ends when no `Output` is left.
    pub(crate) fn in_thread() -> io::Result<(Self, JoinHandle<()>)> {
        let (output, jobs) = Output::to_queue();
        let thread = thread::Builder::new().name("stdout".to_owned()).spawn(move || {
            for job in jobs {
                let written = job.mail.print();
                job.finish(written);
            }
        })?;
        Ok((output, thread))
    }

    /// Writes a mail, or has it written.
    pub(crate) fn write(&self, mail: Mail, cx: &mut Context<'_>) -> Outcome {
        match self.try_to_write(mail, cx) {
            Ok(outcome) => outcome,
            Err(error) => {
                log::error!("a mail from {} cannot be written: {error}", cx.peer());
                Outcome::Failed
            }
        }
    }

    fn try_to_write(&self, mail: Mail, cx: &mut Context<'_>) -> Result<Outcome, HandlerError> {
        let (queue, waiting) = match self {
            Output::InHandler(turn) => {
                let _taken = turn.take()?;
                return Ok(if mail.print() { Outcome::Written } else { Outcome::Failed });
            }
            Output::InThread { queue, waiting } => (queue, waiting),
        };
        let (connection, memory) = (cx.sender()?, mail.memory());
        if waiting.fetch_add(memory, Relaxed) > MOST_WAITING {
            waiting.fetch_sub(memory, Relaxed);
            return Ok(Outcome::NoRoom);
        }
        let waiting = waiting.clone();
        queue
            .send(Job { mail, connection, waiting })
            .map_err(|_| "the thread that writes has ended")?;
        Ok(Outcome::Later)
    }
}

/// Waits until the thread has written what it has, unless nothing reads stdout.
pub(crate) fn finish(thread: JoinHandle<()>) {
    let deadline = Instant::now() + LAST_LINE;
    while !thread.is_finished() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
}

/// A mail as JSON. `data.encode(encoding)` of Python gives exactly the bytes that were sent.
#[derive(Serialize)]
struct Line<'a> {
    peer: &'a str,
    helo: &'a str,
    from: &'a str,
    to: &'a [String],
    size: usize,
    encoding: &'static str,
    data: Cow<'a, str>,
}

impl Mail {
    /// How much memory it takes, about.
    fn memory(&self) -> usize {
        self.text.len() + self.envelope.to.iter().map(|to| to.len() + 24).sum::<usize>() + 1024
    }

    /// Writes it as one line. Returns whether that has succeeded.
    fn print(&self) -> bool {
        match self.write_to(BufWriter::new(io::stdout().lock())) {
            Ok(()) => true,
            Err(error) => {
                log::error!("a mail from {} cannot be written to stdout: {error}", self.peer);
                false
            }
        }
    }

    fn write_to(&self, mut output: impl io::Write) -> io::Result<()> {
        let Mail { peer, envelope: Envelope { helo, from, to }, text } = self;
        let (encoding, data) = match std::str::from_utf8(text) {
            Ok(text) => ("utf-8", text.into()),
            // Each byte as the character of this number.
            Err(_) => ("latin-1", text.iter().copied().map(char::from).collect()),
        };
        let line = Line { peer, helo, from, to, size: text.len(), encoding, data };
        serde_json::to_writer(&mut output, &line)?;
        output.write_all(b"\n")?;
        output.flush()
    }
}

/// Lets one process at a time write to stdout: the one that has taken the byte out of a pipe. Without it
/// the long lines of several processes would mix.
pub(crate) struct Turn {
    take: PipeReader,
    give: PipeWriter,
}

/// Gives the turn to the next process when it is dropped.
struct Taken<'a>(&'a Turn);

impl Turn {
    fn new() -> io::Result<Self> {
        let (take, mut give) = io::pipe()?;
        give.write_all(b".")?;
        Ok(Turn { take, give })
    }

    /// Waits for the turn.
    fn take(&self) -> io::Result<Taken<'_>> {
        (&self.take).read_exact(&mut [0])?;
        Ok(Taken(self))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let _ = (&self.0.give).write_all(b".");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &[u8]) -> String {
        let envelope = Envelope {
            helo: "me".to_owned(),
            from: String::new(),
            to: vec!["a@b".to_owned(), "\"c\"@d".to_owned()],
        };
        let mail = Mail { peer: "unnamed".to_owned(), envelope, text: text.to_vec() };
        let mut line = Vec::new();
        mail.write_to(&mut line).unwrap();
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_mail_is_one_line_from_which_its_bytes_can_be_had_again() {
        let start = "{\"peer\":\"unnamed\",\"helo\":\"me\",\"from\":\"\",\
                     \"to\":[\"a@b\",\"\\\"c\\\"@d\"],\"size\"";
        for (text, rest) in [
            (&b"a\r\n\0"[..], ":4,\"encoding\":\"utf-8\",\"data\":\"a\\r\\n\\u0000\"}\n"),
            ("\u{fc}".as_bytes(), ":2,\"encoding\":\"utf-8\",\"data\":\"\u{fc}\"}\n"),
            (b"\xfc\x80", ":2,\"encoding\":\"latin-1\",\"data\":\"\u{fc}\u{80}\"}\n"),
        ] {
            assert_eq!(line(text), format!("{start}{rest}"));
        }
    }

    #[test]
    fn the_turn_is_free_again_when_it_was_given_back() {
        let turn = Turn::new().unwrap();
        drop(turn.take().unwrap());
        drop(turn.take().unwrap());
    }
}
