//! What hooks do beside requests: actions at a time that they say.

mod support;

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socketserver::{Context, Hooks, Mode, Peer, Server, handler_fn};
use support::{A_WHILE, expect_told, start_server};

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
        let server = builder.serve(|_: &Peer| handler_fn(|message, cx| cx.send(message)));
        let server = start_server(server.unwrap());
        for deadline in [first, last] {
            let (when, count) = expect_told(&expired);
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
        let server = builder.serve(move |_: &Peer| {
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
            let (when, count) = expect_told(&expired);
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
        let service = builder.service(|_: &Peer| handler_fn(|message, cx| cx.send(message)));
        server.add(service.unwrap()).unwrap();
        told.push(expired);
    }
    let server = start_server(server);
    let (when, _) = expect_told(&told[2]);
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
        let server = builder.serve(|_: &Peer| handler_fn(|message, cx| cx.send(message)));
        let mut server = server.unwrap();
        server.request_timeout(A_WHILE);
        assert!(!server.handle_request().unwrap(), "{mode}");
        let (when, count) = expect_told(&expired);
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
    let server = server.serve(|_: &Peer| handler_fn(|message, cx| cx.send(message)));
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
        let server = builder.serve(|_: &Peer| handler_fn(|message, cx| cx.send(message)));
        let server = start_server(server.unwrap());
        for _ in 0..3 {
            server.connect().send("hello").expect_reply("hello").end().expect_closed();
        }
        let (_server, report) = server.stop();
        assert_eq!(report.aborted, 0, "{mode}");
    }
}
