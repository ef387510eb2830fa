//! Datagrams under every mode, with servers that are processes of their own: whole or told to be
//! cut, each its own request, answered by what the handler sends and by nothing else, and undisturbed
//! by peers that are gone, nameless or deaf.

#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::Read;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use process::{DEADLINE, Datagrams, Gate, Process, announce, eventually, wait_at_gate};
use runner::{Test, test};
use socket2::SockAddr;
use socketserver::{Context, Endpoint, Forking, Handler, HandlerResult, Mode, Peer, Pool, Server};

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
                let set = cx.set_idle_timeout(std::time::Duration::from_secs(1));
                cx.send(format!("{set:?}").as_bytes())
            }
            b"!sender" => {
                let error = cx.sender().map(drop);
                cx.send(format!("{error:?}").as_bytes())
            }
            b"!peer" => cx.send(cx.peer().to_string().as_bytes()),
            b"!print" => {
                println!("{:?} is shown as {}", cx.peer(), cx.peer());
                Ok(())
            }
            _ if message.starts_with(b"!gate ") => {
                wait_at_gate(Path::new(OsStr::from_bytes(&message[b"!gate ".len()..])));
                Ok(())
            }
            _ if cx.is_truncated() => cx.send(format!("cut to {}", message.len()).as_bytes()),
            _ => cx.send(message),
        }
    }
}

fn serve(arguments: &[String]) {
    let [url, mode, size, options @ ..] = arguments else { panic!("what to serve") };
    if url == NAMESPACE {
        return in_a_namespace(mode.parse().unwrap());
    }
    let mut server = Server::new().unwrap();
    let mut builder = Server::endpoint(&url.parse().unwrap()).unwrap();
    if let Ok(size) = size.parse() {
        builder = builder.max_packet_size(size);
    }
    let mut mode: Mode = mode.parse().unwrap();
    let mut stamped = false;
    for option in options {
        match option.as_str() {
            "asked address" => builder = builder.packet_info(true),
            "dual stack" => builder = builder.dual_stack(true),
            "stamped" => stamped = true,
            "two children" => mode = Mode::Forking(Forking::default().max_children(2)),
            "one thread" => mode = Mode::Pool(Pool::new(1)),
            other => panic!("not an option: {other}"),
        }
    }
    let builder = builder.bind().unwrap();
    if stamped {
        stamp(builder.socket().unwrap().as_raw_fd());
    }
    let service = builder.mode(mode).service(|_: &Peer| Asked);
    server.add(service.unwrap()).unwrap();
    server.stop_on_signals().unwrap();
    announce(&server.addresses());
    server.serve_forever().unwrap();
    let counters = server.counters();
    println!("datagrams {} truncated {}", counters.datagrams, counters.truncated);
    println!("connections {} closed {}", counters.accepted, counters.closed);
    println!("unsent {}", counters.unsent);
}

