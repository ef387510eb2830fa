//! One handler over every transport, in every mode and with every framing: all must have the same
//! properties. Each test has a server in a process of its own, which must leak no thread, child,
//! descriptor or socket file.
//!
//! `cargo test --test matrix -- table` prints the table that docs/tested.md contains, from the
//! results of the tests; `cargo test --test matrix -- tcp::offload` runs a part of them.

#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use process::{Datagrams, Gate, Process, Resources, Stream, announce, wait_at_gate};
use runner::{Outcome, Test, test};
use socketserver::{
    Accepted, Builder, Context, Delimited, FixedSize, Framing, Handler, HandlerResult,
    LengthPrefixed, Lines, Mode, Raw, Server, Service,
};

// The axes

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
    Unix,
    UnixDatagram,
}

impl Transport {
    const ALL: [Transport; 4] =
        [Transport::Tcp, Transport::Udp, Transport::Unix, Transport::UnixDatagram];

    fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Unix => "unix",
            Transport::UnixDatagram => "unixgram",
        }
    }

    fn is_datagram(self) -> bool {
        matches!(self, Transport::Udp | Transport::UnixDatagram)
    }

    fn url(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp://127.0.0.1:0",
            Transport::Udp => "udp://127.0.0.1:0",
            Transport::Unix => "unix://{dir}/socket",
            Transport::UnixDatagram => "unixgram://{dir}/socket",
        }
    }

    fn framings(self) -> &'static [Frames] {
        if self.is_datagram() { &[Frames::None] } else { &Frames::OF_STREAMS }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frames {
    None,
    Raw,
    Lines,
    Delimited,
    LengthPrefixed,
    FixedSize,
}

/// The size of a message under `FixedSize`.
const SIZE: usize = 64;

impl Frames {
    const OF_STREAMS: [Frames; 5] =
        [Frames::Raw, Frames::Lines, Frames::Delimited, Frames::LengthPrefixed, Frames::FixedSize];

    fn name(self) -> &'static str {
        match self {
            Frames::None => "–",
            Frames::Raw => "Raw",
            Frames::Lines => "Lines",
            Frames::Delimited => "Delimited",
            Frames::LengthPrefixed => "LengthPrefixed",
            Frames::FixedSize => "FixedSize",
        }
    }

    /// A message; under `FixedSize`, padded to its size.
    fn padded(self, text: &[u8]) -> Vec<u8> {
        let mut message = text.to_vec();
        if self == Frames::FixedSize {
            message.resize(SIZE, b' ');
        }
        message
    }

    /// A message in the format of the wire, encoded independently of the crate.
    fn on_wire(self, text: impl AsRef<[u8]>) -> Vec<u8> {
        let message = self.padded(text.as_ref());
        match self {
            Frames::None | Frames::Raw | Frames::FixedSize => message,
            Frames::Lines => [&message, &b"\n"[..]].concat(),
            Frames::Delimited => [&message, &b"\r\n\r\n"[..]].concat(),
            Frames::LengthPrefixed => {
                [&(message.len() as u32).to_be_bytes(), &message[..]].concat()
            }
        }
    }

    /// Messages with `total` bytes of content, each as long as the framing allows.
    fn bulk(self, total: usize) -> Vec<u8> {
        let body: Vec<u8> = (0..total).map(|at| b'a' + (at % 23) as u8).collect();
        let most = match self {
            Frames::None | Frames::Raw => total,
            Frames::LengthPrefixed => total.min(8 << 20),
            Frames::Lines | Frames::Delimited => 8192,
            Frames::FixedSize => SIZE,
        };
        body.chunks(most).flat_map(|message| self.on_wire(message)).collect()
    }
}

/// One row of the matrix.
#[derive(Debug, Clone, Copy)]
struct Cell {
    transport: Transport,
    mode: Mode,
    frames: Frames,
}

impl Cell {
    fn all() -> Vec<Cell> {
        let mut all = Vec::new();
        for transport in Transport::ALL {
            for mode in Mode::all() {
                for &frames in transport.framings() {
                    all.push(Cell { transport, mode, frames });
                }
            }
        }
        all
    }

