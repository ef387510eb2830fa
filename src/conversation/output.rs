//! The output of one step of a conversation, without a copy where possible: a list of segments. A
//! segment is a range of the input just read, bytes in the thread's scratch buffer, a shared
//! payload, or a part of a file.

use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use crate::error::UnsupportedError;
use crate::sender::SharedBytes;
use crate::sys::Destination;

/// Below this size, in bytes, copying a shared payload is cheaper than a reference to it.
const SHARED_FROM: usize = 512;

/// Up to this size, in bytes, gathering several segments into one buffer is cheaper than a vectored
/// write.
const GATHER_UP_TO: usize = 8192;

/// The most that files count as output, in bytes, so that adding to the length cannot overflow.
const MOST_COUNTED: usize = usize::MAX / 2;

/// The least that a part of a file counts as output, in bytes, so that the number of descriptors that
/// wait with it is bounded too.
const FILE_CHARGE: u64 = 4096;

/// Up to this length, in bytes, a part of a file is sent in the same packet as the bytes before it
/// (MSG_MORE). Before a longer part they are sent at once: the peer begins to read while the file is
/// sent, and one packet among so many is no cost. For 100 KiB over the loopback interface, that saves
/// a quarter of the processor time.
const JOINED_UP_TO: u64 = 64 * 1024;

/// The most bytes that are compared to extend a repeated range of the input.
const REPEAT_UP_TO: usize = 8;

#[derive(Debug)]
enum Segment {
    Input(Range<usize>),
    Scratch(Range<usize>),
    Shared(SharedBytes, Range<usize>),
    File(Arc<File>, Range<u64>),
}

impl Segment {
    fn is_file(&self) -> bool {
        matches!(self, Segment::File(..))
    }

    /// Whether the bytes before it wait for it.
    fn is_joined(&self) -> bool {
        matches!(self, Segment::File(_, range) if OutputBuffer::is_joined(range))
    }

    /// Cuts the segment to its first `len` bytes. Nothing is appended to a file, so a file is never
    /// cut.
    fn shorten(&mut self, len: usize) {
        match self {
            Segment::Input(range) | Segment::Scratch(range) | Segment::Shared(_, range) => {
                range.end = range.end.min(range.start + len);
            }
            Segment::File(..) => {}
        }
    }

    /// How many bytes of the segment are in memory: none for a file.
    fn len(&self) -> usize {
        match self {
            Segment::Input(range) | Segment::Scratch(range) | Segment::Shared(_, range) => {
                range.len()
            }
            Segment::File(..) => 0,
        }
    }
}

/// A position in an [`OutputBuffer`].
pub(crate) struct Position {
    segments: usize,
    /// The length of the last segment.
    last: usize,
    scratch: usize,
    len: usize,
}

/// The buffers behind [`Output`]. A thread keeps them between steps, so that none is allocated
/// twice.
#[derive(Debug, Default)]
pub(crate) struct OutputBuffer {
    /// All of the output, while it is one range of the input, which is the usual case.
    repeated: Range<usize>,
    /// All of the output otherwise.
    segments: Vec<Segment>,
    scratch: Vec<u8>,
    len: usize,
    /// Each segment is one datagram.
    is_datagram: bool,
    /// The next bytes begin a datagram.
    begins_datagram: bool,
    /// The destinations of datagrams to other peers, each with the index of its segment.
    recipients: Vec<(usize, Destination)>,
}

impl OutputBuffer {
    /// How many bytes are to be sent. A part of a file counts as [`file_charge`](Self::file_charge) says,
    /// although it takes no memory.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many bytes a part of a file counts as: as many as it has, and no less than 4 KiB.
    pub(crate) fn file_charge(range: &Range<u64>) -> u64 {
        (range.end - range.start).max(FILE_CHARGE)
    }

    /// Whether the bytes before a part of a file are sent in one packet with its beginning.
    pub(crate) fn is_joined(range: &Range<u64>) -> bool {
        range.end - range.start <= JOINED_UP_TO
    }

    /// The current position, for [`cut_back`](OutputBuffer::cut_back).
    pub(crate) fn position(&mut self) -> Position {
        self.list();
        let OutputBuffer { segments, scratch, len, .. } = self;
        let last = segments.last().map_or(0, Segment::len);
        Position { segments: segments.len(), last, scratch: scratch.len(), len: *len }
    }

