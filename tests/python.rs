//! The servers of five Python tutorials and the examples of this crate that correspond to them get
//! the same input and must send the same output, byte for byte, except for the tutorials' bugs.
//! These are listed in `tests/python/README.md`; each entry is a test here, which shows the bug in
//! Python and the correct behaviour of the example. At the end, the tutorials' own clients run
//! against the examples.
//!
//! Without `python3`, each test is skipped with a message; with `SOCKETSERVER_REQUIRE_TOOLS=1` it
//! fails.

#[path = "support/programs.rs"]
mod programs;
#[path = "support/tools.rs"]
mod tools;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use socket2::Type;

use programs::{
    A_WHILE, Client, DEADLINE, Directory, Program, connect, example, run, serve, spawn,
    spawn_reading,
};

// ---- the Python programs

/// The path of a Python interpreter.
#[derive(Clone, Copy)]
struct Python(&'static Path);

/// Python; without it, prints that the test is skipped, and returns from the test.
macro_rules! python_or_skip {
    () => {
        match Python::find() {
            Some(python) => python,
            None => return,
        }
    };
}

impl Python {
    fn find() -> Option<Self> {
        static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
        let found = FOUND.get_or_init(|| {
            let program = "import socketserver, sys; print(sys.executable)";
            let output = Command::new("python3").args(["-c", program]).output().ok()?;
            output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().into())
        });
        tools::have(found.is_some(), "python3");
        found.as_deref().map(Python)
    }

    /// A command that runs Python with these arguments.
    fn command(self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.0);
        command.env("PYTHONUTF8", "1").arg("-u").args(arguments);
        command
    }

    /// Starts a tutorial's program; `port` is the port of the server that it connects to, or 0.
    fn start(self, name: &str, port: &str, call: &[&str], input: impl Into<Stdio>) -> Program {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
        let runner = directory.join("run.py");
        let program = directory.join(name);
        let arguments = [runner.to_str().unwrap(), program.to_str().unwrap(), port];
        spawn_reading(&mut self.command(&[&arguments, call].concat()), input)
    }

    /// Starts a tutorial's server, and waits until it listens.
    fn serve(self, name: &str) -> Serving {
        let program = self.start(name, "0", &[], Stdio::null());
        let url = loop {
            let Some(line) = program.next_line() else {
                panic!("{name} does not listen: {:?}", program.end());
            };
            if let Some(url) = line.strip_prefix("listening on ") {
                break url.to_owned();
            }
        };
        Serving { program, url }
    }

    /// Starts a tutorial's client of the server at `url`.
    fn client(self, name: &str, url: &str) -> Program {
        self.start(name, port(url), &[], Stdio::null())
    }
}

/// Waits until a Python server prints a traceback of one of these exceptions.
#[track_caller]
fn expect_traceback(server: &Program, exceptions: &[&str]) {
    while let Some(line) = server.next_error_line() {
        if exceptions.iter().any(|exception| line.starts_with(exception)) {
            return;
        }
    }
    panic!("the server has exited without one of {exceptions:?}");
}

/// The port in a URL.
fn port(url: &str) -> &str {
    url.rsplit(':').next().unwrap()
}

/// A server and its address.
struct Serving {
    program: Program,
    url: String,
}

// ---- scripts and transcripts

/// A step of a script: an action of a client, or what it expects.
enum Step {
    /// The next steps are those of this client, which connects if it is new. A script begins with
    /// client 0.
    As(usize),
    Send(Vec<u8>),
    HalfClose,
    /// The client resets its connection.
    Reset,
    /// These bytes arrive, or one datagram with them.
    Expect(Vec<u8>),
    /// Nothing arrives for a while, and the connection stays open.
    Silence,
    /// The server closes.
    End,
    /// The server closes with input unread, which resets the connection.
    Cut,
}
use Step::{As, Cut, End, HalfClose, Reset, Silence};

fn send(bytes: impl Into<Vec<u8>>) -> Step {
    Step::Send(bytes.into())
}

fn expect(bytes: impl Into<Vec<u8>>) -> Step {
    Step::Expect(bytes.into())
}

/// What a client has received.
#[derive(PartialEq)]
enum Event {
    Received(Vec<u8>),
    Silence,
    End,
    Cut,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Received(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => write!(f, "{text:?}"),
                Err(_) => write!(f, "b\"{}\"", bytes.escape_ascii()),
            },
            Event::Silence => f.write_str("Silence"),
            Event::End => f.write_str("End"),
            Event::Cut => f.write_str("Cut"),
        }
    }
}