/// Has the kernel tell when each datagram came, in a control message of its own.
#[allow(unsafe_code)] // the standard library sets no such option
fn stamp(socket: RawFd) {
    let on: libc::c_int = 1;
    let size = size_of_val(&on) as libc::socklen_t;
    for option in [libc::SO_TIMESTAMP, libc::SO_RXQ_OVFL] {
        // SAFETY: setsockopt reads the one integer that it is given.
        let set = unsafe {
            libc::setsockopt(socket, libc::SOL_SOCKET, option, (&raw const on).cast(), size)
        };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}

fn start(url: &str, mode: Mode, size: &str) -> Process {
    Process::start(1, &[url, mode.name(), size])
}

fn start_with(url: &str, mode: Mode, options: &[&str]) -> Process {
    Process::start(1, &[&[url, mode.name(), "default"], options].concat())
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
    let mut server = start(UNIX, mode, "default");
    let (nameless, client) = (Datagrams::unbound(server.url()), server.datagrams());
    for _ in 0..20 {
        nameless.send("to nobody");
    }
    client.send("hello").expect("hello");
    nameless.send("!print");
    assert_eq!(server.line(), "Unnamed is shown as unnamed");
    server.terminate();
    server.expect_success();
    let lines = server.rest();
    assert_eq!(lines[0], "datagrams 22 truncated 0");
    // Children do not count.
    if mode.name() != "forking" {
        assert_eq!(lines[2], "unsent 20");
    }
}

fn a_unix_stream_client_without_a_name_is_unnamed(mode: Mode) {
    let mut server = start("unix://{dir}/socket", mode, "default");
    let mut client = server.connect();
    client.send("!print");
    assert_eq!(server.line(), "Unnamed is shown as unnamed");
    client.send("!peer").expect("unnamed");
    client.end().expect_end();
    server.terminate();
    server.expect_success();
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

/// Their queues are full, and they go on asking.
fn fourteen_deaf_unix_peers_hold_up_nobody_else(mode: Mode) {
    let options: &[&str] = if mode.name() == "pool" { &["one thread"] } else { &[] };
    let server = start_with(UNIX, mode, options);
    let client = server.datagrams();
    let deaf: Vec<_> = (0..14).map(|_| server.datagrams()).collect();
    deaf.iter().for_each(fill_queue_of);
    let start = Instant::now();
    deaf.iter().for_each(|each| {
        each.send("unheard");
    });
    client.send("hello").expect("hello");
    assert!(start.elapsed() < 7 * WAIT, "{:?} for fourteen deaf peers", start.elapsed());
    stop(server);
}

fn there_are_no_more_children_than_there_may_be(url: &str) {
    let server = start_with(url, Mode::Forking(Forking::default()), &["two children"]);
    let gate = Gate::at(&server.directory.join("gate"));
    let client = server.datagrams();
    let message = format!("!gate {}", server.directory.join("gate").display());
    // All are there at once when it looks.
    server.signal(libc::SIGSTOP);
    for _ in 0..8 {
        client.send(&message);
    }
    server.signal(libc::SIGCONT);
    let mut held = VecDeque::new();
    for _ in 0..8 {
        held.push_back(gate.expect_arrival());
        assert!(server.children().len() <= 2, "{:?} are children", server.children());
        if held.len() == 2 {
            held.pop_front().unwrap().let_go();
        }
    }
    drop(held);
    assert_eq!(stop(server), "datagrams 8 truncated 0");
}

/// A client that takes replies from the address it has asked alone.
fn connected(from: &str, to: SocketAddr) -> UdpSocket {
    let client = UdpSocket::bind((from, 0)).unwrap();
    client.connect(to).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client
}

fn expect_echo(client: &UdpSocket) {
    client.send(b"hello").unwrap();
    let mut reply = [0; 100];
    assert_eq!(client.recv(&mut reply).expect("a reply"), 5);
}

fn port_of(server: &Process) -> u16 {
    server.url().rsplit_once(':').unwrap().1.parse().unwrap()
}

fn a_reply_comes_from_the_address_that_was_asked(mode: Mode) {
    let server = start_with("udp://0.0.0.0:0", mode, &["asked address"]);
    let port = port_of(&server);
    for asked in ["127.0.0.2", "127.0.0.1"] {
        expect_echo(&connected("127.0.0.1", SocketAddr::new(asked.parse().unwrap(), port)));
    }
    // A broadcast address is not a source: any of the host's will do.
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_broadcast(true).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.send_to(b"all of you", ("127.255.255.255", port)).unwrap();
    client.recv(&mut [0; 100]).expect("a reply");
    stop(server);
}

fn a_dual_stack_socket_replies_from_the_address_that_was_asked(mode: Mode) {
    let server = start_with("udp://[::]:0", mode, &["asked address", "dual stack"]);
    let port = port_of(&server);
    expect_echo(&connected("127.0.0.1", SocketAddr::new([127, 0, 0, 2].into(), port)));
    expect_echo(&connected("::1", SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_broadcast(true).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.send_to(b"all of you", ("127.255.255.255", port)).unwrap();
    client.recv(&mut [0; 100]).expect("a reply");
    stop(server);
}

/// They stand before what tells the address, and are longer than it is.
fn a_reply_comes_from_the_address_that_was_asked_on_a_socket_with_timestamps(mode: Mode) {
    let server = start_with("udp://[::]:0", mode, &["asked address", "stamped"]);
    let client = connected("::1", SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port_of(&server)));
    // All are there at once when it looks.
    server.signal(libc::SIGSTOP);
    for _ in 0..32 {
        client.send(b"hello").unwrap();
    }
    server.signal(libc::SIGCONT);
    for _ in 0..32 {
        assert_eq!(client.recv(&mut [0; 100]).expect("a reply"), 5);
    }
    stop(server);
}

/// As an address to serve at: a network of its own, with two interfaces that are joined, and two
/// addresses on one of them.
const NAMESPACE: &str = "namespace";

const NETWORK: &str = "ip link set lo up && ip link add near type veth peer name far \
    && ip link set near up && ip link set far up \
    && ip -6 address add fe80::7/64 dev near nodad && ip -6 address add fd00::1/64 dev near nodad && ip -6 address add fd00::2/64 dev near nodad";

fn in_a_network_of_its_own_a_reply_comes_from_the_ipv6_address_that_was_asked(mode: Mode) {
    let can = Command::new("unshare").args(["-n", "sh", "-c", NETWORK]).output();
    if !can.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: there is no network to be had for it: {can:?}");
        return;
    }
    let script = format!("{NETWORK} && exec \"$0\" --serve {NAMESPACE} {} default", mode.name());
    let output = Command::new("unshare")
        .args(["-n", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn in_a_namespace(mode: Mode) {
    let server = start_with("udp://[::]:0", mode, &["asked address"]);
    let port = port_of(&server);
    expect_link_local_peer_with_interface(mode);
    for asked in ["fd00::1", "fd00::2"] {
        expect_echo(&connected("::", SocketAddr::new(asked.parse().unwrap(), port)));
    }
    // A group is not a source: any of the host's addresses will do.
    for group in ["ff01::1", "ff02::1"] {
        let to = (format!("{group}%near"), port).to_socket_addrs().unwrap().next().unwrap();
        let client = UdpSocket::bind("[::]:0").unwrap();
        ask_until_answered(&client, &mut [0; 100], || client.send_to(b"all of you", to));
    }
    stop(server);
}

/// Asks again after each second without a reply: a link that has just come up may lose a datagram.
fn ask_until_answered(
    client: &UdpSocket,
    reply: &mut [u8],
    ask: impl Fn() -> std::io::Result<usize>,
) -> usize {
    client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut ask_once = || {
        ask().unwrap();
        client.recv(reply).ok()
    };
    (0..DEADLINE.as_secs()).find_map(|_| ask_once()).expect("a reply")
}

/// It is known by its interface too.
fn expect_link_local_peer_with_interface(mode: Mode) {
    let server = start("udp://[fe80::7%near]:0", mode, "default");
    let to = server.url().strip_prefix("udp://").unwrap().parse::<SocketAddr>().unwrap();
    let client = connected("::", to);
    let mut reply = [0; 100];
    let len = ask_until_answered(&client, &mut reply, || client.send(b"!peer"));
    let shown = str::from_utf8(&reply[..len]).unwrap();
    assert_eq!(shown, client.local_addr().unwrap().to_string());
    assert!(shown.starts_with("[fe80::") && shown.contains('%'), "{shown}");
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
    let udp: [(&str, OfUnix); 4] = [
        (
            "a_reply_comes_from_the_address_that_was_asked",
            a_reply_comes_from_the_address_that_was_asked,
        ),
        (
            "a_dual_stack_socket_replies_from_the_address_that_was_asked",
            a_dual_stack_socket_replies_from_the_address_that_was_asked,
        ),
        (
            "a_reply_comes_from_the_address_that_was_asked_on_a_socket_with_timestamps",
            a_reply_comes_from_the_address_that_was_asked_on_a_socket_with_timestamps,
        ),
        (
            "in_a_network_of_its_own_a_reply_comes_from_the_ipv6_address_that_was_asked",
            in_a_network_of_its_own_a_reply_comes_from_the_ipv6_address_that_was_asked,
        ),
    ];
    let unix: [(&str, OfUnix); 6] = [
        (
            "fourteen_deaf_unix_peers_hold_up_nobody_else",
            fourteen_deaf_unix_peers_hold_up_nobody_else,
        ),
        (
            "a_unix_stream_client_without_a_name_is_unnamed",
            a_unix_stream_client_without_a_name_is_unnamed,
        ),
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
        for (name, check) in udp {
            tests.push(test(format!("udp::{mode}::{name}"), move || check(mode)));
        }
        for (name, check) in unix {
            tests.push(test(format!("unixgram::{mode}::{name}"), move || check(mode)));
        }
    }
    for (family, url) in [("udp", UDP), ("unixgram", UNIX)] {
        tests.push(test(
            format!("{family}::forking::there_are_no_more_children_than_there_may_be"),
            move || there_are_no_more_children_than_there_may_be(url),
        ));
    }
    tests
}

fn main() -> ExitCode {
    let Some(arguments) = runner::arguments_unless_serving(serve) else {
        return ExitCode::SUCCESS;
    };
    runner::run(tests(), arguments.into_iter()).0
}
