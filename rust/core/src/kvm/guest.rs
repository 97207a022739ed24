//! The guest's own page tables, in guest memory.
//!
//! A guest kernel keeps page tables of 512 words in frames of guest memory and
//! changes them by ordinary stores. Under shadow paging they translate guest
//! virtual addresses; under nesting they are L1's EPT or NPT tables and
//! translate L2's guest physical addresses. Either way KVM's walker reads them
//! through the memslots ([`GuestPaging::walk`], `paging_tmpl.h`), and trusts
//! nothing it finds there: every frame number is looked up, every reserved bit
//! checked, and what is wrong becomes a fault *of the guest*.

use crate::access::AccessKind;
use crate::error::{Errno, Error, Result};
use crate::kvm::mmu::spte::{
    ACC_ALL, ACC_EXEC_MASK, ACC_USER_MASK, ACC_WRITE_MASK, acc_needed, gfn_index, gfn_shift,
    pages_per,
};
use crate::sync::atomic::{AtomicU64, Ordering, zeroed};
use crate::sync::lock::{Mutex, RwSem};
use crate::table::{TABLE_ENTRIES, TABLE_SHIFT};
use std::collections::HashMap;
use std::sync::Arc;

/// Levels of a guest page table.
pub const GUEST_LEVELS: u32 = 4;
/// Bits of a guest physical address (`MAXPHYADDR`); frame bits above are reserved.
pub const GUEST_PHYS_BITS: u32 = 46;

const FRAME_SHIFT: u32 = 12;
const FRAME_FIELD: u64 = ((1 << 52) - 1) & !((1 << FRAME_SHIFT) - 1);
const FRAME_MASK: u64 = ((1 << GUEST_PHYS_BITS) - 1) & !((1 << FRAME_SHIFT) - 1);
const PAGE_SIZE_BIT: u64 = 1 << 7;
const WRITABLE: u64 = 1 << 1;
const EPT_EXECUTABLE: u64 = 1 << 2;
const LEGACY_NX: u64 = 1 << 63;

/// The format of a guest page table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestFormat {
    /// x86 paging, which NPT uses too: present 0, writable 1, accessed 5, dirty
    /// 6, not executable 63 (`EFER.NX` is set).
    Legacy,
    /// EPT: readable 0, writable 1, executable 2, accessed 8, dirty 9.
    Ept,
}

/// How the guest pages: format, and whether accessed and dirty bits are on.
/// Legacy paging always has them; with EPT, L1 decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestPaging {
    /// Where the bits are.
    pub format: GuestFormat,
    /// Whether walks set accessed and dirty bits in the guest's tables.
    pub ad: bool,
}

/// Why the guest gets a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum GuestFaultKind {
    /// An entry on the way is not present, or the address is not canonical.
    NotPresent,
    /// Present, but the access is not allowed.
    Protection,
    /// An entry has reserved bits set (`PFERR_RSVD_MASK`, EPT misconfiguration).
    Reserved,
    /// A table on the way lies where no memslot is.
    Unbacked,
}

/// A fault that the guest, not KVM, must handle (`struct x86_exception`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestFault {
    /// Why.
    pub kind: GuestFaultKind,
    /// Level of the entry at which the walk ended.
    pub level: u32,
    /// The address that was accessed.
    pub address: u64,
    /// What the access was.
    pub access: AccessKind,
}

/// What a successful walk went through (`struct guest_walker`). Arrays are
/// indexed by level - 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestWalk {
    /// Level of the guest's leaf.
    pub level: u32,
    /// GFN of the table of each level.
    pub table_gfn: [u64; GUEST_LEVELS as usize],
    /// The entry read in it.
    pub ptes: [u64; GUEST_LEVELS as usize],
    /// What the entries *above* the table of a level allow, of [`ACC_ALL`]
    /// (`pt_access`).
    pub table_access: [u32; GUEST_LEVELS as usize],
    /// What may go through, given that a clean leaf must fault on a write so
    /// that its dirty bit gets set (`pte_access`).
    pub access: u32,
    /// The GFN that the address translates to.
    pub gfn: u64,
}

/// Guest physical memory, as a page-table walker needs it.
pub trait GuestPhys {
    /// Word `index` of frame `gfn`; `None` where no memslot is.
    ///
    /// # Errors
    /// What reading host memory may fail with, `ENOMEM` among them.
    fn load(&self, gfn: u64, index: usize) -> Result<Option<u64>>;
    /// Replace the word if it is still `seen`, as a processor's walk does to
    /// set accessed and dirty bits; false when it changed.
    fn update(&self, gfn: u64, index: usize, seen: u64, new: u64) -> bool;
}

