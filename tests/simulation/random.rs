//! Random handlers and clients under all faults.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use socketserver::testing::{Check, Checked, Client, Fault, Simulation, StreamEnd, World};
use socketserver::{Limit, ListenerId, Server};

use crate::records::{FIXED, MOST_SENT, Record, Records, Wire};
use crate::service::{self, BUSY, Bounds, ServiceModel};

/// How far the handlers may be behind what has been read of a connection, in bytes: one read and
/// what was left before it.
const MOST_HELD: u64 = 256 * 1024;

/// How late something may come: handlers block, and jobs and packets take their time.
const SLACK: Duration = Duration::from_secs(2);

/// How long a close takes at most: the server discards input for 2 seconds after its client, which reads,
/// has all output, or the client takes no output for 30 seconds.
const LONGEST_CLOSE: Duration = Duration::from_secs(40);

/// What one client has sent, and what its server may do about it.
struct Sent {
    client: Client,
    service: usize,
    messages: Vec<Vec<u8>>,
    /// How many bytes it has sent, whole messages or not.
    written: u64,
    /// The rest of a message that it has begun.
    rest: Option<(Vec<u8>, Vec<u8>)>,
    /// It has sent what is no frame: nothing that follows is a message.
    is_bad: bool,
    /// It has ended in order, or not at all: it misses no output.
    is_patient: bool,
    finished: bool,
    /// It has closed or reset the connection.
    is_gone: bool,
    received: Vec<u8>,
    /// What has come from a sender.
    capitals: Vec<u8>,
    /// Since when it has been reading, if it is.
    reads_since: Option<Instant>,
    /// How many messages, and how much output, have been found to be right.
    checked: (usize, usize),
}

impl Sent {
    fn new(client: Client, service: usize, now: Instant) -> Self {
        Sent {
            reads_since: Some(now),
            client,
            service,
            messages: Vec::new(),
            written: 0,
            rest: None,
            is_bad: false,
            is_patient: true,
            finished: false,
            is_gone: false,
            received: Vec::new(),
            capitals: Vec::new(),
            checked: (0, 0),
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.client.send(bytes);
        if !self.finished {
            self.written += bytes.len() as u64;
        }
    }

    fn read(&mut self, world: &World) {
        self.client.resume_reading();
        self.reads_since.get_or_insert(world.now());
    }

    /// Whether it was cut because it had taken no output for so long, although it was reading.
    fn is_cut_as_slow(&self, record: &Record, timeout: Duration) -> bool {
        let (Some((Limit::WriteTimeout, at)), Some(since)) = (record.limit, self.reads_since)
        else {
            return false;
        };
        // The kernel is asked four times in the timeout whether the client takes output.
        at > since + timeout / 2 + 2 * SLACK && timeout > 2 * SLACK
    }

    /// Completes a message that it has begun.
    fn complete(&mut self) {
        if let Some((message, rest)) = self.rest.take() {
            self.write(&rest);
            self.sent(message);
        }
    }

    fn sent(&mut self, message: Vec<u8>) {
        if !self.finished && !self.is_bad {
            self.messages.push(message);
        }
    }

    /// A message of letters; no two bytes near each other are equal.
    fn message(&self, length: usize) -> Vec<u8> {
        let from = self.messages.len() * 7 + length;
        (from..from + length).map(|at| b'a' + (at % 26) as u8).collect()
    }
}

/// The model of one run.
struct Model<'w> {
    world: &'w World,
    records: Arc<Records>,
    sent: Vec<Sent>,
    services: Vec<ServiceModel>,
    listeners: Vec<ListenerId>,
    /// Connections may end without the fault of anybody here.
    lossy: bool,
    /// The limits that any of the services has.
    bounds: Bounds,
}

