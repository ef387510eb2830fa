//! The table of all commands, and the commands that tell of it.

use super::client::{Call, SessionCommand};
use super::reply::Reply;
use super::request::Arguments;
use super::store::{Done, Store, StoreCommand};
use super::{admin, client, hashes, keys, lists, pubsub, sets, sorted, strings, transaction};

/// A command of a client.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    /// How many arguments it takes, its name included; a negative number is the least.
    arity: i32,
    pub(crate) kind: Kind,
    /// The first key, the last (-1: the last argument), and the step between two.
    keys: (i64, i64, i64),
    pub(crate) run: Run,
}

/// What a command does, in a word of Redis.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Read,
    Write,
    /// It is about the connection or the server.
    Other,
    /// It runs at once, also in a transaction.
    Control,
}

#[derive(Clone, Copy)]
pub(crate) enum Run {
    /// It needs nothing but the store.
    Store(StoreCommand),
    Session(SessionCommand),
}

impl Command {
    /// Whether it takes so many arguments.
    #[inline]
    pub(crate) fn takes(&self, count: usize) -> bool {
        match self.arity {
            arity @ 0.. => count == arity as usize,
            least => count >= least.unsigned_abs() as usize,
        }
    }

    /// Its name, arity, flags, places of keys, and categories of access.
    fn describe(&self, reply: &mut Reply) {
        reply.array(7);
        reply.bulk(self.name.as_bytes());
        reply.integer(self.arity.into());
        let (flags, categories): (&[&str], &[&str]) = match self.kind {
            Kind::Read => (&["readonly"], &["@read"]),
            Kind::Write => (&["write"], &["@write"]),
            Kind::Other | Kind::Control => (&[], &[]),
        };
        let set = |words: &[&str], reply: &mut Reply| {
            reply.set(words.len());
            words.iter().for_each(|word| reply.simple(word));
        };
        set(flags, reply);
        let (first, last, step) = self.keys;
        [first, last, step].into_iter().for_each(|number| reply.integer(number));
        set(categories, reply);
    }
}

const fn store(
    name: &'static str,
    arity: i32,
    kind: Kind,
    keys: (i64, i64, i64),
    run: StoreCommand,
) -> Command {
    Command { name, arity, kind, keys, run: Run::Store(run) }
}

const fn session(name: &'static str, arity: i32, kind: Kind, run: SessionCommand) -> Command {
    Command { name, arity, kind, keys: NO_KEY, run: Run::Session(run) }
}

const NO_KEY: (i64, i64, i64) = (0, 0, 0);
const KEY: (i64, i64, i64) = (1, 1, 1);
const KEYS: (i64, i64, i64) = (1, -1, 1);

use Kind::{Control, Other, Read, Write};

