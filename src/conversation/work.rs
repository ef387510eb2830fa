//! What a conversation can go on with, in turn.

/// One kind of work of a conversation that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Messages and events wait in its send queue.
    SendQueue,
    /// The handler is called because there is room for output.
    Writable,
    /// Messages were left, or its socket can be read.
    Input,
}

impl Work {
    const ALL: [Work; 3] = [Work::SendQueue, Work::Writable, Work::Input];

    /// The first kind after `last` for which `is_there` holds: so each has its turn.
    pub(crate) fn next(last: Work, is_there: impl Fn(Work) -> bool) -> Option<Work> {
        (1..=3).map(|step| Work::ALL[(last as usize + step) % 3]).find(|work| is_there(*work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_work_that_is_there_has_its_turn() {
        let turns = |there: &[Work]| {
            let mut last = Work::Input;
            let mut turns = Vec::new();
            for _ in 0..4 {
                last = Work::next(last, |work| there.contains(&work)).unwrap();
                turns.push(last);
            }
            turns
        };
        use Work::{Input, SendQueue, Writable};
        assert_eq!(turns(&Work::ALL), [SendQueue, Writable, Input, SendQueue]);
        assert_eq!(turns(&[Writable, Input]), [Writable, Input, Writable, Input]);
        assert_eq!(turns(&[SendQueue]), [SendQueue; 4]);
        assert_eq!(Work::next(Input, |_| false), None);
    }
}
