//! A client of RESP2 and RESP3 that reads each reply as a value.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use crate::programs::DEADLINE;

/// A reply.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Double(String),
    Bulk(Vec<u8>),
    Nil,
    NilArray,
    Array(Vec<Reply>),
    Map(Vec<Reply>),
    Set(Vec<Reply>),
    Push(Vec<Reply>),
    /// The server has closed the connection.
    Closed,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Simple(text) => write!(f, "+{text}"),
            Reply::Error(text) => write!(f, "-{text}"),
            Reply::Integer(number) => write!(f, ":{number}"),
            Reply::Double(text) => write!(f, ",{text}"),
            Reply::Bulk(bytes) => write!(f, "{:?}", String::from_utf8_lossy(bytes)),
            Reply::Nil => f.write_str("nil"),
            Reply::NilArray => f.write_str("nil array"),
            Reply::Array(all) => all.fmt(f),
            Reply::Map(all) => write!(f, "%{all:?}"),
            Reply::Set(all) => write!(f, "~{all:?}"),
            Reply::Push(all) => write!(f, ">{all:?}"),
            Reply::Closed => f.write_str("closed"),
        }
    }
}

impl Reply {
    /// Only the first word of an error, which is its kind.
    pub(crate) fn without_text_of_errors(self) -> Self {
        let each = |all: Vec<Reply>| all.into_iter().map(Reply::without_text_of_errors).collect();
        match self {
            Reply::Error(text) => {
                Reply::Error(text.split(' ').next().unwrap_or_default().to_owned())
            }
            Reply::Array(all) => Reply::Array(each(all)),
            Reply::Map(all) => Reply::Map(each(all)),
            Reply::Set(all) => Reply::Set(each(all)),
            other => other,
        }
    }

    /// The elements in an order of their own, where theirs is not defined.
    pub(crate) fn sorted(self) -> Self {
        let sort = |all: Vec<Reply>| {
            let mut all: Vec<_> = all.into_iter().map(Reply::sorted).collect();
            all.sort();
            all
        };
        match self {
            Reply::Array(all) => Reply::Array(sort(all)),
            Reply::Map(all) => Reply::Map(sort(all)),
            Reply::Set(all) => Reply::Set(sort(all)),
            other => other,
        }
    }

    /// The text of a bulk string.
    #[track_caller]
    pub(crate) fn text(&self) -> String {
        let Reply::Bulk(bytes) = self else { panic!("{self:?} is not a bulk string") };
        String::from_utf8_lossy(bytes).into_owned()
    }
}

/// A bulk string.
pub(crate) fn bulk(text: &str) -> Reply {
    Reply::Bulk(text.as_bytes().to_vec())
}

/// A connection to a server.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    #[track_caller]
    pub(crate) fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection(BufReader::new(stream))
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        self.0.get_ref()
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
        self
    }

    /// Sends a command as an array.
    #[track_caller]
    pub(crate) fn command<A: AsRef<[u8]>>(&mut self, words: &[A]) -> &mut Self {
        self.send(array(words))
    }

    /// Sends a command, which has no spaces in its arguments, and reads the reply.
    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str) -> Reply {
        let words: Vec<&str> = command.split(' ').collect();
        self.command(&words).read()
    }

    #[track_caller]
    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        match self.0.read_until(b'\n', &mut line) {
            Ok(0) => None,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Ok(_) => {
                let line = line.strip_suffix(b"\r\n").expect("a whole line");
                Some(String::from_utf8_lossy(line).into_owned())
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Reads one reply.
    #[track_caller]
    pub(crate) fn read(&mut self) -> Reply {
        let Some(line) = self.line() else { return Reply::Closed };
        let (kind, rest) = line.split_at(1);
        let rest = rest.to_owned();
        let number = || rest.parse::<i64>().unwrap_or_else(|_| panic!("{line:?} is no reply"));
        match kind {
            "+" => Reply::Simple(rest),
            "-" => Reply::Error(rest),
            ":" => Reply::Integer(number()),
            "," => Reply::Double(rest),
            "_" => Reply::Nil,
            "$" | "=" if number() >= 0 => {
                let mut bytes = vec![0; number() as usize + 2];
                self.0.read_exact(&mut bytes).unwrap();
                assert!(bytes.ends_with(b"\r\n"));
                bytes.truncate(bytes.len() - 2);
                Reply::Bulk(bytes)
            }
            "$" => Reply::Nil,
            "*" if number() < 0 => Reply::NilArray,
            "*" => Reply::Array(self.read_many(number())),
            "%" => Reply::Map(self.read_many(2 * number())),
            "~" => Reply::Set(self.read_many(number())),
            ">" => Reply::Push(self.read_many(number())),
            _ => panic!("{line:?} is no reply"),
        }
    }

    #[track_caller]
    fn read_many(&mut self, count: i64) -> Vec<Reply> {
        (0..count).map(|_| self.read()).collect()
    }

    /// Reads until the server has closed the connection.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let _ = self.0.read_to_end(&mut rest); // a reset is an end, too
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// A command as an array of bulk strings.
pub(crate) fn array<A: AsRef<[u8]>>(words: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        let word = word.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}
