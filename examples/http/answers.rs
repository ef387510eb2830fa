//! The answers to requests: files, pages, and statuses.

use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use socketserver::Context;

use super::conditions::{Selected, Version, select};
use super::date;
use super::files;
use super::request::{Head, Method, Refused};
use super::response::{Persistence, Response};
use super::target::{self, Target, encode};

/// Up to this length, in bytes, a file is read and sent together with the head of the answer, which
/// is one system call less than sending it from the file.
const READ_UP_TO: u64 = 8 * 1024;

const METHODS: &str = "GET, HEAD, PUT, OPTIONS";

/// A request, and how its answer begins and ends.
pub(crate) struct Request<'a> {
    pub(crate) head: Head,
    pub(crate) bytes: &'a [u8],
    pub(crate) persistence: Persistence,
}

impl Request<'_> {
    fn is_head(&self) -> bool {
        self.head.method == Method::Head
    }

    pub(crate) fn target(&self) -> Result<Target, Refused> {
        target::parse(self.head.target.of_head(self.bytes).unwrap_or_default())
    }
}

/// Answers with a status and its name.
pub(crate) fn refuse(Refused(status): Refused, request: &Request<'_>, cx: &mut Context<'_>) {
    let mut response = Response::new(status, request.persistence, cx);
    if status == 405 {
        response.field("Allow: ", METHODS.as_bytes());
    }
    response.end_with_reason(status, request.is_head());
}

pub(crate) fn options(request: &Request<'_>, cx: &mut Context<'_>) -> Result<(), Refused> {
    if request.head.target.of_head(request.bytes) != Some(b"*") {
        request.target()?;
    }
    let mut response = Response::new(204, request.persistence, cx);
    response.field("Allow: ", METHODS.as_bytes()).field("Accept-Ranges: ", b"bytes");
    response.end_without_body();
    Ok(())
}

pub(crate) fn send_page(
    page: &str,
    request: &Request<'_>,
    cx: &mut Context<'_>,
) -> Result<(), Refused> {
    let mut response = Response::new(200, request.persistence, cx);
    response.field("Content-Type: ", b"text/html; charset=utf-8");
    let mut output = response.end(page.len() as u64);
    if !request.is_head() {
        output.put(page.as_bytes());
    }
    Ok(())
}

/// Asks for a slash at the end, without which the links of the page would lead elsewhere.
pub(crate) fn redirect(
    target: &Target,
    request: &Request<'_>,
    cx: &mut Context<'_>,
) -> Result<(), Refused> {
    let names = target.path.components();
    let names = names.map(|name| encode(name.as_os_str().as_encoded_bytes()));
    let location = format!("/{}/", names.collect::<Vec<_>>().join("/"));
    let mut response = Response::new(301, request.persistence, cx);
    response.field("Location: ", location.as_bytes());
    response.end_with_reason(301, request.is_head());
    Ok(())
}

/// Names the version of WebSocket that is spoken here.
pub(crate) fn ask_for_upgrade(request: &Request<'_>, cx: &mut Context<'_>) -> Result<(), Refused> {
    let mut response = Response::new(426, request.persistence, cx);
    response.field("Upgrade: ", b"websocket").field("Sec-WebSocket-Version: ", b"13");
    response.end_with_reason(426, request.is_head());
    Ok(())
}

/// Sends the head of the answer, and the part of the file that the request selects.
pub(crate) fn send_file(
    file: File,
    version: &Version,
    path: &Path,
    request: &Request<'_>,
    cx: &mut Context<'_>,
) -> Result<(), Refused> {
    let Request { head, bytes, persistence } = request;
    let (status, range) = match select(head.method, &head.fields, bytes, Some(version)) {
        Selected::Whole => (200, 0..version.length),
        Selected::Part(range) => (206, range),
        Selected::NotModified => (304, 0..0),
        Selected::PreconditionFailed => return Err(Refused(412)),
        Selected::NoSuchRange => {
            let mut response = Response::new(416, *persistence, cx);
            response.field("Content-Range: ", format!("bytes */{}", version.length).as_bytes());
            response.end_with_reason(416, false);
            return Ok(());
        }
    };
    let length = range.end - range.start;
    let head = |cx| put_head(status, &range, version, path, request, cx);
    if status == 304 {
        head(cx).end_without_body();
    } else if request.is_head() {
        head(cx).end(length);
    } else if length > READ_UP_TO {
        let mut output = head(cx).end(length);
        output.put_file(Arc::new(file), range).map_err(|_| Refused(500))?;
    } else {
        thread_local!(static PART: RefCell<[u8; READ_UP_TO as usize]> =
            const { RefCell::new([0; READ_UP_TO as usize]) });
        PART.with_borrow_mut(|part| {
            let part = &mut part[..length as usize];
            file.read_exact_at(part, range.start).map_err(files::status)?;
            head(cx).end(length).put(part);
            Ok(())
        })?;
    }
    Ok(())
}

/// Puts the head of the answer, but for the length of the body.
fn put_head<'a>(
    status: u16,
    range: &Range<u64>,
    version: &Version,
    path: &Path,
    request: &Request<'_>,
    cx: &'a mut Context<'_>,
) -> Response<'a> {
    let mut response = Response::new(status, request.persistence, cx);
    response.field("Last-Modified: ", &date::format(version.modified.0));
    response.field("ETag: ", version.tag().as_bytes());
    if status != 304 {
        response
            .field("Accept-Ranges: bytes\r\nContent-Type: ", files::media_type(path).as_bytes());
    }
    if status == 206 {
        response.field("Content-Range: ", content_range(range, version.length).as_bytes());
    }
    response
}

fn content_range(range: &Range<u64>, length: u64) -> String {
    format!("bytes {}-{}/{length}", range.start, range.end - 1)
}
