//! Medians and bootstrap intervals.

use serde::Serialize;

/// A median and its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The median of the samples.
    pub median: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
}

/// The number of bootstrap resamples.
const RESAMPLES: usize = 2000;

/// The median of the values; `None` without values.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    middle(&mut values)
}

/// The median of `samples` and its interval, by the percentile bootstrap.
pub fn estimate(samples: &[f64]) -> Option<Estimate> {
    let samples: Vec<f64> = samples.iter().copied().filter(|s| s.is_finite()).collect();
    let median = middle(&mut samples.clone())?;
    let mut random = SplitMix(0x5EED);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let mut drawn: Vec<f64> =
                samples.iter().map(|_| samples[random.below(samples.len())]).collect();
            middle(&mut drawn)
        })
        .collect();
    medians.sort_unstable_by(f64::total_cmp);
    Some(Estimate {
        median,
        low: medians[RESAMPLES / 40],
        high: medians[RESAMPLES - 1 - RESAMPLES / 40],
    })
}

fn middle(values: &mut [f64]) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let upper = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[upper]),
        _ => Some((values[upper - 1] + values[upper]) / 2.0),
    }
}

/// A small random number generator with a fixed seed: the same samples give the same interval.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(median([4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([]), None);
    }

    #[test]
    fn the_interval_contains_the_median_and_is_within_the_samples() {
        let samples: Vec<f64> = (0..26).map(f64::from).collect();
        let found = estimate(&samples).unwrap();
        assert_eq!(found.median, 12.5);
        assert!(found.low > 4.0 && found.low < 12.5);
        assert!(found.high < 21.0 && found.high > 12.5);
    }

    #[test]
    fn the_interval_of_equal_samples_has_no_width() {
        let found = estimate(&[1.0; 9]).unwrap();
        assert_eq!((found.low, found.median, found.high), (1.0, 1.0, 1.0));
    }
}
