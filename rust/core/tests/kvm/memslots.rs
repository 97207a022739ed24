//! Section 1: memslots.

use crate::machine::Machine;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use youngbit_core::kvm::memslot::{INVALID, LOG_DIRTY_PAGES, MAX_GFN, MAX_PAGES, READONLY};
use youngbit_core::kvm::{Vm, VmConfig};
use youngbit_core::mm::PAGE_SIZE;
use youngbit_core::sync::atomic::{AtomicBool, Ordering};
use youngbit_core::sync::thread;
use youngbit_core::{Cpu, Errno};

fn two_spaces(pages: u64) -> Machine {
    Machine::new(
        pages,
        VmConfig {
            address_spaces: 2,
            ..VmConfig::default()
        },
    )
}

#[test]
fn malformed_and_contradictory_requests_are_refused_with_the_kernels_errors() {
    let m = two_spaces(64);
    m.slot(0, 1, READONLY, 100, 8, m.hva);
    let hva = m.hva;
    let cases = [
        (
            "no such address space",
            m.try_slot(2, 0, 0, 0, 1, hva),
            Errno::EINVAL,
        ),
        (
            "slot number",
            m.try_slot(0, 32764, 0, 0, 1, hva),
            Errno::EINVAL,
        ),
        (
            "unknown flag",
            m.try_slot(0, 5, 4, 500, 1, hva),
            Errno::EINVAL,
        ),
        (
            "internal flag",
            m.try_slot(0, 5, INVALID, 500, 1, hva),
            Errno::EINVAL,
        ),
        (
            "misaligned address",
            m.try_slot(0, 5, 0, 500, 1, hva + 1),
            Errno::EINVAL,
        ),
        (
            "too many pages",
            m.try_slot(0, 5, 0, 500, MAX_PAGES + 1, hva),
            Errno::EINVAL,
        ),
        (
            "beyond guest memory",
            m.try_slot(0, 5, 0, MAX_GFN, 1, hva),
            Errno::EINVAL,
        ),
        (
            "beyond host memory",
            m.try_slot(0, 5, 0, 500, 1, 1 << 47),
            Errno::EINVAL,
        ),
        (
            "deleting nothing",
            m.try_slot(0, 5, 0, 500, 0, hva),
            Errno::EINVAL,
        ),
        (
            "deleting nothing there",
            m.try_slot(1, 0, 0, 0, 0, hva),
            Errno::EINVAL,
        ),
        ("new size", m.try_slot(0, 0, 0, 0, 63, hva), Errno::EINVAL),
        (
            "new address",
            m.try_slot(0, 0, 0, 0, 64, hva + PAGE_SIZE),
            Errno::EINVAL,
        ),
        (
            "read-only later",
            m.try_slot(0, 0, READONLY, 0, 64, hva),
            Errno::EINVAL,
        ),
        (
            "overlap from below",
            m.try_slot(0, 5, 0, 63, 2, hva),
            Errno::EEXIST,
        ),
        (
            "overlap inside",
            m.try_slot(0, 5, 0, 10, 1, hva),
            Errno::EEXIST,
        ),
        (
            "move onto another",
            m.try_slot(0, 1, READONLY, 60, 8, hva),
            Errno::EEXIST,
        ),
    ];
    let before = m.vm.memslots.all(&m.cpu).len();
    for (name, result, errno) in cases {
        let error = result.expect_err(name);
        assert_eq!(error.errno(), errno, "{name}: {error}");
        assert!(error.to_string().contains("memslot"), "{name}: {error}");
    }
    assert_eq!(m.vm.memslots.all(&m.cpu).len(), before);
    // The same again changes nothing, and the other address space is apart.
    m.slot(0, 0, 0, 0, 64, hva);
    m.slot(1, 0, 0, 0, 64, hva);
    m.finish();
}

