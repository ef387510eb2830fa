//! What the handlers and the hooks of a run record, for the model to check.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socketserver::{ConnectionId, Limit, Sender};

/// How much one call sends at most, in bytes.
pub(crate) const MOST_SENT: usize = 200_000;

/// The length of all messages under [`Wire::Fixed`], unless the handler changes it.
pub(crate) const FIXED: usize = 5;

/// What has happened to one connection, and what its handler has done.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) service: usize,
    pub(crate) opened: usize,
    pub(crate) closed: Option<String>,
    pub(crate) closed_at: Option<Instant>,
    /// It has failed on purpose.
    pub(crate) is_fault: bool,
    /// The limit for which it was closed, and when.
    pub(crate) limit: Option<(Limit, Instant)>,
    /// `on_close` was told of a fault.
    pub(crate) closed_by_fault: bool,
    pub(crate) messages: Vec<Vec<u8>>,
    /// All bytes of the messages.
    pub(crate) bytes: usize,
    /// What it has sent, as the client is to see it.
    pub(crate) sent: Vec<u8>,
    /// How much of that it has sent in calls that come although output waits.
    pub(crate) forced: usize,
    pub(crate) forces: bool,
    pub(crate) eof: bool,
    /// It has ended its output.
    pub(crate) finished: bool,
    /// It has closed, or failed: nothing that it sends goes out.
    pub(crate) closing: bool,
    pub(crate) aborted: bool,
    pub(crate) paused: bool,
    /// Messages may come long after their bytes.
    pub(crate) was_paused: bool,
    pub(crate) timed_out: bool,
    pub(crate) stopping: bool,
    pub(crate) busy: bool,
    /// `on_writable` is to come.
    pub(crate) wants_writable: bool,
    pub(crate) timer: Option<Instant>,
    pub(crate) idle_timeout: Option<Duration>,
    /// When the last message came.
    pub(crate) last_message: Option<Instant>,
    /// A sender has closed or aborted it.
    pub(crate) ended_by_sender: bool,
    pub(crate) events_posted: usize,
    /// What a sender has sent in capital letters, where no framing hides them.
    pub(crate) capitals: Vec<u8>,
    pub(crate) events: usize,
    /// How much of a long stream is left.
    pub(crate) stream_left: usize,
    /// The length of a message under [`Wire::Fixed`].
    pub(crate) fixed: usize,
    /// What must not happen.
    pub(crate) faults: Vec<String>,
}

impl Record {
    /// What a failed assertion prints.
    pub(crate) fn summary(&self) -> String {
        let short = Record {
            messages: Vec::new(),
            sent: Vec::new(),
            capitals: Vec::new(),
            closed: self.closed.clone(),
            faults: self.faults.clone(),
            ..*self
        };
        format!("{} messages, {} bytes sent, {short:?}", self.messages.len(), self.sent.len())
    }
}

/// What has happened to the hooks of all services.
#[derive(Debug, Default)]
pub(crate) struct HookRecord {
    /// The clients that a hook has refused.
    pub(crate) refused: BTreeSet<String>,
    /// The clients for which `handle_error` was called.
    pub(crate) failed: Vec<String>,
    /// When the next action of each service is due.
    pub(crate) next_action: BTreeMap<usize, Instant>,
    pub(crate) actions: usize,
    pub(crate) faults: Vec<String>,
}

/// The records of all connections of a run.
#[derive(Debug)]
pub(crate) struct Records {
    records: Mutex<BTreeMap<String, Record>>,
    hooks: Mutex<HookRecord>,
    /// Senders that any handler may use.
    senders: Mutex<Vec<(String, Sender)>>,
    ids: Mutex<BTreeMap<ConnectionId, String>>,
    /// When the server was first told to stop.
    stop_began: Mutex<Option<Instant>>,
    pub(crate) drain: Duration,
    /// The clock leaps: nothing has an upper bound of time.
    pub(crate) wild: bool,
    /// The handlers only answer from now on, and the hooks refuse nobody.
    pub(crate) calm: AtomicBool,
    /// Handlers leave senders for others.
    pub(crate) shares: AtomicBool,
}

