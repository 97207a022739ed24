//! Section 3: the TDP MMU.

use crate::machine::{Backing, Machine, config, configs};
use youngbit_core::kvm::memslot::{LOG_DIRTY_PAGES, READONLY};
use youngbit_core::kvm::mmu::spte::{self, LEVEL_1G, LEVEL_2M, LEVEL_4K, SpteFormat, is_writable};
use youngbit_core::kvm::{Protocol, VmConfig};
use youngbit_core::mm::{FolioWord, Kind, PAGE_SIZE, VmFlags, folio};
use youngbit_core::sync::atomic::Ordering;
use youngbit_core::table::POISON;
use youngbit_core::trace::Counter;

#[test]
fn a_fault_maps_young_and_dirty_if_writable() {
    for config in configs() {
        let format = config.format;
        let m = Machine::new(64, config);
        m.write(3);
        let (level, spte) = m.leaf(3).expect("mapped");
        assert_eq!(level, LEVEL_4K);
        assert!(format.is_accessed(spte) && format.is_dirty(spte));
        // A read of what the host maps writable is mapped writable too.
        m.mm.touch(&m.cpu, m.hva_of(5), true, None).expect("there");
        m.read(5);
        assert!(is_writable(m.spte(5)));
        // A read of untouched memory shows the zero page, which is not.
        m.read(7);
        assert!(!is_writable(m.spte(7)) && !format.is_dirty(m.spte(7)));
        assert!(format.is_accessed(m.spte(7)));
        m.finish();
    }
}

#[test]
fn a_mapped_page_is_accessed_without_a_fault() {
    for config in configs() {
        let m = Machine::new(64, config);
        m.write(3);
        let counters = m.counting(|| {
            m.write(3);
            m.read(3);
        });
        assert_eq!(counters.get(Counter::KvmPageFaults), 0);
        m.finish();
    }
}

#[test]
fn roots_of_four_and_five_levels() {
    for levels in [4, 5] {
        let m = Machine::new(
            64,
            VmConfig {
                levels,
                ..VmConfig::default()
            },
        );
        let top = 1u64 << (9 * levels);
        let far = (1 << 36) - 8;
        m.slot(0, 1, 0, far, 16, m.hva);
        m.write(far);
        assert_eq!(m.tdp().roots(&m.cpu)[0].level, levels);
        assert_eq!(m.tdp().tables.live(), levels);
        m.write(3);
        // The root, and above it one more where there are five, is shared.
        assert_eq!(m.tdp().tables.live(), levels + 3);
        // Beyond the reach of four levels.
        let beyond = m.vm.access(&m.cpu, 0, far + 8, true, None);
        assert_eq!(beyond.is_ok(), far + 8 < top);
        m.finish();
    }
}

#[test]
fn huge_leaves_where_host_guest_and_slot_are_aligned() {
    let m = Machine::backed(4 * 512, VmConfig::default(), Backing::Huge(9), 0);
    m.write(512 + 7);
    assert_eq!(m.leaf(512 + 7).map(|(level, _)| level), Some(LEVEL_2M));
    assert_eq!(m.leaf(512).map(|(level, _)| level), Some(LEVEL_2M));
    let page = m.mm.gup_fast(&m.cpu, m.hva_of(512), true).expect("there");
    assert_eq!(spte::pfn(m.spte(512)), page.pfn);
    assert!(m.leaf(511).is_none() && m.leaf(1024).is_none());
    // The same memory at a place that is not aligned alike.
    m.slot(0, 1, 0, 512 * 100 + 1, 1024, m.hva);
    m.write(512 * 100 + 1 + 600);
    assert_eq!(
        m.leaf(512 * 100 + 1 + 600).map(|(level, _)| level),
        Some(LEVEL_4K)
    );
    // Aligned alike, but the slot does not have the whole huge page.
    m.slot(0, 2, 0, 512 * 200, 1000, m.hva);
    m.write(512 * 200);
    m.write(512 * 200 + 512);
    assert_eq!(m.leaf(512 * 200).map(|(l, _)| l), Some(LEVEL_2M));
    assert_eq!(m.leaf(512 * 200 + 512).map(|(l, _)| l), Some(LEVEL_4K));
    m.finish();
}