impl<'w> Model<'w> {
    fn new(world: &'w World) -> (Self, Server) {
        world.allow_panics();
        let lossy = [Fault::Reset, Fault::AbortedAccept, Fault::RegisterFailure, Fault::ClockLeap]
            .into_iter()
            .chain([Fault::NoDescriptors])
            .any(|fault| world.has(fault));
        let drain = Duration::from_millis([5000, 0, 20, 1000][world.choose(4)]);
        let records = Arc::new(Records::new(world.has(Fault::ClockLeap), drain));
        let mut server = Server::new().unwrap();
        server.drain_timeout(drain);
        let first_is_unix = world.choose(2) == 1;
        let number = 1 + world.choose(2);
        let (mut services, mut listeners) = (Vec::new(), Vec::new());
        for at in 0..number {
            let is_unix = first_is_unix != (at == 1);
            let (service, model) = service::choose(world, &records, at, is_unix);
            listeners.push(server.add(service).unwrap());
            services.push(model);
        }
        if number == 2 {
            world.mark("two listeners");
        }
        let mut bounds = Bounds::default();
        for service in &services {
            bounds.any |= service.bounds.any;
            bounds.memory = bounds.memory.or(service.bounds.memory);
        }
        server.max_memory(bounds.memory);
        let lossy = lossy || bounds.any;
        let sent = Vec::new();
        (Model { world, records, sent, services, listeners, lossy, bounds }, server)
    }

    /// One thing that a client does.
    fn act(&mut self, sim: &mut Simulation<'_>) {
        let world = self.world;
        if self.sent.is_empty() || (self.sent.len() < 6 && world.choose(4) == 3) {
            let service = world.choose(self.listeners.len());
            self.sent.push(Sent::new(
                sim.connect_to(self.listeners[service]),
                service,
                world.now(),
            ));
        }
        let number = world.choose(self.sent.len());
        let sent = &mut self.sent[number];
        let wire = self.services[sent.service].wire;
        sent.complete();
        match world.choose(24) {
            15 => {
                sent.client.stop_reading();
                (sent.is_patient, sent.reads_since) = (false, None);
            }
            16 => sent.read(world),
            17 => {
                sent.client.finish();
                sent.finished = true;
            }
            18 => {
                sent.client.close();
                (sent.is_patient, sent.is_gone) = (false, true);
            }
            19 => {
                sent.client.reset();
                (sent.is_patient, sent.is_gone) = (false, true);
            }
            20 => flood(sent, wire),
            21 | 22 => begin(sent, wire, world),
            23 if world.choose(4) == 3 => spoil(sent, wire),
            many => {
                for _ in 0..1 + [0, 2, 40, 600][(many / 4).min(3)] {
                    let length = [3, 30, 300, 20_000][world.choose(if many < 8 { 4 } else { 2 })];
                    let length = if wire == Wire::Fixed { FIXED } else { world.choose(length) };
                    let message = sent.message(length.max(usize::from(wire == Wire::Raw)));
                    sent.write(&wire.frame(&message));
                    sent.sent(message);
                }
            }
        }
    }

    /// Checks what holds at any time.
    fn check(&mut self) {
        let records = self.records.lock();
        for sent in &mut self.sent {
            let service = &self.services[sent.service];
            let bytes = sent.client.read();
            match service.wire {
                Wire::Raw => {
                    let (capitals, others): (Vec<u8>, Vec<u8>) =
                        bytes.into_iter().partition(u8::is_ascii_uppercase);
                    sent.received.extend(others);
                    sent.capitals.extend(capitals);
                }
                _ => sent.received.extend(bytes),
            }
            let Some(record) = records.get(&sent.client.peer().to_string()) else {
                let is_busy = service.bounds.any && BUSY.starts_with(&sent.received);
                assert!(sent.received.is_empty() || is_busy, "output without a handler");
                continue;
            };
            assert!(record.faults.is_empty(), "{:?}", record.faults);
            let is_cut = service
                .bounds
                .write_timeout
                .is_some_and(|timeout| !self.records.wild && sent.is_cut_as_slow(record, timeout));
            assert!(!is_cut, "a client that reads is cut as one that takes no output");
            assert_starts_with(&record.sent, &sent.received, sent.checked.1);
            assert_starts_with(&record.capitals, &sent.capitals, 0);
            check_input(service.wire, sent, record);
            sent.checked = (record.messages.len(), sent.received.len());
            let written = sent.client.bytes_sent_by_server();
            let held = (record.sent.len() as u64).saturating_sub(written);
            // One step collects 64 KiB, and the last call in it sends what it likes.
            let most = (service.high + 64 * 1024 + 6 * MOST_SENT + record.forced) as u64;
            assert!(
                record.closing || record.closed.is_some() || held <= most,
                "{held} bytes of output wait"
            );
        }
        let hooks = self.records.hooks();
        assert!(hooks.faults.is_empty(), "{:?}", hooks.faults);
        let now = self.world.now();
        let late = hooks.next_action.values().any(|next| *next + SLACK < now);
        assert!(!late || self.records.wild || self.has_stopped(), "an action of a hook is late");
    }

