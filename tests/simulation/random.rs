//! Random handlers and clients under all faults.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use socketserver::testing::{Check, Checked, Client, Fault, Simulation, StreamEnd, World};
use socketserver::{
    Builder, FixedSize, LengthPrefixed, Limits, Lines, Mode, Offload, Raw, Reactor, Server,
    WhenFull,
};

use crate::handler::{FIXED, MOST_SENT, Random, Record, Records, Wire};

/// How far the handlers may be behind what has been read of a connection, in bytes: one read and
/// what was left before it.
const MOST_HELD: u64 = 256 * 1024;

/// What one client has sent, and what its server may do about it.
struct Sent {
    client: Client,
    messages: Vec<Vec<u8>>,
    /// It has ended in order, or not at all: it misses no output.
    is_patient: bool,
    finished: bool,
    /// It has closed or reset the connection.
    is_gone: bool,
    received: Vec<u8>,
    /// What has come from a sender.
    capitals: Vec<u8>,
}

/// The model of one run.
struct Model<'w> {
    world: &'w World,
    records: Arc<Records>,
    sent: Vec<Sent>,
    high: usize,
    /// Connections may end without the fault of anybody here.
    lossy: bool,
    /// The limits that the service has.
    bounds: Bounds,
}

/// The limits of a run that the model knows.
#[derive(Debug, Clone, Copy, Default)]
struct Bounds {
    /// Some limit may end a connection, or keep a client waiting.
    any: bool,
    connections: Option<usize>,
    memory: Option<usize>,
}

/// What a client gets that is turned away.
const BUSY: &[u8] = b"busy";

/// Chooses limits; none in half of the runs.
fn choose_limits(world: &World) -> (Limits, Bounds) {
    let mut bounds = Bounds::default();
    if world.choose(2) == 0 {
        return (Limits::off(), bounds);
    }
    bounds.any = true;
    let mut limits = Limits::default();
    let time = |world: &World| Duration::from_millis(100 + 400 * world.choose(40) as u64);
    for _ in 0..1 + world.choose(3) {
        limits = match world.choose(11) {
            0 => limits.message_deadline(time(world)),
            1 => limits.first_message_deadline(time(world)),
            2 => limits.write_timeout(time(world)),
            3 => limits.max_buffered_input(1 + world.choose(5000)),
            4 => limits.max_lifetime(time(world)),
            5 => limits.max_messages(1 + world.choose(20) as u32),
            6 => limits.accept_rate(1 + world.choose(3) as u32),
            7 => limits.max_per_address(1 + world.choose(3)),
            8 => {
                bounds.memory = Some(20_000 + world.choose(60_000));
                limits
            }
            full => {
                bounds.connections = Some(1 + world.choose(3));
                let whens = [WhenFull::CloseSilent, WhenFull::Wait, WhenFull::turn_away(BUSY)];
                let when = whens[(full + world.choose(3)) % 3].clone();
                limits.max_connections(bounds.connections).when_full(when)
            }
        };
    }
    (limits, bounds)
}

fn serve<F>(
    world: &World,
    records: &Arc<Records>,
    framing: F,
    high: usize,
    (limits, bounds): (Limits, Bounds),
) -> Server
where
    F: socketserver::Framing + Clone + Send + 'static,
{
    let builder: Builder = match world.choose(2) {
        0 => Server::tcp("127.0.0.1:0"),
        _ => Server::unix_stream("/simulated/server"),
    }
    .unwrap();
    let mode = match world.choose(3) {
        2 => Mode::Offload(Offload::default()),
        _ => Mode::Reactor(Reactor),
    };
    let (world, records) = (world.clone(), records.clone());
    let mut server = builder
        .framing(framing)
        .mode(mode)
        .write_watermarks(high, high / 4)
        .limits(limits)
        .serve(move |accepted| Random::new(&world, &records, accepted.peer()))
        .unwrap();
    server.max_memory(bounds.memory);
    server
}

