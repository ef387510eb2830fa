//! The example `syslog` as a program, with `logger`, Python's `SysLogHandler` and rsyslog as its
//! senders; and that no line is lost when nobody reads them.

#[path = "support/programs.rs"]
mod programs;
#[path = "support/tools.rs"]
mod tools;

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use programs::{Client, Directory, Program, connect, example, run, serve, text, wait_until};
use serde_json::{Value, json};
use tools::have_programs;

const MODES: [&str; 5] = ["reactor", "offload", "inline", "threading", "pool"];

/// The fields of a line, in the order of the arrays of the tests.
const FIELDS: [&str; 8] =
    ["facility", "severity", "timestamp", "hostname", "app", "procid", "msgid", "message"];

/// A server on all four transports: UDP, TCP, and Unix datagrams and streams in `directory`.
fn server(directory: &Directory, mode: &str) -> Program {
    let (datagrams, streams) = (directory.url("unixgram"), directory.url("unix"));
    let urls = ["udp://127.0.0.1:0", "tcp://127.0.0.1:0", &datagrams, &streams];
    serve("syslog", &urls, &["--mode", mode])
}

fn port(program: &Program, listener: usize) -> &str {
    program.urls()[listener].rsplit(':').next().unwrap()
}

/// The next line that the program prints: it has exactly the fields of a message.
#[track_caller]
fn next_message(program: &Program) -> Value {
    let line = program.next_line().unwrap();
    let message: Value = serde_json::from_str(&line).unwrap();
    let names: Vec<_> = message.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = [&FIELDS[..], &["peer"]].concat();
    expected.sort_unstable();
    assert_eq!(names, expected, "{line}");
    message
}

/// Checks fields of the next message, in the order of [`FIELDS`]; `*` stands for any text, `-` for
/// null.
#[track_caller]
fn expect(program: &Program, expected: [&str; 8]) -> Value {
    let message = next_message(program);
    for (name, value) in FIELDS.iter().zip(expected) {
        let matches = match value {
            "*" => message[name].is_string(),
            "-" => message[name].is_null(),
            _ => message[name] == value,
        };
        assert!(matches, "{name} of {message} is not {value}");
    }
    message
}

/// Stops the program. Returns what it has counted: received, dropped by the kernel, written.
#[track_caller]
fn stop(program: Program) -> [u64; 3] {
    program.signal("TERM");
    let ended = program.end();
    totals(ended.succeeds().stderr.last().unwrap())
}

#[track_caller]
fn totals(line: &str) -> [u64; 3] {
    let numbers = line.split(", ").map(|part| part.rsplit(' ').next().unwrap().parse().unwrap());
    numbers.collect::<Vec<u64>>().try_into().unwrap()
}

// ---- logger

#[test]
fn logger_is_understood_over_each_of_its_transports() {
    if !have_programs(&["logger"]) {
        return;
    }
    let directory = Directory::new();
    let server = server(&directory, "reactor");
    let logger = |arguments: &str| {
        let status = Command::new("logger").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "logger {arguments}");
    };
    let (udp, tcp) = (port(&server, 0), port(&server, 1));
    let to = |port: &str| format!("--server 127.0.0.1 --port {port} --tag app --id=77");
    let udp = format!("{} --udp", to(udp));
    let tcp = format!("{} --tcp", to(tcp));
    let unix = |name| format!("--socket {} --tag app --id=77", directory.path(name).display());

    logger(&format!("{udp} --priority local3.err --msgid ID47 hello"));
    let message = expect(&server, ["local3", "err", "*", "*", "app", "77", "ID47", "hello"]);
    assert!(message["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{message}");
    logger(&format!("{udp} --rfc3164 hello"));
    expect(&server, ["user", "notice", "*", "*", "app", "77", "-", "hello"]);
    for counting in ["", " --octet-count"] {
        logger(&format!("{tcp}{counting} --rfc5424=notq hello"));
        expect(&server, ["user", "notice", "*", "*", "app", "77", "-", "hello"]);
        logger(&format!("{tcp}{counting} --rfc3164 --priority kern.debug hello"));
        // A program other than the kernel cannot send as the kernel.
        expect(&server, ["user", "debug", "*", "*", "app", "77", "-", "hello"]);
    }
    for name in ["unixgram", "unix"] {
        logger(&format!("{} hello", unix(name)));
        expect(&server, ["user", "notice", "*", "-", "app", "77", "-", "hello"]);
        let data = r#"--sd-id a@1 --sd-param b="\]""#;
        logger(&format!("{} --rfc5424 {data} hello", unix(name)));
        expect(&server, ["user", "notice", "*", "*", "app", "77", "-", "hello"]);
    }
    assert_eq!(stop(server), [10, 0, 10]);
}

