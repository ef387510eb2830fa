//! Files in the output of a handler: under every mode, over TCP and Unix streams. The servers are
//! processes of their own, so that `forking` is tested beside the others.

#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use process::{Process, Stream, announce, descriptors_of, eventually};
use socket2::SockRef;
use socketserver::{
    Accepted, CloseReason, Context, Decoded, Framing, FramingError, Handler, HandlerResult, Hooks,
    Lines, Mode, Output, Peer, Server,
};

const MODES: [&str; 6] = ["reactor", "offload", "inline", "threading", "pool", "forking"];
const URLS: [&str; 2] = ["tcp://127.0.0.1:0", "unix://{dir}/socket"];

/// The length of the file `data`.
const LENGTH: usize = 3 << 20;

/// The length of the file `sparse`, which holds nothing but zeros.
const SPARSE: u64 = 64 << 20;

/// An answer that takes a slow client a multiple of the timeout.
const SLOW: usize = 640 << 10;

/// How long no output may move, and how long a stop takes at most, where either is tested.
const BRIEF: Duration = Duration::from_millis(500);

/// How long one watches for what must not happen.
const A_WHILE: Duration = Duration::from_millis(300);

// The servers

/// Lines come in. What goes out is made of the words of a message: `copy START END` and `share START
/// END` are bytes of the file `data`, `file NAME START END` is a part of a file.
#[derive(Clone)]
struct Recipe {
    directory: PathBuf,
    data: Arc<[u8]>,
}

impl Framing for Recipe {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        Lines::default().decode(input)
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        let mut words = std::str::from_utf8(message).unwrap().split(' ');
        let next = |words: &mut std::str::Split<'_, char>| words.next().unwrap().parse().unwrap();
        while let Some(word) = words.next() {
            let name = if word == "file" { words.next().unwrap() } else { "" };
            let (start, end): (u64, u64) = (next(&mut words), next(&mut words));
            match word {
                "copy" => output.put(&self.data[start as usize..end as usize]),
                "share" => output.put_shared(&self.data[start as usize..end as usize].into()),
                "file" => {
                    let file = File::open(self.directory.join(name)).unwrap();
                    output.put_file(Arc::new(file), start..end).unwrap();
                }
                other => panic!("{other}"),
            }
        }
        Ok(())
    }
}

/// Answers each line by what it says.
struct Answer {
    is_brief: bool,
}

impl Handler for Answer {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if self.is_brief {
            cx.set_idle_timeout(BRIEF)?;
        }
        Ok(())
    }

    fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        cx.send(line)
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        println!("late");
        cx.abort();
        Ok(())
    }

    fn on_close(&mut self, reason: &CloseReason) {
        println!("closed: {reason}");
    }
}

/// Hooks that set how much room the connection has in the kernel.
struct SendBuffer(usize);

impl Hooks for SendBuffer {
    fn on_accept(&mut self, connection: BorrowedFd<'_>, _: &Peer) -> io::Result<()> {
        SockRef::from(&connection).set_send_buffer_size(self.0)
    }
}

fn data() -> Vec<u8> {
    (0..LENGTH).map(|at| (at * 7 % 251) as u8).collect()
}

fn serve(arguments: &[String]) {
    let [what, mode, url, directory] = arguments else { panic!("{arguments:?}") };
    let directory = PathBuf::from(directory);
    fs::write(directory.join("data"), data()).unwrap();
    File::create(directory.join("sparse")).unwrap().set_len(SPARSE).unwrap();
    let recipe = Recipe { directory, data: data().into() };
    let builder = Server::endpoint(&url.parse().unwrap()).unwrap().framing(recipe);
    let (is_tiny, is_brief) = (what == "tiny", what == "brief");
    let mut server = builder
        .mode(mode.parse::<Mode>().unwrap())
        .hooks(SendBuffer(if is_tiny { 1 } else { 128 << 10 }))
        .serve(move |_: &Accepted<'_>| Answer { is_brief })
        .unwrap();
    server.drain_timeout(if what == "stop" { BRIEF } else { process::DEADLINE });
    server.stop_on_signals().unwrap();
    announce(&server.addresses());
    let report = server.serve_forever().unwrap();
    println!("cut {}", report.aborted);
}

/// Plays `test` with a server of each mode and transport, all modes at the same time.
fn under_each(what: &str, test: impl Fn(&str, Process) + Sync) {
    for url in URLS {
        thread::scope(|scope| {
            for mode in MODES {
                let test = &test;
                scope.spawn(move || {
                    test(mode, Process::start(1, &[what, mode, url, "{dir}"]));
                });
            }
        });
    }
}

fn is_tcp(server: &Process) -> bool {
    server.url().starts_with("tcp")
}

/// Reads until the end; how much that was, and what the end was.
fn read_all(client: &mut Stream) -> (usize, Result<(), ErrorKind>) {
    let (mut total, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        match client.socket.read(&mut buffer) {
            Ok(0) => return (total, Ok(())),
            Ok(count) => total += count,
            Err(error) => return (total, Err(error.kind())),
        }
    }
}

/// The answer has been cut, and does not look whole where the transport can say so.
fn expect_cut(server: &Process, client: &mut Stream, whole: u64) {
    let (received, end) = read_all(client);
    assert!((received as u64) < whole);
    if is_tcp(server) {
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "after {received} bytes");
    }
}

