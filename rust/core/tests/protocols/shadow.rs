//! The shadow MMU's SPTEs, found through rmaps.

use super::machine::{HVA, Machine, config};
use super::model::{self, USUAL, check, head_text, spawn};
use youngbit_core::kvm::mmu::shadow::ShadowConfig;
use youngbit_core::kvm::mmu::spte::{self, SpteFormat};
use youngbit_core::kvm::{MmuKind, Protocol, VmConfig};
use youngbit_core::mm::folio::REFERENCED;
use youngbit_core::mm::{FolioWord, MmuNotifier, PAGE_SIZE, VmFlags};
use youngbit_core::sync::atomic::{AtomicU64, Ordering};
use youngbit_core::trace::Counter;

/// Direct shadow pages: the TDP MMU switched off.
fn direct(format: SpteFormat, protocol: Protocol) -> VmConfig {
    VmConfig {
        mmu: MmuKind::Shadow,
        shadow: ShadowConfig {
            direct: true,
            ..ShadowConfig::default()
        },
        ..config(1, format, protocol)
    }
}

/// The word of the leaf of GFN 0 in the shadow MMU's tables.
fn word(machine: &Machine) -> &AtomicU64 {
    let shadow = machine.vm.shadow.as_deref().expect("a shadow MMU");
    let vcpu = &machine.vm.vcpus[0];
    let mut table = vcpu.root().expect("loaded");
    for level in (2..=machine.vm.config.levels).rev() {
        let word = &shadow.tables().entries(table)[spte::gfn_index(0, level)];
        table = spte::table(word.load(Ordering::Relaxed));
    }
    &shadow.tables().entries(table)[spte::gfn_index(0, 1)]
}

/// Name the leaf and its head.
fn name(machine: &Machine, cpu: &youngbit_core::cpu::Cpu) {
    model::name(word(machine), "SPTE of gfn 0", model::spte_text);
    let guard = cpu.rcu.lock();
    let slots = machine.vm.memslots.load(0, &guard);
    let slot = slots.by_gfn(0).expect("a slot");
    model::name(slot.rmaps().head(0, 1).0, "rmap head", head_text);
}

fn clean(machine: &Machine) -> youngbit_core::mm::Pfn {
    let pfn = machine.pfn(0);
    machine.clean_folio(pfn);
    machine.host.memory.word(pfn).clear(REFERENCED);
    pfn
}

#[test]
fn shadow_write_against_age() {
    check(
        "shadow MMU: no Dirty lost, an accessed bit set by hardware is seen",
        USUAL,
        || {
            let machine = Machine::new(1, direct(SpteFormat::EPT, Protocol::V7));
            let here = machine.cpu();
            machine.write(&here, 0, 0, 1);
            let leaf = word(&machine);
            let format = SpteFormat::EPT;
            let spte = leaf.load(Ordering::Relaxed);
            leaf.store((spte | format.accessed) & !format.dirty, Ordering::Relaxed);
            let pfn = clean(&machine);
            name(&machine, &here);
            let vcpu = {
                let machine = machine.clone();
                spawn("vCPU", move || {
                    let cpu = machine.cpu();
                    machine.write(&cpu, 0, 0, 7);
                    machine.check(&cpu);
                })
            };
            let first = machine.age(&here, 0);
            vcpu.join().unwrap();
            let now = word(&machine).load(Ordering::Relaxed);
            let second = machine.age(&here, 0);
            assert!(first || second, "the access was seen by neither aging");
            assert!(
                format.is_dirty(now) || machine.folio_is_dirty(pfn),
                "a write is lost"
            );
            assert!(!machine.age(&here, 0));
            machine.check(&here);
        },
    );
}

