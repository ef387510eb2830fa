//! From the bytes of a message to its fields: RFC 5424, and what senders of RFC 3164 have in
//! common. Whatever the bytes are, they become a message: what has no known form is its text.

use std::borrow::Cow;

use serde::Serialize;

const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
];

const SEVERITIES: [&str; 8] =
    ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];

const MONTHS: [&[u8]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];

/// The priority of a message that has none, user.notice: RFC 3164, section 4.3.3.
const DEFAULT_PRIORITY: usize = 13;

/// The fields of a message; `None` for one that it does not have.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct Message<'m> {
    pub(crate) facility: &'static str,
    pub(crate) severity: &'static str,
    /// As the sender wrote it: RFC 3164 has neither a year nor a time zone.
    pub(crate) timestamp: Option<Cow<'m, str>>,
    pub(crate) hostname: Option<Cow<'m, str>>,
    pub(crate) app: Option<Cow<'m, str>>,
    pub(crate) procid: Option<Cow<'m, str>>,
    pub(crate) msgid: Option<Cow<'m, str>>,
    pub(crate) message: Cow<'m, str>,
    pub(crate) peer: Cow<'m, str>,
}

impl<'m> Message<'m> {
    /// Reads a message that this peer has sent.
    pub(crate) fn parse(bytes: &'m [u8], peer: String) -> Self {
        // Some senders end a message with NUL or LF also where it needs no end.
        let ends = bytes.iter().rev().take_while(|byte| matches!(byte, 0 | b'\n' | b'\r')).count();
        let bytes = &bytes[..bytes.len() - ends];
        let (priority, rest) = priority(bytes).unwrap_or((DEFAULT_PRIORITY, bytes));
        let has_priority = rest.len() < bytes.len();
        let parsed = has_priority.then(|| rfc5424(rest).unwrap_or_else(|| rfc3164(rest)));
        Message {
            facility: FACILITIES[priority / 8],
            severity: SEVERITIES[priority % 8],
            peer: Cow::Owned(peer),
            ..parsed.unwrap_or_else(|| only_text(rest))
        }
    }
}

/// The priority at the beginning, 0 to 191, and what follows.
fn priority(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (digits, rest) = split(bytes.strip_prefix(b"<")?, b'>')?;
    if !(1..=3).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let priority = digits.iter().fold(0, |sum, digit| 10 * sum + usize::from(digit - b'0'));
    (priority < 8 * FACILITIES.len()).then_some((priority, rest))
}

/// `VERSION TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA [MSG]`
fn rfc5424(bytes: &[u8]) -> Option<Message<'_>> {
    let mut rest = bytes.strip_prefix(b"1 ")?;
    let mut field = || {
        let (field, after) = split(rest, b' ')?;
        rest = after;
        (!field.is_empty()).then(|| (field != b"-").then(|| text(field)))
    };
    let (timestamp, hostname) = (field()?, field()?);
    let (app, procid, msgid) = (field()?, field()?, field()?);
    if timestamp.as_ref().is_some_and(|timestamp| !is_rfc3339(timestamp.as_bytes())) {
        return None;
    }
    let rest = after_structured_data(rest)?;
    let message = match rest {
        [] => rest,
        [b' ', message @ ..] => message.strip_prefix("\u{feff}".as_bytes()).unwrap_or(message),
        _ => return None,
    };
    let message = text(message);
    Some(Message { timestamp, hostname, app, procid, msgid, message, ..Message::default() })
}

/// What follows `-` or `[ID NAME="VALUE" ...]...`; in a value, `"`, `\` and `]` have a `\` before.
fn after_structured_data(bytes: &[u8]) -> Option<&[u8]> {
    if let Some(rest) = bytes.strip_prefix(b"-") {
        return Some(rest);
    }
    let mut rest = bytes;
    while let Some(element) = rest.strip_prefix(b"[") {
        rest = after_name(element)?;
        while let Some(parameter) = rest.strip_prefix(b" ") {
            rest = after_name(parameter)?.strip_prefix(b"=\"")?;
            loop {
                rest = match rest {
                    [b'\\', _, after @ ..] => after,
                    [b'"', after @ ..] => break rest = after,
                    [_, after @ ..] => after,
                    [] => return None,
                };
            }
        }
        rest = rest.strip_prefix(b"]")?;
    }
    (rest.len() < bytes.len()).then_some(rest)
}

/// What follows an SD-NAME: 1 to 32 printable characters without `=`, `]` and `"`.
fn after_name(bytes: &[u8]) -> Option<&[u8]> {
    let is_of_name = |byte: &&u8| byte.is_ascii_graphic() && !matches!(byte, b'=' | b']' | b'"');
    let length = bytes.iter().take_while(is_of_name).count();
    (1..=32).contains(&length).then(|| &bytes[length..])
}

