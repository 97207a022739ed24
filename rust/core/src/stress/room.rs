//! The machine of a round, and what every thread shares of it.

use super::execution::Permits;
use super::exhibit::Exhibit;
use super::{Options, RELAXED, cpu};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::host::{Host, HostConfig, ROOT_MEMCG};
use crate::kvm::memslot::LOG_DIRTY_PAGES;
use crate::kvm::mmu::shadow::{MIN_SHADOW_PAGES, ShadowConfig};
use crate::kvm::mmu::spte::SpteFormat;
use crate::kvm::protocol::Protocol;
use crate::kvm::{MemoryRegion, MmuKind, TlbConfig, Vm, VmConfig};
use crate::lru_gen::Asking;
use crate::mm::pagetable::SPECIAL;
use crate::mm::{Kind, Memcg, Mm, PAGE_SIZE, VmFlags};
use crate::sync::CachePadded;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Tally};
use crate::sync::lock::{Condvar, Mutex};
use crate::table::TABLE_ENTRIES;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::Arc;
use std::time::Duration;

/// Everything random in a round comes from these.
pub type Dice = Xoshiro256PlusPlus;

/// A part of guest memory, with its own memslot and its own fate. Its pages are
/// spread over the slot, so that few pages need many tables.
pub struct Region {
    /// In messages.
    pub name: &'static str,
    /// Its memslot.
    pub slot: u32,
    /// Where the slot is, by guest frame; the moving one has two places.
    pub places: [u64; 2],
    /// Pages that are used.
    pub pages: u64,
    /// Of them in each table's range.
    pub per_table: u64,
    /// Where it is in the process.
    pub hva: u64,
    /// Whether the guest may find nothing there.
    pub may_fault: bool,
    /// The last byte stored to each page, if nothing but the guest changes
    /// them. Written by the vCPU that owns the page, so no order is needed.
    pub ledger: Option<Box<[AtomicU8]>>,
}

impl Region {
    /// Where page `n` is in the slot.
    pub fn offset(&self, n: u64) -> u64 {
        n / self.per_table * TABLE_ENTRIES as u64 + n % self.per_table
    }

    /// Pages of the slot.
    pub fn slot_pages(&self) -> u64 {
        self.offset(self.pages - 1) + 1
    }

    /// Address of page `n` in the process.
    pub fn hva_of(&self, n: u64) -> u64 {
        self.hva + self.offset(n) * PAGE_SIZE
    }
}

/// Anonymous memory that stays: aged, logged, swapped out, zapped.
pub const KEPT: usize = 0;
/// Huge pages of the host.
pub const HUGE: usize = 1;
/// A file that is written back; its slot moves, goes and comes back.
pub const MOVING: usize = 2;
/// Unmapped and mapped again by the process; never swapped out.
pub const UNMAPPED: usize = 3;
const NAMES: [&str; 4] = ["kept", "huge", "moving", "unmapped"];

/// A copy of a region that follows the dirty log.
pub struct Copy {
    /// Whether the slot logs now, and so whether the copy must be right.
    pub follows: bool,
    /// A byte for each page.
    pub bytes: Vec<u8>,
}

/// What is counted of the threads' deeds.
macro_rules! deeds {
    ($($name:ident = $what:literal,)*) => {
        /// Something done to the machine.
        #[derive(Clone, Copy)]
        pub enum Deed { $($name,)* }
        const DEEDS: &[&str] = &[$($what,)*];
    };
}

deeds! {
    AgingPass = "aging_passes",
    ClearYoung = "clear_young",
    ClearFlushYoung = "clear_flush_young",
    TestYoung = "test_young",
    PageIdle = "page_idle",
    SlotMoved = "slots_moved",
    SlotDeleted = "slots_deleted",
    SlotCreated = "slots_created",
    Munmap = "munmaps",
    Watched = "invalidations_watched",
    Invalidation = "invalidations",
    LoggingOn = "logging_switched_on",
    LoggingOff = "logging_switched_off",
    Harvest = "dirty_logs_harvested",
    Reclaim = "reclaims",
    Writeback = "writebacks",
    GuestUnmap = "guest_ptes_unmapped",
    GuestMap = "guest_ptes_mapped",
    GuestTable = "guest_tables_dropped",
    GuestForbid = "guest_ptes_made_nx",
    GuestAllow = "guest_ptes_made_x",
    Fetch = "fetches",
    FetchRefused = "fetches_refused",
    GuestMode = "guest_mode_changes",
    Subscription = "subscriptions",
    GracePeriod = "objects_replaced",
}

