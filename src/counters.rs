//! The counters of a server. Each thread counts without atomics in its own [`Tally`] and publishes
//! the numbers at times; any thread can read them as [`Counters`].

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::time::Duration;

use crate::error::Limit;
use crate::guard;

/// What a number of [`Counters`] means.
///
/// ```
/// use socketserver::{CounterKind, Counters};
///
/// /// The type of a counter for Prometheus.
/// fn kind(kind: CounterKind) -> &'static str {
///     match kind {
///         CounterKind::Total => "counter",
///         _ => "gauge",
///     }
/// }
/// # for counter in Counters::default().iter() { kind(counter.kind); }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CounterKind {
    /// It only grows: how often something has happened.
    Total,
    /// It grows and falls: how much there is now.
    Gauge,
    /// It only grows: the largest value so far.
    Maximum,
}

/// One number of [`Counters`], from [`Counters::iter`].
///
/// ```
/// use socketserver::Counters;
///
/// let counters = Counters::default();
/// let accepted = counters.iter().find(|counter| counter.name == "accepted").unwrap();
/// assert_eq!((accepted.value, accepted.help.is_empty()), (0, false));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counter {
    /// The name of the field.
    pub name: &'static str,
    /// What the value means.
    pub kind: CounterKind,
    /// The value.
    pub value: u64,
    /// What is counted, as in the documentation of the field.
    pub help: &'static str,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A snapshot of what a server has counted since it was made.
        ///
        /// From [`ShutdownHandle::counters`](crate::ShutdownHandle::counters) or
        /// [`Server::counters`](crate::Server::counters), which take no lock. The event loop
        /// publishes its numbers at the end of each turn, a worker thread at the end of each
        /// request, a child process never.
        ///
        /// [`iter`](Counters::iter) gives all numbers with their names; `Display` prints those that
        /// are not 0 in one line.
        ///
        /// In the guide: [`blocking_work`](crate::guide::blocking_work),
        /// [`limits`](crate::guide::limits),
        /// [`logging_and_counters`](crate::guide::logging_and_counters),
        /// [`several_cpus`](crate::guide::several_cpus).
        ///
        /// ```
        /// use socketserver::{Server, handler_fn};
        ///
        /// let server = Server::tcp("127.0.0.1:0")?.serve(|_| handler_fn(|message, cx| cx.send(message)))?;
        /// let counters = server.counters();
        /// assert_eq!(counters.accepted, 0);
        /// println!("{counters}"); // those that have moved
        /// # Ok::<(), socketserver::Error>(())
        /// ```
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            /// The totals, with their names and documentation.
            fn totals(&self) -> impl Iterator<Item = Counter> {
                [$(Counter {
                    name: stringify!($name),
                    kind: kind_of(stringify!($name)),
                    value: self.$name,
                    help: concat!($($doc),+).trim_ascii_start(),
                },)+].into_iter()
            }
        }

        /// The numbers of a [`Tally`] that change rarely.
        #[derive(Debug, Default)]
        pub(crate) struct RareTally {
            $(pub(crate) $name: u64,)+
        }

        impl RareTally {
            fn absorb(&mut self, other: &mut RareTally) {
                $(combine(stringify!($name), &mut self.$name, std::mem::take(&mut other.$name));)+
            }
        }

        /// The published numbers of all threads.
        #[derive(Debug, Default)]
        pub(crate) struct Published {
            $($name: AtomicU64,)+
        }

        impl Published {
            /// Adds the numbers of a thread, and sets those to 0. Most of the time only the numbers
            /// of messages, bytes and turns are not 0.
            #[inline]
            pub(crate) fn add(&self, tally: &mut Tally) {
                publish("messages", &self.messages, &mut tally.messages);
                publish("bytes_in", &self.bytes_in, &mut tally.bytes_in);
                publish("bytes_out", &self.bytes_out, &mut tally.bytes_out);
                publish("turns", &self.turns, &mut tally.turns);
                if std::mem::take(&mut tally.has_changed) {
                    self.add_rare(&mut tally.rare);
                }
            }

            #[inline(never)]
            fn add_rare(&self, tally: &mut RareTally) {
                tally.panics += guard::take_caught();
                $(publish(stringify!($name), &self.$name, &mut tally.$name);)+
            }

            /// Counts that a worker thread was woken.
            pub(crate) fn worker_woken(&self) {
                self.worker_wakes.fetch_add(1, Relaxed);
            }

            /// Counts a turn of the event loop that took [`LONG`] or longer. This number is published at
            /// once.
            #[cold]
            pub(crate) fn long_turn(&self, time: Duration, overloaded: bool) {
                let micros = as_micros(time);
                self.overloaded_turns.fetch_add(overloaded.into(), Relaxed);
                self.turns_of_1ms.fetch_add(1, Relaxed);
                for (number, least) in [
                    (&self.turns_of_10ms, 10_000),
                    (&self.turns_of_100ms, 100_000),
                    (&self.turns_of_1s, 1_000_000),
                ] {
                    if micros >= least {
                        number.fetch_add(1, Relaxed);
                    }
                }
                self.longest_turn_us.fetch_max(micros, Relaxed);
            }

            /// How many connections are open that have been accepted, without those that `tally`
            /// has not published.
            pub(crate) fn open(&self) -> u64 {
                // In this order: a connection that is closed meanwhile has been accepted.
                let closed = self.closed.load(Acquire);
                self.accepted.load(Relaxed).saturating_sub(closed)
            }

            pub(crate) fn snapshot(&self) -> Counters {
                // Read first: each of them has been accepted.
                let closed = self.closed.load(Acquire);
                let counters = Counters { $($name: self.$name.load(Relaxed),)+ };
                Counters { closed, open: counters.accepted.saturating_sub(closed), ..counters }
            }
        }
    };
}

