//! A request and whoever answers it, to its end. Here a session may block; the loop's own way of
//! serving one is the reactor's.

use std::sync::Arc;

use crate::mailbox::{Mailbox, Work};
use crate::token::Token;

/// Who does the work that a loop lends out.
///
/// This is the seam between the loop, which lends, and the mode that brought the workers: neither
/// knows the other.
pub(crate) trait Workers: Send + Sync {
    /// Queues a job, for which [`call`](Workers::call) has yet to fetch someone; when it is done it is posted to `home` as [`Mail::Returned`].
    ///
    /// [`Mail::Returned`]: crate::mailbox::Mail::Returned
    fn submit(&self, home: &Arc<Mailbox>, token: Token, work: Box<dyn Work>);

    /// Sees to it that someone comes for what was queued: once per turn, however much it was.
    fn call(&self);
}
