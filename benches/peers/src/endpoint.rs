//! The address of a server: `tcp://HOST:PORT`, `udp://HOST:PORT` or `unix://PATH`, and how it is
//! bound.
//!
//! All servers bind here, so that they have the same backlog, buffer sizes and `TCP_NODELAY`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A UDP address.
    Udp(SocketAddr),
    /// The path of a Unix stream socket.
    Unix(PathBuf),
}

/// The transport of an [`Endpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Unix stream sockets.
    Unix,
}

/// The backlog: so long that no scenario fills it.
const BACKLOG: i32 = 4096;

/// The requested UDP buffer size of both sides; the kernel limits it to `net.core.rmem_max`.
const DATAGRAM_BUFFER: usize = 4 << 20;

impl Endpoint {
    /// The transport of this address.
    pub fn transport(&self) -> Transport {
        match self {
            Endpoint::Tcp(_) => Transport::Tcp,
            Endpoint::Udp(_) => Transport::Udp,
            Endpoint::Unix(_) => Transport::Unix,
        }
    }

    /// The address in the format of the system calls.
    pub fn socket_address(&self) -> Result<SockAddr> {
        Ok(match self {
            Endpoint::Tcp(address) | Endpoint::Udp(address) => (*address).into(),
            Endpoint::Unix(path) => SockAddr::unix(path)?,
        })
    }

    /// A new, unconnected socket of this transport, blocking and closed on `exec`.
    pub fn socket(&self) -> Result<Socket> {
        Ok(match self {
            Endpoint::Tcp(address) => {
                let socket =
                    Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
                socket.set_tcp_nodelay(true)?;
                socket
            }
            Endpoint::Udp(address) => {
                let socket =
                    Socket::new(Domain::for_address(*address), Type::DGRAM, Some(Protocol::UDP))?;
                socket.set_recv_buffer_size(DATAGRAM_BUFFER)?;
                socket.set_send_buffer_size(DATAGRAM_BUFFER)?;
                socket
            }
            Endpoint::Unix(_) => Socket::new(Domain::UNIX, Type::STREAM, None)?,
        })
    }

    /// Binds and, for streams, listens. `TCP_NODELAY` is set on the listener: on Linux accepted
    /// sockets inherit it.
    ///
    /// Returns the socket and its actual address.
    pub fn bind(&self) -> Result<(Socket, Endpoint)> {
        let socket = self.socket()?;
        if let Endpoint::Tcp(_) = self {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&self.socket_address()?).with_context(|| format!("cannot bind {self}"))?;
        if self.transport() != Transport::Udp {
            socket.listen(BACKLOG)?;
        }
        let bound = socket.local_addr()?.as_socket();
        let actual = match (self, bound) {
            (Endpoint::Tcp(_), Some(address)) => Endpoint::Tcp(address),
            (Endpoint::Udp(_), Some(address)) => Endpoint::Udp(address),
            _ => self.clone(),
        };
        Ok((socket, actual))
    }
}

impl FromStr for Endpoint {
    type Err = anyhow::Error;

    fn from_str(url: &str) -> Result<Self> {
        let address = |text: &str| -> Result<SocketAddr> {
            text.parse().with_context(|| format!("{text:?} is not IP:PORT"))
        };
        match url.split_once("://") {
            Some(("tcp", rest)) => Ok(Endpoint::Tcp(address(rest)?)),
            Some(("udp", rest)) => Ok(Endpoint::Udp(address(rest)?)),
            Some(("unix", path)) if !path.is_empty() => Ok(Endpoint::Unix(path.into())),
            _ => bail!("{url:?} is not of the form tcp://IP:PORT, udp://IP:PORT or unix://PATH"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(address) => write!(f, "tcp://{address}"),
            Endpoint::Udp(address) => write!(f, "udp://{address}"),
            Endpoint::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}
