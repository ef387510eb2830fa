//! Each attack, with few connections, on each hello-world: the attack does what it is for, and the
//! server serves another client afterwards.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PEERS: &str = env!("CARGO_BIN_EXE_peers");
const HELLO: &str = env!("CARGO_BIN_EXE_hello");
const URL: &str = "tcp://127.0.0.1:0";

/// A server process. Dropping it kills it.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on tcp://").unwrap().to_owned();
        Server { child, address }
    }

    /// Attacks for half a second; returns the report.
    fn attack(&self, attack: &str, wire: &str) -> serde_json::Value {
        let arguments = ["--conns", "20", "--secs", "0.5", "--wire", wire];
        let output = Command::new(PEERS)
            .args(["attack", attack, &self.address])
            .args(arguments)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn expect_echo(&self, message: &[u8]) {
        let mut client = TcpStream::connect(&self.address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.write_all(message).unwrap();
        let mut answer = vec![0; message.len()];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, message);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn expect_survival(server: &Server, wire: &str, message: &[u8]) {
    server.expect_echo(message);
    let attacks = [
        ("stalled-reader", 1000),
        ("no-descriptors", 0),
        ("slow-drip", 20),
        ("frame-bomb", 1000),
        ("connection-flood", 0),
        ("silent-crowd", 0),
        ("idle-crowd", 20),
    ];
    for (attack, least_sent) in attacks {
        let report = server.attack(attack, wire);
        // message-io accepts hardly anybody while it waits for a peer that does not read.
        assert!(report["connected"].as_u64() >= Some(1), "{attack}: {report}");
        assert!(report["sent"].as_u64() >= Some(least_sent), "{attack}: {report}");
        server.expect_echo(message);
    }
}

#[test]
fn the_hello_world_of_this_crate_serves_after_each_attack() {
    for mode in ["reactor", "threading"] {
        expect_survival(&Server::start(HELLO, &[URL, mode, "lines"]), "lines", b"hello\n");
    }
    let messages = Server::start(HELLO, &[URL, "reactor", "length"]);
    expect_survival(&messages, "length", b"\0\0\0\x05hello");
}

#[test]
fn the_hello_worlds_of_other_foundations_serve_after_each_attack_of_few() {
    for foundation in ["tokio-mt", "message-io", "std-threads"] {
        let server = Server::start(PEERS, &["serve", foundation, "--listen", URL, "--lines"]);
        expect_survival(&server, "lines", b"hello\n");
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/lines.py");
    if Command::new("python3").arg("--version").output().is_ok() {
        expect_survival(&Server::start("python3", &[script, URL]), "lines", b"hello\n");
    }
}
