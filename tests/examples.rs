//! The examples as programs: command line, signals, exit codes, and clients over real sockets.

#[path = "support/programs.rs"]
mod programs;

use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::Duration;

use programs::{
    Client, Directory, Program, connect, example, run, serve, serve_tcp, signal_of, spawn, text,
};

const MODES: [&str; 6] = ["reactor", "offload", "inline", "threading", "pool", "forking"];
const BLOCKING_MODES: [&str; 4] = ["inline", "threading", "pool", "forking"];
const CHAT_MODES: [&str; 4] = ["reactor", "offload", "threading", "pool"];

/// Every example that listens, with its default address and mode.
const LISTENING: [(&str, &str, &str); 17] = [
    ("echo", "tcp://127.0.0.1:9999", "reactor"),
    ("upper", "tcp://127.0.0.1:8888", "reactor"),
    ("receive", "tcp://127.0.0.1:8888", "reactor"),
    ("greet", "tcp://127.0.0.1:8090", "reactor"),
    ("welcome", "tcp://127.0.0.1:9999", "reactor"),
    ("nihao", "tcp://127.0.0.1:9999", "reactor"),
    ("stop_on_eof", "tcp://localhost:10888", "reactor"),
    ("lines", "tcp://127.0.0.1:9998", "threading"),
    ("whoami", "tcp://127.0.0.1:9998", "reactor"),
    ("chat", "tcp://127.0.0.1:9997", "reactor"),
    ("http", "tcp://127.0.0.1:8080", "reactor"),
    ("stream", "tcp://127.0.0.1:9990", "reactor"),
    ("heartbeat", "tcp://127.0.0.1:9991", "reactor"),
    ("results", "tcp://127.0.0.1:9992", "reactor"),
    ("commands", "tcp://127.0.0.1:9993", "reactor"),
    ("resp", "tcp://127.0.0.1:6380", "reactor"),
    ("upper --once", "tcp://127.0.0.1:9999", "reactor"),
];

const WELCOME: &str = "欢迎访问socketserver服务器！";

/// The modes that an example supports.
fn modes_of(name: &str) -> &'static [&'static str] {
    match name {
        "lines" => &BLOCKING_MODES,
        "chat" | "resp" => &CHAT_MODES,
        _ => &MODES,
    }
}

/// Runs `check` with an example's server in each of its modes.
fn in_each_mode(name: &str, arguments: &[&str], check: impl Fn(&str, Program)) {
    for mode in modes_of(name) {
        println!("{name} under {mode}");
        let arguments = [arguments, &["--mode", mode]].concat();
        check(mode, serve(name, &["tcp://127.0.0.1:0"], &arguments));
    }
}

// ---- command line

#[test]
fn help_shows_all_options_with_their_defaults() {
    for (command, address, mode) in LISTENING {
        let mut words: Vec<_> = command.split(' ').collect();
        words.push("--help");
        let ended = run(words[0], &words[1..]);
        let help = ended.succeeds().stdout.join("\n");
        assert_eq!(ended.stderr, [""; 0]);
        for shown in [
            "--listen URL",
            &format!("[default: {address}]"),
            "--mode MODE",
            &format!("{} [default: {mode}]", modes_of(words[0]).join(", ")),
            "--workers N",
            "[default: 16]",
            "--drain SECONDS",
            "[default: 5]",
        ] {
            assert!(help.contains(shown), "{command}: {shown} is not in\n{help}");
        }
    }
    for (name, shown) in [
        ("welcome", "--framing"),
        ("nihao", "--framing"),
        ("upper", "--once"),
        ("sticky", "Usage"),
        ("heartbeat", "--patience"),
        ("http", "--root"),
        ("chat", "--websocket"),
    ] {
        let help = run(name, &["--help"]).stdout.join("\n");
        assert!(help.contains(shown), "{name}: {shown} is not in\n{help}");
    }
}

