//! What hooks do beside requests: actions at a time that they tell. And hooks that belong to one run.

mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socketserver::{
    Accepted, CloseReason, Context, Handler, HandlerMode, HandlerResult, Hooks, Inline, Lines,
    Mode, NoHooks, Peer, Reactor, Server, handler_fn,
};
use support::{A_WHILE, expect_next, start_server, wait_until};

const LOCAL: &str = "127.0.0.1:0";

fn all_modes() -> impl Iterator<Item = Mode> {
    // The servers of these tests have threads beside them, none of which a child needs.
    Mode::all().map(|mode| match mode {
        Mode::Forking(forking) => Mode::Forking(forking.allow_threads(true)),
        other => other,
    })
}

/// When which key expires.
type Keys = Arc<Mutex<BTreeMap<(Instant, usize), ()>>>;

/// Lets keys expire, and tells when and how many.
struct Expiry {
    keys: Keys,
    expired: mpsc::Sender<(Instant, usize)>,
}

impl Expiry {
    fn new(keys: &Keys) -> (Self, Receiver<(Instant, usize)>) {
        let (expired, told) = mpsc::channel();
        (Expiry { keys: keys.clone(), expired }, told)
    }
}

impl Hooks for Expiry {
    fn next_action(&mut self) -> Option<Instant> {
        self.keys.lock().unwrap().first_key_value().map(|((deadline, _), ())| *deadline)
    }

    fn service_actions(&mut self) {
        let now = Instant::now();
        let mut keys = self.keys.lock().unwrap();
        let later = keys.split_off(&(now, usize::MAX));
        let expired = std::mem::replace(&mut *keys, later);
        // The test may be over.
        let _ = self.expired.send((now, expired.len()));
    }
}

#[test]
fn an_idle_server_sleeps_until_the_first_of_ten_thousand_keys_expires() {
    const KEYS: usize = 10_000;
    for mode in all_modes() {
        let first = Instant::now() + A_WHILE;
        let last = first + A_WHILE / 2;
        let at = |number: usize| if number < KEYS / 2 { first } else { last };
        let keys = (0..KEYS).map(|number| ((at(number), number), ())).collect();
        let (hooks, expired) = Expiry::new(&Arc::new(Mutex::new(keys)));
        let builder = Server::tcp(LOCAL).unwrap().hooks(hooks).mode(mode);
        let server = builder.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
        let server = start_server(server.unwrap());
        for deadline in [first, last] {
            let (when, count) = expect_next(&expired);
            assert!(when >= deadline, "{mode}");
            assert_eq!(count, KEYS / 2, "{mode}");
        }
        // One when the server begins, and one for each of the two moments.
        server.wait_for("three turns are counted", |counters| counters.turns >= 3);
        thread::sleep(A_WHILE);
        assert_eq!(server.counters().turns, 3, "{mode}: no deadline is left");
        assert!(expired.try_recv().is_err(), "{mode}");
    }
}

#[test]
fn a_deadline_that_a_handler_sets_is_kept_without_a_request() {
    // Elsewhere the loop has no turn for what a handler does, or the handler a copy of the keys.
    for mode in all_modes().filter(|mode| ["reactor", "offload", "inline"].contains(&mode.name())) {
        let keys = Keys::default();
        let (hooks, expired) = Expiry::new(&keys);
        let builder = Server::tcp(LOCAL).unwrap().hooks(hooks).mode(mode);
        let server = builder.serve(move |_: &Accepted<'_>| {
            let keys = keys.clone();
            handler_fn(move |message, cx: &mut Context<'_>| {
                let deadline = Instant::now() + Duration::from_millis(20);
                keys.lock().unwrap().insert((deadline, message.len()), ());
                cx.send(message)?;
                cx.close();
                Ok(())
            })
        });
        let server = start_server(server.unwrap());
        for _ in 0..3 {
            let begun = Instant::now();
            server.connect().send("key").expect_reply("key").end().expect_closed();
            let (when, count) = expect_next(&expired);
            assert!(when >= begun + Duration::from_millis(20), "{mode}");
            assert_eq!(count, 1, "{mode}");
        }
    }
}

