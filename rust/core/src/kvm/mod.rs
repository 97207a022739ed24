//! The secondary MMU: memslots, VMs, vCPUs and KVM's MMU.
//!
//! | file | what | kernel |
//! |---|---|---|
//! | [`guest`] | the guest's own page tables | `arch/x86/kvm/mmu/paging_tmpl.h` |
//! | [`memslot`] | which guest frames are which host addresses | `virt/kvm/kvm_main.c` |
//! | [`vm`] | a VM: the notifier callbacks and the walk that serves them | `virt/kvm/kvm_main.c` |
//! | [`vcpu`] | vCPUs: guest mode, accesses, runs | `arch/x86/kvm/x86.c` |
//! | [`tlb`] | the modelled TLB | |
//! | [`protocol`] | the ways of aging that are compared | |
//! | [`mmu`] | SPTEs, faults, the TDP and the shadow MMU | `arch/x86/kvm/mmu/` |

pub mod guest;
pub mod memslot;
pub mod mmu;
pub mod protocol;
pub mod tlb;
pub mod vcpu;
pub mod vm;

pub use memslot::{MemoryRegion, Memslot};
pub use protocol::Protocol;
pub use tlb::TlbConfig;
pub use vcpu::{RunOptions, RunStats, Vcpu, VcpuRun};
pub use vm::{MmuKind, Vm, VmConfig};
