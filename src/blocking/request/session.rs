//! The sessions of requests.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Instant;

use super::stream::Stream;
use super::{Channel, Request, RequestHandler};
use crate::address::{Address, LogPeer, Peer};
use crate::blocking::stream::{SocketEnd, close};
use crate::blocking::wait::is_stop_error;
use crate::blocking::{Served, Session, SessionCx};
use crate::connection_id::ConnectionId;
use crate::datagram::{Datagram, ReplySocket};
use crate::error::{CloseReason, HandlerResult, Limit};
use crate::guard;
use crate::limits::Limits;
use crate::sys::{self, CatchDrop, Socket};

/// A connection with its handler, on its way to where it is served.
pub(crate) struct StreamRequestSession<R> {
    pub(crate) socket: Arc<Socket>,
    pub(crate) peer: Peer,
    pub(crate) id: ConnectionId,
    pub(crate) handler: CatchDrop<R>,
    pub(crate) server_address: Arc<Address>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) accepted: Instant,
}

/// A datagram with its handler.
pub(crate) struct DatagramRequestSession<R> {
    pub(crate) reply_socket: Arc<ReplySocket>,
    pub(crate) datagram: Datagram,
    pub(crate) handler: CatchDrop<R>,
    pub(crate) server_address: Arc<Address>,
}

impl<R: RequestHandler> Session for StreamRequestSession<R> {
    fn run(self: Box<Self>, cx: &mut SessionCx<'_>) -> Served {
        let StreamRequestSession {
            socket,
            peer,
            id,
            mut handler,
            server_address,
            limits,
            accepted,
        } = *self;
        let stream = Stream::new(socket.clone(), &mut cx.wait, cx.stop, &limits, accepted);
        let channel = Channel::Stream(stream);
        let mut request =
            Request::new(channel, peer, &server_address, cx.stop, &mut cx.scratch.tally);
        let reason = answer(&mut *handler, &mut request);
        let Request { peer, channel, .. } = request;
        let (ended, cut) = match &channel {
            Channel::Stream(stream) => {
                let frees_at_once = stream.exceeded().is_some_and(Limit::frees_at_once);
                (stream.ended || frees_at_once, stream.cut)
            }
            Channel::Datagram { .. } => (false, false),
        };
        drop(channel);
        // Gone before its peer learns that it is over.
        drop(handler);
        cx.wait.set_ended();
        let cut = cut || cx.wait.is_cut();
        let mut buffer = std::mem::take(&mut cx.scratch.buffer);
        let lingering = close(&socket, &peer, SocketEnd::new(cut, ended, true), &mut buffer, cx);
        cx.scratch.buffer = buffer;
        // A handler may have passed its descriptor on: the peer sees the end all the same.
        if cut {
            sys::disconnect(&socket);
        } else {
            let _ = socket.shutdown(Shutdown::Write);
        }
        let origin = LogPeer { id: Some(id), peer };
        Served { origin, reason, cut, lingering }
    }
}

impl<R: RequestHandler> Session for DatagramRequestSession<R> {
    fn run(self: Box<Self>, cx: &mut SessionCx<'_>) -> Served {
        let DatagramRequestSession { reply_socket, datagram, mut handler, server_address } = *self;
        let peer = datagram.peer.clone();
        let channel = Channel::Datagram { reply_socket, datagram, at: 0, answered: false };
        let mut request =
            Request::new(channel, peer.clone(), &server_address, cx.stop, &mut cx.scratch.tally);
        let reason = answer(&mut *handler, &mut request);
        let origin = LogPeer { id: None, peer };
        Served { origin, reason, cut: false, lingering: None }
    }
}

/// Runs the handler's three methods as Python does, and sends what is due.
fn answer<R: RequestHandler>(handler: &mut R, request: &mut Request<'_>) -> CatchDrop<CloseReason> {
    request.tally.messages += 1;
    if let Err(reason) = guarded(request, |request| handler.setup(request)) {
        return reason;
    }
    let handled = guarded(request, |request| handler.handle(request));
    let finished = guarded(request, |request| handler.finish(request));
    // A datagram that is half an answer is none: Python sends it all the same.
    let closed = if handled.is_ok() || matches!(request.channel, Channel::Stream(_)) {
        guarded(request, |request| Ok(request.close()?))
    } else {
        Ok(())
    };
    match (handled.and(finished).and(closed), request.exceeded()) {
        (Ok(()), Some(limit)) => CloseReason::Limit(limit).into(),
        (Ok(()), None) => CloseReason::Handler.into(),
        (Err(reason), _) => reason,
    }
}

fn guarded(
    request: &mut Request<'_>,
    call: impl FnOnce(&mut Request<'_>) -> HandlerResult,
) -> Result<(), CatchDrop<CloseReason>> {
    let reason = match guard::call(|| call(request)) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => match (error.downcast::<io::Error>(), request.exceeded()) {
            // It has been counted when it was reached.
            (Ok(_), Some(limit)) => return Err(CloseReason::Limit(limit).into()),
            // It is the stop that has ended it, and not the peer.
            (Ok(error), _) if is_stop_error(&error) => return Err(CloseReason::Shutdown.into()),
            (Ok(error), _) => disconnected(*error),
            (Err(error), _) => CloseReason::Error(error),
        },
        Err(message) => CloseReason::Panic(message),
    };
    *match reason {
        CloseReason::Timeout => &mut request.tally.timeouts,
        CloseReason::Disconnected(_) => &mut request.tally.disconnects,
        CloseReason::Panic(_) => &mut request.tally.panics,
        _ => &mut request.tally.handler_errors,
    } += 1;
    Err(reason.into())
}

/// What an error of the connection's says: the peer is gone, or too slow; or that it is no such
/// error, and the handler's.
fn disconnected(error: io::Error) -> CloseReason {
    use io::ErrorKind::*;
    match error.kind() {
        TimedOut => CloseReason::Timeout,
        ConnectionReset | ConnectionAborted | BrokenPipe | NotConnected | HostUnreachable
        | NetworkUnreachable | NetworkDown => CloseReason::Disconnected(error),
        _ => CloseReason::Error(Box::new(error)),
    }
}