/// An ager against a zap, by v9's rules, without A/D bits.
#[test]
fn shadow_access_is_passed_on_once() {
    check(
        "without A/D bits (v9), an access is passed on by an ager or by who zaps, not by both",
        USUAL,
        || {
            let machine = Machine::new(1, direct(SpteFormat::EPT_NO_AD, Protocol::V9));
            let here = machine.cpu();
            machine.write(&here, 0, 0, 1);
            let pfn = clean(&machine);
            name(&machine, &here);
            let ager = {
                let machine = machine.clone();
                spawn("ager", move || {
                    let cpu = machine.cpu();
                    machine.age(&cpu, 0);
                    machine.check(&cpu);
                    cpu.counters.get(Counter::SptesAged) == 1
                })
            };
            // Zaps the shadow page: the SPTE is written before its chain is
            // held, so only the SPTE itself settles it with the ager.
            machine.vm.release(&here);
            let aged = ager.join().unwrap();
            let zapped = machine.host.memory.word(pfn).get().has(REFERENCED);
            assert!(aged || zapped, "an access is lost");
            assert!(!(aged && zapped), "one access was passed on twice");
            assert!(machine.folio_is_dirty(pfn), "a write is lost");
            machine.check(&here);
        },
    );
}

#[test]
fn shadow_unlinked_spte_is_dead() {
    check(
        "an SPTE is zapped before it leaves its chain: what is in no chain maps nothing",
        USUAL,
        || {
            let machine = Machine::new(1, direct(SpteFormat::EPT, Protocol::V7));
            let here = machine.cpu();
            machine.write(&here, 0, 0, 1);
            name(&machine, &here);
            let reader = {
                let machine = machine.clone();
                spawn("reader", move || {
                    let leaf = word(&machine);
                    let cpu = machine.cpu();
                    let guard = cpu.rcu.lock();
                    let slots = machine.vm.memslots.load(0, &guard);
                    let slot = slots.by_gfn(0).expect("a slot");
                    let head = slot.rmaps().head(0, 1).0.load(Ordering::Acquire);
                    if head == 0 {
                        let spte = leaf.load(Ordering::Relaxed);
                        assert!(
                            !spte::is_present(spte),
                            "an SPTE outside its chain is live: {spte:#x}"
                        );
                    }
                })
            };
            // Zaps every shadow page.
            machine.vm.release(&here);
            reader.join().unwrap();
            machine.check(&here);
        },
    );
}

#[test]
fn shadow_fault_and_zap_against_age() {
    check(
        "shadow MMU: faults and zaps against an ager without mmu_lock read no freed memory",
        USUAL,
        || {
            let machine = Machine::new(1, direct(SpteFormat::EPT, Protocol::V7));
            let here = machine.cpu();
            machine.write(&here, 0, 0, 1);
            name(&machine, &here);
            let ager = {
                let machine = machine.clone();
                spawn("ager", move || {
                    let cpu = machine.cpu();
                    machine.age(&cpu, 0);
                    machine.check(&cpu);
                })
            };
            machine.zap(&here, 0);
            machine.write(&here, 0, 0, 2);
            ager.join().unwrap();
            let shadow = machine.vm.shadow.as_deref().expect("a shadow MMU");
            shadow.verify(&machine.vm, &here).expect("sound");
            assert_eq!(machine.content(machine.pfn(0)), 2);
            machine.check(&here);
        },
    );
}

#[test]
fn shadow_range_across_huge_pages() {
    check(
        "a walk without mmu_lock ages every huge page that its range meets, from any start",
        USUAL,
        || {
            let mut config = direct(SpteFormat::EPT, Protocol::V7);
            config.max_level = 2;
            let flags = VmFlags {
                hugetlb_order: 1,
                ..VmFlags::default()
            };
            let machine = Machine::with_flags(4, config, flags);
            let here = machine.cpu();
            for start in 0..4 {
                for end in start + 1..=4 {
                    // Two huge pages of two small ones.
                    for gfn in [0, 2] {
                        machine.read(&here, 0, gfn);
                    }
                    let (from, to) = (HVA + start * PAGE_SIZE, HVA + end * PAGE_SIZE);
                    assert!(machine.vm.clear_young(&here, from, to, true));
                    for huge in start / 2..=(end - 1) / 2 {
                        let young = machine
                            .vm
                            .test_young(&here, HVA + huge * 2 * PAGE_SIZE, true);
                        assert!(
                            !young,
                            "aged gfns [{start}, {end}): huge page {huge} was missed"
                        );
                    }
                    machine
                        .vm
                        .clear_young(&here, HVA, HVA + 4 * PAGE_SIZE, false);
                }
            }
            machine.check(&here);
        },
    );
}
