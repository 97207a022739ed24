//! The machine that a scenario drives.

use super::conditions::{Conditions, Kvm, Mmu};
use super::parse::{MapKind, Op, Pages, Step, Which};
use super::record::{MemoryStat, Record, RegionState, TraceCounts};
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::host::{Host, HostConfig};
use crate::kvm::mmu::shadow::ShadowConfig;
use crate::kvm::mmu::spte::SpteFormat;
use crate::kvm::{MemoryRegion, MmuKind, Protocol, Vm, VmConfig};
use crate::lru_gen::{self, debugfs, histogram};
use crate::mm::address_space::Slot;
use crate::mm::pagetable::Pte;
use crate::mm::{AddressSpace, Kind, Memcg, Mm, PAGE_SIZE, VmFlags, filemap, memcg_files};
use crate::sync::atomic::Ordering;
use crate::trace::{Counter, CounterValues, Event};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a touch that writes leaves in a page.
const BYTE: u8 = 0x5a;
/// Present ranges are recorded when they are at most so many.
const MAX_RANGES: usize = 64;
/// Mappings that the worker's own pages lie in, and the size of each.
const WORKER_MAPPINGS: u64 = 4;
const WORKER_MAPPING_PAGES: u64 = 64;
/// Where guests have the first region, and how regions are aligned.
const GUEST_BASE: u64 = 1 << 30;
const GUEST_ALIGN: u64 = 2 << 20;
/// VMs of a scenario.
const MAX_VMS: usize = 2;
/// The memslot of the page through which the worker tells a guest what to do,
/// which the guest has at address 0.
const COMMAND_SLOT: u32 = 500;

struct Region {
    kind: MapKind,
    pages: u64,
    start: u64,
    space: Arc<AddressSpace>,
    /// Its memslot's number, and where guests have it.
    slot: u32,
    gpa: u64,
}

struct Guest {
    vm: Arc<Vm>,
    /// Where the worker has the page of its commands.
    command: u64,
}

/// A worker process, its memory cgroup and its VMs.
pub struct Runner {
    host: Arc<Host>,
    memcg: Arc<Memcg>,
    mm: Arc<Mm>,
    regions: BTreeMap<String, Region>,
    /// Files and shmem that have a path.
    files: BTreeMap<String, Arc<AddressSpace>>,
    /// Pages of the worker's own that it uses in every step.
    own: Vec<u64>,
    /// The page that the worker reads files into.
    buffer: Option<u64>,
    vms: [Option<Guest>; MAX_VMS],
    vm_config: VmConfig,
    mmu: Mmu,
    next_gpa: u64,
    totals: CounterValues,
    traced: bool,
    steps: usize,
}

/// The worker needs its own pages to answer; a kernel that cannot bring one back
/// ends the worker, and with it the scenario.
fn worker_lost_a_page(e: Error) -> Error {
    match e {
        Error::Sys { errno, what } => Error::new(
            errno,
            format!("the worker is killed, because a page of its own cannot come back: {what}"),
        ),
        raised @ Error::Callback(_) => raised,
    }
}

impl Runner {
    /// A machine in the given conditions, with a worker that has begun to run.
    ///
    /// # Errors
    /// `EINVAL` for impossible sizes.
    pub fn new(conditions: &Conditions) -> Result<Self> {
        let host = Host::new(&HostConfig {
            nodes: vec![conditions.host_pages],
            swap_pages: conditions.swap_pages,
            virtual_clock: true,
        })?;
        host.lru_gen.set_asking(conditions.asking);
        host.lru_gen.set_caps(conditions.caps);
        let memcg = host.create_memcg("scenario")?;
        let mm = host.create_mm(memcg.id)?;
        let mut runner = Runner {
            host,
            memcg,
            mm,
            regions: BTreeMap::new(),
            files: BTreeMap::new(),
            own: Vec::new(),
            buffer: None,
            vms: [const { None }; MAX_VMS],
            vm_config: vm_config(conditions),
            mmu: conditions.mmu,
            next_gpa: GUEST_BASE,
            totals: CounterValues::default(),
            traced: false,
            steps: 0,
        };
        runner.start_worker(conditions.worker_pages)?;
        Ok(runner)
    }

