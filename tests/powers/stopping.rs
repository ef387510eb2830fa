//! `on_stop`: each connection is told once that the server stops, idle ones close then, and all others have
//! until the drain deadline.

#![allow(unreachable_pub)] // a module of a test is public to nobody

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socketserver::{CloseReason, Context, Handler, HandlerResult, Lines, Service};

use super::process::{DEADLINE, Gate, Stream, wait_at_gate};
use super::server::{Cell, Checker, Setup, TestServer, pattern, print_line, violation};
use super::{Power, powers};

/// How long a stream is, in bytes, of which the kernel takes only a part.
const LENGTH: u64 = 24 << 20;

/// How often a handler looks whether the test has created a file.
const LOOK: Duration = Duration::from_millis(5);

/// Answers lines, and says goodbye when the server stops.
struct Goodbye {
    directory: PathBuf,
    stops: u32,
    /// How much of its stream it has made.
    made: Option<u64>,
    /// It has something to do when the server stops.
    has_last_work: bool,
    has_last_stream: bool,
    stops_again: bool,
}

impl Goodbye {
    fn new(directory: &Path) -> Self {
        Goodbye {
            directory: directory.to_owned(),
            stops: 0,
            made: None,
            has_last_work: false,
            has_last_stream: false,
            stops_again: false,
        }
    }

    fn stream(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        while let Some(made) = self.made
            && cx.room() > 0
        {
            if made == LENGTH {
                cx.close();
                break;
            }
            let chunk = pattern(made, usize::try_from(LENGTH - made)?.min(10_007));
            cx.output().put(chunk);
            self.made = Some(made + chunk.len() as u64);
        }
        Ok(())
    }
}

impl Handler for Goodbye {
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        match line {
            b"wait" => {
                wait_at_gate(&self.directory.join("gate"));
                cx.send(b"waited")
            }
            b"pause" => {
                cx.pause_input();
                cx.set_timer(Instant::now() + LOOK)?;
                cx.send(b"paused")
            }
            b"stream" => {
                self.made = Some(0);
                self.stream(cx)
            }
            b"begin" | b"end" => {
                cx.set_busy(line == b"begin");
                cx.send(line)
            }
            b"last work" => {
                self.has_last_work = true;
                cx.send(line)
            }
            b"last stream" => {
                self.has_last_stream = true;
                cx.send(line)
            }
            b"stop" => {
                self.stops_again = true;
                cx.stop_server();
                cx.stop_server();
                cx.send(b"stopping")
            }
            _ => cx.send(line),
        }
    }

    fn on_writable(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.stream(cx)
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if !self.directory.join("release").exists() {
            return Ok(cx.set_timer(Instant::now() + LOOK)?);
        }
        cx.resume_input();
        cx.send(b"released")
    }

    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.stops += 1;
        if self.stops > 1 {
            violation("on_stop twice");
        }
        if self.stops_again {
            cx.stop_server();
        }
        if self.has_last_work {
            cx.pause_input();
            cx.set_timer(Instant::now() + LOOK)?;
        }
        if self.has_last_stream {
            self.made = Some(0);
            return self.stream(cx);
        }
        match self.made {
            None => cx.send(b"goodbye"),
            Some(_) => Ok(()),
        }
    }

    fn on_close(&mut self, reason: &CloseReason) {
        print_line(format_args!("{} stop, {reason}", self.stops));
    }
}

pub fn service(setup: Setup) -> Service {
    setup.serve(|directory| (Lines::default(), Goodbye::new(directory)))
}

/// The reason of a connection that the stop has closed.
const STOPPED: &str = "1 stop, the server is stopping";

/// A connection that is being served, and has nothing under way.
fn idle(server: &TestServer) -> Stream {
    let mut client = server.connect();
    client.send("hello\n").expect("hello\n");
    client
}

fn idle_connections_are_told_of_the_stop_and_closed(cell: &Cell) {
    let mut server = cell.start("goodbye");
    let count = if cell.serves_beside() { 3 } else { 1 };
    let mut clients: Vec<_> = (0..count).map(|_| idle(&server)).collect();
    server.wait_until_asleep();
    server.process.terminate();
    for client in &mut clients {
        client.expect("goodbye\n").expect_end();
    }
    for _ in 0..count {
        server.expect_line(STOPPED);
    }
    let at_exit = server.wait();
    assert_eq!((at_exit.idle, at_exit.finished, at_exit.aborted), (count, 0, 0), "{at_exit:?}");
    assert_eq!(at_exit.lines, [""; 0]);
}

/// A connection whose peer has not yet sent the end of its line.
fn a_connection_with_a_message_in_part_is_told_of_the_stop_and_finishes(cell: &Cell) {
    let mut server = cell.start("goodbye");
    let mut client = server.connect();
    client.send("one\ntw").expect("one\n");
    server.process.terminate();
    client.expect("goodbye\n").send("o\n").expect("two\n").expect_end();
    server.expect_line(STOPPED);
    let at_exit = server.wait();
    assert_eq!((at_exit.idle, at_exit.finished, at_exit.aborted), (0, 1, 0), "{at_exit:?}");
}

/// A connection whose request is in progress between two messages.
fn a_connection_that_is_busy_between_two_messages_finishes_after_the_stop(cell: &Cell) {
    let mut server = cell.start("goodbye");
    let mut client = server.connect();
    client.send("begin\nend\nbegin\n").expect("begin\nend\nbegin\n");
    server.wait_until_asleep();
    server.process.terminate();
    client.expect("goodbye\n").send("more\n").expect("more\n");
    client.send("end\n").expect("end\n").expect_end();
    server.expect_line(STOPPED);
    let at_exit = server.wait();
    assert_eq!((at_exit.idle, at_exit.finished, at_exit.aborted), (0, 1, 0), "{at_exit:?}");
}

