//! Addresses of servers and peers, as plain data. Nothing here opens a socket or resolves a name.

use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::connection_id::ConnectionId;
use crate::error::Error;

/// The longest path a Unix socket can be bound to on this system, in bytes, without the
/// terminating NUL: 107 on Linux, see [unix(7)](https://man7.org/linux/man-pages/man7/unix.7.html).
///
/// ```
/// use socketserver::{Error, MAX_UNIX_PATH, Server};
///
/// let path = format!("/tmp/{}", "x".repeat(MAX_UNIX_PATH));
/// assert!(matches!(Server::unix_stream(path), Err(Error::UnusableAddress { .. })));
/// ```
pub const MAX_UNIX_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// The address that a listener is bound to: Python's `server_address`.
///
/// It prints as the URL that [`Endpoint`] reads, with the port the kernel chose.
///
/// ```
/// use socketserver::{Server, handler_fn};
///
/// let server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
/// let address = server.local_addr();
/// let port = address.port().unwrap();
/// assert_eq!(address.to_string(), format!("tcp://127.0.0.1:{port}"));
/// assert_eq!(address.inet().unwrap().port(), port);
/// assert_eq!(address.path(), None); // a Unix socket has a path
/// assert!(!address.is_datagram());
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// A TCP listener.
    Tcp(SocketAddr),
    /// A UDP socket.
    Udp(SocketAddr),
    /// A Unix stream listener; `None` for one that was adopted and has no path.
    Unix(Option<PathBuf>),
    /// A Unix datagram socket; `None` for one that was adopted and has no path.
    UnixDatagram(Option<PathBuf>),
}

impl Address {
    /// The internet address, if it has one.
    pub fn inet(&self) -> Option<SocketAddr> {
        match self {
            Address::Tcp(address) | Address::Udp(address) => Some(*address),
            _ => None,
        }
    }

    /// The port, if it has one.
    pub fn port(&self) -> Option<u16> {
        self.inet().map(|address| address.port())
    }

    /// The path of a Unix socket, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Address::Unix(path) | Address::UnixDatagram(path) => path.as_deref(),
            _ => None,
        }
    }

    /// Whether requests are datagrams (UDP, Unix datagram) and not connections.
    pub fn is_datagram(&self) -> bool {
        matches!(self, Address::Udp(_) | Address::UnixDatagram(_))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "tcp://{address}"),
            Address::Udp(address) => write!(f, "udp://{address}"),
            Address::Unix(path) => write!(f, "unix://{}", DisplayPath(path)),
            Address::UnixDatagram(path) => write!(f, "unixgram://{}", DisplayPath(path)),
        }
    }
}

struct DisplayPath<'a>(&'a Option<PathBuf>);

impl fmt::Display for DisplayPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_deref().unwrap_or(Path::new("")).display().fmt(f)
    }
}

/// An address to listen on, as the user writes it, before any name is resolved.
///
/// The text form is a URL: `tcp://HOST:PORT`, `udp://HOST:PORT`, `unix://PATH`, `unixgram://PATH`.
/// With port 0 the kernel chooses a free port. An IPv6 address is written in brackets. A path is
/// taken literally and may be relative. The host name is resolved when a server is made, see
/// [`Server::tcp`](crate::Server::tcp).
///
/// ```
/// use socketserver::Endpoint;
///
/// let endpoint: Endpoint = "tcp://[::1]:0".parse()?;
/// assert_eq!(endpoint.to_string(), "tcp://[::1]:0");
/// assert!("tcp://127.0.0.1:99999".parse::<Endpoint>().is_err());
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// A TCP listener on a host name or number and a port.
    Tcp {
        /// The host name or number, without brackets.
        host: String,
        /// The port; 0 picks a free one.
        port: u16,
    },
    /// A UDP socket on a host name or number and a port.
    Udp {
        /// The host name or number, without brackets.
        host: String,
        /// The port; 0 picks a free one.
        port: u16,
    },
    /// A Unix stream listener at a path.
    Unix(PathBuf),
    /// A Unix datagram socket at a path.
    UnixDatagram(PathBuf),
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unusable = |reason: &str| Error::unusable_address(text, reason);
        let (scheme, rest) = text.split_once("://").ok_or_else(|| {
            unusable("expected tcp://HOST:PORT, udp://HOST:PORT, unix://PATH or unixgram://PATH")
        })?;
        match scheme {
            "tcp" => host_and_port(rest).map(|(host, port)| Endpoint::Tcp { host, port }),
            "udp" => host_and_port(rest).map(|(host, port)| Endpoint::Udp { host, port }),
            "unix" => path(rest).map(Endpoint::Unix),
            "unixgram" => path(rest).map(Endpoint::UnixDatagram),
            _ => Err("the scheme must be tcp, udp, unix or unixgram"),
        }
        .map_err(unusable)
    }
}

