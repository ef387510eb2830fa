//! Clients that stay connected, over TCP or Unix sockets: in closed loops, at a fixed rate, or
//! both.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use anyhow::{Context, Result};

use super::gate::Gate;
use super::pattern::Pattern;
use super::recorder::{Recorder, Report};
use super::{LoadArgs, PATIENCE};
use crate::endpoint::Endpoint;
use crate::sys::{Epoll, Event, Events, Socket};

/// Clients of one kind. Only the first group is measured.
pub(super) struct Group {
    pub(super) clients: usize,
    pub(super) size: usize,
    pub(super) pace: Pace,
}

/// When the clients of a group send.
#[derive(Clone, Copy)]
pub(super) enum Pace {
    /// The next message when an answer arrives, with `depth` messages in flight.
    Closed { depth: usize },
    /// All clients at once, when the last of them has its answer: the server then does the same in
    /// every run.
    Together,
    /// One message of the whole group per interval, from each client in turn. The latency of a late
    /// message counts from the time when it was due.
    Every(Duration),
}

/// How often a client may fill the read buffer before other clients are served.
const READS_PER_TURN: usize = 4;

const EVENTS: usize = 1024;

/// The token of stdin, which no client has.
const STDIN: u64 = u64::MAX;

/// Runs all `groups` at once.
pub(super) fn run(args: &LoadArgs, groups: &[Group]) -> Result<Report> {
    let mut engine = Engine::connect(args, groups)?;
    engine.stop_in_vain(args.idle_stops)?;
    engine.start_all()?;
    engine.run()?;
    Ok(engine.recorder.report())
}

/// A non-blocking stream to `endpoint`, connected.
pub(super) fn connect(endpoint: &Endpoint) -> Result<Socket> {
    let socket = endpoint.socket()?;
    socket.set_write_timeout(Some(PATIENCE))?; // also limits connect(2)
    socket
        .connect(&endpoint.socket_address()?)
        .with_context(|| format!("cannot connect to {endpoint}"))?;
    socket.set_nonblocking(true)?;
    Ok(Socket::from_nonblocking(socket))
}

/// One connection. Positions count bytes of its own stream of the pattern.
struct Client {
    /// `None` when it has failed.
    socket: Option<Socket>,
    group: usize,
    sent: u64,
    /// The end of all messages that are to be sent.
    queued: u64,
    received: u64,
    /// The end of the message that is answered next.
    next_answer: u64,
    /// For each message in flight, the time when it was sent or due.
    started: VecDeque<u64>,
    is_primed: bool,
}

/// The schedule of a group that sends at a fixed rate.
struct Schedule {
    group: usize,
    interval: u64,
    due: u64,
    clients: std::ops::Range<usize>,
    next_client: usize,
}

struct Engine<'a> {
    groups: &'a [Group],
    epoll: Epoll,
    clients: Vec<Client>,
    schedules: Vec<Schedule>,
    pattern: Pattern,
    /// Shared by all clients; as long as one system call may read.
    buffer: Vec<u8>,
    recorder: Recorder,
    longest_sleep: Duration,
    gate: Option<Gate>,
    /// How many clients have had an answer.
    primed: usize,
    /// How many messages of the measured clients are in flight.
    unanswered: usize,
}

impl<'a> Engine<'a> {
    fn connect(args: &LoadArgs, groups: &'a [Group]) -> Result<Self> {
        let recorder = Recorder::new(args)?;
        let epoll = Epoll::new()?;
        if args.until_eof {
            epoll.add(io::stdin(), STDIN).context("stdin is not a pipe")?;
        }
        let pattern = args.pattern()?;
        let mut clients = Vec::new();
        let mut schedules = Vec::new();
        for (group, Group { clients: count, size, pace }) in groups.iter().enumerate() {
            let first = clients.len();
            for index in first..first + count {
                let socket = connect(&args.to)?;
                epoll.add(&socket, index as u64)?;
                clients.push(Client::new(socket, group, pattern.start_of(index, 0), *size));
            }
            if let Pace::Every(interval) = pace {
                schedules.push(Schedule {
                    group,
                    interval: interval.as_nanos() as u64,
                    due: 0,
                    clients: first..clients.len(),
                    next_client: first,
                });
            }
        }
        schedules.retain(|schedule| !schedule.clients.is_empty());
        Ok(Self {
            groups,
            epoll,
            clients,
            schedules,
            pattern,
            buffer: vec![0; args.chunk],
            recorder,
            longest_sleep: args.longest_sleep(),
            gate: args.watch.filter(|_| args.gate).map(Gate::new),
            primed: 0,
            unanswered: 0,
        })
    }

    /// Stops and continues the server without sending, as often as requested.
    fn stop_in_vain(&self, times: u64) -> Result<()> {
        if let Some(gate) = &self.gate {
            for _ in 0..times {
                gate.close()?;
                gate.open()?;
            }
        }
        Ok(())
    }

    /// All clients send; with a gate, the server is stopped meanwhile.
    fn start_all(&mut self) -> Result<()> {
        if let Some(gate) = &self.gate {
            gate.close()?;
        }
        self.start()?;
        self.gate.as_ref().map_or(Ok(()), Gate::open)
    }

