//! What must hold when a round is over, and that nothing is left of it.

use super::RELAXED;
use super::crew::harvest;
use super::room::{HUGE, KEPT, Region, Room};
use crate::cpu::Cpu;
use crate::kvm::mmu::ShadowMmu;
use crate::kvm::mmu::spte;
use crate::mm::pagetable::{self, SPECIAL};
use crate::mm::{PAGE_SIZE, conserve};
use crate::trace::Counter;

type Outcome = Result<(), String>;

/// Everything. No other thread is in the room, and the machine is gone
/// afterwards.
pub fn all(room: &Room) -> Outcome {
    counters(room)?;
    // Each part with a `Cpu` of its own: the frames that one keeps ahead of
    // need are in nobody's account.
    {
        let cpu = room.cpu();
        if let Some(shadow) = &room.vm.shadow {
            let verified = shadow.verify(&room.vm, &cpu);
            verified.map_err(|error| error.to_string())?;
        }
        sptes_agree(room, &cpu)?;
    }
    consistent(room)?;
    {
        let cpu = room.cpu();
        copies(room, &cpu)?;
        for region in &room.regions {
            contents(room, &cpu, region)?;
        }
    }
    consistent(room)?;
    taken_apart(room, room.cpu())
}

/// Lists, frames and swap slots.
fn consistent(room: &Room) -> Outcome {
    crate::lru_gen::check::check(&room.host)?;
    conserve::check(&room.host)
}

/// Counters that say that something was found.
fn counters(room: &Room) -> Outcome {
    let totals = room.host.totals.snapshot();
    for (counter, what) in [
        (Counter::PoisonReads, "entries of freed tables were read"),
        (Counter::RmapCorrupt, "rmap chains were found corrupt"),
    ] {
        let n = totals.get(counter);
        if n != 0 {
            return Err(format!("{n} {what}"));
        }
    }
    Ok(())
}

/// What the guest stored last is what the page holds, wherever it has been.
fn contents(room: &Room, cpu: &Cpu, region: &Region) -> Outcome {
    let Some(ledger) = &region.ledger else {
        return Ok(());
    };
    for (n, last) in ledger.iter().enumerate() {
        let last = last.load(RELAXED);
        let found = room.byte(cpu, region, n as u64);
        let found = found.map_err(|error| format!("page {n} of {}: {error}", region.name))?;
        if found != last {
            return Err(format!(
                "page {n} of {} holds {found:#x}, and the last store to it was {last:#x}",
                region.name
            ));
        }
    }
    Ok(())
}

/// A copy that followed the dirty log to its end is the memory.
fn copies(room: &Room, cpu: &Cpu) -> Outcome {
    for (copy, region) in room.copies.iter().zip([KEPT, HUGE]) {
        let region = &room.regions[region];
        let mut copy = copy.lock();
        if !copy.follows {
            continue;
        }
        harvest(room, cpu, region, &mut copy.bytes, false)?;
        for (n, &copied) in copy.bytes.iter().enumerate() {
            let now = room.byte(cpu, region, n as u64);
            let now = now.map_err(|error| error.to_string())?;
            if now != copied {
                return Err(format!(
                    "page {n} of {} holds {now:#x} and its copy by the dirty log {copied:#x}",
                    region.name
                ));
            }
        }
    }
    Ok(())
}

/// Every leaf of the TDP MMU maps the frame that the process maps there, no
/// more writable than it does, and can be read and executed.
fn sptes_agree(room: &Room, cpu: &Cpu) -> Outcome {
    let Some(tdp) = &room.vm.tdp else {
        return Ok(());
    };
    let slots = room.vm.memslots.all(cpu);
    let mut wrong = None;
    for slot in &slots {
        let (first, end) = (slot.base_gfn, slot.end_gfn());
        tdp.for_each_leaf(cpu, 0, first, end, |gfn, level, value| {
            let gfn = gfn.max(first);
            if !room.vm.format().keeps_access(value, spte::ACC_ALL) {
                wrong.get_or_insert_with(|| {
                    format!(
                        "gfn {gfn:#x}: an SPTE of level {level} ({value:#x}) cannot be read or \
                         executed"
                    )
                });
            }
            let inside = gfn & (spte::pages_per(level) - 1);
            let mapped = u64::from(spte::pfn(value).0) + inside;
            let address = slot.gfn_to_hva(gfn);
            let (at, pte) = room.mm.lookup(address);
            let theirs = pte.is_leaf(at.level).then(|| {
                let size = pagetable::level_size(at.level);
                let offset = (address & (size - 1)) / PAGE_SIZE;
                (u64::from(pte.pfn().0) + offset, pte.has(pagetable::RW))
            });
            let agrees = theirs.is_some_and(|(pfn, writable)| {
                pfn == mapped && (writable || pte.has(SPECIAL) || !spte::is_writable(value))
            });
            if !agrees {
                wrong.get_or_insert_with(|| {
                    format!(
                        "gfn {gfn:#x}: an SPTE of level {level} ({value:#x}) maps frame \
                         {mapped:#x}, the process {theirs:x?}"
                    )
                });
            }
        });
    }
    wrong.map_or(Ok(()), Err)
}