    /// Whether the mode serves several peers at a time.
    fn serves_several(&self) -> bool {
        !matches!(self.mode, Mode::Inline(_))
    }

    /// Whether a handler that blocks also blocks the loop.
    fn blocks_the_loop(&self) -> bool {
        matches!(self.mode, Mode::Inline(_) | Mode::Reactor(_))
    }

    /// Whether the datagrams of one peer are answered in order.
    fn keeps_datagrams_in_order(&self) -> bool {
        matches!(self.mode, Mode::Inline(_) | Mode::Reactor(_))
    }

    fn start(&self) -> Process {
        let mode = self.mode.name();
        Process::start(1, &[self.transport.url(), mode, self.frames.name(), "{dir}/gate"])
    }
}

// The server, in a process of its own

/// The handler of all tests: an echo; some messages are commands.
struct EchoWithCommands {
    frames: Frames,
    gate: PathBuf,
    answers_eof: bool,
}

impl EchoWithCommands {
    fn send(&self, text: &str, cx: &mut Context<'_>) -> HandlerResult {
        cx.send(&self.frames.padded(text.as_bytes()))
    }
}

impl Handler for EchoWithCommands {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        match message.trim_ascii_end() {
            b"!error" => {
                self.send("before the fault", cx)?;
                Err("the requested error".into())
            }
            b"!panic" => {
                self.send("before the fault", cx)?;
                panic!("the requested panic");
            }
            b"!eof" => {
                self.answers_eof = true;
                self.send("enabled", cx)
            }
            b"!timeout" => {
                let set = cx.set_idle_timeout(Duration::from_millis(20));
                self.send(&format!("{set:?}"), cx)
            }
            b"!hold" => {
                wait_at_gate(&self.gate);
                cx.send(message)
            }
            _ => cx.send(message),
        }
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if self.answers_eof {
            self.send("ended", cx)?;
        }
        cx.close();
        Ok(())
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.send("timed out", cx)?;
        cx.close();
        Ok(())
    }
}

fn serve(arguments: &[String]) {
    let [url, mode, frames, gate] = arguments else { panic!("wrong arguments: {arguments:?}") };
    let frames =
        *Frames::OF_STREAMS.iter().find(|each| each.name() == frames).unwrap_or(&Frames::None);
    // The descriptors of the signal handler are kept until the process exits.
    drop(Server::new().unwrap().stop_on_signals());
    let resources = Resources::of_this_process();

    let mut server = Server::new().unwrap();
    let builder = Server::endpoint(&url.parse().unwrap()).unwrap();
    let builder = builder.mode(mode.parse::<Mode>().unwrap());
    let gate = PathBuf::from(gate);
    let make =
        move |_: &Accepted<'_>| EchoWithCommands { frames, gate: gate.clone(), answers_eof: false };
    server
        .add(match frames {
            Frames::None | Frames::Raw => add_handler(builder.framing(Raw), make),
            Frames::Lines => add_handler(builder.framing(Lines::default()), make),
            Frames::Delimited => add_handler(builder.framing(Delimited::new("\r\n\r\n")), make),
            Frames::LengthPrefixed => add_handler(builder.framing(LengthPrefixed::default()), make),
            Frames::FixedSize => add_handler(builder.framing(FixedSize::new(SIZE)), make),
        })
        .unwrap();
    server.drain_timeout(process::DEADLINE);
    server.stop_on_signals().unwrap();
    announce(&server.addresses());
    let report = server.serve_forever().unwrap();
    assert_eq!(report.aborted, 0, "connections were aborted");
    drop(server);
    resources.wait_until_restored();
}

fn add_handler<F: Framing + Clone + Send + 'static>(
    builder: Builder<F, Mode>,
    make: impl FnMut(&Accepted<'_>) -> EchoWithCommands + Send + 'static,
) -> Service {
    builder.service(make).unwrap()
}

// The properties

