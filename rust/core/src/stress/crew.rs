//! The threads of a round. Each repeats one kind of work, drawn from dice of
//! its own, until the vCPUs are done.

use super::execution;
use super::room::{Deed, Dice, HUGE, KEPT, MOVING, Region, Room, UNMAPPED};
use super::{Options, RELAXED};
use crate::access::{Access, AccessKind};
use crate::cpu::Cpu;
use crate::error::{Errno, Error};
use crate::kvm::guest::{GuestCpu, GuestKernel, alias_address};
use crate::kvm::memslot::READONLY;
use crate::kvm::mmu::ShadowMmu;
use crate::kvm::mmu::shadow::ALL_ALIASES;
use crate::lru_gen;
use crate::lru_gen::reclaim::proactive_reclaim;
use crate::mm::{MmuNotifier, PAGE_SIZE, VmFlags, filemap, page_idle};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::thread;
use crate::table::TABLE_ENTRIES;
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;

/// What a guest store never leaves, and an invalidation does.
const MARK: u8 = 0xee;
/// Most accesses of a vCPU between two entries into the guest.
const BATCH: usize = 128;

type Outcome = Result<(), String>;

/// One of the threads.
pub enum Member {
    Vcpu { id: u32, accesses: u64 },
    Ager { id: u32 },
    Mover,
    Zapper,
    Logger,
    Reclaimer,
    GuestKernel,
    Subscriber,
}

/// Everyone that a round needs; the room expects them.
pub fn hire(options: &Options, room: &Room) -> Vec<Member> {
    let mut crew: Vec<Member> = (0..options.vcpus)
        .map(|id| Member::Vcpu {
            id,
            accesses: options.accesses,
        })
        .collect();
    crew.extend((0..options.agers).map(|id| Member::Ager { id }));
    crew.extend([
        Member::Mover,
        Member::Zapper,
        Member::Logger,
        Member::Reclaimer,
        Member::Subscriber,
    ]);
    let shadow = room.vm.shadow.as_ref();
    if shadow.is_some_and(|shadow| shadow.kernel().is_some()) {
        crew.push(Member::GuestKernel);
    }
    room.enter(crew.len());
    crew
}

impl Member {
    pub fn name(&self) -> String {
        match self {
            Member::Vcpu { id, .. } => format!("vCPU {id}"),
            Member::Ager { id } => format!("ager {id}"),
            Member::Mover => "the thread that moves slots".into(),
            Member::Zapper => "the thread that unmaps".into(),
            Member::Logger => "the thread that logs dirty pages".into(),
            Member::Reclaimer => "the thread that reclaims".into(),
            Member::GuestKernel => "the guest's kernel".into(),
            Member::Subscriber => "the thread that subscribes".into(),
        }
    }

    /// A number for its dice.
    fn number(&self) -> u64 {
        match *self {
            Member::Vcpu { id, .. } => u64::from(id),
            Member::Ager { id } => 1000 + u64::from(id),
            Member::Mover => 2000,
            Member::Zapper => 2001,
            Member::Logger => 2002,
            Member::Reclaimer => 2003,
            Member::GuestKernel => 2004,
            Member::Subscriber => 2005,
        }
    }

    /// Work until the round is over.
    ///
    /// # Errors
    /// What must not happen, in a sentence.
    pub fn work(self, room: &Room) -> Outcome {
        let cpu = room.cpu();
        let mut dice = room.dice(self.number());
        match self {
            Member::Vcpu { id, accesses } => {
                let outcome = vcpu(room, &cpu, &mut dice, id, accesses);
                // The others work as long as all vCPUs do.
                room.stop();
                outcome
            }
            Member::Ager { .. } => {
                until_stopped(room, &cpu, &mut dice, 200, |dice| age(room, &cpu, dice))
            }
            Member::Mover => {
                let mut place = Some(0);
                until_stopped(room, &cpu, &mut dice, 2000, |dice| {
                    move_slot(room, &cpu, dice, &mut place)
                })
            }
            Member::Zapper => {
                until_stopped(room, &cpu, &mut dice, 1000, |dice| zap(room, &cpu, dice))
            }
            Member::Logger => {
                until_stopped(room, &cpu, &mut dice, 1000, |dice| log(room, &cpu, dice))
            }
            Member::Reclaimer => until_stopped(room, &cpu, &mut dice, 4000, |dice| {
                reclaim(room, &cpu, dice)
            }),
            Member::GuestKernel => {
                let mut data = Vec::new();
                until_stopped(room, &cpu, &mut dice, 400, |dice| {
                    guest_kernel(room, &cpu, dice, &mut data)
                })
            }
            Member::Subscriber => until_stopped(room, &cpu, &mut dice, 500, |dice| {
                subscribe(room, &cpu, dice)
            }),
        }
    }
}

