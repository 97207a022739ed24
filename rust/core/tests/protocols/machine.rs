//! A host with one small VM, as models use it.

use super::RELAXED;
use super::model::{self, host, spte_text};
use loom::thread::JoinHandle;
use std::sync::Arc;
use youngbit_core::access::{Pattern, Stream, StreamConfig};
use youngbit_core::cpu::Cpu;
use youngbit_core::host::{Host, ROOT_MEMCG};
use youngbit_core::kvm::mmu::ShadowMmu;
use youngbit_core::kvm::mmu::shadow::{Shadow, ShadowConfig};
use youngbit_core::kvm::mmu::spte::{self, SpteFormat};
use youngbit_core::kvm::mmu::tdp::TdpMmu;
use youngbit_core::kvm::tlb::TlbConfig;
use youngbit_core::kvm::vcpu::RunOptions;
use youngbit_core::kvm::{MemoryRegion, MmuKind, Protocol, Vm, VmConfig};
use youngbit_core::mm::folio::{DIRTY, REFERENCED};
use youngbit_core::mm::{FolioWord, Kind, Mm, MmuNotifier, PAGE_SIZE, PageMask, Pfn, VmFlags};
use youngbit_core::sync::atomic::AtomicU64;
use youngbit_core::table::{Arena, TableId};
use youngbit_core::trace::Counter;

/// Where the mapping is.
pub const HVA: u64 = 4 * PAGE_SIZE;
/// SPTEs with A/D bits, and without.
pub const EPT: SpteFormat = SpteFormat::EPT;
pub const NO_AD: SpteFormat = SpteFormat::EPT_NO_AD;

/// The vCPU that runs L1, or the only guest.
pub const L1: u32 = 0;
/// The vCPU that runs L2 where there is one.
pub const L2: u32 = 1;

/// What a model begins with: a VM of a few pages whose vCPUs' TLBs are off.
#[derive(Clone)]
pub struct Setup {
    pages: u64,
    config: VmConfig,
    flags: VmFlags,
    slot_flags: u32,
    mapped: bool,
    l2_mapped: bool,
    leaf: Option<Change>,
    l2_leaf: Option<Change>,
}

/// A change of a leaf.
type Change = fn(SpteFormat, u64) -> u64;

impl Setup {
    /// On the TDP MMU, one page, which vCPU 0 has written.
    pub fn tdp(format: SpteFormat, protocol: Protocol) -> Self {
        let config = VmConfig {
            protocol,
            format,
            max_level: 1,
            tlb: TlbConfig::OFF,
            ..VmConfig::default()
        };
        Setup {
            pages: 1,
            config,
            flags: VmFlags::default(),
            slot_flags: 0,
            mapped: true,
            l2_mapped: false,
            leaf: None,
            l2_leaf: None,
        }
    }

    /// Direct shadow pages: the TDP MMU switched off.
    pub fn direct(format: SpteFormat, protocol: Protocol) -> Self {
        let mut setup = Self::tdp(format, protocol);
        setup.config.mmu = MmuKind::Shadow;
        setup.config.shadow.direct = true;
        setup
    }