#[test]
fn unusable_arguments_are_one_line_and_code_2() {
    let long = format!("unix:///tmp/{}", "x".repeat(200));
    let unusable: &[&[&str]] = &[
        &["--listen", "tcp://127.0.0.1:99999"],
        &["--listen", "tcp://127.0.0.1"],
        &["--listen", "127.0.0.1:80"],
        &["--listen", "http://127.0.0.1:80"],
        &["--listen", "tcp://::1:80"],
        &["--listen", &long],
        &["--listen"],
        &["--mode", "threads"],
        &["--mode"],
        &["--workers", "0"],
        &["--workers", "many"],
        &["--drain", "-1"],
        &["--drain", "soon"],
        &["--nonsense"],
        &["--help=1"],
        &["-h1"],
        &["stray"],
    ];
    for arguments in unusable {
        run("echo", arguments).expect_failure(2);
    }
    for (command, ..) in LISTENING {
        let name = command.split(' ').next().unwrap();
        run(name, &["--listen", "tcp://127.0.0.1:99999"]).expect_failure(2);
        run(name, &["--mode", "threads"]).expect_failure(2);
        run(name, &["--nonsense"]).expect_failure(2);
    }
    for name in ["sticky", "slow_client", "background", "discover"] {
        run(name, &["--nonsense"]).expect_failure(2);
        run(name, &["--help=1"]).expect_failure(2);
    }
    for name in ["welcome", "nihao"] {
        run(name, &["--framing", "words"]).expect_failure(2);
    }
    for arguments in [["--every", "0"], ["--every", "soon"], ["--patience", "-1"]] {
        let ended = run("heartbeat", &arguments);
        assert!(ended.expect_failure(2).contains(arguments[0]), "{ended:?}");
    }
}

#[test]
fn every_member_of_the_group_answers_discover() {
    let ended = run("discover", &[] as &[&str]);
    if ended.stderr.iter().any(|line| line.contains("join_multicast")) {
        println!("skipped: the system has no multicast here: {:?}", ended.stderr);
        return;
    }
    let said = ended.succeeds().stdout.join("\n");
    for name in ["printer", "camera", "lamp"] {
        assert!(said.contains(&format!("answered: {name}, asked at udp://239.")), "{said}");
    }
    assert_eq!(ended.stderr, [""; 0]);
}

#[test]
fn help_that_cannot_be_written_is_one_line_and_code_1() {
    for name in ["echo", "sticky"] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let ended = Command::new(example(name)).arg("--help").stdout(full).output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

/// A URL must be text, because the program prints it.
#[test]
fn an_argument_that_is_not_utf8_is_one_line_and_code_2() {
    let path = OsStr::from_bytes(b"unix:///tmp/\xff");
    for option in ["--listen", "--mode", "--drain"] {
        let ended = run("echo", &[OsStr::new(option), path]);
        assert!(ended.expect_failure(2).contains(r"unix:///tmp/\xFF"), "{ended:?}");
    }
    run("sticky", &[path]).expect_failure(2);
}

#[test]
fn a_mode_or_transport_that_an_example_lacks_is_one_line_and_code_2() {
    for mode in ["reactor", "offload"] {
        let ended = run("lines", &["--mode", mode, "--listen", "tcp://127.0.0.1:0"]);
        assert!(ended.expect_failure(2).contains(mode));
    }
    for mode in ["inline", "forking"] {
        let ended = run("chat", &["--mode", mode, "--listen", "tcp://127.0.0.1:0"]);
        assert!(ended.expect_failure(2).contains(mode));
    }
    for name in ["chat", "http", "stop_on_eof", "stream", "heartbeat", "results", "commands"] {
        run(name, &["--listen", "udp://127.0.0.1:0"]).expect_failure(2);
    }
}

#[test]
fn an_address_in_use_is_one_line_that_names_it_and_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", taken.local_addr().unwrap());
    for (command, ..) in LISTENING {
        let name = command.split(' ').next().unwrap();
        let ended = run(name, &["--listen", &url]);
        let line = ended.expect_failure(1);
        assert!(line.contains(&url) && line.contains("in use"), "{line}");
    }
    let directory = Directory::new();
    let _taken = UnixListener::bind(directory.path("unix")).unwrap();
    let url = directory.url("unix");
    assert!(run("echo", &["--listen", &url]).expect_failure(1).contains(&url));
    // No address is printed, although the first listener was bound.
    let both = ["--listen", "tcp://127.0.0.1:0", "--listen", &url];
    assert!(run("echo", &both).expect_failure(1).contains(&url));
}

