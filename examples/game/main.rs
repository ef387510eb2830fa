//! A game over UDP, in which many players see each other move. The server decides where everyone is.
//!
//! * [`protocol`]: the datagrams.
//! * [`world`]: the players and the rules.
//! * [`client`] and [`play`]: the other end, for a person at a terminal and for bots.
//!
//! A datagram is answered by its own handler, which lives no longer. What all players see is sent many
//! times a second by a hook of the event loop, through the `DatagramSender` of each player's socket; while
//! nobody plays, the event loop sleeps.
//!
//! The address that a datagram comes from can be forged. So a client has to show a token first, which the
//! server sends to that address; before that, no answer is longer than the question. A client finds the
//! server by multicast: it says `HELLO` to a group that the server has joined on the loopback interface,
//! and the answer comes from the server's own address.
//!
//! Try `game` in one terminal and `game --client --name ann` in two others, or `game --demo`.

#[path = "../common/mod.rs"]
mod common;

mod client;
mod play;
pub(crate) mod protocol;
mod world;

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use common::{About, Options, fail};
use socketserver::{
    Context, DatagramSender, Endpoint, Error, Handler, HandlerResult, Hooks, Mode, Server, Service,
};
use world::World;

/// The group that a server joins.
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 70, 2);

/// The longest datagram of a client that the server reads. A longer one is none of the game.
const LONGEST: usize = 128;

/// The world, shared by the handlers of all datagrams and the hooks.
#[derive(Clone)]
pub(crate) struct Game(Arc<Mutex<World<DatagramSender>>>);

impl Game {
    pub(crate) fn new() -> Self {
        Game(Arc::new(Mutex::new(World::new(Instant::now()))))
    }

    fn world(&self) -> MutexGuard<'_, World<DatagramSender>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The game at this address.
    pub(crate) fn service(&self, endpoint: &Endpoint, mode: Mode) -> Result<Service, Error> {
        let builder = Server::endpoint(endpoint)?.mode(mode).max_packet_size(LONGEST);
        let builder = builder.hooks(self.clone());
        let builder = match endpoint {
            // Only such a socket receives what is sent to a group.
            Endpoint::Udp { host, .. } if host == "0.0.0.0" => {
                builder.join_multicast(GROUP, Ipv4Addr::LOCALHOST)
            }
            _ => builder,
        };
        let game = self.clone();
        builder.service(move |_| game.clone())
    }
}

/// The handler of one datagram.
impl Handler for Game {
    fn on_message(&mut self, datagram: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if cx.is_truncated() {
            return Ok(());
        }
        let (link, now) = (cx.datagram_sender()?, cx.now());
        let answer = self.world().receive(cx.peer(), &link, datagram, now);
        match answer {
            Some(answer) => cx.send(answer.to_string().as_bytes()),
            None => Ok(()),
        }
    }
}

/// The clock of the world. With several listeners, the first that is asked takes the step for all.
///
/// Under `threading` and `pool` a datagram is served by another thread, so the loop sees the first
/// player when the next datagram comes, at most 0.2 seconds later.
impl Hooks for Game {
    fn next_action(&mut self) -> Option<Instant> {
        self.world().next_tick()
    }

    fn service_actions(&mut self) {
        let step = self.world().tick(Instant::now());
        if let Some((see, players)) = step {
            let see = see.to_string();
            for (peer, link) in players {
                // A datagram that is lost is followed by another soon.
                let _ = link.send_to(&peer, see.as_bytes());
            }
        }
    }
}

/// A server and three bots, which find it, meet and leave.
fn demo() -> Result<(), Box<dyn std::error::Error>> {
    let endpoint = Endpoint::Udp { host: "0.0.0.0".to_owned(), port: 0 };
    let mut server = Server::new()?;
    server.add(Game::new().service(&endpoint, Mode::default())?)?;
    let running = server.spawn()?;
    let port = running.local_addr().port().ok_or("a UDP socket has a port")?;
    println!("the server is at {}", running.local_addr());
    play::bots(SocketAddr::from((GROUP, port)), &["ann", "bob", "eve"])?;
    running.stop()?;
    println!("all have left");
    Ok(())
}

/// Where the client looks for the server, and its name; unusable ones end the program.
fn server_and_name(options: &Options) -> (SocketAddr, &str) {
    let url = options.value("server").unwrap_or_default();
    let server = match url.parse() {
        Ok(Endpoint::Udp { host, port }) => (&*host, port).to_socket_addrs(),
        Ok(_) => fail(format_args!("--server {url}: udp://HOST:PORT, please"), 2),
        Err(error) => fail(error, 2),
    };
    let server = server.map(|mut addresses| addresses.next());
    let Ok(Some(server)) = server else {
        fail(format_args!("--server {url}: the host is unknown"), 1);
    };
    match options.value("name").and_then(protocol::name) {
        Some(name) => (server, name),
        None => fail("--name: 1 to 12 letters and digits, please", 2),
    }
}

fn main() {
    let options = Options::parse(&About {
        // Not `forking`: the players share a world.
        modes: &["reactor", "offload", "inline", "threading", "pool"],
        datagrams_only: true,
        flags: &[
            ("client", "play at this terminal, and do not listen"),
            ("demo", "a server and three bots in one program, which ends by itself"),
        ],
        values: &[
            ("server", "udp://239.255.70.2:9995", "where a client looks for the server"),
            ("name", "guest", "the name of the player"),
        ],
        ..About::new("game", "A game over UDP: all players see each other.", "udp://0.0.0.0:9995")
    });
    let ended = match (options.has("client"), options.has("demo")) {
        (true, _) => {
            let (server, name) = server_and_name(&options);
            play::at_terminal(server, name).map_err(Into::into)
        }
        (_, true) => demo(),
        _ => {
            let game = Game::new();
            options.run(|endpoint| game.service(endpoint, options.mode));
            Ok(())
        }
    };
    if let Err(error) = ended {
        fail(error, 1);
    }
}
