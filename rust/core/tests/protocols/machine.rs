//! A host with one small VM, as models use it.

use super::model::{self, host, spte_text};
use std::sync::Arc;
use youngbit_core::cpu::Cpu;
use youngbit_core::host::Host;
use youngbit_core::kvm::mmu::spte::{self, SpteFormat};
use youngbit_core::kvm::tlb::TlbConfig;
use youngbit_core::kvm::{MemoryRegion, MmuKind, Protocol, Vm, VmConfig};
use youngbit_core::mm::folio::DIRTY;
use youngbit_core::mm::{FolioWord, Kind, Mm, MmuNotifier, PAGE_SIZE, Pfn, VmFlags};
use youngbit_core::sync::atomic::{AtomicU64, Ordering};
use youngbit_core::table::TableId;
use youngbit_core::trace::Counter;

/// Where the mapping is.
pub const HVA: u64 = 4 * PAGE_SIZE;

#[derive(Clone)]
pub struct Machine {
    pub host: Arc<Host>,
    pub mm: Arc<Mm>,
    pub vm: Arc<Vm>,
}

/// A VM on the TDP MMU with that many vCPUs, whose TLBs are off.
pub fn config(vcpus: u32, format: SpteFormat, protocol: Protocol) -> VmConfig {
    VmConfig {
        protocol,
        format,
        mmu: MmuKind::Tdp,
        levels: 4,
        max_level: 1,
        vcpus,
        tlb: TlbConfig::OFF,
        ..VmConfig::default()
    }
}

impl Machine {
    /// One slot of `pages` at GFN 0.
    pub fn new(pages: u64, config: VmConfig) -> Self {
        Self::with_flags(pages, config, VmFlags::default())
    }

    pub fn with_flags(pages: u64, config: VmConfig, flags: VmFlags) -> Self {
        let host = host(4 * pages + 8);
        let here = Cpu::new(&host);
        let mm = host.create_mm(0).expect("the root cgroup exists");
        let space = host.create_space(Kind::Anon, 0);
        mm.mmap(Some(HVA), pages * PAGE_SIZE, &space, 0, flags)
            .expect("room");
        let vm = Vm::create(&here, &mm, config).expect("a valid VM");
        let machine = Machine { host, mm, vm };
        machine.slot(&here, 0, pages, 0);
        machine
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

    pub fn cpu(&self) -> Cpu {
        Cpu::new(&self.host)
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

    /// Age one page as MGLRU's walk does.
    pub fn age(&self, cpu: &Cpu, gfn: u64) -> bool {
        let at = HVA + gfn * PAGE_SIZE;
        self.vm.clear_young(cpu, at, at + PAGE_SIZE, true)
    }

    pub fn zap(&self, cpu: &Cpu, gfn: u64) {
        let at = HVA + gfn * PAGE_SIZE;
        self.vm.invalidate_range_start(cpu, at, at + PAGE_SIZE);
        self.vm.invalidate_range_end(cpu, at, at + PAGE_SIZE);
    }

    /// The leaf that maps `gfn`, if one does.
    pub fn leaf(&self, cpu: &Cpu, gfn: u64) -> Option<u64> {
        let tdp = self.vm.tdp.as_ref().expect("a TDP MMU");
        tdp.leaf(cpu, 0, gfn).map(|(_, spte)| spte)
    }

    fn root(&self, cpu: &Cpu) -> TableId {
        let tdp = self.vm.tdp.as_ref().expect("a TDP MMU");
        let roots = tdp.roots(cpu);
        roots
            .iter()
            .find(|root| !root.invalid)
            .expect("a root")
            .table
    }

    /// The word of the lowest entry on the way to `gfn`, for setting up and
    /// for the report.
    pub fn word(&self, cpu: &Cpu, gfn: u64) -> &AtomicU64 {
        let tdp = self.vm.tdp.as_ref().expect("a TDP MMU");
        let mut table = self.root(cpu);
        let mut level = self.vm.config.levels;
        loop {
            let word = &tdp.tables.entries(table)[spte::gfn_index(gfn, level)];
            let value = word.load(Ordering::Relaxed);
            if level == 1 || !spte::is_present(value) || spte::is_last(value, level) {
                return word;
            }
            table = spte::table(value);
            level -= 1;
        }
    }

    /// Change a leaf before the threads start.
    pub fn set_leaf(&self, cpu: &Cpu, gfn: u64, change: impl FnOnce(u64) -> u64) {
        let word = self.word(cpu, gfn);
        word.store(change(word.load(Ordering::Relaxed)), Ordering::Relaxed);
    }

    /// Give everything that leads to `gfn` a name in the report.
    pub fn name(&self, cpu: &Cpu, gfn: u64) {
        let tdp = self.vm.tdp.as_ref().expect("a TDP MMU");
        let mut table = self.root(cpu);
        let mut level = self.vm.config.levels;
        loop {
            let word = &tdp.tables.entries(table)[spte::gfn_index(gfn, level)];
            let value = word.load(Ordering::Relaxed);
            if level == 1 {
                model::name(word, &format!("SPTE of gfn {gfn}"), spte_text);
                return;
            }
            model::name(word, &format!("level-{level} SPTE of gfn {gfn}"), spte_text);
            if !spte::is_present(value) || spte::is_last(value, level) {
                return;
            }
            table = spte::table(value);
            level -= 1;
        }
    }

    /// The host frame behind `gfn` now.
    pub fn pfn(&self, gfn: u64) -> Pfn {
        self.mm.lookup(HVA + gfn * PAGE_SIZE).1.pfn()
    }

    pub fn content(&self, pfn: Pfn) -> u8 {
        self.host.memory.content(pfn).load(Ordering::Relaxed)
    }

    pub fn folio_is_dirty(&self, pfn: Pfn) -> bool {
        self.host.memory.word(pfn).get().has(DIRTY)
    }

    pub fn clean_folio(&self, pfn: Pfn) {
        self.host.memory.word(pfn).clear(DIRTY);
    }

    /// What must hold whatever ran.
    pub fn check(&self, cpu: &Cpu) {
        assert_eq!(
            cpu.counters.get(Counter::PoisonReads),
            0,
            "a freed table was read"
        );
        cpu.check_error().expect("no callback failed");
    }
}
