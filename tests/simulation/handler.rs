//! A handler that decides at random what it does, and records what happens to it.

use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use socketserver::testing::World;
use socketserver::{
    CloseReason, Context, Event, FixedSize, Handler, HandlerResult, LengthPrefixed, Limit, Lines,
    Sender, UnsupportedError,
};

use crate::records::{FIXED, MOST_SENT, Record, Records, Wire};

/// A file of digits, which all runs share.
fn digits_file() -> &'static Arc<File> {
    static DIGITS: OnceLock<Arc<File>> = OnceLock::new();
    DIGITS.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("simulation.{}", std::process::id()));
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all(digits(0, MOST_SENT)).unwrap();
        Arc::new(file)
    })
}

/// The bytes of [`digits_file`] in a range.
fn digits(from: usize, to: usize) -> &'static [u8] {
    static DIGITS: OnceLock<Vec<u8>> = OnceLock::new();
    let all = || (0..MOST_SENT).map(|at| b'0' + (at % 10) as u8).collect();
    &DIGITS.get_or_init(all)[from..to]
}

/// The handler.
pub(crate) struct Random {
    world: World,
    records: Arc<Records>,
    name: String,
    service: usize,
    wire: Wire,
    /// The idle timeout that its connection has when it is opened.
    idle_timeout: Option<Duration>,
    /// How long after its bytes a message may come, although nobody pauses it.
    lag: Duration,
    sender: Option<Sender>,
    /// How many calls do nothing besides, at most, between two that do; and how many are left.
    calm_calls: usize,
    calm_left: usize,
    /// How many calls are left that block.
    slow_left: usize,
}

impl Random {
    pub(crate) fn new(
        world: &World,
        records: &Arc<Records>,
        name: String,
        service: usize,
        wire: Wire,
        idle_timeout: Option<Duration>,
        lag: Duration,
    ) -> Self {
        Random {
            world: world.clone(),
            records: records.clone(),
            name,
            service,
            wire,
            idle_timeout,
            lag,
            sender: None,
            calm_calls: [1, 20, 1000][world.choose(3)],
            calm_left: 0,
            slow_left: 0,
        }
    }

