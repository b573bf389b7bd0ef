// SPDX-License-Identifier: GPL-2.0

//! Where the contents of a buffer are that may be in device memory.
//!
//! They are nowhere until somebody needs them, unless the buffer was created with its memory; then
//! in device memory, or in system memory after an [eviction](super::eviction). A buffer moves as a
//! whole. While it moves it has no memory that anybody could map: a thread that needs some waits for
//! the move, or is told to try again.
//!
//! A buffer in device memory is in the list of those that may be evicted, unless it is pinned: an
//! importer of its dma-buf has its addresses.
//!
//! # Locking
//!
//! The lock of the place nests inside the lock of the map of VMAs and that of the retention. It is
//! held while the memory is mapped for the GPU or the CPU. Only the list's lock nests inside it.
//!
//! A thread that moves a buffer holds none of these locks while it copies, and takes the lock of each
//! map of VMAs. It allocates no memory, makes no room, and waits for no process. So others may wait for
//! it with the mmap lock, an SVM lock or the reservation lock held, but with no lock of a map or of a
//! buffer.

use super::{
    eviction::SystemMemory,
    segments::Segments,
    Bo,
    BoKind, //
};
use crate::{
    memory::InMotion,
    vram::Allocation, //
};
use kernel::{
    page::Page,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        lock::{
            mutex::MutexBackend,
            Guard, //
        },
        new_mutex,
        Mutex, //
    },
    time::msecs_to_jiffies, //
};
use kernel_ext::{
    cgroup::dmem::Charge,
    sched,
    sync::mutex,
    time::jiffies, //
};
use vxe_sim::{
    gem::{
        Listing,
        Residency, //
    },
    gem_list::Room, //
};

/// For how long a buffer is not evicted after its arrival, in milliseconds, unless its last move
/// took longer. Otherwise an access to two buffers could evict the one for the other, and buffers
/// could be moved all of the time.
const MIN_RESIDENCY_MS: u32 = 10;

/// The longest such time, in milliseconds: a move may wait for other processes.
const MAX_RESIDENCY_MS: u32 = 1000;

/// How often a thread that waits for a move looks whether it is over, in jiffies.
const POLL: usize = 1;

/// The device memory of a buffer.
pub(super) struct VramMemory {
    pub(super) allocation: Allocation,
    pub(super) segments: Segments,
    /// Counts the memory until the buffer may be evicted.
    pub(super) arriving: Option<InMotion>,
    /// Charged to the cgroup of the process that uses the buffer. Uncharged after the memory is
    /// freed.
    pub(super) charge: Charge,
}

/// Where the contents are.
pub(super) enum Place {
    /// Nowhere: they are zeros, unless the buffer is moving or was purged.
    Nowhere,
    /// In device memory.
    Vram(VramMemory),
    /// In system memory.
    System(SystemMemory),
}

impl Place {
    /// Returns the location of the memory, if there is any.
    pub(super) fn segments(&self) -> Option<&Segments> {
        match self {
            Self::Nowhere => None,
            Self::Vram(memory) => Some(&memory.segments),
            Self::System(memory) => Some(&memory.segments),
        }
    }

    fn with_page<R>(&self, index: usize, f: impl FnOnce(&Page) -> R) -> Option<R> {
        match self {
            Self::Nowhere => None,
            Self::Vram(memory) => memory.allocation.page(index).map(f),
            Self::System(memory) => memory.with_page(index, f),
        }
    }

    /// Returns the residency that fdinfo shows.
    fn residency(&self) -> Residency {
        match self {
            Self::Nowhere => Residency::None,
            Self::Vram(_) => Residency::Device,
            Self::System(_) => Residency::System,
        }
    }
}

/// The place of a buffer's contents, locked.
pub(crate) struct Located {
    pub(super) place: Place,
    /// A thread moves the buffer, and has its memory.
    is_moving: bool,
    /// The number of importers that have the addresses of the memory.
    pub(super) pins: usize,
    /// The memory for the buffer's place in the list of those that may be evicted, while it is not
    /// there.
    room: Option<Room>,
}

/// Where the contents of a buffer are.
#[pin_data]
pub(super) struct Residence {
    #[pin]
    located: Mutex<Located>,
    /// When the buffer arrived, in jiffies.
    arrived: Atomic<usize>,
    /// How long it is not evicted after that, in jiffies.
    residency: Atomic<usize>,
    /// What [`Place::residency`] returned last, readable without a lock.
    shown: Atomic<u32>,
}

