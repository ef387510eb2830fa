//! The example `syslog`, over a stream.

use std::time::Duration;

use serde_json::Value;
use socketserver::testing::Simulation;
use socketserver::{Endpoint, Limits, Mode, Server};

use super::examples::syslog::{LineQueue, service};
use super::input::Draw;
use super::target::{TCP, Target, settle};

/// The lines that the server has written.
pub(crate) struct Syslog {
    queue: LineQueue,
    lines: String,
}

impl Syslog {
    /// The server, and its lines in place of stdout.
    pub(crate) fn at(url: &str, mode: Mode, limits: Limits) -> (Self, Server) {
        let (mut server, endpoint) = (Server::new().unwrap(), url.parse::<Endpoint>().unwrap());
        let queue = LineQueue::new();
        server.add(service(&endpoint, mode, limits, &queue).unwrap()).unwrap();
        (Syslog { queue, lines: String::new() }, server)
    }

    /// Takes the lines that wait, as the thread that writes does. Each is JSON.
    pub(crate) fn take(&mut self) -> bool {
        let mut batch = Vec::new();
        self.queue.take(&mut batch);
        let text = std::str::from_utf8(&batch).expect("JSON is UTF-8");
        for line in text.split_terminator('\n') {
            let line: Value = serde_json::from_str(line).expect("a line is JSON");
            let field = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
            assert!(line["message"].is_string() && line["peer"].is_string(), "{line}");
            self.lines += &format!(
                "{}.{} {} {} {:?}\n",
                field("facility"),
                field("severity"),
                field("hostname"),
                field("app"),
                field("message"),
            );
        }
        !batch.is_empty()
    }

    /// Forgets the lines that it has taken.
    pub(crate) fn clear(&mut self) {
        self.lines.clear();
    }

    pub(crate) fn lines(&self) -> &str {
        &self.lines
    }
}

const PARTS: &[&str] = &[
    "<34>",
    "<165>1 ",
    "<0>",
    "<192>",
    "<999>",
    "<-1>",
    "<>",
    "<13",
    "1 ",
    "- ",
    "2003-10-11T22:14:15.003Z ",
    "Oct 11 22:14:15 ",
    "host ",
    "app[12]: ",
    "app: ",
    "ID47 ",
    "[a@1 b=\"c\"]",
    "[a b=\"\\\"\\]\"]",
    "[",
    "]",
    "[a",
    "\u{feff}",
    "text",
    " ",
    ":",
];

/// What structured data consists of.
const ELEMENTS: &[&str] =
    &["[a", "[", "]", " b=", "\"", "\\", "\\\"", "x", "=", " ", "[a b=\"c\"]", "[a b=\"\\"];

/// A message of either RFC, or parts of one in any order.
pub(crate) fn message(draw: Draw<'_>) -> Vec<u8> {
    let mut text = match draw.below(5) {
        4 => {
            let parts = (0..draw.below(8)).map(|_| draw.pick(ELEMENTS));
            ["<165>1 - - - - - "].into_iter().chain(parts).collect()
        }
        0 => "<165>1 2003-10-11T22:14:15.003Z host app - ID47 [a@1 b=\"c\"] text".to_owned(),
        1 => "<34>Oct 11 22:14:15 host su[1]: 'su root' failed".to_owned(),
        _ => (0..draw.below(12)).map(|_| draw.pick(PARTS)).collect(),
    };
    if draw.one_in(6) {
        text = text.repeat(draw.pick(&[2, 50, 2000]));
    }
    text.into_bytes()
}

impl Target for Syslog {
    /// A message must be complete within 30 seconds, and 1 second more for each 500 bytes.
    const SILENCE: Duration = Duration::from_secs(120);

    fn new(mode: Mode) -> (Self, Server) {
        Self::at(TCP, mode, Limits::default())
    }

    fn message(draw: Draw<'_>) -> Vec<u8> {
        let mut message = message(draw);
        match draw.below(3) {
            0 => {
                let more =
                    draw.pick(&["", "", "0", "00000", "000000000000", "000000000000000000000"]);
                let count = format!("{}{more} ", message.len());
                message.splice(0..0, count.into_bytes());
            }
            _ => message.push(draw.pick(b"\n\0\n")),
        }
        message
    }

    fn known(draw: Draw<'_>) -> (Vec<u8>, String) {
        let (mut input, mut expected) = (Vec::new(), String::new());
        for _ in 0..draw.below(8) {
            let (message, shown) = draw.pick(&[
                (&b"<34>1 - host app - - - a\"b"[..], "auth.crit host app \"a\\\"b\""),
                (b"<13>Oct 11 22:14:15 host su: hi", "user.notice host su \"hi\""),
                (b"<0>1 - - - - - -", "kern.emerg - - \"\""),
                (b"<191>text \xff", "local7.debug - - \"text \u{fffd}\""),
                (b"<999>1 - - - - - -", "user.notice - - \"<999>1 - - - - - -\""),
            ]);
            if draw.below(2) == 0 {
                input.extend(format!("{} ", message.len()).into_bytes());
                input.extend_from_slice(message);
            } else {
                input.extend_from_slice(message);
                input.extend_from_slice(draw.pick(&[&b"\n"[..], b"\r\n", b"\0", b"\n\n\r\n"]));
            }
            expected += shown;
            expected.push('\n');
        }
        // A counted message that is cut is dropped, a line that is cut is not.
        if draw.below(2) == 0 {
            input.extend(b"99 <1>cut");
        } else {
            input.extend(b"<1>cut");
            expected += "kern.alert - - \"cut\"\n";
        }
        (input, expected)
    }

    fn work(&mut self) -> bool {
        self.take()
    }

    fn summary(&self, _sent: &[u8], received: &[u8], _is_complete: bool) -> String {
        assert!(received.is_empty(), "nothing is sent to a sender");
        String::new()
    }

    fn record(&mut self) -> String {
        self.lines.clone()
    }

    fn probe() -> Vec<u8> {
        b"\n<13>probe\n".to_vec()
    }

    fn serves(&mut self, sim: &mut Simulation<'_>) {
        let client = sim.connect();
        client.send(b"10 <13>1 - - ");
        client.send(b"- - - -\n<14>fresh\n");
        settle(self, sim);
        assert!(self.lines.ends_with("user.info - - \"fresh\"\n"), "{}", self.lines);
        client.close();
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::check;
    use super::*;

    #[test]
    fn malformed_messages_become_lines_of_json() {
        check::<Syslog>();
    }
}
