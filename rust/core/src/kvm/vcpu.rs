//! vCPUs: guest mode, guest accesses, and runs of them.
//!
//! In guest mode a vCPU uses translations and page tables without any lock or
//! RCU section, as hardware does. What keeps it off those that are gone is the
//! flush: whoever unlinked something raises the VM's flush generation and then
//! waits until each vCPU has acknowledged it or is outside the guest
//! ([`Vm::flush_remote_tlbs`]). A vCPU looks at the generation before each
//! access, and acknowledges after it has forgotten its translations.
//!
//! | vCPU, entering | flusher |
//! |---|---|
//! | mode := in guest | generation += 1 |
//! | full fence | full fence |
//! | reads the generation | reads the mode |
//!
//! At least one sees the other: the vCPU flushes before its first access, or
//! the flusher waits for it.

use super::mmu::shadow::ShadowVcpu;
use super::mmu::{GuestMmu, Walk};
use super::tlb::{Tlb, TlbConfig};
use super::vm::Vm;
use crate::access::{Access, AccessKind, Stream};
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::host::{Clock, Host};
use crate::sync::CachePadded;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use crate::sync::lock::{Condvar, Mutex, MutexGuard};
use crate::sync::spin::Backoff;
use crate::sync::thread;
#[cfg(not(loom))]
use crate::sync::thread::Affinity;
use crate::table::TableId;
use crate::trace::{Counter, CounterValues};
use std::time::{Duration, Instant};

const OUTSIDE_GUEST_MODE: u32 = 0;
const IN_GUEST_MODE: u32 = 1;
const NO_ROOT: u32 = u32::MAX;

/// How long a caller who waits for vCPUs goes without looking at its stop flag.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Virtual time that a guest access takes.
pub const ACCESS_NS: u64 = 100;

/// What others read of a vCPU while it runs.
struct Shared {
    mode: AtomicU32,
    /// The last flush generation that it has acted on.
    acknowledged: AtomicU64,
}

/// A virtual CPU (`struct kvm_vcpu`).
pub struct Vcpu {
    /// Its number.
    pub id: u32,
    /// The address space it runs in.
    pub as_id: usize,
    shared: CachePadded<Shared>,
    root: AtomicU32,
    /// What the shadow MMU keeps with it.
    pub shadow: ShadowVcpu,
    /// Held by whoever runs the vCPU (`vcpu->mutex`).
    running: Mutex<Tlb>,
}

impl Vcpu {
    pub(crate) fn new(id: u32, as_id: usize, tlb: TlbConfig) -> Self {
        Vcpu {
            id,
            as_id,
            shared: CachePadded::new(Shared {
                mode: AtomicU32::new(OUTSIDE_GUEST_MODE),
                acknowledged: AtomicU64::new(0),
            }),
            root: AtomicU32::new(NO_ROOT),
            shadow: ShadowVcpu::default(),
            running: Mutex::new(Tlb::new(tlb)),
        }
    }

    /// The root it runs on (`mmu->root`).
    #[inline]
    pub fn root(&self) -> Option<TableId> {
        // Relaxed: only whoever runs the vCPU reads or writes it.
        match self.root.load(Ordering::Relaxed) {
            NO_ROOT => None,
            root => Some(TableId(root)),
        }
    }

    pub(crate) fn set_root(&self, root: Option<TableId>) {
        let root = root.map_or(NO_ROOT, |root| root.0);
        self.root.store(root, Ordering::Relaxed);
    }

    /// Whether it is in guest mode now.
    pub fn is_in_guest(&self) -> bool {
        self.shared.mode.load(Ordering::Relaxed) == IN_GUEST_MODE
    }

    /// Entries in its TLB. Waits for a run to end.
    pub fn tlb_len(&self) -> usize {
        self.running.lock().len()
    }
}

/// A vCPU in guest mode; dropping it leaves the guest.
struct InGuest<'a> {
    vcpu: &'a Vcpu,
    generation: u64,
}

impl Drop for InGuest<'_> {
    fn drop(&mut self) {
        // Release: what it did in the guest happens before what a flusher does
        // who sees it outside.
        self.vcpu
            .shared
            .mode
            .store(OUTSIDE_GUEST_MODE, Ordering::Release);
    }
}