/// The memory of a server and its children that is or was resident at a time, in KiB.
fn peak_memory(server: &Process) -> u64 {
    let of = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    server.children().into_iter().chain([server.pid()]).map(of).max().unwrap()
}

/// A recipe of many parts, of which the last one has `last` bytes, and the bytes that it makes.
fn mixture(last: usize) -> (String, Vec<u8>) {
    let data = data();
    let (mut recipe, mut bytes) = (String::new(), Vec::new());
    for part in 0..60 {
        let length = [1, 100, 511, 512, 5000, last / 50][part % 6] + part;
        let start = part * 1001;
        let range = start..start + length;
        recipe += match part % 4 {
            0 => "copy",
            1 | 3 => "file data",
            _ => "share",
        };
        recipe += &format!(" {} {} ", range.start, range.end);
        bytes.extend_from_slice(&data[range]);
    }
    recipe += &format!("file data 0 {last}");
    bytes.extend_from_slice(&data[..last]);
    (recipe, bytes)
}

fn bytes_and_files_arrive_in_order() {
    under_each("plain", |mode, server| {
        let (recipe, expected) = mixture(LENGTH);
        let mut client = server.connect();
        // The second answer stands behind the first.
        client.send(format!("{recipe}\n{recipe}\n"));
        client.expect(&expected).expect(&expected);
        client.send("copy 0 5\n").expect(&data()[..5]);
        client.end().expect_end();
        drop(client);
        assert_eq!(descriptors_of_files(&server), 0, "{mode}");
        server.terminate();
    });
}

/// How many descriptors a server and its children have of regular files in its directory.
fn descriptors_of_files(server: &Process) -> usize {
    let directory: &Path = server.directory.path();
    let is_here = |(_, name): &(i32, String)| {
        let name = Path::new(name);
        name.starts_with(directory) && !name.ends_with("stderr")
    };
    let pids = server.children().into_iter().chain([server.pid()]);
    pids.map(|pid| descriptors_of(pid).iter().filter(|each| is_here(each)).count()).sum()
}

fn bytes_and_files_arrive_in_order_through_tiny_buffers() {
    under_each("tiny", |_, server| {
        let (recipe, expected) = mixture(50_000);
        let mut client = server.connect();
        client.socket.set_recv_buffer_size(8 << 10).unwrap();
        client.send(format!("{recipe}\n")).expect(&expected);
        client.end().expect_end();
    });
}

fn a_file_that_is_shorter_than_its_range_ends_in_a_reset() {
    under_each("plain", |_, mut server| {
        let mut client = server.connect();
        let whole = LENGTH as u64 + 1;
        client.send(format!("copy 0 10 file data 10 {whole} copy 0 10\n"));
        expect_cut(&server, &mut client, whole);
        let closed = server.line();
        assert_eq!(closed, "closed: handler failed: the file to be sent is shorter than its range");
        // It costs its own connection.
        server.connect().send("copy 0 5\n").expect(&data()[..5]);
    });
}

fn a_file_that_a_client_does_not_read_takes_no_memory() {
    under_each("plain", |mode, server| {
        let mut client = server.connect();
        client.send(format!("file sparse 0 {}\n", 1 << 20)).expect(vec![0; 1 << 20]);
        let before = peak_memory(&server);
        client.send(format!("copy 0 5 file sparse 0 {SPARSE} copy 0 5\n"));
        // All of it would have come meanwhile.
        thread::sleep(A_WHILE);
        if mode != "inline" {
            server.connect().send("copy 0 5\n").expect(&data()[..5]);
        }
        client.expect(&data()[..5]);
        for _ in 0..SPARSE >> 20 {
            client.expect(vec![0; 1 << 20]);
        }
        client.expect(&data()[..5]);
        let grown = peak_memory(&server).saturating_sub(before);
        assert!(grown < 8 << 10, "{mode}: {grown} KiB more");
    });
}