/// Repeat, with pauses of up to `pause` microseconds: vCPUs are to run between
/// what is done to them.
fn until_stopped(
    room: &Room,
    cpu: &Cpu,
    dice: &mut Dice,
    pause: u64,
    mut work: impl FnMut(&mut Dice) -> Outcome,
) -> Outcome {
    while !room.is_stopped() {
        work(dice)?;
        cpu.check_error().map_err(sentence)?;
        if dice.random_bool(0.25) {
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_micros(dice.random_range(0..pause)));
        }
    }
    Ok(())
}

fn sentence(error: Error) -> String {
    error.to_string()
}

/// A range of a region's slot, in bytes of the process.
fn range(region: &Region, dice: &mut Dice) -> (u64, u64) {
    let pages = region.slot_pages();
    let first = dice.random_range(0..pages);
    let most = (pages - first).min(1 << dice.random_range(0..=10));
    let count = dice.random_range(1..=most);
    let start = region.hva + first * PAGE_SIZE;
    (start, start + count * PAGE_SIZE)
}

// ---- vCPUs ----

fn vcpu(room: &Room, cpu: &Cpu, dice: &mut Dice, id: u32, accesses: u64) -> Outcome {
    let vm = &room.vm;
    let vcpus = u64::from(vm.config.vcpus);
    let aliases = vm.config.shadow.aliases;
    let nested = vm.tdp.is_some() && vm.shadow.is_some();
    let mut batch: Vec<Access> = Vec::with_capacity(BATCH);
    // Page of the region, beside each access.
    let mut pages = Vec::with_capacity(BATCH);
    // What fetches must find, read before they are made.
    let mut stamps = [0; BATCH];
    // Whether the guest's own tables are in the way.
    let mut translated = vm.shadow.as_ref().is_some_and(|s| s.kernel().is_some()) && !nested;
    let mut made = 0;
    while made < accesses && !room.is_stopped() {
        if nested && dice.random_ratio(1, 32) {
            let l2 = dice.random_bool(0.6);
            vm.set_guest_mode(cpu, id, l2).map_err(sentence)?;
            translated = l2;
            room.did(Deed::GuestMode);
        }
        if aliases > 1 && dice.random_ratio(1, 8) {
            let alias = match dice.random_range(0..=aliases) {
                alias if alias == aliases => ALL_ALIASES,
                alias => alias,
            };
            vm.vcpus[id as usize].shadow.set_alias(alias);
        }
        let number =
            [KEPT, KEPT, KEPT, KEPT, HUGE, HUGE, MOVING, UNMAPPED][dice.random_range(0..8)];
        let region = &room.regions[number];
        let place = region.places[dice.random_range(0..2)];
        // The guest forbids nothing where the moving slot is for a time.
        let watched = translated && place == region.places[0];
        let stamp = |page: u64| {
            let stamp = room.permits.stamp(number, region.offset(page));
            stamp.filter(|_| watched).map_or(0, execution::read)
        };
        // Never the mark.
        let byte = dice.random_range(1..0x80);
        let hot = dice.random_bool(0.7);
        batch.clear();
        pages.clear();
        for _ in 0..dice.random_range(1..=BATCH) {
            let span = if hot { region.pages / 8 } else { region.pages };
            let mut page = dice.random_range(0..span);
            let kind =
                [AccessKind::Read, AccessKind::Write, AccessKind::Fetch][dice.random_range(0..3)];
            if kind.is_write() {
                // Each page has one vCPU that writes to it.
                page = page / vcpus * vcpus + u64::from(id);
                if page >= region.pages {
                    continue;
                }
            }
            batch.push(Access::new(place + region.offset(page), kind));
            pages.push(page);
        }
        let mut at = 0;
        let is_fetch = |access: &Access| access.kind() == AccessKind::Fetch;
        while at < batch.len() {
            for n in (at..batch.len()).filter(|&n| is_fetch(&batch[n])) {
                stamps[n] = stamp(pages[n]);
            }
            let (done, result) = vm.access_batch(cpu, id, &batch[at..], Some(byte));
            let done = done as usize;
            if let Some(ledger) = &region.ledger {
                for n in at..at + done {
                    if batch[n].is_write() {
                        ledger[pages[n] as usize].store(byte, RELAXED);
                    }
                }
            }
            let mut fetches = 0;
            for n in (at..at + done).filter(|&n| is_fetch(&batch[n])) {
                fetches += 1;
                if !execution::may_succeed((stamps[n], stamp(pages[n]))) {
                    return Err(format!(
                        "page {} of {} was executed, which the guest's own tables forbid",
                        pages[n], region.name
                    ));
                }
            }
            room.did_n(Deed::Fetch, fetches);
            room.made(id, done as u64);
            made += done as u64;
            at += done;
            match result {
                Ok(()) => break,
                // The access that failed changed nothing.
                Err(error) if error.errno() == Errno::EFAULT && region.may_fault => at += 1,
                // Nor did a fetch from what is data just now.
                Err(error)
                    if error.errno() == Errno::EFAULT
                        && is_fetch(&batch[at])
                        && execution::may_fail((stamps[at], stamp(pages[at]))) =>
                {
                    room.did(Deed::FetchRefused);
                    at += 1;
                }
                Err(error) => {
                    return Err(format!("page {} of {}: {error}", pages[at], region.name));
                }
            }
        }
    }
    Ok(())
}