impl GuestPaging {
    /// Legacy paging.
    pub const LEGACY: GuestPaging = GuestPaging {
        format: GuestFormat::Legacy,
        ad: true,
    };

    /// EPT with or without accessed and dirty bits.
    pub const fn ept(ad: bool) -> Self {
        GuestPaging {
            format: GuestFormat::Ept,
            ad,
        }
    }

    const fn accessed(self) -> u64 {
        match self.format {
            GuestFormat::Legacy => 1 << 5,
            GuestFormat::Ept => 1 << 8,
        }
    }

    const fn dirty(self) -> u64 {
        self.accessed() << 1
    }

    const fn is_present(self, pte: u64) -> bool {
        match self.format {
            GuestFormat::Legacy => pte & 1 != 0,
            GuestFormat::Ept => pte & 0b111 != 0,
        }
    }

    /// What an entry allows, of [`ACC_ALL`] (`FNAME(gpte_access)`).
    pub(super) const fn access(self, pte: u64) -> u32 {
        let (readable, executable) = match self.format {
            GuestFormat::Legacy => (true, pte & LEGACY_NX == 0),
            // EPT may allow execution only.
            GuestFormat::Ept => (pte & 1 != 0, pte & EPT_EXECUTABLE != 0),
        };
        let mut access = 0;
        if readable {
            access |= ACC_USER_MASK;
        }
        if pte & WRITABLE != 0 {
            access |= ACC_WRITE_MASK;
        }
        if executable {
            access |= ACC_EXEC_MASK;
        }
        access
    }

    /// The entry with instruction fetches allowed or not.
    pub const fn with_executable(self, pte: u64, executable: bool) -> u64 {
        match (self.format, executable) {
            (GuestFormat::Legacy, true) => pte & !LEGACY_NX,
            (GuestFormat::Legacy, false) => pte | LEGACY_NX,
            (GuestFormat::Ept, true) => pte | EPT_EXECUTABLE,
            (GuestFormat::Ept, false) => pte & !EPT_EXECUTABLE,
        }
    }

    const fn is_last(pte: u64, level: u32) -> bool {
        level == 1 || pte & PAGE_SIZE_BIT != 0
    }

    /// Bits that must be 0 in a present entry (`rsvd_bits_mask`).
    const fn reserved(self, pte: u64, level: u32) -> u64 {
        let mut bits = FRAME_FIELD & !FRAME_MASK;
        let leaf = Self::is_last(pte, level);
        if level > 3 {
            bits |= PAGE_SIZE_BIT;
        } else if leaf && level > 1 {
            // The frame of a huge page is aligned; bit 12 is PAT in legacy.
            bits |= (pages_per(level) - 1) << FRAME_SHIFT & !(1 << FRAME_SHIFT);
        }
        if matches!(self.format, GuestFormat::Ept) && !leaf {
            bits |= 0b111_1000;
        }
        bits
    }

    /// Reserved bits set, or a combination that hardware refuses.
    const fn is_malformed(self, pte: u64, level: u32) -> bool {
        // EPT: writable but not readable is a misconfiguration.
        let unreadable = matches!(self.format, GuestFormat::Ept) && pte & 0b11 == WRITABLE;
        pte & self.reserved(pte, level) != 0 || unreadable
    }

    const fn frame(pte: u64) -> u64 {
        (pte & FRAME_MASK) >> FRAME_SHIFT
    }

    /// An entry that points to the table in frame `gfn`.
    pub const fn table_entry(self, gfn: u64) -> u64 {
        gfn << FRAME_SHIFT | 0b111
    }

    /// A leaf of `level` that maps `gfn`, executable, old and clean.
    pub const fn leaf_entry(self, gfn: u64, level: u32, writable: bool) -> u64 {
        let size = if level > 1 { PAGE_SIZE_BIT } else { 0 };
        let write = if writable { WRITABLE } else { 0 };
        gfn << FRAME_SHIFT | size | write | 0b101
    }

    /// Translate `address` through the table at `root`, setting accessed and
    /// dirty bits as a processor would (`walk_addr_generic()`).
    ///
    /// # Errors
    /// The outer error is the host's own (out of memory); the inner one is the
    /// guest's fault.
    pub fn walk(
        self,
        memory: &impl GuestPhys,
        root: u64,
        address: u64,
        kind: AccessKind,
    ) -> Result<std::result::Result<GuestWalk, GuestFault>> {
        loop {
            match self.walk_once(memory, root, address, kind)? {
                Ok(Some(walk)) => return Ok(Ok(walk)),
                // An entry changed while its bits were being set.
                Ok(None) => {}
                Err(fault) => return Ok(Err(fault)),
            }
        }
    }

