// SPDX-License-Identifier: GPL-2.0

/* Exports of vxe_sim.ko, found by the build as those of gpusvm.ko are. */

#include <linux/export.h>

#define EXPORT_SYMBOL_RUST_GPL(sym) extern int sym; EXPORT_SYMBOL_GPL(sym)

#include "exports_generated.h"
