//! The example `smtp`.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use socketserver::testing::Simulation;
use socketserver::{Limits, Mode, Server};

use super::examples::smtp::output::Job;
use super::examples::smtp::{Output, Settings, service};
use super::input::Draw;
use super::target::{TCP, Target, settle};

/// The longest mail.
const MAX_SIZE: usize = 3000;

pub(crate) struct Smtp {
    jobs: Receiver<Job>,
    mails: String,
}

impl Smtp {
    /// The server, with the other end of its queue of mails.
    pub(crate) fn with(mode: Mode, limits: Limits) -> (Self, Server) {
        let (output, jobs) = Output::to_queue();
        let settings = Arc::new(Settings { name: "here".to_owned(), max_size: MAX_SIZE });
        let mut server = Server::new().unwrap();
        let service = service(&TCP.parse().unwrap(), mode, limits, &settings, &output);
        server.add(service.unwrap()).unwrap();
        (Smtp { jobs, mails: String::new() }, server)
    }

    /// The mails that have been written.
    pub(crate) fn mails(&self) -> &str {
        &self.mails
    }
}

/// The codes of the replies; those of several lines count once. What is left is cut.
pub(crate) fn codes(received: &[u8], is_complete: bool) -> Vec<&str> {
    let text = std::str::from_utf8(received).expect("replies are text");
    let (whole, cut) = text.rsplit_once("\r\n").unwrap_or(("", text));
    assert!(cut.is_empty() || !is_complete, "a cut reply: {cut:?}");
    let mut codes = Vec::new();
    for line in whole.split("\r\n").filter(|line| !line.is_empty()) {
        assert!(!line.contains(['\r', '\n']), "{line:?} is two lines");
        let (code, rest) = line.split_at(3);
        assert!(code.bytes().all(|byte| byte.is_ascii_digit()), "{line:?} has no code");
        match rest.as_bytes().first() {
            Some(b' ') => codes.push(code),
            other => assert_eq!(other, Some(&b'-'), "{line:?}"),
        }
    }
    codes
}

const COMMANDS: &[&str] = &[
    "EHLO me",
    "HELO me",
    "EHLO",
    "MAIL FROM:<a@b>",
    "MAIL FROM:<> SIZE=100 BODY=8BITMIME",
    "MAIL FROM:<a@b> SIZE=99999999999999999999",
    "MAIL FROM:<\"a>\\\"b\"@[IPv6:::1]>",
    "RCPT TO:<a@b>",
    "RCPT TO:<@x,@y:a@b>",
    "RCPT TO:<\"",
    "DATA",
    "DATA",
    "RSET",
    "NOOP x",
    "VRFY a",
    "HELP",
    "QUIT",
    "STARTTLS",
    "AUTH PLAIN",
    "BDAT 10 LAST",
    "X",
];

const TEXTS: &[&str] = &[
    "Subject: x\r\n\r\ntext\r\n.\r\n",
    ".\r\n",
    "..\r\n.\r\n",
    "a\n.\r\n",
    "a\r\n.\n",
    "a\r.\r\n",
    ".x\r\n\r\n.\r\n",
    "a\r\n.\r\n.\r\n",
    "\r\n",
    "text",
];

/// A session up to the text of a mail.
const UNTIL_DATA: &str = "EHLO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n";

impl Target for Smtp {
    /// After 300 seconds of silence it closes.
    const SILENCE: Duration = Duration::from_secs(400);

    fn new(mode: Mode) -> (Self, Server) {
        Self::with(mode, Limits::default().idle_timeout(Duration::from_secs(300)))
    }

    fn message(draw: Draw<'_>) -> Vec<u8> {
        let mut text = String::new();
        match draw.below(4) {
            0 => text += UNTIL_DATA,
            1 => text += draw.pick(TEXTS),
            _ => {
                text += draw.pick(COMMANDS);
                text += draw.pick(&["\r\n", "\r\n", "\r\n", "\n", "\r", " \r\n"]);
            }
        }
        if draw.one_in(8) {
            text = text.repeat(draw.pick(&[3, 15, 200]));
        }
        text.into_bytes()
    }

