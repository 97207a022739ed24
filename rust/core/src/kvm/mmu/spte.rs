//! Secondary page-table entries: one 64-bit word each (`arch/x86/kvm/mmu/spte.h`).
//!
//! Everything here is a function of a word, or of one atomic word, so that it
//! can be tested by itself and by a model checker.
//!
//! | bits | what |
//! |---|---|
//! | 0, 1, 2 | EPT: readable, writable, executable; NPT and legacy: present, writable, user |
//! | 5, 6 | NPT and legacy: accessed, dirty |
//! | 7 | leaf above the lowest level |
//! | 8, 9 | EPT: accessed, dirty |
//! | 9, 10 | NPT and legacy: host-writable, MMU-writable (software) |
//! | 11 | MMU-present (software, every format) |
//! | 12-51 | frame of a leaf, table of a non-leaf |
//! | 52-53 | A/D type: 0 enabled, 1 disabled, 2 write-protect-only |
//! | 54, 56 | R and X of an access-tracked entry, saved |
//! | 57, 58 | EPT: host-writable, MMU-writable (software) |
//! | 63 | NPT and legacy: not executable |

use crate::access::AccessKind;
use crate::mm::Pfn;
use crate::mutant::{self, Mutant};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::table::{TABLE_ENTRIES, TABLE_SHIFT, TableId};

/// The level whose leaf is a base page (`PG_LEVEL_4K`).
pub const LEVEL_4K: u32 = 1;
/// The level whose leaf is 2 MiB (`PG_LEVEL_2M`).
pub const LEVEL_2M: u32 = 2;
/// The level whose leaf is 1 GiB (`PG_LEVEL_1G`).
pub const LEVEL_1G: u32 = 3;
/// How many levels can hold leaves (`KVM_NR_PAGE_SIZES`).
pub const NR_PAGE_SIZES: usize = 3;

/// The entry is present for the MMU, whatever hardware thinks of it
/// (`SPTE_MMU_PRESENT_MASK`).
pub const MMU_PRESENT: u64 = 1 << 11;
/// A leaf above the lowest level (`PT_PAGE_SIZE_MASK`).
pub const PAGE_SIZE_BIT: u64 = 1 << 7;
/// Writable, in every format (`PT_WRITABLE_MASK`).
pub const WRITABLE: u64 = 1 << 1;

/// The guest's tables allow instruction fetches (`ACC_EXEC_MASK`).
pub const ACC_EXEC_MASK: u32 = 1 << 0;
/// They allow writes (`ACC_WRITE_MASK`).
pub const ACC_WRITE_MASK: u32 = 1 << 1;
/// They allow reads: R of EPT. Legacy paging cannot forbid them, and accesses
/// of its user and its supervisor are not told apart (`ACC_USER_MASK`).
pub const ACC_USER_MASK: u32 = 1 << 2;
/// Everything, as where the guest has no tables of its own (`ACC_ALL`).
pub const ACC_ALL: u32 = ACC_EXEC_MASK | ACC_WRITE_MASK | ACC_USER_MASK;

/// What an access needs of them.
#[inline]
pub const fn acc_needed(kind: AccessKind) -> u32 {
    match kind {
        AccessKind::Read => ACC_USER_MASK,
        AccessKind::Write => ACC_USER_MASK | ACC_WRITE_MASK,
        AccessKind::Fetch => ACC_EXEC_MASK,
    }
}

const AD_TYPE_SHIFT: u32 = 52;
/// The field that says how accessed and dirty are kept (`SPTE_TDP_AD_MASK`).
pub const AD_TYPE_MASK: u64 = 0b11 << AD_TYPE_SHIFT;
/// Hardware keeps accessed and dirty (`SPTE_TDP_AD_ENABLED`).
pub const AD_ENABLED: u64 = 0;
/// Nobody does: young is "not access-tracked" (`SPTE_TDP_AD_DISABLED`).
pub const AD_DISABLED: u64 = 1 << AD_TYPE_SHIFT;
/// Hardware does, but dirty logging must write-protect
/// (`SPTE_TDP_AD_WRPROT_ONLY`). Counts as enabled.
pub const AD_WRPROT_ONLY: u64 = 2 << AD_TYPE_SHIFT;

