// SPDX-License-Identifier: GPL-2.0

//! A buffer object with the CPU's mapping of it.

use crate::{Gpu, Map};
use vxe_client::{Bind, Bo, Mapping};

/// A buffer, and the CPU's mapping of it.
pub struct Buffer {
    bo: Bo,
    mapping: Mapping,
}

impl Buffer {
    /// A buffer in system memory.
    #[track_caller]
    pub fn new(gpu: &Gpu, size: usize) -> Self {
        Self::of(Bo::system(gpu.device(), size).expect("a buffer"))
    }

    /// Maps a buffer that there is.
    #[track_caller]
    pub fn of(bo: Bo) -> Self {
        let mapping = bo.map().expect("a mapping of the buffer");
        Self { bo, mapping }
    }

    /// The buffer object.
    pub const fn bo(&self) -> &Bo {
        &self.bo
    }

    /// What the CPU sees of it.
    pub fn memory(&self) -> Map {
        Map::existing(self.mapping.as_ptr() as usize, self.mapping.len())
    }

    /// The word at an offset, as the CPU sees it.
    #[track_caller]
    pub fn word(&self, offset: usize) -> Map {
        self.memory().part(offset, 4)
    }

    /// Binds as much of it as `place` is long, from its start, where `place` is.
    pub fn bind(&self, place: Map) -> Bind {
        Bind::bo(&self.bo, 0, place.at(0), place.len() as u64)
    }
}