#[test]
fn a_path_that_is_not_a_socket_is_not_touched_and_code_1() {
    let directory = Directory::new();
    for scheme in ["unix", "unixgram"] {
        fs::write(directory.path(scheme), "precious").unwrap();
        let url = directory.url(scheme);
        assert!(run("echo", &["--listen", &url]).expect_failure(1).contains(&url));
        assert_eq!(fs::read(directory.path(scheme)).unwrap(), b"precious");
    }
    let nowhere = format!("unix://{}", directory.path("no/such/place").display());
    assert!(run("echo", &["--listen", &nowhere]).expect_failure(1).contains(&nowhere));
}

// ---- listening

#[test]
fn the_output_is_the_real_address_of_each_listener_and_nothing_else() {
    for mode in MODES {
        println!("under {mode}");
        let directory = Directory::new();
        let (unix, unixgram) = (directory.url("unix"), directory.url("unixgram"));
        let asked = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", &unix, &unixgram];
        let program = serve("echo", &asked, &["--mode", mode]);
        let urls = program.urls().to_vec();
        for (url, asked) in urls.iter().zip(asked) {
            match asked.strip_suffix(":0") {
                Some(host) => {
                    let port = url.strip_prefix(host).unwrap().strip_prefix(':').unwrap();
                    assert_ne!(port.parse::<u16>().unwrap(), 0, "{url}");
                }
                None => assert_eq!(url, asked),
            }
        }
        // One after another: inline serves one at a time.
        for url in &urls {
            connect(url).send("hello").expect("hello");
        }
        if mode == "reactor" {
            assert_eq!(program.threads().unwrap_or(1), 1, "one thread must serve all four");
        }
        program.stop();
    }
}

#[test]
fn a_host_name_is_printed_as_an_address_and_a_path_as_given() {
    let directory = Directory::new();
    let mut command = Command::new(programs::example("echo"));
    command.current_dir(directory.path(".")).args(["--listen", "unix://here.sock"]);
    let program = spawn(command.args(["--listen", "tcp://localhost:0"]));
    assert_eq!(program.next_line().unwrap(), "listening on unix://here.sock");
    let line = program.next_line().unwrap();
    let address = line.strip_prefix("listening on tcp://").unwrap();
    assert!(address.parse::<std::net::SocketAddr>().unwrap().ip().is_loopback(), "{line}");
    connect(&format!("unix://{}", directory.path("here.sock").display())).send("a").expect("a");
    program.signal("TERM");
    program.end().succeeds();
    assert!(!directory.path("here.sock").exists());
}

#[test]
fn an_ipv6_address_is_printed_in_brackets() {
    if TcpListener::bind("[::1]:0").is_err() {
        println!("skipped: this machine has no IPv6");
        return;
    }
    let program = serve("echo", &["tcp://[::1]:0", "udp://[::1]:0"], &[]);
    assert!(program.urls()[0].starts_with("tcp://[::1]:"), "{program:?}");
    for url in program.urls() {
        connect(url).send("six").expect("six");
    }
    program.stop();
}

// ---- stopping

#[test]
fn a_signal_ends_idle_clients_and_the_program_in_every_mode() {
    for signal in ["TERM", "INT"] {
        for (name, ..) in LISTENING.iter().filter(|(name, ..)| !name.contains(' ')) {
            // Request handlers have their own tests, below.
            if *name == "lines" || (*name != "echo" && signal == "INT") {
                continue;
            }
            in_each_mode(name, &["--drain", "60"], |_, program| {
                let _clients = [(); 3].map(|()| program.connect());
                program.signal(signal);
                program.stopped();
            });
        }
    }
}

#[test]
fn an_idle_client_that_was_served_is_closed_when_the_server_stops() {
    in_each_mode("echo", &["--drain", "60"], |_, program| {
        let mut client = program.connect();
        client.send("hello").expect("hello");
        program.stop();
        client.expect_end();
    });
}

