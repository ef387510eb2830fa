//! The connection of a client: its handler, and the commands that need it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socketserver::{
    Accepted, CloseReason, ConnectionId, Context, Event, FramingError, Handler, HandlerResult,
};

use super::command::{self, Kind, Run};
use super::lists::Popped;
use super::pubsub::Hub;
use super::reply::Reply;
use super::request::{Arguments, Malformed, Requests};
use super::store::{Done, Store};
use super::text::Text;
use super::transaction::Transaction;

/// What all connections share.
pub(crate) struct Shared {
    data: Mutex<Data>,
    hub: Mutex<Hub>,
    pub(crate) mode: &'static str,
    pub(crate) started: Instant,
}

/// What a command changes. `reply` is here so that its memory is used by all.
pub(crate) struct Data {
    pub(crate) store: Store,
    reply: Reply,
    /// How many commands have been served.
    pub(crate) commands: u64,
}

impl Shared {
    pub(crate) fn new(mode: &'static str) -> Self {
        let data = Data { store: Store::new(), reply: Reply::default(), commands: 0 };
        Shared { data: data.into(), hub: Mutex::default(), mode, started: Instant::now() }
    }

    #[inline]
    pub(crate) fn data(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The clients and their subscriptions; locked after the data, if both are.
    pub(crate) fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of a connection.
pub(crate) struct Session {
    pub(crate) id: ConnectionId,
    pub(crate) resp3: bool,
    /// A transaction has begun, or a subscription allows only some commands.
    restricted: bool,
    pub(crate) transaction: Option<Box<Transaction>>,
    pub(crate) channels: BTreeSet<Text>,
    pub(crate) patterns: BTreeSet<Text>,
    /// It waits for an element of a list.
    waits: bool,
    /// It is closed after the reply.
    pub(crate) closes: bool,
}

impl Session {
    pub(crate) fn subscriptions(&self) -> usize {
        self.channels.len() + self.patterns.len()
    }

    /// Finds out which commands are allowed from now on.
    pub(crate) fn restrict(&mut self) {
        let subscribed = !self.resp3 && self.subscriptions() > 0;
        self.restricted = self.transaction.is_some() || subscribed;
    }

    fn spoil(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.spoil();
        }
    }
}

/// A command that needs its connection.
pub(crate) type SessionCommand = fn(&mut Call<'_, '_>, Arguments<'_>) -> Done;

/// All that a command can use.
pub(crate) struct Call<'a, 'cx> {
    pub(crate) session: &'a mut Session,
    pub(crate) shared: &'a Shared,
    pub(crate) store: &'a mut Store,
    pub(crate) reply: &'a mut Reply,
    pub(crate) commands: u64,
    pub(crate) cx: &'a mut Context<'cx>,
}

impl Call<'_, '_> {
    #[inline]
    pub(crate) fn execute(&mut self, arguments: Arguments<'_>) {
        let Some(command) = command::find(&arguments[0]) else {
            self.session.spoil();
            return command::unknown(self, arguments);
        };
        if !command.takes(arguments.len()) {
            return self.refuse_count(command.name);
        }
        if self.session.restricted && self.is_restricted(command, arguments) {
            return;
        }
        let done = match command.run {
            Run::Store(run) => run(self.store, arguments, self.reply),
            Run::Session(run) => run(self, arguments),
        };
        if let Err(fault) = done {
            self.reply.error(fault);
        }
    }

    #[cold]
    fn refuse_count(&mut self, name: &str) {
        let wrong = format!("wrong number of arguments for '{name}' command");
        if name == "exec" {
            self.session.transaction = None;
            self.session.restrict();
            let discarded = "EXECABORT Transaction discarded because of:";
            return self.reply.error(&format!("{discarded} {wrong}"));
        }
        self.session.spoil();
        self.reply.error(&format!("ERR {wrong}"));
    }

    /// Whether the command is not executed now: it is queued, or refused.
    #[inline(never)]
    fn is_restricted(&mut self, command: &command::Command, arguments: Arguments<'_>) -> bool {
        let name = command.name;
        let subscribed = !self.session.resp3 && self.session.subscriptions() > 0;
        if subscribed && !(name.ends_with("subscribe") || matches!(name, "ping" | "quit" | "reset"))
        {
            self.session.spoil();
            self.reply.error(&format!(
                "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / \
                 RESET are allowed in this context"
            ));
            return true;
        }
        let Some(transaction) = &mut self.session.transaction else { return false };
        if command.kind == Kind::Control || transaction.executes() {
            return false;
        }
        match transaction.queue(arguments) {
            Ok(()) => self.reply.simple("QUEUED"),
            Err(fault) => self.reply.error(fault),
        }
        true
    }
}

/// Forgets all that the client has said, as a new connection.
pub(crate) fn reset(call: &mut Call<'_, '_>, _: Arguments<'_>) -> Done {
    let session = &mut *call.session;
    session.transaction = None;
    session.resp3 = false;
    let mut hub = call.shared.hub();
    hub.unsubscribe_all(session);
    if let Some(client) = hub.client(session.id) {
        client.name.clear();
    }
    session.restrict();
    call.reply.simple("RESET");
    Ok(())
}

pub(crate) fn quit(call: &mut Call<'_, '_>, _: Arguments<'_>) -> Done {
    call.reply.ok();
    call.session.closes = true;
    Ok(())
}

pub(crate) fn ping(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    if arguments.len() > 2 {
        return Err("ERR wrong number of arguments for 'ping' command");
    }
    let message = arguments.get(1);
    if call.session.subscriptions() > 0 && !call.session.resp3 {
        call.reply.array(2);
        call.reply.bulk(b"pong");
        call.reply.bulk(message.unwrap_or_default());
        return Ok(());
    }
    match message {
        Some(message) => call.reply.bulk(message),
        None => call.reply.simple("PONG"),
    }
    Ok(())
}

pub(crate) fn echo(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    call.reply.bulk(&arguments[1]);
    Ok(())
}

/// Takes the first element of the first list that has one, or waits for one. Meanwhile the input is
/// paused, so the commands behind this one wait, and the replies keep their order. The end of a client
/// that has sent such commands is seen after the wait, or when a keep-alive probe of TCP fails
/// (`KEEPALIVE`).
pub(crate) fn blpop(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    let last = arguments.len() - 1;
    let seconds = std::str::from_utf8(&arguments[last]).ok().and_then(|text| text.parse().ok());
    let seconds: f64 = seconds.ok_or("ERR timeout is not a float or out of range")?;
    if seconds < 0.0 {
        return Err("ERR timeout is negative");
    }
    let timeout = Duration::try_from_secs_f64(seconds);
    let timeout = timeout.map_err(|_| "ERR timeout is not a float or out of range")?;
    let keys: Vec<Text> = arguments.from(1).take(last - 1).map(Text::from).collect();
    if let Some(popped) = call.store.pop_first(&keys)? {
        reply_popped(&popped, call.reply);
        return Ok(());
    }
    if call.session.transaction.is_some() {
        call.reply.nil_array();
        return Ok(());
    }
    let sender = call.cx.sender().map_err(|_| "ERR no descriptor is left to wait with")?;
    call.store.waiting.add(&sender, keys);
    call.session.waits = true;
    call.cx.pause_input();
    if !timeout.is_zero()
        && let Some(deadline) = call.cx.now().checked_add(timeout)
    {
        // Only a datagram has no timer.
        let _ = call.cx.set_timer(deadline);
    }
    Ok(())
}

fn reply_popped(popped: &Popped, reply: &mut Reply) {
    reply.array(2);
    reply.text(&popped.key);
    reply.text(&popped.element);
}

/// The handler of one client.
pub(crate) struct Client {
    shared: Arc<Shared>,
    session: Session,
}

impl Client {
    pub(crate) fn new(shared: Arc<Shared>, accepted: &Accepted<'_>) -> Self {
        let session = Session {
            id: accepted.id(),
            resp3: false,
            restricted: false,
            transaction: None,
            channels: BTreeSet::new(),
            patterns: BTreeSet::new(),
            waits: false,
            closes: false,
        };
        Client { shared, session }
    }

    /// Ends its waiting with this reply, and goes on with the commands behind it.
    fn stop_waiting(
        &mut self,
        cx: &mut Context<'_>,
        answer: impl FnOnce(&mut Reply),
    ) -> HandlerResult {
        self.session.waits = false;
        let mut reply = Reply::new(self.session.resp3);
        answer(&mut reply);
        reply.send(cx.output());
        cx.set_timer(None)?;
        cx.resume_input();
        Ok(())
    }
}

impl Handler for Client {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let sender = cx.sender()?;
        self.shared.hub().join(sender, cx.now());
        Ok(())
    }

    #[inline]
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let requests = cx.framing::<Requests>().ok_or("the framing is not that of RESP")?;
        let found = requests.take();
        {
            let mut data = self.shared.data();
            let Data { store, reply, commands } = &mut *data;
            *commands += 1;
            store.now = cx.now();
            reply.resp3 = self.session.resp3;
            let (session, shared) = (&mut self.session, &*self.shared);
            let mut call = Call { session, shared, store, reply, commands: *commands, cx };
            call.execute(found.arguments(message));
            store.serve_waiting();
            reply.send(cx.output());
        }
        if self.session.closes {
            cx.close();
        }
        if found.has_memory()
            && let Some(requests) = cx.framing::<Requests>()
        {
            requests.reuse(found);
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event, cx: &mut Context<'_>) -> HandlerResult {
        let Ok(popped) = event.downcast::<Popped>() else { return Ok(()) };
        self.stop_waiting(cx, |reply| reply_popped(&popped, reply))
    }

    /// `BLPOP` has waited long enough.
    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if !self.shared.data().store.waiting.remove(self.session.id) {
            return Ok(()); // an element is on its way
        }
        self.stop_waiting(cx, Reply::nil_array)
    }

    /// A client that has ended waits for nothing.
    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.close();
        Ok(())
    }

    fn on_reject(&mut self, reason: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
        if let CloseReason::Framing(FramingError::Other(error)) = reason
            && let Some(malformed) = error.downcast_ref::<Malformed>()
        {
            let mut reply = Reply::default();
            reply.error(&format!("ERR Protocol error: {malformed}"));
            reply.send(cx.output());
        }
        Ok(())
    }

    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if self.session.waits {
            cx.close();
        }
        Ok(())
    }

    fn on_close(&mut self, _: &CloseReason) {
        if self.session.waits {
            self.shared.data().store.waiting.remove(self.session.id);
        }
        self.shared.hub().leave(&mut self.session);
    }
}
