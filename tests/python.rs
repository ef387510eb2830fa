//! The real thing, side by side: the servers of the Python tutorials that this crate comes from, and
//! the examples that answer them, hear the same clients and must say the same, byte for byte, but
//! for what the tutorials do wrong. That list is `tests/python/README.md`; each of its entries is a
//! test here, which shows what goes wrong in Python and that it does not here. At the end, the
//! tutorials' own clients talk with the examples.
//!
//! Where there is no `python3`, each test says that it was skipped; with `SOCKETSERVER_REQUIRE_TOOLS=1`
//! it fails.

#[path = "support/programs.rs"]
mod programs;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use socket2::Type;

use programs::{A_WHILE, Client, DEADLINE, Directory, Program, connect, run, serve, spawn_reading};

// ---- the programs in Python

/// Python, where there is one.
#[derive(Clone, Copy)]
struct Python(&'static Path);

/// Python, or else the test says that it is skipped, and is done.
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
            let say = "import socketserver, sys; print(sys.executable)";
            let said = Command::new("python3").args(["-c", say]).output().ok()?;
            said.status.success().then(|| String::from_utf8(said.stdout).unwrap().trim().into())
        });
        if found.is_none() {
            let required = std::env::var_os("SOCKETSERVER_REQUIRE_TOOLS").is_some_and(|v| v == "1");
            assert!(!required, "python3 is required, and is not here or does not run");
            // Past the harness, which would show it for a failed test only.
            let test = thread::current();
            let test = test.name().unwrap_or("a test");
            let _ = writeln!(io::stderr(), "skipped: {test}: python3 is not here or does not run");
        }
        found.as_deref().map(Python)
    }

    /// A command that runs Python, with this on its command line.
    fn command(self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.0);
        command.env("PYTHONUTF8", "1").arg("-u").args(arguments);
        command
    }

    /// Starts a tutorial's program; `port` is that of the server it shall talk with.
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

/// Waits until a server in Python tells of one of these exceptions.
#[track_caller]
fn complains(server: &Program, exceptions: &[&str]) {
    while let Some(line) = server.next_complaint() {
        if exceptions.iter().any(|exception| line.starts_with(exception)) {
            return;
        }
    }
    panic!("it has ended without one of {exceptions:?}");
}

/// The port in a URL.
fn port(url: &str) -> &str {
    url.rsplit(':').next().unwrap()
}

/// A server, and where it listens.
struct Serving {
    program: Program,
    url: String,
}

// ---- scripts and transcripts

/// What a client does, or waits for.
enum Decoded {
    /// From here on it is this client; it connects, if it has not yet. A script begins with client 0.
    As(usize),
    Send(Vec<u8>),
    HalfClose,
    /// It is gone, and what was in transit is lost.
    Reset,
    /// These bytes come, or one datagram of them.
    Expect(Vec<u8>),
    /// Nothing comes for a while, and the connection stays open.
    Silence,
    /// The server closes.
    End,
    /// The server closes although there was more to read, which resets the connection.
    Cut,
}
use Decoded::{As, Cut, End, HalfClose, Reset, Silence};

fn send(bytes: impl Into<Vec<u8>>) -> Decoded {
    Decoded::Send(bytes.into())
}

fn expect(bytes: impl Into<Vec<u8>>) -> Decoded {
    Decoded::Expect(bytes.into())
}

/// What a client has seen.
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

