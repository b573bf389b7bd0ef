// SPDX-License-Identifier: GPL-2.0

//! A GPU with some memory, for tests.

use super::super::{address_space::AccessError, *};
use core::cell::Cell;
use kernel::{
    faux,
    page::Page,
    prelude::*,
    sync::{
        atomic::{Atomic, AtomicFlag, Relaxed},
        Arc, //
    },
};
use vxe_sim::{
    device_ram::DeviceRam,
    dma_memory::page_to_phys, //
};

/// The addresses of batches and of their data.
pub(super) const BATCH: u64 = 0x10_0000;
pub(super) const DATA: u64 = 0x7fff_ffe0_0000;

/// The unit in which the device's own memory is granted, in bytes: a page of the CPU, which
/// consists of pages of the GPU.
pub(super) const FRAME: u64 = kernel::page::PAGE_SIZE as u64;

/// The size of the device's own memory, in bytes.
pub(super) const VRAM: u64 = 8 * FRAME;

pub(super) const END: u32 = 0x0500_0000;
pub(super) const STORE: u32 = 0x1000_0002;
pub(super) const INC: u32 = 0x1780_0501;
pub(super) const DEC: u32 = 0x1780_0601;
pub(super) const COPY_BYTES: u32 = 0x5680_0008;
pub(super) const COPY_MATRIX: u32 = 0x5682_0008;
pub(super) const COPY_PAGES: u32 = 0x5688_0008;

/// Announces in the log that refused accesses are expected while this exists. At other times they
/// indicate a bug of the driver, and fail the test run (tools/guest/klog.py).
#[must_use]
pub(super) struct ExpectRefusals(());

impl ExpectRefusals {
    pub(super) fn new() -> Self {
        pr_info!("klog: expect refused-access\n");
        Self(())
    }
}

impl Drop for ExpectRefusals {
    fn drop(&mut self) {
        pr_info!("klog: end refused-access\n");
    }
}

/// An address space on a device of its own, and some zeroed pages.
pub(super) struct Bench {
    pub(super) aspace: Arc<AddressSpace>,
    pub(super) bus: Arc<Bus>,
    pub(super) pages: KVec<Page>,
    pub(super) vram: Arc<DeviceRam>,
    pub(super) device: faux::Registration,
    pub(super) run: AtomicFlag,
    /// How many times batches woke threads.
    pub(super) interrupts: Atomic<u32>,
}

