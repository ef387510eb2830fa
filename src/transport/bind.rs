//! Binding: makes a socket of the user's address and options, binds it, and, for a stream, makes it
//! listen.

use std::io;
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Type};

use super::options::{SocketOption, set_options};
use super::unix_file::{self, Lock, OwnFile};
use crate::address::{Address, Endpoint, checked_path, host_and_port};
use crate::error::Error;
use crate::guard::log;
use crate::sys::{self, Socket};

/// The transport of a socket: its kind of requests and its address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Tcp,
    Udp,
    Unix,
    UnixDatagram,
}

impl Family {
    pub(crate) fn is_datagram(self) -> bool {
        matches!(self, Family::Udp | Family::UnixDatagram)
    }

    fn scheme(self) -> &'static str {
        match self {
            Family::Tcp => "tcp",
            Family::Udp => "udp",
            Family::Unix => "unix",
            Family::UnixDatagram => "unixgram",
        }
    }

    fn url(self, address: impl std::fmt::Display) -> String {
        format!("{}://{address}", self.scheme())
    }
}

impl From<&Address> for Family {
    fn from(address: &Address) -> Self {
        match address {
            Address::Tcp(_) => Family::Tcp,
            Address::Udp(_) => Family::Udp,
            Address::Unix(_) => Family::Unix,
            Address::UnixDatagram(_) => Family::UnixDatagram,
        }
    }
}

/// The resolved address or addresses to bind to.
#[derive(Debug)]
pub(crate) enum Target {
    /// These are tried in order until one can be bound.
    Inet(Vec<SocketAddr>),
    Path(PathBuf),
}

impl Target {
    /// The first of its addresses, as a URL.
    pub(crate) fn url(&self, family: Family) -> String {
        match self {
            Target::Inet(addresses) => family.url(addresses[0]),
            Target::Path(path) => family.url(path.display()),
        }
    }

    pub(crate) fn resolve(
        family: Family,
        address: impl ToSocketAddrs,
        shown: impl std::fmt::Display,
    ) -> Result<Self, Error> {
        let shown = shown.to_string();
        let url = format!("{}://{shown}", family.scheme());
        let resolved: Vec<_> = address
            .to_socket_addrs()
            .map(Vec::from_iter)
            .or_else(|error| resolve_with_interface(&shown).unwrap_or(Err(error)))
            .map_err(|source| match source.kind() {
                io::ErrorKind::InvalidInput => Error::unusable_address(&url, source),
                _ => Error::Resolve { address: url.clone(), source },
            })?;
        if resolved.is_empty() {
            return Err(Error::unusable_address(url, "the name has no address"));
        }
        Ok(Target::Inet(ordered(&shown, resolved)))
    }

    pub(crate) fn path(family: Family, path: PathBuf) -> Result<Self, Error> {
        checked_path(&path).map_err(|error| {
            Error::unusable_address(format!("{}://{}", family.scheme(), path.display()), error)
        })?;
        Ok(Target::Path(path))
    }

    pub(crate) fn endpoint(endpoint: &Endpoint) -> Result<(Family, Self), Error> {
        let (family, host, port) = match endpoint {
            Endpoint::Tcp { host, port } => (Family::Tcp, host, *port),
            Endpoint::Udp { host, port } => (Family::Udp, host, *port),
            Endpoint::Unix(path) => {
                return Ok((Family::Unix, Target::path(Family::Unix, path.clone())?));
            }
            Endpoint::UnixDatagram(path) => {
                let target = Target::path(Family::UnixDatagram, path.clone())?;
                return Ok((Family::UnixDatagram, target));
            }
        };
        let shown = SocketAddrText(host, port);
        Ok((family, Target::resolve(family, (host.as_str(), port), shown)?))
    }
}

