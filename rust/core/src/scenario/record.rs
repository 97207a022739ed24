//! Recordings: one JSON object a line, the conditions first, then a step each.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Under what conditions a scenario was or is run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Header {
    /// The scenario's name.
    pub scenario: String,
    /// Which kernel, in the words of the recordings.
    pub kernel: String,
    /// What `/proc/version` said.
    #[serde(default)]
    pub version: String,
    /// What `/sys/kernel/mm/lru_gen/enabled` read, `0x000f`.
    pub lru_gen_enabled: String,
    /// Whether aging asked secondary MMUs.
    #[serde(default)]
    pub secondary_mmu_walk: bool,
    /// The kind of MMU that the VM used: `none`, `tdp`, `shadow` or
    /// `direct-rmap`.
    pub mmu: String,
    /// Bytes of a page.
    #[serde(default = "page_size")]
    pub page_size: u64,
    /// Slots of the swap device.
    pub swap_pages: u64,
    /// The most pages that the worker itself accounted for.
    #[serde(default)]
    pub recorder_pages: u64,
}

fn page_size() -> u64 {
    crate::mm::PAGE_SIZE
}

/// One region's state.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RegionState {
    /// `anon`, `file`, `filernd` or `shmem`.
    pub kind: String,
    /// Its size.
    pub pages: u64,
    /// Pages that the worker's page tables map.
    pub present: u64,
    /// Pages that they name swap slots for.
    pub swapped: u64,
    /// Pages in the page cache, of files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incore: Option<u64>,
    /// The present pages as `[first, end)`, when the ranges are few.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present_ranges: Option<Vec<[u64; 2]>>,
}

/// Cumulative counters of `memory.stat`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct MemoryStat {
    pub workingset_refault_anon: u64,
    pub workingset_refault_file: u64,
    pub workingset_activate_anon: u64,
    pub workingset_activate_file: u64,
    pub workingset_restore_anon: u64,
    pub workingset_restore_file: u64,
    pub pgscan: u64,
    pub pgsteal: u64,
    pub pgrefill: u64,
    pub pgfault: u64,
    pub pgmajfault: u64,
}

/// Calls of KVM's notifier hooks and faults in one step.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TraceCounts {
    /// `kvm_age_hva` events.
    pub kvm_age_hva: u64,
    /// `kvm_test_age_hva` events.
    pub kvm_test_age_hva: u64,
    /// `kvm_unmap_hva_range` events.
    pub kvm_unmap_hva_range: u64,
    /// `fast_page_fault` events.
    pub fast_page_fault: u64,
    /// `kvm_page_fault` events.
    pub kvm_page_fault: u64,
    /// `kvm_age_hva` with `fast_only`, for pages of regions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region_age_hva_fast: Option<u64>,
    /// `kvm_age_hva` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region_age_hva_slow: Option<u64>,
}

/// What was there after a step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Number of the step, from 0.
    pub step: usize,
    /// The operation.
    pub op: String,
    /// Its arguments.
    pub args: String,
    /// 0, or the error's number.
    pub errno: i32,
    /// Anonymous and file pages of each generation, oldest first.
    pub generations: BTreeMap<u64, [u64; 2]>,
    /// The regions.
    pub regions: BTreeMap<String, RegionState>,
    /// Counters of the memory cgroup.
    pub memory_stat: MemoryStat,
    /// What was written to `lru_gen`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// With a VM: what its hooks were called for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceCounts>,
}

impl Record {
    /// The record as one line of JSON, without its end.
    pub fn to_json(&self) -> String {
        to_json(self)
    }
}

impl Header {
    /// The conditions as one line of JSON, without its end.
    pub fn to_json(&self) -> String {
        to_json(self)
    }
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("maps with number keys and strings print as JSON")
}

/// A recording.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recording {
    /// Its conditions.
    pub header: Header,
    /// Its steps.
    pub records: Vec<Record>,
}

impl Recording {
    /// Read a recording.
    ///
    /// # Errors
    /// `EINVAL` with line and column of what is not JSON of the right shape.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let mut header = None;
        let mut records = Vec::new();
        for (line, number) in text.split(|&b| b == b'\n').zip(1..) {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let wrong = |what: &str, e: &serde_json::Error| {
                Error::invalid(format!(
                    "line {number}, column {}: expected {what}: {e}",
                    e.column()
                ))
            };
            if header.is_none() {
                header = Some(
                    serde_json::from_slice(line)
                        .map_err(|e| wrong("a recording's conditions", &e))?,
                );
            } else {
                let record = serde_json::from_slice(line);
                records.push(record.map_err(|e| wrong("a recorded step", &e))?);
            }
        }
        let header = header
            .ok_or_else(|| Error::invalid("line 1, column 1: expected a recording's conditions"))?;
        Ok(Recording { header, records })
    }

    /// The recording as text, a line each.
    pub fn print(&self) -> String {
        let lines =
            std::iter::once(self.header.to_json()).chain(self.records.iter().map(Record::to_json));
        lines.map(|line| line + "\n").collect()
    }
}