#[test]
fn one_gib_leaves_and_a_limit_on_levels() {
    let gib = 512 * 512;
    for (max_level, expected) in [(3, LEVEL_1G), (2, LEVEL_2M), (1, LEVEL_4K)] {
        let config = VmConfig {
            max_level,
            ..VmConfig::default()
        };
        let m = Machine::backed(gib, config, Backing::Huge(18), 0);
        m.write(12345);
        assert_eq!(m.leaf(12345).map(|(level, _)| level), Some(expected));
        let page = m.mm.gup_fast(&m.cpu, m.hva_of(12345), true).expect("there");
        let found = m.spte(12345);
        let offset = 12345 & (spte::pages_per(expected) - 1);
        assert_eq!(
            u64::from(spte::pfn(found).0) + offset,
            u64::from(page.pfn.0)
        );
        m.finish();
    }
}

#[test]
fn a_query_for_one_page_ages_the_whole_huge_leaf() {
    for config in configs() {
        let m = Machine::backed(1024, config, Backing::Huge(9), 0);
        m.write(100);
        assert!(m.is_young(0) && m.is_young(511) && !m.is_young(512));
        assert!(m.age(300, 1));
        for gfn in [0, 100, 300, 511] {
            assert!(!m.is_young(gfn), "gfn {gfn}");
        }
        m.read(17);
        assert!(m.is_young(300));
        m.finish();
    }
}

#[test]
fn aging_answers_what_was_accessed_and_clears_it() {
    for config in configs() {
        let name = (
            config.protocol.name,
            config.format.name,
            config.format.ad_bits,
        );
        let m = Machine::new(2048, config);
        for gfn in [3, 4, 600, 1500] {
            m.write(gfn);
        }
        assert!(m.is_young(3) && !m.is_young(5), "{name:?}");
        assert!(m.is_young(3), "a test changes nothing");
        assert!(!m.age(5, 500), "{name:?}");
        assert!(m.age(0, 2048), "{name:?}");
        assert!(!m.age(0, 2048), "{name:?}");
        m.read(600);
        assert!(m.is_young(600) && !m.is_young(3));
        assert!(m.age(600, 1) && !m.age(600, 1), "{name:?}");
        m.write(600);
        assert!(m.age(0, 2048), "{name:?}");
        m.finish();
    }
}

#[test]
fn aging_sees_only_leaves_in_the_range_and_skips_what_is_not_young() {
    let m = Machine::v7(2048);
    for gfn in 0..8 {
        m.write(gfn);
    }
    m.age(4, 4);
    let counters = m.counting(|| {
        assert!(m.age(2, 4));
    });
    assert_eq!(counters.get(Counter::SpteLoads), 4);
    assert_eq!(counters.get(Counter::SpteFetchAnd), 2);
    assert_eq!(counters.get(Counter::SptesAged), 2);
    assert!(m.is_young(1) && !m.is_young(2));
    m.finish();
}

#[test]
fn how_each_protocol_writes() {
    for (protocol, format, counter) in [
        (
            Protocol::BASELINE,
            SpteFormat::EPT,
            Counter::SptePlainStores,
        ),
        (
            Protocol::BASELINE,
            SpteFormat::EPT_NO_AD,
            Counter::SptePlainStores,
        ),
        (Protocol::V7, SpteFormat::EPT, Counter::SpteFetchAnd),
        (Protocol::V7, SpteFormat::EPT_NO_AD, Counter::SpteCas),
        (Protocol::V7, SpteFormat::NPT, Counter::SpteFetchAnd),
        (Protocol::V9, SpteFormat::EPT, Counter::SpteFetchAnd),
        (Protocol::V9, SpteFormat::EPT_NO_AD, Counter::SpteCas),
        (
            Protocol::V7_ARM64,
            SpteFormat::EPT,
            Counter::SptePlainStores,
        ),
    ] {
        let m = Machine::new(64, config(protocol, format));
        m.write(3);
        let counters = m.counting(|| {
            m.age(3, 1);
        });
        for other in [
            Counter::SptePlainStores,
            Counter::SpteFetchAnd,
            Counter::SpteCas,
        ] {
            let expected = u64::from(other == counter);
            assert_eq!(counters.get(other), expected, "{} {other:?}", protocol.name);
        }
        m.finish();
    }
}

