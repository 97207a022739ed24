//! vCPUs, runs and the modelled TLB.

use crate::machine::{Machine, config, configs};
use youngbit_core::access::{Pattern, Stream, StreamConfig};
use youngbit_core::kvm::mmu::spte::SpteFormat;
use youngbit_core::kvm::{Protocol, RunOptions, TlbConfig, VmConfig};
use youngbit_core::sync::atomic::{AtomicBool, Ordering};
use youngbit_core::trace::Counter;
use youngbit_core::{Errno, Error};

fn stream(pattern: Pattern, end: u64, accesses: u64, write_ratio: f64, seed: u64) -> Stream {
    Stream::new(&StreamConfig {
        pattern,
        start: 0,
        end,
        accesses,
        write_ratio,
        seed,
    })
    .expect("a valid stream")
}

fn with_tlb(entries: u32, ways: u32) -> VmConfig {
    VmConfig {
        tlb: TlbConfig { entries, ways },
        ..VmConfig::default()
    }
}

#[test]
fn the_hardware_sets_bits_only_if_clear() {
    let m = Machine::v7(64);
    m.write(3);
    let set = |f: &dyn Fn()| {
        let c = m.counting(f);
        (c.get(Counter::AccessedSet), c.get(Counter::DirtySet))
    };
    assert_eq!(set(&|| m.write(3)), (0, 0), "born accessed and dirty");
    m.age(3, 1);
    assert_eq!(set(&|| m.read(3)), (1, 0));
    assert_eq!(set(&|| m.read(3)), (0, 0));
    m.finish();
}

#[test]
fn a_hit_sets_no_accessed_bit_so_a_page_in_use_can_look_old() {
    let m = Machine::new(64, with_tlb(64, 4));
    m.write(3);
    assert!(m.age(3, 1), "not flushed");
    let hits = m.count(Counter::TlbHits, || m.write(3));
    assert_eq!(hits, 1);
    assert!(!m.is_young(3), "stale old");
    // The flushing notifier makes the next access walk.
    m.mm.touch(&m.cpu, m.hva_of(3), true, None).expect("there");
    let _ =
        m.mm.notifiers
            .clear_flush_young(&m.cpu, m.hva_of(3), m.hva_of(4));
    m.vm.flush_remote_tlbs(&m.cpu);
    m.write(3);
    assert!(m.is_young(3));
    m.finish();
}

#[test]
fn clear_flush_young_makes_the_next_access_seen() {
    for config in configs() {
        let m = Machine::new(
            64,
            VmConfig {
                tlb: TlbConfig {
                    entries: 64,
                    ways: 4,
                },
                ..config
            },
        );
        m.write(3);
        let flush = || {
            m.mm.notifiers
                .clear_flush_young(&m.cpu, m.hva_of(3), m.hva_of(4))
        };
        assert!(flush());
        m.read(3);
        assert!(m.is_young(3) && flush());
        m.finish();
    }
}

#[test]
fn the_tlb_survives_runs_and_a_zap_empties_it() {
    let m = Machine::new(64, with_tlb(64, 4));
    let run = || {
        let mut streams = [stream(Pattern::Sequential, 32, 32, 1.0, 0)];
        m.vm.run_inline(&m.cpu, &mut streams, &RunOptions::default())
            .expect("memory is there")
    };
    assert_eq!(run().vcpus[0].counters.get(Counter::TlbMisses), 32);
    assert_eq!(m.vm.vcpus[0].tlb_len(), 32);
    assert_eq!(run().vcpus[0].counters.get(Counter::TlbHits), 32);
    drop(m.mm.notifiers.invalidate(&m.cpu, m.hva, m.hva_of(1)));
    assert_eq!(run().vcpus[0].counters.get(Counter::TlbMisses), 32);
    m.finish();
}

#[test]
fn a_write_through_a_clean_translation_sets_dirty() {
    let m = Machine::new(64, with_tlb(64, 4));
    m.log_dirty(true);
    m.write(3);
    // Write-protected and flushed: the write-protected translation is not
    // writable, the next write faults, and the one after that hits.
    m.dirty_log();
    m.read(3);
    assert_eq!(m.count(Counter::TlbHits, || m.write(3)), 0);
    assert_eq!(m.count(Counter::TlbHits, || m.write(3)), 1);
    assert_eq!(m.dirty_log(), [3]);
    m.finish();
}

#[test]
fn inline_runs_repeat_to_the_bit() {
    let once = || {
        let m = Machine::new(
            2048,
            VmConfig {
                vcpus: 3,
                ..with_tlb(64, 4)
            },
        );
        let mut streams: Vec<Stream> = (0..3)
            .map(|n| {
                let zipf = Pattern::Zipf {
                    exponent: 0.9,
                    scatter: true,
                };
                stream(zipf, 2048, 5000, 0.3, n)
            })
            .collect();
        let options = RunOptions {
            quantum: 100,
            ..RunOptions::default()
        };
        let stats =
            m.vm.run_inline(&m.cpu, &mut streams, &options)
                .expect("runs");
        assert!(!stats.stopped);
        let mut sptes = Vec::new();
        m.tdp()
            .for_each_leaf(&m.cpu, 0, 0, 2048, |gfn, level, spte| {
                sptes.push((gfn, level, spte))
            });
        let counters: Vec<_> = stats
            .vcpus
            .iter()
            .map(|v| (v.accesses, v.counters))
            .collect();
        let now = m.host.clock.now_ns();
        m.finish();
        (sptes, counters, now)
    };
    let first = once();
    assert_eq!(first, once());
    assert_eq!(first.2, 15_000 * 100, "100 ns of virtual time an access");
}