impl Residence {
    /// Creates the residence of a buffer that is not listed yet. `room` is none for a buffer that is
    /// never in device memory.
    pub(super) fn new(place: Place, room: Option<Room>) -> impl PinInit<Self> {
        let shown = place.residency();
        pin_init!(Self {
            located <- new_mutex!(
                Located {
                    place,
                    is_moving: false,
                    pins: 0,
                    room,
                },
                "BoData::located"
            ),
            arrived: Atomic::new(jiffies::now()),
            residency: Atomic::new(msecs_to_jiffies(MIN_RESIDENCY_MS)),
            shown: Atomic::new(shown as u32),
        })
    }

    /// Locks the place.
    pub(super) fn lock(&self) -> Guard<'_, Located, MutexBackend> {
        self.located.lock()
    }

    /// Locks the place of a buffer that is not moving. Waits for the end of a move. Fails with
    /// `EINTR` for a killed caller.
    pub(super) fn lock_settled(&self) -> Result<Guard<'_, Located, MutexBackend>> {
        loop {
            let located = mutex::lock_killable(&self.located)?;
            if !located.is_moving {
                return Ok(located);
            }
            drop(located);
            sched::check_killed()?;
            sched::sleep_killable(POLL);
        }
    }

    /// Returns whether the buffer arrived so long ago that it may be evicted. Uses do not count: who
    /// uses a buffer all of the time would keep all others out.
    pub(super) fn is_ripe(&self) -> bool {
        jiffies::since(self.arrived.load(Relaxed)) > self.residency.load(Relaxed)
    }

    /// Records a use of `bo`, whose residence this is, for the order of eviction.
    pub(super) fn touch(&self, bo: &Bo) {
        if let Some(kind) = bo.dev().bo_kind.as_ref() {
            kind.renumber(Listing::Evictable, bo, bo.dev().memory.tick());
        }
    }

    /// Records that a move took so long, in jiffies.
    pub(super) fn moved(&self, took: usize) {
        let range = [MIN_RESIDENCY_MS, MAX_RESIDENCY_MS].map(msecs_to_jiffies);
        let [least, most] = range;
        self.residency.store(took.clamp(least, most), Relaxed);
        self.arrived.store(jiffies::now(), Relaxed);
    }

    /// Returns where the contents are, from a caller that must not sleep.
    pub(super) fn shown(&self) -> Residency {
        Residency::from_raw(self.shown.load(Relaxed))
    }

    /// Calls `f` with the page at `index`, if the buffer has memory.
    pub(super) fn with_page<R>(
        located: &Located,
        index: usize,
        f: impl FnOnce(&Page) -> R,
    ) -> Option<R> {
        located.place.with_page(index, f)
    }
}

impl Located {
    /// Returns whether the buffer is moving.
    pub(super) fn is_moving(&self) -> bool {
        self.is_moving
    }

    /// Begins a move of `bo`, which has this place and is not moving: takes its memory. The caller
    /// ends it.
    pub(super) fn begin_move(&mut self, bo: &Bo) -> Place {
        self.is_moving = true;
        self.take(bo)
    }

    /// Ends the move of `bo`, which has this place.
    pub(super) fn end_move(&mut self, bo: &Bo, place: Place) {
        self.is_moving = false;
        self.put(bo, place);
    }

    /// Takes the memory of `bo`, which has this place, from its place. The buffer leaves the list.
    pub(super) fn take(&mut self, bo: &Bo) -> Place {
        let place = core::mem::replace(&mut self.place, Place::Nowhere);
        self.update(bo);
        place
    }

    /// Gives `bo`, which has this place, memory.
    pub(super) fn put(&mut self, bo: &Bo, place: Place) {
        self.place = place;
        self.update(bo);
    }

    /// Adds `bo`, which has this place, to the list of those that may be evicted, or removes it from
    /// there, after a change.
    pub(super) fn update(&mut self, bo: &Bo) {
        let residency = self.place.residency();
        bo.residence.shown.store(residency as u32, Relaxed);
        let Some(kind) = bo.dev().bo_kind.as_ref() else {
            return;
        };
        let is_evictable = residency == Residency::Device && self.pins == 0;
        match self.room.take() {
            Some(room) if is_evictable => {
                let number = bo.dev().memory.tick();
                kind.list(Listing::Evictable, bo, number, room);
            }
            None if !is_evictable => self.room = BoKind::unlist(kind, Listing::Evictable, bo),
            room => self.room = room,
        }
        if let Place::Vram(memory) = &mut self.place {
            memory.arriving = None;
        }
    }
}