// ---- Python

#[test]
fn pythons_handler_is_understood_over_each_of_its_transports() {
    if !have_programs(&["python3"]) {
        return;
    }
    let directory = Directory::new();
    let server = server(&directory, "reactor");
    let program = "
import logging, logging.handlers, socket, sys
udp, tcp, path, stream = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
for kind, address in [(socket.SOCK_DGRAM, ('127.0.0.1', udp)), (socket.SOCK_DGRAM, path),
                      (socket.SOCK_STREAM, ('127.0.0.1', tcp)), (socket.SOCK_STREAM, stream)]:
    handler = logging.handlers.SysLogHandler(address, facility='local1', socktype=kind)
    logger = logging.getLogger(str((kind, address)))
    logger.addHandler(handler)
    logger.warning('größer: %d', 1)
    logger.error('again')
    handler.close()
";
    let paths = ["unixgram", "unix"].map(|name| directory.path(name));
    let output = Command::new("timeout")
        .args(["30", "python3", "-c", program, port(&server, 0), port(&server, 1)])
        .args(&paths)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut found: Vec<_> = (0..8).map(|_| next_message(&server)).collect();
    found.iter_mut().for_each(|message| drop(message["peer"].take()));
    for (severity, text) in [("warning", "größer: 1"), ("err", "again")] {
        let expected = json!({
            "facility": "local1", "severity": severity, "timestamp": null, "hostname": null,
            "app": null, "procid": null, "msgid": null, "message": text, "peer": null,
        });
        assert_eq!(found.iter().filter(|message| **message == expected).count(), 4, "{found:?}");
    }
    assert_eq!(stop(server), [8, 0, 8]);
}

// ---- rsyslog

