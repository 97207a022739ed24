//! Instruction fetches: what may be executed, on every MMU, and that aging,
//! write protection and splitting leave it as it is.

use crate::machine::{
    Backing, DIRECT, MACHINES, Machine, NESTED, NESTED_NO_AD, On, PAGING, configs,
};
use youngbit_core::Errno;
use youngbit_core::access::AccessKind::{Fetch, Read, Write};
use youngbit_core::kvm::guest::{GuestFaultKind, alias_address};
use youngbit_core::kvm::memslot::READONLY;
use youngbit_core::kvm::mmu::shadow::ShadowConfig;
use youngbit_core::kvm::mmu::spte::{LEVEL_2M, LEVEL_4K, is_writable};
use youngbit_core::kvm::{MmuKind, TlbConfig, VmConfig};
use youngbit_core::mm::pagetable;
use youngbit_core::trace::Counter;

/// Machines whose guests have page tables of their own.
fn with_guest_tables() -> impl Iterator<Item = VmConfig> {
    let kinds = [PAGING, NESTED, NESTED_NO_AD];
    kinds
        .into_iter()
        .flat_map(|kind| configs().into_iter().map(move |config| config.on(kind)))
}

fn every_machine() -> impl Iterator<Item = VmConfig> {
    MACHINES
        .into_iter()
        .flat_map(|kind| configs().into_iter().map(move |config| config.on(kind)))
}

/// The guest lets its page be executed, or not, by the entry of a level.
fn set_executable(m: &Machine, gva: u64, level: u32, on: bool) {
    let shadow = m.vm.shadow.as_deref().expect("has one");
    let kernel = shadow.kernel().expect("a guest with tables");
    let cpu = shadow.guest_cpu(&m.vm, &m.cpu, 0);
    let there = kernel.set_executable(&cpu, gva, level, on);
    assert!(there.expect("stored"), "no entry of level {level}");
}

fn verify(m: &Machine) {
    if let Some(shadow) = &m.vm.shadow {
        shadow.verify(&m.vm, &m.cpu).expect("consistent");
    }
}

fn refused(m: &Machine, page: u64) {
    let error = m.vm.access(&m.cpu, 0, page, Fetch, None).expect_err("data");
    assert_eq!(error.errno(), Errno::EFAULT);
    assert!(error.to_string().contains("on a fetch at"), "{error}");
    let fault = m.vm.vcpus[0].shadow.last_guest_fault().expect("its own");
    assert_eq!(
        (fault.kind, fault.access),
        (GuestFaultKind::Protection, Fetch)
    );
}

#[test]
fn a_fetch_needs_the_permission_of_every_entry_of_the_guest() {
    for config in with_guest_tables() {
        for tlb in [TlbConfig::OFF, TlbConfig::default()] {
            let m = Machine::new(
                64,
                VmConfig {
                    tlb,
                    ..config.clone()
                },
            );
            for level in LEVEL_4K..=4 {
                m.fetch(3);
                set_executable(&m, 3 << 12, level, false);
                refused(&m, 3);
                // It is still data, and its neighbour is what the level says.
                m.write(3);
                m.read(3);
                refused(&m, 3);
                let neighbour = m.vm.access(&m.cpu, 0, 4, Fetch, None);
                assert_eq!(neighbour.is_ok(), level == LEVEL_4K, "level {level}");
                verify(&m);
                assert!(m.age(3, 1));
                refused(&m, 3);
                m.read(3);
                refused(&m, 3);
                verify(&m);
                set_executable(&m, 3 << 12, level, true);
                m.fetch(3);
                verify(&m);
            }
            m.finish();
        }
    }
}

#[test]
fn aging_leaves_execute_permission_and_a_fetch_is_an_access() {
    for config in every_machine() {
        let name = format!("{:?} {}", config.mmu, config.format.name);
        let m = Machine::new(64, config);
        m.write(3);
        m.fetch(3);
        for _ in 0..3 {
            assert!(m.age(3, 1), "{name}");
            assert!(!m.is_young(3) || m.vm.config.mmu != MmuKind::Tdp, "{name}");
            m.fetch(3);
            assert!(m.is_young(3), "{name}");
            verify(&m);
            m.read(3);
            m.write(3);
        }
        m.finish();
    }
}

