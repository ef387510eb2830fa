//! The files in `contrib`, which docs/deploying.md explains: systemd accepts the units, the command
//! lines in them work, and a server works as process 1 and on a socket that systemd has bound.
#![cfg(target_os = "linux")]

#[path = "support/programs.rs"]
mod programs;
#[path = "support/tools.rs"]
mod tools;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use programs::{A_WHILE, DEADLINE, Directory, example, spawn, wait_until};
use socketserver::{Server, handler_fn};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The value of a line `NAME=VALUE`.
fn value<'a>(unit: &'a str, name: &str) -> &'a str {
    let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("{name}: {unit}"))
}

/// The arguments of a command line, without the program.
fn arguments(command_line: &str) -> Vec<String> {
    command_line.split_whitespace().skip(1).map(str::to_owned).collect()
}

/// The argument after this option.
fn option<'a>(arguments: &'a [String], name: &str) -> &'a str {
    let at = arguments.iter().position(|argument| argument == name).expect("the option");
    &arguments[at + 1]
}

/// The arguments of the image's entry point.
fn entry_point() -> Vec<String> {
    let file = read("contrib/Containerfile");
    let line = file.lines().find_map(|line| line.strip_prefix("ENTRYPOINT ")).expect("the line");
    serde_json::from_str::<Vec<String>>(line).unwrap().split_off(1)
}

/// Replaces the fixed address, which may be in use.
fn on_a_free_port(mut arguments: Vec<String>) -> Vec<String> {
    for argument in &mut arguments {
        *argument = argument.replace("0.0.0.0:9999", "127.0.0.1:0");
    }
    arguments
}

#[test]
fn systemd_accepts_the_units() {
    if !tools::have_programs(&["systemd-analyze"]) {
        return;
    }
    let directory = Directory::new();
    let names = ["echo.service", "activated.socket", "activated.service"];
    let paths = names.map(|name| {
        let echo = example("echo").display().to_string();
        let unit = read(&format!("contrib/{name}"));
        // It checks that the program exists.
        let unit = unit.replace("/usr/local/bin/echo-server", &echo);
        let unit = unit.replace("/usr/local/bin/activated-server", &echo);
        let path = directory.path(name);
        fs::write(&path, unit).unwrap();
        path
    });
    let output = Command::new("systemd-analyze").arg("verify").args(&paths).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    // It also reads the units of this machine, which may have faults of their own.
    let about_ours = |line: &&str| names.iter().any(|name| line.contains(name));
    let faults: Vec<_> = told.lines().filter(about_ours).collect();
    assert!(output.status.success() && faults.is_empty(), "{told}");
}

#[test]
fn the_stop_of_a_server_is_shorter_than_the_patience_of_its_supervisor() {
    let unit = read("contrib/echo.service");
    let drain: u64 = option(&arguments(value(&unit, "ExecStart")), "--drain").parse().unwrap();
    assert!(drain < value(&unit, "TimeoutStopSec").parse().unwrap());
    let docker_stop = 10;
    assert!(option(&entry_point(), "--drain").parse::<u64>().unwrap() < docker_stop);
}

#[test]
fn the_command_line_of_the_unit_starts_a_server() {
    let directory = Directory::new();
    let unit = read("contrib/echo.service");
    let socket = directory.path("echo.socket").display().to_string();
    let arguments = on_a_free_port(arguments(value(&unit, "ExecStart")));
    let arguments =
        arguments.iter().map(|argument| argument.replace("/run/echo/echo.socket", &socket));
    let program = spawn(Command::new(example("echo")).args(arguments));
    assert!(program.next_line().unwrap().starts_with("listening on tcp://127.0.0.1:"));
    assert_eq!(program.next_line().unwrap(), format!("listening on unix://{socket}"));
    program.signal("TERM");
    program.end().succeeds();
}

/// Runs a program as process 1 of a namespace; returns it with its number outside.
fn as_process_1(command: &[String]) -> Option<(programs::Program, String)> {
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child", "--"]);
    let mut allowed = Command::new("unshare");
    allowed.args(["--pid", "--fork", "--", "true"]);
    if !tools::have_programs(&["unshare"])
        || !tools::have(may_run(&mut allowed), "the right to make a namespace of processes")
    {
        return None;
    }
    let program = spawn(unshare.args(command));
    let children = format!("/proc/{0}/task/{0}/children", program.id());
    let mut child = String::new();
    wait_until("the program runs in its namespace", || {
        child = fs::read_to_string(&children).unwrap().trim().to_owned();
        let command = fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
        !child.is_empty() && !command.starts_with("unshare")
    });
    Some((program, child))
}

fn may_run(command: &mut Command) -> bool {
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn terminate(process: &str) {
    assert!(
        Command::new("sh")
            .args(["-c", &format!("kill -TERM {process}")])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn a_server_that_is_process_1_stops_at_sigterm_and_other_programs_do_not() {
    let echo = example("echo").display().to_string();
    let command = [vec![echo], on_a_free_port(entry_point())].concat();
    let Some((server, process)) = as_process_1(&command) else { return };
    assert!(server.next_line().unwrap().starts_with("listening on tcp://127.0.0.1:"));
    terminate(&process);
    server.end().succeeds();

    let sleep = ["sleep", "600"].map(str::to_owned);
    let Some((_sleep, process)) = as_process_1(&sleep) else { return };
    terminate(&process);
    thread::sleep(A_WHILE);
    assert!(Path::new(&format!("/proc/{process}/cmdline")).exists(), "sleep has no handler");
}

/// The variable with which this test starts itself as the server.
const IS_SERVER: &str = "SOCKETSERVER_TEST_ON_STANDARD_INPUT";

#[test]
fn a_socket_that_is_standard_input_is_served() {
    if std::env::var_os(IS_SERVER).is_some() {
        let socket = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let server = Server::from_socket(socket).unwrap();
        let mut server = server.serve(|_| handler_fn(|message, cx| cx.send(message))).unwrap();
        server.stop_on_signals().unwrap();
        server.serve_forever().unwrap();
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = TcpStream::connect(address).unwrap(); // before there is a server
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_socket_that_is_standard_input_is_served"])
        .env(IS_SERVER, "1")
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    let read = client.read_to_string(&mut answer);
    terminate(&server.id().to_string());
    let mut status = None;
    wait_until("the server stops", || {
        status = server.try_wait().unwrap();
        status.is_some()
    });
    read.unwrap();
    assert_eq!(answer, "hello");
    assert!(status.unwrap().success());
}

#[test]
fn the_script_measures_a_server() {
    if !tools::have_programs(&["strip", "awk"]) {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/measure");
    let output = Command::new(script).arg(example("echo")).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    let figures = told.lines().nth(1).unwrap_or_default();
    let figures: Vec<u64> =
        figures.split_whitespace().skip(1).map(|figure| figure.parse().unwrap()).collect();
    assert_eq!(figures.len(), 4, "{told}");
    assert!(figures.iter().all(|figure| *figure > 0), "{told}");
    assert_eq!(figures[3], 1, "it has one thread");
}
