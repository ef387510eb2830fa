//! A panic in user code ends only its own request, wherever it happens, in every mode and over
//! every transport.

#[path = "support/forked.rs"]
mod forked;
mod support;

use std::cell::Cell;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::panic::panic_any;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::Duration;

use forked::{print_line, run_role, start, terminate};
use socketserver::{
    Accepted, Address, BlockingMode, CloseReason, Context, Decoded, Endpoint, Forking, Framing,
    FramingError, Handler, HandlerResult, Hooks, Inline, Mode, Offload, Output, Peer, Pool, Raw,
    Reactor, Request, RequestHandler, Server, Threading,
};
use support::{DEADLINE, in_time, start_server, wait_until};

/// The places where user code can panic with a `Handler` on a stream.
const STREAM: &[Place] = &[
    Place::GetRequest,
    Place::Verify,
    Place::Factory,
    Place::FramingClone,
    Place::Decode,
    Place::DecodeEof,
    Place::Encode,
    Place::FramingDrop,
    Place::Open,
    Place::Message,
    Place::MessageWithAPayloadThatPanics,
    Place::Eof,
    Place::Close,
    Place::HandlerDrop,
    Place::HandlerAndFramingDrop,
    Place::HandleError,
    Place::ErrorDrop,
    Place::ErrorDisplay,
];

/// The places where user code can panic with a `Handler` on datagrams.
const DATAGRAM: &[Place] = &[
    Place::Verify,
    Place::Factory,
    Place::Open,
    Place::Message,
    Place::MessageWithAPayloadThatPanics,
    Place::Close,
    Place::HandlerDrop,
    Place::HandleError,
    Place::ErrorDrop,
    Place::ErrorDisplay,
];

/// The places where user code can panic with a `RequestHandler`.
const REQUEST: &[Place] = &[
    Place::Verify,
    Place::Factory,
    Place::Setup,
    Place::Message,
    Place::MessageWithAPayloadThatPanics,
    Place::Finish,
    Place::HandlerDrop,
    Place::HandleError,
    Place::ErrorDrop,
    Place::ErrorDisplay,
];

/// A place where user code panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    GetRequest,
    Verify,
    Factory,
    FramingClone,
    Decode,
    DecodeEof,
    Encode,
    FramingDrop,
    Open,
    Message,
    MessageWithAPayloadThatPanics,
    Eof,
    Close,
    Setup,
    Finish,
    HandlerDrop,
    HandlerAndFramingDrop,
    HandleError,
    ErrorDrop,
    ErrorDisplay,
}

impl Place {
    /// How many panics it causes. An error is displayed twice: for the log, and by the hook.
    fn panics(self) -> u64 {
        match self {
            Place::HandlerAndFramingDrop | Place::ErrorDisplay => 2,
            _ => 1,
        }
    }
}

/// Where user code panics: every second request panics at the next place.
#[derive(Clone)]
struct Plan {
    places: &'static [Place],
    requests: Arc<AtomicUsize>,
}

impl Plan {
    fn new(places: &'static [Place]) -> Self {
        Plan { places, requests: Arc::default() }
    }

    /// The place for the current request.
    fn now(&self) -> Option<Place> {
        let number = self.requests.load(SeqCst);
        if number % 2 == 1 { self.places.get(number / 2).copied() } else { None }
    }
}

/// The text of the error at which the hook panics.
const HOOK_FAULT: &str = "a fault for the hook";

/// The place at which the code of one request panics.
#[derive(Clone, Copy)]
struct Faulty(Option<Place>);

impl Faulty {
    fn at(self, place: Place) {
        if self.0 == Some(place) {
            panic!("at {place:?}, on purpose");
        }
    }
}

/// A value whose destructor panics.
#[derive(Debug)]
struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("in a destructor, on purpose");
    }
}

/// A user's error that panics when it is displayed or dropped.
#[derive(Debug)]
struct PanickingError(Place);

impl fmt::Display for PanickingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Faulty(Some(self.0)).at(Place::ErrorDisplay);
        f.write_str("an error")
    }
}

impl std::error::Error for PanickingError {}

impl Drop for PanickingError {
    fn drop(&mut self) {
        Faulty(Some(self.0)).at(Place::ErrorDrop);
    }
}