#[test]
fn live_runs_make_every_access_and_count_it() {
    let m = Machine::new(
        2048,
        VmConfig {
            vcpus: 4,
            ..VmConfig::default()
        },
    );
    let mut streams: Vec<Stream> = (0..4)
        .map(|n| stream(Pattern::Uniform, 2048, 3000, 0.5, n))
        .collect();
    let stats =
        m.vm.run_live(&m.cpu, &mut streams, &RunOptions::default())
            .expect("runs");
    assert_eq!(stats.vcpus.len(), 4);
    for run in &stats.vcpus {
        assert_eq!(run.accesses, 3000);
        assert_eq!(run.counters.get(Counter::GuestAccesses), 3000);
        assert_eq!(run.counters.get(Counter::TlbMisses), 3000);
        assert!(run.wall_ns > 0);
    }
    m.finish();
}

#[test]
fn work_goes_on_in_the_calling_thread_while_vcpus_run() {
    let m = Machine::new(
        512,
        VmConfig {
            vcpus: 2,
            ..VmConfig::default()
        },
    );
    let mut passes = 0u32;
    let mut streams = [0, 1].map(|n| stream(Pattern::Uniform, 512, 200_000, 0.5, n));
    m.vm.run_with(&m.cpu, &mut streams, &RunOptions::default(), |cpu| {
        m.mm.notifiers.clear_young(cpu, m.hva, m.hva_of(512), true);
        passes += 1;
        Ok(())
    })
    .expect("runs");
    assert!(passes > 0);
    let mut streams = [0, 1].map(|n| stream(Pattern::Uniform, 512, u64::MAX, 0.5, n));
    let error =
        m.vm.run_with(&m.cpu, &mut streams, &RunOptions::default(), |_| {
            Err(Error::new(Errno::EIO, "enough"))
        })
        .expect_err("its error ends the run");
    assert!(error.to_string().contains("enough"));
    m.finish();
}

#[test]
fn a_stop_flag_ends_runs_early() {
    let m = Machine::v7(64);
    let stop = AtomicBool::new(true);
    let options = RunOptions {
        stop: Some(&stop),
        ..RunOptions::default()
    };
    let endless = || [stream(Pattern::Uniform, 64, u64::MAX, 0.5, 0)];
    let inline = m.vm.run_inline(&m.cpu, &mut endless(), &options);
    assert!(inline.expect("stopped").stopped);
    stop.store(false, Ordering::Relaxed);
    let mut calls = 0;
    let live = m.vm.run_with(&m.cpu, &mut endless(), &options, |_| {
        calls += 1;
        stop.store(calls >= 3, Ordering::Relaxed);
        Ok(())
    });
    assert!(live.expect("stopped").stopped);
    m.finish();
}

#[test]
fn the_threads_of_a_run_stop_when_the_caller_is_interrupted() {
    let m = Machine::v7(64);
    let cpu = youngbit_core::Cpu::with_poll(
        &m.host,
        Box::new(|| Err(Error::new(Errno::EINTR, "interrupted"))),
    );
    for live in [false, true] {
        let mut streams = [stream(Pattern::Uniform, 64, u64::MAX, 0.5, 0)];
        let options = RunOptions::default();
        let result = if live {
            m.vm.run_live(&cpu, &mut streams, &options)
        } else {
            m.vm.run_inline(&cpu, &mut streams, &options)
        };
        assert_eq!(result.expect_err("interrupted").errno(), Errno::EINTR);
    }
    m.finish();
}

#[test]
fn errors_of_a_guest_end_the_run_and_name_the_frame() {
    let m = Machine::new(
        64,
        VmConfig {
            vcpus: 2,
            ..VmConfig::default()
        },
    );
    for live in [false, true] {
        let mut streams = [
            stream(Pattern::Uniform, 64, u64::MAX, 0.5, 0),
            stream(Pattern::Sequential, 100, 100, 1.0, 0),
        ];
        let options = RunOptions::default();
        let result = if live {
            m.vm.run_live(&m.cpu, &mut streams, &options)
        } else {
            m.vm.run_inline(&m.cpu, &mut streams, &options)
        };
        let error = result.expect_err("gfn 64 is nowhere");
        assert_eq!(error.errno(), Errno::EFAULT);
        assert!(error.to_string().contains("gfn 0x40"), "{error}");
    }
    let too_many = m.vm.run_inline(
        &m.cpu,
        &mut [0, 1, 2].map(|n| stream(Pattern::Uniform, 64, 1, 0.5, n)),
        &RunOptions::default(),
    );
    assert_eq!(too_many.expect_err("two vCPUs").errno(), Errno::EINVAL);
    let unknown = m.vm.access(&m.cpu, 2, 0, false, None);
    assert_eq!(unknown.expect_err("two vCPUs").errno(), Errno::EINVAL);
    m.finish();
}

#[test]
fn stored_bytes_reach_the_page() {
    for format in [SpteFormat::EPT, SpteFormat::EPT_NO_AD, SpteFormat::NPT] {
        let m = Machine::new(64, config(Protocol::V7, format));
        m.vm.access(&m.cpu, 0, 5, true, Some(42)).expect("there");
        let page = m.mm.gup_fast(&m.cpu, m.hva_of(5), false).expect("there");
        assert_eq!(m.host.memory.content(page.pfn).load(Ordering::Relaxed), 42);
        m.finish();
    }
}