// ---- aging ----

fn age(room: &Room, cpu: &Cpu, dice: &mut Dice) -> Outcome {
    let region = &room.regions[dice.random_range(0..4)];
    let (start, end) = range(region, dice);
    let notifiers = &room.mm.notifiers;
    match dice.random_range(0..8) {
        0 => {
            lru_gen::age(cpu, &room.memcg, 0, true, true).map_err(sentence)?;
            room.did(Deed::AgingPass);
        }
        1 => {
            page_idle::mark_range(cpu, &room.mm, start, end).map_err(sentence)?;
            page_idle::test_range(cpu, &room.mm, start, end).map_err(sentence)?;
            room.did(Deed::PageIdle);
        }
        2 => {
            notifiers.clear_flush_young(cpu, start, end);
            room.did(Deed::ClearFlushYoung);
        }
        n => {
            let fast_only = dice.random_bool(0.6);
            let outer = cpu.rcu.lock();
            let held = room.rcu.take(&outer);
            if n == 3 {
                notifiers.test_young(cpu, start, fast_only);
                room.did(Deed::TestYoung);
            } else {
                notifiers.clear_young(cpu, start, end, fast_only);
                room.did(Deed::ClearYoung);
            }
            if dice.random_ratio(1, 64) {
                // Longer than any other section.
                thread::sleep(Duration::from_millis(1));
            }
            room.rcu.check(held, &outer)?;
        }
    }
    if let Some(shadow) = &room.vm.shadow {
        // Walks a chain with its lock held, as aging does.
        shadow.chain_lengths(&room.vm, cpu, 0, region.places[0]);
        shadow.indirect_shadow_pages();
    }
    Ok(())
}

// ---- memslots ----

