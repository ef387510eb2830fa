//! `pause_input` and `resume_input`: the replies of a pipelined connection keep their order although they
//! come from elsewhere, and a paused connection loses nothing and is left to nobody.

#![allow(unreachable_pub)] // a module of a test is public to nobody

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use socketserver::{CloseReason, Context, Event, Handler, HandlerResult, Lines, Sender, Service};

use super::heap::Heap;
use super::process;
use super::server::{Cell, Setup, Transport, print_line, violation};
use super::{Power, powers};

/// How often a handler looks whether the test has created a file.
const LOOK: Duration = Duration::from_millis(5);

/// The reply to a request, made by another thread.
struct Reply(Vec<u8>);

/// A thread that makes the replies of one connection.
type Replier = mpsc::Sender<(Sender, Vec<u8>)>;

fn start_replier() -> Replier {
    let (give, given) = mpsc::channel::<(Sender, Vec<u8>)>();
    thread::spawn(move || {
        for (sender, request) in given {
            // The connection may have been closed since.
            let _ = sender.post(Box::new(Reply(request)));
        }
    });
    give
}

/// Has one request at a time under way, and pauses its input meanwhile.
struct Pausing {
    directory: PathBuf,
    replier: Option<Replier>,
    /// The reply to be sent when the timer comes, and what that waits for.
    pending: Option<(Vec<u8>, Option<PathBuf>)>,
    under_way: bool,
    heap: Option<Heap>,
    bytes: usize,
}

impl Pausing {
    fn new(directory: &Path) -> Self {
        Pausing {
            directory: directory.to_owned(),
            replier: None,
            pending: None,
            under_way: false,
            heap: None,
            bytes: 0,
        }
    }

    /// Waits for a timer, and for a file if one is named.
    fn wait(&mut self, reply: &[u8], file: Option<&str>, cx: &mut Context<'_>) -> HandlerResult {
        self.pending = Some((reply.to_vec(), file.map(|name| self.directory.join(name))));
        self.pause(cx);
        Ok(cx.set_timer(cx.now())?)
    }

    fn pause(&mut self, cx: &mut Context<'_>) {
        self.under_way = true;
        cx.pause_input();
    }

    fn reply(&mut self, reply: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        self.under_way = false;
        cx.resume_input();
        cx.send(reply)
    }
}

impl Handler for Pausing {
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if self.under_way {
            violation("a message while the input is paused");
        }
        let text = std::str::from_utf8(line)?;
        match text.split_once(' ').unwrap_or((text, "")) {
            ("post", reply) => match cx.sender() {
                Ok(sender) => {
                    let replier = self.replier.get_or_insert_with(start_replier);
                    replier.send((sender, reply.as_bytes().to_vec()))?;
                    self.pause(cx);
                    Ok(())
                }
                Err(error) => cx.send(format!("{error:?}").as_bytes()),
            },
            ("timer", reply) => self.wait(reply.as_bytes(), None, cx),
            ("hold", file) => {
                cx.send(b"held")?;
                self.heap = Some(Heap::measure());
                self.wait(b"released", Some(file), cx)
            }
            ("stuck", _) => {
                cx.pause_input();
                cx.send(b"last words")
            }
            ("drop", file) => {
                // The connection is paused for as long as a thread has its sender.
                let (sender, file) = (cx.sender()?, self.directory.join(file));
                thread::spawn(move || {
                    process::eventually("the file is there", || file.exists());
                    drop(sender);
                });
                cx.pause_input();
                cx.send(b"held")
            }
            ("close" | "abort", _) => {
                self.pause(cx);
                let (sender, aborts) = (cx.sender()?, text == "abort");
                thread::spawn(move || {
                    sender.send(b"from the sender").unwrap();
                    if aborts { sender.abort() } else { sender.close() }
                });
                Ok(())
            }
            ("idle", _) => {
                self.pause(cx);
                Ok(cx.set_idle_timeout(Duration::from_millis(30))?)
            }
            ("flip", reply) => {
                cx.pause_input();
                cx.resume_input();
                cx.send(reply.as_bytes())
            }
            ("bytes", _) => cx.send(self.bytes.to_string().as_bytes()),
            _ => {
                self.bytes += line.len();
                Ok(())
            }
        }
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let (reply, file) = self.pending.take().ok_or("a timer without a request")?;
        if let Some(file) = file.filter(|file| !file.exists()) {
            self.pending = Some((reply, Some(file)));
            return Ok(cx.set_timer(Instant::now() + LOOK)?);
        }
        if let Some(heap) = self.heap.take() {
            print_line(format_args!("memory {}", heap.grown_by()));
        }
        self.reply(&reply, cx)
    }

    fn on_event(&mut self, event: Event, cx: &mut Context<'_>) -> HandlerResult {
        let reply = event.downcast::<Reply>().map_err(|_| "another event")?;
        self.reply(&reply.0, cx)
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.set_idle_timeout(None)?;
        self.reply(b"idle", cx)
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(if self.under_way { b"end while paused" } else { b"end" })?;
        cx.close();
        Ok(())
    }

    fn on_close(&mut self, reason: &CloseReason) {
        match reason {
            CloseReason::Disconnected(_) => print_line("disconnected"),
            reason => print_line(reason),
        }
    }
}

