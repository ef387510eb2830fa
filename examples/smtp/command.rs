//! The commands of SMTP: a line becomes a [`Command`], or the reply that refuses it.

/// The longest line with a command other than `MAIL`, without its CR LF.
const LONGEST: usize = 512 - 2;

/// The longest parts of an address (RFC 5321, 4.5.3.1). A path includes its `<` and `>`.
const LONGEST_LOCAL_PART: usize = 64;
const LONGEST_DOMAIN: usize = 255;
const LONGEST_PATH: usize = 256;

const MAIL_SYNTAX: &str = "501 Syntax: MAIL FROM:<address>";
const RCPT_SYNTAX: &str = "501 Syntax: RCPT TO:<address>";

/// A command with its arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command<'a> {
    /// `extended`: `EHLO`, and not `HELO`.
    Hello {
        client: &'a str,
        extended: bool,
    },
    /// `from` is empty for a notification, to which nobody replies. `extended`: there are parameters.
    Mail {
        from: &'a str,
        size: Option<u64>,
        extended: bool,
    },
    Rcpt {
        to: &'a str,
    },
    Data,
    Rset,
    Noop,
    Quit,
    Vrfy,
    Help,
}

/// The command on a line, or the reply that refuses it.
pub(crate) fn parse(line: &[u8]) -> Result<Command<'_>, &'static str> {
    let line = std::str::from_utf8(line)
        .ok()
        .filter(|line| line.chars().all(|c| c == '\t' || (c.is_ascii() && !c.is_ascii_control())));
    let line = line.ok_or("500 Only printable ASCII, please")?.trim_ascii_end();
    let (verb, argument) = match line.split_once([' ', '\t']) {
        Some((verb, argument)) => (verb, argument.trim_ascii_start()),
        None => (line, ""),
    };
    let verb = verb.to_ascii_uppercase();
    if line.len() > LONGEST && verb != "MAIL" {
        return Err("500 Line too long");
    }
    match &*verb {
        "EHLO" | "HELO" => hello(argument, verb == "EHLO"),
        "MAIL" => mail(argument),
        "RCPT" => rcpt(argument),
        "DATA" => alone(argument, Command::Data),
        "RSET" => alone(argument, Command::Rset),
        "QUIT" => alone(argument, Command::Quit),
        "NOOP" => Ok(Command::Noop),
        "HELP" => Ok(Command::Help),
        "VRFY" if argument.is_empty() => Err("501 Syntax: VRFY name"),
        "VRFY" => Ok(Command::Vrfy),
        "EXPN" | "STARTTLS" | "AUTH" | "BDAT" | "ETRN" | "TURN" | "SEND" | "SOML" | "SAML" => {
            Err("502 Command not implemented")
        }
        _ => Err("500 Command unrecognized"),
    }
}

fn alone<'a>(argument: &str, command: Command<'a>) -> Result<Command<'a>, &'static str> {
    if argument.is_empty() { Ok(command) } else { Err("501 No arguments, please") }
}

/// What the client calls itself is not checked: a server must not refuse mail for it (RFC 5321, 4.1.4).
fn hello(client: &str, extended: bool) -> Result<Command<'_>, &'static str> {
    if client.is_empty() || client.len() > LONGEST_DOMAIN || client.contains([' ', '\t']) {
        return Err("501 Syntax: EHLO domain");
    }
    Ok(Command::Hello { client, extended })
}

fn mail(argument: &str) -> Result<Command<'_>, &'static str> {
    let (from, parameters) = after(argument, "FROM:").and_then(path).ok_or(MAIL_SYNTAX)?;
    if !from.is_empty() && !is_mailbox(from) {
        return Err(MAIL_SYNTAX);
    }
    let (mut size, mut body) = (None, false);
    for parameter in parameters.split_ascii_whitespace() {
        let (keyword, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match &*keyword.to_ascii_uppercase() {
            "SIZE" if size.is_none() => {
                let is_number = value.len() <= 20 && value.bytes().all(|b| b.is_ascii_digit());
                let number = value.parse().ok().filter(|_| is_number);
                size = Some(number.ok_or("501 Syntax: SIZE=number")?);
            }
            "BODY" if !body => {
                body = true;
                if !["7BIT", "8BITMIME"].contains(&&*value.to_ascii_uppercase()) {
                    return Err("501 Syntax: BODY=7BIT or BODY=8BITMIME");
                }
            }
            "SIZE" | "BODY" => return Err("501 A parameter is given twice"),
            _ => return Err("555 Parameter not implemented"),
        }
    }
    Ok(Command::Mail { from, size, extended: size.is_some() || body })
}

fn rcpt(argument: &str) -> Result<Command<'_>, &'static str> {
    let (to, parameters) = after(argument, "TO:").and_then(path).ok_or(RCPT_SYNTAX)?;
    if !is_mailbox(to) && !to.eq_ignore_ascii_case("postmaster") {
        return Err(RCPT_SYNTAX);
    }
    match parameters.is_empty() {
        true => Ok(Command::Rcpt { to }),
        false => Err("555 Parameter not implemented"),
    }
}

/// What follows `word`, in upper or lower case, and white space: some clients send a space there.
fn after<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(word.len())?;
    start.eq_ignore_ascii_case(word).then(|| rest.trim_ascii_start())
}

