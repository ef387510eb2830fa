//! The decisions of a simulation, drawn from a stream of bytes. A seed, a fuzzer, a count of all
//! short scripts and the shrinker supply the bytes; the simulation is the same for all of them.

/// A longer script has zeros from here on, so that each run ends.
const LONGEST: usize = 1 << 20;

/// The source of the bytes.
#[derive(Debug)]
enum ChoiceSource {
    /// A script, and zeros after it. Zero is the quiet choice, without a fault.
    Script,
    /// The state of a generator of random bytes.
    Random(u64),
    /// The first choices are counted up, each below its bound.
    Counted { digits: Vec<(usize, usize)>, at: usize, depth: usize },
}

/// A stream of decisions, which remembers the bytes that it has drawn.
#[derive(Debug)]
pub(super) struct Choices {
    source: ChoiceSource,
    bytes: Vec<u8>,
    at: usize,
}

impl Choices {
    pub(super) fn script(bytes: &[u8]) -> Self {
        Choices { source: ChoiceSource::Script, bytes: bytes.to_vec(), at: 0 }
    }

    pub(super) fn random(seed: u64) -> Self {
        Choices { source: ChoiceSource::Random(seed), bytes: Vec::new(), at: 0 }
    }

    pub(super) fn counted(digits: Vec<(usize, usize)>, depth: usize) -> Self {
        let source = ChoiceSource::Counted { digits, at: 0, depth };
        Choices { source, bytes: Vec::new(), at: 0 }
    }

    /// A number below `bound`; 0 if `bound` is at most 1, which draws no byte.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        if bound <= 1 {
            return 0;
        }
        let width = if bound <= 1 << 8 { 1 } else { 2 + 2 * usize::from(bound > 1 << 16) };
        if let ChoiceSource::Counted { digits, at, depth } = &mut self.source {
            if *at == digits.len() && *at < *depth {
                digits.push((0, bound));
            }
            let value = digits.get(*at).map_or(0, |digit| digit.0.min(bound - 1));
            *at += 1;
            self.bytes.extend_from_slice(&value.to_le_bytes()[..width]);
            return value;
        }
        (0..width).fold(0, |value, place| value | usize::from(self.byte()) << (8 * place)) % bound
    }

    fn byte(&mut self) -> u8 {
        if self.at == self.bytes.len() {
            match &mut self.source {
                ChoiceSource::Random(state) if self.at < LONGEST => self.bytes.push(random(state)),
                _ => return 0,
            }
        }
        self.at += 1;
        self.bytes[self.at - 1]
    }

    /// The bytes that have been drawn.
    pub(super) fn drawn(&self) -> Vec<u8> {
        match self.source {
            ChoiceSource::Counted { .. } => self.bytes.clone(),
            _ => self.bytes[..self.at].to_vec(),
        }
    }

    /// The digits of the next script in the count; `None` after the last one.
    pub(super) fn next_count(&mut self) -> Option<Vec<(usize, usize)>> {
        let ChoiceSource::Counted { digits, .. } = &mut self.source else { return None };
        while let Some((value, bound)) = digits.pop() {
            if value + 1 < bound {
                digits.push((value + 1, bound));
                return Some(std::mem::take(digits));
            }
        }
        None
    }
}

/// The next byte of splitmix64: see <https://prng.di.unimi.it/splitmix64.c>.
fn random(state: &mut u64) -> u8 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 24) as u8
}

/// Makes a failing script shorter and its bytes smaller, as long as `fails` returns true, with at most
/// `budget` calls of it.
pub(super) fn shrink(
    mut script: Vec<u8>,
    mut budget: usize,
    mut fails: impl FnMut(&[u8]) -> bool,
) -> Vec<u8> {
    let mut accept = |script: &mut Vec<u8>, candidate: Vec<u8>| {
        let better = candidate.len() < script.len() || candidate < *script;
        if !better || budget == 0 {
            return false;
        }
        budget -= 1;
        let accepted = fails(&candidate);
        if accepted {
            *script = candidate;
        }
        accepted
    };
    loop {
        let before = script.clone();
        // Zeros at the end are not needed: a script that has ended continues with zeros.
        let mut keep = 0;
        while keep < script.len() {
            let middle = keep + (script.len() - keep) / 2;
            let candidate = script[..middle].to_vec();
            if !accept(&mut script, candidate) {
                keep = middle + 1;
            }
        }
        let mut size = script.len().next_power_of_two();
        while size > 0 {
            let mut start = 0;
            while start < script.len() {
                let end = (start + size).min(script.len());
                let removed = [&script[..start], &script[end..]].concat();
                if accept(&mut script, removed) {
                    continue;
                }
                let mut zeroed = script.clone();
                zeroed[start..end].fill(0);
                accept(&mut script, zeroed);
                start = end;
            }
            size /= 2;
        }
        for at in 0..script.len() {
            for smaller in [|byte: u8| byte / 2, |byte: u8| byte.saturating_sub(1)] {
                loop {
                    let mut candidate = script.clone();
                    candidate[at] = smaller(candidate[at]);
                    if !accept(&mut script, candidate) {
                        break;
                    }
                }
            }
        }
        if script == before {
            return script;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_that_were_drawn_repeat_the_choices() {
        let draw = |choices: &mut Choices| {
            [3, 256, 257, 1 << 16, 1 << 20].map(|bound| choices.below(bound))
        };
        let mut random = Choices::random(7);
        let drawn = draw(&mut random);
        assert_eq!(draw(&mut Choices::script(&random.drawn())), drawn);
        assert_eq!(draw(&mut Choices::script(&[])), [0; 5]);
    }

    #[test]
    fn a_count_makes_each_short_script_once() {
        let (mut digits, mut seen) = (Some(Vec::new()), Vec::new());
        while let Some(next) = digits {
            let mut choices = Choices::counted(next, 3);
            let first = choices.below(2);
            // The second choice depends on the first one.
            let second = if first == 0 { choices.below(3) } else { 9 };
            seen.push((first, second, choices.drawn().len()));
            digits = choices.next_count();
        }
        assert_eq!(seen, [(0, 0, 2), (0, 1, 2), (0, 2, 2), (1, 9, 1)]);
    }

    #[test]
    fn a_failing_script_is_shrunk_to_what_it_needs() {
        let fails = |script: &[u8]| script.iter().any(|byte| *byte >= 5) && script.contains(&3);
        let script: Vec<u8> = (0..200).collect();
        assert_eq!(shrink(script, 10_000, fails), [3, 5]);
    }
}