    fn walk_once(
        self,
        memory: &impl GuestPhys,
        root: u64,
        address: u64,
        kind: AccessKind,
    ) -> Result<std::result::Result<Option<GuestWalk>, GuestFault>> {
        let fault = |why, level| {
            Ok(Err(GuestFault {
                kind: why,
                level,
                address,
                access: kind,
            }))
        };
        let page = address >> FRAME_SHIFT;
        if page >> gfn_shift(GUEST_LEVELS + 1) != 0 {
            return fault(GuestFaultKind::NotPresent, GUEST_LEVELS);
        }
        let mut walk = GuestWalk {
            level: GUEST_LEVELS,
            table_gfn: [0; GUEST_LEVELS as usize],
            ptes: [0; GUEST_LEVELS as usize],
            table_access: [ACC_ALL; GUEST_LEVELS as usize],
            access: ACC_ALL,
            gfn: 0,
        };
        let mut table = root;
        let pte = loop {
            let level = walk.level;
            let at = level as usize - 1;
            walk.table_gfn[at] = table;
            walk.table_access[at] = walk.access;
            let Some(pte) = memory.load(table, gfn_index(page, level))? else {
                return fault(GuestFaultKind::Unbacked, level);
            };
            if !self.is_present(pte) {
                return fault(GuestFaultKind::NotPresent, level);
            }
            if self.is_malformed(pte, level) {
                return fault(GuestFaultKind::Reserved, level);
            }
            walk.ptes[at] = pte;
            walk.access &= self.access(pte);
            if Self::is_last(pte, level) {
                break pte;
            }
            table = Self::frame(pte);
            walk.level -= 1;
        };
        let needed = acc_needed(kind);
        if walk.access & needed != needed {
            return fault(GuestFaultKind::Protection, walk.level);
        }
        let inside = pages_per(walk.level) - 1;
        walk.gfn = Self::frame(pte) & !inside | page & inside;
        if self.ad {
            for level in (walk.level..=GUEST_LEVELS).rev() {
                let at = level as usize - 1;
                let mut wanted = self.accessed();
                if level == walk.level && kind.is_write() {
                    wanted |= self.dirty();
                }
                let seen = walk.ptes[at];
                if seen & wanted == wanted {
                    continue;
                }
                let new = seen | wanted;
                if !memory.update(walk.table_gfn[at], gfn_index(page, level), seen, new) {
                    return Ok(Ok(None));
                }
                walk.ptes[at] = new;
            }
            // A clean leaf is shadowed read-only, or its dirty bit would never
            // be set (`protect_clean_gpte()`).
            if walk.ptes[walk.level as usize - 1] & self.dirty() == 0 {
                walk.access &= !ACC_WRITE_MASK;
            }
        }
        Ok(Ok(Some(walk)))
    }

    /// Whether the guest's leaf allows a write and needs no dirty bit first.
    pub const fn leaf_writable(self, pte: u64) -> bool {
        pte & WRITABLE != 0 && (!self.ad || pte & self.dirty() != 0)
    }
}

/// The contents of guest page tables, by GFN.
///
/// A frame's content elsewhere in the model is one byte; frames that the guest
/// uses as tables have all their words here. They stay when the host moves
/// the frame to swap and back, as contents do.
#[derive(Default)]
pub struct GuestMemory {
    frames: RwSem<HashMap<u64, Arc<[AtomicU64]>>>,
}

impl GuestMemory {
    /// Word `index` of frame `gfn`; a frame never written as a table is zeros.
    #[inline]
    pub fn load(&self, gfn: u64, index: usize) -> u64 {
        let frames = self.frames.read();
        // Acquire: pairs with the release of `store`, so that a walker which
        // sees the link to a table sees the table.
        frames
            .get(&gfn)
            .map_or(0, |words| words[index].load(Ordering::Acquire))
    }

    /// Store a word.
    pub fn store(&self, gfn: u64, index: usize, value: u64) {
        // Release: pairs with `load`.
        self.frame(gfn)[index].store(value, Ordering::Release);
    }

