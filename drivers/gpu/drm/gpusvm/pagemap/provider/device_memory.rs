// SPDX-License-Identifier: GPL-2.0

//! A provider's memory as its driver has it: makes it, and moves what processes have there.

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
        memcg::ActiveMemcg,
        memremap::DevPagemap, //
    }, //
};

/// A device's memory, with a provider. A counted reference.
pub struct DeviceMemory<P: Provider>(pub(super) PagemapRef, pub(super) PhantomData<P>);

impl<P: Provider> Clone for DeviceMemory<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<P: Provider> DeviceMemory<P> {
    /// The memory of `device`, `size` bytes. As long as there are references the device and its
    /// driver's module are kept. The provider is dropped after the last, by a work item; one that
    /// was put into a cache when that has no use for it any more.
    ///
    /// `owner` says who may be mapped the pages, and is only compared: that of a group of devices
    /// (see [`Member`](crate::pagemap::Member)), which the provider keeps, or none for nobody else.
    ///
    /// Sleeps. Fails with `ENODEV` when the module is on its way out, as [`DevPagemap::new`] says,
    /// and with `ENOMEM`.
    pub fn new(
        device: &DrmDevice,
        size: usize,
        owner: Option<OwnerId>,
        provider: P,
    ) -> Result<Self> {
        let owner = owner.map(OwnerId::as_non_null);
        // SAFETY: The operations are all that there are.
        let memory = unsafe { DevPagemap::new(size, owner, &fault::OPS) }?;
        let claims = Claims::new(memory.frames().len())?;
        let detaching = Detaching::new()?;
        let raw = memory.as_raw();
        let inner = KBox::try_pin_init(
            try_pin_init!(Inner {
                // SAFETY: The object is in a box that `destroy` frees; `memory` is in it, too; the
                // operations are for it, and constant.
                pagemap <- unsafe { Pagemap::new(device, raw, &Inner::<P>::OPS) },
                memory,
                claims,
                detaching,
                provider,
            }? Error),
            GFP_KERNEL,
        )?;
        // SAFETY: The object stays where it is until it is destroyed; its first part is the pagemap,
        // whose first reference this is.
        unsafe {
            let inner = KBox::into_raw(Pin::into_inner_unchecked(inner));
            let pagemap = NonNull::new_unchecked(inner).cast();
            Ok(Self(ARef::from_raw(pagemap), PhantomData))
        }
    }

    /// The reference without its type.
    pub(in crate::pagemap) fn into_pagemap(self) -> PagemapRef {
        self.0
    }

    /// The reference with its type.
    ///
    /// # Safety
    ///
    /// The pagemap must have been made by [`new`](Self::new) of this very type.
    pub(in crate::pagemap) unsafe fn from_pagemap(pagemap: PagemapRef) -> Self {
        Self(pagemap, PhantomData)
    }

    pub(super) fn inner(&self) -> &Inner<P> {
        // SAFETY: The pagemap was made by `new()`, and is referred to.
        unsafe { Inner::of(self.0.as_raw()) }
    }

    /// The provider.
    pub fn provider(&self) -> &P {
        &self.inner().provider
    }

    /// The memory as others see it.
    pub fn pagemap(&self) -> &Pagemap {
        &self.0
    }

    /// How many pages there are, at least as many as were asked for.
    pub fn pages(&self) -> usize {
        self.inner().memory.frames().len()
    }

    /// Moves what is in `span` of a process to the device, in RAM or on other devices, as far as it can;
    /// see [`populate_from`](Self::populate_from).
    pub fn populate(&self, mm: &Mm, span: Range<usize>, timeslice_ms: u32) -> Result<Moved> {
        self.populate_from(Sources::Devices, mm, span, timeslice_ms)
    }

    /// Moves what is in `span` of a process to the device, as far as it can, and has it stay there
    /// for `timeslice_ms` milliseconds even if the CPU touches it. `sources` says where it may come
    /// from; after a migration from [all](Sources::All), what moved of one VMA is in one allocation.
    ///
    /// What cannot move is not an error, nor is a place without a VMA: [`Moved`] tells. Sleeps; takes the
    /// mmap lock, but holds it not, nor any page, while the provider [makes room](Provider::allocate); calls MMU
    /// notifiers. What one migration moves of a VMA is evicted, and brought back by a
    /// touch, together.
    ///
    /// Errors, after which the part of the VMA that failed is where it was:
    /// - `EFAULT`: the process is gone or exiting, or the device cannot reach a page;
    /// - `EINVAL`: the span is not page-aligned;
    /// - `ENOMEM`, or an error of the provider's.
    pub fn populate_from(
        &self,
        sources: Sources,
        mm: &Mm,
        span: Range<usize>,
        timeslice_ms: u32,
    ) -> Result<Moved> {
        // What is kept of the memory as long as the process has it is charged to that process, whoever
        // moves its pages: another that has its VM, say. What goes for it needs none of that.
        let _charged = live_mm::charge(mm)?;
        let process = Process::Free(mm);
        self.inner().populate(&process, span, timeslice_ms, sources)
    }
}

