//! The simulated kernel: it keeps the contract of epoll(7) and of stream sockets, and runs the world
//! around the server. The tests of this module run on it and on the real kernel.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::choices::Choices;
use super::fault::{Fault, Swarm};
use super::stream::{FakeStream, Packet, ServerEnd, StreamEnd};
use super::trace::Trace;
use crate::counters::Counters;
use crate::server::ShutdownHandle;
use crate::sync::lock;
use crate::sys::simulated::{SimulatedEvent, bits};

/// How long a packet takes without [`Fault::Delay`].
const LATENCY: Duration = Duration::from_micros(50);

/// How many turns may pass before the time passes: more are a livelock.
const MOST_TURNS: usize = 200_000;

/// How many turns in a row may poll without sleeping although nothing has happened.
const MOST_IDLE_TURNS: usize = 100;

/// How many bytes one connection may read in one turn.
const MOST_READ: usize = 256 * 1024;

/// How many messages one turn may serve for each client that there has been. An event of the poller, the
/// ready list, a notification and a deadline call a connection, the deadline twice; a call delivers 256
/// messages, and the one that reads delivers as many twice.
const MOST_SERVED: u64 = 6 * 256 + 64;

/// How many connections one turn may accept.
const MOST_ACCEPTED: usize = 128;

/// Something that happens in the world at its time.
pub(super) enum Happening {
    /// A client reaches the queue of its listener.
    Connect {
        stream: usize,
        listener: usize,
    },
    /// The next packet of a connection arrives.
    ToServer(usize),
    ToClient(usize),
    /// The kernel has room for output again.
    Room(usize),
    /// A worker runs a job.
    Job(Box<dyn FnOnce() + Send>),
}

/// What a descriptor refers to.
#[derive(Debug)]
pub(super) enum Object {
    /// A poller, a wake-up, a duplicate, or a descriptor that the simulation does not know.
    Other,
    Listener(FakeListener),
    Stream(usize),
}

/// A simulated listener.
#[derive(Debug)]
pub(super) struct FakeListener {
    pub(super) is_unix: bool,
    pub(super) backlog: Option<usize>,
    pub(super) queue: VecDeque<usize>,
}

/// A descriptor in a poller.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) poller: RawFd,
    pub(super) token: mio::Token,
    /// What has changed since the last event.
    pub(super) changed: u32,
}

/// An open descriptor.
#[derive(Debug)]
pub(super) struct Descriptor {
    pub(super) object: Object,
    pub(super) registration: Option<Watch>,
}

/// How far a call of the poller lets the time pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Without limit: the server runs by itself.
    Free,
    /// As long as something happens in the world.
    Settle,
    /// Until this time.
    Until(Duration),
}

/// The state of a simulated kernel and of the world around it.
pub(super) struct KernelState {
    pub(super) choices: Choices,
    pub(super) swarm: Swarm,
    /// An event has the whole state of its descriptor, as on Linux, and not only what has changed.
    reports_all: bool,
    pub(super) trace: Trace,
    pub(super) now: Duration,
    pub(super) agenda: BTreeMap<(Duration, u64), Happening>,
    next_number: u64,
    /// The open descriptors by their numbers in the simulation, and these by their real numbers.
    pub(super) descriptors: BTreeMap<usize, Descriptor>,
    pub(super) by_number: BTreeMap<RawFd, usize>,
    next_descriptor: usize,
    pub(super) streams: Vec<FakeStream>,
    /// How many descriptors of connections may be open.
    pub(super) descriptor_limit: usize,
    pub(super) pace: Pace,
    /// The poller had to wait, and nothing more happens in the world.
    pub(super) is_settled: bool,
    /// Counts everything that happens, to find turns in which nothing does.
    pub(super) progress: u64,
    last_progress: u64,
    /// How many messages and events the servers had served at the last turn.
    served: u64,
    idle_turns: usize,
    turns: usize,
    pub(super) accepted_in_turn: usize,
    pub(super) violation: Option<String>,
    pub(super) marks: BTreeMap<&'static str, u64>,
    /// The servers that have run in this world.
    pub(super) servers: Vec<ShutdownHandle>,
    pub(super) allows_panics: bool,
}

/// A simulated kernel.
pub(super) struct FakeKernel {
    state: Mutex<KernelState>,
    pub(super) origin: Instant,
    pub(super) this: Weak<FakeKernel>,
}

impl fmt::Debug for FakeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeKernel")
    }
}

