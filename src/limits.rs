//! The limits of a service: what a peer may take before it is rejected.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Limit;

/// How long a peer may take to complete a message, before the bytes that it has sent count.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(30);

/// How slow a message may be: its deadline moves by one second for each 500 bytes.
const MESSAGE_RATE: u32 = 500;

/// How long a peer may take none of the output that waits for it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// How much undecoded input one connection may hold, in bytes.
const MAX_BUFFERED_INPUT: usize = 16 << 20;

/// How long a connection is left alone before it can be closed in favor of another because no whole
/// message has come from it.
pub(crate) const GRACE: Duration = Duration::from_millis(500);

/// The limits of the connections of one listener, for [`Builder::limits`](crate::Builder::limits).
///
/// Each limit has a default, a [`Limit`] that names it in the close reason, and a
/// counter in [`Counters`](crate::Counters). The limits that bound memory, descriptors and threads
/// are on by default; those that depend on the protocol are off. `None` turns a limit off. All
/// limits mean the same under every mode; `docs/limits.md` has the table.
///
/// The limits of a whole server are [`Server::max_connections`](crate::Server::max_connections) and
/// [`Server::max_memory`](crate::Server::max_memory).
///
/// In the guide: [`behind_a_proxy`](crate::guide::behind_a_proxy),
/// [`framing`](crate::guide::framing), [`limits`](crate::guide::limits),
/// [`shared_state`](crate::guide::shared_state), [`streaming`](crate::guide::streaming),
/// [`timeouts`](crate::guide::timeouts).
///
/// ```
/// use std::time::Duration;
/// use socketserver::{Lines, Limits, Server, WhenFull, handler_fn};
///
/// let limits = Limits::default()
///     .max_connections(1000)
///     .when_full(WhenFull::turn_away(*b"busy, try again later\n"))
///     .max_per_address(20)
///     .idle_timeout(Duration::from_secs(300));
/// let server = Server::tcp("127.0.0.1:0")?
///     .framing(Lines::default())
///     .limits(limits)
///     .serve(|_peer| handler_fn(|line, cx| cx.send(line)))?;
/// # drop(server);
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "it limits a service that it is given to"]
pub struct Limits {
    pub(crate) max_connections: Option<usize>,
    pub(crate) when_full: WhenFull,
    pub(crate) when_overloaded: Option<WhenFull>,
    pub(crate) max_per_address: Option<usize>,
    pub(crate) accept_rate: Option<u32>,
    pub(crate) message_deadline: Option<Duration>,
    pub(crate) message_rate: u32,
    pub(crate) first_message_deadline: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) write_timeout: Option<Duration>,
    pub(crate) max_buffered_input: usize,
    pub(crate) max_lifetime: Option<Duration>,
    pub(crate) max_messages: Option<u32>,
    pub(crate) reply_ratio: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: None,
            when_full: WhenFull::default(),
            when_overloaded: None,
            max_per_address: None,
            accept_rate: None,
            message_deadline: Some(MESSAGE_DEADLINE),
            message_rate: MESSAGE_RATE,
            first_message_deadline: None,
            idle_timeout: None,
            write_timeout: Some(WRITE_TIMEOUT),
            max_buffered_input: MAX_BUFFERED_INPUT,
            max_lifetime: None,
            max_messages: None,
            reply_ratio: None,
        }
    }
}

impl Limits {
    /// No limit is on: for peers that the program trusts.
    ///
    /// ```
    /// use socketserver::{Limits, Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")? // clients of this machine
    ///     .limits(Limits::off())
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn off() -> Self {
        Limits {
            when_full: WhenFull::Wait,
            message_deadline: None,
            write_timeout: None,
            max_buffered_input: usize::MAX,
            ..Limits::default()
        }
    }

    /// Sets how many connections of this listener may be open at a time; without limit by default.
    /// The limit of the whole server, [`Server::max_connections`](crate::Server::max_connections),
    /// applies too. At least 1.
    pub fn max_connections(mut self, connections: impl Into<Option<usize>>) -> Self {
        self.max_connections = connections.into().map(|number| number.max(1));
        self
    }

    /// Sets what happens to a client that connects while a limit on the number of connections is
    /// reached; [`WhenFull::CloseSilent`] by default.
    pub fn when_full(mut self, action: WhenFull) -> Self {
        self.when_full = action;
        self
    }

    /// Sets what happens to new clients while the server is overloaded (see
    /// [`Context::is_overloaded`](crate::Context::is_overloaded)): they wait, or are turned away.
    /// Nothing by default. [`WhenFull::CloseSilent`] has the same effect as [`WhenFull::Wait`] here.
    ///
    /// ```
    /// use socketserver::{Limits, WhenFull};
    ///
    /// let limits = Limits::default().when_overloaded(WhenFull::Wait);
    /// # let _ = limits;
    /// ```
    pub fn when_overloaded(mut self, action: impl Into<Option<WhenFull>>) -> Self {
        self.when_overloaded = action.into();
        self
    }

