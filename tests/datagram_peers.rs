//! Datagrams to other peers than the one that has asked, under every mode, with servers that are
//! processes of their own.

#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;

use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use process::{Datagrams, Process, announce, eventually};
use runner::{Test, test};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use socketserver::{
    Accepted, Context, DatagramSender, Forking, Handler, HandlerResult, ListenerId, Mode, Peer,
    Server, handler_fn,
};

const UDP: &str = "udp://127.0.0.1:0";
const UDP6: &str = "udp://[::1]:0";
const DUAL: &str = "udp://[::]:0";
const UNIX: &str = "unixgram://{dir}/socket";
const TCP: &str = "tcp://127.0.0.1:0";

/// A multicast group of the servers that join one.
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 71, 9);

/// How long a reply waits for room at a Unix peer.
const WAIT: Duration = Duration::from_millis(500);

// The server

/// Does what a message says: a command and its arguments, with `|` between them.
struct Commands {
    /// The sender of the server's second service, if it has one.
    other: Option<DatagramSender>,
    /// The address that the datagram was sent to, and the interface that it came by.
    at: String,
}

impl Handler for Commands {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let text = str::from_utf8(message)?;
        let (command, arguments) = text.split_once('|').unwrap_or((text, ""));
        let arguments: Vec<_> = arguments.split_terminator('|').collect();
        match (command, &arguments[..]) {
            ("mix", [peer]) => {
                let (peer, asking) = (peer_of(peer), cx.peer().clone());
                cx.send(b"1")?;
                cx.send_to(&peer, b"a")?;
                cx.send(b"2")?;
                cx.send_to(&peer, b"b")?;
                cx.send_to(&asking, b"3")?;
                cx.send(b"4")
            }
            ("to", [peer, text]) => {
                let sent = cx.send_to(&peer_of(peer), text.as_bytes());
                cx.send(format!("{sent:?}").as_bytes())
            }
            ("bytes", [peer, count]) => {
                cx.send_to(&peer_of(peer), &vec![b'x'; count.parse()?])?;
                Ok(cx.send_to(&peer_of(peer), b"after")?)
            }
            ("thread", [peer, text]) => {
                let sender = cx.datagram_sender()?;
                let (peer, text) = (peer_of(peer), text.to_string());
                let sent = thread::spawn(move || sender.send_to(&peer, text.as_bytes()));
                cx.send(format!("{:?}", sent.join().unwrap()).as_bytes())
            }
            ("where", []) => cx.send(self.at.as_bytes()),
            ("sender", []) => cx.send(format!("{:?}", cx.datagram_sender()).as_bytes()),
            ("other", [peer]) => {
                let sent = self.other.as_ref().unwrap().send_to(&peer_of(peer), b"other");
                cx.send(format!("{sent:?}").as_bytes())
            }
            ("many", [peer, count]) => {
                let peer = peer_of(peer);
                for number in 0..count.parse::<usize>()? {
                    cx.send_to(&peer, number.to_string().as_bytes())?;
                }
                cx.send(b"sent")
            }
            ("each", [directory, count]) => {
                for number in 0..count.parse::<usize>()? {
                    let peer = Peer::Path(Path::new(directory).join(number.to_string()).into());
                    cx.send_to(&peer, b"unread")?;
                }
                cx.send(b"sent")
            }
            ("close", [peer]) => {
                cx.close();
                Ok(cx.send_to(&peer_of(peer), b"after the close")?)
            }
            _ => cx.send(message),
        }
    }
}

/// The peer that a text means.
fn peer_of(text: &str) -> Peer {
    let (kind, name) = text.split_once('=').unwrap();
    match kind {
        "unnamed" => Peer::Unnamed,
        "abstract" => Peer::Abstract(name.as_bytes().into()),
        "path" => Peer::Path(Path::new(name).into()),
        _ => Peer::Inet(name.parse().unwrap()),
    }
}

