//! A handler that decides at random what it does, and records what happens to it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socketserver::testing::World;
use socketserver::{CloseReason, Context, Event, Handler, HandlerResult, Limit, Peer, Sender};

/// How much one call sends at most, in bytes.
pub(crate) const MOST_SENT: usize = 200_000;

/// What has happened to one connection, and what its handler has done.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) opened: usize,
    pub(crate) closed: Option<String>,
    pub(crate) is_fault: bool,
    pub(crate) messages: Vec<Vec<u8>>,
    /// All bytes of the messages.
    pub(crate) bytes: usize,
    /// What it has sent, as the client is to see it.
    pub(crate) sent: Vec<u8>,
    pub(crate) eof: bool,
    pub(crate) rejected: bool,
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
    /// What must not happen.
    pub(crate) faults: Vec<String>,
}

/// The records of all connections, and how the service frames its messages.
#[derive(Debug)]
pub(crate) struct Records {
    records: Mutex<BTreeMap<String, Record>>,
    pub(crate) wire: Wire,
    pub(crate) wild: bool,
    /// The handlers only answer from now on.
    pub(crate) calm: AtomicBool,
}

/// How a message looks on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Raw,
    Lines,
    Prefixed,
    Fixed,
}

/// The length of all messages under [`Wire::Fixed`].
pub(crate) const FIXED: usize = 5;

impl Wire {
    pub(crate) fn frame(self, message: &[u8]) -> Vec<u8> {
        match self {
            Wire::Raw | Wire::Fixed => message.to_vec(),
            Wire::Lines => [message, b"\n"].concat(),
            Wire::Prefixed => [&(message.len() as u32).to_be_bytes()[..], message].concat(),
        }
    }
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

impl Records {
    pub(crate) fn new(wire: Wire, wild: bool) -> Arc<Self> {
        Arc::new(Records { records: Mutex::default(), wire, wild, calm: AtomicBool::new(false) })
    }

