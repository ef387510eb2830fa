//! Forking servers in processes of their own: what the parent and its children do at the end of
//! requests, at signals, stops and faults.

#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use process::{
    Arrival, DEADLINE, Gate, Process, Resources, Stream, announce, connect, descriptors_of,
    eventually, is_running, wait_at_gate,
};
use socketserver::{
    Accepted, Context, Error, Forking, Handler, HandlerResult, Inline, Lines, Mode, Server,
    ShutdownHandle, handler_fn,
};

const LOCAL: &str = "tcp://127.0.0.1:0";

// The servers

/// An echo of lines in a child; some lines are commands.
struct ChildHandler {
    gate: PathBuf,
    handle: ShutdownHandle,
}

impl Handler for ChildHandler {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        match message {
            b"pid" => cx.send(std::process::id().to_string().as_bytes()),
            b"hold" => {
                wait_at_gate(&self.gate);
                cx.send(b"held")
            }
            b"panic" => panic!("on command"),
            b"print" => {
                print!("printed by a child"); // without a newline and without a flush
                cx.send(b"printed")
            }
            b"shutdown" => {
                cx.stop_server();
                cx.send(b"stopping")
            }
            b"shutdown by handle" => {
                self.handle.shutdown();
                cx.send(b"stopping")
            }
            b"ignored signals" => {
                let output = Command::new("cat").arg("/proc/self/status").output()?;
                let status = String::from_utf8(output.stdout)?;
                let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
                cx.send(ignored.ok_or("no such line")?.trim().as_bytes())
            }
            _ => cx.send(message),
        }
    }
}

/// Adds a listener of lines in this mode.
fn lines(server: &mut Server, url: &str, forking: Forking, gate: &Path) {
    let (gate, handle) = (gate.to_owned(), server.shutdown_handle());
    let builder = Server::endpoint(&url.parse().unwrap()).unwrap().framing(Lines::default());
    let make = move |_: &Accepted<'_>| ChildHandler { gate: gate.clone(), handle: handle.clone() };
    server.add(builder.mode(forking).service(make).unwrap()).unwrap();
}

