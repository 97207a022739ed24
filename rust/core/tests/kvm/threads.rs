//! Real threads: vCPUs, agers, zappers, harvesters and slot changes at once,
//! and what must hold whatever the order.

use crate::machine::{MACHINES, Machine, On, Parts, config, distinct_configs, enough};
use rand::{RngCore, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::time::Instant;
use youngbit_core::access::{Pattern, Stream, StreamConfig};
use youngbit_core::kvm::memslot::LOG_DIRTY_PAGES;
use youngbit_core::kvm::mmu::spte::SpteFormat;
use youngbit_core::kvm::{MemoryRegion, Protocol, RunOptions, TlbConfig, VmConfig};
use youngbit_core::mm::PAGE_SIZE;
use youngbit_core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use youngbit_core::sync::thread;
use youngbit_core::trace::Counter;
use youngbit_core::{Cpu, Errno};

const PAGES: u64 = 64;

fn uniform(start: u64, end: u64, accesses: u64, write_ratio: f64, seed: u64) -> Stream {
    Stream::new(&StreamConfig {
        pattern: Pattern::Uniform,
        start,
        end,
        accesses,
        write_ratio,
        seed,
    })
    .expect("a valid stream")
}

fn two_vcpus(config: VmConfig) -> VmConfig {
    VmConfig {
        vcpus: 2,
        tlb: TlbConfig {
            entries: 32,
            ways: 4,
        },
        ..config
    }
}

fn name_of(config: &VmConfig) -> String {
    let format = config.format;
    format!(
        "{} {} ad={} {:?} {:?}",
        config.protocol.name, format.name, format.ad_bits, config.mmu, config.shadow
    )
}

/// Zap pages at random.
fn zapper(seed: u64, first: u64, end: u64) -> impl FnMut(Parts<'_>, &Cpu) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    move |p, cpu| {
        let page = first + rng.next_u64() % (end - first);
        drop(
            p.mm.notifiers
                .invalidate(cpu, p.hva_of(page), p.hva_of(page + 1)),
        );
    }
}

/// Follow the dirty log: copy each page that it names.
fn follow(p: Parts<'_>, cpu: &Cpu, copy: &mut [u8]) {
    let log = p.vm.get_dirty_log(cpu, 0, 0).expect("the slot logs");
    for (n, &word) in log.iter().enumerate() {
        let mut word = word;
        while word != 0 {
            let page = n as u64 * 64 + u64::from(word.trailing_zeros());
            word &= word - 1;
            if let Some(found) = p.mm.gup_fast(cpu, p.hva_of(page), false) {
                let byte = p.host.memory.content(found.pfn);
                copy[page as usize] = byte.load(Ordering::Relaxed);
            }
        }
    }
}

/// No dirty bit lost: a copy that only follows the log ends up equal to the
/// guest's memory, whatever ages and zaps meanwhile.
#[test]
fn no_write_escapes_the_dirty_log() {
    for config in distinct_configs() {
        let name = name_of(&config);
        let m = Machine::new(PAGES, two_vcpus(config));
        m.log_dirty(true);
        let p = m.parts();
        let mut copy = vec![0u8; PAGES as usize];
        let began = Instant::now();
        for round in 1..=8u8 {
            if enough(began, u64::from(round) - 1, 8) {
                break;
            }
            let seed = u64::from(round);
            let mut streams = [0, 1].map(|n| uniform(0, PAGES, 3000, 0.3, seed * 2 + n));
            let options = RunOptions {
                quantum: 16,
                store: Some(round),
                ..RunOptions::default()
            };
            let stop = AtomicBool::new(false);
            thread::scope(|s| {
                p.spawn(s, &stop, |p, cpu| {
                    p.age(cpu, 0, PAGES);
                });
                // Every other round: zaps flush translations, and hide whether
                // the harvest does.
                if round % 2 == 0 {
                    p.spawn(s, &stop, zapper(seed, 0, PAGES));
                }
                p.vm.run_with(&m.cpu, &mut streams, &options, |cpu| {
                    follow(p, cpu, &mut copy);
                    Ok(())
                })
                .expect("the guest runs");
                stop.store(true, Ordering::Relaxed);
            });
            follow(p, &m.cpu, &mut copy);
            for page in 0..PAGES {
                if let Some(found) = m.mm.gup_fast(&m.cpu, m.hva_of(page), false) {
                    let now = m.host.memory.content(found.pfn).load(Ordering::Relaxed);
                    assert_eq!(
                        copy[page as usize], now,
                        "{name}: page {page} round {round}"
                    );
                }
            }
        }
        m.finish();
    }
}

