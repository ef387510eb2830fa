//! The example `client` against other examples and against servers of the test, over every transport.

#[path = "support/programs.rs"]
mod programs;

use std::ffi::OsStr;
use std::io::{PipeWriter, Read as _, Write as _, pipe};
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use programs::{DEADLINE, Directory, Ended, Program, example, run, serve, spawn, spawn_reading};

/// A client that runs, and its input.
struct Running {
    client: Program,
    input: Option<PipeWriter>,
}

impl Running {
    fn start(arguments: &[impl AsRef<OsStr>]) -> Self {
        let (reader, input) = pipe().unwrap();
        let client =
            spawn_reading(Command::new(example("client")).args(arguments), Stdio::from(reader));
        Running { client, input: Some(input) }
    }

    fn send(&mut self, text: impl AsRef<[u8]>) -> &mut Self {
        self.input.as_mut().unwrap().write_all(text.as_ref()).unwrap();
        self
    }

    /// The next line of its output is this one.
    #[track_caller]
    fn expect(&mut self, line: &str) -> &mut Self {
        assert_eq!(self.client.next_line().as_deref(), Some(line));
        self
    }

    fn end_input(&mut self) -> &mut Self {
        self.input = None;
        self
    }

    /// Waits until the client has exited with code 0 and has printed nothing on stderr.
    #[track_caller]
    fn end(self) -> Vec<String> {
        let Ended { status, stdout, stderr } = self.client.end();
        assert_eq!((status.code(), &stderr[..]), (Some(0), &[][..]));
        stdout
    }
}

/// Runs a client whose input is this text.
fn client_with(input: &str, arguments: &[&str]) -> Vec<String> {
    let mut running = Running::start(arguments);
    running.send(input).end_input();
    running.end()
}

#[test]
fn answers_arrive_as_they_come_over_every_transport_and_the_end_of_input_ends_the_client() {
    let directory = Directory::new();
    let urls = [
        "tcp://127.0.0.1:0",
        "tcp://[::1]:0",
        "udp://127.0.0.1:0",
        "udp://[::1]:0",
        &directory.url("unix"),
        &directory.url("unixgram"),
    ];
    let server = serve("upper", &urls, &[]);
    for url in server.urls() {
        let mut running = Running::start(&[url]);
        running.send("hello 学会\n").expect("HELLO 学会").send("a\n").expect("A").end_input();
        assert_eq!(running.end(), ["HELLO 学会", "A"], "{url}");
    }
    server.stop();
}

#[test]
fn localhost_is_the_ipv4_address_over_tcp_and_udp() {
    for scheme in ["tcp", "udp"] {
        let server = serve("upper", &[&format!("{scheme}://127.0.0.1:0")], &[]);
        let url = server.urls()[0].replace("127.0.0.1", "localhost");
        let mut running = Running::start(&[url]);
        running.send("hello\n").expect("HELLO");
        server.stop();
    }
}

#[test]
fn several_clients_talk_to_each_other_through_chat() {
    let server = serve("chat", &["tcp://127.0.0.1:0"], &[]);
    let url = &server.urls()[0];
    let one = Running::start(&[url]);
    one.client.next_line();
    let mut other = Running::start(&[url]);
    other.client.next_line();
    one.client.next_line(); // that the other one has come
    other.send("你好\n");
    let line = one.client.next_line().unwrap();
    assert!(line.ends_with("你好"), "{line}");
    for mut running in [one, other] {
        running.end_input();
        running.end();
    }
    server.stop();
}

#[test]
fn the_servers_end_ends_the_client_although_its_input_stays_open() {
    let server = serve("upper", &["tcp://127.0.0.1:0"], &["--once"]);
    let mut running = Running::start(&[&server.urls()[0]]);
    running.send("hello\n");
    assert_eq!(running.end(), ["HELLO"]);
    server.stop();
}

#[test]
fn a_stop_of_the_server_ends_the_client() {
    let server = serve("upper", &["tcp://127.0.0.1:0"], &[]);
    let mut running = Running::start(&[&server.urls()[0]]);
    running.send("hello\n").expect("HELLO");
    server.stop();
    running.end();
}

#[test]
fn after_the_end_of_input_the_answers_that_are_still_to_come_are_printed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let mut running = Running::start(&[url]);
    running.send("one\ntwo\n").end_input();
    let (mut stream, _) = listener.accept().unwrap();
    let mut received = String::new();
    stream.read_to_string(&mut received).unwrap();
    assert_eq!(received, "one\ntwo\n");
    stream.write_all(b"late\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(running.end(), ["late"]);
}

