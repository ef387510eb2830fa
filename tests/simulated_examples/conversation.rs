//! Valid conversations under faults: the answers are exact, whatever the network does.

use std::time::Duration;

use socketserver::testing::{Check, Client, Fault, Simulation, World};
use socketserver::{Mode, Offload, Reactor, Server};

use super::target::{Target, settle};

/// Requests, each with the answer to it as `show` shows it.
pub(crate) struct Steps {
    pub(crate) show: fn(&[u8]) -> String,
    /// What a connection begins with.
    pub(crate) greeting: &'static str,
    pub(crate) steps: Vec<(Vec<u8>, String)>,
    /// What a client may be told when the server stops.
    pub(crate) farewell: &'static str,
}

impl Steps {
    /// Bytes are shown as they are.
    pub(crate) fn raw(greeting: &'static str, steps: &[(&[u8], &str)]) -> Self {
        let show = |bytes: &[u8]| bytes.escape_ascii().to_string();
        let steps =
            steps.iter().map(|(request, answer)| (request.to_vec(), show(answer.as_bytes())));
        Steps { show, greeting, steps: steps.collect(), farewell: "" }
    }

    /// Farewells are shown as everything else.
    pub(crate) fn farewell(self, farewell: &'static str) -> Self {
        Steps { farewell, ..self }
    }

    /// All answers up to that to a request; the greeting alone before the first one.
    fn expected(&self, requests: usize) -> String {
        let answers = self.steps[..requests].iter().map(|(_, answer)| answer.as_str());
        [self.greeting].into_iter().chain(answers).collect()
    }
}

fn mode(world: &World) -> Mode {
    match world.choose(3) {
        2 => Mode::Offload(Offload::default()),
        _ => Mode::Reactor(Reactor),
    }
}

/// Starts the server, and greets it by a client.
fn begin<'s, T: Target>(
    world: &World,
    target: &mut T,
    server: &'s mut Server,
) -> (Simulation<'s>, Client) {
    let mut sim = world.start(server);
    target.begin(&mut sim);
    settle(target, &mut sim);
    let client = target.connect(&mut sim);
    client.send(target.greeting());
    (sim, client)
}

/// Under faults that a correct server hides: the answers are exact, of requests one by one and in a
/// pipeline, and to a client that does not read for a while.
pub(crate) fn has_exact_answers<T: Target>(steps: &Steps) {
    Check::new().runs(150).run(|world| {
        let (mut target, mut server) = T::new(mode(world));
        let (mut sim, client) = begin(world, &mut target, &mut server);
        let mut received = Vec::new();
        let is_pipeline = world.choose(2) == 1;
        for (number, (request, _)) in steps.steps.iter().enumerate() {
            if world.choose(4) == 3 {
                client.stop_reading();
            }
            client.send(request);
            if !is_pipeline {
                settle(&mut target, &mut sim);
                client.resume_reading();
                settle(&mut target, &mut sim);
                received.extend(client.read());
                assert_eq!((steps.show)(&received), steps.expected(number + 1));
            }
        }
        settle(&mut target, &mut sim);
        client.resume_reading();
        client.finish();
        settle(&mut target, &mut sim);
        received.extend(client.read());
        assert_eq!((steps.show)(&received), steps.expected(steps.steps.len()));
        assert!(client.closed_by_server().is_some());
        target.serves(&mut sim);
    });
}

/// With resets: what a client gets is the beginning of the exact answers, and others are served.
pub(crate) fn survives_resets<T: Target>(steps: &Steps) {
    let check = Check::new().runs(150).with(Fault::Reset).with(Fault::AbortedAccept);
    check.with(Fault::NoDescriptors).with(Fault::RegisterFailure).run(|world| {
        let (mut target, mut server) = T::new(mode(world));
        let mut sim = world.start(&mut server);
        target.begin(&mut sim);
        let clients: Vec<Client> = (0..3).map(|_| target.connect(&mut sim)).collect();
        clients[0].send(target.greeting());
        for (number, (request, _)) in steps.steps.iter().enumerate() {
            clients[0].send(request);
            if number == world.choose(8) {
                clients[world.choose(3)].reset();
            }
            settle(&mut target, &mut sim);
        }
        let shown = (steps.show)(&clients[0].read());
        assert_starts_with(&steps.expected(steps.steps.len()), &shown);
        world.calm();
        sim.pass(Duration::from_secs(3));
        target.serves(&mut sim);
    });
}

/// A stop in the middle: the client has the beginning of the exact answers, and perhaps a farewell; each
/// connection ends, and the stop is quick.
pub(crate) fn stops_in_the_middle<T: Target>(steps: &Steps) {
    Check::new().runs(150).run(|world| {
        let (mut target, mut server) = T::new(mode(world));
        let (mut sim, client) = begin(world, &mut target, &mut server);
        let last = world.choose(steps.steps.len());
        for (request, _) in &steps.steps[..last] {
            client.send(request);
            if world.choose(2) == 1 {
                settle(&mut target, &mut sim);
            }
        }
        let (request, _) = &steps.steps[last];
        client.send(&request[..world.choose(request.len() + 1)]);
        if world.choose(2) == 1 {
            sim.pass(Duration::from_micros(20 * world.choose(20) as u64));
        }
        let before = world.now();
        let report = sim.stop();
        let took = world.now() - before;
        assert!(took < Duration::from_secs(6), "the stop took {took:?}");
        let counters = sim.counters();
        assert_eq!(counters.accepted, counters.closed, "{report:?}");
        assert_eq!(counters.memory_held, 0);
        sim.settle();
        let shown = (steps.show)(&client.read());
        let without_farewell = |text: String| match steps.farewell {
            "" => text,
            farewell => text.replacen(farewell, "", 1),
        };
        let expected = without_farewell(steps.expected(last + 1));
        assert_starts_with(&expected, &without_farewell(shown));
        let was_served = client.bytes_sent_by_server() + client.bytes_read_by_server() > 0;
        assert!(!client.is_open_at_server());
        assert!(!was_served || client.closed_by_server().is_some(), "it is told of the end");
    });
}

fn assert_starts_with(all: &str, first: &str) {
    assert!(all.starts_with(first), "{first:?}\nis not the beginning of\n{all:?}");
}

/// Runs a test of one server in a quiet world, in both modes that are simulated.
pub(crate) fn quietly<T: Target>(test: impl Fn(&World, &mut T, &mut Simulation<'_>)) {
    for mode in [Mode::Reactor(Reactor), Mode::Offload(Offload::default())] {
        socketserver::testing::quiet(|world| {
            let (mut target, mut server) = T::new(mode);
            let mut sim = world.start(&mut server);
            target.begin(&mut sim);
            settle(&mut target, &mut sim);
            test(world, &mut target, &mut sim);
        });
    }
}