    /// Sends the next capital letter.
    fn send_capital(&self, name: &str, sender: &Sender) {
        if let Some(record) = self.lock().get_mut(name) {
            let letter = b'A' + (record.capitals.len() % 26) as u8;
            if sender.send(&[letter]).is_ok() {
                record.capitals.push(letter);
            }
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handler.
pub(crate) struct Random {
    world: World,
    records: Arc<Records>,
    name: String,
    sender: Option<Sender>,
    /// How many calls do nothing besides, at most, between two that do; and how many are left.
    calm_calls: usize,
    calm_left: usize,
}

impl Random {
    pub(crate) fn new(world: &World, records: &Arc<Records>, peer: &Peer) -> Self {
        Random {
            world: world.clone(),
            records: records.clone(),
            name: peer.to_string(),
            sender: None,
            calm_calls: [1, 20, 1000][world.choose(3)],
            calm_left: 0,
        }
    }

    fn with<T>(&self, call: impl FnOnce(&mut Record) -> T) -> T {
        let mut records = self.records.lock();
        call(records.entry(self.name.clone()).or_default())
    }

    /// Records a call, and what must not precede it.
    fn called(&self, what: &'static str, cx: &Context<'_>, check: impl FnOnce(&mut Record)) {
        self.world.note(what, 0);
        self.world.mark(what);
        let now = cx.now();
        self.with(|record| {
            let mut fault = |is_fault: bool, text: &str| {
                if is_fault {
                    record.faults.push(format!("{what} {text}"));
                }
            };
            fault(record.opened != usize::from(what != "on_open"), "without one on_open");
            fault(record.closed.is_some(), "after on_close");
            fault(record.closing, "after the close");
            check(record);
            let late = record.timer.is_some_and(|timer| timer + Duration::from_secs(2) < now);
            if late && !self.records.wild && what != "on_timer" && what != "on_stop" {
                record.faults.push(format!("{what} comes, and a timer is late"));
            }
        });
    }

    fn send(&self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let framed = self.records.wire.frame(message);
        self.with(|record| {
            if !record.closing && !record.finished {
                record.sent.extend(framed);
            }
        });
        match message.len() % 7 {
            1 => cx.send_shared(&Arc::from(message)),
            _ => cx.send(message),
        }
    }

    /// Sends a message of digits.
    fn send_digits(&self, length: usize, cx: &mut Context<'_>) -> HandlerResult {
        let length = if self.records.wire == Wire::Fixed { FIXED } else { length };
        let message: Vec<u8> = (0..length).map(|at| b'0' + (at % 10) as u8).collect();
        self.send(&message, cx)
    }

    /// Sends a part of a long stream while there is room.
    fn stream(&self, cx: &mut Context<'_>) -> HandlerResult {
        while self.with(|record| record.stream_left > 0) {
            if cx.room() == 0 {
                self.with(|record| record.wants_writable = true);
                return Ok(());
            }
            self.send_digits(1000, cx)?;
            self.with(|record| record.stream_left -= 1);
        }
        Ok(())
    }

    fn close(&self, cx: &mut Context<'_>) {
        self.with(|record| record.closing = true);
        cx.close();
    }

    /// Does one thing at random. 0 does nothing.
    fn act(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if self.records.calm.load(SeqCst) {
            return Ok(());
        }
        if self.calm_left > 0 {
            self.calm_left -= 1;
            return Ok(());
        }
        self.calm_left = self.world.choose(self.calm_calls);
        match self.world.choose(32) {
            1 => self.send_digits(self.world.choose(3000), cx)?,
            2 => {
                let sizes = [100, 5_000, 70_000, MOST_SENT];
                self.send_digits(sizes[self.world.choose(sizes.len())], cx)?;
            }
            3 | 4 => {
                self.with(|record| (record.paused, record.was_paused) = (true, true));
                cx.pause_input();
                self.sender = None;
                if self.world.choose(4) != 3 {
                    self.set_timer(cx)?;
                }
            }
            5 => self.close(cx),
            6 => {
                self.with(|record| (record.closing, record.aborted) = (true, true));
                cx.abort();
            }
            7 => {
                self.with(|record| (record.closing, record.is_fault) = (true, true));
                return Err("an error on purpose".into());
            }
            8 => {
                self.with(|record| (record.closing, record.is_fault) = (true, true));
                panic!("a panic on purpose");
            }
            9 => {
                let timeout = Duration::from_millis(1 + 500 * self.world.choose(60) as u64);
                self.with(|record| record.idle_timeout = Some(timeout));
                cx.set_idle_timeout(timeout)?;
            }
            10 | 11 => {
                self.with(|record| record.stream_left += 1 + self.world.choose(100));
                self.stream(cx)?;
            }
            12 => {
                self.with(|record| record.finished = true);
                cx.finish_output();
            }
            13 | 14 => self.post(cx)?,
            15 => self.world.block(Duration::from_millis(self.world.choose(50) as u64)),
            16 | 17 => self.set_timer(cx)?,
            18 if self.world.choose(8) == 7 => cx.stop_server(),
            19 => {
                let sender = self.sender(cx)?;
                match self.world.choose(4) {
                    1 => sender.close(),
                    2 => sender.abort(),
                    _ => return Ok(()),
                }
                self.with(|record| (record.aborted, record.ended_by_sender) = (true, true));
            }
            20 => self.sender = None,
            _ => {}
        }
        Ok(())
    }

    fn set_timer(&self, cx: &mut Context<'_>) -> HandlerResult {
        let millis = self.world.choose(3000) * [1, 10][self.world.choose(2)];
        let at = cx.now() + Duration::from_millis(millis as u64);
        self.with(|record| record.timer = Some(at));
        Ok(cx.set_timer(at)?)
    }

    fn sender(&mut self, cx: &mut Context<'_>) -> Result<Sender, socketserver::HandlerError> {
        let sender = cx.sender()?;
        // A handler that holds its own sender stays open after the end of its peer, and paused.
        let may_hold = self.with(|record| !record.eof && !record.paused);
        self.sender = Some(sender.clone()).filter(|_| may_hold);
        Ok(sender)
    }

    /// Posts an event, now or later.
    fn post(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let sender = self.sender(cx)?;
        let (records, name) = (self.records.clone(), self.name.clone());
        let capitals = self.records.wire == Wire::Raw && self.world.choose(2) == 1;
        let post = move || {
            if capitals {
                return records.send_capital(&name, &sender);
            }
            if sender.post(Box::new(())).is_ok()
                && let Some(record) = records.lock().get_mut(&name)
            {
                record.events_posted += 1;
            }
        };
        if self.world.choose(2) == 0 {
            post();
        } else {
            let delay = Duration::from_millis(self.world.choose(2000) as u64);
            self.world.after(delay, post);
        }
        Ok(())
    }
}

impl Handler for Random {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.called("on_open", cx, |record| record.opened += 1);
        self.with(|record| record.last_message = Some(cx.now()));
        self.act(cx)
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let now = cx.now();
        self.called("on_message", cx, |record| {
            if record.paused || record.eof {
                record.faults.push("a message comes while paused, or after the end".to_owned());
            }
            record.last_message = Some(now);
            record.bytes += message.len();
            record.messages.push(message.to_vec());
        });
        if message.len() % 4 != 3 {
            self.send(message, cx)?;
        }
        self.act(cx)
    }

    fn on_writable(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.called("on_writable", cx, |record| {
            if !std::mem::take(&mut record.wants_writable) {
                record.faults.push("on_writable was not asked for".to_owned());
            }
        });
        self.stream(cx)?;
        self.act(cx)
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let (now, wild) = (cx.now(), self.records.wild);
        self.called("on_timer", cx, |record| match record.timer.take() {
            None => record.faults.push("on_timer was not asked for".to_owned()),
            Some(timer) if now < timer => record.faults.push("on_timer comes early".to_owned()),
            Some(timer) if !wild && now > timer + Duration::from_secs(2) => {
                record.faults.push(format!("on_timer comes {:?} late", now - timer));
            }
            Some(_) => {}
        });
        if self.with(|record| std::mem::take(&mut record.paused)) {
            cx.resume_input();
        }
        self.act(cx)
    }

    fn on_event(&mut self, _: Event, cx: &mut Context<'_>) -> HandlerResult {
        self.called("on_event", cx, |record| record.events += 1);
        if self.with(|record| std::mem::take(&mut record.paused)) {
            cx.resume_input();
        }
        self.send_digits(20, cx)
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.called("on_eof", cx, |record| {
            if std::mem::replace(&mut record.eof, true) {
                record.faults.push("a second on_eof".to_owned());
            }
        });
        match self.world.choose(4) {
            // Stays open, and is closed when nothing can follow.
            3 => {
                self.sender = None;
                self.act(cx)
            }
            2 => {
                self.send_digits(300, cx)?;
                self.close(cx);
                Ok(())
            }
            _ => Closes.on_eof(cx),
        }
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        // A worker handles a message some time after its bytes have been read.
        let (now, wild) = (cx.now() + Duration::from_millis(300), self.records.wild);
        self.called("on_idle_timeout", cx, |record| {
            record.timed_out = true;
            let quiet = record.last_message.zip(record.idle_timeout);
            if !wild
                && !record.was_paused
                && quiet.is_none_or(|(last, timeout)| now < last + timeout)
            {
                record.faults.push("on_idle_timeout comes early".to_owned());
            }
        });
        match self.world.choose(3) {
            1 => self.act(cx),
            2 => {
                self.with(|record| record.idle_timeout = None);
                cx.set_idle_timeout(None)?;
                Ok(())
            }
            _ => {
                self.close(cx);
                Ok(())
            }
        }
    }

    fn on_reject(&mut self, _: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
        self.called("on_reject", cx, |_| {});
        self.with(|record| record.rejected = true);
        self.send_digits(40, cx)?;
        self.with(|record| record.closing = true);
        Ok(())
    }

    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.called("on_stop", cx, |record| {
            if std::mem::replace(&mut record.stopping, true) {
                record.faults.push("a second on_stop".to_owned());
            }
        });
        if self.world.choose(3) == 2 {
            self.send_digits(100, cx)?;
        }
        Ok(())
    }

    fn on_close(&mut self, reason: &CloseReason) {
        self.world.note("on_close", 0);
        self.world.mark(match reason {
            CloseReason::Handler => "closed by the handler",
            CloseReason::Eof => "closed at the end",
            CloseReason::Disconnected(_) => "disconnected",
            CloseReason::Timeout => "closed by a timeout",
            CloseReason::Framing(_) => "closed by a bad frame",
            CloseReason::Error(_) => "closed by an error",
            CloseReason::Panic(_) => "closed by a panic",
            CloseReason::Shutdown => "closed by the stop",
            CloseReason::Limit(limit) => match limit {
                Limit::Connections => "limit: connections",
                Limit::MessageDeadline => "limit: message deadline",
                Limit::FirstMessageDeadline => "limit: first message deadline",
                Limit::WriteTimeout => "limit: write timeout",
                Limit::BufferedInput => "limit: buffered input",
                Limit::Memory => "limit: memory",
                Limit::Lifetime => "limit: lifetime",
                Limit::Messages => "limit: messages",
                _ => "limit: another",
            },
            _ => "closed otherwise",
        });
        self.with(|record| {
            if record.closed.replace(reason.to_string()).is_some() || record.opened != 1 {
                record.faults.push("a second on_close, or one without on_open".to_owned());
            }
        });
    }
}

/// The default of `on_eof`.
struct Closes;

impl Handler for Closes {
    fn on_message(&mut self, _: &[u8], _: &mut Context<'_>) -> HandlerResult {
        Ok(())
    }
}
