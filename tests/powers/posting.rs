//! `Sender::post` and `on_event`: what other threads give to a handler keeps its order, reaches it whatever
//! its peer does, and is refused when the connection is closed.

#![allow(unreachable_pub)] // a module of a test is public to nobody

use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use socketserver::{CloseReason, Context, Event, Handler, HandlerResult, Lines, Sender, Service};

use super::server::{Cell, Setup, print_line, violation};
use super::{Power, powers};

/// An event with a number, which prints it where it is dropped without being handled.
struct Number {
    number: usize,
    handled: bool,
}

impl Number {
    fn event(number: usize) -> Event {
        Box::new(Number { number, handled: false })
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        if !self.handled {
            print_line(format_args!("event {} is dropped", self.number));
        }
    }
}

/// How many messages and events are sent in turn.
const COUNT: usize = 500;

/// The senders of closed connections.
static KEPT: Mutex<Vec<Sender>> = Mutex::new(Vec::new());

/// Lets other threads send and post as its client asks for.
#[derive(Default)]
struct Posting {
    sender: Option<Sender>,
    thread: Option<mpsc::Sender<()>>,
    next: usize,
    /// It posts the next event itself.
    always: bool,
}

impl Handler for Posting {
    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        if line == b"ping" {
            return cx.send(line);
        }
        let sender = match cx.sender() {
            Ok(sender) => sender,
            Err(error) => return cx.send(format!("{error:?}").as_bytes()),
        };
        match line {
            b"in turn" => {
                thread::spawn(move || {
                    for number in 0..COUNT {
                        let message = format!("message {number}");
                        while sender.send(message.as_bytes()).is_err() {
                            thread::yield_now();
                        }
                        sender.post(Number::event(number)).unwrap();
                    }
                });
                Ok(())
            }
            // The next event is posted when the handler has got the one before.
            b"one by one" => {
                let (give, given) = mpsc::channel();
                thread::spawn(move || {
                    for number in 0..COUNT {
                        sender.post(Number::event(number)).unwrap();
                        given.recv().unwrap();
                    }
                });
                self.thread = Some(give);
                Ok(())
            }
            b"always" => {
                self.always = true;
                sender.post(Number::event(0))?;
                self.sender = Some(sender);
                Ok(())
            }
            b"later" => {
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(20)); // the connection is idle by then
                    sender.post(Number::event(0)).unwrap();
                });
                Ok(())
            }
            b"close" => {
                self.sender = Some(sender);
                cx.close();
                Ok(())
            }
            _ => Err("another line".into()),
        }
    }

    fn on_event(&mut self, event: Event, cx: &mut Context<'_>) -> HandlerResult {
        let mut event = event.downcast::<Number>().map_err(|_| "another event")?;
        event.handled = true;
        if event.number != self.next {
            violation(format_args!("event {} in place of {}", event.number, self.next));
        }
        self.next += 1;
        if let Some(sender) = self.sender.as_ref().filter(|_| self.always) {
            sender.post(Number::event(self.next))?;
            return Ok(());
        }
        cx.send(format!("event {}", event.number).as_bytes())?;
        if let Some(thread) = &self.thread {
            thread.send(())?;
        }
        Ok(())
    }

    fn on_close(&mut self, reason: &CloseReason) {
        let Some(sender) = self.sender.take() else { return };
        print_line(reason);
        print_line(format_args!("{:?}", sender.post(Number::event(1))));
        KEPT.lock().unwrap().push(sender);
    }
}

impl Drop for Posting {
    fn drop(&mut self) {
        // From another thread, when the handler is gone.
        for sender in KEPT.lock().unwrap().drain(..) {
            thread::spawn(move || print_line(format_args!("{:?}", sender.post(Number::event(2)))))
                .join()
                .unwrap();
        }
    }
}

pub fn service(setup: Setup) -> Service {
    setup.serve(|_| (Lines::default(), Posting::default()))
}

fn events_and_messages_of_another_thread_keep_their_order(cell: &Cell) {
    let server = cell.start("posting");
    let mut client = server.connect();
    client.send("in turn\n");
    if cell.has_senders() {
        let in_turn = |number| format!("message {number}\nevent {number}\n");
        client.expect((0..COUNT).map(in_turn).collect::<String>());
    } else {
        client.expect(format!("{}\n", cell.no_sender()));
    }
    client.end().expect_end();
    server.stop_quietly();
}

fn events_reach_a_handler_whose_peer_never_lets_it_rest(cell: &Cell) {
    if !cell.has_senders() {
        return;
    }
    let server = cell.start("posting");
    let mut client = server.connect();
    client.send("one by one\n");
    let over = AtomicBool::new(false);
    let mut writer = client.socket.try_clone().unwrap();
    let mut lines = BufReader::new(&client.socket).lines().map(Result::unwrap);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                writer.write_all("ping\n".repeat(500).as_bytes()).unwrap();
            }
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut events = lines.by_ref().filter(|line| line != "ping");
        for number in 0..COUNT {
            assert_eq!(events.next(), Some(format!("event {number}")));
        }
        over.store(true, SeqCst);
        assert!(lines.all(|line| line == "ping"));
    });
    server.stop_quietly();
}

/// Events that cause events are work that the stop waits for.
fn a_handler_that_posts_to_itself_lets_input_and_the_stop_through(cell: &Cell) {
    if !cell.has_senders() {
        return;
    }
    let mut server = cell.start_draining("posting", Duration::from_millis(200));
    let (mut client, mut other) = (server.connect(), server.connect());
    client.send("always\n");
    for _ in 0..100 {
        client.send("ping\n").expect("ping\n");
        other.send("ping\n").expect("ping\n");
    }
    server.process.terminate();
    client.expect_gone();
    // The event that waits is dropped before `on_close` is called.
    assert!(server.line().ends_with("is dropped"));
    server.expect_line("the server is stopping");
    let at_exit = server.wait();
    assert_eq!(at_exit.aborted, 1, "{at_exit:?}");
}

fn an_event_reaches_a_handler_whose_peer_is_silent(cell: &Cell) {
    if !cell.has_senders() {
        return;
    }
    let server = cell.start("posting");
    let mut client = server.connect();
    client.send("later\n").expect("event 0\n").end().expect_end();
    server.stop_quietly();
}

fn a_post_to_a_closed_connection_says_so_and_drops_the_event(cell: &Cell) {
    if !cell.has_senders() {
        return;
    }
    let mut server = cell.start("posting");
    let mut client = server.connect();
    client.send("close\n").expect_end();
    server.expect_line("closed by the handler");
    for number in 1..=2 {
        server.expect_line(format!("event {number} is dropped")).expect_line("Err(Closed)");
    }
    server.stop_quietly();
}

pub fn powers() -> Vec<Power> {
    powers![
        events_and_messages_of_another_thread_keep_their_order,
        events_reach_a_handler_whose_peer_never_lets_it_rest,
        an_event_reaches_a_handler_whose_peer_is_silent,
        a_handler_that_posts_to_itself_lets_input_and_the_stop_through,
        a_post_to_a_closed_connection_says_so_and_drops_the_event,
    ]
}
