//! The queue of replies of a datagram socket.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::source::{LoopCx, Readiness};
use crate::conversation::Scratch;
use crate::counters::Tally;
use crate::datagram::{RETRY, ReplyMeter, RetryQueues, charge, warn_of_full_send_buffer};
use crate::guard::log;
use crate::sys::{self, Destination, Transmit};
use crate::transport::peer_of;

/// How long a UDP socket's send buffer may stay full before the queued replies are dropped.
const STALL: Duration = Duration::from_secs(5);

/// The queued replies of a datagram socket, in order.
#[derive(Debug)]
pub(super) struct Replies {
    /// The bytes of the replies, one after the other. The bytes of sent replies are dropped when
    /// the queue is empty, or when they are more than those of the queued replies.
    bytes: Vec<u8>,
    waiting: VecDeque<Reply>,
    /// How many bytes the queue counts, without the replies in `retries`.
    pending: usize,
    /// Whether the kernel splits one send into several datagrams (GSO).
    gso: bool,
    /// How many of the first replies are sent one by one, because the kernel has refused them as
    /// one send.
    unjoined: usize,
    /// The deadline of replies that wait for room in the socket's send buffer: they are tried once
    /// more, then dropped.
    pub(super) stalled_until: Option<Instant>,
    /// Replies to Unix peers whose queues are full.
    retries: RetryQueues,
    /// When the replies in `retries` are tried again; the poller does not report these peers.
    pub(super) retry_at: Option<Instant>,
}

#[derive(Debug)]
struct Reply {
    to: Destination,
    range: Range<usize>,
}

/// The limits of one GSO send: the number of datagrams, and a datagram size that passes every IPv6
/// path.
const GSO_MAX_SEGMENTS: usize = 64;
const GSO_MAX_SEGMENT_SIZE: usize = 1232;
const GSO_MAX_BYTES: usize = 65_000;

/// How many bytes of replies may be queued; above it nothing is received.
pub(super) const REPLIES_HIGH: usize = 4 << 20;

impl Replies {
    pub(super) fn new(gso: bool) -> Self {
        Replies {
            bytes: Vec::new(),
            waiting: VecDeque::new(),
            pending: 0,
            gso,
            unjoined: 0,
            stalled_until: None,
            retries: RetryQueues::default(),
            retry_at: None,
        }
    }

