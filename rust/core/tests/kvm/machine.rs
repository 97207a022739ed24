//! A host with one VM, for tests.

use std::sync::Arc;
use youngbit_core::access::AccessKind;
use youngbit_core::host::ROOT_MEMCG;
use youngbit_core::kvm::memslot::LOG_DIRTY_PAGES;
use youngbit_core::kvm::mmu::shadow::ShadowConfig;
use youngbit_core::kvm::mmu::spte::SpteFormat;
use youngbit_core::kvm::mmu::tdp::TdpMmu;
use youngbit_core::kvm::{MemoryRegion, MmuKind, Protocol, Vm, VmConfig};
use youngbit_core::mm::{FolioWord, Kind, Mm, PAGE_SIZE, VmFlags, folio};
use youngbit_core::sync::atomic::{AtomicBool, Ordering};
use youngbit_core::sync::thread;
use youngbit_core::trace::{Counter, CounterValues};
use youngbit_core::{Cpu, Host, HostConfig};

/// A host, a process with one mapping, and a VM with one slot that shows it.
pub struct Machine {
    pub vm: Arc<Vm>,
    pub mm: Arc<Mm>,
    pub cpu: Cpu,
    pub host: Arc<Host>,
    pub hva: u64,
}

/// How a machine's memory is mapped by the host.
#[derive(Clone, Copy)]
pub enum Backing {
    Small,
    /// hugetlb of 2 MiB (9) or 1 GiB (18).
    Huge(u32),
}

impl Machine {
    pub fn new(pages: u64, config: VmConfig) -> Self {
        Self::backed(pages, config, Backing::Small, 0)
    }

    pub fn backed(pages: u64, config: VmConfig, backing: Backing, flags: u32) -> Self {
        let host = Host::new(&HostConfig {
            nodes: vec![2 * pages + 1024],
            swap_pages: 0,
            virtual_clock: true,
        })
        .expect("a valid host");
        let cpu = Cpu::new(&host);
        let mm = host
            .create_mm(ROOT_MEMCG)
            .expect("the root cgroup is there");
        let space = host.create_space(Kind::Anon, 0);
        let vm_flags = VmFlags {
            hugetlb_order: match backing {
                Backing::Small => 0,
                Backing::Huge(order) => order,
            },
            ..VmFlags::default()
        };
        let hva = mm
            .mmap(None, pages * PAGE_SIZE, &space, 0, vm_flags)
            .expect("room");
        let vm = Vm::create(&cpu, &mm, config).expect("a valid VM");
        let machine = Machine {
            vm,
            mm,
            cpu,
            host,
            hva,
        };
        machine.slot(0, 0, flags, 0, pages, hva);
        if machine.vm.config.mmu == MmuKind::Nested {
            for vcpu in 0..machine.vm.config.vcpus {
                machine
                    .vm
                    .set_guest_mode(&machine.cpu, vcpu, true)
                    .expect("nested");
            }
        }
        machine
    }

    pub fn v7(pages: u64) -> Self {
        Self::new(pages, VmConfig::default())
    }

    pub fn slot(&self, as_id: usize, slot: u32, flags: u32, gfn: u64, pages: u64, hva: u64) {
        self.try_slot(as_id, slot, flags, gfn, pages, hva)
            .expect("a valid slot");
    }

    pub fn try_slot(
        &self,
        as_id: usize,
        slot: u32,
        flags: u32,
        gfn: u64,
        pages: u64,
        hva: u64,
    ) -> youngbit_core::Result<()> {
        self.vm.set_memory_region(
            &self.cpu,
            &MemoryRegion {
                as_id,
                slot,
                flags,
                guest_phys_addr: gfn * PAGE_SIZE,
                memory_size: pages * PAGE_SIZE,
                userspace_addr: hva,
            },
        )
    }

    pub fn tdp(&self) -> &TdpMmu {
        self.vm.tdp.as_ref().expect("the VM has the TDP MMU")
    }

    pub fn read(&self, gfn: u64) {
        self.vm
            .access(&self.cpu, 0, gfn, false, None)
            .expect("memory is there");
    }

    pub fn write(&self, gfn: u64) {
        self.vm
            .access(&self.cpu, 0, gfn, true, None)
            .expect("memory is there");
    }

    pub fn fetch(&self, gfn: u64) {
        self.vm
            .access(&self.cpu, 0, gfn, AccessKind::Fetch, None)
            .expect("memory is there");
    }