#[test]
fn a_fetch_restores_an_access_tracked_entry_without_mmu_lock_and_without_w() {
    for config in configs().into_iter().filter(|c| !c.format.ad_bits) {
        let m = Machine::new(64, config.clone());
        m.write(3);
        assert!(m.age(3, 1));
        let counters = m.counting(|| m.fetch(3));
        assert_eq!(counters.get(Counter::FastPageFaults), 1);
        assert_eq!(counters.get(Counter::MmuLockRead), 0);
        let spte = m.spte(3);
        let format = config.format;
        assert!(format.allows(spte, Fetch) && format.allows(spte, Read));
        assert!(!is_writable(spte), "W returns only with a write");
        m.finish();
        // The shadow MMU's direct pages, by the same path.
        let m = Machine::new(64, config.on(DIRECT));
        m.write(3);
        if m.age(3, 1) && !m.is_young(3) {
            assert_eq!(m.count(Counter::FastPageFaults, || m.fetch(3)), 1);
        }
        m.finish();
    }
}

#[test]
fn a_fetch_is_a_read_for_the_host() {
    for config in every_machine() {
        let m = Machine::new(64, config);
        m.fetch(3);
        let (_, pte) = m.mm.lookup(m.hva_of(3));
        assert!(pte.has(pagetable::SPECIAL), "the zero page is enough");
        m.slot(0, 1, READONLY, 100, 16, m.hva);
        m.fetch(103);
        m.log_dirty(true);
        m.dirty_log();
        m.fetch(5);
        assert!(m.dirty_log().is_empty(), "nothing was written");
        m.write(5);
        assert_eq!(m.dirty_log(), [5]);
        m.fetch(5);
        assert!(m.dirty_log().is_empty());
        verify(&m);
        m.finish();
    }
}

/// A huge page of the guest over small ones of the host is mapped by direct
/// pages, whose role says what the guest allows; two aliases that differ have
/// one each.
#[test]
fn a_huge_guest_page_is_executable_by_one_alias_and_data_by_another() {
    for kind in [PAGING, NESTED, NESTED_NO_AD] {
        for huge_host in [false, true] {
            for config in configs() {
                let config = config.on(kind);
                let shadow = ShadowConfig {
                    guest_level: LEVEL_2M,
                    aliases: 2,
                    ..config.shadow
                };
                let backing = if huge_host {
                    Backing::Huge(9)
                } else {
                    Backing::Small
                };
                let m = Machine::backed(1024, VmConfig { shadow, ..config }, backing, 0);
                let alias = |alias| m.vm.vcpus[0].shadow.set_alias(alias);
                for n in [0, 1] {
                    alias(n);
                    m.write(3);
                    m.fetch(3);
                }
                set_executable(&m, alias_address(0, 1), LEVEL_2M, false);
                for page in [3, 511] {
                    alias(0);
                    m.fetch(page);
                    alias(1);
                    m.read(page);
                    m.write(page);
                    refused(&m, page);
                    alias(0);
                    m.fetch(page);
                }
                m.age(0, 512);
                alias(1);
                m.write(3);
                refused(&m, 3);
                alias(0);
                m.fetch(3);
                verify(&m);
                alias(1);
                m.read(600);
                m.fetch(600);
                set_executable(&m, alias_address(0, 1), LEVEL_2M, true);
                m.fetch(3);
                verify(&m);
                m.finish();
            }
        }
    }
}

#[test]
fn l1_may_give_its_guest_pages_that_can_only_be_executed() {
    for kind in [NESTED, NESTED_NO_AD] {
        for config in configs().into_iter().filter(|c| c.format.name == "ept") {
            let m = Machine::new(64, config.on(kind));
            m.write(3);
            {
                let shadow = m.vm.shadow.as_deref().expect("nested");
                let kernel = shadow.kernel().expect("L1's");
                let cpu = shadow.guest_cpu(&m.vm, &m.cpu, 0);
                kernel.poke(&cpu, 3 << 12, 1, 3 << 12 | 4).expect("there");
            }
            for _ in 0..2 {
                m.fetch(3);
                for kind in [Read, Write] {
                    let error = m.vm.access(&m.cpu, 0, 3, kind, None).expect_err("code");
                    assert_eq!(error.errno(), Errno::EFAULT);
                }
                verify(&m);
                m.age(3, 1);
                verify(&m);
            }
            m.finish();
        }
    }
}
