// SPDX-License-Identifier: GPL-2.0

//! Generates the uAPI structs from the kernel's `xe_drm.h`.
//!
//! `XE_DRM_H` names the header, so the structs are those of the kernel under test and no copy of
//! them can go stale. `BINDGEN` names the bindgen program; the kernel's own Rust build needs one
//! anyway.

use std::{env, path::PathBuf, process::Command};

const WRAPPER: &str = "src/xe_drm_wrapper.h";

fn main() {
    println!("cargo:rerun-if-env-changed=XE_DRM_H");
    println!("cargo:rerun-if-env-changed=BINDGEN");
    println!("cargo:rerun-if-changed={WRAPPER}");

    let header = env::var("XE_DRM_H")
        .expect("XE_DRM_H must be the path of the kernel's include/uapi/drm/xe_drm.h");
    println!("cargo:rerun-if-changed={header}");

    let bindgen = env::var("BINDGEN").unwrap_or_else(|_| "bindgen".into());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("xe_drm.rs");
    let status = Command::new(&bindgen)
        .arg(WRAPPER)
        .arg("--output")
        .arg(&out)
        .args(["--use-core", "--with-derive-default", "--no-doc-comments"])
        .args(["--default-enum-style", "consts", "--no-prepend-enum-name"])
        .args([
            "--allowlist-type",
            "drm_xe_.*|xe_vm_fault|drm_version|drm_gem_close|drm_prime_handle|drm_syncobj_(create|destroy)",
        ])
        .args(["--allowlist-var", "IOCTL_.*|DRM_XE_.*|FAULT_.*"])
        .arg("--")
        .arg(format!("-DXE_DRM_H=\"{header}\""))
        // The kernel's unsanitised headers still carry the annotation.
        .arg("-D__user=")
        .status()
        .unwrap_or_else(|e| panic!("cannot run {bindgen}: {e}"));
    assert!(status.success(), "{bindgen} failed on {header}");
}
