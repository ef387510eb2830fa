//! The heart: one peer's state machine, sans I/O.
//!
//! **Invariant:** nothing here knows a socket or a thread, or reads a clock. Bytes come in, bytes
//! and effects go out. Each [`Handler`] method is called from exactly one place, in this file; the
//! reactor's pump and the blocking one both drive a [`Conversation`], and so the same handler
//! behaves the same under every mode.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::address::Peer;
use crate::counters::Tally;
use crate::error::{CloseReason, FramingError};
use crate::guard::{self, panic_message};
use crate::log;
use crate::mailbox::{Ending, Outlet, Parcel};
use crate::sys::CatchDrop;

mod context;
mod framing;
mod handler;
mod output;
#[cfg(test)]
mod tests;

pub use context::Context;
pub(crate) use context::Home;
pub use framing::{
    BoxFraming, Decoded, Delimited, Encodable, Endian, FixedSize, Framing, LengthPrefixed, Lines,
    Overlong, Raw, Width,
};
pub use handler::{Handler, HandlerFn, handler_fn};
pub use output::Output;
pub(crate) use output::{Outgoing, Rest};

/// How long the peer of a connection that is over may take none of its last output.
pub(crate) const CLOSING_PATIENCE: Duration = Duration::from_secs(30);

/// How many steps of the framing, and so how many messages, are taken before others come first: who
/// drives the conversation goes on with the rest later.
pub(crate) const MESSAGE_BUDGET: usize = 256;

/// Memory of less than this is kept for the input that follows.
const SHRINK_FROM: usize = 64 * 1024;

/// What a conversation works with for one turn: it belongs to whoever drives it.
pub(crate) struct Env<'a> {
    /// Where output is collected, to be sent before the next call.
    pub(crate) outgoing: &'a mut Outgoing,
    /// What has happened, counted.
    pub(crate) tally: &'a mut Tally,
    /// How the conversation is reached from elsewhere.
    pub(crate) home: &'a dyn Home,
    /// How much output may be collected before input is left for later.
    pub(crate) room: usize,
    /// Set when the handler has asked the server to stop.
    pub(crate) shutdown: bool,
}

impl<'a> Env<'a> {
    pub(crate) fn new(
        outgoing: &'a mut Outgoing,
        tally: &'a mut Tally,
        home: &'a dyn Home,
        room: usize,
    ) -> Self {
        Env { outgoing, tally, home, room, shutdown: false }
    }
}

/// What a handler can change through its [`Context`].
#[derive(Debug)]
struct State {
    peer: Peer,
    /// The way in from other threads, made when first asked for.
    outlet: Option<Arc<Outlet>>,
    timeout: Option<Duration>,
    /// Why the conversation is ending, once it is.
    ending: Option<Box<CatchDrop<CloseReason>>>,
    timeout_changed: bool,
    aborted: bool,
    datagram: bool,
    truncated: bool,
    /// `on_open` has been called and `on_close` has not.
    open: bool,
    input_ended: bool,
    /// Input was left undelivered because the output was at its mark, or the budget was used up.
    stuffed: bool,
    /// It may be ending, ended, stuffed, or reached from elsewhere: one look instead of four.
    special: bool,
}

impl State {
    fn new(peer: Peer, datagram: bool) -> Self {
        State {
            peer,
            outlet: None,
            timeout: None,
            ending: None,
            timeout_changed: false,
            aborted: false,
            datagram,
            truncated: false,
            open: false,
            input_ended: false,
            stuffed: false,
            special: false,
        }
    }

    #[inline]
    fn is_over(&self) -> bool {
        self.ending.is_some()
    }

    /// Forgets that input was left: it is about to be delivered.
    #[inline(never)]
    fn unstuff(&mut self) {
        self.stuffed = false;
        self.special =
            self.is_over() || self.input_ended || self.timeout_changed || self.outlet.is_some();
    }

    /// Notes why it ends: the first reason stands, but for a fault, which is what must be told.
    #[cold]
    fn end(&mut self, reason: CloseReason) {
        if self.ending.is_none() || reason.is_fault() {
            self.ending = Some(Box::new(reason.into()));
        }
        self.special = true;
    }

    /// Notes that it ends by a reset, and that no output goes out any more.
    #[cold]
    fn abort(&mut self) {
        self.end(CloseReason::Handler);
        self.aborted = true;
    }
}

