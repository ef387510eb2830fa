//! The commands on all pages: each one is run, by a test or by a script in `.ci`.
//!
//! Commands that start an example run here. For all others the scripts are read: a command that no
//! script contains fails.

#[path = "support/pages.rs"]
mod pages;
#[path = "support/programs.rs"]
mod programs;
#[path = "support/tools.rs"]
mod tools;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use pages::{pages, read, root};
use programs::{Program, connect, example, spawn, spawn_reading};

/// The scripts, of which `.ci/run` starts all others. The published package is without them.
const SCRIPTS: [&str; 3] = [".ci/run", ".ci/commands", ".ci/container"];

/// Commands that are run with other options: the command, the file that runs it, and how.
const RUN_ELSEWHERE: [(&str, &str, &str); 8] = [
    ("cargo test", ".ci/run", "grep -m1 -E '^cargo test' README.md"),
    (".ci/run", ".ci/run", "set -euo pipefail"),
    (".ci/run --full", ".ci/run", "[ \"${1:-}\" = --full ]"),
    (
        "systemd-analyze verify contrib/activated.socket contrib/activated.service \
         contrib/echo.service",
        "tests/deploying.rs",
        "\"systemd-analyze\").arg(\"verify\")",
    ),
    (
        "rustup target add x86_64-unknown-linux-musl",
        ".ci/container",
        "rustup target add \"$target\"",
    ),
    (
        "CARGO_PROFILE_RELEASE_STRIP=symbols cargo build --release --example echo --target x86_64-unknown-linux-musl",
        ".ci/container",
        "CARGO_PROFILE_RELEASE_STRIP=symbols cargo build --release --example echo --target \"$target\"",
    ),
    (
        "podman build -f contrib/Containerfile -t echo \
         target/x86_64-unknown-linux-musl/release/examples",
        ".ci/container",
        "podman build --quiet -f contrib/Containerfile",
    ),
    ("podman run --rm -p 9999:9999 echo", ".ci/container", "podman run -d --name"),
];

/// The commands of a shell script, or of a block of a page: without comments, each on one line, and
/// with the values of variables that hold a command.
fn commands(script: &str) -> Vec<String> {
    let mut variables = vec![("$msrv".to_owned(), oldest_rust())];
    let mut commands = Vec::new();
    for line in script.replace("\\\n", " ").lines() {
        let code = line.split(" #").next().unwrap();
        let code = code.split_whitespace().collect::<Vec<_>>().join(" ");
        if code.is_empty() || code.starts_with('#') {
            continue;
        }
        match code.split_once("=\"") {
            Some((name, value)) if value.starts_with("cargo run") => {
                variables.push((format!("${name}"), value.trim_end_matches('"').to_owned()));
            }
            _ => commands
                .push(variables.iter().fold(code, |code, (name, value)| code.replace(name, value))),
        }
    }
    commands
}

/// The oldest Rust that the crate supports.
fn oldest_rust() -> String {
    env!("CARGO_PKG_RUST_VERSION").to_owned()
}

/// Each command of each page, with the page.
fn commands_of_pages() -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    for page in pages() {
        let text = read(&page);
        let blocks = text.split("```").skip(1).step_by(2);
        let script: String = blocks.filter_map(|block| block.strip_prefix("sh\n")).collect();
        all.extend(commands(&script).into_iter().map(|command| (page.clone(), command)));
    }
    assert!(all.len() > 100, "{all:?}");
    all
}

/// The arguments of a command that runs an example, with its name.
fn example_of(command: &str) -> Option<(&str, Vec<&str>)> {
    let rest = command.strip_prefix("cargo run ")?.trim_start_matches("--release ");
    let (name, arguments) = rest
        .strip_prefix("--example ")?
        .split_once(" -- ")
        .unwrap_or((rest.strip_prefix("--example ")?, ""));
    Some((name, arguments.split_whitespace().collect()))
}

// ---- commands that no example runs

#[test]
fn every_command_is_run_by_a_test_or_by_a_script() {
    if !root().join(SCRIPTS[0]).exists() {
        return;
    }
    let scripts: Vec<_> = SCRIPTS.iter().flat_map(|script| commands(&read(script))).collect();
    let is_in_a_script = |command: &str| {
        let whole = format!(" {command} ");
        scripts.iter().any(|line| format!(" {line} ").contains(&whole))
    };
    let mut faults = Vec::new();
    for (page, command) in commands_of_pages() {
        let is_run_elsewhere = RUN_ELSEWHERE.iter().any(|(name, ..)| *name == command);
        let is_run_here = example_of(&command).is_some() || command == LIMIT;
        if !is_run_here && !is_run_elsewhere && !is_in_a_script(&command) {
            faults.push(format!("{}: {command}", page.display()));
        }
    }
    assert!(faults.is_empty(), "run by nothing:\n{}", faults.join("\n"));
}