/// What both kinds of handler do with a message: panics or fails.
fn message(faulty: Faulty) -> HandlerResult {
    faulty.at(Place::Message);
    match faulty.0 {
        Some(Place::MessageWithAPayloadThatPanics) => panic_any(PanicsWhenDropped),
        Some(place @ (Place::ErrorDrop | Place::ErrorDisplay)) => Err(PanickingError(place).into()),
        Some(Place::HandleError) => Err(HOOK_FAULT.into()),
        _ => Ok(()),
    }
}

struct Echo {
    faulty: Faulty,
}

impl Handler for Echo {
    fn on_open(&mut self, _: &mut Context<'_>) -> HandlerResult {
        self.faulty.at(Place::Open);
        Ok(())
    }

    fn on_message(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        message(self.faulty)?;
        cx.send(bytes)
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.faulty.at(Place::Eof);
        cx.close();
        Ok(())
    }

    fn on_close(&mut self, _: &CloseReason) {
        self.faulty.at(Place::Close);
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.faulty.at(Place::HandlerDrop);
        self.faulty.at(Place::HandlerAndFramingDrop);
    }
}

/// A request handler that echoes.
struct EchoRequest {
    faulty: Faulty,
}

impl RequestHandler for EchoRequest {
    fn setup(&mut self, _: &mut Request<'_>) -> HandlerResult {
        self.faulty.at(Place::Setup);
        Ok(())
    }

    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        let mut bytes = Vec::new();
        request.read_to_end(&mut bytes)?;
        message(self.faulty)?;
        Ok(request.write_all(&bytes)?)
    }

    fn finish(&mut self, _: &mut Request<'_>) -> HandlerResult {
        self.faulty.at(Place::Finish);
        Ok(())
    }
}

impl Drop for EchoRequest {
    fn drop(&mut self) {
        self.faulty.at(Place::HandlerDrop);
    }
}

/// A user's framing. A message is the input of one read without a last `.`, which stays buffered.
struct Custom {
    plan: Plan,
    faulty: Faulty,
}

impl Clone for Custom {
    fn clone(&self) -> Self {
        let faulty = Faulty(self.plan.now());
        faulty.at(Place::FramingClone);
        Custom { plan: self.plan.clone(), faulty }
    }
}

impl Framing for Custom {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        self.faulty.at(Place::Decode);
        match input.strip_suffix(b".") {
            Some([]) => Ok(Decoded::Incomplete),
            Some(body) => Ok(Decoded::Frame { body: 0..body.len(), consumed: body.len() }),
            None => Raw.decode(input),
        }
    }

    fn decode_eof(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        self.faulty.at(Place::DecodeEof);
        Ok(Decoded::Skip(input.len()))
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        self.faulty.at(Place::Encode);
        Raw.encode(message, output)
    }
}

impl Drop for Custom {
    fn drop(&mut self) {
        self.faulty.at(Place::FramingDrop);
        self.faulty.at(Place::HandlerAndFramingDrop);
    }
}

/// Hooks that count the requests, on the loop's thread, before any other user code runs.
struct CountRequests<S> {
    plan: Plan,
    /// Called for each request.
    seen: S,
    streams: bool,
}

impl<S: Fn()> CountRequests<S> {
    fn next(&self) -> Faulty {
        self.plan.requests.fetch_add(1, SeqCst);
        (self.seen)();
        Faulty(self.plan.now())
    }
}

impl<S: Fn()> Hooks for CountRequests<S> {
    fn on_accept(&mut self, _: BorrowedFd<'_>, _: &Peer) -> std::io::Result<()> {
        self.next().at(Place::GetRequest);
        Ok(())
    }

    fn verify_request(&mut self, _: &Peer) -> bool {
        let faulty = if self.streams { Faulty(self.plan.now()) } else { self.next() };
        faulty.at(Place::Verify);
        true
    }

    fn handle_error(&mut self, peer: &Peer, reason: &CloseReason) {
        if matches!(reason, CloseReason::Error(error) if error.is::<PanickingError>()) {
            // The log call below displays it.
        } else if reason.to_string().contains(HOOK_FAULT) {
            panic!("in a hook, on purpose");
        }
        log::error!("{peer}: {reason}");
    }
}

/// A logger that formats each record, and panics on threads that set `LOGGER_PANICS`.
struct FormattingLogger;

thread_local! {
    static LOGGER_PANICS: Cell<bool> = const { Cell::new(false) };
}

impl log::Log for FormattingLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        assert!(!record.args().to_string().is_empty());
        assert!(!LOGGER_PANICS.get(), "in the logger, on purpose");
    }

    fn flush(&self) {}
}