#[test]
fn valid_roots_of_the_slots_address_space_are_aged_and_no_others() {
    let m = Machine::new(
        64,
        VmConfig {
            address_spaces: 2,
            vcpus: 2,
            ..VmConfig::default()
        },
    );
    m.slot(1, 0, 0, 0, 64, m.hva);
    m.write(3);
    m.vm.access(&m.cpu, 1, 3, true, None).expect("there");
    let roots = m.tdp().roots(&m.cpu);
    assert_eq!(roots.iter().map(|r| r.as_id).collect::<Vec<_>>(), [0, 1]);
    // Two SPTEs map the page; one query ages both.
    let counters = m.counting(|| {
        assert!(m.age(3, 1));
    });
    assert_eq!(counters.get(Counter::SptesAged), 2);
    assert!(!m.age(3, 1));
    m.vm.access(&m.cpu, 1, 3, false, None).expect("there");
    assert!(m.age(3, 1));
    m.finish();
}

/// Between the two, an SPTE of an invalid root is still there.
#[test]
fn invalid_roots_are_aged_before_the_series_only_and_pass_on_what_they_hold() {
    for protocol in [Protocol::BASELINE, Protocol::V7, Protocol::V9] {
        let m = Machine::new(
            64,
            VmConfig {
                protocol,
                ..VmConfig::default()
            },
        );
        for all_at_once in [false, true] {
            m.write(3);
            let page = m.mm.gup_fast(&m.cpu, m.hva_of(3), false);
            let word = m.host.memory.word(page.expect("mapped").pfn);
            m.clean_folio(3);
            {
                let _exclusive = m.vm.mmu_lock.write();
                m.tdp().invalidate_all_roots(&m.vm, &m.cpu);
            }
            let (first, pages) = if all_at_once { (0, 64) } else { (3, 1) };
            assert_eq!(m.is_young(3), protocol.all_roots, "{}", protocol.name);
            assert_eq!(m.age(first, pages), protocol.all_roots, "{}", protocol.name);
            assert!(!m.is_young(3), "{}", protocol.name);
            m.tdp().zap_invalidated_roots(&m.vm, &m.cpu);
            let passed_on = word.get().has(folio::REFERENCED);
            assert_eq!(passed_on, !protocol.all_roots, "{}", protocol.name);
            assert!(word.get().has(folio::DIRTY), "{}", protocol.name);
        }
        m.finish();
    }
}

#[test]
fn roots_are_shared_referenced_invalidated_and_freed() {
    let m = Machine::new(
        64,
        VmConfig {
            vcpus: 3,
            ..VmConfig::default()
        },
    );
    for vcpu in 0..3 {
        m.vm.access(&m.cpu, vcpu, 3, true, None).expect("there");
    }
    let roots = m.tdp().roots(&m.cpu);
    assert_eq!(roots.len(), 1, "one root serves all");
    assert_eq!(roots[0].references, 4, "three vCPUs and the TDP MMU");
    m.slot(0, 1, 0, 100, 8, m.hva);
    m.slot(0, 1, 0, 100, 0, m.hva);
    let roots = m.tdp().roots(&m.cpu);
    assert_eq!(roots.len(), 1);
    assert!(roots[0].invalid);
    assert_eq!(roots[0].references, 3, "until the vCPUs reload");
    let old = roots[0].table;
    for vcpu in 0..3 {
        m.vm.access(&m.cpu, vcpu, 3, true, None).expect("there");
    }
    let roots = m.tdp().roots(&m.cpu);
    assert_eq!(roots.len(), 1);
    assert!(!roots[0].invalid && roots[0].table != old);
    m.host.rcu.barrier();
    assert_eq!(m.tdp().tables.live(), 4);
    m.finish();
}

