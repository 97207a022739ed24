//! SPTEs of the TDP MMU: hardware, aging, faults and zaps at once.

use super::RELAXED;
use super::machine::{EPT, HVA, L1, Machine, NO_AD, Setup};
use super::model::{self, by_protocol, check, i_am, note, spawn, tally};
use super::scenes::{self, NO_AGING};
use std::sync::Arc;
use youngbit_core::cpu::Cpu;
use youngbit_core::kvm::Protocol;
use youngbit_core::kvm::memslot::LOG_DIRTY_PAGES;
use youngbit_core::kvm::mmu::spte::{self, SpteFormat};
use youngbit_core::kvm::protocol::TdpAging;
use youngbit_core::mm::{MmuNotifier, PAGE_SIZE};
use youngbit_core::sync::atomic::{AtomicU64, Ordering};
use youngbit_core::table::{POISON, TableId};

by_protocol! {
    /// Young before, writable, clean: hardware sets Dirty.
    fn tdp_write_against_age(protocol) {
        let setup = Setup::tdp(EPT, protocol).leaf(|f, spte| (spte | f.accessed) & !f.dirty);
        scenes::access_against_age(&setup, L1, true, Machine::age);
    }

    /// The same by the call that ages many pages.
    fn tdp_write_against_batched_age(protocol) {
        let setup = Setup::tdp(EPT, protocol).leaf(|f, spte| (spte | f.accessed) & !f.dirty);
        scenes::access_against_age(&setup, L1, true, Machine::age_batched);
    }

    /// Write-protected for logging: a fast page fault gives W back.
    fn tdp_fast_page_fault_against_age(protocol) {
        let setup = Setup::tdp(EPT, protocol)
            .leaf(|f, spte| (spte | f.accessed) & !f.dirty & !spte::WRITABLE);
        scenes::access_against_age(&setup, L1, true, Machine::age);
    }

    /// Without A/D bits, W is all that says "dirty".
    fn tdp_fast_page_fault_against_access_track(protocol) {
        let setup = Setup::tdp(NO_AD, protocol).leaf(|_, spte| spte & !spte::WRITABLE);
        scenes::access_against_age(&setup, L1, true, Machine::age);
    }

    fn tdp_read_against_age(protocol) {
        let setup = Setup::tdp(EPT, protocol).leaf(|f, spte| spte & !f.accessed);
        scenes::access_against_age(&setup, L1, false, Machine::age);
    }

    fn tdp_write_against_access_track(protocol) {
        let setup = Setup::tdp(NO_AD, protocol);
        scenes::access_against_age(&setup, L1, true, Machine::age);
    }

    fn tdp_write_against_access_track_when_old(protocol) {
        let setup = Setup::tdp(NO_AD, protocol).leaf(|f, spte| f.mark_old(spte));
        scenes::access_against_age(&setup, L1, true, Machine::age);
    }

    fn tdp_read_restores_only_r_and_x(protocol) {
        let setup = Setup::tdp(NO_AD, protocol).leaf(|f, spte| f.mark_old(spte));
        setup.check(
            "restoring an access-tracked SPTE gives R and X back, and W only to a write",
            |machine, here| {
                i_am("ager");
                let vcpu = machine.spawn("vCPU", |machine, cpu| machine.read(cpu, L1, 0));
                machine.age(here, 0);
                vcpu.join().unwrap();
                let now = machine.leaf(here, 0).expect("mapped");
                assert!(!spte::is_writable(now), "W came back with a read: {now:#x}");
            },
        );
    }

    fn tdp_write_against_zap(protocol) {
        let setup = Setup::tdp(EPT, protocol).leaf(|f, spte| (spte | f.accessed) & !f.dirty);
        scenes::write_against_zap(&setup, L1);
    }

    fn tdp_fast_page_fault_against_zap(protocol) {
        let setup = Setup::tdp(NO_AD, protocol).leaf(|f, spte| f.mark_old(spte));
        scenes::write_against_zap(&setup, L1);
    }

    /// Young and dirty before: hardware has nothing to set, and so writes to
    /// the page without an exchange that would find the SPTE gone.
    fn tdp_write_through_dirty_spte_against_zap(protocol) {
        scenes::write_against_zap(&Setup::tdp(EPT, protocol), L1);
    }

    fn tdp_two_writes_against_zap(protocol) {
        scenes::two_writes_against_zap(&Setup::tdp(EPT, protocol));
    }

    fn tdp_age_against_zap(protocol) {
        scenes::age_against_zap(&Setup::tdp(EPT, protocol), L1);
    }

    fn tdp_access_track_against_zap(protocol) {
        scenes::age_against_zap(&Setup::tdp(NO_AD, protocol), L1);
    }

    fn tdp_two_agers(protocol) {
        scenes::two_agers(&Setup::tdp(NO_AD, protocol), L1);
    }

    fn tdp_write_against_dirty_log(protocol) {
        let setup = Setup::tdp(EPT, protocol).slot_flags(LOG_DIRTY_PAGES);
        scenes::write_against_dirty_log(&setup, L1, false);
    }

    /// The page is in no log and not writable: a fast page fault changes both.
    fn tdp_fast_page_fault_against_dirty_log(protocol) {
        let setup = Setup::tdp(EPT, protocol).slot_flags(LOG_DIRTY_PAGES);
        scenes::write_against_dirty_log(&setup, L1, true);
    }

    fn tdp_fault_against_munmap(protocol) {
        scenes::fault_against_munmap(&Setup::tdp(EPT, protocol), L1);
    }

    fn tdp_read_against_dirty_log(protocol) {
        let setup = Setup::tdp(EPT, protocol).slot_flags(LOG_DIRTY_PAGES);
        scenes::read_against_dirty_log(&setup, L1);
    }

    fn tdp_slot_deleted_against_age(protocol) {
        scenes::slot_change_against_age(&Setup::tdp(EPT, protocol), scenes::delete_slot);
    }

    fn tdp_slot_moved_against_age(protocol) {
        scenes::slot_change_against_age(&Setup::tdp(EPT, protocol), scenes::move_slot);
    }

    fn tdp_invalidation_against_slot_deleted(protocol) {
        let setup = Setup::tdp(EPT, protocol).zaps_leaves();
        scenes::invalidation_against_slot_change(&setup, scenes::delete_slot);
    }

    /// With A/D bits: W comes back while hardware sets Accessed.
    fn tdp_restore_against_hardware(protocol) {
        let setup = Setup::tdp(EPT, protocol)
            .leaf(|f, spte| f.mark_old(spte) & !f.dirty & !spte::WRITABLE);
        scenes::restore_against_hardware(&setup);
    }

    /// Without: two faults restore one access-tracked SPTE, one of them with W.
    fn tdp_restore_against_restore(protocol) {
        let setup = Setup::tdp(NO_AD, protocol).leaf(|f, spte| f.mark_old(spte));
        scenes::restore_against_hardware(&setup);
    }

    /// Both ends of a VM's memory zap the roots that are invalid by then.
    fn tdp_slot_deleted_against_exit(protocol) {
        Setup::tdp(EPT, protocol).check(
            "an invalid root's own reference is put once, by whoever zaps it",
            |machine, here| {
                i_am("mm exit");
                let slots = machine.spawn("slots", |machine, cpu| {
                    scenes::delete_slot(machine, cpu);
                });
                machine.vm.release(here);
                slots.join().unwrap();
                machine.destroy(here);
            },
        );
    }

    /// A huge page whose writes are logged from now on is mapped small by the
    /// first write, while another vCPU reads through the huge SPTE.
    fn tdp_split_against_hardware(protocol) {
        Setup::tdp(EPT, protocol).pages(2).huge().vcpus(2).check(
            "an accessed bit that hardware sets in a huge SPTE is not lost when it is split",
            |machine, here| {
                i_am("vCPU 0");
                machine.slot(here, 0, 2, LOG_DIRTY_PAGES);
                while machine.age(here, 1) {}
                let reader = machine.spawn("vCPU 1", |machine, cpu| machine.read(cpu, 1, 1));
                machine.write(here, L1, 0, 7);
                reader.join().unwrap();
                let split = machine.tdp().leaf(here, 0, 0).map(|(level, _)| level);
                assert_eq!(split, Some(1), "a logged page is written by a small SPTE");
                assert!(machine.age(here, 1), "an access through the huge SPTE is lost");
            },
        );
    }

    /// The same while logging begins: a huge SPTE that is about to lose W is aged,
    /// and the write that finds it so makes it a table.
    fn tdp_split_against_write_protection(protocol) {
        Setup::tdp(NO_AD, protocol).pages(2).huge().check(
            "write protection changes leaves alone, and no link to a table",
            |machine, here| {
                i_am("slots");
                let vcpu = machine.spawn("vCPU", |machine, cpu| {
                    machine.age(cpu, 0);
                    machine.write(cpu, L1, 0, 7);
                });
                machine.slot(here, 0, 2, LOG_DIRTY_PAGES);
                vcpu.join().unwrap();
                for link in machine.links(here, 0) {
                    // Hardware lets nothing through below that this forbids.
                    assert!(spte::is_writable(link), "a link forbids writing: {link:#x}");
                }
            },
        );
    }

    fn tdp_fast_page_fault_against_exit(protocol) {
        scenes::fast_page_fault_against_exit(&Setup::tdp(EPT, protocol));
    }

    fn tdp_destroyed_under_a_vcpu(protocol) {
        scenes::destroyed_under_a_vcpu(&Setup::tdp(EPT, protocol), L1);
    }

    fn tdp_aging_tries_once(protocol) {
        Setup::tdp(NO_AD, protocol).check(
            "aging without A/D bits tries one exchange, whatever others do to the SPTE",
            |machine, here| {
                let ager = machine.spawn("ager", |machine, cpu| {
                    machine.age(cpu, 0);
                    let word = machine.word(cpu, 0);
                    tally("exchanges in one aging", model::exchanges(word));
                });
                // Change it again and again: age it, and use it.
                for _ in 0..2 {
                    machine.age(here, 0);
                    machine.read(here, L1, 0);
                }
                ager.join().unwrap();
            },
        );
    }

    fn tdp_fault_against_fault(protocol) {
        Setup::tdp(EPT, protocol).pages(2).vcpus(2).untouched().check(
            "competing faults: one table a place, no mapping lost, no table leaked",
            |machine, here| {
                i_am("vCPU 0");
                name_tables(machine);
                for gfn in 0..2 {
                    machine
                        .mm
                        .touch(here, HVA + gfn * PAGE_SIZE, true, None)
                        .expect("room");
                }
                let other = machine.spawn("vCPU 1", |machine, cpu| machine.write(cpu, 1, 1, 2));
                machine.write(here, 0, 0, 1);
                other.join().unwrap();
                note("both vCPUs have written");
                for gfn in 0..2 {
                    let mapped = machine.leaf(here, gfn).is_some();
                    assert!(mapped, "gfn {gfn} was written and is not mapped");
                    assert_eq!(machine.content(machine.pfn(gfn)), gfn as u8 + 1);
                }
                // One root and one table a level: both pages share them.
                let (tables, levels) = (machine.tdp().tables.live(), machine.vm.config.levels);
                assert!(
                    tables == levels,
                    "{tables} tables are in use where {levels} serve both pages: one was linked \
                     over another"
                );
            },
        );
    }

    fn tdp_frozen_stays_frozen(protocol) {
        collapsible(protocol).check(
            "an SPTE frozen by who unlinks its table stays so, whoever ages it late",
            |machine, here| {
                i_am("collapse");
                let ager = machine.spawn("ager", |machine, cpu| {
                    // The table cannot be freed inside this section.
                    let _section = cpu.rcu.lock();
                    let word = machine.word(cpu, 0);
                    if !spte::is_present(word.load(RELAXED)) {
                        return;
                    }
                    machine.age(cpu, 0);
                    let now = word.load(RELAXED);
                    assert!(
                        spte::is_present(now) || spte::is_frozen(now),
                        "a frozen SPTE thawed: it holds {now:#x}"
                    );
                });
                collapse(machine, here);
                ager.join().unwrap();
            },
        );
    }

    fn invalidation_is_seen_without_mmu_lock(protocol) {
        Setup::tdp(EPT, protocol).check(
            "who finds no invalidation running finds the sequence moved by those that ended",
            |machine, here| {
                i_am("notifier");
                let vm = &machine.vm;
                vm.invalidate_range_start(here, HVA, HVA + PAGE_SIZE);
                let (seq, count) = vm.invalidate.words();
                model::name(seq, "mmu_invalidate_seq", model::number);
                model::name(count, "mmu_invalidate_in_progress", model::number);
                let sampled = vm.invalidate.sequence();
                let fault = machine.spawn("fault", move |machine, _| {
                    assert!(
                        machine.vm.invalidate.retry_unsafe(sampled, 0),
                        "sampled inside an invalidation, and told not to retry"
                    );
                });
                vm.invalidate_range_end(here, HVA, HVA + PAGE_SIZE);
                fault.join().unwrap();
            },
        );
    }

    fn tdp_no_mapping_in_a_dead_table(protocol) {
        // A write faults, and no fast page fault fixes it.
        let setup = collapsible(protocol)
            .leaf(|f, s| s & !(spte::WRITABLE | f.mmu_writable | f.host_writable));
        setup.check(
            "no fault puts a mapping into a table that was unlinked",
            |machine, here| {
                // An ager that reads the SPTE here and clears it only below, after
                // the table was unlinked: one thread here stands for two, whose
                // steps fall in this order. With `mmu_lock` held for write from
                // the one to the other they cannot: then all of it comes below.
                let lockless = machine.vm.protocol().tdp_aging == TdpAging::Lockless;
                let ager = machine.cpu();
                let section = ager.rcu.lock();
                let word = machine.word(&ager, 0);
                let seen = word.load(RELAXED);
                i_am("collapse");
                let vcpu = machine.spawn("vCPU", |machine, cpu| machine.write(cpu, L1, 0, 7));
                collapse(machine, here);
                if lockless {
                    note("the ager, late, clears the accessed bit that it saw");
                    EPT.age_young(word, seen);
                } else {
                    machine.age(&ager, 0);
                }
                drop(section);
                vcpu.join().unwrap();
                machine.host.rcu.barrier();
            },
        );
    }
}

