//! Memory cgroups: who owns a page, how much one may own (`mm/memcontrol.c`).

use crate::cpu::Cpu;
use crate::lru_gen::{LruVec, MmList};
use crate::sync::CachePadded;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::trace::{Counter, CounterTotals};

/// A limit that is never reached.
pub const UNLIMITED: u64 = u64::MAX;

/// A memory cgroup.
pub struct Memcg {
    /// Its number; the root's is 1.
    pub id: u16,
    /// Its path below the cgroup mount point, with a slash before it.
    pub name: String,
    /// Not removed yet (`CSS_ONLINE`).
    online: AtomicBool,
    /// On a line of its own: every fault of every vCPU writes it.
    usage: CachePadded<AtomicU64>,
    /// `memory.max`, in pages.
    pub max: AtomicU64,
    /// `memory.high`, in pages.
    pub high: AtomicU64,
    /// One per node.
    pub lruvecs: Vec<LruVec>,
    /// The processes in it, for aging.
    pub mm_list: MmList,
    /// What happened in it, for `memory.stat`: faults, reclaim, refaults.
    pub stat: CachePadded<CounterTotals>,
}

impl Memcg {
    pub(crate) fn new(id: u16, name: String, lruvecs: Vec<LruVec>) -> Self {
        Memcg {
            id,
            name,
            online: AtomicBool::new(true),
            usage: CachePadded::new(AtomicU64::new(0)),
            max: AtomicU64::new(UNLIMITED),
            high: AtomicU64::new(UNLIMITED),
            mm_list: MmList::new(lruvecs.len()),
            lruvecs,
            stat: CachePadded::default(),
        }
    }

    /// Whether it can have processes and be written to: it was not removed.
    #[inline]
    pub fn is_online(&self) -> bool {
        // Relaxed: set under the lock under which processes enter.
        self.online.load(Ordering::Relaxed)
    }

    /// It is being removed (`mem_cgroup_css_offline()`).
    pub(crate) fn set_offline(&self) {
        self.online.store(false, Ordering::Relaxed);
    }

    /// Whether it was removed and its last page is gone
    /// (`mem_cgroup_css_released()`).
    pub fn is_released(&self) -> bool {
        !self.is_online() && self.usage() == 0
    }

    /// Count `n` of an event that `memory.stat` shows, here and for the
    /// thread.
    #[inline]
    pub(crate) fn count(&self, cpu: &Cpu, counter: Counter, n: u64) {
        cpu.count_n(counter, n);
        self.stat.add(counter, n);
    }

    /// Pages charged.
    pub fn usage(&self) -> u64 {
        self.usage.load(Ordering::Relaxed)
    }

    /// Charge pages, unless that would exceed `max` (`try_charge()`).
    pub fn try_charge(&self, pages: u64) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        // Relaxed: a sum; nothing is published by it.
        let before = self.usage.fetch_add(pages, Ordering::Relaxed);
        if max != UNLIMITED && before + pages > max {
            self.usage.fetch_sub(pages, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Charge pages whatever the limit says.
    pub(crate) fn force_charge(&self, pages: u64) {
        self.usage.fetch_add(pages, Ordering::Relaxed);
    }

    /// Pages left below `max` (`mem_cgroup_margin()`).
    pub(crate) fn margin(&self) -> u64 {
        let max = self.max.load(Ordering::Relaxed);
        max.saturating_sub(self.usage())
    }

    /// Whether pages are charged above `high`.
    #[inline]
    pub(crate) fn is_over_high(&self) -> bool {
        self.usage() > self.high.load(Ordering::Relaxed)
    }

    /// Give pages back.
    pub fn uncharge(&self, pages: u64) {
        self.usage.fetch_sub(pages, Ordering::Relaxed);
    }
}
