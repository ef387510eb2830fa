//! From what a user asked for to a socket that is bound, and, for a stream, listens.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};

use super::unix_file::{self, OwnFile};
use crate::address::{Address, Endpoint, checked_path};
use crate::error::Error;

/// What kind of requests a socket brings, and over which family of addresses.
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
}

/// Where to bind, resolved.
#[derive(Debug)]
pub(crate) enum Target {
    /// These in turn, until one binds.
    Inet(Vec<SocketAddr>),
    Path(PathBuf),
}

impl Target {
    pub(crate) fn resolve(
        family: Family,
        address: impl ToSocketAddrs,
        shown: impl std::fmt::Display,
    ) -> Result<Self, Error> {
        let shown = format!("{}://{shown}", family.scheme());
        let resolved: Vec<_> = address
            .to_socket_addrs()
            .map_err(|source| match source.kind() {
                io::ErrorKind::InvalidInput => Error::unusable_address(&shown, source),
                _ => Error::Resolve { address: shown.clone(), source },
            })?
            .collect();
        if resolved.is_empty() {
            return Err(Error::unusable_address(shown, "the name has no address"));
        }
        Ok(Target::Inet(resolved))
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

struct SocketAddrText<'a>(&'a str, u16);

impl std::fmt::Display for SocketAddrText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let SocketAddrText(host, port) = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// What is settled before a socket is bound.
#[derive(Debug, Clone)]
pub(crate) struct BindOptions {
    pub(crate) backlog: i32,
    pub(crate) reuse_address: Option<bool>,
    pub(crate) reuse_port: bool,
    pub(crate) dual_stack: bool,
    pub(crate) nodelay: bool,
    pub(crate) unix_mode: Option<u32>,
}

impl Default for BindOptions {
    fn default() -> Self {
        BindOptions {
            backlog: libc_somaxconn(),
            reuse_address: None,
            reuse_port: false,
            dual_stack: false,
            nodelay: true,
            unix_mode: None,
        }
    }
}

/// The kernel cuts what is too much to what it allows: `net.core.somaxconn` on Linux.
fn libc_somaxconn() -> i32 {
    i32::from(u16::MAX)
}

/// A bound socket, non-blocking, and what goes with it. Field order is drop order: the file goes
/// while the socket still answers, so that nobody finds it stale.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) address: Arc<Address>,
    _file: Option<OwnFile>,
    pub(crate) socket: Arc<Socket>,
}

/// Binds, and listens for a stream; whatever fails leaves nothing behind.
pub(crate) fn bind(family: Family, target: &Target, options: &BindOptions) -> Result<Bound, Error> {
    match target {
        Target::Inet(addresses) => {
            let mut refused = None;
            for address in addresses {
                match bind_inet(family, *address, options) {
                    Ok(bound) => return Ok(bound),
                    Err(source) => refused = Some((address, source)),
                }
            }
            let (address, source) = refused.expect("a target has at least one address");
            Err(Error::Bind { address: format!("{}://{address}", family.scheme()), source })
        }
        Target::Path(path) => bind_path(family, path.clone(), options).map_err(|source| {
            let address = format!("{}://{}", family.scheme(), path.display());
            Error::Bind { address, source }
        }),
    }
}

fn bind_inet(family: Family, address: SocketAddr, options: &BindOptions) -> io::Result<Bound> {
    let (kind, protocol) = match family.is_datagram() {
        false => (Type::STREAM, Protocol::TCP),
        true => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // For a listener it only skips the wait after an earlier run; for a UDP socket it would let two
    // servers share a port in silence, so there it must be asked for.
    socket.set_reuse_address(options.reuse_address.unwrap_or(!family.is_datagram()))?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(!options.dual_stack)?;
    }
    if family == Family::Tcp && options.nodelay {
        // Accepted connections inherit it on Linux and the BSDs.
        socket.set_tcp_nodelay(true)?;
    }
    socket.bind(&address.into())?;
    if !family.is_datagram() {
        socket.listen(options.backlog)?;
    }
    let bound = socket.local_addr()?.as_socket().unwrap_or(address);
    let address = if family.is_datagram() { Address::Udp(bound) } else { Address::Tcp(bound) };
    Ok(Bound { address: Arc::new(address), _file: None, socket: Arc::new(socket) })
}

fn bind_path(family: Family, path: PathBuf, options: &BindOptions) -> io::Result<Bound> {
    let kind = if family.is_datagram() { Type::DGRAM } else { Type::STREAM };
    let socket = Socket::new(Domain::UNIX, kind, None)?;
    socket.set_nonblocking(true)?;
    let file = unix_file::bind(&socket, &path, kind, options.unix_mode, || {
        if family.is_datagram() { Ok(()) } else { socket.listen(options.backlog) }
    })?;
    let address = match family.is_datagram() {
        false => Address::Unix(Some(path)),
        true => Address::UnixDatagram(Some(path)),
    };
    Ok(Bound { address: Arc::new(address), _file: Some(file), socket: Arc::new(socket) })
}
