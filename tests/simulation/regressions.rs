//! Situations in which the simulation has found a bug, each reduced to what it needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use socketserver::testing::{self, Check, Client, Fault, StreamEnd};
use socketserver::{
    Accepted, CloseReason, Context, Handler, HandlerResult, Hooks, Lines, Mode, Offload, Peer,
    Reactor, Server, handler_fn,
};

#[test]
fn a_connection_that_cannot_be_registered_gives_back_the_memory_of_its_output() {
    Check::new().without_faults().with(Fault::RegisterFailure).runs(60).run(|world| {
        let serve = |_: &Accepted<'_>| handler_fn(|_, cx| cx.send(&[b'x'; 100_000]));
        let mut server = Server::tcp("127.0.0.1:0").unwrap().serve(serve).unwrap();
        let mut sim = world.start(&mut server);
        let clients: Vec<_> = (0..4).map(|_| sim.connect()).collect();
        for client in &clients {
            client.stop_reading();
            client.send(b"hello");
        }
        sim.settle();
        clients.iter().for_each(Client::resume_reading);
        sim.settle();
        assert_eq!(sim.counters().memory_held, 0);
    });
}

/// Says goodbye to everybody.
struct Goodbye;

impl Handler for Goodbye {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(b"goodbye")?;
        cx.close();
        Ok(())
    }

    fn on_message(&mut self, _: &[u8], _: &mut Context<'_>) -> HandlerResult {
        Ok(())
    }
}

#[test]
fn an_interrupted_read_during_a_close_does_not_cut_the_output() {
    Check::new().without_faults().with(Fault::Interrupted).run(|world| {
        let mut server = Server::tcp("127.0.0.1:0").unwrap().serve(|_| Goodbye).unwrap();
        let mut sim = world.start(&mut server);
        let client = sim.connect();
        client.send(b"hello");
        sim.settle();
        assert_eq!(client.read(), b"goodbye");
        assert_eq!(client.closed_by_server(), Some(StreamEnd::Eof));
    });
}

#[test]
fn an_interrupted_read_at_a_stop_does_not_disconnect_anybody() {
    Check::new().without_faults().with(Fault::Interrupted).run(|world| {
        let mut server = Server::tcp("127.0.0.1:0")
            .unwrap()
            .mode(Offload::default())
            .serve(|_| handler_fn(|bytes, cx| cx.send(bytes)))
            .unwrap();
        let mut sim = world.start(&mut server);
        let client = sim.connect();
        client.send(b"hello");
        sim.settle();
        assert_eq!(sim.stop().idle, 1);
        assert_eq!(client.read(), b"hello");
        assert_eq!(sim.counters().disconnects, 0);
    });
}

#[test]
fn a_client_that_has_taken_all_of_its_output_is_not_reset_by_the_write_timeout() {
    testing::quiet(|world| {
        let mut server = Server::tcp("127.0.0.1:0")
            .unwrap()
            .framing(Lines::default())
            .serve(|_| handler_fn(|_, cx| cx.send(&[b'x'; 300_000])))
            .unwrap();
        let mut sim = world.start(&mut server);
        let client = sim.connect();
        client.stop_reading();
        client.send(b"once\n");
        sim.settle();
        client.resume_reading();
        sim.settle();
        assert_eq!(client.read().len(), 300_001);
        sim.pass(Duration::from_secs(600));
        assert!(client.is_open_at_server(), "nothing waits for it");
        client.send(b"again\n");
        sim.settle();
        assert_eq!(client.read().len(), 300_001);
    });
}

/// Repeats lines, and answers what is no line.
struct Apologizes;

impl Handler for Apologizes {
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        cx.send(line)
    }

    fn on_reject(&mut self, _: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(b"?")
    }
}

#[test]
fn a_bad_frame_that_arrives_with_messages_is_answered_after_them() {
    for offloads in [false, true] {
        testing::quiet(|world| {
            let mode = match offloads {
                false => Mode::Reactor(Reactor),
                true => Mode::Offload(Offload::default()),
            };
            let builder = Server::tcp("127.0.0.1:0").unwrap().mode(mode);
            let framing = Lines::default().max_len(10);
            let mut server = builder.framing(framing).serve(|_| Apologizes).unwrap();
            let mut sim = world.start(&mut server);
            let client = sim.connect();
            client.send(b"one\ntwo\nmuch too long for this\n");
            sim.settle();
            assert_eq!(client.read(), b"one\ntwo\n?\n");
        });
    }
}

/// Counts the faults that it is told of.
struct CountsFaults(Arc<AtomicUsize>);

impl Hooks for CountsFaults {
    fn handle_error(&mut self, _: &Peer, _: &CloseReason) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_fault_behind_much_output_in_a_job_that_outlives_the_stop_is_told_to_the_hooks_of_the_next_run()
{
    for micros in (0..400).step_by(25) {
        testing::quiet(|world| {
            world.allow_panics();
            let (faults, told) = (Arc::new(AtomicUsize::new(0)), Arc::default());
            let panics = faults.clone();
            let mut server = Server::tcp("127.0.0.1:0")
                .unwrap()
                .mode(Offload::default())
                .hooks(CountsFaults(Arc::clone(&told)))
                .serve(move |_| {
                    let panics = panics.clone();
                    handler_fn(move |_, cx| {
                        cx.send(&[b'x'; 100_000])?;
                        panics.fetch_add(1, SeqCst);
                        panic!("on purpose")
                    })
                })
                .unwrap();
            server.drain_timeout(Duration::ZERO);
            let mut sim = world.start(&mut server);
            sim.connect().send(b"hello");
            sim.pass(Duration::from_micros(micros));
            sim.stop();
            drop(sim);
            let mut sim = world.start(&mut server);
            sim.settle();
            assert_eq!(told.load(SeqCst), faults.load(SeqCst));
            assert_eq!(sim.counters().panics, faults.load(SeqCst) as u64);
            sim.stop();
        });
    }
}