/// Reads `wanted` bytes or a datagram; fewer bytes if no more arrive within `timeout`.
fn read(client: &mut Client, wanted: usize, timeout: Duration) -> Event {
    client.socket.set_read_timeout(Some(timeout)).unwrap();
    if client.socket.r#type().unwrap() == Type::DGRAM {
        let mut datagram = vec![0; 0x10000];
        return match client.socket.read(&mut datagram) {
            Ok(count) => {
                datagram.truncate(count);
                Event::Received(datagram)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Event::Silence,
            Err(error) => panic!("{error}"),
        };
    }
    let mut bytes = vec![0; wanted];
    let mut filled = 0;
    while filled < wanted {
        let nothing = match client.socket.read(&mut bytes[filled..]) {
            Ok(0) => Event::End,
            Ok(count) => {
                filled += count;
                continue;
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => Event::Silence,
                ErrorKind::ConnectionReset => Event::Cut,
                ErrorKind::Interrupted => continue,
                _ => panic!("{error}"),
            },
        };
        if filled == 0 {
            return nothing;
        }
        break;
    }
    bytes.truncate(filled);
    Event::Received(bytes)
}

/// Runs a script against a server, and returns what the clients received.
fn run_script(url: &str, script: &[Step]) -> Vec<Event> {
    let mut transcript = Vec::new();
    let mut clients = BTreeMap::new();
    let mut current = 0;
    if !matches!(script.first(), Some(As(_))) {
        clients.insert(current, connect(url));
    }
    for step in script {
        if let As(number) = step {
            current = *number;
            clients.entry(current).or_insert_with(|| connect(url));
            continue;
        }
        let client = clients.get_mut(&current).expect("the client is still connected");
        match step {
            As(_) => unreachable!("handled above"),
            Step::Send(bytes) => {
                client.send(bytes);
            }
            HalfClose => {
                client.half_close();
            }
            Reset => {
                client.socket.set_linger(Some(Duration::ZERO)).unwrap();
                clients.remove(&current);
            }
            Step::Expect(bytes) => transcript.push(read(client, bytes.len(), DEADLINE)),
            Silence => transcript.push(read(client, 1, A_WHILE)),
            End | Cut => transcript.push(read(client, 1, DEADLINE)),
        }
    }
    transcript
}

/// The transcript that a script expects.
fn expected_transcript(script: &[Step]) -> Vec<Event> {
    let event = |step: &Step| match step {
        Step::Expect(bytes) => Some(Event::Received(bytes.clone())),
        Silence => Some(Event::Silence),
        End => Some(Event::End),
        Cut => Some(Event::Cut),
        As(_) | Step::Send(_) | HalfClose | Reset => None,
    };
    script.iter().filter_map(event).collect()
}

/// The actions of a script's clients, as text.
fn actions(script: &[Step]) -> Vec<String> {
    let action = |step: &Step| match step {
        As(number) => Some(format!("as {number}")),
        Step::Send(bytes) => Some(format!("send {}", bytes.escape_ascii())),
        HalfClose => Some("half-close".to_owned()),
        Reset => Some("reset".to_owned()),
        Step::Expect(_) | Silence | End | Cut => None,
    };
    script.iter().filter_map(action).collect()
}

// ---- the compared servers

/// A tutorial's server and the example that corresponds to it.
struct Pair {
    tutorial: &'static str,
    url: &'static str,
    example: &'static str,
    arguments: &'static [&'static str],
    modes: &'static [&'static str],
}

const ALL_MODES: &[&str] = &["reactor", "offload", "inline", "threading", "pool", "forking"];

const fn pair(tutorial: &'static str, example: &'static str) -> Pair {
    Pair { tutorial, url: "tcp://127.0.0.1:0", example, arguments: &[], modes: ALL_MODES }
}

const RECEIVE: Pair = pair("000_receive_server.py", "receive");
const UPPER: Pair = pair("000_upper_server.py", "upper");
const UPPER_UDP: Pair = Pair { url: "udp://127.0.0.1:0", ..pair("000_udp_server.py", "upper") };
const GREET: Pair = pair("001_greet_server.py", "greet");
const HELLO: Pair = Pair { arguments: &["--once"], ..pair("001_hello_server.py", "upper") };
const WELCOME: Pair = pair("002_welcome_server.py", "welcome");
const WELCOME_LINES: Pair = Pair { arguments: &["--framing", "lines"], ..WELCOME };
const STOP: Pair = pair("002_stop_server.py", "stop_on_eof");
const NIHAO: Pair = pair("003_nihao_server.py", "nihao");
const NIHAO_LINES: Pair = Pair { arguments: &["--framing", "lines"], ..NIHAO };
const LINES: Pair = Pair {
    modes: &["inline", "threading", "pool", "forking"],
    ..pair("004_lines_server.py", "lines")
};
const WHOAMI: Pair = pair("004_threaded_server.py", "whoami");

const WELCOMED: &str = "欢迎访问socketserver服务器！";
const GREETED: &str = "亲,学会了吗";

fn confirmed(text: &str) -> Step {
    expect(format!("已收到你的消息<{text}>"))
}

