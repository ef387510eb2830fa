//! What a blocking handler can ask of its request, under each mode that runs one. The servers are
//! processes of their own, so that `forking` is tested beside the others.

#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;

use std::io::Write;
use std::process::ExitCode;

use process::{Process, announce, connect};
use socketserver::{BlockingMode, Endpoint, HandlerResult, Request, RequestHandler, Server};

const MODES: [&str; 4] = ["inline", "threading", "pool", "forking"];

struct Answer(String);

impl RequestHandler for Answer {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        let answer = match self.0.as_str() {
            "local_addr" => request.local_addr()?.to_string(),
            "credentials" => match request.credentials() {
                Ok(credentials) => format!("{credentials:?}"),
                Err(error) => error.kind().to_string(),
            },
            other => panic!("{other}"),
        };
        Ok(request.write_all(answer.as_bytes())?)
    }
}

fn serve(arguments: &[String]) {
    let [what, mode, url] = arguments else { panic!("{arguments:?}") };
    let mode: BlockingMode = mode.parse().unwrap();
    let endpoint: Endpoint = url.parse().unwrap();
    let what = what.clone();
    let builder = Server::endpoint(&endpoint).unwrap().dual_stack(url.contains("[::]"));
    let mut server = builder.mode(mode).serve_blocking(move |_| Answer(what.clone())).unwrap();
    server.stop_on_signals().unwrap();
    announce(&server.addresses());
    server.serve_forever().unwrap();
}

/// Plays `test` with a server of each mode.
fn under_each(what: &str, url: &str, test: impl Fn(&str, Process)) {
    for mode in MODES {
        test(mode, Process::start(1, &[what, mode, url]));
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
    ];
    runner::run(tests, arguments.into_iter()).0
}