/// One peer's conversation: its handler, its framing, its leftover input, and how it stands.
#[derive(Debug)]
pub(crate) struct Conversation<H, F> {
    handler: CatchDrop<H>,
    framing: CatchDrop<F>,
    state: State,
    /// Input that is not a whole message yet, and, while a turn lasts, all of it.
    inbox: Vec<u8>,
    /// How much of the current input has been delivered.
    consumed: usize,
}

/// What the framing has said of the start of the input kept, where it was asked ahead of a delivery;
/// nothing where it panicked: it is asked again where panics are counted.
pub(crate) struct Ahead(Option<Result<Decoded, FramingError>>);

impl<H: Handler, F: Framing> Conversation<H, F> {
    /// A conversation on a stream.
    pub(crate) fn new(handler: CatchDrop<H>, framing: CatchDrop<F>, peer: Peer) -> Self {
        let state = State::new(peer, false);
        Conversation { handler, framing, state, inbox: Vec::new(), consumed: 0 }
    }

    /// Begins: the connection is open.
    pub(crate) fn open(&mut self, env: &mut Env<'_>) {
        self.guarded(env, |this, env| {
            this.state.open = true;
            let (handler, mut cx) = this.parts(&[], env);
            if let Err(error) = handler.on_open(&mut cx) {
                this.state.end(CloseReason::Error(error));
            }
        });
    }

    /// Takes in `fresh` bytes and delivers the messages that are whole now, or, with none, goes on
    /// with what was left for want of room or because the budget was used up.
    ///
    /// The output refers to the input, so the caller sends it, with [`input`](Self::input), and then
    /// calls [`settle`](Self::settle) with the same bytes before anything else.
    #[inline(always)] // the hot path: one call less per layer is a tenth of all instructions
    pub(crate) fn receive(&mut self, fresh: &[u8], env: &mut Env<'_>) {
        if self.state.special {
            self.state.unstuff();
        }
        if self.inbox.is_empty() {
            self.guarded(env, |this, env| this.deliver(fresh, env));
        } else {
            self.receive_more(fresh, env);
        }
    }

    #[inline(never)]
    fn receive_more(&mut self, fresh: &[u8], env: &mut Env<'_>) {
        self.inbox.extend_from_slice(fresh);
        self.with_inbox(env, |this, input, env| this.deliver(input, env));
    }

    /// Keeps `fresh` bytes to be delivered later, by [`receive_kept`](Self::receive_kept).
    pub(crate) fn keep(&mut self, fresh: &[u8]) {
        self.inbox.extend_from_slice(fresh);
    }

    /// What is whole among the bytes kept, a message or an error in place of one, if anything is.
    ///
    /// The framing is asked about no message twice: what it says of one is for
    /// [`receive_kept`](Self::receive_kept).
    pub(crate) fn look_ahead(&mut self) -> Option<Ahead> {
        let mut skipped = 0;
        let mut ahead = None;
        while ahead.is_none() && skipped < self.inbox.len() {
            let input = &self.inbox[skipped..];
            match guard::call(|| self.framing.decode(input)) {
                Ok(Ok(Decoded::Incomplete)) => break,
                Ok(Ok(Decoded::Skip(count))) if (1..=input.len()).contains(&count) => {
                    skipped += count
                }
                Ok(step) => ahead = Some(Ahead(Some(step))),
                Err(_) => ahead = Some(Ahead(None)),
            }
        }
        if skipped > 0 {
            self.drop_first(skipped);
        }
        self.state.stuffed = false;
        ahead
    }

    /// Delivers every message that is whole among the bytes kept, as [`receive`](Self::receive) does;
    /// of the first it is known what the framing says.
    pub(crate) fn receive_kept(&mut self, ahead: &mut Ahead, env: &mut Env<'_>) {
        if self.state.special {
            self.state.unstuff();
        }
        self.with_inbox(env, |this, input, env| {
            if let Some(step) = ahead.0.take() {
                this.step(step, input, env);
            }
            this.deliver(input, env);
        });
    }

    /// What the output of the last [`receive`](Self::receive) refers to.
    #[inline(always)]
    pub(crate) fn input<'a>(&'a self, fresh: &'a [u8]) -> &'a [u8] {
        if self.inbox.is_empty() { fresh } else { &self.inbox }
    }