/// Puts addresses into the order in which they are tried: as given or resolved, but IPv4 first for
/// `localhost`, because its clients often connect to 127.0.0.1.
fn ordered(shown: &str, mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    // `localhost:80` as text, `("localhost", 80)` as a pair.
    let name = shown.trim_start_matches(['(', '"']).split([':', '"']).next().unwrap_or_default();
    if name.eq_ignore_ascii_case("localhost") {
        addresses.sort_by_key(SocketAddr::is_ipv6);
    }
    addresses
}

/// Resolves an IPv6 address with the name of an interface, which the standard library cannot parse:
/// `[fe80::1%eth0]:80`. `None` if the text is not of this form.
fn resolve_with_interface(text: &str) -> Option<io::Result<Vec<SocketAddr>>> {
    let (host, port) = host_and_port(text).ok().filter(|(host, _)| host.contains('%'))?;
    Some((host.as_str(), port).to_socket_addrs().map(Iterator::collect))
}

struct SocketAddrText<'a>(&'a str, u16);

impl std::fmt::Display for SocketAddrText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let SocketAddrText(host, port) = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// The options that must be set before a socket is bound.
#[derive(Debug, Clone, Default)]
pub(crate) struct BindOptions {
    pub(crate) reuse_address: Option<bool>,
    pub(crate) reuse_port: bool,
    pub(crate) dual_stack: bool,
    pub(crate) unix_mode: Option<u32>,
}

impl BindOptions {
    /// The name of an option that does not have its default value, if any.
    pub(crate) fn first_set(&self) -> Option<&'static str> {
        [
            (self.reuse_address.is_some(), "reuse_address"),
            (self.reuse_port, "reuse_port"),
            (self.dual_stack, "dual_stack"),
            (self.unix_mode.is_some(), "unix_mode"),
        ]
        .into_iter()
        .find_map(|(set, option)| set.then_some(option))
    }
}

/// The largest backlog of listen(2); the kernel reduces it to its own limit, `net.core.somaxconn`
/// on Linux.
pub(crate) fn max_backlog() -> i32 {
    i32::from(u16::MAX)
}

/// A bound, non-blocking socket with its file and lock. The order of the fields is the drop order:
/// the file is removed while the socket still accepts, so that no other process finds a stale file.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) address: Arc<Address>,
    pub(crate) kind: Kind,
    _file: Option<OwnFile>,
    pub(crate) socket: Arc<Socket>,
    /// Whether other code has made the socket and may share it.
    adopted: bool,
    /// Held until a Unix stream socket listens.
    lock: Option<Lock>,
}

/// The kind of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Accepts connections after it listens.
    Stream,
    Datagram,
    /// Accepts nothing: connections are handed over to the service.
    WithoutListener,
}

impl Bound {
    fn new(address: Address, socket: Socket) -> Self {
        let kind = if address.is_datagram() { Kind::Datagram } else { Kind::Stream };
        Bound {
            address: Arc::new(address),
            kind,
            _file: None,
            socket: Arc::new(socket),
            adopted: false,
            lock: None,
        }
    }

    /// Makes a stream socket listen, if it does not listen yet: Python's `server_activate`.
    pub(crate) fn activate(&mut self, backlog: i32) -> Result<(), Error> {
        if self.kind == Kind::Stream {
            self.socket
                .listen(backlog)
                .map_err(|source| Error::Bind { address: self.address.to_string(), source })?;
        }
        self.lock = None;
        Ok(())
    }

    /// Sets how long a peer may take none of the output that only the kernel still holds, which the event
    /// loop does not see. The loop cuts a peer at most a quarter after `timeout`; the kernel comes later.
    pub(crate) fn limit_unacknowledged(&self, timeout: Duration) {
        let late = timeout.saturating_add(timeout / 2);
        if matches!(*self.address, Address::Tcp(_))
            && let Err(error) = sys::set_user_timeout(&self.socket, late)
        {
            log::debug!("{}: the kernel does not limit output: {error}", self.address);
        }
    }

