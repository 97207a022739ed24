//! Sections 1 and 5: the walk over memslots, and what the callbacks do.

use crate::machine::{Machine, config, configs};
use youngbit_core::access::AccessKind;
use youngbit_core::kvm::memslot::GfnRange;
use youngbit_core::kvm::mmu::spte::SpteFormat;
use youngbit_core::kvm::vm::{HvaRange, HvaResult, NO_HANDLER, NO_LOCK};
use youngbit_core::kvm::{Protocol, VmConfig};
use youngbit_core::mm::{MmuNotifier, PAGE_SIZE};
use youngbit_core::trace::{Counter, Event};
use youngbit_core::{Cpu, Errno};

type Seen = Vec<(usize, u32, u64, u64)>;

fn walk(m: &Machine, start: u64, end: u64, lockless: bool) -> (HvaResult, Seen) {
    let mut seen = Vec::new();
    let result = m.vm.handle_hva_range(
        &m.cpu,
        HvaRange {
            start,
            end,
            handler: Some(|range: &GfnRange<'_>| {
                seen.push((range.slot.as_id, range.slot.id, range.start, range.end));
                assert_eq!(range.lockless, lockless);
                assert_eq!(m.vm.mmu_lock.is_write_locked(), !lockless);
                assert!(range.fast_only && range.may_block);
                range.slot.id == 0
            }),
            on_lock: NO_LOCK,
            flush_on_ret: true,
            may_block: true,
            lockless,
            fast_only: true,
        },
    );
    (result.expect("a valid walk"), seen)
}

#[test]
fn one_walk_yields_every_page_that_intersects_of_every_slot_and_address_space() {
    let m = Machine::new(
        64,
        VmConfig {
            address_spaces: 2,
            ..VmConfig::default()
        },
    );
    // The same host pages at two other places.
    m.slot(0, 1, 0, 100, 8, m.hva_of(4));
    m.slot(1, 0, 0, 1000, 64, m.hva);
    for lockless in [false, true] {
        let (result, seen) = walk(&m, m.hva_of(5), m.hva_of(7), lockless);
        assert_eq!(seen, [(0, 0, 5, 7), (0, 1, 101, 103), (1, 0, 1005, 1007)]);
        assert!(result.found_memslot && result.ret);
        // One byte is one page; a byte on either side of a border is two.
        let at = m.hva_of(9);
        let (_, seen) = walk(&m, at, at + 1, lockless);
        assert_eq!(seen, [(0, 0, 9, 10), (0, 1, 105, 106), (1, 0, 1009, 1010)]);
        let (_, seen) = walk(&m, at - 1, at + 1, lockless);
        assert_eq!(seen[0], (0, 0, 8, 10));
        // Cut at the slot's ends.
        let (_, seen) = walk(&m, m.hva - PAGE_SIZE, m.hva_of(1000), lockless);
        assert_eq!(seen, [(0, 0, 0, 64), (0, 1, 100, 108), (1, 0, 1000, 1064)]);
        let (result, seen) = walk(&m, m.hva_of(64), m.hva_of(70), lockless);
        assert_eq!((result, seen.len()), (HvaResult::default(), 0));
    }
    m.finish();
}

#[test]
fn the_lock_is_taken_once_at_the_first_slot_and_never_when_lockless() {
    let m = Machine::v7(64);
    m.slot(0, 1, 0, 100, 64, m.hva);
    let locks = |start, end, lockless| {
        m.counting(|| {
            walk(&m, start, end, lockless);
        })
    };
    let (hit, miss) = ((m.hva, m.hva_of(64)), (m.hva_of(64), m.hva_of(65)));
    assert_eq!(locks(hit.0, hit.1, false).get(Counter::MmuLockWrite), 1);
    assert_eq!(locks(miss.0, miss.1, false).get(Counter::MmuLockWrite), 0);
    assert_eq!(locks(hit.0, hit.1, true).get(Counter::MmuLockWrite), 0);
    assert_eq!(locks(hit.0, hit.1, true).get(Counter::MemslotsVisited), 2);
    assert!(!m.vm.mmu_lock.is_write_locked(), "dropped at the end");
    m.finish();
}