fn serve(arguments: &[String]) {
    let [url, mode, options @ ..] = arguments else { panic!("what to serve") };
    let mut mode: Mode = mode.parse().unwrap();
    let mut server = Server::new().unwrap();
    let mut other = None;
    if options == ["two services"] {
        let silent = |_: &Accepted<'_>| handler_fn(|_, _| Ok(()));
        let service = Server::endpoint(&UDP.parse().unwrap()).unwrap().service(silent).unwrap();
        let id = server.add(service).unwrap();
        other = Some(server.datagram_sender(id).unwrap());
    }
    if options == ["threads beside"] {
        mode = Mode::Forking(Forking::default().allow_threads(true));
    }
    let builder = Server::endpoint(&url.parse().unwrap()).unwrap().dual_stack(url.contains("[::]"));
    let builder = match options {
        [option] if option == "packet info" => builder.packet_info(true),
        [option] if option == "group" => {
            builder.packet_info(true).join_multicast(GROUP, Ipv4Addr::LOCALHOST)
        }
        _ => builder,
    };
    let make = move |accepted: &Accepted<'_>| {
        let at = format!("{} {:?}", accepted.local_addr().unwrap(), accepted.interface());
        Commands { other: other.clone(), at }
    };
    let id = server.add(builder.mode(mode).service(make).unwrap()).unwrap();
    server.stop_on_signals().unwrap();
    announce(&server.addresses()[id_number(options)..]);
    let flood = (options == ["threads beside"]).then(|| Flood::start(&server, id));
    server.serve_forever().unwrap();
    drop(flood);
    let counters = server.counters();
    println!("replies {} unsent {}", counters.replies, counters.unsent);
}

/// The number of the service that is announced.
fn id_number(options: &[String]) -> usize {
    usize::from(options == ["two services"])
}

