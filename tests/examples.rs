//! The examples as their users meet them: programs with a command line, signals and exit codes, that
//! speak with clients over real sockets.

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

/// Every example that listens, where it does so unless told otherwise, and in which mode.
const LISTENING: [(&str, &str, &str); 11] = [
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
    ("upper --once", "tcp://127.0.0.1:9999", "reactor"),
];

const WELCOME: &str = "欢迎访问socketserver服务器！";

/// The modes that an example takes.
fn modes_of(name: &str) -> &'static [&'static str] {
    match name {
        "lines" => &BLOCKING_MODES,
        "chat" => &CHAT_MODES,
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

// ---- the command line

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
    for (name, shown) in
        [("welcome", "--framing"), ("nihao", "--framing"), ("upper", "--once"), ("sticky", "Usage")]
    {
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
        run("echo", arguments).refuses(2);
    }
    for (command, ..) in LISTENING {
        let name = command.split(' ').next().unwrap();
        run(name, &["--listen", "tcp://127.0.0.1:99999"]).refuses(2);
        run(name, &["--mode", "threads"]).refuses(2);
        run(name, &["--nonsense"]).refuses(2);
    }
    for name in ["sticky", "slow_client", "background", "discover"] {
        run(name, &["--nonsense"]).refuses(2);
        run(name, &["--help=1"]).refuses(2);
    }
    for name in ["welcome", "nihao"] {
        run(name, &["--framing", "words"]).refuses(2);
    }
}

#[test]
fn help_that_cannot_be_written_is_one_line_and_code_1() {
    for name in ["echo", "sticky"] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let ended = Command::new(example(name)).arg("--help").stdout(full).output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let told = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}

/// A URL is text, and a line that says where one listens is too.
#[test]
fn what_is_no_text_is_one_line_and_code_2() {
    let path = OsStr::from_bytes(b"unix:///tmp/\xff");
    for option in ["--listen", "--mode", "--drain"] {
        let ended = run("echo", &[OsStr::new(option), path]);
        assert!(ended.refuses(2).contains(r"unix:///tmp/\xFF"), "{ended:?}");
    }
    run("sticky", &[path]).refuses(2);
}

#[test]
fn what_an_example_cannot_do_is_one_line_and_code_2() {
    for mode in ["reactor", "offload"] {
        let ended = run("lines", &["--mode", mode, "--listen", "tcp://127.0.0.1:0"]);
        assert!(ended.refuses(2).contains(mode));
    }
    for mode in ["inline", "forking"] {
        let ended = run("chat", &["--mode", mode, "--listen", "tcp://127.0.0.1:0"]);
        assert!(ended.refuses(2).contains(mode));
    }
    for name in ["chat", "stop_on_eof"] {
        run(name, &["--listen", "udp://127.0.0.1:0"]).refuses(2);
    }
}

#[test]
fn an_address_in_use_is_one_line_that_names_it_and_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", taken.local_addr().unwrap());
    for (command, ..) in LISTENING {
        let name = command.split(' ').next().unwrap();
        let ended = run(name, &["--listen", &url]);
        let line = ended.refuses(1);
        assert!(line.contains(&url) && line.contains("in use"), "{line}");
    }
    let directory = Directory::new();
    let _taken = UnixListener::bind(directory.path("unix")).unwrap();
    let url = directory.url("unix");
    assert!(run("echo", &["--listen", &url]).refuses(1).contains(&url));
    // The other listener is no reason to say that it listens.
    let both = ["--listen", "tcp://127.0.0.1:0", "--listen", &url];
    assert!(run("echo", &both).refuses(1).contains(&url));
}

#[test]
fn what_is_no_socket_is_left_alone_and_code_1() {
    let directory = Directory::new();
    for scheme in ["unix", "unixgram"] {
        fs::write(directory.path(scheme), "precious").unwrap();
        let url = directory.url(scheme);
        assert!(run("echo", &["--listen", &url]).refuses(1).contains(&url));
        assert_eq!(fs::read(directory.path(scheme)).unwrap(), b"precious");
    }
    let nowhere = format!("unix://{}", directory.path("no/such/place").display());
    assert!(run("echo", &["--listen", &nowhere]).refuses(1).contains(&nowhere));
}