    /// The host, for a closer look.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// The worker's memory cgroup.
    pub fn memcg(&self) -> &Arc<Memcg> {
        &self.memcg
    }

    /// Give the worker pages of its own: a few in each of some mappings, as
    /// stack, heap and data are. One is used at the start and never again.
    fn start_worker(&mut self, pages: u64) -> Result<()> {
        let cpu = Cpu::new(&self.host);
        let len = WORKER_MAPPING_PAGES * PAGE_SIZE;
        let mut starts = Vec::new();
        for _ in 0..WORKER_MAPPINGS.min(pages) {
            let space = self.host.create_space(Kind::Anon, 0);
            let start = self.mm.mmap(None, len, &space, 0, VmFlags::default())?;
            starts.push(start);
        }
        self.buffer = starts.first().map(|start| start + len - PAGE_SIZE);
        for n in 0..pages {
            let address = starts[(n % WORKER_MAPPINGS) as usize] + n / WORKER_MAPPINGS * PAGE_SIZE;
            self.mm.touch(&cpu, address, true, None)?;
            if n > 0 {
                self.own.push(address);
            }
        }
        Ok(())
    }

    /// Run steps one after the other.
    ///
    /// # Errors
    /// As [`Runner::step`].
    pub fn run(&mut self, steps: &[Step]) -> Result<Vec<Record>> {
        steps.iter().map(|step| self.step(step)).collect()
    }

    /// Run one step and record what is there after it. An error that the
    /// kernel would return is part of the record.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for a machine that does not exist, `EINTR`; what a callback
    /// raised; `ENOMEM` where the worker's own pages cannot come back, so that
    /// the kernel's OOM killer would end the worker and the scenario with it.
    pub fn step(&mut self, step: &Step) -> Result<Record> {
        self.step_on(step, Cpu::new)
    }

    /// As [`Runner::step`], on a `Cpu` that the caller makes, and so can stop.
    ///
    /// # Errors
    /// As [`Runner::step`].
    pub fn step_on(
        &mut self,
        step: &Step,
        make_cpu: impl FnOnce(&Arc<Host>) -> Cpu,
    ) -> Result<Record> {
        self.traced |= matches!(step.op, Op::Vm(_));
        if self.traced {
            let mask = Event::ALL.iter().map(|&event| event as u32).sum();
            self.host.set_trace_mask(mask);
        }
        let (errno, command) = {
            let cpu = make_cpu(&self.host);
            // Whatever the step is, the worker is told of it and answers.
            for &address in &self.own {
                self.mm
                    .touch(&cpu, address, true, None)
                    .map_err(worker_lost_a_page)?;
            }
            let (command, done) = self.run_op(&cpu, &step.op);
            let errno = match done {
                Ok(()) => 0,
                Err(Error::Sys { errno, .. })
                    if !matches!(errno, Errno::EINTR | Errno::EOPNOTSUPP) =>
                {
                    errno as i32
                }
                Err(e) => return Err(e),
            };
            cpu.finish()?;
            self.totals.merge(&cpu.counters.snapshot());
            (errno, command)
        };
        self.steps += 1;
        Ok(Record {
            step: self.steps - 1,
            op: step.name.clone(),
            args: step.args.clone(),
            errno,
            generations: self.generations(),
            regions: self
                .regions
                .iter()
                .map(|(name, r)| (name.clone(), self.state(r)))
                .collect(),
            memory_stat: self.memory_stat(),
            command,
            trace: self.trace_counts(),
        })
    }