#[test]
fn zapping_passes_accessed_and_dirty_on() {
    for config in configs() {
        let format = config.format;
        let m = Machine::new(64, config);
        let pfn_of = |gfn| {
            m.mm.gup_fast(&m.cpu, m.hva_of(gfn), false)
                .expect("there")
                .pfn
        };
        let zap = |gfn| {
            let (start, end) = (m.hva_of(gfn), m.hva_of(gfn + 1));
            let pfn = pfn_of(gfn);
            m.clean_folio(gfn);
            drop(m.mm.notifiers.invalidate(&m.cpu, start, end));
            m.host.memory.word(pfn).get()
        };
        // Young, and dirty because writable.
        m.write(1);
        assert!(zap(1).has(folio::DIRTY | folio::REFERENCED));
        assert!(m.leaf(1).is_none());
        // Old, and writable unless aging took that away (then aging said so).
        m.write(2);
        m.age(2, 1);
        let word = zap(2);
        assert!(!word.has(folio::REFERENCED), "{format:?}");
        assert_eq!(word.has(folio::DIRTY), format.ad_bits);
        // Young, and read-only.
        m.slot(0, 1, READONLY, 100, 16, m.hva);
        m.mm.touch(&m.cpu, m.hva_of(3), true, None).expect("there");
        m.vm.access(&m.cpu, 0, 103, false, None).expect("there");
        let word = zap(3);
        assert!(m.leaf(103).is_none());
        assert!(
            word.has(folio::REFERENCED) && !word.has(folio::DIRTY),
            "{format:?}"
        );
        m.finish();
    }
}

#[test]
fn access_tracking_marks_the_page_dirty_and_the_guests_next_access_faults() {
    for protocol in [Protocol::BASELINE, Protocol::V7, Protocol::V9] {
        let m = Machine::new(64, config(protocol, SpteFormat::EPT_NO_AD));
        m.write(3);
        m.clean_folio(3);
        assert!(m.age(3, 1));
        assert!(m.folio(3).has(folio::DIRTY), "it was writable");
        let counters = m.counting(|| m.read(3));
        assert_eq!(counters.get(Counter::FastPageFaults), 1, "without mmu_lock");
        assert_eq!(counters.get(Counter::MmuLockRead), 0);
        assert!(!is_writable(m.spte(3)), "W returns only with a write");
        let counters = m.counting(|| m.write(3));
        assert_eq!(counters.get(Counter::FastPageFaults), 1);
        assert!(is_writable(m.spte(3)));
        assert!(m.age(3, 1));
        let counters = m.counting(|| m.write(3));
        assert_eq!(counters.get(Counter::FastPageFaults), 1);
        assert!(is_writable(m.spte(3)), "both at once");
        m.finish();
    }
}

#[test]
fn with_ad_bits_only_write_faults_on_present_sptes_are_fast() {
    let m = Machine::v7(64);
    m.log_dirty(true);
    let fast = |f: &dyn Fn()| m.count(Counter::FastPageFaults, f);
    assert_eq!(fast(&|| m.write(3)), 0, "not present");
    m.dirty_log();
    assert_eq!(fast(&|| m.read(3)), 0, "no fault at all");
    assert_eq!(fast(&|| m.write(3)), 1);
    m.finish();
}