/// How vCPUs are run.
#[derive(Clone, Copy)]
pub struct RunOptions<'a> {
    /// Accesses a vCPU makes before the next has its turn (inline), or before
    /// it looks at `stop` (live).
    pub quantum: usize,
    /// Set by another thread to end the run early.
    pub stop: Option<&'a AtomicBool>,
    /// A byte to leave in every page that is written.
    pub store: Option<u8>,
    /// Threads of a live run batch new folios ([`Cpu::set_lru_batching`]).
    /// Otherwise whoever looks at the lists meanwhile finds every folio there.
    pub lru_batching: bool,
    /// The calling thread of a live run keeps a processor of its own meanwhile,
    /// and the vCPUs the others of these ([`Affinity::pin_apart`]).
    #[cfg(not(loom))]
    pub apart: Option<&'a Affinity>,
}

impl Default for RunOptions<'_> {
    fn default() -> Self {
        RunOptions {
            quantum: 1024,
            stop: None,
            store: None,
            lru_batching: false,
            #[cfg(not(loom))]
            apart: None,
        }
    }
}

/// What one vCPU did in a run.
#[derive(Clone, Debug)]
pub struct VcpuRun {
    /// The vCPU.
    pub vcpu: u32,
    /// Accesses it made.
    pub accesses: u64,
    /// Time it ran, in nanoseconds of real time.
    pub wall_ns: u64,
    /// What it counted.
    pub counters: CounterValues,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct RunStats {
    /// One for each stream that was given.
    pub vcpus: Vec<VcpuRun>,
    /// Whether `stop` ended it.
    pub stopped: bool,
}

/// What the caller of a live run does in its own thread.
type Meanwhile<'a> = &'a mut dyn FnMut(&Cpu) -> Result<()>;

/// Faults of one access that are handled without a pause: what a page may need
/// on the way through two sets of page tables. A vCPU that still faults waits
/// for somebody who invalidates, and who may need its processor; the kernel's
/// reschedules before it enters (`xfer_to_guest_mode_handle_work()`).
const PROMPT_FAULTS: u32 = 4;

impl Vm {
    /// Make every vCPU forget its translations, and wait until none uses an
    /// old one (`kvm_flush_remote_tlbs()`). A vCPU in guest mode never waits
    /// for locks, so this may be called with any held, also inside RCU.
    pub fn flush_remote_tlbs(&self, cpu: &Cpu) {
        cpu.count(Counter::TlbFlushes);
        // Release: whoever sees the generation sees what was unlinked before.
        let wanted = self.tlb_generation.fetch_add(1, Ordering::AcqRel) + 1;
        // Pairs with the fence in `enter`.
        fence(Ordering::SeqCst);
        for vcpu in &self.vcpus {
            let backoff = Backoff::new();
            // Acquire, both: what the vCPU did with the old translations
            // happens before this returns.
            while vcpu.shared.mode.load(Ordering::Acquire) == IN_GUEST_MODE
                && vcpu.shared.acknowledged.load(Ordering::Acquire) < wanted
            {
                backoff.wait();
            }
        }
    }

