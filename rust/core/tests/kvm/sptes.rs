//! Section 2: SPTEs.

use std::time::Instant;
use youngbit_core::access::AccessKind::{self, Fetch, Read};
use youngbit_core::kvm::mmu::spte::{self, *};
use youngbit_core::mm::Pfn;
use youngbit_core::sync::atomic::AtomicBool;
use youngbit_core::sync::atomic::{AtomicU64, Ordering};
use youngbit_core::sync::thread;
use youngbit_core::table::{POISON, TableId};

const FORMATS: [SpteFormat; 3] = [SpteFormat::EPT, SpteFormat::EPT_NO_AD, SpteFormat::NPT];

fn leaf(format: &SpteFormat, level: u32, writable: bool, prefetch: bool) -> u64 {
    format.make_leaf(Leaf {
        pfn: Pfn(0x12340),
        level,
        access: ACC_ALL,
        host_writable: writable,
        prefetch,
        ad_type: format.default_ad_type(),
    })
}

/// Every leaf a fault can make.
fn leaves() -> Vec<(SpteFormat, u32, u64)> {
    let mut all = Vec::new();
    for format in FORMATS {
        for level in [LEVEL_4K, LEVEL_2M, LEVEL_1G] {
            for writable in [false, true] {
                for prefetch in [false, true] {
                    all.push((format, level, leaf(&format, level, writable, prefetch)));
                }
            }
        }
    }
    all
}

#[test]
fn bits_are_where_section_2_puts_them() {
    assert_eq!(MMU_PRESENT, 1 << 11);
    assert_eq!(AD_TYPE_MASK, 0b11 << 52);
    assert_eq!(
        (AD_ENABLED, AD_DISABLED, AD_WRPROT_ONLY),
        (0, 1 << 52, 2 << 52)
    );
    assert_eq!(
        (SpteFormat::EPT.accessed, SpteFormat::EPT.dirty),
        (1 << 8, 1 << 9)
    );
    assert_eq!(
        (SpteFormat::NPT.accessed, SpteFormat::NPT.dirty),
        (1 << 5, 1 << 6)
    );
    assert_eq!(SAVED_MASK, 1 << 54 | 1 << 56);
}

#[test]
fn present_is_the_software_bit_not_the_hardwares() {
    let young = leaf(&SpteFormat::EPT_NO_AD, LEVEL_4K, true, false);
    let tracked = SpteFormat::EPT_NO_AD.mark_old(young);
    assert_eq!(tracked & SpteFormat::EPT_NO_AD.hw_present, 0);
    assert!(is_present(tracked) && is_present_leaf(tracked, LEVEL_4K));
    assert!(!SpteFormat::EPT_NO_AD.allows(tracked, Read));
    assert!(!is_present(0b111), "hardware's bits alone are not present");
}

#[test]
fn born_accessed_and_dirty_if_writable_and_prefetched_ones_old() {
    for format in FORMATS {
        for level in [LEVEL_4K, LEVEL_2M, LEVEL_1G] {
            let read = leaf(&format, level, false, false);
            let write = leaf(&format, level, true, false);
            assert!(format.is_young_leaf(read, level) && !format.is_dirty(read));
            assert!(format.is_young_leaf(write, level) && format.is_dirty(write));
            assert!(
                format.allows(write, AccessKind::Write) && !format.allows(read, AccessKind::Write)
            );
            assert!(format.allows(read, Read));
            assert_eq!(spte::pfn(write), Pfn(0x12340));
            for writable in [false, true] {
                let old = leaf(&format, level, writable, true);
                assert!(
                    is_present_leaf(old, level) && !format.is_accessed(old),
                    "{old:#x}"
                );
            }
        }
    }
}

/// What a leaf of a format lets through, when the guest's tables allow `access`.
fn with_access(format: &SpteFormat, access: u32) -> u64 {
    format.make_leaf(Leaf {
        pfn: Pfn(0x12340),
        level: LEVEL_4K,
        access,
        host_writable: true,
        prefetch: false,
        ad_type: format.default_ad_type(),
    })
}

