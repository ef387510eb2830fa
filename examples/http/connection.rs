//! The handler of a connection: it answers requests one after the other, takes uploads, and becomes
//! a member of the chat room when the client opens a WebSocket.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use socketserver::{CloseReason, Context, FramingError, Handler, HandlerResult};

use super::answers::{Request, ask_for_upgrade, options, redirect, refuse, send_file, send_page};
use super::conditions::{Selected, select};
use super::files::{self, Found, Root};
use super::framing::{Part, Progress, Protocol};
use super::request::{Body, Head, Method, Refused};
use super::response::{Persistence, Response};
use super::room::{self, Room, WebMember};
use super::upload::Upload;
use super::websocket;

/// A body that is not wanted is skipped up to this length, in bytes. To skip a longer one would cost
/// more than a new connection.
const SKIP_UP_TO: u64 = 64 * 1024;

/// The least that a client must send of a body, in bytes per second.
const SLOWEST_BODY: u64 = 100;

const CHAT_PAGE: &str = include_str!("chat.html");

/// What all connections share.
pub(crate) struct Site {
    pub(crate) root: Root,
    pub(crate) room: Arc<Room>,
    /// The longest upload, in bytes; `None` if there are none.
    pub(crate) longest_upload: Option<u64>,
    /// Whether a connection may have several requests.
    pub(crate) keep_alive: bool,
    /// How long a client may be silent, or take for the head of a request.
    pub(crate) patience: Duration,
}

/// The handler of one connection.
pub(crate) struct Connection {
    site: Arc<Site>,
    /// The file that the body of the current request is written to, and what comes after it.
    upload: Option<(Upload, Persistence)>,
    member: Option<WebMember>,
    /// How far an incomplete request was when the timer expired last.
    progress: Option<Progress>,
    is_stopping: bool,
}

impl Connection {
    pub(crate) fn new(site: Arc<Site>) -> Self {
        Connection { site, upload: None, member: None, progress: None, is_stopping: false }
    }

    fn request(&mut self, head: Head, bytes: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let persistence = match head.keep_alive && self.site.keep_alive && !self.is_stopping {
            true if head.is_old => Persistence::KeepOld,
            true => Persistence::Keep,
            false => Persistence::Close,
        };
        // After an answer that does not wait for the body, a long body ends the connection.
        let skips_body = match head.body {
            Body::None => true,
            Body::Length(length) => length <= SKIP_UP_TO && !head.expects_continue,
            Body::Chunked => false,
        };
        let mut request = Request { head, bytes, persistence };
        if head.method == Method::Put {
            match self.begin_upload(&request, cx) {
                Ok(()) => return Ok(()),
                Err(refused) if skips_body => refuse(refused, &request, cx),
                Err(refused) => {
                    request.persistence = Persistence::Close;
                    refuse(refused, &request, cx);
                }
            }
        } else {
            if !skips_body {
                request.persistence = Persistence::Close;
            }
            let answered = match head.method {
                Method::Options => options(&request, cx),
                Method::Other => Err(Refused(405)),
                _ => self.get(&request, cx),
            };
            if let Err(refused) = answered {
                refuse(refused, &request, cx);
            }
        }
        let Request { head, persistence, .. } = request;
        match persistence {
            Persistence::Keep | Persistence::KeepOld => {}
            // This client has said that nothing follows: `Connection: close`.
            Persistence::Close if !head.keep_alive && !head.is_old && head.body == Body::None => {
                cx.close_without_lingering();
            }
            Persistence::Close => cx.close(),
        }
        Ok(())
    }

    /// Answers GET and HEAD.
    fn get(&mut self, request: &Request<'_>, cx: &mut Context<'_>) -> Result<(), Refused> {
        let target = request.target()?;
        if target.path == Path::new("chat") {
            return match request.head.fields.wants_websocket {
                true => self.open_websocket(request, cx),
                false => send_page(CHAT_PAGE, request, cx),
            };
        }
        let directory = match self.site.root.open(&target)? {
            Found::File(file, version) => {
                return send_file(file, &version, &target.path, request, cx);
            }
            Found::Directory(path) => path,
        };
        if !target.is_directory {
            return redirect(&target, request, cx);
        }
        if let Some((file, version)) = self.site.root.open_index(&target) {
            return send_file(file, &version, Path::new("index.html"), request, cx);
        }
        if target.path == Path::new("") && self.site.root.is_empty() {
            return send_page(CHAT_PAGE, request, cx);
        }
        send_page(&files::list(&directory, &target.path)?, request, cx)
    }