/// End the machine and see that it gave everything back.
fn taken_apart(room: &Room, cpu: Cpu) -> Outcome {
    let host = &room.host;
    room.vm.destroy(&cpu).map_err(|error| error.to_string())?;
    host.exit_mm(&cpu, &room.mm);
    let removed = host.remove_space(&cpu, &room.file);
    removed.map_err(|error| error.to_string())?;
    cpu.check_error().map_err(|error| error.to_string())?;
    // Its cached frames go back.
    drop(cpu);
    host.rcu.barrier();
    host.srcu.barrier();
    counters(room)?;
    let left = |what: &str, n: u64| match n {
        0 => Ok(()),
        n => Err(format!("{n} {what} are left of the machine")),
    };
    if let Some(tdp) = &room.vm.tdp {
        left("page tables of the TDP MMU", u64::from(tdp.tables.live()))?;
    }
    if let Some(shadow) = &room.vm.shadow {
        left("shadow pages", u64::from(shadow.tables().live()))?;
        left("rmap descriptors", u64::from(shadow.descriptors().0))?;
        left("indirect shadow pages", shadow.indirect_shadow_pages())?;
    }
    left("charged pages", room.memcg.usage())?;
    left("swap slots", host.swap.nr_slots() - host.swap.nr_free())?;
    if room.mm.notifiers.has_notifiers() {
        return Err("a notifier is still subscribed".into());
    }
    for (name, domain) in [("rcu", &host.rcu), ("srcu", &host.srcu)] {
        let (deferred, run) = domain.deferred_and_run();
        if deferred != run {
            return Err(format!(
                "{deferred} callbacks were deferred in {name}, and {run} of them run"
            ));
        }
    }
    conserve::check(host)
}

#[cfg(all(test, not(loom)))]
mod tests {
    //! Every check can fail: each is shown a machine that was damaged behind
    //! its back in just the way that it is there for.

    use super::*;
    use crate::kvm::MmuKind;
    use crate::kvm::vm::Vm;
    use crate::mm::folio::{FolioWord, LRU};
    use crate::stress::Options;
    use crate::sync::atomic::AtomicU64;
    use std::sync::Arc;

    /// A machine whose guest has written to some pages of two regions, and
    /// whose first logs dirty pages and is followed by a copy.
    fn room(mmu: MmuKind) -> Room {
        let options = Options {
            mmu,
            ..Options::default()
        };
        let room = Room::new(&options).expect("a machine");
        let cpu = room.cpu();
        room.log_dirty(&cpu, &room.regions[KEPT], true)
            .expect("a log");
        room.copies[0].lock().follows = true;
        for region in [KEPT, HUGE].map(|n| &room.regions[n]) {
            for page in 0..64 {
                let place = region.places[0] + region.offset(page);
                let stored = room.vm.access(&cpu, 0, place, true, Some(7));
                stored.expect("memory is there");
                if let Some(ledger) = &region.ledger {
                    ledger[page as usize].store(7, RELAXED);
                }
            }
        }
        drop(cpu);
        room
    }

    /// The word of the page-table entry that maps a page in the process.
    fn pte(room: &Room, page: u64) -> &AtomicU64 {
        let (at, _) = room.mm.lookup(room.regions[KEPT].hva_of(page));
        room.mm.word(at)
    }

    fn frame(room: &Room, page: u64) -> crate::mm::Pfn {
        let (_, pte) = room.mm.lookup(room.regions[KEPT].hva_of(page));
        pte.pfn()
    }

    /// A present entry of the shadow MMU that is a leaf or a link.
    fn shadow_entry(vm: &Vm, leaf: bool) -> &AtomicU64 {
        let shadow = vm.shadow.as_ref().expect("it has one");
        (0..shadow.tables().live())
            .map(crate::table::TableId)
            .flat_map(|id| {
                let level = shadow.tables().meta(id).level();
                let entries = shadow.tables().entries(id).iter();
                entries.map(move |entry| (level, entry))
            })
            .find(|(level, entry)| {
                let value = entry.load(RELAXED);
                spte::is_present(value) && spte::is_last(value, *level) == leaf
            })
            .map(|(_, entry)| entry)
            .expect("something is mapped")
    }

    fn forbid_execution(room: &Room, word: &AtomicU64) {
        let format = room.vm.format();
        let value = word.load(RELAXED);
        word.store(value & !format.executable | format.not_executable, RELAXED);
    }