impl Pair {
    fn serve_example(&self, mode: &str) -> Serving {
        let arguments = [self.arguments, &["--mode", mode]].concat();
        let program = serve(self.example, &[self.url], &arguments);
        let url = program.urls()[0].clone();
        Serving { program, url }
    }

    /// Checks what the tutorial's server sends in a script.
    #[track_caller]
    fn check_python(&self, python: Python, script: &[Step]) -> (Vec<Event>, Program) {
        let serving = python.serve(self.tutorial);
        let transcript = run_script(&serving.url, script);
        assert_eq!(transcript, expected_transcript(script), "{}", self.tutorial);
        (transcript, serving.program)
    }

    /// Checks what the example sends in each of its modes, all at the same time.
    fn check_rust(&self, script: &[Step], expected: &[Event], check: impl Fn(Program) + Sync) {
        thread::scope(|scope| {
            for mode in self.modes {
                let check = &check;
                scope.spawn(move || {
                    let serving = self.serve_example(mode);
                    let transcript = run_script(&serving.url, script);
                    let Pair { example, arguments, .. } = self;
                    assert_eq!(transcript, expected, "{example} {arguments:?} under {mode}");
                    check(serving.program);
                });
            }
        });
    }

    /// Checks that both send the same, byte for byte.
    #[track_caller]
    fn expect_same(&self, python: Python, script: &[Step]) {
        let (transcript, _server) = self.check_python(python, script);
        self.check_rust(script, &transcript, |program| drop(program.stop()));
    }

    /// Checks that with the same actions of its clients, Python's server sends `wrong` and the
    /// example `right`. A script may be shorter if its server closes or stops early.
    #[track_caller]
    fn expect_difference(&self, python: Python, wrong: &[Step], right: &[Step]) {
        self.expect_bug(python, wrong, right);
        self.check_rust(right, &expected_transcript(right), |program| drop(program.stop()));
    }

    /// The Python half of [`Pair::expect_difference`]; returns the running server.
    #[track_caller]
    fn expect_bug(&self, python: Python, wrong: &[Step], right: &[Step]) -> Program {
        let (done, seen) = (actions(right), actions(wrong));
        assert!(done.starts_with(&seen) || seen.starts_with(&done), "the clients must do the same");
        assert_ne!(
            expected_transcript(wrong),
            expected_transcript(right),
            "the transcripts must differ"
        );
        self.check_python(python, wrong).1
    }
}

// ---- the program of the guide

/// The program of docs/from-python.md, in Rust or in Python, and what it has printed.
fn run_same_program(program: Program, script: &[Step]) -> (Vec<Event>, Vec<String>) {
    let line = program.next_line().unwrap();
    let transcript = run_script(line.strip_prefix("listening on ").unwrap(), script);
    let printed = [(); 4].map(|()| program.next_line().unwrap());
    (transcript, printed.to_vec())
}

#[test]
fn the_guides_program_in_both_languages_sends_and_prints_the_same() {
    let python = python_or_skip!();
    let script = [
        send(" hello world \r\n"),
        expect("HELLO WORLD"),
        End,
        As(1),
        send("学会éno end"),
        Silence,
        HalfClose,
        expect("学会éNO END"),
        End,
        As(2), // waits, while others are served
        As(3),
        send("\n"),
        End,
        As(4), // is not UTF-8: an error of the handler in both
        send(b"\xff\n"),
        End,
        As(2),
        send("last\n"),
        expect("LAST"),
        End,
    ];
    let theirs = python.start("same/program.py", "0", &[], Stdio::null());
    let theirs = run_same_program(theirs, &script);
    let ours = run_same_program(spawn(&mut Command::new(example("same_program"))), &script);
    assert_eq!(theirs, ours);
    assert_eq!(theirs.0, expected_transcript(&script));
    let lines = ["hello world", "学会éno end", "", "last"];
    assert_eq!(theirs.1, lines.map(|line| format!("127.0.0.1 wrote: {line}")));
}

#[test]
fn in_python_a_mix_in_behind_its_server_has_no_effect() {
    let python = python_or_skip!();
    let program = "
from socketserver import *
class Before(ThreadingMixIn, UDPServer): pass
class Behind(UDPServer, ThreadingMixIn): pass
print(Before.process_request == ThreadingMixIn.process_request)
print(Behind.process_request == BaseServer.process_request)
";
    let ended = spawn_reading(&mut python.command(&["-c", program]), Stdio::null()).end();
    assert_eq!(ended.succeeds().stdout, ["True", "True"]);
}

// ---- the same behaviour

#[test]
fn receive_closes_after_one_message_as_python_does() {
    let python = python_or_skip!();
    RECEIVE.expect_same(python, &[send("client1"), End, As(1), send("client2"), End]);
    RECEIVE.expect_same(python, &[send(" client1 \r\n"), End, As(1), HalfClose, End]);
}