#[test]
fn execute_permission_is_x_of_ept_and_not_nx_elsewhere() {
    for format in FORMATS {
        let all = with_access(&format, ACC_ALL);
        let data = with_access(&format, ACC_ALL & !ACC_EXEC_MASK);
        let kinds = [Read, AccessKind::Write, Fetch];
        assert!(kinds.iter().all(|&kind| format.allows(all, kind)));
        assert_eq!(
            kinds.map(|kind| format.allows(data, kind)),
            [true, true, false],
            "{}",
            format.name
        );
        let differ = if format.name == "ept" {
            1 << 2
        } else {
            1 << 63
        };
        assert_eq!(all ^ data, differ);
        // A guest's EPT may allow execution alone.
        let code = with_access(&format, ACC_EXEC_MASK);
        assert!(format.allows(code, Fetch) && !format.allows(code, AccessKind::Write));
        assert_eq!(format.allows(code, Read), format.name != "ept");
        // Not present: no access, whatever its other bits.
        assert!(kinds.iter().all(|&kind| !format.allows(0, kind)));
    }
}

#[test]
fn aging_and_restoring_keep_execute_permission_as_it_was() {
    for format in FORMATS {
        for access in [ACC_ALL, ACC_ALL & !ACC_EXEC_MASK, ACC_EXEC_MASK] {
            for locked in [false, true] {
                let young = with_access(&format, access);
                let word = AtomicU64::new(young);
                let aged = if locked {
                    format.age_locked(&word, LEVEL_4K)
                } else {
                    format.age(&word, LEVEL_4K)
                };
                let mut now = word.load(Ordering::Relaxed);
                assert!(aged.young && !format.is_accessed(now));
                if is_access_tracked(now) {
                    assert!(!format.allows(now, Fetch), "it must fault to be seen");
                    now = restore_access_track(now);
                }
                for kind in [Read, Fetch] {
                    assert_eq!(
                        format.allows(now, kind),
                        format.allows(young, kind),
                        "{young:#x} became {now:#x}"
                    );
                }
            }
        }
    }
}

#[test]
fn write_protect_only_counts_as_enabled() {
    let format = SpteFormat::EPT;
    let value = format.make_leaf(Leaf {
        pfn: Pfn(1),
        level: LEVEL_4K,
        access: ACC_ALL,
        host_writable: true,
        prefetch: false,
        ad_type: AD_WRPROT_ONLY,
    });
    assert!(ad_enabled(value) && format.is_dirty(value));
    assert_eq!(format.mark_old(value), value & !format.accessed);
}

#[test]
fn host_and_mmu_writable_are_apart_from_writable() {
    for format in FORMATS {
        let spte = leaf(&format, LEVEL_4K, true, false);
        assert!(format.is_host_writable(spte) && format.is_mmu_writable(spte));
        let protected = spte & !WRITABLE;
        assert!(format.is_mmu_writable(protected) && !format.allows(protected, AccessKind::Write));
        let read_only = leaf(&format, LEVEL_4K, false, false);
        assert!(!format.is_host_writable(read_only) && !format.is_mmu_writable(read_only));
        // The MMU's own write tracking: the host's mapping is writable.
        let tracked = format.make_leaf(Leaf {
            pfn: Pfn(1),
            level: LEVEL_4K,
            access: ACC_ALL & !ACC_WRITE_MASK,
            host_writable: true,
            prefetch: false,
            ad_type: format.default_ad_type(),
        });
        assert!(format.is_host_writable(tracked) && !format.is_mmu_writable(tracked));
        assert!(!format.allows(tracked, AccessKind::Write) && !format.is_dirty(tracked));
    }
}