    /// The server was told to stop.
    fn has_stopped(&self) -> bool {
        self.records.drained().is_some()
    }

    /// Checks what the server holds between two turns.
    fn check_held(&self, sim: &Simulation<'_>) {
        let held = sim.counters().memory_held;
        if let Some(most) = self.bounds.memory {
            let slack = 2 * MOST_SENT + 256 * 1024;
            assert!(held <= (most + slack) as u64, "{held} bytes are held, at most {most} may be");
        }
        for (number, service) in self.services.iter().enumerate() {
            let Some(most) = service.bounds.connections else { continue };
            // A worker may call `on_close` when the place of its connection is free already.
            let of_service = self.sent.iter().filter(|sent| sent.service == number);
            let open = of_service.filter(|sent| sent.client.is_open_at_server()).count();
            assert!(open <= most, "{open} connections are open, at most {most} may be");
        }
    }

    /// Events that were posted to an open connection have arrived.
    fn check_events(&mut self) {
        self.check();
        for (name, record) in &*self.records.lock() {
            let is_open = record.closed.is_none() && !record.closing && !record.ended_by_sender;
            assert!(
                !is_open || record.events == record.events_posted,
                "{name} lacks events: {}",
                record.summary()
            );
        }
    }

    /// All messages have been served, and all output has arrived, although their clients have not ended.
    fn check_served(&self) {
        let records = self.records.lock();
        for sent in &self.sent {
            let name = sent.client.peer().to_string();
            let is_accepted =
                sent.client.is_open_at_server() || sent.client.closed_by_server().is_some();
            let is_limited = self.services[sent.service].bounds.any;
            assert!(is_accepted || sent.is_gone || is_limited, "{name} waits to be accepted");
            let Some(record) = records.get(&name).filter(|_| !sent.is_gone) else {
                continue;
            };
            let is_open = record.closed.is_none() && !record.closing && !record.ended_by_sender;
            let served = record.bytes;
            let all: usize = sent.messages.iter().map(Vec::len).sum();
            // A changed framing may wait for the rest of a longer message.
            let left = if record.fixed > 1 { FIXED - 1 } else { 0 };
            let is_served = match self.services[sent.service].wire {
                Wire::Fixed => all - served <= left,
                _ => served == all,
            };
            assert!(
                !is_open || record.paused || record.eof || is_served,
                "{name} waits for {} of {all} bytes: {}",
                all - served,
                record.summary()
            );
            assert!(
                !is_open || record.finished || sent.capitals == record.capitals,
                "{name} lacks messages of its sender: {}",
                record.summary()
            );
            assert!(
                !is_open || sent.received.len() == record.sent.len(),
                "{name} lacks {} bytes of output: {}",
                record.sent.len() - sent.received.len(),
                record.summary()
            );
        }
    }

    /// The hooks of each service were told once of each fault in its connections.
    fn check_failed(&self) {
        let (records, hooks) = (self.records.lock(), self.records.hooks());
        let mut failed = BTreeMap::<&str, usize>::new();
        for name in &hooks.failed {
            *failed.entry(name).or_default() += 1;
        }
        for (name, record) in &*records {
            let told = failed.remove(&**name).unwrap_or(0);
            let faults = usize::from(record.closed_by_fault);
            let has_hooks = self.services[record.service].has_hooks;
            assert!(!has_hooks || told == faults, "hooks were told of {told} faults of {name}");
        }
        assert!(failed.is_empty(), "hooks were told of faults of nobody: {failed:?}");
    }

