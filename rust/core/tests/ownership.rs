//! Whatever a machine went through and however it ended, everything it was
//! made of is freed when its last owner lets go: nothing owns itself by way of
//! others, and nothing waits for a grace period that nobody ends.
#![cfg(not(loom))]

use std::sync::{Arc, Weak};
use youngbit_core::cpu::Cpu;
use youngbit_core::host::{Host, HostConfig, ROOT_MEMCG};
use youngbit_core::kvm::mmu::shadow::ShadowConfig;
use youngbit_core::kvm::mmu::spte::SpteFormat;
use youngbit_core::kvm::{MemoryRegion, MmuKind, Vm, VmConfig};
use youngbit_core::lru_gen;
use youngbit_core::mm::{Kind, PAGE_SIZE, VmFlags};

const PAGES: u64 = 64;

/// How a machine ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The VM is destroyed, then its process exits.
    InOrder,
    /// The process exits under the VM, which is destroyed after.
    ProcessFirst,
    /// The process exits, and nobody destroys the VM.
    NeverDestroyed,
    /// The owner just lets go of everything.
    LetGo,
}

/// Says whether an object is still owned.
type Alive = (&'static str, Box<dyn Fn() -> usize>);

fn watch<T: ?Sized + 'static>(name: &'static str, object: &Arc<T>) -> Alive {
    let object: Weak<T> = Arc::downgrade(object);
    (name, Box::new(move || object.strong_count()))
}

/// Make a machine, run it, age it, change its slots and its subscribers, end
/// it; what must be gone now.
fn live_and_die(config: VmConfig, end: End) -> Vec<Alive> {
    let host = Host::new(&HostConfig {
        nodes: vec![4096],
        swap_pages: 64,
        virtual_clock: true,
    })
    .expect("sizes");
    let cpu = Cpu::new(&host);
    let mm = host.create_mm(ROOT_MEMCG).expect("the root cgroup");
    let space = host.create_space(Kind::Anon, 0);
    let file = host.create_space(Kind::File, PAGES);
    let flags = VmFlags::default();
    let length = PAGES * PAGE_SIZE;
    let hva = mm.mmap(None, length, &space, 0, flags).expect("room");
    mm.mmap(None, length, &file, 0, flags).expect("room");
    let vm = Vm::create(&cpu, &mm, config.clone()).expect("a machine");
    let slot = |memory_size, guest_phys_addr| MemoryRegion {
        as_id: 0,
        slot: 0,
        flags: 0,
        guest_phys_addr,
        memory_size,
        userspace_addr: hva,
    };
    let run = || {
        for page in 0..PAGES {
            vm.access(&cpu, 0, page, true, Some(1))
                .expect("memory is there");
        }
    };
    vm.set_memory_region(&cpu, &slot(length, 0))
        .expect("a slot");
    run();
    lru_gen::age(&cpu, &mm.memcg, 0, true, true).expect("a pass");
    // Roots and slot sets are replaced, tables unlinked, lists of subscribers
    // left waiting: one subscriber leaves, one stays.
    vm.set_memory_region(&cpu, &slot(length, length))
        .expect("a move");
    vm.set_memory_region(&cpu, &slot(length, 0)).expect("back");
    run();
    let another = || Vm::create(&cpu, &mm, config.clone()).expect("another machine");
    let (passing, staying) = (another(), another());
    let watched = vec![
        watch("the host", &host),
        watch("the memory cgroup", &mm.memcg),
        watch("the process", &mm),
        watch("the VM", &vm),
        watch("the file", &file),
        watch("the anonymous memory", &space),
        watch("the VM that left before", &passing),
        watch("the VM that stayed", &staying),
    ];
    passing.destroy(&cpu).expect("once");
    // What waits when the host goes is run by it, even what would otherwise
    // keep alive the domain in which it waits.
    for (reader, domain) in [(&cpu.rcu, &host.rcu), (&cpu.srcu, &host.srcu)] {
        let owned = (Arc::clone(&vm), domain.clone());
        reader.lock().defer(move || drop(owned));
    }
    match end {
        End::InOrder => {
            vm.destroy(&cpu).expect("once");
            host.exit_mm(&cpu, &mm);
        }
        End::ProcessFirst => {
            host.exit_mm(&cpu, &mm);
            vm.destroy(&cpu).expect("once");
            vm.destroy(&cpu).expect_err("twice");
        }
        End::NeverDestroyed => host.exit_mm(&cpu, &mm),
        End::LetGo => {}
    }
    watched
}

#[test]
fn every_machine_returns_its_memory() {
    let direct = |direct| ShadowConfig {
        direct,
        ..ShadowConfig::default()
    };
    for (mmu, shadow, format) in [
        (MmuKind::Tdp, direct(false), SpteFormat::EPT),
        (MmuKind::Shadow, direct(true), SpteFormat::EPT_NO_AD),
        (MmuKind::Shadow, direct(false), SpteFormat::NPT),
        (MmuKind::Nested, direct(false), SpteFormat::EPT),
    ] {
        for end in [
            End::InOrder,
            End::ProcessFirst,
            End::NeverDestroyed,
            End::LetGo,
        ] {
            let config = VmConfig {
                mmu,
                shadow,
                format,
                ..VmConfig::default()
            };
            let watched = live_and_die(config, end);
            let left: Vec<_> = watched
                .iter()
                .filter(|(_, owners)| owners() != 0)
                .map(|(name, owners)| (name, owners()))
                .collect();
            assert!(left.is_empty(), "{mmu:?}, {end:?}: owned still: {left:?}");
        }
    }
}
