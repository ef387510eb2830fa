//! The limits on messages: their time, their size, their number, and the age of a connection.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::process::{DEADLINE, Stream};
use super::server::{Cell, TestServer};
use super::{Property, properties};

pub(super) fn properties() -> Vec<Property> {
    properties![
        a_message_that_takes_too_long_is_cut_while_its_bytes_drip: Cell::everywhere,
        a_message_in_time_is_answered_and_between_two_messages_no_time_runs: Cell::everywhere,
        the_deadline_of_a_message_moves_with_its_bytes: Cell::everywhere,
        a_client_whose_first_message_takes_too_long_is_cut: Cell::everywhere,
        a_client_whose_first_message_is_in_time_stays: Cell::everywhere,
        an_idle_client_is_closed_after_the_idle_timeout: Cell::everywhere,
        too_much_input_without_a_message_ends_the_connection: Cell::everywhere,
        an_old_connection_is_closed_when_its_message_is_answered: Cell::everywhere,
        a_connection_is_closed_after_the_answer_to_its_last_message: Cell::everywhere,
        the_wait_of_a_request_for_a_thread_is_counted: |cell| cell.mode == "pool",
        the_wait_of_a_message_for_a_worker_is_counted_and_shows_an_overload:
            |cell| cell.mode == "offload",
    ]
}

/// Sends one byte after the other until the connection is closed, or `most` is over; returns what the
/// server has sent.
fn drip(client: &mut Stream, most: Duration) -> String {
    let begun = Instant::now();
    let mut received = Vec::new();
    client.socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    while begun.elapsed() < most {
        let _ = std::io::Write::write(&mut client.socket, b"x");
        let mut buffer = [0; 1000];
        match std::io::Read::read(&mut client.socket, &mut buffer) {
            Ok(0) => break,
            Ok(count) => received.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    assert!(begun.elapsed() < most, "it is still open");
    String::from_utf8(received).unwrap()
}

#[track_caller]
fn expect_verdict(server: &TestServer, counter: &str) {
    server.expect_counter(counter, 1);
    server.expect_to_serve();
    server.expect_counter(counter, 1);
}

fn a_message_that_takes_too_long_is_cut_while_its_bytes_drip(cell: &Cell) {
    let server = cell.start("message=250");
    let mut client = server.connect_proven();
    let begun = Instant::now();
    assert_eq!(drip(&mut client, DEADLINE), cell.words("a message took too long"));
    assert!(begun.elapsed() >= Duration::from_millis(250));
    drop(client);
    expect_verdict(&server, "slow_messages");
}

fn a_message_in_time_is_answered_and_between_two_messages_no_time_runs(cell: &Cell) {
    let server = cell.start("message=1000");
    let mut client = server.connect();
    for _ in 0..2 {
        client.send("hel");
        sleep(Duration::from_millis(300));
        client.send("lo\n").expect("hello\n");
        sleep(Duration::from_millis(1300));
    }
    drop(client);
    server.expect_to_serve();
    assert_eq!(server.counter("slow_messages"), 0);
}

fn the_deadline_of_a_message_moves_with_its_bytes(cell: &Cell) {
    let server = cell.start("message=200 rate=1000");
    let mut client = server.connect();
    client.send([b'x'; 2000]); // two seconds more
    sleep(Duration::from_millis(900));
    client.send("\n").expect([&[b'x'; 2000][..], b"\n"].concat());
    drop(client);
    server.expect_to_serve();
    assert_eq!(server.counter("slow_messages"), 0);
}

fn a_client_whose_first_message_takes_too_long_is_cut(cell: &Cell) {
    let server = cell.start("first=250");
    let mut client = server.connect();
    let words = cell.words("the first message took too long");
    assert_eq!(String::from_utf8(client.read_to_end()).unwrap(), words);
    drop(client);
    expect_verdict(&server, "slow_first_messages");
}

fn a_client_whose_first_message_is_in_time_stays(cell: &Cell) {
    let server = cell.start("first=600");
    let mut client = server.connect_proven();
    sleep(Duration::from_millis(800));
    client.send("again\n").expect("again\n");
    drop(client);
    server.expect_to_serve();
    assert_eq!(server.counter("slow_first_messages"), 0);
}

fn an_idle_client_is_closed_after_the_idle_timeout(cell: &Cell) {
    let server = cell.start("idle=250");
    let mut client = server.connect_proven();
    let begun = Instant::now();
    let words = String::from_utf8(client.read_to_end()).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert_eq!(words, if cell.blocking { "ERR timed out\n" } else { "" });
    drop(client);
    // The counts of a child process are not published.
    server.expect_counter("timeouts", if cell.forks() { 0 } else { 1 });
    server.expect_to_serve();
}

fn too_much_input_without_a_message_ends_the_connection(cell: &Cell) {
    let server = cell.start("input=10000");
    let long = [b'x'; 9_000];
    let mut below = server.connect();
    below.send(long).send("\n").expect([&long[..], b"\n"].concat());
    drop(below);
    let mut client = server.connect();
    client.send([b'x'; 10_001]);
    client.expect(cell.words("too much undecoded input"));
    client.expect_gone();
    drop(client);
    expect_verdict(&server, "over_input");
}

fn an_old_connection_is_closed_when_its_message_is_answered(cell: &Cell) {
    let server = cell.start("lifetime=400");
    let mut idle = server.connect_proven();
    let words = cell.words("the connection is too old");
    assert_eq!(String::from_utf8(idle.read_to_end()).unwrap(), words);
    drop(idle);
    let mut busy = server.connect_proven();
    busy.send("hel");
    sleep(Duration::from_millis(600));
    busy.send("lo\n").expect("hello\n").expect(&words).expect_end();
    drop(busy);
    server.expect_counter("over_lifetime", 2);
    server.expect_to_serve();
}

fn a_connection_is_closed_after_the_answer_to_its_last_message(cell: &Cell) {
    let server = cell.start("messages=3");
    let mut client = server.connect_proven();
    client.send("two\n").expect("two\n");
    sleep(Duration::from_millis(100));
    client.send("three\n").expect("three\n").expect(cell.words("too many messages")).expect_end();
    drop(client);
    expect_verdict(&server, "over_messages");
}

fn the_wait_of_a_request_for_a_thread_is_counted(cell: &Cell) {
    let server = cell.start("workers=1 wait");
    let first = server.connect_proven();
    let mut second = server.connect();
    second.send("hello\n");
    server.expect_accepted(2);
    sleep(Duration::from_millis(150));
    drop(first);
    second.expect("hello\n");
    drop(second);
    server.expect_counter("waits_of_100ms", 1);
    assert!(server.counter("longest_wait_us") >= 150_000);
    server.expect_to_serve();
}

fn the_wait_of_a_message_for_a_worker_is_counted_and_shows_an_overload(cell: &Cell) {
    let server = cell.start("workers=1");
    let mut clients: Vec<_> = (0..20).map(|_| server.connect_proven()).collect();
    clients[0].send("overloaded?\n").expect("false\n");
    // Each waits for those before it: this one for much longer than the window, and others wait behind
    // it.
    for client in &mut clients {
        client.send("sleep 40\noverloaded?\n");
    }
    clients[15].expect("sleep 40\ntrue\n");
    clients[19].expect("sleep 40\nfalse\n"); // the queue is empty
    assert!(server.counter("waits_of_100ms") > 0);
    drop(clients);
    server.expect_to_serve();
}