fn move_slot(room: &Room, cpu: &Cpu, dice: &mut Dice, place: &mut Option<usize>) -> Outcome {
    let region = &room.regions[MOVING];
    let wanted = [None, Some(0), Some(1)][dice.random_range(0..3)];
    // Only a new slot may become read-only or writable again.
    let flags = if place.is_none() && dice.random_bool(0.2) {
        READONLY
    } else {
        0
    };
    let deed = match (*place, wanted) {
        (None, None) => return Ok(()),
        (Some(_), None) => Deed::SlotDeleted,
        (None, Some(_)) => Deed::SlotCreated,
        (Some(_), Some(_)) => Deed::SlotMoved,
    };
    match room.set_slot(cpu, region, wanted, flags) {
        Ok(()) => {
            *place = wanted;
            room.did(deed);
            Ok(())
        }
        // A read-only slot cannot move and become writable: it goes first.
        Err(error) if error.errno() == Errno::EINVAL && place.is_some() => {
            room.set_slot(cpu, region, None, 0).map_err(sentence)?;
            *place = None;
            room.did(Deed::SlotDeleted);
            Ok(())
        }
        Err(error) => Err(sentence(error)),
    }
}

// ---- unmapping ----

fn zap(room: &Room, cpu: &Cpu, dice: &mut Dice) -> Outcome {
    match dice.random_range(0..8) {
        0 => {
            let region = &room.regions[UNMAPPED];
            let first = dice.random_range(0..region.pages);
            let pages = dice.random_range(1..=region.pages - first);
            let start = region.hva + first * PAGE_SIZE;
            let len = pages * PAGE_SIZE;
            room.mm.munmap(cpu, start, len).map_err(sentence)?;
            room.did(Deed::Munmap);
            if dice.random_bool(0.3) {
                thread::sleep(Duration::from_micros(dice.random_range(0..300)));
            }
            let flags = VmFlags {
                locked: true,
                ..VmFlags::default()
            };
            room.mm
                .mmap(Some(start), len, &room.space, first, flags)
                .map_err(sentence)?;
            Ok(())
        }
        1..=3 => watch(room, cpu, dice),
        _ => {
            let region = &room.regions[dice.random_range(0..4)];
            let (start, end) = range(region, dice);
            drop(room.mm.notifiers.invalidate(cpu, start, end));
            room.did(Deed::Invalidation);
            Ok(())
        }
    }
}

/// Between the start of an invalidation and its end the guest does not touch
/// the page. The page stays where it is: it is not swapped out, and only this
/// thread unmaps it.
fn watch(room: &Room, cpu: &Cpu, dice: &mut Dice) -> Outcome {
    let region = &room.regions[UNMAPPED];
    let page = dice.random_range(0..region.pages / 8);
    let (start, end) = (region.hva_of(page), region.hva_of(page) + PAGE_SIZE);
    let told = room.mm.notifiers.invalidate(cpu, start, end);
    if let Some(found) = room.mm.gup_fast(cpu, start, true) {
        let byte = room.host.memory.content(found.pfn);
        // SeqCst, both: this store and the guest's are in one order.
        byte.store(MARK, Ordering::SeqCst);
        for _ in 0..dice.random_range(1..8) {
            thread::yield_now();
            let now = byte.load(Ordering::SeqCst);
            if now != MARK {
                return Err(format!(
                    "page {page} of {} was written ({now:#x}) between the start and the end of an \
                     invalidation",
                    region.name
                ));
            }
        }
        room.did(Deed::Watched);
    }
    drop(told);
    Ok(())
}

// ---- dirty logging ----

fn log(room: &Room, cpu: &Cpu, dice: &mut Dice) -> Outcome {
    let which = dice.random_range(0..2);
    let region = &room.regions[[KEPT, HUGE][which]];
    let mut copy = room.copies[which].lock();
    match (copy.follows, dice.random_range(0..8)) {
        (false, 0..3) => {
            room.log_dirty(cpu, region, true).map_err(sentence)?;
            copy.follows = true;
            room.did(Deed::LoggingOn);
            for n in 0..region.pages {
                copy.bytes[n as usize] = room.byte(cpu, region, n).map_err(sentence)?;
            }
            Ok(())
        }
        (false, _) => Ok(()),
        (true, 0) => {
            room.log_dirty(cpu, region, false).map_err(sentence)?;
            copy.follows = false;
            room.did(Deed::LoggingOff);
            Ok(())
        }
        (true, n) => harvest(room, cpu, region, &mut copy.bytes, n % 2 == 0),
    }
}

