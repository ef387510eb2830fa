//! One slow client beside three quick ones, under every mode: which clients wait, and how long?
//!
//! It needs no arguments and ends by itself. Each mode's server is a process of its own: this
//! program again, started with `--serve MODE`.

mod common;

use std::env::{args, current_exe};
use std::error::Error;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::parent_id;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use socketserver::{Hooks, Lines, Mode, Server, ShutdownHandle, handler_fn};

/// The slow client sends this line one byte at a time, with a pause of `PAUSE` after each.
const SLOW_LINE: &[u8] = b"01234567\n";
const PAUSE: Duration = Duration::from_millis(40);

/// The time-out of a client's connect and of each of its reads.
const PATIENCE: Duration = Duration::from_secs(5);

/// The server of one mode: it sends each line back.
fn serve(mode: Mode) -> Result<(), socketserver::Error> {
    let mut server = Server::new()?;
    let orphaned = StopWhenOrphaned { parent: parent_id(), server: server.shutdown_handle() };
    server.add(
        Server::tcp("127.0.0.1:0")?
            .framing(Lines::default())
            .mode(mode)
            .hooks(orphaned)
            .service(|_| handler_fn(|line, cx| cx.send(line)))?,
    )?;
    common::run(server)
}

/// Stops the server when the process that started it has ended.
struct StopWhenOrphaned {
    parent: u32,
    server: ShutdownHandle,
}

impl Hooks for StopWhenOrphaned {
    fn wants_service_actions(&self) -> bool {
        true
    }

    fn service_actions(&mut self) {
        if parent_id() != self.parent {
            self.server.shutdown();
        }
    }
}

/// A server in a process of its own; dropping this kills the process.
struct Serving {
    process: Child,
    address: SocketAddr,
}

impl Serving {
    fn start(mode: Mode) -> Result<Self, Box<dyn Error>> {
        let mut process = Command::new(current_exe()?)
            .args(["--serve", mode.name()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("it is piped")).read_line(&mut line)?;
        let address = line.trim().rsplit('/').next().unwrap_or_default().parse()?;
        Ok(Serving { process, address })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends a line in pieces, with a pause after each, waits until the line comes back, and returns
/// how long all this took. `begun` is called when the first piece has been written.
fn talk(
    address: SocketAddr,
    pieces: impl IntoIterator<Item = &'static [u8]>,
    pause: Duration,
    begun: impl FnOnce(),
) -> io::Result<Duration> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut begun = Some(begun);
    for piece in pieces {
        stream.write_all(piece)?;
        if let Some(begun) = begun.take() {
            begun();
        }
        thread::sleep(pause);
    }
    BufReader::new(stream).read_line(&mut String::new())?;
    Ok(start.elapsed())
}

/// How long the slow client and each of the quick ones took under `mode`.
fn measure(mode: Mode) -> Result<[io::Result<Duration>; 4], Box<dyn Error>> {
    let serving = Serving::start(mode)?;
    let address = serving.address;
    Ok(thread::scope(|scope| {
        let (begun, has_begun) = std::sync::mpsc::channel();
        let slow = scope.spawn(move || {
            talk(address, SLOW_LINE.chunks(1), PAUSE, || {
                let _ = begun.send(());
            })
        });
        // An error means that the slow client has failed; its own result says so, too.
        let _ = has_begun.recv();
        let quick = [(); 3]
            .map(|()| scope.spawn(move || talk(address, [&b"hello\n"[..]], Duration::ZERO, || ())));
        let [one, two, three] = quick;
        [slow, one, two, three].map(|client| client.join().expect("a client does not panic"))
    }))
}

fn main() -> Result<(), Box<dyn Error>> {
    if let Some(mode) = args().skip_while(|argument| argument != "--serve").nth(1) {
        return Ok(serve(mode.parse()?)?);
    }
    common::no_options(
        "slow_client",
        "Measures which clients wait for a slow one, under each mode.",
    );

    println!("time until the answer, in milliseconds\n");
    println!("{:<10}{:>10}{:>10}{:>10}{:>14}", "mode", "quick 1", "quick 2", "quick 3", "slow");
    let start = Instant::now();
    for mode in Mode::all() {
        if start.elapsed() > 2 * PATIENCE {
            println!("{mode:<10}  no time left: this machine is too busy");
            continue;
        }
        let [slow, one, two, three] = measure(mode)?.map(|took| match took {
            Ok(took) => format!("{:.1}", took.as_secs_f64() * 1e3),
            Err(error) => error.kind().to_string(),
        });
        println!("{:<10}{one:>10}{two:>10}{three:>10}{slow:>14}", mode.name());
    }
    println!("\nUnder inline all clients wait for the slow one; under the other modes none does.");
    Ok(())
}
