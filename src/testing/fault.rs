//! The faults of a simulated world.

use super::choices::Choices;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// One kind of adversity of a simulated world. Each run of [`check`](super::check) has some of
        /// those that are allowed, each with its own frequency (swarm testing).
        ///
        /// ```
        /// use socketserver::testing::{Check, Fault};
        ///
        /// let lossy = Check::new().runs(10).with(Fault::Reset).with(Fault::AbortedAccept);
        /// lossy.run(|world| world.calm());
        /// assert!(Fault::ALL.contains(&Fault::Cut));
        /// ```
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Fault {
            $($(#[$doc])* $name,)+
        }

        impl Fault {
            /// All faults.
            pub const ALL: &'static [Fault] = &[$(Fault::$name),+];

            /// Its name in a trace.
            pub(super) fn name(self) -> &'static str {
                match self {
                    $(Fault::$name => stringify!($name),)+
                }
            }
        }
    };
}

faults! {
    /// The bytes of a client arrive in pieces, down to single bytes.
    Cut,
    /// Packets take up to 100 ms.
    Delay,
    /// Buffers of the kernel hold from 130 bytes to 1 MiB in place of 64 KiB.
    BufferSizes,
    /// A client takes few bytes at a time.
    SlowReader,
    /// A send takes less than there is room for.
    ShortSend,
    /// System calls are interrupted: `EINTR`.
    Interrupted,
    /// The poller reports a readiness that is not there, or more than has changed.
    SpuriousEvent,
    /// The poller reports its events in any order, and some of them only in a later call.
    PartialEvents,
    /// Packets arrive, and workers finish, in the middle of a turn of the event loop.
    Race,
    /// The poller returns up to 20 ms late.
    LateWakeUp,
    /// Accepting fails and leaves the client in the queue: `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`. The
    /// server then accepts some clients and closes them, and pauses. Not in a run of
    /// [`check`](super::check) by default.
    NoDescriptors,
    /// A connection is reset on its way. Not in a run of [`check`](super::check) by default.
    Reset,
    /// A client is gone before it is accepted: `ECONNABORTED`, `EPROTO`, `EPERM`. Not in a run of
    /// [`check`](super::check) by default.
    AbortedAccept,
    /// The poller cannot register a connection: `ENOSPC`. Not in a run of [`check`](super::check) by
    /// default.
    RegisterFailure,
    /// The clock leaps by up to an hour. Not in a run of [`check`](super::check) by default.
    ClockLeap,
}

impl Fault {
    /// Whether the clients of a correct server see the same bytes with and without the fault.
    pub(super) fn is_harmless(self) -> bool {
        !matches!(
            self,
            Fault::NoDescriptors
                | Fault::Reset
                | Fault::AbortedAccept
                | Fault::RegisterFailure
                | Fault::ClockLeap
        )
    }
}

/// The faults of one run: the mean number of opportunities from one strike to the next, and how many are
/// left until the next strike. To draw a number for each strike, and not for each opportunity, keeps a
/// script short.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Swarm([(usize, Option<usize>); Fault::ALL.len()]);

impl Swarm {
    /// Chooses some of the faults and their frequencies. Half of the runs have only faults that no
    /// client sees, so that a test can demand more of them.
    pub(super) fn choose(allowed: &[Fault], choices: &mut Choices) -> Self {
        let mut swarm = Swarm::default();
        let all_harmless = allowed.iter().all(|fault| fault.is_harmless());
        let only_harmless = !all_harmless && choices.below(2) == 0;
        for fault in allowed.iter().filter(|fault| !only_harmless || fault.is_harmless()) {
            let mean = [0, 0, 64, 8, 2][choices.below(5)];
            // These end connections or long times, and so they are rare.
            let is_rare = matches!(fault, Fault::Reset | Fault::ClockLeap);
            swarm.0[*fault as usize].0 = if is_rare { 16 * mean } else { mean };
        }
        swarm
    }

    /// Whether the fault is in this run.
    pub(super) fn has(&self, fault: Fault) -> bool {
        self.0[fault as usize].0 != 0
    }

    /// Whether the fault happens now.
    pub(super) fn strikes(&mut self, fault: Fault, choices: &mut Choices) -> bool {
        let (mean, left) = &mut self.0[fault as usize];
        if *mean == 0 {
            return false;
        }
        let now = left.get_or_insert_with(|| match choices.below(256) {
            // The quiet choice.
            0 => usize::MAX,
            drawn => drawn % (2 * *mean),
        });
        match now.checked_sub(1) {
            None => *left = None,
            still => *left = still,
        }
        left.is_none()
    }
}
