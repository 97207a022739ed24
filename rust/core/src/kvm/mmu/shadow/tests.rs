//! Each test names the statement that it checks.

use super::*;
use crate::host::{Host, HostConfig, ROOT_MEMCG};
use crate::kvm::guest::{GuestFaultKind, GuestPaging, alias_address};
use crate::kvm::mmu::ShadowMmu;
use crate::kvm::mmu::rmap::RMAP_LOCKED;
use crate::kvm::protocol::Protocol;
use crate::kvm::vm::VmConfig;
use crate::mm::{Mm, MmuNotifier, PAGE_SIZE};
use crate::sync::thread;
use crate::table::POISON;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// A VM of `pages` pages from frame 0 on.
struct Machine {
    host: Arc<Host>,
    mm: Arc<Mm>,
    vm: Arc<Vm>,
    base: u64,
    pages: u64,
}

impl Machine {
    fn new(pages: u64, config: VmConfig) -> (Machine, Cpu) {
        Self::with_flags(pages, config, VmFlags::default())
    }

    fn with_flags(pages: u64, config: VmConfig, flags: VmFlags) -> (Machine, Cpu) {
        crate::mutant::select_named();
        let host = Host::new(&HostConfig {
            nodes: vec![pages * 2 + 8192],
            swap_pages: 1024,
            virtual_clock: true,
        })
        .expect("host");
        let cpu = Cpu::new(&host);
        let mm = host.create_mm(ROOT_MEMCG).expect("mm");
        let space = host.create_space(Kind::Anon, pages);
        let base = mm
            .mmap(None, pages * PAGE_SIZE, &space, 0, flags)
            .expect("mmap");
        let vm = Vm::create(&cpu, &mm, config).expect("vm");
        vm.set_memory_region(
            &cpu,
            &MemoryRegion {
                as_id: 0,
                slot: 0,
                flags: 0,
                guest_phys_addr: 0,
                memory_size: pages * PAGE_SIZE,
                userspace_addr: base,
            },
        )
        .expect("slot");
        let machine = Machine {
            host,
            mm,
            vm,
            base,
            pages,
        };
        (machine, cpu)
    }

    /// The same, with every vCPU in the guest that uses the shadow MMU.
    fn guest(pages: u64, config: VmConfig) -> (Machine, Cpu) {
        let (machine, cpu) = Self::new(pages, config);
        machine.enter_l2(&cpu);
        (machine, cpu)
    }

    fn enter_l2(&self, cpu: &Cpu) {
        if self.vm.config.mmu == MmuKind::Nested {
            for vcpu in 0..self.vm.config.vcpus {
                self.vm.set_guest_mode(cpu, vcpu, true).expect("nested");
            }
        }
    }

    fn shadow(&self) -> &Shadow {
        self.vm.shadow.as_deref().expect("has one")
    }

    fn kernel(&self) -> &GuestKernel {
        self.shadow().kernel().expect("indirect")
    }

    fn touch(&self, cpu: &Cpu, page: u64, write: bool) {
        self.vm
            .access(cpu, 0, page, write, None)
            .unwrap_or_else(|e| panic!("page {page}: {e}"));
    }

    fn hva(&self, gfn: u64) -> u64 {
        self.base + gfn * PAGE_SIZE
    }

    fn young(&self, cpu: &Cpu, gfn: u64) -> bool {
        self.vm.test_young(cpu, self.hva(gfn), false)
    }

    /// `clear_young` over pages, by the notifier.
    fn age(&self, cpu: &Cpu, gfns: std::ops::Range<u64>, fast_only: bool) -> bool {
        self.vm
            .clear_young(cpu, self.hva(gfns.start), self.hva(gfns.end), fast_only)
    }

    fn verify(&self, cpu: &Cpu) {
        self.shadow().verify(&self.vm, cpu).expect("consistent");
        cpu.check_error().expect("nothing raised");
        for counter in [Counter::PoisonReads, Counter::RmapCorrupt] {
            assert_eq!(cpu.counters.get(counter), 0, "{counter:?}");
        }
    }

    /// Chain lengths of a frame's 4 KiB, 2 MiB and 1 GiB rmaps.
    fn chains(&self, cpu: &Cpu, gfn: u64) -> [u64; 3] {
        self.shadow().chain_lengths(&self.vm, cpu, 0, gfn)
    }

    fn destroy(self, cpu: &Cpu) {
        self.vm.destroy(cpu).expect("destroyed");
        cpu.rcu.flush();
        self.host.rcu.barrier();
        assert_eq!(self.shadow().tables.live(), 0, "every table freed once");
        assert_eq!(self.shadow().descriptors().0, 0, "every descriptor too");
        assert_eq!(self.shadow().indirect_shadow_pages(), 0);
    }
}

fn shadow(protocol: Protocol) -> VmConfig {
    VmConfig {
        protocol,
        mmu: MmuKind::Shadow,
        format: SpteFormat::NPT,
        ..VmConfig::default()
    }
}

fn direct(protocol: Protocol, ad: bool) -> VmConfig {
    VmConfig {
        format: if ad {
            SpteFormat::EPT
        } else {
            SpteFormat::EPT_NO_AD
        },
        shadow: ShadowConfig {
            direct: true,
            ..ShadowConfig::default()
        },
        ..shadow(protocol)
    }
}

fn nested(protocol: Protocol, l1_ad: bool) -> VmConfig {
    VmConfig {
        mmu: MmuKind::Nested,
        format: SpteFormat::EPT,
        shadow: ShadowConfig {
            l1_ad,
            ..ShadowConfig::default()
        },
        ..shadow(protocol)
    }
}

fn aliased(config: VmConfig, aliases: u64) -> VmConfig {
    VmConfig {
        shadow: ShadowConfig {
            aliases,
            ..config.shadow
        },
        ..config
    }
}

fn huge_in_guest(config: VmConfig) -> VmConfig {
    VmConfig {
        shadow: ShadowConfig {
            guest_level: 2,
            ..config.shadow
        },
        ..config
    }
}

const PROTOCOLS: [Protocol; 3] = [Protocol::BASELINE, Protocol::V7, Protocol::V9];

#[test]
fn section_4_it_serves_vms_without_the_tdp_mmu_and_nested_guests() {
    for config in [
        shadow(Protocol::V7),
        direct(Protocol::V7, true),
        direct(Protocol::V7, false),
        nested(Protocol::V7, true),
        nested(Protocol::V7, false),
    ] {
        let (m, cpu) = Machine::guest(2048, config);
        for page in [0, 1, 511, 512, 2047] {
            m.touch(&cpu, page, page % 2 == 0);
            assert_eq!(m.chains(&cpu, page), [1, 0, 0]);
        }
        assert_eq!(m.chains(&cpu, 2), [0, 0, 0]);
        m.verify(&cpu);
        m.destroy(&cpu);
    }
}

/// The first SPTE in a frame's rmap, and its value.
fn spte_of(m: &Machine, gfn: u64, level: u32) -> (SptePtr, u64) {
    let guard_cpu = Cpu::new(&m.host);
    let guard = guard_cpu.rcu.lock();
    let slots = m.vm.memslots.load(0, &guard);
    let slot = slots.by_gfn(gfn).expect("slot");
    let value = slot.rmaps().head(gfn, level).value();
    let ptr = m
        .shadow()
        .descs
        .iter(&guard_cpu.counters, value)
        .next()
        .expect("mapped");
    (ptr, m.shadow().read(ptr))
}

#[test]
fn section_4_a_step_from_empty_to_one_needs_mmu_lock_only() {
    let (m, cpu) = Machine::new(64, aliased(shadow(Protocol::V7), 2));
    m.vm.vcpus[0].shadow.set_alias(0);
    m.touch(&cpu, 5, true);
    assert_eq!(m.chains(&Cpu::new(&m.host), 5), [1, 0, 0]);
    assert_eq!(cpu.counters.get(Counter::RmapLocks), 0);
    assert!(cpu.counters.get(Counter::MmuLockWrite) > 0);
    // One more for the same frame: the chain is not empty now.
    m.vm.vcpus[0].shadow.set_alias(1);
    m.touch(&cpu, 5, true);
    assert!(cpu.counters.get(Counter::RmapLocks) > 0);
    m.verify(&cpu);
}

