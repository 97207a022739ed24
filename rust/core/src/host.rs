//! The host: memory, cgroups, processes, clock, grace periods and totals.

use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::lru_gen::kswapd::NodeReclaim;
use crate::lru_gen::{self, LruVec};
use crate::mm::address_space::{AddressSpace, AddressSpaces, Kind};
use crate::mm::memory::PhysMem;
use crate::mm::swap::Swap;
use crate::mm::{FolioWord, Memcg, Mm, NotifierList, Pfn};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::lock::{Mutex, RwSem};
use crate::sync::once::OnceLock;
use crate::sync::rcu::Domain;
use crate::trace::{CounterTotals, Record};
use std::sync::Arc;
use std::time::Instant;

/// The host's clock, which birth times and trace records are taken from.
pub enum Clock {
    /// Real time since the host was made.
    Monotonic(Instant),
    /// Advances only when told, so that inline runs repeat to the bit.
    Virtual(AtomicU64),
}

impl Clock {
    /// Nanoseconds since the host was made.
    pub fn now_ns(&self) -> u64 {
        match self {
            Clock::Monotonic(start) => {
                u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
            }
            Clock::Virtual(ns) => ns.load(Ordering::Relaxed),
        }
    }

    /// Let virtual time pass; real time passes by itself.
    pub fn advance_ns(&self, ns: u64) {
        if let Clock::Virtual(now) = self {
            now.fetch_add(ns, Ordering::Relaxed);
        }
    }
}

/// The root memory cgroup's number: 0 is none's (`mem_cgroup_ids` begins at 1).
pub const ROOT_MEMCG: u16 = 1;

/// Memory cgroups by number: written once each, and never moved, so that a
/// folio's owner is found without a lock or a reference. One that is removed
/// stays, and its number is not given again.
struct MemcgTable {
    creating: Mutex<()>,
    chunks: Vec<OnceLock<Box<MemcgChunk>>>,
}

type MemcgChunk = [OnceLock<Arc<Memcg>>; 256];

impl MemcgTable {
    fn new() -> Self {
        MemcgTable {
            creating: Mutex::new(()),
            chunks: (0..256).map(|_| OnceLock::new()).collect(),
        }
    }

    #[inline]
    fn get(&self, id: u16) -> Option<&Arc<Memcg>> {
        self.chunks[usize::from(id >> 8)].get()?[usize::from(id & 0xff)].get()
    }

    /// Put a new one in its place; the caller holds `creating`.
    fn put(&self, memcg: Arc<Memcg>) {
        let chunk = self.chunks[usize::from(memcg.id >> 8)]
            .get_or_init(|| Box::new([const { OnceLock::new() }; 256]));
        let place = &chunk[usize::from(memcg.id & 0xff)];
        assert!(place.set(memcg).is_ok(), "a memory cgroup was made twice");
    }
}

/// What a host is made of.
pub struct HostConfig {
    /// Pages of each node.
    pub nodes: Vec<u64>,
    /// Swap slots.
    pub swap_pages: u64,
    /// Whether time is virtual.
    pub virtual_clock: bool,
}

/// One machine.
pub struct Host {
    /// Physical memory.
    pub memory: PhysMem,
    /// Grace periods of page-table pages, roots and memslot sets.
    pub rcu: Domain,
    /// Grace periods of notifier subscriptions, whose callbacks may sleep.
    pub srcu: Domain,
    /// Time.
    pub clock: Clock,
    /// Counters of all threads that have finished.
    pub totals: CounterTotals,
    /// Files, shmem and anonymous mappings.
    pub spaces: AddressSpaces,
    /// The swap device.
    pub swap: Swap,
    /// Settings of the multi-gen LRU.
    pub lru_gen: lru_gen::Settings,
    memcgs: MemcgTable,
    /// The memory cgroup LRU of each node, for reclaim from the whole machine.
    pub(crate) nodes: Vec<NodeReclaim>,
    mms: RwSem<Vec<Arc<Mm>>>,
    next_mm: AtomicU32,
    trace_mask: AtomicU32,
    trace: Mutex<Vec<Record>>,
}

impl Host {
    /// A machine with its root cgroup.
    ///
    /// # Errors
    /// `EINVAL` for impossible sizes.
    pub fn new(config: &HostConfig) -> Result<Arc<Self>> {
        let memory = PhysMem::new(&config.nodes)?;
        let clock = if config.virtual_clock {
            Clock::Virtual(AtomicU64::new(0))
        } else {
            Clock::Monotonic(Instant::now())
        };
        let host = Host {
            swap: Swap::new(config.swap_pages)?,
            rcu: Domain::new(),
            srcu: Domain::new(),
            totals: CounterTotals::default(),
            spaces: AddressSpaces::default(),
            lru_gen: lru_gen::Settings::default(),
            memcgs: MemcgTable::new(),
            nodes: (0..memory.nr_nodes())
                .map(|node| NodeReclaim::new(memory.node_pages(node)))
                .collect(),
            mms: RwSem::new(Vec::new()),
            next_mm: AtomicU32::new(1),
            trace_mask: AtomicU32::new(0),
            trace: Mutex::new(Vec::new()),
            memory,
            clock,
        };
        host.create_memcg("/")?;
        Ok(Arc::new(host))
    }