#[test]
fn upper_answers_as_python_does() {
    let python = python_or_skip!();
    // White space inside, and bytes that are not UTF-8.
    let within: Vec<u8> = [b"x".to_vec(), (0..=255).collect(), b"x".to_vec()].concat();
    let answer = within.to_ascii_uppercase();
    UPPER.expect_same(
        python,
        &[send("client1"), expect("CLIENT1"), send(within), expect(answer), Silence],
    );
    // Two clients alternate.
    let each = [(0, "client1", "CLIENT1"), (1, "client2", "CLIENT2")];
    let modes = &["reactor", "offload", "threading", "pool", "forking"];
    let turns = [each, each].concat();
    let script: Vec<_> = turns
        .iter()
        .flat_map(|&(number, client, answer)| [As(number), send(client), expect(answer)])
        .collect();
    Pair { modes, ..UPPER }.expect_same(python, &script);
}

#[test]
fn upper_answers_datagrams_as_python_does() {
    let python = python_or_skip!();
    let text = (32..=126).collect::<Vec<u8>>();
    let upper = text.to_ascii_uppercase();
    let blank = " \t\r\n";
    UPPER_UDP.expect_same(
        python,
        &[
            send("client1"),
            expect("CLIENT1"),
            As(1),
            send("client2"),
            expect("CLIENT2"),
            As(0),
            send(text),
            expect(upper),
            send(blank), // the tutorial does not strip datagrams either
            expect(blank),
            send(""),
            expect(""),
            send("学会client"),
            expect("学会CLIENT"),
            send("x".repeat(8192)),
            expect("X".repeat(8192)),
        ],
    );
}

#[test]
fn greet_greets_and_closes_as_python_does() {
    let python = python_or_skip!();
    GREET.expect_same(python, &[send("hello"), expect(GREETED), End]);
    GREET.expect_same(
        python,
        &[send([0, 255]), expect(GREETED), End, As(1), send("\n"), expect(GREETED)],
    );
}

#[test]
fn upper_once_answers_and_closes_as_python_does() {
    let python = python_or_skip!();
    HELLO.expect_same(python, &[send("hello"), expect("HELLO"), End]);
    HELLO.expect_same(
        python,
        &[send("学会 hello"), expect("学会 HELLO"), End, As(1), HalfClose, End],
    );
}

#[test]
fn welcome_replies_as_python_does() {
    let python = python_or_skip!();
    WELCOME.expect_same(
        python,
        &[
            expect(WELCOMED),
            send("你好"),
            confirmed("你好"),
            send(" exit"), // only the word alone ends the connection
            confirmed(" exit"),
            send("exit\n"),
            confirmed("exit\n"),
            send("\0\r\n"),
            confirmed("\0\r\n"),
            Silence,
            send("exit"),
            End,
            As(1),
            expect(WELCOMED),
            send("exit"),
            End,
        ],
    );
}

#[test]
fn nihao_replies_as_python_does() {
    let python = python_or_skip!();
    NIHAO.expect_same(
        python,
        &[
            expect("你好欢迎你"),
            send("李雷"),
            expect("李雷好"),
            send("Q"),
            expect("Q好"),
            send("q\n"),
            expect("q\n好"),
            Silence,
            send("q"),
            End,
            As(1),
            expect("你好欢迎你"),
            send("q"),
            End,
        ],
    );
}

#[test]
fn stop_on_eof_echoes_as_python_does() {
    let python = python_or_skip!();
    let script =
        [send("hello"), expect("hello"), send(" 你好\r\n\0"), expect(" 你好\r\n\0"), Silence];
    STOP.check_python(python, &script);
    // The client closes at the end of the script, which stops the server.
    STOP.check_rust(&script, &expected_transcript(&script), |program| drop(program.stopped()));
}

#[test]
fn lines_ends_as_python_does() {
    let python = python_or_skip!();
    LINES.expect_same(
        python,
        &[send("\n"), End, As(1), send(" \t\x0b\x0c\r\n"), End, As(2), HalfClose, End],
    );
}

// ---- bugs of the tutorials: the list of tests/python/README.md

#[test]
fn eof_is_not_an_empty_message() {
    let python = python_or_skip!();
    // Python answers and logs an empty message that no client has sent.
    GREET.expect_difference(python, &[HalfClose, expect(GREETED), End], &[HalfClose, End]);
    WELCOME.expect_difference(
        python,
        &[expect(WELCOMED), HalfClose, confirmed("")],
        &[expect(WELCOMED), HalfClose, End],
    );
    let (_, server) = RECEIVE.check_python(python, &[HalfClose, End]);
    assert!(server.next_line().unwrap().starts_with("('127.0.0.1', "));
    assert_eq!(server.next_line().unwrap(), "");
    RECEIVE.check_rust(&[HalfClose, End], &[Event::End], |program| {
        assert_eq!(program.stop().stderr, [""; 0]);
    });
}

