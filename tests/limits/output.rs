//! The limits on output that the peer does not take, and on memory.

use std::io::{ErrorKind, Read};
use std::thread::sleep;
use std::time::Duration;

use super::process::{self, Stream};
use super::server::Cell;
use super::{Property, properties};

pub(super) fn properties() -> Vec<Property> {
    properties![
        a_peer_that_takes_no_output_is_reset: Cell::everywhere,
        a_peer_that_takes_output_slowly_gets_all_of_it: Cell::everywhere,
        the_connection_that_holds_most_memory_is_reset_and_others_are_served: Cell::everywhere,
        a_connection_above_its_share_is_not_read_while_memory_is_tight: shares_memory,
    ]
}

/// Whether several connections of handlers share the memory of one process.
fn shares_memory(cell: &Cell) -> bool {
    cell.has_handlers() && cell.serves_beside() && !cell.forks()
}

/// More than the kernel buffers.
const MUCH: usize = 32 << 20;

/// Reads until the connection is reset; returns how much came before.
#[track_caller]
fn read_until_reset(client: &mut Stream) -> usize {
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match client.socket.read(&mut buffer) {
            Ok(0) => panic!("it ends in order, after {total} bytes"),
            Ok(count) => total += count,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "after {total} bytes");
                return total;
            }
        }
    }
}

fn a_peer_that_takes_no_output_is_reset(cell: &Cell) {
    let server = cell.start("write=300");
    let mut client = server.connect_proven();
    client.send(format!("big {MUCH}\n"));
    server.expect_counter("stalled_writes", 1);
    assert!(read_until_reset(&mut client) < MUCH);
    drop(client);
    server.expect_to_serve();
    server.expect_counter("stalled_writes", 1);
}

fn a_peer_that_takes_output_slowly_gets_all_of_it(cell: &Cell) {
    let server = cell.start("write=1000");
    let mut client = server.connect_proven();
    client.send(format!("big {MUCH}\n"));
    let mut buffer = vec![0; 1 << 20];
    // All of it takes longer than the timeout.
    let mut total = 0;
    while total < MUCH {
        sleep(Duration::from_millis(50));
        total += client.socket.read(&mut buffer).unwrap();
    }
    drop(client);
    server.expect_to_serve();
    assert_eq!(server.counter("stalled_writes"), 0);
}

fn the_connection_that_holds_most_memory_is_reset_and_others_are_served(cell: &Cell) {
    let server = cell.start("memory=8000000");
    let mut quick = cell.serves_beside().then(|| server.connect_proven());
    let mut heavy = server.connect_proven();
    heavy.send(format!("gathered {MUCH}\n"));
    server.expect_counter("over_memory", 1);
    read_until_reset(&mut heavy);
    drop(heavy);
    if let Some(client) = &mut quick {
        client.send("still here\n").expect("still here\n");
    }
    drop(quick);
    server.expect_to_serve();
    server.expect_counter("over_memory", 1);
}

fn a_connection_above_its_share_is_not_read_while_memory_is_tight(cell: &Cell) {
    let server = cell.start("memory=4000000");
    let mut heavy = server.connect();
    let part = vec![b'x'; 1_500_000];
    heavy.send(&part);
    let held = || server.counter("memory_held");
    process::eventually("the part is held", || held() >= 1_500_000);
    let mut others = Vec::new();
    while held() < 3_000_000 {
        let before = held();
        let mut other = server.connect();
        other.send(vec![b'y'; 200_000]);
        process::eventually("its part is held", || held() >= before + 200_000);
        others.push(other);
    }
    // A read that waits for input is not taken back; after it, the rest is not read.
    heavy.send([b'x'; 1000]);
    sleep(Duration::from_millis(100));
    heavy.send("\n");
    heavy.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let nothing = heavy.socket.read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
    server.connect_proven();
    drop(others);
    heavy.socket.set_read_timeout(Some(process::DEADLINE)).unwrap();
    heavy.expect([&part[..], &[b'x'; 1000], b"\n"].concat());
    drop(heavy);
    server.expect_counter("memory_pauses", 1);
    assert_eq!(server.counter("over_memory"), 0);
    server.expect_to_serve();
}