#[test]
fn on_lock_runs_once_under_the_lock_and_without_a_handler_the_walk_ends_at_the_first_slot() {
    let m = Machine::v7(64);
    m.slot(0, 1, 0, 100, 64, m.hva);
    let mut locked = 0;
    let counters = m.counting(|| {
        let result = m.vm.handle_hva_range(
            &m.cpu,
            HvaRange {
                start: m.hva,
                end: m.hva_of(64),
                handler: NO_HANDLER,
                on_lock: Some(|| {
                    assert!(m.vm.mmu_lock.is_write_locked());
                    locked += 1;
                }),
                flush_on_ret: true,
                may_block: true,
                lockless: false,
                fast_only: false,
            },
        );
        let expected = HvaResult {
            ret: false,
            found_memslot: true,
        };
        assert_eq!(result.expect("valid"), expected);
    });
    assert_eq!(locked, 1);
    assert_eq!(counters.get(Counter::MemslotsVisited), 0);
    assert_eq!(counters.get(Counter::TlbFlushes), 0);
    m.finish();
}

#[test]
fn programming_errors_are_refused() {
    let m = Machine::v7(16);
    let handler = |_: &GfnRange<'_>| panic!("must not be called");
    let range = |start, end| HvaRange {
        start,
        end,
        handler: Some(handler),
        on_lock: Some(|| panic!("must not be called")),
        flush_on_ret: false,
        may_block: false,
        lockless: false,
        fast_only: false,
    };
    let refused = |result: youngbit_core::Result<HvaResult>| {
        assert_eq!(result.expect_err("refused").errno(), Errno::EINVAL);
    };
    refused(m.vm.handle_hva_range(&m.cpu, range(m.hva, m.hva)));
    refused(m.vm.handle_hva_range(&m.cpu, range(m.hva + 1, m.hva)));
    refused(m.vm.handle_hva_range(
        &m.cpu,
        HvaRange {
            lockless: true,
            ..range(m.hva, m.hva_of(1))
        },
    ));
    refused(m.vm.handle_hva_range(
        &m.cpu,
        HvaRange {
            start: m.hva,
            end: m.hva_of(1),
            handler: NO_HANDLER,
            on_lock: NO_LOCK,
            flush_on_ret: false,
            may_block: false,
            lockless: true,
            fast_only: false,
        },
    ));
    // Through a callback the error reaches whoever runs the pass.
    assert!(!m.vm.clear_young(&m.cpu, m.hva, m.hva, false));
    assert!(m.cpu.take_error().is_some());
    m.finish();
}

#[test]
fn flush_on_ret_flushes_only_if_a_handler_returned_true() {
    let m = Machine::v7(64);
    m.slot(0, 1, 0, 100, 8, m.hva_of(32));
    m.slot(0, 0, 0, 0, 0, m.hva);
    let flushes = |end| {
        m.count(Counter::TlbFlushes, || {
            walk(&m, m.hva_of(32), end, false);
        })
    };
    assert_eq!(flushes(m.hva_of(33)), 0, "slot 1 returns false");
    m.slot(0, 0, 0, 0, 64, m.hva);
    assert_eq!(flushes(m.hva_of(33)), 1);
    m.finish();
}

#[test]
fn clear_flush_young_flushes_and_the_other_two_do_not() {
    for config in configs() {
        let m = Machine::new(16, config);
        m.write(3);
        let (start, end) = (m.hva_of(3), m.hva_of(4));
        let flushes = |f: &dyn Fn() -> bool| {
            m.count(Counter::TlbFlushes, || {
                f();
            })
        };
        assert_eq!(flushes(&|| m.vm.test_young(&m.cpu, start, false)), 0);
        assert_eq!(flushes(&|| m.vm.clear_young(&m.cpu, start, end, false)), 0);
        m.write(3);
        assert_eq!(flushes(&|| m.vm.clear_flush_young(&m.cpu, start, end)), 1);
        assert_eq!(flushes(&|| m.vm.clear_flush_young(&m.cpu, start, end)), 0);
        m.finish();
    }
}

#[test]
fn the_young_callbacks_take_the_lock_only_where_the_architecture_does_not_opt_in() {
    for config in configs() {
        let protocol = config.protocol;
        let m = Machine::new(16, config);
        m.write(3);
        let (start, end) = (m.hva_of(3), m.hva_of(4));
        let counters = m.counting(|| {
            assert!(m.vm.test_young(&m.cpu, start, true));
            assert!(m.vm.clear_young(&m.cpu, start, end, true));
            m.vm.clear_flush_young(&m.cpu, start, end);
        });
        let locks = if protocol.young_lockless { 0 } else { 3 };
        assert_eq!(
            counters.get(Counter::MmuLockWrite),
            locks,
            "{}",
            protocol.name
        );
        assert_eq!(counters.get(Counter::MmuLockRead), 0, "{}", protocol.name);
        m.finish();
    }
}

