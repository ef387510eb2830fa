//! The example `http`.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, UNIX_EPOCH};

use socketserver::testing::Simulation;
use socketserver::{Limits, Mode, Server};

use super::chat::{HANDSHAKE, WebSocket};
use super::examples::http::{Root, Site, service};
use super::input::Draw;
use super::target::{TCP, Target, settle};

/// The directory of the files; each thread has its own.
struct Files(PathBuf);

/// A file that is sent by reference, and not through a buffer.
pub(crate) const LARGE: usize = 70_000;

thread_local! {
    static FILES: Files = Files::new();
}

impl Files {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let name = format!("socketserver-simulated-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Files(path)
    }

    /// Removes what was uploaded, and writes the files again that were replaced. Their times are always
    /// the same, since validators show them.
    fn reset(&self) {
        let names = ["a.txt", "large"];
        for entry in fs::read_dir(&self.0).unwrap() {
            let entry = entry.unwrap();
            let is_cut = entry.file_name().as_encoded_bytes().starts_with(b".upload");
            assert!(!is_cut, "a part of an upload is left");
            if !names.iter().any(|name| entry.file_name() == *name) {
                let path = entry.path();
                fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)).unwrap();
            }
        }
        fs::create_dir(self.0.join("dir")).unwrap();
        for (name, content) in names.iter().zip([b"hello".to_vec(), vec![b'x'; LARGE]]) {
            let (path, time) = (self.0.join(name), UNIX_EPOCH + Duration::from_secs(784_111_777));
            let is_same = |file: &fs::Metadata| file.modified().is_ok_and(|at| at == time);
            if !fs::metadata(&path).is_ok_and(|file| is_same(&file)) {
                fs::write(&path, content).unwrap();
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.set_modified(time).unwrap();
            }
        }
    }
}

/// What the server has at this place below its root.
pub(crate) fn stored(name: &str) -> Vec<u8> {
    fs::read(FILES.with(|files| files.0.join(name))).unwrap()
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn server(mode: Mode, limits: Limits) -> Server {
    let path = FILES.with(|files| {
        files.reset();
        files.0.clone()
    });
    let site = Site {
        root: Root::new(path.to_str().unwrap()).unwrap(),
        room: Arc::default(),
        longest_upload: Some(10_000),
        keep_alive: true,
        patience: Duration::from_secs(20),
    };
    let mut server = Server::new().unwrap();
    server.add(service(&TCP.parse().unwrap(), mode, limits, &Arc::new(site)).unwrap()).unwrap();
    server
}

pub(crate) struct Http;

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) closes: bool,
    pub(crate) body: String,
}

/// The answers, which are well-formed; the last one may be cut unless they are complete. After a
/// WebSocket has been opened, the rest is the body of that answer.
pub(crate) fn responses(mut bytes: &[u8], is_complete: bool) -> Vec<Response> {
    let mut responses = Vec::new();
    while !bytes.is_empty() {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            assert!(!is_complete, "a cut head: {}", bytes.escape_ascii());
            return responses;
        };
        let head = std::str::from_utf8(&bytes[..end]).expect("the head of an answer is text");
        bytes = &bytes[end + 4..];
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3));
        let status = status.and_then(|status| status.parse().ok()).expect("a status line");
        let (mut length, mut closes) = (None, false);
        for line in lines {
            let (name, value) = line.split_once(": ").expect("a field has a name and a value");
            assert!(!value.contains(['\r', '\n', '\0']), "a field of two lines");
            match name {
                "Content-Length" => {
                    assert!(length.replace(value.parse().unwrap()).is_none(), "two lengths");
                }
                "Connection" => closes = value == "close",
                _ => {}
            }
        }
        let length = match status {
            101 => bytes.len(),
            100 | 204 | 304 => 0,
            // The answer to HEAD has a length and no body.
            _ if bytes.is_empty() || bytes.starts_with(b"HTTP/1.1 ") => 0,
            _ => length.expect("an answer has a length"),
        };
        assert!(length <= bytes.len() || !is_complete, "a cut body");
        let (body, rest) = bytes.split_at(length.min(bytes.len()));
        let body = match body.len() {
            ..1000 => body.escape_ascii().to_string(),
            long => format!("({long} bytes)"),
        };
        responses.push(Response { status, closes, body });
        bytes = rest;
    }
    responses
}

