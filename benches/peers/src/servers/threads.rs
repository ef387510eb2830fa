//! The standard library: a blocking thread per connection.

use std::io::{self, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::thread;

use anyhow::Result;

use super::{DATAGRAM, announce};
use crate::endpoint::{Endpoint, Transport};

/// The stack size. The read buffer is on the heap, so the stack needs little.
const STACK: usize = 64 << 10;

pub(super) fn serve(listen: &Endpoint, buffer: usize) -> Result<()> {
    let (socket, actual) = listen.bind()?;
    announce(&actual)?;
    match actual.transport() {
        Transport::Tcp => {
            let listener: TcpListener = socket.into();
            loop {
                let (stream, _) = listener.accept()?;
                start(stream, buffer)?;
            }
        }
        Transport::Unix => {
            let listener: UnixListener = socket.into();
            loop {
                let (stream, _) = listener.accept()?;
                start(stream, buffer)?;
            }
        }
        Transport::Udp => echo_datagrams(&socket.into())?,
    }
    Ok(())
}

fn start(stream: impl Read + Write + Send + 'static, buffer: usize) -> io::Result<()> {
    let thread = thread::Builder::new().stack_size(STACK);
    thread.spawn(move || echo(stream, buffer))?;
    Ok(())
}

fn echo(mut stream: impl Read + Write, buffer: usize) -> io::Result<()> {
    let mut buffer = vec![0; buffer];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}

/// Datagrams have no connections: one thread serves them all.
fn echo_datagrams(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..length], peer)?;
    }
}
