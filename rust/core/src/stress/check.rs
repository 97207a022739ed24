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

/// Every leaf of the TDP MMU maps the frame that the process maps there, and
/// no more writable than it does.
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
