//! Memslots: which guest frames are which host addresses
//! (`virt/kvm/kvm_main.c`, `__kvm_set_memory_region()`).
//!
//! Each address space has two sets of slots, of which one is active. An update
//! edits the inactive set, publishes it by one release store, waits until no
//! reader can be in the other, and brings that one up to date. So readers never
//! block and never see a half-made set.

use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::mm::memory::{PAGE_SHIFT, PAGE_SIZE};
use crate::mm::pagetable::TASK_SIZE;
use crate::mutant::{self, Mutant};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering, zeroed};
use crate::sync::cell::Witness;
use crate::sync::lock::{Condvar, Mutex};
use crate::sync::once::OnceLock;
use crate::sync::rcu::{Domain, DomainId, Guard};
use std::cell::UnsafeCell;
use std::sync::Arc;

use super::mmu::rmap::SlotRmaps;
use super::mmu::shadow::SlotTracking;
use super::mmu::spte::gfn_shift;

/// The slot records which pages are written (`KVM_MEM_LOG_DIRTY_PAGES`).
pub const LOG_DIRTY_PAGES: u32 = 1 << 0;
/// The guest cannot write to the slot (`KVM_MEM_READONLY`).
pub const READONLY: u32 = 1 << 1;
/// The slot is being deleted or moved (`KVM_MEMSLOT_INVALID`).
pub const INVALID: u32 = 1 << 16;
/// Slots per address space (`KVM_USER_MEM_SLOTS`).
pub const MAX_SLOTS: u32 = 32764;
/// Pages in one slot (`KVM_MEM_MAX_NR_PAGES`).
pub const MAX_PAGES: u64 = (1 << 31) - 1;
/// Address spaces of a VM (`KVM_MAX_NR_ADDRESS_SPACES`).
pub const MAX_ADDRESS_SPACES: usize = 2;
/// One past the highest guest frame: 52 address bits.
pub const MAX_GFN: u64 = 1 << (52 - PAGE_SHIFT);

/// What the MMU keeps with a slot (`struct kvm_arch_memory_slot`). Copies of a
/// slot share it; a moved slot gets a new one.
#[derive(Default)]
pub struct ArchMemslot {
    rmaps: OnceLock<SlotRmaps>,
    tracking: OnceLock<SlotTracking>,
}

/// One slot (`struct kvm_memory_slot`). It never changes: an update replaces
/// it by a changed copy.
#[derive(Clone)]
pub struct Memslot {
    /// Its number.
    pub id: u32,
    /// Its address space.
    pub as_id: usize,
    /// First guest frame.
    pub base_gfn: u64,
    /// Pages.
    pub npages: u64,
    /// Where its first page is in the mm.
    pub userspace_addr: u64,
    /// [`LOG_DIRTY_PAGES`], [`READONLY`], [`INVALID`].
    pub flags: u32,
    /// One bit a page, while dirty pages are logged.
    pub dirty_bitmap: Option<Arc<[AtomicU64]>>,
    /// The MMU's part.
    pub arch: Arc<ArchMemslot>,
}

impl Memslot {
    /// One past the last guest frame.
    #[inline]
    pub fn end_gfn(&self) -> u64 {
        self.base_gfn + self.npages
    }

    /// One past the last host address.
    #[inline]
    pub fn end_hva(&self) -> u64 {
        self.userspace_addr + (self.npages << PAGE_SHIFT)
    }

    /// Whether it contains the guest frame.
    #[inline]
    pub fn contains(&self, gfn: u64) -> bool {
        gfn.wrapping_sub(self.base_gfn) < self.npages
    }

    /// Whether it is on its way out.
    #[inline]
    pub fn is_invalid(&self) -> bool {
        self.flags & INVALID != 0
    }

    /// Whether the guest may not write to it.
    #[inline]
    pub fn is_readonly(&self) -> bool {
        self.flags & READONLY != 0
    }

    /// Whether written pages are logged (`kvm_slot_dirty_track_enabled()`).
    #[inline]
    pub fn logs_dirty(&self) -> bool {
        self.flags & LOG_DIRTY_PAGES != 0
    }

    /// Host address of a guest frame of this slot (`__gfn_to_hva_memslot()`).
    #[inline]
    pub fn gfn_to_hva(&self, gfn: u64) -> u64 {
        self.userspace_addr + ((gfn - self.base_gfn) << PAGE_SHIFT)
    }

