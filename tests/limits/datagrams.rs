//! The limit on the replies to a datagram.

use super::process::Datagrams;
use super::server::{Cell, TestServer};
use super::{Property, properties};

pub(super) fn properties() -> Vec<Property> {
    properties![
        replies_above_the_ratio_are_dropped_and_others_are_sent: Cell::everywhere,
        replies_of_a_datagram_are_counted_together: Cell::has_handlers,
        large_replies_are_counted_and_sent_without_a_limit: Cell::everywhere,
    ]
}

fn client(server: &TestServer) -> Datagrams {
    Datagrams::unbound(&server.process.urls[0])
}

fn replies_above_the_ratio_are_dropped_and_others_are_sent(cell: &Cell) {
    let server = cell.start_at("udp://127.0.0.1:0", "ratio=5");
    let client = client(&server);
    let length = if cell.blocking { 34 } else { 33 };
    client.send("big 101").send("big    34").expect(vec![b'b'; length]);
    expect_counter(cell, &server, "over_reply_ratio", 1);
    expect_counter(cell, &server, "amplified", 2);
    client.send("hello").expect(echo(cell, "hello"));
    client.expect_nothing_else();
    expect_counter(cell, &server, "over_reply_ratio", 1);
}

/// Waits until a counter has this value. The counts of a child process are not published.
fn expect_counter(cell: &Cell, server: &TestServer, name: &str, value: u64) {
    server.expect_counter(name, if cell.forks() { 0 } else { value });
}

/// The answer of a request handler is a line.
fn echo(cell: &Cell, text: &str) -> String {
    if cell.blocking { format!("{text}\n") } else { text.to_owned() }
}

fn replies_of_a_datagram_are_counted_together(cell: &Cell) {
    let server = cell.start_at("udp://127.0.0.1:0", "ratio=7");
    let client = client(&server);
    client.send("twice").expect([b'1'; 20]);
    expect_counter(cell, &server, "over_reply_ratio", 1);
    client.send("hello").expect("hello");
    client.expect_nothing_else();
}

fn large_replies_are_counted_and_sent_without_a_limit(cell: &Cell) {
    let server = cell.start_at("udp://127.0.0.1:0", "");
    let client = client(&server);
    let length = if cell.blocking { 1000 } else { 999 };
    client.send("big 1000").expect(vec![b'b'; length]);
    expect_counter(cell, &server, "amplified", 1);
    client.send("hello").expect(echo(cell, "hello"));
    expect_counter(cell, &server, "over_reply_ratio", 0);
}
