//! Everything that is counted: tallied without atomics by whoever does the work, published to
//! [`Counters`] now and then, and read from any thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::guard;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What a server has counted since it was made: a snapshot of plain numbers.
        ///
        /// Registration by [`ShutdownHandle::counters`](crate::ShutdownHandle::counters) or
        /// [`Server::counters`](crate::Server::counters). The loop publishes at the end of each
        /// turn, a thread of its own at the end of each request, a child process not at all.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        /// Numbers of one thread, not yet published.
        #[derive(Debug, Default)]
        pub(crate) struct Tally {
            $(pub(crate) $name: u64,)+
        }

        impl Tally {
            /// Adds another's numbers, and sets those to nothing.
            pub(crate) fn absorb(&mut self, other: &mut Tally) {
                $(self.$name += std::mem::take(&mut other.$name);)+
            }
        }

        /// The numbers of all threads.
        #[derive(Debug, Default)]
        pub(crate) struct Published {
            $($name: AtomicU64,)+
        }

        impl Published {
            /// Adds a thread's numbers, and sets them to nothing. Nearly always those of the traffic
            /// are all there are.
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

            /// A thread is woken.
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
    /// Datagrams that were longer than the receive size and came cut.
    truncated,
    /// Datagrams sent.
    replies,
    /// Datagrams that could not be sent: the peer has gone, has no address, or does not read. And
    /// messages taken by a [`Sender`](crate::Sender) that the framing then could not encode.
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
    /// Panics caught: in handlers, framings, hooks and loggers, in what makes handlers, and in the
    /// destructors of all these and of handlers' errors.
    panics,
    /// Connections closed for bytes that were no frame.
    framing_errors,
    /// Connections that a reset, a broken pipe or the network ended.
    disconnects,
    /// Times that `on_idle_timeout` was due, and requests that a
    /// [`RequestHandler`](crate::RequestHandler) gave up for a read or a write that timed out.
    timeouts,
    /// Requests that `verify_request` refused.
    refused_by_hook,
    /// Requests rejected because the mode had no room for them, or the system no thread or process.
    rejected_full,
    /// Times that a listener was paused for want of descriptors or memory.
    accept_pauses,
    /// Connections accepted only to be closed, for want of descriptors.
    shed_no_fd,
    /// Turns of the loop: each is one return of the poller.
    turns,
    /// Times that another thread had to wake the loop.
    wakes,
    /// Times that a thread which slept had to be woken for a request or for messages, under
    /// `offload`, `threading` and `pool`. It is counted at once.
    worker_wakes,
}

#[inline]
fn publish(published: &AtomicU64, number: &mut u64) {
    if *number != 0 {
        published.fetch_add(std::mem::take(number), Relaxed);
    }
}