// ---- listening

#[test]
fn each_listener_is_told_with_its_real_address_and_nothing_else_is() {
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
        // One after the other: under inline, one is served at a time.
        for url in &urls {
            connect(url).send("hello").expect("hello");
        }
        if mode == "reactor" {
            assert_eq!(program.threads().unwrap_or(1), 1, "one thread serves all four");
        }
        program.stop();
    }
}

#[test]
fn a_name_is_shown_as_a_number_and_a_path_as_it_was_given() {
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
fn ipv6_stands_in_brackets() {
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
            // For a handler that waits for itself, see the next ones.
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
fn an_idle_client_that_has_been_served_sees_the_end_when_the_server_stops() {
    in_each_mode("echo", &["--drain", "60"], |_, program| {
        let mut client = program.connect();
        client.send("hello").expect("hello");
        program.stop();
        client.expect_end();
    });
}

#[test]
fn a_drain_deadline_may_be_as_good_as_never() {
    in_each_mode("echo", &["--drain", "18000000000000000000"], |_, program| {
        program.connect().send("hello").expect("hello");
        program.stop();
    });
}

#[test]
fn who_is_in_the_middle_of_a_line_may_finish_it() {
    in_each_mode("whoami", &["--drain", "60"], |_, program| {
        let mut client = program.connect();
        // The first line is answered, so the second is being waited for.
        client.send("one\ntw");
        assert!(client.line().starts_with("one "));
        program.signal("TERM");
        // Whoever connects now is not served, and the signal has been acted on.
        client.send("o\n");
        assert!(client.line().starts_with("two "));
        program.stopped();
    });
}

#[test]
fn a_request_handler_may_go_on_until_it_returns() {
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
fn the_drain_deadline_cuts_who_is_busy() {
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
fn own_socket_files_go_and_stale_ones_are_taken_over() {
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
        assert!(directory.path("unix").exists(), "nobody could remove it");
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

// ---- what each says

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
fn receive_tells_address_and_text_and_closes() {
    for mode in MODES {
        println!("under {mode}");
        let program =
            serve("receive", &["tcp://127.0.0.1:0", "udp://127.0.0.1:0"], &["--mode", mode]);
        let mut client = program.connect();
        let own = client.socket.local_addr().unwrap().as_socket().unwrap();
        client.send("客户 client1\n").expect_end();
        let told = program.next_complaint().unwrap();
        assert!(told.contains(&own.to_string()) && told.contains("客户 client1"), "{told}");
        // Who says nothing is told nothing.
        program.connect().half_close().expect_end();
        let mut client = connect(&program.urls()[1]);
        let own = client.socket.local_addr().unwrap().as_socket().unwrap();
        client.send(b"\xff\x1b[2J client2");
        let told = program.next_complaint().unwrap();
        assert!(told.contains(&own.to_string()) && told.ends_with("[2J client2"), "{told}");
        assert!(!told.contains('\x1b'), "{told:?}");
        program.stop();
    }
}

#[test]
fn greet_answers_whatever_is_said_and_closes() {
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

/// What is said in text, and answered, is the same for both examples but for the words.
struct Talk {
    name: &'static str,
    greeting: &'static str,
    answer: fn(&str) -> String,
    bye: &'static str,
}

const TALKS: [Talk; 2] = [
    Talk {
        name: "welcome",
        greeting: WELCOME,
        answer: |text| format!("已收到你的消息<{text}>"),
        bye: "exit",
    },
    Talk {
        name: "nihao", greeting: "你好欢迎你", answer: |text| format!("{text}好"), bye: "q"
    },
];

#[test]
fn raw_talk_takes_each_chunk_for_a_message() {
    for Talk { name, greeting, answer, bye } in TALKS {
        in_each_mode(name, &[], |_, program| {
            let mut client = program.connect();
            client.expect(greeting).send("世界\n").expect(answer("世界\n"));
            // A goodbye is a whole chunk and nothing beside it.
            client.send(format!("{bye}\n")).expect(answer(&format!("{bye}\n")));
            client.send(bye).expect_end();
            program.stop();
        });
    }
}

#[test]
fn raw_talk_puts_cut_characters_together_and_replaces_what_is_none() {
    for Talk { name, greeting, answer, .. } in TALKS {
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
            // One that says nothing is not answered.
            let mut client = program.connect();
            client.expect(greeting).half_close().expect_end();
            program.stop();
        });
    }
}

#[test]
fn talk_in_lines_knows_where_a_message_ends() {
    for Talk { name, greeting, answer, bye } in TALKS {
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
fn stop_on_eof_stops_when_a_client_has_ended() {
    in_each_mode("stop_on_eof", &["--drain", "60"], |mode, program| {
        let mut client = program.connect();
        client.send("hello").expect("hello");
        // Under inline the one who is served is the one who can end.
        let mut other = program.connect();
        if mode != "inline" {
            other.send("other").expect("other");
        }
        client.send("last").half_close().expect("last").expect_end();
        program.stopped();
    });
}

#[test]
fn lines_come_back_stripped_until_a_blank_one() {
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
fn whoami_names_nobody_twice() {
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
            // One at a time, so that there is nobody to be told from.
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
                // A worker serves a message, not a client.
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
fn chat_is_heard_by_all_others() {
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
        // One that speaks without a breath is left out of it, and stays.
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

// ---- those that run by themselves

#[test]
fn sticky_shows_the_stick_and_four_cures() {
    let ended = run("sticky", &[] as &[&str]);
    let said = ended.succeeds().stdout.join("\n");
    assert_eq!(said.matches("read \"firstsecond\"").count(), 1, "{said}");
    assert_eq!(said.matches("read \"first").count(), 5, "{said}");
    assert_eq!(said.matches("\" and \"second\"").count(), 6, "{said}");
    assert_eq!(ended.stderr, [""; 0]);
}

#[test]
fn background_is_answered_and_stops() {
    let ended = run("background", &[] as &[&str]);
    let said = ended.succeeds().stdout.join("\n");
    for name in ["ONE", "TWO", "THREE"] {
        assert!(said.contains(&format!("answered: HELLO FROM CLIENT {name}")), "{said}");
    }
    assert!(said.contains("stopped after 3 connections"), "{said}");
}

#[test]
fn discover_is_answered_by_every_member_of_the_group() {
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
fn slow_client_shows_who_waits_under_every_mode() {
    let ended = run("slow_client", &[] as &[&str]);
    let said = &ended.succeeds().stdout;
    for mode in MODES {
        println!("under {mode}");
        let row: Vec<_> = said
            .iter()
            .find(|line| line.starts_with(mode))
            .unwrap_or_else(|| panic!("{mode} is not in {said:#?}"))
            .split_whitespace()
            .collect();
        assert_eq!(row.len(), 5, "{row:?}");
        // A slow machine adds to a time and takes nothing away.
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
fn a_server_does_not_outlive_who_started_it() {
    // A shell starts it and is killed.
    let example = programs::example("slow_client");
    let script = format!("{} --serve reactor & wait", example.display());
    let program = spawn(Command::new("sh").args(["-c", &script]));
    assert!(program.next_line().unwrap().starts_with("listening on"));
    program.signal("KILL");
    program.end(); // its outputs end when the last who writes to them is gone
}

#[test]
fn an_idle_example_uses_no_processor_time() {
    for mode in ["reactor", "offload"] {
        let program = serve_tcp("echo", mode);
        let mut client = program.connect();
        client.send("hello").expect("hello");
        let Some(before) = program.cpu_time() else {
            println!("skipped: this system does not tell a process's time");
            return;
        };
        client.expect_silence();
        assert!(program.cpu_time().unwrap() - before < Duration::from_millis(50));
        program.stop();
    }
}
