//! The example `resp` against the clients of Redis, and against redis-server itself: the same commands
//! get the same replies.
//!
//! Without the programs and the Python package that a test needs, it is skipped and says so.

#[path = "support/programs.rs"]
mod programs;
#[path = "resp/replies.rs"]
mod replies;
#[path = "support/tools.rs"]
mod tools;

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use programs::{DEADLINE, Directory, Program, run, serve, spawn, wait_until};
use replies::{Connection, Reply, array, bulk};
use tools::{have_programs, have_python_modules};

const MODES: [&str; 4] = ["reactor", "offload", "threading", "pool"];

/// The commands of the comparison with redis-server.
const COMMANDS: &str = include_str!("resp/commands.txt");

/// How long a client that does not read may be connected after it was killed.
const KILL_TIME: Duration = Duration::from_millis(50);

/// The example in one mode.
struct Server(Program);

impl Server {
    fn start(mode: &str) -> Self {
        println!("under {mode}");
        let workers: &[&str] = if mode == "pool" { &["--workers", "64"] } else { &[] };
        let arguments = [&["--mode", mode], workers].concat();
        Server(serve("resp", &["tcp://127.0.0.1:0"], &arguments))
    }

    fn address(&self) -> SocketAddr {
        self.0.urls()[0].strip_prefix("tcp://").unwrap().parse().unwrap()
    }

    fn port(&self) -> String {
        self.address().port().to_string()
    }

    #[track_caller]
    fn connect(&self) -> Connection {
        Connection::to(self.address())
    }

    /// Stops it, and checks that it has reported nothing: no panic and no error of a handler.
    #[track_caller]
    fn stop(self) {
        assert_eq!(self.0.stop().stderr, [""; 0]);
    }
}

/// redis-server, without files. Dropping it ends it.
struct Original {
    _program: Program,
    _directory: Directory,
    address: SocketAddr,
}

impl Original {
    fn start() -> Self {
        let directory = Directory::new();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut command = Command::new("redis-server");
        command.args(["--port", &address.port().to_string(), "--save", "", "--appendonly", "no"]);
        command.args(["--daemonize", "no"]).current_dir(directory.path("."));
        let program = spawn(&mut command);
        wait_until("redis-server answers", || TcpStream::connect(address).is_ok());
        Original { _program: program, _directory: directory, address }
    }
}

/// The words of a command; a word in quotes may contain spaces and escapes.
fn words(line: &str) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut bytes = line.bytes().peekable();
    while let Some(first) = bytes.next() {
        if first == b' ' {
            continue;
        }
        let mut word = Vec::new();
        if first != b'"' {
            word.push(first);
            while let Some(byte) = bytes.next_if(|byte| *byte != b' ') {
                word.push(byte);
            }
        } else {
            while let Some(byte) = bytes.next().filter(|byte| *byte != b'"') {
                word.push(match (byte, bytes.peek()) {
                    (b'\\', Some(b'x')) => {
                        bytes.next();
                        let digits: String =
                            (0..2).map(|_| char::from(bytes.next().unwrap())).collect();
                        u8::from_str_radix(&digits, 16).unwrap()
                    }
                    (b'\\', _) => match bytes.next().unwrap() {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        other => other,
                    },
                    _ => byte,
                });
            }
        }
        words.push(word);
    }
    words
}

/// The replies to all commands, each with its line.
fn replies(address: SocketAddr, protocol: &str) -> Vec<(&'static str, Reply)> {
    let mut connections = [Connection::to(address), Connection::to(address)];
    let mut replies = Vec::new();
    for connection in &mut connections {
        assert!(!matches!(connection.ask(&format!("HELLO {protocol}")), Reply::Error(_)));
        connection.ask("FLUSHALL");
    }
    for line in COMMANDS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(millis) = line.strip_prefix("sleep ") {
            thread::sleep(Duration::from_millis(millis.parse().unwrap()));
            continue;
        }
        let unordered = line.strip_prefix('~');
        let command = unordered.unwrap_or(line);
        let second = command.strip_prefix("2>");
        let connection = &mut connections[usize::from(second.is_some())];
        let reply = connection.command(&words(second.unwrap_or(command))).read();
        let reply = reply.without_text_of_errors();
        replies.push((line, if unordered.is_some() { reply.sorted() } else { reply }));
    }
    replies
}