/// Threads of the server that go on sending to peers with full queues.
struct Flood {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    fn start(server: &Server, id: ListenerId) -> Self {
        let path = server.local_addr().path().unwrap().with_file_name("silent");
        let over = Arc::new(AtomicBool::new(false));
        let threads = (0..4)
            .map(|_| {
                let (sender, over) = (server.datagram_sender(id).unwrap(), over.clone());
                let peer = Peer::Path(path.clone().into());
                thread::spawn(move || {
                    while !over.load(SeqCst) {
                        let _ = sender.send_to(&peer, b"unread");
                    }
                })
            })
            .collect();
        Flood { over, threads }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

fn start(url: &str, mode: Mode) -> Process {
    Process::start(1, &[url, mode.name()])
}

/// Stops it; how many datagrams it has sent, and how many it could not send. A child counts nothing.
fn stop(mut server: Process) -> (u64, u64) {
    server.terminate();
    server.expect_success();
    let lines = server.rest();
    let mut words = lines[0].split(' ').filter_map(|word| word.parse().ok());
    (words.next().unwrap(), words.next().unwrap())
}

/// Stops it, and expects it to have counted so many datagrams, unless children have sent them.
fn expect_counted(server: Process, mode: Mode, replies: u64, unsent: u64) {
    let counted = stop(server);
    let expected = if mode.name() == "forking" { (0, 0) } else { (replies, unsent) };
    assert_eq!(counted, expected);
}

/// A client that has an address, and the text that means it.
fn client_of(server: &Process) -> (Datagrams, String) {
    let client = server.datagrams();
    if let Some(path) = &client.path {
        let text = format!("path={}", path.display());
        return (client, text);
    }
    let local = if server.url().contains("[::") { "[::1]:0" } else { "127.0.0.1:0" };
    let local: std::net::SocketAddr = local.parse().unwrap();
    client.socket.bind(&local.into()).unwrap();
    let address = client.socket.local_addr().unwrap().as_socket().unwrap();
    (client, format!("inet={address}"))
}

/// The server's port, at the loopback address of its family.
fn local_server(url: &str) -> String {
    url.replace("[::]", "[::1]")
}

// The tests

fn datagrams_to_another_peer_arrive_in_order_and_so_do_the_replies(url: &str, mode: Mode) {
    let server = start(url, mode);
    let ((asking, _), (other, peer)) = (client_of(&server), client_of(&server));
    asking.send(format!("mix|{peer}"));
    for expected in ["1", "2", "3", "4"] {
        asking.expect(expected);
    }
    other.expect("a").expect("b");
    expect_counted(server, mode, 6, 0);
}

fn an_ipv4_peer_of_a_dual_stack_socket_is_sent_to(mode: Mode) {
    let server = start(DUAL, mode);
    let asking = Datagrams::unbound(&local_server(server.url()));
    let other = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    other.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    other.set_read_timeout(Some(process::DEADLINE)).unwrap();
    let port = other.local_addr().unwrap().as_socket().unwrap().port();
    // Written as the crate shows it, and as the kernel does.
    for ip in ["127.0.0.1", "[::ffff:127.0.0.1]"] {
        asking.send(format!("to|inet={ip}:{port}|hello")).expect("Ok(())");
        let mut received = [0; 10];
        let count = std::io::Read::read(&mut &other, &mut received).expect("a datagram");
        assert_eq!(&received[..count], b"hello");
    }
    expect_counted(server, mode, 4, 0);
}

fn a_peer_in_the_abstract_namespace_is_sent_to(mode: Mode) {
    if !cfg!(target_os = "linux") {
        eprintln!("skipped: only Linux has an abstract namespace");
        return;
    }
    let server = start(UNIX, mode);
    let (asking, _) = client_of(&server);
    let other = Socket::new(Domain::UNIX, Type::DGRAM, None).unwrap();
    let name = format!("datagram-peers-{}", server.pid());
    other.bind(&SockAddr::unix(format!("\0{name}")).unwrap()).unwrap();
    other.set_read_timeout(Some(process::DEADLINE)).unwrap();
    asking.send(format!("to|abstract={name}|hello")).expect("Ok(())");
    let mut received = [0; 10];
    let count = std::io::Read::read(&mut &other, &mut received).expect("a datagram");
    assert_eq!(&received[..count], b"hello");
    expect_counted(server, mode, 2, 0);
}

fn a_peer_without_an_address_or_of_another_family_is_a_typed_error(url: &str, mode: Mode) {
    let server = start(url, mode);
    let (asking, _) = client_of(&server);
    let mut peers = vec!["unnamed=", "path=", "path=/\0/nul"];
    match url {
        UNIX => peers.extend(["inet=127.0.0.1:1", "inet=[::1]:1"]),
        UDP => peers.extend(["inet=[::1]:1", "path=/tmp/peer", "abstract=peer"]),
        _ => peers.extend(["path=/tmp/peer", "abstract=peer"]),
    }
    for peer in &peers {
        asking.send(format!("to|{peer}|x")).expect("Err(UnaddressablePeer)");
    }
    expect_counted(server, mode, peers.len() as u64, 0);
}

fn on_a_connection_sending_to_another_peer_is_a_typed_error(mode: Mode) {
    let mut server = start(TCP, mode);
    let mut client = server.connect();
    client.send("to|inet=127.0.0.1:1|x").expect("Err(StreamSendTo)").end().expect_end();
    server.terminate();
    server.expect_success();
}

fn a_peer_that_cannot_be_reached_is_counted_and_the_next_one_is_sent_to(url: &str, mode: Mode) {
    let server = start(url, mode);
    let ((asking, _), (other, peer)) = (client_of(&server), client_of(&server));
    let unreachable: &[&str] = match url {
        UNIX => &["path=/no/such/peer", "abstract=no-such-peer", "path=/dev/null"],
        // No datagram is sent to port 0; the IPv6 address is not one of a peer.
        UDP => &["inet=127.0.0.1:0", "inet=255.255.255.255:9"],
        _ => &["inet=[::1]:0", "inet=127.0.0.1:9"],
    };
    for gone in unreachable {
        asking.send(format!("to|{gone}|lost")).expect("Ok(())");
        asking.send(format!("to|{peer}|arrives")).expect("Ok(())");
        other.expect("arrives");
    }
    let count = unreachable.len() as u64;
    expect_counted(server, mode, 3 * count, count);
}

fn a_message_that_is_too_long_is_counted_and_an_empty_one_arrives(url: &str, mode: Mode) {
    let server = start(url, mode);
    let ((asking, _), (other, peer)) = (client_of(&server), client_of(&server));
    for count in [100_000_000, 1_000_000] {
        asking.send(format!("bytes|{peer}|{count}"));
        other.expect("after");
    }
    asking.send(format!("bytes|{peer}|0"));
    other.expect("").expect("after");
    expect_counted(server, mode, 4, 2);
}

fn what_is_sent_to_a_peer_after_a_close_is_dropped(url: &str, mode: Mode) {
    let server = start(url, mode);
    let ((asking, _), (other, peer)) = (client_of(&server), client_of(&server));
    asking.send(format!("close|{peer}"));
    asking.send(format!("to|{peer}|next")).expect("Ok(())");
    other.expect("next").expect_nothing_else();
    expect_counted(server, mode, 2, 0);
}

/// Fills the queue of a client that does not read.
fn fill_queue_at(path: &Path) {
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"noise", path).is_ok() {}
}

fn thousands_of_datagrams_to_a_peer_that_does_not_read_delay_nobody_else(mode: Mode) {
    let server = start(UNIX, mode);
    let ((asking, _), (client, _)) = (client_of(&server), client_of(&server));
    let silent = server.datagrams();
    fill_queue_at(silent.path.as_ref().unwrap());
    let peer = silent.path.as_ref().unwrap().display().to_string();
    let start = Instant::now();
    asking.send(format!("many|path={peer}|30000"));
    for _ in 0..20 {
        client.send("hello").expect("hello");
    }
    asking.expect("sent");
    assert!(start.elapsed() < 10 * WAIT, "{:?} for one peer that does not read", start.elapsed());
    // Under `reactor` and `offload` they wait for the loop; a child and its memory are gone by now.
    let resident = resident_memory(server.pid());
    assert!(resident < 64 << 20, "{resident} bytes for datagrams that wait");
    if mode.name() != "forking" {
        // What was queued is sent or lost before the stop is complete.
        let (replies, unsent) = stop(server);
        assert_eq!((replies, unsent), (21, 30_000));
    } else {
        stop(server);
    }
}

/// The resident memory of a process, in bytes.
fn resident_memory(pid: i32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

fn datagrams_to_three_hundred_peers_that_do_not_read_delay_nobody_else(mode: Mode) {
    let server = start(UNIX, mode);
    let ((asking, _), (client, _)) = (client_of(&server), client_of(&server));
    let silent: Vec<_> = (0..300)
        .map(|number| {
            let path = server.directory.join(&number.to_string());
            let silent = UnixDatagram::bind(&path).unwrap();
            fill_queue_at(&path);
            silent
        })
        .collect();
    let start = Instant::now();
    asking.send(format!("each|{}|{}", server.directory.path().display(), silent.len()));
    for _ in 0..20 {
        client.send("hello").expect("hello");
    }
    asking.expect("sent");
    assert!(start.elapsed() < 20 * WAIT, "{:?} for 300 such peers", start.elapsed());
    if mode.name() == "forking" {
        eventually("all children are reaped", || server.children().is_empty());
    }
    expect_counted(server, mode, 21, 300);
}

fn a_sender_works_in_another_thread_of_the_process_that_serves(url: &str, mode: Mode) {
    let server = start(url, mode);
    let ((asking, _), (other, peer)) = (client_of(&server), client_of(&server));
    for text in ["hello", "again"] {
        asking.send(format!("thread|{peer}|{text}")).expect("Ok(())");
        other.expect(text);
    }
    asking.send("thread|unnamed=|x").expect("Err(Unaddressable)");
    expect_counted(server, mode, 5, 0);
}

fn on_a_connection_there_is_no_datagram_sender(mode: Mode) {
    let mut server = start(TCP, mode);
    let mut client = server.connect();
    client.send("sender|").expect("Err(StreamSendTo)").end().expect_end();
    server.terminate();
    server.expect_success();
}

fn in_a_child_the_sender_of_another_service_is_closed() {
    let mode = Mode::Forking(Forking::default());
    let server = Process::start(1, &[UDP, mode.name(), "two services"]);
    let ((asking, _), (other, peer)) = (client_of(&server), client_of(&server));
    asking.send(format!("other|{peer}")).expect("Err(Closed)");
    asking.send(format!("thread|{peer}|own")).expect("Ok(())");
    other.expect("own").expect_nothing_else();
    stop(server);
}

fn children_serve_while_threads_of_their_parent_go_on_sending() {
    let mode = Mode::Forking(Forking::default());
    let server = Process::start(1, &[UNIX, mode.name(), "threads beside"]);
    let _silent = UnixDatagram::bind(server.directory.join("silent")).unwrap();
    let ((asking, _), (other, peer)) = (client_of(&server), client_of(&server));
    for _ in 0..200 {
        asking.send(format!("thread|{peer}|hello")).expect("Ok(())");
        other.expect("hello");
    }
    let resident = resident_memory(server.pid());
    assert!(resident < 64 << 20, "{resident} bytes for datagrams that wait");
    let (replies, unsent) = stop(server);
    assert!(replies > 0 && unsent > 0, "{replies} sent, {unsent} lost");
}

/// Asks where a datagram was sent to, and by which interface it came.
fn ask_where(client: &UdpSocket, to: (&str, u16)) -> String {
    client.set_read_timeout(Some(process::DEADLINE)).unwrap();
    client.send_to(b"where|", to).unwrap();
    let mut reply = [0; 100];
    let count = client.recv(&mut reply).expect("a reply");
    str::from_utf8(&reply[..count]).unwrap().to_owned()
}

fn port_of(server: &Process) -> u16 {
    server.url().rsplit_once(':').unwrap().1.parse().unwrap()
}

fn the_local_address_is_the_one_that_was_asked_and_the_interface_its_own(mode: Mode) {
    let loopback = std::fs::read_to_string("/sys/class/net/lo/ifindex");
    let Ok(index) = loopback.map(|text| text.trim().parse::<u32>().unwrap()) else {
        eprintln!("skipped: only Linux tells where a datagram was sent to");
        return;
    };
    for url in ["udp://0.0.0.0:0", DUAL] {
        let server = Process::start(1, &[url, mode.name(), "packet info"]);
        let port = port_of(&server);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_broadcast(true).unwrap();
        // The last is a broadcast address.
        for asked in ["127.0.0.1", "127.0.0.2", "127.255.255.255"] {
            let expected = format!("udp://{asked}:{port} Some({index})");
            assert_eq!(ask_where(&client, (asked, port)), expected);
        }
        if url == DUAL {
            let client = UdpSocket::bind("[::1]:0").unwrap();
            let expected = format!("udp://[::1]:{port} Some({index})");
            assert_eq!(ask_where(&client, ("::1", port)), expected);
        }
        stop(server);
    }
}

fn a_reply_to_a_group_comes_from_an_address_of_the_host(mode: Mode) {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    SockRef::from(&client).set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
    if let Err(error) = client.join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST) {
        eprintln!("skipped: the system has no multicast here: {error}");
        return;
    }
    for url in ["udp://0.0.0.0:0", DUAL] {
        let server = Process::start(1, &[url, mode.name(), "group"]);
        let port = port_of(&server);
        client.set_read_timeout(Some(process::DEADLINE)).unwrap();
        client.send_to(b"where|", (GROUP, port)).unwrap();
        let mut reply = [0; 100];
        let (count, from) = client.recv_from(&mut reply).expect("a reply");
        assert_eq!(from, (Ipv4Addr::LOCALHOST, port).into());
        let shown = str::from_utf8(&reply[..count]).unwrap();
        assert!(shown.starts_with(&format!("udp://{GROUP}:{port} ")), "{shown}");
        expect_counted(server, mode, 1, 0);
    }
}

fn without_packet_info_the_local_address_is_the_one_that_is_bound(mode: Mode) {
    let server = start("udp://0.0.0.0:0", mode);
    let port = port_of(&server);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let expected = format!("udp://0.0.0.0:{port} None");
    assert_eq!(ask_where(&client, ("127.0.0.1", port)), expected);
    stop(server);
    let server = start(UNIX, mode);
    let (asking, _) = client_of(&server);
    asking.send("where|").expect(format!("{} None", server.url()));
    stop(server);
}

fn tests() -> Vec<Test> {
    type OfUrl = fn(&str, Mode);
    type OfMode = fn(Mode);
    let of_url: [(&str, OfUrl); 6] = [
        (
            "a_sender_works_in_another_thread_of_the_process_that_serves",
            a_sender_works_in_another_thread_of_the_process_that_serves,
        ),
        (
            "datagrams_to_another_peer_arrive_in_order_and_so_do_the_replies",
            datagrams_to_another_peer_arrive_in_order_and_so_do_the_replies,
        ),
        (
            "a_peer_without_an_address_or_of_another_family_is_a_typed_error",
            a_peer_without_an_address_or_of_another_family_is_a_typed_error,
        ),
        (
            "a_peer_that_cannot_be_reached_is_counted_and_the_next_one_is_sent_to",
            a_peer_that_cannot_be_reached_is_counted_and_the_next_one_is_sent_to,
        ),
        (
            "a_message_that_is_too_long_is_counted_and_an_empty_one_arrives",
            a_message_that_is_too_long_is_counted_and_an_empty_one_arrives,
        ),
        (
            "what_is_sent_to_a_peer_after_a_close_is_dropped",
            what_is_sent_to_a_peer_after_a_close_is_dropped,
        ),
    ];
    let of_mode: [(&str, OfMode); 9] = [
        (
            "udp::a_reply_to_a_group_comes_from_an_address_of_the_host",
            a_reply_to_a_group_comes_from_an_address_of_the_host,
        ),
        (
            "udp::the_local_address_is_the_one_that_was_asked_and_the_interface_its_own",
            the_local_address_is_the_one_that_was_asked_and_the_interface_its_own,
        ),
        (
            "udp::without_packet_info_the_local_address_is_the_one_that_is_bound",
            without_packet_info_the_local_address_is_the_one_that_is_bound,
        ),
        (
            "tcp::on_a_connection_there_is_no_datagram_sender",
            on_a_connection_there_is_no_datagram_sender,
        ),
        (
            "udp6::an_ipv4_peer_of_a_dual_stack_socket_is_sent_to",
            an_ipv4_peer_of_a_dual_stack_socket_is_sent_to,
        ),
        (
            "unixgram::a_peer_in_the_abstract_namespace_is_sent_to",
            a_peer_in_the_abstract_namespace_is_sent_to,
        ),
        (
            "tcp::on_a_connection_sending_to_another_peer_is_a_typed_error",
            on_a_connection_sending_to_another_peer_is_a_typed_error,
        ),
        (
            "unixgram::thousands_of_datagrams_to_a_peer_that_does_not_read_delay_nobody_else",
            thousands_of_datagrams_to_a_peer_that_does_not_read_delay_nobody_else,
        ),
        (
            "unixgram::datagrams_to_three_hundred_peers_that_do_not_read_delay_nobody_else",
            datagrams_to_three_hundred_peers_that_do_not_read_delay_nobody_else,
        ),
    ];
    let mut tests = tests![
        in_a_child_the_sender_of_another_service_is_closed,
        children_serve_while_threads_of_their_parent_go_on_sending,
    ];
    for mode in Mode::all() {
        for (name, check) in of_url {
            for (family, url) in [("udp", UDP), ("udp6", UDP6), ("unixgram", UNIX)] {
                let name = format!("{mode}::{family}::{name}");
                tests.push(test(name, move || check(url, mode)));
            }
        }
        for (name, check) in of_mode {
            tests.push(test(format!("{mode}::{name}"), move || check(mode)));
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
