//! A random number generator whose sequence is determined by its seed.

/// xorshift64*.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A sequence that is determined by these numbers.
    pub(crate) fn of(numbers: &[u64]) -> Self {
        let mix = |state: u64, number: &u64| (state ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut random = Random(numbers.iter().fold(0x5DEE_CE66, mix) | 1);
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A size up to `most`; each order of magnitude is equally likely.
    pub(crate) fn size(&mut self, most: usize) -> usize {
        let bits = self.below(u64::from(usize::BITS - most.leading_zeros()) + 1);
        (self.next() as usize % (1 << bits)).min(most)
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}
