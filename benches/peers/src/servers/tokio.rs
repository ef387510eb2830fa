//! tokio: a task per connection, with a buffer of its own.

use std::io;

use ::tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use ::tokio::net::{TcpListener, UdpSocket, UnixListener};
use ::tokio::runtime::{Builder, Runtime};
use anyhow::Result;
use socket2::Socket;

use super::{DATAGRAM, announce};
use crate::endpoint::{Endpoint, Transport};

/// Which of tokio's schedulers runs the tasks.
pub(super) enum Flavor {
    CurrentThread,
    TwoWorkers,
}

pub(super) fn serve(listen: &Endpoint, buffer: usize, flavor: Flavor) -> Result<()> {
    let (socket, actual) = listen.bind()?;
    socket.set_nonblocking(true)?;
    announce(&actual)?;
    let runtime = flavor.runtime()?;
    let serving = serve_socket(socket, listen.transport(), buffer);
    match flavor {
        Flavor::CurrentThread => runtime.block_on(serving)?,
        // Accept on a worker: the thread in `block_on` is not a worker of a multi-threaded runtime,
        // so each connection would start with a transfer to another thread.
        Flavor::TwoWorkers => runtime.block_on(async { ::tokio::spawn(serving).await })??,
    }
    Ok(())
}

impl Flavor {
    fn runtime(&self) -> io::Result<Runtime> {
        match self {
            Flavor::CurrentThread => Builder::new_current_thread().enable_io().build(),
            Flavor::TwoWorkers => Builder::new_multi_thread().worker_threads(2).enable_io().build(),
        }
    }
}

async fn serve_socket(socket: Socket, transport: Transport, buffer: usize) -> io::Result<()> {
    match transport {
        Transport::Tcp => {
            let listener = TcpListener::from_std(socket.into())?;
            loop {
                let (stream, _) = listener.accept().await?;
                ::tokio::spawn(echo(stream, buffer));
            }
        }
        Transport::Unix => {
            let listener = UnixListener::from_std(socket.into())?;
            loop {
                let (stream, _) = listener.accept().await?;
                ::tokio::spawn(echo(stream, buffer));
            }
        }
        Transport::Udp => {
            let socket = UdpSocket::from_std(socket.into())?;
            let mut buffer = vec![0; DATAGRAM];
            loop {
                let (length, peer) = socket.recv_from(&mut buffer).await?;
                socket.send_to(&buffer[..length], peer).await?;
            }
        }
    }
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin, buffer: usize) -> io::Result<()> {
    let mut buffer = vec![0; buffer];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length]).await?;
    }
}
