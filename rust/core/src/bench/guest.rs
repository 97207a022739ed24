//! Hosts and guests to measure on.

use super::contest::Stage;
use crate::access::{Pattern, Stream, StreamConfig};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::host::{Host, HostConfig, ROOT_MEMCG};
use crate::kvm::mmu::spte::{LEVEL_1G, SpteFormat};
use crate::kvm::protocol::{Protocol, ShadowAging};
use crate::kvm::{MemoryRegion, MmuKind, RunOptions, TlbConfig, Vm, VmConfig};
use crate::lru_gen::{self, Asking, PassStats};
use crate::mm::{Kind, Memcg, Mm, PAGE_SIZE, VmFlags};
use std::sync::Arc;

/// What a guest is to be.
#[derive(Clone, Copy, Debug)]
pub struct GuestConfig {
    /// Its memory, in pages.
    pub pages: u64,
    /// How it is aged; MGLRU asks what that protocol's kernel asks.
    pub protocol: Protocol,
    /// Which MMU maps it.
    pub mmu: MmuKind,
    /// The format of its SPTEs.
    pub format: SpteFormat,
    /// vCPUs.
    pub vcpus: u32,
    /// Memslots that its memory is cut into.
    pub slots: u64,
    /// Huge pages of 2 MiB behind its memory.
    pub huge: bool,
    /// Swap slots of the host.
    pub swap_pages: u64,
}

impl Default for GuestConfig {
    fn default() -> Self {
        GuestConfig {
            pages: 1 << 18,
            protocol: Protocol::V7,
            mmu: MmuKind::Tdp,
            format: SpteFormat::EPT,
            vcpus: 1,
            slots: 1,
            huge: false,
            swap_pages: 0,
        }
    }
}

/// Pages that are populated between two looks at whether to go on.
const CHUNK: usize = 1 << 16;

/// A host with one guest, whose memory cgroup is the root. Dropping it
/// destroys the VM.
pub struct Guest {
    /// The host.
    pub host: Arc<Host>,
    /// The process that the guest's memory belongs to.
    pub mm: Arc<Mm>,
    /// The VM.
    pub vm: Arc<Vm>,
    /// Where the guest's memory is in the process.
    pub hva: u64,
    /// Pages of guest memory.
    pub pages: u64,
}

impl Guest {
    /// A guest whose memory is not populated yet.
    ///
    /// # Errors
    /// As those of [`Host::new`] and [`Vm::create`].
    pub fn new(config: &GuestConfig) -> Result<Self> {
        let host = Host::new(&HostConfig {
            // Watermarks are kept free, or populating would reclaim.
            nodes: vec![config.pages + config.pages / 8 + (1 << 12)],
            swap_pages: config.swap_pages,
            virtual_clock: false,
        })?;
        host.lru_gen.set_asking(asking(&config.protocol));
        let cpu = Cpu::new(&host);
        let mm = host.create_mm(ROOT_MEMCG)?;
        let space = host.create_space(Kind::Anon, 0);
        let flags = VmFlags {
            thp: config.huge,
            ..VmFlags::default()
        };
        let hva = mm.mmap(None, config.pages * PAGE_SIZE, &space, 0, flags)?;
        let vm = Vm::create(
            &cpu,
            &mm,
            VmConfig {
                protocol: config.protocol,
                format: config.format,
                mmu: config.mmu,
                max_level: LEVEL_1G,
                vcpus: config.vcpus,
                tlb: TlbConfig::OFF,
                ..VmConfig::default()
            },
        )?;
        let bytes = config.pages / config.slots * PAGE_SIZE;
        for slot in 0..config.slots {
            vm.set_memory_region(
                &cpu,
                &MemoryRegion {
                    as_id: 0,
                    slot: slot as u32,
                    flags: 0,
                    guest_phys_addr: slot * bytes,
                    memory_size: bytes,
                    userspace_addr: hva + slot * bytes,
                },
            )?;
        }
        drop(cpu);
        Ok(Guest {
            host,
            mm,
            vm,
            hva,
            pages: config.pages,
        })
    }

    /// The memory cgroup that its pages are charged to.
    pub fn memcg(&self) -> &Memcg {
        &self.mm.memcg
    }

    /// One past the last byte of its memory in the process.
    pub fn end(&self) -> u64 {
        self.hva + self.pages * PAGE_SIZE
    }

    /// Write to pages `[start, end)` in order, on the first vCPU, in the
    /// calling thread: populates them, and makes their SPTEs young.
    ///
    /// # Errors
    /// As [`Vm::run_inline`].
    pub fn sweep(&self, cpu: &Cpu, start: u64, end: u64) -> Result<()> {
        let mut stream = [sequential(start, end)?];
        self.vm
            .run_inline(cpu, &mut stream, &RunOptions::default())?;
        Ok(())
    }

    /// [`sweep`](Self::sweep) all of it, and tell `progress` now and then.
    pub(super) fn populate(&self, stage: &mut Stage<'_>, what: &str) -> Result<()> {
        let cpu = Cpu::new(&self.host);
        for start in (0..self.pages).step_by(CHUNK) {
            stage.progress(what)?;
            self.sweep(&cpu, start, self.pages.min(start + CHUNK as u64))?;
        }
        Ok(())
    }

    /// One aging pass over its memory cgroup.
    ///
    /// # Errors
    /// As [`lru_gen::age`].
    pub fn age(&self, cpu: &Cpu) -> Result<PassStats> {
        lru_gen::age(cpu, self.memcg(), 0, true, true)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Fails only if whoever measured it has destroyed it already.
        let _ = self.vm.destroy(&Cpu::new(&self.host));
    }
}

/// What the aging of a protocol's kernel asks of notifiers.
fn asking(protocol: &Protocol) -> Asking {
    if protocol.shadow_aging == ShadowAging::LocklessWhenFast {
        Asking::FastOnly
    } else {
        Asking::Accurate
    }
}

/// One write to each page of `[start, end)`, in order.
pub(super) fn sequential(start: u64, end: u64) -> Result<Stream> {
    Stream::new(&StreamConfig {
        pattern: Pattern::Sequential,
        start,
        end,
        accesses: end - start,
        write_ratio: 1.0,
        seed: 0,
    })
}

/// The MMUs that suites go through, and what users call them.
pub(super) const MMUS: &[(&str, MmuKind)] = &[("tdp", MmuKind::Tdp), ("shadow", MmuKind::Shadow)];