    fn run_op(&mut self, cpu: &Cpu, op: &Op) -> (Option<String>, Result<()>) {
        let max_seq = self.memcg.lruvecs[0].max_seq();
        let id = self.memcg.id;
        let command = match op {
            Op::Age { can_swap, force } => format!("+ {id} 0 {max_seq} {can_swap} {force}"),
            Op::Evict {
                which,
                swappiness,
                nr,
            } => {
                let seq = match which {
                    Which::Min => self.memcg.lruvecs[0].min_seq(lru_gen::lruvec::ANON),
                    Which::Relative(n) => max_seq.saturating_add_signed(*n),
                };
                format!("- {id} 0 {seq} {swappiness} {nr}")
            }
            Op::Raw(text) => text
                .replace("%ID", &id.to_string())
                .replace("%MAX", &max_seq.to_string()),
            _ => return (None, self.run_other(cpu, op)),
        };
        let done = debugfs::write(cpu, command.as_bytes());
        (Some(command), done)
    }

    fn run_other(&mut self, cpu: &Cpu, op: &Op) -> Result<()> {
        match op {
            Op::Map {
                region,
                kind,
                pages,
                path,
                file_pages,
            } => self.map(region, *kind, *pages, path.as_deref(), *file_pages),
            Op::Touch {
                vm: None,
                pages,
                write,
            } => {
                let start = self.regions[&pages.region].start;
                let byte = write.then_some(BYTE);
                pages
                    .iter()
                    .take_while(|_| !cpu.poll())
                    .try_for_each(|n| self.mm.touch(cpu, start + n * PAGE_SIZE, *write, byte))
            }
            Op::Read(pages) => self.read(cpu, pages),
            Op::Check { pages, byte } => self.check(cpu, pages, *byte),
            Op::Sleep(ms) => {
                self.host.clock.advance_ns(ms.saturating_mul(1_000_000));
                Ok(())
            }
            Op::Snap => Ok(()),
            Op::Write { file, value } => self.write(cpu, file, value),
            Op::Memset { file, value } => self.memset(cpu, file, value),
            Op::Touch {
                vm: Some(vm),
                pages,
                write,
            } => {
                let guest = self.guest(*vm)?;
                let first = self.regions[&pages.region].gpa / PAGE_SIZE;
                let byte = write.then_some(BYTE);
                self.mm.touch(cpu, guest.command, true, None)?;
                let vm = &guest.vm;
                vm.access(cpu, 0, 0, false, None)?;
                pages
                    .iter()
                    .take_while(|_| !cpu.poll())
                    .try_for_each(|n| vm.access(cpu, 0, first + n, *write, byte))
            }
            Op::Vm(n) => {
                self.vms[*n] = Some(self.create_vm(cpu)?);
                Ok(())
            }
            Op::VmSlot { vm, region } => self.set_slot(cpu, *vm, region, true),
            Op::VmDel { vm, region } => self.set_slot(cpu, *vm, region, false),
            Op::Age { .. } | Op::Evict { .. } | Op::Raw(_) => {
                unreachable!("commands are written as text")
            }
        }
    }

    fn map(
        &mut self,
        name: &str,
        kind: MapKind,
        pages: u64,
        path: Option<&str>,
        file_pages: u64,
    ) -> Result<()> {
        let host = &self.host;
        let made = match kind {
            MapKind::Anon => Kind::Anon,
            MapKind::Shmem => Kind::Shmem,
            MapKind::File | MapKind::FileRandom => Kind::File,
        };
        let space = match path {
            // One page cache, whoever maps it.
            Some(path) => {
                let file = self.files.entry(path.to_owned());
                Arc::clone(file.or_insert_with(|| host.create_space(made, file_pages)))
            }
            None if made == Kind::Anon => host.create_space(made, 0),
            None => host.create_space(made, pages),
        };
        let flags = VmFlags {
            no_recency: kind == MapKind::FileRandom,
            ..VmFlags::default()
        };
        let start = self.mm.mmap(None, pages * PAGE_SIZE, &space, 0, flags)?;
        let region = Region {
            kind,
            pages,
            start,
            space,
            slot: self.regions.len() as u32,
            gpa: self.next_gpa,
        };
        self.next_gpa += (pages * PAGE_SIZE).next_multiple_of(GUEST_ALIGN);
        self.regions.insert(name.to_owned(), region);
        Ok(())
    }

    fn guest(&self, n: usize) -> Result<&Guest> {
        self.vms[n].as_ref().ok_or_else(|| {
            Error::new(
                Errno::ENOENT,
                format!("VM {} was not created by a step before", n + 1),
            )
        })
    }