#[test]
fn section_4_changing_a_chain_waits_for_its_read_only_holder() {
    let (m, cpu) = Machine::new(64, aliased(shadow(Protocol::V7), 2));
    m.vm.vcpus[0].shadow.set_alias(0);
    m.touch(&cpu, 5, true);
    // Everything above the leaf for the second alias, through another frame.
    m.vm.vcpus[0].shadow.set_alias(1);
    m.touch(&cpu, 6, true);
    let holder = Cpu::new(&m.host);
    let guard = holder.rcu.lock();
    let slots = m.vm.memslots.load(0, &guard);
    let head = slots.by_gfn(5).expect("slot").rmaps().head(5, LEVEL_4K);
    let value = head.lock(&holder.counters);
    assert_ne!(value, 0);
    thread::scope(|s| {
        let fault = s.spawn(|| {
            let cpu = Cpu::new(&m.host);
            m.touch(&cpu, 5, true);
            cpu.counters.get(Counter::RmapSpins)
        });
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 20 {
            thread::yield_now();
        }
        assert_eq!(head.0.load(Ordering::Relaxed), value | RMAP_LOCKED);
        assert_eq!(m.shadow().descs.count(value), 1, "nothing was added");
        head.unlock_readonly(value);
        assert!(fault.join().expect("fault") > 0, "it waited");
    });
    drop(guard);
    assert_eq!(m.chains(&cpu, 5), [2, 0, 0]);
    m.verify(&cpu);
}

#[test]
fn section_4_sptes_are_zapped_before_their_rmap_entry_is_removed() {
    let (m, cpu) = Machine::new(64, shadow(Protocol::V7));
    m.touch(&cpu, 5, true);
    let (ptr, _) = spte_of(&m, 5, LEVEL_4K);
    let holder = Cpu::new(&m.host);
    let guard = holder.rcu.lock();
    let slots = m.vm.memslots.load(0, &guard);
    let head = slots.by_gfn(5).expect("slot").rmaps().head(5, LEVEL_4K);
    let value = head.lock(&holder.counters);
    thread::scope(|s| {
        s.spawn(|| {
            let cpu = Cpu::new(&m.host);
            let guest = m.shadow().guest_cpu(&m.vm, &cpu, 0);
            let at = alias_address(5, 0);
            m.kernel().unmap(&guest, at, LEVEL_4K).expect("unmapped");
        });
        let start = std::time::Instant::now();
        while spte::is_present(m.shadow().read(ptr)) && start.elapsed().as_secs() < 10 {
            thread::yield_now();
        }
        let zapped = !spte::is_present(m.shadow().read(ptr));
        let in_chain = head.0.load(Ordering::Relaxed) == value | RMAP_LOCKED;
        head.unlock_readonly(value);
        assert!(zapped, "the zap waits for the removal");
        assert!(in_chain, "the removal did not wait for the chain's holder");
    });
    drop(guard);
    assert_eq!(m.chains(&cpu, 5), [0, 0, 0]);
    m.verify(&cpu);
}

#[test]
fn section_4_chains_grow_and_shrink_with_aliases() {
    for aliases in [1, 2, 13, 14, 15, 28, 29, 200] {
        let (m, cpu) = Machine::new(32, aliased(shadow(Protocol::V7), aliases));
        for alias in 0..aliases {
            m.vm.vcpus[0].shadow.set_alias(alias);
            m.touch(&cpu, 3, alias % 2 == 0);
        }
        assert_eq!(m.chains(&cpu, 3), [aliases, 0, 0]);
        m.verify(&cpu);
        // All of them are aged by one call, and by the rmap alone.
        assert!(m.age(&cpu, 3..4, true));
        assert!(!m.age(&cpu, 3..4, true));
        assert_eq!(cpu.counters.get(Counter::SptesAged), aliases);
        // The host takes the page back: every SPTE goes.
        m.mm.munmap(&cpu, m.hva(3), PAGE_SIZE).expect("unmapped");
        assert_eq!(m.chains(&cpu, 3), [0, 0, 0]);
        assert_eq!(cpu.counters.get(Counter::SptesZapped), aliases);
        m.verify(&cpu);
        m.destroy(&cpu);
    }
}

#[test]
fn section_4_a_lockless_walk_skips_what_is_being_zapped() {
    let (m, cpu) = Machine::new(64, shadow(Protocol::V7));
    m.touch(&cpu, 9, true);
    let (ptr, value) = spte_of(&m, 9, LEVEL_4K);
    // As between the zap and the removal from the chain.
    m.shadow().word(ptr).store(0, Ordering::Relaxed);
    assert!(!m.age(&cpu, 9..10, true));
    assert!(!m.young(&cpu, 9));
    cpu.check_error().expect("nothing wrong with that");
    assert_eq!(cpu.counters.get(Counter::RmapCorrupt), 0);
    m.shadow().word(ptr).store(value, Ordering::Relaxed);
    assert!(m.young(&cpu, 9));
}

#[test]
fn section_4_under_mmu_lock_a_non_present_spte_is_corruption_reported_once() {
    let (m, cpu) = Machine::new(64, shadow(Protocol::V7));
    m.touch(&cpu, 9, true);
    let (ptr, value) = spte_of(&m, 9, LEVEL_4K);
    m.shadow().word(ptr).store(0, Ordering::Relaxed);
    assert!(!m.age(&cpu, 9..10, false));
    let error = cpu.check_error().expect_err("corrupt");
    assert_eq!(error.errno(), Errno::EIO);
    assert!(!m.age(&cpu, 9..10, false));
    cpu.check_error().expect("said once");
    assert_eq!(cpu.counters.get(Counter::RmapCorrupt), 2);
    m.shadow().word(ptr).store(value, Ordering::Relaxed);
}

#[test]
fn section_4_lockless_aging_clears_only_the_accessed_bit() {
    for config in [shadow(Protocol::V7), nested(Protocol::V7, true)] {
        let (m, cpu) = Machine::guest(64, config);
        for (gfn, write) in [(1, true), (2, false)] {
            m.touch(&cpu, gfn, write);
            let (ptr, before) = spte_of(&m, gfn, LEVEL_4K);
            assert!(m.age(&cpu, gfn..gfn + 1, true));
            assert_eq!(m.shadow().read(ptr), before & !m.vm.format().accessed);
            assert_ne!(m.shadow().read(ptr), before);
        }
        m.verify(&cpu);
    }
}

/// Which calls take `mmu_lock` for write, by protocol: [age fast, age accurate,
/// test].
#[test]
fn section_4_and_9_who_takes_mmu_lock() {
    for (protocol, expected) in [
        (Protocol::BASELINE, [1, 1, 1]),
        (Protocol::V7, [0, 1, 0]),
        (Protocol::V9, [0, 0, 0]),
    ] {
        for config in [
            shadow(protocol),
            direct(protocol, true),
            direct(protocol, false),
        ] {
            let (m, cpu) = Machine::new(64, config.clone());
            m.touch(&cpu, 7, true);
            let locks = |call: &dyn Fn()| {
                let before = cpu.counters.get(Counter::MmuLockWrite);
                call();
                cpu.counters.get(Counter::MmuLockWrite) - before
            };
            let found = [
                locks(&|| assert!(m.age(&cpu, 7..8, true))),
                locks(&|| {
                    m.age(&cpu, 7..8, false);
                }),
                locks(&|| {
                    m.young(&cpu, 7);
                }),
            ];
            assert_eq!(
                found, expected,
                "{} {:?}",
                protocol.name, config.format.name
            );
        }
    }
}

#[test]
fn section_4_without_ad_bits_fast_only_reports_young_and_leaves_it() {
    for config in [direct(Protocol::V7, false), nested(Protocol::V7, false)] {
        let l2 = config.mmu == MmuKind::Nested;
        let (m, cpu) = Machine::guest(64, config);
        m.touch(&cpu, 7, true);
        let (ptr, before) = spte_of(&m, 7, LEVEL_4K);
        assert!(!spte::ad_enabled(before));
        for _ in 0..5 {
            assert!(m.age(&cpu, 7..8, true), "young for ever");
            assert_eq!(m.shadow().read(ptr), before);
        }
        // The accurate notifier access-tracks it, and marks the page dirty.
        assert!(m.age(&cpu, 7..8, false));
        let tracked = m.shadow().read(ptr);
        assert!(spte::is_access_tracked(tracked));
        assert!(!m.age(&cpu, 7..8, false) && !m.age(&cpu, 7..8, true));
        assert!(!m.young(&cpu, 7));
        // And the next access brings it back: without mmu_lock where the MMU is
        // direct, by a fault under mmu_lock where it is not.
        let (fast, locks) = (
            cpu.counters.get(Counter::FastPageFaults),
            cpu.counters.get(Counter::MmuLockWrite),
        );
        m.touch(&cpu, 7, false);
        assert!(m.young(&cpu, 7));
        let (fast, locks) = (
            cpu.counters.get(Counter::FastPageFaults) - fast,
            cpu.counters.get(Counter::MmuLockWrite) - locks,
        );
        if l2 {
            assert_eq!((fast, locks), (0, 1));
            assert!(spte::is_writable(m.shadow().read(ptr)), "made anew");
        } else {
            assert_eq!((fast, locks), (1, 0));
            assert!(!spte::is_writable(m.shadow().read(ptr)), "W was not saved");
            m.touch(&cpu, 7, true);
            assert!(spte::is_writable(m.shadow().read(ptr)));
        }
        m.verify(&cpu);
        m.destroy(&cpu);
    }
}

