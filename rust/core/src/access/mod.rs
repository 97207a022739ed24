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

/// What an access does: what the processor tells the page-fault handler
/// (`PFERR_WRITE_MASK`, `PFERR_FETCH_MASK`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AccessKind {
    /// It loads.
    Read = 0,
    /// It stores.
    Write = 1,
    /// It fetches an instruction.
    Fetch = 2,
}

impl AccessKind {
    /// Whether it stores. To whoever only holds memory, and runs nothing from
    /// it, a fetch is a read.
    #[inline]
    pub const fn is_write(self) -> bool {
        matches!(self, AccessKind::Write)
    }

    /// `data`, with `write` beside it for a store; `fetch` for a fetch. The
    /// only branch is whether it fetches: whether it stores is, from one access
    /// to the next, as random as the guest.
    #[inline(always)]
    pub const fn choose(self, data: u64, write: u64, fetch: u64) -> u64 {
        if matches!(self, AccessKind::Fetch) {
            fetch
        } else {
            data | write & (self as u64).wrapping_neg()
        }
    }

    /// In messages.
    pub const fn name(self) -> &'static str {
        match self {
            AccessKind::Read => "read",
            AccessKind::Write => "write",
            AccessKind::Fetch => "fetch",
        }
    }
}

impl From<bool> for AccessKind {
    /// A load or, if true, a store.
    #[inline]
    fn from(write: bool) -> Self {
        if write {
            AccessKind::Write
        } else {
            AccessKind::Read
        }
    }
}

/// One access: a page, and what is done to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access(u64);

const KIND_BITS: u32 = 2;

impl Access {
    /// An access to a page.
    #[inline]
    pub fn new(page: u64, kind: impl Into<AccessKind>) -> Self {
        Access(page << KIND_BITS | kind.into() as u64)
    }

    /// The page.
    #[inline]
    pub const fn page(self) -> u64 {
        self.0 >> KIND_BITS
    }

    /// What it does.
    #[inline]
    pub const fn kind(self) -> AccessKind {
        use AccessKind::{Fetch, Read, Write};
        // Looked up, for nobody could predict a branch.
        const KINDS: [AccessKind; 1 << KIND_BITS] = [Read, Write, Fetch, Fetch];
        KINDS[self.0 as usize % KINDS.len()]
    }

    /// Whether it is a write.
    #[inline]
    pub const fn is_write(self) -> bool {
        self.kind().is_write()
    }
}