    #[test]
    fn what_is_whole_passes() {
        for mmu in [MmuKind::Tdp, MmuKind::Shadow, MmuKind::Nested] {
            all(&room(mmu)).expect("nothing is wrong");
        }
    }

    #[test]
    fn every_damage_is_found() {
        type Damage = fn(&Room);
        let damages: &[(MmuKind, &str, Damage)] = &[
            (MmuKind::Tdp, "entries of freed tables were read", |room| {
                room.cpu().count(Counter::PoisonReads);
            }),
            (MmuKind::Shadow, "chains were found corrupt", |room| {
                room.cpu().count(Counter::RmapCorrupt);
            }),
            (MmuKind::Tdp, "and the last store to it was", |room| {
                let byte = room.host.memory.content(frame(room, 3));
                byte.store(9, RELAXED);
                // The copy too: it is not what finds this.
                room.copies[0].lock().bytes[3] = 9;
            }),
            (MmuKind::Tdp, "its copy by the dirty log", |room| {
                let region = &room.regions[KEPT];
                let vm = &room.vm;
                let harvested = vm.get_dirty_log(&room.cpu(), 0, region.slot);
                harvested.expect("it logs");
            }),
            (MmuKind::Tdp, "the process", |room| {
                // Another frame, mapped as often.
                let (one, other) = (pte(room, 3), pte(room, 4));
                let first = one.load(RELAXED);
                one.store(other.swap(first, RELAXED), RELAXED);
            }),
            (MmuKind::Tdp, "the process", |room| {
                pte(room, 3).fetch_and(!pagetable::RW, RELAXED);
            }),
            (MmuKind::Tdp, "cannot be read or executed", |room| {
                let tdp = room.vm.tdp.as_ref().expect("it has one");
                let leaf = tdp.leaf(&room.cpu(), 0, room.regions[KEPT].places[0]);
                let value = leaf.expect("the guest wrote there").1;
                let word = (0..tdp.tables.live())
                    .flat_map(|id| tdp.tables.entries(crate::table::TableId(id)))
                    .find(|word| word.load(RELAXED) == value);
                forbid_execution(room, word.expect("in a table"));
            }),
            (MmuKind::Shadow, "tables allow", |room| {
                forbid_execution(room, shadow_entry(&room.vm, true));
            }),
            (MmuKind::Shadow, "shadow MMU: the rmap holds", |room| {
                shadow_entry(&room.vm, true).store(0, RELAXED);
            }),
            (MmuKind::Shadow, "has parents", |room| {
                shadow_entry(&room.vm, false).store(0, RELAXED);
            }),
            (MmuKind::Tdp, "node 0", |room| {
                room.host.memory.word(frame(room, 3)).clear(LRU);
            }),
            (MmuKind::Tdp, "are free and", |room| {
                room.memcg.uncharge(1);
            }),
            (MmuKind::Tdp, "mappings and has", |room| {
                room.host.memory.map(frame(room, 3));
            }),
            (MmuKind::Tdp, "names and has", |room| {
                let memory = &room.host.memory;
                let cpu = room.cpu();
                let folio = room.host.alloc_folio(&cpu, &room.memcg, 0, 0);
                let folio = folio.expect("room");
                let slot = room.host.swap.add_folio(memory, folio);
                room.host.swap.duplicate(slot.expect("a slot"));
            }),
            (MmuKind::Tdp, "page tables of the TDP MMU", |room| {
                let tdp = room.vm.tdp.as_ref().expect("it has one");
                tdp.tables.alloc().expect("room");
            }),
            (MmuKind::Nested, "shadow pages are left", |room| {
                let shadow = room.vm.shadow.as_ref().expect("it has one");
                shadow.tables().alloc().expect("room");
            }),
            (MmuKind::Tdp, "charged pages are left", |room| {
                let cpu = room.cpu();
                let folio = room.host.alloc_folio(&cpu, &room.memcg, 0, 0);
                folio.expect("room");
            }),
        ];
        for (mmu, said, damage) in damages {
            let room = room(*mmu);
            damage(&room);
            let found = all(&room).expect_err(said);
            assert!(found.contains(said), "expected {said:?}, found {found:?}");
        }
    }

    #[test]
    fn what_is_never_freed_is_named() {
        let room = room(MmuKind::Nested);
        let kept = Arc::clone(&room.vm);
        all(&room).expect("nothing else is wrong");
        let owned = room.owned();
        drop(room);
        let left: Vec<_> = owned.iter().filter_map(|alive| alive()).collect();
        // The VM owns its process, which owns its memory cgroup.
        let expected = [
            "the process",
            "the VM",
            "the memory cgroup",
            "the tables of the TDP MMU",
            "the tables of the shadow MMU",
        ];
        assert_eq!(left, expected);
        drop(kept);
        assert!(owned.iter().all(|alive| alive().is_none()));
    }
}