#[test]
fn what_is_run_elsewhere_is_found_there_and_is_on_a_page() {
    if !root().join(SCRIPTS[0]).exists() {
        return;
    }
    let commands = commands_of_pages();
    for (command, file, text) in RUN_ELSEWHERE {
        assert!(commands.iter().any(|(_, printed)| printed == command), "{command} is on no page");
        assert!(read(file).contains(text), "{file} does not contain {text}");
    }
    let first = read(SCRIPTS[0]);
    for script in &SCRIPTS[1..] {
        assert!(commands_contain(&first, script), "{script} is not run");
    }
}

fn commands_contain(script: &str, command: &str) -> bool {
    commands(script).iter().any(|line| line == command)
}

#[test]
fn every_example_test_and_script_of_a_command_exists() {
    let mut faults = Vec::new();
    for (page, command) in commands_of_pages() {
        let words: Vec<_> = command.split_whitespace().collect();
        for pair in words.windows(2).filter(|_| words.contains(&"cargo")) {
            let folder = match pair[0] {
                "--example" => "examples",
                "--test" => "tests",
                "--bench" => "benches",
                _ => continue,
            };
            let places =
                [format!("{folder}/{}.rs", pair[1]), format!("{folder}/{}/main.rs", pair[1])];
            if !places.iter().any(|place| root().join(place).exists()) {
                faults.push(format!("{}: {command}", page.display()));
            }
        }
        for word in words.iter().filter(|word| word.starts_with("contrib/")) {
            if !root().join(word).exists() {
                faults.push(format!("{}: {command}", page.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The command of docs/deploying.md that shows the limit of a shell.
const LIMIT: &str = "prlimit --nofile --pid $$";

#[test]
fn the_command_that_shows_the_limit_on_descriptors_works() {
    if !tools::have_programs(&["prlimit"]) {
        return;
    }
    let shown = spawn(Command::new("sh").args(["-c", LIMIT])).end();
    assert!(shown.succeeds().stdout.concat().contains("NOFILE"));
}

// ---- commands that run an example

/// Starts an example with these arguments, at a free port in place of each printed one.
fn serve(name: &str, arguments: &[&str]) -> (Program, String) {
    let mut arguments: Vec<_> =
        arguments.iter().map(|&argument| on_a_free_port(argument)).collect();
    if !arguments.iter().any(|argument| argument == "--listen") {
        arguments.extend(["--listen", "tcp://127.0.0.1:0"].map(str::to_owned));
    }
    let program = spawn(Command::new(example(name)).args(&arguments).stderr(Stdio::null()));
    let line = program.next_line().unwrap_or_else(|| panic!("{name} {arguments:?} has ended"));
    let url = line.strip_prefix("listening on ").expect("its URL").to_owned();
    (program, url)
}

fn on_a_free_port(argument: &str) -> String {
    match argument.rsplit_once(':') {
        Some((address, port)) if argument.contains("://") && port.parse::<u16>().is_ok() => {
            format!("{address}:0")
        }
        _ => argument.to_owned(),
    }
}

fn stop(program: Program) {
    program.signal("TERM");
    program.end().succeeds();
}

#[test]
fn every_command_that_runs_an_example_works() {
    let mut done = Vec::new();
    for (page, command) in commands_of_pages() {
        let Some((name, arguments)) = example_of(&command) else { continue };
        if done.contains(&command) {
            continue;
        }
        eprintln!("{}: {command}", page.display());
        match name {
            "client" => speak_to_a_server(&arguments),
            _ => {
                let (program, url) = serve(name, &arguments);
                if url.starts_with("tcp://") {
                    connect(&url).half_close().expect_end();
                }
                stop(program);
            }
        }
        done.push(command);
    }
    assert!(done.len() >= 5, "{done:?}");
}

/// `client URL` against an echo at another port of the same host.
fn speak_to_a_server(arguments: &[&str]) {
    let [url] = arguments else { panic!("{arguments:?}") };
    let (program, url) = serve("echo", &["--listen", url]);
    let directory = programs::Directory::new();
    let input = directory.path("input");
    fs::write(&input, "hello\n").unwrap();
    let client =
        spawn_reading(Command::new(example("client")).arg(&url), fs::File::open(&input).unwrap());
    assert_eq!(client.next_line().as_deref(), Some("hello"));
    client.end().succeeds();
    stop(program);
}
