//! The cost of single parts: decoding and encoding messages, a message's way through the loop,
//! timers, one connection among many, a message from another thread, one message to many
//! connections.
//!
//! All use the public API. Most of the time of a benchmark with sockets is spent in the kernel:
//! compare the rows of a group, which differ in one property only.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use divan::Bencher;
use divan::counter::ItemsCount;
use socketserver::{
    Context, Decoded, Delimited, Endian, FixedSize, Framing, Handler, HandlerResult,
    LengthPrefixed, Lines, Raw, Running, Sender, Server, Width, broadcast, handler_fn,
};

fn main() {
    divan::main();
}

/// Messages in one buffer, as a pipelining client sends them.
const PIPELINED: usize = 64;

/// The size of one encoded message, in bytes.
const SIZE: usize = 64;

fn line() -> [u8; SIZE] {
    let mut line = [b'x'; SIZE];
    line[SIZE - 1] = b'\n';
    line
}

fn delimited() -> [u8; SIZE] {
    let mut message = [b'x'; SIZE];
    message[SIZE - 2..].copy_from_slice(b"\r\n");
    message
}

fn prefixed() -> [u8; SIZE] {
    let mut message = [b'x'; SIZE];
    message[..2].copy_from_slice(&(SIZE as u16 - 2).to_be_bytes());
    message
}

/// One benchmark per framing, which calls `run`.
macro_rules! each_framing {
    () => {
        #[divan::bench]
        fn raw(bencher: Bencher<'_, '_>) {
            run(bencher, Raw, line());
        }

        #[divan::bench]
        fn lines(bencher: Bencher<'_, '_>) {
            run(bencher, Lines::default(), line());
        }

        #[divan::bench]
        fn delimited(bencher: Bencher<'_, '_>) {
            run(bencher, Delimited::new(*b"\r\n"), super::delimited());
        }

        #[divan::bench]
        fn length_prefixed(bencher: Bencher<'_, '_>) {
            run(bencher, LengthPrefixed::new(Width::Two, Endian::Big), prefixed());
        }

        #[divan::bench]
        fn fixed_size(bencher: Bencher<'_, '_>) {
            run(bencher, FixedSize::new(SIZE), line());
        }
    };
}

/// Decodes 64 messages of 64 bytes in one buffer; with `Raw` they are one message.
mod decode {
    use super::*;

    each_framing!();

    fn run<F: Framing>(bencher: Bencher<'_, '_>, mut framing: F, message: [u8; SIZE]) {
        let buffer = message.repeat(PIPELINED);
        bencher.counter(ItemsCount::new(PIPELINED)).bench_local(|| {
            let mut rest = divan::black_box(&buffer[..]);
            let mut bytes = 0;
            while !rest.is_empty() {
                match framing.decode(rest) {
                    Ok(Decoded::Frame { body, consumed }) => {
                        bytes += body.len();
                        rest = &rest[consumed..];
                    }
                    other => panic!("no whole message: {other:?}"),
                }
            }
            bytes
        });
    }
}

/// A server under `reactor` with a handler of this kind, and connected streams.
struct Site {
    clients: Vec<UnixStream>,
    running: Running,
}

impl Site {
    fn open<F, H>(connections: usize, framing: F, handler: fn() -> H) -> Self
    where
        F: Framing + Clone + Send + 'static,
        H: Handler + 'static,
    {
        socketserver::raise_descriptor_limit().unwrap();
        let mut server = Server::new().unwrap();
        let service = Server::without_listener().unwrap().framing(framing);
        let id = server.add(service.service(move |_peer| handler()).unwrap()).unwrap();
        let mut clients = Vec::new();
        for _ in 0..connections {
            let (client, served) = UnixStream::pair().unwrap();
            server.add_connection(id, served).unwrap();
            clients.push(client);
        }
        Site { clients, running: server.spawn().unwrap() }
    }

    fn close(self) {
        drop(self.clients);
        self.running.stop().unwrap();
    }
}

/// 64 messages to the reactor and back over one Unix stream: the loop, the framing and a handler.
mod round_trip {
    use super::*;

    each_framing!();

    struct Echo;

