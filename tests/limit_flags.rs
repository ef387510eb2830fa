//! The flags of the examples for limits and statistics: each reaches the server, in every mode.

#[path = "support/programs.rs"]
mod programs;

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use programs::{Client, DEADLINE, Program, run, serve, wait_until};

const MODES: [&str; 6] = ["reactor", "offload", "inline", "threading", "pool", "forking"];

/// Every example with connections, and what it sends at once.
const STREAMING: [(&str, &str); 18] = [
    ("echo", ""),
    ("upper", ""),
    ("receive", ""),
    ("greet", ""),
    ("welcome", "欢迎访问socketserver服务器！"),
    ("nihao", "你好欢迎你"),
    ("stop_on_eof", ""),
    ("lines", ""),
    ("whoami", ""),
    ("chat", "* you are guest1, and 0 others are here\n"),
    ("stream", ""),
    ("heartbeat", "your name?\n"),
    ("results", ""),
    ("commands", ""),
    ("resp", ""),
    ("dns", ""),
    ("syslog", ""),
    (
        "smtp",
        "220 localhost ESMTP ready\r\n421 localhost You were silent for too long, good bye\r\n",
    ),
];

/// Runs `check` with a server of the example in each mode, and stops the server.
fn in_each_mode(name: &str, arguments: &[&str], check: impl Fn(&Program)) {
    for mode in MODES {
        println!("{name} under {mode}");
        let program = start(name, &[arguments, &["--mode", mode]].concat());
        check(&program);
        program.stop();
    }
}

fn start(name: &str, arguments: &[&str]) -> Program {
    serve(name, &["tcp://127.0.0.1:0"], arguments)
}

/// The server has closed the connection or reset it, without a word.
fn expect_cut(client: &mut Client) {
    let mut rest = Vec::new();
    if let Err(error) = client.socket.read_to_end(&mut rest) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    assert_eq!(rest, b"");
}

/// The value of a counter in a line of statistics, if it has moved.
fn counter(line: &str, name: &str) -> Option<u64> {
    let counters = line.strip_prefix('{').and_then(|line| line.strip_suffix('}'));
    let counters = counters.unwrap_or_else(|| panic!("not an object: {line}"));
    let mut pairs = counters.split(',').map(|pair| pair.split_once(':').expect("a pair"));
    let (_, value) = pairs.find(|(key, _)| *key == format!("\"{name}\""))?;
    Some(value.parse().expect("a number"))
}

/// Waits for the line of statistics in which this counter moves, and returns its value.
fn next_value(program: &Program, name: &str) -> u64 {
    let deadline = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < deadline, "{name} does not move");
        let line = program.next_error_line().expect("the program runs");
        if let Some(value) = counter(&line, name) {
            return value;
        }
    }
}

#[test]
fn help_shows_the_limits_and_their_defaults_which_are_those_of_the_crate() {
    for (name, _) in STREAMING {
        let ended = run(name, &["--help"]);
        let help = ended.succeeds().stdout.join("\n");
        for (flag, default) in [
            ("--stats SECONDS", "0"),
            ("--max-connections N", "as many as the limit on open files allows"),
            ("--max-per-address N", "0"),
            ("--accept-rate N", "0"),
            ("--idle SECONDS", if name == "smtp" { "300" } else { "0" }),
            ("--message-deadline SECONDS", "30"),
            ("--max-memory BYTES", "268435456"),
        ] {
            let (_, rest) = help.split_once(flag).unwrap_or_else(|| panic!("{flag}: {help}"));
            let (_, shown) = rest.split_once("[default: ").expect("a default");
            assert_eq!(shown.split(']').next(), Some(default), "{name}: {flag}");
        }
        assert!(help.lines().all(|line| line.chars().count() < 100), "{help}");
    }
    let defaults = format!("{:?}", socketserver::Limits::default());
    for default in [
        "max_per_address: None",
        "accept_rate: None",
        "message_deadline: Some(30s)",
        "message_rate: 500",
        "idle_timeout: None",
    ] {
        assert!(defaults.contains(default), "{default}: {defaults}");
    }
}

#[test]
fn a_limit_that_is_not_a_number_is_one_line_and_code_2() {
    for flag in [
        "--max-connections",
        "--max-per-address",
        "--accept-rate",
        "--idle",
        "--message-deadline",
        "--max-memory",
        "--stats",
    ] {
        for value in ["-1", "many", ""] {
            run("echo", &[flag, value]).expect_failure(2);
        }
        run("echo", &[flag]).expect_failure(2);
    }
    for flag in ["--max-connections", "--accept-rate", "--max-memory"] {
        run("echo", &[flag, "0.5"]).expect_failure(2);
    }
}

#[test]
fn a_server_whose_limits_are_all_0_serves() {
    let off = [
        ["--max-connections", "0"],
        ["--max-per-address", "0"],
        ["--accept-rate", "0"],
        ["--idle", "0"],
        ["--message-deadline", "0"],
        ["--max-memory", "0"],
        ["--stats", "0"],
    ];
    let program = start("echo", &off.concat());
    program.connect().send("hello").expect("hello");
    assert_eq!(program.stop().stderr, [""; 0]);
}