    /// Guest frame that shows a host address of this slot
    /// (`hva_to_gfn_memslot()`).
    #[inline]
    pub fn hva_to_gfn(&self, hva: u64) -> u64 {
        self.base_gfn + ((hva - self.userspace_addr) >> PAGE_SHIFT)
    }

    /// Log a written page (`mark_page_dirty_in_slot()`).
    #[inline]
    pub fn mark_dirty(&self, gfn: u64) {
        if let Some(bitmap) = &self.dirty_bitmap {
            let page = gfn - self.base_gfn;
            let bit = 1 << (page % 64);
            let word = &bitmap[(page / 64) as usize];
            // A load first: most writes are to pages logged already.
            if word.load(Ordering::Relaxed) & bit == 0 {
                // Release: pairs with the acquire of the exchange that harvests
                // the log, after which the page is read.
                word.fetch_or(bit, Ordering::Release);
            }
        }
    }

    /// Whether a huge page of `level` that contains `gfn` lies wholly inside
    /// the slot, and frame and address are aligned alike
    /// (`kvm_lpage_info`, `disallow_lpage`).
    #[inline]
    pub fn allows_level(&self, gfn: u64, level: u32) -> bool {
        let pages = 1u64 << gfn_shift(level);
        let first = gfn & !(pages - 1);
        first >= self.base_gfn
            && first + pages <= self.end_gfn()
            && (self.base_gfn ^ (self.userspace_addr >> PAGE_SHIFT)) & (pages - 1) == 0
    }

    /// The slot's rmap heads, made on first use.
    #[inline]
    pub fn rmaps(&self) -> &SlotRmaps {
        self.arch
            .rmaps
            .get_or_init(|| SlotRmaps::new(self.base_gfn, self.npages))
    }

    /// The slot's rmap heads, if they were ever made.
    #[inline]
    pub fn rmaps_if_any(&self) -> Option<&SlotRmaps> {
        self.arch.rmaps.get()
    }

    /// Which frames of the slot are write-tracked, made on first use.
    pub fn tracking(&self) -> &SlotTracking {
        self.arch
            .tracking
            .get_or_init(|| SlotTracking::new(self.base_gfn, self.npages))
    }

    /// Whether a guest frame holds a page table that KVM shadows, so that
    /// writes to it must trap (`kvm_gfn_is_write_tracked()`).
    #[inline]
    pub fn is_write_tracked(&self, gfn: u64) -> bool {
        self.arch
            .tracking
            .get()
            .is_some_and(|tracking| tracking.is_tracked(gfn))
    }

    /// Whether a huge page of `level` around `gfn` contains a write-tracked
    /// frame, so that it must not be mapped as one (`disallow_lpage`).
    #[inline]
    pub fn is_huge_tracked(&self, gfn: u64, level: u32) -> bool {
        self.arch
            .tracking
            .get()
            .is_some_and(|tracking| tracking.tracked_in(gfn, level) != 0)
    }

    fn with_dirty_bitmap(mut self) -> Self {
        self.dirty_bitmap = (self.logs_dirty()).then(|| {
            let words = self.npages.div_ceil(64) as usize;
            zeroed::<AtomicU64>(words).into()
        });
        self
    }
}

impl std::fmt::Debug for Memslot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "slot {}:{} gfn [{:#x}, {:#x}) at {:#x} flags {:#x}",
            self.as_id,
            self.id,
            self.base_gfn,
            self.end_gfn(),
            self.userspace_addr,
            self.flags
        )
    }
}

/// A range of guest frames of one slot, as a handler gets it
/// (`struct kvm_gfn_range`).
#[derive(Clone, Copy)]
pub struct GfnRange<'a> {
    /// The slot.
    pub slot: &'a Arc<Memslot>,
    /// First guest frame.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Whether the handler may block.
    pub may_block: bool,
    /// Whether the walk holds no lock.
    pub lockless: bool,
    /// The argument of the young callbacks.
    pub fast_only: bool,
}

struct HvaNode {
    start: u64,
    end: u64,
    /// Highest end of this node and all before it.
    max_end: u64,
    slot: u32,
}

