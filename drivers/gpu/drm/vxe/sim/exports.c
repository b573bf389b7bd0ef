// SPDX-License-Identifier: GPL-2.0

/* The exports of vxe_sim.ko; the build generates their list as it does for gpusvm.ko. */

#include <linux/export.h>

#define EXPORT_SYMBOL_RUST_GPL(sym) extern int sym; EXPORT_SYMBOL_GPL(sym)

#include "exports_generated.h"