pub fn service(setup: Setup) -> Service {
    setup.serve(|directory| (Lines::default(), Pausing::new(directory)))
}

/// More than a conversation delivers at once.
const REQUESTS: usize = 600;

/// Requests of which each is answered by `way`, and the replies.
fn pipeline(way: &str) -> (String, String) {
    let numbers = || (0..REQUESTS).map(|number| number.to_string());
    let requests = numbers().map(|number| format!("{way} {number}\n")).collect();
    (requests, numbers().map(|number| number + "\n").collect())
}

fn check_pipeline(cell: &Cell, way: &str) {
    let mut server = cell.start("pausing");
    let (requests, replies) = pipeline(way);
    let mut client = server.connect();
    client.send(&requests).expect(&replies);
    // Again, with the end right behind.
    client.send(&requests).end().expect(&replies[..replies.len() - "599\n".len()]);
    // It comes while the last request is under way, since no input precedes it.
    let rest = String::from_utf8(client.read_to_end()).unwrap();
    assert!(["end while paused\n", "599\nend\n"].contains(&&rest[..]), "{rest:?}");
    server.expect_line("end of input");
    server.stop_quietly();
}

fn pipelined_requests_that_another_thread_answers_keep_their_order(cell: &Cell) {
    if cell.has_senders() {
        return check_pipeline(cell, "post");
    }
    let mut server = cell.start("pausing");
    let mut client = server.connect();
    client.send("post 1\npost 2\n").expect(format!("{0}\n{0}\n", cell.no_sender()));
    client.end().expect("end\n").expect_end();
    server.expect_line("end of input");
    server.stop_quietly();
}

fn pipelined_requests_that_a_timer_answers_keep_their_order(cell: &Cell) {
    check_pipeline(cell, "timer");
}

fn the_end_of_a_paused_peer_comes_at_once_where_no_input_precedes_it(cell: &Cell) {
    let mut server = cell.start("pausing");
    let mut client = server.connect();
    client.send("hold never\n").expect("held\n").end();
    client.expect("end while paused\n").expect_end();
    server.expect_line("end of input");
    server.stop_quietly();
}

fn the_end_of_a_paused_peer_waits_for_the_input_that_precedes_it(cell: &Cell) {
    let mut server = cell.start("pausing");
    let mut client = server.connect();
    client.send("hold release\nflip last\n").expect("held\n").end();
    thread::sleep(Duration::from_millis(30)); // nothing happens
    server.create_file("release");
    client.expect("released\nlast\nend\n").expect_end();
    server.number("memory");
    server.expect_line("end of input");
    server.stop_quietly();
}

/// Also if input is left, behind which an end in order would wait.
fn a_paused_peer_that_resets_is_noticed(cell: &Cell) {
    let mut server = cell.start("pausing");
    for sent in ["hold never\n", "hold never\nleft\n", "hold never\nin pa"] {
        let mut client = server.connect();
        client.send(sent).expect("held\n");
        client.reset();
        if cell.transport == Transport::Tcp {
            server.expect_line("disconnected");
            continue;
        }
        // A Unix socket has no reset: it ends in order, in both directions.
        let line = server.line();
        assert!(["disconnected", "end of input"].contains(&&line[..]), "{line}");
        break;
    }
    server.stop_quietly();
}

fn a_paused_connection_that_nothing_can_resume_is_closed(cell: &Cell) {
    let mut server = cell.start("pausing");
    let mut client = server.connect();
    client.send("stuck\nnever read\n").expect("last words\n").expect_end();
    server.expect_line("closed by the handler");
    server.stop_quietly();
}

fn a_paused_connection_is_closed_when_its_last_sender_is_dropped(cell: &Cell) {
    let mut server = cell.start("pausing");
    let mut client = server.connect();
    client.send("drop release\n");
    if !cell.has_senders() {
        client.expect_end();
        assert!(server.line().starts_with("handler failed: no sender"));
        return server.stop_quietly();
    }
    client.expect("held\n");
    server.create_file("release");
    client.expect_end();
    server.expect_line("closed by the handler");
    server.stop_quietly();
}

fn a_sender_closes_and_aborts_a_paused_connection(cell: &Cell) {
    if !cell.has_senders() {
        return;
    }
    let mut server = cell.start("pausing");
    let mut client = server.connect();
    client.send("close\nnot delivered\n").expect("from the sender\n").expect_end();
    server.expect_line("closed by the handler");
    let mut client = server.connect();
    client.send("abort\nnot delivered\n").expect_gone();
    server.expect_line("closed by the handler");
    server.stop_quietly();
}

fn a_paused_connection_can_be_resumed_by_its_idle_timeout(cell: &Cell) {
    let mut server = cell.start("pausing");
    let mut client = server.connect();
    client.send("idle\nflip next\n").expect("idle\nnext\n").end().expect("end\n").expect_end();
    server.expect_line("end of input");
    server.stop_quietly();
}