    /// A guest with a guest: vCPU 0 runs L1 on the TDP MMU, vCPU 1 runs L2 on
    /// the shadow MMU, by tables that L1 gave it, with A/D bits or without.
    /// Both have written the page.
    pub fn nested(l1_ad: bool, protocol: Protocol) -> Self {
        let mut setup = Self::tdp(EPT, protocol);
        setup.config.mmu = MmuKind::Nested;
        setup.config.shadow = ShadowConfig {
            l1_ad,
            ..ShadowConfig::default()
        };
        setup.l2_mapped = true;
        setup.vcpus(2)
    }

    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.config.vcpus = vcpus;
        self
    }

    pub fn pages(mut self, pages: u64) -> Self {
        self.pages = pages;
        self
    }

    /// Backed by huge pages of two small ones, and mapped by them.
    pub fn huge(mut self) -> Self {
        self.config.max_level = 2;
        self.flags.hugetlb_order = 1;
        self
    }

    /// A slot that goes is unmapped leaf by leaf; otherwise every root goes.
    pub fn zaps_leaves(mut self) -> Self {
        self.config.slot_zap_all = false;
        self
    }

    /// What the slot is made with.
    pub fn slot_flags(mut self, flags: u32) -> Self {
        self.slot_flags = flags;
        self
    }

    /// No vCPU has run.
    pub fn untouched(mut self) -> Self {
        self.mapped = false;
        self
    }

    /// L2 has not run.
    pub fn l2_untouched(mut self) -> Self {
        self.l2_mapped = false;
        self
    }

    /// Change vCPU 0's leaf of GFN 0 before the threads start.
    pub fn leaf(mut self, change: Change) -> Self {
        self.leaf = Some(change);
        self
    }

    /// Change L2's.
    pub fn l2_leaf(mut self, change: Change) -> Self {
        self.l2_leaf = Some(change);
        self
    }

    /// The VM, with folios clean and not referenced, and its words named.
    fn build(&self) -> (Machine, Cpu) {
        let host = host(4 * self.pages + 16);
        let here = Cpu::new(&host);
        let mm = host.create_mm(ROOT_MEMCG).expect("the root cgroup exists");
        let space = host.create_space(Kind::Anon, 0);
        mm.mmap(Some(HVA), self.pages * PAGE_SIZE, &space, 0, self.flags)
            .expect("room");
        let vm = Vm::create(&here, &mm, self.config.clone()).expect("a valid VM");
        let machine = Machine { host, mm, vm };
        machine.slot(&here, 0, self.pages, self.slot_flags);
        if self.config.mmu == MmuKind::Nested {
            machine
                .vm
                .set_guest_mode(&here, L2, true)
                .expect("a nested VM");
        }
        if self.mapped {
            machine.write(&here, L1, 0, 1);
            if self.l2_mapped {
                machine.write(&here, L2, 0, 1);
            }
            let change = |word: &AtomicU64, change: Option<Change>| {
                if let Some(change) = change {
                    word.store(change(self.config.format, word.load(RELAXED)), RELAXED);
                }
            };
            change(machine.word(&here, 0), self.leaf);
            if self.l2_mapped {
                change(machine.shadow_word(L2), self.l2_leaf);
            }
            for gfn in 0..self.pages {
                let pfn = machine.pfn(gfn);
                if machine.mm.lookup(HVA + gfn * PAGE_SIZE).1.is_present() {
                    machine.host.memory.word(pfn).clear(DIRTY | REFERENCED);
                }
            }
            machine.name(&here);
        }
        (machine, here)
    }

    /// Check a model of this VM. What must hold whatever ran is checked when
    /// it ends.
    pub fn check(&self, claim: &str, model: impl Fn(&Machine, &Cpu) + Send + Sync + 'static) {
        let setup = self.clone();
        model::check(claim, move || {
            let (machine, here) = setup.build();
            model(&machine, &here);
            machine.check(&here);
        });
    }
}

#[derive(Clone)]
pub struct Machine {
    pub host: Arc<Host>,
    pub mm: Arc<Mm>,
    pub vm: Arc<Vm>,
}

