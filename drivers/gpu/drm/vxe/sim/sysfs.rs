// SPDX-License-Identifier: GPL-2.0

//! Directories and files in the sysfs directory of a device. Each file has one number.
//!
//! The kernel crate has no kobjects. A directory here is a kobject without an object: the kernel
//! allocates and frees it, and it refers to nothing. What a file shows belongs to [`SysfsFiles`].
//!
//! C headers: [`include/linux/kobject.h`](srctree/include/linux/kobject.h),
//! [`include/linux/sysfs.h`](srctree/include/linux/sysfs.h)

use crate::bindings as ext;
use core::ptr::NonNull;
use kernel::{
    bindings,
    device,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::aref::ARef,
    types::Opaque, //
};

/// The number in a sysfs file. Its methods may sleep; they must not wait for the device to be
/// unbound, as that waits for them.
#[vtable]
pub trait Number: Send + Sync + 'static {
    /// Returns the number.
    fn show(&self) -> u32;

    /// Sets the number to what a program wrote. An error is returned to the program.
    fn store(&self, _value: u32) -> Result {
        kernel::build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }
}

/// The number of a directory of a [`SysfsFiles`].
#[derive(Clone, Copy)]
pub struct Dir(usize);

/// A file: its attribute, by which the kernel calls, and its number.
#[repr(C)]
struct Node<T> {
    // First, so that a pointer to it is one to the node. The kernel uses it while the file exists.
    attribute: Opaque<bindings::kobj_attribute>,
    number: T,
}

// SAFETY: Only the kernel uses the attribute, which it does from any thread. A number is `Send`.
unsafe impl<T: Number> Send for Node<T> {}
// SAFETY: As above. A number is `Sync`.
unsafe impl<T: Number> Sync for Node<T> {}

/// Any [`Node`], kept alive for its file.
trait AnyNode: Send + Sync {}
impl<T: Number> AnyNode for Node<T> {}

/// The directories and files of a driver in its device's sysfs directory.
///
/// Dropping it removes them, and waits for the functions of the files that are running. A program
/// that has a file open gets `ENODEV` from then on.
///
/// # Invariants
///
/// `dirs` are kobjects that [`dir`](Self::dir) created and that nothing has removed, each after its
/// parent. `nodes` has the nodes of all files in them.
pub struct SysfsFiles {
    device: ARef<device::Device>,
    dirs: KVec<NonNull<bindings::kobject>>,
    nodes: KVec<KBox<dyn AnyNode>>,
}

// SAFETY: Kobjects may be removed by any thread, and nodes are `Send`.
unsafe impl Send for SysfsFiles {}
// SAFETY: There are no methods that take a shared reference.
unsafe impl Sync for SysfsFiles {}

impl SysfsFiles {
    /// Creates an empty set of files for the directory of `device`.
    ///
    /// # Safety
    ///
    /// The result must be dropped before a module with the code of a [`Number`] in it is unloaded.
    pub unsafe fn new(device: &device::Device) -> Self {
        // INVARIANT: There are none.
        Self {
            device: device.into(),
            dirs: KVec::new(),
            nodes: KVec::new(),
        }
    }

    /// Creates a directory in `parent`, or in the device's directory. Fails with `ENOMEM`, also if
    /// there is such an entry: the kernel's log then says so.
    pub fn dir(&mut self, parent: Option<Dir>, name: &CStr) -> Result<Dir> {
        self.dirs.reserve(1, GFP_KERNEL)?;
        let parent = match parent {
            Some(dir) => self.kobject(dir)?,
            None => kobject(&self.device),
        };
        // SAFETY: The device, and by the type invariant the directory, is a kobject that has been
        // added. The name is copied.
        let dir = unsafe { bindings::kobject_create_and_add(name.as_char_ptr(), parent) };
        let dir = NonNull::new(dir).ok_or(ENOMEM)?;
        // INVARIANT: The directory is new, and its parent is not. Room was reserved above.
        self.dirs.push(dir, GFP_KERNEL)?;
        Ok(Dir(self.dirs.len() - 1))
    }

    /// Returns the kobject of a directory. Fails with `EINVAL` if there is none of this number, as it
    /// is that of another device.
    fn kobject(&self, dir: Dir) -> Result<*mut bindings::kobject> {
        Ok(self.dirs.get(dir.0).ok_or(EINVAL)?.as_ptr())
    }

