//! Errors, by the kernel's numbers.

use std::any::Any;
use std::fmt;

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:literal),* $(,)?) => {
        /// An error number of Linux, `asm-generic/errno.h`.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[allow(clippy::upper_case_acronyms)]
        #[repr(i32)]
        pub enum Errno { $($(#[$doc])* $name = $value),* }

        impl Errno {
            /// The symbol, as `EINVAL`.
            pub const fn name(self) -> &'static str {
                match self { $(Errno::$name => stringify!($name)),* }
            }
        }
    };
}

errnos! {
    /// No such file, slot, memcg or mapping.
    ENOENT = 2,
    /// Interrupted by the user.
    EINTR = 4,
    /// An input or output failed.
    EIO = 5,
    /// No file is there.
    EBADF = 9,
    /// Try again.
    EAGAIN = 11,
    /// Out of frames, swap slots or address space.
    ENOMEM = 12,
    /// An address outside every mapping.
    EFAULT = 14,
    /// In use.
    EBUSY = 16,
    /// Already there, or overlapping.
    EEXIST = 17,
    /// A malformed or contradictory argument.
    EINVAL = 22,
    /// No space left.
    ENOSPC = 28,
    /// Out of range, `-ERANGE` of `+` without `force_scan`.
    ERANGE = 34,
    /// Not supported by this configuration.
    EOPNOTSUPP = 95,
}

/// What went wrong. `Display` names the thing, where, and what was expected.
pub enum Error {
    /// An error the kernel would return as a number.
    Sys {
        /// The number.
        errno: Errno,
        /// One sentence.
        what: String,
    },
    /// A callback of the embedding language raised; the payload is its own
    /// exception, handed back untouched.
    Callback(Box<dyn Any + Send>),
}

/// `Result` with [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with a number and a sentence.
    pub fn new(errno: Errno, what: impl Into<String>) -> Self {
        Error::Sys {
            errno,
            what: what.into(),
        }
    }

    /// `EINVAL` with a sentence.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::new(Errno::EINVAL, what)
    }

    /// The number; a raised callback counts as `EIO`.
    pub fn errno(&self) -> Errno {
        match self {
            Error::Sys { errno, .. } => *errno,
            Error::Callback(_) => Errno::EIO,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Sys { errno, what } => write!(f, "{what} ({})", errno.name()),
            Error::Callback(_) => f.write_str("a notifier callback raised an exception"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}
