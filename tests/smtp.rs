//! The example `smtp`: real clients, and bytes that no client sends, in every mode.

#[path = "support/programs.rs"]
mod programs;
#[path = "support/tools.rs"]
mod tools;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use programs::{Client, Program, connect, example, run, serve, serve_tcp, text, wait_until};
use serde_json::Value;
use tools::{have_programs, have_python_modules};

const MODES: [&str; 6] = ["reactor", "offload", "inline", "threading", "pool", "forking"];

const HELLO: &str = "EHLO me\r\n";
const ENVELOPE: &str = "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n";

/// Runs `check` with a server in each mode.
fn in_each_mode(arguments: &[&str], check: impl Fn(&str, Program)) {
    for mode in MODES {
        println!("under {mode}");
        check(
            mode,
            serve("smtp", &["tcp://127.0.0.1:0"], &[arguments, &["--mode", mode]].concat()),
        );
    }
}

/// The next mail that the server prints.
#[track_caller]
fn mail(program: &Program) -> Value {
    let line = program.next_line().expect("a mail");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:.200}"))
}

/// The bytes of a mail.
fn data(mail: &Value) -> Vec<u8> {
    let data = mail["data"].as_str().unwrap();
    let bytes = match mail["encoding"].as_str().unwrap() {
        "utf-8" => data.as_bytes().to_vec(),
        "latin-1" => data.chars().map(|c| u8::try_from(c).unwrap()).collect(),
        other => panic!("{other}"),
    };
    assert_eq!(mail["size"], bytes.len());
    bytes
}

/// Stops a server that has printed these mails, and checks that it has printed no others.
#[track_caller]
fn stop(program: Program, mails: usize) {
    program.signal("TERM");
    let listeners = program.urls().len();
    let ended = program.end();
    assert_eq!(ended.succeeds().stdout.len(), listeners + mails, "{ended:?}");
    assert_eq!(ended.stderr, [""; 0]);
}

/// Reads a reply, of one or several lines; returns its last line.
#[track_caller]
fn reply(client: &mut Client) -> String {
    loop {
        let line = client.line();
        let Some(text) = line.strip_suffix("\r\n") else { panic!("not a reply: {line:?}") };
        if text.as_bytes().get(3) != Some(&b'-') {
            return text.to_owned();
        }
    }
}

/// Reads one reply for each code.
#[track_caller]
fn expect(client: &mut Client, codes: &[u16]) {
    for (number, code) in codes.iter().enumerate() {
        let reply = reply(client);
        assert!(reply.starts_with(&code.to_string()), "reply {number}, not {code}: {reply}");
    }
}

/// A client that has been greeted, and has said EHLO.
#[track_caller]
fn greeted(program: &Program) -> Client {
    let mut client = program.connect();
    client.send(HELLO);
    expect(&mut client, &[220, 250]);
    client
}

/// A client that may send its mail.
#[track_caller]
fn before_mail(program: &Program) -> Client {
    let mut client = greeted(program);
    client.send(ENVELOPE).send("DATA\r\n");
    expect(&mut client, &[250, 250, 354]);
    client
}

/// Runs a client program with this input; it must succeed.
#[track_caller]
fn run_client(command: &mut Command, input: &str) {
    let mut process = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ended = process.wait_with_output().unwrap();
    assert!(ended.status.success(), "{command:?}: {}{}", text(&ended.stdout), text(&ended.stderr));
}

fn port(program: &Program) -> &str {
    program.urls()[0].rsplit(':').next().unwrap()
}

// ---- real clients

#[test]
fn swaks_delivers_mails_in_every_mode() {
    if !have_programs(&["swaks"]) {
        return;
    }
    in_each_mode(&[], |_, program| {
        for more in [&["--protocol", "SMTP"][..], &["--pipeline"]] {
            let server = format!("127.0.0.1:{}", port(&program));
            let mut swaks = Command::new("swaks");
            swaks.args(["--server", &server, "--helo", "me", "--from", "a@b.example"]);
            swaks.args(["--to", "c@d.example,e@f.example", "--body", ".\n..\nend"]);
            run_client(swaks.args(["--timeout", "20"]).args(more), "");
            let mail = mail(&program);
            assert_eq!((&mail["helo"], &mail["from"]), (&"me".into(), &"a@b.example".into()));
            assert_eq!(mail["to"], serde_json::json!(["c@d.example", "e@f.example"]));
            assert!(text(&data(&mail)).contains("\r\n\r\n.\r\n..\r\nend\r\n"), "{mail}");
        }
        stop(program, 2);
    });
}