    pub fn hva_of(&self, gfn: u64) -> u64 {
        self.hva + gfn * PAGE_SIZE
    }

    /// Age `pages` from `gfn` on, as the aging walk asks.
    pub fn age(&self, gfn: u64, pages: u64) -> bool {
        let start = self.hva_of(gfn);
        self.mm
            .notifiers
            .clear_young(&self.cpu, start, start + pages * PAGE_SIZE, false)
    }

    pub fn is_young(&self, gfn: u64) -> bool {
        self.mm
            .notifiers
            .test_young(&self.cpu, self.hva_of(gfn), false)
    }

    /// Level and value of the leaf that maps `gfn`.
    pub fn leaf(&self, gfn: u64) -> Option<(u32, u64)> {
        self.tdp().leaf(&self.cpu, 0, gfn)
    }

    pub fn spte(&self, gfn: u64) -> u64 {
        self.leaf(gfn).expect("mapped").1
    }

    /// The folio flag that zapping passes dirty on to.
    pub fn folio(&self, gfn: u64) -> youngbit_core::mm::Word {
        let page = self
            .mm
            .gup_fast(&self.cpu, self.hva_of(gfn), false)
            .expect("the host maps it");
        let memory = &self.host.memory;
        memory.word(memory.head(page.pfn)).get()
    }

    pub fn clean_folio(&self, gfn: u64) {
        let page = self
            .mm
            .gup_fast(&self.cpu, self.hva_of(gfn), false)
            .expect("the host maps it");
        let memory = &self.host.memory;
        memory
            .word(memory.head(page.pfn))
            .clear(folio::DIRTY | folio::REFERENCED | folio::WORKINGSET);
    }

    /// What `f` counts.
    pub fn counting(&self, f: impl FnOnce()) -> CounterValues {
        let before = self.cpu.counters.snapshot();
        f();
        self.cpu.counters.snapshot().since(&before)
    }

    pub fn count(&self, counter: Counter, f: impl FnOnce()) -> u64 {
        self.counting(f).get(counter)
    }

    /// Start or stop logging of dirty pages in slot 0.
    pub fn log_dirty(&self, on: bool) {
        let flags = if on { LOG_DIRTY_PAGES } else { 0 };
        let slot = self.vm.memslots.all(&self.cpu)[0].clone();
        self.slot(0, 0, flags, slot.base_gfn, slot.npages, slot.userspace_addr);
    }

    pub fn dirty_log(&self) -> Vec<u64> {
        let words = self
            .vm
            .get_dirty_log(&self.cpu, 0, 0)
            .expect("the slot logs");
        (0..words.len() as u64 * 64)
            .filter(|page| words[(page / 64) as usize] >> (page % 64) & 1 != 0)
            .collect()
    }

    /// Tear down, and check that nothing is left of it.
    pub fn finish(self) {
        self.vm.destroy(&self.cpu).expect("destroyed once");
        self.host.rcu.barrier();
        let counters = self.cpu.counters.snapshot();
        assert_eq!(counters.get(Counter::PoisonReads), 0);
        if let Some(tdp) = &self.vm.tdp {
            assert_eq!(tdp.tables.live(), 0, "every table was freed");
            assert!(tdp.roots(&self.cpu).is_empty());
        }
        assert_eq!(counters.get(Counter::RmapCorrupt), 0);
        if let Some(shadow) = &self.vm.shadow {
            assert_eq!(shadow.tables().live(), 0, "every shadow page was freed");
            assert_eq!(shadow.descriptors().0, 0, "and every descriptor");
        }
    }
}

/// What threads share of a machine: everything but its `Cpu`.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    pub vm: &'a Vm,
    pub mm: &'a Arc<Mm>,
    pub host: &'a Arc<Host>,
    pub hva: u64,
}

impl Machine {
    pub fn parts(&self) -> Parts<'_> {
        Parts {
            vm: &self.vm,
            mm: &self.mm,
            host: &self.host,
            hva: self.hva,
        }
    }
}

impl<'a> Parts<'a> {
    pub fn hva_of(&self, gfn: u64) -> u64 {
        self.hva + gfn * PAGE_SIZE
    }

    pub fn tdp(&self) -> &TdpMmu {
        self.vm.tdp.as_ref().expect("the VM has the TDP MMU")
    }

