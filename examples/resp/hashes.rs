//! The commands on hashes.

use super::reply::Reply;
use super::request::Arguments;
use super::store::{Done, Fields, Store};

pub(crate) fn hset(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    if !arguments.len().is_multiple_of(2) {
        return Err("ERR wrong number of arguments for 'hset' command");
    }
    let added = store.update(&arguments[1], |fields: &mut Fields| {
        let mut added = 0;
        for (field, value) in arguments.pairs(2) {
            match fields.get_mut(field) {
                Some(there) => *there = value.into(),
                None => {
                    fields.insert(field.into(), value.into());
                    added += 1;
                }
            }
        }
        added
    })?;
    reply.count(added);
    Ok(())
}

pub(crate) fn hget(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let fields = store.view::<Fields>(&arguments[1])?;
    match fields.and_then(|fields| fields.get(&arguments[2])) {
        Some(value) => reply.text(value),
        None => reply.nil(),
    }
    Ok(())
}

pub(crate) fn hdel(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let removed = store.change(&arguments[1], |fields: &mut Fields| {
        arguments.from(2).filter(|field| fields.remove(*field).is_some()).count()
    })?;
    reply.count(removed.unwrap_or(0));
    Ok(())
}

pub(crate) fn hgetall(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let fields = store.view::<Fields>(&arguments[1])?;
    reply.map(fields.map_or(0, Fields::len));
    for (field, value) in fields.into_iter().flatten() {
        reply.text(field);
        reply.text(value);
    }
    Ok(())
}

pub(crate) fn hlen(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    reply.count(store.view(&arguments[1])?.map_or(0, Fields::len));
    Ok(())
}