#[derive(Debug, Clone, Copy)]
struct Property {
    /// Its name in the names of the tests.
    name: &'static str,
    /// Its heading in the table.
    title: &'static str,
    check: fn(&Cell),
    /// Why the property does not apply to a cell.
    missing: fn(&Cell) -> Option<&'static str>,
}

const NO_END: &str = "a datagram is a request of its own: it has no end of input and no half-close";
const NO_STREAM: &str = "the kernel of a UDP peer drops the datagrams that the peer does not read";
const NO_WAIT: &str =
    "a datagram has no idle timeout: `set_idle_timeout` is a typed error, which is checked";
const AT_A_TIME: &str = "each datagram is a request of its own, and several are served at a time";

const PROPERTIES: [Property; 11] = [
    Property { name: "echo", title: "echo", check: echo, missing: |_| None },
    Property {
        name: "order",
        title: "order",
        check: order,
        missing: |cell| {
            let beside = cell.transport.is_datagram() && !cell.keeps_datagrams_in_order();
            beside.then_some(AT_A_TIME)
        },
    },
    Property {
        name: "half_close",
        title: "3 MiB, half-close",
        check: half_close,
        missing: |cell| cell.transport.is_datagram().then_some(NO_END),
    },
    Property {
        name: "eof",
        title: "EOF",
        check: eof,
        missing: |cell| cell.transport.is_datagram().then_some(NO_END),
    },
    Property {
        name: "timeout",
        title: "timeout",
        check: timeout,
        missing: |cell| cell.transport.is_datagram().then_some(NO_WAIT),
    },
    Property { name: "handler_error", title: "error", check: handler_error, missing: |_| None },
    Property { name: "handler_panic", title: "panic", check: handler_panic, missing: |_| None },
    Property {
        name: "slow_reader",
        title: "slow reader",
        check: slow_reader,
        missing: |cell| (cell.transport == Transport::Udp).then_some(NO_STREAM),
    },
    Property { name: "stop_while_busy", title: "stop, busy", check: stop_busy, missing: |_| None },
    Property { name: "stop_while_idle", title: "stop, idle", check: stop_idle, missing: |_| None },
    Property {
        name: "nothing_left",
        title: "nothing left",
        check: nothing_left,
        missing: |_| None,
    },
];

/// The server stops on SIGTERM, exits with success and has removed its socket file. It checks its
/// descriptors, threads and children itself.
fn stop(mut server: Process) {
    server.terminate();
    expect_clean(&mut server);
}

fn expect_clean(server: &mut Process) {
    server.expect_success();
    assert!(!server.directory.join("socket").exists(), "the socket file is left");
}

fn echo(cell: &Cell) {
    let server = cell.start();
    if cell.transport.is_datagram() {
        let client = server.datagrams();
        for text in ["hello", "", "亲,学会了吗", "\0\n\r"] {
            client.send(text).expect(text);
        }
    } else {
        let mut client = server.connect();
        for text in ["hello", "亲,学会了吗", "\0 \r.", "x"] {
            let message = cell.frames.on_wire(text);
            client.send(&message).expect(&message);
        }
    }
    stop(server);
}

/// 20,000 messages on each of six connections at once; under `inline`, one connection after
/// another.
fn order(cell: &Cell) {
    let server = cell.start();
    if cell.transport.is_datagram() {
        order_of_datagrams(&server.datagrams());
        return stop(server);
    }
    let exchange = |number: usize, mut client: Stream| {
        let mut requests = Vec::new();
        for each in 0..20_000 {
            requests.extend(cell.frames.on_wire(format!("{number}:{each}")));
        }
        client.expect_echo(&requests);
    };
    thread::scope(|scope| {
        for number in 0..6 {
            let client = server.connect();
            let exchanging = scope.spawn(move || exchange(number, client));
            if !cell.serves_several() {
                exchanging.join().unwrap();
            }
        }
    });
    stop(server);
}

/// No more are in transit than the queue of any datagram socket holds.
fn order_of_datagrams(client: &Datagrams) {
    const WINDOW: usize = 8;
    for number in 0..20_000 + WINDOW {
        if number < 20_000 {
            client.send(number.to_string());
        }
        if number >= WINDOW {
            client.expect((number - WINDOW).to_string());
        }
    }
}

