//! What the fuzz targets check. Each function takes any bytes, and panics if something is wrong.
//!
//! The bytes of a framing's target are: four that choose the options of the framing, one that chooses
//! the length of the cutting, the cutting, and the stream.

#![allow(unreachable_pub)] // for the package in `fuzz/`, they are its functions

use std::mem::discriminant;

use socketserver::{
    Decoded, Delimited, Endian, Endpoint, FixedSize, Framing, FramingError, LengthPrefixed, Lines,
    Overlong, Raw, Width,
};

/// What a framing has made of a stream.
#[derive(Debug, Default)]
struct Outcome {
    messages: Vec<Vec<u8>>,
    error: Option<FramingError>,
}

/// The options, the cutting and the stream in the input of a fuzzer.
struct Input<'a> {
    options: [u8; 4],
    cutting: &'a [u8],
    stream: &'a [u8],
}

impl<'a> Input<'a> {
    fn of(data: &'a [u8]) -> Option<Self> {
        let (options, rest) = data.split_first_chunk()?;
        let (&length, rest) = rest.split_first()?;
        let (cutting, stream) = rest.split_at_checked(length.into())?;
        Some(Input { options: *options, cutting, stream })
    }

    fn overlong(&self) -> Overlong {
        if self.options[0].is_multiple_of(2) { Overlong::Close } else { Overlong::Discard }
    }

    /// Mostly small, so that it is reached.
    fn max_len(&self) -> usize {
        match self.options[1] {
            255 => usize::MAX,
            small => small.into(),
        }
    }
}

/// Decodes a stream that arrives in pieces, as a driver does, and checks each result.
fn decode(mut framing: impl Framing, pieces: &[&[u8]]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut buffer = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if !step(&mut outcome, &mut buffer, |input| framing.decode(input)) {
            return outcome;
        }
    }
    while !buffer.is_empty() {
        let before = buffer.len();
        if !step_once(&mut outcome, &mut buffer, &mut |input| framing.decode_eof(input)) {
            break;
        }
        assert!(buffer.len() < before, "the end of the input asks for more");
    }
    outcome
}

/// Decodes until more input is needed; false after an error.
fn step(
    outcome: &mut Outcome,
    buffer: &mut Vec<u8>,
    mut decode: impl FnMut(&[u8]) -> Result<Decoded, FramingError>,
) -> bool {
    while !buffer.is_empty() {
        let before = buffer.len();
        if !step_once(outcome, buffer, &mut decode) {
            return false;
        }
        if buffer.len() == before {
            return true;
        }
    }
    true
}

/// Calls the framing once; false after an error.
fn step_once(
    outcome: &mut Outcome,
    buffer: &mut Vec<u8>,
    decode: &mut impl FnMut(&[u8]) -> Result<Decoded, FramingError>,
) -> bool {
    match decode(buffer) {
        Ok(Decoded::Frame { body, consumed }) => {
            assert!((1..=buffer.len()).contains(&consumed), "consumed {consumed}");
            assert!(body.start <= body.end && body.end <= consumed, "{body:?} of {consumed}");
            outcome.messages.push(buffer[body].to_vec());
            buffer.drain(..consumed);
        }
        Ok(Decoded::Skip(count)) => {
            assert!((1..=buffer.len()).contains(&count), "skipped {count} of {}", buffer.len());
            buffer.drain(..count);
        }
        Ok(Decoded::Need(count)) => assert!(count > buffer.len(), "needs {count}, which it has"),
        Ok(Decoded::Incomplete) => {}
        Err(error) => {
            outcome.error = Some(error);
            return false;
        }
    }
    true
}

/// Cuts a stream into pieces whose sizes are the bytes of `cutting`, again and again.
fn cut<'a>(mut stream: &'a [u8], cutting: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut sizes = cutting.iter().map(|size| usize::from(*size).max(1)).cycle();
    while !stream.is_empty() {
        let size = sizes.next().unwrap_or(1).min(stream.len());
        let (piece, rest) = stream.split_at(size);
        pieces.push(piece);
        stream = rest;
    }
    pieces
}

/// Any cutting of a stream gives the same messages and the same error.
fn check(input: &Input<'_>, framing: impl Framing + Clone) {
    let whole = decode(framing.clone(), &[input.stream]);
    for pieces in [cut(input.stream, input.cutting), cut(input.stream, &[1])] {
        let parts = decode(framing.clone(), &pieces);
        assert_eq!(whole.messages, parts.messages, "the messages depend on the cutting");
        assert_eq!(
            whole.error.as_ref().map(discriminant),
            parts.error.as_ref().map(discriminant),
            "{:?} in one piece, {:?} in {} pieces",
            whole.error,
            parts.error,
            pieces.len()
        );
    }
}

/// [`Lines`].
pub fn lines(data: &[u8]) {
    let Some(input) = Input::of(data) else { return };
    let lines = Lines::default().max_len(input.max_len()).overlong(input.overlong());
    check(&input, lines.unterminated(input.options[2] % 2 == 1));
}

/// [`Delimited`].
pub fn delimited(data: &[u8]) {
    let Some(input) = Input::of(data) else { return };
    // Few different bytes, so that a delimiter overlaps with itself.
    let [_, _, length, bits] = input.options;
    let delimiter: Vec<u8> = (0..=length % 5).map(|at| b'a' + (bits >> at & 1)).collect();
    let delimited = Delimited::new(delimiter);
    check(&input, delimited.max_len(input.max_len()).overlong(input.overlong()));
}

/// [`LengthPrefixed`].
pub fn prefixed(data: &[u8]) {
    let Some(input) = Input::of(data) else { return };
    let widths = [Width::One, Width::Two, Width::Four, Width::Eight];
    let endian = if input.options[2].is_multiple_of(2) { Endian::Big } else { Endian::Little };
    let prefixed = LengthPrefixed::new(widths[usize::from(input.options[3] % 4)], endian);
    check(&input, prefixed.max_len(input.max_len()));
}

/// [`FixedSize`].
pub fn fixed(data: &[u8]) {
    let Some(input) = Input::of(data) else { return };
    check(&input, FixedSize::new(input.max_len().max(1)));
}

/// [`Raw`], whose messages depend on the cutting, but not their bytes.
pub fn raw(data: &[u8]) {
    let Some(input) = Input::of(data) else { return };
    let pieces = cut(input.stream, input.cutting);
    let outcome = decode(Raw, &pieces);
    assert!(outcome.error.is_none() && outcome.messages.len() == pieces.len());
    assert_eq!(outcome.messages.concat(), input.stream);
}

/// [`Endpoint`]: what is parsed is displayed as a URL that is parsed as the same.
pub fn endpoint(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    for scheme in ["", "tcp://", "udp://", "unix://", "unixgram://"] {
        let text = format!("{scheme}{text}");
        let Ok(endpoint) = text.parse::<Endpoint>() else { continue };
        let shown = endpoint.to_string();
        match shown.parse::<Endpoint>() {
            Ok(again) => assert_eq!(again, endpoint, "{text} is shown as {shown}"),
            Err(error) => panic!("{text} is shown as {shown}: {error}"),
        }
    }
}
