# SPDX-License-Identifier: GPL-2.0
#
# The commands of the project; "make help" lists them. The work is done by the scripts
# in tools/. How the modules are built is in Kbuild, which "make -C $KDIR M=$PWD modules"
# uses without this file.

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory --no-builtin-rules

# Settings are passed to the scripts literally: a $ in CMD is the guest shell's.
SETTINGS := KERNEL CMD OVERLAY MEM APPEND TIMEOUT LOAD CPUS IOMMU ICOUNT STRICT \
	KSRC KDIR JOBS SUITES SEED REPLAY MINIMIZE CALLS TIMES WITHOUT PROCESSES KCOV BENCH_JSON LIST TEST SUBTEST GUESTS \
	GPUSVM_CACHE GPUSVM_MIRROR
$(foreach s,$(SETTINGS),$(if $(filter-out undefined default,$(origin $(s))),\
	$(eval override $(s) := $$(value $(s)))$(eval export $(s))))

.PHONY: help demo check check-kcsan check-arm64 run modules kernel userspace stress fuzz igt bench doc fmt fmt-check clippy clean distclean

help: ## list these targets
	@echo "gpusvm: GPU shared virtual memory for Linux 7.3, in Rust, tried in QEMU"
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s%s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Settings: KERNEL=debug|plain|kcsan|arm64|arm64-64k|stock  CMD='...'  OVERLAY=dir  MEM=4G"
	@echo "          LOAD='gpusvm vxe'  CPUS=2  APPEND='...'  TIMEOUT=s"
	@echo "          KSRC=path (an unpacked kernel source instead of Debian's package)  BENCH_JSON=path"
	@echo "Toolchain, kernels and downloads are kept in $${GPUSVM_CACHE:-$${XDG_CACHE_HOME:-~/.cache}/gpusvm}"

demo: ## boot a guest in which a GPU works on a program's own memory
	@tools/demo

check: ## run every test
	@tools/check

check-kcsan: ## look for data races: KUnit and the programs on a kernel with KCSAN
	@tools/check list-kcsan

check-arm64: ## KUnit and the programs on a kernel for 64-bit Arm
	@tools/check list-arm64

run: ## boot the guest with the modules and run CMD (without CMD: a shell)
	@tools/run

modules: ## build the modules: for KERNEL, or against the prepared tree KDIR
	@tools/modules $(if $(KDIR),kdir,$(or $(KERNEL),debug)) >/dev/null

kernel: ## build the guest kernel KERNEL
	@tools/kernel $(or $(KERNEL),debug)

userspace: ## build the demo, the tests and the benchmarks
	@tools/userspace >/dev/null

stress: ## random work with all contents checked: SECONDS=120, SEED=, REPLAY=, KERNEL=debug|plain
	@SECONDS_OF_STRESS='$(SECONDS)' tools/stress

fuzz: ## random calls of all ioctls: SECONDS=120, SEED=, REPLAY=, MINIMIZE=, KERNEL=debug|plain, KCOV=1
	@SECONDS_OF_FUZZING='$(SECONDS)' tools/fuzz

igt: ## Intel's tests: LIST=short|svm|bat|full|file, or TEST=program SUBTEST=pattern, KERNEL=plain|debug
	@tools/igt

bench: ## count instructions of every operation; BENCH_JSON=path writes the figures
	@tools/bench

doc: ## build the documentation and that of the API, in build/doc
	@tools/doc

fmt: ## format all Rust source
	@tools/fmt

fmt-check: ## check the format of all Rust source
	@tools/fmt --check

clippy: ## run clippy on the modules and on the userspace programs
	@tools/clippy

clean: ## remove what was built in the tree
	@tools/clean

distclean: ## clean, and remove the cache: toolchain, kernels, downloads
	@tools/clean --cache
