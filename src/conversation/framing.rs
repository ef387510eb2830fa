//! Framings: where a message ends and the next begins. A framing looks at bytes and returns ranges
//! of them. It stores no bytes, and never scans the same byte twice.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use super::output::Output;
use crate::encodable::{CONTAINS_DELIMITER, Encodable, OTHER_SIZE, contains_delimiter, find};
use crate::error::FramingError;

/// The result of [`Framing::decode`]: what is at the start of the input.
///
/// In the guide: [`framing`](crate::guide::framing),
/// [`parsing_once`](crate::guide::parsing_once).
///
/// ```
/// use socketserver::{Decoded, Framing, Lines};
///
/// let mut lines = Lines::default();
/// let decoded = lines.decode(b"one\ntwo")?;
/// assert_eq!(decoded, Decoded::Frame { body: 0..3, consumed: 4 });
/// assert_eq!(lines.decode(b"two")?, Decoded::Incomplete);
/// # Ok::<(), socketserver::FramingError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// A complete message.
    Frame {
        /// The range of the message in the input, without its framing.
        body: Range<usize>,
        /// How many bytes of the input the frame takes; at least 1.
        consumed: usize,
    },
    /// This many bytes belong to no message and are dropped; at least 1.
    Skip(usize),
    /// No complete message yet: `decode` is called again when there are more bytes.
    Incomplete,
    /// As [`Incomplete`](Decoded::Incomplete), if the length of the frame is known: this many bytes
    /// of the input, framing included. Memory for a long frame is then reserved in advance: at
    /// least 64 KiB and at most twice what has arrived. So a long message is not copied repeatedly,
    /// and a length alone takes no memory.
    Need(usize),
}

/// A framing: it splits the byte stream into messages, and encodes messages to be sent.
///
/// The framings of this crate are [`Raw`], [`Lines`], [`Delimited`], [`LengthPrefixed`] and
/// [`FixedSize`]; implement the trait for your own. Each connection has its own value: a clone of
/// the one given to [`Builder::framing`](crate::Builder::framing), or one created for the
/// connection by [`Builder::serve_with`](crate::Builder::serve_with). To choose a framing at run
/// time, use a `Box<dyn Framing + Send>`.
///
/// In the guide: [`behind_a_proxy`](crate::guide::behind_a_proxy),
/// [`framing`](crate::guide::framing), [`testing`](crate::guide::testing),
/// [`parsing_once`](crate::guide::parsing_once).
///
/// ```
/// use socketserver::{Encodable, Framing, FramingError, Output, Decoded};
///
/// /// `5:hello,`: Bernstein's netstrings, up to 999 bytes.
/// #[derive(Clone)]
/// struct Netstring;
///
/// impl Framing for Netstring {
///     fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
///         let Some(colon) = input.iter().take(4).position(|&byte| byte == b':') else {
///             return if input.len() < 4 { Ok(Decoded::Incomplete) } else { Err(FramingError::TooLong { limit: 999 }) };
///         };
///         let length: usize = std::str::from_utf8(&input[..colon])
///             .ok()
///             .and_then(|digits| digits.parse().ok())
///             .ok_or(FramingError::Other("no length".into()))?;
///         let body = colon + 1..colon + 1 + length;
///         match input.get(body.end) {
///             None => Ok(Decoded::Incomplete),
///             Some(b',') => Ok(Decoded::Frame { consumed: body.end + 1, body }),
///             Some(_) => Err(FramingError::Other("no comma".into())),
///         }
///     }
///
///     fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
///         if message.len() > 999 {
///             return Err(FramingError::TooLong { limit: 999 });
///         }
///         output.put(format!("{}:", message.len()).as_bytes());
///         output.put(message);
///         output.put(b",");
///         Ok(())
///     }
///
///     fn encodable(&self) -> Encodable {
///         Encodable::AtMost(999)
///     }
/// }
/// ```
pub trait Framing: Any {
    /// Looks for a message at the start of `input`, which is never empty.
    ///
    /// After [`Decoded::Incomplete`] and [`Decoded::Need`] the next call gets the same bytes and
    /// more bytes after them, so a framing may remember how far it has scanned. After the other two
    /// the next call gets the bytes that follow.
    ///
    /// # Errors
    ///
    /// [`FramingError`] where the bytes can never become a message, or the message is longer than
    /// the maximum of the framing: [`on_reject`](crate::Handler::on_reject) is called, and the
    /// connection is closed with [`CloseReason::Framing`](crate::CloseReason::Framing).
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError>;