#[test]
fn fast_aging_is_registered_by_protocol_after_registration() {
    for &protocol in Protocol::ALL {
        let m = Machine::new(16, config(protocol, SpteFormat::EPT));
        assert!(m.mm.notifiers.has_notifiers());
        assert_eq!(
            m.mm.notifiers.has_fast_young_notifiers(),
            protocol.has_fast_aging,
            "{}",
            protocol.name
        );
        m.write(3);
        // A fast_only caller skips a VM that is not fast, and its bit stays.
        let (start, end) = (m.hva_of(3), m.hva_of(4));
        let young = m.mm.notifiers.clear_young(&m.cpu, start, end, true);
        assert_eq!(young, protocol.has_fast_aging);
        assert_eq!(m.is_young(3), !protocol.has_fast_aging);
        let mm = std::sync::Arc::clone(&m.mm);
        m.finish();
        assert!(!mm.notifiers.has_notifiers() && !mm.notifiers.has_fast_young_notifiers());
    }
}

#[test]
fn every_call_leaves_exactly_one_trace_event() {
    let m = Machine::new(
        16,
        VmConfig {
            address_spaces: 2,
            ..VmConfig::default()
        },
    );
    m.slot(0, 1, 0, 100, 16, m.hva);
    m.slot(1, 0, 0, 100, 16, m.hva);
    let young = Event::KvmAgeHva as u32 | Event::KvmTestAgeHva as u32;
    m.host
        .set_trace_mask(young | Event::KvmTdpMmuSpteChanged as u32);
    m.write(3);
    let (start, end) = (m.hva_of(3), m.hva_of(5));
    {
        let cpu = Cpu::new(&m.host);
        m.vm.clear_young(&cpu, start, end, true);
        m.vm.clear_young(&cpu, start, end, false);
        m.vm.clear_flush_young(&cpu, start, end);
        m.vm.test_young(&cpu, start, true);
    }
    let records = m.host.drain_trace();
    let calls: Vec<_> = records
        .iter()
        .filter(|r| r.event as u32 & young != 0)
        .map(|r| (r.event, r.args[0], r.args[1], r.args[2]))
        .collect();
    assert_eq!(
        calls,
        [
            (Event::KvmAgeHva, start, end, 1),
            (Event::KvmAgeHva, start, end, 0),
            (Event::KvmAgeHva, start, end, 0),
            (Event::KvmTestAgeHva, start, 1, 0),
        ]
    );
    let changed: Vec<_> = records
        .iter()
        .filter(|r| r.event == Event::KvmTdpMmuSpteChanged)
        .collect();
    assert_eq!(changed.len(), 1, "one SPTE was changed, by the first call");
    let [as_id, gfn, level, old, new] = changed[0].args;
    assert_eq!((as_id, gfn, level), (0, 3, 1));
    assert_eq!(old & !new, SpteFormat::EPT.accessed);
    m.finish();
}

#[test]
fn an_invalidation_raises_the_count_and_merges_its_range_into_one_hull() {
    let m = Machine::v7(64);
    m.slot(0, 1, 0, 1000, 8, m.hva_of(32));
    let n = &m.mm.notifiers;
    let state = &m.vm.invalidate;
    let seq = state.sequence();
    // Not in a slot: nothing is raised.
    drop(n.invalidate(&m.cpu, m.hva_of(100), m.hva_of(101)));
    assert_eq!((state.sequence(), state.in_progress()), (seq, 0));
    let first = n.invalidate(&m.cpu, m.hva_of(4), m.hva_of(6));
    assert_eq!((state.in_progress(), state.range()), (1, (4, 6)));
    let second = n.invalidate(&m.cpu, m.hva_of(32), m.hva_of(33));
    assert_eq!((state.in_progress(), state.range()), (2, (4, 1001)));
    assert!(state.retry(seq, 500) && state.retry(seq, 4));
    assert!(!state.retry(seq, 3) && !state.retry(seq, 1001));
    drop(first);
    assert_eq!((state.in_progress(), state.sequence()), (1, seq + 1));
    assert!(state.retry(seq, 3), "the sequence moved");
    assert!(state.retry(seq + 1, 500), "still in the hull");
    drop(second);
    assert_eq!((state.in_progress(), state.sequence()), (0, seq + 2));
    assert!(!state.retry(seq + 2, 500));
    let third = n.invalidate(&m.cpu, m.hva_of(8), m.hva_of(9));
    assert_eq!(state.range(), (8, 9), "a new hull");
    drop(third);
    m.finish();
}