/// One set of slots (`struct kvm_memslots`), with its three indices.
#[derive(Default)]
pub struct Memslots {
    generation: u64,
    /// By first guest frame; they do not overlap.
    by_gfn: Vec<Arc<Memslot>>,
    /// For each of `by_gfn` the update that put it there.
    since: Vec<u64>,
    /// By first host address; they may overlap. With the running maximum of
    /// ends this is an interval tree laid out flat.
    by_hva: Vec<HvaNode>,
    /// Number and place in `by_gfn`, by number.
    by_id: Vec<(u32, u32)>,
    last_used: AtomicUsize,
}

impl Memslots {
    /// How many updates this set has seen.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Every slot, by guest frame.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Memslot>> {
        self.by_gfn.iter()
    }

    /// The slot with a number (`id_to_memslot()`).
    pub fn by_id(&self, id: u32) -> Option<&Arc<Memslot>> {
        let at = self.by_id.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        Some(&self.by_gfn[self.by_id[at].1 as usize])
    }

    /// The slot that contains a guest frame (`gfn_to_memslot()`).
    #[inline]
    pub fn by_gfn(&self, gfn: u64) -> Option<&Arc<Memslot>> {
        self.place_of(gfn).map(|at| &self.by_gfn[at])
    }

    /// The slot that contains a guest frame, and which update of this address
    /// space put it there: no two slots, and no two copies of one, have that
    /// in common.
    #[inline]
    pub fn by_gfn_since(&self, gfn: u64) -> Option<(&Arc<Memslot>, u64)> {
        let at = self.place_of(gfn)?;
        Some((&self.by_gfn[at], self.since[at]))
    }

    #[inline]
    fn place_of(&self, gfn: u64) -> Option<usize> {
        // Relaxed: a hint, checked below.
        let hint = self.last_used.load(Ordering::Relaxed);
        if let Some(slot) = self.by_gfn.get(hint)
            && slot.contains(gfn)
        {
            return Some(hint);
        }
        let at = self
            .by_gfn
            .partition_point(|slot| slot.base_gfn <= gfn)
            .checked_sub(1)?;
        if !self.by_gfn[at].contains(gfn) {
            return None;
        }
        self.last_used.store(at, Ordering::Relaxed);
        Some(at)
    }

    /// Slots that overlap host addresses `[start, end)`, by start
    /// (`kvm_for_each_memslot_in_hva_range()`).
    #[inline]
    pub fn in_hva_range(&self, start: u64, end: u64) -> impl Iterator<Item = &Arc<Memslot>> {
        let first = match self.by_hva.as_slice() {
            [only] => usize::from(only.max_end <= start),
            nodes => nodes.partition_point(|node| node.max_end <= start),
        };
        self.by_hva[first..]
            .iter()
            .take_while(move |node| node.start < end)
            .filter(move |node| node.end > start)
            .map(|node| &self.by_gfn[node.slot as usize])
    }

    /// Put `slot` in the place of the one with its number, or add it.
    fn replace(&mut self, id: u32, slot: Option<&Arc<Memslot>>) {
        self.generation += 1;
        if let Some(at) = self.by_gfn.iter().position(|other| other.id == id) {
            self.by_gfn.remove(at);
            self.since.remove(at);
        }
        if let Some(slot) = slot {
            let at = self
                .by_gfn
                .partition_point(|other| other.base_gfn < slot.base_gfn);
            self.by_gfn.insert(at, Arc::clone(slot));
            self.since.insert(at, self.generation);
        }
        self.last_used.store(0, Ordering::Relaxed);
        self.by_id.clear();
        self.by_hva.clear();
        for (at, slot) in self.by_gfn.iter().enumerate() {
            self.by_id.push((slot.id, at as u32));
            self.by_hva.push(HvaNode {
                start: slot.userspace_addr,
                end: slot.end_hva(),
                max_end: 0,
                slot: at as u32,
            });
        }
        self.by_id.sort_unstable();
        self.by_hva.sort_by_key(|node| (node.start, node.end));
        let mut max_end = 0;
        for node in &mut self.by_hva {
            max_end = max_end.max(node.end);
            node.max_end = max_end;
        }
    }

    fn overlaps(&self, base_gfn: u64, npages: u64, except: u32) -> Option<&Arc<Memslot>> {
        self.by_gfn.iter().find(|slot| {
            slot.id != except && slot.base_gfn < base_gfn + npages && base_gfn < slot.end_gfn()
        })
    }
}