const SAVED_SHIFT: u32 = 54;
/// What access tracking saves: EPT's R and X.
const SAVED_BITS: u64 = 0b101;
/// Where it saves them (`SHADOW_ACC_TRACK_SAVED_MASK`).
pub const SAVED_MASK: u64 = SAVED_BITS << SAVED_SHIFT;
/// The permission bits that access tracking clears (`shadow_acc_track_mask`).
pub const ACC_TRACK_MASK: u64 = 0b111;

const FRAME_SHIFT: u32 = 12;
/// The frame or table field.
pub const FRAME_MASK: u64 = ((1 << 52) - 1) & !((1 << FRAME_SHIFT) - 1);

/// An entry that one thread is replacing (`FROZEN_SPTE`), in the TDP MMU only;
/// recognised by equality.
///
/// It holds no accessed bit of either format: an ager that loaded a young
/// entry just before it was frozen still does its `fetch_and`, and must find
/// nothing to clear, or the entry would thaw. It holds no permission bit
/// either, so hardware faults on it, and no MMU-present bit.
pub const FROZEN: u64 = 1 << 7 | 1 << 10;

/// The value the kernel gives to [`FROZEN`]. It holds bits 5 and 8, the
/// accessed bits of both formats: the mutant `thaw-frozen`.
pub const FROZEN_THAWABLE: u64 = 0x5a0;

const EPT_ACCESSED: u64 = 1 << 8;
const LEGACY_ACCESSED: u64 = 1 << 5;
const _: () = assert!(FROZEN & (EPT_ACCESSED | LEGACY_ACCESSED | MMU_PRESENT) == 0);
const _: () = assert!(FROZEN & ACC_TRACK_MASK == 0 && FROZEN != 0);
const _: () = assert!(FROZEN != crate::table::POISON && crate::table::POISON & MMU_PRESENT == 0);

/// log2 of the GFNs that an entry of `level` spans.
#[inline]
pub const fn gfn_shift(level: u32) -> u32 {
    TABLE_SHIFT * (level - 1)
}

/// GFNs that an entry of `level` spans (`KVM_PAGES_PER_HPAGE`).
#[inline]
pub const fn pages_per(level: u32) -> u64 {
    1 << gfn_shift(level)
}

/// First GFN of the entry of `level` that spans `gfn` (`gfn_round_for_level()`).
#[inline]
pub const fn round_gfn(gfn: u64, level: u32) -> u64 {
    gfn & !(pages_per(level) - 1)
}

/// Index of `gfn` in a table of `level` (`SPTE_INDEX`).
#[inline]
pub const fn gfn_index(gfn: u64, level: u32) -> usize {
    (gfn >> gfn_shift(level)) as usize & (TABLE_ENTRIES - 1)
}

/// Whether the MMU has put something here (`is_shadow_present_pte()`).
#[inline]
pub const fn is_present(spte: u64) -> bool {
    spte & MMU_PRESENT != 0
}

/// [`FROZEN`], for those who write it.
#[inline]
pub fn frozen() -> u64 {
    if mutant::active(Mutant::ThawFrozen) {
        FROZEN_THAWABLE
    } else {
        FROZEN
    }
}

/// Whether some thread is replacing the entry (`is_frozen_spte()`).
#[inline]
pub fn is_frozen(spte: u64) -> bool {
    spte == frozen()
}

/// Whether a present entry of `level` is a leaf (`is_last_spte()`).
#[inline]
pub const fn is_last(spte: u64, level: u32) -> bool {
    level == LEVEL_4K || spte & PAGE_SIZE_BIT != 0
}

/// Present and a leaf.
#[inline]
pub const fn is_present_leaf(spte: u64, level: u32) -> bool {
    is_present(spte) && is_last(spte, level)
}

/// Whether hardware keeps this entry's accessed and dirty bits
/// (`spte_ad_enabled()`).
#[inline]
pub const fn ad_enabled(spte: u64) -> bool {
    spte & AD_TYPE_MASK != AD_DISABLED
}