    impl Handler for Echo {
        fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
            cx.send(message)
        }
    }

    fn run<F>(bencher: Bencher<'_, '_>, framing: F, message: [u8; SIZE])
    where
        F: Framing + Clone + Send + 'static,
    {
        let site = Site::open(1, framing, || Echo);
        let mut client = &site.clients[0];
        let messages = message.repeat(PIPELINED);
        let mut answers = vec![0; messages.len()];
        bencher.counter(ItemsCount::new(PIPELINED)).bench_local(|| {
            client.write_all(&messages).unwrap();
            client.read_exact(&mut answers).unwrap();
        });
        site.close();
    }
}

/// A handler answers one message with 64 messages of 64 bytes: encoding them, and one write.
mod encode {
    use super::*;

    each_framing!();

    /// The answer differs from the input: equal bytes would be sent from the read buffer.
    struct Repeats;

    impl Handler for Repeats {
        fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
            let answer = [b'y'; SIZE];
            for _ in 0..PIPELINED {
                cx.send(&answer[..message.len()])?;
            }
            Ok(())
        }
    }

    fn run<F>(bencher: Bencher<'_, '_>, framing: F, message: [u8; SIZE])
    where
        F: Framing + Clone + Send + 'static,
    {
        let site = Site::open(1, framing, || Repeats);
        let mut client = &site.clients[0];
        let mut answers = vec![0; SIZE * PIPELINED];
        bencher.counter(ItemsCount::new(PIPELINED)).bench_local(|| {
            client.write_all(&message).unwrap();
            client.read_exact(&mut answers).unwrap();
        });
        site.close();
    }
}

/// One message to each of many connections and back: without a timer, with a timer, with one that
/// each message sets again or sets and cancels, and with an answer at the end of the timer.
mod timers {
    use super::*;

    const CROWDS: [usize; 2] = [64, 4000];
    const LATER: Duration = Duration::from_secs(60);

    #[divan::bench(args = CROWDS)]
    fn none(bencher: Bencher<'_, '_>, connections: usize) {
        run(bencher, connections, || Clocked(|_| Ok(())));
    }

    #[divan::bench(args = CROWDS)]
    fn set_anew(bencher: Bencher<'_, '_>, connections: usize) {
        run(bencher, connections, || Clocked(|cx| Ok(cx.set_idle_timeout(LATER)?)));
    }

    #[divan::bench(args = CROWDS)]
    fn set_and_taken_back(bencher: Bencher<'_, '_>, connections: usize) {
        run(bencher, connections, || {
            Clocked(|cx| {
                cx.set_idle_timeout(LATER)?;
                Ok(cx.set_idle_timeout(None)?)
            })
        });
    }

    #[divan::bench(args = CROWDS)]
    fn run_out_at_once(bencher: Bencher<'_, '_>, connections: usize) {
        run(bencher, connections, || RunsOut);
    }

    /// Changes its timer, and echoes.
    struct Clocked(fn(&mut Context<'_>) -> HandlerResult);

    impl Handler for Clocked {
        fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
            self.0(cx)?;
            cx.send(message)
        }
    }

    /// Sets a timer, and answers when it expires.
    struct RunsOut;

    impl Handler for RunsOut {
        fn on_message(&mut self, _: &[u8], cx: &mut Context<'_>) -> HandlerResult {
            Ok(cx.set_idle_timeout(Duration::ZERO)?)
        }

        fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
            cx.set_idle_timeout(None)?; // or it would expire again
            cx.send(&line())
        }
    }

    fn run<H: Handler + 'static>(bencher: Bencher<'_, '_>, connections: usize, handler: fn() -> H) {
        let site = Site::open(connections, Raw, handler);
        let message = line();
        let mut answer = [0; SIZE];
        bencher.counter(ItemsCount::new(connections)).bench_local(|| {
            for mut client in &site.clients {
                client.write_all(&message).unwrap();
            }
            for mut client in &site.clients {
                client.read_exact(&mut answer).unwrap();
            }
        });
        site.close();
    }
}

/// One message and its echo, on one connection among many idle ones.
mod among {
    use super::*;