#[test]
fn smtplib_delivers_mails_in_every_mode_and_sees_the_extensions() {
    if !have_python_modules(&["smtplib"]) {
        return;
    }
    let script = r#"
import smtplib, sys
with smtplib.SMTP("127.0.0.1", int(sys.argv[1]), local_hostname="me", timeout=20) as client:
    client.ehlo()
    for extension in "size", "8bitmime", "pipelining":
        assert client.has_extn(extension), extension
    assert client.esmtp_features["size"] == "100000"
    assert client.verify("somebody")[0] == 252
    refused = client.sendmail("a@b", ["c@d", "no domain@"], b".\r\n..x\r\n\xe4\xff\r\n", ["BODY=8BITMIME"])
    assert list(refused) == ["no domain@"] and refused["no domain@"][0] == 501, refused
    client.sendmail("", "postmaster", "\u4f60\u597d\r\n".encode(), ["BODY=8BITMIME"])
    try:
        client.sendmail("a@b", "c@d", "x\n" * 60000)
        raise SystemExit("a mail that is too large is not refused")
    except smtplib.SMTPSenderRefused as error: # it declares the size
        assert error.smtp_code == 552, error
    code, _ = client.docmd("mail", "FROM:<a@b>")
    assert code == 250 and client.rcpt("c@d")[0] == 250
    assert client.data(b"y\r\n" * 34000)[0] == 552
    assert client.noop()[0] == 250
"#;
    in_each_mode(&["--max-size", "100000"], |_, program| {
        run_client(Command::new("python3").args(["-c", script, port(&program)]), "");
        let (first, second) = (mail(&program), mail(&program));
        assert_eq!(first["encoding"], "latin-1");
        assert_eq!(data(&first), b".\r\n..x\r\n\xe4\xff\r\n");
        assert_eq!((&second["from"], &second["to"][0]), (&"".into(), &"postmaster".into()));
        assert_eq!(data(&second), "你好\r\n".as_bytes());
        stop(program, 2);
    });
}

#[test]
fn msmtp_delivers_a_mail_in_every_mode() {
    if !have_programs(&["msmtp"]) {
        return;
    }
    in_each_mode(&[], |_, program| {
        let mut msmtp = Command::new("msmtp");
        msmtp.args(["--file=/dev/null", "--host=127.0.0.1", "--timeout=20", "--domain=me"]);
        msmtp.args([&format!("--port={}", port(&program)), "--from=a@b.example", "c@d.example"]);
        run_client(&mut msmtp, "Subject: dots\n\n.\n.x\n..\n");
        let mail = mail(&program);
        assert!(text(&data(&mail)).ends_with("Subject: dots\r\n\r\n.\r\n.x\r\n..\r\n"), "{mail}");
        stop(program, 1);
    });
}

#[test]
fn nc_delivers_a_mail_with_all_of_it_sent_at_once() {
    if !have_programs(&["nc"]) {
        return;
    }
    in_each_mode(&[], |_, program| {
        let input = "HELO me\nMAIL FROM:<a@b>\nRCPT TO:<c@d>\nDATA\nby hand\n.\nQUIT\n";
        let mut nc = Command::new("nc");
        run_client(nc.args(["-C", "-N", "-w", "20", "127.0.0.1", port(&program)]), input);
        assert_eq!(data(&mail(&program)), b"by hand\r\n");
        stop(program, 1);
    });
}

#[test]
fn over_a_unix_socket_the_peer_has_no_name() {
    let directory = programs::Directory::new();
    let program = serve("smtp", &[&directory.url("unix"), "tcp://127.0.0.1:0"], &[]);
    let mut client = before_mail(&program);
    client.send(".\r\n");
    expect(&mut client, &[250]);
    assert_eq!(mail(&program)["peer"], "unnamed");
    let mut client = connect(&program.urls()[1]);
    client.send([HELLO, ENVELOPE, "DATA\r\n.\r\n"].concat());
    let address = client.socket.local_addr().unwrap().as_socket().unwrap().to_string();
    assert_eq!(mail(&program)["peer"], *address);
    stop(program, 2);
}