/// The two sets of one address space.
struct AddressSpaceSlots {
    sets: [UnsafeCell<Memslots>; 2],
    /// Beside each set, for a model checker.
    witness: [Witness; 2],
    active: AtomicUsize,
}

// SAFETY: a set is only mutated by `Spaces::swap`, under the slots lock, while
// it is inactive and, by the grace period waited for when it became so, without
// readers. Everyone else has `&Memslots`, which is `Sync`.
unsafe impl Sync for AddressSpaceSlots {}
// SAFETY: `Memslots` is `Send`.
unsafe impl Send for AddressSpaceSlots {}

/// How many invalidations run, and who waits for them
/// (`mn_active_invalidate_count`, `mn_memslots_update_rcuwait`).
#[derive(Default)]
struct ActiveInvalidations {
    count: Mutex<u64>,
    none: Condvar,
}

/// What changes in an update, for whoever acts on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// A new slot (`KVM_MR_CREATE`).
    Create,
    /// A slot goes (`KVM_MR_DELETE`).
    Delete,
    /// A slot changes its guest frames (`KVM_MR_MOVE`).
    Move,
    /// A slot changes its flags (`KVM_MR_FLAGS_ONLY`).
    FlagsOnly,
}

/// A request to create, change, move or delete a slot
/// (`struct kvm_userspace_memory_region`), in bytes as there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryRegion {
    /// Address space.
    pub as_id: usize,
    /// Slot number in it.
    pub slot: u32,
    /// [`LOG_DIRTY_PAGES`], [`READONLY`].
    pub flags: u32,
    /// Where the guest sees it.
    pub guest_phys_addr: u64,
    /// Its size; 0 deletes the slot.
    pub memory_size: u64,
    /// Where the mm has it.
    pub userspace_addr: u64,
}

impl MemoryRegion {
    fn base_gfn(&self) -> u64 {
        self.guest_phys_addr >> PAGE_SHIFT
    }

    fn npages(&self) -> u64 {
        self.memory_size >> PAGE_SHIFT
    }

    fn invalid(&self, what: impl std::fmt::Display) -> Error {
        Error::invalid(format!("memslot {}:{}: {what}", self.as_id, self.slot))
    }

    /// Whether the request can be meant at all, of a VM with so many address
    /// spaces.
    fn check(&self, address_spaces: usize) -> Result<()> {
        if self.as_id >= address_spaces {
            return Err(self.invalid(format_args!(
                "this VM has {address_spaces} address space(s), 0 to {}",
                address_spaces - 1
            )));
        }
        if self.slot >= MAX_SLOTS {
            return Err(self.invalid(format_args!("slot numbers go from 0 to {}", MAX_SLOTS - 1)));
        }
        if self.flags & !(LOG_DIRTY_PAGES | READONLY) != 0 {
            return Err(self.invalid(format_args!(
                "flags {:#x} unknown: expected a sum of {LOG_DIRTY_PAGES} (log dirty pages) \
                 and {READONLY} (read-only)",
                self.flags
            )));
        }
        for (name, value) in [
            ("guest_phys_addr", self.guest_phys_addr),
            ("memory_size", self.memory_size),
            ("userspace_addr", self.userspace_addr),
        ] {
            if value % PAGE_SIZE != 0 {
                return Err(self.invalid(format_args!(
                    "{name} {value:#x} is not a multiple of {PAGE_SIZE:#x}"
                )));
            }
        }
        let (base_gfn, npages) = (self.base_gfn(), self.npages());
        if npages > MAX_PAGES {
            return Err(self.invalid(format_args!(
                "{npages} pages: at most {MAX_PAGES} fit in one slot"
            )));
        }
        if base_gfn + npages > MAX_GFN {
            return Err(self.invalid(format_args!(
                "guest frames [{base_gfn:#x}, {:#x}) end beyond {MAX_GFN:#x}",
                base_gfn + npages
            )));
        }
        let end = self.userspace_addr.checked_add(self.memory_size);
        if end.is_none_or(|end| end > TASK_SIZE) {
            return Err(self.invalid(format_args!(
                "host addresses from {:#x}, {:#x} bytes, end beyond {TASK_SIZE:#x}",
                self.userspace_addr, self.memory_size
            )));
        }
        Ok(())
    }