    /// Mails that are whole, one whose end is in doubt, and the commands that were hidden in it.
    fn known(draw: Draw<'_>) -> (Vec<u8>, String) {
        let (mut input, mut answers, mut mails) = (String::new(), "220".to_owned(), String::new());
        for _ in 0..draw.below(4) {
            let (text, mail, code) = draw.pick(&[
                ("hello\r\n.\r\n", "hello\r\n", "250"),
                ("..\r\n.x\r\n.\r\n", ".\r\nx\r\n", "250"),
                (".\r\n", "", "250"),
                ("x\r\n.\nMAIL FROM:<evil@b>\r\n.\r\n", "-", "554"),
                ("x\n.\r\nMAIL FROM:<evil@b>\r\n.\r\n", "-", "554"),
                ("x\r.\r\nMAIL FROM:<evil@b>\r\n.\r\n", "-", "554"),
            ]);
            if draw.below(4) == 3 {
                input += "EHLO me\r\nRCPT TO:<a@b>\r\nMAIL FROM:<x@y>\r\nMAIL FROM:<x@y>\r\n";
                answers += " 250 503 250 503";
            }
            input += UNTIL_DATA;
            input += text;
            answers += &format!(" 250 250 250 354 {code}");
            if mail != "-" {
                mails += &format!("a@b to c@d: {mail:?}\n");
            }
        }
        // The tenth command that is an error is the last one.
        let errors = answers.matches("503").count();
        let refused = "500 ".repeat(9 - errors) + "421";
        let (end, code) = draw.pick(&[
            ("QUIT\r\nNOOP\r\n", "221"),
            ("NOOP\nMAIL FROM:<evil@b>\r\n", "500"),
            ("X\r\nX\r\nX\r\nX\r\nX\r\nX\r\nX\r\nX\r\nX\r\nX\r\nNOOP\r\n", &refused),
        ]);
        input += end;
        (input.into_bytes(), format!("{answers} {code}\n{mails}"))
    }

    fn work(&mut self) -> bool {
        let before = self.mails.len();
        for job in self.jobs.try_iter() {
            let (envelope, text) = (&job.mail.envelope, String::from_utf8_lossy(&job.mail.text));
            assert!(job.mail.text.len() <= MAX_SIZE && envelope.to.len() <= 100);
            let to = envelope.to.join(",");
            self.mails += &format!("{} to {to}: {text:?}\n", envelope.from);
            job.finish(true);
        }
        self.mails.len() > before
    }

    fn summary(&self, sent: &[u8], received: &[u8], is_complete: bool) -> String {
        assert!(received.len() <= 200 + 50 * sent.len(), "{} bytes", received.len());
        let codes = codes(received, is_complete);
        let end = codes.iter().position(|code| matches!(*code, "221" | "421"));
        assert!(
            end.is_none_or(|at| at + 1 == codes.len()),
            "replies after the last one: {codes:?}"
        );
        codes.join(" ") + "\n"
    }

    fn record(&mut self) -> String {
        self.mails.clone()
    }

    fn probe() -> Vec<u8> {
        b"NOOP\r\n".to_vec()
    }

    fn serves(&mut self, sim: &mut Simulation<'_>) {
        let client = sim.connect();
        client.send(format!("{UNTIL_DATA}fresh\r\n.\r\nQUIT\r\n").as_bytes());
        settle(self, sim);
        assert_eq!(codes(&client.read(), true).join(" "), "220 250 250 250 354 250 221");
        assert!(self.mails.ends_with("a@b to c@d: \"fresh\\r\\n\"\n"), "{}", self.mails);
        client.close();
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::check;
    use super::*;

    #[test]
    fn malformed_commands_and_mails_are_refused_and_no_mail_is_smuggled() {
        check::<Smtp>();
    }
}
