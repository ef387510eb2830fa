//! What a user writes: one value per connection or datagram, called message by message.

use super::context::Context;
use crate::error::{CloseReason, HandlerResult};

/// Answers one peer, message by message, and never waits for the network.
///
/// A new value is made for each connection, and for each datagram. The same handler runs under
/// every mode, over every transport; on the reactor it should not block, under the other modes it
/// may. For Python's blocking style, see [`RequestHandler`](crate::RequestHandler).
///
/// An `Err` closes that connection with [`CloseReason::Error`], a panic with
/// [`CloseReason::Panic`]; the server and everyone else's connection live on. What was sent before
/// still goes out. With `panic = "abort"` in the profile a panic ends the process instead.
///
/// ```
/// use socketserver::{Context, Handler, HandlerResult};
///
/// struct Upper;
///
/// impl Handler for Upper {
///     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
///         cx.send(&message.to_ascii_uppercase())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no `Handler`",
    note = "a blocking `RequestHandler` is served by `serve_blocking`, under `Inline`, `Threading`, `Pool` or `Forking`"
)]
pub trait Handler {
    /// The connection is open; nothing has been read from it.
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let _ = cx;
        Ok(())
    }

    /// A whole message has come: a frame of the stream, or the datagram.
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult;

    /// The peer will send no more, but may still read. Closes the connection unless overridden.
    ///
    /// A handler that leaves it open goes on sending through a [`Sender`](crate::Sender); where there
    /// is neither a sender nor a timeout, or as soon as there is none any more, the connection is
    /// closed all the same, since nothing could follow.
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.close();
        Ok(())
    }

    /// No byte has moved either way for as long as [`Context::set_idle_timeout`] says: nothing has come,
    /// and of the output that waits, here or in the kernel, the peer has taken nothing. Closes the
    /// connection unless overridden; the time then starts again.
    ///
    /// Where output waits, [`Context::abort`] drops it, [`Context::close`] gives the peer the same
    /// time once more, and a handler that does neither waits on. What is cut ends in a reset. It comes
    /// so under every mode, but not while another method of this handler runs.
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.close();
        Ok(())
    }

    /// The conversation is over, for this reason. Called once, last, if
    /// [`on_open`](Handler::on_open) was called.
    fn on_close(&mut self, reason: &CloseReason) {
        let _ = reason;
    }
}

impl<H: Handler + ?Sized> Handler for Box<H> {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        (**self).on_open(cx)
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        (**self).on_message(message, cx)
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        (**self).on_eof(cx)
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        (**self).on_idle_timeout(cx)
    }

    fn on_close(&mut self, reason: &CloseReason) {
        (**self).on_close(reason);
    }
}

/// A closure as a handler: made by [`handler_fn`].
#[derive(Clone, Copy)]
pub struct HandlerFn<F>(F);

impl<F> std::fmt::Debug for HandlerFn<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HandlerFn")
    }
}

/// Makes a handler of a closure that is called with each message.
///
/// ```no_run
/// use socketserver::{Server, handler_fn};
///
/// Server::tcp("127.0.0.1:9999")?
///     .serve(|_peer| handler_fn(|message, cx| cx.send(message)))?
///     .serve_forever()?;
/// # Ok::<(), socketserver::Error>(())
/// ```
pub fn handler_fn<F>(on_message: F) -> HandlerFn<F>
where
    F: FnMut(&[u8], &mut Context<'_>) -> HandlerResult,
{
    HandlerFn(on_message)
}

impl<F> Handler for HandlerFn<F>
where
    F: FnMut(&[u8], &mut Context<'_>) -> HandlerResult,
{
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        (self.0)(message, cx)
    }
}
