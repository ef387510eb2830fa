//! TCP carries bytes, not messages: two messages that were sent apart may be read as one. The
//! program shows this first, and then how each framing separates them.
//!
//! It needs no arguments and ends by itself.

mod common;

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use socketserver::{Delimited, FixedSize, Framing, LengthPrefixed, Lines, Raw, Server, handler_fn};

/// Sends two messages to a server that does not yet read, waits for `stick` so that both arrive,
/// lets the server serve the connection, and returns the messages that its handler got.
fn exchange<F>(
    framing: F,
    sent: [&[u8]; 2],
    stick: Duration,
) -> Result<Vec<Vec<u8>>, Box<dyn Error>>
where
    F: Framing + Clone + Send + 'static,
{
    let (read, messages) = mpsc::channel();
    let mut server = Server::tcp("127.0.0.1:0")?.framing(framing).serve(move |_| {
        let read = read.clone();
        handler_fn(move |message, _cx| Ok(read.send(message.to_vec())?))
    })?;
    let address = server.local_addr().inet().expect("a TCP address");
    let mut client = TcpStream::connect(address)?;
    client.set_nodelay(true)?; // Nagle's algorithm is not the cause
    for message in sent {
        client.write_all(message)?;
    }
    client.shutdown(std::net::Shutdown::Write)?;
    thread::sleep(stick);
    server.request_timeout(Duration::from_secs(10));
    server.handle_request()?; // serves this one connection to its end
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    client.read_to_end(&mut Vec::new())?;
    Ok(messages.try_iter().collect())
}

fn show(what: &str, sent: [&[u8]; 2], read: &[Vec<u8>]) {
    let quoted = |message: &[u8]| format!("\"{}\"", message.escape_ascii());
    let sent = sent.map(quoted).join(" and ");
    let read: Vec<_> = read.iter().map(|message| quoted(message)).collect();
    println!("{what:<17}sent {sent}\n{:17}read {}\n", "", read.join(" and "));
}

fn main() -> Result<(), Box<dyn Error>> {
    common::no_options(
        "sticky",
        "Shows two messages that arrive as one, and framings that separate them.",
    );

    // On a busy machine the second message may arrive later and is read alone. Then try again and
    // wait longer.
    let plain: [&[u8]; 2] = [b"first", b"second"];
    let stuck = (0..10)
        .map(|attempt| exchange(Raw, plain, Duration::from_millis(20 * attempt)))
        .find(|read| read.as_ref().map_or(true, |read| read.len() == 1))
        .ok_or("the two messages were not read as one in ten attempts")??;
    show("no framing", plain, &stuck);

    let now = Duration::ZERO;
    let lines: [&[u8]; 2] = [b"first\n", b"second\n"];
    show("lines", lines, &exchange(Lines::default(), lines, now)?);
    let delimited: [&[u8]; 2] = [b"first\r\n.\r\n", b"second\r\n.\r\n"];
    show("a delimiter", delimited, &exchange(Delimited::new("\r\n.\r\n"), delimited, now)?);
    let prefixed: [&[u8]; 2] = [b"\0\0\0\x05first", b"\0\0\0\x06second"];
    show("a length first", prefixed, &exchange(LengthPrefixed::default(), prefixed, now)?);
    let fixed: [&[u8]; 2] = [b"first ", b"second"];
    show("a fixed size", fixed, &exchange(FixedSize::new(6), fixed, now)?);
    Ok(())
}
