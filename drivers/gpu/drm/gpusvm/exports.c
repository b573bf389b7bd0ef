// SPDX-License-Identifier: GPL-2.0

/*
 * Exports of gpusvm.ko: the Rust symbols and C helpers that other modules of the
 * project refer to, found by the build (see Kbuild). Rust has no way to say
 * EXPORT_SYMBOL_GPL() yet.
 */

#include <linux/export.h>

#define EXPORT_SYMBOL_RUST_GPL(sym) extern int sym; EXPORT_SYMBOL_GPL(sym)

#include "exports_generated.h"
