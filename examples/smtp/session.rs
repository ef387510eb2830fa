//! The session with one client: commands go in, replies come out. It knows neither sockets nor framings.

use super::command::{Command, parse};
use super::wire::{LineFault, MailFault};

/// The most recipients of a mail: as many as each server has to take (RFC 5321, 4.5.3.1.8).
const MOST_RECIPIENTS: usize = 100;

/// After this many commands that are errors, the connection is closed.
const MOST_ERRORS: usize = 10;

/// The settings of the server, the same for all sessions.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The name by which it greets.
    pub(crate) name: String,
    /// The longest mail, in bytes.
    pub(crate) max_size: usize,
}

/// The answer to a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// One line, or several with CR LF between them.
    pub(crate) reply: String,
    pub(crate) next: Next,
}

/// What follows an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Command,
    Mail,
    Close,
}

/// Sender and recipients of a mail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// What the client has called itself.
    pub(crate) helo: String,
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Session {
    /// What the client has called itself; `None` before `EHLO` and `HELO`.
    helo: Option<String>,
    /// It was `EHLO`.
    extended: bool,
    /// The mail that has begun with `MAIL`.
    envelope: Option<Envelope>,
    errors: usize,
}

impl Session {
    /// Answers a line, which may have a fault already.
    pub(crate) fn answer(
        &mut self,
        line: &[u8],
        fault: Option<LineFault>,
        settings: &Settings,
    ) -> Answer {
        let command = match fault {
            None => parse(line),
            Some(LineFault::TooLong) => Err("500 Line too long"),
            // What follows may have been written by another than the client. So it is not read.
            Some(LineFault::BareLf) => {
                return answer("500 A line ends in CR LF, good bye", Next::Close);
            }
        };
        match command.and_then(|command| self.follow(command, settings)) {
            Ok(answer) => answer,
            Err(_) if self.errors + 1 >= MOST_ERRORS => {
                answer(&format!("421 {} Too many errors, good bye", settings.name), Next::Close)
            }
            Err(reply) => {
                self.errors += 1;
                answer(reply, Next::Command)
            }
        }
    }

    /// Follows a command. An error is a mistake of the client, and the reply to it.
    fn follow(
        &mut self,
        command: Command<'_>,
        settings: &Settings,
    ) -> Result<Answer, &'static str> {
        let reply = match command {
            Command::Hello { client, extended } => {
                self.envelope = None;
                self.helo = Some(client.to_owned());
                self.extended = extended;
                return Ok(answer(&hello(client, extended, settings), Next::Command));
            }
            Command::Mail { from, size, extended } => self.mail(from, size, extended, settings)?,
            Command::Rcpt { to } => {
                let recipients = &mut self.envelope.as_mut().ok_or("503 MAIL first, please")?.to;
                if recipients.len() < MOST_RECIPIENTS {
                    recipients.push(to.to_owned());
                    "250 OK"
                } else {
                    // The client sends the mail to those that were taken, and to the rest later.
                    "452 Too many recipients"
                }
            }
            Command::Data => {
                let envelope = self.envelope.as_ref().ok_or("503 MAIL first, please")?;
                if envelope.to.is_empty() {
                    return Err("554 No valid recipients");
                }
                return Ok(answer("354 End the mail with a line with a dot", Next::Mail));
            }
            Command::Rset => {
                self.envelope = None;
                "250 OK"
            }
            Command::Noop => "250 OK",
            Command::Vrfy => "252 Not verified, but mail for it is taken",
            Command::Help => "214 EHLO HELO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT: see RFC 5321",
            Command::Quit => {
                return Ok(answer(&format!("221 {} Good bye", settings.name), Next::Close));
            }
        };
        Ok(answer(reply, Next::Command))
    }

    fn mail(
        &mut self,
        from: &str,
        size: Option<u64>,
        extended: bool,
        settings: &Settings,
    ) -> Result<&'static str, &'static str> {
        let helo = self.helo.clone().ok_or("503 EHLO first, please")?;
        if self.envelope.is_some() {
            return Err("503 A mail has begun already");
        }
        if extended && !self.extended {
            return Err("555 Parameters only after EHLO");
        }
        if size.is_some_and(|size| size > settings.max_size as u64) {
            return Ok(TOO_LARGE);
        }
        self.envelope = Some(Envelope { helo, from: from.to_owned(), to: Vec::new() });
        Ok("250 OK")
    }

    /// The mail has come whole: its envelope, or the reply that refuses it.
    pub(crate) fn mail_arrived(
        &mut self,
        fault: Option<MailFault>,
    ) -> Result<Envelope, &'static str> {
        let envelope = self.envelope.take().unwrap_or_default();
        match fault {
            None => Ok(envelope),
            Some(MailFault::TooLarge) => Err(TOO_LARGE),
            Some(MailFault::LineTooLong) => Err("554 A line is longer than 1000 bytes"),
            Some(MailFault::BareCrOrLf) => Err("554 A CR without LF, or LF without CR"),
        }
    }
}

