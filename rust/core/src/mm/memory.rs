//! Physical memory: folios, and the page allocator.
//!
//! What the kernel keeps in `struct page` is here one array per field, so that
//! a walk which reads only words reads only words. A page costs 28 bytes: word
//! 8, list links 8, mapping 4, index 4, map count 4; content and swap slot are
//! arrays too, of which untouched parts cost no memory.

use super::folio::{FolioWord, Pfn, TAIL, Word};
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, zeroed};
use crate::sync::lock::Mutex;
use std::cell::RefCell;

/// log2 of the base page size.
pub const PAGE_SHIFT: u32 = 12;
/// The base page size in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Frames that a host can have; the numbers from here on are no frames.
pub const MAX_FRAMES: u32 = u32::MAX - 15;
/// log2 of the pages in a huge page that a PMD maps (`HPAGE_PMD_ORDER`).
pub const PMD_ORDER: u32 = crate::table::TABLE_SHIFT;
/// log2 of the pages in a huge page that a PUD maps.
pub const PUD_ORDER: u32 = 2 * crate::table::TABLE_SHIFT;

const PCP_BATCH: usize = if cfg!(loom) { 1 } else { 63 };
const MAX_NODES: usize = 64;

/// The host's memory.
pub struct PhysMem {
    word: Box<[AtomicU64]>,
    links: Box<[AtomicU32]>,
    mapping: Box<[AtomicU32]>,
    index: Box<[AtomicU32]>,
    mapcount: Box<[AtomicU32]>,
    content: Box<[AtomicU8]>,
    swap: Box<[AtomicU32]>,
    nodes: Vec<Node>,
}

/// One NUMA node.
struct Node {
    start: u32,
    end: u32,
    free: Mutex<Free>,
    nr_free: AtomicU32,
}

/// Free memory of a node. Never-used memory is handed out from the bottom for
/// base pages and from the top for huge ones, so that consecutive faults get
/// consecutive frames and huge pages stay possible.
struct Free {
    bottom: u32,
    top: u32,
    pages: Vec<u32>,
    huge: Vec<(u32, u32)>,
}

impl PhysMem {
    /// Memory of `nodes` sizes, in pages. The first page of node 0 is the zero page.
    pub fn new(nodes: &[u64]) -> Result<Self> {
        if nodes.is_empty() || nodes.len() > MAX_NODES {
            return Err(Error::invalid(format!(
                "a host has 1 to {MAX_NODES} nodes, not {}",
                nodes.len()
            )));
        }
        let mut start = 0u32;
        let mut list = Vec::with_capacity(nodes.len());
        for (n, &pages) in nodes.iter().enumerate() {
            let end = u32::try_from(u64::from(start) + pages)
                .ok()
                .filter(|&end| end <= MAX_FRAMES && pages > 0)
                .ok_or_else(|| {
                    Error::invalid(format!(
                        "node {n} of {pages} pages: expected at least 1 page and \
                         at most 16 TiB over all nodes"
                    ))
                })?;
            let bottom = start + u32::from(n == 0);
            list.push(Node {
                start,
                end,
                nr_free: AtomicU32::new(end - bottom),
                free: Mutex::new(Free {
                    bottom,
                    top: end,
                    pages: Vec::new(),
                    huge: Vec::new(),
                }),
            });
            start = end;
        }
        let total = start as usize;
        Ok(PhysMem {
            word: zeroed(total),
            links: zeroed(2 * total),
            mapping: zeroed(total),
            index: zeroed(total),
            mapcount: zeroed(total),
            content: zeroed(total),
            swap: zeroed(total),
            nodes: list,
        })
    }

    /// The page of zeros that read faults on anonymous memory map.
    pub const ZERO_PAGE: Pfn = Pfn(0);

    /// Frames on all nodes.
    pub fn nr_pages(&self) -> u64 {
        self.word.len() as u64
    }

    /// Number of nodes.
    pub fn nr_nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Frames of a node, as `[start, end)`.
    pub fn node_span(&self, node: usize) -> (u32, u32) {
        (self.nodes[node].start, self.nodes[node].end)
    }

    /// Frames of a node.
    pub fn node_pages(&self, node: usize) -> u64 {
        u64::from(self.nodes[node].end - self.nodes[node].start)
    }

    /// Free frames of a node. Frames in a thread's own cache count as used.
    pub fn nr_free(&self, node: usize) -> u64 {
        u64::from(self.nodes[node].nr_free.load(Ordering::Relaxed))
    }