    /// Removes everything that was added after the position.
    pub(crate) fn cut_back(&mut self, to: Position) {
        self.list();
        self.segments.truncate(to.segments);
        if let Some(last) = self.segments.last_mut() {
            last.shorten(to.last);
        }
        self.scratch.truncate(to.scratch);
        self.len = to.len;
    }

    /// Whether there is nothing to send. An empty datagram counts as something.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0 && self.segments.is_empty()
    }

    /// Whether it owns little memory.
    pub(crate) fn is_small(&self) -> bool {
        self.scratch.capacity() <= 1 << 16 && self.segments.capacity() <= 1 << 8
    }

    /// Clears the output after it was sent, and frees the memory of a large step.
    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        self.len = 0;
        if self.segments.is_empty() {
            self.repeated = 0..0;
        } else {
            self.clear_all();
        }
    }

    #[inline(never)]
    fn clear_all(&mut self) {
        self.is_datagram = false;
        self.begins_datagram = false;
        self.segments.clear();
        self.scratch.clear();
        self.recipients.clear();
        if self.scratch.capacity() > 1 << 20 || self.segments.capacity() > 1 << 12 {
            *self = OutputBuffer::default();
        }
    }

    /// All of the output as one slice, if it is one range, or short enough to be gathered.
    #[inline(always)]
    pub(crate) fn contiguous<'a>(&'a mut self, input: &'a [u8]) -> Option<&'a [u8]> {
        if self.segments.is_empty() {
            return Some(&input[self.repeated.clone()]);
        }
        self.gathered(input)
    }

    /// Converts a single range to a list, so that segments can be added.
    #[inline(never)]
    fn list(&mut self) {
        if self.repeated.start < self.repeated.end {
            self.segments.push(Segment::Input(std::mem::take(&mut self.repeated)));
        }
    }

    #[inline(never)]
    fn gathered<'a>(&'a mut self, input: &'a [u8]) -> Option<&'a [u8]> {
        if self.segments.len() == 1 && !self.segments[0].is_file() {
            return Some(bytes(&self.segments[0], input, &self.scratch));
        }
        if self.len > GATHER_UP_TO || self.segments.iter().any(Segment::is_file) {
            return None;
        }
        let start = self.scratch.len();
        self.scratch.reserve(self.len);
        for segment in &self.segments {
            match segment {
                Segment::Input(range) => self.scratch.extend_from_slice(&input[range.clone()]),
                Segment::Scratch(range) => self.scratch.extend_from_within(range.clone()),
                Segment::Shared(payload, range) => {
                    self.scratch.extend_from_slice(&payload[range.clone()]);
                }
                Segment::File(..) => {}
            }
        }
        self.segments.clear();
        self.segments.push(Segment::Scratch(start..self.scratch.len()));
        Some(&self.scratch[start..])
    }

    /// Fills in the first segments, up to the first file, as slices for one vectored write. Returns
    /// how many slices were filled in, and whether a short part of a file follows, which they are
    /// [joined](Self::is_joined) with.
    pub(crate) fn slices<'a>(
        &'a mut self,
        input: &'a [u8],
        into: &mut [IoSlice<'a>],
    ) -> (usize, bool) {
        self.list();
        let in_memory = self.segments.iter().take_while(|segment| !segment.is_file());
        let mut filled = 0;
        for (slot, segment) in into.iter_mut().zip(in_memory) {
            *slot = IoSlice::new(bytes(segment, input, &self.scratch));
            filled += 1;
        }
        (filled, self.segments.get(filled).is_some_and(Segment::is_joined))
    }

    /// The bytes of every segment in order.
    #[cfg(test)]
    pub(crate) fn parts<'a>(&'a mut self, input: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.list();
        let OutputBuffer { segments, scratch, .. } = &*self;
        segments.iter().map(move |segment| bytes(segment, input, scratch))
    }

    /// Passes the output after the first `sent` bytes to `keep`. These bytes precede the first
    /// file. Shared payloads and files are passed by reference, and other bytes are to be copied.
    pub(crate) fn unsent(
        &mut self,
        input: &[u8],
        mut sent: usize,
        mut keep: impl FnMut(Unsent<'_>),
    ) {
        self.list();
        for segment in &self.segments {
            if let Segment::File(file, range) = segment {
                keep(Unsent::File(file.clone(), range.clone()));
                continue;
            }
            let skipped = sent.min(segment.len());
            sent -= skipped;
            if skipped == segment.len() {
                continue;
            }
            match segment {
                Segment::Shared(payload, range) => {
                    keep(Unsent::Shared(payload.clone(), range.start + skipped..range.end));
                }
                other => keep(Unsent::Bytes(&bytes(other, input, &self.scratch)[skipped..])),
            }
        }
    }
}

