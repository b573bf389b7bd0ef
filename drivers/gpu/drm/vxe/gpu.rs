// SPDX-License-Identifier: GPL-2.0

//! The GPU: a software model of the hardware.
//!
//! The GPU knows nothing of processes, VMs or ioctls. A driver provides translations and batches,
//! and handles faults:
//!
//! ```text
//!   engine         runs the commands of batches; reports faults to the driver
//!     fetcher        reads the dwords of a batch, and follows its jumps
//!     command        decodes them
//!     registers alu  the registers of a context, and what computes with them
//!     rows           copies and fills, in pieces
//!     access         accesses to memory, which may fault
//!     clock          time-stamps
//!   address_space  the memory that a batch can access
//!     stale_span     changes of it by the driver, and what has to be flushed after them
//!     tlb            recently used translations, until they are invalidated
//!     page_table     translations, changed in place
//!     expected       pages whose faults were serviced and which were not accessed since
//!   copy           copies between the device's memory and system memory
//! ```
//!
//! It accesses memory through [`vxe_sim::bus`]: system memory at DMA addresses that the DMA API
//! mapped for this device, and the device's own memory.
//!
//! The model does not hide driver bugs. A cleared page table entry whose translation is still in
//! the TLB is used; memory freed under a mapping is accessed, and KASAN or the bus reports it; an
//! invalid command stops the batch.
//!
//! Lock order: TLB set → page table; the node pool of a page table nests in nothing and nothing in
//! it. All are spinlocks, and none is held when a method returns, so a driver may call the methods
//! under any lock that allows spinlocks.

mod access;
mod address_space;
mod alu;
mod clock;
mod command;
mod copy;
mod engine;
mod expected;
mod fetcher;
mod page_table;
mod registers;
mod rows;
mod stale_span;
#[cfg(CONFIG_KUNIT = "y")]
mod tests;
mod tlb;

pub(crate) use address_space::AddressSpace;
pub(crate) use clock::{now_ns, ticks, timestamp, REFERENCE_CLOCK};
pub(crate) use copy::{CopyEngine, CopyRun};
pub(crate) use engine::{EngineContext, EngineError, Outcome};
pub(crate) use page_table::{Access, PteFlag, PteFlags, Staged, PAGE_SIZE};
pub(crate) use stale_span::StaleSpan;
pub(crate) use vxe_sim::bus::{
    Bus,
    Target, //
};
