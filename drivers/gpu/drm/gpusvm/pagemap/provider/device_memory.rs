// SPDX-License-Identifier: GPL-2.0

//! The memory of a device, as its driver uses it: created with a provider, and populated with pages of processes.

use super::{
    super::{
        claims::Claims,
        detach::Detaching,
        drm_pagemap::{Pagemap, PagemapRef},
        fault,
        owner::OwnerId,
        to_device::{AllocRequest, Move, Moved, Options, Sources}, //
    },
    block::{
        Block,
        Wait, //
    },
    inner::Inner,
    Provider, //
};
use crate::scan::{first_vma, first_vma_locked};
use core::{marker::PhantomData, ops::Range, ptr::NonNull};
use kernel::{
    mm::{virt::VmaRef, Mm, MmWithUser},
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
    time::msecs_to_jiffies, //
};
use kernel_ext::{
    drm::device::DrmDevice,
    mm::{
        live_mm,
        memcg::Memcg,
        memremap::DevPagemap,
        mmap_lock::MmapReadGuard, //
    }, //
};

/// A counted reference to a device's memory with its provider.
pub struct DeviceMemory<P: Provider>(pub(super) PagemapRef, pub(super) PhantomData<P>);

impl<P: Provider> Clone for DeviceMemory<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<P: Provider> DeviceMemory<P> {
    /// Creates the pagemap for `size` bytes of memory of `device`. The pagemap keeps the device and its driver's module
    /// while it has references. After the last one is dropped, a work item drops the provider; if the pagemap is in a
    /// cache, that happens when the cache frees it.
    ///
    /// `owner` decides which devices may map the pages, and is only compared: the owner of a group of devices (see
    /// [`Member`](crate::pagemap::Member)), whose membership the provider must keep, or none if no other device may.
    ///
    /// Sleeps. Fails with `ENODEV` if the module is being unloaded, as [`DevPagemap::new`] does, and with `ENOMEM`.
    pub fn new(
        device: &DrmDevice,
        size: usize,
        owner: Option<OwnerId>,
        provider: P,
    ) -> Result<Self> {
        let owner = owner.map(OwnerId::as_non_null);
        // SAFETY: `fault::OPS` are the operations of all pages of this core.
        let memory = unsafe { DevPagemap::new(size, owner, &fault::OPS) }?;
        let claims = Claims::new(memory.frames().len())?;
        let detaching = Detaching::new()?;
        let raw = memory.as_raw();
        let inner = KBox::try_pin_init(
            try_pin_init!(Inner {
                // SAFETY: The object is in a box that `Inner::destroy()` frees, and `memory` is in the same object.
                // `OPS` are constant, and their functions expect an `Inner<P>`.
                pagemap <- unsafe { Pagemap::new(device, raw, &Inner::<P>::OPS) },
                memory,
                claims,
                detaching,
                provider,
            }? Error),
            GFP_KERNEL,
        )?;
        // SAFETY: The object does not move until it is destroyed. The pagemap is its first field, and this is the first
        // reference to it.
        unsafe {
            let inner = KBox::into_raw(Pin::into_inner_unchecked(inner));
            let pagemap = NonNull::new_unchecked(inner).cast();
            Ok(Self(ARef::from_raw(pagemap), PhantomData))
        }
    }

    /// Converts to a reference without the provider's type.
    pub(in crate::pagemap) fn into_pagemap(self) -> PagemapRef {
        self.0
    }

    /// Converts from a reference without the provider's type.
    ///
    /// # Safety
    ///
    /// [`new`](Self::new) of this type must have created the pagemap.
    pub(in crate::pagemap) unsafe fn from_pagemap(pagemap: PagemapRef) -> Self {
        Self(pagemap, PhantomData)
    }

    pub(super) fn inner(&self) -> &Inner<P> {
        // SAFETY: `new()` created the pagemap, and `self` holds a reference.
        unsafe { Inner::of(self.0.as_raw()) }
    }

    /// Returns the provider.
    pub fn provider(&self) -> &P {
        &self.inner().provider
    }

    /// Returns the pagemap.
    pub fn pagemap(&self) -> &Pagemap {
        &self.0
    }

    /// Returns the number of pages, which is at least the requested size.
    pub fn pages(&self) -> usize {
        self.inner().memory.frames().len()
    }

    /// Migrates the pages in `span` of a process from system memory and other devices to this one, as far as possible.
    /// See [`populate_from`](Self::populate_from).
    pub fn populate(&self, mm: &Mm, span: Range<usize>, timeslice_ms: u32) -> Result<Moved> {
        self.populate_from(Sources::Devices, mm, span, timeslice_ms)
    }

    /// Migrates the pages in `span` of a process to this device, as far as possible. For `timeslice_ms` milliseconds,
    /// CPU faults do not migrate them back. `sources` selects the pages by where they are; after a migration from
    /// [all](Sources::All), all migrated pages of one VMA are in one block.
    ///
    /// Pages that cannot be migrated are not an error, nor is a part of the span without a VMA: see [`Moved`]. Sleeps;
    /// calls MMU notifiers. Takes the mmap lock, but neither holds it nor isolates pages while the provider [may
    /// wait](Provider::allocate). All pages of a VMA that one migration moves are evicted together, and migrated back
    /// together by a CPU fault.
    ///
    /// Errors, after which the pages of the VMA concerned are where they were:
    /// - `EFAULT`: the process has exited or is exiting, or the device cannot reach a page;
    /// - `EINTR`: the thread is being killed;
    /// - `EINVAL`: the span is not page-aligned;
    /// - `ENOMEM`, or an error of the provider's.
    pub fn populate_from(
        &self,
        sources: Sources,
        mm: &Mm,
        span: Range<usize>,
        timeslice_ms: u32,
    ) -> Result<Moved> {
        // Kernel memory that lives as long as the block is charged to the process whose pages are migrated, not to the
        // caller, which may be another process that uses the same VM.
        let memcg = live_mm::memcg(mm)?;
        let process = Process::Unlocked(mm);
        memcg.charge(|| self.inner().populate(&process, span, timeslice_ms, sources))
    }
}

