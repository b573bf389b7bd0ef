// SPDX-License-Identifier: GPL-2.0

//! Subsystems of configfs: directories in which `mkdir` makes an object, with files for its
//! attributes.
//!
//! `kernel::configfs` has such directories, too, but a module that may be loaded beside another one
//! with the same code cannot use it:
//!
//! - a `Subsystem` that cannot be registered, for want of memory or as its name is taken, is
//!   unregistered all the same, which dereferences a null pointer;
//! - it initializes the subsystem's mutex in generic code, so that lockdep finds one class with
//!   different names in two modules;
//! - users other than root cannot read its attributes (mode 0660; C drivers have 0644);
//! - an object whose long name found no memory is made without one.
//!
//! configfs takes a reference to the module for each object. It calls no function of an attribute
//! that is not done when `rmdir` begins to remove the object, and none after that.
//!
//! C header: [`include/linux/configfs.h`](srctree/include/linux/configfs.h)

use core::marker::PhantomData;
use kernel::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    module::this_module,
    page::PAGE_SIZE,
    prelude::*,
    str::Formatter,
    types::Opaque, //
};

/// The most bytes that configfs reads from a file at once: C's `SIMPLE_ATTR_SIZE`.
const MAX_TEXT: usize = if PAGE_SIZE < 4096 { PAGE_SIZE } else { 4096 };

/// What `mkdir` makes in the directory of a [`Subsystem`]. `rmdir` drops it.
#[vtable]
pub trait Item: Sized + Send + Sync + 'static {
    /// The data of the subsystem.
    type Root: Send + Sync + 'static;

    /// The files in the item's directory, each by [`attribute()`], and `None` as the last.
    const ATTRIBUTES: &'static [Option<&'static RawAttribute<Self>>];

    /// Makes an item for `mkdir`, which returns the error if this fails. Calls for a subsystem do
    /// not overlap.
    fn make(root: &Self::Root, name: &CStr) -> Result<impl PinInit<Self, Error>>;
}

/// An attribute of an item: a file that all may read, and the owner may write.
#[vtable]
pub trait Attribute: 'static {
    /// The item.
    type Item: Item;

    /// The name of the file.
    const NAME: &'static CStr;

    /// Prints the attribute's value, and a newline.
    fn show(item: &Self::Item, to: &mut Formatter<'_>) -> Result;

    /// Handles a write of up to 4095 bytes, without its final newline.
    fn store(_item: &Self::Item, _text: &[u8]) -> Result {
        kernel::build_error!(kernel::error::VTABLE_DEFAULT_ERROR)
    }
}

/// An attribute of items that are `T`s, as configfs has it.
///
/// # Invariants
///
/// Its functions may be called with any item that is a `T`.
#[repr(transparent)]
pub struct RawAttribute<T>(bindings::configfs_attribute, PhantomData<fn(T)>);

// SAFETY: It is never written.
unsafe impl<T> Sync for RawAttribute<T> {}

/// Returns the attribute that `A` implements.
pub const fn attribute<A: Attribute>() -> Option<&'static RawAttribute<A::Item>> {
    Some(&AttributeOf::<A>::RAW)
}

struct AttributeOf<A>(PhantomData<A>);

impl<A: Attribute> AttributeOf<A> {
    // INVARIANT: The functions expect an `A::Item`.
    const RAW: RawAttribute<A::Item> = RawAttribute(
        bindings::configfs_attribute {
            ca_name: kernel::str::as_char_ptr_in_const_context(A::NAME),
            ca_owner: this_module::<<A::Item as Item>::OwnerModule>().as_ptr(),
            ca_mode: if A::HAS_STORE { 0o644 } else { 0o444 },
            show: Some(show::<A>),
            store: if A::HAS_STORE { Some(store::<A>) } else { None },
        },
        PhantomData,
    );
}

/// # Safety
///
/// `item` must be an item that is an `A::Item`, and `page` a page that only the caller uses.
unsafe extern "C" fn show<A: Attribute>(
    item: *mut bindings::config_item,
    page: *mut c_char,
) -> isize {
    // SAFETY: By this function's requirements. configfs does not initialize a page that a write to
    // the same file came before.
    let (item, page) = unsafe {
        page.write_bytes(0, MAX_TEXT);
        let page = core::slice::from_raw_parts_mut(page.cast::<u8>(), MAX_TEXT);
        (Object::<A::Item>::data_of(item), page)
    };
    from_result(|| {
        let mut to = Formatter::new(page);
        A::show(item, &mut to)?;
        // CAST: At most a page.
        Ok(to.bytes_written().min(MAX_TEXT) as isize)
    })
}