impl<'w> Model<'w> {
    fn new(world: &'w World) -> (Self, Server) {
        world.allow_panics();
        let wires = [Wire::Lines, Wire::Raw, Wire::Prefixed, Wire::Fixed];
        let wire = wires[world.choose(wires.len())];
        let lossy = [Fault::Reset, Fault::AbortedAccept, Fault::RegisterFailure, Fault::ClockLeap]
            .into_iter()
            .chain([Fault::NoDescriptors])
            .any(|fault| world.has(fault));
        let records = Records::new(wire, world.has(Fault::ClockLeap));
        let high = [64 * 1024, 4, 100, 3000][world.choose(4)];
        let limits = choose_limits(world);
        let bounds = limits.1;
        let server = match wire {
            Wire::Raw => serve(world, &records, Raw, high, limits),
            Wire::Lines => serve(world, &records, Lines::default().max_len(30_000), high, limits),
            Wire::Prefixed => serve(world, &records, LengthPrefixed::default(), high, limits),
            Wire::Fixed => serve(world, &records, FixedSize::new(FIXED), high, limits),
        };
        let lossy = lossy || bounds.any;
        (Model { world, records, sent: Vec::new(), high, lossy, bounds }, server)
    }

    /// One thing that a client does.
    fn act(&mut self, sim: &mut Simulation<'_>) {
        let world = self.world;
        if self.sent.is_empty() || (self.sent.len() < 6 && world.choose(4) == 3) {
            let client = sim.connect();
            let (received, capitals) = (Vec::new(), Vec::new());
            self.sent.push(Sent {
                client,
                messages: Vec::new(),
                is_patient: true,
                finished: false,
                is_gone: false,
                received,
                capitals,
            });
        }
        let number = world.choose(self.sent.len());
        let wire = self.records.wire;
        let sent = &mut self.sent[number];
        match world.choose(20) {
            15 => {
                sent.client.stop_reading();
                sent.is_patient = false;
            }
            16 => sent.client.resume_reading(),
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
            many => {
                for _ in 0..1 + [0, 2, 40, 600][(many / 4).min(3)] {
                    let length = [3, 30, 300, 20_000][world.choose(if many < 8 { 4 } else { 2 })];
                    let length = if wire == Wire::Fixed { FIXED } else { world.choose(length) };
                    let letter = b'a' + (number % 20) as u8;
                    let message = vec![letter; length.max(usize::from(wire == Wire::Raw))];
                    sent.client.send(&wire.frame(&message));
                    if !sent.finished {
                        sent.messages.push(message);
                    }
                }
            }
        }
    }

    /// Checks what holds at any time.
    fn check(&mut self) {
        let records = self.records.lock();
        for sent in &mut self.sent {
            let is_capital =
                |byte: &u8| self.records.wire == Wire::Raw && byte.is_ascii_uppercase();
            let (capitals, others): (Vec<u8>, Vec<u8>) =
                sent.client.read().into_iter().partition(is_capital);
            sent.received.extend(others);
            sent.capitals.extend(capitals);
            let Some(record) = records.get(&sent.client.peer().to_string()) else {
                let is_busy = self.bounds.any && BUSY.starts_with(&sent.received);
                assert!(sent.received.is_empty() || is_busy, "output without a handler");
                continue;
            };
            assert!(record.faults.is_empty(), "{:?}", record.faults);
            assert_starts_with(&record.sent, &sent.received);
            assert_starts_with(&record.capitals, &sent.capitals);
            check_input(self.records.wire, sent, record);
            let written = sent.client.bytes_sent_by_server();
            let held = (record.sent.len() as u64).saturating_sub(written);
            // A timer sends without room, too.
            let most = (self.high + 4 * MOST_SENT) as u64;
            assert!(
                record.closing || record.closed.is_some() || held <= most,
                "{held} bytes of output wait"
            );
        }
    }

