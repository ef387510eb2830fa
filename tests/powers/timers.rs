//! `set_timer` and `on_timer`: a deadline holds whatever else the connection does, and keeps nothing else
//! from its turn.

#![allow(unreachable_pub)] // a module of a test is public to nobody

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use socketserver::{CloseReason, Context, Handler, HandlerResult, Lines, Raw, Service};

use super::heap::Heap;
use super::process::Stream;
use super::server::{Cell, Checker, Setup, pattern, print_line, violation};
use super::{Power, powers};

/// How late a timer may be on a busy machine.
const LATE: Duration = Duration::from_secs(5);

/// Sets timers as its client asks.
#[derive(Debug, Default)]
struct Timed {
    deadline: Option<Instant>,
    period: Duration,
    /// How many times the timer has come, and how many it is to come.
    came: u32,
    wanted: u32,
    always_due: bool,
    after_the_end: bool,
}

impl Timed {
    fn set(&mut self, at: Instant, cx: &mut Context<'_>) -> HandlerResult {
        self.deadline = Some(at);
        Ok(cx.set_timer(at)?)
    }
}

impl Handler for Timed {
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let line = std::str::from_utf8(line)?;
        match line.split_once(' ') {
            Some(("timer", milliseconds)) => {
                (self.came, self.wanted) = (0, 1);
                self.set(cx.now() + Duration::from_millis(milliseconds.parse()?), cx)
            }
            Some(("period", milliseconds)) => {
                (self.came, self.wanted) = (0, 5);
                self.period = Duration::from_millis(milliseconds.parse()?);
                self.set(cx.now() + self.period, cx)
            }
            Some(("idle", milliseconds)) => {
                (self.wanted, self.period) = (u32::MAX, Duration::from_millis(5));
                cx.set_idle_timeout(Duration::from_millis(milliseconds.parse()?))?;
                self.set(cx.now() + self.period, cx)
            }
            _ if line == "always due" => {
                self.always_due = true;
                self.set(cx.now(), cx)
            }
            _ if line == "off" => {
                self.deadline = None;
                cx.set_timer(None)?;
                cx.send(b"off")
            }
            _ if line == "after the end" => {
                self.after_the_end = true;
                cx.send(b"yes")
            }
            _ if line == "count" => cx.send(self.came.to_string().as_bytes()),
            _ if line == "pause" => {
                cx.pause_input();
                cx.send(b"paused")
            }
            _ => cx.send(line.as_bytes()),
        }
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let now = Instant::now();
        match self.deadline.take() {
            None => violation("on_timer without a timer"),
            Some(at) if now < at || cx.now() < at => violation("on_timer before its deadline"),
            Some(at) if now > at + LATE => violation(format_args!("on_timer {:?} late", now - at)),
            Some(_) => {}
        }
        self.came += 1;
        if self.always_due {
            return self.set(cx.now(), cx);
        }
        if self.wanted < u32::MAX {
            cx.send(format!("timer {}", self.came).as_bytes())?;
        }
        if self.came < self.wanted {
            return self.set(cx.now() + self.period, cx);
        }
        Ok(())
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if !self.after_the_end {
            cx.close();
            return Ok(());
        }
        // No period follows, so that the connection closes after the last one.
        (self.wanted, self.period) = (3, Duration::from_millis(10));
        self.set(cx.now() + self.period, cx)
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(format!("idle after {} timers", self.came.min(3)).as_bytes())?;
        cx.close();
        Ok(())
    }

    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(b"goodbye")
    }

    fn on_close(&mut self, reason: &CloseReason) {
        if self.always_due {
            print_line(reason);
        }
    }
}

pub fn service(setup: Setup) -> Service {
    setup.serve(|_| (Lines::default(), Timed::default()))
}

