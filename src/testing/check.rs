//! Runs a test in many simulated worlds, and shrinks the script of a failure.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::{Duration, Instant};

use super::choices::{Choices, shrink};
use super::fault::Fault;
use super::kernel::FakeKernel;
use super::trace::Trace;
use super::world::World;
use crate::connection_id::simulate;
use crate::guard::panic_message;
use crate::sys::simulated;

/// How many runs a shrinker takes, and how long.
const SHRINK_RUNS: usize = 3000;
const SHRINK_TIME: Duration = Duration::from_secs(20);

/// One in this many runs is repeated, and has to have the same trace.
const REPEATED: u64 = 16;

/// The number of runs of [`check`](super::check).
const RUNS: u64 = 500;

/// A failed run.
#[derive(Debug)]
struct FailedRun {
    message: String,
    trace: String,
}

/// A run that held.
#[derive(Debug)]
struct HeldRun {
    hash: u64,
    marks: BTreeMap<&'static str, u64>,
    /// The next script of a count, if there is one.
    next: Option<Vec<(usize, usize)>>,
}

/// What a check has run: from [`Check::run`].
///
/// ```
/// use socketserver::testing::Check;
///
/// let checked = Check::new().runs(50).without_faults().run(|world| {
///     if world.choose(2) == 1 {
///         world.mark("heads");
///     }
/// });
/// assert!(checked.marks["heads"] > 0 && checked.runs == 50);
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Checked {
    /// How many runs there were.
    pub runs: u64,
    /// In how many runs each state was reached that [`World::mark`] names, or the simulated kernel
    /// itself.
    pub marks: BTreeMap<&'static str, u64>,
}

/// The settings of a check of many runs: which faults, how many runs. [`check`](super::check) has the
/// defaults.
///
/// ```
/// use socketserver::testing::{Check, Fault};
/// use socketserver::{Server, handler_fn};
///
/// let checked = Check::new()
///     .runs(20)
///     .seed(7)
///     .with(Fault::Reset)
///     .without(Fault::Delay)
///     .run(|world| {
///         let mut server = Server::tcp("127.0.0.1:9999")
///             .and_then(|builder| builder.serve(|_| handler_fn(|message, cx| cx.send(message))))
///             .unwrap();
///         let mut sim = world.start(&mut server);
///         let client = sim.connect();
///         client.send(b"hello");
///         sim.settle();
///         assert!(b"hello".starts_with(&client.read())); // less than all after a reset
///     });
/// assert_eq!(checked.runs, 20);
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing runs before `run`"]
pub struct Check {
    faults: BTreeSet<Fault>,
    runs: u64,
    seed: u64,
    depth: Option<usize>,
}

impl Default for Check {
    /// The same as [`Check::new`].
    fn default() -> Self {
        Check::new()
    }
}

