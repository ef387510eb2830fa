//! A small test harness for tests whose servers run in processes of their own: the test binary
//! starts itself again as the server, before any thread exists, so that forking is safe there. It
//! accepts the arguments of Rust's own harness and prints the same lines.

#![allow(dead_code)] // each test file uses a part of it
#![allow(unreachable_pub)] // nothing outside the test file can use a module of it

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Instant;

/// A test and its name.
pub struct Test {
    pub name: String,
    run: Box<dyn Fn() + Send + Sync>,
}

/// Makes a test from a function.
pub fn test(name: impl Into<String>, run: impl Fn() + Send + Sync + 'static) -> Test {
    Test { name: name.into(), run: Box::new(run) }
}

/// Makes tests from functions; each test has the name of its function.
#[macro_export]
macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        vec![$($crate::runner::test(stringify!($name), $name)),+]
    };
}

/// The command line. If it begins with `--serve`, runs `serve` and returns `None`.
pub fn arguments_unless_serving(serve: impl FnOnce(&[String])) -> Option<Vec<String>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--serve") {
        serve(&arguments[1..]);
        return None;
    }
    Some(arguments)
}

/// The options of the command line.
#[derive(Debug, Default)]
struct Options {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
    ignored: bool,
    threads: Option<usize>,
}

impl Options {
    fn read(arguments: impl Iterator<Item = String>) -> Self {
        let mut options = Options::default();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
                _ => (argument.as_str(), None),
            };
            let mut value = || value.clone().or_else(|| arguments.next());
            match name {
                "--exact" => options.exact = true,
                "--list" => options.list = true,
                "--ignored" => options.ignored = true,
                "--skip" => options.skip.extend(value()),
                "--test-threads" => options.threads = value().and_then(|count| count.parse().ok()),
                "--format" | "--color" | "--logfile" | "-Z" => drop(value()),
                name if name.starts_with('-') => {}
                _ => options.filters.push(argument),
            }
        }
        options
    }

    fn matches(&self, name: &str, filter: &str) -> bool {
        if self.exact { name == filter } else { name.contains(filter) }
    }

    fn selects(&self, name: &str) -> bool {
        let matches = |filter: &String| self.matches(name, filter);
        !self.ignored
            && (self.filters.is_empty() || self.filters.iter().any(matches))
            && !self.skip.iter().any(matches)
    }
}

/// Runs the tests that the command line selects, as many at a time as there are processors. Returns
/// the exit code and the names of the tests that passed and failed.
pub fn run(tests: Vec<Test>, arguments: impl Iterator<Item = String>) -> (ExitCode, Outcome) {
    let options = Options::read(arguments);
    let all = tests.len();
    let tests: Vec<_> = tests.into_iter().filter(|test| options.selects(&test.name)).collect();
    let mut outcome = Outcome::default();
    if options.list {
        tests.iter().for_each(|test| println!("{}: test", test.name));
        return (ExitCode::SUCCESS, outcome);
    }
    restore_sigint();
    println!("\nrunning {} tests", tests.len());
    let begun = Instant::now();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let threads = options
        .threads
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get));
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, tests.len().max(1)) {
            scope.spawn(|| {
                while let Some(test) = tests.get(next.fetch_add(1, SeqCst)) {
                    let result = catch_unwind(AssertUnwindSafe(|| (test.run)())).map_err(message);
                    let word = if result.is_ok() { "ok" } else { "FAILED" };
                    println!("test {} ... {word}", test.name);
                    results.lock().unwrap().push((test.name.clone(), result));
                }
            });
        }
    });
    for (name, result) in results.into_inner().unwrap() {
        match result {
            Ok(()) => outcome.passed.push(name),
            Err(message) => outcome.failed.push((name, message)),
        }
    }
    let Outcome { passed, failed } = &outcome;
    if !failed.is_empty() {
        println!("\nfailures:\n");
        failed.iter().for_each(|(name, message)| println!("---- {name} ----\n{message}\n"));
        println!("\nfailures:");
        failed.iter().for_each(|(name, _)| println!("    {name}"));
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; \
         finished in {:.2}s\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        passed.len(),
        failed.len(),
        all - tests.len(),
        begun.elapsed().as_secs_f64(),
    );
    let code = if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) };
    (code, outcome)
}

/// Restores the default action of SIGINT: a shell starts its background jobs with SIGINT ignored,
/// which the servers would inherit.
#[allow(unsafe_code)] // the standard library handles no signals
fn restore_sigint() {
    // SAFETY: signal takes a number and a constant.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
}

/// The result of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    pub passed: Vec<String>,
    /// The name and the panic message of each failed test.
    pub failed: Vec<(String, String)>,
}

/// The text of a panic.
fn message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().copied().unwrap_or("a panic").to_owned(),
    }
}