/// Adds a datagram listener that the loop itself serves.
fn udp_echo(server: &mut Server) {
    let service = Server::udp("127.0.0.1:0").unwrap();
    let service = service.service(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
    server.add(service.unwrap()).unwrap();
}

fn serve(arguments: &[String]) {
    let (what, gate) = (arguments[0].as_str(), PathBuf::from(&arguments[1]));
    drop(Server::new().unwrap().stop_on_signals());
    let mut foreign = (what == "foreign child")
        .then(|| Command::new("sh").args(["-c", "exit 42"]).spawn().unwrap());
    let own_pipe = std::io::pipe().unwrap();
    let resources = Resources::of_this_process();

    let mut server = Server::new().unwrap();
    server.stop_on_signals().unwrap();
    server.drain_timeout(match what {
        "short drain" => Duration::from_millis(300),
        "foreign child" => Duration::MAX,
        _ => 2 * DEADLINE,
    });
    let forking = Forking::default().allow_threads(what.starts_with("allow threads"));
    match what {
        "two at most" => {
            lines(&mut server, LOCAL, forking.max_children(2), &gate);
            udp_echo(&mut server);
        }
        "two listeners" => {
            lines(&mut server, LOCAL, forking, &gate);
            lines(&mut server, LOCAL, forking, &gate);
            udp_echo(&mut server);
        }
        "inline beside" => {
            lines(&mut server, LOCAL, forking, &gate);
            let inline = Server::endpoint(&LOCAL.parse().unwrap()).unwrap().mode(Inline);
            let inline =
                inline.service(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
            server.add(inline.unwrap()).unwrap();
        }
        "slow to begin" => {
            let handle = server.shutdown_handle();
            let maker =
                Server::endpoint(&LOCAL.parse().unwrap()).unwrap().framing(Lines::default());
            let service = maker.mode(forking).service(move |_: &Accepted<'_>| {
                wait_at_gate(&gate);
                ChildHandler { gate: gate.clone(), handle: handle.clone() }
            });
            server.add(service.unwrap()).unwrap();
        }
        _ => lines(&mut server, LOCAL, forking, &gate),
    }
    announce(&server.addresses());
    if what.starts_with("without proc") {
        std::os::unix::fs::chroot(Path::new(&arguments[1]).parent().unwrap()).unwrap();
    }
    let thread = what.ends_with("a thread beside").then(|| {
        let (send, wait) = std::sync::mpsc::channel::<()>();
        (send, std::thread::spawn(move || wait.recv().is_ok()))
    });
    match server.serve_forever() {
        Ok(report) => println!("aborted {}", report.aborted),
        Err(error) => println!("error: {error}"),
    }
    if let Some((send, thread)) = thread {
        drop(send);
        thread.join().unwrap();
    }
    if what == "short drain" {
        let counters = server.counters();
        println!("closed {} of {}", counters.closed, counters.accepted);
    }
    drop(server);
    if let Some(foreign) = &mut foreign {
        println!("the foreign child's status: {}", foreign.wait().unwrap());
    } else {
        if !what.starts_with("without proc") {
            resources.wait_until_restored();
        }
    }
    drop(own_pipe);
}

// The tests

fn start(listeners: usize, what: &str) -> Process {
    Process::start(listeners, &[what, "{dir}/gate"])
}

fn gate_of(server: &Process) -> Gate {
    Gate::at(&server.directory.join("gate"))
}

/// A client whose child waits for input, one whose child waits at the gate, and that child.
fn one_idle_one_busy(server: &Process) -> (Stream, Stream, Arrival) {
    let gate = gate_of(server);
    let (mut idle, mut busy) = (server.connect(), server.connect());
    idle.send("hello\n").expect("hello\n");
    busy.send("hold\n");
    let arrival = gate.expect_arrival();
    (idle, busy, arrival)
}

fn stop(mut server: Process) -> Vec<String> {
    server.terminate();
    server.expect_success();
    server.rest()
}

/// Asks for the pid of the child that serves it.
fn pid_of_child(client: &mut Stream) -> i32 {
    client.send("pid\n");
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        std::io::Read::read_exact(&mut client.socket, &mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap().trim().parse().unwrap()
}

fn each_request_has_a_process_of_its_own() {
    let server = start(1, "plain");
    let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
    let pids: BTreeSet<_> = clients.iter_mut().map(pid_of_child).collect();
    assert_eq!(pids.len(), 5);
    assert!(!pids.contains(&server.pid()));
    assert_eq!(pids, server.children().into_iter().collect());
    assert_eq!(stop(server), ["aborted 0"]);
}

fn after_two_hundred_requests_no_child_is_left() {
    let server = start(1, "plain");
    for _ in 0..200 {
        server.connect().send("hello\n").expect("hello\n").end().expect_end();
    }
    // Without a further request.
    eventually("all children are reaped", || server.children().is_empty());
    assert_eq!(stop(server), ["aborted 0"]);
}

fn a_foreign_childs_status_is_untouched() {
    let server = start(1, "foreign child");
    for _ in 0..20 {
        server.connect().send("hello\n").expect("hello\n").end().expect_end();
    }
    eventually("only the foreign child is left", || server.children().len() == 1);
    assert_eq!(stop(server), ["aborted 0", "the foreign child's status: exit status: 42"]);
}

fn at_max_children_the_listener_pauses_and_the_loop_continues() {
    let server = start(2, "two at most");
    let gate = gate_of(&server);
    let mut busy = [server.connect(), server.connect()];
    let mut arrivals: Vec<_> = busy
        .iter_mut()
        .map(|client| {
            client.send("hold\n");
            gate.expect_arrival()
        })
        .collect();
    let mut third = server.connect();
    third.send("hold\n");
    let loops = process::Datagrams::new(&server.urls[1], &server.directory);
    for _ in 0..50 {
        loops.send("hello").expect("hello");
    }
    gate.expect_no_arrival();
    assert_eq!(server.children().len(), 2);
    arrivals.remove(0).release();
    busy[0].expect("held\n").end().expect_end();
    // The third is served now.
    gate.expect_arrival().release();
    third.expect("held\n");
    drop(arrivals);
    busy[1].expect("held\n");
    assert_eq!(stop(server), ["aborted 0"]);
}

fn a_shutdown_requested_in_a_child_stops_the_parent() {
    let mut server = start(1, "plain");
    let mut idle = server.connect();
    idle.send("hello\n").expect("hello\n");
    server.connect().send("shutdown\n").expect("stopping\n").expect_end();
    idle.expect_end();
    server.expect_success();
    assert_eq!(server.rest(), ["aborted 0"]);
}

/// The parent waits for the client that it serves inline, and must notice the request.
fn a_shutdown_requested_in_a_child_stops_a_parent_that_serves_inline() {
    let mut server = start(2, "inline beside");
    let (mut requesting, mut inline) = (server.connect(), connect(&server.urls[1]));
    requesting.send("hello\n").expect("hello\n");
    inline.send("hello").expect("hello");
    requesting.send("shutdown\n").expect("stopping\n");
    inline.expect_end();
    requesting.expect_end();
    server.expect_success();
    assert_eq!(server.rest(), ["aborted 0"]);
}

fn a_shutdown_handle_used_in_a_child_stops_the_parent() {
    for (listeners, what) in [(1, "plain"), (2, "inline beside")] {
        let mut server = start(listeners, what);
        // Connected first: an inline client keeps the loop from accepting.
        let mut requesting = server.connect();
        requesting.send("hello\n").expect("hello\n");
        let mut idle = connect(server.urls.last().unwrap());
        let line = if listeners == 1 { "hello\n" } else { "hello" };
        idle.send(line).expect(line);
        requesting.send("shutdown by handle\n").expect("stopping\n").expect_end();
        idle.expect_end();
        server.expect_success();
        assert_eq!(server.rest(), ["aborted 0"]);
    }
}

/// The ignored signals are a mask whose lowest bit is signal 1.
fn a_program_that_a_child_starts_does_not_ignore_sigint() {
    let server = start(1, "plain");
    let mut client = server.connect();
    let ignored = String::from_utf8(client.send("ignored signals\n").end().read_to_end()).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    assert_eq!(ignored & 1 << (libc::SIGINT - 1), 0, "{ignored:x}");
    assert_eq!(stop(server), ["aborted 0"]);
}

/// The server calls chroot, which only root may do.
fn without_proc_a_fork_is_refused_only_in_a_process_with_threads() {
    if !is_root() {
        return eprintln!("skipped: only root may call chroot");
    }
    let server = start(1, "without proc");
    for _ in 0..3 {
        server.connect().send("hello\n").expect("hello\n");
    }
    assert_eq!(stop(server), ["aborted 0"]);
    let mut server = start(1, "without proc, with a thread beside");
    server.connect().expect_gone();
    server.expect_success();
    let rest = server.rest();
    assert!(rest[0].contains("error") && rest[0].contains("other threads"), "{rest:?}");
}

#[allow(unsafe_code)] // the standard library does not have it
fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and always succeeds.
    unsafe { libc::geteuid() == 0 }
}

fn on_sigterm_idle_children_end_and_busy_ones_finish() {
    let mut server = start(1, "plain");
    let (mut idle, mut busy, arrival) = one_idle_one_busy(&server);
    server.terminate();
    idle.expect_end();
    assert!(is_running(arrival.pid), "the busy child still runs");
    arrival.release();
    busy.expect("held\n").expect_end();
    server.expect_success();
    assert_eq!(server.rest(), ["aborted 0"]);
}

fn after_the_drain_deadline_a_busy_child_is_killed() {
    let mut server = start(1, "short drain");
    let gate = gate_of(&server);
    let mut busy = server.connect();
    busy.send("hold\n");
    let arrival = gate.expect_arrival();
    server.terminate();
    server.expect_success();
    arrival.expect_gone();
    busy.expect_gone();
    assert_eq!(server.rest(), ["aborted 1", "closed 1 of 1"]);
}

/// A child must not miss a stop that comes before it has begun to serve.
fn a_stop_reaches_a_child_that_has_just_been_forked() {
    let mut server = start(1, "slow to begin");
    let gate = gate_of(&server);
    let mut young = server.connect();
    let arrival = gate.expect_arrival();
    let mut idle = server.connect();
    gate.expect_arrival().release();
    idle.send("hello\n").expect("hello\n");
    server.terminate();
    // The parent notifies its children in the order of their forks.
    idle.expect_end();
    arrival.release();
    young.expect_end();
    server.expect_success();
    assert_eq!(server.rest(), ["aborted 0"]);
}

fn sigint_to_the_process_group_is_handled_only_by_the_parent() {
    let mut server = start(1, "plain");
    let (mut idle, mut busy, arrival) = one_idle_one_busy(&server);
    server.signal_group(libc::SIGINT);
    idle.expect_end();
    arrival.release();
    busy.expect("held\n").expect_end();
    server.expect_success();
    assert_eq!(server.rest(), ["aborted 0"]);
}

fn a_second_signal_ends_parent_and_children_at_once() {
    let mut server = start(1, "plain");
    let (mut idle, _busy, arrival) = one_idle_one_busy(&server);
    server.terminate();
    idle.expect_end();
    server.terminate();
    assert!(!server.wait().success());
    arrival.expect_gone();
    server.expect_no_descendant();
}

/// Threads do not, either.
fn children_do_not_outlive_a_parent_that_is_killed() {
    let mut server = start(1, "plain");
    let (mut idle, mut busy, arrival) = one_idle_one_busy(&server);
    server.signal(libc::SIGKILL);
    server.wait();
    idle.expect_gone();
    arrival.expect_gone();
    busy.expect_gone();
    server.expect_no_descendant();
}

/// A child keeps its connection, the eventfd that tells it to stop, its end of the pipe by which
/// the parent notices its exit, the eventfd by which it requests a shutdown, and the user's
/// descriptors.
fn a_child_keeps_none_of_the_crates_descriptors() {
    let server = start(3, "two listeners");
    // So that the parent has descriptors of other children.
    let mut others: Vec<_> =
        server.urls[..2].iter().flat_map(|url| [connect(url), connect(url)]).collect();
    for other in &mut others {
        other.send("hello\n").expect("hello\n");
    }
    let gate = gate_of(&server);
    let mut client = server.connect();
    client.send("hold\n");
    let arrival = gate.expect_arrival();
    // The parent has completed the fork and is back in its loop.
    let loops = process::Datagrams::new(&server.urls[2], &server.directory);
    loops.send("hello").expect("hello");
    let (parents, childs) = (descriptors_of(server.pid()), descriptors_of(arrival.pid));
    let count = |of: &[(i32, String)], what: &str| {
        of.iter().filter(|(_, each)| each.contains(what)).count()
    };
    assert_eq!(count(&childs, "eventpoll"), 0, "{childs:?}");
    // Its connection and the gate.
    assert_eq!(count(&childs, "socket:"), 2, "{childs:?}");
    // The one that tells it to stop, and the one by which it requests a shutdown.
    assert_eq!(count(&childs, "eventfd"), 2, "{childs:?} of {parents:?}");
    assert_eq!(count(&childs, "pidfd"), 0, "{childs:?}");
    // The user's own, and the one by which the parent notices its exit.
    assert_eq!(count(&childs, "pipe:"), count(&parents, "pipe:") + 1, "{childs:?} of {parents:?}");
    let users: Vec<_> = parents.iter().filter(|(_, each)| each.contains("pipe:")).collect();
    assert!(
        users.iter().all(|each| childs.contains(each)),
        "the child keeps {users:?} of the user"
    );
    drop(arrival);
    assert_eq!(stop(server), ["aborted 0"]);
}

fn a_panic_in_a_child_ends_only_that_child() {
    let server = start(1, "plain");
    let mut other = server.connect();
    other.send("hello\n").expect("hello\n");
    server.connect().send("panic\n").expect_end();
    other.send("hello\n").expect("hello\n");
    server.connect().send("hello\n").expect("hello\n");
    assert_eq!(stop(server), ["aborted 0"]);
}

fn output_printed_by_a_child_appears_exactly_once() {
    let server = start(1, "plain");
    server.connect().send("print\n").expect("printed\n").end().expect_end();
    server.connect().send("hello\n").expect("hello\n").end().expect_end();
    eventually("all children are reaped", || server.children().is_empty());
    assert_eq!(stop(server), ["printed by a childaborted 0"]);
}

fn adding_a_forking_service_beside_threads_is_refused() {
    let handler = |_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message));
    let service =
        |mode: Mode| Server::tcp("127.0.0.1:0").unwrap().mode(mode).service(handler).unwrap();
    for other in Mode::all() {
        let starts_threads = matches!(other.name(), "offload" | "threading" | "pool");
        for first_forks in [true, false] {
            let forking = service("forking".parse().unwrap());
            let other = service(other);
            let addresses = [forking.address().to_string(), other.address().to_string()];
            let mut server = Server::new().unwrap();
            let (first, second) = if first_forks { (forking, other) } else { (other, forking) };
            server.add(first).unwrap();
            match server.add(second) {
                Ok(_) => assert!(!starts_threads),
                Err(error) => {
                    assert!(starts_threads && matches!(error, Error::Mode(_)), "{error:?}");
                    let text = error.to_string();
                    assert!(addresses.iter().all(|address| text.contains(address)), "{text}");
                }
            }
        }
    }
}