/// Whether this entry's next access faults only so that it can be seen
/// (`is_access_track_spte()`).
#[inline]
pub const fn is_access_tracked(spte: u64) -> bool {
    !ad_enabled(spte) && spte & ACC_TRACK_MASK == 0
}

/// Whether the guest may write through the entry now.
#[inline]
pub const fn is_writable(spte: u64) -> bool {
    spte & WRITABLE != 0
}

/// The frame of a leaf.
#[inline]
pub const fn pfn(spte: u64) -> Pfn {
    Pfn(((spte & FRAME_MASK) >> FRAME_SHIFT) as u32)
}

/// The table below a non-leaf.
#[inline]
pub const fn table(spte: u64) -> TableId {
    TableId(((spte & FRAME_MASK) >> FRAME_SHIFT) as u32)
}

/// Give R and X back to an access-tracked entry and empty the saved field
/// (`restore_acc_track_spte()`). W was not saved: it returns only with a write
/// fault on an MMU-writable entry.
#[inline]
pub const fn restore_access_track(spte: u64) -> u64 {
    let saved = spte >> SAVED_SHIFT & SAVED_BITS;
    spte & !(ACC_TRACK_MASK | SAVED_MASK) | saved
}

/// What one attempt to age an entry did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Aged {
    /// The verdict, by the value that was read first.
    pub young: bool,
    /// The entry before: as read, or as the atomic operation found it.
    pub old: u64,
    /// The entry after; equal to `old` when nothing was written.
    pub new: u64,
    /// How it was written.
    pub write: Write,
}

impl Aged {
    /// Nothing was written: the entry is old, or no leaf.
    const fn old(seen: u64) -> Self {
        Aged {
            young: false,
            old: seen,
            new: seen,
            write: Write::None,
        }
    }
}

/// How aging wrote an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// It did not.
    None,
    /// One atomic `fetch_and`.
    FetchAnd,
    /// One compare-and-exchange, which succeeded.
    Exchanged,
    /// One compare-and-exchange, which failed: the entry stays young.
    ExchangeFailed,
    /// A plain store under `mmu_lock` held for write.
    PlainStore,
}

/// What a new leaf is to be ([`SpteFormat::make_leaf`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Frame of the first base page.
    pub pfn: Pfn,
    /// Its level.
    pub level: u32,
    /// What the MMU lets the guest do, of [`ACC_ALL`]: what the guest's own
    /// tables allow, without writing where a guest page table is tracked
    /// (`pte_access`).
    pub access: u32,
    /// The host's mapping is writable.
    pub host_writable: bool,
    /// Made ahead of an access, so born old.
    pub prefetch: bool,
    /// One of [`AD_ENABLED`], [`AD_DISABLED`], [`AD_WRPROT_ONLY`].
    pub ad_type: u64,
}

/// Where a page-table format keeps its bits, and whether hardware sets
/// accessed and dirty in it. Two formats exist: EPT, and NPT which is legacy
/// x86 paging too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpteFormat {
    /// `ept` or `npt`.
    pub name: &'static str,
    /// The accessed bit.
    pub accessed: u64,
    /// The dirty bit.
    pub dirty: u64,
    /// Software: the host's mapping is writable.
    pub host_writable: u64,
    /// Software: write permission may be given back without `mmu_lock`.
    pub mmu_writable: u64,
    /// What hardware calls present: any of these bits.
    pub hw_present: u64,
    /// Hardware needs this to read.
    pub readable: u64,
    /// The permission bits, other than [`WRITABLE`], of an entry that allows
    /// everything.
    pub permissions: u64,
    /// Of those, what a leaf that cannot be read lacks (`shadow_user_mask`).
    pub user: u64,
    /// Of those, what hardware needs to fetch (`shadow_x_mask`).
    pub executable: u64,
    /// What keeps hardware from fetching (`shadow_nx_mask`).
    pub not_executable: u64,
    /// Whether hardware keeps accessed and dirty bits (`kvm_ad_enabled()`).
    pub ad_bits: bool,
}