/// Reads so many bytes or a datagram, less if no more come.
fn read(client: &mut Client, wanted: usize, patience: Duration) -> Event {
    client.socket.set_read_timeout(Some(patience)).unwrap();
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

/// Plays a client's script to a server, and writes down what comes back.
fn play(url: &str, script: &[Decoded]) -> Vec<Event> {
    let mut transcript = Vec::new();
    let mut clients = BTreeMap::new();
    let mut who = 0;
    if !matches!(script.first(), Some(As(_))) {
        clients.insert(who, connect(url));
    }
    for step in script {
        if let As(number) = step {
            who = *number;
            clients.entry(who).or_insert_with(|| connect(url));
            continue;
        }
        let client = clients.get_mut(&who).expect("it has not gone yet");
        match step {
            As(_) => unreachable!("it is dealt with"),
            Decoded::Send(bytes) => {
                client.send(bytes);
            }
            HalfClose => {
                client.half_close();
            }
            Reset => {
                client.socket.set_linger(Some(Duration::ZERO)).unwrap();
                clients.remove(&who);
            }
            Decoded::Expect(bytes) => transcript.push(read(client, bytes.len(), DEADLINE)),
            Silence => transcript.push(read(client, 1, A_WHILE)),
            End | Cut => transcript.push(read(client, 1, DEADLINE)),
        }
    }
    transcript
}

/// The transcript that a script hopes for.
fn hoped_for(script: &[Decoded]) -> Vec<Event> {
    let event = |step: &Decoded| match step {
        Decoded::Expect(bytes) => Some(Event::Received(bytes.clone())),
        Silence => Some(Event::Silence),
        End => Some(Event::End),
        Cut => Some(Event::Cut),
        As(_) | Decoded::Send(_) | HalfClose | Reset => None,
    };
    script.iter().filter_map(event).collect()
}

/// What the clients of a script do, told in words.
fn actions(script: &[Decoded]) -> Vec<String> {
    let action = |step: &Decoded| match step {
        As(number) => Some(format!("as {number}")),
        Decoded::Send(bytes) => Some(format!("send {}", bytes.escape_ascii())),
        HalfClose => Some("half-close".to_owned()),
        Reset => Some("reset".to_owned()),
        Decoded::Expect(_) | Silence | End | Cut => None,
    };
    script.iter().filter_map(action).collect()
}

// ---- who is compared with whom

/// A tutorial's server, and the example that answers it.
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

fn confirmed(text: &str) -> Decoded {
    expect(format!("已收到你的消息<{text}>"))
}

impl Pair {
    fn serve_example(&self, mode: &str) -> Serving {
        let arguments = [self.arguments, &["--mode", mode]].concat();
        let program = serve(self.example, &[self.url], &arguments);
        let url = program.urls()[0].clone();
        Serving { program, url }
    }

    /// Checks what the tutorial's server answers to a script.
    #[track_caller]
    fn python_says(&self, python: Python, script: &[Decoded]) -> (Vec<Event>, Program) {
        let serving = python.serve(self.tutorial);
        let transcript = play(&serving.url, script);
        assert_eq!(transcript, hoped_for(script), "{}", self.tutorial);
        (transcript, serving.program)
    }

    /// Checks what the example answers in each of its modes, all at the same time.
    fn rust_says(&self, script: &[Decoded], expected: &[Event], check: impl Fn(Program) + Sync) {
        thread::scope(|scope| {
            for mode in self.modes {
                let check = &check;
                scope.spawn(move || {
                    let serving = self.serve_example(mode);
                    let transcript = play(&serving.url, script);
                    let Pair { example, arguments, .. } = self;
                    assert_eq!(transcript, expected, "{example} {arguments:?} under {mode}");
                    check(serving.program);
                });
            }
        });
    }

    /// Checks that both answer the same, byte for byte.
    #[track_caller]
    fn agree(&self, python: Python, script: &[Decoded]) {
        let (transcript, _server) = self.python_says(python, script);
        self.rust_says(script, &transcript, |program| drop(program.stop()));
    }

    /// Checks that to the same actions of its clients, one goes wrong as is known, and the other
    /// does not. Where a server has closed or stopped, there is nothing more to do.
    #[track_caller]
    fn differ(&self, python: Python, wrong: &[Decoded], right: &[Decoded]) {
        self.goes_wrong(python, wrong, right);
        self.rust_says(right, &hoped_for(right), |program| drop(program.stop()));
    }

    /// The half of [`Pair::differ`] that is Python's. The server is still there.
    #[track_caller]
    fn goes_wrong(&self, python: Python, wrong: &[Decoded], right: &[Decoded]) -> Program {
        let (done, seen) = (actions(right), actions(wrong));
        assert!(done.starts_with(&seen) || seen.starts_with(&done), "the clients do the same");
        assert_ne!(hoped_for(wrong), hoped_for(right), "it is a difference");
        self.python_says(python, wrong).1
    }
}

// ---- both say the same

#[test]
fn receive_closes_after_one_message_as_python_does() {
    let python = python_or_skip!();
    RECEIVE.agree(python, &[send("client1"), End, As(1), send("client2"), End]);
    RECEIVE.agree(python, &[send(" client1 \r\n"), End, As(1), HalfClose, End]);
}

#[test]
fn upper_answers_as_python_does() {
    let python = python_or_skip!();
    // White space within, and bytes that are no text.
    let within: Vec<u8> = [b"x".to_vec(), (0..=255).collect(), b"x".to_vec()].concat();
    let answer = within.to_ascii_uppercase();
    UPPER.agree(
        python,
        &[send("client1"), expect("CLIENT1"), send(within), expect(answer), Silence],
    );
    // Two clients, turn by turn.
    let each = [(0, "client1", "CLIENT1"), (1, "client2", "CLIENT2")];
    let modes = &["reactor", "offload", "threading", "pool", "forking"];
    let turns = [each, each].concat();
    let script: Vec<_> = turns
        .iter()
        .flat_map(|&(who, client, answer)| [As(who), send(client), expect(answer)])
        .collect();
    Pair { modes, ..UPPER }.agree(python, &script);
}

#[test]
fn upper_answers_datagrams_as_python_does() {
    let python = python_or_skip!();
    let text = (32..=126).collect::<Vec<u8>>();
    let upper = text.to_ascii_uppercase();
    let blank = " \t\r\n";
    UPPER_UDP.agree(
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
            send(blank), // of datagrams, not even the tutorial strips anything
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
    GREET.agree(python, &[send("hello"), expect(GREETED), End]);
    GREET
        .agree(python, &[send([0, 255]), expect(GREETED), End, As(1), send("\n"), expect(GREETED)]);
}

#[test]
fn upper_once_answers_and_closes_as_python_does() {
    let python = python_or_skip!();
    HELLO.agree(python, &[send("hello"), expect("HELLO"), End]);
    HELLO.agree(python, &[send("学会 hello"), expect("学会 HELLO"), End, As(1), HalfClose, End]);
}

#[test]
fn welcome_talks_as_python_does() {
    let python = python_or_skip!();
    WELCOME.agree(
        python,
        &[
            expect(WELCOMED),
            send("你好"),
            confirmed("你好"),
            send(" exit"), // only the word alone ends it
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
fn nihao_talks_as_python_does() {
    let python = python_or_skip!();
    NIHAO.agree(
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
    STOP.python_says(python, &script);
    // The client has ended with the script, and with it the server.
    STOP.rust_says(&script, &hoped_for(&script), |program| drop(program.stopped()));
}

#[test]
fn lines_ends_as_python_does() {
    let python = python_or_skip!();
    LINES.agree(
        python,
        &[send("\n"), End, As(1), send(" \t\x0b\x0c\r\n"), End, As(2), HalfClose, End],
    );
}

// ---- what the tutorials do wrong: the list of tests/python/README.md

#[test]
fn eof_is_not_an_empty_message() {
    let python = python_or_skip!();
    // Python answers who has said nothing and confirms it, and tells of it.
    GREET.differ(python, &[HalfClose, expect(GREETED), End], &[HalfClose, End]);
    WELCOME.differ(
        python,
        &[expect(WELCOMED), HalfClose, confirmed("")],
        &[expect(WELCOMED), HalfClose, End],
    );
    let (_, server) = RECEIVE.python_says(python, &[HalfClose, End]);
    assert!(server.next_line().unwrap().starts_with("('127.0.0.1', "));
    assert_eq!(server.next_line().unwrap(), "");
    RECEIVE.rust_says(&[HalfClose, End], &[Event::End], |program| {
        assert_eq!(program.stop().stderr, [""; 0]);
    });
}

#[test]
fn eof_does_not_make_a_server_spin() {
    let python = python_or_skip!();
    let said = || [send("client1"), expect("CLIENT1"), HalfClose];
    let wrong: Vec<_> = said().into_iter().chain([Silence]).collect();
    let right: Vec<_> = said().into_iter().chain([End, As(1), Silence]).collect();
    let server = UPPER.goes_wrong(python, &wrong, &right);
    // It tells who sent it something at each turn of its loop; even now that the client is gone.
    for _ in 0..10_000 {
        assert!(server.next_line().unwrap().starts_with("('127.0.0.1', "));
    }
    UPPER.rust_says(&right, &hoped_for(&right), |program| {
        let used = || program.cpu_time().unwrap_or_default();
        let before = used();
        thread::sleep(A_WHILE); // what must not happen has no event
        let spent = used() - before;
        assert!(spent < A_WHILE / 3, "{spent:?} of {A_WHILE:?}");
        program.stop();
    });
}

#[test]
fn a_half_closed_client_is_not_flooded() {
    let python = python_or_skip!();
    let hundred = |text: &str| expect(text.repeat(100));
    let server = WELCOME.goes_wrong(
        python,
        &[expect(WELCOMED), HalfClose, hundred("已收到你的消息<>")],
        &[expect(WELCOMED), HalfClose, End],
    );
    // And once it has closed, a traceback.
    complains(&server, &["BrokenPipeError", "ConnectionResetError"]);
    WELCOME.rust_says(
        &[expect(WELCOMED), HalfClose, End],
        &[Event::Received(WELCOMED.into()), Event::End],
        |program| drop(program.stop()),
    );
    NIHAO.differ(
        python,
        &[expect("你好欢迎你"), HalfClose, hundred("好")],
        &[expect("你好欢迎你"), HalfClose, End],
    );
}

#[test]
fn a_handler_may_stop_its_server() {
    let python = python_or_skip!();
    // In Python neither that client nor any other hears of the server again.
    let wrong = [send("hello"), expect("hello"), HalfClose, Silence, As(1), send("hello"), Silence];
    let right = [send("hello"), expect("hello"), HalfClose, End];
    STOP.goes_wrong(python, &wrong, &right);
    STOP.rust_says(&right, &hoped_for(&right), |program| drop(program.stopped()));
}

#[test]
fn no_second_line_is_lost() {
    let python = python_or_skip!();
    let lines = "0\n1\n2\n3\n4\n5\n";
    LINES.differ(
        python,
        &[send(lines), HalfClose, expect("135"), End],
        &[send(lines), HalfClose, expect(lines), End],
    );
    // Who sends one line waits for ever.
    LINES.differ(
        python,
        &[send("hello\n"), Silence],
        &[send("hello\n"), expect("hello\n"), Silence],
    );
    // A blank line ends the connection, but not if it is a second one.
    LINES.differ(
        python,
        &[send("hello\n\n"), Silence],
        &[send("hello\n\n"), expect("hello\n"), End],
    );
    // The last line needs no end.
    LINES.differ(
        python,
        &[send("hello"), HalfClose, End],
        &[send("hello"), HalfClose, expect("hello\n"), End],
    );
}

#[test]
fn a_slow_client_does_not_make_others_wait() {
    let python = python_or_skip!();
    let concurrent = Pair { modes: &["threading", "pool", "forking"], ..LINES };
    concurrent.differ(
        python,
        &[send("0\n"), As(1), send("1\n2\n"), Silence],
        &[send("0\n"), As(1), send("1\n2\n"), expect("1\n2\n"), As(0), expect("0\n")],
    );
}

#[test]
fn a_character_cut_in_two_is_put_together() {
    let python = python_or_skip!();
    let (first, second) = "你".as_bytes().split_at(2);
    // Python drops the connection.
    WELCOME.differ(
        python,
        &[expect(WELCOMED), send(first), End],
        &[expect(WELCOMED), send(first), Silence, send(second), confirmed("你")],
    );
    NIHAO.differ(
        python,
        &[expect("你好欢迎你"), send(first), End],
        &[expect("你好欢迎你"), send(first), Silence, send(second), expect("你好")],
    );
    let right = [send(first), expect(first), send(second), expect(second), HalfClose, End];
    STOP.goes_wrong(python, &[send(first), End], &right);
    STOP.rust_says(&right, &hoped_for(&right), |program| drop(program.stopped()));
}

#[test]
fn what_is_no_text_is_no_reason_to_drop_a_client() {
    let python = python_or_skip!();
    let bytes = || send(b"a\xffb");
    WELCOME.differ(
        python,
        &[expect(WELCOMED), bytes(), End],
        &[expect(WELCOMED), bytes(), confirmed("a\u{fffd}b"), send("c"), confirmed("c")],
    );
    NIHAO.differ(
        python,
        &[expect("你好欢迎你"), bytes(), End],
        &[expect("你好欢迎你"), bytes(), expect("a\u{fffd}b好"), send("c"), expect("c好")],
    );
    UPPER_UDP.differ(python, &[bytes(), Silence], &[bytes(), expect(b"A\xffB"), Silence]);
    // Where it is told, the one has a traceback to tell.
    let (_, server) = RECEIVE.python_says(python, &[bytes(), End]);
    complains(&server, &["UnicodeDecodeError"]);
    RECEIVE.rust_says(&[bytes(), End], &[Event::End], |program| {
        let told = program.stop().stderr;
        assert!(told.len() == 1 && told[0].ends_with(" a\u{fffd}b"), "{told:?}");
    });
}

#[test]
fn exit_is_heard_behind_other_words() {
    let python = python_or_skip!();
    // What was sent in two is read as one; raw, here as there.
    WELCOME.agree(python, &[expect(WELCOMED), send("aexit"), confirmed("aexit"), Silence]);
    NIHAO.agree(python, &[expect("你好欢迎你"), send("aq"), expect("aq好"), Silence]);
    // Lines are the cure.
    WELCOME_LINES.differ(
        python,
        &[expect(WELCOMED), send("a\nexit\n"), confirmed("a\nexit\n"), Silence],
        &[expect(format!("{WELCOMED}\n")), send("a\nexit\n"), expect("已收到你的消息<a>\n"), End],
    );
    NIHAO_LINES.differ(
        python,
        &[expect("你好欢迎你"), send("a\nq\n"), expect("a\nq\n好"), Silence],
        &[expect("你好欢迎你\n"), send("a\nq\n"), expect("a好\n"), End],
    );
    // As for a word that came in two parts.
    WELCOME_LINES.differ(
        python,
        &[expect(WELCOMED), send("ex"), confirmed("ex"), send("it\n"), confirmed("it\n")],
        &[expect(format!("{WELCOMED}\n")), send("ex"), Silence, send("it\n"), End],
    );
}

#[test]
fn no_data_is_stripped() {
    let python = python_or_skip!();
    let spaced = || send(" client 1\r\n");
    UPPER.differ(
        python,
        &[spaced(), expect("CLIENT 1"), Silence],
        &[spaced(), expect(" CLIENT 1\r\n"), Silence],
    );
    // What is all white space is not answered at all.
    UPPER.differ(python, &[send("\n"), Silence], &[send("\n"), expect("\n")]);
    HELLO.differ(
        python,
        &[send("hello\n"), expect("HELLO"), End],
        &[send("hello\n"), expect("HELLO\n"), End],
    );
}

#[test]
fn a_message_may_be_longer_than_1024_bytes() {
    let python = python_or_skip!();
    let long = || "x".repeat(2000);
    HELLO.differ(
        python,
        &[send(long()), expect("X".repeat(1024))],
        &[send(long()), expect("X".repeat(2000)), End],
    );
    // It closes with the rest unread, which resets the connection.
    GREET.differ(
        python,
        &[send(long()), expect(GREETED), Cut],
        &[send(long()), expect(GREETED), End],
    );
    // Or takes the rest for a second message.
    let (first, second) = ("x".repeat(1024), "x".repeat(976));
    WELCOME.differ(
        python,
        &[expect(WELCOMED), send(long()), confirmed(&first), confirmed(&second)],
        &[expect(WELCOMED), send(long()), confirmed(&long())],
    );
}

#[test]
fn a_datagram_is_not_cut_at_8192_bytes() {
    let python = python_or_skip!();
    let long = || send("x".repeat(9000));
    UPPER_UDP.differ(
        python,
        &[long(), expect("X".repeat(8192))],
        &[long(), expect("X".repeat(9000))],
    );
}

#[test]
fn a_message_in_pieces_is_one_message() {
    let python = python_or_skip!();
    // Raw, each read is taken for a message, here as there.
    let pieces = [expect("你好欢迎你"), send("a"), expect("a好"), send("b"), expect("b好")];
    NIHAO.agree(python, &pieces);
    // Lines are the cure.
    NIHAO_LINES.differ(
        python,
        &[expect("你好欢迎你"), send("a"), expect("a好"), send("b\n"), expect("b\n好")],
        &[expect("你好欢迎你\n"), send("a"), Silence, send("b\n"), expect("ab好\n")],
    );
}

#[test]
fn a_reset_is_not_an_error_of_the_handler() {
    let python = python_or_skip!();
    let script = [send("a"), expect("A"), Reset, As(1), send("b"), expect("B")];
    let (_, server) = UPPER.python_says(python, &script);
    complains(&server, &["ConnectionResetError"]);
    UPPER.rust_says(&script, &hoped_for(&script), |program| {
        assert_eq!(program.stop().stderr, [""; 0]);
    });
}

#[test]
fn the_threaded_server_answers_and_tells_its_thread() {
    let python = python_or_skip!();
    // It waits for the client's end, and the client for the answer; and then there is none.
    let (_, server) = WHOAMI.python_says(python, &[send("hello 1\n"), Silence, HalfClose, End]);
    complains(&server, &["AttributeError"]);
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
fn the_misprints_keep_programs_from_starting() {
    let python = python_or_skip!();
    let printed = |name: &str, correct: &str, misprint: &str| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
        let program = fs::read_to_string(directory.join(name)).unwrap();
        let code = program.split_once("\nimport").unwrap().1;
        assert_eq!(code.matches(correct).count(), 1, "{name} holds {correct}");
        let program = format!("import{}", code.replace(correct, misprint));
        spawn_reading(&mut python.command(&["-c", &program]), Stdio::null()).end()
    };
    // The server is done before it has begun.
    let ended = printed("001_greet_server.py", "'__main__'", "'__mian__'");
    assert_eq!(ended.succeeds().stdout, [""; 0]);
    // The client is no program.
    let ended = printed("001_hello_client.py", r#""\n""#, "\"\n\"");
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.last().unwrap().starts_with("SyntaxError"), "{ended:?}");
    // A server and its clients in one program, which in the tutorial never come to their turn.
    run("background", &[] as &[&str]).succeeds();
}

#[test]
fn the_list_names_each_of_these_tests_and_no_other() {
    let (list, tests) = (include_str!("python/README.md"), include_str!("python.rs"));
    let list = list.split_once("| in Python |").unwrap().1;
    let listed = list.lines().filter_map(|line| line.strip_suffix("` |")?.rsplit('`').next());
    let listed: Vec<_> = listed.collect();
    let section = tests.split("// ---- ").find(|section| section.starts_with("what the tutorials"));
    let mut there: Vec<_> = section
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("fn ")?.strip_suffix("() {"))
        .collect();
    assert_eq!(there.pop(), Some("the_list_names_each_of_these_tests_and_no_other"));
    assert_eq!(listed, there);
}

// ---- the tutorials' own clients

/// Both servers of a pair, Python's first.
fn both(python: Python, pair: &Pair) -> [Serving; 2] {
    let mode = if pair.modes.contains(&"reactor") { "reactor" } else { "threading" };
    [python.serve(pair.tutorial), pair.serve_example(mode)]
}

#[test]
fn the_clients_of_receive_are_heard() {
    let python = python_or_skip!();
    let [theirs, ours] = both(python, &RECEIVE);
    for name in ["client1", "client2"] {
        for serving in [&theirs, &ours] {
            let client = python.client(&format!("000_receive_{name}.py"), &serving.url);
            assert_eq!(client.end().succeeds().stdout, [""; 0]);
        }
        // The address as Python writes it, and what was said on a line of its own; or both in one.
        assert!(theirs.program.next_line().unwrap().starts_with("('127.0.0.1', "));
        assert_eq!(theirs.program.next_line().unwrap(), name);
        let told = ours.program.next_complaint().unwrap();
        assert!(told.starts_with("127.0.0.1:") && told.ends_with(&format!(" {name}")), "{told}");
    }
    ours.program.stop();
}

/// Has two clients that never end talk with both servers at the same time, and reads two lines of
/// each.
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
fn the_clients_of_upper_hear_themselves_in_upper_case() {
    let python = python_or_skip!();
    let clients = [("000_upper_client1.py", "b'CLIENT1'"), ("000_upper_client2.py", "b'CLIENT2'")];
    two_rounds(python, &UPPER, clients);
}

#[test]
fn the_clients_of_upper_over_udp_hear_themselves_in_upper_case() {
    let python = python_or_skip!();
    let clients = [("000_udp_client1.py", "b'CLIENT1'"), ("000_udp_client2.py", "b'CLIENT2'")];
    two_rounds(python, &UPPER_UDP, clients);
}

#[test]
fn the_client_of_upper_once_says_hello() {
    let python = python_or_skip!();
    let [theirs, ours] = both(python, &HELLO);
    let heard = |serving: &Serving| {
        python.client("001_hello_client.py", &serving.url).end().succeeds().stdout.clone()
    };
    let shown = ["Sent:     hello", "Received: HELLO"];
    assert_eq!(heard(&theirs), shown);
    // The end of the line comes back too.
    assert_eq!(heard(&ours), [&shown[..], &[""]].concat());
    ours.program.stop();
}

#[test]
fn the_chat_client_is_welcomed_confirmed_and_let_go() {
    let python = python_or_skip!();
    let directory = Directory::new();
    let input = directory.path("input");
    // A blank line is not sent, and the prompt is shown again.
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
    let told = ours.program.stop().stderr;
    assert!(told[0].starts_with("127.0.0.1:") && told[0].ends_with(" says: 你好"), "{told:?}");
    assert_eq!(told.len(), 3, "two messages and the end: {told:?}");
}

#[test]
fn the_slow_client_is_served_and_nobody_waits_for_it() {
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
            (name, quick) // it stays for ten seconds more
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
