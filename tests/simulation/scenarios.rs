//! Single situations in a simulated world.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socketserver::testing::{self, Check, Client, Simulation};
use socketserver::{FixedSize, Framing, LengthPrefixed, Lines, Offload, Server, handler_fn};

#[test]
fn a_client_is_served_between_the_messages_of_one_that_floods() {
    testing::quiet(|world| {
        let (flood, before_others) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None)));
        let (counter, seen) = (flood.clone(), before_others.clone());
        let mut server = Server::tcp("127.0.0.1:0")
            .unwrap()
            .framing(Lines::default())
            .serve(move |_| {
                let (counter, seen) = (counter.clone(), seen.clone());
                handler_fn(move |line, _| {
                    if line.is_empty() {
                        counter.fetch_add(1, SeqCst);
                    } else {
                        *seen.lock().unwrap() = Some(counter.load(SeqCst));
                    }
                    Ok(())
                })
            })
            .unwrap();
        let mut sim = world.start(&mut server);
        let (floods, other) = (sim.connect(), sim.connect());
        floods.send(&[b'\n'; 60_000]);
        other.send(b"one line\n");
        sim.settle();
        assert_eq!(flood.load(SeqCst), 60_000);
        let before = before_others.lock().unwrap().expect("it is served");
        assert!(before < 1000, "{before} messages of another client come before");
    });
}

/// Sends two messages in three pieces, cut as the script says, and returns the answer.
fn cut(world: &testing::World, sim: &mut Simulation<'_>, bytes: &[u8]) -> Client {
    let client = sim.connect();
    let first = world.choose(bytes.len());
    let second = first + world.choose(bytes.len() - first);
    for piece in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
        client.send(piece);
        sim.settle();
    }
    client
}

fn any_cut_of<F: Framing + Clone + Send>(framing: F, bytes: &'static [u8]) {
    let checked = Check::new().without_faults().exhaustive(3).runs(1000).run(|world| {
        let builder = Server::tcp("127.0.0.1:0").unwrap().framing(framing.clone());
        let mut server = match world.choose(2) {
            0 => builder.serve(|_| handler_fn(|message, cx| cx.send(message))),
            _ => builder
                .mode(Offload::default())
                .serve(|_| handler_fn(|message, cx| cx.send(message))),
        }
        .unwrap();
        let mut sim = world.start(&mut server);
        assert_eq!(cut(world, &mut sim, bytes).read(), bytes);
    });
    let length = bytes.len() as u64;
    assert_eq!(checked.runs, length * (length + 1), "all cuts, in two modes");
}

#[test]
fn however_two_messages_are_cut_the_answers_are_the_same() {
    any_cut_of(Lines::default(), b"ab\ncde\n");
    any_cut_of(LengthPrefixed::default(), b"\0\0\0\x02ab\0\0\0\x01c");
    any_cut_of(FixedSize::new(3), b"abcdef");
}

#[test]
fn jobs_of_workers_that_take_long_keep_the_order_of_messages_and_delay_no_stop() {
    testing::check(|world| {
        let inside = world.clone();
        let mut server = Server::unix_stream("/simulated")
            .unwrap()
            .framing(Lines::default())
            .mode(Offload::new(2))
            .serve(move |_| {
                let world = inside.clone();
                handler_fn(move |line, cx| {
                    world.block(Duration::from_millis(world.choose(100) as u64));
                    cx.send(line)
                })
            })
            .unwrap();
        let mut sim = world.start(&mut server);
        let clients: Vec<_> = (0..3).map(|_| sim.connect()).collect();
        for client in &clients {
            for _ in 0..3 {
                client.send(b"one\ntwo\n");
            }
        }
        sim.settle();
        let before = world.now();
        assert_eq!(sim.stop().idle, 3);
        assert!(world.now() - before < Duration::from_secs(1));
        for client in &clients {
            assert_eq!(client.read(), b"one\ntwo\n".repeat(3));
        }
    });
}