fn prepare() {
    // Fails in all tests but the first.
    let _ = log::set_logger(&FormattingLogger);
    log::set_max_level(log::LevelFilter::Debug);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        if text.is_some_and(|text| !text.contains("on purpose")) {
            usual(panic);
        }
    }));
}

const TRANSPORTS: [&str; 4] = ["tcp", "udp", "unix", "unixgram"];

fn is_datagram(transport: &str) -> bool {
    matches!(transport, "udp" | "unixgram")
}

/// A mode; if it has a limit, for one request at a time.
fn mode(name: &str) -> Mode {
    match name {
        "reactor" => Mode::Reactor(Reactor),
        "offload" => Mode::Offload(Offload::new(1)),
        "inline" => Mode::Inline(Inline),
        "threading" => Mode::Threading(Threading::default().limit(1)),
        "pool" => Mode::Pool(Pool::new(1).queue(0)),
        "forking" => Mode::Forking(Forking::default().max_children(1)),
        _ => unreachable!("{name}"),
    }
}

/// A server of one mode and transport.
#[derive(Debug, Clone)]
struct Case {
    mode: String,
    transport: String,
    blocking: bool,
}

impl Case {
    fn places(&self) -> &'static [Place] {
        match (self.blocking, is_datagram(&self.transport)) {
            (true, _) => REQUEST,
            (false, true) => DATAGRAM,
            (false, false) => STREAM,
        }
    }

    fn server(&self, directory: &Path, seen: impl Fn() + Send + 'static) -> Server {
        let path = directory.join("socket");
        let endpoint = match self.transport.as_str() {
            "tcp" | "udp" => format!("{}://127.0.0.1:0", self.transport),
            transport => format!("{transport}://{}", path.display()),
        };
        let plan = Plan::new(self.places());
        let streams = !is_datagram(&self.transport);
        let hooks = CountRequests { plan: plan.clone(), seen, streams };
        let builder =
            Server::endpoint(&endpoint.parse::<Endpoint>().unwrap()).unwrap().hooks(hooks);
        let mode = mode(&self.mode);
        let faulty = move |plan: &Plan| {
            let faulty = Faulty(plan.now());
            faulty.at(Place::Factory);
            faulty
        };
        let of_makers = plan.clone();
        let mut server = if self.blocking {
            let builder = builder.mode(BlockingMode::try_from(mode).unwrap());
            builder.serve_blocking(move |_| EchoRequest { faulty: faulty(&of_makers) })
        } else {
            let framing = Custom { plan, faulty: Faulty(None) };
            let builder = builder.framing(framing).mode(mode);
            builder.serve(move |_| Echo { faulty: faulty(&of_makers) })
        }
        .unwrap();
        server.drain_timeout(2 * DEADLINE);
        server
    }
}

/// The address of a server, for its clients.
fn text_of(server: &Server) -> String {
    match server.local_addr() {
        Address::Unix(path) | Address::UnixDatagram(path) => {
            path.as_ref().unwrap().display().to_string()
        }
        address => address.inet().unwrap().to_string(),
    }
}

/// A client of one request.
enum Client {
    Tcp(TcpStream),
    Unix(UnixStream),
    Udp(UdpSocket),
    Unixgram(UnixDatagram, PathBuf),
}

impl Client {
    fn connect(transport: &str, address: &str, directory: &Path) -> Self {
        match transport {
            "tcp" => {
                let client = TcpStream::connect(address).unwrap();
                client.set_read_timeout(Some(DEADLINE)).unwrap();
                Client::Tcp(client)
            }
            "unix" => {
                let client = UnixStream::connect(address).unwrap();
                client.set_read_timeout(Some(DEADLINE)).unwrap();
                Client::Unix(client)
            }
            "udp" => {
                let client = UdpSocket::bind("127.0.0.1:0").unwrap();
                client.connect(address).unwrap();
                client.set_read_timeout(Some(DEADLINE)).unwrap();
                Client::Udp(client)
            }
            _ => {
                static NUMBER: AtomicUsize = AtomicUsize::new(0);
                let own = directory.join(format!("client-{}", NUMBER.fetch_add(1, SeqCst)));
                let client = UnixDatagram::bind(&own).unwrap();
                client.set_read_timeout(Some(DEADLINE)).unwrap();
                Client::Unixgram(client, address.into())
            }
        }
    }

