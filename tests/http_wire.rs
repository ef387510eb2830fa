//! The example `http` against a list of wire cases: what a client sends, byte for byte, and the
//! answers that RFC 9110 and 9112 ask for. Whatever two servers in a row could understand
//! differently ends the connection, so that no second request can hide in the first.

mod support {
    pub(crate) mod programs;
}

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};

use support::programs::{Client, Directory, Program, connect, serve, text};

const MODES: [&str; 6] = ["reactor", "offload", "threading", "pool", "inline", "forking"];

/// What a client sends, the status of each answer, and whether the connection stays open.
type Case = (&'static str, &'static [u16], End);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Open,
    Closed,
}
use End::{Closed, Open};

/// Requests that are clear: each is answered, and so is the next one.
const VALID: &[Case] = &[
    ("GET /file HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
    ("HEAD /file HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
    ("OPTIONS /file HTTP/1.1\r\nHost: x\r\n\r\n", &[204], Open),
    ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", &[204], Open),
    ("\r\n\r\nGET /file HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
    ("GET /file HTTP/1.1\r\nhost:x\r\n\r\n", &[200], Open),
    ("GET /file HTTP/1.1\r\nHost: \t x \t \r\n\r\n", &[200], Open),
    ("GET /file HTTP/1.1\r\nHost:\r\n\r\n", &[200], Open),
    ("GET http://x/file HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
    ("GET /file?a=b HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
    ("GET /f%69le HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
    ("GET //file HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
    ("GET /file HTTP/1.1\r\nHost: x\r\nA: \x7e\t b\r\nB:\r\n\r\n", &[200], Open),
    ("GET /none HTTP/1.1\r\nHost: x\r\n\r\n", &[404], Open),
    ("GET /file/ HTTP/1.1\r\nHost: x\r\n\r\n", &[404], Open),
    ("GET /directory HTTP/1.1\r\nHost: x\r\n\r\n", &[301], Open),
    ("GET /directory/ HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
    ("GET /.hidden HTTP/1.1\r\nHost: x\r\n\r\n", &[404], Open),
    ("GET /file HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\n", &[206], Open),
    ("GET /file HTTP/1.1\r\nHost: x\r\nRange: bytes=99-\r\n\r\n", &[416], Open),
    ("GET /file HTTP/1.1\r\nHost: x\r\nRange: bytes=0-0,2-3\r\n\r\n", &[200], Open),
    ("GET /file HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\n\r\n", &[304], Open),
    ("GET /file HTTP/1.1\r\nHost: x\r\nIf-Match: \"a\"\r\n\r\n", &[412], Open),
    ("POST /file HTTP/1.1\r\nHost: x\r\n\r\n", &[405], Open),
    ("DELETE /file HTTP/1.1\r\nHost: x\r\n\r\n", &[405], Open),
    ("CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", &[405], Open),
    // A body that nobody wants is skipped, if it is short.
    ("GET /file HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET /", &[200], Open),
    ("POST /file HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345", &[405], Open),
    // Uploads.
    ("PUT /new HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345", &[201], Open),
    ("PUT /new HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", &[204], Open),
    (
        "PUT /new HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: CHUNKED\r\n\r\n\
         3\r\nabc\r\nA;b=\"c\"\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n",
        &[204],
        Open,
    ),
    (
        "PUT /new HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n12345",
        &[100, 204],
        Open,
    ),
    (
        "PUT /file HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nIf-Match: \"a\"\r\n\r\nx",
        &[412],
        Open,
    ),
    ("PUT /no/file HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", &[409], Open),
    ("PUT /directory HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", &[409], Open),
    ("PUT /a/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", &[409], Open),
    ("PUT /.b HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", &[404], Open),
    (
        "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Range: bytes 0-0/5\r\n\r\nx",
        &[400],
        Open,
    ),
    // Several requests at once.
    (
        "GET /file HTTP/1.1\r\nHost: x\r\n\r\nGET /none HTTP/1.1\r\nHost: x\r\n\r\n\
         PUT /new HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345\r\n\
         HEAD /file HTTP/1.1\r\nHost: x\r\n\r\nGET /file HTTP/1.1\r\nHost: x\r\n\r\n",
        &[200, 404, 204, 200, 200],
        Open,
    ),
    // The connection ends where either side wants that.
    ("GET /file HTTP/1.1\r\nHost: x\r\nConnection: a, Close\r\n\r\n", &[200], Closed),
    ("GET /file HTTP/1.0\r\n\r\n", &[200], Closed),
    ("GET /file HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &[200], Open),
    ("HEAD /file HTTP/1.0\r\nConnection: close\r\n\r\n", &[200], Closed),
];

/// Requests that are answered with an error, after which the connection is closed.
const REFUSED: &[Case] = &[
    // The request line.
    ("GET  /file HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Closed),
    ("GET /fi le HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Closed),
    (" GET /file HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Closed),
    ("GET /file\r\nHost: x\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1.1 \r\nHost: x\r\n\r\n", &[400], Closed),
    ("GET /file http/1.1\r\nHost: x\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1\r\nHost: x\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/2.0\r\nHost: x\r\n\r\n", &[505], Closed),
    ("GET /file HTTP/0.9\r\nHost: x\r\n\r\n", &[505], Closed),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[505], Closed),
    ("BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n", &[501], Closed),
    ("get /file HTTP/1.1\r\nHost: x\r\n\r\n", &[501], Closed),
    ("G\x00T /file HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Closed),
    ("\x16\x03\x01\x02\r\n\r\n", &[400], Closed),
    // The fields.
    ("GET /file HTTP/1.1\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1.1\r\nHost: a b\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1.1\r\nHost: x/y\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1.1\r\nHost : x\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1.1\r\n Host: x\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1.1\r\nHost: x\r\nA\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1.1\r\nHost: x\r\n: a\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1.1\r\nHost: x\r\nA: b\r\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1.1\nHost: x\n\n", &[400], Closed),
    ("GET /file HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", &[400], Closed),
    ("GET /file HTTP/1.1\r\nHost: x\r\nExpect: 200-ok\r\n\r\n", &[417], Closed),
    // Two lengths, or one that is not clear: the classic ways to hide a request in a body.
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nGET /",
        &[400],
        Closed,
    ),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n12345",
        &[400],
        Closed,
    ),
    ("PUT /s HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\n12345", &[400], Closed),
    ("PUT /s HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n12345", &[400], Closed),
    ("PUT /s HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n12345", &[400], Closed),
    ("PUT /s HTTP/1.1\r\nHost: x\r\nContent-Length: 5 5\r\n\r\n12345", &[400], Closed),
    ("PUT /s HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\n12345", &[400], Closed),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551621\r\n\r\n12345",
        &[400],
        Closed,
    ),
    ("PUT /s HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\n12345", &[400], Closed),
    ("GET /s HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n", &[400], Closed),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[400],
        Closed,
    ),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        &[400],
        Closed,
    ),
    ("GET /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", &[501], Closed),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        &[501],
        Closed,
    ),
    ("PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n", &[501], Closed),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        &[400],
        Closed,
    ),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        &[400],
        Closed,
    ),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
        &[400],
        Closed,
    ),
    ("PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", &[400], Closed),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        &[400],
        Closed,
    ),
    ("PUT /s HTTP/1.1\r\nHost: x\r\nTransfer_Encoding: chunked\r\n\r\n0\r\n\r\n", &[411], Closed),
    ("PUT /s HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[400], Closed),
    ("PUT /s HTTP/1.1\r\nHost: x\r\n\r\n", &[411], Closed),
    // Chunks.
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\nabcde\n0\n\n",
        &[400],
        Closed,
    ),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcdefg\r\n0\r\n\r\n",
        &[400],
        Closed,
    ),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nabcde\r\n0\r\n\r\n",
        &[400],
        Closed,
    ),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nabcde\r\n0\r\n\r\n",
        &[400],
        Closed,
    ),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;\nGET\r\nabcde\r\n0\r\n\r\n",
        &[400],
        Closed,
    ),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
         fffffffffffffffff\r\nabcde\r\n0\r\n\r\n",
        &[400],
        Closed,
    ),
    ("PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n", &[413], Closed),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nGET / HTTP/1.1\r\n\r\n",
        &[400],
        Closed,
    ),
    // Bodies that are too long to be taken, or to be skipped.
    ("PUT /s HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n", &[413], Open),
    (
        "PUT /s HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n",
        &[413],
        Closed,
    ),
    ("PUT /s HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", &[413], Closed),
    ("GET /file HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", &[200], Closed),
    (
        "POST /file HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[405],
        Closed,
    ),
    // Targets.
    ("GET file HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Open),
    ("GET * HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Open),
    ("GET /.. HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Open),
    ("GET /../outside HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Open),
    ("GET /directory/../../outside HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Open),
    ("GET /%2e%2e/outside HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Open),
    ("GET /..%2foutside HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Open),
    ("GET /%2e%2e%2foutside HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Open),
    ("GET /directory%2f..%2f..%2foutside HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Open),
    ("GET /..\\outside HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Open),
    ("GET /file%00.txt HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Open),
    ("GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Open),
    ("GET http:///outside HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Open),
    ("PUT /../outside HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", &[400], Open),
    ("PUT /leads-out/new HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", &[403], Open),
    ("GET /leads-out/outside HTTP/1.1\r\nHost: x\r\n\r\n", &[403], Open),
    ("GET /leads-out/ HTTP/1.1\r\nHost: x\r\n\r\n", &[403], Open),
    ("GET /leads-out-too HTTP/1.1\r\nHost: x\r\n\r\n", &[403], Open),
    ("GET /leads-in/file HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
    ("GET /leads-in-too HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
    ("GET /leads-round HTTP/1.1\r\nHost: x\r\n\r\n", &[404], Open),
    ("GET /waits-for-ever HTTP/1.1\r\nHost: x\r\n\r\n", &[404], Open),
    // WebSocket.
    ("GET /chat HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
    (
        "GET /chat HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        &[426],
        Open,
    ),
    (
        "GET /chat HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n\r\n",
        &[400],
        Open,
    ),
];

/// A root with the files of the cases, beside a file that must never be served.
struct Site(Directory);

impl Site {
    fn new() -> Self {
        let directory = Directory::new();
        let path = |name: &str| directory.path(name);
        fs::create_dir_all(path("root/directory")).unwrap();
        fs::write(path("root/file"), "the file").unwrap();
        fs::write(path("root/directory/file"), "another file").unwrap();
        fs::write(path("root/.hidden"), "SECRET").unwrap();
        fs::create_dir(path("beyond")).unwrap();
        fs::write(path("outside"), "SECRET").unwrap();
        fs::write(path("beyond/outside"), "SECRET").unwrap();
        let link = |to: &str, from: &str| std::os::unix::fs::symlink(to, path(from)).unwrap();
        link("../beyond", "root/leads-out");
        link("../outside", "root/leads-out-too");
        link("directory", "root/leads-in");
        link("directory/file", "root/leads-in-too");
        link("leads-round", "root/leads-round");
        let fifo = std::process::Command::new("mkfifo").arg(path("root/waits-for-ever")).status();
        assert!(fifo.unwrap().success());
        Site(directory)
    }

    fn serve(&self, mode: &str) -> Program {
        let root = self.0.path("root");
        let root = root.to_str().unwrap();
        let options = ["--mode", mode, "--root", root, "--upload", "--max-upload", "1000"];
        serve("http", &["tcp://127.0.0.1:0"], &options)
    }

    /// Nothing was stored outside of the root, or is left from an upload.
    fn check(&self) {
        let names = |path: &str| {
            let entries = fs::read_dir(self.0.path(path)).unwrap();
            let mut names: Vec<_> = entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.starts_with(".upload") || path != "root")
                .collect();
            names.sort();
            names
        };
        assert_eq!(names("root"), [""; 0]);
        assert_eq!(names("beyond"), ["outside"]);
        assert_eq!(names(""), ["beyond", "outside", "root"]);
        assert!(!self.0.path("root/s").exists(), "a refused upload was stored");
    }
}

/// The statuses of the answers in a stream, whose bodies are known by their lengths.
fn statuses(mut answers: &[u8], requests: &str) -> Vec<u16> {
    let mut statuses = Vec::new();
    // The requests of the cases name their methods in the same order.
    let mut heads = requests.split("HEAD ").count() > 1;
    while !answers.is_empty() {
        let end = answers.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head: {:?}", text(answers))) + 4;
        let head = text(&answers[..end]);
        let status: u16 = head[9..12].parse().unwrap();
        statuses.push(status);
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        answers = &answers[end..];
        // The answer to HEAD has no body: the next head, or nothing, follows.
        if heads && status == 200 && (answers.is_empty() || answers.starts_with(b"HTTP/1.1 ")) {
            heads = false;
            continue;
        }
        answers = &answers[length..];
    }
    statuses
}

/// All that the server sends. A server that closes before the client has sent everything may reset the
/// connection after its answer.
fn answers(client: &mut Client, may_not_reset: bool) -> Vec<u8> {
    let mut answers = Vec::new();
    if let Err(error) = client.socket.read_to_end(&mut answers) {
        let is_reset = error.kind() == ErrorKind::ConnectionReset;
        assert!(is_reset && !may_not_reset, "{error}");
    }
    answers
}

/// Sends a case in pieces of this size, and checks the answers. The last request of a connection
/// that stays open asks for its end.
fn check(program: &Program, (request, expected, end): &Case, piece: usize, keep_alive: bool) {
    let last = "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    // The body that is too long, which the client sends nevertheless.
    let is_long = request.contains("Length: 1001\r\n") || request.ends_with("3e9\r\n");
    let skipped = if is_long { "x".repeat(1001) } else { String::new() };
    let input = format!("{request}{skipped}{last}");
    let mut client = connect(&program.urls()[0]);
    for part in input.as_bytes().chunks(piece) {
        if client.socket.write_all(part).is_err() {
            break; // the answer has come before the end of the request
        }
    }
    let answers = answers(&mut client, *end == Open);
    let mut expected = expected.to_vec();
    if *end == Open && keep_alive {
        expected.push(404);
    }
    if !keep_alive {
        let first = expected.iter().position(|status| *status != 100).unwrap();
        expected.truncate(first + 1);
    }
    assert_eq!(statuses(&answers, request), expected, "{input:?}\n{:?}", text(&answers));
    assert!(!text(&answers).contains("SECRET"), "{input:?}");
}

/// All cases under one mode, whole and in pieces.
fn check_all(mode: &str) {
    let site = Site::new();
    let program = site.serve(mode);
    let keep_alive = mode != "inline";
    for case in VALID.iter().chain(REFUSED) {
        let (name, method) = (case.0.lines().next().unwrap(), case.0.split(' ').next());
        println!("{mode}: {name}");
        if mode == "forking" {
            check(&program, case, usize::MAX, keep_alive); // each connection costs a process
            continue;
        }
        check(&program, case, usize::MAX, keep_alive);
        if method == Some("PUT") && case.1.contains(&201) {
            fs::remove_file(site.0.path("root/new")).unwrap();
        }
        check(&program, case, 7, keep_alive);
    }
    site.check();
    program.stop();
}

#[test]
fn each_wire_case_has_the_answer_of_the_rfc_under_reactor() {
    check_all(MODES[0]);
}

#[test]
fn each_wire_case_has_the_answer_of_the_rfc_under_offload() {
    check_all(MODES[1]);
}

#[test]
fn each_wire_case_has_the_answer_of_the_rfc_under_threading() {
    check_all(MODES[2]);
}

#[test]
fn each_wire_case_has_the_answer_of_the_rfc_under_pool() {
    check_all(MODES[3]);
}

#[test]
fn each_wire_case_has_the_answer_of_the_rfc_under_inline() {
    check_all(MODES[4]);
}

#[test]
fn each_wire_case_has_the_answer_of_the_rfc_under_forking() {
    check_all(MODES[5]);
}

#[test]
fn a_head_without_end_is_refused_when_it_is_too_long() {
    let site = Site::new();
    for mode in MODES {
        let program = site.serve(mode);
        for (begin, status) in [
            ("GET /".to_owned(), 414),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: ".to_owned(), 431),
            (format!("GET / HTTP/1.1\r\nHost: x\r\n{}", "A: b\r\n".repeat(70)), 431),
            ("PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;".to_owned(), 400),
            (
                "PUT /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: "
                    .to_owned(),
                431,
            ),
        ] {
            let mut client = program.connect();
            let _ = client.socket.write_all(begin.as_bytes());
            let _ = client.socket.write_all(&[b'x'; 20_000]);
            let answer = client.rest();
            assert_eq!(statuses(&answer, ""), [status], "{mode} {begin:?}");
        }
        program.stop();
    }
    site.check();
}

#[test]
fn bytes_changed_at_random_never_end_the_server_or_leave_anything_behind() {
    let site = Site::new();
    for mode in ["reactor", "offload", "threading"] {
        let program = site.serve(mode);
        let mut random = 0x2545_F491_4F6C_DD1D_u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below as u64) as usize
        };
        for round in 0..300 {
            let all = VALID.len() + REFUSED.len();
            let case = |at: usize| VALID.iter().chain(REFUSED).nth(at).unwrap().0;
            let mut input = [case(next(all)), case(next(all))].concat().into_bytes();
            for _ in 0..=next(4) {
                let at = next(input.len());
                match next(4) {
                    0 => input[at] = next(256) as u8,
                    1 => input.insert(at, b"\r\n\0 :;\t%"[next(8)]),
                    2 => drop(input.remove(at)),
                    _ => input.extend_from_within(at..),
                }
            }
            let mut client = program.connect();
            let _ = client.socket.write_all(&input);
            let _ = client.socket.shutdown(std::net::Shutdown::Write);
            let answer = client.rest();
            let shown = format!("round {round}: {:?}", text(&input));
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 "), "{shown}");
            assert!(!text(&answer).contains("SECRET"), "{shown}");
        }
        let mut client = program.connect();
        client.send("GET /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert!(client.rest().starts_with(b"HTTP/1.1 200 OK\r\n"), "{mode}");
        let ended = program.stop();
        assert!(!ended.stderr.iter().any(|line| line.contains("panic")), "{ended:?}");
    }
}