/// The numbers of one thread that are not published yet. The fields are those that change with each
/// message or turn; all others are in [`RareTally`], to which this derefs.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) messages: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) turns: u64,
    rare: RareTally,
    /// A number in `rare` may have changed.
    has_changed: bool,
}

impl Deref for Tally {
    type Target = RareTally;

    fn deref(&self) -> &RareTally {
        &self.rare
    }
}

impl DerefMut for Tally {
    fn deref_mut(&mut self) -> &mut RareTally {
        self.has_changed = true;
        &mut self.rare
    }
}

impl Tally {
    /// Adds the numbers of `other`, and sets those to 0.
    pub(crate) fn absorb(&mut self, other: &mut Tally) {
        self.messages += std::mem::take(&mut other.messages);
        self.bytes_in += std::mem::take(&mut other.bytes_in);
        self.bytes_out += std::mem::take(&mut other.bytes_out);
        self.turns += std::mem::take(&mut other.turns);
        if std::mem::take(&mut other.has_changed) {
            self.has_changed = true;
            self.rare.absorb(&mut other.rare);
        }
    }
}

/// The numbers that are not totals.
#[inline(always)] // the name is a constant, and so is the result
fn kind_of(name: &str) -> CounterKind {
    match name {
        "open" | "memory_held" => CounterKind::Gauge,
        "longest_turn_us" | "longest_wait_us" => CounterKind::Maximum,
        _ => CounterKind::Total,
    }
}

impl Counters {
    /// All numbers, with their names, kinds and documentation, in the order of the fields.
    ///
    /// ```
    /// use socketserver::Server;
    ///
    /// let server = Server::new()?;
    /// for counter in server.counters().iter() {
    ///     println!("{} {}", counter.name, counter.value);
    /// }
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = Counter> {
        self.totals()
    }
}

/// The numbers that are not 0, in one line: `accepted=2 closed=1 open=1`.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for Counter { name, value, .. } in self.iter().filter(|counter| counter.value != 0) {
            write!(f, "{space}{name}={value}")?;
            space = " ";
        }
        Ok(())
    }
}

