//! A chat room: each line goes to all other members, and all are notified when one joins or leaves.
//!
//! Try `nc 127.0.0.1 9997` in several terminals. A handler answers its own client through its
//! `Context`. To reach the others it needs a `Sender` of each; a member puts its `Sender` into the
//! room when it joins.

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::{About, Options};
use socketserver::{
    CloseReason, Context, Handler, HandlerResult, Lines, Overlong, Sender, Server, broadcast,
};

/// The members, shared by the handlers of all of them.
#[derive(Default)]
struct Room {
    members: Mutex<Members>,
}

#[derive(Default)]
struct Members {
    /// The number of the member that joined last.
    last: usize,
    /// By the number of the member.
    senders: BTreeMap<usize, Sender>,
}

impl Members {
    /// Sends a line to all members but one. A member that does not read misses the line; the others
    /// do not wait for it.
    fn send_to_others(&self, but: usize, line: &[u8]) {
        let others = self.senders.iter().filter(|(number, _)| **number != but);
        let _ = broadcast(others.map(|(_, sender)| sender), line);
    }
}

impl Room {
    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handler of one member.
struct Member {
    room: Arc<Room>,
    /// 0 until it has joined.
    number: usize,
}

impl Handler for Member {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let sender = cx.sender()?;
        let mut members = self.room.members();
        members.last += 1;
        self.number = members.last;
        let here = members.senders.len();
        cx.send(format!("* you are guest{}, and {here} others are here", self.number).as_bytes())?;
        members.senders.insert(self.number, sender);
        members.send_to_others(self.number, format!("* guest{} joins", self.number).as_bytes());
        Ok(())
    }

    fn on_message(&mut self, line: &[u8], _cx: &mut Context<'_>) -> HandlerResult {
        let line = [format!("guest{}: ", self.number).as_bytes(), line].concat();
        self.room.members().send_to_others(self.number, &line);
        Ok(())
    }

    fn on_close(&mut self, _reason: &CloseReason) {
        let mut members = self.room.members();
        if members.senders.remove(&self.number).is_some() {
            members
                .send_to_others(self.number, format!("* guest{} leaves", self.number).as_bytes());
        }
    }
}

fn main() {
    let options = Options::parse(&About {
        // Not `inline`, which serves one member at a time, and not `forking`, where members share no
        // memory.
        modes: &["reactor", "offload", "threading", "pool"],
        streams_only: true,
        ..About::new("chat", "A chat room, line by line.", "tcp://127.0.0.1:9997")
    });
    let room = Arc::new(Room::default());
    // A line that is too long is discarded; the connection stays open.
    let framing = Lines::default().overlong(Overlong::Discard).unterminated(true);
    options.run(|endpoint| {
        let room = room.clone();
        Server::endpoint(endpoint)?
            .framing(framing.clone())
            .mode(options.mode)
            .service(move |_| Member { room: room.clone(), number: 0 })
    });
}