    /// Connections that the handler has closed long ago have left the server, although their clients have
    /// not ended.
    fn check_closed(&self) {
        let records = self.records.lock();
        let now = self.world.now();
        for sent in &self.sent {
            let name = sent.client.peer().to_string();
            let closed = records.get(&name).and_then(|record| record.closed_at);
            let is_over = closed.is_some_and(|closed| closed + LONGEST_CLOSE < now);
            assert!(!is_over || !sent.client.is_open_at_server(), "{name} lingers for ever");
        }
    }

    /// Checks what holds when all has come to its end.
    fn check_end(&mut self, was_stopped: bool) {
        self.check();
        let records = self.records.lock();
        for sent in &self.sent {
            let name = sent.client.peer().to_string();
            if self.records.hooks().refused.contains(&name) {
                assert!(!records.contains_key(&name), "{name} was refused");
                continue;
            }
            let Some(record) = records.get(&name) else {
                let is_lost = self.lossy || was_stopped || !sent.is_patient;
                assert!(is_lost, "{name} was not served");
                continue;
            };
            assert_eq!(record.opened, 1, "{name} was opened once");
            assert!(record.closed.is_some(), "{name} is told of its close");
            // Output that was cut does not look complete.
            let is_inet = sent.client.peer().inet().is_some();
            let looks_whole = sent.client.closed_by_server() == Some(StreamEnd::Eof);
            assert!(
                !looks_whole
                    || !is_inet
                    || record.ended_by_sender
                    || sent.is_gone
                    || sent.received.len() == record.sent.len(),
                "{name} sees the end of cut output: {} bytes; {}",
                sent.received.len(),
                record.summary()
            );
            let is_whole = !self.lossy && !was_stopped && sent.is_patient;
            if !is_whole || record.aborted || record.timed_out {
                continue;
            }
            // Input that arrives after the close is answered by a reset, which follows all output.
            let is_unread = sent.client.bytes_read_by_server() < sent.written;
            let end = sent.client.closed_by_server();
            assert!(
                sent.received.len() == record.sent.len()
                    && (end == Some(StreamEnd::Eof) || end == Some(StreamEnd::Reset) && is_unread),
                "{name} has received {} bytes and {end:?}; {}",
                sent.received.len(),
                record.summary()
            );
            let served = record.bytes;
            let all: usize = sent.messages.iter().map(Vec::len).sum();
            let ended_itself =
                record.closing || record.is_fault || record.paused || record.ended_by_sender;
            assert!(
                ended_itself || !sent.finished || (served == all && record.eof),
                "{name} was served {served} of {all} bytes; end: {}",
                record.eof
            );
        }
    }
}

/// Many messages as small as they can be.
fn flood(sent: &mut Sent, wire: Wire) {
    let length = match wire {
        Wire::Raw | Wire::Fixed => FIXED,
        Wire::Lines | Wire::Prefixed => 0,
    };
    let mut bytes = Vec::new();
    for _ in 0..4000 {
        let message = sent.message(length);
        bytes.extend(wire.frame(&message));
        sent.sent(message);
    }
    sent.write(&bytes);
}

/// The beginning of a message, whose rest comes later or never.
fn begin(sent: &mut Sent, wire: Wire, world: &World) {
    let length = match wire {
        Wire::Fixed => FIXED,
        _ => 2 + world.choose([10, 300, 20_000][world.choose(3)]),
    };
    if sent.finished || sent.is_bad {
        return;
    }
    let message = sent.message(length);
    let mut frame = wire.frame(&message);
    let rest = frame.split_off(1 + world.choose(frame.len() - 1));
    sent.write(&frame);
    match wire {
        Wire::Raw => {
            sent.write(&rest);
            sent.sent(message);
        }
        _ => sent.rest = Some((message, rest)),
    }
}

/// Bytes that are no frame.
fn spoil(sent: &mut Sent, wire: Wire) {
    match wire {
        Wire::Raw | Wire::Fixed => return,
        Wire::Lines => sent.write(&[b'x'; 30_100]),
        Wire::Prefixed => sent.write(&[0xff; 4]),
    }
    sent.is_bad = true;
}