#[test]
fn a_last_line_without_its_end_is_sent_as_a_line() {
    let server = serve("lines", &["tcp://127.0.0.1:0"], &[]);
    assert_eq!(client_with("one\ntwo", &[&server.urls()[0]]), ["one", "two"]);
    server.stop();
}

#[test]
fn a_character_in_two_parts_and_bytes_that_are_not_utf8_reach_the_output_unchanged() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    // A socket, since a read from a pipe has no deadline.
    let (mut output, stdout) = UnixStream::pair().unwrap();
    output.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut client = Command::new(example("client"))
        .arg(url)
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(stdout))
        .spawn()
        .unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let parts: [&[u8]; 3] = [&"你".as_bytes()[..1], &"你".as_bytes()[1..], b"\xff\0"];
    for part in parts {
        stream.write_all(part).unwrap();
        let mut seen = vec![0; part.len()];
        output.read_exact(&mut seen).unwrap();
        assert_eq!(seen, part);
    }
    drop(stream);
    assert!(client.wait().unwrap().success());
}

#[test]
fn a_large_datagram_is_printed_whole() {
    let directory = Directory::new();
    let server = serve("echo", &["udp://127.0.0.1:0", &directory.url("unixgram")], &[]);
    for (url, length) in server.urls().iter().zip([60_000, 100_000]) {
        let line = "x".repeat(length);
        assert_eq!(client_with(&format!("{line}\n"), &[url]), [line], "{url}");
    }
    server.stop();
}

#[test]
fn with_raw_framing_the_tutorials_dialogues_work_as_they_are() {
    let server = serve("welcome", &["tcp://127.0.0.1:0"], &[]);
    let mut running = Running::start(&["--framing", "raw", &server.urls()[0]]);
    // The answers have no newlines, so the output is one line at the end.
    running.send("exit\n");
    assert_eq!(running.end(), ["欢迎访问socketserver服务器！"]);
    server.stop();
    let server = serve("nihao", &["tcp://127.0.0.1:0"], &["--framing", "lines"]);
    let mut running = Running::start(&[&server.urls()[0]]);
    running.expect("你好欢迎你").send("今天\n").expect("今天好").send("q\n");
    running.end();
    server.stop();
}

#[test]
fn no_server_is_one_line_that_names_it_and_code_1() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let directory = Directory::new();
    let urls = [
        format!("tcp://127.0.0.1:{port}"),
        directory.url("unix"),
        directory.url("unixgram"),
        "tcp://does-not-exist.invalid:1".to_owned(),
    ];
    for url in urls {
        let ended = run("client", &[&url]);
        assert!(ended.expect_failure(1).contains(&url), "{ended:?}");
    }
    // Over UDP, the answer of the system comes after the first datagram.
    let mut running = Running::start(&[format!("udp://127.0.0.1:{port}")]);
    running.send("hello\n");
    running.client.end().expect_failure(1);
}

#[test]
fn a_reset_is_one_line_and_code_1() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let running = Running::start(&[format!("tcp://{}", listener.local_addr().unwrap())]);
    let (stream, _) = listener.accept().unwrap();
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    running.client.end().expect_failure(1);
}

#[test]
fn an_output_that_nobody_reads_ends_the_client() {
    let server = serve("echo", &["tcp://127.0.0.1:0"], &[]);
    let (reader, mut input) = pipe().unwrap();
    let (output, stdout) = pipe().unwrap();
    let mut client = Command::new(example("client"))
        .arg(&server.urls()[0])
        .stdin(reader)
        .stdout(stdout)
        .spawn()
        .unwrap();
    drop(output);
    input.write_all(b"hello\n").unwrap();
    assert!(client.wait().unwrap().success());
    server.stop();
}

#[test]
fn unusable_arguments_are_one_line_and_code_2() {
    let unusable: &[&[&str]] = &[
        &[],
        &["127.0.0.1:80"],
        &["http://127.0.0.1:80"],
        &["tcp://127.0.0.1:1", "tcp://127.0.0.1:2"],
        &["--framing", "words", "tcp://127.0.0.1:1"],
        &["--framing"],
        &["--nonsense"],
        &["--help=1"],
    ];
    for arguments in unusable {
        run("client", arguments).expect_failure(2);
    }
    let ended = spawn(Command::new(example("client")).arg("--help")).end();
    assert!(ended.succeeds().stdout.join("\n").contains("--framing X"));
}
