//! The shadow MMU's SPTEs, found through rmaps.

use super::RELAXED;
use super::machine::{EPT, HVA, L1, Machine, NO_AD, Setup};
use super::model::{by_protocol, i_am};
use super::scenes::{self, NO_AGING};
use youngbit_core::cpu::Cpu;
use youngbit_core::kvm::Protocol;
use youngbit_core::kvm::memslot::LOG_DIRTY_PAGES;
use youngbit_core::kvm::mmu::spte;
use youngbit_core::mm::folio::REFERENCED;
use youngbit_core::mm::{MmuNotifier, PAGE_SIZE};
use youngbit_core::sync::atomic::Ordering;
use youngbit_core::trace::Counter;

by_protocol! {
    fn shadow_write_against_age(protocol) {
        let setup = Setup::direct(EPT, protocol).leaf(|f, spte| (spte | f.accessed) & !f.dirty);
        scenes::access_against_age(&setup, L1, true, Machine::age);
    }

    fn shadow_read_against_age(protocol) {
        let setup = Setup::direct(EPT, protocol).leaf(|f, spte| spte & !f.accessed);
        scenes::access_against_age(&setup, L1, false, Machine::age);
    }

    /// A fast page fault against what each protocol does without A/D bits: age
    /// under `mmu_lock`, leave alone, or exchange.
    fn shadow_fast_page_fault_against_age(protocol) {
        let setup = Setup::direct(NO_AD, protocol).leaf(|_, spte| spte & !spte::WRITABLE);
        scenes::access_against_age(&setup, L1, true, Machine::age);
    }

    fn shadow_write_against_zap(protocol) {
        let setup = Setup::direct(EPT, protocol).leaf(|f, spte| (spte | f.accessed) & !f.dirty);
        scenes::write_against_zap(&setup, L1);
    }

    /// Young and dirty before: hardware has nothing to set, and so writes to
    /// the page without an exchange that would find the SPTE gone.
    fn shadow_write_through_dirty_spte_against_zap(protocol) {
        scenes::write_against_zap(&Setup::direct(EPT, protocol), L1);
    }

    fn shadow_age_against_zap(protocol) {
        scenes::age_against_zap(&Setup::direct(EPT, protocol), L1);
    }

    fn shadow_access_track_against_zap(protocol) {
        scenes::age_against_zap(&Setup::direct(NO_AD, protocol), L1);
    }

    fn shadow_two_agers(protocol) {
        scenes::two_agers(&Setup::direct(EPT, protocol), L1);
    }

    fn shadow_two_agers_without_ad(protocol) {
        scenes::two_agers(&Setup::direct(NO_AD, protocol), L1);
    }

    fn shadow_write_against_dirty_log(protocol) {
        let setup = Setup::direct(EPT, protocol).slot_flags(LOG_DIRTY_PAGES);
        scenes::write_against_dirty_log(&setup, L1, false);
    }

    /// The page is in no log and not writable: a fast page fault changes both.
    fn shadow_fast_page_fault_against_dirty_log(protocol) {
        let setup = Setup::direct(EPT, protocol).slot_flags(LOG_DIRTY_PAGES);
        scenes::write_against_dirty_log(&setup, L1, true);
    }

    fn shadow_fault_against_munmap(protocol) {
        scenes::fault_against_munmap(&Setup::direct(EPT, protocol), L1);
    }

    fn shadow_read_against_dirty_log(protocol) {
        let setup = Setup::direct(EPT, protocol).slot_flags(LOG_DIRTY_PAGES);
        scenes::read_against_dirty_log(&setup, L1);
    }

    fn shadow_slot_deleted_against_age(protocol) {
        scenes::slot_change_against_age(&Setup::direct(EPT, protocol), scenes::delete_slot);
    }

    fn shadow_slot_moved_against_age(protocol) {
        scenes::slot_change_against_age(&Setup::direct(EPT, protocol), scenes::move_slot);
    }

    fn shadow_fast_page_fault_against_exit(protocol) {
        scenes::fast_page_fault_against_exit(&Setup::direct(EPT, protocol));
    }

    fn shadow_destroyed_under_a_vcpu(protocol) {
        scenes::destroyed_under_a_vcpu(&Setup::direct(EPT, protocol), L1);
    }

    /// An ager against who zaps the shadow page: the SPTE is written before its
    /// chain is held, so only the SPTE itself settles it between them.
    fn shadow_access_is_passed_on_once(protocol) {
        Setup::direct(NO_AD, protocol).check(
            "without A/D bits, an access is passed on by an ager or by who zaps, not by both",
            |machine, here| {
                i_am("mm exit");
                let pfn = machine.pfn(0);
                let ager = machine.spawn("ager", |machine, cpu| {
                    machine.age(cpu, 0);
                    cpu.counters.get(Counter::SptesAged) == 1
                });
                machine.vm.release(here);
                let aged = ager.join().unwrap();
                let zapped = machine.folio_has(pfn, REFERENCED);
                assert!(aged || zapped, "an access is lost");
                assert!(!(aged && zapped), "one access was passed on twice");
                assert!(machine.folio_is_dirty(pfn), "a write is lost");
            },
        );
    }

    /// Every shadow page goes.
    fn shadow_unlinked_spte_is_dead(protocol) {
        unlinked_spte_is_dead(protocol, |machine, cpu| machine.vm.release(cpu));
    }

    /// Its chain is emptied.
    fn shadow_spte_of_an_emptied_chain_is_dead(protocol) {
        unlinked_spte_is_dead(protocol, |machine, cpu| machine.zap(cpu, 0));
    }

    fn shadow_fault_and_zap_against_age(protocol) {
        Setup::direct(EPT, protocol).check(
            "shadow MMU: faults and zaps against an ager read no freed memory",
            |machine, here| {
                let ager = machine.spawn("ager", |machine, cpu| {
                    machine.age(cpu, 0);
                });
                machine.zap(here, 0);
                machine.write(here, L1, 0, 2);
                ager.join().unwrap();
                machine.shadow().verify(&machine.vm, here).expect("sound");
                assert_eq!(machine.content(machine.pfn(0)), 2);
            },
        );
    }

    /// Two huge pages of two small ones.
    fn shadow_range_across_huge_pages(protocol) {
        Setup::direct(EPT, protocol).pages(4).huge().check(
            "a walk ages every huge page that its range meets, from any start",
            |machine, here| {
                i_am("ager");
                // Each range of the four, while nothing else happens.
                for start in 0..4 {
                    for end in start + 1..=4 {
                        range_across_huge_pages(machine, here, start, end);
                    }
                }
                // And one while another thread looks at its second page, and
                // so holds that one's chain.
                machine.read(here, L1, 2);
                let tester = machine.spawn("tester", |machine, cpu| {
                    machine.test(cpu, 2);
                });
                range_across_huge_pages(machine, here, 1, 3);
                tester.join().unwrap();
            },
        );
    }
}

