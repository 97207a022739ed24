//! SPTEs of the TDP MMU: hardware, aging, faults and zaps at once.

use super::machine::{Machine, config};
use super::model::{self, Bound, USUAL, check, note, spawn, tally};
use youngbit_core::kvm::Protocol;
use youngbit_core::kvm::memslot::LOG_DIRTY_PAGES;
use youngbit_core::kvm::mmu::spte::{self, SpteFormat};
use youngbit_core::mm::MmuNotifier;

const EPT: SpteFormat = SpteFormat::EPT;
const NO_AD: SpteFormat = SpteFormat::EPT_NO_AD;

/// An access and an aging at once: the access is seen by this aging or by the
/// next, no Dirty and no Writable is lost, and no other bit changes.
fn access_against_age(
    claim: &str,
    format: SpteFormat,
    protocol: Protocol,
    before: fn(SpteFormat, u64) -> u64,
    write: bool,
) {
    check(claim, USUAL, move || {
        let machine = Machine::new(1, config(1, format, protocol));
        let here = machine.cpu();
        machine.write(&here, 0, 0, 1);
        machine.set_leaf(&here, 0, |spte| before(format, spte));
        let was = machine.leaf(&here, 0).expect("mapped");
        let pfn = machine.pfn(0);
        machine.clean_folio(pfn);
        machine.name(&here, 0);
        let vcpu = {
            let machine = machine.clone();
            spawn("vCPU", move || {
                let cpu = machine.cpu();
                if write {
                    machine.write(&cpu, 0, 0, 7);
                } else {
                    machine.read(&cpu, 0, 0);
                }
                machine.check(&cpu);
            })
        };
        let first = machine.age(&here, 0);
        vcpu.join().unwrap();
        let now = machine.leaf(&here, 0).expect("nobody zapped it");
        let second = machine.age(&here, 0);
        assert!(
            first || second,
            "the access was seen by neither aging: the SPTE is {now:#x}"
        );
        if write {
            let dirty = format.is_dirty(now) || machine.folio_is_dirty(pfn);
            assert!(dirty, "a write is lost: clean SPTE {now:#x}, clean folio");
        }
        if spte::ad_enabled(now) && write {
            assert!(spte::is_writable(now), "Writable is lost: {now:#x}");
        }
        // Aging touches Accessed, or what access tracking uses, and no more.
        let may_change = format.accessed
            | format.dirty
            | spte::WRITABLE
            | if spte::ad_enabled(was) {
                0
            } else {
                spte::ACC_TRACK_MASK | spte::SAVED_MASK
            };
        assert_eq!(now & !may_change, was & !may_change);
        assert!(!machine.age(&here, 0), "aged twice, and young still");
        machine.check(&here);
    });
}

const LOST: &str = "no Dirty and no Writable is lost, an accessed bit set by hardware is seen, \
                    aging changes nothing else";

#[test]
fn tdp_write_against_age() {
    // Young before, writable, clean: hardware sets Dirty.
    access_against_age(
        LOST,
        EPT,
        Protocol::V7,
        |f, spte| (spte | f.accessed) & !f.dirty,
        true,
    );
}

#[test]
fn tdp_write_against_age_baseline() {
    access_against_age(
        LOST,
        EPT,
        Protocol::BASELINE,
        |f, spte| (spte | f.accessed) & !f.dirty,
        true,
    );
}

#[test]
fn tdp_fast_page_fault_against_age() {
    // Write-protected for logging: a fast page fault gives W back.
    access_against_age(
        LOST,
        EPT,
        Protocol::V7,
        |f, spte| (spte | f.accessed) & !f.dirty & !spte::WRITABLE,
        true,
    );
}

#[test]
fn tdp_read_against_age() {
    access_against_age(LOST, EPT, Protocol::V7, |f, spte| spte & !f.accessed, false);
}

#[test]
fn tdp_write_against_access_track() {
    access_against_age(LOST, NO_AD, Protocol::V7, |_, spte| spte, true);
}