/// How a message looks on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Raw,
    Lines,
    Prefixed,
    Fixed,
}

impl Wire {
    pub(crate) const ALL: [Wire; 4] = [Wire::Lines, Wire::Raw, Wire::Prefixed, Wire::Fixed];

    pub(crate) fn frame(self, message: &[u8]) -> Vec<u8> {
        match self {
            Wire::Raw | Wire::Fixed => message.to_vec(),
            Wire::Lines => [message, b"\n"].concat(),
            Wire::Prefixed => [&(message.len() as u32).to_be_bytes()[..], message].concat(),
        }
    }

    /// How many bytes a frame has besides its message.
    pub(crate) fn overhead(self) -> usize {
        match self {
            Wire::Raw | Wire::Fixed => 0,
            Wire::Lines => 1,
            Wire::Prefixed => 4,
        }
    }

    /// Whether messages may be delivered in other pieces than they were sent in.
    pub(crate) fn cuts(self) -> bool {
        matches!(self, Wire::Raw | Wire::Fixed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Records {
    pub(crate) fn new(wild: bool, drain: Duration) -> Self {
        Records {
            records: Mutex::default(),
            hooks: Mutex::default(),
            senders: Mutex::default(),
            ids: Mutex::default(),
            stop_began: Mutex::default(),
            drain,
            wild,
            calm: AtomicBool::new(false),
            shares: AtomicBool::new(true),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        lock(&self.records)
    }

    pub(crate) fn hooks(&self) -> MutexGuard<'_, HookRecord> {
        lock(&self.hooks)
    }

    pub(crate) fn senders(&self) -> MutexGuard<'_, Vec<(String, Sender)>> {
        lock(&self.senders)
    }

    /// A connection has this number, which no other has had.
    pub(crate) fn is_new(&self, id: ConnectionId, name: &str) -> bool {
        lock(&self.ids).insert(id, name.to_owned()).is_none()
    }

    /// Whether the connection of this number has this name.
    pub(crate) fn is_named(&self, id: ConnectionId, name: &str) -> bool {
        lock(&self.ids).get(&id).is_some_and(|known| known == name)
    }

    /// The server is told to stop.
    pub(crate) fn stops(&self, now: Instant) {
        lock(&self.stop_began).get_or_insert(now);
    }

    /// When the drain deadline is over, if the server was told to stop.
    pub(crate) fn drained(&self) -> Option<Instant> {
        lock(&self.stop_began).map(|began| began + self.drain)
    }

    /// Sends the next capital letter.
    pub(crate) fn send_capital(&self, name: &str, sender: &Sender) {
        if let Some(record) = self.lock().get_mut(name) {
            let letter = b'A' + (record.capitals.len() % 26) as u8;
            let sent = match record.capitals.len() % 3 {
                2 => sender.send_shared(&[letter].as_slice().into()).is_ok(),
                1 => socketserver::broadcast([sender], &[letter]) == 1,
                _ => sender.send(&[letter]).is_ok(),
            };
            if sent {
                record.capitals.push(letter);
            }
        }
    }

    /// Posts the number of the event as an event.
    pub(crate) fn post_event(&self, name: &str, sender: &Sender) {
        if let Some(record) = self.lock().get_mut(name)
            && sender.post(Box::new(record.events_posted)).is_ok()
        {
            record.events_posted += 1;
        }
    }

    /// Ends a connection by one of its senders.
    pub(crate) fn end(&self, name: &str, sender: &Sender, aborts: bool) {
        if let Some(record) = self.lock().get_mut(name) {
            record.ended_by_sender = true;
            record.aborted |= aborts;
            if aborts { sender.abort() } else { sender.close() }
        }
    }
}