// ---- pipelining and bytes

#[test]
fn pipelined_commands_are_answered_in_order_in_every_mode() {
    in_each_mode(&[], |_, program| {
        let mut client = program.connect();
        let group = "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<>\r\nRCPT TO:<e@f>\r\nDATA\r\n";
        client.send(HELLO.to_owned() + group);
        expect(&mut client, &[220, 250, 250, 250, 501, 250, 354]);
        // The next mail follows in the same segment, and its DATA is refused.
        client.send(
            "one\r\n.\r\nMAIL FROM:<a@b>\r\nRCPT TO:<>\r\nDATA\r\nRSET\r\n".to_owned() + group,
        );
        expect(&mut client, &[250, 250, 501, 554, 250, 250, 250, 501, 250, 354]);
        client.send("two\r\n.\r\nQUIT\r\nNOOP\r\n");
        expect(&mut client, &[250, 221]);
        client.expect_end();
        let (one, two) = (mail(&program), mail(&program));
        assert_eq!((data(&one), data(&two)), (b"one\r\n".to_vec(), b"two\r\n".to_vec()));
        assert_eq!(one["to"], serde_json::json!(["c@d", "e@f"]));
        stop(program, 2);
    });
}

#[test]
fn a_group_that_arrives_byte_by_byte_or_at_once_is_answered_the_same() {
    let program = serve_tcp("smtp", "reactor");
    let input = [HELLO, ENVELOPE, "DATA\r\n..a\r\n.b\r\n.\r\nNOOP\r\nQUIT\r\n"].concat();
    for piece in [1, 2, 3, 1000] {
        let mut client = program.connect();
        for piece in input.as_bytes().chunks(piece) {
            client.send(piece);
        }
        expect(&mut client, &[220, 250, 250, 250, 354, 250, 250, 221]);
        client.expect_end();
        assert_eq!(data(&mail(&program)), b".a\r\nb\r\n");
    }
    stop(program, 4);
}

/// Numbers that are the same in each run.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 33
}

#[test]
fn every_byte_of_a_mail_arrives_in_every_mode() {
    in_each_mode(&[], |_, program| {
        let mut client = before_mail(&program);
        let mut state = 1;
        for round in 0..8 {
            let mut sent = Vec::new();
            for _ in 0..random(&mut state) % 2000 {
                for _ in 0..random(&mut state) % 60 {
                    // Dots are frequent, and CR and LF come in pairs only.
                    sent.push(match random(&mut state) % 3 {
                        0 => b'.',
                        _ => match random(&mut state) as u8 {
                            b'\r' | b'\n' => 0,
                            byte => byte,
                        },
                    });
                }
                sent.extend(b"\r\n");
            }
            let mut stuffed = Vec::new();
            for line in sent.split_inclusive(|byte| *byte == b'\n') {
                stuffed.extend(line.starts_with(b".").then_some(b'.'));
                stuffed.extend(line);
            }
            stuffed.extend(b".\r\n");
            for piece in stuffed.chunks(1 + random(&mut state) as usize % 5000) {
                client.send(piece);
            }
            expect(&mut client, &[250]);
            assert!(data(&mail(&program)) == sent, "round {round}");
            client.send([ENVELOPE, "DATA\r\n"].concat());
            expect(&mut client, &[250, 250, 354]);
        }
        drop(client);
        stop(program, 8);
    });
}

#[test]
fn an_end_with_a_bare_cr_or_lf_smuggles_no_second_mail() {
    in_each_mode(&[], |_, program| {
        for end in [
            "\n.\n",
            "\n.\r\n",
            "\r\n.\n",
            "\r.\r",
            "\r.\r\n",
            "\r\n.\r",
            "\r\n.\r\r\n",
            "\r\r\n.\r\r\n",
            "\n\n.\r\n",
            "\r\n\n.\n\r\n",
        ] {
            let mut client = before_mail(&program);
            client.send(["one", end, ENVELOPE, "DATA\r\nsmuggled\r\n.\r\nNOOP\r\n"].concat());
            expect(&mut client, &[554, 250]);
            client.send("QUIT\r\n");
            expect(&mut client, &[221]);
            client.expect_end();
        }
        stop(program, 0);
    });
}

