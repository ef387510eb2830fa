//! A loop whose handlers are slow is overloaded: handlers are told, and new clients can be turned
//! away.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use socketserver::{Accepted, Limits, Lines, Server, WhenFull, handler_fn};
use support::*;

/// A server whose handler takes as many milliseconds as the line says, and answers whether the server
/// is overloaded.
fn slow_server(limits: Limits) -> TestServer {
    let make = |_: &Accepted<'_>| {
        handler_fn(|line, cx| {
            let millis = std::str::from_utf8(line)?.parse()?;
            thread::sleep(Duration::from_millis(millis));
            let answer: &[u8] = if cx.is_overloaded() { b"overloaded" } else { b"not overloaded" };
            cx.send(answer)
        })
    };
    let builder = Server::tcp("127.0.0.1:0").unwrap().framing(Lines::default()).limits(limits);
    start_server(builder.serve(make).unwrap())
}

/// Sends one line after the other until the server answers so.
fn ask_until(client: &mut Client, line: &str, wanted: &str) {
    let deadline = Instant::now() + DEADLINE;
    while client.send(line).read_line() != wanted {
        assert!(Instant::now() < deadline, "never {wanted}");
    }
}

#[test]
fn a_handler_is_told_that_the_loop_is_overloaded_and_that_it_no_longer_is() {
    let server = slow_server(Limits::default());
    let mut client = server.connect();
    assert_eq!(client.send("30\n").read_line(), "not overloaded");
    ask_until(&mut client, "30\n", "overloaded");
    ask_until(&mut client, "0\n", "not overloaded");
    let counters = server.counters();
    assert!(counters.overloaded_turns >= 1 && counters.turns_of_10ms >= 7);
    assert!(counters.longest_turn_us >= 30_000 && counters.longest_turn_us < 20_000_000);
}

#[test]
fn an_overloaded_server_turns_new_clients_away_and_serves_them_again() {
    let limits = Limits::default().when_overloaded(WhenFull::turn_away(*b"busy\n"));
    let server = slow_server(limits);
    let mut client = server.connect();
    ask_until(&mut client, "30\n", "overloaded");
    client.send("30\n30\n30\n30\n30\n30\n30\n30\n30\n30\n30\n30\n");
    let mut turned_away = server.connect();
    assert_eq!(turned_away.read_line(), "busy");
    turned_away.expect_closed();
    for _ in 0..12 {
        client.read_line();
    }
    ask_until(&mut client, "0\n", "not overloaded");
    assert_eq!(server.connect().send("0\n").read_line(), "not overloaded");
    assert!(server.counters().turned_away >= 1 && server.counters().over_load >= 1);
}
