//! How the lines of the log name connections and datagrams.

mod support;

use std::io::{self, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, Once};

use log::Level;
use socketserver::{
    Accepted, BlockingMode, Context, Handler, HandlerResult, Hooks, Mode, Peer, Request,
    RequestHandler, Server,
};
use support::{start_server, wait_until};

const LOCAL: &str = "127.0.0.1:0";

static LINES: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

struct Remembering;

impl log::Log for Remembering {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LINES.lock().unwrap().push((record.level(), record.args().to_string()));
    }

    fn flush(&self) {}
}

fn remember_lines() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Remembering).unwrap();
        log::set_max_level(log::LevelFilter::Debug);
    });
}

/// The number in the line that says `what` of the connection with this peer.
fn logged_number(level: Level, peer: SocketAddr, what: &str) -> u64 {
    let suffix = format!(" of {peer}{what}");
    let mut number = None;
    wait_until(&format!("{level}: connection … {suffix}"), || {
        number = LINES.lock().unwrap().iter().find_map(|(at, line)| {
            let line = line.strip_prefix("connection ")?.strip_suffix(&suffix)?;
            (*at == level).then(|| line.parse().unwrap())
        });
        number.is_some()
    });
    number.unwrap()
}

/// Fails when it is told to, and tells its number where it can.
struct Fails;

impl Handler for Fails {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if message == b"fail" {
            return Err("as it was told".into());
        }
        let number = cx.sender().map_or(0, |sender| u64::from(sender.id()));
        cx.send(number.to_string().as_bytes())
    }
}

impl RequestHandler for Fails {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        match request.read_line()? {
            Some(line) if line == b"fail" => Err("as it was told".into()),
            _ => Ok(request.write_all(b"0")?),
        }
    }
}

/// Hooks that do nothing of their own about faults.
struct Plain;

impl Hooks for Plain {}

// A forked child logs where the test cannot look.
fn modes() -> impl Iterator<Item = Mode> {
    Mode::all().filter(|mode| mode.name() != "forking")
}

#[test]
fn the_end_and_the_fault_of_a_connection_are_logged_with_its_number_and_peer() {
    remember_lines();
    for mode in modes() {
        let builder = Server::tcp(LOCAL).unwrap().hooks(Plain).mode(mode);
        let server = start_server(builder.serve(|_: &Accepted<'_>| Fails).unwrap());
        let mut client = server.connect();
        let peer = client.stream.local_addr().unwrap();
        client.send("number?").end();
        let number: u64 = String::from_utf8(client.read_to_end()).unwrap().parse().unwrap();
        let logged = logged_number(Level::Debug, peer, ": end of input");
        assert!(number == 0 || number == logged, "{mode}: {number} and {logged}");
        let mut client = server.connect();
        let peer = client.stream.local_addr().unwrap();
        client.send("fail").expect_closed();
        let fault = logged_number(Level::Error, peer, ": handler failed: as it was told");
        assert!(fault > logged, "{mode}");
    }
}

#[test]
fn a_blocking_request_is_logged_with_its_number_and_peer() {
    remember_lines();
    for mode in modes() {
        let Ok(mode) = BlockingMode::try_from(mode) else { continue };
        let builder = Server::tcp(LOCAL).unwrap().mode(mode);
        let server = start_server(builder.serve_blocking(|_: &Accepted<'_>| Fails).unwrap());
        let mut client = server.connect();
        let peer = client.stream.local_addr().unwrap();
        client.send("number?\n").expect_reply("0").expect_closed();
        let number = logged_number(Level::Debug, peer, ": closed by the handler");
        let mut client = server.connect();
        let peer = client.stream.local_addr().unwrap();
        client.send("fail\n").expect_closed();
        let fault = logged_number(Level::Error, peer, ": handler failed: as it was told");
        assert!(fault > number);
    }
}

#[test]
fn a_connection_without_a_handler_or_refused_by_a_hook_has_a_number_too() {
    struct Refuses;
    impl Hooks for Refuses {
        fn on_accept(&mut self, _: BorrowedFd<'_>, _: &Peer) -> io::Result<()> {
            Err(io::Error::other("not today"))
        }
    }
    remember_lines();
    for mode in modes() {
        let builder = Server::tcp(LOCAL).unwrap().mode(mode);
        let server = builder.serve(|_: &Accepted<'_>| -> Fails { panic!("no handler today") });
        let server = start_server(server.unwrap());
        let mut client = server.connect();
        let peer = client.stream.local_addr().unwrap();
        client.expect_gone();
        logged_number(Level::Error, peer, ": handler panicked: no handler today");
    }
    let server =
        Server::tcp(LOCAL).unwrap().hooks(Refuses).serve(|_: &Accepted<'_>| Fails).unwrap();
    let server = start_server(server);
    let mut client = server.connect();
    let peer = client.stream.local_addr().unwrap();
    client.expect_gone();
    logged_number(Level::Warn, peer, " is not served: not today");
}

#[test]
fn a_datagram_is_logged_by_its_peer_alone() {
    remember_lines();
    for mode in modes() {
        let builder = Server::udp(LOCAL).unwrap().mode(mode);
        let server = start_server(builder.serve(|_: &Accepted<'_>| Fails).unwrap());
        let client = UdpSocket::bind(LOCAL).unwrap();
        client.send_to(b"fail", server.address()).unwrap();
        let peer = client.local_addr().unwrap();
        let line = (Level::Error, format!("{peer}: handler failed: as it was told"));
        wait_until(&line.1, || LINES.lock().unwrap().contains(&line));
    }
}