    /// Enter the guest with a valid root (`vcpu_enter_guest()`).
    fn enter<'v>(
        &self,
        cpu: &Cpu,
        mmu: &impl GuestMmu,
        vcpu: &'v Vcpu,
        tlb: &mut Tlb,
    ) -> Result<InGuest<'v>> {
        loop {
            mmu.load(self, cpu, vcpu)?;
            vcpu.shared.mode.store(IN_GUEST_MODE, Ordering::Relaxed);
            let mut inside = InGuest {
                vcpu,
                generation: vcpu.shared.acknowledged.load(Ordering::Relaxed),
            };
            // Pairs with the fence in `flush_remote_tlbs`.
            fence(Ordering::SeqCst);
            if self.is_current(mmu, &mut inside, tlb) {
                return Ok(inside);
            }
        }
    }

    /// Act on a flush if one is asked for; false if the vCPU must leave the
    /// guest to load another root.
    #[inline]
    fn is_current(&self, mmu: &impl GuestMmu, inside: &mut InGuest<'_>, tlb: &mut Tlb) -> bool {
        // Acquire: pairs with the release in `flush_remote_tlbs`.
        let generation = self.tlb_generation.load(Ordering::Acquire);
        if generation != inside.generation {
            tlb.flush();
            inside.generation = generation;
            // Release: pairs with the acquire in `flush_remote_tlbs`.
            inside
                .vcpu
                .shared
                .acknowledged
                .store(generation, Ordering::Release);
        } else if inside.vcpu.root().is_some() {
            return true;
        }
        // After the acknowledgement: whoever invalidates roots does so before
        // it raises the generation.
        !mmu.is_obsolete(self, inside.vcpu)
    }

    /// Make accesses on a vCPU. Returns how many were made before an error.
    fn access_all<M: GuestMmu>(
        &self,
        cpu: &Cpu,
        mmu: &M,
        vcpu: &Vcpu,
        tlb: &mut Tlb,
        accesses: &[Access],
        store: Option<u8>,
    ) -> (u64, Result<()>) {
        let mut hits = 0;
        let mut done = 0;
        let result = (|| {
            let mut inside = self.enter(cpu, mmu, vcpu, tlb)?;
            for access in accesses {
                let kind = access.kind();
                let page = mmu.address(self, vcpu, access.page());
                let mut faults = 0;
                let waits = Backoff::new();
                let pfn = loop {
                    if !self.is_current(mmu, &mut inside, tlb) {
                        drop(inside);
                        inside = self.enter(cpu, mmu, vcpu, tlb)?;
                    }
                    if let Some(pfn) = tlb.lookup(page, kind) {
                        hits += 1;
                        break pfn;
                    }
                    match mmu.walk(self, cpu, vcpu, page, kind) {
                        Walk::Hit(found) => {
                            tlb.insert(page, &found);
                            break found.pfn;
                        }
                        Walk::Fault { present } => {
                            // Outside the guest: a fault may wait for locks
                            // whose holder waits for this vCPU's flush.
                            drop(inside);
                            mmu.fault(self, cpu, vcpu, page, kind, present)?;
                            if cpu.poll() {
                                cpu.finish()?;
                            }
                            faults += 1;
                            if faults > PROMPT_FAULTS {
                                waits.wait();
                            }
                            inside = self.enter(cpu, mmu, vcpu, tlb)?;
                        }
                    }
                };
                if let (true, Some(byte)) = (kind.is_write(), store) {
                    // Relaxed: the content of one page, handed on by flushes.
                    let content = cpu.host().memory.content(pfn);
                    content.store(byte, Ordering::Relaxed);
                }
                done += 1;
            }
            Ok(())
        })();
        cpu.count_n(Counter::GuestAccesses, done);
        cpu.count_n(Counter::TlbHits, hits);
        cpu.count_n(Counter::TlbMisses, done - hits);
        (done, result)
    }

    fn run_quantum(
        &self,
        cpu: &Cpu,
        vcpu: &Vcpu,
        tlb: &mut Tlb,
        accesses: &[Access],
        store: Option<u8>,
    ) -> (u64, Result<()>) {
        self.mm.note_ran();
        let (done, result) = match self.guest_mmu(vcpu) {
            Some(mmu) => mmu.access_all(self, cpu, vcpu, tlb, accesses, store),
            None => {
                let missing = Error::new(Errno::EOPNOTSUPP, "this VM has no MMU to run a guest on");
                (0, Err(missing))
            }
        };
        advance(cpu.host(), done);
        let result = result.and_then(|()| cpu.check_error());
        (done, result)
    }

    fn vcpu(&self, id: u32) -> Result<&Vcpu> {
        self.vcpus.get(id as usize).ok_or_else(|| {
            Error::invalid(format!(
                "vCPU {id}: this VM has {}, 0 to {}",
                self.vcpus.len(),
                self.vcpus.len() - 1
            ))
        })
    }

    /// One access of one vCPU; for `kind` a plain `true` is a write and `false`
    /// a read.
    ///
    /// # Errors
    /// `EINVAL` for an unknown vCPU, `EBUSY` while another thread runs it, what
    /// the guest's fault returns.
    pub fn access(
        &self,
        cpu: &Cpu,
        vcpu: u32,
        page: u64,
        kind: impl Into<AccessKind>,
        store: Option<u8>,
    ) -> Result<()> {
        self.hold_vcpu(vcpu)?.access(cpu, page, kind, store)
    }

    /// Hold a vCPU for several accesses, as `KVM_RUN` does until it returns to
    /// user space.
    ///
    /// # Errors
    /// `EINVAL` for an unknown vCPU, `EBUSY` while another thread runs it.
    pub fn hold_vcpu(&self, vcpu: u32) -> Result<HeldVcpu<'_>> {
        let vcpu = self.vcpu(vcpu)?;
        Ok(HeldVcpu {
            vm: self,
            vcpu,
            tlb: take(vcpu)?,
        })
    }

    /// Several accesses of one vCPU, in one stay in the guest if nothing ends
    /// it. Returns how many were made before an error.
    #[cfg(not(loom))]
    pub(crate) fn access_batch(
        &self,
        cpu: &Cpu,
        vcpu: u32,
        accesses: &[Access],
        store: Option<u8>,
    ) -> (u64, Result<()>) {
        match self.vcpu(vcpu).and_then(|vcpu| Ok((vcpu, take(vcpu)?))) {
            Ok((vcpu, mut tlb)) => self.run_quantum(cpu, vcpu, &mut tlb, accesses, store),
            Err(error) => (0, Err(error)),
        }
    }

    /// Run vCPU n on stream n, for each stream, in the calling thread and in
    /// turns, so that runs repeat to the bit.
    ///
    /// # Errors
    /// `EINVAL` for more streams than vCPUs, `EBUSY` while another thread runs
    /// one of them, what a guest's fault returns: then the others stop too.
    pub fn run_inline(
        &self,
        cpu: &Cpu,
        streams: &mut [Stream],
        options: &RunOptions<'_>,
    ) -> Result<RunStats> {
        let vcpus = self.vcpus_for(streams.len())?;
        let quantum = options.quantum.max(1);
        let mut buffer = Vec::with_capacity(quantum);
        let mut tlbs = vcpus.iter().map(take).collect::<Result<Vec<_>>>()?;
        let mut stats: Vec<VcpuRun> = vcpus.iter().map(VcpuRun::new).collect();
        let mut stopped = false;
        let mut left = true;
        'run: while left {
            left = false;
            for (n, stream) in streams.iter_mut().enumerate() {
                if cpu.poll() {
                    cpu.finish()?;
                }
                if is_set(options.stop) {
                    stopped = true;
                    break 'run;
                }
                stream.fill(&mut buffer, quantum);
                if buffer.is_empty() {
                    continue;
                }
                left = true;
                let before = cpu.counters.snapshot();
                let start = Instant::now();
                let (vcpu, tlb) = (&vcpus[n], &mut tlbs[n]);
                let (done, result) = self.run_quantum(cpu, vcpu, tlb, &buffer, options.store);
                let run = &mut stats[n];
                run.accesses += done;
                run.wall_ns += nanos(start);
                run.counters.merge(&cpu.counters.snapshot().since(&before));
                result?;
            }
        }
        Ok(RunStats {
            vcpus: stats,
            stopped,
        })
    }

    /// Run vCPU n on stream n, for each stream, each in a thread of its own.
    ///
    /// # Errors
    /// As [`run_inline`](Self::run_inline); the first error, in the order of
    /// vCPUs, and all of them stop.
    pub fn run_live(
        &self,
        cpu: &Cpu,
        streams: &mut [Stream],
        options: &RunOptions<'_>,
    ) -> Result<RunStats> {
        self.run_threads(cpu, streams, options, None)
    }

    /// [`run_live`](Self::run_live), and call `meanwhile` in a loop in the
    /// calling thread until the last vCPU is done. Its error stops the run.
    ///
    /// # Errors
    /// As [`run_live`](Self::run_live), and those of `meanwhile`.
    pub fn run_with(
        &self,
        cpu: &Cpu,
        streams: &mut [Stream],
        options: &RunOptions<'_>,
        mut meanwhile: impl FnMut(&Cpu) -> Result<()>,
    ) -> Result<RunStats> {
        self.run_threads(cpu, streams, options, Some(&mut meanwhile))
    }

    fn run_threads(
        &self,
        cpu: &Cpu,
        streams: &mut [Stream],
        options: &RunOptions<'_>,
        mut meanwhile: Option<Meanwhile<'_>>,
    ) -> Result<RunStats> {
        let vcpus = self.vcpus_for(streams.len())?;
        let failed = AtomicBool::new(false);
        let running = Mutex::new(streams.len());
        let done = Condvar::new();
        let seed = cpu.seed();
        let place = |vcpu: Option<usize>| {
            // Where the system refuses, its scheduler places them.
            #[cfg(not(loom))]
            options.apart.map(|affinity| affinity.pin_apart(vcpu));
            #[cfg(loom)]
            let _ = vcpu;
        };
        place(None);
        let (mine, runs) = thread::scope(|scope| {
            let threads: Vec<_> = vcpus
                .iter()
                .zip(streams.iter_mut())
                .enumerate()
                .map(|(n, (vcpu, stream))| {
                    let (failed, running, done, seed) = (&failed, &running, &done, &seed);
                    scope.spawn(move || {
                        // Said also when this thread unwinds.
                        let _leaves = Leaves { running, done };
                        place(Some(n));
                        let cpu = seed.cpu();
                        cpu.set_lru_batching(options.lru_batching);
                        let mut run = VcpuRun::new(vcpu);
                        let result = self.run_one(&cpu, vcpu, stream, options, failed, &mut run);
                        if result.is_err() {
                            failed.store(true, Ordering::Relaxed);
                        }
                        run.counters = cpu.counters.snapshot();
                        (run, result)
                    })
                })
                .collect();
            let mut mine = Ok(());
            while mine.is_ok() && *running.lock() > 0 {
                if cpu.poll_now() {
                    mine = cpu.finish();
                } else if let Some(work) = &mut meanwhile {
                    mine = work(cpu);
                } else {
                    let mut left = running.lock();
                    if *left > 0 {
                        done.wait_for(&mut left, POLL_INTERVAL);
                    }
                }
            }
            if mine.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            let runs: Vec<(VcpuRun, Result<bool>)> = threads
                .into_iter()
                .map(|thread| match thread.join() {
                    Ok(run) => run,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect();
            (mine, runs)
        });
        #[cfg(not(loom))]
        if let Some(affinity) = options.apart {
            affinity.apply();
        }
        mine?;
        if cpu.poll() {
            cpu.finish()?;
        }
        let mut stats = RunStats {
            vcpus: Vec::with_capacity(runs.len()),
            stopped: false,
        };
        // A thread that only stopped because another failed is no error.
        for (run, result) in runs {
            stats.stopped |= result?;
            stats.vcpus.push(run);
        }
        Ok(stats)
    }

    /// A thread's part of a live run; true if it was stopped early.
    fn run_one(
        &self,
        cpu: &Cpu,
        vcpu: &Vcpu,
        stream: &mut Stream,
        options: &RunOptions<'_>,
        failed: &AtomicBool,
        run: &mut VcpuRun,
    ) -> Result<bool> {
        let quantum = options.quantum.max(1);
        let mut buffer = Vec::with_capacity(quantum);
        let mut tlb = take(vcpu)?;
        let start = Instant::now();
        let result = loop {
            if is_set(options.stop) || failed.load(Ordering::Relaxed) || cpu.poll() {
                break Ok(true);
            }
            stream.fill(&mut buffer, quantum);
            if buffer.is_empty() {
                break Ok(false);
            }
            let (done, result) = self.run_quantum(cpu, vcpu, &mut tlb, &buffer, options.store);
            run.accesses += done;
            if let Err(error) = result {
                break Err(error);
            }
        };
        run.wall_ns = nanos(start);
        result
    }

    fn vcpus_for(&self, streams: usize) -> Result<&[Vcpu]> {
        self.vcpus.get(..streams).ok_or_else(|| {
            Error::invalid(format!(
                "{streams} streams for {} vCPUs: expected one each",
                self.vcpus.len()
            ))
        })
    }

    /// Put a vCPU of a nested VM into its guest's guest, or back
    /// (`enter_guest_mode()`, `leave_guest_mode()`). It gives up its root and
    /// translations; KVM keeps both roots and tags translations.
    ///
    /// # Errors
    /// `EINVAL` for an unknown vCPU, `EOPNOTSUPP` for a VM that is not nested,
    /// `EBUSY` while another thread runs it.
    pub fn set_guest_mode(&self, cpu: &Cpu, vcpu: u32, l2: bool) -> Result<()> {
        if self.config.mmu != super::vm::MmuKind::Nested {
            return Err(Error::new(
                Errno::EOPNOTSUPP,
                "only a vCPU of a nested VM can enter a guest of its own",
            ));
        }
        let vcpu = self.vcpu(vcpu)?;
        let mut tlb = take(vcpu)?;
        if vcpu.shadow.is_l2() != l2 {
            if let Some(mmu) = self.guest_mmu(vcpu) {
                mmu.unload(self, cpu, vcpu);
            }
            tlb.flush();
            vcpu.shadow.set_l2(l2);
        }
        Ok(())
    }

    /// Make every vCPU give up its root. Waits for runs to end.
    pub(super) fn unload_vcpus(&self, cpu: &Cpu) {
        for vcpu in &self.vcpus {
            let mut tlb = vcpu.running.lock();
            if let Some(mmu) = self.guest_mmu(vcpu) {
                mmu.unload(self, cpu, vcpu);
            }
            tlb.flush();
        }
    }
}

/// A vCPU that one thread runs and no other can (`vcpu->mutex`), between
/// accesses outside the guest.
pub struct HeldVcpu<'a> {
    vm: &'a Vm,
    vcpu: &'a Vcpu,
    tlb: MutexGuard<'a, Tlb>,
}

