//! The example `resp`.

use std::sync::Arc;
use std::time::Duration;

use socketserver::testing::Simulation;
use socketserver::{Limits, Mode, Server};

use super::examples::resp::{Shared, service};
use super::input::Draw;
use super::target::{TCP, Target, settle};

pub(crate) struct Resp;

pub(crate) fn server(mode: Mode, limits: Limits) -> Server {
    let shared = Arc::new(Shared::new(mode.name()));
    let mut server = Server::new().unwrap();
    server.add(service(&TCP.parse().unwrap(), mode, limits, &shared).unwrap()).unwrap();
    server
}

/// A command as an array.
pub(crate) fn array(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend(format!("${}\r\n", argument.len()).into_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend(b"\r\n");
    }
    bytes
}

/// A command of words as an array.
pub(crate) fn words(line: &str) -> Vec<u8> {
    array(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>())
}

const NAMES: &[&str] = &[
    "PING",
    "ECHO",
    "SET",
    "GET",
    "GETDEL",
    "DEL",
    "EXISTS",
    "INCR",
    "DECR",
    "INCRBY",
    "DECRBY",
    "APPEND",
    "STRLEN",
    "MGET",
    "MSET",
    "SETNX",
    "PERSIST",
    "TYPE",
    "KEYS",
    "SCAN",
    "DBSIZE",
    "FLUSHALL",
    "LPUSH",
    "RPUSH",
    "LPOP",
    "RPOP",
    "LLEN",
    "LRANGE",
    "HSET",
    "HGET",
    "HDEL",
    "HGETALL",
    "HLEN",
    "SADD",
    "SREM",
    "SMEMBERS",
    "SISMEMBER",
    "ZADD",
    "ZRANGE",
    "ZSCORE",
    "ZPOPMIN",
    "SUBSCRIBE",
    "PSUBSCRIBE",
    "UNSUBSCRIBE",
    "PUNSUBSCRIBE",
    "PUBLISH",
    "CLIENT",
    "CONFIG",
    "COMMAND",
    "MULTI",
    "EXEC",
    "DISCARD",
    "QUIT",
    "RESET",
    "HELLO",
    "SELECT",
    "AUTH",
    "EXPIRE",
    "PEXPIRE",
    "TTL",
    "PTTL",
    "SPOP",
    "BLPOP",
    "INFO",
    "NONE",
];

const ARGUMENTS: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"*",
    b"0",
    b"1",
    b"-1",
    b"10",
    b"0.5",
    b"inf",
    b"-inf",
    b"nan",
    b"1e400",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"9223372036854775808",
    b"NX",
    b"XX",
    b"GET",
    b"KEEPTTL",
    b"COUNT",
    b"MATCH",
    b"WITHSCORES",
    b"LIST",
    b"SETNAME",
    b"GETNAME",
    b"KILL",
    b"ID",
    b"3",
    b"2",
    b"EX",
    b"PX",
    b"",
    b"\0\xff",
    b"[a-",
    b"?*?*?*?*a",
    b"BYSCORE",
    b"REV",
    b"LIMIT",
];

/// Words whose answers depend on the time, on chance, or on who asks.
const VARIABLE: &[&[u8]] = &[
    b"expire",
    b"ttl",
    b"spop",
    b"scan",
    b"keys",
    b"smembers",
    b"hgetall",
    b"info",
    b"client",
    b"hello",
    b"ex\r",
    b"px\r",
    b"blpop",
    b"ex ",
    b"px ",
];

/// A valid reply at the start of the bytes; returns its length. `None` if it is cut.
fn reply(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")? + 2;
    let line = std::str::from_utf8(&bytes[1..end - 2]).unwrap_or("not text");
    let number = || line.parse::<i64>().unwrap_or_else(|_| panic!("{line:?} is not a number"));
    let many = |count: i64| {
        let mut at = end;
        for _ in 0..count.max(0) {
            at += reply(&bytes[at..])?;
        }
        Some(at)
    };
    match bytes[0] {
        b'+' | b'-' => {
            assert!(!bytes[..end - 2].contains(&b'\n'), "a line of two lines");
            Some(end)
        }
        b':' => {
            number();
            Some(end)
        }
        b',' | b'_' | b'#' | b'(' => Some(end),
        b'$' if number() < 0 => Some(end),
        b'$' => {
            let length = end + usize::try_from(number()).unwrap() + 2;
            assert_eq!(bytes.get(length - 2..length)?, b"\r\n", "a string ends in CR LF");
            Some(length)
        }
        b'*' | b'~' | b'>' => many(number()),
        b'%' => many(2 * number()),
        other => panic!("{other:?} begins no reply"),
    }
}

/// The replies; the last one may be cut.
pub(crate) fn replies(mut bytes: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let Some(length) = reply(bytes) else { break };
        let (one, rest) = bytes.split_at(length);
        replies.push(one);
        bytes = rest;
    }
    (replies, bytes)
}

impl Target for Resp {
    /// A message must be complete within 30 seconds, and 1 second more for each 500 bytes.
    const SILENCE: Duration = Duration::from_secs(120);