/// # Safety
///
/// `item` must be an item that is an `A::Item`, and `text` point to `len` bytes.
unsafe extern "C" fn store<A: Attribute>(
    item: *mut bindings::config_item,
    text: *const c_char,
    len: usize,
) -> isize {
    // SAFETY: By this function's requirements.
    let (item, text) = unsafe {
        let text = core::slice::from_raw_parts(text.cast::<u8>(), len);
        (Object::<A::Item>::data_of(item), text)
    };
    from_result(|| {
        A::store(item, text.strip_suffix(b"\n").unwrap_or(text))?;
        // CAST: Less than a page.
        Ok(len as isize)
    })
}

/// An item, as configfs has it.
#[pin_data]
struct Object<T> {
    #[pin]
    data: T,
    #[pin]
    item: Opaque<bindings::config_item>,
}

impl<T: Item> Object<T> {
    /// Fails with `ENOMEM`, and as the initializer of the data does.
    fn new<'a>(
        name: &'a CStr,
        data: impl PinInit<T, Error> + 'a,
    ) -> impl PinInit<Self, Error> + 'a {
        try_pin_init!(Self {
            data <- data,
            item <- Opaque::try_ffi_init(|item: *mut bindings::config_item| {
                // SAFETY: `item` is valid for writes. The name is copied; the type is static.
                let named = unsafe {
                    item.write(pin_init::zeroed());
                    bindings::config_item_init_type_name(
                        item,
                        name.as_char_ptr(),
                        &Types::<T>::ITEM,
                    );
                    !(*item).ci_name.is_null()
                };
                // A name that is not part of the item is allocated.
                named.then_some(()).ok_or(ENOMEM)
            }),
        })
    }

    /// Returns the data of an item.
    ///
    /// # Safety
    ///
    /// `item` must be that of an `Object<T>`, which must not be released during `'a`.
    unsafe fn data_of<'a>(item: *mut bindings::config_item) -> &'a T {
        let item: *mut Opaque<bindings::config_item> = item.cast();
        // SAFETY: By this function's requirements; `Opaque` is transparent.
        unsafe { &(*kernel::container_of!(item, Self, item)).data }
    }
}

/// The types of a subsystem's directory and of its items.
struct Types<T>(PhantomData<T>);

impl<T: Item> Types<T> {
    const ITEM_OPS: bindings::configfs_item_operations = {
        let mut ops: bindings::configfs_item_operations = pin_init::zeroed();
        ops.release = Some(release::<T>);
        ops
    };

    const ITEM: bindings::config_item_type = bindings::config_item_type {
        ct_owner: this_module::<T::OwnerModule>().as_ptr(),
        ct_item_ops: &Self::ITEM_OPS,
        ct_group_ops: core::ptr::null(),
        ct_attrs: {
            assert!(matches!(T::ATTRIBUTES, [.., None]), "the list has no end");
            // CAST: `RawAttribute` is transparent, and configfs writes none of them. `None` is
            // null.
            T::ATTRIBUTES.as_ptr().cast_mut().cast()
        },
        ct_bin_attrs: core::ptr::null_mut(),
    };

    const ROOT_OPS: bindings::configfs_group_operations = {
        let mut ops: bindings::configfs_group_operations = pin_init::zeroed();
        ops.make_item = Some(make_item::<T>);
        ops
    };

    const ROOT: bindings::config_item_type = bindings::config_item_type {
        ct_owner: this_module::<T::OwnerModule>().as_ptr(),
        ct_item_ops: core::ptr::null(),
        ct_group_ops: &Self::ROOT_OPS,
        ct_attrs: core::ptr::null_mut(),
        ct_bin_attrs: core::ptr::null_mut(),
    };
}

