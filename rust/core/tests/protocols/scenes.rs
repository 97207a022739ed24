//! What happens to a page, whichever MMU maps it: each a model of a VM that the
//! caller sets up.

use super::RELAXED;
use super::machine::{HVA, L1, Machine, Setup};
use super::model::{i_am, note};
use youngbit_core::cpu::Cpu;
use youngbit_core::kvm::Protocol;
use youngbit_core::kvm::mmu::spte;
use youngbit_core::kvm::protocol::{ShadowAging, ShadowNoAd};
use youngbit_core::mm::folio::REFERENCED;
use youngbit_core::mm::{MmuNotifier, PAGE_SIZE};
use youngbit_core::sync::atomic::AtomicU64;

/// For checks of what all protocols do alike: nobody ages.
pub const NO_AGING: Protocol = Protocol::V7;

/// A way to age one page.
pub type Age = fn(&Machine, &Cpu, u64) -> bool;

/// The leaf of GFN 0 that a vCPU goes through.
fn leaf_of<'a>(machine: &'a Machine, cpu: &Cpu, vcpu: u32) -> &'a AtomicU64 {
    if vcpu == L1 {
        machine.word(cpu, 0)
    } else {
        machine.shadow_word(vcpu)
    }
}

/// Whether aging leaves this SPTE as it is: v7 without `mmu_lock` and without
/// A/D bits, in the shadow MMU.
fn is_left_alone(machine: &Machine, vcpu: u32, spte: u64) -> bool {
    let protocol = machine.vm.protocol();
    (machine.vm.tdp.is_none() || vcpu != L1)
        && !spte::ad_enabled(spte)
        && protocol.shadow_aging != ShadowAging::Locked
        && protocol.shadow_no_ad == ShadowNoAd::Leave
}

/// An access of a vCPU and an aging at once: the access is seen by this aging
/// or by the next, no Dirty and no Writable is lost, and no other bit changes.
pub fn access_against_age(setup: &Setup, vcpu: u32, write: bool, age: Age) {
    let claim = "no Dirty and no Writable is lost, an accessed bit set by hardware is seen, \
                 aging changes nothing else";
    setup.check(claim, move |machine, here| {
        i_am("ager");
        let format = *machine.vm.format();
        let word = leaf_of(machine, here, vcpu);
        let was = word.load(RELAXED);
        let pfn = machine.pfn(0);
        let accessor = machine.spawn("vCPU", move |machine, cpu| {
            if write {
                machine.write(cpu, vcpu, 0, 7);
            } else {
                machine.read(cpu, vcpu, 0);
            }
        });
        let first = age(machine, here, 0);
        accessor.join().unwrap();
        let now = word.load(RELAXED);
        assert!(spte::is_present(now), "nobody zapped it: {now:#x}");
        let second = age(machine, here, 0);
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
        assert_eq!(
            now & !may_change,
            was & !may_change,
            "another bit of the SPTE changed"
        );
        let young = age(machine, here, 0);
        if is_left_alone(machine, vcpu, now) {
            assert!(young, "v7 cannot age this one, and did");
        } else {
            assert!(!young, "aged twice, and young still");
        }
    });
}

/// A write and a zap at once: what hardware set is passed on, and nothing goes
/// through the old mapping once the invalidation has begun.
pub fn write_against_zap(setup: &Setup, vcpu: u32) {
    writes_against_zap(setup, vcpu, move |machine, cpu| {
        machine.write(cpu, vcpu, 0, 7);
    });
}

/// The same while the vCPU writes twice in a stay in the guest, so that it
/// answers the flush between two writes.
pub fn two_writes_against_zap(setup: &Setup) {
    writes_against_zap(setup, L1, |machine, cpu| machine.write_twice(cpu, 7));
}