    /// Creates a file in `dir`, which only root may write to if it can be written. Fails with
    /// `ENOMEM`, and with `EEXIST` if there is such an entry.
    pub fn file<T: Number>(&mut self, dir: Dir, name: &'static CStr, number: T) -> Result {
        self.nodes.reserve(1, GFP_KERNEL)?;
        let dir = self.kobject(dir)?;
        let node = KBox::new(
            Node {
                attribute: Opaque::zeroed(),
                number,
            },
            GFP_KERNEL,
        )?;
        let attribute: *const Node<T> = &*node;
        let mode = if T::HAS_STORE { 0o644 } else { 0o444 };
        // SAFETY: The directory is a kobject that has been added, by the type invariant. The
        // functions expect the attribute of a `Node<T>`. Its node is kept by `nodes` until `drop()`
        // has removed the file; if there is no file, nothing uses it after the call.
        to_result(unsafe {
            ext::sysfs_create_file(
                dir,
                attribute.cast_mut().cast(),
                name.as_char_ptr(),
                mode,
                Some(show::<T>),
                T::HAS_STORE.then_some(store::<T> as Store),
            )
        })?;
        // INVARIANT: The node of the new file. Room was reserved above.
        self.nodes.push(node, GFP_KERNEL)?;
        Ok(())
    }
}

impl Drop for SysfsFiles {
    fn drop(&mut self) {
        while let Some(dir) = self.dirs.pop() {
            // SAFETY: By the type invariant the kobject was created by `dir()`, and only this
            // removes it. `kobject_del()` removes its directory and the files in it from kernfs.
            // kernfs calls the functions of a file with an active reference to it only; removal
            // lets no thread take another, and waits until those that were taken are put
            // (`kernfs_drain()`). So no function of these files runs after this, and the nodes, which
            // are dropped afterwards, are not used any more, whoever has the files open. The kernel
            // frees the kobject.
            unsafe {
                bindings::kobject_del(dir.as_ptr());
                bindings::kobject_put(dir.as_ptr());
            }
        }
    }
}

// `device::Device` is a transparent wrapper; the cast below relies on it.
const _: () = assert!(size_of::<device::Device>() == size_of::<bindings::device>());
const _: () = assert!(align_of::<device::Device>() == align_of::<bindings::device>());

/// Returns the kobject of a device.
fn kobject(device: &device::Device) -> *mut bindings::kobject {
    // CAST: `device::Device` is transparent over `Opaque<struct device>`, checked above.
    let device: *mut bindings::device = core::ptr::from_ref(device).cast_mut().cast();
    // SAFETY: The device is valid, so the field is in bounds.
    unsafe { &raw mut (*device).kobj }
}

type Store = unsafe extern "C" fn(
    *mut bindings::kobject,
    *mut bindings::kobj_attribute,
    *const c_char,
    usize,
) -> isize;

/// # Safety
///
/// `attribute` must be that of a `Node<T>` whose file exists while this runs; `buf` must be the
/// buffer of a file that is shown.
unsafe extern "C" fn show<T: Number>(
    _: *mut bindings::kobject,
    attribute: *mut bindings::kobj_attribute,
    buf: *mut c_char,
) -> isize {
    // SAFETY: By this function's requirements: the attribute is the first field of the node, which
    // `SysfsFiles` keeps while its file exists.
    let node = unsafe { &*attribute.cast::<Node<T>>() };
    // SAFETY: By this function's requirements.
    let len = unsafe { ext::sysfs_emit_number(buf, node.number.show()) };
    // CAST: Widens.
    len as isize
}

/// # Safety
///
/// `attribute` must be that of a `Node<T>` whose file exists while this runs; `buf` must be a C
/// string.
unsafe extern "C" fn store<T: Number>(
    _: *mut bindings::kobject,
    attribute: *mut bindings::kobj_attribute,
    buf: *const c_char,
    len: usize,
) -> isize {
    // SAFETY: As in `show()`.
    let node = unsafe { &*attribute.cast::<Node<T>>() };
    let mut value = 0;
    from_result(|| {
        // SAFETY: `buf` is a C string; kernfs adds the final zero to what was written.
        to_result(unsafe { bindings::kstrtouint(buf, 0, &mut value) })?;
        node.number.store(value)?;
        // CAST: At most a page.
        Ok(len as isize)
    })
}