#[test]
fn tdp_write_against_access_track_when_old() {
    access_against_age(LOST, NO_AD, Protocol::V7, |f, spte| f.mark_old(spte), true);
}

#[test]
fn tdp_read_restores_only_r_and_x() {
    check(
        "restoring an access-tracked SPTE gives R and X back, and W only to a write",
        USUAL,
        || {
            let machine = Machine::new(1, config(1, NO_AD, Protocol::V7));
            let here = machine.cpu();
            machine.write(&here, 0, 0, 1);
            machine.set_leaf(&here, 0, |spte| NO_AD.mark_old(spte));
            machine.name(&here, 0);
            let vcpu = {
                let machine = machine.clone();
                spawn("vCPU", move || {
                    let cpu = machine.cpu();
                    machine.read(&cpu, 0, 0);
                })
            };
            machine.age(&here, 0);
            vcpu.join().unwrap();
            let now = machine.leaf(&here, 0).expect("mapped");
            assert!(!spte::is_writable(now), "W came back with a read: {now:#x}");
            machine.check(&here);
        },
    );
}

/// An access and a zap at once: what hardware set is passed on, and nothing
/// goes through the old mapping once the invalidation has begun.
fn write_against_zap(claim: &str, format: SpteFormat, before: fn(SpteFormat, u64) -> u64) {
    check(claim, USUAL, move || {
        let machine = Machine::new(1, config(1, format, Protocol::V7));
        let here = machine.cpu();
        machine.write(&here, 0, 0, 1);
        machine.set_leaf(&here, 0, |spte| before(format, spte));
        let pfn = machine.pfn(0);
        machine.clean_folio(pfn);
        machine.name(&here, 0);
        let vcpu = {
            let machine = machine.clone();
            spawn("vCPU", move || {
                let cpu = machine.cpu();
                machine.write(&cpu, 0, 0, 7);
                machine.check(&cpu);
            })
        };
        let at = super::machine::HVA;
        machine.vm.invalidate_range_start(&here, at, at + 4096);
        // Nothing maps the page now, and nothing will before the end: what was
        // written by now has made it dirty, and nothing more is written.
        let written = machine.content(pfn);
        note(format!("the page holds {written}"));
        let dirty = machine.folio_is_dirty(pfn);
        assert!(written != 7 || dirty, "a write is lost by the zap");
        assert!(
            machine.leaf(&here, 0).is_none(),
            "mapped during the invalidation"
        );
        assert_eq!(
            machine.content(pfn),
            written,
            "written through a stale mapping"
        );
        machine.vm.invalidate_range_end(&here, at, at + 4096);
        vcpu.join().unwrap();
        assert_eq!(machine.content(pfn), 7);
        let spte = machine.leaf(&here, 0);
        let dirty = machine.folio_is_dirty(pfn) || spte.is_some_and(|spte| format.is_dirty(spte));
        assert!(dirty, "a write is lost: {spte:x?}");
        machine.check(&here);
    });
}

const PASSED_ON: &str = "zapping passes Dirty on: no write is lost";

#[test]
fn tdp_write_against_zap() {
    write_against_zap(PASSED_ON, EPT, |f, spte| (spte | f.accessed) & !f.dirty);
}

#[test]
fn tdp_fast_page_fault_against_zap() {
    write_against_zap(PASSED_ON, NO_AD, |f, spte| f.mark_old(spte));
}

#[test]
fn tdp_age_against_zap() {
    check(
        "aging never changes an SPTE that is not present, and reads no freed table",
        USUAL,
        || {
            let machine = Machine::new(1, config(1, EPT, Protocol::V7));
            let here = machine.cpu();
            machine.write(&here, 0, 0, 1);
            machine.name(&here, 0);
            let ager = {
                let machine = machine.clone();
                spawn("ager", move || {
                    let cpu = machine.cpu();
                    let young = machine.age(&cpu, 0);
                    machine.check(&cpu);
                    young
                })
            };
            machine.zap(&here, 0);
            ager.join().unwrap();
            assert_eq!(machine.word(&here, 0).load(super::RELAXED), 0);
            machine.check(&here);
        },
    );
}

