// SPDX-License-Identifier: GPL-2.0

//! What is wrong with an ioctl's argument is found, and answered with xe's errno.

mod bind;
mod buffer;
mod cases;
mod pointers;
mod queue;
mod sync;
mod vm;

use std::process::ExitCode;
use vxe_uapi::Program;

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_bad_input",
        "Bad arguments of each ioctl are rejected with xe's errno, and change nothing.",
    );
    p.subtest("vm-create", "flags, reserved fields", vm::create);
    p.subtest("vm-destroy", "wrong and foreign numbers", vm::destroy);
    p.subtest("vm-destroy-queues", "VMs whose queues are there", vm::destroy_with_queues);
    p.subtest("madvise", "ranges, types, values", vm::madvise);
    p.subtest("query-attributes", "arrays and ranges", vm::attributes);
    p.subtest("get-property", "of a VM", vm::get_property);
    p.subtest("vm-bind", "reserved fields, numbers, queues", bind::header);
    p.subtest("vm-bind-op", "operations, flags, objects", bind::operation);
    p.subtest("vm-bind-pat", "entries of the page attribute table", bind::caching);
    p.subtest("vm-bind-userptr", "user pointers", bind::userptr);
    p.subtest("vm-bind-unsupported", "what xe has and this has not", bind::not_supported);
    p.subtest("vm-bind-range", "misaligned, overflowing and empty ranges", bind::ranges);
    p.subtest("vm-bind-advised", "prefetches of buffers to where they were advised", bind::advised);
    p.subtest("vm-bind-array", "arrays of binds", bind::arrays);
    p.subtest("vm-bind-sync", "syncs of binds", sync::of_bind);
    p.subtest("exec-queue-create", "engines, flags, extensions", queue::create);
    p.subtest("exec-queue-destroy", "wrong and foreign numbers", queue::destroy);
    p.subtest("exec-queue-property", "properties of a queue", queue::get_property);
    p.subtest("exec", "reserved fields, numbers, widths", queue::exec);
    p.subtest("exec-sync", "syncs of work", sync::of_exec);
    p.subtest("wait-user-fence", "operations, flags, addresses", sync::wait);
    p.subtest("gem-create", "sizes, placements, caching", buffer::create);
    p.subtest("gem-mmap-offset", "wrong and foreign handles", buffer::mmap_offset);
    p.subtest("gem-close", "wrong handles", buffer::close);
    p.subtest("pointers", "arguments that are not all there", pointers::arguments);
    p.subtest("unknown-ioctl", "numbers that mean nothing", pointers::unknown);
    p.main()
}
