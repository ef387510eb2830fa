//! What a user writes: one value per connection or datagram, called message by message.

use super::context::Context;
use crate::error::{CloseReason, HandlerResult};
use crate::sender::Event;

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
    message = "`{Self}` is not a `Handler`",
    note = "a blocking `RequestHandler` is served by `serve_blocking`, under `Inline`, `Threading`, `Pool` or `Forking`"
)]
pub trait Handler {
    /// The connection is open; no message has been delivered yet.
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

    /// The output has fallen to the low mark, after [`Context::room`] returned 0: there is room again. By
    /// default it does nothing.
    ///
    /// ```
    /// use std::io::Read;
    /// use socketserver::{Context, Handler, HandlerResult};
    ///
    /// /// Sends a file, of which no more than the high mark is in memory.
    /// struct Download(std::fs::File);
    ///
    /// impl Download {
    ///     fn go_on(&mut self, cx: &mut Context<'_>) -> HandlerResult {
    ///         let mut part = [0; 16 * 1024];
    ///         while cx.room() > 0 {
    ///             match self.0.read(&mut part)? {
    ///                 0 => return Ok(cx.close()),
    ///                 count => cx.send(&part[..count])?,
    ///             }
    ///         }
    ///         Ok(())
    ///     }
    /// }
    ///
    /// impl Handler for Download {
    ///     fn on_message(&mut self, _: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.pause_input(); // one download at a time
    ///         self.go_on(cx)
    ///     }
    ///
    ///     fn on_writable(&mut self, cx: &mut Context<'_>) -> HandlerResult {
    ///         self.go_on(cx)
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_writable(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let _ = cx;
        Ok(())
    }

    /// The deadline of [`Context::set_timer`] has come; the timer is off until it is set again. By
    /// default it does nothing.
    ///
    /// It comes at the deadline or soon after it: not while another method of this handler runs, and
    /// not before the connections that are ready in the same turn of the loop have been served.
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let _ = cx;
        Ok(())
    }

    /// An event that [`Sender::post`](crate::Sender::post) has posted to this connection. Events and
    /// messages of one sender come in the order in which they were posted and sent; while the output is
    /// at its high mark they wait. By default it does nothing, and the event is dropped.
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_event(&mut self, event: Event, cx: &mut Context<'_>) -> HandlerResult {
        let _ = (event, cx);
        Ok(())
    }

    /// The peer will send no more, but may still read. By default the connection closes: at once, or
    /// where [`on_writable`](Handler::on_writable) is pending, as soon as it no longer is, so that an
    /// answer in parts arrives whole.
    ///
    /// If you override this and do not close it, it stays open only while something can follow: a
    /// [`Sender`](crate::Sender) of it, an idle timeout, a timer, or a pending
    /// [`on_writable`](Handler::on_writable). When none of these is left, it is closed.
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.close_after_writable();
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

    /// The peer has sent something that cannot be accepted: bytes that are not a frame
    /// ([`CloseReason::Framing`]; an error of your own framing is in its
    /// [`FramingError::Other`](crate::FramingError::Other), and is found by `downcast_ref`). What the handler sends here still goes out, then the connection closes
    /// for this reason; [`Context::abort`] resets it instead. By default it does nothing.
    ///
    /// # Errors
    ///
    /// An error closes the connection with [`CloseReason::Error`].
    fn on_reject(&mut self, reason: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
        let _ = (reason, cx);
        Ok(())
    }

    /// The server begins to stop. What the handler sends here still goes out; a connection that is then
    /// idle is closed, and any other has until the [drain deadline](crate::Server::drain_timeout). It is
    /// idle when no output waits, no message has come in part, and no `on_writable` is pending.
    /// Called once at most. By default it does nothing.
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let _ = cx;
        Ok(())
    }

    /// The conversation is over, for this reason. Called once, last, if
    /// [`on_open`](Handler::on_open) was called. A handler that needs the number or the address of its
    /// connection here keeps them from [`Accepted`](crate::Accepted) or [`Context`].
    ///
    /// It comes when the last output has been sent, or cannot be sent. Under
    /// [`Offload`](crate::Offload) it may come before that: the worker that has called the method which
    /// ends the conversation calls `on_close` next, and the output is sent when both have returned. An
    /// output that cannot be sent then is not reported: under every mode the first reason stands, unless
    /// a fault follows.
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

    fn on_writable(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        (**self).on_writable(cx)
    }

    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        (**self).on_timer(cx)
    }

    fn on_event(&mut self, event: Event, cx: &mut Context<'_>) -> HandlerResult {
        (**self).on_event(event, cx)
    }

    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        (**self).on_eof(cx)
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        (**self).on_idle_timeout(cx)
    }

    fn on_reject(&mut self, reason: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
        (**self).on_reject(reason, cx)
    }

    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        (**self).on_stop(cx)
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
///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?
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
