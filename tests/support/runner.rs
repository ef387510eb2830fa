//! A small test runner, for tests whose servers are processes of their own: the test binary starts
//! itself again as the server, before any thread exists, so that forking is sound there. It takes
//! the usual arguments of `cargo test` and answers in the usual words.

#![allow(dead_code)] // each test file uses a part of it
#![allow(unreachable_pub)] // a module of a test is public to nobody

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Instant;

/// A test, and what it is called.
pub struct Test {
    pub name: String,
    run: Box<dyn Fn() + Send + Sync>,
}

/// Makes a test of a function.
pub fn test(name: impl Into<String>, run: impl Fn() + Send + Sync + 'static) -> Test {
    Test { name: name.into(), run: Box::new(run) }
}

/// Makes tests of functions, called as they are.
#[macro_export]
macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        vec![$($crate::runner::test(stringify!($name), $name)),+]
    };
}

/// The command line, unless it asks this program to be a server: then it has been one.
pub fn arguments_unless_serving(serve: impl FnOnce(&[String])) -> Option<Vec<String>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--serve") {
        serve(&arguments[1..]);
        return None;
    }
    Some(arguments)
}

/// What the command line asks for.
#[derive(Debug, Default)]
struct Wanted {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
    ignored: bool,
    threads: Option<usize>,
}

impl Wanted {
    fn read(arguments: impl Iterator<Item = String>) -> Self {
        let mut wanted = Wanted::default();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
                _ => (argument.as_str(), None),
            };
            let mut value = || value.clone().or_else(|| arguments.next());
            match name {
                "--exact" => wanted.exact = true,
                "--list" => wanted.list = true,
                "--ignored" => wanted.ignored = true,
                "--skip" => wanted.skip.extend(value()),
                "--test-threads" => wanted.threads = value().and_then(|count| count.parse().ok()),
                "--format" | "--color" | "--logfile" | "-Z" => drop(value()),
                name if name.starts_with('-') => {}
                _ => wanted.filters.push(argument),
            }
        }
        wanted
    }

    fn is_named(&self, name: &str, filter: &str) -> bool {
        if self.exact { name == filter } else { name.contains(filter) }
    }

    fn wants(&self, name: &str) -> bool {
        let is_named = |filter: &String| self.is_named(name, filter);
        !self.ignored
            && (self.filters.is_empty() || self.filters.iter().any(is_named))
            && !self.skip.iter().any(is_named)
    }
}

/// Runs the tests that the command line asks for, as many at a time as there are processors; which
/// of them have failed, by name, and what has run.
pub fn run(tests: Vec<Test>, arguments: impl Iterator<Item = String>) -> (ExitCode, Outcome) {
    let wanted = Wanted::read(arguments);
    let all = tests.len();
    let tests: Vec<_> = tests.into_iter().filter(|test| wanted.wants(&test.name)).collect();
    let mut outcome = Outcome::default();
    if wanted.list {
        tests.iter().for_each(|test| println!("{}: test", test.name));
        return (ExitCode::SUCCESS, outcome);
    }
    listen_to_interrupts();
    println!("\nrunning {} tests", tests.len());
    let begun = Instant::now();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let threads = wanted
        .threads
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get));
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, tests.len().max(1)) {
            scope.spawn(|| {
                while let Some(test) = tests.get(next.fetch_add(1, SeqCst)) {
                    let result = catch_unwind(AssertUnwindSafe(|| (test.run)())).map_err(told);
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
            Err(told) => outcome.failed.push((name, told)),
        }
    }
    let Outcome { passed, failed } = &outcome;
    if !failed.is_empty() {
        println!("\nfailures:\n");
        failed.iter().for_each(|(name, told)| println!("---- {name} ----\n{told}\n"));
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

/// A shell starts its background jobs with SIGINT ignored, which servers would inherit and keep.
#[allow(unsafe_code)] // the standard library handles no signals
fn listen_to_interrupts() {
    // SAFETY: signal takes a number and a constant.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    pub passed: Vec<String>,
    /// With what each panicked.
    pub failed: Vec<(String, String)>,
}

fn told(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().copied().unwrap_or("a panic").to_owned(),
    }
}