#[test]
fn eof_does_not_make_a_server_spin() {
    let python = python_or_skip!();
    let begin = || [send("client1"), expect("CLIENT1"), HalfClose];
    let wrong: Vec<_> = begin().into_iter().chain([Silence]).collect();
    let right: Vec<_> = begin().into_iter().chain([End, As(1), Silence]).collect();
    let server = UPPER.expect_bug(python, &wrong, &right);
    // It prints the client's address in each pass of its loop, even after the client has gone.
    for _ in 0..10_000 {
        assert!(server.next_line().unwrap().starts_with("('127.0.0.1', "));
    }
    UPPER.check_rust(&right, &expected_transcript(&right), |program| {
        let used = || program.cpu_time().unwrap_or_default();
        let before = used();
        thread::sleep(A_WHILE); // there is no event for something that must not happen
        let spent = used() - before;
        assert!(spent < A_WHILE / 3, "{spent:?} of {A_WHILE:?}");
        program.stop();
    });
}

#[test]
fn a_half_closed_client_is_not_flooded() {
    let python = python_or_skip!();
    let hundred = |text: &str| expect(text.repeat(100));
    let server = WELCOME.expect_bug(
        python,
        &[expect(WELCOMED), HalfClose, hundred("已收到你的消息<>")],
        &[expect(WELCOMED), HalfClose, End],
    );
    // After the close, Python prints a traceback.
    expect_traceback(&server, &["BrokenPipeError", "ConnectionResetError"]);
    WELCOME.check_rust(
        &[expect(WELCOMED), HalfClose, End],
        &[Event::Received(WELCOMED.into()), Event::End],
        |program| drop(program.stop()),
    );
    NIHAO.expect_difference(
        python,
        &[expect("你好欢迎你"), HalfClose, hundred("好")],
        &[expect("你好欢迎你"), HalfClose, End],
    );
}

#[test]
fn a_handler_may_stop_its_server() {
    let python = python_or_skip!();
    // In Python, the server never answers this or any other client again.
    let wrong = [send("hello"), expect("hello"), HalfClose, Silence, As(1), send("hello"), Silence];
    let right = [send("hello"), expect("hello"), HalfClose, End];
    STOP.expect_bug(python, &wrong, &right);
    STOP.check_rust(&right, &expected_transcript(&right), |program| drop(program.stopped()));
}

#[test]
fn each_line_is_answered_and_none_is_lost() {
    let python = python_or_skip!();
    let lines = "0\n1\n2\n3\n4\n5\n";
    LINES.expect_difference(
        python,
        &[send(lines), HalfClose, expect("135"), End],
        &[send(lines), HalfClose, expect(lines), End],
    );
    // In Python, a client that sends one line never gets an answer.
    LINES.expect_difference(
        python,
        &[send("hello\n"), Silence],
        &[send("hello\n"), expect("hello\n"), Silence],
    );
    // A blank line ends the connection, but not if it is a second one.
    LINES.expect_difference(
        python,
        &[send("hello\n\n"), Silence],
        &[send("hello\n\n"), expect("hello\n"), End],
    );
    // The last line may be unterminated.
    LINES.expect_difference(
        python,
        &[send("hello"), HalfClose, End],
        &[send("hello"), HalfClose, expect("hello\n"), End],
    );
}

#[test]
fn a_slow_client_does_not_make_others_wait() {
    let python = python_or_skip!();
    let concurrent = Pair { modes: &["threading", "pool", "forking"], ..LINES };
    concurrent.expect_difference(
        python,
        &[send("0\n"), As(1), send("1\n2\n"), Silence],
        &[send("0\n"), As(1), send("1\n2\n"), expect("1\n2\n"), As(0), expect("0\n")],
    );
}

#[test]
fn a_character_split_by_tcp_is_joined_again() {
    let python = python_or_skip!();
    let (first, second) = "你".as_bytes().split_at(2);
    // Python drops the connection.
    WELCOME.expect_difference(
        python,
        &[expect(WELCOMED), send(first), End],
        &[expect(WELCOMED), send(first), Silence, send(second), confirmed("你")],
    );
    NIHAO.expect_difference(
        python,
        &[expect("你好欢迎你"), send(first), End],
        &[expect("你好欢迎你"), send(first), Silence, send(second), expect("你好")],
    );
    let right = [send(first), expect(first), send(second), expect(second), HalfClose, End];
    STOP.expect_bug(python, &[send(first), End], &right);
    STOP.check_rust(&right, &expected_transcript(&right), |program| drop(program.stopped()));
}