impl FakeKernel {
    pub(super) fn new(mut choices: Choices, allowed: &[Fault], trace: Trace) -> Arc<Self> {
        let swarm = Swarm::choose(allowed, &mut choices);
        let reports_all = allowed.is_empty() || choices.below(2) == 0;
        let state = KernelState { reports_all, ..KernelState::new(choices, swarm, trace) };
        Arc::new_cyclic(|this| FakeKernel {
            state: Mutex::new(state),
            origin: Instant::now(),
            this: this.clone(),
        })
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, KernelState> {
        lock(&self.state)
    }

    /// Lets one thing happen. A job runs without the lock, because it calls the kernel.
    pub(super) fn perform(&self, happening: Happening) {
        match happening {
            Happening::Job(job) => {
                self.lock().note("job", 0, 0);
                job();
            }
            other => self.lock().apply(other),
        }
    }

    /// Lets everything happen that is due.
    pub(super) fn perform_due(&self) {
        loop {
            let happening = self.lock().take_until(Duration::ZERO);
            match happening {
                Some(happening) => self.perform(happening),
                None => return,
            }
        }
    }

    /// With [`Fault::Race`], something happens in the middle of a turn.
    pub(super) fn race(&self) {
        let happening = {
            let mut state = self.lock();
            match state.strikes(Fault::Race) {
                true => state.take_until(Duration::from_millis(100)),
                false => None,
            }
        };
        if let Some(happening) = happening {
            self.perform(happening);
        }
    }

    /// The world goes on without a server.
    pub(super) fn idle(&self, pace: Pace) {
        let next = self.lock().agenda.keys().next().map(|key| key.0);
        let mut state = self.lock();
        match (next, pace) {
            (Some(next), Pace::Until(until)) if next > until => state.pass_until(until),
            (Some(next), _) => state.pass_until(next),
            (None, Pace::Until(until)) => state.pass_until(until),
            (None, Pace::Settle | Pace::Free) => state.is_settled = true,
        }
        drop(state);
        self.perform_due();
    }

    /// Runs the jobs that are left, as workers do after a run has ended.
    pub(super) fn finish_jobs(&self) {
        loop {
            let happening = self.lock().take_job();
            match happening {
                Some(happening) => self.perform(happening),
                None => return,
            }
        }
    }
}

impl KernelState {
    fn new(choices: Choices, swarm: Swarm, trace: Trace) -> Self {
        KernelState {
            choices,
            swarm,
            reports_all: true,
            trace,
            now: Duration::ZERO,
            agenda: BTreeMap::new(),
            next_number: 0,
            descriptors: BTreeMap::new(),
            by_number: BTreeMap::new(),
            next_descriptor: 0,
            streams: Vec::new(),
            descriptor_limit: usize::MAX,
            pace: Pace::Free,
            is_settled: false,
            progress: 0,
            last_progress: 0,
            served: 0,
            idle_turns: 0,
            turns: 0,
            accepted_in_turn: 0,
            violation: None,
            marks: BTreeMap::new(),
            servers: Vec::new(),
            allows_panics: false,
        }
    }

    pub(super) fn strikes(&mut self, fault: Fault) -> bool {
        let strikes = self.swarm.strikes(fault, &mut self.choices);
        if strikes {
            self.trace.add(self.now, fault.name(), 0, 0);
        }
        strikes
    }

    /// Records what happens.
    pub(super) fn note(&mut self, what: &'static str, which: usize, value: usize) {
        self.progress += 1;
        self.trace.add(self.now, what, which, value);
    }

    /// Records that a state worth reaching was reached.
    pub(super) fn mark(&mut self, name: &'static str) {
        *self.marks.entry(name).or_default() += 1;
    }

    /// Records the first violation of an invariant.
    pub(super) fn violate(&mut self, text: impl FnOnce() -> String) {
        self.violation.get_or_insert_with(text);
    }

    pub(super) fn plan(&mut self, delay: Duration, happening: Happening) {
        self.next_number += 1;
        self.agenda.insert((self.now + delay, self.next_number), happening);
    }

    pub(super) fn delay(&mut self) -> Duration {
        match self.strikes(Fault::Delay) {
            true => Duration::from_micros(100 * self.choices.below(1000) as u64),
            false => LATENCY,
        }
    }

    /// Takes what happens next, if it does within `time`; the time passes until then.
    fn take_until(&mut self, time: Duration) -> Option<Happening> {
        let (&key, _) = self.agenda.first_key_value()?;
        if key.0 > self.now + time {
            return None;
        }
        self.pass_until(key.0);
        self.agenda.remove(&key)
    }

    fn take_job(&mut self) -> Option<Happening> {
        let is_job = |happening: &Happening| matches!(happening, Happening::Job(_));
        let key = *self.agenda.iter().find(|(_, happening)| is_job(happening))?.0;
        self.agenda.remove(&key)
    }

    pub(super) fn pass_until(&mut self, time: Duration) {
        if time > self.now {
            self.now = time;
            self.progress += 1;
            self.turns = 0;
        }
    }