    /// A new memory cgroup. Its name is a path below the cgroup mount point,
    /// with a slash before it or without.
    ///
    /// # Errors
    /// `EINVAL` for what is no path, or would break the lines of a text file;
    /// `EEXIST` when the name is taken, `ENOSPC` after 65,535 cgroups.
    pub fn create_memcg(&self, name: &str) -> Result<Arc<Memcg>> {
        let name = path_of(name)?;
        let _creating = self.memcgs.creating.lock();
        let made = self.memcgs_ever();
        if made.iter().any(|it| it.is_online() && it.name == name) {
            return Err(Error::new(
                Errno::EEXIST,
                format!("a memory cgroup named {name:?} exists"),
            ));
        }
        let id = u16::try_from(usize::from(ROOT_MEMCG) + made.len())
            .map_err(|_| Error::new(Errno::ENOSPC, "all 65,535 memory cgroups are taken"))?;
        let lruvecs = (0..self.memory.nr_nodes())
            .map(|node| LruVec::new(id, node, self.clock.now_ns()))
            .collect();
        let memcg = Arc::new(Memcg::new(id, name, lruvecs));
        self.memcgs.put(Arc::clone(&memcg));
        for node in &self.nodes {
            node.online_memcg(id);
        }
        Ok(memcg)
    }

    /// Remove a memory cgroup (`rmdir`). Pages that it is still charged with,
    /// cached ones of files and shmem, stay so until they are freed or reclaimed.
    ///
    /// # Errors
    /// `EBUSY` for the root, and while it has processes or others below it;
    /// `ENOENT` when it was removed before.
    pub fn remove_memcg(&self, memcg: &Memcg) -> Result<()> {
        let busy = |what: String| {
            let name = &memcg.name;
            Err(Error::new(
                Errno::EBUSY,
                format!("memory cgroup {name:?} {what}"),
            ))
        };
        if memcg.id == ROOT_MEMCG {
            return busy("is the root".to_owned());
        }
        let _creating = self.memcgs.creating.lock();
        let below = |other: &Memcg| {
            let rest = other.name.strip_prefix(&memcg.name);
            other.is_online() && rest.is_some_and(|rest| rest.starts_with('/'))
        };
        if let Some(other) = self.memcgs().iter().find(|other| below(other)) {
            return busy(format!("has {:?} below it", other.name));
        }
        {
            // Held until it is offline: a process that enters looks under it.
            let mms = self.mms.write();
            match mms.iter().filter(|mm| mm.memcg.id == memcg.id).count() {
                0 if memcg.is_online() => memcg.set_offline(),
                0 => {
                    return Err(Error::new(
                        Errno::ENOENT,
                        format!("memory cgroup {:?} was removed before", memcg.name),
                    ));
                }
                n => return busy(format!("has {n} process(es)")),
            }
        }
        for node in &self.nodes {
            node.offline_memcg(memcg.id);
        }
        Ok(())
    }

    /// A memory cgroup by number, if it was not removed.
    pub fn memcg(&self, id: u16) -> Option<Arc<Memcg>> {
        let memcg = self.memcgs.get(id)?;
        memcg.is_online().then(|| Arc::clone(memcg))
    }

    /// The root memory cgroup, which is never removed (`root_mem_cgroup`).
    pub fn root_memcg(&self) -> Arc<Memcg> {
        self.memcg(ROOT_MEMCG)
            .expect("a host is made with its root")
    }

    /// A memory cgroup by number, removed or not, without counting a reference:
    /// they live as long as the host.
    #[inline]
    pub fn memcg_ref(&self, id: u16) -> Option<&Memcg> {
        self.memcgs.get(id).map(|memcg| &**memcg)
    }

    /// Every memory cgroup, the root first; removed ones as long as they have
    /// pages.
    pub fn memcgs(&self) -> Vec<Arc<Memcg>> {
        let mut all = self.memcgs_ever();
        all.retain(|memcg| !memcg.is_released());
        all
    }

    /// Every memory cgroup that there ever was.
    pub(crate) fn memcgs_ever(&self) -> Vec<Arc<Memcg>> {
        let numbers = ROOT_MEMCG..=u16::MAX;
        numbers
            .map_while(|id| self.memcgs.get(id).cloned())
            .collect()
    }

    /// A new process in a memory cgroup.
    ///
    /// # Errors
    /// `ENOENT` when there is no such cgroup.
    pub fn create_mm(&self, memcg: u16) -> Result<Arc<Mm>> {
        let mut mms = self.mms.write();
        let owner = self.memcg(memcg).ok_or_else(|| {
            Error::new(
                Errno::ENOENT,
                format!("no memory cgroup has number {memcg}"),
            )
        })?;
        let id = self.next_mm.fetch_add(1, Ordering::Relaxed);
        let notifiers = NotifierList::new(&self.srcu);
        let mm = Arc::new(Mm::new(id, Arc::clone(&owner), notifiers));
        lru_gen::add_mm(&owner, &mm);
        mms.push(Arc::clone(&mm));
        Ok(mm)
    }