impl Check {
    /// 500 runs, with all faults that a correct server hides from its clients. The environment
    /// variable `SOCKETSERVER_RUNS` sets another number of runs, and `SOCKETSERVER_SEED` the seed of
    /// the first one.
    pub fn new() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        Check {
            faults: Fault::ALL.iter().copied().filter(|fault| fault.is_harmless()).collect(),
            runs: number("SOCKETSERVER_RUNS").unwrap_or(RUNS),
            seed: number("SOCKETSERVER_SEED").unwrap_or(0),
            depth: None,
        }
    }

    /// Sets the number of runs, unless the environment variable does.
    pub fn runs(mut self, runs: u64) -> Self {
        if std::env::var_os("SOCKETSERVER_RUNS").is_none() {
            self.runs = runs;
        }
        self
    }

    /// Sets the seed of the first run; the next ones have the numbers that follow.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Allows a fault.
    pub fn with(mut self, fault: Fault) -> Self {
        self.faults.insert(fault);
        self
    }

    /// Allows all faults.
    ///
    /// ```
    /// use socketserver::testing::Check;
    ///
    /// Check::new().runs(10).with_all().run(|world| world.mark("the test has run"));
    /// ```
    pub fn with_all(mut self) -> Self {
        self.faults.extend(Fault::ALL);
        self
    }

    /// Excludes a fault.
    pub fn without(mut self, fault: Fault) -> Self {
        self.faults.remove(&fault);
        self
    }

    /// Excludes all faults: the runs differ only in what [`World::choose`] returns.
    ///
    /// ```
    /// use socketserver::testing::Check;
    ///
    /// Check::new().runs(10).without_faults().run(|world| assert!(world.choose(6) < 6));
    /// ```
    pub fn without_faults(mut self) -> Self {
        self.faults.clear();
        self
    }

    /// Counts up the first `depth` choices, in place of random ones: all short scripts run, and zeros
    /// follow in each. The number of runs is still a limit.
    ///
    /// ```
    /// use socketserver::testing::Check;
    ///
    /// Check::new().runs(100).without_faults().exhaustive(2).run(|world| {
    ///     assert!(world.choose(3) + world.choose(3) <= 4);
    /// });
    /// ```
    pub fn exhaustive(mut self, depth: usize) -> Self {
        self.depth = Some(depth);
        self
    }

    /// Runs the test in each world.
    ///
    /// # Panics
    ///
    /// If a run fails. The message has the shrunk script, for [`replay`](Check::replay).
    pub fn run(self, test: impl Fn(&World)) -> Checked {
        let mut checked = Checked::default();
        let mut count = self.depth.map(|_| Vec::new());
        for number in 0..self.runs {
            let choices = || match (&count, self.depth) {
                (Some(digits), Some(depth)) => Choices::counted(digits.clone(), depth),
                _ => Choices::random(self.seed.wrapping_add(number)),
            };
            checked.runs += 1;
            match self.run_once(choices(), false, &test) {
                Ok(held) => {
                    if number % REPEATED == 0 {
                        self.repeat(choices(), held.hash, &test);
                    }
                    for (mark, _) in held.marks {
                        *checked.marks.entry(mark).or_default() += 1;
                    }
                    if self.depth.is_some() {
                        count = held.next;
                        if count.is_none() {
                            break;
                        }
                    }
                }
                Err((failed, script)) => {
                    panic!("{}", self.report(number, &failed, script, &test))
                }
            }
        }
        checked
    }

    /// Runs the test once, with the decisions of a script: of a failure that was found before, or of a
    /// fuzzer.
    ///
    /// ```
    /// use socketserver::testing::Check;
    ///
    /// // The script is printed when a check fails.
    /// Check::new().replay(&[1, 0, 2], |world| assert!(world.choose(4) < 4));
    /// ```
    ///
    /// # Panics
    ///
    /// If the run fails.
    pub fn replay(self, script: &[u8], test: impl Fn(&World)) {
        // A fuzzer replays many scripts that hold, and for these the text of the trace is not needed.
        let Err((failed, _)) = self.run_once(Choices::script(script), false, &test) else { return };
        let again = self.run_once(Choices::script(script), true, &test);
        let FailedRun { message, trace } = again.map_or_else(|(again, _)| again, |_| failed);
        panic!("{trace}\n\n{message}");
    }

    fn repeat(&self, choices: Choices, hash: u64, test: &impl Fn(&World)) {
        let again = self.run_once(choices, false, test).map(|held| held.hash);
        assert_eq!(again.ok(), Some(hash), "the same seed makes the same trace");
    }

    #[allow(clippy::type_complexity)]
    fn run_once(
        &self,
        choices: Choices,
        with_text: bool,
        test: &impl Fn(&World),
    ) -> Result<HeldRun, (FailedRun, Vec<u8>)> {
        let allowed: Vec<Fault> = self.faults.iter().copied().collect();
        let trace = if with_text { Trace::with_text() } else { Trace::default() };
        let kernel = FakeKernel::new(choices, &allowed, trace);
        let world = World { kernel: kernel.clone() };
        let outer = simulate(Some(0));
        let (result, printed) = captured(|| {
            catch_unwind(AssertUnwindSafe(|| simulated::enter(kernel.clone(), || test(&world))))
        });
        simulate(outer);
        // The last panic is the one that ended the test.
        let place = printed.last().map(|panic| panic.place.as_str());
        let result = result.map_err(|payload| {
            format!("{}\n    at {}", panic_message(payload), place.unwrap_or("an unknown place"))
        });
        kernel.finish_jobs();
        // Their destructors call the kernel, so they run without its lock.
        let servers = std::mem::take(&mut kernel.lock().servers);
        let panics: u64 = servers.iter().map(|server| server.counters().panics).sum();
        drop(servers);
        let agenda = std::mem::take(&mut kernel.lock().agenda);
        drop(agenda);
        let mut state = kernel.lock();
        let (sockets, script) = (state.open_sockets(), state.choices.drawn());
        let mut failure = result.err().or(state.violation.take());
        if failure.is_none() && panics > 0 && !state.allows_panics {
            let texts: Vec<_> = printed.into_iter().map(|panic| panic.text).collect();
            failure = Some(format!("{panics} panics of handlers: {}", texts.join("; ")));
        }
        if failure.is_none() && sockets > 0 {
            failure = Some(format!("{sockets} sockets are open after the test"));
        }
        let outcome = match failure {
            None => Ok(HeldRun {
                hash: state.trace.hash(),
                marks: std::mem::take(&mut state.marks),
                next: state.choices.next_count(),
            }),
            Some(message) => Err((FailedRun { message, trace: state.trace.text() }, script)),
        };
        drop(state);
        outcome
    }

    /// Shrinks the script of a failure, and describes it.
    fn report(
        &self,
        number: u64,
        failed: &FailedRun,
        script: Vec<u8>,
        test: &impl Fn(&World),
    ) -> String {
        let (until, length) = (Instant::now() + SHRINK_TIME, script.len());
        let budget =
            if std::env::var_os("SOCKETSERVER_NO_SHRINK").is_some() { 0 } else { SHRINK_RUNS };
        let script = shrink(script, budget, |script| {
            Instant::now() < until && self.run_once(Choices::script(script), false, test).is_err()
        });
        let (message, trace) = match self.run_once(Choices::script(&script), true, test) {
            Err((failed, _)) => (failed.message, failed.trace),
            Ok(_) => (failed.message.clone(), String::new()),
        };
        let faults = self.faults_text();
        let seed = self.seed.wrapping_add(number);
        format!(
            "{trace}\nrun {} failed, of seed {seed}: {}\n\n\
             The script of {length} bytes is shrunk to {}, and fails so: {message}\n\
             To keep it as a test:\n\n    Check::new(){faults}.replay(&{script:?}, |world| ...)\n",
            number + 1,
            failed.message,
            script.len(),
        )
    }
}