#[test]
fn lookups_by_gfn_and_id_find_the_slot_that_has_it() {
    let m = two_spaces(64);
    m.slot(0, 7, 0, 1000, 8, m.hva);
    m.slot(0, 3, 0, 500, 8, m.hva);
    m.slot(1, 3, 0, 900, 8, m.hva);
    let guard = m.cpu.rcu.lock();
    let slots = m.vm.memslots.load(0, &guard);
    for (gfn, id) in [
        (0, Some(0)),
        (63, Some(0)),
        (64, None),
        (500, Some(3)),
        (507, Some(3)),
    ] {
        assert_eq!(slots.by_gfn(gfn).map(|slot| slot.id), id, "gfn {gfn}");
    }
    assert_eq!(slots.by_gfn(1007).map(|slot| slot.id), Some(7));
    assert_eq!(slots.by_gfn(900).map(|slot| slot.id), None);
    assert_eq!(slots.by_gfn(u64::MAX).map(|slot| slot.id), None);
    assert_eq!(slots.by_id(3).map(|slot| slot.base_gfn), Some(500));
    assert!(slots.by_id(4).is_none());
    let other = m.vm.memslots.load(1, &guard);
    assert_eq!(other.by_id(3).map(|slot| slot.base_gfn), Some(900));
    drop(guard);
    m.finish();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::budget::cases(200)))]

    /// Slots that overlap in host addresses, created, moved and deleted in any
    /// order: both sets, and all three lookups, agree with a plain list.
    #[test]
    fn lookups_agree_with_a_plain_list(
        ops in prop::collection::vec((0u32..6, 0u64..40, 0u64..6, 0u64..50), 1..30),
        queries in prop::collection::vec((0u64..64, 0u64..20), 1..20),
    ) {
        let m = Machine::v7(64);
        m.slot(0, 0, 0, 0, 0, m.hva);
        let mut plain: BTreeMap<u32, (u64, u64, u64)> = BTreeMap::new();
        for (id, gfn, pages, page) in ops {
            let hva = m.hva_of(page);
            let result = m.try_slot(0, id, 0, gfn, pages, hva);
            let overlaps = plain
                .iter()
                .any(|(&other, &(g, n, _))| other != id && g < gfn + pages && gfn < g + n);
            match plain.get(&id).copied() {
                None if pages == 0 => prop_assert!(result.is_err()),
                Some(_) if pages == 0 => {
                    prop_assert!(result.is_ok());
                    plain.remove(&id);
                }
                Some((_, n, h)) if (n, h) != (pages, hva) => prop_assert!(result.is_err()),
                _ if overlaps => {
                    prop_assert_eq!(result.map_err(|e| e.errno()), Err(Errno::EEXIST));
                }
                _ => {
                    prop_assert!(result.is_ok());
                    plain.insert(id, (gfn, pages, hva));
                }
            }
        }
        let guard = m.cpu.rcu.lock();
        let slots = m.vm.memslots.load(0, &guard);
        prop_assert_eq!(slots.iter().count(), plain.len());
        for (page, pages) in queries {
            let by_gfn = plain.iter().find(|(_, (g, n, _))| (*g..g + n).contains(&page));
            prop_assert_eq!(slots.by_gfn(page).map(|s| s.id), by_gfn.map(|(&id, _)| id));
            let (start, end) = (m.hva_of(page), m.hva_of(page + pages) + 1);
            let mut found: Vec<u32> = slots.in_hva_range(start, end).map(|s| s.id).collect();
            let starts: Vec<u64> = slots
                .in_hva_range(start, end)
                .map(|s| s.userspace_addr)
                .collect();
            prop_assert!(starts.is_sorted());
            found.sort_unstable();
            let expected: Vec<u32> = plain
                .iter()
                .filter(|(_, (_, n, h))| *h < end && start < h + n * PAGE_SIZE)
                .map(|(&id, _)| id)
                .collect();
            prop_assert_eq!(found, expected);
        }
        for (id, (gfn, pages, _)) in &plain {
            let slot = slots.by_id(*id).expect("listed");
            prop_assert_eq!((slot.base_gfn, slot.npages), (*gfn, *pages));
        }
    }
}

