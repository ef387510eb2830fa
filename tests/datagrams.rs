//! Datagrams under every mode, with servers that are processes of their own: whole or told to be
//! cut, each its own request, answered by what the handler sends and by nothing else, and undisturbed
//! by peers that are gone, nameless or deaf.

#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;

use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use process::{Datagrams, Process, announce, eventually};
use runner::{Test, test};
use socket2::SockAddr;
use socketserver::{Context, Endpoint, Handler, HandlerResult, Mode, Peer, Server};

const UDP: &str = "udp://127.0.0.1:0";
const UNIX: &str = "unixgram://{dir}/socket";

/// The receive size of the servers that are told to cut.
const SHORT: usize = 100;

/// How long a reply waits for room at its peer's.
const WAIT: Duration = Duration::from_millis(500);

// The server

struct Asked;

impl Handler for Asked {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        match message {
            b"!silence" => Ok(()),
            b"!three" => ["one", "", "three"].iter().try_for_each(|each| cx.send(each.as_bytes())),
            b"!timeout" => {
                let set = cx.set_timeout(std::time::Duration::from_secs(1));
                cx.send(format!("{set:?}").as_bytes())
            }
            b"!sender" => {
                let error = cx.sender().map(drop);
                cx.send(format!("{error:?}").as_bytes())
            }
            b"!peer" => cx.send(cx.peer().to_string().as_bytes()),
            _ if cx.is_truncated() => cx.send(format!("cut to {}", message.len()).as_bytes()),
            _ => cx.send(message),
        }
    }
}

fn serve(arguments: &[String]) {
    let [url, mode, size] = arguments else { panic!("what to serve") };
    let mut server = Server::new().unwrap();
    let mut builder = Server::listen(&url.parse().unwrap()).unwrap();
    if let Ok(size) = size.parse() {
        builder = builder.max_packet_size(size);
    }
    let service = builder.dispatch(mode.parse::<Mode>().unwrap()).service(|_: &Peer| Asked);
    server.add(service.unwrap()).unwrap();
    server.stop_on_signals().unwrap();
    announce(&server.addresses());
    server.serve_forever().unwrap();
    let counters = server.counters();
    println!("datagrams {} truncated {}", counters.datagrams, counters.truncated);
    println!("connections {} closed {}", counters.accepted, counters.closed);
    println!("unsent {}", counters.unsent);
}

fn start(url: &str, mode: Mode, size: &str) -> Process {
    Process::start(1, &[url, mode.name(), size])
}

/// Stops it; what it has counted of datagrams. A datagram is no connection, whatever becomes of it.
fn stop(mut server: Process) -> String {
    server.terminate();
    server.expect_success();
    let lines = server.rest();
    assert_eq!(lines[1], "connections 0 closed 0");
    lines[0].clone()
}

// The tests

fn every_size_comes_back_whole(url: &str, mode: Mode) {
    let server = start(url, mode, "default");
    let client = server.datagrams();
    let mut sizes = vec![0, 1, 1400, 8192, 9000, 65_507];
    if url == UNIX {
        sizes.extend([65_508, 100_000, 150_000]);
    }
    for &size in &sizes {
        let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        client.send(&bytes).expect(&bytes);
    }
    assert_eq!(stop(server), format!("datagrams {} truncated 0", sizes.len()));
}

fn one_that_is_cut_says_so(url: &str, mode: Mode) {
    let server = start(url, mode, &SHORT.to_string());
    let client = server.datagrams();
    client.send(vec![b'x'; SHORT]).expect(vec![b'x'; SHORT]);
    client.send(vec![b'x'; SHORT + 1]).expect("cut to 100");
    client.send(vec![b'x'; 5000]).expect("cut to 100");
    client.send("whole again").expect("whole again");
    assert_eq!(stop(server), "datagrams 4 truncated 2");
}

fn what_is_answered_is_what_the_handler_sends(url: &str, mode: Mode) {
    let server = start(url, mode, "default");
    let client = server.datagrams();
    client.send("!silence").send("hello").expect("hello");
    client.send("!three").expect("one").expect("").expect("three");
    client.send("").expect("");
    client.send("!silence").send("").expect("");
    client.expect_nothing_else();
    stop(server);
}

fn what_a_datagram_has_not_is_a_typed_error(url: &str, mode: Mode) {
    let server = start(url, mode, "default");
    let client = server.datagrams();
    client.send("!timeout").expect("Err(DatagramTimeout)");
    client.send("!sender").expect("Err(DatagramSender)");
    stop(server);
}

fn the_peer_is_known_by_its_address(url: &str, mode: Mode) {
    let server = start(url, mode, "default");
    let client = server.datagrams();
    let expected = match &client.path {
        Some(path) => path.display().to_string(),
        None => {
            client.send("bound now").expect("bound now");
            let port = client.socket.local_addr().unwrap().as_socket().unwrap().port();
            format!("127.0.0.1:{port}")
        }
    };
    client.send("!peer").expect(expected);
    stop(server);
}

/// Their ports are closed, their paths unlinked.
fn three_hundred_peers_that_vanish_change_nothing(url: &str, mode: Mode) {
    let server = start(url, mode, "default");
    let patient = server.datagrams();
    for round in 0..300 {
        let gone = server.datagrams();
        gone.send("who will be gone when it is answered");
        let path = gone.path.clone();
        drop(gone);
        if let Some(path) = path {
            std::fs::remove_file(path).unwrap();
        }
        if round % 10 == 0 {
            patient.send("still there").expect("still there");
        }
    }
    patient.send("still there").expect("still there");
    if mode.name() == "forking" {
        eventually("all children are reaped", || server.children().is_empty());
    }
    assert_eq!(stop(server), "datagrams 331 truncated 0");
}

