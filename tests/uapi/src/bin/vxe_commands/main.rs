// SPDX-License-Identifier: GPL-2.0

//! The commands that IGT's libraries use on a copy engine.

mod blitter;
mod encode;
mod spinner;
mod streamer;

use std::process::ExitCode;
use vxe_uapi::Program;

fn main() -> ExitCode {
    let mut p = Program::new("vxe_commands", "The commands of the copy engine.");
    p.subtest("spin", "a job runs until it is told to end", streamer::spin);
    p.subtest("spin-for-a-time", "a job measures its own time", streamer::spin_for_a_time);
    p.subtest("endless-loops", "jobs without an end take turns", streamer::endless_loops);
    p.subtest("killed-process", "a process with such jobs is killed", streamer::killed_process);
    p.subtest("jumps", "jumps, second levels and conditional ends", streamer::jumps);
    p.subtest("stores", "stores of lists and qwords", streamer::stores);
    p.subtest("flush", "what a flush stores", streamer::flush);
    p.subtest("timestamps", "all time-stamps agree", streamer::timestamps);
    p.subtest("registers", "registers and the ALU", streamer::registers);
    p.subtest("semaphores", "waits for a word", streamer::semaphores);
    p.subtest(
        "semaphores-in-vain",
        "waits that end with their queue",
        streamer::semaphores_in_vain,
    );
    p.subtest("semaphore-fault", "waits for what cannot be read", streamer::semaphore_fault);
    p.subtest("unbind", "the device is unbound under such jobs", streamer::unbind);
    p.subtest("interrupt", "a job wakes who waits", streamer::interrupt);
    p.subtest("interrupts", "a job wakes all the time", streamer::interrupts);
    p.subtest("refused", "what the engine does not have", streamer::refused);
    p.subtest("set", "fills of bytes and rows", blitter::set);
    p.subtest("copy-linear", "copies of bytes", blitter::copy_linear);
    p.subtest("copy-matrix", "copies of rows", blitter::copy_matrix);
    p.subtest("fast-copy", "XY_FAST_COPY_BLT", blitter::fast_copy);
    p.subtest("block-copy", "XY_BLOCK_COPY_BLT", blitter::block_copy);
    p.subtest("fast-color", "XY_FAST_COLOR_BLT", blitter::fast_color);
    p.main()
}
