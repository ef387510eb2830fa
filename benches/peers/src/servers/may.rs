//! may: a stackful coroutine per connection, all on one worker thread.

use std::io::{self, Read, Write};

use ::may::net::{TcpListener, UdpSocket};
use ::may::os::unix::net::UnixListener;
use anyhow::Result;

use super::{DATAGRAM, announce};
use crate::endpoint::{Endpoint, Transport};
use crate::sys::adopt;

/// The stack size in machine words, the unit of may: 32 KiB. The read buffer is on the heap.
const STACK_WORDS: usize = 4 << 10;

pub(super) fn serve(listen: &Endpoint, buffer: usize) -> Result<()> {
    // The starting process decides whether the server is pinned.
    ::may::config().set_workers(1).set_stack_size(STACK_WORDS).set_worker_pin(false);
    let (socket, actual) = listen.bind()?;
    announce(&actual)?;
    let serving = ::may::go!(move || match actual.transport() {
        Transport::Tcp => {
            let listener: TcpListener = adopt(socket);
            loop {
                let (stream, _) = listener.accept()?;
                ::may::go!(move || echo(stream, buffer));
            }
        }
        Transport::Unix => {
            let listener: UnixListener = adopt(socket);
            loop {
                let (stream, _) = listener.accept()?;
                ::may::go!(move || echo(stream, buffer));
            }
        }
        Transport::Udp => {
            let socket: UdpSocket = adopt(socket);
            let mut buffer = vec![0; DATAGRAM];
            loop {
                let (length, peer) = socket.recv_from(&mut buffer)?;
                socket.send_to(&buffer[..length], peer)?;
            }
        }
    });
    let ended: io::Result<()> = serving.join().expect("the accepting coroutine panicked");
    Ok(ended?)
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