const TOO_LARGE: &str = "552 The mail is too large";

fn answer(reply: &str, next: Next) -> Answer {
    Answer { reply: reply.to_owned(), next }
}

/// The reply to `EHLO` lists the extensions.
fn hello(client: &str, extended: bool, settings: &Settings) -> String {
    let Settings { name, max_size } = settings;
    match extended {
        false => format!("250 {name} Hello {client}"),
        true => format!(
            "250-{name} Hello {client}\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE {max_size}\r\n\
             250 HELP"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The replies to these lines; a mail that follows `DATA` is whole.
    fn replies(session: &mut Session, lines: &[&str]) -> Vec<String> {
        let settings = Settings { name: "here".to_owned(), max_size: 1000 };
        lines
            .iter()
            .map(|line| {
                let answer = session.answer(line.as_bytes(), None, &settings);
                if answer.next == Next::Mail {
                    session.mail_arrived(None).unwrap();
                }
                answer.reply
            })
            .collect()
    }

    fn codes(session: &mut Session, lines: &[&str]) -> Vec<String> {
        replies(session, lines).into_iter().map(|reply| reply[..3].to_owned()).collect()
    }

    #[test]
    fn a_mail_is_taken_after_hello_sender_and_recipient() {
        let session = &mut Session::default();
        let lines = ["HELO me", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", "QUIT"];
        assert_eq!(codes(session, &lines), ["250", "250", "250", "354", "221"]);
    }

    #[test]
    fn commands_out_of_order_are_refused() {
        let session = &mut Session::default();
        assert_eq!(codes(session, &["MAIL FROM:<a@b>", "RCPT TO:<a@b>", "DATA"]), ["503"; 3]);
        let lines = ["EHLO me", "DATA", "MAIL FROM:<a@b>", "MAIL FROM:<a@b>", "DATA"];
        assert_eq!(codes(session, &lines), ["250", "503", "250", "503", "554"]);
    }

    #[test]
    fn a_reset_and_a_hello_drop_the_mail_that_has_begun() {
        for reset in ["RSET", "EHLO me", "HELO me"] {
            let session = &mut Session::default();
            let lines = ["EHLO me", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", reset, "DATA"];
            assert_eq!(codes(session, &lines), ["250", "250", "250", "250", "503"]);
        }
    }

    #[test]
    fn parameters_need_the_extended_hello() {
        let session = &mut Session::default();
        let lines = ["HELO me", "MAIL FROM:<a@b> SIZE=1", "EHLO me", "MAIL FROM:<a@b> SIZE=1001"];
        assert_eq!(codes(session, &lines), ["250", "555", "250", "552"]);
        assert_eq!(codes(session, &["MAIL FROM:<a@b> SIZE=1000"]), ["250"]);
    }

    #[test]
    fn the_recipients_beyond_the_limit_are_left_for_later_and_are_not_errors() {
        let session = &mut Session::default();
        codes(session, &["EHLO me", "MAIL FROM:<a@b>"]);
        assert_eq!(codes(session, &["RCPT TO:<c@d>"; 100]), ["250"; 100]);
        assert_eq!(codes(session, &["RCPT TO:<c@d>"; 100]), ["452"; 100]);
        assert_eq!(codes(session, &["DATA", "NOOP"]), ["354", "250"]);
    }

    #[test]
    fn the_tenth_error_closes_the_connection() {
        let session = &mut Session::default();
        assert_eq!(codes(session, &["NONSENSE"; 9]), ["500"; 9]);
        let settings = Settings { name: "here".to_owned(), max_size: 1000 };
        let last = session.answer(b"NONSENSE", None, &settings);
        assert!(last.reply.starts_with("421 here ") && last.next == Next::Close, "{last:?}");
    }
}
