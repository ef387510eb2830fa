//! The datagrams of the game: one line of ASCII each, without an end.
//!
//! | from a client | answer |
//! |---|---|
//! | `HELLO` and spaces, as many as the answer is longer | `TOKEN token` |
//! | `JOIN token name` | `JOINED number width height x y` or `FULL` |
//! | `GO token count x y`: walk to that place; `count` grows with each | – |
//! | `LEAVE token` | – |
//!
//! All players get `SEE tick number,x,y,name ...` many times a second: who is where. A datagram may be
//! lost: a client repeats `HELLO` and `JOIN` until the answer comes, and says `GO` again and again.

use std::fmt;

/// A place on the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    pub(crate) x: u16,
    pub(crate) y: u16,
}

/// The datagrams of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    Hello,
    Join { token: Token, name: &'a str },
    Go { token: Token, count: u64, to: Place },
    Leave { token: Token },
}

/// The datagrams of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    Token(Token),
    Joined { number: u32, width: u16, height: u16, at: Place },
    Full,
    See { tick: u64, players: Vec<Seen> },
}

/// A player as the others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) number: u32,
    pub(crate) at: Place,
    pub(crate) name: String,
}

/// What the server has sent to the address of a client: whoever knows it receives what is sent there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token(pub(crate) u64);

/// The longest name, in bytes.
pub(crate) const LONGEST_NAME: usize = 12;

impl<'a> Request<'a> {
    /// Reads a datagram; `None` if it is none of these.
    pub(crate) fn parse(datagram: &'a [u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(datagram).ok()?.split_ascii_whitespace();
        let mut next = || words.next();
        let request = match next()? {
            "HELLO" => Request::Hello,
            "JOIN" => Request::Join { token: Token::parse(next()?)?, name: name(next()?)? },
            "GO" => Request::Go {
                token: Token::parse(next()?)?,
                count: next()?.parse().ok()?,
                to: Place { x: next()?.parse().ok()?, y: next()?.parse().ok()? },
            },
            "LEAVE" => Request::Leave { token: Token::parse(next()?)? },
            _ => return None,
        };
        words.next().is_none().then_some(request)
    }
}

impl Notice {
    /// Reads a datagram; `None` if it is none of these.
    pub(crate) fn parse(datagram: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(datagram).ok()?.split_ascii_whitespace();
        let mut next = || words.next();
        Some(match next()? {
            "TOKEN" => Notice::Token(Token::parse(next()?)?),
            "JOINED" => Notice::Joined {
                number: next()?.parse().ok()?,
                width: next()?.parse().ok()?,
                height: next()?.parse().ok()?,
                at: Place { x: next()?.parse().ok()?, y: next()?.parse().ok()? },
            },
            "FULL" => Notice::Full,
            "SEE" => Notice::See {
                tick: next()?.parse().ok()?,
                players: words.map(Seen::parse).collect::<Option<_>>()?,
            },
            _ => return None,
        })
    }
}

impl Token {
    fn parse(word: &str) -> Option<Self> {
        let is_token = word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        u64::from_str_radix(word, 16).ok().filter(|_| is_token).map(Token)
    }
}

impl Seen {
    fn parse(word: &str) -> Option<Self> {
        let mut parts = word.split(',');
        let number = parts.next()?.parse().ok()?;
        let at = Place { x: parts.next()?.parse().ok()?, y: parts.next()?.parse().ok()? };
        Some(Seen { number, at, name: name(parts.next()?)?.to_owned() })
    }
}

/// A name has ASCII letters and digits only, so it can be shown on any terminal.
pub(crate) fn name(word: &str) -> Option<&str> {
    let is_name = (1..=LONGEST_NAME).contains(&word.len())
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_name.then_some(word)
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // As long as `TOKEN` with its token.
            Request::Hello => write!(f, "{:22}", "HELLO"),
            Request::Join { token, name } => write!(f, "JOIN {token} {name}"),
            Request::Go { token, count, to } => write!(f, "GO {token} {count} {} {}", to.x, to.y),
            Request::Leave { token } => write!(f, "LEAVE {token}"),
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Token(token) => write!(f, "TOKEN {token}"),
            Notice::Joined { number, width, height, at } => {
                write!(f, "JOINED {number} {width} {height} {} {}", at.x, at.y)
            }
            Notice::Full => f.write_str("FULL"),
            Notice::See { tick, players } => {
                write!(f, "SEE {tick}")?;
                players.iter().try_for_each(|Seen { number, at, name }| {
                    write!(f, " {number},{},{},{name}", at.x, at.y)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let (token, to) = (Token(0xa), Place { x: 3, y: 4 });
        for request in [
            Request::Hello,
            Request::Join { token, name: "ann" },
            Request::Go { token, count: u64::MAX, to },
            Request::Leave { token },
        ] {
            assert_eq!(Request::parse(request.to_string().as_bytes()), Some(request));
        }
        let seen = Seen { number: 1, at: to, name: "bob".to_owned() };
        for notice in [
            Notice::Token(token),
            Notice::Joined { number: 1, width: 2, height: 3, at: to },
            Notice::Full,
            Notice::See { tick: 9, players: vec![seen.clone(), seen] },
            Notice::See { tick: 9, players: Vec::new() },
        ] {
            assert_eq!(Notice::parse(notice.to_string().as_bytes()), Some(notice));
        }
    }

    #[test]
    fn what_is_not_a_datagram_of_the_game_is_none() {
        let token = "000000000000000a";
        for text in [
            "",
            " ",
            "hello",
            "HELLO you",
            "JOIN",
            "JOIN a ann",
            &format!("JOIN {token}"),
            &format!("JOIN {token} a,b"),
            &format!("JOIN {token} thirteenbytes"),
            &format!("JOIN {token} \u{fc}"),
            &format!("GO {token} 1 2"),
            &format!("GO {token} 1 2 -3"),
            &format!("GO {token} 1 2 70000"),
            &format!("LEAVE {token} now"),
            "GO +00000000000000a 1 2 3",
        ] {
            assert_eq!(Request::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Request::parse(b"HELLO\xff"), None);
        for text in ["", "TOKEN x", "SEE", "SEE 1 2", "SEE 1 2,3,4", "SEE 1 2,3,4,\u{1b}[2J"] {
            assert_eq!(Notice::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn the_answer_to_hello_is_no_longer_than_hello() {
        let answer = Notice::Token(Token(u64::MAX)).to_string();
        assert_eq!(Request::Hello.to_string().len(), answer.len());
    }
}
