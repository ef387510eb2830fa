//! The system calls of a server, for seccomp: the example `echo` under `strace`, in each mode, against
//! the lists of `docs/seccomp.md`. The lists are those of x86-64 with glibc.
#![cfg(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]

#[path = "support/programs.rs"]
mod programs;
#[path = "support/tools.rs"]
mod tools;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use programs::{Directory, connect, example, spawn, wait_until};

const MODES: [&str; 6] = ["reactor", "offload", "inline", "threading", "pool", "forking"];

/// More than the kernel's buffers and the server's hold together.
const MUCH: usize = 4 << 20;

type Calls = BTreeSet<String>;

/// The lists of the page.
struct Lists {
    /// Each call while the server serves, with the mark for each mode.
    serving: Vec<(String, Vec<String>)>,
    starting: Calls,
}

impl Lists {
    fn read() -> Self {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/seccomp.md");
        let page = fs::read_to_string(page).unwrap();
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
        let serving = rows.map(|row| {
            let mut cells = row.split(" | ").map(str::to_owned);
            let name = cells.next().unwrap().trim_end_matches('`').to_owned();
            (name, cells.take(MODES.len()).collect())
        });
        let (_, starting) = page.split_once("## Until it serves").expect("the second list");
        let (starting, _) = starting.split_once("\n## ").expect("the end of the second list");
        let (_, starting) = starting.split_once(":\n").expect("the text before the list");
        let starting = starting.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Lists { serving: serving.collect(), starting }
    }

    /// The calls with one of these marks for a mode.
    fn marked(&self, mode: &str, marks: &[&str]) -> Calls {
        let column = MODES.iter().position(|name| *name == mode).unwrap();
        let marked = self.serving.iter().filter(|(_, cells)| marks.contains(&&cells[column][..]));
        marked.map(|(name, _)| name.clone()).collect()
    }
}

/// The calls of a trace, before and after the server has printed its first address.
fn calls(trace: &str) -> [Calls; 2] {
    let mut calls = [Calls::new(), Calls::new()];
    let mut serving = 0;
    for line in trace.lines() {
        // `1234  accept4(5, …`, `1234  <... read resumed>…`, `1234  +++ exited with 0 +++`
        let (_process, line) = line.split_once(' ').unwrap_or_default();
        let Some((name, arguments)) = line.trim_start().split_once('(') else { continue };
        if name == "write" && arguments.starts_with("1, \"listening on ") {
            serving = 1;
        }
        if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            calls[serving].insert(name.to_owned());
        }
    }
    calls
}

/// A client that sends much before it reads, and ends; one that resets.
fn use_stream(url: &str) {
    let mut client = connect(url);
    client.send("hello").expect("hello");
    let mut writer = client.socket.try_clone().unwrap();
    let writes = thread::spawn(move || writer.write_all(&vec![b'x'; MUCH]).unwrap());
    // Nothing is read until the server can take no more.
    thread::sleep(Duration::from_millis(200));
    let mut echo = vec![0; MUCH];
    client.socket.read_exact(&mut echo).unwrap();
    writes.join().unwrap();
    client.half_close().expect_end();
    let mut client = connect(url);
    client.send("hello").expect("hello");
    client.socket.set_linger(Some(Duration::ZERO)).unwrap();
}

/// Runs the server with clients over each transport, and returns its trace.
fn trace(mode: &str) -> String {
    let directory = Directory::new();
    let log = directory.path("trace");
    let mut command = Command::new("strace");
    // With -D the started process is the server, and strace is its grandchild.
    command.args(["-D", "-f", "-o"]).arg(&log).arg(example("echo"));
    command.args(["--mode", mode, "--workers", "2"]);
    let (unix, unixgram) = (directory.url("unix"), directory.url("unixgram"));
    for url in ["tcp://127.0.0.1:0", &unix, "udp://127.0.0.1:0", &unixgram] {
        command.args(["--listen", url]);
    }
    let program = spawn(&mut command);
    let urls = [(); 4].map(|()| {
        let line = program.next_line().expect("a line");
        line.strip_prefix("listening on ").expect("an address").to_owned()
    });
    let [tcp, stream, udp, datagrams] = &urls;
    use_stream(tcp);
    use_stream(stream);
    connect(udp).send("hello").expect("hello");
    connect(datagrams).send("hello").expect("hello");
    let mut idle = connect(tcp);
    idle.send("hello").expect("hello");
    let process = program.id();
    program.signal("TERM");
    program.end().succeeds();
    let mut trace = String::new();
    wait_until("strace has written its log", || {
        trace = fs::read_to_string(&log).unwrap();
        let last = trace.lines().last().unwrap_or_default();
        last.starts_with(&process.to_string()) && last.ends_with("+++ exited with 0 +++")
    });
    trace
}

/// Whether `strace` exists and may trace.
fn can_trace() -> bool {
    let mut command = Command::new("strace");
    command.args(["-D", "-o", "/dev/null", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
    tools::have(command.status().is_ok_and(|status| status.success()), "strace, or its right,")
}

#[test]
fn each_mode_makes_the_calls_of_its_list_and_no_others() {
    if !can_trace() {
        return;
    }
    let lists = Lists::read();
    let mut faults = Vec::new();
    for mode in MODES {
        let [starting, serving] = calls(&trace(mode));
        let mut expect_none = |what: &str, calls: Vec<&String>| {
            if !calls.is_empty() {
                faults.push(format!("{mode}: {what}: {calls:?}"));
            }
        };
        let listed = lists.marked(mode, &["✓", "(✓)"]);
        expect_none("serving, not listed", serving.difference(&listed).collect());
        let always = lists.marked(mode, &["✓"]);
        expect_none("marked ✓, not used", always.difference(&serving).collect());
        expect_none("starting, not listed", starting.difference(&lists.starting).collect());
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn each_row_has_a_mark_for_each_mode_and_at_least_one_of_them_needs_the_call() {
    let lists = Lists::read();
    assert!(lists.serving.len() > 40 && lists.starting.len() > 20);
    let mut names = BTreeSet::new();
    for (name, marks) in &lists.serving {
        assert!(names.insert(name), "{name} has two rows");
        assert_eq!(marks.len(), MODES.len(), "{name}");
        assert!(marks.iter().all(|mark| ["✓", "(✓)", "–"].contains(&&mark[..])), "{name}");
        assert!(marks.iter().any(|mark| mark != "–"), "{name}");
    }
}