impl SpteFormat {
    /// EPT with accessed and dirty bits.
    pub const EPT: SpteFormat = SpteFormat {
        name: "ept",
        accessed: EPT_ACCESSED,
        dirty: 1 << 9,
        host_writable: 1 << 57,
        mmu_writable: 1 << 58,
        hw_present: 0b111,
        readable: 1 << 0,
        permissions: 0b101,
        user: 1 << 0,
        executable: 1 << 2,
        not_executable: 0,
        ad_bits: true,
    };
    /// EPT with accessed and dirty bits off for the whole VM.
    pub const EPT_NO_AD: SpteFormat = SpteFormat {
        ad_bits: false,
        ..SpteFormat::EPT
    };
    /// NPT, and legacy paging. It always has accessed and dirty bits.
    pub const NPT: SpteFormat = SpteFormat {
        name: "npt",
        accessed: LEGACY_ACCESSED,
        dirty: 1 << 6,
        host_writable: 1 << 9,
        mmu_writable: 1 << 10,
        hw_present: 1 << 0,
        readable: 1 << 0,
        permissions: 0b101,
        user: 1 << 2,
        executable: 0,
        not_executable: 1 << 63,
        ad_bits: true,
    };

    /// The A/D type of an entry that nobody asked more of.
    #[inline]
    pub const fn default_ad_type(&self) -> u64 {
        if self.ad_bits {
            AD_ENABLED
        } else {
            AD_DISABLED
        }
    }

    /// Whether a present leaf counts as accessed (`is_accessed_spte()`).
    #[inline]
    pub const fn is_accessed(&self, spte: u64) -> bool {
        if ad_enabled(spte) {
            spte & self.accessed != 0
        } else {
            !is_access_tracked(spte)
        }
    }

    /// Whether a present leaf counts as dirty (`is_dirty_spte()`): without a
    /// dirty bit, whatever is writable may have been written.
    #[inline]
    pub const fn is_dirty(&self, spte: u64) -> bool {
        if ad_enabled(spte) {
            spte & self.dirty != 0
        } else {
            is_writable(spte)
        }
    }

    /// Whether the entry is a present leaf that counts as accessed.
    #[inline]
    pub const fn is_young_leaf(&self, spte: u64, level: u32) -> bool {
        is_present_leaf(spte, level) && self.is_accessed(spte)
    }

    /// Whether write permission may be given back without `mmu_lock`
    /// (`is_mmu_writable_spte()`).
    #[inline]
    pub const fn is_mmu_writable(&self, spte: u64) -> bool {
        spte & self.mmu_writable != 0
    }

    /// Whether the host's mapping was writable when the entry was made.
    #[inline]
    pub const fn is_host_writable(&self, spte: u64) -> bool {
        spte & self.host_writable != 0
    }

    /// Whether hardware lets instructions be fetched through the entry
    /// (`is_executable_pte()`).
    #[inline]
    pub const fn is_executable(&self, spte: u64) -> bool {
        spte & (self.executable | self.not_executable) == self.executable
    }

    /// What an access asks of an entry that is present: the bits that it must
    /// have, and those that it must not.
    #[inline]
    pub(super) const fn demand(&self, kind: AccessKind) -> (u64, u64) {
        let wanted = kind.choose(self.readable, WRITABLE, self.executable);
        (wanted, kind.choose(0, 0, self.not_executable))
    }

    /// Whether hardware lets an access through the entry
    /// (`is_access_allowed()`).
    #[inline]
    pub const fn allows(&self, spte: u64, kind: AccessKind) -> bool {
        let (wanted, forbidden) = self.demand(kind);
        spte & self.hw_present != 0 && spte & (wanted | forbidden) == wanted
    }

    /// Whether a leaf that was made with `access`, of [`ACC_ALL`], still has it:
    /// when the access that access tracking waits for has been seen, it lets
    /// reads and fetches through just as it was to, and no write that it was
    /// not. (A write may have to fault first.)
    pub fn keeps_access(&self, spte: u64, access: u32) -> bool {
        let now = if is_access_tracked(spte) {
            restore_access_track(spte)
        } else {
            spte
        };
        let is_and_was = |kind| {
            let needed = acc_needed(kind);
            (self.allows(now, kind), access & needed == needed)
        };
        let (read, write, fetch) = (
            is_and_was(AccessKind::Read),
            is_and_was(AccessKind::Write),
            is_and_was(AccessKind::Fetch),
        );
        read.0 == read.1 && write.0 <= write.1 && fetch.0 == fetch.1
    }