    fn apply(&mut self, happening: Happening) {
        match happening {
            Happening::Connect { stream, listener } => self.connect(stream, listener),
            Happening::ToServer(number) => {
                self.streams[number].to_server_planned = false;
                let changed = self.streams[number].deliver_to_server();
                self.note("to server", number, self.streams[number].input.len());
                self.change_stream(number, changed);
                self.plan_deliveries(number);
            }
            Happening::ToClient(number) => {
                self.streams[number].to_client_planned = false;
                let most = match self.strikes(Fault::SlowReader) {
                    true => 1 + self.choices.below(300),
                    false => usize::MAX,
                };
                let changed = self.streams[number].deliver_to_client(most);
                self.note("to client", number, self.streams[number].received.len());
                self.change_stream(number, changed);
                self.plan_deliveries(number);
            }
            Happening::Room(number) => {
                let stream = &mut self.streams[number];
                if stream.lacks_room && stream.is_writable() {
                    stream.lacks_room = false;
                    self.change_stream(number, bits::OUT);
                }
            }
            Happening::Job(_) => {}
        }
    }

    fn connect(&mut self, stream: usize, listener: usize) {
        self.note("connect", stream, listener);
        let listening = match self.descriptors.get_mut(&listener) {
            Some(Descriptor { object: Object::Listener(listening), .. }) => listening,
            _ => return self.streams[stream].end = Some(StreamEnd::Refused),
        };
        match listening.backlog {
            None => self.streams[stream].end = Some(StreamEnd::Refused),
            Some(backlog) if listening.queue.len() <= backlog => {
                listening.queue.push_back(stream);
                self.change(listener, bits::IN);
                self.plan_deliveries(stream);
            }
            // The queue is full: the client tries again.
            Some(_) => self.plan(Duration::from_secs(1), Happening::Connect { stream, listener }),
        }
    }

    /// Plans the next delivery in each direction, if there is one and it is not planned.
    pub(super) fn plan_deliveries(&mut self, number: usize) {
        let stream = &mut self.streams[number];
        if stream.can_deliver_to_server() && !std::mem::replace(&mut stream.to_server_planned, true)
        {
            let delay = self.delay();
            self.plan(delay, Happening::ToServer(number));
        }
        let stream = &mut self.streams[number];
        if stream.can_deliver_to_client() && !std::mem::replace(&mut stream.to_client_planned, true)
        {
            let delay = self.delay();
            self.plan(delay, Happening::ToClient(number));
        }
    }

    /// The state of the socket of a connection has changed.
    pub(super) fn change_stream(&mut self, number: usize, changed: u32) {
        if changed != 0
            && let ServerEnd::Open(descriptor) = self.streams[number].server
        {
            self.change(descriptor, changed);
        }
    }

    pub(super) fn change(&mut self, descriptor: usize, changed: u32) {
        let descriptor = self.descriptors.get_mut(&descriptor);
        if let Some(registration) = descriptor.and_then(|found| found.registration.as_mut()) {
            registration.changed |= changed;
        }
    }

    /// The present state of a descriptor.
    pub(super) fn state_of(&self, object: &Object) -> u32 {
        match object {
            Object::Other => bits::IN,
            Object::Listener(listener) if listener.queue.is_empty() => 0,
            Object::Listener(_) => bits::IN,
            Object::Stream(number) => self.streams[*number].state(),
        }
    }

    pub(super) fn open(&mut self, real: RawFd, object: Object) -> usize {
        let number = self.next_descriptor;
        self.next_descriptor += 1;
        if let Some(old) = self.by_number.insert(real, number) {
            self.descriptors.remove(&old);
        }
        self.descriptors.insert(number, Descriptor { object, registration: None });
        number
    }

    pub(super) fn descriptor(&mut self, real: RawFd) -> Option<(usize, &mut Descriptor)> {
        let number = *self.by_number.get(&real)?;
        self.descriptors.get_mut(&number).map(|descriptor| (number, descriptor))
    }

    /// Whether a listener is one of Unix sockets.
    pub(super) fn is_unix(&self, listener: usize) -> bool {
        match self.descriptors.get(&listener).map(|descriptor| &descriptor.object) {
            Some(Object::Listener(listener)) => listener.is_unix,
            _ => false,
        }
    }

    /// The connection of a descriptor. A call on a descriptor that is closed is a violation.
    pub(super) fn stream_of(&mut self, real: RawFd) -> usize {
        match self.descriptor(real) {
            Some((_, Descriptor { object: Object::Stream(number), .. })) => *number,
            _ => panic!("a call on descriptor {real}, which is not an open connection"),
        }
    }

    /// How many sockets are open.
    pub(super) fn open_sockets(&self) -> usize {
        let is_socket = |object: &Object| !matches!(object, Object::Other);
        self.descriptors.values().filter(|descriptor| is_socket(&descriptor.object)).count()
    }

