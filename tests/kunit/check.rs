// SPDX-License-Identifier: GPL-2.0

//! Checks that end a test by an error.
//!
//! KUnit's assertions, when they fail, exit the thread of the test without running destructors. So
//! tests use [`ensure!`] and [`ensure_eq!`], which report the failure to KUnit and return an error.
//!
//! C header: [`include/kunit/test.h`](srctree/include/kunit/test.h)

use core::{ffi::c_void, ptr};
use kernel::{bindings, fmt, prelude::*, str::CStr};

/// Fails the test unless `$cond` holds. For functions that return a [`Result`].
macro_rules! ensure {
    ($cond:expr $(,)?) => {
        if !$cond {
            return Err($crate::check::failed(
                kernel::c_str!(file!()),
                line!(),
                kernel::prelude::fmt!("Expected {}", stringify!($cond)),
            ));
        }
    };
}

/// Fails the test, and prints both values, unless they are equal.
macro_rules! ensure_eq {
    ($left:expr, $right:expr $(,)?) => {
        match (&$left, &$right) {
            (left, right) => {
                if *left != *right {
                    return Err($crate::check::failed(
                        kernel::c_str!(file!()),
                        line!(),
                        kernel::prelude::fmt!(
                            "Expected {} == {}, but {:x?} is not {:x?}",
                            stringify!($left),
                            stringify!($right),
                            left,
                            right
                        ),
                    ));
                }
            }
        }
    };
}

/// Reports a failed check to KUnit, and returns an error for the test to return.
pub(crate) fn failed(file: &'static CStr, line: u32, what: fmt::Arguments<'_>) -> Error {
    // SAFETY: Has no requirements.
    let test = unsafe { bindings::kunit_get_current_test() };
    if test.is_null() {
        pr_err!("{file}:{line}: {what}\n");
        return EINVAL;
    }
    let location = bindings::kunit_loc {
        file: file.as_char_ptr(),
        // CAST: Files have less than 2^31 lines.
        line: line as i32,
    };
    let assert = bindings::kunit_assert {};
    // SAFETY: `test` is the running test, the other pointers are valid during the call, and `%pA`
    // takes a pointer to Rust's formatting arguments.
    unsafe {
        bindings::__kunit_do_failed_assertion(
            test,
            &raw const location,
            bindings::kunit_assert_type_KUNIT_EXPECTATION,
            &raw const assert,
            Some(bindings::kunit_fail_assert_format),
            c"%pA".as_char_ptr(),
            (&raw const what).cast::<c_void>(),
        );
    }
    EINVAL
}

/// Returns whether the running test was skipped.
pub(crate) fn is_skipped() -> bool {
    // SAFETY: Has no requirements.
    let test = unsafe { bindings::kunit_get_current_test() };
    // SAFETY: `test` is the running test, whose thread is this one; no other thread writes the field now.
    !test.is_null() && unsafe { (*test).status } == bindings::kunit_status_KUNIT_SKIPPED
}

/// Makes KUnit report the running test as skipped. The test then returns success.
pub(crate) fn skip(why: &str) {
    // SAFETY: Has no requirements.
    let test = unsafe { bindings::kunit_get_current_test() };
    if test.is_null() {
        return;
    }
    // SAFETY: `test` is the running test, which belongs to the calling thread; no other thread
    // writes these fields meanwhile.
    unsafe {
        (*test).status = bindings::kunit_status_KUNIT_SKIPPED;
        let comment = &mut (*test).status_comment;
        let length = why.len().min(comment.len() - 1);
        ptr::copy_nonoverlapping(why.as_ptr(), comment.as_mut_ptr().cast(), length);
        comment[length] = 0;
    }
}