#[test]
fn section_9_v9_ages_without_ad_bits_and_without_the_lock() {
    for config in [direct(Protocol::V9, false), nested(Protocol::V9, false)] {
        let (m, cpu) = Machine::guest(64, config);
        m.touch(&cpu, 7, true);
        let locks = cpu.counters.get(Counter::MmuLockWrite);
        let exchanges = cpu.counters.get(Counter::SpteCas);
        assert!(m.age(&cpu, 7..8, false));
        assert!(!m.age(&cpu, 7..8, false));
        assert_eq!(cpu.counters.get(Counter::MmuLockWrite), locks);
        assert_eq!(cpu.counters.get(Counter::SpteCas), exchanges + 1);
        m.touch(&cpu, 7, true);
        assert!(m.age(&cpu, 7..8, true), "fast_only makes no difference");
        assert!(!m.age(&cpu, 7..8, true));
        m.verify(&cpu);
    }
}

#[test]
fn section_9_baseline_clears_by_a_plain_store_where_nothing_can_be_lost() {
    let (m, cpu) = Machine::new(64, shadow(Protocol::BASELINE));
    m.touch(&cpu, 1, true);
    let (plain, and) = (
        cpu.counters.get(Counter::SptePlainStores),
        cpu.counters.get(Counter::SpteFetchAnd),
    );
    // Accessed, writable and dirty: nothing but Accessed can change.
    assert!(m.age(&cpu, 1..2, false));
    assert_eq!(cpu.counters.get(Counter::SptePlainStores), plain + 1);
    assert_eq!(cpu.counters.get(Counter::SpteFetchAnd), and);
}

#[test]
fn section_4_the_shadow_mmu_is_asked_only_when_it_may_map_something() {
    let (m, cpu) = Machine::new(64, nested(Protocol::V7, true));
    m.touch(&cpu, 7, true);
    let asked = |what: &str, expected: bool| {
        let before = cpu.counters.get(Counter::RmapLocks);
        let _ = m.age(&cpu, 7..8, true);
        assert_eq!(
            cpu.counters.get(Counter::RmapLocks) > before,
            expected,
            "{what}"
        );
    };
    assert_eq!(m.shadow().indirect_shadow_pages(), 0);
    asked("no L2 yet", false);
    m.vm.set_guest_mode(&cpu, 0, true).expect("nested");
    m.touch(&cpu, 7, true);
    assert!(m.shadow().indirect_shadow_pages() >= 4);
    asked("L2 has run", true);
    // Without the TDP MMU it is asked always.
    let (m, cpu) = Machine::new(64, direct(Protocol::V7, true));
    m.touch(&cpu, 7, true);
    assert_eq!(m.shadow().indirect_shadow_pages(), 0);
    assert!(m.age(&cpu, 7..8, true));
    assert_eq!(cpu.counters.get(Counter::RmapLocks), 1);
}

#[test]
fn section_3_tdp_first_then_shadow_with_early_return_for_test() {
    let (m, cpu) = Machine::new(64, nested(Protocol::V7, true));
    m.touch(&cpu, 7, true);
    m.vm.set_guest_mode(&cpu, 0, true).expect("nested");
    m.touch(&cpu, 7, true);
    // One page, a TDP SPTE and a shadow SPTE, both young.
    assert_eq!(m.chains(&cpu, 7), [1, 0, 0]);
    let locks = cpu.counters.get(Counter::RmapLocks);
    assert!(m.young(&cpu, 7));
    assert_eq!(
        cpu.counters.get(Counter::RmapLocks),
        locks,
        "TDP was enough"
    );
    // Age asks both and ORs.
    assert!(m.age(&cpu, 7..8, true));
    assert!(!m.young(&cpu, 7));
    assert_eq!(cpu.counters.get(Counter::SptesAged), 2);
    m.touch(&cpu, 7, false);
    assert!(m.young(&cpu, 7), "L2 alone");
    m.vm.set_guest_mode(&cpu, 0, false).expect("nested");
    assert!(m.age(&cpu, 7..8, true));
    m.touch(&cpu, 7, false);
    assert!(m.age(&cpu, 7..8, true), "L1 alone");
    assert!(!m.age(&cpu, 7..8, true));
    m.verify(&cpu);
    m.destroy(&cpu);
}

/// Three 2 MiB SPTEs, by direct pages and by a guest's own huge pages. Whether
/// it ages with the lock or without, a walk of any range ages those that the
/// range meets and no other.
#[test]
fn section_4_straddling_ranges_age_the_same_pages_locked_and_lockless() {
    const FIRST: [u64; 3] = [0, 512, 1024];
    const ENDS: [u64; 10] = [0, 1, 510, 511, 512, 513, 514, 1023, 1024, 1025];
    let thp = VmFlags {
        thp: true,
        ..VmFlags::default()
    };
    for (protocol, fast_only) in [
        (Protocol::BASELINE, false),
        (Protocol::V7, false),
        (Protocol::V7, true),
        (Protocol::V9, false),
    ] {
        for config in [
            direct(protocol, true),
            huge_in_guest(shadow(protocol)),
            huge_in_guest(nested(protocol, true)),
        ] {
            let (m, cpu) = Machine::with_flags(2048, config, thp);
            m.enter_l2(&cpu);
            for (at, &start) in ENDS.iter().enumerate() {
                for &end in ENDS[at + 1..].iter().chain(&[2048]) {
                    for gfn in FIRST {
                        m.touch(&cpu, gfn, true);
                        assert_eq!(m.chains(&cpu, gfn), [0, 1, 0], "mapped by 2 MiB");
                    }
                    let expected = FIRST.map(|first| start < first + 512 && end > first);
                    let found = m.age(&cpu, start..end, fast_only);
                    assert_eq!(found, expected.contains(&true));
                    assert_eq!(
                        FIRST.map(|gfn| !m.young(&cpu, gfn)),
                        expected,
                        "[{start}, {end}) {} fast_only {fast_only}",
                        protocol.name
                    );
                }
            }
            m.verify(&cpu);
        }
    }
}

/// What a nested guest whose L1 has no A/D bits, or a shadow MMU without them,
/// costs reclaim: under `fast_only` pages that nobody has touched since they
/// were made stay while others go that were touched later. v9, and the accurate
/// notifier in v7, see them age.
#[test]
fn section_4_without_ad_bits_pages_are_the_last_to_be_evicted_under_fast_only() {
    use crate::lru_gen::evict::run_eviction;
    use crate::lru_gen::lruvec::ANON;
    use crate::lru_gen::{Asking, age};
    const IDLE: u64 = 256;
    for (protocol, asking, expected) in [
        (Protocol::V7, Asking::FastOnly, IDLE),
        (Protocol::V7, Asking::Accurate, 0),
        (Protocol::V9, Asking::Accurate, 0),
    ] {
        for config in [direct(protocol, false), nested(protocol, false)] {
            let (m, cpu) = Machine::guest(IDLE, config);
            m.host.lru_gen.set_asking(asking);
            let memcg = m.host.root_memcg();
            let space = m.host.create_space(Kind::Anon, IDLE);
            let used =
                m.mm.mmap(None, IDLE * PAGE_SIZE, &space, 0, VmFlags::default())
                    .expect("room");
            let touch_used = || {
                for n in 0..IDLE {
                    m.mm.touch(&cpu, used + n * PAGE_SIZE, true, None)
                        .expect("touched");
                }
            };
            let age = |times| {
                for _ in 0..times {
                    age(&cpu, &memcg, 0, true, true).expect("aged");
                }
            };
            (0..IDLE).for_each(|page| m.touch(&cpu, page, true));
            for _ in 0..3 {
                touch_used();
                age(1);
            }
            // Both are idle now, the guest's pages for longer.
            age(2);
            let lruvec = &memcg.lruvecs[0];
            let mut evicted = 0;
            while evicted < IDLE {
                let oldest = lruvec.min_seq(ANON);
                evicted += run_eviction(&cpu, &memcg, lruvec, oldest, 200, IDLE - evicted)
                    .expect("there is an old generation");
            }
            let left = (0..IDLE)
                .filter(|&gfn| m.mm.gup_fast(&cpu, m.hva(gfn), false).is_some())
                .count() as u64;
            // A few of what was evicted are the guest's page tables.
            let (least, most) = (expected.saturating_sub(8), expected + 8);
            assert!(
                (least..=most).contains(&left),
                "{} {asking:?}: {left} of the guest's {IDLE} idle pages are left",
                protocol.name
            );
            m.verify(&cpu);
        }
    }
}