#[test]
fn a_deleted_slot_is_unmapped_and_its_state_passed_on() {
    for slot_zap_all in [true, false] {
        let m = Machine::new(
            64,
            VmConfig {
                slot_zap_all,
                ..VmConfig::default()
            },
        );
        m.slot(0, 1, 0, 100, 8, m.hva);
        m.write(101);
        m.read(5);
        m.clean_folio(1);
        m.slot(0, 1, 0, 100, 0, m.hva);
        assert!(m.leaf(101).is_none());
        // Everything goes, or only what the slot mapped.
        assert_eq!(m.leaf(5).is_some(), !slot_zap_all);
        let folio = m.folio(1);
        assert!(folio.has(youngbit_core::mm::folio::DIRTY), "{folio:?}");
        let error =
            m.vm.access(&m.cpu, 0, 101, false, None)
                .expect_err("no slot");
        assert_eq!(error.errno(), Errno::EFAULT);
        assert!(error.to_string().contains("0x65"), "{error}");
        m.read(5);
        m.finish();
    }
}

#[test]
fn a_moved_slot_shows_the_same_memory_elsewhere() {
    let m = Machine::v7(16);
    m.vm.access(&m.cpu, 0, 3, true, Some(77)).expect("mapped");
    m.slot(0, 0, 0, 200, 16, m.hva);
    assert!(m.vm.access(&m.cpu, 0, 3, false, None).is_err());
    m.read(203);
    let page = m.mm.gup_fast(&m.cpu, m.hva_of(3), false).expect("there");
    assert_eq!(m.host.memory.content(page.pfn).load(Ordering::Relaxed), 77);
    assert_eq!(
        m.vm.tdp.as_ref().map(|t| t.leaf(&m.cpu, 0, 3).is_some()),
        Some(false)
    );
    m.finish();
}

#[test]
fn a_read_only_slot_is_read_and_not_written() {
    let m = Machine::v7(16);
    m.slot(0, 1, READONLY, 100, 8, m.hva);
    m.write(2);
    m.read(102);
    let error =
        m.vm.access(&m.cpu, 0, 102, true, None)
            .expect_err("read-only");
    assert_eq!(error.errno(), Errno::EFAULT);
    assert!(error.to_string().contains("read-only"), "{error}");
    m.finish();
}

#[test]
fn slots_cannot_change_from_inside_a_notifier_call() {
    let m = Machine::v7(16);
    let guard = m.cpu.srcu.lock();
    let error = m.try_slot(0, 1, 0, 100, 1, m.hva).expect_err("inside");
    assert_eq!(error.errno(), Errno::EBUSY);
    drop(guard);
    m.finish();
}

/// Each swap waits until no invalidation that began on the old set still runs.
#[test]
fn a_swap_waits_for_running_invalidations() {
    let m = Machine::v7(16);
    let done = AtomicBool::new(false);
    let told = m.mm.notifiers.invalidate(&m.cpu, m.hva, m.hva + PAGE_SIZE);
    thread::scope(|s| {
        s.spawn(|| {
            let cpu = Cpu::new(&m.host);
            let region = youngbit_core::kvm::MemoryRegion {
                as_id: 0,
                slot: 0,
                flags: 0,
                guest_phys_addr: 0,
                memory_size: 0,
                userspace_addr: 0,
            };
            m.vm.set_memory_region(&cpu, &region).expect("deleted");
            done.store(true, Ordering::SeqCst);
        });
        let before = std::time::Instant::now();
        while before.elapsed().as_millis() < 50 {
            assert!(!done.load(Ordering::SeqCst), "did not wait");
            thread::yield_now();
        }
        assert_eq!(m.vm.invalidate.in_progress(), 1);
        drop(told);
    });
    assert!(done.load(Ordering::SeqCst));
    assert_eq!(
        m.vm.invalidate.in_progress(),
        0,
        "start and end met one slot"
    );
    m.finish();
}

