//! A server in a background thread, its clients in the same program, and a graceful stop.
//!
//! It needs no arguments and ends by itself.

mod common;

use std::error::Error;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use socketserver::{Lines, Server, Threading, handler_fn};

/// Connects, sends one line, and returns the line of the answer.
fn ask(address: SocketAddr, question: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    writeln!(stream, "{question}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}

fn main() -> Result<(), Box<dyn Error>> {
    common::no_options("background", "A server and its clients in one program.");

    let running = Server::tcp("127.0.0.1:0")?
        .framing(Lines::default())
        .mode(Threading::default())
        .serve(|_| handler_fn(|line, cx| cx.send(&line.to_ascii_uppercase())))?
        .spawn()?;
    let address = running.local_addr().inet().expect("a TCP address");
    println!("the server runs in the background");

    let clients = ["one", "two", "three"]
        .map(|name| thread::spawn(move || ask(address, &format!("hello from client {name}"))));
    for client in clients {
        println!("answered: {}", client.join().expect("a client does not panic")?);
    }

    let (server, _report) = running.stop()?;
    println!("the server has stopped after {} connections", server.counters().accepted);
    Ok(())
}
