//! Text from a connection: it arrives in pieces that may end in the middle of a character.

use socketserver::{Framing, Lines, Raw};

use super::Options;

/// `--framing raw|lines`: what counts as one message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextFraming {
    /// The bytes of one read.
    Raw,
    /// A line.
    Lines,
}

impl TextFraming {
    /// For [`About::values`](super::About::values).
    pub(crate) const OPTION: (&'static str, &'static str, &'static str) =
        ("framing", "raw", "what counts as one message: raw (the bytes of one read) or lines");

    /// The framing that the user chose; an unknown name ends the program.
    pub(crate) fn chosen(options: &Options) -> Self {
        match options.value("framing") {
            None | Some("raw") => TextFraming::Raw,
            Some("lines") => TextFraming::Lines,
            Some(other) => super::fail(format!("unknown framing {other:?}: use raw or lines"), 2),
        }
    }

    /// The framing that separates such messages on a stream. A last line without its end counts.
    pub(crate) fn framing(self) -> Box<dyn Framing + Send> {
        match self {
            TextFraming::Raw => Box::new(Raw),
            TextFraming::Lines => Box::new(Lines::default().unterminated(true)),
        }
    }
}

/// Puts split characters together, and replaces bytes that are not UTF-8 with U+FFFD.
pub(crate) struct Text {
    /// Each message is decoded by itself; a character that is incomplete at its end is replaced.
    whole: bool,
    /// The first bytes of a character, at most three.
    unfinished: Vec<u8>,
}

impl Text {
    /// `whole` says that messages are complete (lines, datagrams), and not the bytes of one read.
    pub(crate) fn new(whole: bool) -> Self {
        Text { whole, unfinished: Vec::new() }
    }

    /// Decodes `message`, together with the bytes that the message before left over. `None` if it
    /// completes no character.
    pub(crate) fn read(&mut self, message: &[u8]) -> Option<String> {
        let mut bytes = std::mem::take(&mut self.unfinished);
        bytes.extend_from_slice(message);
        if !self.whole {
            self.unfinished = bytes.split_off(bytes.len() - unfinished_len(&bytes));
        }
        let complete = self.whole || !bytes.is_empty();
        complete.then(|| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The bytes that are left when the input has ended in the middle of a character.
    pub(crate) fn rest(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.unfinished);
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// How many bytes at the end are the first part of a character that more bytes could complete.
fn unfinished_len(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    match std::str::from_utf8(last) {
        // `None`: the bytes are a valid beginning of a character.
        Err(error) if error.error_len().is_none() => last.len(),
        _ => 0,
    }
}
