// SPDX-License-Identifier: GPL-2.0

//! GPU shared virtual memory for programs: a safe wrapper of the Xe ioctls.
//!
//! A [`Device`] is an open DRM node. A [`Vm`] is an address space of its GPU; one made by
//! [`Vm::mirrored`] has the process's own addresses, so that a pointer means the same to both. An
//! [`ExecQueue`] runs a [`Batch`] of commands on it:
//!
//! ```no_run
//! use std::sync::atomic::{AtomicU32, Ordering};
//! use vxe_client::{Batch, Device, ExecQueue, Vm};
//!
//! let queue = ExecQueue::new(&Vm::mirrored(&Device::open()?)?)?;
//! let answer = AtomicU32::new(0); // on the stack
//! let mut batch = Batch::new();
//! batch.store(&answer, 41).increment(&answer);
//! queue.run(&batch)?;
//! assert_eq!(answer.load(Ordering::Relaxed), 42);
//! # Ok::<(), vxe_client::Error>(())
//! ```
//!
//! # What is safe
//!
//! The GPU writes memory behind the compiler's back, possibly any memory of the process. Safe code
//! can only have it write atomics, which the language allows to change at any moment, and only
//! while they are borrowed: [`ExecQueue::run`] takes a borrowing [`Batch`] and returns when the GPU
//! is done with it. Work on raw addresses, in the background, or through structs of one's own
//! making ([`sys`], [`Device::call`]) is `unsafe`, and the caller says why it is sound.
//!
//! # What is dropped is gone
//!
//! Devices close, VMs and queues are destroyed, buffers closed and mappings unmapped when their
//! last owner is dropped. Errors of that are ignored: there is nobody left to tell.

#![deny(missing_docs)]

pub mod batch;
mod bind;
mod bo;
mod device;
mod error;
mod fence;
mod madvise;
pub mod memory;
mod query;
mod queue;
pub mod report;
pub mod request;
pub mod stats;
pub mod sys;
mod vm;

pub use batch::{Batch, Commands};
pub use bind::Bind;
pub use bo::Bo;
pub use device::Device;
pub use error::{errno_name, Error, Result};
pub use fence::{monotonic_now, Fence, Timeout, Wait, WaitOp};
pub use madvise::{Advice, AtomicAccess, Location, Migrate};
pub use memory::Mapping;
pub use query::{Config, Query};
pub use queue::ExecQueue;
pub use report::Report;
pub use request::Request;
pub use stats::Stats;
pub use vm::Vm;
