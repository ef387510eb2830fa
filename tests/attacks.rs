//! What hostile peers try against the limits of a server: each is held to its limit, nobody else
//! notices, and nothing is left afterwards.

mod support;

use std::io::Write;
use std::net::Shutdown;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use socketserver::{LengthPrefixed, Limits, Lines, Server, handler_fn};
use support::*;

/// A short write timeout.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// More than the socket buffers of both sides.
const LONG: usize = 16 << 20;

#[test]
fn a_peer_that_has_taken_all_late_output_may_be_silent_for_longer_than_the_write_timeout() {
    let server = start_server(
        Server::tcp("127.0.0.1:0")
            .unwrap()
            .framing(Lines::default())
            .limits(Limits::default().write_timeout(WRITE_TIMEOUT))
            .serve(|_| {
                handler_fn(|line: &[u8], cx| match line {
                    b"long" => cx.send(&vec![b'x'; LONG]),
                    _ => cx.send(line),
                })
            })
            .unwrap(),
    );
    let mut client = server.connect();
    client.send("long\n");
    thread::sleep(WRITE_TIMEOUT / 4);
    client.expect_reply(vec![b'x'; LONG]).expect_reply("\n");
    thread::sleep(WRITE_TIMEOUT * 3);
    client.send("short\n").expect_reply("short\n");
    assert_eq!(server.counters().stalled_writes, 0);
}

/// The limit of the memory of all connections.
const MEMORY: usize = 4 << 20;

/// A server of messages with a length prefix that may hold [`MEMORY`] bytes.
fn memory_limited() -> TestServer {
    let mut server = Server::tcp("127.0.0.1:0")
        .unwrap()
        .framing(LengthPrefixed::default())
        .serve(|_| handler_fn(|message: &[u8], cx| cx.send(message)))
        .unwrap();
    server.max_memory(MEMORY);
    start_server(server)
}

/// A message of so many bytes.
fn framed(length: usize) -> Vec<u8> {
    [&(length as u32).to_be_bytes()[..], &vec![b'x'; length]].concat()
}

/// Sends the first half of a message of so many bytes, or as much of it as the server takes.
fn send_half(client: &mut Client, length: usize) {
    client.stream.set_nonblocking(true).unwrap();
    let _ = client.stream.write(&framed(length)[..length / 2]);
    client.stream.set_nonblocking(false).unwrap();
}

#[test]
fn halves_of_messages_never_hold_more_memory_than_the_limit_and_leave_nothing() {
    let server = memory_limited();
    let handle = server.handle();
    let (stop, stopped) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        let mut most = 0;
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            most = most.max(handle.counters().memory_held);
        }
        most
    });
    let mut quick = server.connect();
    let mut attackers: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for attacker in &mut attackers {
        send_half(attacker, 1 << 20);
    }
    for _ in 0..50 {
        quick.send(framed(5)).expect_reply(framed(5));
    }
    server.wait_for("memory is tight", |counters| counters.memory_held > (MEMORY / 2) as u64);
    drop(attackers);
    // Some have ended with bytes that the server has not read: it cannot see their end.
    server.wait_for("memory is free again", |counters| {
        counters.memory_held < (MEMORY / 4 * 3) as u64
    });
    quick.send(framed(5)).expect_reply(framed(5));
    stop.send(()).unwrap();
    let most = watch.join().unwrap();
    // One read can grow one buffer to the double before the limit is checked.
    assert!(most < (MEMORY + (1 << 20)) as u64, "{most} bytes were held");
}

#[test]
fn peers_that_are_not_read_because_memory_is_tight_and_then_end_are_closed() {
    let server = memory_limited();
    let mut attackers: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for attacker in &mut attackers {
        send_half(attacker, 2 << 20);
    }
    server.wait_for("some are not read", |counters| counters.memory_pauses > 0);
    for attacker in &mut attackers {
        let _ = attacker.stream.shutdown(Shutdown::Write);
    }
    server.wait_for("all are closed", |counters| counters.open == 0);
    assert_eq!(server.counters().memory_held, 0);
}

#[test]
fn a_long_message_is_served_while_others_hold_their_memory_and_send_nothing() {
    let server = memory_limited();
    let mut attackers: Vec<_> = (0..52).map(|_| server.connect()).collect();
    for attacker in &mut attackers {
        send_half(attacker, 64 << 10);
    }
    server.wait_for("memory is tight", |counters| counters.memory_held > (MEMORY / 4 * 3) as u64);
    // More than its share of the memory, which each of the others keeps to.
    let message = framed(MEMORY / 16);
    let mut client = server.connect();
    client.send(&message).expect_reply(&message);
    assert!(server.counters().over_memory > 0);
}

#[test]
fn a_peer_whose_first_read_ends_within_its_second_message_is_not_silent() {
    let server = start_server(
        Server::tcp("127.0.0.1:0")
            .unwrap()
            .framing(Lines::default())
            .limits(Limits::default().max_connections(1))
            .serve(|_| handler_fn(|line: &[u8], cx| cx.send(line)))
            .unwrap(),
    );
    let mut first = server.connect();
    first.send("one\ntw").expect_reply("one\n");
    let mut second = server.connect();
    second.send("three\n");
    server.wait_for("the second client waits", |counters| counters.full > 0);
    second.expect_silence();
    thread::sleep(Duration::from_secs(1)); // silent connections are closed after half a second
    first.send("o\n").expect_reply("two\n");
    drop(first);
    second.expect_reply("three\n");
    assert_eq!(server.counters().closed_silent, 0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_peer_that_never_takes_an_answer_which_the_kernel_has_taken_whole_is_cut() {
    let server = start_server(
        Server::tcp("127.0.0.1:0")
            .unwrap()
            .framing(Lines::default())
            .limits(Limits::default().write_timeout(WRITE_TIMEOUT))
            .serve(|_| handler_fn(|line: &[u8], cx| cx.send(&vec![b'x'; line.len() * 8])))
            .unwrap(),
    );
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.address().into()).unwrap();
    let line = [&[b'x'; 1000][..], b"\n"].concat();
    assert_eq!(socket.send(&line).unwrap(), line.len());
    server.wait_for("the kernel has taken the answer", |counters| counters.bytes_out >= 4_000);
    server.wait_for("the connection is closed", |counters| counters.open == 0);
    // The kernel may be short of buffers: then the event loop holds the rest.
    let counters = server.counters();
    assert_eq!(counters.disconnects + counters.stalled_writes, 1);
}