fn half_close(cell: &Cell) {
    let server = cell.start();
    let mut client = server.connect();
    let sent = cell.frames.bulk(3 << 20);
    let mut writer = Stream { socket: client.socket.try_clone().unwrap() };
    let back = thread::scope(|scope| {
        scope.spawn(|| writer.send(&sent).end());
        client.read_to_end()
    });
    assert!(back == sent, "{} of {} bytes came back", back.len(), sent.len());
    stop(server);
}

/// The end of input is a separate event after the last message, and can be answered.
fn eof(cell: &Cell) {
    let server = cell.start();
    let on_wire = |text| cell.frames.on_wire(text);
    for _ in 0..20 {
        let mut client = server.connect();
        client.send(on_wire("!eof")).expect(on_wire("enabled"));
        client.send(on_wire("last")).end();
        client.expect(on_wire("last")).expect(on_wire("ended")).expect_end();
    }
    server.connect().end().expect_end();
    stop(server);
}

fn timeout(cell: &Cell) {
    let server = cell.start();
    let on_wire = |text| cell.frames.on_wire(text);
    if cell.transport.is_datagram() {
        server.datagrams().send("!timeout").expect("Err(DatagramTimeout)");
        return stop(server);
    }
    let mut client = server.connect();
    client.send(on_wire("!timeout")).expect(on_wire("Ok(())"));
    client.expect(on_wire("timed out")).expect_end();
    stop(server);
}

fn handler_error(cell: &Cell) {
    fault(cell, "!error");
}

fn handler_panic(cell: &Cell) {
    fault(cell, "!panic");
}

/// The connection of the failing handler is closed after its output; others are not affected.
fn fault(cell: &Cell, command: &str) {
    let server = cell.start();
    if cell.transport.is_datagram() {
        let (other, client) = (server.datagrams(), server.datagrams());
        other.send("one").expect("one");
        client.send(command).expect("before the fault");
        other.send("two").expect("two");
        return stop(server);
    }
    let on_wire = |text: &str| cell.frames.on_wire(text);
    let mut other = cell.serves_several().then(|| server.connect());
    if let Some(other) = &mut other {
        other.send(on_wire("one")).expect(on_wire("one"));
    }
    let mut client = server.connect();
    client.send(on_wire("one")).expect(on_wire("one"));
    client.send(on_wire(command)).expect(on_wire("before the fault")).expect_end();
    // Under inline, connected afterwards.
    let mut other = other.unwrap_or_else(|| server.connect());
    other.send(on_wire("two")).expect(on_wire("two"));
    server.expect_new_client_is_served(&mut other, cell);
    stop(server);
}

impl Process {
    /// A new client is served; under `inline`, after the previous one has ended.
    fn expect_new_client_is_served(&self, before: &mut Stream, cell: &Cell) {
        if !cell.serves_several() {
            before.end().expect_end();
        }
        let hello = cell.frames.on_wire("hello");
        self.connect().send(&hello).expect(&hello);
    }
}

/// A peer that does not read does not delay others, and receives everything when it reads.
fn slow_reader(cell: &Cell) {
    let server = cell.start();
    if cell.transport.is_datagram() {
        slow_reader_of_datagrams(&server);
        return stop(server);
    }
    let mut slow = server.connect();
    let sent = cell.frames.bulk(16 << 20);
    let hello = cell.frames.on_wire("hello");
    let mut written = 0;
    slow.socket.set_nonblocking(true).unwrap();
    // Until its socket refuses bytes while others are answered three times.
    let mut refused = 0;
    while refused < 3 && written < sent.len() {
        match slow.socket.write(&sent[written..]) {
            Ok(count) => {
                written += count;
                refused = 0;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => refused += 1,
            Err(error) => panic!("{error}"),
        }
        if refused > 0 && cell.serves_several() {
            server.connect().send(&hello).expect(&hello);
        }
    }
    slow.socket.set_nonblocking(false).unwrap();
    let (begun, rest) = sent.split_at(written);
    let mut writer = slow.socket.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || writer.write_all(rest).unwrap());
        slow.expect(begun).expect(rest);
    });
    slow.end().expect_end();
    server.connect().send(&hello).expect(&hello);
    stop(server);
}

