//! Text as it comes over a connection: in pieces that may end in the middle of a character.

use socketserver::{BoxFraming, Lines, Raw};

use super::Options;

/// `--framing raw|lines`: what an example that talks in text takes for one message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextFraming {
    /// Whatever one read brings.
    Raw,
    /// A line.
    Lines,
}

impl TextFraming {
    /// For [`About::values`](super::About::values).
    pub(crate) const OPTION: (&'static str, &'static str, &'static str) =
        ("framing", "raw", "what is one message: raw (what a read brings) or lines");

    /// What the user asked for; anything else ends the program.
    pub(crate) fn chosen(options: &Options) -> Self {
        match options.value("framing") {
            None | Some("raw") => TextFraming::Raw,
            Some("lines") => TextFraming::Lines,
            Some(other) => super::fail(format!("no framing is called {other:?}: raw or lines"), 2),
        }
    }

    /// What tells such messages apart on a stream; a last line counts without its end.
    pub(crate) fn framing(self) -> BoxFraming {
        match self {
            TextFraming::Raw => BoxFraming::new(Raw),
            TextFraming::Lines => BoxFraming::new(Lines::default().unterminated(true)),
        }
    }
}

/// Puts characters together that were cut, and replaces what is no UTF-8 by U+FFFD.
pub(crate) struct Text {
    /// Each message is whole, and none ends in the middle of a character.
    whole: bool,
    /// The beginning of a character, at most three bytes.
    unfinished: Vec<u8>,
}

impl Text {
    /// Text whose messages are `whole` in themselves (lines, datagrams) or whatever a read brought.
    pub(crate) fn new(whole: bool) -> Self {
        Text { whole, unfinished: Vec::new() }
    }

    /// What `message` says, with the character that the one before it began; `None` if it does not
    /// complete one.
    pub(crate) fn read(&mut self, message: &[u8]) -> Option<String> {
        let mut bytes = std::mem::take(&mut self.unfinished);
        bytes.extend_from_slice(message);
        if !self.whole {
            self.unfinished = bytes.split_off(bytes.len() - unfinished_len(&bytes));
        }
        let complete = self.whole || !bytes.is_empty();
        complete.then(|| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What is left when the peer has ended in the middle of a character.
    pub(crate) fn rest(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.unfinished);
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// How many bytes at the end are the beginning of a character that more bytes could complete.
fn unfinished_len(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    match std::str::from_utf8(last) {
        // `None` says that nothing is wrong with it but its end.
        Err(error) if error.error_len().is_none() => last.len(),
        _ => 0,
    }
}
