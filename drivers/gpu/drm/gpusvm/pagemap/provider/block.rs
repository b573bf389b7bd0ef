// SPDX-License-Identifier: GPL-2.0

//! Allocations of a provider, as the migration made them that they are for.

use super::{
    super::{
        devmem::Allocation,
        drm_pagemap::PagemapRef,
        evict,
        owned::{Owned, OwnedRef},
        to_device::AllocRequest, //
    },
    inner::Inner,
    DeviceMemory,
    Provider, //
};
use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ptr::NonNull, //
};
use kernel::{
    alloc::Flags,
    prelude::*, //
};

/// Pages that are in an allocation, until it is dropped.
pub(super) struct Claim<P: Provider> {
    pagemap: DeviceMemory<P>,
    pub(super) pages: KVVec<usize>,
}

impl<P: Provider> Claim<P> {
    /// Fails with `EINVAL` as `Claims::claim()` says.
    fn new(pagemap: PagemapRef, pages: KVVec<usize>) -> Result<Self> {
        let pagemap = DeviceMemory(pagemap, PhantomData);
        pagemap.inner().claims.claim(&pages)?;
        Ok(Self { pagemap, pages })
    }

    /// The frames of the pages.
    pub(super) fn frames(&self) -> impl Iterator<Item = usize> + '_ {
        let base = self.pagemap.inner().memory.frames().start;
        self.pages.iter().map(move |page| base + page)
    }
}

impl<P: Provider> Drop for Claim<P> {
    fn drop(&mut self) {
        self.pagemap.inner().claims.release(&self.pages);
    }
}

/// Whether who allocates may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Pages of a process are collected.
    MustNot,
    May,
}

impl Wait {
    /// How memory is allocated that the process is charged.
    fn flags(self) -> Flags {
        match self {
            Self::MustNot => GFP_NOWAIT | (GFP_KERNEL_ACCOUNT & !GFP_KERNEL),
            Self::May => GFP_KERNEL_ACCOUNT,
        }
    }
}

/// Memory for a block: it is there before the provider is asked.
struct Place<P: Provider> {
    block: KBox<MaybeUninit<Block<P>>>,
    pages: KVVec<usize>,
}

impl<P: Provider> Place<P> {
    /// For a block of so many pages. Fails with `ENOMEM`.
    fn new(pages: usize, flags: Flags) -> Result<Self> {
        Ok(Self {
            block: KBox::new_uninit(flags)?,
            pages: KVVec::with_capacity(pages, flags)?,
        })
    }
}

/// An allocation of a provider's. The claim goes before the memory, which is free for others then.
#[repr(C)]
#[pin_data]
pub(super) struct Block<P: Provider> {
    #[pin]
    owned: Owned,
    pub(super) claim: Claim<P>,
    pub(super) memory: P::Memory,
}

impl<P: Provider> Block<P> {
    /// Allocates what a request asks for from a provider's memory, for a span of `size` bytes, and
    /// writes the frames. None if that is not to be had without waiting, and the caller must not.
    ///
    /// Fails with `EINVAL` if what the provider has allocated is in use, with `ENOMEM`, and as the
    /// provider does.
    pub(super) fn allocate(
        inner: &Inner<P>,
        request: &AllocRequest<'_>,
        frames: &mut [usize],
        size: usize,
        wait: Wait,
    ) -> Result<Option<Handle<P>>> {
        let place = match (wait, Place::new(request.pages(), wait.flags())) {
            (Wait::MustNot, Err(_)) => return Ok(None),
            (_, place) => place?,
        };
        let memory = match wait {
            Wait::MustNot => match inner.provider.try_allocate(request) {
                Some(memory) => memory,
                None => return Ok(None),
            },
            Wait::May => inner.provider.allocate(request)?,
        };
        let Place { block, mut pages } = place;
        let base = inner.memory.frames().start;
        for (index, place) in request.places().enumerate() {
            let page = P::page(&memory, index);
            *frames.get_mut(place).ok_or(EINVAL)? = base.wrapping_add(page);
            pages.push_within_capacity(page)?;
        }
        let claim = Claim::new((&inner.pagemap).into(), pages)?;
        let block = block.write_pin_init(pin_init!(Block::<P> {
            // SAFETY: The object is a block, which the tables are for; they are constant.
            owned <- unsafe {
                Owned::new(
                    (&inner.pagemap).into(),
                    inner.detaching.clone(),
                    &Inner::<P>::ALLOCATION_OPS,
                    &Inner::<P>::VTABLE,
                    size,
                )
            },
            claim,
            memory,
        }))?;
        // SAFETY: The object stays where it is until it is freed; the reference is handed over.
        unsafe {
            let block = KBox::into_raw(Pin::into_inner_unchecked(block));
            let block = OwnedRef::from_raw(NonNull::new_unchecked(block).cast());
            Ok(Some(Handle(block, PhantomData)))
        }
    }

    /// The pagemap.
    pub(super) fn inner(&self) -> &Inner<P> {
        // SAFETY: The block's pagemap is a provider's of this type, and kept by the block.
        unsafe { Inner::of(self.owned.pagemap().as_raw()) }
    }
}

/// A counted reference to an allocation, which keeps its memory. Dropped in process context.
pub struct Handle<P: Provider>(OwnedRef, PhantomData<P>);

impl<P: Provider> Clone for Handle<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<P: Provider> Handle<P> {
    /// The allocation, with this reference.
    pub(super) fn into_allocation(self) -> NonNull<Allocation> {
        self.0.into_allocation()
    }

    fn block(&self) -> &Block<P> {
        // SAFETY: The reference is to a block of this type.
        unsafe { self.0.as_raw().cast::<Block<P>>().as_ref() }
    }

    /// The memory.
    pub fn memory(&self) -> &P::Memory {
        &self.block().memory
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.block().claim.pages.len()
    }

    /// What is left of the time that it was promised, in jiffies.
    pub fn timeslice_left(&self) -> usize {
        self.0.allocation().timeslice_left()
    }

    /// Whether no page of a process is in it any more.
    pub fn is_detached(&self) -> bool {
        self.0.allocation().is_detached()
    }

    /// Moves all that is in the memory to RAM, in whatever processes it is. After that, and after
    /// [`Provider::detached`] was called, which this waits for, the memory is free as soon as the
    /// last handle is dropped.
    ///
    /// Needs no process, and no lock of one. Sleeps. No lock may be held that
    /// [`detached`](Provider::detached) or the end of a [`Memory`](Provider::Memory) takes. Errors:
    /// - `EBUSY`: somebody holds a page;
    /// - `ENOMEM`: there is no RAM;
    /// - `EFAULT`: the device cannot reach the RAM;
    /// - an error of the provider's.
    pub fn evict(&self) -> Result {
        let claim = &self.block().claim;
        let mut frames = KVVec::with_capacity(claim.pages.len(), GFP_KERNEL)?;
        for frame in claim.frames() {
            frames.push(frame, GFP_KERNEL)?;
        }
        // SAFETY: The frames are the block's, which the handle keeps.
        unsafe { evict::evict(self.0.allocation(), &frames) }?;
        self.block().inner().detaching.flush();
        Ok(())
    }
}