/// The messages are the first of those that the client has sent.
fn check_input(wire: Wire, sent: &Sent, record: &Record) {
    let read = sent.client.bytes_read_by_server();
    let known = sent.checked.0;
    match wire.cuts() {
        _ if record.messages.len() == known => {}
        true => {
            let mut all = sent.messages.concat();
            all.extend(sent.rest.iter().flat_map(|(message, _)| message));
            let got = record.messages.concat();
            assert!(all.starts_with(&got), "the bytes received are not those sent");
        }
        false => assert!(
            sent.messages
                .get(known..)
                .is_some_and(|all| all.starts_with(&record.messages[known..])),
            "the messages received are not those sent"
        ),
    }
    let consumed = record.bytes + record.messages.len() * wire.overhead();
    let is_open = record.closed.is_none() && !record.closing;
    assert!(!is_open || read <= consumed as u64 + MOST_HELD, "{read} read, {consumed} used");
}

/// All bytes begin with the first ones, which is known of some of them.
fn assert_starts_with(all: &[u8], first: &[u8], known: usize) {
    let pairs = all.iter().zip(first).skip(known);
    let at = known + pairs.take_while(|(all, first)| all == first).count();
    let around = |bytes: &[u8]| {
        bytes[at.saturating_sub(20)..bytes.len().min(at + 20)].escape_ascii().to_string()
    };
    assert!(
        at == first.len(),
        "from byte {at} on, {} was received and {} was sent",
        around(first),
        around(all)
    );
}

pub(crate) fn run(world: &World) {
    let (mut model, mut server) = Model::new(world);
    let mut sim = world.start(&mut server);
    if world.has(Fault::NoDescriptors) {
        world.limit_descriptors([usize::MAX, 5, 6, 8][world.choose(4)]);
    }
    for _ in 0..world.choose(16) {
        model.act(&mut sim);
        match world.choose(8) {
            5 => sim.pass(Duration::from_millis(1 + world.choose(100) as u64)),
            6 => sim.pass(Duration::from_secs(1 + world.choose(60) as u64)),
            7 => sim.settle(),
            _ => {}
        }
        model.check();
        model.check_held(&sim);
    }
    let stops_early = world.choose(4) == 3;
    if stops_early {
        stop(&mut model, sim);
        model.records.calm.store(true, SeqCst);
        return serve_again(&model, &mut server);
    }
    world.calm();
    model.records.shares.store(false, SeqCst);
    model.records.senders().clear();
    for sent in &mut model.sent {
        sent.read(world);
        sent.complete();
    }
    sim.pass(Duration::from_secs(100));
    model.check_events();
    model.check_closed();
    if !sim.is_stopped() {
        model.check_served();
    }
    for sent in &mut model.sent {
        sent.client.finish();
        sent.finished = true;
    }
    sim.settle();
    sim.pass(Duration::from_secs(600));
    let was_stopped = sim.is_stopped();
    if !was_stopped {
        let records = model.records.lock();
        let open = records.values().filter(|record| record.closed.is_none());
        let open: Vec<_> = open.map(Record::summary).collect();
        assert_eq!(sim.connections(), 0, "connections are left: {open:?}");
        drop(records);
        assert!(sim.timers() == 0 || model.bounds.any, "timers are left");
        assert_eq!(sim.counters().memory_held, 0, "nothing is held");
    }
    mark_counters(world, &sim.counters());
    model.records.calm.store(true, SeqCst);
    if !was_stopped && !model.bounds.any && model.records.drain >= SLACK {
        let idle = sim.connect();
        sim.settle();
        let before = world.now();
        let report = sim.stop();
        let counts = (report.idle, report.finished, report.aborted);
        assert_eq!(counts, (1, 0, 0), "one idle connection is closed by the stop");
        assert!(world.now() - before < Duration::from_secs(1), "an idle connection delays a stop");
        sim.settle();
        assert_eq!(idle.closed_by_server(), Some(StreamEnd::Eof));
    }
    drop(sim);
    model.check_end(was_stopped);
    serve_again(&model, &mut server);
}