#[test]
fn a_very_long_drain_deadline_is_accepted() {
    in_each_mode("echo", &["--drain", "18000000000000000000"], |_, program| {
        program.connect().send("hello").expect("hello");
        program.stop();
    });
}

#[test]
fn a_client_in_the_middle_of_a_line_may_finish_it_after_the_signal() {
    in_each_mode("whoami", &["--drain", "60"], |_, program| {
        let mut client = program.connect();
        // The first line is answered, so the handler waits for the second.
        client.send("one\ntw");
        assert!(client.line().starts_with("one "));
        program.signal("TERM");
        // The rest of the line arrives after the signal.
        client.send("o\n");
        assert!(client.line().starts_with("two "));
        program.stopped();
    });
}

#[test]
fn a_request_handler_may_continue_after_the_signal_until_it_returns() {
    in_each_mode("lines", &["--drain", "60"], |_, program| {
        let mut client = program.connect();
        client.send("one\n").expect("one\n");
        program.signal("TERM");
        client.send("two\n").expect("two\n");
        client.send("\n").expect_end();
        program.stopped();
    });
}

#[test]
fn busy_connections_are_aborted_at_the_drain_deadline() {
    in_each_mode("lines", &["--drain", "0.1"], |_, program| {
        let mut client = program.connect();
        client.send("one\n").expect("one\n");
        program.stop();
    });
    in_each_mode("whoami", &["--drain", "0"], |_, program| {
        let mut client = program.connect();
        client.send("one\ntw");
        assert!(client.line().starts_with("one "));
        program.stop();
    });
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    in_each_mode("lines", &["--drain", "600"], |_, program| {
        let mut client = program.connect();
        client.send("one\n").expect("one\n");
        program.signal("TERM");
        program.signal("INT");
        let ended = program.end();
        assert!(matches!(signal_of(ended.status), Some(2 | 15)), "{ended:?}");
    });
    in_each_mode("welcome", &["--drain", "600", "--framing", "lines"], |_, program| {
        let mut client = program.connect();
        client.expect(format!("{WELCOME}\n")).send("one\ntw").expect("已收到你的消息<one>\n");
        program.signal("TERM");
        program.signal("INT");
        let ended = program.end();
        assert!(matches!(signal_of(ended.status), Some(2 | 15)), "{ended:?}");
    });
}

#[test]
fn socket_files_are_removed_at_the_end_and_stale_ones_are_replaced() {
    for mode in MODES {
        println!("under {mode}");
        let directory = Directory::new();
        let urls = ["unix", "unixgram"].map(|scheme| directory.url(scheme));
        let urls = urls.each_ref().map(String::as_str);
        let program = serve("echo", &urls, &["--mode", mode]);
        for url in urls {
            connect(url).send("hello").expect("hello");
        }
        program.signal("KILL");
        program.end();
        assert!(directory.path("unix").exists(), "a killed server leaves its file");
        let program = serve("echo", &urls, &["--mode", mode]);
        for url in urls {
            connect(url).send("again").expect("again");
        }
        program.stop();
        for scheme in ["unix", "unixgram"] {
            assert!(!directory.path(scheme).exists(), "{mode}: {scheme}");
        }
    }
}

// ---- replies

#[test]
fn echo_sends_back_bytes_and_whole_datagrams() {
    for mode in MODES {
        println!("under {mode}");
        let directory = Directory::new();
        let unix = ["unix", "unixgram"].map(|scheme| directory.url(scheme));
        let urls = ["tcp://127.0.0.1:0", &unix[0], "udp://127.0.0.1:0", &unix[1]];
        let program = serve("echo", &urls, &["--mode", mode]);
        let [tcp, stream, udp, datagram] = program.urls() else { unreachable!() };
        for url in [tcp, stream] {
            let mut client = connect(url);
            client.send("one").expect("one").send(b"\xff\0\n").expect(b"\xff\0\n");
            client.half_close().expect_end();
        }
        for (url, sizes) in [
            (udp, &[0, 1, 1400, 8192, 9000, 65_507][..]),
            (datagram, &[0, 1, 1400, 8192, 9000, 65_507, 100_000]),
        ] {
            let mut client = connect(url);
            for size in sizes {
                let bytes: Vec<u8> = (0..*size).map(|at: usize| (at % 251) as u8).collect();
                client.send(&bytes).expect(&bytes);
            }
        }
        program.stop();
    }
}

