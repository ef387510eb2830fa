//! Datagrams in every mode, with servers in processes of their own: they are received whole or
//! reported as truncated, each is its own request, the replies are what the handler sends, and
//! peers that disappear, have no address or do not read do not affect others.

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
use socketserver::{
    Accepted, Context, Endpoint, Forking, Handler, HandlerResult, Mode, Pool, Server,
};

const UDP: &str = "udp://127.0.0.1:0";
const UNIX: &str = "unixgram://{dir}/socket";

/// The receive size of the servers that truncate.
const SHORT: usize = 100;

/// How long a reply waits for room in its peer's queue.
const WAIT: Duration = Duration::from_millis(500);

// The server

struct EchoWithCommands;

impl Handler for EchoWithCommands {
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
                println!("{:?} is displayed as {}", cx.peer(), cx.peer());
                Ok(())
            }
            _ if message.starts_with(b"!gate ") => {
                wait_at_gate(Path::new(OsStr::from_bytes(&message[b"!gate ".len()..])));
                Ok(())
            }
            _ if cx.is_truncated() => cx.send(format!("truncated to {}", message.len()).as_bytes()),
            _ => cx.send(message),
        }
    }
}

fn serve(arguments: &[String]) {
    let [url, mode, size, options @ ..] = arguments else {
        panic!("wrong arguments: {arguments:?}")
    };
    if url == NAMESPACE {
        return in_a_namespace(mode.parse().unwrap());
    }
    let mut server = Server::new().unwrap();
    let mut builder = Server::endpoint(&url.parse().unwrap()).unwrap();
    if let Ok(size) = size.parse() {
        builder = builder.max_packet_size(size);
    }
    let mut mode: Mode = mode.parse().unwrap();
    let mut timestamps = false;
    for option in options {
        match option.as_str() {
            "reply from destination" => builder = builder.packet_info(true),
            "dual stack" => builder = builder.dual_stack(true),
            "timestamps" => timestamps = true,
            "two children" => mode = Mode::Forking(Forking::default().max_children(2)),
            "one thread" => mode = Mode::Pool(Pool::new(1)),
            other => panic!("not an option: {other}"),
        }
    }
    let builder = builder.bind().unwrap();
    if timestamps {
        enable_timestamps(builder.socket().unwrap().as_raw_fd());
    }
    let service = builder.mode(mode).service(|_: &Accepted<'_>| EchoWithCommands);
    server.add(service.unwrap()).unwrap();
    server.stop_on_signals().unwrap();
    announce(&server.addresses());
    server.serve_forever().unwrap();
    let counters = server.counters();
    println!("datagrams {} truncated {}", counters.datagrams, counters.truncated);
    println!("connections {} closed {}", counters.accepted, counters.closed);
    println!("unsent {}", counters.unsent);
}

/// Has the kernel add the time of arrival and the number of lost datagrams to each datagram, as
/// control messages.
#[allow(unsafe_code)] // the standard library sets no such option
fn enable_timestamps(socket: RawFd) {
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

/// Stops the server; returns its line with the counters of datagrams. Datagrams do not count as
/// connections.
fn stop(mut server: Process) -> String {
    server.terminate();
    server.expect_success();
    let lines = server.rest();
    assert_eq!(lines[1], "connections 0 closed 0");
    lines[0].clone()
}

// The tests

fn a_datagram_of_every_size_comes_back_whole(url: &str, mode: Mode) {
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

fn a_datagram_longer_than_the_receive_size_is_reported_as_truncated(url: &str, mode: Mode) {
    let server = start(url, mode, &SHORT.to_string());
    let client = server.datagrams();
    client.send(vec![b'x'; SHORT]).expect(vec![b'x'; SHORT]);
    client.send(vec![b'x'; SHORT + 1]).expect("truncated to 100");
    client.send(vec![b'x'; 5000]).expect("truncated to 100");
    client.send("whole again").expect("whole again");
    assert_eq!(stop(server), "datagrams 4 truncated 2");
}

fn the_replies_are_exactly_what_the_handler_sends(url: &str, mode: Mode) {
    let server = start(url, mode, "default");
    let client = server.datagrams();
    client.send("!silence").send("hello").expect("hello");
    client.send("!three").expect("one").expect("").expect("three");
    client.send("").expect("");
    client.send("!silence").send("").expect("");
    client.expect_nothing_else();
    stop(server);
}

fn asking_for_a_timeout_or_a_sender_is_a_typed_error(url: &str, mode: Mode) {
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

/// Their ports are closed, and their paths are unlinked.
fn peers_that_disappear_before_their_reply_do_not_affect_others(url: &str, mode: Mode) {
    let server = start(url, mode, "default");
    let other = server.datagrams();
    for round in 0..300 {
        let gone = server.datagrams();
        gone.send("closed before the reply");
        let path = gone.path.clone();
        drop(gone);
        if let Some(path) = path {
            std::fs::remove_file(path).unwrap();
        }
        if round % 10 == 0 {
            other.send("hello").expect("hello");
        }
    }
    other.send("hello").expect("hello");
    if mode.name() == "forking" {
        eventually("all children are reaped", || server.children().is_empty());
    }
    assert_eq!(stop(server), "datagrams 331 truncated 0");
}

fn an_unnamed_unix_client_is_served_without_a_reply(mode: Mode) {
    let mut server = start(UNIX, mode, "default");
    let (unnamed, client) = (Datagrams::unbound(server.url()), server.datagrams());
    for _ in 0..20 {
        unnamed.send("without a reply");
    }
    client.send("hello").expect("hello");
    unnamed.send("!print");
    assert_eq!(server.line(), "Unnamed is displayed as unnamed");
    server.terminate();
    server.expect_success();
    let lines = server.rest();
    assert_eq!(lines[0], "datagrams 22 truncated 0");
    // The counters of a child are not added to the parent's.
    if mode.name() != "forking" {
        assert_eq!(lines[2], "unsent 20");
    }
}

fn a_unix_stream_client_without_a_path_is_unnamed(mode: Mode) {
    let mut server = start("unix://{dir}/socket", mode, "default");
    let mut client = server.connect();
    client.send("!print");
    assert_eq!(server.line(), "Unnamed is displayed as unnamed");
    client.send("!peer").expect("unnamed");
    client.end().expect_end();
    server.terminate();
    server.expect_success();
}

/// Fills the receive queue of a client.
fn fill_queue_of(client: &Datagrams) {
    let path = client.path.as_ref().unwrap();
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"noise", path).is_ok() {}
}

/// Its queue is full, and it does not read.
fn a_unix_peer_that_does_not_read_does_not_affect_others(mode: Mode) {
    let server = start(UNIX, mode, "default");
    let (blocked, client) = (server.datagrams(), server.datagrams());
    fill_queue_of(&blocked);
    for _ in 0..5 {
        blocked.send("unread");
    }
    for _ in 0..20 {
        client.send("hello").expect("hello");
    }
    stop(server);
}

/// Their queues are full, and they send more requests.
fn fourteen_unix_peers_that_do_not_read_do_not_delay_others(mode: Mode) {
    let options: &[&str] = if mode.name() == "pool" { &["one thread"] } else { &[] };
    let server = start_with(UNIX, mode, options);
    let client = server.datagrams();
    let blocked: Vec<_> = (0..14).map(|_| server.datagrams()).collect();
    blocked.iter().for_each(fill_queue_of);
    let start = Instant::now();
    blocked.iter().for_each(|each| {
        each.send("unread");
    });
    client.send("hello").expect("hello");
    assert!(start.elapsed() < 7 * WAIT, "{:?} for fourteen blocked peers", start.elapsed());
    stop(server);
}

fn the_number_of_children_never_exceeds_max_children(url: &str) {
    let server = start_with(url, Mode::Forking(Forking::default()), &["two children"]);
    let gate = Gate::at(&server.directory.join("gate"));
    let client = server.datagrams();
    let message = format!("!gate {}", server.directory.join("gate").display());
    // All of them are in the server's queue when it continues.
    server.signal(libc::SIGSTOP);
    for _ in 0..8 {
        client.send(&message);
    }
    server.signal(libc::SIGCONT);
    let mut held = VecDeque::new();
    for _ in 0..8 {
        held.push_back(gate.expect_arrival());
        assert!(server.children().len() <= 2, "more than two children: {:?}", server.children());
        if held.len() == 2 {
            held.pop_front().unwrap().release();
        }
    }
    drop(held);
    assert_eq!(stop(server), "datagrams 8 truncated 0");
}

/// A client that receives replies only from the address that it sends to.
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

fn a_reply_comes_from_the_destination_address_of_the_request(mode: Mode) {
    let server = start_with("udp://0.0.0.0:0", mode, &["reply from destination"]);
    let port = port_of(&server);
    for asked in ["127.0.0.2", "127.0.0.1"] {
        expect_echo(&connected("127.0.0.1", SocketAddr::new(asked.parse().unwrap(), port)));
    }
    // A broadcast address cannot be a source; the reply comes from any address of the host.
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_broadcast(true).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.send_to(b"hello", ("127.255.255.255", port)).unwrap();
    client.recv(&mut [0; 100]).expect("a reply");
    stop(server);
}

fn a_dual_stack_socket_replies_from_the_destination_address(mode: Mode) {
    let server = start_with("udp://[::]:0", mode, &["reply from destination", "dual stack"]);
    let port = port_of(&server);
    expect_echo(&connected("127.0.0.1", SocketAddr::new([127, 0, 0, 2].into(), port)));
    expect_echo(&connected("::1", SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_broadcast(true).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.send_to(b"hello", ("127.255.255.255", port)).unwrap();
    client.recv(&mut [0; 100]).expect("a reply");
    stop(server);
}

/// The control messages of the timestamps precede that of the address, and are longer.
fn a_socket_with_timestamps_replies_from_the_destination_address(mode: Mode) {
    let server = start_with("udp://[::]:0", mode, &["reply from destination", "timestamps"]);
    let client = connected("::1", SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port_of(&server)));
    // All of them are in the server's queue when it continues.
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

/// In place of a URL: serve in a network namespace with a pair of connected interfaces, one of
/// which has two addresses.
const NAMESPACE: &str = "namespace";

const NETWORK: &str = "ip link set lo up && ip link add near type veth peer name far \
    && ip link set near up && ip link set far up \
    && ip -6 address add fe80::7/64 dev near nodad && ip -6 address add fd00::1/64 dev near nodad && ip -6 address add fd00::2/64 dev near nodad";

fn in_a_network_namespace_a_reply_comes_from_the_ipv6_destination_address(mode: Mode) {
    let can = Command::new("unshare").args(["-n", "sh", "-c", NETWORK]).output();
    if !can.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: cannot create a network namespace: {can:?}");
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
    let server = start_with("udp://[::]:0", mode, &["reply from destination"]);
    let port = port_of(&server);
    expect_link_local_peer_with_interface(mode);
    for asked in ["fd00::1", "fd00::2"] {
        expect_echo(&connected("::", SocketAddr::new(asked.parse().unwrap(), port)));
    }
    // A multicast address cannot be a source; the reply comes from any address of the host.
    for group in ["ff01::1", "ff02::1"] {
        let to = (format!("{group}%near"), port).to_socket_addrs().unwrap().next().unwrap();
        let client = UdpSocket::bind("[::]:0").unwrap();
        send_until_answered(&client, &mut [0; 100], || client.send_to(b"hello", to));
    }
    stop(server);
}

/// Sends again after each second without a reply: a new link may lose a datagram.
fn send_until_answered(
    client: &UdpSocket,
    reply: &mut [u8],
    send: impl Fn() -> std::io::Result<usize>,
) -> usize {
    client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut send_once = || {
        send().unwrap();
        client.recv(reply).ok()
    };
    (0..DEADLINE.as_secs()).find_map(|_| send_once()).expect("a reply")
}

/// A link-local peer is displayed with its interface.
fn expect_link_local_peer_with_interface(mode: Mode) {
    let server = start("udp://[fe80::7%near]:0", mode, "default");
    let to = server.url().strip_prefix("udp://").unwrap().parse::<SocketAddr>().unwrap();
    let client = connected("::", to);
    let mut reply = [0; 100];
    let len = send_until_answered(&client, &mut reply, || client.send(b"!peer"));
    let shown = str::from_utf8(&reply[..len]).unwrap();
    assert_eq!(shown, client.local_addr().unwrap().to_string());
    assert!(shown.starts_with("[fe80::") && shown.contains('%'), "{shown}");
    stop(server);
}

/// Only the first of its replies waits for room.
fn a_unix_peer_that_does_not_read_costs_one_wait(mode: Mode) {
    // Under forking, each child waits: it does not know of the waits of others.
    if mode.name() == "forking" {
        return;
    }
    let server = start(UNIX, mode, "default");
    let (blocked, client) = (server.datagrams(), server.datagrams());
    fill_queue_of(&blocked);
    let start = Instant::now();
    for _ in 0..400 {
        blocked.send("unread");
    }
    client.send("hello").expect("hello");
    assert!(start.elapsed() < 10 * WAIT, "{:?} for one blocked peer", start.elapsed());
    // As soon as it reads, it receives replies again.
    blocked.socket.set_nonblocking(true).unwrap();
    eventually("a peer that reads receives replies again", || {
        let mut reply = [0; 100];
        blocked.send("again");
        std::iter::from_fn(|| (&blocked.socket).read(&mut reply).ok()).any(|count| count == 5)
    });
    stop(server);
}

/// The receive queue of a connected Unix socket has no limit of its own: unread replies fill the
/// server's send buffer until the client closes its socket.
fn a_connected_unix_peer_that_never_reads_blocks_the_server_only_while_it_exists(mode: Mode) {
    let mut server = start(UNIX, mode, "default");
    let (unread, client) = (server.datagrams(), server.datagrams());
    let Endpoint::UnixDatagram(path) = server.url().parse().unwrap() else { unreachable!() };
    unread.socket.connect(&SockAddr::unix(path).unwrap()).unwrap();
    // Several times the size of the buffer.
    let large = vec![b'x'; 20_000];
    for _ in 0..50 {
        unread.socket.send(&large).unwrap();
    }
    drop(unread);
    client.send("hello").expect("hello");
    for _ in 0..50 {
        client.send(&large).expect(&large);
    }
    server.terminate();
    server.expect_success();
    let lines = server.rest();
    assert_eq!(lines[0], "datagrams 101 truncated 0");
    // The counters of a child are not added to the parent's.
    if mode.name() != "forking" {
        let unsent: usize = lines[2].strip_prefix("unsent ").unwrap().parse().unwrap();
        assert!((1..=50).contains(&unsent), "{unsent} replies were lost");
    }
}

fn tests() -> Vec<Test> {
    type WithUrl = fn(&str, Mode);
    type WithoutUrl = fn(Mode);
    let both: [(&str, WithUrl); 6] = [
        ("a_datagram_of_every_size_comes_back_whole", a_datagram_of_every_size_comes_back_whole),
        (
            "a_datagram_longer_than_the_receive_size_is_reported_as_truncated",
            a_datagram_longer_than_the_receive_size_is_reported_as_truncated,
        ),
        (
            "the_replies_are_exactly_what_the_handler_sends",
            the_replies_are_exactly_what_the_handler_sends,
        ),
        (
            "asking_for_a_timeout_or_a_sender_is_a_typed_error",
            asking_for_a_timeout_or_a_sender_is_a_typed_error,
        ),
        ("the_peer_is_known_by_its_address", the_peer_is_known_by_its_address),
        (
            "peers_that_disappear_before_their_reply_do_not_affect_others",
            peers_that_disappear_before_their_reply_do_not_affect_others,
        ),
    ];
    let udp: [(&str, WithoutUrl); 4] = [
        (
            "a_reply_comes_from_the_destination_address_of_the_request",
            a_reply_comes_from_the_destination_address_of_the_request,
        ),
        (
            "a_dual_stack_socket_replies_from_the_destination_address",
            a_dual_stack_socket_replies_from_the_destination_address,
        ),
        (
            "a_socket_with_timestamps_replies_from_the_destination_address",
            a_socket_with_timestamps_replies_from_the_destination_address,
        ),
        (
            "in_a_network_namespace_a_reply_comes_from_the_ipv6_destination_address",
            in_a_network_namespace_a_reply_comes_from_the_ipv6_destination_address,
        ),
    ];
    let unix: [(&str, WithoutUrl); 6] = [
        (
            "fourteen_unix_peers_that_do_not_read_do_not_delay_others",
            fourteen_unix_peers_that_do_not_read_do_not_delay_others,
        ),
        (
            "a_unix_stream_client_without_a_path_is_unnamed",
            a_unix_stream_client_without_a_path_is_unnamed,
        ),
        (
            "an_unnamed_unix_client_is_served_without_a_reply",
            an_unnamed_unix_client_is_served_without_a_reply,
        ),
        (
            "a_unix_peer_that_does_not_read_does_not_affect_others",
            a_unix_peer_that_does_not_read_does_not_affect_others,
        ),
        (
            "a_unix_peer_that_does_not_read_costs_one_wait",
            a_unix_peer_that_does_not_read_costs_one_wait,
        ),
        (
            "a_connected_unix_peer_that_never_reads_blocks_the_server_only_while_it_exists",
            a_connected_unix_peer_that_never_reads_blocks_the_server_only_while_it_exists,
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
            format!("{family}::forking::the_number_of_children_never_exceeds_max_children"),
            move || the_number_of_children_never_exceeds_max_children(url),
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