    #[divan::bench(args = crowds())]
    fn idle_connections(bencher: Bencher<'_, '_>, count: usize) {
        let echo = |_: &socketserver::Accepted<'_>| {
            handler_fn(|message: &[u8], cx: &mut Context<'_>| cx.send(message))
        };
        let running = Server::tcp("127.0.0.1:0").unwrap().serve(echo).unwrap().spawn().unwrap();
        let crowd = Crowd::join(running.local_addr().to_string(), count);
        let mut client = TcpStream::connect(running.local_addr().inet().unwrap()).unwrap();
        client.set_nodelay(true).unwrap();
        let message = line();
        let mut answer = [0; SIZE];
        bencher.bench_local(|| {
            client.write_all(&message).unwrap();
            client.read_exact(&mut answer).unwrap();
        });
        drop(crowd);
        running.stop().unwrap();
    }

    /// As many as the limit of descriptors allows.
    fn crowds() -> Vec<usize> {
        const OTHERS: u64 = 100;
        let limit = socketserver::raise_descriptor_limit().unwrap();
        let all = [10, 1_000, 10_000].into_iter();
        all.filter(|count| *count as u64 + OTHERS < limit).collect()
    }

    /// Idle clients, in a separate process: one process would need two descriptors per connection.
    struct Crowd(Child);

    impl Crowd {
        fn join(url: String, count: usize) -> Self {
            let mut process = Command::new(env!("CARGO_BIN_EXE_engines"))
                .args(["load", &url, "--mode", "hold", "--conns", &count.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line.trim_end(), format!("holding {count}"));
            Crowd(process)
        }
    }

    impl Drop for Crowd {
        fn drop(&mut self) {
            drop(self.0.stdin.take()); // ends the process
            self.0.wait().unwrap();
        }
    }
}

/// Messages of another thread: the mailbox, the wake-up, and the way to the connections.
mod from_elsewhere {
    use super::*;

    /// One message to each of many connections, until the last has received it.
    #[divan::bench(args = [1, 64, 1000])]
    fn broadcast_to(bencher: Bencher<'_, '_>, connections: usize) {
        let crowd = Crowd::gather(connections);
        let message = line();
        let mut received = [0; SIZE];
        bencher.counter(ItemsCount::new(connections)).bench_local(|| {
            assert_eq!(broadcast(&crowd.senders, &message), connections);
            for mut client in &crowd.clients {
                client.read_exact(&mut received).unwrap();
            }
        });
        crowd.leave();
    }

    /// Many messages to one connection: the first wakes the loop, and the others are posted while
    /// it may already run.
    #[divan::bench(args = [1, 64])]
    fn send_to_one(bencher: Bencher<'_, '_>, messages: usize) {
        let crowd = Crowd::gather(1);
        let message = line();
        let mut received = vec![0; SIZE * messages];
        bencher.counter(ItemsCount::new(messages)).bench_local(|| {
            for _ in 0..messages {
                crowd.senders[0].send(&message).unwrap();
            }
            (&crowd.clients[0]).read_exact(&mut received).unwrap();
        });
        crowd.leave();
    }

    struct Member {
        senders: mpsc::Sender<Sender>,
    }

    impl Handler for Member {
        fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
            let _ = self.senders.send(cx.sender()?);
            Ok(())
        }

        fn on_message(&mut self, _: &[u8], _: &mut Context<'_>) -> HandlerResult {
            Ok(())
        }
    }

    struct Crowd {
        clients: Vec<UnixStream>,
        senders: Vec<Sender>,
        running: Running,
    }

    impl Crowd {
        fn gather(connections: usize) -> Self {
            socketserver::raise_descriptor_limit().unwrap();
            let (outgoing, incoming) = mpsc::channel();
            let mut server = Server::new().unwrap();
            let service = Server::without_listener().unwrap();
            let service = service.service(move |_peer| Member { senders: outgoing.clone() });
            let id = server.add(service.unwrap()).unwrap();
            let mut clients = Vec::new();
            for _ in 0..connections {
                let (client, served) = UnixStream::pair().unwrap();
                server.add_connection(id, served).unwrap();
                clients.push(client);
            }
            let running = server.spawn().unwrap();
            let timeout = Duration::from_secs(10);
            let senders =
                (0..connections).map(|_| incoming.recv_timeout(timeout).unwrap()).collect();
            Crowd { clients, senders, running }
        }

        fn leave(self) {
            drop(self.clients);
            self.running.stop().unwrap();
        }
    }
}