impl HeldVcpu<'_> {
    /// One access; for `kind` a plain `true` is a write and `false` a read.
    ///
    /// # Errors
    /// What the guest's fault returns.
    pub fn access(
        &mut self,
        cpu: &Cpu,
        page: u64,
        kind: impl Into<AccessKind>,
        store: Option<u8>,
    ) -> Result<()> {
        let accesses = [Access::new(page, kind)];
        self.vm
            .run_quantum(cpu, self.vcpu, &mut self.tlb, &accesses, store)
            .1
    }
}

/// A vCPU's thread, counted out when it ends.
struct Leaves<'a> {
    running: &'a Mutex<usize>,
    done: &'a Condvar,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        *self.running.lock() -= 1;
        self.done.notify_one();
    }
}

impl VcpuRun {
    fn new(vcpu: &Vcpu) -> Self {
        VcpuRun {
            vcpu: vcpu.id,
            accesses: 0,
            wall_ns: 0,
            counters: CounterValues::default(),
        }
    }
}

/// The batch loop behind a dynamic MMU, so that the loop itself is compiled for
/// each MMU: what a VM calls once a quantum.
pub trait GuestLoop: Sync {
    /// Make accesses on a vCPU. Returns how many were made before an error.
    fn access_all(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        vcpu: &Vcpu,
        tlb: &mut Tlb,
        accesses: &[Access],
        store: Option<u8>,
    ) -> (u64, Result<()>);
    /// Give up the vCPU's root.
    fn unload(&self, vm: &Vm, cpu: &Cpu, vcpu: &Vcpu);
}

impl<M: GuestMmu> GuestLoop for M {
    fn access_all(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        vcpu: &Vcpu,
        tlb: &mut Tlb,
        accesses: &[Access],
        store: Option<u8>,
    ) -> (u64, Result<()>) {
        vm.access_all(cpu, self, vcpu, tlb, accesses, store)
    }

    fn unload(&self, vm: &Vm, cpu: &Cpu, vcpu: &Vcpu) {
        GuestMmu::unload(self, vm, cpu, vcpu);
    }
}

fn take(vcpu: &Vcpu) -> Result<MutexGuard<'_, Tlb>> {
    vcpu.running.try_lock().ok_or_else(|| {
        Error::new(
            Errno::EBUSY,
            format!("vCPU {} is being run by another thread", vcpu.id),
        )
    })
}

fn is_set(stop: Option<&AtomicBool>) -> bool {
    stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
}

fn nanos(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Let virtual time pass for accesses made.
fn advance(host: &Host, accesses: u64) {
    if matches!(host.clock, Clock::Virtual(_)) {
        host.clock.advance_ns(accesses * ACCESS_NS);
    }
}