#[test]
fn more_than_300_commands_get_the_same_replies_as_from_redis_server() {
    if !have_programs(&["redis-server"]) {
        return;
    }
    let original = Original::start();
    for mode in MODES {
        let server = Server::start(mode);
        for protocol in ["2", "3"] {
            let (ours, theirs) =
                (replies(server.address(), protocol), replies(original.address, protocol));
            assert!(ours.len() > 300, "{}", ours.len());
            let differences: Vec<String> = ours
                .iter()
                .zip(&theirs)
                .filter(|(ours, theirs)| ours != theirs)
                .map(|((line, ours), (_, theirs))| format!("{line}: {ours:?}, Redis: {theirs:?}"))
                .collect();
            assert!(differences.is_empty(), "{mode}, RESP{protocol}:\n{}", differences.join("\n"));
        }
        server.stop();
    }
}

/// Input that is not RESP, or is RESP at its limits.
fn malformed() -> Vec<Vec<u8>> {
    let texts = [
        "*1\r\n$-1\r\n",
        "*1\r\n$x\r\n",
        "*1\r\n$536870913\r\n",
        "*1\r\n$99999999999999999999\r\n",
        "*x\r\n",
        "*99999999999999999999\r\n",
        "*1\r\n*1\r\n$4\r\nPING\r\n",
        "*2\r\n$4\r\nECHO\r\n:1\r\n",
        "*1\r\n+PING\r\n",
        "*1\r\n$4\r\nPING\r\n*1\r\nPING\r\n",
        "GET \"a\r\n",
        "GET 'a'b\r\n",
        "PING\r\n*-5\r\n*0\r\n\r\n*1\r\n!\r\n",
    ];
    let mut all: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    all.push(vec![b'a'; 70_000]);
    all.push([b"*", &b"1".repeat(70_000)[..]].concat());
    all.push([b"*1\r\n$", &b"1".repeat(70_000)[..]].concat());
    all
}

#[test]
fn malformed_input_gets_the_protocol_error_of_redis_and_the_connection_is_closed() {
    let original = have_programs(&["redis-server"]).then(Original::start);
    for mode in MODES {
        let server = Server::start(mode);
        for input in malformed() {
            let answer = |address| {
                let mut connection = Connection::to(address);
                // The server may have closed the connection before all is sent.
                let _ = connection.stream().write_all(&input);
                connection.rest()
            };
            let shown = String::from_utf8_lossy(&input[..input.len().min(40)]).into_owned();
            let ours = answer(server.address());
            assert!(ours.contains("-ERR Protocol error: "), "{shown:?}: {ours:?}");
            if let Some(original) = &original {
                assert_eq!(ours, answer(original.address), "{shown:?}");
            }
        }
        assert_eq!(server.connect().ask("PING"), Reply::Simple("PONG".into()));
        server.stop();
    }
}

#[test]
fn half_a_command_takes_little_memory_and_other_clients_are_served() {
    for mode in MODES {
        let server = Server::start(mode);
        let halves = [
            "*1000000\r\n$536870912\r\nabc",
            "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$400000000\r\nx",
            "SET a",
        ];
        let held: Vec<Connection> = (0..30)
            .map(|number| {
                let mut connection = server.connect();
                connection.send(halves[number % 3]);
                connection
            })
            .collect();
        let mut client = server.connect();
        assert_eq!(client.ask("SET a 1"), Reply::Simple("OK".into()));
        assert_eq!(client.ask("GET a"), bulk("1"));
        if let Some(kib) = resident(server.0.id()) {
            assert!(kib < 64 << 10, "{kib} KiB");
        }
        drop(held);
        wait_until("the halves are forgotten", || {
            client.ask("CLIENT LIST").text().lines().count() == 1
        });
        server.stop();
    }
}

/// A sequence of random numbers, the same in each run.
struct Random(u64);

