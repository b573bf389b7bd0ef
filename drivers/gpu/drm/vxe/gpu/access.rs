// SPDX-License-Identifier: GPL-2.0

//! The memory accesses of a batch, each of which may fault.

use super::{
    address_space::{AccessError, AddressSpace},
    engine::{EngineError, StepError},
    page_table::Access, //
};
use kernel::{
    prelude::*,
    sync::atomic::{AtomicFlag, Relaxed}, //
};

/// How many times an access may fault, with each fault serviced, before the batch fails.
///
/// The page may be invalidated again before the access is repeated, so one attempt is not enough.
/// But each attempt costs a whole fault, and thousands in a row are not a race any more.
const MAX_TRIES: u32 = 4096;

/// The memory accesses of one step.
pub(super) struct Accessor<'a> {
    aspace: &'a AddressSpace,
    stop: &'a AtomicFlag,
    /// How often the next access has faulted.
    faults: &'a mut u32,
}

impl<'a> Accessor<'a> {
    /// Accesses `aspace` until `stop` is set. `faults` is how often the next access has faulted.
    pub(super) fn new(aspace: &'a AddressSpace, stop: &'a AtomicFlag, faults: &'a mut u32) -> Self {
        Self {
            aspace,
            stop,
            faults,
        }
    }

    /// Fails if the batch was stopped.
    pub(super) fn check_stop(&self) -> Result<(), EngineError> {
        if self.stop.load(Relaxed) {
            return Err(EngineError::Stopped);
        }
        Ok(())
    }

    /// Returns the virtual address of the `len` bytes at `addr` of a command.
    pub(super) fn address(&self, addr: u64, len: u64) -> Result<u64, EngineError> {
        let span = self.aspace.span(addr, len);
        Ok(span.ok_or(EngineError::Address { addr })?.start)
    }

    /// Tries an access once.
    fn access(
        &mut self,
        va: u64,
        access: Access,
        attempt: impl FnOnce(&AddressSpace) -> Result<(), AccessError>,
    ) -> Result<(), StepError> {
        self.check_stop()?;
        match attempt(self.aspace) {
            Ok(()) => {
                *self.faults = 0;
                Ok(())
            }
            Err(AccessError::Bus(error)) => Err(EngineError::Bus { addr: va, error }.into()),
            Err(AccessError::Fault) if *self.faults >= MAX_TRIES => {
                Err(EngineError::NoProgress { addr: va, access }.into())
            }
            Err(AccessError::Fault) => {
                // Does not overflow: it is less than `MAX_TRIES`.
                *self.faults += 1;
                Err(StepError::Fault { addr: va, access })
            }
        }
    }

    /// Reads from a page.
    pub(super) fn read(&mut self, va: u64, buf: &mut [u8]) -> Result<(), StepError> {
        self.access(va, Access::Read, |aspace| aspace.read(va, buf))
    }

    /// Writes to a page.
    pub(super) fn write(&mut self, va: u64, data: &[u8]) -> Result<(), StepError> {
        self.access(va, Access::Write, |aspace| aspace.write(va, data))
    }

    /// Loads a dword from an aligned address.
    pub(super) fn load_u32(&mut self, addr: u64) -> Result<u32, StepError> {
        let va = self.address(addr, 4)?;
        let mut value = 0;
        self.access(va, Access::Read, |aspace| {
            value = aspace.load_u32(va)?;
            Ok(())
        })?;
        Ok(value)
    }

    /// Stores a dword at an aligned address.
    pub(super) fn store_u32(&mut self, addr: u64, value: u32) -> Result<(), StepError> {
        let va = self.address(addr, 4)?;
        self.access(va, Access::Write, |aspace| aspace.store_u32(va, value))
    }

    /// Stores a qword.
    pub(super) fn store_u64(&mut self, addr: u64, value: u64) -> Result<(), StepError> {
        if addr % 8 != 0 {
            return Err(EngineError::Misaligned { addr }.into());
        }
        let va = self.address(addr, 8)?;
        self.access(va, Access::Write, |aspace| aspace.store_u64(va, value))
    }

    /// Adds to a dword at an aligned address, atomically.
    pub(super) fn add_u32(&mut self, addr: u64, delta: u32) -> Result<(), StepError> {
        let va = self.address(addr, 4)?;
        self.access(va, Access::Atomic, |aspace| aspace.add_u32(va, delta))
    }
}