/// Hardware's Dirty is never lost by aging, whichever way it writes: SPTEs are
/// made clean but writable, the guest writes, agers age, and every page that
/// was written is dirty in its SPTE or its folio.
#[test]
fn aging_loses_no_dirty_bit() {
    for &protocol in Protocol::ALL {
        for format in [SpteFormat::EPT, SpteFormat::NPT] {
            let m = Machine::new(PAGES, two_vcpus(config(protocol, format)));
            let p = m.parts();
            for gfn in 0..PAGES {
                m.write(gfn);
            }
            let began = Instant::now();
            for round in 0..30 {
                if enough(began, round, 30) {
                    break;
                }
                // As PML-based logging does: D cleared, W left.
                m.tdp().clear_dirty(&m.vm, &m.cpu, 0, 0, PAGES);
                m.vm.flush_remote_tlbs(&m.cpu);
                for gfn in 0..PAGES {
                    m.clean_folio(gfn);
                    assert!(!format.is_dirty(m.spte(gfn)));
                }
                let mut streams = [0, 1].map(|n| uniform(0, PAGES, 1500, 1.0, round * 2 + n));
                m.vm.run_with(&m.cpu, &mut streams, &RunOptions::default(), |cpu| {
                    p.age(cpu, 0, PAGES);
                    Ok(())
                })
                .expect("the guest runs");
                for gfn in 0..PAGES {
                    assert!(format.is_dirty(m.spte(gfn)), "{} gfn {gfn}", protocol.name);
                }
            }
            m.finish();
        }
    }
}