impl Random {
    /// Marsaglia's xorshift.
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    fn choose<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

#[test]
fn commands_with_any_arguments_get_one_reply_each_and_harm_nothing() {
    // Those that have other numbers of replies, or close or delay, are tested by themselves.
    let names: Vec<&str> = "APPEND AUTH CLIENT COMMAND CONFIG DBSIZE DECR DECRBY DEL DISCARD ECHO EXEC \
         EXISTS EXPIRE FLUSHALL GET GETDEL HDEL HELLO HGET HGETALL HLEN HSET INCR INCRBY INFO KEYS LLEN \
         LPOP LPUSH LRANGE MGET MSET MULTI PERSIST PEXPIRE PING PTTL PUBLISH RESET RPOP RPUSH SADD SCAN \
         SELECT SET SETNX SISMEMBER SMEMBERS SPOP SREM STRLEN TTL TYPE ZADD ZPOPMIN ZRANGE ZSCORE NONE"
        .split_ascii_whitespace()
        .collect();
    let arguments = [
        "a",
        "b",
        "l",
        "h",
        "s",
        "z",
        "",
        "0",
        "1",
        "-1",
        "2",
        "3",
        "9223372036854775807",
        "-9223372036854775808",
        "18446744073709551615",
        "1.5",
        "inf",
        "-inf",
        "nan",
        "1e308",
        "*",
        "[a-",
        "\\",
        "\r\n",
        "NX",
        "XX",
        "GT",
        "CH",
        "INCR",
        "EX",
        "PX",
        "GET",
        "KEEPTTL",
        "COUNT",
        "MATCH",
        "TYPE",
        "LIST",
        "ID",
        "WITHSCORES",
        "REV",
        "SETNAME",
        "\u{fffd}\0",
        "a somewhat longer value of more than 22 bytes",
    ];
    for mode in MODES {
        let server = Server::start(mode);
        let mut client = server.connect();
        let mut random = Random(0x5EED);
        for _ in 0..40 {
            let mut pipeline = Vec::new();
            for _ in 0..200 {
                let mut command = vec![random.choose(&names)];
                let count = random.below(7);
                command.extend((0..count).map(|_| random.choose(&arguments)));
                pipeline.extend(array(&command));
            }
            client.send(pipeline);
            for _ in 0..200 {
                assert_ne!(client.read(), Reply::Closed);
            }
        }
        assert_eq!(server.connect().ask("PING"), Reply::Simple("PONG".into()));
        server.stop();
    }
}

/// The resident memory of a process, in KiB, on systems with `/proc`.
fn resident(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[test]
fn commands_in_any_pieces_and_in_long_pipelines_are_answered_in_order() {
    for mode in MODES {
        let server = Server::start(mode);
        let mut client = server.connect();
        for byte in [array(&["SET", "a", "x y"]), b"GET a\r\n".to_vec()].concat() {
            client.send([byte]);
        }
        assert_eq!((client.read(), client.read()), (Reply::Simple("OK".into()), bulk("x y")));
        let mut pipeline = Vec::new();
        for number in 0..3000 {
            pipeline.extend(array(&["ECHO", &number.to_string()]));
            pipeline.extend(array(&["MGET", "a", "b", "c", "d", "e", "f", "g"]));
        }
        let mut sending = server.connect();
        let mut stream = sending.stream().try_clone().unwrap();
        let writer = thread::spawn(move || stream.write_all(&pipeline).unwrap());
        for number in 0..3000 {
            assert_eq!(sending.read(), bulk(&number.to_string()));
            let Reply::Array(values) = sending.read() else { panic!("an array") };
            assert_eq!((values.len(), &values[0]), (7, &bulk("x y")));
        }
        writer.join().unwrap();
        let value = "x".repeat(3 << 20);
        assert_eq!(client.command(&["SET", "long", &value]).read(), Reply::Simple("OK".into()));
        assert_eq!(
            client.ask("MGET long a long"),
            Reply::Array(vec![bulk(&value), bulk("x y"), bulk(&value)])
        );
        server.stop();
    }
}

#[test]
fn keys_expire_without_being_asked_for() {
    for mode in MODES {
        let server = Server::start(mode);
        let mut client = server.connect();
        for number in 0..2500 {
            client.command(&["SET", &number.to_string(), "x", "PX", "100"]);
        }
        client.command(&["SET", "stays", "x"]);
        for _ in 0..2501 {
            assert_eq!(client.read(), Reply::Simple("OK".into()));
        }
        wait_until("all but one have expired", || client.ask("DBSIZE") == Reply::Integer(1));
        assert_eq!(client.ask("GET stays"), bulk("x"));
        server.stop();
    }
}

#[test]
fn clients_that_wait_for_elements_get_them_in_the_order_in_which_they_began() {
    for mode in MODES {
        let server = Server::start(mode);
        let mut client = server.connect();
        let blocked = |client: &mut Connection, count: usize| {
            let expected = format!("blocked_clients:{count}\r\n");
            wait_until("the client waits", || {
                client.ask("INFO clients").text().contains(&expected)
            });
        };
        let mut waiting: Vec<Connection> = Vec::new();
        for number in 0..5 {
            let mut connection = server.connect();
            // What follows is answered after it.
            connection
                .command(&["BLPOP", "queue", "other", "0"])
                .command(&["ECHO", &number.to_string()]);
            waiting.push(connection);
            blocked(&mut client, number + 1);
        }
        // One that is gone gets nothing.
        let mut gone = server.connect();
        gone.command(&["BLPOP", "queue", "0"]);
        blocked(&mut client, 6);
        drop(gone);
        blocked(&mut client, 5);
        assert_eq!(client.ask("RPUSH queue a b"), Reply::Integer(2));
        assert_eq!(client.ask("RPUSH other c"), Reply::Integer(1));
        assert_eq!(client.ask("MULTI"), Reply::Simple("OK".into()));
        client.ask("RPUSH queue d");
        client.ask("RPUSH queue e");
        client.ask("RPUSH queue f");
        assert_eq!(client.ask("EXEC"), Reply::Array([1, 2, 3].map(Reply::Integer).to_vec()));
        let expected =
            [("queue", "a"), ("queue", "b"), ("other", "c"), ("queue", "d"), ("queue", "e")];
        for (number, (connection, (key, element))) in waiting.iter_mut().zip(expected).enumerate() {
            assert_eq!(connection.read(), Reply::Array(vec![bulk(key), bulk(element)]));
            assert_eq!(connection.read(), bulk(&number.to_string()));
        }
        assert_eq!(client.ask("LRANGE queue 0 -1"), Reply::Array(vec![bulk("f")]));
        let start = Instant::now();
        assert_eq!(client.ask("BLPOP missing 0.1"), Reply::NilArray);
        assert!(start.elapsed() >= Duration::from_millis(100));
        // One that waits does not hold up the stop.
        waiting[0].command(&["BLPOP", "missing", "0"]);
        blocked(&mut client, 1);
        let start = Instant::now();
        server.stop();
        assert!(start.elapsed() < Duration::from_secs(4), "the drain deadline is 5 s");
    }
}

#[test]
fn subscribers_get_messages_of_channels_and_patterns_in_both_protocols() {
    for mode in MODES {
        let server = Server::start(mode);
        let mut client = server.connect();
        let mut resp2 = server.connect();
        let mut resp3 = server.connect();
        resp3.ask("HELLO 3");
        let subscribed =
            |kind: &str, name: &str, count| vec![bulk(kind), bulk(name), Reply::Integer(count)];
        assert_eq!(resp2.ask("SUBSCRIBE news"), Reply::Array(subscribed("subscribe", "news", 1)));
        assert_eq!(
            resp2.ask("PSUBSCRIBE n[a-f]*"),
            Reply::Array(subscribed("psubscribe", "n[a-f]*", 2))
        );
        assert_eq!(resp3.ask("SUBSCRIBE news"), Reply::Push(subscribed("subscribe", "news", 1)));
        assert_eq!(client.ask("PUBLISH news hello"), Reply::Integer(3));
        assert_eq!(client.ask("PUBLISH nice x"), Reply::Integer(0));
        let message = vec![bulk("message"), bulk("news"), bulk("hello")];
        let of_pattern = vec![bulk("pmessage"), bulk("n[a-f]*"), bulk("news"), bulk("hello")];
        assert_eq!(resp2.read(), Reply::Array(message.clone()));
        assert_eq!(resp2.read(), Reply::Array(of_pattern));
        assert_eq!(resp3.read(), Reply::Push(message));
        // RESP3 allows all commands beside subscriptions, RESP2 does not.
        assert_eq!(resp3.ask("SET a 1"), Reply::Simple("OK".into()));
        assert!(
            matches!(resp2.ask("GET a"), Reply::Error(text) if text.starts_with("ERR Can't execute 'get'"))
        );
        assert_eq!(resp2.ask("PING"), Reply::Array(vec![bulk("pong"), bulk("")]));
        assert_eq!(resp2.ask("RESET"), Reply::Simple("RESET".into()));
        assert_eq!(resp2.ask("GET a"), bulk("1"));
        drop(resp3);
        wait_until("a subscriber that has gone is forgotten", || {
            client.ask("PUBLISH news x") == Reply::Integer(0)
        });
        server.stop();
    }
}

#[test]
fn a_subscriber_that_does_not_read_is_closed_at_its_limit_and_others_get_all() {
    for mode in MODES {
        let server = Server::start(mode);
        let mut client = server.connect();
        let mut reading = server.connect();
        reading.ask("SUBSCRIBE news");
        let mut unread = server.connect();
        unread.command(&["SUBSCRIBE", "news"]).read();
        let message = "x".repeat(256 << 10);
        let mut published = 0;
        loop {
            published += 1;
            let Reply::Integer(reached) = client.command(&["PUBLISH", "news", &message]).read()
            else {
                panic!("a number")
            };
            let Reply::Array(parts) = reading.read() else { panic!("an array") };
            assert_eq!(parts[2], bulk(&message));
            if reached == 1 {
                break;
            }
            assert!(published < 1000, "32 MiB may wait, and what the kernel takes");
        }
        wait_until("the subscriber that does not read is closed", || {
            client.ask("CLIENT LIST").text().lines().count() == 2
        });
        server.stop();
    }
}

#[test]
fn a_client_that_does_not_read_is_gone_within_50_ms_after_it_was_killed() {
    for mode in MODES {
        let server = Server::start(mode);
        let mut client = server.connect();
        let value = vec![b'x'; 8 << 20];
        client.command(&[&b"SET"[..], b"long", &value]).read();
        let mut killed = || {
            let mut unread = server.connect();
            for _ in 0..4 {
                unread.command(&["GET", "long"]);
            }
            // The first bytes have come, and no more are read.
            let mut byte = [0];
            assert_eq!(unread.stream().peek(&mut byte).unwrap(), 1);
            let address = unread.stream().local_addr().unwrap().to_string();
            let start = Instant::now();
            assert_eq!(client.ask(&format!("CLIENT KILL ADDR {address}")), Reply::Integer(1));
            wait_until("it is not listed", || !client.ask("CLIENT LIST").text().contains(&address));
            let time = start.elapsed();
            // It gets no more than what the kernel had, and a reset.
            assert!(unread.rest().len() < 4 * value.len());
            time
        };
        // On a machine that works on something else, one time says little.
        let times: Vec<Duration> = (0..5).map(|_| killed()).collect();
        assert!(times.iter().min().unwrap() < &KILL_TIME, "{mode}: {times:?}");
        server.stop();
    }
}

#[test]
fn a_long_transaction_is_refused_and_takes_no_more_memory() {
    let server = Server::start("reactor");
    let mut client = server.connect();
    client.ask("MULTI");
    let value = "x".repeat(8 << 20);
    for number in 0..12 {
        let reply = client.command(&["SET", "a", &value]).read();
        assert_eq!(matches!(reply, Reply::Error(_)), number == 7, "{number}");
    }
    assert!(matches!(client.ask("EXEC"), Reply::Error(text) if text.starts_with("EXECABORT")));
    assert_eq!(client.ask("EXISTS a"), Reply::Integer(0));
    server.stop();
}

#[test]
fn a_reply_that_repeats_a_value_too_often_is_refused() {
    let server = Server::start("reactor");
    let mut client = server.connect();
    client.command(&["SET", "a", &"x".repeat(15 << 10)]).read();
    let many: Vec<&str> = ["MGET"].into_iter().chain(std::iter::repeat_n("a", 20_000)).collect();
    assert!(
        matches!(client.command(&many).read(), Reply::Error(text) if text.contains("too long"))
    );
    client.ask("MULTI");
    let many = &many[..15_001]; // 220 MiB
    client.command(many).read();
    client.command(&["SET", "b", "1"]).read();
    client.command(many).read();
    client.command(&["GET", "b"]).read();
    let Reply::Array(replies) = client.command(&["EXEC"]).read() else { panic!("an array") };
    assert!(matches!(&replies[0], Reply::Array(all) if all.len() == 15_000));
    assert_eq!(replies[1], Reply::Simple("OK".into()));
    assert!(matches!(&replies[2], Reply::Error(text) if text.contains("too long")));
    assert_eq!(replies[3], bulk("1"));
    server.stop();
}

#[test]
fn a_mode_in_which_clients_share_nothing_or_one_is_served_at_a_time_is_refused() {
    for mode in ["inline", "forking"] {
        let ended = run("resp", &["--mode", mode, "--listen", "tcp://127.0.0.1:0"]);
        assert!(ended.expect_failure(2).contains(mode));
    }
}

#[test]
fn clients_of_a_unix_socket_are_served() {
    let directory = Directory::new();
    let url = directory.url("unix");
    let program = serve("resp", &[&url, "tcp://127.0.0.1:0"], &[]);
    let mut client = program.connect();
    client.send("SET a b\r\n").expect("+OK\r\n").send("GET a\r\n").expect("$1\r\nb\r\n");
    client.send("QUIT\r\n").expect("+OK\r\n").expect_end();
    // Both listeners have one store.
    programs::connect(&program.urls()[1]).send("GET a\r\n").expect("$1\r\nb\r\n");
    program.stop();
}

/// What a program prints for this input.
fn output(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn redis_cli_shows_the_same_with_this_server_and_with_redis_server() {
    if !have_programs(&["redis-cli", "redis-server"]) {
        return;
    }
    let session = "PING\nSET a \"1 2\"\nGET a\nGET missing\nLPUSH l x y z\nLRANGE l 0 -1\nHSET h f 1\n\
                   HGETALL h\nZADD z 1.5 one\nZRANGE z 0 -1 WITHSCORES\nINCR a\nLPUSH a x\nTYPE z\n\
                   MULTI\nINCR n\nINCR n\nEXEC\nBLPOP none 0.01\nSMEMBERS none\nNOSUCH x\nDEL a l\nFLUSHALL\n";
    let original = Original::start();
    let original = original.address.port().to_string();
    for mode in MODES {
        let server = Server::start(mode);
        for protocol in ["-2", "-3"] {
            let shown =
                |port: &str| output("redis-cli", &["-p", port, protocol, "--no-raw"], session);
            assert_eq!(shown(&server.port()), shown(&original));
        }
        let info = output("redis-cli", &["-p", &server.port(), "INFO"], "");
        assert!(info.contains(&format!("socketserver_mode:{mode}")), "{info}");
        let bytes =
            output("redis-cli", &["-p", &server.port(), "--pipe"], &"SET a b\r\n".repeat(10_000));
        assert!(bytes.contains("errors: 0, replies: 10000"), "{bytes}");
        server.stop();
    }
}

#[test]
fn redis_benchmark_completes_all_its_tests_of_these_commands() {
    if !have_programs(&["redis-benchmark"]) {
        return;
    }
    let tests = "ping_inline,ping_mbulk,set,get,incr,lpush,rpush,lpop,rpop,sadd,hset,spop,zadd,zpopmin,\
                 lrange_100,lrange_300,lrange_500,lrange_600,mset";
    for mode in MODES {
        let server = Server::start(mode);
        for depth in ["1", "16"] {
            let arguments = [
                "-p",
                &server.port(),
                "-t",
                tests,
                "-n",
                "2000",
                "-c",
                "20",
                "-P",
                depth,
                "-r",
                "100",
                "--csv",
            ];
            let printed = output("redis-benchmark", &arguments, "");
            assert_eq!(printed.lines().count(), 1 + 20, "{printed}");
            assert!(!printed.contains("rror"), "{printed}");
        }
        server.stop();
    }
}

#[test]
fn the_python_client_works_in_both_protocols() {
    if !have_python_modules(&["redis"]) {
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/resp/clients.py");
    for mode in MODES {
        let server = Server::start(mode);
        for protocol in ["2", "3"] {
            assert_eq!(output("python3", &[script, &server.port(), protocol], ""), "ok\n");
        }
        server.stop();
    }
}

#[test]
fn clients_that_reset_or_end_in_any_state_leave_nothing_behind() {
    for mode in MODES {
        let server = Server::start(mode);
        let address = server.address();
        let clients: Vec<_> = (0..20u32)
            .map(|number| {
                thread::spawn(move || {
                    for _ in 0..10 {
                        let mut connection = Connection::to(address);
                        let command =
                            ["SUBSCRIBE a", "MULTI", "BLPOP none 0", "GET a"][number as usize % 4];
                        // Unread replies make the close a reset.
                        connection.send(format!("GET a\r\n{command}\r\n"));
                        drop(connection);
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        let mut client = server.connect();
        wait_until("they are forgotten", || client.ask("CLIENT LIST").text().lines().count() == 1);
        assert!(client.ask("INFO clients").text().contains("blocked_clients:0\r\n"));
        assert_eq!(client.ask("PUBLISH a x"), Reply::Integer(0));
        let start = Instant::now();
        server.stop();
        assert!(start.elapsed() < DEADLINE);
    }
}
