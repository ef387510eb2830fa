//! Every server of this package under every load that it supports: all bytes come back unchanged,
//! and all clients are served. The programs are started as the measurements start them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

const PEERS: &str = env!("CARGO_BIN_EXE_peers");

const STREAM_LOADS: [&str; 7] = [
    "--mode echo --conns 8 --size 64 --depth 1",
    "--mode echo --conns 8 --size 100 --depth 16",
    "--mode echo --conns 4 --size 1048576 --depth 4",
    "--mode lockstep --conns 8",
    "--mode open --conns 8 --rate 1000",
    "--mode slow --conns 4 --beside 50",
    "--mode streams-beside --conns 4 --beside 2",
];

const CHURN: &str = "--mode churn --conns 8";

const DATAGRAM_LOADS: [&str; 2] =
    ["--conns 1 --size 8 --depth 1", "--conns 4 --size 1000 --depth 16"];

/// A server process. Dropping it kills it.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(foundation: &str, listen: &str) -> Self {
        let mut command = Command::new(PEERS);
        command.args(["serve", foundation, "--listen", listen]);
        Self::start_command(command)
    }

    fn start_command(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let url = line.trim_end().strip_prefix("listening on ").unwrap();
        Server { child, url: url.to_owned() }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn expect_no_errors_under(&self, load: &str) {
        let output = Command::new(PEERS)
            .args(["load", &self.url, "--secs", "0.1"])
            .args(load.split(' '))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert!(report["requests"].as_u64() > Some(0), "{load}: {report}");
        assert_eq!(report["errors"], 0, "{load}: {report}");
        assert_eq!(report["lost"], 0, "{load}: {report}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn expect_stream_loads_pass(foundation: &str, has_unix: bool) {
    let server = Server::start(foundation, "tcp://127.0.0.1:0");
    for load in STREAM_LOADS.iter().chain([&CHURN]) {
        server.expect_no_errors_under(load);
    }
    if has_unix {
        let name = format!("peers-test-{}-{foundation}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let server = Server::start(foundation, &format!("unix://{}", path.display()));
        for load in STREAM_LOADS {
            server.expect_no_errors_under(load);
        }
        std::fs::remove_file(path).unwrap();
    }
}

fn expect_datagram_loads_pass(foundation: &str) {
    let server = Server::start(foundation, "udp://127.0.0.1:0");
    for load in DATAGRAM_LOADS {
        server.expect_no_errors_under(load);
    }
}

#[test]
fn the_raw_server_echoes_under_every_load() {
    expect_stream_loads_pass("raw", true);
    expect_datagram_loads_pass("raw");
}

#[test]
fn the_mio_server_echoes_under_every_load() {
    expect_stream_loads_pass("mio", true);
    expect_datagram_loads_pass("mio");
}

#[test]
fn the_tokio_servers_echo_under_every_load() {
    for flavor in ["tokio-ct", "tokio-mt"] {
        expect_stream_loads_pass(flavor, true);
        expect_datagram_loads_pass(flavor);
    }
}

#[test]
fn the_may_server_echoes_under_every_load() {
    expect_stream_loads_pass("may", true);
    expect_datagram_loads_pass("may");
}

#[test]
fn the_server_with_threads_echoes_under_every_load() {
    expect_stream_loads_pass("std-threads", true);
    expect_datagram_loads_pass("std-threads");
}

#[test]
fn the_server_of_lines_echoes_under_every_load_of_lines() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ours-lines"));
    command.arg("tcp://127.0.0.1:0");
    let server = Server::start_command(command);
    let gated = format!("--mode lockstep --conns 8 --gate --idle-stops 3 --watch {}", server.pid());
    for load in ["--conns 8 --depth 16", "--mode churn --conns 8", &gated] {
        server.expect_no_errors_under(&format!("{load} --lines"));
    }
}

#[test]
fn the_message_io_server_echoes_under_every_load() {
    expect_stream_loads_pass("message-io", false);
    expect_datagram_loads_pass("message-io");
}