#[test]
fn upper_strips_nothing() {
    for mode in MODES {
        println!("under {mode}");
        let urls = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"];
        let program = serve("upper", &urls, &["--mode", mode]);
        for url in program.urls() {
            connect(url).send(" \thello, 你 é ").expect(" \tHELLO, 你 é ");
            connect(url).send(b"a\xff\r\n").expect(b"A\xff\r\n");
        }
        program.stop();
        let program = serve("upper", &urls, &["--mode", mode, "--once"]);
        let mut client = program.connect();
        client.send("hello\n").expect("HELLO\n").expect_end();
        connect(&program.urls()[1]).send("hello").expect("HELLO");
        program.stop();
    }
}

#[test]
fn receive_logs_address_and_text_and_closes() {
    for mode in MODES {
        println!("under {mode}");
        let program =
            serve("receive", &["tcp://127.0.0.1:0", "udp://127.0.0.1:0"], &["--mode", mode]);
        let mut client = program.connect();
        let own = client.socket.local_addr().unwrap().as_socket().unwrap();
        client.send("客户 client1\n").expect_end();
        let line = program.next_error_line().unwrap();
        assert!(line.contains(&own.to_string()) && line.contains("客户 client1"), "{line}");
        // A client that sends nothing is not logged.
        program.connect().half_close().expect_end();
        let mut client = connect(&program.urls()[1]);
        let own = client.socket.local_addr().unwrap().as_socket().unwrap();
        client.send(b"\xff\x1b[2J client2");
        let line = program.next_error_line().unwrap();
        assert!(line.contains(&own.to_string()) && line.ends_with("[2J client2"), "{line}");
        assert!(!line.contains('\x1b'), "{line:?}");
        program.stop();
    }
}

#[test]
fn greet_answers_any_message_and_closes() {
    for mode in MODES {
        println!("under {mode}");
        let program =
            serve("greet", &["tcp://127.0.0.1:0", "udp://127.0.0.1:0"], &["--mode", mode]);
        program.connect().send("hello").expect("亲,学会了吗").expect_end();
        program.connect().half_close().expect_end();
        connect(&program.urls()[1]).send("").expect("亲,学会了吗");
        program.stop();
    }
}

/// The texts of two examples that behave in the same way.
struct Dialogue {
    name: &'static str,
    greeting: &'static str,
    answer: fn(&str) -> String,
    bye: &'static str,
}

const DIALOGUES: [Dialogue; 2] = [
    Dialogue {
        name: "welcome",
        greeting: WELCOME,
        answer: |text| format!("已收到你的消息<{text}>"),
        bye: "exit",
    },
    Dialogue {
        name: "nihao",
        greeting: "你好欢迎你",
        answer: |text| format!("{text}好"),
        bye: "q",
    },
];

#[test]
fn with_raw_framing_each_chunk_is_a_message() {
    for Dialogue { name, greeting, answer, bye } in DIALOGUES {
        in_each_mode(name, &[], |_, program| {
            let mut client = program.connect();
            client.expect(greeting).send("世界\n").expect(answer("世界\n"));
            // Only a chunk that is exactly the word ends the connection.
            client.send(format!("{bye}\n")).expect(answer(&format!("{bye}\n")));
            client.send(bye).expect_end();
            program.stop();
        });
    }
}

#[test]
fn with_raw_framing_split_characters_are_joined_and_invalid_bytes_are_replaced() {
    for Dialogue { name, greeting, answer, .. } in DIALOGUES {
        in_each_mode(name, &["--framing", "raw"], |_, program| {
            let mut client = program.connect();
            client.expect(greeting);
            client.send(&"你".as_bytes()[..1]).expect_silence();
            client.send(&"你".as_bytes()[1..2]).expect_silence();
            let rest = ["你".as_bytes()[2], b'!', "😀".as_bytes()[0]];
            client.send(rest).expect(answer("你!"));
            client.send(&"😀".as_bytes()[1..]).expect(answer("😀"));
            client.send(b"a\xffb\xc3(").expect(answer("a\u{FFFD}b\u{FFFD}("));
            client.send(b"\xe4").expect_silence();
            client.send(b"x").expect(answer("\u{FFFD}x"));
            client.send(b"end\xe4\xbd").expect(answer("end"));
            client.half_close().expect(answer("\u{FFFD}")).expect_end();
            // A client that sends nothing gets no answer.
            let mut client = program.connect();
            client.expect(greeting).half_close().expect_end();
            program.stop();
        });
    }
}

