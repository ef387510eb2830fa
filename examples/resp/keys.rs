//! The commands on keys, whatever their values are.

use std::time::{Duration, Instant};

use super::reply::Reply;
use super::request::{Arguments, integer};
use super::store::{Done, NOT_AN_INTEGER, SYNTAX, Store};
use super::text::matches;

pub(crate) fn del(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    reply.count(arguments.from(1).filter(|key| store.remove(key)).count());
    Ok(())
}

pub(crate) fn exists(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    reply.count(arguments.from(1).filter(|key| store.entry(key).is_some()).count());
    Ok(())
}

pub(crate) fn r#type(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    reply.simple(store.entry(&arguments[1]).map_or("none", |entry| entry.value.type_name()));
    Ok(())
}

pub(crate) fn expire(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    set_time(store, arguments, reply, 1000, "ERR invalid expire time in 'expire' command")
}

pub(crate) fn pexpire(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    set_time(store, arguments, reply, 1, "ERR invalid expire time in 'pexpire' command")
}

fn set_time(
    store: &mut Store,
    arguments: Arguments<'_>,
    reply: &mut Reply,
    unit: i64,
    invalid: &'static str,
) -> Done {
    let key = &arguments[1];
    let time = integer(&arguments[2]).ok_or(NOT_AN_INTEGER)?.checked_mul(unit).ok_or(invalid)?;
    let deadline = match u64::try_from(time) {
        Ok(millis) => store.now.checked_add(Duration::from_millis(millis)).ok_or(invalid)?,
        // In the past: the key expires at once.
        Err(_) => store.now,
    };
    let Some(before) = store.entry(key).map(|entry| entry.deadline) else {
        allowed(arguments, None, deadline, reply)?;
        reply.count(0);
        return Ok(());
    };
    let Some(allowed) = allowed(arguments, before, deadline, reply)? else { return Ok(()) };
    if allowed && time <= 0 {
        store.remove(key);
    } else if allowed {
        store.set_deadline(key, Some(deadline));
    }
    reply.count(usize::from(allowed));
    Ok(())
}

/// Whether the options allow this new deadline; `None` if the reply says that there is no such option.
fn allowed(
    arguments: Arguments<'_>,
    before: Option<Instant>,
    deadline: Instant,
    reply: &mut Reply,
) -> Result<Option<bool>, &'static str> {
    let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
    for index in 3..arguments.len() {
        match arguments {
            _ if arguments.is(index, "NX") => nx = true,
            _ if arguments.is(index, "XX") => xx = true,
            _ if arguments.is(index, "GT") => gt = true,
            _ if arguments.is(index, "LT") => lt = true,
            _ => {
                let option = String::from_utf8_lossy(&arguments[index]);
                reply.error(&format!("ERR Unsupported option {option}"));
                return Ok(None);
            }
        }
    }
    if nx && (xx || gt || lt) {
        return Err("ERR NX and XX, GT or LT options at the same time are not compatible");
    }
    if gt && lt {
        return Err("ERR GT and LT options at the same time are not compatible");
    }
    // A key that does not expire has the latest deadline.
    Ok(Some(match before {
        Some(before) => !(nx || gt && deadline <= before || lt && deadline >= before),
        None => !(xx || gt),
    }))
}

pub(crate) fn ttl(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    reply.integer(match store.time_left(&arguments[1]) {
        None => -2,
        Some(None) => -1,
        Some(Some(left)) => (left.as_millis() as i64 + 500) / 1000,
    });
    Ok(())
}

pub(crate) fn pttl(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    reply.integer(match store.time_left(&arguments[1]) {
        None => -2,
        Some(None) => -1,
        Some(Some(left)) => left.as_millis() as i64,
    });
    Ok(())
}

pub(crate) fn persist(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let expires = store.time_left(&arguments[1]).flatten().is_some();
    if expires {
        store.set_deadline(&arguments[1], None);
    }
    reply.count(usize::from(expires));
    Ok(())
}

pub(crate) fn keys(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let found = || store.iter().filter(|(key, _)| matches(&arguments[1], key));
    reply.array(found().count());
    found().for_each(|(key, _)| reply.bulk(key));
    Ok(())
}

pub(crate) fn scan(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let cursor = std::str::from_utf8(&arguments[1]).ok().and_then(|text| text.parse().ok());
    let cursor: u64 = cursor.ok_or("ERR invalid cursor")?;
    let (mut count, mut pattern, mut of_type) = (10, None, None);
    for (index, (option, value)) in arguments.pairs(2).enumerate() {
        match index * 2 + 2 {
            at if arguments.is(at, "COUNT") => {
                let number = integer(value).ok_or(NOT_AN_INTEGER)?;
                count = usize::try_from(number).ok().filter(|count| *count > 0).ok_or(SYNTAX)?;
            }
            at if arguments.is(at, "MATCH") => pattern = Some(value),
            at if arguments.is(at, "TYPE") => of_type = Some(value),
            _ => return Err(if option.is_empty() { NOT_AN_INTEGER } else { SYNTAX }),
        }
    }
    if !arguments.len().is_multiple_of(2) {
        return Err(SYNTAX);
    }
    let (next, mut found) = store.scan(cursor, count);
    found.retain(|(key, entry)| {
        pattern.is_none_or(|pattern| matches(pattern, key))
            && of_type.is_none_or(|of_type| {
                entry.value.type_name().as_bytes().eq_ignore_ascii_case(of_type)
            })
    });
    reply.array(2);
    reply.bulk(next.to_string().as_bytes());
    reply.array(found.len());
    found.iter().for_each(|(key, _)| reply.bulk(key));
    Ok(())
}

pub(crate) fn dbsize(store: &mut Store, _: Arguments<'_>, reply: &mut Reply) -> Done {
    reply.count(store.len());
    Ok(())
}

pub(crate) fn flushall(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let is_valid = match arguments.len() {
        1 => true,
        2 => arguments.is(1, "ASYNC") || arguments.is(1, "SYNC"),
        _ => false,
    };
    if !is_valid {
        return Err(SYNTAX);
    }
    store.clear();
    reply.ok();
    Ok(())
}