    /// Bits that another thread or hardware may change behind a holder of
    /// `mmu_lock` (`spte_has_volatile_bits()`): such an entry is written
    /// atomically or a change is lost.
    ///
    /// `accessed_counts`: whether losing or inventing an accessed bit matters.
    /// It does before v9, which tolerates it and instead calls every entry
    /// without A/D bits volatile.
    #[inline]
    pub fn has_volatile_bits(&self, spte: u64, accessed_counts: bool) -> bool {
        if mutant::active(Mutant::AdOffPlain) && !ad_enabled(spte) {
            return false;
        }
        if !is_writable(spte) && self.is_mmu_writable(spte) {
            return true;
        }
        if !ad_enabled(spte) {
            return !accessed_counts || is_access_tracked(spte);
        }
        (accessed_counts && spte & self.accessed == 0)
            || (is_writable(spte) && spte & self.dirty == 0)
    }

    /// The entry made old (`mark_spte_for_access_track()`): with A/D bits the
    /// accessed bit is cleared, without them R and X are saved and R, W and X
    /// cleared. Twice is the same as once.
    #[inline]
    pub const fn mark_old(&self, spte: u64) -> u64 {
        if ad_enabled(spte) {
            return spte & !self.accessed;
        }
        if is_access_tracked(spte) {
            return spte;
        }
        let saved = (spte & SAVED_BITS) << SAVED_SHIFT;
        spte & !(ACC_TRACK_MASK | SAVED_MASK) | saved
    }

    /// A leaf (`make_spte()`). Born accessed, and dirty if writable, unless it
    /// is prefetched: then it is born old.
    pub const fn make_leaf(&self, leaf: Leaf) -> u64 {
        let mut spte =
            MMU_PRESENT | leaf.ad_type | self.permissions | (leaf.pfn.0 as u64) << FRAME_SHIFT;
        if leaf.level > LEVEL_4K {
            spte |= PAGE_SIZE_BIT;
        }
        let with_ad = leaf.ad_type != AD_DISABLED;
        if with_ad && !leaf.prefetch {
            spte |= self.accessed;
        }
        if leaf.access & ACC_EXEC_MASK == 0 {
            spte = spte & !self.executable | self.not_executable;
        }
        if leaf.access & ACC_USER_MASK == 0 {
            spte &= !self.user;
        }
        if leaf.host_writable {
            spte |= self.host_writable;
            if leaf.access & ACC_WRITE_MASK != 0 {
                spte |= WRITABLE | self.mmu_writable;
                if with_ad {
                    spte |= self.dirty;
                }
            }
        }
        if leaf.prefetch {
            spte = self.mark_old(spte);
        }
        spte
    }

    /// An entry that points to a table (`make_nonleaf_spte()`): every
    /// permission, and accessed, so that hardware need not set it.
    #[inline]
    pub const fn make_nonleaf(&self, table: TableId, ad_disabled: bool) -> u64 {
        let ad = if ad_disabled {
            AD_DISABLED
        } else {
            self.accessed
        };
        MMU_PRESENT | WRITABLE | self.permissions | ad | (table.0 as u64) << FRAME_SHIFT
    }

    /// Entry `index` of the table of `level` that replaces the huge leaf
    /// `huge` (`make_small_spte()`).
    #[inline]
    pub const fn make_small(&self, huge: u64, level: u32, index: usize) -> u64 {
        let first = (huge & FRAME_MASK) >> FRAME_SHIFT;
        let frame = first + ((index as u64) << gfn_shift(level));
        let mut spte = huge & !FRAME_MASK | frame << FRAME_SHIFT;
        if level == LEVEL_4K {
            spte &= !PAGE_SIZE_BIT;
        }
        spte
    }

    /// The bits that a processor's walk sets in a leaf, given the access.
    #[inline]
    pub const fn hw_bits(&self, spte: u64, write: bool) -> u64 {
        if !ad_enabled(spte) {
            0
        } else if write {
            self.accessed | self.dirty
        } else {
            self.accessed
        }
    }