/// A server that was stopped serves again.
fn serve_again(model: &Model<'_>, server: &mut Server) {
    let (world, is_limited) = (model.world, model.bounds.any);
    let mut sim = world.start(server);
    let client = sim.connect();
    sim.settle();
    assert!(is_limited || client.is_open_at_server(), "the second run accepts");
    let report = sim.stop();
    let waits = model.records.drain >= SLACK;
    assert!(report.idle >= 1 || is_limited || !waits, "an idle connection ends at the stop");
    model.check_failed();
}

/// Stops the server in the middle of its work.
fn stop(model: &mut Model<'_>, mut sim: Simulation<'_>) {
    let world = model.world;
    let was_stopped = sim.is_stopped();
    let before = world.now();
    model.records.stops(before);
    let report = sim.stop();
    // A job of a worker, or a client, may take its time.
    let time = world.now() - before;
    let most = model.records.drain + Duration::from_secs(1);
    assert!(time < most || model.records.wild, "the stop took {time:?}");
    if !was_stopped {
        for (mark, number) in [
            ("a stop ends idle connections", report.idle),
            ("a stop lets connections finish", report.finished),
            ("a stop cuts connections at its deadline", report.aborted),
        ] {
            if number > 0 {
                world.mark(mark);
            }
        }
    }
    let counters = sim.counters();
    assert_eq!(counters.accepted, counters.closed, "accepted and closed");
    mark_counters(world, &counters);
    drop(sim);
    world.calm();
    model.check_end(true);
}

fn mark_counters(world: &World, counters: &socketserver::Counters) {
    for (mark, number) in [
        ("a listener pauses", counters.accept_pauses),
        ("a client is shed", counters.shed_no_fd),
        ("a client waits or is turned away", counters.full + counters.turned_away),
        ("too many connections of one address", counters.over_address),
        ("too many connections in a second", counters.over_rate),
        ("a connection is not read while memory is tight", counters.memory_pauses),
        ("a timeout", counters.timeouts),
        ("a wake", counters.wakes),
    ] {
        if number > 0 {
            world.mark(mark);
        }
    }
}

/// The states that a check has to reach.
const MARKS: &[&str] = &[
    "on_open",
    "on_message",
    "on_writable",
    "on_timer",
    "on_event",
    "on_eof",
    "on_idle_timeout",
    "on_stop",
    "closed by the handler",
    "closed at the end",
    "disconnected",
    "closed by a timeout",
    "closed by an error",
    "closed by a panic",
    "closed by the stop",
    "a stop ends idle connections",
    "a stop lets connections finish",
    "a stop cuts connections at its deadline",
    "a listener pauses",
    "a client is shed",
    "a client waits or is turned away",
    "too many connections of one address",
    "too many connections in a second",
    "a connection is not read while memory is tight",
    "limit: connections",
    "limit: message deadline",
    "limit: first message deadline",
    "limit: write timeout",
    "limit: buffered input",
    "limit: memory",
    "limit: lifetime",
    "limit: messages",
    "a timeout",
    "a wake",
    "the kernel has no room for output",
    "input is discarded after the output has ended",
    "a connection is reset on its way",
    "a connection cannot be registered",
    "accept fails without a descriptor",
    "closed by a bad frame",
    "two listeners",
    "refused by a hook",
    "handle_error",
    "service_actions",
    "a part of a file is sent",
    "the framing is changed",
    "a sender of another connection",
    "overloaded",
];

fn demand_marks(checked: &Checked) {
    let missing: Vec<_> = MARKS.iter().filter(|mark| !checked.marks.contains_key(**mark)).collect();
    assert!(checked.runs < 500 || missing.is_empty(), "these were not reached: {missing:?}");
}

#[test]
fn random_handlers_and_clients_keep_the_model_under_all_faults() {
    let checked = Check::new().runs(2000).with_all().run(run);
    println!("{checked:#?}");
    demand_marks(&checked);
}

#[test]
fn random_handlers_and_clients_keep_the_model_under_faults_that_no_client_sees() {
    Check::new().runs(600).seed(1 << 32).run(run);
}

#[test]
fn all_short_scripts_keep_the_model() {
    let checked = Check::new().runs(1000).without_faults().exhaustive(7).run(run);
    assert!(checked.runs > 10);
}