#[test]
fn with_line_framing_each_line_is_a_message() {
    for Dialogue { name, greeting, answer, bye } in DIALOGUES {
        in_each_mode(name, &["--framing", "lines"], |_, program| {
            let line = |text: &str| format!("{}\n", answer(text));
            let mut client = program.connect();
            client.expect(format!("{greeting}\n"));
            client.send("世界\n").expect(line("世界")).send("two\r\n").expect(line("two"));
            client.send("\n").expect(line("")).send(b"\xff\n").expect(line("\u{FFFD}"));
            let cut = "你\n".as_bytes();
            client.send(&cut[..2]).send(&cut[2..]).expect(line("你"));
            client.send("a\nb\nc").expect(line("a")).expect(line("b"));
            client.send(format!("\n{bye} \n")).expect(line("c")).expect(line(&format!("{bye} ")));
            client.send(format!("last\n{bye}\nmore\n")).expect(line("last")).expect_end();
            let mut client = program.connect();
            client.expect(format!("{greeting}\n")).send("unended").half_close();
            client.expect(line("unended")).expect_end();
            program.stop();
        });
    }
}

#[test]
fn stop_on_eof_stops_when_a_client_sends_fin() {
    in_each_mode("stop_on_eof", &["--drain", "60"], |mode, program| {
        let mut client = program.connect();
        client.send("hello").expect("hello");
        // Under inline only the first client is served.
        let mut other = program.connect();
        if mode != "inline" {
            other.send("other").expect("other");
        }
        client.send("last").half_close().expect("last").expect_end();
        program.stopped();
    });
}

#[test]
fn lines_answers_each_line_stripped_until_a_blank_one() {
    for mode in BLOCKING_MODES {
        let urls = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"];
        let program = serve("lines", &urls, &["--mode", mode]);
        let mut client = program.connect();
        client.send("one\n").expect("one\n").send(" \ttwo \r\n").expect("two\n");
        client.send("three\nfo").expect("three\n").send("ur\n").expect("four\n");
        client.send(b"\x0b \xff\x0c\n").expect(b"\xff\n");
        client.send(" \t\x0b\r\nmore\n").expect_end();
        let mut client = program.connect();
        client.send("unended").half_close().expect("unended\n").expect_end();
        connect(&program.urls()[1]).send("one\n two \n\nthree\n").expect("one\ntwo\n");
        program.stop();
    }
    assert_eq!(run_default_mode("lines"), "threading");
}

/// The mode that an example's help calls the default.
fn run_default_mode(name: &str) -> String {
    let help = run(name, &["--help"]).stdout;
    let line = help.iter().find(|line| line.contains("--mode")).unwrap();
    line.split("[default: ").nth(1).unwrap().trim_end_matches(']').to_owned()
}