    /// What changes in the slot with this number; `None` when nothing does.
    fn change(&self, old: Option<&Memslot>) -> Result<Option<Change>> {
        let npages = self.npages();
        let Some(old) = old else {
            return match npages {
                0 => Err(self.invalid("deleted (memory_size 0), but it does not exist")),
                _ => Ok(Some(Change::Create)),
            };
        };
        if npages == 0 {
            return Ok(Some(Change::Delete));
        }
        if old.userspace_addr != self.userspace_addr {
            return Err(self.invalid(format_args!(
                "userspace_addr cannot change from {:#x} to {:#x}; delete the slot first",
                old.userspace_addr, self.userspace_addr
            )));
        }
        if old.npages != npages {
            return Err(self.invalid(format_args!(
                "size cannot change from {} to {npages} pages; delete the slot first",
                old.npages
            )));
        }
        if (old.flags ^ self.flags) & READONLY != 0 {
            return Err(self.invalid("read-only cannot change; delete the slot first"));
        }
        Ok(if old.base_gfn != self.base_gfn() {
            Some(Change::Move)
        } else if old.flags != self.flags {
            Some(Change::FlagsOnly)
        } else {
            None
        })
    }

    /// Whether the frames are free for this slot.
    fn check_overlap(&self, slots: &Memslots) -> Result<()> {
        let (base_gfn, npages) = (self.base_gfn(), self.npages());
        match slots.overlaps(base_gfn, npages, self.slot) {
            None => Ok(()),
            Some(other) => Err(Error::new(
                Errno::EEXIST,
                format!(
                    "memslot {}:{}: guest frames [{base_gfn:#x}, {:#x}) overlap {other:?}",
                    self.as_id,
                    self.slot,
                    base_gfn + npages
                ),
            )),
        }
    }

    /// The slot that is asked for.
    fn build(&self, change: Change, old: Option<&Memslot>) -> Memslot {
        let arch = match old {
            Some(old) if change == Change::FlagsOnly => Arc::clone(&old.arch),
            _ => Arc::default(),
        };
        let new = Memslot {
            id: self.slot,
            as_id: self.as_id,
            base_gfn: self.base_gfn(),
            npages: self.npages(),
            userspace_addr: self.userspace_addr,
            flags: self.flags,
            dirty_bitmap: None,
            arch,
        };
        // A bitmap lives as long as logging is on (`kvm_prepare_memory_region()`).
        match old {
            Some(old) if old.dirty_bitmap.is_some() && new.logs_dirty() => Memslot {
                dirty_bitmap: old.dirty_bitmap.clone(),
                ..new
            },
            _ => new.with_dirty_bitmap(),
        }
    }
}

/// A checked update ([`Spaces::prepare`]).
pub(super) struct Update {
    pub(super) change: Change,
    pub(super) old: Option<Arc<Memslot>>,
    pub(super) new: Option<Arc<Memslot>>,
}

/// The slots of a VM: all address spaces.
pub struct Spaces {
    rcu: DomainId,
    spaces: Vec<AddressSpaceSlots>,
    /// `slots_lock`: one update at a time.
    pub(super) slots_lock: Mutex<()>,
    invalidations: ActiveInvalidations,
}

impl Spaces {
    pub(super) fn new(rcu: &Domain, address_spaces: usize) -> Self {
        Spaces {
            rcu: rcu.id(),
            spaces: (0..address_spaces)
                .map(|_| AddressSpaceSlots {
                    sets: Default::default(),
                    witness: ["slot set 0", "slot set 1"].map(Witness::new),
                    active: AtomicUsize::new(0),
                })
                .collect(),
            slots_lock: Mutex::new(()),
            invalidations: ActiveInvalidations::default(),
        }
    }