/// The VM unsubscribes between the two, and is not told of the end.
#[test]
fn an_invalidation_that_a_vm_does_not_see_end_holds_up_no_update() {
    let m = Machine::v7(16);
    let told = m.mm.notifiers.invalidate(&m.cpu, m.hva, m.hva + PAGE_SIZE);
    let ended: Arc<[AtomicBool; 2]> = Arc::default();
    let spawn = |n: usize, act: fn(&Vm, &Cpu)| {
        let (host, vm, ended) = (Arc::clone(&m.host), Arc::clone(&m.vm), Arc::clone(&ended));
        thread::spawn(move || {
            act(&vm, &Cpu::new(&host));
            ended[n].store(true, Ordering::SeqCst);
        });
    };
    // No scope: a thread that waits for ever is to fail the test, not to hang it.
    spawn(0, |vm, cpu| {
        let region = youngbit_core::kvm::MemoryRegion {
            as_id: 0,
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: 0,
            userspace_addr: 0,
        };
        vm.set_memory_region(cpu, &region).expect("deleted");
    });
    thread::sleep(Duration::from_millis(50));
    assert!(!ended[0].load(Ordering::SeqCst), "did not wait");
    spawn(1, |vm, cpu| vm.destroy(cpu).expect("destroyed"));
    let before = Instant::now();
    while !ended.iter().all(|ended| ended.load(Ordering::SeqCst)) {
        assert!(before.elapsed().as_secs() < 60, "waits for ever: {ended:?}");
        thread::sleep(Duration::from_millis(1));
    }
    drop(told);
}

/// Readers never see a half-made set: every set they see was published.
#[test]
fn readers_see_only_published_sets() {
    let m = Machine::v7(64);
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        s.spawn(|| {
            let cpu = Cpu::new(&m.host);
            let (mut seen, mut last) = (0u64, 0);
            while !stop.load(Ordering::Relaxed) || seen < 100 {
                let guard = cpu.rcu.lock();
                let slots = m.vm.memslots.load(0, &guard);
                assert!(slots.generation() >= last, "an older set came back");
                last = slots.generation();
                let ids: Vec<u32> = slots.iter().map(|slot| slot.id).collect();
                // Slots 1 and 2 come and go in this order only.
                assert!(
                    [&[0][..], &[0, 1], &[0, 1, 2], &[0, 2]].contains(&&ids[..]),
                    "{ids:?}"
                );
                for slot in slots.iter() {
                    assert!(std::ptr::eq(
                        &**slots.by_id(slot.id).expect("by id"),
                        &**slot
                    ));
                    let found = slots.by_gfn(slot.base_gfn).expect("by gfn");
                    assert_eq!(found.id, slot.id);
                    let hva = slots.in_hva_range(slot.userspace_addr, slot.end_hva());
                    assert!(hva.map(|s| s.id).any(|id| id == slot.id));
                }
                seen += 1;
            }
        });
        for _ in 0..60 {
            m.slot(0, 1, 0, 100, 8, m.hva);
            m.slot(0, 2, 0, 200, 8, m.hva);
            m.slot(0, 1, 0, 100, 0, m.hva);
            m.slot(0, 2, 0, 200, 0, m.hva);
        }
        stop.store(true, Ordering::Relaxed);
    });
    m.finish();
}

#[test]
fn rmap_heads_are_made_on_use_and_stay_with_copies_not_with_moves() {
    let m = Machine::v7(64);
    m.slot(0, 1, 0, 1000, 600, m.hva);
    let find = || m.vm.memslots.all(&m.cpu).into_iter().find(|s| s.id == 1);
    let slot = find().expect("there");
    assert!(slot.rmaps_if_any().is_none());
    slot.rmaps();
    m.slot(0, 1, LOG_DIRTY_PAGES, 1000, 600, m.hva);
    let copy = find().expect("there");
    assert!(std::ptr::eq(
        slot.rmaps(),
        copy.rmaps_if_any().expect("shared")
    ));
    m.slot(0, 1, LOG_DIRTY_PAGES, 2000, 600, m.hva);
    assert!(find().expect("there").rmaps_if_any().is_none());
    m.finish();
}