/// A process whose pages are migrated.
enum Process<'a> {
    /// The migration takes the mmap lock when it needs it.
    Unlocked(&'a Mm),
    /// The caller, which is C code, holds the mmap lock all the time.
    Locked(&'a MmWithUser),
}

impl Process<'_> {
    fn mm(&self) -> &Mm {
        match self {
            Self::Unlocked(mm) => mm,
            Self::Locked(mm) => mm,
        }
    }

    /// Calls `f` with the mmap lock held, for the first VMA that overlaps `span`. Returns none if there is no VMA.
    /// Fails with `EFAULT` if the process has exited or is exiting, with `EINTR` if the thread is being killed, with `ENOMEM`,
    /// and as `f` does.
    fn with_vma<R>(
        &self,
        span: &Range<usize>,
        f: impl FnOnce(&VmaRef) -> Result<R>,
    ) -> Result<Option<R>> {
        match self {
            Self::Unlocked(mm) => {
                let mm = live_mm::get(mm, span.len() >> PAGE_SHIFT)?;
                let mmap = MmapReadGuard::lock_killable(&mm)?;
                first_vma(&mmap, &mm, span.clone()).map(f).transpose()
            }
            // SAFETY: The caller of `populate_locked()` holds the mmap lock.
            Self::Locked(mm) => unsafe { first_vma_locked(mm, span.clone()) }
                .map(f)
                .transpose(),
        }
    }
}

impl<P: Provider> Inner<P> {
    /// As [`DeviceMemory::populate_from`], but with the mmap lock held all the time.
    ///
    /// # Safety
    ///
    /// The caller must hold the mmap lock of `mm`.
    pub(super) unsafe fn populate_locked(
        &self,
        mm: &MmWithUser,
        span: Range<usize>,
        timeslice_ms: u32,
        sources: Sources,
    ) -> Result<Moved> {
        let process = Process::Locked(mm);
        Memcg::of(mm).charge(|| self.populate(&process, span, timeslice_ms, sources))
    }

    fn populate(
        &self,
        process: &Process<'_>,
        span: Range<usize>,
        timeslice_ms: u32,
        sources: Sources,
    ) -> Result<Moved> {
        let options = Options {
            timeslice: msecs_to_jiffies(timeslice_ms),
            sources,
        };
        let mut total = Moved::default();
        let mut rest = span;
        while !rest.is_empty() {
            match self.populate_first(process, &mut rest, options)? {
                Some(moved) => total.add(&moved),
                None => break,
            }
        }
        Ok(total)
    }

    /// Migrates the pages in the first VMA that overlaps `rest`, and sets the start of `rest` to the end of that VMA.
    /// Returns none if there is no VMA.
    fn populate_first(
        &self,
        process: &Process<'_>,
        rest: &mut Range<usize>,
        options: Options,
    ) -> Result<Option<Moved>> {
        let mut allocated: Option<Arc<Block<P>>> = None;
        let mut allocate = |wait, size, request: &AllocRequest<'_>, frames: &mut [usize]| {
            let block = Block::allocate(self, request, frames, size, wait)?;
            allocated = block.clone();
            Ok(block.map(Block::into_devmem))
        };
        let found = process.with_vma(rest, |vma| {
            let part = vma.start().max(rest.start)..vma.end().min(rest.end);
            let size = part.len();
            let mut migration = Move::new(&self.pagemap, options, part.clone())?;
            // SAFETY: The mmap lock is held. `Block::allocate()` does what `Target` says.
            let moved = unsafe {
                migration.run(vma, &mut |request, frames| {
                    allocate(Wait::MustNot, size, request, frames)
                })
            }?;
            Ok((part, migration, moved))
        })?;
        let Some((part, mut migration, moved)) = found else {
            return Ok(None);
        };
        rest.start = part.end;
        let moved = match moved {
            Some(moved) => moved,
            None => {
                let size = part.len();
                // SAFETY: `Block::allocate()` does what `Target` says.
                unsafe {
                    migration.allocate(process.mm(), &mut |request, frames| {
                        allocate(Wait::May, size, request, frames)
                    })
                }?;
                let second = process.with_vma(&part, |vma| {
                    if vma.start() > part.start || vma.end() < part.end {
                        return Ok(None);
                    }
                    // SAFETY: The mmap lock is held. The target allocates nothing.
                    unsafe { migration.run(vma, &mut |_, _| Ok(None)) }
                })?;
                second.flatten().unwrap_or(migration.raced())
            }
        };
        // `migration` is dropped after this: it holds the folios' reference, so the provider's `detached()` is called
        // only after `attached()`.
        if let (Some(block), true) = (allocated, moved.moved != 0) {
            self.provider.attached(block);
        }
        drop(migration);
        Ok(Some(moved))
    }
}
