//! SPTEs of the TDP MMU: hardware, aging, faults and zaps at once.

use super::machine::{Machine, config};
use super::model::{Bound, USUAL, check, note, spawn, tally};
use youngbit_core::kvm::Protocol;
use youngbit_core::kvm::mmu::spte::{self, SpteFormat};
use youngbit_core::mm::MmuNotifier;
use youngbit_core::trace::Counter;

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
                    let young = machine.age(&cpu, 0);
                    tally("spte_cas", cpu.counters.get(Counter::SpteCas));
                    young
                })
            };
            let mine = machine.age(&here, 0);
            tally("spte_cas", here.counters.get(Counter::SpteCas));
            assert!(mine | ager.join().unwrap());
            let now = machine.leaf(&here, 0).expect("mapped");
            assert!(!NO_AD.is_accessed(now));
            assert!(machine.folio_is_dirty(machine.pfn(0)));
            machine.check(&here);
        },
    );
}

#[test]
fn tdp_fault_against_fault() {
    check(
        "competing faults: one table a place, no mapping lost, no table leaked",
        Bound {
            reduced: 1,
            full: 2,
        },
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