    /// Takes a socket that other code has made: bound, or already listening.
    pub(crate) fn from_socket(socket: Socket) -> Result<Self, Error> {
        let unusable =
            |source: io::Error| Error::Bind { address: "the socket given".into(), source };
        socket.set_nonblocking(true).map_err(unusable)?;
        let (name, kind) =
            (socket.local_addr().map_err(unusable)?, socket.r#type().map_err(unusable)?);
        let datagram = kind == Type::DGRAM;
        let path = || name.as_pathname().map(PathBuf::from);
        let address = match (name.as_socket(), datagram) {
            (Some(inet), false) => Address::Tcp(inet),
            (Some(inet), true) => Address::Udp(inet),
            (None, false) => Address::Unix(path()),
            (None, true) => Address::UnixDatagram(path()),
        };
        if !datagram && socket.peer_addr().is_ok() {
            return Err(Error::unusable_address(
                "the socket given",
                "it is a connection: use add_connection",
            ));
        }
        // Its file, if it has one, belongs to the code that made it.
        let mut bound = Bound::new(address, socket);
        bound.adopted = true;
        Ok(bound)
    }

    /// A service without a listening socket, for connections that are handed over.
    pub(crate) fn without_listener() -> Result<Self, Error> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(Error::Loop)?;
        let mut bound = Bound::new(Address::Unix(None), socket);
        bound.kind = Kind::WithoutListener;
        Ok(bound)
    }
}

/// The limits of accepting waiting clients at a close: their number and the time. The other clients
/// get a reset.
const CLOSE_BUDGET: usize = 4096;
const CLOSE_ACCEPT_TIMEOUT: Duration = Duration::from_millis(100);

