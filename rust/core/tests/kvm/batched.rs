//! Aging that asks once a PTE table leaves every page, every SPTE and every
//! count of the walk as aging that asks page by page does, when nobody else
//! works on the machine: two machines run one random program.

use crate::machine::{Machine, configs};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use std::sync::Arc;
use youngbit_core::kvm::mmu::shadow::ShadowConfig;
use youngbit_core::kvm::{MemoryRegion, MmuKind, Protocol, Vm, VmConfig};
use youngbit_core::lru_gen::{Asking, age, check, page_generations};
use youngbit_core::mm::{Kind, Memcg, Mm, PAGE_SIZE, VmFlags};
use youngbit_core::trace::Counter;
use youngbit_core::{Cpu, Host, HostConfig};

/// Two PTE tables and a bit: tables are met in part, and cut by mappings.
const PAGES: u64 = 1200;

#[derive(Clone, Debug)]
enum Do {
    /// Guest accesses to pages from one on, some apart.
    Guest {
        first: u64,
        step: u64,
        pages: u64,
        write: bool,
    },
    /// The same by the host.
    Host {
        first: u64,
        step: u64,
        pages: u64,
        write: bool,
    },
    Unmap {
        first: u64,
        pages: u64,
    },
    Discard {
        first: u64,
        pages: u64,
    },
    /// A slot that shows part of the memory once more.
    Alias {
        first: u64,
        pages: u64,
        place: u64,
    },
    Age {
        swap: bool,
    },
    Log(bool),
}

fn program() -> impl Strategy<Value = Vec<Do>> {
    let some = || (0..PAGES, 1..9u64, 1..200u64, any::<bool>());
    let op = prop_oneof![
        6 => some().prop_map(|(first, step, pages, write)| Do::Guest { first, step, pages, write }),
        2 => some().prop_map(|(first, step, pages, write)| Do::Host { first, step, pages, write }),
        1 => (0..PAGES, 1..40u64).prop_map(|(first, pages)| Do::Unmap { first, pages }),
        1 => (0..PAGES, 1..40u64).prop_map(|(first, pages)| Do::Discard { first, pages }),
        1 => (0..PAGES, 1..300u64, 0..2000u64)
            .prop_map(|(first, pages, place)| Do::Alias { first, pages, place }),
        4 => any::<bool>().prop_map(|swap| Do::Age { swap }),
        1 => any::<bool>().prop_map(Do::Log),
    ];
    prop::collection::vec(op, 1..40)
}

/// What a machine is: its VM, where the slot begins, huge pages or not, and how
/// many pages belong to another memory cgroup.
#[derive(Clone, Debug)]
struct Plan {
    config: VmConfig,
    gfn: u64,
    thp: bool,
    theirs: u64,
    asking: Asking,
}

fn plan() -> impl Strategy<Value = Plan> {
    let kinds = prop::sample::select(vec![
        (MmuKind::Tdp, false),
        (MmuKind::Tdp, false),
        (MmuKind::Shadow, true),
        (MmuKind::Shadow, false),
        (MmuKind::Nested, false),
    ]);
    let gfn = prop_oneof![Just(0u64), Just(512), 0..700u64];
    let asking = prop::sample::select(vec![Asking::Accurate, Asking::FastOnly]);
    let config = prop::sample::select(configs());
    (config, kinds, gfn, any::<bool>(), 0..300u64, asking).prop_map(
        |(config, (mmu, direct), gfn, thp, theirs, asking)| Plan {
            config: VmConfig {
                mmu,
                slot_zap_all: gfn % 2 == 0,
                shadow: ShadowConfig {
                    direct,
                    ..ShadowConfig::default()
                },
                ..config
            },
            gfn,
            thp,
            theirs,
            asking,
        },
    )
}

struct Side {
    cpu: Cpu,
    memcg: Arc<Memcg>,
    mm: Arc<Mm>,
    vm: Arc<Vm>,
    at: u64,
    host: Arc<Host>,
}