/// Output that the kernel did not take.
#[derive(Debug)]
pub(crate) enum Unsent<'a> {
    /// Bytes that are valid only in this step.
    Bytes(&'a [u8]),
    /// Bytes with shared ownership.
    Shared(SharedBytes, Range<usize>),
    /// A part of a file, which is not empty.
    File(Arc<File>, Range<u64>),
}

#[inline(always)]
fn bytes<'a>(segment: &'a Segment, input: &'a [u8], scratch: &'a [u8]) -> &'a [u8] {
    match segment {
        Segment::Input(range) => &input[range.clone()],
        Segment::Scratch(range) => &scratch[range.clone()],
        Segment::Shared(payload, range) => &payload[range.clone()],
        Segment::File(..) => &[],
    }
}

/// The output of one connection: a [`Framing`](crate::Framing) puts each message to be sent here.
///
/// The bytes are sent unchanged and in this order when the handler has returned.
///
/// In the guide: [`files`](crate::guide::files).
///
/// ```
/// use std::io::Write;
/// use socketserver::Output;
///
/// /// Puts a chunk of HTTP's chunked coding.
/// fn put_chunk(bytes: &[u8], output: &mut Output<'_>) -> std::io::Result<()> {
///     write!(output, "{:x}\r\n", bytes.len())?;
///     output.put(bytes);
///     output.put(b"\r\n");
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Output<'a> {
    /// The input of the current step.
    input: &'a [u8],
    /// The shared payload that is being sent, if any.
    shared: Option<&'a SharedBytes>,
    output_buffer: &'a mut OutputBuffer,
}

impl<'a> Output<'a> {
    #[inline]
    pub(crate) fn new(input: &'a [u8], output_buffer: &'a mut OutputBuffer) -> Self {
        Output { input, shared: None, output_buffer }
    }

    pub(crate) fn sharing(payload: &'a SharedBytes, output_buffer: &'a mut OutputBuffer) -> Self {
        Output { input: &[], shared: Some(payload), output_buffer }
    }

    /// Calls `call` with an output that refers to the bytes of `payload` instead of copying them.
    pub(crate) fn share<T>(
        &mut self,
        payload: &SharedBytes,
        call: impl FnOnce(&mut Output<'_>) -> T,
    ) -> T {
        call(&mut Output {
            input: self.input,
            shared: Some(payload),
            output_buffer: &mut *self.output_buffer,
        })
    }

    /// The same output with a shorter lifetime.
    #[inline]
    pub(super) fn reborrow(&mut self) -> Output<'_> {
        let Output { input, shared, output_buffer } = self;
        Output { input, shared: *shared, output_buffer }
    }