/// A process whose pages are to move.
enum Process<'a> {
    /// Its mmap lock is taken when it is needed.
    Free(&'a Mm),
    /// Its mmap lock is held all the time, by a caller of C's.
    Locked(&'a MmWithUser),
}

impl Process<'_> {
    fn mm(&self) -> &Mm {
        match self {
            Self::Free(mm) => mm,
            Self::Locked(mm) => mm,
        }
    }

    /// Runs `f` with the mmap lock held, for the first VMA that overlaps `span`; none if there is no VMA. Fails
    /// with `EFAULT` if the process is gone or exiting, with `ENOMEM`, and as `f` does.
    fn with_vma<R>(
        &self,
        span: &Range<usize>,
        f: impl FnOnce(&VmaRef) -> Result<R>,
    ) -> Result<Option<R>> {
        match self {
            Self::Free(mm) => {
                let mm = live_mm::get(mm, span.len() >> PAGE_SHIFT)?;
                let mmap = mm.mmap_read_lock();
                first_vma(&mmap, &mm, span.clone()).map(f).transpose()
            }
            // SAFETY: The lock is held, by the caller of `populate_locked()`.
            Self::Locked(mm) => unsafe { first_vma_locked(mm, span.clone()) }
                .map(f)
                .transpose(),
        }
    }
}

impl<P: Provider> Inner<P> {
    /// As [`DeviceMemory::populate_from`], but for the mmap lock: it is held all the time.
    ///
    /// # Safety
    ///
    /// The mmap lock of `mm` must be held.
    pub(super) unsafe fn populate_locked(
        &self,
        mm: &MmWithUser,
        span: Range<usize>,
        timeslice_ms: u32,
        sources: Sources,
    ) -> Result<Moved> {
        let _charged = ActiveMemcg::of(mm);
        self.populate(&Process::Locked(mm), span, timeslice_ms, sources)
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

    /// Moves what is in the first VMA that overlaps `rest`, which is what is behind it then. None if there is no
    /// VMA.
    fn populate_first(
        &self,
        process: &Process<'_>,
        rest: &mut Range<usize>,
        options: Options,
    ) -> Result<Option<Moved>> {
        let mut made: Option<Arc<Block<P>>> = None;
        let mut allocate = |wait, size, request: &AllocRequest<'_>, frames: &mut [usize]| {
            let block = Block::allocate(self, request, frames, size, wait)?;
            made = block.clone();
            Ok(block.map(Block::into_devmem))
        };
        let first = process.with_vma(rest, |vma| {
            let part = vma.start().max(rest.start)..vma.end().min(rest.end);
            let size = part.len();
            let mut migration = Move::new(&self.pagemap, options, part.clone())?;
            // SAFETY: The mmap lock is held; what is allocated is as it must be.
            let moved = unsafe {
                migration.run(vma, &mut |request, frames| {
                    allocate(Wait::MustNot, size, request, frames)
                })
            }?;
            Ok((part, migration, moved))
        })?;
        let Some((part, mut migration, moved)) = first else {
            return Ok(None);
        };
        rest.start = part.end;
        let moved = match moved {
            Some(moved) => moved,
            None => {
                let size = part.len();
                // SAFETY: What is allocated is as it must be.
                unsafe {
                    migration.allocate(process.mm(), &mut |request, frames| {
                        allocate(Wait::May, size, request, frames)
                    })
                }?;
                let again = process.with_vma(&part, |vma| {
                    if vma.start() > part.start || vma.end() < part.end {
                        return Ok(None);
                    }
                    // SAFETY: The mmap lock is held; nothing is allocated.
                    unsafe { migration.run(vma, &mut |_, _| Ok(None)) }
                })?;
                again.flatten().unwrap_or(migration.raced())
            }
        };
        // The provider is not told that the memory is free before it is told that it is in use, as the
        // reference that the migration holds is the folios'.
        if let (Some(block), true) = (made, moved.moved != 0) {
            self.provider.attached(block);
        }
        drop(migration);
        Ok(Some(moved))
    }
}