/// The name of an object, for as long as something owns it.
pub type Alive = Box<dyn Fn() -> Option<&'static str>>;

/// The machine of a round, and what every thread shares of it.
pub struct Room {
    pub host: Arc<Host>,
    pub mm: Arc<Mm>,
    pub vm: Arc<Vm>,
    pub memcg: Arc<Memcg>,
    pub regions: [Region; 4],
    /// What may be executed of them.
    pub permits: Permits,
    pub seed: u64,
    /// By slot number of [`KEPT`] and [`HUGE`].
    pub copies: [Mutex<Copy>; 2],
    pub rcu: Exhibit,
    pub srcu: Exhibit,
    /// The file behind the moving region.
    pub file: Arc<crate::mm::AddressSpace>,
    /// Memory behind the unmapped region.
    pub space: Arc<crate::mm::AddressSpace>,
    stop: AtomicBool,
    made: Vec<CachePadded<AtomicU64>>,
    deeds: [Tally; DEEDS.len()],
    inside: Mutex<usize>,
    left: Condvar,
    failure: Mutex<Option<String>>,
    machine: String,
}

/// The machine that a seed stands for.
fn draw(options: &Options, dice: &mut Dice) -> VmConfig {
    let mmu = options.mmu;
    let direct = mmu == MmuKind::Shadow && dice.random_bool(0.3);
    let indirect = mmu != MmuKind::Tdp && !direct;
    let aliases = if indirect {
        [1, 3, 14, 17][dice.random_range(0..4)]
    } else {
        1
    };
    // A guest with page tables of its own under the shadow MMU has those of
    // the processor, which always have A/D bits.
    let format = match (mmu, direct) {
        (MmuKind::Shadow, false) => SpteFormat::NPT,
        _ => [SpteFormat::EPT, SpteFormat::EPT_NO_AD, SpteFormat::NPT][dice.random_range(0..3)],
    };
    VmConfig {
        protocol: options.protocol,
        format,
        mmu,
        levels: dice.random_range(4..=5),
        address_spaces: 1,
        max_level: dice.random_range(1..=3),
        slot_zap_all: dice.random_bool(0.5),
        shadow: ShadowConfig {
            direct,
            l1_ad: format.name != "ept" || dice.random_bool(0.5),
            aliases,
            guest_level: if dice.random_bool(0.2) { 2 } else { 1 },
            max_pages: dice
                .random_bool(0.7)
                .then(|| MIN_SHADOW_PAGES + 16 * dice.random_range(0..4)),
        },
        vcpus: options.vcpus,
        tlb: [
            TlbConfig::OFF,
            TlbConfig {
                entries: 32,
                ways: 4,
            },
            TlbConfig::default(),
        ][dice.random_range(0..3)],
    }
}

fn describe(config: &VmConfig, asking: Asking) -> String {
    let mmu = match config.mmu {
        MmuKind::Tdp => "tdp",
        MmuKind::Shadow if config.shadow.direct => "shadow, direct",
        MmuKind::Shadow => "shadow",
        MmuKind::Nested => "nested",
    };
    let mut text = format!(
        "{mmu}, {}, {} {}, {} levels, leaves to {}, {} vCPUs, {} TLB entries, aging asks {asking:?}",
        config.protocol.name,
        config.format.name,
        if config.format.ad_bits {
            "A/D"
        } else {
            "no A/D"
        },
        config.levels,
        config.max_level,
        config.vcpus,
        config.tlb.entries,
    );
    if config.slot_zap_all {
        text += ", slots zap all";
    }
    if config.mmu != MmuKind::Tdp {
        text += &format!(
            ", {} aliases, guest leaves of {}, limit {:?}, l1 {}",
            config.shadow.aliases,
            config.shadow.guest_level,
            config.shadow.max_pages,
            if config.shadow.l1_ad { "A/D" } else { "no A/D" },
        );
    }
    text
}

