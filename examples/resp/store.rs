//! The keys and their values, without a word of the protocol.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::lists::Waiting;
use super::reply::Reply;
use super::request::Arguments;
use super::sets::Members;
use super::sorted::Sorted;
use super::text::Text;

/// The error of a command, in the words of Redis.
pub(crate) type Fault = &'static str;
/// The outcome of a command; a command that fails has replied nothing.
pub(crate) type Done = Result<(), Fault>;
/// A command on the store.
pub(crate) type StoreCommand = fn(&mut Store, Arguments<'_>, &mut Reply) -> Done;

pub(crate) const WRONG_TYPE: Fault =
    "WRONGTYPE Operation against a key holding the wrong kind of value";
pub(crate) const SYNTAX: Fault = "ERR syntax error";
pub(crate) const NOT_AN_INTEGER: Fault = "ERR value is not an integer or out of range";
pub(crate) const NOT_A_FLOAT: Fault = "ERR value is not a valid float";

pub(crate) type List = VecDeque<Text>;
pub(crate) type Fields = HashMap<Text, Text>;

/// The value of a key. What is not a string is never empty: its key is removed with its last element.
pub(crate) enum Value {
    String(Text),
    List(Box<List>),
    Hash(Box<Fields>),
    Set(Box<Members>),
    Sorted(Box<Sorted>),
}

impl Value {
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Value::String(_) => "string",
            Value::List(_) => "list",
            Value::Hash(_) => "hash",
            Value::Set(_) => "set",
            Value::Sorted(_) => "zset",
        }
    }
}

/// A type of values that have elements.
pub(crate) trait Collection: Default {
    fn of(value: &Value) -> Option<&Self>;
    fn of_mut(value: &mut Value) -> Option<&mut Self>;
    fn into_value(self) -> Value;
    fn is_empty(&self) -> bool;
}

macro_rules! collection {
    ($collection:ty, $variant:ident) => {
        impl Collection for $collection {
            fn of(value: &Value) -> Option<&Self> {
                if let Value::$variant(found) = value { Some(found) } else { None }
            }

            #[inline]
            fn of_mut(value: &mut Value) -> Option<&mut Self> {
                if let Value::$variant(found) = value { Some(found) } else { None }
            }

            fn into_value(self) -> Value {
                Value::$variant(Box::new(self))
            }

            #[inline]
            fn is_empty(&self) -> bool {
                self.len() == 0
            }
        }
    };
}

collection!(List, List);
collection!(Fields, Hash);
collection!(Members, Set);
collection!(Sorted, Sorted);

pub(crate) struct Entry {
    pub(crate) value: Value,
    /// When the key expires.
    pub(crate) deadline: Option<Instant>,
    /// Its index in [`Store::slots`].
    slot: usize,
}

impl Entry {
    #[inline]
    fn is_live(&self, now: Instant) -> bool {
        self.deadline.is_none_or(|deadline| now < deadline)
    }
}

/// All keys. One that has expired counts as removed, and is removed soon after.
pub(crate) struct Store {
    /// The time of the current command.
    pub(crate) now: Instant,
    keys: HashMap<Text, Entry>,
    /// The keys by numbers that they keep as long as they exist: the order of `SCAN`.
    slots: Vec<Option<Text>>,
    free_slots: Vec<usize>,
    /// The slots of the keys that expire.
    deadlines: BTreeSet<(Instant, usize)>,
    /// The clients that wait for elements of lists.
    pub(crate) waiting: Waiting,
    /// How many keys have expired.
    pub(crate) expired: u64,
}

