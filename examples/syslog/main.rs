//! Receives syslog messages (RFC 5424 and RFC 3164) over UDP, TCP and Unix sockets, and prints each
//! as one line of JSON.
//!
//! One handler for all: a message is a datagram, or what `framing.rs` finds on a stream. From its
//! bytes `message.rs` makes its fields, and `lines.rs` has a thread that writes the lines. When
//! stdout cannot keep up, the server receives no more: TCP clients and senders on Unix sockets wait,
//! and UDP datagrams that find no room are counted.
//!
//! Try `logger --server 127.0.0.1 --port 5514 hello` (and with `--tcp --octet-count`), or
//! `cargo run --example syslog -- --listen unixgram:///tmp/log` and `logger --socket /tmp/log hello`.

#[path = "../common/mod.rs"]
mod common;

mod framing;
mod lines;
mod message;

use std::time::Duration;

use common::{About, Options, fail, is_datagram, print_line};
use framing::{MAX_MESSAGE, SyslogFraming};
pub(crate) use lines::LineQueue;
use message::Message;
use socketserver::{
    Context, Endpoint, Error, Handler, HandlerResult, Hooks, Limits, Mode, Server, Service,
};

/// How long a connection or a datagram socket pauses before it looks for room again.
const PAUSE: Duration = Duration::from_millis(5);

struct Receiver {
    lines: LineQueue,
    is_datagram: bool,
}

impl Receiver {
    /// Pauses the input while there is no room for lines. What is not read waits in the kernel, and
    /// then in the client.
    fn wait_for_room(&self, cx: &mut Context<'_>) -> HandlerResult {
        if self.is_datagram {
            return Ok(()); // `WhileThereIsRoom` pauses the whole service
        }
        if self.lines.has_room() {
            cx.resume_input();
        } else {
            cx.pause_input();
            cx.set_timer(cx.now() + PAUSE)?;
        }
        Ok(())
    }
}

impl Handler for Receiver {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let message = Message::parse(message, cx.peer().to_string());
        if !self.lines.add(&message)? {
            cx.stop_server(); // nobody reads the lines
        }
        self.wait_for_room(cx)
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.wait_for_room(cx)
    }
}

/// Receives datagrams while there is room for their lines.
struct WhileThereIsRoom(LineQueue);

impl Hooks for WhileThereIsRoom {
    fn pause_receiving(&mut self) -> Option<Duration> {
        (!self.0.has_room()).then_some(PAUSE)
    }
}

/// The service at this address, which adds a line for each message.
pub(crate) fn service(
    endpoint: &Endpoint,
    mode: Mode,
    limits: Limits,
    lines: &LineQueue,
) -> Result<Service, Error> {
    let (of_handlers, is_datagram) = (lines.clone(), is_datagram(endpoint));
    Server::endpoint(endpoint)?
        .framing(SyslogFraming::default())
        .max_packet_size(MAX_MESSAGE)
        .mode(mode)
        .limits(limits)
        .hooks(WhileThereIsRoom(lines.clone()))
        .service(move |_| Receiver { lines: of_handlers.clone(), is_datagram })
}

fn main() {
    let options = Options::parse(&About {
        // Not forking: processes that write to one pipe mix their lines.
        modes: &["reactor", "offload", "inline", "threading", "pool"],
        ..About::new(
            "syslog",
            "Prints each syslog message that it receives as a line of JSON.",
            "udp://127.0.0.1:5514 tcp://127.0.0.1:5514",
        )
    });
    let lines = LineQueue::start().unwrap_or_else(|error| fail(error, 1));
    let counters =
        options.run(|endpoint| service(endpoint, options.mode, options.limits(), &lines));
    let written = lines.finish(options.drain);
    print_line(format_args!(
        "received: {}, dropped by the kernel: {}, written: {}",
        counters.messages,
        counters.dropped_by_kernel,
        written.as_ref().map_or_else(|_| "not all".to_owned(), u64::to_string),
    ));
    if let Err(error) = written {
        fail(format_args!("stdout: {error}"), 1);
    }
}