#[test]
fn whoami_answers_with_the_name_of_the_thread_or_process_that_serves() {
    for mode in MODES {
        println!("under {mode}");
        let urls = ["tcp://127.0.0.1:0", "tcp://127.0.0.1:0", "udp://127.0.0.1:0"];
        let program = serve("whoami", &urls, &["--mode", mode]);
        let ask = |client: &mut Client| {
            let answer = client.send("who are you\r\n").line();
            let name = answer.strip_prefix("who are you ").unwrap().strip_suffix('\n').unwrap();
            assert!(!name.is_empty() && !name.contains(' '), "{answer}");
            name.to_owned()
        };
        if mode == "inline" {
            // One client at a time, always on the same thread.
            let first = ask(&mut program.connect());
            assert_eq!(ask(&mut program.connect()), first);
        } else {
            let mut clients: Vec<_> =
                (0..6).map(|number| connect(&program.urls()[number % 2])).collect();
            let mut names: Vec<_> = clients.iter_mut().map(ask).collect();
            names.sort();
            names.dedup();
            match mode {
                "reactor" => assert_eq!(names.len(), 1),
                // Each message can be served by another worker.
                "offload" => {}
                _ => assert_eq!(names.len(), 6, "{mode}: {names:?}"),
            }
            if mode == "forking" {
                let pids: Vec<_> = names.iter().map(|name| name.rsplit('-').next()).collect();
                assert!(pids.iter().all(|pid| pid.unwrap().parse::<u32>().is_ok()), "{names:?}");
            }
        }
        let answer = connect(&program.urls()[2]).send("datagram\n").datagram();
        assert!(text(&answer).starts_with("datagram ") && answer.ends_with(b"\n"), "{answer:?}");
        program.stop();
    }
}

#[test]
fn chat_sends_each_line_to_all_other_clients() {
    for mode in CHAT_MODES {
        let directory = Directory::new();
        let urls = ["tcp://127.0.0.1:0", &directory.url("unix")];
        let program = serve("chat", &urls, &["--mode", mode]);
        let mut one = program.connect();
        one.expect("* you are guest1, and 0 others are here\n");
        let mut two = connect(&program.urls()[1]);
        two.expect("* you are guest2, and 1 others are here\n");
        one.expect("* guest2 joins\n");
        let mut three = program.connect();
        three.expect("* you are guest3, and 2 others are here\n");
        one.expect("* guest3 joins\n");
        two.expect("* guest3 joins\n");
        one.send("大家好\n");
        two.expect("guest1: 大家好\n");
        three.expect("guest1: 大家好\n");
        // An overlong line is dropped, and its sender stays connected.
        two.send([b'x'; 100_000]).send("\nstill here\n");
        one.expect("guest2: still here\n");
        three.expect("guest2: still here\n");
        drop(three);
        one.expect("* guest3 leaves\n");
        two.expect("* guest3 leaves\n").half_close().expect_end();
        one.expect("* guest2 leaves\n").send("alone\n").expect_silence();
        program.stop();
    }
}

#[test]
fn stream_sends_an_answer_of_any_length_as_fast_as_its_client_reads() {
    let numbers = |last: u64| (1..=last).map(|number| format!("{number}\n")).collect::<String>();
    in_each_mode("stream", &[], |mode, program| {
        let mut client = program.connect();
        client.send("3\nthree\n0\n2\n").half_close();
        client.expect("1\n2\n3\na number, please\n1\n2\n").expect_end();
        let mut client = program.connect();
        // The whole answer is longer than any memory.
        client.send("1000000000000000000\n").expect(numbers(100_000));
        if mode != "inline" {
            program.connect().send("5\n").expect(numbers(5));
        }
        drop(client);
        program.connect().send("100000\n").half_close().expect(numbers(100_000)).expect_end();
        program.stop();
    });
}

#[test]
fn heartbeat_sends_a_line_at_intervals_beside_its_answers() {
    in_each_mode("heartbeat", &["--every", "0.05", "--patience", "60"], |_, program| {
        let mut client = program.connect();
        client.expect("your name?\n").send("anna\nhow are you?\n");
        let (mut answers, mut beats) = (Vec::new(), 0);
        while answers.len() < 2 || beats < 3 {
            match client.line() {
                beat if beat == "beat\n" => beats += 1,
                answer => answers.push(answer),
            }
        }
        assert_eq!(answers, ["hello anna\n", "how are you?\n"]);
        program.stop();
    });
}

#[test]
fn heartbeat_closes_a_client_that_does_not_tell_its_name() {
    in_each_mode("heartbeat", &["--every", "60", "--patience", "0.1"], |_, program| {
        program.connect().expect("your name?\ntoo late\n").expect_end();
        program.stop();
    });
}

/// 10^12 + 39, a prime.
const PRIME: &str = "1000000000039\n";