fn the_input_of_a_client_that_does_not_read_its_file_is_not_read() {
    under_each("plain", |_, server| {
        let mut client = server.connect();
        client.send(format!("file sparse 0 {SPARSE}\n"));
        client.socket.set_write_timeout(Some(A_WHILE)).unwrap();
        let (line, mut sent) = (b"copy 0 5\n".repeat(10_000), 0);
        while let Ok(count) = io::Write::write(&mut client.socket, &line) {
            sent += count;
            assert!(sent < 64 << 20, "back-pressure comes");
        }
    });
}

fn a_client_that_asks_for_many_small_files_and_reads_none_opens_few_at_a_time() {
    under_each("tiny", |mode, server| {
        let mut client = server.connect();
        client.socket.set_recv_buffer_size(8 << 10).unwrap();
        client.socket.set_write_timeout(Some(A_WHILE)).unwrap();
        let (lines, mut sent) = (b"file data 0 100\n".repeat(10_000), 0);
        while let Ok(count) = io::Write::write(&mut client.socket, &lines) {
            sent += count;
            assert!(sent < 64 << 20, "back-pressure comes");
        }
        let open = descriptors_of_files(&server);
        assert!(open <= 64, "{mode}: {open} files are open");
    });
}

fn a_client_that_takes_none_of_its_file_is_timed_out() {
    under_each("brief", |_, mut server| {
        let mut client = server.connect();
        client.send(format!("file sparse 0 {SPARSE}\n"));
        assert_eq!(server.line(), "late");
        expect_cut(&server, &mut client, SPARSE);
    });
}

fn a_client_that_takes_its_file_slowly_is_not_timed_out() {
    under_each("brief", |_, mut server| {
        let mut client = server.connect();
        client.socket.set_recv_buffer_size(64 << 10).unwrap();
        // When all is sent, the end is seen, so that the client may take its time for the last of it.
        client.send(format!("file sparse 0 {SLOW}\n")).end();
        let (begun, mut piece) = (Instant::now(), vec![0; 8 << 10]);
        for _ in 0..SLOW / piece.len() {
            client.socket.read_exact(&mut piece).unwrap();
            // What is slow is the peer itself.
            thread::sleep(BRIEF / 25);
        }
        assert!(begun.elapsed() > 2 * BRIEF, "it has taken a multiple of the timeout");
        client.expect_end();
        assert_eq!(server.line(), format!("closed: {}", CloseReason::Eof));
    });
}

fn the_drain_deadline_of_a_stop_cuts_a_file_that_is_on_its_way() {
    under_each("stop", |mode, mut server| {
        let mut client = server.connect();
        client.send(format!("copy 0 5 file sparse 0 {SPARSE}\n")).expect(&data()[..5]);
        server.terminate();
        server.expect_success();
        let told = server.rest();
        assert!(told.iter().any(|line| line == "cut 1"), "{mode}: {told:?}");
        expect_cut(&server, &mut client, SPARSE);
    });
}

fn a_client_that_goes_away_in_the_middle_leaves_no_file_open() {
    under_each("plain", |_, mut server| {
        for _ in 0..3 {
            let mut client = server.connect();
            client.send(format!("copy 0 5 file sparse 0 {SPARSE}\n")).expect(&data()[..5]);
            client.reset();
            assert!(server.line().starts_with("closed: disconnected"));
        }
        eventually("the files are closed", || descriptors_of_files(&server) == 0);
        server.connect().send("copy 0 5\n").expect(&data()[..5]);
    });
}

fn main() -> ExitCode {
    let Some(arguments) = runner::arguments_unless_serving(serve) else {
        return ExitCode::SUCCESS;
    };
    let tests = tests![
        bytes_and_files_arrive_in_order,
        bytes_and_files_arrive_in_order_through_tiny_buffers,
        a_file_that_is_shorter_than_its_range_ends_in_a_reset,
        a_file_that_a_client_does_not_read_takes_no_memory,
        the_input_of_a_client_that_does_not_read_its_file_is_not_read,
        a_client_that_asks_for_many_small_files_and_reads_none_opens_few_at_a_time,
        a_client_that_takes_none_of_its_file_is_timed_out,
        a_client_that_takes_its_file_slowly_is_not_timed_out,
        the_drain_deadline_of_a_stop_cuts_a_file_that_is_on_its_way,
        a_client_that_goes_away_in_the_middle_leaves_no_file_open,
    ];
    runner::run(tests, arguments.into_iter()).0
}
