//! The players: a person at a terminal, and the bots of the demonstration.

use std::collections::HashSet;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::client::Client;
use super::protocol::{Place, Seen};

/// How often a player repeats where it wants to go.
const REPEAT: Duration = Duration::from_millis(200);

/// How long a bot waits for the others.
const LONGEST_WALK: Duration = Duration::from_secs(10);

/// Plays at a terminal: `w`, `a`, `s` and `d` and Enter walk, `q` or the end of the input leaves.
pub(crate) fn at_terminal(server: SocketAddr, name: &str) -> io::Result<()> {
    let mut client = Client::join(server, name)?;
    let (typed, keys) = mpsc::channel();
    // Ends with the program: a read of the terminal cannot be interrupted.
    thread::Builder::new().name("keys".to_owned()).spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if line.bytes().any(|key| typed.send(key).is_err()) {
                return;
            }
        }
    })?;
    let (mut to, mut shown) = (client.start, Vec::new());
    let mut repeat = Instant::now();
    loop {
        if repeat <= Instant::now() {
            client.go(to)?;
            repeat = Instant::now() + REPEAT;
        }
        if let Some(players) = client.see(REPEAT)?.filter(|players| *players != shown) {
            show(&players, &client)?;
            shown = players;
        }
        loop {
            match keys.try_recv() {
                Ok(b'w') => to.y = to.y.saturating_sub(1),
                Ok(b's') => to.y = (to.y + 1).min(client.height - 1),
                Ok(b'a') => to.x = to.x.saturating_sub(1),
                Ok(b'd') => to.x = (to.x + 1).min(client.width - 1),
                Ok(b'q') | Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
                Ok(_) => continue,
                Err(mpsc::TryRecvError::Empty) => break,
            }
            repeat = Instant::now();
        }
    }
}

/// Shows the board on a terminal, and else the players alone, in one line.
fn show(players: &[Seen], client: &Client) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let list: Vec<_> = players
        .iter()
        .map(|Seen { at, name, number }| {
            let own = if *number == client.number { "*" } else { "" };
            format!("{own}{name} {},{}", at.x, at.y)
        })
        .collect();
    if stdout.is_terminal() {
        let mut board = vec![vec!['.'; client.width.into()]; client.height.into()];
        for Seen { at, name, number } in players {
            let first = name.chars().next().unwrap_or('?');
            let own = *number == client.number;
            if let Some(cell) =
                board.get_mut(usize::from(at.y)).and_then(|row| row.get_mut(usize::from(at.x)))
            {
                *cell = if own { '@' } else { first };
            }
        }
        write!(stdout, "\x1b[H\x1b[2J")?;
        for row in board {
            writeln!(stdout, "{}", row.into_iter().collect::<String>())?;
        }
        writeln!(stdout, "w a s d and Enter: walk, q and Enter: leave")?;
    }
    writeln!(stdout, "{}", list.join("  "))?;
    stdout.flush()
}

/// Bots that walk to the middle of the board, and leave when each has seen all others there.
pub(crate) fn bots(server: SocketAddr, names: &[&str]) -> io::Result<()> {
    let all_have_met = Barrier::new(names.len());
    thread::scope(|scope| {
        let bots: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(|| bot(server, name, names.len(), &all_have_met)))
            .collect();
        let panicked = |_| Err(io::Error::other("a bot has panicked"));
        bots.into_iter().try_for_each(|bot| bot.join().unwrap_or_else(panicked))
    })
}

fn bot(server: SocketAddr, name: &str, count: usize, all_have_met: &Barrier) -> io::Result<()> {
    let meeting = walk(server, name, count);
    all_have_met.wait(); // also after an error, or the others would wait for ever
    meeting.map(drop)
}

/// Walks until all bots are in the middle. Returns the client, which leaves when it is dropped.
fn walk(server: SocketAddr, name: &str, count: usize) -> io::Result<Client> {
    let (mut client, mut stdout) = (Client::join(server, name)?, io::stdout());
    writeln!(stdout, "{name} has joined as number {}", client.number)?;
    let middle = Place { x: client.width / 2, y: client.height / 2 };
    let mut known = HashSet::from([client.number]);
    let (start, mut repeat) = (Instant::now(), Instant::now());
    while start.elapsed() < LONGEST_WALK {
        if repeat <= Instant::now() {
            client.go(middle)?;
            repeat = Instant::now() + REPEAT;
        }
        let Some(players) = client.see(REPEAT)? else { continue };
        for Seen { number, at, name: other } in &players {
            if known.insert(*number) {
                writeln!(stdout, "{name} sees {other} at {},{}", at.x, at.y)?;
            }
        }
        if players.iter().filter(|player| player.at == middle).count() >= count {
            writeln!(stdout, "{name} sees all {count} at {},{}", middle.x, middle.y)?;
            return Ok(client);
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("{name} has not met the others")))
}