/// The queue of a Unix datagram socket is limited: only replies to the peer that does not read are
/// lost.
fn slow_reader_of_datagrams(server: &Process) {
    let queue = std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap();
    let (slow, other) = (server.datagrams(), server.datagrams());
    for _ in 0..queue.trim().parse::<usize>().unwrap() + 8 {
        slow.send("the reply is not read");
    }
    other.send("hello").expect("hello");
    slow.expect("the reply is not read");
}

/// At a stop, a request in progress is finished, and idle connections are closed at once.
fn stop_busy(cell: &Cell) {
    let mut server = cell.start();
    let gate = Gate::at(&server.directory.join("gate"));
    let hold = cell.frames.on_wire("!hold");
    if cell.transport.is_datagram() {
        let client = server.datagrams();
        client.send(&hold);
        let arrival = gate.expect_arrival();
        server.terminate();
        arrival.release();
        client.expect(&hold);
        return expect_clean(&mut server);
    }
    let hello = cell.frames.on_wire("hello");
    let mut busy = server.connect();
    busy.send(&hello).expect(&hello);
    let mut idle = server.connect();
    if cell.serves_several() {
        idle.send(&hello).expect(&hello);
    }
    busy.send(&hold);
    let arrival = gate.expect_arrival();
    server.terminate();
    if !cell.blocks_the_loop() {
        idle.expect_end();
    }
    arrival.release();
    busy.expect(&hold).expect_end();
    idle.expect_gone();
    expect_clean(&mut server);
}

fn stop_idle(cell: &Cell) {
    let mut server = cell.start();
    if cell.transport.is_datagram() {
        server.datagrams().send("hello").expect("hello");
        server.terminate();
        return expect_clean(&mut server);
    }
    let hello = cell.frames.on_wire("hello");
    let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for client in clients.iter_mut().take(if cell.serves_several() { 3 } else { 1 }) {
        client.send(&hello).expect(&hello);
    }
    // Input that arrived before the stop is answered.
    server.signal(libc::SIGSTOP);
    clients[0].send(&hello);
    server.terminate();
    server.signal(libc::SIGCONT);
    clients[0].expect(&hello);
    let (served, waiting) = clients.split_at_mut(if cell.serves_several() { 3 } else { 1 });
    served.iter_mut().for_each(Stream::expect_end);
    // Connections that were never accepted may be reset.
    waiting.iter_mut().for_each(Stream::expect_gone);
    expect_clean(&mut server);
}

/// After peers of every kind, the process has the same resources as before.
fn nothing_left(cell: &Cell) {
    let server = cell.start();
    let on_wire = |text: &str| cell.frames.on_wire(text);
    for round in 0..30 {
        if cell.transport.is_datagram() {
            let client = server.datagrams();
            match round % 3 {
                0 => client.send("hello").expect("hello"),
                1 => client.send("!panic").expect("before the fault"),
                _ => client.send("closed before the reply"),
            };
            continue;
        }
        let mut client = server.connect();
        match round % 6 {
            0 => drop(client.send(on_wire("hello")).end().read_to_end()),
            1 => drop(client.send(on_wire("!error")).read_to_end()),
            2 => drop(client.send(on_wire("!panic")).read_to_end()),
            3 => drop(client.send(on_wire("!timeout")).read_to_end()),
            4 => {
                client.send(&on_wire("hello")[..3]);
                client.reset();
            }
            _ => drop(client),
        }
    }
    stop(server);
}

// The table

/// The mark of a cell: from the outcome of a run, or the expected one.
fn mark(
    cell: &Cell,
    property: &Property,
    outcome: Option<&Outcome>,
    notes: &mut Vec<&str>,
) -> String {
    if let Some(reason) = (property.missing)(cell) {
        let number = notes.iter().position(|note| *note == reason).unwrap_or_else(|| {
            notes.push(reason);
            notes.len() - 1
        });
        return format!("n/a [{}]", number + 1);
    }
    let name = name_of(cell, property);
    match outcome {
        Some(outcome) if !outcome.passed.contains(&name) => "✗".to_owned(),
        _ => "✓".to_owned(),
    }
}