#[test]
fn access_tracking_saves_r_and_x_and_clears_r_w_and_x() {
    let format = SpteFormat::EPT_NO_AD;
    let young = leaf(&format, LEVEL_4K, true, false);
    assert!(!is_access_tracked(young) && format.is_accessed(young));
    let tracked = format.mark_old(young);
    assert_eq!(tracked & ACC_TRACK_MASK, 0);
    assert_eq!(tracked & SAVED_MASK, 1 << 54 | 1 << 56);
    assert!(is_access_tracked(tracked) && !format.is_accessed(tracked));
    assert_eq!(format.mark_old(tracked), tracked, "twice changes nothing");
    let restored = restore_access_track(tracked);
    assert_eq!(
        restored & ACC_TRACK_MASK,
        0b101,
        "R and X return, W does not"
    );
    assert_eq!(restored & SAVED_MASK, 0, "the saved field is emptied");
    assert_eq!(restored | WRITABLE, young);
    // Only what was there is saved.
    let no_exec = young & !(1 << 2);
    assert_eq!(
        restore_access_track(format.mark_old(no_exec)) & ACC_TRACK_MASK,
        0b001
    );
}

#[test]
fn with_ad_bits_marking_old_changes_no_other_bit() {
    for (format, _, spte) in leaves() {
        if format.ad_bits {
            assert_eq!(
                format.mark_old(spte) | format.accessed,
                spte | format.accessed
            );
            assert!(!is_access_tracked(spte));
        }
    }
}

#[test]
fn frozen_holds_no_accessed_bit_and_nothing_hardware_or_the_mmu_reads() {
    for format in FORMATS {
        assert_eq!(FROZEN & format.accessed, 0);
        assert_eq!(FROZEN & format.hw_present, 0);
        assert_ne!(FROZEN_THAWABLE & format.accessed, 0, "the kernel's does");
        for level in 1..=5 {
            assert!(!is_present_leaf(FROZEN, level) && !format.is_young_leaf(FROZEN, level));
        }
        assert_eq!(format.mark_old(FROZEN), FROZEN);
        // The late fetch_and of an ager that loaded a young entry before.
        let word = AtomicU64::new(FROZEN);
        let seen = leaf(&format, LEVEL_4K, true, false);
        format.age_young(&word, seen);
        assert!(is_frozen(word.load(Ordering::Relaxed)), "{}", format.name);
    }
    assert!(is_frozen(FROZEN) && !is_frozen(0) && !is_frozen(FROZEN | 1 << 20));
    assert!(!is_present(POISON) && !is_frozen(POISON));
}

#[test]
fn the_kernels_frozen_would_thaw() {
    let word = AtomicU64::new(FROZEN_THAWABLE);
    SpteFormat::EPT.age_young(&word, leaf(&SpteFormat::EPT, LEVEL_4K, true, false));
    assert_ne!(word.load(Ordering::Relaxed), FROZEN_THAWABLE);
}

#[test]
fn aging_reads_first_and_writes_nothing_to_what_is_old_or_no_leaf() {
    for (format, level, spte) in leaves() {
        let old = format.mark_old(spte);
        let table = format.make_nonleaf(TableId(7), !format.ad_bits);
        for value in [0, FROZEN, FROZEN_THAWABLE, POISON, old] {
            let word = AtomicU64::new(value);
            for aged in [format.age(&word, level), format.age_locked(&word, level)] {
                assert_eq!((aged.young, aged.write), (false, Write::None), "{value:#x}");
                assert_eq!(word.load(Ordering::Relaxed), value);
            }
        }
        if level > LEVEL_4K {
            let word = AtomicU64::new(table);
            assert!(!format.age(&word, level).young && !format.test(&word, level));
            assert_eq!(word.load(Ordering::Relaxed), table);
        }
    }
}

#[test]
fn aging_a_young_leaf_is_one_atomic_operation_and_the_next_finds_it_old() {
    for (format, level, spte) in leaves() {
        if !format.is_accessed(spte) {
            continue;
        }
        let word = AtomicU64::new(spte);
        assert!(format.test(&word, level));
        assert_eq!(word.load(Ordering::Relaxed), spte, "a test writes nothing");
        let aged = format.age(&word, level);
        assert!(aged.young);
        let expected = if format.ad_bits {
            Write::FetchAnd
        } else {
            Write::Exchanged
        };
        assert_eq!(aged.write, expected);
        assert_eq!(word.load(Ordering::Relaxed), format.mark_old(spte));
        assert!(!format.age(&word, level).young && !format.test(&word, level));
    }
}

