//! Clients that connect, send one request, and stay idle until stdin ends: they measure what an
//! idle connection costs the server.

use std::io::{self, BufRead, Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{LoadArgs, PATIENCE, streams};
use crate::sys::{Socket, wait_readable};

/// Connects all clients, prints `holding N`, waits for the end of stdin, and disconnects.
pub(super) fn run(args: &LoadArgs) -> Result<()> {
    let pattern = args.pattern()?;
    let mut held = Vec::with_capacity(args.conns);
    for client in 0..args.conns {
        let mut socket =
            streams::connect(&args.to).with_context(|| format!("after {client} connections"))?;
        let start = pattern.start_of(client, 0);
        let message = pattern.slice(start..start + args.size as u64);
        socket.write_all(message)?;
        if receive(&mut socket, message.len())? != message {
            bail!("client {client} got other bytes than it sent");
        }
        held.push(socket);
    }
    println!("holding {}", held.len());
    io::stdout().flush()?;
    let mut line = String::new();
    while io::stdin().lock().read_line(&mut line)? > 0 {}
    Ok(())
}

fn receive(socket: &mut Socket, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut received = 0;
    while received < length {
        if !wait_readable(&*socket, PATIENCE)? {
            bail!("no answer within {} s", Duration::as_secs(&PATIENCE));
        }
        match socket.read(&mut bytes[received..])? {
            0 => bail!("the server closed the connection"),
            more => received += more,
        }
    }
    Ok(bytes)
}