const METHODS: &[&str] = &["GET", "HEAD", "PUT", "OPTIONS", "POST", "DELETE", "TRACE", "get", "X"];

const TARGETS: &[&str] = &[
    "/a.txt",
    "/",
    "/dir",
    "/dir/",
    "/a.txt?x#y",
    "/chat",
    "/large",
    "/../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/dir/..%2fa.txt",
    "/a.txt%00",
    "/%",
    "//a.txt",
    "http://x/a.txt",
    "*",
    "x:1",
    "/.hidden",
    "/a.txt/",
    "/%ff%fe",
    "/none",
];

const FIELDS: &[&str] = &[
    "Host: x",
    "Host: a b",
    "Content-Length: 5",
    "Content-Length: 0",
    "Content-Length: 18446744073709551615",
    "Content-Length: 5, 5",
    "Content-Length: +5",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding : chunked",
    "Connection: close",
    "Connection: keep-alive, upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Expect: 100-continue",
    "Expect: x",
    "Range: bytes=1-2",
    "Range: bytes=-1",
    "Range: bytes=9-",
    "Range: bytes=0-0,2-3",
    "Range: bytes=18446744073709551615-",
    "If-None-Match: *",
    "If-Match: \"x\"",
    "If-Modified-Since: Sun, 06 Nov 2094 08:49:37 GMT",
    "If-Range: \"x\"",
    "Content-Range: bytes 0-1/2",
    " folded: x",
    "No-Colon",
    ": no name",
];

/// The length of the shortest request.
const SHORTEST: usize = "GET / HTTP/1.0\r\n\r\n".len() - 2;

/// The body of an upload: with a length, or in chunks.
fn upload(name: &str, text: &str, is_chunked: bool) -> String {
    let length = text.len();
    match is_chunked {
        false => {
            format!("PUT /{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{text}")
        }
        true => format!(
            "PUT /{name} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
             {length:x};a=b\r\n{text}\r\n0\r\nTrailer: x\r\n\r\n"
        ),
    }
}

