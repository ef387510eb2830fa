//! A mode that is chosen at run time.

use std::fmt;
use std::str::FromStr;

use super::{Forking, Inline, Offload, Pool, Reactor, Threading};
use crate::error::Error;

/// Any mode, chosen at run time. The handler must be `Send`, as the strictest mode requires.
///
/// In the guide: [`choosing_a_mode`](crate::guide::choosing_a_mode),
/// [`testing`](crate::guide::testing).
///
/// ```
/// use socketserver::Mode;
///
/// let mode: Mode = "threading".parse()?;
/// assert_eq!(mode.to_string(), "threading");
/// assert!("threads".parse::<Mode>().is_err());
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// See [`Reactor`].
    Reactor(Reactor),
    /// See [`Offload`].
    Offload(Offload),
    /// See [`Inline`].
    Inline(Inline),
    /// See [`Threading`].
    Threading(Threading),
    /// See [`Pool`].
    Pool(Pool),
    /// See [`Forking`].
    Forking(Forking),
}

impl Mode {
    /// All modes, with their defaults, in the order of the README's table.
    ///
    /// ```
    /// use socketserver::Mode;
    ///
    /// let names: Vec<_> = Mode::all().map(|mode| mode.name()).collect();
    /// assert_eq!(names.len(), 6);
    /// assert!(names.contains(&"reactor"));
    /// ```
    pub fn all() -> impl ExactSizeIterator<Item = Mode> + Clone {
        [
            Mode::Reactor(Reactor),
            Mode::Offload(Offload::DEFAULT),
            Mode::Inline(Inline),
            Mode::Threading(Threading::DEFAULT),
            Mode::Pool(Pool::DEFAULT),
            Mode::Forking(Forking::DEFAULT),
        ]
        .into_iter()
    }

    /// Its name, as [`FromStr`] reads it.
    ///
    /// ```
    /// use socketserver::{Mode, Threading};
    ///
    /// assert_eq!(Mode::Threading(Threading::default()).name(), "threading");
    /// ```
    pub const fn name(&self) -> &'static str {
        match self {
            Mode::Reactor(_) => "reactor",
            Mode::Offload(_) => "offload",
            Mode::Inline(_) => "inline",
            Mode::Threading(_) => "threading",
            Mode::Pool(_) => "pool",
            Mode::Forking(_) => "forking",
        }
    }

    /// Sets the number of worker threads, if the mode has one: `offload` and `pool`.
    ///
    /// ```
    /// use socketserver::Mode;
    ///
    /// let mode: Mode = "offload".parse::<Mode>()?.workers(64);
    /// # let _ = mode;
    /// # Ok::<(), socketserver::Error>(())
    /// ```
    #[must_use]
    pub fn workers(self, count: usize) -> Self {
        match self {
            Mode::Offload(_) => Mode::Offload(Offload::new(count)),
            Mode::Pool(pool) => Mode::Pool(pool.threads(count)),
            other => other,
        }
    }
}

impl Default for Mode {
    fn default() -> Self {
        Mode::Reactor(Reactor)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Mode::all().find(|mode| mode.name() == name).ok_or_else(|| {
            let names = Mode::all().map(|mode| mode.name()).collect::<Vec<_>>().join(", ");
            Error::Mode(format!("unknown mode {name:?}; the modes are {names}"))
        })
    }
}

/// Any mode that can run a blocking [`RequestHandler`](crate::RequestHandler), chosen at run time.
///
/// In the guide: [`choosing_a_mode`](crate::guide::choosing_a_mode).
///
/// ```
/// use socketserver::{BlockingMode, Mode};
///
/// let mode: BlockingMode = "threading".parse()?;
/// assert_eq!(mode.to_string(), "threading");
/// assert!("reactor".parse::<BlockingMode>().is_err()); // it cannot run such a handler
/// assert!(BlockingMode::try_from("pool".parse::<Mode>()?).is_ok());
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockingMode {
    /// See [`Inline`].
    Inline(Inline),
    /// See [`Threading`].
    Threading(Threading),
    /// See [`Pool`].
    Pool(Pool),
    /// See [`Forking`].
    Forking(Forking),
}

impl TryFrom<Mode> for BlockingMode {
    type Error = Error;

    fn try_from(mode: Mode) -> Result<Self, Error> {
        match mode {
            Mode::Inline(mode) => Ok(BlockingMode::Inline(mode)),
            Mode::Threading(mode) => Ok(BlockingMode::Threading(mode)),
            Mode::Pool(mode) => Ok(BlockingMode::Pool(mode)),
            Mode::Forking(mode) => Ok(BlockingMode::Forking(mode)),
            Mode::Reactor(_) | Mode::Offload(_) => Err(Error::Mode(format!(
                "the mode {mode} cannot run a blocking request handler: it would block the event \
                 loop; use inline, threading, pool or forking"
            ))),
        }
    }
}

impl From<BlockingMode> for Mode {
    fn from(mode: BlockingMode) -> Self {
        match mode {
            BlockingMode::Inline(mode) => Mode::Inline(mode),
            BlockingMode::Threading(mode) => Mode::Threading(mode),
            BlockingMode::Pool(mode) => Mode::Pool(mode),
            BlockingMode::Forking(mode) => Mode::Forking(mode),
        }
    }
}

impl fmt::Display for BlockingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Mode::from(*self).fmt(f)
    }
}

impl FromStr for BlockingMode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        BlockingMode::try_from(name.parse::<Mode>()?)
    }
}