    /// Replace a word if it is still `seen`.
    pub fn compare_exchange(&self, gfn: u64, index: usize, seen: u64, new: u64) -> bool {
        let frames = self.frames.read();
        frames.get(&gfn).is_some_and(|words| {
            words[index]
                .compare_exchange(seen, new, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        })
    }

    fn frame(&self, gfn: u64) -> Arc<[AtomicU64]> {
        if let Some(words) = self.frames.read().get(&gfn) {
            return Arc::clone(words);
        }
        let mut frames = self.frames.write();
        let words = frames
            .entry(gfn)
            .or_insert_with(|| Arc::from(zeroed::<AtomicU64>(TABLE_ENTRIES)));
        Arc::clone(words)
    }

    /// Frames that were ever written as tables.
    pub fn frames(&self) -> usize {
        self.frames.read().len()
    }
}

/// The stores and loads of a guest, made by one of its vCPUs.
pub trait GuestCpu {
    /// Load word `index` of frame `gfn`.
    ///
    /// # Errors
    /// `EFAULT` where no memslot is.
    fn guest_load(&self, gfn: u64, index: usize) -> Result<u64>;
    /// Store it. A store to a table that KVM shadows traps and is emulated.
    ///
    /// # Errors
    /// `EFAULT` where no writable memslot is; `ENOMEM`.
    fn guest_store(&self, gfn: u64, index: usize, value: u64) -> Result<()>;
}

/// log2 of the pages between two aliases of a page: 64 GiB, and half of what
/// there is under a model checker.
pub const ALIAS_SHIFT: u32 = if cfg!(loom) { 3 } else { 3 * TABLE_SHIFT - 3 };

/// Virtual address of a GFN through one of its aliases.
#[inline]
pub const fn alias_address(gfn: u64, alias: u64) -> u64 {
    (alias << ALIAS_SHIFT | gfn) << FRAME_SHIFT
}

/// Most aliases that fit below the last address.
pub const MAX_ALIASES: u64 = 1 << (gfn_shift(GUEST_LEVELS + 1) - ALIAS_SHIFT);

/// The part of a guest's kernel that owns one address space.
///
/// By default each page `gfn` of guest memory is to be found at
/// [`alias_address`]`(gfn, k)` for every alias `k`; the kernel maps what is
/// touched first, a whole leaf table at a time. Anything else is mapped and
/// unmapped by call.
pub struct GuestKernel {
    /// How its tables are read.
    pub paging: GuestPaging,
    /// Frame of the root table (CR3, or the pointer in EPTP and nCR3).
    pub root: u64,
    /// Aliases that the fault handler gives each page.
    pub aliases: u64,
    /// Level of the leaves that it maps: 1, 2 or 3.
    pub leaf_level: u32,
    frames: Mutex<Frames>,
}

/// Guest frames for tables.
struct Frames {
    next: u64,
    end: u64,
    returned: Vec<u64>,
}

impl GuestKernel {
    /// An empty address space whose tables take frames from `[first, end)`.
    ///
    /// # Errors
    /// `EINVAL` for an empty range or impossible aliases.
    pub fn new(
        paging: GuestPaging,
        (first, end): (u64, u64),
        aliases: u64,
        leaf_level: u32,
    ) -> Result<Self> {
        if first >= end || end > 1 << (GUEST_PHYS_BITS - FRAME_SHIFT) {
            return Err(Error::invalid(format!(
                "guest page tables in frames [{first:#x}, {end:#x}): expected at least one frame \
                 below {:#x}",
                1u64 << (GUEST_PHYS_BITS - FRAME_SHIFT)
            )));
        }
        if aliases == 0 || aliases > MAX_ALIASES {
            return Err(Error::invalid(format!(
                "{aliases} aliases of each page: expected 1 to {MAX_ALIASES}"
            )));
        }
        if !(1..=3).contains(&leaf_level) {
            return Err(Error::invalid(format!(
                "guest pages of level {leaf_level}: expected 1, 2 or 3"
            )));
        }
        Ok(GuestKernel {
            paging,
            root: first,
            aliases,
            leaf_level,
            frames: Mutex::new(Frames {
                next: first + 1,
                end,
                returned: Vec::new(),
            }),
        })
    }

    fn take_frame(frames: &mut Frames) -> Result<u64> {
        if let Some(gfn) = frames.returned.pop() {
            return Ok(gfn);
        }
        if frames.next == frames.end {
            return Err(Error::new(
                Errno::ENOMEM,
                format!(
                    "the guest has used its last frame for page tables, {:#x}",
                    frames.end - 1
                ),
            ));
        }
        frames.next += 1;
        Ok(frames.next - 1)
    }

    /// Where the entry of `level` for `gva` is: frame and index; `None` when
    /// the tables end above it. Does not look at what the guest made of them.
    ///
    /// # Errors
    /// As [`GuestCpu::guest_load`].
    pub fn entry(&self, cpu: &impl GuestCpu, gva: u64, level: u32) -> Result<Option<(u64, usize)>> {
        let page = gva >> FRAME_SHIFT;
        let mut table = self.root;
        for above in (level + 1..=GUEST_LEVELS).rev() {
            let pte = cpu.guest_load(table, gfn_index(page, above))?;
            if !self.paging.is_present(pte) || GuestPaging::is_last(pte, above) {
                return Ok(None);
            }
            table = GuestPaging::frame(pte);
        }
        Ok(Some((table, gfn_index(page, level))))
    }

