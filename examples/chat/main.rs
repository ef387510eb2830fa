//! A chat room: each line goes to all other members, and all are notified when one joins or leaves.
//!
//! Try `nc 127.0.0.1 9997` in several terminals. With `--websocket tcp://127.0.0.1:9996`, programs and
//! pages that speak WebSocket are members of the same room. A handler answers its own client through
//! its `Context`. To reach the others it needs a `Sender` of each; a member puts its `Sender` into the
//! room when it joins. What a `Sender` sends gets the framing of its own connection, so the room need
//! not know who speaks what.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/room.rs"]
mod room;
mod web;
#[path = "../common/websocket.rs"]
mod websocket;

use std::sync::Arc;

use common::{About, Options, fail};
use room::Member;
pub(crate) use room::Room;
use socketserver::{
    Builder, CloseReason, Context, Error, Handler, HandlerResult, Lines, Mode, Overlong, Raw,
    Server, Service,
};
use web::{Opening, WebClient};

/// The handler of a member that sends lines.
struct LineClient {
    room: Arc<Room>,
    /// `None` until it has joined.
    member: Option<Member>,
}

impl Handler for LineClient {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.member = Some(self.room.join(cx)?);
        Ok(())
    }

    fn on_message(&mut self, line: &[u8], _cx: &mut Context<'_>) -> HandlerResult {
        if let Some(member) = &self.member {
            member.say(line);
        }
        Ok(())
    }

    fn on_close(&mut self, _reason: &CloseReason) {
        self.member = None;
    }
}

/// The service of members that send lines. A line that is too long is discarded; the connection stays
/// open.
pub(crate) fn lines(builder: Builder<Raw, Mode>, room: &Arc<Room>) -> Result<Service, Error> {
    let room = room.clone();
    builder
        .framing(Lines::default().overlong(Overlong::Discard).unterminated(true))
        .service(move |_| LineClient { room: room.clone(), member: None })
}

/// The service of members with WebSocket.
pub(crate) fn websockets(builder: Builder<Raw, Mode>, room: &Arc<Room>) -> Result<Service, Error> {
    let room = room.clone();
    builder.service_with(move |_| (Opening::new(), WebClient::new(room.clone())))
}

fn main() {
    let mut options = Options::parse(&About {
        // Not `inline`, which serves one member at a time, and not `forking`, where members share no
        // memory.
        modes: &["reactor", "offload", "threading", "pool"],
        streams_only: true,
        values: &[("websocket", "none", "a URL, as for --listen, for members with WebSocket")],
        ..About::new("chat", "A chat room, line by line.", "tcp://127.0.0.1:9997")
    });
    let mut lines_left = options.listen.len();
    if let Some(url) = options.value("websocket").filter(|url| *url != "none") {
        match url.parse() {
            Ok(endpoint) if !common::is_datagram(&endpoint) => options.listen.push(endpoint),
            Ok(_) => fail("--websocket needs connections", 2),
            Err(error) => fail(error, 2),
        }
    }
    let room = Arc::new(Room::default());
    options.run(|endpoint| {
        let builder = Server::endpoint(endpoint)?.mode(options.mode).limits(options.limits());
        if lines_left == 0 {
            return websockets(builder, &room);
        }
        lines_left -= 1;
        lines(builder, &room)
    });
}