    /// End a process: its subscribers are released, its memory unmapped.
    pub fn exit_mm(&self, cpu: &Cpu, mm: &Arc<Mm>) {
        mm.exit(cpu);
        lru_gen::del_mm(&mm.memcg, mm);
        self.mms.write().retain(|other| !Arc::ptr_eq(other, mm));
    }

    /// Every process.
    pub fn mms(&self) -> Vec<Arc<Mm>> {
        self.mms.read().clone()
    }

    /// A file of `nr_pages`, shmem of that size, or an anonymous mapping's
    /// address space.
    pub fn create_space(&self, kind: Kind, nr_pages: u64) -> Arc<AddressSpace> {
        self.spaces.create(kind, nr_pages)
    }

    /// Delete a file or shmem: its pages are unmapped and dropped, its swap
    /// slots given back (`evict_inode()`).
    ///
    /// # Errors
    /// `EBUSY` while something maps it.
    pub fn remove_space(&self, cpu: &Cpu, space: &Arc<AddressSpace>) -> Result<()> {
        if !space.mapped().is_empty() {
            return Err(Error::new(
                Errno::EBUSY,
                format!("address space {} is still mapped", space.id),
            ));
        }
        crate::mm::filemap::truncate(cpu, space);
        self.spaces.remove(space);
        cpu.check_error()
    }

    /// A folio charged to a memory cgroup, on no list.
    ///
    /// # Errors
    /// `ENOMEM` when reclaim could not help either, `ENOENT` when the memory
    /// cgroup was removed.
    pub fn alloc_folio(&self, cpu: &Cpu, memcg: &Memcg, order: u32, flags: u64) -> Result<Pfn> {
        if !memcg.is_online() {
            return Err(Error::new(
                Errno::ENOENT,
                format!("memory cgroup {:?} was removed", memcg.name),
            ));
        }
        let pages = 1u64 << order;
        lru_gen::charge(cpu, memcg, pages)?;
        let Some(pfn) = lru_gen::alloc_with_reclaim(cpu, order, flags) else {
            memcg.uncharge(pages);
            return Err(self.memory.out_of_memory(order));
        };
        let word = self.memory.word(pfn).get().with_memcg(memcg.id);
        self.memory.word(pfn).store(word.0, Ordering::Relaxed);
        Ok(pfn)
    }

    /// Uncharge and free a folio that is on no list and mapped by nobody.
    pub fn free_folio(&self, pfn: Pfn) {
        let word = self.memory.word(pfn).get();
        if let Some(owner) = self.memcg_ref(word.memcg()) {
            owner.uncharge(word.nr_pages());
        }
        self.memory.free(pfn);
    }

    /// Which tracepoints are on, a sum of [`Event`](crate::trace::Event)s.
    /// Threads look when they start.
    pub fn trace_mask(&self) -> u32 {
        self.trace_mask.load(Ordering::Relaxed)
    }

    /// Switch tracepoints on or off.
    pub fn set_trace_mask(&self, mask: u32) {
        self.trace_mask.store(mask, Ordering::Relaxed);
    }

    pub(crate) fn take_trace(&self, records: Vec<Record>) {
        self.trace.lock().extend(records);
    }

    /// Take what finished threads have traced, in order of time.
    pub fn drain_trace(&self) -> Vec<Record> {
        let mut records = std::mem::take(&mut *self.trace.lock());
        records.sort_by_key(|record| record.time_ns);
        records
    }
}

/// A memory cgroup's path, with one slash before it.
fn path_of(name: &str) -> Result<String> {
    let path = name.strip_prefix('/').unwrap_or(name);
    let what = if name.is_empty() {
        "is empty"
    } else if name == "/" {
        return Ok(name.to_owned());
    } else if name.contains(['\n', '\0']) {
        "has a newline or a null byte, which no line of text can hold"
    } else if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "has a component that is empty, \".\" or \"..\""
    } else {
        return Ok(format!("/{path}"));
    };
    Err(Error::invalid(format!(
        "memory cgroup {name:?}: its name {what}"
    )))
}

impl Drop for Host {
    fn drop(&mut self) {
        // Subscriptions hold VMs and VMs hold their mm; the last owner of the
        // host cuts these circles. Nothing can run on it any more, so nobody
        // is inside a section, and all that waits for a grace period is freed.
        let reader = self.srcu.register();
        for mm in self.mms.get_mut().drain(..) {
            mm.forget_notifiers(&reader);
        }
        drop(reader);
        // What waits in one may own what defers in the other.
        let left = self.srcu.drain() + self.rcu.drain() + self.srcu.drain();
        debug_assert_eq!(left, 0, "callbacks that no grace period ends for");
    }
}