impl Machine {
    /// A thread of the model, with a processor of its own.
    pub fn spawn<T: 'static>(
        &self,
        name: &'static str,
        body: impl FnOnce(&Machine, &Cpu) -> T + 'static,
    ) -> JoinHandle<T> {
        let machine = self.clone();
        model::spawn(name, move || {
            let cpu = machine.cpu();
            let result = body(&machine, &cpu);
            machine.check(&cpu);
            result
        })
    }

    pub fn slot(&self, cpu: &Cpu, gfn: u64, pages: u64, flags: u32) {
        let region = MemoryRegion {
            as_id: 0,
            slot: 0,
            flags,
            guest_phys_addr: gfn * PAGE_SIZE,
            memory_size: pages * PAGE_SIZE,
            userspace_addr: HVA,
        };
        self.vm
            .set_memory_region(cpu, &region)
            .expect("a valid region");
    }

    /// A second slot, far from the first, that shows the same memory; with 0
    /// pages it goes.
    pub fn other_slot(&self, cpu: &Cpu, pages: u64) {
        let region = MemoryRegion {
            as_id: 0,
            slot: 1,
            flags: 0,
            guest_phys_addr: 4 * PAGE_SIZE,
            memory_size: pages * PAGE_SIZE,
            userspace_addr: HVA,
        };
        self.vm
            .set_memory_region(cpu, &region)
            .expect("a valid region");
    }

    pub fn cpu(&self) -> Cpu {
        Cpu::new(&self.host)
    }

    pub fn tdp(&self) -> &TdpMmu {
        self.vm.tdp.as_ref().expect("a TDP MMU")
    }

    pub fn shadow(&self) -> &Shadow {
        self.vm.shadow.as_deref().expect("a shadow MMU")
    }

    pub fn write(&self, cpu: &Cpu, vcpu: u32, gfn: u64, byte: u8) {
        self.vm
            .access(cpu, vcpu, gfn, true, Some(byte))
            .expect("memory is there");
    }

    pub fn read(&self, cpu: &Cpu, vcpu: u32, gfn: u64) {
        self.vm
            .access(cpu, vcpu, gfn, false, None)
            .expect("memory is there");
    }

    /// Whether MGLRU's aging asks this VM `fast_only`, by its protocol.
    pub fn fast_only(&self) -> bool {
        self.vm.protocol().has_fast_aging
    }

    /// Age one page as MGLRU's walk does.
    pub fn age(&self, cpu: &Cpu, gfn: u64) -> bool {
        let at = HVA + gfn * PAGE_SIZE;
        self.vm
            .clear_young(cpu, at, at + PAGE_SIZE, self.fast_only())
    }

    /// Age one page by the call that takes many.
    pub fn age_batched(&self, cpu: &Cpu, gfn: u64) -> bool {
        let mut wanted = PageMask::EMPTY;
        wanted.set(gfn as usize);
        let young = self
            .vm
            .clear_young_each(cpu, HVA, &wanted, self.fast_only());
        young.has(gfn as usize)
    }

    pub fn test(&self, cpu: &Cpu, gfn: u64) -> bool {
        self.vm
            .test_young(cpu, HVA + gfn * PAGE_SIZE, self.fast_only())
    }

    /// Where the guest's own leaf for page 0 is: frame and index.
    pub fn guest_leaf(&self, cpu: &Cpu) -> (u64, usize) {
        let shadow = self.shadow();
        let kernel = shadow.kernel().expect("the guest has tables");
        let view = shadow.guest_cpu(&self.vm, cpu, 0);
        let entry = kernel.entry(&view, 0, 1).expect("memory is there");
        entry.expect("the guest maps the page")
    }

    /// A leaf of the guest's own that lets no fetch through any more.
    pub fn without_fetches(&self, (gfn, index): (u64, usize)) -> u64 {
        let shadow = self.shadow();
        let paging = shadow.kernel().expect("the guest has tables").paging;
        paging.with_executable(shadow.memory.load(gfn, index), false)
    }

    /// Two writes of vCPU 0 to page 0, in one stay in the guest if nothing ends
    /// it.
    pub fn write_twice(&self, cpu: &Cpu, byte: u8) {
        let config = StreamConfig {
            pattern: Pattern::Sequential,
            start: 0,
            end: 1,
            accesses: 2,
            write_ratio: 1.0,
            seed: 0,
        };
        let mut streams = [Stream::new(&config).expect("a valid stream")];
        let options = RunOptions {
            store: Some(byte),
            ..RunOptions::default()
        };
        self.vm
            .run_inline(cpu, &mut streams, &options)
            .expect("memory is there");
    }

    /// Every shadow page goes (`kvm_mmu_zap_all()`).
    pub fn zap_shadow(&self, cpu: &Cpu) {
        let _exclusive = self.vm.mmu_lock.write();
        self.shadow().zap_all(&self.vm, cpu);
    }

    pub fn zap(&self, cpu: &Cpu, gfn: u64) {
        let at = HVA + gfn * PAGE_SIZE;
        self.vm.invalidate_range_start(cpu, at, at + PAGE_SIZE);
        self.vm.invalidate_range_end(cpu, at, at + PAGE_SIZE);
    }

    /// The leaf that maps `gfn` in the TDP MMU, if one does.
    pub fn leaf(&self, cpu: &Cpu, gfn: u64) -> Option<u64> {
        self.tdp().leaf(cpu, 0, gfn).map(|(_, spte)| spte)
    }

    fn tdp_root(&self, cpu: &Cpu) -> TableId {
        let roots = self.tdp().roots(cpu);
        roots
            .iter()
            .find(|root| !root.invalid)
            .expect("a root")
            .table
    }

    /// The entries on the way from `root` to `gfn`, as far as there are any.
    fn way<'a, M: Default>(
        &self,
        tables: &'a Arena<M>,
        root: TableId,
        gfn: u64,
    ) -> Vec<(u32, &'a AtomicU64)> {
        let (mut table, mut level) = (root, self.vm.config.levels);
        let mut way = Vec::new();
        loop {
            let word = &tables.entries(table)[spte::gfn_index(gfn, level)];
            let value = word.load(RELAXED);
            way.push((level, word));
            if level == 1 || !spte::is_present(value) || spte::is_last(value, level) {
                return way;
            }
            table = spte::table(value);
            level -= 1;
        }
    }

    /// The links on the way to the leaf of `gfn` in the TDP MMU.
    pub fn links(&self, cpu: &Cpu, gfn: u64) -> Vec<u64> {
        let way = self.way(&self.tdp().tables, self.tdp_root(cpu), gfn);
        let above = &way[..way.len() - 1];
        above.iter().map(|(_, word)| word.load(RELAXED)).collect()
    }

    /// The lowest entry on the way to `gfn`: in the TDP MMU if there is one.
    pub fn word(&self, cpu: &Cpu, gfn: u64) -> &AtomicU64 {
        let way = match &self.vm.tdp {
            Some(tdp) => self.way(&tdp.tables, self.tdp_root(cpu), gfn),
            None => return self.shadow_word(L1),
        };
        way.last().expect("a root has entries").1
    }

    /// The leaf of GFN 0 in the shadow MMU's tables of a vCPU.
    pub fn shadow_word(&self, vcpu: u32) -> &AtomicU64 {
        let way = self.shadow_way(vcpu).expect("a shadow MMU, loaded");
        way.last().expect("a root has entries").1
    }

    fn shadow_way(&self, vcpu: u32) -> Option<Vec<(u32, &AtomicU64)>> {
        let shadow = self.vm.shadow.as_deref()?;
        let root = self.vm.vcpus.get(vcpu as usize)?.root()?;
        Some(self.way(shadow.tables(), root, 0))
    }

    /// Give everything that leads to the pages a name in the report.
    pub fn name(&self, cpu: &Cpu) {
        let name_way = |way: Vec<(u32, &AtomicU64)>, whose: &str| {
            for (level, word) in way {
                let above = match level {
                    1 => String::new(),
                    level => format!("level-{level} "),
                };
                model::name(word, &format!("{above}{whose}"), spte_text);
            }
        };
        if let Some(tdp) = &self.vm.tdp {
            // From the last, so that shared entries have the first's name.
            for gfn in (0..self.vm_pages(cpu)).rev() {
                let way = self.way(&tdp.tables, self.tdp_root(cpu), gfn);
                name_way(way, &format!("SPTE of gfn {gfn}"));
            }
        }
        if self.vm.shadow.is_some() {
            // Makes them too: the checker does not know what orders that.
            let guard = cpu.rcu.lock();
            let slots = self.vm.memslots.load(0, &guard);
            let rmaps = slots.by_gfn(0).expect("a slot").rmaps();
            model::name(rmaps.head(0, 1).0, "rmap head", model::head_text);
            model::name(rmaps.head(0, 2).0, "level-2 rmap head", model::head_text);
        }
        let shadow_vcpu = if self.vm.tdp.is_some() { L2 } else { L1 };
        let whose = match &self.vm.tdp {
            Some(_) => "L2's shadow SPTE of gfn 0",
            None => "SPTE of gfn 0",
        };
        if let Some(way) = self.shadow_way(shadow_vcpu) {
            name_way(way, whose);
        }
    }

    fn vm_pages(&self, cpu: &Cpu) -> u64 {
        let guard = cpu.rcu.lock();
        let slots = self.vm.memslots.load(0, &guard);
        slots.by_gfn(0).map_or(0, |slot| slot.npages)
    }

    /// The host frame behind `gfn` now.
    pub fn pfn(&self, gfn: u64) -> Pfn {
        self.mm.lookup(HVA + gfn * PAGE_SIZE).1.pfn()
    }

    pub fn content(&self, pfn: Pfn) -> u8 {
        self.host.memory.content(pfn).load(RELAXED)
    }

    pub fn folio_has(&self, pfn: Pfn, flag: u64) -> bool {
        self.host.memory.word(pfn).get().has(flag)
    }

    pub fn folio_is_dirty(&self, pfn: Pfn) -> bool {
        self.folio_has(pfn, DIRTY)
    }

    /// What must hold whatever ran.
    pub fn check(&self, cpu: &Cpu) {
        let poisoned = cpu.counters.get(Counter::PoisonReads);
        assert!(poisoned == 0, "a freed table or descriptor was read");
        let corrupt = cpu.counters.get(Counter::RmapCorrupt);
        assert!(corrupt == 0, "a chain led to an SPTE that maps nothing");
        cpu.check_error().expect("no callback failed");
    }

    /// The VM goes, and has given everything back.
    pub fn destroy(&self, cpu: &Cpu) {
        self.vm.destroy(cpu).expect("not destroyed yet");
        self.host.rcu.barrier();
        if let Some(tdp) = &self.vm.tdp {
            assert!(tdp.tables.live() == 0, "a table leaked");
        }
        if let Some(shadow) = &self.vm.shadow {
            assert!(shadow.tables().live() == 0, "a shadow page leaked");
            assert!(shadow.descriptors().0 == 0, "a descriptor leaked");
        }
    }
}