    fn create_vm(&self, cpu: &Cpu) -> Result<Guest> {
        if self.mmu == Mmu::None {
            return Err(Error::invalid(
                "the scenario makes a VM, and its conditions say that there is none",
            ));
        }
        let vm = Vm::create(cpu, &self.mm, self.vm_config.clone())?;
        let space = self.host.create_space(Kind::Anon, 0);
        let len = WORKER_MAPPING_PAGES * PAGE_SIZE;
        let command = self.mm.mmap(None, len, &space, 0, VmFlags::default())?;
        let region = MemoryRegion {
            as_id: 0,
            slot: COMMAND_SLOT,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: PAGE_SIZE,
            userspace_addr: command,
        };
        vm.set_memory_region(cpu, &region)?;
        Ok(Guest { vm, command })
    }

    fn set_slot(&self, cpu: &Cpu, vm: usize, region: &str, there: bool) -> Result<()> {
        let region = &self.regions[region];
        self.guest(vm)?.vm.set_memory_region(
            cpu,
            &MemoryRegion {
                as_id: 0,
                slot: region.slot,
                flags: 0,
                guest_phys_addr: region.gpa,
                memory_size: if there { region.pages * PAGE_SIZE } else { 0 },
                userspace_addr: region.start,
            },
        )
    }

    /// `pread` of whole pages.
    fn read(&self, cpu: &Cpu, pages: &Pages) -> Result<()> {
        let region = &self.regions[&pages.region];
        if region.kind == MapKind::Anon {
            return Err(Error::invalid(format!(
                "region {} is not a file that can be read",
                pages.region
            )));
        }
        for index in pages.iter().take_while(|_| !cpu.poll()) {
            filemap::read(cpu, &self.memcg, &region.space, index)?;
            if let Some(buffer) = self.buffer {
                self.mm.touch(cpu, buffer, true, None)?;
            }
        }
        Ok(())
    }

    fn check(&self, cpu: &Cpu, pages: &Pages, byte: u8) -> Result<()> {
        let start = self.regions[&pages.region].start;
        for n in pages.iter().take_while(|_| !cpu.poll()) {
            let address = start + n * PAGE_SIZE;
            self.mm.touch(cpu, address, false, None)?;
            let (_, pte) = self.mm.lookup(address);
            let found = self.host.memory.content(pte.pfn()).load(Ordering::Relaxed);
            if found != byte {
                return Err(Error::new(
                    Errno::EIO,
                    format!(
                        "page {n} of {} holds {found:#04x}, not {byte:#04x}",
                        pages.region
                    ),
                ));
            }
        }
        Ok(())
    }

    fn write(&self, cpu: &Cpu, file: &str, value: &str) -> Result<()> {
        match file {
            "/sys/kernel/mm/lru_gen/enabled" => {
                debugfs::write_enabled(&self.host, value.as_bytes())
            }
            "/sys/kernel/mm/lru_gen/min_ttl_ms" => {
                debugfs::write_min_ttl_ms(&self.host, value.as_bytes())
            }
            "/sys/kernel/debug/lru_gen" => debugfs::write(cpu, value.as_bytes()),
            "/proc/sys/vm/swappiness" => {
                let swappiness = value.parse().ok().filter(|&n| n <= 200);
                let swappiness = swappiness.ok_or_else(|| {
                    Error::invalid(format!("swappiness {value:?}: expected 0 to 200"))
                })?;
                self.host.lru_gen.set_swappiness(swappiness);
                Ok(())
            }
            _ => Err(Error::new(
                Errno::ENOENT,
                format!("{file}: the model has no such file"),
            )),
        }
    }

    /// Write a file of the memory cgroup.
    fn memset(&self, cpu: &Cpu, file: &str, value: &str) -> Result<()> {
        memcg_files::write(cpu, &self.memcg, file, value)
    }

    fn generations(&self) -> BTreeMap<u64, [u64; 2]> {
        histogram::of_memcg(&self.host, &self.memcg, None)
            .totals()
            .into_iter()
            .map(|(seq, anon, file)| (seq, [anon, file]))
            .collect()
    }