    /// Sets how many connections may be open at a time from one address: one IPv4 address, or one
    /// IPv6 network of 64 bits, which one host commonly has for itself. Off by default, because
    /// many clients can share an address behind a proxy or a NAT. Peers of Unix sockets do not
    /// count.
    ///
    /// A connection above the limit is closed with a reset as soon as it is accepted; with
    /// [`WhenFull::TurnAway`] it gets that text first.
    pub fn max_per_address(mut self, connections: impl Into<Option<usize>>) -> Self {
        self.max_per_address = connections.into().map(|number| number.max(1));
        self
    }

    /// Sets how many connections the listener accepts per second on average; off by default. It
    /// accepts up to one second's worth at once. Further clients wait in the kernel's queue.
    ///
    /// ```
    /// use socketserver::Limits;
    ///
    /// let limits = Limits::default().accept_rate(100); // new connections per second
    /// # let _ = limits;
    /// ```
    pub fn accept_rate(mut self, per_second: impl Into<Option<u32>>) -> Self {
        self.accept_rate = per_second.into().map(|number| number.max(1));
        self
    }

    /// Sets how long a peer may take for one message, from its first byte to its last; 30 seconds by
    /// default, and one more second for each 500 bytes that have arrived
    /// ([`message_rate`](Limits::message_rate)). Between two messages no time runs.
    ///
    /// A message has begun when bytes have arrived that the framing has not decoded yet. With
    /// [`Raw`](crate::Raw), every read is a whole message. While the handler has paused the input, or
    /// while its output is at the high mark, no time runs. In a
    /// [`RequestHandler`](crate::RequestHandler) a message is what one call of
    /// [`read_line`](crate::Request::read_line), or of another method that needs several reads, waits
    /// for.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::Limits;
    ///
    /// let limits = Limits::default().message_deadline(Duration::from_secs(5));
    /// # let _ = limits;
    /// ```
    pub fn message_deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.message_deadline = deadline.into();
        self
    }

    /// Sets the least rate of a long message, in bytes per second, that
    /// [`message_deadline`](Limits::message_deadline) expects; 500 by default. With 0 the deadline
    /// does not move.
    ///
    /// ```
    /// use socketserver::Limits;
    ///
    /// let limits = Limits::default().message_rate(10_000); // uploads over a fast network
    /// # let _ = limits;
    /// ```
    pub fn message_rate(mut self, bytes_per_second: u32) -> Self {
        self.message_rate = bytes_per_second;
        self
    }

    /// Sets how long a peer may take from the accept until its first message is whole; off by
    /// default, because in some protocols the client only listens.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::Limits;
    ///
    /// let limits = Limits::default().first_message_deadline(Duration::from_secs(10)); // for a login
    /// # let _ = limits;
    /// ```
    pub fn first_message_deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.first_message_deadline = deadline.into();
        self
    }

    /// Sets the idle timeout that each connection begins with; none by default, as in Python. It has
    /// the same effect as a call of
    /// [`Context::set_idle_timeout`](crate::Context::set_idle_timeout) in
    /// [`on_open`](crate::Handler::on_open), or of
    /// [`Request::set_timeout`](crate::Request::set_timeout) in `setup`.
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.idle_timeout = timeout.into();
        self
    }

    /// Sets how long a peer may take none of the output that waits for it; 60 seconds by default.
    /// Then the connection is reset. What counts is what the peer acknowledges, and not what the
    /// kernel takes into its buffer. It is checked four times per timeout, so a peer is cut at most
    /// a quarter later. On Linux, output that the kernel has taken whole is limited by the kernel itself, by
    /// half the timeout later (`TCP_USER_TIMEOUT`); such a connection ends as a disconnect.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::Limits;
    ///
    /// let limits = Limits::default().write_timeout(Duration::from_secs(10));
    /// # let _ = limits;
    /// ```
    pub fn write_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.write_timeout = timeout.into();
        self
    }

    /// Sets how many bytes of undecoded input one connection may hold, whatever its framing accepts;
    /// 16 MiB by default. A framing with longer frames needs a higher limit, too.
    ///
    /// ```
    /// use socketserver::{LengthPrefixed, Limits, Server, handler_fn};
    ///
    /// let server = Server::tcp("127.0.0.1:0")?
    ///     .framing(LengthPrefixed::default().max_len(64 << 20))
    ///     .limits(Limits::default().max_buffered_input(65 << 20)) // above the longest frame
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn max_buffered_input(mut self, bytes: usize) -> Self {
        self.max_buffered_input = bytes.max(1);
        self
    }

    /// Sets how long a connection may live; off by default. After that it is closed as soon as no
    /// message has arrived in part and no output waits.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::Limits;
    ///
    /// let limits = Limits::default().max_lifetime(Duration::from_secs(3600));
    /// # let _ = limits;
    /// ```
    pub fn max_lifetime(mut self, lifetime: impl Into<Option<Duration>>) -> Self {
        self.max_lifetime = lifetime.into();
        self
    }

    /// Sets how many messages a connection may send; off by default. It is closed after the answer
    /// to the last one.
    ///
    /// ```
    /// use socketserver::Limits;
    ///
    /// let limits = Limits::default().max_messages(1000); // then the client connects again
    /// # let _ = limits;
    /// ```
    pub fn max_messages(mut self, messages: impl Into<Option<u32>>) -> Self {
        self.max_messages = messages.into().map(|number| number.max(1));
        self
    }

    /// Sets how many bytes of replies a datagram may cause, as a multiple of its own size; off by
    /// default. Replies above it are dropped. So the server cannot be used to send much to an
    /// address that a client has forged. The replies of a datagram that exceed three times its size
    /// are always counted, in [`Counters::amplified`](crate::Counters::amplified).
    ///
    /// ```
    /// use socketserver::{Limits, Server, handler_fn};
    ///
    /// let server = Server::udp("127.0.0.1:0")?
    ///     .limits(Limits::default().reply_ratio(3)) // no use to who forges addresses
    ///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
    /// # let _ = server;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    pub fn reply_ratio(mut self, times: impl Into<Option<u32>>) -> Self {
        self.reply_ratio = times.into();
        self
    }

    /// How long a message may take of which `bytes` bytes have arrived.
    pub(crate) fn time_for_message(&self, bytes: usize) -> Option<Duration> {
        let deadline = self.message_deadline?;
        let rate = self.message_rate as usize;
        let more = bytes.checked_div(rate).map_or(0, |seconds| seconds as u64);
        Some(deadline.saturating_add(Duration::from_secs(more)))
    }

    /// When the time for the first message or the life of a connection is over that was accepted at this
    /// time.
    pub(crate) fn age_deadline(
        &self,
        accepted: Instant,
        is_proven: bool,
        retirement: &Retirement,
    ) -> Option<Instant> {
        let first = self.first_message_deadline.filter(|_| !is_proven);
        let lifetime = self.max_lifetime.filter(|_| retirement.limit.is_none());
        let at = |time: Option<Duration>| accepted.checked_add(time?);
        [at(first), at(lifetime)].into_iter().flatten().min()
    }

    /// The limit that a connection of this age has reached. One that is too old retires instead.
    pub(crate) fn expired_age(
        &self,
        age: Duration,
        is_proven: bool,
        retirement: &mut Retirement,
    ) -> Option<Limit> {
        if !is_proven && self.first_message_deadline.is_some_and(|limit| age >= limit) {
            return Some(Limit::FirstMessageDeadline);
        }
        if self.max_lifetime.is_some_and(|limit| age >= limit) {
            retirement.limit.get_or_insert(Limit::Lifetime);
        }
        None
    }
}

