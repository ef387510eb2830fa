//! A slab slot and its generation, packed into one [`mio::Token`].
//!
//! **Invariant:** every insertion into the slab gets a new generation. So an event, a timer or a
//! message for a closed connection never reaches the next connection in the same slot.

/// Half of the word; 20 bits, enough for a million slots, where the word has 32 bits.
const SLOT_BITS: u32 = if usize::BITS >= 64 { 32 } else { 20 };
const SLOT_MASK: usize = (1 << SLOT_BITS) - 1;

/// The maximum number of entries of an event loop; the last slot is reserved for the loop's own tokens.
pub(crate) const MAX_SLOTS: usize = SLOT_MASK;

/// The name of one entry of the slab; it is never used for a later entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Token(usize);

impl Token {
    /// The wake-up descriptor of the event loop.
    pub(crate) const WAKE: Token = Token(usize::MAX);
    /// The process-wide signal descriptor.
    pub(crate) const SIGNAL: Token = Token(usize::MAX - (1 << SLOT_BITS));

    /// Packs a slot and a generation; the high bits of the generation that do not fit are dropped.
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
