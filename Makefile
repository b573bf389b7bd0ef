# SPDX-License-Identifier: GPL-2.0
#
# The commands of the project; "make help" lists them. The work is done by the scripts
# in tools/. How the modules are built is in Kbuild, which "make -C $KDIR M=$PWD modules"
# uses without this file.

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory --no-builtin-rules

# Settings are passed to the scripts literally: a $ in CMD is the guest shell's.
SETTINGS := KERNEL CMD OVERLAY MEM APPEND TIMEOUT LOAD CPUS IOMMU ICOUNT STRICT \
	KSRC KDIR JOBS SUITES SEED REPLAY MINIMIZE CALLS TIMES WITHOUT PROCESSES KCOV BENCH_JSON GPUSVM_CACHE GPUSVM_MIRROR
$(foreach s,$(SETTINGS),$(if $(filter-out undefined default,$(origin $(s))),\
	$(eval override $(s) := $$(value $(s)))$(eval export $(s))))

# Make's own status is 2 whatever a recipe's was. These targets end with the status of
# what ran in the guest, through a loadable object that can end make with any status.
STATUS := build/.status.$(shell echo $$PPID)
status-of = @mkdir -p build; $(1); echo $$? >$(STATUS)
exit-with-status = @$(if $(wildcard $(STATUS)),$(call exit-with,$(shell cat $(STATUS); rm -f $(STATUS))),:)
exit-with = $(if $(filter-out 0,$(1)),$(eval -load $(shell tools/make-exit)(make_exit_setup))$(make-exit $(1))exit $(1),:)

.PHONY: help demo check check-kcsan run shell modules kernel userspace stress fuzz bench doc fmt fmt-check clippy clean \
	distclean run-guest demo-guest check-suites check-kcsan-suites

help: ## list these targets
	@echo "gpusvm: GPU shared virtual memory for Linux 7.3, in Rust, tried in QEMU"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s%s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Settings: KERNEL=debug|plain|kcsan  CMD='...'  OVERLAY=dir  MEM=4G  APPEND='...'  TIMEOUT=s"
	@echo "          KSRC=path (a Linux 7.3 source instead of Debian's package)  BENCH_JSON=path"
	@echo "Toolchain, kernels and downloads are kept in $${GPUSVM_CACHE:-$${XDG_CACHE_HOME:-~/.cache}/gpusvm}"

demo: demo-guest ## boot a guest in which a GPU works on a program's own memory
	$(exit-with-status)
demo-guest:
	$(call status-of,tools/demo)

check: check-suites ## run every test
	$(exit-with-status)
check-suites:
	$(call status-of,tools/check)

check-kcsan: check-kcsan-suites ## look for data races: KUnit and the programs on a kernel with KCSAN
	$(exit-with-status)
check-kcsan-suites:
	$(call status-of,tools/check list-kcsan)

run: run-guest ## boot the guest with the modules and run CMD (without CMD: a shell)
	$(exit-with-status)
run-guest:
	$(call status-of,tools/run)

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

bench: ## count instructions of every operation; BENCH_JSON=path writes the figures
	@tools/bench

doc: ## build the API documentation in build/doc
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