#[test]
fn tdp_fault_against_other_slot_deleted() {
    scenes::fault_against_other_slot(&Setup::tdp(EPT, NO_AGING), L1);
}

#[test]
fn tdp_fault_against_slot_deleted() {
    scenes::fault_against_slot_change(&Setup::tdp(EPT, NO_AGING), L1, scenes::delete_slot);
}

#[test]
fn tdp_fault_against_slot_moved() {
    let setup = Setup::tdp(EPT, NO_AGING).zaps_leaves();
    scenes::fault_against_slot_change(&setup, L1, scenes::move_slot);
}

/// Name the entries of tables that are not there yet.
fn name_tables(machine: &Machine) {
    let tables = &machine.tdp().tables;
    // The first one makes room for the others.
    tables.free(tables.alloc().expect("room"));
    for table in 0..8 {
        for (n, word) in tables.entries(TableId(table)).iter().enumerate() {
            let what = format!("entry {n} of table {table:#x}");
            model::name(word, &what, model::spte_text);
        }
    }
}

#[test]
fn spte_aging_leaves_non_present_alone() {
    // One thread freezes and zaps a young leaf, and replaces what was never
    // present, while another ages both: each value is found as it was left.
    check(
        "aging changes no SPTE that is not present, whatever bits it holds",
        || {
            for (format, ad) in [(EPT, 0), (NO_AD, spte::AD_DISABLED), (SpteFormat::NPT, 0)] {
                i_am("zapper");
                let young = spte::MMU_PRESENT | ad | format.accessed | 1;
                let leaf = Arc::new(AtomicU64::new(young));
                let never = Arc::new(AtomicU64::new(!spte::MMU_PRESENT));
                model::name(&*leaf, "SPTE", model::spte_text);
                model::name(&*never, "other SPTE", model::spte_text);
                let ager = {
                    let (leaf, never) = (Arc::clone(&leaf), Arc::clone(&never));
                    spawn("ager", move || {
                        format.age(&leaf, 1);
                        assert!(!format.age(&never, 1).young, "young, and not present");
                    })
                };
                leaf.swap(spte::FROZEN, Ordering::AcqRel);
                let seen = never.swap(POISON, Ordering::AcqRel);
                assert_eq!(
                    seen,
                    !spte::MMU_PRESENT,
                    "aging changed an entry not present"
                );
                let seen = leaf.swap(0, Ordering::AcqRel);
                assert_eq!(seen, spte::FROZEN, "aging changed a frozen SPTE");
                ager.join().unwrap();
                assert_eq!(leaf.load(RELAXED), 0, "aging changed a zapped SPTE");
                let seen = never.load(RELAXED);
                assert_eq!(seen, POISON, "aging changed a freed entry");
            }
        },
    );
}

/// A huge page of two small ones that is mapped small, because its writes are
/// logged.
fn collapsible(protocol: Protocol) -> Setup {
    Setup::tdp(EPT, protocol)
        .pages(2)
        .huge()
        .slot_flags(LOG_DIRTY_PAGES)
}

/// Unlink the table, so that it is mapped huge again
/// (`kvm_tdp_mmu_zap_collapsible_sptes()`).
fn collapse(machine: &Machine, cpu: &Cpu) {
    let slot = {
        let guard = cpu.rcu.lock();
        let slots = machine.vm.memslots.load(0, &guard);
        Arc::clone(slots.by_gfn(0).expect("a slot"))
    };
    machine.tdp().zap_collapsible(&machine.vm, cpu, &slot);
}
