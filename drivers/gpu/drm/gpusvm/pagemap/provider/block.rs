// SPDX-License-Identifier: GPL-2.0

//! Blocks: the device memory that one migration fills.
//!
//! # States
//!
//! - *Allocated*: [`Block::allocate`] has claimed the pages that the provider allocated; only the migration has a
//!   reference.
//! - *Attached*: folios of processes are in the block, and hold one reference together, through their zone-device data.
//!   The provider has another one if it keeps the block that [`Provider::attached`] gave it.
//! - *Detached*: no folio is left. [`Detaching`](super::super::detach::Detaching) calls [`Provider::detached`] and
//!   drops the folios' reference.
//!
//! When the last reference is dropped, the block releases the claims of its pages and then drops the provider's memory.
//!
//! C: the object in which a driver embeds its `struct drm_pagemap_devmem`.

use super::{
    super::{
        detach::Detachable,
        devmem::Devmem,
        evict,
        to_device::AllocRequest, //
    },
    inner::Inner,
    DeviceMemory,
    Provider, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    alloc::Flags,
    prelude::*,
    sync::{
        Arc,
        UniqueArc, //
    }, //
};

/// Whether an allocation may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// It must not wait: pages of a process are isolated.
    MustNot,
    /// It may wait.
    May,
}

impl Wait {
    /// Returns the flags for memory that is charged to the process.
    fn flags(self) -> Flags {
        match self {
            Self::MustNot => GFP_NOWAIT | (GFP_KERNEL_ACCOUNT & !GFP_KERNEL),
            Self::May => GFP_KERNEL_ACCOUNT,
        }
    }
}

/// Device memory of a provider that one migration filled. It is used through an [`Arc`], which keeps the provider's
/// memory and must be dropped in process context.
///
/// # Invariants
///
/// `pages` are claimed in `pagemap`, and are those of `memory`.
#[repr(C)]
#[pin_data(PinnedDrop)]
pub struct Block<P: Provider> {
    #[pin]
    head: Detachable,
    pages: KVVec<usize>,
    memory: P::Memory,
    // Dropped last, as it keeps the provider.
    pagemap: DeviceMemory<P>,
}

impl<P: Provider> Block<P> {
    /// Allocates memory from a provider for a request of a migration of `size` bytes, and writes the frames. Returns
    /// none if `wait` is [`Wait::MustNot`] and no memory is available without waiting.
    ///
    /// Fails with `EINVAL` if the provider returned a page that is in another block or does not exist, with `ENOMEM`,
    /// and as the provider does.
    pub(super) fn allocate(
        inner: &Inner<P>,
        request: &AllocRequest<'_>,
        frames: &mut [usize],
        size: usize,
        wait: Wait,
    ) -> Result<Option<Arc<Self>>> {
        // The block's own memory is allocated before the provider's, so that nothing has to be undone.
        let reserve = || -> Result<_> {
            let pages = KVVec::with_capacity(request.pages(), wait.flags())?;
            Ok((UniqueArc::new_uninit(wait.flags())?, pages))
        };
        let (block, mut pages) = match (wait, reserve()) {
            (Wait::MustNot, Err(_)) => return Ok(None),
            (_, reserved) => reserved?,
        };
        let memory = match wait {
            Wait::MustNot => match inner.provider.try_allocate(request) {
                Some(memory) => memory,
                None => return Ok(None),
            },
            Wait::May => inner.provider.allocate(request)?,
        };
        let base = inner.memory.frames().start;
        for (nth, index) in request.indices().enumerate() {
            let page = P::page(&memory, nth);
            *frames.get_mut(index).ok_or(EINVAL)? = base.wrapping_add(page);
            pages.push_within_capacity(page)?;
        }
        inner.claims.claim(&pages)?;
        // INVARIANT: The pages were claimed.
        let block = block.pin_init_with(pin_init!(Self {
            // SAFETY: The object is the first part of a block in an `Arc`; operations and function are for blocks of
            // this provider, and constant.
            head <- unsafe {
                Detachable::new(
                    (&inner.pagemap).into(),
                    inner.detaching.clone(),
                    &Inner::<P>::DEVMEM_OPS,
                    Inner::<P>::detached,
                    size,
                )
            },
            pages,
            memory,
            pagemap: DeviceMemory((&inner.pagemap).into(), PhantomData),
        }))?;
        Ok(Some(block.into()))
    }

    /// Hands a reference over to the folios of the migration.
    pub(super) fn into_devmem(this: Arc<Self>) -> NonNull<Devmem> {
        let devmem = NonNull::from(this.head.devmem());
        // `detached()` takes it back.
        let _ = Arc::into_raw(this);
        devmem
    }

    /// Tells the provider that no folio is left in the block.
    pub(super) fn detached(&self) {
        self.inner().provider.detached(&self.memory);
        self.head.set_told();
    }

    pub(super) fn inner(&self) -> &Inner<P> {
        self.pagemap.inner()
    }

    /// Returns the frames of the pages.
    pub(super) fn frames(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        let base = self.inner().memory.frames().start;
        self.pages.iter().map(move |page| base + page)
    }

    /// Returns the memory that [`Provider::allocate`] returned.
    pub fn memory(&self) -> &P::Memory {
        &self.memory
    }

    /// Returns the number of pages.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Returns the rest of the block's timeslice, in jiffies.
    pub fn timeslice_left(&self) -> usize {
        self.head.devmem().timeslice_left()
    }

    /// Returns whether no page of a process is in the block any more.
    pub fn is_detached(&self) -> bool {
        self.head.devmem().is_detached()
    }

    /// Migrates all pages in the block to system memory, whichever processes map them, and waits for
    /// [`Provider::detached`]. After that the last reference to the block frees the memory.
    ///
    /// Takes no lock of a process. Sleeps. The caller must hold no lock that [`Provider::detached`] or the drop of
    /// [`Provider::Memory`] takes. Errors:
    /// - `EBUSY`: another user holds a reference to a page;
    /// - `ENOMEM`: there is no system memory;
    /// - `EFAULT`: the device cannot reach the system memory;
    /// - an error of the provider's.
    pub fn evict(&self) -> Result {
        let mut frames = KVVec::with_capacity(self.pages.len(), GFP_KERNEL)?;
        for frame in self.frames() {
            frames.push(frame, GFP_KERNEL)?;
        }
        // SAFETY: The frames are the block's, to which the caller has a reference.
        unsafe { evict::evict(self.head.devmem(), &frames) }?;
        self.head.wait_until_told();
        Ok(())
    }
}

#[pinned_drop]
impl<P: Provider> PinnedDrop for Block<P> {
    fn drop(self: Pin<&mut Self>) {
        // Before the provider's memory is dropped: the provider may give the pages to another block then.
        self.inner().claims.release(&self.pages);
    }
}
