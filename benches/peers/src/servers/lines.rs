//! The hello-world of each foundation: a server that sends each line back, as its documentation
//! writes such servers, with the defaults of the foundation. `attacks` attacks them.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use ::message_io::network::{NetEvent, Transport};
use ::message_io::node;
use ::tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use anyhow::{Result, bail};

use super::{Foundation, announce};
use crate::endpoint::Endpoint;

/// Runs the server of lines of this foundation.
pub(super) fn serve(foundation: Foundation, listen: &Endpoint) -> Result<()> {
    let Endpoint::Tcp(address) = listen else { bail!("servers of lines listen on TCP only") };
    match foundation {
        Foundation::StdThreads => serve_threads(*address),
        Foundation::TokioMt => serve_tokio(*address),
        Foundation::MessageIo => serve_message_io(*address),
        _ => bail!("there are servers of lines of std-threads, tokio-mt and message-io"),
    }
}

fn serve_threads(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    announce(&Endpoint::Tcp(listener.local_addr()?))?;
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || echo_lines(&stream));
    }
    Ok(())
}

fn echo_lines(mut stream: &TcpStream) -> io::Result<()> {
    let (mut reader, mut line) = (BufReader::new(stream), Vec::new());
    while reader.read_until(b'\n', &mut line)? > 0 {
        stream.write_all(&line)?;
        line.clear();
    }
    Ok(())
}

/// On the runtime of `#[tokio::main]`.
fn serve_tokio(address: SocketAddr) -> Result<()> {
    let runtime = ::tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let listener = ::tokio::net::TcpListener::bind(address).await?;
        announce(&Endpoint::Tcp(listener.local_addr()?))?;
        loop {
            let (stream, _) = listener.accept().await?;
            ::tokio::spawn(echo_lines_in_task(stream));
        }
    })
}

async fn echo_lines_in_task(mut stream: ::tokio::net::TcpStream) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let (mut reader, mut line) = (::tokio::io::BufReader::new(reader), Vec::new());
    while reader.read_until(b'\n', &mut line).await? > 0 {
        writer.write_all(&line).await?;
        line.clear();
    }
    Ok(())
}

fn serve_message_io(address: SocketAddr) -> Result<()> {
    let (handler, listener) = node::split::<()>();
    let (_, actual) = handler.network().listen(Transport::Tcp, address)?;
    announce(&Endpoint::Tcp(actual))?;
    let mut clients = HashMap::new();
    listener.for_each(move |event| match event.network() {
        NetEvent::Connected(..) => {}
        NetEvent::Accepted(client, _) => {
            clients.insert(client, Vec::new());
        }
        NetEvent::Message(client, bytes) => {
            let input = clients.entry(client).or_default();
            input.extend_from_slice(bytes);
            while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = input.drain(..=end).collect();
                handler.network().send(client, &line);
            }
        }
        NetEvent::Disconnected(client) => {
            clients.remove(&client);
        }
    });
    Ok(())
}
