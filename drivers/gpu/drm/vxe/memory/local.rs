// SPDX-License-Identifier: GPL-2.0

//! The gpusvm core's [`Provider`] for the device's memory.

use super::{
    residents::ResidentEntry,
    Policy,
    OWN,
    PEER, //
};
use crate::{
    driver::Device,
    gpu::{
        CopyRun,
        Target, //
    },
    stats::CopyStats,
    vram::{
        Allocation,
        Vram, //
    }, //
};
use gpusvm::{
    pagemap::{
        dmem,
        provider::{
            self,
            Copy,
            CopyOp,
            MapRequest,
            Provider, //
        },
        to_device::AllocRequest, //
    },
    Protocol, //
};
use kernel::{
    alloc::Flags,
    fmt,
    page::PAGE_SIZE,
    prelude::*,
    sizes::SZ_2M,
    sync::{
        aref::ARef,
        Arc, //
    },
    task::Pid, //
};

use kernel_ext::cgroup::dmem::Charge;
use vxe_sim::port::Port;

/// Bytes of a page, as a difference of addresses.
const PAGE: u64 = PAGE_SIZE as u64;

/// The provider of a device's memory. Holds a reference to the device while the pagemap exists.
pub(crate) struct Local {
    dev: ARef<Device>,
    vram: Arc<Vram>,
    port: Arc<Port>,
}

impl Local {
    pub(super) fn new(dev: &Device, vram: &Arc<Vram>, port: &Arc<Port>) -> Self {
        Self {
            dev: dev.into(),
            vram: vram.clone(),
            port: port.clone(),
        }
    }

    /// Allocates one piece of `1 << order` pages, or `pages` single ones. Fails with `ENOSPC`
    /// without room.
    fn get(&self, order: u32, pages: usize, flags: Flags) -> Result<Allocation> {
        // A huge page of the CPU's is a large one of the device where both have 2 MiB.
        if PAGE << order == SZ_2M as u64 {
            if let Ok(large) = self.vram.allocate_large(flags) {
                return Ok(large);
            }
        }
        // Without a large page the core copies these pages one at a time.
        self.vram.allocate(pages as u64 * PAGE, flags)
    }

    /// Allocates the parts of a block for a request with `get`: large pieces, and runs of single
    /// pages. Fails as `get` does, and with `ENOMEM`.
    fn parts(
        request: &AllocRequest<'_>,
        flags: Flags,
        get: impl Fn(u32, usize) -> Result<Allocation>,
    ) -> Result<KVVec<Part>> {
        let mut parts = KVVec::new();
        let mut first = 0;
        let mut orders = request.orders().peekable();
        while let Some(order) = orders.next() {
            let mut pages = 1 << order;
            while order == 0 && orders.next_if_eq(&0).is_some() {
                pages += 1;
            }
            let allocation = get(order, pages)?;
            parts.push(Part { first, allocation }, flags)?;
            first += pages;
        }
        Ok(parts)
    }

    fn block(
        &self,
        request: &AllocRequest<'_>,
        entry: ResidentEntry,
        charge: Charge,
        parts: KVVec<Part>,
    ) -> VramBlock {
        VramBlock {
            parts,
            entry,
            dev: self.dev.clone(),
            charge,
            pid: dmem::pid(request.mm()),
        }
    }

    /// Takes a charge for `pages` from the calling thread's precharge, if that is large enough.
    fn precharged(&self, pages: u32) -> Option<Charge> {
        self.dev.memory.precharges.take(u64::from(pages) * PAGE)
    }
}

/// A part of a block.
struct Part {
    /// The index of its first page in the block.
    first: usize,
    allocation: Allocation,
}

/// The device memory of one migration.
pub(crate) struct VramBlock {
    parts: KVVec<Part>,
    entry: ResidentEntry,
    dev: ARef<Device>,
    /// Uncharged after the memory is freed.
    charge: Charge,
    /// The process whose pages were migrated, if known.
    pid: Option<Pid>,
}

impl VramBlock {
    /// Returns the charge of the block.
    pub(super) fn charge(&self) -> &Charge {
        &self.charge
    }

    /// Returns the block's entry in the list of residents.
    pub(super) fn entry(&self) -> &ResidentEntry {
        &self.entry
    }
}

impl fmt::Display for VramBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.parts.first();
        let at = first.and_then(|part| part.allocation.addr(0));
        let size: u64 = self.parts.iter().map(|part| part.allocation.size()).sum();
        write!(f, "{} KiB at {:#x}", size / 1024, at.unwrap_or_default())?;
        match self.pid {
            Some(pid) => write!(f, " of process {pid}"),
            None => Ok(()),
        }
    }
}