    /// Every client sends its first messages: one message, if a schedule sends the others.
    fn start(&mut self) -> Result<()> {
        for index in 0..self.clients.len() {
            let now = self.recorder.now();
            let depth = match self.groups[self.clients[index].group].pace {
                Pace::Closed { depth } => depth,
                Pace::Together | Pace::Every(_) => 1,
            };
            for _ in 0..depth {
                self.queue(index, now);
            }
            self.flush(index);
        }
        let now = self.recorder.now();
        for schedule in &mut self.schedules {
            schedule.due = now + schedule.interval;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let now = self.recorder.now();
            if !self.recorder.proceed(now, self.primed, self.clients.len())? {
                return Ok(());
            }
            self.send_what_is_due(now);
            if self.unanswered == 0 && matches!(self.groups[0].pace, Pace::Together) {
                self.start_all()?;
            }
            self.epoll.wait_for(&mut events, self.until_next(now))?;
            for event in events.iter() {
                match event.token {
                    STDIN => self.recorder.end(), // stdin is readable only at its end
                    _ => self.turn(event)?,
                }
            }
        }
    }

    /// The time until the next message is due.
    fn until_next(&self, now: u64) -> Duration {
        let dues = self.schedules.iter().map(|schedule| schedule.due);
        let due = dues.min().unwrap_or(u64::MAX);
        Duration::from_nanos(due.saturating_sub(now)).min(self.longest_sleep)
    }

    fn send_what_is_due(&mut self, now: u64) {
        for index in 0..self.schedules.len() {
            while self.schedules[index].due <= now {
                let schedule = &mut self.schedules[index];
                let (client, due) = (schedule.next_client, schedule.due);
                schedule.due += schedule.interval;
                schedule.next_client += 1;
                if schedule.next_client == schedule.clients.end {
                    schedule.next_client = schedule.clients.start;
                }
                debug_assert_eq!(self.clients[client].group, schedule.group);
                self.queue(client, due);
                self.flush(client);
            }
        }
    }

    /// Sends, receives, and sends the messages that the answers allow.
    fn turn(&mut self, event: Event) -> Result<()> {
        let index = event.token as usize;
        self.flush(index);
        if !event.is_readable {
            return Ok(());
        }
        for _ in 0..READS_PER_TURN {
            let client = &mut self.clients[index];
            let length = match client.receive(&mut self.buffer, &self.pattern) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => {
                    self.fail(index);
                    return Ok(());
                }
            };
            self.take_answers(index)?;
            self.flush(index);
            if length < self.buffer.len() && !event.is_read_closed {
                return Ok(());
            }
        }
        if let Some(socket) = &self.clients[index].socket {
            self.epoll.rearm(socket, index as u64)?;
        }
        Ok(())
    }

    /// Counts the messages that have come back completely.
    fn take_answers(&mut self, index: usize) -> Result<()> {
        let client = &mut self.clients[index];
        if client.received < client.next_answer {
            return Ok(());
        }
        let now = self.recorder.now();
        let Group { size, pace, .. } = self.groups[client.group];
        let is_measured = client.group == 0;
        if !client.is_primed {
            client.is_primed = true;
            self.primed += 1;
        }
        while let Some(started) = self.clients[index].take_answer(size) {
            if is_measured {
                self.unanswered -= 1;
                self.recorder.answered(now - started)?;
            } else {
                self.recorder.answered_beside();
            }
            if let Pace::Closed { .. } = pace {
                self.queue(index, now);
            }
        }
        Ok(())
    }

    /// Queues one more message of this client.
    fn queue(&mut self, index: usize, started: u64) {
        let client = &mut self.clients[index];
        let is_measured = client.group == 0;
        if client.socket.is_some() && (!is_measured || self.recorder.may_send()) {
            self.unanswered += usize::from(is_measured);
            client.queued += self.groups[client.group].size as u64;
            client.started.push_back(started);
        }
    }

    fn flush(&mut self, index: usize) {
        if self.clients[index].flush(&self.pattern, self.buffer.len()).is_err() {
            self.fail(index);
        }
    }

    /// Ends a client that got wrong bytes, an error or an early end.
    fn fail(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.socket = None;
        if !client.is_primed {
            client.is_primed = true; // the others must not wait for it
            self.primed += 1;
        }
        self.recorder.error();
    }
}

impl Client {
    fn new(socket: Socket, group: usize, start: u64, size: usize) -> Self {
        Self {
            socket: Some(socket),
            group,
            sent: start,
            queued: start,
            received: start,
            next_answer: start + size as u64,
            started: VecDeque::new(),
            is_primed: false,
        }
    }

    /// Writes queued bytes until the socket is full, `chunk` bytes at a time.
    fn flush(&mut self, pattern: &Pattern, chunk: usize) -> io::Result<()> {
        let Some(socket) = &mut self.socket else {
            return Ok(());
        };
        while self.sent < self.queued {
            let end = self.queued.min(self.sent + chunk as u64);
            match socket.write(pattern.slice(self.sent..end)) {
                Ok(written) => self.sent += written as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads once and verifies the bytes.
    fn receive(&mut self, buffer: &mut [u8], pattern: &Pattern) -> io::Result<usize> {
        let Some(socket) = &mut self.socket else {
            return Err(ErrorKind::WouldBlock.into());
        };
        let length = socket.read(buffer)?;
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let end = self.received + length as u64;
        if end > self.sent || !pattern.matches(self.received, &buffer[..length]) {
            return Err(ErrorKind::InvalidData.into());
        }
        self.received = end;
        Ok(length)
    }

    /// The start time of the next completed message.
    fn take_answer(&mut self, size: usize) -> Option<u64> {
        if self.received < self.next_answer {
            return None;
        }
        self.next_answer += size as u64;
        self.started.pop_front()
    }
}