    /// How many replies are queued.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.retries.len()
    }

    /// How many bytes the queued replies count.
    pub(super) fn charge(&self) -> usize {
        self.pending + self.retries.charge()
    }

    /// Queues the replies of a handler to a datagram from `peer`.
    pub(super) fn keep(
        &mut self,
        scratch: &mut Scratch,
        input: &[u8],
        peer: Destination,
        mut meter: ReplyMeter,
        now: Instant,
    ) {
        let Scratch { output_buffer, tally, .. } = scratch;
        for (part, to) in output_buffer.datagrams(input, &peer) {
            if to.address == peer.address && !meter.admits(part.len(), tally) {
                continue;
            }
            // The datagrams to one peer keep their order.
            if self.retries.has(&to.address) {
                self.retries.put(to.clone(), part.into(), now, tally);
            } else {
                self.pending += charge(part.len());
                let start = self.bytes.len();
                self.bytes.extend_from_slice(part);
                let range = start..self.bytes.len();
                self.waiting.push_back(Reply { to: to.clone(), range });
            }
        }
        output_buffer.clear();
    }

    /// Sends as much as the kernel takes. A reply that the kernel refuses because of its peer is
    /// counted and dropped. A reply for which the kernel has no room stays queued.
    pub(super) fn send(&mut self, socket: &Socket, cx: &mut LoopCx) {
        while let Some(first) = self.waiting.front()
            && cx.call.readiness.has(Readiness::WRITABLE)
        {
            // It must not overtake earlier replies to this peer.
            if self.retries.has(&first.to.address) {
                self.put_aside_first(cx);
                continue;
            }
            match sys::send_batch(socket, GsoBatches { replies: self, next: 0 }) {
                Ok(sent) => self.remove_sent(sent, &mut cx.scratch.tally),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.no_room(&error, cx),
                Err(error) if self.gso_run(0) > 1 => self.stop_joining(&error),
                Err(error) => self.drop_first(&error, &mut cx.scratch.tally),
            }
        }
        self.drop_sent_bytes();
    }

    /// The kernel has refused several replies as one GSO send: they are sent one by one. Mostly the
    /// cause is only this peer: its address cannot be sent to, or the path takes only small
    /// packets. Replies to other peers still use GSO. If the device or the route does not support
    /// GSO, it is switched off.
    fn stop_joining(&mut self, error: &io::Error) {
        self.unjoined = self.gso_run(0);
        if matches!(error.raw_os_error(), Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT)) {
            log::debug!("GSO is switched off for replies: {error}");
            self.gso = false;
        }
    }

    /// Drops the bytes of sent replies as soon as they are the larger part.
    fn drop_sent_bytes(&mut self) {
        let Some(first) = self.waiting.front() else {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT);
            self.waiting.shrink_to(KEPT_REPLIES);
            return;
        };
        let gone = first.range.start;
        if gone > KEPT && gone > self.bytes.len() / 2 {
            self.bytes.drain(..gone);
            for Reply { range, .. } in &mut self.waiting {
                *range = range.start - gone..range.end - gone;
            }
        }
    }

    /// How many replies from `first` on can be one GSO send: they have the same peer and the same
    /// size; only the last may be smaller.
    fn gso_run(&self, first: usize) -> usize {
        let reply = &self.waiting[first];
        let size = reply.range.len();
        if !self.gso || first < self.unjoined || size == 0 || size > GSO_MAX_SEGMENT_SIZE {
            return 1;
        }
        let most = GSO_MAX_SEGMENTS.min(GSO_MAX_BYTES / size);
        let mut count = 1;
        while count < most
            && let Some(next) = self.waiting.get(first + count)
            && (1..=size).contains(&next.range.len())
            && next.range.start == self.waiting[first + count - 1].range.end
            && next.to == reply.to
        {
            count += 1;
            if next.range.len() < size {
                break;
            }
        }
        count
    }

    /// Removes the replies of the first `sends` sends.
    fn remove_sent(&mut self, sends: usize, tally: &mut Tally) {
        self.stalled_until = None;
        for _ in 0..sends {
            let run = self.gso_run(0);
            self.unjoined = self.unjoined.saturating_sub(run);
            self.retries.unresponsive.record_sent(&self.waiting[0].to.address);
            for reply in self.waiting.drain(..run) {
                self.pending -= charge(reply.range.len());
                tally.replies += 1;
                tally.bytes_out += reply.range.len() as u64;
            }
        }
    }

    fn drop_first(&mut self, error: &io::Error, tally: &mut Tally) {
        if let Some(reply) = self.waiting.pop_front() {
            self.unjoined = self.unjoined.saturating_sub(1);
            self.pending -= charge(reply.range.len());
            tally.unsent += 1;
            log::debug!("a reply to {} was not sent: {error}", peer_of(&reply.to.address));
        }
    }

    /// The kernel has no room. For a UDP socket its own send buffer is full, and the poller reports
    /// room. For a Unix socket it is mostly the peer's queue: the reply is queued for a retry, and
    /// other peers are served.
    fn no_room(&mut self, error: &io::Error, cx: &mut LoopCx) {
        let Some(reply) = self.waiting.front().filter(|reply| reply.to.address.is_unix()) else {
            if self.stalled_until.is_none() {
                self.stalled_until = Some(cx.turn.now + STALL);
                cx.deadline_changed();
            }
            return cx.call.readiness.remove(Readiness::WRITABLE);
        };
        if self.retries.unresponsive.wait_budget(&reply.to.address, cx.turn.now).is_zero() {
            return self.drop_first(error, &mut cx.scratch.tally);
        }
        self.put_aside_first(cx);
        if self.retry_at.is_none() {
            self.retry_at = Some(cx.turn.now + RETRY);
            cx.deadline_changed();
        }
    }

    /// Moves the first queued reply to the retries.
    fn put_aside_first(&mut self, cx: &mut LoopCx) {
        if let Some(Reply { to, range }) = self.waiting.pop_front() {
            self.pending -= charge(range.len());
            let now = cx.turn.now;
            self.retries.put(to, self.bytes[range].into(), now, &mut cx.scratch.tally);
        }
    }

    /// Retries the replies in `retries`. `sender_retry` is the interval after which datagrams of
    /// other senders are retried.
    pub(super) fn retry(
        &mut self,
        socket: &Socket,
        sender_retry: Option<Duration>,
        cx: &mut LoopCx,
    ) {
        self.retries.retry(socket, cx.turn.now, &mut cx.scratch.tally);
        if self.retries.unresponsive.take_warning() {
            warn_of_full_send_buffer();
        }
        self.retry_at =
            self.retries.interval().max(sender_retry).map(|interval| cx.turn.now + interval);
        cx.deadline_changed();
    }

    /// The socket's send buffer has been full for [`STALL`]: tries once more, and drops the queued
    /// replies if none of them can be sent.
    pub(super) fn retry_or_drop(&mut self, socket: &Socket, cx: &mut LoopCx) {
        let before = self.waiting.len();
        self.stalled_until = None;
        cx.deadline_changed();
        cx.call.readiness.add(Readiness::WRITABLE);
        self.send(socket, cx);
        if !self.waiting.is_empty() && self.waiting.len() == before {
            log::debug!("{before} replies were dropped: the send buffer stays full");
            self.drop_waiting(&mut cx.scratch.tally);
            self.drop_sent_bytes();
        }
    }

    fn drop_waiting(&mut self, tally: &mut Tally) {
        tally.unsent += self.waiting.len() as u64;
        self.waiting.clear();
        (self.pending, self.unjoined, self.stalled_until) = (0, 0, None);
    }

    /// Drops all replies at the end of a run.
    pub(super) fn drop_all(&mut self, tally: &mut Tally) {
        self.drop_waiting(tally);
        self.retries.give_up(tally);
    }
}

