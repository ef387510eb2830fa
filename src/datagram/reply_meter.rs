//! How much larger the replies to a datagram are than the datagram.

use crate::counters::Tally;

/// Replies that are together more than so many times as large as their datagram are counted as
/// amplified.
const AMPLIFIED: usize = 3;

/// Measures the replies to one datagram, and says which of them are dropped because of
/// [`Limits::reply_ratio`](crate::Limits::reply_ratio).
#[derive(Debug)]
pub(crate) struct ReplyMeter {
    /// How many bytes make it an amplification.
    amplified: usize,
    /// How many bytes of replies may be sent.
    most: usize,
    /// How many bytes the handler has sent.
    replied: usize,
    sent: usize,
}

impl ReplyMeter {
    /// For a datagram of `bytes` bytes.
    pub(crate) fn new(bytes: usize, reply_ratio: Option<u32>) -> Self {
        let times = |times: u32| bytes.saturating_mul(times as usize);
        let most = reply_ratio.map_or(usize::MAX, times);
        ReplyMeter { amplified: bytes.saturating_mul(AMPLIFIED), most, replied: 0, sent: 0 }
    }

    /// Whether a reply of `bytes` bytes to the sender of the datagram is sent; counts it if not.
    pub(crate) fn admits(&mut self, bytes: usize, tally: &mut Tally) -> bool {
        let before = self.replied;
        self.replied = before.saturating_add(bytes);
        tally.amplified += u64::from(before <= self.amplified && self.replied > self.amplified);
        let is_admitted = self.sent.saturating_add(bytes) <= self.most;
        if is_admitted {
            self.sent += bytes;
        } else {
            tally.over_reply_ratio += 1;
        }
        is_admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which replies to a datagram of 10 bytes are sent, and what is counted: amplified, dropped.
    fn replies(ratio: Option<u32>, sizes: &[usize]) -> (Vec<bool>, u64, u64) {
        let (mut meter, mut tally) = (ReplyMeter::new(10, ratio), Tally::default());
        let sent = sizes.iter().map(|bytes| meter.admits(*bytes, &mut tally)).collect();
        (sent, tally.amplified, tally.over_reply_ratio)
    }

    #[test]
    fn replies_of_more_than_three_times_the_size_count_once_and_are_sent_without_a_limit() {
        assert_eq!(replies(None, &[30]), (vec![true], 0, 0));
        assert_eq!(replies(None, &[30, 1, 500]), (vec![true; 3], 1, 0));
    }

    #[test]
    fn replies_above_the_ratio_are_dropped_and_smaller_ones_that_fit_are_not() {
        assert_eq!(replies(Some(2), &[20]), (vec![true], 0, 0));
        assert_eq!(
            replies(Some(2), &[15, 6, 5, 0, 1]),
            (vec![true, false, true, true, false], 0, 2)
        );
        assert_eq!(replies(Some(2), &[31]), (vec![false], 1, 1));
    }
}
