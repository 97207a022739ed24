//! A modelled TLB.
//!
//! A hit sets no accessed bit: that is how a page can be in use and yet look
//! old after `clear_young`, which does not flush. Entries are kept until they
//! are pushed out by others of their set, least recently used first, or until
//! a flush.

use super::mmu::Translation;
use super::mmu::spte::{LEVEL_1G, LEVEL_4K, gfn_shift};
use crate::access::AccessKind;
use crate::error::{Error, Result};
use crate::mm::Pfn;

/// Size and shape of a TLB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TlbConfig {
    /// Entries; 0 switches it off.
    pub entries: u32,
    /// Entries in a set.
    pub ways: u32,
}

impl TlbConfig {
    /// No TLB: every access walks.
    pub const OFF: TlbConfig = TlbConfig {
        entries: 0,
        ways: 1,
    };

    /// # Errors
    /// `EINVAL` unless the entries are a power of two times the ways.
    pub fn check(&self) -> Result<()> {
        let fits = self.ways > 0
            && self.ways <= 64
            && self.entries.is_multiple_of(self.ways)
            && (self.entries == 0 || (self.entries / self.ways).is_power_of_two())
            && self.entries <= 1 << 20;
        if fits {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "a TLB of {} entries in {}-way sets: expected 1 to 64 ways, and 0 or a power of two \
             times that many entries, up to {}",
            self.entries,
            self.ways,
            1 << 20
        )))
    }
}

impl Default for TlbConfig {
    /// The second-level TLB of a common server: 1,536 entries would be 12 ways
    /// of 128 sets.
    fn default() -> Self {
        TlbConfig {
            entries: 1536,
            ways: 12,
        }
    }
}

const EMPTY: u64 = u64::MAX;
const WRITABLE: u64 = 1 << 32;
const DIRTY: u64 = 1 << 33;
const READABLE: u64 = 1 << 34;
const EXECUTABLE: u64 = 1 << 35;

#[derive(Clone, Copy)]
struct Entry {
    /// Page number of its size, and its level.
    tag: u64,
    /// First frame, and permissions.
    value: u64,
}

const NO_ENTRY: Entry = Entry {
    tag: EMPTY,
    value: 0,
};

/// The TLB of one vCPU.
pub struct Tlb {
    entries: Box<[Entry]>,
    ways: usize,
    set_mask: u64,
    /// One bit a level: whether an entry of it may be inside.
    levels: u32,
}

impl Tlb {
    /// An empty TLB of a checked shape.
    pub fn new(config: TlbConfig) -> Self {
        let sets = u64::from((config.entries / config.ways).max(1));
        Tlb {
            entries: vec![NO_ENTRY; config.entries as usize].into(),
            ways: config.ways as usize,
            set_mask: sets - 1,
            levels: 0,
        }
    }

    #[inline]
    fn set(&mut self, page: u64) -> &mut [Entry] {
        let first = (page & self.set_mask) as usize * self.ways;
        &mut self.entries[first..first + self.ways]
    }

    /// The frame of a base page, if an entry allows the access without a walk:
    /// for a write, one that is writable and dirty.
    #[inline]
    pub fn lookup(&mut self, page: u64, kind: AccessKind) -> Option<Pfn> {
        let wanted = kind.choose(READABLE, WRITABLE | DIRTY, EXECUTABLE);
        let mut levels = self.levels;
        while levels != 0 {
            let level = levels.trailing_zeros();
            levels &= levels - 1;
            let shift = gfn_shift(level);
            let tag = (page >> shift) << 2 | u64::from(level);
            let set = self.set(page >> shift);
            let Some(way) = set.iter().position(|entry| entry.tag == tag) else {
                continue;
            };
            let entry = set[way];
            set.copy_within(..way, 1);
            set[0] = entry;
            if entry.value & wanted != wanted {
                return None;
            }
            let offset = page & ((1 << shift) - 1);
            return Some(Pfn(entry.value as u32 + offset as u32));
        }
        None
    }

    /// Keep what a walk found; an entry for the same page is replaced.
    #[inline]
    pub fn insert(&mut self, page: u64, found: &Translation) {
        if self.entries.is_empty() {
            return;
        }
        let shift = gfn_shift(found.level);
        let offset = (page & ((1 << shift) - 1)) as u32;
        let mut value = u64::from(found.pfn.0 - offset);
        for (allowed, bit) in [
            (found.readable, READABLE),
            (found.writable, WRITABLE),
            (found.executable, EXECUTABLE),
            (found.dirty, DIRTY),
        ] {
            value |= u64::from(allowed) * bit;
        }
        let tag = (page >> shift) << 2 | u64::from(found.level);
        self.levels |= 1 << found.level;
        let set = self.set(page >> shift);
        let way = set
            .iter()
            .position(|entry| entry.tag == tag)
            .unwrap_or(set.len() - 1);
        set.copy_within(..way, 1);
        set[0] = Entry { tag, value };
    }