    /// Decodes the last bytes of a peer that has ended; called again until none are left. `input` is
    /// what is left over:
    /// [`decode`](Framing::decode) has returned [`Decoded::Incomplete`] or [`Decoded::Need`] for it.
    ///
    /// ```
    /// use socketserver::{Decoded, Framing, Lines};
    ///
    /// let mut lines = Lines::default().unterminated(true);
    /// assert_eq!(lines.decode(b"the last")?, Decoded::Incomplete);
    /// assert_eq!(lines.decode_eof(b"the last")?, Decoded::Frame { body: 0..8, consumed: 8 });
    /// # Ok::<(), socketserver::FramingError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// By default [`FramingError::UnexpectedEof`]: the peer ended inside a frame. A result that asks
    /// for more input is this error too.
    fn decode_eof(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        Err(FramingError::UnexpectedEof { buffered: input.len() })
    }

    /// Puts the encoded `message` on the output.
    ///
    /// # Errors
    ///
    /// [`FramingError`] where the message cannot be encoded: it is too long, or contains its own
    /// delimiter. In this case nothing should have been put on the output.
    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError>;

    /// Describes which messages [`encode`](Framing::encode) takes, so that a
    /// [`Sender`](crate::Sender) can refuse others on the thread that sends them. Called once for
    /// each sender that [`Context::sender`](crate::Context::sender) creates. By default
    /// [`Encodable::Any`].
    ///
    /// If a sender has taken a message that `encode` then refuses, the message is dropped, logged
    /// and counted as [`unsent`](crate::Counters::unsent), and the connection stays open.
    fn encodable(&self) -> Encodable {
        Encodable::Any
    }
}

impl<F: Framing + ?Sized> Framing for Box<F> {
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        (**self).decode(input)
    }

    fn decode_eof(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        (**self).decode_eof(input)
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        (**self).encode(message, output)
    }

    fn encodable(&self) -> Encodable {
        (**self).encodable()
    }
}

/// No framing: a message is the bytes of one read, at most 64 KiB. Python's `recv`.
///
/// The handler itself has to find where a message of the peer ends: TCP joins and splits messages.
///
/// In the guide: [`framing`](crate::guide::framing), [`streaming`](crate::guide::streaming).
///
/// ```
/// use socketserver::{Decoded, Framing, Raw};
///
/// assert_eq!(Raw.decode(b"any bytes")?, Decoded::Frame { body: 0..9, consumed: 9 });
/// # Ok::<(), socketserver::FramingError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Raw;

impl Framing for Raw {
    #[inline]
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        Ok(Decoded::Frame { body: 0..input.len(), consumed: input.len() })
    }

    #[inline]
    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        output.put(message);
        Ok(())
    }
}

/// What a delimiter framing does with a frame that is longer than its maximum.
///
/// ```
/// use socketserver::{Lines, Overlong};
///
/// let lines = Lines::default().max_len(512).overlong(Overlong::Discard); // and not the connection
/// # let _ = lines;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Overlong {
    /// Close the connection with [`FramingError::TooLong`].
    #[default]
    Close,
    /// Drop everything up to and including the next delimiter, and continue.
    Discard,
}

/// Lines that end in `\n` or `\r\n`, delivered without it; sent with `\n`. A message that contains
/// `\n` reaches the peer as several lines.
///
/// A line may be 8,192 bytes long, unless [`max_len`](Lines::max_len) sets another maximum. A last
/// line without an end is an error ([`FramingError::UnexpectedEof`]) unless
/// [`unterminated`](Lines::unterminated) accepts it, as Python's `readline` does.
///
/// In the guide: [`framing`](crate::guide::framing).
///
/// ```
/// use socketserver::{Lines, Server, handler_fn};
///
/// let server = Server::tcp("127.0.0.1:0")?
///     .framing(Lines::default().max_len(512).unterminated(true))
///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
/// # drop(server);
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lines {
    scan: Scan,
    unterminated: bool,
}

impl Lines {
    /// The default longest line, in bytes, without its end.
    ///
    /// ```
    /// use socketserver::{Framing, FramingError, Lines};
    ///
    /// let long = vec![b'x'; Lines::DEFAULT_MAX_LEN + 2];
    /// assert!(matches!(Lines::default().decode(&long), Err(FramingError::TooLong { .. })));
    /// ```
    pub const DEFAULT_MAX_LEN: usize = 8192;