impl Check {
    /// The calls that allow and exclude the same faults.
    fn faults_text(&self) -> String {
        match self.faults.len() {
            0 => return ".without_faults()".to_owned(),
            all if all == Fault::ALL.len() => return ".with_all()".to_owned(),
            _ => {}
        }
        let mut text = String::new();
        for fault in Fault::ALL {
            match (self.faults.contains(fault), fault.is_harmless()) {
                (true, false) => write!(text, ".with(Fault::{fault:?})"),
                (false, true) => write!(text, ".without(Fault::{fault:?})"),
                _ => Ok(()),
            }
            .expect("a String takes all");
        }
        text
    }
}

/// A panic that was not printed.
struct Captured {
    /// What would have been printed.
    text: String,
    /// The file, the line and the column.
    place: String,
}

thread_local! {
    /// The panics of this thread that are not printed.
    static CAPTURED: RefCell<Option<Vec<Captured>>> = const { RefCell::new(None) };
}

/// Calls `call`; the panics in it are returned, and not printed.
fn captured<T>(call: impl FnOnce() -> T) -> (T, Vec<Captured>) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let is_captured = CAPTURED.try_with(|captured| {
                let mut captured = captured.borrow_mut();
                let place = panic.location().map(ToString::to_string).unwrap_or_default();
                let panic = Captured { text: panic.to_string(), place };
                captured.as_mut().map(|list| list.push(panic)).is_some()
            });
            if is_captured != Ok(true) {
                earlier(panic);
            }
        }));
    });
    let outer = CAPTURED.replace(Some(Vec::new()));
    let result = call();
    (result, CAPTURED.replace(outer).unwrap_or_default())
}
