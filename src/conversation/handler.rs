//! The handler trait: one value per connection or datagram, called with each message.

use super::context::Context;
use crate::error::{CloseReason, HandlerResult};
use crate::sender::Event;

/// The user's code for one connection or datagram: it gets messages and other events, and answers
/// through a [`Context`].
///
/// A new value is created for each connection, and for each datagram. The same handler runs under
/// every mode and over every transport. On the reactor it should not block; under the other modes
/// it may. For Python's blocking style, see [`RequestHandler`](crate::RequestHandler).
///
/// What each event and each effect does in each mode, and in which order, is listed in
/// `docs/events.md` of the repository.
///
/// Only [`on_message`](Handler::on_message) has to be written. The request of a datagram is
/// [`on_open`](Handler::on_open), one message and [`on_close`](Handler::on_close).
///
/// An `Err` closes that connection with [`CloseReason::Error`], a panic with
/// [`CloseReason::Panic`]; the server and all other connections continue. Messages sent before
/// still go out. With `panic = "abort"` in the profile, a panic ends the process instead.
///
/// In the guide: [`behind_a_proxy`](crate::guide::behind_a_proxy),
/// [`blocking_work`](crate::guide::blocking_work),
/// [`choosing_a_mode`](crate::guide::choosing_a_mode), [`files`](crate::guide::files),
/// [`framing`](crate::guide::framing), [`limits`](crate::guide::limits),
/// [`logging_and_counters`](crate::guide::logging_and_counters),
/// [`reaching_others`](crate::guide::reaching_others), [`stopping`](crate::guide::stopping),
/// [`streaming`](crate::guide::streaming), [`timeouts`](crate::guide::timeouts).
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
    /// ```
    /// use socketserver::{Context, Handler, HandlerResult};
    ///
    /// /// Greets a client.
    /// struct Polite;
    ///
    /// impl Handler for Polite {
    ///     fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.send(b"welcome")
    ///     }
    ///
    ///     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.send(message)
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let _ = cx;
        Ok(())
    }

    /// A complete message has arrived: a frame of the stream, or the datagram.
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult;

    /// The output has fallen to the low mark after [`Context::room`] returned 0: there is room
    /// again. By default it does nothing.
    ///
    /// ```
    /// use std::io::Read;
    /// use socketserver::{Context, Handler, HandlerResult};
    ///
    /// /// Sends a file, and keeps no more of it in memory than the high mark.
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

    /// The deadline of [`Context::set_timer`] has expired; the timer is off until it is set again.
    /// By default it does nothing.
    ///
    /// It is called at the deadline or soon after: not while another method of this handler runs,
    /// and not before the connections that are ready in the same turn of the event loop have been
    /// served.
    ///
    /// ```
    /// use std::time::Duration;
    /// use socketserver::{Context, Handler, HandlerResult};
    ///
    /// /// Echoes for one minute, however much the peer sends.
    /// struct OneMinute;
    ///
    /// impl Handler for OneMinute {
    ///     fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
    ///         Ok(cx.set_timer(cx.now() + Duration::from_secs(60))?)
    ///     }
    ///
    ///     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.send(message)
    ///     }
    ///
    ///     fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
    ///         Ok(cx.close())
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let _ = cx;
        Ok(())
    }

    /// An event from [`Sender::post`](crate::Sender::post). Events and messages of one sender keep
    /// their order. While the output is at its high mark they wait. By default it does nothing, and
    /// the event is dropped.
    ///
    /// ```
    /// use std::thread;
    /// use socketserver::{Context, Event, Handler, HandlerResult};
    ///
    /// /// Another thread adds up the bytes of each message.
    /// struct Sums;
    ///
    /// struct Sum(u64);
    ///
    /// impl Handler for Sums {
    ///     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         let (sender, bytes) = (cx.sender()?, message.to_vec());
    ///         cx.pause_input(); // the next message waits for this answer
    ///         thread::spawn(move || {
    ///             let sum = bytes.into_iter().map(u64::from).sum();
    ///             let _ = sender.post(Box::new(Sum(sum))); // an error: the connection is closed
    ///         });
    ///         Ok(())
    ///     }
    ///
    ///     fn on_event(&mut self, event: Event, cx: &mut Context<'_>) -> HandlerResult {
    ///         if let Ok(sum) = event.downcast::<Sum>() {
    ///             cx.resume_input();
    ///             cx.send(sum.0.to_string().as_bytes())?;
    ///         }
    ///         Ok(())
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_event(&mut self, event: Event, cx: &mut Context<'_>) -> HandlerResult {
        let _ = (event, cx);
        Ok(())
    }

    /// The peer will send no more, but may still read. By default the connection closes. If an
    /// answer is still being made, which is so while [`on_writable`](Handler::on_writable) is pending
    /// or the input is [paused](Context::pause_input), it closes as soon as neither is the case.
    ///
    /// If you override this and do not close the connection, it stays open only while an event can
    /// follow: there is a [`Sender`](crate::Sender) of it, an idle timeout, a timer, or a pending
    /// [`on_writable`](Handler::on_writable). When none of these is left, the connection is closed.
    ///
    /// ```
    /// use socketserver::{Context, Handler, HandlerResult};
    ///
    /// /// Adds numbers, and answers when the client has sent all.
    /// #[derive(Default)]
    /// struct Sum(i64);
    ///
    /// impl Handler for Sum {
    ///     fn on_message(&mut self, line: &[u8], _: &mut Context<'_>) -> HandlerResult {
    ///         self.0 += std::str::from_utf8(line)?.parse::<i64>()?;
    ///         Ok(())
    ///     }
    ///
    ///     fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.send(self.0.to_string().as_bytes())?;
    ///         cx.close();
    ///         Ok(())
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_eof(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.close_when_answered();
        Ok(())
    }

    /// No byte has been received or sent for the time of [`Context::set_idle_timeout`]: no input
    /// has arrived, and the peer has taken none of the output that waits here or in the kernel. By
    /// default it closes the connection. If the connection stays open, the time starts again.
    ///
    /// If output waits, [`Context::abort`] drops it, and [`Context::close`] gives the peer the same
    /// time once more. A handler that does neither continues to wait. A connection that is cut ends
    /// in a reset. This is the same under every mode. It is not called while another method of this
    /// handler runs.
    ///
    /// ```
    /// use socketserver::{Context, Handler, HandlerResult};
    ///
    /// /// Says why it closes.
    /// struct Polite;
    ///
    /// impl Handler for Polite {
    ///     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.send(message)
    ///     }
    ///
    ///     fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.send(b"421 you have been silent for too long")?;
    ///         cx.close();
    ///         Ok(())
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.close();
        Ok(())
    }

    /// The peer has sent bytes that are not a frame, or has ended inside of one
    /// ([`CloseReason::Framing`]), or the connection has reached one of most [`Limits`](crate::Limits)
    /// ([`CloseReason::Limit`]), such as the deadline of a message. An error of your own framing is in its [`FramingError::Other`](crate::FramingError::Other); use
    /// `downcast_ref` to get it. Messages that the handler sends here still go out, then the
    /// connection closes for this reason; [`Context::abort`] resets it instead. By default it does
    /// nothing.
    ///
    /// ```
    /// use socketserver::{CloseReason, Context, Handler, HandlerResult};
    ///
    /// struct Echo;
    ///
    /// impl Handler for Echo {
    ///     fn on_message(&mut self, line: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.send(line)
    ///     }
    ///
    ///     fn on_reject(&mut self, reason: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.send(format!("ERROR {reason}").as_bytes()) // ERROR bad frame: longer than 8192 bytes
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// An error closes the connection with [`CloseReason::Error`].
    fn on_reject(&mut self, reason: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
        let _ = (reason, cx);
        Ok(())
    }

    /// The server begins to stop. Messages that the handler sends here still go out. Then an idle
    /// connection is closed, and any other one may continue until the [drain
    /// deadline](crate::Server::drain_timeout). A connection is idle when no output waits, no
    /// message has arrived in part, no `on_writable` is pending, its input is not
    /// [paused](Context::pause_input), and it is not [busy](Context::set_busy). Called at most once. By default it does nothing.
    ///
    /// ```
    /// use socketserver::{Context, Handler, HandlerResult};
    ///
    /// /// Says goodbye.
    /// struct Polite;
    ///
    /// impl Handler for Polite {
    ///     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.send(message)
    ///     }
    ///
    ///     fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.send(b"the server stops")
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let _ = cx;
        Ok(())
    }

    /// The conversation has ended for this reason. Called once, as the last call, if
    /// [`on_open`](Handler::on_open) was called. A handler that needs the number or the address of
    /// its connection here stores it from [`Accepted`](crate::Accepted) or [`Context`].
    ///
    /// It is called when the last output has been sent, or cannot be sent. Under
    /// [`Offload`](crate::Offload) it may be called before that: the worker that has called the method
    /// which ends the conversation calls `on_close` next, and the loop sends the output after both have
    /// returned. If the output cannot be sent then, that is not reported: under every mode the first
    /// reason stands, unless a fault follows.
    ///
    /// ```
    /// use socketserver::{CloseReason, Context, Handler, HandlerResult};
    ///
    /// /// Logs the end of each session.
    /// struct Logged;
    ///
    /// impl Handler for Logged {
    ///     fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
    ///         cx.send(message)
    ///     }
    ///
    ///     fn on_close(&mut self, reason: &CloseReason) {
    ///         log::info!("a session has ended: {reason}");
    ///     }
    /// }
    /// ```
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

/// A handler that calls a closure with each message: see [`handler_fn`].
///
/// ```
/// use socketserver::{HandlerFn, handler_fn};
///
/// let echo: HandlerFn<_> = handler_fn(|message, cx| cx.send(message));
/// # let _ = echo;
/// ```
#[derive(Clone, Copy)]
pub struct HandlerFn<F>(F);

impl<F> std::fmt::Debug for HandlerFn<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HandlerFn")
    }
}

/// Creates a handler that calls a closure with each message.
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
