// SPDX-License-Identifier: GPL-2.0

//! Whether the contents of a buffer are needed, or may be purged.
//!
//! MADVISE sets that for each VMA, with `DRM_XE_VMA_ATTR_PURGEABLE_STATE`. As in xe, the contents of
//! a buffer are not needed once it has VMAs and none of these needs them. A VMA that needs them
//! keeps them, and so does an export, as the importer has no VMA. Removing the last VMA changes
//! nothing.
//!
//! A buffer that is not needed cannot be bound, mapped or exported, nor does a fault of the GPU map
//! it. When device memory is short, such buffers are purged, the one first that was the first not to
//! be needed. Buffers in system memory never are. What was purged stays without memory.
//!
//! # Locking
//!
//! The lock of a buffer's retention nests inside the lock of the map of VMAs. The lock of its device
//! memory and that of the list of buffers nest inside it.

use super::{
    Bo,
    BoData,
    BoKind,
    Place,
    Source, //
};
use kernel::{
    drm::gem::BaseObject,
    prelude::*,
    sync::{
        aref::ARef,
        new_mutex,
        Mutex, //
    }, //
};
use kernel_ext::cgroup::dmem::Charge;
use vxe_sim::{
    gem::Listing,
    gem_list::Room, //
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The contents are kept.
    Needed,
    /// The contents may be purged.
    Unneeded,
    /// The contents and the memory are gone.
    Purged,
}

/// Whether a buffer's contents are needed, and by how many.
#[pin_data]
pub(super) struct Retention {
    #[pin]
    inner: Mutex<Inner>,
}

struct Inner {
    state: State,
    /// The number of VMAs.
    mappings: usize,
    /// The number of VMAs that need the contents, and one for an export.
    needed: usize,
    exported: bool,
    /// The memory for the buffer's place in the list of unneeded buffers, while it is not there.
    /// There is some once a VMA does not need the contents, if these are in device memory.
    room: Option<Room>,
}

impl Retention {
    /// Creates the retention of a buffer without VMAs.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_mutex!(
                Inner {
                    state: State::Needed,
                    mappings: 0,
                    needed: 0,
                    exported: false,
                    room: None,
                },
                "BoData::retention"
            ),
        })
    }

    /// Fails with `EBUSY` if the contents may be purged, and with `EINVAL` if they were.
    pub(super) fn check(&self) -> Result {
        self.inner.lock().check()
    }

    /// Calls `f` if the contents are needed, which does not change meanwhile. Fails as
    /// [`check`](Self::check).
    pub(super) fn while_needed<R>(&self, f: impl FnOnce() -> R) -> Result<R> {
        let inner = self.inner.lock();
        inner.check()?;
        Ok(f())
    }

    /// Returns whether the buffer has a VMA, whether that needs the contents or not.
    pub(super) fn is_mapped(&self) -> bool {
        self.inner.lock().mappings != 0
    }

    /// Keeps the contents for an export from now on. Fails as [`check`](Self::check).
    pub(super) fn export(&self) -> Result {
        let mut inner = self.inner.lock();
        inner.check()?;
        if !inner.exported {
            inner.exported = true;
            inner.needed += 1;
        }
        Ok(())
    }
}

impl Inner {
    fn check(&self) -> Result {
        match self.state {
            State::Needed => Ok(()),
            State::Unneeded => Err(EBUSY),
            State::Purged => Err(EINVAL),
        }
    }
}

impl Inner {
    /// Removes `bo`, whose retention this is, from the list of unneeded buffers, if it is there.
    fn unlist(&mut self, bo: &Bo) {
        if let Some(room) = kind(bo).and_then(|kind| kind.unlist(Listing::Purgeable, bo)) {
            self.room = Some(room);
        }
    }
}

fn kind(bo: &Bo) -> Option<&BoKind> {
    bo.dev().bo_kind.as_ref()
}