impl Drop for VramBlock {
    fn drop(&mut self) {
        // Free the memory before the block leaves the list: `LocalMemory::close()` waits for that.
        self.parts = KVVec::new();
        self.dev.memory.residents.remove(&self.entry);
    }
}

impl Provider for Local {
    type Memory = VramBlock;

    fn try_allocate(&self, request: &AllocRequest<'_>) -> Option<VramBlock> {
        let memory = &self.dev.memory;
        let flags = GFP_NOWAIT | (GFP_KERNEL_ACCOUNT & !GFP_KERNEL);
        let pages = u32::try_from(request.pages()).ok()?;
        let entry = memory.residents.add(flags).ok()?;
        let parts = Self::parts(request, flags, |order, pages| self.get(order, pages, flags));
        // The charge comes last: a charge taken from a precharge cannot be put back.
        let made = parts.ok().and_then(|parts| {
            let own = || memory.try_charge_own(request.mm(), pages);
            let charge = self.precharged(pages).or_else(own)?;
            Some((charge, parts))
        });
        let Some((charge, parts)) = made else {
            memory.residents.remove(&entry);
            return None;
        };
        Some(self.block(request, entry, charge, parts))
    }

    fn allocate(&self, request: &AllocRequest<'_>) -> Result<VramBlock> {
        let (dev, memory) = (&self.dev, &self.dev.memory);
        let flags = GFP_KERNEL_ACCOUNT;
        let pages = u32::try_from(request.pages())?;
        // Listed before this waits for anything: `LocalMemory::close()` waits for listed blocks, so
        // the device stays bound.
        let entry = memory.residents.add(flags)?;
        let charge = match self.precharged(pages) {
            Some(charge) => Ok(charge),
            None => memory.charge(dev, &Policy::PAGES, |region| {
                dmem::charge(request.mm(), region, pages)
            }),
        };
        let made = charge.and_then(|charge| {
            let parts = Self::parts(request, flags, |order, pages| {
                memory.make_room(dev, &Policy::PAGES, &charge, || {
                    self.get(order, pages, flags)
                })
            })?;
            Ok((charge, parts))
        });
        let (charge, parts) = made.inspect_err(|_| memory.residents.remove(&entry))?;
        Ok(self.block(request, entry, charge, parts))
    }

    fn page(block: &VramBlock, index: usize) -> usize {
        let behind = block.parts.partition_point(|part| part.first <= index);
        let addr = behind
            .checked_sub(1)
            .and_then(|at| block.parts.get(at))
            .and_then(|part| part.allocation.addr((index - part.first) as u64 * PAGE));
        // The core refuses a page outside of the memory.
        addr.and_then(|addr| usize::try_from(addr / PAGE).ok())
            .unwrap_or(usize::MAX)
    }

    fn copy(&self, copy: &Copy<'_>) -> Result {
        let mut stats = CopyStats::begin(&self.dev.stats, copy.is_to_device());
        let runs = copy.ops().map(|piece| match piece {
            CopyOp::Copy { page, other } => {
                let vram = target(OWN, page as u64 * PAGE);
                let other_side = target(other.proto(), other.addr());
                let len = other.size() as u64;
                stats.add(page as u64 * PAGE, len);
                let (from, to) = if copy.is_to_device() {
                    (other_side, vram)
                } else {
                    (vram, other_side)
                };
                CopyRun {
                    from: Some(from),
                    to,
                    len,
                }
            }
            CopyOp::Clear { page, pages } => CopyRun {
                from: None,
                to: target(OWN, page as u64 * PAGE),
                len: pages as u64 * PAGE,
            },
        });
        self.dev.copies.run(runs)?;
        stats.finish();
        Ok(())
    }

    fn map(&self, request: &MapRequest<'_>) -> Result<(u64, Protocol)> {
        let addr = request.page as u64 * PAGE;
        if request.is_own {
            return Ok((addr, OWN));
        }
        let window = self.port.data().as_ref().ok_or(EOPNOTSUPP)?;
        Ok((window.addr(addr), PEER))
    }

    fn attached(&self, handle: Arc<provider::Block<Self>>) {
        let residents = &self.dev.memory.residents;
        // `handle` moves into the list; the clone keeps the block for the borrow of its entry.
        let block = handle.clone();
        residents.attach(&block.memory().entry, handle);
    }

    fn detached(&self, block: &VramBlock) {
        self.dev.memory.residents.detach(&block.entry);
    }
}

/// Returns the bus target of an address that the core returned.
pub(crate) fn target(proto: Protocol, addr: u64) -> Target {
    match proto {
        OWN => Target::Vram(addr),
        PEER => Target::Peer(addr),
        _ => Target::System(addr),
    }
}
