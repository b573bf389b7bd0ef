// SPDX-License-Identifier: GPL-2.0

//! Files in the debugfs directory of a DRM device.
//!
//! `kernel::drm` has no debugfs hook, and `kernel::debugfs` makes files only below directories of its
//! own. Here a [`Tree`] hangs files into `dri/<device>`, which `dri/<minor>` links to.
//!
//! C headers: [`include/linux/debugfs.h`](srctree/include/linux/debugfs.h),
//! [`include/drm/drm_device.h`](srctree/include/drm/drm_device.h)

use crate::bindings as ext;
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::from_result,
    fs::file,
    module::this_module,
    prelude::*,
    seq_file::SeqFile,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// The longest text that may be written to a file at once, in bytes.
const MAX_WRITE: usize = 32;

/// What a debugfs file shows, and does when it is written.
#[vtable]
pub trait Content: Send + Sync + 'static {
    /// Prints the file. An error becomes the reader's.
    fn show(&self, m: &SeqFile) -> Result;

    /// Takes what was written: up to 32 bytes, without a final newline.
    fn write(&self, _text: &[u8]) -> Result {
        kernel::build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }
}

/// Whether what was printed so far does not fit: then it is thrown away, and the file shown again with
/// more room. C: `seq_has_overflowed()`.
pub fn has_overflowed(m: &SeqFile) -> bool {
    let m: *const bindings::seq_file = core::ptr::from_ref(m).cast();
    // SAFETY: `SeqFile` is transparent over the C object, which nobody else uses meanwhile.
    unsafe { (*m).count == (*m).size }
}

/// A directory that a [`Tree`] has made. It means something to that tree only.
#[derive(Clone, Copy)]
pub struct Dir(*mut bindings::dentry);

/// Keeps what a file shows alive.
trait Keep: Send + Sync {}
impl<T: Content> Keep for T {}

/// The files that a driver has in its DRM device's debugfs directory.
///
/// Dropping it removes them and waits for who is reading them. Without debugfs it holds nothing,
/// and nothing fails.
///
/// # Invariants
///
/// `tops` are the entries that are directly in the device's directory; the contents of every file
/// below them is in `contents`.
pub struct Tree {
    root: *mut bindings::dentry,
    tops: KVec<*mut bindings::dentry>,
    contents: KVec<KBox<dyn Keep>>,
}

// SAFETY: Entries may be removed from any thread, and contents are `Send`.
unsafe impl Send for Tree {}
// SAFETY: A shared tree gives access to nothing.
unsafe impl Sync for Tree {}

impl Tree {
    /// An empty tree in the directory of `drm`.
    ///
    /// # Safety
    ///
    /// The tree must be dropped before `drm` is unregistered.
    pub unsafe fn new(drm: *mut bindings::drm_device) -> Self {
        Self {
            // SAFETY: By the requirement, `drm` is a device whose directory stays.
            root: unsafe { (*drm).debugfs_root },
            tops: KVec::new(),
            contents: KVec::new(),
        }
    }

    /// Makes a directory in the device's.
    pub fn dir(&mut self, name: &CStr) -> Result<Dir> {
        self.tops.reserve(1, GFP_KERNEL)?;
        // SAFETY: `name` is a C string, and the device's directory exists by `new()`'s contract;
        // an error pointer is a valid parent.
        let dentry = unsafe { ext::debugfs_create_dir(name.as_char_ptr(), self.root) };
        // INVARIANT: It is directly in the root. Room was reserved above.
        self.tops.push(dentry, GFP_KERNEL)?;
        Ok(Dir(dentry))
    }

    /// Makes a file: in `dir`, or in the device's directory.
    pub fn file<T: Content>(&mut self, dir: Option<Dir>, name: &CStr, content: T) -> Result {
        self.tops.reserve(1, GFP_KERNEL)?;
        self.contents.reserve(1, GFP_KERNEL)?;
        let content = KBox::new(content, GFP_KERNEL)?;
        let data: *const T = &*content;
        let mode = if T::HAS_WRITE { 0o600 } else { 0o400 };
        // SAFETY: The parent exists by `new()`'s contract, or is an error pointer, which is a valid
        // one. `FOPS` expects an inode whose data is a `T`, which `contents` keeps until `drop()`
        // has removed the file.
        let dentry = unsafe {
            ext::debugfs_create_file(
                name.as_char_ptr(),
                mode,
                dir.map_or(self.root, |dir| dir.0),
                data.cast_mut().cast(),
                &Ops::<T>::FOPS,
            )
        };
        self.contents.push(content, GFP_KERNEL)?;
        if dir.is_none() {
            // INVARIANT: It is directly in the root; a file in a directory goes with that.
            self.tops.push(dentry, GFP_KERNEL)?;
        }
        Ok(())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for dentry in &self.tops {
            // SAFETY: By the type invariant it was made by `dir()` or `file()`, and removed by
            // nobody; an error pointer is ignored. No reader uses the contents afterwards.
            unsafe { ext::debugfs_remove(*dentry) };
        }
    }
}

/// The file operations of a file that shows a `T`.
struct Ops<T>(PhantomData<T>);

impl<T: Content> Ops<T> {
    const FOPS: bindings::file_operations = bindings::file_operations {
        // An open file keeps its code, even when it was removed.
        owner: this_module::<T::OwnerModule>().as_ptr(),
        open: Some(open::<T>),
        read: Some(bindings::seq_read),
        write: if T::HAS_WRITE { Some(write::<T>) } else { None },
        llseek: Some(bindings::seq_lseek),
        release: Some(bindings::single_release),
        ..pin_init::zeroed()
    };
}

/// # Safety
///
/// `inode` must have a `T` as its data that lives until the file is removed, and `file` be newly
/// opened.
unsafe extern "C" fn open<T: Content>(
    inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: By this function's requirements; `show` takes the `T` as the private data.
    unsafe { bindings::single_open(file, Some(show::<T>), (*inode).i_private) }
}

/// # Safety
///
/// `seq` must be a seq file whose private data is a `T`, used by nobody else.
unsafe extern "C" fn show<T: Content>(seq: *mut bindings::seq_file, _: *mut c_void) -> c_int {
    // SAFETY: By this function's requirements; debugfs keeps the file, and so the `T`, while this
    // runs.
    let content = unsafe { &*(*seq).private.cast::<T>() };
    // SAFETY: By this function's requirements.
    let m = unsafe { SeqFile::from_raw(seq) };
    from_result(|| content.show(m).map(|()| 0))
}

/// # Safety
///
/// `file` must have been opened by [`open`] for the same `T`; `buf` is a user address.
unsafe extern "C" fn write<T: Content>(
    file: *mut bindings::file,
    buf: *const c_char,
    len: usize,
    _pos: *mut file::Offset,
) -> isize {
    // SAFETY: `single_open()` made the private data a seq file, whose own is a `T`; debugfs keeps
    // it while this runs.
    let content = unsafe {
        let seq: *mut bindings::seq_file = (*file).private_data.cast();
        &*(*seq).private.cast::<T>()
    };
    let mut text = [0; MAX_WRITE];
    from_result(|| {
        let text = text.get_mut(..len).ok_or(EINVAL)?;
        let user = UserPtr::from_ptr(buf.cast_mut().cast());
        UserSlice::new(user, len).reader().read_slice(text)?;
        content.write(text.strip_suffix(b"\n").unwrap_or(text))?;
        // CAST: Not more than `MAX_WRITE`.
        Ok(len as isize)
    })
}