    /// Drops what was delivered and keeps the rest, now that the output has been dealt with.
    #[inline(always)]
    pub(crate) fn settle(&mut self, fresh: &[u8]) {
        // Nothing was kept and all was delivered: nearly always.
        if self.inbox.is_empty() && self.consumed == fresh.len() {
            self.consumed = 0;
        } else {
            self.settle_rest(fresh);
        }
    }

    #[inline(never)]
    fn settle_rest(&mut self, fresh: &[u8]) {
        let consumed = std::mem::take(&mut self.consumed);
        if self.state.is_over() {
            self.inbox = Vec::new();
        } else if !self.inbox.is_empty() {
            self.drop_first(consumed);
        } else if consumed < fresh.len() {
            self.inbox.extend_from_slice(&fresh[consumed..]);
        }
    }

    /// Drops the first bytes of the input kept, and gives back memory that a long message had taken.
    fn drop_first(&mut self, count: usize) {
        self.inbox.drain(..count);
        if self.inbox.is_empty() {
            self.inbox = Vec::new();
        } else if self.inbox.capacity() > SHRINK_FROM
            && self.inbox.len() < self.inbox.capacity() / 4
        {
            self.inbox.shrink_to_fit();
        }
    }

    /// The peer has ended: its last bytes are settled, and the handler is told.
    pub(crate) fn eof(&mut self, env: &mut Env<'_>) {
        self.state.input_ended = true;
        self.state.special = true;
        self.with_inbox(env, |this, input, env| {
            this.deliver_last(input, env);
            if this.state.is_over() {
                return;
            }
            let (handler, mut cx) = this.parts(input, env);
            match handler.on_eof(&mut cx) {
                Err(error) => this.state.end(CloseReason::Error(error)),
                Ok(()) => this.relabel(CloseReason::Eof),
            }
            this.end_if_nothing_follows();
        });
    }

    /// Ends it where nothing could follow: no input, no sender, no timeout. It is told when its last
    /// sender goes, as it is of a parcel.
    pub(crate) fn end_if_nothing_follows(&mut self) {
        let State { input_ended, timeout, outlet, .. } = &self.state;
        if *input_ended
            && timeout.is_none()
            && outlet.as_ref().is_none_or(|outlet| outlet.is_abandoned())
        {
            self.state.end(CloseReason::Eof);
        }
    }

    /// Nothing has moved for the time the handler set.
    pub(crate) fn timed_out(&mut self, env: &mut Env<'_>) {
        self.guarded(env, |this, env| {
            env.tally.timeouts += 1;
            let (handler, mut cx) = this.parts(&[], env);
            match handler.on_idle_timeout(&mut cx) {
                Err(error) => this.state.end(CloseReason::Error(error)),
                Ok(()) => this.relabel(CloseReason::Timeout),
            }
        });
    }

    /// Frames what came from elsewhere and puts it on the output, as far as there is room and the
    /// budget allows; returns how many parcels that were.
    pub(crate) fn push_parcels(&mut self, env: &mut Env<'_>) -> usize {
        let mut taken = 0;
        self.guarded(env, |this, env| {
            while taken < MESSAGE_BUDGET && !this.state.is_over() && env.outgoing.len() < env.room {
                let Some(parcel) = this.state.outlet.as_ref().and_then(|outlet| outlet.take())
                else {
                    break;
                };
                taken += 1;
                match parcel {
                    Parcel::Close => this.state.end(CloseReason::Handler),
                    Parcel::Abort => this.state.abort(),
                    Parcel::Message(message) => {
                        let before = env.outgoing.position();
                        let mut output = Output::sharing(&message, env.outgoing);
                        if let Err(error) = this.framing.encode(&message, &mut output) {
                            // Its sender is elsewhere by now, and the peer has no part in it.
                            env.outgoing.cut_back(before);
                            env.tally.unsent += 1;
                            let peer = &this.state.peer;
                            log::debug!("{peer}: a message of a sender is dropped: {error}");
                        }
                    }
                }
            }
        });
        taken
    }

    /// Ends it for a reason of the driver's: the peer is gone, the server stops.
    pub(crate) fn end(&mut self, reason: CloseReason) {
        self.state.end(reason);
    }

    /// Ends it by a reset: a sender has asked for that.
    pub(crate) fn abort(&mut self) {
        self.state.abort();
    }