#[test]
fn every_example_closes_a_client_that_is_idle_for_longer_than_it_may_be() {
    for (name, greeting) in STREAMING {
        println!("{name}");
        let program = start(name, &["--idle", "0.2"]);
        let mut client = program.connect();
        client.expect(greeting);
        expect_cut(&mut client);
        program.stop();
    }
}

#[test]
fn an_idle_client_is_closed_in_every_mode_and_the_next_one_is_served() {
    in_each_mode("echo", &["--idle", "0.2"], |program| {
        let mut client = program.connect();
        client.send("hello").expect("hello");
        expect_cut(&mut client);
        program.connect().send("again").expect("again");
    });
}

#[test]
fn one_client_more_than_there_may_be_waits_until_another_has_gone() {
    in_each_mode("echo", &["--max-connections", "1"], |program| {
        let mut first = program.connect();
        first.send("one").expect("one");
        let mut second = program.connect();
        second.send("two").expect_silence();
        first.send("three").expect("three");
        drop(first);
        second.expect("two");
    });
}

#[test]
fn one_client_more_than_an_address_may_have_is_cut_and_can_come_back() {
    for mode in MODES.into_iter().filter(|mode| *mode != "inline") {
        println!("under {mode}");
        let program = start("echo", &["--max-per-address", "1", "--mode", mode]);
        let mut first = program.connect();
        first.send("one").expect("one");
        assert!(!serves_another(&program), "two of one address are served");
        first.send("two").expect("two");
        first.half_close().expect_end();
        // The server may not have noticed yet that the first one is closed.
        wait_until("another client is served", || serves_another(&program));
        program.stop();
    }
}

/// Whether the server answers another client, and does not reset it. The reset can come so early that
/// the client does not see that it was connected.
fn serves_another(program: &Program) -> bool {
    let echo = || -> io::Result<()> {
        let mut client = TcpStream::connect(program.urls()[0].strip_prefix("tcp://").unwrap())?;
        client.set_read_timeout(Some(DEADLINE))?;
        client.write_all(b"hi")?;
        client.read_exact(&mut [0; 2])
    };
    let echoed = echo();
    let is_reset = |error: &io::Error| {
        matches!(
            error.kind(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof
        )
    };
    assert!(echoed.as_ref().err().is_none_or(is_reset), "{echoed:?}");
    echoed.is_ok()
}

#[test]
fn more_clients_per_second_than_the_server_accepts_wait() {
    in_each_mode("echo", &["--accept-rate", "2"], |program| {
        let begun = Instant::now();
        for text in ["one", "two", "three", "four"] {
            program.connect().send(text).expect(text);
        }
        // Two at once, and one each half second.
        assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_message_that_is_not_whole_in_time_ends_its_connection() {
    in_each_mode("whoami", &["--message-deadline", "0.2"], |program| {
        let mut client = program.connect();
        client.send("one\ntw");
        assert!(client.line().starts_with("one "));
        expect_cut(&mut client);
        let mut client = program.connect();
        client.send("one\n");
        assert!(client.line().starts_with("one "));
    });
}

#[test]
fn some_of_the_clients_that_hold_more_memory_than_all_may_are_cut_and_others_are_served() {
    for mode in MODES.into_iter().filter(|mode| !matches!(*mode, "inline" | "forking")) {
        println!("under {mode}");
        let flags = ["--max-memory", "100000", "--stats", "0.05", "--mode", mode];
        let program = start("whoami", &flags);
        let mut clients = [(); 40].map(|()| program.connect());
        for client in &mut clients {
            client.send([b'x'; 8000]); // less than the longest line
        }
        assert!(next_value(&program, "over_memory") > 0);
        let mut client = program.connect();
        client.send("one\n");
        assert!(client.line().starts_with("one "));
        drop(clients);
        program.stop();
    }
}

#[test]
fn statistics_are_lines_of_the_counters_that_have_moved() {
    in_each_mode("echo", &["--stats", "0.05"], |program| {
        program.connect().send("hello").expect("hello").half_close().expect_end();
        assert_eq!(next_value(program, "accepted"), 1);
        program.connect().send("hello").expect("hello");
        assert_eq!(next_value(program, "accepted"), 2);
        let line = program.next_error_line().unwrap();
        assert_eq!(counter(&line, "accepted"), None, "{line}");
    });
}

#[test]
fn the_last_statistics_come_when_the_server_has_stopped() {
    let program = start("echo", &["--stats", "3600"]);
    program.connect().send("hello").expect("hello");
    let ended = program.stop();
    let [line] = &ended.stderr[..] else { panic!("{ended:?}") };
    assert_eq!(counter(line, "accepted"), Some(1), "{line}");
    assert_eq!(counter(line, "bytes_out"), Some(5), "{line}");
    assert_eq!(counter(line, "panics"), None, "{line}");
}