#[test]
fn a_command_that_ends_in_a_bare_lf_is_refused_and_what_follows_is_not_read() {
    in_each_mode(&[], |_, program| {
        let mut client = greeted(&program);
        client.send("NOOP\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n.\r\n");
        expect(&mut client, &[500]);
        client.expect_end();
        let mut client = greeted(&program);
        client.send("RCPT TO:<a\r@b>\r\n");
        expect(&mut client, &[500]);
        drop(client);
        stop(program, 0);
    });
}

// ---- limits

#[test]
fn limits_are_answered_with_the_reply_of_the_standard() {
    in_each_mode(&["--max-size", "1000"], |_, program| {
        let mut client = greeted(&program);
        // The longest commands, and one byte more.
        let longest = format!("NOOP {}\r\n", "x".repeat(512 - 7));
        client.send(&longest).send(longest.replace("NOOP", "NOOP ")).send("x".repeat(1 << 20));
        client.send("\r\nNOOP\r\n");
        expect(&mut client, &[250, 500, 500, 250]);
        // The declared size, and the real one.
        client.send("MAIL FROM:<a@b> SIZE=1001\r\nMAIL FROM:<a@b> SIZE=1000\r\n");
        client.send("RCPT TO:<c@d>\r\nDATA\r\n");
        expect(&mut client, &[552, 250, 250, 354]);
        client.send(["x\r\n".repeat(333), "x\r\n.\r\n".to_owned()].concat());
        client.send([ENVELOPE, "DATA\r\n"].concat());
        expect(&mut client, &[552, 250, 250, 354]);
        client.send(["x\r\n".repeat(333), ".\r\n".to_owned()].concat());
        expect(&mut client, &[250]);
        client.send([ENVELOPE, "DATA\r\n"].concat());
        expect(&mut client, &[250, 250, 354]);
        client.send("x".repeat(999) + "\r\n.\r\n");
        expect(&mut client, &[554]);
        // The recipients.
        client.send("MAIL FROM:<a@b>\r\n".to_owned() + &"RCPT TO:<c@d>\r\n".repeat(101));
        expect(&mut client, &[vec![250; 101], vec![452]].concat());
        client.send("DATA\r\n.\r\n");
        expect(&mut client, &[354, 250]);
        assert_eq!(data(&mail(&program)).len(), 999);
        assert_eq!(mail(&program)["to"].as_array().unwrap().len(), 100);
        // The errors: two have been made.
        client.send("NONSENSE\r\n".repeat(50));
        expect(&mut client, &[vec![500; 7], vec![421]].concat());
        client.expect_end();
        stop(program, 2);
    });
}

#[test]
fn a_client_that_is_silent_for_too_long_gets_421_in_every_mode() {
    in_each_mode(&["--idle", "0.5"], |_, program| {
        let mut client = program.connect();
        expect(&mut client, &[220, 421]);
        client.expect_end();
        let mut client = before_mail(&program);
        client.send("a part of a mail\r\n");
        expect(&mut client, &[421]);
        client.expect_end();
        stop(program, 0);
    });
}

/// The most memory that a process has had, in bytes.
fn peak_memory(id: u32) -> Option<usize> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024)
}

#[test]
fn a_mail_without_end_and_a_line_without_end_take_little_memory() {
    for mode in ["reactor", "offload", "threading"] {
        println!("under {mode}");
        let program =
            serve("smtp", &["tcp://127.0.0.1:0"], &["--mode", mode, "--max-size", "1000000"]);
        let Some(before) = peak_memory(program.id()) else {
            println!("skipped: no /proc");
            return;
        };
        let part = "x".repeat(98) + "\r\n";
        let part = part.repeat(10_000);
        let mut client = before_mail(&program);
        for _ in 0..64 {
            client.send(&part);
        }
        client.send(".\r\n");
        expect(&mut client, &[552]);
        for _ in 0..64 {
            client.send("x".repeat(1_000_000));
        }
        client.send("\r\n");
        expect(&mut client, &[500]);
        drop(client);
        let grown = peak_memory(program.id()).unwrap() - before;
        assert!(grown < 12 << 20, "{grown} bytes more");
        stop(program, 0);
    }
}

