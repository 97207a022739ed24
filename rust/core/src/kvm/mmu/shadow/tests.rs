//! Each test names the statement that it checks.

use super::*;
use crate::access::Access;
use crate::host::{Host, HostConfig};
use crate::kvm::guest::{GuestFaultKind, GuestPaging, alias_address};
use crate::kvm::mmu::ShadowMmu;
use crate::kvm::mmu::rmap::RMAP_LOCKED;
use crate::kvm::protocol::Protocol;
use crate::kvm::vcpu::RunOptions;
use crate::kvm::vm::{HvaRange, NO_LOCK, VmConfig};
use crate::mm::{Mm, MmuNotifier, PAGE_SIZE};
use crate::sync::thread;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// A VM of `pages` pages from frame 0 on.
struct Machine {
    host: Arc<Host>,
    mm: Arc<Mm>,
    vm: Arc<Vm>,
    base: u64,
    pages: u64,
}

impl Machine {
    fn new(pages: u64, config: VmConfig) -> (Machine, Cpu) {
        Self::with_flags(pages, config, VmFlags::default())
    }

    fn with_flags(pages: u64, config: VmConfig, flags: VmFlags) -> (Machine, Cpu) {
        let host = Host::new(&HostConfig {
            nodes: vec![pages * 2 + 8192],
            swap_pages: 1024,
            virtual_clock: true,
        })
        .expect("host");
        let cpu = Cpu::new(&host);
        let mm = host.create_mm(0).expect("mm");
        let space = host.create_space(Kind::Anon, pages);
        let base = mm
            .mmap(None, pages * PAGE_SIZE, &space, 0, flags)
            .expect("mmap");
        let vm = Vm::create(&cpu, &mm, config).expect("vm");
        vm.set_memory_region(
            &cpu,
            &MemoryRegion {
                as_id: 0,
                slot: 0,
                flags: 0,
                guest_phys_addr: 0,
                memory_size: pages * PAGE_SIZE,
                userspace_addr: base,
            },
        )
        .expect("slot");
        let machine = Machine {
            host,
            mm,
            vm,
            base,
            pages,
        };
        (machine, cpu)
    }

    fn shadow(&self) -> &Shadow {
        self.vm.shadow.as_deref().expect("has one")
    }

    fn kernel(&self) -> &GuestKernel {
        self.shadow().kernel().expect("indirect")
    }

    fn touch(&self, cpu: &Cpu, page: u64, write: bool) {
        self.vm
            .access(cpu, 0, page, write, None)
            .unwrap_or_else(|e| panic!("page {page}: {e}"));
    }

    fn hva(&self, gfn: u64) -> u64 {
        self.base + gfn * PAGE_SIZE
    }

    fn young(&self, cpu: &Cpu, gfn: u64) -> bool {
        self.vm.test_young(cpu, self.hva(gfn), false)
    }

    /// `clear_young` over pages, by the notifier.
    fn age(&self, cpu: &Cpu, gfns: std::ops::Range<u64>, fast_only: bool) -> bool {
        self.vm
            .clear_young(cpu, self.hva(gfns.start), self.hva(gfns.end), fast_only)
    }

    fn verify(&self, cpu: &Cpu) {
        self.shadow().verify(&self.vm, cpu).expect("consistent");
        cpu.check_error().expect("nothing raised");
        for counter in [Counter::PoisonReads, Counter::RmapCorrupt] {
            assert_eq!(cpu.counters.get(counter), 0, "{counter:?}");
        }
    }

    /// Chain lengths of a frame's 4 KiB, 2 MiB and 1 GiB rmaps.
    fn chains(&self, cpu: &Cpu, gfn: u64) -> [u64; 3] {
        self.shadow().chain_lengths(&self.vm, cpu, 0, gfn)
    }

    fn destroy(self, cpu: &Cpu) {
        self.vm.destroy(cpu).expect("destroyed");
        cpu.rcu.flush();
        self.host.rcu.barrier();
        assert_eq!(self.shadow().tables.live(), 0, "every table freed once");
        assert_eq!(self.shadow().descriptors().0, 0, "every descriptor too");
        assert_eq!(self.shadow().indirect_shadow_pages(), 0);
    }
}

fn shadow(protocol: Protocol) -> VmConfig {
    VmConfig {
        protocol,
        mmu: MmuKind::Shadow,
        format: SpteFormat::NPT,
        ..VmConfig::default()
    }
}

fn direct(protocol: Protocol, ad: bool) -> VmConfig {
    VmConfig {
        format: if ad {
            SpteFormat::EPT
        } else {
            SpteFormat::EPT_NO_AD
        },
        shadow: ShadowConfig {
            direct: true,
            ..ShadowConfig::default()
        },
        ..shadow(protocol)
    }
}

fn nested(protocol: Protocol, l1_ad: bool) -> VmConfig {
    VmConfig {
        mmu: MmuKind::Nested,
        format: SpteFormat::EPT,
        shadow: ShadowConfig {
            l1_ad,
            ..ShadowConfig::default()
        },
        ..shadow(protocol)
    }
}

fn aliased(config: VmConfig, aliases: u64) -> VmConfig {
    VmConfig {
        shadow: ShadowConfig {
            aliases,
            ..config.shadow
        },
        ..config
    }
}

const PROTOCOLS: [Protocol; 3] = [Protocol::BASELINE, Protocol::V7, Protocol::V9];

#[test]
fn guest_pages_are_mapped_from_the_guests_own_tables() {
    for config in [
        shadow(Protocol::V7),
        direct(Protocol::V7, true),
        direct(Protocol::V7, false),
    ] {
        let (m, cpu) = Machine::new(2048, config);
        for page in [0, 1, 511, 512, 2047] {
            m.touch(&cpu, page, page % 2 == 0);
            assert_eq!(m.chains(&cpu, page), [1, 0, 0]);
        }
        assert_eq!(m.chains(&cpu, 2), [0, 0, 0]);
        m.verify(&cpu);
        m.destroy(&cpu);
    }
}
