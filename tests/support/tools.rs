//! Programs and Python packages that a test needs besides Rust. A test without them is skipped and
//! says so on stderr; with `SOCKETSERVER_REQUIRE_TOOLS=1` it fails.

#![allow(dead_code)] // each test file uses a part of it
#![allow(unreachable_pub)] // nothing outside the test file can use a module of it

use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::thread;

/// Whether each of these programs is on the PATH. Where one is missing, the test that asks must
/// return; this says so.
///
/// # Panics
///
/// If one is missing and `SOCKETSERVER_REQUIRE_TOOLS` is 1.
pub fn have_programs(names: &[&str]) -> bool {
    names.iter().all(|name| have(is_on_path(name), name))
}

/// Whether Python can import each of these modules; [`have_programs`] for the rest.
///
/// # Panics
///
/// If one is missing and `SOCKETSERVER_REQUIRE_TOOLS` is 1.
pub fn have_python_modules(names: &[&str]) -> bool {
    names.iter().all(|name| {
        let import = Command::new("python3")
            .args(["-c", &format!("import {name}")])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
        have(import.is_ok_and(|status| status.success()), &format!("the Python module {name}"))
    })
}

/// Says that the test which runs is skipped if what it needs is not there.
pub fn have(is_there: bool, what: &str) -> bool {
    if is_there {
        return true;
    }
    let required = std::env::var_os("SOCKETSERVER_REQUIRE_TOOLS").is_some_and(|value| value == "1");
    assert!(!required, "{what} is required, and is missing or does not run");
    // Written to stderr itself, because the harness captures the output of tests that pass.
    let test = thread::current();
    let test = test.name().unwrap_or("a test");
    let _ = writeln!(io::stderr(), "skipped: {test}: {what} is missing or does not run");
    false
}

fn is_on_path(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}