    fn state(&self, region: &Region) -> RegionState {
        let mut state = RegionState {
            kind: region.kind.name().to_owned(),
            pages: region.pages,
            ..RegionState::default()
        };
        let mut ranges: Vec<[u64; 2]> = Vec::new();
        for n in 0..region.pages {
            let (at, pte): (_, Pte) = self.mm.lookup(region.start + n * PAGE_SIZE);
            if pte.is_leaf(at.level) {
                state.present += 1;
                match ranges.last_mut() {
                    Some(last) if last[1] == n => last[1] = n + 1,
                    _ => ranges.push([n, n + 1]),
                }
            } else if pte.swap_slot().is_some() {
                state.swapped += 1;
            }
        }
        if ranges.len() <= MAX_RANGES {
            state.present_ranges = Some(ranges);
        }
        if region.kind.is_file() {
            let cached = (0..region.pages)
                .filter(|&index| matches!(region.space.slot(index), Slot::Page(_)))
                .count();
            state.incore = Some(cached as u64);
        }
        state
    }

    fn memory_stat(&self) -> MemoryStat {
        let get = |counter| self.totals.get(counter);
        MemoryStat {
            workingset_refault_anon: get(Counter::RefaultAnon),
            workingset_refault_file: get(Counter::RefaultFile),
            workingset_activate_anon: get(Counter::ActivateAnon),
            workingset_activate_file: get(Counter::ActivateFile),
            workingset_restore_anon: get(Counter::RestoreAnon),
            workingset_restore_file: get(Counter::RestoreFile),
            pgscan: get(Counter::PgScan),
            pgsteal: get(Counter::PgSteal),
            pgrefill: get(Counter::PgRefill),
            pgfault: get(Counter::PgFault),
            pgmajfault: get(Counter::PgMajFault),
        }
    }

    /// What the hooks were called for in the step that has just been run.
    fn trace_counts(&self) -> Option<TraceCounts> {
        if !self.traced {
            return None;
        }
        let mut counts = TraceCounts::default();
        let mut regions = [0, 0];
        for record in self.host.drain_trace() {
            match record.event {
                Event::KvmAgeHva => {
                    counts.kvm_age_hva += 1;
                    let in_region = self.regions.values().any(|region| {
                        let end = region.start + region.pages * PAGE_SIZE;
                        (region.start..end).contains(&record.args[0])
                    });
                    if in_region {
                        regions[usize::from(record.args[2] == 0)] += 1;
                    }
                }
                Event::KvmTestAgeHva => counts.kvm_test_age_hva += 1,
                Event::KvmUnmapHvaRange => counts.kvm_unmap_hva_range += 1,
                Event::KvmPageFault => counts.kvm_page_fault += 1,
                Event::FastPageFault => counts.fast_page_fault += 1,
                Event::KvmTdpMmuSpteChanged => {}
            }
        }
        counts.region_age_hva_fast = Some(regions[0]);
        counts.region_age_hva_slow = Some(regions[1]);
        Some(counts)
    }
}

/// A VM in the given conditions.
fn vm_config(conditions: &Conditions) -> VmConfig {
    VmConfig {
        protocol: match conditions.kvm {
            Kvm::Baseline => Protocol::BASELINE,
            Kvm::V7 => Protocol::V7,
            Kvm::V9 => Protocol::V9,
        },
        // NPT has no form without A/D bits; EPT without them is what a kernel
        // that believes to have none behaves like.
        format: if conditions.ad_bits {
            SpteFormat::NPT
        } else {
            SpteFormat::EPT_NO_AD
        },
        mmu: match conditions.mmu {
            Mmu::None | Mmu::Tdp => MmuKind::Tdp,
            Mmu::DirectRmap | Mmu::Shadow => MmuKind::Shadow,
        },
        // The recorded guests run with paging off, so that shadow paging too has
        // no guest page table to shadow and maps guest frames directly.
        shadow: ShadowConfig {
            direct: true,
            ..ShadowConfig::default()
        },
        ..VmConfig::default()
    }
}
