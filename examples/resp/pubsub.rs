//! The clients, what they are subscribed to, and the messages between them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use socketserver::{ConnectionId, SendError, Sender};

use super::client::{Call, Session};
use super::reply::Reply;
use super::request::Arguments;
use super::store::Done;
use super::text::{Text, matches};

/// The most channels and patterns that one client may be subscribed to.
const MAX_SUBSCRIPTIONS: usize = 100_000;

/// A connected client, as others see it.
pub(crate) struct Client {
    pub(crate) sender: Sender,
    pub(crate) since: Instant,
    pub(crate) name: Vec<u8>,
    /// Name and version of its library.
    pub(crate) library: [Vec<u8>; 2],
    pub(crate) resp3: bool,
    pub(crate) channels: usize,
    pub(crate) patterns: usize,
}

type Subscribers = HashMap<Text, BTreeMap<ConnectionId, Sender>>;

/// All clients and all subscriptions.
#[derive(Default)]
pub(crate) struct Hub {
    clients: BTreeMap<ConnectionId, Client>,
    channels: Subscribers,
    patterns: Subscribers,
    /// How many clients have connected.
    pub(crate) accepted: u64,
}

impl Hub {
    pub(crate) fn join(&mut self, sender: Sender, since: Instant) {
        let (id, name, library) = (sender.id(), Vec::new(), Default::default());
        let client =
            Client { sender, since, name, library, resp3: false, channels: 0, patterns: 0 };
        self.clients.insert(id, client);
        self.accepted += 1;
    }

    pub(crate) fn leave(&mut self, session: &mut Session) {
        self.unsubscribe_all(session);
        self.clients.remove(&session.id);
    }

    pub(crate) fn client(&mut self, id: ConnectionId) -> Option<&mut Client> {
        self.clients.get_mut(&id)
    }

    /// The clients, the oldest first, without those that have been killed.
    pub(crate) fn clients(&self) -> impl Iterator<Item = (ConnectionId, &Client)> {
        let clients = self.clients.iter().filter(|(_, client)| !client.sender.is_closed());
        clients.map(|(id, client)| (*id, client))
    }

    pub(crate) fn unsubscribe_all(&mut self, session: &mut Session) {
        for channel in std::mem::take(&mut session.channels) {
            remove(&mut self.channels, &channel, session.id);
        }
        for pattern in std::mem::take(&mut session.patterns) {
            remove(&mut self.patterns, &pattern, session.id);
        }
        self.count(session);
    }

    /// Keeps what others see of a client's subscriptions.
    pub(crate) fn count(&mut self, session: &Session) {
        if let Some(client) = self.clients.get_mut(&session.id) {
            client.channels = session.channels.len();
            client.patterns = session.patterns.len();
            client.resp3 = session.resp3;
        }
    }

    /// Sends a message to all subscribers of a channel, and returns how many got it. The message is
    /// made once for each protocol, and shared.
    fn publish(&self, channel: &[u8], message: &[u8]) -> usize {
        let mut reached = 0;
        if let Some(subscribers) = self.channels.get(channel) {
            reached += self.deliver(subscribers, &[b"message", channel, message]);
        }
        for (pattern, subscribers) in &self.patterns {
            if matches(pattern, channel) {
                reached += self.deliver(subscribers, &[b"pmessage", pattern, channel, message]);
            }
        }
        reached
    }

    fn deliver(&self, subscribers: &BTreeMap<ConnectionId, Sender>, parts: &[&[u8]]) -> usize {
        let mut messages: [Option<Arc<[u8]>>; 2] = [None, None];
        let mut reached = 0;
        for (id, sender) in subscribers {
            let resp3 = self.clients.get(id).is_some_and(|client| client.resp3);
            let message = messages[usize::from(resp3)].get_or_insert_with(|| {
                let mut push = Reply::new(resp3);
                push.push(parts.len());
                parts.iter().for_each(|part| push.bulk(part));
                push.into_message()
            });
            match sender.send_shared(message) {
                Ok(()) => reached += 1,
                // It does not read: Redis, too, closes a subscriber whose output is at its limit.
                Err(SendError::Full) => sender.abort(),
                Err(_) => {}
            }
        }
        reached
    }
}

fn remove(all: &mut Subscribers, name: &[u8], id: ConnectionId) {
    if let Some(subscribers) = all.get_mut(name) {
        subscribers.remove(&id);
        if subscribers.is_empty() {
            all.remove(name);
        }
    }
}

/// Subscribes to each of the arguments, as channels or as patterns.
fn add(call: &mut Call<'_, '_>, arguments: Arguments<'_>, patterns: bool) -> Done {
    let kind: &[u8] = if patterns { b"psubscribe" } else { b"subscribe" };
    let mut hub = call.shared.hub();
    let Some(sender) = hub.client(call.session.id).map(|client| client.sender.clone()) else {
        return Ok(()); // it is being closed
    };
    if call.session.subscriptions() + arguments.len() > MAX_SUBSCRIPTIONS {
        return Err("ERR too many subscriptions");
    }
    let Hub { channels, patterns: all_patterns, .. } = &mut *hub;
    for name in arguments.from(1) {
        let (own, all) = match patterns {
            true => (&mut call.session.patterns, &mut *all_patterns),
            false => (&mut call.session.channels, &mut *channels),
        };
        if own.insert(name.into()) {
            all.entry(name.into()).or_default().insert(sender.id(), sender.clone());
        }
        call.reply.push(3);
        call.reply.bulk(kind);
        call.reply.bulk(name);
        call.reply.count(call.session.subscriptions());
    }
    hub.count(call.session);
    call.session.restrict();
    Ok(())
}

/// Ends the subscriptions to the arguments; without any, to all. A message that was published just
/// before waits in the send queue of the connection, and may follow the reply.
fn end(call: &mut Call<'_, '_>, arguments: Arguments<'_>, patterns: bool) -> Done {
    let kind: &[u8] = if patterns { b"punsubscribe" } else { b"unsubscribe" };
    let mut hub = call.shared.hub();
    let own = if patterns { &call.session.patterns } else { &call.session.channels };
    let names: Vec<Text> = match arguments.len() {
        1 => own.iter().cloned().collect(),
        _ => arguments.from(1).map(Text::from).collect(),
    };
    for name in &names {
        let (own, all) = match patterns {
            true => (&mut call.session.patterns, &mut hub.patterns),
            false => (&mut call.session.channels, &mut hub.channels),
        };
        if own.remove(name) {
            remove(all, name, call.session.id);
        }
        call.reply.push(3);
        call.reply.bulk(kind);
        call.reply.bulk(name);
        call.reply.count(call.session.subscriptions());
    }
    if names.is_empty() {
        call.reply.push(3);
        call.reply.bulk(kind);
        call.reply.nil();
        call.reply.count(call.session.subscriptions());
    }
    hub.count(call.session);
    call.session.restrict();
    Ok(())
}

pub(crate) fn subscribe(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    add(call, arguments, false)
}

pub(crate) fn psubscribe(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    add(call, arguments, true)
}

pub(crate) fn unsubscribe(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    end(call, arguments, false)
}

pub(crate) fn punsubscribe(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    end(call, arguments, true)
}

pub(crate) fn publish(call: &mut Call<'_, '_>, arguments: Arguments<'_>) -> Done {
    let reached = call.shared.hub().publish(&arguments[1], &arguments[2]);
    call.reply.count(reached);
    Ok(())
}