/// L1 and L2 use the same host page: a TDP SPTE, and a shadow SPTE for each
/// address that L1 gave it in L2, all of one frame, aged as one page.
#[test]
fn one_page_has_a_tdp_spte_and_shadow_sptes() {
    for protocol in PROTOCOLS {
        for l1_ad in [true, false] {
            let (m, cpu) = Machine::new(64, aliased(nested(protocol, l1_ad), 15));
            m.touch(&cpu, 7, true);
            m.enter_l2(&cpu);
            for alias in 0..15 {
                m.vm.vcpus[0].shadow.set_alias(alias);
                m.touch(&cpu, 7, alias % 2 == 0);
            }
            assert_eq!(m.chains(&cpu, 7), [15, 0, 0]);
            let tdp = m.vm.tdp.as_ref().expect("L1 runs on it");
            let (level, l1) = tdp.leaf(&cpu, 0, 7).expect("mapped for L1");
            assert_eq!(level, LEVEL_4K);
            assert_eq!(spte::pfn(l1), spte::pfn(spte_of(&m, 7, LEVEL_4K).1));
            // The accurate notifier ages all sixteen, the page itself once.
            let aged = cpu.counters.get(Counter::SptesAged);
            assert!(m.age(&cpu, 7..8, false));
            assert!(!m.age(&cpu, 7..8, false));
            assert_eq!(cpu.counters.get(Counter::SptesAged) - aged, 16);
            m.vm.vcpus[0].shadow.set_alias(9);
            m.touch(&cpu, 7, false);
            assert!(m.young(&cpu, 7), "through one address of L2");
            m.verify(&cpu);
            m.destroy(&cpu);
        }
    }
}

#[test]
fn huge_guest_pages_are_shadowed_huge_or_by_direct_pages() {
    for thp in [true, false] {
        let flags = VmFlags {
            thp,
            ..VmFlags::default()
        };
        let (m, cpu) = Machine::with_flags(2048, shadow(Protocol::V7), flags);
        let guest = m.shadow().guest_cpu(&m.vm, &cpu, 0);
        let gva = 1 << 30;
        m.kernel().map(&guest, gva, 512, 2, true).expect("mapped");
        drop(guest);
        let page = gva >> PAGE_SHIFT;
        m.touch(&cpu, page + 5, true);
        let expected = if thp { [0, 1, 0] } else { [1, 0, 0] };
        assert_eq!(m.chains(&cpu, 517), expected);
        if !thp {
            m.touch(&cpu, page + 6, true);
            assert_eq!(m.chains(&cpu, 518), [1, 0, 0]);
        }
        // The same frame through a small guest page: one SPTE more.
        m.touch(&cpu, 517, true);
        assert_eq!(m.chains(&cpu, 517)[0], 2 - u64::from(thp));
        m.verify(&cpu);
        m.destroy(&cpu);
    }
}

#[test]
fn a_store_to_a_shadowed_table_traps_and_is_obeyed() {
    for config in [shadow(Protocol::V7), nested(Protocol::V7, true)] {
        let (m, cpu) = Machine::guest(64, config);
        m.touch(&cpu, 5, true);
        m.touch(&cpu, 6, true);
        // The guest's first link in its root trapped: the root was shadowed.
        let traps = cpu.counters.get(Counter::ShadowWriteTraps);
        let guest = m.shadow().guest_cpu(&m.vm, &cpu, 0);
        // Page 5 shows frame 6 from now on.
        m.kernel()
            .map(&guest, alias_address(5, 0), 6, LEVEL_4K, true)
            .expect("mapped");
        assert_eq!(cpu.counters.get(Counter::ShadowWriteTraps), traps + 1);
        assert_eq!(m.chains(&cpu, 5), [0, 0, 0]);
        m.touch(&cpu, 5, true);
        assert_eq!(m.chains(&cpu, 6), [2, 0, 0]);
        // Read-only, then gone.
        m.kernel()
            .map(&guest, alias_address(5, 0), 6, LEVEL_4K, false)
            .expect("mapped");
        m.touch(&cpu, 5, false);
        let error =
            m.vm.access(&cpu, 0, 5, true, None)
                .expect_err("read-only for the guest");
        assert_eq!(error.errno(), Errno::EFAULT);
        let fault = m.vm.vcpus[0]
            .shadow
            .last_guest_fault()
            .expect("the guest's");
        assert_eq!(fault.kind, GuestFaultKind::Protection);
        m.kernel()
            .unmap(&guest, alias_address(6, 0), LEVEL_4K)
            .expect("unmapped");
        assert_eq!(m.chains(&cpu, 6), [1, 0, 0]);
        drop(guest);
        m.verify(&cpu);
        m.destroy(&cpu);
    }
}

#[test]
fn a_table_written_often_is_taken_for_something_else() {
    let (m, cpu) = Machine::new(64, shadow(Protocol::V7));
    m.touch(&cpu, 5, true);
    let used = m.shadow().used_pages();
    let traps = cpu.counters.get(Counter::ShadowWriteTraps);
    let guest = m.shadow().guest_cpu(&m.vm, &cpu, 0);
    for n in 0..5u64 {
        m.kernel()
            .map(&guest, alias_address(20 + n, 0), n, LEVEL_4K, true)
            .expect("mapped");
    }
    drop(guest);
    assert_eq!(cpu.counters.get(Counter::ShadowWriteFloods), 1);
    // The rest were plain stores again.
    assert_eq!(cpu.counters.get(Counter::ShadowWriteTraps), traps + 3);
    assert_eq!(m.shadow().used_pages(), used - 1);
    assert_eq!(m.chains(&cpu, 5), [0, 0, 0]);
    m.touch(&cpu, 22, true);
    assert_eq!(m.chains(&cpu, 2), [1, 0, 0]);
    m.verify(&cpu);
    m.destroy(&cpu);
}

#[test]
fn accessed_and_dirty_bits_of_the_guests_own_table() {
    let (m, cpu) = Machine::new(64, shadow(Protocol::V7));
    let entry = |m: &Machine, cpu: &Cpu| {
        let guest = m.shadow().guest_cpu(&m.vm, cpu, 0);
        let (gfn, index) = m
            .kernel()
            .entry(&guest, alias_address(5, 0), 1)
            .expect("readable")
            .expect("there");
        m.shadow().memory.load(gfn, index)
    };
    m.touch(&cpu, 5, false);
    assert_eq!(entry(&m, &cpu) >> 5 & 3, 1, "accessed, not dirty");
    // Shadowed read-only, or the dirty bit would never be set.
    assert!(!spte::is_writable(spte_of(&m, 5, LEVEL_4K).1));
    m.touch(&cpu, 5, true);
    assert_eq!(entry(&m, &cpu) >> 5 & 3, 3, "and dirty");
    assert!(spte::is_writable(spte_of(&m, 5, LEVEL_4K).1));
    m.verify(&cpu);
}

#[test]
fn zapping_passes_accessed_and_dirty_on() {
    use crate::mm::FolioWord;
    use crate::mm::folio::{DIRTY, REFERENCED};
    for config in [shadow(Protocol::V7), direct(Protocol::V9, false)] {
        let (m, cpu) = Machine::new(64, config);
        m.touch(&cpu, 5, true);
        let pfn = spte::pfn(spte_of(&m, 5, LEVEL_4K).1);
        let word = m.host.memory.word(pfn);
        word.clear(DIRTY | REFERENCED);
        {
            let _lock = cpu.write_lock(&m.vm.mmu_lock);
            m.shadow().zap_all(&m.vm, &cpu);
        }
        assert!(word.get().has(DIRTY), "the SPTE was dirty");
        assert!(word.get().has(REFERENCED), "and young");
        m.verify(&cpu);
        // And the guest goes on.
        m.touch(&cpu, 5, true);
        m.verify(&cpu);
    }
}

#[test]
fn dirty_logging_sees_every_page_written_through_shadow_sptes() {
    use crate::kvm::memslot::LOG_DIRTY_PAGES;
    for config in [
        aliased(shadow(Protocol::V7), 3),
        direct(Protocol::V7, true),
        direct(Protocol::V9, false),
    ] {
        let (m, cpu) = Machine::new(64, config);
        for page in 0..64 {
            m.touch(&cpu, page, true);
        }
        let region = |flags| MemoryRegion {
            as_id: 0,
            slot: 0,
            flags,
            guest_phys_addr: 0,
            memory_size: m.pages * PAGE_SIZE,
            userspace_addr: m.base,
        };
        m.vm.set_memory_region(&cpu, &region(LOG_DIRTY_PAGES))
            .expect("logged");
        for round in 0..3 {
            for page in [3, 17, 63] {
                m.touch(&cpu, page, true);
            }
            m.touch(&cpu, 9, false);
            let log = m.vm.get_dirty_log(&cpu, 0, 0).expect("log");
            assert_eq!(log, [1 << 3 | 1 << 17 | 1 << 63], "round {round}");
            m.verify(&cpu);
        }
        m.vm.set_memory_region(&cpu, &region(0))
            .expect("not logged");
        m.touch(&cpu, 3, true);
        m.destroy(&cpu);
    }
}