#[test]
fn bytes_that_are_not_utf8_do_not_close_the_connection() {
    let python = python_or_skip!();
    let bytes = || send(b"a\xffb");
    WELCOME.expect_difference(
        python,
        &[expect(WELCOMED), bytes(), End],
        &[expect(WELCOMED), bytes(), confirmed("a\u{fffd}b"), send("c"), confirmed("c")],
    );
    NIHAO.expect_difference(
        python,
        &[expect("你好欢迎你"), bytes(), End],
        &[expect("你好欢迎你"), bytes(), expect("a\u{fffd}b好"), send("c"), expect("c好")],
    );
    UPPER_UDP.expect_difference(
        python,
        &[bytes(), Silence],
        &[bytes(), expect(b"A\xffB"), Silence],
    );
    // Python prints a traceback in place of the message.
    let (_, server) = RECEIVE.check_python(python, &[bytes(), End]);
    expect_traceback(&server, &["UnicodeDecodeError"]);
    RECEIVE.check_rust(&[bytes(), End], &[Event::End], |program| {
        let stderr = program.stop().stderr;
        assert!(stderr.len() == 1 && stderr[0].ends_with(" a\u{fffd}b"), "{stderr:?}");
    });
}

#[test]
fn exit_after_other_words_is_recognised_with_line_framing() {
    let python = python_or_skip!();
    // Two messages are read as one; with raw framing both behave in the same way.
    WELCOME.expect_same(python, &[expect(WELCOMED), send("aexit"), confirmed("aexit"), Silence]);
    NIHAO.expect_same(python, &[expect("你好欢迎你"), send("aq"), expect("aq好"), Silence]);
    // With line framing, the example recognises the word.
    WELCOME_LINES.expect_difference(
        python,
        &[expect(WELCOMED), send("a\nexit\n"), confirmed("a\nexit\n"), Silence],
        &[expect(format!("{WELCOMED}\n")), send("a\nexit\n"), expect("已收到你的消息<a>\n"), End],
    );
    NIHAO_LINES.expect_difference(
        python,
        &[expect("你好欢迎你"), send("a\nq\n"), expect("a\nq\n好"), Silence],
        &[expect("你好欢迎你\n"), send("a\nq\n"), expect("a好\n"), End],
    );
    // The same for a word that arrives in two parts.
    WELCOME_LINES.expect_difference(
        python,
        &[expect(WELCOMED), send("ex"), confirmed("ex"), send("it\n"), confirmed("it\n")],
        &[expect(format!("{WELCOMED}\n")), send("ex"), Silence, send("it\n"), End],
    );
}

#[test]
fn data_is_not_stripped() {
    let python = python_or_skip!();
    let spaced = || send(" client 1\r\n");
    UPPER.expect_difference(
        python,
        &[spaced(), expect("CLIENT 1"), Silence],
        &[spaced(), expect(" CLIENT 1\r\n"), Silence],
    );
    // Python does not answer a message of white space.
    UPPER.expect_difference(python, &[send("\n"), Silence], &[send("\n"), expect("\n")]);
    HELLO.expect_difference(
        python,
        &[send("hello\n"), expect("HELLO"), End],
        &[send("hello\n"), expect("HELLO\n"), End],
    );
}

#[test]
fn a_message_may_be_longer_than_1024_bytes() {
    let python = python_or_skip!();
    let long = || "x".repeat(2000);
    HELLO.expect_difference(
        python,
        &[send(long()), expect("X".repeat(1024))],
        &[send(long()), expect("X".repeat(2000)), End],
    );
    // Python closes with the rest unread, which resets the connection.
    GREET.expect_difference(
        python,
        &[send(long()), expect(GREETED), Cut],
        &[send(long()), expect(GREETED), End],
    );
    // Or Python takes the rest for a second message.
    let (first, second) = ("x".repeat(1024), "x".repeat(976));
    WELCOME.expect_difference(
        python,
        &[expect(WELCOMED), send(long()), confirmed(&first), confirmed(&second)],
        &[expect(WELCOMED), send(long()), confirmed(&long())],
    );
}

#[test]
fn a_datagram_is_not_cut_at_8192_bytes() {
    let python = python_or_skip!();
    let long = || send("x".repeat(9000));
    UPPER_UDP.expect_difference(
        python,
        &[long(), expect("X".repeat(8192))],
        &[long(), expect("X".repeat(9000))],
    );
}

#[test]
fn a_message_in_pieces_is_one_message() {
    let python = python_or_skip!();
    // With raw framing, each read is a message in both.
    let pieces = [expect("你好欢迎你"), send("a"), expect("a好"), send("b"), expect("b好")];
    NIHAO.expect_same(python, &pieces);
    // With line framing, the example joins the pieces.
    NIHAO_LINES.expect_difference(
        python,
        &[expect("你好欢迎你"), send("a"), expect("a好"), send("b\n"), expect("b\n好")],
        &[expect("你好欢迎你\n"), send("a"), Silence, send("b\n"), expect("ab好\n")],
    );
}