#[test]
fn tdp_two_agers() {
    check(
        "two agers may both report young; the SPTE is old afterwards",
        USUAL,
        || {
            let machine = Machine::new(1, config(1, NO_AD, Protocol::V7));
            let here = machine.cpu();
            machine.write(&here, 0, 0, 1);
            machine.name(&here, 0);
            let ager = {
                let machine = machine.clone();
                spawn("ager 2", move || {
                    let cpu = machine.cpu();
                    machine.age(&cpu, 0)
                })
            };
            let mine = machine.age(&here, 0);
            assert!(mine | ager.join().unwrap());
            let now = machine.leaf(&here, 0).expect("mapped");
            assert!(!NO_AD.is_accessed(now));
            assert!(machine.folio_is_dirty(machine.pfn(0)));
            machine.check(&here);
        },
    );
}

#[test]
fn tdp_aging_tries_once() {
    check(
        "aging without A/D bits tries one exchange, whatever others do to the SPTE",
        Bound {
            reduced: 1,
            full: 2,
        },
        || {
            let machine = Machine::new(1, config(1, NO_AD, Protocol::V7));
            let here = machine.cpu();
            machine.write(&here, 0, 0, 1);
            machine.name(&here, 0);
            let ager = {
                let machine = machine.clone();
                spawn("ager", move || {
                    let cpu = machine.cpu();
                    machine.age(&cpu, 0);
                    let word = machine.word(&cpu, 0);
                    tally("exchanges in one aging", model::exchanges(word));
                })
            };
            // Change it again and again: age it, and use it.
            for _ in 0..2 {
                machine.age(&here, 0);
                machine.read(&here, 0, 0);
            }
            ager.join().unwrap();
            machine.check(&here);
        },
    );
}

#[test]
fn tdp_fault_against_fault() {
    check(
        "competing faults: one table a place, no mapping lost, no table leaked",
        USUAL,
        || {
            let machine = Machine::new(2, config(2, EPT, Protocol::V7));
            let here = machine.cpu();
            for gfn in 0..2 {
                machine
                    .mm
                    .touch(&here, super::machine::HVA + gfn * 4096, true, None)
                    .expect("room");
            }
            // Both vCPUs have their root; nothing below it is there.
            let other = {
                let machine = machine.clone();
                spawn("vCPU 1", move || {
                    let cpu = machine.cpu();
                    machine.write(&cpu, 1, 1, 2);
                    machine.check(&cpu);
                })
            };
            machine.write(&here, 0, 0, 1);
            other.join().unwrap();
            let tdp = machine.vm.tdp.as_ref().expect("a TDP MMU");
            note("both vCPUs have written");
            for gfn in 0..2 {
                assert!(
                    machine.leaf(&here, gfn).is_some(),
                    "gfn {gfn} is not mapped"
                );
                assert_eq!(machine.content(machine.pfn(gfn)), gfn as u8 + 1);
            }
            // One root and one table a level: both pages share them.
            assert_eq!(tdp.tables.live(), machine.vm.config.levels);
            machine.check(&here);
        },
    );
}

#[test]
fn tdp_fast_page_fault_against_locked_age() {
    // Write-protected for logging, without A/D bits: the fast page fault makes
    // it writable, which without A/D bits is all that says "dirty".
    access_against_age(
        LOST,
        NO_AD,
        Protocol::BASELINE,
        |_, spte| spte & !spte::WRITABLE,
        true,
    );
}