/// Splits `HOST:PORT`. An IPv6 address must be in brackets; the result is without them.
pub(crate) fn host_and_port(text: &str) -> Result<(String, u16), &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
    // Only digits: `parse` accepts a plus sign too.
    let port = Some(port).filter(|port| !port.starts_with('+')).and_then(|port| port.parse().ok());
    let port = port.ok_or("the port is not a number from 0 to 65535")?;
    let host = match host.strip_prefix('[').map(|inner| inner.strip_suffix(']')) {
        Some(Some(inner)) => inner,
        Some(None) => return Err("a bracket is not closed"),
        None if host.contains(':') => return Err("an IPv6 address must be in brackets"),
        None => host,
    };
    if host.is_empty() {
        Err("the host is missing")
    } else if host.contains(['[', ']']) {
        Err("a bracket is inside of the host")
    } else {
        Ok((host.to_owned(), port))
    }
}

fn path(text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() {
        Err("the path is missing")
    } else if text.len() > MAX_UNIX_PATH {
        Err("the path is longer than a Unix socket's can be")
    } else if text.contains('\0') {
        Err("the path holds a NUL byte")
    } else {
        Ok(PathBuf::from(text))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inet = |f: &mut fmt::Formatter<'_>, scheme: &str, host: &str, port: u16| {
            if host.contains(':') {
                write!(f, "{scheme}://[{host}]:{port}")
            } else {
                write!(f, "{scheme}://{host}:{port}")
            }
        };
        match self {
            Endpoint::Tcp { host, port } => inet(f, "tcp", host, *port),
            Endpoint::Udp { host, port } => inet(f, "udp", host, *port),
            Endpoint::Unix(path) => write!(f, "unix://{}", path.display()),
            Endpoint::UnixDatagram(path) => write!(f, "unixgram://{}", path.display()),
        }
    }
}

/// The address of a peer: the other end of a connection, or the sender of a datagram. Python's
/// `client_address`.
///
/// An IPv4 client of a dual-stack listener is shown as IPv4, not as `::ffff:a.b.c.d`. A link-local
/// IPv6 client includes its interface and is shown as `[fe80::1%2]:port`: the same address on two
/// interfaces is two clients, see [ipv6(7)](https://man7.org/linux/man-pages/man7/ipv6.7.html).
///
/// ```
/// use std::net::SocketAddr;
/// use socketserver::Peer;
///
/// let address: SocketAddr = "192.0.2.7:4711".parse().unwrap();
/// let peer = Peer::from(address);
/// assert_eq!(peer.inet(), Some(address)); // None for a Unix socket
/// assert_eq!(peer.to_string(), "192.0.2.7:4711");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Peer {
    /// An internet address and port.
    Inet(SocketAddr),
    /// A Unix socket bound to a path.
    Path(Box<Path>),
    /// A Unix socket bound to a name in Linux's abstract namespace.
    Abstract(Box<[u8]>),
    /// A Unix socket without a name: most Unix stream clients, and datagram clients that did not
    /// bind. A datagram from such a client cannot be answered.
    Unnamed,
}

impl Peer {
    /// The internet address, if it has one.
    pub fn inet(&self) -> Option<SocketAddr> {
        match self {
            Peer::Inet(address) => Some(*address),
            _ => None,
        }
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Peer::Inet(match address {
            SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_none() => {
                // A flow label belongs to a packet, not to its sender.
                SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into()
            }
            mapped => SocketAddr::new(mapped.ip().to_canonical(), mapped.port()),
        })
    }
}

