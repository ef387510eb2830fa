//! A thread per request, and what `pool` shares with it: sessions that a crew of threads serves.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use super::Homeward;
use super::crew::{Crew, Labour, Manning};
use crate::conversation::OutputBuffer;
use crate::counters::{Published, Tally};
use crate::error::UnsupportedError;
use crate::session::{Place, READ_SIZE, Seats, Session, Taken, Waiting};

/// How long a thread that has served its request waits for another one.
const STAY: Duration = Duration::from_secs(5);

/// A thread for each request: Python's `ThreadingMixIn`. A thread that has served its request is
/// used again for the next one, and ends after some seconds without any.
///
/// Where the system starts no more threads (`RLIMIT_NPROC`, a control group's limit on pids, memory) a
/// request for which none is free is turned away at once, as in Python: it is counted in
/// [`Counters::rejected_full`](crate::Counters::rejected_full), and a warning is logged, once in ten seconds. A
/// [`limit`](Threading::limit) below what the system allows lets clients wait instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Threading {
    limit: Option<usize>,
    stack_size: Option<usize>,
    daemon: bool,
    block_on_close: bool,
}

impl Threading {
    pub(super) const DEFAULT: Threading =
        Threading { limit: None, stack_size: None, daemon: false, block_on_close: true };

    /// Sets how many requests may be served at a time; above it the listener pauses and clients
    /// wait in the kernel's queue. Without limit by default, as in Python.
    #[must_use]
    pub fn limit(mut self, requests: usize) -> Self {
        self.limit = Some(requests.max(1));
        self
    }

    /// Sets the size of a thread's stack, in bytes; the standard library's 2 MiB by default, of
    /// which only what is used takes memory.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Python's `daemon_threads`: a stop neither waits for the threads nor cuts them, and they end
    /// with the process. Off by default.
    #[must_use]
    pub fn daemon_threads(mut self, daemon: bool) -> Self {
        self.daemon = daemon;
        self
    }

    /// Python's `block_on_close`: a stop waits for the threads, until the
    /// [`drain`](crate::Server::drain_timeout) deadline. On by default; off is as
    /// [`daemon_threads`](Threading::daemon_threads).
    #[must_use]
    pub fn block_on_close(mut self, block: bool) -> Self {
        self.block_on_close = block;
        self
    }

    fn is_left_alone(&self) -> bool {
        self.daemon || !self.block_on_close
    }
}

impl Default for Threading {
    fn default() -> Self {
        Threading::DEFAULT
    }
}

/// A request on its way to a thread.
pub(crate) struct Assigned {
    pub(crate) session: Box<dyn Session + Send>,
    /// Its seat; a datagram has none, since it waits for nobody.
    pub(crate) seat: Option<Taken>,
    pub(crate) home: Arc<Homeward>,
    /// The run of the loop that it came in.
    pub(crate) run: usize,
}

/// What to do with a request when there is no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Leave it in the kernel's queue.
    Pause,
    /// Turn it away.
    Reject,
}

/// The threads of one service, and the requests they are serving.
pub(crate) struct Threads {
    crew: Crew<Assigned, Serving>,
    pub(crate) seats: Arc<Seats>,
    /// How many requests there may be, those that wait for a thread included.
    most: usize,
    pub(crate) when_full: When,
    /// A stop lets them be.
    left_alone: bool,
}

impl Threads {
    pub(crate) fn for_each_request(mode: Threading) -> Self {
        let (most, stack_size) = (mode.limit.unwrap_or(usize::MAX), mode.stack_size);
        let manning = Manning { name: "thread", most, waits: false, stay: Some(STAY), stack_size };
        Self::new(manning, most, When::Pause, mode.is_left_alone())
    }

    pub(super) fn new(manning: Manning, most: usize, when_full: When, left_alone: bool) -> Self {
        let crew = Crew::new(manning, Serving);
        Threads { crew, seats: Arc::default(), most, when_full, left_alone }
    }

    /// Has wakes counted there from now on.
    pub(crate) fn count_into(&self, published: &Arc<Published>) {
        self.crew.count_into(published);
    }

    /// Whether another request can be taken; if not, the loop is told when it can.
    pub(crate) fn has_room(&self, home: &Homeward) -> bool {
        if self.most == usize::MAX || self.crew.load() < self.most {
            return true;
        }
        home.want();
        // One may have ended just before it was known to be wanted.
        self.crew.load() < self.most
    }

    /// How many more requests can be taken at once; at least one, for which
    /// [`has_room`](Threads::has_room) answers. Those that are turned away take no room.
    pub(crate) fn room(&self) -> usize {
        if self.most == usize::MAX || self.when_full == When::Reject {
            return usize::MAX;
        }
        self.most.saturating_sub(self.crew.load()).max(1)
    }

    /// Hands a request to a thread; it may be turned away if there is none to be had.
    pub(crate) fn assign(&self, assigned: Assigned) {
        self.crew.push(assigned);
        self.crew.call();
    }

    /// How many requests a stop has to wait for.
    pub(crate) fn load(&self) -> usize {
        if self.left_alone { 0 } else { self.crew.load() }
    }

    /// How many requests have ended that the stop found idle.
    pub(crate) fn ended_idle(&self) -> usize {
        self.seats.ended_idle()
    }

    /// Ends who is idle.
    pub(crate) fn stop(&self, home: &Homeward) {
        if self.left_alone {
            return;
        }
        home.want();
        self.seats.stop();
    }

    /// Ends everyone whose socket it can end; how many connections have ended that no thread had
    /// begun to serve.
    pub(crate) fn abort_all(&self) -> usize {
        if self.left_alone {
            return 0;
        }
        let waiting = self.crew.take_waiting();
        self.seats.abort_all();
        waiting.iter().filter(|assigned| assigned.seat.is_some()).count()
    }
}

/// What a thread keeps from request to request.
struct Kit {
    buffer: Box<[u8]>,
    output_buffer: OutputBuffer,
    tally: Tally,
}

thread_local! {
    static KIT: RefCell<Kit> = RefCell::new(Kit {
        buffer: vec![0; READ_SIZE].into_boxed_slice(),
        output_buffer: OutputBuffer::default(),
        tally: Tally::default(),
    });
}

/// Serving requests to their ends.
struct Serving;

impl Labour<Assigned> for Serving {
    type After = Arc<Homeward>;

    fn run(&self, job: Assigned) -> Arc<Homeward> {
        let Assigned { session, seat, home, run } = job;
        KIT.with_borrow_mut(|kit| {
            let waiting = seat.as_ref().map_or(Waiting::Nobody, Waiting::InThread);
            let mut place = Place {
                buffer: &mut kit.buffer,
                output_buffer: &mut kit.output_buffer,
                tally: &mut kit.tally,
                leaves_lingering: false,
                waiting,
                no_sender: UnsupportedError::DatagramSender,
                on_shutdown: &|| home.shutdown(run),
            };
            let served = session.run(&mut place);
            debug_assert!(kit.output_buffer.is_empty());
            home.served(served, &mut kit.tally);
        });
        drop(seat);
        home
    }

    fn after(&self, home: Arc<Homeward>) {
        home.freed();
    }

    /// Turns it away.
    fn refuse(&self, job: Assigned) {
        let Assigned { session, seat, home, run: _ } = job;
        let closed = u64::from(seat.is_some());
        drop((session, seat));
        let mut tally = Tally { rejected_full: 1, closed, ..Tally::default() };
        home.published.add(&mut tally);
        home.freed();
    }
}
