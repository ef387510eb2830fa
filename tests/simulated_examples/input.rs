//! Malformed input: valid messages with small and large mistakes, and random bytes. All of it is drawn from
//! the decisions of a world, so that it shrinks.

use socketserver::testing::World;

/// The longest input of a client, in bytes.
const LONGEST: usize = 16 * 1024;

/// Bytes that mean something in the protocols, or ought to mean nothing.
const BYTES: &[u8] = b"\0\r\n \t:;,.*$+-<>[]\"'\\/%09aZ\x7f\x80\xc3\xff";

/// Pieces that many parsers have had trouble with.
const PIECES: &[&[u8]] = &[
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b"\xff\xfe",
    b"\xc3",
    b"\xed\xa0\x80",
    b"-1",
    b"0",
    b"00000000000000000000",
    b"65536",
    b"2147483648",
    b"4294967295",
    b"4294967296",
    b"9223372036854775807",
    b"9223372036854775808",
    b"18446744073709551616",
    b"-9223372036854775809",
    b"1e309",
    b"nan",
    b"0x10",
    b"%00",
    b"\n",
    b"\r",
];

/// Draws input from the decisions of a world. The quiet decision is the plainest one.
#[derive(Clone, Copy)]
pub(crate) struct Draw<'w>(pub(crate) &'w World);

impl Draw<'_> {
    pub(crate) fn below(self, bound: usize) -> usize {
        self.0.choose(bound)
    }

    /// Whether something happens that does so in one of `many` cases.
    pub(crate) fn one_in(self, many: usize) -> bool {
        self.below(many) == many - 1
    }

    pub(crate) fn pick<T: Copy>(self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub(crate) fn bytes(self, most: usize) -> Vec<u8> {
        let count = self.below(most + 1);
        (0..count).map(|_| self.byte()).collect()
    }

    fn byte(self) -> u8 {
        match self.below(4) {
            0 => b'a' + self.below(26) as u8,
            1 => self.below(256) as u8,
            _ => self.pick(BYTES),
        }
    }

    /// Cuts bytes into pieces: into one, into a few, or into single bytes.
    pub(crate) fn pieces(self, bytes: &[u8]) -> Vec<&[u8]> {
        let cuts = match self.below(8) {
            0 => 0,
            1 if bytes.len() < 2000 => return bytes.chunks(1).collect(),
            _ => self.below(8),
        };
        let mut cuts: Vec<usize> = (0..cuts).map(|_| self.below(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
    }

    /// What a client sends: some messages of a protocol, one after the other, with mistakes, or bytes.
    pub(crate) fn input(self, message: impl Fn(Self) -> Vec<u8>) -> Vec<u8> {
        let mut input = Vec::new();
        for _ in 0..1 + self.below(5) {
            let mut one = match self.one_in(12) {
                true => self.bytes(200),
                false => message(self),
            };
            if self.below(2) == 1 {
                for _ in 0..1 + self.below(3) {
                    self.spoil(&mut one);
                }
            }
            input.extend(one);
        }
        if self.one_in(8) {
            self.spoil(&mut input);
        }
        input.truncate(LONGEST);
        input
    }

    /// Makes one mistake.
    fn spoil(self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        let end = at + self.below(bytes.len() - at + 1).min(if self.one_in(4) { 4096 } else { 8 });
        match self.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.byte(),
            2 => drop(bytes.drain(at..end)),
            3 => bytes.truncate(at),
            4 => {
                let part = bytes[at..end].repeat([1, 3, 40, 1000][self.below(4)]);
                bytes.splice(at..at, part.into_iter().take(LONGEST));
            }
            5 => drop(bytes.splice(at..at, self.pick(PIECES).iter().copied())),
            6 => self.change_number(bytes, at),
            7 => {
                let part = bytes[at..end].to_vec();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            _ => drop(bytes.splice(at..at, self.bytes(20))),
        }
    }

    /// Replaces the next number.
    fn change_number(self, bytes: &mut Vec<u8>, from: usize) {
        let is_digit = |byte: &u8| byte.is_ascii_digit();
        let Some(start) = bytes[from..].iter().position(is_digit).map(|at| from + at) else {
            return;
        };
        let length = bytes[start..].iter().take_while(|byte| is_digit(byte)).count();
        let number = String::from_utf8_lossy(&bytes[start..start + length]).parse().unwrap_or(0u64);
        let number = match self.below(4) {
            0 => number.wrapping_add(1).to_string().into_bytes(),
            1 => number.wrapping_sub(1).to_string().into_bytes(),
            _ => self.pick(PIECES).to_vec(),
        };
        bytes.splice(start..start + length, number);
    }
}