/// The peer can send no more than the kernel takes.
fn a_paused_connection_is_not_read(cell: &Cell) {
    let mut server = cell.start("pausing");
    let mut client = server.connect();
    client.send("hold release\n").expect("held\n");
    let line = [&[b'x'; 1023][..], b"\n"].concat().repeat(64);
    let (mut sent, mut refused) = (0, 0);
    client.socket.set_nonblocking(true).unwrap();
    while refused < 50 {
        assert!(sent < 64 << 20, "the server reads on");
        match client.socket.write(&line[sent % line.len()..]) {
            Ok(count) => (sent, refused) = (sent + count, 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                refused += 1;
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("{error}"),
        }
    }
    client.socket.set_nonblocking(false).unwrap();
    server.create_file("release");
    let memory = server.number("memory");
    assert!(memory < 512 * 1024, "{memory} bytes of memory");
    // All of it is delivered then.
    client.send(&line[sent % line.len()..]).send("bytes\n");
    let lines = sent.div_ceil(line.len()) * 64;
    client.expect(format!("released\n{}\n", lines * 1023)).end().expect("end\n").expect_end();
    server.expect_line("end of input");
    server.stop_quietly();
}

fn input_that_is_paused_and_resumed_in_one_call_goes_on(cell: &Cell) {
    let mut server = cell.start("pausing");
    let (requests, replies) = pipeline("flip");
    let mut client = server.connect();
    client.send(&requests).expect(&replies).end().expect("end\n").expect_end();
    server.expect_line("end of input");
    server.stop_quietly();
}

// Input that is paused from the beginning

/// Has no message until the test creates a file.
struct PausedAtOpen {
    release: PathBuf,
    released: bool,
}

impl Handler for PausedAtOpen {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.pause_input();
        cx.send(b"open")?;
        Ok(cx.set_timer(Instant::now() + LOOK)?)
    }

    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if !self.released {
            violation("a message while the input is paused");
        }
        cx.send(line)
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if !self.release.exists() {
            return Ok(cx.set_timer(Instant::now() + LOOK)?);
        }
        self.released = true;
        cx.resume_input();
        Ok(())
    }
}

/// Replies from a timer, and does not override `on_eof`.
#[derive(Default)]
struct DefaultEnd {
    request: Vec<u8>,
}

impl Handler for DefaultEnd {
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        self.request = line.to_vec();
        cx.pause_input();
        Ok(cx.set_timer(cx.now() + LOOK)?)
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.resume_input();
        cx.send(&self.request)
    }

    fn on_close(&mut self, reason: &CloseReason) {
        print_line(reason);
    }
}

pub fn default_end(setup: Setup) -> Service {
    setup.serve(|_| (Lines::default(), DefaultEnd::default()))
}

fn the_last_reply_of_a_paused_connection_is_sent_after_the_end_of_its_peer(cell: &Cell) {
    let mut server = cell.start("default_end");
    let mut client = server.connect();
    client.send("one\ntwo\nthree\n").end().expect("one\ntwo\nthree\n").expect_end();
    server.expect_line("end of input");
    server.stop_quietly();
}

pub fn paused_at_open(setup: Setup) -> Service {
    setup.serve(|directory| {
        let release = directory.join("release");
        (Lines::default(), PausedAtOpen { release, released: false })
    })
}

fn input_that_is_paused_in_on_open_waits(cell: &Cell) {
    let server = cell.start("paused_at_open");
    let mut client = server.connect();
    client.send("one\ntwo\n").expect("open\n");
    server.create_file("release");
    client.expect("one\ntwo\n").end().expect_end();
    server.stop_quietly();
}

/// The connection is closed by its peer, in both directions.
fn a_paused_peer_that_closes_leaves_nothing_behind(cell: &Cell) {
    let mut server = cell.start("pausing");
    let mut client = server.connect();
    client.send("hold release\nleft\n").expect("held\n");
    client.socket.shutdown(Shutdown::Both).unwrap();
    assert_eq!(client.socket.read(&mut [0; 1]).unwrap_or(0), 0);
    drop(client);
    server.create_file("release");
    // Whatever it is called: its end is noticed, at the latest when the input goes on.
    while server.line().starts_with("memory") {}
    server.stop_quietly();
}

pub fn powers() -> Vec<Power> {
    powers![
        pipelined_requests_that_another_thread_answers_keep_their_order,
        pipelined_requests_that_a_timer_answers_keep_their_order,
        the_end_of_a_paused_peer_comes_at_once_where_no_input_precedes_it,
        the_end_of_a_paused_peer_waits_for_the_input_that_precedes_it,
        a_paused_peer_that_resets_is_noticed,
        a_paused_connection_that_nothing_can_resume_is_closed,
        a_paused_connection_is_closed_when_its_last_sender_is_dropped,
        a_paused_connection_can_be_resumed_by_its_idle_timeout,
        a_paused_connection_is_not_read,
        input_that_is_paused_and_resumed_in_one_call_goes_on,
        the_last_reply_of_a_paused_connection_is_sent_after_the_end_of_its_peer,
        a_sender_closes_and_aborts_a_paused_connection,
        input_that_is_paused_in_on_open_waits,
        a_paused_peer_that_closes_leaves_nothing_behind,
    ]
}
