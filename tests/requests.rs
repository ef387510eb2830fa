//! What a blocking handler can ask of its request, under each mode that runs one. The servers are
//! processes of their own, so that `forking` is tested beside the others.

#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use process::{Process, Stream, announce, connect};
use socketserver::{BlockingMode, Endpoint, HandlerResult, Request, RequestHandler, Server};

const MODES: [&str; 4] = ["inline", "threading", "pool", "forking"];
const STREAMS: [&str; 2] = ["tcp://127.0.0.1:0", "unix://{dir}/socket"];

/// The length of the file `data`.
const LENGTH: usize = 1 << 20;

/// The length of the file `sparse`, which holds nothing but zeros and which no kernel takes whole.
const SPARSE: u64 = 64 << 20;

/// A timeout, a deadline, and how long a stop takes at most.
const BRIEF: Duration = Duration::from_millis(500);

struct CannotBeFormatted;

impl fmt::Display for CannotBeFormatted {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Err(fmt::Error)
    }
}

#[derive(Clone)]
struct Answer {
    what: String,
    directory: PathBuf,
}

impl Answer {
    fn open(&self, name: &str) -> File {
        File::open(self.directory.join(name)).unwrap()
    }

    /// What can fail, and is told.
    fn attempt(&self, request: &mut Request<'_>) -> std::io::Result<()> {
        let data = self.open("data");
        match self.what.as_str() {
            "send_file" => {
                request.write_all(b"header")?;
                request.send_file(&data, 0..LENGTH as u64)?;
                request.send_file(&data, 7..7)?;
                request.set_write_buffer(1000);
                request.write_all(b"gathered")?;
                request.send_file(&data, 5..10)?;
                request.write_all(b"trailer")
            }
            "formatted" => {
                let failed = write!(request, "a part, and {}", CannotBeFormatted);
                assert!(failed.is_err());
                write!(request, "line {}\r\n", 1)
            }
            "short" => {
                request.set_write_buffer(1000);
                request.write_all(b"header")?;
                request.send_file(&data, 10..LENGTH as u64 + 1)
            }
            "timeout" => {
                request.set_timeout(BRIEF);
                request.send_file(&self.open("sparse"), 0..SPARSE)
            }
            "stop" => request.send_file(&self.open("sparse"), 0..SPARSE),
            "read deadline" => {
                let begun = Instant::now();
                request.set_timeout(process::DEADLINE);
                request.set_deadline(begun + BRIEF);
                let read = request.read_line().map(drop);
                assert!(begun.elapsed() >= BRIEF);
                // What has come is read all the same.
                assert!(request.fill_buf()?.starts_with(b"x"));
                let written = request.write_all(b"too late").unwrap_err();
                assert_eq!(written.kind(), ErrorKind::TimedOut);
                read
            }
            "last word" => {
                request.set_deadline(Instant::now() + BRIEF);
                let read = request.read_line().map(drop);
                request.set_deadline(None);
                request.write_all(b"too late")?;
                read
            }
            "write deadline" => {
                request.set_timeout(process::DEADLINE);
                request.set_deadline(Instant::now() + BRIEF);
                request.write_all(&vec![b'x'; SPARSE as usize])
            }
            "file deadline" => {
                request.set_deadline(Instant::now() + BRIEF);
                request.send_file(&self.open("sparse"), 0..SPARSE)
            }
            other => panic!("{other}"),
        }
    }

    /// The datagram says which part of the file is the reply, between two words.
    fn reply(&self, request: &mut Request<'_>) -> HandlerResult {
        let range = String::from_utf8(request.packet().unwrap().to_vec())?;
        let (start, end) = range.split_once(' ').unwrap();
        let range = start.parse()?..end.parse()?;
        request.write_all(b"<")?;
        if let Err(error) = request.send_file(&self.open("data"), range) {
            write!(request, "{}", error.kind())?;
        }
        Ok(request.write_all(b">")?)
    }
}

impl RequestHandler for Answer {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        let answer = match self.what.as_str() {
            "reply" => return self.reply(request),
            "local_addr" => request.local_addr()?.to_string(),
            "credentials" => match request.credentials() {
                Ok(credentials) => format!("{credentials:?}"),
                Err(error) => error.kind().to_string(),
            },
            _ => {
                let attempted = self.attempt(request);
                match &attempted {
                    Ok(()) => println!("sent"),
                    Err(error) => println!("{}", error.kind()),
                }
                return Ok(attempted?);
            }
        };
        Ok(request.write_all(answer.as_bytes())?)
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
    let mode: BlockingMode = mode.parse().unwrap();
    let endpoint: Endpoint = url.parse().unwrap();
    let builder = Server::endpoint(&endpoint).unwrap().dual_stack(url.contains("[::]"));
    let answer = Answer { what: what.clone(), directory };
    let mut server = builder.mode(mode).serve_blocking(move |_| answer.clone()).unwrap();
    server.drain_timeout(if what == "stop" { BRIEF } else { process::DEADLINE });
    server.stop_on_signals().unwrap();
    announce(&server.addresses());
    server.serve_forever().unwrap();
    println!("bytes out {}", server.counters().bytes_out);
}

