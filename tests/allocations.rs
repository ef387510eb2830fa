//! Under `reactor`, a message on an established connection causes no allocation; under `offload` it
//! causes one, for the input that a worker gets.
//!
//! The allocator counts for the whole process, so this file has only one test, whose client
//! allocates nothing.

use std::alloc::System;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use socketserver::{
    Context, Endian, Framing, LengthPrefixed, Lines, Mode, Offload, Raw, Reactor, Server, Width,
    handler_fn,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const WARM_UP: usize = 1_000;
const MESSAGES: usize = 10_000;

/// The number of allocations while a client exchanges [`MESSAGES`] messages of 64 bytes with an
/// echo server.
fn allocations_with<F>(mode: Mode, framing: F, message: [u8; 64]) -> usize
where
    F: Framing + Clone + Send + 'static,
{
    let echo = |_: &socketserver::Accepted<'_>| {
        handler_fn(|message: &[u8], cx: &mut Context<'_>| cx.send(message))
    };
    let server = Server::tcp("127.0.0.1:0").unwrap().framing(framing).mode(mode);
    let server = server.serve(echo).unwrap();
    let running = server.spawn().unwrap();
    let mut client = TcpStream::connect(running.local_addr().inet().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();

    let mut answer = [0; 64];
    let mut exchange = |times| {
        for _ in 0..times {
            client.write_all(&message).unwrap();
            client.read_exact(&mut answer).unwrap();
            assert_eq!(answer, message);
        }
    };
    exchange(WARM_UP);
    let region = Region::new(COUNTING);
    exchange(MESSAGES);
    let counted = region.change();
    drop(client);
    running.stop().unwrap();
    counted.allocations + counted.reallocations
}

/// The same with each framing.
fn allocations(mode: Mode) -> [usize; 3] {
    let mut line = [b'x'; 64];
    line[63] = b'\n';
    let mut prefixed = [b'x'; 64];
    prefixed[..2].copy_from_slice(&62_u16.to_be_bytes());
    let framing = LengthPrefixed::new(Width::Two, Endian::Big);
    [
        allocations_with(mode, Raw, line),
        allocations_with(mode, Lines::default(), line),
        allocations_with(mode, framing, prefixed),
    ]
}

#[test]
fn a_message_costs_no_allocation_on_the_reactor_and_one_under_offload() {
    assert_eq!(allocations(Mode::Reactor(Reactor)), [0; 3]);
    let offloaded = allocations(Mode::Offload(Offload::new(1)));
    assert!(offloaded.iter().all(|count| *count <= MESSAGES), "{offloaded:?} for {MESSAGES}");
}
