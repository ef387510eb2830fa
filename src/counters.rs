//! The counters of a server. Each thread counts without atomics in its own [`Tally`] and publishes
//! the numbers at times; any thread can read them as [`Counters`].

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::guard;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A snapshot of what a server has counted since it was made.
        ///
        /// From [`ShutdownHandle::counters`](crate::ShutdownHandle::counters) or
        /// [`Server::counters`](crate::Server::counters). The event loop publishes its numbers at
        /// the end of each turn, a worker thread at the end of each request, a child process never.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        /// The numbers of one thread that are not published yet.
        #[derive(Debug, Default)]
        pub(crate) struct Tally {
            $(pub(crate) $name: u64,)+
        }

        impl Tally {
            /// Adds the numbers of `other`, and sets those to 0.
            pub(crate) fn absorb(&mut self, other: &mut Tally) {
                $(self.$name += std::mem::take(&mut other.$name);)+
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
                publish(&self.messages, &mut tally.messages);
                publish(&self.bytes_in, &mut tally.bytes_in);
                publish(&self.bytes_out, &mut tally.bytes_out);
                publish(&self.turns, &mut tally.turns);
                if $(tally.$name |)+ 0 != 0 {
                    self.add_all(tally);
                }
            }

            #[inline(never)]
            fn add_all(&self, tally: &mut Tally) {
                tally.panics += guard::take_caught();
                $(publish(&self.$name, &mut tally.$name);)+
            }

            /// Counts that a worker thread was woken.
            pub(crate) fn worker_woken(&self) {
                self.worker_wakes.fetch_add(1, Relaxed);
            }

            pub(crate) fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.load(Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Connections accepted.
    accepted,
    /// Accepted connections that are closed again.
    closed,
    /// Datagrams received.
    datagrams,
    /// Datagrams that were longer than the receive size and were truncated.
    truncated,
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
    /// Connections accepted and closed at once, because no descriptors were left.
    shed_no_fd,
    /// Turns (iterations) of the event loop: each is one return of the poller.
    turns,
    /// Times that another thread had to wake the event loop.
    wakes,
    /// Times that a sleeping worker thread had to be woken for a request or for messages, under
    /// `offload`, `threading` and `pool`. This number is published at once.
    worker_wakes,
}

#[inline]
fn publish(published: &AtomicU64, number: &mut u64) {
    if *number != 0 {
        published.fetch_add(std::mem::take(number), Relaxed);
    }
}
