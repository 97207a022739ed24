//! The folio's word: generation, references, flags, order, node and memcg.
//!
//! All of it is one atomic 64-bit word, as in `folio->flags`, because walkers
//! move a folio between generations by changing that word only, under no lock;
//! every change is a compare-and-exchange or an atomic bit operation.

use crate::sync::atomic::{AtomicU64, Ordering};

/// A page frame number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pfn(pub u32);

/// A value of a folio's word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Word(pub u64);

/// Bits of the generation field, which holds generation + 1; 0 is "isolated, or
/// on no list".
pub const GEN_WIDTH: u32 = 3;
/// The generation field.
pub const GEN_MASK: u64 = (1 << GEN_WIDTH) - 1;
/// Where the references field begins.
pub const REFS_SHIFT: u32 = GEN_WIDTH;
/// The references field: references beyond the first, two bits.
pub const REFS_MASK: u64 = 0b11 << REFS_SHIFT;
const ORDER_SHIFT: u32 = 32;
/// The field of the number of pages, as its logarithm.
pub const ORDER_MASK: u64 = 0x1f << ORDER_SHIFT;
const NODE_SHIFT: u32 = 40;
/// The field of the node.
pub const NODE_MASK: u64 = 0x3f << NODE_SHIFT;
const MEMCG_SHIFT: u32 = 48;
/// The field of the owner.
pub const MEMCG_MASK: u64 = 0xffff << MEMCG_SHIFT;