#[test]
fn a_reset_is_not_an_error_of_the_handler() {
    let python = python_or_skip!();
    let script = [send("a"), expect("A"), Reset, As(1), send("b"), expect("B")];
    let (_, server) = UPPER.check_python(python, &script);
    expect_traceback(&server, &["ConnectionResetError"]);
    UPPER.check_rust(&script, &expected_transcript(&script), |program| {
        assert_eq!(program.stop().stderr, [""; 0]);
    });
}

#[test]
fn the_threaded_server_answers_with_the_name_of_its_thread() {
    let python = python_or_skip!();
    // Python waits for the client's FIN, and the client for the answer; after FIN there is none.
    let (_, server) = WHOAMI.check_python(python, &[send("hello 1\n"), Silence, HalfClose, End]);
    expect_traceback(&server, &["AttributeError"]);
    for mode in ALL_MODES {
        let serving = WHOAMI.serve_example(mode);
        let mut client = connect(&serving.url);
        let line = client.send("hello 1\n").line();
        let name = line.strip_prefix("hello 1 ").unwrap().trim_end();
        assert!(!name.is_empty() && !name.contains("function"), "{name} under {mode}");
        client.half_close().expect_end();
        drop(client);
        serving.program.stop();
    }
}

#[test]
fn programs_with_the_tutorials_misprints_do_not_start() {
    let python = python_or_skip!();
    let run_misprint = |name: &str, correct: &str, misprint: &str| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
        let program = fs::read_to_string(directory.join(name)).unwrap();
        let code = program.split_once("\nimport").unwrap().1;
        assert_eq!(code.matches(correct).count(), 1, "{name} must contain {correct} once");
        let program = format!("import{}", code.replace(correct, misprint));
        spawn_reading(&mut python.command(&["-c", &program]), Stdio::null()).end()
    };
    // The server exits without serving.
    let ended = run_misprint("001_greet_server.py", "'__main__'", "'__mian__'");
    assert_eq!(ended.succeeds().stdout, [""; 0]);
    // The client has a syntax error.
    let ended = run_misprint("001_hello_client.py", r#""\n""#, "\"\n\"");
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.last().unwrap().starts_with("SyntaxError"), "{ended:?}");
    // A server and its clients in one program; the tutorial's clients would never run.
    run("background", &[] as &[&str]).succeeds();
}

#[test]
fn the_readme_lists_exactly_the_tests_of_this_section() {
    let (list, tests) = (include_str!("python/README.md"), include_str!("python.rs"));
    let list = list.split_once("| in Python |").unwrap().1;
    let listed = list.lines().filter_map(|line| line.strip_suffix("` |")?.rsplit('`').next());
    let listed: Vec<_> = listed.collect();
    let section =
        tests.split("// ---- ").find(|section| section.starts_with("bugs of the tutorials"));
    let mut defined: Vec<_> = section
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("fn ")?.strip_suffix("() {"))
        .collect();
    assert_eq!(defined.pop(), Some("the_readme_lists_exactly_the_tests_of_this_section"));
    assert_eq!(listed, defined);
}

// ---- the tutorials' own clients

/// Both servers of a pair, Python's first.
fn both(python: Python, pair: &Pair) -> [Serving; 2] {
    let mode = if pair.modes.contains(&"reactor") { "reactor" } else { "threading" };
    [python.serve(pair.tutorial), pair.serve_example(mode)]
}

#[test]
fn the_messages_of_the_clients_of_receive_are_logged() {
    let python = python_or_skip!();
    let [theirs, ours] = both(python, &RECEIVE);
    for name in ["client1", "client2"] {
        for serving in [&theirs, &ours] {
            let client = python.client(&format!("000_receive_{name}.py"), &serving.url);
            assert_eq!(client.end().succeeds().stdout, [""; 0]);
        }
        // Python prints the address and the message on two lines, the example on one.
        assert!(theirs.program.next_line().unwrap().starts_with("('127.0.0.1', "));
        assert_eq!(theirs.program.next_line().unwrap(), name);
        let line = ours.program.next_error_line().unwrap();
        assert!(line.starts_with("127.0.0.1:") && line.ends_with(&format!(" {name}")), "{line}");
    }
    ours.program.stop();
}

/// Starts two clients, which run endlessly, with each of both servers, and reads two lines of each.
fn two_rounds(python: Python, pair: &Pair, clients: [(&str, &str); 2]) {
    let servers = both(python, pair);
    let all: Vec<_> = servers
        .iter()
        .flat_map(|serving| clients.map(|(name, line)| (python.client(name, &serving.url), line)))
        .collect();
    for _round in 0..2 {
        for (client, line) in &all {
            assert_eq!(client.next_line().as_deref(), Some(*line));
        }
    }
    drop(all);
    let [_, ours] = servers;
    ours.program.stop();
}

#[test]
fn the_clients_of_upper_receive_their_text_in_upper_case() {
    let python = python_or_skip!();
    let clients = [("000_upper_client1.py", "b'CLIENT1'"), ("000_upper_client2.py", "b'CLIENT2'")];
    two_rounds(python, &UPPER, clients);
}