    /// Age one entry without `mmu_lock`: load first, and write only what is
    /// young. With A/D bits one `fetch_and` that changes no other bit; without,
    /// one compare-and-exchange with the access-tracked value and no retry:
    /// when it fails someone else has just used or changed the entry, and it
    /// counts as young and stays.
    #[inline]
    pub fn age(&self, word: &AtomicU64, level: u32) -> Aged {
        // Relaxed: the verdict needs no other memory; the frame is looked up
        // only after the atomic operation below.
        let seen = word.load(Ordering::Relaxed);
        let any = mutant::active(Mutant::AgeNonPresent) && seen & self.accessed != 0;
        if any || self.is_young_leaf(seen, level) {
            self.age_young(word, seen)
        } else {
            Aged::old(seen)
        }
    }

    /// [`age`](Self::age) for an entry that was seen to be a young leaf.
    #[inline]
    pub fn age_young(&self, word: &AtomicU64, seen: u64) -> Aged {
        let (old, new, write) = if ad_enabled(seen) {
            // AcqRel: as every change of an entry, so that who reads the frame
            // afterwards sees what was done before the entry was made.
            let old = if mutant::active(Mutant::AgeByStore) {
                word.store(seen & !self.accessed, Ordering::Release);
                seen
            } else {
                word.fetch_and(!self.accessed, Ordering::AcqRel)
            };
            (old, old & !self.accessed, Write::FetchAnd)
        } else {
            let new = self.mark_old(seen);
            match word.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(old) => (old, new, Write::Exchanged),
                Err(now) if mutant::active(Mutant::CasRetryForever) => {
                    return self.age_young(word, now);
                }
                Err(now) => (now, now, Write::ExchangeFailed),
            }
        };
        Aged {
            young: true,
            old,
            new,
            write,
        }
    }

    /// Leave an entry alone that was seen not to be a young leaf. A bit that
    /// hardware has set since then is for the next aging, which mutant
    /// `clear-unseen` takes it from.
    #[inline(always)]
    pub fn leave(&self, word: &AtomicU64, seen: u64) {
        if mutant::active(Mutant::ClearUnseen) && is_present(seen) && ad_enabled(seen) {
            word.fetch_and(!self.accessed, Ordering::AcqRel);
        }
    }

    /// Age one entry with `mmu_lock` held for write, as before the series: a
    /// plain store where nothing can be lost by it, atomically elsewhere.
    #[inline]
    pub fn age_locked(&self, word: &AtomicU64, level: u32) -> Aged {
        let seen = word.load(Ordering::Relaxed);
        if self.is_young_leaf(seen, level) {
            self.age_young_locked(word, seen)
        } else {
            Aged::old(seen)
        }
    }

    /// [`age_young`](Self::age_young) of an entry with A/D bits, for whoever
    /// does not ask what it found: one instruction where there is one.
    #[inline]
    pub fn age_young_ad(&self, word: &AtomicU64) {
        if mutant::active(Mutant::AgeByStore) {
            let seen = word.load(Ordering::Relaxed);
            word.store(seen & !self.accessed, Ordering::Release);
        } else {
            // AcqRel: as in `age_young`.
            word.fetch_and(!self.accessed, Ordering::AcqRel);
        }
    }

    /// [`age_locked`](Self::age_locked) for an entry that was seen to be a
    /// young leaf.
    #[inline]
    pub fn age_young_locked(&self, word: &AtomicU64, seen: u64) -> Aged {
        if self.has_volatile_bits(seen, true) {
            return self.age_young(word, seen);
        }
        let new = self.mark_old(seen);
        // Relaxed: `mmu_lock` orders it for everyone who takes the lock, and
        // hardware needs no order.
        word.store(new, Ordering::Relaxed);
        Aged {
            young: true,
            old: seen,
            new,
            write: Write::PlainStore,
        }
    }

    /// Whether the entry is a young leaf now; nothing is written.
    #[inline]
    pub fn test(&self, word: &AtomicU64, level: u32) -> bool {
        self.is_young_leaf(word.load(Ordering::Relaxed), level)
    }
}