impl Store {
    pub(crate) fn new() -> Self {
        Store {
            now: Instant::now(),
            keys: HashMap::new(),
            slots: Vec::new(),
            free_slots: Vec::new(),
            deadlines: BTreeSet::new(),
            waiting: Waiting::default(),
            expired: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn expiring(&self) -> usize {
        self.deadlines.len()
    }

    #[inline]
    pub(crate) fn entry(&self, key: &[u8]) -> Option<&Entry> {
        self.keys.get(key).filter(|entry| entry.is_live(self.now))
    }

    #[inline]
    pub(crate) fn entry_mut(&mut self, key: &[u8]) -> Option<&mut Entry> {
        self.keys.get_mut(key).filter(|entry| entry.is_live(self.now))
    }

    /// The string at a key.
    #[inline]
    pub(crate) fn string(&self, key: &[u8]) -> Result<Option<&Text>, Fault> {
        match self.entry(key).map(|entry| &entry.value) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(WRONG_TYPE),
        }
    }

    /// The collection at a key.
    pub(crate) fn view<C: Collection>(&self, key: &[u8]) -> Result<Option<&C>, Fault> {
        match self.entry(key) {
            None => Ok(None),
            Some(entry) => C::of(&entry.value).map(Some).ok_or(WRONG_TYPE),
        }
    }

    /// Changes the collection at a key, if there is one.
    #[inline]
    pub(crate) fn change<C: Collection, T>(
        &mut self,
        key: &[u8],
        call: impl FnOnce(&mut C) -> T,
    ) -> Result<Option<T>, Fault> {
        let Some(entry) = self.entry_mut(key) else { return Ok(None) };
        let collection = C::of_mut(&mut entry.value).ok_or(WRONG_TYPE)?;
        let result = call(collection);
        if collection.is_empty() {
            self.remove(key);
        }
        Ok(Some(result))
    }

    /// Changes the collection at a key, which is made if there is none.
    #[inline]
    pub(crate) fn update<C: Collection, T>(
        &mut self,
        key: &[u8],
        call: impl FnOnce(&mut C) -> T,
    ) -> Result<T, Fault> {
        if let Some(entry) = self.entry_mut(key) {
            let collection = C::of_mut(&mut entry.value).ok_or(WRONG_TYPE)?;
            let result = call(collection);
            if collection.is_empty() {
                self.remove(key);
            }
            return Ok(result);
        }
        let mut collection = C::default();
        let result = call(&mut collection);
        if !collection.is_empty() {
            self.set(key, collection.into_value(), None);
        }
        Ok(result)
    }

    /// Sets the value of a key, and when it expires.
    #[inline]
    pub(crate) fn set(&mut self, key: &[u8], value: Value, deadline: Option<Instant>) {
        match self.keys.get_mut(key) {
            Some(entry) => {
                entry.value = value;
                let before = std::mem::replace(&mut entry.deadline, deadline);
                if before.is_some() || deadline.is_some() {
                    let slot = entry.slot;
                    self.schedule(slot, before, deadline);
                }
            }
            None => self.insert(key, value, deadline),
        }
    }

    fn insert(&mut self, key: &[u8], value: Value, deadline: Option<Instant>) {
        let key = Text::from(key);
        let slot = self.free_slots.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some(free) => *free = Some(key.clone()),
            None => self.slots.push(Some(key.clone())),
        }
        self.keys.insert(key, Entry { value, deadline, slot });
        self.schedule(slot, None, deadline);
    }