/// A VMA of a buffer: the VMA is counted until this is dropped.
pub(crate) struct Hold {
    bo: ARef<Bo>,
    needed: bool,
}

impl Hold {
    /// Counts a VMA, which needs the contents or not. If it does, fails with `EBUSY` if the contents
    /// may be purged, and with `EINVAL` if they were.
    pub(crate) fn new(bo: &Bo, needed: bool) -> Result<Self> {
        let mut inner = bo.retention.inner.lock();
        if needed {
            inner.check()?;
        }
        Ok(Self::count(bo, &mut inner, needed))
    }

    /// Counts a VMA that needs the contents again. Returns none if they were purged.
    pub(crate) fn revive(bo: &Bo) -> Option<Self> {
        let mut inner = bo.retention.inner.lock();
        match inner.state {
            State::Purged => return None,
            State::Unneeded => {
                inner.state = State::Needed;
                inner.unlist(bo);
            }
            State::Needed => {}
        }
        Some(Self::count(bo, &mut inner, true))
    }

    fn count(bo: &Bo, inner: &mut Inner, needed: bool) -> Self {
        inner.mappings += 1;
        inner.needed += usize::from(needed);
        Self {
            bo: bo.into(),
            needed,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut inner = self.bo.retention.inner.lock();
        // Neither underflows: both were counted.
        inner.mappings -= 1;
        if !self.needed {
            return;
        }
        inner.needed -= 1;
        // As in xe, the contents of an import are the exporter's.
        let is_import = matches!(self.bo.source, Source::Import(_));
        let is_needed = inner.needed != 0 || inner.mappings == 0 || is_import;
        if !is_needed && inner.state == State::Needed {
            inner.state = State::Unneeded;
            if let (Some(kind), Some(room)) = (kind(&self.bo), inner.room.take()) {
                let number = self.bo.dev().memory.tick();
                kind.list(Listing::Purgeable, &self.bo, number, room);
            }
        }
    }
}

impl BoData {
    /// Fails with `EBUSY` if the contents may be purged, and with `EINVAL` if they were.
    pub(crate) fn check_needed(&self) -> Result {
        self.retention.check()
    }

    /// Prepares a buffer for VMAs that do not need its contents. Returns false if these were purged.
    /// Fails with `ENOMEM`.
    pub(crate) fn prepare_unneeded(&self) -> Result<bool> {
        let mut inner = self.retention.inner.lock();
        match inner.state {
            State::Purged => return Ok(false),
            State::Needed if inner.room.is_none() && self.is_movable() => {
                inner.room = Some(Room::new()?);
            }
            State::Needed | State::Unneeded => {}
        }
        Ok(true)
    }

    /// Purges the contents of `bo` if they are not needed, and if `may_take` agrees to their charge.
    /// Returns the number of bytes freed.
    ///
    /// Sleeps, and takes the locks of the maps of VMAs. It must not be called under these.
    pub(crate) fn purge(bo: &Bo, may_take: impl FnOnce(&Charge) -> bool) -> Option<u64> {
        let memory = {
            let mut inner = bo.retention.inner.lock();
            if inner.state != State::Unneeded {
                return None;
            }
            let mut located = bo.residence.lock();
            if located.is_moving() {
                return None;
            }
            let Place::Vram(memory) = &located.place else {
                // It stays, and needs no place in the list.
                inner.unlist(bo);
                return None;
            };
            if !may_take(&memory.charge) {
                return None;
            }
            inner.state = State::Purged;
            inner.unlist(bo);
            inner.room = None;
            located.take(bo)
        };
        // Nobody maps the memory any more, as it is not the buffer's.
        let dev = bo.dev();
        dev.vms.for_each(bo.vm, |vm| vm.zap_buffer(bo));
        BoKind::unmap_cpu(bo);
        // CAST: Widens.
        let size = bo.size() as u64;
        vxe_sim::drm_dbg!(dev, "purged a buffer of {} KiB", size / 1024);
        drop(memory);
        Some(size)
    }
}
