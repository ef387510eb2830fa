//! One run of a server with malformed input, and what must hold in each.

use std::time::Duration;

use socketserver::testing::{Check, Checked, Client, Fault, Simulation, World};
use socketserver::{Mode, Offload, Reactor, Server};

use super::input::Draw;

/// The most that a server may hold beside what one client has sent: a read buffer, and answers.
const SLACK: u64 = 256 * 1024;

/// A server under test.
pub(crate) trait Target: Sized {
    /// How long a client is silent until its connection is closed, or open and between two messages.
    const SILENCE: Duration;

    /// Makes the server.
    fn new(mode: Mode) -> (Self, Server);

    /// Connects the clients that watch.
    fn begin(&mut self, sim: &mut Simulation<'_>) {
        let _ = sim;
    }

    /// Connects the client that sends the input.
    fn connect(&self, sim: &mut Simulation<'_>) -> Client {
        sim.connect()
    }

    /// What a client sends before everything else.
    fn greeting(&self) -> &'static [u8] {
        b""
    }

    /// A message, valid or nearly so.
    fn message(draw: Draw<'_>) -> Vec<u8>;

    /// Input whose answers are known: what [`summary`](Target::summary) makes of them, and of the record.
    /// The connection ends with them.
    fn known(draw: Draw<'_>) -> (Vec<u8>, String);

    /// Does what threads of the program do otherwise. Returns whether there was something to do.
    fn work(&mut self) -> bool {
        false
    }

    /// What the answers say, without what may differ from run to run.
    ///
    /// # Panics
    ///
    /// If the answers are malformed; unless they are `complete`, they may be cut.
    fn summary(&self, sent: &[u8], received: &[u8], is_complete: bool) -> String;

    /// What has come out elsewhere: at other clients, on stdout.
    fn record(&mut self) -> String {
        String::new()
    }

    /// Whether the answers to this input are the same each time.
    fn is_repeatable(input: &[u8]) -> bool {
        let _ = input;
        true
    }

    /// Whether the end of this input may be seen late.
    fn waits(input: &[u8]) -> bool {
        let _ = input;
        false
    }

    /// The part of the answers, or of the record, that must not depend on how the input arrives.
    fn essence(text: String) -> String {
        text
    }

    /// A valid message, which an open connection answers, or puts into the record.
    fn probe() -> Vec<u8>;

    /// A new client gets the right answer.
    fn serves(&mut self, sim: &mut Simulation<'_>);
}

/// The options of an exchange.
#[derive(Clone, Copy)]
struct Style {
    mode: Mode,
    /// The input is sent in pieces.
    in_pieces: bool,
    /// The client ends its input, or is silent.
    finishes: bool,
}

/// What has come of an exchange.
#[derive(Debug)]
struct Outcome {
    answers: String,
    record: String,
    is_complete: bool,
}

/// Lets a server with a thread work until nothing more can happen.
pub(crate) fn settle<T: Target>(target: &mut T, sim: &mut Simulation<'_>) {
    sim.settle();
    while target.work() {
        sim.settle();
    }
}

/// One client sends an input and is answered, others are served after it, and the server is stopped.
fn exchange<T: Target>(world: &World, input: &[u8], style: Style) -> Outcome {
    let draw = Draw(world);
    let is_lossy = LOSSES.iter().any(|fault| world.has(*fault));
    let (mut target, mut server) = T::new(style.mode);
    let mut sim = world.start(&mut server);
    target.begin(&mut sim);
    settle(&mut target, &mut sim);
    let (client, begun) = (target.connect(&mut sim), world.now());
    let all = [target.greeting(), input].concat();
    let pieces = if style.in_pieces { draw.pieces(&all) } else { vec![&all[..]] };
    for piece in pieces {
        client.send(piece);
        if style.in_pieces && draw.below(2) == 1 {
            settle(&mut target, &mut sim);
            check_memory(&sim, input);
        }
    }
    settle(&mut target, &mut sim);
    check_memory(&sim, input);
    // Bytes that come too slowly end a connection.
    let is_slow = world.now() - begun > Duration::from_secs(5);
    match style.finishes {
        true => client.finish(),
        // A client that waits, or whose connection may be lost, need not get an answer.
        false => be_silent(&mut target, &mut sim, &client, !is_lossy && !T::waits(input)),
    }
    client.finish();
    settle(&mut target, &mut sim);
    // A server may wait a moment before it looks for more.
    sim.pass(Duration::from_secs(1));
    let received = client.read();
    let end = client.closed_by_server();
    assert!(end.is_some() || T::waits(input), "the connection is open after its end");
    let is_complete = !is_lossy && !is_slow;
    let answers = target.summary(input, &received, is_complete);
    let record = target.record();
    world.calm();
    target.serves(&mut sim);
    let before = world.now();
    sim.stop();
    assert!(world.now() - before < Duration::from_secs(6), "a stop takes long");
    assert_eq!(sim.counters().memory_held, 0, "nothing is held after the stop");
    Outcome { answers, record, is_complete }
}

fn check_memory(sim: &Simulation<'_>, input: &[u8]) {
    let (held, sent) = (sim.counters().memory_held, input.len() as u64);
    assert!(held <= SLACK + 2 * sent, "{held} bytes are held for {sent} that were sent");
}

/// A client that is silent for long is closed, or still answered.
fn be_silent<T: Target>(target: &mut T, sim: &mut Simulation<'_>, client: &Client, answers: bool) {
    sim.pass(T::SILENCE);
    settle(target, sim);
    if client.closed_by_server().is_some() {
        return;
    }
    let seen = (client.bytes_sent_by_server(), target.record().len());
    client.send(&T::probe());
    settle(target, sim);
    let now = (client.bytes_sent_by_server(), target.record().len());
    let is_answered = now.0 > seen.0 || now.1 > seen.1;
    assert!(is_answered || !answers, "an open connection does not answer");
}

/// The faults that clients notice, of those that a run may have.
const LOSSES: [Fault; 3] = [Fault::Reset, Fault::AbortedAccept, Fault::RegisterFailure];

/// In how many runs the answers were compared with those that must come, and with those to the same
/// input that has arrived in other pieces.
const KNOWN: &str = "the answers are known";
const REPEATED: &str = "the answers do not depend on how the input arrives";

/// One run: the same input, sent in two ways, has the same answers.
pub(crate) fn run<T: Target>(world: &World) {
    let draw = Draw(world);
    let mode = match draw.below(3) {
        2 => Mode::Offload(Offload::default()),
        _ => Mode::Reactor(Reactor),
    };
    let known = match draw.below(3) {
        0 => Some(T::known(draw)),
        _ => None,
    };
    let (input, expected) = match known {
        Some((input, expected)) => (input, Some(expected)),
        None => (draw.input(T::message), None),
    };
    let finishes = expected.is_some() || draw.below(3) > 0;
    let style = Style { mode, in_pieces: true, finishes };
    let cut = exchange::<T>(world, &input, style);
    let shown = input.escape_ascii();
    if let Some(expected) = expected
        && cut.is_complete
    {
        let outcome = format!("{}{}", cut.answers, cut.record);
        assert_eq!(outcome, expected, "the answers to {shown}");
        world.mark(KNOWN);
    }
    if cut.is_complete && finishes && T::is_repeatable(&input) {
        // The world is calm by now.
        let whole = exchange::<T>(world, &input, Style { in_pieces: false, ..style });
        let [cut, whole] =
            [cut, whole].map(|outcome| (T::essence(outcome.answers), T::essence(outcome.record)));
        assert_eq!(cut, whole, "the answers depend on how this arrives: {shown}");
        world.mark(REPEATED);
    }
}

/// How many runs each protocol has in a plain test.
const RUNS: u64 = 400;

/// Many runs, half of them with resets and clients that are gone before they are accepted.
pub(crate) fn check<T: Target>() -> Checked {
    let check = LOSSES.iter().fold(Check::new().runs(RUNS), |check, fault| check.with(*fault));
    let checked = check.run(run::<T>);
    let reached = |mark| checked.marks.get(mark).copied().unwrap_or_default();
    let least = checked.runs / 20;
    assert!(reached(KNOWN) >= least && reached(REPEATED) >= least, "{checked:?}");
    checked
}

/// The run of a fuzzer.
pub(crate) fn replay<T: Target>(data: &[u8]) {
    LOSSES.iter().fold(Check::new(), |check, fault| check.with(*fault)).replay(data, run::<T>);
}

/// The address of a server in a simulated world.
pub(crate) const TCP: &str = "tcp://127.0.0.1:0";
