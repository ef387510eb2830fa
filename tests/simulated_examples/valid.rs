//! Each server under faults that it hides, under resets, and at a stop.

use super::chat::{Chat, HANDSHAKE, WebSocket, frame, frames};
use super::conversation::{Steps, has_exact_answers, stops_in_the_middle, survives_resets};
use super::dns::{Dns, framed, query};
use super::http::Http;
use super::resp::{Resp, words};
use super::smtp::Smtp;
use super::syslog::Syslog;

fn resp() -> Steps {
    let steps = [
        ("PING", "+PONG\r\n"),
        ("SET a 1", "+OK\r\n"),
        ("INCRBY a 41", ":42\r\n"),
        ("RPUSH l one two three", ":3\r\n"),
        ("LRANGE l 0 -1", "*3\r\n$3\r\none\r\n$3\r\ntwo\r\n$5\r\nthree\r\n"),
        ("HSET h f v", ":1\r\n"),
        ("GET h", "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"),
        ("MULTI", "+OK\r\n"),
        ("GET a", "+QUEUED\r\n"),
        ("DEL a l", "+QUEUED\r\n"),
        ("EXEC", "*2\r\n$2\r\n42\r\n:2\r\n"),
        ("ZADD z 1.5 x 1 y", ":2\r\n"),
        ("ZRANGE z 0 -1 WITHSCORES", "*4\r\n$1\r\ny\r\n$1\r\n1\r\n$1\r\nx\r\n$3\r\n1.5\r\n"),
        ("SUBSCRIBE c", "*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"),
        ("PING", "*2\r\n$4\r\npong\r\n$0\r\n\r\n"),
        ("UNSUBSCRIBE c", "*3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n"),
    ];
    let steps = steps.map(|(command, reply)| (words(command), reply));
    let steps: Vec<(&[u8], &str)> =
        steps.iter().map(|(bytes, reply)| (&bytes[..], *reply)).collect();
    Steps::raw("", &steps)
}

/// Answers without what depends on the time.
fn without_dates(bytes: &[u8]) -> String {
    let mut text = bytes.escape_ascii().to_string().replace("\\r\\n", "\n");
    for field in ["Date: ", "Last-Modified: ", "ETag: "] {
        let parts: Vec<&str> = text.split(field).collect();
        let rest = parts[1..].iter().map(|part| part.find('\n').map_or("", |end| &part[end..]));
        text = [parts[0]].into_iter().chain(rest).collect::<Vec<_>>().join(field);
    }
    text
}

fn http() -> Steps {
    let file = "HTTP/1.1 200 OK\nDate: \nLast-Modified: \nETag: \nAccept-Ranges: bytes\n\
                Content-Type: text/plain; charset=utf-8\nContent-Length: 5\n\n";
    let part = "HTTP/1.1 206 Partial Content\nDate: \nLast-Modified: \nETag: \nAccept-Ranges: bytes\n\
                Content-Type: text/plain; charset=utf-8\nContent-Range: bytes 1-2/5\n\
                Content-Length: 2\n\nel";
    let missing = "HTTP/1.1 404 Not Found\nDate: \nContent-Type: text/plain\nContent-Length: 14\n\n\
                   404 Not Found\\n";
    let created = "HTTP/1.1 201 Created\nDate: \nContent-Type: text/plain\nContent-Length: 12\n\n\
                   201 Created\\n";
    let steps = [
        ("GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n", format!("{file}hello")),
        ("HEAD /a.txt HTTP/1.1\r\nHost: x\r\n\r\n", file.to_owned()),
        ("GET /a.txt HTTP/1.1\r\nHost: x\r\nRange: bytes=1-2\r\n\r\n", part.to_owned()),
        ("GET /none HTTP/1.1\r\nHost: x\r\n\r\n", missing.to_owned()),
        (
            "PUT /up.txt HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
            created.to_owned(),
        ),
        (
            "PUT /up.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\nx",
            "HTTP/1.1 100 Continue\n\nHTTP/1.1 204 No Content\nDate: \n\n".to_owned(),
        ),
        ("GET /a.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {
            let end = "Date: \nConnection: close\n";
            format!("{}hello", file.replace("Date: \n", end))
        }),
    ];
    let steps = steps.map(|(request, answer)| (request.as_bytes().to_vec(), answer));
    let farewell = "Connection: close\n";
    Steps { show: without_dates, greeting: "", steps: steps.into(), farewell }
}

/// The frames after the handshake, without notices about members.
fn shown_frames(bytes: &[u8]) -> String {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let Some(end) = end else { return String::new() };
    let frames = frames(&bytes[end + 4..], false).into_iter();
    frames.filter(|frame| !frame.starts_with("1 * ")).map(|frame| frame + "\n").collect()
}

fn websocket() -> Steps {
    let steps = vec![
        (frame(0x81, b"hello"), String::new()),
        (frame(0x89, b"1"), "a 1\n".to_owned()),
        ([frame(0x01, b"hel"), frame(0x89, b"2"), frame(0x80, b"lo")].concat(), "a 2\n".to_owned()),
        (frame(0x8a, b""), String::new()),
        (frame(0x88, b"\x03\xe8"), "8 \\x03\\xe8\n".to_owned()),
    ];
    Steps { show: shown_frames, greeting: "", steps, farewell: "8 \\x03\\xe9\n" }
}