    /// Answers PUT when the body has arrived, or refuses it now.
    fn begin_upload(&mut self, request: &Request<'_>, cx: &mut Context<'_>) -> Result<(), Refused> {
        let Request { head, bytes, persistence } = *request;
        let limit = self.site.longest_upload.ok_or(Refused(405))?;
        let target = request.target()?;
        if head.fields.content_range.of_head(bytes).is_some() {
            return Err(Refused(400)); // a part of a file would be taken for the whole
        }
        if matches!(head.body, Body::Length(length) if length > limit) {
            return Err(Refused(413));
        }
        let path = self.site.root.place(&target)?;
        let version = match self.site.root.open(&target) {
            Ok(Found::File(_, version)) => Some(version),
            _ => None,
        };
        if select(Method::Put, &head.fields, bytes, version.as_ref()) != Selected::Whole {
            return Err(Refused(412));
        }
        let number = cx.id().to_string();
        self.upload = Some((Upload::begin(path, &number, limit)?, persistence));
        cx.set_busy(true); // until the body has arrived, in however many pieces
        if head.body == Body::None {
            self.take_piece(b"", true, cx);
        } else if head.expects_continue {
            cx.output().put(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        Ok(())
    }

    /// A piece of a body: for the upload, or to be skipped.
    fn take_piece(&mut self, piece: &[u8], is_last: bool, cx: &mut Context<'_>) {
        let Some((upload, persistence)) = &mut self.upload else { return };
        let mut persistence = *persistence;
        let mut status = if upload.replaces { 204 } else { 201 };
        if let Err(Refused(refused)) = upload.write(piece) {
            (status, persistence) = (refused, Persistence::Close);
        } else if !is_last {
            return;
        }
        cx.set_busy(false);
        let finished = match self.upload.take() {
            Some((upload, _)) if status < 300 => upload.finish(),
            _ => Ok(()),
        };
        if let Err(Refused(refused)) = finished {
            status = refused;
        }
        if self.is_stopping {
            persistence = Persistence::Close;
        }
        let response = Response::new(status, persistence, cx);
        match status {
            204 => drop(response.end_without_body()),
            _ => response.end_with_reason(status, false),
        }
        if persistence == Persistence::Close {
            cx.close();
        }
    }

    fn open_websocket(
        &mut self,
        request: &Request<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), Refused> {
        let Request { head, bytes, .. } = *request;
        if head.fields.websocket_version.of_head(bytes) != Some(b"13") {
            return ask_for_upgrade(request, cx);
        }
        let key = head.fields.websocket_key.of_head(bytes).and_then(websocket::accept_key);
        let (Some(key), Method::Get, Body::None) = (key, head.method, head.body) else {
            return Err(Refused(400));
        };
        // Without senders, members could not reach each other.
        if cx.sender().is_err() {
            return Err(Refused(501));
        }
        if let Some(protocol) = cx.framing::<Protocol>() {
            protocol.upgrade();
        }
        cx.output().put(websocket::switching_protocols(&key).as_bytes());
        let _ = cx.set_timer(None);
        match self.site.room.join(cx) {
            Ok(member) => self.member = Some(WebMember::new(member)),
            Err(_) => room::end(Some(1011), cx),
        }
        Ok(())
    }

    /// Ends a connection whose client takes too long for a request.
    fn time_out(&mut self, cx: &mut Context<'_>) {
        self.upload = None;
        Response::new(408, Persistence::Close, cx).end_with_reason(408, false);
        cx.close();
    }
}

impl Handler for Connection {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        cx.set_idle_timeout(self.site.patience)?;
        Ok(cx.set_timer(cx.now() + self.site.patience)?)
    }

    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let Some(protocol) = cx.framing::<Protocol>() else { return Ok(()) };
        match protocol.part() {
            Part::Head => {
                if let Some(head) = protocol.head() {
                    return self.request(head, message, cx);
                }
            }
            part @ (Part::Piece | Part::LastPiece) => {
                self.take_piece(message, part == Part::LastPiece, cx);
            }
            Part::Frame => {
                let frame = protocol.frames().and_then(websocket::Frames::take);
                if let Some(member) = &mut self.member {
                    member.on_frame(frame, cx);
                }
            }
        }
        Ok(())
    }

    /// A request must be complete in time. The timer expires at intervals, so that it need not be set
    /// for each request: one that is incomplete twice, and has not moved on, takes too long.
    fn on_timer(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        let patience = self.site.patience;
        // While output waits, what the client has sent is not decoded.
        let progress = match cx.room() {
            0 => None,
            _ => cx.framing::<Protocol>().and_then(|protocol| protocol.progress()),
        };
        if let (Some(before), Some(now)) = (self.progress, progress)
            && now.requests == before.requests
            && now.bytes - before.bytes < SLOWEST_BODY * patience.as_secs().max(1)
        {
            self.time_out(cx);
            return Ok(());
        }
        self.progress = progress;
        Ok(cx.set_timer(cx.now() + patience)?)
    }

    fn on_idle_timeout(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if let Some(member) = &mut self.member {
            member.on_idle_timeout(cx);
        } else if cx.framing::<Protocol>().is_some_and(|protocol| protocol.progress().is_some()) {
            self.time_out(cx);
        } else {
            cx.close();
        }
        Ok(())
    }

    fn on_reject(&mut self, reason: &CloseReason, cx: &mut Context<'_>) -> HandlerResult {
        if self.member.is_some() {
            return room::reject(reason, cx);
        }
        self.upload = None;
        let status = match reason {
            CloseReason::Framing(FramingError::Other(error)) => error.downcast_ref(),
            _ => None,
        };
        let Refused(status) = *status.unwrap_or(&Refused(400));
        Response::new(status, Persistence::Close, cx).end_with_reason(status, false);
        Ok(())
    }

    fn on_stop(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        self.is_stopping = true;
        if self.member.is_some() {
            room::end(Some(1001), cx); // the server goes away
        }
        Ok(())
    }

    fn on_close(&mut self, _reason: &CloseReason) {
        self.member = None;
        self.upload = None;
    }
}
