// SPDX-License-Identifier: GPL-2.0

//! What `/proc/<pid>/fdinfo` says of an open file of a DRM device, for monitors.
//!
//! `kernel::drm` has no callback for it. [`show_by`] gives a device a driver and file operations
//! that do. DRM prints the driver's name, the client's number and the device's address; the driver
//! prints the rest, see Documentation/gpu/drm-usage-stats.rst of the kernel.
//!
//! C headers: [`include/drm/drm_file.h`](srctree/include/drm/drm_file.h),
//! [`include/drm/drm_print.h`](srctree/include/drm/drm_print.h)

use crate::{
    bindings as ext,
    gem::{
        GemKind,
        Pages, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr, //
};
use kernel::{
    bindings,
    drm::{
        self,
        file::DriverFile, //
    },
    error::to_result,
    fmt,
    module::this_module,
    prelude::*, //
};
use kernel_ext::drm::device::DrmDevice;

/// An open file that says what it uses of the device.
pub trait FdInfo: DriverFile {
    /// Prints what the file uses. The device is registered as long as this runs, so this must not
    /// wait for userspace.
    fn show(&self, to: &Printer<'_>);
}

/// Prints to the fdinfo of a file.
///
/// # Invariants
///
/// `printer` is a printer and `file` an open file for `'a`.
pub struct Printer<'a> {
    printer: *mut bindings::drm_printer,
    file: *mut bindings::drm_file,
    _for: PhantomData<&'a ()>,
}

impl Printer<'_> {
    /// Prints text, which should be a line with its end: `key:\tvalue`.
    pub fn print(&self, args: fmt::Arguments<'_>) {
        // SAFETY: By the type invariant; `%pA` takes a pointer to `Arguments`.
        unsafe { ext::drm_print(self.printer, ptr::from_ref(&args).cast()) }
    }

    /// Prints the sizes of the file's objects of this kind, as those of `region`: `drm-total-region`
    /// and so on. Of objects with pages of the driver's own these are the ones whose memory is the
    /// device's, with `of_device`, and else the others. Without a kind, all are zero.
    pub fn memory<O>(&self, region: &CStr, kind: Option<&GemKind<O>>, of_device: bool) {
        let funcs = |pages| kind.map_or(ptr::null(), |kind| kind.functions(pages));
        // SAFETY: By the type invariant. The functions are only compared; no object has null.
        // Objects with shmem's functions are shmem objects.
        unsafe {
            ext::drm_print_memory(
                self.printer,
                self.file,
                funcs(Pages::Shmem),
                funcs(Pages::Own),
                of_device,
                region.as_char_ptr(),
            )
        }
    }
}

/// Makes files of `dev` print what they use. Fails with `EBUSY` for a device that is registered
/// already, and `ENOMEM`.
pub fn show_by<F: FdInfo>(dev: &drm::Device<F::Driver>) -> Result
where
    F::Driver: drm::Driver<File = F>,
{
    let drm = DrmDevice::of(dev).as_raw();
    // SAFETY: The device is valid. Its files are `F`s, as `show` expects. The operations are those
    // of a DRM device; they are a constant of a module which the files keep.
    to_result(unsafe { ext::drm_fdinfo_by(drm, Some(show::<F>), &Operations::<F>::FOPS) })
}

/// The operations of files that are `F`s.
struct Operations<F>(PhantomData<F>);

impl<F: FdInfo> Operations<F> {
    /// Those of the kernel crate, with fdinfo.
    const FOPS: bindings::file_operations = {
        let mut fops: bindings::file_operations = pin_init::zeroed();
        fops.owner = this_module::<<F::Driver as drm::Driver>::OwnerModule>().as_ptr();
        fops.open = Some(bindings::drm_open);
        fops.release = Some(bindings::drm_release);
        fops.unlocked_ioctl = Some(bindings::drm_ioctl);
        #[cfg(CONFIG_COMPAT)]
        {
            fops.compat_ioctl = Some(bindings::drm_compat_ioctl);
        }
        fops.poll = Some(bindings::drm_poll);
        fops.read = Some(bindings::drm_read);
        fops.llseek = Some(bindings::noop_llseek);
        fops.mmap = Some(bindings::drm_gem_mmap);
        fops.show_fdinfo = Some(bindings::drm_show_fdinfo);
        fops.fop_flags = bindings::FOP_UNSIGNED_OFFSET;
        fops
    };
}

/// # Safety
///
/// `printer` must be a printer, and `file` an open file that is an `F`.
unsafe extern "C" fn show<F: FdInfo>(
    printer: *mut bindings::drm_printer,
    file: *mut bindings::drm_file,
) {
    // SAFETY: By this function's requirements.
    let inner = unsafe { drm::File::<F>::from_raw(file) }.inner();
    // INVARIANT: By this function's requirements.
    let to = Printer {
        printer,
        file,
        _for: PhantomData,
    };
    F::show(&inner, &to);
}