counters! {
    /// Connections accepted.
    accepted,
    /// Accepted connections that are closed again.
    closed,
    /// Connections that are open now: `accepted` is always `closed` and `open` together.
    open,
    /// Datagrams received.
    datagrams,
    /// Datagrams that were longer than the receive size and were truncated.
    truncated,
    /// Datagrams that the kernel dropped at the sockets of the server before they were received,
    /// mostly because the receive buffer was full; 0 on systems other than Linux. It is known when
    /// a later datagram is received, or at the end of a run. See `SO_RXQ_OVFL` in
    /// [socket(7)](https://man7.org/linux/man-pages/man7/socket.7.html).
    dropped_by_kernel,
    /// Datagrams sent.
    replies,
    /// Datagrams that could not be sent because the peer has gone, has no address, or does not
    /// read; and messages that a [`Sender`](crate::Sender) took but the framing could not encode.
    unsent,
    /// Messages handed to handlers.
    messages,
    /// Messages and events that connections have taken from their [`Sender`](crate::Sender)s.
    from_senders,
    /// Bytes received.
    bytes_in,
    /// Bytes sent.
    bytes_out,
    /// Handlers that returned an error.
    handler_errors,
    /// Panics caught: in handlers, framings, hooks, loggers, handler factories, and the destructors
    /// of all these and of handlers' errors.
    panics,
    /// Connections closed because their input was not a valid frame.
    framing_errors,
    /// Connections ended by a reset, a broken pipe or the network.
    disconnects,
    /// Times that `on_idle_timeout` was due, and requests of a
    /// [`RequestHandler`](crate::RequestHandler) that ended because a read or a write timed out.
    timeouts,
    /// Requests that `verify_request` refused.
    refused_by_hook,
    /// Requests rejected because the limit of the mode was reached, or the system could not start a
    /// thread or a process.
    rejected_full,
    /// Times that a listener was paused because the system had no descriptors or memory left.
    accept_pauses,
    /// How long listeners were paused because the system had no descriptors or memory left, in
    /// milliseconds.
    accept_paused_ms,
    /// Connections accepted and closed at once, because no descriptors were left.
    shed_no_fd,
    /// Times that a listener stopped accepting because a limit on the number of connections was
    /// reached.
    full,
    /// Connections closed in favor of a new client, because no whole message had come from them
    /// (`Limit::Connections`).
    closed_silent,
    /// Clients that were accepted, told that the server is full, and closed.
    turned_away,
    /// Clients that were closed because too many connections of their address were open.
    over_address,
    /// Times that a listener waited because the accept rate was reached.
    over_rate,
    /// Connections closed because a message took too long (`Limit::MessageDeadline`).
    slow_messages,
    /// Connections closed because their first message took too long
    /// (`Limit::FirstMessageDeadline`).
    slow_first_messages,
    /// Connections reset because the peer took no output (`Limit::WriteTimeout`).
    stalled_writes,
    /// Connections closed because of too much undecoded input (`Limit::BufferedInput`).
    over_input,
    /// Connections closed because all connections held too much memory (`Limit::Memory`).
    over_memory,
    /// Connections closed because of their age (`Limit::Lifetime`).
    over_lifetime,
    /// Connections closed because of the number of their messages (`Limit::Messages`).
    over_messages,
    /// Memory that connections hold now: undecoded input, waiting output and send queues, in bytes.
    memory_held,
    /// Times that a connection was not read because the memory of all connections was tight.
    memory_pauses,
    /// Times that a connection was not read because its output had reached the high mark.
    output_pauses,
    /// How long those pauses were, in milliseconds.
    output_paused_ms,
    /// Times that a connection had more to do, and others were served first.
    exhausted_budgets,
    /// Reads from connections that found nothing.
    wasted_reads,
    /// Datagrams whose replies are larger than three times their own size.
    amplified,
    /// Replies to datagrams that were dropped because of the limit `reply_ratio`.
    over_reply_ratio,
    /// Turns (iterations) of the event loop: each is one return of the poller.
    turns,
    /// Times that another thread had to wake the event loop.
    wakes,
    /// Times that a sleeping worker thread had to be woken for a request or for messages, under
    /// `offload`, `threading` and `pool`. This number is published at once.
    worker_wakes,
    /// Turns of the event loop that took 1 ms or longer, without the time in which it slept. The
    /// next numbers are parts of this one.
    turns_of_1ms,
    /// Turns that took 10 ms or longer.
    turns_of_10ms,
    /// Turns that took 100 ms or longer.
    turns_of_100ms,
    /// Turns that took 1 s or longer.
    turns_of_1s,
    /// The longest turn, in microseconds; 0 if none took 1 ms.
    longest_turn_us,
    /// Turns in which the event loop was overloaded: see
    /// [`Context::is_overloaded`](crate::Context::is_overloaded).
    overloaded_turns,
    /// New clients that were turned away or had to wait because the server was overloaded.
    over_load,
    /// Jobs and connections that waited 1 ms or longer for a thread, under `offload`, `threading`
    /// and `pool`. The next numbers are parts of this one.
    waits_of_1ms,
    /// Those that waited 10 ms or longer.
    waits_of_10ms,
    /// Those that waited 100 ms or longer.
    waits_of_100ms,
    /// Those that waited 1 s or longer.
    waits_of_1s,
    /// The longest wait for a thread, in microseconds; 0 if none took 1 ms.
    longest_wait_us,
}