impl Drop for Bound {
    /// A close would reset the clients that wait to be accepted. So they are accepted and closed,
    /// and see end of input. Clients that connect from now on are not accepted.
    fn drop(&mut self) {
        // Other code that shares the socket may continue to accept.
        if self.kind != Kind::Stream || self.adopted {
            return;
        }
        let deadline = Instant::now() + CLOSE_ACCEPT_TIMEOUT;
        // If the number is unknown: a Unix socket, whose file is removed, gets few new clients.
        let waiting = sys::waiting_connections(&self.socket).unwrap_or(usize::MAX);
        // With unread input, the close of a connection would be a reset. One read takes nearly all
        // that a client can have sent so far.
        let mut unread = vec![0; 64 * 1024];
        for _ in 0..waiting.min(CLOSE_BUDGET) {
            match sys::accept(&self.socket, true) {
                Ok((client, _)) => {
                    // If the call fails, the client is gone.
                    let _ = client.shutdown(Shutdown::Write);
                    let _ = sys::receive_now(&client, &mut unread);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => return,
            }
            if Instant::now() >= deadline {
                return;
            }
        }
    }
}

/// Binds a socket. If it fails, no file or socket is left.
pub(crate) fn bind(
    family: Family,
    target: &Target,
    bind: &BindOptions,
    options: &[SocketOption],
) -> Result<Bound, Error> {
    #[cfg(feature = "testing")]
    if let Some(kernel) = sys::simulated::current()
        && !family.is_datagram()
    {
        let (address, unix) = match target {
            Target::Inet(addresses) => (Address::Tcp(addresses[0]), false),
            Target::Path(path) => (Address::Unix(Some(path.as_path().into())), true),
        };
        return Ok(Bound::new(address, kernel.bind(unix).map_err(Error::Loop)?));
    }
    match target {
        Target::Inet(addresses) => {
            let mut refused = None;
            for address in addresses {
                match bind_inet(family, *address, bind, options) {
                    Ok(bound) => return Ok(bound),
                    Err(error) => refused = Some(error),
                }
            }
            Err(refused.expect("a target has at least one address"))
        }
        Target::Path(path) => bind_path(family, path, bind, options),
    }
}

fn bind_inet(
    family: Family,
    address: SocketAddr,
    bind: &BindOptions,
    options: &[SocketOption],
) -> Result<Bound, Error> {
    let url = family.url(address);
    let unbound = |source| Error::Bind { address: url.clone(), source };
    let socket = inet_socket(family, address, bind).map_err(unbound)?;
    set_options(options, &socket, family, &url)?;
    socket.bind(&address.into()).map_err(unbound)?;
    let bound = socket.local_addr().map_err(unbound)?.as_socket().unwrap_or(address);
    let address = if family.is_datagram() { Address::Udp(bound) } else { Address::Tcp(bound) };
    Ok(Bound::new(address, socket))
}

/// Makes a socket and sets the options that must be set before it is bound, and the defaults of
/// this crate.
fn inet_socket(family: Family, address: SocketAddr, bind: &BindOptions) -> io::Result<Socket> {
    let (kind, protocol) = match family.is_datagram() {
        false => (Type::STREAM, Protocol::TCP),
        true => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // For a listener it only skips TIME_WAIT after an earlier server. For a UDP socket it would let
    // two servers share a port without an error, so there it is off by default.
    socket.set_reuse_address(bind.reuse_address.unwrap_or(!family.is_datagram()))?;
    if bind.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(!bind.dual_stack)?;
    }
    if family == Family::Tcp {
        // On by default; accepted connections inherit it on Linux and the BSDs.
        socket.set_tcp_nodelay(true)?;
    }
    Ok(socket)
}

fn bind_path(
    family: Family,
    path: &Path,
    bind: &BindOptions,
    options: &[SocketOption],
) -> Result<Bound, Error> {
    let url = family.url(path.display());
    let unbound = |source| Error::Bind { address: url.clone(), source };
    let kind = if family.is_datagram() { Type::DGRAM } else { Type::STREAM };
    let socket = Socket::new(Domain::UNIX, kind, None).map_err(unbound)?;
    socket.set_nonblocking(true).map_err(unbound)?;
    set_options(options, &socket, family, &url)?;
    let (file, lock) = unix_file::bind(&socket, path, kind, bind.unix_mode).map_err(unbound)?;
    let address = match family.is_datagram() {
        false => Address::Unix(Some(path.into())),
        true => Address::UnixDatagram(Some(path.into())),
    };
    // A datagram socket receives as soon as it is bound.
    let lock = lock.filter(|_| !family.is_datagram());
    let mut bound = Bound::new(address, socket);
    (bound._file, bound.lock) = (Some(file), lock);
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: [&str; 3]) -> Vec<SocketAddr> {
        texts.map(|text| text.parse().unwrap()).into()
    }

    #[test]
    fn for_localhost_ipv4_is_tried_first_and_other_names_keep_their_order() {
        let resolved = addresses(["[::1]:80", "127.0.0.1:80", "127.0.0.2:80"]);
        let ipv4_first = addresses(["127.0.0.1:80", "127.0.0.2:80", "[::1]:80"]);
        let tcp = |address: &dyn std::fmt::Debug| format!("{address:?}");
        for shown in ["localhost:80", &tcp(&"LocalHost:80"), &tcp(&("localhost", 80))] {
            assert_eq!(ordered(shown, resolved.clone()), ipv4_first, "{shown}");
        }
        for shown in ["example.org:80", "localhost.example:80", "[::1]:80", &tcp(&&resolved[..])] {
            assert_eq!(ordered(shown, resolved.clone()), resolved, "{shown}");
        }
    }

    #[test]
    fn of_several_addresses_the_first_one_that_binds_is_used() {
        // An address for documentation, which no host has (RFC 5737).
        let target = Target::Inet(addresses(["192.0.2.1:0", "127.0.0.1:0", "127.0.0.2:0"]));
        let bound = bind(Family::Tcp, &target, &BindOptions::default(), &[]).unwrap();
        assert_eq!(bound.address.inet().unwrap().ip().to_string(), "127.0.0.1");
    }
}