    /// Forget everything.
    pub fn flush(&mut self) {
        if self.levels != 0 {
            self.entries.fill(NO_ENTRY);
            self.levels = 0;
        }
    }

    /// Entries in use.
    pub fn len(&self) -> usize {
        self.entries.iter().filter(|e| e.tag != EMPTY).count()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

const _: () = assert!(LEVEL_4K >= 1 && LEVEL_1G < 4, "a level fits in two bits");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::AccessKind::{Fetch, Read, Write};
    use crate::kvm::mmu::spte::LEVEL_2M;

    fn found(pfn: u32, level: u32, writable: bool, dirty: bool) -> Translation {
        Translation {
            pfn: Pfn(pfn),
            level,
            readable: true,
            writable,
            executable: true,
            dirty,
        }
    }

    #[test]
    fn a_write_through_an_entry_not_yet_dirty_walks_again() {
        let mut tlb = Tlb::new(TlbConfig {
            entries: 8,
            ways: 2,
        });
        tlb.insert(5, &found(50, LEVEL_4K, true, false));
        assert_eq!(tlb.lookup(5, Read), Some(Pfn(50)));
        assert_eq!(tlb.lookup(5, Write), None);
        tlb.insert(5, &found(50, LEVEL_4K, true, true));
        assert_eq!(tlb.lookup(5, Write), Some(Pfn(50)));
        assert_eq!(tlb.len(), 1);
        tlb.insert(5, &found(50, LEVEL_4K, false, true));
        assert_eq!(tlb.lookup(5, Write), None);
    }

    #[test]
    fn an_entry_knows_whether_it_may_be_read_and_executed() {
        let mut tlb = Tlb::new(TlbConfig {
            entries: 8,
            ways: 2,
        });
        let all = found(50, LEVEL_4K, true, true);
        let data = Translation {
            executable: false,
            ..all
        };
        let code = Translation {
            readable: false,
            writable: false,
            ..all
        };
        for (translation, allowed) in [
            (all, [true, true, true]),
            (data, [true, true, false]),
            (code, [false, false, true]),
        ] {
            tlb.insert(5, &translation);
            let hits = [Read, Write, Fetch].map(|kind| tlb.lookup(5, kind).is_some());
            assert_eq!(hits, allowed, "{translation:?}");
        }
    }

    #[test]
    fn the_least_recently_used_of_a_set_goes_first() {
        let mut tlb = Tlb::new(TlbConfig {
            entries: 8,
            ways: 2,
        });
        // Pages 0, 4 and 8 share a set of two.
        tlb.insert(0, &found(100, LEVEL_4K, false, false));
        tlb.insert(4, &found(104, LEVEL_4K, false, false));
        assert_eq!(tlb.lookup(0, Read), Some(Pfn(100)));
        tlb.insert(8, &found(108, LEVEL_4K, false, false));
        assert_eq!(tlb.lookup(4, Read), None);
        assert_eq!(tlb.lookup(0, Read), Some(Pfn(100)));
        assert_eq!(tlb.lookup(8, Read), Some(Pfn(108)));
        tlb.flush();
        assert!(tlb.is_empty() && tlb.lookup(0, Read).is_none());
    }

    #[test]
    fn a_huge_entry_answers_for_every_page_in_it() {
        let mut tlb = Tlb::new(TlbConfig {
            entries: 8,
            ways: 8,
        });
        tlb.insert(512 + 7, &found(1024 + 7, LEVEL_2M, true, true));
        assert_eq!(tlb.lookup(512, Write), Some(Pfn(1024)));
        assert_eq!(tlb.lookup(1023, Write), Some(Pfn(1535)));
        assert_eq!(tlb.lookup(1024, Write), None);
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        for (entries, ways) in [(8, 0), (9, 2), (12, 2), (8, 65), (1 << 21, 1)] {
            let config = TlbConfig { entries, ways };
            assert!(config.check().is_err(), "{config:?}");
        }
        assert!(TlbConfig::default().check().is_ok());
        let mut off = Tlb::new(TlbConfig::OFF);
        off.insert(0, &found(1, LEVEL_4K, true, true));
        assert_eq!(off.lookup(0, Read), None);
    }
}
