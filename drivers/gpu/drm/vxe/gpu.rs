// SPDX-License-Identifier: GPL-2.0

//! The GPU: a model of hardware in software, and strict as hardware.
//!
//! It knows nothing of processes, VMs or ioctls. A driver gives it translations and batches, and
//! gets faults:
//!
//! ```text
//!   engine         runs the commands of batches; tells the driver of faults
//!     command        what the dwords of a batch mean
//!   address_space  what a batch can reach: the driver maps, zaps and invalidates here
//!     tlb            translations that were used last, until they are invalidated
//!     page_table     translations, changed in place
//!     expected       pages whose faults were serviced, and that were not accessed yet
//!   copy           moves memory between the device's own and the system's
//! ```
//!
//! It reaches memory over [`vxe_sim::bus`]: the system's, by addresses that the DMA API gave out for this
//! device, and the device's own.
//!
//! Nothing here tries to be forgiving. A page table entry that is gone while its translation is
//! still in the TLB is used on; memory that was freed under a mapping is accessed, and KASAN or the
//! bus says so; dwords that are no command stop the batch.
//!
//! Lock order: TLB set → page table; the node pool of a page table alone. All are spinlocks, none is
//! held when a method returns, so a driver may call from under any lock that allows spinlocks.

mod address_space;
mod command;
mod copy;
mod engine;
mod expected;
mod page_table;
#[cfg(CONFIG_KUNIT = "y")]
mod tests;
mod tlb;

pub(crate) use address_space::AddressSpace;
pub(crate) use copy::{CopyEngine, Run};
pub(crate) use engine::{Context, EngineError, Outcome};
pub(crate) use page_table::{Access, PteFlag, PteFlags, Staged, PAGE_SIZE};
pub(crate) use vxe_sim::bus::{
    Bus,
    Target, //
};
