// SPDX-License-Identifier: GPL-2.0

//! The ioctl requests: number, name and argument type belong together.

use crate::{sys, Error, Result};
use std::{marker::PhantomData, os::fd::RawFd};

/// One ioctl of the device; `T` is the struct it takes.
pub struct Request<T> {
    number: libc::c_ulong,
    name: &'static str,
    argument: PhantomData<fn(&mut T)>,
}

impl<T> Request<T> {
    const fn new(number: libc::c_ulong, name: &'static str) -> Self {
        // The size that is encoded in the number is the struct's: a wrong pairing does not build.
        assert!((number >> 16) & 0x3fff == size_of::<T>() as libc::c_ulong);
        Self { number, name, argument: PhantomData }
    }

    /// The request's name in the kernel's headers.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The request's number.
    pub const fn number(&self) -> libc::c_ulong {
        self.number
    }

    /// Calls `ioctl(2)`, again when a signal interrupts it.
    ///
    /// # Safety
    ///
    /// What `argument` makes the kernel do, now or later (through addresses in it, or through the
    /// GPU), must be sound.
    pub unsafe fn call(&self, fd: RawFd, argument: &mut T) -> Result<()> {
        loop {
            // SAFETY: `argument` is a live struct of the size that the request encodes; the caller
            // answers for what it says.
            if unsafe { libc::ioctl(fd, self.number, std::ptr::from_mut(argument)) } == 0 {
                return Ok(());
            }
            let error = Error::last(self.name);
            if error.errno() != libc::EINTR {
                return Err(error);
            }
        }
    }
}

macro_rules! requests {
    ($($name:ident = $number:ident($argument:ident);)*) => {$(
        #[doc = concat!("`DRM_", stringify!($number), "`.")]
        pub const $name: Request<sys::$argument> =
            Request::new(sys::$number as libc::c_ulong, concat!("DRM_", stringify!($number)));
    )*};
}

requests! {
    VERSION = IOCTL_VERSION(drm_version);
    GEM_CLOSE = IOCTL_GEM_CLOSE(drm_gem_close);
    PRIME_HANDLE_TO_FD = IOCTL_PRIME_HANDLE_TO_FD(drm_prime_handle);
    PRIME_FD_TO_HANDLE = IOCTL_PRIME_FD_TO_HANDLE(drm_prime_handle);
    SYNCOBJ_CREATE = IOCTL_SYNCOBJ_CREATE(drm_syncobj_create);
    SYNCOBJ_DESTROY = IOCTL_SYNCOBJ_DESTROY(drm_syncobj_destroy);
    DEVICE_QUERY = IOCTL_XE_DEVICE_QUERY(drm_xe_device_query);
    GEM_CREATE = IOCTL_XE_GEM_CREATE(drm_xe_gem_create);
    GEM_MMAP_OFFSET = IOCTL_XE_GEM_MMAP_OFFSET(drm_xe_gem_mmap_offset);
    VM_CREATE = IOCTL_XE_VM_CREATE(drm_xe_vm_create);
    VM_DESTROY = IOCTL_XE_VM_DESTROY(drm_xe_vm_destroy);
    VM_BIND = IOCTL_XE_VM_BIND(drm_xe_vm_bind);
    EXEC_QUEUE_CREATE = IOCTL_XE_EXEC_QUEUE_CREATE(drm_xe_exec_queue_create);
    EXEC_QUEUE_DESTROY = IOCTL_XE_EXEC_QUEUE_DESTROY(drm_xe_exec_queue_destroy);
    EXEC_QUEUE_GET_PROPERTY = IOCTL_XE_EXEC_QUEUE_GET_PROPERTY(drm_xe_exec_queue_get_property);
    EXEC_QUEUE_SET_PROPERTY = IOCTL_XE_EXEC_QUEUE_SET_PROPERTY(drm_xe_exec_queue_set_property);
    EXEC = IOCTL_XE_EXEC(drm_xe_exec);
    WAIT_USER_FENCE = IOCTL_XE_WAIT_USER_FENCE(drm_xe_wait_user_fence);
    MADVISE = IOCTL_XE_MADVISE(drm_xe_madvise);
    VM_QUERY_MEM_RANGE_ATTRS =
        IOCTL_XE_VM_QUERY_MEM_RANGE_ATTRS(drm_xe_vm_query_mem_range_attr);
    VM_GET_PROPERTY = IOCTL_XE_VM_GET_PROPERTY(drm_xe_vm_get_property);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_documented_ones() {
        // DRM_COMMAND_BASE is 0x40, the type letter 'd'; EXEC is 9, VM_BIND 5.
        assert_eq!(EXEC.number & 0xffff, 0x6449);
        assert_eq!(VM_BIND.number & 0xffff, 0x6445);
        assert_eq!(EXEC.name(), "DRM_IOCTL_XE_EXEC");
    }

    #[test]
    fn a_bad_descriptor_is_an_error_with_a_name() {
        let mut argument = sys::drm_xe_vm_destroy::default();
        // SAFETY: no descriptor, so nothing happens.
        let e = unsafe { VM_DESTROY.call(-1, &mut argument) }.unwrap_err();
        assert_eq!((e.call(), e.errno()), ("DRM_IOCTL_XE_VM_DESTROY", libc::EBADF));
    }
}