    /// Sets the longest line, in bytes, without its end.
    #[must_use]
    pub fn max_len(mut self, bytes: usize) -> Self {
        self.scan.max_len = bytes;
        self
    }

    /// Sets what happens to a line that is longer than the maximum.
    ///
    /// ```
    /// use socketserver::{Lines, Overlong};
    ///
    /// let lines = Lines::default().max_len(100).overlong(Overlong::Discard);
    /// # let _ = lines;
    /// ```
    #[must_use]
    pub fn overlong(mut self, overlong: Overlong) -> Self {
        self.scan.overlong = overlong;
        self
    }

    /// Accepts a last line that does not end in `\n`.
    #[must_use]
    pub fn unterminated(mut self, accepted: bool) -> Self {
        self.unterminated = accepted;
        self
    }
}

impl Default for Lines {
    fn default() -> Self {
        Lines { scan: Scan::new(Self::DEFAULT_MAX_LEN), unterminated: false }
    }
}

/// `body` without a carriage return at its end.
fn without_cr(input: &[u8], body: Range<usize>) -> Range<usize> {
    let cr = input[body.clone()].last() == Some(&b'\r');
    body.start..body.end - usize::from(cr)
}

impl Framing for Lines {
    #[inline(always)] // or a whole message costs as much again
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        // One more byte than the maximum may come before the `\n`: the carriage return.
        let step = self.scan.find(input, b"\n", 1)?;
        Ok(match step {
            Decoded::Frame { body, consumed } => {
                let body = without_cr(input, body);
                if body.len() > self.scan.max_len {
                    self.scan.too_long(consumed)?
                } else {
                    Decoded::Frame { body, consumed }
                }
            }
            other => other,
        })
    }

    fn decode_eof(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        if !self.unterminated || self.scan.discarding {
            return Err(FramingError::UnexpectedEof { buffered: input.len() });
        }
        let body = without_cr(input, 0..input.len());
        if body.len() > self.scan.max_len {
            return self.scan.too_long(input.len());
        }
        Ok(Decoded::Frame { body, consumed: input.len() })
    }

    #[inline(always)]
    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        output.put(message);
        output.put(b"\n");
        Ok(())
    }
}

/// Messages that end in a delimiter of one or more bytes, delivered without it.
///
/// A message may be 8,192 bytes long, unless [`max_len`](Delimited::max_len) sets another maximum.
/// A message that contains the delimiter cannot be sent.
///
/// In the guide: [`framing`](crate::guide::framing).
///
/// ```
/// use socketserver::{Delimited, Server, handler_fn};
///
/// let server = Server::tcp("127.0.0.1:0")?
///     .framing(Delimited::new(*b"\r\n\r\n").max_len(16 * 1024))
///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
/// # drop(server);
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delimited {
    scan: Scan,
    delimiter: Arc<[u8]>,
}

impl Delimited {
    /// The default longest message, in bytes, without its delimiter.
    ///
    /// ```
    /// use socketserver::{Delimited, Framing, FramingError};
    ///
    /// let long = vec![b'x'; Delimited::DEFAULT_MAX_LEN + 2];
    /// assert!(matches!(Delimited::new(*b";").decode(&long), Err(FramingError::TooLong { .. })));
    /// ```
    pub const DEFAULT_MAX_LEN: usize = 8192;

    /// Messages that end in `delimiter`.
    ///
    /// # Panics
    ///
    /// If the delimiter is empty.
    pub fn new(delimiter: impl Into<Vec<u8>>) -> Self {
        let delimiter: Arc<[u8]> = delimiter.into().into();
        assert!(!delimiter.is_empty(), "a delimiter has at least one byte");
        Delimited { scan: Scan::new(Self::DEFAULT_MAX_LEN), delimiter }
    }

    /// Sets the longest message, in bytes, without its delimiter.
    #[must_use]
    pub fn max_len(mut self, bytes: usize) -> Self {
        self.scan.max_len = bytes;
        self
    }

    /// Sets what happens to a message that is longer than the maximum.
    ///
    /// ```
    /// use socketserver::{Delimited, Overlong};
    ///
    /// let records = Delimited::new(*b";").max_len(100).overlong(Overlong::Discard);
    /// # let _ = records;
    /// ```
    #[must_use]
    pub fn overlong(mut self, overlong: Overlong) -> Self {
        self.scan.overlong = overlong;
        self
    }
}

