//! Two small examples: timers, and a stream of output.

use std::time::Duration;

use socketserver::testing::{self, StreamEnd, World};
use socketserver::{Error, Limits, Mode, Offload, Reactor, Server, Service};

use super::examples::{heartbeat, stream};
use super::target::TCP;

const SECOND: Duration = Duration::from_secs(1);

/// A server in one of the modes that are simulated.
fn server(world: &World, service: impl FnOnce(Mode) -> Result<Service, Error>) -> Server {
    let modes = [Mode::Reactor(Reactor), Mode::Offload(Offload::default())];
    let mut server = Server::new().unwrap();
    server.add(service(modes[world.choose(2)]).unwrap()).unwrap();
    server
}

#[test]
fn numbers_come_whole_and_in_order_also_to_a_client_that_reads_late() {
    testing::check(|world| {
        let service = |mode| stream::service(&TCP.parse().unwrap(), mode, Limits::default());
        let mut server = server(world, service);
        let mut sim = world.start(&mut server);
        let client = sim.connect();
        let last = [0, 1, 10, 10_000][world.choose(4)];
        if world.choose(2) == 1 {
            client.stop_reading();
        }
        client.send(format!("{last}\nx\n2\n").as_bytes());
        sim.settle();
        assert!(sim.counters().memory_held < 256 * 1024);
        client.resume_reading();
        sim.settle();
        let numbers: String = (1..=last).map(|number| format!("{number}\n")).collect();
        let expected = format!("{numbers}a number, please\n1\n2\n");
        assert!(client.read() == expected.as_bytes(), "the numbers to {last}");
        client.close();
        sim.settle();
        assert_eq!(client.closed_by_server(), Some(StreamEnd::Eof));
    });
}

#[test]
fn beats_come_every_second_and_a_client_without_a_name_is_closed() {
    testing::check(|world| {
        let times = (SECOND, 5 * SECOND);
        let service =
            |mode| heartbeat::service(&TCP.parse().unwrap(), mode, Limits::default(), times);
        let mut server = server(world, service);
        let mut sim = world.start(&mut server);
        let (named, unnamed) = (sim.connect(), sim.connect());
        named.send(b"ann\n");
        // Each beat may be 150 ms late, and the next one is a second after it.
        sim.pass(Duration::from_millis(9900));
        let text = String::from_utf8(named.read()).unwrap();
        let beats = text.strip_prefix("your name?\nhello ann\n").expect("a greeting");
        assert_eq!(beats.replace("beat\n", ""), "");
        assert!((7..=9).contains(&beats.lines().count()), "{beats}");
        let text = String::from_utf8(unnamed.read()).unwrap();
        assert!(text.starts_with("your name?\nbeat\n") && text.ends_with("too late\n"), "{text}");
        assert_eq!(unnamed.closed_by_server(), Some(StreamEnd::Eof));
        sim.stop();
    });
}
