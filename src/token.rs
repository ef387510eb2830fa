//! A slab slot and its generation, packed into one [`mio::Token`].
//!
//! **Invariant:** every insertion into the slab gets a generation of its own, so an event, a timer
//! or a message for a connection that is gone never reaches the next one in the same slot.

/// Half of the word, or, where that is 16 bits, enough for a million slots.
const SLOT_BITS: u32 = if usize::BITS >= 64 { 32 } else { 20 };
const SLOT_MASK: usize = (1 << SLOT_BITS) - 1;

/// The most entries a loop can hold; the last slot is kept free for the loop's own tokens.
pub(crate) const MAX_SLOTS: usize = SLOT_MASK;

/// Names one entry of the slab for its whole life, and nothing after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Token(usize);

impl Token {
    /// The loop's own wake-up descriptor.
    pub(crate) const WAKE: Token = Token(usize::MAX);
    /// The process-wide signal descriptor.
    pub(crate) const SIGNAL: Token = Token(usize::MAX - (1 << SLOT_BITS));

    /// Packs a slot and a generation; the generation's spare high bits fall off.
    pub(crate) fn new(slot: usize, generation: usize) -> Self {
        debug_assert!(slot < MAX_SLOTS);
        Token(slot | generation << SLOT_BITS)
    }

    /// The slot, as the slab's key.
    pub(crate) fn slot(self) -> usize {
        self.0 & SLOT_MASK
    }
}

impl From<Token> for mio::Token {
    fn from(token: Token) -> Self {
        mio::Token(token.0)
    }
}

impl From<mio::Token> for Token {
    fn from(token: mio::Token) -> Self {
        Token(token.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_slot_has_another_token() {
        let (first, second) = (Token::new(7, 1), Token::new(7, 2));
        assert_eq!(first.slot(), second.slot());
        assert_ne!(first, second);
    }

    #[test]
    fn the_tokens_of_the_loop_itself_belong_to_no_slot() {
        for own in [Token::WAKE, Token::SIGNAL] {
            assert_eq!(own.slot(), MAX_SLOTS);
        }
        assert_ne!(Token::WAKE, Token::SIGNAL);
    }

    #[test]
    fn a_generation_that_wraps_does_not_change_the_slot() {
        assert_eq!(Token::new(3, usize::MAX).slot(), 3);
    }
}