fn writes_against_zap(
    setup: &Setup,
    vcpu: u32,
    write: impl Fn(&Machine, &Cpu) + Copy + Send + Sync + 'static,
) {
    setup.check(
        "zapping passes Dirty on: no write is lost",
        move |machine, here| {
            i_am("zapper");
            let format = *machine.vm.format();
            let word = leaf_of(machine, here, vcpu);
            let pfn = machine.pfn(0);
            let writer = machine.spawn("vCPU", write);
            machine
                .vm
                .invalidate_range_start(here, HVA, HVA + PAGE_SIZE);
            // Nothing maps the page now, and nothing will before the end: what
            // was written by now has made it dirty, and nothing more is written.
            let written = machine.content(pfn);
            note(format!("the page holds {written}"));
            let dirty = machine.folio_is_dirty(pfn);
            assert!(written != 7 || dirty, "a write is lost by the zap");
            let spte = word.load(RELAXED);
            assert!(
                !spte::is_present(spte),
                "mapped during the invalidation: {spte:#x}"
            );
            assert!(
                machine.content(pfn) == written,
                "written through a stale mapping"
            );
            machine.vm.invalidate_range_end(here, HVA, HVA + PAGE_SIZE);
            writer.join().unwrap();
            assert!(machine.content(pfn) == 7, "the vCPU's write is nowhere");
            let spte = word.load(RELAXED);
            let dirty =
                machine.folio_is_dirty(pfn) || spte::is_present(spte) && format.is_dirty(spte);
            assert!(dirty, "a write is lost: {spte:#x}");
        },
    );
}

/// An ager against a zap of a young page.
pub fn age_against_zap(setup: &Setup, vcpu: u32) {
    let claim = "aging never changes an SPTE that is not present, and reads no freed memory; an \
                 access is reported by the ager or passed on by who zaps";
    setup.check(claim, move |machine, here| {
        i_am("zapper");
        let word = leaf_of(machine, here, vcpu);
        let pfn = machine.pfn(0);
        let ager = machine.spawn("ager", |machine, cpu| machine.age(cpu, 0));
        machine.zap(here, 0);
        let young = ager.join().unwrap();
        let left = word.load(RELAXED);
        assert!(left == 0, "the zapped SPTE holds {left:#x}");
        let passed_on = machine.folio_has(pfn, REFERENCED);
        assert!(young || passed_on, "an access is lost");
    });
}

/// Two agers of one young page.
pub fn two_agers(setup: &Setup, vcpu: u32) {
    setup.check(
        "two agers may both report young; the SPTE is old afterwards, and no write is lost",
        move |machine, here| {
            i_am("ager 1");
            let format = *machine.vm.format();
            let word = leaf_of(machine, here, vcpu);
            let was = word.load(RELAXED);
            let ager = machine.spawn("ager 2", |machine, cpu| machine.age(cpu, 0));
            let mine = machine.age(here, 0);
            assert!(mine | ager.join().unwrap(), "an access is lost");
            let now = word.load(RELAXED);
            if is_left_alone(machine, vcpu, was) {
                assert_eq!(now, was, "v7 cannot age this one, and did");
            } else {
                assert!(!format.is_accessed(now), "young still: {now:#x}");
            }
            let dirty = machine.folio_is_dirty(machine.pfn(0)) || format.is_dirty(now);
            assert!(dirty, "a write is lost");
        },
    );
}

/// A fault of a vCPU against munmap of the memory that it is about to map.
pub fn fault_against_munmap(setup: &Setup, vcpu: u32) {
    setup.check(
        "a fault installs no mapping for memory that was invalidated meanwhile",
        move |machine, here| {
            i_am("munmap");
            let word = leaf_of(machine, here, vcpu);
            // The vCPU has a root and the tables, but no leaf.
            machine.zap(here, 0);
            let faulter = machine.spawn("vCPU", move |machine, cpu| {
                // Memory that is gone is an error, and no more.
                let _ = machine.vm.access(cpu, vcpu, 0, true, Some(7));
            });
            machine
                .mm
                .munmap(here, HVA, PAGE_SIZE)
                .expect("a valid range");
            let left = word.load(RELAXED);
            assert!(
                !spte::is_present(left),
                "munmap has returned, and {left:#x} maps the page"
            );
            faulter.join().unwrap();
            let left = word.load(RELAXED);
            assert!(
                !spte::is_present(left),
                "{left:#x} maps a page that is gone"
            );
        },
    );
}

