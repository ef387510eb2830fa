//! A chat room, and its members over WebSocket. A member says a line, and all others get it, in the
//! framing of their own connections: as a line, or as a WebSocket message.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socketserver::{
    CloseReason, Context, FramingError, HandlerError, HandlerResult, Sender, broadcast,
};

use super::common::shown;
use super::websocket::{self, Frame, Violation};

/// The members, shared by the handlers of all of them.
#[derive(Default)]
pub(crate) struct Room {
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
    fn send_to_others(&self, but: usize, line: &str) {
        let others = self.senders.iter().filter(|(number, _)| **number != but);
        let _ = broadcast(others.map(|(_, sender)| sender), line.as_bytes());
    }
}

impl Room {
    /// Makes this connection a member, and tells it and all others so.
    ///
    /// # Errors
    ///
    /// Under `inline` and `forking` a connection has no `Sender`, so it cannot join.
    pub(crate) fn join(self: &Arc<Self>, cx: &mut Context<'_>) -> Result<Member, HandlerError> {
        let sender = cx.sender()?;
        let mut members = self.members();
        members.last += 1;
        let number = members.last;
        let here = members.senders.len();
        cx.send(format!("* you are guest{number}, and {here} others are here").as_bytes())?;
        members.senders.insert(number, sender);
        members.send_to_others(number, &format!("* guest{number} joins"));
        Ok(Member { room: self.clone(), number })
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A member of a room. Dropping it leaves the room.
pub(crate) struct Member {
    room: Arc<Room>,
    number: usize,
}

impl Member {
    /// Says a line to all others. It arrives as one line of valid text, whatever it was.
    pub(crate) fn say(&self, line: &[u8]) {
        let line = format!("guest{}: {}", self.number, shown(line));
        self.room.members().send_to_others(self.number, &line);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut members = self.room.members();
        if members.senders.remove(&self.number).is_some() {
            members.send_to_others(self.number, &format!("* guest{} leaves", self.number));
        }
    }
}

/// A member whose connection is a WebSocket: its framing is [`websocket::Frames`], or has one.
pub(crate) struct WebMember {
    member: Member,
    /// It was asked for a sign of life.
    pinged: bool,
}

impl WebMember {
    pub(crate) fn new(member: Member) -> Self {
        WebMember { member, pinged: false }
    }

    /// Takes what [`websocket::Frames::take`] has returned.
    pub(crate) fn on_frame(&mut self, frame: Option<Frame>, cx: &mut Context<'_>) {
        self.pinged = false;
        match frame {
            Some(Frame::Text(text)) => self.member.say(text.as_bytes()),
            Some(Frame::Ping(payload)) => websocket::put_pong(&payload, &mut cx.output()),
            Some(Frame::Binary) => end(Some(1003), cx), // the room is for text
            Some(Frame::Close(code)) => end(code, cx),
            Some(Frame::Pong) | None => {}
        }
    }

    /// Asks a silent member for a sign of life, and closes the connection if that was in vain.
    pub(crate) fn on_idle_timeout(&mut self, cx: &mut Context<'_>) {
        match self.pinged {
            true => cx.abort(),
            false => websocket::put_ping(&mut cx.output()),
        }
        self.pinged = true;
    }
}

/// Tells a client that the connection closes, and closes it.
pub(crate) fn end(code: Option<u16>, cx: &mut Context<'_>) {
    websocket::put_close(code, &mut cx.output());
    cx.close();
}

/// Tells a client what it has done wrong, in `on_reject`.
pub(crate) fn reject(reason: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
    if let CloseReason::Framing(FramingError::Other(error)) = reason
        && let Some(Violation(code, ..)) = error.downcast_ref()
    {
        websocket::put_close(Some(*code), &mut cx.output());
    }
    Ok(())
}
