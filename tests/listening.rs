//! Listeners: an accept that keeps failing, a close with clients in the queue, and the signals that
//! stop a server. Servers that receive signals run in processes of their own.

#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use process::{DEADLINE, Process, announce, connect, eventually, send_signal, try_connect};
use socketserver::{Accepted, Forking, Hooks, Peer, Server, handler_fn};

// The servers

/// An echo server that stops on signals.
fn server() -> Server {
    let builder = Server::tcp("127.0.0.1:0").unwrap();
    let serve = builder.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
    let mut server = serve.unwrap();
    server.stop_on_signals().unwrap();
    server
}

fn serve(arguments: &[String]) {
    match arguments[0].as_str() {
        "once" => announce_and_serve(server()),
        "two at once" => {
            let (first, mut second) = (server(), server());
            announce(&[first.addresses(), second.addresses()].concat());
            let first = first.spawn().unwrap();
            second.serve_forever().unwrap();
            first.join().unwrap();
        }
        "one beside a dropped one" => {
            let (first, second) = (server(), server());
            drop(first);
            announce_and_serve(second);
        }
        "one after the other" => {
            announce_and_serve(server());
            announce_and_serve(server());
        }
        "a dropped one" => {
            announce_and_drop(server());
            wait_for_a_signal();
        }
        "a dropped one, with an earlier signal handler" => {
            handle_termination(exit_with_7);
            announce_and_drop(server());
            wait_for_a_signal();
        }
        "one dropped with a pending signal" => {
            let server = server();
            announce(&server.addresses());
            send_signal(std::process::id() as i32, libc::SIGTERM);
            drop(server);
        }
        "forking" => serve_and_count_per_turn(),
        "no accept" => {
            env_logger::builder().filter_level(log::LevelFilter::Warn).init();
            let server = server();
            forbid_accept();
            announce_and_serve(server);
        }
        other => panic!("unknown server {other:?}"),
    }
    println!("done");
}

/// Counts how many requests a turn of the loop accepts.
struct PerTurn {
    now: usize,
    most: Arc<AtomicUsize>,
}

impl Hooks for PerTurn {
    fn verify_request(&mut self, _peer: &Peer) -> bool {
        self.now += 1;
        true
    }

    fn service_actions(&mut self) {
        self.most.fetch_max(std::mem::take(&mut self.now), SeqCst);
    }

    fn wants_service_actions(&self) -> bool {
        true
    }
}

fn serve_and_count_per_turn() {
    let most = Arc::new(AtomicUsize::new(0));
    let hooks = PerTurn { now: 0, most: most.clone() };
    let builder = Server::tcp("127.0.0.1:0").unwrap().hooks(hooks).mode(Forking::default());
    let make = |_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message));
    let mut server = builder.serve(make).unwrap();
    server.stop_on_signals().unwrap();
    announce(&server.addresses());
    server.serve_forever().unwrap();
    println!("{}", most.load(SeqCst));
}

fn announce_and_serve(mut server: Server) {
    announce(&server.addresses());
    server.serve_forever().unwrap();
}

fn announce_and_drop(server: Server) {
    let addresses = server.addresses();
    drop(server);
    announce(&addresses);
}

fn wait_for_a_signal() {
    thread::sleep(2 * DEADLINE);
    println!("no signal has arrived");
}

extern "C" fn exit_with_7(_signal: libc::c_int) {
    #[allow(unsafe_code)] // no dependency of the tests has it
    // SAFETY: _exit does not return, and may be called in a signal handler.
    unsafe {
        libc::_exit(7)
    }
}

#[allow(unsafe_code)] // the standard library handles no signals
fn handle_termination(handler: extern "C" fn(libc::c_int)) {
    // SAFETY: the handler calls only _exit, which is async-signal-safe.
    unsafe { libc::signal(libc::SIGTERM, handler as libc::sighandler_t) };
}

/// Makes accept4(2) fail with EPERM, as in a sandbox that forbids it.
#[allow(unsafe_code)] // no dependency of the tests installs seccomp filters
fn forbid_accept() {
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let accept = libc::SYS_accept4 as u32;
    let mut program = [
        // The number of the system call is the first field of the filter's input.
        instruction((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
        instruction((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, accept),
        instruction(libc::BPF_RET as u16, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        instruction(libc::BPF_RET as u16, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: prctl takes numbers, and reads the filter, which it copies.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let set = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter);
        assert_eq!(set, 0);
    }
}

/// Starts a server in a process that ignores a signal from its start.
fn start_ignoring(signal: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("trap '' {signal}; exec \"$0\" \"$@\"")]);
    command.arg(std::env::current_exe().unwrap()).arg("--serve");
    Process::start_command(command, 1, arguments)
}

fn expect_done(mut server: Process) {
    server.expect_success();
    assert_eq!(server.rest(), ["done"]);
}

fn expect_end_by(mut server: Process, signal: i32) {
    assert_eq!(server.wait().signal(), Some(signal));
}

// Accepting

/// The processor time that a process has used, in clock ticks.
fn ticks_of(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn a_listener_whose_accept_keeps_failing_pauses_and_logs_once() {
    let server = Process::start(1, &["no accept"]);
    let _waiting = server.connect();
    eventually("the pause is logged", || server.errors().contains("pauses"));
    let before = ticks_of(server.pid());
    thread::sleep(Duration::from_secs(1));
    let used = ticks_of(server.pid()) - before;
    assert!(used <= 20, "a waiting client costs {used} of 100 ticks in a second");
    assert_eq!(server.errors().matches("pauses").count(), 1, "{}", server.errors());
    server.terminate();
    expect_done(server);
}

/// Each child that exits wakes the listener; the loop must check for other events, such as a stop,
/// in between.
fn a_turn_accepts_a_bounded_number_of_requests_however_many_children_end_in_it() {
    let mut server = Process::start(1, &["forking"]);
    let url = server.url();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..200).for_each(|_| drop(connect(url))));
        }
    });
    server.terminate();
    server.expect_success();
    let most: usize = server.line().parse().unwrap();
    assert!((1..=64).contains(&most), "{most} requests in one turn");
}