#[test]
fn dirty_logging_reports_every_page_written_since_the_last_harvest() {
    for config in configs() {
        let name = (
            config.protocol.name,
            config.format.name,
            config.format.ad_bits,
        );
        let m = Machine::new(200, config);
        for gfn in [1, 70, 130] {
            m.write(gfn);
        }
        m.log_dirty(true);
        assert_eq!(m.dirty_log(), [0u64; 0], "{name:?}");
        m.write(70);
        m.write(199);
        m.read(1);
        assert_eq!(m.vm.peek_dirty_log(&m.cpu, 0, 0).expect("logs")[1], 1 << 6);
        assert_eq!(m.dirty_log(), [70, 199], "{name:?}");
        assert_eq!(m.dirty_log(), [0u64; 0], "{name:?}");
        m.write(70);
        m.age(0, 200);
        m.write(130);
        assert_eq!(m.dirty_log(), [70, 130], "{name:?}");
        // By hand: only the bits asked for, and only they are protected again.
        m.write(70);
        m.write(130);
        m.vm.clear_dirty_log(&m.cpu, 0, 0, 64, &[1 << 6])
            .expect("valid");
        assert_eq!(
            m.vm.peek_dirty_log(&m.cpu, 0, 0).expect("logs"),
            [0, 0, 4, 0]
        );
        assert!(
            !is_writable(m.spte(70)) && is_writable(m.spte(130)),
            "{name:?}"
        );
        m.write(70);
        assert_eq!(m.dirty_log(), [70, 130], "{name:?}");
        let refused = m.vm.clear_dirty_log(&m.cpu, 0, 0, 63, &[1]);
        let what = refused.expect_err("63 is no multiple of 64").to_string();
        assert!(what.contains("a multiple of 64 and an end"), "{what}");
        assert!(m.vm.clear_dirty_log(&m.cpu, 0, 0, 192, &[1, 1]).is_err());
        m.log_dirty(false);
        assert!(m.vm.get_dirty_log(&m.cpu, 0, 0).is_err());
        m.finish();
    }
}

#[test]
fn a_slot_born_with_logging_logs_its_first_writes() {
    let m = Machine::backed(1024, VmConfig::default(), Backing::Huge(9), LOG_DIRTY_PAGES);
    m.write(600);
    assert_eq!(m.leaf(600).map(|(level, _)| level), Some(LEVEL_4K));
    assert_eq!(m.dirty_log(), [600]);
    m.finish();
}

#[test]
fn logging_splits_huge_leaves_on_write_and_they_collapse_when_it_ends() {
    for format in [SpteFormat::EPT, SpteFormat::EPT_NO_AD, SpteFormat::NPT] {
        let m = Machine::backed(1024, config(Protocol::V7, format), Backing::Huge(9), 0);
        m.write(100);
        m.clean_folio(100);
        m.log_dirty(true);
        assert_eq!(m.leaf(100).map(|(level, _)| level), Some(LEVEL_2M));
        assert!(!is_writable(m.spte(100)));
        m.read(101);
        assert_eq!(m.leaf(101).map(|(level, _)| level), Some(LEVEL_2M));
        let tables = m.tdp().tables.live();
        m.write(102);
        assert_eq!(m.leaf(102).map(|(level, _)| level), Some(LEVEL_4K));
        assert_eq!(m.tdp().tables.live(), tables + 1);
        assert!(!is_writable(m.spte(103)) && is_writable(m.spte(102)));
        let first = spte::pfn(m.spte(0)).0;
        assert_eq!(spte::pfn(m.spte(511)).0, first + 511);
        assert_eq!(m.dirty_log(), [102], "and not the other 511");
        assert!(m.folio(100).has(folio::DIRTY), "the huge leaf was dirty");
        m.log_dirty(false);
        assert!(
            m.leaf(102).is_none(),
            "zapped, so that it can be huge again"
        );
        m.write(102);
        assert_eq!(m.leaf(102).map(|(level, _)| level), Some(LEVEL_2M));
        m.host.rcu.barrier();
        assert_eq!(m.tdp().tables.live(), tables);
        m.finish();
    }
}

#[test]
fn a_huge_leaf_replaces_a_table_of_small_ones() {
    let m = Machine::v7(2048);
    // Host pages small at first: the guest's leaves are small too.
    let thp = m.host.create_space(Kind::Anon, 0);
    let hva =
        m.mm.mmap(
            None,
            1024 * PAGE_SIZE,
            &thp,
            0,
            VmFlags {
                hugetlb_order: 9,
                ..VmFlags::default()
            },
        )
        .expect("room");
    m.slot(0, 1, LOG_DIRTY_PAGES, 512 * 8, 1024, hva);
    m.write(512 * 8 + 1);
    assert_eq!(m.leaf(512 * 8 + 1).map(|(l, _)| l), Some(LEVEL_4K));
    let freed = m.counting(|| {
        m.slot(0, 1, 0, 512 * 8, 1024, hva);
        m.write(512 * 8 + 2);
    });
    assert_eq!(m.leaf(512 * 8 + 1).map(|(l, _)| l), Some(LEVEL_2M));
    assert_eq!(freed.get(Counter::TablesFreed), 1);
    m.finish();
}