impl Room {
    pub fn new(options: &Options) -> Result<Self> {
        let mut dice = Dice::seed_from_u64(options.seed);
        let config = draw(options, &mut dice);
        // Swap for all, frames for most: reclaim is asked for, and now and then
        // needed.
        let host = Host::new(&HostConfig {
            nodes: vec![6144],
            swap_pages: 4096,
            virtual_clock: false,
        })?;
        let asking = match options.protocol {
            Protocol::V7 if dice.random_bool(0.8) => Asking::FastOnly,
            _ => Asking::Accurate,
        };
        host.lru_gen.set_asking(asking);
        let machine = describe(&config, asking);
        let setup = Cpu::new(&host);
        let mm = host.create_mm(ROOT_MEMCG)?;
        let memcg = Arc::clone(&mm.memcg);
        let spread = if dice.random_bool(0.5) { 16 } else { 512 };
        let ledger = |pages: u64| Some((0..pages).map(|_| AtomicU8::new(0)).collect());
        let base = Region {
            name: NAMES[KEPT],
            slot: 0,
            places: [0, 0],
            pages: 1024,
            per_table: spread,
            hva: 0,
            may_fault: false,
            ledger: ledger(1024),
        };
        let table = TABLE_ENTRIES as u64;
        let mut regions = [
            base,
            Region {
                name: NAMES[HUGE],
                slot: 1,
                places: [128 * table; 2],
                per_table: table,
                ledger: ledger(1024),
                ..plain()
            },
            Region {
                name: NAMES[MOVING],
                slot: 2,
                places: [160 * table, 192 * table + 64],
                pages: 128,
                may_fault: true,
                ledger: ledger(128),
                ..plain()
            },
            Region {
                name: NAMES[UNMAPPED],
                slot: 3,
                places: [224 * table; 2],
                pages: 128,
                may_fault: true,
                ..plain()
            },
        ];
        let space = host.create_space(Kind::Anon, 0);
        let file = host.create_space(Kind::File, regions[MOVING].slot_pages());
        for (n, region) in regions.iter_mut().enumerate() {
            let flags = VmFlags {
                locked: n == UNMAPPED,
                hugetlb_order: if n == HUGE { 9 } else { 0 },
                ..VmFlags::default()
            };
            let pages = region.slot_pages();
            let space = match n {
                UNMAPPED => Arc::clone(&space),
                MOVING => Arc::clone(&file),
                _ => host.create_space(Kind::Anon, 0),
            };
            region.hva = mm.mmap(None, pages * PAGE_SIZE, &space, 0, flags)?;
        }
        // While frames are not scattered yet.
        for page in (0..1024).step_by(512) {
            mm.touch(&setup, regions[HUGE].hva_of(page), true, None)?;
        }
        let vm = Vm::create(&setup, &mm, config)?;
        let room = Room {
            memcg,
            permits: Permits::new(&regions, vm.config.shadow.guest_level),
            regions,
            seed: options.seed,
            copies: [KEPT, HUGE].map(|_| {
                Mutex::new(Copy {
                    follows: false,
                    bytes: vec![0; 1024],
                })
            }),
            rcu: Exhibit::new("rcu"),
            srcu: Exhibit::new("srcu"),
            space,
            file,
            stop: AtomicBool::new(false),
            made: (0..options.vcpus)
                .map(|_| CachePadded::new(AtomicU64::new(0)))
                .collect(),
            deeds: std::array::from_fn(|_| Tally::new(0)),
            inside: Mutex::new(0),
            left: Condvar::new(),
            failure: Mutex::new(None),
            machine,
            host,
            mm,
            vm,
        };
        for region in &room.regions {
            room.set_slot(&setup, region, Some(0), 0)?;
        }
        Ok(room)
    }

    /// Create, move or change a region's memslot, or delete it.
    pub fn set_slot(
        &self,
        cpu: &Cpu,
        region: &Region,
        place: Option<usize>,
        flags: u32,
    ) -> Result<()> {
        let pages = if place.is_some() {
            region.slot_pages()
        } else {
            0
        };
        self.vm.set_memory_region(
            cpu,
            &MemoryRegion {
                as_id: 0,
                slot: region.slot,
                flags,
                guest_phys_addr: region.places[place.unwrap_or(0)] * PAGE_SIZE,
                memory_size: pages * PAGE_SIZE,
                userspace_addr: region.hva,
            },
        )
    }

    /// Start or stop the dirty log of a region.
    pub fn log_dirty(&self, cpu: &Cpu, region: &Region, on: bool) -> Result<()> {
        self.set_slot(cpu, region, Some(0), if on { LOG_DIRTY_PAGES } else { 0 })
    }

