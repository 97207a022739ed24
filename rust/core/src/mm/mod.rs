//! The primary MMU: memory, address spaces, page tables and who else maps them.
//!
//! | file | what | kernel |
//! |---|---|---|
//! | [`folio`] | the folio's atomic word | `include/linux/mm_inline.h`, `page-flags.h` |
//! | [`memory`] | physical memory and its allocator | `mm/page_alloc.c` |
//! | [`memcg`] | memory cgroups and their limits | `mm/memcontrol.c` |
//! | [`memcg_files`] | their files, as text | `mm/memcontrol.c` |
//! | [`address_space`] | what a page belongs to, and every VMA that maps it | `mm/rmap.c`, `mm/filemap.c` |
//! | [`filemap`] | the page cache's reads and faults | `mm/filemap.c`, `mm/shmem.c` |
//! | [`swap`] | swap slots and faults on them | `mm/swapfile.c`, `mm/memory.c` |
//! | [`rmap`] | from a folio to the entries that map it | `mm/rmap.c` |
//! | [`vma`] | mappings of an mm | `include/linux/mm_types.h` |
//! | [`pagetable`] | primary page tables | `arch/x86/include/asm/pgtable.h` |
//! | [`mm`](struct@Mm) | an address space: map, fault, touch, unmap | `mm/memory.c`, `mm/gup.c`, `mm/mmap.c` |
//! | [`notifier`] | MMU notifiers | `mm/mmu_notifier.c` |
//! | [`mask`] | a set of pages that one PTE table maps | |
//! | [`page_idle`] | idle page tracking | `mm/page_idle.c` |
//! | [`young`] | accessed bits, page by page | `include/linux/mmu_notifier.h` |
//! | [`damon`] | a sampler of regions | `mm/damon/` |

pub mod address_space;
pub mod conserve;
pub mod damon;
pub mod filemap;
pub mod folio;
pub mod mask;
pub mod memcg;
pub mod memcg_files;
pub mod memory;
#[allow(clippy::module_inception)]
mod mm;
pub mod notifier;
pub mod page_idle;
pub mod pagetable;
pub mod rmap;
pub mod swap;
pub mod vma;
pub mod young;

pub use address_space::{AddressSpace, Kind};
pub use folio::{FolioWord, Pfn, Word};
pub use mask::PageMask;
pub use memcg::Memcg;
pub use memory::{PAGE_SHIFT, PAGE_SIZE, PhysMem};
pub use mm::{Entry, Mm, UserPage, release_if_unused};
pub use notifier::{MmuNotifier, NotifierList, Ops, Subscription};
pub use pagetable::Pte;
pub use vma::{Area, VmFlags, Vma};