    fn node_of(&self, pfn: u32) -> usize {
        self.nodes.partition_point(|n| n.end <= pfn)
    }

    /// A folio of `2^order` pages, preferably of `node`, else of any. Its word
    /// says node, order and `flags`; mapping, index and map count are 0, the
    /// content zero.
    pub fn alloc(&self, cpu: &Cpu, node: usize, order: u32, flags: u64) -> Option<Pfn> {
        let pfn = if order == 0 {
            self.alloc_page(cpu, node)?
        } else {
            self.alloc_huge(node, order)?
        };
        let node = self.node_of(pfn);
        self.word(Pfn(pfn))
            .store(Word::new(node, order, flags).0, Ordering::Relaxed);
        for page in pfn..pfn + (1 << order) {
            if page != pfn {
                self.word[page as usize]
                    .store(Word::new(node, 0, flags | TAIL).0, Ordering::Relaxed);
            }
            self.mapcount[page as usize].store(0, Ordering::Relaxed);
            if self.content[page as usize].load(Ordering::Relaxed) != 0 {
                self.content[page as usize].store(0, Ordering::Relaxed);
            }
        }
        Some(Pfn(pfn))
    }

    fn alloc_page(&self, cpu: &Cpu, node: usize) -> Option<u32> {
        let mut pcp = cpu.pcp.borrow_mut();
        if let Some(&last) = pcp.last()
            && self.node_of(last) == node
        {
            return pcp.pop();
        }
        let others = (0..self.nodes.len()).filter(|&n| n != node);
        for n in std::iter::once(node).chain(others) {
            let batch = if n == node { PCP_BATCH } else { 1 };
            let mut free = self.nodes[n].free.lock();
            let before = pcp.len();
            while pcp.len() - before < batch {
                if let Some(page) = free.pages.pop() {
                    pcp.push(page);
                } else if free.bottom < free.top {
                    pcp.push(free.bottom);
                    free.bottom += 1;
                } else if let Some((first, order)) = free.huge.pop() {
                    free.pages.extend((first..first + (1 << order)).rev());
                } else {
                    break;
                }
            }
            let taken = pcp.len() - before;
            if taken > 0 {
                self.nodes[n]
                    .nr_free
                    .fetch_sub(taken as u32, Ordering::Relaxed);
                // Handed out lowest first.
                pcp[before..].reverse();
                return pcp.pop();
            }
        }
        // Only pages of other nodes are left, in this thread's own cache.
        pcp.pop()
    }

    fn alloc_huge(&self, node: usize, order: u32) -> Option<u32> {
        let others = (0..self.nodes.len()).filter(|&n| n != node);
        for n in std::iter::once(node).chain(others) {
            let mut free = self.nodes[n].free.lock();
            let found = if let Some(at) = free.huge.iter().position(|&(_, o)| o == order) {
                Some(free.huge.swap_remove(at).0)
            } else {
                let first = free.top.saturating_sub(1 << order) >> order << order;
                (first >= free.bottom && first < free.top).then(|| {
                    let skipped = first + (1 << order)..free.top;
                    free.pages.extend(skipped.rev());
                    free.top = first;
                    first
                })
            };
            if let Some(first) = found {
                self.nodes[n]
                    .nr_free
                    .fetch_sub(1 << order, Ordering::Relaxed);
                return Some(first);
            }
        }
        None
    }

    /// Take a folio back. It is on no list and nothing maps it.
    pub fn free(&self, pfn: Pfn) {
        let word = self.word(pfn).get();
        debug_assert!(
            !word.has(TAIL) && self.mapcount(pfn) == 0,
            "{pfn:?} {word:?}"
        );
        let order = word.order();
        self.word(pfn).store(0, Ordering::Relaxed);
        let node = &self.nodes[self.node_of(pfn.0)];
        let mut free = node.free.lock();
        if order == 0 {
            free.pages.push(pfn.0);
        } else {
            for page in pfn.0..pfn.0 + (1 << order) {
                self.word[page as usize].store(0, Ordering::Relaxed);
            }
            free.huge.push((pfn.0, order));
        }
        node.nr_free.fetch_add(1 << order, Ordering::Relaxed);
    }

