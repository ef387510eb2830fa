//! The forms of the tests of users, and what they report.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use socketserver::testing::{self, Check, Fault, StreamEnd};
use socketserver::{
    Builder, Context, Error, Handler, HandlerResult, Lines, Offload, Server, Threading, handler_fn,
};

fn builder() -> Builder<Lines> {
    Server::tcp("127.0.0.1:9999").unwrap().framing(Lines::default())
}

fn upper() -> Result<Server, Error> {
    builder().serve(|_| handler_fn(|line, cx| cx.send(&line.to_ascii_uppercase())))
}

/// The message with which `call` panics.
fn failure(call: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(call)).expect_err("it panics");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().expect("a text")).to_owned(),
    }
}

#[test]
fn one_line_in_one_line_out() {
    testing::quiet(|world| {
        let mut server = upper().unwrap();
        let mut sim = world.start(&mut server);
        let client = sim.connect();
        client.send(b"hello\n");
        sim.settle();
        assert_eq!(client.read(), b"HELLO\n");
        client.close();
        sim.settle();
        assert_eq!(client.closed_by_server(), Some(StreamEnd::Eof));
        assert_eq!((sim.connections(), sim.timers()), (0, 0));
    });
}

#[test]
fn a_test_that_holds_without_faults_holds_with_those_that_no_client_sees() {
    testing::check(|world| {
        let mode = world.choose(2);
        let mut server = match mode {
            0 => upper(),
            _ => builder()
                .mode(Offload::default())
                .serve(|_| handler_fn(|line, cx| cx.send(&line.to_ascii_uppercase()))),
        }
        .unwrap();
        let mut sim = world.start(&mut server);
        let clients: Vec<_> = (0..1 + world.choose(4)).map(|_| sim.connect()).collect();
        for client in &clients {
            client.send(b"hel");
            client.send(b"lo\nwo");
        }
        sim.settle();
        for client in &clients {
            assert_eq!(client.read(), b"HELLO\n");
            client.send(b"rld\n");
            client.finish();
        }
        sim.settle();
        for client in &clients {
            assert_eq!(client.read(), b"WORLD\n");
            assert_eq!(client.closed_by_server(), Some(StreamEnd::Eof));
        }
    });
}

/// Takes each read for a whole message.
struct Naive;

impl Handler for Naive {
    fn on_message(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        cx.send(if bytes == b"hello" { b"yes" } else { b"no" })
    }
}

#[test]
fn a_bug_of_a_handler_is_found_and_its_script_is_shrunk_and_can_be_replayed() {
    let test = |world: &testing::World| {
        let mut server = Server::tcp("127.0.0.1:0").unwrap().serve(|_| Naive).unwrap();
        let mut sim = world.start(&mut server);
        let client = sim.connect();
        client.send(b"hello");
        sim.settle();
        assert_eq!(client.read(), b"yes");
    };
    let message = failure(|| testing::check(test));
    assert!(message.contains("client sends 0: 5"), "it has a trace: {message}");
    let (_, script) = message.split_once(".replay(&[").expect("it has a script");
    let (script, _) = script.split_once(']').unwrap();
    let script: Vec<u8> = script.split(", ").map(|byte| byte.parse().unwrap()).collect();
    assert!(script.len() < 40, "{script:?}");
    let again = failure(|| Check::new().replay(&script, test));
    assert!(again.contains("assertion"), "{again}");
}

#[test]
fn a_panic_of_a_handler_fails_the_test_unless_it_is_allowed() {
    let test = |world: &testing::World| {
        let mut server =
            builder().serve(|_| handler_fn(|_, _| panic!("a panic on purpose"))).unwrap();
        let mut sim = world.start(&mut server);
        let client = sim.connect();
        client.send(b"hello\n");
        sim.settle();
        assert!(client.closed_by_server().is_some());
    };
    assert!(failure(|| testing::quiet(test)).contains("a panic on purpose"));
    testing::quiet(|world| {
        world.allow_panics();
        test(world);
    });
}

#[test]
fn a_client_that_does_not_read_stops_the_server_from_reading() {
    Check::new().runs(30).without(Fault::BufferSizes).run(|world| {
        let mut server = upper().unwrap();
        let mut sim = world.start(&mut server);
        let client = sim.connect();
        client.stop_reading();
        let line = [&[b'x'; 999][..], b"\n"].concat();
        for _ in 0..1000 {
            client.send(&line);
        }
        sim.settle();
        let read = client.bytes_read_by_server();
        assert!(read < 500_000, "{read} bytes are read, although no answer is taken");
        client.resume_reading();
        sim.settle();
        assert_eq!(client.read().len(), 1000 * line.len());
    });
}