    /// The same, with missing tables made and linked.
    fn make_entry(
        &self,
        cpu: &impl GuestCpu,
        frames: &mut Frames,
        gva: u64,
        level: u32,
    ) -> Result<(u64, usize)> {
        let page = gva >> FRAME_SHIFT;
        let mut table = self.root;
        for above in (level + 1..=GUEST_LEVELS).rev() {
            let index = gfn_index(page, above);
            let pte = cpu.guest_load(table, index)?;
            if self.paging.is_present(pte) {
                if GuestPaging::is_last(pte, above) {
                    return Err(Error::new(
                        Errno::EEXIST,
                        format!("{gva:#x} lies in a guest page of level {above}"),
                    ));
                }
                table = GuestPaging::frame(pte);
                continue;
            }
            let new = Self::take_frame(frames)?;
            self.clear(cpu, new)?;
            cpu.guest_store(table, index, self.paging.table_entry(new))?;
            table = new;
        }
        Ok((table, gfn_index(page, level)))
    }

    /// A frame that held another table before must not show its entries.
    fn clear(&self, cpu: &impl GuestCpu, gfn: u64) -> Result<()> {
        for index in 0..TABLE_ENTRIES {
            if cpu.guest_load(gfn, index)? != 0 {
                cpu.guest_store(gfn, index, 0)?;
            }
        }
        Ok(())
    }

    /// Map `gva` to `gfn` by a leaf of `level`, replacing what is there.
    ///
    /// # Errors
    /// `ENOMEM` without frames for tables, `EEXIST` under a huge leaf, `EINVAL`
    /// for misalignment.
    pub fn map(
        &self,
        cpu: &impl GuestCpu,
        gva: u64,
        gfn: u64,
        level: u32,
        writable: bool,
    ) -> Result<()> {
        let aligned = |n: u64| n.is_multiple_of(pages_per(level));
        if !(1..=3).contains(&level) || !aligned(gva >> FRAME_SHIFT) || !aligned(gfn) {
            return Err(Error::invalid(format!(
                "guest mapping of {gva:#x} to frame {gfn:#x} at level {level}: expected level 1 to \
                 3 and both aligned to it"
            )));
        }
        let mut frames = self.frames.lock();
        let (table, index) = self.make_entry(cpu, &mut frames, gva, level)?;
        cpu.guest_store(table, index, self.paging.leaf_entry(gfn, level, writable))
    }

    /// Unmap the leaf of `level` at `gva`; returns whether there was one.
    ///
    /// # Errors
    /// As [`GuestCpu::guest_store`].
    pub fn unmap(&self, cpu: &impl GuestCpu, gva: u64, level: u32) -> Result<bool> {
        let _frames = self.frames.lock();
        let Some((table, index)) = self.entry(cpu, gva, level)? else {
            return Ok(false);
        };
        if !self.paging.is_present(cpu.guest_load(table, index)?) {
            return Ok(false);
        }
        cpu.guest_store(table, index, 0)?;
        Ok(true)
    }

    /// Let instructions be fetched through the entry of `level` for `gva`, or
    /// not: a leaf, or a table and all that it maps (`set_memory_nx()`, or
    /// `mprotect()` in the guest). Returns whether there was an entry.
    ///
    /// # Errors
    /// As [`GuestCpu::guest_store`].
    pub fn set_executable(
        &self,
        cpu: &impl GuestCpu,
        gva: u64,
        level: u32,
        executable: bool,
    ) -> Result<bool> {
        let _frames = self.frames.lock();
        let Some((table, index)) = self.entry(cpu, gva, level)? else {
            return Ok(false);
        };
        let pte = cpu.guest_load(table, index)?;
        if !self.paging.is_present(pte) {
            return Ok(false);
        }
        let new = self.paging.with_executable(pte, executable);
        cpu.guest_store(table, index, new)?;
        Ok(true)
    }

    /// Store `value` as the entry of `level` for `gva`, whatever it is: what a
    /// broken or hostile guest does.
    ///
    /// # Errors
    /// `ENOENT` where no such table is.
    pub fn poke(&self, cpu: &impl GuestCpu, gva: u64, level: u32, value: u64) -> Result<()> {
        let (table, index) = self.entry(cpu, gva, level)?.ok_or_else(|| {
            Error::new(
                Errno::ENOENT,
                format!("the guest has no table of level {level} for {gva:#x}"),
            )
        })?;
        cpu.guest_store(table, index, value)
    }

