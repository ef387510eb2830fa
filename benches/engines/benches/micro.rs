//! What single parts cost: telling messages apart, a message's way through the loop, a timer on it, a
//! message from another thread, one message to many connections.
//!
//! All through the public API. What has a socket in it is mostly the kernel's time: compare the rows
//! of a group, which differ in one thing alone.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

use divan::Bencher;
use divan::counter::ItemsCount;
use socketserver::{
    Context, Delimited, Endian, FixedSize, Framing, Handler, HandlerResult, LengthPrefixed, Lines,
    Raw, Running, Sender, Server, Step, Width, broadcast,
};

fn main() {
    divan::main();
}

/// Messages in one buffer, as a pipelining client sends them.
const PIPELINED: usize = 64;

/// Bytes of one message on the wire.
const SIZE: usize = 64;

fn line() -> [u8; SIZE] {
    let mut line = [b'x'; SIZE];
    line[SIZE - 1] = b'\n';
    line
}

fn prefixed() -> [u8; SIZE] {
    let mut message = [b'x'; SIZE];
    message[..2].copy_from_slice(&(SIZE as u16 - 2).to_be_bytes());
    message
}

/// 64 messages of 64 bytes in one buffer, told apart; to `Raw` they are one.
mod decode {
    use super::*;

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
        let mut message = [b'x'; SIZE];
        message[SIZE - 2..].copy_from_slice(b"\r\n");
        run(bencher, Delimited::new(*b"\r\n"), message);
    }

    #[divan::bench]
    fn length_prefixed(bencher: Bencher<'_, '_>) {
        run(bencher, LengthPrefixed::new(Width::Two, Endian::Big), prefixed());
    }

    #[divan::bench]
    fn fixed_size(bencher: Bencher<'_, '_>) {
        run(bencher, FixedSize::new(SIZE), line());
    }

    fn run<F: Framing>(bencher: Bencher<'_, '_>, mut framing: F, message: [u8; SIZE]) {
        let buffer = message.repeat(PIPELINED);
        bencher.counter(ItemsCount::new(PIPELINED)).bench_local(|| {
            let mut rest = divan::black_box(&buffer[..]);
            let mut bytes = 0;
            while !rest.is_empty() {
                match framing.decode(rest) {
                    Ok(Step::Frame { body, consumed }) => {
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

/// 64 messages to the reactor and back over one Unix stream: the loop, the framing and a handler.
mod round_trip {
    use super::*;

    #[divan::bench]
    fn raw(bencher: Bencher<'_, '_>) {
        run(bencher, Raw, line(), false);
    }

    #[divan::bench]
    fn lines(bencher: Bencher<'_, '_>) {
        run(bencher, Lines::default(), line(), false);
    }

    #[divan::bench]
    fn length_prefixed(bencher: Bencher<'_, '_>) {
        run(bencher, LengthPrefixed::new(Width::Two, Endian::Big), prefixed(), false);
    }

    #[divan::bench]
    fn lines_and_a_timer_set_for_each(bencher: Bencher<'_, '_>) {
        run(bencher, Lines::default(), line(), true);
    }

    struct Echo {
        sets_timer: bool,
    }

    impl Handler for Echo {
        fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
            if self.sets_timer {
                cx.set_timeout(Duration::from_secs(60))?;
            }
            cx.send(message)
        }
    }

    fn run<F>(bencher: Bencher<'_, '_>, framing: F, message: [u8; SIZE], sets_timer: bool)
    where
        F: Framing + Clone + Send + 'static,
    {
        let (client, served) = UnixStream::pair().unwrap();
        let mut server = Server::new().unwrap();
        let service = Server::detached().unwrap().framing(framing);
        let service = service.service(move |_peer| Echo { sets_timer }).unwrap();
        let id = server.add(service).unwrap();
        server.hand_over(id, served).unwrap();
        let running = server.spawn().unwrap();
        let messages = message.repeat(PIPELINED);
        let mut answers = vec![0; messages.len()];
        bencher.counter(ItemsCount::new(PIPELINED)).bench_local(|| {
            (&client).write_all(&messages).unwrap();
            (&client).read_exact(&mut answers).unwrap();
        });
        drop(client);
        running.stop().unwrap();
    }
}

/// Messages that another thread sends: the mailbox, the wake-up, and the walk to the connections.
mod from_elsewhere {
    use super::*;

    /// One message to each of so many connections, until the last has it.
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

    /// 64 messages to one connection, posted while the loop may be awake already.
    #[divan::bench]
    fn send_64_to_one(bencher: Bencher<'_, '_>) {
        let crowd = Crowd::gather(1);
        let message = line();
        let mut received = [0; SIZE * PIPELINED];
        bencher.counter(ItemsCount::new(PIPELINED)).bench_local(|| {
            for _ in 0..PIPELINED {
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
            let service = Server::detached().unwrap();
            let service = service.service(move |_peer| Member { senders: outgoing.clone() });
            let id = server.add(service.unwrap()).unwrap();
            let mut clients = Vec::new();
            for _ in 0..connections {
                let (client, served) = UnixStream::pair().unwrap();
                server.hand_over(id, served).unwrap();
                clients.push(client);
            }
            let running = server.spawn().unwrap();
            let patience = Duration::from_secs(10);
            let senders =
                (0..connections).map(|_| incoming.recv_timeout(patience).unwrap()).collect();
            Crowd { clients, senders, running }
        }

        fn leave(self) {
            drop(self.clients);
            self.running.stop().unwrap();
        }
    }
}