/// Adds a number of another thread, or keeps the larger one of two maxima.
#[inline(always)] // the name is a constant
fn combine(name: &'static str, number: &mut u64, other: u64) {
    match kind_of(name) {
        CounterKind::Maximum => *number = (*number).max(other),
        _ => *number += other,
    }
}

#[inline(always)] // the name is a constant
fn publish(name: &'static str, published: &AtomicU64, number: &mut u64) {
    if *number != 0 {
        let number = std::mem::take(number);
        match kind_of(name) {
            CounterKind::Maximum => published.fetch_max(number, Relaxed),
            _ if name == "closed" => published.fetch_add(number, Release),
            _ => published.fetch_add(number, Relaxed),
        };
    }
}

/// Shorter turns and waits are not counted.
pub(crate) const LONG: Duration = Duration::from_millis(1);

impl Tally {
    /// Counts a job or a connection that waited so long for a thread.
    #[inline]
    pub(crate) fn wait(&mut self, time: Duration) {
        if time >= LONG {
            self.long_wait(time);
        }
    }

    #[cold]
    fn long_wait(&mut self, time: Duration) {
        let micros = as_micros(time);
        self.waits_of_1ms += 1;
        self.waits_of_10ms += u64::from(micros >= 10_000);
        self.waits_of_100ms += u64::from(micros >= 100_000);
        self.waits_of_1s += u64::from(micros >= 1_000_000);
        self.longest_wait_us = self.longest_wait_us.max(micros);
    }

    /// Counts a connection that is closed because of a limit.
    pub(crate) fn limit(&mut self, limit: Limit) {
        *match limit {
            Limit::Connections => &mut self.closed_silent,
            Limit::MessageDeadline => &mut self.slow_messages,
            Limit::FirstMessageDeadline => &mut self.slow_first_messages,
            Limit::WriteTimeout => &mut self.stalled_writes,
            Limit::BufferedInput => &mut self.over_input,
            Limit::Memory => &mut self.over_memory,
            Limit::Lifetime => &mut self.over_lifetime,
            Limit::Messages => &mut self.over_messages,
        } += 1;
    }
}

fn as_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_add_up_and_the_largest_maximum_stays() {
        let published = Published::default();
        for micros in [2_000, 200_000, 50] {
            let mut tally = Tally::default();
            tally.wait(Duration::from_micros(micros));
            published.add(&mut tally);
            if micros >= 1_000 {
                published.long_turn(Duration::from_micros(micros), false);
            }
        }
        let counters = published.snapshot();
        assert_eq!((counters.turns_of_1ms, counters.turns_of_100ms), (2, 1));
        assert_eq!((counters.waits_of_1ms, counters.waits_of_100ms), (2, 1));
        assert_eq!((counters.longest_turn_us, counters.longest_wait_us), (200_000, 200_000));
    }

    #[test]
    fn accepted_is_closed_and_open_together() {
        let published = Published::default();
        let mut tally = Tally::default();
        (tally.accepted, tally.closed) = (5, 2);
        published.add(&mut tally);
        let counters = published.snapshot();
        assert_eq!((counters.accepted, counters.closed, counters.open), (5, 2, 3));
        assert_eq!(counters.to_string(), "accepted=5 closed=2 open=3");
    }

    #[test]
    fn each_number_has_its_name_its_kind_and_its_help() {
        let counters = Counters { accepted: 7, ..Counters::default() };
        let accepted = counters.iter().next().unwrap();
        assert_eq!((accepted.name, accepted.value), ("accepted", 7));
        assert_eq!((accepted.kind, accepted.help), (CounterKind::Total, "Connections accepted."));
        let kind = |name| counters.iter().find(|counter| counter.name == name).unwrap().kind;
        assert_eq!(kind("open"), CounterKind::Gauge);
        assert_eq!(kind("longest_turn_us"), CounterKind::Maximum);
    }
}