    /// Checks what the server holds between two turns.
    fn check_held(&self, sim: &Simulation<'_>) {
        let held = sim.counters().memory_held;
        if let Some(most) = self.bounds.memory {
            let slack = 2 * MOST_SENT + 256 * 1024;
            assert!(held <= (most + slack) as u64, "{held} bytes are held, at most {most} may be");
        }
        if let Some(most) = self.bounds.connections {
            let records = self.records.lock();
            let open = records.values().filter(|record| record.closed.is_none()).count();
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
            let Some(record) = records.get(&name).filter(|_| !self.lossy && !sent.is_gone) else {
                continue;
            };
            let is_open = record.closed.is_none() && !record.closing && !record.ended_by_sender;
            let served = record.messages.concat().len();
            let all = sent.messages.concat().len();
            assert!(
                !is_open || record.paused || record.eof || served == all,
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

    /// Connections that the handler has closed have left the server, although their clients have not ended.
    fn check_closed(&self) {
        let records = self.records.lock();
        for sent in &self.sent {
            let name = sent.client.peer().to_string();
            let is_closed = records.get(&name).is_some_and(|record| record.closed.is_some());
            assert!(!is_closed || !sent.client.is_open_at_server(), "{name} lingers for ever");
        }
    }

    /// Checks what holds when all has come to its end.
    fn check_end(&mut self, was_stopped: bool) {
        self.check();
        let records = self.records.lock();
        for sent in &self.sent {
            let name = sent.client.peer().to_string();
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
            let wire = self.records.wire;
            let written: usize = sent.messages.iter().map(|one| wire.frame(one).len()).sum();
            let is_unread = sent.client.bytes_read_by_server() < written as u64;
            let end = sent.client.closed_by_server();
            assert!(
                sent.received.len() == record.sent.len()
                    && (end == Some(StreamEnd::Eof) || end == Some(StreamEnd::Reset) && is_unread),
                "{name} has received {} bytes and {end:?}; {}",
                sent.received.len(),
                record.summary()
            );
            let served = record.messages.concat().len();
            let all = sent.messages.concat().len();
            let ended_itself = record.closing || record.is_fault || record.paused;
            assert!(
                ended_itself || !sent.finished || (served == all && record.eof),
                "{name} was served {served} of {all} bytes; end: {}",
                record.eof
            );
        }
    }
}

/// The messages are the first of those that the client has sent.
fn check_input(wire: Wire, sent: &Sent, record: &Record) {
    let read = sent.client.bytes_read_by_server();
    match wire {
        Wire::Raw => {
            let (all, got) = (sent.messages.concat(), record.messages.concat());
            assert!(all.starts_with(&got), "the bytes received are not those sent");
        }
        _ => assert!(
            sent.messages.starts_with(&record.messages),
            "the messages received are not those sent"
        ),
    }
    let consumed: usize = record.messages.iter().map(|message| wire.frame(message).len()).sum();
    let is_open = record.closed.is_none() && !record.closing;
    assert!(!is_open || read <= consumed as u64 + MOST_HELD, "{read} read, {consumed} used");
}

fn assert_starts_with(all: &[u8], first: &[u8]) {
    let at = all.iter().zip(first).take_while(|(all, first)| all == first).count();
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
        let (records, is_limited) = (model.records.clone(), model.bounds.any);
        stop(world, model, sim);
        records.calm.store(true, SeqCst);
        return serve_again(world, &mut server, is_limited);
    }
    world.calm();
    model.sent.iter().for_each(|sent| sent.client.resume_reading());
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
    if !was_stopped && !model.bounds.any {
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
    let is_limited = model.bounds.any;
    model.check_end(was_stopped);
    serve_again(world, &mut server, is_limited);
}

/// A server that was stopped serves again.
fn serve_again(world: &World, server: &mut Server, is_limited: bool) {
    let mut sim = world.start(server);
    let client = sim.connect();
    sim.settle();
    assert!(is_limited || client.is_open_at_server(), "the second run accepts");
    assert!(sim.stop().idle >= 1 || is_limited);
}

/// Stops the server in the middle of its work.
fn stop(world: &World, mut model: Model<'_>, mut sim: Simulation<'_>) {
    let was_stopped = sim.is_stopped();
    let before = world.now();
    let report = sim.stop();
    // A job of a worker, or a client, may take its time.
    let time = world.now() - before;
    assert!(time < Duration::from_secs(6) || world.has(Fault::ClockLeap), "the stop took {time:?}");
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