    /// A turn of the event loop has ended and the next one begins: checks the one that has ended.
    pub(super) fn begin_turn(&mut self, may_sleep: bool) {
        let served = |counters: Counters| counters.messages + counters.from_senders;
        let served = self.servers.iter().map(|server| served(server.counters())).sum();
        let in_turn = served - std::mem::replace(&mut self.served, served);
        self.progress += in_turn;
        let clients = self.streams.len() as u64;
        if in_turn > MOST_SERVED * clients {
            self.violate(|| format!("{in_turn} messages of {clients} clients in one turn"));
        }
        let is_idle = !may_sleep && self.progress == self.last_progress;
        self.idle_turns = if is_idle { self.idle_turns + 1 } else { 0 };
        self.last_progress = self.progress;
        self.turns += 1;
        // No system takes two turns at the same time, and the event loop relies on that.
        self.now += Duration::from_nanos(1);
        let (idle, turns) = (self.idle_turns, self.turns);
        if idle > MOST_IDLE_TURNS {
            self.violate(|| format!("{idle} turns poll without sleeping, and nothing happens"));
        }
        if turns > MOST_TURNS {
            self.violate(|| format!("{turns} turns, and no time passes: a livelock"));
        }
        if self.accepted_in_turn > MOST_ACCEPTED {
            let accepted = self.accepted_in_turn;
            self.violate(|| format!("{accepted} connections are accepted in one turn"));
        }
        self.accepted_in_turn = 0;
        for number in 0..self.streams.len() {
            let stream = &mut self.streams[number];
            let read = std::mem::take(&mut stream.read_in_turn);
            if read > MOST_READ && !stream.is_shut {
                self.violate(|| format!("{read} bytes of one connection are read in one turn"));
            }
        }
    }

    /// Moves the events of a poller into `events`, in any order.
    pub(super) fn collect(&mut self, poller: RawFd, events: &mut Vec<SimulatedEvent>) {
        let mut ready: Vec<usize> = Vec::new();
        for (number, descriptor) in &self.descriptors {
            if let Some(registration) = &descriptor.registration
                && registration.poller == poller
                && registration.changed != 0
            {
                ready.push(*number);
            }
        }
        let mut spurious = None;
        if self.strikes(Fault::SpuriousEvent)
            && let Some(number) = self.any_registered(poller)
        {
            spurious = Some(number);
            ready.retain(|other| *other != number);
            ready.push(number);
        }
        let mut most = usize::MAX;
        if ready.len() > 1 && self.strikes(Fault::PartialEvents) {
            let first = self.choices.below(ready.len());
            ready.rotate_left(first);
            most = 1 + self.choices.below(ready.len());
        }
        for number in ready {
            // The others keep what has changed, for a later call.
            if events.len() == most {
                break;
            }
            let state = self.state_of(&self.descriptors[&number].object);
            let all = self.reports_all || self.strikes(Fault::SpuriousEvent);
            let Some(descriptor) = self.descriptors.get_mut(&number) else { continue };
            let Some(registration) = descriptor.registration.as_mut() else { continue };
            let mut shown = bits::HUP | bits::ERR;
            if all || registration.changed & bits::IN != 0 {
                shown |= bits::IN | bits::RDHUP;
            }
            if all || registration.changed & bits::OUT != 0 {
                shown |= bits::OUT;
            }
            registration.changed = 0;
            let mut bits = state & shown;
            if spurious == Some(number) {
                bits |= bits::IN | bits::OUT;
            }
            if bits != 0 {
                events.push(SimulatedEvent { token: registration.token, bits });
            }
        }
        if !events.is_empty() {
            self.note("events", events.len(), events.iter().map(|event| event.bits as usize).sum());
        }
    }

    /// A registered connection or listener.
    fn any_registered(&mut self, poller: RawFd) -> Option<usize> {
        let registered = |descriptor: &Descriptor| {
            !matches!(descriptor.object, Object::Other)
                && descriptor.registration.as_ref().is_some_and(|found| found.poller == poller)
        };
        let found: Vec<usize> = self
            .descriptors
            .iter()
            .filter(|(_, descriptor)| registered(descriptor))
            .map(|(number, _)| *number)
            .collect();
        let at = self.choices.below(found.len());
        found.get(at).copied()
    }

    /// Puts a packet on the way to the server.
    pub(super) fn send_to_server(&mut self, number: usize, packet: Packet) {
        let stream = &mut self.streams[number];
        match packet {
            // A reset overtakes nothing, but what has not arrived by then may be lost.
            Packet::Reset if self.choices.below(2) == 1 => {
                stream.to_server = VecDeque::from([Packet::Reset]);
            }
            packet => stream.to_server.push_back(packet),
        }
        self.plan_deliveries(number);
    }
}