    /// Whether any MMU of the VM maps the frame.
    pub fn maps(&self, cpu: &Cpu, gfn: u64) -> bool {
        let tdp = self.vm.tdp.as_ref();
        let shadow = self.vm.shadow.as_deref();
        tdp.is_some_and(|tdp| tdp.leaf(cpu, 0, gfn).is_some())
            || shadow.is_some_and(|shadow| {
                shadow
                    .chain_lengths(self.vm, cpu, 0, gfn)
                    .iter()
                    .sum::<u64>()
                    > 0
            })
    }

    pub fn age(&self, cpu: &Cpu, gfn: u64, pages: u64) -> bool {
        let (start, end) = (self.hva_of(gfn), self.hva_of(gfn + pages));
        self.mm.notifiers.clear_young(cpu, start, end, false)
    }

    /// Run `f` again and again in a thread of its own, until `stop`.
    pub fn spawn<'scope>(
        self,
        scope: &'scope thread::Scope<'scope, '_>,
        stop: &'scope AtomicBool,
        mut f: impl FnMut(Self, &Cpu) + Send + 'scope,
    ) where
        'a: 'scope,
    {
        scope.spawn(move || {
            let cpu = Cpu::new(self.host);
            while !stop.load(Ordering::Relaxed) {
                f(self, &cpu);
                cpu.check_error().expect("no callback fails");
                thread::yield_now();
            }
        });
    }
}

pub fn config(protocol: Protocol, format: SpteFormat) -> VmConfig {
    VmConfig {
        protocol,
        format,
        ..VmConfig::default()
    }
}

/// Whether a test with threads has done enough: `wanted` rounds, or fewer where
/// the machine is busy with other things.
pub fn enough(start: std::time::Instant, done: u64, wanted: u64) -> bool {
    done >= wanted || (done >= 3 && start.elapsed().as_millis() > 500)
}

/// Protocols, formats and machines that differ in how SPTEs are written: the
/// TDP MMU, direct and indirect shadow pages, guests of guests.
pub fn distinct_configs() -> Vec<VmConfig> {
    [
        (Protocol::BASELINE, SpteFormat::EPT, TDP),
        (Protocol::BASELINE, SpteFormat::EPT_NO_AD, TDP),
        (Protocol::V7, SpteFormat::EPT, TDP),
        (Protocol::V7, SpteFormat::EPT_NO_AD, TDP),
        (Protocol::V9, SpteFormat::NPT, TDP),
        (Protocol::BASELINE, SpteFormat::NPT, PAGING),
        (Protocol::V7, SpteFormat::NPT, PAGING),
        (Protocol::V9, SpteFormat::EPT_NO_AD, DIRECT),
        (Protocol::V7, SpteFormat::EPT, NESTED),
        (Protocol::V9, SpteFormat::EPT, NESTED_NO_AD),
    ]
    .map(|(protocol, format, kind)| config(protocol, format).on(kind))
    .into()
}

/// What maps a guest's memory: the MMU, whether shadow pages are direct, and
/// whether L1 gives its guest A/D bits.
pub type OnMmu = (MmuKind, bool, bool);
pub const TDP: OnMmu = (MmuKind::Tdp, false, true);
/// Shadow paging of the guest's own tables.
pub const PAGING: OnMmu = (MmuKind::Shadow, false, true);
/// The TDP MMU switched off.
pub const DIRECT: OnMmu = (MmuKind::Shadow, true, true);
pub const NESTED: OnMmu = (MmuKind::Nested, false, true);
pub const NESTED_NO_AD: OnMmu = (MmuKind::Nested, false, false);
pub const MACHINES: [OnMmu; 5] = [TDP, PAGING, DIRECT, NESTED, NESTED_NO_AD];

pub trait On {
    /// The same on another machine.
    fn on(self, kind: OnMmu) -> Self;
}

impl On for VmConfig {
    fn on(self, (mmu, direct, l1_ad): OnMmu) -> Self {
        VmConfig {
            mmu,
            shadow: ShadowConfig {
                direct,
                // NPT always has them.
                l1_ad: l1_ad || self.format.name == "npt",
                ..self.shadow
            },
            ..self
        }
    }
}

/// Every protocol with every format.
pub fn configs() -> Vec<VmConfig> {
    let mut all = Vec::new();
    for &protocol in Protocol::ALL {
        for format in [SpteFormat::EPT, SpteFormat::EPT_NO_AD, SpteFormat::NPT] {
            all.push(config(protocol, format));
        }
    }
    all
}