/// The credentials of the process at the other end of a Unix stream socket, as the kernel recorded
/// them when it connected (`SO_PEERCRED`, see
/// [unix(7)](https://man7.org/linux/man-pages/man7/unix.7.html); getpeereid(3) on the BSDs and
/// macOS).
///
/// The process may have ended since, or may have passed the connection on.
///
/// ```
/// use socketserver::Accepted;
///
/// /// Whether the client is a process of this user.
/// fn is_of_user(accepted: &Accepted<'_>, uid: u32) -> bool {
///     accepted.credentials().is_ok_and(|credentials| credentials.uid == uid)
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// The process ID; `None` if the system does not report it, and on Linux if the process is in a
    /// pid namespace that this process cannot see.
    pub pid: Option<i32>,
    /// The effective user ID.
    pub uid: u32,
    /// The effective group ID.
    pub gid: u32,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Inet(address) => address.fmt(f),
            Peer::Path(path) => path.display().fmt(f),
            Peer::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
            Peer::Unnamed => f.write_str("unnamed"),
        }
    }
}

/// The origin of a request, as the log shows it: a connection by its number and its peer, a
/// datagram by its peer alone.
#[derive(Debug, Clone)]
pub(crate) struct LogPeer {
    pub(crate) id: Option<ConnectionId>,
    pub(crate) peer: Peer,
}

impl fmt::Display for LogPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = self.id {
            write!(f, "connection {id} of ")?;
        }
        self.peer.fmt(f)
    }
}

/// Checks a path that was given as a `Path`, as the text form of [`Endpoint`] does.
pub(crate) fn checked_path(path: &Path) -> io::Result<()> {
    let text = path.as_os_str().as_encoded_bytes();
    let reason = if text.is_empty() {
        "the path is missing"
    } else if text.len() > MAX_UNIX_PATH {
        "the path is longer than a Unix socket's can be"
    } else if text.contains(&0) {
        "the path holds a NUL byte"
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parsed_url_is_displayed_unchanged() {
        for url in ["tcp://127.0.0.1:9999", "udp://[::1]:0", "unix://a/b.sock", "unixgram:///tmp/x"]
        {
            assert_eq!(url.parse::<Endpoint>().unwrap().to_string(), url);
        }
    }

    #[test]
    fn an_unusable_address_is_rejected_with_a_reason() {
        let long = format!("unix://{}", "x".repeat(MAX_UNIX_PATH + 1));
        for (url, reason) in [
            ("127.0.0.1:80", "tcp://HOST:PORT"),
            ("http://a:1", "scheme"),
            ("tcp://127.0.0.1", "port is missing"),
            ("tcp://127.0.0.1:99999", "65535"),
            ("tcp://127.0.0.1:+80", "65535"),
            ("tcp://:80", "host is missing"),
            ("tcp://::1:80", "brackets"),
            ("tcp://[::1:80", "bracket is not closed"),
            ("tcp://[[a]:80", "bracket is inside"),
            ("udp://a]:80", "bracket is inside"),
            ("unix://", "path is missing"),
            (&long, "longer"),
        ] {
            let error = url.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }

    #[test]
    fn the_log_names_a_connection_by_its_number_and_peer_and_a_datagram_by_its_peer() {
        let peer = Peer::Inet("127.0.0.1:4711".parse().unwrap());
        let id = ConnectionId::next();
        let connection = LogPeer { id: Some(id), peer: peer.clone() };
        assert_eq!(connection.to_string(), format!("connection {id} of 127.0.0.1:4711"));
        assert_eq!(LogPeer { id: None, peer }.to_string(), "127.0.0.1:4711");
    }

    #[test]
    fn a_mapped_peer_is_shown_as_ipv4() {
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:80".parse().unwrap();
        assert_eq!(Peer::from(mapped).to_string(), "192.0.2.7:80");
    }

    #[test]
    fn a_link_local_peer_is_shown_with_its_interface() {
        let on = |interface| {
            let address: SocketAddr = SocketAddrV6::new(
                "fe80::1".parse().unwrap(),
                80,
                // A flow label, which differs per connection.
                7,
                interface,
            )
            .into();
            Peer::from(address)
        };
        assert_eq!(on(2).to_string(), "[fe80::1%2]:80");
        assert_ne!(on(2), on(3));
        assert_eq!(on(2).inet(), Some("[fe80::1%2]:80".parse().unwrap()));
    }
}
