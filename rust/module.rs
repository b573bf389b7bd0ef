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

/// Keeps a module from being unloaded. There is none that could not be taken.
///
/// # Invariants
///
/// None, for code that is built in, or a module of which this owns a reference.
pub struct ModuleRef(Option<NonNull<bindings::module>>);

// SAFETY: References to modules may be given back in any context.
unsafe impl Send for ModuleRef {}
// SAFETY: Nothing is reached through a shared reference.
unsafe impl Sync for ModuleRef {}

impl ModuleRef {
    /// Takes a reference to a module; a null pointer stands for the kernel itself.
    ///
    /// Fails with `ENODEV` if the module is on its way out, and has taken nothing then.
    ///
    /// # Safety
    ///
    /// `module` must be null, or a module that exists during the call.
    pub unsafe fn try_get(module: *mut bindings::module) -> Result<Self> {
        // SAFETY: By this function's requirements.
        if !unsafe { bindings::try_module_get(module) } {
            return Err(ENODEV);
        }
        // INVARIANT: The reference that was just taken, if there is a module.
        Ok(Self(NonNull::new(module)))
    }

    /// Takes a reference to the module that `M` describes, such as the `OwnerModule` of a trait that is implemented with
    /// `#[vtable]`.
    ///
    /// Fails with `ENODEV` if the module is on its way out, and has taken nothing then.
    pub fn of<M: ModuleMetadata>() -> Result<Self> {
        // SAFETY: The module exists: this is called from it, or from code that it had compiled, with its `M`.
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