    fn with<T>(&self, call: impl FnOnce(&mut Record) -> T) -> T {
        let mut records = self.records.lock();
        if let Some(record) = records.get_mut(&self.name) {
            return call(record);
        }
        let new = || Record { service: self.service, fixed: FIXED, ..Record::default() };
        call(records.entry(self.name.clone()).or_insert_with(new))
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
            record.forces = matches!(what, "on_timer" | "on_idle_timeout" | "on_stop");
            let late = record.timer.is_some_and(|timer| timer + Duration::from_secs(2) < now);
            if late && !self.records.wild && what != "on_timer" && what != "on_stop" {
                record.faults.push(format!("{what} comes, and a timer is late"));
            }
        });
    }

    /// Records what goes out, if the output is open.
    fn sends(&self, bytes: &[u8]) {
        self.with(|record| {
            if !record.closing && !record.finished {
                record.sent.extend_from_slice(bytes);
                record.forced += if record.forces { bytes.len() } else { 0 };
            }
        });
    }

    fn send(&self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        self.sends(&self.wire.frame(message));
        match message.len() % 7 {
            1 => cx.send_shared(&Arc::from(message)),
            _ => cx.send(message),
        }
    }

    /// Sends a message of digits.
    fn send_digits(&self, length: usize, cx: &mut Context<'_>) -> HandlerResult {
        let fixed = self.with(|record| record.fixed);
        let length = if self.wire == Wire::Fixed { fixed } else { length };
        self.send(digits(0, length), cx)
    }

    /// Sends bytes past the framing: copied, shared, or of a file.
    fn output(&self, cx: &mut Context<'_>) -> HandlerResult {
        for _ in 0..1 + self.world.choose(3) {
            let from = self.world.choose(1000);
            let length = [10, 600, 10_000, MOST_SENT - 1000][self.world.choose(4)];
            let to = from + self.world.choose(length);
            let bytes = digits(from, to);
            self.sends(bytes);
            match self.world.choose(4) {
                0 => cx.output().put(bytes),
                1 => cx.output().write_all(bytes)?,
                2 => cx.output().put_shared(&Arc::from(bytes)),
                _ => {
                    self.world.mark("a part of a file is sent");
                    cx.output().put_file(digits_file().clone(), from as u64..to as u64)?;
                }
            }
        }
        Ok(())
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
        if let Some(left) = self.slow_left.checked_sub(1) {
            self.slow_left = left;
            self.world.block(Duration::from_millis(30));
            self.check_facts(cx);
            return Ok(());
        }
        if self.calm_left > 0 {
            self.calm_left -= 1;
            return Ok(());
        }
        self.calm_left = self.world.choose(self.calm_calls);
        match self.world.choose(40) {
            1 => self.send_digits(self.world.choose(3000), cx)?,
            2 => {
                let sizes = [100, 5_000, 70_000, MOST_SENT];
                self.send_digits(sizes[self.world.choose(sizes.len())], cx)?;
            }
            3 | 4 => {
                self.pause(cx);
                self.sender = None;
                if self.world.choose(4) != 3 {
                    self.set_timer(cx)?;
                }
            }
            5..=8 => return self.end(cx),
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
            18 if self.world.choose(8) == 7 => {
                self.records.stops(cx.now());
                cx.stop_server();
            }
            19 => {
                let sender = self.sender(cx)?;
                if let end @ 0..=1 = self.world.choose(4) {
                    self.records.end(&self.name, &sender, end == 1);
                }
            }
            20 => self.sender = None,
            21 | 22 => self.output(cx)?,
            23 => {
                let busy = self.world.choose(3) != 2;
                self.with(|record| record.busy = busy);
                cx.set_busy(busy);
            }
            24 => self.change_framing(cx),
            25 => {
                self.with(|record| record.timer = None);
                cx.set_timer(None)?;
            }
            26 | 35 => self.use_other_sender(),
            27 | 33 | 34 if self.records.shares.load(SeqCst) => {
                let sender = self.sender(cx)?;
                self.records.senders().push((self.name.clone(), sender));
            }
            28 => self.check_facts(cx),
            29 => {
                self.pause(cx);
                self.resume(cx);
            }
            30 => self.want_action(cx),
            31 => self.slow_left = 10,
            32 if self.world.choose(2) == 1 => {
                for _ in 0..2 + self.world.choose(4) {
                    self.send_digits(MOST_SENT, cx)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends the connection in one of four ways.
    fn end(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        match self.world.choose(4) {
            0 => self.close(cx),
            1 => {
                self.with(|record| (record.closing, record.aborted) = (true, true));
                cx.abort();
            }
            2 => {
                self.with(|record| (record.closing, record.is_fault) = (true, true));
                return Err("an error on purpose".into());
            }
            _ => {
                self.with(|record| (record.closing, record.is_fault) = (true, true));
                panic!("a panic on purpose");
            }
        }
        Ok(())
    }

    fn pause(&self, cx: &mut Context<'_>) {
        self.with(|record| (record.paused, record.was_paused) = (true, true));
        cx.pause_input();
    }

    fn resume(&self, cx: &mut Context<'_>) {
        if self.with(|record| std::mem::take(&mut record.paused)) {
            cx.resume_input();
        }
    }

    /// Replaces the framing by an equal one, or by one that cuts messages otherwise.
    fn change_framing(&self, cx: &mut Context<'_>) {
        let lines = cx.framing::<Lines>().map(|lines| *lines = Lines::default().max_len(30_000));
        let prefixed =
            cx.framing::<LengthPrefixed>().map(|prefixed| *prefixed = Default::default());
        let fixed = cx.framing::<FixedSize>().map(|fixed| {
            let size = [FIXED, 1, 3][self.world.choose(3)];
            *fixed = FixedSize::new(size);
            self.with(|record| record.fixed = size);
            self.world.mark("the framing is changed");
        });
        let found = [lines.is_some(), prefixed.is_some(), fixed.is_some()];
        let expected = [Wire::Lines, Wire::Prefixed, Wire::Fixed].map(|wire| wire == self.wire);
        if found != expected {
            self.with(|record| record.faults.push("a framing of another type".to_owned()));
        }
    }

    /// Uses a sender of any connection, and drops it.
    fn use_other_sender(&self) {
        let (name, sender) = {
            let mut senders = self.records.senders();
            if senders.is_empty() {
                return;
            }
            let at = self.world.choose(senders.len());
            senders.swap_remove(at)
        };
        self.world.mark("a sender of another connection");
        match self.world.choose(8) {
            6 => self.records.end(&name, &sender, false),
            7 => self.records.end(&name, &sender, true),
            _ => self.records.post_event(&name, &sender),
        }
    }

    /// Checks what is known of the connection, and that it is no datagram.
    fn check_facts(&self, cx: &mut Context<'_>) {
        let sends_to = cx.send_to(&cx.peer().clone(), b"x");
        let is_right = self.records.is_named(cx.id(), &self.name)
            && cx.peer().to_string() == self.name
            && !cx.is_truncated()
            && matches!(sends_to, Err(UnsupportedError::StreamSendTo))
            && matches!(cx.datagram_sender(), Err(UnsupportedError::StreamSendTo));
        self.with(|record| {
            if !is_right {
                record.faults.push("what the context knows is wrong".to_owned());
            }
        });
        if cx.is_overloaded() {
            self.world.mark("overloaded");
        }
    }

    /// The hooks of the service are to act soon.
    fn want_action(&self, cx: &mut Context<'_>) {
        let at = cx.now() + Duration::from_millis(self.world.choose(500) as u64);
        if let Some(next) = self.records.hooks().next_action.get_mut(&self.service) {
            *next = at.min(*next);
        }
    }

    fn set_timer(&self, cx: &mut Context<'_>) -> HandlerResult {
        let millis = self.world.choose(3000) * [1, 10, 0][self.world.choose(3)];
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

    /// Posts an event, or sends a message as another thread does, now or later.
    fn post(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let sender = self.sender(cx)?;
        let (records, name) = (self.records.clone(), self.name.clone());
        let capitals = self.wire == Wire::Raw && self.world.choose(2) == 1;
        let times = 1 + self.world.choose(3);
        let post = move || {
            for _ in 0..times {
                match capitals {
                    true => records.send_capital(&name, &sender),
                    false => records.post_event(&name, &sender),
                }
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
        self.with(|record| {
            (record.last_message, record.idle_timeout) = (Some(cx.now()), self.idle_timeout);
        });
        self.act(cx)
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let now = cx.now();
        self.called("on_message", cx, |record| {
            if record.paused || record.eof {
                record.faults.push("a message comes while paused, or after the end".to_owned());
            }
            if self.wire == Wire::Fixed && message.len() != record.fixed {
                record.faults.push(format!("a message of {} bytes", message.len()));
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
        self.resume(cx);
        self.act(cx)
    }

    fn on_event(&mut self, event: Event, cx: &mut Context<'_>) -> HandlerResult {
        self.called("on_event", cx, |record| {
            if event.downcast_ref() != Some(&record.events) {
                record.faults.push("an event of another order".to_owned());
            }
            record.events += 1;
        });
        self.resume(cx);
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
        let (now, wild) = (cx.now() + self.lag, self.records.wild);
        self.called("on_idle_timeout", cx, |record| {
            record.timed_out = true;
            let quiet = record.last_message.zip(record.idle_timeout);
            if !wild
                && !record.was_paused
                && quiet.is_none_or(|(last, timeout)| now < last + timeout)
            {
                record.faults.push(format!("on_idle_timeout comes early: {now:?}, {quiet:?}"));
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
        let (now, drained) = (self.world.now(), self.records.drained());
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
            record.closed_at = Some(now);
            record.closed_by_fault = reason.is_fault();
            if let CloseReason::Limit(limit) = reason {
                record.limit = Some((*limit, now));
            }
            let is_cut = matches!(reason, CloseReason::Shutdown);
            if is_cut && record.busy && drained.is_none_or(|deadline| now < deadline) {
                record.faults.push("a busy connection is cut before the deadline".to_owned());
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