fn side(plan: &Plan, batched: bool) -> Side {
    let host = Host::new(&HostConfig {
        nodes: vec![8 * PAGES],
        swap_pages: 0,
        virtual_clock: true,
    })
    .expect("a valid host");
    host.lru_gen.set_asking(plan.asking);
    host.lru_gen.set_batched(batched);
    assert_eq!(host.lru_gen.batched(), batched);
    let cpu = Cpu::new(&host);
    let memcg = host.create_memcg("/guest").expect("memcg");
    let mm = host.create_mm(memcg.id).expect("mm");
    // Shared memory that another cgroup has touched first, in the middle.
    let space = host.create_space(Kind::Shmem, PAGES);
    let other = host.create_memcg("/other").expect("memcg");
    let others = host.create_mm(other.id).expect("mm");
    let there = others
        .mmap(None, PAGES * PAGE_SIZE, &space, 0, VmFlags::default())
        .expect("mapped");
    for page in 0..plan.theirs {
        others
            .touch(&cpu, there + (400 + page) * PAGE_SIZE, true, None)
            .expect("touched");
    }
    let flags = VmFlags {
        thp: plan.thp,
        ..VmFlags::default()
    };
    let space = if plan.theirs == 0 {
        host.create_space(Kind::Anon, 0)
    } else {
        space
    };
    let at = mm
        .mmap(None, PAGES * PAGE_SIZE, &space, 0, flags)
        .expect("mapped");
    let vm = Vm::create(&cpu, &mm, plan.config.clone()).expect("a valid VM");
    let side = Side {
        cpu,
        memcg,
        mm,
        vm,
        at,
        host,
    };
    side.slot(0, 0, plan.gfn, PAGES, 0).expect("a slot");
    side
}

impl Side {
    fn slot(
        &self,
        id: u32,
        flags: u32,
        gfn: u64,
        pages: u64,
        first: u64,
    ) -> youngbit_core::Result<()> {
        self.vm.set_memory_region(
            &self.cpu,
            &MemoryRegion {
                as_id: 0,
                slot: id,
                flags,
                guest_phys_addr: gfn * PAGE_SIZE,
                memory_size: pages * PAGE_SIZE,
                userspace_addr: self.at + first * PAGE_SIZE,
            },
        )
    }

    /// Whatever can be compared: what the step said, and what it counted.
    fn step(&self, plan: &Plan, op: &Do) -> (String, Vec<u64>) {
        let byte = |page: u64| self.at + page * PAGE_SIZE;
        let within = |first: u64, pages: u64| pages.min(PAGES - first);
        let before = self.cpu.counters.snapshot();
        let said = match *op {
            Do::Guest {
                first,
                step,
                pages,
                write,
            } => {
                let errors = (0..pages)
                    .map(|n| (first + n * step) % PAGES + plan.gfn)
                    .filter(|&gfn| self.vm.access(&self.cpu, 0, gfn, write, None).is_err());
                format!("{:?}", errors.collect::<Vec<_>>())
            }
            Do::Host {
                first,
                step,
                pages,
                write,
            } => {
                let errors = (0..pages)
                    .map(|n| (first + n * step) % PAGES)
                    .filter(|&page| self.mm.touch(&self.cpu, byte(page), write, None).is_err());
                format!("{:?}", errors.collect::<Vec<_>>())
            }
            Do::Unmap { first, pages } => {
                let bytes = within(first, pages) * PAGE_SIZE;
                format!(
                    "{:?}",
                    self.mm.munmap(&self.cpu, byte(first), bytes).is_ok()
                )
            }
            Do::Discard { first, pages } => {
                let end = byte(first + within(first, pages));
                drop(self.mm.notifiers.invalidate(&self.cpu, byte(first), end));
                String::new()
            }
            Do::Alias {
                first,
                pages,
                place,
            } => {
                let slot = self.slot(1, 0, 4096 + place, within(first, pages), first);
                if slot.is_ok() {
                    for n in 0..within(first, pages).min(30) {
                        let _ = self.vm.access(&self.cpu, 0, 4096 + place + n, true, None);
                    }
                }
                format!("{:?}", slot.map_err(|e| e.errno()))
            }
            Do::Age { swap } => {
                let pass = age(&self.cpu, &self.memcg, 0, swap, true).expect("aged");
                format!("{} {}", pass.seq, pass.advanced)
            }
            Do::Log(on) => {
                let flags = u32::from(on);
                format!("{:?}", self.slot(0, flags, plan.gfn, PAGES, 0).is_ok())
            }
        };
        let counted = self.cpu.counters.snapshot().since(&before);
        let same = [
            Counter::MmLeafTotal,
            Counter::MmLeafOld,
            Counter::MmLeafYoung,
            Counter::MmNonleafAdded,
            Counter::FoliosPromoted,
            Counter::FoliosAged,
            Counter::SptesAged,
            Counter::SpteFetchAnd,
            Counter::SpteCas,
            Counter::SptePlainStores,
            Counter::NotifierYoung,
        ];
        (said, same.map(|counter| counted.get(counter)).into())
    }

