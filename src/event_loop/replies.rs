//! The replies of a datagram socket that wait to be sent.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::source::{LoopCx, Readiness};
use crate::conversation::Scratch;
use crate::counters::Tally;
use crate::datagram::{RETRY, RetryQueues, charge, warn_of_full_send_buffer};
use crate::guard::log;
use crate::sys::{self, Destination, Transmit};
use crate::transport::peer_of;

/// How long replies wait for room in a UDP socket's own send buffer in which not one of them can be
/// sent; then they are lost.
const STALL: Duration = Duration::from_secs(5);

/// Replies on their way out, in order.
#[derive(Debug)]
pub(super) struct Replies {
    /// Their bytes, one after the other. Those of replies that have gone are dropped when nothing
    /// waits any more, or when they are more than those of replies that wait.
    bytes: Vec<u8>,
    waiting: VecDeque<Reply>,
    /// How much waits in order, what is put aside not included.
    pending: usize,
    /// Whether the kernel cuts one send into several datagrams.
    gso: bool,
    /// How many of the first replies are not joined, because the kernel has refused them joined.
    alone: usize,
    /// When those that wait for room in the socket's own buffer are tried for the last time.
    pub(super) stalled_until: Option<Instant>,
    /// For Unix peers whose queues are full.
    retries: RetryQueues,
    /// When to try the queues of Unix peers again; the poller does not report them.
    pub(super) retry_at: Option<Instant>,
}

#[derive(Debug)]
struct Reply {
    to: Destination,
    range: Range<usize>,
}

/// How many datagrams may be joined, and how large each may be: what passes any IPv6 path.
const GSO_MAX_SEGMENTS: usize = 64;
const GSO_MAX_SEGMENT_SIZE: usize = 1232;
const GSO_MAX_BYTES: usize = 65_000;

/// How much of replies may wait, in bytes; above it nothing is received.
pub(super) const REPLIES_HIGH: usize = 4 << 20;

impl Replies {
    pub(super) fn new(gso: bool) -> Self {
        Replies {
            bytes: Vec::new(),
            waiting: VecDeque::new(),
            pending: 0,
            gso,
            alone: 0,
            stalled_until: None,
            retries: RetryQueues::default(),
            retry_at: None,
        }
    }