/// An ager against a change of the memslots; then everything goes.
pub fn slot_change_against_age(setup: &Setup, change: fn(&Machine, &Cpu)) {
    setup.check(
        "walkers of memslots and tables read nothing that was freed; every table is freed once",
        move |machine, here| {
            i_am("slots");
            let ager = machine.spawn("ager", |machine, cpu| {
                machine.age(cpu, 0);
            });
            change(machine, here);
            ager.join().unwrap();
            machine.destroy(here);
        },
    );
}

/// A fault of a vCPU against the end of the slot in which it found its page.
pub fn fault_against_slot_change(setup: &Setup, vcpu: u32, change: fn(&Machine, &Cpu)) {
    setup.check(
        "a fault maps nothing of a slot that was deleted or moved meanwhile",
        move |machine, here| {
            i_am("vCPU");
            // The vCPU has a root and the tables, but no leaf.
            machine.zap(here, 0);
            let slots = machine.spawn("slots", move |machine, cpu| change(machine, cpu));
            // Memory that is gone is an error, and no more.
            let _ = machine.vm.access(here, vcpu, 0, true, Some(7));
            slots.join().unwrap();
            note("the slot is gone");
            if machine.vm.tdp.is_some() {
                let left = machine.leaf(here, 0);
                assert!(left.is_none(), "{left:x?} maps a frame that no slot has");
            }
            if let Some(shadow) = &machine.vm.shadow {
                shadow.verify(&machine.vm, here).expect("sound");
            }
            machine.destroy(here);
        },
    );
}

/// A fault of a vCPU while another slot goes, and with it every root.
pub fn fault_against_other_slot(setup: &Setup, vcpu: u32) {
    setup.check(
        "a fault maps nothing below a root that is invalid, and the vCPU finds its way to another",
        move |machine, here| {
            i_am("vCPU");
            machine.other_slot(here, 1);
            machine.zap(here, 0);
            let slots = machine.spawn("slots", |machine, cpu| machine.other_slot(cpu, 0));
            machine.write(here, vcpu, 0, 7);
            slots.join().unwrap();
            assert_eq!(machine.content(machine.pfn(0)), 7, "the write is nowhere");
            machine.destroy(here);
        },
    );
}

/// Memory is invalidated while its slot goes.
pub fn invalidation_against_slot_change(setup: &Setup, change: fn(&Machine, &Cpu)) {
    setup.check(
        "an invalidation ends on the memslots on which it began, and is counted out",
        move |machine, here| {
            i_am("slots");
            let notifier = machine.spawn("notifier", |machine, cpu| machine.zap(cpu, 0));
            change(machine, here);
            notifier.join().unwrap();
            let running = machine.vm.invalidate.in_progress();
            assert!(running == 0, "{running} invalidations never end");
        },
    );
}

/// A fault that gives W back, and another processor's walk of the same SPTE.
pub fn restore_against_hardware(setup: &Setup) {
    setup.clone().vcpus(2).check(
        "a write through an SPTE that a fault restores is not lost to another vCPU's walk of it",
        move |machine, here| {
            i_am("vCPU 0");
            let format = *machine.vm.format();
            let word = machine.word(here, 0);
            let reader = machine.spawn("vCPU 1", |machine, cpu| machine.read(cpu, 1, 0));
            machine.write(here, L1, 0, 7);
            reader.join().unwrap();
            let now = word.load(RELAXED);
            let dirty = format.is_dirty(now) || machine.folio_is_dirty(machine.pfn(0));
            assert!(dirty, "a write is lost: {now:#x}");
            assert!(spte::is_writable(now), "Writable is lost: {now:#x}");
            assert!(machine.age(here, 0), "an access is lost: {now:#x}");
        },
    );
}

