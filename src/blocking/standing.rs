//! The standing of a connection, as the event loop and the session of the connection see it.

use std::sync::atomic::Ordering::SeqCst;

use crate::error::Limit;
use crate::sync::AtomicU8;

/// No whole message has come.
const SILENT: u8 = 0;
/// A whole message has come.
const PROVEN: u8 = 1;
/// The connection is to be closed in favor of a new client, because it is silent.
const REJECTED: u8 = 2;
/// The connection is to be closed because it holds most of the memory.
const HEAVIEST: u8 = 3;

/// Whether a whole message has come from a connection, and whether its session must close it.
///
/// The byte is shared by two threads, or by two processes. Each change is one compare-and-swap, so
/// that a connection is not rejected any more once a message has come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing<'a>(&'a AtomicU8);

impl<'a> Standing<'a> {
    /// The standing that this byte stores. A new connection has the byte 0.
    pub(crate) fn new(byte: &'a AtomicU8) -> Self {
        Standing(byte)
    }

    pub(crate) fn is_silent(self) -> bool {
        self.0.load(SeqCst) == SILENT
    }

    /// A whole message has come.
    pub(crate) fn prove(self) {
        // It fails if a message has come before, or the connection is to be closed.
        let _ = self.0.compare_exchange(SILENT, PROVEN, SeqCst, SeqCst);
    }

    /// Has the connection closed if it is silent; returns whether it is.
    pub(crate) fn reject(self) -> bool {
        self.0.compare_exchange(SILENT, REJECTED, SeqCst, SeqCst).is_ok()
    }

    /// Has the connection closed because of the memory that it holds; returns false if it is being
    /// closed already.
    pub(crate) fn condemn(self) -> bool {
        self.0.fetch_update(SeqCst, SeqCst, |byte| (byte <= PROVEN).then_some(HEAVIEST)).is_ok()
    }

    /// The limit because of which the session must close the connection.
    pub(crate) fn limit(self) -> Option<Limit> {
        match self.0.load(SeqCst) {
            REJECTED => Some(Limit::Connections),
            HEAVIEST => Some(Limit::Memory),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_rejected_only_while_it_is_silent() {
        let byte = AtomicU8::default();
        let standing = Standing::new(&byte);
        assert!(standing.is_silent() && standing.limit().is_none());
        standing.prove();
        assert!(!standing.is_silent() && !standing.reject());
        assert!(standing.condemn());
        assert_eq!(standing.limit(), Some(Limit::Memory));
        assert!(!standing.condemn(), "it is being closed already");
    }

    #[test]
    fn a_message_that_comes_after_the_rejection_does_not_revoke_it() {
        let byte = AtomicU8::default();
        let standing = Standing::new(&byte);
        assert!(standing.reject());
        standing.prove();
        assert_eq!(standing.limit(), Some(Limit::Connections));
        assert!(!standing.reject() && !standing.condemn());
    }
}