/// Copy what the log names.
pub fn harvest(
    room: &Room,
    cpu: &Cpu,
    region: &Region,
    copy: &mut [u8],
    by_clearing: bool,
) -> Outcome {
    let vm = &room.vm;
    let words = if by_clearing {
        let seen = vm.peek_dirty_log(cpu, 0, region.slot).map_err(sentence)?;
        vm.clear_dirty_log(cpu, 0, region.slot, 0, &seen)
            .map_err(sentence)?;
        seen
    } else {
        vm.get_dirty_log(cpu, 0, region.slot).map_err(sentence)?
    };
    for n in 0..region.pages {
        let bit = region.offset(n);
        if words[(bit / 64) as usize] >> (bit % 64) & 1 != 0 {
            copy[n as usize] = room.byte(cpu, region, n).map_err(sentence)?;
        }
    }
    room.did(Deed::Harvest);
    Ok(())
}

// ---- reclaim ----

fn reclaim(room: &Room, cpu: &Cpu, dice: &mut Dice) -> Outcome {
    if dice.random_bool(0.5) {
        // Then its pages are clean, and reclaim drops them without a look.
        filemap::writeback(cpu, &room.file, dice.random_range(1..128));
        room.did(Deed::Writeback);
    }
    let pages = dice.random_range(8..128);
    match proactive_reclaim(cpu, &room.memcg, pages, Some(200)) {
        Ok(_) => {
            room.did(Deed::Reclaim);
            Ok(())
        }
        // Everything is in use just now.
        Err(error) if error.errno() == Errno::EAGAIN => Ok(()),
        Err(error) => Err(sentence(error)),
    }
}

// ---- the guest's own page tables ----

/// A leaf of the guest's tables that may not be executed: its region, and its
/// first page there.
type Data = (usize, u64);

/// Most of them at a time.
const MOST_DATA: usize = 64;

fn guest_kernel(room: &Room, cpu: &Cpu, dice: &mut Dice, data: &mut Vec<Data>) -> Outcome {
    let Some(shadow) = &room.vm.shadow else {
        return Ok(());
    };
    let Some(kernel) = shadow.kernel() else {
        return Ok(());
    };
    let guest = shadow.guest_cpu(&room.vm, cpu, 0);
    let number = dice.random_range(0..UNMAPPED);
    let region = &room.regions[number];
    let offset = region.offset(dice.random_range(0..region.pages));
    let page = region.places[0] + offset;
    let address = alias_address(page, dice.random_range(0..room.vm.config.shadow.aliases));
    let level = kernel.leaf_level;
    let leaf = room.permits.leaf_pages();
    // What is put in place of an entry may be executed.
    let mut allow_within = |pages: u64| {
        let near = |&(n, first): &Data| n == number && first / pages == offset / pages;
        while let Some(at) = data.iter().position(near) {
            set_executable(room, kernel, &guest, data.swap_remove(at), true)?;
        }
        Ok::<(), String>(())
    };
    match dice.random_range(0..32) {
        n if n >= 24 => {
            let wanted = (number, offset / leaf * leaf);
            if !data.contains(&wanted) && data.len() < MOST_DATA {
                data.push(wanted);
                set_executable(room, kernel, &guest, wanted, false)?;
            }
        }
        n if n >= 16 => {
            if !data.is_empty() {
                let wanted = data.swap_remove(dice.random_range(0..data.len()));
                set_executable(room, kernel, &guest, wanted, true)?;
            }
        }
        0 if level == 1 => {
            allow_within(TABLE_ENTRIES as u64)?;
            kernel.drop_table(&guest, address).map_err(sentence)?;
            room.did(Deed::GuestTable);
        }
        n if n < 10 => {
            allow_within(leaf)?;
            kernel.unmap(&guest, address, level).map_err(sentence)?;
            room.did(Deed::GuestUnmap);
        }
        _ => {
            allow_within(leaf)?;
            let first = page & !(leaf - 1);
            // Fails when another leaf of another level was just put there.
            if kernel.map(&guest, address, first, level, true).is_ok() {
                room.did(Deed::GuestMap);
            }
        }
    }
    Ok(())
}