/// Lines without notices about members; nobody else speaks.
fn shown_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.split_inclusive('\n').filter(|line| !line.starts_with('*')).collect()
}

fn chat() -> Steps {
    let steps: [(&[u8], &str); 3] = [(b"hello\n", ""), (b"\xff\xfe\r\n", ""), (b"bye\n", "")];
    Steps { show: shown_lines, ..Steps::raw("", &steps) }
}

fn dns() -> Steps {
    let show = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let question = |id: u8, bits: &str, code: &str, rest: &str| {
        format!("\\x00\\x{id:02x}{bits}{code}\\x00\\x01{rest}")
    };
    let address =
        "\\xc0\\x0c\\x00\\x01\\x00\\x01\\x00\\x00\\x0e\\x10\\x00\\x04\\xc0\\x00\\x02\\x19";
    let first = format!(
        "\\x002{}\\x04mail\\x07example\\x03com\\x00\\x00\\x01\\x00\\x01{address}",
        question(1, "\\x85", "\\x00", "\\x00\\x01\\x00\\x00\\x00\\x00"),
    );
    let refused = format!(
        "\\x00\\x1d{}\\x07example\\x03org\\x00\\x00\\x01\\x00\\x01",
        question(2, "\\x81", "\\x05", "\\x00\\x00\\x00\\x00\\x00\\x00"),
    );
    let steps = vec![
        (framed(&query(1, "mail.example.com", 1)), first.clone()),
        (framed(&query(2, "example.org", 1)), refused),
        (framed(&query(1, "mail.example.com", 1)), first),
    ];
    Steps { show, greeting: "", steps, farewell: "" }
}

fn syslog() -> Steps {
    let steps: [(&[u8], &str); 3] =
        [(b"<13>one\n", ""), (b"8 <13>two\n", ""), (b"<13>three\n\n<13>four\0", "")];
    Steps::raw("", &steps)
}

fn smtp() -> Steps {
    let hello =
        "250-here Hello me\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE 3000\r\n250 HELP\r\n";
    let steps: [(&[u8], &str); 8] = [
        (b"EHLO me\r\n", hello),
        (b"MAIL FROM:<a@b> SIZE=10\r\n", "250 OK\r\n"),
        (b"RCPT TO:<c@d>\r\nRCPT TO:<e>\r\n", "250 OK\r\n501 Syntax: RCPT TO:<address>\r\n"),
        (b"DATA\r\n", "354 End the mail with a line with a dot\r\n"),
        (b"..x\r\n.\r\n", "250 OK\r\n"),
        (b"RSET\r\n", "250 OK\r\n"),
        (b"DATA\r\n", "503 MAIL first, please\r\n"),
        (b"QUIT\r\n", "221 here Good bye\r\n"),
    ];
    Steps::raw("220 here ESMTP ready\\r\\n", &steps)
        .farewell("421 here The server stops, good bye\\r\\n")
}

macro_rules! conversations {
    ($($module:ident: $target:ident,)+) => {
        $(mod $module {
            use super::*;

            #[test]
            fn cuts_delays_and_slow_readers_do_not_change_an_answer() {
                has_exact_answers::<$target>(&super::$module());
            }

            #[test]
            fn after_a_reset_the_answers_are_cut_and_others_are_served() {
                survives_resets::<$target>(&super::$module());
            }

            #[test]
            fn a_stop_in_the_middle_is_quick_and_ends_each_connection() {
                stops_in_the_middle::<$target>(&super::$module());
            }
        })+
    };
}

conversations! {
    resp: Resp,
    http: Http,
    websocket: WebSocket,
    chat: Chat,
    dns: Dns,
    syslog: Syslog,
    smtp: Smtp,
}

#[test]
fn a_handshake_has_the_answer_of_rfc_6455() {
    super::conversation::quietly(|_, target: &mut WebSocket, sim| {
        let client = super::target::Target::connect(target, sim);
        client.send(HANDSHAKE);
        sim.settle();
        let answer = client.read();
        let head =
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        assert!(answer.starts_with(head), "{}", answer.escape_ascii());
    });
}

#[test]
fn a_head_that_is_too_long_opens_no_websocket_however_it_arrives() {
    super::conversation::quietly(|_, target: &mut WebSocket, sim| {
        let field = [b"X: ", &[b'y'; 8100][..], b"\r\n"].concat();
        let head = [&HANDSHAKE[..HANDSHAKE.len() - 2], &field, b"\r\n"].concat();
        for piece in [head.len(), 1000] {
            let client = super::target::Target::connect(target, sim);
            for piece in head.chunks(piece) {
                client.send(piece);
                sim.settle();
            }
            assert_eq!(client.read(), b"", "in pieces of {piece} bytes");
            assert!(client.closed_by_server().is_some());
        }
    });
}