#[test]
fn random_bytes_end_no_server_and_cause_no_panic() {
    const WORDS: [&str; 20] = [
        "EHLO",
        "HELO",
        "MAIL FROM:<",
        "RCPT TO:<",
        "DATA",
        "RSET",
        "QUIT",
        " SIZE=",
        " BODY=",
        "a@b",
        "\"",
        "\\",
        ">",
        "<",
        "\r\n",
        "\r\n",
        "\n",
        "\r",
        ".",
        "\r\n.\r\n",
    ];
    in_each_mode(&[], |mode, program| {
        let mut state = 7;
        let rounds = if mode == "forking" { 40 } else { 200 };
        for _ in 0..rounds {
            let mut client = program.connect();
            let mut input = Vec::new();
            for _ in 0..random(&mut state) % 300 {
                match random(&mut state) % 4 {
                    0 => input.push(random(&mut state) as u8),
                    _ => input.extend(WORDS[random(&mut state) as usize % WORDS.len()].bytes()),
                }
            }
            // The server may close before it has read everything.
            let _ = client.socket.write_all(&input);
            let _ = client.socket.shutdown(std::net::Shutdown::Write);
            let _ = client.socket.read_to_end(&mut Vec::new());
        }
        let mut client = before_mail(&program);
        client.send("the last\r\n.\r\n");
        expect(&mut client, &[250]);
        program.signal("TERM");
        let ended = program.end();
        assert!(ended.succeeds().stdout.last().unwrap().contains("the last"), "{ended:?}");
        let panicked = ended.stderr.iter().find(|line| line.contains("panic"));
        assert_eq!(panicked, None);
    });
}

// ---- the stop

#[test]
fn a_stop_gives_421_to_clients_that_send_no_mail_in_every_mode() {
    in_each_mode(&["--drain", "60"], |mode, program| {
        let mut clients = vec![greeted(&program)];
        if mode != "inline" {
            clients.push(before_mail(&program));
            let mut client = greeted(&program);
            client.send(ENVELOPE);
            expect(&mut client, &[250, 250]);
            clients.push(client);
        }
        stop(program, 0);
        for mut client in clients {
            expect(&mut client, &[421]);
            client.expect_end();
        }
    });
}

#[test]
fn a_mail_that_has_begun_to_come_before_the_stop_is_taken_in_every_mode() {
    in_each_mode(&["--drain", "60"], |_, program| {
        let mut client = before_mail(&program);
        client.send("begun");
        // A part that has been read: the server would otherwise stop before it.
        thread::sleep(Duration::from_millis(200));
        program.signal("TERM");
        client.expect_silence();
        client.send(" and ended\r\n.\r\nMAIL FROM:<a@b>\r\n");
        expect(&mut client, &[250, 421]);
        client.expect_end();
        assert_eq!(data(&mail(&program)), b"begun and ended\r\n");
        program.end().succeeds();
    });
}

// ---- stdout

/// A server whose stdout is read only when the test says so. Dropping it kills it.
struct Unread {
    process: Child,
    /// `None` when it is closed.
    stdout: Option<BufReader<ChildStdout>>,
    url: String,
}