#[test]
fn deleting_a_slot_zaps_and_the_guest_can_use_it_again() {
    for slot_zap_all in [true, false] {
        for config in [
            shadow(Protocol::V7),
            direct(Protocol::V7, true),
            nested(Protocol::V7, true),
        ] {
            let config = VmConfig {
                slot_zap_all,
                ..config
            };
            let (m, cpu) = Machine::new(64, config);
            m.touch(&cpu, 1, true);
            m.enter_l2(&cpu);
            let region = |memory_size| MemoryRegion {
                as_id: 0,
                slot: 0,
                flags: 0,
                guest_phys_addr: 0,
                memory_size,
                userspace_addr: m.base,
            };
            for _ in 0..3 {
                for page in 0..8 {
                    m.touch(&cpu, page, true);
                }
                m.verify(&cpu);
                m.vm.set_memory_region(&cpu, &region(0)).expect("deleted");
                m.verify(&cpu);
                let error = m.vm.access(&cpu, 0, 3, false, None).expect_err("no slot");
                assert_eq!(error.errno(), Errno::EFAULT);
                m.vm.set_memory_region(&cpu, &region(m.pages * PAGE_SIZE))
                    .expect("created");
            }
            m.destroy(&cpu);
        }
    }
}

/// The guest moves its leaf table to frame 9 of ordinary memory, which is shadowed
/// from then on.
fn move_leaf_table_to_frame_9(m: &Machine, cpu: &Cpu) {
    m.touch(cpu, 5, true);
    let guest = m.shadow().guest_cpu(&m.vm, cpu, 0);
    let paging = m.kernel().paging;
    for n in 0..64 {
        let leaf = paging.leaf_entry(n, LEVEL_4K, true);
        guest.guest_store(9, n as usize, leaf).expect("stored");
    }
    m.kernel()
        .poke(&guest, alias_address(5, 0), 2, paging.table_entry(9))
        .expect("stored");
    drop(guest);
    m.touch(cpu, 6, true);
    assert!(m.vm.is_write_tracked(cpu, 9));
}

#[test]
fn a_slot_with_shadowed_tables_in_it_goes() {
    for slot_zap_all in [true, false] {
        for config in [shadow(Protocol::V7), nested(Protocol::V7, true)] {
            let config = VmConfig {
                slot_zap_all,
                ..config
            };
            let (m, cpu) = Machine::guest(64, config);
            move_leaf_table_to_frame_9(&m, &cpu);
            let region = |memory_size| MemoryRegion {
                as_id: 0,
                slot: 0,
                flags: 0,
                guest_phys_addr: 0,
                memory_size,
                userspace_addr: m.base,
            };
            m.vm.set_memory_region(&cpu, &region(0)).expect("deleted");
            m.verify(&cpu);
            let error = m.vm.access(&cpu, 0, 6, false, None).expect_err("no slot");
            assert_eq!(error.errno(), Errno::EFAULT);
            m.vm.set_memory_region(&cpu, &region(m.pages * PAGE_SIZE))
                .expect("created");
            assert!(!m.vm.is_write_tracked(&cpu, 9));
            m.touch(&cpu, 6, true);
            assert!(m.vm.is_write_tracked(&cpu, 9));
            m.verify(&cpu);
            m.destroy(&cpu);
        }
    }
}

/// Log writes to a guest whose leaf table is in frame 9.
fn log_writes_with_a_table_in_frame_9(m: &Machine, cpu: &Cpu) {
    move_leaf_table_to_frame_9(m, cpu);
    m.vm.set_memory_region(
        cpu,
        &MemoryRegion {
            as_id: 0,
            slot: 0,
            flags: crate::kvm::memslot::LOG_DIRTY_PAGES,
            guest_phys_addr: 0,
            memory_size: m.pages * PAGE_SIZE,
            userspace_addr: m.base,
        },
    )
    .expect("logged");
}

/// Which of the first 64 frames the log names; it is empty then.
fn harvest(m: &Machine, cpu: &Cpu) -> u64 {
    m.vm.get_dirty_log(cpu, 0, 0).expect("it logs")[0]
}

#[test]
fn an_emulated_write_is_logged_and_makes_the_page_dirty() {
    use crate::mm::FolioWord;
    use crate::mm::folio::DIRTY;
    for config in [shadow(Protocol::V7), nested(Protocol::V7, true)] {
        let (m, cpu) = Machine::guest(64, config);
        log_writes_with_a_table_in_frame_9(&m, &cpu);
        if m.vm.config.mmu == MmuKind::Nested {
            m.vm.set_guest_mode(&cpu, 0, false).expect("nested");
        }
        let word = m.host.memory.word(m.mm.lookup(m.hva(9)).1.pfn());
        let logged = || {
            word.clear(DIRTY);
            let traps = cpu.counters.get(Counter::ShadowWriteTraps);
            m.touch(&cpu, 9, true);
            assert_eq!(cpu.counters.get(Counter::ShadowWriteTraps), traps + 1);
            assert!(word.get().has(DIRTY), "the folio is clean");
            harvest(&m, &cpu) >> 9 & 1
        };
        // The first also sets bits in the guest's own tables, which are here.
        logged();
        assert_eq!(logged(), 1, "not in the log");
        m.verify(&cpu);
        m.destroy(&cpu);
    }
}

#[test]
fn a_write_is_emulated_only_to_the_frame_that_was_to_be_written() {
    let (m, cpu) = Machine::guest(64, shadow(Protocol::V7));
    log_writes_with_a_table_in_frame_9(&m, &cpu);
    m.touch(&cpu, 5, false);
    harvest(&m, &cpu);
    // As if the page had been the table's when the write faulted, and the guest
    // had mapped this frame there since, whose SPTE is read-only for the log.
    let vcpu = &m.vm.vcpus[0];
    assert!(m.shadow().emulate(&m.vm, &cpu, vcpu, 5, 9));
    m.touch(&cpu, 5, true);
    assert_eq!(harvest(&m, &cpu) >> 5 & 1, 1, "written, and in no log");
    assert!(!vcpu.shadow.is_emulating(5));
    m.verify(&cpu);
    m.destroy(&cpu);
}

#[test]
fn broken_guest_tables_fault_the_guest_and_leave_the_host_whole() {
    use GuestFaultKind::*;
    for config in [shadow(Protocol::V7), nested(Protocol::V7, false)] {
        let paging = Shadow::paging(&Machine::new(64, config.clone()).0.vm);
        let mut cases = vec![
            // Tables outside guest memory, at the last frame there can be, and
            // in a hole.
            (4, 1 << 30 << 12 | 7, Some(Unbacked)),
            (2, ((1 << 34) - 1) << 12 | 7, Some(Unbacked)),
            (3, 5000 << 12 | 7, Some(Unbacked)),
            // Reserved bits.
            (1, 1 << 51 | 7, Some(Reserved)),
            (2, 1 << 47 | 7, Some(Reserved)),
            (4, 1 << 33 << 12 | 0x87, Some(Reserved)),
            // A page outside guest memory: not the guest's fault but MMIO.
            (1, 5000 << 12 | 7, None),
            // A huge page that begins inside memory and ends outside: the
            // accessed page is inside.
            (2, 0x87 | 1 << 5 | 1 << 6, Some(NotPresent)),
        ];
        if paging == GuestPaging::ept(false) {
            cases.push((2, GUEST_TABLE_GFN << 12 | 0x3f, Some(Reserved)));
            cases.push((1, 5 << 12 | 2, Some(Reserved)));
        }
        for (level, value, expected) in cases {
            let (m, cpu) = Machine::guest(64, config.clone());
            m.touch(&cpu, 5, true);
            m.touch(&cpu, 6, true);
            let guest = m.shadow().guest_cpu(&m.vm, &cpu, 0);
            m.kernel()
                .poke(&guest, alias_address(5, 0), level, value)
                .expect("stored");
            drop(guest);
            let what = format!("level {level} entry {value:#x}");
            let result = m.vm.access(&cpu, 0, 5, false, None);
            if expected == Some(NotPresent) {
                result.unwrap_or_else(|e| panic!("{what}: {e}"));
            } else {
                let error = result.expect_err(&what);
                assert_eq!(error.errno(), Errno::EFAULT, "{what}: {error}");
                let fault = m.vm.vcpus[0].shadow.last_guest_fault();
                assert_eq!(fault.map(|f| f.kind), expected, "{what}");
            }
            // The host and the rest of the guest go on.
            if level == 1 {
                m.touch(&cpu, 6, true);
            }
            m.verify(&cpu);
            m.destroy(&cpu);
        }
    }
}