#[test]
fn a_fault_retries_while_its_page_is_being_invalidated_or_was_since() {
    let m = Machine::v7(64);
    m.write(3);
    let find = || {
        m.vm.faultin_pfn(&m.cpu, 0, 3, AccessKind::Write)
            .expect("memory is there")
    };
    let fault = find().expect("nothing in the way");
    let stale = || {
        let _shared = m.cpu.read_lock(&m.vm.mmu_lock);
        m.vm.live_fault(&fault, &m.cpu.rcu.lock()).is_none()
    };
    assert!(!stale());
    let told = m.mm.notifiers.invalidate(&m.cpu, m.hva_of(3), m.hva_of(4));
    assert!(stale());
    assert!(find().is_none(), "seen before mmu_lock is taken");
    drop(told);
    assert!(stale(), "the sequence moved");
    assert!(find().is_some());
    m.finish();
}

#[test]
fn a_fault_retries_when_its_slot_changed() {
    let m = Machine::v7(64);
    let fault =
        m.vm.faultin_pfn(&m.cpu, 0, 3, AccessKind::Write)
            .expect("there")
            .expect("free");
    let stale = || {
        let _shared = m.cpu.read_lock(&m.vm.mmu_lock);
        m.vm.live_fault(&fault, &m.cpu.rcu.lock()).is_none()
    };
    m.slot(0, 1, 0, 1000, 8, m.hva);
    assert!(!stale(), "another slot is no matter");
    m.log_dirty(true);
    assert!(stale(), "it would be mapped writable without being logged");
    m.finish();
}

#[test]
fn munmap_reaches_the_guest_before_the_page_goes() {
    let m = Machine::v7(64);
    for gfn in 0..8 {
        m.write(gfn);
    }
    m.mm.munmap(&m.cpu, m.hva_of(2), 2 * PAGE_SIZE)
        .expect("mapped");
    for gfn in 0..8 {
        assert_eq!(m.leaf(gfn).is_none(), (2..4).contains(&gfn), "gfn {gfn}");
    }
    let error = m.vm.access(&m.cpu, 0, 2, true, None).expect_err("unmapped");
    assert_eq!(error.errno(), Errno::EFAULT);
    m.read(4);
    m.finish();
}

#[test]
fn a_write_to_what_showed_the_zero_page_gets_a_page_of_its_own() {
    let m = Machine::v7(16);
    m.read(3);
    let zero = youngbit_core::kvm::mmu::spte::pfn(m.spte(3));
    assert_eq!(zero, youngbit_core::mm::PhysMem::ZERO_PAGE);
    assert!(m.vm.access(&m.cpu, 0, 3, true, Some(9)).is_ok());
    let now = youngbit_core::kvm::mmu::spte::pfn(m.spte(3));
    assert_ne!(now, zero);
    assert_eq!(
        m.host
            .memory
            .content(zero)
            .load(youngbit_core::sync::atomic::Ordering::Relaxed),
        0
    );
    m.finish();
}

#[test]
fn nothing_is_called_after_destroy_and_the_guest_stops() {
    let m = Machine::v7(16);
    m.write(3);
    m.vm.destroy(&m.cpu).expect("once");
    let counters = m.counting(|| {
        assert!(!m.age(3, 1) && !m.is_young(3));
    });
    assert_eq!(counters.get(Counter::NotifierClearYoungSlow), 0);
    let error = m.vm.access(&m.cpu, 0, 3, false, None).expect_err("gone");
    assert_eq!(error.errno(), Errno::EIO);
    assert!(m.vm.destroy(&m.cpu).is_err(), "twice");
    m.host.rcu.barrier();
    assert_eq!(m.tdp().tables.live(), 0);
}

#[test]
fn when_the_mm_exits_first_the_guest_loses_everything() {
    let m = Machine::v7(16);
    m.write(3);
    m.host.exit_mm(&m.cpu, &m.mm);
    assert!(m.leaf(3).is_none());
    assert_eq!(
        m.vm.access(&m.cpu, 0, 3, false, None)
            .map_err(|e| e.errno()),
        Err(Errno::EIO)
    );
    m.vm.destroy(&m.cpu).expect("what is left is taken down");
    m.host.rcu.barrier();
    assert_eq!(m.tdp().tables.live(), 0);
}