/// The capacity that is kept after a large batch, in bytes.
const KEPT: usize = 1 << 20;

/// The capacity of the queue that is kept when it is empty, in replies.
const KEPT_REPLIES: usize = 4096;

/// Iterates over the queued replies as sends.
struct GsoBatches<'a> {
    replies: &'a Replies,
    next: usize,
}

impl<'a> Iterator for GsoBatches<'a> {
    type Item = Transmit<'a>;

    fn next(&mut self) -> Option<Transmit<'a>> {
        let waiting = self.replies.waiting.get(self.next);
        let first = waiting.filter(|first| !self.replies.retries.has(&first.to.address))?;
        let run = self.replies.gso_run(self.next);
        let last = &self.replies.waiting[self.next + run - 1];
        self.next += run;
        Some(Transmit {
            to: &first.to,
            bytes: &self.replies.bytes[first.range.start..last.range.end],
            segment: (run > 1).then_some(first.range.len() as u16),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixDatagram;
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::conversation::Output;
    use crate::datagram::{OVERHEAD, RETRY_HIGH, SEND_TIMEOUT};
    use crate::server_state::ServerState;
    use crate::sys::Batch;

    fn no_limit() -> ReplyMeter {
        ReplyMeter::new(usize::MAX, None)
    }

    /// A socket with two clients, and the destinations of their replies.
    struct Fixture {
        socket: Socket,
        clients: [UnixDatagram; 2],
        to: [Destination; 2],
        cx: LoopCx,
        replies: Replies,
        directory: PathBuf,
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.directory).unwrap();
        }
    }