/// The tables were used before, and freed.
#[test]
fn shadow_fault_against_fault() {
    Setup::direct(EPT, NO_AGING).vcpus(2).check(
        "who sees the link to a table sees the table, and not what it held before",
        |machine, here| {
            i_am("vCPU 0");
            machine.zap_shadow(here);
            let other = machine.spawn("vCPU 1", |machine, cpu| machine.read(cpu, 1, 0));
            machine.write(here, L1, 0, 2);
            other.join().unwrap();
            machine.shadow().verify(&machine.vm, here).expect("sound");
            assert_eq!(machine.content(machine.pfn(0)), 2);
        },
    );
}

#[test]
fn shadow_fault_against_other_slot_deleted() {
    scenes::fault_against_other_slot(&Setup::direct(EPT, NO_AGING), L1);
}

#[test]
fn shadow_fault_against_slot_deleted() {
    scenes::fault_against_slot_change(&Setup::direct(EPT, NO_AGING), L1, scenes::delete_slot);
}

#[test]
fn shadow_fault_against_slot_moved() {
    let setup = Setup::direct(EPT, NO_AGING).zaps_leaves();
    scenes::fault_against_slot_change(&setup, L1, scenes::move_slot);
}

fn unlinked_spte_is_dead(protocol: Protocol, zap: fn(&Machine, &Cpu)) {
    Setup::direct(EPT, protocol).check(
        "an SPTE is zapped before it leaves its chain: what is in no chain maps nothing",
        move |machine, here| {
            i_am("zapper");
            let reader = machine.spawn("reader", |machine, cpu| {
                let leaf = machine.shadow_word(L1);
                let guard = cpu.rcu.lock();
                let slots = machine.vm.memslots.load(0, &guard);
                let slot = slots.by_gfn(0).expect("a slot");
                let head = slot.rmaps().head(0, 1).0.load(Ordering::Acquire);
                if head == 0 {
                    let spte = leaf.load(RELAXED);
                    assert!(
                        !spte::is_present(spte),
                        "an SPTE outside its chain is live: {spte:#x}"
                    );
                }
            });
            zap(machine, here);
            reader.join().unwrap();
        },
    );
}

fn range_across_huge_pages(machine: &Machine, cpu: &Cpu, start: u64, end: u64) {
    for gfn in [0, 2] {
        machine.read(cpu, L1, gfn);
    }
    let (from, to) = (HVA + start * PAGE_SIZE, HVA + end * PAGE_SIZE);
    let young = machine.vm.clear_young(cpu, from, to, machine.fast_only());
    assert!(young, "aged gfns [{start}, {end}): nothing was young");
    for huge in 0..2 {
        let asked = start / 2 <= huge && huge <= (end - 1) / 2;
        let young = machine.test(cpu, huge * 2);
        assert!(
            young != asked,
            "aged gfns [{start}, {end}): huge page {huge} was {}",
            if asked { "missed" } else { "aged too" }
        );
    }
}