#[test]
fn a_handler_can_block_and_events_come_at_their_time() {
    testing::quiet(|world| {
        let inside = world.clone();
        let mut server = builder()
            .serve(move |_| {
                let world = inside.clone();
                handler_fn(move |line, cx| {
                    world.block(Duration::from_secs(3));
                    cx.send(line)
                })
            })
            .unwrap();
        let mut sim = world.start(&mut server);
        let (client, before) = (sim.connect(), world.now());
        client.send(b"hello\n");
        let later = client.clone();
        world.after(Duration::from_secs(10), move || later.finish());
        sim.settle();
        assert_eq!(client.read(), b"hello\n");
        assert_eq!(client.closed_by_server(), Some(StreamEnd::Eof));
        let passed = world.now() - before;
        assert!((Duration::from_secs(10)..Duration::from_secs(11)).contains(&passed), "{passed:?}");
    });
}

#[test]
fn a_client_of_a_server_that_does_not_exist_any_more_is_refused() {
    testing::quiet(|world| {
        let mut server = upper().unwrap();
        let mut sim = world.start(&mut server);
        let client = sim.connect();
        sim.stop();
        drop(sim);
        drop(server);
        assert_eq!(client.closed_by_server(), None);
        let mut other = upper().unwrap();
        world.start(&mut other).settle();
        assert_eq!(client.closed_by_server(), Some(StreamEnd::Refused));
    });
}

#[test]
fn what_is_not_simulated_is_refused() {
    let blocking = failure(|| {
        testing::quiet(|world| {
            let mut server = builder()
                .mode(Threading::default())
                .serve(|_| handler_fn(|line, cx| cx.send(line)))
                .unwrap();
            let mut sim = world.start(&mut server);
            sim.connect();
            sim.settle();
        });
    });
    assert!(blocking.contains("only reactor and offload are simulated"), "{blocking}");
    let datagrams = failure(|| {
        testing::quiet(|world| {
            let mut server = Server::udp("127.0.0.1:0")
                .unwrap()
                .serve(|_| handler_fn(|line, cx| cx.send(line)))
                .unwrap();
            world.start(&mut server);
        });
    });
    assert!(datagrams.contains("datagram services are not simulated"), "{datagrams}");
}

#[test]
fn a_server_that_was_made_outside_of_the_world_has_real_sockets_and_is_refused() {
    let server = std::cell::RefCell::new(
        Server::tcp("127.0.0.1:0")
            .unwrap()
            .serve(|_| handler_fn(|line, cx| cx.send(line)))
            .unwrap(),
    );
    assert_ne!(server.borrow().local_addr().port(), Some(0));
    let message = failure(|| {
        testing::quiet(|world| {
            world.start(&mut server.borrow_mut());
        });
    });
    assert!(message.contains("the server was made in this world"), "{message}");
}

#[test]
fn the_sizes_of_buffers_and_the_descriptors_are_limits_of_the_world() {
    Check::new().runs(50).with(Fault::NoDescriptors).run(|world| {
        let mut server = upper().unwrap();
        let mut sim = world.start(&mut server);
        world.limit_descriptors(6);
        let clients: Vec<_> = (0..10).map(|_| sim.connect()).collect();
        sim.pass(Duration::from_secs(10));
        assert!(sim.connections() <= 3);
        assert!(sim.counters().accept_pauses > 0);
        world.calm();
        sim.pass(Duration::from_secs(10));
        let open = clients.iter().filter(|client| client.is_open_at_server()).count();
        assert_eq!(open, sim.connections());
        let shed = sim.counters().shed_no_fd as usize;
        assert_eq!(open + shed, 10, "each client is served, or turned away");
    });
}

#[test]
fn a_failure_names_the_line_of_the_assertion_that_has_failed() {
    let place = format!("{}:{}:", file!(), line!() + 2);
    let failed = std::panic::catch_unwind(|| {
        testing::quiet(|_| assert_eq!(1, 2, "as planned"));
    });
    let message = failed.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("as planned") && message.contains(&place), "{message}");
}
