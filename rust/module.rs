// SPDX-License-Identifier: GPL-2.0

//! References to modules.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use core::ptr::NonNull;
use kernel::{
    bindings,
    module::{
        this_module,
        ModuleMetadata, //
    },
    prelude::*, //
};

/// A counted reference to a module, which keeps it from being unloaded.
///
/// # Invariants
///
/// Owns a reference to the module; `None` stands for built-in code.
pub struct ModuleRef(Option<NonNull<bindings::module>>);

// SAFETY: References to modules may be dropped in any context.
unsafe impl Send for ModuleRef {}
// SAFETY: A shared reference gives access to nothing.
unsafe impl Sync for ModuleRef {}

impl ModuleRef {
    /// Takes a reference to a module; a null pointer stands for built-in code.
    ///
    /// Fails with `ENODEV` if the module is being unloaded.
    ///
    /// # Safety
    ///
    /// `module` must be null, or a valid module during the call.
    pub unsafe fn try_get(module: *mut bindings::module) -> Result<Self> {
        // SAFETY: By this function's requirements.
        if !unsafe { bindings::try_module_get(module) } {
            return Err(ENODEV);
        }
        // INVARIANT: `try_module_get()` took the reference.
        Ok(Self(NonNull::new(module)))
    }

    /// Takes a reference to the module that `M` describes, for example the `OwnerModule` of a trait
    /// that is implemented with `#[vtable]`.
    ///
    /// Fails with `ENODEV` if the module is being unloaded.
    pub fn of<M: ModuleMetadata>() -> Result<Self> {
        // SAFETY: The module exists: the caller is code of it, or generic code that it instantiated
        // with its `M`.
        unsafe { Self::try_get(this_module::<M>().as_ptr()) }
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        if let Some(module) = self.0 {
            // SAFETY: By the type invariants.
            unsafe { bindings::module_put(module.as_ptr()) }
        }
    }
}
