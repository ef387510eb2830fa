//! The kinds of work of a conversation, which alternate.

/// One kind of work of an open conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// The send queue has messages or events.
    SendQueue,
    /// There is room for output, and the handler waits for it.
    Writable,
    /// Messages were left in the input, or the socket is readable.
    Input,
    /// Its timer has expired, where no list of timers tells that.
    Timer,
}

impl Work {
    const ALL: [Work; 4] = [Work::SendQueue, Work::Writable, Work::Input, Work::Timer];

    /// The first kind after `last` for which `is_there` returns true, so that no kind starves.
    pub(crate) fn next(last: Work, is_there: impl Fn(Work) -> bool) -> Option<Work> {
        (1..=4).map(|step| Work::ALL[(last as usize + step) % 4]).find(|work| is_there(*work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_kind_of_work_starves() {
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