/// Plays `test` with a server of each mode, all at the same time.
fn under_each(what: &str, url: &str, test: impl Fn(&str, Process) + Sync) {
    thread::scope(|scope| {
        for mode in MODES {
            let test = &test;
            scope.spawn(move || test(mode, Process::start(1, &[what, mode, url, "{dir}"])));
        }
    });
}

/// The answer has been cut, and does not look whole where the transport can say so.
fn expect_cut(server: &Process, client: &mut Stream) {
    let (mut received, mut buffer) = (0, vec![0; 1 << 20]);
    let end = loop {
        match client.socket.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(count) => received += count,
            Err(error) => break Err(error.kind()),
        }
    };
    assert!(received < SPARSE as usize);
    if server.url().starts_with("tcp") {
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "after {received} bytes");
    }
}

fn the_local_address_is_the_one_that_the_client_has_connected_to() {
    under_each("local_addr", "tcp://0.0.0.0:0", |mode, server| {
        let url = server.url().replace("0.0.0.0", "127.0.0.2");
        assert_eq!(connect(&url).read_to_end(), url.as_bytes(), "{mode}");
    });
    under_each("local_addr", "unix://{dir}/socket", |mode, server| {
        assert_eq!(server.connect().read_to_end(), server.url().as_bytes(), "{mode}");
    });
}

fn the_local_address_of_an_ipv4_client_of_a_dual_stack_server_is_an_ipv4_address() {
    under_each("local_addr", "tcp://[::]:0", |mode, server| {
        for host in ["127.0.0.1", "[::1]"] {
            let url = server.url().replace("[::]", host);
            assert_eq!(connect(&url).read_to_end(), url.as_bytes(), "{mode}");
        }
    });
}

fn the_local_address_of_a_datagram_is_that_of_the_server() {
    for url in ["udp://127.0.0.1:0", "unixgram://{dir}/socket"] {
        under_each("local_addr", url, |_, server| {
            server.datagrams().send("?").expect(server.url());
        });
    }
}

#[allow(unsafe_code)] // no crate of the tests can do it
fn the_credentials_of_a_unix_client_are_those_of_its_process() {
    // SAFETY: these take nothing and always succeed.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let pid = cfg!(target_os = "linux").then_some(std::process::id());
    let expected = format!("Credentials {{ pid: {pid:?}, uid: {uid}, gid: {gid} }}");
    under_each("credentials", "unix://{dir}/socket", |mode, server| {
        let told = server.connect().read_to_end();
        assert_eq!(String::from_utf8(told).unwrap(), expected, "{mode}");
    });
}

fn a_tcp_client_and_a_datagram_have_no_credentials() {
    under_each("credentials", "tcp://127.0.0.1:0", |mode, server| {
        assert_eq!(server.connect().read_to_end(), b"unsupported", "{mode}");
    });
    for url in ["udp://127.0.0.1:0", "unixgram://{dir}/socket"] {
        under_each("credentials", url, |_, server| {
            server.datagrams().send("?").expect("unsupported");
        });
    }
}

fn a_file_is_sent_between_what_is_written_before_and_after_it() {
    for url in STREAMS {
        under_each("send_file", url, |mode, mut server| {
            let data = data();
            let expected = [b"header", &data[..], b"gathered", &data[5..10], b"trailer"].concat();
            assert!(server.connect().read_to_end() == expected, "{mode}");
            assert_eq!(server.line(), "sent");
            server.terminate();
            server.expect_success();
            // A child does not count for its parent.
            if mode != "forking" {
                assert_eq!(server.line(), format!("bytes out {}", expected.len()));
            }
        });
    }
}

fn a_line_that_is_formatted_is_sent_whole_or_not_at_all() {
    for url in STREAMS {
        under_each("formatted", url, |mode, server| {
            assert_eq!(server.connect().read_to_end(), b"line 1\r\n", "{mode}");
        });
    }
}

fn a_file_that_is_shorter_than_its_range_is_an_error_and_the_answer_ends_in_a_reset() {
    for url in STREAMS {
        under_each("short", url, |_, mut server| {
            let mut client = server.connect();
            expect_cut(&server, &mut client);
            assert_eq!(server.line(), ErrorKind::UnexpectedEof.to_string());
        });
    }
}

fn a_file_that_its_client_does_not_read_times_out_and_the_answer_ends_in_a_reset() {
    for url in STREAMS {
        under_each("timeout", url, |_, mut server| {
            let mut client = server.connect();
            assert_eq!(server.line(), ErrorKind::TimedOut.to_string());
            expect_cut(&server, &mut client);
        });
    }
}