#[test]
fn tdp_fault_against_munmap() {
    check(
        "a fault installs no mapping for memory that was invalidated meanwhile",
        USUAL,
        || {
            let machine = Machine::new(1, config(1, EPT, Protocol::V7));
            let here = machine.cpu();
            let at = super::machine::HVA;
            // The vCPU has a root and the tables, but no leaf.
            machine.write(&here, 0, 0, 1);
            machine.zap(&here, 0);
            machine.name(&here, 0);
            let vcpu = {
                let machine = machine.clone();
                spawn("vCPU", move || {
                    let cpu = machine.cpu();
                    let result = machine.vm.access(&cpu, 0, 0, true, Some(7));
                    machine.check(&cpu);
                    result.is_ok()
                })
            };
            machine.mm.munmap(&here, at, 4096).expect("a valid range");
            let left = machine.leaf(&here, 0);
            assert!(
                left.is_none(),
                "munmap has returned, and {left:x?} maps the page"
            );
            vcpu.join().unwrap();
            let left = machine.leaf(&here, 0);
            assert!(left.is_none(), "{left:x?} maps a page that is gone");
            machine.check(&here);
        },
    );
}

#[test]
fn invalidation_is_seen_without_mmu_lock() {
    check(
        "who finds no invalidation running finds the sequence moved by those that ended",
        USUAL,
        || {
            let machine = Machine::new(1, config(1, EPT, Protocol::V7));
            let here = machine.cpu();
            let at = super::machine::HVA;
            let vm = &machine.vm;
            vm.invalidate_range_start(&here, at, at + 4096);
            let (seq, count) = vm.invalidate.words();
            model::name(seq, "mmu_invalidate_seq", model::number);
            model::name(count, "mmu_invalidate_in_progress", model::number);
            let sampled = vm.invalidate.sequence();
            let fault = {
                let machine = machine.clone();
                spawn("fault", move || {
                    assert!(
                        machine.vm.invalidate.retry_unsafe(sampled, 0),
                        "sampled inside an invalidation, and told not to retry"
                    );
                })
            };
            vm.invalidate_range_end(&here, at, at + 4096);
            fault.join().unwrap();
            machine.check(&here);
        },
    );
}

#[test]
fn tdp_slot_deleted_against_age() {
    check(
        "walkers of memslots and tables read nothing that was freed; every table is freed once",
        USUAL,
        || {
            let machine = Machine::new(1, config(1, EPT, Protocol::V7));
            let here = machine.cpu();
            machine.write(&here, 0, 0, 1);
            machine.name(&here, 0);
            let ager = {
                let machine = machine.clone();
                spawn("ager", move || {
                    let cpu = machine.cpu();
                    machine.age(&cpu, 0);
                    machine.check(&cpu);
                })
            };
            machine.slot(&here, 0, 0, 0);
            ager.join().unwrap();
            machine.vm.destroy(&here).expect("not destroyed yet");
            machine.host.rcu.barrier();
            let tdp = machine.vm.tdp.as_ref().expect("a TDP MMU");
            assert_eq!(tdp.tables.live(), 0, "a table leaked");
            machine.check(&here);
        },
    );
}

#[test]
fn tdp_destroyed_under_a_vcpu() {
    check(
        "a root is freed once, by whoever puts its last reference",
        USUAL,
        || {
            let machine = Machine::new(1, config(1, EPT, Protocol::V7));
            let here = machine.cpu();
            machine.write(&here, 0, 0, 1);
            machine.name(&here, 0);
            // The vCPU leaves its root, while the VM's memory goes and with it
            // the TDP MMU's own reference.
            let vcpu = {
                let machine = machine.clone();
                spawn("vCPU", move || {
                    let cpu = machine.cpu();
                    let result = machine.vm.access(&cpu, 0, 0, true, Some(7));
                    machine.check(&cpu);
                    result.is_ok()
                })
            };
            machine.vm.release(&here);
            vcpu.join().unwrap();
            machine.vm.destroy(&here).expect("not destroyed yet");
            machine.host.rcu.barrier();
            let tdp = machine.vm.tdp.as_ref().expect("a TDP MMU");
            assert_eq!(tdp.tables.live(), 0, "a table leaked");
            machine.check(&here);
        },
    );
}