/// Whether a connection reads nothing more and closes when all is answered, because it is too old or has
/// sent too many messages.
#[derive(Debug, Default)]
pub(crate) struct Retirement {
    messages: u64,
    limit: Option<Limit>,
    /// It reads nothing more, also if a message has arrived in part.
    at_once: bool,
}

impl Retirement {
    /// Whole messages have come.
    pub(crate) fn messages_came(&mut self, messages: u64, limits: &Limits) {
        self.messages += messages;
        if limits.max_messages.is_some_and(|most| self.messages >= u64::from(most)) {
            self.limit = Some(Limit::Messages);
        }
        self.at_once = self.limit.is_some();
    }

    /// The limit because of which nothing more is read; `in_part` says that a message has arrived in
    /// part.
    pub(crate) fn due(&self, in_part: bool) -> Option<Limit> {
        self.limit.filter(|_| self.at_once || !in_part)
    }
}

/// What happens to a client that connects while a limit on the number of connections is reached.
///
/// ```
/// use socketserver::{Limits, WhenFull};
///
/// let limits = Limits::default().max_connections(1000).when_full(WhenFull::Wait);
/// # let _ = limits;
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// The oldest connection from which no whole message has come is closed in its favor, if it has
    /// been open for at least half a second; its handler gets
    /// [`on_reject`](crate::Handler::on_reject) with
    /// [`Limit::Connections`]. If there is no such connection, the client
    /// waits.
    #[default]
    CloseSilent,
    /// It waits in the kernel's queue until a connection has ended.
    Wait,
    /// It is accepted, gets these bytes, and is closed.
    TurnAway(Arc<[u8]>),
}

impl WhenFull {
    /// [`WhenFull::TurnAway`] with these bytes, which the client gets as they are.
    ///
    /// ```
    /// use socketserver::{Limits, WhenFull};
    ///
    /// let limits = Limits::default()
    ///     .max_connections(1000)
    ///     .when_full(WhenFull::turn_away(*b"HTTP/1.1 503 Service Unavailable\r\n\r\n"));
    /// # let _ = limits;
    /// ```
    pub fn turn_away(bytes: impl Into<Vec<u8>>) -> Self {
        WhenFull::TurnAway(bytes.into().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_of_a_message_moves_with_its_length() {
        let limits = Limits::default();
        assert_eq!(limits.time_for_message(0), Some(Duration::from_secs(30)));
        assert_eq!(limits.time_for_message(5_000), Some(Duration::from_secs(40)));
        let fixed = Limits::default().message_rate(0);
        assert_eq!(fixed.time_for_message(usize::MAX), Some(Duration::from_secs(30)));
        assert_eq!(Limits::off().time_for_message(1), None);
    }
}
