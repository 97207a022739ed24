//! Random programs of accesses, slot changes, zaps, invalidations, agings and
//! log harvests, in inline mode, against a plain map of pages.
//!
//! The oracle knows nothing of SPTEs, tables, locks or flags: only which guest
//! page is mapped, young and writable, and from which the guest's own tables, if
//! it has any, let instructions be fetched. Every MMU must agree with it.

use crate::machine::{Backing, MACHINES, Machine, On, TDP, configs};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use std::collections::{BTreeMap, BTreeSet};
use youngbit_core::Errno;
use youngbit_core::access::AccessKind;
use youngbit_core::kvm::guest::alias_address;
use youngbit_core::kvm::memslot::{LOG_DIRTY_PAGES, READONLY};
use youngbit_core::kvm::mmu::shadow::ShadowConfig;
use youngbit_core::kvm::mmu::spte::{LEVEL_2M, LEVEL_4K};
use youngbit_core::kvm::{MmuKind, VmConfig};
use youngbit_core::sync::atomic::Ordering;

/// Units of memory (pages, or huge pages) that a program plays with.
pub const UNITS: u64 = 24;
/// Where the slots that a program makes may begin.
pub const PLACES: u64 = 64;

/// One step of a program.
#[derive(Clone, Debug)]
pub enum Op {
    Access {
        unit: u64,
        offset: u64,
        kind: AccessKind,
    },
    /// The guest makes a page executable or not in its own tables.
    Executable {
        unit: u64,
        on: bool,
    },
    Age {
        first: u64,
        units: u64,
        flush: bool,
    },
    Test {
        unit: u64,
    },
    Invalidate {
        first: u64,
        units: u64,
    },
    HostTouch {
        unit: u64,
        write: bool,
    },
    Set {
        id: u32,
        place: u64,
        first: u64,
        units: u64,
        readonly: bool,
    },
    Delete {
        id: u32,
    },
    Log {
        id: u32,
        on: bool,
    },
    Harvest {
        id: u32,
    },
}

const KINDS: [AccessKind; 3] = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch];

/// Stores to a table that is shadowed, without a walk in between, after which
/// KVM takes it for a table no longer and zaps all of it.
const FLOOD: u32 = 3;

fn op() -> impl Strategy<Value = Op> {
    let unit = 0..UNITS;
    prop_oneof![
        8 => (0..PLACES, 0..512u64, prop::sample::select(&KINDS))
            .prop_map(|(unit, offset, kind)| Op::Access { unit, offset, kind }),
        // Pages that are mapped at first, few enough to meet again.
        4 => (0..4u64, 0..512u64, prop::sample::select(&KINDS))
            .prop_map(|(unit, offset, kind)| Op::Access { unit, offset, kind }),
        2 => (0..4u64, any::<bool>()).prop_map(|(unit, on)| Op::Executable { unit, on }),
        4 => (unit.clone(), 1..UNITS, any::<bool>())
            .prop_map(|(first, units, flush)| Op::Age { first, units, flush }),
        2 => unit.clone().prop_map(|unit| Op::Test { unit }),
        2 => (unit.clone(), 1..4u64).prop_map(|(first, units)| Op::Invalidate { first, units }),
        2 => (unit.clone(), any::<bool>()).prop_map(|(unit, write)| Op::HostTouch { unit, write }),
        2 => (1..4u32, 0..PLACES, unit, 1..12u64, any::<bool>()).prop_map(
            |(id, place, first, units, readonly)| Op::Set { id, place, first, units, readonly }
        ),
        1 => (0..4u32).prop_map(|id| Op::Delete { id }),
        1 => (0..4u32, any::<bool>()).prop_map(|(id, on)| Op::Log { id, on }),
        1 => (0..4u32).prop_map(|id| Op::Harvest { id }),
    ]
}

/// What the host's page tables show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Backed {
    Nothing,
    Zero,
    Page,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    young: bool,
    writable: bool,
}

#[derive(Clone, Debug)]
struct Slot {
    place: u64,
    first: u64,
    units: u64,
    readonly: bool,
    log: Option<BTreeSet<u64>>,
}

/// The plain model.
struct Oracle {
    host: Vec<Backed>,
    content: Vec<u8>,
    slots: BTreeMap<u32, Slot>,
    /// By guest unit.
    mapped: BTreeMap<u64, Mapping>,
    huge: bool,
    slot_zap_all: bool,
    /// The guest's own page tables have dirty bits, and a page that is clean in
    /// them is mapped read-only until its first write.
    guest_dirty: Option<BTreeSet<u64>>,
    /// Access to an aged page is a fault that builds its SPTE anew, as no A/D
    /// bits and no fast page fault leave to shadow pages of a guest's tables.
    refaults: bool,
    /// What the guest's own tables do not let be executed; `None` where it has
    /// none.
    not_executable: Option<BTreeSet<u64>>,
    /// Stores to the guest's leaf table since the last walk through it.
    flood: u32,
}

