//! The commands on lists, and the clients that wait for elements.

use std::collections::{HashMap, VecDeque};

use socketserver::{ConnectionId, Sender};

use super::reply::Reply;
use super::request::{Arguments, integer};
use super::store::{Done, List, NOT_AN_INTEGER, Store};
use super::text::Text;

/// The event of a client that waits in `BLPOP`: an element for it.
pub(crate) struct Popped {
    pub(crate) key: Text,
    pub(crate) element: Text,
}

/// The clients that wait for elements of lists.
#[derive(Default)]
pub(crate) struct Waiting {
    /// For each list, the one that waits longest first.
    clients: HashMap<Text, VecDeque<Sender>>,
    /// The lists of each client.
    keys: HashMap<ConnectionId, Vec<Text>>,
    /// Lists with waiting clients that have got elements in the current command.
    filled: Vec<Text>,
}

impl Waiting {
    /// Lets a client wait for an element of one of these lists.
    pub(crate) fn add(&mut self, client: &Sender, keys: Vec<Text>) {
        for key in &keys {
            self.clients.entry(key.clone()).or_default().push_back(client.clone());
        }
        self.keys.insert(client.id(), keys);
    }

    /// Ends the waiting of a client. Returns whether it waited: if not, an element may be on its way.
    pub(crate) fn remove(&mut self, client: ConnectionId) -> bool {
        let Some(keys) = self.keys.remove(&client) else { return false };
        for key in keys {
            let Some(clients) = self.clients.get_mut(&key) else { continue };
            match clients.front() {
                Some(first) if first.id() == client => drop(clients.pop_front()),
                _ => clients.retain(|other| other.id() != client),
            }
            if clients.is_empty() {
                self.clients.remove(&key);
            }
        }
        true
    }

    /// How many clients wait.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    fn first(&self, key: &[u8]) -> Option<Sender> {
        self.clients.get(key)?.front().cloned()
    }
}

impl Store {
    /// Gives elements to those that wait for them, after a command.
    #[inline]
    pub(crate) fn serve_waiting(&mut self) {
        if !self.waiting.filled.is_empty() {
            self.serve_filled();
        }
    }

    #[inline(never)]
    fn serve_filled(&mut self) {
        for key in std::mem::take(&mut self.waiting.filled) {
            while let Some(client) = self.waiting.first(&key) {
                let Ok(Some(Some(element))) = self.change(&key, List::pop_front) else { break };
                // Now, and not when the event arrives: it must not get a second element meanwhile.
                self.waiting.remove(client.id());
                let event = Popped { key: key.clone(), element: element.clone() };
                if client.post(Box::new(event)).is_err() {
                    // The connection is closed: the next one gets it.
                    let _ = self.update(&key, |list: &mut List| list.push_front(element));
                }
            }
        }
    }

    fn push(
        &mut self,
        arguments: Arguments<'_>,
        reply: &mut Reply,
        add: fn(&mut List, Text),
    ) -> Done {
        let key = &arguments[1];
        let len = self.update(key, |list: &mut List| {
            arguments.from(2).for_each(|element| add(list, element.into()));
            list.len()
        })?;
        if self.waiting.len() > 0 && self.waiting.clients.contains_key(key) {
            self.waiting.filled.push(key.into());
        }
        reply.count(len);
        Ok(())
    }

    fn pop(
        &mut self,
        arguments: Arguments<'_>,
        reply: &mut Reply,
        take: fn(&mut List) -> Option<Text>,
    ) -> Done {
        let key = &arguments[1];
        let Some(count) = arguments.get(2) else {
            match self.change(key, take)?.flatten() {
                Some(element) => reply.text(&element),
                None => reply.nil(),
            }
            return Ok(());
        };
        let count = integer(count).and_then(|count| usize::try_from(count).ok());
        let count = count.ok_or("ERR value is out of range, must be positive")?;
        let popped = self.change(key, |list: &mut List| {
            reply.array(count.min(list.len()));
            (0..count).map_while(|_| take(list)).for_each(|element| reply.text(&element));
        })?;
        if popped.is_none() {
            reply.nil_array();
        }
        Ok(())
    }

    /// Takes the first element of the first of these lists that has one.
    pub(crate) fn pop_first(&mut self, keys: &[Text]) -> Result<Option<Popped>, &'static str> {
        for key in keys {
            if let Some(Some(element)) = self.change(key, List::pop_front)? {
                return Ok(Some(Popped { key: key.clone(), element }));
            }
        }
        Ok(None)
    }
}

pub(crate) fn lpush(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    store.push(arguments, reply, List::push_front)
}

pub(crate) fn rpush(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    store.push(arguments, reply, List::push_back)
}

pub(crate) fn lpop(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    store.pop(arguments, reply, List::pop_front)
}

pub(crate) fn rpop(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    store.pop(arguments, reply, List::pop_back)
}

pub(crate) fn llen(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    reply.count(store.view(&arguments[1])?.map_or(0, List::len));
    Ok(())
}

pub(crate) fn lrange(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let start = integer(&arguments[2]).ok_or(NOT_AN_INTEGER)?;
    let stop = integer(&arguments[3]).ok_or(NOT_AN_INTEGER)?;
    let Some(list) = store.view::<List>(&arguments[1])? else {
        reply.array(0);
        return Ok(());
    };
    let range = range(start, stop, list.len());
    reply.array(range.len());
    list.range(range).for_each(|element| reply.text(element));
    Ok(())
}

/// The indexes from one to another, both included; negative ones count from the end.
pub(crate) fn range(start: i64, stop: i64, len: usize) -> std::ops::Range<usize> {
    let len = len as i64;
    let from_start =
        |index: i64| if index < 0 { (len.saturating_add(index)).max(0) } else { index };
    let start = from_start(start).min(len);
    let stop = match stop {
        ..0 => len.saturating_add(stop).saturating_add(1).max(0),
        _ => stop.saturating_add(1).min(len),
    };
    start as usize..stop.max(start) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_redis() {
        let cases = [
            (0, -1, 0..5),
            (1, 2, 1..3),
            (-2, -1, 3..5),
            (-100, 100, 0..5),
            (3, 1, 3..3),
            (5, 9, 5..5),
            (0, -6, 0..0),
            (i64::MIN, i64::MAX, 0..5),
            (i64::MAX, i64::MIN, 5..5),
        ];
        for (start, stop, expected) in cases {
            assert_eq!(range(start, stop, 5), expected, "{start} {stop}");
        }
        assert_eq!(range(0, -1, 0), 0..0);
    }
}