impl Bench {
    pub(super) fn new(va_bits: u32, count: usize) -> Result<Self> {
        let device = faux::Registration::new(c"vxe-gpu-kunit", None)?;
        let faux: &faux::Device<kernel::device::Bound> = device.as_ref();
        let vram = Arc::new(DeviceRam::new(VRAM)?, GFP_KERNEL)?;
        let bus = Bus::new(faux.as_ref(), Some(vram.clone()))?;
        let mut pages = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            pages.push(Page::alloc_page(GFP_KERNEL | __GFP_ZERO)?, GFP_KERNEL)?;
        }
        Ok(Self {
            aspace: AddressSpace::new(bus.clone(), va_bits)?,
            bus,
            pages,
            vram,
            device,
            run: AtomicFlag::new(false),
            interrupts: Atomic::new(0),
        })
    }

    /// Returns the bus target of a page. The device has no IOMMU.
    pub(super) fn target(&self, page: usize) -> Result<Target> {
        Ok(Target::System(page_to_phys(
            self.pages.get(page).ok_or(EINVAL)?,
        )))
    }

    pub(super) fn map(&self, va: u64, page: usize, flags: PteFlags) -> Result {
        let mut staged = self.aspace.stage(va, PAGE_SIZE)?;
        let target = self.target(page)?;
        self.aspace
            .map(&mut staged, va, PAGE_SIZE, target, flags)
            .map(|_| ())
    }

    /// Maps all pages from `va` on for all kinds of access.
    pub(super) fn map_all(&self, va: u64) -> Result {
        for page in 0..self.pages.len() {
            let va = va + page as u64 * PAGE_SIZE;
            self.map(va, page, PteFlag::Writable | PteFlag::Atomic)?;
        }
        Ok(())
    }

    pub(super) fn peek(&self, page: usize, offset: u64) -> Result<u32> {
        let mut word = [0; 4];
        self.bus
            .read(self.target(page)?.offset(offset), &mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    pub(super) fn poke(&self, page: usize, offset: u64, data: &[u8]) -> Result {
        self.bus.write(self.target(page)?.offset(offset), data)
    }

    pub(super) fn read_u32(&self, va: u64) -> Result<u32, AccessError> {
        let mut word = [0; 4];
        self.aspace.read(va, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    /// Writes a batch to the start of a page.
    pub(super) fn load(&self, page: usize, batch: &[u32]) -> Result {
        for (i, dword) in (0u64..).zip(batch) {
            self.poke(page, i * 4, &dword.to_le_bytes())?;
        }
        Ok(())
    }

    /// Runs the batch at `va`.
    pub(super) fn run(&self, faults: &dyn FaultHandler, va: u64) -> Result<(), EngineError> {
        self.finish(faults, |context| context.start(va))
    }

    /// Writes a fence.
    pub(super) fn store(
        &self,
        faults: &dyn FaultHandler,
        addr: u64,
        value: u64,
    ) -> Result<(), EngineError> {
        self.finish(faults, |context| context.start_store(addr, value))
    }

    /// Runs what `start` starts to completion, a step at a time.
    fn finish(
        &self,
        faults: &dyn FaultHandler,
        start: impl FnOnce(&mut EngineContext),
    ) -> Result<(), EngineError> {
        // No test expects a failed allocation, so any error will do.
        let mut context = EngineContext::new().map_err(|_| EngineError::Stopped)?;
        start(&mut context);
        loop {
            match context.run(&self.aspace, &self.run, || true) {
                Outcome::Done => return Ok(()),
                Outcome::Yielded => {}
                Outcome::Interrupt => self.interrupts.add(1, Relaxed),
                Outcome::Waiting => faults.waiting().map_err(|_| EngineError::Stopped)?,
                Outcome::Fault { addr, access } => {
                    faults
                        .fault(addr, access)
                        .map_err(|error| EngineError::Fault {
                            addr,
                            access,
                            error,
                        })?;
                }
                Outcome::Failed(error) => return Err(error),
            }
        }
    }
}

/// Services the page faults of an address space.
pub(super) trait FaultHandler {
    /// Maps the page for the access, which is then repeated. An error fails the batch.
    fn fault(&self, addr: u64, access: Access) -> Result;

    /// The batch waits for a condition. An error ends the batch.
    fn waiting(&self) -> Result {
        Err(EAGAIN)
    }
}

/// Services no fault.
pub(super) struct NoFaults;

impl FaultHandler for NoFaults {
    fn fault(&self, _addr: u64, _access: Access) -> Result {
        Err(EFAULT)
    }
}

/// Maps pages on demand.
pub(super) struct OnDemand<'a> {
    pub(super) bench: &'a Bench,
    pub(super) base: u64,
    pub(super) count: Cell<u32>,
}

impl FaultHandler for OnDemand<'_> {
    fn fault(&self, addr: u64, access: Access) -> Result {
        self.count.set(self.count.get() + 1);
        let page = addr.checked_sub(self.base).ok_or(EFAULT)? / PAGE_SIZE;
        let flags = match access {
            Access::Read => PteFlags::empty(),
            Access::Write => PteFlag::Writable.into(),
            Access::Atomic => PteFlag::Writable | PteFlag::Atomic,
        };
        let va = self.base + page * PAGE_SIZE;
        self.bench.map(va, page as usize, flags)
    }
}

/// Reports success for each fault, but only calls a closure.
pub(super) struct Claims<F: Fn()>(pub(super) F);

impl<F: Fn()> FaultHandler for Claims<F> {
    fn fault(&self, _addr: u64, _access: Access) -> Result {
        (self.0)();
        Ok(())
    }
}

pub(super) fn low(addr: u64) -> u32 {
    addr as u32
}

pub(super) fn high(addr: u64) -> u32 {
    (addr >> 32) as u32
}

pub(super) fn copy(
    header: u32,
    src: u64,
    dst: u64,
    width: u32,
    height: u32,
    pitches: [u32; 2],
) -> [u32; 10] {
    let [src_pitch, dst_pitch] = pitches;
    [
        header,
        width - 1,
        height - 1,
        src_pitch - 1,
        dst_pitch - 1,
        low(src),
        high(src),
        low(dst),
        high(dst),
        0,
    ]
}