#[test]
fn each_service_has_its_actions_at_its_own_time() {
    let mut server = Server::new().unwrap();
    let mut told = Vec::new();
    let now = Instant::now();
    let deadlines = [Some(now + A_WHILE / 3), None, Some(now + A_WHILE)];
    for deadline in deadlines {
        let keys: BTreeMap<_, _> =
            deadline.map(|deadline| ((deadline, 0), ())).into_iter().collect();
        let (hooks, expired) = Expiry::new(&Arc::new(Mutex::new(keys)));
        let builder = Server::udp(LOCAL).unwrap().hooks(hooks);
        let service =
            builder.service(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
        server.add(service.unwrap()).unwrap();
        told.push(expired);
    }
    let server = start_server(server);
    let (when, _) = expect_next(&told[2]);
    assert!(when >= now + A_WHILE);
    drop(server);
    let calls: Vec<usize> = told.iter().map(|told| told.try_iter().count()).collect();
    assert_eq!(calls, [1, 0, 0], "beside the one of the last");
}

#[test]
fn actions_come_at_their_time_while_handle_request_waits() {
    for mode in all_modes() {
        let deadline = Instant::now() + A_WHILE / 3;
        let keys = BTreeMap::from([((deadline, 0), ())]);
        let (hooks, expired) = Expiry::new(&Arc::new(Mutex::new(keys)));
        let builder = Server::tcp(LOCAL).unwrap().hooks(hooks).mode(mode);
        let server = builder.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
        let mut server = server.unwrap();
        server.request_timeout(A_WHILE);
        assert!(!server.handle_request().unwrap(), "{mode}");
        let (when, count) = expect_next(&expired);
        assert!(when >= deadline && count == 1, "{mode}");
    }
}

#[test]
fn a_next_action_that_panics_is_counted_and_costs_nobody_anything() {
    struct Panics;
    impl Hooks for Panics {
        fn next_action(&mut self) -> Option<Instant> {
            panic!("on purpose");
        }
    }
    let server = Server::tcp(LOCAL).unwrap().hooks(Panics);
    let server = server.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
    let server = start_server(server.unwrap());
    server.connect().send("hello").expect_reply("hello").end().expect_closed();
    server.wait_for("the turns are counted", |counters| counters.closed == 1);
    let counters = server.counters();
    assert_eq!(counters.panics, 1 + counters.turns, "one when it begins, one after each turn");
}

/// The others are served in each turn.
#[test]
fn a_deadline_that_has_always_passed_keeps_nobody_from_being_served() {
    struct Late(Instant);
    impl Hooks for Late {
        fn next_action(&mut self) -> Option<Instant> {
            Some(self.0)
        }
    }
    for mode in all_modes() {
        let builder = Server::tcp(LOCAL).unwrap().hooks(Late(Instant::now())).mode(mode);
        let server = builder.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
        let server = start_server(server.unwrap());
        for _ in 0..3 {
            server.connect().send("hello").expect_reply("hello").end().expect_closed();
        }
        let (_server, report) = server.stop();
        assert_eq!(report.aborted, 0, "{mode}");
    }
}

// Hooks of a local service

/// What the handlers and the hooks of one run share: when which key expires, and how many have.
#[derive(Default)]
struct Shared {
    keys: BTreeMap<Instant, ()>,
    expired: usize,
}

struct LocalExpiry(Rc<RefCell<Shared>>);

impl Hooks for LocalExpiry {
    fn next_action(&mut self) -> Option<Instant> {
        self.0.borrow().keys.first_key_value().map(|(deadline, ())| *deadline)
    }

    fn service_actions(&mut self) {
        let mut shared = self.0.borrow_mut();
        let later = shared.keys.split_off(&Instant::now());
        shared.expired += std::mem::replace(&mut shared.keys, later).len();
    }
}

/// Adds a key when it is told to, and answers how many have expired.
struct LocalKeys(Rc<RefCell<Shared>>);

impl Handler for LocalKeys {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let mut shared = self.0.borrow_mut();
        if message == b"set" {
            shared.keys.insert(Instant::now() + Duration::from_millis(20), ());
        }
        cx.send(shared.expired.to_string().as_bytes())
    }
}