/// No accessed bit invented in a page that nobody touched.
#[test]
fn pages_that_nobody_touches_stay_old() {
    for config in distinct_configs() {
        let name = name_of(&config);
        let m = Machine::new(2 * PAGES, two_vcpus(config));
        let p = m.parts();
        for gfn in 0..2 * PAGES {
            m.write(gfn);
        }
        m.age(PAGES, PAGES);
        m.log_dirty(true);
        let stop = AtomicBool::new(false);
        thread::scope(|s| {
            p.spawn(s, &stop, |p, cpu| {
                p.age(cpu, 0, PAGES);
                p.vm.get_dirty_log(cpu, 0, 0).expect("logs");
            });
            p.spawn(s, &stop, zapper(1, 0, 2 * PAGES));
            let mut streams = [0, 1].map(|n| uniform(0, PAGES, 8000, 0.5, n));
            m.vm.run_with(&m.cpu, &mut streams, &RunOptions::default(), |cpu| {
                for gfn in PAGES..2 * PAGES {
                    assert!(
                        !p.mm.notifiers.test_young(cpu, p.hva_of(gfn), false),
                        "{name}"
                    );
                }
                Ok(())
            })
            .expect("the guest runs");
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!m.age(PAGES, PAGES), "{name}");
        m.finish();
    }
}

/// Every accessed bit that was set or born was aged once, or is still there.
#[test]
fn accessed_bits_add_up() {
    for &protocol in Protocol::ALL {
        for format in [SpteFormat::EPT, SpteFormat::NPT] {
            let m = Machine::new(PAGES, two_vcpus(config(protocol, format)));
            let p = m.parts();
            let mut streams = [0, 1].map(|n| uniform(0, PAGES, 5000, 0.5, n));
            let stats =
                m.vm.run_with(&m.cpu, &mut streams, &RunOptions::default(), |cpu| {
                    p.age(cpu, 0, PAGES);
                    Ok(())
                })
                .expect("the guest runs");
            let sum = |c: Counter| stats.vcpus.iter().map(|v| v.counters.get(c)).sum::<u64>();
            // A fault that neither fixed nothing nor lost makes one young SPTE;
            // a write to the zero page's SPTE is zapped and made anew.
            let born = sum(Counter::KvmPageFaults)
                - sum(Counter::SpuriousFaults)
                - sum(Counter::FaultRetries)
                - sum(Counter::FastPageFaults);
            let mut left = 0;
            m.tdp().for_each_leaf(&m.cpu, 0, 0, PAGES, |_, _, spte| {
                left += u64::from(format.is_accessed(spte));
            });
            let aged = m.cpu.counters.get(Counter::SptesAged);
            let zapped = sum(Counter::SptesZapped);
            let set = sum(Counter::AccessedSet);
            // A zapped SPTE was young or aged before.
            assert!(
                (aged + left..=aged + left + zapped).contains(&(born + set)),
                "{} {}: born {born} + set {set}, aged {aged} + left {left} (zapped {zapped})",
                protocol.name,
                format.name
            );
            m.finish();
        }
    }
}

/// Once an invalidation has begun, and until it ends, the guest does not touch
/// the page: no stale translation, no fault that slips in.
#[test]
fn a_zapped_page_is_not_touched_until_the_invalidation_ends() {
    const MARK: u8 = 0xee;
    for config in distinct_configs() {
        let name = name_of(&config);
        let m = Machine::new(8, two_vcpus(config));
        let p = m.parts();
        for gfn in 0..8 {
            m.write(gfn);
        }
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let mut zaps = 0;
        let began = Instant::now();
        let options = RunOptions {
            store: Some(1),
            ..RunOptions::default()
        };
        let stop = AtomicBool::new(false);
        let options = RunOptions {
            stop: Some(&stop),
            ..options
        };
        let mut streams = [0, 1].map(|n| uniform(0, 8, u64::MAX, 0.7, n));
        m.vm.run_with(&m.cpu, &mut streams, &options, |cpu| {
            let page = rng.next_u64() % 8;
            let (start, end) = (p.hva_of(page), p.hva_of(page + 1));
            let pfn = p.mm.gup_fast(cpu, start, false).expect("there").pfn;
            // Only pages that the guest had mapped again count.
            zaps += u64::from(p.maps(cpu, page));
            let told = p.mm.notifiers.invalidate(cpu, start, end);
            let byte = p.host.memory.content(pfn);
            byte.store(MARK, Ordering::SeqCst);
            for _ in 0..5 {
                thread::yield_now();
                assert_eq!(byte.load(Ordering::SeqCst), MARK, "{name}: page {page}");
            }
            drop(told);
            stop.store(enough(began, zaps, 40), Ordering::Relaxed);
            Ok(())
        })
        .expect("the guest runs");
        m.finish();
    }
}

/// Every table is freed once, and nobody reads a freed one: slots come and go,
/// which zaps everything or only a slot, while vCPUs fault and agers walk.
#[test]
fn tables_are_freed_once_and_never_read_after() {
    for slot_zap_all in [true, false] {
        for protocol in [Protocol::BASELINE, Protocol::V7] {
            let pages = 4 * 512;
            let config = VmConfig {
                slot_zap_all,
                ..config(protocol, SpteFormat::EPT)
            };
            let m = Machine::new(pages, two_vcpus(config));
            let p = m.parts();
            let stop = AtomicBool::new(false);
            let reads = AtomicU64::new(0);
            let began = Instant::now();
            thread::scope(|s| {
                for _ in 0..2 {
                    let reads = &reads;
                    p.spawn(s, &stop, move |p, cpu| {
                        p.age(cpu, 0, pages);
                        p.mm.notifiers.test_young(cpu, p.hva_of(700), true);
                        reads.store(cpu.counters.get(Counter::PoisonReads), Ordering::Relaxed);
                    });
                }
                let mut n = 0u64;
                let mut streams = [0, 1].map(|n| uniform(0, pages, u64::MAX, 0.5, n));
                let done = AtomicBool::new(false);
                let options = RunOptions {
                    stop: Some(&done),
                    ..RunOptions::default()
                };
                m.vm.run_with(&m.cpu, &mut streams, &options, |cpu| {
                    let region = |size| MemoryRegion {
                        as_id: 0,
                        slot: 1,
                        flags: 0,
                        guest_phys_addr: (8192 + n % 3 * 4096) * PAGE_SIZE,
                        memory_size: size * PAGE_SIZE,
                        userspace_addr: p.hva,
                    };
                    p.vm.set_memory_region(cpu, &region(64))?;
                    p.vm.set_memory_region(cpu, &region(0))?;
                    // Only rounds in which the guest had got somewhere count.
                    n += u64::from(p.tdp().tables.live() > 3);
                    done.store(enough(began, n, 12), Ordering::Relaxed);
                    Ok(())
                })
                .expect("the guest runs");
                stop.store(true, Ordering::Relaxed);
                assert!(n > 0);
            });
            assert_eq!(reads.load(Ordering::Relaxed), 0);
            let host = m.host.clone();
            m.finish();
            let totals = host.totals.snapshot();
            assert_eq!(
                totals.get(Counter::TablesAllocated),
                totals.get(Counter::TablesFreed)
            );
            assert!(totals.get(Counter::TablesFreed) > 0);
            assert_eq!(totals.get(Counter::PoisonReads), 0);
        }
    }
}

/// Slots are created, moved, flagged and deleted while vCPUs run in them and
/// others age; the guest sees its memory, or no memory, and nothing else.
#[test]
fn slots_change_while_vcpus_run_and_agers_walk() {
    for (slot_zap_all, kind) in MACHINES
        .into_iter()
        .flat_map(|kind| [(true, kind), (false, kind)])
    {
        let config = VmConfig {
            slot_zap_all,
            ..two_vcpus(VmConfig::default().on(kind))
        };
        let m = Machine::new(PAGES, config);
        let p = m.parts();
        let stop = AtomicBool::new(false);
        thread::scope(|s| {
            p.spawn(s, &stop, |p, cpu| {
                p.age(cpu, 0, PAGES);
            });
            // The moving slot shows the same pages at 1000 or at 2000.
            p.spawn(s, &stop, move |p, cpu| {
                let set = |gfn: u64, flags, pages| {
                    let region = MemoryRegion {
                        as_id: 0,
                        slot: 1,
                        flags,
                        guest_phys_addr: gfn * PAGE_SIZE,
                        memory_size: pages * PAGE_SIZE,
                        userspace_addr: p.hva,
                    };
                    p.vm.set_memory_region(cpu, &region).expect("a valid slot");
                };
                set(1000, 0, PAGES);
                set(1000, LOG_DIRTY_PAGES, PAGES);
                set(2000, 0, PAGES);
                set(2000, 0, 0);
            });
            // One vCPU in the steady slot, one that is thrown out now and then.
            let (mut hit, mut miss) = (0, 0);
            let done = AtomicBool::new(false);
            let options = RunOptions {
                stop: Some(&done),
                ..RunOptions::default()
            };
            let mut streams = [uniform(0, PAGES, u64::MAX, 0.5, 0)];
            m.vm.run_with(&m.cpu, &mut streams, &options, |cpu| {
                for gfn in [1000, 1063, 2000, 2063] {
                    match p.vm.access(cpu, 1, gfn, true, None) {
                        Ok(()) => hit += 1,
                        Err(error) => {
                            assert_eq!(error.errno(), Errno::EFAULT, "{error}");
                            miss += 1;
                        }
                    }
                }
                done.store(hit > 20 && miss > 20, Ordering::Relaxed);
                Ok(())
            })
            .expect("the guest runs");
            stop.store(true, Ordering::Relaxed);
        });
        m.finish();
    }
}

/// A VM is destroyed while its vCPUs run and others age: they stop with `EIO`,
/// no callback runs afterwards, and nothing is left.
#[test]
fn destroying_a_running_vm_stops_it() {
    for (&protocol, kind) in Protocol::ALL
        .iter()
        .flat_map(|protocol| MACHINES.map(|kind| (protocol, kind)))
    {
        let config = config(protocol, SpteFormat::EPT).on(kind);
        let m = Machine::new(PAGES, two_vcpus(config));
        let p = m.parts();
        let stop = AtomicBool::new(false);
        let started = AtomicBool::new(false);
        thread::scope(|s| {
            p.spawn(s, &stop, |p, cpu| {
                p.age(cpu, 0, PAGES);
            });
            let (vm, host, started) = (p.vm, p.host, &started);
            let runner = s.spawn(move || {
                let cpu = Cpu::new(host);
                let mut streams = [0, 1].map(|n| uniform(0, PAGES, u64::MAX, 0.5, n));
                vm.run_with(&cpu, &mut streams, &RunOptions::default(), |_| {
                    started.store(true, Ordering::Relaxed);
                    thread::yield_now();
                    Ok(())
                })
            });
            while !started.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            m.vm.destroy(&m.cpu).expect("once");
            let result = runner.join().expect("no panic");
            assert_eq!(result.expect_err("it was running").errno(), Errno::EIO);
            assert!(!m.mm.notifiers.has_notifiers());
            let calls = m.counting(|| {
                m.age(0, PAGES);
            });
            assert_eq!(calls.get(Counter::NotifierClearYoungSlow), 0);
            stop.store(true, Ordering::Relaxed);
        });
        m.host.rcu.barrier();
        let what = format!("{} {kind:?}", protocol.name);
        if let Some(tdp) = &m.vm.tdp {
            assert_eq!(tdp.tables.live(), 0, "{what}");
        }
        if let Some(shadow) = &m.vm.shadow {
            assert_eq!(shadow.tables().live(), 0, "{what}");
        }
    }
}
