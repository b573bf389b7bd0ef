// SPDX-License-Identifier: GPL-2.0

//! What the test programs share: the harness with IGT's command line, memory to experiment with,
//! processes, and a GPU to do things to them.

pub mod buffer;
pub mod cgroup;
pub mod configfs;
pub mod contents;
pub mod env;
pub mod failure;
pub mod gpu;
pub mod growth;
pub mod harness;
pub mod kernel_log;
pub mod klog;
pub mod map;
pub mod memory;
pub mod process;
pub mod random;
pub mod rng;
pub mod stop;
pub mod sysfs;
pub mod time;
pub mod uffd;
pub mod vmas;
pub mod vram;

pub use buffer::Buffer;
pub use gpu::{Gpu, Job};
pub use harness::Program;
pub use map::{Map, CHUNK, HUGE, MIDDLE, NONE, PAGE, RO, RW, SZ_2M};
pub use rng::Rng;
pub use stop::Stop;
