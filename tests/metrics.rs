//! The example `metrics`: the counters of a server in the text format of Prometheus.

#[path = "support/programs.rs"]
mod programs;
#[path = "support/tools.rs"]
mod tools;

use std::io::Write as _;
use std::process::{Command, Stdio};

use programs::{Program, connect, run, serve, text, wait_until};

/// Without `inline`, where a request for the counters waits for the client that is being served.
const MODES: [&str; 5] = ["reactor", "offload", "threading", "pool", "forking"];

/// The program, and the URL where it shows its counters.
fn start(mode: &str) -> (Program, String) {
    let arguments = ["--metrics", "tcp://127.0.0.1:0", "--mode", mode];
    let program = serve("metrics", &["tcp://127.0.0.1:0"], &arguments);
    let line = program.next_line().expect("the address of the counters");
    let url = line.strip_prefix("listening on ").expect("an address").to_owned();
    (program, url)
}

/// Sends a request, and returns the head of the answer and its body.
fn ask(url: &str, request: &str) -> (String, String) {
    let answer = text(&connect(url).send(request).rest());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    (head.to_owned(), body.to_owned())
}

fn get(url: &str) -> String {
    let (head, body) = ask(url, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    body
}

/// The value of a metric.
fn value(body: &str, name: &str) -> u64 {
    let line = body.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("{name}: {body}")).parse().expect("a number")
}

/// Ends the program: its output is one line more than that of other examples.
fn end(program: Program) {
    program.signal("TERM");
    assert_eq!(program.end().succeeds().stdout.len(), 2);
}

#[test]
fn the_counters_move_with_the_clients_in_every_mode() {
    for mode in MODES {
        println!("under {mode}");
        let (program, url) = start(mode);
        let before = get(&url);
        let mut client = program.connect();
        client.send("hello").expect("hello");
        // A thread publishes its numbers when its request has ended.
        client.half_close().expect_end();
        let name = "socketserver_accepted_total";
        wait_until("the client is counted", || value(&get(&url), name) > value(&before, name));
        if mode != "forking" {
            let name = "socketserver_messages_total";
            wait_until("its message is counted", || value(&get(&url), name) > value(&before, name));
        }
        end(program);
    }
}

#[test]
fn each_counter_has_a_help_a_type_and_a_value() {
    let (program, url) = start("reactor");
    let body = get(&url);
    end(program);
    let counters: Vec<_> = socketserver::Counters::default().iter().collect();
    let lines: Vec<_> = body.lines().collect();
    assert_eq!(lines.len(), 3 * counters.len(), "{body}");
    for (lines, counter) in lines.chunks(3).zip(counters) {
        let (_, rest) = lines[0].split_once("# HELP socketserver_").expect("a help");
        let (name, help) = rest.split_once(' ').expect("a text");
        assert!(!help.is_empty() && !help.contains(['\\', '[', '`']), "{help}");
        let (plain, kind) = match name.strip_suffix("_total") {
            Some(plain) => (plain, "counter"),
            None => (name, "gauge"),
        };
        assert_eq!(plain, counter.name);
        assert_eq!(lines[1], format!("# TYPE socketserver_{name} {kind}"));
        value(lines[2], &format!("socketserver_{name}"));
    }
    assert!(body.ends_with('\n'));
}

#[test]
fn the_parser_of_prometheus_client_reads_the_same_counters() {
    if !tools::have_python_modules(&["prometheus_client"]) {
        return;
    }
    let (program, url) = start("reactor");
    program.connect().send("hello").expect("hello");
    let body = get(&url);
    end(program);
    let script = "import sys\n\
        from prometheus_client.parser import text_string_to_metric_families as parse\n\
        for family in parse(sys.stdin.read()):\n    \
            assert len(family.samples) == 1 and family.documentation, family\n    \
            print(family.samples[0].name, int(family.samples[0].value), family.type)\n";
    let mut python = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let read: Vec<_> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    let expected: Vec<_> = samples
        .map(|sample| {
            let total = sample.split(' ').next().is_some_and(|name| name.ends_with("_total"));
            format!("{sample} {}", if total { "counter" } else { "gauge" })
        })
        .collect();
    assert_eq!(read, expected);
}

#[test]
fn other_requests_get_their_status_and_a_bad_one_costs_only_its_connection() {
    let (program, url) = start("reactor");
    let (head, body) = ask(&url, "HEAD /metrics HTTP/1.0\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head}");
    let (head, _) = ask(&url, "GET / HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    let (head, _) = ask(&url, "POST /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
    let (head, _) = ask(&url, "\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
    // A head that is too long is not read to its end.
    let mut client = connect(&url);
    client.send([b'x'; 10_000]);
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client.socket, &mut rest);
    assert_eq!(text(&rest), "");
    assert!(value(&get(&url), "socketserver_framing_errors_total") == 1);
    end(program);
}

#[test]
fn an_unusable_address_of_the_counters_is_one_line_and_code_2() {
    for url in ["127.0.0.1:9464", "http://127.0.0.1:9464", ""] {
        run("metrics", &["--metrics", url]).expect_failure(2);
    }
    let help = run("metrics", &["--help"]).stdout.join("\n");
    assert!(
        help.contains("--metrics") && help.contains("[default: tcp://127.0.0.1:9464]"),
        "{help}"
    );
}