    /// Take a leaf table away: unlink it and keep its frame for the next one
    /// (what a guest does when a process exits).
    ///
    /// # Errors
    /// As [`GuestCpu::guest_store`].
    pub fn drop_table(&self, cpu: &impl GuestCpu, gva: u64) -> Result<bool> {
        let mut frames = self.frames.lock();
        let Some((parent, index)) = self.entry(cpu, gva, 2)? else {
            return Ok(false);
        };
        let pte = cpu.guest_load(parent, index)?;
        if !self.paging.is_present(pte) || GuestPaging::is_last(pte, 2) {
            return Ok(false);
        }
        cpu.guest_store(parent, index, 0)?;
        frames.returned.push(GuestPaging::frame(pte));
        Ok(true)
    }

    /// Handle a fault of this address space: map the leaf table around `gva`,
    /// one link for 512 pages, or one huge leaf. Returns false when the fault is none that
    /// mapping can cure, and the access fails for good.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn handle_fault(&self, cpu: &impl GuestCpu, fault: &GuestFault) -> Result<bool> {
        let page = fault.address >> FRAME_SHIFT;
        if fault.kind != GuestFaultKind::NotPresent || page >> ALIAS_SHIFT >= self.aliases {
            return Ok(false);
        }
        let mut frames = self.frames.lock();
        if self.leaf_level > 1 {
            let level = self.leaf_level;
            let (table, index) = self.make_entry(cpu, &mut frames, fault.address, level)?;
            if !self.paging.is_present(cpu.guest_load(table, index)?) {
                let first = page & ((1 << ALIAS_SHIFT) - 1) & !(pages_per(level) - 1);
                cpu.guest_store(table, index, self.paging.leaf_entry(first, level, true))?;
            }
            return Ok(true);
        }
        let (parent, index) = self.make_entry(cpu, &mut frames, fault.address, 2)?;
        if self.paging.is_present(cpu.guest_load(parent, index)?) {
            // Another vCPU was first, or an entry was unmapped by call: map
            // just this one, and nothing over what is mapped by call meanwhile.
            let gfn = page & ((1 << ALIAS_SHIFT) - 1);
            let at = self.entry(cpu, fault.address, 1)?;
            if let Some((table, index)) = at
                && !self.paging.is_present(cpu.guest_load(table, index)?)
            {
                cpu.guest_store(table, index, self.paging.leaf_entry(gfn, 1, true))?;
            }
            return Ok(true);
        }
        let table = Self::take_frame(&mut frames)?;
        let first = page & ((1 << ALIAS_SHIFT) - 1) & !(TABLE_ENTRIES as u64 - 1);
        for n in 0..TABLE_ENTRIES {
            let leaf = self.paging.leaf_entry(first + n as u64, 1, true);
            cpu.guest_store(table, n, leaf)?;
        }
        // Linked last, when its entries are there.
        cpu.guest_store(parent, index, self.paging.table_entry(table))?;
        Ok(true)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::access::AccessKind::{Fetch, Read, Write};

    /// Guest memory of frames `[0, 1000)`, and no KVM in between.
    struct Flat(GuestMemory);

    impl GuestPhys for Flat {
        fn load(&self, gfn: u64, index: usize) -> Result<Option<u64>> {
            Ok((gfn < 1000).then(|| self.0.load(gfn, index)))
        }
        fn update(&self, gfn: u64, index: usize, seen: u64, new: u64) -> bool {
            self.0.compare_exchange(gfn, index, seen, new)
        }
    }

    impl GuestCpu for Flat {
        fn guest_load(&self, gfn: u64, index: usize) -> Result<u64> {
            GuestPhys::load(self, gfn, index)?
                .ok_or_else(|| Error::new(Errno::EFAULT, "no memslot"))
        }
        fn guest_store(&self, gfn: u64, index: usize, value: u64) -> Result<()> {
            self.guest_load(gfn, index)?;
            self.0.store(gfn, index, value);
            Ok(())
        }
    }

    fn fixture(paging: GuestPaging) -> (Flat, GuestKernel) {
        let kernel = GuestKernel::new(paging, (900, 1000), 4, 1).expect("valid");
        (Flat(GuestMemory::default()), kernel)
    }

    fn walk(
        memory: &Flat,
        kernel: &GuestKernel,
        gva: u64,
        kind: impl Into<AccessKind>,
    ) -> std::result::Result<GuestWalk, GuestFault> {
        kernel
            .paging
            .walk(memory, kernel.root, gva, kind.into())
            .expect("host is fine")
    }

    fn allows(walk: &GuestWalk, kind: AccessKind) -> bool {
        walk.access & acc_needed(kind) == acc_needed(kind)
    }

