//! Datagram services in this process: how many datagrams a mode receives at a time, what happens to
//! queued replies at the end of a run, and addresses with an interface.

mod support;

use std::net::{ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;
use socketserver::{
    Accepted, Context, Counters, Endpoint, Forking, Handler, HandlerResult, Inline, Mode, Offload,
    Pool, Reactor, Server, Threading, handler_fn,
};
use support::{DEADLINE, in_time, start_server, wait_until};

/// A temporary directory. Dropping it removes it.
struct Directory(PathBuf);

fn directory() -> Directory {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let number = MADE.fetch_add(1, SeqCst);
    let path = std::env::temp_dir().join(format!("udp-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    Directory(path)
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A client with an address to reply to.
fn client(directory: &Directory, name: &str) -> UnixDatagram {
    let client = UnixDatagram::bind(directory.0.join(name)).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.set_write_timeout(Some(DEADLINE)).unwrap();
    client
}

/// A number of datagrams larger than the receive queue of a Unix socket.
fn more_than_a_queue_holds() -> usize {
    let limit = std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen");
    limit.ok().and_then(|limit| limit.trim().parse().ok()).unwrap_or(10) + 20
}

/// The modes that run in this process.
fn modes() -> [Mode; 5] {
    [
        Mode::Reactor(Reactor),
        Mode::Offload(Offload::default()),
        Mode::Inline(Inline),
        Mode::Threading(Threading::default()),
        Mode::Pool(Pool::default()),
    ]
}

/// A handler that reports when it has begun, and then waits for the test.
struct HeldHandler {
    begun: Sender<()>,
    gate: Arc<Mutex<Receiver<()>>>,
}

impl Handler for HeldHandler {
    fn on_message(&mut self, _: &[u8], _: &mut Context<'_>) -> HandlerResult {
        let _ = self.begun.send(());
        let _ = self.gate.lock().unwrap().recv_timeout(DEADLINE);
        Ok(())
    }
}

/// How many of 20 datagrams that arrive before the server starts are received while the first is
/// served.
fn received_at_once(mode: Mode) -> u64 {
    let (begun, begins) = mpsc::channel();
    let (open, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let make = move |_: &Accepted<'_>| HeldHandler { begun: begun.clone(), gate: gate.clone() };
    let service = Server::udp("127.0.0.1:0").unwrap().mode(mode).service(make).unwrap();
    let mut server = Server::new().unwrap();
    server.add(service).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..20 {
        client.send_to(b"hello", server.local_addr().inet().unwrap()).unwrap();
    }
    let server = start_server(server);
    begins.recv_timeout(DEADLINE).unwrap();
    server.wait_for("a turn is over", |counters| counters.datagrams > 0);
    let received = server.counters().datagrams;
    // Release the handlers: the others are served.
    drop(open);
    server.wait_for("all are received", |counters| counters.datagrams == 20);
    for _ in 1..20 {
        begins.recv_timeout(DEADLINE).unwrap();
    }
    received
}

#[test]
fn under_threading_no_more_datagrams_are_received_than_the_limit() {
    for limit in [1, 3] {
        let mode = Mode::Threading(Threading::default().limit(limit));
        assert!(received_at_once(mode) <= limit as u64);
    }
}

#[test]
fn under_pool_no_more_datagrams_are_received_than_threads_and_queue_take() {
    for (threads, queue) in [(1, 0), (2, 3)] {
        let mode = Mode::Pool(Pool::new(threads).queue(queue));
        assert!(received_at_once(mode) <= (threads + queue) as u64);
    }
}

/// A handler that answers one datagram with many.
struct ManyReplies(usize);

impl Handler for ManyReplies {
    fn on_message(&mut self, _: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        (0..self.0).try_for_each(|number| cx.send(number.to_string().as_bytes()))
    }
}

/// A server that answers with more datagrams than a client's queue holds, and their number.
fn server_of_many(directory: &Directory, mode: Mode) -> (Server, usize) {
    let count = more_than_a_queue_holds();
    let listener = Server::unix_datagram(directory.0.join("server")).unwrap();
    let service = listener.mode(mode).service(move |_: &Accepted<'_>| ManyReplies(count)).unwrap();
    let mut server = Server::new().unwrap();
    server.add(service).unwrap();
    (server, count)
}

fn expect_numbers(client: &UnixDatagram, count: usize) {
    let mut reply = [0; 100];
    for number in 0..count {
        let len = client.recv(&mut reply).expect("a reply");
        assert_eq!(str::from_utf8(&reply[..len]), Ok(&*number.to_string()));
    }
}

#[test]
fn replies_that_wait_are_delivered_before_handle_request_returns() {
    for mode in modes() {
        // In these modes a thread serves it, and `handle_request` does not wait for its replies.
        if ["threading", "pool", "offload"].contains(&mode.name()) {
            continue;
        }
        let directory = directory();
        let (mut server, count) = server_of_many(&directory, mode);
        let client = client(&directory, "client");
        client.send_to(b"hello", directory.0.join("server")).unwrap();
        let serving = thread::spawn(move || {
            assert!(server.handle_request().unwrap());
            server
        });
        expect_numbers(&client, count);
        let server = in_time("it returns", move || serving.join().unwrap());
        let counters = server.counters();
        assert_eq!((counters.replies, counters.unsent), (count as u64, 0), "under {mode}");
    }
}

#[test]
fn replies_that_wait_are_delivered_before_a_server_has_stopped() {
    for mode in modes() {
        let directory = directory();
        let (server, count) = server_of_many(&directory, mode);
        let client = client(&directory, "client");
        let server = start_server(server);
        client.send_to(b"hello", directory.0.join("server")).unwrap();
        // One reply has arrived, and most of the others find the queue full.
        expect_numbers(&client, 1);
        server.handle().shutdown();
        let mut reply = [0; 100];
        for _ in 1..count {
            client.recv(&mut reply).expect("a reply");
        }
        let (server, _) = server.join();
        let counters = server.counters();
        assert_eq!((counters.replies, counters.unsent), (count as u64, 0), "under {mode}");
    }
}

#[test]
fn unsent_replies_are_counted_when_the_server_has_stopped() {
    for mode in modes() {
        let directory = directory();
        let (mut server, count) = server_of_many(&directory, mode);
        server.drain_timeout(Duration::ZERO);
        let client = client(&directory, "client");
        let server = start_server(server);
        client.send_to(b"hello", directory.0.join("server")).unwrap();
        server.wait_for("it is handled", |counters| counters.messages > 0 && counters.replies > 0);
        let (server, _) = server.stop();
        let Counters { replies, unsent, .. } = server.counters();
        assert!(unsent > 0, "under {mode}: {replies} were sent");
        assert_eq!(replies + unsent, count as u64, "under {mode}");
    }
}

#[test]
fn a_server_can_listen_at_an_ipv6_address_with_an_interface() {
    let resolves = ("fe80::1%lo", 0).to_socket_addrs();
    if resolves.is_err() {
        eprintln!("skipped: the address does not resolve: {resolves:?}");
        return;
    }
    for text in ["[fe80::1%lo]:0", "[fe80::1%1]:0"] {
        let endpoint: Endpoint = format!("udp://{text}").parse().unwrap();
        for listener in [Server::tcp(text), Server::udp(text), Server::endpoint(&endpoint)] {
            assert!(listener.is_ok(), "{text}: {:?}", listener.err());
        }
    }
    let wrong = Server::tcp("[fe80::1%no-such-interface]:0").unwrap_err();
    assert!(wrong.to_string().contains("no-such-interface"), "{wrong}");
}

/// Checks the numbers under every mode: what was sent is received or counted as dropped.
#[test]
#[cfg(target_os = "linux")]
fn datagrams_that_find_no_room_in_the_receive_buffer_are_counted_under_every_mode() {
    let forking = Mode::Forking(Forking::default().allow_threads(true));
    for mode in modes().into_iter().chain([forking]) {
        let builder = Server::udp("127.0.0.1:0").unwrap().mode(mode).bind().unwrap();
        let address = builder.address().unwrap().inet().unwrap();
        let socket = builder.socket().unwrap().try_clone_to_owned().unwrap();
        SockRef::from(&socket).set_recv_buffer_size(8192).unwrap(); // about ten datagrams
        let socket = UdpSocket::from(socket);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let send = |count| {
            for _ in 0..count {
                client.send_to(&[0; 500], address).unwrap();
            }
        };
        let wait_until_received = || {
            wait_until("all that was kept is received", || socket.peek_from(&mut [0]).is_err());
        };
        let sum = |counters: &Counters| counters.datagrams + counters.dropped_by_kernel;

        let silent = |_: &Accepted<'_>| handler_fn(|_: &[u8], _: &mut Context<'_>| Ok(()));
        let server = builder.serve(silent).unwrap();
        send(200);
        let server = start_server(server);
        wait_until_received();
        send(1); // the kernel tells the number with it
        server.wait_for("201 datagrams are accounted for", |counters| sum(counters) == 201);
        assert!(server.counters().dropped_by_kernel > 100, "{mode}: {:?}", server.counters());
        let (server, _) = server.stop();

        // No datagram follows those that are dropped.
        send(200);
        let server = start_server(server);
        wait_until_received();
        let (server, _) = server.stop();
        assert_eq!(sum(&server.counters()), 401, "{mode}: {:?}", server.counters());

        // What has waited during a run that ends is received by the next one.
        send(200);
        let mut server = server;
        assert!(server.handle_request().unwrap(), "{mode}");
        let server = start_server(server);
        wait_until_received();
        let (server, _) = server.stop();
        assert_eq!(sum(&server.counters()), 601, "{mode}: {:?}", server.counters());
    }
}
