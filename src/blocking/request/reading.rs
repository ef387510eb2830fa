//! A request as a reader and a writer.

use std::fmt;
use std::io::{self, BufRead, Read, Write};

use super::{Channel, Request};

impl BufRead for Request<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.unread().is_empty() {
            self.read_more()?;
        }
        Ok(self.unread())
    }

    fn consume(&mut self, count: usize) {
        let count = count.min(self.unread().len());
        match &mut self.channel {
            Channel::Stream(stream) => {
                stream.at += count;
                if count > 0 && !stream.is_in_whole() {
                    stream.input_taken();
                }
            }
            Channel::Datagram { at, .. } => *at += count,
        }
    }

    fn read_until(&mut self, byte: u8, bytes: &mut Vec<u8>) -> io::Result<usize> {
        self.whole(|request| {
            let start = bytes.len();
            loop {
                let available = request.fill_buf()?;
                let end = available.iter().position(|each| *each == byte);
                let count = end.map_or(available.len(), |end| end + 1);
                bytes.extend_from_slice(&available[..count]);
                request.consume(count);
                if end.is_some() || count == 0 {
                    return Ok(bytes.len() - start);
                }
            }
        })
    }

    fn read_line(&mut self, line: &mut String) -> io::Result<usize> {
        append_text(line, |bytes| self.read_until(b'\n', bytes))
    }
}

impl Read for Request<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        if count > 0
            && let Channel::Stream(stream) = &mut self.channel
            && !stream.is_in_whole()
        {
            stream.message_came();
        }
        Ok(count)
    }

    fn read_exact(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        self.whole(move |request| {
            while !buffer.is_empty() {
                match request.read(buffer)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => buffer = &mut buffer[count..],
                }
            }
            Ok(())
        })
    }

    fn read_to_end(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        self.whole(|request| {
            let start = bytes.len();
            loop {
                let available = request.fill_buf()?;
                let count = available.len();
                if count == 0 {
                    return Ok(bytes.len() - start);
                }
                bytes.extend_from_slice(available);
                request.consume(count);
            }
        })
    }

    fn read_to_string(&mut self, text: &mut String) -> io::Result<usize> {
        append_text(text, |bytes| self.read_to_end(bytes))
    }
}

/// Appends what `read` reads, if it is text.
fn append_text(
    text: &mut String,
    read: impl FnOnce(&mut Vec<u8>) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut bytes = Vec::new();
    let read = read(&mut bytes);
    match String::from_utf8(bytes) {
        Ok(more) => {
            text.push_str(&more);
            read
        }
        Err(_) => read
            .and(Err(io::Error::new(io::ErrorKind::InvalidData, "the input is not valid UTF-8"))),
    }
}

impl Write for Request<'_> {
    /// Takes all of `bytes`: what is not gathered has gone out when this returns.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.channel {
            Channel::Datagram { answered, .. } => {
                *answered = true;
                self.written.extend_from_slice(bytes);
            }
            Channel::Stream(stream) if stream.write_buffer == 0 => {
                stream.write_all(bytes, false, self.tally)?;
            }
            Channel::Stream(stream) => {
                let limit = stream.write_buffer;
                self.written.extend_from_slice(bytes);
                stream.hold_written(self.written.capacity());
                stream.check_memory(self.tally)?;
                if self.written.len() >= limit {
                    self.flush()?;
                }
            }
        }
        Ok(bytes.len())
    }

    /// Sends the text of one `write!` at once, and not each of its pieces.
    fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> io::Result<()> {
        match text.as_str() {
            Some(text) => self.write_all(text.as_bytes()),
            None => {
                let mut whole = String::new();
                fmt::write(&mut whole, text).map_err(io::Error::other)?;
                self.write_all(whole.as_bytes())
            }
        }
    }

    /// As [`write`](Write::write), which takes all; of no bytes too, since an empty datagram is a
    /// reply.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(bytes).map(drop)
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Channel::Stream(stream) = &mut self.channel
            && !self.written.is_empty()
        {
            let written = std::mem::take(&mut self.written);
            let sent = stream.write_all(&written, false, self.tally);
            stream.hold_written(0);
            sent?;
        }
        Ok(())
    }
}