fn to_spawn_a_server_that_forks_is_refused_unless_threads_are_allowed() {
    let server = |forking: Forking| {
        let builder = Server::tcp("127.0.0.1:0").unwrap().mode(forking);
        builder.serve(|_| handler_fn(|message, cx| cx.send(message))).unwrap()
    };
    let error = server(Forking::default()).spawn().unwrap_err();
    assert!(matches!(error, Error::Mode(_)), "{error}");
    let running = server(Forking::default().allow_threads(true)).spawn().unwrap();
    running.stop().unwrap();
}

fn the_first_fork_of_a_process_with_threads_is_refused() {
    let mut server = start(1, "a thread beside");
    server.connect().expect_gone();
    server.expect_success();
    let rest = server.rest();
    assert!(rest[0].contains("error") && rest[0].contains("other threads"), "{rest:?}");
}

fn with_allow_threads_a_process_with_threads_forks() {
    let server = start(1, "allow threads, with a thread beside");
    let mut client = server.connect();
    assert_ne!(pid_of_child(&mut client), server.pid());
    drop(client);
    assert_eq!(stop(server), ["aborted 0"]);
}

fn main() -> ExitCode {
    let Some(arguments) = runner::arguments_unless_serving(serve) else {
        return ExitCode::SUCCESS;
    };
    let tests = tests![
        each_request_has_a_process_of_its_own,
        after_two_hundred_requests_no_child_is_left,
        a_foreign_childs_status_is_untouched,
        at_max_children_the_listener_pauses_and_the_loop_continues,
        a_shutdown_requested_in_a_child_stops_the_parent,
        a_shutdown_requested_in_a_child_stops_a_parent_that_serves_inline,
        a_shutdown_handle_used_in_a_child_stops_the_parent,
        a_program_that_a_child_starts_does_not_ignore_sigint,
        without_proc_a_fork_is_refused_only_in_a_process_with_threads,
        on_sigterm_idle_children_end_and_busy_ones_finish,
        after_the_drain_deadline_a_busy_child_is_killed,
        a_stop_reaches_a_child_that_has_just_been_forked,
        sigint_to_the_process_group_is_handled_only_by_the_parent,
        a_second_signal_ends_parent_and_children_at_once,
        children_do_not_outlive_a_parent_that_is_killed,
        a_child_keeps_none_of_the_crates_descriptors,
        a_panic_in_a_child_ends_only_that_child,
        output_printed_by_a_child_appears_exactly_once,
        adding_a_forking_service_beside_threads_is_refused,
        to_spawn_a_server_that_forks_is_refused_unless_threads_are_allowed,
        the_first_fork_of_a_process_with_threads_is_refused,
        with_allow_threads_a_process_with_threads_forks,
    ];
    runner::run(tests, arguments.into_iter()).0
}
