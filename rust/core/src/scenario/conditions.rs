//! A recording's conditions, in the model's terms.

use super::record::Header;
use crate::error::{Errno, Error, Result};
use crate::lru_gen::Asking;
use crate::text::kstrtouint;

/// The secondary MMU of the scenario's VMs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mmu {
    /// No VM.
    None,
    /// The TDP MMU.
    Tdp,
    /// The shadow MMU, with direct pages: two-dimensional paging, TDP MMU off.
    DirectRmap,
    /// The shadow MMU, with shadow paging.
    Shadow,
}

/// How secondary MMUs are aged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kvm {
    /// Under `mmu_lock`.
    Baseline,
    /// As in the series.
    V7,
    /// As merged.
    V9,
}

/// Under what conditions a scenario runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conditions {
    /// How secondary MMUs are aged.
    pub kvm: Kvm,
    /// What aging asks them.
    pub asking: Asking,
    /// The capabilities that are on.
    pub caps: u32,
    /// The secondary MMU.
    pub mmu: Mmu,
    /// Whether SPTEs have accessed and dirty bits.
    pub ad_bits: bool,
    /// Slots of the swap device.
    pub swap_pages: u64,
    /// Pages of the host.
    pub host_pages: u64,
    /// Pages of the worker's own, besides one for each VM.
    pub worker_pages: u64,
}

/// The recording machine's memory.
const HOST_PAGES: u64 = (3 << 30) / crate::mm::PAGE_SIZE;
/// A worker's own pages, what it tells a guest among them: the middle of the 11
/// to 17 that recordings were seen to have.
const WORKER_PAGES: u64 = 13;

impl Conditions {
    /// From a recording's first line.
    ///
    /// # Errors
    /// `EINVAL` for words or numbers that mean nothing here, `EOPNOTSUPP` for a
    /// machine that does not exist.
    pub fn from_header(header: &Header) -> Result<Self> {
        let kernel = header.kernel.as_str();
        let (kvm, asking) = if kernel.contains("v7") {
            (Kvm::V7, Asking::FastOnly)
        } else if kernel.contains("v9") {
            (Kvm::V9, Asking::Accurate)
        } else if header.secondary_mmu_walk {
            (Kvm::Baseline, Asking::Accurate)
        } else {
            (Kvm::Baseline, Asking::None)
        };
        let caps = kstrtouint(header.lru_gen_enabled.as_bytes()).ok_or_else(|| {
            Error::invalid(format!(
                "lru_gen_enabled {:?}: expected a mask",
                header.lru_gen_enabled
            ))
        })?;
        let mmu = match header.mmu.as_str() {
            "none" => Mmu::None,
            "tdp" => Mmu::Tdp,
            "direct-rmap" => Mmu::DirectRmap,
            "shadow" => Mmu::Shadow,
            other => {
                return Err(Error::invalid(format!(
                    "mmu {other:?}: expected none, tdp, direct-rmap or shadow"
                )));
            }
        };
        let ad_bits = !kernel.contains("no-ad");
        if mmu == Mmu::Shadow && !ad_bits {
            return Err(Error::new(
                Errno::EOPNOTSUPP,
                "mmu shadow without A/D bits: shadow paging always has them; direct-rmap is the \
                 shadow MMU that can be without",
            ));
        }
        if header.page_size != crate::mm::PAGE_SIZE {
            return Err(Error::invalid(format!(
                "page_size {}: expected {}",
                header.page_size,
                crate::mm::PAGE_SIZE
            )));
        }
        Ok(Conditions {
            kvm,
            asking,
            caps,
            mmu,
            ad_bits,
            swap_pages: header.swap_pages,
            host_pages: HOST_PAGES,
            worker_pages: (WORKER_PAGES - u64::from(mmu != Mmu::None)).min(header.recorder_pages),
        })
    }
}