    fn fixture(name: &str) -> Fixture {
        let directory = std::env::temp_dir().join(format!("fixture-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let server = UnixDatagram::bind(directory.join("server")).unwrap();
        server.set_nonblocking(true).unwrap();
        let clients = ["one", "two"].map(|name| {
            let client = UnixDatagram::bind(directory.join(name)).unwrap();
            client.set_nonblocking(true).unwrap();
            client.send_to(b"hello", directory.join("server")).unwrap();
            client
        });
        let socket = Socket::from(std::os::fd::OwnedFd::from(server));
        let (mut batch, mut received) = (Batch::new(&socket, 100), Vec::new());
        batch.receive(&socket, 2, &mut received).unwrap();
        let to = [received.remove(0).from, received.remove(0).from];
        let run = Arc::new(ServerState::new().unwrap()).begin();
        let mut cx = LoopCx::new(run.stop_requester().clone());
        cx.call.readiness.add(Readiness::WRITABLE);
        Fixture { socket, clients, to, cx, replies: Replies::new(false), directory }
    }

    impl Fixture {
        fn keep(&mut self, client: usize, bytes: &[u8]) {
            let LoopCx { scratch, turn, .. } = &mut self.cx;
            Output::new(&[], &mut scratch.output_buffer).put_datagram(bytes);
            self.replies.keep(scratch, &[], self.to[client].clone(), no_limit(), turn.now);
        }

        fn send(&mut self) {
            self.replies.send(&self.socket, &mut self.cx);
        }

        fn retry(&mut self) {
            self.replies.retry(&self.socket, None, &mut self.cx);
        }

        /// Fills the first client's queue until one reply waits.
        fn fill(&mut self) {
            while self.replies.retries.is_empty() {
                self.keep(0, b"unread");
                self.send();
            }
        }

        fn received(&self, client: usize) -> Vec<Vec<u8>> {
            let mut buffer = [0; 100];
            let mut received = Vec::new();
            while let Ok(count) = self.clients[client].recv(&mut buffer) {
                received.push(buffer[..count].to_vec());
            }
            received
        }
    }

    #[test]
    fn the_number_of_queued_retries_is_bounded_for_empty_datagrams_too() {
        let mut fixture = fixture("bounded");
        fixture.fill();
        for _ in 0..3 * RETRY_HIGH / OVERHEAD {
            fixture.keep(0, b"");
        }
        let retries = fixture.replies.retries.len();
        assert!(retries <= RETRY_HIGH / OVERHEAD, "{retries} replies");
        assert_eq!(
            fixture.cx.scratch.tally.unsent as usize,
            3 * RETRY_HIGH / OVERHEAD + 1 - retries
        );
        assert!(fixture.replies.charge() <= RETRY_HIGH + OVERHEAD);
        fixture.cx.turn.now += SEND_TIMEOUT;
        fixture.retry();
        assert_eq!((fixture.replies.charge(), fixture.replies.retries.len()), (0, 0));
    }

    #[test]
    fn the_replies_to_one_peer_keep_their_order_and_do_not_delay_others() {
        let mut fixture = fixture("order");
        fixture.fill();
        // The queue has just become full: several replies wait for one client, and one for the
        // other.
        fixture.replies.retries = RetryQueues::default();
        fixture.keep(0, b"first");
        fixture.keep(1, b"for another");
        fixture.keep(0, b"second");
        fixture.send();
        assert_eq!(fixture.received(1), [b"for another"]);
        fixture.keep(0, b"third");
        fixture.send();
        assert!(fixture.received(0).iter().all(|each| each == b"unread"));
        fixture.retry();
        assert_eq!(fixture.received(0), [&b"first"[..], b"second", b"third"]);
        assert_eq!(fixture.replies.charge(), 0);
    }

    #[test]
    fn a_reply_is_delivered_once_an_unresponsive_peer_reads_again() {
        let mut fixture = fixture("again");
        fixture.fill();
        fixture.cx.turn.now += SEND_TIMEOUT;
        fixture.retry();
        assert_eq!(fixture.cx.scratch.tally.unsent, 1);
        fixture.keep(0, b"lost at once");
        fixture.send();
        assert_eq!((fixture.cx.scratch.tally.unsent, fixture.replies.charge() as u64), (2, 0));
        fixture.received(0);
        fixture.keep(0, b"heard");
        fixture.send();
        assert_eq!(fixture.received(0), [b"heard"]);
        fixture.fill();
        assert_eq!(fixture.cx.scratch.tally.unsent, 2, "the peer is waited for again");
    }

    /// A socket whose send buffer stays full until its peer reads: a TCP connection, which ignores
    /// the destination of a reply.
    struct FullSocket {
        socket: Socket,
        peer: TcpStream,
        to: Destination,
        cx: LoopCx,
        replies: Replies,
    }

    fn full_socket() -> FullSocket {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // A buffer of fixed size does not grow, so that the kernel takes less than the tests send.
        socket2::SockRef::from(&listener).set_recv_buffer_size(64 << 10).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        socket2::SockRef::from(&client).set_send_buffer_size(256 << 10).unwrap();
        client.set_nonblocking(true).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let run = Arc::new(ServerState::new().unwrap()).begin();
        let mut cx = LoopCx::new(run.stop_requester().clone());
        cx.call.readiness.add(Readiness::WRITABLE);
        let (_, _, to) = udp();
        FullSocket { socket: Socket::from(client), peer, to, cx, replies: Replies::new(false) }
    }

    impl FullSocket {
        fn keep(&mut self, bytes: &[u8]) {
            let LoopCx { scratch, turn, .. } = &mut self.cx;
            Output::new(&[], &mut scratch.output_buffer).put_datagram(bytes);
            self.replies.keep(scratch, &[], self.to.clone(), no_limit(), turn.now);
        }

        fn send(&mut self) {
            self.cx.call.readiness.add(Readiness::WRITABLE);
            self.replies.send(&self.socket, &mut self.cx);
        }
    }

    /// A UDP socket, a client of it, and the destination of the client's replies.
    fn udp() -> (Socket, UdpSocket, Destination) {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.send_to(b"hello", server.local_addr().unwrap()).unwrap();
        let socket = Socket::from(server);
        let (mut batch, mut received) = (Batch::new(&socket, 100), Vec::new());
        while batch.receive(&socket, 1, &mut received).is_err() {}
        (socket, client, received.remove(0).from)
    }

    #[test]
    fn sent_replies_take_no_memory_while_others_wait() {
        let mut full_socket = full_socket();
        let mut read = vec![0; 256 << 10];
        let mut largest = 0;
        // Several times the high mark; replies are queued all the time.
        for _ in 0..32 << 20 >> 18 {
            while full_socket.replies.charge() < REPLIES_HIGH {
                full_socket.keep(&[b'x'; 1200]);
            }
            full_socket.send();
            assert!(!full_socket.replies.waiting.is_empty());
            largest = largest.max(full_socket.replies.bytes.capacity());
            full_socket.peer.read_exact(&mut read).unwrap();
        }
        assert!(largest <= 4 * REPLIES_HIGH, "{largest} bytes for the queued replies");
    }

    #[test]
    fn a_waiting_reply_is_unchanged_after_earlier_ones_are_removed() {
        let mut full_socket = full_socket();
        for number in 0..2000 {
            full_socket.keep(&[number as u8; 1000]);
        }
        full_socket.replies.remove_sent(1500, &mut full_socket.cx.scratch.tally);
        full_socket.replies.drop_sent_bytes();
        assert_eq!(full_socket.replies.bytes.len(), 500 * 1000);
        for (number, send) in
            (1500..2000).zip(GsoBatches { replies: &full_socket.replies, next: 0 })
        {
            assert_eq!(send.bytes, [number as u8; 1000]);
        }
    }

    #[test]
    fn replies_are_dropped_and_counted_when_the_send_buffer_stays_full() {
        let mut full_socket = full_socket();
        while full_socket.replies.waiting.is_empty() {
            full_socket.keep(&[b'x'; 1200]);
            full_socket.send();
        }
        full_socket.keep(b"one more");
        assert_eq!(full_socket.replies.stalled_until, Some(full_socket.cx.turn.now + STALL));
        let mut read = vec![0; 8 << 20];
        full_socket.peer.set_nonblocking(true).unwrap();
        // Some replies can be sent: the others stay queued.
        while full_socket.replies.waiting.len() == 2 {
            let _ = full_socket.peer.read(&mut read);
            full_socket.replies.retry_or_drop(&full_socket.socket, &mut full_socket.cx);
        }
        assert_eq!(full_socket.cx.scratch.tally.unsent, 0);
        while full_socket.replies.waiting.len() < 3 {
            full_socket.keep(&[b'x'; 1200]);
            full_socket.send();
        }
        full_socket.replies.retry_or_drop(&full_socket.socket, &mut full_socket.cx);
        assert_eq!((full_socket.cx.scratch.tally.unsent, full_socket.replies.charge()), (3, 0));
        assert_eq!(full_socket.replies.stalled_until, None);
    }

    #[test]
    fn datagrams_to_another_peer_are_joined_as_the_replies_are() {
        let ((socket, _client, to), (_, other, elsewhere)) = (udp(), udp());
        let mut replies = Replies::new(true);
        let run = Arc::new(ServerState::new().unwrap()).begin();
        let mut cx = LoopCx::new(run.stop_requester().clone());
        cx.call.readiness.add(Readiness::WRITABLE);
        let mut output = Output::new(&[], &mut cx.scratch.output_buffer);
        output.put_datagram(b"reply");
        for _ in 0..3 {
            output.put_datagram_to(elsewhere.clone(), b"other");
        }
        output.put_datagram_to(to.clone(), b"again");
        output.put_datagram(b"reply");
        replies.keep(&mut cx.scratch, &[], to, no_limit(), cx.turn.now);
        assert_eq!([0, 1, 4].map(|first| replies.gso_run(first)), [1, 3, 2]);
        assert!(cx.scratch.output_buffer.is_empty());
        replies.gso = sys::supports_gso(&socket);
        replies.send(&socket, &mut cx);
        let tally = &cx.scratch.tally;
        assert_eq!((tally.replies, tally.unsent), (6, 0));
        for _ in 0..3 {
            assert_eq!(other.recv(&mut [0; 10]).unwrap(), 5);
        }
    }

    #[test]
    fn a_peer_that_cannot_be_sent_to_does_not_disable_batching_for_others() {
        let (socket, client, to) = udp();
        let mut nowhere = to.clone();
        nowhere.address = SocketAddr::from(([127, 0, 0, 1], 0)).into();
        let gso = sys::supports_gso(&socket);
        let mut replies = Replies::new(gso);
        let run = Arc::new(ServerState::new().unwrap()).begin();
        let mut cx = LoopCx::new(run.stop_requester().clone());
        cx.call.readiness.add(Readiness::WRITABLE);
        for _ in 0..2 {
            for to in [&nowhere, &to] {
                for _ in 0..3 {
                    Output::new(&[], &mut cx.scratch.output_buffer).put_datagram(b"reply");
                }
                replies.keep(&mut cx.scratch, &[], to.clone(), no_limit(), cx.turn.now);
            }
            replies.send(&socket, &mut cx);
        }
        assert_eq!((cx.scratch.tally.replies, cx.scratch.tally.unsent), (6, 6));
        for _ in 0..6 {
            assert_eq!(client.recv(&mut [0; 10]).unwrap(), 5);
        }
        assert_eq!((replies.gso, replies.unjoined), (gso, 0));
        let refused = io::Error::from_raw_os_error(libc::EIO);
        Output::new(&[], &mut cx.scratch.output_buffer).put_datagram(b"a device that cannot do it");
        replies.keep(&mut cx.scratch, &[], to, no_limit(), cx.turn.now);
        replies.stop_joining(&refused);
        assert!(!replies.gso);
    }
}