#[test]
fn results_answers_in_the_order_of_the_lines() {
    in_each_mode("results", &[], |_, program| {
        let mut client = program.connect();
        client.send(format!("{PRIME}35\nten\n")).half_close();
        client.expect(format!("{PRIME}5\na number, please\n")).expect_end();
        program.stop();
    });
}

#[test]
fn results_that_are_computed_when_the_server_stops_still_go_out() {
    in_each_mode("results", &["--drain", "60"], |_, program| {
        let mut client = program.connect();
        client.send(format!("4\n35\n{PRIME}")).expect("2\n");
        program.signal("TERM");
        client.expect(format!("5\n{PRIME}")).expect_end();
        program.stopped();
    });
}

#[test]
fn commands_takes_bytes_and_lines_from_one_stream() {
    in_each_mode("commands", &[], |_, program| {
        let mut client = program.connect();
        client.send("PUT 6\na\nGE").send("T\nGET\r\n").expect("STORED\na\nGET\n\n");
        let long = vec![b'\n'; 1 << 20];
        client.send("PUT 1048576\n").send(&long).expect("STORED\n");
        client.send("GET\n").expect(&long).expect("\n");
        client.send("PUT 1048577\nGET\n").expect("ERROR\n").expect_end();
        for line in ["PUT 0\n", "PUT x\n", "get\n", "\n"] {
            program.connect().send(line).expect("ERROR\n").expect_end();
        }
        program.stop();
    });
}

// ---- examples that need no client

#[test]
fn sticky_shows_joined_messages_and_four_ways_to_separate_them() {
    let ended = run("sticky", &[] as &[&str]);
    let output = ended.succeeds().stdout.join("\n");
    assert_eq!(output.matches("read \"firstsecond\"").count(), 1, "{output}");
    assert_eq!(output.matches("read \"first").count(), 5, "{output}");
    assert_eq!(output.matches("\" and \"second\"").count(), 6, "{output}");
    assert_eq!(ended.stderr, [""; 0]);
}

#[test]
fn background_prints_its_answers_and_stops() {
    let ended = run("background", &[] as &[&str]);
    let output = ended.succeeds().stdout.join("\n");
    for name in ["ONE", "TWO", "THREE"] {
        assert!(output.contains(&format!("answered: HELLO FROM CLIENT {name}")), "{output}");
    }
    assert!(output.contains("stopped after 3 connections"), "{output}");
}

#[test]
fn slow_client_prints_the_waiting_times_of_every_mode() {
    let ended = run("slow_client", &[] as &[&str]);
    let output = &ended.succeeds().stdout;
    for mode in MODES {
        println!("under {mode}");
        let row: Vec<_> = output
            .iter()
            .find(|line| line.starts_with(mode))
            .unwrap_or_else(|| panic!("{mode} is not in {output:#?}"))
            .split_whitespace()
            .collect();
        assert_eq!(row.len(), 5, "{row:?}");
        // A slow machine can only make a time longer.
        let slow: f64 = row[4].parse().unwrap();
        assert!(slow >= 320.0, "{row:?}");
        let quickest =
            row[1..4].iter().map(|time| time.parse::<f64>().unwrap()).fold(f64::MAX, f64::min);
        if mode == "inline" {
            assert!(quickest >= 300.0, "{row:?}");
        }
    }
}

#[test]
fn a_server_does_not_outlive_the_process_that_started_it() {
    // A shell starts the server and is killed.
    let example = programs::example("slow_client");
    let script = format!("{} --serve reactor & wait", example.display());
    let program = spawn(Command::new("sh").args(["-c", &script]));
    assert!(program.next_line().unwrap().starts_with("listening on"));
    program.signal("KILL");
    program.end(); // the output pipes end when the last process that writes to them exits
}

#[test]
fn an_idle_example_uses_no_processor_time() {
    for mode in ["reactor", "offload"] {
        let program = serve_tcp("echo", mode);
        let mut client = program.connect();
        client.send("hello").expect("hello");
        let Some(before) = program.cpu_time() else {
            println!("skipped: this system does not report the processor time of a process");
            return;
        };
        client.expect_silence();
        assert!(program.cpu_time().unwrap() - before < Duration::from_millis(50));
        program.stop();
    }
}