#[test]
fn a_guest_table_that_points_at_itself() {
    for config in [shadow(Protocol::V7), nested(Protocol::V7, true)] {
        let (m, cpu) = Machine::guest(64, config);
        let root = m.kernel().root;
        let guest = m.shadow().guest_cpu(&m.vm, &cpu, 0);
        // The last entry of the root is the root: the tables show themselves
        // at the top of the address space.
        let itself = m.kernel().paging.table_entry(root);
        guest.guest_store(root, 511, itself).expect("stored");
        drop(guest);
        let page = (1 << 36) - 1;
        m.touch(&cpu, page, false);
        assert_eq!(m.chains(&cpu, root), [1, 0, 0], "mapped, read-only");
        assert!(!spte::is_writable(spte_of(&m, root, LEVEL_4K).1));
        // Writing to it is emulated, and ends.
        for _ in 0..7 {
            m.touch(&cpu, page, true);
        }
        assert!(cpu.counters.get(Counter::ShadowWriteTraps) > 0);
        m.touch(&cpu, 5, true);
        m.verify(&cpu);
        m.destroy(&cpu);
    }
}

/// Entries that a hostile guest would try: any bits, and tables made of tables.
fn hostile(rng: &mut Xoshiro256PlusPlus, m: &Machine) -> u64 {
    let frame = match rng.random_range(0..5) {
        // Its own tables, as tables or as pages, at any level.
        0 => m.kernel().root,
        1 => GUEST_TABLE_GFN + rng.random_range(0..8),
        // Memory, the end of memory, nowhere.
        2 => rng.random_range(0..m.pages),
        3 => m.pages + rng.random_range(0..3),
        _ => rng.random::<u64>() >> rng.random_range(0..64),
    };
    let low = rng.random::<u64>() & 0xfff;
    match rng.random_range(0..4) {
        0 => rng.random(),
        1 => frame << PAGE_SHIFT | low,
        // No huge page, no reserved bits: the longest way down.
        2 => m.kernel().paging.table_entry(frame & 0xff_ffff_ffff),
        _ => frame << PAGE_SHIFT | low & !0x80 | 7,
    }
}

/// Bad input: whatever the guest stores in its page tables, its accesses end,
/// in memory of its own or in a fault of its own, and the host stays whole.
#[test]
fn hostile_guest_tables_fault_the_guest_and_leave_the_host_whole() {
    let mut kinds = std::collections::HashMap::new();
    for seed in 0..24u64 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let protocol = PROTOCOLS[seed as usize % 3];
        let config = match seed % 4 {
            0 => shadow(protocol),
            1 => aliased(shadow(protocol), 3),
            2 => nested(protocol, true),
            _ => nested(protocol, false),
        };
        let (m, cpu) = Machine::guest(600, config);
        for page in [0, 5, 599] {
            m.touch(&cpu, page, true);
        }
        for _ in 0..400 {
            let page = [0, 5, 6, 511, 512, 599][rng.random_range(0..6)];
            if rng.random_bool(0.3) {
                let guest = m.shadow().guest_cpu(&m.vm, &cpu, 0);
                let value = hostile(&mut rng, &m);
                if rng.random_bool(0.5) {
                    // Where its kernel finds the entry, if it still does.
                    let at = alias_address(page, 0);
                    let _ = m.kernel().poke(&guest, at, rng.random_range(1..5), value);
                } else {
                    let table = GUEST_TABLE_GFN + rng.random_range(0..8);
                    let index = [0, 1, 5, 511][rng.random_range(0..4)];
                    guest.guest_store(table, index, value).expect("its memory");
                }
                continue;
            }
            // Everywhere that the tables may lead, itself included.
            let page = match rng.random_range(0..8) {
                0 => rng.random::<u64>() >> rng.random_range(24..64),
                1 => (1 << 36) - 1 - rng.random_range(0..600),
                _ => page,
            };
            match m.vm.access(&cpu, 0, page, rng.random_bool(0.5), None) {
                Ok(()) => *kinds.entry(None).or_insert(0) += 1,
                Err(error) => {
                    assert_eq!(error.errno(), Errno::EFAULT, "seed {seed}: {error}");
                    let fault = m.vm.vcpus[0].shadow.last_guest_fault();
                    *kinds.entry(fault.map(|f| f.kind)).or_insert(0) += 1;
                }
            }
            if rng.random_bool(0.1) {
                m.age(&cpu, 0..600, rng.random_bool(0.5));
            }
        }
        m.verify(&cpu);
        m.destroy(&cpu);
    }
    use GuestFaultKind::*;
    for met in [None, Some(NotPresent), Some(Reserved), Some(Unbacked)] {
        assert!(kinds.contains_key(&met), "never {met:?}: {kinds:?}");
    }
}

#[test]
fn l1_writing_to_a_table_of_l2_traps() {
    let (m, cpu) = Machine::new(64, nested(Protocol::V7, true));
    let root = m.kernel().root;
    // L1 has it mapped writable before it becomes a shadowed table.
    m.touch(&cpu, root, true);
    assert!(m.vm.tdp.as_ref().is_some_and(|tdp| {
        tdp.leaf(&cpu, 0, root)
            .is_some_and(|(_, spte)| spte::is_writable(spte))
    }));
    m.vm.set_guest_mode(&cpu, 0, true).expect("nested");
    m.touch(&cpu, 5, true);
    assert!(m.vm.tdp.as_ref().is_some_and(|tdp| {
        tdp.leaf(&cpu, 0, root)
            .is_some_and(|(_, spte)| !spte::is_writable(spte))
    }));
    m.vm.set_guest_mode(&cpu, 0, false).expect("nested");
    let traps = cpu.counters.get(Counter::ShadowWriteTraps);
    m.touch(&cpu, root, true);
    assert_eq!(cpu.counters.get(Counter::ShadowWriteTraps), traps + 1);
    m.verify(&cpu);
    m.destroy(&cpu);
}

#[test]
fn the_limit_recycles_the_oldest_shadow_pages() {
    let pages = 512 * 80;
    let config = VmConfig {
        shadow: ShadowConfig {
            max_pages: Some(MIN_SHADOW_PAGES),
            ..ShadowConfig::default()
        },
        ..shadow(Protocol::V7)
    };
    let (m, cpu) = Machine::new(pages, config);
    for n in 0..80 {
        m.touch(&cpu, n * 512, true);
        assert!(m.shadow().used_pages() <= MIN_SHADOW_PAGES);
    }
    assert!(cpu.counters.get(Counter::ShadowPagesRecycled) > 0);
    assert_eq!(m.chains(&cpu, 0), [0, 0, 0], "the oldest went");
    assert_eq!(m.chains(&cpu, 79 * 512), [1, 0, 0], "the youngest stayed");
    m.touch(&cpu, 0, true);
    m.verify(&cpu);
    m.destroy(&cpu);
}

#[test]
fn kvms_rule_for_the_limit() {
    let limit = |pages, aliases| {
        let (m, cpu) = Machine::new(pages, aliased(shadow(Protocol::V7), aliases));
        let _lock = cpu.write_lock(&m.vm.mmu_lock);
        m.shadow()
            .locked(&m.vm, &cpu, |ctx, state| m.shadow().limit(ctx, state))
    };
    assert_eq!(limit(512, 1), 64);
    assert_eq!(limit(100_000, 1), 2_000);
    assert_eq!(limit(100_000, 4), 8_000);
}

#[test]
fn a_chain_beyond_the_threshold_is_zapped_whole() {
    let aliases = crate::kvm::mmu::rmap::RMAP_RECYCLE_THRESHOLD + 1;
    let config = VmConfig {
        shadow: ShadowConfig {
            aliases,
            max_pages: Some(100_000),
            ..ShadowConfig::default()
        },
        ..shadow(Protocol::V7)
    };
    let (m, cpu) = Machine::new(8, config);
    for alias in 0..aliases - 1 {
        m.vm.vcpus[0].shadow.set_alias(alias);
        m.touch(&cpu, 3, true);
    }
    assert_eq!(m.chains(&cpu, 3), [aliases - 1, 0, 0]);
    m.vm.vcpus[0].shadow.set_alias(aliases - 1);
    m.touch(&cpu, 3, true);
    assert_eq!(m.chains(&cpu, 3), [1, 0, 0], "zapped, and faulted again");
    m.verify(&cpu);
    m.destroy(&cpu);
}

