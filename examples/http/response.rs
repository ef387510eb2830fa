//! The head of an answer, written piece by piece to the output of the connection.

use socketserver::{Context, Output};

use super::date;

/// The phrase of a status.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "Unknown",
    }
}

/// Whether the connection stays open after an answer, and whether the client must be told so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// It does, as HTTP/1.1 expects.
    Keep,
    /// It does, and the client speaks HTTP/1.0.
    KeepOld,
    Close,
}

/// The head of an answer that is being written. Text that is sent often is written without
/// formatting, which would cost more than the rest of the answer.
pub(crate) struct Response<'a> {
    output: Output<'a>,
}

impl<'a> Response<'a> {
    pub(crate) fn new(status: u16, persistence: Persistence, cx: &'a mut Context<'_>) -> Self {
        let mut output = cx.output();
        match status {
            200 => output.put(b"HTTP/1.1 200 OK\r\nDate: "),
            status => {
                output.put(format!("HTTP/1.1 {status} {}\r\nDate: ", reason(status)).as_bytes());
            }
        }
        output.put(&date::now());
        output.put(match persistence {
            Persistence::Keep => b"\r\n",
            Persistence::KeepOld => b"\r\nConnection: keep-alive\r\n",
            Persistence::Close => b"\r\nConnection: close\r\n",
        });
        Response { output }
    }

    /// Puts a field. `name` ends in a colon and a space.
    pub(crate) fn field(&mut self, name: &str, value: &[u8]) -> &mut Self {
        self.output.put(name.as_bytes());
        self.output.put(value);
        self.output.put(b"\r\n");
        self
    }

    /// The length of the body, and the end of the head. The body is put on the output that this
    /// returns.
    pub(crate) fn end(mut self, length: u64) -> Output<'a> {
        let mut digits = [0; 20];
        self.output.put(b"Content-Length: ");
        self.output.put(decimal(length, &mut digits));
        self.output.put(b"\r\n\r\n");
        self.output
    }

    /// The end of the head of an answer that has no body and no length.
    pub(crate) fn end_without_body(mut self) -> Output<'a> {
        self.output.put(b"\r\n");
        self.output
    }

    /// The end of the head, and a body of text that names the status.
    pub(crate) fn end_with_reason(mut self, status: u16, is_head: bool) {
        let text = format!("{status} {}\n", reason(status));
        self.field("Content-Type: ", b"text/plain");
        let mut output = self.end(text.len() as u64);
        if !is_head {
            output.put(text.as_bytes());
        }
    }
}

/// A number in decimal digits, at the end of the buffer.
pub(crate) fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}