/// Pipelines one line again and again from a thread while `read` reads what comes back.
fn beside_traffic(client: &mut Stream, line: &str, read: impl FnOnce(&mut dyn FnMut() -> String)) {
    let lines = line.repeat(500);
    let over = AtomicBool::new(false);
    let mut writer = client.socket.try_clone().unwrap();
    let mut reader = BufReader::new(&client.socket);
    let mut next = || {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                writer.write_all(lines.as_bytes()).unwrap();
            }
            writer.write_all(b"over\n").unwrap();
        });
        read(&mut next);
        over.store(true, SeqCst);
        while next() != "over\n" {}
    });
}

fn a_timer_beside_constant_traffic_comes_once_and_at_its_time(cell: &Cell) {
    let server = cell.start("timers");
    let mut client = server.connect();
    client.send("timer 200\n");
    beside_traffic(&mut client, "ping\n", |next| {
        let mut pings = 0;
        loop {
            match next().as_str() {
                "ping\n" => pings += 1,
                line => break assert_eq!(line, "timer 1\n"),
            }
        }
        assert!(pings > 0);
        // Not again.
        for _ in 0..5_000 {
            assert_eq!(next(), "ping\n");
        }
    });
    client.send("count\n").expect("1\n").end().expect_end();
    server.stop_quietly();
}

fn a_timer_that_is_set_again_and_again_comes_each_time(cell: &Cell) {
    let server = cell.start("timers");
    let mut client = server.connect();
    client.send("period 20\n");
    beside_traffic(&mut client, "ping\n", |next| {
        for number in 1..=5 {
            loop {
                let line = next();
                if line != "ping\n" {
                    break assert_eq!(line, format!("timer {number}\n"));
                }
            }
        }
    });
    client.send("count\n").expect("5\n");
    // Without traffic, too.
    client.send("period 20\n");
    for number in 1..=5 {
        client.expect(format!("timer {number}\n"));
    }
    client.end().expect_end();
    server.stop_quietly();
}

fn a_timer_can_be_taken_back_and_replaced(cell: &Cell) {
    let server = cell.start("timers");
    let mut client = server.connect();
    client.send("timer 50\noff\n").expect("off\n");
    client.send("timer 10\ntimer 100\n").expect("timer 1\n");
    client.send("count\n").expect("1\n").end().expect_end();
    server.stop_quietly();
}

fn a_timer_does_not_put_off_the_idle_timeout(cell: &Cell) {
    let server = cell.start("timers");
    let mut client = server.connect();
    client.send("idle 100\n").expect("idle after 3 timers\n").expect_end();
    server.stop_quietly();
}

fn a_timer_keeps_a_connection_whose_peer_has_ended(cell: &Cell) {
    let server = cell.start("timers");
    let mut client = server.connect();
    client.send("after the end\n").end();
    client.expect("yes\ntimer 1\ntimer 2\ntimer 3\n").expect_end();
    server.stop_quietly();
}

fn a_timer_that_is_always_due_lets_input_and_the_stop_through(cell: &Cell) {
    let mut server = cell.start("timers");
    let mut client = server.connect();
    client.send("always due\n");
    for _ in 0..100 {
        client.send("ping\n").expect("ping\n");
    }
    let other = cell.serves_beside().then(|| {
        let mut other = server.connect();
        other.send("hello\n").expect("hello\n");
        other
    });
    let connections = if other.is_some() { 2 } else { 1 };
    server.process.terminate();
    client.expect("goodbye\n").expect_end();
    other.into_iter().for_each(|mut other| other.expect("goodbye\n").expect_end());
    server.expect_line("the server is stopping");
    // A worker may have it when the stop begins.
    let at_exit = server.wait();
    assert_eq!((at_exit.idle + at_exit.finished, at_exit.aborted), (connections, 0), "{at_exit:?}");
}

fn a_timer_that_is_always_due_does_not_outlast_the_drain_deadline(cell: &Cell) {
    let mut server = cell.start_draining("timers", Duration::from_millis(200));
    let mut client = server.connect();
    client.send("always due\npause\nleft\n").expect("paused\n");
    server.process.terminate();
    client.expect("goodbye\n").expect_gone();
    // A child process is killed.
    if !cell.forks() {
        server.expect_line("the server is stopping");
    }
    let at_exit = server.wait();
    assert_eq!((at_exit.idle, at_exit.finished, at_exit.aborted), (0, 0, 1), "{at_exit:?}");
}

