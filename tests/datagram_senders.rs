//! Datagrams from other threads: before a server runs, while its loop sleeps, between its runs and
//! after it; in floods, to peers that do not read, and while the server stops.

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socketserver::{
    Accepted, DatagramSender, Error, Inline, Mode, Offload, Peer, Pool, Reactor, SendError, Server,
    Threading, handler_fn,
};
use support::{DEADLINE, in_time, start_server, wait_until};

/// A directory that goes with the test.
struct Directory(PathBuf);

fn directory() -> Directory {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let number = MADE.fetch_add(1, SeqCst);
    let path = std::env::temp_dir().join(format!("senders-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    Directory(path)
}

impl Directory {
    fn peer(&self, name: &str) -> Peer {
        Peer::Path(self.0.join(name).into())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Modes that can be in a process with other threads.
fn modes() -> [Mode; 5] {
    [
        Mode::Reactor(Reactor),
        Mode::Offload(Offload::default()),
        Mode::Inline(Inline),
        Mode::Threading(Threading::default()),
        Mode::Pool(Pool::default()),
    ]
}

/// A server that sends each datagram back.
fn udp_echo(mode: Mode) -> (Server, DatagramSender) {
    echo(Server::udp("127.0.0.1:0").unwrap().mode(mode))
}

fn unix_echo(directory: &Directory, mode: Mode) -> (Server, DatagramSender) {
    echo(Server::unix_datagram(directory.0.join("server")).unwrap().mode(mode))
}

fn echo(builder: socketserver::Builder<socketserver::Raw, Mode>) -> (Server, DatagramSender) {
    let server =
        builder.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message))).unwrap();
    let [listener] = server.listeners()[..] else { unreachable!() };
    let sender = server.datagram_sender(listener).unwrap();
    (server, sender)
}

fn udp_client() -> (UdpSocket, Peer) {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    let peer = Peer::from(client.local_addr().unwrap());
    (client, peer)
}

fn unix_client(directory: &Directory, name: &str) -> (UnixDatagram, Peer) {
    let client = UnixDatagram::bind(directory.0.join(name)).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.set_write_timeout(Some(DEADLINE)).unwrap();
    (client, directory.peer(name))
}

fn expect(client: &UdpSocket, expected: &[u8], from: SocketAddr) {
    let mut message = [0; 100];
    let (count, sent_from) = client.recv_from(&mut message).expect("a datagram");
    assert_eq!((&message[..count], sent_from), (expected, from));
}

#[test]
fn a_sender_works_before_during_between_and_after_the_runs_of_its_server() {
    for mode in modes() {
        let (client, peer) = udp_client();
        let (server, sender) = udp_echo(mode);
        let address = server.local_addr().inet().unwrap();
        let handle = server.shutdown_handle();
        sender.send_to(&peer, b"before").unwrap();
        expect(&client, b"before", address);
        let running = start_server(server);
        wait_until("it runs", || handle.is_running());
        sender.send_to(&peer, b"while it sleeps").unwrap();
        expect(&client, b"while it sleeps", address);
        let (server, _) = running.stop();
        sender.send_to(&peer, b"between").unwrap();
        expect(&client, b"between", address);
        assert_eq!((handle.counters().replies, handle.counters().unsent), (3, 0));
        drop(server);
        assert_eq!(sender.clone().send_to(&peer, b"after"), Err(SendError::Closed));
        // The handle keeps nothing open.
        drop(UdpSocket::bind(address).expect("the address is free"));
    }
}

#[test]
fn what_cannot_be_sent_is_a_typed_error_and_counted() {
    let (server, sender) = udp_echo(Mode::default());
    let handle = server.shutdown_handle();
    let (_client, peer) = udp_client();
    let send = |peer: &Peer, message: &[u8]| sender.send_to(peer, message);
    assert_eq!(send(&Peer::Unnamed, b"x"), Err(SendError::Unaddressable));
    assert_eq!(send(&Peer::Inet("[::1]:1".parse().unwrap()), b"x"), Err(SendError::Unaddressable));
    assert_eq!(handle.counters().unsent, 0);
    assert_eq!(send(&peer, &[0; 70_000]), Err(SendError::Os(libc::EMSGSIZE)));
    let nowhere = Peer::Inet("127.0.0.1:0".parse().unwrap());
    assert_eq!(send(&nowhere, b"x"), Err(SendError::Os(libc::EINVAL)));
    assert_eq!((handle.counters().replies, handle.counters().unsent), (0, 2));
    let shown = send(&nowhere, b"x").unwrap_err().to_string();
    assert!(shown.contains("nvalid"), "{shown}");

    let directory = directory();
    let (_server, sender) = unix_echo(&directory, Mode::default());
    let gone = directory.peer("gone");
    assert_eq!(sender.send_to(&gone, b"x"), Err(SendError::Os(libc::ENOENT)));
    drop(unix_client(&directory, "gone"));
    assert_eq!(sender.send_to(&gone, b"x"), Err(SendError::Os(libc::ECONNREFUSED)));
}

#[test]
fn only_a_datagram_service_has_a_datagram_sender() {
    let (mut server, _) = udp_echo(Mode::default());
    let stream = Server::tcp("127.0.0.1:0").unwrap();
    let service = stream.service(|_: &Accepted<'_>| handler_fn(|_, _| Ok(()))).unwrap();
    let id = server.add(service).unwrap();
    assert!(matches!(server.datagram_sender(id), Err(Error::Mode(_))));
    let (other, _) = udp_echo(Mode::default());
    assert!(matches!(other.datagram_sender(id), Err(Error::Mode(_))));
}

/// Threads that go on sending to one peer.
struct Flood {
    over: Arc<AtomicBool>,
    taken: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    fn start(sender: &DatagramSender, peer: &Peer, size: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (taken, refused): (Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
        let threads = (0..8)
            .map(|_| {
                let (sender, peer, over) = (sender.clone(), peer.clone(), Arc::clone(&over));
                let (taken, refused) = (Arc::clone(&taken), Arc::clone(&refused));
                thread::spawn(move || {
                    while !over.load(SeqCst) {
                        match sender.send_to(&peer, &vec![b'x'; size]) {
                            Ok(()) => taken.fetch_add(1, SeqCst),
                            Err(SendError::Full) => refused.fetch_add(1, SeqCst),
                            // What was sent is not counted here, but what the server is asked is.
                            Err(SendError::Closed) => break,
                            Err(error) => panic!("{error}"),
                        };
                    }
                })
            })
            .collect();
        Flood { over, taken, refused, threads }
    }

    /// Ends it; how many were taken, and how many refused.
    fn end(mut self) -> (u64, u64) {
        self.over.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            in_time("a thread that floods ends", move || thread.join().unwrap());
        }
        (self.taken.load(SeqCst), self.refused.load(SeqCst))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
    }
}

/// The resident memory of this process, in bytes.
fn resident_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[test]
fn a_flood_from_eight_threads_over_udp_is_counted_and_clients_are_served() {
    for mode in modes() {
        let (server, sender) = udp_echo(mode);
        let address = server.local_addr().inet().unwrap();
        let server = start_server(server);
        // It does not read; what its buffer does not take is lost there.
        let (_silent, peer) = udp_client();
        let flood = Flood::start(&sender, &peer, 100);
        let (client, _) = udp_client();
        for _ in 0..50 {
            client.send_to(b"hello", address).unwrap();
            expect(&client, b"hello", address);
        }
        let (taken, _) = flood.end();
        assert!(taken > 0);
        let (server, _) = server.stop();
        let counters = server.counters();
        assert_eq!((counters.replies, counters.unsent), (taken + 50, 0), "under {mode}");
    }
}

#[test]
fn a_flood_to_a_unix_peer_that_does_not_read_is_bounded_counted_and_stops_with_the_server() {
    for mode in modes() {
        let directory = directory();
        let (server, sender) = unix_echo(&directory, mode);
        let server = start_server(server);
        let (_silent, peer) = unix_client(&directory, "silent");
        let (client, _) = unix_client(&directory, "client");
        let before = resident_memory();
        let flood = Flood::start(&sender, &peer, 1);
        wait_until("it is refused", || flood.refused.load(SeqCst) > 1000);
        for _ in 0..20 {
            client.send_to(b"hello", directory.0.join("server")).unwrap();
            assert_eq!(client.recv(&mut [0; 10]).expect("a reply"), 5);
        }
        let after = resident_memory();
        assert!(after < before + (64 << 20), "{before} bytes before, {after} after");
        // The threads go on meanwhile.
        let (server, _) = server.stop();
        let (taken, _) = flood.end();
        let counters = server.counters();
        let counted = counters.replies + counters.unsent;
        assert_eq!(counted, taken + 20, "under {mode}: {counters:?}");
    }
}

#[test]
fn handle_request_returns_while_threads_go_on_sending_to_a_slow_unix_peer() {
    for mode in modes() {
        let directory = directory();
        let (mut server, sender) = unix_echo(&directory, mode);
        let (slow, peer) = unix_client(&directory, "slow");
        let (client, _) = unix_client(&directory, "client");
        let over = Arc::new(AtomicBool::new(false));
        let reads = thread::spawn({
            let over = over.clone();
            move || {
                while !over.load(SeqCst) {
                    let _ = slow.recv(&mut [0; 10]);
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let flood = Flood::start(&sender, &peer, 1);
        for _ in 0..3 {
            client.send_to(b"hello", directory.0.join("server")).unwrap();
            server = in_time("it returns", move || {
                assert!(server.handle_request().unwrap());
                server
            });
            assert_eq!(client.recv(&mut [0; 10]).expect("a reply"), 5);
        }
        flood.end();
        over.store(true, SeqCst);
        // It reads what has been sent by now, or waits in vain for more.
        sender.send_to(&peer, b"last").ok();
        reads.join().unwrap();
    }
}

#[test]
fn what_is_taken_for_a_slow_unix_peer_arrives_whole_and_in_order() {
    for mode in modes() {
        let directory = directory();
        let (server, sender) = unix_echo(&directory, mode);
        let handle = server.shutdown_handle();
        let server = start_server(server);
        wait_until("it runs", || handle.is_running());
        let (slow, peer) = unix_client(&directory, "slow");
        let sent = thread::spawn(move || {
            for number in 0..1000 {
                // The queue may be full while its peer reads slowly.
                while let Err(error) = sender.send_to(&peer, format!("{number}").as_bytes()) {
                    assert_eq!(error, SendError::Full);
                    thread::yield_now();
                }
            }
        });
        let mut message = [0; 10];
        for number in 0..1000 {
            let count = slow.recv(&mut message).expect("a datagram");
            assert_eq!(str::from_utf8(&message[..count]), Ok(&*number.to_string()));
        }
        sent.join().unwrap();
        let (server, _) = server.stop();
        assert_eq!(
            (server.counters().replies, server.counters().unsent),
            (1000, 0),
            "under {mode}"
        );
    }
}

#[test]
fn a_server_can_be_dropped_while_threads_are_sending_and_its_address_is_free_at_once() {
    for round in 0..20 {
        let (server, sender) = udp_echo(Mode::default());
        let address = server.local_addr().inet().unwrap();
        let (_silent, peer) = udp_client();
        let flood = Flood::start(&sender, &peer, round);
        wait_until("it sends", || flood.taken.load(SeqCst) > 100);
        drop(server);
        let again = UdpSocket::bind(address).expect("the address is free");
        assert_eq!(sender.send_to(&peer, b"x"), Err(SendError::Closed));
        drop(again);
        flood.end();
    }
}

#[test]
fn a_datagram_sender_can_be_shared_between_threads() {
    fn is_shared<T: Clone + Send + Sync + 'static>(_: &T) {}
    let (server, sender) = udp_echo(Mode::default());
    is_shared(&sender);
    let shown = format!("{sender:?}");
    assert!(shown.contains(&server.local_addr().port().unwrap().to_string()), "{shown}");
}

/// Sends what is logged as datagrams, as a logger for syslog does.
struct DatagramLogger;

static LOGS_TO: OnceLock<(DatagramSender, Peer)> = OnceLock::new();
static LOGGED: AtomicU64 = AtomicU64::new(0);

impl log::Log for DatagramLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if let Some((sender, peer)) = LOGS_TO.get()
            && record.args().to_string().contains("cannot send: its send buffer")
        {
            let _ = sender.send_to(peer, record.args().to_string().as_bytes());
            LOGGED.fetch_add(1, SeqCst);
        }
    }

    fn flush(&self) {}
}

#[test]
fn a_logger_that_sends_by_the_same_socket_holds_nothing_up() {
    log::set_logger(&DatagramLogger).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let directory = directory();
    let (server, sender) = unix_echo(&directory, Mode::Threading(Threading::default()));
    let (_collector, peer) = unix_client(&directory, "collector");
    LOGS_TO.set((sender, peer)).ok().unwrap();
    let server = start_server(server);
    // What a client that has connected does not read fills the server's own send buffer, of which
    // the server warns.
    let (silent, _) = unix_client(&directory, "silent");
    silent.connect(directory.0.join("server")).unwrap();
    wait_until("the server warns", || {
        silent.send(&[b'x'; 20_000]).unwrap();
        LOGGED.load(SeqCst) > 0
    });
    drop(silent);
    let (client, _) = unix_client(&directory, "client");
    client.send_to(b"hello", directory.0.join("server")).unwrap();
    assert_eq!(client.recv(&mut [0; 10]).expect("a reply"), 5);
    server.stop();
}