/// A process that is killed in the end.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn rsyslog_forwards_to_it_in_each_of_its_formats() {
    if !have_programs(&["rsyslogd"]) {
        return;
    }
    let directory = Directory::new();
    let server = server(&directory, "reactor");
    let (udp, tcp) = (port(&server, 0), port(&server, 1));
    let input = directory.path("input");
    let forward = |protocol: &str, port: &str, framing: &str, template: &str| {
        format!(
            "action(type=\"omfwd\" target=\"127.0.0.1\" protocol=\"{protocol}\" port=\"{port}\" \
             tcp_framing=\"{framing}\" template=\"RSYSLOG_{template}\")\n"
        )
    };
    let configuration = [
        format!(
            "module(load=\"imuxsock\" sysSock.use=\"off\")\n\
             input(type=\"imuxsock\" socket=\"{}\" usePidFromSystem=\"off\")\n\
             if ($programname != \"app\") then stop\n",
            input.display()
        ),
        forward("udp", udp, "traditional", "TraditionalForwardFormat"),
        forward("udp", udp, "traditional", "ForwardFormat"),
        forward("tcp", tcp, "traditional", "SyslogProtocol23Format"),
        forward("tcp", tcp, "octet-counted", "SyslogProtocol23Format"),
        forward("tcp", tcp, "octet-counted", "TraditionalForwardFormat"),
    ];
    let file = directory.path("rsyslog.conf");
    fs::write(&file, configuration.concat()).unwrap();
    let rsyslog = Command::new("rsyslogd")
        .args(["-n", "-i", "NONE", "-f"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let _rsyslog = Killed(rsyslog);
    let sender = UnixDatagram::unbound().unwrap();
    wait_until("rsyslog listens", || sender.connect(&input).is_ok());
    sender.send(b"<149>Nov 30 09:05:00 app[12]: forwarded: text").unwrap();
    for _ in 0..5 {
        let message = expect(&server, ["local2", "notice", "*", "*", "app", "12", "-", "*"]);
        // In its RFC 5424 format, rsyslog sends the space after the tag as a part of the text.
        assert_eq!(message["message"].as_str().unwrap().trim_start(), "forwarded: text");
    }
    assert_eq!(stop(server), [5, 0, 5]);
}

// ---- transports and modes

#[test]
fn a_message_of_each_transport_is_one_line_under_every_mode() {
    for mode in MODES {
        let directory = Directory::new();
        let server = server(&directory, mode);
        for (number, url) in server.urls().to_vec().into_iter().enumerate() {
            let mut client = connect(&url);
            client.send(format!("<13>1 - - - - - - {number} über\n"));
            client.socket.shutdown(std::net::Shutdown::Write).ok();
            let message = next_message(&server);
            assert_eq!(message["message"], format!("{number} über"), "{mode}");
        }
        assert_eq!(stop(server), [4, 0, 4], "{mode}");
    }
}

#[test]
fn bytes_that_are_no_message_are_a_text_and_others_are_served() {
    let directory = Directory::new();
    let server = server(&directory, "reactor");
    let urls = server.urls().to_vec();
    let junk: [&[u8]; 7] =
        [b"", b"\xff\xfe", b"<999>x", b"<13>1 - - [", b"<\"\\\x01>", b"99 bottles", b"0 <1>"];
    for url in [&urls[0], &urls[2]] {
        let mut client = connect(url);
        for datagram in junk {
            client.send(datagram);
            let message = next_message(&server);
            assert_eq!(message["facility"], "user", "{datagram:?}");
        }
    }
    for url in [&urls[1], &urls[3]] {
        let mut client = connect(url);
        for line in &junk[1..] {
            client.send(line).send("\n");
            assert_eq!(next_message(&server)["severity"], "notice", "{line:?}");
        }
        // A counted message that never comes ends its own connection.
        client.send("4000 <13>begun").half_close().expect_end();
    }
    // Neither is a message without an end, of which memory keeps only the beginning.
    let mut endless = connect(&urls[1]);
    endless.send(vec![b'x'; 1 << 20]);
    assert_eq!(next_message(&server)["message"].as_str().unwrap().len(), 64 * 1024);
    endless.send("\n<0>next\n");
    expect(&server, ["kern", "emerg", "-", "-", "-", "-", "-", "next"]);
    stop(server);
}

#[test]
fn random_bytes_on_every_transport_leave_every_line_valid_and_the_server_alive() {
    let directory = Directory::new();
    let server = server(&directory, "reactor");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let urls = server.urls().to_vec();
    let mut clients: Vec<Client> = urls.iter().map(|url| connect(url)).collect();
    const PARTS: [&[u8]; 12] = [
        b"<13>",
        b"1 ",
        b"- ",
        b"[a b=\"",
        b"\\",
        b"\"]",
        b"\n",
        b"\0",
        b"17 <1>",
        b"\xff",
        b"Nov 30 09:05:00 ",
        b"host app[1]: ",
    ];
    for _ in 0..500 {
        for client in &mut clients {
            let parts = (0..random() % 12).map(|_| PARTS[random() as usize % PARTS.len()]);
            client.send(parts.collect::<Vec<_>>().concat());
        }
    }
    drop(clients);
    connect(&urls[1]).send("<0>the end\n");
    while next_message(&server)["message"] != "the end" {}
    stop(server);
}

// ---- the command line

#[test]
fn help_shows_both_default_addresses_and_forking_is_refused() {
    let help = run("syslog", &["--help"]).succeeds().stdout.join("\n");
    let addresses = "[default: udp://127.0.0.1:5514 tcp://127.0.0.1:5514]";
    assert!(help.contains(addresses), "{help}");
    assert!(run("syslog", &["--mode", "forking"]).expect_failure(2).contains("forking"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", taken.local_addr().unwrap());
    assert!(run("syslog", &["--listen", &url]).expect_failure(1).contains(&url));
}

// ---- a reader that does not read

/// A server whose stdout is a pipe that the test reads when it chooses to.
struct Unread {
    process: Child,
    /// Taken by the test that reads it elsewhere, or closes it.
    lines: Option<BufReader<ChildStdout>>,
    urls: Vec<String>,
}

impl Unread {
    fn start(urls: &[&str], arguments: &[&str]) -> Self {
        let mut command = Command::new(example("syslog"));
        for url in urls {
            command.args(["--listen", url]);
        }
        let mut process = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap());
        let urls = urls.iter().map(|_| {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            line.trim_end().strip_prefix("listening on ").unwrap().to_owned()
        });
        let urls = urls.collect();
        Unread { process, lines: Some(lines), urls }
    }

    fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.process.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits until it has exited. Returns the exit code and the last line on stderr.
    fn end(&mut self) -> (Option<i32>, String) {
        let mut status = None;
        wait_until("the program exits", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        let stderr = BufReader::new(self.process.stderr.take().unwrap());
        (status.unwrap().code(), stderr.lines().map(Result::unwrap).last().unwrap_or_default())
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends messages that are numbered from 0, and returns when the server has received all of them.
fn send_numbered(url: &str, count: usize) -> thread::JoinHandle<()> {
    let mut client = connect(url);
    let is_stream = url.starts_with("tcp") || url.starts_with("unix:");
    thread::spawn(move || {
        for number in 0..count {
            let padding = "x".repeat(500);
            let end = if is_stream { "\n" } else { "" };
            let message = format!("<13>1 - - - {number} - - {padding}{end}");
            let mut rest = message.as_bytes();
            while !rest.is_empty() {
                match client.socket.write(rest) {
                    Ok(sent) => rest = &rest[sent..],
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => panic!("{error} after {number} messages"),
                }
            }
        }
        if is_stream {
            client.half_close().expect_end();
        }
    })
}

#[test]
fn senders_on_tcp_and_unix_sockets_wait_while_nobody_reads_and_lose_nothing() {
    const COUNT: usize = 10_000; // 7 MB of lines each
    let directory = Directory::new();
    let (datagrams, streams) = (directory.url("unixgram"), directory.url("unix"));
    for mode in MODES {
        let mut server =
            Unread::start(&["tcp://127.0.0.1:0", &datagrams, &streams], &["--mode", mode]);
        // `inline` serves one connection at a time.
        let urls = if mode == "inline" { &server.urls[1..2] } else { &server.urls[..] };
        let senders: Vec<_> = urls.iter().map(|url| send_numbered(url, COUNT)).collect();
        thread::sleep(Duration::from_millis(200));
        assert!(senders.iter().all(|sender| !sender.is_finished()), "{mode}: the senders wait");
        let mut counts = vec![0; COUNT];
        let lines = server.lines.take().unwrap().lines();
        for line in lines.map(Result::unwrap).take(COUNT * senders.len()) {
            let (_, number) = line.split_once("\"procid\":\"").unwrap();
            counts[number.split('"').next().unwrap().parse::<usize>().unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| *count == senders.len()), "{mode}");
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        server.signal("TERM");
        let total = (COUNT * urls.len()) as u64;
        let (code, said) = server.end();
        assert_eq!((code, totals(&said)), (Some(0), [total, 0, total]), "{mode}");
    }
}

#[test]
fn a_server_whose_lines_nobody_reads_stops_at_its_drain_deadline() {
    let mut server = Unread::start(&["tcp://127.0.0.1:0"], &["--drain", "0.3"]);
    let mut client = connect(&server.urls[0]);
    client.socket.set_nonblocking(true).unwrap();
    let message = format!("<13>1 - - - - - - {}\n", "x".repeat(1000)).repeat(100);
    wait_until("the client has to wait", || {
        thread::sleep(Duration::from_millis(20));
        while client.socket.write(message.as_bytes()).is_ok() {}
        client.socket.write(b"x").is_err()
    });
    server.signal("TERM");
    let (code, said) = server.end();
    assert_eq!(code, Some(1));
    assert!(said.starts_with("error: stdout: ") && said.contains("lines are not taken"), "{said}");
}

#[test]
fn a_server_whose_reader_has_gone_stops_with_code_1() {
    let mut server = Unread::start(&["tcp://127.0.0.1:0"], &[]);
    let mut client = connect(&server.urls[0]);
    server.lines = None;
    client.send("<13>one\n");
    wait_until("a write has failed", || {
        // The server stops with a message after the write that failed.
        client.socket.write(b"<13>more\n").is_err() || server.process.try_wait().unwrap().is_some()
    });
    let (code, said) = server.end();
    assert_eq!(code, Some(1));
    assert!(said.starts_with("error: stdout: "), "{said}");
}

/// How many bytes wait in the receive buffer of this UDP socket: proc(5).
#[cfg(target_os = "linux")]
fn receive_queue(url: &str) -> u64 {
    let port: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
    let table = fs::read_to_string("/proc/net/udp").unwrap();
    let line = table.lines().find(|line| line.contains(&format!(":{port:04X} 00000000:0000")));
    let queues = line.unwrap().split_whitespace().nth(4).unwrap();
    u64::from_str_radix(queues.split(':').nth(1).unwrap(), 16).unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn every_udp_datagram_is_written_or_counted_as_dropped() {
    const COUNT: u64 = 30_000;
    let mut server = Unread::start(&["udp://127.0.0.1:0"], &[]);
    let mut client = connect(&server.urls[0]);
    for number in 0..COUNT {
        client.send(format!("<13>1 - - - {number} - - {}", "x".repeat(300)));
    }
    // Nobody has read, so that some are dropped. Now read, and stop when nothing is left.
    let lines = server.lines.take().unwrap();
    let reader = thread::spawn(move || lines.lines().count() as u64);
    wait_until("what was kept is received", || receive_queue(&server.urls[0]) == 0);
    server.signal("TERM");
    let (code, said) = server.end();
    let [received, dropped, written] = totals(&said);
    assert_eq!((code, received + dropped), (Some(0), COUNT), "{said}");
    assert!(dropped > 0, "{said}");
    assert_eq!((received, received), (written, reader.join().unwrap()));
}
