//! The hello-world of `socketserver` that `attacks` attacks: it sends each line, or each message with
//! a length prefix, back. Every limit has its default.
//!
//! Around the ten lines of [`serve`] it reports on stderr, when it ends, what the server has counted
//! and the most memory that its connections have held.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use socketserver::{
    Context, Endpoint, Error, Framing, LengthPrefixed, Lines, Mode, Server, ShutdownHandle,
    handler_fn,
};

/// How often the memory is looked at.
const SAMPLE: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (Some(mode), [url, _, framing @ ("lines" | "length")]) =
        (words.get(1).and_then(|mode| mode.parse().ok()), &words[..])
    else {
        eprintln!("usage: hello URL MODE lines|length");
        return ExitCode::from(2);
    };
    let result = match *framing {
        "lines" => serve(url, mode, Lines::default()),
        _ => serve(url, mode, LengthPrefixed::default()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve<F>(url: &str, mode: Mode, framing: F) -> Result<(), Error>
where
    F: Framing + Clone + Send + Sync + 'static,
{
    let listen: Endpoint = url.parse()?;
    let echo = |_: &socketserver::Accepted<'_>| {
        handler_fn(|message: &[u8], cx: &mut Context<'_>| cx.send(message))
    };
    let mut server = Server::endpoint(&listen)?.framing(framing).mode(mode).serve(echo)?;
    server.stop_on_signals()?;
    println!("listening on {}", server.local_addr());
    let handle = server.shutdown_handle();
    thread::spawn(move || report_memory(&handle));
    server.serve_forever()?;
    eprintln!("counters {}", server.counters());
    Ok(())
}

/// Reports each new maximum of the memory that the connections hold.
fn report_memory(server: &ShutdownHandle) {
    let mut most = 0;
    loop {
        let held = server.counters().memory_held;
        if held > most {
            most = held;
            eprintln!("memory_held {most}");
        }
        thread::sleep(SAMPLE);
    }
}