    /// The same output for one datagram, which begins with the first write; each further write is
    /// appended to it. All bytes are copied.
    pub(super) fn datagram(&mut self) -> Output<'_> {
        self.output_buffer.is_datagram = true;
        self.output_buffer.begins_datagram = true;
        Output { input: &[], shared: None, output_buffer: &mut *self.output_buffer }
    }

    /// How many bytes the step has collected.
    pub(super) fn len(&self) -> usize {
        self.output_buffer.len()
    }

    /// Adds bytes. Bytes of the message just received and of a shared payload are referred to; all
    /// others are copied.
    ///
    /// ```
    /// use socketserver::Output;
    ///
    /// /// Puts a line that ends as in HTTP.
    /// fn put_line(line: &[u8], output: &mut Output<'_>) {
    ///     output.put(line);
    ///     output.put(b"\r\n");
    /// }
    /// ```
    #[inline(always)]
    pub fn put(&mut self, bytes: &[u8]) {
        let OutputBuffer { repeated, segments, len, .. } = &mut *self.output_buffer;
        if segments.is_empty() {
            // Most answers repeat the input, each from where the previous one ended.
            if let Some(start) = offset(self.input, bytes)
                && (*len == 0 || repeated.end == start)
            {
                if *len == 0 {
                    repeated.start = start;
                }
                repeated.end = start + bytes.len();
                *len += bytes.len();
                return;
            }
            // A delimiter that also follows in the input keeps the answer one range of it. An event
            // that follows messages in the same step, such as `on_reject`, has no input.
            if *len > 0
                && bytes.len() <= REPEAT_UP_TO
                && self.input.get(repeated.end..).is_some_and(|rest| rest.starts_with(bytes))
            {
                repeated.end += bytes.len();
                *len += bytes.len();
                return;
            }
        }
        self.put_more(bytes);
    }

    #[inline(never)]
    fn put_more(&mut self, bytes: &[u8]) {
        let OutputBuffer { segments, scratch, len, begins_datagram, .. } = &mut *self.output_buffer;
        if std::mem::take(begins_datagram) {
            return self.put_datagram(bytes);
        }
        if bytes.is_empty() {
            return;
        }
        // An answer written in several pieces: each is appended to the previous one.
        if self.shared.is_none()
            && let Some(Segment::Scratch(range)) = segments.last_mut()
            && range.end == scratch.len()
            && offset(self.input, bytes).is_none()
        {
            scratch.extend_from_slice(bytes);
            range.end += bytes.len();
            *len += bytes.len();
            return;
        }
        self.output_buffer.list();
        match offset(self.input, bytes) {
            Some(start) => self.put_input(start, bytes.len()),
            None => self.put_other(bytes),
        }
        self.output_buffer.len += bytes.len();
    }

    /// Adds the bytes of a payload that is shared with other connections. They are referred to and
    /// not copied, unless they are fewer than 512, which are cheaper to copy. In a datagram they
    /// are always copied.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use socketserver::{Framing, FramingError, Output, Decoded};
    ///
    /// /// Ends each message with the same trailer.
    /// #[derive(Clone)]
    /// struct Trailed(Arc<[u8]>);
    ///
    /// impl Framing for Trailed {
    ///     fn decode(&mut self, input: &[u8]) -> Result<Decoded, FramingError> {
    ///         Ok(Decoded::Frame { body: 0..input.len(), consumed: input.len() })
    ///     }
    ///
    ///     fn encode(&mut self, message: &[u8], output: &mut Output<'_>) -> Result<(), FramingError> {
    ///         output.put(message);
    ///         output.put_shared(&self.0);
    ///         Ok(())
    ///     }
    /// }
    /// ```
    pub fn put_shared(&mut self, payload: &Arc<[u8]>) {
        if self.output_buffer.is_datagram {
            return self.put(payload);
        }
        self.share(payload, |output| output.put(payload));
    }

    /// Adds a part of a file without reading it: `range` is in bytes from the start of the file. It
    /// takes no memory, whatever its length. All of its bytes count as output, so back-pressure
    /// begins with it (see [`Builder::write_watermarks`](crate::Builder::write_watermarks)). Less
    /// than 4 KiB count as 4 KiB, because the file stays open until its part has been sent, and
    /// descriptors are few. The file's own position is neither used nor changed.
    ///
    /// The event loop sends 1 MiB at a time before others are served, and 2 MiB after the socket
    /// buffer has been full. On Linux it uses
    /// [sendfile(2)](https://man7.org/linux/man-pages/man2/sendfile.2.html), without a copy.
    /// Elsewhere, or where a file system does not support that, it reads up to 64 KiB at a time.
    /// Reading waits for the disk, as it does in the handler.
    ///
    /// The range is read when its turn in the output comes. If the file is shorter then, or cannot
    /// be read, the connection ends in a reset, so that the answer does not look complete.
    /// [`on_close`](crate::Handler::on_close) gets
    /// [`CloseReason::Error`](crate::CloseReason::Error).
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::{fs::File, io};
    /// use socketserver::Output;
    ///
    /// fn put_whole(path: &str, output: &mut Output<'_>) -> io::Result<()> {
    ///     let file = File::open(path)?;
    ///     let length = file.metadata()?.len();
    ///     output.put(format!("{length}\n").as_bytes());
    ///     output.put_file(Arc::new(file), 0..length).map_err(io::Error::other)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`UnsupportedError::DatagramFile`] for a datagram, because a datagram cannot contain a part
    /// of a file.
    pub fn put_file(&mut self, file: Arc<File>, range: Range<u64>) -> Result<(), UnsupportedError> {
        let OutputBuffer { is_datagram, len, .. } = &mut *self.output_buffer;
        if *is_datagram {
            return Err(UnsupportedError::DatagramFile);
        }
        if range.is_empty() {
            return Ok(());
        }
        let charge = usize::try_from(OutputBuffer::file_charge(&range)).unwrap_or(usize::MAX);
        *len = len.saturating_add(charge).min(MOST_COUNTED);
        self.output_buffer.list();
        self.output_buffer.segments.push(Segment::File(file, range));
        Ok(())
    }

    /// Adds one datagram, which may be empty and is never joined to another.
    pub(crate) fn put_datagram(&mut self, bytes: &[u8]) {
        self.output_buffer.is_datagram = true;
        self.output_buffer.begins_datagram = false;
        let segment = match offset(self.input, bytes) {
            Some(start) => Segment::Input(start..start + bytes.len()),
            None => self.output_buffer.copied(bytes),
        };
        self.output_buffer.segments.push(segment);
        self.output_buffer.len += bytes.len();
    }

    fn put_input(&mut self, start: usize, len: usize) {
        match self.output_buffer.segments.last_mut() {
            Some(Segment::Input(range)) if range.end == start => range.end += len,
            _ => self.output_buffer.segments.push(Segment::Input(start..start + len)),
        }
    }

    #[inline(never)]
    fn put_other(&mut self, bytes: &[u8]) {
        let start = self
            .shared
            .filter(|_| bytes.len() >= SHARED_FROM)
            .and_then(|payload| offset(payload, bytes).map(|start| (payload, start)));
        if let Some((payload, start)) = start {
            let range = start..start + bytes.len();
            return self.output_buffer.segments.push(Segment::Shared(payload.clone(), range));
        }
        match self.output_buffer.segments.last_mut() {
            // An answer that repeats the input with its delimiter stays one range of it.
            Some(Segment::Input(range))
                if bytes.len() <= REPEAT_UP_TO
                    && self.input.get(range.end..).is_some_and(|rest| rest.starts_with(bytes)) =>
            {
                range.end += bytes.len();
            }
            Some(Segment::Scratch(range)) if range.end == self.output_buffer.scratch.len() => {
                self.output_buffer.scratch.extend_from_slice(bytes);
                range.end += bytes.len();
            }
            _ => {
                let copied = self.output_buffer.copied(bytes);
                self.output_buffer.segments.push(copied);
            }
        }
    }
}

