// SPDX-License-Identifier: GPL-2.0

//! DRM_IOCTL_XE_DEVICE_QUERY: what the device is and has.

use crate::{request, sys, Device, Error, Result};

/// What can be asked of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Query {
    /// The engines.
    Engines = sys::DRM_XE_DEVICE_QUERY_ENGINES,
    /// The memory regions.
    MemoryRegions = sys::DRM_XE_DEVICE_QUERY_MEM_REGIONS,
    /// The configuration words.
    Config = sys::DRM_XE_DEVICE_QUERY_CONFIG,
    /// The GTs.
    GtList = sys::DRM_XE_DEVICE_QUERY_GT_LIST,
}

/// The device's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// PCI device number.
    pub device_id: u16,
    /// Revision of the device.
    pub revision: u8,
    /// `DRM_XE_QUERY_CONFIG_FLAG_*`.
    pub flags: u64,
    /// Alignment that every GPU mapping must have.
    pub min_alignment: u64,
    /// Width of a GPU virtual address.
    pub va_bits: u32,
    /// The highest queue priority that the caller may ask for.
    pub max_queue_priority: u64,
}

impl Config {
    /// Whether a VM can mirror the CPU's addresses.
    pub const fn can_mirror(&self) -> bool {
        self.flags & sys::DRM_XE_QUERY_CONFIG_FLAG_HAS_CPU_ADDR_MIRROR as u64 != 0
    }
}

/// An answer of the kernel in 64-bit words, so that the structs in it are aligned.
struct Answer {
    words: Vec<u64>,
    size: usize,
}

impl Answer {
    fn at<T: Copy>(&self, offset: usize) -> Result<T> {
        if offset.checked_add(size_of::<T>()).is_none_or(|end| end > self.size) {
            return Err(Error::new("DRM_IOCTL_XE_DEVICE_QUERY", libc::EPROTO));
        }
        // SAFETY: the bytes lie inside the vector, were all initialised, and `T` is one of the
        // uAPI's structs: plain integers.
        Ok(unsafe { self.words.as_ptr().cast::<u8>().add(offset).cast::<T>().read_unaligned() })
    }

    fn list<T: Copy>(&self, header: usize) -> Result<Vec<T>> {
        let count: u32 = self.at(0)?;
        (0..count as usize).map(|i| self.at(header + i * size_of::<T>())).collect()
    }
}

impl Device {
    fn ask(&self, query: Query) -> Result<Answer> {
        let mut ask = sys::drm_xe_device_query { query: query as u32, ..Default::default() };
        // SAFETY: with size 0 the kernel only fills in the size.
        unsafe { self.call(&request::DEVICE_QUERY, &mut ask) }?;
        let size = ask.size as usize;
        let mut words = vec![0u64; size.div_ceil(8)];
        ask.data = words.as_mut_ptr() as u64;
        // SAFETY: `data` has room for the `size` bytes that the kernel writes.
        unsafe { self.call(&request::DEVICE_QUERY, &mut ask) }?;
        Ok(Answer { words, size })
    }

    /// The answer's bytes, for those who look at the raw form.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn query_bytes(&self, query: Query) -> Result<Vec<u8>> {
        let answer = self.ask(query)?;
        (0..answer.size).map(|i| answer.at(i)).collect()
    }

    /// The configuration.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn config(&self) -> Result<Config> {
        let info: Vec<u64> =
            self.ask(Query::Config)?.list(std::mem::offset_of!(sys::drm_xe_query_config, info))?;
        let get = |index: u32| {
            info.get(index as usize)
                .copied()
                .ok_or(Error::new("DRM_IOCTL_XE_DEVICE_QUERY", libc::EPROTO))
        };
        let id = get(sys::DRM_XE_QUERY_CONFIG_REV_AND_DEVICE_ID)?;
        Ok(Config {
            device_id: id as u16,
            revision: (id >> 16) as u8,
            flags: get(sys::DRM_XE_QUERY_CONFIG_FLAGS)?,
            min_alignment: get(sys::DRM_XE_QUERY_CONFIG_MIN_ALIGNMENT)?,
            va_bits: get(sys::DRM_XE_QUERY_CONFIG_VA_BITS)? as u32,
            max_queue_priority: get(sys::DRM_XE_QUERY_CONFIG_MAX_EXEC_QUEUE_PRIORITY)?,
        })
    }

    /// The GTs.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn gts(&self) -> Result<Vec<sys::drm_xe_gt>> {
        self.ask(Query::GtList)?.list(std::mem::offset_of!(sys::drm_xe_query_gt_list, gt_list))
    }

    /// The memory regions.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn memory_regions(&self) -> Result<Vec<sys::drm_xe_mem_region>> {
        self.ask(Query::MemoryRegions)?
            .list(std::mem::offset_of!(sys::drm_xe_query_mem_regions, mem_regions))
    }

    /// The engines.
    ///
    /// # Errors
    ///
    /// What the ioctl says.
    pub fn engines(&self) -> Result<Vec<sys::drm_xe_engine_class_instance>> {
        let engines: Vec<sys::drm_xe_engine> = self
            .ask(Query::Engines)?
            .list(std::mem::offset_of!(sys::drm_xe_query_engines, engines))?;
        Ok(engines.into_iter().map(|e| e.instance).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_counts_more_than_it_holds_is_refused() {
        let answer = Answer { words: vec![2, 7], size: 16 };
        assert_eq!(answer.at::<u32>(0), Ok(2));
        assert_eq!(answer.at::<u64>(8), Ok(7));
        assert!(answer.at::<u64>(9).is_err());
        assert!(answer.at::<u64>(usize::MAX).is_err());
        assert!(answer.list::<u64>(8).is_err());
    }
}
