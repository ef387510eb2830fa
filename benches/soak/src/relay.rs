//! A relay between clients and a server, which delays what it passes on, and cuts connections.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use socket2::Socket;

use crate::client::connect;
use crate::random::Random;

/// The longest that a relay delays a piece.
const LONGEST_DELAY: Duration = Duration::from_millis(8);

/// A relay that runs until the process ends.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Where it listens.
    pub(crate) url: String,
    /// It cuts every second connection after a random number of bytes.
    pub(crate) cuts: bool,
    /// How many connections it passes on now.
    open: Arc<AtomicUsize>,
}

impl Relay {
    pub(crate) fn start(target: String, cuts: bool, seed: u64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("tcp://{}", listener.local_addr()?);
        let open = Arc::new(AtomicUsize::new(0));
        let counted = open.clone();
        thread::spawn(move || {
            for number in 0.. {
                let Ok((client, _)) = listener.accept() else { continue };
                let (target, open) = (target.clone(), counted.clone());
                open.fetch_add(1, SeqCst);
                thread::spawn(move || {
                    pass_on(client.into(), &target, cuts, Random::of(&[seed, number]));
                    open.fetch_sub(1, SeqCst);
                });
            }
        });
        Ok(Relay { url, cuts, open })
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.open.load(SeqCst) == 0
    }
}

fn pass_on(client: Socket, target: &str, cuts: bool, mut random: Random) {
    let Ok(server) = connect(target) else {
        let _ = client.set_linger(Some(Duration::ZERO));
        return;
    };
    let cut_after = match cuts && random.one_in(2) {
        true => 1 + random.size(300_000) as u64,
        false => u64::MAX,
    };
    let passed = AtomicU64::new(0);
    let [mut there, mut back] = [random.next(), random.next()].map(|seed| Random::of(&[seed]));
    thread::scope(|scope| {
        scope.spawn(|| one_way(&client, &server, &passed, cut_after, &mut there));
        one_way(&server, &client, &passed, cut_after, &mut back);
    });
    if passed.load(SeqCst) >= cut_after {
        let _ = client.set_linger(Some(Duration::ZERO));
        let _ = server.set_linger(Some(Duration::ZERO));
    }
}

/// Passes on one direction until it ends; with an error, or when the connection is cut, both end.
fn one_way(from: &Socket, to: &Socket, passed: &AtomicU64, cut_after: u64, random: &mut Random) {
    let is_ended = copy(from, to, passed, cut_after, random).is_ok_and(|is_whole| is_whole);
    if is_ended {
        let _ = to.shutdown(Shutdown::Write);
    } else {
        for socket in [from, to] {
            let _ = socket.set_linger(Some(Duration::ZERO));
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Copies until the end of the input (true), or until the connection is to be cut (false).
fn copy(
    mut from: &Socket,
    mut to: &Socket,
    passed: &AtomicU64,
    cut_after: u64,
    random: &mut Random,
) -> io::Result<bool> {
    let mut buffer = vec![0; 32 << 10];
    loop {
        let most = 1 + random.size(buffer.len() - 1);
        let count = from.read(&mut buffer[..most])?;
        if count == 0 {
            return Ok(true);
        }
        if random.one_in(4) {
            thread::sleep(LONGEST_DELAY * random.below(100) as u32 / 100);
        }
        to.write_all(&buffer[..count])?;
        if passed.fetch_add(count as u64, SeqCst) + count as u64 >= cut_after {
            return Ok(false);
        }
    }
}