/// Makes a stream as long as its client asks for. Its timer comes again and again.
#[derive(Debug)]
struct StalledStream {
    heap: Heap,
    made: u64,
    length: u64,
    /// How much was made when the timer came last, and how many times in turn that was the same.
    seen: (u64, u32),
    release: PathBuf,
}

impl StalledStream {
    fn new(directory: &Path) -> Self {
        let release = directory.join("release");
        StalledStream { heap: Heap::default(), made: 0, length: 0, seen: (0, 0), release }
    }

    fn go_on(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        while self.made < self.length {
            let room = cx.room();
            if room == 0 {
                return Ok(());
            }
            let left = usize::try_from(self.length - self.made)?;
            let chunk = pattern(self.made, left.min(room).min(10_007));
            cx.send(chunk)?;
            self.made += chunk.len() as u64;
        }
        cx.close();
        Ok(())
    }
}

const PERIOD: Duration = Duration::from_millis(5);

impl Handler for StalledStream {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        pattern(0, 0); // its table does not count
        let text = std::str::from_utf8(message)?;
        let (idle, length) = match text.split_once(' ') {
            Some((length, idle)) => (idle.parse().map(Duration::from_millis).ok(), length),
            None => (None, text),
        };
        (self.heap, self.length) = (Heap::measure(), length.parse()?);
        cx.set_idle_timeout(idle)?;
        cx.set_timer(cx.now() + PERIOD)?;
        self.go_on(cx)
    }

    fn on_writable(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.go_on(cx)
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.go_on(cx)?;
        let (made, times) = self.seen;
        self.seen = if made == self.made { (made, times + 1) } else { (self.made, 0) };
        if self.seen.1 == 40 {
            print_line(format_args!("memory {}", self.heap.grown_by()));
        }
        if !self.release.exists() {
            cx.set_timer(cx.now() + PERIOD)?;
        }
        Ok(())
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        print_line("idle");
        cx.abort();
        Ok(())
    }
}

pub fn stalled(setup: Setup) -> Service {
    setup.serve(|directory| (Raw, StalledStream::new(directory)))
}

/// At most 64 KiB wait for such a peer, and some more while they are moved.
fn a_timer_comes_while_the_peer_takes_no_output_and_finds_no_room_there(cell: &Cell) {
    let mut server = cell.start("stalled");
    let mut client = server.connect();
    let length = 32 << 20;
    client.send(length.to_string());
    let memory = server.number("memory");
    assert!(memory < 512 * 1024, "{memory} bytes of memory");
    server.create_file("release");
    let mut checker = Checker::default();
    checker.read_to_end(&mut client);
    assert_eq!(checker.at, length);
    server.stop_quietly();
}

fn a_timer_does_not_put_off_the_idle_timeout_of_a_peer_that_takes_no_output(cell: &Cell) {
    let mut server = cell.start("stalled");
    let mut client = server.connect();
    client.send(format!("{} 300", 32 << 20));
    // The kernel may take some more after a while.
    while server.line() != "idle" {}
    client.expect_gone();
    assert_eq!(server.stop().aborted, 0);
}

pub fn powers() -> Vec<Power> {
    powers![
        a_timer_beside_constant_traffic_comes_once_and_at_its_time,
        a_timer_that_is_set_again_and_again_comes_each_time,
        a_timer_can_be_taken_back_and_replaced,
        a_timer_does_not_put_off_the_idle_timeout,
        a_timer_keeps_a_connection_whose_peer_has_ended,
        a_timer_that_is_always_due_lets_input_and_the_stop_through,
        a_timer_that_is_always_due_does_not_outlast_the_drain_deadline,
        a_timer_comes_while_the_peer_takes_no_output_and_finds_no_room_there,
        a_timer_does_not_put_off_the_idle_timeout_of_a_peer_that_takes_no_output,
    ]
}