impl Oracle {
    fn slot_of(&self, guest: u64) -> Option<(u32, &Slot)> {
        self.slots
            .iter()
            .find(|(_, s)| (s.place..s.place + s.units).contains(&guest))
            .map(|(&id, s)| (id, s))
    }

    fn host_of(&self, guest: u64) -> Option<u64> {
        let (_, slot) = self.slot_of(guest)?;
        Some(slot.first + guest - slot.place)
    }

    /// Guest units that show host units of a range.
    fn showing(&self, first: u64, units: u64) -> Vec<u64> {
        self.slots
            .values()
            .flat_map(|s| (0..s.units).map(move |n| (s.first + n, s.place + n)))
            .filter(|(host, _)| (first..first + units).contains(host))
            .map(|(_, guest)| guest)
            .collect()
    }

    fn unmap_host(&mut self, first: u64, units: u64) {
        for guest in self.showing(first, units) {
            self.mapped.remove(&guest);
        }
    }

    /// The host's fault: what is behind a unit afterwards.
    fn host_fault(&mut self, unit: u64, write: bool) {
        let backed = self.host[unit as usize];
        self.host[unit as usize] = match backed {
            _ if self.huge => Backed::Page,
            Backed::Nothing if !write => Backed::Zero,
            Backed::Zero if !write => Backed::Zero,
            Backed::Zero => {
                self.unmap_host(unit, 1);
                Backed::Page
            }
            _ => Backed::Page,
        };
    }

    /// Whether the access is possible, and what it does.
    fn access(&mut self, guest: u64, kind: AccessKind, byte: u8) -> bool {
        let write = kind == AccessKind::Write;
        let data = self.not_executable.as_ref();
        if kind == AccessKind::Fetch && data.is_some_and(|data| data.contains(&guest)) {
            return false;
        }
        if write && let Some(dirty) = &mut self.guest_dirty {
            // Set by the guest's own page walk, whatever comes of the access.
            dirty.insert(guest);
        }
        let Some((id, slot)) = self.slot_of(guest) else {
            return false;
        };
        let readonly = slot.readonly;
        if readonly && write {
            return false;
        }
        let host = self.host_of(guest).expect("it has a slot");
        let now = self.mapped.get(&guest).copied();
        let faults = now.is_none_or(|m| (write && !m.writable) || (self.refaults && !m.young));
        let mut logged = write;
        if faults {
            self.flood = 0;
            self.host_fault(host, write);
            // A read of what the host can write is mapped writable too.
            let clean = self
                .guest_dirty
                .as_ref()
                .is_some_and(|d| !d.contains(&guest));
            let writable = !readonly && !clean && self.host[host as usize] == Backed::Page;
            logged |= writable;
            self.mapped.insert(
                guest,
                Mapping {
                    young: true,
                    writable,
                },
            );
        }
        self.mapped.get_mut(&guest).expect("mapped").young = true;
        if write {
            self.content[host as usize] = byte;
        }
        if logged && let Some(log) = &mut self.slots.get_mut(&id).expect("there").log {
            log.insert(guest);
        }
        true
    }

    /// A store to the guest's leaf table unmaps what was built from the entry.
    fn set_executable(&mut self, guest: u64, on: bool) {
        let Some(data) = &mut self.not_executable else {
            return;
        };
        if on {
            data.remove(&guest);
        } else {
            data.insert(guest);
        }
        self.flood += 1;
        if self.flood == FLOOD {
            self.flood = 0;
            self.mapped.clear();
        } else {
            self.mapped.remove(&guest);
        }
    }

    fn age(&mut self, first: u64, units: u64) -> bool {
        let mut young = false;
        for guest in self.showing(first, units) {
            if let Some(mapping) = self.mapped.get_mut(&guest) {
                young |= std::mem::take(&mut mapping.young);
            }
        }
        young
    }

    fn young(&self, first: u64, units: u64) -> bool {
        let guests = self.showing(first, units);
        guests
            .iter()
            .any(|g| self.mapped.get(g).is_some_and(|m| m.young))
    }

    fn drop_slot(&mut self, id: u32) {
        let slot = self.slots.remove(&id).expect("there");
        if self.slot_zap_all {
            self.flood = 0;
            self.mapped.clear();
        } else {
            self.mapped
                .retain(|guest, _| !(slot.place..slot.place + slot.units).contains(guest));
        }
    }
}