#[test]
fn configurations_that_cannot_be_are_refused() {
    let bad = [
        aliased(shadow(Protocol::V7), 0),
        aliased(shadow(Protocol::V7), MAX_ALIASES + 1),
        aliased(direct(Protocol::V7, true), 2),
        VmConfig {
            format: SpteFormat::NPT,
            ..nested(Protocol::V7, false)
        },
        VmConfig {
            shadow: ShadowConfig {
                guest_level: 4,
                ..ShadowConfig::default()
            },
            ..shadow(Protocol::V7)
        },
        VmConfig {
            shadow: ShadowConfig {
                direct: true,
                ..ShadowConfig::default()
            },
            ..nested(Protocol::V7, true)
        },
        VmConfig {
            shadow: ShadowConfig {
                max_pages: Some(MIN_SHADOW_PAGES - 1),
                ..ShadowConfig::default()
            },
            ..shadow(Protocol::V7)
        },
    ];
    let (m, cpu) = Machine::new(64, shadow(Protocol::V7));
    for config in bad {
        let error = Vm::create(&cpu, &m.mm, config.clone()).err();
        let error = error.unwrap_or_else(|| panic!("{config:?} was accepted"));
        assert_eq!(error.errno(), Errno::EINVAL, "{config:?}");
    }
    let error = m.vm.set_guest_mode(&cpu, 0, true).expect_err("not nested");
    assert_eq!(error.errno(), Errno::EOPNOTSUPP);
}

#[test]
fn out_of_host_memory_is_an_error_and_nothing_breaks() {
    let (m, cpu) = Machine::new(256, shadow(Protocol::V7));
    // All of the host's memory but a little.
    let mut taken = Vec::new();
    while let Some(pfn) = m.host.memory.alloc(&cpu, 0, 0, 0) {
        taken.push(pfn);
    }
    let error = m.vm.access(&cpu, 0, 5, true, None).expect_err("no memory");
    assert_eq!(error.errno(), Errno::ENOMEM);
    for pfn in taken {
        m.host.memory.free(pfn);
    }
    m.touch(&cpu, 5, true);
    m.verify(&cpu);
    m.destroy(&cpu);
}

/// Random programs against a set of accessed pages: accesses through aliases,
/// agings and tests of ranges, guest remappings, host unmappings.
fn random_program(config: VmConfig, seed: u64, steps: usize) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    const PAGES: u64 = 1100;
    let aliases = config.shadow.aliases;
    let l2 = config.mmu == MmuKind::Nested;
    let accurate = config.protocol != Protocol::V7;
    let thp = VmFlags {
        thp: config.shadow.direct && rng.random_bool(0.5),
        ..VmFlags::default()
    };
    let (m, cpu) = Machine::with_flags(PAGES, config, thp);
    // What has one accessed bit; the last 76 pages are no whole huge page.
    let unit = |gfn: u64| {
        if thp.thp && gfn < 1024 {
            gfn / 512
        } else {
            gfn + 2
        }
    };
    if thp.thp {
        (0..PAGES).for_each(|gfn| m.touch(&cpu, gfn, true));
        assert_eq!(m.chains(&cpu, 600), [0, 1, 0]);
    }
    m.age(&cpu, 0..PAGES, false);
    let mut young = std::collections::HashSet::new();
    let mut zapped = cpu.counters.get(Counter::SptesZapped);
    for step in 0..steps {
        let gfn = rng.random_range(0..PAGES);
        match rng.random_range(0..100) {
            0..60 => {
                if l2 {
                    m.vm.set_guest_mode(&cpu, 0, rng.random_bool(0.5))
                        .expect("nested");
                }
                m.vm.vcpus[0].shadow.set_alias(rng.random_range(0..aliases));
                m.touch(&cpu, gfn, rng.random_bool(0.5));
                young.insert(unit(gfn));
            }
            60..90 => {
                let end = (gfn + 1 + rng.random_range(0..600)).min(PAGES);
                let fast_only = !accurate && rng.random_bool(0.5);
                let expected = (gfn..end).any(|gfn| young.contains(&unit(gfn)));
                let test = rng.random_bool(0.3);
                let found = if test {
                    m.young(&cpu, gfn)
                } else {
                    m.age(&cpu, gfn..end, fast_only)
                };
                let expected = if test {
                    young.contains(&unit(gfn))
                } else {
                    expected
                };
                let lost = cpu.counters.get(Counter::SptesZapped) != zapped;
                assert!(
                    found == expected || (lost && !found),
                    "seed {seed} step {step}: [{gfn}, {end}) test {test}: {found}, expected {expected}"
                );
                if !test {
                    for gfn in gfn..end {
                        young.remove(&unit(gfn));
                    }
                }
            }
            90..95 if m.shadow().kernel().is_some() && !l2 => {
                let guest = m.shadow().guest_cpu(&m.vm, &cpu, 0);
                let at = alias_address(gfn, rng.random_range(0..aliases));
                m.kernel().unmap(&guest, at, LEVEL_4K).expect("unmapped");
            }
            _ => {
                // The host takes a page and gives a new one on the next access.
                let start = m.hva(gfn);
                let _told = m.mm.notifiers.invalidate(&cpu, start, start + PAGE_SIZE);
                young.remove(&unit(gfn));
            }
        }
        if step % 50 == 0 {
            m.verify(&cpu);
            let now = cpu.counters.get(Counter::SptesZapped);
            if now != zapped {
                // What was zapped is old now; begin from a known state.
                m.age(&cpu, 0..PAGES, false);
                young.clear();
                zapped = now;
            }
        }
    }
    m.verify(&cpu);
    m.destroy(&cpu);
}

#[test]
fn random_programs_agree_with_a_set_of_pages() {
    for seed in 0..12 {
        for protocol in PROTOCOLS {
            random_program(shadow(protocol), seed, 300);
            random_program(aliased(shadow(protocol), 3), seed, 300);
            random_program(huge_in_guest(shadow(protocol)), seed, 300);
            random_program(direct(protocol, true), seed, 300);
            random_program(nested(protocol, true), seed, 300);
            if protocol != Protocol::V7 {
                random_program(direct(protocol, false), seed, 300);
                random_program(nested(protocol, false), seed, 300);
            }
        }
    }
}

/// Guest tables of four used pages each, which is far more than there may be
/// shadow pages of, and how many of them are used half of the time: what
/// threads seldom have in common goes wrong seldom.
const TABLES: u64 = 96;
const HOT_TABLES: u64 = 2;

fn used_page(rng: &mut impl Rng) -> u64 {
    let tables = if rng.random_bool(0.5) {
        HOT_TABLES
    } else {
        TABLES
    };
    rng.random_range(0..tables) * 512 + rng.random_range(0..4)
}

/// Walk the chain of a frame as an ager does: held, it leads to SPTEs of that
/// frame or to none. The frame does not change.
fn look_into_chain(m: &Machine, cpu: &Cpu, gfn: u64) {
    let frame = m.mm.lookup(m.hva(gfn)).1.pfn();
    let guard = cpu.rcu.lock();
    let slots = m.vm.memslots.load(0, &guard);
    let head = slots.by_gfn(gfn).expect("slot").rmaps().head(gfn, LEVEL_4K);
    let descs = &m.shadow().descs;
    descs.for_each_lockless(&cpu.counters, head, |ptr| {
        let value = m.shadow().word(ptr).load(Ordering::Relaxed);
        assert!(
            !spte::is_present_leaf(value, LEVEL_4K) || spte::pfn(value) == frame,
            "the chain of gfn {gfn} leads to {ptr:?}, {value:#x}, which maps another frame than \
             {frame:?}"
        );
        true
    });
    assert_eq!(
        cpu.counters.get(Counter::PoisonReads),
        0,
        "a freed descriptor in the chain of gfn {gfn}"
    );
}

/// Walk down a vCPU's tables in an RCU section, as the fault without `mmu_lock`
/// does, but slowly: whatever a link leads to stays a table of that level.
fn walk_slowly(m: &Machine, cpu: &Cpu, vcpu: usize, page: u64) {
    let tables = m.shadow().tables();
    let _section = cpu.rcu.lock();
    let Some(root) = m.vm.vcpus[vcpu].root() else {
        return;
    };
    let (mut table, mut level) = (root, m.vm.config.levels);
    loop {
        thread::yield_now();
        let value = m
            .shadow()
            .read(SptePtr::new(table, spte::gfn_index(page, level)));
        let found = tables.meta(table).level();
        assert!(
            value != POISON && found == level,
            "{table:?} was a table of level {level}, and was freed under its reader: it holds \
             {value:#x} and is of level {found}"
        );
        if !spte::is_present(value) || spte::is_last(value, level) {
            return;
        }
        table = spte::table(value);
        level -= 1;
    }
}

/// The first thread that ends, well or not, ends the others.
struct Last<'a>(&'a AtomicBool);