    /// The mail that told of its outlet has been taken: it is told of what comes from now on.
    pub(crate) fn listen(&self) {
        if let Some(outlet) = &self.state.outlet {
            outlet.listen();
        }
    }

    /// How far its senders have brought its end.
    pub(crate) fn ending(&self) -> Ending {
        self.state.outlet.as_ref().map_or(Ending::Open, |outlet| outlet.ending())
    }

    /// Tells the handler that it is over, and why; returns the reason. Nothing follows.
    pub(crate) fn closed(&mut self, tally: &mut Tally) -> CatchDrop<CloseReason> {
        let ending = self.state.ending.take();
        let mut reason = ending.map_or_else(|| CloseReason::Shutdown.into(), |reason| *reason);
        if let Some(outlet) = self.state.outlet.take() {
            outlet.close();
        }
        if std::mem::take(&mut self.state.open)
            && let Err(message) = guard::call(|| self.handler.on_close(&reason))
        {
            tally.panics += 1;
            reason = CloseReason::Panic(message).into();
        }
        match *reason {
            CloseReason::Error(_) => tally.handler_errors += 1,
            CloseReason::Framing(_) => tally.framing_errors += 1,
            CloseReason::Disconnected(_) => tally.disconnects += 1,
            _ => {}
        }
        reason
    }

