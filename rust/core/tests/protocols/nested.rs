//! A guest with a guest: the TDP MMU and the shadow MMU of one VM map the same
//! page, and aging asks the one and then the other.

use super::RELAXED;
use super::machine::{EPT, HVA, L1, L2, Machine, Setup};
use super::model::{self, by_protocol, i_am};
use super::scenes::{self, NO_AGING};
use youngbit_core::kvm::Protocol;
use youngbit_core::kvm::mmu::{ShadowMmu, spte};
use youngbit_core::mm::folio::{DIRTY, REFERENCED};
use youngbit_core::mm::{FolioWord, MmuNotifier, PAGE_SIZE};

/// L2's SPTE is young and clean; L1's is old, so that what aging reports is
/// what L2 did.
fn l1_is_old(l1_ad: bool, protocol: Protocol) -> Setup {
    Setup::nested(l1_ad, protocol)
        .leaf(|f, spte| f.mark_old(spte) & !f.dirty)
        .l2_leaf(|f, spte| (spte | f.accessed) & !f.dirty)
}

by_protocol! {
    fn nested_l2_write_against_age(protocol) {
        scenes::access_against_age(&l1_is_old(true, protocol), L2, true, Machine::age);
    }

    fn nested_l2_write_against_batched_age(protocol) {
        scenes::access_against_age(&l1_is_old(true, protocol), L2, true, Machine::age_batched);
    }

    /// L1 gave its guest no A/D bits.
    fn nested_l2_write_against_age_without_ad(protocol) {
        let setup = Setup::nested(false, protocol).leaf(|f, spte| f.mark_old(spte) & !f.dirty);
        scenes::access_against_age(&setup, L2, true, Machine::age);
    }

    fn nested_l1_write_against_age(protocol) {
        let setup = Setup::nested(true, protocol)
            .leaf(|f, spte| (spte | f.accessed) & !f.dirty)
            .l2_leaf(|f, spte| f.mark_old(spte));
        scenes::access_against_age(&setup, L1, true, Machine::age);
    }

    fn nested_l2_write_against_zap(protocol) {
        scenes::write_against_zap(&l1_is_old(true, protocol), L2);
    }

    fn nested_age_against_zap(protocol) {
        scenes::age_against_zap(&l1_is_old(true, protocol), L2);
    }

    fn nested_two_agers(protocol) {
        let setup = Setup::nested(true, protocol).leaf(|f, spte| f.mark_old(spte));
        scenes::two_agers(&setup, L2);
    }

    fn nested_l2_fault_against_munmap(protocol) {
        scenes::fault_against_munmap(&Setup::nested(true, protocol), L2);
    }

    fn nested_slot_deleted_against_age(protocol) {
        scenes::slot_change_against_age(&Setup::nested(true, protocol), scenes::delete_slot);
    }

    fn nested_destroyed_under_l2(protocol) {
        scenes::destroyed_under_a_vcpu(&Setup::nested(true, protocol), L2);
    }

    /// L1 and L2 have used the page, each by an SPTE of its own.
    fn nested_both_are_aged(protocol) {
        Setup::nested(true, protocol).check(
            "aging asks the TDP MMU and the shadow MMU, and leaves the page old in both; whoever \
             used it meanwhile is seen",
            |machine, here| {
                let l1 = machine.spawn("L1", |machine, cpu| machine.read(cpu, L1, 0));
                assert!(machine.age(here, 0), "both have used it");
                l1.join().unwrap();
                let (tdp, shadow) = (machine.word(here, 0), machine.shadow_word(L2));
                let l2_left = shadow.load(RELAXED);
                assert!(!EPT.is_accessed(l2_left), "L2's SPTE is young: {l2_left:#x}");
                // L1 may have used it after it was aged.
                let again = EPT.is_accessed(tdp.load(RELAXED));
                assert_eq!(machine.test(here, 0), again, "test against the SPTE");
                assert_eq!(machine.age(here, 0), again, "age against the SPTE");
                assert!(!machine.test(here, 0), "aged twice, and young still");
            },
        );
    }

    /// The shadow MMU is asked only while there are indirect shadow pages: their
    /// number rises with L2's first fault.
    fn nested_first_l2_fault_against_age(protocol) {
        Setup::nested(true, protocol).l2_untouched().check(
            "an ager that finds no indirect shadow pages misses only what is being mapped",
            |machine, here| {
                assert_eq!(machine.shadow().indirect_shadow_pages(), 0);
                while machine.age(here, 0) {}
                let l2 = machine.spawn("L2", |machine, cpu| machine.read(cpu, L2, 0));
                machine.age(here, 0);
                l2.join().unwrap();
                assert_ne!(machine.shadow().indirect_shadow_pages(), 0);
                // Nothing hides L2's page now.
                let young = EPT.is_accessed(machine.shadow_word(L2).load(RELAXED));
                let by_tdp = EPT.is_accessed(machine.word(here, 0).load(RELAXED));
                assert_eq!(machine.test(here, 0), young || by_tdp);
            },
        );
    }

    /// The last shadow page goes under an ager that has found there are some.
    fn nested_last_shadow_page_zapped_against_age(protocol) {
        Setup::nested(true, protocol).check(
            "an ager that is inside when the last shadow page goes reads nothing that was freed",
            |machine, here| {
                let ager = machine.spawn("ager", |machine, cpu| {
                    machine.age(cpu, 0);
                    machine.test(cpu, 0);
                });
                machine.vm.set_guest_mode(here, L2, false).expect("a nested VM");
                machine.slot(here, 0, 0, 0);
                ager.join().unwrap();
                assert_eq!(machine.shadow().indirect_shadow_pages(), 0);
                let shadow = machine.shadow();
                assert!(!machine.vm.clear_young(here, HVA, HVA + PAGE_SIZE, false));
                shadow.verify(&machine.vm, here).expect("sound");
            },
        );
    }
}

