// SPDX-License-Identifier: GPL-2.0

//! The name of a DRM driver, by which programs know its uAPI, as a parameter of the module.
//!
//! `drm::Driver::INFO` is a constant, so a device gets a copy of its driver with another name. And
//! `module!` has no parameters that are text: [`name_param!`](crate::name_param) declares one.
//!
//! C headers: [`include/drm/drm_drv.h`](srctree/include/drm/drm_drv.h),
//! [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use crate::bindings as ext;
use kernel::{
    bindings,
    drm,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::SetOnce, //
};
use kernel_ext::drm::device::DrmDevice;

/// The longest name, in bytes.
const MAX_LEN: usize = 31;

/// Gives the driver of `dev` the name `name`. Fails with `EBUSY` for a device that is registered
/// already, and `ENOMEM`.
pub fn set<T: drm::Driver>(dev: &drm::Device<T>, name: &'static CStr) -> Result {
    let drm = DrmDevice::of(dev).as_raw();
    // SAFETY: The device is valid. `name` lives as long as the module of the driver, which whoever
    // uses the device keeps.
    to_result(unsafe { ext::drm_name_by(drm, name.as_char_ptr()) })
}

/// A module parameter that is the name of a DRM driver: up to 31 letters, digits, `-` and `_`.
pub struct NameParam {
    value: SetOnce<Name>,
    default: &'static CStr,
}

/// The bytes of a C string.
type Name = [u8; MAX_LEN + 1];

impl NameParam {
    /// Creates a parameter; for [`name_param!`](crate::name_param).
    pub const fn new(default: &'static CStr) -> Self {
        Self {
            value: SetOnce::new(),
            default,
        }
    }

    /// Returns the name.
    pub fn value(&'static self) -> &'static CStr {
        let given = self.value.as_ref();
        given
            .and_then(|name| CStr::from_bytes_until_nul(name).ok())
            .unwrap_or(self.default)
    }

    /// Sets the name. Fails with `EINVAL`, and with `EEXIST` if it is set already.
    fn set(&self, text: &CStr) -> Result {
        let text = text.to_bytes();
        let is_good = |c: &u8| c.is_ascii_alphanumeric() || b"-_".contains(c);
        if text.is_empty() || !text.iter().all(is_good) {
            return Err(EINVAL);
        }
        let mut name = [0; MAX_LEN + 1];
        let place = name
            .get_mut(..MAX_LEN)
            .and_then(|place| place.get_mut(..text.len()));
        place.ok_or(EINVAL)?.copy_from_slice(text);
        self.value.populate(name).then_some(()).ok_or(EEXIST)
    }
}

/// The functions of a [`NameParam`].
pub static NAME_PARAM_OPS: bindings::kernel_param_ops = bindings::kernel_param_ops {
    flags: 0,
    set: Some(set_param),
    get: None,
    free: None,
};

/// # Safety
///
/// `value` must be null or a C string, and `param` a parameter that
/// [`name_param!`](crate::name_param) declared.
unsafe extern "C" fn set_param(
    value: *const c_char,
    param: *const bindings::kernel_param,
) -> c_int {
    from_result(|| {
        if value.is_null() {
            return Err(EINVAL);
        }
        // SAFETY: By this function's requirements: the argument is a static `NameParam`.
        let (param, value) = unsafe {
            let param = (*param).__bindgen_anon_1.arg.cast::<NameParam>();
            (&*param, CStr::from_char_ptr(value))
        };
        param.set(value).map(|()| 0)
    })
}

/// Copies text to an array; for [`name_param!`](crate::name_param).
#[doc(hidden)]
pub const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let text = text.as_bytes();
    let mut bytes = [0; N];
    let mut i = 0;
    while i < N {
        bytes[i] = text[i];
        i += 1;
    }
    bytes
}

/// Declares a static `NameParam`, and the parameter of the module in which
/// the macro is used, which is loadable. It is set when the module is loaded, and is not in sysfs.
#[macro_export]
macro_rules! name_param {
    ($param:ident: $name:literal, default: $default:literal, description: $description:literal) => {
        static $param: $crate::drm_name::NameParam =
            $crate::drm_name::NameParam::new(::kernel::c_str!($default));

        const _: () = {
            #[link_section = "__param"]
            #[used]
            static PARAM: ::kernel::module_param::KernelParam =
                ::kernel::module_param::KernelParam::new(::kernel::bindings::kernel_param {
                    name: ::kernel::str::as_char_ptr_in_const_context(::kernel::c_str!($name)),
                    // SAFETY: Only the address is taken, of the module that this is linked into.
                    mod_: unsafe { &raw const ::kernel::bindings::__this_module }.cast_mut(),
                    ops: &raw const $crate::drm_name::NAME_PARAM_OPS,
                    perm: 0,
                    level: -1,
                    flags: 0,
                    __bindgen_anon_1: ::kernel::bindings::kernel_param__bindgen_ty_1 {
                        arg: (&raw const $param).cast_mut().cast(),
                    },
                });

            const TYPE: &str = concat!("parmtype=", $name, ":charp\0");
            #[link_section = ".modinfo"]
            #[used]
            static TYPE_INFO: [u8; TYPE.len()] = $crate::drm_name::bytes(TYPE);

            const TEXT: &str = concat!("parm=", $name, ":", $description, "\0");
            #[link_section = ".modinfo"]
            #[used]
            static TEXT_INFO: [u8; TEXT.len()] = $crate::drm_name::bytes(TEXT);
        };
    };
}

#[kunit_tests(vxe_sim_drm_name)]
mod tests {
    use super::*;

    fn check(holds: bool) -> Result {
        holds.then_some(()).ok_or(EIO)
    }

    #[test]
    fn a_name_is_taken_once() -> Result {
        static PARAM: NameParam = NameParam::new(c"xe");
        let refused = |text: &CStr| PARAM.set(text) == Err(EINVAL);
        check(refused(c"") && refused(c"x e") && refused(c"xe\n") && refused(c"\xc3\xa4"))?;
        check(refused(c"a-name-of-32-bytes-is-too-long-.") && PARAM.value() == c"xe")?;
        check(refused(c"a-name-of-32-bytes-is-too-long-1"))?;
        PARAM.set(c"a-name-of-31-bytes-may-be-taken")?;
        check(PARAM.value() == c"a-name-of-31-bytes-may-be-taken")?;
        check(PARAM.set(c"i915") == Err(EEXIST))
    }
}