    /// How many address spaces there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.spaces.len()
    }

    /// A VM has at least one address space.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The active set of an address space (`__kvm_memslots()`); it stays as it
    /// is for as long as the section.
    ///
    /// # Panics
    /// If `guard` is a section of another host's domain.
    #[inline]
    pub fn load<'g>(&'g self, as_id: usize, guard: &'g Guard<'_>) -> &'g Memslots {
        self.check_section(guard);
        self.active(&self.spaces[as_id], guard)
    }

    /// The active set of every address space, in order.
    ///
    /// # Panics
    /// As [`load`](Self::load).
    #[inline]
    pub fn load_all<'g>(&'g self, guard: &'g Guard<'_>) -> impl Iterator<Item = &'g Memslots> {
        self.check_section(guard);
        self.spaces.iter().map(|space| self.active(space, guard))
    }

    #[inline]
    fn check_section(&self, guard: &Guard<'_>) {
        assert!(
            self.rcu.owns(guard),
            "memslots were read in a section of another host"
        );
    }

    /// `guard` is a section of the domain `self.rcu`.
    #[inline]
    fn active<'g>(&'g self, space: &'g AddressSpaceSlots, _guard: &'g Guard<'_>) -> &'g Memslots {
        // Acquire: pairs with the release store in `swap`.
        let active = space.active.load(Ordering::Acquire);
        space.witness[active].read();
        // SAFETY: the set was active inside this section, which is one of the
        // domain that `swap` waits for after it made the set inactive and
        // before it edits it.
        unsafe { &*space.sets[active].get() }
    }

    /// An invalidation of memory begins: until it ends, both see one set.
    pub(super) fn invalidation_begins(&self) {
        *self.invalidations.count.lock() += 1;
    }

    /// The invalidation has ended.
    pub(super) fn invalidation_ends(&self) {
        let mut count = self.invalidations.count.lock();
        debug_assert!(*count > 0, "an invalidation ended that never began");
        *count -= 1;
        if *count == 0 {
            self.invalidations.none.notify_all();
        }
    }

    /// No invalidation is told of its beginning or its end any more. One that
    /// began and is not told of its end must not hold up updates for ever
    /// (`kvm_destroy_vm()`).
    pub(super) fn no_more_invalidations(&self) {
        *self.invalidations.count.lock() = 0;
        self.invalidations.none.notify_all();
    }

    /// Make the slot with number `id` be `slot`, or be gone
    /// (`kvm_replace_memslot()`, `kvm_swap_active_memslots()`). The caller
    /// holds `slots_lock` and is in no RCU section.
    pub(super) fn swap(&self, cpu: &Cpu, as_id: usize, id: u32, slot: Option<&Arc<Memslot>>) {
        let space = &self.spaces[as_id];
        let active = space.active.load(Ordering::Relaxed);
        let inactive = 1 - active;
        space.witness[inactive].write();
        // SAFETY: `slots_lock` is held, so this is the only writer; the set is
        // inactive, and the update that made it so waited for its readers
        // before it edited it.
        unsafe { &mut *space.sets[inactive].get() }.replace(id, slot);
        {
            // An invalidation that began on the old set must end on it.
            let mut count = self.invalidations.count.lock();
            while *count != 0 {
                self.invalidations.none.wait(&mut count);
            }
            // Release: publishes the set edited above; pairs with `load`.
            space.active.store(inactive, Ordering::Release);
        }
        if !mutant::active(Mutant::NoSrcuWait) {
            cpu.host().rcu.synchronize();
        }
        space.witness[active].write();
        // SAFETY: as above; the grace period just waited for began after the
        // set became inactive, so no reader is in it.
        unsafe { &mut *space.sets[active].get() }.replace(id, slot);
    }

    /// Check a request (`__kvm_set_memory_region()`, `kvm_set_memory_region()`);
    /// `None` when it changes nothing. The caller holds `slots_lock`.
    ///
    /// # Errors
    /// `EINVAL` for a malformed or contradictory request, `EEXIST` when it
    /// overlaps another slot.
    pub(super) fn prepare(&self, cpu: &Cpu, region: &MemoryRegion) -> Result<Option<Update>> {
        region.check(self.len())?;
        let guard = cpu.rcu.lock();
        let slots = self.load(region.as_id, &guard);
        let old = slots.by_id(region.slot).cloned();
        let Some(change) = region.change(old.as_deref())? else {
            return Ok(None);
        };
        if matches!(change, Change::Create | Change::Move) {
            region.check_overlap(slots)?;
        }
        let new = (change != Change::Delete).then(|| region.build(change, old.as_deref()));
        Ok(Some(Update {
            change,
            old,
            new: new.map(Arc::new),
        }))
    }

    /// A copy of every slot, by address space and guest frame.
    pub fn all(&self, cpu: &Cpu) -> Vec<Memslot> {
        let guard = cpu.rcu.lock();
        (0..self.len())
            .flat_map(|as_id| self.load(as_id, &guard).iter())
            .map(|slot| Memslot::clone(slot))
            .collect()
    }
}