#[test]
fn the_clients_of_upper_over_udp_receive_their_text_in_upper_case() {
    let python = python_or_skip!();
    let clients = [("000_udp_client1.py", "b'CLIENT1'"), ("000_udp_client2.py", "b'CLIENT2'")];
    two_rounds(python, &UPPER_UDP, clients);
}

#[test]
fn the_client_of_upper_once_receives_hello_in_upper_case() {
    let python = python_or_skip!();
    let [theirs, ours] = both(python, &HELLO);
    let output_with = |serving: &Serving| {
        python.client("001_hello_client.py", &serving.url).end().succeeds().stdout.clone()
    };
    let shown = ["Sent:     hello", "Received: HELLO"];
    assert_eq!(output_with(&theirs), shown);
    // The example also sends the newline back.
    assert_eq!(output_with(&ours), [&shown[..], &[""]].concat());
    ours.program.stop();
}

#[test]
fn the_chat_client_receives_a_welcome_confirmations_and_the_close() {
    let python = python_or_skip!();
    let directory = Directory::new();
    let input = directory.path("input");
    // The client does not send a blank line, and prompts again.
    fs::write(&input, "你好\n\n  学会了 \nexit\nnever sent\n").unwrap();
    let [theirs, ours] = both(python, &WELCOME);
    for serving in [&theirs, &ours] {
        let input = File::open(&input).unwrap();
        let client = python.start("002_chat_client.py", port(&serving.url), &[], input);
        assert_eq!(
            client.end().succeeds().stdout,
            [
                "服务器: 欢迎访问socketserver服务器！",
                "你:服务器: 已收到你的消息<你好>",
                "你:你:服务器: 已收到你的消息<学会了>",
                "你:谢谢使用，再见！",
            ]
        );
    }
    let stderr = ours.program.stop().stderr;
    assert!(
        stderr[0].starts_with("127.0.0.1:") && stderr[0].ends_with(" says: 你好"),
        "{stderr:?}"
    );
    assert_eq!(stderr.len(), 3, "two messages and the end: {stderr:?}");
}

#[test]
fn the_slow_client_is_served_and_delays_no_other_client() {
    let python = python_or_skip!();
    let serving = LINES.serve_example("threading");
    let slow = python.client("004_slow_client.py", &serving.url);
    for line in ["0", "1"] {
        assert_eq!(slow.next_line().as_deref(), Some(line));
        connect(&serving.url).send("hello\n").expect("hello\n");
    }
    drop(slow);
    serving.program.stop();
}

#[test]
fn the_clients_of_the_threaded_server_get_their_answers() {
    let python = python_or_skip!();
    let client = "004_threaded_server.py";
    for mode in ["threading", "reactor"] {
        let serving = WHOAMI.serve_example(mode);
        let call = |call: &str| python.start(client, port(&serving.url), &[call], Stdio::null());
        let slow = call("client_slow('127.0.0.1', 9998)");
        assert_eq!(slow.next_line().as_deref(), Some("0"));
        let names = [1, 2, 3].map(|number| {
            let quick = call(&format!("client('127.0.0.1', 9998, 'hello {number}')"));
            let line = quick.next_line().unwrap();
            let name = line.strip_prefix(&format!("response hello {number} ")).unwrap().to_owned();
            (name, quick) // it stays connected for ten more seconds
        });
        let [(one, _), (two, _), (three, _)] = &names;
        if mode == "threading" {
            assert!(one != two && two != three && one != three, "{one}, {two}, {three}");
        } else {
            assert!(one == two && two == three, "{one}, {two}, {three}");
        }
        drop((names, slow));
        serving.program.stop();
    }
}

// ---- the example `client` in place of the tutorial's interactive client

#[test]
fn the_example_client_gets_the_same_answers_as_the_tutorials_client() {
    let python = python_or_skip!();
    for serving in both(python, &WELCOME) {
        let (reader, mut input) = pipe().unwrap();
        // A socket, since a read from a pipe has no deadline.
        let (mut output, stdout) = UnixStream::pair().unwrap();
        output.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut client = Command::new(example("client"))
            .args(["--framing", "raw", &serving.url])
            .stdin(reader)
            .stdout(OwnedFd::from(stdout))
            .spawn()
            .unwrap();
        let mut expect = |answer: &str| {
            let mut received = vec![0; answer.len()];
            output.read_exact(&mut received).unwrap();
            assert_eq!(String::from_utf8(received).unwrap(), answer);
        };
        expect(WELCOMED);
        for line in ["你好", "  学会了 "] {
            writeln!(input, "{line}").unwrap();
            expect(&format!("已收到你的消息<{line}>"));
        }
        writeln!(input, "exit").unwrap();
        assert!(client.wait().unwrap().success());
    }
}