/// Run a program on a machine and on the plain model; they must agree.
pub fn run(program: &[Op], config: VmConfig, huge: bool) -> TestCaseResult {
    let unit = if huge { 512 } else { 1 };
    let slot_zap_all = config.slot_zap_all;
    let backing = if huge {
        Backing::Huge(9)
    } else {
        Backing::Small
    };
    let guest_dirty = match config.mmu {
        MmuKind::Shadow => !config.shadow.direct,
        MmuKind::Nested => config.format.name == "npt" || config.shadow.l1_ad,
        MmuKind::Tdp => false,
    };
    let refaults = match config.mmu {
        MmuKind::Shadow => !config.shadow.direct && !config.format.ad_bits,
        MmuKind::Nested => {
            !config.format.ad_bits || (config.format.name != "npt" && !config.shadow.l1_ad)
        }
        MmuKind::Tdp => false,
    };
    let m = Machine::backed(UNITS * unit, config, backing, 0);
    m.slot(0, 0, 0, 0, 0, m.hva);
    // The guest fills its page tables, if it has any, where it has no memory
    // yet: later stores to a table that is shadowed would zap what the oracle
    // knows to be mapped (`detect_write_flooding()`).
    for place in 0..PLACES {
        let absent = m.vm.access(&m.cpu, 0, place * unit, false, None);
        prop_assert_eq!(absent.map_err(|e| e.errno()), Err(Errno::EFAULT));
    }
    m.slot(0, 0, 0, 0, 8 * unit, m.hva);
    let shadow = m.vm.shadow.as_deref();
    let kernel = shadow.and_then(|shadow| shadow.kernel());
    let mut oracle = Oracle {
        host: vec![Backed::Nothing; UNITS as usize],
        content: vec![0; UNITS as usize],
        slots: [(
            0,
            Slot {
                place: 0,
                first: 0,
                units: 8,
                readonly: false,
                log: None,
            },
        )]
        .into(),
        mapped: BTreeMap::new(),
        huge,
        slot_zap_all,
        guest_dirty: guest_dirty.then(BTreeSet::new),
        refaults,
        not_executable: kernel.is_some().then(BTreeSet::new),
        flood: 0,
    };
    let range = |first: u64, units: u64| {
        let end = (first + units).min(UNITS);
        (
            first,
            end - first,
            m.hva_of(first * unit),
            m.hva_of(end * unit),
        )
    };
    for (step, op) in program.iter().enumerate() {
        let byte = step as u8 + 1;
        match *op {
            Op::Access {
                unit: guest,
                offset,
                kind,
            } => {
                let write = kind == AccessKind::Write;
                let gfn = guest * unit + offset % unit;
                let result = m.vm.access(&m.cpu, 0, gfn, kind, Some(byte));
                let possible = oracle.access(guest, kind, byte);
                prop_assert_eq!(
                    result.as_ref().map_err(|e| e.errno()).err(),
                    (!possible).then_some(Errno::EFAULT),
                    "step {}: {:?}",
                    step,
                    result
                );
                if let (true, true, Some(host)) = (possible, write, oracle.host_of(guest)) {
                    let page =
                        m.mm.gup_fast(&m.cpu, m.hva_of(host * unit + offset % unit), false);
                    let pfn = page.expect("the guest just used it").pfn;
                    let found = m.host.memory.content(pfn).load(Ordering::Relaxed);
                    prop_assert_eq!(found, oracle.content[host as usize]);
                }
            }
            Op::Executable { unit: guest, on } => {
                if let (Some(shadow), Some(kernel)) = (shadow, kernel) {
                    let (gva, cpu) = (
                        alias_address(guest * unit, 0),
                        shadow.guest_cpu(&m.vm, &m.cpu, 0),
                    );
                    let stored = kernel.set_executable(&cpu, gva, kernel.leaf_level, on);
                    prop_assert_eq!(stored.map_err(|e| e.errno()), Ok(true));
                }
                oracle.set_executable(guest, on);
            }
            Op::Age {
                first,
                units,
                flush,
            } => {
                let (first, units, start, end) = range(first, units);
                let n = &m.mm.notifiers;
                let young = if flush {
                    n.clear_flush_young(&m.cpu, start, end)
                } else {
                    n.clear_young(&m.cpu, start, end, false)
                };
                prop_assert_eq!(young, oracle.age(first, units), "step {}: {:?}", step, op);
            }
            Op::Test { unit: at } => {
                let young = m.is_young(at * unit);
                prop_assert_eq!(young, oracle.young(at, 1), "step {}: {:?}", step, op);
            }
            Op::Invalidate { first, units } => {
                let (first, units, start, end) = range(first, units);
                drop(m.mm.notifiers.invalidate(&m.cpu, start, end));
                oracle.unmap_host(first, units);
            }
            Op::HostTouch { unit: at, write } => {
                m.mm.touch(&m.cpu, m.hva_of(at * unit), write, None)
                    .expect("mapped");
                oracle.host_fault(at, write);
            }
            Op::Set {
                id,
                place,
                first,
                units,
                readonly,
            } => {
                let units = units.min(UNITS - first);
                let flags = if readonly { READONLY } else { 0 };
                let hva = m.hva_of(first * unit);
                let result = m.try_slot(0, id, flags, place * unit, units * unit, hva);
                let clash = oracle.slots.iter().any(|(&other, s)| {
                    other != id && s.place < place + units && place < s.place + s.units
                });
                let expected = match oracle.slots.get(&id) {
                    Some(s) if (s.first, s.units, s.readonly) != (first, units, readonly) => {
                        Some(Errno::EINVAL)
                    }
                    Some(s) if s.place == place => {
                        // Only the flags may differ: logging ends.
                        oracle.slots.get_mut(&id).expect("there").log = None;
                        None
                    }
                    _ if clash => Some(Errno::EEXIST),
                    moved => {
                        if moved.is_some() {
                            oracle.drop_slot(id);
                        }
                        let slot = Slot {
                            place,
                            first,
                            units,
                            readonly,
                            log: None,
                        };
                        oracle.slots.insert(id, slot);
                        None
                    }
                };
                prop_assert_eq!(
                    result.map_err(|e| e.errno()).err(),
                    expected,
                    "step {}",
                    step
                );
            }
            Op::Delete { id } => {
                let result = m.try_slot(0, id, 0, 0, 0, m.hva);
                let there = oracle.slots.contains_key(&id);
                if there {
                    oracle.drop_slot(id);
                }
                prop_assert_eq!(result.is_ok(), there);
            }
            Op::Log { id, on } => {
                // Huge pages are split and collapse: not the oracle's matter.
                let Some(slot) = oracle.slots.get_mut(&id).filter(|_| !huge) else {
                    continue;
                };
                let mut flags = if slot.readonly { READONLY } else { 0 };
                if on {
                    flags |= LOG_DIRTY_PAGES;
                }
                let (place, first, units) = (slot.place, slot.first, slot.units);
                m.slot(0, id, flags, place, units, m.hva_of(first));
                if !on {
                    slot.log = None;
                } else if slot.log.is_none() {
                    slot.log = Some(BTreeSet::new());
                }
            }
            Op::Harvest { id } => {
                let result = m.vm.get_dirty_log(&m.cpu, 0, id);
                let slot = oracle.slots.get_mut(&id);
                let place = slot.as_ref().map_or(0, |s| s.place);
                let log = slot.and_then(|s| s.log.as_mut()).map(std::mem::take);
                let found = result.ok().map(|words| {
                    (0..words.len() as u64 * 64)
                        .filter(|n| words[(n / 64) as usize] >> (n % 64) & 1 != 0)
                        .map(|n| place + n)
                        .collect::<BTreeSet<u64>>()
                });
                prop_assert_eq!(found, log, "step {}", step);
            }
        }
    }
    for at in 0..UNITS {
        prop_assert_eq!(
            m.is_young(at * unit),
            oracle.young(at, 1),
            "at the end: {}",
            at
        );
    }
    m.finish();
    Ok(())
}

fn program() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 1..60)
}

/// Every protocol, format and machine. Under huge host pages the guest's own
/// tables, where it has any, map huge pages too.
fn any_config(huge: bool) -> impl Strategy<Value = VmConfig> {
    let levels = prop_oneof![Just(4u32), Just(5)];
    let kinds = prop_oneof![
        2 => Just(TDP),
        1 => prop::sample::select(&MACHINES[1..]),
    ];
    (
        prop::sample::select(configs()),
        kinds,
        levels,
        any::<bool>(),
    )
        .prop_map(move |(config, kind, levels, slot_zap_all)| {
            let config = config.on(kind);
            VmConfig {
                levels,
                slot_zap_all,
                shadow: ShadowConfig {
                    guest_level: if huge { LEVEL_2M } else { LEVEL_4K },
                    ..config.shadow
                },
                ..config
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: crate::budget::cases(4500),
        max_shrink_iters: 4000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_machine_agrees_with_a_map_of_pages(
        program in program(),
        config in any_config(false),
    ) {
        run(&program, config, false)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::budget::cases(600)))]

    #[test]
    fn and_with_huge_pages(program in program(), config in any_config(true)) {
        run(&program, config, true)?;
    }
}