/// Writing calls [`put`](Output::put): it takes all bytes at once and never fails.
impl io::Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.put(bytes);
        Ok(())
    }

    /// Does nothing: the output is sent when the handler has returned.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl OutputBuffer {
    fn copied(&mut self, bytes: &[u8]) -> Segment {
        let start = self.scratch.len();
        self.scratch.extend_from_slice(bytes);
        Segment::Scratch(start..self.scratch.len())
    }
}

/// The output of a datagram's handler: each segment is one datagram.
impl OutputBuffer {
    /// Returns each datagram in order with its destination: `peer`, unless it was sent to another
    /// one.
    pub(crate) fn datagrams<'a>(
        &'a mut self,
        input: &'a [u8],
        peer: &'a Destination,
    ) -> impl Iterator<Item = (&'a [u8], &'a Destination)> {
        self.list();
        let OutputBuffer { segments, scratch, recipients, .. } = &*self;
        let mut recipients = recipients.iter().peekable();
        segments.iter().enumerate().map(move |(number, segment)| {
            let to = recipients.next_if(|(of, _)| *of == number).map_or(peer, |(_, to)| to);
            (bytes(segment, input, scratch), to)
        })
    }
}

impl Output<'_> {
    /// Adds one datagram to another peer.
    pub(crate) fn put_datagram_to(&mut self, to: Destination, bytes: &[u8]) {
        let number = self.output_buffer.segments.len();
        self.output_buffer.recipients.push((number, to));
        self.put_datagram(bytes);
    }
}

