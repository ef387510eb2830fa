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
    /// Its timer has expired, where no list of timers tells that.
    Timer,
}

impl Work {
    const ALL: [Work; 4] = [Work::SendQueue, Work::Writable, Work::Input, Work::Timer];

    /// The first kind after `last` for which `is_there` holds: so each has its turn.
    pub(crate) fn next(last: Work, is_there: impl Fn(Work) -> bool) -> Option<Work> {
        (1..=4).map(|step| Work::ALL[(last as usize + step) % 4]).find(|work| is_there(*work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_work_that_is_there_has_its_turn() {
        let turns = |there: &[Work]| {
            let mut last = Work::Timer;
            let mut turns = Vec::new();
            for _ in 0..4 {
                last = Work::next(last, |work| there.contains(&work)).unwrap();
                turns.push(last);
            }
            turns
        };
        use Work::{Input, SendQueue, Timer, Writable};
        assert_eq!(turns(&Work::ALL), [SendQueue, Writable, Input, Timer]);
        assert_eq!(turns(&[Writable, Input]), [Writable, Input, Writable, Input]);
        assert_eq!(turns(&[SendQueue]), [SendQueue; 4]);
        assert_eq!(Work::next(Timer, |_| false), None);
    }
}