    fn sptes(&self, plan: &Plan) -> Vec<(u64, u32, u64)> {
        let mut all = Vec::new();
        if let Some(tdp) = &self.vm.tdp {
            for start in [plan.gfn, 4096] {
                tdp.for_each_leaf(&self.cpu, 0, start, start + 4096, |gfn, level, spte| {
                    all.push((gfn, level, spte));
                });
            }
        }
        all
    }

    fn young(&self) -> Vec<bool> {
        (0..PAGES)
            .map(|page| {
                let at = self.at + page * PAGE_SIZE;
                self.mm.notifiers.test_young(&self.cpu, at, false)
            })
            .collect()
    }
}

fn run(plan: &Plan, program: &[Do]) -> TestCaseResult {
    let (single, batched) = (side(plan, false), side(plan, true));
    for (n, op) in program.iter().enumerate() {
        let results = [&single, &batched].map(|side| side.step(plan, op));
        prop_assert_eq!(&results[0], &results[1], "step {}: {:?}", n, op);
        if matches!(op, Do::Age { .. }) {
            let generations =
                [&single, &batched].map(|s| page_generations(&s.cpu, &s.mm, s.at, PAGES));
            prop_assert_eq!(&generations[0], &generations[1], "step {}", n);
            prop_assert_eq!(single.sptes(plan), batched.sptes(plan), "step {}", n);
            prop_assert_eq!(single.young(), batched.young(), "step {}", n);
            check::check(&batched.host).map_err(TestCaseError::fail)?;
        }
    }
    let calls = |side: &Side| {
        let counters = side.cpu.counters.snapshot();
        let pages = counters.get(Counter::NotifierClearYoungFast)
            + counters.get(Counter::NotifierClearYoungSlow);
        (pages, counters.get(Counter::NotifierClearYoungBatch))
    };
    prop_assert_eq!(calls(&single).1, 0);
    if calls(&single).0 > 0 && !plan.thp {
        let (pages, tables) = calls(&batched);
        prop_assert!(pages == 0 && tables > 0);
    }
    for side in [single, batched] {
        side.vm.destroy(&side.cpu).expect("destroyed once");
        let counters = side.cpu.counters.snapshot();
        prop_assert_eq!(counters.get(Counter::PoisonReads), 0);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: crate::budget::cases(100),
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn asking_once_a_table_finds_what_asking_page_by_page_finds(
        plan in plan(),
        program in program(),
    ) {
        run(&plan, &program)?;
    }
}

#[test]
fn a_batched_walk_calls_each_subscriber_once_a_table() {
    let m = Machine::v7(1024);
    m.host.lru_gen.set_batched(true);
    (0..1024).for_each(|gfn| m.write(gfn));
    let memcg = Arc::clone(&m.mm.memcg);
    let pass = age(&m.cpu, &memcg, 0, true, true).expect("aged");
    let tables = 1 + u64::from(!m.hva.is_multiple_of(512 * PAGE_SIZE)) + 1;
    assert_eq!(pass.counters.get(Counter::NotifierClearYoungBatch), tables);
    assert_eq!(pass.counters.get(Counter::NotifierClearYoungFast), 0);
    assert_eq!(pass.counters.get(Counter::MmLeafYoung), 1024);
    assert_eq!(pass.counters.get(Counter::SptesAged), 1024);
    let pass = age(&m.cpu, &memcg, 0, true, true).expect("aged");
    assert_eq!(pass.counters.get(Counter::MmLeafYoung), 0);
    m.finish();
}

#[test]
fn a_batched_walk_takes_mmu_lock_once_a_table_where_it_takes_it() {
    let m = Machine::new(
        512,
        VmConfig {
            protocol: Protocol::BASELINE,
            ..VmConfig::default()
        },
    );
    m.host.lru_gen.set_asking(Asking::Accurate);
    (0..512).for_each(|gfn| m.write(gfn));
    let memcg = Arc::clone(&m.mm.memcg);
    let locked = |batched| {
        m.host.lru_gen.set_batched(batched);
        (0..512).for_each(|gfn| m.write(gfn));
        let pass = age(&m.cpu, &memcg, 0, true, true).expect("aged");
        assert_eq!(pass.counters.get(Counter::SptesAged), 512);
        pass.counters.get(Counter::MmuLockWrite)
    };
    assert_eq!(locked(false), 512);
    assert!(locked(true) <= 2);
    m.finish();
}