/// Let a leaf be executed, or not, by every alias.
fn set_executable(
    room: &Room,
    kernel: &GuestKernel,
    guest: &impl GuestCpu,
    (number, offset): Data,
    on: bool,
) -> Outcome {
    let Some(stamp) = room.permits.stamp(number, offset) else {
        return Ok(());
    };
    let first = room.regions[number].places[0] + offset;
    let level = kernel.leaf_level;
    execution::advance(stamp);
    for alias in 0..room.vm.config.shadow.aliases {
        let address = alias_address(first, alias);
        let set = || kernel.set_executable(guest, address, level, on);
        if !set().map_err(sentence)? && !on {
            kernel
                .map(guest, address, first, level, true)
                .and_then(|()| set())
                .map_err(sentence)?;
        }
    }
    execution::advance(stamp);
    room.did(if on {
        Deed::GuestAllow
    } else {
        Deed::GuestForbid
    });
    Ok(())
}

// ---- subscriptions and grace periods ----

/// A secondary MMU that only knows whether it may still be called.
#[derive(Default)]
struct Bystander {
    gone: AtomicBool,
    late: AtomicU64,
}

impl Bystander {
    fn called(&self) {
        // Acquire: pairs with the release in `subscribe`.
        if self.gone.load(Ordering::Acquire) {
            self.late.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl MmuNotifier for Bystander {
    fn clear_flush_young(&self, _: &Cpu, _: u64, _: u64) -> bool {
        self.called();
        false
    }
    fn clear_young(&self, _: &Cpu, _: u64, _: u64, _: bool) -> bool {
        self.called();
        // Long enough for an unregistration that does not wait to return.
        for _ in 0..64 {
            std::hint::black_box(&self.late);
        }
        self.called();
        false
    }
    fn test_young(&self, _: &Cpu, _: u64, _: bool) -> bool {
        self.called();
        false
    }
    fn invalidate_range_start(&self, _: &Cpu, _: u64, _: u64) {
        self.called();
    }
    fn invalidate_range_end(&self, _: &Cpu, _: u64, _: u64) {
        self.called();
    }
    fn release(&self, _: &Cpu) {}
}

fn subscribe(room: &Room, cpu: &Cpu, dice: &mut Dice) -> Outcome {
    for _ in 0..dice.random_range(1..8) {
        if room.rcu.replace(&cpu.rcu) && room.srcu.replace(&cpu.srcu) {
            room.did(Deed::GracePeriod);
        }
    }
    {
        let section = cpu.srcu.lock();
        let held = room.srcu.take(&section);
        thread::yield_now();
        room.srcu.check(held, &section)?;
    }
    let bystander = Arc::new(Bystander::default());
    let mm = &room.mm;
    let subscription = mm.register_notifier(cpu, Arc::clone(&bystander) as Arc<dyn MmuNotifier>);
    subscription.set_fast_aging(&mm.notifiers, dice.random_bool(0.5));
    thread::sleep(Duration::from_micros(dice.random_range(0..500)));
    mm.unregister_notifier(cpu, &subscription)
        .map_err(sentence)?;
    // Release: pairs with the acquire in `called`.
    bystander.gone.store(true, Ordering::Release);
    room.did(Deed::Subscription);
    thread::yield_now();
    match bystander.late.load(Ordering::Relaxed) {
        0 => Ok(()),
        n => Err(format!("{n} callbacks after unregistering had returned")),
    }
}