// Closing

fn clients_in_the_queue_of_a_closing_listener_see_the_end_and_later_ones_are_refused() {
    const CLIENTS: usize = 16;
    for _ in 0..10 {
        let server = Server::tcp("127.0.0.1:0").unwrap();
        let server =
            server.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message))).unwrap();
        let url = server.local_addr().to_string();
        let (wait, waits) = mpsc::channel();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (wait, url) = (wait.clone(), url.clone());
                thread::spawn(move || {
                    let mut first = connect(&url);
                    first.send("hello");
                    wait.send(()).unwrap();
                    first.expect_end();
                    // Later ones are refused, or reset while the close is in progress.
                    let mut closed_later = 0;
                    while let Ok(mut later) = try_connect(&url) {
                        closed_later += usize::from(later.socket.read(&mut [0]).is_ok());
                    }
                    closed_later
                })
            })
            .collect();
        for _ in 0..CLIENTS {
            waits.recv_timeout(DEADLINE).unwrap();
        }
        drop(server);
        let closed_later: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
        assert_eq!(closed_later, 0, "clients that connected later were closed without a reset");
    }
}

// Stopping on signals

fn one_signal_stops_every_server_of_a_process() {
    let server = Process::start(2, &["two at once"]);
    server.terminate();
    expect_done(server);
}

fn a_server_stops_on_signals_although_another_one_was_dropped() {
    let server = Process::start(1, &["one beside a dropped one"]);
    server.terminate();
    expect_done(server);
}

fn a_second_server_stops_on_a_second_signal() {
    let mut server = Process::start(1, &["one after the other"]);
    server.terminate();
    assert!(server.line().starts_with("listening on "));
    server.terminate();
    expect_done(server);
}

fn after_the_server_is_dropped_signals_have_their_default_action() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let server = Process::start(1, &["a dropped one"]);
        server.signal(signal);
        expect_end_by(server, signal);
    }
}

fn after_the_server_is_dropped_the_previous_signal_handler_is_restored() {
    let mut server = Process::start(1, &["a dropped one, with an earlier signal handler"]);
    server.terminate();
    assert_eq!(server.wait().code(), Some(7));
}

fn a_pending_signal_is_delivered_when_the_server_is_dropped() {
    let server = Process::start(1, &["one dropped with a pending signal"]);
    expect_end_by(server, libc::SIGTERM);
}

fn a_signal_that_a_process_was_started_to_ignore_stays_ignored() {
    for (name, ignored, other) in
        [("INT", libc::SIGINT, libc::SIGTERM), ("TERM", libc::SIGTERM, libc::SIGINT)]
    {
        let server = start_ignoring(name, &["once"]);
        let mut client = server.connect();
        // A server that handles the signal would end the process at the second one.
        server.signal(ignored);
        client.send("once").expect("once");
        server.signal(ignored);
        client.send("twice").expect("twice");
        server.signal(other);
        expect_done(server);
    }
}

fn main() -> ExitCode {
    let Some(arguments) = runner::arguments_unless_serving(serve) else {
        return ExitCode::SUCCESS;
    };
    let tests = tests![
        a_listener_whose_accept_keeps_failing_pauses_and_logs_once,
        a_turn_accepts_a_bounded_number_of_requests_however_many_children_end_in_it,
        clients_in_the_queue_of_a_closing_listener_see_the_end_and_later_ones_are_refused,
        one_signal_stops_every_server_of_a_process,
        a_server_stops_on_signals_although_another_one_was_dropped,
        a_second_server_stops_on_a_second_signal,
        after_the_server_is_dropped_signals_have_their_default_action,
        after_the_server_is_dropped_the_previous_signal_handler_is_restored,
        a_pending_signal_is_delivered_when_the_server_is_dropped,
        a_signal_that_a_process_was_started_to_ignore_stays_ignored,
    ];
    runner::run(tests, arguments.into_iter()).0
}