    /// Sends a request, and on a stream FIN.
    fn ask(&mut self, bytes: &[u8]) {
        // The server may have closed already.
        match self {
            Client::Tcp(client) => {
                let _ = client.write_all(bytes);
                let _ = client.shutdown(Shutdown::Write);
            }
            Client::Unix(client) => {
                let _ = client.write_all(bytes);
                let _ = client.shutdown(Shutdown::Write);
            }
            Client::Udp(client) => assert_eq!(client.send(bytes).unwrap(), bytes.len()),
            Client::Unixgram(client, path) => {
                assert_eq!(client.send_to(bytes, path).unwrap(), bytes.len());
            }
        }
    }

    /// The answer, on a stream up to its end; empty after a reset.
    fn answer(&mut self) -> Vec<u8> {
        let mut answer = vec![0; 100];
        let (count, error) = match self {
            Client::Tcp(client) => read_to_end(client, &mut answer),
            Client::Unix(client) => read_to_end(client, &mut answer),
            Client::Udp(client) => (client.recv(&mut answer).unwrap(), None),
            Client::Unixgram(client, _) => (client.recv(&mut answer).unwrap(), None),
        };
        assert_ne!(error, Some(ErrorKind::WouldBlock), "no answer within the deadline");
        answer.truncate(count);
        answer
    }
}

fn read_to_end(client: &mut impl Read, answer: &mut [u8]) -> (usize, Option<ErrorKind>) {
    let mut count = 0;
    loop {
        match client.read(&mut answer[count..]) {
            Ok(0) => return (count, None),
            Ok(more) => count += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (count, Some(error.kind())),
        }
    }
}

/// A directory for the sockets of one test.
struct Directory(PathBuf);