    #[test]
    fn every_entry_on_the_way_must_allow_a_fetch() {
        for paging in [
            GuestPaging::LEGACY,
            GuestPaging::ept(true),
            GuestPaging::ept(false),
        ] {
            for level in 1..=GUEST_LEVELS {
                let (memory, kernel) = fixture(paging);
                kernel.map(&memory, 0x7000, 3, 1, true).expect("maps");
                walk(&memory, &kernel, 0x7000, Fetch).expect("executable");
                let forbid = |x| kernel.set_executable(&memory, 0x7000, level, x);
                assert!(forbid(false).expect("stored"));
                let fault = walk(&memory, &kernel, 0x7000, Fetch).expect_err("not executable");
                assert_eq!(
                    (fault.kind, fault.level, fault.access),
                    (GuestFaultKind::Protection, 1, Fetch)
                );
                for kind in [Read, Write] {
                    let found = walk(&memory, &kernel, 0x7000, kind).expect("data");
                    assert!(!allows(&found, Fetch), "{paging:?} level {level}");
                    // What is above the table of a level counts there.
                    for at in 1..=GUEST_LEVELS {
                        let above = found.table_access[at as usize - 1] & ACC_EXEC_MASK != 0;
                        assert_eq!(above, at >= level, "level {at}");
                    }
                }
                assert!(forbid(true).expect("stored"));
                walk(&memory, &kernel, 0x7000, Fetch).expect("executable again");
            }
            let (memory, kernel) = fixture(paging);
            assert!(!kernel.set_executable(&memory, 0x7000, 1, false).unwrap());
        }
    }

    #[test]
    fn ept_may_allow_execution_alone() {
        let paging = GuestPaging::ept(true);
        let (memory, kernel) = fixture(paging);
        kernel.map(&memory, 0x7000, 3, 1, false).expect("maps");
        kernel.poke(&memory, 0x7000, 1, 3 << 12 | 4).expect("there");
        let code = walk(&memory, &kernel, 0x7000, Fetch).expect("executable");
        assert_eq!((code.gfn, code.access), (3, ACC_EXEC_MASK));
        for kind in [Read, Write] {
            let fault = walk(&memory, &kernel, 0x7000, kind).expect_err("not readable");
            assert_eq!(fault.kind, GuestFaultKind::Protection);
        }
    }

    #[test]
    fn a_walk_translates_and_sets_accessed_and_dirty() {
        for paging in [GuestPaging::LEGACY, GuestPaging::ept(true)] {
            let (memory, kernel) = fixture(paging);
            kernel.map(&memory, 0x1234_5000, 77, 1, true).expect("maps");
            let read = walk(&memory, &kernel, 0x1234_5678, false).expect("mapped");
            assert_eq!((read.gfn, read.level), (77, 1));
            assert!(!allows(&read, Write), "clean, so shadowed read-only");
            assert!(read.ptes.iter().all(|pte| pte & paging.accessed() != 0));
            let write = walk(&memory, &kernel, 0x1234_5678, true).expect("mapped");
            assert!(allows(&write, Write));
            assert_ne!(write.ptes[0] & paging.dirty(), 0);
            assert_eq!(write.table_gfn[3], kernel.root);
        }
    }

    #[test]
    fn without_accessed_and_dirty_bits_a_walk_writes_nothing() {
        let (memory, kernel) = fixture(GuestPaging::ept(false));
        kernel.map(&memory, 0x5000, 7, 1, true).expect("maps");
        let before = kernel.entry(&memory, 0x5000, 1).unwrap().unwrap();
        let value = memory.0.load(before.0, before.1);
        assert!(allows(
            &walk(&memory, &kernel, 0x5000, false).unwrap(),
            Write
        ));
        walk(&memory, &kernel, 0x5000, true).expect("mapped");
        assert_eq!(memory.0.load(before.0, before.1), value);
    }

    #[test]
    fn huge_guest_pages_translate_at_their_level() {
        let (memory, kernel) = fixture(GuestPaging::LEGACY);
        kernel.map(&memory, 2 << 21, 512, 2, true).expect("maps");
        let found = walk(&memory, &kernel, (2 << 21) + 0x3000, true).expect("mapped");
        assert_eq!((found.level, found.gfn), (2, 515));
        let error = kernel.map(&memory, 2 << 21, 1, 1, true).expect_err("huge");
        assert_eq!(error.errno(), Errno::EEXIST);
        let error = kernel.map(&memory, 1 << 21, 3, 2, true).expect_err("gfn");
        assert_eq!(error.errno(), Errno::EINVAL);
    }