    /// The byte in page `n` of a region, wherever it is.
    pub fn byte(&self, cpu: &Cpu, region: &Region, n: u64) -> Result<u8> {
        let address = region.hva_of(n);
        loop {
            {
                let _rcu = cpu.rcu.lock();
                let (at, _) = self.mm.lookup(address);
                // Under the lock the frame stays the page's.
                let _ptl = self.mm.tables.meta(at.table).ptl.lock();
                let pte = self.mm.read(at);
                if pte.is_leaf(at.level) {
                    let memory = &self.host.memory;
                    let within = (address >> 12) & ((1 << (9 * (at.level - 1))) - 1);
                    let pfn = crate::mm::Pfn(pte.pfn().0 + within as u32);
                    let zero = pte.has(SPECIAL);
                    return Ok(if zero {
                        0
                    } else {
                        memory.content(pfn).load(RELAXED)
                    });
                }
            }
            self.mm.gup(cpu, address, false)?;
        }
    }

    /// Random numbers for one thread.
    pub fn dice(&self, thread: u64) -> Dice {
        Dice::seed_from_u64(self.seed ^ (thread + 1).wrapping_mul(0xa076_1d64_78bd_642f))
    }

    /// Say what went wrong, and end the round. The first to say it is heard.
    pub fn fail(&self, what: String) {
        self.failure.lock().get_or_insert(what);
        self.stop();
    }

    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    pub fn stop(&self) {
        self.stop.store(true, RELAXED);
    }

    pub fn is_stopped(&self) -> bool {
        self.stop.load(RELAXED)
    }

    pub fn describe(&self) -> String {
        self.machine.clone()
    }

    /// Count accesses of a vCPU.
    pub fn made(&self, vcpu: u32, accesses: u64) {
        self.made[vcpu as usize].fetch_add(accesses, RELAXED);
    }

    pub fn accesses(&self) -> u64 {
        self.made.iter().map(|made| made.load(RELAXED)).sum()
    }

    pub fn did(&self, deed: Deed) {
        self.did_n(deed, 1);
    }

    pub fn did_n(&self, deed: Deed, n: u64) {
        self.deeds[deed as usize].fetch_add(n, RELAXED);
    }

    pub fn deeds(&self) -> Vec<(&'static str, u64)> {
        let counts = self.deeds.iter().map(|n| n.load(RELAXED));
        DEEDS.iter().copied().zip(counts).collect()
    }

    /// Count threads in that are about to start.
    pub fn enter(&self, threads: usize) {
        *self.inside.lock() += threads;
    }

    /// A thread ends.
    pub fn leave(&self) {
        *self.inside.lock() -= 1;
        self.left.notify_all();
    }

    /// How many threads have not left.
    pub fn leaving(&self) -> usize {
        *self.inside.lock()
    }

    /// Wait a while for all to leave; whether they have.
    pub fn wait(&self, time: Duration) -> bool {
        let mut inside = self.inside.lock();
        if *inside > 0 {
            self.left.wait_for(&mut inside, time);
        }
        *inside == 0
    }

    /// What must be gone when the room is: each names itself for as long as
    /// something owns it.
    pub fn owned(&self) -> Vec<Alive> {
        fn alive<T: Send + Sync + 'static>(name: &'static str, object: &Arc<T>) -> Alive {
            let object = Arc::downgrade(object);
            Box::new(move || (object.strong_count() > 0).then_some(name))
        }
        let mut owned = vec![
            alive("the host", &self.host),
            alive("the process", &self.mm),
            alive("the VM", &self.vm),
            alive("the memory cgroup", &self.memcg),
            alive("the file", &self.file),
            alive("anonymous memory", &self.space),
        ];
        if let Some(tdp) = &self.vm.tdp {
            owned.push(alive("the tables of the TDP MMU", &tdp.tables));
        }
        if let Some(shadow) = &self.vm.shadow {
            owned.push(alive("the tables of the shadow MMU", shadow.tables()));
        }
        owned
    }

    /// A per-CPU area.
    pub fn cpu(&self) -> Cpu {
        cpu(self)
    }
}

fn plain() -> Region {
    Region {
        name: "",
        slot: 0,
        places: [0, 0],
        pages: 1024,
        per_table: TABLE_ENTRIES as u64,
        hva: 0,
        may_fault: false,
        ledger: None,
    }
}