/// A connection whose handler works on a message.
fn a_connection_whose_handler_works_is_told_of_the_stop_when_it_has_answered(cell: &Cell) {
    let mut server = cell.start("goodbye");
    let gate = Gate::at(&server.file("gate"));
    let mut client = server.connect();
    client.send("wait\n");
    let arrival = gate.expect_arrival();
    server.process.terminate();
    arrival.release();
    client.expect("waited\ngoodbye\n").expect_end();
    server.expect_line(STOPPED);
    // On the loop's thread the stop begins when the handler has returned.
    let at_exit = server.wait();
    assert_eq!((at_exit.idle + at_exit.finished, at_exit.aborted), (1, 0), "{at_exit:?}");
}

fn a_paused_connection_is_told_of_the_stop_and_finishes(cell: &Cell) {
    let mut server = cell.start("goodbye");
    let mut client = server.connect();
    client.send("pause\n").expect("paused\n");
    server.process.terminate();
    client.expect("goodbye\n");
    server.create_file("release");
    client.expect("released\n").expect_end();
    server.expect_line(STOPPED);
    let at_exit = server.wait();
    assert_eq!((at_exit.idle, at_exit.finished, at_exit.aborted), (0, 1, 0), "{at_exit:?}");
}

/// It pauses its input for as long as that takes.
fn a_handler_can_begin_its_last_work_in_on_stop(cell: &Cell) {
    let mut server = cell.start("goodbye");
    let mut client = server.connect();
    client.send("last work\n").expect("last work\n");
    server.wait_until_asleep();
    server.process.terminate();
    client.expect("goodbye\n");
    server.create_file("release");
    client.expect("released\n").expect_end();
    server.expect_line(STOPPED);
    assert_eq!(server.wait().aborted, 0);
}

fn a_handler_can_begin_its_last_stream_in_on_stop(cell: &Cell) {
    let mut server = cell.start("goodbye");
    let mut client = server.connect();
    client.send("last stream\n").expect("last stream\n");
    server.wait_until_asleep();
    server.process.terminate();
    let mut checker = Checker::default();
    checker.read_to_end(&mut client);
    assert_eq!(checker.at, LENGTH);
    server.expect_line("1 stop, closed by the handler");
    assert_eq!(server.wait().aborted, 0);
}

fn a_connection_with_output_to_come_is_told_of_the_stop_and_finishes(cell: &Cell) {
    let mut server = cell.start("goodbye");
    let mut client = server.connect();
    client.send("stream\n");
    let mut checker = Checker::default();
    let mut buffer = vec![0; 64 * 1024];
    let count = client.socket.read(&mut buffer).unwrap();
    checker.check(&buffer[..count]);
    server.process.terminate();
    checker.read_to_end(&mut client);
    assert_eq!(checker.at, LENGTH);
    server.expect_line("1 stop, closed by the handler");
    let at_exit = server.wait();
    assert_eq!((at_exit.idle, at_exit.finished, at_exit.aborted), (0, 1, 0), "{at_exit:?}");
}

fn a_handler_that_stops_the_server_again_and_again_is_told_once(cell: &Cell) {
    let mut server = cell.start("goodbye");
    let mut client = server.connect();
    client.send("stop\nin pa").expect("stopping\ngoodbye\n");
    client.send("rt\n").expect("in part\n").expect_end();
    server.expect_line(STOPPED);
    let at_exit = server.wait();
    assert_eq!((at_exit.aborted, &at_exit.lines[..]), (0, &[][..]), "{at_exit:?}");
}

/// For each kind of connection that does not finish.
fn connections_that_do_not_finish_are_aborted_at_the_drain_deadline(cell: &Cell) {
    for (sent, reply) in
        [("one\ntw", "one\ngoodbye\n"), ("pause\n", "paused\ngoodbye\n"), ("stream\n", "")]
    {
        let mut server = cell.start_draining("goodbye", Duration::from_millis(200));
        let mut client = server.connect();
        client.send(sent);
        if reply.is_empty() {
            // It takes nothing but the beginning.
            client.socket.read_exact(&mut [0; 1]).unwrap();
        } else {
            let before = reply.split_inclusive('\n').next().unwrap();
            client.expect(before);
        }
        let begun = Instant::now();
        server.process.terminate();
        if let Some((_, goodbye)) = reply.split_once('\n') {
            client.expect(goodbye);
        }
        // A child process is killed, and prints nothing.
        if !cell.forks() {
            let line = server.line();
            assert!(line.ends_with("stop, the server is stopping"), "{sent:?}: {line}");
        }
        let at_exit = server.wait();
        let counts = (at_exit.idle, at_exit.finished, at_exit.aborted);
        assert_eq!(counts, (0, 0, 1), "{sent:?}: {at_exit:?}");
        assert!(begun.elapsed() < DEADLINE);
        client.expect_gone();
    }
}

pub fn powers() -> Vec<Power> {
    powers![
        idle_connections_are_told_of_the_stop_and_closed,
        a_connection_with_a_message_in_part_is_told_of_the_stop_and_finishes,
        a_connection_that_is_busy_between_two_messages_finishes_after_the_stop,
        a_connection_whose_handler_works_is_told_of_the_stop_when_it_has_answered,
        a_paused_connection_is_told_of_the_stop_and_finishes,
        a_handler_can_begin_its_last_work_in_on_stop,
        a_handler_can_begin_its_last_stream_in_on_stop,
        a_connection_with_output_to_come_is_told_of_the_stop_and_finishes,
        a_handler_that_stops_the_server_again_and_again_is_told_once,
        connections_that_do_not_finish_are_aborted_at_the_drain_deadline,
    ]
}
