//! Native streams of guest accesses: who touches which page, when.
//!
//! A stream is made from parameters and an explicit seed, and repeats to the
//! bit. It fills buffers of [`Access`]es, so that making an access costs less
//! than modelling it.

pub mod oracle;
pub mod reuse;
pub mod stream;
pub mod trace_text;

pub use stream::{Partition, Pattern, Phase, Stream, StreamConfig, partition};

/// One access: a page, and whether it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access(u64);

impl Access {
    /// An access to a page.
    #[inline]
    pub const fn new(page: u64, write: bool) -> Self {
        Access(page << 1 | write as u64)
    }

    /// The page.
    #[inline]
    pub const fn page(self) -> u64 {
        self.0 >> 1
    }

    /// Whether it is a write.
    #[inline]
    pub const fn is_write(self) -> bool {
        self.0 & 1 != 0
    }
}