/// `TIMESTAMP [HOSTNAME] [TAG: ]MSG`. Without a timestamp everything is the text, as section 4.3.2
/// of RFC 3164 says. Programs on this host send no hostname; the tag shows it.
fn rfc3164(bytes: &[u8]) -> Message<'_> {
    let Some((timestamp, rest)) = timestamp(bytes) else {
        return only_text(bytes);
    };
    let (hostname, rest) = match (tag(rest), split(rest, b' ')) {
        (None, Some((hostname, after))) if is_word(hostname) => (Some(text(hostname)), after),
        _ => (None, rest),
    };
    let (app, procid, message) = match tag(rest) {
        Some((app, procid, message)) => (Some(text(app)), procid.map(text), message),
        None => (None, None, rest),
    };
    let (timestamp, message) = (Some(text(timestamp)), text(message));
    Message { timestamp, hostname, app, procid, message, ..Message::default() }
}

/// A timestamp of RFC 3164, `Nov 30 09:05:00`, or one of RFC 3339, as rsyslog sends it in its
/// place; and what follows the space after it.
fn timestamp(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    if let Some((timestamp, b" ")) = bytes.get(..16).map(|start| start.split_at(15)) {
        let is_month = MONTHS.contains(&&timestamp[..3]);
        if is_month && has_shape(&timestamp[3..], b" #0 00:00:00") {
            return Some((timestamp, &bytes[16..]));
        }
    }
    split(bytes, b' ').filter(|(timestamp, _)| is_rfc3339(timestamp))
}

/// The tag of a message of RFC 3164, the number of its process, and the text.
type Tagged<'m> = (&'m [u8], Option<&'m [u8]>, &'m [u8]);

/// `TAG: MSG` or `TAG[PID]: MSG`.
fn tag(bytes: &[u8]) -> Option<Tagged<'_>> {
    let is_of_tag = |byte: &&u8| byte.is_ascii_graphic() && !matches!(byte, b':' | b'[' | b']');
    let length = bytes.iter().take_while(is_of_tag).count();
    let (tag, rest) = bytes.split_at_checked(length).filter(|(tag, _)| !tag.is_empty())?;
    let (procid, rest) = match rest.strip_prefix(b"[") {
        Some(rest) => {
            let (procid, rest) = split(rest, b']').filter(|(procid, _)| is_word(procid))?;
            (Some(procid), rest)
        }
        None => (None, rest),
    };
    match rest.strip_prefix(b":")? {
        [b' ', message @ ..] => Some((tag, procid, message)),
        message if message.is_empty() || procid.is_some() => Some((tag, procid, message)),
        _ => None, // an IPv6 address, for example
    }
}

/// `YYYY-MM-DDThh:mm:ss`, a fraction of up to 6 digits, and `Z` or `+hh:mm`.
fn is_rfc3339(bytes: &[u8]) -> bool {
    let Some((time, mut rest)) = bytes.split_at_checked(19) else { return false };
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=6).contains(&digits) {
            return false;
        }
        rest = &fraction[digits..];
    }
    let has_zone = rest == b"Z" || has_shape(rest, b"+00:00") || has_shape(rest, b"-00:00");
    has_shape(time, b"0000-00-00T00:00:00") && has_zone
}

/// Whether the bytes are like the shape, where `0` stands for a digit and `#` for one or a space.
fn has_shape(bytes: &[u8], shape: &[u8]) -> bool {
    let fits = |(byte, shape): (&u8, &u8)| match shape {
        b'0' => byte.is_ascii_digit(),
        b'#' => byte.is_ascii_digit() || *byte == b' ',
        _ => byte == shape,
    };
    bytes.len() == shape.len() && bytes.iter().zip(shape).all(fits)
}

fn is_word(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_graphic)
}

/// What comes before and after the first such byte.
fn split(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == at)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

fn only_text(bytes: &[u8]) -> Message<'_> {
    Message { message: text(bytes), ..Message::default() }
}