    pub(crate) fn drain_pcp(&self, pcp: &RefCell<Vec<u32>>) {
        for page in pcp.borrow_mut().drain(..) {
            let node = &self.nodes[self.node_of(page)];
            node.free.lock().pages.push(page);
            node.nr_free.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A page's word; a tail page's says only that it is one.
    #[inline]
    pub fn word(&self, pfn: Pfn) -> &AtomicU64 {
        &self.word[pfn.0 as usize]
    }

    /// The first page of the folio that `pfn` is in (`page_folio()`).
    #[inline]
    pub fn head(&self, pfn: Pfn) -> Pfn {
        let word = self.word(pfn).get();
        if !word.has(TAIL) {
            return pfn;
        }
        for order in [PMD_ORDER, PUD_ORDER] {
            let first = Pfn(pfn.0 >> order << order);
            let word = self.word(first).get();
            if !word.has(TAIL) && word.order() >= order {
                return first;
            }
        }
        pfn
    }

    /// The neighbour towards a list's head (`0`) or tail (`1`); guarded by the
    /// LRU lock of the list.
    #[inline]
    pub fn link(&self, pfn: Pfn, side: usize) -> &AtomicU32 {
        &self.links[2 * pfn.0 as usize + side]
    }

    /// Which address space the folio belongs to; 0 is none.
    #[inline]
    pub fn mapping(&self, pfn: Pfn) -> &AtomicU32 {
        &self.mapping[pfn.0 as usize]
    }

    /// Page offset in its address space (`folio->index`).
    #[inline]
    pub fn pgoff(&self, pfn: Pfn) -> &AtomicU32 {
        &self.index[pfn.0 as usize]
    }

    /// The swap slot of a folio in the swap cache, plus one; 0 is none.
    #[inline]
    pub fn swap(&self, pfn: Pfn) -> &AtomicU32 {
        &self.swap[pfn.0 as usize]
    }

    /// How many page-table entries map the folio.
    #[inline]
    pub fn mapcount(&self, pfn: Pfn) -> u32 {
        self.mapcount[pfn.0 as usize].load(Ordering::Relaxed)
    }

    /// One more mapping. Guarded against reclaim by the PTE table's lock.
    #[inline]
    pub fn map(&self, pfn: Pfn) {
        self.map_more(pfn, 1);
    }

    /// The first mapping of a folio that nobody else knows of yet
    /// (`folio_add_new_anon_rmap()`): published with the entry that maps it.
    #[inline]
    pub(crate) fn map_new(&self, pfn: Pfn) {
        debug_assert_eq!(self.mapcount(pfn), 0, "{pfn:?} is mapped already");
        self.mapcount[pfn.0 as usize].store(1, Ordering::Relaxed);
    }

    /// `n` more mappings.
    pub(crate) fn map_more(&self, pfn: Pfn, n: u32) {
        self.mapcount[pfn.0 as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// Make base pages of a folio, each with `mapped(n)` mappings. The caller
    /// has locked and isolated it, and keeps its page-table entries as they
    /// are; the pages are then isolated, the first one locked.
    pub(crate) fn split(&self, head: Pfn, mapped: impl Fn(u32) -> u32) {
        let word = self.word(head).get();
        let space = self.mapping(head).load(Ordering::Relaxed);
        let first = self.pgoff(head).load(Ordering::Relaxed);
        let small = word.with_order(0);
        for n in 1..word.nr_pages() as u32 {
            let page = Pfn(head.0 + n);
            self.mapping(page).store(space, Ordering::Relaxed);
            self.pgoff(page).store(first + n, Ordering::Relaxed);
            self.mapcount[page.0 as usize].store(mapped(n), Ordering::Relaxed);
            // Release: whoever sees that it is no tail sees the rest.
            self.word(page)
                .store(small.0 & !super::folio::LOCKED, Ordering::Release);
        }
        self.mapcount[head.0 as usize].store(mapped(0), Ordering::Relaxed);
        self.word(head).modify(|word| Some(word.with_order(0)));
    }

    /// One mapping less; returns how many are left.
    #[inline]
    pub fn unmap(&self, pfn: Pfn) -> u32 {
        // AcqRel: whoever sees 0 sees what was done through the other mappings.
        let before = self.mapcount[pfn.0 as usize].fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "{pfn:?} unmapped once too often");
        before - 1
    }

    /// The byte that stands for the page's content.
    #[inline]
    pub fn content(&self, pfn: Pfn) -> &AtomicU8 {
        &self.content[pfn.0 as usize]
    }

    /// `ENOMEM`, with the numbers.
    pub fn out_of_memory(&self, order: u32) -> Error {
        let free: u64 = (0..self.nodes.len()).map(|n| self.nr_free(n)).sum();
        Error::new(
            Errno::ENOMEM,
            format!(
                "out of host memory: no {} KiB folio among {free} free of {} pages",
                (PAGE_SIZE << order) >> 10,
                self.nr_pages()
            ),
        )
    }
}