    #[test]
    fn aliases_and_unmapping() {
        let (memory, kernel) = fixture(GuestPaging::LEGACY);
        for alias in 0..4 {
            let fault = walk(&memory, &kernel, alias_address(5, alias), false).expect_err("empty");
            assert!(kernel.handle_fault(&memory, &fault).expect("room"));
            let found = walk(&memory, &kernel, alias_address(5, alias), true).expect("mapped");
            assert_eq!(found.gfn, 5);
            // A whole table at a time.
            let next = walk(&memory, &kernel, alias_address(511, alias), true).expect("mapped");
            assert_eq!(next.gfn, 511);
        }
        let fault = walk(&memory, &kernel, alias_address(5, 4), false).expect_err("empty");
        assert!(!kernel.handle_fault(&memory, &fault).expect("refused"));
        assert!(kernel.unmap(&memory, alias_address(5, 1), 1).unwrap());
        let fault = walk(&memory, &kernel, alias_address(5, 1), false).expect_err("unmapped");
        assert_eq!(fault.kind, GuestFaultKind::NotPresent);
        assert!(kernel.handle_fault(&memory, &fault).unwrap());
        walk(&memory, &kernel, alias_address(5, 1), false).expect("mapped again");
        assert!(kernel.drop_table(&memory, alias_address(5, 2)).unwrap());
        let fault = walk(&memory, &kernel, alias_address(6, 2), false).expect_err("dropped");
        assert_eq!(fault.level, 2);
    }

    #[test]
    fn broken_tables_give_the_guest_a_fault() {
        use GuestFaultKind::*;
        let legacy = GuestPaging::LEGACY;
        let ept = GuestPaging::ept(true);
        let cases: &[(GuestPaging, u32, u64, GuestFaultKind)] = &[
            // Points outside guest memory.
            (legacy, 2, 5000 << 12 | 7, Unbacked),
            (legacy, 4, 1 << 33 << 12 | 7, Unbacked),
            // Frame bits above MAXPHYADDR, at a leaf and above.
            (legacy, 1, 1 << 50 | 7, Reserved),
            (legacy, 3, 1 << 46 | 7, Reserved),
            // No huge page at the top level; a huge page's frame not aligned.
            (legacy, 4, 900 << 12 | 0x87, Reserved),
            (legacy, 2, 514 << 12 | 0x87, Reserved),
            // EPT: memory-type bits in a non-leaf, and writable not readable.
            (ept, 2, 901 << 12 | 0x37, Reserved),
            (ept, 1, 5 << 12 | 2, Reserved),
            (ept, 1, 5 << 12 | 4, Protection),
            (legacy, 1, 0, NotPresent),
        ];
        for &(paging, level, value, kind) in cases {
            let (memory, kernel) = fixture(paging);
            kernel.map(&memory, 0x7000, 3, 1, true).expect("maps");
            kernel.poke(&memory, 0x7000, level, value).expect("there");
            let fault = walk(&memory, &kernel, 0x7000, false).expect_err("broken");
            assert_eq!(fault.kind, kind, "level {level} entry {value:#x}");
        }
        // Points at itself at every level: a walk ends, at the table itself.
        let (memory, kernel) = fixture(legacy);
        let me = kernel.root;
        memory
            .guest_store(me, 0, legacy.table_entry(me))
            .expect("in memory");
        let found = walk(&memory, &kernel, 0, true).expect("four turns");
        assert_eq!((found.gfn, found.table_gfn), (me, [me; 4]));
        let fault = walk(&memory, &kernel, 1 << 48, false).expect_err("not canonical");
        assert_eq!(fault.kind, NotPresent);
        let fault = {
            let (memory, kernel) = fixture(legacy);
            kernel.map(&memory, 0x7000, 3, 1, false).expect("maps");
            walk(&memory, &kernel, 0x7000, true).expect_err("read-only")
        };
        assert_eq!(fault.kind, Protection);
    }

    #[test]
    fn the_guest_runs_out_of_frames_for_tables() {
        let memory = Flat(GuestMemory::default());
        let kernel = GuestKernel::new(GuestPaging::LEGACY, (900, 903), 1, 1).expect("valid");
        let error = kernel.map(&memory, 0, 1, 1, true).expect_err("needs three");
        assert_eq!(error.errno(), Errno::ENOMEM);
        for (frames, aliases, level) in [
            ((5, 5), 1, 1),
            ((5, 9), 0, 1),
            ((5, 9), MAX_ALIASES + 1, 1),
            ((5, 9), 1, 4),
        ] {
            assert!(GuestKernel::new(GuestPaging::LEGACY, frames, aliases, level).is_err());
        }
    }
}