fn the_drain_deadline_of_a_stop_cuts_a_file_that_is_on_its_way() {
    for url in STREAMS {
        under_each("stop", url, |_, mut server| {
            let mut client = server.connect();
            client.socket.read_exact(&mut [0; 1]).unwrap();
            server.terminate();
            server.expect_success();
            expect_cut(&server, &mut client);
        });
    }
}

fn a_file_in_a_datagram_is_a_part_of_the_reply() {
    let data = data();
    for url in ["udp://127.0.0.1:0", "unixgram://{dir}/socket"] {
        under_each("reply", url, |_, server| {
            let client = server.datagrams();
            client.send("5 10").expect([b"<", &data[5..10], b">"].concat());
            client.send("7 7").expect("<>");
            let longest = 65_507 - 2;
            let whole = [b"<", &data[..longest], b">"].concat();
            client.send(format!("0 {longest}")).expect(whole);
            let beyond = format!("{} {}", LENGTH - 1, LENGTH + 1);
            client.send(beyond).expect(format!("<{}>", ErrorKind::UnexpectedEof));
            let too_long = format!("<{}>", ErrorKind::InvalidInput);
            client.send(format!("0 {LENGTH}")).expect(&too_long);
            client.send(format!("0 {}", u64::MAX)).expect(&too_long);
        });
    }
}

/// Sends a byte at a time until that fails, and reads what comes.
fn drip(client: &mut Stream) -> Vec<u8> {
    let mut writer = client.socket.try_clone().unwrap();
    let mut answer = Vec::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            while writer.write_all(b"x").is_ok() {
                thread::sleep(BRIEF / 50);
            }
        });
        // A reset is an end, too.
        let _ = client.socket.read_to_end(&mut answer);
        let _ = client.socket.shutdown(std::net::Shutdown::Both);
    });
    answer
}

fn a_read_ends_at_the_deadline_although_its_client_goes_on_sending() {
    for url in STREAMS {
        under_each("read deadline", url, |mode, mut server| {
            assert_eq!(drip(&mut server.connect()), b"", "{mode}");
            assert_eq!(server.line(), ErrorKind::TimedOut.to_string());
        });
    }
}

fn a_handler_that_takes_its_deadline_back_can_answer() {
    for url in STREAMS {
        under_each("last word", url, |mode, mut server| {
            assert_eq!(drip(&mut server.connect()), b"too late", "{mode}");
            assert_eq!(server.line(), ErrorKind::TimedOut.to_string());
        });
    }
}

fn a_write_ends_at_the_deadline_although_its_client_goes_on_reading() {
    for what in ["write deadline", "file deadline"] {
        for url in STREAMS {
            under_each(what, url, |_, mut server| {
                let mut client = server.connect();
                let mut piece = vec![0; 64 << 10];
                let mut reader = client.socket.try_clone().unwrap();
                let told = thread::scope(|scope| {
                    scope.spawn(move || {
                        while reader.read(&mut piece).is_ok_and(|count| count > 0) {
                            // What is slow is the peer itself.
                            thread::sleep(BRIEF / 50);
                        }
                    });
                    let told = server.line();
                    let _ = client.socket.shutdown(std::net::Shutdown::Read);
                    told
                });
                assert_eq!(told, ErrorKind::TimedOut.to_string(), "{what}");
                client.expect_gone();
            });
        }
    }
}

fn main() -> ExitCode {
    let Some(arguments) = runner::arguments_unless_serving(serve) else {
        return ExitCode::SUCCESS;
    };
    let tests = tests![
        the_local_address_is_the_one_that_the_client_has_connected_to,
        the_local_address_of_an_ipv4_client_of_a_dual_stack_server_is_an_ipv4_address,
        the_local_address_of_a_datagram_is_that_of_the_server,
        the_credentials_of_a_unix_client_are_those_of_its_process,
        a_tcp_client_and_a_datagram_have_no_credentials,
        a_file_is_sent_between_what_is_written_before_and_after_it,
        a_line_that_is_formatted_is_sent_whole_or_not_at_all,
        a_file_that_is_shorter_than_its_range_is_an_error_and_the_answer_ends_in_a_reset,
        a_file_that_its_client_does_not_read_times_out_and_the_answer_ends_in_a_reset,
        the_drain_deadline_of_a_stop_cuts_a_file_that_is_on_its_way,
        a_file_in_a_datagram_is_a_part_of_the_reply,
        a_read_ends_at_the_deadline_although_its_client_goes_on_sending,
        a_handler_that_takes_its_deadline_back_can_answer,
        a_write_ends_at_the_deadline_although_its_client_goes_on_reading,
    ];
    runner::run(tests, arguments.into_iter()).0
}
