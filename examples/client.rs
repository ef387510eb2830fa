//! A client for the other examples: it sends the lines of its standard input to a server, and writes
//! what the server answers to standard output, byte for byte, as it comes. A client needs nothing of
//! this crate: sockets of the standard library are enough. Only the URL is read by the crate, as in
//! the servers.
//!
//! At the end of its input, the client ends its sending side and waits for the server's end; a
//! datagram socket has no end, so there it waits for further answers, a second for each. When the
//! server ends the connection, the client ends too.
//!
//! Start `welcome`, and try `client --framing raw tcp://127.0.0.1:9999`.

mod common;

use std::io::{self, BufRead as _, ErrorKind, Read as _, Write as _};
use std::net::{
    Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket,
};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::exit;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use common::{fail, help, is_datagram};
use lexopt::prelude::*;
use socket2::Socket;
use socketserver::Endpoint;

/// How long the client waits for each further answer over datagrams, after the end of its input.
const PATIENCE: Duration = Duration::from_secs(1);

/// The longest datagram that is received whole.
const MAX_DATAGRAM: usize = 256 * 1024;

/// What the threads that read the input and the answers report.
enum Event {
    EndOfInput,
    Answer,
    /// The server has ended the connection, or the connection has failed.
    End(io::Result<()>),
}

const HELP: &str = "\
Sends the lines of its input to a server, and prints the answers as they come.

Usage: client [OPTIONS] URL

  URL               tcp://HOST:PORT, udp://HOST:PORT, unix://PATH or unixgram://PATH
  --framing X       what is sent for a line: lines (with a newline) or raw (without) [default: lines]
  --help            show this help
";

fn main() {
    let (server, raw) = arguments().unwrap_or_else(|error| fail(error, 2));
    match connect(&server).and_then(|socket| talk(socket, is_datagram(&server), raw)) {
        Ok(()) => exit(0), // without waiting for the thread that reads the input
        Err(error) => fail(format_args!("{server}: {error}"), 1),
    }
}

/// The server's URL, and whether lines are sent without their newlines.
fn arguments() -> Result<(Endpoint, bool), lexopt::Error> {
    let (mut server, mut raw) = (None, false);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("framing") => {
                raw = match &parser.value()?.string()?[..] {
                    "raw" => true,
                    "lines" => false,
                    other => {
                        return Err(format!("unknown framing {other:?}: use raw or lines").into());
                    }
                }
            }
            Long("help") | Short('h') => help(&mut parser, HELP)?,
            Value(url) if server.is_none() => server = Some(url.parse()?),
            other => return Err(other.unexpected()),
        }
    }
    Ok((server.ok_or("the URL of a server is missing")?, raw))
}

/// A socket that is connected to the server.
fn connect(server: &Endpoint) -> io::Result<Socket> {
    Ok(match server {
        Endpoint::Tcp { host, port } => TcpStream::connect(&addresses(host, *port)?[..])?.into(),
        Endpoint::Udp { host, port } => connect_udp(&addresses(host, *port)?)?.into(),
        Endpoint::Unix(path) => UnixStream::connect(path)?.into(),
        Endpoint::UnixDatagram(path) => connect_unix_datagram(path)?.into(),
        _ => return Err(io::Error::from(ErrorKind::Unsupported)),
    })
}

/// The addresses of a host, those of IPv4 first, which are those of Python's clients.
fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    Ok(addresses)
}

fn connect_udp(addresses: &[SocketAddr]) -> io::Result<UdpSocket> {
    let mut last = io::Error::from(ErrorKind::NotFound);
    for address in addresses {
        let own: SocketAddr = if address.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let connected = UdpSocket::bind(own).and_then(|socket| {
            socket.connect(address)?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A socket with a name of its own: a server cannot answer a datagram from a socket without one. The
/// name is not a file, so that nothing is left behind.
#[cfg(target_os = "linux")]
fn connect_unix_datagram(server: &Path) -> io::Result<UnixDatagram> {
    use std::os::linux::net::SocketAddrExt as _;
    let name = format!("socketserver-client-{}", std::process::id());
    let name = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let socket = UnixDatagram::bind_addr(&name)?;
    socket.connect(server)?;
    Ok(socket)
}

/// The same on systems where a name is a file, in the directory for temporary files.
#[cfg(not(target_os = "linux"))]
fn connect_unix_datagram(server: &Path) -> io::Result<UnixDatagram> {
    let name = format!("socketserver-client-{}", std::process::id());
    let socket = UnixDatagram::bind(std::env::temp_dir().join(name))?;
    socket.connect(server)?;
    Ok(socket)
}

/// Talks to the server until either end.
fn talk(socket: Socket, datagrams: bool, raw: bool) -> io::Result<()> {
    let own_name = socket.local_addr()?.as_pathname().map(Path::to_owned);
    let (events, incoming) = channel();
    let (sending, sent) = (socket.try_clone()?, events.clone());
    thread::spawn(move || {
        let event = match send_lines(&sending, datagrams, raw) {
            Ok(()) => Event::EndOfInput,
            Err(error) => Event::End(Err(error)),
        };
        let _ = sent.send(event); // the other end may be gone, when the program is about to end
    });
    thread::spawn(move || {
        let end = print_answers(&socket, datagrams, &events);
        let _ = events.send(Event::End(end));
    });
    let mut patience = Duration::MAX;
    let end = loop {
        match incoming.recv_timeout(patience) {
            Ok(Event::EndOfInput) if datagrams => patience = PATIENCE,
            Ok(Event::EndOfInput | Event::Answer) => {}
            Ok(Event::End(end)) => break end,
            Err(_) => break Ok(()),
        }
    };
    own_name.map_or(Ok(()), std::fs::remove_file).and(end)
}

/// Sends each line of the input by itself, with its newline or, if `raw`, without; then ends the
/// sending side of a connection.
fn send_lines(mut socket: &Socket, datagrams: bool, raw: bool) -> io::Result<()> {
    let mut input = io::stdin().lock();
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line)? > 0 {
        if line.ends_with(b"\n") {
            line.pop();
        }
        if !raw {
            line.push(b'\n');
        }
        if datagrams {
            socket.send(&line)?;
        } else if socket.write_all(&line).is_err() {
            return Ok(()); // the other thread sees how the server has ended the connection
        }
        line.clear();
    }
    if !datagrams {
        let _ = socket.shutdown(Shutdown::Write); // fails if the server has ended the connection
    }
    Ok(())
}

/// Writes what the server sends to standard output.
fn print_answers(mut socket: &Socket, datagrams: bool, events: &Sender<Event>) -> io::Result<()> {
    let mut output = io::stdout().lock();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let count = match socket.read(&mut buffer) {
            Ok(0) if !datagrams => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let written = output.write_all(&buffer[..count]).and_then(|()| output.flush());
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error),
        }
        let _ = events.send(Event::Answer);
    }
}
