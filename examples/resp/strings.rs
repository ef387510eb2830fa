//! The commands on strings.

use std::time::{Duration, Instant};

use super::reply::{Reply, TOO_LONG, decimal};
use super::request::{Arguments, MAX_ARGUMENT, integer};
use super::store::{Done, Fault, NOT_AN_INTEGER, SYNTAX, Store, Value};
use super::text::Text;

/// The options of `SET`.
#[derive(Default)]
struct Options {
    deadline: Option<Instant>,
    only_new: bool,
    only_existing: bool,
    get: bool,
    keep_deadline: bool,
}

impl Options {
    fn read(arguments: Arguments<'_>, now: Instant) -> Result<Self, Fault> {
        let mut options = Options::default();
        let mut index = 3;
        while index < arguments.len() {
            let is = |word| arguments.is(index, word);
            if is("NX") {
                options.only_new = true;
            } else if is("XX") {
                options.only_existing = true;
            } else if is("GET") {
                options.get = true;
            } else if is("KEEPTTL") {
                options.keep_deadline = true;
            } else if (is("EX") || is("PX")) && options.deadline.is_none() {
                let unit = if is("EX") { 1000 } else { 1 };
                index += 1;
                let time = arguments.get(index).ok_or(SYNTAX)?;
                options.deadline = Some(deadline(time, unit, now)?);
            } else {
                return Err(SYNTAX);
            }
            index += 1;
        }
        let conflicts = (options.only_new && options.only_existing)
            || (options.keep_deadline && options.deadline.is_some());
        if conflicts { Err(SYNTAX) } else { Ok(options) }
    }
}

fn deadline(time: &[u8], unit: i64, now: Instant) -> Result<Instant, Fault> {
    let time = integer(time).ok_or(NOT_AN_INTEGER)?;
    time.checked_mul(unit)
        .and_then(|millis| u64::try_from(millis).ok().filter(|millis| *millis > 0))
        .and_then(|millis| now.checked_add(Duration::from_millis(millis)))
        .ok_or("ERR invalid expire time in 'set' command")
}

pub(crate) fn set(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let (key, value) = (&arguments[1], Text::from(&arguments[2]));
    if arguments.len() > 3 {
        return set_with_options(store, arguments, reply);
    }
    store.set(key, Value::String(value), None);
    reply.ok();
    Ok(())
}

#[inline(never)]
fn set_with_options(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let options = Options::read(arguments, store.now)?;
    let key = &arguments[1];
    let there = store.entry(key);
    let deadline = match options.keep_deadline {
        true => there.and_then(|entry| entry.deadline),
        false => options.deadline,
    };
    let there = there.is_some();
    if options.get {
        match store.string(key)? {
            Some(before) => reply.text(before),
            None => reply.nil(),
        }
    }
    let sets = !(options.only_new && there || options.only_existing && !there);
    if sets {
        store.set(key, Value::String(arguments[2].into()), deadline);
    }
    match (options.get, sets) {
        (true, _) => {}
        (false, true) => reply.ok(),
        (false, false) => reply.nil(),
    }
    Ok(())
}

pub(crate) fn setnx(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let is_new = store.entry(&arguments[1]).is_none();
    if is_new {
        store.set(&arguments[1], Value::String(arguments[2].into()), None);
    }
    reply.count(usize::from(is_new));
    Ok(())
}

pub(crate) fn get(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    match store.string(&arguments[1])? {
        Some(text) => reply.text(text),
        None => reply.nil(),
    }
    Ok(())
}

pub(crate) fn getdel(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    get(store, arguments, reply)?;
    store.remove(&arguments[1]);
    Ok(())
}

pub(crate) fn mget(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let before = reply.len();
    reply.array(arguments.len() - 1);
    for key in arguments.from(1) {
        match store.string(key) {
            Ok(Some(text)) => reply.text(text),
            _ => reply.nil(),
        }
        if reply.is_too_long() {
            reply.cut_back(before);
            return Err(TOO_LONG);
        }
    }
    Ok(())
}

pub(crate) fn mset(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    if arguments.len().is_multiple_of(2) {
        return Err("ERR wrong number of arguments for 'mset' command");
    }
    for (key, value) in arguments.pairs(1) {
        store.set(key, Value::String(value.into()), None);
    }
    reply.ok();
    Ok(())
}

pub(crate) fn strlen(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    reply.count(store.string(&arguments[1])?.map_or(0, |text| text.len()));
    Ok(())
}

pub(crate) fn append(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let (key, more) = (&arguments[1], &arguments[2]);
    let len = store.string(key)?.map_or(0, |text| text.len()) + more.len();
    if len as u64 > MAX_ARGUMENT as u64 {
        return Err("ERR string exceeds maximum allowed size (proto-max-bulk-len)");
    }
    match store.entry_mut(key).map(|entry| &mut entry.value) {
        Some(Value::String(text)) => text.append(more),
        _ => store.set(key, Value::String(more.into()), None),
    }
    reply.count(len);
    Ok(())
}

fn add(store: &mut Store, key: &[u8], number: i64, reply: &mut Reply) -> Done {
    let sum = |before: &[u8]| {
        let before = integer(before).ok_or(NOT_AN_INTEGER)?;
        before.checked_add(number).ok_or("ERR increment or decrement would overflow")
    };
    let written = |sum| {
        let (digits, start) = decimal(sum);
        Text::from(&digits[start..])
    };
    let sum = match store.entry_mut(key).map(|entry| &mut entry.value) {
        Some(Value::String(text)) => {
            let sum = sum(text)?;
            *text = written(sum);
            sum
        }
        Some(_) => return Err(super::store::WRONG_TYPE),
        None => {
            store.set(key, Value::String(written(number)), None);
            number
        }
    };
    reply.integer(sum);
    Ok(())
}

pub(crate) fn incr(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    add(store, &arguments[1], 1, reply)
}

pub(crate) fn decr(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    add(store, &arguments[1], -1, reply)
}

pub(crate) fn incrby(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let number = integer(&arguments[2]).ok_or(NOT_AN_INTEGER)?;
    add(store, &arguments[1], number, reply)
}

pub(crate) fn decrby(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let number = integer(&arguments[2]).ok_or(NOT_AN_INTEGER)?;
    let number = number.checked_neg().ok_or("ERR decrement would overflow")?;
    add(store, &arguments[1], number, reply)
}