#[test]
fn spte_aging_leaves_non_present_alone() {
    check(
        "aging changes no SPTE that is not present, whatever bits it holds",
        USUAL,
        || {
            for format in [EPT, NO_AD, SpteFormat::NPT] {
                for value in [
                    0,
                    spte::FROZEN,
                    spte::FROZEN_THAWABLE,
                    youngbit_core::table::POISON,
                    !spte::MMU_PRESENT,
                ] {
                    let word = youngbit_core::sync::atomic::AtomicU64::new(value);
                    let aged = format.age(&word, 1);
                    assert!(!aged.young);
                    let now = word.load(super::RELAXED);
                    assert_eq!(now, value, "aging changed a non-present SPTE");
                }
            }
        },
    );
}

/// A huge page of two small ones that is mapped small, because its writes were
/// logged, and may now be mapped huge again.
fn collapsible() -> (Machine, youngbit_core::cpu::Cpu) {
    let mut config = config(1, EPT, Protocol::V7);
    config.max_level = 2;
    let flags = youngbit_core::mm::VmFlags {
        hugetlb_order: 1,
        ..Default::default()
    };
    let machine = Machine::with_flags(2, config, flags);
    let here = machine.cpu();
    machine.slot(&here, 0, 2, LOG_DIRTY_PAGES);
    machine.write(&here, 0, 0, 1);
    // Logging ends while nobody looks: the table is left for the thread of
    // the model to unlink.
    machine.name(&here, 0);
    (machine, here)
}

fn collapse(machine: &Machine, cpu: &youngbit_core::cpu::Cpu) {
    let slot = {
        let guard = cpu.rcu.lock();
        let slots = machine.vm.memslots.load(0, &guard);
        std::sync::Arc::clone(slots.by_gfn(0).expect("a slot"))
    };
    let tdp = machine.vm.tdp.as_ref().expect("a TDP MMU");
    tdp.zap_collapsible(&machine.vm, cpu, &slot);
}

#[test]
fn tdp_frozen_stays_frozen() {
    check(
        "an SPTE frozen by who unlinks its table stays so, whoever ages it late",
        USUAL,
        || {
            let (machine, here) = collapsible();
            assert!(machine.leaf(&here, 0).is_some_and(|s| EPT.is_accessed(s)));
            let ager = {
                let machine = machine.clone();
                spawn("ager", move || {
                    let cpu = machine.cpu();
                    // The table cannot be freed inside this section.
                    let _section = cpu.rcu.lock();
                    let word = machine.word(&cpu, 0);
                    if !spte::is_present(word.load(super::RELAXED)) {
                        return;
                    }
                    EPT.age(word, 1);
                    let now = word.load(super::RELAXED);
                    assert!(
                        spte::is_present(now) || spte::is_frozen(now),
                        "a frozen SPTE thawed: it holds {now:#x}"
                    );
                })
            };
            collapse(&machine, &here);
            ager.join().unwrap();
            machine.check(&here);
        },
    );
}

#[test]
fn tdp_no_mapping_in_a_dead_table() {
    check(
        "no fault puts a mapping into a table that was unlinked",
        Bound {
            reduced: 1,
            full: 2,
        },
        || {
            let (machine, here) = collapsible();
            // A write faults, and no fast page fault fixes it.
            machine.set_leaf(&here, 0, |s| {
                s & !(spte::WRITABLE | EPT.mmu_writable | EPT.host_writable)
            });
            // An ager that reads the SPTE here and clears it only below, after
            // the table was unlinked: one thread here stands for two, whose
            // steps fall in this order.
            let ager = machine.cpu();
            let section = ager.rcu.lock();
            let word = machine.word(&ager, 0);
            let seen = word.load(super::RELAXED);
            let vcpu = {
                let machine = machine.clone();
                spawn("vCPU", move || {
                    let cpu = machine.cpu();
                    machine.write(&cpu, 0, 0, 7);
                    machine.check(&cpu);
                })
            };
            collapse(&machine, &here);
            note("the ager, late, clears the accessed bit that it saw");
            EPT.age_young(word, seen);
            drop(section);
            vcpu.join().unwrap();
            machine.host.rcu.barrier();
            machine.check(&here);
        },
    );
}
