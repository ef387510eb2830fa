//! The world: who plays, and where everyone is. It decides; the players only say where they want to go.
//!
//! It knows no sockets and no clock. `L` is how a player is reached.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use socketserver::Peer;

use super::protocol::{Notice, Place, Request, Seen, Token};

pub(crate) const WIDTH: u16 = 32;
pub(crate) const HEIGHT: u16 = 12;

/// How often all players walk one step, and see where everyone is.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// How many can play. What they see fits into one packet of any network.
const MOST_PLAYERS: usize = 32;

/// A player that has said nothing for this time has left.
const SILENCE: Duration = Duration::from_secs(5);

/// How long a token can be used to join, at least; at most twice as long.
const TOKEN_PERIOD: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct World<L> {
    players: HashMap<Peer, Player<L>>,
    /// The number of the player who joined last.
    last: u32,
    tick: u64,
    /// When the next tick is due; `None` while nobody plays.
    next_tick: Option<Instant>,
    /// The key of the tokens. A token is made of it and the address, so the server stores nothing for
    /// an address that has not proved itself.
    key: RandomState,
    start: Instant,
}

#[derive(Debug)]
struct Player<L> {
    link: L,
    token: Token,
    number: u32,
    name: String,
    at: Place,
    to: Place,
    /// The count of the last `GO`: an older one that arrives later is ignored.
    count: u64,
    last_heard: Instant,
}

impl<L: Clone> World<L> {
    pub(crate) fn new(now: Instant) -> Self {
        World {
            players: HashMap::new(),
            last: 0,
            tick: 0,
            next_tick: None,
            key: RandomState::new(),
            start: now,
        }
    }

    /// Takes a datagram of this peer, and returns the answer. To an address that has not proved that
    /// it receives, the answer is never longer than the datagram.
    pub(crate) fn receive(
        &mut self,
        peer: &Peer,
        link: &L,
        datagram: &[u8],
        now: Instant,
    ) -> Option<Notice> {
        match Request::parse(datagram)? {
            Request::Hello => {
                let answer = Notice::Token(self.token(peer, self.period(now)));
                (answer.to_string().len() <= datagram.len()).then_some(answer)
            }
            Request::Join { token, name } => self.join(peer, link, token, name, now),
            Request::Go { token, count, to } => {
                let player = self.players.get_mut(peer).filter(|player| player.token == token)?;
                if count > player.count {
                    player.count = count;
                    player.to = Place { x: to.x.min(WIDTH - 1), y: to.y.min(HEIGHT - 1) };
                    player.last_heard = now;
                }
                None
            }
            Request::Leave { token } => {
                if self.players.get(peer)?.token == token {
                    self.players.remove(peer);
                }
                None
            }
        }
    }

    fn join(
        &mut self,
        peer: &Peer,
        link: &L,
        token: Token,
        name: &str,
        now: Instant,
    ) -> Option<Notice> {
        let period = self.period(now);
        let is_recent = [period, period.saturating_sub(1)].map(|period| self.token(peer, period));
        if !is_recent.contains(&token) {
            return None;
        }
        if !self.players.contains_key(peer) {
            if self.players.len() >= MOST_PLAYERS {
                return Some(Notice::Full);
            }
            self.last = self.last.wrapping_add(1);
            let number = self.last;
            // Somewhere; not all at the same place.
            let at = Place {
                x: (number.wrapping_mul(13) % u32::from(WIDTH)) as u16,
                y: (number.wrapping_mul(5) % u32::from(HEIGHT)) as u16,
            };
            let (name, count) = (name.to_owned(), 0);
            let player = Player {
                link: link.clone(),
                token,
                number,
                name,
                at,
                to: at,
                count,
                last_heard: now,
            };
            self.players.insert(peer.clone(), player);
            self.next_tick.get_or_insert(now + TICK);
        }
        // Also if it plays already: the first answer may have been lost.
        let player = self.players.get_mut(peer)?;
        player.token = token;
        player.last_heard = now;
        let Player { number, at, .. } = *player;
        Some(Notice::Joined { number, width: WIDTH, height: HEIGHT, at })
    }

    fn period(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / TOKEN_PERIOD.as_secs()
    }

    fn token(&self, peer: &Peer, period: u64) -> Token {
        Token(self.key.hash_one((peer, period)))
    }

    /// When [`tick`](World::tick) is due; `None` while nobody plays.
    pub(crate) fn next_tick(&self) -> Option<Instant> {
        self.next_tick
    }

    /// Moves the world one step on, if that is due: returns what all players see, and the players.
    pub(crate) fn tick(&mut self, now: Instant) -> Option<(Notice, Vec<(Peer, L)>)> {
        let due = self.next_tick.filter(|due| *due <= now)?;
        self.players.retain(|_, player| now.saturating_duration_since(player.last_heard) < SILENCE);
        if self.players.is_empty() {
            self.next_tick = None;
            return None;
        }
        // Late ticks are not made up for.
        self.next_tick = Some((due + TICK).max(now));
        self.tick += 1;
        let mut players = Vec::with_capacity(self.players.len());
        for player in self.players.values_mut() {
            player.at.x = step(player.at.x, player.to.x);
            player.at.y = step(player.at.y, player.to.y);
            let Player { number, at, name, .. } = player;
            players.push(Seen { number: *number, at: *at, name: name.clone() });
        }
        players.sort_by_key(|player| player.number);
        let to = self.players.iter().map(|(peer, player)| (peer.clone(), player.link.clone()));
        Some((Notice::See { tick: self.tick, players }, to.collect()))
    }
}

