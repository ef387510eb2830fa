//! Malformed datagrams, over real sockets on the loopback interface: the simulated world has none. What is
//! sent is drawn and shrunk as everywhere.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use socketserver::testing::Check;
use socketserver::{Limits, Mode, Running, Server};

use super::examples::game::Game;
use super::examples::game::protocol::{Notice, Request, Token};
use super::input::Draw;
use super::{dns, syslog};

/// How many runs each protocol has, with up to ten datagrams each.
const RUNS: u64 = 500;

/// How long an answer may take before the question is asked again, and how often it is.
const PATIENCE: Duration = Duration::from_millis(500);
const ATTEMPTS: usize = 20;

/// A running server, and a client of it.
struct Pair {
    running: Running,
    socket: UdpSocket,
}

impl Pair {
    fn new(server: Server) -> Self {
        let running = server.spawn().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], running.local_addr().port().unwrap()));
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Pair { running, socket }
    }

    /// Sends malformed datagrams, and returns their lengths in sum.
    fn send_malformed(&self, draw: Draw<'_>, message: impl Fn(Draw<'_>) -> Vec<u8>) -> usize {
        let datagrams: Vec<_> = (0..1 + draw.below(10)).map(|_| draw.input(&message)).collect();
        for datagram in &datagrams {
            self.socket.send(datagram).unwrap();
        }
        datagrams.iter().map(Vec::len).sum()
    }

    /// Sends a question until an answer satisfies `is_answer`, which sees all answers. Returns how often it
    /// was sent.
    fn ask(&self, question: &[u8], mut is_answer: impl FnMut(&[u8]) -> bool) -> usize {
        let mut buffer = [0; 1 << 16];
        for attempt in 1..=ATTEMPTS {
            self.socket.send(question).unwrap();
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline {
                match self.socket.recv(&mut buffer) {
                    Ok(length) if is_answer(&buffer[..length]) => return attempt,
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        panic!("no answer");
    }

    fn stop(self) {
        assert_eq!(self.running.shutdown_handle().counters().panics, 0);
        self.running.stop().unwrap();
    }
}

fn check(test: impl Fn(Draw<'_>)) {
    Check::new().runs(RUNS).without_faults().run(|world| test(Draw(world)));
}

#[test]
fn malformed_queries_get_a_short_answer_or_none_and_the_next_query_is_answered() {
    let pair = Pair::new(dns::server("udp://127.0.0.1:0", Mode::default(), Limits::default()));
    check(|draw| {
        pair.send_malformed(draw, dns::message);
        let (name, rtype, code, records) = draw.pick(dns::KNOWN);
        // No other query has such a number.
        let id = 0x4000 + draw.below(0x1000) as u16;
        pair.ask(&dns::query(id, name, rtype), |answer| {
            assert!(answer.len() <= 1232);
            let answer = dns::answer(answer);
            answer == (id, code, records)
        });
    });
    pair.stop();
}

#[test]
fn malformed_datagrams_of_syslog_become_lines_of_json() {
    let (syslog, server) =
        syslog::Syslog::at("udp://127.0.0.1:0", Mode::default(), Limits::default());
    let (pair, syslog) = (Pair::new(server), std::cell::RefCell::new(syslog));
    check(|draw| {
        pair.send_malformed(draw, syslog::message);
        let last = format!("last-{}", draw.below(1 << 16));
        let mut syslog = syslog.borrow_mut();
        let deadline = Instant::now() + PATIENCE * ATTEMPTS as u32;
        while !syslog.lines().contains(&format!("local0.info host - {last:?}")) {
            assert!(Instant::now() < deadline, "no line");
            pair.socket.send(format!("<134>1 - host - - - - {last}").as_bytes()).unwrap();
            std::thread::yield_now();
            syslog.take();
        }
        syslog.clear();
    });
    pair.stop();
}

/// A datagram of a player, valid or nearly so.
fn of_player(draw: Draw<'_>, token: Token) -> Vec<u8> {
    let token = if draw.below(2) == 0 { token } else { Token(draw.below(3) as u64) };
    let names = ["ann", "", "a b", "0123456789ab", "0123456789abc", "\u{e4}"];
    match draw.below(6) {
        0 => b"HELLO".to_vec(),
        1 => Request::Hello.to_string().into_bytes(),
        2 => format!("JOIN {token} {}", draw.pick(&names)).into_bytes(),
        3 => format!("LEAVE {token}").into_bytes(),
        4 => format!("SEE 1 1,1,1,{}", draw.pick(&names)).into_bytes(),
        _ => {
            let number = |draw: Draw<'_>| draw.pick(&["0", "5", "65535", "65536", "-1", "x"]);
            format!("GO {token} {} {} {}", number(draw), number(draw), number(draw)).into_bytes()
        }
    }
}

fn game() -> Server {
    let mut server = Server::new().unwrap();
    let endpoint = "udp://127.0.0.1:0".parse().unwrap();
    server.add(Game::new().service(&endpoint, Mode::default()).unwrap()).unwrap();
    server
}

#[test]
fn who_has_not_shown_a_token_gets_no_more_bytes_than_it_sends() {
    let pair = Pair::new(game());
    check(|draw| {
        let mut sent = pair.send_malformed(draw, |draw| of_player(draw, Token(0)));
        let (hello, mut received) = (Request::Hello.to_string(), 0);
        let attempts = pair.ask(hello.as_bytes(), |answer| {
            received += answer.len();
            matches!(Notice::parse(answer).expect("a notice"), Notice::Token(_))
        });
        sent += attempts * hello.len();
        assert!(received <= sent, "{received} bytes for {sent}");
    });
    pair.stop();
}

#[test]
fn malformed_datagrams_of_players_do_not_stop_the_game() {
    let pair = Pair::new(game());
    check(|draw| {
        let mut token = Token(0);
        pair.ask(Request::Hello.to_string().as_bytes(), |answer| match Notice::parse(answer) {
            Some(Notice::Token(given)) => {
                token = given;
                true
            }
            _ => false,
        });
        let join = Request::Join { token, name: "eve" }.to_string();
        pair.send_malformed(draw, |draw| of_player(draw, token));
        let mut has_joined = false;
        pair.ask(join.as_bytes(), |answer| {
            match Notice::parse(answer).expect("a notice") {
                Notice::Joined { .. } => has_joined = true,
                Notice::See { players, .. } => assert!(players.len() <= 1, "{players:?}"),
                _ => {}
            }
            has_joined
        });
    });
    pair.stop();
}
