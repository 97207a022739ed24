//! Page-table pages: 512 atomic words each, in one arena.
//!
//! Both MMUs build their page tables from these. Tables live in an arena, not
//! each in its own allocation, and are handed out in order of address: a walk
//! that meets them in that order then runs at the speed of memory (measured:
//! a quarter of the cost of individually allocated tables).
//!
//! A non-leaf entry holds the [`TableId`] of the next table where hardware
//! would hold its page frame number.

use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering, zeroed};
use crate::sync::lock::Mutex;
use crate::sync::once::OnceLock;

/// log2 of the number of entries in a table; small under a model checker.
pub const TABLE_SHIFT: u32 = if cfg!(loom) { 1 } else { 9 };
/// Entries in a table (`PT64_ENT_PER_PAGE`, `PTRS_PER_PTE`).
pub const TABLE_ENTRIES: usize = 1 << TABLE_SHIFT;

/// What the words of a freed table hold: not present in any format, and equal
/// to no value that a live table can hold, so that a walker that meets one
/// knows.
pub const POISON: u64 = 0x0dea_d000_0000_0100;

const CHUNK_TABLES: usize = if cfg!(loom) { 8 } else { 512 };
const MAX_CHUNKS: usize = if cfg!(loom) { 2 } else { 4096 };

/// A table in an [`Arena`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TableId(pub u32);

/// Ask the processor to fetch the cache line of a word, where it can be asked.
#[inline]
pub fn prefetch<T>(word: &T) {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    {
        let address = std::ptr::from_ref(word).cast::<i8>();
        // SAFETY: a prefetch has no architectural effect, and the address is
        // inside a live allocation.
        unsafe {
            use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(address);
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    let _ = word;
}

const FREE: u8 = 0;
const LIVE: u8 = 1;

/// Arrays, not slices: a walk looks up a table at every level, and an index
/// masked to the size of an array needs no check.
struct Chunk<M> {
    entries: Box<[AtomicU64; CHUNK_TABLES * TABLE_ENTRIES]>,
    meta: Box<[M; CHUNK_TABLES]>,
    state: Box<[AtomicU8; CHUNK_TABLES]>,
}

/// A boxed slice as an array.
fn sized<T, const N: usize>(slice: Box<[T]>) -> Box<[T; N]> {
    match slice.try_into() {
        Ok(array) => array,
        Err(slice) => unreachable!("a chunk was made of {} parts, not {N}", slice.len()),
    }
}

/// Tables with something beside each (`struct ptdesc`, `struct kvm_mmu_page`).
///
/// `M` stays where it is for the arena's life and is reused with its table;
/// it is reset by whoever allocates.
pub struct Arena<M> {
    chunks: Box<[OnceLock<Chunk<M>>; MAX_CHUNKS]>,
    free: Mutex<FreeList>,
}

#[derive(Default)]
struct FreeList {
    next: u32,
    returned: Vec<u32>,
    live: u32,
}

impl<M: Default> Default for Arena<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Default> Arena<M> {
    /// An arena without tables.
    pub fn new() -> Self {
        Arena {
            chunks: sized((0..MAX_CHUNKS).map(|_| OnceLock::new()).collect()),
            free: Mutex::new(FreeList::default()),
        }
    }

    /// A table of zeros, or `None` when the arena is full.
    pub fn alloc(&self) -> Option<TableId> {
        let (id, reused) = {
            let mut free = self.free.lock();
            let taken = match free.returned.pop() {
                Some(id) => (id, true),
                None if (free.next as usize) < MAX_CHUNKS * CHUNK_TABLES => {
                    free.next += 1;
                    (free.next - 1, false)
                }
                None => return None,
            };
            free.live += 1;
            taken
        };
        let chunk = self.chunks[id as usize / CHUNK_TABLES].get_or_init(|| Chunk {
            entries: sized(zeroed(CHUNK_TABLES * TABLE_ENTRIES)),
            meta: sized((0..CHUNK_TABLES).map(|_| M::default()).collect()),
            state: sized(zeroed(CHUNK_TABLES)),
        });
        let was = chunk.state[id as usize % CHUNK_TABLES].swap(LIVE, Ordering::Relaxed);
        assert_eq!(was, FREE, "table {id} handed out twice");
        if reused {
            for entry in self.entries(TableId(id)) {
                // Relaxed: the table is published later, by whoever links it.
                entry.store(0, Ordering::Relaxed);
            }
        }
        Some(TableId(id))
    }

    /// Poison a table and take it back. The caller has waited for a grace
    /// period, or never published it.
    pub fn free(&self, id: TableId) {
        let chunk = self.chunk(id);
        let was = chunk.state[id.0 as usize % CHUNK_TABLES].swap(FREE, Ordering::Relaxed);
        assert!(was == LIVE, "table {} freed twice", id.0);
        for entry in self.entries(id) {
            entry.store(POISON, Ordering::Relaxed);
        }
        let mut free = self.free.lock();
        free.live -= 1;
        free.returned.push(id.0);
    }

    #[inline]
    fn chunk(&self, id: TableId) -> &Chunk<M> {
        self.chunks[id.0 as usize / CHUNK_TABLES]
            .get()
            .expect("a table id comes from alloc, which made its chunk")
    }

    /// The entries of a table.
    #[inline]
    pub fn entries(&self, id: TableId) -> &[AtomicU64; TABLE_ENTRIES] {
        let (tables, _) = self.chunk(id).entries.as_chunks();
        &tables[id.0 as usize % CHUNK_TABLES]
    }

    /// What stands beside a table.
    #[inline]
    pub fn meta(&self, id: TableId) -> &M {
        &self.chunk(id).meta[id.0 as usize % CHUNK_TABLES]
    }

    /// Tables handed out and not yet taken back.
    pub fn live(&self) -> u32 {
        self.free.lock().live
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn tables_come_zeroed_and_in_order_and_are_poisoned_when_freed() {
        let arena: Arena<()> = Arena::new();
        let a = arena.alloc().expect("room");
        let b = arena.alloc().expect("room");
        assert_eq!(b.0, a.0 + 1);
        arena.entries(a)[7].store(42, Ordering::Relaxed);
        arena.free(a);
        assert!(
            arena
                .entries(a)
                .iter()
                .all(|e| e.load(Ordering::Relaxed) == POISON)
        );
        assert_eq!(arena.live(), 1);
        let again = arena.alloc().expect("room");
        assert_eq!(again, a);
        assert!(
            arena
                .entries(a)
                .iter()
                .all(|e| e.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_caught() {
        let arena: Arena<()> = Arena::new();
        let a = arena.alloc().expect("room");
        arena.free(a);
        arena.free(a);
    }
}
