//! A protocol of one's own: lines with commands, and between them bytes that may hold anything.
//!
//! The server keeps the n bytes that follow a line `PUT n`; `GET` sends them back. The framing parses
//! each command once. The handler takes it by `cx.framing`, and says there that bytes come next.
//!
//! Try `printf 'PUT 3\na\nbGET\n' | nc -N 127.0.0.1 9993`.

mod common;

use common::{About, Options, number};
use socketserver::{
    Context, Decoded, FixedSize, Framing, FramingError, Handler, HandlerResult, Lines, Output,
    Server,
};

enum Command {
    Get,
    Put(usize),
}

fn parse(line: &[u8]) -> Option<Command> {
    if line == b"GET" {
        return Some(Command::Get);
    }
    let count = number(line.strip_prefix(b"PUT ")?)?.try_into().ok()?;
    (1..=1 << 20).contains(&count).then_some(Command::Put(count))
}

#[derive(Default)]
struct Commands {
    lines: Lines,
    /// Decodes the next message, in place of `lines`.
    bytes: Option<FixedSize>,
    /// The message that was decoded last, if it is a command.
    command: Option<Command>,
}

impl Framing for Commands {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        if let Some(bytes) = &mut self.bytes {
            return bytes.decode(input);
        }
        let decoded = self.lines.decode(input)?;
        if let Decoded::Frame { body, .. } = &decoded {
            self.command = parse(&input[body.clone()]);
        }
        Ok(decoded)
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        self.lines.encode(message, output)
    }
}

struct Store(Vec<u8>);

impl Handler for Store {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let framing = cx.framing::<Commands>().expect("`main` gives it to each connection");
        if framing.bytes.take().is_some() {
            self.0 = message.to_vec();
            return cx.send(b"STORED");
        }
        match framing.command.take() {
            Some(Command::Put(count)) => framing.bytes = Some(FixedSize::new(count)),
            Some(Command::Get) => cx.send(&self.0)?,
            None => {
                cx.send(b"ERROR")?;
                cx.close(); // bytes may follow that are not lines
            }
        }
        Ok(())
    }
}

fn main() {
    let about = About::new("commands", "Keeps bytes: PUT n, GET.", "tcp://127.0.0.1:9993");
    let options = Options::parse(&About { streams_only: true, ..about });
    options.run(|endpoint| {
        let server = Server::endpoint(endpoint)?.mode(options.mode).limits(options.limits());
        server.service_with(|_| (Commands::default(), Store(Vec::new())))
    });
}