/// The offset of `part` in `whole`, if `part` is the same memory and not only equal bytes.
#[inline(always)]
fn offset(whole: &[u8], part: &[u8]) -> Option<usize> {
    let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
    (start < whole.len() && part.len() <= whole.len() - start).then_some(start)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn sent(output_buffer: &mut OutputBuffer, input: &[u8]) -> Vec<u8> {
        output_buffer.parts(input).collect::<Vec<_>>().concat()
    }

    #[test]
    fn an_answer_that_repeats_the_input_is_stored_as_one_range() {
        let input = b"one\ntwo\n".to_vec();
        let mut output_buffer = OutputBuffer::default();
        let mut output = Output::new(&input, &mut output_buffer);
        for line in [0..3, 4..7] {
            output.put(&input[line]);
            output.put(b"\n");
        }
        assert_eq!(output_buffer.repeated, 0..8);
        assert!(output_buffer.segments.is_empty());
        assert!(output_buffer.scratch.is_empty());
        assert_eq!(sent(&mut output_buffer, &input), b"one\ntwo\n");
    }

    #[test]
    fn bytes_from_other_memory_are_copied_in_order() {
        let input = b"name".to_vec();
        let mut output_buffer = OutputBuffer::default();
        let mut output = Output::new(&input, &mut output_buffer);
        output.put(b"<");
        output.put(&input);
        output.put(b">");
        assert_eq!(output_buffer.contiguous(&input), Some(&b"<name>"[..]));
        assert_eq!(output_buffer.len(), 6);
    }

    #[test]
    fn a_large_payload_and_its_unsent_rest_are_shared() {
        let payload: SharedBytes = vec![7; SHARED_FROM].into();
        let mut output_buffer = OutputBuffer::default();
        let mut output = Output::sharing(&payload, &mut output_buffer);
        output.put(&payload);
        output.put(b"\n");
        assert_eq!(Arc::strong_count(&payload), 2);
        let mut rest = Vec::new();
        output_buffer.unsent(&[], 500, |part| match part {
            Unsent::Shared(payload, range) => rest.extend_from_slice(&payload[range]),
            Unsent::Bytes(bytes) => rest.extend_from_slice(bytes),
            Unsent::File(..) => panic!("there is no file"),
        });
        assert_eq!(rest, [&[7; 12][..], b"\n"].concat());
    }

    #[test]
    fn a_payload_that_is_put_as_shared_is_referred_to_unless_it_is_short() {
        let (long, short): (SharedBytes, SharedBytes) =
            (vec![7; SHARED_FROM].into(), vec![8; SHARED_FROM - 1].into());
        let input = b"input".to_vec();
        let mut output_buffer = OutputBuffer::default();
        let mut output = Output::new(&input, &mut output_buffer);
        output.put(&input);
        output.put_shared(&long);
        output.put_shared(&short);
        assert_eq!((Arc::strong_count(&long), Arc::strong_count(&short)), (2, 1));
        assert_eq!(sent(&mut output_buffer, &input), [&input[..], &long, &short].concat());
    }

    #[test]
    fn a_shared_payload_in_a_datagram_does_not_begin_another_one() {
        let payload: SharedBytes = vec![7; SHARED_FROM].into();
        let mut output_buffer = OutputBuffer::default();
        let mut output = Output::new(&[], &mut output_buffer);
        output.put_datagram(b"");
        output.put_shared(&payload);
        output.put_shared(&payload);
        assert_eq!(output_buffer.parts(&[]).collect::<Vec<_>>(), [vec![7; 2 * SHARED_FROM]]);
        output_buffer.clear();
        Output::new(&[], &mut output_buffer).put_shared(&payload);
        assert_eq!(Arc::strong_count(&payload), 2, "the output of a stream comes after it");
    }

    fn file() -> Arc<File> {
        Arc::new(File::open("/dev/null").unwrap())
    }

    #[test]
    fn a_file_between_bytes_keeps_its_order_and_counts_with_all_its_bytes() {
        let input = b"input".to_vec();
        let mut output_buffer = OutputBuffer::default();
        let mut output = Output::new(&input, &mut output_buffer);
        output.put(&input);
        output.put(b"header");
        output.put_file(file(), 5..5).unwrap();
        output.put_file(file(), 1000..1 << 40).unwrap();
        output.put(b"trailer");
        assert_eq!(output_buffer.len(), 5 + 6 + (1 << 40) - 1000 + 7);
        assert_eq!(output_buffer.contiguous(&input), None);
        let mut slices = [IoSlice::new(&[]); 4];
        assert_eq!(output_buffer.slices(&input, &mut slices), (2, false), "the file is long");
        assert_eq!([&*slices[0], &*slices[1]], [b"input", &b"header"[..]]);
        let mut rest = String::new();
        output_buffer.unsent(&input, 8, |part| match part {
            Unsent::Bytes(bytes) => rest += &format!("{} ", bytes.escape_ascii()),
            Unsent::File(_, range) => rest += &format!("{range:?} "),
            Unsent::Shared(..) => panic!("nothing is shared"),
        });
        assert_eq!(rest, format!("der 1000..{} trailer ", 1_u64 << 40));
    }

    #[test]
    fn a_file_has_no_slice_and_a_short_one_is_joined_with_the_bytes_before_it() {
        let mut output_buffer = OutputBuffer::default();
        let file = file();
        Output::new(&[], &mut output_buffer).put_file(file.clone(), 0..1).unwrap();
        assert!(!output_buffer.is_empty());
        assert_eq!(output_buffer.contiguous(&[]), None);
        assert_eq!(output_buffer.slices(&[], &mut [IoSlice::new(&[])]), (0, true));
        output_buffer.clear();
        Output::new(&[], &mut output_buffer).put(b"header");
        Output::new(&[], &mut output_buffer).put_file(file.clone(), 0..JOINED_UP_TO).unwrap();
        assert_eq!(output_buffer.slices(&[], &mut [IoSlice::new(&[])]), (1, true));
        output_buffer.clear();
        assert_eq!(Arc::strong_count(&file), 1, "the file is closed");
    }

    #[test]
    fn a_file_that_is_cut_back_is_closed_and_one_before_it_stays() {
        let (first, second) = (file(), file());
        let mut output_buffer = OutputBuffer::default();
        Output::new(&[], &mut output_buffer).put_file(first.clone(), 0..10).unwrap();
        let before = output_buffer.position();
        let mut output = Output::new(&[], &mut output_buffer);
        output.put(b"more");
        output.put_file(second.clone(), 0..10).unwrap();
        output_buffer.cut_back(before);
        assert_eq!(output_buffer.len() as u64, FILE_CHARGE);
        assert_eq!((Arc::strong_count(&first), Arc::strong_count(&second)), (2, 1));
    }

    #[test]
    fn a_datagram_refuses_a_file() {
        let mut output_buffer = OutputBuffer::default();
        let mut output = Output::new(&[], &mut output_buffer);
        output.put_datagram(b"a datagram");
        assert_eq!(output.put_file(file(), 0..1), Err(UnsupportedError::DatagramFile));
        assert_eq!(sent(&mut output_buffer, &[]), b"a datagram");
    }

    #[test]
    fn written_bytes_are_put_in_order() {
        let mut output_buffer = OutputBuffer::default();
        let mut output = Output::new(&[], &mut output_buffer);
        write!(output, ":{}\r\n", 7).unwrap();
        output.put(b"+OK");
        assert_eq!(output.write(b"\r\n").unwrap(), 2);
        output.flush().unwrap();
        assert_eq!(sent(&mut output_buffer, &[]), b":7\r\n+OK\r\n");
    }

    #[test]
    fn truncating_the_output_restores_the_earlier_content() {
        let payload: SharedBytes = vec![7; SHARED_FROM].into();
        let input = b"input".to_vec();
        for first in [&b""[..], b"copied", &input, &payload] {
            for second in [&b"more"[..], &input, &payload] {
                let mut output_buffer = OutputBuffer::default();
                let put = |output_buffer: &mut OutputBuffer, bytes: &[u8]| {
                    let mut output = Output::new(&input, output_buffer);
                    output.share(&payload, |output| output.put(bytes));
                };
                put(&mut output_buffer, first);
                let before = output_buffer.position();
                put(&mut output_buffer, second);
                put(&mut output_buffer, b"and more");
                output_buffer.cut_back(before);
                assert_eq!(output_buffer.len(), first.len());
                put(&mut output_buffer, b"!");
                assert_eq!(sent(&mut output_buffer, &input), [first, b"!"].concat());
            }
        }
    }

    #[test]
    fn an_empty_datagram_is_kept_as_a_part() {
        let mut output_buffer = OutputBuffer::default();
        let mut output = Output::new(&[], &mut output_buffer);
        output.put_datagram(b"");
        output.put_datagram(b"x");
        assert_eq!(output_buffer.parts(&[]).collect::<Vec<_>>(), [&b""[..], b"x"]);
    }
}