/// # Safety
///
/// `group` must be that of a registered [`Subsystem<T>`].
unsafe extern "C" fn make_item<T: Item>(
    group: *mut bindings::config_group,
    name: *const c_char,
) -> *mut bindings::config_item {
    // SAFETY: By this function's requirements; `Opaque` is transparent. The subsystem's data was
    // initialized before it was registered. `name` is a C string during the call.
    let (root, name) = unsafe {
        let raw = kernel::container_of!(group, bindings::configfs_subsystem, su_group);
        let raw: *mut Opaque<bindings::configfs_subsystem> = raw.cast();
        let subsystem = kernel::container_of!(raw, Subsystem<T>, subsystem);
        (&(*subsystem).root, CStr::from_char_ptr(name))
    };
    let made = T::make(root, name)
        .and_then(|data| KBox::pin_init(Object::new(name, data), GFP_KERNEL_ACCOUNT));
    match made {
        Ok(object) => {
            // SAFETY: The object is not moved; `release()` frees it.
            let object = KBox::into_raw(unsafe { Pin::into_inner_unchecked(object) });
            // SAFETY: The object is valid.
            Opaque::cast_into(unsafe { &raw const (*object).item })
        }
        Err(e) => e.to_ptr(),
    }
}

/// # Safety
///
/// `item` must be that of an `Object<T>`, and nobody may use it after this.
unsafe extern "C" fn release<T: Item>(item: *mut bindings::config_item) {
    let item: *mut Opaque<bindings::config_item> = item.cast();
    // SAFETY: By this function's requirements; the object is from `make_item()`.
    drop(unsafe { KBox::from_raw(kernel::container_of!(item, Object<T>, item)) });
}

/// A registered subsystem: a directory in the root of configfs.
///
/// Each item keeps the module, so there are none when a module that is unloaded drops its
/// subsystem. The subsystem must be the last that the module's initialization creates: the module
/// goes without asking if that fails, and users may have made items by then.
///
/// # Invariants
///
/// The subsystem is registered, and its items are `Object<T>`s.
#[pin_data(PinnedDrop)]
pub struct Subsystem<T: Item> {
    root: T::Root,
    #[pin]
    subsystem: Opaque<bindings::configfs_subsystem>,
}

// SAFETY: Only `drop()` uses the subsystem, which any thread may unregister.
unsafe impl<T: Item> Send for Subsystem<T> {}
// SAFETY: There are no methods that take a shared reference.
unsafe impl<T: Item> Sync for Subsystem<T> {}

impl<T: Item> Subsystem<T> {
    /// Registers a subsystem called `name`.
    ///
    /// Fails with `EINVAL` for a name of 20 bytes or more, `EEXIST` if there is such a subsystem,
    /// and `ENOMEM`.
    pub fn new(name: &CStr, root: T::Root) -> impl PinInit<Self, Error> + '_ {
        try_pin_init!(Self {
            root,
            // INVARIANT: Registers it; configfs calls `make_item::<T>()` for new items.
            subsystem <- Opaque::try_ffi_init(|raw: *mut bindings::configfs_subsystem| {
                if name.to_bytes().len() >= bindings::CONFIGFS_ITEM_NAME_LEN as usize {
                    // configfs would never free a longer name of a subsystem.
                    return Err(EINVAL);
                }
                // SAFETY: `raw` is valid for writes. The name is copied, and the type is static.
                unsafe {
                    raw.write(pin_init::zeroed());
                    bindings::config_group_init_type_name(
                        &raw mut (*raw).su_group,
                        name.as_char_ptr(),
                        &Types::<T>::ROOT,
                    );
                    init_mutex(&raw mut (*raw).su_mutex);
                }
                // SAFETY: The subsystem was initialized, and `root`, which `make_item()` uses, was
                // before it.
                to_result(unsafe { bindings::configfs_register_subsystem(raw) }).inspect_err(|_| {
                    // SAFETY: It was initialized above, and nobody uses it.
                    unsafe { bindings::mutex_destroy(&raw mut (*raw).su_mutex) }
                })
            }),
        })
    }
}

/// Initializes the mutex of a subsystem. Not generic: the class and its name are the same for all
/// modules.
///
/// # Safety
///
/// `mutex` must be valid for writes.
#[inline(never)]
unsafe fn init_mutex(mutex: *mut bindings::mutex) {
    let class = kernel::static_lock_class!();
    // SAFETY: By this function's requirements; the name and the class are static.
    unsafe {
        bindings::__mutex_init(mutex, c"configfs_subsystem".as_char_ptr(), class.as_ptr());
    }
}

#[pinned_drop]
impl<T: Item> PinnedDrop for Subsystem<T> {
    fn drop(self: Pin<&mut Self>) {
        let raw = self.subsystem.get();
        // SAFETY: By the type invariants; nobody uses the mutex after that.
        unsafe {
            bindings::configfs_unregister_subsystem(raw);
            bindings::mutex_destroy(&raw mut (*raw).su_mutex);
        }
    }
}