fn table(outcome: Option<&Outcome>) -> String {
    let mut notes = Vec::new();
    let mut rows: Vec<(Cell, Vec<&str>, Vec<String>)> = Vec::new();
    for cell in Cell::all() {
        let marks: Vec<_> =
            PROPERTIES.iter().map(|property| mark(&cell, property, outcome, &mut notes)).collect();
        match rows.last_mut() {
            // Framings with the same marks share a row.
            Some((last, framings, same))
                if last.transport == cell.transport
                    && last.mode.name() == cell.mode.name()
                    && *same == marks =>
            {
                framings.push(cell.frames.name());
            }
            _ => rows.push((cell, vec![cell.frames.name()], marks)),
        }
    }
    let titles = PROPERTIES.map(|property| property.title).join(" | ");
    let mut table = format!("| transport | mode | framing | {titles} |\n");
    table.push_str(&format!("|---|---|---|{}\n", ":-:|".repeat(PROPERTIES.len())));
    for (cell, framings, marks) in rows {
        let all = framings.len() == Frames::OF_STREAMS.len();
        let framings = if all { "all five".to_owned() } else { framings.join(", ") };
        let (transport, mode) = (cell.transport.name(), cell.mode.name());
        table.push_str(&format!(
            "| `{transport}` | `{mode}` | {framings} | {} |\n",
            marks.join(" | ")
        ));
    }
    table.push_str(
        "\nAll five framings are Raw, Lines, Delimited, LengthPrefixed and FixedSize. `inline` serves one \
         client at a time, so the properties that need several clients at once run them in turn.\n\n",
    );
    for (number, note) in notes.iter().enumerate() {
        table.push_str(&format!("- [{}] {note}.\n", number + 1));
    }
    table
}

const BEGIN: &str = "<!-- matrix: cargo test --test matrix -- table -->";
const END: &str = "<!-- end of matrix -->";

/// The table of the page is up to date.
fn the_page_contains_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tested.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (_, after) = page.split_once(BEGIN).expect("the page has the beginning of the table");
    let (contained, _) = after.split_once(END).expect("the page has the end of the table");
    let expected = table(None);
    assert!(
        contained.trim() == expected.trim(),
        "docs/tested.md must contain\n{BEGIN}\n{expected}{END}"
    );
}

// The run

fn name_of(cell: &Cell, property: &Property) -> String {
    let Cell { transport, mode, frames } = cell;
    let prefix = format!("{}::{}", transport.name(), mode.name());
    match frames {
        Frames::None => format!("{prefix}::{}", property.name),
        frames => format!("{prefix}::{}::{}", frames.name().to_lowercase(), property.name),
    }
}

fn tests() -> Vec<Test> {
    let mut tests = vec![test("the_page_contains_the_table", the_page_contains_the_table)];
    for cell in Cell::all() {
        for property in PROPERTIES {
            // Where `set_idle_timeout` is a typed error, the property checks that error.
            if (property.missing)(&cell).is_none_or(|reason| reason == NO_WAIT) {
                tests.push(test(name_of(&cell, &property), move || (property.check)(&cell)));
            }
        }
    }
    let names: BTreeSet<_> = tests.iter().map(|test| test.name.as_str()).collect();
    assert_eq!(names.len(), tests.len(), "two tests have the same name");
    drop(names);
    tests
}

fn main() -> ExitCode {
    let Some(mut arguments) = runner::arguments_unless_serving(serve) else {
        return ExitCode::SUCCESS;
    };
    let wants_table = arguments.iter().any(|argument| argument == "table");
    arguments.retain(|argument| argument != "table");
    let (code, outcome) = runner::run(tests(), arguments.into_iter());
    if wants_table {
        println!("{BEGIN}\n{}{END}", table(Some(&outcome)));
    }
    code
}