/// The address between `<` and `>`, without a source route, and what follows.
fn path(text: &str) -> Option<(&str, &str)> {
    let inside = text.strip_prefix('<')?;
    let (mut quoted, mut escaped) = (false, false);
    let end = inside.find(|c| match c {
        _ if std::mem::take(&mut escaped) => false,
        '\\' => {
            escaped = quoted;
            false
        }
        '"' => {
            quoted = !quoted;
            false
        }
        c => c == '>' && !quoted,
    })?;
    let (address, rest) = (&inside[..end], &inside[end + 1..]);
    if end + 2 > LONGEST_PATH || !(rest.is_empty() || rest.starts_with([' ', '\t'])) {
        return None;
    }
    // `@relay,@relay:address`: the route is to be ignored (RFC 5321, appendix C).
    let address = match address.starts_with('@') {
        true => address.split_once(':')?.1,
        false => address,
    };
    Some((address, rest.trim_ascii_start()))
}

/// Whether this is `local-part@domain`.
fn is_mailbox(address: &str) -> bool {
    address.rsplit_once('@').is_some_and(|(local_part, domain)| {
        local_part.len() <= LONGEST_LOCAL_PART
            && domain.len() <= LONGEST_DOMAIN
            && (is_dot_string(local_part) || is_quoted_string(local_part))
            && (is_domain(domain) || is_literal(domain))
    })
}

fn is_dot_string(text: &str) -> bool {
    let is_atom = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c);
    text.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atom))
}

fn is_quoted_string(text: &str) -> bool {
    let Some(inside) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        return false;
    };
    let mut escaped = false;
    let is_content = |c| match c {
        '\t' => false,
        _ if std::mem::take(&mut escaped) => true,
        c => {
            escaped = c == '\\';
            c != '"'
        }
    };
    inside.chars().all(is_content) && !escaped
}

fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    text.split('.').all(is_label)
}

/// Whether this is an address in brackets, `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
fn is_literal(text: &str) -> bool {
    let inside = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    inside.is_some_and(|inside| match after(inside, "IPv6:") {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => inside.parse::<std::net::Ipv4Addr>().is_ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_read_in_upper_and_lower_case_with_white_space_at_its_end() {
        let hello = Command::Hello { client: "me", extended: true };
        assert_eq!(parse(b"ehlo me"), Ok(hello));
        assert_eq!(parse(b"HELO me  "), Ok(Command::Hello { client: "me", extended: false }));
        assert_eq!(parse(b"Quit \t"), Ok(Command::Quit));
        assert_eq!(parse(b"NOOP anything"), Ok(Command::Noop));
        assert_eq!(parse(b"Rcpt To: <a@b>"), Ok(Command::Rcpt { to: "a@b" }));
    }

    #[test]
    fn mail_has_parameters_in_any_order() {
        for line in ["MAIL FROM:<a@b> SIZE=5 BODY=8BITMIME", "mail from:<a@b> body=8bitmime size=5"]
        {
            let expected = Command::Mail { from: "a@b", size: Some(5), extended: true };
            assert_eq!(parse(line.as_bytes()), Ok(expected));
        }
        let bounce = Command::Mail { from: "", size: None, extended: false };
        assert_eq!(parse(b"MAIL FROM:<>"), Ok(bounce));
    }

    #[test]
    fn addresses_of_every_form_are_taken() {
        for address in [
            "a@b",
            "a.b+c@x-y.example",
            "\"a b\"@x",
            "\"a>b\"@x",
            "\"a\\\"b\"@x",
            "a@[192.0.2.1]",
            "a@[IPv6:2001:db8::1]",
            "Postmaster",
            "\"a@b\"@x",
            "\"\"@x",
        ] {
            let line = format!("RCPT TO:<{address}>");
            assert_eq!(parse(line.as_bytes()), Ok(Command::Rcpt { to: address }));
        }
        assert_eq!(parse(b"RCPT TO:<@x,@y:a@b>"), Ok(Command::Rcpt { to: "a@b" }));
    }

    #[test]
    fn what_is_not_a_command_is_refused_with_the_reply_for_it() {
        let long = format!("RCPT TO:<{}@b>", "x".repeat(65));
        let longest = format!("NOOP {}", "x".repeat(600));
        for (line, code) in [
            ("", 500),
            ("FOO", 500),
            ("GET / HTTP/1.1", 500),
            ("NOOP\0", 500),
            ("NOOP \u{fc}", 500),
            (&longest, 500),
            ("EHLO", 501),
            ("EHLO a b", 501),
            ("DATA now", 501),
            ("VRFY", 501),
            ("MAIL", 501),
            ("MAIL FROM:a@b", 501),
            ("MAIL FROM:<a@b", 501),
            ("MAIL FROM:<a@b>x", 501),
            ("MAIL FROM:<a>", 501),
            ("MAIL FROM:<a@b> SIZE=", 501),
            ("MAIL FROM:<a@b> SIZE=+1", 501),
            ("MAIL FROM:<a@b> SIZE=99999999999999999999", 501),
            ("MAIL FROM:<a@b> BODY=x", 501),
            ("MAIL FROM:<a@b> SIZE=1 SIZE=1", 501),
            ("MAIL FROM:<a@b> AUTH=<>", 555),
            ("RCPT TO:<>", 501),
            ("RCPT TO:<a@>", 501),
            ("RCPT TO:<@b>", 501),
            ("RCPT TO:<a..b@c>", 501),
            ("RCPT TO:<a@b c>", 501),
            ("RCPT TO:<a@-b>", 501),
            ("RCPT TO:<a@[1.2.3]>", 501),
            ("RCPT TO:<\"a\"b\"@c>", 501),
            ("RCPT TO:<\"a\\\"@c>", 501),
            (&long, 501),
            ("RCPT TO:<a@b> NOTIFY=NEVER", 555),
            ("EXPN list", 502),
            ("STARTTLS", 502),
        ] {
            let reply = parse(line.as_bytes()).expect_err(line);
            assert!(reply.starts_with(&code.to_string()), "{line:?}: {reply}");
        }
    }
}
