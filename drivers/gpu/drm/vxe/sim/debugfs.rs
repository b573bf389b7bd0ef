// SPDX-License-Identifier: GPL-2.0

//! Files in the debugfs directory of a DRM device.
//!
//! `kernel::drm` has no debugfs hook, and `kernel::debugfs` creates files only below directories of
//! its own. [`DebugfsFiles`] creates files in `dri/<device>`, which `dri/<minor>` links to.
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

/// The content of a debugfs file, and its write operation.
#[vtable]
pub trait Content: Send + Sync + 'static {
    /// Prints the file. An error is returned to the reader.
    fn show(&self, m: &SeqFile) -> Result;

    /// Handles a write of up to 32 bytes, without its final newline.
    fn write(&self, _text: &[u8]) -> Result {
        kernel::build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }
}

/// Returns whether the text so far exceeds the buffer. The seq file then discards it and calls
/// `show()` again with a larger buffer. C: `seq_has_overflowed()`.
pub fn has_overflowed(m: &SeqFile) -> bool {
    let m: *const bindings::seq_file = core::ptr::from_ref(m).cast();
    // SAFETY: `SeqFile` is transparent over the C object, which only the caller uses.
    unsafe { (*m).count == (*m).size }
}

/// A directory of a [`DebugfsFiles`], valid for that only.
#[derive(Clone, Copy)]
pub struct Dir(*mut bindings::dentry);

/// Any [`Content`], kept alive for its file.
trait AnyContent: Send + Sync {}
impl<T: Content> AnyContent for T {}

/// The files of a driver in its DRM device's debugfs directory.
///
/// Dropping it removes the files and waits for their readers. Without debugfs no file exists, and
/// nothing fails.
///
/// # Invariants
///
/// `tops` are the entries directly in the device's directory. `contents` has the contents of all
/// files in or below them.
pub struct DebugfsFiles {
    root: *mut bindings::dentry,
    tops: KVec<*mut bindings::dentry>,
    contents: KVec<KBox<dyn AnyContent>>,
}

// SAFETY: Entries may be removed from any thread, and contents are `Send`.
unsafe impl Send for DebugfsFiles {}
// SAFETY: There are no methods that take a shared reference.
unsafe impl Sync for DebugfsFiles {}

impl DebugfsFiles {
    /// Creates an empty set of files in the directory of `drm`.
    ///
    /// # Safety
    ///
    /// The result must be dropped before `drm` is unregistered.
    pub unsafe fn new(drm: *mut bindings::drm_device) -> Self {
        Self {
            // SAFETY: The caller guarantees that `drm` is valid, and stays registered meanwhile.
            root: unsafe { (*drm).debugfs_root },
            tops: KVec::new(),
            contents: KVec::new(),
        }
    }

    /// Creates a directory in `parent`, or in the device's directory.
    pub fn dir(&mut self, parent: Option<Dir>, name: &CStr) -> Result<Dir> {
        self.tops.reserve(1, GFP_KERNEL)?;
        let to = parent.map_or(self.root, |dir| dir.0);
        // SAFETY: `name` is a C string, and the parent exists by the contract of `new()`; an error
        // pointer is a valid parent.
        let dentry = unsafe { ext::debugfs_create_dir(name.as_char_ptr(), to) };
        self.created(parent, dentry)?;
        Ok(Dir(dentry))
    }

    /// Creates a symbolic link to `target` in the device's directory.
    pub fn link(&mut self, name: &CStr, target: &CStr) -> Result {
        self.tops.reserve(1, GFP_KERNEL)?;
        // SAFETY: These are C strings, which are copied; the device's directory exists by the
        // contract of `new()`, or is an error pointer, which is a valid parent.
        let dentry = unsafe {
            ext::debugfs_create_symlink(name.as_char_ptr(), self.root, target.as_char_ptr())
        };
        self.created(None, dentry)
    }

    /// Keeps a new entry in `parent`. The caller has reserved room for it.
    fn created(&mut self, parent: Option<Dir>, dentry: *mut bindings::dentry) -> Result {
        if parent.is_none() {
            // INVARIANT: The entry is directly in the root. One in a directory is removed with that.
            self.tops.push(dentry, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Creates a file in `dir`, or in the device's directory.
    pub fn file<T: Content>(&mut self, dir: Option<Dir>, name: &CStr, content: T) -> Result {
        self.tops.reserve(1, GFP_KERNEL)?;
        self.contents.reserve(1, GFP_KERNEL)?;
        let content = KBox::new(content, GFP_KERNEL)?;
        let data: *const T = &*content;
        let mode = if T::HAS_WRITE { 0o600 } else { 0o400 };
        // SAFETY: The parent exists by the contract of `new()`, or is an error pointer, which is a
        // valid parent. `FOPS` expects an inode whose data is a `T`; `contents` keeps it until
        // `drop()` has removed the file.
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
        self.created(dir, dentry)
    }
}

impl Drop for DebugfsFiles {
    fn drop(&mut self) {
        for dentry in &self.tops {
            // SAFETY: By the type invariant the entry was created by this type, and only this
            // removes it. An error pointer is ignored. debugfs has waited for the readers when this
            // returns.
            unsafe { ext::debugfs_remove(*dentry) };
        }
    }
}

/// The file operations of a file with content `T`.
struct Ops<T>(PhantomData<T>);

impl<T: Content> Ops<T> {
    const FOPS: bindings::file_operations = bindings::file_operations {
        // An open file keeps the module, even after the file was removed.
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
/// The data of `inode` must be a `T` that lives until the file is removed, and `file` must be newly
/// opened.
unsafe extern "C" fn open<T: Content>(
    inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: By this function's requirements; `show` expects a `T` as the private data.
    unsafe { bindings::single_open(file, Some(show::<T>), (*inode).i_private) }
}

/// # Safety
///
/// `seq` must be a seq file whose private data is a `T`, and which only the caller uses.
unsafe extern "C" fn show<T: Content>(seq: *mut bindings::seq_file, _: *mut c_void) -> c_int {
    // SAFETY: By this function's requirements; debugfs does not remove the file, so the `T` lives,
    // while this runs.
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
    // SAFETY: `single_open()` set the file's private data to a seq file, whose private data is a
    // `T`; debugfs does not remove the file while this runs.
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
        // CAST: At most `MAX_WRITE`.
        Ok(len as isize)
    })
}