impl Framing for Delimited {
    #[inline]
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        self.scan.find(input, &self.delimiter, 0)
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        if contains_delimiter(message, &self.delimiter) {
            return Err(FramingError::Unencodable(CONTAINS_DELIMITER));
        }
        output.put(message);
        output.put(&self.delimiter);
        Ok(())
    }

    fn encodable(&self) -> Encodable {
        Encodable::Without(self.delimiter.clone())
    }
}

/// An incremental search for a delimiter, for [`Lines`] and [`Delimited`].
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scan {
    max_len: usize,
    overlong: Overlong,
    /// How many bytes at the start of the input are known to contain no delimiter.
    scanned: usize,
    /// Whether an over-long frame is being dropped.
    discarding: bool,
}

impl Scan {
    fn new(max_len: usize) -> Self {
        Scan { max_len, overlong: Overlong::Close, scanned: 0, discarding: false }
    }

    /// Finds `delimiter`; a frame may be `slack` bytes longer than the maximum (the caller cuts
    /// them).
    #[inline(always)]
    fn find(
        &mut self,
        input: &[u8],
        delimiter: &[u8],
        slack: usize,
    ) -> Result<Decoded, FramingError> {
        // A delimiter may begin in the bytes that were scanned before and end in the new ones.
        let from = self.scanned.saturating_sub(delimiter.len() - 1);
        let end = find(&input[from..], delimiter).map(|at| from + at);
        match end {
            Some(end) if end <= self.max_len && !self.discarding => {
                self.scanned = 0;
                Ok(Decoded::Frame { body: 0..end, consumed: end + delimiter.len() })
            }
            _ => self.found(end, input.len(), delimiter.len(), slack),
        }
    }

    /// As [`find`](Self::find), after the search: `end` is the position of the delimiter.
    #[inline(never)]
    fn found(
        &mut self,
        end: Option<usize>,
        input: usize,
        delimiter: usize,
        slack: usize,
    ) -> Result<Decoded, FramingError> {
        let most = self.max_len.saturating_add(slack);
        if let Some(end) = end {
            self.scanned = 0;
            let consumed = end + delimiter;
            return if std::mem::take(&mut self.discarding) {
                Ok(Decoded::Skip(consumed))
            } else if end > most {
                self.too_long(consumed)
            } else {
                Ok(Decoded::Frame { body: 0..end, consumed })
            };
        }
        self.scanned = input;
        // The bytes that may still become the frame: all but the beginning of a delimiter.
        let kept = input.min(delimiter - 1);
        let frame = input - kept;
        if frame > most && self.overlong == Overlong::Close {
            return Err(FramingError::TooLong { limit: self.max_len });
        }
        if frame > most || (self.discarding && frame > 0) {
            self.discarding = true;
            self.scanned = kept;
            return Ok(Decoded::Skip(frame));
        }
        Ok(Decoded::Incomplete)
    }

    /// The end of an over-long frame has been found after `consumed` bytes.
    #[cold]
    fn too_long(&mut self, consumed: usize) -> Result<Decoded, FramingError> {
        match self.overlong {
            Overlong::Close => Err(FramingError::TooLong { limit: self.max_len }),
            Overlong::Discard => Ok(Decoded::Skip(consumed)),
        }
    }
}

/// The byte order of a length.
///
/// ```
/// use socketserver::{Decoded, Endian, Framing, LengthPrefixed, Width};
///
/// let mut messages = LengthPrefixed::new(Width::Two, Endian::Little);
/// assert_eq!(messages.decode(b"\x02\0hi")?, Decoded::Frame { body: 2..4, consumed: 4 });
/// # Ok::<(), socketserver::FramingError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Endian {
    /// Most significant byte first: network order.
    #[default]
    Big,
    /// Least significant byte first.
    Little,
}

/// Messages with a length prefix, which is 1, 2, 4 or 8 bytes wide and counts the message only.
///
/// The default is four bytes, big endian, as in the records of Python's `logging`. A message may be
/// 8 MiB long, unless [`max_len`](LengthPrefixed::max_len) sets another maximum.
///
/// In the guide: [`framing`](crate::guide::framing).
///
/// ```
/// use socketserver::{Endian, LengthPrefixed, Server, Width, handler_fn};
///
/// let server = Server::tcp("127.0.0.1:0")?
///     .framing(LengthPrefixed::new(Width::Two, Endian::Big).max_len(4096))
///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
/// # drop(server);
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LengthPrefixed {
    width: Width,
    endian: Endian,
    max_len: usize,
}