#[test]
fn nested_l2_fault_against_slot_deleted() {
    let setup = Setup::nested(true, NO_AGING);
    scenes::fault_against_slot_change(&setup, L2, scenes::delete_slot);
}

/// L1 takes X from its own leaf, and says so, while L2's fault builds from that:
/// what is left of the store when it has trapped.
#[test]
fn nested_l2_fault_against_store_to_its_table() {
    Setup::nested(true, NO_AGING).check(
        "what is built from a guest's table goes when the table is written, or is built from \
         what was written",
        |machine, here| {
            i_am("L2");
            let (gfn, index) = machine.guest_leaf(here);
            machine.zap_shadow(here);
            let l1 = machine.spawn("L1", move |machine, cpu| {
                let shadow = machine.shadow();
                let new = machine.without_fetches((gfn, index));
                shadow.memory.store(gfn, index, new);
                shadow.track_write(&machine.vm, cpu, gfn, index);
            });
            machine.read(here, L2, 0);
            l1.join().unwrap();
            machine.shadow().verify(&machine.vm, here).expect("sound");
        },
    );
}

/// The same by a store of the guest, which traps or not, while the shadow page
/// of that table goes and comes back.
#[test]
fn nested_guest_store_against_new_shadow_page() {
    Setup::nested(true, NO_AGING).check(
        "a guest's store to a table that is shadowed traps, and zaps what was built from it",
        |machine, here| {
            i_am("L2");
            let (gfn, index) = machine.guest_leaf(here);
            let l1 = machine.spawn("L1", move |machine, cpu| {
                let new = machine.without_fetches((gfn, index));
                machine
                    .shadow()
                    .guest_store(&machine.vm, cpu, 0, gfn, index, new)
                    .expect("memory is there");
            });
            machine.zap_shadow(here);
            machine.read(here, L2, 0);
            l1.join().unwrap();
            machine.shadow().verify(&machine.vm, here).expect("sound");
        },
    );
}

/// L1 writes to a frame that is about to be one of L2's page tables, and so loses
/// write permission for good.
#[test]
fn nested_l1_write_against_new_shadow_page() {
    Setup::nested(true, NO_AGING).check(
        "who write-protects a guest's page table keeps the bits that hardware sets meanwhile",
        |machine, here| {
            i_am("L2");
            let (gfn, _) = machine.guest_leaf(here);
            machine.zap_shadow(here);
            machine.write(here, L1, gfn, 1);
            let word = machine.word(here, gfn);
            let was = word.load(RELAXED);
            assert!(
                spte::is_writable(was),
                "no table of L2's any more: {was:#x}"
            );
            word.store(EPT.mark_old(was) & !EPT.dirty, RELAXED);
            let pfn = spte::pfn(was);
            machine.host.memory.word(pfn).clear(DIRTY | REFERENCED);
            model::name(word, "SPTE of L2's page table", model::spte_text);
            let l1 = machine.spawn("L1", move |machine, cpu| machine.write(cpu, L1, gfn, 7));
            machine.read(here, L2, 0);
            l1.join().unwrap();
            let now = word.load(RELAXED);
            assert!(EPT.is_accessed(now), "an access is lost: {now:#x}");
            let dirty = EPT.is_dirty(now) || machine.folio_is_dirty(pfn);
            assert!(dirty, "a write is lost: {now:#x}");
        },
    );
}