#[test]
fn when_the_exchange_fails_the_page_counts_as_young_and_stays() {
    let format = SpteFormat::EPT_NO_AD;
    let seen = leaf(&format, LEVEL_4K, false, false);
    let now = seen | WRITABLE;
    let word = AtomicU64::new(now);
    let aged = format.age_young(&word, seen);
    assert_eq!((aged.young, aged.write), (true, Write::ExchangeFailed));
    assert_eq!(word.load(Ordering::Relaxed), now);
}

#[test]
fn locked_aging_stores_plainly_only_where_nothing_else_can_be_lost() {
    let ept = SpteFormat::EPT;
    let clean_writable = leaf(&ept, LEVEL_4K, true, false) & !ept.dirty;
    for (format, spte, expected) in [
        (ept, leaf(&ept, LEVEL_4K, true, false), Write::PlainStore),
        (ept, leaf(&ept, LEVEL_4K, false, false), Write::PlainStore),
        // Hardware may set dirty meanwhile.
        (ept, clean_writable, Write::FetchAnd),
        // A fast page fault may give write permission back meanwhile.
        (
            ept,
            leaf(&ept, LEVEL_4K, true, false) & !WRITABLE,
            Write::FetchAnd,
        ),
        (
            SpteFormat::EPT_NO_AD,
            leaf(&SpteFormat::EPT_NO_AD, LEVEL_4K, true, false),
            Write::PlainStore,
        ),
    ] {
        let word = AtomicU64::new(spte);
        let aged = format.age_locked(&word, LEVEL_4K);
        assert_eq!((aged.young, aged.write), (true, expected), "{spte:#x}");
        assert_eq!(word.load(Ordering::Relaxed), format.mark_old(spte));
    }
}

#[test]
fn v9_does_not_count_accessed_as_volatile_and_counts_all_without_ad_bits() {
    let ept = SpteFormat::EPT;
    let old = ept.mark_old(leaf(&ept, LEVEL_4K, false, false));
    assert!(ept.has_volatile_bits(old, true) && !ept.has_volatile_bits(old, false));
    let none = SpteFormat::EPT_NO_AD;
    let young = leaf(&none, LEVEL_4K, true, false);
    assert!(!none.has_volatile_bits(young, true) && none.has_volatile_bits(young, false));
    let clean = leaf(&ept, LEVEL_4K, true, false) & !ept.dirty;
    assert!(ept.has_volatile_bits(clean, true) && ept.has_volatile_bits(clean, false));
}

#[test]
fn small_leaves_map_the_same_frames_with_the_same_bits() {
    for format in FORMATS {
        for level in [LEVEL_2M, LEVEL_1G] {
            let huge = leaf(&format, level, true, false);
            let data = huge & !format.executable | format.not_executable;
            assert!(!format.allows(format.make_small(data, level - 1, 7), Fetch));
            for index in [0usize, 1, 511] {
                let small = format.make_small(huge, level - 1, index);
                let step = pages_per(level - 1) as u32;
                assert_eq!(spte::pfn(small).0, 0x12340 + index as u32 * step);
                assert!(is_present_leaf(small, level - 1));
                assert_eq!(small & PAGE_SIZE_BIT != 0, level - 1 > LEVEL_4K);
                assert_eq!(format.is_dirty(small), format.is_dirty(huge));
                assert_eq!(format.is_accessed(small), format.is_accessed(huge));
                assert!(format.allows(small, AccessKind::Write) && format.allows(small, Fetch));
            }
        }
    }
}