    /// How many replies wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.retries.len()
    }

    /// How much waits, in bytes.
    pub(super) fn charge(&self) -> usize {
        self.pending + self.retries.charge()
    }

    /// Keeps the datagrams of a handler that has answered one from `peer`.
    pub(super) fn keep(
        &mut self,
        scratch: &mut Scratch,
        input: &[u8],
        peer: Destination,
        now: Instant,
    ) {
        let Scratch { output_buffer, tally, .. } = scratch;
        for (part, to) in output_buffer.datagrams(input, &peer) {
            // A peer's datagrams keep their order.
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

    /// Sends what the kernel takes. What it refuses for the peer's sake is counted and dropped; what
    /// it has no room for waits.
    pub(super) fn send(&mut self, socket: &Socket, cx: &mut LoopCx) {
        while let Some(first) = self.waiting.front()
            && cx.call.readiness.has(Readiness::WRITABLE)
        {
            // It is not to overtake those before it.
            if self.retries.has(&first.to.address) {
                self.put_aside_first(cx);
                continue;
            }
            match sys::send_batch(socket, GsoBatches { replies: self, next: 0 }) {
                Ok(sent) => self.forget(sent, &mut cx.scratch.tally),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.no_room(&error, cx),
                Err(error) if self.gso_run(0) > 1 => self.part(&error),
                Err(error) => self.drop_first(&error, &mut cx.scratch.tally),
            }
        }
        self.let_go_of_bytes();
    }

    /// The kernel has refused joined replies: they go one by one. Mostly that is for this peer's sake
    /// alone (it has an address that cannot be sent to, or a path of small packets), and others'
    /// replies are joined as before. Where a device or a route cannot do it, whatever the kernel said
    /// before, none are any more.
    fn part(&mut self, error: &io::Error) {
        self.alone = self.gso_run(0);
        if matches!(error.raw_os_error(), Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT)) {
            log::debug!("replies are no longer joined: {error}");
            self.gso = false;
        }
    }

    /// Drops the bytes of what has gone, as soon as they are most of them.
    fn let_go_of_bytes(&mut self) {
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

    /// How many of the replies from the `first` on can be one send: to one peer, of one size, but for
    /// the last one, which may be smaller.
    fn gso_run(&self, first: usize) -> usize {
        let reply = &self.waiting[first];
        let size = reply.range.len();
        if !self.gso || first < self.alone || size == 0 || size > GSO_MAX_SEGMENT_SIZE {
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

    /// The first so many sends have gone.
    fn forget(&mut self, sends: usize, tally: &mut Tally) {
        self.stalled_until = None;
        for _ in 0..sends {
            let run = self.gso_run(0);
            self.alone = self.alone.saturating_sub(run);
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
            self.alone = self.alone.saturating_sub(1);
            self.pending -= charge(reply.range.len());
            tally.unsent += 1;
            log::debug!("a reply to {} was not sent: {error}", peer_of(&reply.to.address));
        }
    }

    /// The kernel has no room. For a UDP socket that is its own buffer, and the poller will tell; for
    /// a Unix socket it is mostly the peer's queue: this peer waits, and the others go on.
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

    /// Puts the first of those that wait aside, to be tried again.
    fn put_aside_first(&mut self, cx: &mut LoopCx) {
        if let Some(Reply { to, range }) = self.waiting.pop_front() {
            self.pending -= charge(range.len());
            let now = cx.turn.now;
            self.retries.put(to, self.bytes[range].into(), now, &mut cx.scratch.tally);
        }
    }

    /// Tries those again that were put aside; `beside` says after how long others are to be tried
    /// again too.
    pub(super) fn retry(&mut self, socket: &Socket, beside: Option<Duration>, cx: &mut LoopCx) {
        self.retries.retry(socket, cx.turn.now, &mut cx.scratch.tally);
        if self.retries.unresponsive.take_warning() {
            warn_of_full_send_buffer();
        }
        self.retry_at = self.retries.interval().max(beside).map(|interval| cx.turn.now + interval);
        cx.deadline_changed();
    }

    /// The socket's own buffer has had no room for long: if not one reply can be sent now, those that
    /// wait are lost.
    pub(super) fn try_once_more(&mut self, socket: &Socket, cx: &mut LoopCx) {
        let before = self.waiting.len();
        self.stalled_until = None;
        cx.deadline_changed();
        cx.call.readiness.add(Readiness::WRITABLE);
        self.send(socket, cx);
        if !self.waiting.is_empty() && self.waiting.len() == before {
            log::debug!("{before} replies were not sent: there is no room for them");
            self.lose_waiting(&mut cx.scratch.tally);
            self.let_go_of_bytes();
        }
    }

    fn lose_waiting(&mut self, tally: &mut Tally) {
        tally.unsent += self.waiting.len() as u64;
        self.waiting.clear();
        (self.pending, self.alone, self.stalled_until) = (0, 0, None);
    }

    /// Nobody will send what waits any more.
    pub(super) fn give_up(&mut self, tally: &mut Tally) {
        self.lose_waiting(tally);
        self.retries.give_up(tally);
    }
}

/// What is kept of a large batch's buffer, in bytes.
const KEPT: usize = 1 << 20;

/// For how many replies there stays room when none waits any more.
const KEPT_REPLIES: usize = 4096;

/// The replies that wait, as sends.
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
    use crate::datagram::{OVERHEAD, PATIENCE, RETRY_HIGH};
    use crate::server_state::ServerState;
    use crate::sys::Batch;

    /// A socket with two clients, and the destinations of their replies.
    struct Stand {
        socket: Socket,
        clients: [UnixDatagram; 2],
        to: [Destination; 2],
        cx: LoopCx,
        replies: Replies,
        directory: PathBuf,
    }

    impl Drop for Stand {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.directory).unwrap();
        }
    }

    fn stand(name: &str) -> Stand {
        let directory = std::env::temp_dir().join(format!("stand-{name}-{}", std::process::id()));
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
        let (mut batch, mut received) = (Batch::new(100), Vec::new());
        batch.receive(&socket, 2, &mut received).unwrap();
        let to = [received.remove(0).from, received.remove(0).from];
        let run = Arc::new(ServerState::new().unwrap()).begin();
        let mut cx = LoopCx::new(run.stop_requester().clone());
        cx.call.readiness.add(Readiness::WRITABLE);
        Stand { socket, clients, to, cx, replies: Replies::new(false), directory }
    }

    impl Stand {
        fn keep(&mut self, client: usize, bytes: &[u8]) {
            let LoopCx { scratch, turn, .. } = &mut self.cx;
            Output::new(&[], &mut scratch.output_buffer).put_datagram(bytes);
            self.replies.keep(scratch, &[], self.to[client].clone(), turn.now);
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
        let mut stand = stand("bounded");
        stand.fill();
        for _ in 0..3 * RETRY_HIGH / OVERHEAD {
            stand.keep(0, b"");
        }
        let retries = stand.replies.retries.len();
        assert!(retries <= RETRY_HIGH / OVERHEAD, "{retries} replies");
        assert_eq!(stand.cx.scratch.tally.unsent as usize, 3 * RETRY_HIGH / OVERHEAD + 1 - retries);
        assert!(stand.replies.charge() <= RETRY_HIGH + OVERHEAD);
        stand.cx.turn.now += PATIENCE;
        stand.retry();
        assert_eq!((stand.replies.charge(), stand.replies.retries.len()), (0, 0));
    }

    #[test]
    fn the_replies_to_one_peer_keep_their_order_and_do_not_delay_others() {
        let mut stand = stand("order");
        stand.fill();
        // The queue has just become full: several replies for one client, and one for the other.
        stand.replies.retries = RetryQueues::default();
        stand.keep(0, b"first");
        stand.keep(1, b"for another");
        stand.keep(0, b"second");
        stand.send();
        assert_eq!(stand.received(1), [b"for another"]);
        stand.keep(0, b"third");
        stand.send();
        assert!(stand.received(0).iter().all(|each| each == b"unread"));
        stand.retry();
        assert_eq!(stand.received(0), [&b"first"[..], b"second", b"third"]);
        assert_eq!(stand.replies.charge(), 0);
    }

    #[test]
    fn a_reply_is_delivered_once_an_unresponsive_peer_reads_again() {
        let mut stand = stand("again");
        stand.fill();
        stand.cx.turn.now += PATIENCE;
        stand.retry();
        assert_eq!(stand.cx.scratch.tally.unsent, 1);
        stand.keep(0, b"lost at once");
        stand.send();
        assert_eq!((stand.cx.scratch.tally.unsent, stand.replies.charge() as u64), (2, 0));
        stand.received(0);
        stand.keep(0, b"heard");
        stand.send();
        assert_eq!(stand.received(0), [b"heard"]);
        stand.fill();
        assert_eq!(stand.cx.scratch.tally.unsent, 2, "there is patience again");
    }

    /// A socket whose send buffer stays full until its peer reads: a TCP connection, which ignores
    /// the destination of a reply.
    struct Narrow {
        socket: Socket,
        peer: TcpStream,
        to: Destination,
        cx: LoopCx,
        replies: Replies,
    }

    fn narrow() -> Narrow {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // Set buffers do not grow, so that the kernel takes less than the tests offer.
        socket2::SockRef::from(&listener).set_recv_buffer_size(64 << 10).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        socket2::SockRef::from(&client).set_send_buffer_size(256 << 10).unwrap();
        client.set_nonblocking(true).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let run = Arc::new(ServerState::new().unwrap()).begin();
        let mut cx = LoopCx::new(run.stop_requester().clone());
        cx.call.readiness.add(Readiness::WRITABLE);
        let (_, _, to) = udp();
        Narrow { socket: Socket::from(client), peer, to, cx, replies: Replies::new(false) }
    }

    impl Narrow {
        fn keep(&mut self, bytes: &[u8]) {
            let LoopCx { scratch, turn, .. } = &mut self.cx;
            Output::new(&[], &mut scratch.output_buffer).put_datagram(bytes);
            self.replies.keep(scratch, &[], self.to.clone(), turn.now);
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
        let (mut batch, mut received) = (Batch::new(100), Vec::new());
        let socket = Socket::from(server);
        while batch.receive(&socket, 1, &mut received).is_err() {}
        (socket, client, received.remove(0).from)
    }

    #[test]
    fn sent_replies_take_no_memory_while_others_wait() {
        let mut narrow = narrow();
        let mut read = vec![0; 256 << 10];
        let mut largest = 0;
        // Several times the high watermark, with replies waiting all the time.
        for _ in 0..32 << 20 >> 18 {
            while narrow.replies.charge() < REPLIES_HIGH {
                narrow.keep(&[b'x'; 1200]);
            }
            narrow.send();
            assert!(!narrow.replies.waiting.is_empty());
            largest = largest.max(narrow.replies.bytes.capacity());
            narrow.peer.read_exact(&mut read).unwrap();
        }
        assert!(largest <= 4 * REPLIES_HIGH, "{largest} bytes for what waits");
    }

    #[test]
    fn a_waiting_reply_is_unchanged_after_earlier_ones_are_removed() {
        let mut narrow = narrow();
        for number in 0..2000 {
            narrow.keep(&[number as u8; 1000]);
        }
        narrow.replies.forget(1500, &mut narrow.cx.scratch.tally);
        narrow.replies.let_go_of_bytes();
        assert_eq!(narrow.replies.bytes.len(), 500 * 1000);
        for (number, send) in (1500..2000).zip(GsoBatches { replies: &narrow.replies, next: 0 }) {
            assert_eq!(send.bytes, [number as u8; 1000]);
        }
    }

    #[test]
    fn replies_that_find_no_room_for_long_are_dropped_and_counted() {
        let mut narrow = narrow();
        while narrow.replies.waiting.is_empty() {
            narrow.keep(&[b'x'; 1200]);
            narrow.send();
        }
        narrow.keep(b"one more");
        assert_eq!(narrow.replies.stalled_until, Some(narrow.cx.turn.now + STALL));
        let mut read = vec![0; 8 << 20];
        narrow.peer.set_nonblocking(true).unwrap();
        // Some replies can be sent: the rest continues to wait.
        while narrow.replies.waiting.len() == 2 {
            let _ = narrow.peer.read(&mut read);
            narrow.replies.try_once_more(&narrow.socket, &mut narrow.cx);
        }
        assert_eq!(narrow.cx.scratch.tally.unsent, 0);
        while narrow.replies.waiting.len() < 3 {
            narrow.keep(&[b'x'; 1200]);
            narrow.send();
        }
        narrow.replies.try_once_more(&narrow.socket, &mut narrow.cx);
        assert_eq!((narrow.cx.scratch.tally.unsent, narrow.replies.charge()), (3, 0));
        assert_eq!(narrow.replies.stalled_until, None);
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
        replies.keep(&mut cx.scratch, &[], to, cx.turn.now);
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
                replies.keep(&mut cx.scratch, &[], to.clone(), cx.turn.now);
            }
            replies.send(&socket, &mut cx);
        }
        assert_eq!((cx.scratch.tally.replies, cx.scratch.tally.unsent), (6, 6));
        for _ in 0..6 {
            assert_eq!(client.recv(&mut [0; 10]).unwrap(), 5);
        }
        assert_eq!((replies.gso, replies.alone), (gso, 0));
        let refused = io::Error::from_raw_os_error(libc::EIO);
        Output::new(&[], &mut cx.scratch.output_buffer).put_datagram(b"a device that cannot do it");
        replies.keep(&mut cx.scratch, &[], to, cx.turn.now);
        replies.part(&refused);
        assert!(!replies.gso);
    }
}