/// All commands, by name.
static COMMANDS: [Command; 64] = [
    store("append", 3, Write, KEY, strings::append),
    session("auth", -2, Other, admin::auth),
    session("blpop", -3, Write, client::blpop),
    session("client", -2, Other, admin::client),
    store("command", -1, Other, NO_KEY, command),
    session("config", -2, Other, admin::config),
    store("dbsize", 1, Read, NO_KEY, keys::dbsize),
    store("decr", 2, Write, KEY, strings::decr),
    store("decrby", 3, Write, KEY, strings::decrby),
    store("del", -2, Write, KEYS, keys::del),
    session("discard", 1, Control, transaction::discard),
    session("echo", 2, Other, client::echo),
    session("exec", 1, Control, transaction::exec),
    store("exists", -2, Read, KEYS, keys::exists),
    store("expire", -3, Write, KEY, keys::expire),
    store("flushall", -1, Write, NO_KEY, keys::flushall),
    store("get", 2, Read, KEY, strings::get),
    store("getdel", 2, Write, KEY, strings::getdel),
    store("hdel", -3, Write, KEY, hashes::hdel),
    session("hello", -1, Other, admin::hello),
    store("hget", 3, Read, KEY, hashes::hget),
    store("hgetall", 2, Read, KEY, hashes::hgetall),
    store("hlen", 2, Read, KEY, hashes::hlen),
    store("hset", -4, Write, KEY, hashes::hset),
    store("incr", 2, Write, KEY, strings::incr),
    store("incrby", 3, Write, KEY, strings::incrby),
    session("info", -1, Other, admin::info),
    store("keys", 2, Read, NO_KEY, keys::keys),
    store("llen", 2, Read, KEY, lists::llen),
    store("lpop", -2, Write, KEY, lists::lpop),
    store("lpush", -3, Write, KEY, lists::lpush),
    store("lrange", 4, Read, KEY, lists::lrange),
    store("mget", -2, Read, KEYS, strings::mget),
    store("mset", -3, Write, (1, -1, 2), strings::mset),
    session("multi", 1, Control, transaction::multi),
    store("persist", 2, Write, KEY, keys::persist),
    store("pexpire", -3, Write, KEY, keys::pexpire),
    session("ping", -1, Other, client::ping),
    session("psubscribe", -2, Other, pubsub::psubscribe),
    store("pttl", 2, Read, KEY, keys::pttl),
    session("publish", 3, Other, pubsub::publish),
    session("punsubscribe", -1, Other, pubsub::punsubscribe),
    session("quit", -1, Control, client::quit),
    session("reset", 1, Control, client::reset),
    store("rpop", -2, Write, KEY, lists::rpop),
    store("rpush", -3, Write, KEY, lists::rpush),
    store("sadd", -3, Write, KEY, sets::sadd),
    store("scan", -2, Read, NO_KEY, keys::scan),
    session("select", 2, Other, admin::select),
    store("set", -3, Write, KEY, strings::set),
    store("setnx", 3, Write, KEY, strings::setnx),
    store("sismember", 3, Read, KEY, sets::sismember),
    store("smembers", 2, Read, KEY, sets::smembers),
    store("spop", -2, Write, KEY, sets::spop),
    store("srem", -3, Write, KEY, sets::srem),
    store("strlen", 2, Read, KEY, strings::strlen),
    session("subscribe", -2, Other, pubsub::subscribe),
    store("ttl", 2, Read, KEY, keys::ttl),
    store("type", 2, Read, KEY, keys::r#type),
    session("unsubscribe", -1, Other, pubsub::unsubscribe),
    store("zadd", -4, Write, KEY, sorted::zadd),
    store("zpopmin", -2, Write, KEY, sorted::zpopmin),
    store("zrange", -4, Read, KEY, sorted::zrange),
    store("zscore", 3, Read, KEY, sorted::zscore),
];

/// The codes of the commands, in the same order.
static CODES: [u64; COMMANDS.len()] = {
    let mut codes = [0; COMMANDS.len()];
    let mut index = 0;
    while index < codes.len() {
        codes[index] = code(COMMANDS[index].name.as_bytes());
        // So each code is there once, and a search by halves finds it.
        assert!(index == 0 || codes[index - 1] < codes[index], "the table is sorted");
        index += 1;
    }
    codes
};

/// The first eight letters of a name as a number, whatever the case of the letters. The order is that
/// of the names.
#[inline]
const fn code(name: &[u8]) -> u64 {
    let letters = if name.len() < 8 { name.len() } else { 8 };
    let (mut code, mut index) = (0u64, 0);
    while index < letters {
        // Without the bit that makes a letter small.
        code = code << 8 | (name[index] & !0x20) as u64;
        index += 1;
    }
    if letters == 0 { 0 } else { code << (64 - 8 * letters) }
}

/// The command of this name.
#[inline]
pub(crate) fn find(name: &[u8]) -> Option<&'static Command> {
    let command = &COMMANDS[CODES.binary_search(&code(name)).ok()?];
    // What has the same code has the same first letters; a short name has no other ones.
    let is_same = command.name.len() == name.len()
        && (name.len() <= 8 || command.name.as_bytes().eq_ignore_ascii_case(name));
    is_same.then_some(command)
}

/// `COMMAND`, `COMMAND COUNT`, `COMMAND INFO` and `COMMAND DOCS`.
fn command(_: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    match arguments.len() {
        1 => {
            reply.array(COMMANDS.len());
            COMMANDS.iter().for_each(|command| command.describe(reply));
        }
        2 if arguments.is(1, "COUNT") => reply.count(COMMANDS.len()),
        _ if arguments.is(1, "INFO") => {
            reply.array(arguments.len() - 2);
            for name in arguments.from(2) {
                match find(name) {
                    Some(command) => command.describe(reply),
                    None => reply.nil_array(),
                }
            }
        }
        // A client that asks for help shows none.
        _ if arguments.is(1, "DOCS") => reply.map(0),
        _ => unknown_subcommand("COMMAND", arguments, reply),
    }
    Ok(())
}

/// The reply to a subcommand that does not exist.
pub(crate) fn unknown_subcommand(command: &str, arguments: Arguments<'_>, reply: &mut Reply) {
    let given = String::from_utf8_lossy(&arguments[1]);
    let given: String = given.chars().take(128).collect();
    reply.error(&format!("ERR unknown subcommand '{given}'. Try {command} HELP."));
}

/// The reply to a command that does not exist.
#[cold]
pub(crate) fn unknown(call: &mut Call<'_, '_>, arguments: Arguments<'_>) {
    let shown = |argument: &[u8]| {
        String::from_utf8_lossy(&argument[..argument.len().min(128)]).into_owned()
    };
    let mut rest = String::new();
    for argument in arguments.from(1) {
        if rest.len() >= 128 {
            break;
        }
        rest += &format!("'{}' ", shown(argument));
    }
    let name = shown(&arguments[0]);
    call.reply.error(&format!("ERR unknown command '{name}', with args beginning with: {rest}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_is_found_in_either_case_and_no_other() {
        for command in &COMMANDS {
            let upper = command.name.to_ascii_uppercase();
            assert_eq!(find(command.name.as_bytes()).unwrap().name, command.name);
            assert_eq!(find(upper.as_bytes()).unwrap().name, command.name);
        }
        for name in [
            "",
            "ge",
            "gett",
            "g\0t",
            "get\0",
            "get ",
            "smembers\0",
            "subscribX",
            "an_unreasonably_long_name",
            "\u{1}et",
            "{et",
        ] {
            assert!(find(name.as_bytes()).is_none(), "{name}");
        }
    }
}
