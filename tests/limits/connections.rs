//! The limits on the number of connections, and what happens to silent ones.

use std::time::{Duration, Instant};

use super::process::{DEADLINE, Stream};
use super::server::Cell;
use super::{Property, properties};

pub(super) fn properties() -> Vec<Property> {
    properties![
        the_oldest_silent_connection_is_closed_for_a_client_if_the_listener_is_full:
            Cell::serves_beside,
        the_oldest_silent_connection_is_closed_for_a_client_if_the_mode_is_full: has_places,
        connections_that_have_sent_a_message_are_not_closed_for_a_client: has_places,
        silent_connections_are_not_closed_if_clients_wait: has_places,
        a_silent_connection_that_reads_nothing_is_closed_for_a_client: Cell::serves_beside,
        a_silent_connection_that_waits_for_a_thread_is_closed_for_a_client: in_pool,
        a_crowd_of_silent_clients_occupies_no_threads: in_pool,
        a_silent_session_is_closed_for_a_client_that_waits: |cell| cell.mode == "inline",
        a_client_is_turned_away_if_the_listener_is_full: Cell::serves_beside,
        one_address_has_so_many_connections: Cell::serves_beside,
    ]
}

/// Whether the mode limits the number of its connections.
fn has_places(cell: &Cell) -> bool {
    matches!(cell.mode, "threading" | "pool" | "forking")
}

fn in_pool(cell: &Cell) -> bool {
    cell.mode == "pool"
}

const SILENT: &str = "too many connections, and this one sent no whole message";

/// The first of two silent connections gives way to a third client.
fn the_oldest_gives_way(cell: &Cell, setup: &str) {
    let server = cell.start(setup);
    let mut oldest = server.connect();
    oldest.send("in pa");
    server.expect_accepted(1);
    let mut younger = server.connect();
    server.expect_accepted(2);
    let begun = Instant::now();
    let mut third = server.connect_proven();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(String::from_utf8(oldest.read_to_end()).unwrap(), cell.words(SILENT));
    drop(oldest);
    server.expect_counter("closed_silent", 1);
    younger.send("hello\n").expect("hello\n");
    third.send("again\n").expect("again\n");
    drop((younger, third));
    server.expect_to_serve();
    server.expect_counter("closed_silent", 1);
}

fn the_oldest_silent_connection_is_closed_for_a_client_if_the_listener_is_full(cell: &Cell) {
    the_oldest_gives_way(cell, "connections=2");
}

fn the_oldest_silent_connection_is_closed_for_a_client_if_the_mode_is_full(cell: &Cell) {
    the_oldest_gives_way(cell, "places=2");
}

fn connections_that_have_sent_a_message_are_not_closed_for_a_client(cell: &Cell) {
    let server = cell.start("places=2");
    let (mut one, mut other) = (server.connect_proven(), server.connect_proven());
    let mut third = server.connect();
    third.send("hello\n");
    expect_silence(&mut third, Duration::from_millis(1200));
    one.send("here\n").expect("here\n");
    other.send("here\n").expect("here\n");
    drop(one);
    third.expect("hello\n");
    drop((other, third));
    server.expect_to_serve();
    assert_eq!(server.counter("closed_silent"), 0);
}

fn silent_connections_are_not_closed_if_clients_wait(cell: &Cell) {
    let server = cell.start("places=1 wait");
    let mut silent = server.connect();
    server.expect_accepted(1);
    let mut second = server.connect();
    second.send("hello\n");
    expect_silence(&mut second, Duration::from_millis(1200));
    silent.send("hello\n").expect("hello\n");
    drop(silent);
    second.expect("hello\n");
    drop(second);
    server.expect_to_serve();
    assert_eq!(server.counter("closed_silent"), 0);
}

fn expect_silence(client: &mut Stream, time: Duration) {
    client.socket.set_read_timeout(Some(time)).unwrap();
    let error = std::io::Read::read(&mut client.socket, &mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    client.socket.set_read_timeout(Some(DEADLINE)).unwrap();
}

fn a_silent_connection_that_reads_nothing_is_closed_for_a_client(cell: &Cell) {
    const MUCH: usize = 32 << 20;
    let server = cell.start(&format!("connections=1 greet={MUCH}"));
    let mut silent = server.connect();
    server.expect_accepted(1);
    let mut second = server.connect();
    let mut greeting = vec![0; MUCH];
    std::io::Read::read_exact(&mut second.socket, &mut greeting).unwrap();
    second.send("hello\n").expect("hello\n");
    silent.expect_gone();
    drop((silent, second));
    server.expect_counter("closed_silent", 1);
    server.expect_counter("open", 1);
}

fn a_silent_connection_that_waits_for_a_thread_is_closed_for_a_client(cell: &Cell) {
    let server = cell.start("workers=1 queue=9 connections=3");
    let mut first = server.connect_proven();
    let mut silent = server.connect();
    server.expect_accepted(2);
    let mut other = server.connect();
    server.expect_accepted(3);
    let mut fourth = server.connect();
    fourth.send("hello\n");
    assert_eq!(String::from_utf8(silent.read_to_end()).unwrap(), cell.words(SILENT));
    first.send("still here\n").expect("still here\n");
    other.send("hello\n");
    drop(first);
    other.expect("hello\n");
    drop((silent, other));
    fourth.expect("hello\n");
    drop(fourth);
    server.expect_counter("closed_silent", 1);
    server.expect_to_serve();
}

fn a_crowd_of_silent_clients_occupies_no_threads(cell: &Cell) {
    let server = cell.start("workers=4");
    let crowd: Vec<_> = (0..12).map(|_| server.connect()).collect();
    server.expect_accepted(12);
    let begun = Instant::now();
    let client = server.connect_proven();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop((crowd, client));
    assert!(server.counter("closed_silent") >= 9);
    server.expect_to_serve();
}

fn a_silent_session_is_closed_for_a_client_that_waits(cell: &Cell) {
    let server = cell.start("");
    let mut alone = server.connect();
    std::thread::sleep(Duration::from_millis(1200));
    alone.send("hello\n").expect("hello\n");
    let mut waiting = server.connect();
    waiting.send("hello\n");
    expect_silence(&mut waiting, Duration::from_millis(1200));
    alone.send("hello\n").expect("hello\n");
    drop(alone);
    waiting.expect("hello\n");
    drop(waiting);
    assert_eq!(server.counter("closed_silent"), 0);
    let mut silent = server.connect();
    silent.send("in pa");
    let mut client = server.connect();
    client.send("hello\n").expect("hello\n");
    assert_eq!(String::from_utf8(silent.read_to_end()).unwrap(), cell.words(SILENT));
    drop((silent, client));
    server.expect_counter("closed_silent", 1);
    server.expect_to_serve();
}

fn a_client_is_turned_away_if_the_listener_is_full(cell: &Cell) {
    let server = cell.start("connections=1 turn_away");
    let first = server.connect_proven();
    server.connect().expect("full\n").expect_end();
    server.expect_counter("turned_away", 1);
    drop(first);
    server.expect_counter("open", 1);
    server.expect_to_serve();
    server.expect_counter("turned_away", 1);
}

fn one_address_has_so_many_connections(cell: &Cell) {
    let server = cell.start("address=2");
    let (one, mut other) = (server.connect_proven(), server.connect_proven());
    server.connect().expect_gone();
    server.expect_counter("over_address", 1);
    other.send("still here\n").expect("still here\n");
    drop(one);
    server.expect_counter("open", 2);
    server.connect_proven();
    drop(other);
    server.expect_counter("open", 1);
    server.expect_to_serve();
    server.expect_counter("over_address", 1);
}