fn a_nameless_unix_client_is_served_and_not_answered(mode: Mode) {
    let server = start(UNIX, mode, "default");
    let (nameless, client) = (Datagrams::unbound(server.url()), server.datagrams());
    for _ in 0..20 {
        nameless.send("to nobody");
    }
    client.send("hello").expect("hello");
    assert_eq!(stop(server), "datagrams 21 truncated 0");
}

/// A client that does not read.
fn fill_queue_of(deaf: &Datagrams) {
    let path = deaf.path.as_ref().unwrap();
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"noise", path).is_ok() {}
}

/// Its queue is full from its own doing, and stays so.
fn a_deaf_unix_peer_is_its_own_trouble(mode: Mode) {
    let server = start(UNIX, mode, "default");
    let (deaf, client) = (server.datagrams(), server.datagrams());
    fill_queue_of(&deaf);
    for _ in 0..5 {
        deaf.send("unheard");
    }
    for _ in 0..20 {
        client.send("hello").expect("hello");
    }
    stop(server);
}

/// What it is sent is waited with once, not each time.
fn a_deaf_unix_peer_costs_one_wait(mode: Mode) {
    // Under forking each is served by a process of its own, which knows nothing of the others.
    if mode.name() == "forking" {
        return;
    }
    let server = start(UNIX, mode, "default");
    let (deaf, client) = (server.datagrams(), server.datagrams());
    fill_queue_of(&deaf);
    let start = Instant::now();
    for _ in 0..400 {
        deaf.send("unheard");
    }
    client.send("hello").expect("hello");
    assert!(start.elapsed() < 10 * WAIT, "{:?} for one deaf peer", start.elapsed());
    // As soon as it reads it is answered again.
    deaf.socket.set_nonblocking(true).unwrap();
    eventually("who reads is answered again", || {
        let mut reply = [0; 100];
        deaf.send("heard");
        std::iter::from_fn(|| (&deaf.socket).read(&mut reply).ok()).any(|count| count == 5)
    });
    stop(server);
}

/// The queue of a client that has connected its socket has no limit: what it does not read fills
/// the server's own send buffer, until it goes.
fn who_connects_and_never_reads_silences_the_server_only_while_it_stays(mode: Mode) {
    let mut server = start(UNIX, mode, "default");
    let (deaf, client) = (server.datagrams(), server.datagrams());
    let Endpoint::UnixDatagram(path) = server.url().parse().unwrap() else { unreachable!() };
    deaf.socket.connect(&SockAddr::unix(path).unwrap()).unwrap();
    // Several times what the buffer takes.
    let large = vec![b'x'; 20_000];
    for _ in 0..50 {
        deaf.socket.send(&large).unwrap();
    }
    drop(deaf);
    client.send("hello").expect("hello");
    for _ in 0..50 {
        client.send(&large).expect(&large);
    }
    server.terminate();
    server.expect_success();
    let lines = server.rest();
    assert_eq!(lines[0], "datagrams 101 truncated 0");
    // Children do not count.
    if mode.name() != "forking" {
        let unsent: usize = lines[2].strip_prefix("unsent ").unwrap().parse().unwrap();
        assert!((1..=50).contains(&unsent), "{unsent} replies were lost");
    }
}

fn tests() -> Vec<Test> {
    type OfBoth = fn(&str, Mode);
    type OfUnix = fn(Mode);
    let both: [(&str, OfBoth); 6] = [
        ("every_size_comes_back_whole", every_size_comes_back_whole),
        ("one_that_is_cut_says_so", one_that_is_cut_says_so),
        ("what_is_answered_is_what_the_handler_sends", what_is_answered_is_what_the_handler_sends),
        ("what_a_datagram_has_not_is_a_typed_error", what_a_datagram_has_not_is_a_typed_error),
        ("the_peer_is_known_by_its_address", the_peer_is_known_by_its_address),
        (
            "three_hundred_peers_that_vanish_change_nothing",
            three_hundred_peers_that_vanish_change_nothing,
        ),
    ];
    let unix: [(&str, OfUnix); 4] = [
        (
            "a_nameless_unix_client_is_served_and_not_answered",
            a_nameless_unix_client_is_served_and_not_answered,
        ),
        ("a_deaf_unix_peer_is_its_own_trouble", a_deaf_unix_peer_is_its_own_trouble),
        ("a_deaf_unix_peer_costs_one_wait", a_deaf_unix_peer_costs_one_wait),
        (
            "who_connects_and_never_reads_silences_the_server_only_while_it_stays",
            who_connects_and_never_reads_silences_the_server_only_while_it_stays,
        ),
    ];
    let mut tests = Vec::new();
    for mode in Mode::all() {
        for (name, check) in both {
            tests.push(test(format!("udp::{mode}::{name}"), move || check(UDP, mode)));
            tests.push(test(format!("unixgram::{mode}::{name}"), move || check(UNIX, mode)));
        }
        for (name, check) in unix {
            tests.push(test(format!("unixgram::{mode}::{name}"), move || check(mode)));
        }
    }
    tests
}

fn main() -> ExitCode {
    let Some(arguments) = runner::arguments_unless_serving(serve) else {
        return ExitCode::SUCCESS;
    };
    runner::run(tests(), arguments.into_iter()).0
}