macro_rules! flags {
    ($($(#[doc = $doc:literal])+ $name:ident = $bit:literal),* $(,)?) => {
        $($(#[doc = $doc])+ pub const $name: u64 = 1 << $bit;)*
        /// Name and value of every flag, for printing.
        pub const FLAGS: &[(&str, u64)] = &[$((stringify!($name), $name)),*];
    };
}

flags! {
    /// Referenced once (`PG_referenced`).
    REFERENCED = 8,
    /// Part of the working set when last evicted (`PG_workingset`).
    WORKINGSET = 9,
    /// Asked to be in the youngest generations when added (`PG_active`).
    ACTIVE = 10,
    /// Differs from its backing store (`PG_dirty`).
    DIRTY = 11,
    /// Has a swap slot (`PG_swapcache`).
    SWAPCACHE = 12,
    /// Anonymous or shmem: counted as anon by the LRU (`PG_swapbacked`).
    SWAPBACKED = 13,
    /// Being written out (`PG_writeback`).
    WRITEBACK = 14,
    /// To be reclaimed as soon as it is clean (`PG_reclaim`).
    RECLAIM = 15,
    /// Not to be reclaimed (`PG_unevictable`).
    UNEVICTABLE = 16,
    /// Locked by one thread (`PG_locked`).
    LOCKED = 17,
    /// On an LRU list, or in a batch on its way there (`PG_lru`).
    LRU = 18,
    /// Marked idle by page_idle and not touched since (`PG_idle`).
    IDLE = 19,
    /// Found young while idle tracking cleared the bit (`PG_young`).
    YOUNG = 20,
    /// Not the first page of its folio.
    TAIL = 21,
    /// A page of a hugetlb folio, which is on no LRU.
    HUGETLB = 22,
    /// Mapped anonymously (`PageAnon`): its mapping is an anon_vma.
    ANON = 23,
}

impl Word {
    /// The generation, or `None` while isolated or on no list.
    #[inline]
    pub fn generation(self) -> Option<usize> {
        match self.0 & GEN_MASK {
            0 => None,
            n => Some(n as usize - 1),
        }
    }

    /// With a generation, or with none.
    #[inline]
    #[must_use]
    pub fn with_generation(self, generation: Option<usize>) -> Self {
        let field = generation.map_or(0, |g| g as u64 + 1);
        debug_assert!(field <= GEN_MASK);
        Word(self.0 & !GEN_MASK | field)
    }

    /// The references field, 0 to 3.
    #[inline]
    pub fn refs(self) -> u64 {
        (self.0 & REFS_MASK) >> REFS_SHIFT
    }

    /// With another references field.
    #[inline]
    #[must_use]
    pub fn with_refs(self, refs: u64) -> Self {
        debug_assert!(refs <= 3);
        Word(self.0 & !REFS_MASK | refs << REFS_SHIFT)
    }

    /// Whether all of `flags` are set.
    #[inline]
    pub fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }

    /// Whether any of `flags` is set.
    #[inline]
    pub fn any(self, flags: u64) -> bool {
        self.0 & flags != 0
    }

    /// log2 of the number of pages in the folio.
    #[inline]
    pub fn order(self) -> u32 {
        ((self.0 & ORDER_MASK) >> ORDER_SHIFT) as u32
    }

    /// With another number of pages, as its logarithm.
    #[inline]
    #[must_use]
    pub fn with_order(self, order: u32) -> Self {
        Word(self.0 & !ORDER_MASK | u64::from(order) << ORDER_SHIFT)
    }

    /// Pages in the folio (`folio_nr_pages()`).
    #[inline]
    pub fn nr_pages(self) -> u64 {
        1 << self.order()
    }

    /// The node the folio's memory is on.
    #[inline]
    pub fn node(self) -> usize {
        ((self.0 & NODE_MASK) >> NODE_SHIFT) as usize
    }

    /// The memory cgroup that owns the folio; 0 is the root.
    #[inline]
    pub fn memcg(self) -> u16 {
        (self.0 >> MEMCG_SHIFT) as u16
    }

    /// Whether the LRU counts the folio as file memory (`folio_is_file_lru()`).
    #[inline]
    pub fn is_file_lru(self) -> bool {
        self.0 & SWAPBACKED == 0
    }

    /// Node, order and flags of a new folio.
    pub fn new(node: usize, order: u32, flags: u64) -> Self {
        Word(flags | u64::from(order) << ORDER_SHIFT | (node as u64) << NODE_SHIFT)
    }

    /// With another owner.
    #[must_use]
    pub fn with_memcg(self, memcg: u16) -> Self {
        Word(self.0 & !MEMCG_MASK | u64::from(memcg) << MEMCG_SHIFT)
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "gen {:?} refs {}", self.generation(), self.refs())?;
        for (name, flag) in FLAGS {
            if self.has(*flag) {
                write!(f, " {}", name.to_ascii_lowercase())?;
            }
        }
        write!(
            f,
            " order {} node {} memcg {}",
            self.order(),
            self.node(),
            self.memcg()
        )
    }
}

/// The operations on a folio's word.
pub trait FolioWord {
    /// The value now.
    fn get(&self) -> Word;
    /// Set flags; returns the value before.
    fn set(&self, flags: u64) -> Word;
    /// Clear flags; returns the value before.
    fn clear(&self, flags: u64) -> Word;
    /// Replace the word by `change(word)` until it succeeds; `None` from
    /// `change` leaves it. Returns the value before, and whether it changed.
    fn modify(&self, change: impl FnMut(Word) -> Option<Word>) -> (Word, bool) {
        self.modify_from(self.get(), change)
    }
    /// [`modify`](Self::modify) that tries a value read before first.
    fn modify_from(&self, seen: Word, change: impl FnMut(Word) -> Option<Word>) -> (Word, bool);
}

impl FolioWord for AtomicU64 {
    #[inline]
    fn get(&self) -> Word {
        // Relaxed: the word carries no pointer; whoever needs more than one
        // consistent word holds the LRU lock or the folio's lock.
        Word(self.load(Ordering::Relaxed))
    }

    #[inline]
    fn set(&self, flags: u64) -> Word {
        // AcqRel: LOCKED and LRU hand the folio from one thread to the next.
        Word(self.fetch_or(flags, Ordering::AcqRel))
    }

    #[inline]
    fn clear(&self, flags: u64) -> Word {
        // AcqRel: as in `set`.
        Word(self.fetch_and(!flags, Ordering::AcqRel))
    }

    #[inline]
    fn modify_from(
        &self,
        seen: Word,
        mut change: impl FnMut(Word) -> Option<Word>,
    ) -> (Word, bool) {
        let mut seen = seen.0;
        loop {
            let Some(new) = change(Word(seen)) else {
                return (Word(seen), false);
            };
            match self.compare_exchange_weak(seen, new.0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return (Word(seen), true),
                Err(now) => seen = now,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_overlap() {
        let mut seen = GEN_MASK;
        for mask in [REFS_MASK, ORDER_MASK, NODE_MASK, MEMCG_MASK] {
            assert_eq!(seen & mask, 0);
            seen |= mask;
        }
        for (name, flag) in FLAGS {
            assert_eq!(seen & flag, 0, "{name}");
            seen |= flag;
        }
        let word = Word::new(3, 9, ANON | LRU)
            .with_memcg(0xabcd)
            .with_generation(Some(3))
            .with_refs(2);
        assert_eq!((word.node(), word.order(), word.memcg()), (3, 9, 0xabcd));
        assert_eq!((word.generation(), word.refs()), (Some(3), 2));
        assert_eq!(word.with_generation(None).generation(), None);
    }
}