impl Directory {
    fn new(case: &Case) -> Self {
        let Case { mode, transport, blocking } = case;
        let name = format!("panics-{}-{mode}-{transport}-{blocking}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// For each place: one client whose request panics there, and one that is answered.
fn talk(case: &Case, address: &str, directory: &Directory, seen: impl Fn()) {
    for place in case.places() {
        let context = format!("{case:?} {place:?}");
        let mut faulty = Client::connect(&case.transport, address, &directory.0);
        faulty.ask(b"boom.");
        seen();
        if !is_datagram(&case.transport) {
            faulty.answer();
        }
        let mut next = Client::connect(&case.transport, address, &directory.0);
        next.ask(b"hello");
        seen();
        assert_eq!(next.answer().escape_ascii().to_string(), "hello", "{context}");
    }
}

fn check(case: &Case) {
    let directory = Directory::new(case);
    let (report, seen) = mpsc::channel();
    let server = case.server(&directory.0, move || report.send(()).unwrap());
    let address = text_of(&server);
    let server = start_server(server);
    talk(case, &address, &directory, || seen.recv_timeout(DEADLINE).unwrap());
    let places = case.places();
    let panics = places.iter().map(|place| place.panics()).sum();
    let count = 2 * places.len() as u64;
    server.wait_for("all is counted", |counters| {
        let received = if is_datagram(&case.transport) {
            counters.datagrams == count
        } else {
            counters.accepted == count && counters.closed == count
        };
        received && counters.panics >= panics
    });
    let handle = server.handle();
    let (_, report) = server.stop();
    assert_eq!((report.aborted, handle.counters().panics), (0, panics), "{case:?}");
}

/// The same as `check`, with the server in a process of its own.
fn check_forking(transport: &str, blocking: bool) {
    let case = Case { mode: "forking".to_owned(), transport: transport.to_owned(), blocking };
    let directory = Directory::new(&case);
    let role = format!("{transport} {blocking} {}", directory.0.display());
    let process = start(&role);
    let pid = process.line_after("pid");
    let address = process.line_after("address");
    talk(&case, &address, &directory, || assert_eq!(process.line(), "seen"));
    terminate(&pid);
    assert_eq!(process.line(), "aborted 0");
    assert_eq!(process.line(), "dropped");
    process.expect_end();
}

/// Prints a line when it is dropped: only the process that created it may do so.
struct PrintWhenDropped;

impl Drop for PrintWhenDropped {
    fn drop(&mut self) {
        print_line("dropped");
    }
}

fn roles(role: &str) {
    prepare();
    let _print = PrintWhenDropped;
    if role == "a logger that panics" {
        return serve_with_a_logger_that_panics();
    }
    let words: Vec<_> = role.splitn(3, ' ').collect();
    let case = Case {
        mode: "forking".to_owned(),
        transport: words[0].to_owned(),
        blocking: words[1] == "true",
    };
    let mut server = case.server(words[2].as_ref(), || print_line("seen"));
    server.stop_on_signals().unwrap();
    print_line(format_args!("pid {}", std::process::id()));
    print_line(format_args!("address {}", text_of(&server)));
    let report = server.serve_forever().unwrap();
    print_line(format_args!("aborted {}", report.aborted));
}

/// Not a test: the entry point of the processes that the tests start.
#[test]
fn entry_point_of_child_processes() {
    run_role(roles);
}

fn check_mode(mode: &str) {
    prepare();
    for transport in TRANSPORTS {
        for blocking in [false, true] {
            if blocking && matches!(mode, "reactor" | "offload") {
                continue;
            }
            let case = Case { mode: mode.to_owned(), transport: transport.to_owned(), blocking };
            check(&case);
        }
    }
}

#[test]
fn a_panic_under_reactor_costs_its_own_request() {
    check_mode("reactor");
}

#[test]
fn a_panic_under_offload_costs_its_own_request() {
    check_mode("offload");
}

#[test]
fn a_panic_under_inline_costs_its_own_request() {
    check_mode("inline");
}

#[test]
fn a_panic_under_threading_costs_its_own_request_and_frees_its_thread() {
    check_mode("threading");
}

#[test]
fn a_panic_under_pool_costs_its_own_request_and_frees_its_thread() {
    check_mode("pool");
}

#[test]
fn a_panic_in_a_child_costs_its_own_request_and_never_unwinds_into_the_parents_code() {
    for transport in TRANSPORTS {
        check_forking(transport, false);
        check_forking(transport, true);
    }
}

/// A server whose logger panics at each record of its thread.
fn serve_with_a_logger_that_panics() {
    LOGGER_PANICS.set(true);
    let builder = Server::tcp("127.0.0.1:0").unwrap();
    let mut server = builder.serve(|_| Echo { faulty: Faulty(Some(Place::Message)) }).unwrap();
    let handle = server.shutdown_handle();
    let address = text_of(&server);
    let client = std::thread::spawn(move || {
        for _ in 0..3 {
            let mut client = Client::connect("tcp", &address, Path::new(""));
            client.ask(b"boom");
            client.answer();
        }
        wait_until("panics are counted", || handle.counters().panics >= 6);
        handle.shutdown();
    });
    print_line(server.serve_forever().is_ok());
    client.join().unwrap();
}

#[test]
fn a_logger_that_panics_does_not_end_the_server() {
    let process = start("a logger that panics");
    assert_eq!(process.line(), "true");
    assert_eq!(process.line(), "dropped");
    process.expect_end();
}

/// Hooks with a destructor that panics.
struct HooksThatPanicWhenDropped(#[allow(dead_code)] PanicsWhenDropped);

impl Hooks for HooksThatPanicWhenDropped {}

#[test]
fn a_server_whose_hooks_and_factory_panic_when_they_are_dropped_can_be_dropped() {
    prepare();
    for name in ["reactor", "offload", "inline", "threading", "pool"] {
        let kept = PanicsWhenDropped;
        let builder = Server::tcp("127.0.0.1:0").unwrap().mode(mode(name));
        let builder = builder.hooks(HooksThatPanicWhenDropped(PanicsWhenDropped));
        let server = builder.serve(move |_| {
            let _ = &kept;
            Echo { faulty: Faulty(None) }
        });
        let mut server = server.unwrap();
        server.request_timeout(Duration::from_millis(1));
        assert!(!server.handle_request().unwrap());
        in_time("it is dropped", move || drop(server));
    }
}

#[test]
fn a_serve_local_closure_that_panics_fails_only_that_run() {
    prepare();
    let mut runs = 0;
    let server = Server::tcp("127.0.0.1:0").unwrap().serve_local(move || {
        runs += 1;
        assert_ne!(runs, 1, "on purpose");
        |_: &Accepted<'_>| Echo { faulty: Faulty(None) }
    });
    let mut server = server.unwrap();
    server.request_timeout(Duration::from_millis(1));
    let error = server.handle_request().unwrap_err();
    assert!(format!("{error:#}").contains("on purpose"), "{error:#}");
    assert!(!server.handle_request().unwrap());
}