/// Bytes that are not UTF-8 become U+FFFD.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The fields of a message from facility to message; `-` for one that it does not have.
    fn fields(message: &str) -> [String; 8] {
        let parsed = Message::parse(message.as_bytes(), String::new());
        let given = |field: Option<Cow<'_, str>>| field.map_or("-".to_owned(), Cow::into_owned);
        let Message { facility, severity, timestamp, hostname, app, .. } = parsed;
        let Message { procid, msgid, message, .. } = parsed;
        let [timestamp, hostname, app] = [timestamp, hostname, app].map(given);
        let [procid, msgid] = [procid, msgid].map(given);
        let priority = [facility, severity].map(str::to_owned);
        let [facility, severity] = priority;
        [facility, severity, timestamp, hostname, app, procid, msgid, message.into_owned()]
    }

    #[test]
    fn messages_of_rfc_5424_have_all_their_fields() {
        for (message, expected) in [
            // The examples of section 6.5.
            (
                "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \u{feff}'su root' failed",
                [
                    "auth",
                    "crit",
                    "2003-10-11T22:14:15.003Z",
                    "mymachine.example.com",
                    "su",
                    "-",
                    "ID47",
                    "'su root' failed",
                ],
            ),
            (
                "<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time",
                [
                    "local4",
                    "notice",
                    "2003-08-24T05:14:15.000003-07:00",
                    "192.0.2.1",
                    "myproc",
                    "8710",
                    "-",
                    "%% It's time",
                ],
            ),
            (
                "<165>1 2003-10-11T22:14:15.003Z host evntslog - ID47 [exampleSDID@32473 iut=\"3\" eventID=\"1011\"][p@1 c=\"high\"]",
                [
                    "local4",
                    "notice",
                    "2003-10-11T22:14:15.003Z",
                    "host",
                    "evntslog",
                    "-",
                    "ID47",
                    "",
                ],
            ),
            ("<0>1 - - - - - - ", ["kern", "emerg", "-", "-", "-", "-", "-", ""]),
            (
                "<191>1 - - - - - [a b=\"\\\"] \\\\ \\] x]\" c=\"\"][d] [e] text\n",
                ["local7", "debug", "-", "-", "-", "-", "-", "[e] text"],
            ),
        ] {
            assert_eq!(fields(message), expected, "{message}");
        }
    }

    #[test]
    fn messages_of_rfc_3164_have_the_fields_that_their_sender_gave() {
        for (message, expected) in [
            (
                "<34>Oct 11 22:14:15 mymachine su: 'su root' failed\0",
                [
                    "auth",
                    "crit",
                    "Oct 11 22:14:15",
                    "mymachine",
                    "su",
                    "-",
                    "-",
                    "'su root' failed",
                ],
            ),
            (
                "<13>Nov  3 09:05:00 a/b.c[12]: text: more",
                ["user", "notice", "Nov  3 09:05:00", "-", "a/b.c", "12", "-", "text: more"],
            ),
            (
                "<13>Nov  3 09:05:00 2001:db8::1 app[12]:text",
                ["user", "notice", "Nov  3 09:05:00", "2001:db8::1", "app", "12", "-", "text"],
            ),
            (
                "<13>Nov  3 09:05:00 host no tag",
                ["user", "notice", "Nov  3 09:05:00", "host", "-", "-", "-", "no tag"],
            ),
            (
                "<13>2026-11-30T10:21:32.5+01:00 host app: text",
                ["user", "notice", "2026-11-30T10:21:32.5+01:00", "host", "app", "-", "-", "text"],
            ),
            (
                "<14>app: without a time",
                ["user", "info", "-", "-", "-", "-", "-", "app: without a time"],
            ),
            ("<13>Nov 33 09:05:0", ["user", "notice", "-", "-", "-", "-", "-", "Nov 33 09:05:0"]),
        ] {
            assert_eq!(fields(message), expected, "{message}");
        }
    }

    #[test]
    fn what_has_no_known_form_is_a_text() {
        let text = |text| ["user", "notice", "-", "-", "-", "-", "-", text];
        for message in
            ["", "text", "<>x", "<192>x", "<1000>x", "<+1>x", "<13x", "Oct 11 22:14:15 h a: b"]
        {
            assert_eq!(fields(message), text(message));
        }
        // Of RFC 5424 but for one thing.
        for message in [
            "1 - - - - -",
            "1 - - - - - ",
            "1  - - - - - x",
            "1 yesterday - - - - - x",
            "2 - - - - - - x",
            "1 - - - - - -x",
            "1 - - - - - [a",
            "1 - - - - - [a b=\"c]",
            "1 - - - - - [a b] x",
            "1 - - - - - [] x",
            "1 2026-11-30T10:21:32.1234567Z - - - - - x",
            "1 2026-11-30T10:21:32 - - - - - x",
        ] {
            assert_eq!(fields(&format!("<13>{message}")), text(message), "{message}");
        }
        assert_eq!(Message::parse(b"<13>a\xffb", String::new()).message, "a\u{fffd}b");
    }

    proptest! {
        #[test]
        fn random_bytes_are_a_message(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            Message::parse(&bytes, String::new());
        }

        #[test]
        fn parts_of_messages_in_any_order_are_a_message(
            bytes in "<13>(1 |- |Nov  3 09:05:00 |[a-z]:|\\[| a=|\"|\\\\|\\]|[a-z]{1,40}| |\u{feff}|\n){0,30}"
        ) {
            Message::parse(bytes.as_bytes(), String::new());
        }
    }
}