/// A fault that is fixed without `mmu_lock`, against the end of the tables that
/// it walks.
pub fn fast_page_fault_against_exit(setup: &Setup) {
    let setup = setup.clone().leaf(|_, spte| spte & !spte::WRITABLE);
    setup.check(
        "a fault without mmu_lock reads no table that was freed",
        move |machine, here| {
            i_am("mm exit");
            let faulter = machine.spawn("vCPU", |machine, cpu| {
                // A VM that is gone is an error, and no more.
                let _ = machine.vm.access(cpu, L1, 0, true, Some(7));
            });
            machine.vm.release(here);
            faulter.join().unwrap();
        },
    );
}

/// The page's slot goes.
pub fn delete_slot(machine: &Machine, cpu: &Cpu) {
    machine.slot(cpu, 0, 0, 0);
}

/// The page's slot moves, so that it is seen at another frame.
pub fn move_slot(machine: &Machine, cpu: &Cpu) {
    machine.slot(cpu, 1, 1, 0);
}

/// A vCPU leaves its root while the VM's memory goes, and with it the MMU's own
/// reference.
pub fn destroyed_under_a_vcpu(setup: &Setup, vcpu: u32) {
    setup.check(
        "a root is freed once, by whoever puts its last reference",
        move |machine, here| {
            i_am("mm exit");
            let runner = machine.spawn("vCPU", move |machine, cpu| {
                // A VM that is gone is an error, and no more.
                let _ = machine.vm.access(cpu, vcpu, 0, true, Some(7));
            });
            machine.vm.release(here);
            runner.join().unwrap();
            // What the end of the VM did not see, nobody would take apart.
            if let Some(shadow) = &machine.vm.shadow {
                let made = shadow.used_pages();
                assert!(
                    made == 0,
                    "{made} shadow pages were made for a VM that is gone"
                );
            }
            if let Some(tdp) = &machine.vm.tdp {
                let valid = tdp.roots(here).iter().any(|root| !root.invalid);
                assert!(!valid, "a root was made for a VM that is gone");
            }
            machine.destroy(here);
        },
    );
}

/// A read against reading the dirty log.
pub fn read_against_dirty_log(setup: &Setup, vcpu: u32) {
    let setup = setup.clone().leaf(|f, spte| f.mark_old(spte));
    setup.check(
        "who write-protects an SPTE keeps an accessed bit that hardware sets, or passes it on",
        move |machine, here| {
            i_am("dirty log");
            let reader = machine.spawn("vCPU", move |machine, cpu| machine.read(cpu, vcpu, 0));
            let log = machine.vm.get_dirty_log(here, 0, 0).expect("it logs");
            assert!(log[0] & 1 != 0, "written before, and not in the log");
            reader.join().unwrap();
            let seen = machine.age(here, 0) || machine.folio_has(machine.pfn(0), REFERENCED);
            // v9 tolerates it where `mmu_lock` is held for write.
            let tolerated = !machine.vm.protocol().accessed_volatile;
            assert!(seen || tolerated, "an access is lost");
        },
    );
}

/// A write against reading the dirty log, which takes Dirty away or protects:
/// of a page that is writable, and in the log, or of one that is neither, so
/// that the write faults first.
pub fn write_against_dirty_log(setup: &Setup, vcpu: u32, harvested: bool) {
    setup.check(
        "a page that was written is in this dirty log or in the next",
        move |machine, here| {
            i_am("dirty log");
            let log = |cpu: &Cpu| machine.vm.get_dirty_log(cpu, 0, 0).expect("it logs")[0];
            if harvested {
                assert!(log(here) & 1 != 0, "written before, and not in the log");
            }
            let writer = machine.spawn("vCPU", move |machine, cpu| machine.write(cpu, vcpu, 0, 7));
            log(here);
            // What was written before the log was read need not come again.
            let written = machine.content(machine.pfn(0));
            writer.join().unwrap();
            let second = log(here);
            assert!(
                written == 7 || second & 1 != 0,
                "written after the log was read, and not in the next log"
            );
            machine.write(here, vcpu, 0, 9);
            let third = log(here);
            assert!(third & 1 != 0, "a write after the log was not logged");
        },
    );
}