/// Heads that are not requests, or could be understood in two ways, and the statuses for them. The
/// connection must end with each.
const BROKEN: &[(&str, u16)] = &[
    ("GET /a.txt HTTP/1.1\r\n\r\n", 400),
    ("GET /a.txt HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
    ("GET /a.txt HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    ("GET /a.txt HTTP/1.1\r\nHost: x\r\n X: folded\r\n\r\n", 400),
    ("GET /a.txt HTTP/1.1\nHost: x\n\n", 400),
    ("GET /a.txt HTTP/1.1\r\nHost: x\rX: y\r\n\r\n", 400),
    ("GET /a.txt HTTP/1.1\r\nHost: x\r\nX: \0\r\n\r\n", 400),
    ("GET  /a.txt HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("GET /a.txt\r\nHost: x\r\n\r\n", 400),
    ("\0\r\n\r\n", 400),
    ("PUT /up HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
    ("PUT /up HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\nx", 400),
    ("PUT /up HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\nx", 400),
    ("PUT /up HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nx", 400),
    (
        "PUT /up HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("PUT /up HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("PUT /up HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    ("PUT /up HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n\r\n", 400),
    ("PUT /up HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n", 400),
    ("PUT /up HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n", 400),
    ("PUT /up HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n11111111111111111\r\n", 400),
    ("GET /a.txt HTTP/2.0\r\nHost: x\r\n\r\n", 505),
];

impl Target for Http {
    /// After 20 seconds of silence it closes; a WebSocket after 40.
    const SILENCE: Duration = Duration::from_secs(90);

    fn new(mode: Mode) -> (Self, Server) {
        (Http, server(mode, Limits::default()))
    }

    fn message(draw: Draw<'_>) -> Vec<u8> {
        let version = ["1.1", "1.0", "1.1", "2.0", "1."][draw.below(5)];
        let (method, mut target) = (draw.pick(METHODS), draw.pick(TARGETS));
        if method == "PUT" {
            target = draw.pick(&["/up", "/dir/up", "/dir", "/none/up", "/.up", "/"]);
        }
        let mut text = format!("{method} {target} HTTP/{version}\r\n");
        for _ in 0..draw.below(6) {
            text += draw.pick(FIELDS);
            text += "\r\n";
        }
        if draw.below(4) > 0 {
            text += "Host: x\r\n";
        }
        text += "\r\n";
        text +=
            draw.pick(&["", "", "hello", "5\r\nhello\r\n0\r\n\r\n", "0\r\nX: y\r\n\r\n", "\r\n"]);
        if draw.one_in(6) {
            text = upload("up", "text", draw.below(2) == 1);
        }
        let mut bytes = text.into_bytes();
        if draw.one_in(12) {
            bytes = HANDSHAKE.to_vec();
            bytes.extend((0..draw.below(3)).flat_map(|_| WebSocket::message(draw)));
        }
        bytes
    }

    fn known(draw: Draw<'_>) -> (Vec<u8>, String) {
        let (mut input, mut expected, mut has_file) = (String::new(), String::new(), false);
        for _ in 0..draw.below(5) {
            let (request, answer) = match draw.below(5) {
                0 => ("GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "200 hello"),
                1 => ("HEAD /a.txt HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "200 "),
                2 => ("GET /large HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "200 (70000 bytes)"),
                3 => (
                    "GET /a.txt HTTP/1.1\r\nHost: x\r\nRange: bytes=1-3\r\n\r\n".to_owned(),
                    "206 ell",
                ),
                _ => {
                    let before = std::mem::replace(&mut has_file, true);
                    let answer = if before { "204 " } else { "201 201 Created\\n" };
                    (upload("up", "GET / HTTP/1.1\r\n\r\n", draw.below(2) == 1), answer)
                }
            };
            input += &request;
            expected += &format!("{answer}\n");
        }
        let (broken, status) = draw.pick(BROKEN);
        input += broken;
        input += &"GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n".repeat(draw.below(3));
        expected += &format!("{status} closes\n");
        (input.into_bytes(), expected)
    }

    fn summary(&self, sent: &[u8], received: &[u8], is_complete: bool) -> String {
        let responses = responses(received, is_complete);
        let finals = responses.iter().filter(|response| response.status >= 200).count();
        assert!(finals <= 1 + sent.len() / SHORTEST, "{finals} answers to {} bytes", sent.len());
        let closing = responses.iter().position(|response| response.closes);
        assert!(closing.is_none_or(|at| at + 1 == responses.len()), "an answer after the last one");
        let line = |response: &Response| match response.closes {
            true => format!("{} closes\n", response.status),
            false => format!("{} {}\n", response.status, response.body),
        };
        responses.iter().map(line).collect()
    }

    /// A head that ends in the middle is refused: with 400 if it was not looked at before its end, and
    /// with the status for what is wrong otherwise.
    fn essence(mut text: String) -> String {
        let refusals = ["414 closes\n", "431 closes\n", "501 closes\n", "505 closes\n"];
        if refusals.iter().any(|refusal| text.ends_with(refusal)) {
            text.truncate(text.len() - "431 closes\n".len());
            text += "400 closes\n";
        }
        text
    }

    /// A client that announces the end and sends more may lose the answer.
    fn is_repeatable(input: &[u8]) -> bool {
        !input.to_ascii_lowercase().windows(5).any(|word| word == b"close")
    }

    fn probe() -> Vec<u8> {
        b"GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()
    }

    fn serves(&mut self, sim: &mut Simulation<'_>) {
        let client = sim.connect();
        client.send(&Self::probe().repeat(2));
        settle(self, sim);
        // An upload may have replaced it.
        let answer = format!("200 {}\n", stored("a.txt").escape_ascii());
        assert_eq!(self.summary(&[0; 100], &client.read(), true), answer.repeat(2));
        client.close();
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::check;
    use super::*;

    #[test]
    fn malformed_requests_are_refused_once_and_harm_no_other_client() {
        check::<Http>();
    }
}