fn expect_local_expiry(mode: impl HandlerMode<LocalKeys>) {
    let builder = Server::tcp(LOCAL).unwrap().framing(Lines::default()).mode(mode);
    let server = builder.serve_local_with_hooks(|| {
        let shared = Rc::<RefCell<Shared>>::default();
        let hooks = LocalExpiry(shared.clone());
        (move |_: &Accepted<'_>| LocalKeys(shared.clone()), hooks)
    });
    let mut server = server.unwrap();
    // What belongs to a run is new in the next.
    for _ in 0..2 {
        let running = start_server(server);
        for round in 0..3 {
            running
                .connect()
                .send("set\n")
                .expect_reply(format!("{round}\n"))
                .end()
                .expect_closed();
            wait_until("it has expired", || {
                let mut client = running.connect();
                client.send("how many?\n").end();
                client.read_to_end() == format!("{}\n", round + 1).as_bytes()
            });
        }
        (server, _) = running.stop();
    }
}

#[test]
fn handlers_and_hooks_of_a_local_service_share_what_is_not_send() {
    expect_local_expiry(Reactor);
    expect_local_expiry(Inline);
}

/// Hooks that note what they are called for, in what need not be `Send`.
struct LocalNotes {
    run: usize,
    notes: Rc<mpsc::Sender<String>>,
}

impl LocalNotes {
    fn note(&self, what: &str) {
        // The test may be over.
        let _ = self.notes.send(format!("{}: {what}", self.run));
    }
}

impl Hooks for LocalNotes {
    fn verify_request(&mut self, _: &Peer) -> bool {
        self.note("verify_request");
        true
    }

    fn handle_error(&mut self, _: &Peer, reason: &CloseReason) {
        self.note(&reason.to_string());
    }

    fn handle_timeout(&mut self) {
        self.note("handle_timeout");
    }
}

impl Drop for LocalNotes {
    fn drop(&mut self) {
        self.note("dropped");
        panic!("in the destructor of hooks, on purpose");
    }
}

#[test]
fn hooks_of_a_local_service_are_made_for_each_run_and_dropped_after_it() {
    // What hooks note in a forked child reaches nobody.
    for mode in all_modes().filter(|mode| mode.name() != "forking") {
        let (notes, noted) = mpsc::channel();
        let mut runs = 0;
        let builder = Server::tcp(LOCAL).unwrap().mode(mode);
        let server = builder.serve_local_with_hooks(move || {
            runs += 1;
            let hooks = LocalNotes { run: runs, notes: Rc::new(notes.clone()) };
            (|_: &Accepted<'_>| handler_fn(|_, _| Err("no answer".into())), hooks)
        });
        let mut server = server.unwrap();
        server.request_timeout(A_WHILE / 10);
        assert!(!server.handle_request().unwrap());
        assert_eq!(noted.try_iter().collect::<Vec<_>>(), ["1: handle_timeout", "1: dropped"]);
        let server = start_server(server);
        server.connect().send("hello").expect_closed();
        server.wait_for("it is closed", |counters| counters.closed == 1);
        let (server, _) = server.stop();
        let expected = ["2: verify_request", "2: handler failed: no answer", "2: dropped"];
        assert_eq!(noted.try_iter().collect::<Vec<_>>(), expected, "{mode}");
        assert_eq!(server.counters().panics, 2, "{mode}: one for each of the destructors");
    }
}

#[test]
fn a_local_service_whose_start_panics_fails_the_run_and_the_next_may_succeed() {
    for datagrams in [false, true] {
        let mut runs = 0;
        let start = move || {
            runs += 1;
            assert!(runs != 1, "no hooks today");
            (|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)), NoHooks)
        };
        let builder = if datagrams { Server::udp(LOCAL) } else { Server::tcp(LOCAL) };
        let mut server = builder.unwrap().serve_local_with_hooks(start).unwrap();
        let error = server.serve_forever().unwrap_err();
        assert!(format!("{error:#}").contains("no hooks today"), "{error:#}");
        assert_eq!(server.counters().panics, 1);
        server.request_timeout(Duration::ZERO);
        assert!(!server.handle_request().unwrap());
    }
}

/// Pauses for a millisecond at a time while the flag is set.
struct PausesWhile(Arc<AtomicBool>);

impl Hooks for PausesWhile {
    fn pause_receiving(&mut self) -> Option<Duration> {
        self.0.load(SeqCst).then_some(Duration::from_millis(1))
    }
}

#[test]
fn datagrams_wait_in_the_kernel_while_a_hook_pauses_their_service_under_every_mode() {
    let directory = std::env::temp_dir().join(format!("hooks-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for mode in all_modes() {
        let paused = Arc::new(AtomicBool::new(true));
        let path = directory.join("socket");
        let hooks = PausesWhile(paused.clone());
        let builder = Server::unix_datagram(&path).unwrap().mode(mode).hooks(hooks);
        let server = builder.serve(|_| handler_fn(|_: &[u8], _: &mut Context<'_>| Ok(())));
        let server = start_server(server.unwrap());
        let client = UnixDatagram::unbound().unwrap();
        client.connect(&path).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while client.send(b"waits").is_ok() {
            sent += 1;
        }
        assert!(sent > 0, "{mode}");
        thread::sleep(A_WHILE / 3);
        assert_eq!(server.counters().datagrams, 0, "{mode}");
        assert!(client.send(b"no room").is_err(), "{mode}");
        paused.store(false, SeqCst);
        server.wait_for("all are received", |counters| counters.datagrams == sent);

        // Without datagrams there is no turn, and a paused service stops at once.
        thread::sleep(A_WHILE / 10);
        let turns = server.counters().turns;
        thread::sleep(A_WHILE / 3);
        assert_eq!(server.counters().turns, turns, "{mode}");
        paused.store(true, SeqCst);
        client.send(b"stopped").unwrap();
        server.stop();
    }
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_service_whose_hook_panics_instead_of_pausing_receives() {
    struct Panics;
    impl Hooks for Panics {
        fn pause_receiving(&mut self) -> Option<Duration> {
            panic!("on purpose")
        }
    }
    let builder = Server::udp(LOCAL).unwrap().hooks(Panics);
    let server = builder.serve(|_| handler_fn(|message, cx| cx.send(message)));
    let server = start_server(server.unwrap());
    let client = UdpSocket::bind(LOCAL).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client.send_to(b"hello", server.address()).unwrap();
    assert_eq!(client.recv(&mut [0; 100]).unwrap(), 5);
    server.wait_for("the panic is counted", |counters| counters.panics > 0);
}