/// How many bytes a length prefix takes.
///
/// ```
/// use socketserver::{Decoded, Endian, Framing, LengthPrefixed, Width};
///
/// let mut messages = LengthPrefixed::new(Width::One, Endian::Big);
/// assert_eq!(messages.decode(b"\x02hi")?, Decoded::Frame { body: 1..3, consumed: 3 });
/// # Ok::<(), socketserver::FramingError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Width {
    /// One byte: up to 255.
    One = 1,
    /// Two bytes: up to 65,535.
    Two = 2,
    /// Four bytes.
    #[default]
    Four = 4,
    /// Eight bytes.
    Eight = 8,
}

impl LengthPrefixed {
    /// The default longest message, in bytes, without its length prefix.
    ///
    /// ```
    /// use socketserver::LengthPrefixed;
    ///
    /// assert_eq!(LengthPrefixed::DEFAULT_MAX_LEN, 8 * 1024 * 1024);
    /// ```
    pub const DEFAULT_MAX_LEN: usize = 8 << 20;

    /// A length prefix of this width and byte order.
    pub fn new(width: Width, endian: Endian) -> Self {
        LengthPrefixed { width, endian, max_len: Self::DEFAULT_MAX_LEN }
    }

    /// Sets the longest message, in bytes, without its length prefix.
    #[must_use]
    pub fn max_len(mut self, bytes: usize) -> Self {
        self.max_len = bytes;
        self
    }

    /// The longest message that can be sent.
    fn limit(&self) -> usize {
        let width = self.width as usize;
        let most = if width == 8 { u64::MAX } else { (1 << (8 * width)) - 1 };
        usize::try_from(most).unwrap_or(usize::MAX).min(self.max_len)
    }

    fn length(&self, prefix: &[u8]) -> u64 {
        let fold = |sum: u64, &byte: &u8| sum << 8 | u64::from(byte);
        match self.endian {
            Endian::Big => prefix.iter().fold(0, fold),
            Endian::Little => prefix.iter().rev().fold(0, fold),
        }
    }
}

impl Default for LengthPrefixed {
    fn default() -> Self {
        LengthPrefixed::new(Width::Four, Endian::Big)
    }
}

impl Framing for LengthPrefixed {
    #[inline]
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        let width = self.width as usize;
        let Some(prefix) = input.get(..width) else {
            return Ok(Decoded::Incomplete);
        };
        let length = usize::try_from(self.length(prefix))
            .ok()
            .filter(|&length| length <= self.max_len)
            .ok_or(FramingError::TooLong { limit: self.max_len })?;
        let body = width..width.saturating_add(length);
        if input.len() < body.end {
            return Ok(Decoded::Need(body.end));
        }
        Ok(Decoded::Frame { consumed: body.end, body })
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        let (width, limit) = (self.width as usize, self.limit());
        if message.len() > limit {
            return Err(FramingError::TooLong { limit });
        }
        let length = message.len() as u64;
        match self.endian {
            Endian::Big => output.put(&length.to_be_bytes()[8 - width..]),
            Endian::Little => output.put(&length.to_le_bytes()[..width]),
        }
        output.put(message);
        Ok(())
    }

    fn encodable(&self) -> Encodable {
        Encodable::AtMost(self.limit())
    }
}

/// Messages that all have one size.
///
/// In the guide: [`framing`](crate::guide::framing).
///
/// ```
/// use socketserver::{FixedSize, Server, handler_fn};
///
/// let server = Server::tcp("127.0.0.1:0")?
///     .framing(FixedSize::new(16))
///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
/// # drop(server);
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedSize {
    size: usize,
}

impl FixedSize {
    /// Messages of `size` bytes.
    ///
    /// # Panics
    ///
    /// If `size` is 0.
    pub fn new(size: usize) -> Self {
        assert!(size > 0, "a message of a fixed size has at least one byte");
        FixedSize { size }
    }
}

impl Framing for FixedSize {
    #[inline]
    fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
        if input.len() < self.size {
            return Ok(Decoded::Need(self.size));
        }
        Ok(Decoded::Frame { body: 0..self.size, consumed: self.size })
    }

    fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
        if message.len() != self.size {
            return Err(FramingError::Unencodable(OTHER_SIZE));
        }
        output.put(message);
        Ok(())
    }

    fn encodable(&self) -> Encodable {
        Encodable::Exactly(self.size)
    }
}