#[test]
fn an_invalidation_of_part_of_a_huge_leaf_zaps_all_of_it() {
    let m = Machine::backed(1024, VmConfig::default(), Backing::Huge(9), 0);
    m.write(100);
    m.write(600);
    drop(
        m.mm.notifiers
            .invalidate(&m.cpu, m.hva_of(200), m.hva_of(201)),
    );
    assert!(m.leaf(100).is_none() && m.leaf(600).is_some());
    m.finish();
}

#[test]
fn a_vm_that_cannot_be_is_refused() {
    let m = Machine::v7(16);
    let base = VmConfig::default;
    let bad = [
        VmConfig {
            levels: 3,
            ..base()
        },
        VmConfig {
            levels: 6,
            ..base()
        },
        VmConfig {
            address_spaces: 0,
            ..base()
        },
        VmConfig {
            address_spaces: 3,
            ..base()
        },
        VmConfig {
            max_level: 0,
            ..base()
        },
        VmConfig {
            max_level: 4,
            ..base()
        },
        VmConfig { vcpus: 0, ..base() },
        VmConfig {
            vcpus: 4097,
            ..base()
        },
        VmConfig {
            format: SpteFormat {
                ad_bits: false,
                ..SpteFormat::NPT
            },
            ..base()
        },
        VmConfig {
            tlb: youngbit_core::kvm::TlbConfig {
                entries: 5,
                ways: 2,
            },
            ..base()
        },
    ];
    for config in bad {
        let error = youngbit_core::kvm::Vm::create(&m.cpu, &m.mm, config.clone())
            .err()
            .unwrap_or_else(|| panic!("{config:?} was accepted"));
        assert_eq!(error.errno(), youngbit_core::Errno::EINVAL);
    }
    m.finish();
}

#[test]
fn a_table_is_freed_only_after_a_grace_period() {
    let m = Machine::v7(64);
    m.write(3);
    let walker = youngbit_core::Cpu::new(&m.host);
    let inside = walker.rcu.lock();
    let root = m.tdp().roots(&m.cpu)[0].table;
    m.vm.destroy(&m.cpu).expect("once");
    for _ in 0..100 {
        m.cpu.rcu.flush();
    }
    assert_eq!(m.tdp().tables.live(), 4, "a walker may be inside");
    let entries = m.tdp().tables.entries(root);
    assert!(entries.iter().all(|word| word.load(Ordering::Relaxed) == 0));
    drop(inside);
    m.host.rcu.barrier();
    assert_eq!(m.tdp().tables.live(), 0);
    assert!(
        entries
            .iter()
            .all(|word| word.load(Ordering::Relaxed) == POISON)
    );
}

#[test]
fn an_unlinked_table_is_frozen_entry_by_entry() {
    let m = Machine::backed(1024, VmConfig::default(), Backing::Huge(9), LOG_DIRTY_PAGES);
    m.write(7);
    let walker = youngbit_core::Cpu::new(&m.host);
    // The lowest table is the last that was made.
    let tables: Vec<_> = (0..4).map(youngbit_core::table::TableId).collect();
    let lowest = m.tdp().tables.entries(tables[3]);
    assert_ne!(lowest[7].load(Ordering::Relaxed), 0);
    m.log_dirty(false);
    m.host.rcu.barrier();
    assert!(
        lowest
            .iter()
            .all(|word| word.load(Ordering::Relaxed) == POISON)
    );
    // Again, with a walker inside who can look.
    m.write(7);
    let inside = walker.rcu.lock();
    let root = m.tdp().roots(&m.cpu)[0].table;
    m.vm.destroy(&m.cpu).expect("once");
    assert!(m.tdp().is_root_invalid(root));
    let frozen = |table| {
        let words = m.tdp().tables.entries(table).iter();
        words
            .filter(|w| spte::is_frozen(w.load(Ordering::Relaxed)))
            .count()
    };
    assert_eq!(tables.iter().filter(|&&t| frozen(t) == 512).count(), 2);
    drop(inside);
    m.host.rcu.barrier();
}