#[test]
fn a_non_leaf_holds_a_table_and_every_permission() {
    for format in FORMATS {
        let link = format.make_nonleaf(TableId(0xabcde), !format.ad_bits);
        assert!(is_present(link) && !is_last(link, LEVEL_2M));
        assert_eq!(spte::table(link), TableId(0xabcde));
        assert!(format.allows(link, AccessKind::Write) && format.allows(link, Fetch));
        // A late fetch_and for a leaf that was here leaves the link intact.
        let word = AtomicU64::new(link);
        word.fetch_and(!format.accessed, Ordering::Relaxed);
        let now = word.load(Ordering::Relaxed);
        assert_eq!(spte::table(now), TableId(0xabcde));
        assert!(format.allows(now, AccessKind::Write) && is_present(now));
    }
}

/// How often two threads must have met before a race counts as tried.
const MEETINGS: u64 = 20_000;

/// Whether a stress may end: the threads met often enough, or the machine is too
/// busy to let them run side by side.
fn met(meetings: &AtomicU64, start: Instant, rounds: u64) -> bool {
    if !rounds.is_multiple_of(1024) {
        return false;
    }
    let seen = meetings.load(Ordering::Relaxed);
    if seen == 0 {
        thread::yield_now();
    }
    seen >= MEETINGS || (seen > 0 && start.elapsed().as_secs() >= 2)
}

/// A processor sets Accessed, then Dirty, while another thread ages: Dirty must
/// stay until the processor itself has seen it.
#[test]
fn a_dirty_bit_set_between_read_and_write_is_not_lost() {
    for format in [SpteFormat::EPT, SpteFormat::NPT] {
        let clean = leaf(&format, LEVEL_4K, true, false) & !format.dirty;
        for locked in [false, true] {
            let word = AtomicU64::new(clean);
            let done = AtomicBool::new(false);
            let aged = AtomicU64::new(0);
            let lost = thread::scope(|s| {
                s.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let once = if locked {
                            format.age_locked(&word, LEVEL_4K)
                        } else {
                            format.age(&word, LEVEL_4K)
                        };
                        aged.fetch_add(u64::from(once.young), Ordering::Relaxed);
                    }
                });
                let (start, mut rounds, mut lost) = (Instant::now(), 0u64, 0u64);
                while !met(&aged, start, rounds) {
                    rounds += 1;
                    word.fetch_or(format.accessed, Ordering::AcqRel);
                    word.fetch_or(format.dirty, Ordering::AcqRel);
                    for _ in 0..rounds % 8 {
                        std::hint::black_box(&word);
                    }
                    let before = word.fetch_and(!format.dirty, Ordering::AcqRel);
                    lost += u64::from(before & format.dirty == 0);
                }
                done.store(true, Ordering::Relaxed);
                lost
            });
            assert_eq!(lost, 0, "{} locked {locked}", format.name);
            assert_eq!(word.load(Ordering::Relaxed) | format.accessed, clean);
        }
    }
}

/// Without A/D bits: write permission given back by a fast page fault is either
/// still there, or an ager has seen it (and marked the page dirty).
#[test]
fn write_permission_given_back_is_never_lost_unseen() {
    let format = SpteFormat::EPT_NO_AD;
    let word = AtomicU64::new(leaf(&format, LEVEL_4K, true, false) & !WRITABLE);
    let done = AtomicBool::new(false);
    let seen = AtomicU64::new(0);
    let given = thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let aged = format.age(&word, LEVEL_4K);
                let writable = aged.write == Write::Exchanged && is_writable(aged.old);
                seen.fetch_add(u64::from(writable), Ordering::Relaxed);
            }
        });
        let (start, mut rounds, mut given) = (Instant::now(), 0u64, 0u64);
        while !met(&seen, start, rounds) {
            rounds += 1;
            let old = word.load(Ordering::Relaxed);
            let new = if is_access_tracked(old) {
                restore_access_track(old)
            } else {
                old | WRITABLE
            };
            if new != old
                && word
                    .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            {
                given += u64::from(is_writable(new) && !is_writable(old));
            }
        }
        done.store(true, Ordering::Relaxed);
        given
    });
    let left = u64::from(is_writable(word.load(Ordering::Relaxed)));
    assert_eq!(given, seen.load(Ordering::Relaxed) + left);
}