    fn schedule(&mut self, slot: usize, before: Option<Instant>, deadline: Option<Instant>) {
        if let Some(before) = before {
            self.deadlines.remove(&(before, slot));
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, slot));
        }
    }

    /// Sets when a key expires, and tells whether there is such a key.
    pub(crate) fn set_deadline(&mut self, key: &[u8], deadline: Option<Instant>) -> bool {
        let Some(entry) = self.entry_mut(key) else { return false };
        let (before, slot) = (std::mem::replace(&mut entry.deadline, deadline), entry.slot);
        self.schedule(slot, before, deadline);
        true
    }

    /// The time that a key has left.
    pub(crate) fn time_left(&self, key: &[u8]) -> Option<Option<Duration>> {
        let entry = self.entry(key)?;
        Some(entry.deadline.map(|deadline| deadline.saturating_duration_since(self.now)))
    }

    /// Removes a key, and tells whether it was there.
    pub(crate) fn remove(&mut self, key: &[u8]) -> bool {
        let Some(Entry { deadline, slot, .. }) = self.keys.remove(key) else { return false };
        self.slots[slot] = None;
        self.free_slots.push(slot);
        self.schedule(slot, deadline, None);
        let lived = deadline.is_none_or(|deadline| self.now < deadline);
        self.expired += u64::from(!lived);
        lived
    }

    pub(crate) fn clear(&mut self) {
        self.keys = HashMap::new();
        self.slots = Vec::new();
        self.free_slots = Vec::new();
        self.deadlines = BTreeSet::new();
    }

    /// When the next key expires.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Removes keys that have expired, at most so many.
    pub(crate) fn expire(&mut self, now: Instant, most: usize) {
        self.now = now;
        for _ in 0..most {
            match self.deadlines.first() {
                Some((deadline, slot)) if *deadline <= now => {
                    let key = self.slots[*slot].clone().unwrap_or_default();
                    self.remove(&key);
                }
                _ => break,
            }
        }
    }

    /// All keys with their entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Text, &Entry)> {
        self.keys.iter().filter(|(_, entry)| entry.is_live(self.now))
    }

    /// About `count` keys from a cursor on, and the cursor for more; 0 begins and ends. A key that is
    /// there from the first call to the last is returned once: its slot is its place in the order.
    pub(crate) fn scan(&self, cursor: u64, count: usize) -> (u64, Vec<(&Text, &Entry)>) {
        let mut found = Vec::new();
        let start = usize::try_from(cursor).unwrap_or(usize::MAX).min(self.slots.len());
        let mut next = start;
        // Few of many slots may be in use.
        let end = self.slots.len().min(start.saturating_add(count.saturating_mul(10)));
        for slot in &self.slots[start..end] {
            if found.len() == count {
                break;
            }
            next += 1;
            let entry = slot.as_ref().and_then(|key| self.keys.get_key_value(key));
            found.extend(entry.filter(|(_, entry)| entry.is_live(self.now)));
        }
        (if next == self.slots.len() { 0 } else { next as u64 }, found)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn store(keys: std::ops::Range<u32>) -> Store {
        let mut store = Store::new();
        for key in keys {
            store.set(key.to_string().as_bytes(), Value::String(Text::default()), None);
        }
        store
    }

    #[test]
    fn a_scan_returns_each_key_that_stays_once_although_others_come_and_go() {
        let mut store = store(0..1000);
        let (mut cursor, mut seen, mut round) = (0, Vec::new(), 0);
        loop {
            let (next, found) = store.scan(cursor, 7);
            seen.extend(found.iter().map(|(key, _)| key.to_vec()));
            cursor = next;
            if cursor == 0 {
                break;
            }
            // Even numbers go, and others come in their place.
            store.remove((round * 2).to_string().as_bytes());
            store.set(format!("new{round}").as_bytes(), Value::String(Text::default()), None);
            round += 1;
        }
        let odd: BTreeSet<_> =
            (0..1000).filter(|n| n % 2 == 1).map(|n| n.to_string().into_bytes()).collect();
        let stayed: Vec<_> = seen.iter().filter(|key| odd.contains(*key)).collect();
        assert_eq!(stayed.len(), 500);
        assert_eq!(stayed.into_iter().collect::<BTreeSet<_>>().len(), 500);
    }

    #[test]
    fn a_scan_of_few_keys_in_many_slots_ends() {
        let mut store = store(0..10_000);
        for key in 0..9_999 {
            store.remove(key.to_string().as_bytes());
        }
        let (mut cursor, mut found, mut calls) = (0, 0, 0);
        loop {
            let (next, keys) = store.scan(cursor, 10);
            (cursor, found, calls) = (next, found + keys.len(), calls + 1);
            if cursor == 0 {
                break;
            }
        }
        assert_eq!((found, calls), (1, 100));
    }

    #[test]
    fn a_key_that_has_expired_is_not_there_and_is_removed_in_parts() {
        let mut store = store(0..10);
        let start = store.now;
        for key in 0..10 {
            let deadline = start + Duration::from_secs(10 - key);
            assert!(store.set_deadline(key.to_string().as_bytes(), Some(deadline)));
        }
        assert_eq!(store.next_deadline(), Some(start + Duration::from_secs(1)));
        store.now = start + Duration::from_secs(5);
        assert!(store.entry(b"5").is_none() && store.entry(b"4").is_some());
        assert!(!store.set_deadline(b"5", None));
        store.expire(start + Duration::from_secs(5), 3);
        assert_eq!((store.len(), store.expired), (7, 3));
        store.expire(start + Duration::from_secs(5), 100);
        assert_eq!((store.len(), store.expired), (5, 5));
        store.set(b"4", Value::String(Text::default()), None);
        assert_eq!(store.expiring(), 4);
        assert_eq!(size_of::<Value>(), 24);
    }
}