impl Drop for Last<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// vCPUs run, agers walk without the lock, the guest changes its page tables,
/// shadow pages are recycled and the host unmaps, all at once.
fn everything_at_once(config: VmConfig, accesses: u64) {
    const PAGES: u64 = 512 * TABLES;
    let config = VmConfig {
        vcpus: 2,
        tlb: crate::kvm::TlbConfig {
            entries: 64,
            ways: 4,
        },
        shadow: ShadowConfig {
            max_pages: Some(MIN_SHADOW_PAGES),
            ..config.shadow
        },
        ..config
    };
    let aliases = config.shadow.aliases;
    let (m, cpu) = Machine::guest(PAGES, config);
    for page in (0..TABLES).flat_map(|table| table * 512..table * 512 + 4) {
        let touched = m.mm.touch(&cpu, m.hva(page), true, None);
        touched.expect("room for every frame");
    }
    let stop = AtomicBool::new(false);
    let done = |stop: &AtomicBool| stop.load(Ordering::Relaxed);
    thread::scope(|s| {
        for vcpu in 0..2u32 {
            let (m, stop) = (&m, &stop);
            s.spawn(move || {
                let _last = Last(stop);
                let cpu = Cpu::new(&m.host);
                let mut rng = Xoshiro256PlusPlus::seed_from_u64(u64::from(vcpu));
                for _ in 0..accesses {
                    let page = used_page(&mut rng);
                    let done = m.vm.access(&cpu, vcpu, page, rng.random_bool(0.5), Some(1));
                    done.unwrap_or_else(|e| panic!("page {page}: {e}"));
                }
                cpu.check_error().expect("nothing raised");
            });
        }
        for ager in 0..2u64 {
            let (m, stop) = (&m, &stop);
            s.spawn(move || {
                let _last = Last(stop);
                let cpu = Cpu::new(&m.host);
                let mut rng = Xoshiro256PlusPlus::seed_from_u64(10 + ager);
                while !done(stop) {
                    if rng.random_bool(0.05) {
                        let start = rng.random_range(0..PAGES - 2048);
                        m.age(&cpu, start..start + 2048, ager == 0);
                    }
                    let page = used_page(&mut rng);
                    m.age(&cpu, page..page + 4, ager == 0);
                    m.young(&cpu, page);
                }
                cpu.check_error().expect("nothing raised");
            });
        }
        for reader in 0..2u64 {
            let (m, stop) = (&m, &stop);
            s.spawn(move || {
                let _last = Last(stop);
                let cpu = Cpu::new(&m.host);
                let mut rng = Xoshiro256PlusPlus::seed_from_u64(40 + reader);
                while !done(stop) {
                    if reader == 0 {
                        look_into_chain(m, &cpu, used_page(&mut rng));
                    } else {
                        walk_slowly(m, &cpu, rng.random_range(0..2), used_page(&mut rng));
                    }
                }
                cpu.check_error().expect("nothing raised");
            });
        }
        if m.shadow().kernel().is_some() {
            let (m, stop) = (&m, &stop);
            s.spawn(move || {
                let _last = Last(stop);
                let cpu = Cpu::new(&m.host);
                let mut rng = Xoshiro256PlusPlus::seed_from_u64(20);
                let guest = m.shadow().guest_cpu(&m.vm, &cpu, 0);
                while !done(stop) {
                    let page = used_page(&mut rng);
                    let at = alias_address(page, rng.random_range(0..aliases));
                    if rng.random_bool(0.02) {
                        m.kernel().drop_table(&guest, at).expect("dropped");
                    } else if rng.random_bool(0.5) {
                        m.kernel().unmap(&guest, at, LEVEL_4K).expect("unmapped");
                    } else {
                        // Fails when the table was just dropped, or is huge.
                        let _ = m.kernel().map(&guest, at, page, LEVEL_4K, true);
                    }
                    thread::yield_now();
                }
                cpu.check_error().expect("nothing raised");
            });
        }
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(30);
        while !done(&stop) {
            let start = m.hva(used_page(&mut rng));
            let pages = if rng.random_bool(0.5) { 64 } else { 1 };
            drop(
                m.mm.notifiers
                    .invalidate(&cpu, start, start + pages * PAGE_SIZE),
            );
            thread::yield_now();
        }
        cpu.check_error().expect("nothing raised");
    });
    m.verify(&cpu);
    let totals = m.host.totals.snapshot();
    for counter in [Counter::PoisonReads, Counter::RmapCorrupt] {
        assert_eq!(totals.get(counter), 0, "{counter:?}");
    }
    let recycled = totals.get(Counter::ShadowPagesRecycled);
    let zapped = totals.get(Counter::ShadowPagesZapped);
    assert!(
        recycled > 0,
        "of {zapped} shadow pages zapped, none was recycled"
    );
    m.destroy(&cpu);
}

#[test]
fn lockless_walks_while_tables_change_and_pages_are_recycled() {
    // YOUNGBIT_SOAK multiplies the work.
    let soak = std::env::var("YOUNGBIT_SOAK").ok();
    let accesses = 3_000 * soak.map_or(1, |n| n.parse().expect("a number"));
    for protocol in [Protocol::V7, Protocol::V9] {
        everything_at_once(shadow(protocol), accesses);
        everything_at_once(aliased(shadow(protocol), 6), accesses);
        everything_at_once(nested(protocol, true), accesses);
        everything_at_once(nested(protocol, false), accesses);
        everything_at_once(direct(protocol, false), accesses);
    }
}

/// L1 on one thread and L2 on another use the same pages while others age and
/// unmap them, some so that other frames come: at the end each page is mapped
/// by both, to the frame that the process has there.
#[test]
fn l1_and_l2_use_the_same_pages_at_once() {
    const PAGES: u64 = 1024;
    for protocol in PROTOCOLS {
        for l1_ad in [true, false] {
            let config = VmConfig {
                vcpus: 2,
                ..nested(protocol, l1_ad)
            };
            let (m, cpu) = Machine::new(PAGES, config);
            m.vm.set_guest_mode(&cpu, 1, true).expect("nested");
            let space = m.host.create_space(Kind::Anon, PAGES);
            let gone = [AtomicBool::new(false), AtomicBool::new(false)];
            thread::scope(|s| {
                for vcpu in 0..2u32 {
                    let (m, gone) = (&m, &gone);
                    s.spawn(move || {
                        let _last = Last(&gone[vcpu as usize]);
                        let cpu = Cpu::new(&m.host);
                        for round in 0..3 {
                            for page in 0..PAGES {
                                let write = (page + round) % 2 == 0;
                                // Just unmapped: it comes back.
                                while let Err(e) = m.vm.access(&cpu, vcpu, page, write, None) {
                                    assert_eq!(e.errno(), Errno::EFAULT, "page {page}: {e}");
                                    thread::yield_now();
                                }
                            }
                        }
                        cpu.check_error().expect("nothing raised");
                    });
                }
                let mut page = 0;
                while !gone.iter().all(|gone| gone.load(Ordering::Relaxed)) {
                    m.age(&cpu, 0..PAGES, page % 2 == 0);
                    page = (page + 7) % (PAGES - 8);
                    let start = m.hva(page);
                    if page % 4 == 0 {
                        m.mm.munmap(&cpu, start, 8 * PAGE_SIZE).expect("mapped");
                        let (len, flags) = (8 * PAGE_SIZE, VmFlags::default());
                        m.mm.mmap(Some(start), len, &space, page, flags)
                            .expect("room");
                        continue;
                    }
                    drop(
                        m.mm.notifiers
                            .invalidate(&cpu, start, start + 8 * PAGE_SIZE),
                    );
                }
            });
            m.verify(&cpu);
            let tdp = m.vm.tdp.as_ref().expect("L1 runs on it");
            for page in 0..PAGES {
                for vcpu in 0..2 {
                    m.vm.access(&cpu, vcpu, page, false, None).expect("memory");
                }
                assert_eq!(m.chains(&cpu, page), [1, 0, 0]);
                let (_, l1) = tdp.leaf(&cpu, 0, page).expect("mapped for L1");
                let (_, l2) = spte_of(&m, page, LEVEL_4K);
                let frame = m.mm.lookup(m.hva(page)).1.pfn();
                let both = (spte::pfn(l1), spte::pfn(l2));
                assert_eq!(both, (frame, frame), "page {page} for L1 and for L2");
            }
            m.verify(&cpu);
            m.destroy(&cpu);
        }
    }
}

#[test]
fn threads_of_vcpus_populate_every_machine() {
    use crate::access::{Pattern, Stream, StreamConfig};
    use crate::kvm::vcpu::RunOptions;
    for config in [
        shadow(Protocol::V9),
        direct(Protocol::V7, true),
        nested(Protocol::V9, false),
    ] {
        let (m, cpu) = Machine::guest(1024, VmConfig { vcpus: 2, ..config });
        let mut streams: Vec<Stream> = (0..2)
            .map(|_| {
                Stream::new(&StreamConfig {
                    pattern: Pattern::Sequential,
                    start: 0,
                    end: 1024,
                    accesses: 1024,
                    write_ratio: 1.0,
                    seed: 1,
                })
                .expect("stream")
            })
            .collect();
        m.vm.run_live(&cpu, &mut streams, &RunOptions::default())
            .expect("runs");
        for gfn in 0..1024 {
            assert_eq!(m.chains(&cpu, gfn), [1, 0, 0], "both vCPUs share a root");
        }
        m.verify(&cpu);
        m.destroy(&cpu);
    }
}