/// Starts it, and reads the line with its address.
fn serve_unread(arguments: &[&str]) -> Unread {
    let mut process = Command::new(example("smtp"))
        .args(["--listen", "tcp://127.0.0.1:0"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = Some(BufReader::new(process.stdout.take().unwrap()));
    let mut server = Unread { process, stdout, url: String::new() };
    let line = server.line();
    server.url = line.trim_end().strip_prefix("listening on ").unwrap().to_owned();
    server
}

impl Unread {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        line
    }

    /// A client that may send its mail.
    fn before_mail(&self) -> Client {
        let mut client = connect(&self.url);
        client.send([HELLO, ENVELOPE, "DATA\r\n"].concat());
        expect(&mut client, &[220, 250, 250, 250, 354]);
        client
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        // A child of a server that forks may still write: its pipe is closed before.
        self.stdout = None;
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A mail that is longer than what a pipe takes.
fn long_text() -> String {
    "0123456789abcde\r\n".repeat(20_000)
}

#[test]
fn a_mail_is_accepted_when_its_line_is_written_and_others_are_served_meanwhile() {
    for mode in MODES {
        println!("under {mode}");
        let mut server = serve_unread(&["--mode", mode]);
        let mut client = server.before_mail();
        client.send(long_text()).send(".\r\nNOOP\r\n").expect_silence();
        if mode != "inline" {
            let mut other = connect(&server.url);
            other.send(HELLO);
            expect(&mut other, &[220, 250]);
        }
        let line = server.line();
        expect(&mut client, &[250, 250]);
        assert!(data(&serde_json::from_str(&line).unwrap()) == long_text().as_bytes());
    }
}

#[test]
fn a_mail_that_cannot_be_written_is_not_accepted() {
    for mode in MODES {
        println!("under {mode}");
        let mut server = serve_unread(&["--mode", mode]);
        server.stdout = None;
        let mut client = server.before_mail();
        client.send(".\r\nNOOP\r\n");
        expect(&mut client, &[451, 250]);
    }
}

#[test]
fn a_stop_does_not_wait_for_a_reader_of_stdout_beyond_the_drain_deadline() {
    // Under inline the handler itself waits for the reader, on the thread of the loop.
    for mode in MODES.into_iter().filter(|mode| *mode != "inline") {
        println!("under {mode}");
        let mut server = serve_unread(&["--mode", mode, "--drain", "0.5"]);
        let mut client = server.before_mail();
        client.send(long_text()).send(".\r\n").expect_silence();
        let kill = format!("kill -TERM {}", server.process.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let mut status = None;
        wait_until("the server exits", || {
            status = server.process.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().code(), Some(0));
        // The mail was not accepted.
        let mut rest = Vec::new();
        let _ = client.socket.read_to_end(&mut rest);
        assert_eq!(text(&rest), "");
    }
}

#[test]
fn mails_of_clients_that_disappear_wait_up_to_a_limit_while_nothing_reads_stdout() {
    let server = serve_unread(&[]);
    let text = ("x".repeat(998) + "\r\n").repeat(8000);
    for _ in 0..16 {
        let mut client = server.before_mail();
        client.send(&text).send(".\r\n");
        // Either no reply comes, as the mail waits, or it is refused at once.
        client.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut reply = [0; 3];
        if client.socket.read_exact(&mut reply).is_ok() {
            return assert_eq!(&reply, b"452");
        }
    }
    panic!("128 MB of mails wait");
}

#[test]
fn the_long_lines_of_many_clients_do_not_mix_in_any_mode() {
    in_each_mode(&[], |_, program| {
        let url = program.urls()[0].clone();
        let clients: Vec<_> = (0..8)
            .map(|number: u8| {
                let url = url.clone();
                thread::spawn(move || {
                    let line = char::from(b'a' + number).to_string().repeat(90) + "\r\n";
                    let mut client = connect(&url);
                    client.send([HELLO, ENVELOPE, "DATA\r\n"].concat());
                    expect(&mut client, &[220, 250, 250, 250, 354]);
                    client.send(line.repeat(3000)).send(".\r\nQUIT\r\n");
                    expect(&mut client, &[250, 221]);
                })
            })
            .collect();
        let mut seen = Vec::new();
        for _ in 0..8 {
            let data = data(&mail(&program));
            assert_eq!(data.len(), 92 * 3000);
            assert!(data.chunks(92).all(|line| line == &data[..92]));
            seen.push(data[0]);
        }
        clients.into_iter().for_each(|client| client.join().unwrap());
        seen.sort();
        assert_eq!(seen, b"abcdefgh");
        stop(program, 8);
    });
}

// ---- command line

#[test]
fn help_shows_the_options_and_unusable_ones_are_one_line_and_code_2() {
    let help = run("smtp", &["--help"]).succeeds().stdout.join("\n");
    for shown in
        ["[default: tcp://127.0.0.1:2525]", "--max-size", "[default: 10485760]", "[default: 300]"]
    {
        assert!(help.contains(shown), "{shown} is not in\n{help}");
    }
    for arguments in [
        ["--max-size", "0"],
        ["--max-size", "much"],
        ["--name", ""],
        ["--name", "a b"],
        ["--idle", "-1"],
        ["--listen", "udp://127.0.0.1:0"],
        ["--mode", "threads"],
    ] {
        run("smtp", &arguments).expect_failure(2);
    }
    let program = serve_tcp("smtp", "reactor");
    let url = program.urls()[0].clone();
    assert!(run("smtp", &["--listen", &url]).expect_failure(1).contains(&url));
    wait_until("the server still greets", || program.connect().line().starts_with("220 "));
    stop(program, 0);
}