/// One step from `at` towards `to`.
fn step(at: u16, to: u16) -> u16 {
    if at < to { at + 1 } else { at - u16::from(at > to) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> Peer {
        Peer::Inet(([127, 0, 0, 1], port).into())
    }

    fn say(
        world: &mut World<u16>,
        port: u16,
        request: Request<'_>,
        now: Instant,
    ) -> Option<Notice> {
        world.receive(&peer(port), &port, request.to_string().as_bytes(), now)
    }

    fn token(world: &mut World<u16>, port: u16, now: Instant) -> Token {
        match say(world, port, Request::Hello, now) {
            Some(Notice::Token(token)) => token,
            other => panic!("{other:?}"),
        }
    }

    fn join(world: &mut World<u16>, port: u16, now: Instant) -> (Token, Option<Notice>) {
        let token = token(world, port, now);
        (token, say(world, port, Request::Join { token, name: "somebodylong" }, now))
    }

    #[test]
    fn who_has_proved_its_address_plays_and_all_see_where_everyone_is() {
        let now = Instant::now();
        let mut world = World::new(now);
        assert_eq!(world.next_tick(), None);
        let (token, joined) = join(&mut world, 1, now);
        assert_eq!(
            joined,
            Some(Notice::Joined {
                number: 1,
                width: WIDTH,
                height: HEIGHT,
                at: Place { x: 13, y: 5 }
            })
        );
        join(&mut world, 2, now);
        let to = Place { x: 60_000, y: 0 };
        assert_eq!(say(&mut world, 1, Request::Go { token, count: 1, to }, now), None);
        // An older one that has arrived later.
        say(&mut world, 1, Request::Go { token, count: 1, to: Place { x: 0, y: 0 } }, now);
        let mut places = Vec::new();
        let mut due = world.next_tick().unwrap();
        for _ in 0..40 {
            assert!(world.tick(due - Duration::from_millis(1)).is_none());
            let (Notice::See { players, .. }, to) = world.tick(due).unwrap() else { panic!() };
            assert_eq!((players.len(), to.len()), (2, 2));
            places.push(players[0].at);
            due = world.next_tick().unwrap();
        }
        assert_eq!(places[0], Place { x: 14, y: 4 });
        assert_eq!(places[39], Place { x: WIDTH - 1, y: 0 });
        say(&mut world, 1, Request::Leave { token }, now);
        let (Notice::See { players, .. }, _) = world.tick(due).unwrap() else { panic!() };
        assert_eq!(players.len(), 1);
    }

    #[test]
    fn without_the_token_of_its_own_address_nobody_joins_moves_or_leaves() {
        let now = Instant::now();
        let mut world = World::new(now);
        let stolen = token(&mut world, 1, now);
        assert_eq!(say(&mut world, 2, Request::Join { token: stolen, name: "x" }, now), None);
        assert_eq!(world.next_tick(), None);
        join(&mut world, 2, now);
        let to = Place { x: 0, y: 0 };
        say(&mut world, 2, Request::Go { token: stolen, count: 5, to }, now);
        say(&mut world, 2, Request::Leave { token: stolen }, now);
        let player = &world.players[&peer(2)];
        assert_eq!((player.count, player.to), (0, player.at));
    }

    #[test]
    fn a_hello_that_is_shorter_than_its_answer_gets_none() {
        let now = Instant::now();
        let mut world = World::new(now);
        for datagram in ["HELLO", "HELLO                ", "nonsense", ""] {
            assert_eq!(world.receive(&peer(1), &1, datagram.as_bytes(), now), None);
        }
    }

    #[test]
    fn a_token_is_good_for_a_minute_and_not_for_long() {
        let now = Instant::now();
        let mut world = World::new(now);
        let token = token(&mut world, 1, now);
        let join = Request::Join { token, name: "x" };
        assert_eq!(say(&mut world, 1, join, now + 2 * TOKEN_PERIOD), None);
        assert!(say(&mut world, 1, join, now + TOKEN_PERIOD).is_some());
    }

    #[test]
    fn a_player_that_is_silent_has_left_and_an_empty_world_rests() {
        let now = Instant::now();
        let mut world = World::new(now);
        join(&mut world, 1, now);
        assert!(world.tick(now + SILENCE - TICK).is_some());
        assert!(world.tick(now + SILENCE).is_none());
        assert_eq!(world.next_tick(), None);
    }

    #[test]
    fn a_full_world_takes_no_more_and_what_it_shows_fits_into_a_packet() {
        let now = Instant::now();
        let mut world = World::new(now);
        world.last = u32::MAX - 40;
        world.tick = u64::MAX - 1;
        for port in 1..=MOST_PLAYERS as u16 {
            assert!(matches!(join(&mut world, port, now).1, Some(Notice::Joined { .. })));
        }
        assert_eq!(join(&mut world, 99, now).1, Some(Notice::Full));
        // One that plays already is told so again.
        assert!(matches!(join(&mut world, 1, now).1, Some(Notice::Joined { .. })));
        let (see, _) = world.tick(now + TICK).unwrap();
        assert!(see.to_string().len() <= 1200, "{}", see.to_string().len());
    }
}