    fn new(mode: Mode) -> (Self, Server) {
        (Resp, server(mode, Limits::default()))
    }

    fn message(draw: Draw<'_>) -> Vec<u8> {
        let mut command = vec![draw.pick(NAMES).as_bytes()];
        for _ in 0..draw.below(6) {
            command.push(draw.pick(ARGUMENTS));
        }
        if command[0] == b"BLPOP" {
            command.push(b"0.05");
        }
        match draw.below(6) {
            5 => [command.join(&b' '), b"\r\n".to_vec()].concat(),
            4 => {
                let begun: &[&[u8]] = &[
                    b"*1048576\r\n",
                    b"*3\r\n$536870912\r\n",
                    b"*1\r\n",
                    b"*0\r\n",
                    b"*-1\r\n",
                    b"\r\n",
                ];
                draw.pick(begun).repeat([1, 2, 300][draw.below(3)])
            }
            _ => array(&command),
        }
    }

    /// Commands with their replies, then bytes that are no command, and a command that is not served.
    fn known(draw: Draw<'_>) -> (Vec<u8>, String) {
        let (mut input, mut expected) = (Vec::new(), String::new());
        for number in 0..draw.below(5) {
            let (command, reply) = match draw.below(5) {
                4 => (b"*0\r\n\r\n*-1\r\n".to_vec(), String::new()),
                0 => (words("PING"), "+PONG\r\n".to_owned()),
                1 => (b"ECHO \"a\\x62\"\r\n".to_vec(), "$2\r\nab\r\n".to_owned()),
                2 => (words("RPUSH list x"), format!(":{}\r\n", 1 + count(&expected))),
                _ => (words(&format!("SET k{number} v")), "+OK\r\n".to_owned()),
            };
            input.extend(command);
            expected += &reply;
        }
        let (broken, error) = draw.pick(&[
            ("*1\r\n:1\r\n", "expected '$', got ':'"),
            ("*x\r\n", "invalid multibulk length"),
            ("*1048577\r\n", "invalid multibulk length"),
            ("*99999999999999999999\r\n", "invalid multibulk length"),
            ("*1\r\n$-1\r\n", "invalid bulk length"),
            ("*1\r\n$+1\r\n", "invalid bulk length"),
            ("*1\r\n$536870913\r\n", "invalid bulk length"),
            ("GET \"a\r\n", "unbalanced quotes in request"),
        ]);
        input.extend_from_slice(broken.as_bytes());
        input.extend(words("SET not-served 1").repeat(draw.below(3)));
        expected += &format!("-ERR Protocol error: {error}\r\n");
        (input, expected)
    }

    fn summary(&self, sent: &[u8], received: &[u8], is_complete: bool) -> String {
        let (replies, rest) = replies(received);
        assert!(rest.is_empty() || !is_complete, "a cut reply: {}", rest.escape_ascii());
        let is_end = |reply: &&[u8]| reply.starts_with(b"-ERR Protocol error");
        let ends = replies.iter().filter(|reply| is_end(reply)).count();
        assert!(ends <= 1, "{ends} protocol errors");
        assert!(ends == 0 || replies.last().is_some_and(is_end), "replies after a protocol error");
        // Each reply has a request: the shortest one is a line with a letter.
        assert!(replies.len() <= sent.len() + 10, "{} replies", replies.len());
        String::from_utf8_lossy(received).into_owned()
    }

    fn is_repeatable(input: &[u8]) -> bool {
        let input = input.to_ascii_lowercase();
        let has = |word: &&[u8]| input.windows(word.len()).any(|bytes| bytes == *word);
        !VARIABLE.iter().any(has)
    }

    /// While a client waits for an element, it is not read.
    fn waits(input: &[u8]) -> bool {
        input.to_ascii_lowercase().windows(5).any(|word| word == b"blpop")
    }

    fn probe() -> Vec<u8> {
        words("PING")
    }

    fn serves(&mut self, sim: &mut Simulation<'_>) {
        let client = sim.connect();
        let commands = ["GET not-served", "SET fresh x", "GET fresh", "PUBLISH a x", "PUBLISH b x"];
        client.send(&commands.map(words).concat());
        settle(self, sim);
        // Nobody else is subscribed any more.
        assert_eq!(client.read(), b"$-1\r\n+OK\r\n$1\r\nx\r\n:0\r\n:0\r\n");
        client.send(&words("CLIENT LIST"));
        settle(self, sim);
        let clients = String::from_utf8(client.read()).unwrap().matches("addr=").count();
        assert_eq!(clients, sim.connections(), "the others are forgotten");
        client.close();
    }
}

/// How many pushes have been answered.
fn count(replies: &str) -> usize {
    replies.lines().filter(|line| line.starts_with(':')).count()
}

#[cfg(test)]
mod tests {
    use super::super::target::check;
    use super::*;

    #[test]
    fn malformed_commands_end_in_an_error_and_harm_no_other_client() {
        check::<Resp>();
    }
}