    /// Whether it is to be closed once its output has gone.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.state.is_over()
    }

    /// Whether it is to be closed without waiting for its output.
    pub(crate) fn is_aborted(&self) -> bool {
        self.state.aborted
    }

    /// Whether the peer has ended.
    pub(crate) fn input_ended(&self) -> bool {
        self.state.input_ended
    }

    /// Whether whole messages may wait, left for want of room in the output or for others' sake.
    #[inline]
    pub(crate) fn is_stuffed(&self) -> bool {
        self.state.stuffed
    }

    /// Whether there is nothing to remember of it but its leftover input.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        !self.state.special
    }

    /// Whether it waits for its peer with nothing begun.
    pub(crate) fn is_idle(&self) -> bool {
        self.inbox.is_empty() && !self.state.stuffed
    }

    /// How long nothing may move before [`timed_out`](Self::timed_out) is due.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.state.timeout
    }

    /// How long its peer may take no output: as long as the handler says, and once it is over no less
    /// than [`CLOSING_PATIENCE`], unless it is for such a wait that it ends.
    pub(crate) fn patience(&self) -> Option<Duration> {
        match (self.state.ending.as_ref().map(|reason| &***reason), self.state.timeout) {
            (None | Some(CloseReason::Timeout), timeout @ Some(_)) | (None, timeout) => timeout,
            (_, timeout) => {
                Some(timeout.map_or(CLOSING_PATIENCE, |time| time.max(CLOSING_PATIENCE)))
            }
        }
    }

    /// Whether the handler has set another timeout since the last call.
    #[inline]
    pub(crate) fn take_timeout_changed(&mut self) -> bool {
        std::mem::take(&mut self.state.timeout_changed)
    }

    /// The way in from elsewhere, if one was handed out.
    pub(crate) fn outlet(&self) -> Option<&Arc<Outlet>> {
        self.state.outlet.as_ref()
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.state.peer
    }

    /// Delivers the whole messages of `input` for which there is room, up to the budget.
    ///
    /// Nearly always there is one: it is counted by being the first.
    #[inline(always)]
    fn deliver(&mut self, input: &[u8], env: &mut Env<'_>) {
        if self.deliver_one(input, env) && self.consumed < input.len() {
            self.deliver_more(input, env);
        }
    }

    #[inline(never)]
    fn deliver_more(&mut self, input: &[u8], env: &mut Env<'_>) {
        for _ in 1..MESSAGE_BUDGET {
            if !self.deliver_one(input, env) {
                return;
            }
        }
        if self.consumed < input.len() && !self.state.is_over() {
            self.stuff();
        }
    }

    /// Delivers one message; false when there is none, or none may be.
    #[inline(always)]
    fn deliver_one(&mut self, input: &[u8], env: &mut Env<'_>) -> bool {
        if self.consumed >= input.len() || self.state.is_over() {
            return false;
        }
        if env.outgoing.len() >= env.room {
            self.stuff();
            return false;
        }
        let step = self.framing.decode(&input[self.consumed..]);
        self.step(step, input, env)
    }

    /// Notes that input is left.
    #[cold]
    fn stuff(&mut self) {
        self.state.stuffed = true;
        self.state.special = true;
    }

    /// Asks the framing what the bytes are that the peer left behind.
    fn deliver_last(&mut self, input: &[u8], env: &mut Env<'_>) {
        while self.consumed < input.len() && !self.state.is_over() {
            let step = self.framing.decode_eof(&input[self.consumed..]);
            let left = input.len() - self.consumed;
            let step = match step {
                Ok(Decoded::Incomplete) => Err(FramingError::UnexpectedEof { buffered: left }),
                other => other,
            };
            self.step(step, input, env);
        }
    }

    /// Takes one step of the framing; false when it wants more input.
    #[inline(always)]
    fn step(
        &mut self,
        step: Result<Decoded, FramingError>,
        input: &[u8],
        env: &mut Env<'_>,
    ) -> bool {
        let start = self.consumed;
        let left = input.len() - start;
        match step {
            Ok(Decoded::Frame { body, consumed })
                if (1..=left).contains(&consumed) && body.start <= body.end && body.end <= left =>
            {
                self.consumed += consumed;
                self.message(input, start + body.start..start + body.end, env);
            }
            Ok(Decoded::Skip(count)) if (1..=left).contains(&count) => self.consumed += count,
            Ok(Decoded::Incomplete) => return false,
            Ok(_) => self.state.end(CloseReason::Framing(FramingError::Other(
                "the framing names bytes that are not there".into(),
            ))),
            Err(error) => self.state.end(CloseReason::Framing(error)),
        }
        true
    }

    #[inline(always)]
    fn message(&mut self, input: &[u8], body: Range<usize>, env: &mut Env<'_>) {
        env.tally.messages += 1;
        let (handler, mut cx) = self.parts(input, env);
        if let Err(error) = handler.on_message(&input[body], &mut cx) {
            self.state.end(CloseReason::Error(error));
        }
    }

    /// The handler, and a context for it, side by side.
    #[inline(always)]
    fn parts<'a>(&'a mut self, input: &'a [u8], env: &'a mut Env<'_>) -> (&'a mut H, Context<'a>) {
        let cx = Context {
            state: &mut self.state,
            framing: &mut *self.framing,
            output: Output::new(input, env.outgoing),
            home: env.home,
            shutdown: &mut env.shutdown,
        };
        (&mut self.handler, cx)
    }

    /// Gives the reason its proper name, where the handler has just closed without one.
    fn relabel(&mut self, reason: CloseReason) {
        if let Some(ending) = &mut self.state.ending
            && matches!(***ending, CloseReason::Handler)
        {
            ***ending = reason;
        }
    }

    /// Runs `call` over the inbox, which stays in place for [`input`](Self::input).
    fn with_inbox(&mut self, env: &mut Env<'_>, call: impl FnOnce(&mut Self, &[u8], &mut Env<'_>)) {
        let inbox = std::mem::take(&mut self.inbox);
        self.guarded(env, |this, env| call(this, &inbox, env));
        self.inbox = inbox;
    }

    /// Runs what calls the user's code; a panic there ends this conversation and no other.
    #[inline(always)]
    fn guarded(&mut self, env: &mut Env<'_>, call: impl FnOnce(&mut Self, &mut Env<'_>)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| call(self, env))) {
            env.tally.panics += 1;
            self.state.end(CloseReason::Panic(panic_message(panic)));
        }
    }
}

/// Serves one datagram to its end: a conversation of one message. Returns why it ended, and the
/// output is what to answer; it refers to `packet`.
pub(crate) fn serve_datagram<H: Handler>(
    handler: CatchDrop<H>,
    peer: Peer,
    packet: &[u8],
    truncated: bool,
    env: &mut Env<'_>,
) -> CatchDrop<CloseReason> {
    let mut state = State::new(peer, true);
    state.truncated = truncated;
    let mut conversation =
        Conversation { handler, framing: Raw.into(), state, inbox: Vec::new(), consumed: 0 };
    conversation.open(env);
    if !conversation.is_over() {
        conversation.guarded(env, |this, env| this.message(packet, 0..packet.len(), env));
    }
    conversation.end(CloseReason::Handler);
    conversation.closed(env.tally)
}
