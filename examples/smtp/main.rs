//! A server that receives mail: SMTP (RFC 5321) with PIPELINING, 8BITMIME and SIZE. Each mail is one JSON
//! object on a line of stdout, and is accepted when that line has been written.
//!
//! * [`wire`]: the framing, which changes in mid-connection: lines with commands, then a whole mail.
//! * [`command`]: a line becomes a command, or the reply that refuses it.
//! * [`session`]: the order of the commands, the limits and the replies.
//! * [`output`]: the mails on stdout.
//!
//! The fields of a mail are `peer`, `helo`, `from`, `to`, `size` (in bytes), `encoding` and `data`. The
//! encoding is `utf-8`, or `latin-1` for a mail that is not UTF-8, so no byte is lost.
//!
//! A connection keeps at most one mail: what the client sends meanwhile waits in its own send buffer.
//! Under `forking` each client has a process, which writes its mails itself; under `inline` all clients
//! wait for a slow reader of stdout.
//!
//! Try `swaks --server 127.0.0.1:2525 --to you@example.org`.

#[path = "../common/mod.rs"]
mod common;

mod command;
pub(crate) mod output;
mod session;
mod wire;

use std::sync::Arc;

use common::{About, Options, fail};
pub(crate) use output::Output;
use output::{Mail, Outcome, Written};
pub(crate) use session::Settings;
use session::{Envelope, Next, Session};
use socketserver::{
    Context, Endpoint, Error, Event, Handler, HandlerResult, Limits, Mode, Server, Service,
};
use wire::{CommandLines, MailData, Wire};

/// The handler of one client.
struct Receiver {
    settings: Arc<Settings>,
    session: Session,
    output: Output,
    /// The mail that has come last is being written, and has no reply yet.
    writes: bool,
    /// The server stops: nothing follows the mail that has begun.
    stops: bool,
}

impl Receiver {
    /// The client has sent a whole mail.
    fn receive(
        &mut self,
        mail: Result<(Envelope, &[u8]), &str>,
        cx: &mut Context<'_>,
    ) -> HandlerResult {
        let (envelope, data) = match mail {
            Ok(mail) => mail,
            Err(reply) => return self.reply_to_mail(reply, cx),
        };
        let mail = Mail { peer: cx.peer().to_string(), envelope, text: wire::unstuff(data) };
        match self.output.write(mail, cx) {
            Outcome::Later => {
                self.writes = true;
                cx.pause_input(); // replies come in the order of the commands
                Ok(())
            }
            Outcome::Written => self.reply_to_mail(ACCEPTED, cx),
            Outcome::Failed => self.reply_to_mail(FAILED, cx),
            Outcome::NoRoom => self.reply_to_mail("452 Too many mails wait, try later", cx),
        }
    }

    fn reply_to_mail(&mut self, reply: &str, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(reply.as_bytes())?;
        if self.stops { self.close(STOPS, cx) } else { Ok(()) }
    }

    /// Closes the connection after a reply that no command has asked for.
    fn close(&mut self, why: &str, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(format!("421 {} {why}, good bye", self.settings.name).as_bytes())?;
        cx.close();
        Ok(())
    }
}

const ACCEPTED: &str = "250 OK";
const FAILED: &str = "451 The mail cannot be written, try later";
const STOPS: &str = "The server stops";

impl Handler for Receiver {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(format!("220 {} ESMTP ready", self.settings.name).as_bytes())
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let wire = cx.framing::<Wire>().expect("`main` gives it to each connection");
        match wire {
            Wire::Commands(lines) => {
                let answer = self.session.answer(message, lines.fault, &self.settings);
                if answer.next == Next::Mail {
                    *wire = Wire::Mail(MailData::new(self.settings.max_size));
                }
                cx.send(answer.reply.as_bytes())?;
                if answer.next == Next::Close {
                    cx.close();
                }
                Ok(())
            }
            Wire::Mail(mail) => {
                let fault = mail.fault;
                *wire = Wire::Commands(CommandLines::default());
                let envelope = self.session.mail_arrived(fault);
                self.receive(envelope.map(|envelope| (envelope, message)), cx)
            }
        }
    }

    fn on_event(&mut self, event: Event, cx: &mut Context<'_>) -> HandlerResult {
        if let Ok(Written(written)) = event.downcast().map(|written| *written) {
            self.writes = false;
            cx.resume_input();
            self.reply_to_mail(if written { ACCEPTED } else { FAILED }, cx)?;
        }
        Ok(())
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        // A client that waits for the reply to its mail does nothing wrong.
        if self.writes { Ok(()) } else { self.close("You were silent for too long", cx) }
    }

    /// A mail that has begun to come is still taken, within the drain deadline.
    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.stops = true;
        let wire = cx.framing::<Wire>();
        let comes = wire.is_some_and(|wire| matches!(wire, Wire::Mail(mail) if mail.has_begun()));
        if self.writes || comes { Ok(()) } else { self.close(STOPS, cx) }
    }
}

/// The service at this address. `output` must fit the mode.
pub(crate) fn service(
    endpoint: &Endpoint,
    mode: Mode,
    limits: Limits,
    settings: &Arc<Settings>,
    output: &Output,
) -> Result<Service, Error> {
    let (settings, output) = (settings.clone(), output.clone());
    let limits = limits.max_buffered_input(settings.max_size.saturating_add(1 << 20));
    Server::endpoint(endpoint)?.mode(mode).limits(limits).service_with(move |_| {
        let receiver = Receiver {
            settings: settings.clone(),
            session: Session::default(),
            output: output.clone(),
            writes: false,
            stops: false,
        };
        (Wire::Commands(CommandLines::default()), receiver)
    })
}

fn main() {
    let about =
        About::new("smtp", "Receives mail: one JSON object per mail.", "tcp://127.0.0.1:2525");
    let options = Options::parse(&About {
        streams_only: true,
        idle: 300,
        values: &[
            ("max-size", "10485760", "the longest mail, in bytes"),
            ("name", "localhost", "the domain by which it greets"),
        ],
        ..about
    });
    let max_size = options.value("max-size").unwrap_or_default();
    let Some(max_size) = max_size.parse().ok().filter(|size| *size > 0) else {
        fail(format_args!("--max-size {max_size:?} is not a number of bytes"), 2);
    };
    let name = options.value("name").unwrap_or_default().to_owned();
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        fail(format_args!("--name {name:?} is not a domain"), 2);
    }
    let settings = Arc::new(Settings { name, max_size });

    let (output, thread) = match options.mode {
        Mode::Inline(_) | Mode::Forking(_) => Output::in_handler().map(|output| (output, None)),
        _ => Output::in_thread().map(|(output, thread)| (output, Some(thread))),
    }
    .unwrap_or_else(|error| fail(error, 1));

    options.run(|endpoint| service(endpoint, options.mode, options.limits(), &settings, &output));
    if let Some(thread) = thread {
        output::finish(thread);
    }
}
